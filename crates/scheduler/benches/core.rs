//! The pure core: events in, instructions out, no wire and no Python.

use std::sync::Arc;

use bytes::Bytes;
use divan::counter::ItemsCount;
use oxidask_scheduler::graph::{Actors, Graph, Number, RunSpec, TaskFlags};
use oxidask_scheduler::{
    ClientId, Config, Event, Instruction, Instructions, NewWorker, Scheduler, Status, StimulusId,
    ToWorker, WorkerId,
};
use oxidask_wire::{Key, Map, Str, Value};

/// The allocator that the scheduler process uses.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

const NOW: f64 = 1_700_000_000.0;

/// Dependencies of task `i`, as indices.
type Shape = fn(u32) -> Option<[u32; 2]>;

fn independent(_: u32) -> Option<[u32; 2]> {
    None
}

/// A binary reduction: the first half are leaves.
fn tree(index: u32) -> Option<[u32; 2]> {
    let leaves = TREE_LEAVES;
    (index >= leaves).then(|| [2 * (index - leaves), 2 * (index - leaves) + 1])
}

const TREE_LEAVES: u32 = 1 << 15;

fn graph(client: ClientId, count: u32, shape: Shape) -> Graph {
    let keys: Vec<Key> = (0..count)
        .map(|index| {
            let name = if shape(index).is_some() { "add" } else { "inc" };
            Key::from(
                format!(
                    "{name}-{:032x}-{index}",
                    u128::from(index) << 64 | 0x9e37_79b9
                )
                .as_str(),
            )
        })
        .collect();
    let mut dependency_offsets = vec![0];
    let mut dependencies = Vec::new();
    for index in 0..count {
        dependencies.extend(shape(index).into_iter().flatten());
        dependency_offsets.push(dependencies.len() as u32);
    }
    let requested = if dependencies.is_empty() {
        keys.clone()
    } else {
        keys.last().cloned().into_iter().collect()
    };
    Graph {
        client,
        requested,
        dependency_offsets,
        dependencies,
        flags: vec![TaskFlags::default(); count as usize],
        specs: vec![RunSpec::Pickle(Bytes::from_static(b"spec")); count as usize],
        bundles: Vec::new(),
        order: (0..i64::from(count)).collect(),
        annotations: Vec::new(),
        global_annotations: None,
        actors: Actors::None,
        user_priority: Number::Int(0),
        fifo_timeout: 0.1,
        submitting_task: None,
        barriers: Vec::new(),
        code: Value::Nil,
        stimulus_id: "update-graph".into(),
        start: NOW,
        keys,
    }
}

fn cluster(workers: u32, nthreads: u32, config: Config) -> (Scheduler, ClientId) {
    let mut scheduler = Scheduler::new(config);
    let mut out = Instructions::default();
    for index in 0..workers {
        let address: Arc<str> = format!("tcp://10.0.{}.{}:40000", index / 256, index % 256).into();
        let worker = NewWorker {
            name: Value::from(&*address),
            address,
            nthreads,
            memory_limit: None,
            local_directory: Str::default(),
            resources: Vec::new(),
            status: Status::Running,
            nanny: None,
            pid: 1,
            server_id: Str::from(format!("worker-{index}")),
            services: Value::Nil,
            versions: Value::Nil,
            metrics: Value::Nil,
            worker_now: None,
            extra: Map::new(),
            stimulus_id: "register".into(),
        };
        scheduler.handle(NOW, Event::AddWorker(Box::new(worker)), &mut out);
    }
    let name = "client".into();
    scheduler.handle(
        NOW,
        Event::AddClient {
            name,
            versions: Value::Nil,
        },
        &mut out,
    );
    let client = scheduler.client_id("client").expect("just added");
    (scheduler, client)
}

/// Submits, answers every assignment at once, releases everything. Returns the number of tasks run.
fn run(mut scheduler: Scheduler, graph: Graph) -> usize {
    let requested = graph.requested.clone();
    let startstops = startstops();
    let stimulus_id = StimulusId::from("task-finished");
    let mut out = Instructions::default();
    let mut work: Vec<(WorkerId, Key, i64)> = Vec::new();
    let mut finished = 0;

    scheduler.handle(NOW, Event::UpdateGraph(Box::new(graph)), &mut out);
    collect(&scheduler, &mut out, &mut work);
    while scheduler.has_pending_graphs() {
        scheduler.handle(NOW, Event::ContinueGraph, &mut out);
        collect(&scheduler, &mut out, &mut work);
    }
    let mut next = 0;
    while next < work.len() {
        let (worker, key, run_id) = work[next].clone();
        next += 1;
        finished += 1;
        let event = Event::TaskFinished {
            worker,
            key,
            run_id,
            nbytes: 28,
            r#type: Bytes::from_static(
                b"\x80\x05\x95\x14\0\0\0\0\0\0\0\x8c\x08builtins\x94\x8c\x03int\x94\x93\x94.",
            ),
            typename: Str::from_static("int"),
            metadata: Value::Nil,
            thread: Value::Int(1),
            startstops: startstops.clone(),
            stimulus_id: stimulus_id.clone(),
        };
        scheduler.handle(NOW, event, &mut out);
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
    }
    assert_eq!(scheduler.n_tasks(), 0);
    finished
}

fn collect(scheduler: &Scheduler, out: &mut Instructions, work: &mut Vec<(WorkerId, Key, i64)>) {
    for instruction in out.drain(..) {
        if let Instruction::ToWorker {
            worker,
            message: ToWorker::ComputeTask { task, run_id, .. },
        } = instruction
        {
            let message = scheduler
                .compute_task(worker, task, run_id)
                .expect("just assigned");
            work.push((worker, message.key().clone(), run_id));
        }
    }
}

fn startstops() -> Value {
    let mut startstop = Map::new();
    startstop.push("action", "compute");
    startstop.push("start", NOW);
    startstop.push("stop", NOW + 0.001);
    Value::Array(vec![Value::Map(startstop)])
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
            (scheduler, graph(client, count, tree))
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
