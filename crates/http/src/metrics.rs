//! `/metrics` in Prometheus' text format, with stock's names.

use std::fmt::{Display, Write as _};

use crate::info::{Metrics, ProcessMetrics, SemaphoreMetrics, StealingMetrics};

/// States in which a task can be counted, in stock's order.
const STATES: [&str; 7] = [
    "released",
    "waiting",
    "no-worker",
    "queued",
    "processing",
    "memory",
    "erred",
];

pub(crate) fn text(namespace: &str, metrics: &Metrics) -> String {
    let mut families = Families::new(namespace, "scheduler");
    families.gauge("clients", "Number of clients connected", metrics.clients);
    families.counter(
        "client_connections_added",
        "Total number of client connections added",
        metrics.client_connections_added,
    );
    families.counter(
        "client_connections_removed",
        "Total number of client connections removed",
        metrics.client_connections_removed,
    );
    families.gauge(
        "desired_workers",
        "Number of workers scheduler needs for task graph",
        metrics.desired_workers,
    );
    let partially_saturated = metrics
        .workers_running
        .saturating_sub(metrics.workers_idle)
        .saturating_sub(metrics.workers_saturated);
    let retiring = metrics
        .workers
        .saturating_sub(metrics.workers_paused)
        .saturating_sub(metrics.workers_running);
    families.family("workers", "Number of workers known by scheduler", "gauge");
    for (state, count) in [
        ("idle", metrics.workers_idle),
        ("partially_saturated", partially_saturated),
        ("saturated", metrics.workers_saturated),
        ("paused", metrics.workers_paused),
        ("retiring", retiring),
    ] {
        families.sample("workers", &[("state", state)], count);
    }
    families.counter(
        "workers_added",
        "Total number of workers added",
        metrics.workers_added,
    );
    families.counter(
        "workers_removed",
        "Total number of workers removed",
        metrics.workers_removed,
    );
    // No garbage is collected in this process, and its state is never older than this
    // answer; both are here for those who read them from stock's scheduler.
    families.counter(
        "gc_collection_seconds",
        "Total time spent on garbage collection",
        0.0,
    );
    families.counter("last_time", "SystemMonitor last time", metrics.time);
    families.family(
        "tasks_suspicious_total",
        "Total number of times a task has been marked suspicious",
        "counter",
    );
    for prefix in &metrics.prefixes {
        let labels = [("task_prefix_name", prefix.name.as_str())];
        families.sample("tasks_suspicious_total", &labels, prefix.suspicious);
    }
    families.counter(
        "tasks_forgotten",
        "Total number of processed tasks no longer in memory and already removed from the \
         scheduler job queue\nNote: Task groups on the scheduler which have all tasks in the \
         forgotten state are not included.",
        metrics.tasks_forgotten,
    );
    families.family("tasks", "Number of tasks known by scheduler", "gauge");
    for state in STATES {
        let found = metrics.tasks.iter().find(|(own, _)| *own == state);
        families.sample(
            "tasks",
            &[("state", state)],
            found.map_or(0, |(_, count)| *count),
        );
    }
    families.gauge(
        "task_groups",
        "Number of task groups known by scheduler",
        metrics.task_groups,
    );
    per_prefix(&mut families, metrics);
    families.gauge(
        "tick_duration_maximum_seconds",
        "Maximum tick duration observed since Prometheus last scraped metrics",
        metrics.tick_duration_max,
    );
    families.counter(
        "tick_count",
        "Total number of ticks observed since the server started",
        metrics.tick_count,
    );
    let process = metrics.process.as_ref().map(process).unwrap_or_default();
    process
        + &families.text
        + &semaphores(namespace, &metrics.semaphores)
        + &stealing(namespace, &metrics.stealing)
}

fn stealing(namespace: &str, levels: &[StealingMetrics]) -> String {
    let mut families = Families::new(namespace, "stealing");
    if levels.is_empty() {
        return families.text;
    }
    let name = "request_count_total";
    let help = "Total number of stealing requests per cost multiplier.";
    families.family(name, help, "counter");
    for level in levels {
        let labels = [("cost_multiplier", level.cost_multiplier)];
        families.sample(name, &labels, level.request_count);
    }
    let name = "request_cost_total";
    let help = "Total cost of stealing requests per cost multiplier.";
    families.family(name, help, "counter");
    for level in levels {
        let labels = [("cost_multiplier", level.cost_multiplier)];
        families.sample(name, &labels, level.request_cost);
    }
    families.text
}

/// As the Prometheus client of Python adds them on stock, without a namespace.
fn process(process: &ProcessMetrics) -> String {
    let mut families = Families {
        prefix: "process_".to_owned(),
        text: String::new(),
    };
    families.gauge(
        "virtual_memory_bytes",
        "Virtual memory size in bytes.",
        process.virtual_nbytes,
    );
    families.gauge(
        "resident_memory_bytes",
        "Resident memory size in bytes.",
        process.resident_nbytes,
    );
    families.gauge(
        "start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        process.start_time,
    );
    families.counter(
        "cpu_seconds",
        "Total user and system CPU time spent in seconds.",
        process.cpu_seconds,
    );
    families.gauge(
        "open_fds",
        "Number of open file descriptors.",
        process.fds_open,
    );
    families.gauge(
        "max_fds",
        "Maximum number of open file descriptors.",
        process.fds_max,
    );
    families.text
}

fn semaphores(namespace: &str, semaphores: &[SemaphoreMetrics]) -> String {
    /// Name, help text, kind and value of a family.
    type Family = (
        &'static str,
        &'static str,
        &'static str,
        fn(&SemaphoreMetrics) -> f64,
    );
    const FAMILIES: [Family; 6] = [
        (
            "max_leases",
            "Maximum leases allowed per semaphore\nNote: This will be constant for each \
             semaphore during its lifetime.",
            "gauge",
            |semaphore| semaphore.max_leases as f64,
        ),
        (
            "active_leases",
            "Amount of currently active leases per semaphore",
            "gauge",
            |semaphore| semaphore.active_leases as f64,
        ),
        (
            "pending_leases",
            "Amount of currently pending leases per semaphore",
            "gauge",
            |semaphore| semaphore.pending_leases as f64,
        ),
        (
            "acquire_total",
            "Total number of leases acquired per semaphore",
            "counter",
            |semaphore| semaphore.acquire_total as f64,
        ),
        (
            "release_total",
            "Total number of leases released per semaphore\nNote: If a semaphore is closed while \
             there are still leases active, this count will not equal `semaphore_acquire_total` \
             after execution.",
            "counter",
            |semaphore| semaphore.release_total as f64,
        ),
        (
            "average_pending_lease_time_s",
            "Exponential moving average of the time it took to acquire a lease per semaphore\n\
             Note: This only includes time spent on scheduler side, it does not include time \
             spent on communication.",
            "gauge",
            |semaphore| semaphore.average_pending_lease_time,
        ),
    ];
    let mut families = Families::new(namespace, "semaphore");
    for (name, help, kind, value) in FAMILIES {
        families.family(name, help, kind);
        for semaphore in semaphores {
            families.sample(name, &[("name", &semaphore.name)], value(semaphore));
        }
    }
    families.text
}

fn per_prefix(families: &mut Families, metrics: &Metrics) {
    families.family(
        "tasks_compute_seconds_total",
        "Total amount of compute time spent in each prefix",
        "counter",
    );
    for prefix in &metrics.prefixes {
        let labels = [("task_prefix_name", prefix.name.as_str())];
        families.sample(
            "tasks_compute_seconds_total",
            &labels,
            prefix.compute_seconds,
        );
    }
    families.family(
        "tasks_transfer_seconds_total",
        "Total amount of transfer time spent in each prefix",
        "counter",
    );
    for prefix in &metrics.prefixes {
        let labels = [("task_prefix_name", prefix.name.as_str())];
        families.sample(
            "tasks_transfer_seconds_total",
            &labels,
            prefix.transfer_seconds,
        );
    }
    families.family(
        "tasks_output_bytes",
        "Current number of bytes in memory (without duplicates) for each prefix",
        "gauge",
    );
    for prefix in &metrics.prefixes {
        let labels = [("task_prefix_name", prefix.name.as_str())];
        families.sample("tasks_output_bytes", &labels, prefix.nbytes_total);
    }
    families.family(
        "prefix_state_totals_total",
        "Accumulated count of task prefix in each state",
        "counter",
    );
    for prefix in &metrics.prefixes {
        for (state, count) in &prefix.state_counts {
            let labels = [("task_prefix_name", prefix.name.as_str()), ("state", state)];
            families.sample("prefix_state_totals_total", &labels, count);
        }
    }
}

/// Text made of families of samples.
pub(crate) struct Families {
    prefix: String,
    text: String,
}

impl Families {
    pub(crate) fn new(namespace: &str, subsystem: &str) -> Self {
        let namespace = match namespace {
            "" => String::new(),
            namespace => format!("{namespace}_"),
        };
        Self {
            prefix: format!("{namespace}{subsystem}_"),
            text: String::new(),
        }
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }

    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, help, "gauge");
        self.sample(name, &[], value);
    }

    pub(crate) fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        let name = format!("{name}_total");
        self.family(&name, help, "counter");
        self.sample(&name, &[], value);
    }

    pub(crate) fn family(&mut self, name: &str, help: &str, kind: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let prefix = &self.prefix;
        writeln!(
            self.text,
            "# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind}"
        )
        .expect("writing to a string cannot fail");
    }

    pub(crate) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| {
                let value = value
                    .replace('\\', "\\\\")
                    .replace('"', "\\\"")
                    .replace('\n', "\\n");
                format!("{label}=\"{value}\"")
            })
            .collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        writeln!(self.text, "{}{name}{labels} {value}", self.prefix)
            .expect("writing to a string cannot fail");
    }
}
