//! The table of clients.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use foldhash::quality::RandomState;
use hashbrown::HashMap;

use crate::client::ClientState;
use crate::id::ClientId;

/// Every client.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    slots: Vec<Option<Box<ClientState>>>,
    by_name: HashMap<Arc<str>, ClientId, RandomState>,
    count: usize,
}

impl Clients {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn find(&self, name: &str) -> Option<ClientId> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn get(&self, id: ClientId) -> Option<&ClientState> {
        self.slots.get(id.0 as usize)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, id: ClientId) -> Option<&mut ClientState> {
        self.slots.get_mut(id.0 as usize)?.as_deref_mut()
    }

    /// In the order in which they came.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ClientId, &ClientState)> {
        self.slots.iter().enumerate().filter_map(|(at, client)| {
            client
                .as_deref()
                .map(|client| (ClientId(at as u32), client))
        })
    }

    /// Adds a client; one of the same name that is still there stays under its id alone.
    pub(crate) fn insert(&mut self, client: ClientState) -> ClientId {
        let id = ClientId(self.slots.len() as u32);
        self.by_name.insert(client.name.clone(), id);
        self.slots.push(Some(Box::new(client)));
        self.count += 1;
        id
    }

    pub(crate) fn remove(&mut self, id: ClientId) {
        let Some(client) = self.slots.get_mut(id.0 as usize).and_then(Option::take) else {
            return;
        };
        self.count -= 1;
        if self.by_name.get(&client.name) == Some(&id) {
            self.by_name.remove(&client.name);
        }
    }
}

impl Index<ClientId> for Clients {
    type Output = ClientState;

    fn index(&self, id: ClientId) -> &ClientState {
        self.get(id).expect("interest is dropped before its client")
    }
}

impl IndexMut<ClientId> for Clients {
    fn index_mut(&mut self, id: ClientId) -> &mut ClientState {
        self.get_mut(id)
            .expect("interest is dropped before its client")
    }
}
