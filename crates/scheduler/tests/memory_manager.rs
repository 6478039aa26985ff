//! The active memory manager, and what it does for retiring workers.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets anything else has failed"
)]

mod env;

use env::{Env, list};
use oxidask_scheduler::{Event, Instruction, Level, State, Status, ToWorker, WorkerId};
use oxidask_wire::{Key, Value, map};
use proptest::prelude::*;

const A: &str = "tcp://a:1";
const B: &str = "tcp://b:1";
const C: &str = "tcp://c:1";

/// Puts data onto workers.
fn scatter(env: &mut Env, key: &str, nbytes: i64, workers: &[&str]) {
    env.event(Event::UpdateData {
        client: Some("client".into()),
        who_has: vec![(
            key.into(),
            workers.iter().map(|address| (*address).into()).collect(),
        )],
        nbytes: vec![(key.into(), nbytes)],
        stimulus_id: "scatter".into(),
    });
}

fn add_keys(env: &mut Env, worker: WorkerId, keys: &[&str]) {
    env.event(Event::AddKeys {
        worker,
        keys: keys.iter().map(|key| Key::from(*key)).collect(),
        stimulus_id: "add-keys".into(),
    });
}

fn amm(env: &mut Env, method: &str) -> Result<Value, String> {
    env.call("amm_handler", map! { "method" => method })
}

/// Requests of the memory manager since the last time: `address: what keys`.
fn requests(env: &mut Env) -> Vec<String> {
    let messages = env.take_to_workers();
    let keys = |keys: Vec<&Key>| {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| key.python_str().to_string())
            .collect();
        keys.join(" ")
    };
    let describe = |(address, message): (std::sync::Arc<str>, ToWorker)| match message {
        ToWorker::AcquireReplicas { who_has, .. } => {
            let keys = keys(who_has.iter().map(|(key, _)| key).collect());
            Some(format!("{address}: acquire {keys}"))
        }
        ToWorker::RemoveReplicas { keys: dropped, .. } => {
            let keys = keys(dropped.iter().collect());
            Some(format!("{address}: drop {keys}"))
        }
        _ => None,
    };
    messages.into_iter().filter_map(describe).collect()
}

fn env_with_workers(addresses: &[&str]) -> (Env, Vec<WorkerId>) {
    let mut env = Env::new();
    env.add_client("client");
    let workers = addresses.iter().map(|address| env.add_worker(address));
    let workers = workers.collect();
    (env, workers)
}

/// What a worker's process takes, as its heartbeat says.
fn set_memory(env: &mut Env, worker: WorkerId, nbytes: i64) {
    env.event(Event::Heartbeat {
        worker,
        worker_now: None,
        metrics: map! {
            "memory" => nbytes,
            "spilled_bytes" => map! { "memory" => 0, "disk" => 0 },
        }
        .into(),
        executing: Vec::new(),
        extensions: Value::Nil,
    });
}

#[test]
fn surplus_replicas_go_where_memory_is_short() {
    let (mut env, workers) = env_with_workers(&[A, B, C]);
    scatter(&mut env, "x", 100, &[A, B, C]);
    for worker in workers {
        set_memory(&mut env, worker, 1_000_000);
    }
    for (address, nbytes) in [(A, 1000), (B, 3000), (C, 2000)] {
        scatter(&mut env, &format!("own-{address}"), nbytes, &[address]);
    }
    env.advance(1.9);
    assert!(requests(&mut env).is_empty(), "a run is not due");
    env.advance(0.2);
    assert_eq!(
        requests(&mut env),
        [format!("{B}: drop x"), format!("{C}: drop x")]
    );
    let x = env.scheduler.find_task(&"x".into()).unwrap();
    assert_eq!(x.who_has.len(), 1);
    env.advance(10.0);
    assert!(requests(&mut env).is_empty());
}

#[test]
fn the_manager_is_started_and_stopped() {
    let (mut env, _) = env_with_workers(&[A, B]);
    assert_eq!(amm(&mut env, "running"), Ok(true.into()));
    assert_eq!(amm(&mut env, "start"), Ok(Value::Nil));
    assert_eq!(amm(&mut env, "stop"), Ok(Value::Nil));
    assert_eq!(amm(&mut env, "running"), Ok(false.into()));
    scatter(&mut env, "x", 100, &[A, B]);
    env.advance(10.0);
    assert!(requests(&mut env).is_empty());
    assert_eq!(amm(&mut env, "run_once"), Ok(Value::Nil));
    assert_eq!(requests(&mut env).len(), 1);
    scatter(&mut env, "y", 100, &[A, B]);
    assert_eq!(amm(&mut env, "start"), Ok(Value::Nil));
    assert!(requests(&mut env).is_empty());
    env.advance(2.0);
    assert_eq!(requests(&mut env).len(), 1);
    assert_eq!(amm(&mut env, "explode"), Err("AssertionError()".into()));
    assert_eq!(amm(&mut env, "stop"), Ok(Value::Nil));
}

#[test]
fn replicas_that_waiters_use_are_kept() {
    let mut env = Env::new();
    let client = env.add_client("client");
    let a = env.add_worker(A);
    let b = env.add_worker(B);
    let c = env.add_worker(C);
    env.submit(client, &[("x", &[])], &["x"]);
    env.finish("x");
    for worker in [a, b, c] {
        add_keys(&mut env, worker, &["x"]);
    }
    env.submit(client, &[("y", &["x"]), ("z", &["x"])], &["y", "z"]);
    let places = [
        env.processing_on("y").unwrap(),
        env.processing_on("z").unwrap(),
    ];
    assert_ne!(places[0], places[1]);
    env.take();
    env.advance(2.5);
    // Two are in use; the third one is surplus.
    assert_eq!(requests(&mut env).len(), 1);
    let x = env.scheduler.find_task(&"x".into()).unwrap();
    assert!(places.iter().all(|place| x.who_has.contains(*place)));
    env.finish("y");
    env.take();
    env.advance(2.0);
    assert_eq!(requests(&mut env).len(), 1);
    let x = env.scheduler.find_task(&"x".into()).unwrap();
    assert_eq!(x.who_has.iter().collect::<Vec<_>>(), [places[1]]);
}

#[test]
fn a_replica_is_not_dropped_for_a_retiring_one_in_use() {
    let mut env = Env::new();
    let client = env.add_client("client");
    let a = env.add_worker(A);
    env.submit(client, &[("x", &[])], &["x"]);
    env.finish("x");
    env.submit(client, &[("y", &["x"])], &["x", "y"]);
    assert_eq!(env.processing_on("y"), Some(a));
    let b = env.add_worker(B);
    env.take();
    let request = env.request("retire_workers", map! { "workers" => list(&[A]) });
    assert_eq!(requests(&mut env), [format!("{B}: acquire x")]);
    add_keys(&mut env, b, &["x"]);
    // Before the retirement is over, the manager runs again: `y` uses the replica on A.
    amm(&mut env, "run_once").unwrap();
    assert!(requests(&mut env).is_empty());
    env.advance(0.1);
    assert!(env.outcome(request).is_some());
    assert_eq!(env.state("x"), Some(State::Memory));
}

#[test]
fn actors_stay_and_keep_their_worker() {
    let (mut env, workers) = env_with_workers(&[A, B]);
    scatter(&mut env, "x", 100, &[A, B]);
    env.set_status(workers[0], Status::Paused);
    env.set_status(workers[1], Status::Paused);
    amm(&mut env, "run_once").unwrap();
    assert_eq!(requests(&mut env).len(), 1, "paused workers drop, too");
    amm(&mut env, "run_once").unwrap();
    assert!(requests(&mut env).is_empty(), "never the last one");
}

#[test]
fn a_large_worker_is_emptied_by_parts() {
    let (mut env, workers) = env_with_workers(&[A, B, C]);
    let count = 5000;
    let keys: Vec<String> = (0..count).map(|number| format!("x-{number}")).collect();
    env.event(Event::UpdateData {
        client: Some("client".into()),
        who_has: keys
            .iter()
            .map(|key| (Key::from(key.as_str()), vec![A.into()]))
            .collect(),
        nbytes: keys
            .iter()
            .map(|key| (Key::from(key.as_str()), 1))
            .collect(),
        stimulus_id: "scatter".into(),
    });
    env.take();
    let request = env.request("retire_workers", map! { "workers" => list(&[A]) });
    let mut asked = Vec::new();
    let mut asks = |env: &mut Env| {
        let mut count = 0;
        for (address, message) in env.take_to_workers() {
            if let ToWorker::AcquireReplicas { who_has, .. } = message {
                count += who_has.len();
                asked.push((address, who_has));
            }
        }
        count
    };
    let first = asks(&mut env);
    assert!(0 < first && first < count, "{first} of {count} at once");
    env.advance(0.1);
    assert_eq!(first + asks(&mut env), count, "each key once");
    let of_b = asked.iter().filter(|(address, _)| **address == *B);
    let of_b: usize = of_b.map(|(_, who_has)| who_has.len()).sum();
    assert_eq!(of_b, count / 2, "both get the same");
    for (address, who_has) in asked {
        let worker = env.scheduler.worker_id(&address).unwrap();
        env.event(Event::AddKeys {
            worker,
            keys: who_has.into_iter().map(|(key, _)| key).collect(),
            stimulus_id: "add-keys".into(),
        });
    }
    env.advance(1.0);
    assert!(env.outcome(request).is_some());
    assert!(env.scheduler.worker(workers[0]).is_none());
    assert_eq!(env.scheduler.n_tasks(), count);
}

#[test]
fn replicas_on_workers_that_go_together_are_not_safe() {
    let (mut env, workers) = env_with_workers(&[A, B]);
    scatter(&mut env, "z", 100, &[A, B]);
    env.take();
    // Both at once: nobody is left to take it.
    let request = env.request("retire_workers", map! { "workers" => list(&[A, B]) });
    env.advance(3.0);
    let retired = env.outcome(request).unwrap().unwrap();
    assert!(retired.as_map().unwrap().len() < 2, "{retired:?}");
    assert_eq!(env.state("z"), Some(State::Memory));
    drop(workers);
}

/// Seed 5413 of the simulator: the worker was left closing, and its tasks with it.
#[test]
fn a_worker_that_cannot_retire_twice_runs_on() {
    let (mut env, _) = env_with_workers(&[A]);
    scatter(&mut env, "x", 100, &[A]);
    env.take();
    for _ in 0..2 {
        env.request("retire_workers", map! { "workers" => list(&[A]) });
    }
    env.advance(3.0);
    let status = env.take_to_workers().into_iter().rev();
    let last = { status }.find_map(|(_, message)| match message {
        ToWorker::WorkerStatusChange { status, .. } => Some(status),
        _ => None,
    });
    assert_eq!(last, Some(Status::Running));
}

/// A reduction on a cluster of which half retires.
struct World {
    env: Env,
    /// Keys on their way: who fetches what.
    fetching: Vec<(WorkerId, Key)>,
    seed: u64,
}

impl World {
    fn roll(&mut self, sides: usize) -> usize {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as usize % sides.max(1)
    }

    /// Takes in what workers are asked; nothing computed may ever get lost.
    fn listen(&mut self) {
        for instruction in self.env.take() {
            match instruction {
                Instruction::ToWorker {
                    worker,
                    message: ToWorker::AcquireReplicas { who_has, .. },
                } => {
                    let keys = who_has.into_iter().map(|(key, _)| (worker, key));
                    self.fetching.extend(keys);
                }
                Instruction::Log {
                    level: Level::Warning | Level::Error,
                    text,
                } => assert!(!text.contains("caused the cluster to lose"), "{text}"),
                _ => {}
            }
        }
    }

    fn step(&mut self) {
        match self.roll(6) {
            0 | 1 => {
                let processing: Vec<Key> = self
                    .env
                    .scheduler
                    .tasks()
                    .filter(|(_, ts)| ts.state == State::Processing)
                    .map(|(_, ts)| ts.key.clone())
                    .collect();
                if !processing.is_empty() {
                    let at = self.roll(processing.len());
                    let key = processing[at].python_str().to_string();
                    self.env.finish(&key);
                }
            }
            2..=4 => {
                if !self.fetching.is_empty() {
                    let at = self.roll(self.fetching.len());
                    let (worker, key) = self.fetching.swap_remove(at);
                    let has_come = self.roll(8) > 0;
                    let holders = self.env.scheduler.find_task(&key);
                    let can_come = holders.is_some_and(|ts| !ts.who_has.is_empty());
                    if has_come && can_come && self.env.scheduler.worker(worker).is_some() {
                        self.env.event(Event::AddKeys {
                            worker,
                            keys: vec![key],
                            stimulus_id: "add-keys".into(),
                        });
                    }
                }
            }
            _ => {
                let seconds = [0.005, 0.05, 0.7][self.roll(3)];
                self.env.advance(seconds);
            }
        }
        self.listen();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn half_of_the_workers_retire_in_the_middle_of_a_reduction(
        seed in any::<u64>(),
        before in 0..60usize,
        at_once in any::<bool>(),
    ) {
        let mut env = Env::new();
        let client = env.add_client("client");
        let addresses: Vec<String> = (0..8).map(|number| format!("tcp://w{number}:1")).collect();
        for address in &addresses {
            env.add_worker(address);
        }
        let mut world = World { env, fetching: Vec::new(), seed };
        let leaves = 16;
        let mut tasks: Vec<(String, Vec<String>)> =
            (0..leaves).map(|number| (format!("leaf-{number}"), Vec::new())).collect();
        let mut layer: Vec<String> = tasks.iter().map(|(key, _)| key.clone()).collect();
        let mut depth = 0;
        while layer.len() > 1 {
            depth += 1;
            let pairs = layer.chunks(2).enumerate();
            let sums: Vec<_> =
                pairs.map(|(at, pair)| (format!("sum{depth}-{at}"), pair.to_vec())).collect();
            layer = sums.iter().map(|(key, _)| key.clone()).collect();
            tasks.extend(sums);
        }
        let root = layer[0].clone();
        let names: Vec<Vec<&str>> =
            tasks.iter().map(|(_, needs)| needs.iter().map(String::as_str).collect()).collect();
        let graph: Vec<(&str, &[&str])> = tasks
            .iter()
            .zip(&names)
            .map(|((key, _), needs)| (key.as_str(), needs.as_slice()))
            .collect();
        world.env.submit(client, &graph, &[&root]);
        world.listen();
        for _ in 0..before {
            world.step();
        }
        let mut retiring: Vec<&str> = addresses.iter().map(String::as_str).collect();
        for at in (1..retiring.len()).rev() {
            let other = world.roll(at + 1);
            retiring.swap(at, other);
        }
        retiring.truncate(4);
        let parts: Vec<&[&str]> = if at_once { vec![&retiring] } else { retiring.chunks(1).collect() };
        let mut requests = Vec::new();
        for part in parts {
            requests.push(world.env.request("retire_workers", map! { "workers" => list(part) }));
            world.listen();
            for _ in 0..3 {
                world.step();
            }
        }
        let mut steps = 0;
        while world.env.state(&root) != Some(State::Memory)
            || requests.iter().any(|request| world.env.outcome(*request).is_none())
        {
            world.step();
            steps += 1;
            prop_assert!(steps < 20_000, "it never ends");
        }
        let retired: usize = requests
            .iter()
            .map(|request| match world.env.outcome(*request).unwrap().unwrap() {
                Value::Map(retired) => retired.len(),
                other => panic!("{other:?}"),
            })
            .sum();
        prop_assert_eq!(retired, 4);
        prop_assert_eq!(world.env.scheduler.n_workers(), 4);
    }
}
