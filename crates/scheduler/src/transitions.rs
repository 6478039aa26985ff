//! The transition engine.
//!
//! A transition changes one task and recommends transitions of others. The
//! recommendations form an insertion-ordered map that is emptied from its end,
//! `dict.popitem` in stock: a new entry is processed first, an overwritten one
//! keeps its place. Everything observable about scheduling order rests on that.

mod erred;
mod forgotten;
mod memory;
mod processing;
pub(crate) mod released;
pub mod story;
mod waiting;

use std::sync::Arc;

use oxidask_wire::{Map, Value};

use crate::id::{StimulusId, TaskId, WorkerId};
use crate::instruction::{Instruction, Level, ToWorker};
use crate::reports::Finished;
use crate::scheduler::{Cx, Scheduler};
use crate::task::{NOT_RECOMMENDED, State, TaskFailure};

/// Pending transitions. Each task knows its own place (`TaskState::recommended`).
#[derive(Debug, Default)]
pub(crate) struct Recommendations {
    stack: Vec<(TaskId, State)>,
    /// What the transitions at work have recommended so far, for the story.
    pub(crate) step: Vec<(TaskId, State)>,
}

impl Recommendations {
    pub(crate) fn is_empty(&self) -> bool {
        self.stack.is_empty()
    }
}

/// What some transitions need besides the task.
pub(crate) enum Detail {
    /// Nothing.
    None,
    /// A worker computed it.
    Finished(Box<Finished>),
    /// It failed, perhaps on a worker.
    Failed {
        failure: Arc<TaskFailure>,
        worker: Option<WorkerId>,
    },
}

/// How a pair of states is crossed.
enum Route {
    Direct,
    /// Through `released`.
    Detour,
    Impossible,
}

fn route(start: State, finish: State) -> Route {
    use State::{Erred, Forgotten, Memory, NoWorker, Processing, Queued, Released, Waiting};
    match (start, finish) {
        (Released, Waiting | Erred | Forgotten)
        | (Waiting, Released | Processing | NoWorker | Queued | Memory)
        | (Queued, Released | Processing | Erred)
        | (Processing, Released | Memory | Erred)
        | (NoWorker, Released | Processing | Erred)
        | (Memory, Released | Erred | Forgotten)
        | (Erred, Released) => Route::Direct,
        (Released, Released | NoWorker | Queued | Processing | Memory) | (Forgotten, _) => {
            Route::Impossible
        }
        (Waiting | NoWorker | Queued | Processing | Memory | Erred, _) => Route::Detour,
    }
}

impl Scheduler {
    /// Adds or overwrites the recommendation for a task.
    pub(crate) fn recommend(&mut self, task: TaskId, state: State) {
        let recommendations = &mut self.recommendations;
        let place = &mut self.tasks[task].recommended;
        if *place == NOT_RECOMMENDED {
            *place = recommendations.stack.len() as u32;
            recommendations.stack.push((task, state));
        } else {
            recommendations.stack[*place as usize].1 = state;
        }
        recommendations.step.push((task, state));
    }

    /// The pending recommendation for a task.
    pub(crate) fn recommended(&self, task: TaskId) -> Option<State> {
        let place = self.tasks[task].recommended;
        (place != NOT_RECOMMENDED).then(|| self.recommendations.stack[place as usize].1)
    }

    /// Carries out every recommendation, the last one first, with what follows from each.
    pub(crate) fn transitions(&mut self, cx: &mut Cx<'_>) {
        while let Some((task, finish)) = self.next_recommendation() {
            self.transition(task, finish, Detail::None, cx);
        }
    }

    /// Takes the last recommendation off; none are left when it returns `None`.
    pub(crate) fn next_recommendation(&mut self) -> Option<(TaskId, State)> {
        self.recommendations.step.clear();
        let (task, finish) = self.recommendations.stack.pop()?;
        self.tasks[task].recommended = NOT_RECOMMENDED;
        Some((task, finish))
    }

    /// Takes one task from its state to `finish`. Its recommendations are left pending.
    pub(crate) fn transition(
        &mut self,
        task: TaskId,
        finish: State,
        detail: Detail,
        cx: &mut Cx<'_>,
    ) {
        let mut start = self.tasks[task].state;
        if start == finish || start == State::Forgotten {
            return;
        }
        self.transition_counter += 1;
        let mark = self.recommendations.step.len();
        match route(start, finish) {
            Route::Direct => {
                self.mirror_arguments(task, &detail, cx);
                self.step(task, start, finish, detail, cx);
            }
            Route::Detour => {
                debug_assert!(
                    matches!(detail, Detail::None),
                    "a detour through released loses its details"
                );
                self.transition(task, State::Released, Detail::None, cx);
                // What the first leg recommends for this very task decides the second.
                let next = self.recommended(task).unwrap_or(finish);
                // An actor that is wanted stays in memory until it is erred.
                start = self.tasks[task].state;
                match route(start, next) {
                    Route::Direct => self.step(task, start, next, Detail::None, cx),
                    Route::Detour | Route::Impossible => {
                        return self.impossible(task, start, next, cx);
                    }
                }
            }
            Route::Impossible => return self.impossible(task, start, finish, cx),
        }
        self.after_transition(task, start, mark, cx);
    }

    fn step(&mut self, task: TaskId, start: State, finish: State, detail: Detail, cx: &mut Cx<'_>) {
        use State::{Erred, Forgotten, Memory, NoWorker, Processing, Queued, Released, Waiting};
        match (start, finish) {
            (Released, Waiting) => self.released_waiting(task),
            (Released, Erred) => self.released_erred(task, cx),
            (Released | Memory, Forgotten) => self.forget(task, cx),
            (Waiting, Released) => self.waiting_released(task),
            (Waiting, Processing) => self.waiting_processing(task, cx),
            (Waiting, NoWorker) => self.waiting_no_worker(task, cx.now),
            (Waiting, Queued) => self.waiting_queued(task, cx.now),
            // The scheduler believes that the only copy of a dependency was lost, but
            // a worker had one and has finished; the task's data is about to be freed.
            (Waiting, Memory) => {}
            (Queued, Processing) => self.queued_processing(task, cx),
            (NoWorker, Processing) => self.no_worker_processing(task, cx),
            (Queued | NoWorker | Processing, Released) => self.active_released(task, cx),
            (Queued | NoWorker | Processing, Erred) => self.active_erred(task, detail, cx),
            (Processing, Memory) => self.processing_memory(task, detail, cx),
            (Memory, Released) => self.memory_released(task, cx),
            (Memory, Erred) => self.memory_erred(task, cx),
            (Erred, Released) => self.erred_released(task, cx),
            (
                Released | Waiting | NoWorker | Queued | Processing | Memory | Erred | Forgotten,
                Released | Waiting | NoWorker | Queued | Processing | Memory | Erred | Forgotten,
            ) => unreachable!("{start} -> {finish} has no direct transition"),
        }
    }

    pub(crate) fn after_transition(
        &mut self,
        task: TaskId,
        start: State,
        mark: usize,
        cx: &mut Cx<'_>,
    ) {
        let ts = &self.tasks[task];
        let finish = ts.state;
        let step = &self.recommendations.step[mark..];
        self.story
            .push(&self.tasks, task, start, step, cx.stimulus_id, cx.now);
        if let Some(shuffle_id) = ts.barrier()
            && matches!(finish, State::Released | State::Erred | State::Forgotten)
        {
            cx.out.push(Instruction::BarrierLeft {
                key: ts.key.clone(),
                shuffle_id: shuffle_id.clone(),
                finish,
                stimulus_id: cx.stimulus_id.clone(),
            });
        }
        // Something else may have been recommended for it after what needed it was
        // forgotten. (Stock keeps it for ever.)
        let is_left = matches!(finish, State::Released | State::Erred)
            && ts.recommended == NOT_RECOMMENDED
            && ts.dependents.is_empty()
            && !ts.is_wanted();
        let group = ts.group;
        if is_left {
            let recommendations = &mut self.recommendations;
            self.tasks[task].recommended = recommendations.stack.len() as u32;
            recommendations.stack.push((task, State::Forgotten));
        }
        self.mirror_transition(task, start, cx);
        if finish == State::Forgotten {
            self.release_forgotten(task);
            self.groups.remove_if_forgotten(group);
        }
    }

    /// Stock raises here, and the stream whose message led to it is closed. A
    /// task that cannot move must not take others down: it stays where it is.
    fn impossible(&mut self, task: TaskId, start: State, finish: State, cx: &mut Cx<'_>) {
        self.impossible_transitions += 1;
        let key = self.tasks[task].key.clone();
        cx.log(
            Level::Error,
            format!("Error transitioning {key:?} from '{start}' to '{finish}'"),
        );
        let mut message = Map::new();
        message.push("action", "scheduler-transition-failed");
        message.push("key", key);
        message.push("start", start.name());
        message.push("finish", finish.name());
        cx.event(["transitions".into()], Value::Map(message));
    }

    /// The stimulus of the `compute-task` messages of this moment.
    pub(crate) fn compute_stimulus(&mut self, now: f64) -> StimulusId {
        match &self.compute_stimulus {
            Some((then, stimulus_id)) if *then == now => stimulus_id.clone(),
            Some(_) | None => {
                let stimulus_id = StimulusId::from(format!("compute-task-{now}"));
                self.compute_stimulus = Some((now, stimulus_id.clone()));
                stimulus_id
            }
        }
    }

    /// `free-keys` to every holder of a task.
    pub(crate) fn free_on_holders(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        let ts = &self.tasks[task];
        for worker in &ts.who_has {
            cx.free_key(worker, &ts.key);
        }
    }

    /// Recommends `released` for a dependency that nobody needs any more.
    pub(crate) fn release_if_unneeded(&mut self, dependency: TaskId) {
        if !self.tasks[dependency].is_needed() {
            self.recommend(dependency, State::Released);
        }
    }

    /// Sends `compute-task`, or asks for the task's pickle first.
    pub(crate) fn send_task(&mut self, task: TaskId, worker: WorkerId, cx: &mut Cx<'_>) {
        self.last_run_id += 1;
        let run_id = self.last_run_id;
        let ts = &mut self.tasks[task];
        ts.run_id = run_id;
        if let crate::RunSpec::Bundle { bundle, index } = ts.run_spec
            && !self.bundles.request(bundle, index, task, cx.out)
        {
            ts.awaits_bundle = true;
            return;
        }
        let stimulus_id = self.compute_stimulus(cx.now);
        cx.tell_worker(
            worker,
            ToWorker::ComputeTask {
                task,
                run_id,
                stimulus_id,
            },
        );
    }
}
