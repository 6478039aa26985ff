//! What the shell may ask, and the little that it may set.

use std::sync::Arc;

use oxidask_wire::{Key, Value};

use crate::config::Config;
use crate::id::{StimulusId, TaskId};
use crate::story::{Happening, Record};
use crate::task::{State, TaskState};
use crate::worker::WorkerState;

impl WorkerState {
    /// How it is configured. Resources may have changed since.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether it starts and fetches tasks.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// The id of the task with this key.
    pub fn task_id(&self, key: &Key) -> Option<TaskId> {
        self.tasks.find(key)
    }

    /// The task with this id.
    pub fn task(&self, task: TaskId) -> Option<&TaskState> {
        self.tasks.get(task)
    }

    /// The task with this key.
    pub fn find_task(&self, key: &Key) -> Option<&TaskState> {
        self.tasks.find(key).map(|task| &self.tasks[task])
    }

    /// Every task, in the order of ids.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, &TaskState)> {
        self.tasks.iter()
    }

    /// Number of tasks.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// What a task needs, in the order in which it came to be known: what to
    /// gather the inputs of an [`Execute`](crate::instruction::Execute) from.
    pub fn dependencies<'a>(&'a self, ts: &'a TaskState) -> impl Iterator<Item = &'a TaskState> {
        ts.dependencies
            .iter()
            .map(|dependency| &self.tasks[dependency])
    }

    /// Addresses of peers that have a task.
    pub fn who_has<'a>(&'a self, ts: &'a TaskState) -> impl Iterator<Item = &'a Arc<str>> {
        ts.who_has.iter().map(|peer| &self.peers[peer].address)
    }

    /// Number of peers about which something is known.
    pub fn peer_count(&self) -> usize {
        self.peers.iter().count()
    }

    /// Bytes of a task in memory, guessed if nothing is known. `TaskState.get_nbytes` in distributed.
    pub fn nbytes_of(&self, ts: &TaskState) -> i64 {
        ts.nbytes.unwrap_or(self.config.default_data_size)
    }

    /// Bytes of all values in memory: `managed_bytes` of the heartbeat.
    pub fn nbytes(&self) -> i64 {
        self.nbytes
    }

    /// Tasks that run and count towards `nthreads`, cancelled ones included.
    pub fn executing_count(&self) -> usize {
        self.executing.len()
    }

    /// Tasks that run and have seceded, cancelled ones included.
    pub fn long_running_count(&self) -> usize {
        self.long_running.len()
    }

    /// All tasks that occupy a thread.
    pub fn all_running_tasks(&self) -> impl Iterator<Item = &TaskState> {
        let running = self.executing.iter().chain(&self.long_running);
        running.map(|task| &self.tasks[task])
    }

    /// Tasks run so far, failed and cancelled ones included.
    pub fn executed_count(&self) -> u64 {
        self.executed_count
    }

    /// Tasks that are on their way, cancelled ones included.
    pub fn in_flight_tasks_count(&self) -> usize {
        self.in_flight_tasks.len()
    }

    /// Tasks that wait for inputs.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// Tasks that could run, with and without restrictions.
    pub fn ready_count(&self) -> usize {
        self.ready.len() + self.constrained.len()
    }

    /// Transfers from peers now.
    pub fn transfer_incoming_count(&self) -> usize {
        self.peers.in_flight_count
    }

    /// Transfers from peers so far.
    pub fn transfer_incoming_count_total(&self) -> u64 {
        self.transfer_incoming_count_total
    }

    /// Bytes in memory of what is on its way, as far as known.
    pub fn transfer_incoming_bytes(&self) -> i64 {
        self.transfer_incoming_bytes
    }

    /// Amounts by resource: all, and what no task holds.
    pub fn resources(&self) -> impl Iterator<Item = (&Arc<str>, f64, f64)> {
        self.total_resources
            .iter()
            .map(|(name, total)| (name, *total, self.available_resources[name]))
    }

    /// Number of tasks in a state: `task_counts` of the heartbeat.
    pub fn count_in(&self, state: State) -> u64 {
        self.counter.counts()[state as usize]
    }

    /// Prefix, state, number of tasks, and seconds that tasks have spent there
    /// since the start: `task_counter` in distributed.
    pub fn counts_by_prefix(&self, now: f64) -> impl Iterator<Item = (&Arc<str>, State, u64, f64)> {
        self.counter.by_prefix(now)
    }

    /// Transitions so far.
    pub fn transition_counter(&self) -> u64 {
        self.transition_counter
    }

    /// What happened to these keys or because of these stimuli, oldest first.
    pub fn story(&self, keys: &[Key], stimuli: &[StimulusId]) -> Vec<Record> {
        self.story.of(keys, stimuli)
    }

    /// Everything that happened, oldest first, as far back as it is kept.
    pub fn log(&self) -> impl Iterator<Item = &Record> {
        self.story.all()
    }

    /// Adds to the log what the shell did: `request-dep`, `receive-dep` and the like.
    pub fn log_transfer(
        &mut self,
        now: f64,
        action: &'static str,
        worker: &Arc<str>,
        keys: Vec<Key>,
        stimulus_id: &StimulusId,
    ) {
        let what = Happening::Transfer {
            action,
            worker: worker.clone(),
            keys,
        };
        self.story.push(what, stimulus_id, now);
    }

    /// A thread has begun to run a task.
    pub fn set_start_time(&mut self, key: &Key, now: f64) {
        if let Some(task) = self.tasks.find(key) {
            self.tasks[task].start_time = Some(now);
        }
    }

    /// What a task or a plug-in leaves for the scheduler, a map.
    pub fn set_metadata(&mut self, key: &Key, metadata: Value) {
        if let Some(task) = self.tasks.find(key) {
            self.tasks[task].metadata = metadata;
        }
    }

    /// Says about transitions from now on, or not any more.
    pub fn set_notifies_transitions(&mut self, notifies: bool) {
        self.config.notifies_transitions = notifies;
    }

    /// Changes the total of some resources. `Worker.set_resources` in distributed.
    pub fn set_resources(&mut self, resources: &[(Arc<str>, f64)]) {
        for (name, total) in resources {
            let old = self.total_resources.insert(name.clone(), *total);
            let available = self.available_resources.entry(name.clone()).or_default();
            *available += total - old.unwrap_or_default();
        }
    }
}
