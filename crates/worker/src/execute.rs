//! A task ran, in one way or another.

use oxidask_wire::Key;

use crate::error::Error;
use crate::id::TaskId;
use crate::task::StartStop;
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
        self.recommend_computing()?;
        Ok(task)
    }

    /// `secede()`: the task runs on without counting.
    pub(crate) fn secede(&mut self, key: &Key, compute_duration: f64) {
        if let Some(task) = self.tasks.find(key) {
            self.recommend(task, Recommendation::LongRunning { compute_duration });
        }
    }
}
