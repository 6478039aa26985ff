//! The order itself: a walk as a single thread would take it.
//!
//! Again and again the walk picks a leaf ([`Targets`]) and follows the most
//! expensive dependencies down to a root, the critical path. Then it runs the
//! path bottom-up; where a task on it misses dependencies, it walks back to get
//! those first. Whatever becomes runnable beside the path is only run if that
//! leads to an output or completes a reduction, that is, if it frees more than
//! it adds; otherwise the way to the next reduction is remembered, and taken
//! when the critical path comes to need it.

use std::collections::VecDeque;

use super::rank::RankedGraph;
use super::targets::Targets;

/// One task in its place in the order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) task: u32,
    /// See [`Order::critical_path`](super::Order::critical_path).
    pub(super) critical_path: f64,
}

/// What a walk decides by taste rather than by need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Where the structure does not tell which leaf to take, take the one that
    /// needs most rather than the one that needs least.
    pub(super) longest_first: bool,
    /// Run outputs and the last use of any result at once, and look beside the
    /// critical path at every step rather than only after it had to branch.
    /// Frees more where a long path passes many results that wait for little
    /// else, as in a cumulative sum or a stencil; can be too greedy elsewhere.
    pub(super) eager: bool,
}

impl Plan {
    /// The only plan of `dask.order`.
    pub(super) fn trusted(graph: &RankedGraph<'_>) -> Self {
        Self {
            longest_first: prefers_longest(graph),
            eager: false,
        }
    }

    /// What else is worth trying.
    pub(super) fn alternatives(self) -> [Self; 2] {
        let eager = Self {
            eager: true,
            ..self
        };
        [
            eager,
            Self {
                longest_first: !self.longest_first,
                ..eager
            },
        ]
    }
}

/// Runs every task of the graph once, each after its dependencies.
pub(super) fn walk(graph: &RankedGraph<'_>, plan: Plan) -> Vec<Step> {
    let mut walk = Walk::new(graph, plan);
    let leaves: Vec<u32> = (0..graph.len() as u32)
        .filter(|&t| graph.is_leaf(t))
        .collect();
    let mut remaining = leaves.into_iter();
    loop {
        let cheapest = match walk.touched_count {
            0 => None,
            _ => walk.targets.cheapest(&walk.is_done),
        };
        let target = cheapest.or_else(|| {
            let is_open = |leaf: &u32| !walk.is_done[*leaf as usize];
            match plan.longest_first {
                true => remaining.by_ref().rev().find(is_open),
                false => remaining.by_ref().find(is_open),
            }
        });
        match target {
            Some(target) => walk.run_critical_path(target),
            None => break,
        }
    }
    debug_assert_eq!(walk.steps.len(), graph.len());
    walk.steps
}

/// Deep reductions and splits like the longest path; if there are about as many
/// roots as leaves, and not all alike, quick results first are better.
fn prefers_longest(graph: &RankedGraph<'_>) -> bool {
    let leaves = || (0..graph.len() as u32).filter(|&task| graph.is_leaf(task));
    let leaf_count = leaves().count() as f64;
    let root_count = f64::from(graph.root_count);
    if (root_count - leaf_count).abs() >= 0.8 * root_count {
        return true;
    }
    // How many leaves each root leads to, as differences between neighbours.
    let mut steps = vec![0i64; graph.root_count as usize + 1];
    for leaf in leaves().filter(|&task| !graph.is_root(task)) {
        for span in graph.root_sets.spans(graph.root_set[leaf as usize]) {
            steps[span.start as usize] += 1;
            steps[span.end as usize] -= 1;
        }
    }
    steps[1..steps.len() - 1].iter().all(|&step| step == 0)
}

/// One task on the way from a runnable task to a reduction.
#[derive(Clone, Copy, Debug)]
struct PathStep {
    task: u32,
    /// Index of the step before, a dependency of this one.
    previous: u32,
}

const NO_STEP: u32 = u32::MAX;

/// A position on a path, as the index of its last step.
type Tip = u32;

/// The known ways to a reduction that cannot run yet.
#[derive(Debug, Default)]
struct KnownPaths {
    tips: Vec<Tip>,
    /// So many of the first tips were joined below a split and count as one way.
    joined: usize,
}

impl KnownPaths {
    fn count(&self) -> usize {
        self.tips.len() - self.joined.saturating_sub(1)
    }
}

struct Walk<'a> {
    graph: &'a RankedGraph<'a>,
    plan: Plan,
    targets: Targets,
    steps: Vec<Step>,
    is_done: Vec<bool>,
    /// Dependencies that have not run.
    needed: Vec<u32>,
    /// Dependents that have not run; kept up to date for eager plans only.
    users_left: Vec<u32>,
    is_touched: Vec<bool>,
    /// Tasks that have not run while some of their dependencies have.
    touched_count: usize,
    /// Tasks that became runnable and were not looked at.
    runnable: Vec<u32>,
    /// Tasks that were looked at and can run without loading anything.
    is_explored: Vec<bool>,
    path_steps: Vec<PathStep>,
    /// By task: 1 + index into `known`, or 0.
    known_slot: Vec<u32>,
    known: Vec<KnownPaths>,
    free_slots: Vec<u32>,
    critical_path: Vec<u32>,
    critical_path_count: u32,
    /// Tasks to be run in a row; kept to save the allocation.
    run_stack: Vec<u32>,
    path: Vec<u32>,
}

impl<'a> Walk<'a> {
    fn new(graph: &'a RankedGraph<'a>, plan: Plan) -> Self {
        let count = graph.len();
        Self {
            graph,
            plan,
            targets: Targets::new(graph),
            steps: Vec::with_capacity(count),
            is_done: vec![false; count],
            needed: (0..count as u32)
                .map(|task| graph.dependencies.degree(task))
                .collect(),
            users_left: (0..count as u32)
                .map(|task| graph.dependents.degree(task))
                .collect(),
            is_touched: vec![false; count],
            touched_count: 0,
            runnable: Vec::new(),
            is_explored: vec![false; count],
            path_steps: Vec::new(),
            known_slot: vec![0; count],
            known: Vec::new(),
            free_slots: Vec::new(),
            critical_path: Vec::new(),
            critical_path_count: 0,
            run_stack: Vec::new(),
            path: Vec::new(),
        }
    }

    fn is_done(&self, task: u32) -> bool {
        self.is_done[task as usize]
    }

    /// Runs a task and, in a row, what can run then and is the only use of it (or
    /// whatever else the plan wants at once).
    fn run(&mut self, task: u32, is_critical: bool) {
        debug_assert_eq!(
            self.needed[task as usize], 0,
            "task {task} misses dependencies"
        );
        let graph = self.graph;
        let offset = if is_critical { 0.0 } else { 0.5 };
        let critical_path = f64::from(self.critical_path_count) - offset;
        self.run_stack.push(task);
        while let Some(task) = self.run_stack.pop() {
            if self.is_done(task) {
                continue;
            }
            self.is_done[task as usize] = true;
            self.is_explored[task as usize] = false;
            self.touched_count -= usize::from(self.is_touched[task as usize]);
            self.steps.push(Step {
                task,
                critical_path,
            });
            self.targets.task_done(task);
            if graph.is_root(task) {
                self.targets.root_done(graph.root_number[task as usize]);
            }
            if self.plan.eager {
                self.release_dependencies(task);
            }
            let dependents = graph.dependents.of(task);
            for &dependent in dependents {
                self.needed[dependent as usize] -= 1;
                if !self.is_touched[dependent as usize] {
                    self.is_touched[dependent as usize] = true;
                    self.touched_count += 1;
                    self.targets.task_reachable(dependent);
                }
                if self.needed[dependent as usize] == 0 {
                    let is_last_use = match self.plan.eager {
                        true => graph.is_leaf(dependent) || self.is_last_use(dependent),
                        false => dependents.len() == 1,
                    };
                    match is_last_use {
                        true => self.run_stack.push(dependent),
                        false => self.runnable.push(dependent),
                    }
                }
            }
        }
    }

    /// Counts a use of each dependency of a task that runs, and runs in a row what
    /// is the only use left of one.
    fn release_dependencies(&mut self, task: u32) {
        let graph = self.graph;
        for &dependency in graph.dependencies.of(task) {
            let users_left = &mut self.users_left[dependency as usize];
            *users_left -= 1;
            if *users_left != 1 {
                continue;
            }
            let mut users = graph.dependents.of(dependency).iter().copied();
            let last = users.find(|&user| !self.is_done(user));
            if let Some(last) = last.filter(|&last| self.needed[last as usize] == 0) {
                self.run_stack.push(last);
            }
        }
    }

    /// Whether no other task waits for some dependency of this one.
    fn is_last_use(&self, task: u32) -> bool {
        let mut dependencies = self.graph.dependencies.of(task).iter();
        dependencies.any(|&dependency| self.users_left[dependency as usize] == 1)
    }

    fn run_critical_path(&mut self, target: u32) {
        let graph = self.graph;
        self.critical_path_count += 1;
        self.critical_path.push(target);
        let mut next = graph.dependencies.of(target).last().copied();
        while let Some(task) = next {
            self.critical_path.push(task);
            next = None;
            for &dependency in graph.dependencies.of(task) {
                if !self.is_done(dependency) {
                    self.critical_path.push(dependency);
                    next = Some(dependency);
                }
            }
        }

        let mut walked_back = self.plan.eager;
        while let Some(&task) = self.critical_path.last() {
            if self.is_done(task) {
                self.critical_path.pop();
            } else if self.needed[task as usize] > 0 {
                walked_back |= self.walk_back(task);
            } else {
                self.critical_path.pop();
                if walked_back && self.runnable.len() < self.critical_path.len() {
                    self.run_beside();
                }
                if !self.is_done(task) {
                    self.run(task, true);
                }
            }
        }
        self.run_beside();
    }

    /// Puts what a task misses on top of the critical path. True if more than
    /// one way has to be explored for it.
    fn walk_back(&mut self, task: u32) -> bool {
        let graph = self.graph;
        let mut unknown_count = 0;
        for &dependency in graph.dependencies.of(task) {
            let is_known = self.known_slot[dependency as usize] > 0;
            if !is_known && !self.is_done(dependency) {
                self.critical_path.push(dependency);
                unknown_count += 1;
            }
        }
        for &dependency in graph.dependencies.of(task) {
            if let Some(known) = self.take_known(dependency) {
                for tip in known.tips {
                    let mut step = tip;
                    while step != NO_STEP {
                        let PathStep { task, previous } = self.path_steps[step as usize];
                        if self.is_done(task) {
                            break;
                        }
                        self.critical_path.push(task);
                        step = previous;
                    }
                }
            }
        }
        unknown_count > 1
    }

    fn take_known(&mut self, task: u32) -> Option<KnownPaths> {
        let slot = self.known_slot[task as usize].checked_sub(1)?;
        self.known_slot[task as usize] = 0;
        self.free_slots.push(slot);
        Some(std::mem::take(&mut self.known[slot as usize]))
    }

    fn put_known(&mut self, task: u32, paths: KnownPaths) {
        let slot = match self.free_slots.pop() {
            Some(slot) => slot,
            None => {
                self.known.push(KnownPaths::default());
                self.known.len() as u32 - 1
            }
        };
        self.known[slot as usize] = paths;
        self.known_slot[task as usize] = slot + 1;
    }

    /// Looks at everything that became runnable: runs it or remembers where it
    /// leads.
    fn run_beside(&mut self) {
        if self.known.len() == self.free_slots.len() {
            self.path_steps.clear();
        }
        let mut branches = VecDeque::new();
        while !self.runnable.is_empty() {
            let mut candidates = std::mem::take(&mut self.runnable);
            while let Some(task) = candidates.pop() {
                if self.is_done(task) || self.is_explored[task as usize] {
                    continue;
                }
                if self.graph.is_leaf(task) {
                    self.run(task, false);
                    continue;
                }
                let start = self.extend_path(NO_STEP, task);
                branches.push_back((0, start));
                while let Some((split_count, tip)) = branches.pop_front() {
                    self.explore(split_count, tip, &mut branches);
                }
            }
        }
    }

    fn extend_path(&mut self, previous: u32, task: u32) -> Tip {
        self.path_steps.push(PathStep { task, previous });
        self.path_steps.len() as u32 - 1
    }

    /// Follows one path until it ends in a leaf, a split or a reduction.
    fn explore(&mut self, mut split_count: u32, mut tip: Tip, branches: &mut VecDeque<(u32, Tip)>) {
        let graph = self.graph;
        loop {
            let PathStep { task, previous } = self.path_steps[tip as usize];
            let dependents = graph.dependents.of(task);
            self.is_explored[task as usize] = true;
            if dependents.is_empty() {
                // An output that misses more than this path brings waits for its
                // turn; running the path alone would only add a result.
                if !(self.needed[task as usize] <= 1 && self.run_path(tip)) {
                    self.is_explored[task as usize] = false;
                }
                return;
            }
            if previous == NO_STEP || graph.dependencies.degree(task) == 1 {
                if let &[dependent] = dependents {
                    tip = self.extend_path(tip, dependent);
                    continue;
                }
                split_count += 1;
                for &dependent in dependents {
                    // Others join branches and wait for those.
                    if graph.dependencies.degree(dependent) == 1 {
                        let branch = self.extend_path(tip, dependent);
                        branches.push_back((split_count, branch));
                    }
                }
                return;
            }
            self.arrive_at_reduction(split_count, tip);
            return;
        }
    }

    /// A path has come to a task with several dependencies. Runs all ways to it
    /// once they suffice, otherwise remembers this one.
    fn arrive_at_reduction(&mut self, split_count: u32, tip: Tip) {
        let task = self.path_steps[tip as usize].task;
        let needed = self.needed[task as usize] as usize;
        let slot = self.known_slot[task as usize];
        if slot == 0 {
            if !(needed <= 1 && self.run_path(tip)) {
                self.is_explored[task as usize] = false;
                self.put_known(
                    task,
                    KnownPaths {
                        tips: vec![tip],
                        joined: 0,
                    },
                );
            }
            return;
        }

        self.is_explored[task as usize] = false;
        let known = &mut self.known[slot as usize - 1];
        known.tips.push(tip);
        if known.count() < needed {
            return;
        }
        let (path_steps, is_done) = (&self.path_steps, &self.is_done);
        let joined = known.joined;
        let is_open = |tip: Tip| {
            let previous = path_steps[tip as usize].previous;
            !is_done[path_steps[previous as usize].task as usize]
        };
        known.joined = known.tips[..joined]
            .iter()
            .filter(|&&tip| is_open(tip))
            .count();
        known.tips.retain(|&tip| is_open(tip));
        if known.count() < needed {
            return;
        }
        if split_count > 1 {
            // Below a split of a split it is too early: whatever uses the outer
            // split should decide when to run all of this.
            known.joined = known.tips.len();
            return;
        }
        let known = self.take_known(task).expect("the slot was just used");
        for tip in known.tips {
            self.run_path(tip);
        }
    }

    /// Runs the steps of a path from its start. False if the last one still
    /// misses dependencies.
    fn run_path(&mut self, tip: Tip) -> bool {
        let mut path = std::mem::take(&mut self.path);
        let mut step = tip;
        while step != NO_STEP {
            let PathStep { task, previous } = self.path_steps[step as usize];
            if self.is_done(task) {
                break;
            }
            path.push(task);
            step = previous;
        }
        let mut is_complete = true;
        while let Some(task) = path.pop() {
            if self.needed[task as usize] > 0 {
                is_complete = false;
            } else if !self.is_done(task) {
                self.run(task, false);
            }
        }
        self.path = path;
        is_complete
    }
}
