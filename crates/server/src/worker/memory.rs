//! Values against the memory limit: what waits, what leaves, what comes back, and
//! when the worker pauses. The rules are in `oxidask_worker::memory`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use indexmap::IndexMap;
use oxidask_wire::Key;
use oxidask_wire::pickle::{PickleArg, exception_pickle};
use oxidask_worker::event::Insertion;
use oxidask_worker::memory::{
    Buffer, Change, Failure, Limits, Pressure, Ticket, Trimming, Verdict,
};
use oxidask_worker::task::{Action, StartStop, TaskFailure};
use oxidask_worker::{Event, State};
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use super::executor::{Datum, Input, Task};
use super::failure;
use super::metrics::Reads;
use super::monitor::resident_nbytes;
use super::settings::Settings;
use super::shell::{Running, Shell, ShellHandle, ShutDown, Stimulus, now, stimulus_id};
use super::spill::{self, Damage, Disk, Written};
use super::status::Status;
use super::store::{Coming, Got, Lost, OnDisk, Read, Store};
use crate::config::format_bytes;

/// Seconds from which reading or writing is told to the scheduler, as in stock.
const NOTEWORTHY: f64 = 0.005;

/// Times that a value may be lost before what needs it fails instead of being
/// computed again. Chosen: a disk that loses this often loses always.
const LOST_MAX: u32 = 3;

/// Lost values that are remembered.
const LOST_COUNT_MAX: usize = 1000;

/// Least time between two collections of garbage. Chosen: they stop all tasks.
const COLLECTION_PAUSE: Duration = Duration::from_secs(5);

/// Pause of the logger `distributed.spill`.
const SPILL_LOG_PAUSE: Duration = Duration::from_secs(10);

/// Pause of the warning about unmanaged memory.
const UNMANAGED_LOG_PAUSE: Duration = Duration::from_secs(300);

/// What the shell keeps for its memory limit.
#[derive(Debug)]
pub(super) struct Memory {
    pressure: Option<Pressure>,
    /// Events whose values wait until others have left.
    held: VecDeque<Held>,
    /// How often a value was lost, and why at last.
    lost: IndexMap<Key, (u32, String)>,
    trimming: Trimming,
    collections: Throttle,
    full_logs: Throttle,
    failure_logs: Throttle,
    unmanaged_logs: Throttle,
    _watch: Option<Watch>,
}

#[derive(Debug)]
struct Held {
    stimulus: Stimulus,
    done: Option<oneshot::Sender<()>>,
}

/// Lets something happen from time to time only.
#[derive(Debug)]
struct Throttle {
    pause: Duration,
    last: Option<Instant>,
}

impl Throttle {
    fn new(pause: Duration) -> Self {
        Self { pause, last: None }
    }

    fn is_due(&mut self) -> bool {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= self.pause);
        if is_due {
            self.last = Some(Instant::now());
        }
        is_due
    }
}

/// A look at the process.
#[derive(Debug)]
pub(super) struct Observed {
    process: u64,
    /// There is no other on its way.
    is_pending: Arc<AtomicBool>,
}

/// A thread that looks at the process. Ends when this is dropped.
#[derive(Debug)]
struct Watch {
    _stop: mpsc::Sender<()>,
}

impl Watch {
    fn start(handle: ShellHandle, interval: Duration) -> Option<Self> {
        let (stop, stopped) = mpsc::channel();
        let interval = interval.max(Duration::from_millis(1));
        let watch = move || {
            let is_pending = Arc::new(AtomicBool::new(false));
            while stopped.recv_timeout(interval) == Err(mpsc::RecvTimeoutError::Timeout) {
                if !is_pending.swap(true, Ordering::Relaxed) {
                    handle.observed(Observed {
                        process: resident_nbytes(),
                        is_pending: is_pending.clone(),
                    });
                }
            }
        };
        let name = "memory-monitor".to_owned();
        match thread::Builder::new().name(name).spawn(watch) {
            Ok(_) => Some(Self { _stop: stop }),
            Err(error) => {
                error!(target: "distributed.worker.memory", %error, "cannot watch the memory");
                None
            }
        }
    }
}

/// An empty store, and everything that watches over it.
pub(super) fn start(settings: &Settings, handle: &ShellHandle) -> (Store, Memory) {
    let memory = &settings.memory;
    let limit = settings.options.memory_limit;
    let pressure = limit
        .filter(|&limit| limit > 0)
        .map(|limit| Pressure::new(limit, memory.fractions));
    let store = match &pressure {
        Some(pressure) if pressure.is_enabled() => {
            let buffer = Buffer::new(Limits {
                target: pressure.target(),
                max_spill: memory.max_spill,
                writes_count_max: spill::LEAVING_MAX,
            });
            let folder = settings.options.local_directory.join("storage");
            let prefix = format!("{:016x}", super::random());
            Store::with_disk(buffer, Disk::new(folder, prefix, memory.spill_compression))
        }
        Some(_) | None => Store::default(),
    };
    let watch = pressure.as_ref().and_then(|_| {
        let handle = handle.clone();
        Watch::start(handle, memory.monitor_interval)
    });
    let memory = Memory {
        pressure,
        held: VecDeque::new(),
        lost: IndexMap::new(),
        trimming: Trimming::new(limit),
        collections: Throttle::new(COLLECTION_PAUSE),
        full_logs: Throttle::new(SPILL_LOG_PAUSE),
        failure_logs: Throttle::new(SPILL_LOG_PAUSE),
        unmanaged_logs: Throttle::new(UNMANAGED_LOG_PAUSE),
        _watch: watch,
    };
    (store, memory)
}

impl Memory {
    /// Values were let go of.
    pub(super) fn freed(&mut self, values: &[Arc<Datum>]) {
        let nbytes = values.iter().map(|datum| datum.nbytes.max(0)).sum::<i64>();
        self.trimming.freed(nbytes.unsigned_abs());
    }

    fn lose(&mut self, key: &Key, reason: String) {
        let (count, text) = self.lost.entry(key.clone()).or_default();
        *count += 1;
        *text = reason;
        if self.lost.len() > LOST_COUNT_MAX {
            self.lost.shift_remove_index(0);
        }
    }

    /// Why what needs a value fails, once it was lost too often.
    fn failure_of(&self, key: &Key) -> Option<Arc<TaskFailure>> {
        let (count, reason) = self.lost.get(key)?;
        (*count > LOST_MAX).then(|| {
            let key = key.python_repr();
            let text = format!("cannot read the spilled value of {key}: {reason}");
            failure::builtin("OSError", &text)
        })
    }
}

/// What came of a value that is too large for memory.
struct Direct {
    key: Key,
    datum: Arc<Datum>,
    ticket: Ticket,
    written: Written,
    start: f64,
    stop: f64,
}

impl Shell {
    /// Takes in an event with values. Those that are too large for memory go to
    /// disk before; all wait while writing falls behind. `done` is told once the
    /// event was handled.
    pub(super) fn arrive(&mut self, stimulus: Stimulus, done: Option<oneshot::Sender<()>>) {
        let heavy = self.heavy(&stimulus);
        let Some(disk) = self.store.disk().filter(|_| !heavy.is_empty()) else {
            return self.admit(Held { stimulus, done });
        };
        let (handle, disk) = (self.handle.clone(), disk.clone());
        self.disk_work.spawn(async move {
            let writes = heavy.into_iter().map(|(key, datum, ticket)| {
                let (handle, disk) = (&handle, &disk);
                async move {
                    let start = now();
                    let value = datum.clone();
                    let written = spill::spill(handle, disk, &key, value, ticket, true).await;
                    Direct {
                        key,
                        datum,
                        ticket,
                        written,
                        start,
                        stop: now(),
                    }
                }
            });
            let written = join_all(writes).await;
            let arrived = handle.call(move |shell| shell.on_disk(stimulus, written, done));
            // The worker may be closing, which is what ends this.
            let _ = arrived.await;
        });
    }

    /// Values that are larger than the target, each with its write.
    fn heavy(&mut self, stimulus: &Stimulus) -> Vec<(Key, Arc<Datum>, Ticket)> {
        let mut heavy = Vec::new();
        let Some(buffer) = self.store.buffer() else {
            return heavy;
        };
        for (key, datum) in &stimulus.values {
            let is_actor = || self.core.find_task(key).is_some_and(|ts| ts.is_actor);
            let nbytes = u64::try_from(datum.nbytes).unwrap_or(0);
            if buffer.is_heavy(nbytes) && !is_actor() {
                heavy.push((key.clone(), datum.clone(), buffer.begin_direct()));
            }
        }
        heavy
    }

    fn on_disk(
        &mut self,
        mut stimulus: Stimulus,
        written: Vec<Direct>,
        done: Option<oneshot::Sender<()>>,
    ) {
        for direct in written {
            let Direct {
                key,
                datum,
                ticket,
                written,
                start,
                stop,
            } = direct;
            match written {
                Written::Done(file, figures) => {
                    self.store.count_write(figures);
                    self.metrics.spilled(figures);
                    if let Some(buffer) = self.store.buffer() {
                        buffer.written_direct();
                    }
                    let value = OnDisk::new(file, &datum);
                    stimulus.spilled.push((key.clone(), value, ticket));
                    self.to_release.extend(stimulus.values.swap_remove(&key));
                    let delay = self.metrics.scheduler_delay;
                    if stop - start > NOTEWORTHY
                        && let Some(Ok(value)) = insertion_of(&mut stimulus.event, &key)
                    {
                        value.disk_write = Some(StartStop {
                            action: Action::DiskWrite,
                            start: start + delay,
                            stop: stop + delay,
                            source: None,
                        });
                    }
                }
                Written::Unspillable(text) => {
                    self.write_failed(None, ticket, Failure::Unspillable);
                    self.to_release.extend(stimulus.values.swap_remove(&key));
                    log_unspillable(&key, &text);
                    if let Some(value) = insertion_of(&mut stimulus.event, &key) {
                        *value = Err(pickle_error(&key));
                    }
                }
                Written::Failed(error) => {
                    self.write_failed(None, ticket, Failure::Disk);
                    self.log_failed(&error);
                }
                Written::Refused(verdict) => self.log_refused(verdict),
            }
        }
        self.admit(Held { stimulus, done });
    }

    fn admit(&mut self, held: Held) {
        let has_values = !held.stimulus.values.is_empty();
        let buffer = self.store.buffer_ref();
        if has_values && buffer.is_some_and(Buffer::is_backlogged) {
            self.memory.held.push_back(held);
        } else {
            self.take_in(held);
        }
    }

    fn take_in(&mut self, held: Held) {
        self.stimulus(held.stimulus);
        if let Some(done) = held.done {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
        self.begin_writes();
    }

    /// Begins writes that are due, and takes in what waited for others to leave.
    pub(super) fn balance(&mut self) {
        self.begin_writes();
        while !self.memory.held.is_empty() {
            if self.store.buffer_ref().is_some_and(Buffer::is_backlogged) {
                return;
            }
            if let Some(held) = self.memory.held.pop_front() {
                self.take_in(held);
            }
        }
    }

    fn begin_writes(&mut self) {
        while let Some((write, datum)) = self.store.next_write() {
            let Some(disk) = self.store.disk().cloned() else {
                return;
            };
            let handle = self.handle.clone();
            self.disk_work.spawn(async move {
                let (key, ticket) = (write.key, write.ticket);
                let written = spill::spill(&handle, &disk, &key, datum, ticket, false).await;
                let ended = handle.call(move |shell| shell.write_ended(&key, ticket, written));
                // The worker may be closing, which is what ends this.
                let _ = ended.await;
            });
        }
    }

    /// Whether a serialised value may be written.
    pub(super) fn prepared(&mut self, key: Option<&Key>, ticket: Ticket, nbytes: u64) -> Verdict {
        match self.store.buffer() {
            Some(buffer) => buffer.prepared(key, ticket, nbytes),
            None => Verdict::Gone,
        }
    }

    fn write_ended(&mut self, key: &Key, ticket: Ticket, written: Written) {
        match written {
            Written::Done(file, figures) => {
                self.metrics.spilled(figures);
                let left = self.store.written(key, ticket, file, figures);
                self.to_release.extend(left);
            }
            Written::Unspillable(text) => {
                self.write_failed(Some(key), ticket, Failure::Unspillable);
                log_unspillable(key, &text);
            }
            Written::Failed(error) => {
                self.write_failed(Some(key), ticket, Failure::Disk);
                self.log_failed(&error);
            }
            Written::Refused(verdict) => self.log_refused(verdict),
        }
    }

    fn write_failed(&mut self, key: Option<&Key>, ticket: Ticket, failure: Failure) {
        if let Some(buffer) = self.store.buffer() {
            buffer.failed(key, ticket, failure);
        }
    }

    fn log_failed(&mut self, error: &std::io::Error) {
        if self.memory.failure_logs.is_due() {
            error!(
                target: "distributed.spill",
                %error, "Spill to disk failed; keeping data in memory"
            );
        }
    }

    fn log_refused(&mut self, verdict: Verdict) {
        if verdict == Verdict::Full && self.memory.full_logs.is_due() {
            warn!(
                target: "distributed.spill",
                "Spill file on disk reached capacity; keeping data in memory"
            );
        }
    }

    /// A value for a task or for others. What is on disk is read.
    pub(super) fn get(&mut self, key: &Key) -> Wanted {
        match self.store.get(key) {
            Got::Here(input) => Wanted::Here(input),
            Got::Coming(coming, read) => {
                if let Some(read) = read {
                    let handle = self.handle.clone();
                    self.disk_work.spawn(spill::unspill(handle, read));
                }
                Wanted::Coming(coming)
            }
            Got::Missing => Wanted::Missing,
        }
    }

    /// A read has ended.
    pub(super) fn read_ended(
        &mut self,
        read: &Read,
        value: Result<Arc<Datum>, Damage>,
        seconds: f64,
    ) {
        let damage = match value {
            Ok(datum) => return self.store.read(read, &datum, seconds),
            Err(damage) => damage,
        };
        if self.store.is_reading(&read.key, read.ticket) {
            let key = &read.key;
            error!(
                target: "distributed.spill",
                %key, error = %damage, "cannot read a spilled value; it is lost"
            );
            self.memory.lose(key, damage.to_string());
            let event = Event::DataLost {
                keys: vec![key.clone()],
            };
            self.stimulus(Stimulus::new(stimulus_id("data-lost"), event));
        }
        self.store.give_up(read.ticket);
    }

    /// Hands a task over once its inputs are read.
    pub(super) fn execute_when_read(
        &mut self,
        task: Task,
        run_id: i64,
        coming: Vec<(Key, Coming)>,
    ) {
        let handle = self.handle.clone();
        self.disk_work.spawn(async move {
            let start = now();
            let mut task = task;
            let mut lost = None;
            for (key, coming) in coming {
                match coming.await.unwrap_or(Err(Lost)) {
                    Ok(datum) => task.inputs.push((key, Input::Value(datum))),
                    Err(Lost) => lost = Some(key),
                }
            }
            let read = handle.call(move |shell| shell.inputs_read(task, run_id, start, lost));
            // The worker may be closing, which is what ends this.
            let _ = read.await;
        });
    }

    fn inputs_read(&mut self, task: Task, run_id: i64, start: f64, lost: Option<Key>) {
        let key = task.key.clone();
        let state = self.core.find_task(&key).map(|ts| ts.state);
        let reschedule = |reason: &str| {
            let event = Event::Reschedule { key: key.clone() };
            Stimulus::new(stimulus_id(reason), event)
        };
        if !self.status.is_any_running() {
            return self.stimulus(reschedule("worker-closing"));
        }
        if state == Some(State::Cancelled) {
            return self.stimulus(reschedule("already-cancelled"));
        }
        let Some(lost) = lost else {
            let delay = self.metrics.scheduler_delay;
            let stop = now();
            let disk_read = (stop - start > NOTEWORTHY).then_some(StartStop {
                action: Action::DiskRead,
                start: start + delay,
                stop: stop + delay,
                source: None,
            });
            return self.hand_over(task, Running { run_id, disk_read });
        };
        let stimulus = match self.memory.failure_of(&lost) {
            // The scheduler knows who else has it, or has it computed again.
            None => reschedule("data-lost"),
            Some(failure) => {
                let event = Event::ExecuteFailure {
                    key,
                    run_id,
                    failure,
                    startstops: Vec::new(),
                    thread: None,
                };
                Stimulus::new(stimulus_id("execute-unknown-error"), event)
            }
        };
        self.stimulus(stimulus);
    }

    /// The process was looked at: `WorkerMemoryManager.memory_monitor` in distributed.
    pub(super) fn observe_memory(&mut self, observed: &Observed) {
        observed.is_pending.store(false, Ordering::Relaxed);
        let process = observed.process;
        let ending = self.store.ending_nbytes();
        let is_paused = match self.status {
            Status::Running => Some(false),
            Status::Paused => Some(true),
            Status::Init | Status::ClosingGracefully | Status::Closing | Status::Closed => None,
        };
        let Some(pressure) = &mut self.memory.pressure else {
            return;
        };
        let observation = pressure.observe(process, ending, is_paused);
        let (per_cent, limit) = (pressure.per_cent(process), pressure.limit());
        if let Some(buffer) = self.store.buffer() {
            let demand = observation.demand;
            if demand > 0 && buffer.leaving() == 0 && buffer.memory() > 0 {
                debug!(
                    target: "distributed.worker.memory",
                    "Worker is at {per_cent}% memory usage. Start spilling data to disk."
                );
            }
            buffer.observe(demand);
            if demand > 0 && buffer.memory() == 0 {
                pressure.give_up();
                if self.memory.unmanaged_logs.is_due() {
                    log_unmanaged(process, limit);
                }
            } else if demand > buffer.leaving() && buffer.is_exhausted() {
                pressure.give_up();
            }
        }
        if let Some(change) = observation.change {
            self.change_status(change, per_cent, process, limit);
        }
        if observation.collect && self.memory.collections.is_due() {
            self.handle.executor.collect_garbage();
        }
        self.give_memory_back(observation.collect || observation.demand > 0);
    }

    fn change_status(&mut self, change: Change, per_cent: u64, process: u64, limit: u64) {
        let (process, limit) = (format_bytes(process), format_bytes(limit));
        let (what, status) = match change {
            // Two spaces, as in stock.
            Change::Pause => ("Pausing worker. ", Status::Paused),
            Change::Resume => ("Resuming worker.", Status::Running),
        };
        warn!(
            target: "distributed.worker.memory",
            "Worker is at {per_cent}% memory usage. {what} Process memory: {process} -- Worker memory limit: {limit}"
        );
        self.set_status(status);
    }

    /// Returns unused memory to the system if that pays now.
    pub(super) fn give_memory_back(&mut self, is_short: bool) {
        let is_idle = self.core.executing_count() + self.core.long_running_count() == 0;
        if self.memory.trimming.is_due(now(), is_idle, is_short) {
            self.disk_work.spawn_blocking(crate::memory::release_all);
        }
    }

    /// What was read for a task or a peer.
    pub(super) fn count_read(&self, reads: &mut Reads, input: &Input) {
        if let (Some(_), Input::Value(datum)) = (self.store.buffer_ref(), input) {
            reads.memory_count += 1;
            reads.memory_nbytes += datum.nbytes;
        }
    }
}

/// Lets go of all values, those on disk included. Only for a worker that closes.
pub(super) async fn clear(handle: &ShellHandle) {
    let cleared = handle.call(|shell| {
        shell.disk_work.abort_all();
        shell.memory.held.clear();
        shell.store.clear();
        shell.store.disk().cloned()
    });
    if let Ok(Some(disk)) = cleared.await {
        // What a slow disk does not let go of goes with the local directory.
        let _ = tokio::time::timeout(super::CLOSE_TIMEOUT, disk.clear()).await;
    }
}

impl ShellHandle {
    /// Hands over an event with values, and waits until they are where they stay.
    pub(super) async fn arrive(&self, stimulus: Stimulus) -> Result<(), ShutDown> {
        let (sender, done) = oneshot::channel();
        let arrive = self.call(move |shell| shell.arrive(stimulus, Some(sender)));
        arrive.await?;
        done.await.map_err(|_| ShutDown)
    }

    fn observed(&self, observed: Observed) {
        self.report(super::shell::Report::Memory(observed));
    }
}

/// What becomes of a wish for a value.
#[derive(Debug)]
pub(super) enum Wanted {
    /// Here it is.
    Here(Input),
    /// It is being read.
    Coming(Coming),
    /// It is not here.
    Missing,
}

impl Wanted {
    /// Waits for it.
    pub(super) async fn arrived(self) -> Option<Input> {
        match self {
            Self::Here(input) => Some(input),
            Self::Coming(coming) => Some(Input::Value(coming.await.ok()?.ok()?)),
            Self::Missing => None,
        }
    }
}

/// What an event says of the value of a key.
fn insertion_of<'a>(event: &'a mut Event, key: &Key) -> Option<&'a mut Insertion> {
    if let Event::ExecuteSuccess {
        key: own, value, ..
    } = event
    {
        return (own == key).then_some(value);
    }
    if let Event::GatherDepSuccess { data, .. } | Event::UpdateData { data } = event {
        let own = data.iter_mut().find(|(own, _)| own == key);
        return own.map(|(_, value)| value);
    }
    None
}

/// What stock raises for a value that is too large for memory and cannot be pickled.
fn pickle_error(key: &Key) -> Arc<TaskFailure> {
    let pickle = exception_pickle("distributed.spill", "PickleError", &[PickleArg::Key(key)]);
    let text = format!("PickleError({})", key.python_repr());
    failure::of_pickle(pickle, &text)
}

fn log_unspillable(key: &Key, text: &str) {
    let key = key.python_repr();
    error!(target: "distributed.spill", "Failed to pickle {key}: {text}");
}

fn log_unmanaged(process: u64, limit: u64) {
    let (process, limit) = (format_bytes(process), format_bytes(limit));
    warn!(
        target: "distributed.worker.memory",
        "Unmanaged memory use is high. This may indicate a memory leak or the memory may not be \
         released to the OS; see \
         https://distributed.dask.org/en/latest/worker-memory.html#memory-not-released-back-to-the-os \
         for more information. -- Unmanaged memory: {process} -- Worker memory limit: {limit}"
    );
}
