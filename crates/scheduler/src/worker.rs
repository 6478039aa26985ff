//! One worker as the scheduler sees it.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;
use indexmap::IndexMap;
use oxidask_wire::{Key, Map, Str, Value};

use crate::event::NewWorker;
use crate::id::{PrefixId, Status, TaskId};
use crate::sets::IdSet;

/// Map from ids that the scheduler makes itself.
pub type ById<K, V> = HashMap<K, V, foldhash::fast::FixedState>;

/// A worker. `Scheduler::worker` gives it by id.
#[derive(Clone, Debug)]
pub struct WorkerState {
    /// Canonical address.
    pub address: Arc<str>,
    /// The host in the address.
    pub host: Arc<str>,
    /// Its name, of any type.
    pub name: Value,
    /// Threads that run tasks.
    pub nthreads: u32,
    /// Bytes; 0 means unlimited.
    pub memory_limit: u64,
    /// Where it spills.
    pub local_directory: Str,
    /// Address of its nanny.
    pub nanny: Option<Str>,
    /// Process id.
    pub pid: i64,
    /// Unique id of the server.
    pub server_id: Str,
    /// One of ours.
    pub is_native: bool,
    /// Ports by name.
    pub services: Value,
    /// Its packages.
    pub versions: Value,
    /// Merged into `identity`.
    pub extra: Map,
    /// Only a running one gets tasks.
    pub status: Status,
    /// Bytes of the results it holds.
    pub nbytes: i64,
    /// Tasks it holds, in order of arrival.
    pub has_what: IdSet<TaskId>,
    /// Tasks assigned to it.
    pub processing: IdSet<TaskId>,
    /// Those of `processing` that may be stolen.
    pub(crate) stealable: crate::stealing::Stealable,
    /// Those of `processing` that left the thread pool.
    pub long_running: IdSet<TaskId>,
    /// Seconds each task has been executing, by the last heartbeat.
    pub executing: Vec<(Key, f64)>,
    /// Actors it holds or is about to.
    pub actors: IdSet<TaskId>,
    /// What it supplies in total.
    pub resources: IndexMap<Arc<str>, f64>,
    /// How much of that its tasks need.
    pub used_resources: IndexMap<Arc<str>, f64>,
    /// Dependencies it has to fetch, with the number of its tasks that need each.
    pub needs_what: ById<TaskId, u32>,
    /// Tasks in `processing` and not long-running, by prefix.
    pub task_prefix_count: IndexMap<PrefixId, u32, foldhash::fast::FixedState>,
    /// Bytes of `needs_what`.
    pub network_occ: i64,
    /// As in the last heartbeat.
    pub metrics: Value,
    /// When it was last heard of, in seconds since the epoch.
    pub last_seen: f64,
    /// The scheduler's clock minus its own, in seconds.
    pub time_delay: f64,
    /// Smallest unmanaged memory of the last half minute, in bytes.
    pub memory_unmanaged_old: i64,
    /// What that was taken from: (when, bytes).
    pub memory_unmanaged_history: VecDeque<(f64, i64)>,
    /// Position in the order of addresses.
    pub(crate) rank: u32,
    /// Free queue slots, while it counts as having some.
    pub(crate) open_slots: u32,
    /// The key under which `Scheduler::open` has it.
    pub(crate) open_key: Option<u64>,
    /// Why it died, if its nanny said so before the worker was missed.
    pub(crate) death: Option<Box<str>>,
    /// Being removed: no longer one of the workers, kept until its tasks have moved on.
    pub(crate) leaving: bool,
}

impl WorkerState {
    pub(crate) fn new(worker: NewWorker, now: f64) -> Self {
        Self {
            host: address_host(&worker.address).into(),
            address: worker.address,
            name: worker.name,
            nthreads: worker.nthreads,
            memory_limit: worker.memory_limit.unwrap_or(0),
            local_directory: worker.local_directory,
            nanny: worker.nanny,
            pid: worker.pid,
            server_id: worker.server_id,
            is_native: worker.is_native,
            services: worker.services,
            versions: worker.versions,
            extra: worker.extra,
            status: worker.status,
            nbytes: 0,
            has_what: IdSet::default(),
            processing: IdSet::default(),
            stealable: crate::stealing::Stealable::default(),
            long_running: IdSet::default(),
            executing: Vec::new(),
            actors: IdSet::default(),
            resources: IndexMap::default(),
            used_resources: IndexMap::default(),
            needs_what: ById::default(),
            task_prefix_count: IndexMap::default(),
            network_occ: 0,
            metrics: Value::Nil,
            last_seen: now,
            time_delay: 0.0,
            memory_unmanaged_old: 0,
            memory_unmanaged_history: VecDeque::new(),
            rank: 0,
            open_slots: 0,
            open_key: None,
            death: None,
            leaving: false,
        }
    }

    /// Root tasks that may still be sent without oversaturating it; negative when over.
    pub fn slots_available(&self, saturation: f64) -> i64 {
        let slots = ((saturation * f64::from(self.nthreads)).ceil() as i64).max(1);
        slots - (self.processing.len() as i64 - self.long_running.len() as i64)
    }

    /// Bytes of spilled data: (memory it would need, bytes on disk).
    pub(crate) fn spilled_nbytes(metrics: &Value) -> (i64, i64) {
        let spilled = metrics.as_map().and_then(|map| map.get("spilled_bytes"));
        let part = |name| {
            spilled
                .and_then(Value::as_map)
                .and_then(|map| map.get(name))
                .and_then(Value::as_f64)
                .unwrap_or(0.0) as i64
        };
        (part("memory"), part("disk"))
    }

    /// Memory of the worker, split as Dask's `MemoryState`.
    pub fn memory(&self) -> MemoryState {
        let (spilled_memory, spilled_disk) = Self::spilled_nbytes(&self.metrics);
        let process = self
            .metrics
            .as_map()
            .and_then(|map| map.get("memory"))
            .and_then(Value::as_f64)
            .unwrap_or(0.0) as i64;
        let managed = (self.nbytes - spilled_memory).max(0).min(process);
        let unmanaged_old = self.memory_unmanaged_old.min(process - managed);
        MemoryState {
            process,
            managed,
            unmanaged_old,
            spilled: spilled_disk,
        }
    }
}

/// Memory of a worker in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryState {
    /// Resident memory of the process.
    pub process: i64,
    /// Results held in memory.
    pub managed: i64,
    /// What has been neither for half a minute: imports, leaks, running tasks.
    pub unmanaged_old: i64,
    /// Results on disk.
    pub spilled: i64,
}

impl MemoryState {
    /// Memory that is likely to stay in use.
    pub fn optimistic(&self) -> i64 {
        self.managed + self.unmanaged_old
    }

    /// The rest of the process' memory, which may be gone soon.
    pub fn unmanaged_recent(&self) -> i64 {
        self.process - self.managed - self.unmanaged_old
    }
}

/// The host in an address: `10.0.0.3` of `tcp://10.0.0.3:40331`, `::1` of `tcp://[::1]:1`.
pub(crate) fn address_host(address: &str) -> &str {
    let location = address
        .split_once("://")
        .map_or(address, |(_, location)| location);
    let authority = location.split('/').next().unwrap_or(location);
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match authority.rsplit_once(':') {
        Some((host, _)) => host,
        None => authority,
    }
}
