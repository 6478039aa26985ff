//! The task that owns the scheduler core: events in, instructions out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use oxidask_scheduler::extensions::Extensions;
use oxidask_scheduler::{ClientId, Event, Failure, Instructions, RequestId, Scheduler, WorkerId};
use oxidask_wire::stream::FunctionNumbers;
use oxidask_wire::{Map, Value};
use tokio::sync::{RwLock, mpsc, oneshot, watch};

use super::info::{Feed, Turns};
use super::peers::Peers;
use super::plugin_host::{MirrorLink, PluginHost};
use super::settings::Settings;
use super::stream::Stream;
use crate::graph_helper;

/// Inputs that may wait for the core; beyond it the connections stop reading.
const INPUTS_MAX: usize = 4096;

/// Inputs handled between two looks at the clock and at pending graphs.
const INPUTS_PER_TURN: usize = 256;

type Call = Box<dyn FnOnce(&mut Shell) + Send>;

/// What connections ask of the shell.
pub(super) enum Input {
    /// Events of one batch of a stream, in order.
    Events(Vec<Event>),
    /// Anything else: runs between two events.
    Call(Call),
}

/// Sends inputs to the shell. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ShellHandle {
    inputs: mpsc::Sender<Input>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) peers: Peers,
    pub(crate) helpers: graph_helper::Pool,
    pub(super) host: PluginHost,
    /// Taken for writing by who copies or moves replicas for itself, for reading while
    /// workers retire (`_replica_lock` of distributed).
    pub(super) replicas: Arc<RwLock<()>>,
    closing: Arc<watch::Sender<Option<Arc<str>>>>,
    /// Preloads have been set up: peers are served.
    ready: Arc<watch::Sender<bool>>,
}

/// The shell is gone: the scheduler is shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShutDown;

impl ShellHandle {
    /// Hands over the events of a batch.
    pub(super) async fn events(&self, events: Vec<Event>) -> Result<(), ShutDown> {
        if events.is_empty() {
            return Ok(());
        }
        self.inputs
            .send(Input::Events(events))
            .await
            .map_err(|_| ShutDown)
    }

    /// Runs `function` on the shell, after all inputs sent before.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        function: impl FnOnce(&mut Shell) -> T + Send + 'static,
    ) -> Result<T, ShutDown> {
        let (sender, answer) = oneshot::channel();
        let call: Call = Box::new(move |shell| {
            // The caller may have gone; its call has taken effect all the same.
            let _ = sender.send(function(shell));
        });
        self.inputs
            .send(Input::Call(call))
            .await
            .map_err(|_| ShutDown)?;
        answer.await.map_err(|_| ShutDown)
    }

    /// Begins the shutdown; the first reason counts.
    pub(crate) fn close(&self, reason: &str) {
        self.closing.send_if_modified(|closing| {
            let first = closing.is_none();
            if first {
                *closing = Some(reason.into());
            }
            first
        });
    }

    /// Lets peers be served from now on.
    pub(super) fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    /// Waits until peers may be served, or the shutdown has begun. As on stock a
    /// peer that comes before preloads are set up is accepted, but waits.
    pub(super) async fn ready(&self) {
        let mut ready = self.ready.subscribe();
        tokio::select! {
            _ = ready.wait_for(|ready| *ready) => {}
            _ = self.closing() => {}
        }
    }

    /// Waits until the shutdown has begun; returns the reason.
    pub(crate) async fn closing(&self) -> Arc<str> {
        let mut closing = self.closing.subscribe();
        loop {
            let reason = closing.borrow_and_update().clone();
            if let Some(reason) = reason {
                return reason;
            }
            if closing.changed().await.is_err() {
                return "unknown".into();
            }
        }
    }
}

/// The stream of a worker.
#[derive(Debug)]
pub(crate) struct WorkerLink {
    pub(super) sender: Stream,
    /// Functions that a worker of ours knows; `None` for one of stock's.
    pub(super) functions: Option<FunctionNumbers>,
}

/// The stream of a client.
#[derive(Debug)]
pub(crate) struct ClientLink {
    pub(super) sender: Stream,
}

/// Owns the core and everything that instructions need to be carried out.
pub(crate) struct Shell {
    pub(crate) core: Scheduler,
    pub(crate) extensions: Extensions,
    pub(crate) workers: HashMap<WorkerId, WorkerLink>,
    pub(crate) clients: HashMap<ClientId, ClientLink>,
    /// `subscribe_worker_status` streams.
    pub(crate) observers: Vec<Stream>,
    /// Requests whose answer comes as an instruction.
    replies: HashMap<RequestId, oneshot::Sender<Result<Value, Failure>>>,
    next_request: u64,
    /// `worker-plugins` of the register reply, in order of registration.
    pub(crate) worker_plugins: Map,
    /// `nanny-plugins` of the register reply.
    pub(crate) nanny_plugins: Map,
    /// Nannies between `register_nanny` and their first word.
    pub(crate) starting_nannies: watch::Sender<usize>,
    /// Files every graph helper can import.
    pub(crate) uploads: Vec<(String, bytes::Bytes)>,
    /// Streams of clients that wait until all graphs are taken in.
    pub(super) graph_waiters: Vec<oneshot::Sender<()>>,
    /// A large graph has been taken in or released, and left much memory unused.
    worked_by_slices: bool,
    /// Graphs at the helper.
    pub(crate) graph_updates_active: usize,
    /// Where scatter goes next.
    pub(crate) scatter_position: usize,
    /// When the scheduler was last busy; see `check_idle`.
    pub(super) idle: super::idle::Idle,
    /// Who listens to what happens.
    pub(super) feed: Feed,
    /// The plug-in host, while there is one.
    pub(super) mirror: Option<MirrorLink>,
    /// How long inputs had to wait.
    pub(super) turns: Turns,
    /// Wall-clock start.
    pub(crate) started: f64,
    pub(crate) handle: ShellHandle,
    pub(super) out: Instructions,
}

/// Seconds since the epoch, as Python's `time()`.
pub(crate) fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

impl Shell {
    /// Starts the task that owns the core.
    pub(super) fn spawn(
        settings: Arc<Settings>,
        peers: Peers,
        helpers: graph_helper::Pool,
    ) -> ShellHandle {
        let (inputs, receiver) = mpsc::channel(INPUTS_MAX);
        let handle = ShellHandle {
            inputs,
            settings,
            peers,
            helpers,
            host: PluginHost::new(),
            replicas: Arc::default(),
            closing: Arc::new(watch::Sender::new(None)),
            ready: Arc::new(watch::Sender::new(false)),
        };
        let mut extensions = Extensions::new(&handle.settings.core);
        extensions.set_adaptive_target_duration(handle.settings.adaptive_target_duration);
        let shell = Self {
            core: Scheduler::new(handle.settings.core.clone()),
            extensions,
            workers: HashMap::new(),
            clients: HashMap::new(),
            observers: Vec::new(),
            replies: HashMap::new(),
            next_request: 0,
            worker_plugins: super::plugins::initial_worker_plugins(),
            nanny_plugins: Map::new(),
            starting_nannies: watch::Sender::new(0),
            uploads: Vec::new(),
            graph_waiters: Vec::new(),
            worked_by_slices: false,
            graph_updates_active: 0,
            scatter_position: 0,
            idle: super::idle::Idle::default(),
            feed: Feed::default(),
            mirror: None,
            turns: Turns::default(),
            started: now(),
            handle: handle.clone(),
            out: Instructions::default(),
        };
        tokio::spawn(shell.run(receiver));
        handle
    }

    async fn run(mut self, mut receiver: mpsc::Receiver<Input>) {
        let mut inputs = Vec::with_capacity(INPUTS_PER_TURN);
        loop {
            if self.core.has_pending_work() {
                let begun = Instant::now();
                // One slice between two turns, so that others are heard.
                self.worked_by_slices = true;
                self.event(Event::Continue);
                while let Ok(input) = receiver.try_recv() {
                    self.input(input);
                }
                self.turns.add(begun.elapsed());
                // Lets the connections read and write before the next slice.
                tokio::task::yield_now().await;
                continue;
            }
            let due = self.next_deadline().map(|deadline| {
                Duration::try_from_secs_f64((deadline - now()).max(0.0)).unwrap_or(Duration::MAX)
            });
            let tick = async {
                match due {
                    Some(due) => tokio::time::sleep(due.min(Duration::from_secs(3600))).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = receiver.recv_many(&mut inputs, INPUTS_PER_TURN) => {
                    if count == 0 {
                        return;
                    }
                    let begun = Instant::now();
                    for input in inputs.drain(..) {
                        self.input(input);
                    }
                    self.turns.add(begun.elapsed());
                }
                () = tick => {
                    let begun = Instant::now();
                    self.tick();
                    self.turns.add(begun.elapsed());
                }
            }
        }
    }

    fn next_deadline(&self) -> Option<f64> {
        match (self.core.next_deadline(), self.extensions.next_deadline()) {
            (Some(core), Some(extensions)) => Some(core.min(extensions)),
            (core, extensions) => core.or(extensions),
        }
    }

    fn tick(&mut self) {
        let now = now();
        self.core.handle(now, Event::Tick, &mut self.out);
        self.extensions.tick(&mut self.core, now, &mut self.out);
        self.settle(now);
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Events(events) => {
                for event in events {
                    self.event(event);
                }
            }
            Input::Call(call) => call(self),
        }
    }

    /// Lets the core handle an event and carries out what follows from it.
    pub(crate) fn event(&mut self, event: Event) {
        let now = now();
        self.extensions.before(&event);
        self.core.handle(now, event, &mut self.out);
        self.settle(now);
    }

    /// Runs `function` on the extensions and carries out what follows from it.
    pub(crate) fn extend<T>(
        &mut self,
        function: impl FnOnce(&mut Extensions, &mut Scheduler, f64, &mut Instructions) -> T,
    ) -> T {
        let now = now();
        let result = function(&mut self.extensions, &mut self.core, now, &mut self.out);
        self.settle(now);
        result
    }

    /// Lets the extensions see what happened, then carries out all instructions.
    fn settle(&mut self, now: f64) {
        self.feed.publish(&self.core, &self.out);
        self.extensions.observe(&mut self.core, now, &mut self.out);
        self.mirror_settle();
        let mut out = std::mem::take(&mut self.out);
        for instruction in out.drain(..) {
            self.carry_out(instruction);
        }
        // The buffer goes back, so that it is allocated once.
        if self.out.is_empty() {
            self.out = out;
        }
        if !self.graph_waiters.is_empty() && !self.core.has_pending_graphs() {
            for waiter in self.graph_waiters.drain(..) {
                let _ = waiter.send(());
            }
        }
        if self.worked_by_slices && !self.core.has_pending_work() {
            self.worked_by_slices = false;
            crate::memory::release();
        }
    }

    /// A number for a request that the core or an extension answers later.
    pub(crate) fn request(&mut self) -> (RequestId, oneshot::Receiver<Result<Value, Failure>>) {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        let (sender, answer) = oneshot::channel();
        self.replies.insert(request, sender);
        (request, answer)
    }

    pub(super) fn reply(&mut self, request: RequestId, result: Result<Value, Failure>) {
        if let Some(reply) = self.replies.remove(&request) {
            // The caller may have gone.
            let _ = reply.send(result);
        }
    }

    /// The caller of a request is gone.
    pub(crate) fn abandon(&mut self, request: RequestId) {
        if self.replies.remove(&request).is_some() {
            self.extend(|extensions, core, now, out| extensions.cancel(core, now, request, out));
        }
    }

    /// Publishes an event (`Scheduler.log_event`).
    pub(crate) fn log_event(&mut self, topics: &[&str], message: Value) {
        let topics = topics.iter().map(|topic| Arc::from(*topic)).collect();
        self.out
            .push(oxidask_scheduler::Instruction::LogEvent { topics, message });
        self.settle(now());
    }

    /// Address of a worker by address or alias, with host names resolved by the caller.
    pub(crate) fn coerce_address(&self, worker: &Value) -> Option<Arc<str>> {
        self.core.coerce_address(worker)
    }

    /// Ids of workers named by a request, or of all of them.
    pub(crate) fn workers_named(&self, workers: &Value) -> Vec<WorkerId> {
        if workers.is_nil() {
            return self.core.workers().map(|(id, _)| id).collect();
        }
        workers
            .as_array()
            .unwrap_or_default()
            .iter()
            .filter_map(|worker| self.coerce_address(worker))
            .filter_map(|address| self.core.worker_id(&address))
            .collect()
    }

    pub(crate) fn worker_address(&self, worker: WorkerId) -> Option<Arc<str>> {
        self.core
            .worker(worker)
            .map(|worker| worker.address.clone())
    }

    /// Seconds between a worker's heartbeats.
    pub(crate) fn heartbeat_interval(&self) -> f64 {
        Scheduler::heartbeat_interval(self.core.n_workers())
    }

    /// `str` of a worker's name, for logs.
    pub(crate) fn name_text(name: &Value) -> String {
        if let Some(text) = name.as_str() {
            text.to_owned()
        } else if let Some(number) = name.as_i64() {
            number.to_string()
        } else {
            format!("{name:?}")
        }
    }
}
