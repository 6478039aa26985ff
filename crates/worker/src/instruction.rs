//! What a worker wants done.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use oxidask_wire::{Key, Value};

use crate::id::StimulusId;
use crate::task::{StartStop, State, TaskFailure, ValueType};

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
#[derive(Clone, Debug, PartialEq)]
pub enum Instruction {
    /// Fetch from a peer; answered by one of the `GatherDep…` events.
    GatherDep(GatherDep),
    /// Run a task; answered by `ExecuteSuccess`, `ExecuteFailure` or `Reschedule`.
    Execute(Execute),
    /// Answer with `RetryBusyWorker` after 0.15 seconds.
    RetryBusyWorkerLater(RetryBusyWorkerLater),
    /// Write to the scheduler's stream.
    SendMessageToScheduler(SendMessageToScheduler),
    /// Keep the value that came with this event.
    StoreData {
        /// Whose.
        key: Key,
    },
    /// Drop the value kept for this key.
    ReleaseData {
        /// Whose.
        key: Key,
    },
    /// A transition was made, for plug-ins; only if the configuration asks for it.
    Transition {
        /// Of which task.
        key: Key,
        /// From where.
        start: State,
        /// Where it was to go.
        finish: State,
    },
}

/// Fetch from a peer.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherDep {
    /// Its address.
    pub worker: Arc<str>,
    /// What, best first.
    pub to_gather: Vec<Key>,
    /// Bytes in memory of all, as far as known; repeated in the answer.
    pub total_nbytes: i64,
    /// Why.
    pub stimulus_id: StimulusId,
}

/// Run a task, whose inputs are in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Execute {
    /// Which.
    pub key: Key,
    /// Why.
    pub stimulus_id: StimulusId,
}

/// A peer was busy.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryBusyWorkerLater {
    /// Its address.
    pub worker: Arc<str>,
    /// Why.
    pub stimulus_id: StimulusId,
}

/// A message for the scheduler.
#[derive(Clone, Debug, PartialEq)]
pub enum SendMessageToScheduler {
    /// `task-finished`
    TaskFinished(Box<TaskFinishedMsg>),
    /// `task-erred`
    TaskErred(Box<TaskErredMsg>),
    /// `release-worker-data`
    ReleaseWorkerData(ReleaseWorkerDataMsg),
    /// `reschedule`
    Reschedule(RescheduleMsg),
    /// `long-running`
    LongRunning(LongRunningMsg),
    /// `add-keys`
    AddKeys(AddKeysMsg),
    /// `request-refresh-who-has`
    RequestRefreshWhoHas(RequestRefreshWhoHasMsg),
    /// `steal-response`
    StealResponse(StealResponseMsg),
}

impl SendMessageToScheduler {
    /// The message's `op`.
    pub fn op(&self) -> &'static str {
        match self {
            Self::TaskFinished(_) => "task-finished",
            Self::TaskErred(_) => "task-erred",
            Self::ReleaseWorkerData(_) => "release-worker-data",
            Self::Reschedule(_) => "reschedule",
            Self::LongRunning(_) => "long-running",
            Self::AddKeys(_) => "add-keys",
            Self::RequestRefreshWhoHas(_) => "request-refresh-who-has",
            Self::StealResponse(_) => "steal-response",
        }
    }

    /// Why it is sent.
    pub fn stimulus_id(&self) -> &StimulusId {
        match self {
            Self::TaskFinished(msg) => &msg.stimulus_id,
            Self::TaskErred(msg) => &msg.stimulus_id,
            Self::ReleaseWorkerData(msg) => &msg.stimulus_id,
            Self::Reschedule(msg) => &msg.stimulus_id,
            Self::LongRunning(msg) => &msg.stimulus_id,
            Self::AddKeys(msg) => &msg.stimulus_id,
            Self::RequestRefreshWhoHas(msg) => &msg.stimulus_id,
            Self::StealResponse(msg) => &msg.stimulus_id,
        }
    }
}

/// A task is done and its value in memory. On the wire with `status: "OK"`.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskFinishedMsg {
    /// The task.
    pub key: Key,
    /// Which run of it.
    pub run_id: i64,
    /// Bytes of the value in memory.
    pub nbytes: i64,
    /// Type of the value.
    pub r#type: Arc<ValueType>,
    /// What was left for the scheduler.
    pub metadata: Value,
    /// The thread it ran on.
    pub thread: Option<u64>,
    /// How long things took.
    pub startstops: Vec<StartStop>,
    /// Why.
    pub stimulus_id: StimulusId,
}

/// A task failed. On the wire with `status: "error"`.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskErredMsg {
    /// The task.
    pub key: Key,
    /// Which run of it.
    pub run_id: i64,
    /// How.
    pub failure: Arc<TaskFailure>,
    /// The thread it ran on.
    pub thread: Option<u64>,
    /// How long things took.
    pub startstops: Vec<StartStop>,
    /// Why.
    pub stimulus_id: StimulusId,
}

/// A value is no longer here.
#[derive(Clone, Debug, PartialEq)]
pub struct ReleaseWorkerDataMsg {
    /// Whose.
    pub key: Key,
    /// Why.
    pub stimulus_id: StimulusId,
}

/// A task asks to be run elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct RescheduleMsg {
    /// Which.
    pub key: Key,
    /// Why.
    pub stimulus_id: StimulusId,
}

/// A task seceded.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRunningMsg {
    /// Which.
    pub key: Key,
    /// Which run of it.
    pub run_id: i64,
    /// Seconds it had been running; `None` if that was before it was cancelled and wanted again.
    pub compute_duration: Option<f64>,
    /// Why.
    pub stimulus_id: StimulusId,
}

/// Replicas are here.
#[derive(Clone, Debug, PartialEq)]
pub struct AddKeysMsg {
    /// Of which tasks.
    pub keys: Vec<Key>,
    /// Why.
    pub stimulus_id: StimulusId,
}

/// Nobody is known to have these, or whoever has them is busy.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestRefreshWhoHasMsg {
    /// Which.
    pub keys: Vec<Key>,
    /// Why.
    pub stimulus_id: StimulusId,
}

/// The answer to `steal-request`.
#[derive(Clone, Debug, PartialEq)]
pub struct StealResponseMsg {
    /// The task.
    pub key: Key,
    /// Its state; `None` if it is unknown here.
    pub state: Option<State>,
    /// That of the request.
    pub stimulus_id: StimulusId,
}
