//! To `error`.

use std::sync::Arc;

use crate::id::TaskId;
use crate::instruction::{SendMessageToScheduler, TaskErredMsg};
use crate::task::{State, TaskFailure};
use crate::transitions::Recs;
use crate::worker::{Cx, WorkerState};

impl WorkerState {
    /// `_transition_generic_error` of distributed.
    pub(super) fn enter_error(
        &mut self,
        task: TaskId,
        failure: Arc<TaskFailure>,
        run_id: i64,
        cx: &mut Cx<'_>,
    ) -> Recs {
        self.set_state(task, State::Error, cx);
        let ts = &mut self.tasks[task];
        ts.failure = Some(failure.clone());
        cx.send(SendMessageToScheduler::TaskErred(Box::new(TaskErredMsg {
            key: ts.key.clone(),
            run_id,
            failure,
            thread: ts.thread,
            startstops: ts.startstops.clone(),
            stimulus_id: cx.stimulus_id.clone(),
        })));
        Recs::new()
    }
}
