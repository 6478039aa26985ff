//! What the simulator has found, as scripts: plans of seeds change with the generator.

use oxidask_sim::plan::{Expansion, Machine, Settings, Step, Task};
use oxidask_sim::{Action, Outcome, Plan, run};

fn plan(seed: u64, settings: Settings, tasks: Vec<Task>, steps: Vec<(u64, Action)>) -> Plan {
    let start = |machine| (0, Action::Start { machine });
    let steps = [start(0), start(1)].into_iter().chain(steps);
    Plan {
        seed,
        settings,
        tasks,
        machines: vec![Machine::default(); 2],
        clients: 1,
        steps: steps.map(|(at, action)| Step { at, action }).collect(),
    }
}

fn submit(tasks: &[usize], wanted: &[usize]) -> Action {
    Action::Submit {
        client: 0,
        tasks: tasks.to_vec(),
        wanted: wanted.to_vec(),
        expansion: Expansion::Pickles,
    }
}

fn future(outcome: &Outcome, name: &str) -> &'static str {
    let future = outcome.futures.iter().find(|(key, _)| key == name);
    future.expect("the client holds a future of it").1
}

/// Seeds 709867, 712764, 709637 and 21199: a worker goes with what was scattered to it, and
/// another one with its address is there when the client says where the data is.
#[test]
fn scattered_data_is_not_looked_for_at_a_successor_for_ever() {
    let data = Task {
        is_data: true,
        ..Task::new("data-0", &[])
    };
    let here = Task {
        pinned: Some(0),
        ..Task::new("here-0", &[0])
    };
    let elsewhere = Task {
        pinned: Some(1),
        ..Task::new("elsewhere-0", &[0])
    };
    let scatter = Action::Scatter {
        client: 0,
        task: 0,
        machine: 0,
    };
    let crash = Action::Crash {
        machine: 0,
        flushed: true,
        returns: Some(0),
        same_address: true,
    };
    for wanted in [1, 2] {
        let tasks = vec![data.clone(), here.clone(), elsewhere.clone()];
        let steps = vec![
            (10_000, scatter.clone()),
            (11_500, crash.clone()),
            (30_000, submit(&[0, wanted], &[wanted])),
        ];
        let plan = plan(0, Settings::default(), tasks, steps);
        let name = plan.tasks[wanted].name.clone();
        assert_eq!(future(&run(&plan), &name), "cancelled");
    }
}

/// Seeds 39855 and 23730, 718363 and 39979: a worker is to retire, and has to stay, while
/// the word that it runs is still on its way.
#[test]
fn a_worker_that_retires_while_it_registers_runs_on() {
    let settings = Settings {
        delay_min: 100,
        late_percent: 20,
        late_max: 3_000_000,
        ..Settings::default()
    };
    for seed in 0..300 {
        let data = |name| Task {
            is_data: true,
            ..Task::new(name, &[])
        };
        let tasks = vec![data("data-0"), data("data-1"), Task::new("x-0", &[])];
        let mut steps = Vec::new();
        let mut both = |at, action: &dyn Fn(usize) -> Action| {
            steps.extend((0..2).map(|machine| (at, action(machine))));
        };
        let scatter = |machine| Action::Scatter {
            client: 0,
            task: machine,
            machine,
        };
        both(100_000, &scatter);
        both(500_000, &|machine| Action::Retire { machine });
        both(1_500_000, &|machine| Action::Retire { machine });
        steps.push((4_000_000, submit(&[2], &[2])));
        let outcome = run(&plan(seed, settings, tasks, steps));
        assert_eq!(future(&outcome, "x-0"), "finished", "seed {seed}");
    }
}
