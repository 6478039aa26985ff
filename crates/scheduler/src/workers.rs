//! The table of workers and the sets that placement reads.

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use foldhash::quality::RandomState;
use hashbrown::HashMap;
use oxidask_wire::{Key, Value};

use crate::id::{Status, WorkerId};
use crate::mirror::Touched;
use crate::sets::{IdSet, RankSet};
use crate::worker::{ById, WorkerState};

/// Every worker.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    slots: Vec<Option<Box<WorkerState>>>,
    by_address: HashMap<Arc<str>, WorkerId, RandomState>,
    /// Names, with Python's equality.
    aliases: HashMap<Key, WorkerId, RandomState>,
    by_host: HashMap<Arc<str>, IdSet<WorkerId>, RandomState>,
    /// Sorted by address; the position is the worker's rank.
    ranked: Vec<WorkerId>,
    /// Ranks of workers with status `running`.
    pub(crate) running: RankSet,
    /// Ranks of running workers with too little to do.
    pub(crate) idle: RankSet,
    /// Ranks of running workers with more than their share to do.
    pub(crate) saturated: RankSet,
    /// Running workers with free queue slots (`idle_task_count`), least busy first.
    pub(crate) open: BTreeSet<(u64, WorkerId)>,
    /// Free slots of those.
    pub(crate) open_slots: u64,
    /// Totals that workers supply, by resource.
    pub(crate) resources: HashMap<Arc<str>, ById<WorkerId, f64>, RandomState>,
    pub(crate) total_nthreads: u64,
    pub(crate) total_memory: u64,
    /// Workers that may have changed, while somebody mirrors them.
    pub(crate) touched: Option<Box<Touched>>,
}

impl Workers {
    /// Number of workers.
    pub(crate) fn len(&self) -> usize {
        self.ranked.len()
    }

    pub(crate) fn get(&self, id: WorkerId) -> Option<&WorkerState> {
        self.slots
            .get(id.0 as usize)?
            .as_deref()
            .filter(|worker| !worker.leaving)
    }

    pub(crate) fn get_mut(&mut self, id: WorkerId) -> Option<&mut WorkerState> {
        self.touch(id);
        self.slots
            .get_mut(id.0 as usize)?
            .as_deref_mut()
            .filter(|worker| !worker.leaving)
    }

    pub(crate) fn find(&self, address: &str) -> Option<WorkerId> {
        self.by_address.get(address).copied()
    }

    pub(crate) fn find_alias(&self, name: &Value) -> Option<WorkerId> {
        let name = Key::from_value(name).ok()?;
        self.aliases.get(&name).copied()
    }

    pub(crate) fn on_host(&self, host: &str) -> Option<&IdSet<WorkerId>> {
        self.by_host.get(host)
    }

    /// The worker of this rank.
    pub(crate) fn ranked(&self, rank: u32) -> WorkerId {
        self.ranked[rank as usize]
    }

    /// Sorted by address.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (WorkerId, &WorkerState)> {
        self.ranked.iter().map(|&id| (id, &self[id]))
    }

    /// Sorted by address.
    pub(crate) fn ids(&self) -> &[WorkerId] {
        &self.ranked
    }

    pub(crate) fn insert(&mut self, mut worker: WorkerState) -> WorkerId {
        let id = WorkerId(self.slots.len() as u32);
        let rank = self
            .ranked
            .partition_point(|&other| self[other].address < worker.address);
        for at in rank..self.ranked.len() {
            let other = self.ranked[at];
            self[other].rank += 1;
        }
        self.running.open_gap(rank as u32);
        self.idle.open_gap(rank as u32);
        self.saturated.open_gap(rank as u32);
        self.ranked.insert(rank, id);
        worker.rank = rank as u32;

        self.by_address.insert(worker.address.clone(), id);
        if let Ok(name) = Key::from_value(&worker.name) {
            self.aliases.insert(name, id);
        }
        self.by_host
            .entry(worker.host.clone())
            .or_default()
            .insert(id);
        self.total_nthreads += u64::from(worker.nthreads);
        self.total_memory += worker.memory_limit;
        if worker.status == Status::Running {
            self.running.insert(worker.rank);
        }
        self.slots.push(Some(Box::new(worker)));
        self.touch(id);
        id
    }

    /// Takes a worker out of everything but its slot, where it stays, marked
    /// as leaving, until [`Workers::forget`].
    pub(crate) fn remove(&mut self, id: WorkerId) {
        self.close(id);
        let worker = &mut self[id];
        worker.leaving = true;
        worker.status = Status::Closed;
        let rank = worker.rank;
        let address = worker.address.clone();
        let host = worker.host.clone();
        let name = Key::from_value(&worker.name);
        let resources: Vec<Arc<str>> = worker.resources.keys().cloned().collect();
        self.total_nthreads -= u64::from(self[id].nthreads);
        self.total_memory -= self[id].memory_limit;

        for resource in resources {
            if let Some(supply) = self.resources.get_mut(&resource) {
                supply.remove(&id);
            }
        }
        self.by_address.remove(&address);
        if let Ok(name) = name {
            self.aliases.remove(&name);
        }
        if let Some(ids) = self.by_host.get_mut(&host) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_host.remove(&host);
            }
        }
        self.ranked.remove(rank as usize);
        for at in rank as usize..self.ranked.len() {
            let other = self.ranked[at];
            self[other].rank -= 1;
        }
        self.running.close_gap(rank);
        self.idle.close_gap(rank);
        self.saturated.close_gap(rank);
    }

    fn touch(&mut self, id: WorkerId) {
        if let Some(touched) = &mut self.touched {
            touched.mark(id);
        }
    }

    /// Drops the state of a removed worker.
    pub(crate) fn forget(&mut self, id: WorkerId) {
        self.slots[id.0 as usize] = None;
        self.touch(id);
    }

    /// Enters a running worker among those with free slots, or takes it out.
    pub(crate) fn set_open_slots(&mut self, id: WorkerId, slots: i64) {
        self.close(id);
        if slots <= 0 {
            return;
        }
        let worker = &mut self[id];
        let ratio = worker.processing.len() as f64 / f64::from(worker.nthreads.max(1));
        // Non-negative floats compare as their bits do.
        let key = ratio.to_bits();
        worker.open_key = Some(key);
        worker.open_slots = slots as u32;
        self.open.insert((key, id));
        self.open_slots += slots as u64;
    }

    /// Takes a worker out of those with free slots.
    pub(crate) fn close(&mut self, id: WorkerId) {
        let worker = &mut self[id];
        let Some(key) = worker.open_key.take() else {
            return;
        };
        let slots = std::mem::take(&mut worker.open_slots);
        self.open.remove(&(key, id));
        self.open_slots -= u64::from(slots);
    }
}

impl Index<WorkerId> for Workers {
    type Output = WorkerState;

    fn index(&self, id: WorkerId) -> &WorkerState {
        self.slots[id.0 as usize]
            .as_deref()
            .expect("nothing refers to a worker whose removal is complete")
    }
}

impl IndexMut<WorkerId> for Workers {
    fn index_mut(&mut self, id: WorkerId) -> &mut WorkerState {
        self.touch(id);
        self.slots[id.0 as usize]
            .as_deref_mut()
            .expect("nothing refers to a worker whose removal is complete")
    }
}
