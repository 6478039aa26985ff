//! Graceful retirement of workers: `retire_workers` and the `RetireWorker` policy.
//!
//! A retiring worker gets no new tasks. What it alone holds is copied to
//! running workers, every [`INTERVAL`] anew until nothing is left; then it goes.
//! If nobody can take its data, it stays.

use std::sync::Arc;

use hashbrown::HashMap;
use indexmap::{IndexMap, IndexSet};
use oxidask_wire::{Map, Value, map};

use super::waits::Context;
use crate::id::{RequestId, Status, StimulusId, TaskId, WorkerId};
use crate::instruction::{Instruction, Level, ToWorker};
use crate::{Event, Scheduler};

/// Seconds between rounds (stock's `active-memory-manager.interval`).
const INTERVAL: f64 = 2.0;

/// All retirements under way.
#[derive(Debug, Default)]
pub(super) struct Retirements {
    retirements: Vec<Retirement>,
    /// When the next round is due.
    next_round: Option<f64>,
}

/// One `retire_workers` request.
#[derive(Debug)]
struct Retirement {
    /// None once the caller is gone.
    request: Option<RequestId>,
    stimulus_id: StimulusId,
    /// Tell the workers to close.
    close: bool,
    /// Remove them from the scheduler.
    remove: bool,
    workers: Vec<Retiring>,
}

#[derive(Debug)]
struct Retiring {
    worker: WorkerId,
    address: Arc<str>,
    previous: Status,
    /// As of the last time it was seen.
    identity: Map,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Progress {
    /// Data is being copied; look again at this time.
    Moving {
        poll_at: f64,
    },
    /// The last round found nothing left to copy.
    Empty,
    /// The last round found data that nobody can take.
    NoRecipients,
    Retired,
    Aborted,
}

impl Progress {
    fn is_over(self) -> bool {
        self == Self::Retired || self == Self::Aborted
    }
}

/// How to retire.
#[derive(Debug)]
pub(super) struct Manner {
    pub(super) stimulus_id: StimulusId,
    pub(super) close: bool,
    pub(super) remove: bool,
}

/// Copies and drops decided on in one round.
#[derive(Debug, Default)]
struct Round {
    /// Bytes on each worker, as if everything decided on had happened.
    memory: HashMap<WorkerId, i64>,
    acquire: IndexMap<TaskId, Vec<WorkerId>>,
    drop: IndexMap<TaskId, Vec<WorkerId>>,
}

impl Retirements {
    /// Starts to retire workers, at least one.
    pub(super) fn start(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        request: RequestId,
        workers: Vec<WorkerId>,
        manner: Manner,
    ) {
        let Manner {
            stimulus_id,
            close,
            remove,
        } = manner;
        let mut retiring = Vec::with_capacity(workers.len());
        for worker in workers {
            let Some(ws) = scheduler.worker(worker) else {
                continue;
            };
            retiring.push(Retiring {
                worker,
                address: ws.address.clone(),
                previous: ws.status,
                identity: ws.identity(),
                progress: Progress::Moving { poll_at: cx.now },
            });
            let status = Status::ClosingGracefully;
            let event = Event::WorkerStatusChange {
                worker,
                status,
                stimulus_id: stimulus_id.clone(),
            };
            scheduler.apply(cx.now, event, cx.out);
            let message = ToWorker::WorkerStatusChange {
                status,
                stimulus_id: stimulus_id.clone(),
            };
            cx.out.push(Instruction::ToWorker { worker, message });
        }
        self.retirements.push(Retirement {
            request: Some(request),
            stimulus_id,
            close,
            remove,
            workers: retiring,
        });
        self.run_round(scheduler, cx);
        self.poll(scheduler, cx);
    }

    /// When something is to be looked at again.
    pub(super) fn next_deadline(&self) -> Option<f64> {
        let polls = self
            .retirements
            .iter()
            .flat_map(|retirement| &retirement.workers);
        let polls = polls.filter_map(|retiring| match retiring.progress {
            Progress::Moving { poll_at } => Some(poll_at),
            Progress::Empty | Progress::NoRecipients | Progress::Retired | Progress::Aborted => {
                None
            }
        });
        polls.chain(self.next_round).reduce(f64::min)
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>) {
        if self.retirements.is_empty() {
            return;
        }
        if self.next_round.is_none_or(|at| at <= cx.now) {
            self.run_round(scheduler, cx);
        }
        self.poll(scheduler, cx);
    }

    /// A caller is gone; the retirement goes on.
    pub(super) fn forget(&mut self, request: RequestId) {
        for retirement in &mut self.retirements {
            if retirement.request == Some(request) {
                retirement.request = None;
            }
        }
    }

    /// A worker left, retired or not.
    pub(super) fn worker_left(&mut self, now: f64, worker: WorkerId) {
        for retirement in &mut self.retirements {
            for retiring in &mut retirement.workers {
                if retiring.worker == worker
                    && let Progress::Moving { poll_at } = &mut retiring.progress
                {
                    *poll_at = now;
                }
            }
        }
    }

    /// One round over all workers that still have data of their own.
    fn run_round(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>) {
        let mut round = Round {
            memory: scheduler
                .workers()
                .map(|(id, worker)| (id, worker.memory().optimistic()))
                .collect(),
            ..Round::default()
        };
        for retirement in &mut self.retirements {
            for retiring in &mut retirement.workers {
                if let Progress::Moving { .. } = retiring.progress
                    && let Some(progress) = round.evacuate(scheduler, cx, retiring)
                {
                    retiring.progress = progress;
                }
            }
        }
        round.enact(scheduler, cx);
        self.next_round = Some(cx.now + INTERVAL);
    }

    /// Finishes what has no data of its own left.
    fn poll(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>) {
        for retirement in &mut self.retirements {
            for retiring in &mut retirement.workers {
                let worker = scheduler.worker(retiring.worker);
                if let Some(worker) = worker {
                    retiring.identity = worker.identity();
                }
                let retired = match retiring.progress {
                    Progress::Retired | Progress::Aborted => continue,
                    Progress::NoRecipients => false,
                    Progress::Empty => true,
                    Progress::Moving { poll_at } if poll_at > cx.now => continue,
                    Progress::Moving { .. } => {
                        let unique = |task: TaskId| scheduler.tasks[task].who_has.len() < 2;
                        if let Some(worker) = worker
                            && worker.has_what.iter().any(unique)
                        {
                            // A hundredth of a second for a few keys, half a second for many.
                            let seconds = (worker.has_what.len() as f64 / 400.0).clamp(0.01, 0.5);
                            retiring.progress = Progress::Moving {
                                poll_at: cx.now + seconds,
                            };
                            continue;
                        }
                        true
                    }
                };
                if retired {
                    retirement_done(
                        scheduler,
                        cx,
                        retiring,
                        retirement.remove,
                        retirement.close,
                        &retirement.stimulus_id,
                    );
                } else {
                    retirement_aborted(cx, retiring, &retirement.stimulus_id);
                }
            }
        }
        self.retirements.retain(|retirement| {
            let over = retirement
                .workers
                .iter()
                .all(|retiring| retiring.progress.is_over());
            if over {
                retirement.report(cx);
            }
            !over
        });
        if self.retirements.is_empty() {
            self.next_round = None;
        }
    }
}

impl Retirement {
    fn report(&self, cx: &mut Context<'_>) {
        let addresses = |progress: Progress| -> Vec<Arc<str>> {
            let those = self
                .workers
                .iter()
                .filter(|retiring| retiring.progress == progress);
            those.map(|retiring| retiring.address.clone()).collect()
        };
        let retired = addresses(Progress::Retired);
        let aborted = addresses(Progress::Aborted);
        let list = |addresses: &[Arc<str>]| addresses.iter().map(Value::from).collect::<Value>();
        let stimulus_id = &self.stimulus_id;
        let mut log = |topics: Vec<Arc<str>>, message: Map| {
            cx.out.push(Instruction::LogEvent {
                topics,
                message: message.into(),
            });
        };
        log(
            vec!["all".into()],
            map! {
                "action" => "retire-workers",
                "retired" => list(&retired),
                "could-not-retire" => list(&aborted),
                "stimulus_id" => stimulus_id,
            },
        );
        log(
            retired,
            map! { "action" => "retired", "stimulus_id" => stimulus_id },
        );
        log(
            aborted,
            map! { "action" => "could-not-retire", "stimulus_id" => stimulus_id },
        );
        if let Some(request) = self.request {
            let retired = self
                .workers
                .iter()
                .filter(|retiring| retiring.progress == Progress::Retired);
            let reply: Map = retired
                .map(|retiring| (&retiring.address, retiring.identity.clone()))
                .collect();
            cx.reply(request, reply);
        }
    }
}

fn retirement_done(
    scheduler: &mut Scheduler,
    cx: &mut Context<'_>,
    retiring: &mut Retiring,
    remove: bool,
    close: bool,
    stimulus_id: &StimulusId,
) {
    let worker = retiring.worker;
    let known = scheduler.worker(worker).is_some();
    if remove {
        let event = Event::RemoveWorker {
            worker,
            stimulus_id: stimulus_id.clone(),
            expected: true,
            close,
        };
        scheduler.apply(cx.now, event, cx.out);
    } else if close && known {
        cx.log(Level::Info, format!("Closing worker {}", retiring.address));
        cx.out.push(Instruction::LogEvent {
            topics: vec![retiring.address.clone()],
            message: map! { "action" => "close-worker" }.into(),
        });
        let message = ToWorker::Close {
            reason: "scheduler-close-worker".into(),
        };
        cx.out.push(Instruction::ToWorker { worker, message });
    }
    if remove || !known {
        retiring.identity.insert("status", Status::Closed.name());
    }
    cx.log(
        Level::Info,
        format!(
            "Retired worker '{}' (stimulus_id='{stimulus_id}')",
            retiring.address
        ),
    );
    retiring.progress = Progress::Retired;
}

fn retirement_aborted(cx: &mut Context<'_>, retiring: &mut Retiring, stimulus_id: &StimulusId) {
    let message = ToWorker::WorkerStatusChange {
        status: retiring.previous,
        stimulus_id: stimulus_id.clone(),
    };
    cx.out.push(Instruction::ToWorker {
        worker: retiring.worker,
        message,
    });
    cx.log(
        Level::Warning,
        format!(
            "Could not retire worker '{}': unique data could not be moved to any other worker \
             (stimulus_id='{stimulus_id}')",
            retiring.address
        ),
    );
    retiring.progress = Progress::Aborted;
}

impl Round {
    /// Plans copies of what a worker alone holds. Gives its progress if that changes.
    fn evacuate(
        &mut self,
        scheduler: &Scheduler,
        cx: &mut Context<'_>,
        retiring: &Retiring,
    ) -> Option<Progress> {
        let worker = scheduler.worker(retiring.worker)?;
        let address = &retiring.address;
        if !worker.actors.is_empty() {
            let actors: Vec<_> = worker
                .actors
                .iter()
                .map(|actor| format!("{:?}", scheduler.tasks[actor].key))
                .collect();
            cx.log(
                Level::Warning,
                format!(
                    "Tried retiring worker {address}, but it holds actor(s) {{{}}}, which can't be moved.\
                     The worker will not be retired.",
                    actors.join(", ")
                ),
            );
            return Some(Progress::NoRecipients);
        }
        let mut copied = 0;
        let mut stuck = 0;
        for task in &worker.has_what {
            let ts = &scheduler.tasks[task];
            if ts.actor {
                continue;
            }
            if ts.who_has.len() > 1 {
                if self.drop_replica(scheduler, task, retiring.worker) {
                    continue;
                }
                if ts.who_has.iter().any(|holder| scheduler.is_running(holder)) {
                    continue;
                }
            }
            copied += 1;
            if self.acquire.get(&task).is_none_or(Vec::is_empty)
                && !self.add_replica(scheduler, task)
            {
                stuck += 1;
            }
        }
        if stuck > 0 {
            cx.log(
                Level::Warning,
                format!(
                    "Tried retiring worker {address}, but {stuck} tasks could not be moved as there are no \
                     suitable workers to receive them. The worker will not be retired."
                ),
            );
            return Some(Progress::NoRecipients);
        }
        if copied > 0 {
            cx.log(
                Level::Info,
                format!("Retiring worker {address}; {copied} keys are being moved away."),
            );
            return None;
        }
        cx.log(
            Level::Info,
            format!("Retiring worker {address}; no unique keys need to be moved away."),
        );
        Some(Progress::Empty)
    }

    /// Copies a task to the running worker with the least memory in use that lacks it.
    fn add_replica(&mut self, scheduler: &Scheduler, task: TaskId) -> bool {
        let ts = &scheduler.tasks[task];
        let recipient = scheduler
            .running()
            .filter(|&worker| !ts.who_has.contains(worker))
            .min_by_key(|worker| self.memory.get(worker).copied().unwrap_or(0));
        let Some(recipient) = recipient else {
            return false;
        };
        *self.memory.entry(recipient).or_default() += ts.nbytes.max(0);
        self.acquire.entry(task).or_default().push(recipient);
        true
    }

    /// Drops a replica unless it is the last one, or a task that needs it is on that worker.
    fn drop_replica(&mut self, scheduler: &Scheduler, task: TaskId, worker: WorkerId) -> bool {
        let ts = &scheduler.tasks[task];
        let dropped = self.drop.get(&task).map_or(0, Vec::len);
        let needed = |waiter: TaskId| scheduler.tasks[waiter].processing_on == Some(worker);
        if ts.who_has.len() - dropped < 2 || ts.waiters.iter().any(needed) {
            return false;
        }
        self.drop.entry(task).or_default().push(worker);
        true
    }

    fn enact(self, scheduler: &mut Scheduler, cx: &mut Context<'_>) {
        let stimulus_id = StimulusId::from(format!("active_memory_manager-{}", cx.now));
        let by_worker = |plan: IndexMap<TaskId, Vec<WorkerId>>, scheduler: &Scheduler| {
            let mut by_worker: IndexMap<WorkerId, IndexSet<oxidask_wire::Key>> = IndexMap::new();
            for (task, workers) in plan {
                for worker in workers {
                    by_worker
                        .entry(worker)
                        .or_default()
                        .insert(scheduler.tasks[task].key.clone());
                }
            }
            by_worker
        };
        let acquire = by_worker(self.acquire, scheduler);
        let drop = by_worker(self.drop, scheduler);
        for (worker, keys) in acquire {
            let event = Event::AcquireReplicas {
                worker,
                keys: keys.into_iter().collect(),
                stimulus_id: stimulus_id.clone(),
            };
            scheduler.apply(cx.now, event, cx.out);
        }
        for (worker, keys) in drop {
            let event = Event::RemoveReplicas {
                worker,
                keys: keys.into_iter().collect(),
                stimulus_id: stimulus_id.clone(),
            };
            scheduler.apply(cx.now, event, cx.out);
        }
    }
}
