//! What workers report about tasks.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_wire::{Key, Str, Value};

use crate::id::{Status, TaskId, WorkerId};
use crate::instruction::{Instruction, Level};
use crate::scheduler::{Cx, Scheduler};
use crate::task::{State, TaskFailure, TaskRecord};
use crate::transitions::Detail;

/// What a worker calls the run of a task that it was not asked to compute:
/// `RUN_ID_SENTINEL` in distributed.
const NO_RUN: i64 = -1;

/// A `task-finished` report without the task.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) worker: WorkerId,
    pub(crate) nbytes: i64,
    pub(crate) r#type: Bytes,
    pub(crate) typename: Str,
    pub(crate) metadata: Value,
    pub(crate) thread: Value,
    pub(crate) startstops: Value,
}

impl Scheduler {
    pub(crate) fn task_finished(
        &mut self,
        key: &Key,
        run_id: i64,
        finished: Finished,
        cx: &mut Cx<'_>,
    ) {
        let worker = finished.worker;
        if self.workers.get(worker).is_none() {
            return;
        }
        match self.tasks.find(key) {
            None => cx.free_key(worker, key),
            Some(task) => self.known_task_finished(task, run_id, finished, cx),
        }
        self.transitions_by_slices(cx);
        self.queue_slots_maybe_opened(cx);
        self.hand_out_ahead(worker, cx);
    }

    fn known_task_finished(
        &mut self,
        task: TaskId,
        run_id: i64,
        finished: Finished,
        cx: &mut Cx<'_>,
    ) {
        let worker = finished.worker;
        let ts = &self.tasks[task];
        match ts.state {
            State::Released | State::Queued | State::NoWorker | State::Erred | State::Forgotten => {
                cx.free_key(worker, &ts.key);
            }
            State::Waiting | State::Processing | State::Memory if ts.run_id != run_id => {
                // A worker that was sent an earlier run has been told to free it. Since then
                // it may have been told to fetch the result, and to say it again would
                // leave what it is to compute from it waiting for ever, as on stock.
                if ts.processing_on == Some(worker) {
                    self.recommend(task, State::Released);
                } else if !self.is_input_on(task, worker) {
                    cx.free_key(worker, &ts.key);
                }
            }
            State::Memory => self.add_replica(task, worker),
            State::Processing if ts.processing_on != Some(worker) => {
                // Stock calls this impossible and drops the worker: only the worker
                // that was sent a run can know its number.
                let text = format!("Unexpected worker completed task {:?}", ts.key);
                cx.free_key(worker, &ts.key);
                cx.log(Level::Error, text);
            }
            State::Waiting | State::Processing => {
                self.update_metadata(task, &finished.metadata);
                self.transition(
                    task,
                    State::Memory,
                    Detail::Finished(Box::new(finished)),
                    cx,
                );
            }
        }
    }

    /// Whether something that a worker is to compute needs a task.
    fn is_input_on(&self, task: TaskId, worker: WorkerId) -> bool {
        let mut dependents = self.tasks[task].dependents.iter();
        dependents.any(|dependent| self.tasks[dependent].processing_on == Some(worker))
    }

    pub(crate) fn task_erred(
        &mut self,
        worker: WorkerId,
        run_id: i64,
        failure: TaskFailure,
        thread: Value,
        startstops: Value,
        cx: &mut Cx<'_>,
    ) {
        let Some(task) = self.tasks.find(&failure.cause) else {
            if run_id == NO_RUN && self.workers.get(worker).is_some() {
                cx.free_key(worker, &failure.cause);
            }
            return;
        };
        let ts = &mut self.tasks[task];
        if run_id == NO_RUN && ts.processing_on != Some(worker) {
            return self.input_erred(worker, task, failure, cx);
        }
        if ts.state != State::Processing {
            return;
        }
        if ts.run_id != run_id {
            if ts.processing_on == Some(worker) {
                self.transition(task, State::Released, Detail::None, cx);
            }
        } else if ts.retries > 0 {
            ts.retries -= 1;
            self.transition(task, State::Waiting, Detail::None, cx);
        } else {
            let failure = Arc::new(failure);
            let has_run = startstops.as_array().is_some_and(|list| !list.is_empty());
            if has_run && let Some(ws) = self.workers.get(worker) {
                cx.out.push(Instruction::TaskRecord(Box::new(TaskRecord {
                    key: self.tasks[task].key.clone(),
                    worker: ws.address.clone(),
                    finish: State::Erred,
                    nbytes: -1,
                    r#type: Bytes::new(),
                    typename: Str::default(),
                    metadata: Value::Nil,
                    thread,
                    startstops,
                    stimulus_id: cx.stimulus_id.clone(),
                })));
            }
            let worker = Some(worker);
            self.transition(task, State::Erred, Detail::Failed { failure, worker }, cx);
        }
        self.transitions(cx);
        self.queue_slots_maybe_opened(cx);
    }

    /// A worker cannot make use of a result that it has fetched: what it was to compute
    /// from it fails for that reason. On stock it stays in `processing` for ever.
    fn input_erred(
        &mut self,
        worker: WorkerId,
        task: TaskId,
        failure: TaskFailure,
        cx: &mut Cx<'_>,
    ) {
        let ts = &self.tasks[task];
        if self.workers.get(worker).is_none() || ts.who_has.contains(worker) {
            return;
        }
        let mut waiting: Vec<TaskId> = ts.dependents.iter().collect();
        waiting.retain(|&dependent| self.tasks[dependent].processing_on == Some(worker));
        let failure = Arc::new(failure);
        for dependent in waiting {
            let dts = &mut self.tasks[dependent];
            if dts.retries > 0 {
                dts.retries -= 1;
                self.transition(dependent, State::Waiting, Detail::None, cx);
            } else {
                cx.free_key(worker, &dts.key);
                let failure = failure.clone();
                let worker = Some(worker);
                let detail = Detail::Failed { failure, worker };
                self.transition(dependent, State::Erred, detail, cx);
            }
        }
        cx.free_key(worker, &self.tasks[task].key);
        self.transitions(cx);
        self.queue_slots_maybe_opened(cx);
    }

    pub(crate) fn long_running(
        &mut self,
        worker: WorkerId,
        key: &Key,
        run_id: i64,
        compute_duration: Option<f64>,
        cx: &mut Cx<'_>,
    ) {
        if self.workers.get(worker).is_none() {
            return;
        }
        let Some(task) = self.tasks.find(key) else {
            return;
        };
        let ts = &self.tasks[task];
        if ts.processing_on != Some(worker) || ts.run_id != run_id {
            return;
        }
        if let Some(duration) = compute_duration {
            let prefix = self.groups[ts.group].prefix;
            let average = &mut self.groups[prefix].duration_average;
            *average = if *average < 0.0 {
                duration
            } else {
                (*average + duration) / 2.0
            };
        }
        if !self.workers[worker].long_running.contains(task) {
            self.set_long_running(task, worker);
        }
        self.check_idle_saturated(worker);
        self.queue_slots_maybe_opened(cx);
    }

    pub(crate) fn reschedule(&mut self, worker: WorkerId, key: &Key, cx: &mut Cx<'_>) {
        let Some(task) = self.tasks.find(key) else {
            cx.log(
                Level::Warning,
                format!(
                    "Attempting to reschedule task {key:?}, which was not found on the scheduler. Aborting reschedule."
                ),
            );
            return;
        };
        let ts = &self.tasks[task];
        if ts.state == State::Processing && ts.processing_on == Some(worker) {
            self.recommend(task, State::Released);
            self.transitions(cx);
            self.queue_slots_maybe_opened(cx);
        }
    }

    pub(crate) fn worker_status_change(
        &mut self,
        worker: WorkerId,
        status: Status,
        cx: &mut Cx<'_>,
    ) {
        let Some(ws) = self.workers.get_mut(worker) else {
            return;
        };
        let before = std::mem::replace(&mut ws.status, status);
        if before == status {
            return;
        }
        let rank = ws.rank;
        let address = ws.address.clone();
        let mut message = oxidask_wire::Map::new();
        message.push("action", "worker-status-change");
        message.push("prev-status", before.name());
        message.push("status", status.name());
        message.push("stimulus_id", cx.stimulus_id.as_str());
        cx.event([address], Value::Map(message));

        if status == Status::Running {
            self.workers.running.insert(rank);
            self.start_work_on(worker, cx);
        } else {
            self.workers.running.remove(rank);
            self.workers.idle.remove(rank);
            self.workers.saturated.remove(rank);
            self.workers.close(worker);
        }
        self.refresh_no_workers_since(cx.now);
    }

    /// A worker has begun to run: it takes what nobody else could.
    pub(crate) fn start_work_on(&mut self, worker: WorkerId, cx: &mut Cx<'_>) {
        self.check_idle_saturated(worker);
        self.recommend_unrunnable(worker);
        self.transitions(cx);
        self.queue_slots_maybe_opened(cx);
    }

    /// Sends queued tasks to free slots, best first. Everything that follows from
    /// the present event must have been carried out, so that tasks further down
    /// have taken their places before new root tasks do.
    pub(crate) fn queue_slots_maybe_opened(&mut self, cx: &mut Cx<'_>) {
        // A task that fails as it is assigned leaves its slot to the next one.
        let mut queued_before = usize::MAX;
        while self.queued.len() < queued_before && !self.queued.is_empty() {
            queued_before = self.queued.len();
            for _ in 0..self.workers.open_slots {
                let Some(&(_, _, task)) = self.queued.first() else {
                    return;
                };
                if self.is_on_its_way_out(task) {
                    return;
                }
                self.recommend(task, State::Processing);
                self.transitions(cx);
            }
        }
    }

    /// Gives a worker that works off short root tasks more of them than it has
    /// slots, so that it need not wait a round trip for each.
    ///
    /// Stock's queuing bounds the number of root tasks at a worker in order to
    /// bound their results in memory; what is handed out here is bounded in
    /// seconds and in bytes instead (see `may_go_ahead`).
    fn hand_out_ahead(&mut self, worker: WorkerId, cx: &mut Cx<'_>) {
        while let Some(&(_, _, task)) = self.queued.first() {
            if !self.may_go_ahead(task, worker) || self.is_on_its_way_out(task) {
                return;
            }
            self.ahead = Some(worker);
            self.recommend(task, State::Processing);
            self.transitions(cx);
            self.ahead = None;
            if self
                .queued
                .first()
                .is_some_and(|&(_, _, first)| first == task)
            {
                return;
            }
        }
    }

    /// Recommends `released` for each of the keys; the last one is processed first.
    pub(crate) fn release_keys(&mut self, keys: &[Key], cx: &mut Cx<'_>) {
        for key in keys {
            if let Some(task) = self.tasks.find(key) {
                self.recommend(task, State::Released);
            }
        }
        self.transitions(cx);
        self.queue_slots_maybe_opened(cx);
    }
}
