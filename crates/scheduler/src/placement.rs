//! Which worker gets a task.

use std::cmp::Ordering;

use crate::id::{TaskId, WorkerId};
use crate::scheduler::Scheduler;
use crate::sets::RankSet;
use crate::task::State;

/// Seconds of work, per thread, that a worker may have ahead: twice the interval
/// at which messages for a worker leave, so that it never runs dry between two.
pub(crate) const AHEAD_SECONDS: f64 = 0.010;

/// Root tasks, per thread, that a worker may have ahead, however short they are.
const AHEAD_TASKS: f64 = 16.0;

/// The same for root tasks that other tasks depend on. Their results wait for each
/// other, and queuing keeps out of memory what nobody can use yet: with four a
/// thread no more of them are held at once than with stock's rule, which makes up
/// for every slot by a round trip.
const AHEAD_PARTS: f64 = 4.0;

/// Root tasks, per thread, that a worker of ours may have ahead, of the second kind
/// only if their results are of exact sizes: it runs one in microseconds.
const AHEAD_TASKS_NATIVE: f64 = 256.0;

/// Average bytes of a result up to which work is handed out ahead: sixteen of
/// them are a megabyte a thread.
const AHEAD_NBYTES: i64 = 64 << 10;

/// Types of results whose bytes are known: `sizeof` guesses those of others.
const OF_EXACT_SIZE: [&str; 6] = ["NoneType", "bool", "int", "float", "str", "numpy.ndarray"];

/// Bytes of results, per thread, that a worker of ours may have ahead.
const AHEAD_NBYTES_NATIVE: f64 = 256.0 * 1024.0;

/// How soon a task could start, smaller is better.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Objective {
    /// Actors on the worker; 0 for other tasks.
    actors: usize,
    /// Seconds until its inputs are there and the worker has time.
    start: f64,
    /// Bytes the worker holds.
    nbytes: i64,
}

impl Objective {
    fn cmp(&self, other: &Self) -> Ordering {
        self.actors
            .cmp(&other.actors)
            .then(self.start.total_cmp(&other.start))
            .then(self.nbytes.cmp(&other.nbytes))
    }
}

/// Workers that hold inputs of a task, with the bytes each holds.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// By rank; −1 where the worker holds nothing.
    nbytes: Vec<i64>,
    ranks: Vec<u32>,
    total_nbytes: i64,
}

impl Holders {
    /// Takes the inputs of `task` in place of another's, by the same ranks: one pass
    /// over them, whatever the number of candidates.
    pub(crate) fn locate(&mut self, scheduler: &Scheduler, task: TaskId) {
        for rank in self.ranks.drain(..) {
            self.nbytes[rank as usize] = -1;
        }
        self.total_nbytes = 0;
        let dependencies = &scheduler.tasks[task].dependencies;
        if dependencies.is_empty() {
            return;
        }
        self.nbytes.resize(scheduler.workers.len(), -1);
        for dependency in dependencies {
            let dts = &scheduler.tasks[dependency];
            let nbytes = scheduler.nbytes(dts);
            self.total_nbytes += nbytes;
            for worker in &dts.who_has {
                let rank = scheduler.workers[worker].rank;
                let held = &mut self.nbytes[rank as usize];
                if *held < 0 {
                    *held = 0;
                    self.ranks.push(rank);
                }
                *held += nbytes;
            }
        }
    }

    /// Ranks of the holders, in the order in which they were found.
    pub(crate) fn ranks(&self) -> impl Iterator<Item = u32> {
        self.ranks.iter().copied()
    }

    /// Seconds that the inputs need to get to the worker of this rank.
    pub(crate) fn communication(&self, scheduler: &Scheduler, rank: u32) -> f64 {
        let held = self.nbytes.get(rank as usize);
        let held = held.map_or(0, |&nbytes| nbytes.max(0));
        (self.total_nbytes - held) as f64 / scheduler.bandwidth
    }
}

impl Scheduler {
    /// A task of a group much larger than the cluster that depends on little:
    /// such tasks are handed out a few at a time.
    pub(crate) fn is_rootish(&self, task: TaskId) -> bool {
        let ts = &self.tasks[task];
        if let Some(extras) = &ts.extras {
            let is_restricted = !extras.resource_restrictions.is_empty()
                || !extras.worker_restrictions.is_empty()
                || !extras.host_restrictions.is_empty();
            if is_restricted {
                return false;
            }
        }
        if ts.data_producer && ts.has_run_spec() {
            return true;
        }
        let group = &self.groups[ts.group];
        group.size > 2 * self.workers.total_nthreads
            && group.dependencies.len() < self.config.rootish_taskgroup
            && group
                .dependencies
                .iter()
                .map(|dependency| self.groups[dependency].size)
                .sum::<u64>()
                < self.config.rootish_taskgroup_dependencies
    }

    /// The least busy worker with a free slot, if any; or the one that is being
    /// given work ahead of need.
    pub(crate) fn decide_worker_rootish_queuing_enabled(&self) -> Option<WorkerId> {
        self.ahead
            .or_else(|| self.workers.open.first().map(|&(_, worker)| worker))
    }

    /// Whether a queued task may be sent to a worker that has no free slot: the
    /// worker has less than [`AHEAD_SECONDS`] of work, all of it of known length,
    /// few enough tasks, and results like this one's are known to be small.
    pub(crate) fn may_go_ahead(&self, task: TaskId, worker: WorkerId) -> bool {
        let Some(ws) = self
            .workers
            .get(worker)
            .filter(|ws| self.workers.running.contains(ws.rank))
        else {
            return false;
        };
        let ts = &self.tasks[task];
        let prefix = &self.groups[self.groups[ts.group].prefix];
        let is_short = (0.0..AHEAD_SECONDS / 2.0).contains(&prefix.duration_average);
        if self.config.worker_saturation.is_infinite() || !ts.queueable || !is_short {
            return false;
        }
        let ahead = if ts.dependents.is_empty() {
            AHEAD_TASKS
        } else {
            AHEAD_PARTS
        };
        let finished = prefix.count(State::Memory) + prefix.count(State::Forgotten);
        let are_exact = || {
            let mut types = prefix.types.keys();
            types.all(|name| OF_EXACT_SIZE.contains(&&**name))
        };
        let ahead = if ws.is_native && (ts.dependents.is_empty() || are_exact()) {
            let nbytes = prefix.nbytes_total as f64 / finished.max(1) as f64;
            let by_nbytes = AHEAD_NBYTES_NATIVE / nbytes.max(1.0);
            by_nbytes.clamp(ahead, AHEAD_TASKS_NATIVE)
        } else {
            ahead
        };
        let is_small = prefix.nbytes_total <= AHEAD_NBYTES.saturating_mul(finished as i64);
        let nthreads = f64::from(ws.nthreads);
        let is_within = ((ws.processing.len() - ws.long_running.len()) as f64) < ahead * nthreads
            && self.occupancy(worker) < AHEAD_SECONDS * nthreads;
        finished > 0 && is_small && is_within
    }

    /// Neighbours by priority go to the same worker.
    pub(crate) fn decide_worker_rootish_queuing_disabled(
        &mut self,
        task: TaskId,
    ) -> Option<WorkerId> {
        let pool = if self.workers.idle.is_empty() {
            &self.workers.running
        } else {
            &self.workers.idle
        };
        if pool.is_empty() {
            return None;
        }
        let group = self.tasks[task].group;
        let tg = &self.groups[group];
        let last = tg
            .last_worker
            .filter(|&worker| tg.last_worker_tasks_left != 0 && self.is_running(worker));
        let mut tasks_left = tg.last_worker_tasks_left;
        let worker = match last {
            Some(worker) => worker,
            None => {
                let worker = self.best(task, pool.iter(), &self.holders(task))?;
                let share = tg.size as f64 / self.workers.total_nthreads as f64;
                tasks_left = (share * f64::from(self.workers[worker].nthreads)).floor() as i64;
                worker
            }
        };
        let tg = &mut self.groups[group];
        let is_last = tg.count(State::Released) + tg.count(State::Waiting) <= 1;
        tg.last_worker = (!is_last).then_some(worker);
        tg.last_worker_tasks_left = tasks_left - 1;
        Some(worker)
    }

    /// Among the workers that hold inputs and satisfy the restrictions, the one
    /// where the task can start the soonest.
    pub(crate) fn decide_worker_non_rootish(&self, task: TaskId) -> Option<WorkerId> {
        let running = &self.workers.running;
        if running.is_empty() {
            return None;
        }
        let mut valid = self.valid_workers(task);
        let all_running = running.len() == self.workers.len();
        if valid.is_none() && !all_running {
            valid = Some(running.clone());
        }
        if !self.tasks[task].dependencies.is_empty() || valid.is_some() {
            return self.decide_worker(task, valid.as_ref());
        }
        self.round_robin()
    }

    /// For a task without inputs and restrictions: an unoccupied worker in turn.
    fn round_robin(&self) -> Option<WorkerId> {
        /// Up to here stock looks at every worker.
        const SMALL: usize = 20;
        let idle = &self.workers.idle;
        let count = if idle.is_empty() {
            self.workers.len()
        } else {
            idle.len()
        };
        let at = |position: usize| -> Option<WorkerId> {
            if idle.is_empty() {
                self.workers.ids().get(position).copied()
            } else {
                idle.nth(position).map(|rank| self.workers.ranked(rank))
            }
        };
        let turn = (self.n_tasks % count as u64) as usize;
        if count >= SMALL {
            return at(turn);
        }
        let mut best = None;
        let mut best_occupancy = f64::INFINITY;
        for position in 0..count {
            let worker = at(position)?;
            let occupancy = self.occupancy(worker);
            if occupancy < best_occupancy {
                best = Some(worker);
                best_occupancy = occupancy;
            }
        }
        if best_occupancy == 0.0 {
            for offset in 0..count {
                let worker = at((turn + offset) % count)?;
                if self.occupancy(worker) == 0.0 {
                    return Some(worker);
                }
            }
        }
        best
    }

    /// Same as `decide_worker` of distributed, except that ties break by worker id, and that
    /// loose restrictions do not waive resources.
    fn decide_worker(&self, task: TaskId, valid: Option<&RankSet>) -> Option<WorkerId> {
        let ts = &self.tasks[task];
        let running = &self.workers.running;
        if !ts.actor
            && valid.is_none()
            && let (Some(dependency), 1) = (ts.dependencies.first(), ts.dependencies.len())
            && let (Some(holder), 1) = {
                let who_has = &self.tasks[dependency].who_has;
                (who_has.first(), who_has.len())
            }
            && self.is_running(holder)
        {
            return Some(holder);
        }

        let holders = self.holders(task);
        let mut candidates: Vec<u32> = if ts.actor {
            running.iter().collect()
        } else {
            holders
                .ranks()
                .filter(|&rank| running.contains(rank))
                .collect()
        };
        match valid {
            None => {
                if candidates.is_empty() {
                    candidates = running.iter().collect();
                }
            }
            Some(valid) => {
                candidates.retain(|&rank| valid.contains(rank));
                if candidates.is_empty() {
                    candidates = valid.iter().collect();
                    if candidates.is_empty() && ts.loose_restrictions {
                        let valid = self.loosely_valid_workers(task);
                        if valid.as_ref().is_some_and(RankSet::is_empty) {
                            return None;
                        }
                        return self.decide_worker(task, valid.as_ref());
                    }
                }
            }
        }
        if let [only] = candidates[..] {
            return Some(self.workers.ranked(only));
        }
        self.best(task, candidates.into_iter(), &holders)
    }

    fn best(
        &self,
        task: TaskId,
        ranks: impl Iterator<Item = u32>,
        holders: &Holders,
    ) -> Option<WorkerId> {
        ranks
            .map(|rank| {
                let worker = self.workers.ranked(rank);
                (self.objective(task, worker, holders), worker)
            })
            .min_by(|left, right| left.0.cmp(&right.0).then(left.1.cmp(&right.1)))
            .map(|(_, worker)| worker)
    }

    fn objective(&self, task: TaskId, worker: WorkerId, holders: &Holders) -> Objective {
        let ws = &self.workers[worker];
        let communication = holders.communication(self, ws.rank);
        Objective {
            actors: if self.tasks[task].actor {
                ws.actors.len()
            } else {
                0
            },
            start: self.occupancy(worker) / f64::from(ws.nthreads.max(1)) + communication,
            nbytes: ws.nbytes,
        }
    }

    fn holders(&self, task: TaskId) -> Holders {
        let mut holders = Holders::default();
        holders.locate(self, task);
        holders
    }
}
