//! Which transitions of the cores were made.

use std::collections::BTreeSet;

use oxidask_scheduler as scheduler;
use oxidask_worker::story::Happening;
use oxidask_worker::{self as worker, WorkerState};

/// Pairs of states, from and to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coverage {
    /// Of tasks on the scheduler.
    pub scheduler: BTreeSet<(scheduler::State, scheduler::State)>,
    /// Of tasks on workers: where they were to go from where. Some take a detour.
    pub worker: BTreeSet<(worker::State, worker::State)>,
}

impl Coverage {
    /// Adds what was visited elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.scheduler.extend(&other.scheduler);
        self.worker.extend(&other.worker);
    }

    pub(crate) fn add_worker(&mut self, core: &WorkerState) {
        for record in core.log() {
            if let Happening::Transition { start, finish, .. } = &record.what {
                self.worker.insert((*start, *finish));
            }
        }
    }

    /// Direct transitions of the scheduler's table that were not made.
    pub fn missing_on_scheduler(&self) -> Vec<String> {
        let pairs = scheduler_table();
        let missing = pairs
            .into_iter()
            .filter(|pair| !self.scheduler.contains(pair));
        missing.map(|(from, to)| format!("{from}->{to}")).collect()
    }

    /// Direct transitions of the workers' table that were not made.
    pub fn missing_on_workers(&self) -> Vec<String> {
        let pairs = worker_table();
        let missing = pairs.into_iter().filter(|pair| !self.worker.contains(pair));
        missing.map(|(from, to)| format!("{from}->{to}")).collect()
    }

    /// How many pairs there are in both tables: the scheduler's, the workers'.
    pub fn table_sizes() -> (usize, usize) {
        (scheduler_table().len(), worker_table().len())
    }
}

/// `SchedulerState._TRANSITIONS_TABLE` of distributed, without `released` as a way station.
fn scheduler_table() -> Vec<(scheduler::State, scheduler::State)> {
    use scheduler::State::{
        Erred, Forgotten, Memory, NoWorker, Processing, Queued, Released, Waiting,
    };
    vec![
        (Released, Waiting),
        (Released, Erred),
        (Released, Forgotten),
        (Waiting, Released),
        (Waiting, Processing),
        (Waiting, NoWorker),
        (Waiting, Queued),
        (Waiting, Memory),
        (Queued, Released),
        (Queued, Processing),
        (Queued, Erred),
        (Processing, Released),
        (Processing, Memory),
        (Processing, Erred),
        (NoWorker, Released),
        (NoWorker, Processing),
        (NoWorker, Erred),
        (Memory, Released),
        (Memory, Erred),
        (Memory, Forgotten),
        (Erred, Released),
    ]
}

/// `WorkerState._TRANSITIONS_TABLE` of distributed.
fn worker_table() -> Vec<(worker::State, worker::State)> {
    use worker::State::{
        Cancelled, Constrained, Error, Executing, Fetch, Flight, Forgotten, LongRunning, Memory,
        Missing, Ready, Released, Rescheduled, Resumed, Waiting,
    };
    let table: [(worker::State, &[worker::State]); 13] = [
        (
            Released,
            &[Error, Fetch, Forgotten, Memory, Missing, Waiting],
        ),
        (Waiting, &[Constrained, Ready, Released]),
        (Ready, &[Executing, Released]),
        (Constrained, &[Executing, Released]),
        (
            Executing,
            &[Error, LongRunning, Memory, Released, Rescheduled],
        ),
        (LongRunning, &[Error, Memory, Released, Rescheduled]),
        (Fetch, &[Flight, Missing, Released]),
        (Flight, &[Error, Fetch, Memory, Missing, Released]),
        (Missing, &[Error, Fetch, Released, Waiting]),
        (Memory, &[Released]),
        (Error, &[Released]),
        (
            Cancelled,
            &[
                Error,
                Fetch,
                LongRunning,
                Memory,
                Missing,
                Released,
                Rescheduled,
                Waiting,
            ],
        ),
        (
            Resumed,
            &[Error, Fetch, LongRunning, Memory, Released, Rescheduled],
        ),
    ];
    let pairs = table.into_iter();
    let pairs = pairs.flat_map(|(from, to)| to.iter().map(move |&to| (from, to)));
    pairs.collect()
}
