//! P2P shuffles on the scheduler's side: `ShuffleSchedulerPlugin`.
//!
//! ```text
//!  first transfer task ──shuffle_get_or_create──► Creation ──graph helper──► Run (active)
//!                                                    ▲                        │ participant lost,
//!                                                    │                        ▼ barrier leaves memory
//!                                    tasks run again ◄── restart ◄── deactivated (shuffle-fail)
//! ```
//!
//! The layout of a run needs Python (`spec.pick_worker`), so that a run comes
//! into being in two steps here and at once in stock. Sibling shuffles, whose
//! outputs meet in the same tasks, are therefore laid out one after the other.

use std::hash::RandomState;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use indexmap::{IndexMap, IndexSet};
use oxidask_wire::{Key, Pickled, Value, map, python};

use super::errors::{
    error_message, key_error, key_error_text, p2p_consistency_error, p2p_illegal_state_error,
    runtime_error, value_error,
};
use super::waits::{Answer, Context, NONE, PENDING, Wait};
use crate::id::{RequestId, StimulusId, TaskId};
use crate::instruction::{CreateShuffleRun, Failure, Instruction, Level, ToWorker};
use crate::{Event, Scheduler, State};

/// What a barrier's key begins with; the shuffle's id follows.
const BARRIER_PREFIX: &str = "shuffle-barrier-";

/// Seconds before `shuffle_inputs_done` is sent again to workers that could not be reached.
const RETRY_DELAY: f64 = 0.1;

/// Rounds of `shuffle_inputs_done` without progress after which the barrier fails.
const NO_PROGRESS_MAX: u32 = 3;

/// How a worker answered `shuffle_inputs_done`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputsDone {
    /// With nil.
    Done,
    /// Not at all: an `OSError`.
    Unreachable,
    /// With something else, or by raising: its `repr`.
    Unexpected(String),
}

/// All shuffles.
#[derive(Debug, Default)]
pub(super) struct Shuffles {
    active: IndexMap<Arc<str>, Run, RandomState>,
    creating: IndexMap<Arc<str>, Creation, RandomState>,
    /// Requests of shuffles that have to wait until a sibling is laid out.
    deferred: Vec<Waiter>,
    barriers: IndexMap<RequestId, Barrier>,
    /// Restrictions that output tasks had before they were pinned to a worker.
    restricted: HashMap<Key, Restricted, RandomState>,
    /// Turns the candidates of successive runs (stock's `_shift_counter`).
    shift: usize,
    last_run_id: i64,
}

/// A run that workers may take part in.
#[derive(Debug)]
struct Run {
    run_id: i64,
    /// Addresses.
    participating: IndexSet<Arc<str>>,
    /// Pickle of the `ShuffleRunSpec`.
    run_spec: Pickled,
    /// Output partitions and their workers.
    worker_for: Vec<(Value, Arc<str>)>,
    /// Its failure was published.
    failed: bool,
}

/// A run that the graph helper is laying out.
#[derive(Debug)]
struct Creation {
    run_id: i64,
    waiters: Vec<Waiter>,
}

/// A transfer task that wants to take part.
#[derive(Clone, Debug)]
struct Waiter {
    request: RequestId,
    shuffle_id: Arc<str>,
    key: Key,
    worker: Arc<str>,
}

/// A `shuffle_barrier` request.
#[derive(Debug)]
struct Barrier {
    shuffle_id: Arc<str>,
    run_id: i64,
    /// Whom the last round asked, and the next one will.
    workers: Vec<Arc<str>>,
    no_progress: u32,
    retry_at: Option<f64>,
    /// The caller is gone; the workers are told nevertheless.
    answered: bool,
}

#[derive(Debug)]
struct Restricted {
    /// The run that pinned it.
    run_id: i64,
    original: Vec<Arc<str>>,
    pinned_to: Arc<str>,
}

/// `str` of stock's `SchedulerShuffleState`.
fn describe(shuffle_id: &str, run_id: i64) -> String {
    format!("SchedulerShuffleState<{shuffle_id}[{run_id}]>")
}

fn barrier_key(shuffle_id: &str) -> Key {
    Key::from(format!("{BARRIER_PREFIX}{shuffle_id}").as_str())
}

fn repr(text: &str) -> String {
    let mut repr = String::new();
    python::str_repr(text, &mut repr);
    repr
}

fn ok(run: &Run) -> Value {
    map! { "status" => "OK", "run_spec" => run.run_spec.clone() }.into()
}

impl Shuffles {
    /// `shuffle_get`: the run's spec, for a worker that heard of it from others.
    pub(super) fn get(
        &mut self,
        scheduler: &Scheduler,
        shuffle_id: &Arc<str>,
        worker: Arc<str>,
    ) -> Answer {
        let missing = || {
            p2p_consistency_error(&format!(
                "No active shuffle with id={} found",
                repr(shuffle_id)
            ))
        };
        let result = self
            .join(scheduler, shuffle_id, worker)
            .and_then(|run| run.ok_or_else(missing));
        Ok(Some(
            result.unwrap_or_else(|failure| error_message(&failure)),
        ))
    }

    /// Makes a worker take part in an active run.
    fn join(
        &mut self,
        scheduler: &Scheduler,
        shuffle_id: &str,
        worker: Arc<str>,
    ) -> Result<Option<Value>, Failure> {
        if scheduler.worker_id(&worker).is_none() {
            return Err(p2p_consistency_error(&format!(
                "Scheduler is unaware of this worker {}",
                repr(&worker)
            )));
        }
        Ok(self.active.get_mut(shuffle_id).map(|run| {
            run.participating.insert(worker);
            ok(run)
        }))
    }

    /// `shuffle_get_or_create`: the spec of the active run, or of a new one.
    pub(super) fn get_or_create(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        request: RequestId,
        shuffle_id: Arc<str>,
        key: Key,
        worker: Arc<str>,
    ) -> Answer {
        match self.join(scheduler, &shuffle_id, worker.clone()) {
            Ok(Some(reply)) => return Ok(Some(reply)),
            Ok(None) => {}
            Err(failure) => return Ok(Some(error_message(&failure))),
        }
        let waiter = Waiter {
            request,
            shuffle_id,
            key,
            worker,
        };
        cx.waits.add(request, Wait::Shuffle, None);
        self.create(scheduler, cx, waiter);
        PENDING
    }

    /// Has a run laid out for a transfer task, or lets it wait for one that is.
    fn create(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>, waiter: Waiter) {
        if let Some(creation) = self.creating.get_mut(&waiter.shuffle_id) {
            creation.waiters.push(waiter);
            return;
        }
        match self.prepare(scheduler, &waiter) {
            Ok(Some(create)) => {
                let creation = Creation {
                    run_id: create.run_id,
                    waiters: vec![waiter],
                };
                self.creating.insert(create.shuffle_id.clone(), creation);
                cx.out.push(Instruction::CreateShuffleRun(Box::new(create)));
            }
            Ok(None) => self.deferred.push(waiter),
            Err(Refusal::Returned(failure)) => cx.reply(waiter.request, error_message(&failure)),
            Err(Refusal::Raised(failure)) => cx.answer(waiter.request, Err(failure)),
        }
    }

    /// What the helper is to be asked; `None` while a sibling is being laid out.
    fn prepare(
        &mut self,
        scheduler: &mut Scheduler,
        waiter: &Waiter,
    ) -> Result<Option<CreateShuffleRun>, Refusal> {
        let shuffle_id = &waiter.shuffle_id;
        let barrier_key = barrier_key(shuffle_id);
        let Some(barrier) = scheduler.task_id(&barrier_key) else {
            return Err(Refusal::Returned(p2p_consistency_error(&format!(
                "Barrier task with key {} does not exist. This may be caused by task fusion during graph \
                 generation. Please let us know that you ran into this by leaving a comment at \
                 distributed#7816.",
                barrier_key.python_repr()
            ))));
        };
        let Some(task) = scheduler.find_task(&waiter.key) else {
            return Err(Refusal::Raised(key_error(&waiter.key)));
        };
        if task.state != State::Processing {
            return Err(Refusal::Returned(p2p_consistency_error(&format!(
                "Expected <TaskState {} {state}> to be processing, is {state}.",
                waiter.key.python_repr(),
                state = task.state
            ))));
        }
        let span_id = scheduler
            .group(task.group)
            .and_then(|group| group.span_id.clone());
        let ts = &scheduler.tasks[barrier];
        let spec = match scheduler.run_spec(barrier) {
            Some(spec) if ts.barrier().is_some() => spec.clone(),
            Some(_) | None => {
                return Err(Refusal::Raised(super::errors::assertion_error("")));
            }
        };
        let siblings = siblings(scheduler, barrier);
        if siblings
            .iter()
            .any(|sibling| self.creating.contains_key(sibling))
        {
            return Ok(None);
        }
        let existing = self.placed_by(shuffle_id, &siblings)?;

        let mut workers: Vec<Arc<str>> = ts.worker_restrictions().to_vec();
        workers.sort_unstable();
        if workers.is_empty() {
            workers = scheduler
                .workers()
                .map(|(_, worker)| worker.address.clone())
                .collect();
        }
        if workers.is_empty() {
            return Err(Refusal::Raised(runtime_error(
                "no worker can take part in the shuffle",
            )));
        }
        // Small shuffles that run side by side would otherwise all burden the same workers.
        let shift = self.shift % workers.len();
        self.shift = self.shift.wrapping_add(1);
        workers.rotate_left(shift);

        // Output tasks run twice: the first time only to pin themselves to their
        // worker. Waiting in the queue for that would cost each a round trip.
        let dependents: Vec<TaskId> = ts.dependents.iter().collect();
        for dependent in dependents {
            scheduler.tasks[dependent].queueable = false;
        }
        self.last_run_id += 1;
        Ok(Some(CreateShuffleRun {
            shuffle_id: shuffle_id.clone(),
            run_id: self.last_run_id,
            spec,
            span_id,
            workers,
            existing,
        }))
    }

    /// Where the active siblings of a shuffle have put their output partitions.
    fn placed_by(
        &self,
        shuffle_id: &str,
        siblings: &[Arc<str>],
    ) -> Result<Vec<(Value, Arc<str>)>, Refusal> {
        let mut existing: Vec<(Value, Arc<str>)> = Vec::new();
        for sibling in siblings {
            let Some(run) = self.active.get(sibling) else {
                continue;
            };
            if existing.is_empty() {
                existing.clone_from(&run.worker_for);
                continue;
            }
            let mut known: HashMap<Key, Arc<str>> = HashMap::with_capacity(existing.len());
            for (partition, worker) in &existing {
                known.extend(
                    Key::from_value(partition).map(|partition| (partition, worker.clone())),
                );
            }
            for (partition, worker) in &run.worker_for {
                let Ok(key) = Key::from_value(partition) else {
                    continue;
                };
                match known.get(&key) {
                    Some(placed) if placed != worker => {
                        return Err(Refusal::Raised(p2p_illegal_state_error(&format!(
                            "Failed to initialize shuffle {shuffle_id} because it cannot align output \
                             partition mappings between existing shuffles {siblings:?}. Mismatch \
                             encountered for output partition {}: {placed} != {worker}.",
                            key.python_repr()
                        ))));
                    }
                    Some(_) => {}
                    None => existing.push((partition.clone(), worker.clone())),
                }
            }
        }
        Ok(existing)
    }

    /// The helper's answer to [`Instruction::CreateShuffleRun`].
    pub(super) fn created(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        shuffle_id: &Arc<str>,
        run_id: i64,
        worker_for: Vec<(Value, Arc<str>)>,
        run_spec: Pickled,
    ) {
        let Some(creation) = self.take_creation(shuffle_id, run_id) else {
            return;
        };
        let known = scheduler.task_id(&barrier_key(shuffle_id)).is_some();
        let placed = worker_for
            .iter()
            .all(|(_, worker)| scheduler.worker_id(worker).is_some());
        if known && placed && !creation.waiters.is_empty() {
            let mut participating: IndexSet<_> = worker_for
                .iter()
                .map(|(_, worker)| worker.clone())
                .collect();
            participating.insert(creation.waiters[0].worker.clone());
            let run = Run {
                run_id,
                participating,
                run_spec,
                worker_for,
                failed: false,
            };
            self.active.insert(shuffle_id.clone(), run);
            cx.log(
                Level::Warning,
                format!(
                    "Shuffle {shuffle_id} initialized by task {} executed on worker {}",
                    creation.waiters[0].key.python_repr(),
                    creation.waiters[0].worker
                ),
            );
        }
        // If a worker left meanwhile, or the barrier is gone, this begins anew or
        // gives the reason.
        self.resume(scheduler, cx, creation.waiters);
    }

    /// The helper could not lay out a run.
    pub(super) fn creation_failed(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        shuffle_id: &str,
        run_id: i64,
        failure: &Failure,
    ) {
        let Some(creation) = self.take_creation(shuffle_id, run_id) else {
            return;
        };
        for waiter in creation.waiters {
            cx.answer(waiter.request, Err(failure.clone()));
        }
        self.resume(scheduler, cx, Vec::new());
    }

    fn take_creation(&mut self, shuffle_id: &str, run_id: i64) -> Option<Creation> {
        if self.creating.get(shuffle_id)?.run_id != run_id {
            return None;
        }
        self.creating.shift_remove(shuffle_id)
    }

    /// Serves those who waited for a layout, then those whose sibling had to come first.
    fn resume(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        mut waiters: Vec<Waiter>,
    ) {
        waiters.append(&mut self.deferred);
        for waiter in waiters {
            match self.join(scheduler, &waiter.shuffle_id, waiter.worker.clone()) {
                Ok(Some(reply)) => cx.reply(waiter.request, reply),
                Ok(None) => self.create(scheduler, cx, waiter),
                Err(failure) => cx.reply(waiter.request, error_message(&failure)),
            }
        }
    }

    /// `shuffle_restrict_task`: pins an output task to its worker.
    pub(super) fn restrict_task(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        shuffle_id: &str,
        run_id: i64,
        key: Key,
        worker: Arc<str>,
    ) -> Answer {
        let Some(run) = self.active.get(shuffle_id) else {
            return Err(key_error_text(shuffle_id));
        };
        let fault = match run_id.cmp(&run.run_id) {
            std::cmp::Ordering::Less => Some("stale"),
            std::cmp::Ordering::Greater => Some("invalid"),
            std::cmp::Ordering::Equal => None,
        };
        if let Some(fault) = fault {
            return Ok(Some(error_message(&p2p_consistency_error(&format!(
                "Request {fault}, expected run_id={run_id} for {}",
                describe(shuffle_id, run.run_id)
            )))));
        }
        let Some(task) = scheduler.find_task(&key) else {
            return Err(key_error(&key));
        };
        let present = task.worker_restrictions();
        // Two barriers may share an output task, as in a hash join: the first one
        // to pin it remembers. An entry that does not fit is of an earlier task.
        let known = self.restricted.get(&key);
        if known.is_none_or(|known| *present != [known.pinned_to.clone()]) {
            let restricted = Restricted {
                run_id,
                original: present.to_vec(),
                pinned_to: worker.clone(),
            };
            self.restricted.insert(key.clone(), restricted);
            let event = Event::SetRestrictions {
                worker: vec![(key, Value::from(worker))],
            };
            scheduler.apply(cx.now, event, cx.out);
        }
        Ok(Some(map! { "status" => "OK" }.into()))
    }

    /// `shuffle_barrier`: tells every participant that all inputs are there.
    pub(super) fn barrier(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        request: RequestId,
        shuffle_id: Arc<str>,
        run_id: i64,
        consistent: bool,
    ) -> Answer {
        let Some(run) = self.active.get(&shuffle_id) else {
            return Err(key_error_text(&shuffle_id));
        };
        if run.run_id != run_id {
            return Err(value_error(&format!(
                "run_id={run_id} does not match {}",
                describe(&shuffle_id, run.run_id)
            )));
        }
        if !consistent {
            cx.log(
                Level::Warning,
                format!("Shuffle {shuffle_id} restarted due to data inconsistency during barrier"),
            );
            let stimulus_id = StimulusId::from(format!("p2p-barrier-inconsistent-{}", cx.now));
            self.restart_shuffle(scheduler, cx, &shuffle_id, &stimulus_id);
            return NONE;
        }
        let workers: Vec<Arc<str>> = run.participating.iter().cloned().collect();
        let barrier = Barrier {
            shuffle_id,
            run_id,
            workers,
            no_progress: 0,
            retry_at: None,
            answered: false,
        };
        cx.waits.add(request, Wait::Shuffle, None);
        ask_inputs_done(cx, request, &barrier);
        self.barriers.insert(request, barrier);
        PENDING
    }

    /// The workers' answers to [`Instruction::ShuffleInputsDone`].
    pub(super) fn inputs_done(
        &mut self,
        scheduler: &Scheduler,
        cx: &mut Context<'_>,
        request: RequestId,
        answers: Vec<(Arc<str>, InputsDone)>,
    ) {
        let Some(barrier) = self.barriers.get_mut(&request) else {
            return;
        };
        let before = barrier.workers.len();
        let mut unreachable = Vec::new();
        let mut unexpected = None;
        for (worker, answer) in answers {
            match answer {
                InputsDone::Done => {}
                InputsDone::Unreachable => unreachable.push(worker),
                InputsDone::Unexpected(text) => {
                    unexpected.get_or_insert(text);
                }
            }
        }
        let shuffle = describe(&barrier.shuffle_id, barrier.run_id);
        let result = if let Some(text) = unexpected {
            Err(runtime_error(&format!(
                "Unexpected error encountered during P2P barrier: {text}"
            )))
        } else if unreachable.is_empty() {
            Ok(Value::Nil)
        } else {
            let text = format!(
                "Failure during broadcast of {}, retrying.",
                barrier.shuffle_id
            );
            cx.log(Level::Warning, text);
            let active = self.active.get(&barrier.shuffle_id);
            let archived = active.is_none_or(|run| run.run_id != barrier.run_id);
            let left = unreachable
                .iter()
                .any(|worker| scheduler.worker_id(worker).is_none());
            if !left {
                barrier.no_progress += u32::from(unreachable.len() == before);
                barrier.workers = unreachable;
                barrier.retry_at = Some(cx.now + RETRY_DELAY);
                return;
            }
            if archived {
                let workers: Vec<_> = unreachable.iter().map(|worker| repr(worker)).collect();
                let workers = workers.join(", ");
                Err(runtime_error(&format!(
                    "Worker [{workers}] left during shuffle {shuffle}"
                )))
            } else {
                // The barrier failed before the removal of the worker could restart the shuffle.
                Err(p2p_illegal_state_error(
                    "Expected shuffle to be archived if participating worker is not known by scheduler",
                ))
            }
        };
        self.finish_barrier(cx, request, result);
    }

    fn finish_barrier(
        &mut self,
        cx: &mut Context<'_>,
        request: RequestId,
        result: Result<Value, Failure>,
    ) {
        if self
            .barriers
            .shift_remove(&request)
            .is_some_and(|barrier| !barrier.answered)
        {
            cx.answer(request, result);
        }
    }

    /// When a barrier tries again.
    pub(super) fn next_deadline(&self) -> Option<f64> {
        self.barriers
            .values()
            .filter_map(|barrier| barrier.retry_at)
            .reduce(f64::min)
    }

    /// Lets barriers try again.
    pub(super) fn tick(&mut self, cx: &mut Context<'_>) {
        let due: Vec<RequestId> = self
            .barriers
            .iter()
            .filter(|(_, barrier)| barrier.retry_at.is_some_and(|at| at <= cx.now))
            .map(|(request, _)| *request)
            .collect();
        for request in due {
            let Some(barrier) = self.barriers.get_mut(&request) else {
                continue;
            };
            barrier.retry_at = None;
            if barrier.no_progress < NO_PROGRESS_MAX {
                ask_inputs_done(cx, request, barrier);
                continue;
            }
            // The line breaks and spaces are distributed's.
            let indent = " ".repeat(28);
            let text = format!(
                "Broadcast not making progress for {}.\n{indent}Aborting. This is possibly due to \
                 overloaded\n{indent}workers. Increasing config\n{indent}`distributed.comm.timeouts.connect` \
                 timeout may\n{indent}help.",
                describe(&barrier.shuffle_id, barrier.run_id)
            );
            self.finish_barrier(cx, request, Err(runtime_error(&text)));
        }
    }

    /// A caller is gone.
    pub(super) fn forget(&mut self, request: RequestId) {
        for creation in self.creating.values_mut() {
            creation.waiters.retain(|waiter| waiter.request != request);
        }
        self.deferred.retain(|waiter| waiter.request != request);
        if let Some(barrier) = self.barriers.get_mut(&request) {
            barrier.answered = true;
        }
    }

    /// A barrier became released, erred or forgotten: its run is over. True if there was one.
    pub(super) fn barrier_left(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        shuffle_id: &Arc<str>,
        stimulus_id: &StimulusId,
    ) -> bool {
        let Some(run) = self.active.get(shuffle_id) else {
            return false;
        };
        let message = format!("{} forgotten", describe(shuffle_id, run.run_id));
        self.deactivate(scheduler, cx, shuffle_id, &message, stimulus_id);
        true
    }

    /// A worker left: the runs it took part in are over. Gives their ids.
    pub(super) fn worker_left(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        address: &Arc<str>,
        stimulus_id: &StimulusId,
    ) -> Vec<Arc<str>> {
        let over: Vec<(Arc<str>, i64)> = self
            .active
            .iter()
            .filter(|(_, run)| run.participating.contains(address))
            .map(|(shuffle_id, run)| (shuffle_id.clone(), run.run_id))
            .collect();
        for (shuffle_id, run_id) in &over {
            let shuffle = describe(shuffle_id, *run_id);
            let message = format!("Worker {address} left during active {shuffle}");
            self.deactivate(scheduler, cx, shuffle_id, &message, stimulus_id);
        }
        over.into_iter().map(|(shuffle_id, _)| shuffle_id).collect()
    }

    fn deactivate(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        shuffle_id: &Arc<str>,
        message: &str,
        stimulus_id: &StimulusId,
    ) {
        let Some(run) = self.active.shift_remove(shuffle_id) else {
            return;
        };
        for address in &run.participating {
            if let Some(worker) = scheduler.worker_id(address) {
                let message = ToWorker::ShuffleFail {
                    shuffle_id: shuffle_id.clone(),
                    run_id: run.run_id,
                    message: message.to_owned(),
                    stimulus_id: stimulus_id.clone(),
                };
                cx.out.push(Instruction::ToWorker { worker, message });
            }
        }
        cx.log(
            Level::Warning,
            format!("Shuffle {shuffle_id} deactivated due to stimulus '{stimulus_id}'"),
        );
        self.unpin(scheduler, cx, shuffle_id, run.run_id);
    }

    /// Gives output tasks their own restrictions back.
    fn unpin(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        shuffle_id: &str,
        run_id: i64,
    ) {
        if self.restricted.is_empty() {
            return;
        }
        let outputs: HashSet<Key> = match scheduler.find_task(&barrier_key(shuffle_id)) {
            Some(barrier) => barrier
                .dependents
                .iter()
                .map(|dependent| scheduler.tasks[dependent].key.clone())
                .collect(),
            None => HashSet::default(),
        };
        let mut originals: Vec<(Key, Value)> = self
            .restricted
            .extract_if(|key, restricted| restricted.run_id == run_id || outputs.contains(key))
            .filter(|(key, restricted)| {
                let task = scheduler.find_task(key);
                task.is_some_and(|task| {
                    *task.worker_restrictions() == [restricted.pinned_to.clone()]
                })
            })
            .map(|(key, restricted)| {
                let original = match restricted.original.as_slice() {
                    [] => Value::Nil,
                    addresses => addresses.iter().map(Value::from).collect(),
                };
                (key, original)
            })
            .collect();
        originals.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        if !originals.is_empty() {
            scheduler.apply(cx.now, Event::SetRestrictions { worker: originals }, cx.out);
        }
    }

    /// Runs a shuffle again from its transfer tasks on, unless it has failed anyway.
    pub(super) fn restart_shuffle(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        shuffle_id: &Arc<str>,
        stimulus_id: &StimulusId,
    ) {
        let Some(barrier) = scheduler.find_task(&barrier_key(shuffle_id)) else {
            return;
        };
        let erred = |task: &TaskId| scheduler.tasks[*task].state == State::Erred;
        let mut all = barrier.dependents.iter().chain(barrier.dependencies.iter());
        let mut keys = Vec::new();
        if barrier.state != State::Erred && !all.any(|task| erred(&task)) {
            let key = |task: TaskId| scheduler.tasks[task].key.clone();
            keys.extend(barrier.dependents.iter().map(key));
            keys.push(barrier.key.clone());
            keys.extend(barrier.dependencies.iter().map(key));
        }
        let event = Event::ReleaseKeys {
            keys,
            stimulus_id: stimulus_id.clone(),
        };
        scheduler.apply(cx.now, event, cx.out);
        cx.log(
            Level::Warning,
            format!("Shuffle {shuffle_id} restarted due to stimulus '{stimulus_id}"),
        );
    }

    /// A task failed by itself: gives the id of the shuffle that fails with it, once per run.
    pub(super) fn failed_with(&mut self, scheduler: &Scheduler, key: &Key) -> Option<Arc<str>> {
        if self.active.values().all(|run| run.failed) {
            return None;
        }
        let task = scheduler.task_id(key)?;
        for (shuffle_id, run) in &mut self.active {
            if run.failed {
                continue;
            }
            let Some(barrier) = scheduler.task_id(&barrier_key(shuffle_id)) else {
                continue;
            };
            let ts = &scheduler.tasks[barrier];
            if task == barrier || ts.dependents.contains(task) || ts.dependencies.contains(task) {
                run.failed = true;
                return Some(shuffle_id.clone());
            }
        }
        None
    }

    /// Addresses of the workers that take part in any active run; they must not be scaled away.
    pub(super) fn participants(&self) -> impl Iterator<Item = &Arc<str>> {
        self.active.values().flat_map(|run| &run.participating)
    }

    /// Ids of the active shuffles and their runs.
    pub(super) fn active(&self) -> impl Iterator<Item = (&Arc<str>, i64)> {
        self.active
            .iter()
            .map(|(shuffle_id, run)| (shuffle_id, run.run_id))
    }

    /// All tasks are gone.
    pub(super) fn clear(&mut self, cx: &mut Context<'_>) {
        self.active.clear();
        self.restricted.clear();
        let creations = std::mem::take(&mut self.creating).into_values();
        let waiters = creations.flat_map(|creation| creation.waiters);
        for waiter in waiters.chain(std::mem::take(&mut self.deferred)) {
            let failure = p2p_consistency_error(&format!(
                "No active shuffle with id={} found",
                repr(&waiter.shuffle_id)
            ));
            cx.reply(waiter.request, error_message(&failure));
        }
    }

    /// Every active run has its barrier; who waits for a sibling has one in the making.
    pub(super) fn validate(&self, scheduler: &Scheduler) {
        for shuffle_id in self.active.keys() {
            let barrier = scheduler.find_task(&barrier_key(shuffle_id));
            assert!(
                barrier.is_some(),
                "active shuffle {shuffle_id} has no barrier"
            );
            assert!(
                !self.creating.contains_key(shuffle_id),
                "{shuffle_id} is active and being created"
            );
        }
        assert!(self.deferred.is_empty() || !self.creating.is_empty());
    }
}

/// Why no run can be laid out.
#[derive(Debug)]
enum Refusal {
    /// As an error message, which the worker's plug-in raises.
    Returned(Failure),
    /// Stock's handler raises.
    Raised(Failure),
}

/// Ids of the shuffles whose outputs meet those of this barrier in the same tasks.
fn siblings(scheduler: &Scheduler, barrier: TaskId) -> Vec<Arc<str>> {
    let mut seen: HashSet<TaskId> = HashSet::new();
    seen.insert(barrier);
    let mut siblings = Vec::new();
    for dependent in &scheduler.tasks[barrier].dependents {
        for dependency in &scheduler.tasks[dependent].dependencies {
            if !seen.insert(dependency) {
                continue;
            }
            let key = scheduler.tasks[dependency].key.as_str();
            if let Some(shuffle_id) = key.and_then(|key| key.strip_prefix(BARRIER_PREFIX)) {
                siblings.push(Arc::from(shuffle_id));
            }
        }
    }
    siblings
}

fn ask_inputs_done(cx: &mut Context<'_>, request: RequestId, barrier: &Barrier) {
    cx.out.push(Instruction::ShuffleInputsDone {
        request,
        workers: barrier.workers.clone(),
        shuffle_id: barrier.shuffle_id.clone(),
        run_id: barrier.run_id,
    });
}
