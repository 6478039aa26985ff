//! From `flight`.

use crate::error::Error;
use crate::event::Insertion;
use crate::id::TaskId;
use crate::task::{Previous, State};
use crate::transitions::Recs;
use crate::transitions::memory::Report;
use crate::worker::{Cx, RUN_ID_SENTINEL, WorkerState};

impl WorkerState {
    /// It arrived.
    pub(super) fn flight_memory(
        &mut self,
        task: TaskId,
        value: Insertion,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        self.enter_memory(task, value, Report::AddKeys, RUN_ID_SENTINEL, cx)
    }

    /// It did not arrive. While it is still on its way there is nothing to do.
    pub(super) fn flight_fetch(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        if !self.tasks[task].done {
            return Recs::new();
        }
        self.enter_fetch(task, cx)
    }

    /// A transfer is not interrupted: the task is cancelled until it ends.
    pub(super) fn flight_released(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Result<Recs, Error> {
        self.ensure(
            !self.tasks[task].done,
            task,
            "a transfer that has ended is not cancelled",
        )?;
        self.tasks[task].previous = Some(Previous::Flight);
        self.set_state(task, State::Cancelled, cx);
        Ok(Recs::new())
    }
}
