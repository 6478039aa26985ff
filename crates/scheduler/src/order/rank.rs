//! Renumbers the trimmed graph so that a smaller index is a smaller sort key.

use std::cmp::Reverse;

use super::adjacency::Adjacency;
use super::roots::{RootSets, SetId};
use super::shape::Shape;
use super::trim::{Fate, Trimmed};

/// The trimmed graph in ranks: of two tasks, the one with the smaller index is
/// the one that needs less. Both lists of neighbours ascend.
#[derive(Debug)]
pub(super) struct RankedGraph<'a> {
    pub(super) dependencies: Adjacency<'static>,
    pub(super) dependents: Adjacency<'static>,
    /// The caller's index of each rank.
    pub(super) original: Vec<u32>,
    /// The roots each task needs, itself for a root.
    pub(super) root_set: Vec<SetId>,
    pub(super) root_sets: &'a RootSets,
    /// By rank: the number of a root in the root sets, [`NO_ROOT`] for others.
    pub(super) root_number: Vec<u32>,
    pub(super) root_count: u32,
}

/// In place of a root's number for a task that has dependencies.
pub(super) const NO_ROOT: u32 = u32::MAX;

/// What decides between two tasks, in this order. Same as `sort_key` in
/// `dask.order`, with `str(key)` replaced by its rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SortKey {
    /// Zero, or [`Measured::results_needed`] where that is to decide.
    results_needed: u32,
    /// Runs needed to get this task from nothing, shared ones counted once for
    /// every path that leads to them.
    total_dependencies: u128,
    dependency_count: u32,
    root_count: u32,
    /// Inverted: roots that many tasks wait for come first.
    max_root_dependents: Reverse<u32>,
    name_rank: u32,
}

/// Sums of dependencies double with every diamond and leave 128 bits after as
/// many diamonds in a row. From there on only the height counts, which still
/// puts a task after everything it depends on.
const TOTAL_LIMIT: u128 = u128::MAX - u32::MAX as u128;

/// What tells the tasks of the trimmed graph apart.
///
/// Here tasks go by their place in topological order.
#[derive(Debug)]
pub(super) struct Measured<'a> {
    dependencies: &'a Adjacency<'a>,
    trimmed: &'a Trimmed,
    /// The caller's index of each place.
    original: &'a [u32],
    /// The place of each of the caller's indices, if it is kept.
    place: Vec<u32>,
    keys: Vec<SortKey>,
    /// How many results must be held at once to get to run this task, if it
    /// shares nothing with others; much like the number of registers that Sethi
    /// and Ullman give an expression.
    results_needed: Vec<u32>,
    root_set: Vec<SetId>,
    root_sets: RootSets,
    root_number: Vec<u32>,
    root_count: u32,
}

impl<'a> Measured<'a> {
    pub(super) fn new(
        dependencies: &'a Adjacency<'a>,
        trimmed: &'a Trimmed,
        shape: &'a Shape,
        name_rank: &[u32],
    ) -> Self {
        let original = &shape.topological[..];
        let count = original.len();
        let mut place = vec![u32::MAX; dependencies.len()];
        for (index, &task) in original.iter().enumerate() {
            place[task as usize] = index as u32;
        }
        let mut measured = Self {
            dependencies,
            trimmed,
            original,
            place,
            keys: Vec::with_capacity(count),
            results_needed: Vec::with_capacity(count),
            root_set: Vec::with_capacity(count),
            root_sets: RootSets::new(count),
            root_number: vec![NO_ROOT; count],
            root_count: 0,
        };

        let mut dependent_count = vec![0u32; count];
        for place in 0..count as u32 {
            for dependency in measured.dependencies_of(place) {
                dependent_count[dependency as usize] += 1;
            }
        }
        let mut height = vec![0u32; count];
        let mut needs = Vec::new();
        let mut sets = Vec::new();
        for (index, &task) in original.iter().enumerate() {
            let mut key = SortKey {
                results_needed: 0,
                total_dependencies: 1,
                dependency_count: 0,
                root_count: 0,
                max_root_dependents: Reverse(0),
                name_rank: name_rank[task as usize],
            };
            needs.clear();
            sets.clear();
            for dependency in measured.dependencies_of(index as u32) {
                let dependency = dependency as usize;
                let below = &measured.keys[dependency];
                key.total_dependencies = key
                    .total_dependencies
                    .saturating_add(below.total_dependencies);
                key.dependency_count += 1;
                key.max_root_dependents.0 =
                    key.max_root_dependents.0.max(below.max_root_dependents.0);
                height[index] = height[index].max(height[dependency] + 1);
                needs.push(measured.results_needed[dependency]);
                sets.push(measured.root_set[dependency]);
            }
            if key.total_dependencies >= TOTAL_LIMIT {
                key.total_dependencies = TOTAL_LIMIT + u128::from(height[index]);
            }
            if key.dependency_count == 0 {
                let number = measured.root_count;
                measured.root_count += 1;
                measured.root_number[index] = number;
                measured.root_set.push(measured.root_sets.singleton(number));
                key.max_root_dependents.0 = dependent_count[index];
            } else {
                let set = measured.root_sets.union(&sets);
                measured.root_set.push(set);
                key.root_count = measured.root_sets.size(set);
            }
            // The neediest first, while nothing else is held.
            needs.sort_unstable_by_key(|&need| Reverse(need));
            let held_before = 0u32..;
            let before = needs
                .iter()
                .zip(held_before)
                .map(|(need, held)| need + held);
            let most = before.max().unwrap_or(0).max(key.dependency_count);
            measured.results_needed.push(most);
            measured.keys.push(key);
        }
        measured
    }

    fn dependencies_of(&self, place: u32) -> impl Iterator<Item = u32> {
        let task = self.original[place as usize];
        let all = self.dependencies.of(task).iter().copied();
        all.filter(|&d| self.trimmed.fate[d as usize] == Fate::Kept)
            .map(|d| self.place[d as usize])
    }

    /// Ranks the tasks as dask does, or by the results they need if those differ.
    pub(super) fn rank(&self, by_results_needed: bool) -> RankedGraph<'_> {
        let count = self.keys.len();
        let mut keys: Vec<(SortKey, u32)> = self.keys.iter().copied().zip(0..).collect();
        if by_results_needed {
            for ((key, _), &results_needed) in keys.iter_mut().zip(&self.results_needed) {
                key.results_needed = results_needed;
            }
        }
        keys.sort_unstable();

        let mut rank = vec![0u32; count];
        for (index, &(_, place)) in keys.iter().enumerate() {
            rank[place as usize] = index as u32;
        }
        let by_rank = |values: &[u32]| -> Vec<u32> {
            let places = keys.iter().map(|&(_, place)| place as usize);
            places.map(|place| values[place]).collect()
        };
        let dependents = Adjacency::from_pairs(count, || {
            keys.iter().zip(0..).flat_map(|(&(_, place), task)| {
                let rank = &rank;
                self.dependencies_of(place)
                    .map(move |d| (rank[d as usize], task))
            })
        });
        RankedGraph {
            dependencies: dependents.reversed(),
            dependents,
            original: by_rank(self.original),
            root_set: by_rank(&self.root_set),
            root_sets: &self.root_sets,
            root_number: by_rank(&self.root_number),
            root_count: self.root_count,
        }
    }
}

impl RankedGraph<'_> {
    pub(super) fn len(&self) -> usize {
        self.original.len()
    }

    pub(super) fn is_root(&self, task: u32) -> bool {
        self.root_number[task as usize] != NO_ROOT
    }

    pub(super) fn is_leaf(&self, task: u32) -> bool {
        self.dependents.degree(task) == 0
    }
}
