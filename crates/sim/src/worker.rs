//! A worker's shell: its core, values, runs and transfers.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use indexmap::IndexMap;
use oxidask_scheduler::{Status, WorkerId};
use oxidask_wire::{Key, Str, Value};
use oxidask_worker::event::Insertion;
use oxidask_worker::instruction::{Execute, GatherDep};
use oxidask_worker::task::{Action as Doing, StartStop, TaskFailure, ValueType};
use oxidask_worker::{
    Config, Event, Instruction, Instructions, StimulusId, StoredValue, WorkerState,
};

use crate::cluster::{Answer, AtWorker, Cluster, Happening, WorkerMessage};
use crate::network::Link;
use crate::p2p::Answered;
use crate::plan::Micros;
use crate::reference;
use crate::translate::Message;

/// Pause before a busy peer is asked again, as stock.
const BUSY_PAUSE: Micros = 150_000;

/// Before a worker looks for the scheduler again, as stock.
const REGISTRATION_PAUSE: Micros = 100_000;

/// Before a worker that was refused tries again, as one that a nanny restarts.
const RESTART_PAUSE: Micros = 1_000_000;

/// Until a nanny has started another worker.
pub(crate) const NANNY_PAUSE: Micros = 500_000;

/// Records kept: more than a run of the usual size makes.
const LOG_LENGTH: usize = 20_000;

/// A worker, and what its shell remembers.
#[derive(Debug)]
pub(crate) struct WorkerNode {
    pub(crate) core: WorkerState,
    pub(crate) machine: usize,
    pub(crate) address: Arc<str>,
    pub(crate) name: String,
    /// While the scheduler knows it.
    pub(crate) id: Option<WorkerId>,
    pub(crate) status: Status,
    pub(crate) is_alive: bool,
    /// It takes its leave: it reads nothing any more, but its runs may still end.
    pub(crate) is_closing: bool,
    pub(crate) is_frozen: bool,
    /// Its memory is short until then.
    pub(crate) short_until: Micros,
    /// How long reading values takes, until when.
    pub(crate) disk: (Micros, Micros),
    /// Values that cannot be read.
    pub(crate) damaged: HashSet<Key>,
    /// What came while it stood still.
    pub(crate) inbox: VecDeque<AtWorker>,
    /// The connection breaks by which it registers first; so much later the scheduler notices.
    pub(crate) loses_registration: Option<Micros>,
    /// What is sent on the stream is lost.
    pub(crate) is_cut_off: bool,
    /// The stream to the scheduler.
    pub(crate) up: Link,
    /// The stream from the scheduler.
    pub(crate) down: Link,
    /// Requests of others.
    pub(crate) aside: Link,
    pub(crate) store: IndexMap<Key, u64>,
    pub(crate) running: IndexMap<Key, Run>,
    /// Transfers from peers under way.
    pub(crate) incoming: usize,
    /// Answers to peers under way.
    outgoing: usize,
    queue: VecDeque<Stimulus>,
    next_token: u64,
}

/// A run under way.
#[derive(Debug)]
pub(crate) struct Run {
    run_id: i64,
    pub(crate) token: u64,
    begun: Micros,
    pub(crate) outcome: Outcome,
}

/// How a run ends.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Value(u64),
    Unstorable,
    Reschedule,
    Raises(String),
    /// Ends the worker.
    Dies,
    /// Not known yet: it asks the scheduler, and has this value if nothing comes between.
    Asks(u64),
    /// Not known yet: it waits for what it submitted.
    Submits(u64),
}

impl WorkerNode {
    /// How long it takes now until values are in memory.
    fn read_time(&self, now: Micros) -> Micros {
        let (read, until) = self.disk;
        if now < until { read } else { 0 }
    }
}

#[derive(Debug)]
struct Stimulus {
    stimulus_id: StimulusId,
    event: Event,
    values: IndexMap<Key, u64>,
}

impl Cluster<'_> {
    /// A machine without a worker gets one.
    pub(crate) fn start(
        &mut self,
        machine: usize,
        same_address: bool,
        loses_registration: Option<Micros>,
    ) {
        if self.machines[machine].is_some() {
            return;
        }
        let number = self.workers.len();
        let previous = self
            .workers
            .iter()
            .rev()
            .find(|node| node.machine == machine);
        let address = previous.filter(|_| same_address).map_or_else(
            || format!("tcp://machine-{machine}:{}", 40_000 + number).into(),
            |node| node.address.clone(),
        );
        let description = self.descriptions[machine];
        let settings = &self.plan.settings;
        let config = Config {
            nthreads: description.nthreads as usize,
            resources: description
                .has_gpu
                .then(|| ("gpu".into(), 1.0))
                .into_iter()
                .collect(),
            transfer_incoming_count_limit: settings.incoming_max,
            transfer_incoming_bytes_throttle_threshold: 0,
            low_level_log_length: LOG_LENGTH,
            seed: number as u64,
            ..Config::new(address.clone())
        };
        let link = |kind| Link::new(self.plan.seed, &[number as u64, kind]);
        self.workers.push(WorkerNode {
            core: WorkerState::new(config),
            machine,
            address,
            name: format!("machine-{machine}"),
            id: None,
            status: Status::Init,
            is_alive: true,
            is_closing: false,
            is_frozen: false,
            short_until: 0,
            disk: (0, 0),
            damaged: HashSet::new(),
            inbox: VecDeque::new(),
            loses_registration,
            is_cut_off: false,
            up: link(0),
            down: link(1),
            aside: link(2),
            store: IndexMap::new(),
            running: IndexMap::new(),
            incoming: 0,
            outgoing: 0,
            queue: VecDeque::new(),
            next_token: 0,
        });
        let address = self.workers[number].address.clone();
        self.addresses.insert(address, number);
        self.machines[machine] = Some(number);
        self.ask_to_register(number);
    }

    fn ask_to_register(&mut self, worker: usize) {
        let node = &mut self.workers[worker];
        let delay = node.aside.delay(&self.plan.settings);
        if node.loses_registration.is_some() {
            let again = delay + REGISTRATION_PAUSE + node.aside.delay(&self.plan.settings);
            self.agenda.after(again, Happening::Register { worker });
        }
        self.agenda.after(delay, Happening::Register { worker });
    }

    pub(crate) fn at_worker(&mut self, worker: usize, what: AtWorker) {
        let node = &mut self.workers[worker];
        if node.is_frozen && node.is_alive {
            node.inbox.push_back(what);
            return;
        }
        if matches!(
            what,
            AtWorker::Messages(_) | AtWorker::StreamEnded | AtWorker::Registered { .. }
        ) {
            node.down.on_its_way -= 1;
        }
        if !node.is_alive {
            return self.at_dead_worker(what);
        }
        if node.is_closing {
            return self.at_closing_worker(worker, what);
        }
        match what {
            AtWorker::Registered { accepted: true } => {
                self.set_status(worker, Status::Running);
                self.schedule_beat(worker);
            }
            AtWorker::Registered { accepted: false } => {
                let delay = RESTART_PAUSE + self.workers[worker].aside.delay(&self.plan.settings);
                self.agenda.after(delay, Happening::Register { worker });
            }
            AtWorker::Messages(messages) => self.hear(worker, messages),
            AtWorker::StreamEnded => self.close(worker),
            AtWorker::Beat => self.beat(worker),
            AtWorker::BeatAnswered { known } => {
                if !known {
                    self.close(worker);
                }
            }
            AtWorker::Ran { key, token } => self.ran(worker, key, token),
            AtWorker::Asks { key, token } => self.ask(worker, key, token),
            AtWorker::Answered {
                key,
                token,
                answered,
            } => self.answered(worker, key, token, answered),
            AtWorker::Secedes { key, token } => self.secedes(worker, key, token),
            AtWorker::GetData { from, gather } => self.get_data(worker, from, gather),
            AtWorker::GotData {
                gather,
                answer,
                peer,
            } => self.got_data(worker, gather, answer, peer),
            AtWorker::Acknowledged => node.outgoing -= 1,
            AtWorker::RetryBusy { address } => {
                self.worker_event(
                    worker,
                    "retry-busy",
                    Event::RetryBusyWorker { worker: address },
                );
            }
            AtWorker::Scatter { client, task } => {
                let key = self.keys[task].clone();
                let data = vec![(key.clone(), Ok(self.stored(task)))];
                let values = IndexMap::from([(key, self.values[task])]);
                let stimulus_id = self.stimulus_id("update-data");
                self.stimulus_with(worker, stimulus_id, Event::UpdateData { data }, values);
                let holder = self.workers[worker].address.clone();
                let delay = self.workers[worker].aside.delay(&self.plan.settings);
                let answer = Happening::Scattered {
                    client,
                    task,
                    holder,
                };
                self.agenda.after(delay, answer);
            }
            AtWorker::ObserveMemory => self.observe_memory(worker),
            AtWorker::Closed => unreachable!("only a closing worker is closed"),
        }
    }

    /// What waits for an answer gets none.
    fn at_dead_worker(&mut self, what: AtWorker) {
        match what {
            AtWorker::GetData { from, gather } => self.unreachable(from, gather),
            AtWorker::GotData {
                peer: Some(peer), ..
            } => self.send_aside(peer, AtWorker::Acknowledged),
            AtWorker::GotData { peer: None, .. }
            | AtWorker::Registered { .. }
            | AtWorker::Messages(_)
            | AtWorker::StreamEnded
            | AtWorker::Beat
            | AtWorker::BeatAnswered { .. }
            | AtWorker::Ran { .. }
            | AtWorker::Asks { .. }
            | AtWorker::Answered { .. }
            | AtWorker::Secedes { .. }
            | AtWorker::Acknowledged
            | AtWorker::RetryBusy { .. }
            | AtWorker::Scatter { .. }
            | AtWorker::ObserveMemory
            | AtWorker::Closed => {}
        }
    }

    /// `Handle::wait` of the server: a worker says that it closes, and goes a little later.
    /// Transfers to it are given up, tasks run on until it goes.
    fn close(&mut self, worker: usize) {
        self.workers[worker].is_closing = true;
        self.set_status(worker, Status::Closing);
        self.send_aside(worker, AtWorker::Closed);
    }

    fn at_closing_worker(&mut self, worker: usize, what: AtWorker) {
        match what {
            AtWorker::Closed => self.die(worker, true),
            AtWorker::Ran { key, token } => self.ran(worker, key, token),
            AtWorker::Secedes { key, token } => self.secedes(worker, key, token),
            AtWorker::Acknowledged => self.workers[worker].outgoing -= 1,
            AtWorker::GetData { .. }
            | AtWorker::GotData { .. }
            | AtWorker::Asks { .. }
            | AtWorker::Answered { .. }
            | AtWorker::Registered { .. }
            | AtWorker::Messages(_)
            | AtWorker::StreamEnded
            | AtWorker::Beat
            | AtWorker::BeatAnswered { .. }
            | AtWorker::RetryBusy { .. }
            | AtWorker::Scatter { .. }
            | AtWorker::ObserveMemory => self.at_dead_worker(what),
        }
    }

    pub(crate) fn thaw(&mut self, worker: usize) {
        if !std::mem::take(&mut self.workers[worker].is_frozen) {
            return;
        }
        while let Some(what) = self.workers[worker].inbox.pop_front() {
            self.at_worker(worker, what);
        }
    }

    /// A worker is no more, and its nanny starts another one.
    fn die_and_return(&mut self, worker: usize) {
        let machine = self.workers[worker].machine;
        self.die(worker, false);
        let start = Happening::Start {
            machine,
            same_address: false,
        };
        self.agenda.after(NANNY_PAUSE, start);
    }

    /// A worker is no more. What it sent arrives if it is flushed.
    pub(crate) fn die(&mut self, worker: usize, flushed: bool) {
        let node = &mut self.workers[worker];
        if !node.is_alive {
            return;
        }
        node.is_alive = false;
        node.is_frozen = false;
        node.is_cut_off |= !flushed;
        node.store.clear();
        let machine = node.machine;
        let inbox = std::mem::take(&mut node.inbox);
        let running = std::mem::take(&mut node.running);
        let at = node.up.arrival(self.agenda.now, &self.plan.settings);
        node.up.on_its_way -= 1;
        self.agenda.at(at, Happening::WorkerGone { worker });
        self.machines[machine] = None;
        self.forget_asks(worker);
        for what in inbox {
            self.at_worker(worker, what);
        }
        for (key, run) in running {
            if matches!(run.outcome, Outcome::Submits(_)) {
                self.abandon_submitted(worker, &key, run.token);
            }
        }
    }

    // The core.

    /// A batch of the scheduler's. Between two messages of it the core may know of a task
    /// that is about to be freed together with an input that is gone already.
    fn hear(&mut self, worker: usize, messages: Vec<Message>) {
        if self.workers[worker].is_cut_off {
            return;
        }
        for message in messages {
            if self.workers[worker].is_closing {
                return;
            }
            match message {
                Message::Event(stimulus_id, event) => {
                    self.stimulus_unchecked(worker, stimulus_id, event, IndexMap::new());
                }
                Message::Status(status, stimulus_id) => {
                    self.asked_status(worker, status, &stimulus_id);
                }
                Message::Close => self.close(worker),
            }
        }
        self.workers[worker].core.validate();
        self.check_worker(worker);
        self.compare(worker);
    }

    fn stimulus_id(&mut self, prefix: &str) -> StimulusId {
        self.stimulus(prefix).into()
    }

    /// Lets a worker handle an event that brings no values.
    pub(crate) fn worker_event(&mut self, worker: usize, prefix: &str, event: Event) {
        let stimulus_id = self.stimulus_id(prefix);
        self.stimulus_with(worker, stimulus_id, event, IndexMap::new());
    }

    fn stimulus_with(
        &mut self,
        worker: usize,
        stimulus_id: StimulusId,
        event: Event,
        values: IndexMap<Key, u64>,
    ) {
        self.stimulus_unchecked(worker, stimulus_id, event, values);
        self.workers[worker].core.validate();
        self.check_worker(worker);
    }

    fn stimulus_unchecked(
        &mut self,
        worker: usize,
        stimulus_id: StimulusId,
        event: Event,
        values: IndexMap<Key, u64>,
    ) {
        self.workers[worker].queue.push_back(Stimulus {
            stimulus_id,
            event,
            values,
        });
        let now = self.time() + self.descriptions[self.workers[worker].machine].clock_skew;
        while let Some(stimulus) = self.workers[worker].queue.pop_front() {
            let mut out = Instructions::default();
            let node = &mut self.workers[worker];
            let stimulus_id = stimulus.stimulus_id;
            let handled = node
                .core
                .handle_stimulus(now, &stimulus_id, stimulus.event, &mut out);
            if let Err(error) = handled {
                panic!("the worker {} has lost its way: {error}", node.address);
            }
            let mut values = stimulus.values;
            for instruction in out.0 {
                self.worker_carries_out(worker, instruction, &mut values, now);
            }
        }
    }

    /// An event that follows from an instruction.
    fn follow_up(&mut self, worker: usize, prefix: &str, event: Event) {
        let stimulus_id = self.stimulus_id(prefix);
        self.workers[worker].queue.push_back(Stimulus {
            stimulus_id,
            event,
            values: IndexMap::new(),
        });
    }

    fn worker_carries_out(
        &mut self,
        worker: usize,
        instruction: Instruction,
        values: &mut IndexMap<Key, u64>,
        now: f64,
    ) {
        match instruction {
            Instruction::SendMessageToScheduler(message) => {
                self.send_up(worker, WorkerMessage::Core(message));
            }
            Instruction::Execute(execute) if self.workers[worker].is_closing => {
                let key = execute.key;
                self.follow_up(worker, "worker-closing", Event::Reschedule { key });
            }
            Instruction::Execute(execute) => self.execute(worker, &execute, now),
            Instruction::GatherDep(gather) if self.workers[worker].is_closing => {
                let event = Event::GatherDepFailure {
                    worker: gather.worker,
                    total_nbytes: gather.total_nbytes,
                    failure: failure("closing"),
                };
                self.follow_up(worker, "worker-closing", event);
            }
            Instruction::GatherDep(gather) => self.gather(worker, gather),
            Instruction::RetryBusyWorkerLater(retry) => {
                let what = AtWorker::RetryBusy {
                    address: retry.worker,
                };
                self.agenda
                    .after(BUSY_PAUSE, Happening::AtWorker { worker, what });
            }
            Instruction::StoreData { key } => {
                let value = values.swap_remove(&key);
                let value = value.expect("the core stores only what came with the event");
                assert_eq!(
                    value,
                    self.values[self.number(&key)],
                    "{key} has another value than the reference"
                );
                self.workers[worker].store.insert(key, value);
            }
            Instruction::ReleaseData { key } => {
                self.workers[worker].store.swap_remove(&key);
                self.workers[worker].damaged.remove(&key);
            }
            Instruction::Transition { .. } => {}
        }
    }

    fn send_up(&mut self, worker: usize, message: WorkerMessage) {
        let node = &mut self.workers[worker];
        if node.is_cut_off {
            return;
        }
        let at = node.up.arrival(self.agenda.now, &self.plan.settings);
        self.agenda
            .at(at, Happening::FromWorker { worker, message });
    }

    // Status.

    /// `Shell::set_status` of the server.
    pub(crate) fn set_status(&mut self, worker: usize, status: Status) {
        let previous = std::mem::replace(&mut self.workers[worker].status, status);
        let stimulus_id = self.stimulus("worker-status-change");
        self.send_up(
            worker,
            WorkerMessage::Status(status, stimulus_id.as_str().into()),
        );
        let was_held = matches!(previous, Status::Paused | Status::ClosingGracefully);
        let event = if previous == Status::Running && status != Status::Running {
            Event::Pause
        } else if status == Status::Running && was_held {
            Event::Unpause
        } else {
            return;
        };
        self.stimulus_unchecked(worker, stimulus_id.into(), event, IndexMap::new());
    }

    /// `Shell::observe_memory` of the server.
    pub(crate) fn observe_memory(&mut self, worker: usize) {
        let node = &self.workers[worker];
        let is_short = self.agenda.now < node.short_until;
        if node.status == Status::Running && is_short {
            self.set_status(worker, Status::Paused);
        } else if node.status == Status::Paused && !is_short {
            self.set_status(worker, Status::Running);
        }
        self.workers[worker].core.validate();
    }

    fn asked_status(&mut self, worker: usize, status: Status, stimulus_id: &StimulusId) {
        let current = self.workers[worker].status;
        let is_any_running = matches!(
            current,
            Status::Running | Status::Paused | Status::ClosingGracefully
        );
        if status == Status::ClosingGracefully && !is_any_running {
            let message = WorkerMessage::Status(current, stimulus_id.as_str().into());
            self.send_up(worker, message);
        } else {
            self.set_status(worker, status);
        }
    }

    fn schedule_beat(&mut self, worker: usize) {
        let what = AtWorker::Beat;
        self.agenda.after(
            self.plan.settings.heartbeat_interval,
            Happening::AtWorker { worker, what },
        );
    }

    fn beat(&mut self, worker: usize) {
        let now = self.time() + self.descriptions[self.workers[worker].machine].clock_skew;
        let core = &self.workers[worker].core;
        let executing = core
            .all_running_tasks()
            .filter_map(|ts| Some((ts.key.clone(), now - ts.start_time?)))
            .collect();
        let nbytes = core.nbytes();
        let delay = self.workers[worker].aside.delay(&self.plan.settings);
        self.agenda.after(
            delay,
            Happening::HeartbeatArrives {
                worker,
                executing,
                nbytes,
            },
        );
        self.worker_event(worker, "find-missing", Event::FindMissing);
        self.observe_memory(worker);
        self.schedule_beat(worker);
    }

    // Runs.

    fn execute(&mut self, worker: usize, execute: &Execute, now: f64) {
        let key = execute.key.clone();
        let number = self.number(&key);
        let node = &mut self.workers[worker];
        let ts = node
            .core
            .find_task(&key)
            .expect("a task that is executed is known");
        let run_id = ts.run_id;
        let spec = ts.run_spec.as_ref().and_then(Value::as_bin);
        let expected = number.to_string();
        assert_eq!(
            spec.map(|spec| &spec[..]),
            Some(expected.as_bytes()),
            "the run_spec of {key}"
        );

        let task = &self.plan.tasks[number];
        let read = match task.dependencies.is_empty() {
            true => 0,
            false => node.read_time(self.agenda.now),
        };
        let dependencies = task.dependencies.iter().map(|&input| &self.keys[input]);
        let damaged = dependencies.filter(|&key| node.damaged.contains(key));
        let keys: Vec<Key> = damaged.cloned().collect();
        if !keys.is_empty() {
            // `Shell::read_ended` and `inputs_read` of the server.
            self.follow_up(worker, "data-lost", Event::DataLost { keys });
            self.follow_up(worker, "data-lost", Event::Reschedule { key });
            return;
        }
        let mut inputs = Vec::with_capacity(task.dependencies.len());
        for &dependency in &task.dependencies {
            let input = node.store.get(&self.keys[dependency]);
            if input.is_none() {
                assert!(
                    !ts.state.is_running(),
                    "{key} is executing without its input {}",
                    self.keys[dependency]
                );
                let event = Event::ExecuteFailure {
                    key: key.clone(),
                    run_id,
                    failure: failure(&format!("missing {dependency}")),
                    startstops: Vec::new(),
                    thread: None,
                };
                self.follow_up(worker, "execute-unknown-error", event);
                return;
            }
            inputs.extend(input);
        }
        assert!(
            self.tally.run_ids.insert(run_id),
            "run {run_id} of {key} begins twice"
        );
        node.core.set_start_time(&key, now);
        let submitted = task.submits.last().map(|&submitted| self.values[submitted]);
        let value = reference::value(number, task, &inputs, submitted);
        let attempt = self.tally.begun[number];
        self.tally.begun[number] += 1;
        let after = |count: u32| attempt.checked_sub(count);
        let failures = task.kills.saturating_add(task.failures);
        let outcome = if after(task.kills).is_none() {
            Outcome::Dies
        } else if after(failures).is_none() {
            Outcome::Raises(format!("boom {number}"))
        } else if after(failures + task.reschedules).is_none() {
            Outcome::Reschedule
        } else if after(failures + task.reschedules + task.unstorable).is_none() {
            Outcome::Unstorable
        } else if submitted.is_some() {
            Outcome::Submits(value)
        } else if task.p2p.is_some_and(|p2p| p2p.is_whole(task)) {
            Outcome::Asks(value)
        } else {
            Outcome::Value(value)
        };
        node.next_token += 1;
        let token = node.next_token;
        let submits = matches!(outcome, Outcome::Submits(_));
        let asks = matches!(outcome, Outcome::Asks(_));
        let run = Run {
            run_id,
            token,
            begun: self.agenda.now,
            outcome,
        };
        let previous = node.running.insert(key.clone(), run);
        assert!(
            previous.is_none(),
            "{key} runs twice at a time on one worker"
        );
        let duration = read + task.duration;
        if task.secedes || submits {
            let what = AtWorker::Secedes {
                key: key.clone(),
                token,
            };
            self.agenda
                .after(duration / 2, Happening::AtWorker { worker, what });
        }
        if asks {
            let what = AtWorker::Asks { key, token };
            self.agenda
                .after(duration, Happening::AtWorker { worker, what });
        } else if !submits {
            let what = AtWorker::Ran { key, token };
            self.agenda
                .after(duration, Happening::AtWorker { worker, what });
        }
    }

    fn secedes(&mut self, worker: usize, key: Key, token: u64) {
        let Some(run) = self.workers[worker].running.get(&key) else {
            return;
        };
        if run.token != token {
            return;
        }
        let submits = matches!(run.outcome, Outcome::Submits(_));
        let compute_duration = (self.agenda.now - run.begun) as f64 * 1e-6;
        let event = Event::Secede {
            key: key.clone(),
            compute_duration,
        };
        self.worker_event(worker, "secede", event);
        if submits {
            self.submit_from_task(worker, &key, token);
        }
    }

    /// What a run submitted is there, or has failed.
    pub(crate) fn submitted_done(&mut self, worker: usize, key: &Key, token: u64, ok: bool) {
        let number = self.number(key);
        let Some(run) = self.workers[worker].running.get_mut(key) else {
            return;
        };
        if run.token != token {
            return;
        }
        let Outcome::Submits(value) = run.outcome else {
            return;
        };
        run.outcome = if ok {
            Outcome::Value(value)
        } else {
            Outcome::Raises(format!("nested {number}"))
        };
        let what = AtWorker::Ran {
            key: key.clone(),
            token,
        };
        self.agenda.after(1, Happening::AtWorker { worker, what });
    }

    /// What a run of a shuffle asked for is there.
    fn answered(&mut self, worker: usize, key: Key, token: u64, answered: Answered) {
        let number = self.number(&key);
        let Some(run) = self.workers[worker].running.get_mut(&key) else {
            return;
        };
        let Outcome::Asks(value) = run.outcome else {
            return;
        };
        if run.token != token {
            return;
        }
        run.outcome = match answered {
            Answered::Done { shuffle_run } => {
                self.shuffle_runs[number] = shuffle_run;
                Outcome::Value(value)
            }
            Answered::Again => Outcome::Reschedule,
            Answered::Fails => Outcome::Raises(format!("p2p {number}")),
        };
        self.ran(worker, key, token);
    }

    fn ran(&mut self, worker: usize, key: Key, token: u64) {
        let node = &mut self.workers[worker];
        let Some(run) = node.running.get(&key).filter(|run| run.token == token) else {
            return;
        };
        let (run_id, outcome, begun) = (run.run_id, run.outcome.clone(), run.begun);
        if matches!(outcome, Outcome::Dies) {
            return self.die_and_return(worker);
        }
        node.running.swap_remove(&key);
        let number = self.number(&key);
        let nbytes = self.plan.tasks[number].nbytes;
        let end = self.time();
        let startstops = vec![StartStop {
            action: Doing::Compute,
            start: end - (self.agenda.now - begun) as f64 * 1e-6,
            stop: end,
            source: None,
        }];
        let thread = Some(1);
        let mut values = IndexMap::new();
        let event = match outcome {
            Outcome::Value(value) => {
                values.insert(key.clone(), value);
                Event::ExecuteSuccess {
                    key,
                    run_id,
                    nbytes,
                    value: Ok(self.stored(number)),
                    startstops,
                    thread,
                }
            }
            Outcome::Unstorable => Event::ExecuteSuccess {
                key,
                run_id,
                nbytes,
                value: Err(failure(&format!("unstorable {number}"))),
                startstops,
                thread,
            },
            Outcome::Reschedule => Event::Reschedule { key },
            Outcome::Raises(text) => Event::ExecuteFailure {
                key,
                run_id,
                failure: failure(&text),
                startstops,
                thread,
            },
            Outcome::Dies => unreachable!("the worker is gone"),
            Outcome::Asks(_) | Outcome::Submits(_) => {
                unreachable!("a run ends once its outcome is known")
            }
        };
        let stimulus_id = self.stimulus_id("ran");
        self.stimulus_with(worker, stimulus_id, event, values);
        self.compare(worker);
    }

    fn stored(&self, number: usize) -> StoredValue {
        StoredValue {
            nbytes: self.plan.tasks[number].nbytes,
            r#type: Arc::new(ValueType::default()),
            disk_write: None,
        }
    }

    // Transfers.

    fn gather(&mut self, worker: usize, gather: GatherDep) {
        let now = self.agenda.now;
        let node = &mut self.workers[worker];
        node.incoming += 1;
        let machine = node.machine;
        let peer = self.addresses.get(&gather.worker).copied();
        let peer = peer.filter(|&peer| self.workers[peer].is_alive);
        assert_ne!(peer, Some(worker), "a worker fetches from itself");
        let reachable = peer.filter(|&peer| {
            let to = self.workers[peer].machine;
            let cut = self.cuts.iter();
            !{ cut }.any(|&(from, cut, until)| from == machine && cut == to && now < until)
        });
        match reachable {
            Some(peer) => self.send_aside(
                peer,
                AtWorker::GetData {
                    from: worker,
                    gather,
                },
            ),
            None => self.unreachable(worker, gather),
        }
    }

    fn unreachable(&mut self, worker: usize, gather: GatherDep) {
        let answer = Answer::Unreachable;
        let peer = None;
        self.send_aside(
            worker,
            AtWorker::GotData {
                gather,
                answer,
                peer,
            },
        );
    }

    fn get_data(&mut self, worker: usize, from: usize, gather: GatherDep) {
        let node = &mut self.workers[worker];
        let limit = match node.status {
            Status::Paused => 1,
            Status::Undefined
            | Status::Created
            | Status::Init
            | Status::Starting
            | Status::Running
            | Status::Stopping
            | Status::Stopped
            | Status::Closing
            | Status::ClosingGracefully
            | Status::Closed
            | Status::Failed
            | Status::DontReply => self.plan.settings.outgoing_max,
        };
        let (answer, peer) = if node.outgoing >= limit {
            (Answer::Busy, None)
        } else {
            node.outgoing += 1;
            let (mut data, mut missing, mut lost) = (Vec::new(), Vec::new(), Vec::new());
            for key in &gather.to_gather {
                match node.store.get(key) {
                    Some(_) if node.damaged.contains(key) => lost.push(key.clone()),
                    Some(&value) => data.push((key.clone(), value)),
                    None => missing.push(key.clone()),
                }
            }
            if !missing.is_empty() {
                let event = Event::DataMissing { keys: missing };
                self.worker_event(worker, "get-data", event);
            }
            if !lost.is_empty() {
                self.worker_event(worker, "data-lost", Event::DataLost { keys: lost });
            }
            (Answer::Data(data), Some(worker))
        };
        let node = &mut self.workers[worker];
        let read = node.read_time(self.agenda.now);
        let delay = read + node.aside.delay(&self.plan.settings);
        let what = AtWorker::GotData {
            gather,
            answer,
            peer,
        };
        self.agenda
            .after(delay, Happening::AtWorker { worker: from, what });
    }

    fn got_data(&mut self, worker: usize, gather: GatherDep, answer: Answer, peer: Option<usize>) {
        self.workers[worker].incoming -= 1;
        if let Some(peer) = peer {
            self.send_aside(peer, AtWorker::Acknowledged);
        }
        let GatherDep {
            worker: from,
            total_nbytes,
            ..
        } = gather;
        let mut values = IndexMap::new();
        let event = match answer {
            Answer::Data(data) => {
                let mut insertions: Vec<(Key, Insertion)> = Vec::with_capacity(data.len());
                for (key, value) in data {
                    let number = self.number(&key);
                    let unread = &mut self.tally.unread[number];
                    if *unread < self.plan.tasks[number].unreadable {
                        *unread += 1;
                        self.tally.disturbances += 1;
                        let failure = failure(&format!("unreadable {number}"));
                        insertions.push((key, Err(failure)));
                    } else {
                        insertions.push((key.clone(), Ok(self.stored(number))));
                        values.insert(key, value);
                    }
                }
                Event::GatherDepSuccess {
                    worker: from.clone(),
                    total_nbytes,
                    data: insertions,
                    transfer: Some(StartStop {
                        action: Doing::Transfer,
                        start: self.time() - 0.001,
                        stop: self.time(),
                        source: Some(from),
                    }),
                }
            }
            Answer::Busy => Event::GatherDepBusy {
                worker: from,
                total_nbytes,
            },
            Answer::Unreachable => Event::GatherDepNetworkFailure {
                worker: from,
                total_nbytes,
            },
        };
        let stimulus_id = self.stimulus_id("gather-dep");
        self.stimulus_with(worker, stimulus_id, event, values);
        self.compare(worker);
    }
}

fn failure(text: &str) -> Arc<TaskFailure> {
    Arc::new(TaskFailure {
        exception: Value::from(text),
        traceback: Value::Nil,
        exception_text: Str::from(text),
        traceback_text: Str::default(),
    })
}
