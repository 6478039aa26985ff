//! The last transitions, for `story`.
//!
//! Every transition is recorded, so an entry is plain numbers: keys are looked
//! up when somebody asks. Keys of forgotten tasks are kept as long as an entry
//! may name them.

use std::collections::VecDeque;

use oxidask_wire::Key;

use crate::id::{StimulusId, TaskId};
use crate::task::State;
use crate::tasks::Tasks;

/// Recommendations kept per transition: a fan of a million dependents must not
/// fill the log with a million entries.
const RECOMMENDATIONS_MAX: usize = 1000;

/// One transition, `Transition` in Dask.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// The task.
    pub key: Key,
    /// Where it came from.
    pub start: State,
    /// Where it went.
    pub finish: State,
    /// What it recommended for other tasks, at most a thousand.
    pub recommendations: Vec<(Key, State)>,
    /// Why.
    pub stimulus_id: StimulusId,
    /// When, in seconds since the epoch.
    pub timestamp: f64,
}

/// A ring of transitions.
#[derive(Debug)]
pub(crate) struct Story {
    ring: VecDeque<Entry>,
    length_max: usize,
    /// Number of the next entry.
    next: u64,
    /// Recommendations of all entries, one entry's after the other's.
    recommendations: VecDeque<(Named, State)>,
    /// Each with the number of its first entry.
    stimuli: VecDeque<(u64, StimulusId)>,
    /// Keys of tasks that are gone, each with the number of the last entry that may name it.
    forgotten: VecDeque<(u64, Named, Key)>,
}

/// A task, told apart from others in the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    task: TaskId,
    birth: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    task: Named,
    start: State,
    finish: State,
    recommendation_count: u16,
    timestamp: f64,
}

impl Story {
    pub(crate) fn new(length_max: usize) -> Self {
        Self {
            ring: VecDeque::new(),
            length_max,
            next: 0,
            recommendations: VecDeque::new(),
            stimuli: VecDeque::new(),
            forgotten: VecDeque::new(),
        }
    }

    /// Records a transition. `recommendations` may name a task twice; the last counts.
    pub(crate) fn push(
        &mut self,
        tasks: &Tasks,
        task: TaskId,
        start: State,
        recommendations: &[(TaskId, State)],
        stimulus_id: &StimulusId,
        timestamp: f64,
    ) {
        if self.length_max == 0 {
            return;
        }
        if self.ring.len() == self.length_max {
            self.drop_oldest();
        }
        if self
            .stimuli
            .back()
            .is_none_or(|(_, last)| last != stimulus_id)
        {
            self.stimuli.push_back((self.next, stimulus_id.clone()));
        }
        let named = |task: TaskId| Named {
            task,
            birth: tasks[task].birth,
        };
        let kept = &recommendations[..recommendations.len().min(RECOMMENDATIONS_MAX)];
        self.recommendations
            .extend(kept.iter().map(|&(task, state)| (named(task), state)));
        self.ring.push_back(Entry {
            task: named(task),
            start,
            finish: tasks[task].state,
            recommendation_count: kept.len() as u16,
            timestamp,
        });
        self.next += 1;
    }

    fn drop_oldest(&mut self) {
        let Some(oldest) = self.ring.pop_front() else {
            return;
        };
        self.recommendations
            .drain(..usize::from(oldest.recommendation_count));
        let first = self.next - self.ring.len() as u64;
        while self
            .stimuli
            .get(1)
            .is_some_and(|&(start, _)| start <= first)
        {
            self.stimuli.pop_front();
        }
        while self
            .forgotten
            .front()
            .is_some_and(|&(last, ..)| last < first)
        {
            self.forgotten.pop_front();
        }
    }

    /// Keeps the key of a task that has just been forgotten.
    pub(crate) fn keep_key(&mut self, task: TaskId, birth: u32, key: &Key) {
        if self.length_max > 0 {
            self.forgotten
                .push_back((self.next, Named { task, birth }, key.clone()));
        }
    }

    /// The last transitions, oldest first.
    pub(crate) fn all(&self, tasks: &Tasks) -> Vec<Transition> {
        let first = self.next - self.ring.len() as u64;
        let mut stimuli = self.stimuli.iter().peekable();
        let mut stimulus_id = None;
        let mut recommendations = self.recommendations.iter();
        let mut all = Vec::with_capacity(self.ring.len());
        for (number, entry) in (first..).zip(&self.ring) {
            while let Some((_, next)) = stimuli.next_if(|&&(start, _)| start <= number) {
                stimulus_id = Some(next);
            }
            let mut recommended: Vec<(Key, State)> = Vec::new();
            for &(named, state) in recommendations
                .by_ref()
                .take(usize::from(entry.recommendation_count))
            {
                let Some(key) = self.key(tasks, named) else {
                    continue;
                };
                match recommended.iter_mut().find(|(other, _)| other == key) {
                    Some((_, old)) => *old = state,
                    None => recommended.push((key.clone(), state)),
                }
            }
            if let (Some(key), Some(stimulus_id)) = (self.key(tasks, entry.task), stimulus_id) {
                all.push(Transition {
                    key: key.clone(),
                    start: entry.start,
                    finish: entry.finish,
                    recommendations: recommended,
                    stimulus_id: stimulus_id.clone(),
                    timestamp: entry.timestamp,
                });
            }
        }
        all
    }

    fn key<'a>(&'a self, tasks: &'a Tasks, named: Named) -> Option<&'a Key> {
        let present = tasks.get(named.task).filter(|ts| ts.birth == named.birth);
        present.map(|ts| &ts.key).or_else(|| {
            let gone = self.forgotten.iter().find(|(_, other, _)| *other == named);
            gone.map(|(_, _, key)| key)
        })
    }
}
