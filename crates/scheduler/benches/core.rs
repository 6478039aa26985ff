//! The pure core: events in, instructions out, no wire and no Python.

mod cluster;

use cluster::{NOW, cluster, collect, finished, graph, independent, tree};
use divan::counter::ItemsCount;
use oxidask_scheduler::graph::Graph;
use oxidask_scheduler::{Config, Event, Instructions, Scheduler, WorkerId};
use oxidask_wire::Key;

/// The allocator that the scheduler process uses.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

const TREE_LEAVES: u32 = 1 << 15;

/// Submits, answers every assignment at once, releases everything. Returns the number of tasks run.
fn run(mut scheduler: Scheduler, graph: Graph) -> usize {
    let requested = graph.requested.clone();
    let mut out = Instructions::default();
    let mut work: Vec<(WorkerId, Key, i64)> = Vec::new();
    let mut run_count = 0;

    scheduler.handle(NOW, Event::UpdateGraph(Box::new(graph)), &mut out);
    collect(&scheduler, &mut out, &mut work);
    while scheduler.has_pending_work() {
        scheduler.handle(NOW, Event::Continue, &mut out);
        collect(&scheduler, &mut out, &mut work);
    }
    let mut next = 0;
    while next < work.len() {
        let (worker, key, run_id) = work[next].clone();
        next += 1;
        run_count += 1;
        scheduler.handle(NOW, finished(worker, key, run_id), &mut out);
        collect(&scheduler, &mut out, &mut work);
        if next > 4096 {
            work.drain(..next);
            next = 0;
        }
    }
    for keys in requested.chunks(100) {
        let event = Event::ClientReleasesKeys {
            client: "client".into(),
            keys: keys.to_vec(),
            stimulus_id: "release".into(),
        };
        scheduler.handle(NOW, event, &mut out);
        out.clear();
        while scheduler.has_pending_work() {
            scheduler.handle(NOW, Event::Continue, &mut out);
            out.clear();
        }
    }
    assert_eq!(scheduler.n_tasks(), 0);
    run_count
}

#[divan::bench(args = [10, 1000], sample_count = 5, sample_size = 1)]
fn map(bencher: divan::Bencher, workers: u32) {
    let count = 100_000;
    bencher
        .counter(ItemsCount::new(count as usize))
        .with_inputs(|| {
            let (scheduler, client) = cluster(workers, 2, Config::default());
            (scheduler, graph(client, count, independent))
        })
        .bench_values(|(scheduler, graph)| assert_eq!(run(scheduler, graph), count as usize));
}

#[divan::bench(args = [10, 1000], sample_count = 5, sample_size = 1)]
fn map_without_queuing(bencher: divan::Bencher, workers: u32) {
    let count = 100_000;
    let config = Config {
        worker_saturation: f64::INFINITY,
        ..Config::default()
    };
    bencher
        .counter(ItemsCount::new(count as usize))
        .with_inputs(|| {
            let (scheduler, client) = cluster(workers, 2, config.clone());
            (scheduler, graph(client, count, independent))
        })
        .bench_values(|(scheduler, graph)| assert_eq!(run(scheduler, graph), count as usize));
}

#[divan::bench(args = [10, 1000], sample_count = 5, sample_size = 1)]
fn tree_reduction(bencher: divan::Bencher, workers: u32) {
    let count = 2 * TREE_LEAVES - 1;
    bencher
        .counter(ItemsCount::new(count as usize))
        .with_inputs(|| {
            let (scheduler, client) = cluster(workers, 2, Config::default());
            (scheduler, graph(client, count, tree(TREE_LEAVES)))
        })
        .bench_values(|(scheduler, graph)| assert_eq!(run(scheduler, graph), count as usize));
}

/// One `submit` after the other, as `client.submit` in a loop.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn submit_one_by_one(bencher: divan::Bencher) {
    let count = 20_000;
    bencher
        .counter(ItemsCount::new(count as usize))
        .with_inputs(|| {
            let (scheduler, client) = cluster(10, 2, Config::default());
            let single: Vec<Graph> = (0..count)
                .map(|index| {
                    let mut one = graph(client, 1, independent);
                    one.keys = vec![Key::from(format!("inc-{index:032x}").as_str())];
                    one.requested = one.keys.clone();
                    one
                })
                .collect();
            (scheduler, single)
        })
        .bench_values(|(mut scheduler, graphs)| {
            let mut out = Instructions::default();
            for graph in graphs {
                scheduler.handle(NOW, Event::UpdateGraph(Box::new(graph)), &mut out);
                out.clear();
            }
        });
}

#[divan::bench(args = [1000], sample_count = 5, sample_size = 1)]
fn register_workers(workers: u32) -> usize {
    cluster(workers, 2, Config::default()).0.n_workers()
}
