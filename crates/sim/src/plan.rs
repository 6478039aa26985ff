//! Everything that happens in a run.

use std::fmt;

/// Microseconds of virtual time.
pub type Micros = u64;

/// A run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What delays are drawn from.
    pub seed: u64,
    /// What holds for the whole run.
    pub settings: Settings,
    /// Every task that may be asked for; dependencies come before their dependents.
    pub tasks: Vec<Task>,
    /// Every machine that workers may run on.
    pub machines: Vec<Machine>,
    /// Number of clients; all are there from the beginning.
    pub clients: usize,
    /// What happens, and when. Ascending times.
    pub steps: Vec<Step>,
}

/// What holds for a whole run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Shortest time that a message takes.
    pub delay_min: Micros,
    /// Longest time that a message takes, unless it is a late one.
    pub delay_max: Micros,
    /// So many of a hundred messages are late.
    pub late_percent: u64,
    /// By how much at most.
    pub late_max: Micros,
    /// Time between two heartbeats of a worker.
    pub heartbeat_interval: Micros,
    /// After so much silence a worker is removed: `scheduler.worker-ttl`.
    pub worker_ttl: Micros,
    /// Answers to peers at a time: `worker.connections.outgoing`.
    pub outgoing_max: usize,
    /// Transfers from peers at a time: `worker.connections.incoming`.
    pub incoming_max: usize,
    /// `scheduler.allowed-failures`.
    pub allowed_failures: u32,
    /// `scheduler.worker-saturation`.
    pub worker_saturation: f64,
    /// `scheduler.work-stealing`.
    pub work_stealing: bool,
    /// `scheduler.no-workers-timeout`, in seconds.
    pub no_workers_timeout: Option<f64>,
    /// Tasks that are taken in at once.
    pub graph_slice: usize,
    /// Whether the active memory manager runs by itself.
    pub memory_manager: bool,
    /// The scheduler is validated after so many of its events: 1, but for very large
    /// clusters, where it takes as long as there are workers and tasks.
    pub validate_every: u64,
}

impl Default for Settings {
    /// A quick and even network, and Dask's defaults.
    fn default() -> Self {
        Self {
            delay_min: 1_000,
            delay_max: 1_000,
            late_percent: 0,
            late_max: 0,
            heartbeat_interval: 500_000,
            worker_ttl: 300_000_000,
            outgoing_max: 50,
            incoming_max: 10,
            allowed_failures: 3,
            worker_saturation: 1.1,
            work_stealing: true,
            no_workers_timeout: None,
            graph_slice: 2_000,
            memory_manager: true,
            validate_every: 1,
        }
    }
}

/// How a task behaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// The key.
    pub name: String,
    /// What it needs.
    pub dependencies: Vec<usize>,
    /// How long it runs.
    pub duration: Micros,
    /// Bytes of the result.
    pub nbytes: i64,
    /// So many runs end their worker, before anything else; a nanny starts another one.
    pub kills: u32,
    /// So many runs after them raise.
    pub failures: u32,
    /// So many runs after them raise `Reschedule`.
    pub reschedules: u32,
    /// So many results after them cannot be stored.
    pub unstorable: u32,
    /// So many transfers bring its result in a form that cannot be read.
    pub unreadable: u32,
    /// `retries` of its annotation.
    pub retries: i64,
    /// Its result is an actor, which stays where it is.
    pub is_actor: bool,
    /// It leaves its thread half-way.
    pub secedes: bool,
    /// It needs one `gpu`.
    pub needs_gpu: bool,
    /// It is scattered by a client, and has no `run_spec`.
    pub is_data: bool,
    /// It takes part in a P2P shuffle.
    pub p2p: Option<P2p>,
    /// It submits these by a client of its own, and waits for the last one.
    pub submits: Vec<usize>,
    /// Of its annotation.
    pub priority: i64,
    /// The address of a machine that it has to run on, without anything in its place.
    pub pinned: Option<usize>,
}

impl Task {
    /// A task that takes 10 ms and succeeds.
    pub fn new(name: &str, dependencies: &[usize]) -> Self {
        Self {
            name: name.to_owned(),
            dependencies: dependencies.to_vec(),
            duration: 10_000,
            nbytes: 10,
            kills: 0,
            failures: 0,
            reschedules: 0,
            unstorable: 0,
            unreadable: 0,
            retries: 0,
            is_actor: false,
            secedes: false,
            needs_gpu: false,
            is_data: false,
            p2p: None,
            submits: Vec::new(),
            priority: 0,
            pinned: None,
        }
    }
}

/// A task's part in a P2P shuffle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct P2p {
    /// The number of the barrier's task, which is the shuffle's id.
    pub shuffle: usize,
    /// Which.
    pub role: Role,
}

impl P2p {
    /// Whether it has what it belongs to: a part of a plan may lack something.
    pub(crate) fn is_whole(&self, task: &Task) -> bool {
        match self.role {
            Role::Transfer => true,
            Role::Barrier => !task.dependencies.is_empty(),
            Role::Unpack { .. } => task.dependencies.contains(&self.shuffle),
        }
    }
}

/// What a task of a P2P shuffle does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Hands its input to the workers that take part.
    Transfer,
    /// Sees to it that all of it has arrived. Its key is `shuffle-barrier-` and the id.
    Barrier,
    /// Takes an output partition, on the worker that has it.
    Unpack {
        /// Which.
        partition: usize,
    },
}

impl Role {
    pub(crate) fn is_unpack(self) -> bool {
        matches!(self, Self::Unpack { .. })
    }
}

/// Where workers run, one at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Threads of its worker.
    pub nthreads: u32,
    /// Whether it has one `gpu`.
    pub has_gpu: bool,
    /// Its clock minus the scheduler's, in seconds.
    pub clock_skew: f64,
    /// Bytes; none means unlimited.
    pub memory_limit: Option<u64>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            nthreads: 1,
            has_gpu: false,
            clock_skew: 0.0,
            memory_limit: None,
        }
    }
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// When.
    pub at: Micros,
    /// What.
    pub action: Action,
}

/// How a graph reaches the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expansion {
    /// With a pickle per task.
    Pickles,
    /// In one bundle, whose pickles the helper makes when they are needed.
    Bundle,
    /// The helper fails on the graph.
    Fails,
    /// The helper fails on the bundle.
    BundleFails,
}

/// What happens. Tasks, machines and clients are named by their numbers; a step
/// about one that is not there, or not any more, does nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A client submits a graph and holds futures of what it wants.
    Submit {
        /// Who.
        client: usize,
        /// What the graph consists of. Dependencies that are left out are futures.
        tasks: Vec<usize>,
        /// Which of them it wants.
        wanted: Vec<usize>,
        /// How.
        expansion: Expansion,
    },
    /// A client lets go of futures.
    Release {
        /// Who.
        client: usize,
        /// Of which tasks.
        tasks: Vec<usize>,
    },
    /// A client cancels futures.
    Cancel {
        /// Who.
        client: usize,
        /// Of which tasks.
        tasks: Vec<usize>,
        /// Even if others want them.
        force: bool,
    },
    /// A client has failed tasks run again.
    Retry {
        /// Who.
        client: usize,
        /// Which.
        tasks: Vec<usize>,
    },
    /// A client lets tasks run without holding on to them (`fire_and_forget`).
    FireAndForget {
        /// Who.
        client: usize,
        /// Which.
        tasks: Vec<usize>,
    },
    /// A client puts a value on a worker.
    Scatter {
        /// Who.
        client: usize,
        /// Under the key of this task.
        task: usize,
        /// Where.
        machine: usize,
    },
    /// The connection of a client ends.
    Disconnect {
        /// Whose.
        client: usize,
    },
    /// A client that left comes back under another name.
    Connect {
        /// Who.
        client: usize,
    },
    /// A worker starts.
    Start {
        /// Where.
        machine: usize,
    },
    /// A worker starts, and the connection breaks by which it registers, once the
    /// scheduler has taken it in: it registers again.
    StartTwice {
        /// Where.
        machine: usize,
        /// When the scheduler notices.
        noticed: Micros,
    },
    /// A worker dies.
    Crash {
        /// Where.
        machine: usize,
        /// What it had sent by then arrives.
        flushed: bool,
        /// Another one starts in its place after so long, with its name.
        returns: Option<Micros>,
        /// The other one gets the same address.
        same_address: bool,
    },
    /// The connection of a worker with the scheduler breaks.
    Break {
        /// Where.
        machine: usize,
        /// How much later the worker notices.
        noticed: Micros,
    },
    /// A worker stands still (`SIGSTOP`).
    Freeze {
        /// Where.
        machine: usize,
        /// For how long.
        time: Micros,
    },
    /// The scheduler stands still; what comes waits.
    Stall {
        /// For how long.
        time: Micros,
    },
    /// A worker is short of memory, and pauses.
    Pause {
        /// Where.
        machine: usize,
        /// For how long.
        time: Micros,
    },
    /// Values of a worker have left memory for a disk that takes its time.
    SlowDisk {
        /// Where.
        machine: usize,
        /// How long reading them takes.
        read: Micros,
        /// For how long.
        time: Micros,
    },
    /// A value that has left memory cannot be read any more: whoever tries finds out.
    Damage {
        /// Where.
        machine: usize,
        /// Of this task.
        task: usize,
    },
    /// A worker cannot reach a peer.
    Cut {
        /// Who asks.
        from: usize,
        /// Whom.
        to: usize,
        /// For how long.
        time: Micros,
    },
    /// `retire_workers`.
    Retire {
        /// Which.
        machine: usize,
    },
    /// `adaptive_target`, and what an adaptive cluster does then.
    Adapt,
    /// A worker is asked to fetch a replica.
    Replicate {
        /// Which.
        machine: usize,
        /// Of what.
        task: usize,
    },
    /// `restart`: everything is forgotten, and every worker starts anew.
    Restart,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.settings)?;
        for (number, machine) in self.machines.iter().enumerate() {
            writeln!(f, "machine {number}: {machine:?}")?;
        }
        for number in self.tasks_used() {
            let task = &self.tasks[number];
            write!(f, "task {number}: {} takes {} us", task.name, task.duration)?;
            if !task.dependencies.is_empty() {
                write!(f, " needs {:?}", task.dependencies)?;
            }
            let plain = Task {
                name: task.name.clone(),
                dependencies: task.dependencies.clone(),
                duration: task.duration,
                nbytes: task.nbytes,
                ..Task::new("", &[])
            };
            if *task == plain {
                writeln!(f)?;
            } else {
                writeln!(f, " {task:?}")?;
            }
        }
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "step {number} at {} us: {:?}", step.at, step.action)?;
        }
        Ok(())
    }
}

impl Plan {
    /// Tasks that some step names, or that such a task submits.
    pub fn tasks_used(&self) -> Vec<usize> {
        let mut used = vec![false; self.tasks.len()];
        for step in &self.steps {
            for &task in step.action.tasks() {
                used[task] = true;
            }
        }
        for task in (0..self.tasks.len()).rev() {
            if used[task] {
                for &submitted in &self.tasks[task].submits {
                    used[submitted] = true;
                }
            }
        }
        (0..used.len()).filter(|&task| used[task]).collect()
    }

    /// Only the steps with these numbers, without some tasks.
    pub fn reduced(&self, steps: &[usize], without: &[usize]) -> Self {
        let mut plan = self.clone();
        let kept = steps.iter().filter_map(|&step| self.steps.get(step));
        plan.steps = kept.cloned().collect();
        for step in &mut plan.steps {
            for tasks in step.action.tasks_mut() {
                tasks.retain(|task| !without.contains(task));
            }
        }
        for task in &mut plan.tasks {
            task.dependencies.retain(|task| !without.contains(task));
            task.submits.retain(|task| !without.contains(task));
        }
        plan
    }
}

impl Action {
    fn tasks(&self) -> &[usize] {
        match self {
            Self::Submit { tasks, .. }
            | Self::Release { tasks, .. }
            | Self::Cancel { tasks, .. }
            | Self::Retry { tasks, .. }
            | Self::FireAndForget { tasks, .. } => tasks,
            Self::Scatter { task, .. }
            | Self::Replicate { task, .. }
            | Self::Damage { task, .. } => std::slice::from_ref(task),
            Self::Disconnect { .. }
            | Self::Connect { .. }
            | Self::Start { .. }
            | Self::StartTwice { .. }
            | Self::Crash { .. }
            | Self::Break { .. }
            | Self::Freeze { .. }
            | Self::Stall { .. }
            | Self::Pause { .. }
            | Self::SlowDisk { .. }
            | Self::Cut { .. }
            | Self::Retire { .. }
            | Self::Adapt
            | Self::Restart => &[],
        }
    }

    fn tasks_mut(&mut self) -> Vec<&mut Vec<usize>> {
        match self {
            Self::Submit { tasks, wanted, .. } => vec![tasks, wanted],
            Self::Release { tasks, .. }
            | Self::Cancel { tasks, .. }
            | Self::Retry { tasks, .. }
            | Self::FireAndForget { tasks, .. } => vec![tasks],
            Self::Scatter { .. }
            | Self::Replicate { .. }
            | Self::Disconnect { .. }
            | Self::Connect { .. }
            | Self::Start { .. }
            | Self::StartTwice { .. }
            | Self::Crash { .. }
            | Self::Break { .. }
            | Self::Freeze { .. }
            | Self::Stall { .. }
            | Self::Pause { .. }
            | Self::SlowDisk { .. }
            | Self::Damage { .. }
            | Self::Cut { .. }
            | Self::Retire { .. }
            | Self::Adapt
            | Self::Restart => Vec::new(),
        }
    }

    /// Whether it may be why a task runs once more.
    pub(crate) fn is_disturbance(&self) -> bool {
        match self {
            Self::Release { .. }
            | Self::Cancel { .. }
            | Self::Retry { .. }
            | Self::FireAndForget { .. }
            | Self::Disconnect { .. }
            | Self::Crash { .. }
            | Self::Break { .. }
            | Self::Freeze { .. }
            | Self::Stall { .. }
            | Self::StartTwice { .. }
            | Self::Damage { .. }
            | Self::Retire { .. }
            | Self::Adapt
            | Self::Restart => true,
            Self::Submit { .. }
            | Self::Scatter { .. }
            | Self::Connect { .. }
            | Self::Start { .. }
            | Self::Pause { .. }
            | Self::SlowDisk { .. }
            | Self::Cut { .. }
            | Self::Replicate { .. } => false,
        }
    }
}
