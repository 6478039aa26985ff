//! Static order of the tasks of one graph, the counterpart of `dask.order`.
//!
//! The scheduler breaks ties between runnable tasks by these numbers, and a
//! good order keeps few results in memory: it finishes one output before it
//! starts the next and releases what it loaded as early as it can.
//!
//! ```text
//! OrderInput ─► trim ─► shape ─► roots ─► rank ─► walk ─► pressure ─► Order
//!               data    topo-    which    sort    one     which of
//!               and     logical  roots    key of  order   the walks
//!               aliases order,   a task   every   per     holds the
//!               out     cycles   needs    task    plan    least
//!                                          ▲               │
//!                                          └─ once more, ◄─┘
//!                                             by another key
//! ```
//!
//! After `rank`, tasks are renumbered so that comparing two indices compares
//! their sort keys. The order of tasks depends on structure and names only, never
//! on the order of insertion, unless a graph of many thousand tasks is so tangled
//! that its root sets are cut (module `roots`).

mod adjacency;
mod pressure;
mod rank;
mod roots;
mod shape;
mod targets;
mod trim;
mod walk;

use thiserror::Error;

use adjacency::Adjacency;
use pressure::Pressure;
use rank::{Measured, RankedGraph};
use shape::Shape;
use trim::{Fate, Trimmed};
use walk::{Plan, Step};

/// The dependency structure of one graph, as dense indices `0..n`.
#[derive(Clone, Copy, Debug)]
pub struct OrderInput<'a> {
    /// `n + 1` ascending offsets: the dependencies of task `i` are
    /// `dependencies[dependency_offsets[i]..dependency_offsets[i + 1]]`.
    pub dependency_offsets: &'a [u32],
    /// Indices below `n`. Dependencies on keys outside the graph are left out by
    /// the caller.
    pub dependencies: &'a [u32],
    /// False for a key that holds data rather than something to run (dask's
    /// `DataNode`, or a list of keys in a graph of the old style).
    pub is_task: &'a [bool],
    /// The position of `str(key)` among the sorted names of the graph's keys;
    /// the last tie-break.
    pub name_rank: &'a [u32],
}

impl OrderInput<'_> {
    /// Whether the slices fit together, which [`order`] relies on. For callers
    /// whose input comes from another process.
    pub fn is_consistent(&self) -> bool {
        let task_count = self.is_task.len();
        self.name_rank.len() == task_count
            && self.dependency_offsets.len() == task_count + 1
            && self.dependency_offsets[0] == 0
            && self.dependency_offsets[task_count] as usize == self.dependencies.len()
            && self.dependency_offsets.is_sorted()
            && self
                .dependencies
                .iter()
                .all(|&task| (task as usize) < task_count)
    }
}

/// A total order over the tasks of one graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// For every task its place, a permutation of `0..n`. Lower runs earlier,
    /// every task comes after its dependencies.
    pub priority: Vec<u32>,
    /// For every task the number of the critical path it was run for, less 0.5
    /// if it ran beside that path; −1 for an alias put at the end. Same as
    /// `Order.critical_path` with `dask.order.order(return_stats=True)`.
    pub critical_path: Vec<f64>,
}

/// Some tasks depend on each other in a circle.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("cycle of {} dependencies between tasks {chain:?}", chain.len() - 1)]
pub struct Cycle {
    /// Each index depends on the next one; the last repeats the first.
    pub chain: Vec<u32>,
}

/// Beyond so many tasks the second ranking is not tried: it adds half to the time
/// and helps small and irregular graphs most (`benches/order.rs`).
const RANKED_TWICE_MAX: usize = 50_000;

/// Orders the tasks of one graph.
///
/// Time and memory are linear in tasks plus dependencies, up to logarithms;
/// nothing recurses. Differs from `dask.order.order` in that it is
/// deterministic, and that it takes another walk over the graph if that holds
/// fewer results at once than the usual one.
///
/// # Errors
///
/// [`Cycle`] if the graph has one.
///
/// # Panics
///
/// If the input is not [consistent](OrderInput::is_consistent).
pub fn order(input: &OrderInput<'_>) -> Result<Order, Cycle> {
    assert!(
        input.is_consistent(),
        "slices of a graph do not fit together"
    );
    let dependencies = Adjacency::from_parts(input.dependency_offsets, input.dependencies);
    let task_count = dependencies.len();
    let dependents = dependencies.reversed();
    let trimmed = Trimmed::new(&dependencies, &dependents, input.is_task);
    let shape = Shape::new(&dependencies, &dependents, &trimmed)?;
    let measured = Measured::new(&dependencies, &trimmed, &shape, input.name_rank);
    let follow = |graph: &RankedGraph<'_>, plan| {
        let steps = with_trimmed(&walk::walk(graph, plan), graph, &dependencies, &trimmed);
        let pressure = Pressure::of(&steps, &dependencies, &dependents);
        (steps, pressure)
    };
    let least_max = Pressure::least_max(&dependencies);

    let graph = measured.rank(false);
    let trusted_plan = Plan::trusted(&graph);
    let (mut steps, trusted) = follow(&graph, trusted_plan);
    let mut best = trusted;
    let mut try_alternatives = |graph: &RankedGraph<'_>| {
        for plan in trusted_plan.alternatives() {
            if best.max <= least_max {
                break;
            }
            let (other_steps, other) = follow(graph, plan);
            if other.is_better(&best, &trusted) {
                (steps, best) = (other_steps, other);
            }
        }
        best.max > least_max
    };
    let can_be_better = try_alternatives(&graph);
    if can_be_better && graph.len() <= RANKED_TWICE_MAX {
        try_alternatives(&measured.rank(true));
    }

    let mut order = Order {
        priority: vec![0; task_count],
        critical_path: vec![0.0; task_count],
    };
    for (priority, step) in steps.iter().enumerate() {
        order.priority[step.task as usize] = priority as u32;
        order.critical_path[step.task as usize] = step.critical_path;
    }
    Ok(order)
}

/// Turns ranks into the caller's indices and puts back what was trimmed: data
/// right before its first user, aliases at the very end.
fn with_trimmed(
    walked: &[Step],
    graph: &RankedGraph<'_>,
    dependencies: &Adjacency,
    trimmed: &Trimmed,
) -> Vec<Step> {
    let mut steps = Vec::with_capacity(dependencies.len());
    let has_data = !trimmed.data.is_empty();
    let mut numbered = vec![false; if has_data { dependencies.len() } else { 0 }];
    let mut stack = Vec::new();
    let mut put_data = |steps: &mut Vec<Step>, user: u32, critical_path: f64| {
        stack.push(user);
        while let Some(&task) = stack.last() {
            let before = stack.len();
            for &dependency in dependencies.of(task) {
                let is_data = trimmed.fate[dependency as usize] == Fate::Data;
                if is_data && !numbered[dependency as usize] {
                    stack.push(dependency);
                }
            }
            if stack.len() > before {
                continue;
            }
            stack.pop();
            if task != user && !numbered[task as usize] {
                numbered[task as usize] = true;
                steps.push(Step {
                    task,
                    critical_path,
                });
            }
        }
    };

    for step in walked {
        let task = graph.original[step.task as usize];
        if has_data {
            put_data(&mut steps, task, step.critical_path);
        }
        steps.push(Step {
            task,
            critical_path: step.critical_path,
        });
    }
    for &alias in trimmed.aliases.iter().rev() {
        if has_data {
            put_data(&mut steps, alias, -1.0);
        }
        steps.push(Step {
            task: alias,
            critical_path: -1.0,
        });
    }
    steps
}
