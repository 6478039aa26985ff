//! Into processing, and out of it with a result.

use std::cmp::Reverse;
use std::mem::take;
use std::sync::Arc;

use oxidask_wire::{Str, Value};

use crate::failure::{format_bytes, memory_error};
use crate::id::{TaskId, WorkerId};
use crate::instruction::{Instruction, Level, ToClient};
use crate::scheduler::{Cx, Scheduler};
use crate::task::{Rank, State, TaskFailure, TaskRecord};
use crate::transitions::Detail;

impl Scheduler {
    /// Assigns a ready task to a worker.
    pub(super) fn add_to_processing(&mut self, task: TaskId, worker: WorkerId, cx: &mut Cx<'_>) {
        self.assign(task, worker);
        self.tasks[task].processing_on = Some(worker);
        self.set_state(task, State::Processing);
        self.acquire_resources(task, worker);
        self.check_idle_saturated(worker);
        self.n_tasks += 1;
        if self.tasks[task].actor {
            self.workers[worker].actors.insert(task);
        }

        let nbytes: i64 = self.tasks[task]
            .dependencies
            .iter()
            .map(|dependency| self.tasks[dependency].nbytes)
            .sum();
        let limit = self.workers[worker].memory_limit;
        if limit > 0 && nbytes > 0 && nbytes as u64 > limit && self.config.memory_terminate {
            self.fail_for_memory(task, worker, nbytes, cx);
        } else {
            self.send_task(task, worker, cx);
        }
    }

    /// The inputs alone exceed the worker's memory. Crude, as in stock: meant
    /// for mistakes by orders of magnitude.
    fn fail_for_memory(&mut self, task: TaskId, worker: WorkerId, nbytes: i64, cx: &mut Cx<'_>) {
        let ts = &self.tasks[task];
        let ws = &self.workers[worker];
        let mut text = format!(
            "Task {:?} has {} worth of input dependencies, but worker {} has memory_limit set to {}.",
            ts.key,
            format_bytes(nbytes),
            ws.address,
            format_bytes(ws.memory_limit as i64),
        );
        if ts.dependents.is_empty() {
            text.push_str(
                " It seems like you called client.compute() on a huge collection. \
                 Consider writing to distributed storage or slicing/reducing first.",
            );
        }
        let failure = Arc::new(TaskFailure {
            cause: ts.key.clone(),
            exception: memory_error(&text),
            traceback: Value::Nil,
            exception_text: Str::default(),
            traceback_text: Str::default(),
        });
        cx.log(Level::Error, text);
        let worker = Some(worker);
        self.transition(task, State::Erred, Detail::Failed { failure, worker }, cx);
    }

    pub(super) fn processing_memory(&mut self, task: TaskId, detail: Detail, cx: &mut Cx<'_>) {
        let Detail::Finished(finished) = detail else {
            // Only a worker's report leads here.
            return;
        };
        let worker = finished.worker;
        let group = self.tasks[task].group;
        for startstop in finished.startstops.as_array().unwrap_or_default() {
            let Some(startstop) = startstop.as_map() else {
                continue;
            };
            let time = |name| startstop.get(name).and_then(Value::as_f64);
            if let (Some(action), Some(start), Some(stop)) = (
                startstop.get("action").and_then(Value::as_str),
                time("start"),
                time("stop"),
            ) {
                self.groups.add_duration(group, action, start, stop);
            }
        }
        self.set_nbytes(task, finished.nbytes);
        self.exit_processing(task);
        self.refresh_steal_levels(self.groups[group].prefix);

        self.add_replica(task, worker);
        self.ready_dependents(task);
        self.leave_waiters_of_dependencies(task);

        let ts = &self.tasks[task];
        if ts.is_needed() {
            self.tell_who_wants(task, cx.out, || ToClient::KeyInMemory {
                key: ts.key.clone(),
                r#type: Some(finished.r#type.clone()),
                workers: None,
            });
        } else {
            self.recommend(task, State::Released);
        }
        self.set_state(task, State::Memory);
        let typename = self.groups.add_type(group, &finished.typename);
        self.tasks[task].r#type = Some(typename);
        self.release_fire_and_forget(task);

        if finished
            .startstops
            .as_array()
            .is_some_and(|list| !list.is_empty())
        {
            let finished = *finished;
            cx.out.push(Instruction::TaskRecord(Box::new(TaskRecord {
                key: self.tasks[task].key.clone(),
                worker: self.workers[worker].address.clone(),
                finish: State::Memory,
                nbytes: finished.nbytes,
                r#type: finished.r#type,
                typename: finished.typename,
                metadata: finished.metadata,
                thread: finished.thread,
                startstops: finished.startstops,
                stimulus_id: cx.stimulus_id.clone(),
            })));
        }
    }

    /// Recommends processing for dependents that waited for this task alone, so
    /// that the best comes out of the stack first.
    pub(crate) fn ready_dependents(&mut self, task: TaskId) {
        let dependents = take(&mut self.tasks[task].dependents);
        let mut ready: Vec<(Rank, TaskId)> = Vec::new();
        for dependent in &dependents {
            let dts = &mut self.tasks[dependent];
            if dts.waiting_on.remove(task) && dts.waiting_on.is_empty() {
                ready.push((dts.rank(), dependent));
            }
        }
        self.tasks[task].dependents = dependents;
        ready.sort_by_key(|&(rank, _)| Reverse(rank));
        for (_, dependent) in ready {
            self.recommend(dependent, State::Processing);
        }
    }

    pub(crate) fn leave_waiters_of_dependencies(&mut self, task: TaskId) {
        let dependencies = take(&mut self.tasks[task].dependencies);
        for dependency in &dependencies {
            self.tasks[dependency].waiters.remove(task);
            self.release_if_unneeded(dependency);
        }
        self.tasks[task].dependencies = dependencies;
    }

    /// `fire_and_forget` ends with the first result or failure.
    pub(super) fn release_fire_and_forget(&mut self, task: TaskId) {
        if self.tasks[task].who_wants.contains(self.fire_and_forget) {
            self.drop_interest(self.fire_and_forget, task);
        }
    }

    /// Takes a task out of its worker's processing. `None` if that worker is gone.
    pub(super) fn exit_processing(&mut self, task: TaskId) -> Option<WorkerId> {
        let worker = self.tasks[task]
            .processing_on
            .take()
            .expect("a task in processing is on a worker");
        self.unassign(task, worker);
        if self.workers[worker].leaving {
            return None;
        }
        self.check_idle_saturated(worker);
        self.release_resources(task, worker);
        Some(worker)
    }
}
