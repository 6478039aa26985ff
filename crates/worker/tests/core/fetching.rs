//! What is fetched from whom, and what happens when that does not work.

use oxidask_wire::{Key, Str};
use oxidask_worker::task::{Action, StartStop};
use oxidask_worker::{Config, Error, Event, Instruction, SendMessageToScheduler, State};

use crate::env::{ADDRESS, Env, Task, failure, finished, value};

const A: &str = "tcp://a:1";
const B: &str = "tcp://b:1";

fn network_failure(worker: &str, total_nbytes: i64) -> Event {
    Event::GatherDepNetworkFailure {
        worker: worker.into(),
        total_nbytes,
    }
}

fn busy(worker: &str, total_nbytes: i64) -> Event {
    Event::GatherDepBusy {
        worker: worker.into(),
        total_nbytes,
    }
}

fn refresh(who_has: &[(&str, &[&str])]) -> Event {
    let holders = |holders: &[&str]| holders.iter().map(|&holder| Str::from(holder)).collect();
    let who_has = who_has
        .iter()
        .map(|&(key, addresses)| (Key::from(key), holders(addresses)));
    Event::RefreshWhoHas {
        who_has: who_has.collect(),
    }
}

#[test]
fn a_peer_is_asked_for_all_it_has_at_once() {
    let mut env = Env::with_threads(1);
    let task = Task::new("x")
        .needs("a", &[A])
        .needs("b", &[A])
        .needs("c", &[B]);
    assert_eq!(
        env.compute(task),
        [
            "gather b, a from tcp://a:1 (20)",
            "gather c from tcp://b:1 (10)"
        ]
    );
    assert_eq!(env.worker.transfer_incoming_bytes(), 30);
    assert_eq!(env.worker.transfer_incoming_count(), 2);
    // Whatever else the peer has waits for the answer.
    assert!(env.compute(Task::new("y").needs("d", &[A])).is_empty());
    assert_eq!(
        env.receive(A, 20, &["a", "b"]),
        [
            "store a",
            "add-keys a",
            "store b",
            "add-keys b",
            "gather d from tcp://a:1 (10)"
        ]
    );
}

#[test]
fn peers_on_the_own_host_go_first() {
    let mut env = Env::with_threads(1);
    let task = Task::new("x").needs("a", &[A, "tcp://me:2"]);
    assert_eq!(env.compute(task), ["gather a from tcp://me:2 (10)"]);
}

#[test]
fn among_equals_the_peer_with_most_goes_first() {
    let mut env = Env::with_threads(1);
    let task = Task::new("x").needs("a", &[A, B]).needs("b", &[B]);
    assert_eq!(env.compute(task), ["gather b, a from tcp://b:1 (20)"]);
}

#[test]
fn ties_break_by_the_seed() {
    let first = |seed| {
        let mut env = Env::new(Config {
            seed,
            ..Config::new(ADDRESS)
        });
        env.compute(Task::new("x").needs("a", &[A, B]))[0].clone()
    };
    assert_eq!(first(1), first(1));
    let chosen: std::collections::BTreeSet<String> = (0..20).map(first).collect();
    assert_eq!(chosen.len(), 2);
}

#[test]
fn the_inputs_of_the_best_task_go_first() {
    let mut env = Env::new(Config {
        transfer_incoming_bytes_limit: 10.0,
        ..Config::new(ADDRESS)
    });
    env.send(Event::Pause);
    env.compute(Task::new("late").needs("l", &[A]).priority(5.0));
    env.compute(Task::new("soon").needs("s", &[B]).priority(1.0));
    assert_eq!(env.send(Event::Unpause), ["gather s from tcp://b:1 (10)"]);
    assert_eq!(
        env.receive(B, 10, &["s"]),
        [
            "store s",
            "add-keys s",
            "execute soon",
            "gather l from tcp://a:1 (10)"
        ]
    );
}

#[test]
fn a_message_has_a_limit_but_never_nothing_in_it() {
    let mut env = Env::new(Config {
        transfer_message_bytes_limit: 25.0,
        ..Config::new(ADDRESS)
    });
    let task = Task::new("x")
        .needs_sized("a", &[A], 100)
        .needs("b", &[B])
        .needs("c", &[B])
        .needs("d", &[B]);
    assert_eq!(
        env.compute(task),
        [
            "gather d, c from tcp://b:1 (20)",
            "gather a from tcp://a:1 (100)"
        ]
    );
    assert!(
        env.receive(B, 20, &["d", "c"])
            .contains(&"gather b from tcp://b:1 (10)".to_owned())
    );
}

#[test]
fn incoming_bytes_have_a_limit() {
    let mut env = Env::new(Config {
        transfer_incoming_bytes_limit: 15.0,
        ..Config::new(ADDRESS)
    });
    let task = Task::new("x").needs("a", &[A]).needs("b", &[B]);
    assert_eq!(env.compute(task).len(), 1);
    assert_eq!(env.worker.transfer_incoming_bytes(), 10);
    let ahead = if env.state("a") == Some(State::Flight) {
        (A, "a")
    } else {
        (B, "b")
    };
    let out = env.receive(ahead.0, 10, &[ahead.1]);
    assert!(out.last().unwrap().starts_with("gather"), "{out:?}");
}

#[test]
fn the_number_of_transfers_is_limited_once_they_are_large() {
    let config = Config {
        transfer_incoming_count_limit: 1,
        ..Config::new(ADDRESS)
    };
    let needs = |nbytes| {
        Task::new("x")
            .needs_sized("a", &[A], nbytes)
            .needs_sized("b", &[B], nbytes)
    };
    assert_eq!(Env::new(config.clone()).compute(needs(10)).len(), 2);
    assert_eq!(Env::new(config).compute(needs(10_000_000)).len(), 1);
}

#[test]
fn what_a_peer_does_not_send_is_looked_for_elsewhere() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x").needs("a", &[A, B]).needs("b", &[A]));
    assert_eq!(
        env.receive(A, 20, &["b"]),
        ["store b", "add-keys b", "gather a from tcp://b:1 (10)"]
    );
    assert!(env.receive(B, 10, &[]).is_empty());
    assert_eq!(env.state("a"), Some(State::Missing));
    assert_eq!(env.send(Event::FindMissing), ["request-refresh-who-has a"]);
    assert_eq!(
        env.send(refresh(&[("a", &["tcp://c:1"]), ("forgotten", &[A])])),
        ["gather a from tcp://c:1 (10)"]
    );
}

#[test]
fn a_busy_peer_is_left_alone_for_a_while() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x").needs("a", &[A, B]).needs("b", &[A]));
    assert_eq!(
        env.send(busy(A, 20)),
        [
            "retry tcp://a:1 later",
            "request-refresh-who-has b",
            "gather a from tcp://b:1 (10)"
        ]
    );
    assert_eq!(
        env.send(Event::RetryBusyWorker { worker: A.into() }),
        ["gather b from tcp://a:1 (10)"]
    );
}

#[test]
fn a_peer_that_cannot_be_reached_has_nothing_any_more() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x").needs("a", &[A, B]).needs("b", &[A]));
    env.compute(Task::new("y").needs("c", &[A]));
    assert_eq!(
        env.send(network_failure(A, 20)),
        ["gather a from tcp://b:1 (10)"]
    );
    assert_eq!(env.state("b"), Some(State::Missing));
    assert_eq!(env.state("c"), Some(State::Missing));
    assert_eq!(
        env.send(Event::FindMissing),
        ["request-refresh-who-has c, b"]
    );
}

#[test]
fn a_peer_that_leaves_is_no_holder() {
    let mut env = Env::with_threads(1);
    env.send(Event::Pause);
    env.compute(Task::new("x").needs("a", &[A, B]).needs("b", &[A]));
    env.send(Event::RemoveWorker {
        worker: Str::from(A),
    });
    assert_eq!(env.state("a"), Some(State::Fetch));
    assert_eq!(env.state("b"), Some(State::Missing));
    env.send(refresh(&[("a", &[])]));
    assert_eq!(env.state("a"), Some(State::Missing));
}

#[test]
fn data_that_cannot_be_read_is_a_failure_of_its_task() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x").needs("a", &[A]));
    assert_eq!(
        env.send(Event::GatherDepFailure {
            worker: A.into(),
            total_nbytes: 10,
            failure: failure("cannot unpickle"),
        }),
        ["task-erred a run -1: cannot unpickle"]
    );
}

#[test]
fn a_transfer_is_booked_to_a_task_that_it_is_for() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x").needs("a", &[A]));
    let transfer = StartStop {
        action: Action::Transfer,
        start: 1.0,
        stop: 2.0,
        source: Some(A.into()),
    };
    env.handle(Event::GatherDepSuccess {
        worker: A.into(),
        total_nbytes: 10,
        data: vec![(Key::from("a"), value(10))],
        transfer: Some(transfer.clone()),
    });
    let out = env.handle(finished("x", 1, 1));
    let Some(Instruction::SendMessageToScheduler(SendMessageToScheduler::TaskFinished(msg))) =
        out.last()
    else {
        panic!("{out:?}");
    };
    assert_eq!(msg.startstops[0], transfer);
    assert_eq!(msg.startstops.len(), 2);
    assert_eq!(msg.thread, Some(7));
}

#[test]
fn an_answer_that_nobody_waits_for_is_an_error() {
    let mut env = Env::with_threads(1);
    let failed = env.try_handle(busy(A, 10));
    assert!(matches!(failed, Err(Error::NotInFlight { .. })));
}
