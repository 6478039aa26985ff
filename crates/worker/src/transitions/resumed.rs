//! From `resumed`: it runs and is wanted by a dependent, or it is on its way and
//! is to be computed.

use crate::error::Error;
use crate::event::Insertion;
use crate::id::TaskId;
use crate::task::{Previous, State};
use crate::transitions::memory::Report;
use crate::transitions::{Recommendation, Recs};
use crate::worker::{Cx, WorkerState};

impl WorkerState {
    /// A value is here, though not in the way that the scheduler has in mind:
    /// it is told what it expects.
    pub(super) fn resumed_memory(
        &mut self,
        task: TaskId,
        (value, run_id): (Insertion, i64),
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        // Stock forgets here what the task was doing, and then fails on that.
        if value.is_err() {
            return self.resumed_done(task, cx);
        }
        let report = match self.tasks[task].previous.take() {
            Some(Previous::Executing | Previous::LongRunning) => Report::AddKeys,
            Some(Previous::Flight) => Report::TaskFinished,
            None => return Err(self.unexpected(task, "a resumed task does something")),
        };
        self.enter_memory(task, value, report, run_id, cx)
    }

    /// What it did failed, or it asked to be run elsewhere; nobody wanted that
    /// any more, so only the next thing counts.
    pub(super) fn resumed_done(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Result<Recs, Error> {
        self.ensure(
            self.tasks[task].done,
            task,
            "only what has ended can have failed",
        )?;
        let next = match self.tasks[task].previous {
            Some(Previous::Executing | Previous::LongRunning) => Recommendation::Fetch,
            Some(Previous::Flight) => Recommendation::Waiting,
            None => return Err(self.unexpected(task, "a resumed task does something")),
        };
        self.leave_resumed(task, State::Released, cx);
        self.tasks[task].done = false;
        Ok(vec![(task, next)])
    }

    /// A dependent wants it.
    pub(super) fn resumed_fetch(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        let ts = &mut self.tasks[task];
        if ts.previous != Some(Previous::Flight) {
            return Recs::new();
        }
        if ts.done {
            // It did not arrive; it is to be computed here anyway.
            ts.done = false;
            self.leave_resumed(task, State::Released, cx);
            return vec![(task, Recommendation::Waiting)];
        }
        // As if it had never been cancelled.
        self.leave_resumed(task, State::Flight, cx);
        Recs::new()
    }

    pub(super) fn resumed_released(
        &mut self,
        task: TaskId,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        self.ensure(
            !self.tasks[task].done,
            task,
            "what has ended is not cancelled",
        )?;
        self.set_state(task, State::Cancelled, cx);
        Ok(Recs::new())
    }

    fn leave_resumed(&mut self, task: TaskId, state: State, cx: &Cx<'_>) {
        self.tasks[task].previous = None;
        self.set_state(task, state, cx);
    }
}
