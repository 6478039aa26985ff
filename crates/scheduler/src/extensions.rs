//! What the scheduler does beside scheduling: coordination primitives, event
//! topics, metadata, the task stream, P2P shuffles, retirement and scaling.
//!
//! ```text
//!  Event ──► Extensions::before ──► Scheduler::handle ──► Extensions::observe ──► Instructions
//!  request ─► Extensions::rpc ───────────────────────────────────┘  Reply now or later
//! ```
//!
//! Requests that have to wait are answered when something else happens, when
//! [`Extensions::tick`] finds their time over, or never if [`Extensions::cancel`]
//! takes them back.

mod arguments;
mod errors;
mod events;
mod interest;
mod memory_manager;
mod memory_sampler;
mod metadata;
mod multi_locks;
mod published;
mod queues;
mod requests;
mod retirement;
mod semaphores;
mod shuffles;
mod task_stream;
mod topics;
mod variables;
mod waits;

use std::collections::VecDeque;
use std::sync::Arc;

use indexmap::IndexMap;
use oxidask_wire::{Key, Map, Pickled, Value, map};

use self::arguments::{Arguments, hashable, python_type};
use self::errors::timeout_error;
use self::waits::{Context, Wait, Waits};
use crate::config::Config;
use crate::id::{ClientId, RequestId, StimulusId, WorkerId};
use crate::instruction::{Failure, Instruction, Instructions, Level, ToClient, ToWorker};
use crate::{Event, Scheduler, State};

pub use self::semaphores::SemaphoreMetrics;
pub use self::shuffles::InputsDone;

/// The extensions of one scheduler.
#[derive(Debug)]
pub struct Extensions {
    waits: Waits,
    /// Messages of clients' streams that came while a graph of the client is being taken in.
    deferred: VecDeque<Deferred>,
    /// Requests about keys that the scheduler does not know yet.
    unknown_tasks: IndexMap<RequestId, UnknownTask>,
    variables: variables::Variables,
    queues: queues::Queues,
    events: events::Events,
    semaphores: semaphores::Semaphores,
    multi_locks: multi_locks::MultiLocks,
    published: published::Published,
    topics: topics::Topics,
    metadata: metadata::Metadata,
    task_stream: task_stream::TaskStream,
    collectors: task_stream::Collectors,
    shuffles: shuffles::Shuffles,
    memory_manager: memory_manager::MemoryManager,
    memory_samplers: memory_sampler::MemorySamplers,
    /// `distributed.adaptive.target-duration`, in seconds.
    adaptive_target_duration: f64,
}

/// What variables and queues hold.
#[derive(Clone, Debug, PartialEq)]
enum Record {
    /// The key of a future.
    Future(Key),
    /// Anything a message can carry.
    Data(Value),
}

/// A message that takes effect after the graph that was submitted before it.
#[derive(Debug)]
struct Deferred {
    client: ClientId,
    name: Arc<str>,
    op: String,
    fields: Map,
}

/// A request that goes on once a task is known: its graph may still be on its
/// way on another connection of the same client.
#[derive(Debug)]
struct UnknownTask {
    key: Key,
    then: Then,
}

#[derive(Debug)]
enum Then {
    SetVariable { name: Key },
    Put { queue: Key },
}

/// An instruction of the core, or of an extension, that extensions react to.
fn concerns_extensions(instruction: &Instruction) -> bool {
    match instruction {
        Instruction::LogEvent { .. }
        | Instruction::TaskRecord(_)
        | Instruction::BarrierLeft { .. }
        | Instruction::TaskForgotten { .. }
        | Instruction::Restarted
        | Instruction::WorkerRemoved { .. } => true,
        Instruction::ToWorker { .. }
        | Instruction::ToClient { .. }
        | Instruction::ExplodeBundle { .. }
        | Instruction::Reply { .. }
        | Instruction::WorkerAdded { .. }
        | Instruction::CreateShuffleRun(_)
        | Instruction::ShuffleInputsDone { .. }
        | Instruction::Log { .. } => false,
    }
}

/// Python's `repr` of a value, for the texts of exceptions.
fn python_repr(value: &Value) -> String {
    match hashable(value) {
        Ok(key) => key.python_repr(),
        Err(_) if value.is_nil() => "None".to_owned(),
        Err(_) => format!("<{}>", python_type(value)),
    }
}

impl Extensions {
    /// Extensions without anything in them.
    pub fn new(config: &Config) -> Self {
        Self {
            waits: Waits::default(),
            deferred: VecDeque::new(),
            unknown_tasks: IndexMap::new(),
            variables: variables::Variables::default(),
            queues: queues::Queues::default(),
            events: events::Events::default(),
            semaphores: semaphores::Semaphores::new(config.lease_validation_interval),
            multi_locks: multi_locks::MultiLocks::default(),
            published: published::Published::default(),
            topics: topics::Topics::new(config.low_level_log_length, config.events_cleanup_delay),
            metadata: metadata::Metadata::default(),
            task_stream: task_stream::TaskStream::new(config.task_stream_length),
            collectors: task_stream::Collectors::default(),
            shuffles: shuffles::Shuffles::default(),
            memory_manager: memory_manager::MemoryManager::new(config.memory_manager),
            memory_samplers: memory_sampler::MemorySamplers::default(),
            adaptive_target_duration: 5.0,
        }
    }

    /// Keeps everything that is published for [`Extensions::heard`], or no longer.
    pub fn listen(&mut self, listen: bool) {
        self.topics.heard = listen.then(Vec::new);
    }

    /// Topics and messages published since the last time.
    pub fn heard(&mut self) -> Vec<(Arc<str>, Value)> {
        self.topics
            .heard
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Takes in a request. True if `op` is one of the extensions'; the answer is
    /// an [`Instruction::Reply`], now or later.
    ///
    /// `arguments` are the fields of the message without `op` and `reply`. A
    /// pickled `key` function of `workers_to_close` and `retire_workers` has to
    /// be replaced by a map from address to group before.
    pub fn rpc(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        request: RequestId,
        op: &str,
        arguments: &mut Map,
        out: &mut Instructions,
    ) -> bool {
        let mut own = Instructions::default();
        let mut arguments = Arguments {
            op,
            fields: arguments,
        };
        let Some(answer) = self.dispatch(scheduler, now, request, &mut arguments, &mut own) else {
            return false;
        };
        if let Some(result) = answer.transpose() {
            own.push(Instruction::Reply { request, result });
        }
        self.observe(scheduler, now, &mut own);
        out.append(&mut own);
        true
    }

    /// The connection of a waiting request is gone.
    pub fn cancel(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        request: RequestId,
        out: &mut Instructions,
    ) {
        let mut own = Instructions::default();
        if let Some(wait) = self.waits.remove(request) {
            self.forget(scheduler, now, request, &wait, &mut own);
            self.observe(scheduler, now, &mut own);
        }
        out.append(&mut own);
    }

    /// Takes a request that is no longer waiting out of what it waited at.
    fn forget(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        request: RequestId,
        wait: &Wait,
        out: &mut Instructions,
    ) {
        let cx = &mut Context::new(now, &mut self.waits, out);
        match wait {
            Wait::Task => {
                self.unknown_tasks.shift_remove(&request);
            }
            Wait::Variable { name } => self.variables.forget(name, request),
            Wait::QueueGet { name } | Wait::QueuePut { name } => {
                self.queues.forget(scheduler, cx, name, request);
            }
            Wait::Event { name } => self.events.forget(name, request),
            Wait::Semaphore { name } => self.semaphores.forget(now, name, request),
            Wait::MultiLock { id } => self.multi_locks.forget(cx, id),
            Wait::Flush { uid } => self.published.forget(uid),
            Wait::Shuffle => self.shuffles.forget(request),
            Wait::Retirement => self.memory_manager.retirements.forget(request),
            Wait::Orphan { .. } => {}
        }
    }

    /// A message on a client's stream. `Ok(false)` if `op` is not the extensions'.
    ///
    /// # Errors
    /// A field is missing or of the wrong type.
    pub fn client_stream(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        client: ClientId,
        op: &str,
        mut fields: Map,
        out: &mut Instructions,
    ) -> Result<bool, String> {
        if !requests::CLIENT_STREAM_OPS.contains(&op) {
            return Ok(false);
        }
        let Some(name) = scheduler.client(client).map(|client| client.name.clone()) else {
            return Ok(false);
        };
        if scheduler.is_taking_in(client) {
            self.deferred.push_back(Deferred {
                client,
                name,
                op: op.to_owned(),
                fields,
            });
            return Ok(true);
        }
        let mut own = Instructions::default();
        let mut arguments = Arguments {
            op,
            fields: &mut fields,
        };
        self.dispatch_stream(scheduler, now, &name, &mut arguments, &mut own)
            .map_err(|failure| failure.text)?;
        self.observe(scheduler, now, &mut own);
        out.append(&mut own);
        Ok(true)
    }

    /// Goes on with messages whose client's graph is in.
    fn resume_deferred(&mut self, scheduler: &mut Scheduler, now: f64, out: &mut Instructions) {
        let (ready, waiting): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.deferred)
            .into_iter()
            .partition(|message| !scheduler.is_taking_in(message.client));
        self.deferred = waiting;
        for mut message in ready {
            let mut arguments = Arguments {
                op: &message.op,
                fields: &mut message.fields,
            };
            let result = self.dispatch_stream(scheduler, now, &message.name, &mut arguments, out);
            if let Err(failure) = result {
                out.push(Instruction::Log {
                    level: Level::Warning,
                    text: format!(
                        "cannot handle `{}` of {}: {}",
                        message.op, message.name, failure.text
                    ),
                });
            }
        }
    }

    /// A message on a worker's stream. `Ok(false)` if `op` is not the extensions'.
    ///
    /// # Errors
    /// A field is missing or of the wrong type.
    pub fn worker_stream(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        worker: WorkerId,
        op: &str,
        mut fields: Map,
        out: &mut Instructions,
    ) -> Result<bool, String> {
        if op != "log-event" {
            return Ok(false);
        }
        let mut arguments = Arguments {
            op,
            fields: &mut fields,
        };
        let topic = arguments
            .required("topic")
            .map_err(|failure| failure.text)?;
        let mut message = arguments.required("msg").map_err(|failure| failure.text)?;
        let topics = topics::topic_names(&topic).map_err(|failure| failure.text)?;
        if let Some(worker) = scheduler.worker(worker)
            && let Value::Map(message) = &mut message
            && topic.as_str() != Some(&worker.address)
        {
            message.insert("worker", &worker.address);
        }
        self.topics.publish(scheduler, now, &topics, &message, out);
        Ok(true)
    }

    /// To be called with every event before the scheduler handles it.
    pub fn before(&mut self, event: &Event) {
        if let Event::UpdateGraph(graph) = event
            && !self.collectors.is_empty()
        {
            self.collectors.requested(&graph.requested);
        }
    }

    /// To be called with the instructions of every event, right after the
    /// scheduler handled it: takes out what is meant for the extensions and adds
    /// what follows.
    pub fn observe(&mut self, scheduler: &mut Scheduler, now: f64, out: &mut Instructions) {
        self.memory_manager.wind(scheduler, now);
        if !self.deferred.is_empty() {
            self.resume_deferred(scheduler, now, out);
        }
        if !self.unknown_tasks.is_empty() {
            self.resume_known(scheduler, now, out);
        }
        if !self.collectors.is_empty() {
            self.collect(scheduler, out);
        }
        if !out.iter().any(concerns_extensions) {
            return;
        }
        let mut done = Instructions::default();
        // `shuffle-fail` has to arrive before the same event's `compute-task`s: stock
        // sends it in the middle of the transitions, whose messages go out at their end.
        let mut first = Instructions::default();
        let mut removals = Removals::default();
        let mut batch = std::mem::take(&mut out.0);
        while !batch.is_empty() {
            let mut following = Instructions::default();
            for instruction in batch {
                self.react(
                    scheduler,
                    now,
                    instruction,
                    &mut done,
                    &mut following,
                    &mut removals,
                );
            }
            let (fails, rest) = following.0.into_iter().partition(is_shuffle_fail);
            first.append(&mut Vec::from_iter::<Vec<_>>(fails));
            batch = rest;
        }
        first.append(&mut done);
        *out = first;
    }

    fn react(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        instruction: Instruction,
        done: &mut Instructions,
        following: &mut Instructions,
        removals: &mut Removals,
    ) {
        let cx = &mut Context::new(now, &mut self.waits, following);
        match instruction {
            Instruction::LogEvent { topics, message } => {
                self.topics.publish(scheduler, now, &topics, &message, done);
                if let Some(client) = removed_client(&topics, &message) {
                    self.variables.client_left(scheduler, cx, client);
                    self.published.client_left(client);
                    self.topics.left(now, client.into());
                }
            }
            Instruction::TaskRecord(record) => {
                if record.finish == State::Erred
                    && let Some(shuffle_id) = self.shuffles.failed_with(scheduler, &record.key)
                {
                    let message = map! {
                        "action" => "p2p-failed",
                        "shuffle" => shuffle_id,
                        "stimulus" => record.stimulus_id.as_str(),
                    };
                    self.topics
                        .publish(scheduler, now, &["p2p".into()], &message.into(), done);
                }
                self.task_stream.push(record);
            }
            Instruction::BarrierLeft {
                shuffle_id,
                stimulus_id,
                ..
            } => {
                if self
                    .shuffles
                    .barrier_left(scheduler, cx, &shuffle_id, &stimulus_id)
                {
                    // Its worker's removal may be what restarts it, before or after this.
                    if removals.done.contains(&stimulus_id) {
                        self.shuffles
                            .restart_shuffle(scheduler, cx, &shuffle_id, &stimulus_id);
                    } else {
                        removals.archived.push((stimulus_id, shuffle_id));
                    }
                }
            }
            Instruction::WorkerRemoved {
                worker,
                address,
                name,
                stimulus_id,
            } => {
                for shuffle_id in self
                    .shuffles
                    .worker_left(scheduler, cx, &address, &stimulus_id)
                {
                    removals.archived.push((stimulus_id.clone(), shuffle_id));
                }
                for (_, shuffle_id) in removals
                    .archived
                    .extract_if(.., |(stimulus, _)| *stimulus == stimulus_id)
                {
                    self.shuffles
                        .restart_shuffle(scheduler, cx, &shuffle_id, &stimulus_id);
                }
                self.memory_manager.retirements.worker_left(now, worker);
                self.topics.left(now, address.clone());
                removals.done.push(stimulus_id.clone());
                done.push(Instruction::WorkerRemoved {
                    worker,
                    address,
                    name,
                    stimulus_id,
                });
            }
            Instruction::TaskForgotten { key } => {
                self.metadata.forget(&key);
                scheduler.announce_forgotten(&key, false);
            }
            Instruction::Restarted => {
                self.shuffles.clear(cx);
                done.push(Instruction::Restarted);
            }
            Instruction::ToWorker { .. }
            | Instruction::ToClient { .. }
            | Instruction::ExplodeBundle { .. }
            | Instruction::Reply { .. }
            | Instruction::WorkerAdded { .. }
            | Instruction::CreateShuffleRun(_)
            | Instruction::ShuffleInputsDone { .. }
            | Instruction::Log { .. } => done.push(instruction),
        }
    }

    /// Feeds collectors of task metadata with the keys that were reported just now.
    fn collect(&mut self, scheduler: &Scheduler, out: &Instructions) {
        for instruction in out.iter() {
            let Instruction::ToClient { message, .. } = instruction else {
                continue;
            };
            match message {
                ToClient::KeyInMemory {
                    key,
                    r#type: Some(_),
                    ..
                } => self.collectors.finished(scheduler, key, State::Memory),
                ToClient::TaskErred { key, .. } => {
                    self.collectors.finished(scheduler, key, State::Erred)
                }
                ToClient::KeyInMemory { .. }
                | ToClient::LostData { .. }
                | ToClient::TaskRetried { .. }
                | ToClient::CancelledKeys { .. }
                | ToClient::Restart
                | ToClient::Event { .. }
                | ToClient::AdjustHeartbeatInterval { .. } => {}
            }
        }
    }

    /// The answer to [`Instruction::CreateShuffleRun`]: where each output
    /// partition goes, and the pickled `ShuffleRunSpec`.
    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of the helper's answer"
    )]
    pub fn shuffle_run_created(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        shuffle_id: &Arc<str>,
        run_id: i64,
        worker_for: Vec<(Value, Arc<str>)>,
        run_spec: Pickled,
        out: &mut Instructions,
    ) {
        let mut own = Instructions::default();
        let cx = &mut Context::new(now, &mut self.waits, &mut own);
        self.shuffles
            .created(scheduler, cx, shuffle_id, run_id, worker_for, run_spec);
        self.observe(scheduler, now, &mut own);
        out.append(&mut own);
    }

    /// The graph helper could not carry out [`Instruction::CreateShuffleRun`].
    pub fn shuffle_run_failed(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        shuffle_id: &Arc<str>,
        run_id: i64,
        failure: &Failure,
        out: &mut Instructions,
    ) {
        let mut own = Instructions::default();
        let cx = &mut Context::new(now, &mut self.waits, &mut own);
        self.shuffles
            .creation_failed(scheduler, cx, shuffle_id, run_id, failure);
        self.observe(scheduler, now, &mut own);
        out.append(&mut own);
    }

    /// The workers' answers to [`Instruction::ShuffleInputsDone`].
    pub fn shuffle_inputs_done_result(
        &mut self,
        scheduler: &Scheduler,
        now: f64,
        request: RequestId,
        answers: Vec<(Arc<str>, InputsDone)>,
        out: &mut Instructions,
    ) {
        let cx = &mut Context::new(now, &mut self.waits, out);
        self.shuffles.inputs_done(scheduler, cx, request, answers);
    }

    /// When [`Self::tick`] should be called, in seconds since the epoch.
    pub fn next_deadline(&self) -> Option<f64> {
        let deadlines = [
            self.waits.next_deadline(),
            self.semaphores.next_deadline(),
            self.topics.next_deadline(),
            self.shuffles.next_deadline(),
            self.memory_manager.next_deadline(),
            self.memory_samplers.next_deadline(),
        ];
        deadlines.into_iter().flatten().reduce(f64::min)
    }

    /// Lets time pass.
    pub fn tick(&mut self, scheduler: &mut Scheduler, now: f64, out: &mut Instructions) {
        let mut own = Instructions::default();
        while let Some((request, wait)) = self.waits.expire(now) {
            self.time_out(scheduler, now, request, wait, &mut own);
        }
        self.topics.tick(scheduler, now);
        self.memory_samplers.tick(scheduler, now);
        let cx = &mut Context::new(now, &mut self.waits, &mut own);
        self.semaphores.tick(cx);
        self.shuffles.tick(cx);
        self.memory_manager.tick(scheduler, cx);
        self.observe(scheduler, now, &mut own);
        out.append(&mut own);
    }

    fn time_out(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        request: RequestId,
        wait: Wait,
        out: &mut Instructions,
    ) {
        if let Wait::Flush { uid } = wait {
            let cx = &mut Context::new(now, &mut self.waits, out);
            self.published.expired(scheduler, cx, uid, request);
            return;
        }
        let result = match &wait {
            Wait::Task => {
                let key = self
                    .unknown_tasks
                    .get(&request)
                    .map(|unknown| unknown.key.python_str());
                let key = key.unwrap_or_default();
                Err(timeout_error(&format!("Task {key} unknown to scheduler.")))
            }
            Wait::Event { .. } | Wait::Semaphore { .. } | Wait::MultiLock { .. } => {
                Ok(Value::Bool(false))
            }
            Wait::Orphan {
                answers_false: true,
            } => Ok(Value::Bool(false)),
            Wait::Variable { .. }
            | Wait::QueueGet { .. }
            | Wait::QueuePut { .. }
            | Wait::Flush { .. }
            | Wait::Shuffle
            | Wait::Retirement
            | Wait::Orphan {
                answers_false: false,
            } => Err(timeout_error("")),
        };
        self.forget(scheduler, now, request, &wait, out);
        out.push(Instruction::Reply { request, result });
    }

    /// Sets `distributed.adaptive.target-duration`, in seconds.
    pub fn set_adaptive_target_duration(&mut self, seconds: f64) {
        self.adaptive_target_duration = seconds;
    }

    /// Whether the active memory manager runs by itself.
    pub fn memory_manager_is_running(&self) -> bool {
        self.memory_manager.is_running()
    }

    /// Figures of every semaphore, for Prometheus.
    pub fn semaphores(&self) -> impl Iterator<Item = SemaphoreMetrics> + '_ {
        self.semaphores.metrics()
    }

    /// Ids of the active P2P shuffles and their runs.
    pub fn active_shuffles(&self) -> impl Iterator<Item = (&Arc<str>, i64)> {
        self.shuffles.active()
    }

    /// Number of requests that wait.
    pub fn waiting_count(&self) -> usize {
        self.waits.len()
    }

    /// Checks every cross-reference; for tests and simulations.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn validate(&self, scheduler: &Scheduler) {
        self.variables.validate();
        self.queues.validate();
        self.semaphores.validate();
        self.multi_locks.validate();
        self.shuffles.validate(scheduler);
    }
}

/// Removals of workers and barriers that left memory within one batch of instructions.
#[derive(Debug, Default)]
struct Removals {
    /// Shuffles deactivated by a stimulus that may turn out to be a worker's removal.
    archived: Vec<(StimulusId, Arc<str>)>,
    /// Stimuli that removed a worker.
    done: Vec<StimulusId>,
}

fn is_shuffle_fail(instruction: &Instruction) -> bool {
    matches!(
        instruction,
        Instruction::ToWorker {
            message: ToWorker::ShuffleFail { .. },
            ..
        }
    )
}

/// The client that the core's `remove-client` event is about.
fn removed_client<'a>(topics: &'a [Arc<str>], message: &Value) -> Option<&'a str> {
    let action = message.as_map()?.get("action")?.as_str()?;
    match topics {
        [all, client] if **all == *"all" && action == "remove-client" => Some(client),
        _ => None,
    }
}
