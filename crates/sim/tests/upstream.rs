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

/// A task that ends every worker which runs it, again and again.
#[test]
fn issue_3196_a_task_that_kills_its_workers_fails_each_time() {
    for flushed_at in 0..20 {
        let kill = |number: usize| Task {
            kills: 4,
            duration: 1_000 + 500 * flushed_at,
            ..Task::new(&format!("kill-{number}"), &[])
        };
        let mut plan = plan(2, (0..5).map(kill).collect());
        for number in 0..5 {
            let begin = (10 + 4_000 * number as Micros) * MS;
            submit(&mut plan, begin, &[number], &[number]);
        }
        let outcome = run(&plan);
        for number in 0..5 {
            assert_eq!(future(&outcome, &format!("kill-{number}")), "error");
        }
        assert_eq!(outcome.runs, [4; 5]);
    }
}

/// Tasks are stolen while the workers that they are stolen from and by leave.
#[test]
fn issue_7523_stealing_outlives_the_workers_that_it_is_about() {
    for left_at in (30..400).step_by(20) {
        let mut tasks = vec![Task::new("x-0", &[])];
        tasks.extend((1..60).map(|number| task(&format!("y-{number}"), &[0], 30 * MS, 0)));
        let mut plan = plan(4, tasks);
        plan.settings.work_stealing = true;
        let all: Vec<usize> = (0..60).collect();
        submit(&mut plan, 10 * MS, &all, &all[1..]);
        let crash = Action::Crash {
            machine: 1,
            flushed: false,
            returns: None,
            same_address: false,
        };
        at(&mut plan, left_at * MS, crash);
        at(
            &mut plan,
            (left_at + 20) * MS,
            Action::Retire { machine: 2 },
        );
        at(
            &mut plan,
            (left_at + 40) * MS,
            Action::Retire { machine: 0 },
        );
        let outcome = run(&plan);
        let all = outcome.futures.iter();
        assert!(all.clone().all(|(_, state)| *state == "finished"));
    }
}

/// What a queued task needs is lost with its worker.
#[test]
fn issue_8702_an_input_of_queued_tasks_is_lost() {
    for crashed_at in (30..200).step_by(5) {
        let mut tasks = vec![task("x-0", &[], 10 * MS, 0)];
        tasks.extend((1..30).map(|number| Task::new(&format!("y-{number}"), &[0])));
        let mut plan = plan(3, tasks);
        plan.settings.worker_saturation = 1.0;
        let all: Vec<usize> = (0..30).collect();
        submit(&mut plan, 10 * MS, &all, &all[1..]);
        let crash = Action::Crash {
            machine: 0,
            flushed: true,
            returns: Some(100 * MS),
            same_address: false,
        };
        at(&mut plan, crashed_at * MS, crash);
        let outcome = run(&plan);
        let all = outcome.futures.iter();
        assert!(all.clone().all(|(_, state)| *state == "finished"));
    }
}

/// What is being computed again was in memory, and fails now.
#[test]
fn issue_8548_a_lost_result_whose_inputs_fail_takes_its_dependents_with_it() {
    for crashed_at in (60..200).step_by(5) {
        let tasks = vec![
            task("f-0", &[], 10 * MS, 0),
            task("g-0", &[0], 10 * MS, 0),
            task("h-0", &[1], 60 * MS, 0),
            task("h-1", &[1], 60 * MS, 1),
        ];
        let mut plan = plan(2, tasks);
        plan.settings.allowed_failures = 0;
        submit(&mut plan, 10 * MS, &[0, 1, 2, 3], &[2, 3]);
        let crash = |machine| Action::Crash {
            machine,
            flushed: false,
            returns: Some(10 * MS),
            same_address: false,
        };
        at(&mut plan, crashed_at * MS, crash(0));
        at(&mut plan, (crashed_at + 40) * MS, crash(0));
        let outcome = run(&plan);
        assert!(["error", "finished"].contains(&future(&outcome, "h-0")));
        assert!(["error", "finished"].contains(&future(&outcome, "h-1")));
    }
}

/// A task is fetched, not wanted any more, and then to be computed by the one that fetched
/// it, and stolen.
#[test]
fn issue_6159_what_was_fetched_is_computed_and_stolen() {
    for cancelled_at in (40..90).step_by(2) {
        let tasks = vec![
            task("x-0", &[], 20 * MS, 0),
            task("y-0", &[0], 10 * MS, 1),
            task("z-0", &[0], 10 * MS, 1),
        ];
        let mut plan = plan(2, tasks);
        plan.settings.work_stealing = true;
        submit(&mut plan, 10 * MS, &[0, 1], &[1]);
        let (machine, time) = (0, 300 * MS);
        at(&mut plan, 32 * MS, Action::Freeze { machine, time });
        let tasks = vec![1];
        at(
            &mut plan,
            cancelled_at * MS,
            Action::Release { client: 0, tasks },
        );
        let crash = Action::Crash {
            machine,
            flushed: false,
            returns: None,
            same_address: false,
        };
        at(&mut plan, (cancelled_at + 5) * MS, crash);
        submit(&mut plan, (cancelled_at + 6) * MS, &[0, 2], &[2]);
        let outcome = run(&plan);
        assert_eq!(future(&outcome, "z-0"), "finished");
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
