//! Graphs are merged into what the scheduler knows.
//!
//! A small graph is taken in at once, in the order in which stock makes its
//! recommendations. A large one is taken in by slices (module `sliced`), with
//! other events between them.

mod annotations;
mod sliced;

use std::cmp::Reverse;
use std::sync::Arc;

use hashbrown::hash_table::Entry;
use hashbrown::{HashSet, HashTable};
use oxidask_wire::{Key, Map, Value};

use crate::graph::{Actors, Graph, Number, RunSpec, TaskFlags};
use crate::id::{ClientId, GroupId, TaskId};
use crate::instruction::{Instructions, Level, ToClient};
use crate::scheduler::{Cx, Scheduler};
use crate::spans::Observer;
use crate::task::{Priority, Rank, State};
use crate::tasks::KeyHash;

use annotations::Annotations;
pub(crate) use sliced::PendingGraph;

/// What was submitted while the scheduler was not idle.
#[derive(Clone, Debug, PartialEq)]
pub struct Computation {
    /// When the first graph arrived, in seconds since the epoch.
    pub start: f64,
    /// `code` of its graphs, as it came.
    pub code: Vec<Value>,
}

/// A graph on its way in, and what is known about its tasks so far.
#[derive(Debug)]
pub(crate) struct Intake {
    graph: Graph,
    /// Tasks of the graph; keys from here on name dependencies outside it.
    task_count: usize,
    /// Indices of the graph's keys, by hash.
    index: HashTable<u32>,
    hashes: Vec<KeyHash>,
    /// Per key: the task, if known, with its birth.
    tasks: Vec<Option<(TaskId, u32)>>,
    /// Per key: reached from the requested keys.
    reached: Vec<bool>,
    /// Reached keys, in order of discovery (small graphs) or dependencies first (large ones).
    touched: Vec<u32>,
    /// Per key: this graph made the task.
    created: Vec<bool>,
    /// Per key: known with other dependencies; the old definition stays.
    collided: Vec<bool>,
    new_count: usize,
    collision_count: usize,
    groups_warned: HashSet<GroupId, foldhash::fast::FixedState>,
    /// Requested keys that are not keys of the graph at all.
    requested_outside: Vec<Key>,
    /// Indices of the requested keys.
    requested: Vec<u32>,
    /// Dependencies and requested keys that nobody knows.
    lost: Vec<Key>,
    /// The scheduler's ids of the graph's bundles.
    bundles: Vec<u32>,
    generation: Number,
    global: Annotations,
    observer: Observer,
}

impl Intake {
    fn new(graph: Graph) -> Self {
        let key_count = graph.keys.len();
        Self {
            task_count: graph.specs.len(),
            index: HashTable::with_capacity(key_count),
            hashes: Vec::with_capacity(key_count),
            tasks: vec![None; key_count],
            reached: vec![false; key_count],
            touched: Vec::with_capacity(key_count),
            created: vec![false; key_count],
            collided: vec![false; key_count],
            new_count: 0,
            collision_count: 0,
            groups_warned: HashSet::default(),
            requested_outside: Vec::new(),
            requested: Vec::with_capacity(graph.requested.len()),
            lost: Vec::new(),
            bundles: Vec::new(),
            generation: Number::Int(0),
            global: Annotations::default(),
            observer: Observer::default(),
            graph,
        }
    }

    fn dependencies(&self, at: u32) -> &[u32] {
        let at = at as usize;
        if at >= self.task_count {
            return &[];
        }
        let (start, stop) = (
            self.graph.dependency_offsets[at],
            self.graph.dependency_offsets[at + 1],
        );
        &self.graph.dependencies[start as usize..stop as usize]
    }

    fn is_task(&self, at: u32) -> bool {
        (at as usize) < self.task_count
    }
}

impl Graph {
    /// Whether the columns fit together, on which everything else relies.
    fn is_consistent(&self) -> bool {
        let count = self.specs.len();
        let key_count = self.keys.len();
        count <= key_count
            && u32::try_from(key_count).is_ok()
            && self.flags.len() == count
            && self.order.len() == count
            && self.dependency_offsets.len() == count + 1
            && self.dependency_offsets.first() == Some(&0)
            && self.dependency_offsets.is_sorted()
            && self.dependency_offsets.last().map(|&last| last as usize)
                == Some(self.dependencies.len())
            && self
                .dependencies
                .iter()
                .all(|&at| (at as usize) < key_count)
            && self
                .annotations
                .iter()
                .all(|&(at, _)| (at as usize) < count)
            && self.annotations.is_sorted_by_key(|&(at, _)| at)
            && self.barriers.iter().all(|&(at, _)| (at as usize) < count)
            && self.specs.iter().all(|spec| match spec {
                RunSpec::Bundle { bundle, .. } => (*bundle as usize) < self.bundles.len(),
                RunSpec::None | RunSpec::Pickle(_) | RunSpec::Buffers(_) | RunSpec::Call { .. } => {
                    true
                }
            })
    }
}

impl Scheduler {
    pub(crate) fn update_graph(&mut self, now: f64, graph: Graph, out: &mut Instructions) {
        if self.clients.get(graph.client).is_none() {
            return;
        }
        let stimulus_id = graph.stimulus_id.clone();
        let cx = &mut Cx {
            now,
            stimulus_id: &stimulus_id,
            out,
        };
        if !graph.is_consistent() {
            let (exception, _) =
                crate::failure::runtime_error("the graph helper's answer does not fit together");
            let text = "inconsistent graph".to_owned();
            self.graph_failed(
                graph.client,
                &graph.requested,
                &exception,
                &Value::Nil,
                text,
                cx,
            );
            return;
        }
        if graph.specs.len() > self.config.graph_slice {
            self.begin_sliced(graph);
            return;
        }
        self.settle_keys(graph.keys.iter(), now, cx.out);

        let mut intake = Intake::new(graph);
        let key_count = intake.graph.keys.len();
        if !self.index_keys(&mut intake, 0..key_count) {
            let client = intake.graph.client;
            self.graph_failed(
                client,
                &intake.graph.requested,
                &duplicate_key(),
                &Value::Nil,
                String::new(),
                cx,
            );
            return;
        }
        self.find_requested(&mut intake);
        self.walk_from_requested(&mut intake);
        if !intake.lost.is_empty() {
            self.cancel_lost(&intake, cx);
            return;
        }
        if let Err(exception) = self.read_annotations(&mut intake) {
            let client = intake.graph.client;
            self.graph_failed(
                client,
                &intake.graph.requested,
                &exception,
                &Value::Nil,
                String::new(),
                cx,
            );
            return;
        }
        self.begin_merge(&mut intake);
        for at in 0..intake.touched.len() {
            self.merge_task(&mut intake, at, cx);
        }
        for at in 0..intake.task_count as u32 {
            if intake.reached[at as usize] {
                self.add_edges(&intake, at);
            }
        }
        self.drop_unused_bundles(&intake);
        self.set_priorities(&intake);

        let client = intake.graph.client;
        let requested = self.requested_tasks(&intake);
        for &task in &requested {
            self.add_interest(client, task, cx.out);
        }
        self.mark_actors(&intake);

        let mut wanted: Vec<(Rank, TaskId)> = requested
            .iter()
            .filter(|&&task| self.tasks[task].state == State::Released)
            .map(|&task| (self.tasks[task].rank(), task))
            .collect();
        wanted.sort_by_key(|&(rank, _)| Reverse(rank));
        for (_, task) in wanted {
            self.recommend(task, State::Waiting);
        }
        for &at in &intake.touched {
            if let Some((task, _)) = intake.tasks[at as usize] {
                self.inherit_failure(task);
                self.observe_task(&mut intake.observer, task, now);
            }
        }
        self.transitions(cx);
        self.forget_orphans(&intake, cx);
        self.queue_slots_maybe_opened(cx);
        for &at in &intake.touched {
            if let Some(task) = self.alive(&intake, at) {
                self.report_if_done(task, client, cx.out);
            }
        }
        self.log_update(&intake, cx);
    }

    /// The graph could not be materialised: every requested key erred, for this client only.
    pub(crate) fn graph_failed(
        &mut self,
        client: ClientId,
        keys: &[Key],
        exception: &Value,
        traceback: &Value,
        text: String,
        cx: &mut Cx<'_>,
    ) {
        let Some(cs) = self.clients.get(client) else {
            return;
        };
        let name = cs.name.clone();
        cx.event(
            ["scheduler".into(), name],
            Value::Map(update_message(cx.stimulus_id.as_str(), "error")),
        );
        if !text.is_empty() {
            cx.log(Level::Error, text);
        }
        for key in keys {
            let make = || ToClient::TaskErred {
                key: key.clone(),
                exception: exception.clone(),
                traceback: traceback.clone(),
            };
            if let Some(task) = self.tasks.find(key) {
                for other in &self.tasks[task].who_wants {
                    if other != client {
                        self.tell_client(other, make(), cx.out);
                    }
                }
            }
            self.tell_client(client, make(), cx.out);
        }
    }

    /// Hashes a range of keys and looks them up; false if one comes twice.
    fn index_keys(&self, intake: &mut Intake, range: std::ops::Range<usize>) -> bool {
        let Intake {
            graph,
            index,
            hashes,
            tasks,
            ..
        } = intake;
        for at in range {
            let key = &graph.keys[at];
            let hash = self.tasks.hash(key);
            hashes.push(hash);
            tasks[at] = self
                .tasks
                .find_hashed(hash, key)
                .map(|task| (task, self.tasks[task].birth));
            let is_known = |&other: &u32| graph.keys[other as usize] == *key;
            match index.entry(hash.spread(), is_known, |&other| {
                hashes[other as usize].spread()
            }) {
                Entry::Vacant(entry) => entry.insert(at as u32),
                Entry::Occupied(_) => return false,
            };
        }
        true
    }

    fn find_requested(&self, intake: &mut Intake) {
        let Intake { graph, index, .. } = &*intake;
        let mut requested = Vec::with_capacity(graph.requested.len());
        let mut outside = Vec::new();
        for key in &graph.requested {
            match index.find(self.tasks.hash(key).spread(), |&at| {
                graph.keys[at as usize] == *key
            }) {
                Some(&at) => requested.push(at),
                None => outside.push(key.clone()),
            }
        }
        intake.requested = requested;
        intake.lost.extend(
            outside
                .iter()
                .filter(|key| self.tasks.find(key).is_none())
                .cloned(),
        );
        intake.requested_outside = outside;
    }

    /// Finds what the requested keys need, and what of that nobody knows.
    fn walk_from_requested(&self, intake: &mut Intake) {
        let mut stack = intake.requested.clone();
        while let Some(at) = stack.pop() {
            if std::mem::replace(&mut intake.reached[at as usize], true) {
                continue;
            }
            intake.touched.push(at);
            if !intake.is_task(at) && intake.tasks[at as usize].is_none() {
                intake.lost.push(intake.graph.keys[at as usize].clone());
            }
            stack.extend_from_slice(intake.dependencies(at));
        }
    }

    fn cancel_lost(&mut self, intake: &Intake, cx: &mut Cx<'_>) {
        let client = intake.graph.client;
        for key in &intake.lost {
            cx.log(
                Level::Info,
                format!("User asked for computation on lost data. Missing dependency is {key}"),
            );
        }
        let message = ToClient::CancelledKeys {
            keys: intake.graph.requested.clone(),
            as_set: true,
            reason: Value::from("lost dependencies"),
            msg: Value::Nil,
        };
        self.tell_client(client, message, cx.out);
        self.release_interest(client, &intake.graph.requested, cx);
        let Some(cs) = self.clients.get(client) else {
            return;
        };
        let name = cs.name.clone();
        cx.event(
            ["scheduler".into(), name],
            Value::Map(update_message(cx.stimulus_id.as_str(), "cancelled")),
        );
    }

    /// What is decided once per graph: its generation, its bundles, what its spans are told.
    fn begin_merge(&mut self, intake: &mut Intake) {
        intake.bundles = std::mem::take(&mut intake.graph.bundles)
            .into_iter()
            .map(|blob| self.bundles.insert(blob))
            .collect();
        intake.generation = self.next_generation(&intake.graph);
        self.note_computation(&intake.graph);
        let code = std::mem::take(&mut intake.graph.code);
        let metadata = std::mem::take(&mut intake.graph.span_metadata);
        intake.observer = Observer::new(code, metadata);
    }

    fn drop_unused_bundles(&mut self, intake: &Intake) {
        for &bundle in &intake.bundles {
            self.bundles.drop_unused(bundle);
        }
    }

    /// Tasks submitted by a task come before their parent's generation, graphs
    /// submitted within the fifo timeout share one.
    fn next_generation(&mut self, graph: &Graph) -> Number {
        if let Some(key) = &graph.submitting_task {
            let parent = self
                .tasks
                .find(key)
                .and_then(|task| self.tasks[task].priority);
            return match parent {
                // Element 0 of the parent's priority, as in stock.
                Some(priority) => Number::Float(priority.user() - 0.01),
                None => Number::Int(self.generation),
            };
        }
        if self.last_generation_time + graph.fifo_timeout < graph.start {
            self.generation += 1;
            self.last_generation_time = graph.start;
        }
        Number::Int(self.generation)
    }

    /// Creates the task of `touched[at]`, or reconciles the one that is known.
    fn merge_task(&mut self, intake: &mut Intake, at: usize, cx: &mut Cx<'_>) {
        let at = intake.touched[at];
        let known = intake.tasks[at as usize].map(|(task, _)| task);
        let Some(task) = known else {
            if intake.is_task(at) {
                self.create_task(intake, at);
            }
            return;
        };
        if !intake.is_task(at) {
            return;
        }
        if !self.tasks[task].has_run_spec() {
            self.adopt_spec(intake, at, task);
        } else if !self.has_dependencies(intake, at, task) {
            intake.collided[at as usize] = true;
            intake.collision_count += 1;
            self.warn_collision(intake, task, cx);
        }
    }

    fn create_task(&mut self, intake: &mut Intake, at: u32) {
        let key = intake.graph.keys[at as usize].clone();
        let task = self.new_task_hashed(
            intake.hashes[at as usize],
            key,
            RunSpec::None,
            State::Released,
        );
        intake.tasks[at as usize] = Some((task, self.tasks[task].birth));
        intake.created[at as usize] = true;
        intake.new_count += 1;
        self.adopt_spec(intake, at, task);
        self.annotate(intake, at, task);
    }

    fn adopt_spec(&mut self, intake: &mut Intake, at: u32, task: TaskId) {
        let flags = intake.graph.flags[at as usize].0;
        let mut spec = std::mem::take(&mut intake.graph.specs[at as usize]);
        if let RunSpec::Bundle { bundle, .. } = &mut spec {
            *bundle = intake.bundles[*bundle as usize];
            self.bundles.retain(*bundle);
        }
        let ts = &mut self.tasks[task];
        ts.run_spec = spec;
        ts.data_producer = flags & (TaskFlags::DATA_PRODUCER | TaskFlags::DATA) != 0;
        if flags & TaskFlags::BARRIER != 0
            && let Some((_, shuffle_id)) = intake
                .graph
                .barriers
                .iter()
                .find(|&&(other, _)| other == at)
        {
            ts.extras_mut().barrier = Some(shuffle_id.clone());
        }
    }

    /// Whether a known task has exactly the dependencies that the graph gives it.
    fn has_dependencies(&self, intake: &Intake, at: u32, task: TaskId) -> bool {
        let own = &self.tasks[task].dependencies;
        let given = intake.dependencies(at);
        if own.len() > given.len() {
            return false;
        }
        let all_known = given.iter().all(|&dependency| {
            self.alive(intake, dependency)
                .is_some_and(|dependency| own.contains(dependency))
        });
        // A dependency may be listed twice.
        let distinct = || given.iter().collect::<HashSet<_>>().len();
        all_known && (own.len() == given.len() || own.len() == distinct())
    }

    fn warn_collision(&mut self, intake: &mut Intake, task: TaskId, cx: &mut Cx<'_>) {
        let ts = &self.tasks[task];
        if !intake.groups_warned.insert(ts.group) {
            return;
        }
        cx.log(
            Level::Warning,
            format!(
                "Detected different `run_spec` for key {:?} between two consecutive calls to `update_graph`. \
                 This can cause failures and deadlocks down the line. Please ensure unique key names. \
                 If you are using a standard dask collections, consider releasing all the data before \
                 resubmitting another computation. More details and help can be found at \
                 https://github.com/dask/dask/issues/9888. The old definition, with {} dependencies \
                 and in state {}, stays.",
                ts.key,
                ts.dependencies.len(),
                ts.state,
            ),
        );
    }

    /// Adds the edges of a task. Known tasks that the requested keys do not need
    /// are left alone, whatever the graph says about them; stock adds edges to
    /// them without a look at what they were.
    fn add_edges(&mut self, intake: &Intake, at: u32) {
        if intake.collided[at as usize] {
            return;
        }
        let Some((task, _)) = intake.tasks[at as usize] else {
            return;
        };
        let group = self.tasks[task].group;
        for &dependency in intake.dependencies(at) {
            let Some((dependency, _)) = intake.tasks[dependency as usize] else {
                continue;
            };
            if self.tasks[task].dependencies.insert(dependency) {
                let dts = &mut self.tasks[dependency];
                dts.dependents.insert(task);
                let on = dts.group;
                self.groups.add_dependency(group, on);
            }
        }
    }

    /// Source code of the submissions of one computation, for diagnostics.
    fn note_computation(&mut self, graph: &Graph) {
        let code = graph.code.clone();
        let is_idle = self.is_idle();
        match self.computations.back_mut() {
            Some(computation) if !is_idle => {
                if !code.is_nil() && computation.code.len() < self.config.computations_max_history {
                    computation.code.push(code);
                }
            }
            Some(_) | None => {
                self.computations.push_back(Computation {
                    start: graph.start,
                    code: Some(code)
                        .filter(|code| !code.is_nil())
                        .into_iter()
                        .collect(),
                });
                if self.computations.len() > self.config.computations_max_history {
                    self.computations.pop_front();
                }
            }
        }
    }

    fn set_priorities(&mut self, intake: &Intake) {
        for &at in &intake.touched {
            self.set_priority(intake, at);
        }
    }

    fn set_priority(&mut self, intake: &Intake, at: u32) {
        if !intake.is_task(at) {
            return;
        }
        let Some((task, _)) = intake.tasks[at as usize] else {
            return;
        };
        let ts = &self.tasks[task];
        if ts.priority.is_some() {
            return;
        }
        let user = ts
            .annotation("priority")
            .and_then(Number::from_value)
            .unwrap_or(intake.graph.user_priority);
        let order = intake.graph.order[at as usize];
        self.tasks[task].priority = Some(Priority::new(user, intake.generation, order));
    }

    /// Tasks the client asked for, as far as they are known.
    fn requested_tasks(&self, intake: &Intake) -> Vec<TaskId> {
        let inside = intake
            .requested
            .iter()
            .filter_map(|&at| self.alive(intake, at));
        let outside = intake
            .requested_outside
            .iter()
            .filter_map(|key| self.tasks.find(key));
        inside.chain(outside).collect()
    }

    fn mark_actors(&mut self, intake: &Intake) {
        match &intake.graph.actors {
            Actors::None => {}
            Actors::All => {
                for task in self.requested_tasks(intake) {
                    self.mark_actor(task);
                }
            }
            Actors::Keys(keys) => {
                for key in keys {
                    if let Some(task) = self.tasks.find(key) {
                        self.mark_actor(task);
                    }
                }
            }
        }
    }

    fn mark_actor(&mut self, task: TaskId) {
        let ts = &mut self.tasks[task];
        if std::mem::replace(&mut ts.actor, true) {
            return;
        }
        // A known task may be with a worker already.
        if let Some(worker) = ts.processing_on.or(ts.who_has.first()) {
            self.workers[worker].actors.insert(task);
        }
    }

    /// Forgets tasks that nothing came to depend on because the key they were made
    /// for has another definition. (Stock keeps them for ever.)
    fn forget_orphans(&mut self, intake: &Intake, cx: &mut Cx<'_>) {
        if intake.collision_count == 0 {
            return;
        }
        for &at in &intake.touched {
            let Some(task) = self.alive(intake, at) else {
                continue;
            };
            let ts = &self.tasks[task];
            let is_at_rest = matches!(ts.state, State::Released | State::Erred);
            if is_at_rest && ts.dependents.is_empty() && !ts.is_wanted() {
                self.recommend(task, State::Forgotten);
            }
        }
        self.transitions(cx);
    }

    /// The task of a key, unless it was forgotten since it was seen last.
    fn alive(&self, intake: &Intake, at: u32) -> Option<TaskId> {
        let (task, birth) = intake.tasks[at as usize]?;
        self.tasks
            .get(task)
            .is_some_and(|ts| ts.birth == birth)
            .then_some(task)
    }

    fn report_if_done(&self, task: TaskId, client: ClientId, out: &mut Instructions) {
        if matches!(self.tasks[task].state, State::Memory | State::Erred) {
            self.report_task(task, Some(client), out);
        }
    }

    fn log_update(&mut self, intake: &Intake, cx: &mut Cx<'_>) {
        let Some(cs) = self.clients.get(intake.graph.client) else {
            return;
        };
        let name: Arc<str> = cs.name.clone();
        let duration = cx.now - intake.graph.start;
        let mut metrics = Map::new();
        metrics.push("tasks", intake.task_count);
        metrics.push("new_tasks", intake.new_count);
        metrics.push("key_collisions", intake.collision_count);
        metrics.push("start_timestamp_seconds", intake.graph.start);
        metrics.push("materialization_duration_seconds", duration);
        metrics.push("ordering_duration_seconds", 0.0);
        metrics.push("state_initialization_duration_seconds", 0.0);
        metrics.push("duration_seconds", duration);
        let mut message = update_message(cx.stimulus_id.as_str(), "OK");
        message.push("metrics", Value::Map(metrics));
        cx.event(["scheduler".into(), name], Value::Map(message));
    }
}

/// What the client is told about a graph in which a key comes twice.
fn duplicate_key() -> Value {
    crate::failure::runtime_error("a key comes twice in the materialised graph").0
}

fn update_message(stimulus_id: &str, status: &str) -> Map {
    let mut message = Map::new();
    message.push("action", "update-graph");
    message.push("stimulus_id", stimulus_id);
    message.push("status", status);
    message
}
