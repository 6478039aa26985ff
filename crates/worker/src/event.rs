//! What happens to a worker.

use std::sync::Arc;

use oxidask_wire::{Key, Map, Str, Value};

use crate::priority::Priority;
use crate::task::{StartStop, TaskFailure, ValueType};

/// An event: a `StateMachineEvent` of distributed.
///
/// Messages of the scheduler come first, then what clients, the tasks
/// themselves and the shell report. There is none for `rejoin`: a task that
/// takes its place in the thread pool again stays long-running, as in Dask.
#[derive(Clone, Debug)]
pub enum Event {
    /// `compute-task`.
    ComputeTask(Box<ComputeTaskEvent>),
    /// `free-keys`: these are no longer needed, whatever they are doing.
    FreeKeys {
        /// Which.
        keys: Vec<Key>,
    },
    /// `remove-replicas`: drop these if they are in memory.
    RemoveReplicas {
        /// Which.
        keys: Vec<Key>,
    },
    /// `acquire-replicas`: fetch these.
    AcquireReplicas {
        /// Addresses of holders by key.
        who_has: Vec<(Key, Vec<Str>)>,
        /// Bytes in memory by key, −1 if unknown.
        nbytes: Vec<(Key, i64)>,
    },
    /// `refresh-who-has`: the answer to [`RequestRefreshWhoHasMsg`](crate::instruction::RequestRefreshWhoHasMsg).
    RefreshWhoHas {
        /// Addresses of holders by key.
        who_has: Vec<(Key, Vec<Str>)>,
    },
    /// `remove-worker`: a peer is gone.
    RemoveWorker {
        /// Its address.
        worker: Str,
    },
    /// `steal-request`: give a task back if it has not begun.
    StealRequest {
        /// Which.
        key: Key,
    },
    /// `cancel-compute`: drop a task if it has not begun and nothing depends on it.
    CancelCompute {
        /// Which.
        key: Key,
    },
    /// `update_data`: scattered values.
    UpdateData {
        /// What came of storing each.
        data: Vec<(Key, Insertion)>,
    },
    /// Values in memory turn out to be lost: what was spilled cannot be read back.
    /// The scheduler has them computed again, or they are fetched from others.
    DataLost {
        /// Which.
        keys: Vec<Key>,
    },
    /// Somebody asked for values that are not here. The scheduler may believe that they are.
    DataMissing {
        /// Which.
        keys: Vec<Key>,
    },
    /// A task called `secede()`.
    Secede {
        /// Which.
        key: Key,
        /// Seconds it has been running.
        compute_duration: f64,
    },
    /// The worker's status is no longer `running`: nothing new is started or fetched.
    Pause,
    /// The worker's status is `running` again.
    Unpause,
    /// Time to ask the scheduler about missing tasks (once per heartbeat).
    FindMissing,
    /// What [`RetryBusyWorkerLater`](crate::instruction::RetryBusyWorkerLater) asked for.
    RetryBusyWorker {
        /// Address of the peer.
        worker: Arc<str>,
    },
    /// A transfer brought data, though perhaps not of all tasks.
    GatherDepSuccess {
        /// From whom.
        worker: Arc<str>,
        /// That of the [`GatherDep`](crate::instruction::GatherDep).
        total_nbytes: i64,
        /// What came of storing each.
        data: Vec<(Key, Insertion)>,
        /// How long it took.
        transfer: Option<StartStop>,
    },
    /// A peer answered that it is busy.
    GatherDepBusy {
        /// Which.
        worker: Arc<str>,
        /// That of the `GatherDep`.
        total_nbytes: i64,
    },
    /// A peer cannot be reached: everything it had is taken to be lost.
    GatherDepNetworkFailure {
        /// Which.
        worker: Arc<str>,
        /// That of the `GatherDep`.
        total_nbytes: i64,
    },
    /// What came cannot be used, such as data that does not deserialise.
    GatherDepFailure {
        /// From whom.
        worker: Arc<str>,
        /// That of the `GatherDep`.
        total_nbytes: i64,
        /// Why.
        failure: Arc<TaskFailure>,
    },
    /// A thread has gone on by itself with a task that is next in
    /// [`WorkerState::ahead`](crate::WorkerState::ahead): the task takes the place of
    /// the one whose end is the event after this, and not that which would be best then.
    Begun {
        /// Which.
        key: Key,
    },
    /// A task ran to its end.
    ExecuteSuccess {
        /// Which.
        key: Key,
        /// The run that the shell began: the task's `run_id` when `Execute` was given.
        run_id: i64,
        /// Bytes of the result in memory, by `sizeof`.
        nbytes: i64,
        /// What came of storing the result.
        value: Insertion,
        /// `compute`, and `disk-read` before it if reading the inputs took long.
        startstops: Vec<StartStop>,
        /// The thread it ran on.
        thread: Option<u64>,
    },
    /// A task raised, or could not be started.
    ExecuteFailure {
        /// Which.
        key: Key,
        /// As in [`ExecuteSuccess`](Self::ExecuteSuccess).
        run_id: i64,
        /// What it raised.
        failure: Arc<TaskFailure>,
        /// As in `ExecuteSuccess`; without `compute` if it was not started.
        startstops: Vec<StartStop>,
        /// The thread it ran on.
        thread: Option<u64>,
    },
    /// A task raised `Reschedule`.
    Reschedule {
        /// Which.
        key: Key,
    },
}

/// `compute-task`.
#[derive(Clone, Debug)]
pub struct ComputeTaskEvent {
    /// The task.
    pub key: Key,
    /// Which run of it; repeated in the answers.
    pub run_id: i64,
    /// Addresses of holders by dependency.
    pub who_has: Vec<(Key, Vec<Str>)>,
    /// Bytes in memory by dependency, −1 if unknown. The same keys as in `who_has`.
    pub nbytes: Vec<(Key, i64)>,
    /// Without the worker's generation.
    pub priority: Priority,
    /// How to compute it; not read here.
    pub run_spec: Option<Value>,
    /// Amounts by resource.
    pub resource_restrictions: Vec<(Arc<str>, f64)>,
    /// Keep the object alive as an actor.
    pub actor: bool,
    /// Of the task; not read here.
    pub annotations: Map,
    /// Group of metrics.
    pub span_id: Option<Str>,
}

/// What came of a value that the shell was about to store.
///
/// The shell makes sure that a value can be kept (spilling it, if it is too
/// large for memory) before it reports it. It keeps the value when
/// [`StoreData`](crate::Instruction::StoreData) says so, else it drops it once
/// the event is handled.
pub type Insertion = Result<StoredValue, Arc<TaskFailure>>;

/// What the core knows of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredValue {
    /// Bytes in memory, by `sizeof`. Counts if nothing was known before.
    pub nbytes: i64,
    /// Its type.
    pub r#type: Arc<ValueType>,
    /// `disk-write`, if storing it took long.
    pub disk_write: Option<StartStop>,
}
