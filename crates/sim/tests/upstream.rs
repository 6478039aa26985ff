//! What made clusters of others stand still, as scripts: each is named after its issue
//! of distributed. Where nobody found out what happened there, the circumstances are those
//! that the issue describes.

use oxidask_sim::plan::{Expansion, Machine, Micros, Settings, Step, Task};
use oxidask_sim::{Action, Outcome, Plan, run};

const MS: Micros = 1_000;

/// Machines that all start at the beginning, with one thread each, and one client.
fn plan(machines: usize, tasks: Vec<Task>) -> Plan {
    let starts = (0..machines).map(|machine| Step {
        at: 0,
        action: Action::Start { machine },
    });
    Plan {
        seed: 0,
        settings: Settings {
            memory_manager: false,
            work_stealing: false,
            ..Settings::default()
        },
        tasks,
        machines: vec![Machine::default(); machines],
        clients: 1,
        steps: starts.collect(),
    }
}

fn at(plan: &mut Plan, at: Micros, action: Action) {
    plan.steps.push(Step { at, action });
}

fn submit(plan: &mut Plan, when: Micros, tasks: &[usize], wanted: &[usize]) {
    let action = Action::Submit {
        client: 0,
        tasks: tasks.to_vec(),
        wanted: wanted.to_vec(),
        expansion: Expansion::Pickles,
    };
    at(plan, when, action);
}

fn task(name: &str, dependencies: &[usize], duration: Micros, machine: usize) -> Task {
    Task {
        duration,
        pinned: Some(machine),
        ..Task::new(name, dependencies)
    }
}

fn future(outcome: &Outcome, name: &str) -> &'static str {
    let future = outcome.futures.iter().find(|(key, _)| key == name);
    future.expect("the client holds a future of it").1
}

/// Whatever is computed after a task has failed.
#[test]
fn issue_5497_computations_go_on_after_a_failure() {
    let parts = (0..8).map(|number| Task::new(&format!("part-{number}"), &[]));
    let mut tasks: Vec<Task> = parts.collect();
    for number in 0..8 {
        tasks.push(Task {
            failures: 100,
            ..Task::new(&format!("raise-{number}"), &[number])
        });
    }
    tasks.push(Task::new("concat-0", &(8..16).collect::<Vec<_>>()));
    tasks.push(Task::new("after", &[]));
    let mut plan = plan(2, tasks);
    submit(&mut plan, 10 * MS, &(0..17).collect::<Vec<_>>(), &[16]);
    submit(&mut plan, 2_000 * MS, &[17], &[17]);
    let outcome = run(&plan);
    assert_eq!(future(&outcome, "concat-0"), "error");
    assert_eq!(future(&outcome, "after"), "finished");
}

/// A worker loses the scheduler for a while, with tasks under way.
#[test]
fn issues_6228_and_6263_tasks_leave_a_worker_whose_connection_broke() {
    for noticed in [2 * MS, 100 * MS, 5_000 * MS] {
        for broken_at in (20..140).step_by(7) {
            let tasks = vec![
                task("x-0", &[], 40 * MS, 0),
                task("y-0", &[0], 40 * MS, 0),
                task("z-0", &[1], 40 * MS, 0),
            ];
            let mut plan = plan(2, tasks);
            submit(&mut plan, 10 * MS, &[0, 1, 2], &[2]);
            let machine = 0;
            at(
                &mut plan,
                broken_at * MS,
                Action::Break { machine, noticed },
            );
            let outcome = run(&plan);
            assert_eq!(future(&outcome, "z-0"), "finished");
            assert!(outcome.runs.iter().all(|&runs| runs <= 2));
        }
    }
}

/// A key is fetched from a worker that retires meanwhile.
#[test]
fn issue_6244_what_is_fetched_from_a_retiring_worker_arrives() {
    for retired_at in 20..80 {
        let tasks = vec![
            task("x-0", &[], 20 * MS, 0),
            task("y-0", &[0], 10 * MS, 1),
            task("z-0", &[0, 1], 10 * MS, 2),
        ];
        let mut plan = plan(3, tasks);
        submit(&mut plan, 10 * MS, &[0, 1, 2], &[2]);
        let machine = 0;
        at(&mut plan, retired_at * MS, Action::Retire { machine });
        let outcome = run(&plan);
        assert_eq!(future(&outcome, "z-0"), "finished");
    }
}

/// A dependency is on its way from a peer that does not answer any more.
#[test]
fn issue_4926_a_dependency_of_a_lost_peer_is_computed_again() {
    for crashed_at in 20..80 {
        let tasks = vec![task("x-0", &[], 20 * MS, 0), task("y-0", &[0], 10 * MS, 1)];
        let mut plan = plan(2, tasks);
        submit(&mut plan, 10 * MS, &[0, 1], &[1]);
        let (machine, time) = (0, 1_000 * MS);
        at(&mut plan, 18 * MS, Action::Freeze { machine, time });
        let crash = Action::Crash {
            machine,
            flushed: false,
            returns: None,
            same_address: false,
        };
        at(&mut plan, crashed_at * MS, crash);
        assert_eq!(future(&run(&plan), "y-0"), "finished");
    }
}

/// The last tasks of one batch after the other.
#[test]
fn issue_5879_the_last_tasks_of_a_batch_end() {
    let batch = |number: usize| number * 20..(number + 1) * 20;
    let tasks = (0..100).map(|number| Task::new(&format!("batch{}-{number}", number / 20), &[]));
    let mut plan = plan(5, tasks.collect());
    plan.settings.work_stealing = true;
    for number in 0..5 {
        let tasks: Vec<usize> = batch(number).collect();
        let begin = (10 + 200 * number as Micros) * MS;
        submit(&mut plan, begin, &tasks, &tasks);
        let release = Action::Release { client: 0, tasks };
        at(&mut plan, begin + 199 * MS, release);
    }
    plan.steps.sort_by_key(|step| step.at);
    let outcome = run(&plan);
    assert_eq!(outcome.runs, [1; 100]);
}
