//! What is known about other workers.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use foldhash::quality::RandomState;
use hashbrown::HashMap;
use indexmap::IndexMap;
use oxidask_wire::Key;

use crate::address::host;
use crate::heap::HeapSet;
use crate::id::{PeerId, TaskId};
use crate::sets::IdSet;

/// Another worker.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: Arc<str>,
    /// On another host.
    pub(crate) is_remote: bool,
    /// Tasks we care about that it has.
    pub(crate) has_what: IdSet<TaskId>,
    /// What is being gathered from it: `in_flight_workers` in Dask. Best first.
    pub(crate) in_flight: Option<Vec<Key>>,
    /// It was busy a moment ago: `busy_workers` in Dask.
    pub(crate) is_busy: bool,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Peers {
    slots: Vec<Peer>,
    free: Vec<PeerId>,
    index: HashMap<Arc<str>, PeerId, RandomState>,
    own_address: Arc<str>,
    /// Tasks in `fetch` by peer that has them; a task is with every one of its holders.
    /// In the order in which the peers came to have something, which breaks ties.
    pub(crate) data_needed: IndexMap<PeerId, HeapSet, foldhash::fast::FixedState>,
    /// Peers with something in flight.
    pub(crate) in_flight_count: usize,
}

impl Peers {
    pub(crate) fn new(own_address: Arc<str>) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: HashMap::default(),
            own_address,
            data_needed: IndexMap::default(),
            in_flight_count: 0,
        }
    }

    pub(crate) fn own_address(&self) -> &Arc<str> {
        &self.own_address
    }

    /// The peer at this address, if anything is known about it.
    pub(crate) fn find(&self, address: &str) -> Option<PeerId> {
        self.index.get(address).copied()
    }

    /// The peer at this address.
    pub(crate) fn intern(&mut self, address: &str) -> PeerId {
        if let Some(peer) = self.find(address) {
            return peer;
        }
        let address: Arc<str> = address.into();
        let peer = Peer {
            is_remote: host(&address) != host(&self.own_address),
            address: address.clone(),
            has_what: IdSet::default(),
            in_flight: None,
            is_busy: false,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self[id] = peer;
                id
            }
            None => {
                self.slots.push(peer);
                PeerId(self.slots.len() as u32 - 1)
            }
        };
        self.index.insert(address, id);
        id
    }

    /// Forgets a peer about which there is nothing to remember.
    pub(crate) fn release_if_unused(&mut self, id: PeerId) {
        let peer = &self[id];
        if peer.has_what.is_empty()
            && peer.in_flight.is_none()
            && !peer.is_busy
            && !self.data_needed.contains_key(&id)
        {
            let address = peer.address.clone();
            if self.index.remove(&address).is_some() {
                self.free.push(id);
            }
        }
    }

    /// Takes peers off the list from which nothing is needed.
    pub(crate) fn drop_unneeded(&mut self) {
        let mut unneeded = Vec::new();
        self.data_needed.retain(|&peer, tasks| {
            if tasks.is_empty() {
                unneeded.push(peer);
            }
            !tasks.is_empty()
        });
        for peer in unneeded {
            self.release_if_unused(peer);
        }
    }

    /// The tasks needed from a peer; an empty heap takes its place among the others.
    pub(crate) fn needed_from(&mut self, peer: PeerId) -> &mut HeapSet {
        self.data_needed.entry(peer).or_default()
    }

    /// Every peer about which something is known, in the order of ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        (0..)
            .map(PeerId)
            .zip(&self.slots)
            .filter(|(id, peer)| self.index.get(&peer.address) == Some(id))
    }
}

impl Index<PeerId> for Peers {
    type Output = Peer;

    fn index(&self, id: PeerId) -> &Peer {
        &self.slots[id.0 as usize]
    }
}

impl IndexMut<PeerId> for Peers {
    fn index_mut(&mut self, id: PeerId) -> &mut Peer {
        &mut self.slots[id.0 as usize]
    }
}
