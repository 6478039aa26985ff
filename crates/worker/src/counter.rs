//! Tasks by prefix and state, and the time they spent there.

use std::sync::Arc;

use foldhash::quality::RandomState;
use indexmap::IndexMap;

use crate::task::State;

/// Prefixes told apart; all later ones are counted as [`OTHER`]. Chosen far
/// above what programs have: a program that makes a prefix per task would fill
/// the memory.
const PREFIXES_MAX: usize = 10_000;

/// What Dask calls keys without a prefix.
const OTHER: &str = "Other";

/// A prefix of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PrefixId(pub(crate) u32);

/// `TaskCounter` of distributed.
#[derive(Debug)]
pub(crate) struct TaskCounter {
    prefixes: IndexMap<Arc<str>, [Cell; State::COUNT], RandomState>,
    totals: [u64; State::COUNT],
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    count: u64,
    /// Seconds spent by all tasks, until `since`.
    elapsed: f64,
    since: f64,
}

impl Cell {
    fn advance(&mut self, now: f64) {
        self.elapsed += self.count as f64 * (now - self.since).max(0.0);
        self.since = now;
    }
}

impl TaskCounter {
    pub(crate) fn new() -> Self {
        let mut prefixes = IndexMap::default();
        prefixes.insert(OTHER.into(), [Cell::default(); State::COUNT]);
        Self {
            prefixes,
            totals: [0; State::COUNT],
        }
    }

    /// The number of a prefix.
    pub(crate) fn prefix(&mut self, name: &str) -> PrefixId {
        if let Some(at) = self.prefixes.get_index_of(name) {
            return PrefixId(at as u32);
        }
        if self.prefixes.len() == PREFIXES_MAX {
            return PrefixId(0);
        }
        let (at, _) = self
            .prefixes
            .insert_full(name.into(), [Cell::default(); State::COUNT]);
        PrefixId(at as u32)
    }

    /// A task enters a state.
    pub(crate) fn enter(&mut self, prefix: PrefixId, state: State, now: f64) {
        let cell = &mut self.prefixes[prefix.0 as usize][state as usize];
        cell.advance(now);
        cell.count += 1;
        self.totals[state as usize] += 1;
    }

    /// A task leaves a state.
    pub(crate) fn leave(&mut self, prefix: PrefixId, state: State, now: f64) {
        let cell = &mut self.prefixes[prefix.0 as usize][state as usize];
        cell.advance(now);
        cell.count -= 1;
        self.totals[state as usize] -= 1;
    }

    /// Number of tasks by state.
    pub(crate) fn counts(&self) -> &[u64; State::COUNT] {
        &self.totals
    }

    /// Prefix, state, number of tasks now, and seconds that tasks spent in it, where there are any.
    pub(crate) fn by_prefix(&self, now: f64) -> impl Iterator<Item = (&Arc<str>, State, u64, f64)> {
        self.prefixes.iter().flat_map(move |(name, cells)| {
            State::ALL.into_iter().filter_map(move |state| {
                let mut cell = cells[state as usize];
                cell.advance(now);
                (cell.count > 0 || cell.elapsed > 0.0).then_some((
                    name,
                    state,
                    cell.count,
                    cell.elapsed,
                ))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{OTHER, PREFIXES_MAX, PrefixId, TaskCounter};
    use crate::task::State;

    #[test]
    fn time_is_that_of_all_tasks_together() {
        let mut counter = TaskCounter::new();
        let inc = counter.prefix("inc");
        counter.enter(inc, State::Executing, 1.0);
        counter.enter(inc, State::Executing, 2.0);
        counter.leave(inc, State::Executing, 4.0);
        counter.enter(inc, State::Memory, 4.0);
        let rows: Vec<_> = counter.by_prefix(5.0).collect();
        let inc = "inc".into();
        assert_eq!(
            rows,
            [
                (&inc, State::Executing, 1, 6.0),
                (&inc, State::Memory, 1, 1.0)
            ]
        );
    }

    #[test]
    fn prefixes_are_bounded() {
        let mut counter = TaskCounter::new();
        for number in 0..PREFIXES_MAX + 5 {
            counter.prefix(&format!("p{number}"));
        }
        let late = counter.prefix("one-more");
        assert_eq!(late, PrefixId(0));
        assert_eq!(&**counter.prefixes.get_index(0).unwrap().0, OTHER);
        assert_eq!(counter.prefixes.len(), PREFIXES_MAX);
    }
}
