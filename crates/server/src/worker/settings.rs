//! What does not change while a worker runs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use oxidask_comm::Address;
use oxidask_wire::Value;
use oxidask_wire::compression::Compression;
use oxidask_worker as core;
use oxidask_worker::memory::Fractions;

use super::monitor::MonitorSettings;
use super::options::WorkerOptions;
use crate::config::{self, Config, ConfigError};
use crate::logging::Logs;

/// Known once the worker listens.
#[derive(Debug)]
pub(super) struct Settings {
    /// `Worker-<id>`.
    pub(super) id: String,
    /// What others connect to.
    pub(super) address: Arc<str>,
    /// The same, parsed.
    pub(super) own: Address,
    /// Where the scheduler is.
    pub(super) scheduler: Address,
    /// `options.name`, or the address.
    pub(super) name: Value,
    pub(super) core: core::Config,
    /// Answers to `get_data` at a time; `None` is no limit.
    pub(super) transfer_outgoing_count_limit: Option<usize>,
    /// Operations that are refused.
    pub(super) blocked_handlers: HashSet<String>,
    pub(super) monitor: MonitorSettings,
    pub(super) memory: MemorySettings,
    pub(super) retry: Retry,
    pub(super) connect_timeout: Duration,
    pub(super) logs: Logs,
    pub(super) options: WorkerOptions,
}

/// `distributed.worker.memory`.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemorySettings {
    pub(super) fractions: Fractions,
    /// Most bytes on disk.
    pub(super) max_spill: Option<u64>,
    pub(super) spill_compression: Option<Compression>,
    /// Time between two looks at the process's memory.
    pub(super) monitor_interval: Duration,
}

/// `distributed.comm.retry`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    pub(super) count: usize,
    pub(super) delay_min: Duration,
    pub(super) delay_max: Duration,
}

impl Retry {
    /// Repeats `attempt` while the peer cannot be reached, with growing pauses.
    pub(super) async fn run<T, F>(self, attempt: impl Fn() -> F) -> oxidask_comm::Result<T>
    where
        F: Future<Output = oxidask_comm::Result<T>>,
    {
        let mut delay = self.delay_min;
        for _ in 0..self.count {
            match attempt().await {
                Err(error) if is_os_error(&error) => tokio::time::sleep(delay).await,
                result => return result,
            }
            delay = (delay * 2).min(self.delay_max);
        }
        attempt().await
    }
}

/// What is an `OSError` in Dask: the peer cannot be reached, as opposed to
/// answering something that cannot be used.
pub(super) fn is_os_error(error: &oxidask_comm::Error) -> bool {
    use oxidask_comm::Error;
    match error {
        Error::Resolve { .. }
        | Error::ConnectTimeout { .. }
        | Error::HandshakeTimeout { .. }
        | Error::Io { .. }
        | Error::Closed { .. }
        | Error::SlowPeer { .. }
        | Error::WebSocket { .. }
        | Error::Tls { .. } => true,
        Error::Address { .. }
        | Error::Listen { .. }
        | Error::Malformed(_)
        | Error::TlsConfig { .. }
        | Error::Encryption { .. }
        | Error::Remote { .. } => false,
    }
}

/// What is looked at from time to time.
pub(super) fn monitor(config: &Config) -> Result<MonitorSettings, ConfigError> {
    Ok(MonitorSettings {
        interval: config.duration("distributed.admin.system-monitor.interval")?,
        length_max: config.log_length("distributed.admin.system-monitor.log-length")?,
        disk: config.bool("distributed.admin.system-monitor.disk")?,
        host_cpu: config.bool("distributed.admin.system-monitor.host-cpu")?,
        tick_interval: config.duration("distributed.admin.tick.interval")?,
    })
}

/// How much memory values may take.
pub(super) fn memory(config: &Config) -> Result<MemorySettings, ConfigError> {
    const MAX_SPILL: &str = "distributed.worker.memory.max-spill";
    let fraction = |name| config.fraction(&format!("distributed.worker.memory.{name}"));
    let max_spill = match config.get(MAX_SPILL) {
        None | Some(config::Value::Null | config::Value::Bool(false)) => None,
        Some(_) => Some(config.bytes(MAX_SPILL)?),
    };
    Ok(MemorySettings {
        fractions: Fractions {
            target: fraction("target")?,
            spill: fraction("spill")?,
            pause: fraction("pause")?,
        },
        max_spill,
        spill_compression: compression(config, "distributed.worker.memory.spill-compression")?,
        monitor_interval: config.duration("distributed.worker.memory.monitor-interval")?,
    })
}

/// A compression, or none for `false` and null. `auto` is lz4, which is always
/// there, as in stock where it is installed.
pub(super) fn compression(config: &Config, key: &str) -> Result<Option<Compression>, ConfigError> {
    let name = match config.get(key) {
        None | Some(config::Value::Null | config::Value::Bool(false)) => return Ok(None),
        Some(_) => config.text(key)?,
    };
    if name == "auto" {
        return Ok(Some(Compression::Lz4));
    }
    let compression = Compression::from_name(&name);
    compression
        .map(Some)
        .map_err(|_| config.invalid(key, "expected auto, false, lz4, snappy, zlib or zstd"))
}

/// Values of the core.
pub(super) fn core(options: &WorkerOptions, address: &str) -> Result<core::Config, ConfigError> {
    let config = &options.config;
    let size = |key: &str| {
        i64::try_from(config.bytes(key)?)
            .map_err(|_| config.invalid(key, "expected a smaller size"))
    };
    let fraction = config.fraction("distributed.worker.memory.transfer")?;
    let limit = options.memory_limit.zip(fraction);
    Ok(core::Config {
        nthreads: options.nthreads,
        resources: options.resources.clone(),
        transfer_incoming_count_limit: config.count("distributed.worker.connections.incoming")?,
        // Python's `int` of the product.
        transfer_incoming_bytes_limit: limit.map_or(f64::INFINITY, |(limit, fraction)| {
            (limit as f64 * fraction).trunc()
        }),
        transfer_message_bytes_limit: size("distributed.worker.transfer.message-bytes-limit")?
            as f64,
        default_data_size: size("distributed.scheduler.default-data-size")?,
        low_level_log_length: config.log_length("distributed.admin.low-level-log-length")?,
        seed: super::random(),
        ..core::Config::new(address)
    })
}
