//! Random events: everything fits together after each, and in the end
//! everything that is wanted is there or has failed.

use std::collections::BTreeSet;

use bytes::Bytes;
use oxidask_scheduler::graph::{Actors, RunSpec, TaskFlags};
use oxidask_scheduler::{
    ClientId, Config, Event, Instruction, NewWorker, RequestId, State, Status, WorkerId,
};
use oxidask_wire::{Key, Map, Str, Value};
use proptest::prelude::*;

use crate::env::{Env, address, graph, pickle, startstops};

const CLIENTS: [&str; 3] = ["ada", "bob", "cyd"];

/// One event, chosen by the numbers among what is possible at its time.
#[derive(Clone, Copy, Debug)]
struct Action {
    kind: u8,
    a: u32,
    b: u32,
}

fn actions(count: usize) -> impl Strategy<Value = Vec<Action>> {
    let action =
        (any::<u8>(), any::<u32>(), any::<u32>()).prop_map(|(kind, a, b)| Action { kind, a, b });
    prop::collection::vec(action, 1..count)
}

/// A small generator for what one action needs beyond its two numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides.max(1)
    }
}

struct World {
    env: Env,
    worker_count: u32,
    /// Bundles the core has asked for.
    asked: BTreeSet<u32>,
    /// Keys that clients asked for by a graph.
    submitted: BTreeSet<(ClientId, Key)>,
    /// Keys under which data came from outside.
    scattered: BTreeSet<Key>,
    /// What was sent, shown when something goes wrong.
    events: Vec<String>,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the last events were");
            for event in self.events.iter().rev().take(20).rev() {
                println!("  {event}");
            }
            println!("and the last transitions");
            let transitions = self.env.scheduler.transition_log();
            let skipped = transitions.len().saturating_sub(40);
            for transition in transitions.iter().skip(skipped) {
                println!("  {transition:?}");
            }
        }
    }
}

impl World {
    fn new(config: Config) -> Self {
        Self {
            env: Env::new(config),
            worker_count: 0,
            asked: BTreeSet::new(),
            submitted: BTreeSet::new(),
            scattered: BTreeSet::new(),
            events: Vec::new(),
        }
    }

    fn send(&mut self, event: Event) {
        self.events.push(format!("{event:?}"));
        for instruction in self.env.handle_once(event) {
            if let Instruction::ExplodeBundle { bundle, .. } = instruction {
                self.asked.insert(bundle);
            }
        }
    }

    fn workers(&self) -> Vec<WorkerId> {
        self.env
            .scheduler
            .workers()
            .map(|(worker, _)| worker)
            .collect()
    }

    fn client(&self, at: u32) -> Option<ClientId> {
        self.env
            .scheduler
            .client_id(CLIENTS[at as usize % CLIENTS.len()])
    }

    /// A task in this state, chosen by a number.
    fn task_in(&self, at: u32, states: &[State]) -> Option<Key> {
        let keys: Vec<&Key> = self
            .env
            .scheduler
            .tasks()
            .filter(|(_, ts)| states.contains(&ts.state))
            .map(|(_, ts)| &ts.key)
            .collect();
        keys.get(at as usize % keys.len().max(1))
            .map(|&key| key.clone())
    }

    fn play(&mut self, action: Action) {
        let Action { kind, a, b } = action;
        let stimulus_id = self.env.stimulus();
        self.env.now += f64::from(b % 7) * 0.05;
        let workers = self.workers();
        let worker = workers.get(a as usize % workers.len().max(1)).copied();
        for _ in 0..(b >> 16) % 4 {
            if self.env.scheduler.has_pending_work() {
                self.send(Event::Continue);
            }
        }
        match kind % 36 {
            0 | 1 => self.add_worker(a, b),
            2 => {
                if let Some(worker) = worker {
                    let expected = b.is_multiple_of(3);
                    let close = b.is_multiple_of(2);
                    match b % 5 {
                        0 => self.send(Event::WorkerLost {
                            worker,
                            stimulus_id,
                        }),
                        1 => {
                            let ws = self.env.scheduler.worker(worker).expect("known");
                            self.send(Event::WorkerDied {
                                nanny: ws.nanny.clone().unwrap_or_default(),
                                pid: i64::from(b % 2),
                                reason: Str::from("died"),
                                stimulus_id,
                            });
                        }
                        _ => self.send(Event::RemoveWorker {
                            worker,
                            stimulus_id,
                            expected,
                            close,
                        }),
                    }
                }
            }
            3..=6 => self.submit(a, b),
            7..=12 => {
                if let Some(key) = self.task_in(a, &[State::Processing]) {
                    self.finish(&key, i64::from(b % 50));
                }
            }
            13 => {
                if let Some(key) = self.task_in(a, &[State::Processing]) {
                    self.err(&key);
                }
            }
            14 => self.stale(a, b),
            15 | 16 => self.release(a, b),
            17 => {
                if let (Some(client), Some(key)) = (self.client(a), self.any_wanted(a, b)) {
                    self.send(Event::CancelKeys {
                        client,
                        keys: vec![key],
                        force: b.is_multiple_of(2),
                        reason: Value::Nil,
                        msg: Value::Nil,
                        stimulus_id,
                    });
                }
            }
            18 => {
                if let Some(key) = self.task_in(a, &[State::Erred]) {
                    let keys = vec![key];
                    self.send(Event::Retry {
                        request: RequestId(1),
                        client: None,
                        keys,
                        stimulus_id,
                    });
                }
            }
            19 => {
                if let Some(worker) = worker {
                    let status = [Status::Running, Status::Paused, Status::ClosingGracefully]
                        [b as usize % 3];
                    self.send(Event::WorkerStatusChange {
                        worker,
                        status,
                        stimulus_id,
                    });
                }
            }
            20 => {
                if let Some(key) = self.task_in(a, &[State::Processing]) {
                    let (worker, run_id) = self.run_of(&key);
                    let compute_duration = b.is_multiple_of(2).then_some(0.2);
                    self.send(Event::LongRunning {
                        worker,
                        key,
                        run_id,
                        compute_duration,
                        stimulus_id,
                    });
                }
            }
            21 => {
                if let Some(key) = self.task_in(a, &[State::Processing]) {
                    let (worker, _) = self.run_of(&key);
                    self.send(Event::Reschedule {
                        worker,
                        key,
                        stimulus_id,
                    });
                }
            }
            22 => {
                if let Some(key) = self.task_in(a, &[State::Memory]) {
                    let ts = self.env.scheduler.find_task(&key).unwrap();
                    let holders: Vec<WorkerId> = ts.who_has.iter().collect();
                    let worker = holders[b as usize % holders.len()];
                    self.send(Event::ReleaseWorkerData {
                        worker,
                        key,
                        stimulus_id,
                    });
                }
            }
            23 => {
                if let (Some(worker), Some(key)) = (worker, self.task_in(b, &State::ALL)) {
                    self.send(Event::AddKeys {
                        worker,
                        keys: vec![key],
                        stimulus_id,
                    });
                }
            }
            24 => {
                if let Some(worker) = worker {
                    let holder = self.env.scheduler.worker(worker).unwrap().address.clone();
                    let key = if b.is_multiple_of(4) {
                        self.task_in(b, &State::ALL)
                            .unwrap_or_else(|| Key::from("s-0"))
                    } else {
                        Key::from(format!("s-{}", b % 6).as_str())
                    };
                    let client = CLIENTS[a as usize % CLIENTS.len()];
                    self.scattered.insert(key.clone());
                    self.send(Event::UpdateData {
                        client: self.env.scheduler.client_id(client).map(|_| client.into()),
                        who_has: vec![(key.clone(), vec![Str::from(&*holder)])],
                        nbytes: vec![(key, 7)],
                        stimulus_id,
                    });
                }
            }
            25 => match self.client(a) {
                Some(client) if b.is_multiple_of(3) => self.send(Event::RemoveClient {
                    client,
                    stimulus_id,
                }),
                Some(_) => {}
                None => self.connect(a),
            },
            26 => self.answer_bundle(b),
            27 => {
                if let (Some(worker), Some(key)) = (worker, self.task_in(b, &[State::Memory])) {
                    let event = if b.is_multiple_of(2) {
                        Event::RemoveReplicas {
                            worker,
                            keys: vec![key],
                            stimulus_id,
                        }
                    } else {
                        Event::AcquireReplicas {
                            worker,
                            keys: vec![key],
                            stimulus_id,
                        }
                    };
                    self.send(event);
                }
            }
            28 => {
                if b.is_multiple_of(16) {
                    self.send(Event::Restart { stimulus_id });
                } else {
                    self.env.now += f64::from(b % 5);
                    self.send(Event::Tick);
                }
            }
            29 => {
                if let Some(key) = self.task_in(a, &State::ALL) {
                    let client =
                        ["queue-q", "variable-v", "fire-and-forget"][b as usize % 3].into();
                    let keys = vec![key];
                    let event = if a.is_multiple_of(2) {
                        Event::ClientDesiresKeys { client, keys }
                    } else {
                        Event::ClientReleasesKeys {
                            client,
                            keys,
                            stimulus_id,
                        }
                    };
                    self.send(event);
                }
            }
            30 => {
                if let (Some(worker), Some(key)) = (worker, self.task_in(b, &State::ALL)) {
                    self.send(Event::Heartbeat {
                        worker,
                        worker_now: None,
                        metrics: Value::Nil,
                        executing: vec![(key, f64::from(b % 9))],
                        extensions: Value::Nil,
                    });
                }
            }
            31 => self.send(Event::Continue),
            32 | 33 => {
                self.env.now += 1.1;
                self.send(Event::Tick);
            }
            _ => self.answer_steal(b),
        }
    }

    /// A worker answers a request to give a task up, sometimes twice.
    fn answer_steal(&mut self, b: u32) {
        let asked = self.env.steals.len().max(1);
        let Some((request, stimulus_id)) = self.env.steals.iter().nth(b as usize % asked) else {
            return;
        };
        let ((worker, key), stimulus_id) = (request.clone(), stimulus_id.clone());
        if !b.is_multiple_of(5) {
            self.env.steals.remove(&(worker, key.clone()));
        }
        let states = [
            "ready",
            "waiting",
            "constrained",
            "executing",
            "memory",
            "error",
        ];
        let state = states.get(b as usize % 8).copied().map(Str::from_static);
        self.send(Event::StealResponse {
            worker,
            key,
            state,
            stimulus_id,
        });
    }

    fn connect(&mut self, at: u32) {
        let name = CLIENTS[at as usize % CLIENTS.len()].into();
        self.send(Event::AddClient {
            name,
            versions: Value::Nil,
        });
    }

    fn add_worker(&mut self, a: u32, b: u32) {
        if self.workers().len() >= 5 {
            return;
        }
        self.worker_count += 1;
        let name = format!("w{}", self.worker_count);
        let stimulus_id = self.env.stimulus();
        let worker = NewWorker {
            address: address(&name).into(),
            name: Value::from(name.as_str()),
            nthreads: a % 3 + 1,
            memory_limit: a.is_multiple_of(7).then_some(60),
            local_directory: Str::default(),
            resources: b
                .is_multiple_of(2)
                .then(|| ("gpu".into(), 1.0))
                .into_iter()
                .collect(),
            status: if b.is_multiple_of(5) {
                Status::Init
            } else {
                Status::Running
            },
            nanny: a.is_multiple_of(2).then(|| Str::from(name.as_str())),
            pid: 1,
            server_id: Str::from(name),
            services: Value::Nil,
            versions: Value::Nil,
            metrics: Value::Nil,
            worker_now: None,
            is_native: false,
            extra: Map::new(),
            stimulus_id,
        };
        self.send(Event::AddWorker(Box::new(worker)));
    }

    fn submit(&mut self, a: u32, b: u32) {
        let Some(client) = self.client(a) else {
            return self.connect(a);
        };
        let mut dice = Dice(u64::from(a) << 32 | u64::from(b));
        let count = 1 + dice.roll(9);
        // A small pool of keys, so that graphs meet; dependencies have smaller numbers.
        let pool = 4 + dice.roll(20);
        let mut numbers: Vec<usize> = (0..count).map(|_| dice.roll(pool)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let key =
            |number: usize| Key::from(format!("{}-{number}", ["x", "y", "z"][number % 3]).as_str());
        let has_own_shape = dice.roll(3) == 0;
        let tasks: Vec<(Key, Vec<Key>)> = numbers
            .iter()
            .map(|&number| {
                let mut dependencies: Vec<usize> = Vec::new();
                for other in numbers.iter().copied().filter(|&other| other < number) {
                    // Usually a function of the two numbers, so that resubmitting agrees.
                    let is_dependency = if has_own_shape {
                        dice.roll(3) == 0
                    } else {
                        (number * 7 + other * 3) % 4 == 0
                    };
                    if is_dependency {
                        dependencies.push(other);
                    }
                }
                if dice.roll(8) == 0 && number > 0 {
                    let outside = dice.roll(number);
                    if !dependencies.contains(&outside) {
                        dependencies.push(outside);
                    }
                }
                (key(number), dependencies.into_iter().map(key).collect())
            })
            .collect();
        let requested: Vec<Key> = match dice.roll(3) {
            0 => tasks.iter().map(|(key, _)| key.clone()).collect(),
            1 => tasks
                .last()
                .map(|(key, _)| key.clone())
                .into_iter()
                .collect(),
            _ => tasks
                .iter()
                .step_by(2)
                .map(|(key, _)| key.clone())
                .collect(),
        };
        let stimulus_id = self.env.stimulus();
        let mut graph = graph(client, requested, &tasks, self.env.now, stimulus_id);
        if dice.roll(4) == 0 {
            graph.bundles = vec![Bytes::from_static(b"blob")];
            graph.specs = (0..tasks.len() as u32)
                .map(|index| RunSpec::Bundle { bundle: 0, index })
                .collect();
        }
        if dice.roll(5) == 0 {
            graph.flags.fill(TaskFlags(TaskFlags::DATA_PRODUCER));
        }
        if dice.roll(12) == 0 {
            graph.actors = Actors::All;
        }
        if dice.roll(3) == 0 {
            graph.order.reverse();
        }
        let mut global = Map::new();
        match dice.roll(10) {
            0 => global.push("retries", 1i64),
            1 => global.push(
                "workers",
                Value::Array(vec![Value::from("w1"), Value::from("w2")]),
            ),
            2 => {
                let mut resources = Map::new();
                resources.push("gpu", 1i64);
                global.push("resources", Value::Map(resources));
            }
            3 => {
                global.push("workers", "nowhere");
                global.push("allow_other_workers", true);
            }
            _ => {}
        }
        graph.global_annotations = Some(global.into());
        let submitted = graph.requested.iter().map(|key| (client, key.clone()));
        self.submitted.extend(submitted);
        self.send(Event::UpdateGraph(Box::new(graph)));
    }

    /// One key or some, by key or by what was found before.
    fn release(&mut self, a: u32, b: u32) {
        let (Some(id), Some(key)) = (self.client(a), self.any_wanted(a, b)) else {
            return;
        };
        let scheduler = &self.env.scheduler;
        let cs = scheduler.client(id).unwrap();
        let mut keys = vec![key];
        if b.is_multiple_of(2) {
            let others = cs.wants_what.iter().skip(b as usize / 2 % 3);
            keys.extend(others.map(|task| scheduler.task(task).unwrap().key.clone()));
        }
        for key in &keys {
            self.submitted.remove(&(id, key.clone()));
        }
        let client = cs.name.clone();
        let stimulus_id = self.env.stimulus();
        self.send(if b.is_multiple_of(3) {
            Event::ClientReleasesTasks {
                client,
                tasks: self.env.scheduler.refs(&keys),
                stimulus_id,
            }
        } else {
            Event::ClientReleasesKeys {
                client,
                keys,
                stimulus_id,
            }
        });
    }

    fn any_wanted(&self, a: u32, b: u32) -> Option<Key> {
        let client = self.env.scheduler.client(self.client(a)?)?;
        let wanted: Vec<_> = client.wants_what.iter().collect();
        let task = *wanted.get(b as usize % wanted.len().max(1))?;
        Some(self.env.scheduler.task(task)?.key.clone())
    }

    fn run_of(&self, key: &Key) -> (WorkerId, i64) {
        let ts = self.env.scheduler.find_task(key).expect("known");
        (ts.processing_on.expect("in processing"), ts.run_id)
    }

    fn finish(&mut self, key: &Key, nbytes: i64) {
        let (worker, run_id) = self.run_of(key);
        if self.env.runs.get(&(worker, key.clone())) == Some(&run_id) {
            self.report(worker, key, run_id, nbytes);
        }
    }

    fn report(&mut self, worker: WorkerId, key: &Key, run_id: i64, nbytes: i64) {
        let stimulus_id = self.env.stimulus();
        self.send(Event::TaskFinished {
            worker,
            key: key.clone(),
            run_id,
            nbytes,
            r#type: Bytes::from_static(b"type"),
            typename: Str::from("int"),
            metadata: Value::Nil,
            thread: Value::Nil,
            startstops: startstops(self.env.now, 0.1),
            stimulus_id,
        });
    }

    fn err(&mut self, key: &Key) {
        let (worker, run_id) = self.run_of(key);
        let stimulus_id = self.env.stimulus();
        self.send(Event::TaskErred {
            worker,
            key: key.clone(),
            run_id,
            exception: Value::from("oh"),
            traceback: Value::Nil,
            exception_text: Str::default(),
            traceback_text: Str::default(),
            thread: Value::Nil,
            startstops: Value::Nil,
            stimulus_id,
        });
    }

    /// A report about some earlier run, or about the present one from another worker.
    fn stale(&mut self, a: u32, b: u32) {
        let runs: Vec<_> = self
            .env
            .runs
            .iter()
            .map(|(run, &run_id)| (run.clone(), run_id))
            .collect();
        let Some(((worker, key), run_id)) = runs.get(a as usize % runs.len().max(1)).cloned()
        else {
            return;
        };
        match b % 3 {
            0 => self.report(worker, &key, run_id, 5),
            1 => self.report(worker, &key, run_id - 1, 5),
            _ => {
                let worker = self.workers().first().copied().unwrap_or(worker);
                self.report(worker, &key, run_id + 1000, 5);
            }
        }
    }

    fn answer_bundle(&mut self, b: u32) {
        let Some(&bundle) = self.asked.iter().nth(b as usize % self.asked.len().max(1)) else {
            return;
        };
        self.asked.remove(&bundle);
        if b.is_multiple_of(5) {
            self.send(Event::BundleFailed {
                bundle,
                exception: Value::from("helper"),
                traceback: Value::Nil,
                exception_text: Str::default(),
                traceback_text: Str::default(),
            });
        } else {
            let count = if b.is_multiple_of(7) { 1 } else { 12 };
            let specs = (0..count).map(|_| pickle("spec")).collect();
            self.send(Event::BundleExploded { bundle, specs });
        }
    }

    fn take_all_slices(&mut self) {
        while self.env.scheduler.has_pending_work() {
            self.send(Event::Continue);
        }
    }

    /// Lets everything that is on its way come to its end.
    fn settle(&mut self) {
        self.take_all_slices();
        for worker in self.workers() {
            let stimulus_id = self.env.stimulus();
            self.send(Event::WorkerStatusChange {
                worker,
                status: Status::Running,
                stimulus_id,
            });
        }
        while self.workers().len() < 2 {
            self.add_worker(1, 2);
        }
        loop {
            while let Some(&bundle) = self.asked.first() {
                self.asked.remove(&bundle);
                let specs = (0..12).map(|_| pickle("spec")).collect();
                self.send(Event::BundleExploded { bundle, specs });
            }
            let Some(key) = self.task_in(0, &[State::Processing]) else {
                break;
            };
            let (worker, run_id) = self.run_of(&key);
            self.report(worker, &key, run_id, 3);
            self.take_all_slices();
        }
        for (_, ts) in self.env.scheduler.tasks() {
            let is_restricted = !ts.host_restrictions().is_empty()
                || !ts.worker_restrictions().is_empty()
                || !ts.resource_restrictions().is_empty();
            let may_wait = match ts.state {
                State::NoWorker => is_restricted,
                State::Waiting => ts.waiting_on.iter().all(|dependency| {
                    self.env
                        .scheduler
                        .task(dependency)
                        .unwrap()
                        .state
                        .is_active()
                }),
                State::Released | State::Memory | State::Erred => true,
                State::Queued | State::Processing | State::Forgotten => false,
            };
            assert!(may_wait, "{:?} is {} when all is done", ts.key, ts.state);
            // Interest alone, without a graph, computes nothing: that is all an
            // internal client or a client of a key known before has.
            let is_submitted = ts
                .who_wants
                .iter()
                .any(|client| self.submitted.contains(&(client, ts.key.clone())));
            assert!(
                !is_submitted || ts.state != State::Released,
                "{:?} is wanted but released",
                ts.key
            );
        }
    }

    /// Everybody leaves.
    fn end(&mut self) {
        for name in CLIENTS {
            if let Some(client) = self.env.scheduler.client_id(name) {
                let stimulus_id = self.env.stimulus();
                self.send(Event::RemoveClient {
                    client,
                    stimulus_id,
                });
            }
        }
        self.take_all_slices();
        let wanted: Vec<(Key, Vec<_>)> = self
            .env
            .scheduler
            .tasks()
            .map(|(_, ts)| {
                let names = ts.who_wants.iter();
                let names =
                    names.map(|client| self.env.scheduler.client(client).unwrap().name.clone());
                (ts.key.clone(), names.collect())
            })
            .collect();
        for (key, clients) in wanted {
            for client in clients {
                let stimulus_id = self.env.stimulus();
                let keys = vec![key.clone()];
                self.send(Event::ClientReleasesKeys {
                    client,
                    keys,
                    stimulus_id,
                });
            }
        }
        self.take_all_slices();
    }
}

fn run(config: Config, actions: &[Action]) {
    let mut world = World::new(config);
    world.connect(0);
    world.add_worker(1, 1);
    for &action in actions {
        world.play(action);
    }
    world.settle();
    world.end();
    // Data that nobody ever wanted has no reason to go away by itself.
    let is_orphan = |key: &Key| world.scattered.contains(key);
    if world
        .env
        .scheduler
        .tasks()
        .all(|(_, ts)| is_orphan(&ts.key))
    {
        let stimulus_id = world.env.stimulus();
        world.send(Event::Restart { stimulus_id });
    }
    world.env.scheduler.validate_empty();
}

/// 400 cases for the 256 that other tests try, in proportion if `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.saturating_mul(25) / 16,
        failure_persistence: None,
        ..default
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn everything_fits_together(actions in actions(120)) {
        run(Config { no_workers_timeout: Some(6.0), ..Config::default() }, &actions);
    }

    #[test]
    fn without_queuing(actions in actions(120)) {
        run(Config { worker_saturation: f64::INFINITY, ..Config::default() }, &actions);
    }

    #[test]
    fn with_graphs_taken_in_by_slices(actions in actions(120)) {
        run(Config { graph_slice: 2, ..Config::default() }, &actions);
    }
}
