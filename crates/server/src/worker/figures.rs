//! Figures of a worker for its pages.

use std::time::{Duration, Instant};

use oxidask_worker::State;

use super::monitor::resident_nbytes;
use super::shell::{Shell, ShellHandle};

/// Numbers of a running worker. Those that end in `_total` only grow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Tasks by state; `disk` are those in `memory` whose values are spilled.
    pub tasks: Vec<(&'static str, u64)>,
    /// Tasks that run at a time.
    pub nthreads: usize,
    /// How long the scheduler took for its last answer.
    pub latency: Duration,
    /// Bytes of the process.
    pub process_nbytes: u64,
    /// Bytes of all values by `sizeof`, without spilled ones.
    pub managed_nbytes: u64,
    /// Bytes on disk.
    pub spilled_nbytes: u64,
    /// Bytes on their way from other workers.
    pub transfer_incoming_bytes: i64,
    /// Transfers from other workers.
    pub transfer_incoming_count: usize,
    /// The same since the start.
    pub transfer_incoming_count_total: u64,
    /// Bytes on their way to others.
    pub transfer_outgoing_bytes: i64,
    /// Transfers to others.
    pub transfer_outgoing_count: usize,
    /// Bytes sent to others since the start.
    pub transfer_outgoing_bytes_total: i64,
    /// Transfers to others since the start.
    pub transfer_outgoing_count_total: u64,
    /// Use of values in memory and on disk since the start: activity, unit and sum.
    /// Empty where none are spilled.
    pub spill_totals: Vec<(&'static str, &'static str, f64)>,
    /// Longest turn of the shell since these figures were last asked for.
    pub turn_duration_max: Duration,
    /// Turns of the shell since the start.
    pub turns_count_total: u64,
}

/// Asks a running worker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FiguresReader {
    pub(super) shell: ShellHandle,
}

impl FiguresReader {
    /// The figures now; `None` if the worker has closed.
    pub async fn read(&self) -> Option<Figures> {
        self.shell.call(Shell::figures).await.ok()
    }
}

/// How long the turns of the shell take.
#[derive(Debug, Default)]
pub(super) struct Turns {
    count: u64,
    duration_max: Duration,
}

impl Turns {
    /// A turn has ended that began then.
    pub(super) fn ended(&mut self, begun: Instant) {
        self.count += 1;
        self.duration_max = self.duration_max.max(begun.elapsed());
    }
}

impl Shell {
    fn figures(&mut self) -> Figures {
        let spilled = self.store.spilled();
        let spilled_count = self.store.spilled_count() as u64;
        let mut tasks = Vec::new();
        for state in State::ALL {
            let count = self.core.count_in(state);
            let count = if state == State::Memory {
                count.saturating_sub(spilled_count)
            } else {
                count
            };
            tasks.push((state.name(), count));
        }
        tasks.push(("disk", spilled_count));
        tasks.retain(|(_, count)| *count > 0);
        let managed = u64::try_from(self.core.nbytes()).unwrap_or(0);
        Figures {
            tasks,
            nthreads: self.core.config().nthreads,
            latency: self.metrics.latency_last,
            process_nbytes: resident_nbytes(),
            managed_nbytes: managed.saturating_sub(spilled.memory),
            spilled_nbytes: spilled.disk,
            transfer_incoming_bytes: self.core.transfer_incoming_bytes(),
            transfer_incoming_count: self.core.transfer_incoming_count(),
            transfer_incoming_count_total: self.core.transfer_incoming_count_total(),
            transfer_outgoing_bytes: self.metrics.transfer_outgoing_bytes,
            transfer_outgoing_count: self.metrics.transfer_outgoing_count,
            transfer_outgoing_bytes_total: self.metrics.transfer_outgoing_bytes_total,
            transfer_outgoing_count_total: self.metrics.transfer_outgoing_count_total,
            spill_totals: self.spill_totals(),
            turn_duration_max: std::mem::take(&mut self.turns.duration_max),
            turns_count_total: self.turns.count,
        }
    }

    fn spill_totals(&self) -> Vec<(&'static str, &'static str, f64)> {
        let Some(totals) = self.store.totals() else {
            return Vec::new();
        };
        vec![
            ("memory-read", "count", totals.memory_read_count as f64),
            ("memory-read", "bytes", totals.memory_read_bytes as f64),
            ("disk-read", "count", totals.disk_read_count as f64),
            ("disk-read", "bytes", totals.disk_read_bytes as f64),
            ("disk-read", "seconds", totals.disk_read_seconds),
            ("disk-write", "count", totals.disk_write_count as f64),
            ("disk-write", "bytes", totals.disk_write_bytes as f64),
            ("disk-write", "seconds", totals.disk_write_seconds),
            ("serialize", "seconds", totals.serialize_seconds),
            ("compress", "seconds", totals.compress_seconds),
        ]
    }
}
