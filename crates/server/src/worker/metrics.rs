//! What a heartbeat tells of data and time.

use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use oxidask_wire::{Map, Str, Value, map};
use oxidask_worker::memory::Spilled;
use oxidask_worker::{State, WorkerState};

use super::monitor::Monitor;
use super::spill::Figures;

/// Bandwidth before anything was measured: `distributed.scheduler.bandwidth`.
const BANDWIDTH_INITIAL: f64 = 100_000_000.0;

/// Smaller transfers say more of latency than of bandwidth, as in Dask.
const BANDWIDTH_NBYTES_MIN: i64 = 1_000_000;

/// Different figures between two heartbeats. Chosen: contexts, activities and
/// prefixes multiply to some hundreds; a scheduler that does not answer must not
/// let them grow for ever.
const DIGESTS_MAX: usize = 10_000;

/// Figures since the start or since the last heartbeat.
#[derive(Debug)]
pub(super) struct Metrics {
    bandwidth: f64,
    /// Sum and number of bandwidths by peer.
    bandwidth_workers: IndexMap<Arc<str>, (f64, u64)>,
    /// Sum and number of bandwidths by name of type.
    bandwidth_types: IndexMap<Str, (f64, u64)>,
    digests: IndexMap<Digest, f64>,
    pub(super) transfer_outgoing_bytes: i64,
    pub(super) transfer_outgoing_count: usize,
    pub(super) transfer_outgoing_count_total: u64,
    pub(super) transfer_outgoing_bytes_total: i64,
    /// How long the scheduler took for its last answer.
    pub(super) latency_last: Duration,
    /// The scheduler's clock is ahead by so many seconds.
    pub(super) scheduler_delay: f64,
    pub(super) monitor: Monitor,
}

/// Values that were taken from memory, where some are spilled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reads {
    pub(super) memory_count: u64,
    pub(super) memory_nbytes: i64,
}

impl Reads {
    fn figures(self) -> impl Iterator<Item = (&'static str, &'static str, f64)> {
        let figures = [
            ("memory-read", "count", self.memory_count as f64),
            ("memory-read", "bytes", self.memory_nbytes as f64),
        ];
        figures.into_iter().filter(move |_| self.memory_count > 0)
    }
}

/// Name of a figure. Those of tasks are also told by span.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Digest {
    /// `latency`, or whatever the executor named, as msgpack.
    Named(bytes::Bytes),
    /// `(context, activity, unit)`
    Of(&'static str, &'static str, &'static str),
    /// `("execute", span, prefix, activity, unit)`
    Execute {
        span_id: Option<Str>,
        prefix: Str,
        activity: &'static str,
        unit: &'static str,
    },
}

impl Metrics {
    pub(super) fn new(monitor: Monitor) -> Self {
        Self {
            bandwidth: BANDWIDTH_INITIAL,
            bandwidth_workers: IndexMap::new(),
            bandwidth_types: IndexMap::new(),
            digests: IndexMap::new(),
            transfer_outgoing_bytes: 0,
            transfer_outgoing_count: 0,
            transfer_outgoing_count_total: 0,
            transfer_outgoing_bytes_total: 0,
            latency_last: Duration::ZERO,
            scheduler_delay: 0.0,
            monitor,
        }
    }

    fn add(&mut self, digest: Digest, amount: f64) {
        if self.digests.len() < DIGESTS_MAX || self.digests.contains_key(&digest) {
            *self.digests.entry(digest).or_default() += amount;
        }
    }

    /// Adds to a figure that has a name of its own.
    pub(super) fn digest(&mut self, name: &Value, amount: f64) {
        let name = oxidask_wire::encode(name).swap_remove(0);
        self.add(Digest::Named(name), amount);
    }

    /// The scheduler answered after so many seconds.
    pub(super) fn latency(&mut self, seconds: f64) {
        self.latency_last = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        self.digest(&"latency".into(), seconds);
    }

    /// An answer to `get_data` went out.
    pub(super) fn sent(&mut self, seconds: f64) {
        self.add(Digest::Of("get-data", "network", "seconds"), seconds);
    }

    /// A value went to disk. Stock books most of these to the task whose result
    /// displaced it; here nothing waits for them.
    pub(super) fn spilled(&mut self, figures: Figures) {
        for (activity, unit, amount) in [
            ("serialize", "seconds", figures.serialize.as_secs_f64()),
            ("compress", "seconds", figures.compress.as_secs_f64()),
            ("disk-write", "seconds", figures.disk.as_secs_f64()),
            ("disk-write", "count", 1.0),
            ("disk-write", "bytes", figures.nbytes as f64),
        ] {
            self.add(Digest::Of("memory-monitor", activity, unit), amount);
        }
    }

    /// An answer to `get_data` took values.
    pub(super) fn get_data_reads(&mut self, reads: Reads) {
        for (activity, unit, amount) in reads.figures() {
            self.add(Digest::Of("get-data", activity, unit), amount);
        }
    }

    /// A task took its inputs.
    pub(super) fn executed_reads(&mut self, span_id: Option<&Str>, prefix: &str, reads: Reads) {
        for (activity, unit, amount) in reads.figures() {
            self.executed(span_id, prefix, activity, unit, amount);
        }
    }

    /// A figure of a task.
    pub(super) fn executed(
        &mut self,
        span_id: Option<&Str>,
        prefix: &str,
        activity: &'static str,
        unit: &'static str,
        amount: f64,
    ) {
        let digest = Digest::Execute {
            span_id: span_id.cloned(),
            prefix: prefix.into(),
            activity,
            unit,
        };
        self.add(digest, amount);
    }

    /// Data came from a peer. `type` is that of all values, if they have the same.
    pub(super) fn received(
        &mut self,
        worker: &Arc<str>,
        nbytes: i64,
        seconds: f64,
        r#type: Option<&Str>,
    ) {
        let duration = seconds.max(0.001);
        let bandwidth = nbytes as f64 / duration;
        if nbytes > BANDWIDTH_NBYTES_MIN {
            self.bandwidth = self.bandwidth * 0.95 + bandwidth * 0.05;
            let (sum, count) = self.bandwidth_workers.entry(worker.clone()).or_default();
            *sum += bandwidth;
            *count += 1;
            if let Some(name) = r#type {
                let (sum, count) = self.bandwidth_types.entry(name.clone()).or_default();
                *sum += bandwidth;
                *count += 1;
            }
        }
        self.digest(&"transfer-bandwidth".into(), bandwidth);
        self.digest(&"transfer-duration".into(), duration);
        self.add(Digest::Of("gather-dep", "network", "seconds"), seconds);
    }

    /// The scheduler has taken the bandwidths.
    pub(super) fn delivered(&mut self) {
        self.bandwidth_workers.clear();
        self.bandwidth_types.clear();
    }

    /// `metrics` of a heartbeat, and what the extension `spans` adds to it. Begins
    /// the digests anew. `Worker.get_metrics` in distributed.
    pub(super) fn take(&mut self, core: &WorkerState, spilled: Spilled) -> (Map, Map) {
        let task_counts: Map = State::ALL
            .into_iter()
            .map(|state| (state.name(), core.count_in(state)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let (digests, spans) = digests(std::mem::take(&mut self.digests));
        let mut metrics = map! {
            "task_counts" => task_counts,
            "bandwidth" => map! {
                "total" => self.bandwidth,
                "workers" => pairs(self.bandwidth_workers.iter()),
                "types" => pairs(self.bandwidth_types.iter()),
            },
            "digests_total_since_heartbeat" => digests,
            "managed_bytes" => core.nbytes(),
            "spilled_bytes" => map! { "memory" => spilled.memory, "disk" => spilled.disk },
            "transfer" => map! {
                "incoming_bytes" => core.transfer_incoming_bytes(),
                "incoming_count" => core.transfer_incoming_count(),
                "incoming_count_total" => core.transfer_incoming_count_total(),
                "outgoing_bytes" => self.transfer_outgoing_bytes,
                "outgoing_count" => self.transfer_outgoing_count,
                "outgoing_count_total" => self.transfer_outgoing_count_total,
            },
            "event_loop_interval" => self.monitor.event_loop_interval(),
        };
        self.monitor.recent(&mut metrics);
        (metrics, spans)
    }
}

fn pairs<'a, K>(sums: impl Iterator<Item = (&'a K, &'a (f64, u64))>) -> Map
where
    K: 'a,
    Value: From<&'a K>,
{
    sums.map(|(name, (sum, count))| (name, Value::Array(vec![(*sum).into(), (*count).into()])))
        .collect()
}

/// Figures without spans, and those of tasks by span.
fn digests(digests: IndexMap<Digest, f64>) -> (Map, Map) {
    let mut squashed: IndexMap<Digest, f64> = IndexMap::new();
    let mut spans = Map::new();
    for (digest, amount) in digests {
        if let Digest::Execute {
            span_id,
            prefix,
            activity,
            unit,
        } = &digest
        {
            let name = [
                "execute".into(),
                Value::from(span_id.clone()),
                prefix.into(),
                (*activity).into(),
                (*unit).into(),
            ];
            spans.push(name.into_iter().collect::<Value>(), amount);
        }
        *squashed.entry(digest.without_span()).or_default() += amount;
    }
    let squashed = squashed.into_iter();
    (
        squashed
            .map(|(digest, amount)| (digest.name(), amount))
            .collect(),
        spans,
    )
}

impl Digest {
    fn without_span(self) -> Self {
        match self {
            Self::Execute {
                span_id: _,
                prefix,
                activity,
                unit,
            } => Self::Execute {
                span_id: None,
                prefix,
                activity,
                unit,
            },
            other @ (Self::Named(_) | Self::Of(..)) => other,
        }
    }

    fn name(self) -> Value {
        match self {
            Self::Named(name) => Value::Raw(name),
            Self::Of(context, activity, unit) => {
                Value::Array(vec![context.into(), activity.into(), unit.into()])
            }
            Self::Execute {
                prefix,
                activity,
                unit,
                ..
            } => Value::Array(vec![
                "execute".into(),
                prefix.into(),
                activity.into(),
                unit.into(),
            ]),
        }
    }
}
