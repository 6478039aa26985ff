//! Sets aside keys that run nothing and would only blur the structure.
//!
//! A list of outputs (`da.store` makes one) ties together branches that have
//! nothing to do with each other, and a piece of data used in many places makes
//! all of them look connected. Neither costs anything, so neither should steer.

use super::adjacency::Adjacency;

/// What becomes of one key of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Takes part in the ordering.
    Kept,
    /// A non-task that nothing depends on and that has several dependencies:
    /// numbered last.
    Alias,
    /// A non-task without dependencies and with several dependents: numbered
    /// right before its first user.
    Data,
}

/// The graph without aliases and shared data.
#[derive(Debug)]
pub(super) struct Trimmed {
    pub(super) fate: Vec<Fate>,
    /// In the order of removal: each before the aliases it depends on.
    pub(super) aliases: Vec<u32>,
    pub(super) data: Vec<u32>,
}

impl Trimmed {
    pub(super) fn new(
        dependencies: &Adjacency<'_>,
        dependents: &Adjacency<'_>,
        is_task: &[bool],
    ) -> Self {
        let mut trimmed = Self {
            fate: vec![Fate::Kept; dependencies.len()],
            aliases: Vec::new(),
            data: Vec::new(),
        };
        if is_task.iter().all(|&is_task| is_task) {
            return trimmed;
        }
        let count = dependencies.len() as u32;
        let mut dependency_count: Vec<u32> = (0..count).map(|t| dependencies.degree(t)).collect();
        let mut dependent_count: Vec<u32> = (0..count).map(|t| dependents.degree(t)).collect();

        // Taking data away only shortens lists of dependencies, so it never
        // makes another alias: two passes reach the fixed point.
        trimmed.remove_while(
            Fate::Alias,
            is_task,
            dependencies,
            &mut dependent_count,
            &dependency_count,
        );
        trimmed.remove_while(
            Fate::Data,
            is_task,
            dependents,
            &mut dependency_count,
            &dependent_count,
        );
        trimmed
    }

    /// Removes non-tasks with nothing `behind` them and several neighbours
    /// `ahead`, until none is left.
    fn remove_while(
        &mut self,
        fate: Fate,
        is_task: &[bool],
        ahead: &Adjacency<'_>,
        behind_count: &mut [u32],
        ahead_count: &[u32],
    ) {
        let is_removable = |task: u32, behind_count: &[u32]| {
            let task = task as usize;
            !is_task[task] && behind_count[task] == 0 && ahead_count[task] > 1
        };
        let mut removed: Vec<u32> = (0..ahead.len() as u32)
            .filter(|&task| is_removable(task, behind_count))
            .collect();
        let mut next = 0;
        while next < removed.len() {
            let task = removed[next];
            next += 1;
            self.fate[task as usize] = fate;
            for &neighbour in ahead.of(task) {
                behind_count[neighbour as usize] -= 1;
                if is_removable(neighbour, behind_count) {
                    removed.push(neighbour);
                }
            }
        }
        match fate {
            Fate::Alias => self.aliases = removed,
            Fate::Data => self.data = removed,
            Fate::Kept => unreachable!("keeping is not removing"),
        }
    }
}
