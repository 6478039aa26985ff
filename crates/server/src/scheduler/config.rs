//! Dask's configuration, in the words of the core and of the graph helper.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oxidask_scheduler as core;

use crate::config::{Config, ConfigError, Value, parse_timedelta};
use crate::graph_helper;

/// Values of the core.
pub(super) fn core(config: &Config) -> Result<core::Config, ConfigError> {
    let seconds = |key: &str| config.duration(key).map(|duration| duration.as_secs_f64());
    let defaults = core::Config::default();
    let whole = |key: &str| {
        let count = config.count(key)?;
        u32::try_from(count).map_err(|_| config.invalid(key, "expected a number below 2^32"))
    };
    Ok(core::Config {
        allowed_failures: whole("distributed.scheduler.allowed-failures")?,
        bandwidth: config.bytes("distributed.scheduler.bandwidth")? as f64,
        default_data_size: i64::try_from(config.bytes("distributed.scheduler.default-data-size")?)
            .map_err(|_| {
                config.invalid(
                    "distributed.scheduler.default-data-size",
                    "expected a smaller size",
                )
            })?,
        unknown_task_duration: seconds("distributed.scheduler.unknown-task-duration")?,
        default_task_durations: task_durations(config)?,
        worker_saturation: config.float("distributed.scheduler.worker-saturation")?,
        rootish_taskgroup: config.count("distributed.scheduler.rootish-taskgroup")?,
        rootish_taskgroup_dependencies: config
            .count("distributed.scheduler.rootish-taskgroup-dependencies")?
            as u64,
        no_workers_timeout: config
            .optional_duration("distributed.scheduler.no-workers-timeout")?
            .map(|timeout| timeout.as_secs_f64()),
        memory_terminate: config
            .fraction("distributed.worker.memory.terminate")?
            .is_some_and(|limit| limit > 0.0),
        memory_recent_to_old_time: seconds("distributed.worker.memory.recent-to-old-time")?,
        low_level_log_length: config.log_length("distributed.admin.low-level-log-length")?,
        erred_tasks_max_history: config.count("distributed.diagnostics.erred-tasks.max-history")?,
        computations_max_history: config
            .count("distributed.diagnostics.computations.max-history")?,
        task_stream_length: config
            .count("distributed.scheduler.dashboard.tasks.task-stream-length")?
            .max(1),
        events_cleanup_delay: seconds("distributed.scheduler.events-cleanup-delay")?,
        lease_validation_interval: seconds(
            "distributed.scheduler.locks.lease-validation-interval",
        )?,
        lease_timeout: match config.get("distributed.scheduler.locks.lease-timeout") {
            Some(Value::Str(text)) if &**text == "inf" => None,
            Some(Value::Float(timeout)) if timeout.is_infinite() => None,
            _ => Some(seconds("distributed.scheduler.locks.lease-timeout")?),
        },
        ..defaults
    })
}

/// `distributed.worker.memory.rebalance`.
pub(super) fn rebalance(config: &Config) -> Result<core::rebalance::RebalanceConfig, ConfigError> {
    let part = |name: &str| config.float(&format!("distributed.worker.memory.rebalance.{name}"));
    let measure_key = "distributed.worker.memory.rebalance.measure";
    let measure = config.text(measure_key)?;
    Ok(core::rebalance::RebalanceConfig {
        measure: core::rebalance::Measure::from_name(&measure).ok_or_else(|| {
            let expected = "expected process, optimistic, managed or managed_in_memory";
            config.invalid(measure_key, expected)
        })?,
        sender_min: part("sender-min")?,
        recipient_max: part("recipient-max")?,
        sender_recipient_gap: part("sender-recipient-gap")?,
    })
}

fn task_durations(config: &Config) -> Result<Vec<(Arc<str>, f64)>, ConfigError> {
    let key = "distributed.scheduler.default-task-durations";
    let Some(durations) = config.get(key).and_then(Value::as_map) else {
        return Ok(Vec::new());
    };
    durations
        .iter()
        .map(|(prefix, duration)| {
            let seconds =
                parse_timedelta(duration, "s").map_err(|reason| config.invalid(key, &reason))?;
            Ok((Arc::from(prefix.as_str()), seconds))
        })
        .collect()
}

/// How the graph helper is run: our own keys, under `oxidask.graph-helper`.
pub(super) fn graph_helper(
    config: &Config,
    python: PathBuf,
) -> Result<graph_helper::Config, ConfigError> {
    let duration = |key: &str, default: Duration| match config.get(key) {
        None => Ok(default),
        Some(_) => config.duration(key),
    };
    let count = |key: &str, default: usize| match config.get(key) {
        None => Ok(default),
        Some(_) => config.count(key),
    };
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    Ok(graph_helper::Config {
        python,
        // Generous: a graph of ten million tasks takes some five minutes.
        timeout: duration("oxidask.graph-helper.timeout", Duration::from_secs(600))?,
        // One for every processor, and some for those that wait for files and imports.
        helpers_max: count("oxidask.graph-helper.processes", processors.max(2) * 2)?.max(1),
        helpers_idle: 1,
        growth_nbytes_max: match config.get("oxidask.graph-helper.memory-growth") {
            None => 64 << 20,
            Some(_) => config.bytes("oxidask.graph-helper.memory-growth")?,
        },
    })
}
