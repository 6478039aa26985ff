//! How many workers there should be, and which can go.

use std::sync::Arc;

use hashbrown::HashSet;
use indexmap::IndexMap;

use crate::Scheduler;
use crate::id::WorkerId;
use crate::worker::WorkerState;

/// Tasks whose durations stand for all that wait (fixed in distributed, too).
const SAMPLE: usize = 100;

/// Share of the memory that results may take before more workers are asked for (fixed in distributed, too).
const MEMORY_FRACTION_MAX: f64 = 0.6;

/// Which workers [`workers_to_close`] may suggest: the arguments of the Dask method of that name.
#[derive(Clone, Debug, Default)]
pub struct Shrink {
    /// Memory to keep as a multiple of the data; 2 if neither this nor a number is given.
    pub memory_ratio: Option<f64>,
    /// How many to close.
    pub n: Option<i64>,
    /// Never fewer than this.
    pub minimum: Option<i64>,
    /// How many to keep; gives `n`.
    pub target: Option<i64>,
}

/// Workers that can be closed at low cost: idle ones with little data.
///
/// Workers with the same `group` go together; `None` stands for a group of its
/// own. Workers with seceded tasks and those in `excluded` (addresses) stay.
/// Same as `Scheduler.workers_to_close` in distributed.
pub fn workers_to_close(
    scheduler: &Scheduler,
    shrink: &Shrink,
    group: impl Fn(&WorkerState) -> Option<Arc<str>>,
    excluded: &HashSet<&str>,
) -> Vec<WorkerId> {
    let worker_count = scheduler.n_workers() as i64;
    let n = shrink
        .n
        .or(shrink.target.map(|target| worker_count - target))
        .map(|n| n.max(0));
    let target = n.map(|n| worker_count - n);
    let memory_ratio = shrink.memory_ratio.or(n.is_none().then_some(2.0));
    let all_busy = scheduler
        .workers()
        .all(|(_, worker)| !worker.processing.is_empty());
    if n.unwrap_or(0) == 0 && all_busy {
        return Vec::new();
    }

    let mut groups: IndexMap<Result<Arc<str>, WorkerId>, Group> = IndexMap::new();
    for (id, worker) in scheduler.workers() {
        if !worker.long_running.is_empty() || excluded.contains(&*worker.address) {
            continue;
        }
        let entry = groups.entry(group(worker).ok_or(id)).or_default();
        entry.workers.push(id);
        entry.busy |= !worker.processing.is_empty();
        entry.limit += worker.memory_limit as f64;
        entry.nbytes += worker.nbytes;
    }
    let mut limit: f64 = groups.values().map(|group| group.limit).sum();
    let total: i64 = groups.values().map(|group| group.nbytes).sum();
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by_key(|group| (!group.busy, std::cmp::Reverse(group.nbytes)));

    let mut to_close = Vec::new();
    let mut remaining = worker_count;
    while let Some(group) = groups.pop() {
        if n.is_none() && group.busy {
            break;
        }
        let left = remaining - group.workers.len() as i64;
        if shrink
            .minimum
            .is_some_and(|minimum| minimum != 0 && left < minimum)
        {
            break;
        }
        limit -= group.limit;
        let by_number = target.is_some_and(|target| left >= target);
        let by_memory = memory_ratio.is_some_and(|ratio| limit >= ratio * total as f64);
        if !by_number && !by_memory {
            break;
        }
        to_close.extend(group.workers);
        remaining = left;
    }
    to_close
}

#[derive(Debug, Default)]
struct Group {
    workers: Vec<WorkerId>,
    busy: bool,
    limit: f64,
    nbytes: i64,
}

/// The number of workers that the present work calls for.
///
/// `target_duration` is how long the work may take, in seconds; `excluded` as
/// in [`workers_to_close`]. Same as `Scheduler.adaptive_target` in distributed.
pub fn adaptive_target(
    scheduler: &Scheduler,
    target_duration: f64,
    excluded: &HashSet<&str>,
) -> i64 {
    let unknown = scheduler.config().unknown_task_duration;
    let waiting = scheduler.queued().chain(scheduler.unrunnable());
    let mut queued_occupancy = 0.0;
    for task in waiting.take(SAMPLE) {
        let group = scheduler
            .task(task)
            .and_then(|task| scheduler.group(task.group));
        let prefix = group.and_then(|group| scheduler.prefix(group.prefix));
        queued_occupancy += prefix.map_or(unknown, |prefix| prefix.duration(unknown));
    }
    let waiting_count = scheduler.queued().len() + scheduler.n_unrunnable();
    if waiting_count > SAMPLE {
        queued_occupancy *= waiting_count as f64 / SAMPLE as f64;
    }
    let mut cpu = ((scheduler.total_occupancy() + queued_occupancy) / target_duration).ceil();

    // A few long tasks must not ask for many cores.
    let processing = scheduler
        .workers()
        .map(|(_, worker)| worker.processing.len());
    let ready_count = waiting_count + processing.sum::<usize>();
    cpu = cpu.min(ready_count as f64);

    let worker_count = scheduler.n_workers();
    if worker_count > 0 {
        cpu = (cpu / scheduler.total_nthreads() as f64 * worker_count as f64).ceil();
    } else if waiting_count > 0 {
        cpu = cpu.max(1.0);
    }

    let limit: f64 = scheduler
        .workers()
        .map(|(_, worker)| worker.memory_limit as f64)
        .sum();
    let used: f64 = scheduler
        .workers()
        .map(|(_, worker)| worker.nbytes as f64)
        .sum();
    let memory = if used > MEMORY_FRACTION_MAX * limit && limit > 0.0 {
        2 * worker_count
    } else {
        0
    };

    let target = (cpu as i64).max(memory as i64);
    if target >= worker_count as i64 {
        return target;
    }
    let to_close = workers_to_close(scheduler, &Shrink::default(), |_| None, excluded);
    (worker_count - to_close.len()) as i64
}
