//! One task as the scheduler sees it.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use oxidask_wire::{Key, Map, Str, Value};

use crate::deaths::Death;
use crate::graph::{Number, RunSpec};
use crate::id::{ClientId, GroupId, TaskId, WorkerId};
use crate::sets::IdSet;
use crate::tasks::KeyHash;

/// The state of a task on the scheduler.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum State {
    /// Known, not wanted now.
    Released,
    /// Wanted, some dependency is not in memory.
    Waiting,
    /// Ready, but no worker may run it.
    NoWorker,
    /// Ready and root-ish, all workers are busy.
    Queued,
    /// Assigned to a worker.
    Processing,
    /// At least one worker holds the result.
    Memory,
    /// It, or something it depends on, failed.
    Erred,
    /// Gone.
    Forgotten,
}

impl State {
    /// Number of states.
    pub const COUNT: usize = 8;

    /// Every state, in the order in which counters are indexed.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Released,
        Self::Waiting,
        Self::NoWorker,
        Self::Queued,
        Self::Processing,
        Self::Memory,
        Self::Erred,
        Self::Forgotten,
    ];

    /// Dask's name, such as `no-worker`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Waiting => "waiting",
            Self::NoWorker => "no-worker",
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Memory => "memory",
            Self::Erred => "erred",
            Self::Forgotten => "forgotten",
        }
    }

    /// Between `waiting` and `processing`: its dependencies count it as a waiter.
    pub fn is_active(self) -> bool {
        match self {
            Self::Waiting | Self::NoWorker | Self::Queued | Self::Processing => true,
            Self::Released | Self::Memory | Self::Erred | Self::Forgotten => false,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `(−user priority, generation, position in the graph's order)`, smaller first.
#[derive(Clone, Copy, Debug)]
pub struct Priority {
    user: f64,
    generation: f64,
    order: i64,
    user_is_float: bool,
    generation_is_float: bool,
}

impl Priority {
    /// From the user's priority (not negated), the generation and the position in the graph.
    pub fn new(user: Number, generation: Number, order: i64) -> Self {
        let user = user.negated();
        Self {
            user: user.as_f64(),
            generation: generation.as_f64(),
            order,
            user_is_float: matches!(user, Number::Float(_)),
            generation_is_float: matches!(generation, Number::Float(_)),
        }
    }

    /// The three elements as they go over the wire. Ints above 2⁵³ have lost precision.
    pub fn elements(&self) -> [Number; 3] {
        let number = |value: f64, is_float| {
            if is_float {
                Number::Float(value)
            } else {
                Number::Int(value as i64)
            }
        };
        [
            number(self.user, self.user_is_float),
            number(self.generation, self.generation_is_float),
            Number::Int(self.order),
        ]
    }

    pub(crate) fn rank(&self) -> Rank {
        [
            ordered(self.user),
            ordered(self.generation),
            (self.order as u64) ^ 1 << 63,
        ]
    }

    /// The negated user priority.
    pub fn user(&self) -> f64 {
        self.user
    }
}

/// A priority as integers that compare as it does; a task without one comes first.
pub(crate) type Rank = [u64; 3];

/// Integers in the order of floats.
pub(crate) fn ordered(value: f64) -> u64 {
    // `-0.0 + 0.0` is `0.0`: Python's order does not tell them apart.
    let bits = (value + 0.0).to_bits();
    if bits >> 63 == 0 {
        bits | 1 << 63
    } else {
        !bits
    }
}

impl PartialEq for Priority {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Priority {}

impl PartialOrd for Priority {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Priority {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

/// Why a task is `erred`, shared by every task that fails for the same reason.
///
/// Stock keeps `exception_blame` and looks the rest up in that task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskFailure {
    /// The task to blame.
    pub cause: Key,
    /// As the worker sent it (`__Serialized__` bytes), or a pickle made here.
    pub exception: Value,
    /// As the worker sent it; nil when the scheduler made the exception.
    pub traceback: Value,
    /// `repr` of the exception.
    pub exception_text: Str,
    /// Formatted traceback.
    pub traceback_text: Str,
}

/// What few tasks have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extras {
    /// Hosts that may run it; none means all.
    pub host_restrictions: Vec<Arc<str>>,
    /// Addresses of workers that may run it; none means all.
    pub worker_restrictions: Vec<Arc<str>>,
    /// Resources it needs.
    pub resource_restrictions: Vec<(Arc<str>, f64)>,
    /// The `resources` annotation as it came, for the worker.
    pub resources: Value,
    /// Workers that reported its failure.
    pub erred_on: Vec<WorkerId>,
    /// Annotations of this task; they override [`TaskState::annotations`].
    pub annotations: Map,
    /// What workers reported about its runs.
    pub metadata: Map,
    /// The shuffle whose barrier this task is.
    pub barrier: Option<Arc<str>>,
    /// How workers died while it was assigned to them: the last ones, oldest first.
    pub(crate) deaths: Vec<Arc<Death>>,
}

/// A task. `Scheduler::task` gives it by id.
#[derive(Clone, Debug)]
pub struct TaskState {
    /// The key.
    pub key: Key,
    /// How it is computed; `None` for scattered data.
    pub run_spec: RunSpec,
    /// Set when first part of a graph.
    pub priority: Option<Priority>,
    /// Where it is in its life.
    pub state: State,
    /// What it needs.
    pub dependencies: IdSet<TaskId>,
    /// What needs it.
    pub dependents: IdSet<TaskId>,
    /// Dependencies that are not in memory.
    pub waiting_on: IdSet<TaskId>,
    /// Dependents that need it now.
    pub waiters: IdSet<TaskId>,
    /// Clients that want it.
    pub who_wants: IdSet<ClientId>,
    /// Workers that hold it.
    pub who_has: IdSet<WorkerId>,
    /// The worker it is assigned to.
    pub processing_on: Option<WorkerId>,
    /// Bytes of the result; −1 while unknown.
    pub nbytes: i64,
    /// The last run, unique over all tasks; −1 before the first.
    pub run_id: i64,
    /// How often it may still fail.
    pub retries: i64,
    /// How many workers died while it was assigned to them.
    pub suspicious: u32,
    /// Its group.
    pub group: GroupId,
    /// Name of the result's type.
    pub r#type: Option<Arc<str>>,
    /// Why it is erred, or about to be.
    pub failure: Option<Arc<TaskFailure>>,
    /// Annotations of its whole graph.
    pub annotations: Option<Arc<Map>>,
    /// Restrictions and whatever else most tasks do without.
    pub extras: Option<Box<Extras>>,
    /// An actor.
    pub actor: bool,
    /// Restrictions give way when no worker satisfies them.
    pub loose_restrictions: bool,
    /// A dependency is forgotten, so it can never be computed again.
    pub has_lost_dependencies: bool,
    /// May wait in the queue (P2P output tasks may not).
    pub queueable: bool,
    /// Always root-ish.
    pub data_producer: bool,
    /// In `processing`, but its bundle has not been exploded yet: no message was sent.
    pub awaits_bundle: bool,
    /// The level at which its worker has it as stealable.
    pub(crate) steal_level: u8,
    /// Nobody needs it, but its turn to go has not come.
    pub(crate) lingers: bool,
    /// Graphs on their way in that hold on to it.
    pub(crate) pins: u16,
    /// Position in the pending recommendations.
    pub(crate) recommended: u32,
    /// Orders equal priorities in the queue by arrival.
    pub(crate) queue_sequence: u32,
    /// Number of the task among all that ever were, to tell a reused id from the old one.
    pub(crate) birth: u32,
    /// Of the key.
    pub(crate) hash: KeyHash,
}

/// No pending recommendation.
pub(crate) const NOT_RECOMMENDED: u32 = u32::MAX;

const _: () = assert!(size_of::<TaskState>() <= 328);

impl TaskState {
    pub(crate) fn new(key: Key, run_spec: RunSpec, state: State, group: GroupId) -> Self {
        Self {
            key,
            run_spec,
            priority: None,
            state,
            dependencies: IdSet::default(),
            dependents: IdSet::default(),
            waiting_on: IdSet::default(),
            waiters: IdSet::default(),
            who_wants: IdSet::default(),
            who_has: IdSet::default(),
            processing_on: None,
            nbytes: -1,
            run_id: -1,
            retries: 0,
            suspicious: 0,
            group,
            r#type: None,
            failure: None,
            annotations: None,
            extras: None,
            actor: false,
            loose_restrictions: false,
            has_lost_dependencies: false,
            queueable: true,
            data_producer: false,
            awaits_bundle: false,
            steal_level: crate::stealing::NOT_STEALABLE,
            lingers: false,
            pins: 0,
            recommended: NOT_RECOMMENDED,
            queue_sequence: 0,
            birth: 0,
            hash: KeyHash::default(),
        }
    }

    /// Whether it can be computed.
    pub fn has_run_spec(&self) -> bool {
        !matches!(self.run_spec, RunSpec::None)
    }

    /// Hosts that may run it.
    pub fn host_restrictions(&self) -> &[Arc<str>] {
        self.extras
            .as_ref()
            .map_or(&[], |extras| &extras.host_restrictions)
    }

    /// Workers that may run it.
    pub fn worker_restrictions(&self) -> &[Arc<str>] {
        self.extras
            .as_ref()
            .map_or(&[], |extras| &extras.worker_restrictions)
    }

    /// Resources it needs.
    pub fn resource_restrictions(&self) -> &[(Arc<str>, f64)] {
        self.extras
            .as_ref()
            .map_or(&[], |extras| &extras.resource_restrictions)
    }

    /// The shuffle whose barrier this task is.
    pub fn barrier(&self) -> Option<&Arc<str>> {
        self.extras
            .as_ref()
            .and_then(|extras| extras.barrier.as_ref())
    }

    /// The annotations of this task: the graph's, overridden by its own.
    pub fn annotation(&self, name: &str) -> Option<&Value> {
        self.extras
            .as_ref()
            .and_then(|extras| extras.annotations.get(name))
            .or_else(|| {
                self.annotations
                    .as_ref()
                    .and_then(|global| global.get(name))
            })
    }

    /// Whether it has to be kept although no dependent needs it.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.who_wants.is_empty() || self.pins > 0 || self.lingers
    }

    /// Whether its result has to be kept.
    pub(crate) fn is_needed(&self) -> bool {
        !self.waiters.is_empty() || self.is_wanted()
    }

    /// Where it stands among others; smaller first.
    pub(crate) fn rank(&self) -> Rank {
        self.priority.map_or([0; 3], |priority| priority.rank())
    }

    pub(crate) fn extras_mut(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }
}

/// An entry of the erred tasks kept for diagnostics.
#[derive(Clone, Debug, PartialEq)]
pub struct ErredTask {
    /// The task that failed.
    pub key: Key,
    /// When, in seconds since the epoch.
    pub timestamp: f64,
    /// Addresses of the workers it failed on.
    pub erred_on: Vec<Arc<str>>,
    /// `repr` of the exception.
    pub exception_text: Str,
    /// Formatted traceback.
    pub traceback_text: Str,
}

/// A finished run of a task, for the task stream and for metadata collectors.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRecord {
    /// The task.
    pub key: Key,
    /// Address of the worker that ran it.
    pub worker: Arc<str>,
    /// `memory` or `erred`.
    pub finish: State,
    /// Bytes of the result; −1 if it erred.
    pub nbytes: i64,
    /// Pickled class of the result; empty if it erred.
    pub r#type: Bytes,
    /// Name of that class.
    pub typename: Str,
    /// What the worker reported with it.
    pub metadata: Value,
    /// The thread it ran on.
    pub thread: Value,
    /// Raw list of `{action, start, stop[, source]}`.
    pub startstops: Value,
    /// Why.
    pub stimulus_id: crate::StimulusId,
}
