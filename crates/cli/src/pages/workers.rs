//! Workers: what the scheduler's thread copies, and the rows made of it.

use oxidask_http::info::{LIST_LENGTH_MAX, Worker, WorkerRow};
use oxidask_scheduler::task::Priority;
use oxidask_scheduler::{Scheduler, TaskId, WorkerId, WorkerState};
use oxidask_wire::{Key, Value};

use super::tasks::priority_text;
use crate::json;

/// The row of a worker; `now` in seconds since the epoch.
pub(super) fn row(
    scheduler: &Scheduler,
    id: WorkerId,
    worker: &WorkerState,
    now: f64,
) -> WorkerRow {
    let number = |map: &Value, name: &str| map.as_map().and_then(|map| map.get(name)?.as_u64());
    let dashboard = number(&worker.services, "dashboard").and_then(|port| u16::try_from(port).ok());
    WorkerRow {
        address: worker.address.to_string(),
        name: json::text(&worker.name),
        status: worker.status.name().to_owned(),
        nthreads: worker.nthreads as usize,
        memory_limit: (worker.memory_limit > 0).then_some(worker.memory_limit),
        memory: number(&worker.metrics, "memory").unwrap_or(0),
        occupancy: scheduler.occupancy(id),
        processing_count: worker.processing.len(),
        in_memory_count: worker.has_what.len(),
        dashboard: dashboard.map(|port| (worker.host.to_string(), port)),
        last_seen: (now - worker.last_seen).max(0.0),
    }
}

/// A worker as it was at one moment, to be written out elsewhere.
pub(super) struct WorkerCopy {
    row: WorkerRow,
    in_memory: Vec<(Key, i64)>,
    processing: Vec<(Option<Priority>, Key)>,
    resources: Vec<(String, f64, f64)>,
}

impl WorkerCopy {
    pub(super) fn of(scheduler: &Scheduler, address: &str, now: f64) -> Option<Self> {
        let id = scheduler.worker_id(address)?;
        let worker = scheduler.worker(id)?;
        let in_memory = worker
            .has_what
            .iter()
            .filter_map(|task| scheduler.task(task));
        let resources = worker.resources.iter().map(|(name, total)| {
            let used = worker.used_resources.get(name).copied().unwrap_or(0.0);
            (name.to_string(), used, *total)
        });
        Some(Self {
            row: row(scheduler, id, worker, now),
            in_memory: in_memory
                .take(LISTED_MAX)
                .map(|task| (task.key.clone(), task.nbytes))
                .collect(),
            processing: most_urgent(scheduler, worker),
            resources: resources.collect(),
        })
    }

    pub(super) fn write_out(mut self) -> Worker {
        self.processing.sort_by_key(|(priority, _)| *priority);
        let in_memory = self.in_memory.into_iter();
        let processing = self.processing.into_iter();
        Worker {
            row: self.row,
            in_memory: in_memory
                .map(|(key, nbytes)| (key.python_str(), u64::try_from(nbytes).unwrap_or(0)))
                .collect(),
            processing: processing
                .map(|(priority, key)| (key.python_str(), priority_text(priority)))
                .collect(),
            resources: self.resources,
        }
    }
}

/// One more than a page shows, so that it can say that there are more.
pub(super) const LISTED_MAX: usize = LIST_LENGTH_MAX + 1;

/// The tasks that the worker runs first, in no order: sorting all of a long
/// backlog would hold up the scheduler.
fn most_urgent(scheduler: &Scheduler, worker: &WorkerState) -> Vec<(Option<Priority>, Key)> {
    let tasks = worker.processing.iter();
    let mut tasks: Vec<(Option<Priority>, TaskId)> = tasks
        .filter_map(|id| Some((scheduler.task(id)?.priority, id)))
        .collect();
    if tasks.len() > LISTED_MAX {
        tasks.select_nth_unstable(LISTED_MAX - 1);
        tasks.truncate(LISTED_MAX);
    }
    let tasks = tasks.into_iter();
    tasks
        .filter_map(|(priority, id)| Some((priority, scheduler.task(id)?.key.clone())))
        .collect()
}
