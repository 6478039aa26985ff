//! From `waiting`.

use crate::error::Error;
use crate::id::TaskId;
use crate::task::State;
use crate::transitions::{Recommendation, Recs};
use crate::worker::{Cx, WorkerState};

impl WorkerState {
    /// All inputs are here.
    pub(super) fn waiting_ready(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Result<Recs, Error> {
        if !self.tasks[task].resource_restrictions.is_empty() {
            return Ok(vec![(task, Recommendation::Constrained)]);
        }
        self.set_state(task, State::Ready, cx);
        self.waiting.remove(task);
        self.ready.add(task, &self.tasks);
        self.ensure_computing()
    }

    /// All inputs are here; resources are looked for when it is its turn.
    pub(super) fn waiting_constrained(
        &mut self,
        task: TaskId,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        self.set_state(task, State::Constrained, cx);
        self.waiting.remove(task);
        self.constrained.add(task, &self.tasks);
        self.ensure_computing()
    }
}
