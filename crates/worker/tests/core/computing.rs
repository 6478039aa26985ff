//! Which task runs when, and what the scheduler hears of it.

use oxidask_wire::Key;
use oxidask_worker::{Config, Error, Event, Instruction, State};

use crate::env::{ADDRESS, Env, Task, failure, finished};

#[test]
fn a_task_runs_and_is_reported() {
    let mut env = Env::with_threads(1);
    assert_eq!(env.compute(Task::new("x")), ["execute x"]);
    assert_eq!(env.state("x"), Some(State::Executing));
    assert_eq!(env.finish("x", 5), ["store x", "task-finished x run 1 (5)"]);
    assert_eq!(env.worker.nbytes(), 5);
    assert_eq!(env.worker.executed_count(), 1);
    assert_eq!(env.free(&["x"]), ["drop x", "release-worker-data x"]);
    env.worker.validate_empty();
}

#[test]
fn the_best_priority_runs_first_and_of_equals_the_latest() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("first"));
    for (key, priority) in [("c", 3.0), ("a", 1.0), ("b", 2.0), ("b2", 2.0)] {
        assert!(env.compute(Task::new(key).priority(priority)).is_empty());
    }
    let mut order = vec!["first"];
    for next in ["a", "b2", "b", "c"] {
        let out = env.finish(order[order.len() - 1], 1);
        assert!(out.contains(&format!("execute {next}")), "{out:?}");
        order.push(next);
    }
}

#[test]
fn a_thread_goes_on_with_what_was_next() {
    let mut env = Env::with_threads(2);
    for (key, priority) in [("x", 0.0), ("y", 0.0), ("a", 1.0), ("b", 2.0), ("c", 3.0)] {
        env.compute(Task::new(key).priority(priority));
    }
    let ahead = |env: &Env, count| {
        let ahead = env.worker.ahead(count);
        ahead.map(|ts| ts.key.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ahead(&env, 9), ["a", "b", "c"]);
    assert_eq!(ahead(&env, 2), ["a", "b"]);
    // What comes too late waits for the next thread, however good it is.
    env.compute(Task::new("best").priority(-1.0));
    assert!(env.begin("a").is_empty());
    let out = env.finish("x", 1);
    assert_eq!(out, ["store x", "task-finished x run 1 (1)", "execute a"]);
    assert_eq!(env.worker.executing_count(), 2);
    assert_eq!(ahead(&env, 9), ["best", "b", "c"]);
    let out = env.finish("y", 1);
    assert!(out.contains(&"execute best".to_owned()), "{out:?}");
}

#[test]
fn what_a_thread_has_begun_runs_although_the_worker_pauses() {
    let mut env = Env::with_threads(1);
    for key in ["x", "y"] {
        env.compute(Task::new(key));
    }
    env.send(Event::Pause);
    assert_eq!(env.worker.ahead(9).count(), 0);
    env.begin("y");
    let out = env.finish("x", 1);
    assert!(out.contains(&"execute y".to_owned()), "{out:?}");
}

#[test]
fn a_thread_goes_on_with_ready_tasks_only() {
    let mut env = with_resources(&[("GPU", 1.0)], 1);
    env.compute(Task::new("x"));
    env.compute(Task::new("y").priority(1.0));
    env.compute(Task::new("z").takes("GPU", 1.0));
    // Whether `z` can run depends on what ends first.
    assert_eq!(env.worker.ahead(9).count(), 0);
    for key in ["x", "z", "unknown"] {
        let key = Key::from(key);
        let begun = env.try_handle(Event::Begun { key });
        assert!(begun.is_err(), "{begun:?}");
    }
}

#[test]
fn a_task_in_memory_is_reported_again_with_the_new_run() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    env.finish("x", 5);
    assert_eq!(env.compute(Task::new("x")), ["task-finished x run 2 (5)"]);
}

#[test]
fn a_task_asked_for_twice_runs_once() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    assert!(env.compute(Task::new("x")).is_empty());
    // The shell reports the run that it began.
    let out = env.send(finished("x", 1, 5));
    assert_eq!(out, ["store x", "task-finished x run 1 (5)"]);
}

#[test]
fn a_failure_is_reported_and_a_retry_runs_again() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    assert_eq!(env.fail("x"), ["task-erred x run 1: boom"]);
    assert_eq!(env.state("x"), Some(State::Error));
    assert_eq!(env.compute(Task::new("x")), ["execute x"]);
    assert!(!env.finish("x", 1).is_empty());
}

#[test]
fn what_cannot_be_stored_is_a_failure_of_the_task() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    let out = env.send(Event::ExecuteSuccess {
        key: Key::from("x"),
        run_id: 1,
        nbytes: 5,
        value: Err(failure("disk full")),
        startstops: Vec::new(),
        thread: None,
    });
    assert_eq!(out, ["task-erred x run 1: disk full"]);
    assert_eq!(env.worker.nbytes(), 0);
}

#[test]
fn a_task_that_reschedules_itself_is_forgotten() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    let key = Key::from("x");
    assert_eq!(env.send(Event::Reschedule { key }), ["reschedule x"]);
    env.worker.validate_empty();
}

#[test]
fn a_seceded_task_makes_room() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    env.compute(Task::new("y"));
    assert_eq!(env.secede("x"), ["long-running x after 0.5", "execute y"]);
    assert!(env.secede("x").is_empty());
    assert_eq!(env.worker.executing_count(), 1);
    assert_eq!(env.worker.long_running_count(), 1);
    assert_eq!(env.finish("x", 1), ["store x", "task-finished x run 1 (1)"]);
}

#[test]
fn nothing_begins_while_paused() {
    let mut env = Env::with_threads(1);
    assert!(env.send(Event::Pause).is_empty());
    assert!(env.compute(Task::new("x")).is_empty());
    assert!(
        env.compute(Task::new("y").needs("d", &["tcp://a:1"]))
            .is_empty()
    );
    assert_eq!(
        env.send(Event::Unpause),
        ["execute x", "gather d from tcp://a:1 (10)"]
    );
}

fn with_resources(resources: &[(&str, f64)], nthreads: usize) -> Env {
    let resources = resources
        .iter()
        .map(|&(name, amount)| (name.into(), amount));
    Env::new(Config {
        nthreads,
        resources: resources.collect(),
        ..Config::new(ADDRESS)
    })
}

#[test]
fn tasks_wait_for_resources() {
    let mut env = with_resources(&[("GPU", 1.0)], 3);
    assert_eq!(env.compute(Task::new("x").takes("GPU", 1.0)), ["execute x"]);
    assert!(env.compute(Task::new("y").takes("GPU", 1.0)).is_empty());
    assert_eq!(env.state("y"), Some(State::Constrained));
    // Whoever needs none goes past.
    assert_eq!(env.compute(Task::new("z").priority(9.0)), ["execute z"]);
    assert!(env.finish("x", 1).contains(&"execute y".to_owned()));
}

/// As in Dask: only the best of those that wait for resources is looked at.
#[test]
fn the_best_constrained_task_holds_up_the_others() {
    let mut env = with_resources(&[("GPU", 1.0), ("TPU", 1.0)], 3);
    env.compute(Task::new("x").takes("GPU", 1.0));
    env.compute(Task::new("y").takes("GPU", 1.0).priority(1.0));
    let out = env.compute(Task::new("z").takes("TPU", 1.0).priority(2.0));
    assert!(out.is_empty());
}

#[test]
fn resources_stay_with_a_task_that_runs_on() {
    let mut env = with_resources(&[("GPU", 1.0)], 2);
    env.compute(Task::new("x").takes("GPU", 1.0));
    env.free(&["x"]);
    assert_eq!(env.state("x"), Some(State::Cancelled));
    // Asked for again with other restrictions while it still runs.
    assert!(env.compute(Task::new("x")).is_empty());
    assert!(env.compute(Task::new("y").takes("GPU", 1.0)).is_empty());
    assert!(env.finish("x", 1).contains(&"execute y".to_owned()));
}

#[test]
fn resources_can_be_changed() {
    let mut env = with_resources(&[("GPU", 1.0)], 2);
    env.compute(Task::new("x").takes("GPU", 1.0));
    let resources = [("GPU".into(), 3.0), ("TPU".into(), 1.0)];
    env.worker.set_resources(&resources);
    env.worker.validate();
    let all: Vec<_> = env
        .worker
        .resources()
        .map(|(name, total, available)| (&**name, total, available))
        .collect();
    assert_eq!(all, [("GPU", 3.0, 2.0), ("TPU", 1.0, 1.0)]);
}

#[test]
fn an_unknown_resource_is_an_error() {
    let mut env = Env::with_threads(1);
    let failed = env.try_handle(Task::new("x").takes("GPU", 1.0).into());
    assert!(matches!(failed, Err(Error::UnknownResource { .. })));
}

#[test]
fn an_actor_is_kept_and_dropped_like_a_value() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("a").actor());
    assert!(env.worker.find_task(&Key::from("a")).unwrap().is_actor);
    assert_eq!(env.finish("a", 5), ["store a", "task-finished a run 1 (5)"]);
    assert_eq!(env.free(&["a"]), ["drop a", "release-worker-data a"]);
    env.worker.validate_empty();
}

#[test]
fn dependents_run_once_everything_is_here() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("a"));
    env.finish("a", 1);
    let task = Task::new("c")
        .needs("a", &[ADDRESS])
        .needs("b", &["tcp://p:1"]);
    assert_eq!(env.compute(task), ["gather b from tcp://p:1 (10)"]);
    assert_eq!(env.state("c"), Some(State::Waiting));
    assert_eq!(
        env.receive("tcp://p:1", 10, &["b"]),
        ["store b", "add-keys b", "execute c"]
    );
}

#[test]
fn transitions_are_told_to_whoever_asks() {
    let mut env = Env::new(Config {
        notifies_transitions: true,
        ..Config::new(ADDRESS)
    });
    assert_eq!(
        env.compute(Task::new("x")),
        [
            "transition x released -> waiting",
            "transition x waiting -> ready",
            "execute x",
            "transition x ready -> executing"
        ]
    );
}

#[test]
fn the_story_tells_of_keys_and_stimuli() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("x"));
    env.compute(Task::new("y"));
    let x = env.worker.story(&[Key::from("x")], &[]);
    assert_eq!(x.len(), 4, "{x:#?}");
    assert!(x.iter().all(|record| record.stimulus_id.as_str() == "s1"));
    assert_eq!(env.worker.story(&[], &["s2".into()]).len(), 3);
}

#[test]
fn the_story_is_bounded() {
    let mut env = Env::new(Config {
        low_level_log_length: 10,
        ..Config::new(ADDRESS)
    });
    for _ in 0..100 {
        env.compute(Task::new("x"));
        env.finish("x", 1);
        env.free(&["x"]);
    }
    assert_eq!(env.worker.log().count(), 10);
}

#[test]
fn counts_are_those_of_the_heartbeat() {
    let mut env = Env::with_threads(1);
    env.compute(Task::new("inc-1"));
    env.compute(Task::new("inc-2"));
    assert_eq!(env.worker.count_in(State::Executing), 1);
    assert_eq!(env.worker.count_in(State::Ready), 1);
    let rows: Vec<_> = env
        .worker
        .counts_by_prefix(env.now + 2.0)
        .filter(|row| row.1 == State::Executing)
        .map(|(name, _, count, seconds)| (name.to_string(), count, seconds))
        .collect();
    assert_eq!(rows, [("inc".to_owned(), 1, 3.0)]);
}

#[test]
fn instructions_say_why() {
    let mut env = Env::with_threads(1);
    let out = env.handle(Task::new("x").into());
    let [Instruction::Execute(execute)] = &out[..] else {
        panic!("{out:?}");
    };
    assert_eq!(execute.stimulus_id.as_str(), "s1");
}
