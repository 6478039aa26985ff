//! From `cancelled`: not wanted any more, but it still runs or is on its way.

use crate::error::Error;
use crate::id::TaskId;
use crate::task::{Previous, State};
use crate::transitions::{Recommendation, Recs};
use crate::worker::{Cx, WorkerState};

impl WorkerState {
    /// What it did comes to nothing once it is done; until then it stays cancelled.
    pub(super) fn cancelled_released(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        let ts = &mut self.tasks[task];
        if !ts.done {
            return Recs::new();
        }
        ts.previous = None;
        ts.done = false;
        self.enter_released(task, cx)
    }

    /// A dependent wants it.
    pub(super) fn cancelled_fetch(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Result<Recs, Error> {
        let ts = &mut self.tasks[task];
        match ts.previous {
            // What came, if anything, is dropped.
            Some(Previous::Flight) if ts.done => {
                return Ok(vec![(task, Recommendation::Released)]);
            }
            // As if it had never been cancelled.
            Some(Previous::Flight) => {
                ts.previous = None;
                self.set_state(task, State::Flight, cx);
            }
            Some(Previous::Executing | Previous::LongRunning) => {
                let done = ts.done;
                self.ensure(!done, task, "a task that has run is not fetched")?;
                self.set_state(task, State::Resumed, cx);
            }
            None => return Err(self.unexpected(task, "a cancelled task does something")),
        }
        Ok(Recs::new())
    }

    /// The scheduler wants it computed.
    pub(super) fn cancelled_waiting(
        &mut self,
        task: TaskId,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        let ts = &mut self.tasks[task];
        let done = ts.done;
        let previous = ts.previous;
        self.ensure(!done, task, "what is done is not cancelled any more")?;
        match previous {
            // As if it had never been cancelled.
            Some(Previous::Executing) => {
                self.tasks[task].previous = None;
                self.set_state(task, State::Executing, cx);
            }
            // The scheduler may not have heard that it seceded.
            Some(Previous::LongRunning) => {
                self.tasks[task].previous = None;
                self.set_state(task, State::LongRunning, cx);
                self.send_long_running(task, None, cx);
            }
            Some(Previous::Flight) => self.set_state(task, State::Resumed, cx),
            None => return Err(self.unexpected(task, "a cancelled task does something")),
        }
        Ok(Recs::new())
    }

    /// It seceded. The scheduler does not count it as running here, so it hears of
    /// it only if the task is wanted again.
    pub(super) fn cancelled_or_resumed_long_running(
        &mut self,
        task: TaskId,
    ) -> Result<Recs, Error> {
        let was_running = self.tasks[task].was_running();
        self.ensure(was_running, task, "only a task that runs secedes")?;
        self.tasks[task].previous = Some(Previous::LongRunning);
        self.executing.remove(task);
        self.long_running.insert(task);
        self.ensure_computing()
    }
}
