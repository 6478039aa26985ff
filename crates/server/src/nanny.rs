//! The nanny: a parent that starts a worker's process, watches it and starts it again.
//! `Nanny` of distributed; its Python, for plugins, is a process of its own.
//!
//! ```text
//!   scheduler ──► serve ──► Shell ─► Core      Event in, Effects out
//!                            │  ▲
//!                    orders  ▼  │ news, signs of life, the end
//!                          Process ◄──control──► the worker (`oxidask worker --no-nanny`)
//!   serve ──► Helper ──► Python, once a plugin or a function comes
//! ```

mod control;
mod core;
mod death;
mod helper;
mod process;
mod serve;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oxidask_comm::{Address, Connection, ConnectionPool, Options, Scheme, connect};
use oxidask_wire::handshake::Handshake;
use oxidask_wire::{Frames, Map, Value, map, message};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::{debug, error, info, warn};

use crate::config::{Config, ConfigError};
use crate::logging::Logs;
use crate::options::{ListenOptions, Security};
use crate::worker::{self, StartError};
use crate::{local_directory, system};

pub use control::{Control, Order, end_process};

use core::{Core, Effect, Event, Limits, Status, Why, Worker};
use death::{Circumstances, Exit};
use helper::{Helper, HelperSettings};
use process::{Launch, News, Obituary, Process};

const LOGGER: &str = "distributed.nanny";

/// Connections to others that are kept: there is the scheduler, and nobody else.
const CONNECTIONS_MAX: usize = 8;

/// How long the scheduler may take to hear that the worker is gone, as in stock.
const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that decides how a nanny is started.
#[derive(Debug, Clone)]
pub struct NannyOptions {
    /// Address of the scheduler.
    pub scheduler: String,
    /// Where to listen. Without a host it is the address by which the scheduler is
    /// reached, without a port the system chooses.
    pub listen: ListenOptions,
    /// `--nanny-port` if it names several: the first that is free is taken.
    pub ports: Vec<u16>,
    /// TLS files and rules of a worker.
    pub security: Security,
    /// What starts a worker: a program and its first arguments, after which the nanny
    /// puts `--nanny-address`.
    pub program: Vec<OsString>,
    /// The rest of the arguments.
    pub arguments: Vec<OsString>,
    /// The interpreter that runs nanny plugins; has the package `oxidask`.
    pub python: PathBuf,
    /// `--preload-nanny`: modules that this interpreter loads, which is then started at
    /// once.
    pub preload: Vec<String>,
    /// `distributed.nanny.preload-argv`.
    pub preload_argv: Vec<String>,
    /// The worker's name; null if it is named by its address.
    pub name: Value,
    /// The worker's threads.
    pub nthreads: usize,
    /// The folder in which the worker has its own.
    pub workspace: PathBuf,
    /// The worker's memory limit in bytes; `None` is no limit.
    pub memory_limit: Option<u64>,
    /// `--death-timeout`: the worker has to be registered in this time.
    pub death_timeout: Option<Duration>,
    /// Dask's configuration.
    pub config: Config,
}

/// There is no worker, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotStarted {
    /// In words.
    pub text: String,
    /// It did not find its scheduler in the time allowed.
    pub timed_out: bool,
}

/// A running nanny. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NannyHandle {
    inputs: mpsc::UnboundedSender<Input>,
    settings: Arc<Settings>,
    closed: watch::Receiver<bool>,
}

/// What does not change while a nanny runs.
#[derive(Debug)]
struct Settings {
    id: String,
    address: String,
    scheduler: Address,
    comm: Options,
    helper: Helper,
    /// Start the helper without being asked.
    has_preloads: bool,
    connect_timeout: Duration,
    pool: ConnectionPool,
    logs: Logs,
    death_timeout: Option<Duration>,
}

/// What is asked of the shell.
///
/// The channel has no bound of its own: every connection waits for the answer to its
/// request, and the process reports a handful of times in its life.
#[derive(Debug)]
enum Input {
    Event(Event),
    /// News of the process with this number.
    News(u64, News),
    /// Tell when there is no process any more.
    OnStopped(oneshot::Sender<()>),
    /// Tell when a worker runs or cannot.
    OnStarted(oneshot::Sender<Result<(), NotStarted>>),
    /// What is true now, for the helper.
    About(oneshot::Sender<serde_json::Value>),
    /// The next worker gets these variables.
    Variables(Vec<(String, String)>),
}

/// Starts a nanny: it listens, and does nothing else until [`NannyHandle::join`].
///
/// # Errors
/// See [`StartError`].
pub async fn spawn(options: NannyOptions, logs: Logs) -> Result<NannyHandle, StartError> {
    let config = &options.config;
    let server = config.server()?;
    let scheme = Scheme::from_name(&server.default_scheme).unwrap_or(Scheme::Tcp);
    let scheduler = Address::parse(&options.scheduler, scheme)?
        .resolve()
        .await?;
    let comm = Options {
        handshake: Handshake::new(worker::PYTHON_VERSION),
        tls: crate::security::load(&options.security)?,
        require_encryption: options.security.require_encryption,
        tcp_timeout: server.tcp_timeout,
        backlog: server.socket_backlog,
        ..Options::default()
    };
    let mut listen = options.listen.clone();
    if listen.host.is_none() && listen.interface.is_none() {
        let towards = scheduler.ip().and_then(worker::source_ip);
        listen.host = towards.map(|ip| match ip.is_ipv6() {
            true => format!("[{ip}]"),
            false => ip.to_string(),
        });
    }
    let listener = worker::listen(
        &listen,
        &options.ports,
        &options.security,
        &scheduler,
        &comm,
    )
    .await?;
    let environment = environment(config, |name| std::env::var(name).ok())?;
    let terminate = config.fraction("distributed.worker.memory.terminate")?;
    let resident_nbytes_max = options
        .memory_limit
        .zip(terminate)
        .map(|(limit, fraction)| (limit as f64 * fraction) as u64);
    let monitor_interval = config.duration("distributed.worker.memory.monitor-interval")?;
    let address = listener.contact_address().to_string();
    let mut command = options.program;
    command.push(format!("--nanny-address={address}").into());
    command.extend(options.arguments);
    let pool = ConnectionPool::new(comm.clone(), server.connect_timeout, CONNECTIONS_MAX);
    let launch = Launch {
        command,
        environment,
    };
    let helper = Helper::new(HelperSettings {
        python: options.python,
        about: serde_json::json!({
            "scheduler": scheduler.to_string(),
            "address": address,
            "nthreads": options.nthreads,
            "name": plain_name(&options.name),
            "local_directory": options.workspace,
            "memory_limit": options.memory_limit,
            "preload": options.preload,
            "preload_argv": options.preload_argv,
            "security": security(&options.security),
        }),
    });
    let settings = Arc::new(Settings {
        id: format!("Nanny-{:016x}", worker::random()),
        address,
        scheduler,
        comm,
        helper,
        has_preloads: !options.preload.is_empty(),
        connect_timeout: server.connect_timeout,
        pool,
        logs,
        death_timeout: options.death_timeout,
    });
    let (inputs, receiver) = mpsc::unbounded_channel();
    let (closed_sender, closed) = watch::channel(false);
    let handle = NannyHandle {
        inputs,
        settings,
        closed,
    };
    let shell = Shell {
        core: Core::new(Limits {
            resident_nbytes_max,
            death_timeout: options.death_timeout,
        }),
        handle: handle.clone(),
        launch,
        begun: Instant::now(),
        process: None,
        process_count: 0,
        resident_nbytes_max,
        over_memory: None,
        report: None,
        terminate_fraction: terminate.unwrap_or_default(),
        on_stopped: Vec::new(),
        on_started: Vec::new(),
        closed: closed_sender,
    };
    tokio::spawn(shell.run(receiver, monitor_interval));
    tokio::spawn(serve::accept(listener, handle.clone()));
    Ok(handle)
}

impl NannyHandle {
    /// Registers with the scheduler, and returns when the worker runs.
    ///
    /// # Errors
    /// See [`StartError`]. The nanny then closes.
    pub async fn join(&self) -> Result<(), StartError> {
        let settings = &self.settings;
        let joined = match settings.death_timeout {
            Some(timeout) => tokio::time::timeout(timeout, self.register())
                .await
                .unwrap_or_else(|_| {
                    error!(
                        target: LOGGER,
                        "Timed out connecting Nanny '{}' to scheduler '{}'",
                        settings.address, settings.scheduler
                    );
                    Err(StartError::DeathTimeout {
                        scheduler: settings.scheduler.to_string(),
                        timeout,
                    })
                }),
            None => self.register().await,
        };
        let mut connection = match joined {
            Ok(connection) => connection,
            Err(error) => {
                self.close("nanny-start-failed", core::CLOSE_TIMEOUT);
                return Err(error);
            }
        };
        info!(target: LOGGER, "        Start Nanny at: '{}'", settings.address);
        self.event(Event::Start);
        let started = self.started().await;
        let status = if started.is_ok() { "ok" } else { "error" };
        // The scheduler waits for this and does nothing with it.
        let told = Value::Map(map! { "status" => status });
        if let Err(error) = connection.write_value(&told).await {
            debug!(target: LOGGER, %error, "the scheduler went while the worker started");
        }
        started.map_err(|not_started| match settings.death_timeout {
            Some(timeout) if not_started.timed_out => StartError::DeathTimeout {
                scheduler: settings.scheduler.to_string(),
                timeout,
            },
            Some(_) | None => StartError::Worker(not_started.text),
        })
    }

    /// `register_nanny`: the connection stays open until the worker runs.
    async fn register(&self) -> Result<Connection, StartError> {
        let settings = &self.settings;
        if settings.has_preloads {
            let started = settings.helper.start().await;
            let reply = started.map_err(StartError::Preload)?;
            self.input(Input::Variables(reply.variables));
        }
        let scheduler = &settings.scheduler;
        let mut connection = connect(scheduler, &settings.comm, settings.connect_timeout).await?;
        let request = map! { "op" => "register_nanny", "address" => &*settings.address };
        connection.write_value(&Value::Map(request)).await?;
        let reply = connection.read_value().await?;
        let plugins = reply
            .into_map()
            .and_then(|mut reply| reply.take("nanny-plugins"));
        let plugins = plugins.and_then(Value::into_map).unwrap_or_default();
        for (name, plugin) in plugins.0 {
            let request = map! { "op" => "plugin_add", "plugin" => plugin, "name" => name };
            // A plugin that fails says so in the log; it does not keep the worker from
            // running. There is no worker yet that could be restarted.
            let request = message::encode(&Value::Map(request));
            if let Err(text) = self.ask_python(request).await {
                error!(target: LOGGER, "Nanny plugin failed to setup: {text}");
            }
        }
        Ok(connection)
    }

    /// The address that others know it by.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.settings.address
    }

    /// Begins the end: the worker is asked to close and killed if it does not within
    /// most of `timeout`. [`closed`](Self::closed) returns once all is done.
    pub fn close(&self, reason: &str, timeout: Duration) {
        self.event(Event::Close {
            timeout,
            reason: reason.to_owned(),
        });
    }

    /// Waits until the nanny is closed and its worker gone.
    pub async fn closed(&self) {
        let mut closed = self.closed.clone();
        // It is also over when the runtime drops the shell.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    fn id(&self) -> &str {
        &self.settings.id
    }

    fn logs(&self) -> &Logs {
        &self.settings.logs
    }

    fn event(&self, event: Event) {
        self.input(Input::Event(event));
    }

    fn input(&self, input: Input) {
        // A closed nanny takes nothing in any more.
        let _ = self.inputs.send(input);
    }

    /// Ends this worker and returns when its process is gone; another one follows.
    async fn kill(&self, timeout: Duration, reason: String) {
        self.event(Event::Kill { timeout, reason });
        self.worker_stopped().await;
    }

    async fn worker_stopped(&self) {
        let (sender, stopped) = oneshot::channel();
        self.input(Input::OnStopped(sender));
        // A closed nanny has no worker.
        let _ = stopped.await;
    }

    /// Returns when a worker runs.
    async fn instantiate(&self) -> Result<(), NotStarted> {
        self.event(Event::Instantiate);
        self.started().await
    }

    async fn started(&self) -> Result<(), NotStarted> {
        let (sender, started) = oneshot::channel();
        self.input(Input::OnStarted(sender));
        started.await.unwrap_or_else(|_| {
            Err(NotStarted {
                text: "the nanny is closing".to_owned(),
                timed_out: false,
            })
        })
    }

    /// Has the helper answer a request; also the reason if a plugin wants a restart.
    async fn ask_python(&self, request: Frames) -> Result<(Frames, Option<String>), String> {
        let (sender, about) = oneshot::channel();
        self.input(Input::About(sender));
        let about = about.await.map_err(|_| "the nanny is closing")?;
        let reply = self.settings.helper.request(about, request).await?;
        self.input(Input::Variables(reply.variables));
        Ok((reply.frames, reply.restart))
    }

    /// Tells the scheduler something and waits for the answer.
    async fn request(&self, op: &str, mut fields: Map) -> oxidask_comm::Result<Value> {
        fields.0.insert(0, ("op".into(), op.into()));
        fields.push("reply", true);
        let request = message::encode(&Value::Map(fields));
        let settings = &self.settings;
        settings.pool.exchange(&settings.scheduler, &request).await
    }

    /// `Nanny.log_event`.
    fn log_event(&self, topic: &'static str, event: Map) -> JoinHandle<()> {
        let nanny = self.clone();
        tokio::spawn(async move {
            let fields = map! { "topic" => topic, "msg" => event };
            if let Err(error) = nanny.request("log_event", fields).await {
                debug!(target: LOGGER, %error, "cannot tell the scheduler of an event");
            }
        })
    }
}

/// Variables that a worker gets beside the nanny's own: `pre-spawn-environ` and
/// `environ` of `distributed.nanny`, where the nanny's environment does not have them.
fn environment(
    config: &Config,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, ConfigError> {
    const SEED: &str = "PYTHONHASHSEED";
    let configured = |key: &str| {
        let map = config.get(key).and_then(crate::config::Value::as_map);
        let map = map.ok_or_else(|| config.invalid(key, "expected variables by name"))?;
        let set = map.iter().filter_map(|(name, value)| {
            use crate::config::Value;
            let value = match value {
                Value::Null => return None,
                Value::Str(text) => text.clone(),
                Value::Bool(true) => "True".to_owned(),
                Value::Bool(false) => "False".to_owned(),
                Value::Int(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => {
                    value.to_string()
                }
            };
            Some((name.clone(), variable(name).unwrap_or(value)))
        });
        Ok::<_, ConfigError>(set.collect::<Vec<_>>())
    };
    let mut variables = configured("distributed.nanny.pre-spawn-environ")?;
    // All workers have to hash alike; the number is stock's.
    match variables.iter_mut().find(|(name, _)| name == SEED) {
        Some((_, seed)) if seed == "0" => *seed = "6640".to_owned(),
        Some(_) => {}
        None => variables.push((SEED.to_owned(), "6640".to_owned())),
    }
    variables.extend(configured("distributed.nanny.environ")?);
    Ok(variables)
}

/// A name as JSON.
fn plain_name(name: &Value) -> serde_json::Value {
    match name.as_str() {
        Some(text) => text.into(),
        None => name.as_i64().into(),
    }
}

/// `Security` of a worker, as Python's keyword arguments.
fn security(security: &Security) -> serde_json::Value {
    use crate::options::TlsSource;
    let text = |source: &Option<TlsSource>| {
        source.as_ref().map(|source| match source {
            TlsSource::File(path) => path.to_string_lossy().into_owned(),
            TlsSource::Pem(text) => text.clone(),
        })
    };
    let mut arguments = serde_json::Map::new();
    let texts = [
        ("tls_ca_file", text(&security.ca_file)),
        ("tls_worker_cert", text(&security.cert)),
        ("tls_worker_key", text(&security.key)),
        ("tls_ciphers", security.ciphers.clone()),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            arguments.insert(name.to_owned(), value.into());
        }
    }
    let required = security.require_encryption;
    arguments.insert("require_encryption".to_owned(), required.into());
    arguments.into()
}

/// Owns the core and the process.
struct Shell {
    core: Core,
    handle: NannyHandle,
    launch: Launch,
    begun: Instant,
    process: Option<Process>,
    /// Processes so far: news of an earlier one are none.
    process_count: u64,
    resident_nbytes_max: Option<u64>,
    /// The worker had so many bytes in memory when it was ended for it.
    over_memory: Option<u64>,
    /// The scheduler is being told why the last worker died.
    report: Option<JoinHandle<()>>,
    terminate_fraction: f64,
    on_stopped: Vec<oneshot::Sender<()>>,
    on_started: Vec<oneshot::Sender<Result<(), NotStarted>>>,
    closed: watch::Sender<bool>,
}

impl Shell {
    async fn run(mut self, mut inputs: mpsc::UnboundedReceiver<Input>, monitor_interval: Duration) {
        let mut monitor = tokio::time::interval(monitor_interval.max(Duration::from_millis(1)));
        monitor.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.core.status() != Status::Closed {
            let deadline = self.core.deadline().map(|deadline| self.begun + deadline);
            let due = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => self.input(input),
                    // Not while `handle` is there.
                    None => break,
                },
                () = due => self.event(Event::Time),
                _ = monitor.tick(), if self.is_monitored() => self.watch_memory(),
            }
        }
        self.handle.settings.helper.end().await;
        self.handle.settings.pool.close();
        info!(target: LOGGER, "Nanny at '{}' closed.", self.handle.address());
        self.closed.send_replace(true);
    }

    fn is_monitored(&self) -> bool {
        self.resident_nbytes_max.is_some() && self.process.is_some()
    }

    fn watch_memory(&mut self) {
        let pid = self.process.as_ref().map(|process| process.pid);
        if let Some(nbytes) = pid.and_then(system::resident_nbytes) {
            self.event(Event::Resident(nbytes));
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Event(event) => self.event(event),
            Input::News(number, news) if number == self.process_count => self.news(news),
            Input::News(..) => {}
            Input::OnStopped(sender) => {
                if self.core.has_process() {
                    self.on_stopped.push(sender);
                } else {
                    // Whoever asked may have gone.
                    let _ = sender.send(());
                }
            }
            Input::OnStarted(sender) => {
                if self.core.is_running() {
                    let _ = sender.send(Ok(()));
                } else {
                    self.on_started.push(sender);
                }
            }
            Input::About(sender) => {
                let _ = sender.send(self.about());
            }
            Input::Variables(variables) => self.launch.environment = variables,
        }
    }

    /// What is true now, for the helper.
    fn about(&self) -> serde_json::Value {
        let worker = self.core.worker();
        serde_json::json!({
            "op": "request",
            "worker_address": worker.map(|worker| &worker.address),
            "worker_dir": worker.map(|worker| &worker.directory),
            "pid": self.process.as_ref().map(|process| process.pid),
        })
    }

    fn news(&mut self, news: News) {
        match news {
            News::Said(control::Report::Running { address, directory }) => {
                self.event(Event::Ready(Worker { address, directory }));
            }
            News::Said(control::Report::Failed { text, timed_out }) => {
                self.event(Event::Failed { text, timed_out });
            }
            News::Said(control::Report::Closed) => self.event(Event::Leaving),
            News::Exited(obituary) => {
                self.process = None;
                if let Some(line) = obituary.exit.stock_message(obituary.pid) {
                    info!(target: LOGGER, "{line}");
                }
                let exit = obituary.exit;
                self.event_with(Event::Exited(exit), Some(&obituary));
            }
        }
    }

    fn event(&mut self, event: Event) {
        self.event_with(event, None);
    }

    fn event_with(&mut self, event: Event, obituary: Option<&Obituary>) {
        for effect in self.core.handle(self.begun.elapsed(), event) {
            self.carry_out(effect, obituary);
        }
    }

    fn carry_out(&mut self, effect: Effect, obituary: Option<&Obituary>) {
        match effect {
            Effect::Spawn => self.spawn(),
            Effect::Stop { timeout, reason } => {
                info!(target: LOGGER, "Nanny asking worker to close. Reason: {reason}");
                if let Some(process) = &self.process {
                    process.stop(&reason, timeout);
                }
            }
            Effect::Terminate { nbytes } => self.terminate(nbytes),
            Effect::Kill(why) => self.kill(why),
            Effect::Unregister { address } => self.unregister(address),
            Effect::ReportDeath { worker, exit } => self.report_death(worker, exit, obituary),
            Effect::RemoveDirectory(path) => remove(path),
            Effect::Started => {
                for waiting in self.on_started.drain(..) {
                    let _ = waiting.send(Ok(()));
                }
            }
            Effect::NotStarted { text, timed_out } => self.not_started(&text, timed_out),
            Effect::Stopped => {
                for waiting in self.on_stopped.drain(..) {
                    let _ = waiting.send(());
                }
            }
            Effect::Pause(pause) => {
                warn!(
                    target: LOGGER,
                    "Worker keeps dying. Restarting it in {} s", pause.as_secs_f64()
                );
            }
            Effect::LogRestart(status) => {
                warn!(target: LOGGER, "Restarting worker (status={})", status.name());
            }
            Effect::LogClosing { reason, gracefully } => {
                let how = if gracefully { " gracefully" } else { "" };
                let address = self.handle.address();
                info!(target: LOGGER, "Closing Nanny{how} at '{address}'. Reason: {reason}");
            }
            // The loop ends.
            Effect::Closed => {}
        }
    }

    fn spawn(&mut self) {
        self.process_count += 1;
        self.over_memory = None;
        let number = self.process_count;
        let handle = self.handle.clone();
        let tell = move |news| handle.input(Input::News(number, news));
        match Process::spawn(&self.launch, tell) {
            Ok(process) => self.process = Some(process),
            Err(error) => {
                error!(target: LOGGER, %error, "Nanny failed to start process");
                self.handle.event(Event::Failed {
                    text: format!("cannot start the worker's process: {error}"),
                    timed_out: false,
                });
                self.handle.event(Event::Exited(Exit::NotStarted));
            }
        }
    }

    fn terminate(&mut self, nbytes: u64) {
        let Some(process) = &self.process else { return };
        let pid = process.pid;
        let worker = self.core.worker().map(|worker| worker.address.clone());
        warn!(
            target: LOGGER,
            "Worker {} (pid={pid}) exceeded {:.0}% memory budget. Restarting...",
            worker.as_deref().unwrap_or("None"), self.terminate_fraction * 100.0
        );
        self.over_memory = Some(nbytes);
        process.terminate();
        let event = map! { "worker" => worker, "pid" => pid, "rss" => nbytes };
        // Nobody waits for it.
        self.handle.log_event("worker-restart-memory", event);
    }

    fn kill(&self, why: Why) {
        let Some(process) = &self.process else { return };
        match why {
            Why::Slow(grace) => warn!(
                target: LOGGER,
                "Worker process still alive after {:.1} seconds, killing", grace.as_secs_f64()
            ),
            Why::Memory => warn!(
                target: LOGGER,
                "Worker {} (pid={}) is slow to accept SIGTERM; sending SIGKILL",
                self.core.worker().map_or("None", |worker| &worker.address), process.pid
            ),
        }
        process.kill();
    }

    fn unregister(&mut self, address: String) {
        let report = self.report.take();
        let status = self.core.status();
        info!(target: LOGGER, "Unregistering worker (status={})", status.name());
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let stimulus_id = worker::stimulus_id("nanny-close");
            let fields = map! { "address" => address, "stimulus_id" => stimulus_id.as_str() };
            let told = async {
                // Why it died goes first: the scheduler may wait for that, and does no
                // longer once it knows that the worker is gone.
                if let Some(report) = report {
                    let _ = report.await;
                }
                handle.request("unregister", fields).await
            };
            match tokio::time::timeout(UNREGISTER_TIMEOUT, told).await {
                Ok(Ok(_)) => {}
                // It learns by itself, or is gone.
                Ok(Err(error)) => debug!(target: LOGGER, %error, "cannot unregister the worker"),
                Err(_) => debug!(target: LOGGER, "the scheduler does not answer"),
            }
            handle.event(Event::Unregistered);
        });
    }

    /// Says why a worker died that nobody asked to close.
    fn report_death(&mut self, worker: Option<Worker>, exit: Exit, obituary: Option<&Obituary>) {
        let Some(obituary) = obituary else { return };
        let reason = exit.reason(Circumstances {
            over_memory: self.over_memory.zip(self.resident_nbytes_max),
            oom_kill_count: obituary.oom_kill_count,
        });
        let address = worker.map(|worker| worker.address);
        let name = address.as_deref().unwrap_or("that was starting");
        let mut text = format!("Worker {name} (pid={}) {reason}.", obituary.pid);
        if !obituary.log.is_empty() {
            text.push_str(" Last lines of its log:");
            for line in &obituary.log {
                text.push_str("\n    ");
                text.push_str(line);
            }
        }
        warn!(target: LOGGER, "{text}");
        let log: Value = obituary
            .log
            .iter()
            .map(|line| Value::from(&**line))
            .collect();
        let event = map! {
            "worker" => address,
            "nanny" => self.handle.address(),
            "pid" => obituary.pid,
            "reason" => reason,
            "log" => log,
        };
        self.report = Some(self.handle.log_event("worker-died", event));
    }

    fn not_started(&mut self, text: &str, timed_out: bool) {
        let settings = &self.handle.settings;
        if timed_out {
            error!(
                target: LOGGER,
                "Timed out connecting Nanny '{}' to scheduler '{}'",
                settings.address, settings.scheduler
            );
        } else {
            error!(target: LOGGER, "Failed to start process: {text}");
        }
        for waiting in self.on_started.drain(..) {
            let _ = waiting.send(Err(NotStarted {
                text: text.to_owned(),
                timed_out,
            }));
        }
    }
}

/// What a dead worker has spilled may be much, and others wait for this thread.
fn remove(path: PathBuf) {
    // A worker that closed by itself has removed it.
    if path.exists() {
        tokio::task::spawn_blocking(move || local_directory::remove_abandoned(&path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Value as Setting;

    #[test]
    fn variables_of_a_worker() {
        let get = |config: &Config, own: &[(&str, &str)]| {
            let variable = |name: &str| {
                let found = own.iter().find(|(own, _)| *own == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            environment(config, variable).unwrap()
        };
        let defaults = Config::defaults();
        let expected = [
            ("MALLOC_TRIM_THRESHOLD_", "65536"),
            ("OMP_NUM_THREADS", "1"),
            ("MKL_NUM_THREADS", "2"),
            ("OPENBLAS_NUM_THREADS", "1"),
            ("PYTHONHASHSEED", "6640"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let own = [("MKL_NUM_THREADS", "2"), ("PYTHONHASHSEED", "5")];
        assert_eq!(get(&defaults, &own), expected);

        let text = |text: &str| Setting::Str(text.to_owned());
        let before = "distributed.nanny.pre-spawn-environ";
        let after = "distributed.nanny.environ";
        let config = defaults.with(
            "test",
            &[
                (
                    before,
                    Setting::Map([("PYTHONHASHSEED".to_owned(), text("7"))].into()),
                ),
                (
                    after,
                    Setting::Map(
                        [
                            ("A".to_owned(), text("b")),
                            ("OMP_NUM_THREADS".to_owned(), Setting::Null),
                        ]
                        .into(),
                    ),
                ),
            ],
        );
        let variables = get(&config, &own[1..]);
        assert!(variables.contains(&("PYTHONHASHSEED".to_owned(), "5".to_owned())));
        assert!(variables.contains(&("A".to_owned(), "b".to_owned())));
    }
}
