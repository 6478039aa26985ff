//! What workers have to do: prefix counts, bytes to fetch, idle and saturated.

use std::mem::take;

use crate::graph::RunSpec;
use crate::id::{PrefixId, Status, TaskId, WorkerId};
use crate::scheduler::Scheduler;
use crate::task::TaskState;

impl Scheduler {
    /// Seconds of work a worker has, computing and fetching.
    pub fn occupancy(&self, worker: WorkerId) -> f64 {
        let ws = &self.workers[worker];
        let computing: f64 = ws
            .task_prefix_count
            .iter()
            .map(|(&prefix, &count)| self.prefix_duration(prefix) * f64::from(count))
            .sum();
        (computing + ws.network_occ as f64 / self.bandwidth).max(0.0)
    }

    /// Seconds of work of all workers.
    pub fn total_occupancy(&self) -> f64 {
        let computing: f64 = self
            .busy_prefixes
            .iter()
            .map(|&prefix| self.prefix_duration(prefix) * f64::from(self.groups[prefix].processing))
            .sum();
        (computing + self.network_occ as f64 / self.bandwidth).max(0.0)
    }

    /// Seconds a task of this prefix is expected to compute.
    pub fn prefix_duration(&self, prefix: PrefixId) -> f64 {
        self.groups[prefix].duration(self.config.unknown_task_duration)
    }

    /// Sorts a worker into idle, saturated and open for root tasks, after
    /// anything about its work or status has changed.
    pub(crate) fn check_idle_saturated(&mut self, worker: WorkerId) {
        self.sort_worker(worker, None);
    }

    /// [`Self::check_idle_saturated`] as if the worker had so many seconds of work.
    pub(crate) fn check_idle_saturated_with(&mut self, worker: WorkerId, occupancy: f64) {
        self.sort_worker(worker, Some(occupancy));
    }

    fn sort_worker(&mut self, worker: WorkerId, occupancy: Option<f64>) {
        let total_nthreads = self.workers.total_nthreads as f64;
        if total_nthreads == 0.0 || self.workers[worker].leaving {
            return;
        }
        let ws = &self.workers[worker];
        let rank = ws.rank;
        let is_running = ws.status == Status::Running;
        let (p, nthreads) = (ws.processing.len() as f64, f64::from(ws.nthreads));

        let mut is_idle = false;
        let mut is_saturated = false;
        if is_running {
            if p < nthreads {
                is_idle = true;
            } else {
                let occupancy = occupancy.unwrap_or_else(|| self.occupancy(worker));
                let average = self.total_occupancy() / total_nthreads;
                is_idle = occupancy < nthreads * average / 2.0;
                if !is_idle && p > nthreads {
                    let pending = occupancy * (p - nthreads) / (p * nthreads);
                    is_saturated = pending > 0.4 && pending > 1.9 * average;
                }
            }
        }
        if is_idle {
            self.workers.idle.insert(rank);
        } else {
            self.workers.idle.remove(rank);
        }
        if is_saturated {
            self.workers.saturated.insert(rank);
        } else {
            self.workers.saturated.remove(rank);
        }

        let saturation = self.config.worker_saturation;
        let slots = match is_running {
            false => 0,
            // Without queuing every running worker counts as open.
            true if saturation.is_infinite() => 1,
            true => self.workers[worker].slots_available(saturation),
        };
        self.workers.set_open_slots(worker, slots);
    }

    /// Counts a task among a worker's processing.
    pub(crate) fn assign(&mut self, task: TaskId, worker: WorkerId) {
        let prefix = self.groups[self.tasks[task].group].prefix;
        let ws = &mut self.workers[worker];
        *ws.task_prefix_count.entry(prefix).or_insert(0) += 1;
        ws.processing.insert(task);
        let count = &mut self.groups[prefix].processing;
        *count += 1;
        if *count == 1 {
            self.busy_prefixes.insert(prefix);
        }
        for dependency in &self.tasks[task].dependencies {
            let dts = &self.tasks[dependency];
            if dts.who_has.contains(worker) {
                continue;
            }
            let count = self.workers[worker]
                .needs_what
                .entry(dependency)
                .or_insert(0);
            *count += 1;
            if *count == 1 {
                let nbytes = self.nbytes(dts);
                self.workers[worker].network_occ += nbytes;
                self.network_occ += nbytes;
            }
        }
        self.put_stealable(task, worker);
    }

    /// Takes a task out of a worker's processing.
    pub(crate) fn unassign(&mut self, task: TaskId, worker: WorkerId) {
        self.stop_stealing(task, worker);
        let ws = &mut self.workers[worker];
        ws.processing.remove(task);
        if !ws.long_running.remove(task) {
            self.remove_from_prefix_count(task, worker);
        }
        let dependencies = take(&mut self.tasks[task].dependencies);
        for dependency in &dependencies {
            self.decrease_need(worker, dependency);
        }
        self.tasks[task].dependencies = dependencies;
    }

    /// A task has left its thread pool: it no longer counts as work.
    pub(crate) fn set_long_running(&mut self, task: TaskId, worker: WorkerId) {
        self.remove_stealable(task, worker);
        self.remove_from_prefix_count(task, worker);
        self.workers[worker].long_running.insert(task);
    }

    fn remove_from_prefix_count(&mut self, task: TaskId, worker: WorkerId) {
        let prefix = self.groups[self.tasks[task].group].prefix;
        let counts = &mut self.workers[worker].task_prefix_count;
        if let Some(count) = counts.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                // In order, because occupancies that are equal on paper have to be so in floats.
                counts.shift_remove(&prefix);
            }
        }
        let count = &mut self.groups[prefix].processing;
        *count -= 1;
        if *count == 0 {
            self.busy_prefixes.shift_remove(&prefix);
        }
    }

    /// One task less on the worker needs this dependency.
    pub(crate) fn decrease_need(&mut self, worker: WorkerId, dependency: TaskId) {
        let ws = &mut self.workers[worker];
        let Some(count) = ws.needs_what.get_mut(&dependency) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.remove_need(worker, dependency);
        }
    }

    /// The worker no longer has to fetch this dependency.
    pub(crate) fn remove_need(&mut self, worker: WorkerId, dependency: TaskId) {
        let nbytes = self.nbytes(&self.tasks[dependency]);
        let ws = &mut self.workers[worker];
        if ws.needs_what.remove(&dependency).is_none() {
            return;
        }
        // Sizes may have changed since they were counted: nothing to fetch is no bytes.
        let counted = if ws.needs_what.is_empty() {
            ws.network_occ
        } else {
            nbytes.min(ws.network_occ)
        };
        ws.network_occ -= counted;
        self.network_occ -= counted;
    }

    pub(crate) fn acquire_resources(&mut self, task: TaskId, worker: WorkerId) {
        for (resource, required) in self.tasks[task].resource_restrictions() {
            *self.workers[worker]
                .used_resources
                .entry(resource.clone())
                .or_insert(0.0) += required;
        }
    }

    pub(crate) fn release_resources(&mut self, task: TaskId, worker: WorkerId) {
        for (resource, required) in self.tasks[task].resource_restrictions() {
            *self.workers[worker]
                .used_resources
                .entry(resource.clone())
                .or_insert(0.0) -= required;
        }
    }

    /// Bytes of a task's inputs, assumed where unknown.
    pub fn nbytes_dependencies(&self, task: &TaskState) -> i64 {
        task.dependencies
            .iter()
            .map(|dependency| self.nbytes(&self.tasks[dependency]))
            .sum()
    }

    /// Whether the task has a recipe.
    pub(crate) fn is_data(&self, task: TaskId) -> bool {
        matches!(self.tasks[task].run_spec, RunSpec::None)
    }
}
