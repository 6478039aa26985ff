//! The pages of a worker, with the figures of a running one.

use oxidask_http::info::{Error, Reply};
use oxidask_http::{WorkerInfo as Info, WorkerMetrics};
use oxidask_server::worker::FiguresReader;

/// Answers pages by asking the worker.
pub(super) struct Pages(pub(super) FiguresReader);

impl Info for Pages {
    fn metrics(&self) -> Reply<'_, WorkerMetrics> {
        Box::pin(async {
            let figures = self.0.read().await.ok_or(Error::Closing)?;
            Ok(WorkerMetrics {
                tasks: figures.tasks,
                // Of Python's, which this process does not watch.
                gc_collection_seconds_total: 0.0,
                threads: figures.nthreads,
                latency_seconds: figures.latency.as_secs_f64(),
                process_nbytes: figures.process_nbytes,
                managed_nbytes: figures.managed_nbytes,
                spilled_nbytes: figures.spilled_nbytes,
                transfer_incoming_bytes: figures.transfer_incoming_bytes,
                transfer_incoming_count: figures.transfer_incoming_count,
                transfer_incoming_count_total: figures.transfer_incoming_count_total,
                transfer_outgoing_bytes: figures.transfer_outgoing_bytes,
                transfer_outgoing_count: figures.transfer_outgoing_count,
                transfer_outgoing_bytes_total: figures.transfer_outgoing_bytes_total,
                transfer_outgoing_count_total: figures.transfer_outgoing_count_total,
                spill_totals: figures.spill_totals,
                tick_duration_max: figures.turn_duration_max.as_secs_f64(),
                tick_count: figures.turns_count_total,
            })
        })
    }
}
