//! Into `erred` and back.

use std::mem::take;

use crate::id::TaskId;
use crate::instruction::ToClient;
use crate::scheduler::{Cx, Scheduler};
use crate::task::{ErredTask, State};
use crate::transitions::Detail;

impl Scheduler {
    /// `queued`, `no-worker` or `processing` to `erred`.
    pub(super) fn active_erred(&mut self, task: TaskId, detail: Detail, cx: &mut Cx<'_>) {
        match self.tasks[task].state {
            State::Queued => self.leave_queue(task),
            State::NoWorker => self.leave_unrunnable(task),
            State::Processing => {
                let was_sent = !take(&mut self.tasks[task].awaits_bundle);
                self.stop_acting(task);
                let worker = self.exit_processing(task);
                // An input has failed meanwhile: its worker computes it for nobody.
                if let (Detail::None, Some(worker), true) = (&detail, worker, was_sent) {
                    cx.free_key(worker, &self.tasks[task].key);
                }
            }
            State::Released | State::Waiting | State::Memory | State::Erred | State::Forgotten => {
                unreachable!("only active tasks err here")
            }
        }
        self.propagate_erred(task, detail, cx);
    }

    pub(super) fn propagate_erred(&mut self, task: TaskId, detail: Detail, cx: &mut Cx<'_>) {
        self.set_state(task, State::Erred);
        if let Detail::Failed { failure, worker } = detail {
            self.tasks[task].failure = Some(failure);
            if let Some(worker) = worker {
                self.tasks[task].extras_mut().erred_on.push(worker);
            }
        }
        debug_assert!(
            self.tasks[task].failure.is_some(),
            "an erred task has somebody to blame"
        );
        self.remember_erred(task, cx.now);

        let failure = self.tasks[task].failure.clone();
        let waiters = take(&mut self.tasks[task].waiters);
        for waiter in &waiters {
            self.tasks[waiter].failure.clone_from(&failure);
            self.recommend(waiter, State::Erred);
        }
        self.leave_waiters_of_dependencies(task);
        self.tell_erred(task, cx);
        self.release_fire_and_forget(task);
    }

    fn remember_erred(&mut self, task: TaskId, now: f64) {
        let length_max = self.config.erred_tasks_max_history;
        let ts = &self.tasks[task];
        let own = ts
            .failure
            .as_ref()
            .filter(|failure| failure.cause == ts.key);
        let erred_on = ts
            .extras
            .as_ref()
            .map_or(&[][..], |extras| &extras.erred_on);
        self.erred_tasks.push_front(ErredTask {
            key: ts.key.clone(),
            timestamp: now,
            erred_on: erred_on
                .iter()
                .filter_map(|&worker| self.workers.get(worker))
                .map(|worker| worker.address.clone())
                .collect(),
            exception_text: own
                .map(|own| own.exception_text.clone())
                .unwrap_or_default(),
            traceback_text: own
                .map(|own| own.traceback_text.clone())
                .unwrap_or_default(),
        });
        self.erred_tasks.truncate(length_max);
    }

    /// A retry, or nobody wants it any more.
    pub(super) fn erred_released(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        self.tasks[task].failure = None;
        let dependents = take(&mut self.tasks[task].dependents);
        for dependent in &dependents {
            if self.tasks[dependent].state == State::Erred {
                self.recommend(dependent, State::Waiting);
            }
        }
        self.tasks[task].dependents = dependents;

        let erred_on = match &mut self.tasks[task].extras {
            Some(extras) => take(&mut extras.erred_on),
            None => Vec::new(),
        };
        for worker in erred_on {
            if self.workers.get(worker).is_some() {
                cx.free_key(worker, &self.tasks[task].key);
            }
        }
        let ts = &self.tasks[task];
        self.tell_who_wants(task, cx.out, || ToClient::TaskRetried {
            key: ts.key.clone(),
        });
        self.set_state(task, State::Released);
    }
}
