//! What can be configured about a scheduler.

use std::sync::Arc;

use crate::memory_manager;

/// The `distributed.*` values that the core reads; names in the field docs
/// leave out that prefix. Times are seconds, sizes bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `scheduler.allowed-failures`: how many workers may die under a task.
    pub allowed_failures: u32,
    /// `scheduler.bandwidth`: bytes per second assumed before any measurement.
    pub bandwidth: f64,
    /// `scheduler.default-data-size`: size of a result before it is known.
    pub default_data_size: i64,
    /// `scheduler.unknown-task-duration`.
    pub unknown_task_duration: f64,
    /// `scheduler.default-task-durations`: by prefix.
    pub default_task_durations: Vec<(Arc<str>, f64)>,
    /// `scheduler.worker-saturation`; infinity turns queuing off.
    pub worker_saturation: f64,
    /// `scheduler.work-stealing`.
    pub work_stealing: bool,
    /// `scheduler.work-stealing-interval`.
    pub work_stealing_interval: f64,
    /// `scheduler.rootish-taskgroup`.
    pub rootish_taskgroup: usize,
    /// `scheduler.rootish-taskgroup-dependencies`.
    pub rootish_taskgroup_dependencies: u64,
    /// `scheduler.no-workers-timeout`.
    pub no_workers_timeout: Option<f64>,
    /// Whether `worker.memory.terminate` is truthy: only then a task whose
    /// inputs exceed the worker's memory fails at once.
    pub memory_terminate: bool,
    /// `worker.memory.recent-to-old-time`.
    pub memory_recent_to_old_time: f64,
    /// `admin.low-level-log-length`: transitions kept for `story`, and events per topic.
    pub low_level_log_length: usize,
    /// `diagnostics.erred-tasks.max-history`.
    pub erred_tasks_max_history: usize,
    /// `diagnostics.computations.max-history`.
    pub computations_max_history: usize,
    /// `scheduler.dashboard.tasks.task-stream-length`: records kept for `get_task_stream`.
    pub task_stream_length: usize,
    /// `scheduler.events-cleanup-delay`: how long events of a client or worker that left are kept.
    pub events_cleanup_delay: f64,
    /// `scheduler.active-memory-manager`.
    pub memory_manager: memory_manager::Config,
    /// `scheduler.locks.lease-validation-interval`.
    pub lease_validation_interval: f64,
    /// `scheduler.locks.lease-timeout`; `None` stands for `inf`.
    pub lease_timeout: Option<f64>,
    /// Graphs with more tasks than this are taken in over several events, and one
    /// event lets go of about so many. Chosen so that one slice stays near a millisecond.
    pub graph_slice: usize,
}

impl Default for Config {
    /// Dask's defaults.
    fn default() -> Self {
        let microsecond = 1e-6;
        Self {
            allowed_failures: 3,
            bandwidth: 100_000_000.0,
            default_data_size: 1024,
            unknown_task_duration: 0.5,
            default_task_durations: vec![
                ("rechunk-split".into(), microsecond),
                ("split-shuffle".into(), microsecond),
                ("split-taskshuffle".into(), microsecond),
                ("split-stage".into(), microsecond),
            ],
            worker_saturation: 1.1,
            work_stealing: true,
            work_stealing_interval: 1.0,
            rootish_taskgroup: 5,
            rootish_taskgroup_dependencies: 5,
            no_workers_timeout: None,
            memory_terminate: true,
            memory_recent_to_old_time: 30.0,
            low_level_log_length: 1000,
            erred_tasks_max_history: 100,
            computations_max_history: 100,
            task_stream_length: 100_000,
            events_cleanup_delay: 3600.0,
            memory_manager: memory_manager::Config::default(),
            lease_validation_interval: 10.0,
            lease_timeout: Some(30.0),
            graph_slice: 2_000,
        }
    }
}
