//! A task ran, in one way or another.

use oxidask_wire::Key;

use crate::error::Error;
use crate::id::TaskId;
use crate::task::{StartStop, State};
use crate::transitions::Recommendation;
use crate::worker::WorkerState;

impl WorkerState {
    /// Whatever came of it, its thread and resources are free for the next one.
    /// `_execute_done_common` in distributed.
    pub(crate) fn execute_done(
        &mut self,
        key: &Key,
        startstops: Vec<StartStop>,
        thread: Option<u64>,
    ) -> Result<TaskId, Error> {
        // A task that runs is never forgotten: it becomes `cancelled`.
        let Some(task) = self.tasks.find(key) else {
            return Err(Error::UnknownTask {
                key: key.clone(),
                expected: "a task that ran is known",
            });
        };
        let ts = &mut self.tasks[task];
        ts.done = true;
        if thread.is_some() {
            ts.thread = thread;
        }
        for startstop in startstops {
            ts.push_startstop(startstop);
        }
        self.executed_count += 1;
        self.release_resources(task)?;
        self.executing.remove(task);
        self.long_running.remove(task);
        if let Some(next) = self.begun.take() {
            self.ready.discard(next);
            self.executing.insert(next);
            self.recommend(next, Recommendation::Executing);
        }
        self.recommend_computing()?;
        Ok(task)
    }

    /// A thread went on with this task when it was done with another.
    ///
    /// # Errors
    /// If the task is not ready, or needs resources.
    pub(crate) fn begun(&mut self, key: &Key) -> Result<(), Error> {
        let Some(task) = self.tasks.find(key) else {
            return Err(Error::UnknownTask {
                key: key.clone(),
                expected: "a task that a thread goes on with is known",
            });
        };
        let is_ready = self.tasks[task].state == State::Ready;
        self.ensure(is_ready, task, "threads go on with ready tasks only")?;
        self.begun = Some(task);
        Ok(())
    }

    /// `secede()`: the task runs on without counting.
    pub(crate) fn secede(&mut self, key: &Key, compute_duration: f64) {
        if let Some(task) = self.tasks.find(key) {
            self.recommend(task, Recommendation::LongRunning { compute_duration });
        }
    }
}
