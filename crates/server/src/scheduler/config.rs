//! Dask's configuration, in the words of the core and of the graph helper.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oxidask_scheduler as core;
use oxidask_scheduler::measure::Measure;
use oxidask_wire::{self as wire, map};

use super::memory_policies::MemoryPolicies;
use super::plugin_host::{self, Preload};
use crate::config::{Config, ConfigError, ServerConfig, Value, parse_timedelta};
use crate::graph_helper::{self, Threads};
use crate::options::{SchedulerOptions, TlsSource};

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
        work_stealing: config.bool("distributed.scheduler.work-stealing")?,
        work_stealing_interval: interval(
            config,
            "distributed.scheduler.work-stealing-interval",
            "ms",
        )?,
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
        memory_manager: memory_manager(config)?,
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

/// Seconds between two runs of something; `unit` is that of a plain number.
fn interval(config: &Config, key: &str, unit: &str) -> Result<f64, ConfigError> {
    let value = config.get(key).unwrap_or(&Value::Null);
    let seconds = parse_timedelta(value, unit).map_err(|reason| config.invalid(key, &reason))?;
    if seconds > 0.0 && Duration::try_from_secs_f64(seconds).is_ok() {
        Ok(seconds)
    } else {
        Err(config.invalid(key, "expected a time longer than nothing"))
    }
}

/// A measure of a worker's memory, by its name in Dask.
fn measure(config: &Config, key: &str) -> Result<Measure, ConfigError> {
    Measure::from_name(&config.text(key)?).ok_or_else(|| {
        let names = Measure::ALL.map(Measure::name).join(", ");
        config.invalid(key, &format!("must be one of {names}"))
    })
}

const MEMORY_MANAGER: &str = "distributed.scheduler.active-memory-manager";

/// The one policy that the core has by itself.
const REDUCE_REPLICAS: &str = "distributed.active_memory_manager.ReduceReplicas";

fn memory_manager(config: &Config) -> Result<core::memory_manager::Config, ConfigError> {
    let key = |name: &str| format!("{MEMORY_MANAGER}.{name}");
    let policies = policies(config)?;
    Ok(core::memory_manager::Config {
        start: config.bool(&key("start"))?,
        interval: interval(config, &key("interval"), "s")?,
        measure: measure(config, &key("measure"))?,
        reduce_replicas: policies.iter().any(|(class, _)| class == REDUCE_REPLICAS),
    })
}

/// Those policies that the core does not have.
pub(super) fn memory_policies(config: &Config) -> Result<Option<MemoryPolicies>, ConfigError> {
    let policies = policies(config)?.into_iter();
    let foreign = policies.filter(|(class, _)| class != REDUCE_REPLICAS);
    let foreign: Vec<wire::Value> = foreign.map(|(_, policy)| plain(&policy)).collect();
    if foreign.is_empty() {
        return Ok(None);
    }
    let manager = memory_manager(config)?;
    Ok(Some(MemoryPolicies {
        policies: foreign.into(),
        measure: manager.measure.name(),
        interval: Duration::from_secs_f64(manager.interval),
    }))
}

/// A value of the configuration as it goes to Python.
fn plain(value: &Value) -> wire::Value {
    match value {
        Value::Null => wire::Value::Nil,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Str(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(plain).collect(),
        Value::Map(map) => {
            let entries = map.iter();
            let map: wire::Map = entries
                .map(|(key, value)| (key.as_str(), plain(value)))
                .collect();
            map.into()
        }
    }
}

/// Policies of the memory manager: the class and the arguments of each.
fn policies(config: &Config) -> Result<Vec<(String, Value)>, ConfigError> {
    let key = format!("{MEMORY_MANAGER}.policies");
    let wrong = || {
        let expected = "expected a list of policies, each with the name of its `class`";
        config.invalid(&key, expected)
    };
    let Some(policies) = config.get(&key).filter(|value| **value != Value::Null) else {
        return Ok(Vec::new());
    };
    let policy = |policy: &Value| {
        let class = policy.as_map()?.get("class")?.as_str()?;
        Some((class.to_owned(), policy.clone()))
    };
    let list = policies.as_list().ok_or_else(wrong)?;
    list.iter()
        .map(|value| policy(value).ok_or_else(wrong))
        .collect()
}

/// `distributed.worker.memory.rebalance`.
pub(super) fn rebalance(config: &Config) -> Result<core::rebalance::RebalanceConfig, ConfigError> {
    let part = |name: &str| config.float(&format!("distributed.worker.memory.rebalance.{name}"));
    Ok(core::rebalance::RebalanceConfig {
        measure: measure(config, "distributed.worker.memory.rebalance.measure")?,
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
    threads: Option<Arc<dyn Threads>>,
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
        threads,
    })
}

/// Modules to preload: the command line's, else the configuration's.
pub(super) fn preload(
    options: &SchedulerOptions,
    server: &ServerConfig,
) -> Result<Option<Preload>, ConfigError> {
    let from_command_line = !options.preload.is_empty();
    let modules = if from_command_line {
        options.preload.clone()
    } else {
        server.preload.clone()
    };
    if modules.is_empty() {
        return Ok(None);
    }
    let texts = |texts: &[String]| {
        let texts = texts.iter().map(|text| wire::Value::from(text.as_str()));
        texts.collect::<wire::Value>()
    };
    let argv = if options.preload_argv.is_empty() {
        preload_argv(&options.config)?
    } else {
        texts(&options.preload_argv)
    };
    Ok(Some(Preload {
        modules,
        argv,
        from_command_line,
    }))
}

/// `distributed.scheduler.preload-argv`: texts, or a list of texts for each module.
fn preload_argv(config: &Config) -> Result<wire::Value, ConfigError> {
    let key = "distributed.scheduler.preload-argv";
    let wrong = || config.invalid(key, "expected a list of texts, or one for each module");
    let texts = |list: &[Value]| {
        let texts = list.iter().map(|text| text.as_str().map(wire::Value::from));
        texts.collect::<Option<wire::Value>>()
    };
    let Some(arguments) = config.get(key).filter(|argv| **argv != Value::Null) else {
        return Ok(wire::Value::Array(Vec::new()));
    };
    if let Some(text) = arguments.as_str() {
        return Ok(wire::Value::Array(vec![wire::Value::from(text)]));
    }
    let list = arguments.as_list().ok_or_else(wrong)?;
    let of_each = |argument: &Value| argument.as_list().and_then(texts);
    texts(list)
        .or_else(|| list.iter().map(of_each).collect())
        .ok_or_else(wrong)
}

/// How the plug-in host is run: our own keys, under `oxidask.plugin-host`.
pub(super) fn plugin_host(
    options: &SchedulerOptions,
    addresses: &[String],
    preload: Option<Preload>,
) -> Result<plugin_host::Config, ConfigError> {
    let key = "oxidask.plugin-host.timeout";
    let security = &options.security;
    let file = |source: &Option<TlsSource>| match source {
        Some(TlsSource::File(path)) => wire::Value::from(path.to_string_lossy().as_ref()),
        Some(TlsSource::Pem(text)) => wire::Value::from(text.as_str()),
        None => wire::Value::Nil,
    };
    let about = map! {
        "listen_address" => addresses.first().map_or("", String::as_str),
        "security" => map! {
            "tls_ca_file" => file(&security.ca_file),
            "tls_scheduler_cert" => file(&security.cert),
            "tls_scheduler_key" => file(&security.key),
            "require_encryption" => security.require_encryption,
        },
        "scheduler_file" => options
            .scheduler_file
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned()),
    };
    Ok(plugin_host::Config {
        // As long as a worker may be silent: on stock a function that blocks the
        // scheduler has the workers removed after that time.
        timeout: match options.config.get(key) {
            None => Duration::from_secs(300),
            Some(_) => options.config.duration(key)?,
        },
        about,
        preload,
    })
}
