//! From `released`, and to it.

use std::mem::take;

use crate::error::Error;
use crate::event::Insertion;
use crate::id::TaskId;
use crate::instruction::Instruction;
use crate::task::State;
use crate::transitions::memory::Report;
use crate::transitions::{Recommendation, Recs};
use crate::worker::{Cx, RUN_ID_SENTINEL, WorkerState};

impl WorkerState {
    /// To be computed: fetches whatever is not in memory.
    pub(super) fn released_waiting(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        let mut recs = Recs::new();
        let dependencies = take(&mut self.tasks[task].dependencies);
        let mut waiting_for_data = crate::sets::IdSet::default();
        for dependency in &dependencies {
            let dts = &mut self.tasks[dependency];
            if dts.state != State::Memory {
                dts.waiters.insert(task);
                waiting_for_data.insert(dependency);
                recs.push((dependency, Recommendation::Fetch));
            }
        }
        if waiting_for_data.is_empty() {
            recs.push((task, Recommendation::Ready));
        }
        let ts = &mut self.tasks[task];
        ts.dependencies = dependencies;
        ts.waiting_for_data = waiting_for_data;
        self.set_state(task, State::Waiting, cx);
        self.waiting.insert(task);
        recs
    }

    /// Scattered. The scheduler hears of it from the client.
    pub(super) fn released_memory(
        &mut self,
        task: TaskId,
        value: Insertion,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        self.enter_memory(task, value, Report::Nothing, RUN_ID_SENTINEL, cx)
    }

    /// Nothing depends on it: it goes, and with it what only it needed.
    pub(super) fn released_forgotten(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        let mut recs = Recs::new();
        let dependencies = take(&mut self.tasks[task].dependencies);
        for dependency in &dependencies {
            let dts = &mut self.tasks[dependency];
            dts.dependents.remove(task);
            if dts.state == State::Released && dts.dependents.is_empty() {
                recs.push((dependency, Recommendation::Forgotten));
            }
        }
        self.tasks[task].dependencies = dependencies;
        self.purge(task, cx);
        self.set_state(task, State::Forgotten, cx);
        self.tasks.remove(task);
        // The slot may be reused late, and holds on to what may be large.
        let ts = &mut self.tasks[task];
        ts.run_spec = None;
        ts.dependencies.clear();
        ts.startstops = Vec::new();
        recs
    }

    /// `_transition_generic_released` of distributed: dependencies that nobody
    /// else waits for are given up as well, unless they are here or being computed.
    pub(super) fn enter_released(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        self.purge(task, cx);
        let mut recs = Recs::new();
        for dependency in &self.tasks[task].dependencies {
            let dts = &self.tasks[dependency];
            let is_kept = dts.state.is_processing() || dts.state == State::Memory;
            if dts.waiters.is_empty() && !is_kept {
                recs.push((dependency, Recommendation::Released));
            }
        }
        self.set_state(task, State::Released, cx);
        if self.tasks[task].dependents.is_empty() {
            recs.push((task, Recommendation::Forgotten));
        }
        recs
    }

    /// Clears everything that belongs to the state of a task; its definition stays.
    pub(super) fn purge(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        let ts = &mut self.tasks[task];
        if take(&mut ts.has_data) {
            cx.out.push(Instruction::ReleaseData {
                key: ts.key.clone(),
            });
        }
        ts.is_actor = false;
        ts.thread = None;
        ts.waiting_for_data.clear();
        ts.nbytes = None;
        ts.previous = None;
        ts.done = false;
        ts.coming_from = None;
        ts.failure = None;
        for peer in &take(&mut ts.who_has) {
            self.peers[peer].has_what.remove(task);
            self.peers.needed_from(peer).discard(task);
        }
        let dependencies = take(&mut self.tasks[task].dependencies);
        for dependency in &dependencies {
            self.tasks[dependency].waiters.remove(task);
        }
        self.tasks[task].dependencies = dependencies;
        self.missing_dep_flight.remove(task);
        self.ready.discard(task);
        self.constrained.discard(task);
        self.executing.remove(task);
        self.long_running.remove(task);
        self.in_flight_tasks.remove(task);
        self.waiting.remove(task);
    }
}
