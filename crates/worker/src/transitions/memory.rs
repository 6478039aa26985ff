//! From `memory`, and to it.

use std::mem::take;

use crate::error::Error;
use crate::event::Insertion;
use crate::id::TaskId;
use crate::instruction::{
    AddKeysMsg, Instruction, ReleaseWorkerDataMsg, SendMessageToScheduler, TaskFinishedMsg,
};
use crate::task::State;
use crate::transitions::{Recommendation, Recs};
use crate::worker::{Cx, RUN_ID_SENTINEL, WorkerState};

/// What the scheduler expects to hear about a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// It does not know the key yet.
    Nothing,
    /// There is one more replica.
    AddKeys,
    /// The task is done.
    TaskFinished,
}

impl WorkerState {
    /// The value leaves.
    pub(super) fn memory_released(&mut self, task: TaskId, cx: &mut Cx<'_>) -> Result<Recs, Error> {
        let Some(nbytes) = self.tasks[task].nbytes else {
            return Err(self.unexpected(task, "the size of a value in memory is known"));
        };
        self.nbytes -= nbytes;
        let recs = self.enter_released(task, cx);
        cx.send(SendMessageToScheduler::ReleaseWorkerData(
            ReleaseWorkerDataMsg {
                key: self.tasks[task].key.clone(),
                stimulus_id: cx.stimulus_id.clone(),
            },
        ));
        Ok(recs)
    }

    /// A value is here: computed, fetched or scattered. `_transition_to_memory` of distributed.
    pub(super) fn enter_memory(
        &mut self,
        task: TaskId,
        value: Insertion,
        report: Report,
        run_id: i64,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        let value = match value {
            Ok(value) => value,
            // An actor is an object of the shell's that is never spilled.
            Err(failure) => return Ok(vec![(task, Recommendation::Error { failure, run_id })]),
        };
        self.set_state(task, State::Memory, cx);
        let ts = &mut self.tasks[task];
        if let Some(disk_write) = value.disk_write {
            ts.push_startstop(disk_write);
        }
        ts.has_data = true;
        self.nbytes += *ts.nbytes.get_or_insert(value.nbytes);
        ts.r#type = Some(value.r#type);
        cx.out.push(Instruction::StoreData {
            key: ts.key.clone(),
        });

        let mut recs = Recs::new();
        let dependents = take(&mut ts.dependents);
        for dependent in &dependents {
            let dts = &mut self.tasks[dependent];
            dts.waiting_for_data.remove(task);
            if dts.waiting_for_data.is_empty() && dts.state == State::Waiting {
                recs.push((dependent, Recommendation::Ready));
            }
        }
        self.tasks[task].dependents = dependents;
        self.log_task(task, "put-in-memory", false, cx);
        match report {
            Report::Nothing => {}
            Report::AddKeys => cx.send(SendMessageToScheduler::AddKeys(AddKeysMsg {
                keys: vec![self.tasks[task].key.clone()],
                stimulus_id: cx.stimulus_id.clone(),
            })),
            Report::TaskFinished => {
                self.ensure(
                    run_id != RUN_ID_SENTINEL,
                    task,
                    "a task that is being computed is not scattered",
                )?;
                self.send_task_finished(task, run_id, cx)?;
            }
        }
        Ok(recs)
    }

    /// `task-finished`, of a task in memory.
    pub(crate) fn send_task_finished(
        &mut self,
        task: TaskId,
        run_id: i64,
        cx: &mut Cx<'_>,
    ) -> Result<(), Error> {
        let ts = &self.tasks[task];
        let (Some(nbytes), Some(r#type)) = (ts.nbytes, &ts.r#type) else {
            return Err(self.unexpected(task, "size and type of a value in memory are known"));
        };
        cx.send(SendMessageToScheduler::TaskFinished(Box::new(
            TaskFinishedMsg {
                key: ts.key.clone(),
                run_id,
                nbytes,
                r#type: r#type.clone(),
                metadata: ts.metadata.clone(),
                thread: ts.thread,
                startstops: ts.startstops.clone(),
                stimulus_id: cx.stimulus_id.clone(),
            },
        )));
        Ok(())
    }
}
