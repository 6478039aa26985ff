//! How many results an order holds at once, as `dask.order.diagnostics` counts.

use super::adjacency::Adjacency;
use super::walk::Step;

/// Results held while running one task at a time in a given order. A result is
/// held from its task until its last dependent has run; outputs are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pressure {
    /// The most results held when a task starts.
    pub(super) max: u32,
    /// The sum over all tasks of the results held when each starts.
    pub(super) sum: u64,
}

impl Pressure {
    pub(super) fn of(
        steps: &[Step],
        dependencies: &Adjacency<'_>,
        dependents: &Adjacency<'_>,
    ) -> Self {
        let mut pressure = Self { max: 0, sum: 0 };
        let mut users: Vec<u32> = (0..dependents.len() as u32)
            .map(|task| dependents.degree(task))
            .collect();
        let mut held = 0u32;
        for step in steps {
            pressure.max = pressure.max.max(held);
            pressure.sum += u64::from(held);
            held += u32::from(dependents.degree(step.task) > 0);
            for &dependency in dependencies.of(step.task) {
                let users = &mut users[dependency as usize];
                *users -= 1;
                held -= u32::from(*users == 0);
            }
        }
        pressure
    }

    /// What no order can go below: the dependencies of one task, all at once.
    pub(super) fn least_max(dependencies: &Adjacency<'_>) -> u32 {
        let tasks = 0..dependencies.len() as u32;
        tasks
            .map(|task| dependencies.degree(task))
            .max()
            .unwrap_or(0)
    }

    /// Whether an order with this pressure should replace the `best` so far. What
    /// is `trusted` suits more than this simulation can tell, so it is only given
    /// up to save results at the worst moment, and not at the cost of holding
    /// many more at others. Nothing is gained by going from 2 to 1.
    pub(super) fn is_better(&self, best: &Self, trusted: &Self) -> bool {
        self.max < best.max && best.max > 2 && self.sum <= trusted.sum + trusted.sum / 8
    }
}
