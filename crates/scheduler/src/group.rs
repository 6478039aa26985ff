//! Groups and prefixes: what tasks with similar keys have in common.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::id::{GroupId, PrefixId, WorkerId};
use crate::sets::IdSet;
use crate::stealing::FAST_SECONDS;
use crate::task::State;

/// Insertion-ordered map by text that may come from the network.
pub type ByName<V> = IndexMap<Arc<str>, V, foldhash::quality::RandomState>;

/// Number of tasks per state, indexed by `State as usize`.
pub type StateCounts = [u64; State::COUNT];

/// Tasks with the same `key_split_group`, `TaskGroup` in Dask.
#[derive(Clone, Debug)]
pub struct TaskGroup {
    /// Its name.
    pub name: Arc<str>,
    /// Its prefix.
    pub prefix: PrefixId,
    /// Tasks per state; forgotten ones count until the whole group is gone.
    pub states: StateCounts,
    /// Tasks ever added.
    pub size: u64,
    /// Groups that its tasks depend on, itself perhaps included.
    pub dependencies: IdSet<GroupId>,
    /// Bytes of all results.
    pub nbytes_total: i64,
    /// Microseconds per action.
    pub durations_us: ByName<i64>,
    /// Microseconds over all actions.
    pub duration_us: i64,
    /// Results per name of type.
    pub types: ByName<u64>,
    /// When the earliest finished task started computing; 0 before any finished.
    pub start: f64,
    /// When the last finished task stopped computing; 0 before any finished.
    pub stop: f64,
    /// The span it belongs to.
    pub span_id: Option<Arc<str>>,
    /// Where the last root-ish task went, with queuing off.
    pub last_worker: Option<WorkerId>,
    /// How many more tasks go there.
    pub last_worker_tasks_left: i64,
    /// No longer known by name: kept because other groups count its size.
    pub(crate) removed: bool,
    /// Other groups that depend on it.
    pub(crate) dependent_count: u32,
}

impl TaskGroup {
    pub(crate) fn new(name: Arc<str>, prefix: PrefixId) -> Self {
        Self {
            name,
            prefix,
            states: StateCounts::default(),
            size: 0,
            dependencies: IdSet::default(),
            nbytes_total: 0,
            durations_us: ByName::default(),
            duration_us: 0,
            types: ByName::default(),
            start: 0.0,
            stop: 0.0,
            span_id: None,
            last_worker: None,
            last_worker_tasks_left: 0,
            removed: false,
            dependent_count: 0,
        }
    }

    /// Tasks in `state`.
    pub fn count(&self, state: State) -> u64 {
        self.states[state as usize]
    }

    /// Whether every task is forgotten.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.states[..State::Forgotten as usize]
            .iter()
            .all(|&count| count == 0)
    }
}

/// Tasks with the same `key_split`, `TaskPrefix` in Dask.
#[derive(Clone, Debug)]
pub struct TaskPrefix {
    /// Its name.
    pub name: Arc<str>,
    /// Tasks per state, of the groups that exist.
    pub states: StateCounts,
    /// How often a task entered each state, ever.
    pub state_counts: StateCounts,
    /// Tasks of the groups that exist.
    pub size: u64,
    /// Moving average of compute times in seconds; −1 while unknown.
    pub duration_average: f64,
    /// Longest time in seconds a running task was seen to take; −1 while unknown.
    pub max_exec_time: f64,
    /// Times a worker died under one of its tasks.
    pub suspicious: u64,
    /// Bytes of all results, of the groups that exist.
    pub nbytes_total: i64,
    /// Microseconds per action.
    pub durations_us: ByName<i64>,
    /// Microseconds over all actions, of the groups that exist.
    pub duration_us: i64,
    /// Results per name of type, of the groups that exist.
    pub types: ByName<u64>,
    /// Groups that exist.
    pub groups: IdSet<GroupId>,
    /// Its default duration is so short that its tasks are never stolen.
    pub(crate) is_fast: bool,
    /// Tasks in processing and not long-running, over all workers.
    pub(crate) processing: u32,
}

impl TaskPrefix {
    pub(crate) fn new(name: Arc<str>, default_duration: Option<f64>) -> Self {
        Self {
            name,
            states: StateCounts::default(),
            state_counts: StateCounts::default(),
            size: 0,
            duration_average: default_duration.unwrap_or(-1.0),
            max_exec_time: -1.0,
            suspicious: 0,
            nbytes_total: 0,
            durations_us: ByName::default(),
            duration_us: 0,
            types: ByName::default(),
            groups: IdSet::default(),
            is_fast: default_duration.is_some_and(|duration| duration <= FAST_SECONDS),
            processing: 0,
        }
    }

    /// Tasks in `state`.
    pub fn count(&self, state: State) -> u64 {
        self.states[state as usize]
    }

    /// Seconds a task of this prefix is expected to compute.
    pub fn duration(&self, unknown: f64) -> f64 {
        if self.duration_average >= 0.0 {
            self.duration_average
        } else if self.max_exec_time > 0.0 {
            2.0 * self.max_exec_time
        } else {
            unknown
        }
    }

    /// A heartbeat saw a task executing for `duration` seconds.
    pub(crate) fn add_exec_time(&mut self, duration: f64) {
        self.max_exec_time = self.max_exec_time.max(duration);
        if duration > 2.0 * self.duration_average {
            self.duration_average = -1.0;
        }
    }

    /// A task spent `microseconds` on `action`.
    pub(crate) fn add_duration(&mut self, action: &str, microseconds: i64) {
        self.duration_us += microseconds;
        add_to(&mut self.durations_us, action, microseconds);
        if action == "compute" {
            let seconds = microseconds as f64 / 1e6;
            self.duration_average = if self.duration_average < 0.0 {
                seconds
            } else {
                0.5 * seconds + 0.5 * self.duration_average
            };
        }
    }
}

/// Adds to the counter `name`, which begins at 0.
pub(crate) fn add_to<N: Default + std::ops::AddAssign>(
    counters: &mut ByName<N>,
    name: &str,
    amount: N,
) {
    match counters.get_mut(name) {
        Some(counter) => *counter += amount,
        None => {
            counters.insert(name.into(), amount);
        }
    }
}
