//! What nobody needs any more goes by slices, if it is much.
//!
//! A client that leaves, or the head of a large graph that is released, takes
//! hundreds of thousands of tasks along. One event carries out as many transitions
//! as a slice of a graph has tasks. Tasks whose turn did not come linger: they are
//! kept as if somebody wanted them, until `Event::Continue` lets them go by the
//! rule that held in the first place. If somebody has come to need one, it stays.
//!
//! ```text
//!  release ─► drop interest ─► transitions ─► the rest lingers
//!                                                │    ▲
//!                              Event::Continue ──┴────┘ until nothing is left
//! ```
//!
//! That it takes time is all that may be noticed. Queued tasks that are about to
//! go get no slot, and a graph or data that comes under a key that is about to go
//! finds the key gone.

use std::collections::VecDeque;

use oxidask_wire::Key;

use crate::id::{ClientId, StimulusId, TaskId, TaskRef};
use crate::instruction::Instructions;
use crate::scheduler::{Cx, Scheduler};
use crate::sets::IdSet;
use crate::task::{State, TaskState};
use crate::transitions::Detail;

/// Dependents looked at in order to tell whether a task is about to go. Chosen:
/// the first one or two usually tell, and a slice may ask for each of its tasks.
const LOOKS_MAX: usize = 64;

/// Tasks that wait until it is their turn to go, one entry per release.
#[derive(Debug, Default)]
pub(crate) struct Lingering {
    batches: VecDeque<Batch>,
}

#[derive(Debug)]
struct Batch {
    stimulus_id: StimulusId,
    /// The last one goes first.
    tasks: Vec<TaskRef>,
}

impl Lingering {
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Every entry, for `validate`.
    pub(crate) fn iter(&self) -> impl Iterator<Item = TaskRef> {
        self.batches.iter().flat_map(|batch| &batch.tasks).copied()
    }

    fn push(&mut self, stimulus_id: &StimulusId, tasks: Vec<TaskRef>) {
        if !tasks.is_empty() {
            let stimulus_id = stimulus_id.clone();
            self.batches.push_back(Batch { stimulus_id, tasks });
        }
    }
}

impl Scheduler {
    /// Transitions by which one event lets tasks go.
    fn slice_len(&self) -> usize {
        self.config.graph_slice.max(1)
    }

    /// As [`Scheduler::transitions`] after something was let go: a slice of it now.
    pub(crate) fn transitions_by_slices(&mut self, cx: &mut Cx<'_>) {
        let mut left = self.slice_len();
        let mut tasks = Vec::new();
        self.transitions_within(&mut left, &mut tasks, cx);
        self.lingering.push(cx.stimulus_id, tasks);
    }

    /// A client no longer wants these tasks, with all that follows.
    pub(crate) fn drop_interests(&mut self, client: ClientId, tasks: &[TaskId], cx: &mut Cx<'_>) {
        if tasks.len() <= self.slice_len() {
            for &task in tasks {
                self.drop_interest(client, task);
            }
            self.transitions_by_slices(cx);
            return;
        }
        let mut lingering = Vec::with_capacity(tasks.len());
        let mut dropped_count = 0;
        for &task in tasks {
            let ts = &mut self.tasks[task];
            if ts.who_wants.remove(client) {
                dropped_count += 1;
                if !ts.is_wanted() {
                    self.linger(task, &mut lingering);
                }
            }
        }
        // Faster than to take one after the other out.
        let listed = std::mem::take(&mut self.clients[client].wants_what);
        if dropped_count < listed.len() {
            self.clients[client].wants_what = listed
                .iter()
                .filter(|&task| self.tasks[task].who_wants.contains(client))
                .collect();
        }
        self.lingering.push(cx.stimulus_id, lingering);
    }

    /// Carries out recommendations. When `left` is used up, what could wait lingers.
    fn transitions_within(
        &mut self,
        left: &mut usize,
        lingering: &mut Vec<TaskRef>,
        cx: &mut Cx<'_>,
    ) {
        let first = lingering.len();
        while let Some((task, finish)) = self.next_recommendation() {
            if *left == 0 && self.can_linger(task, finish) {
                self.linger(task, lingering);
            } else {
                *left = left.saturating_sub(1);
                self.transition(task, finish, Detail::None, cx);
            }
        }
        // They came last one first.
        lingering[first..].reverse();
    }

    fn linger(&mut self, task: TaskId, lingering: &mut Vec<TaskRef>) {
        self.tasks[task].lingers = true;
        lingering.push(self.tasks.name(task));
    }

    /// Whether the task may stay as it is, and [`Scheduler::let_go`] will recommend
    /// the same again.
    fn can_linger(&self, task: TaskId, finish: State) -> bool {
        let ts = &self.tasks[task];
        // Another recommendation may have been overwritten.
        let is_to_err = ts.failure.is_some() && ts.state != State::Erred;
        let is_ready = ts.state == State::Waiting && ts.waiting_on.is_empty();
        if ts.is_wanted()
            || ts.has_lost_dependencies
            || is_to_err
            || is_ready
            || ts.state == State::Forgotten
        {
            return false;
        }
        match finish {
            State::Forgotten => ts.dependents.is_empty(),
            State::Released => {
                ts.waiters.is_empty() && !matches!(ts.state, State::Released | State::Erred)
            }
            State::Waiting
            | State::NoWorker
            | State::Queued
            | State::Processing
            | State::Memory
            | State::Erred => false,
        }
    }

    /// Lets a slice of the lingering tasks go, or frees some of what tasks have left.
    pub(crate) fn continue_release(&mut self, now: f64, out: &mut Instructions) {
        if self.lingering.is_empty() {
            self.tasks.free_some();
            return;
        }
        let mut left = self.slice_len();
        self.release_lingering(&mut left, now, out);
    }

    /// Lets the lingering tasks go at once if one of these keys is about to go:
    /// what comes under such a key must not meet what was there before.
    pub(crate) fn settle_keys<'a>(
        &mut self,
        mut keys: impl Iterator<Item = &'a Key>,
        now: f64,
        out: &mut Instructions,
    ) {
        if self.lingering.is_empty() {
            return;
        }
        let is_about_to_go = keys.any(|key| {
            self.tasks
                .find(key)
                .is_some_and(|task| self.is_unneeded(task, |ts| &ts.dependents, true))
        });
        if is_about_to_go {
            let mut left = usize::MAX;
            self.release_lingering(&mut left, now, out);
        }
    }

    fn release_lingering(&mut self, left: &mut usize, now: f64, out: &mut Instructions) {
        while *left > 0
            && let Some(mut batch) = self.lingering.batches.pop_front()
        {
            let stimulus_id = &batch.stimulus_id;
            let cx = &mut Cx {
                now,
                stimulus_id,
                out,
            };
            while *left > 0
                && let Some(name) = batch.tasks.pop()
            {
                let before = *left;
                // It may have gone by itself.
                if let Some(task) = self.tasks.resolve(name) {
                    self.tasks[task].lingers = false;
                    self.let_go(task);
                    self.transitions_within(left, &mut batch.tasks, cx);
                }
                // Finding out that there is nothing to do takes time, too.
                *left = (*left).min(before - 1);
            }
            let is_done = batch.tasks.is_empty();
            let stimulus_id = batch.stimulus_id.clone();
            if !is_done {
                self.lingering.batches.push_front(batch);
            }
            self.queue_slots_maybe_opened(&mut Cx {
                now,
                stimulus_id: &stimulus_id,
                out,
            });
        }
    }

    /// Forgets who lingers; everything is about to be forgotten.
    pub(crate) fn drop_lingering(&mut self) {
        for batch in std::mem::take(&mut self.lingering.batches) {
            for name in batch.tasks {
                if let Some(task) = self.tasks.resolve(name) {
                    self.tasks[task].lingers = false;
                }
            }
        }
    }

    /// Whether a queued task is about to go, and must not be given a slot.
    pub(crate) fn is_on_its_way_out(&self, task: TaskId) -> bool {
        !self.lingering.is_empty() && self.is_unneeded(task, |ts| &ts.waiters, false)
    }

    /// Whether neither the task nor anything above it is wanted; `if_unclear` if
    /// that takes too long to tell.
    fn is_unneeded(
        &self,
        task: TaskId,
        above: impl Fn(&TaskState) -> &IdSet<TaskId>,
        if_unclear: bool,
    ) -> bool {
        let mut stack = vec![task];
        let mut left = LOOKS_MAX;
        let mut is_unclear = false;
        while let Some(task) = stack.pop() {
            let ts = &self.tasks[task];
            if !ts.who_wants.is_empty() || ts.pins > 0 {
                return false;
            }
            let above = above(ts);
            is_unclear |= above.len() > left;
            stack.extend(above.iter().take(left));
            left -= above.len().min(left);
        }
        !is_unclear || if_unclear
    }
}
