//! The table of tasks: a slab by id and an index by key.

use std::hash::BuildHasher;
use std::ops::{Index, IndexMut};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use oxidask_wire::Key;

use crate::id::TaskId;
use crate::task::{State, TaskState};

/// Every task that the worker knows.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    slots: Vec<TaskState>,
    /// Slots whose task is forgotten.
    free: Vec<TaskId>,
    /// Forgotten since the last [`Tasks::reclaim`]: a pending recommendation may still name them.
    retired: Vec<TaskId>,
    index: HashTable<TaskId>,
    /// Keys come from the network, so an attacker must not know the hash.
    hasher: RandomState,
    /// Tasks ever added.
    births: u64,
}

impl Tasks {
    /// Number of tasks.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// The task with this key.
    pub(crate) fn find(&self, key: &Key) -> Option<TaskId> {
        let hash = self.hasher.hash_one(key);
        self.index
            .find(hash, |&id| self[id].hash == hash && self[id].key == *key)
            .copied()
    }

    /// Adds a task whose key is not in the table.
    pub(crate) fn insert(&mut self, mut task: TaskState) -> TaskId {
        self.births += 1;
        task.birth = self.births;
        task.hash = self.hasher.hash_one(&task.key);
        let hash = task.hash;
        let id = match self.free.pop() {
            Some(id) => {
                self[id] = task;
                id
            }
            None => {
                self.slots.push(task);
                TaskId(self.slots.len() as u32 - 1)
            }
        };
        let slots = &self.slots;
        self.index
            .insert_unique(hash, id, |&id| slots[id.0 as usize].hash);
        id
    }

    /// Takes a forgotten task out of the index; its slot is reused after [`Tasks::reclaim`].
    pub(crate) fn remove(&mut self, id: TaskId) {
        let hash = self[id].hash;
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == id) {
            entry.remove();
            self.retired.push(id);
        }
    }

    /// Makes the slots of forgotten tasks available again. Only to be called
    /// when no recommendation is pending.
    pub(crate) fn reclaim(&mut self) {
        self.free.append(&mut self.retired);
    }

    /// Every task, in the order of ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TaskId, &TaskState)> {
        (0..)
            .map(TaskId)
            .zip(&self.slots)
            .filter(|(_, task)| task.state != State::Forgotten)
    }

    /// The task in this slot, unless it is forgotten.
    pub(crate) fn get(&self, id: TaskId) -> Option<&TaskState> {
        self.slots
            .get(id.0 as usize)
            .filter(|task| task.state != State::Forgotten)
    }
}

impl Index<TaskId> for Tasks {
    type Output = TaskState;

    fn index(&self, id: TaskId) -> &TaskState {
        &self.slots[id.0 as usize]
    }
}

impl IndexMut<TaskId> for Tasks {
    fn index_mut(&mut self, id: TaskId) -> &mut TaskState {
        &mut self.slots[id.0 as usize]
    }
}
