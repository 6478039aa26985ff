//! Random events: everything fits together after each, the shell is never asked
//! for nonsense, and in the end nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use oxidask_wire::{Key, Map, Str, Value};
use oxidask_worker::event::Insertion;
use oxidask_worker::{
    ComputeTaskEvent, Config, Error, Event, Instruction, Instructions, Priority, State, StimulusId,
    TaskState, WorkerState,
};
use proptest::prelude::*;

use crate::env::{ADDRESS, failure, finished, line, value};

const PEERS: [&str; 4] = ["tcp://me:2", "tcp://a:1", "tcp://b:1", "tcp://b:2"];
const KEYS: usize = 9;
const SIZES: [i64; 6] = [-1, 0, 1, 10, 100, 5000];

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

fn config() -> impl Strategy<Value = Config> {
    let limit = || prop::sample::select(vec![20.0, 500.0, f64::INFINITY]);
    let count = prop::sample::select(vec![0, 1, 2, 10]);
    (1..4usize, count, limit(), limit(), any::<u64>()).prop_map(
        |(nthreads, count, bytes, message, seed)| Config {
            nthreads,
            resources: vec![("R".into(), 2.0), ("S".into(), 1.0)],
            transfer_incoming_count_limit: count,
            transfer_incoming_bytes_throttle_threshold: 100,
            transfer_incoming_bytes_limit: bytes,
            transfer_message_bytes_limit: message,
            seed,
            ..Config::new(ADDRESS)
        },
    )
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

    fn one_in(&mut self, count: usize) -> bool {
        self.roll(count) == 0
    }

    fn some<T: Clone>(&mut self, items: &[T], most: usize) -> Vec<T> {
        let mut left = items.to_vec();
        let count = 1 + self.roll(most);
        let mut chosen = Vec::new();
        while chosen.len() < count && !left.is_empty() {
            chosen.push(left.swap_remove(self.roll(left.len())));
        }
        chosen
    }
}

/// The shell, the scheduler and the peers of one worker.
struct World {
    worker: WorkerState,
    dice: Dice,
    /// Disregards what the worker is doing; nothing is validated then.
    is_wild: bool,
    run_id: i64,
    /// Runs that the shell began.
    running: BTreeMap<Key, i64>,
    /// Those of them that have left their threads to others.
    seceded: BTreeSet<Key>,
    /// What a thread has gone on with by itself.
    begun: Option<Key>,
    gathering: BTreeMap<Arc<str>, (Vec<Key>, i64)>,
    busy: BTreeSet<Arc<str>>,
    /// Keys whose values the shell keeps.
    data: BTreeSet<Key>,
    /// Keys of values that came with the event at hand.
    offered: BTreeSet<Key>,
    /// The worker would be closed: nothing can be said about what follows.
    is_over: bool,
    history: Vec<(Event, Vec<String>)>,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the last events were");
            for (event, out) in self.history.iter().rev().take(20).rev() {
                println!("  {event:?}");
                println!("    -> {out:?}");
            }
            println!("and the last records");
            let records: Vec<_> = self.worker.log().collect();
            for record in records.iter().rev().take(40).rev() {
                println!("  {record:?}");
            }
        }
    }
}

fn key(number: usize) -> Key {
    let prefix = ["x", "y", "z"][number % 3];
    Key::from(format!("{prefix}-{number}").as_str())
}

/// A fixed function, so that graphs agree; dependencies have smaller numbers.
fn dependencies(number: usize) -> Vec<Key> {
    (0..number)
        .filter(|other| (number * 7 + other * 3).is_multiple_of(4))
        .map(key)
        .collect()
}

impl World {
    fn new(config: Config, is_wild: bool) -> Self {
        Self {
            worker: WorkerState::new(config),
            dice: Dice(0),
            is_wild,
            run_id: 0,
            running: BTreeMap::new(),
            seceded: BTreeSet::new(),
            begun: None,
            gathering: BTreeMap::new(),
            busy: BTreeSet::new(),
            data: BTreeSet::new(),
            offered: BTreeSet::new(),
            is_over: false,
            history: Vec::new(),
        }
    }

    fn send(&mut self, event: Event) {
        if self.is_over {
            return;
        }
        self.offered = match &event {
            Event::UpdateData { data } | Event::GatherDepSuccess { data, .. } => {
                data.iter().map(|(key, _)| key.clone()).collect()
            }
            Event::ExecuteSuccess { key, .. } => BTreeSet::from([key.clone()]),
            _ => BTreeSet::new(),
        };
        self.history.push((event.clone(), Vec::new()));
        let out = match handle(&mut self.worker, self.history.len(), event) {
            Ok(out) => out,
            // As in stock, which closes the worker where one part of a reply
            // gives up a task that another part has just brought.
            Err(Error::UnexpectedState { .. }) => {
                self.is_over = true;
                return;
            }
            Err(_) if self.is_wild => {
                self.is_over = true;
                return;
            }
            Err(error) => panic!("{error}"),
        };
        for instruction in &out.0 {
            self.carry_out(instruction);
        }
        let lines = out.0.iter().map(line).collect();
        if let Some((_, out)) = self.history.last_mut() {
            *out = lines;
        }
        if !self.is_wild {
            self.worker.validate();
            let kept = self.worker.tasks().filter(|(_, ts)| ts.has_data);
            let kept: BTreeSet<Key> = kept.map(|(_, ts)| ts.key.clone()).collect();
            assert_eq!(
                self.data, kept,
                "the shell keeps other values than the core"
            );
        }
    }

    /// The shell is never asked for what it cannot do.
    fn check(&self, instruction: &Instruction) {
        match instruction {
            Instruction::Execute(execute) => {
                let key = &execute.key;
                assert!(self.worker.is_running(), "a paused worker begins nothing");
                assert!(!self.running.contains_key(key), "{key:?} runs already");
                let ts = self.find(key).expect("a task to run is known");
                assert!(ts.run_spec.is_some());
                let mut inputs = self.worker.dependencies(ts);
                assert!(
                    inputs.all(|input| self.data.contains(&input.key)),
                    "{key:?} is to run without an input"
                );
            }
            Instruction::GatherDep(gather) => {
                let worker = &gather.worker;
                assert!(self.worker.is_running(), "a paused worker fetches nothing");
                assert!(!self.gathering.contains_key(worker), "{worker} is asked");
                assert!(!self.busy.contains(worker), "{worker} is busy");
                // The first with a size goes whatever its size.
                let limit = self.worker.config().transfer_message_bytes_limit;
                let last = self.find(gather.to_gather.last().expect("something is asked for"));
                let others = gather.total_nbytes - self.worker.nbytes_of(last.unwrap());
                assert!(
                    others == 0 || gather.total_nbytes as f64 <= limit,
                    "{} bytes are asked for",
                    gather.total_nbytes
                );
            }
            Instruction::StoreData { key } => {
                assert!(self.offered.contains(key), "no value of {key:?} came");
                assert!(!self.data.contains(key), "{key:?} is stored twice");
            }
            Instruction::ReleaseData { key } => {
                assert!(self.data.contains(key), "{key:?} is not stored");
            }
            Instruction::RetryBusyWorkerLater(_)
            | Instruction::SendMessageToScheduler(_)
            | Instruction::Transition { .. } => {}
        }
    }

    fn carry_out(&mut self, instruction: &Instruction) {
        if !self.is_wild {
            self.check(instruction);
        }
        match instruction {
            Instruction::Execute(execute) => {
                if self.begun.as_ref() == Some(&execute.key) {
                    self.begun = None;
                }
                let run_id = self.find(&execute.key).unwrap().run_id;
                self.running.insert(execute.key.clone(), run_id);
            }
            Instruction::GatherDep(gather) => {
                let asked = (gather.to_gather.clone(), gather.total_nbytes);
                self.gathering.insert(gather.worker.clone(), asked);
            }
            Instruction::RetryBusyWorkerLater(retry) => {
                self.busy.insert(retry.worker.clone());
            }
            Instruction::StoreData { key } => {
                self.data.insert(key.clone());
            }
            Instruction::ReleaseData { key } => {
                self.data.remove(key);
            }
            Instruction::SendMessageToScheduler(_) | Instruction::Transition { .. } => {}
        }
    }

    fn find(&self, key: &Key) -> Option<&TaskState> {
        self.worker.find_task(key)
    }

    fn state(&self, key: &Key) -> Option<State> {
        self.find(key).map(|ts| ts.state)
    }

    fn some_keys(&mut self, most: usize) -> Vec<Key> {
        let all: Vec<Key> = (0..KEYS).map(key).collect();
        self.dice.some(&all, most)
    }

    fn holders(&mut self) -> Vec<Str> {
        let peers = self.dice.some(&PEERS, 3);
        peers.into_iter().map(Str::from).collect()
    }

    fn size(&mut self) -> i64 {
        SIZES[self.dice.roll(SIZES.len())]
    }

    fn insertion(&mut self) -> Insertion {
        if self.dice.one_in(20) {
            Err(failure("disk full"))
        } else {
            value(self.size().max(0))
        }
    }

    fn has_dependent_in(&self, key: &Key, states: &[State]) -> bool {
        self.find(key).is_some_and(|ts| {
            ts.dependents
                .iter()
                .filter_map(|dependent| self.worker.task(dependent))
                .any(|dts| states.contains(&dts.state))
        })
    }

    fn play(&mut self, action: Action) {
        self.dice = Dice(u64::from(action.a) << 32 | u64::from(action.b));
        match action.kind % 35 {
            0..=8 => self.compute_task(action.a as usize % KEYS),
            9..=13 => self.execute_done(),
            14..=17 => self.gather_done(),
            18 | 19 => {
                let keys = self.some_keys(3);
                self.free_keys(keys);
            }
            20 | 21 => self.acquire_replicas(),
            22 => self.remove_replicas(),
            23 | 24 => self.refresh_who_has(),
            25 => {
                let worker = Str::from(PEERS[self.dice.roll(PEERS.len())]);
                self.send(Event::RemoveWorker { worker });
            }
            26 => {
                let key = key(self.dice.roll(KEYS));
                self.send(Event::StealRequest { key });
            }
            27 => {
                let key = key(self.dice.roll(KEYS));
                let has_dependents = self.find(&key).is_some_and(|ts| !ts.dependents.is_empty());
                if self.is_wild || !has_dependents {
                    self.send(Event::CancelCompute { key });
                }
            }
            28 => self.update_data(),
            29 => self.send(if self.worker.is_running() {
                Event::Pause
            } else {
                Event::Unpause
            }),
            30 => self.send(Event::FindMissing),
            31 => self.retry_busy_worker(),
            32 => {
                let keys: Vec<Key> = self.data.iter().cloned().collect();
                let keys = self.dice.some(&keys, 2);
                self.send(Event::DataLost { keys });
            }
            _ => {
                if let Some(key) = self.running.keys().next_back().cloned() {
                    let compute_duration = 0.5;
                    self.seceded.insert(key.clone());
                    self.send(Event::Secede {
                        key,
                        compute_duration,
                    });
                }
            }
        }
    }

    fn compute_task(&mut self, number: usize) {
        let key = key(number);
        if self.state(&key) == Some(State::Error) && !self.is_wild {
            // The scheduler frees what failed before it retries it.
            self.free_keys(vec![key.clone()]);
        }
        self.run_id += 1;
        let mut dependencies = dependencies(number);
        if self.is_wild && self.dice.one_in(6) {
            dependencies = self.some_keys(2);
            dependencies.retain(|other| *other != key);
        }
        let priority = [self.dice.roll(3) as f64, 0.0, self.dice.roll(KEYS) as f64];
        let mut resource_restrictions = Vec::new();
        if self.dice.one_in(4) {
            resource_restrictions.push(("R".into(), [0.5, 1.0][self.dice.roll(2)]));
            if self.dice.one_in(3) {
                resource_restrictions.push(("S".into(), 1.0));
            }
        }
        let event = ComputeTaskEvent {
            key,
            run_id: self.run_id,
            who_has: dependencies
                .iter()
                .map(|key| (key.clone(), self.holders()))
                .collect(),
            nbytes: dependencies
                .iter()
                .map(|key| (key.clone(), self.size()))
                .collect(),
            priority: Priority::from_scheduler(&priority).unwrap(),
            run_spec: Some(Value::from("spec")),
            resource_restrictions,
            actor: number == KEYS - 1,
            annotations: Map::new(),
            span_id: None,
        };
        self.send(Event::ComputeTask(Box::new(event)));
    }

    fn execute_done(&mut self) {
        let keys: Vec<Key> = self.running.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let key = keys[self.dice.roll(keys.len())].clone();
        let run_id = self.running.remove(&key).expect("it runs");
        if !self.seceded.remove(&key) && self.dice.one_in(2) {
            self.go_on();
        }
        self.end_run(key, run_id);
        assert!(self.is_over || self.begun.is_none(), "what has begun runs");
    }

    /// A thread goes on with one of the next tasks.
    fn go_on(&mut self) {
        let ahead: Vec<Key> = self.worker.ahead(3).map(|ts| ts.key.clone()).collect();
        if !ahead.is_empty() {
            let key = ahead[self.dice.roll(ahead.len())].clone();
            self.begun = Some(key.clone());
            self.send(Event::Begun { key });
        }
    }

    fn end_run(&mut self, key: Key, run_id: i64) {
        if self.dice.one_in(10) {
            return self.send(Event::Reschedule { key });
        }
        if self.dice.one_in(6) {
            return self.send(Event::ExecuteFailure {
                key,
                run_id,
                failure: failure("boom"),
                startstops: Vec::new(),
                thread: Some(1),
            });
        }
        let mut event = finished(&key.to_string(), run_id, self.size().max(0));
        if let Event::ExecuteSuccess { value, .. } = &mut event
            && self.dice.one_in(20)
        {
            *value = Err(failure("disk full"));
        }
        self.send(event);
    }

    fn gather_done(&mut self) {
        let workers: Vec<Arc<str>> = self.gathering.keys().cloned().collect();
        if workers.is_empty() {
            return;
        }
        let worker = workers[self.dice.roll(workers.len())].clone();
        let (mut keys, total_nbytes) = self.gathering.remove(&worker).expect("it is asked");
        let outcome = self.dice.roll(12);
        if outcome == 0 {
            return self.send(Event::GatherDepNetworkFailure {
                worker,
                total_nbytes,
            });
        }
        if outcome == 1 {
            return self.send(Event::GatherDepFailure {
                worker,
                total_nbytes,
                failure: failure("cannot unpickle"),
            });
        }
        if outcome < 4 {
            return self.send(Event::GatherDepBusy {
                worker,
                total_nbytes,
            });
        }
        if outcome < 6 {
            keys.retain(|_| self.dice.one_in(2));
        }
        let data = keys
            .into_iter()
            .map(|key| (key, self.insertion()))
            .collect();
        self.send(Event::GatherDepSuccess {
            worker,
            total_nbytes,
            data,
            transfer: None,
        });
    }

    fn free_keys(&mut self, mut keys: Vec<Key>) {
        if !self.is_wild {
            // What depends on a key that goes has gone before.
            for number in 0..KEYS {
                let dependent = key(number);
                let needs = dependencies(number);
                if !keys.contains(&dependent) && needs.iter().any(|key| keys.contains(key)) {
                    keys.push(dependent);
                }
            }
        }
        self.send(Event::FreeKeys { keys });
    }

    fn acquire_replicas(&mut self) {
        let mut keys = self.some_keys(3);
        // Actors are never replicated.
        keys.retain(|other| *other != key(KEYS - 1));
        let who_has = keys
            .iter()
            .map(|key| (key.clone(), self.holders()))
            .collect();
        let nbytes = keys.into_iter().map(|key| (key, self.size())).collect();
        self.send(Event::AcquireReplicas { who_has, nbytes });
    }

    fn remove_replicas(&mut self) {
        let mut keys = self.some_keys(3);
        if !self.is_wild {
            // The scheduler knows who needs them.
            let needs = [
                State::Waiting,
                State::Ready,
                State::Constrained,
                State::Executing,
                State::LongRunning,
                State::Resumed,
            ];
            keys.retain(|key| !self.has_dependent_in(key, &needs));
        }
        self.send(Event::RemoveReplicas { keys });
    }

    fn refresh_who_has(&mut self) {
        let keys = self.some_keys(3);
        self.refresh(keys);
    }

    fn refresh(&mut self, keys: Vec<Key>) {
        let who_has = keys.into_iter().map(|key| {
            let mut holders = self.holders();
            if self.dice.one_in(4) {
                holders.clear();
            }
            if self.dice.one_in(10) {
                holders.push(Str::from(ADDRESS));
            }
            (key, holders)
        });
        let who_has = who_has.collect();
        self.send(Event::RefreshWhoHas { who_has });
    }

    fn update_data(&mut self) {
        let mut keys = self.some_keys(2);
        if !self.is_wild {
            // Neither stock nor we can cope with scattering what is being computed.
            keys.retain(|key| {
                matches!(
                    self.state(key),
                    None | Some(State::Released | State::Memory)
                )
            });
        }
        let data = keys
            .into_iter()
            .map(|key| (key, self.insertion()))
            .collect();
        self.send(Event::UpdateData { data });
    }

    fn retry_busy_worker(&mut self) {
        if let Some(worker) = self.busy.pop_first() {
            self.send(Event::RetryBusyWorker { worker });
        }
    }

    /// Lets everything come to its end, then frees it.
    fn settle(&mut self) {
        self.send(Event::Unpause);
        for round in 0.. {
            assert!(round < 10_000, "it does not come to rest");
            self.dice = Dice(round);
            if self.is_over {
                return;
            }
            let missing: Vec<Key> = self
                .worker
                .tasks()
                .filter(|(_, ts)| ts.state == State::Missing)
                .map(|(_, ts)| ts.key.clone())
                .collect();
            if !self.running.is_empty() {
                self.execute_done();
            } else if !self.gathering.is_empty() {
                self.gather_done();
            } else if !self.busy.is_empty() {
                self.retry_busy_worker();
            } else if !missing.is_empty() {
                self.refresh(missing);
            } else {
                break;
            }
        }
        // Whoever still waits does so for what failed or was given back.
        for (_, ts) in self.worker.tasks() {
            let at_rest = match ts.state {
                State::Released | State::Memory | State::Error => true,
                State::Waiting => ts.waiting_for_data.iter().all(|dependency| {
                    let dts = self.worker.task(dependency).unwrap();
                    matches!(dts.state, State::Released | State::Error | State::Waiting)
                }),
                _ => false,
            };
            assert!(at_rest, "{:?} is {} when all is done", ts.key, ts.state);
        }
        self.send(Event::FreeKeys {
            keys: (0..KEYS).map(key).collect(),
        });
        if !self.is_over {
            self.worker.validate_empty();
            assert_eq!(self.data, BTreeSet::new());
        }
    }

    /// The same events lead to the same instructions.
    fn replay(&self) {
        let mut worker = WorkerState::new(self.worker.config().clone());
        for (at, (event, lines)) in self.history.iter().enumerate() {
            let Ok(out) = handle(&mut worker, at + 1, event.clone()) else {
                return;
            };
            assert_eq!(&out.0.iter().map(line).collect::<Vec<_>>(), lines);
        }
    }
}

fn handle(worker: &mut WorkerState, number: usize, event: Event) -> Result<Instructions, Error> {
    let mut out = Instructions::default();
    let stimulus_id = StimulusId::from(format!("s{number}"));
    worker.handle_stimulus(number as f64, &stimulus_id, event, &mut out)?;
    Ok(out)
}

fn cases() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn everything_fits_together(config in config(), actions in actions(150)) {
        let mut world = World::new(config, false);
        for action in actions {
            world.play(action);
        }
        world.settle();
        world.replay();
    }

    /// Whatever a scheduler sends, nothing worse comes of it than an error.
    #[test]
    fn nonsense_does_no_harm(config in config(), actions in actions(150)) {
        let mut world = World::new(config, true);
        for action in actions {
            world.play(action);
        }
        world.replay();
    }
}
