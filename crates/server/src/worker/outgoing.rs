//! Instructions carried out: messages to the scheduler, tasks, transfers, values.

use std::sync::Arc;

use oxidask_wire::stream::{self, ErredTask, FinishedTask, ToScheduler};
use oxidask_wire::{Key, Value};
use oxidask_worker::instruction::{Execute, GatherDep};
use oxidask_worker::task::{StartStop, TaskFailure};
use oxidask_worker::{Event, Instruction, SendMessageToScheduler, State, TaskState};
use tracing::error;

use super::executor::{RunSpec, Task};
use super::failure;
use super::memory::Wanted;
use super::metrics::Reads;
use super::shell::{Running, Shell, Stimulus, now, stimulus_id};
use super::store::Coming;
use super::transfer;

impl Shell {
    pub(super) fn carry_out(&mut self, instruction: Instruction) {
        match instruction {
            Instruction::SendMessageToScheduler(message) => self.send(&message),
            Instruction::Execute(execute) => self.execute(&execute),
            Instruction::GatherDep(gather) => self.gather_dep(gather),
            Instruction::RetryBusyWorkerLater(retry) => {
                let handle = self.handle.clone();
                self.transfers
                    .spawn(transfer::retry_busy_worker_later(handle, retry.worker));
            }
            Instruction::StoreData { key } => self.store_data(key),
            Instruction::ReleaseData { key } => {
                self.to_release.extend(self.store.remove(&key));
            }
            Instruction::Transition { key, start, finish } => {
                self.handle.executor.transition(&key, start, finish);
            }
        }
    }

    fn store_data(&mut self, key: Key) {
        if let Some(at) = self.spilled.iter().position(|(own, ..)| *own == key) {
            let (key, value, ticket) = self.spilled.swap_remove(at);
            self.to_release
                .extend(self.store.insert_spilled(key, value, ticket));
            return;
        }
        let datum = self
            .values
            .swap_remove(&key)
            .expect("the core stores only what came with the event");
        let is_actor = self.core.find_task(&key).is_some_and(|ts| ts.is_actor);
        self.to_release
            .extend(self.store.insert(key, datum, is_actor));
    }

    fn execute(&mut self, execute: &Execute) {
        let key = execute.key.clone();
        if self.ahead.is_begun(&key) {
            return self.begun(key);
        }
        if !self.status.is_any_running() {
            // For the core's sake; the scheduler has forgotten this worker.
            let event = Event::Reschedule { key };
            self.queue
                .push_back(Stimulus::new(stimulus_id("worker-closing"), event));
            return;
        }
        let ts = self
            .core
            .find_task(&key)
            .expect("a task that is executed is known");
        let run_id = ts.run_id;
        let is_running = ts.state.is_running();
        match self.task(&key) {
            Ok((task, coming)) if coming.is_empty() => {
                let disk_read = None;
                self.hand_over(task, Running { run_id, disk_read });
            }
            Ok((task, coming)) => self.execute_when_read(task, run_id, coming),
            Err(failure) => {
                if is_running {
                    error!(
                        target: "distributed.worker",
                        "Exception during execution of task {key}: {}", failure.exception_text
                    );
                }
                let event = Event::ExecuteFailure {
                    key,
                    run_id,
                    failure,
                    startstops: Vec::new(),
                    thread: None,
                };
                self.queue
                    .push_back(Stimulus::new(stimulus_id("execute-unknown-error"), event));
            }
        }
    }

    /// Gives a task to the executor, at the end of this turn.
    pub(super) fn hand_over(&mut self, task: Task, running: Running) {
        self.runs(task.key.clone(), running);
        self.to_execute.push(task);
    }

    /// A task is at the executor.
    pub(super) fn runs(&mut self, key: Key, running: Running) {
        self.core.set_start_time(&key, now());
        self.running.insert(key, running);
    }

    /// A task with those of its inputs that are in memory, and the others, which are
    /// being read. They may be gone if it was cancelled before it began.
    #[expect(clippy::type_complexity, reason = "both are used once, at once")]
    fn task(&mut self, key: &Key) -> Result<(Task, Vec<(Key, Coming)>), Arc<TaskFailure>> {
        let ts = self
            .core
            .find_task(key)
            .expect("a task that is executed is known");
        let mut task =
            task(ts).ok_or_else(|| failure::builtin("ValueError", "The task has no run_spec"))?;
        let dependencies = self.core.dependencies(ts);
        let dependencies: Vec<Key> = dependencies.map(|ts| ts.key.clone()).collect();
        let mut coming = Vec::new();
        let mut reads = Reads::default();
        for key in dependencies {
            match self.get(&key) {
                Wanted::Here(input) => {
                    self.count_read(&mut reads, &input);
                    task.inputs.push((key, input));
                }
                Wanted::Coming(read) => coming.push((key, read)),
                Wanted::Missing => return Err(failure::missing_input(&key)),
            }
        }
        self.metrics
            .executed_reads(task.span_id.as_ref(), &task.key.key_split(), reads);
        Ok((task, coming))
    }

    fn gather_dep(&mut self, gather: GatherDep) {
        if !self.status.is_any_running() {
            let event = Event::GatherDepFailure {
                worker: gather.worker,
                total_nbytes: gather.total_nbytes,
                failure: failure::builtin("RuntimeError", "Worker is shutting down"),
            };
            self.queue
                .push_back(Stimulus::new(stimulus_id("worker-closing"), event));
            return;
        }
        self.core.log_transfer(
            now(),
            "request-dep",
            &gather.worker,
            gather.to_gather.clone(),
            &gather.stimulus_id,
        );
        let handle = self.handle.clone();
        self.transfers.spawn(transfer::gather_dep(handle, gather));
    }

    fn send(&self, message: &SendMessageToScheduler) {
        let startstops;
        let message = match message {
            SendMessageToScheduler::TaskFinished(task) => {
                startstops = wire_startstops(&task.startstops);
                ToScheduler::TaskFinished(FinishedTask {
                    key: &task.key,
                    run_id: task.run_id,
                    nbytes: task.nbytes,
                    r#type: &task.r#type.pickled,
                    typename: &task.r#type.name,
                    metadata: &task.metadata,
                    thread: task.thread,
                    startstops: &startstops,
                    stimulus_id: task.stimulus_id.as_str(),
                })
            }
            SendMessageToScheduler::TaskErred(task) => {
                startstops = wire_startstops(&task.startstops);
                ToScheduler::TaskErred(ErredTask {
                    key: &task.key,
                    run_id: task.run_id,
                    exception: &task.failure.exception,
                    traceback: &task.failure.traceback,
                    exception_text: &task.failure.exception_text,
                    traceback_text: &task.failure.traceback_text,
                    thread: task.thread,
                    startstops: &startstops,
                    stimulus_id: task.stimulus_id.as_str(),
                })
            }
            SendMessageToScheduler::ReleaseWorkerData(msg) => ToScheduler::ReleaseWorkerData {
                key: &msg.key,
                stimulus_id: msg.stimulus_id.as_str(),
            },
            SendMessageToScheduler::Reschedule(msg) => ToScheduler::Reschedule {
                key: &msg.key,
                stimulus_id: msg.stimulus_id.as_str(),
            },
            SendMessageToScheduler::LongRunning(msg) => ToScheduler::LongRunning {
                key: &msg.key,
                run_id: msg.run_id,
                compute_duration: msg.compute_duration,
                stimulus_id: msg.stimulus_id.as_str(),
            },
            SendMessageToScheduler::AddKeys(msg) => ToScheduler::AddKeys {
                keys: &msg.keys,
                stimulus_id: msg.stimulus_id.as_str(),
            },
            SendMessageToScheduler::RequestRefreshWhoHas(msg) => {
                ToScheduler::RequestRefreshWhoHas {
                    keys: &msg.keys,
                    stimulus_id: msg.stimulus_id.as_str(),
                }
            }
            SendMessageToScheduler::StealResponse(msg) => ToScheduler::StealResponse {
                key: &msg.key,
                state: msg.state.map(State::name),
                stimulus_id: msg.stimulus_id.as_str(),
            },
        };
        self.tell_scheduler(&message);
    }

    /// Publishes that the worker closes.
    pub(super) fn log_closing(&self, reason: &str) {
        let message = oxidask_wire::map! { "action" => "closing-worker", "reason" => reason };
        let address = &self.handle.settings.address;
        self.log_event(&Value::from(address), &Value::Map(message));
    }
}

/// A task as the executor gets it, without its inputs.
pub(super) fn task(ts: &TaskState) -> Option<Task> {
    Some(Task {
        key: ts.key.clone(),
        run_id: ts.run_id,
        run_spec: RunSpec::from_value(ts.run_spec.clone()?),
        inputs: Vec::new(),
        annotations: ts.annotations.clone(),
        span_id: ts.span_id.clone(),
        is_actor: ts.is_actor,
    })
}

fn wire_startstops(startstops: &[StartStop]) -> Vec<stream::StartStop> {
    startstops
        .iter()
        .map(|startstop| stream::StartStop {
            action: startstop.action.name(),
            start: startstop.start,
            stop: startstop.stop,
            source: startstop.source.clone(),
        })
        .collect()
}
