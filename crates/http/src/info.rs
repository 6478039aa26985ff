//! What the pages ask of a scheduler.

use std::future::Future;
use std::pin::Pin;

use tokio::sync::mpsc;

/// An answer that takes a moment: the scheduler runs on a thread of its own.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The scheduler is closing.
    #[error("the scheduler is closing")]
    Closing,
    /// The scheduler could not do what was asked.
    #[error("{0}")]
    Refused(String),
    /// A worker that had to be asked did not answer.
    #[error("{0}")]
    Worker(String),
}

/// The scheduler as its pages see it.
pub trait SchedulerInfo: Send + Sync + 'static {
    /// Numbers for `/json/counts.json`.
    fn counts(&self) -> Reply<'_, Counts>;

    /// The reply to the operation `identity`, all workers included.
    fn identity(&self) -> Reply<'_, serde_json::Value>;

    /// The address and every worker, sorted by the text of their names.
    fn workers(&self) -> Reply<'_, Workers>;

    /// One worker; `None` if there is none with that address.
    fn worker<'a>(&'a self, address: &'a str) -> Reply<'a, Option<Worker>>;

    /// One task; `None` if there is none.
    ///
    /// `key` is what Python's `str(key)` gives, such as `inc-123` or `('x', 0)`.
    /// A string key with that text goes before any other key that prints so.
    fn task<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Task>>;

    /// The tasks that failed last, newest first.
    fn exceptions(&self) -> Reply<'_, Vec<ErredTask>>;

    /// Log lines of the scheduler, newest first.
    fn logs(&self) -> Reply<'_, Vec<String>>;

    /// Log lines of a worker, newest first; `None` if there is no such worker.
    fn worker_logs<'a>(&'a self, address: &'a str) -> Reply<'a, Option<Vec<String>>>;

    /// What a worker's tasks are doing; `None` if there is no such worker.
    fn worker_call_stacks<'a>(&'a self, address: &'a str) -> Reply<'a, Option<Vec<CallStack>>>;

    /// What a task is doing, or those that it waits for; `None` if there is no
    /// such task, empty if nothing of it runs. `key` as in [`Self::task`].
    fn task_call_stacks<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Vec<CallStack>>>;

    /// Numbers for `/metrics`.
    fn metrics(&self) -> Reply<'_, Metrics>;

    /// Answer of the operation `adaptive_target`.
    fn desired_workers(&self) -> Reply<'_, usize>;

    /// Since when the scheduler has had nothing to do, in seconds since 1970:
    /// answer of the operation `check_idle`.
    fn idle_since(&self) -> Reply<'_, Option<f64>>;

    /// Retires workers and waits until they have left: the operation
    /// `retire_workers`, whose reply is given.
    fn retire_workers(&self, which: Retire) -> Reply<'_, serde_json::Value>;

    /// Events from now on, for `/eventstream`. A receiver that falls behind
    /// loses events. `None` if the scheduler offers none.
    fn subscribe(&self) -> Reply<'_, Option<mpsc::Receiver<StreamEvent>>>;
}

/// Which workers to retire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retire {
    /// That many, those whose loss costs least.
    Count(u64),
    /// Those with these addresses.
    Named(Vec<String>),
}

/// Totals, with the names of `/json/counts.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes of results in memory, every replica counted.
    pub bytes: u64,
    /// Clients, the internal ones (`fire-and-forget` and such) included.
    pub clients: usize,
    /// Threads of all workers.
    pub cores: usize,
    /// Tasks with an exception of their own or of a dependency.
    pub erred: usize,
    /// Hosts that workers run on.
    pub hosts: usize,
    /// Workers with less to do than threads.
    pub idle: usize,
    /// Results in memory, every replica counted.
    pub memory: usize,
    /// Tasks handed to workers.
    pub processing: usize,
    /// Tasks in state `released` without exception.
    pub released: usize,
    /// Workers with more to do than the others.
    pub saturated: usize,
    /// Tasks.
    pub tasks: usize,
    /// Tasks that no worker may run.
    pub unrunnable: usize,
    /// Tasks that wait for dependencies.
    pub waiting: usize,
    /// Tasks whose result others wait for.
    pub waiting_data: usize,
    /// Workers.
    pub workers: usize,
    /// Answer of the operation `adaptive_target`.
    pub desired_workers: usize,
}

/// All workers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Workers {
    /// Address of the scheduler.
    pub scheduler: String,
    /// One row per worker.
    pub rows: Vec<WorkerRow>,
}

/// A line in a table of workers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerRow {
    /// Address, such as `tcp://10.0.0.3:40000`.
    pub address: String,
    /// Name as Python prints it.
    pub name: String,
    /// Status, such as `running`.
    pub status: String,
    /// Threads.
    pub nthreads: usize,
    /// Bytes the worker may use; `None` without limit.
    pub memory_limit: Option<u64>,
    /// Bytes the process uses, as it last reported.
    pub memory: u64,
    /// Seconds of work ahead, all threads together.
    pub occupancy: f64,
    /// Tasks handed to it.
    pub processing_count: usize,
    /// Results it holds.
    pub in_memory_count: usize,
    /// Host and port of its own HTTP server.
    pub dashboard: Option<(String, u16)>,
    /// Seconds since its last message.
    pub last_seen: f64,
}

/// One worker in detail.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Worker {
    /// What the table says.
    pub row: WorkerRow,
    /// Keys in its memory and their bytes. Lists on pages are cut at
    /// [`LIST_LENGTH_MAX`]; giving more only costs time.
    pub in_memory: Vec<(String, u64)>,
    /// Keys handed to it and their priorities, most urgent first.
    pub processing: Vec<(String, String)>,
    /// Name, used and total amount of each resource.
    pub resources: Vec<(String, f64, f64)>,
}

/// Rows that a page shows of one list.
pub const LIST_LENGTH_MAX: usize = 10_000;

/// One task in detail.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Task {
    /// Key as Python prints it.
    pub key: String,
    /// State, such as `memory`.
    pub state: String,
    /// Worker it was handed to.
    pub processing_on: Option<String>,
    /// Type of the result.
    pub type_name: Option<String>,
    /// Bytes of the result; negative sizes are unknown ones.
    pub nbytes: Option<u64>,
    /// Keys it waits for.
    pub waiting_on: Vec<String>,
    /// Priority as Python prints it.
    pub priority: String,
    /// Further properties that are set: restrictions, retries, suspicious,
    /// metadata; the name in words and the value as Python prints it.
    pub properties: Vec<(String, String)>,
    /// Texts of exception and traceback.
    pub exception: Option<(String, String)>,
    /// Dependencies and their states.
    pub dependencies: Vec<(String, String)>,
    /// Dependents and their states.
    pub dependents: Vec<(String, String)>,
    /// Workers that hold the result.
    pub who_has: Vec<WorkerRow>,
    /// Clients that want it.
    pub who_wants: Vec<String>,
    /// What happened to it, oldest first.
    pub story: Vec<Transition>,
}

/// A line of a task's story.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transition {
    /// Seconds since 1970.
    pub timestamp: f64,
    /// Key as Python prints it.
    pub key: String,
    /// State before.
    pub start: String,
    /// State after.
    pub finish: String,
    /// What caused it.
    pub stimulus_id: String,
    /// Recommended next transitions: key and state.
    pub recommendations: Vec<(String, String)>,
}

/// A failed task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErredTask {
    /// Key as Python prints it.
    pub key: String,
    /// Workers it failed on.
    pub workers: Vec<String>,
    /// Text of the exception.
    pub exception: String,
    /// Text of the traceback.
    pub traceback: String,
}

/// Frames of one running task, outermost first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallStack {
    /// Worker that runs it.
    pub worker: String,
    /// Key as Python prints it.
    pub key: String,
    /// Text of each frame.
    pub frames: Vec<String>,
}

/// What happens in the cluster, for `/eventstream`.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// The cluster was restarted.
    Restart,
    /// A worker registered.
    AddWorker {
        /// Its address.
        worker: String,
    },
    /// A worker left.
    RemoveWorker {
        /// Its address.
        worker: String,
    },
    /// A client connected.
    AddClient {
        /// Its id.
        client: String,
    },
    /// A client left.
    RemoveClient {
        /// Its id.
        client: String,
    },
    /// A client sent tasks.
    UpdateGraph {
        /// Its id.
        client: String,
    },
    /// A task ended on a worker.
    Transition(TaskRun),
}

/// How a worker spent its time on a task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskRun {
    /// Key as Python prints it.
    pub key: String,
    /// Name of the task without the part that tells calls apart.
    pub prefix: String,
    /// Worker that ran it.
    pub worker: String,
    /// `OK` or `error`.
    pub status: String,
    /// Bytes of the result.
    pub nbytes: Option<u64>,
    /// Type of the result.
    pub type_name: Option<String>,
    /// Thread that ran it.
    pub thread: Option<u64>,
    /// What caused the transition.
    pub stimulus_id: String,
    /// Action (`compute`, `transfer`, …), start and stop in seconds since 1970.
    pub startstops: Vec<(String, f64, f64)>,
}

/// Numbers for Prometheus.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// Clients other than `fire-and-forget`.
    pub clients: usize,
    /// Client connections so far.
    pub client_connections_added: u64,
    /// Client connections that ended so far.
    pub client_connections_removed: u64,
    /// Answer of the operation `adaptive_target`.
    pub desired_workers: usize,
    /// Workers, all of them.
    pub workers: usize,
    /// Workers that take tasks.
    pub workers_running: usize,
    /// Running workers that are idle.
    pub workers_idle: usize,
    /// Running workers that are saturated.
    pub workers_saturated: usize,
    /// Workers that paused for want of memory.
    pub workers_paused: usize,
    /// Workers registered so far.
    pub workers_added: u64,
    /// Workers removed so far.
    pub workers_removed: u64,
    /// Tasks per state; states that are missing have none.
    pub tasks: Vec<(&'static str, u64)>,
    /// Tasks forgotten so far whose prefix is still known.
    pub tasks_forgotten: u64,
    /// Task groups.
    pub task_groups: usize,
    /// Numbers per task prefix.
    pub prefixes: Vec<PrefixMetrics>,
    /// Longest time in seconds that the scheduler kept an event waiting since
    /// the last call.
    pub tick_duration_max: f64,
    /// Rounds of the event loop so far.
    pub tick_count: u64,
    /// When the numbers were taken, in seconds since 1970.
    pub time: f64,
    /// Numbers per semaphore.
    pub semaphores: Vec<SemaphoreMetrics>,
    /// Numbers per level of work stealing; none if that is off.
    pub stealing: Vec<StealingMetrics>,
    /// What the operating system knows; `None` where it does not tell.
    pub process: Option<ProcessMetrics>,
}

/// Numbers of the scheduler's process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProcessMetrics {
    /// Bytes of address space.
    pub virtual_nbytes: u64,
    /// Bytes in memory.
    pub resident_nbytes: u64,
    /// When it started, in seconds since 1970.
    pub start_time: f64,
    /// Seconds of processor time so far.
    pub cpu_seconds: f64,
    /// Open file descriptors.
    pub fds_open: u64,
    /// How many file descriptors it may open.
    pub fds_max: u64,
}

/// Requests to workers to give a task up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StealingMetrics {
    /// How many times its computing time a task of this level costs, as text.
    pub cost_multiplier: &'static str,
    /// Requests so far.
    pub request_count: u64,
    /// Seconds of the victims' work that the requests were about.
    pub request_cost: f64,
}

/// Numbers of one semaphore (or lock).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SemaphoreMetrics {
    /// Its name.
    pub name: String,
    /// Leases that may be out at once.
    pub max_leases: i64,
    /// Leases that are out.
    pub active_leases: usize,
    /// Requests that wait for one.
    pub pending_leases: usize,
    /// Leases given so far.
    pub acquire_total: u64,
    /// Leases returned or expired so far.
    pub release_total: u64,
    /// Moving average in seconds of the wait for a lease.
    pub average_pending_lease_time: f64,
}

/// Numbers of one task prefix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PrefixMetrics {
    /// Name of the prefix.
    pub name: String,
    /// Deaths of workers under its tasks.
    pub suspicious: u64,
    /// Seconds spent computing.
    pub compute_seconds: f64,
    /// Seconds spent moving data.
    pub transfer_seconds: f64,
    /// Bytes of its results in memory, each result counted once.
    pub nbytes_total: u64,
    /// How often its tasks entered each state.
    pub state_counts: Vec<(&'static str, u64)>,
}
