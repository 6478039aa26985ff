//! A materialised graph on its way into the scheduler.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use oxidask_wire::{Key, Map, Value};

use crate::id::{ClientId, StimulusId};

/// What `update-graph` becomes once the graph helper has expanded it.
///
/// Tasks are `0..n`; an index at or above `n` names a dependency outside the
/// graph. Everything per task is a column of its own, so that a graph of a
/// million tasks is a handful of allocations.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The client that submitted the graph.
    pub client: ClientId,
    /// Keys the client wants.
    pub requested: Vec<Key>,
    /// The `n` task keys, then the keys of dependencies outside the graph.
    pub keys: Vec<Key>,
    /// `n + 1` offsets into `dependencies`.
    pub dependency_offsets: Vec<u32>,
    /// Indices into `keys`.
    pub dependencies: Vec<u32>,
    /// Per task.
    pub flags: Vec<TaskFlags>,
    /// Per task: how its `run_spec` is made.
    pub specs: Vec<RunSpec>,
    /// Packed bundles that [`RunSpec::Bundle`] refers to by index.
    pub bundles: Vec<Bytes>,
    /// Per task: the third element of its priority.
    pub order: Vec<i64>,
    /// Annotations of single tasks, by ascending index; they override `global_annotations`.
    pub annotations: Vec<(u32, Map)>,
    /// Annotations of every new task.
    pub global_annotations: Option<Arc<Map>>,
    /// Which tasks are actors.
    pub actors: Actors,
    /// `user_priority` of the message (0 if absent).
    pub user_priority: Number,
    /// Seconds after which a new generation begins (`fifo_timeout`).
    pub fifo_timeout: f64,
    /// Key of the task that called `get_client().submit`.
    pub submitting_task: Option<Key>,
    /// The P2P barriers of the graph: task index and shuffle id.
    pub barriers: Vec<(u32, Arc<str>)>,
    /// Opaque `code` of the message, kept with the computation and the span.
    pub code: Value,
    /// Opaque `span_metadata` of the message, kept with the span.
    pub span_metadata: Value,
    /// Why this happens.
    pub stimulus_id: StimulusId,
    /// When the message arrived, in seconds since the epoch.
    pub start: f64,
}

/// Per-task bits of a [`Graph`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskFlags(pub u8);

impl TaskFlags {
    /// Always root-ish: `Task._data_producer`, and every `DataNode`.
    pub const DATA_PRODUCER: u8 = 1;
    /// A `DataNode`: not a task for ordering.
    pub const DATA: u8 = 2;
    /// A `P2PBarrierTask`.
    pub const BARRIER: u8 = 4;
}

/// Which tasks of a graph are actors.
#[derive(Clone, Debug, PartialEq)]
pub enum Actors {
    /// None of them.
    None,
    /// All requested keys.
    All,
    /// These keys.
    Keys(Vec<Key>),
}

/// How a task's `run_spec` is made when a worker has been chosen.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum RunSpec {
    /// Data without a recipe (scattered, or first seen as a dependency).
    #[default]
    None,
    /// A complete pickle of the task.
    Pickle(Bytes),
    /// A complete pickle with out-of-band buffers.
    Buffers(Arc<(Bytes, Vec<Bytes>)>),
    /// A function and encoded arguments: the pickle is stitched natively.
    /// See `docs/graph-helper.md` for the encoding of the arguments.
    Call {
        /// Pickle of the function, shared by all its tasks.
        function: Bytes,
        /// msgpack `[args]`, `[args, kwargs]` or `[args, kwargs, data_producer]`.
        arguments: Bytes,
    },
    /// One task of a packed bundle; the helper turns bundles into pickles on demand.
    Bundle {
        /// In a [`Graph`]: index into `bundles`. In a task: the scheduler's id of the bundle.
        bundle: u32,
        /// Position in the bundle.
        index: u32,
    },
}

/// A Python number, as priorities use them: an int stays an int on the wire.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// Python int.
    Int(i64),
    /// Python float.
    Float(f64),
}

impl Number {
    /// As a float; ints above 2⁵³ lose precision.
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }

    /// Python's `-number`.
    pub fn negated(self) -> Self {
        match self {
            Self::Int(int) => Self::Int(int.saturating_neg()),
            Self::Float(float) => Self::Float(-float),
        }
    }

    /// The number in a value; `True` counts as 1, as in Python.
    pub fn from_value(value: &Value) -> Option<Self> {
        match value.as_bool() {
            Some(bool) => Some(Self::Int(i64::from(bool))),
            None => value
                .as_i64()
                .map(Self::Int)
                .or_else(|| value.as_f64().map(Self::Float)),
        }
    }

    /// Python's order of numbers, with NaN last and `-0.0` equal to `0`.
    pub fn total_cmp(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Int(left), Self::Int(right)) => left.cmp(&right),
            (Self::Int(_) | Self::Float(_), _) => {
                (self.as_f64() + 0.0).total_cmp(&(other.as_f64() + 0.0))
            }
        }
    }
}
