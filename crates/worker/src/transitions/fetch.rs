//! From `fetch`, and to it.

use crate::id::{PeerId, TaskId};
use crate::task::State;
use crate::transitions::{Recommendation, Recs};
use crate::worker::{Cx, WorkerState};

impl WorkerState {
    /// `_transition_generic_fetch` of distributed.
    pub(super) fn enter_fetch(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        if self.tasks[task].who_has.is_empty() {
            return vec![(task, Recommendation::Missing)];
        }
        self.set_state(task, State::Fetch, cx);
        self.tasks[task].done = false;
        self.fetch_count += 1;
        for peer in &self.tasks[task].who_has {
            self.peers.needed_from(peer).add(task, &self.tasks);
        }
        Recs::new()
    }

    /// It was asked for: `ensure_communicating` has taken it off every list.
    pub(super) fn fetch_flight(&mut self, task: TaskId, peer: PeerId, cx: &mut Cx<'_>) -> Recs {
        self.set_state(task, State::Flight, cx);
        let ts = &mut self.tasks[task];
        ts.done = false;
        ts.coming_from = Some(peer);
        self.in_flight_tasks.insert(task);
        self.fetch_count -= 1;
        Recs::new()
    }

    pub(super) fn fetch_released(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        self.fetch_count -= 1;
        self.enter_released(task, cx)
    }
}
