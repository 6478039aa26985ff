//! What can be configured about a worker.

use std::sync::Arc;

/// The values that the core reads; keys in the field docs leave out `distributed.`.
/// Sizes are bytes; infinity means no limit, as in Dask.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Its own address, to tell peers on its host from others.
    pub address: Arc<str>,
    /// Tasks that may execute at a time, long-running ones not counted.
    pub nthreads: usize,
    /// `worker.resources`, or `--resources`: amounts by name.
    pub resources: Vec<(Arc<str>, f64)>,
    /// `worker.connections.incoming`: transfers from peers at a time, once they
    /// make up [`transfer_incoming_bytes_throttle_threshold`](Self::transfer_incoming_bytes_throttle_threshold).
    pub transfer_incoming_count_limit: usize,
    /// Below this much incoming data the number of transfers does not matter.
    /// Ten million in Dask, not configurable there.
    pub transfer_incoming_bytes_throttle_threshold: i64,
    /// `worker.memory.transfer` times the memory limit: incoming data at a time.
    pub transfer_incoming_bytes_limit: f64,
    /// `worker.transfer.message-bytes-limit`: data asked of a peer in one message.
    pub transfer_message_bytes_limit: f64,
    /// `scheduler.default-data-size`: size of a dependency before it is known.
    pub default_data_size: i64,
    /// `admin.low-level-log-length`: records kept for `story`.
    pub low_level_log_length: usize,
    /// Transitions after which there must be a loop without end: for tests.
    /// `transition_counter_max` of `WorkerState` in distributed.
    pub transition_counter_max: Option<u64>,
    /// Says about every transition of a task ([`Instruction::Transition`](crate::Instruction::Transition)),
    /// for plug-ins that ask for it.
    pub notifies_transitions: bool,
    /// Chooses between peers that are equally good. Stock takes 0 on every
    /// worker (of another generator); different ones spread the load.
    pub seed: u64,
}

impl Config {
    /// Dask's defaults for a worker at this address, with one thread and without limit of memory.
    pub fn new(address: impl Into<Arc<str>>) -> Self {
        Self {
            address: address.into(),
            nthreads: 1,
            resources: Vec::new(),
            transfer_incoming_count_limit: 10,
            transfer_incoming_bytes_throttle_threshold: 10_000_000,
            transfer_incoming_bytes_limit: f64::INFINITY,
            transfer_message_bytes_limit: 50_000_000.0,
            default_data_size: 1024,
            low_level_log_length: 1000,
            transition_counter_max: None,
            notifies_transitions: false,
            seed: 0,
        }
    }
}
