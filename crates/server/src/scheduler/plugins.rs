//! Plug-ins that every worker gets.

use bytes::Bytes;
use oxidask_wire::{Map, map, pickle};

/// `worker-plugins` at the start: without `ShuffleWorkerPlugin` every P2P task fails.
pub(super) fn initial_worker_plugins() -> Map {
    let plugin = pickle::exception_pickle(
        "distributed.shuffle._worker_plugin",
        "ShuffleWorkerPlugin",
        &[],
    );
    map! { "shuffle" => Bytes::from(plugin) }
}
