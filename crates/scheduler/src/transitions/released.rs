//! Transitions from `released`, and those of active tasks back to it.

use std::mem::take;

use crate::id::TaskId;
use crate::instruction::ToClient;
use crate::scheduler::{Cx, Scheduler};
use crate::task::State;

impl Scheduler {
    pub(super) fn released_waiting(&mut self, task: TaskId) {
        if self.tasks[task].has_lost_dependencies {
            self.recommend(task, State::Forgotten);
            return;
        }
        // Stock lets it wait for the erred dependency for ever (a retry of one of
        // several failed dependencies leads here).
        if self.inherit_failure(task) {
            return;
        }
        if self.begin_waiting(task, true) {
            self.recommend(task, State::Processing);
        }
    }

    /// A task whose dependency has failed is recommended to fail for the same reason.
    pub(crate) fn inherit_failure(&mut self, task: TaskId) -> bool {
        let ts = &self.tasks[task];
        if !ts.who_has.is_empty() {
            return false;
        }
        let failure = ts.dependencies.iter().find_map(|dependency| {
            let dts = &self.tasks[dependency];
            dts.failure.clone().filter(|_| dts.state == State::Erred)
        });
        let Some(failure) = failure else {
            return false;
        };
        self.tasks[task].failure = Some(failure);
        self.recommend(task, State::Erred);
        true
    }

    /// `released` to `waiting` without a recommendation for anything: a graph on
    /// its way in goes through its tasks by itself.
    pub(crate) fn wait_without_cascade(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        self.transition_counter += 1;
        self.begin_waiting(task, false);
        let mark = self.recommendations.step.len();
        self.after_transition(task, State::Released, mark, cx);
    }

    /// True if the task waits for nothing.
    fn begin_waiting(&mut self, task: TaskId, cascade: bool) -> bool {
        self.set_state(task, State::Waiting);
        // It may have been about to err when it was released instead.
        self.tasks[task].failure = None;

        let dependencies = take(&mut self.tasks[task].dependencies);
        let mut waiting_on = take(&mut self.tasks[task].waiting_on);
        for dependency in &dependencies {
            let dts = &mut self.tasks[dependency];
            if dts.who_has.is_empty() {
                waiting_on.insert(dependency);
            }
            if dts.state != State::Released {
                dts.waiters.insert(task);
            } else if cascade {
                self.recommend(dependency, State::Waiting);
            }
        }
        let dependents = take(&mut self.tasks[task].dependents);
        let waiters = dependents
            .iter()
            .filter(|&dependent| self.tasks[dependent].state == State::Waiting)
            .collect();
        let is_ready = waiting_on.is_empty();

        let ts = &mut self.tasks[task];
        ts.dependencies = dependencies;
        ts.dependents = dependents;
        ts.waiting_on = waiting_on;
        ts.waiters = waiters;
        is_ready
    }

    /// A dependency failed: fail for the same reason.
    pub(super) fn released_erred(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        self.blame_dependents(task);
        self.leave_dependencies_that_did_not_fail(task);
        self.tell_erred(task, cx);
        self.set_state(task, State::Erred);
    }

    /// A task that was released in order to wait again still holds its dependencies.
    /// Stock keeps their data until the erred task is forgotten.
    fn leave_dependencies_that_did_not_fail(&mut self, task: TaskId) {
        let dependencies = take(&mut self.tasks[task].dependencies);
        for dependency in &dependencies {
            let dts = &mut self.tasks[dependency];
            if dts.waiters.remove(task) && dts.state != State::Erred {
                self.release_if_unneeded(dependency);
            }
        }
        self.tasks[task].dependencies = dependencies;
    }

    /// Dependents without data err for the reason that `task` erred for.
    fn blame_dependents(&mut self, task: TaskId) {
        let failure = self.tasks[task].failure.clone();
        let dependents = take(&mut self.tasks[task].dependents);
        for dependent in &dependents {
            let dts = &mut self.tasks[dependent];
            if dts.who_has.is_empty() {
                dts.failure.clone_from(&failure);
                self.recommend(dependent, State::Erred);
            }
        }
        self.tasks[task].dependents = dependents;
    }

    /// Reports `task-erred` to everybody who wants the task.
    pub(super) fn tell_erred(&self, task: TaskId, cx: &mut Cx<'_>) {
        let ts = &self.tasks[task];
        self.tell_who_wants(task, cx.out, || erred_message(ts));
    }

    /// `queued`, `no-worker` or `processing` to `released`.
    pub(super) fn active_released(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        match self.tasks[task].state {
            State::Queued => self.leave_queue(task),
            State::NoWorker => self.leave_unrunnable(task),
            State::Processing => {
                let was_sent = !take(&mut self.tasks[task].awaits_bundle);
                self.stop_acting(task);
                if let Some(worker) = self.exit_processing(task)
                    && was_sent
                {
                    cx.free_key(worker, &self.tasks[task].key);
                }
            }
            State::Released | State::Waiting | State::Memory | State::Erred | State::Forgotten => {
                unreachable!("only active tasks are released here")
            }
        }
        self.propagate_released(task);
    }

    /// An actor leaves processing without having become one.
    pub(super) fn stop_acting(&mut self, task: TaskId) {
        if let Some(worker) = self.tasks[task].processing_on {
            self.workers[worker].actors.remove(task);
        }
    }

    fn propagate_released(&mut self, task: TaskId) {
        self.set_state(task, State::Released);
        let ts = &self.tasks[task];
        if ts.has_lost_dependencies {
            self.recommend(task, State::Forgotten);
        } else if ts.is_needed() {
            self.recommend(task, State::Waiting);
            return;
        }

        let dependencies = take(&mut self.tasks[task].dependencies);
        for dependency in &dependencies {
            let dts = &mut self.tasks[dependency];
            if dts.state != State::Released {
                dts.waiters.remove(task);
                self.release_if_unneeded(dependency);
            }
        }
        let ts = &mut self.tasks[task];
        ts.dependencies = dependencies;
        ts.waiters.clear();
    }
}

/// `task-erred` for a task that has a failure to blame.
pub(crate) fn erred_message(ts: &crate::TaskState) -> ToClient {
    let failure = ts.failure.as_ref();
    ToClient::TaskErred {
        key: ts.key.clone(),
        exception: failure
            .map(|failure| failure.exception.clone())
            .unwrap_or_default(),
        traceback: failure
            .map(|failure| failure.traceback.clone())
            .unwrap_or_default(),
    }
}
