//! What happens to a scheduler.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_wire::{Key, Map, Str, Value};

use crate::graph::{Graph, RunSpec};
use crate::id::{ClientId, RequestId, Status, StimulusId, TaskRef, WorkerId};

/// An event, in the order in which its connection delivered it.
///
/// A worker or client that is gone makes an event a no-op: its id is never
/// given to another.
#[derive(Clone, Debug)]
pub enum Event {
    /// `register-worker`, after `Scheduler::check_worker` found nothing against it.
    AddWorker(Box<NewWorker>),
    /// The stream ended, `unregister`, retirement, time-out.
    RemoveWorker {
        /// Who leaves.
        worker: WorkerId,
        /// Why.
        stimulus_id: StimulusId,
        /// Retired or closing on purpose: nothing becomes suspicious.
        expected: bool,
        /// Send `close` on its stream first.
        close: bool,
    },
    /// The stream of a worker ended without notice. As `RemoveWorker`, not expected,
    /// but if a task has now lost its last allowed worker, the worker's nanny gets a
    /// moment to say why it died.
    WorkerLost {
        /// Who is gone.
        worker: WorkerId,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A nanny says why its worker died. May come before or after the worker is missed.
    WorkerDied {
        /// The nanny's address. It need not know the worker's yet.
        nanny: Str,
        /// The id of the process that died.
        pid: i64,
        /// In words, such as `exited with status 3`.
        reason: Str,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// `heartbeat_worker`.
    Heartbeat {
        /// Who reports.
        worker: WorkerId,
        /// The worker's clock, in seconds since the epoch.
        worker_now: Option<f64>,
        /// Raw, kept for `identity`.
        metrics: Value,
        /// Seconds each task has been executing.
        executing: Vec<(Key, f64)>,
        /// For the scheduler's extensions: `{"spans": {(context, span id, …): amount}, …}`.
        extensions: Value,
    },
    /// A worker runs, pauses or closes.
    WorkerStatusChange {
        /// Which.
        worker: WorkerId,
        /// Its new status.
        status: Status,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A worker computed a task.
    TaskFinished {
        /// Who ran it.
        worker: WorkerId,
        /// The task.
        key: Key,
        /// The run, as in the `compute-task` message.
        run_id: i64,
        /// Bytes of the result.
        nbytes: i64,
        /// Pickled class of the result.
        r#type: Bytes,
        /// Name of that class.
        typename: Str,
        /// What the task left for the scheduler.
        metadata: Value,
        /// The thread it ran on.
        thread: Value,
        /// Raw list of `{action, start, stop[, source]}`.
        startstops: Value,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A task raised.
    TaskErred {
        /// Who ran it.
        worker: WorkerId,
        /// The task.
        key: Key,
        /// The run, as in the `compute-task` message.
        run_id: i64,
        /// Passed on untouched.
        exception: Value,
        /// Passed on untouched; may be nil.
        traceback: Value,
        /// `repr` of the exception.
        exception_text: Str,
        /// Formatted traceback.
        traceback_text: Str,
        /// The thread it ran on.
        thread: Value,
        /// Raw list of `{action, start, stop[, source]}`.
        startstops: Value,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A worker dropped a replica.
    ReleaseWorkerData {
        /// Who.
        worker: WorkerId,
        /// Of which task.
        key: Key,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A worker acquired replicas.
    AddKeys {
        /// Who.
        worker: WorkerId,
        /// Of which tasks.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A task left its thread pool (`secede`).
    LongRunning {
        /// Who runs it.
        worker: WorkerId,
        /// The task.
        key: Key,
        /// The run, as in the `compute-task` message.
        run_id: i64,
        /// Seconds it had run until then.
        compute_duration: Option<f64>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A task wants to run elsewhere.
    Reschedule {
        /// Who ran it.
        worker: WorkerId,
        /// The task.
        key: Key,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A worker could not fetch something and asks who has it.
    RequestRefreshWhoHas {
        /// Who asks.
        worker: WorkerId,
        /// About which tasks.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: StimulusId,
    },

    /// A client connected. `Scheduler::client_id` knows its id afterwards.
    AddClient {
        /// Its own name for itself.
        name: Arc<str>,
        /// Its packages.
        versions: Value,
    },
    /// A client is gone: all its keys are released.
    RemoveClient {
        /// Which.
        client: ClientId,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A client is alive.
    ClientHeartbeat {
        /// Which.
        client: ClientId,
    },
    /// A materialised graph. A large one is taken in over several `Continue` events.
    UpdateGraph(Box<Graph>),
    /// One more bounded slice of what is being released, and one of the graphs being
    /// taken in; see `Scheduler::has_pending_work`.
    Continue,
    /// The graph could not be materialised: every key erred, for this client only.
    GraphFailed {
        /// Who submitted it.
        client: ClientId,
        /// What it asked for.
        keys: Vec<Key>,
        /// What the helper raised.
        exception: Value,
        /// Its traceback, or nil.
        traceback: Value,
        /// Text for the log.
        text: String,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// The helper's answer to `Instruction::ExplodeBundle`.
    BundleExploded {
        /// Which bundle.
        bundle: u32,
        /// One per task of the bundle, in its order; never [`RunSpec::Bundle`].
        specs: Vec<RunSpec>,
    },
    /// The helper failed on a bundle: its tasks that wait for it err.
    BundleFailed {
        /// Which bundle.
        bundle: u32,
        /// What the helper raised.
        exception: Value,
        /// Its traceback, or nil.
        traceback: Value,
        /// `repr` of the exception.
        exception_text: Str,
        /// Formatted traceback.
        traceback_text: Str,
    },
    /// `client` may be an internal one such as `fire-and-forget`; unknown names are created.
    ClientDesiresKeys {
        /// Who.
        client: Arc<str>,
        /// What.
        keys: Vec<Key>,
    },
    /// A client lost interest.
    ClientReleasesKeys {
        /// Who.
        client: Arc<str>,
        /// In what.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// As `ClientReleasesKeys`, for very many keys: their tasks were looked up before,
    /// by `Scheduler::refs`, so that this event is short.
    ClientReleasesTasks {
        /// Who.
        client: Arc<str>,
        /// In what. Tasks that are gone by now are passed over.
        tasks: Vec<TaskRef>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A client cancels keys and everything that depends on them.
    CancelKeys {
        /// Who.
        client: ClientId,
        /// What.
        keys: Vec<Key>,
        /// Even if others want them.
        force: bool,
        /// Passed on to the clients.
        reason: Value,
        /// Passed on to the clients.
        msg: Value,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A client asks for the state of a key again.
    ReportKey {
        /// Who.
        client: ClientId,
        /// Which key.
        key: Key,
    },
    /// Data that entered from outside (`scatter`).
    UpdateData {
        /// Who wants it, if anybody yet.
        client: Option<Arc<str>>,
        /// Addresses of the holders.
        who_has: Vec<(Key, Vec<Str>)>,
        /// Sizes; −1 or absent if unknown.
        nbytes: Vec<(Key, i64)>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// Runs failed tasks again. Answered by `Instruction::Reply` with the
    /// visited keys, or a `KeyError` for an unknown key.
    Retry {
        /// Whom to answer.
        request: RequestId,
        /// Who asks.
        client: Option<Arc<str>>,
        /// What.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// Releases every key of every client and clears all tasks (`restart`'s first half).
    Restart {
        /// Why.
        stimulus_id: StimulusId,
    },
    /// Replaces worker restrictions: a list of addresses, one address or nil per key.
    SetRestrictions {
        /// Unknown keys are ignored.
        worker: Vec<(Key, Value)>,
    },
    /// Adds to or changes what a worker supplies.
    SetResources {
        /// Which worker.
        worker: WorkerId,
        /// Totals by name.
        resources: Vec<(Arc<str>, f64)>,
    },
    /// Sends tasks back to be run again together, as P2P does after a lost worker:
    /// every key is recommended `released` in this order, so the last is processed first.
    ReleaseKeys {
        /// Unknown keys are ignored.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// A worker's answer to `ToWorker::StealRequest`.
    StealResponse {
        /// Who was asked.
        worker: WorkerId,
        /// For which task.
        key: Key,
        /// The state in which the worker had it; none if it did not know it.
        state: Option<Str>,
        /// That of the request.
        stimulus_id: StimulusId,
    },
    /// Asks a worker to fetch replicas (memory manager, retirement).
    AcquireReplicas {
        /// Who fetches.
        worker: WorkerId,
        /// Unknown keys, and keys nobody holds, are ignored.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// Asks a worker to drop replicas; the scheduler forgets them at once.
    /// The last replica of a key is kept.
    RemoveReplicas {
        /// Who drops.
        worker: WorkerId,
        /// Unknown keys, and those the worker does not hold, are ignored.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: StimulusId,
    },
    /// Time passes: `Scheduler::next_deadline` is due.
    Tick,
}

/// A registering worker, addresses canonical.
#[derive(Clone, Debug)]
pub struct NewWorker {
    /// Canonical address, such as `tcp://10.0.0.3:40331`.
    pub address: Arc<str>,
    /// Its name, of any type.
    pub name: Value,
    /// Threads that run tasks.
    pub nthreads: u32,
    /// Bytes; none means unlimited.
    pub memory_limit: Option<u64>,
    /// Where it spills.
    pub local_directory: Str,
    /// Totals by name.
    pub resources: Vec<(Arc<str>, f64)>,
    /// Usually `init`.
    pub status: Status,
    /// Address of its nanny.
    pub nanny: Option<Str>,
    /// Process id.
    pub pid: i64,
    /// Unique id of the server.
    pub server_id: Str,
    /// Ports by name.
    pub services: Value,
    /// Its packages.
    pub versions: Value,
    /// As in a heartbeat.
    pub metrics: Value,
    /// The worker's clock, in seconds since the epoch.
    pub worker_now: Option<f64>,
    /// One of ours: a task costs it so little that many short ones may go ahead.
    pub is_native: bool,
    /// `extra` of the message: merged into `identity`.
    pub extra: Map,
    /// Why.
    pub stimulus_id: StimulusId,
}
