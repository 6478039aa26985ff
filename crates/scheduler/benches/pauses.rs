//! How long others wait while much is released: the longest event of each case.
//!
//! What counts is the worst event, not the mean. Every run has the same events, so
//! each counts with its best time of five runs: what is left is not the machine's.

#![expect(clippy::print_stdout, reason = "it shows a table")]

mod cluster;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{NOW, cluster, collect, finished, graph, independent, tree};
use oxidask_scheduler::graph::Graph;
use oxidask_scheduler::{ClientId, Config, Event, Instructions, Scheduler, WorkerId};
use oxidask_wire::Key;

/// The allocator that the scheduler process uses.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const COUNT: u32 = 200_000;
const RUNS: usize = 5;
/// As the shell does it.
const LOOKUPS_PER_TURN: usize = 2000;

/// A case: what the client holds, whether it was computed, and how it goes.
type Case = (&'static str, fn(ClientId) -> Graph, bool, Departure);

#[derive(Clone, Copy)]
enum Departure {
    Releases,
    Leaves,
}

fn map(client: ClientId) -> Graph {
    graph(client, COUNT, independent)
}

fn reduction(client: ClientId) -> Graph {
    graph(client, COUNT - 1, tree(COUNT / 2))
}

/// One task that depends on all others.
fn fan(client: ClientId) -> Graph {
    let mut fan = graph(client, COUNT, independent);
    fan.requested = vec![fan.keys[COUNT as usize - 1].clone()];
    fan.dependencies = (0..COUNT - 1).collect();
    fan.dependency_offsets[COUNT as usize] = COUNT - 1;
    fan
}

const CASES: [Case; 8] = [
    ("releases 200k results", map, true, Departure::Releases),
    ("leaves 200k results", map, true, Departure::Leaves),
    (
        "releases 200k queued tasks",
        map,
        false,
        Departure::Releases,
    ),
    ("leaves 200k queued tasks", map, false, Departure::Leaves),
    (
        "releases the root of a tree of 200k",
        reduction,
        true,
        Departure::Releases,
    ),
    (
        "leaves a tree of 200k in progress",
        reduction,
        false,
        Departure::Leaves,
    ),
    ("releases the sum of 200k", fan, true, Departure::Releases),
    (
        "leaves a sum of 200k in progress",
        fan,
        false,
        Departure::Leaves,
    ),
];

fn main() {
    // `cargo test --benches` passes other arguments.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!(
        "{:36} {:>7} {:>10} {:>12} {:>10}",
        "the client", "events", "total ms", "longest ms", "99 % ms"
    );
    for case in CASES {
        let mut times = pauses(case);
        for _ in 1..RUNS {
            for (best, time) in times.iter_mut().zip(pauses(case)) {
                *best = time.min(*best);
            }
        }
        let total: Duration = times.iter().sum();
        times.sort_unstable();
        let at = (times.len() - 1) * 99 / 100;
        println!(
            "{:36} {:>7} {:>10.1} {:>12.2} {:>10.2}",
            case.0,
            times.len(),
            milliseconds(total),
            milliseconds(times[times.len() - 1]),
            milliseconds(times[at]),
        );
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// How long each event took, from the departure until nothing is left.
fn pauses((_, graph, is_computed, departure): Case) -> Vec<Duration> {
    let (mut scheduler, client) = cluster(10, 2, Config::default());
    let graph = graph(client);
    let keys = graph.requested.clone();
    submit(&mut scheduler, graph, is_computed);

    let stimulus_id = "away".into();
    let mut times = Vec::new();
    let event = match departure {
        Departure::Releases => {
            let mut tasks = Vec::with_capacity(keys.len());
            for keys in keys.chunks(LOOKUPS_PER_TURN) {
                let (found, elapsed) = timed(|| scheduler.refs(keys));
                tasks.extend(found);
                times.push(elapsed);
            }
            Event::ClientReleasesTasks {
                client: Arc::from("client"),
                tasks,
                stimulus_id,
            }
        }
        Departure::Leaves => Event::RemoveClient {
            client,
            stimulus_id,
        },
    };
    times.push(handled(&mut scheduler, event));
    while scheduler.has_pending_work() {
        times.push(handled(&mut scheduler, Event::Continue));
    }
    // What the last event left to be tidied up.
    times.push(handled(&mut scheduler, Event::Tick));
    assert_eq!(scheduler.n_tasks(), 0);
    times
}

fn handled(scheduler: &mut Scheduler, event: Event) -> Duration {
    let mut out = Instructions::default();
    let ((), elapsed) = timed(|| scheduler.handle(NOW, event, &mut out));
    elapsed
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn timed<T>(function: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let result = function();
    (result, begun.elapsed())
}

fn submit(scheduler: &mut Scheduler, graph: Graph, is_computed: bool) {
    let mut out = Instructions::default();
    let mut work: Vec<(WorkerId, Key, i64)> = Vec::new();
    scheduler.handle(NOW, Event::UpdateGraph(Box::new(graph)), &mut out);
    collect(scheduler, &mut out, &mut work);
    while scheduler.has_pending_work() {
        scheduler.handle(NOW, Event::Continue, &mut out);
        collect(scheduler, &mut out, &mut work);
    }
    while is_computed && let Some((worker, key, run_id)) = work.pop() {
        scheduler.handle(NOW, finished(worker, key, run_id), &mut out);
        collect(scheduler, &mut out, &mut work);
    }
}
