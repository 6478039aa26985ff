//! One task as the worker sees it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use oxidask_wire::{Key, Map, Str, Value};

use crate::counter::PrefixId;
use crate::id::{PeerId, TaskId};
use crate::priority::Priority;
use crate::sets::IdSet;

/// Start and stop times kept per task. A task is run or fetched a few times;
/// chosen so that one that is run over and over does not grow without end.
const STARTSTOPS_MAX: usize = 1000;

/// The state of a task on a worker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum State {
    /// Known, not wanted now.
    Released,
    /// To be computed, some dependency is not in memory.
    Waiting,
    /// To be fetched from a peer that has it.
    Fetch,
    /// To be fetched, nobody is known to have it.
    Missing,
    /// On its way from a peer.
    Flight,
    /// Could run, all threads are busy.
    Ready,
    /// Could run, but needs resources.
    Constrained,
    /// Running.
    Executing,
    /// Running, and given up its thread's place: `secede()`.
    LongRunning,
    /// The result is here.
    Memory,
    /// It failed.
    Error,
    /// Not wanted any more, but it runs or is on its way.
    Cancelled,
    /// Cancelled, then wanted for the other reason: fetched while it runs, or
    /// computed while it is on its way.
    Resumed,
    /// It asked to be run elsewhere. Only ever passed through.
    Rescheduled,
    /// Gone.
    Forgotten,
}

impl State {
    /// Number of states.
    pub const COUNT: usize = 15;

    /// Every state, in the order in which counters are indexed.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Released,
        Self::Waiting,
        Self::Fetch,
        Self::Missing,
        Self::Flight,
        Self::Ready,
        Self::Constrained,
        Self::Executing,
        Self::LongRunning,
        Self::Memory,
        Self::Error,
        Self::Cancelled,
        Self::Resumed,
        Self::Rescheduled,
        Self::Forgotten,
    ];

    /// Dask's name, such as `long-running`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Waiting => "waiting",
            Self::Fetch => "fetch",
            Self::Missing => "missing",
            Self::Flight => "flight",
            Self::Ready => "ready",
            Self::Constrained => "constrained",
            Self::Executing => "executing",
            Self::LongRunning => "long-running",
            Self::Memory => "memory",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
            Self::Resumed => "resumed",
            Self::Rescheduled => "rescheduled",
            Self::Forgotten => "forgotten",
        }
    }

    /// Could run at once: `READY` in Dask.
    pub fn is_ready(self) -> bool {
        matches!(self, Self::Ready | Self::Constrained)
    }

    /// Between being asked for and being done: `PROCESSING` in Dask.
    pub fn is_processing(self) -> bool {
        self.is_ready() || self.is_running() || self == Self::Waiting
    }

    /// Executing or long-running. Cancelled and resumed tasks may run as well.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Executing | Self::LongRunning)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a cancelled or resumed task is still doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Previous {
    /// Running.
    Executing,
    /// Running without a place among the threads.
    LongRunning,
    /// On its way from a peer.
    Flight,
}

impl Previous {
    /// The state of that name.
    pub fn state(self) -> State {
        match self {
            Self::Executing => State::Executing,
            Self::LongRunning => State::LongRunning,
            Self::Flight => State::Flight,
        }
    }

    /// What a task that was doing this is resumed for: there is one way for each.
    pub(crate) fn resumed_for(self) -> State {
        match self {
            Self::Executing | Self::LongRunning => State::Fetch,
            Self::Flight => State::Waiting,
        }
    }
}

/// Why a task failed, for messages; the core reads none of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskFailure {
    /// The pickled exception, length-limited.
    pub exception: Value,
    /// The pickled traceback, or nil.
    pub traceback: Value,
    /// `repr` of the exception.
    pub exception_text: Str,
    /// Formatted traceback.
    pub traceback_text: Str,
}

/// The type of a value, for `task-finished`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ValueType {
    /// Pickle of the class, or of its name if that fails.
    pub pickled: Bytes,
    /// Name of the class with its module.
    pub name: Str,
}

/// What was done from when to when.
#[derive(Clone, Debug, PartialEq)]
pub struct StartStop {
    /// What.
    pub action: Action,
    /// In seconds since the epoch, in the scheduler's time.
    pub start: f64,
    /// As `start`.
    pub stop: f64,
    /// The peer that data came from.
    pub source: Option<Arc<str>>,
}

/// What takes the time of a [`StartStop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The task ran.
    Compute,
    /// Inputs were fetched.
    Transfer,
    /// Inputs were read from disk.
    DiskRead,
    /// Storing the result wrote to disk.
    DiskWrite,
    /// The task was unpickled.
    Deserialize,
}

impl Action {
    /// Dask's name, such as `disk-read`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Transfer => "transfer",
            Self::DiskRead => "disk-read",
            Self::DiskWrite => "disk-write",
            Self::Deserialize => "deserialize",
        }
    }
}

/// A task. [`WorkerState::find_task`](crate::WorkerState::find_task) gives it by key.
#[derive(Clone, Debug)]
pub struct TaskState {
    /// The key.
    pub key: Key,
    /// Where it is in its life.
    pub state: State,
    /// What it is still doing; `Some` if and only if cancelled or resumed.
    pub previous: Option<Previous>,
    /// What it runs; `None` for what was only ever fetched or scattered.
    pub run_spec: Option<Value>,
    /// The run that the scheduler asked for last, −1 before the first.
    pub run_id: i64,
    /// What it needs.
    pub dependencies: IdSet<TaskId>,
    /// What needs it.
    pub dependents: IdSet<TaskId>,
    /// Dependencies that are not in memory.
    pub waiting_for_data: IdSet<TaskId>,
    /// Dependents that wait for it or waited for it.
    pub waiters: IdSet<TaskId>,
    /// Set when first asked for.
    pub priority: Option<Priority>,
    /// Peers that have it, as far as is known.
    pub who_has: IdSet<PeerId>,
    /// The peer that it is coming from.
    pub coming_from: Option<PeerId>,
    /// Amounts by resource.
    pub resource_restrictions: Vec<(Arc<str>, f64)>,
    /// Why it failed.
    pub failure: Option<Arc<TaskFailure>>,
    /// The type of its value.
    pub r#type: Option<Arc<ValueType>>,
    /// How long things took, oldest first, at most a thousand.
    pub startstops: Vec<StartStop>,
    /// When it last began to run, in seconds since the epoch.
    pub start_time: Option<f64>,
    /// What plug-ins and the task itself left for the scheduler.
    pub metadata: Value,
    /// Bytes of the value in memory; `None` while nothing is known, −1 if the
    /// scheduler does not know.
    pub nbytes: Option<i64>,
    /// Annotations of the task.
    pub annotations: Map,
    /// Group of metrics.
    pub span_id: Option<Str>,
    /// The thread that ran it.
    pub thread: Option<u64>,
    /// The execution or transfer has ended.
    pub done: bool,
    /// Runs as an actor.
    pub is_actor: bool,
    /// The shell keeps a value (or an actor) for it.
    pub has_data: bool,
    pub(crate) prefix: PrefixId,
    /// Of the key.
    pub(crate) hash: u64,
    /// Number of the task among all that ever were, to tell a reused id from the old one.
    pub(crate) birth: u64,
}

const _: () = assert!(size_of::<TaskState>() <= 520);

impl TaskState {
    pub(crate) fn new(key: Key, prefix: PrefixId) -> Self {
        Self {
            key,
            state: State::Released,
            previous: None,
            run_spec: None,
            run_id: crate::worker::RUN_ID_SENTINEL,
            dependencies: IdSet::default(),
            dependents: IdSet::default(),
            waiting_for_data: IdSet::default(),
            waiters: IdSet::default(),
            priority: None,
            who_has: IdSet::default(),
            coming_from: None,
            resource_restrictions: Vec::new(),
            failure: None,
            r#type: None,
            startstops: Vec::new(),
            start_time: None,
            metadata: Value::Map(Map::new()),
            nbytes: None,
            annotations: Map::new(),
            span_id: None,
            thread: None,
            done: false,
            is_actor: false,
            has_data: false,
            prefix,
            hash: 0,
            birth: 0,
        }
    }

    /// What a resumed task is wanted for: `fetch` or `waiting`.
    pub fn next(&self) -> Option<State> {
        match self.state {
            State::Resumed => self.previous.map(Previous::resumed_for),
            State::Released
            | State::Waiting
            | State::Fetch
            | State::Missing
            | State::Flight
            | State::Ready
            | State::Constrained
            | State::Executing
            | State::LongRunning
            | State::Memory
            | State::Error
            | State::Cancelled
            | State::Rescheduled
            | State::Forgotten => None,
        }
    }

    /// Whether it occupies a thread, cancelled or not.
    pub fn is_running(&self) -> bool {
        self.state.is_running() || self.was_running()
    }

    /// Whether it was cancelled while it ran and has not come back.
    pub(crate) fn was_running(&self) -> bool {
        matches!(
            self.previous,
            Some(Previous::Executing | Previous::LongRunning)
        )
    }

    pub(crate) fn push_startstop(&mut self, startstop: StartStop) {
        if self.startstops.len() == STARTSTOPS_MAX {
            self.startstops.remove(0);
        }
        self.startstops.push(startstop);
    }
}
