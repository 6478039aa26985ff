//! A cluster: what is there, and what will happen to it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use indexmap::IndexMap;
use oxidask_scheduler::instruction::CreateShuffleRun;
use oxidask_scheduler::{Event, Failure, RequestId, StimulusId, ToClient};
use oxidask_wire::{Key, Value};
use oxidask_worker::instruction::{GatherDep, SendMessageToScheduler};

use crate::Outcome;
use crate::client::Client;
use crate::coverage::Coverage;
use crate::network::Agenda;
use crate::p2p::{Answered, Ask};
use crate::plan::{Expansion, Machine, Micros, Plan};
use crate::reference;
use crate::scheduler::SchedulerNode;
use crate::translate::Message;
use crate::worker::WorkerNode;

/// Threads of the worker that comes when all faults are over.
const RESCUE_NTHREADS: u32 = 4;

/// Time after the last fault in which everything wanted has to be there.
const SETTLE_MAX: Micros = 600_000_000;

/// Time after the last client left in which everything has to be forgotten.
const EMPTY_MAX: Micros = 120_000_000;

/// Events after which a run that is not over is taken to have lost its way; and more
/// for every machine.
const EVENTS_MAX: u64 = 3_000_000;
const EVENTS_MAX_PER_MACHINE: u64 = 2_000;

/// The wall clock at the beginning.
const EPOCH: f64 = 1_700_000_000.0;

/// Something that will happen. Workers and clients are named by their identity:
/// a worker that comes back is another one.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A step of the plan.
    Step(usize),
    /// All faults are over.
    Heal,
    /// The scheduler stands still no more.
    GoOn,

    /// `register-worker` arrives.
    Register { worker: usize },
    /// The scheduler is told something by a worker.
    FromWorker {
        worker: usize,
        message: WorkerMessage,
    },
    /// `heartbeat_worker` arrives.
    HeartbeatArrives {
        worker: usize,
        executing: Vec<(Key, f64)>,
        nbytes: i64,
    },
    /// The scheduler notices that a worker's stream has ended.
    WorkerGone { worker: usize },
    /// The scheduler notices that the connection has broken by which a worker registered.
    RegistrationLost { id: oxidask_scheduler::WorkerId },
    /// A client's message arrives.
    FromClient {
        client: usize,
        message: ClientMessage,
    },
    /// The scheduler notices that a client has gone.
    ClientGone { client: usize },
    /// The graph helper has expanded a graph.
    Expanded {
        client: usize,
        submission: Submission,
    },
    /// The graph helper has exploded a bundle.
    Exploded { bundle: u32, blob: bytes::Bytes },
    /// Something is due at the scheduler.
    Tick { at: Micros },
    /// A large graph goes on.
    Continue,
    /// The scheduler looks for silent workers.
    CheckTtl,
    /// A task of a shuffle asks for something.
    Asked(Ask),
    /// The scheduler notices that whoever asked is gone.
    AskLost { request: RequestId },
    /// The graph helper has laid out a run of a shuffle.
    LaidOut(Box<CreateShuffleRun>),
    /// Workers have answered `shuffle_inputs_done`.
    InputsDone {
        request: RequestId,
        workers: Vec<Arc<str>>,
    },
    /// An adaptive cluster asks for a target.
    Adaptive,
    /// `retire_workers` arrives.
    Retire { addresses: Vec<Arc<str>> },
    /// `replicate` asks a worker for a replica.
    Replicate { address: Arc<str>, key: Key },
    /// `retry` arrives.
    Retry { client: Arc<str>, keys: Vec<Key> },

    /// Something comes to a worker.
    AtWorker { worker: usize, what: AtWorker },
    /// A worker stands still no more.
    Thaw { worker: usize },
    /// A machine gets a worker.
    Start { machine: usize, same_address: bool },
    /// A client is told something.
    ToClient { client: usize, message: ToClient },
    /// A client has put a value on a worker.
    Scattered {
        client: usize,
        task: usize,
        holder: Arc<str>,
    },
}

impl Happening {
    /// Whether it is the scheduler that acts.
    fn is_for_scheduler(&self) -> bool {
        match self {
            Self::Register { .. }
            | Self::FromWorker { .. }
            | Self::HeartbeatArrives { .. }
            | Self::WorkerGone { .. }
            | Self::RegistrationLost { .. }
            | Self::FromClient { .. }
            | Self::ClientGone { .. }
            | Self::Expanded { .. }
            | Self::Exploded { .. }
            | Self::Tick { .. }
            | Self::Continue
            | Self::CheckTtl
            | Self::Asked(_)
            | Self::AskLost { .. }
            | Self::LaidOut(_)
            | Self::InputsDone { .. }
            | Self::Adaptive
            | Self::Retire { .. }
            | Self::Replicate { .. }
            | Self::Retry { .. } => true,
            Self::Step(_)
            | Self::Heal
            | Self::GoOn
            | Self::AtWorker { .. }
            | Self::Thaw { .. }
            | Self::Start { .. }
            | Self::ToClient { .. }
            | Self::Scattered { .. } => false,
        }
    }
}

/// What comes to a worker; kept while it stands still.
#[derive(Debug)]
pub(crate) enum AtWorker {
    /// The answer to its registration.
    Registered { accepted: bool },
    /// On its stream.
    Messages(Vec<Message>),
    /// Its stream has ended.
    StreamEnded,
    /// Time for a heartbeat.
    Beat,
    /// The answer to a heartbeat.
    BeatAnswered { known: bool },
    /// A run ends.
    Ran { key: Key, token: u64 },
    /// A run asks the scheduler for something.
    Asks { key: Key, token: u64 },
    /// It is answered.
    Answered {
        key: Key,
        token: u64,
        answered: Answered,
    },
    /// A run secedes.
    Secedes { key: Key, token: u64 },
    /// A peer asks for data.
    GetData { from: usize, gather: GatherDep },
    /// A peer has answered.
    GotData {
        gather: GatherDep,
        answer: Answer,
        /// The one who waits until its answer is taken.
        peer: Option<usize>,
    },
    /// A peer has taken its answer.
    Acknowledged,
    /// A busy peer may be asked again.
    RetryBusy { address: Arc<str> },
    /// A client puts a value here.
    Scatter { client: usize, task: usize },
    /// Its memory is looked at.
    ObserveMemory,
    /// It has taken its leave.
    Closed,
}

/// What a peer answers.
#[derive(Debug)]
pub(crate) enum Answer {
    Data(Vec<(Key, u64)>),
    Busy,
    Unreachable,
}

/// What a worker says on its stream.
#[derive(Debug)]
pub(crate) enum WorkerMessage {
    Core(SendMessageToScheduler),
    Status(oxidask_scheduler::Status, StimulusId),
}

/// What a client says on its stream.
#[derive(Debug)]
pub(crate) enum ClientMessage {
    UpdateGraph(Submission),
    Event(Event),
}

/// `update-graph`.
#[derive(Clone, Debug)]
pub(crate) struct Submission {
    pub(crate) tasks: Vec<usize>,
    pub(crate) wanted: Vec<usize>,
    pub(crate) expansion: Expansion,
    pub(crate) submitting_task: Option<Key>,
}

pub(crate) struct Cluster<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) agenda: Agenda<Happening>,
    pub(crate) scheduler: SchedulerNode,
    /// Every worker that there ever was.
    pub(crate) workers: Vec<WorkerNode>,
    /// What an event of the scheduler's has to say to workers.
    pub(crate) batches: IndexMap<usize, Vec<Message>>,
    /// The last worker of each address.
    pub(crate) addresses: HashMap<Arc<str>, usize>,
    /// The worker of each machine.
    pub(crate) machines: Vec<Option<usize>>,
    /// Descriptions of machines, with the one that comes in the end.
    pub(crate) descriptions: Vec<Machine>,
    /// Workers that the scheduler knows by id.
    pub(crate) registered: IndexMap<oxidask_scheduler::WorkerId, usize>,
    /// Every client that there ever was.
    pub(crate) clients: Vec<Client>,
    /// The client of each number.
    pub(crate) seats: Vec<Option<usize>>,
    pub(crate) clients_by_id: IndexMap<oxidask_scheduler::ClientId, usize>,
    /// Peers that cannot be reached: from, to, until.
    pub(crate) cuts: Vec<(usize, usize, Micros)>,
    /// Requests of tasks that are not answered yet.
    pub(crate) asks: IndexMap<RequestId, Ask>,
    /// The run of its shuffle in which each task did its part.
    pub(crate) shuffle_runs: Vec<i64>,
    /// Workers of output partitions, by shuffle and run.
    pub(crate) layouts: HashMap<(usize, i64), Vec<Arc<str>>>,
    pub(crate) replies: Vec<(RequestId, Result<Value, Failure>)>,
    pub(crate) keys: Vec<Key>,
    pub(crate) numbers: IndexMap<Key, usize>,
    pub(crate) values: Vec<u64>,
    pub(crate) tally: Tally,
    pub(crate) coverage: Coverage,
    pub(crate) events: u64,
    stimuli: u64,
    is_healed: bool,
    /// What came for the scheduler while it stood still; none while it goes on.
    pub(crate) stalled: Option<VecDeque<Happening>>,
}

/// What happened to each task, by number.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Runs that began.
    pub(crate) begun: Vec<u32>,
    /// Runs that were sent to workers.
    pub(crate) sent: Vec<u32>,
    /// Transfers that brought a value which could not be read.
    pub(crate) unread: Vec<u32>,
    /// Numbers of runs that began.
    pub(crate) run_ids: HashSet<i64>,
    /// Sent again for a reason that is the task's own or stealing's.
    pub(crate) explained: Vec<u32>,
    /// Steps that may be why a task runs again.
    pub(crate) disturbances: u32,
    /// Workers that died, or were taken to be dead.
    pub(crate) deaths: u32,
}

impl<'a> Cluster<'a> {
    pub(crate) fn new(plan: &'a Plan) -> Self {
        let keys: Vec<Key> = plan
            .tasks
            .iter()
            .map(|task| Key::from(&*task.name))
            .collect();
        let numbers = keys.iter().cloned().zip(0..).collect();
        let mut descriptions = plan.machines.clone();
        descriptions.push(Machine {
            nthreads: RESCUE_NTHREADS,
            has_gpu: true,
            ..Machine::default()
        });
        let count = plan.tasks.len();
        Self {
            plan,
            agenda: Agenda::new(),
            scheduler: SchedulerNode::new(&plan.settings),
            workers: Vec::new(),
            batches: IndexMap::new(),
            addresses: HashMap::new(),
            machines: vec![None; descriptions.len()],
            descriptions,
            registered: IndexMap::new(),
            clients: Vec::new(),
            seats: vec![None; plan.clients],
            clients_by_id: IndexMap::new(),
            cuts: Vec::new(),
            asks: IndexMap::new(),
            shuffle_runs: vec![0; count],
            layouts: HashMap::new(),
            replies: Vec::new(),
            keys,
            numbers,
            values: reference::values(plan),
            tally: Tally {
                begun: vec![0; count],
                sent: vec![0; count],
                unread: vec![0; count],
                run_ids: HashSet::new(),
                explained: vec![0; count],
                disturbances: 0,
                deaths: 0,
            },
            coverage: Coverage::default(),
            events: 0,
            stimuli: 0,
            is_healed: false,
            stalled: None,
        }
    }

    /// Seconds since the epoch.
    pub(crate) fn time(&self) -> f64 {
        EPOCH + self.agenda.now as f64 * 1e-6
    }

    pub(crate) fn stimulus(&mut self, prefix: &str) -> String {
        self.stimuli += 1;
        format!("{prefix}-{}", self.stimuli)
    }

    pub(crate) fn run(mut self) -> Outcome {
        for seat in 0..self.seats.len() {
            self.connect(seat, None);
        }
        for (number, step) in self.plan.steps.iter().enumerate() {
            self.agenda.at(step.at, Happening::Step(number));
        }
        let last = self.plan.steps.last().map_or(0, |step| step.at);
        self.agenda.at(last + 1, Happening::Heal);
        self.agenda
            .after(self.plan.settings.worker_ttl, Happening::CheckTtl);

        self.play(|cluster| cluster.is_healed);
        let deadline = self.agenda.now + SETTLE_MAX;
        self.play(|cluster| cluster.is_settled() || cluster.agenda.now > deadline);
        self.check_settled();
        self.check_runs();
        let futures = self.futures();

        for client in 0..self.clients.len() {
            self.disconnect(client);
        }
        self.forget_forgotten();
        let deadline = self.agenda.now + EMPTY_MAX;
        self.play(|cluster| cluster.is_empty() || cluster.agenda.now > deadline);
        self.check_empty();
        self.take_coverage();
        Outcome {
            coverage: self.coverage,
            events: self.events,
            runs: self.tally.begun,
            futures,
            seconds: self.agenda.now as f64 * 1e-6,
        }
    }

    fn play(&mut self, is_over: impl Fn(&Self) -> bool) {
        let events_max = EVENTS_MAX + EVENTS_MAX_PER_MACHINE * self.machines.len() as u64;
        while !is_over(self) {
            let happening = self.agenda.next().expect("heartbeats never end");
            self.events += 1;
            assert!(
                self.events < events_max,
                "after {events_max} events the run is not over"
            );
            self.happen(happening);
        }
    }

    fn happen(&mut self, happening: Happening) {
        if let Some(waiting) = &mut self.stalled
            && happening.is_for_scheduler()
        {
            waiting.push_back(happening);
            return;
        }
        match happening {
            Happening::GoOn => self.go_on(),
            Happening::Step(number) => self.step(number),
            Happening::Heal => {
                self.heal();
                self.is_healed = true;
            }
            Happening::Register { worker } => self.register(worker),
            Happening::FromWorker { worker, message } => self.worker_says(worker, message),
            Happening::HeartbeatArrives {
                worker,
                executing,
                nbytes,
            } => self.heartbeat_arrives(worker, executing, nbytes),
            Happening::WorkerGone { worker } => self.worker_gone(worker),
            Happening::RegistrationLost { id } => self.registration_lost(id),
            Happening::FromClient { client, message } => self.client_says(client, message),
            Happening::ClientGone { client } => self.client_gone(client),
            Happening::Expanded { client, submission } => self.expanded(client, &submission),
            Happening::Exploded { bundle, blob } => self.exploded(bundle, &blob),
            Happening::Tick { at } => self.tick(at),
            Happening::Continue => {
                self.scheduler.is_continuing = false;
                if self.scheduler.core.has_pending_work() {
                    self.scheduler_event(Event::Continue);
                }
            }
            Happening::CheckTtl => self.check_ttl(),
            Happening::Asked(ask) => self.asked(ask),
            Happening::AskLost { request } => self.ask_lost(request),
            Happening::LaidOut(create) => self.laid_out(&create),
            Happening::InputsDone { request, workers } => self.inputs_done(request, workers),
            Happening::Adaptive => self.adapt(),
            Happening::Retire { addresses } => self.retire_workers(&addresses),
            Happening::Replicate { address, key } => self.replicate(&address, key),
            Happening::Retry { client, keys } => self.retry(client, keys),
            Happening::AtWorker { worker, what } => self.at_worker(worker, what),
            Happening::Thaw { worker } => self.thaw(worker),
            Happening::Start {
                machine,
                same_address,
            } => self.start(machine, same_address, None),
            Happening::ToClient { client, message } => self.client_hears(client, message),
            Happening::Scattered {
                client,
                task,
                holder,
            } => self.scattered(client, task, &holder),
        }
    }

    /// The scheduler stands still no more.
    pub(crate) fn go_on(&mut self) {
        for happening in self.stalled.take().into_iter().flatten() {
            self.happen(happening);
        }
    }

    /// Asks a worker for something after a delay of a connection of its own.
    pub(crate) fn send_aside(&mut self, worker: usize, what: AtWorker) {
        let delay = self.workers[worker].aside.delay(&self.plan.settings);
        self.agenda
            .after(delay, Happening::AtWorker { worker, what });
    }

    pub(crate) fn number(&self, key: &Key) -> usize {
        *self
            .numbers
            .get(key)
            .expect("every key is one of the plan's")
    }
}
