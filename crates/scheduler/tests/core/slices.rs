//! What comes between the slices of a graph.

use oxidask_scheduler::Config;

use crate::env::Env;

/// Slices of two tasks, taken by command.
fn env() -> Env {
    let mut env = Env::new(Config {
        graph_slice: 2,
        ..Config::default()
    });
    env.by_slices = true;
    env.command("client ada");
    env
}

/// More slices than any graph here takes.
const SLICES_MAX: usize = 100;

/// Submits, takes in some slices, plays the commands, takes in the rest.
/// Returns whether the graph was in before the commands.
fn interrupt(env: &mut Env, submit: &str, slices: usize, commands: &[&str]) -> bool {
    env.command(submit);
    env.slices(slices);
    let was_in = !env.scheduler.has_pending_graphs();
    for command in commands {
        env.command(command);
    }
    env.slices(SLICES_MAX);
    assert!(!env.scheduler.has_pending_graphs());
    was_in
}

const CHAIN: &str = "submit ada d : a ; b <- a ; c <- a ; d <- b c ; e <- d";

#[test]
fn a_task_that_a_queue_wants_is_computed_although_its_client_left() {
    for slices in 0..SLICES_MAX {
        let mut env = env();
        env.command("worker alice");
        let was_in = interrupt(
            &mut env,
            CHAIN,
            slices,
            &["desire queue-q c", "disconnect ada"],
        );
        // As if the graph had come in at once, unless the queue was first.
        let states = env.states();
        match states.as_str() {
            "=" => assert!(!was_in, "the graph was in after {slices} slices"),
            "= a=processing@alice c=waiting" => {
                env.command("finish alice a");
                assert_eq!(env.states(), "= a=memory@alice c=processing@alice");
                env.command("finish alice c");
                assert_eq!(env.states(), "= a=released c=memory@alice");
                env.command("release queue-q c");
                assert_eq!(env.states(), "=");
            }
            _ => panic!("{states} after {slices} slices"),
        }
        if was_in {
            assert_ne!(states, "=");
            return;
        }
    }
    panic!("the graph never came in");
}

#[test]
fn nothing_is_sent_for_a_client_that_left() {
    for slices in 0..SLICES_MAX {
        let mut env = env();
        env.command("worker alice");
        env.command(CHAIN);
        env.slices(slices);
        let was_in = !env.scheduler.has_pending_graphs();
        env.command("disconnect ada");
        let sent = env.command("slices");
        assert!(
            sent.iter().all(|line| line == "> alice free a"),
            "{sent:?} after {slices} slices"
        );
        env.scheduler.validate_empty();
        if was_in {
            return;
        }
    }
    panic!("the graph never came in");
}

/// Found by chance: the task that the queue wants was left waiting for nothing.
#[test]
fn a_ready_task_does_not_wait_when_its_client_left_before_it_was_sent() {
    let mut env = env();
    env.command("submit ada a b c : a ; b ; c");
    while env.states() != "= a=waiting b=waiting c=waiting" {
        env.command("slices 1");
    }
    env.command("desire queue-q a");
    env.command("disconnect ada");
    env.command("slices");
    assert_eq!(env.states(), "= a=queued");
}

/// A client that comes back has the name of the one that left.
#[test]
fn what_a_client_sent_before_it_left_does_not_concern_the_one_that_came_back() {
    let mut env = env();
    env.command("worker alice");
    env.command("client bob");
    env.command("submit bob x : x");
    env.command("submit ada a b c : a ; b ; c");
    env.command("release ada x");
    env.command("disconnect ada");
    env.command("client ada");
    env.command("desire ada x");
    env.command("release bob x");
    env.command("slices");
    assert_eq!(env.states(), "= x=processing@alice");
}

/// A release must not overtake a graph that waits for one that was refused.
#[test]
fn events_wait_for_a_refused_graph_in_their_order() {
    for slices in 0..SLICES_MAX {
        let mut env = env();
        env.command("worker alice");
        env.command("submit ada d : b <- a ; c ; d <- b c");
        env.command("submit ada x : x");
        env.slices(slices);
        let was_in = !env.scheduler.has_pending_graphs();
        env.command("release ada x");
        env.command("slices");
        env.scheduler.validate_empty();
        if was_in {
            return;
        }
    }
    panic!("the graphs never came in");
}

/// Found by chance: a running task was marked as if it had lost a dependency
/// that only another definition of it has.
#[test]
fn a_known_task_does_not_lose_what_it_never_depended_on() {
    for slices in 0..SLICES_MAX {
        let mut env = env();
        env.command("worker alice");
        env.command("client bob");
        env.command("submit bob y : y");
        env.command("submit bob z : z");
        let was_in = interrupt(
            &mut env,
            "submit ada d : b ; c <- b ; y <- z c ; d <- y",
            slices,
            &["release bob z"],
        );
        let states = env.states();
        assert!(
            states.contains(" y=processing@alice"),
            "{states} after {slices} slices"
        );
        if was_in {
            return;
        }
    }
    panic!("the graph never came in");
}

/// Found by chance: queued tasks did not hear of slots that became free as a
/// graph was undone.
#[test]
fn slots_of_a_graph_that_is_undone_go_to_the_queue() {
    for slices in 0..SLICES_MAX {
        let mut env = env();
        env.command("worker alice");
        env.command("client bob");
        env.command("submit ada a b c d : a ; b ; c ; d | producers=1");
        env.slices(slices);
        let was_in = !env.scheduler.has_pending_graphs();
        env.command("submit bob x y : x ; y | producers=1");
        env.command("disconnect ada");
        env.command("slices");
        assert_eq!(
            env.states(),
            "= x=processing@alice y=processing@alice",
            "after {slices} slices"
        );
        if was_in {
            return;
        }
    }
    panic!("the graph never came in");
}
