//! The task that owns the worker core: events in, instructions out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indexmap::IndexMap;
use oxidask_comm::{Address, BatchedSender, ConnectionPool};
use oxidask_wire::stream::ToScheduler;
use oxidask_wire::{Key, Map, Str, Value, message};
use oxidask_worker::event::Insertion;
use oxidask_worker::memory::Ticket;
use oxidask_worker::task::{Action, StartStop, TaskFailure};
use oxidask_worker::{Event, Instructions, StimulusId, StoredValue, WorkerState};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{error, info};

use super::ahead::{self, Ahead};
use super::executor::{Datum, Executed, Executor, Outcome, Ran, Task};
use super::failure;
use super::figures::Turns;
use super::memory::{self, Memory, Observed};
use super::metrics::Metrics;
use super::monitor::Monitor;
use super::settings::Settings;
use super::status::Status;
use super::store::{OnDisk, Store};

/// Inputs that may wait for the core; beyond it the connections stop reading.
const INPUTS_MAX: usize = 4096;

/// Inputs handled before tasks are handed to the executor.
const INPUTS_PER_TURN: usize = 256;

type Call = Box<dyn FnOnce(&mut Shell) + Send>;

/// What connections and transfers ask of the shell.
enum Input {
    /// Events, in order.
    Stimuli(Vec<Stimulus>),
    /// Anything else: runs between two events.
    Call(Call),
}

/// An event, why it happens, and the values that came with it.
#[derive(Debug)]
pub(super) struct Stimulus {
    pub(super) stimulus_id: StimulusId,
    pub(super) event: Event,
    pub(super) values: IndexMap<Key, Arc<Datum>>,
    /// Values that went straight to disk.
    pub(super) spilled: Vec<(Key, OnDisk, Ticket)>,
}

impl Stimulus {
    /// An event without values.
    pub(super) fn new(stimulus_id: impl Into<StimulusId>, event: Event) -> Self {
        Self {
            stimulus_id: stimulus_id.into(),
            event,
            values: IndexMap::new(),
            spilled: Vec::new(),
        }
    }
}

/// A task at the executor.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) run_id: i64,
    /// Reading its inputs took long.
    pub(super) disk_read: Option<StartStop>,
}

/// What the executor tells, from any thread and without waiting.
///
/// The channel has no bound of its own: a task that runs makes one report when
/// it ends (and few are lent), `get_data` one per answer under way, and what else
/// tasks say is bounded by the stream to the scheduler that takes it.
#[derive(Debug)]
pub(super) enum Report {
    /// A task is done.
    Executed(Executed),
    /// A task seceded.
    Seceded {
        key: Key,
        compute_duration: f64,
        stimulus_id: Option<Str>,
    },
    /// A task leaves something for the scheduler.
    Metadata { key: Key, metadata: Map },
    /// A figure for the next heartbeat.
    Digest { name: Value, amount: f64 },
    /// Publish an event.
    LogEvent { topic: Value, message: Value },
    /// Send this to the scheduler.
    Message(Map),
    /// An answer to `get_data` is out, or its connection broke.
    Sent { nbytes: i64, seconds: f64 },
    /// The process was looked at.
    Memory(Observed),
}

impl Report {
    /// Somebody waits for what follows from it. Nobody does so for a thread that has
    /// gone on.
    fn is_urgent(&self) -> bool {
        match self {
            Self::Executed(executed) => executed.next.is_none(),
            Self::Metadata { .. } | Self::Digest { .. } | Self::Sent { .. } => false,
            Self::Seceded { .. } | Self::LogEvent { .. } | Self::Message(_) | Self::Memory(_) => {
                true
            }
        }
    }
}

/// How long running tasks may take to end: `Worker.close(timeout=30)`.
const EXECUTOR_TIMEOUT: Duration = Duration::from_secs(30);

/// The same if nobody waits for tasks. Chosen: whoever sends a signal gives a process ten
/// seconds (`dask worker` does so to a nanny), of which closing connections takes two.
const LEAVING_TIMEOUT: Duration = Duration::from_secs(4);

/// Why and how the worker closes.
#[derive(Clone, Debug)]
pub(super) struct Closing {
    pub(super) reason: Arc<str>,
    /// The nanny shall not start another worker.
    pub(super) nanny: bool,
    /// Wait for running tasks.
    pub(super) executor_wait: bool,
    /// How long what runs Python may take to end: tasks, plug-ins, the interpreter.
    pub(super) timeout: Duration,
}

impl Closing {
    /// With the usual timeout.
    pub(super) fn new(reason: &str, nanny: bool, executor_wait: bool) -> Self {
        let timeout = match executor_wait {
            true => EXECUTOR_TIMEOUT,
            false => LEAVING_TIMEOUT,
        };
        Self {
            reason: reason.into(),
            nanny,
            executor_wait,
            timeout,
        }
    }
}

/// Sends inputs to the shell. Cheap to clone.
#[derive(Clone)]
pub(super) struct ShellHandle {
    inputs: mpsc::Sender<Input>,
    reports: mpsc::UnboundedSender<Report>,
    /// Reports are not to wait any longer.
    urgent: Arc<Notify>,
    pub(super) settings: Arc<Settings>,
    pub(super) pool: ConnectionPool,
    pub(super) executor: Arc<dyn Executor>,
    closing: Arc<watch::Sender<Option<Closing>>>,
    /// The scheduler was asked to retire this worker; its answer will close it.
    is_retiring: Arc<AtomicBool>,
}

impl std::fmt::Debug for ShellHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShellHandle")
            .field("address", &self.settings.address)
            .finish_non_exhaustive()
    }
}

/// The shell is gone: the worker is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShutDown;

impl From<ShutDown> for Arc<TaskFailure> {
    fn from(_: ShutDown) -> Self {
        failure::builtin("RuntimeError", "Worker is shutting down")
    }
}

impl ShellHandle {
    /// Hands over events.
    pub(super) async fn stimuli(&self, stimuli: Vec<Stimulus>) -> Result<(), ShutDown> {
        if stimuli.is_empty() {
            return Ok(());
        }
        let sent = self.inputs.send(Input::Stimuli(stimuli)).await;
        sent.map_err(|_| ShutDown)
    }

    /// Runs `function` on the shell, after all inputs sent before.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        function: impl FnOnce(&mut Shell) -> T + Send + 'static,
    ) -> Result<T, ShutDown> {
        let (sender, answer) = oneshot::channel();
        let call: Call = Box::new(move |shell| {
            // The caller may have gone; its call has taken effect all the same.
            let _ = sender.send(function(shell));
        });
        let sent = self.inputs.send(Input::Call(call)).await;
        sent.map_err(|_| ShutDown)?;
        answer.await.map_err(|_| ShutDown)
    }

    /// As from the executor. Nobody hears it once the worker is closed.
    pub(super) fn report(&self, report: Report) {
        let is_urgent = report.is_urgent();
        let _ = self.reports.send(report);
        if is_urgent {
            self.wake();
        }
    }

    /// Reports are not to wait any longer.
    pub(super) fn wake(&self) {
        self.urgent.notify_one();
    }

    /// Asks `op` of another server. An answer that reports an error is a value
    /// like any other.
    pub(super) async fn request(
        &self,
        address: &Address,
        op: &str,
        fields: Map,
    ) -> oxidask_comm::Result<Value> {
        let request = message::encode(&request(op, fields));
        self.pool.exchange(address, &request).await
    }

    /// Begins the shutdown; the first reason counts.
    pub(super) fn close(&self, reason: &str, nanny: bool) {
        self.close_as(Closing::new(reason, nanny, true));
    }

    /// Closes because the scheduler no longer knows this worker.
    ///
    /// One that is retiring goes on to its own end: only there is it known whether
    /// the nanny starts another one.
    pub(super) fn forgotten(&self, reason: &str) {
        if !self.is_retiring.load(Ordering::Relaxed) {
            self.close(reason, true);
        }
    }

    /// As [`close`](Self::close).
    pub(super) fn close_as(&self, closing: Closing) {
        self.closing.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(closing);
            }
            first
        });
    }

    /// Waits until the shutdown has begun.
    pub(super) async fn closing(&self) -> Closing {
        let mut closing = self.closing.subscribe();
        let closing = closing.wait_for(Option::is_some).await;
        let closing = closing.expect("the handle holds the sender");
        closing.clone().expect("it was waited for")
    }

    /// Begins to leave: the scheduler moves the data away, then the worker closes.
    /// `Worker.close_gracefully` in distributed.
    pub(super) async fn close_gracefully(&self, restart: bool, reason: &str) {
        let address = &self.settings.address;
        info!(target: "distributed.worker", "Closing worker gracefully: {address}. Reason: {reason}");
        let fields = oxidask_wire::map! {
            "workers" => vec![Value::from(address)],
            "close_workers" => false,
            "remove" => true,
            "stimulus_id" => stimulus_id("worker-close-gracefully").as_str(),
        };
        self.is_retiring.store(true, Ordering::Relaxed);
        let retired = self.request(&self.settings.scheduler, "retire_workers", fields);
        if let Err(error) = retired.await {
            error!(target: "distributed.worker", %error, "the scheduler cannot retire this worker");
        }
        self.close(reason, !restart);
    }
}

/// A request, as a message.
pub(super) fn request(op: &str, mut fields: Map) -> Value {
    fields.0.insert(0, ("op".into(), op.into()));
    if !fields.contains_key("reply") {
        fields.push("reply", true);
    }
    Value::Map(fields)
}

/// Owns the core and everything that instructions need to be carried out.
pub(super) struct Shell {
    pub(super) core: WorkerState,
    pub(super) store: Store,
    pub(super) metrics: Metrics,
    pub(super) status: Status,
    /// To the scheduler, once registered.
    pub(super) stream: Option<BatchedSender>,
    /// Tasks at the executor.
    pub(super) running: HashMap<Key, Running>,
    /// Transfers from peers, and waits for busy ones.
    pub(super) transfers: JoinSet<()>,
    /// Values on their way to disk and back, and tasks that wait for some.
    pub(super) disk_work: JoinSet<()>,
    pub(super) memory: Memory,
    pub(super) turns: Turns,
    pub(super) ahead: Ahead,
    /// Events that follow from instructions.
    pub(super) queue: VecDeque<Stimulus>,
    /// Values that came with the event which is being handled.
    pub(super) values: IndexMap<Key, Arc<Datum>>,
    /// As `values`, of values that went straight to disk.
    pub(super) spilled: Vec<(Key, OnDisk, Ticket)>,
    /// For the executor, at the end of the turn.
    pub(super) to_execute: Vec<Task>,
    /// As `to_execute`.
    pub(super) to_release: Vec<Arc<Datum>>,
    pub(super) handle: ShellHandle,
    out: Instructions,
    /// The core has lost its way: nothing is known about its state any more.
    is_failed: bool,
    is_ended: bool,
}

/// Seconds since the epoch, as Python's `time()`.
pub(super) fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// A reason of our own, with the time, as stock makes them.
pub(crate) fn stimulus_id(prefix: &str) -> StimulusId {
    format!("{prefix}-{}", now()).into()
}

impl Shell {
    /// Starts the task that owns the core.
    pub(super) fn spawn(
        settings: Settings,
        pool: ConnectionPool,
        executor: Arc<dyn Executor>,
    ) -> ShellHandle {
        let (inputs, receiver) = mpsc::channel(INPUTS_MAX);
        let (reports, reports_receiver) = mpsc::unbounded_channel();
        let handle = ShellHandle {
            inputs,
            reports,
            urgent: Arc::default(),
            settings: Arc::new(settings),
            pool,
            executor,
            closing: Arc::new(watch::Sender::new(None)),
            is_retiring: Arc::default(),
        };
        let settings = &handle.settings;
        let monitor = Monitor::new(settings.monitor);
        let (store, memory) = memory::start(settings, &handle);
        let shell = Self {
            core: WorkerState::new(settings.core.clone()),
            store,
            metrics: Metrics::new(monitor),
            status: Status::Init,
            stream: None,
            running: HashMap::new(),
            transfers: JoinSet::new(),
            disk_work: JoinSet::new(),
            memory,
            turns: Turns::default(),
            ahead: Ahead::default(),
            queue: VecDeque::new(),
            values: IndexMap::new(),
            spilled: Vec::new(),
            to_execute: Vec::new(),
            to_release: Vec::new(),
            handle: handle.clone(),
            out: Instructions::default(),
            is_failed: false,
            is_ended: false,
        };
        tokio::spawn(shell.run(receiver, reports_receiver));
        handle
    }

    async fn run(
        mut self,
        mut receiver: mpsc::Receiver<Input>,
        mut reports_receiver: mpsc::UnboundedReceiver<Report>,
    ) {
        let mut inputs = Vec::with_capacity(INPUTS_PER_TURN);
        let mut reports = Vec::with_capacity(INPUTS_PER_TURN);
        let urgent = self.handle.urgent.clone();
        while !self.is_ended {
            let rest = self.ahead.rest();
            let mut panicked = None;
            tokio::select! {
                _ = receiver.recv_many(&mut inputs, INPUTS_PER_TURN) => {}
                _ = reports_receiver.recv_many(&mut reports, INPUTS_PER_TURN), if rest.is_none() => {}
                () = ahead::rested(rest, &urgent) => {}
                Some(ended) = self.transfers.join_next() => {
                    panicked = ended.err().map(|error| (error, "a transfer's task", "worker-gather_dep-fail-hard"));
                }
                Some(ended) = self.disk_work.join_next() => {
                    panicked = ended.err().map(|error| (error, "a task for the disk", "worker-spill-fail-hard"));
                }
            }
            let begun = Instant::now();
            self.take_back();
            // What the executor told before it asked, and before it was torn down,
            // comes first.
            for report in reports.drain(..) {
                self.report(report);
            }
            while let Ok(report) = reports_receiver.try_recv() {
                self.report(report);
            }
            for input in inputs.drain(..) {
                self.input(input);
            }
            if let Some((error, what, reason)) = panicked.filter(|(error, ..)| error.is_panic()) {
                error!(target: "distributed.worker", %error, "{what} panicked");
                self.handle.close(reason, false);
            }
            self.end_turn();
            self.turns.ended(begun);
        }
    }

    /// Begins what was put off, and hands everything of this turn to the executor at once.
    fn end_turn(&mut self) {
        self.balance();
        if !self.to_execute.is_empty() {
            let tasks = std::mem::take(&mut self.to_execute);
            self.handle.executor.execute(tasks);
        }
        self.lend();
        if !self.to_release.is_empty() {
            let values = std::mem::take(&mut self.to_release);
            self.memory.freed(&values);
            self.handle.executor.release(values);
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Stimuli(stimuli) => {
                for stimulus in stimuli {
                    self.stimulus(stimulus);
                }
            }
            Input::Call(call) => call(self),
        }
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Executed(executed) => self.executed(executed),
            Report::Seceded {
                key,
                compute_duration,
                stimulus_id,
            } => {
                let stimulus_id = match stimulus_id {
                    Some(stimulus_id) => (&stimulus_id).into(),
                    None => self::stimulus_id("secede"),
                };
                let event = Event::Secede {
                    key,
                    compute_duration,
                };
                self.stimulus(Stimulus::new(stimulus_id, event));
            }
            Report::Metadata { key, metadata } => {
                self.core.set_metadata(&key, Value::Map(metadata));
            }
            Report::Digest { name, amount } => self.metrics.digest(&name, amount),
            Report::LogEvent { topic, message } => self.log_event(&topic, &message),
            Report::Message(message) => {
                // One that cannot be sent is lost, as every other.
                if let Some(stream) = &self.stream {
                    let message = Value::Map(message);
                    let _ = stream.send_with(|batch| batch.push(&message));
                }
            }
            Report::Sent { nbytes, seconds } => {
                self.metrics.transfer_outgoing_bytes -= nbytes;
                self.metrics.transfer_outgoing_count -= 1;
                self.metrics.sent(seconds);
            }
            Report::Memory(observed) => self.observe_memory(&observed),
        }
    }

    /// Lets the core handle an event and everything that follows from it.
    pub(super) fn stimulus(&mut self, stimulus: Stimulus) {
        self.queue.push_back(stimulus);
        while let Some(stimulus) = self.queue.pop_front() {
            if self.is_failed {
                continue;
            }
            let Stimulus {
                stimulus_id,
                event,
                values,
                spilled,
            } = stimulus;
            self.values = values;
            self.spilled = spilled;
            let mut out = std::mem::take(&mut self.out);
            let handled = self
                .core
                .handle_stimulus(now(), &stimulus_id, event, &mut out);
            if let Err(error) = handled {
                return self.fail_hard(&error);
            }
            if self.handle.settings.options.validate {
                self.core.validate();
            }
            for instruction in out.drain(..) {
                self.carry_out(instruction);
            }
            self.out = out;
            // What the core did not want.
            let unwanted = std::mem::take(&mut self.values);
            self.to_release.extend(unwanted.into_values());
            for (_, _, ticket) in std::mem::take(&mut self.spilled) {
                if let Some(buffer) = self.store.buffer() {
                    buffer.abandon(ticket);
                }
            }
        }
    }

    /// The core cannot go on: the worker closes, as stock's does (`fail_hard`).
    fn fail_hard(&mut self, error: &oxidask_worker::Error) {
        self.is_failed = true;
        error!(target: "distributed.worker", %error, "the worker's state is broken");
        let failure = failure::builtin("RuntimeError", &error.to_string());
        let message = failure::message("error", &failure);
        self.log_event(&"worker-fail-hard".into(), &message);
        let reason = "worker-handle_stimulus-fail-hard";
        self.handle.close_as(Closing::new(reason, false, false));
    }

    fn executed(&mut self, executed: Executed) {
        let Executed { key, outcome, next } = executed;
        if let Some(next) = next {
            self.went_on(next);
        }
        let Some(Running { run_id, disk_read }) = self.running.remove(&key) else {
            error!(target: "distributed.worker", %key, "the executor reports a task that does not run");
            return;
        };
        let stimulus = match outcome {
            Outcome::Finished { value, ran } => {
                self.measure(&key, &ran);
                let event = Event::ExecuteSuccess {
                    key: key.clone(),
                    run_id,
                    nbytes: value.nbytes,
                    value: insertion(&value),
                    startstops: disk_read.into_iter().chain([self.computed(&ran)]).collect(),
                    thread: Some(ran.thread),
                };
                let mut stimulus = Stimulus::new(stimulus_id("task-finished"), event);
                stimulus.values.insert(key, value);
                return self.arrive(stimulus, None);
            }
            Outcome::Erred { failure, ran } => {
                self.log_failure(&key, &failure);
                let prefix = if let Some(ran) = &ran {
                    self.measure(&key, ran);
                    "task-erred"
                } else {
                    "execute-unknown-error"
                };
                let event = Event::ExecuteFailure {
                    key,
                    run_id,
                    failure,
                    startstops: {
                        let computed = ran.iter().map(|ran| self.computed(ran));
                        disk_read.into_iter().chain(computed).collect()
                    },
                    thread: ran.map(|ran| ran.thread),
                };
                Stimulus::new(stimulus_id(prefix), event)
            }
            Outcome::Reschedule => {
                Stimulus::new(stimulus_id("reschedule"), Event::Reschedule { key })
            }
        };
        self.stimulus(stimulus);
    }

    fn computed(&self, ran: &Ran) -> StartStop {
        let delay = self.metrics.scheduler_delay;
        StartStop {
            action: Action::Compute,
            start: ran.start + delay,
            stop: ran.stop + delay,
            source: None,
        }
    }

    fn measure(&mut self, key: &Key, ran: &Ran) {
        let Some(ts) = self.core.find_task(key) else {
            return;
        };
        let prefix = ts.key.key_split();
        for (activity, unit, amount) in &ran.metrics {
            self.metrics
                .executed(ts.span_id.as_ref(), &prefix, activity, unit, *amount);
        }
    }

    fn log_failure(&self, key: &Key, failure: &TaskFailure) {
        let Some(ts) = self.core.find_task(key) else {
            return;
        };
        // Of a cancelled task nobody wants to know.
        if ts.state == oxidask_worker::State::Cancelled {
            return;
        }
        error!(
            target: "distributed.worker",
            "Compute Failed\nKey:       {key}\nState:     {}\nException: {}\nTraceback: {}\n",
            ts.state, failure.exception_text, failure.traceback_text
        );
    }

    /// Puts a message on the stream to the scheduler. One that cannot be sent is
    /// lost, as in Dask: the stream is broken and the worker about to close.
    pub(super) fn tell_scheduler(&self, message: &ToScheduler<'_>) {
        if let Some(stream) = &self.stream {
            let _ = stream.send_with(|batch| message.write(batch.message()));
        }
    }

    /// Publishes an event. `Worker.log_event` in distributed.
    pub(super) fn log_event(&self, topic: &Value, msg: &Value) {
        self.tell_scheduler(&ToScheduler::LogEvent { topic, msg });
    }

    /// Takes a status and tells the scheduler.
    pub(super) fn set_status(&mut self, status: Status) {
        let previous = std::mem::replace(&mut self.status, status);
        let stimulus_id = stimulus_id("worker-status-change");
        self.tell_status(&stimulus_id);
        let was_held = matches!(previous, Status::Paused | Status::ClosingGracefully);
        if previous == Status::Running && status != Status::Running {
            self.stimulus(Stimulus::new(stimulus_id, Event::Pause));
        } else if status == Status::Running && was_held {
            self.stimulus(Stimulus::new(stimulus_id, Event::Unpause));
        }
    }

    /// `worker-status-change` of the scheduler.
    pub(super) fn asked_status(&mut self, status: Status, stimulus_id: &StimulusId) {
        if status == Status::ClosingGracefully && !self.status.is_any_running() {
            error!(
                target: "distributed.worker",
                "Invalid Worker.status transition: {} -> {}", self.status.name(), status.name()
            );
            // The scheduler believes otherwise.
            self.tell_status(stimulus_id);
        } else {
            self.set_status(status);
        }
    }

    fn tell_status(&self, stimulus_id: &StimulusId) {
        self.tell_scheduler(&ToScheduler::WorkerStatusChange {
            status: self.status.name(),
            stimulus_id: stimulus_id.as_str(),
        });
    }

    /// Says goodbye to the scheduler.
    pub(super) fn end_stream(&mut self) {
        self.tell_scheduler(&ToScheduler::CloseStream);
        if let Some(stream) = &self.stream {
            stream.close();
        }
    }

    /// Nothing comes after this turn.
    pub(super) fn end(&mut self) {
        self.is_ended = true;
    }
}

/// What the core has to know of a value that can be kept.
pub(super) fn insertion(datum: &Datum) -> Insertion {
    Ok(StoredValue {
        nbytes: datum.nbytes,
        r#type: datum.r#type.clone(),
        disk_write: None,
    })
}
