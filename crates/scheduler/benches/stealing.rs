//! Rounds of work stealing, and of the memory manager for workers that retire, on
//! 1,000 workers with 100,000 tasks. What counts is the longest round. Every run has the
//! same rounds, so each counts with its best time of five runs.

#![expect(clippy::print_stdout, reason = "it shows a table")]

#[allow(dead_code, reason = "each benchmark uses a part")]
mod cluster;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{NOW, cluster, collect, finished, graph, independent};
use oxidask_scheduler::extensions::Extensions;
use oxidask_scheduler::graph::Graph;
use oxidask_scheduler::{
    ClientId, Config, Event, Instruction, Instructions, RequestId, Scheduler, ToWorker, WorkerId,
};
use oxidask_wire::{Key, Value, map};

/// The allocator that the scheduler process uses.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WORKERS: u32 = 1_000;
const TASKS: u32 = 100_000;
/// Tasks that the others depend on, where there are dependencies.
const ROOTS: u32 = 1_000;
const RUNS: usize = 5;

fn main() {
    // `cargo test --benches` passes other arguments.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!(
        "{:44} {:>7} {:>10} {:>12} {:>10}",
        "", "rounds", "total ms", "longest ms", "median ms"
    );
    show("500 idle workers, tasks without inputs", || {
        steal(bag, false)
    });
    show("500 idle workers, tasks with two inputs", || {
        steal(fan, false)
    });
    show("none of the tasks may go elsewhere", || steal(bag, true));
    show("none of those with inputs may", || steal(fan, true));
    show("500 workers retire with all results", retire);
}

fn show(name: &str, run: impl Fn() -> Vec<Duration>) {
    let mut times = run();
    for _ in 1..RUNS {
        for (best, time) in times.iter_mut().zip(run()) {
            *best = time.min(*best);
        }
    }
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    let total: Duration = times.iter().sum();
    times.sort_unstable();
    println!(
        "{name:44} {:>7} {:>10.1} {:>12.2} {:>10.2}",
        times.len(),
        milliseconds(total),
        milliseconds(times[times.len() - 1]),
        milliseconds(times[times.len() / 2]),
    );
}

fn bag(client: ClientId) -> Graph {
    graph(client, TASKS, independent)
}

fn fan(client: ClientId) -> Graph {
    let needs = |index: u32| (index >= ROOTS).then(|| [index % ROOTS, index * 7 % ROOTS]);
    let mut fan = graph(client, TASKS, needs);
    fan.requested.clone_from(&fan.keys);
    fan
}

/// What is assigned: worker, key and run.
type Work = Vec<(WorkerId, Key, i64)>;

/// 100,000 tasks on half of the workers; the others are idle. If `restricted`, they
/// may not go there.
fn half_loaded(shape: fn(ClientId) -> Graph, restricted: bool) -> (Scheduler, Work) {
    let config = Config {
        worker_saturation: f64::INFINITY,
        ..Config::default()
    };
    let (mut scheduler, client) = cluster(WORKERS, 2, config);
    let mut submitted = shape(client);
    let names = scheduler.workers().map(|(_, worker)| &worker.address);
    let names: Value = names.take(WORKERS as usize / 2).map(Value::from).collect();
    let annotations = map! { "workers" => names, "allow_other_workers" => !restricted };
    submitted.global_annotations = Some(Arc::new(annotations));

    let mut out = Instructions::default();
    let mut work = Work::new();
    scheduler.handle(NOW, Event::UpdateGraph(Box::new(submitted)), &mut out);
    collect(&scheduler, &mut out, &mut work);
    while scheduler.has_pending_work() {
        scheduler.handle(NOW, Event::Continue, &mut out);
        collect(&scheduler, &mut out, &mut work);
    }
    if work.len() < TASKS as usize {
        for (worker, key, run_id) in std::mem::take(&mut work) {
            scheduler.handle(NOW, finished(worker, key, run_id), &mut out);
            collect(&scheduler, &mut out, &mut work);
        }
    }
    (scheduler, work)
}

/// Rounds until there is nothing to ask for, at least ten; every request is granted.
fn steal(shape: fn(ClientId) -> Graph, restricted: bool) -> Vec<Duration> {
    let (mut scheduler, work) = half_loaded(shape, restricted);
    assert!(work.len() >= (TASKS - ROOTS) as usize);
    let mut out = Instructions::default();
    let mut times = Vec::new();
    let mut now = NOW;
    let mut asked = 0;
    loop {
        now += 2.0;
        let ((), elapsed) = timed(|| scheduler.handle(now, Event::Tick, &mut out));
        times.push(elapsed);
        let mut answers = Vec::new();
        for instruction in out.drain(..) {
            if let Instruction::ToWorker {
                worker,
                message: ToWorker::StealRequest { key, stimulus_id },
            } = instruction
            {
                answers.push(Event::StealResponse {
                    worker,
                    key,
                    state: Some("ready".into()),
                    stimulus_id,
                });
            }
        }
        asked += answers.len();
        if answers.is_empty() && times.len() >= 10 {
            assert_eq!(asked == 0, restricted);
            return times;
        }
        for answer in answers {
            scheduler.handle(now, answer, &mut out);
            out.clear();
        }
    }
}

/// Parts of the run in which all results of 500 workers are given to the others.
fn retire() -> Vec<Duration> {
    let (mut scheduler, work) = half_loaded(bag, true);
    let mut out = Instructions::default();
    let mut workers: Vec<WorkerId> = work.iter().map(|(worker, _, _)| *worker).collect();
    workers.sort_unstable();
    workers.dedup();
    for (worker, key, run_id) in work {
        scheduler.handle(NOW, finished(worker, key, run_id), &mut out);
    }
    out.clear();
    let addresses = workers
        .iter()
        .filter_map(|worker| scheduler.worker(*worker));
    let addresses: Value = addresses
        .map(|worker| Value::from(&worker.address))
        .collect();
    let mut arguments = map! { "workers" => addresses };
    let mut extensions = Extensions::new(scheduler.config());
    let mut times = Vec::new();
    let (_, elapsed) = timed(|| {
        extensions.rpc(
            &mut scheduler,
            NOW,
            RequestId(1),
            "retire_workers",
            &mut arguments,
            &mut out,
        )
    });
    times.push(elapsed);
    let mut asked = 0;
    let mut now = NOW;
    loop {
        for instruction in out.drain(..) {
            if let Instruction::ToWorker {
                message: ToWorker::AcquireReplicas { who_has, .. },
                ..
            } = instruction
            {
                asked += who_has.len();
            }
        }
        if asked >= TASKS as usize {
            return times;
        }
        now += 0.001;
        let ((), elapsed) = timed(|| extensions.tick(&mut scheduler, now, &mut out));
        times.push(elapsed);
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn timed<T>(function: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let result = function();
    (result, begun.elapsed())
}
