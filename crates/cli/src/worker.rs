//! `oxidask worker`: nannies with worker processes, or one worker in this process.

mod command;
mod pages;
mod plan;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures_util::future::{join_all, try_join_all};
use oxidask_http::{Bound, Tls, WorkerOptions as PageOptions, WorkerRoutes, worker_router};
use oxidask_server::config::{Config, Inputs, Value as Setting, parse_timedelta};
use oxidask_server::local_directory::{self, LocalDirectory};
use oxidask_server::logging::{self, Logs};
use oxidask_server::nanny::{self, Control, NannyHandle, NannyOptions, Order};
use oxidask_server::options::{DashboardOptions, ListenOptions, PythonCommand, Security};
use oxidask_server::system;
use oxidask_server::worker::{
    self, ExecutorFactory, ExecutorSettings, Handle, StartError, WorkerOptions,
};
use oxidask_wire::map;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use crate::arguments::WorkerArguments;
use crate::guest::{Home, Orders};
use crate::limits;
use crate::scheduler::{non_empty, pem, publish};
use crate::signals::{Received, Signals};

use plan::{Machine, Plan};

/// Target, that is logger, of what stock's `dask worker` says.
const LOGGER: &str = "distributed.dask_worker";

/// How long a nanny's worker may take after a signal, as in stock.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two looks for the scheduler file, as in stock.
const FILE_INTERVAL: Duration = Duration::from_millis(100);

/// Time that connections get to finish after everything else is done.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a worker whose nanny has died may take to close.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs workers until they close. Returns the exit status.
pub(crate) fn run(
    arguments: &WorkerArguments,
    given: &[OsString],
    python: &PythonCommand,
    executors: &dyn ExecutorFactory,
) -> anyhow::Result<i32> {
    let config = configuration(arguments, &Inputs::from_process(&python.prefixes))?;
    let logs = logging::init(&config)?;
    if arguments.dashboard_prefix.is_some() {
        warn!(target: LOGGER, "The option 'dashboard_prefix' is deprecated and has no effect");
    }
    if !command::is_own_class(&arguments.worker_class) {
        let mut stock = command::stock(python, given);
        warn!(
            target: LOGGER,
            "Worker class `{}` is not of Oxidask: starting stock's `dask worker`",
            arguments.worker_class
        );
        // Only returns if there is no such program.
        let error = stock.exec();
        bail!(
            "cannot start stock's worker with `{}`: {error}",
            python.executable.display()
        );
    }
    let plan = match plan::plan(arguments, machine()) {
        Ok(plan) => plan,
        Err(reason) => return refuse(&reason),
    };
    if let Some(warning) = &plan.warning {
        warn!(target: "distributed.worker.memory", "{warning}");
    }
    let scheduler = scheduler(arguments, &config)?;
    if let Scheduler::Address(address) = &scheduler
        && address.starts_with("inproc://")
    {
        bail!("cannot connect to `{address}`: it cannot be reached from another process");
    }
    limits::raise_open_files();
    limits::return_memory();
    let process = Process {
        security: security(arguments, &config)?,
        death_timeout: death_timeout(arguments)?,
        arguments,
        python,
        plan,
        config,
        logs,
        scheduler,
        is_guest: false,
    };
    let pid_file = match non_empty_path(arguments.pid_file.as_deref()) {
        Some(path) => Some(publish(path, std::process::id().to_string().as_bytes())?),
        None => None,
    };
    let program = executors.command(python);
    let is_worker = arguments.no_nanny;
    let mut runtime = if is_worker {
        // One thread goes on with heartbeats while the other is busy with a transfer.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(2).thread_name("oxidask-worker");
        runtime
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = runtime
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let result = runtime.block_on(async {
        if is_worker {
            let asker = match &arguments.nanny_address {
                Some(_) => Asker::of_nanny()?,
                None => Asker::Signals(Signals::new()?),
            };
            process.work(executors, asker, |_| ()).await
        } else {
            process.watch(program).await
        }
    });
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    drop(pid_file);
    if arguments.nanny_address.is_none() {
        info!(target: LOGGER, "End worker");
    }
    result
}

/// Runs one worker in a process that is somebody else's.
pub(crate) fn run_as_guest(
    arguments: &WorkerArguments,
    home: Home<'_>,
    orders: Orders,
) -> anyhow::Result<()> {
    let config = configuration(arguments, &home.inputs)?;
    let logs = logging::init_within(&config, home.log)?;
    let plan = plan::plan(arguments, machine()).map_err(|reason| anyhow!(reason))?;
    let process = Process {
        security: security(arguments, &config)?,
        death_timeout: death_timeout(arguments)?,
        scheduler: scheduler(arguments, &config)?,
        arguments,
        python: &home.python,
        plan,
        config,
        logs,
        is_guest: true,
    };
    // Two as in a process of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("oxidask-worker")
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let work = process.work(home.executors, Asker::Host(orders), home.running);
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    result.map(|_| ())
}

fn machine() -> Machine {
    Machine {
        cpu_count: system::cpu_count(),
        memory_limit: system::memory_limit(),
    }
}

/// What `dask worker` says when it does not like its options.
fn refuse(reason: &str) -> anyhow::Result<i32> {
    error!(target: LOGGER, "Failed to launch worker. {reason}");
    Ok(1)
}

/// Dask's configuration, and on top what the command line says of a worker's life.
fn configuration(arguments: &WorkerArguments, inputs: &Inputs) -> anyhow::Result<Config> {
    let mut config = Config::load(inputs)?;
    let lifetime = "distributed.worker.lifetime";
    let options: [(&'static str, _, _); 2] = [
        ("--lifetime", "duration", &arguments.lifetime),
        ("--lifetime-stagger", "stagger", &arguments.lifetime_stagger),
    ];
    for (option, name, value) in options {
        if let Some(value) = non_empty(value.clone()) {
            config = config.with(
                option,
                &[(&format!("{lifetime}.{name}"), Setting::Str(value))],
            );
        }
    }
    if arguments.lifetime_restart || arguments.no_lifetime_restart {
        let restart = Setting::Bool(arguments.lifetime_restart);
        config = config.with(
            "--lifetime-restart",
            &[(&format!("{lifetime}.restart"), restart)],
        );
    }
    Ok(config)
}

fn security(arguments: &WorkerArguments, config: &Config) -> anyhow::Result<Security> {
    let mut security = config.worker_security(
        pem("--tls-ca-file", arguments.tls_ca_file.clone())?,
        pem("--tls-cert", arguments.tls_cert.clone())?,
        pem("--tls-key", arguments.tls_key.clone())?,
    )?;
    security.server_name = non_empty(arguments.scheduler_sni.clone());
    Ok(security)
}

fn death_timeout(arguments: &WorkerArguments) -> anyhow::Result<Option<Duration>> {
    let Some(text) = non_empty(arguments.death_timeout.clone()) else {
        return Ok(None);
    };
    let invalid = || anyhow!("invalid --death-timeout `{text}`: expected a duration such as `60s`");
    let seconds = parse_timedelta(&Setting::Str(text.clone()), "seconds").map_err(|_| invalid())?;
    let timeout = Duration::try_from_secs_f64(seconds).map_err(|_| invalid())?;
    // Python takes 0 for none.
    Ok((!timeout.is_zero()).then_some(timeout))
}

/// Where the address of the scheduler is to be found.
#[derive(Clone, Debug)]
enum Scheduler {
    Address(String),
    File(std::path::PathBuf),
}

fn scheduler(arguments: &WorkerArguments, config: &Config) -> anyhow::Result<Scheduler> {
    if let Some(file) = non_empty_path(arguments.scheduler_file.as_deref()) {
        return Ok(Scheduler::File(file.to_owned()));
    }
    let given = non_empty(arguments.scheduler.clone());
    let address = match given {
        Some(address) => Some(address),
        None => non_empty(config.optional_text("scheduler-address")?),
    };
    address.map(Scheduler::Address).ok_or_else(|| {
        anyhow!(
            "Need to provide scheduler address like `dask worker SCHEDULER_ADDRESS:8786`\n\nhint: \
             or --scheduler-file, or the environment variable DASK_SCHEDULER_ADDRESS"
        )
    })
}

fn non_empty_path(path: Option<&Path>) -> Option<&Path> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// Everything that this process was started with.
struct Process<'a> {
    arguments: &'a WorkerArguments,
    python: &'a PythonCommand,
    plan: Plan,
    config: Config,
    security: Security,
    death_timeout: Option<Duration>,
    scheduler: Scheduler,
    logs: Logs,
    /// The process is somebody else's.
    is_guest: bool,
}

impl Process<'_> {
    /// Waits for the scheduler file, if it is to be found there. Same as
    /// `json_load_robust` in distributed.
    async fn scheduler_address(&self) -> Result<String, StartError> {
        let path = match &self.scheduler {
            Scheduler::Address(address) => return Ok(address.clone()),
            Scheduler::File(path) => path,
        };
        let read = async {
            loop {
                let address = std::fs::read(path).ok().and_then(|content| {
                    let identity: serde_json::Value = serde_json::from_slice(&content).ok()?;
                    Some(identity["address"].as_str()?.to_owned())
                });
                // Not there yet, or not written to its end.
                match address {
                    Some(address) => return address,
                    None => tokio::time::sleep(FILE_INTERVAL).await,
                }
            }
        };
        match self.death_timeout {
            Some(timeout) => {
                tokio::time::timeout(timeout, read)
                    .await
                    .map_err(|_| StartError::DeathTimeout {
                        scheduler: path.display().to_string(),
                        timeout,
                    })
            }
            None => Ok(read.await),
        }
    }

    /// Runs nannies, each of which runs a worker by `program`.
    async fn watch(&self, program: Vec<OsString>) -> anyhow::Result<i32> {
        let mut signals = Signals::new()?;
        let scheduler = tokio::select! {
            scheduler = self.scheduler_address() => scheduler,
            received = signals.next() => {
                log_signal(&received);
                return Ok(0);
            }
        };
        let scheduler = match scheduler {
            Ok(scheduler) => scheduler,
            Err(StartError::DeathTimeout { .. }) => return Ok(timed_out()),
            Err(error) => return Err(error.into()),
        };
        let mut nannies = Vec::new();
        for number in 0..self.plan.workers.len() {
            let options = self.nanny_options(&scheduler, &program, number)?;
            match nanny::spawn(options, self.logs.clone()).await {
                Ok(nanny) => nannies.push(nanny),
                Err(error) => {
                    close_all(&nannies, "nanny-start-failed").await;
                    return Err(error.into());
                }
            }
        }
        let failed = tokio::select! {
            joined = try_join_all(nannies.iter().map(NannyHandle::join)) => joined.err(),
            received = signals.next() => {
                log_signal(&received);
                return self.close_after_signal(&nannies, &received, &mut signals).await;
            }
        };
        if let Some(error) = failed {
            tokio::select! {
                () = close_all(&nannies, "nanny-start-failed") => {}
                _ = signals.next() => bail!("interrupted while closing"),
            }
            if let StartError::DeathTimeout { .. } = error {
                return Ok(timed_out());
            }
            return Err(error.into());
        }
        let addresses: Vec<&str> = nannies.iter().map(NannyHandle::address).collect();
        let _announced = self.announce(&json!({"nannies": addresses}))?;
        tokio::select! {
            _ = join_all(nannies.iter().map(NannyHandle::closed)) => Ok(0),
            received = signals.next() => {
                log_signal(&received);
                self.close_after_signal(&nannies, &received, &mut signals).await
            }
        }
    }

    async fn close_after_signal(
        &self,
        nannies: &[NannyHandle],
        received: &Received,
        signals: &mut Signals,
    ) -> anyhow::Result<i32> {
        let reason = format!("signal-{}", received.number);
        for nanny in nannies {
            nanny.close(&reason, SIGNAL_TIMEOUT);
        }
        tokio::select! {
            _ = join_all(nannies.iter().map(NannyHandle::closed)) => Ok(0),
            // Asked twice: the workers are killed as this process ends.
            _ = signals.next() => bail!("interrupted while closing"),
        }
    }

    fn nanny_options(
        &self,
        scheduler: &str,
        program: &[OsString],
        number: usize,
    ) -> anyhow::Result<NannyOptions> {
        let preload = match &self.arguments.preload_nanny[..] {
            [] => self.config.texts("distributed.nanny.preload")?,
            given => given.to_vec(),
        };
        let worker = &self.plan.workers[number];
        let child = command::Child {
            scheduler,
            name: &worker.name,
            ports: &worker.ports,
            nthreads: self.plan.nthreads,
            memory_limit: self.plan.memory_limit,
        };
        Ok(NannyOptions {
            scheduler: scheduler.to_owned(),
            listen: self.listen(),
            ports: worker.nanny_ports.clone(),
            security: self.security.clone(),
            program: program.to_vec(),
            arguments: command::child(self.arguments, &child),
            python: self.python.executable.clone(),
            preload,
            preload_argv: self.config.texts("distributed.nanny.preload-argv")?,
            name: worker.name.clone(),
            nthreads: self.plan.nthreads,
            workspace: self.workspace()?,
            memory_limit: self.plan.memory_limit,
            death_timeout: self.death_timeout,
            config: self.config.clone(),
        })
    }

    fn workspace(&self) -> anyhow::Result<std::path::PathBuf> {
        let given = non_empty_path(self.arguments.local_directory.as_deref());
        Ok(local_directory::workspace(given, &self.config)?)
    }

    fn listen(&self) -> ListenOptions {
        let arguments = self.arguments;
        ListenOptions {
            host: non_empty(self.plan.host.clone()),
            port: None,
            protocol: non_empty(arguments.protocol.clone()),
            interface: non_empty(arguments.interface.clone()),
        }
    }

    /// Runs a worker in this process.
    async fn work(
        &self,
        executors: &dyn ExecutorFactory,
        mut asker: Asker,
        running: impl FnOnce(&str),
    ) -> anyhow::Result<i32> {
        let started = tokio::select! {
            started = self.start_worker(executors) => started,
            asked = asker.next() => {
                info!(target: "distributed.worker", "Closed while starting. Reason: {}", asked.reason);
                return Ok(asked.exit_status);
            }
        };
        let Worker {
            handle,
            directory,
            stop_pages,
        } = match started {
            Ok(worker) => worker,
            Err(error) => {
                let timed_out =
                    matches!(error.downcast_ref(), Some(StartError::DeathTimeout { .. }));
                asker.failed(&format!("{error:#}"), timed_out).await;
                if timed_out && !self.is_guest {
                    return Ok(self::timed_out());
                }
                return Err(error);
            }
        };
        asker.running(handle.address(), directory.path()).await;
        running(handle.address());
        let announced = self.announce(&json!({"worker": handle.address()}))?;
        let stop = handle.stopper();
        let mut closed = std::pin::pin!(handle.wait());
        let mut exit_status = 0;
        let mut is_asked = false;
        loop {
            tokio::select! {
                _ = &mut closed => break,
                asked = asker.next(), if !is_asked || asker.may_hurry() => {
                    if is_asked {
                        bail!("interrupted while closing");
                    }
                    is_asked = true;
                    exit_status = asked.exit_status;
                    stop(&asked.reason, asked.executor_wait);
                    if asked.exit_status != 0 {
                        // Nobody else would end a process whose tasks hang.
                        tokio::spawn(async {
                            tokio::time::sleep(ABANDONED_TIMEOUT).await;
                            nanny::end_process();
                        });
                    }
                }
            }
        }
        drop(announced);
        drop(stop_pages);
        drop(directory);
        if let Asker::Nanny(control) = &mut asker {
            info!(target: "distributed.nanny", "Worker closed");
            // As in `running`.
            let _ = control.closed().await;
        }
        Ok(exit_status)
    }

    /// Prepares and starts the worker, and its pages.
    async fn start_worker(&self, executors: &dyn ExecutorFactory) -> anyhow::Result<Worker> {
        let (arguments, plan, config) = (self.arguments, &self.plan, &self.config);
        let scheduler = self.scheduler_address().await?;
        let directory = LocalDirectory::create(&self.workspace()?, config)?;
        let http = self.bind_pages().await?;
        let mut options = WorkerOptions::new(&*scheduler, directory.path(), config.clone())?;
        let worker = &plan.workers[0];
        options.name = Some(worker.name.clone()).filter(|name| !name.is_nil());
        options.nthreads = plan.nthreads;
        options.memory_limit = plan.memory_limit;
        if let Some(resources) = &plan.resources {
            options.resources.clone_from(resources);
        }
        options.listen = self.listen();
        options.listen_ports.clone_from(&worker.ports);
        options.contact_address.clone_from(&plan.contact_address);
        options.security = self.security.clone();
        options.death_timeout = self.death_timeout;
        options.nanny.clone_from(&arguments.nanny_address);
        let services = http.port().map(|port| map! { "dashboard" => port });
        options.services = services.unwrap_or_default();
        let executor = executors.create(self.executor_settings(&options)?);
        let executor = executor.map_err(|text| anyhow!("cannot make ready for tasks: {text}"))?;
        let handle = worker::start(options, executor, self.logs.clone()).await?;
        let stop_pages = self.serve_pages(http, &handle)?;
        Ok(Worker {
            handle,
            directory,
            stop_pages,
        })
    }

    fn executor_settings(&self, options: &WorkerOptions) -> anyhow::Result<ExecutorSettings> {
        let or_configured = |given: &[String], key: &str| match given {
            [] => self.config.texts(key),
            given => Ok(given.to_vec()),
        };
        let arguments = self.arguments;
        Ok(ExecutorSettings {
            nthreads: options.nthreads,
            name: options.name.clone().unwrap_or_default(),
            local_directory: options.local_directory.clone(),
            scheduler_address: options.scheduler.clone(),
            preload: or_configured(&arguments.preload, "distributed.worker.preload")?,
            preload_argv: or_configured(
                &arguments.preload_argv,
                "distributed.worker.preload-argv",
            )?,
            resources: options.resources.clone(),
            memory_limit: options.memory_limit,
            nanny: options.nanny.clone(),
            security: options.security.clone(),
            is_guest: self.is_guest,
            passes_references: options.scheduler.starts_with("inproc://"),
            config: options.config.clone(),
        })
    }

    /// The sockets of the worker's pages.
    async fn bind_pages(&self) -> anyhow::Result<Bound> {
        let addresses = DashboardOptions::parse_addresses(&self.arguments.dashboard_address)?;
        let addresses: Vec<_> = addresses
            .into_iter()
            .map(|address| (address.host, address.port))
            .collect();
        let http = oxidask_http::bind(&addresses).await?;
        for warning in &http.warnings {
            warn!(target: "distributed.worker", "{warning}");
        }
        Ok(http)
    }

    /// Serves pages until what is returned is dropped.
    fn serve_pages(&self, http: Bound, worker: &Handle) -> anyhow::Result<oneshot::Sender<()>> {
        let server = self.config.server()?;
        let tls = match &server.dashboard_tls {
            Some(files) => Some(Tls::from_files(&files.cert, files.key.as_deref())?),
            None => None,
        };
        let routes = self.config.texts("distributed.worker.http.routes")?;
        let routes = WorkerRoutes::from_modules(&routes);
        for module in &routes.unknown {
            warn!(
                target: "distributed.worker",
                "Ignoring `{module}` in `distributed.worker.http.routes`: it is Python, and these \
                 pages are not"
            );
        }
        let options = PageOptions {
            prefix: String::new(),
            routes,
            prometheus_namespace: server.prometheus_namespace,
        };
        let router = worker_router(Arc::new(pages::Pages(worker.figures())), &options);
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(http.serve(router, tls, async {
            // Also ends when the sender is dropped.
            let _ = stopped.await;
        }));
        Ok(stop)
    }

    fn announce(
        &self,
        content: &serde_json::Value,
    ) -> anyhow::Result<Option<crate::files::PublishedFile>> {
        let path = non_empty_path(self.arguments.announce.as_deref());
        path.map(|path| publish(path, content.to_string().as_bytes()))
            .transpose()
    }
}

/// A worker that runs in this process.
struct Worker {
    handle: Handle,
    directory: LocalDirectory,
    stop_pages: oneshot::Sender<()>,
}

/// Who may ask a worker to close.
enum Asker {
    /// Anybody, of a worker on its own.
    Signals(Signals),
    /// The nanny. An interrupt from the keyboard reaches it as well, and it asks.
    Nanny(Control),
    /// The process of which the worker is a guest.
    Host(Orders),
}

/// How a worker is asked to close.
struct Asked {
    reason: String,
    executor_wait: bool,
    /// Of the process.
    exit_status: i32,
}

impl Asker {
    fn of_nanny() -> anyhow::Result<Self> {
        let control = Control::take();
        let control = control.context(
            "--nanny-address is for workers that a nanny starts, not for the command line",
        )?;
        // From now on SIGINT does not end this process, also when nobody listens.
        drop(signal(SignalKind::interrupt()).context("cannot listen for signals")?);
        Ok(Self::Nanny(control))
    }

    /// Cancel safe.
    async fn next(&mut self) -> Asked {
        match self {
            Self::Signals(signals) => {
                let received = signals.next().await;
                log_signal(&received);
                Asked {
                    reason: format!("signal-{}", received.number),
                    executor_wait: false,
                    exit_status: 0,
                }
            }
            Self::Host(orders) => {
                let order = orders.next().await;
                Asked {
                    reason: order.reason,
                    executor_wait: order.executor_wait,
                    exit_status: 0,
                }
            }
            Self::Nanny(control) => match control.order().await {
                Order::Stop {
                    reason,
                    executor_wait,
                } => Asked {
                    reason,
                    executor_wait,
                    exit_status: 0,
                },
                Order::Abandoned => {
                    error!(target: "distributed.nanny", "The nanny is gone; the worker closes");
                    Asked {
                        reason: "nanny-died".to_owned(),
                        executor_wait: false,
                        exit_status: 1,
                    }
                }
            },
        }
    }

    /// Whether asking again means to hurry.
    fn may_hurry(&self) -> bool {
        matches!(self, Self::Signals(_))
    }

    async fn running(&mut self, address: &str, directory: &Path) {
        if let Self::Nanny(control) = self {
            // A nanny that is gone is noticed by its silence.
            let _ = control.running(address, directory).await;
        }
    }

    async fn failed(&mut self, text: &str, timed_out: bool) {
        if let Self::Nanny(control) = self {
            // As in `running`.
            let _ = control.failed(text, timed_out).await;
        }
    }
}

async fn close_all(nannies: &[NannyHandle], reason: &str) {
    for nanny in nannies {
        nanny.close(reason, SIGNAL_TIMEOUT);
    }
    join_all(nannies.iter().map(NannyHandle::closed)).await;
}

fn log_signal(received: &Received) {
    info!(
        target: "distributed._signals",
        "Received signal {} ({})", received.name, received.number
    );
}

/// The exit status after a timeout, which is all that stock says of it.
fn timed_out() -> i32 {
    info!(target: LOGGER, "Timed out starting worker");
    1
}
