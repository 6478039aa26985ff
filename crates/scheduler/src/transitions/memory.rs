//! Transitions out of `memory`: released, lost, or an actor whose worker is gone.

use std::mem::take;
use std::sync::Arc;

use oxidask_wire::{Str, Value};

use crate::failure::runtime_error;
use crate::id::TaskId;
use crate::instruction::ToClient;
use crate::scheduler::{Cx, Scheduler};
use crate::task::{State, TaskFailure};
use crate::transitions::Detail;

impl Scheduler {
    pub(super) fn memory_released(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        let ts = &self.tasks[task];
        if ts.actor {
            for worker in &ts.who_has {
                self.workers[worker].actors.remove(task);
            }
            if !ts.who_wants.is_empty() {
                // An actor's state is lost with its worker: it is not computed again.
                self.tasks[task].failure = Some(self.actor_lost(task));
                self.recommend(task, State::Erred);
                return;
            }
        }
        self.free_on_holders(task, cx);
        self.remove_all_replicas(task);
        self.set_state(task, State::Released);

        let ts = &self.tasks[task];
        self.tell_who_wants(task, cx.out, || ToClient::LostData {
            key: ts.key.clone(),
        });
        if !ts.has_run_spec() || ts.has_lost_dependencies {
            self.recommend(task, State::Forgotten);
        } else if ts.is_needed() && !self.inherit_failure(task) {
            // With an erred dependency stock leaves it released, and its clients waiting.
            self.recommend(task, State::Waiting);
        }

        let waiters = take(&mut self.tasks[task].waiters);
        for waiter in &waiters {
            match self.tasks[waiter].state {
                State::NoWorker | State::Processing | State::Queued => {
                    self.recommend(waiter, State::Waiting)
                }
                State::Waiting => {
                    self.tasks[waiter].waiting_on.insert(task);
                }
                State::Released | State::Memory | State::Erred | State::Forgotten => {}
            }
        }
        self.tasks[task].waiters = waiters;
    }

    /// An actor is lost with its worker, or another result with something it depends on
    /// that has failed at the same time.
    pub(super) fn memory_erred(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        // Stock prepares `free-keys` and failures of all dependents here and then
        // drops them: only the waiters fail, and holders keep what they have.
        self.free_on_holders(task, cx);
        let holders = self.tasks[task].who_has.clone();
        for worker in &holders {
            self.workers[worker].actors.remove(task);
        }
        self.remove_all_replicas(task);
        let ts = &self.tasks[task];
        let failed = ts
            .dependencies
            .iter()
            .map(|dependency| &self.tasks[dependency]);
        let mut failed = failed.filter(|dts| !ts.actor && dts.state == State::Erred);
        let failure = failed.find_map(|dts| dts.failure.clone());
        let failure = failure.unwrap_or_else(|| self.actor_lost(task));
        self.propagate_erred(
            task,
            Detail::Failed {
                failure,
                worker: None,
            },
            cx,
        );
    }

    fn actor_lost(&self, task: TaskId) -> Arc<TaskFailure> {
        let (exception, _) = runtime_error("Worker holding Actor was lost");
        Arc::new(TaskFailure {
            cause: self.tasks[task].key.clone(),
            exception,
            traceback: Value::Nil,
            exception_text: Str::default(),
            traceback_text: Str::default(),
        })
    }
}
