//! A scheduler with its extensions, driven by hand.

#![allow(dead_code, reason = "each test crate uses a part")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use oxidask_scheduler::extensions::{Extensions, InputsDone};
use oxidask_scheduler::graph::{Actors, Graph, Number, RunSpec, TaskFlags};
use oxidask_scheduler::instruction::CreateShuffleRun;
use oxidask_scheduler::{
    ClientId, Config, Event, Instruction, Instructions, NewWorker, RequestId, Scheduler, State,
    Status, ToClient, ToWorker, WorkerId,
};
use oxidask_wire::{Key, Map, Pickled, Str, Value, map};

/// A request's reply, or the `repr` of the exception.
pub(crate) type Outcome = Result<Value, String>;

pub(crate) struct Env {
    pub(crate) scheduler: Scheduler,
    pub(crate) extensions: Extensions,
    pub(crate) now: f64,
    last_request: u64,
    outcomes: BTreeMap<u64, Outcome>,
    /// What came out since the last [`Env::take`], replies left out.
    out: Vec<Instruction>,
}

impl Env {
    pub(crate) fn new() -> Self {
        let config = Config::default();
        Self {
            extensions: Extensions::new(&config),
            scheduler: Scheduler::new(config),
            now: 1000.0,
            last_request: 0,
            outcomes: BTreeMap::new(),
            out: Vec::new(),
        }
    }

    fn absorb(&mut self, out: Instructions) {
        for instruction in out.0 {
            match instruction {
                Instruction::Reply { request, result } => {
                    let result = result.map_err(|failure| failure.text);
                    let old = self.outcomes.insert(request.0, result);
                    assert!(old.is_none(), "{request:?} was answered twice");
                }
                Instruction::LogEvent { .. } | Instruction::BarrierLeft { .. } => {
                    panic!("{instruction:?} got past the extensions")
                }
                other => self.out.push(other),
            }
        }
        self.extensions.validate(&self.scheduler);
        self.scheduler.validate();
    }

    /// Hands an event to the scheduler.
    pub(crate) fn event(&mut self, event: Event) {
        let mut out = Instructions::default();
        self.extensions.before(&event);
        self.scheduler.handle(self.now, event, &mut out);
        self.extensions
            .observe(&mut self.scheduler, self.now, &mut out);
        self.absorb(out);
    }

    /// Sends a request.
    pub(crate) fn request(&mut self, op: &str, mut arguments: Map) -> RequestId {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        let mut out = Instructions::default();
        let ours = self.extensions.rpc(
            &mut self.scheduler,
            self.now,
            request,
            op,
            &mut arguments,
            &mut out,
        );
        assert!(ours, "{op} is not known");
        self.absorb(out);
        request
    }

    /// Sends a request that is answered at once.
    pub(crate) fn call(&mut self, op: &str, arguments: Map) -> Outcome {
        let request = self.request(op, arguments);
        self.outcome(request)
            .unwrap_or_else(|| panic!("{op} waits"))
    }

    /// The answer to a request, if there is one.
    pub(crate) fn outcome(&self, request: RequestId) -> Option<Outcome> {
        self.outcomes.get(&request.0).cloned()
    }

    pub(crate) fn cancel(&mut self, request: RequestId) {
        let mut out = Instructions::default();
        self.extensions
            .cancel(&mut self.scheduler, self.now, request, &mut out);
        self.absorb(out);
    }

    pub(crate) fn client_stream(&mut self, client: ClientId, op: &str, fields: Map) {
        let mut out = Instructions::default();
        let known = self.extensions.client_stream(
            &mut self.scheduler,
            self.now,
            client,
            op,
            fields,
            &mut out,
        );
        assert_eq!(known, Ok(true));
        self.absorb(out);
    }

    pub(crate) fn worker_stream(&mut self, worker: WorkerId, op: &str, fields: Map) {
        let mut out = Instructions::default();
        let known = self.extensions.worker_stream(
            &mut self.scheduler,
            self.now,
            worker,
            op,
            fields,
            &mut out,
        );
        assert_eq!(known, Ok(true));
        self.absorb(out);
    }

    /// Lets time pass, stopping at every deadline.
    pub(crate) fn advance(&mut self, seconds: f64) {
        let until = self.now + seconds;
        while let Some(deadline) = self.extensions.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(deadline);
            let mut out = Instructions::default();
            self.extensions
                .tick(&mut self.scheduler, self.now, &mut out);
            self.absorb(out);
            let next = self.extensions.next_deadline();
            assert!(
                next.is_none_or(|at| at > deadline),
                "a tick at {deadline} changed nothing"
            );
        }
        self.now = until;
    }

    /// What came out since the last time.
    pub(crate) fn take(&mut self) -> Vec<Instruction> {
        std::mem::take(&mut self.out)
    }

    /// Messages to workers since the last time, other than `compute-task`: (address, message).
    pub(crate) fn take_to_workers(&mut self) -> Vec<(Arc<str>, ToWorker)> {
        let mut messages = Vec::new();
        for instruction in self.take() {
            if let Instruction::ToWorker { worker, message } = instruction
                && !matches!(message, ToWorker::ComputeTask { .. })
                && let Some(worker) = self.scheduler.worker(worker)
            {
                messages.push((worker.address.clone(), message));
            }
        }
        messages
    }

    /// Events sent to a client since the last time.
    pub(crate) fn take_events(&mut self, client: ClientId) -> Vec<(Arc<str>, Value)> {
        let mut events = Vec::new();
        for instruction in self.take() {
            if let Instruction::ToClient {
                client: to,
                message: ToClient::Event { topic, event },
            } = instruction
                && to == client
            {
                events.push((topic, event.as_array().unwrap()[1].clone()));
            }
        }
        events
    }

    /// Layouts of shuffles asked for since the last time.
    pub(crate) fn take_creations(&mut self) -> Vec<CreateShuffleRun> {
        let creations = self
            .take()
            .into_iter()
            .filter_map(|instruction| match instruction {
                Instruction::CreateShuffleRun(create) => Some(*create),
                _ => None,
            });
        creations.collect()
    }

    pub(crate) fn add_client(&mut self, name: &str) -> ClientId {
        self.event(Event::AddClient {
            name: name.into(),
            versions: Value::Nil,
        });
        self.scheduler.client_id(name).unwrap()
    }

    pub(crate) fn remove_client(&mut self, client: ClientId) {
        self.event(Event::RemoveClient {
            client,
            stimulus_id: "remove-client".into(),
        });
    }

    pub(crate) fn add_worker(&mut self, address: &str) -> WorkerId {
        self.add_worker_of(address, None)
    }

    pub(crate) fn add_worker_of(&mut self, address: &str, nanny: Option<&str>) -> WorkerId {
        self.event(Event::AddWorker(Box::new(NewWorker {
            address: address.into(),
            name: Value::from(address),
            nthreads: 1,
            memory_limit: Some(1 << 30),
            local_directory: Str::from("/tmp"),
            resources: Vec::new(),
            status: Status::Init,
            nanny: nanny.map(Str::from),
            pid: 1,
            server_id: Str::from("Worker-1"),
            services: Map::new().into(),
            versions: Value::Nil,
            metrics: map! { "memory" => 0, "spilled_bytes" => map! { "memory" => 0, "disk" => 0 } }
                .into(),
            worker_now: None,
            is_native: false,
            extra: Map::new(),
            stimulus_id: "add-worker".into(),
        })));
        let worker = self.scheduler.worker_id(address).unwrap();
        self.set_status(worker, Status::Running);
        worker
    }

    pub(crate) fn set_status(&mut self, worker: WorkerId, status: Status) {
        self.event(Event::WorkerStatusChange {
            worker,
            status,
            stimulus_id: "status".into(),
        });
    }

    pub(crate) fn remove_worker(&mut self, worker: WorkerId, stimulus_id: &str) {
        self.event(Event::RemoveWorker {
            worker,
            stimulus_id: stimulus_id.into(),
            expected: false,
            close: false,
        });
    }

    /// Submits tasks with their dependencies. A key that begins with
    /// `shuffle-barrier-` is a P2P barrier.
    pub(crate) fn submit(
        &mut self,
        client: ClientId,
        tasks: &[(&str, &[&str])],
        requested: &[&str],
    ) {
        let mut keys: Vec<&str> = tasks.iter().map(|(key, _)| *key).collect();
        let mut offsets = vec![0];
        let mut dependencies = Vec::new();
        for (_, names) in tasks {
            for name in *names {
                let at = keys.iter().position(|key| key == name).unwrap_or_else(|| {
                    keys.push(name);
                    keys.len() - 1
                });
                dependencies.push(at as u32);
            }
            offsets.push(dependencies.len() as u32);
        }
        let flags = tasks.iter().map(|(key, _)| {
            let barrier = key.starts_with("shuffle-barrier-");
            TaskFlags(if barrier { TaskFlags::BARRIER } else { 0 })
        });
        let barriers = tasks.iter().enumerate().filter_map(|(at, (key, _))| {
            Some((at as u32, key.strip_prefix("shuffle-barrier-")?.into()))
        });
        let graph = Graph {
            client,
            requested: requested.iter().map(|key| Key::from(*key)).collect(),
            keys: keys.iter().map(|key| Key::from(*key)).collect(),
            dependency_offsets: offsets,
            dependencies,
            flags: flags.collect(),
            specs: tasks
                .iter()
                .map(|(key, _)| RunSpec::Pickle(Bytes::from(key.to_string())))
                .collect(),
            bundles: Vec::new(),
            order: (0..tasks.len() as i64).collect(),
            annotations: Vec::new(),
            global_annotations: None,
            actors: Actors::None,
            user_priority: Number::Int(0),
            fifo_timeout: 60.0,
            submitting_task: None,
            barriers: barriers.collect(),
            code: Value::Nil,
            span_metadata: Value::Nil,
            stimulus_id: "update-graph".into(),
            start: self.now,
        };
        self.event(Event::UpdateGraph(Box::new(graph)));
    }

    pub(crate) fn state(&self, key: &str) -> Option<State> {
        self.scheduler
            .find_task(&Key::from(key))
            .map(|task| task.state)
    }

    /// The worker that a task is assigned to.
    pub(crate) fn processing_on(&self, key: &str) -> Option<WorkerId> {
        self.scheduler.find_task(&Key::from(key))?.processing_on
    }

    /// The worker that a task is assigned to reports success.
    pub(crate) fn finish(&mut self, key: &str) {
        let task = self.scheduler.find_task(&Key::from(key)).unwrap();
        let worker = task
            .processing_on
            .unwrap_or_else(|| panic!("{key} is {}", task.state));
        let run_id = task.run_id;
        self.event(Event::TaskFinished {
            worker,
            key: key.into(),
            run_id,
            nbytes: 100,
            r#type: Bytes::from_static(b"type"),
            typename: Str::from("int"),
            metadata: map! { "seen" => key }.into(),
            thread: Value::from(7),
            startstops: self.startstops(),
            stimulus_id: "task-finished".into(),
        });
    }

    /// The worker that a task is assigned to reports failure.
    pub(crate) fn fail(&mut self, key: &str) {
        let task = self.scheduler.find_task(&Key::from(key)).unwrap();
        let event = Event::TaskErred {
            worker: task.processing_on.unwrap(),
            key: key.into(),
            run_id: task.run_id,
            exception: Value::from("exception"),
            traceback: Value::from("traceback"),
            exception_text: Str::from("E()"),
            traceback_text: Str::from("T"),
            thread: Value::from(7),
            startstops: self.startstops(),
            stimulus_id: "task-erred".into(),
        };
        self.event(event);
    }

    fn startstops(&self) -> Value {
        let action = map! { "action" => "compute", "start" => self.now - 0.01, "stop" => self.now };
        Value::Array(vec![action.into()])
    }

    /// Names of the clients that want a key.
    pub(crate) fn who_wants(&self, key: &str) -> Vec<String> {
        let Some(task) = self.scheduler.find_task(&Key::from(key)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = task
            .who_wants
            .iter()
            .map(|client| self.scheduler.client(client).unwrap().name.to_string())
            .collect();
        names.sort();
        names
    }

    /// Answers a layout request: the partitions go to the workers in turn.
    pub(crate) fn lay_out(&mut self, create: &CreateShuffleRun, partitions: i64) {
        let worker_for = (0..partitions).map(|partition| {
            let existing = create
                .existing
                .iter()
                .find(|(other, _)| *other == Value::from(partition));
            let next = &create.workers[partition as usize % create.workers.len()];
            (
                Value::from(partition),
                existing.map_or(next, |(_, worker)| worker).clone(),
            )
        });
        let mut out = Instructions::default();
        self.extensions.shuffle_run_created(
            &mut self.scheduler,
            self.now,
            &create.shuffle_id,
            create.run_id,
            worker_for.collect(),
            Pickled::of_pickle(format!("run {}", create.run_id).as_bytes()),
            &mut out,
        );
        self.absorb(out);
    }

    pub(crate) fn inputs_done(&mut self, request: RequestId, answers: &[(&str, InputsDone)]) {
        let answers = answers
            .iter()
            .map(|(worker, answer)| ((*worker).into(), answer.clone()))
            .collect();
        let mut out = Instructions::default();
        self.extensions.shuffle_inputs_done_result(
            &self.scheduler,
            self.now,
            request,
            answers,
            &mut out,
        );
        self.absorb(out);
    }
}

/// A list of texts.
pub(crate) fn list(items: &[&str]) -> Value {
    items.iter().map(|item| Value::from(*item)).collect()
}
