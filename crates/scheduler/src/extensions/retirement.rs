//! Graceful retirement of workers: `retire_workers`.
//!
//! A retiring worker gets no new tasks. What it alone holds is copied to running
//! workers by the memory manager, run after run until nothing is left; then it
//! goes. If nobody can take its data, it stays.

use std::sync::Arc;

use oxidask_wire::{Map, Value, map};

use super::memory_manager::Tally;
use super::waits::Context;
use crate::id::{RequestId, Status, StimulusId, TaskId, WorkerId};
use crate::instruction::{Instruction, Level, ToWorker};
use crate::{Event, Scheduler};

/// All retirements under way.
#[derive(Debug, Default)]
pub(super) struct Retirements {
    retirements: Vec<Retirement>,
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
    /// When it began or ended.
    identity: Map,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Progress {
    /// Data is being copied; look again at this time.
    Moving {
        poll_at: f64,
    },
    /// The last run found data that nobody can take.
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
            // If it has to stay, one that retires already, or has not heard yet that it
            // cannot, must not be left closing for ever, nor one that has registered and
            // whose word that it runs is still under way be told that it does not. On
            // stock both are.
            let runs_on = matches!(ws.status, Status::ClosingGracefully | Status::Init);
            let previous = if runs_on { Status::Running } else { ws.status };
            retiring.push(Retiring {
                worker,
                address: ws.address.clone(),
                previous,
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
    }

    /// Whether no worker retires.
    pub(super) fn is_empty(&self) -> bool {
        self.retirements.is_empty()
    }

    /// Workers whose data has to go. One that holds an actor is given up.
    pub(super) fn without_actors(
        &mut self,
        scheduler: &Scheduler,
        cx: &mut Context<'_>,
    ) -> Vec<WorkerId> {
        let mut workers = Vec::new();
        for retiring in self.moving() {
            let Some(ws) = scheduler.worker(retiring.worker) else {
                continue;
            };
            if ws.actors.is_empty() {
                workers.push(retiring.worker);
                continue;
            }
            let actors = ws.actors.iter();
            let actors: Vec<_> = actors
                .map(|actor| format!("{:?}", scheduler.tasks[actor].key))
                .collect();
            cx.log(
                Level::Warning,
                format!(
                    "Tried retiring worker {}, but it holds actor(s) {{{}}}, which can't be moved.\
                     The worker will not be retired.",
                    retiring.address,
                    actors.join(", ")
                ),
            );
            retiring.progress = Progress::NoRecipients;
        }
        workers.sort_unstable();
        workers.dedup();
        workers
    }

    /// Takes in what a run found on a worker.
    pub(super) fn judge(
        &mut self,
        scheduler: &Scheduler,
        cx: &mut Context<'_>,
        worker: WorkerId,
        found: Tally,
    ) {
        let Some(ws) = scheduler.worker(worker) else {
            return;
        };
        let address = &ws.address;
        let Tally { unique, stuck } = found;
        let (level, text) = if stuck > 0 {
            let text = format!(
                "Tried retiring worker {address}, but {stuck} tasks could not be moved as there are no \
                 suitable workers to receive them. The worker will not be retired."
            );
            (Level::Warning, text)
        } else if unique > 0 {
            let text = format!("Retiring worker {address}; {unique} keys are being moved away.");
            (Level::Info, text)
        } else {
            let text = format!("Retiring worker {address}; no unique keys need to be moved away.");
            (Level::Info, text)
        };
        cx.log(level, text);
        for retiring in self.moving() {
            if retiring.worker == worker {
                retiring.progress = if stuck > 0 {
                    Progress::NoRecipients
                } else {
                    Progress::Moving { poll_at: cx.now }
                };
            }
        }
    }

    /// Workers that still have data of their own.
    fn moving(&mut self) -> impl Iterator<Item = &mut Retiring> {
        let retiring = self
            .retirements
            .iter_mut()
            .flat_map(|retirement| &mut retirement.workers);
        retiring.filter(|retiring| matches!(retiring.progress, Progress::Moving { .. }))
    }

    /// When something is to be looked at again.
    pub(super) fn next_deadline(&self) -> Option<f64> {
        let polls = self
            .retirements
            .iter()
            .flat_map(|retirement| &retirement.workers);
        let polls = polls.filter_map(|retiring| match retiring.progress {
            Progress::Moving { poll_at } => Some(poll_at),
            Progress::NoRecipients | Progress::Retired | Progress::Aborted => None,
        });
        polls.reduce(f64::min)
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

    /// Finishes what has no data of its own left.
    pub(super) fn poll(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>) {
        if self.retirements.is_empty() {
            return;
        }
        for retirement in &mut self.retirements {
            for retiring in &mut retirement.workers {
                let retired = match retiring.progress {
                    Progress::Retired | Progress::Aborted => continue,
                    Progress::NoRecipients => false,
                    Progress::Moving { poll_at } if poll_at > cx.now => continue,
                    Progress::Moving { .. } => {
                        let worker = scheduler.worker(retiring.worker);
                        if let Some(worker) = worker
                            && worker
                                .has_what
                                .iter()
                                .any(|task| is_unique(scheduler, task))
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

/// Whether every worker that holds a result is about to go. Stock takes a replica on
/// another worker that retires for a safe one, and may lose both.
fn is_unique(scheduler: &Scheduler, task: TaskId) -> bool {
    let ts = &scheduler.tasks[task];
    let stays = |holder: WorkerId| {
        let worker = scheduler.worker(holder);
        worker.is_some_and(|ws| matches!(ws.status, Status::Running | Status::Paused))
    };
    !ts.actor && !ts.who_has.iter().any(stays)
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
    let state = scheduler.worker(worker);
    let known = state.is_some();
    if let Some(state) = state {
        retiring.identity = state.identity();
    }
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
