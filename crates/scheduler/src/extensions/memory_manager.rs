//! When the active memory manager runs, and `amm_handler`.
//!
//! A run looks at every replicated result and at every result of the retiring
//! workers, a bounded number at once: others have their turn in between.

use indexmap::IndexMap;

use super::errors::assertion_error;
use super::retirement::Retirements;
use super::waits::{Answer, Context, NONE};
use crate::id::{RequestId, StimulusId, TaskId, WorkerId};
use crate::memory_manager::{Config, Evacuated, Plan};
use crate::{Event, Scheduler};

/// Seconds between two runs for retiring workers while the manager is stopped (fixed in
/// distributed, too).
const RETIREMENT_INTERVAL: f64 = 2.0;

/// Results looked at at once. Chosen: some milliseconds at most (bench `stealing`).
const SLICE: usize = 2_000;

/// Seconds between two parts of a run. Chosen: others have their turn.
const PAUSE: f64 = 0.001;

/// The active memory manager of one scheduler.
#[derive(Debug)]
pub(super) struct MemoryManager {
    config: Config,
    /// Runs by itself.
    is_running: bool,
    /// When the next run is due; none while there is nothing to look at.
    next_run: Option<f64>,
    run: Option<Run>,
    pub(super) retirements: Retirements,
}

/// A run under way.
#[derive(Debug)]
struct Run {
    plan: Plan,
    work: std::vec::IntoIter<Item>,
    /// Results of each retiring worker that need a copy, and those that get none.
    retiring: IndexMap<WorkerId, Tally>,
    /// When to go on.
    at: f64,
}

/// Something to look at.
#[derive(Clone, Copy, Debug)]
enum Item {
    /// A result that has replicas.
    Replicated(TaskId),
    /// A result on a worker that retires.
    Retiring(WorkerId, TaskId),
}

/// What a run found on a retiring worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Results that nobody else holds.
    pub(super) unique: usize,
    /// Of those, the ones that nobody can take.
    pub(super) stuck: usize,
}

impl MemoryManager {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            is_running: config.start,
            next_run: None,
            run: None,
            retirements: Retirements::default(),
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.is_running
    }

    /// `amm_handler`.
    pub(super) fn handle(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        method: &str,
    ) -> Answer {
        match method {
            "start" if self.is_running => NONE,
            "start" => {
                self.is_running = true;
                self.next_run = None;
                self.wind(scheduler, cx.now);
                NONE
            }
            "stop" => {
                self.is_running = false;
                self.wind(scheduler, cx.now);
                NONE
            }
            "run_once" => {
                self.begin(scheduler, cx, true);
                NONE
            }
            "running" => Ok(Some(self.is_running.into())),
            _ => Err(assertion_error("")),
        }
    }

    /// Retires workers, at least one.
    pub(super) fn retire(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        request: RequestId,
        workers: Vec<WorkerId>,
        manner: super::retirement::Manner,
    ) {
        self.retirements
            .start(scheduler, cx, request, workers, manner);
        self.begin(scheduler, cx, self.is_running);
        self.retirements.poll(scheduler, cx);
    }

    /// Sets the clock when there is something to look at, and stops it when not.
    pub(super) fn wind(&mut self, scheduler: &Scheduler, now: f64) {
        let has_replicas = self.is_running && self.config.reduce_replicas;
        let has_work =
            !self.retirements.is_empty() || has_replicas && !scheduler.replicated.is_empty();
        match self.next_run {
            None if has_work => self.next_run = Some(now + self.interval()),
            Some(_) if !has_work => self.next_run = None,
            None | Some(_) => {}
        }
    }

    fn interval(&self) -> f64 {
        if self.is_running {
            self.config.interval
        } else {
            RETIREMENT_INTERVAL
        }
    }

    /// When something is to be done.
    pub(super) fn next_deadline(&self) -> Option<f64> {
        let deadlines = [
            self.next_run,
            self.run.as_ref().map(|run| run.at),
            self.retirements.next_deadline(),
        ];
        deadlines.into_iter().flatten().reduce(f64::min)
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>) {
        if self.run.as_ref().is_some_and(|run| run.at <= cx.now) {
            self.go_on(scheduler, cx);
        } else if self.next_run.is_some_and(|at| at <= cx.now) {
            self.begin(scheduler, cx, self.is_running);
        }
        self.retirements.poll(scheduler, cx);
        self.wind(scheduler, cx.now);
    }

    /// Begins a run, in place of one that may be under way.
    fn begin(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>, with_policies: bool) {
        let mut work = Vec::new();
        if with_policies && self.config.reduce_replicas {
            let replicated = scheduler.replicated.iter();
            work.extend(replicated.map(Item::Replicated));
        }
        let mut retiring = IndexMap::new();
        for worker in self.retirements.without_actors(scheduler, cx) {
            let Some(ws) = scheduler.worker(worker) else {
                continue;
            };
            retiring.insert(worker, Tally::default());
            let held = ws.has_what.iter();
            work.extend(held.map(|task| Item::Retiring(worker, task)));
        }
        self.next_run = Some(cx.now + self.interval());
        self.run = Some(Run {
            plan: Plan::new(scheduler, self.config.measure),
            work: work.into_iter(),
            retiring,
            at: cx.now,
        });
        self.go_on(scheduler, cx);
        self.wind(scheduler, cx.now);
    }

    /// One more part of the run under way.
    fn go_on(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>) {
        let Some(mut run) = self.run.take() else {
            return;
        };
        run.plan.look_at_workers(scheduler);
        for item in run.work.by_ref().take(SLICE) {
            match item {
                // If another task has taken over the id, that one is as good to look at.
                Item::Replicated(task) => {
                    if scheduler.tasks.get(task).is_some() {
                        run.plan.reduce_replicas(scheduler, task);
                    }
                }
                Item::Retiring(worker, task) => {
                    let ts = scheduler.tasks.get(task);
                    if !ts.is_some_and(|ts| ts.who_has.contains(worker)) {
                        continue;
                    }
                    let tally = run.retiring.entry(worker).or_default();
                    match run.plan.evacuate(scheduler, task, worker) {
                        Evacuated::Safe => {}
                        Evacuated::Copied => tally.unique += 1,
                        Evacuated::Stuck => {
                            tally.unique += 1;
                            tally.stuck += 1;
                        }
                    }
                }
            }
        }
        enact(&mut run.plan, scheduler, cx);
        if run.work.len() > 0 {
            run.at = cx.now + PAUSE;
            self.run = Some(run);
            return;
        }
        for (worker, tally) in run.retiring {
            self.retirements.judge(scheduler, cx, worker, tally);
        }
    }
}

/// Asks workers for what was decided.
fn enact(plan: &mut Plan, scheduler: &mut Scheduler, cx: &mut Context<'_>) {
    let requests = plan.take_requests();
    if requests.acquire.is_empty() && requests.remove.is_empty() {
        return;
    }
    let stimulus_id = StimulusId::from(format!("active_memory_manager-{}", cx.now));
    let keys = |scheduler: &Scheduler, tasks: Vec<TaskId>| {
        let keys = tasks.iter().map(|&task| scheduler.tasks[task].key.clone());
        keys.collect()
    };
    for (worker, tasks) in requests.acquire {
        let event = Event::AcquireReplicas {
            worker,
            keys: keys(scheduler, tasks),
            stimulus_id: stimulus_id.clone(),
        };
        scheduler.apply(cx.now, event, cx.out);
    }
    for (worker, tasks) in requests.remove {
        let event = Event::RemoveReplicas {
            worker,
            keys: keys(scheduler, tasks),
            stimulus_id: stimulus_id.clone(),
        };
        scheduler.apply(cx.now, event, cx.out);
    }
}
