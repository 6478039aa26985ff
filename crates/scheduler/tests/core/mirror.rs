//! What a process that mirrors the state is told.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use oxidask_scheduler::{Config, Scheduler, State};
use oxidask_wire::message::Decoder;
use oxidask_wire::msgpack::Reader;
use oxidask_wire::{Value, map};

use crate::env::Env;

const SCRIPT: &[&str] = &[
    "worker alice",
    "worker bob",
    "client c",
    "client d",
    "submit c z: x; y <- x; z <- x y",
    "submit d y w: y <- x; x; w <- y",
    "done x nbytes=10",
    "done y nbytes=20",
    "failed z",
    "done w nbytes=7",
    "release d y w",
    "submit c u v: u; v",
    "done u nbytes=5",
    "worker carol",
    "submit c t: t; s <- t",
    "done t",
    "remove alice",
    "disconnect d",
    "remove bob",
    "release c z u v t",
    "submit c x: x",
    "done x nbytes=1",
];

/// `done` and `failed` are said by whoever runs the task, if anybody does.
fn play(env: &mut Env, command: &str) {
    let (word, rest) = command.split_once(' ').unwrap();
    if !matches!(word, "done" | "failed") {
        env.command(command);
        return;
    }
    let key = rest.split(' ').next().unwrap();
    let runs = env.scheduler.tasks().find_map(|(_, ts)| {
        let worker = ts.processing_on?;
        (ts.key.python_str() == key).then_some(worker)
    });
    let Some(worker) = runs.and_then(|worker| env.scheduler.worker(worker)) else {
        return;
    };
    let name = worker.host.to_string();
    let word = if word == "done" { "finish" } else { "err" };
    env.command(&format!("{word} {name} {rest}"));
}

/// What a mirror knows of a task.
#[derive(Clone, Debug, Default, PartialEq)]
struct Task {
    key: String,
    state: String,
    nbytes: i64,
    processing_on: Option<i64>,
    who_has: BTreeSet<i64>,
    who_wants: BTreeSet<i64>,
    dependencies: BTreeSet<i64>,
}

/// The least that applies entries.
#[derive(Debug, Default)]
struct Mirror {
    tasks: BTreeMap<i64, Task>,
    workers: BTreeMap<i64, String>,
    clients: BTreeMap<i64, String>,
    /// Key, start and finish, and the task's state when it was told.
    transitions: Vec<(String, String, String, String)>,
    hooks: Vec<(String, Value)>,
    lost: i64,
}

fn integer(value: &Value) -> i64 {
    value.as_i64().unwrap()
}

fn integers(value: &Value) -> BTreeSet<i64> {
    value.as_array().unwrap().iter().map(integer).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

impl Mirror {
    fn apply(&mut self, log: Vec<u8>) {
        let log = Bytes::from(log);
        let mut reader = Reader::new(&log, "log");
        while reader.remaining() > 0 {
            let frames = [log.clone()];
            let entry = Decoder::new(&frames).value(&mut reader).unwrap();
            self.entry(entry.as_array().unwrap());
        }
    }

    fn entry(&mut self, entry: &[Value]) {
        match integer(&entry[0]) {
            0 | 2 | 3 | 12 | 13 | 14 => {}
            1 => {
                self.workers.insert(integer(&entry[1]), text(&entry[2]));
            }
            4 => {
                self.workers.remove(&integer(&entry[1])).unwrap();
            }
            5 => {
                self.clients.insert(integer(&entry[1]), text(&entry[2]));
            }
            6 => {
                self.clients.remove(&integer(&entry[1])).unwrap();
            }
            7 => {
                let key = text(&entry[2]);
                let task = Task {
                    key,
                    ..Task::default()
                };
                let before = self.tasks.insert(integer(&entry[1]), task);
                assert_eq!(before, None, "the slot's last task was not told to be gone");
            }
            8 => self.task(&entry[1]).dependencies = integers(&entry[2]),
            9 => {
                self.tasks.remove(&integer(&entry[1])).unwrap();
            }
            10 => {
                let task = self.task(&entry[1]);
                task.state = text(&entry[2]);
                task.nbytes = integer(&entry[4]);
                task.processing_on = entry[10].as_i64();
                task.who_has = integers(&entry[11]);
                task.who_wants = integers(&entry[12]);
            }
            11 => {
                let slot = integer(&entry[1]);
                let state = self.tasks.get(&slot).map(|task| task.state.clone());
                self.transitions.push((
                    text(&entry[2]),
                    text(&entry[3]),
                    text(&entry[4]),
                    state.unwrap_or_else(|| "forgotten".to_owned()),
                ));
            }
            20 => self.hooks.push((text(&entry[1]), entry[2].clone())),
            21 => self.lost += integer(&entry[1]),
            code => panic!("unknown entry {code}"),
        }
    }

    fn task(&mut self, slot: &Value) -> &mut Task {
        self.tasks.get_mut(&integer(slot)).unwrap()
    }

    /// Everything that was told is true, and nothing is missing.
    fn check(&self, scheduler: &Scheduler) {
        let told: BTreeMap<i64, Task> = scheduler
            .tasks()
            .map(|(id, ts)| {
                let task = Task {
                    key: ts.key.python_str(),
                    state: ts.state.name().to_owned(),
                    nbytes: ts.nbytes,
                    processing_on: ts.processing_on.map(|worker| i64::from(worker.0)),
                    who_has: ts
                        .who_has
                        .iter()
                        .map(|worker| i64::from(worker.0))
                        .collect(),
                    who_wants: ts
                        .who_wants
                        .iter()
                        .map(|client| i64::from(client.0))
                        .collect(),
                    dependencies: ts
                        .dependencies
                        .iter()
                        .map(|task| i64::from(task.0))
                        .collect(),
                };
                (i64::from(id.0), task)
            })
            .collect();
        assert_eq!(self.tasks, told);
        let workers = scheduler
            .workers()
            .map(|(id, ws)| (i64::from(id.0), ws.address.to_string()));
        assert_eq!(self.workers, workers.collect());
        let clients = scheduler
            .clients()
            .filter(|(_, client)| client.connected)
            .map(|(id, client)| (i64::from(id.0), client.name.to_string()));
        assert_eq!(self.clients, clients.collect());
    }
}

#[test]
fn a_mirror_that_follows_knows_everything_at_every_moment() {
    let mut env = Env::new(Config::default());
    let mut mirror = Mirror::default();
    env.scheduler.mirror_start();
    env.scheduler.mirror_follow(true);
    let mut counted = env.scheduler.transition_counter();
    for command in SCRIPT {
        play(&mut env, command);
        env.scheduler.mirror_changes();
        mirror.apply(env.scheduler.mirror_take());
        mirror.check(&env.scheduler);
        for (key, _, finish, state) in &mirror.transitions {
            assert_eq!(
                state, finish,
                "{command}: the state of {key} at its transition"
            );
        }
        let transitions = env.scheduler.transition_counter() - counted;
        // One through `released` counts twice and is told as its two legs.
        assert!(mirror.transitions.len() as u64 <= transitions, "{command}");
        counted = env.scheduler.transition_counter();
        mirror.transitions.clear();
    }
}

#[test]
fn a_mirror_that_asks_is_told_what_changed() {
    for interval in [1, 2, 3, 5, SCRIPT.len()] {
        let mut env = Env::new(Config::default());
        let mut mirror = Mirror::default();
        env.command("worker early");
        env.command("client e");
        env.command("submit e before: before");
        env.scheduler.mirror_start();
        for (at, command) in SCRIPT.iter().enumerate() {
            play(&mut env, command);
            if (at + 1) % interval == 0 {
                env.scheduler.mirror_changes();
                mirror.apply(env.scheduler.mirror_take());
                mirror.check(&env.scheduler);
            }
        }
        assert!(mirror.transitions.is_empty());
    }
}

#[test]
fn what_did_not_change_is_not_told_again() {
    let mut env = Env::new(Config::default());
    for command in SCRIPT {
        play(&mut env, command);
    }
    env.scheduler.mirror_start();
    env.scheduler.mirror_changes();
    assert!(env.scheduler.mirror_take().len() > 100);
    env.scheduler.mirror_changes();
    // Only the end of an event.
    assert_eq!(env.scheduler.mirror_take(), [0x91, 0]);
}

/// One task more must not tell all the others' neighbour again and again.
#[test]
fn a_task_with_many_dependents_costs_no_more_than_any_other() {
    let log = |count: usize| {
        let mut env = Env::new(Config::default());
        env.command("worker alice");
        env.command("client c");
        let dependents: Vec<String> = (0..count).map(|at| format!("d{at} <- root")).collect();
        let wanted: Vec<String> = (0..count).map(|at| format!("d{at}")).collect();
        env.command(&format!(
            "submit c {}: root; {}",
            wanted.join(" "),
            dependents.join("; ")
        ));
        env.scheduler.mirror_start();
        env.scheduler.mirror_follow(true);
        env.scheduler.mirror_changes();
        env.scheduler.mirror_take();
        env.command("finish alice root nbytes=1");
        env.scheduler.mirror_take().len() / count
    };
    let (few, many) = (log(10), log(1000));
    assert!(many <= few, "{few} bytes a dependent became {many}");
}

#[test]
fn hooks_keep_their_place_among_transitions() {
    let mut env = Env::new(Config::default());
    let mut mirror = Mirror::default();
    env.command("worker alice");
    env.command("client c");
    env.scheduler.mirror_start();
    env.scheduler.mirror_follow(true);
    env.scheduler.mirror_changes();
    mirror.apply(env.scheduler.mirror_take());
    env.scheduler.mirror_graph(map! { "client" => "c" }.into());
    env.command("submit c x: x");
    let codes = codes(env.scheduler.mirror_take());
    let first = |code: i64| codes.iter().position(|other| *other == code).unwrap();
    assert!(
        first(7) < first(20),
        "the graph's tasks are there: {codes:?}"
    );
    assert!(first(20) < first(11), "none has moved on yet: {codes:?}");
}

/// What each entry is about.
fn codes(log: Vec<u8>) -> Vec<i64> {
    let log = Bytes::from(log);
    let mut reader = Reader::new(&log, "log");
    let mut codes = Vec::new();
    while reader.remaining() > 0 {
        let frames = [log.clone()];
        let entry = Decoder::new(&frames).value(&mut reader).unwrap();
        codes.push(integer(&entry.as_array().unwrap()[0]));
    }
    codes
}

#[test]
fn tasks_that_are_gone_are_told_before_those_that_took_their_place() {
    let mut env = Env::new(Config::default());
    for command in ["worker alice", "client c", "submit c x-1 x-2: x-1; x-2"] {
        env.command(command);
    }
    env.scheduler.mirror_start();
    env.scheduler.mirror_changes();
    env.scheduler.mirror_take();
    env.command("release c x-1 x-2");
    env.command("submit c x-3 x-4: x-3; x-4");
    env.scheduler.mirror_changes();
    let codes = codes(env.scheduler.mirror_take());
    let births_and_ends: Vec<_> = codes
        .into_iter()
        .filter(|code| [7, 9].contains(code))
        .collect();
    assert_eq!(births_and_ends, [9, 9, 7, 7]);
}

#[test]
fn nothing_is_kept_for_nobody() {
    let mut env = Env::new(Config::default());
    for command in SCRIPT {
        play(&mut env, command);
    }
    assert!(!env.scheduler.is_mirrored());
    assert_eq!(env.scheduler.mirror_take(), []);
    env.scheduler.mirror_start();
    env.scheduler.mirror_stop();
    play(&mut env, "done x");
    assert_eq!(env.scheduler.mirror_take(), []);
    assert!(
        env.scheduler
            .tasks()
            .all(|(_, ts)| ts.state != State::Forgotten)
    );
}
