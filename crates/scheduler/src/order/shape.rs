//! A first walk over the trimmed graph: topological order, roots, cycles.

use super::Cycle;
use super::adjacency::Adjacency;
use super::trim::{Fate, Trimmed};

/// What one depth-first walk from the outputs finds out.
#[derive(Debug)]
pub(super) struct Shape {
    /// The kept tasks, each after its dependencies. Roots appear in the order
    /// in which a depth-first walk meets them, so that roots that are needed
    /// together mostly stand together.
    pub(super) topological: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    New,
    Open,
    Closed,
}

impl Shape {
    pub(super) fn new(
        dependencies: &Adjacency<'_>,
        dependents: &Adjacency<'_>,
        trimmed: &Trimmed,
    ) -> Result<Self, Cycle> {
        let is_kept = |task: u32| trimmed.fate[task as usize] == Fate::Kept;
        let count = dependencies.len();
        let mut visits = vec![Visit::New; count];
        let mut topological =
            Vec::with_capacity(count - trimmed.aliases.len() - trimmed.data.len());
        // (task, how many of its dependencies were looked at)
        let mut stack: Vec<(u32, usize)> = Vec::new();

        let is_leaf = |task: u32| !dependents.of(task).iter().any(|&d| is_kept(d));
        let all = || (0..count as u32).filter(|&task| is_kept(task));
        // Whatever the leaves do not reach sits on a cycle or below one, and the
        // second round finds it.
        for start in all().filter(|&task| is_leaf(task)).chain(all()) {
            if visits[start as usize] != Visit::New {
                continue;
            }
            visits[start as usize] = Visit::Open;
            stack.push((start, 0));
            while let Some((task, seen)) = stack.last_mut() {
                let task = *task;
                let Some(&dependency) = dependencies.of(task).get(*seen) else {
                    visits[task as usize] = Visit::Closed;
                    topological.push(task);
                    stack.pop();
                    continue;
                };
                *seen += 1;
                if !is_kept(dependency) {
                    continue;
                }
                match visits[dependency as usize] {
                    Visit::New => {
                        visits[dependency as usize] = Visit::Open;
                        stack.push((dependency, 0));
                    }
                    Visit::Open => {
                        let chain = stack.iter().map(|&(task, _)| task);
                        let mut chain: Vec<u32> =
                            chain.skip_while(|&task| task != dependency).collect();
                        chain.push(dependency);
                        return Err(Cycle { chain });
                    }
                    Visit::Closed => {}
                }
            }
        }
        Ok(Self { topological })
    }
}
