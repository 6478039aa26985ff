//! Which results to move so that workers hold about the same (`Client.rebalance`).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use crate::id::{TaskId, WorkerId};
use crate::measure::Measure;
use crate::scheduler::Scheduler;

/// `distributed.worker.memory.rebalance`, as parts of a worker's memory limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RebalanceConfig {
    /// `sender-min`: a worker below this gives nothing away.
    pub sender_min: f64,
    /// `recipient-max`: a worker above this takes nothing.
    pub recipient_max: f64,
    /// `measure`: what counts as the memory of a worker.
    pub measure: Measure,
    /// `sender-recipient-gap`: distance from the mean, both sides together, that is left alone.
    pub sender_recipient_gap: f64,
}

impl Default for RebalanceConfig {
    /// Dask's defaults.
    fn default() -> Self {
        Self {
            sender_min: 0.3,
            recipient_max: 0.6,
            measure: Measure::Optimistic,
            sender_recipient_gap: 0.1,
        }
    }
}

/// One result that changes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Who gives it away.
    pub sender: WorkerId,
    /// Who takes it.
    pub recipient: WorkerId,
    /// The task.
    pub task: TaskId,
}

/// What it takes to bring workers closer to the mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebalance {
    /// In the order in which they were decided on.
    pub moves: Vec<Move>,
    /// Workers above the mean, at the beginning.
    pub senders: usize,
    /// Workers below the mean, at the beginning.
    pub recipients: usize,
}

/// A worker on one side of the mean. Ordered as in a heap whose greatest element
/// is the worker farthest from the mean.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Side {
    /// Bytes to the mean.
    nbytes_max: i64,
    /// Bytes until the worker is left alone; done when not positive.
    nbytes_min: i64,
    /// The lower of two equal ones goes first.
    worker: Reverse<WorkerId>,
    /// How many of a sender's tasks have been looked at.
    position: usize,
}

impl Side {
    fn moved(mut self, nbytes: i64) -> Option<Self> {
        self.nbytes_max -= nbytes;
        self.nbytes_min -= nbytes;
        (self.nbytes_min > 0).then_some(self)
    }
}

/// The moves that bring workers closer to the mean, none of which takes a worker
/// across it. Same as `Scheduler._rebalance_find_msgs`, except that ties break by
/// worker id.
pub fn rebalance(
    scheduler: &Scheduler,
    tasks: Option<&HashSet<TaskId>>,
    workers: &[WorkerId],
    config: &RebalanceConfig,
) -> Rebalance {
    let known = || {
        workers
            .iter()
            .filter_map(|&id| scheduler.worker(id).map(|worker| (id, worker)))
    };
    let count = known().count() as i64;
    if count == 0 {
        return Rebalance::default();
    }
    let mean = known()
        .map(|(_, worker)| config.measure.of(&worker.memory()))
        .sum::<i64>()
        .div_euclid(count);
    let mut senders = BinaryHeap::new();
    let mut recipients = BinaryHeap::new();
    for (id, worker) in known() {
        let memory = config.measure.of(&worker.memory());
        let limit = worker.memory_limit as f64;
        let (half_gap, sender_min, recipient_max) = if worker.memory_limit == 0 {
            (0, 0.0, f64::INFINITY)
        } else {
            let half_gap = config.sender_recipient_gap / 2.0 * limit;
            (
                half_gap as i64,
                config.sender_min * limit,
                config.recipient_max * limit,
            )
        };
        let side = |distance: i64| Side {
            nbytes_max: distance,
            nbytes_min: distance - half_gap,
            worker: Reverse(id),
            position: 0,
        };
        if !worker.has_what.is_empty() && memory >= mean + half_gap && memory as f64 >= sender_min {
            senders.push(side(memory - mean));
        } else if memory < mean - half_gap && (memory as f64) < recipient_max {
            recipients.push(side(mean - memory));
        }
    }
    let mut moves = Vec::new();
    let (sender_count, recipient_count) = (senders.len(), recipients.len());
    while !recipients.is_empty() {
        let Some(mut sender) = senders.pop() else {
            break;
        };
        let Some(worker) = scheduler.worker(sender.worker.0) else {
            continue;
        };
        let mut found = None;
        for task in worker.has_what.iter().skip(sender.position) {
            sender.position += 1;
            let wanted = tasks.is_none_or(|tasks| tasks.contains(&task));
            let Some(state) = scheduler.task(task).filter(|_| wanted) else {
                continue;
            };
            // Beyond that the sender would fall below the mean, and might become a recipient.
            if state.nbytes > sender.nbytes_max {
                continue;
            }
            if let Some(recipient) = take_recipient(scheduler, &mut recipients, task, state.nbytes)
            {
                found = Some((task, state.nbytes, recipient));
                break;
            }
        }
        // A sender without a task to give is done.
        let Some((task, nbytes, recipient)) = found else {
            continue;
        };
        moves.push(Move {
            sender: sender.worker.0,
            recipient: recipient.worker.0,
            task,
        });
        senders.extend(sender.moved(nbytes));
        recipients.extend(recipient.moved(nbytes));
    }
    Rebalance {
        moves,
        senders: sender_count,
        recipients: recipient_count,
    }
}

/// The recipient farthest from the mean that has room for a task and lacks it.
fn take_recipient(
    scheduler: &Scheduler,
    recipients: &mut BinaryHeap<Side>,
    task: TaskId,
    nbytes: i64,
) -> Option<Side> {
    let mut skipped = Vec::new();
    let mut taken = None;
    while let Some(recipient) = recipients.pop() {
        if nbytes > recipient.nbytes_max {
            // The next ones have less room still.
            recipients.push(recipient);
            break;
        }
        let has_it = scheduler
            .worker(recipient.worker.0)
            .is_some_and(|worker| worker.has_what.contains(task));
        if !has_it {
            taken = Some(recipient);
            break;
        }
        skipped.push(recipient);
    }
    recipients.extend(skipped);
    taken
}
