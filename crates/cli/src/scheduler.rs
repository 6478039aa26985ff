//! `oxidask scheduler`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use oxidask_http::{Options as PageOptions, Routes, Tls, WebsocketOrigins};
use oxidask_server::config::{Config, Inputs, ServerConfig, Value};
use oxidask_server::logging::{self, Logs};
use oxidask_server::options::{
    DashboardOptions, ListenOptions, PythonCommand, SchedulerOptions, TlsSource,
};
use oxidask_server::scheduler::{self, Handle};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::arguments::SchedulerArguments;
use crate::files::PublishedFile;
use crate::guest::{Home, Orders};
use crate::pages::Pages;
use crate::signals::Signals;
use crate::{json, limits, link};

/// Target, that is logger, of everything that stock's scheduler logs.
const LOGGER: &str = "distributed.scheduler";

/// Time that connections get to finish after everything else is done.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs a scheduler until it closes.
pub(crate) fn run(arguments: SchedulerArguments, python: PythonCommand) -> anyhow::Result<()> {
    let deprecated = deprecated_options(&arguments);
    let options = options(arguments, python, Inputs::from_process)?;
    let server = options.config.server()?;
    let logs = logging::init(&options.config)?;
    for option in deprecated {
        warn!(target: LOGGER, "The option '{option}' is deprecated and has no effect");
    }
    limits::raise_open_files();
    limits::return_memory();
    let pid_file = match &options.pid_file {
        Some(path) => Some(publish(path, std::process::id().to_string().as_bytes())?),
        None => None,
    };
    info!(target: LOGGER, "{}", "-".repeat(47));
    info!(target: LOGGER, "{}", "-".repeat(47));
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let asker = Asker::Signals(Signals::new()?);
        serve(&options, &server, logs, asker, |_| ()).await
    });
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    drop(pid_file);
    info!(target: LOGGER, "End scheduler");
    result
}

/// As [`run`], in a process that is somebody else's.
pub(crate) fn run_as_guest(
    arguments: SchedulerArguments,
    home: Home<'_>,
    orders: Orders,
) -> anyhow::Result<()> {
    let mut options = options(arguments, home.python, |_| home.inputs)?;
    options.graph_threads = Some(home.graph_threads);
    let server = options.config.server()?;
    let logs = logging::init_within(&options.config, home.log)?;
    let runtime = runtime()?;
    let asker = Asker::Host(orders);
    let result = runtime.block_on(serve(&options, &server, logs, asker, home.running));
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    result
}

/// One thread for connections and core: a message is handled where it was read, without
/// waking another thread. Long work (ordering) has threads of its own.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the scheduler's event loop")
}

/// Who may ask a scheduler to close.
enum Asker {
    Signals(Signals),
    Host(Orders),
}

/// How a scheduler is asked to close.
struct Asked {
    who: String,
    reason: String,
    /// To be asked again means to hurry.
    may_hurry: bool,
}

impl Asker {
    /// Cancel safe.
    async fn next(&mut self) -> Asked {
        match self {
            Self::Signals(signals) => {
                let received = signals.next().await;
                info!(
                    target: "distributed._signals",
                    "Received signal {} ({})", received.name, received.number
                );
                Asked {
                    who: received.name.to_owned(),
                    reason: format!("signal-{}", received.number),
                    may_hurry: true,
                }
            }
            Self::Host(orders) => Asked {
                who: "its process".to_owned(),
                reason: orders.next().await.reason,
                may_hurry: false,
            },
        }
    }
}

/// From the first listener to the last goodbye.
async fn serve(
    options: &SchedulerOptions,
    server: &ServerConfig,
    logs: Logs,
    mut asker: Asker,
    running: impl FnOnce(&str),
) -> anyhow::Result<()> {
    let dashboard: Vec<(Option<String>, u16)> = options
        .dashboard
        .addresses
        .iter()
        .map(|address| (address.host.clone(), address.port))
        .collect();
    let http = oxidask_http::bind(&dashboard).await?;
    for warning in &http.warnings {
        warn!(target: LOGGER, "{warning}");
    }
    let tls = match &server.dashboard_tls {
        Some(files) => Some(Tls::from_files(&files.cert, files.key.as_deref())?),
        None => None,
    };
    let handle = scheduler::start(options, logs, http.port())
        .await
        .map_err(|error| with_hint(error.into()))?;
    tokio::select! {
        imported = handle.import_preloads() => {
            imported.map_err(|text| anyhow!("cannot preload: {text}"))?;
        }
        asked = asker.next() => bail!("interrupted by {} while preloading", asked.who),
    }
    let address = handle.address().to_owned();
    announce(&handle, server, http.port());

    let router = oxidask_http::router(
        Arc::new(Pages::new(handle.info(), &options.config)?),
        page_options(options, server),
    );
    let (stop_http, http_stopped) = oneshot::channel::<()>();
    let pages = tokio::spawn(http.serve(router, tls, async {
        // Also ends when the sender is dropped.
        let _ = http_stopped.await;
    }));
    let scheduler_file = match &options.scheduler_file {
        Some(path) => match handle.info().identity().await {
            Some(identity) => {
                let content = serde_json::to_vec_pretty(&json::from_map(&identity))
                    .context("cannot describe the scheduler as JSON")?;
                Some(publish(path, &content)?)
            }
            // It was asked to close before it could be described.
            None => None,
        },
        None => None,
    };

    let close = handle.closer();
    tokio::select! {
        started = handle.start_preloads() => {
            started.map_err(|text| anyhow!("cannot start preloads: {text}"))?;
        }
        asked = asker.next() => bail!("interrupted by {} while preloading", asked.who),
    }
    running(&address);
    let mut closed = std::pin::pin!(handle.wait());
    let mut is_asked = false;
    loop {
        tokio::select! {
            _ = &mut closed => break,
            asked = asker.next() => {
                if is_asked && asked.may_hurry {
                    // Asked twice: the files are removed, nothing else is waited for.
                    bail!("interrupted while closing");
                }
                is_asked = true;
                close(&asked.reason);
            }
        }
    }
    drop(stop_http);
    pages.await.context("the HTTP server panicked")?;
    drop(scheduler_file);
    info!(target: LOGGER, "Stopped scheduler at '{address}'");
    Ok(())
}

/// Adds what to do about a port that is taken.
fn with_hint(error: anyhow::Error) -> anyhow::Error {
    let is_taken = error.chain().any(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::AddrInUse)
    });
    if is_taken {
        let hint = "another scheduler may be running; --port chooses another port, --port 0 any";
        return anyhow!("{error:#}\n\nhint: {hint}");
    }
    error
}

/// Logs where the scheduler is, in the words that others look for.
fn announce(handle: &Handle, server: &ServerConfig, dashboard_port: Option<u16>) {
    for address in handle.addresses() {
        info!(target: LOGGER, "  Scheduler at: {address:>25}");
    }
    if let Some(port) = dashboard_port {
        let host = handle
            .addresses()
            .last()
            .map_or("", |address| link::host(address));
        let scheme = if server.dashboard_tls.is_some() {
            "https"
        } else {
            "http"
        };
        let port = port.to_string();
        let known = [("scheme", scheme), ("host", host), ("port", port.as_str())];
        let environment = |name: &str| std::env::var(name).ok();
        let link = link::format(&server.dashboard_link, &known, environment);
        let link = link.unwrap_or_else(|unknown| {
            warn!(target: LOGGER, "Failed to format dashboard link, unknown value: '{unknown}'");
            format!(":{port}")
        });
        info!(target: LOGGER, "{:>11} at:  {link:>25}", "dashboard");
    }
}

fn page_options(options: &SchedulerOptions, server: &ServerConfig) -> PageOptions {
    let routes = Routes::from_modules(&server.http_routes);
    for module in &routes.unknown {
        warn!(
            target: LOGGER,
            "Ignoring `{module}` in `distributed.scheduler.http.routes`: it is Python, and there is \
             none in this scheduler"
        );
    }
    PageOptions {
        prefix: options.dashboard.prefix.clone(),
        dashboard: options.dashboard.enabled,
        routes,
        prometheus_namespace: server.prometheus_namespace.clone(),
        websocket_origins: WebsocketOrigins::new(&server.websocket_origins),
    }
}

/// Command line and configuration together.
pub(crate) fn options(
    arguments: SchedulerArguments,
    python: PythonCommand,
    inputs: impl FnOnce(&[PathBuf]) -> Inputs,
) -> anyhow::Result<SchedulerOptions> {
    let python = match arguments.python {
        Some(executable) => {
            let python = PythonCommand::new(executable);
            if python.locate().is_none() {
                bail!(
                    "cannot find the interpreter `{}` of --python",
                    python.executable.display()
                );
            }
            python
        }
        None => python,
    };
    let mut config = Config::load(&inputs(&python.prefixes))?;
    if let Some(timeout) = non_empty(arguments.idle_timeout) {
        let key = "distributed.scheduler.idle-timeout";
        config = config.with("--idle-timeout", &[(key, Value::Str(timeout))]);
    }
    let security = config.security(
        pem("--tls-ca-file", arguments.tls_ca_file)?,
        pem("--tls-cert", arguments.tls_cert)?,
        pem("--tls-key", arguments.tls_key)?,
    )?;
    let dashboard = DashboardOptions {
        enabled: !arguments.no_dashboard,
        addresses: DashboardOptions::parse_addresses(&arguments.dashboard_address)?,
        prefix: arguments.dashboard_prefix.trim_matches('/').to_owned(),
    };
    Ok(SchedulerOptions {
        listen: ListenOptions::from_arguments(
            arguments.host.as_deref(),
            arguments.port.as_deref(),
            arguments.protocol.as_deref(),
            arguments.interface.as_deref(),
        )?,
        contact_address: config.optional_text("distributed.scheduler.contact-address")?,
        security,
        dashboard,
        scheduler_file: arguments
            .scheduler_file
            .filter(|path| !path.as_os_str().is_empty()),
        pid_file: arguments
            .pid_file
            .filter(|path| !path.as_os_str().is_empty()),
        idle_timeout: config.optional_duration("distributed.scheduler.idle-timeout")?,
        preload: arguments.preload,
        preload_argv: arguments.preload_argv,
        python,
        graph_threads: None,
        config,
    })
}

pub(crate) fn non_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// A PEM file that must be there, as an absolute path.
pub(crate) fn pem(option: &str, path: Option<PathBuf>) -> anyhow::Result<Option<TlsSource>> {
    path.map(|path| {
        path.canonicalize()
            .map(TlsSource::File)
            .with_context(|| format!("cannot find the file `{}` of {option}", path.display()))
    })
    .transpose()
}

pub(crate) fn publish(path: &Path, content: &[u8]) -> anyhow::Result<PublishedFile> {
    PublishedFile::write(path, content)
        .map_err(|error| anyhow!("cannot write `{}`: {error}", path.display()))
}

fn deprecated_options(arguments: &SchedulerArguments) -> Vec<&'static str> {
    let mut given = Vec::new();
    if arguments.show || arguments.no_show {
        given.push("show");
    }
    if arguments.use_xheaders.is_some() {
        given.push("use_xheaders");
    }
    given
}
