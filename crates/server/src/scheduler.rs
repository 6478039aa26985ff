//! The scheduler process: sockets, streams and helpers around the core.
//!
//! ```text
//!  Listener ──► serve ──┬─ rpc ────────────────┐
//!                       ├─ client_stream ──────┤ Input    Instructions
//!                       └─ worker_stream ──────┴──► Shell ──► core ──► outgoing
//!                              │ update-graph                            │
//!                              └──► graph_helper                 BatchedSender per peer
//! ```

mod args;
mod client_stream;
mod config;
mod feed;
pub(crate) mod gather;
mod helper_work;
mod idle;
mod info;
mod liveness;
mod memory_policies;
mod outgoing;
mod peers;
mod plugin_host;
mod plugins;
mod rpc;
mod serve;
mod settings;
mod shell;
mod stream;
mod worker_stream;

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use oxidask_comm::{Address, ConnectionPool, Listener, Options, Scheme};
use oxidask_wire::Map;
use oxidask_wire::handshake::{Handshake, NATIVE_VERSION};
use tokio::task::JoinSet;
use tracing::{error, info};

use crate::config::ConfigError;
use crate::graph_helper;
use crate::logging::Logs;
use crate::options::{OptionsError, SchedulerOptions};
use crate::requests;
use crate::versions::VersionsInfo;

pub use info::{FEED_LENGTH, Happening, Info, Turns, View};
use peers::Peers;
use settings::{Contact, Settings};
use shell::{Shell, ShellHandle};

/// Most bytes that may wait for a worker or client that does not read. Chosen: a
/// graph of a million tasks for one worker fits, a dead peer does not fill the
/// machine.
const STREAM_NBYTES_MAX: usize = 4 << 30;

/// How long streams may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long plug-ins and preloads may take to close.
const PLUGINS_CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A scheduler that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Listener options contradict each other.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A configuration value is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be listened on, or a certificate cannot be used.
    #[error(transparent)]
    Comm(#[from] oxidask_comm::Error),
    /// The HTTP server's address cannot be listened on.
    #[error("cannot listen on any dashboard address")]
    Dashboard(#[source] io::Error),
}

/// A running scheduler.
#[derive(Debug)]
pub struct Handle {
    shell: ShellHandle,
    preload: Option<plugin_host::Preload>,
    addresses: Vec<String>,
    accepting: JoinSet<()>,
    watching: JoinSet<()>,
}

/// Starts a scheduler: when this returns, it accepts connections.
///
/// `dashboard_port` is that of the HTTP server which the caller runs with
/// [`Handle::info`], for `identity`.
///
/// # Errors
///
/// See [`StartError`].
pub async fn start(
    options: &SchedulerOptions,
    logs: Logs,
    dashboard_port: Option<u16>,
) -> Result<Handle, StartError> {
    let server = options.config.server()?;
    let core = config::core(&options.config)?;
    let python = options.python.executable.clone();
    let threads = options.graph_threads.clone();
    let helpers = config::graph_helper(&options.config, python, threads)?;
    let helpers = graph_helper::Pool::start(helpers);
    let settings = Arc::new(Settings {
        core,
        adaptive_target_duration: options
            .config
            .duration("distributed.adaptive.target-duration")?
            .as_secs_f64(),
        rebalance: config::rebalance(&options.config)?,
        memory_policies: config::memory_policies(&options.config)?,
        blocked_handlers: server
            .blocked_handlers
            .iter()
            .cloned()
            .collect::<HashSet<_>>(),
        stream_nbytes_max: STREAM_NBYTES_MAX,
        id: format!("Scheduler-{}", unique_id()),
        logs,
        contact: OnceLock::new(),
        versions: Mutex::new(VersionsInfo::native()),
    });
    let comm = Options {
        handshake: Handshake {
            native: Some(NATIVE_VERSION),
            ..Handshake::new(PYTHON_VERSION)
        },
        tls: crate::security::load(&options.security)?,
        require_encryption: options.security.require_encryption,
        tcp_timeout: server.tcp_timeout,
        backlog: server.socket_backlog,
        ..Options::default()
    };
    let pool = ConnectionPool::new(
        comm.clone(),
        server.connect_timeout,
        crate::limits::connections_max(),
    );
    let shell = Shell::spawn(settings.clone(), Peers::new(pool), helpers.clone());

    let mut listeners = Vec::new();
    for listen in &options.listen {
        let address = listen.address(&options.security, &server.default_scheme)?;
        let address = Address::parse(&address, Scheme::Tcp)?;
        listeners.push(Listener::bind(&address, comm.clone()).await?);
    }
    let addresses: Vec<String> = listeners
        .iter()
        .map(|listener| listener.contact_address().to_string())
        .collect();
    let contact = options
        .contact_address
        .clone()
        .or_else(|| addresses.first().cloned())
        .unwrap_or_default();
    // Nobody else sets it.
    let _ = settings.contact.set(Contact {
        address: contact,
        dashboard_port,
    });

    let preload = config::preload(options, &server)?;
    let host = config::plugin_host(options, &addresses, preload.clone())?;
    shell.host.serve(shell.clone(), host);
    if preload.is_none() {
        shell.set_ready();
    }

    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(listener, shell.clone()));
    }
    let mut watching = JoinSet::new();
    if let Some(timeout) = options.idle_timeout {
        watching.spawn(idle::watch(shell.clone(), timeout));
    }
    if let Some(worker_ttl) = server.worker_ttl {
        watching.spawn(liveness::watch(shell.clone(), worker_ttl));
    }
    if let Some(policies) = settings.memory_policies.clone() {
        watching.spawn(memory_policies::watch(shell.clone(), policies));
    }
    watching.spawn(async move { settings.learn_versions(&helpers).await });
    Ok(Handle {
        shell,
        preload,
        addresses,
        accepting,
        watching,
    })
}

/// What this side announces as its Python, which nobody acts upon: the version
/// whose pickles the helper is known to read.
const PYTHON_VERSION: [u32; 3] = [3, 11, 0];

fn unique_id() -> String {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hash keys are random for every process.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:016x}", hasher.finish())
}

async fn accept(listener: Listener, shell: ShellHandle) {
    let serve = |incoming| serve::serve(incoming, shell.clone());
    let closing = async {
        shell.closing().await;
    };
    let failed = |error| {
        error!(target: "distributed.core", "{error}; the scheduler closes");
        shell.close("listener-failed");
    };
    requests::accept(listener, serve, closing, failed, CLOSE_TIMEOUT).await;
}

impl Handle {
    /// Addresses listened on, in the order of the options.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The address that peers are told.
    pub fn address(&self) -> &str {
        self.shell.settings.address()
    }

    /// Imports what Python the scheduler was told to run: policies of the memory
    /// manager, and the modules of `--preload`.
    ///
    /// # Errors
    ///
    /// What was wrong with a policy, with a module, or with the arguments of its
    /// `dask_setup`.
    pub async fn import_preloads(&self) -> Result<(), String> {
        if let Some(policies) = &self.shell.settings.memory_policies {
            policies.import(&self.shell).await?;
        }
        match &self.preload {
            Some(preload) => self.shell.host.import_preloads(preload).await,
            None => Ok(()),
        }
    }

    /// Runs `dask_setup` of the modules of `--preload`; peers are served once it
    /// has ended. A set-up that fails is logged.
    ///
    /// # Errors
    ///
    /// A plug-in that a module registered does not start.
    pub async fn start_preloads(&self) -> Result<(), String> {
        if self.preload.is_some() {
            self.shell.host.attempt("preload-start", Map::new()).await?;
        }
        self.shell.set_ready();
        Ok(())
    }

    /// Access for pages and metrics.
    pub fn info(&self) -> Info {
        Info::new(self.shell.clone())
    }

    /// Waits until something asks the scheduler to close, then says goodbye to
    /// workers and clients. Returns the reason.
    pub async fn wait(mut self) -> Arc<str> {
        let reason = self.shell.closing().await;
        info!(target: "distributed.scheduler", "Closing scheduler. Reason: {reason}");
        self.shell.host.close(PLUGINS_CLOSE_TIMEOUT).await;
        info!(target: "distributed.scheduler", "Scheduler closing all comms");
        self.watching.abort_all();
        let _ = self
            .shell
            .call(|shell| {
                for link in shell.workers.values() {
                    worker_stream::say_goodbye(link);
                }
                for link in shell.clients.values() {
                    link.sender.close();
                }
            })
            .await;
        let accepted = async { while self.accepting.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, accepted).await;
        reason
    }

    /// Begins the shutdown; [`wait`](Self::wait) returns once it is done.
    pub fn closer(&self) -> impl Fn(&str) + Send + Sync + use<> {
        let shell = self.shell.clone();
        move |reason| shell.close(reason)
    }
}
