//! From `ready` and `constrained`.

use crate::id::TaskId;
use crate::instruction::{Execute, Instruction};
use crate::task::State;
use crate::transitions::Recs;
use crate::worker::{Cx, WorkerState};

impl WorkerState {
    /// It has its thread and resources already.
    pub(super) fn ready_executing(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Recs {
        self.set_state(task, State::Executing, cx);
        cx.out.push(Instruction::Execute(Execute {
            key: self.tasks[task].key.clone(),
            stimulus_id: cx.stimulus_id.clone(),
        }));
        Recs::new()
    }
}
