//! Transitions from `waiting`, `queued` and `no-worker` towards a worker.

use std::mem::take;

use crate::id::TaskId;
use crate::scheduler::{Cx, Scheduler};
use crate::task::State;

impl Scheduler {
    /// Nobody needs it any more, or a dependency was lost.
    pub(super) fn waiting_released(&mut self, task: TaskId) {
        let dependencies = take(&mut self.tasks[task].dependencies);
        for dependency in &dependencies {
            if self.tasks[dependency].waiters.remove(task) {
                self.release_if_unneeded(dependency);
            }
        }
        let ts = &mut self.tasks[task];
        ts.dependencies = dependencies;
        ts.waiting_on.clear();
        self.set_state(task, State::Released);

        let ts = &mut self.tasks[task];
        if ts.has_lost_dependencies {
            self.recommend(task, State::Forgotten);
        } else if ts.failure.is_none() && ts.is_needed() {
            self.recommend(task, State::Waiting);
        } else {
            ts.waiters.clear();
        }
    }

    /// The way of every ready task: to a worker, into the queue or among the unrunnable.
    pub(super) fn waiting_processing(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        let (worker, otherwise) = if !self.is_rootish(task) {
            (self.decide_worker_non_rootish(task), State::NoWorker)
        } else if self.config.worker_saturation.is_infinite() || !self.tasks[task].queueable {
            (
                self.decide_worker_rootish_queuing_disabled(task),
                State::NoWorker,
            )
        } else {
            (self.decide_worker_rootish_queuing_enabled(), State::Queued)
        };
        match worker {
            Some(worker) => self.add_to_processing(task, worker, cx),
            None => self.recommend(task, otherwise),
        }
    }

    pub(super) fn waiting_no_worker(&mut self, task: TaskId, now: f64) {
        self.set_state(task, State::NoWorker);
        self.unrunnable.insert(task);
        self.unrunnable_since.insert(task, now);
        self.note_pending_work(now);
    }

    pub(super) fn waiting_queued(&mut self, task: TaskId, now: f64) {
        self.set_state(task, State::Queued);
        self.queue_sequence = self.queue_sequence.wrapping_add(1);
        let ts = &mut self.tasks[task];
        ts.queue_sequence = self.queue_sequence;
        self.queued.insert((ts.rank(), ts.queue_sequence, task));
        self.note_pending_work(now);
    }

    pub(super) fn queued_processing(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        if let Some(worker) = self.decide_worker_rootish_queuing_enabled() {
            self.leave_queue(task);
            self.add_to_processing(task, worker, cx);
        }
    }

    pub(super) fn no_worker_processing(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        if let Some(worker) = self.decide_worker_non_rootish(task) {
            self.leave_unrunnable(task);
            self.add_to_processing(task, worker, cx);
        }
    }

    pub(super) fn leave_queue(&mut self, task: TaskId) {
        let ts = &self.tasks[task];
        self.queued.remove(&(ts.rank(), ts.queue_sequence, task));
    }

    pub(super) fn leave_unrunnable(&mut self, task: TaskId) {
        self.unrunnable.remove(task);
        self.unrunnable_since.remove(&task);
    }
}
