//! The table of tasks: a slab by id and an index by key.

use std::hash::BuildHasher;
use std::ops::{Index, IndexMut};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use oxidask_wire::Key;

use crate::id::{TaskId, TaskRef};
use crate::mirror::Touched;
use crate::task::{State, TaskState};

/// Tasks per allocation. Chunks never move, so a growing table copies nothing
/// and a million tasks leave no half-empty vector behind.
const CHUNK: usize = 1024;

/// Chunks freed in one event. Chosen: that takes about 0.1 ms.
const CHUNKS_AT_ONCE_MAX: usize = 4;

/// The hash of a key, short because every task keeps its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyHash(u32);

impl KeyHash {
    /// As hash tables want it: they take the position from the low bits and a tag from the high ones.
    pub(crate) fn spread(self) -> u64 {
        u64::from(self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// Every task the scheduler knows.
#[derive(Debug)]
pub(crate) struct Tasks {
    chunks: Vec<Vec<TaskState>>,
    /// Slots whose task is forgotten.
    free: Vec<TaskId>,
    /// Forgotten since the last [`Tasks::reclaim`]: a pending recommendation may still name them.
    retired: Vec<TaskId>,
    index: HashTable<TaskId>,
    /// Keys come from the network, so an attacker must not know the hash.
    hasher: RandomState,
    /// Tasks ever added, to tell the tasks of a reused slot apart.
    births: u32,
    /// Tasks that may have changed, while somebody mirrors them.
    pub(crate) touched: Option<Box<Touched>>,
    /// What is left of forgotten tasks, to be freed a few at a time.
    garbage: Vec<Vec<TaskState>>,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        Self {
            chunks: Vec::new(),
            free: Vec::new(),
            retired: Vec::new(),
            index: HashTable::new(),
            hasher: RandomState::default(),
            births: 0,
            touched: None,
            garbage: Vec::new(),
        }
    }

    /// Number of tasks.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// The hash that places a key in the table.
    pub(crate) fn hash(&self, key: &Key) -> KeyHash {
        KeyHash(self.hasher.hash_one(key) as u32)
    }

    /// The task with this key.
    pub(crate) fn find(&self, key: &Key) -> Option<TaskId> {
        self.find_hashed(self.hash(key), key)
    }

    /// The task with this key, whose hash is known.
    pub(crate) fn find_hashed(&self, hash: KeyHash, key: &Key) -> Option<TaskId> {
        let is_it = |&id: &TaskId| {
            let ts = &self[id];
            ts.hash == hash && ts.key == *key
        };
        self.index.find(hash.spread(), is_it).copied()
    }

    /// Adds a task whose key is not in the table.
    pub(crate) fn insert(&mut self, hash: KeyHash, mut task: TaskState) -> TaskId {
        self.births = self.births.wrapping_add(1);
        task.birth = self.births;
        task.hash = hash;
        let id = match self.free.pop() {
            Some(id) => {
                self[id] = task;
                id
            }
            None => {
                if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
                    self.chunks.push(Vec::with_capacity(CHUNK));
                }
                let last = self.chunks.len() - 1;
                let id = TaskId((last * CHUNK + self.chunks[last].len()) as u32);
                self.chunks[last].push(task);
                self.touch(id);
                id
            }
        };
        let chunks = &self.chunks;
        self.index.insert_unique(hash.spread(), id, |&id| {
            chunks[id.0 as usize / CHUNK][id.0 as usize % CHUNK]
                .hash
                .spread()
        });
        id
    }

    /// Takes a forgotten task out of the index; its slot is reused after [`Tasks::reclaim`].
    pub(crate) fn remove(&mut self, id: TaskId) {
        let hash = self[id].hash;
        if let Ok(entry) = self.index.find_entry(hash.spread(), |&other| other == id) {
            entry.remove();
            self.retired.push(id);
            self.touch(id);
        }
    }

    /// Makes the slots of forgotten tasks available again. Only to be called
    /// when no recommendation is pending.
    pub(crate) fn reclaim(&mut self) {
        if self.index.is_empty() && !self.chunks.is_empty() {
            let mut garbage = std::mem::take(&mut self.garbage);
            if self.chunks.len() > CHUNKS_AT_ONCE_MAX {
                garbage.append(&mut self.chunks);
            }
            *self = Self {
                hasher: self.hasher.clone(),
                births: self.births,
                touched: self.touched.take(),
                garbage,
                ..Self::new()
            };
            return;
        }
        self.free.append(&mut self.retired);
    }

    fn touch(&mut self, id: TaskId) {
        if let Some(touched) = &mut self.touched {
            touched.mark(id);
        }
    }

    /// Whether [`Tasks::free_some`] has something to free.
    pub(crate) fn has_garbage(&self) -> bool {
        !self.garbage.is_empty()
    }

    /// Frees the memory of some forgotten tasks. A million take long.
    pub(crate) fn free_some(&mut self) {
        let left = self.garbage.len().saturating_sub(CHUNKS_AT_ONCE_MAX);
        self.garbage.truncate(left);
    }

    /// The task as it can be kept across events.
    pub(crate) fn name(&self, task: TaskId) -> TaskRef {
        let birth = self[task].birth;
        TaskRef { task, birth }
    }

    /// The task of this name, unless it is forgotten.
    pub(crate) fn resolve(&self, name: TaskRef) -> Option<TaskId> {
        self.get(name.task)
            .is_some_and(|ts| ts.birth == name.birth)
            .then_some(name.task)
    }

    /// Every task, in the order of ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TaskId, &TaskState)> {
        self.chunks.iter().enumerate().flat_map(|(at, chunk)| {
            chunk
                .iter()
                .enumerate()
                .map(move |(offset, task)| (TaskId((at * CHUNK + offset) as u32), task))
                .filter(|(_, task)| task.state != State::Forgotten)
        })
    }

    /// The task in this slot, unless it is forgotten.
    pub(crate) fn get(&self, id: TaskId) -> Option<&TaskState> {
        self.chunks
            .get(id.0 as usize / CHUNK)?
            .get(id.0 as usize % CHUNK)
            .filter(|task| task.state != State::Forgotten)
    }
}

impl Index<TaskId> for Tasks {
    type Output = TaskState;

    fn index(&self, id: TaskId) -> &TaskState {
        &self.chunks[id.0 as usize / CHUNK][id.0 as usize % CHUNK]
    }
}

impl IndexMut<TaskId> for Tasks {
    fn index_mut(&mut self, id: TaskId) -> &mut TaskState {
        self.touch(id);
        &mut self.chunks[id.0 as usize / CHUNK][id.0 as usize % CHUNK]
    }
}
