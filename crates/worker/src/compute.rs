//! The scheduler wants a task computed, or no longer.

use oxidask_wire::Key;

use crate::error::Error;
use crate::event::ComputeTaskEvent;
use crate::instruction::{SendMessageToScheduler, StealResponseMsg};
use crate::story::Happening;
use crate::task::State;
use crate::transitions::Recommendation;
use crate::worker::{Cx, WorkerState};

impl WorkerState {
    /// `compute-task`. A task that is about to run or running takes the new
    /// run, one in memory is reported, all others begin anew.
    pub(crate) fn compute_task(
        &mut self,
        event: ComputeTaskEvent,
        cx: &mut Cx<'_>,
    ) -> Result<(), Error> {
        let task = self.task_or_new(&event.key, cx.now);
        self.log_task(task, "compute-task", true, cx);
        let ts = &mut self.tasks[task];
        ts.run_id = event.run_id;
        match ts.state {
            State::Ready
            | State::Constrained
            | State::Executing
            | State::LongRunning
            | State::Waiting => return Ok(()),
            State::Memory => return self.send_task_finished(task, event.run_id, cx),
            State::Released
            | State::Fetch
            | State::Flight
            | State::Missing
            | State::Cancelled
            | State::Resumed
            | State::Error => {}
            State::Rescheduled | State::Forgotten => {
                return Err(self.unexpected(task, "only a task that exists can be computed"));
            }
        }

        let priority = event.priority.with_generation(self.generation);
        self.generation -= 1;
        ts.run_spec = event.run_spec;
        if event.actor {
            ts.is_actor = true;
        }
        ts.failure = None;
        ts.priority = Some(priority);
        ts.annotations = event.annotations;
        ts.span_id = event.span_id;
        // A run that goes on holds its resources until it ends.
        if !ts.was_running() {
            ts.resource_restrictions = event.resource_restrictions;
        }
        for (key, nbytes) in &event.nbytes {
            let dependency = self.ensure_task_exists(key, priority, cx);
            let dts = &mut self.tasks[dependency];
            if dts.state != State::Memory {
                dts.nbytes = Some(*nbytes);
            }
            dts.dependents.insert(task);
            self.tasks[task].dependencies.insert(dependency);
        }
        self.update_who_has(&event.who_has);
        self.recommend(task, Recommendation::Waiting);
        Ok(())
    }

    /// `free-keys`. What runs or is on its way becomes `cancelled`.
    pub(crate) fn free_keys(&mut self, keys: Vec<Key>, cx: &mut Cx<'_>) {
        for key in &keys {
            if let Some(task) = self.tasks.find(key) {
                self.recommend(task, Recommendation::Released);
            }
        }
        let action = "free-keys";
        self.story
            .push(Happening::Tasks { action, keys }, cx.stimulus_id, cx.now);
    }

    /// `cancel-compute`.
    ///
    /// # Errors
    /// If something depends on the task: the scheduler must not have asked for that yet.
    pub(crate) fn cancel_compute(&mut self, key: &Key, cx: &mut Cx<'_>) -> Result<(), Error> {
        let Some(task) = self.tasks.find(key) else {
            return Ok(());
        };
        let state = self.tasks[task].state;
        if !state.is_ready() && state != State::Waiting {
            return Ok(());
        }
        self.log_task(task, "cancel-compute", false, cx);
        self.ensure(
            self.tasks[task].dependents.is_empty(),
            task,
            "a task with dependents cannot be cancelled",
        )?;
        self.recommend(task, Recommendation::Released);
        Ok(())
    }

    /// `steal-request`: gives a task back if it has not begun, and says in which state it was.
    pub(crate) fn steal_request(&mut self, key: Key, cx: &mut Cx<'_>) {
        let task = self.tasks.find(&key);
        let state = task.map(|task| self.tasks[task].state);
        cx.send(SendMessageToScheduler::StealResponse(StealResponseMsg {
            key,
            state,
            stimulus_id: cx.stimulus_id.clone(),
        }));
        if let (Some(task), Some(state)) = (task, state)
            && (state.is_ready() || state == State::Waiting)
        {
            self.recommend(task, Recommendation::Released);
        }
    }
}
