//! Values by how recently they were used, in memory and on disk.

use std::collections::BTreeMap;

use foldhash::quality::RandomState;
use indexmap::IndexMap;
use oxidask_wire::Key;

/// Bounds of a [`Buffer`], in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `worker.memory.target` times the memory limit: values beyond it leave.
    /// `None`: they leave only on [demand](Buffer::observe).
    pub target: Option<u64>,
    /// `worker.memory.max-spill`: most bytes on disk.
    pub max_spill: Option<u64>,
    /// Values on their way to disk at a time.
    pub writes_count_max: usize,
}

/// One write or read. No two are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A value is to be written; answered by [`Buffer::prepared`] and then, unless
/// that refuses, by [`Buffer::written`] or [`Buffer::failed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Whose.
    pub key: Key,
    /// Repeated in the answers.
    pub ticket: Ticket,
}

/// Whether a serialised value may go to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is room: it counts from now on.
    Write,
    /// It would exceed [`Limits::max_spill`]: the value stays in memory.
    Full,
    /// Nobody wants the value any more.
    Gone,
}

/// Why a value could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It cannot be serialised: it is not tried again.
    Unspillable,
    /// The disk is full or broken: nothing is tried for some observations.
    Disk,
}

/// Where a value is that somebody wants to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// In memory, perhaps on its way to disk.
    Memory,
    /// On disk: to be read; answered by [`Buffer::restored`], or the value is removed.
    Read(Ticket),
    /// On disk: it is being read.
    Wait(Ticket),
}

/// What becomes of a value that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// It is in memory again; what is on disk goes.
    Memory,
    /// It is larger than the target: it stays on disk, for others to read it again.
    Disk,
    /// It was removed meanwhile.
    Gone,
}

/// Bytes of values on disk. `SpilledSize` in distributed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spilled {
    /// In memory, by `sizeof`.
    pub memory: u64,
    /// On disk.
    pub disk: u64,
}

/// A value's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Memory { is_unspillable: bool },
    Writing(Ticket),
    Disk { nbytes: u64 },
    Reading { ticket: Ticket, nbytes: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Bytes in memory.
    nbytes: u64,
    /// When it was last used.
    used: u64,
    place: Place,
}

/// A broken disk is tried again after 1, 2, 4 and so on observations, 256 at most:
/// 25 seconds at stock's `monitor-interval`. Chosen: serialising gigabytes in vain ten
/// times a second would leave tasks nothing.
const STALL_EXPONENT_MAX: u32 = 8;

/// Decides which values are in memory. `zict.Buffer` with `zict.LRU` in front, as
/// distributed uses them.
#[derive(Debug)]
pub struct Buffer {
    limits: Limits,
    entries: IndexMap<Key, Entry, RandomState>,
    /// What may leave memory, by when it was last used.
    order: BTreeMap<u64, Key>,
    used_next: u64,
    ticket_next: u64,
    /// Bytes in memory, those on their way to disk included.
    memory: u64,
    /// Bytes on their way to disk.
    leaving: u64,
    spilled: Spilled,
    spilled_count: usize,
    /// Bytes on disk promised to writes that are under way.
    promised: BTreeMap<Ticket, u64>,
    writes_count: usize,
    /// Bytes that shall leave whatever the target says.
    demand: u64,
    /// Observations before the next write may begin, after one that failed.
    stalled_for: u32,
    /// Writes that have failed since one went well. One at a time then finds out
    /// whether things are better.
    failed_count: u32,
}

impl Buffer {
    /// Nothing anywhere.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: IndexMap::default(),
            order: BTreeMap::new(),
            used_next: 0,
            ticket_next: 0,
            memory: 0,
            leaving: 0,
            spilled: Spilled::default(),
            spilled_count: 0,
            promised: BTreeMap::new(),
            writes_count: 0,
            demand: 0,
            stalled_for: 0,
            failed_count: 0,
        }
    }

    /// Whether a new value is larger than the target: it goes straight to disk, by
    /// [`begin_direct`](Self::begin_direct), and fails its task if it cannot be
    /// serialised. False while nothing can be written.
    pub fn is_heavy(&self, nbytes: u64) -> bool {
        self.stalled_for == 0 && self.limits.target.is_some_and(|target| nbytes > target)
    }

    /// Bytes that may come before a value has to leave memory.
    pub fn room(&self) -> u64 {
        match self.limits.target {
            _ if self.demand > 0 => 0,
            None => u64::MAX,
            Some(target) => target.saturating_sub(self.memory),
        }
    }

    /// A value is in memory, the most recently used one. One with the same key is replaced.
    pub fn insert(&mut self, key: Key, nbytes: u64) {
        self.remove(&key);
        let used = self.use_now();
        self.order.insert(used, key.clone());
        self.memory += nbytes;
        let place = Place::Memory {
            is_unspillable: false,
        };
        let entry = Entry {
            nbytes,
            used,
            place,
        };
        self.entries.insert(key, entry);
    }

    /// A value is no longer needed, wherever it is.
    pub fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.swap_remove(key) else {
            return;
        };
        match entry.place {
            Place::Memory { .. } => {
                self.order.remove(&entry.used);
                self.memory -= entry.nbytes;
            }
            Place::Writing(_) => {
                self.memory -= entry.nbytes;
                self.leaving -= entry.nbytes;
            }
            Place::Disk { nbytes } | Place::Reading { nbytes, .. } => {
                self.forget_spilled(entry.nbytes, nbytes);
            }
        }
    }

    /// Where a value is. If it is in memory, it is now the most recently used one.
    pub fn fetch(&mut self, key: &Key) -> Option<Fetch> {
        let used = self.use_now();
        let ticket_next = self.ticket_next;
        let entry = self.entries.get_mut(key)?;
        Some(match entry.place {
            Place::Memory { is_unspillable } => {
                if !is_unspillable {
                    self.order.remove(&entry.used);
                    self.order.insert(used, key.clone());
                }
                entry.used = used;
                Fetch::Memory
            }
            Place::Writing(_) => {
                entry.used = used;
                Fetch::Memory
            }
            Place::Disk { nbytes } => {
                let ticket = Ticket(ticket_next);
                self.ticket_next += 1;
                entry.place = Place::Reading { ticket, nbytes };
                Fetch::Read(ticket)
            }
            Place::Reading { ticket, .. } => Fetch::Wait(ticket),
        })
    }

    /// A value was read, or is still in memory for the sake of somebody else.
    pub fn restored(&mut self, key: &Key, ticket: Ticket) -> Restored {
        let used = self.use_now();
        let Some(entry) = self.entries.get_mut(key) else {
            return Restored::Gone;
        };
        let nbytes = match entry.place {
            Place::Reading {
                ticket: own,
                nbytes,
            } if own == ticket => nbytes,
            Place::Memory { .. }
            | Place::Writing(_)
            | Place::Disk { .. }
            | Place::Reading { .. } => return Restored::Gone,
        };
        if self
            .limits
            .target
            .is_some_and(|target| entry.nbytes > target)
        {
            entry.place = Place::Disk { nbytes };
            return Restored::Disk;
        }
        entry.place = Place::Memory {
            is_unspillable: false,
        };
        entry.used = used;
        self.order.insert(used, key.clone());
        let in_memory = entry.nbytes;
        self.memory += in_memory;
        self.forget_spilled(in_memory, nbytes);
        Restored::Memory
    }

    /// Whether this read is still waited for.
    pub fn is_reading(&self, key: &Key, ticket: Ticket) -> bool {
        let place = self.entries.get(key).map(|entry| entry.place);
        matches!(place, Some(Place::Reading { ticket: own, .. }) if own == ticket)
    }

    /// The process was looked at: so many bytes are to leave whatever the target
    /// says. After some of these what failed is tried again.
    pub fn observe(&mut self, demand: u64) {
        self.demand = demand;
        self.stalled_for = self.stalled_for.saturating_sub(1);
    }

    /// The next value to write, if there is one and it may begin now.
    pub fn next_write(&mut self) -> Option<Write> {
        let count_max = match self.failed_count {
            0 => self.limits.writes_count_max,
            _ => 1,
        };
        if self.stalled_for > 0 || self.writes_count >= count_max {
            return None;
        }
        let staying = self.memory - self.leaving;
        let is_above = self.limits.target.is_some_and(|target| staying > target);
        if !is_above && self.leaving >= self.demand {
            return None;
        }
        let (_, key) = self.order.pop_first()?;
        let ticket = self.begin_direct();
        let entry = self
            .entries
            .get_mut(&key)
            .expect("what may leave memory is here");
        entry.place = Place::Writing(ticket);
        self.leaving += entry.nbytes;
        Some(Write { key, ticket })
    }

    /// A value that is not here yet is on its way to disk: answered as a
    /// [`Write`] is, then by [`insert_spilled`](Self::insert_spilled) or
    /// [`abandon`](Self::abandon).
    pub fn begin_direct(&mut self) -> Ticket {
        let ticket = Ticket(self.ticket_next);
        self.ticket_next += 1;
        self.writes_count += 1;
        ticket
    }

    /// A value was serialised and takes so many bytes on disk. Any other answer
    /// than [`Verdict::Write`] ends the write. `key` is that of the [`Write`],
    /// `None` for a direct one.
    pub fn prepared(&mut self, key: Option<&Key>, ticket: Ticket, nbytes: u64) -> Verdict {
        if let Some(key) = key
            && !self.is_writing(key, ticket)
        {
            self.writes_count -= 1;
            return Verdict::Gone;
        }
        let promised: u64 = self.promised.values().sum();
        let taken = self.spilled.disk + promised;
        if self
            .limits
            .max_spill
            .is_some_and(|max| taken + nbytes > max)
        {
            self.fail(key, ticket, Failure::Disk);
            return Verdict::Full;
        }
        self.promised.insert(ticket, nbytes);
        Verdict::Write
    }

    /// A value is on disk. False: it is no longer needed, and neither is the file.
    pub fn written(&mut self, key: &Key, ticket: Ticket) -> bool {
        self.written_direct();
        let nbytes = self.promised.remove(&ticket).unwrap_or_default();
        if !self.is_writing(key, ticket) {
            return false;
        }
        let entry = &mut self.entries[key];
        entry.place = Place::Disk { nbytes };
        let in_memory = entry.nbytes;
        self.memory -= in_memory;
        self.leaving -= in_memory;
        self.demand = self.demand.saturating_sub(in_memory);
        self.add_spilled(in_memory, nbytes);
        true
    }

    /// A direct write has ended well. Its room stays promised.
    pub fn written_direct(&mut self) {
        self.writes_count -= 1;
        self.failed_count = 0;
    }

    /// The value of a direct write is here, on disk.
    pub fn insert_spilled(&mut self, key: Key, ticket: Ticket, nbytes: u64) {
        self.remove(&key);
        let on_disk = self.promised.remove(&ticket).unwrap_or_default();
        let entry = Entry {
            nbytes,
            used: self.use_now(),
            place: Place::Disk { nbytes: on_disk },
        };
        self.entries.insert(key, entry);
        self.add_spilled(nbytes, on_disk);
    }

    /// The value of a direct write is not wanted after all.
    pub fn abandon(&mut self, ticket: Ticket) {
        self.promised.remove(&ticket);
    }

    /// A value could not be serialised or written, and stays in memory. `key` as in
    /// [`prepared`](Self::prepared).
    pub fn failed(&mut self, key: Option<&Key>, ticket: Ticket, failure: Failure) {
        self.promised.remove(&ticket);
        self.fail(key, ticket, failure);
    }

    fn fail(&mut self, key: Option<&Key>, ticket: Ticket, failure: Failure) {
        self.writes_count -= 1;
        if failure == Failure::Disk {
            self.stalled_for = 1 << self.failed_count.min(STALL_EXPONENT_MAX);
            self.failed_count += 1;
        }
        let Some(key) = key.filter(|key| self.is_writing(key, ticket)) else {
            return;
        };
        // The next attempt is another one's: it may be small enough.
        let used = self.use_now();
        let entry = &mut self.entries[key];
        let is_unspillable = failure == Failure::Unspillable;
        entry.place = Place::Memory { is_unspillable };
        entry.used = used;
        self.leaving -= entry.nbytes;
        if !is_unspillable {
            self.order.insert(used, key.clone());
        }
    }

    /// Whether new values shall wait: writing falls behind, a quarter of the target
    /// has piled up. Stock waits for every write. Never true for ever: it
    /// takes a write that is under way.
    pub fn is_backlogged(&self) -> bool {
        let excess = |target: u64| self.memory > target + target / 4;
        self.writes_count > 0 && self.limits.target.is_some_and(excess)
    }

    /// Whether nothing can begin to leave memory.
    pub fn is_exhausted(&self) -> bool {
        self.order.is_empty() || self.stalled_for > 0
    }

    /// Bytes of values in memory, those on their way to disk included.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Bytes of values on their way to disk.
    pub fn leaving(&self) -> u64 {
        self.leaving
    }

    /// Bytes of values on disk.
    pub fn spilled(&self) -> Spilled {
        self.spilled
    }

    /// Number of values on disk.
    pub fn spilled_count(&self) -> usize {
        self.spilled_count
    }

    /// Writes under way, those that nobody waits for any more included.
    pub fn writes_count(&self) -> usize {
        self.writes_count
    }

    fn is_writing(&self, key: &Key, ticket: Ticket) -> bool {
        let entry = self.entries.get(key);
        entry.is_some_and(|entry| entry.place == Place::Writing(ticket))
    }

    fn use_now(&mut self) -> u64 {
        self.used_next += 1;
        self.used_next
    }

    fn add_spilled(&mut self, memory: u64, disk: u64) {
        self.spilled.memory += memory;
        self.spilled.disk += disk;
        self.spilled_count += 1;
    }

    fn forget_spilled(&mut self, memory: u64, disk: u64) {
        self.spilled.memory -= memory;
        self.spilled.disk -= disk;
        self.spilled_count -= 1;
        if self.limits.max_spill.is_some() {
            // There is room again.
            self.stalled_for = 0;
        }
    }

    /// Checks every sum.
    ///
    /// # Panics
    /// If something does not fit together.
    pub fn validate(&self) {
        let (mut memory, mut leaving, mut spilled) = (0, 0, Spilled::default());
        let (mut spillable_count, mut spilled_count, mut writing_count) = (0, 0, 0);
        for (key, entry) in &self.entries {
            match entry.place {
                Place::Memory { is_unspillable } => {
                    memory += entry.nbytes;
                    spillable_count += usize::from(!is_unspillable);
                    let listed = self.order.get(&entry.used) == Some(key);
                    assert_eq!(listed, !is_unspillable, "{key:?} may leave or not");
                }
                Place::Writing(_) => {
                    memory += entry.nbytes;
                    leaving += entry.nbytes;
                    writing_count += 1;
                }
                Place::Disk { nbytes } | Place::Reading { nbytes, .. } => {
                    spilled.memory += entry.nbytes;
                    spilled.disk += nbytes;
                    spilled_count += 1;
                }
            }
        }
        assert_eq!(memory, self.memory, "bytes in memory");
        assert_eq!(leaving, self.leaving, "bytes on their way to disk");
        assert_eq!(spilled, self.spilled, "bytes on disk");
        assert_eq!(spilled_count, self.spilled_count, "values on disk");
        assert_eq!(spillable_count, self.order.len(), "values that may leave");
        assert!(writing_count <= self.writes_count, "a write is not counted");
    }
}
