//! Graphs of a million tasks.

use bytes::Bytes;
use oxidask_scheduler::{
    Config, Event, Instruction, Instructions, NewWorker, Scheduler, State, Status, ToWorker,
    WorkerId,
};
use oxidask_wire::{Key, Map, Str, Value};

use crate::env::{graph, startstops};

const COUNT: usize = 1_000_000;

struct Cluster {
    scheduler: Scheduler,
    worker: WorkerId,
}

impl Cluster {
    fn new() -> Self {
        let mut scheduler = Scheduler::new(Config::default());
        let mut out = Instructions::default();
        let worker = NewWorker {
            address: "tcp://alice:1".into(),
            name: Value::from("alice"),
            nthreads: 2,
            memory_limit: None,
            local_directory: Str::default(),
            resources: Vec::new(),
            status: Status::Running,
            nanny: None,
            pid: 1,
            server_id: Str::default(),
            services: Value::Nil,
            versions: Value::Nil,
            metrics: Value::Nil,
            worker_now: None,
            is_native: false,
            extra: Map::new(),
            stimulus_id: "s".into(),
        };
        scheduler.handle(1.0, Event::AddWorker(Box::new(worker)), &mut out);
        let versions = Value::Nil;
        scheduler.handle(
            1.0,
            Event::AddClient {
                name: "c".into(),
                versions,
            },
            &mut out,
        );
        let worker = scheduler.worker_id("tcp://alice:1").expect("just added");
        Self { scheduler, worker }
    }

    fn submit(&mut self, requested: Vec<Key>, tasks: &[(Key, Vec<Key>)]) -> Vec<(Key, i64)> {
        let client = self.scheduler.client_id("c").expect("added");
        let graph = graph(client, requested, tasks, 1.0, "s".into());
        self.handle(Event::UpdateGraph(Box::new(graph)))
    }

    /// Handles an event to its end; returns what the worker is to compute.
    fn handle(&mut self, event: Event) -> Vec<(Key, i64)> {
        let mut work = self.handle_once(event);
        while self.scheduler.has_pending_work() {
            work.extend(self.handle_once(Event::Continue));
        }
        work
    }

    fn handle_once(&mut self, event: Event) -> Vec<(Key, i64)> {
        let mut out = Instructions::default();
        self.scheduler.handle(1.0, event, &mut out);
        out.drain(..)
            .filter_map(|instruction| match instruction {
                Instruction::ToWorker {
                    worker,
                    message: ToWorker::ComputeTask { task, run_id, .. },
                } => {
                    let message = self.scheduler.compute_task(worker, task, run_id)?;
                    Some((message.key().clone(), run_id))
                }
                _ => None,
            })
            .collect()
    }

    fn finish(&mut self, (key, run_id): (Key, i64)) -> Vec<(Key, i64)> {
        self.handle(Event::TaskFinished {
            worker: self.worker,
            key,
            run_id,
            nbytes: 8,
            r#type: Bytes::new(),
            typename: Str::from("int"),
            metadata: Value::Nil,
            thread: Value::Nil,
            startstops: startstops(1.0, 0.0),
            stimulus_id: "s".into(),
        })
    }

    fn fail(&mut self, (key, run_id): (Key, i64)) {
        self.handle(Event::TaskErred {
            worker: self.worker,
            key,
            run_id,
            exception: Value::Nil,
            traceback: Value::Nil,
            exception_text: Str::default(),
            traceback_text: Str::default(),
            thread: Value::Nil,
            startstops: Value::Nil,
            stimulus_id: "s".into(),
        });
    }

    fn run(&mut self, mut work: Vec<(Key, i64)>) {
        while let Some(task) = work.pop() {
            work.extend(self.finish(task));
        }
    }

    fn disconnect(&mut self) {
        let client = self.scheduler.client_id("c").expect("added");
        let stimulus_id = "s".into();
        self.handle(Event::RemoveClient {
            client,
            stimulus_id,
        });
        self.scheduler.validate_empty();
    }

    fn count(&self, state: State) -> usize {
        self.scheduler
            .prefixes()
            .map(|prefix| prefix.count(state) as usize)
            .sum()
    }
}

fn key(index: usize) -> Key {
    Key::from(format!("x-{index}").as_str())
}

fn chain() -> Vec<(Key, Vec<Key>)> {
    (0..COUNT)
        .map(|index| {
            (
                key(index),
                (index > 0).then(|| key(index - 1)).into_iter().collect(),
            )
        })
        .collect()
}

#[test]
fn a_chain_runs_to_its_end() {
    let mut cluster = Cluster::new();
    let work = cluster.submit(vec![key(COUNT - 1)], &chain());
    assert_eq!(cluster.count(State::Waiting), COUNT - 1);
    cluster.run(work);
    assert_eq!(cluster.count(State::Memory), 1);
    cluster.disconnect();
}

#[test]
fn a_chain_fails_from_its_root() {
    let mut cluster = Cluster::new();
    let mut work = cluster.submit(vec![key(COUNT - 1)], &chain());
    cluster.fail(work.pop().expect("the root runs"));
    assert_eq!(cluster.count(State::Erred), COUNT);
    cluster.disconnect();
}

#[test]
fn a_chain_is_cancelled_from_its_root() {
    let mut cluster = Cluster::new();
    let all: Vec<Key> = (0..COUNT).map(key).collect();
    cluster.submit(all, &chain());
    let client = cluster.scheduler.client_id("c").expect("added");
    cluster.handle(Event::CancelKeys {
        client,
        keys: vec![key(0)],
        force: false,
        reason: Value::Nil,
        msg: Value::Nil,
        stimulus_id: "s".into(),
    });
    cluster.scheduler.validate_empty();
}

#[test]
fn a_fan_opens_and_closes() {
    let mut cluster = Cluster::new();
    let root = Key::from("root-0");
    let leaf = Key::from("leaf-0");
    let mut tasks = vec![(root.clone(), Vec::new())];
    tasks.extend((0..COUNT).map(|index| (key(index), vec![root.clone()])));
    tasks.push((leaf.clone(), (0..COUNT).map(key).collect()));
    let work = cluster.submit(vec![leaf], &tasks);
    cluster.run(work);
    assert_eq!(cluster.count(State::Memory), 1);
    cluster.disconnect();
}

#[test]
fn a_million_tasks_lose_their_worker() {
    let mut cluster = Cluster::new();
    let all: Vec<Key> = (0..COUNT).map(key).collect();
    let tasks: Vec<(Key, Vec<Key>)> = all.iter().map(|key| (key.clone(), Vec::new())).collect();
    let work = cluster.submit(all, &tasks);
    cluster.run(work);
    assert_eq!(cluster.count(State::Memory), COUNT);
    cluster.handle(Event::RemoveWorker {
        worker: cluster.worker,
        stimulus_id: "s".into(),
        expected: false,
        close: false,
    });
    assert_eq!(
        cluster.count(State::Queued) + cluster.count(State::NoWorker),
        COUNT
    );
    cluster.disconnect();
}
