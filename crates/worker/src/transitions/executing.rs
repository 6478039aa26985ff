//! From `executing` and `long-running`.

use crate::error::Error;
use crate::event::Insertion;
use crate::id::TaskId;
use crate::instruction::{LongRunningMsg, RescheduleMsg, SendMessageToScheduler};
use crate::task::{Previous, State};
use crate::transitions::Recs;
use crate::transitions::memory::Report;
use crate::worker::{Cx, WorkerState};

impl WorkerState {
    /// It ran to its end.
    pub(super) fn executing_memory(
        &mut self,
        task: TaskId,
        (value, run_id): (Insertion, i64),
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        self.enter_memory(task, value, Report::TaskFinished, run_id, cx)
    }

    /// A task cannot be stopped: it is cancelled until it ends by itself.
    pub(super) fn executing_released(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        let ts = &mut self.tasks[task];
        ts.previous = Some(if ts.state == State::LongRunning {
            Previous::LongRunning
        } else {
            Previous::Executing
        });
        self.set_state(task, State::Cancelled, cx);
        Recs::new()
    }

    /// It raised `Reschedule`.
    pub(super) fn executing_rescheduled(
        &mut self,
        task: TaskId,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        self.ensure(
            self.tasks[task].done,
            task,
            "only a task that has ended is rescheduled",
        )?;
        cx.send(SendMessageToScheduler::Reschedule(RescheduleMsg {
            key: self.tasks[task].key.clone(),
            stimulus_id: cx.stimulus_id.clone(),
        }));
        Ok(self.enter_released(task, cx))
    }

    /// Its thread no longer counts: the next task can run.
    pub(super) fn executing_long_running(
        &mut self,
        task: TaskId,
        compute_duration: f64,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        self.set_state(task, State::LongRunning, cx);
        self.executing.remove(task);
        self.long_running.insert(task);
        self.send_long_running(task, Some(compute_duration), cx);
        self.ensure_computing()
    }

    pub(super) fn send_long_running(
        &mut self,
        task: TaskId,
        compute_duration: Option<f64>,
        cx: &mut Cx<'_>,
    ) {
        let ts = &self.tasks[task];
        cx.send(SendMessageToScheduler::LongRunning(LongRunningMsg {
            key: ts.key.clone(),
            run_id: ts.run_id,
            compute_duration,
            stimulus_id: cx.stimulus_id.clone(),
        }));
    }
}
