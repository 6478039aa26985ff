//! Instructions carried out: messages on streams, requests to others.

use oxidask_scheduler::{
    self as core, ClientId, Instruction, Level, Number, RunSpec, StimulusId, TaskId, WorkerId,
};
use oxidask_wire::stream::{self, ComputeTask, Dependency};
use oxidask_wire::{Map, Value};
use tracing::{debug, error, info, warn};

use super::shell::{Shell, WorkerLink};

impl Shell {
    pub(super) fn carry_out(&mut self, instruction: Instruction) {
        match instruction {
            Instruction::ToWorker { worker, message } => self.tell_worker(worker, &message),
            Instruction::ToClient { client, message } => self.tell_client(client, &message),
            Instruction::ExplodeBundle { bundle, blob } => self.explode_bundle(bundle, blob),
            Instruction::Reply { request, result } => self.reply(request, result),
            Instruction::WorkerAdded { worker } => self.observe_added(worker),
            Instruction::WorkerRemoved {
                worker, address, ..
            } => self.worker_removed(worker, &address),
            Instruction::CreateShuffleRun(run) => self.create_shuffle_run(*run),
            Instruction::ShuffleInputsDone {
                request,
                workers,
                shuffle_id,
                run_id,
            } => {
                self.shuffle_inputs_done(request, shuffle_id, run_id, workers);
            }
            Instruction::Log { level, text } => log(level, &text),
            // Read by the extensions before this.
            Instruction::TaskRecord(_)
            | Instruction::BarrierLeft { .. }
            | Instruction::TaskForgotten { .. }
            | Instruction::Restarted
            | Instruction::LogEvent { .. } => {}
        }
    }

    fn tell_client(&mut self, client: ClientId, message: &core::ToClient) {
        let Some(link) = self.clients.get(&client) else {
            return;
        };
        let message = match message {
            core::ToClient::KeyInMemory {
                key,
                r#type,
                workers,
            } => stream::ToClient::KeyInMemory {
                key,
                r#type: r#type.as_deref(),
                workers: workers.as_deref(),
            },
            core::ToClient::LostData { key } => stream::ToClient::LostData { key },
            core::ToClient::TaskErred {
                key,
                exception,
                traceback,
            } => stream::ToClient::TaskErred {
                key,
                exception,
                traceback,
            },
            core::ToClient::TaskRetried { key } => stream::ToClient::TaskRetried { key },
            core::ToClient::CancelledKeys {
                keys,
                as_set,
                reason,
                msg,
            } => stream::ToClient::CancelledKeys {
                keys,
                as_set: *as_set,
                reason,
                msg,
            },
            core::ToClient::Restart => stream::ToClient::Restart,
            core::ToClient::Event { topic, event } => stream::ToClient::Event { topic, event },
            core::ToClient::AdjustHeartbeatInterval { interval } => {
                stream::ToClient::AdjustHeartbeatInterval {
                    interval: *interval,
                }
            }
        };
        link.sender.push(|batch| message.write(batch.message()));
    }

    fn tell_worker(&mut self, worker: WorkerId, message: &core::ToWorker) {
        let message = match message {
            core::ToWorker::ComputeTask {
                task,
                run_id,
                stimulus_id,
            } => {
                return self.compute_task(worker, *task, *run_id, stimulus_id);
            }
            core::ToWorker::FreeKeys { keys, stimulus_id } => stream::ToWorker::FreeKeys {
                keys,
                stimulus_id: stimulus_id.as_str(),
            },
            core::ToWorker::RemoveReplicas { keys, stimulus_id } => {
                stream::ToWorker::RemoveReplicas {
                    keys,
                    stimulus_id: stimulus_id.as_str(),
                }
            }
            core::ToWorker::AcquireReplicas {
                who_has,
                nbytes,
                stimulus_id,
            } => stream::ToWorker::AcquireReplicas {
                who_has,
                nbytes,
                stimulus_id: stimulus_id.as_str(),
            },
            core::ToWorker::StealRequest { key, stimulus_id } => stream::ToWorker::StealRequest {
                key,
                stimulus_id: stimulus_id.as_str(),
            },
            core::ToWorker::RefreshWhoHas {
                who_has,
                stimulus_id,
            } => stream::ToWorker::RefreshWhoHas {
                who_has,
                stimulus_id: stimulus_id.as_str(),
            },
            core::ToWorker::WorkerStatusChange {
                status,
                stimulus_id,
            } => stream::ToWorker::WorkerStatusChange {
                status: status.name(),
                stimulus_id: stimulus_id.as_str(),
            },
            core::ToWorker::RemoveWorker {
                address,
                stimulus_id,
            } => stream::ToWorker::RemoveWorker {
                address,
                stimulus_id: stimulus_id.as_str(),
            },
            core::ToWorker::ShuffleFail {
                shuffle_id,
                run_id,
                message,
                ..
            } => stream::ToWorker::ShuffleFail {
                shuffle_id,
                run_id: *run_id,
                message,
            },
            core::ToWorker::Close { reason } => stream::ToWorker::Close { reason },
        };
        if let Some(link) = self.workers.get(&worker) {
            link.write(&message);
        }
    }

    fn compute_task(
        &mut self,
        worker: WorkerId,
        task: TaskId,
        run_id: i64,
        stimulus_id: &StimulusId,
    ) {
        let Some(compute) = self.core.compute_task(worker, task, run_id) else {
            return;
        };
        let Some(link) = self.workers.get_mut(&worker) else {
            return;
        };
        let dependencies: Vec<Dependency<'_>> = compute
            .dependencies()
            .map(|dependency| Dependency {
                key: dependency.key(),
                nbytes: dependency.nbytes(),
                who_has: dependency.who_has().map(|address| &**address).collect(),
            })
            .collect();
        let annotations: Option<Map> = (compute.annotation_count() > 0).then(|| {
            compute
                .annotations()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        });
        let resources: Option<Vec<_>> = compute.resource_restrictions().as_map().map(|resources| {
            resources
                .iter()
                .filter_map(|(name, amount)| Some((name.as_str()?.into(), amount_of(amount)?)))
                .collect()
        });
        let message = stream::ToWorker::ComputeTask(ComputeTask {
            key: compute.key(),
            run_id: compute.run_id(),
            priority: compute.priority().map(number),
            stimulus_id: stimulus_id.as_str(),
            dependencies: &dependencies,
            run_spec: match compute.run_spec {
                RunSpec::Pickle(pickle) => stream::RunSpec::Pickle(pickle, &[]),
                RunSpec::Buffers(parts) => stream::RunSpec::Pickle(&parts.0, &parts.1),
                RunSpec::Call {
                    function,
                    arguments,
                } => match &mut link.functions {
                    Some(functions) => {
                        let (number, is_new) = functions.number(function);
                        stream::RunSpec::Known {
                            number,
                            function: is_new.then_some(function),
                            arguments,
                        }
                    }
                    None => stream::RunSpec::Call {
                        function,
                        arguments,
                    },
                },
                RunSpec::None | RunSpec::Bundle { .. } => stream::RunSpec::None,
            },
            resource_restrictions: resources.as_deref(),
            actor: compute.actor(),
            annotations: annotations.as_ref(),
            span_id: compute.span_id().map(|span| &**span),
        });
        link.write(&message);
    }

    fn observe_added(&mut self, worker: WorkerId) {
        let Some(state) = self.core.worker(worker) else {
            return;
        };
        let mut workers = Map::new();
        workers.push(&state.address, super::rpc::brief_worker(state));
        let mut message = Map::new();
        message.push("workers", workers);
        self.tell_observers(&Value::Array(vec!["add".into(), message.into()]));
    }

    fn worker_removed(&mut self, worker: WorkerId, address: &str) {
        if let Some(link) = self.workers.remove(&worker) {
            // What was queued for it, `close` for one, still goes out.
            link.sender.push(|batch| {
                let _ = stream::ToWorker::CloseStream.write(batch);
            });
            link.sender.close();
        }
        self.handle.peers.remove(address);
        self.tell_observers(&Value::Array(vec!["remove".into(), address.into()]));
    }

    fn tell_observers(&mut self, message: &Value) {
        self.observers
            .retain(|observer| observer.push(|batch| batch.push(message)));
    }
}

impl WorkerLink {
    fn write(&self, message: &stream::ToWorker<'_>) {
        self.sender.push(|batch| {
            if let Err(error) = message.write(batch) {
                // Arguments come from the graph helper and are checked there.
                error!(target: "distributed.scheduler", %error, "a message for a worker cannot be written");
            }
        });
    }
}

fn number(number: Number) -> stream::Number {
    match number {
        Number::Int(value) => stream::Number::Int(value),
        Number::Float(value) => stream::Number::Float(value),
    }
}

fn amount_of(value: &Value) -> Option<stream::Number> {
    if let Value::Float(value) = value {
        Some(stream::Number::Float(*value))
    } else {
        value.as_i64().map(stream::Number::Int)
    }
}

fn log(level: Level, text: &str) {
    match level {
        Level::Debug => debug!(target: "distributed.scheduler", "{text}"),
        Level::Info => info!(target: "distributed.scheduler", "{text}"),
        Level::Warning => warn!(target: "distributed.scheduler", "{text}"),
        Level::Error => error!(target: "distributed.scheduler", "{text}"),
    }
}
