//! The transition engine.
//!
//! A transition changes one task and recommends transitions of others. The
//! recommendations form an insertion-ordered map that is emptied from its end,
//! `dict.popitem` in stock: a new entry is processed first, an overwritten one
//! keeps its place. Everything observable about the order of tasks rests on that.

mod cancelled;
mod error;
mod executing;
mod fetch;
mod flight;
mod memory;
mod missing;
mod ready;
mod released;
mod resumed;
mod waiting;

use std::sync::Arc;

use indexmap::IndexMap;

use crate::error::Error;
use crate::event::Insertion;
use crate::id::{PeerId, TaskId};
use crate::instruction::Instruction;
use crate::story::Happening;
use crate::task::{State, TaskFailure};
use crate::worker::{Cx, WorkerState};

/// Where a task should go, and what that takes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Recommendation {
    Released,
    Forgotten,
    Waiting,
    Ready,
    Constrained,
    Executing,
    Fetch,
    Missing,
    Rescheduled,
    /// From this peer.
    Flight(PeerId),
    /// After running for so many seconds.
    LongRunning {
        compute_duration: f64,
    },
    Memory(Box<(Insertion, i64)>),
    Error {
        failure: Arc<TaskFailure>,
        run_id: i64,
    },
}

impl Recommendation {
    /// To memory, with a value of this run.
    pub(crate) fn memory(value: Insertion, run_id: i64) -> Self {
        Self::Memory(Box::new((value, run_id)))
    }

    fn finish(&self) -> State {
        match self {
            Self::Released => State::Released,
            Self::Forgotten => State::Forgotten,
            Self::Waiting => State::Waiting,
            Self::Ready => State::Ready,
            Self::Constrained => State::Constrained,
            Self::Executing => State::Executing,
            Self::Fetch => State::Fetch,
            Self::Missing => State::Missing,
            Self::Rescheduled => State::Rescheduled,
            Self::Flight(_) => State::Flight,
            Self::LongRunning { .. } => State::LongRunning,
            Self::Memory(_) => State::Memory,
            Self::Error { .. } => State::Error,
        }
    }
}

/// What one transition recommends, each task once.
pub(crate) type Recs = Vec<(TaskId, Recommendation)>;

/// Pending recommendations.
pub(crate) type Recommendations = IndexMap<TaskId, Recommendation, foldhash::fast::FixedState>;

/// How a pair of states is crossed.
enum Route {
    Direct,
    /// Through `released`.
    Detour,
    Impossible,
}

fn route(start: State, finish: State) -> Route {
    use State::{
        Cancelled, Constrained, Error, Executing, Fetch, Flight, Forgotten, LongRunning, Memory,
        Missing, Ready, Released, Rescheduled, Resumed, Waiting,
    };
    match (start, finish) {
        (Released, Error | Fetch | Forgotten | Memory | Missing | Waiting)
        | (Waiting, Constrained | Ready | Released)
        | (Ready | Constrained, Executing | Released)
        | (Executing, Error | LongRunning | Memory | Released | Rescheduled)
        | (LongRunning, Error | Memory | Released | Rescheduled)
        | (Fetch, Flight | Missing | Released)
        | (Flight, Error | Fetch | Memory | Missing | Released)
        | (Missing, Error | Fetch | Released | Waiting)
        | (Memory | Error, Released)
        | (
            Cancelled,
            Error | Fetch | LongRunning | Memory | Missing | Released | Rescheduled | Waiting,
        )
        | (Resumed, Error | Fetch | LongRunning | Memory | Released | Rescheduled) => Route::Direct,
        (Released, _) | (_, Released) => Route::Impossible,
        (
            Waiting | Fetch | Missing | Flight | Ready | Constrained | Executing | LongRunning
            | Memory | Error | Cancelled | Resumed | Rescheduled | Forgotten,
            _,
        ) => Route::Detour,
    }
}

impl WorkerState {
    /// Adds or overwrites the recommendation for a task.
    pub(crate) fn recommend(&mut self, task: TaskId, recommendation: Recommendation) {
        self.recommendations.insert(task, recommendation);
    }

    /// Carries out every recommendation, the last one first, with what follows from each.
    pub(crate) fn transitions(&mut self, cx: &mut Cx<'_>) -> Result<(), Error> {
        while let Some((task, recommendation)) = self.recommendations.pop() {
            let recs = self.transition(task, recommendation, cx)?;
            for (task, recommendation) in recs {
                self.recommend(task, recommendation);
            }
        }
        Ok(())
    }

    /// Takes one task from its state to another, and gives what that recommends.
    fn transition(
        &mut self,
        task: TaskId,
        recommendation: Recommendation,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        let start = self.tasks[task].state;
        let finish = recommendation.finish();
        if start == finish {
            return Ok(Recs::new());
        }
        self.transition_counter += 1;
        if let Some(count) = self.config.transition_counter_max
            && self.transition_counter >= count
        {
            return Err(Error::TransitionCounterMaxExceeded {
                count,
                key: self.tasks[task].key.clone(),
                start,
                finish,
            });
        }
        let recs = match route(start, finish) {
            Route::Direct => {
                let recs = self.step(task, recommendation, cx)?;
                if self.config.notifies_transitions {
                    cx.out.push(Instruction::Transition {
                        key: self.tasks[task].key.clone(),
                        start,
                        finish,
                    });
                }
                recs
            }
            Route::Detour => self.detour(task, recommendation, cx)?,
            Route::Impossible => return Err(self.invalid_transition(task, start, finish)),
        };
        let ts = &self.tasks[task];
        let recommended = recs
            .iter()
            .map(|(task, recommendation)| (self.tasks[*task].key.clone(), recommendation.finish()))
            .collect();
        let what = Happening::Transition {
            key: ts.key.clone(),
            start,
            finish,
            reached: ts.state,
            recommendations: recommended,
        };
        self.story.push(what, cx.stimulus_id, cx.now);
        Ok(recs)
    }

    /// Through `released`, but never to `forgotten`.
    ///
    /// Where both legs recommend something for the same task, the second knows
    /// better. (Stock raises `RecommendationsConflict`, which closes the worker:
    /// a task that is to be fetched, and then to be computed from inputs that are
    /// not here, has them released by the first leg and fetched by the second.)
    fn detour(
        &mut self,
        task: TaskId,
        recommendation: Recommendation,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        let start = self.tasks[task].state;
        let finish = recommendation.finish();
        self.detour_steps(task, recommendation, cx)
            .map_err(|error| match error {
                Error::InvalidTransition { .. } | Error::TransitionCounterMaxExceeded { .. } => {
                    self.invalid_transition(task, start, finish)
                }
                Error::UnexpectedState { .. }
                | Error::ReplicaInUse { .. }
                | Error::UnknownTask { .. }
                | Error::NotInFlight { .. }
                | Error::UnknownResource { .. }
                | Error::InvalidPriority { .. } => error,
            })
    }

    fn detour_steps(
        &mut self,
        task: TaskId,
        recommendation: Recommendation,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        let mut recs: Recommendations = self
            .transition(task, Recommendation::Released, cx)?
            .into_iter()
            .collect();
        while let Some(next) = recs.shift_remove(&task) {
            if next != Recommendation::Forgotten {
                recs.extend(self.transition(task, next, cx)?);
            }
        }
        recs.extend(self.transition(task, recommendation, cx)?);
        Ok(recs.into_iter().collect())
    }

    fn step(
        &mut self,
        task: TaskId,
        recommendation: Recommendation,
        cx: &mut Cx<'_>,
    ) -> Result<Recs, Error> {
        use Recommendation as To;
        use State::{
            Cancelled, Constrained, Executing, Fetch, Flight, LongRunning, Memory, Missing, Ready,
            Released, Resumed, Waiting,
        };
        let start = self.tasks[task].state;
        match (start, recommendation) {
            (Released, To::Fetch) => Ok(self.enter_fetch(task, cx)),
            (Released, To::Forgotten) => Ok(self.released_forgotten(task, cx)),
            (Released, To::Memory(memory)) => self.released_memory(task, memory.0, cx),
            (Released | Fetch | Flight, To::Missing) => self.enter_missing(task, start, cx),
            (Released, To::Waiting) => Ok(self.released_waiting(task, cx)),
            (Waiting, To::Constrained) => self.waiting_constrained(task, cx),
            (Waiting, To::Ready) => self.waiting_ready(task, cx),
            (Waiting | Ready | Constrained | State::Error, To::Released) => {
                Ok(self.enter_released(task, cx))
            }
            (Ready | Constrained, To::Executing) => Ok(self.ready_executing(task, cx)),
            (Executing, To::LongRunning { compute_duration }) => {
                self.executing_long_running(task, compute_duration, cx)
            }
            (Executing | LongRunning, To::Memory(memory)) => {
                self.executing_memory(task, *memory, cx)
            }
            (Executing | LongRunning, To::Released) => Ok(self.executing_released(task, cx)),
            (Executing | LongRunning, To::Rescheduled) => self.executing_rescheduled(task, cx),
            (Fetch, To::Flight(peer)) => Ok(self.fetch_flight(task, peer, cx)),
            (Fetch, To::Released) => Ok(self.fetch_released(task, cx)),
            (Flight, To::Fetch) => Ok(self.flight_fetch(task, cx)),
            (Flight, To::Memory(memory)) => self.flight_memory(task, memory.0, cx),
            (Flight, To::Released) => self.flight_released(task, cx),
            (Missing, To::Fetch) => Ok(self.missing_fetch(task, cx)),
            (Missing, To::Released) => Ok(self.missing_released(task, cx)),
            (Missing, To::Waiting) => Ok(self.missing_waiting(task, cx)),
            (Memory, To::Released) => self.memory_released(task, cx),
            (
                Released | Executing | LongRunning | Flight | Missing,
                To::Error { failure, run_id },
            ) => Ok(self.enter_error(task, failure, run_id, cx)),
            (
                Cancelled,
                To::Error { .. } | To::Memory(_) | To::Missing | To::Released | To::Rescheduled,
            ) => Ok(self.cancelled_released(task, cx)),
            (Cancelled, To::Fetch) => self.cancelled_fetch(task, cx),
            (Cancelled, To::Waiting) => self.cancelled_waiting(task, cx),
            (Cancelled | Resumed, To::LongRunning { .. }) => {
                self.cancelled_or_resumed_long_running(task)
            }
            (Resumed, To::Error { .. } | To::Rescheduled) => self.resumed_done(task, cx),
            (Resumed, To::Fetch) => Ok(self.resumed_fetch(task, cx)),
            (Resumed, To::Memory(memory)) => self.resumed_memory(task, *memory, cx),
            (Resumed, To::Released) => self.resumed_released(task, cx),
            (start, recommendation) => {
                unreachable!(
                    "{start} -> {} has no direct transition",
                    recommendation.finish()
                )
            }
        }
    }

    fn invalid_transition(&self, task: TaskId, start: State, finish: State) -> Error {
        let key = self.tasks[task].key.clone();
        Error::InvalidTransition {
            story: self.story.of(std::slice::from_ref(&key), &[]),
            key,
            start,
            finish,
        }
    }
}
