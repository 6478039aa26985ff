//! What a worker process is started with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oxidask_wire::{Map, Value};

use crate::config::{self, Config, ConfigError};
use crate::options::{ListenOptions, Security};

/// Everything that decides how a worker is started: command line and
/// configuration together, the command line having the last word.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Address of the scheduler.
    pub scheduler: String,
    /// `--name`: text or number; `None` is the worker's address.
    pub name: Option<Value>,
    /// `--nthreads`.
    pub nthreads: usize,
    /// `--memory-limit` in bytes; `None` is no limit.
    pub memory_limit: Option<u64>,
    /// `--resources`, else `distributed.worker.resources`: amounts by name.
    pub resources: Vec<(Arc<str>, f64)>,
    /// Where to listen. Without a port, the system chooses; without a protocol, it
    /// is that of the scheduler.
    pub listen: ListenOptions,
    /// `--worker-port` if it names several: the first that is free is taken.
    pub listen_ports: Vec<u16>,
    /// `--contact-address`: announced instead of the address listened on.
    pub contact_address: Option<String>,
    /// TLS files and rules; see [`Config::worker_security`].
    pub security: Security,
    /// `--local-directory`, which exists.
    pub local_directory: PathBuf,
    /// `--death-timeout`: the scheduler has to be found in this time.
    pub death_timeout: Option<Duration>,
    /// Time between heartbeats until the scheduler says another one.
    pub heartbeat_interval: Duration,
    /// `--lifetime` and what belongs to it.
    pub lifetime: Option<Lifetime>,
    /// Address of the nanny that watches this process.
    pub nanny: Option<String>,
    /// Ports of other servers of this process by name: `dashboard`.
    pub services: Map,
    /// Checks the core's state after every event, for tests
    /// (`distributed.worker.validate`).
    pub validate: bool,
    /// Dask's configuration.
    pub config: Config,
}

/// When a worker leaves by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// `--lifetime`.
    pub duration: Duration,
    /// `--lifetime-stagger`: shorter or longer by at most this much, at random.
    pub stagger: Duration,
    /// `--lifetime-restart`: the nanny starts another one.
    pub restart: bool,
}

impl WorkerOptions {
    /// A worker with one thread and Dask's defaults, or what the configuration says.
    ///
    /// # Errors
    /// A configuration value that is wrong.
    pub fn new(
        scheduler: impl Into<String>,
        local_directory: impl Into<PathBuf>,
        config: Config,
    ) -> Result<Self, ConfigError> {
        let lifetime = config.optional_duration("distributed.worker.lifetime.duration")?;
        let lifetime = match lifetime {
            Some(duration) => Some(Lifetime {
                duration,
                stagger: config.duration("distributed.worker.lifetime.stagger")?,
                restart: config.bool("distributed.worker.lifetime.restart")?,
            }),
            None => None,
        };
        Ok(Self {
            scheduler: scheduler.into(),
            name: None,
            nthreads: 1,
            memory_limit: None,
            resources: resources(&config)?,
            listen: ListenOptions::default(),
            listen_ports: Vec::new(),
            contact_address: None,
            security: config.worker_security(None, None, None)?,
            local_directory: local_directory.into(),
            death_timeout: None,
            // Stock's default, which no key configures.
            heartbeat_interval: Duration::from_secs(1),
            lifetime,
            nanny: None,
            services: Map::new(),
            validate: config.bool("distributed.worker.validate")?,
            config,
        })
    }
}

fn resources(config: &Config) -> Result<Vec<(Arc<str>, f64)>, ConfigError> {
    const KEY: &str = "distributed.worker.resources";
    let wrong = || config.invalid(KEY, "expected amounts by name");
    let amount = |value: &config::Value| match value {
        config::Value::Int(amount) => Some(*amount as f64),
        config::Value::Float(amount) => Some(*amount),
        config::Value::Null
        | config::Value::Bool(_)
        | config::Value::Str(_)
        | config::Value::List(_)
        | config::Value::Map(_) => None,
    };
    match config.get(KEY) {
        None | Some(config::Value::Null) => Ok(Vec::new()),
        Some(config::Value::Map(resources)) => resources
            .iter()
            .map(|(name, value)| Some((Arc::from(&**name), amount(value)?)))
            .collect::<Option<_>>()
            .ok_or_else(wrong),
        Some(_) => Err(wrong()),
    }
}
