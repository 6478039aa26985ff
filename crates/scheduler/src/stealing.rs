//! Work stealing: tasks go from workers with much to do to workers with little.
//!
//! ```text
//!  assigned ──► stealable of its worker, by level
//!                  │ balance: a thief could start it sooner
//!                  ▼
//!               in flight: `steal-request` to the victim ──► `steal-response`
//!                  │ not begun                                  │ begun
//!                  ▼                                            ▼
//!               `compute-task` to the thief                  stays
//! ```
//!
//! Same as `WorkStealing` of distributed, except that a round looks at a bounded
//! number of tasks (see `round`), ties break by the order of addresses, resources
//! in use go with a task, and an actor counts for the worker that it goes to.

mod round;

use std::sync::Arc;

use oxidask_wire::{Key, Str, Value};

use crate::id::{PrefixId, StimulusId, TaskId, WorkerId};
use crate::instruction::{Instructions, Level, ToWorker};
use crate::scheduler::{Cx, Scheduler};
use crate::sets::IdSet;
use crate::task::State;
use crate::worker::ById;

/// Levels of stealable tasks, cheap ones first.
pub const LEVELS: usize = 15;

/// How many times its computing time a task of each level costs at a thief, computing
/// included, as Python prints the numbers of `WorkStealing.cost_multipliers`.
pub const COST_MULTIPLIERS: [&str; LEVELS] = [
    "1.0", "1.03125", "1.0625", "1.125", "1.25", "1.5", "2", "3", "5", "9", "17", "33", "65",
    "129", "257",
];

/// Seconds that moving a task takes beside its data. Distributed's `LATENCY`, which
/// is large on purpose: short tasks shall not be moved about.
const LATENCY: f64 = 0.1;

/// Seconds up to which a prefix with a default duration is never stolen (distributed's `fast_tasks`).
pub(crate) const FAST_SECONDS: f64 = 0.001;

/// A task that is no worker's stealable one.
pub(crate) const NOT_STEALABLE: u8 = u8::MAX;

/// Tasks of one worker that may be stolen, by level, in the order of assignment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stealable([IdSet<TaskId>; LEVELS]);

/// What is known about stealing beside the stealable tasks of each worker.
#[derive(Debug, Default)]
pub(crate) struct Stealing {
    in_flight: ById<TaskId, InFlight>,
    /// What requests under way will add to each worker, or take from it.
    load: ById<WorkerId, Load>,
    /// Stealable tasks whose level rests on an assumed duration.
    unknown_durations: ById<PrefixId, IdSet<TaskId>>,
    stealable_count: usize,
    request_count: u64,
    /// When the next round is due; none while there is nothing to steal.
    next_round: Option<f64>,
    /// Where a round begins among many saturated workers.
    turn: usize,
    /// Tasks passed over at victims that have very many, because the last rounds have
    /// looked at them in vain.
    skipped: usize,
    metrics: Metrics,
}

/// Requests so far, by level.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// `request_count_total`.
    pub request_count_total: [u64; LEVELS],
    /// `request_cost_total`, in seconds of the victim's time.
    pub request_cost_total: [f64; LEVELS],
}

/// A request under way.
#[derive(Debug)]
struct InFlight {
    victim: WorkerId,
    thief: WorkerId,
    /// Of the thief, which may leave before the answer.
    thief_address: Arc<str>,
    /// Seconds of work that the victim will be rid of.
    victim_duration: f64,
    /// Seconds of work that the thief will get.
    thief_duration: f64,
    stimulus_id: StimulusId,
}

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    /// Seconds.
    occupancy: f64,
    task_count: i64,
}

/// What a worker says about a task it is asked to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It has given the task up.
    GivenUp,
    /// It has begun, or is about to report.
    Begun,
    /// It knows nothing of the task.
    Unknown,
}

impl Answer {
    fn from_state(state: Option<&str>) -> Option<Self> {
        match state {
            Some("ready" | "constrained" | "waiting") => Some(Self::GivenUp),
            Some("memory" | "executing" | "long-running" | "cancelled" | "resumed") => {
                Some(Self::Begun)
            }
            Some("released") | None => Some(Self::Unknown),
            Some(_) => None,
        }
    }
}

impl Stealing {
    fn load(&self, worker: WorkerId) -> Load {
        self.load.get(&worker).copied().unwrap_or_default()
    }

    fn add_load(&mut self, worker: WorkerId, occupancy: f64, task_count: i64) {
        let load = self.load.entry(worker).or_default();
        load.occupancy += occupancy;
        load.task_count += task_count;
    }

    fn add_in_flight(&mut self, task: TaskId, request: InFlight) {
        self.add_load(request.victim, -request.victim_duration, -1);
        self.add_load(request.thief, request.thief_duration, 1);
        self.in_flight.insert(task, request);
    }

    fn remove_in_flight(&mut self, task: TaskId) -> Option<InFlight> {
        let request = self.in_flight.remove(&task)?;
        if self.in_flight.is_empty() {
            // Without the remainders that sums of floats leave.
            self.load.clear();
        } else {
            self.add_load(request.victim, request.victim_duration, 1);
            self.add_load(request.thief, -request.thief_duration, -1);
        }
        Some(request)
    }
}

impl Scheduler {
    /// The time that moving a task's data takes, as a multiple of its computing
    /// time, and the level that follows. `None` for a task that is not stolen.
    ///
    /// Same as `WorkStealing.steal_time_ratio`.
    pub fn steal_time_ratio(&self, task: TaskId) -> Option<(f64, usize)> {
        let ts = &self.tasks[task];
        let prefix = &self.groups[self.groups[ts.group].prefix];
        if prefix.is_fast {
            return None;
        }
        if ts.dependencies.is_empty() {
            return Some((0.0, 0));
        }
        let compute = prefix.duration(self.config.unknown_task_duration);
        // Stock fails on an assertion for a task that took no time at all.
        if compute <= 0.0 {
            return None;
        }
        let transfer = self.nbytes_dependencies(ts) as f64 / self.bandwidth + LATENCY;
        let ratio = transfer / compute;
        let level = (ratio.log2() + 6.0).round_ties_even().max(1.0);
        (level < LEVELS as f64).then_some((ratio, level as usize))
    }

    /// The level at which a task may be stolen now.
    pub fn steal_level(&self, task: TaskId) -> Option<usize> {
        let level = self.tasks[task].steal_level;
        (level != NOT_STEALABLE).then_some(usize::from(level))
    }

    /// Requests to workers so far.
    pub fn stealing_metrics(&self) -> &Metrics {
        &self.stealing.metrics
    }

    /// Number of requests that workers have not answered.
    pub fn steal_requests_in_flight(&self) -> usize {
        self.stealing.in_flight.len()
    }

    /// A task was assigned: from now on it may be stolen.
    pub(crate) fn put_stealable(&mut self, task: TaskId, worker: WorkerId) {
        if !self.config.work_stealing {
            return;
        }
        let Some((_, level)) = self.steal_time_ratio(task) else {
            return;
        };
        self.workers[worker].stealable.0[level].insert(task);
        let ts = &mut self.tasks[task];
        ts.steal_level = level as u8;
        self.stealing.stealable_count += 1;
        if level > 0 {
            let prefix = self.groups[ts.group].prefix;
            if self.groups[prefix].duration_average < 0.0 {
                let unknown = &mut self.stealing.unknown_durations;
                unknown.entry(prefix).or_default().insert(task);
            }
        }
    }

    /// A task may no longer be stolen from a worker.
    pub(crate) fn remove_stealable(&mut self, task: TaskId, worker: WorkerId) {
        if self.tasks[task].steal_level == NOT_STEALABLE {
            return;
        }
        let ts = &mut self.tasks[task];
        let level = std::mem::replace(&mut ts.steal_level, NOT_STEALABLE);
        let group = ts.group;
        self.workers[worker].stealable.0[usize::from(level)].remove(task);
        self.stealing.stealable_count -= 1;
        if !self.stealing.unknown_durations.is_empty() {
            let prefix = self.groups[group].prefix;
            let unknown = &mut self.stealing.unknown_durations;
            if let Some(tasks) = unknown.get_mut(&prefix) {
                tasks.remove(task);
                if tasks.is_empty() {
                    unknown.remove(&prefix);
                }
            }
        }
    }

    /// A task leaves processing, for whatever reason.
    pub(crate) fn stop_stealing(&mut self, task: TaskId, worker: WorkerId) {
        self.remove_stealable(task, worker);
        if !self.stealing.in_flight.is_empty() {
            self.stealing.remove_in_flight(task);
        }
    }

    /// A task of this prefix has finished: tasks whose level rested on a guess get another.
    pub(crate) fn refresh_steal_levels(&mut self, prefix: PrefixId) {
        let Some(tasks) = self.stealing.unknown_durations.remove(&prefix) else {
            return;
        };
        for task in &tasks {
            if let Some(worker) = self.tasks[task].processing_on {
                self.remove_stealable(task, worker);
                self.put_stealable(task, worker);
            }
        }
    }

    /// Asks the victim to give a task up.
    fn request_move(
        &mut self,
        task: TaskId,
        victim: WorkerId,
        thief: WorkerId,
        durations: (f64, f64),
        cx: &mut Cx<'_>,
    ) {
        // The answer is told from that to another request by it, so it is never used again.
        let stimulus_id = StimulusId::from(format!("steal-{}", self.stealing.request_count));
        self.stealing.request_count += 1;
        self.remove_stealable(task, victim);
        cx.tell_worker(
            victim,
            ToWorker::StealRequest {
                key: self.tasks[task].key.clone(),
                stimulus_id: stimulus_id.clone(),
            },
        );
        let (victim_duration, thief_duration) = durations;
        self.stealing.add_in_flight(
            task,
            InFlight {
                victim,
                thief,
                thief_address: self.workers[thief].address.clone(),
                victim_duration,
                thief_duration,
                stimulus_id,
            },
        );
    }

    /// A worker's answer to `steal-request`.
    pub(crate) fn steal_response(
        &mut self,
        worker: WorkerId,
        key: &Key,
        state: Option<&Str>,
        cx: &mut Cx<'_>,
    ) {
        let Some(task) = self.tasks.find(key) else {
            return;
        };
        let text = || state.map_or(Value::Nil, Value::from);
        let stale = match self.stealing.in_flight.get(&task) {
            None => Some("already-aborted"),
            Some(request) if request.stimulus_id != *cx.stimulus_id => Some("stale-response"),
            Some(_) => None,
        };
        if let Some(what) = stale {
            let address = self.workers.get(worker).map(|ws| Value::from(&ws.address));
            let address = address.unwrap_or_default();
            let stimulus_id = Value::from(cx.stimulus_id);
            let entry = vec![what.into(), Value::from(key), text(), address, stimulus_id];
            cx.event(["stealing".into()], Value::Array(entry));
            return;
        }
        let Some(request) = self.stealing.remove_in_flight(task) else {
            return;
        };
        let (victim, thief) = (request.victim, request.thief);
        let thief_is_gone = self.workers.get(thief).is_none();
        let names = [
            Value::from(key),
            text(),
            Value::from(&self.workers[victim].address),
            Value::from(&request.thief_address),
            Value::from(cx.stimulus_id),
        ];
        let entry = |head: &[Value]| Value::Array([head, &names[..]].concat());
        match Answer::from_state(state.map(Str::as_str)) {
            Some(Answer::Begun) => {
                cx.event(["stealing".into()], entry(&["already-computing".into()]));
            }
            Some(Answer::GivenUp) if !thief_is_gone => {
                self.move_task(task, victim, thief, cx);
                cx.event(["stealing".into()], entry(&["confirm".into()]));
            }
            Some(Answer::GivenUp | Answer::Unknown) => {
                let head = ["reschedule".into(), thief_is_gone.into()];
                cx.event(["stealing".into()], entry(&head));
                self.recommend(task, State::Released);
                self.transitions(cx);
            }
            None => {
                // Stock raises, which closes the victim's stream. It has said nothing that
                // is not true: the task stays until its report comes.
                let state = state.map_or("None", Str::as_str);
                let text = format!("Unexpected state of stolen task {key:?}: {state}");
                cx.log(Level::Error, text);
            }
        }
        for worker in [thief, victim] {
            if self.workers.get(worker).is_some() {
                self.check_idle_saturated(worker);
            }
        }
        self.queue_slots_maybe_opened(cx);
    }

    /// Assigns a task that its worker has given up to another one.
    fn move_task(&mut self, task: TaskId, victim: WorkerId, thief: WorkerId, cx: &mut Cx<'_>) {
        self.unassign(task, victim);
        self.release_resources(task, victim);
        self.assign(task, thief);
        self.acquire_resources(task, thief);
        if self.tasks[task].actor {
            self.workers[victim].actors.remove(task);
            self.workers[thief].actors.insert(task);
        }
        self.tasks[task].processing_on = Some(thief);
        self.send_task(task, thief, cx);
    }

    /// When the next round of stealing is due.
    pub(crate) fn next_stealing_round(&self) -> Option<f64> {
        self.stealing.next_round
    }

    /// Keeps the clock of the rounds going while there is something to steal.
    pub(crate) fn wind_stealing(&mut self, now: f64) {
        let is_possible = self.stealing.stealable_count > 0 && self.workers.len() > 1;
        match self.stealing.next_round {
            None if is_possible => {
                self.stealing.next_round = Some(now + self.config.work_stealing_interval);
            }
            Some(_) if !is_possible => self.stealing.next_round = None,
            None | Some(_) => {}
        }
    }

    /// A round, if one is due.
    pub(crate) fn tick_stealing(&mut self, now: f64, out: &mut Instructions) {
        if self.stealing.next_round.is_none_or(|at| at > now) {
            return;
        }
        let stimulus_id = StimulusId::from(format!("work-stealing-{now}"));
        let cx = &mut Cx {
            now,
            stimulus_id: &stimulus_id,
            out,
        };
        let pause = if self.balance(cx) {
            round::PAUSE
        } else {
            self.config.work_stealing_interval
        };
        self.stealing.next_round = Some(cx.now + pause);
    }

    /// Part of `Scheduler::validate`.
    pub(crate) fn validate_stealing(&self) {
        let mut stealable_count = 0;
        for (_, ws) in self.workers.iter() {
            for (level, tasks) in ws.stealable.0.iter().enumerate() {
                stealable_count += tasks.len();
                for task in tasks {
                    let ts = &self.tasks[task];
                    assert_eq!(usize::from(ts.steal_level), level, "{:?}", ts.key);
                    assert!(ws.processing.contains(task), "{:?}", ts.key);
                    assert!(!ws.long_running.contains(task), "{:?}", ts.key);
                    assert!(!self.stealing.in_flight.contains_key(&task));
                }
            }
        }
        assert_eq!(self.stealing.stealable_count, stealable_count);
        let marked = self
            .tasks
            .iter()
            .filter(|(_, ts)| ts.steal_level != NOT_STEALABLE);
        assert_eq!(
            marked.count(),
            stealable_count,
            "tasks are stealable nowhere"
        );

        for (prefix, tasks) in self.sorted_unknown_durations() {
            for task in tasks {
                let ts = &self.tasks[task];
                assert_ne!(ts.steal_level, NOT_STEALABLE, "{:?}", ts.key);
                assert_eq!(self.groups[ts.group].prefix, prefix);
            }
        }
        let mut loads: ById<WorkerId, Load> = ById::default();
        let mut in_flight: Vec<_> = self.stealing.in_flight.iter().collect();
        in_flight.sort_by_key(|(task, _)| **task);
        for (&task, request) in in_flight {
            let ts = &self.tasks[task];
            assert_eq!(ts.processing_on, Some(request.victim), "{:?}", ts.key);
            let victim = loads.entry(request.victim).or_default();
            victim.occupancy -= request.victim_duration;
            victim.task_count -= 1;
            let thief = loads.entry(request.thief).or_default();
            thief.occupancy += request.thief_duration;
            thief.task_count += 1;
        }
        let mut known: Vec<WorkerId> = self.stealing.load.keys().copied().collect();
        known.extend(loads.keys());
        known.sort_unstable();
        for worker in known {
            let (kept, counted) = (
                self.stealing.load(worker),
                loads.get(&worker).copied().unwrap_or_default(),
            );
            assert_eq!(kept.task_count, counted.task_count);
            assert!((kept.occupancy - counted.occupancy).abs() < 1e-6);
        }
    }

    fn sorted_unknown_durations(&self) -> Vec<(PrefixId, &IdSet<TaskId>)> {
        let unknown = self.stealing.unknown_durations.iter();
        let mut sorted: Vec<_> = unknown.map(|(&prefix, tasks)| (prefix, tasks)).collect();
        sorted.sort_by_key(|(prefix, _)| *prefix);
        sorted
    }
}
