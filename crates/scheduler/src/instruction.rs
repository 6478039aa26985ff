//! What a scheduler wants done.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::Bytes;
use oxidask_wire::{Key, Value, pickle, python};

use crate::graph::RunSpec;
use crate::id::{ClientId, RequestId, Status, StimulusId, TaskId, WorkerId};
use crate::task::{State, TaskRecord};

/// Effects in the order in which they have to be carried out.
#[derive(Debug, Default)]
pub struct Instructions(pub Vec<Instruction>);

impl Deref for Instructions {
    type Target = Vec<Instruction>;

    fn deref(&self) -> &Vec<Instruction> {
        &self.0
    }
}

impl DerefMut for Instructions {
    fn deref_mut(&mut self) -> &mut Vec<Instruction> {
        &mut self.0
    }
}

/// One effect. The shell carries instructions out in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Instruction {
    /// Write to a worker's stream; drop it if the worker is gone.
    ToWorker {
        /// To whom.
        worker: WorkerId,
        /// What.
        message: ToWorker,
    },
    /// Write to a client's stream; only clients with a stream are named.
    ToClient {
        /// To whom.
        client: ClientId,
        /// What.
        message: ToClient,
    },
    /// Ask a graph helper for the pickles of a bundle; answered by `BundleExploded` or `BundleFailed`.
    ExplodeBundle {
        /// The scheduler's id of the bundle.
        bundle: u32,
        /// The bundle.
        blob: Bytes,
    },
    /// The answer to a request that carried this id.
    Reply {
        /// Whom to answer.
        request: RequestId,
        /// The reply, or the error to raise at the caller.
        result: Result<Value, Failure>,
    },
    /// A worker was added: tell `subscribe_worker_status` observers.
    WorkerAdded {
        /// Which.
        worker: WorkerId,
    },
    /// A worker is gone: close pooled connections, tell observers. Its state is already dropped.
    WorkerRemoved {
        /// Which.
        worker: WorkerId,
        /// Its address.
        address: Arc<str>,
        /// Its name.
        name: Value,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A worker left processing with a task: feeds the task stream.
    TaskRecord(Box<TaskRecord>),
    /// A P2P barrier became `released`, `erred` or `forgotten`.
    BarrierLeft {
        /// The barrier's key.
        key: Key,
        /// Its shuffle.
        shuffle_id: Arc<str>,
        /// Its new state.
        finish: State,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A task is forgotten of which an extension keeps something.
    TaskForgotten {
        /// Its key.
        key: Key,
    },
    /// `restart` has cleared all tasks: extensions clear what they keep.
    Restarted,
    /// Ask a graph helper to lay out a shuffle run; answered by
    /// `Extensions::shuffle_run_created` or `Extensions::shuffle_run_failed`.
    CreateShuffleRun(Box<CreateShuffleRun>),
    /// Call `shuffle_inputs_done` on workers; answered once, for all of them,
    /// by `Extensions::shuffle_inputs_done_result`.
    ShuffleInputsDone {
        /// The barrier request that waits for the answers.
        request: RequestId,
        /// Addresses.
        workers: Vec<Arc<str>>,
        /// The shuffle.
        shuffle_id: Arc<str>,
        /// Its run.
        run_id: i64,
    },
    /// Publish on event topics (`[ts, msg]`).
    LogEvent {
        /// Where.
        topics: Vec<Arc<str>>,
        /// What.
        message: Value,
    },
    /// A line for the log, with the text stock writes.
    Log {
        /// How bad it is.
        level: Level,
        /// The line.
        text: String,
    },
}

/// What a graph helper needs to lay out a shuffle run (`create_run`).
#[derive(Debug, Clone, PartialEq)]
pub struct CreateShuffleRun {
    /// The shuffle.
    pub shuffle_id: Arc<str>,
    /// The run's number, to be put into the `ShuffleRunSpec`.
    pub run_id: i64,
    /// The barrier task, which holds the `ShuffleSpec`.
    pub spec: RunSpec,
    /// Span of the task that asked.
    pub span_id: Option<Arc<str>>,
    /// Addresses of the candidates, already rotated.
    pub workers: Vec<Arc<str>>,
    /// Output partitions that a sibling shuffle has placed, with their workers.
    pub existing: Vec<(Value, Arc<str>)>,
}

/// An error made here, as a client or caller unpickles it.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Pickle of the exception.
    pub exception: Bytes,
    /// `repr` of the exception: `exception_text` of an error message.
    pub text: String,
}

impl Failure {
    /// `class(text)` with a built-in exception class.
    ///
    /// A `KeyError` made here holds the text, not the key; see
    /// `wire::pickle::exception_pickle` for exceptions with other arguments.
    pub fn builtin(class: &str, text: &str) -> Self {
        let exception =
            pickle::exception_pickle("builtins", class, &[pickle::PickleArg::Str(text)]);
        let mut argument = String::new();
        python::str_repr(text, &mut argument);
        Self {
            exception: exception.into(),
            text: format!("{class}({argument})"),
        }
    }
}

/// Severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the variants are the names that Python's logging gives them"
)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

/// A message for a worker's stream.
#[derive(Debug, Clone, PartialEq)]
pub enum ToWorker {
    /// The content is read by `Scheduler::compute_task` when the message is
    /// written, before the next event is handled; skipped if the task has moved on.
    ComputeTask {
        /// Which task.
        task: TaskId,
        /// Which run of it.
        run_id: i64,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// Forget these keys, whatever their state.
    FreeKeys {
        /// Which.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// Drop replicas of these keys.
    RemoveReplicas {
        /// Which.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// Fetch replicas.
    AcquireReplicas {
        /// Holders of each key.
        who_has: Vec<(Key, Vec<Arc<str>>)>,
        /// Sizes, −1 if unknown.
        nbytes: Vec<(Key, i64)>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// Give this task up unless it has begun; answered by `Event::StealResponse`.
    StealRequest {
        /// Which.
        key: Key,
        /// Names the request; its answer carries the same.
        stimulus_id: StimulusId,
    },
    /// Answers `request-refresh-who-has`.
    RefreshWhoHas {
        /// Holders of each key.
        who_has: Vec<(Key, Vec<Arc<str>>)>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// Take on a status (retirement).
    WorkerStatusChange {
        /// Which.
        status: Status,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// Another worker is gone.
    RemoveWorker {
        /// Its address.
        address: Arc<str>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A shuffle run failed.
    ShuffleFail {
        /// The shuffle.
        shuffle_id: Arc<str>,
        /// Its run.
        run_id: i64,
        /// Why, for people.
        message: String,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// Close.
    Close {
        /// Why.
        reason: Arc<str>,
    },
}

/// A message for a client's stream.
#[derive(Debug, Clone, PartialEq)]
pub enum ToClient {
    /// A key is in memory.
    KeyInMemory {
        /// Which.
        key: Key,
        /// Pickled class of the result, when it was just computed.
        r#type: Option<Bytes>,
        /// Holders, after scatter.
        workers: Option<Vec<Arc<str>>>,
    },
    /// The data of a key is lost; it will be computed again if it can be.
    LostData {
        /// Which.
        key: Key,
    },
    /// A key failed. `exception` and `traceback` are as they came from the worker, or a pickle made here.
    TaskErred {
        /// Which.
        key: Key,
        /// Of the task to blame.
        exception: Value,
        /// Of the task to blame; may be nil.
        traceback: Value,
    },
    /// A failed key runs again.
    TaskRetried {
        /// Which.
        key: Key,
    },
    /// Keys are cancelled.
    CancelledKeys {
        /// Which.
        keys: Vec<Key>,
        /// "lost dependencies" sends a set.
        as_set: bool,
        /// Nil leaves it out.
        reason: Value,
        /// Nil leaves it out, unless `reason` is given by a client.
        msg: Value,
    },
    /// All tasks are gone.
    Restart,
    /// An event of a topic it subscribed to.
    Event {
        /// Which topic.
        topic: Arc<str>,
        /// `[timestamp, message]`.
        event: Value,
    },
    /// How often to send heartbeats.
    AdjustHeartbeatInterval {
        /// Seconds.
        interval: f64,
    },
}
