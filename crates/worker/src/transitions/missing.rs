//! From `missing`, and to it.

use crate::error::Error;
use crate::id::TaskId;
use crate::task::State;
use crate::transitions::Recs;
use crate::worker::{Cx, WorkerState};

impl WorkerState {
    /// Nobody has it: `_transition_generic_missing` of distributed.
    pub(super) fn enter_missing(
        &mut self,
        task: TaskId,
        start: State,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        if start == State::Fetch {
            self.fetch_count -= 1;
        }
        if start == State::Flight {
            self.ensure(
                self.tasks[task].done,
                task,
                "what is still on its way is not missing",
            )?;
        }
        self.set_state(task, State::Missing, cx);
        self.missing_dep_flight.insert(task);
        self.tasks[task].done = false;
        Ok(Recs::new())
    }

    /// Somebody has it after all.
    pub(super) fn missing_fetch(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        if self.tasks[task].who_has.is_empty() {
            return Recs::new();
        }
        self.missing_dep_flight.remove(task);
        self.enter_fetch(task, cx)
    }

    /// It is to be computed instead.
    pub(super) fn missing_waiting(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        self.purge(task, cx);
        self.released_waiting(task, cx)
    }

    pub(super) fn missing_released(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        self.enter_released(task, cx)
    }
}
