//! The worker process: sockets, streams, values and an executor around the core.
//!
//! ```text
//!            scheduler                     peers, clients, scheduler
//!      stream │      ▲ batches  heartbeats      │ requests
//!             ▼      │              ▲           ▼
//!          stream  outgoing     heartbeat    serve ─► rpc ──► Store
//!             │ Stimulus ▲          │           │ call
//!             └────────► Shell ─► core ◄────────┘
//!                        │ ▲  │ GatherDep
//!                  Task  ▼ │  └─► transfer ─► peers
//!                       Executor
//! ```
//!
//! One task owns the core. It never waits, neither for a socket nor for a task;
//! heartbeats and answers to peers need nothing but it.

mod ahead;
pub(crate) mod args;
pub(crate) mod executor;
pub(crate) mod failure;
mod figures;
mod handle;
mod heartbeat;
mod memory;
mod metrics;
mod monitor;
mod options;
mod outgoing;
mod registration;
pub(crate) mod rpc;
mod serve;
mod settings;
mod shell;
mod spill;
mod status;
mod store;
mod stream;
mod transfer;

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use oxidask_comm::{Address, ConnectionPool, Listener, Options, Scheme};
use oxidask_wire::handshake::{Handshake, NATIVE_VERSION};
use oxidask_wire::{Map, map};
use tokio::task::JoinSet;
use tracing::{error, info};

use crate::config::{ConfigError, format_bytes};
use crate::logging::Logs;
use crate::options::{ListenOptions, OptionsError, Security};

pub use executor::{
    Answer, Datum, Encode, Executed, Executor, ExecutorFactory, ExecutorSettings, Heartbeat, Input,
    Introduction, Object, Outcome, Outgoing, Ran, Received, Request, RunSpec, Scalar, Task,
};
pub use figures::{Figures, FiguresReader};
pub use handle::WorkerHandle;
pub use options::{Lifetime, WorkerOptions};
pub use status::Status;

use registration::Registration;
use settings::{Retry, Settings};
use shell::{Closing, Shell, ShellHandle};

pub(crate) use shell::stimulus_id;

/// Most connections to others that are kept, as in stock's workers.
const CONNECTIONS_MAX: usize = 512;

/// How long connections and the stream may take to end. Stock waits up to 30
/// seconds; what is sent last fits in one batch.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A worker that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Listener options contradict each other.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A configuration value is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be used, or a certificate, or what the scheduler says.
    #[error(transparent)]
    Comm(#[from] oxidask_comm::Error),
    /// The executor cannot run tasks.
    #[error("cannot start the executor: {0}")]
    Executor(String),
    /// The scheduler does not take this worker.
    #[error("unable to connect to scheduler: {message}")]
    Refused {
        /// What it says.
        message: String,
    },
    /// There was no scheduler in the time allowed.
    #[error("cannot register with scheduler `{scheduler}` after {} s", timeout.as_secs_f64())]
    DeathTimeout {
        /// Its address.
        scheduler: String,
        /// `--death-timeout`
        timeout: Duration,
    },
    /// The nanny's preloads cannot be loaded.
    #[error("cannot preload in the nanny: {0}")]
    Preload(String),
    /// The nanny's worker says why it could not start.
    #[error("Nanny failed to start worker process: {0}")]
    Worker(String),
    /// Something closed the worker while it started.
    #[error("the worker was closed while it started")]
    Closed,
}

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    shell: ShellHandle,
    accepting: JoinSet<()>,
    /// Timers, and the reader of the scheduler's stream.
    watching: JoinSet<()>,
    sending: tokio::task::JoinHandle<()>,
}

/// Starts a worker: when this returns, it is registered and runs tasks.
///
/// # Errors
/// See [`StartError`].
pub async fn start(
    options: WorkerOptions,
    executor: Arc<dyn Executor>,
    logs: Logs,
) -> Result<Handle, StartError> {
    let server = options.config.server()?;
    let scheduler = Address::parse(&options.scheduler, default_scheme(&server.default_scheme))?;
    let scheduler = scheduler.resolve().await?;
    let compression = settings::compression(&options.config, "distributed.comm.compression")?;
    let comm = Options {
        handshake: Handshake {
            compression: compression.map(|compression| compression.name().into()),
            native: Some(NATIVE_VERSION),
            ..Handshake::new(PYTHON_VERSION)
        },
        tls: crate::security::load(&options.security)?,
        require_encryption: options.security.require_encryption,
        tcp_timeout: server.tcp_timeout,
        backlog: server.socket_backlog,
        ..Options::default()
    };
    let security = &options.security;
    let listener = listen(
        &options.listen,
        &options.listen_ports,
        security,
        &scheduler,
        &comm,
    );
    let listener = listener.await?;
    let own = own_address(&options, &scheduler, &listener)?;
    let address: Arc<str> = own.to_string().into();
    let outgoing = config_count(&options, "distributed.worker.connections.outgoing")?;
    let config = &options.config;
    let settings = Settings {
        id: format!("Worker-{:016x}", random()),
        core: settings::core(&options, &address)?,
        name: options.name.clone().unwrap_or_else(|| (&address).into()),
        address,
        own,
        scheduler,
        transfer_outgoing_count_limit: outgoing,
        blocked_handlers: config
            .texts("distributed.worker.blocked-handlers")?
            .into_iter()
            .collect(),
        monitor: settings::monitor(config)?,
        memory: settings::memory(config)?,
        retry: Retry {
            count: server.retry_count,
            delay_min: server.retry_delay_min,
            delay_max: server.retry_delay_max,
        },
        connect_timeout: server.connect_timeout,
        logs,
        options,
    };
    let pool = ConnectionPool::new(comm.clone(), server.connect_timeout, CONNECTIONS_MAX);
    let shell = Shell::spawn(settings, pool, executor);
    log_start(&shell.settings, &listener);
    let mut accepting = JoinSet::new();
    accepting.spawn(serve::accept(listener, shell.clone()));

    let starting = join(&shell, &comm);
    let timeout = shell.settings.options.death_timeout;
    let joined = match timeout {
        Some(timeout) => tokio::time::timeout(timeout, starting).await,
        None => Ok(starting.await),
    };
    let joined = joined.unwrap_or_else(|_| {
        Err(StartError::DeathTimeout {
            scheduler: shell.settings.scheduler.to_string(),
            timeout: timeout.unwrap_or_default(),
        })
    });
    let registration = match joined {
        Ok(registration) => registration,
        Err(error) => {
            shell.close("worker-start-failed", false);
            let _ = shell.call(Shell::end_stream).await;
            while accepting.join_next().await.is_some() {}
            shell.executor.close(false).await;
            let _ = shell.call(Shell::end).await;
            return Err(error);
        }
    };
    let watching = watch(&shell, registration.reader, registration.heartbeat_interval);
    Ok(Handle {
        shell,
        accepting,
        watching,
        sending: registration.sending,
    })
}

/// What this side announces as its Python, which nobody acts upon.
pub(crate) const PYTHON_VERSION: [u32; 3] = [3, 11, 0];

fn default_scheme(name: &str) -> Scheme {
    Scheme::from_name(name).unwrap_or(Scheme::Tcp)
}

/// A count, or `None` for `false`: no limit.
fn config_count(options: &WorkerOptions, key: &str) -> Result<Option<usize>, ConfigError> {
    match options.config.get(key) {
        Some(crate::config::Value::Bool(false)) => Ok(None),
        Some(_) | None => options.config.count(key).map(Some),
    }
}

/// A number that differs between processes and between workers of one process.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hash keys are random for every thread and every call.
    let hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.finish()
}

/// Listens where `listen` says, on the first of `ports` that is free. Without any,
/// on its port, or one that the system chooses.
pub(crate) async fn listen(
    listen: &ListenOptions,
    ports: &[u16],
    security: &Security,
    scheduler: &Address,
    comm: &Options,
) -> Result<Listener, StartError> {
    let own = listen.port.unwrap_or_default();
    let ports = if ports.is_empty() { &[own] } else { ports };
    let mut last = None;
    for &port in ports {
        let listen = ListenOptions {
            port: Some(port),
            ..listen.clone()
        };
        let address = listen.address(security, scheduler.scheme.name())?;
        let address = Address::parse(&address, scheduler.scheme)?;
        match Listener::bind(&address, comm.clone()).await {
            Ok(listener) => return Ok(listener),
            Err(error) if ports.len() > 1 && is_in_use(&error) => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.map_or(StartError::Closed, StartError::Comm))
}

fn is_in_use(error: &oxidask_comm::Error) -> bool {
    matches!(
        error,
        oxidask_comm::Error::Listen { source, .. }
            if source.kind() == std::io::ErrorKind::AddrInUse
    )
}

/// What others are told: without a host of its own, the one by which the scheduler
/// is reached.
fn own_address(
    options: &WorkerOptions,
    scheduler: &Address,
    listener: &Listener,
) -> Result<Address, StartError> {
    if let Some(contact) = &options.contact_address {
        return Ok(Address::parse(contact, scheduler.scheme)?);
    }
    let listened = listener.listen_address();
    let towards = scheduler.ip().filter(|_| listened.is_wildcard());
    match towards.and_then(source_ip) {
        Some(ip) => Ok(Address {
            host: ip.to_string(),
            ..listened.clone()
        }),
        None => Ok(listener.contact_address()),
    }
}

/// The own IP from which packets to `ip` go. Sends nothing.
pub(crate) fn source_ip(ip: IpAddr) -> Option<IpAddr> {
    let any = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((ip, 80)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn log_start(settings: &Settings, listener: &Listener) {
    let options = &settings.options;
    info!(target: "distributed.worker", "      Start worker at: {:>26}", settings.address);
    // As stock: its own host, and the port that is listened on.
    let own = &settings.own;
    let listening = Address {
        port: listener.listen_address().port,
        ..own.clone()
    };
    info!(target: "distributed.worker", "         Listening to: {:>26}", listening.to_string());
    if let Some(name) = &options.name {
        let name = match name.as_str() {
            Some(text) => text.to_owned(),
            None => name.as_i64().unwrap_or_default().to_string(),
        };
        info!(target: "distributed.worker", "          Worker name: {name:>26}");
    }
    for (service, port) in &options.services.0 {
        let service = service.as_str().unwrap_or_default();
        let host = own.host.split('/').next().unwrap_or_default();
        let place = format!("{host}:{}", port.as_u64().unwrap_or_default());
        info!(target: "distributed.worker", "  {service:>16} at: {place:>26}");
    }
    info!(target: "distributed.worker", "Waiting to connect to: {:>26}", settings.scheduler.to_string());
    info!(target: "distributed.worker", "{}", "-".repeat(49));
    info!(target: "distributed.worker", "              Threads: {:>26}", options.nthreads);
    if let Some(limit) = options.memory_limit {
        let limit = format_bytes(limit);
        info!(target: "distributed.worker", "               Memory: {limit:>26}");
    }
    let directory = options.local_directory.display();
    info!(target: "distributed.worker", "      Local Directory: {:>26}", directory.to_string());
}

/// Starts the executor, registers, and hands the executor its plug-ins.
async fn join(shell: &ShellHandle, comm: &Options) -> Result<Registration, StartError> {
    let worker = WorkerHandle {
        shell: shell.clone(),
    };
    let introduction = shell.executor.start(worker).await;
    let introduction =
        introduction.map_err(|failure| StartError::Executor(failure.exception_text.to_string()))?;
    let wants_transitions = introduction.wants_transitions;
    let prepared = shell.call(move |shell| {
        shell.core.set_notifies_transitions(wants_transitions);
    });
    prepared.await.map_err(|_| StartError::Closed)?;
    let registration = registration::register(shell, comm, &introduction).await?;
    let added = registration.plugins.iter().map(|(name, plugin)| {
        let args = map! { "plugin" => plugin.detached(), "name" => name.detached() };
        add_plugin(shell, args)
    });
    join_all(added).await;
    info!(target: "distributed.worker", "        Registered to: {:>26}", shell.settings.scheduler.to_string());
    info!(target: "distributed.worker", "{}", "-".repeat(49));
    Ok(registration)
}

/// A plug-in that fails does not keep the worker from running, as in Dask.
async fn add_plugin(shell: &ShellHandle, args: Map) {
    let request = Request {
        op: "plugin-add".into(),
        args,
    };
    if let Some(Err(failure)) = shell.executor.call(request).await {
        let text = &failure.exception_text;
        error!(target: "distributed.worker", "Worker plugin failed to setup: {text}");
    }
}

fn watch(
    shell: &ShellHandle,
    reader: oxidask_comm::Reader,
    heartbeat_interval: Option<Duration>,
) -> JoinSet<()> {
    let options = &shell.settings.options;
    let interval = heartbeat_interval.unwrap_or(options.heartbeat_interval);
    let mut watching = JoinSet::new();
    watching.spawn(stream::serve(shell.clone(), reader));
    watching.spawn(heartbeat::beat(shell.clone(), interval));
    watching.spawn(heartbeat::keep_alive(shell.clone()));
    watching.spawn(heartbeat::monitor(shell.clone()));
    if let Some(lifetime) = options.lifetime {
        watching.spawn(live(shell.clone(), lifetime));
    }
    watching
}

/// Leaves when the time is over.
async fn live(shell: ShellHandle, lifetime: Lifetime) {
    // Between −1 and 1.
    let random = random() as f64 / u64::MAX as f64 * 2.0 - 1.0;
    let seconds = lifetime.duration.as_secs_f64() + random * lifetime.stagger.as_secs_f64();
    let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    tokio::time::sleep(duration).await;
    shell
        .close_gracefully(lifetime.restart, "worker-lifetime-reached")
        .await;
}

impl Handle {
    /// The address that others know it by.
    pub fn address(&self) -> &str {
        &self.shell.settings.address
    }

    /// Reads figures for the worker's pages.
    pub fn figures(&self) -> FiguresReader {
        FiguresReader {
            shell: self.shell.clone(),
        }
    }

    /// Begins the shutdown, for a signal handler for one; [`wait`](Self::wait)
    /// returns once it is done.
    pub fn closer(&self) -> impl Fn(&str) + Send + Sync + use<> {
        let shell = self.shell.clone();
        move |reason| shell.close(reason, true)
    }

    /// As [`closer`](Self::closer), for the nanny, which knows; `executor_wait` waits
    /// for running tasks.
    pub fn stopper(&self) -> impl Fn(&str, bool) + Send + Sync + use<> {
        let shell = self.shell.clone();
        move |reason, executor_wait| {
            shell.close_as(Closing::new(reason, false, executor_wait));
        }
    }

    /// Lets the scheduler move the data away, then begins the shutdown.
    /// `Worker.close_gracefully` in distributed.
    pub fn close_gracefully(&self, reason: &str) -> impl Future<Output = ()> + Send + use<> {
        let shell = self.shell.clone();
        let reason = reason.to_owned();
        async move { shell.close_gracefully(false, &reason).await }
    }

    /// Waits until something asks the worker to close, then says goodbye. Returns
    /// the reason.
    pub async fn wait(mut self) -> Arc<str> {
        let shell = self.shell.clone();
        let Closing {
            reason,
            nanny,
            executor_wait,
            timeout,
        } = shell.closing().await;
        let address = &shell.settings.address;
        info!(target: "distributed.worker", "Stopping worker at {address}. Reason: {reason}");
        if !executor_wait {
            info!(target: "distributed.worker", "Not waiting on executor to close");
        }
        let text = reason.clone();
        let told = shell.call(move |shell| {
            shell.log_closing(&text);
            shell.set_status(Status::Closing);
            shell.transfers.abort_all();
        });
        // Only this function ends the shell.
        let _ = told.await;
        if nanny {
            self.tell_nanny(&reason).await;
        }
        self.watching.abort_all();
        // A task may hold the interpreter, so that nothing of it answers.
        let deadline = tokio::time::Instant::now() + timeout;
        let torn_down = tokio::time::timeout_at(deadline, shell.executor.teardown());
        if torn_down.await.is_err() {
            error!(target: "distributed.worker", "plug-ins and preloads do not end; leaving them");
        }
        shell.pool.close();
        let _ = shell.call(Shell::end_stream).await;
        let ended = async {
            let _ = (&mut self.sending).await;
            while self.accepting.join_next().await.is_some() {}
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, ended).await;
        self.sending.abort();
        let closed = shell.executor.close(executor_wait);
        if tokio::time::timeout_at(deadline, closed).await.is_err() {
            error!(target: "distributed.worker", "tasks still run; leaving them");
        }
        memory::clear(&shell).await;
        let ended = shell.call(|shell| {
            shell.status = Status::Closed;
            shell.end();
        });
        let _ = ended.await;
        reason
    }

    /// So that it does not start another worker.
    async fn tell_nanny(&self, reason: &str) {
        let Some(nanny) = &self.shell.settings.options.nanny else {
            return;
        };
        let told = async {
            let address = Address::parse(nanny, self.shell.settings.scheduler.scheme)?;
            let fields = map! { "reason" => reason };
            self.shell
                .request(&address, "close_gracefully", fields)
                .await
        };
        if let Err(error) = told.await {
            error!(target: "distributed.worker", %error, "the nanny at {nanny} cannot be reached");
        }
    }
}
