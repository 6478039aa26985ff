//! Actors: results that stay where they are.

use oxidask_sim::plan::{Expansion, Machine, Settings, Step, Task};
use oxidask_sim::{Action, Outcome, Plan, run};

const MS: u64 = 1_000;

/// An actor on the first of two workers and a task on the second that calls it.
fn play(at: u64, action: Action) -> Outcome {
    let tasks = vec![
        Task {
            is_actor: true,
            pinned: Some(0),
            ..Task::new("actor-0", &[])
        },
        Task {
            pinned: Some(1),
            duration: 50 * MS,
            ..Task::new("call-0", &[0])
        },
    ];
    let submit = Action::Submit {
        client: 0,
        tasks: vec![0, 1],
        wanted: vec![0, 1],
        expansion: Expansion::Pickles,
    };
    let start = |machine| (0, Action::Start { machine });
    let steps = [start(0), start(1), (10 * MS, submit), (at, action)];
    let plan = Plan {
        seed: 0,
        settings: Settings::default(),
        tasks,
        machines: vec![Machine::default(); 2],
        clients: 1,
        steps: steps.map(|(at, action)| Step { at, action }).to_vec(),
    };
    run(&plan)
}

fn future(outcome: &Outcome, name: &str) -> &'static str {
    let future = outcome.futures.iter().find(|(key, _)| key == name);
    future.expect("the client holds a future of it").1
}

#[test]
fn an_actor_is_lost_with_its_worker_and_with_it_what_calls_it() {
    for at in (40..75).step_by(5) {
        let crash = Action::Crash {
            machine: 0,
            flushed: false,
            returns: Some(100 * MS),
            same_address: false,
        };
        let outcome = play(at * MS, crash);
        assert_eq!(future(&outcome, "actor-0"), "error");
        assert_eq!(future(&outcome, "call-0"), "error");
    }
}

#[test]
fn a_worker_with_an_actor_is_not_retired() {
    let outcome = play(50 * MS, Action::Retire { machine: 0 });
    assert_eq!(future(&outcome, "actor-0"), "finished");
    assert_eq!(future(&outcome, "call-0"), "finished");
}
