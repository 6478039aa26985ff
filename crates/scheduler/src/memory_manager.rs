//! The active memory manager: which results get another replica, and which lose one.
//!
//! ```text
//!  policies ──► Plan::replicate, Plan::drop ──► Requests
//!                  memory of each worker,          acquire-replicas,
//!                  as if all had happened          remove-replicas
//! ```
//!
//! A [`Plan`] judges suggestions as `ActiveMemoryManagerExtension` of distributed
//! does; ties break by the number of the worker. When it runs, and what comes of
//! retiring workers, is decided by `extensions::memory_manager`.

use std::collections::BTreeSet;

use indexmap::IndexMap;

use crate::Scheduler;
use crate::id::{Status, TaskId, TaskRef, WorkerId};
use crate::measure::Measure;
use crate::task::State;
use crate::worker::ById;

/// `distributed.scheduler.active-memory-manager`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// `start`: whether it runs by itself from the beginning.
    pub start: bool,
    /// `interval` between two runs, in seconds.
    pub interval: f64,
    /// `measure`: what counts as the memory of a worker.
    pub measure: Measure,
    /// Whether `policies` names `ReduceReplicas`.
    pub reduce_replicas: bool,
}

impl Default for Config {
    /// Dask's defaults.
    fn default() -> Self {
        Self {
            start: true,
            interval: 2.0,
            measure: Measure::Optimistic,
            reduce_replicas: true,
        }
    }
}

/// Waiters of a task up to which those on one worker are counted once (fixed in
/// distributed, too).
const WAITERS_COUNTED_MAX: usize = 20;

/// Suggestions accepted so far in one run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Bytes on each worker, as if everything accepted had happened.
    memory: ById<WorkerId, i64>,
    /// Running workers, those with the least memory in use first.
    running: BTreeSet<(i64, WorkerId)>,
    measure: Measure,
    pending: ById<TaskId, Pending>,
    requests: Requests,
}

/// What was accepted for one task.
#[derive(Debug)]
struct Pending {
    /// Tells a task that has taken over the id.
    name: TaskRef,
    replicate: Vec<WorkerId>,
    /// Since the last [`Plan::take_requests`]; what was taken is no holder any more.
    drop: Vec<WorkerId>,
}

/// What workers are to be asked for.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Replicas to fetch.
    pub(crate) acquire: IndexMap<WorkerId, Vec<TaskId>>,
    /// Replicas to drop.
    pub(crate) remove: IndexMap<WorkerId, Vec<TaskId>>,
}

/// What a retiring worker's copy of a result needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evacuated {
    /// Nothing: it is elsewhere as well.
    Safe,
    /// A copy, which is on its way.
    Copied,
    /// A copy, but nobody can take it.
    Stuck,
}

impl Plan {
    pub(crate) fn new(scheduler: &Scheduler, measure: Measure) -> Self {
        let mut plan = Self {
            memory: ById::default(),
            running: BTreeSet::new(),
            measure,
            pending: ById::default(),
            requests: Requests::default(),
        };
        plan.look_at_workers(scheduler);
        plan
    }

    /// Looks who is running by now; memory of known workers stays as it was planned.
    pub(crate) fn look_at_workers(&mut self, scheduler: &Scheduler) {
        self.running.clear();
        for (worker, ws) in scheduler.workers() {
            let measure = self.measure;
            let memory = self.memory.entry(worker);
            let memory = *memory.or_insert_with(|| measure.of(&ws.memory()));
            if scheduler.is_running(worker) {
                self.running.insert((memory, worker));
            }
        }
    }

    fn add_memory(&mut self, worker: WorkerId, nbytes: i64) {
        let memory = self.memory.entry(worker).or_default();
        let before = *memory;
        *memory = (before + nbytes).max(0);
        if self.running.remove(&(before, worker)) {
            self.running.insert((*memory, worker));
        }
    }

    fn pending(&mut self, scheduler: &Scheduler, task: TaskId) -> &mut Pending {
        let name = scheduler.tasks.name(task);
        let new = || Pending {
            name,
            replicate: Vec::new(),
            drop: Vec::new(),
        };
        let pending = self.pending.entry(task).or_insert_with(new);
        if pending.name != name {
            *pending = new();
        }
        pending
    }

    /// Another replica of a task, on the running worker with the least memory in use
    /// that has none. `_find_recipient` of distributed.
    pub(crate) fn replicate(&mut self, scheduler: &Scheduler, task: TaskId) -> Option<WorkerId> {
        let ts = &scheduler.tasks[task];
        if ts.state != State::Memory || ts.actor {
            return None;
        }
        self.pending(scheduler, task);
        let pending = &self.pending[&task].replicate;
        let is_candidate =
            |worker: &WorkerId| !ts.who_has.contains(*worker) && !pending.contains(worker);
        let mut running = self.running.iter().map(|&(_, worker)| worker);
        let recipient = running.find(is_candidate)?;
        self.pending(scheduler, task).replicate.push(recipient);
        self.add_memory(recipient, ts.nbytes.max(0));
        let acquire = &mut self.requests.acquire;
        acquire.entry(recipient).or_default().push(task);
        Some(recipient)
    }

    /// One replica less of a task, on `only` or else on the worker with the most memory
    /// in use, those first that do not run. Never the last one, and none that a task on
    /// its worker needs. `_find_dropper` of distributed.
    pub(crate) fn drop_replica(
        &mut self,
        scheduler: &Scheduler,
        task: TaskId,
        only: Option<WorkerId>,
    ) -> Option<WorkerId> {
        let ts = &scheduler.tasks[task];
        self.pending(scheduler, task);
        let pending = &self.pending[&task].drop;
        if ts.who_has.len() < pending.len() + 2 || ts.actor {
            return None;
        }
        let is_running = |worker: WorkerId| {
            let worker = scheduler.worker(worker);
            worker.is_some_and(|ws| ws.status == Status::Running)
        };
        let mut candidates: Vec<WorkerId> = ts
            .who_has
            .iter()
            .filter(|worker| only.is_none_or(|only| only == *worker) && !pending.contains(worker))
            .collect();
        let mut needed = Vec::new();
        for waiter in &ts.waiters {
            if let Some(worker) = scheduler.tasks[waiter].processing_on
                && let Some(at) = candidates.iter().position(|other| *other == worker)
            {
                needed.push(candidates.remove(at));
            }
            if candidates.is_empty() {
                return None;
            }
        }
        let rank = |worker: WorkerId| {
            let memory = self.memory.get(&worker).copied().unwrap_or(0);
            (!is_running(worker), memory)
        };
        let mut candidates_left = candidates.iter().copied();
        let mut choice = candidates_left.next()?;
        for worker in candidates_left {
            if rank(worker) > rank(choice) {
                choice = worker;
            }
        }
        // Otherwise a replica that was just made on a running worker would be dropped
        // because the retiring one is still in use, made again, and so on.
        let is_last_running = candidates.len() == 1
            && is_running(choice)
            && !needed.is_empty()
            && needed.iter().all(|&worker| !is_running(worker));
        if is_last_running {
            return None;
        }
        self.pending(scheduler, task).drop.push(choice);
        self.add_memory(choice, -ts.nbytes.max(0));
        let remove = &mut self.requests.remove;
        remove.entry(choice).or_default().push(task);
        Some(choice)
    }

    /// The policy `ReduceReplicas` for one task: no more replicas than its waiters need.
    pub(crate) fn reduce_replicas(&mut self, scheduler: &Scheduler, task: TaskId) {
        let ts = &scheduler.tasks[task];
        let mut wanted = ts.waiters.len();
        if 1 < wanted && wanted < WAITERS_COUNTED_MAX {
            // One that has no worker yet may come to another one.
            let mut places: Vec<Result<WorkerId, TaskId>> = ts
                .waiters
                .iter()
                .map(|waiter| scheduler.tasks[waiter].processing_on.ok_or(waiter))
                .collect();
            places.sort_unstable();
            places.dedup();
            wanted = places.len();
        }
        let pending = self.pending(scheduler, task);
        let replicas = ts.who_has.len() + pending.replicate.len() - pending.drop.len();
        for _ in wanted.max(1)..replicas {
            self.drop_replica(scheduler, task, None);
        }
    }

    /// The policy `RetireWorker` for one task on its worker.
    pub(crate) fn evacuate(
        &mut self,
        scheduler: &Scheduler,
        task: TaskId,
        worker: WorkerId,
    ) -> Evacuated {
        let ts = &scheduler.tasks[task];
        // A copy of an actor is but a proxy; a worker with the actor is not retired.
        if ts.actor {
            return Evacuated::Safe;
        }
        if ts.who_has.len() > 1 {
            if self.drop_replica(scheduler, task, Some(worker)).is_some() {
                return Evacuated::Safe;
            }
            if ts.who_has.iter().any(|holder| scheduler.is_running(holder)) {
                return Evacuated::Safe;
            }
        }
        let is_copied = !self.pending(scheduler, task).replicate.is_empty()
            || self.replicate(scheduler, task).is_some();
        if is_copied {
            Evacuated::Copied
        } else {
            Evacuated::Stuck
        }
    }

    /// What has been accepted since the last time.
    pub(crate) fn take_requests(&mut self) -> Requests {
        let requests = std::mem::take(&mut self.requests);
        for task in requests.remove.values().flatten() {
            if let Some(pending) = self.pending.get_mut(task) {
                pending.drop.clear();
            }
        }
        requests
    }
}
