//! What comes between the slices of a graph, and of a release.

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
    let was_in = !env.scheduler.has_pending_work();
    for command in commands {
        env.command(command);
    }
    env.slices(SLICES_MAX);
    assert!(!env.scheduler.has_pending_work());
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

/// What the first tasks of a graph need is lost while others are still to come. Found by
/// the simulator, seed 2936.
#[test]
fn a_bundle_stays_while_tasks_of_it_are_coming() {
    for slices in 0..SLICES_MAX {
        let mut env = env();
        env.command("worker alice");
        env.command("scatter ada d alice");
        let submit = "submit ada a b e f g: a <- d; b <- d; e; f; g | bundle=1";
        if interrupt(&mut env, submit, slices, &["drop alice d"]) {
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
        let was_in = !env.scheduler.has_pending_work();
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
        let was_in = !env.scheduler.has_pending_work();
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
        let was_in = !env.scheduler.has_pending_work();
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

/// What a worker is told to free, and the states in the end, by slices of this length.
fn released(graph_slice: usize, commands: &[&str]) -> (Vec<String>, String) {
    let mut env = Env::new(Config {
        graph_slice,
        ..Config::default()
    });
    let mut freed = Vec::new();
    for command in commands {
        for line in env.command(command) {
            if let Some(keys) = line.strip_prefix("> alice free ") {
                freed.extend(keys.split(' ').map(str::to_owned));
            }
        }
    }
    freed.sort();
    (freed, env.states())
}

#[test]
fn slices_release_what_one_event_releases() {
    const SUBMIT: [&str; 4] = [
        "client ada",
        "client bob",
        "worker alice 9",
        "submit ada a b c d e f : a ; b ; c <- a b ; d <- c ; e <- c ; f <- d e",
    ];
    for departure in [
        "disconnect ada",
        "release ada f e d c b a",
        "release ada a b c d e f",
        "release-found ada a b c d e f",
        "release ada f",
    ] {
        for finished in 0..=6 {
            let mut commands = SUBMIT.to_vec();
            commands.extend(["a", "b", "c", "d", "e", "f"][..finished].iter().map(
                |key| match *key {
                    "a" => "finish alice a",
                    "b" => "finish alice b",
                    "c" => "finish alice c",
                    "d" => "finish alice d",
                    "e" => "finish alice e",
                    _ => "finish alice f",
                },
            ));
            commands.push("desire queue-q d");
            commands.push(departure);
            let at_once = released(1000, &commands);
            for graph_slice in 1..8 {
                assert_eq!(
                    released(graph_slice, &commands),
                    at_once,
                    "{departure} after {finished} were finished, by {graph_slice}"
                );
            }
        }
    }
}

/// A client with tasks in progress and queued behind them; it leaves by slices.
fn leaving() -> Env {
    let mut env = env();
    env.command("worker alice");
    env.command("client bob");
    env.command("submit ada a b c d e f : a ; b ; c ; d ; e ; f | producers=1");
    env.command("slices");
    assert_eq!(
        env.states(),
        "= a=processing@alice b=processing@alice c=queued d=queued e=queued f=queued"
    );
    env
}

#[test]
fn queued_tasks_on_their_way_out_get_no_slot() {
    let mut env = leaving();
    env.command("submit bob x : x | producers=1");
    let mut sent = env.command("disconnect ada");
    sent.extend(env.command("finish alice a"));
    while env.scheduler.has_pending_work() {
        sent.extend(env.command("slices 1"));
    }
    let computed: Vec<&String> = sent
        .iter()
        .filter(|line| line.contains("compute"))
        .collect();
    assert_eq!(computed, ["> alice compute x"]);
    assert_eq!(env.states(), "= x=processing@alice");
}

#[test]
fn what_lingers_stays_if_somebody_comes_to_need_it() {
    let mut env = leaving();
    env.command("disconnect ada");
    env.command("desire bob c");
    env.command("slices");
    assert_eq!(env.states(), "= c=processing@alice");
    env.command("release bob c");
    env.command("slices");
    env.scheduler.validate_empty();
}

/// The new task would otherwise be taken for the old one.
#[test]
fn a_graph_does_not_meet_what_was_released_before_it() {
    let mut env = env();
    env.command("worker alice");
    env.command("submit ada d : a ; b <- a ; c <- b ; d <- c");
    env.command("slices");
    for key in ["a", "b", "c", "d"] {
        env.command(&format!("finish alice {key}"));
    }
    env.command("release ada d");
    assert!(env.scheduler.has_pending_work());
    assert_eq!(env.states(), "= a=released b=released");
    // Not done: these keys have been let go.
    env.command("submit ada b : b");
    assert_eq!(env.states(), "= b=processing@alice");

    env.command("submit ada z : x <- b ; y <- x ; z <- y");
    env.command("slices");
    env.command("finish alice b");
    for key in ["x", "y", "z"] {
        env.command(&format!("finish alice {key}"));
    }
    env.command("release ada z b");
    env.command("submit ada y z : b ; z <- b ; y <- z");
    env.command("slices");
    assert_eq!(
        env.states(),
        "= b=processing@alice y=waiting z=waiting",
        "a large graph comes after the release, too"
    );
}

#[test]
fn data_from_outside_does_not_meet_what_was_released_before_it() {
    let mut env = env();
    env.command("worker alice");
    env.command("worker carol");
    env.command("submit ada a b c d : a ; b ; c ; d | producers=1");
    env.command("slices");
    assert!(env.states().contains("d=processing@"));
    let worker = if env.states().contains("a=processing@alice") {
        "alice"
    } else {
        "carol"
    };
    let other = if worker == "alice" { "carol" } else { "alice" };
    env.command(&format!("finish {worker} a"));
    env.command("disconnect ada");
    env.command("client bob");
    let sent = env.command(&format!("scatter bob a {other}"));
    assert!(
        sent.iter()
            .any(|line| line.contains(&format!("> {worker} free a"))),
        "{sent:?}"
    );
    env.command("slices");
    assert_eq!(env.states(), format!("= a=memory@{other}"));
}

#[test]
fn a_restart_ends_a_release() {
    let mut env = leaving();
    env.command("disconnect ada");
    env.command("restart");
    env.scheduler.validate_empty();
}
