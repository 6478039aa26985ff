//! The scheduler's shell: its core, its extensions, and what carries out their instructions.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_scheduler::extensions::Extensions;
use oxidask_scheduler::graph::{Actors, Graph, Number, RunSpec, TaskFlags};
use oxidask_scheduler::{
    ClientId, Config, Event, Instruction, Instructions, NewWorker, RequestId, Scheduler, Status,
    ToWorker, WorkerId, memory_manager,
};
use oxidask_wire::{Key, Map, Str, Value, map};

use crate::cluster::{AtWorker, ClientMessage, Cluster, Happening, Submission, WorkerMessage};
use crate::plan::{Expansion, Micros, Role, Settings};
use crate::translate;

/// How long the graph helper takes.
const HELPER_TIME: Micros = 5_000;

/// Between two slices of a large graph.
const SLICE_TIME: Micros = 500;

/// Records of transitions kept: more than a run of the usual size makes.
const LOG_LENGTH: usize = 20_000;

/// The scheduler, and what its shell remembers.
#[derive(Debug)]
pub(crate) struct SchedulerNode {
    pub(crate) core: Scheduler,
    pub(crate) extensions: Extensions,
    /// The next `Tick` that is on the agenda.
    tick_at: Option<Micros>,
    /// `Continue` is on the agenda.
    pub(crate) is_continuing: bool,
    next_request: u64,
    /// Events that it has handled.
    events: u64,
    pub(crate) out: Instructions,
}

impl SchedulerNode {
    pub(crate) fn new(settings: &Settings) -> Self {
        let config = Config {
            allowed_failures: settings.allowed_failures,
            worker_saturation: settings.worker_saturation,
            work_stealing: settings.work_stealing,
            no_workers_timeout: settings.no_workers_timeout,
            graph_slice: settings.graph_slice,
            low_level_log_length: LOG_LENGTH,
            memory_manager: memory_manager::Config {
                start: settings.memory_manager,
                ..memory_manager::Config::default()
            },
            ..Config::default()
        };
        Self {
            extensions: Extensions::new(&config),
            core: Scheduler::new(config),
            tick_at: None,
            is_continuing: false,
            next_request: 0,
            events: 0,
            out: Instructions::default(),
        }
    }

    fn request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }
}

impl Cluster<'_> {
    /// Lets the scheduler handle an event and carries out what follows from it.
    pub(crate) fn scheduler_event(&mut self, event: Event) {
        let now = self.time();
        let node = &mut self.scheduler;
        node.extensions.before(&event);
        node.core.handle(now, event, &mut node.out);
        self.settle();
    }

    /// Asks an extension for something; the answer comes to `replies`.
    pub(crate) fn request(&mut self, op: &str, mut arguments: Map) -> RequestId {
        let now = self.time();
        let node = &mut self.scheduler;
        let request = node.request();
        let known = node.extensions.rpc(
            &mut node.core,
            now,
            request,
            op,
            &mut arguments,
            &mut node.out,
        );
        assert!(known, "the operation {op} is unknown");
        self.settle();
        request
    }

    pub(crate) fn settle(&mut self) {
        let now = self.time();
        let node = &mut self.scheduler;
        node.extensions.observe(&mut node.core, now, &mut node.out);
        node.events += 1;
        if node
            .events
            .is_multiple_of(self.plan.settings.validate_every)
        {
            node.core.validate();
            node.extensions.validate(&node.core);
        }
        let mut out = std::mem::take(&mut node.out);
        for instruction in out.drain(..) {
            self.carry_out(instruction);
        }
        // What one event leads to goes in one batch, and arrives at once.
        for (worker, messages) in std::mem::take(&mut self.batches) {
            self.send_down(worker, AtWorker::Messages(messages));
        }
        self.wind();
        self.unblock();
    }

    /// Puts on the agenda what the scheduler waits for.
    fn wind(&mut self) {
        let node = &mut self.scheduler;
        let deadlines = [node.core.next_deadline(), node.extensions.next_deadline()];
        let deadline = deadlines.into_iter().flatten().reduce(f64::min);
        let has_work = node.core.has_pending_work() && !node.is_continuing;
        if has_work {
            node.is_continuing = true;
        }
        if let Some(deadline) = deadline {
            let at = self.agenda.now + micros((deadline - self.time()).max(0.0)) + 1;
            if self.scheduler.tick_at.is_none_or(|earlier| at < earlier) {
                self.scheduler.tick_at = Some(at);
                self.agenda.at(at, Happening::Tick { at });
            }
        }
        if has_work {
            self.agenda.after(SLICE_TIME, Happening::Continue);
        }
    }

    pub(crate) fn tick(&mut self, at: Micros) {
        if self.scheduler.tick_at != Some(at) {
            // An earlier one has come since.
            return;
        }
        let now = self.time();
        let node = &mut self.scheduler;
        node.tick_at = None;
        node.core.handle(now, Event::Tick, &mut node.out);
        node.extensions.tick(&mut node.core, now, &mut node.out);
        self.settle();
    }

    fn carry_out(&mut self, instruction: Instruction) {
        match instruction {
            Instruction::ToWorker { worker, message } => self.tell_worker(worker, message),
            Instruction::ToClient { client, message } => {
                let Some(&client) = self.clients_by_id.get(&client) else {
                    return;
                };
                let link = &mut self.clients[client].down;
                let at = link.arrival(self.agenda.now, &self.plan.settings);
                self.agenda.at(at, Happening::ToClient { client, message });
            }
            Instruction::ExplodeBundle { bundle, blob } => {
                self.agenda
                    .after(HELPER_TIME, Happening::Exploded { bundle, blob });
            }
            Instruction::Reply { request, result } => match self.asks.shift_remove(&request) {
                Some(ask) => self.answer(&ask, result),
                None => self.replies.push((request, result)),
            },
            Instruction::WorkerRemoved { worker, .. } => {
                if let Some(worker) = self.registered.shift_remove(&worker) {
                    self.workers[worker].id = None;
                    // What was sent still arrives, then the stream ends.
                    if let Some(messages) = self.batches.shift_remove(&worker) {
                        self.send_down(worker, AtWorker::Messages(messages));
                    }
                    self.send_down(worker, AtWorker::StreamEnded);
                }
            }
            Instruction::CreateShuffleRun(create) => {
                self.agenda.after(HELPER_TIME, Happening::LaidOut(create));
            }
            Instruction::ShuffleInputsDone {
                request, workers, ..
            } => {
                let slowest = self.plan.settings.delay_max;
                let done = Happening::InputsDone { request, workers };
                self.agenda.after(2 * slowest, done);
            }
            Instruction::WorkerAdded { .. }
            | Instruction::Log { .. }
            | Instruction::TaskRecord(_)
            | Instruction::BarrierLeft { .. }
            | Instruction::TaskForgotten { .. }
            | Instruction::Restarted
            | Instruction::LogEvent { .. } => {}
        }
    }

    fn tell_worker(&mut self, id: WorkerId, message: ToWorker) {
        let Some(&worker) = self.registered.get(&id) else {
            return;
        };
        if let ToWorker::ComputeTask { task, .. } = &message
            && let Some(ts) = self.scheduler.core.task(*task)
        {
            let number = self.number(&ts.key);
            self.tally.sent[number] += 1;
        }
        if let Some(message) = translate::to_worker(&self.scheduler.core, id, message) {
            self.batches.entry(worker).or_default().push(message);
        }
    }

    /// On the stream from the scheduler to a worker.
    pub(crate) fn send_down(&mut self, worker: usize, what: AtWorker) {
        let link = &mut self.workers[worker].down;
        let at = link.arrival(self.agenda.now, &self.plan.settings);
        self.agenda.at(at, Happening::AtWorker { worker, what });
    }

    // Workers.

    pub(crate) fn register(&mut self, worker: usize) {
        let node = &self.workers[worker];
        if !node.is_alive || node.id.is_some() {
            return;
        }
        let machine = self.descriptions[node.machine];
        let (address, name) = (node.address.clone(), node.name.clone());
        let core = &self.scheduler.core;
        if core.check_worker(&address, &Value::from(&*name)).is_err() {
            return self.send_down(worker, AtWorker::Registered { accepted: false });
        }
        let event = Event::AddWorker(Box::new(NewWorker {
            address: address.clone(),
            name: Value::from(&*name),
            nthreads: machine.nthreads,
            memory_limit: machine.memory_limit,
            local_directory: Str::default(),
            resources: machine
                .has_gpu
                .then(|| ("gpu".into(), 1.0))
                .into_iter()
                .collect(),
            status: Status::Init,
            nanny: None,
            pid: worker as i64,
            server_id: Str::from(format!("server-{worker}")),
            services: Value::Nil,
            versions: Value::Nil,
            metrics: metrics(0),
            worker_now: Some(self.time() + machine.clock_skew),
            is_native: true,
            extra: Map::new(),
            stimulus_id: self.stimulus("worker-connect").into(),
        }));
        // The id is known only after the event, which has nothing to tell a worker that
        // does not run yet.
        self.scheduler_event(event);
        let id = self.scheduler.core.worker_id(&address);
        let id = id.expect("a worker that was accepted is known");
        if let Some(noticed) = self.workers[worker].loses_registration.take() {
            let happening = Happening::RegistrationLost { id };
            self.agenda.after(noticed, happening);
            return;
        }
        self.registered.insert(id, worker);
        self.workers[worker].id = Some(id);
        self.send_down(worker, AtWorker::Registered { accepted: true });
    }

    pub(crate) fn worker_says(&mut self, worker: usize, message: WorkerMessage) {
        self.workers[worker].up.on_its_way -= 1;
        let Some(id) = self.workers[worker].id else {
            return;
        };
        let event = match message {
            WorkerMessage::Core(message) => {
                self.explain(&message);
                translate::to_scheduler(id, message)
            }
            WorkerMessage::Status(status, stimulus_id) => Event::WorkerStatusChange {
                worker: id,
                status,
                stimulus_id,
            },
        };
        self.scheduler_event(event);
        self.compare(worker);
    }

    pub(crate) fn heartbeat_arrives(
        &mut self,
        worker: usize,
        executing: Vec<(Key, f64)>,
        nbytes: i64,
    ) {
        let address = self.workers[worker].address.clone();
        let id = self.scheduler.core.worker_id(&address);
        if let Some(id) = id {
            let machine = self.descriptions[self.workers[worker].machine];
            self.scheduler_event(Event::Heartbeat {
                worker: id,
                worker_now: Some(self.time() + machine.clock_skew),
                metrics: metrics(nbytes),
                executing,
                extensions: Value::Nil,
            });
        }
        self.send_aside(
            worker,
            AtWorker::BeatAnswered {
                known: id.is_some(),
            },
        );
    }

    /// The stream of a worker has ended.
    pub(crate) fn worker_gone(&mut self, worker: usize) {
        if let Some(id) = self.workers[worker].id {
            self.count_death();
            let stimulus_id = self.stimulus("handle-worker-cleanup").into();
            self.scheduler_event(Event::WorkerLost {
                worker: id,
                stimulus_id,
            });
        }
    }

    /// The connection has broken by which a worker registered.
    pub(crate) fn registration_lost(&mut self, id: WorkerId) {
        if self.scheduler.core.worker(id).is_some() {
            self.count_death();
            let stimulus_id = self.stimulus("handle-worker-cleanup").into();
            let worker = id;
            self.scheduler_event(Event::WorkerLost {
                worker,
                stimulus_id,
            });
        }
    }

    fn count_death(&mut self) {
        self.tally.deaths += 1;
        self.tally.disturbances += 1;
    }

    fn remove_worker(&mut self, worker: WorkerId, reason: &str) {
        self.count_death();
        let stimulus_id = self.stimulus(reason).into();
        self.scheduler_event(Event::RemoveWorker {
            worker,
            stimulus_id,
            expected: false,
            close: true,
        });
    }

    /// `Scheduler.check_worker_ttl`.
    pub(crate) fn check_ttl(&mut self) {
        let now = self.time();
        let ttl = self.plan.settings.worker_ttl as f64 * 1e-6;
        let ttl = ttl.max(10.0 * Scheduler::heartbeat_interval(self.scheduler.core.n_workers()));
        let workers = self.scheduler.core.workers();
        let silent: Vec<WorkerId> = workers
            .filter(|(_, ws)| now - ws.last_seen > ttl)
            .map(|(id, _)| id)
            .collect();
        for worker in silent {
            self.remove_worker(worker, "check-worker-ttl");
        }
        self.agenda
            .after(self.plan.settings.worker_ttl, Happening::CheckTtl);
    }

    // Clients.

    pub(crate) fn client_says(&mut self, client: usize, message: ClientMessage) {
        let node = &mut self.clients[client];
        node.up.on_its_way -= 1;
        if node.is_gone {
            return;
        }
        if node.is_blocked {
            node.backlog.push_back(message);
            return;
        }
        self.client_message(client, message);
    }

    /// One message of a client's stream, at its place.
    fn client_message(&mut self, client: usize, message: ClientMessage) {
        match message {
            ClientMessage::UpdateGraph(submission) => {
                // The next message may be about this graph.
                self.clients[client].is_blocked = true;
                self.agenda
                    .after(HELPER_TIME, Happening::Expanded { client, submission });
            }
            ClientMessage::Event(event) => self.scheduler_event(event),
        }
    }

    pub(crate) fn expanded(&mut self, client: usize, submission: &Submission) {
        let node = &mut self.clients[client];
        node.is_expanded = true;
        let Some(id) = node.id else {
            return;
        };
        let stimulus_id = self.stimulus("update-graph");
        let event = if submission.expansion == Expansion::Fails {
            Event::GraphFailed {
                client: id,
                keys: self.keys_of(&submission.wanted),
                exception: Value::from("the graph helper failed"),
                traceback: Value::Nil,
                text: "the graph helper failed".to_owned(),
                stimulus_id: stimulus_id.into(),
            }
        } else {
            Event::UpdateGraph(Box::new(self.graph(id, submission, &stimulus_id)))
        };
        self.scheduler_event(event);
    }

    /// Goes on with the messages of clients whose graphs are taken in.
    fn unblock(&mut self) {
        if self.scheduler.core.has_pending_graphs() {
            return;
        }
        for client in 0..self.clients.len() {
            loop {
                let node = &mut self.clients[client];
                if node.is_blocked && node.is_expanded {
                    node.is_blocked = false;
                    node.is_expanded = false;
                }
                if node.is_blocked || node.is_gone {
                    break;
                }
                let Some(message) = node.backlog.pop_front() else {
                    break;
                };
                self.client_message(client, message);
            }
        }
    }

    fn graph(&self, client: ClientId, submission: &Submission, stimulus_id: &str) -> Graph {
        let tasks: Vec<usize> = submission
            .tasks
            .iter()
            .copied()
            .filter(|&task| !self.plan.tasks[task].is_data)
            .collect();
        let mut names: indexmap::IndexSet<usize> = tasks.iter().copied().collect();
        let mut dependency_offsets = vec![0];
        let mut dependencies = Vec::new();
        let mut annotations = Vec::new();
        for (index, &number) in tasks.iter().enumerate() {
            let task = &self.plan.tasks[number];
            for &dependency in &task.dependencies {
                dependencies.push(names.insert_full(dependency).0 as u32);
            }
            dependency_offsets.push(dependencies.len() as u32);
            let mut own = Map::new();
            if task.retries > 0 {
                own.push("retries", task.retries);
            }
            if task.priority != 0 {
                own.push("priority", task.priority);
            }
            if task.needs_gpu {
                own.push("resources", map! { "gpu" => 1 });
            }
            if let Some(machine) = task.pinned {
                own.push("workers", vec![Value::from(format!("machine-{machine}"))]);
                own.push("allow_other_workers", true);
            }
            if !own.is_empty() {
                annotations.push((index as u32, own));
            }
        }
        // What nobody needs is no actor of the graph's.
        let mut actors = submission.wanted.clone();
        let mut at = 0;
        while let Some(&task) = actors.get(at) {
            let mut needed = self.plan.tasks[task].dependencies.clone();
            needed.retain(|task| tasks.contains(task) && !actors.contains(task));
            actors.extend(needed);
            at += 1;
        }
        actors.retain(|&task| self.plan.tasks[task].is_actor);
        let is_bundle = matches!(
            submission.expansion,
            Expansion::Bundle | Expansion::BundleFails
        );
        let specs = tasks.iter().zip(0..).map(|(&number, index)| {
            let is_barrier = self.plan.tasks[number]
                .p2p
                .is_some_and(|p2p| p2p.role == Role::Barrier);
            if is_bundle && !is_barrier {
                RunSpec::Bundle { bundle: 0, index }
            } else {
                spec(number)
            }
        });
        let mut flags = vec![TaskFlags::default(); tasks.len()];
        let mut barriers = Vec::new();
        for (index, &number) in tasks.iter().enumerate() {
            let p2p = self.plan.tasks[number].p2p;
            if let Some(p2p) = p2p.filter(|p2p| p2p.role == Role::Barrier) {
                flags[index] = TaskFlags(TaskFlags::BARRIER);
                barriers.push((index as u32, p2p.shuffle.to_string().into()));
            }
        }
        let mut blob = tasks.iter().map(ToString::to_string).collect::<Vec<_>>();
        if submission.expansion == Expansion::BundleFails {
            blob.insert(0, "fails".to_owned());
        }
        Graph {
            client,
            requested: self.keys_of(&submission.wanted),
            keys: names
                .iter()
                .map(|&number| self.keys[number].clone())
                .collect(),
            dependency_offsets,
            dependencies,
            flags,
            specs: specs.collect(),
            bundles: is_bundle
                .then(|| blob.join(" ").into())
                .into_iter()
                .collect(),
            order: (0..tasks.len() as i64).collect(),
            annotations,
            global_annotations: None,
            actors: Actors::Keys(self.keys_of(&actors)),
            user_priority: Number::Int(0),
            fifo_timeout: 60.0,
            submitting_task: submission.submitting_task.clone(),
            barriers,
            code: Value::Nil,
            span_metadata: Value::Nil,
            stimulus_id: stimulus_id.into(),
            start: self.time(),
        }
    }

    pub(crate) fn exploded(&mut self, bundle: u32, blob: &Bytes) {
        let text = std::str::from_utf8(blob).expect("a bundle of the simulator is text");
        let event = match text.strip_prefix("fails") {
            Some(_) => Event::BundleFailed {
                bundle,
                exception: Value::from("the graph helper failed"),
                traceback: Value::Nil,
                exception_text: Str::from("the graph helper failed"),
                traceback_text: Str::default(),
            },
            None => Event::BundleExploded {
                bundle,
                specs: text
                    .split(' ')
                    .map(|number| RunSpec::Pickle(Bytes::copy_from_slice(number.as_bytes())))
                    .collect(),
            },
        };
        self.scheduler_event(event);
    }

    // Requests.

    pub(crate) fn retry(&mut self, client: Arc<str>, keys: Vec<Key>) {
        let request = self.scheduler.request();
        let stimulus_id = self.stimulus("client-retry").into();
        self.scheduler_event(Event::Retry {
            request,
            client: Some(client),
            keys,
            stimulus_id,
        });
        assert!(
            self.replies
                .iter()
                .any(|(answered, _)| *answered == request),
            "a retry is not answered"
        );
        self.replies.clear();
    }

    pub(crate) fn retire_workers(&mut self, addresses: &[Arc<str>]) {
        let workers: Vec<Value> = addresses
            .iter()
            .map(|address| Value::from(&**address))
            .collect();
        self.request(
            "retire_workers",
            map! { "workers" => workers, "close_workers" => true, "remove" => true },
        );
    }

    pub(crate) fn replicate(&mut self, address: &str, key: Key) {
        if let Some(worker) = self.scheduler.core.worker_id(address) {
            let stimulus_id = self.stimulus("replicate").into();
            let keys = vec![key];
            self.scheduler_event(Event::AcquireReplicas {
                worker,
                keys,
                stimulus_id,
            });
        }
    }

    /// What `Adaptive` does with a cluster of up to as many workers as there are machines.
    pub(crate) fn adapt(&mut self) {
        let target = self.request("adaptive_target", Map::new());
        let target = self.take_reply(target).as_u64().unwrap_or(0);
        let alive = self.scheduler.core.n_workers() as u64;
        if target > alive {
            let idle: Vec<usize> = (0..self.plan.machines.len())
                .filter(|&machine| self.machines[machine].is_none())
                .take((target - alive) as usize)
                .collect();
            for machine in idle {
                self.start(machine, false, None);
            }
        } else if target < alive {
            let closing = self.request("workers_to_close", map! { "target" => target.max(1) });
            let closing = self.take_reply(closing);
            let addresses = closing.as_array().unwrap_or_default().iter();
            let addresses: Vec<Arc<str>> = addresses
                .filter_map(|address| Some(address.as_str()?.into()))
                .collect();
            if !addresses.is_empty() {
                self.retire_workers(&addresses);
            }
        }
    }

    fn take_reply(&mut self, request: RequestId) -> Value {
        let at = self
            .replies
            .iter()
            .position(|(answered, _)| *answered == request);
        let at = at.expect("the request is answered at once");
        let (_, reply) = self.replies.swap_remove(at);
        reply.unwrap_or_else(|failure| panic!("a request failed: {}", failure.text))
    }

    pub(crate) fn keys_of(&self, tasks: &[usize]) -> Vec<Key> {
        tasks.iter().map(|&task| self.keys[task].clone()).collect()
    }
}

fn spec(number: usize) -> RunSpec {
    RunSpec::Pickle(number.to_string().into())
}

fn metrics(nbytes: i64) -> Value {
    Value::Map(map! {
        "memory" => nbytes + 1_000_000,
        "spilled_bytes" => map! { "memory" => 0, "disk" => 0 },
    })
}

/// Microseconds in so many seconds, rounded up.
fn micros(seconds: f64) -> Micros {
    (seconds * 1e6).ceil() as Micros
}
