//! Between the cores: what their shells do with messages, without the bytes.
//!
//! The same as `outgoing` and `worker_stream` of the scheduler's shell, and as
//! `outgoing` and `stream` of the worker's, between which `oxidask-wire` writes and
//! reads each message.

use bytes::Bytes;
use oxidask_scheduler::{self as scheduler, RunSpec, Scheduler, Status, ToWorker, WorkerId};
use oxidask_wire::{Key, Map, Str, Value, map};
use oxidask_worker::instruction::SendMessageToScheduler as ToScheduler;
use oxidask_worker::task::StartStop;
use oxidask_worker::{self as worker, ComputeTaskEvent, Priority};

/// What comes to a worker on its stream.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// For the core.
    Event(worker::StimulusId, worker::Event),
    /// `worker-status-change`.
    Status(Status, worker::StimulusId),
    /// `close`.
    Close,
}

/// What a worker gets; nothing if the task has moved on.
pub(crate) fn to_worker(
    core: &Scheduler,
    receiver: WorkerId,
    message: ToWorker,
) -> Option<Message> {
    let addresses = |who_has: Vec<(Key, Vec<std::sync::Arc<str>>)>| -> Vec<(Key, Vec<Str>)> {
        let entries = who_has.into_iter();
        let entries = entries
            .map(|(key, holders)| (key, holders.iter().map(|to| Str::from(&**to)).collect()));
        entries.collect()
    };
    let (stimulus_id, event) = match message {
        ToWorker::ComputeTask {
            task,
            run_id,
            stimulus_id,
        } => {
            let compute = core.compute_task(receiver, task, run_id)?;
            let event = worker::Event::ComputeTask(Box::new(compute_task(&compute)));
            (stimulus_id, event)
        }
        ToWorker::FreeKeys { keys, stimulus_id } => (stimulus_id, worker::Event::FreeKeys { keys }),
        ToWorker::RemoveReplicas { keys, stimulus_id } => {
            (stimulus_id, worker::Event::RemoveReplicas { keys })
        }
        ToWorker::AcquireReplicas {
            who_has,
            nbytes,
            stimulus_id,
        } => {
            let who_has = addresses(who_has);
            (
                stimulus_id,
                worker::Event::AcquireReplicas { who_has, nbytes },
            )
        }
        ToWorker::StealRequest { key, stimulus_id } => {
            (stimulus_id, worker::Event::StealRequest { key })
        }
        ToWorker::RefreshWhoHas {
            who_has,
            stimulus_id,
        } => {
            let who_has = addresses(who_has);
            (stimulus_id, worker::Event::RefreshWhoHas { who_has })
        }
        ToWorker::RemoveWorker {
            address,
            stimulus_id,
        } => {
            let worker = Str::from(&*address);
            (stimulus_id, worker::Event::RemoveWorker { worker })
        }
        ToWorker::WorkerStatusChange {
            status,
            stimulus_id,
        } => return Some(Message::Status(status, stimulus_id.as_str().into())),
        ToWorker::Close { .. } => return Some(Message::Close),
        ToWorker::ShuffleFail { .. } => return None,
    };
    Some(Message::Event(stimulus_id.as_str().into(), event))
}

fn compute_task(compute: &scheduler::ComputeTask<'_>) -> ComputeTaskEvent {
    let dependencies: Vec<_> = compute.dependencies().collect();
    let priority = compute.priority().map(|number| number.as_f64());
    let restrictions = compute.resource_restrictions().as_map();
    ComputeTaskEvent {
        key: compute.key().clone(),
        run_id: compute.run_id(),
        who_has: dependencies
            .iter()
            .map(|dependency| {
                let holders = dependency.who_has().map(|to| Str::from(&**to));
                (dependency.key().clone(), holders.collect())
            })
            .collect(),
        nbytes: dependencies
            .iter()
            .map(|dependency| (dependency.key().clone(), dependency.nbytes()))
            .collect(),
        priority: Priority::from_scheduler(&priority).expect("three numbers are a priority"),
        run_spec: match compute.run_spec {
            RunSpec::Pickle(pickle) => Some(Value::Bin(pickle.clone())),
            RunSpec::Buffers(_) | RunSpec::Call { .. } | RunSpec::None | RunSpec::Bundle { .. } => {
                None
            }
        },
        resource_restrictions: restrictions
            .into_iter()
            .flat_map(Map::iter)
            .filter_map(|(name, amount)| Some((name.as_str()?.into(), amount.as_f64()?)))
            .collect(),
        actor: compute.actor(),
        annotations: compute
            .annotations()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        span_id: compute.span_id().map(|span| Str::from(&**span)),
    }
}

/// What the scheduler makes of a worker's message.
pub(crate) fn to_scheduler(sender: WorkerId, message: ToScheduler) -> scheduler::Event {
    let reason = |stimulus_id: &worker::StimulusId| stimulus_id.as_str().into();
    match message {
        ToScheduler::TaskFinished(task) => scheduler::Event::TaskFinished {
            worker: sender,
            run_id: task.run_id,
            nbytes: task.nbytes,
            r#type: Bytes::copy_from_slice(&task.r#type.pickled),
            typename: task.r#type.name.clone(),
            thread: thread(task.thread),
            startstops: startstops(&task.startstops),
            stimulus_id: reason(&task.stimulus_id),
            key: task.key,
            metadata: task.metadata,
        },
        ToScheduler::TaskErred(task) => scheduler::Event::TaskErred {
            worker: sender,
            run_id: task.run_id,
            exception: task.failure.exception.clone(),
            traceback: task.failure.traceback.clone(),
            exception_text: task.failure.exception_text.clone(),
            traceback_text: task.failure.traceback_text.clone(),
            thread: thread(task.thread),
            startstops: startstops(&task.startstops),
            stimulus_id: reason(&task.stimulus_id),
            key: task.key,
        },
        ToScheduler::ReleaseWorkerData(msg) => scheduler::Event::ReleaseWorkerData {
            worker: sender,
            stimulus_id: reason(&msg.stimulus_id),
            key: msg.key,
        },
        ToScheduler::Reschedule(msg) => scheduler::Event::Reschedule {
            worker: sender,
            stimulus_id: reason(&msg.stimulus_id),
            key: msg.key,
        },
        ToScheduler::LongRunning(msg) => scheduler::Event::LongRunning {
            worker: sender,
            stimulus_id: reason(&msg.stimulus_id),
            key: msg.key,
            run_id: msg.run_id,
            compute_duration: msg.compute_duration,
        },
        ToScheduler::AddKeys(msg) => scheduler::Event::AddKeys {
            worker: sender,
            stimulus_id: reason(&msg.stimulus_id),
            keys: msg.keys,
        },
        ToScheduler::RequestRefreshWhoHas(msg) => scheduler::Event::RequestRefreshWhoHas {
            worker: sender,
            stimulus_id: reason(&msg.stimulus_id),
            keys: msg.keys,
        },
        ToScheduler::StealResponse(msg) => scheduler::Event::StealResponse {
            worker: sender,
            stimulus_id: reason(&msg.stimulus_id),
            state: msg.state.map(|state| Str::from(state.name())),
            key: msg.key,
        },
    }
}

fn thread(thread: Option<u64>) -> Value {
    thread.map_or(Value::Nil, Value::from)
}

fn startstops(startstops: &[StartStop]) -> Value {
    let entries = startstops.iter().map(|startstop| {
        let mut entry = map! {
            "action" => startstop.action.name(),
            "start" => startstop.start,
            "stop" => startstop.stop,
        };
        if let Some(source) = &startstop.source {
            entry.push("source", &**source);
        }
        Value::Map(entry)
    });
    entries.collect()
}
