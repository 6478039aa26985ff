//! Totals of the scheduler, for `/json/counts.json` and `/metrics`.

use std::collections::HashSet;

use oxidask_http::info::{Counts, Metrics, PrefixMetrics, SemaphoreMetrics, StealingMetrics};
use oxidask_scheduler::client::FIRE_AND_FORGET;
use oxidask_scheduler::group::TaskPrefix;
use oxidask_scheduler::stealing::COST_MULTIPLIERS;
use oxidask_scheduler::{Scheduler, State, Status};
use oxidask_server::scheduler::View;

/// All but `desired_workers`. Looks at every task once, as stock does.
pub(super) fn counts(scheduler: &Scheduler) -> Counts {
    let mut counts = Counts {
        clients: scheduler.clients().count(),
        idle: scheduler.idle().count(),
        saturated: scheduler.saturated().count(),
        tasks: scheduler.n_tasks(),
        unrunnable: scheduler.n_unrunnable(),
        workers: scheduler.n_workers(),
        ..Counts::default()
    };
    for (_, task) in scheduler.tasks() {
        if task.failure.is_some() {
            counts.erred += 1;
        } else if task.state == State::Released {
            counts.released += 1;
        }
        counts.waiting += usize::from(!task.waiting_on.is_empty());
        counts.waiting_data += usize::from(!task.waiters.is_empty());
    }
    let mut hosts = HashSet::new();
    for (_, worker) in scheduler.workers() {
        hosts.insert(&worker.host);
        counts.cores += worker.nthreads as usize;
        counts.memory += worker.has_what.len();
        counts.bytes += u64::try_from(worker.nbytes).unwrap_or(0);
        counts.processing += worker.processing.len();
    }
    counts.hosts = hosts.len();
    counts
}

/// All but `desired_workers` and what is known of the event loop.
pub(super) fn metrics(view: &View<'_>) -> Metrics {
    let scheduler = view.scheduler;
    let (client_connections_added, client_connections_removed) = scheduler.client_totals();
    let (workers_added, workers_removed) = scheduler.worker_totals();
    let mut totals = [0; State::COUNT];
    for prefix in scheduler.prefixes() {
        for (total, count) in totals.iter_mut().zip(prefix.states) {
            *total += count;
        }
    }
    let workers = scheduler.workers().map(|(_, worker)| worker);
    Metrics {
        clients: scheduler
            .clients()
            .filter(|(_, client)| &*client.name != FIRE_AND_FORGET)
            .count(),
        client_connections_added,
        client_connections_removed,
        workers: scheduler.n_workers(),
        workers_running: scheduler.running().count(),
        workers_idle: scheduler.idle().count(),
        workers_saturated: scheduler.saturated().count(),
        workers_paused: workers
            .filter(|worker| worker.status == Status::Paused)
            .count(),
        workers_added,
        workers_removed,
        tasks: State::ALL
            .into_iter()
            .filter(|state| *state != State::Forgotten)
            .map(|state| (state.name(), totals[state as usize]))
            .collect(),
        tasks_forgotten: totals[State::Forgotten as usize],
        task_groups: scheduler.groups().count(),
        prefixes: scheduler.prefixes().map(prefix).collect(),
        semaphores: view.semaphores().map(semaphore).collect(),
        stealing: stealing(scheduler),
        ..Metrics::default()
    }
}

fn stealing(scheduler: &Scheduler) -> Vec<StealingMetrics> {
    if !scheduler.config().work_stealing {
        return Vec::new();
    }
    let metrics = scheduler.stealing_metrics();
    let levels = COST_MULTIPLIERS.into_iter().enumerate();
    levels
        .map(|(level, cost_multiplier)| StealingMetrics {
            cost_multiplier,
            request_count: metrics.request_count_total[level],
            request_cost: metrics.request_cost_total[level],
        })
        .collect()
}

fn semaphore(semaphore: oxidask_scheduler::extensions::SemaphoreMetrics) -> SemaphoreMetrics {
    SemaphoreMetrics {
        name: semaphore.name.python_str().to_string(),
        max_leases: semaphore.max_leases,
        active_leases: semaphore.active_leases,
        pending_leases: semaphore.pending_leases,
        acquire_total: semaphore.acquire_total,
        release_total: semaphore.release_total,
        average_pending_lease_time: semaphore.average_pending_lease_time,
    }
}

fn prefix(prefix: &TaskPrefix) -> PrefixMetrics {
    let seconds = |action: &str| prefix.durations_us.get(action).copied().unwrap_or(0) as f64 / 1e6;
    let states = State::ALL.into_iter();
    PrefixMetrics {
        name: prefix.name.to_string(),
        suspicious: prefix.suspicious,
        compute_seconds: seconds("compute"),
        transfer_seconds: seconds("transfer"),
        nbytes_total: u64::try_from(prefix.nbytes_total).unwrap_or(0),
        state_counts: states
            .map(|state| (state.name(), prefix.state_counts[state as usize]))
            .filter(|(_, count)| *count > 0)
            .collect(),
    }
}
