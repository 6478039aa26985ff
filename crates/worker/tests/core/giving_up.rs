//! Tasks that are not wanted any more while they run or are on their way, and
//! what happens when they are wanted again.

use oxidask_wire::Key;
use oxidask_worker::{Error, Event, Previous, State};

use crate::env::{Env, Task, failure};

const A: &str = "tcp://a:1";

fn previous(env: &Env, key: &str) -> Option<Previous> {
    env.worker.find_task(&Key::from(key)).unwrap().previous
}

#[test]
fn a_running_task_goes_when_it_has_run() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    assert!(env.free(&["x"]).is_empty());
    assert_eq!(env.state("x"), Some(State::Cancelled));
    // It still has the thread.
    assert!(env.compute(Task::new("y")).is_empty());
    assert_eq!(env.finish("x", 1), ["execute y"]);
    assert_eq!(env.state("x"), None);
}

#[test]
fn a_cancelled_task_that_is_wanted_again_runs_on() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    env.free(&["x"]);
    assert!(env.compute(Task::new("x")).is_empty());
    assert_eq!(env.state("x"), Some(State::Executing));
    assert_eq!(env.finish("x", 1), ["store x", "task-finished x run 2 (1)"]);
}

#[test]
fn a_failure_of_a_cancelled_task_is_nobodys_business() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    env.free(&["x"]);
    assert!(env.fail("x").is_empty());
    env.worker.validate_empty();
}

#[test]
fn a_cancelled_long_running_task_says_so_when_it_is_wanted_again() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    env.free(&["x"]);
    env.compute(Task::new("y"));
    // The scheduler does not count it, so it is not told.
    assert_eq!(env.secede("x"), ["execute y"]);
    assert_eq!(previous(&env, "x"), Some(Previous::LongRunning));
    assert_eq!(env.compute(Task::new("x")), ["long-running x"]);
    assert_eq!(env.state("x"), Some(State::LongRunning));
}

#[test]
fn a_transfer_that_is_not_wanted_ends_in_nothing() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x").needs("a", &[A]));
    env.free(&["x", "a"]);
    assert_eq!(env.state("a"), Some(State::Cancelled));
    assert_eq!(env.state("x"), None);
    assert!(env.receive(A, 10, &["a"]).is_empty());
    env.worker.validate_empty();
}

#[test]
fn a_transfer_that_is_wanted_again_goes_on() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x").needs("a", &[A]));
    env.free(&["x"]);
    assert_eq!(env.state("a"), Some(State::Cancelled));
    assert!(env.compute(Task::new("y").needs("a", &[A])).is_empty());
    assert_eq!(env.state("a"), Some(State::Flight));
    assert_eq!(
        env.receive(A, 10, &["a"]),
        ["store a", "add-keys a", "execute y"]
    );
}

#[test]
fn a_task_on_its_way_that_is_to_be_computed_counts_as_computed() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x").needs("a", &[A]));
    assert!(env.compute(Task::new("a")).is_empty());
    let ts = env.worker.find_task(&Key::from("a")).unwrap();
    assert_eq!(
        (ts.state, ts.next()),
        (State::Resumed, Some(State::Waiting))
    );
    assert_eq!(
        env.receive(A, 10, &["a"]),
        ["store a", "task-finished a run 2 (10)", "execute x"]
    );
}

#[test]
fn and_is_computed_if_it_does_not_arrive() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x").needs("a", &[A]));
    env.compute(Task::new("a"));
    assert_eq!(env.receive(A, 10, &[]), ["execute a"]);
    assert_eq!(
        env.finish("a", 3),
        ["store a", "task-finished a run 2 (3)", "execute x"]
    );
}

#[test]
fn a_running_task_that_is_to_be_fetched_counts_as_fetched() {
    let mut env = Env::with_threads(2);
    env.compute(Task::new("a"));
    assert!(env.compute(Task::new("x").needs("a", &[A])).is_empty());
    let ts = env.worker.find_task(&Key::from("a")).unwrap();
    assert_eq!((ts.state, ts.next()), (State::Resumed, Some(State::Fetch)));
    assert_eq!(env.finish("a", 3), ["store a", "add-keys a", "execute x"]);
}

#[test]
fn and_is_fetched_if_it_fails() {
    let mut env = Env::with_threads(2);
    env.compute(Task::new("a"));
    env.compute(Task::new("x").needs("a", &[A]));
    assert_eq!(env.fail("a"), ["gather a from tcp://a:1 (10)"]);
}

/// Stock closes the worker here.
#[test]
fn and_is_fetched_if_it_cannot_be_stored() {
    let mut env = Env::with_threads(2);
    env.compute(Task::new("a"));
    env.compute(Task::new("x").needs("a", &[A]));
    let out = env.send(Event::ExecuteSuccess {
        key: Key::from("a"),
        run_id: 1,
        nbytes: 10,
        value: Err(failure("disk full")),
        startstops: Vec::new(),
        thread: None,
    });
    assert_eq!(out, ["gather a from tcp://a:1 (10)"]);
}

/// Stock closes the worker here: the way from `fetch` to `waiting` leads through
/// `released`, which recommends to release `d`, and then it is to be fetched.
#[test]
fn a_task_to_be_fetched_can_be_computed_from_inputs_elsewhere() {
    let mut env = Env::with_threads(1);
    env.send(Event::Pause);
    env.compute(Task::new("x").needs("a", &[A]));
    assert_eq!(env.state("a"), Some(State::Fetch));
    env.compute(Task::new("a").needs("d", &[A]));
    assert_eq!(env.state("a"), Some(State::Waiting));
    assert_eq!(env.send(Event::Unpause), ["gather d from tcp://a:1 (10)"]);
    assert_eq!(
        env.receive(A, 10, &["d"]),
        ["store d", "add-keys d", "execute a"]
    );
    assert_eq!(
        env.finish("a", 3),
        ["store a", "task-finished a run 2 (3)", "execute x"]
    );
}

#[test]
fn what_has_not_begun_is_given_to_a_thief() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    env.compute(Task::new("y"));
    let steal = |key| Event::StealRequest {
        key: Key::from(key),
    };
    assert_eq!(env.send(steal("x")), ["steal-response x executing"]);
    assert_eq!(env.send(steal("y")), ["steal-response y ready"]);
    assert_eq!(env.send(steal("z")), ["steal-response z"]);
    assert_eq!(env.state("y"), None);
    env.compute(Task::new("w").needs("a", &[A]));
    assert_eq!(env.send(steal("w")), ["steal-response w waiting"]);
    assert_eq!(env.state("a"), Some(State::Cancelled));
}

#[test]
fn cancel_compute_takes_what_has_not_begun() {
    let mut env = Env::with_threads(1);
    let cancel = |key| Event::CancelCompute {
        key: Key::from(key),
    };
    env.compute(Task::new("x"));
    env.compute(Task::new("y"));
    env.send(cancel("x"));
    env.send(cancel("y"));
    env.send(cancel("unknown"));
    assert_eq!(env.state("x"), Some(State::Executing));
    assert_eq!(env.state("y"), None);
    env.compute(Task::new("d"));
    env.compute(Task::new("e").needs("d", &[A]));
    env.compute(Task::new("d"));
    let failed = env.try_handle(cancel("d"));
    assert!(matches!(failed, Err(Error::UnexpectedState { .. })));
}
