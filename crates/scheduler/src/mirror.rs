//! Changes of the state, in the words of a process that mirrors it.
//!
//! ```text
//!  &mut Tasks, &mut Workers ──► touched ids ──► mirror_changes ──► entries (msgpack) ──► plug-in host
//! ```
//!
//! Every access that may change a task or worker leaves its id behind, so that
//! no change can be forgotten; what is sent is what differs from what was sent
//! last. Relations are told once, by the smaller side: `who_has`, `who_wants`,
//! `processing_on` and `dependencies`. The mirror derives the others, so that a
//! task with a million dependents costs no more than any other.
//!
//! Without a mirror nothing is recorded: one branch where a task is changed.
//! The entries are described in `docs/plugin-host.md`.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashMap;
use oxidask_wire::msgpack::Writer;
use oxidask_wire::{Key, Value, map, message};

use crate::graph::Number;
use crate::group::ByName;
use crate::id::{ClientId, GroupId, Id, TaskId, WorkerId};
use crate::instruction::Instruction;
use crate::scheduler::{Cx, Scheduler};
use crate::sets::IdSet;
use crate::task::{State, TaskState};
use crate::transitions::Detail;
use crate::worker::WorkerState;

/// What an entry is about: its first element.
mod entry {
    pub(super) const END: u64 = 0;
    pub(super) const WORKER: u64 = 1;
    pub(super) const WORKER_STATE: u64 = 2;
    pub(super) const WORKER_METRICS: u64 = 3;
    pub(super) const WORKER_GONE: u64 = 4;
    pub(super) const CLIENT: u64 = 5;
    pub(super) const CLIENT_GONE: u64 = 6;
    pub(super) const TASK: u64 = 7;
    pub(super) const DEPENDENCIES: u64 = 8;
    pub(super) const TASK_GONE: u64 = 9;
    pub(super) const TASK_STATE: u64 = 10;
    pub(super) const TRANSITION: u64 = 11;
    pub(super) const GROUP: u64 = 12;
    pub(super) const PREFIX: u64 = 13;
    pub(super) const SCHEDULER: u64 = 14;
    pub(super) const HOOK: u64 = 20;
    pub(super) const LOST: u64 = 21;
}

/// Flags of a task, in the order of their bits.
mod flag {
    pub(super) const ACTOR: u64 = 1;
    pub(super) const LOOSE_RESTRICTIONS: u64 = 2;
    pub(super) const LOST_DEPENDENCIES: u64 = 4;
    pub(super) const RUN_SPEC: u64 = 8;
    pub(super) const QUEUEABLE: u64 = 16;
}

/// Ids that may have changed since they were last asked for, each once.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    ids: Vec<u32>,
    is_in: Vec<bool>,
}

impl Touched {
    pub(crate) fn mark(&mut self, id: impl Id) {
        let at = id.index() as usize;
        if at >= self.is_in.len() {
            self.is_in.resize(at + 1, false);
        }
        if !self.is_in[at] {
            self.is_in[at] = true;
            self.ids.push(id.index());
        }
    }

    fn take(&mut self) -> Vec<u32> {
        let ids = std::mem::take(&mut self.ids);
        for &id in &ids {
            self.is_in[id as usize] = false;
        }
        ids
    }
}

/// What the mirror was told, and what it is to be told next.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    /// Transitions and hooks are told too, each with the state of its moment.
    follows: bool,
    tasks: Vec<ToldTask>,
    workers: Vec<Option<ToldWorker>>,
    clients: Vec<bool>,
    groups: HashMap<GroupId, u64, foldhash::fast::FixedState>,
    prefixes: HashMap<u32, u64, foldhash::fast::FixedState>,
    scheduler: u64,
    /// Groups of the tasks told since the last end of an event.
    touched_groups: Vec<GroupId>,
    /// Arguments of the transition under way.
    arguments: Option<Value>,
    /// `update_graph`, to be told once the tasks of the graph are.
    graph: Option<Value>,
    log: Writer,
}

/// What the mirror knows of the task in a slot.
#[derive(Clone, Copy, Debug, Default)]
struct ToldTask {
    /// Which of the slot's tasks; 0 for none.
    birth: u32,
    dependency_count: u32,
    state: u64,
}

#[derive(Clone, Copy, Debug)]
struct ToldWorker {
    state: u64,
    last_seen: f64,
}

impl Scheduler {
    /// Begins to note changes; the first [`Scheduler::mirror_changes`] tells everything.
    pub fn mirror_start(&mut self) {
        let mut touched = Touched::default();
        for (task, _) in self.tasks.iter() {
            touched.mark(task);
        }
        self.tasks.touched = Some(Box::new(touched));
        let mut touched = Touched::default();
        for &worker in self.workers.ids() {
            touched.mark(worker);
        }
        self.workers.touched = Some(Box::new(touched));
        self.mirror = Some(Box::default());
    }

    /// Forgets the mirror.
    pub fn mirror_stop(&mut self) {
        self.tasks.touched = None;
        self.workers.touched = None;
        self.mirror = None;
    }

    /// Whether changes are noted.
    pub fn is_mirrored(&self) -> bool {
        self.mirror.is_some()
    }

    /// From now on transitions are told one by one, or no longer.
    pub fn mirror_follow(&mut self, follows: bool) {
        if let Some(mirror) = &mut self.mirror {
            mirror.follows = follows;
            mirror.arguments = None;
            mirror.graph = None;
        }
    }

    /// Whether transitions are told one by one.
    pub fn mirror_follows(&self) -> bool {
        self.mirror.as_ref().is_some_and(|mirror| mirror.follows)
    }

    /// Tells everything that changed since the last time.
    pub fn mirror_changes(&mut self) {
        let Some(mut mirror) = self.mirror.take() else {
            return;
        };
        mirror.tell_changes(self);
        mirror.tell_graph();
        mirror.tell_rest(self);
        self.mirror = Some(mirror);
    }

    /// Tells of a call of a plug-in's hook, after what was told before.
    pub fn mirror_hook(&mut self, name: &str, arguments: &Value) {
        if let Some(mirror) = &mut self.mirror {
            mirror.tell_hook(name, arguments);
        }
    }

    /// A graph is about to be taken in: its `update_graph` is told after the
    /// first tasks of it were, before their transitions.
    pub fn mirror_graph(&mut self, arguments: Value) {
        if let Some(mirror) = &mut self.mirror
            && mirror.follows
        {
            mirror.tell_graph();
            mirror.graph = Some(arguments);
        }
    }

    /// Tells that transitions were not told of.
    pub fn mirror_lost(&mut self, count: u64) {
        if let Some(mirror) = &mut self.mirror {
            mirror.log.array(2);
            mirror.log.uint(entry::LOST);
            mirror.log.uint(count);
        }
    }

    /// The entries so far; empty if there are none.
    pub fn mirror_take(&mut self) -> Vec<u8> {
        self.mirror
            .as_mut()
            .map(|mirror| std::mem::take(&mut mirror.log).into_vec())
            .unwrap_or_default()
    }

    /// What a plug-in's `transition` is told beside the states.
    pub(crate) fn mirror_arguments(&mut self, task: TaskId, detail: &Detail, cx: &Cx<'_>) {
        if !self.mirror_follows() {
            return;
        }
        let arguments = match detail {
            Detail::None => None,
            Detail::Finished(finished) => Some(map! {
                "worker" => self.workers.get(finished.worker).map(|ws| ws.address.clone()),
                "run_id" => self.tasks[task].run_id,
                "nbytes" => finished.nbytes,
                "type" => finished.r#type.clone(),
                "typename" => finished.typename.as_str(),
                "metadata" => finished.metadata.clone(),
                "thread" => finished.thread.clone(),
                "startstops" => finished.startstops.clone(),
                "status" => "OK",
            }),
            Detail::Failed { failure, worker } => {
                let mut arguments = map! {
                    "cause" => &failure.cause,
                    "exception" => failure.exception.clone(),
                    "traceback" => failure.traceback.clone(),
                    "exception_text" => failure.exception_text.as_str(),
                    "traceback_text" => failure.traceback_text.as_str(),
                };
                if let Some(ws) = worker.and_then(|worker| self.workers.get(worker)) {
                    arguments.push("worker", &ws.address);
                }
                if let Some(Instruction::TaskRecord(record)) = cx.out.last()
                    && record.key == self.tasks[task].key
                {
                    arguments.push("thread", record.thread.clone());
                    arguments.push("startstops", record.startstops.clone());
                    arguments.push("status", "error");
                }
                Some(arguments)
            }
        };
        if let Some(mirror) = &mut self.mirror {
            mirror.arguments = arguments.map(Value::Map);
        }
    }

    /// Tells of a transition, with the state of this moment before it.
    pub(crate) fn mirror_transition(&mut self, task: TaskId, start: State, cx: &Cx<'_>) {
        let Some(mut mirror) = self.mirror.take() else {
            return;
        };
        if mirror.follows {
            mirror.tell_changes(self);
            mirror.tell_graph();
            let ts = &self.tasks[task];
            let arguments = mirror.arguments.take();
            let log = &mut mirror.log;
            log.array(7);
            log.uint(entry::TRANSITION);
            log.uint(u64::from(task.0));
            log.key(&ts.key);
            log.str(start.name());
            log.str(ts.state.name());
            log.str(cx.stimulus_id.as_str());
            value(log, &arguments.unwrap_or(Value::Nil));
        }
        self.mirror = Some(mirror);
    }
}

impl Mirror {
    fn tell_changes(&mut self, core: &mut Scheduler) {
        let workers = core.workers.touched.as_mut().map(|touched| touched.take());
        let workers = workers.unwrap_or_default();
        for &id in &workers {
            self.tell_worker(core, WorkerId(id));
        }
        let tasks = core.tasks.touched.as_mut().map(|touched| touched.take());
        let mut tasks = tasks.unwrap_or_default();
        // First those that are gone: with the last of them goes their group, which
        // is another one if tasks of the same name have come.
        for &slot in &tasks {
            self.tell_gone(core, slot);
        }
        tasks.retain(|&slot| self.tell_birth(core, slot));
        for &slot in &tasks {
            self.tell_dependencies(core, slot);
        }
        for &slot in &tasks {
            self.tell_task(core, slot);
        }
        for &id in &workers {
            self.tell_worker_state(core, WorkerId(id));
            self.tell_worker_gone(core, WorkerId(id));
        }
    }

    /// Groups, clients and sums: once for each event.
    fn tell_rest(&mut self, core: &Scheduler) {
        for at in 0..self.clients.len() {
            let id = ClientId(at as u32);
            if self.clients[at] && core.clients.get(id).is_none() {
                self.clients[at] = false;
                self.log.array(2);
                self.log.uint(entry::CLIENT_GONE);
                self.log.uint(at as u64);
            }
        }
        for (id, client) in core.clients() {
            if client.connected {
                self.tell_client(core, id);
            }
        }
        let mut groups = std::mem::take(&mut self.touched_groups);
        groups.sort_unstable();
        groups.dedup();
        for group in groups {
            self.tell_group(core, group);
        }
        self.tell_scheduler(core);
        self.log.array(1);
        self.log.uint(entry::END);
    }

    fn tell_worker(&mut self, core: &Scheduler, id: WorkerId) {
        let Some(ws) = core.workers.get(id) else {
            return;
        };
        let at = id.0 as usize;
        if at >= self.workers.len() {
            self.workers.resize(at + 1, None);
        }
        let log = &mut self.log;
        if self.workers[at].is_none() {
            write_worker(log, id, ws);
        }
        self.workers[at].get_or_insert(ToldWorker {
            state: 0,
            last_seen: f64::NAN,
        });
    }

    /// After its tasks were told, which it names.
    fn tell_worker_state(&mut self, core: &Scheduler, id: WorkerId) {
        let (Some(ws), Some(Some(told))) =
            (core.workers.get(id), self.workers.get_mut(id.0 as usize))
        else {
            return;
        };
        let log = &mut self.log;
        let mut state = Writer::new();
        write_worker_state(&mut state, id, ws);
        let hash = hash(&state);
        if hash != told.state {
            told.state = hash;
            log.raw(state.as_slice());
        }
        if told.last_seen.to_bits() != ws.last_seen.to_bits() {
            told.last_seen = ws.last_seen;
            write_worker_metrics(log, id, ws);
        }
    }

    fn tell_worker_gone(&mut self, core: &Scheduler, id: WorkerId) {
        let told = self.workers.get_mut(id.0 as usize);
        if core.workers.get(id).is_none()
            && let Some(told @ Some(_)) = told
        {
            *told = None;
            self.log.array(2);
            self.log.uint(entry::WORKER_GONE);
            self.log.uint(u64::from(id.0));
        }
    }

    fn tell_client(&mut self, core: &Scheduler, id: ClientId) {
        let at = id.0 as usize;
        if at >= self.clients.len() {
            self.clients.resize(at + 1, false);
        }
        if self.clients[at] {
            return;
        }
        let Some(client) = core.clients.get(id) else {
            return;
        };
        self.clients[at] = true;
        let log = &mut self.log;
        log.array(5);
        log.uint(entry::CLIENT);
        log.uint(at as u64);
        log.str(&client.name);
        log.float(client.last_seen);
        value(log, &client.versions);
    }

    /// Tells that the task of which the mirror knows in a slot is gone, if it is.
    fn tell_gone(&mut self, core: &Scheduler, slot: u32) {
        let Some(told) = self.tasks.get_mut(slot as usize) else {
            return;
        };
        let ts = core.tasks.get(TaskId(slot));
        if told.birth != 0 && ts.is_none_or(|ts| ts.birth != told.birth) {
            *told = ToldTask::default();
            self.log.array(2);
            self.log.uint(entry::TASK_GONE);
            self.log.uint(u64::from(slot));
        }
    }

    /// Tells which task is in a slot now; false if there is none.
    fn tell_birth(&mut self, core: &Scheduler, slot: u32) -> bool {
        let at = slot as usize;
        if at >= self.tasks.len() {
            self.tasks.resize(at + 1, ToldTask::default());
        }
        let told = &mut self.tasks[at];
        let Some(ts) = core.tasks.get(TaskId(slot)) else {
            return false;
        };
        if told.birth == 0 {
            told.birth = ts.birth;
            self.log.array(3);
            self.log.uint(entry::TASK);
            self.log.uint(u64::from(slot));
            self.log.key(&ts.key);
        }
        true
    }

    fn tell_dependencies(&mut self, core: &Scheduler, slot: u32) {
        let ts = &core.tasks[TaskId(slot)];
        let told = &mut self.tasks[slot as usize];
        if told.dependency_count as usize == ts.dependencies.len() {
            return;
        }
        told.dependency_count = ts.dependencies.len() as u32;
        let log = &mut self.log;
        log.array(3);
        log.uint(entry::DEPENDENCIES);
        log.uint(u64::from(slot));
        ids(log, &ts.dependencies);
    }

    fn tell_task(&mut self, core: &Scheduler, slot: u32) {
        let ts = &core.tasks[TaskId(slot)];
        for client in &ts.who_wants {
            self.tell_client(core, client);
        }
        self.touched_groups.push(ts.group);
        let mut state = Writer::with_capacity(128);
        write_task_state(&mut state, slot, ts);
        let hash = hash(&state);
        let told = &mut self.tasks[slot as usize];
        if told.state != hash {
            told.state = hash;
            self.log.raw(state.as_slice());
        }
    }

    fn tell_group(&mut self, core: &Scheduler, id: GroupId) {
        let Some(group) = core.groups.get(id) else {
            self.groups.remove(&id);
            return;
        };
        let mut state = Writer::new();
        state.array(7);
        state.uint(entry::GROUP);
        state.str(&group.name);
        counters(&mut state, &group.durations_us);
        state.map(group.types.len());
        for (name, &count) in &group.types {
            state.str(name);
            state.uint(count);
        }
        state.float(group.start);
        state.float(group.stop);
        match &group.span_id {
            Some(span_id) => state.str(span_id),
            None => state.nil(),
        }
        let hash = hash(&state);
        if self.groups.insert(id, hash) != Some(hash) {
            self.log.raw(state.as_slice());
        }
        let Some(prefix) = core.prefix(group.prefix) else {
            return;
        };
        let mut state = Writer::new();
        state.array(6);
        state.uint(entry::PREFIX);
        state.str(&prefix.name);
        state.float(prefix.duration_average);
        state.float(prefix.max_exec_time);
        state.uint(prefix.suspicious);
        counters(&mut state, &prefix.durations_us);
        let hash = self::hash(&state);
        if self.prefixes.insert(group.prefix.0, hash) != Some(hash) {
            self.log.raw(state.as_slice());
        }
    }

    fn tell_scheduler(&mut self, core: &Scheduler) {
        let mut state = Writer::new();
        state.array(6);
        state.uint(entry::SCHEDULER);
        state.uint(core.transition_counter());
        state.uint(core.n_tasks);
        state.float(core.bandwidth());
        for workers in [
            core.idle().collect::<Vec<_>>(),
            core.saturated().collect::<Vec<_>>(),
        ] {
            state.array(workers.len());
            for worker in workers {
                state.uint(u64::from(worker.0));
            }
        }
        let hash = hash(&state);
        if self.scheduler != hash {
            self.scheduler = hash;
            self.log.raw(state.as_slice());
        }
    }

    fn tell_graph(&mut self) {
        if let Some(arguments) = self.graph.take() {
            self.tell_hook("update_graph", &arguments);
        }
    }

    fn tell_hook(&mut self, name: &str, arguments: &Value) {
        self.log.array(3);
        self.log.uint(entry::HOOK);
        self.log.str(name);
        value(&mut self.log, arguments);
    }
}

fn hash(written: &Writer) -> u64 {
    // 0 stands for nothing told.
    foldhash::fast::FixedState::default().hash_one(written.as_slice()) | 1
}

fn write_worker(log: &mut Writer, id: WorkerId, ws: &WorkerState) {
    log.array(13);
    log.uint(entry::WORKER);
    log.uint(u64::from(id.0));
    log.str(&ws.address);
    value(log, &ws.name);
    log.uint(u64::from(ws.nthreads));
    log.uint(ws.memory_limit);
    log.str(&ws.local_directory);
    match &ws.nanny {
        Some(nanny) => log.str(nanny),
        None => log.nil(),
    }
    log.str(&ws.server_id);
    value(log, &ws.services);
    value(log, &ws.versions);
    value(log, &Value::Map(ws.extra.clone()));
    log.int(ws.pid);
}

fn write_worker_state(log: &mut Writer, id: WorkerId, ws: &WorkerState) {
    log.array(7);
    log.uint(entry::WORKER_STATE);
    log.uint(u64::from(id.0));
    log.str(ws.status.name());
    for resources in [&ws.resources, &ws.used_resources] {
        log.map(resources.len());
        for (name, &amount) in resources {
            log.str(name);
            log.float(amount);
        }
    }
    ids(log, &ws.long_running);
    ids(log, &ws.actors);
}

fn write_worker_metrics(log: &mut Writer, id: WorkerId, ws: &WorkerState) {
    log.array(7);
    log.uint(entry::WORKER_METRICS);
    log.uint(u64::from(id.0));
    log.float(ws.last_seen);
    log.float(ws.time_delay);
    log.int(ws.memory_unmanaged_old);
    value(log, &ws.metrics);
    log.map(ws.executing.len());
    for (key, seconds) in &ws.executing {
        log.key(key);
        log.float(*seconds);
    }
}

fn write_task_state(log: &mut Writer, slot: u32, ts: &TaskState) {
    log.array(14);
    log.uint(entry::TASK_STATE);
    log.uint(u64::from(slot));
    log.str(ts.state.name());
    match &ts.priority {
        Some(priority) => {
            log.array(3);
            for number in priority.elements() {
                match number {
                    Number::Int(number) => log.int(number),
                    Number::Float(number) => log.float(number),
                }
            }
        }
        None => log.nil(),
    }
    log.int(ts.nbytes);
    log.int(ts.run_id);
    log.int(ts.retries);
    log.uint(u64::from(ts.suspicious));
    match &ts.r#type {
        Some(name) => log.str(name),
        None => log.nil(),
    }
    let flags = [
        (ts.actor, flag::ACTOR),
        (ts.loose_restrictions, flag::LOOSE_RESTRICTIONS),
        (ts.has_lost_dependencies, flag::LOST_DEPENDENCIES),
        (ts.has_run_spec(), flag::RUN_SPEC),
        (ts.queueable, flag::QUEUEABLE),
    ];
    log.uint(
        flags
            .iter()
            .filter(|(set, _)| *set)
            .map(|(_, flag)| flag)
            .sum(),
    );
    match ts.processing_on {
        Some(worker) => log.uint(u64::from(worker.0)),
        None => log.nil(),
    }
    ids(log, &ts.who_has);
    ids(log, &ts.who_wants);
    write_extras(log, ts);
}

/// What few tasks have: nil, or a map.
fn write_extras(log: &mut Writer, ts: &TaskState) {
    if ts.extras.is_none() && ts.failure.is_none() && ts.annotations.is_none() {
        return log.nil();
    }
    let mut annotations = ts
        .annotations
        .as_ref()
        .map_or_else(oxidask_wire::Map::new, |global| (**global).clone());
    let mut extra = oxidask_wire::Map::new();
    let texts = |texts: &[Arc<str>]| texts.iter().map(Value::from).collect::<Value>();
    if let Some(extras) = &ts.extras {
        for (name, value) in extras.annotations.iter() {
            if let Some(name) = name.as_str() {
                annotations.insert(name, value.clone());
            }
        }
        if !extras.host_restrictions.is_empty() {
            extra.push("host_restrictions", texts(&extras.host_restrictions));
        }
        if !extras.worker_restrictions.is_empty() {
            extra.push("worker_restrictions", texts(&extras.worker_restrictions));
        }
        if !extras.resource_restrictions.is_empty() {
            let resources: oxidask_wire::Map = extras
                .resource_restrictions
                .iter()
                .map(|(name, amount)| (name, Value::Float(*amount)))
                .collect();
            extra.push("resource_restrictions", resources);
        }
        if !extras.erred_on.is_empty() {
            let workers = extras.erred_on.iter().map(|worker| Value::from(worker.0));
            extra.push("erred_on", workers.collect::<Value>());
        }
        if !extras.metadata.is_empty() {
            extra.push("metadata", extras.metadata.clone());
        }
    }
    if let Some(failure) = &ts.failure {
        let cause: &Key = &failure.cause;
        extra.push("blame", cause);
        if ts.key == *cause {
            extra.push("exception", failure.exception.clone());
            extra.push("traceback", failure.traceback.clone());
        }
        extra.push("exception_text", failure.exception_text.as_str());
        extra.push("traceback_text", failure.traceback_text.as_str());
    }
    if !annotations.is_empty() {
        extra.push("annotations", annotations);
    }
    value(log, &Value::Map(extra));
}

fn ids<T: Id>(log: &mut Writer, set: &IdSet<T>) {
    log.array(set.len());
    for id in set {
        log.uint(u64::from(id.index()));
    }
}

fn counters(log: &mut Writer, counters: &ByName<i64>) {
    log.map(counters.len());
    for (name, &count) in counters {
        log.str(name);
        log.int(count);
    }
}

/// A value in place; one with payloads as `{"__frames__": [bin]}`.
fn value(log: &mut Writer, value: &Value) {
    let frames = message::encode(value);
    if let [frame] = &frames[..] {
        return log.raw(frame);
    }
    log.map(1);
    log.str("__frames__");
    log.array(frames.len());
    for frame in &frames {
        log.bin(frame);
    }
}
