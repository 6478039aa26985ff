//! Read access for RPCs, pages and metrics.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_wire::{Key, Map, Value};

use crate::client::ClientState;
use crate::config::Config;
use crate::graph::{Number, RunSpec};
use crate::group::{TaskGroup, TaskPrefix};
use crate::id::{ClientId, GroupId, PrefixId, TaskId, TaskRef, WorkerId};
use crate::merge::Computation;
use crate::scheduler::Scheduler;
use crate::task::{ErredTask, State, TaskState};
use crate::transitions::story::Transition;
use crate::worker::{MemoryState, WorkerState};

/// Everything a `compute-task` message says, borrowed.
#[derive(Debug)]
pub struct ComputeTask<'a> {
    scheduler: &'a Scheduler,
    task: &'a TaskState,
    /// How the task is computed; never [`RunSpec::Bundle`] nor [`RunSpec::None`].
    pub run_spec: &'a RunSpec,
}

/// A dependency in a `compute-task` message.
#[derive(Clone, Copy, Debug)]
pub struct Dependency<'a> {
    scheduler: &'a Scheduler,
    task: &'a TaskState,
}

impl<'a> Dependency<'a> {
    /// The key.
    pub fn key(&self) -> &'a Key {
        &self.task.key
    }

    /// Bytes of the result; −1 if unknown.
    pub fn nbytes(&self) -> i64 {
        self.task.nbytes
    }

    /// Addresses of its holders.
    pub fn who_has(&self) -> impl Iterator<Item = &'a Arc<str>> + use<'a> {
        let scheduler = self.scheduler;
        self.task
            .who_has
            .iter()
            .map(move |worker| &scheduler.workers[worker].address)
    }

    /// Number of holders.
    pub fn holder_count(&self) -> usize {
        self.task.who_has.len()
    }
}

impl<'a> ComputeTask<'a> {
    /// The key.
    pub fn key(&self) -> &'a Key {
        &self.task.key
    }

    /// The number of the run.
    pub fn run_id(&self) -> i64 {
        self.task.run_id
    }

    /// The priority; smaller first.
    pub fn priority(&self) -> [Number; 3] {
        match self.task.priority {
            Some(priority) => priority.elements(),
            None => [Number::Int(0); 3],
        }
    }

    /// What it needs.
    pub fn dependencies(&self) -> impl Iterator<Item = Dependency<'a>> + use<'a> {
        let scheduler = self.scheduler;
        self.task
            .dependencies
            .iter()
            .map(move |dependency| Dependency {
                scheduler,
                task: &scheduler.tasks[dependency],
            })
    }

    /// Number of dependencies.
    pub fn dependency_count(&self) -> usize {
        self.task.dependencies.len()
    }

    /// The `resources` annotation: a map, or nil.
    pub fn resource_restrictions(&self) -> &'a Value {
        self.task
            .extras
            .as_ref()
            .map_or(&Value::Nil, |extras| &extras.resources)
    }

    /// Whether it is an actor.
    pub fn actor(&self) -> bool {
        self.task.actor
    }

    /// Annotations: the graph's, overridden by the task's own.
    pub fn annotations(&self) -> impl Iterator<Item = (&'a Value, &'a Value)> + use<'a> {
        annotations(self.task)
    }

    /// Number of annotations.
    pub fn annotation_count(&self) -> usize {
        self.annotations().count()
    }

    /// The span of its group.
    pub fn span_id(&self) -> Option<&'a Arc<str>> {
        self.scheduler.groups[self.task.group].span_id.as_ref()
    }
}

/// Annotations of a task: its graph's, overridden by its own.
pub(crate) fn annotations(task: &TaskState) -> impl Iterator<Item = (&Value, &Value)> {
    let own: Option<&Map> = task.extras.as_ref().map(|extras| &extras.annotations);
    let global = task
        .annotations
        .iter()
        .flat_map(|global| global.0.iter())
        .map(move |(name, value)| {
            let overriding = own.and_then(|own| own.0.iter().find(|(other, _)| other == name));
            (name, overriding.map_or(value, |(_, value)| value))
        });
    let new = own
        .into_iter()
        .flat_map(|own| own.0.iter())
        .filter(move |(name, _)| {
            !task
                .annotations
                .as_ref()
                .is_some_and(|global| global.0.iter().any(|(other, _)| other == name))
        })
        .map(|(name, value)| (name, value));
    global.chain(new)
}

impl Scheduler {
    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The task with this key.
    pub fn task_id(&self, key: &Key) -> Option<TaskId> {
        self.tasks.find(key)
    }

    /// A task by id.
    pub fn task(&self, task: TaskId) -> Option<&TaskState> {
        self.tasks.get(task)
    }

    /// A task by key.
    pub fn find_task(&self, key: &Key) -> Option<&TaskState> {
        self.tasks.find(key).map(|task| &self.tasks[task])
    }

    /// The tasks of those keys that are known, for `Event::ClientReleasesTasks`.
    pub fn refs(&self, keys: &[Key]) -> Vec<TaskRef> {
        let tasks = keys.iter().filter_map(|key| self.tasks.find(key));
        tasks.map(|task| self.tasks.name(task)).collect()
    }

    /// Every task, in the order of ids.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, &TaskState)> {
        self.tasks.iter()
    }

    /// Number of tasks.
    pub fn n_tasks(&self) -> usize {
        self.tasks.len()
    }

    /// The worker with this canonical address.
    pub fn worker_id(&self, address: &str) -> Option<WorkerId> {
        self.workers.find(address)
    }

    /// The worker with this name; Python's equality, so `1` is not `"1"`.
    pub fn worker_by_alias(&self, name: &Value) -> Option<WorkerId> {
        self.workers.find_alias(name)
    }

    /// A worker by id.
    pub fn worker(&self, worker: WorkerId) -> Option<&WorkerState> {
        self.workers.get(worker)
    }

    /// Every worker, sorted by address.
    pub fn workers(&self) -> impl ExactSizeIterator<Item = (WorkerId, &WorkerState)> {
        self.workers.iter()
    }

    /// Memory of all workers together (`Scheduler.memory`).
    pub fn memory(&self) -> MemoryState {
        self.workers
            .iter()
            .fold(MemoryState::default(), |sum, (_, worker)| {
                let memory = worker.memory();
                MemoryState {
                    process: sum.process + memory.process,
                    managed: sum.managed + memory.managed,
                    unmanaged_old: sum.unmanaged_old + memory.unmanaged_old,
                    spilled: sum.spilled + memory.spilled,
                }
            })
    }

    /// Number of workers.
    pub fn n_workers(&self) -> usize {
        self.workers.len()
    }

    /// Workers that get tasks, sorted by address.
    pub fn running(&self) -> impl Iterator<Item = WorkerId> {
        self.workers
            .running
            .iter()
            .map(|rank| self.workers.ranked(rank))
    }

    /// Running workers with too little to do, sorted by address.
    pub fn idle(&self) -> impl Iterator<Item = WorkerId> {
        self.workers
            .idle
            .iter()
            .map(|rank| self.workers.ranked(rank))
    }

    /// Running workers with more than their share to do, sorted by address.
    pub fn saturated(&self) -> impl Iterator<Item = WorkerId> {
        self.workers
            .saturated
            .iter()
            .map(|rank| self.workers.ranked(rank))
    }

    /// Running workers that may get one more root task, least busy first (`idle_task_count`).
    pub fn with_open_slots(&self) -> impl Iterator<Item = WorkerId> {
        self.workers.open.iter().map(|&(_, worker)| worker)
    }

    /// Whether this worker is running.
    pub fn is_running(&self, worker: WorkerId) -> bool {
        self.worker(worker)
            .is_some_and(|worker| self.workers.running.contains(worker.rank))
    }

    /// Threads of all workers.
    pub fn total_nthreads(&self) -> u64 {
        self.workers.total_nthreads
    }

    /// Memory limits of all workers, in bytes.
    pub fn total_memory(&self) -> u64 {
        self.workers.total_memory
    }

    /// The newest client of this name.
    pub fn client_id(&self, name: &str) -> Option<ClientId> {
        self.clients.find(name)
    }

    /// A client by id.
    pub fn client(&self, client: ClientId) -> Option<&ClientState> {
        self.clients.get(client)
    }

    /// Every client in the order in which they came, internal ones included.
    pub fn clients(&self) -> impl Iterator<Item = (ClientId, &ClientState)> {
        self.clients.iter()
    }

    /// A group by id.
    pub fn group(&self, group: GroupId) -> Option<&TaskGroup> {
        self.groups.get(group)
    }

    /// A group by name.
    pub fn group_id(&self, name: &str) -> Option<GroupId> {
        self.groups.find(name)
    }

    /// Every group.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, &TaskGroup)> {
        self.groups.iter()
    }

    /// A prefix by id.
    pub fn prefix(&self, prefix: PrefixId) -> Option<&TaskPrefix> {
        self.groups.prefixes.get(prefix.0 as usize)
    }

    /// A prefix by name.
    pub fn prefix_id(&self, name: &str) -> Option<PrefixId> {
        self.groups.find_prefix(name)
    }

    /// Every prefix, in order of appearance.
    pub fn prefixes(&self) -> impl Iterator<Item = &TaskPrefix> {
        self.groups.prefixes.iter()
    }

    /// Root-ish tasks that wait for a slot, best first.
    pub fn queued(&self) -> impl ExactSizeIterator<Item = TaskId> {
        self.queued.iter().map(|&(_, _, task)| task)
    }

    /// Tasks that no worker may run, oldest first.
    pub fn unrunnable(&self) -> impl Iterator<Item = TaskId> {
        self.unrunnable.iter()
    }

    /// Number of tasks that no worker may run.
    pub fn n_unrunnable(&self) -> usize {
        self.unrunnable.len()
    }

    /// Tasks with at least two replicas.
    pub fn replicated_tasks(&self) -> impl Iterator<Item = TaskId> {
        self.replicated.iter()
    }

    /// The last tasks that failed, newest first.
    pub fn erred_tasks(&self) -> impl ExactSizeIterator<Item = &ErredTask> {
        self.erred_tasks.iter()
    }

    /// The last computations, oldest first.
    pub fn computations(&self) -> impl ExactSizeIterator<Item = &Computation> {
        self.computations.iter()
    }

    /// Bytes per second between workers.
    pub fn bandwidth(&self) -> f64 {
        self.bandwidth
    }

    /// Bytes per second between two workers: (receiver, sender, bandwidth), sorted.
    pub fn bandwidth_workers(&self) -> Vec<(&Arc<str>, &Arc<str>, f64)> {
        let mut all: Vec<_> = self
            .bandwidth_workers
            .iter()
            .map(|((receiver, sender), &bandwidth)| (receiver, sender, bandwidth))
            .collect();
        all.sort_by_key(|&(receiver, sender, _)| (receiver, sender));
        all
    }

    /// Bytes per second by type of result.
    pub fn bandwidth_types(&self) -> impl Iterator<Item = (&Arc<str>, f64)> {
        self.bandwidth_types
            .iter()
            .map(|(name, &bandwidth)| (name, bandwidth))
    }

    /// Worker metrics summed up since the start (`cumulative_worker_metrics`).
    pub fn worker_metrics(&self) -> impl Iterator<Item = (&Key, f64)> {
        self.worker_metrics
            .iter()
            .map(|(name, &value)| (name, value))
    }

    /// Transitions so far.
    pub fn transition_counter(&self) -> u64 {
        self.transition_counter
    }

    /// Workers ever added and ever removed.
    pub fn worker_totals(&self) -> (u64, u64) {
        (self.workers_added_total, self.workers_removed_total)
    }

    /// Clients ever connected and ever gone.
    pub fn client_totals(&self) -> (u64, u64) {
        (self.clients_added_total, self.clients_removed_total)
    }

    /// Whether no task is on its way: every one is in memory, erred or released (`is_idle`).
    pub fn is_idle(&self) -> bool {
        self.groups.prefixes.iter().all(|prefix| {
            State::ALL
                .iter()
                .all(|&state| !state.is_active() || prefix.count(state) == 0)
        })
    }

    /// Whether nothing is queued, unrunnable, processing or being taken in (for `idle-timeout`).
    pub fn has_no_work(&self) -> bool {
        self.queued.is_empty()
            && self.unrunnable.is_empty()
            && self.pending_graphs.is_empty()
            && self
                .workers
                .iter()
                .all(|(_, worker)| worker.processing.is_empty())
    }

    /// Bytes of a task's result, assumed while unknown.
    pub fn nbytes(&self, task: &TaskState) -> i64 {
        if task.nbytes >= 0 {
            task.nbytes
        } else {
            self.config.default_data_size
        }
    }

    /// What `compute-task` says about a run, or `None` if the task has moved on.
    pub fn compute_task(
        &self,
        worker: WorkerId,
        task: TaskId,
        run_id: i64,
    ) -> Option<ComputeTask<'_>> {
        let ts = self.tasks.get(task)?;
        let is_current = ts.state == State::Processing
            && ts.processing_on == Some(worker)
            && ts.run_id == run_id;
        if !is_current {
            return None;
        }
        let run_spec = match &ts.run_spec {
            RunSpec::Bundle { bundle, index } => self.bundles.spec(*bundle, *index)?,
            spec @ (RunSpec::None
            | RunSpec::Pickle(_)
            | RunSpec::Buffers(_)
            | RunSpec::Call { .. }) => spec,
        };
        Some(ComputeTask {
            scheduler: self,
            task: ts,
            run_spec,
        })
    }

    /// How a task is computed, with a bundle resolved if its pickles are at hand.
    pub fn run_spec(&self, task: TaskId) -> Option<&RunSpec> {
        match &self.tasks.get(task)?.run_spec {
            RunSpec::Bundle { bundle, index } => self.bundles.spec(*bundle, *index),
            spec @ (RunSpec::None
            | RunSpec::Pickle(_)
            | RunSpec::Buffers(_)
            | RunSpec::Call { .. }) => Some(spec),
        }
    }

    /// The packed bundle that a task is part of, and its position there.
    pub fn bundle(&self, task: TaskId) -> Option<(Bytes, u32)> {
        match self.tasks.get(task)?.run_spec {
            RunSpec::Bundle { bundle, index } => Some((self.bundles.blob(bundle)?, index)),
            RunSpec::None | RunSpec::Pickle(_) | RunSpec::Buffers(_) | RunSpec::Call { .. } => None,
        }
    }

    /// Transitions of these keys or stimuli, oldest first.
    pub fn story(&self, keys: &[Key], stimuli: &[&str]) -> Vec<Transition> {
        let mut transitions = self.transition_log();
        transitions.retain(|transition| {
            keys.contains(&transition.key)
                || stimuli.contains(&transition.stimulus_id.as_str())
                || transition
                    .recommendations
                    .iter()
                    .any(|(key, _)| keys.contains(key))
        });
        transitions
    }

    /// The last transitions, oldest first.
    pub fn transition_log(&self) -> Vec<Transition> {
        self.story.all(&self.tasks)
    }

    /// The canonical address that a name, an address or a `(host, port)` pair stands for.
    ///
    /// Same as `Scheduler.coerce_address`, except that host names other than
    /// `localhost` are not resolved. `None` where stock raises ValueError: the
    /// text is no address (perhaps a host).
    pub fn coerce_address(&self, value: &Value) -> Option<Arc<str>> {
        if let Some(worker) = self.workers.find_alias(value) {
            return Some(self.workers[worker].address.clone());
        }
        if let Some(address) = value.as_str() {
            if let Some(worker) = self.workers.find(address) {
                return Some(self.workers[worker].address.clone());
            }
            return crate::restrictions::normalize_address(address).map(Into::into);
        }
        if let Some([host, port]) = value.as_array()
            && let (Some(host), Some(port)) = (host.as_str(), port.as_i64())
        {
            let address = if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            };
            return crate::restrictions::normalize_address(&address).map(Into::into);
        }
        None
    }

    /// What stock answers to a registration it refuses.
    ///
    /// # Errors
    /// The address or the name is taken.
    pub fn check_worker(&self, address: &str, name: &Value) -> Result<(), String> {
        // A lost worker makes room for its successor.
        let is_here = |worker: &WorkerId| !self.deaths.is_waiting(*worker);
        if self.workers.find(address).filter(is_here).is_some() {
            return Err(format!("Worker already exists {address}"));
        }
        if self.workers.find_alias(name).filter(is_here).is_some() {
            let name = Key::from_value(name)
                .map_or_else(|_| format!("{name:?}"), |name| name.python_str());
            return Err(format!("name taken, {name}"));
        }
        Ok(())
    }

    /// Seconds between heartbeats of each of `n` peers.
    pub fn heartbeat_interval(n: usize) -> f64 {
        match n {
            0..=10 => 0.5,
            11..50 => 1.0,
            50..200 => 2.0,
            _ => n as f64 / 200.0 + 1.0,
        }
    }
}
