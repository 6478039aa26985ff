//! What the benchmarks of the core share.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_scheduler::graph::{Actors, Graph, Number, RunSpec, TaskFlags};
use oxidask_scheduler::{
    ClientId, Config, Event, Instruction, Instructions, NewWorker, Scheduler, Status, ToWorker,
    WorkerId,
};
use oxidask_wire::{Key, Map, Str, Value};

/// The time of every event.
pub(crate) const NOW: f64 = 1_700_000_000.0;

/// Without dependencies.
pub(crate) fn independent(_: u32) -> Option<[u32; 2]> {
    None
}

/// A binary reduction of `2 * leaves - 1` tasks.
pub(crate) fn tree(leaves: u32) -> impl Fn(u32) -> Option<[u32; 2]> {
    move |index| (index >= leaves).then(|| [2 * (index - leaves), 2 * (index - leaves) + 1])
}

/// `shape` gives the dependencies of a task, as indices. The client asks for the
/// last task, or for all if they are independent.
pub(crate) fn graph(
    client: ClientId,
    count: u32,
    shape: impl Fn(u32) -> Option<[u32; 2]>,
) -> Graph {
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
        span_metadata: Value::Nil,
        stimulus_id: "update-graph".into(),
        start: NOW,
        keys,
    }
}

/// A scheduler with workers and one client.
pub(crate) fn cluster(workers: u32, nthreads: u32, config: Config) -> (Scheduler, ClientId) {
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
            is_native: false,
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

/// A worker's report that it ran a task.
pub(crate) fn finished(worker: WorkerId, key: Key, run_id: i64) -> Event {
    Event::TaskFinished {
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
        startstops: startstops(),
        stimulus_id: "task-finished".into(),
    }
}

/// Takes assignments out of the instructions, as `(worker, key, run_id)`.
pub(crate) fn collect(
    scheduler: &Scheduler,
    out: &mut Instructions,
    work: &mut Vec<(WorkerId, Key, i64)>,
) {
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
