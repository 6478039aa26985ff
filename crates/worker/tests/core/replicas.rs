//! Replicas that the scheduler moves, and data that clients scatter.

use oxidask_wire::{Key, Str};
use oxidask_worker::{Error, Event, State};

use crate::env::{ADDRESS, Env, Task, failure, value};

const A: &str = "tcp://a:1";

fn acquire(keys: &[&str], holder: &str) -> Event {
    let keys = || keys.iter().map(|&key| Key::from(key));
    Event::AcquireReplicas {
        who_has: keys().map(|key| (key, vec![Str::from(holder)])).collect(),
        nbytes: keys().map(|key| (key, 10)).collect(),
    }
}

fn remove(keys: &[&str]) -> Event {
    Event::RemoveReplicas {
        keys: keys.iter().map(|&key| Key::from(key)).collect(),
    }
}

fn scatter(key: &str) -> Event {
    Event::UpdateData {
        data: vec![(Key::from(key), value(7))],
    }
}

#[test]
fn replicas_are_fetched_after_the_inputs_of_tasks() {
    let mut env = Env::with_threads(1);
    env.send(Event::Pause);
    env.send(acquire(&["r"], A));
    env.compute(Task::new("x").needs("a", &[A]));
    assert_eq!(
        env.send(Event::Unpause),
        ["gather a, r from tcp://a:1 (20)"]
    );
    let out = env.receive(A, 20, &["a", "r"]);
    assert!(out.contains(&"add-keys r".to_owned()), "{out:?}");
    assert_eq!(
        env.send(remove(&["r"])),
        ["drop r", "release-worker-data r"]
    );
}

#[test]
fn what_is_here_is_not_fetched() {
    let mut env = Env::with_threads(1);
    env.send(scatter("s"));
    assert!(env.send(acquire(&["s"], A)).is_empty());
    assert_eq!(env.state("s"), Some(State::Memory));
}

#[test]
fn only_what_is_in_memory_is_removed() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    assert!(env.send(remove(&["x", "unknown"])).is_empty());
    assert_eq!(env.state("x"), Some(State::Executing));
}

#[test]
fn an_input_of_a_running_task_cannot_be_removed() {
    let mut env = Env::with_threads(1);
    env.send(scatter("a"));
    env.compute(Task::new("x").needs("a", &[ADDRESS]));
    let failed = env.try_handle(remove(&["a"]));
    assert!(matches!(failed, Err(Error::ReplicaInUse { .. })));
}

#[test]
fn scattered_data_is_kept_without_a_word() {
    let mut env = Env::with_threads(1);
    assert_eq!(env.send(scatter("s")), ["store s"]);
    assert_eq!(env.worker.nbytes(), 7);
    // The value that is here stays.
    assert!(env.send(scatter("s")).is_empty());
    assert_eq!(env.free(&["s"]), ["drop s", "release-worker-data s"]);
    env.worker.validate_empty();
}

#[test]
fn scattered_data_that_cannot_be_stored_is_an_error_of_its_task() {
    let mut env = Env::with_threads(1);
    let out = env.send(Event::UpdateData {
        data: vec![(Key::from("s"), Err(failure("disk full")))],
    });
    assert_eq!(out, ["task-erred s run -1: disk full"]);
}

#[test]
fn scattering_what_is_waited_for_lets_the_waiting_task_run() {
    let mut env = Env::with_threads(1);
    env.send(Event::Pause);
    env.compute(Task::new("x").needs("a", &[A]));
    env.send(scatter("a"));
    assert_eq!(env.send(Event::Unpause), ["execute x"]);
}

/// The message that data was released may still be under way to the scheduler.
#[test]
fn the_worker_is_never_its_own_peer() {
    let mut env = Env::with_threads(1);
    assert!(env.send(acquire(&["r"], ADDRESS)).is_empty());
    assert_eq!(env.state("r"), Some(State::Missing));
}

/// The worker that had the address before has had the data. Found by the simulator,
/// seeds 709867, 712764, 709637 and 21199.
#[test]
fn the_scheduler_hears_that_something_is_not_here() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x").needs("s", &[ADDRESS]));
    assert_eq!(env.state("s"), Some(State::Missing));
    let claim = |key| Event::RefreshWhoHas {
        who_has: vec![(Key::from(key), vec![Str::from(ADDRESS)])],
    };
    assert_eq!(env.send(claim("s")), ["release-worker-data s"]);
    // A peer was told the same.
    env.send(scatter("t"));
    let asked = Event::DataMissing {
        keys: vec![Key::from("unknown"), Key::from("s"), Key::from("t")],
    };
    assert_eq!(
        env.send(asked),
        ["release-worker-data unknown", "release-worker-data s"]
    );
    assert!(env.send(claim("t")).is_empty());
}

#[test]
fn peers_that_have_nothing_are_forgotten() {
    let mut env = Env::with_threads(1);
    for number in 0..100 {
        let peer = format!("tcp://p:{number}");
        env.send(acquire(&["r"], &peer));
        env.receive(&peer, 10, &["r"]);
        env.free(&["r"]);
        env.send(Event::RemoveWorker {
            worker: Str::from(peer),
        });
    }
    env.worker.validate_empty();
    assert_eq!(env.worker.peer_count(), 0);
}

#[test]
fn what_has_not_begun_waits_again_for_what_was_lost() {
    let mut env = Env::with_threads(1);
    env.send(scatter("s"));
    env.compute(Task::new("running").needs("s", &[ADDRESS]));
    env.compute(Task::new("ready").needs("s", &[ADDRESS]));
    env.compute(Task::new("waiting").needs("s", &[ADDRESS]).needs("a", &[A]));
    assert_eq!(env.state("ready"), Some(State::Ready));
    let lost = Event::DataLost {
        keys: vec![Key::from("s"), Key::from("unknown")],
    };
    assert_eq!(env.send(lost), ["drop s", "release-worker-data s"]);
    assert_eq!(env.state("s"), Some(State::Missing));
    assert_eq!(env.state("ready"), Some(State::Waiting));
    assert_eq!(env.state("running"), Some(State::Executing));
    env.receive(A, 10, &["a"]);
    assert_eq!(env.state("waiting"), Some(State::Waiting));
    // Somebody else has it.
    env.send(Event::RefreshWhoHas {
        who_has: vec![(Key::from("s"), vec![Str::from(A)])],
    });
    let out = env.receive(A, 10, &["s"]);
    assert!(out.contains(&"add-keys s".to_owned()), "{out:?}");
    assert_eq!(env.state("ready"), Some(State::Ready));
    assert_eq!(env.state("waiting"), Some(State::Ready));
}

#[test]
fn what_was_lost_and_is_not_needed_is_forgotten() {
    let mut env = Env::with_threads(1);
    env.send(scatter("s"));
    let lost = Event::DataLost {
        keys: vec![Key::from("s")],
    };
    assert_eq!(env.send(lost), ["drop s", "release-worker-data s"]);
    assert_eq!(env.state("s"), None);
}
