//! Retirement and scaling.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets anything else has failed"
)]

mod env;

use env::{Env, list};
use oxidask_scheduler::{Event, Instruction, Level, State, Status, ToWorker, WorkerId};
use oxidask_wire::{Key, Map, Value, map};

const A: &str = "tcp://a:1";
const B: &str = "tcp://b:1";
const C: &str = "tcp://c:1";

/// Puts data onto a worker.
fn scatter(env: &mut Env, key: &str, address: &str) {
    env.event(Event::UpdateData {
        client: Some("client".into()),
        who_has: vec![(key.into(), vec![address.into()])],
        nbytes: vec![(key.into(), 100)],
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

fn retire(workers: &[&str]) -> Map {
    map! { "workers" => list(workers), "close_workers" => true, "stimulus_id" => "retire" }
}

/// Addresses and statuses of an answer.
fn retired(answer: Option<Result<Value, String>>) -> Vec<(String, String)> {
    let answer = answer.expect("an answer").unwrap();
    let workers = answer.as_map().unwrap().iter().map(|(address, identity)| {
        let status = identity
            .as_map()
            .unwrap()
            .get("status")
            .unwrap()
            .as_str()
            .unwrap();
        (address.as_str().unwrap().to_owned(), status.to_owned())
    });
    workers.collect()
}

fn kinds(messages: &[(std::sync::Arc<str>, ToWorker)]) -> Vec<String> {
    let describe = |(address, message): &(std::sync::Arc<str>, ToWorker)| {
        let what = match message {
            ToWorker::AcquireReplicas { who_has, .. } => {
                format!(
                    "acquire {:?}",
                    who_has.iter().map(|(key, _)| key).collect::<Vec<_>>()
                )
            }
            ToWorker::RemoveReplicas { keys, .. } => format!("drop {keys:?}"),
            ToWorker::WorkerStatusChange { status, .. } => status.to_string(),
            ToWorker::RemoveWorker { address, .. } => format!("removed {address}"),
            other => format!("{other:?}"),
        };
        format!("{address}: {what}")
    };
    messages.iter().map(describe).collect()
}

#[test]
fn a_worker_without_data_retires_at_once() {
    let mut env = Env::new();
    let client = env.add_client("client");
    for topic in ["all", A] {
        env.client_stream(client, "subscribe-topic", map! { "topic" => topic });
    }
    let a = env.add_worker(A);
    env.add_worker(B);
    env.take();
    let request = env.request("retire_workers", retire(&[A, "tcp://unknown:1"]));
    assert_eq!(
        retired(env.outcome(request)),
        [(A.to_owned(), "closed".to_owned())]
    );
    assert!(env.scheduler.worker(a).is_none());
    let out = env.take();
    let closes = |instruction: &Instruction| {
        matches!(
            instruction,
            Instruction::ToWorker {
                message: ToWorker::Close { .. },
                ..
            }
        )
    };
    assert!(out.iter().any(closes));
    let texts: Vec<&str> = out
        .iter()
        .filter_map(|instruction| match instruction {
            Instruction::Log {
                level: Level::Info,
                text,
            } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(
        texts,
        [
            "Retire worker addresses (stimulus_id='retire') ['tcp://a:1', 'tcp://unknown:1']",
            "Retiring worker tcp://a:1; no unique keys need to be moved away.",
            "Remove worker addr: tcp://a:1 name: tcp://a:1 (stimulus_id='retire')",
            "Retired worker 'tcp://a:1' (stimulus_id='retire')",
        ]
    );
    let events = env.call("events", map! { "topic" => "all" }).unwrap();
    let last = events
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .as_array()
        .unwrap()[1]
        .clone();
    assert_eq!(
        last,
        map! {
            "action" => "retire-workers",
            "retired" => list(&[A]),
            "could-not-retire" => list(&[]),
            "stimulus_id" => "retire",
        }
        .into()
    );
    let events = env.call("events", map! { "topic" => A }).unwrap();
    let last = events
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .as_array()
        .unwrap()[1]
        .clone();
    assert_eq!(
        last,
        map! { "action" => "retired", "stimulus_id" => "retire" }.into()
    );
}

#[test]
fn unique_data_moves_before_its_worker_goes() {
    let mut env = Env::new();
    env.add_client("client");
    let a = env.add_worker(A);
    let b = env.add_worker(B);
    for key in ["x", "y"] {
        scatter(&mut env, key, A);
    }
    scatter(&mut env, "both", A);
    add_keys(&mut env, b, &["both"]);
    env.take();
    let request = env.request("retire_workers", retire(&[A]));
    assert_eq!(env.outcome(request), None);
    assert_eq!(
        env.scheduler.worker(a).unwrap().status,
        Status::ClosingGracefully
    );
    let messages = env.take_to_workers();
    assert_eq!(
        kinds(&messages),
        [
            "tcp://a:1: closing_gracefully",
            "tcp://b:1: acquire ['x', 'y']",
            "tcp://a:1: drop ['both']",
        ]
    );
    add_keys(&mut env, b, &["x"]);
    env.advance(1.0);
    assert_eq!(env.outcome(request), None);
    assert!(
        env.take_to_workers().is_empty(),
        "the next round is not due"
    );
    // The copy of `y` got lost on the way: the next round asks again and drops `x`.
    env.advance(1.0);
    assert_eq!(
        kinds(&env.take_to_workers()),
        ["tcp://b:1: acquire ['y']", "tcp://a:1: drop ['x']"]
    );
    add_keys(&mut env, b, &["y"]);
    env.advance(0.01);
    assert_eq!(retired(env.outcome(request)).len(), 1);
    assert_eq!(env.state("y"), Some(State::Memory));
    assert_eq!(
        env.extensions
            .next_deadline()
            .map(|at| at > env.now + 1000.0),
        Some(true),
        "only topics are left"
    );
}

#[test]
fn without_recipient_a_worker_stays() {
    let mut env = Env::new();
    env.add_client("client");
    env.add_worker(A);
    scatter(&mut env, "x", A);
    env.take();
    let request = env.request("retire_workers", retire(&[A]));
    assert_eq!(env.outcome(request), Some(Ok(Map::new().into())));
    assert_eq!(
        kinds(&env.take_to_workers()),
        ["tcp://a:1: closing_gracefully", "tcp://a:1: running"]
    );
    let events = env.call("events", map! { "topic" => A }).unwrap();
    let last = events
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .as_array()
        .unwrap()[1]
        .clone();
    assert_eq!(
        last,
        map! { "action" => "could-not-retire", "stimulus_id" => "retire" }.into()
    );
}

/// The word that a worker runs is still under way when it is to retire, and it has to
/// stay: nothing would run on it any more. Found by the simulator, seeds 39855 and 23730.
#[test]
fn a_worker_that_has_just_registered_runs_on_if_it_cannot_retire() {
    let mut env = Env::new();
    env.add_client("client");
    let a = env.add_worker(A);
    env.set_status(a, Status::Init);
    scatter(&mut env, "x", A);
    env.take();
    env.request("retire_workers", retire(&[A]));
    assert_eq!(
        kinds(&env.take_to_workers()),
        ["tcp://a:1: closing_gracefully", "tcp://a:1: running"]
    );
}

#[test]
fn several_workers_retire_at_once_onto_the_rest() {
    let mut env = Env::new();
    env.add_client("client");
    let [_, _, c] = [A, B, C].map(|address| env.add_worker(address));
    scatter(&mut env, "x", A);
    scatter(&mut env, "y", B);
    // Held by two workers, both of which go.
    scatter(&mut env, "z", A);
    let b = env.scheduler.worker_id(B).unwrap();
    add_keys(&mut env, b, &["z"]);
    env.take();
    let request = env.request("retire_workers", retire(&[B, A]));
    let acquired: Vec<_> = kinds(&env.take_to_workers())
        .into_iter()
        .filter(|kind| kind.contains("acquire"))
        .collect();
    assert_eq!(acquired, ["tcp://c:1: acquire ['x', 'z', 'y']"]);
    add_keys(&mut env, c, &["x", "y", "z"]);
    env.advance(0.01);
    assert_eq!(retired(env.outcome(request)).len(), 2);
    assert_eq!(env.state("z"), Some(State::Memory));
}

#[test]
fn a_worker_that_dies_while_it_retires_counts_as_retired() {
    let mut env = Env::new();
    env.add_client("client");
    let a = env.add_worker(A);
    env.add_worker(B);
    scatter(&mut env, "x", A);
    let request = env.request("retire_workers", retire(&[A]));
    env.remove_worker(a, "died");
    env.advance(0.01);
    assert_eq!(
        retired(env.outcome(request)),
        [(A.to_owned(), "closed".to_owned())]
    );
}

#[test]
fn a_retirement_goes_on_without_its_caller() {
    let mut env = Env::new();
    env.add_client("client");
    let a = env.add_worker(A);
    let b = env.add_worker(B);
    scatter(&mut env, "x", A);
    let request = env.request("retire_workers", retire(&[A]));
    env.cancel(request);
    add_keys(&mut env, b, &["x"]);
    env.advance(0.01);
    assert_eq!(env.outcome(request), None);
    assert!(env.scheduler.worker(a).is_none());
}

#[test]
fn workers_retire_by_name_and_may_only_be_flushed() {
    let mut env = Env::new();
    env.add_client("client");
    let a = env.add_worker(A);
    env.add_worker(B);
    let request = env.request(
        "retire_workers",
        map! { "names" => list(&[A]), "remove" => false },
    );
    assert_eq!(
        retired(env.outcome(request)),
        [(A.to_owned(), "closing_gracefully".to_owned())]
    );
    assert!(env.scheduler.worker(a).is_some());
    assert_eq!(
        env.call(
            "retire_workers",
            map! { "names" => list(&[A]), "workers" => list(&[A]) }
        ),
        Err("TypeError('names and workers are mutually exclusive')".into())
    );
    assert_eq!(
        env.call("retire_workers", map! { "names" => list(&[A]), "n" => 2 }),
        Err(
            "TypeError(\"Parameters for workers_to_close() are mutually exclusive with names and workers: \
             {'n': 2}\")"
                .into()
        )
    );
    assert_eq!(
        env.call("retire_workers", map! { "workers" => list(&[]) }),
        Ok(Map::new().into())
    );
}

#[test]
fn idle_workers_with_little_data_close_first() {
    let mut env = Env::new();
    let client = env.add_client("client");
    for address in [A, B, C, "tcp://d:1"] {
        env.add_worker(address);
    }
    let close = |env: &mut Env, arguments: Map| env.call("workers_to_close", arguments).unwrap();
    scatter(&mut env, "x", A);
    assert_eq!(close(&mut env, Map::new()), list(&["tcp://d:1", C, B]));
    assert_eq!(
        close(&mut env, map! { "minimum" => 2 }),
        list(&["tcp://d:1", C])
    );
    assert_eq!(close(&mut env, map! { "n" => 1 }), list(&["tcp://d:1"]));
    assert_eq!(
        close(&mut env, map! { "target" => 1, "attribute" => "name" }),
        list(&["tcp://d:1", C, B])
    );
    let groups = map! { A => "1", B => "1", C => "2", "tcp://d:1" => "2" };
    assert_eq!(
        close(&mut env, map! { "key" => groups.clone() }),
        list(&[C, "tcp://d:1"])
    );
    assert_eq!(
        close(&mut env, map! { "key" => groups, "n" => 3 }),
        list(&[C, "tcp://d:1"])
    );

    env.submit(
        client,
        &[("t0", &[]), ("t1", &[]), ("t2", &[])],
        &["t0", "t1", "t2"],
    );
    let idle: Vec<String> = env
        .scheduler
        .workers()
        .filter(|(_, worker)| worker.processing.is_empty())
        .map(|(_, worker)| worker.address.to_string())
        .collect();
    assert_eq!(close(&mut env, Map::new()), list(&[&idle[0]]));
    assert_eq!(
        close(&mut env, map! { "n" => 2 }).as_array().unwrap().len(),
        2
    );
}

#[test]
fn nobody_closes_while_everybody_works() {
    let mut env = Env::new();
    let client = env.add_client("client");
    env.add_worker(A);
    env.submit(client, &[("t0", &[])], &["t0"]);
    assert_eq!(env.call("workers_to_close", Map::new()), Ok(list(&[])));
    let task = env.scheduler.find_task(&Key::from("t0")).unwrap();
    let (worker, run_id) = (task.processing_on.unwrap(), task.run_id);
    assert_eq!(
        env.call("workers_to_close", map! { "n" => 1 }),
        Ok(list(&[A]))
    );
    env.event(Event::LongRunning {
        worker,
        key: "t0".into(),
        run_id,
        compute_duration: None,
        stimulus_id: "secede".into(),
    });
    assert_eq!(
        env.call("workers_to_close", map! { "n" => 1 }),
        Ok(list(&[]))
    );
}

#[test]
fn the_target_follows_the_work() {
    let mut env = Env::new();
    let client = env.add_client("client");
    let target = |env: &mut Env, duration: Value| {
        env.call("adaptive_target", map! { "target_duration" => duration })
            .unwrap()
    };
    assert_eq!(target(&mut env, Value::Nil), Value::from(0));
    let names: Vec<String> = (0..100).map(|n| format!("task-{n}")).collect();
    let tasks: Vec<(&str, &[&str])> = names
        .iter()
        .map(|name| (name.as_str(), &[] as &[&str]))
        .collect();
    let requested: Vec<&str> = names.iter().map(String::as_str).collect();
    env.submit(client, &tasks, &requested);
    // 100 tasks of unknown duration (0.5 s) in 5 s.
    assert_eq!(target(&mut env, Value::Nil), Value::from(10));
    assert_eq!(target(&mut env, Value::from("1s")), Value::from(50));
    assert_eq!(
        target(&mut env, Value::from(0.001)),
        Value::from(100),
        "never more than tasks"
    );
    env.add_worker(A);
    assert_eq!(target(&mut env, Value::Nil), Value::from(10));
    env.remove_client(client);
    assert_eq!(
        target(&mut env, Value::Nil),
        Value::from(0),
        "an idle cluster shrinks to nothing"
    );
    scatter(&mut env, "x", A);
    env.event(Event::UpdateData {
        client: Some("client".into()),
        who_has: vec![("big".into(), vec![A.into()])],
        nbytes: vec![("big".into(), 900 << 20)],
        stimulus_id: "scatter".into(),
    });
    assert_eq!(
        target(&mut env, Value::Nil),
        Value::from(2),
        "memory is nearly full"
    );
}
