//! The values that a worker keeps.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use oxidask_wire::{Key, Map, Pickled, Serialized, Value};
use oxidask_worker::memory::{Buffer, Fetch, Restored, Spilled, Ticket, Write};
use oxidask_worker::task::ValueType;
use tokio::sync::oneshot;

use super::executor::{Datum, Input, Outgoing};
use super::spill::{Disk, Figures, SpillFile};

/// Frames of this size or more have a receive buffer of their own; see
/// `oxidask_wire::frame`.
const OWN_BUFFER_MIN: usize = 1 << 16;

/// How long the memory of a value that has left is expected to be freed. Chosen:
/// whoever still uses it after that may do so for long.
const ENDING_MAX: Duration = Duration::from_secs(1);

/// A spilled value that cannot be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost;

/// A value that is being read.
pub(super) type Coming = oneshot::Receiver<Result<Arc<Datum>, Lost>>;

/// Whoever waits for it.
type Awaiting = oneshot::Sender<Result<Arc<Datum>, Lost>>;

/// Values and actors by key. The core says what goes in and out; what is large
/// is shared with whoever sends or reads it.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// In the order in which they came.
    data: IndexMap<Key, Slot>,
    actors: IndexMap<Key, Arc<Datum>>,
    /// Without a memory limit nothing is spilled.
    spilling: Option<Spilling>,
}

/// Where a value is.
#[derive(Debug)]
enum Slot {
    Memory(Arc<Datum>),
    Disk(OnDisk),
}

/// A value that has left memory.
#[derive(Debug)]
pub(super) struct OnDisk {
    file: Arc<SpillFile>,
    nbytes: i64,
    r#type: Arc<ValueType>,
    /// Somebody may still use it: then it need not be read.
    in_use: Weak<Datum>,
}

impl OnDisk {
    pub(super) fn new(file: Arc<SpillFile>, datum: &Arc<Datum>) -> Self {
        Self {
            file,
            nbytes: datum.nbytes,
            r#type: datum.r#type.clone(),
            in_use: Arc::downgrade(datum),
        }
    }
}

/// A value to be read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) disk: Disk,
    pub(super) key: Key,
    pub(super) ticket: Ticket,
    pub(super) file: Arc<SpillFile>,
    /// Bytes in memory.
    pub(super) nbytes: i64,
    pub(super) r#type: Arc<ValueType>,
}

/// What becomes of a wish for a value.
#[derive(Debug)]
pub(super) enum Got {
    /// Here it is.
    Here(Input),
    /// It comes. The read has to be begun, unless that has happened.
    Coming(Coming, Option<Read>),
    /// It is not here.
    Missing,
}

/// Everything about values that leave memory.
#[derive(Debug)]
struct Spilling {
    buffer: Buffer,
    disk: Disk,
    /// Who waits for each read.
    reads: HashMap<Ticket, Vec<Awaiting>>,
    /// What has left lately, with its size and the time, oldest first.
    ending: VecDeque<(Weak<Datum>, u64, Instant)>,
    totals: SpillTotals,
}

/// Sums since the start: `SpillBuffer.cumulative_metrics` in distributed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct SpillTotals {
    pub(super) memory_read_count: u64,
    pub(super) memory_read_bytes: u64,
    pub(super) disk_read_count: u64,
    pub(super) disk_read_bytes: u64,
    pub(super) disk_read_seconds: f64,
    pub(super) disk_write_count: u64,
    pub(super) disk_write_bytes: u64,
    pub(super) disk_write_seconds: f64,
    pub(super) serialize_seconds: f64,
    pub(super) compress_seconds: f64,
}

fn nbytes_of(datum: &Datum) -> u64 {
    u64::try_from(datum.nbytes).unwrap_or(0)
}

impl Store {
    /// One that spills.
    pub(super) fn with_disk(buffer: Buffer, disk: Disk) -> Self {
        Self {
            spilling: Some(Spilling {
                buffer,
                disk,
                reads: HashMap::new(),
                ending: VecDeque::new(),
                totals: SpillTotals::default(),
            }),
            ..Self::default()
        }
    }

    /// Keeps a value; returns the one that it replaces.
    pub(super) fn insert(
        &mut self,
        key: Key,
        datum: Arc<Datum>,
        is_actor: bool,
    ) -> Option<Arc<Datum>> {
        if is_actor {
            return self.actors.insert(key, datum);
        }
        if let Some(spilling) = &mut self.spilling {
            spilling.buffer.insert(key.clone(), nbytes_of(&datum));
        }
        in_memory(self.data.insert(key, Slot::Memory(datum)))
    }

    /// Keeps a value that went straight to disk.
    pub(super) fn insert_spilled(
        &mut self,
        key: Key,
        value: OnDisk,
        ticket: Ticket,
    ) -> Option<Arc<Datum>> {
        if let Some(spilling) = &mut self.spilling {
            let nbytes = u64::try_from(value.nbytes).unwrap_or(0);
            spilling.buffer.insert_spilled(key.clone(), ticket, nbytes);
        }
        in_memory(self.data.insert(key, Slot::Disk(value)))
    }

    /// Drops a value.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Datum>> {
        if let Some(spilling) = &mut self.spilling {
            spilling.buffer.remove(key);
        }
        match self.data.swap_remove(key) {
            None => self.actors.swap_remove(key),
            removed => in_memory(removed),
        }
    }

    /// A value for a task that may run soon, if it is in memory.
    pub(super) fn peek(&self, key: &Key) -> Option<Input> {
        if let Some(actor) = self.actors.get(key) {
            return Some(Input::Actor(actor.clone()));
        }
        match self.data.get(key)? {
            Slot::Memory(datum) => Some(Input::Value(datum.clone())),
            Slot::Disk(_) => None,
        }
    }

    /// As [`get`](Self::get), if the value is in memory.
    pub(super) fn touch(&mut self, key: &Key) -> Option<Input> {
        self.peek(key)?;
        match self.get(key) {
            Got::Here(input) => Some(input),
            Got::Coming(..) | Got::Missing => None,
        }
    }

    /// A value for a task or for others; it counts as used.
    pub(super) fn get(&mut self, key: &Key) -> Got {
        if let Some(actor) = self.actors.get(key) {
            return Got::Here(Input::Actor(actor.clone()));
        }
        let value = match self.data.get(key) {
            None => return Got::Missing,
            Some(Slot::Memory(datum)) => {
                if let Some(spilling) = &mut self.spilling {
                    spilling.buffer.fetch(key);
                    spilling.totals.memory_read_count += 1;
                    spilling.totals.memory_read_bytes += nbytes_of(datum);
                }
                return Got::Here(Input::Value(datum.clone()));
            }
            Some(Slot::Disk(value)) => value,
        };
        let spilling = self.spilling.as_mut().expect("only it puts values there");
        let (file, in_use) = (value.file.clone(), value.in_use.upgrade());
        let (nbytes, r#type) = (value.nbytes, value.r#type.clone());
        let (ticket, is_new) = match spilling.buffer.fetch(key) {
            Some(Fetch::Read(ticket)) => (ticket, true),
            Some(Fetch::Wait(ticket)) => (ticket, false),
            Some(Fetch::Memory) | None => unreachable!("{key:?} is on disk"),
        };
        if is_new && let Some(datum) = in_use {
            self.restored(key, ticket, &datum);
            return Got::Here(Input::Value(datum));
        }
        let (sender, coming) = oneshot::channel();
        spilling.reads.entry(ticket).or_default().push(sender);
        let read = is_new.then(|| Read {
            disk: spilling.disk.clone(),
            key: key.clone(),
            ticket,
            file,
            nbytes,
            r#type,
        });
        Got::Coming(coming, read)
    }

    /// A value was read; everybody who waits for it gets it.
    pub(super) fn read(&mut self, read: &Read, datum: &Arc<Datum>, seconds: f64) {
        self.restored(&read.key, read.ticket, datum);
        let Some(spilling) = &mut self.spilling else {
            return;
        };
        spilling.totals.disk_read_count += 1;
        spilling.totals.disk_read_bytes += read.file.nbytes();
        spilling.totals.disk_read_seconds += seconds;
        for sender in spilling.reads.remove(&read.ticket).into_iter().flatten() {
            let _ = sender.send(Ok(datum.clone()));
        }
    }

    fn restored(&mut self, key: &Key, ticket: Ticket, datum: &Arc<Datum>) {
        let (Some(spilling), Some(slot)) = (&mut self.spilling, self.data.get_mut(key)) else {
            return;
        };
        match (spilling.buffer.restored(key, ticket), slot) {
            (Restored::Memory, slot) => *slot = Slot::Memory(datum.clone()),
            (Restored::Disk, Slot::Disk(value)) => value.in_use = Arc::downgrade(datum),
            (Restored::Disk | Restored::Gone, _) => {}
        }
    }

    /// Whether a value is still to be read.
    pub(super) fn is_reading(&self, key: &Key, ticket: Ticket) -> bool {
        let spilling = self.spilling.as_ref();
        spilling.is_some_and(|spilling| spilling.buffer.is_reading(key, ticket))
    }

    /// Tells whoever waits for a read that nothing comes of it.
    pub(super) fn give_up(&mut self, ticket: Ticket) {
        let Some(spilling) = &mut self.spilling else {
            return;
        };
        for sender in spilling.reads.remove(&ticket).into_iter().flatten() {
            let _ = sender.send(Err(Lost));
        }
    }

    /// The buffer, if values are spilled.
    pub(super) fn buffer(&mut self) -> Option<&mut Buffer> {
        Some(&mut self.spilling.as_mut()?.buffer)
    }

    /// As [`buffer`](Self::buffer), to look at.
    pub(super) fn buffer_ref(&self) -> Option<&Buffer> {
        Some(&self.spilling.as_ref()?.buffer)
    }

    /// Bytes that may come before a value has to leave memory.
    pub(super) fn room(&self) -> u64 {
        self.buffer_ref().map_or(u64::MAX, Buffer::room)
    }

    /// Where values are spilled to.
    pub(super) fn disk(&self) -> Option<&Disk> {
        Some(&self.spilling.as_ref()?.disk)
    }

    /// The next value to write.
    pub(super) fn next_write(&mut self) -> Option<(Write, Arc<Datum>)> {
        let write = self.spilling.as_mut()?.buffer.next_write()?;
        match self.data.get(&write.key) {
            Some(Slot::Memory(datum)) => Some((write, datum.clone())),
            Some(Slot::Disk(_)) | None => unreachable!("{:?} is in memory", write.key),
        }
    }

    /// A value is on disk; returns it if it leaves memory now.
    pub(super) fn written(
        &mut self,
        key: &Key,
        ticket: Ticket,
        file: Arc<SpillFile>,
        figures: Figures,
    ) -> Option<Arc<Datum>> {
        self.count_write(figures);
        let spilling = self.spilling.as_mut()?;
        if !spilling.buffer.written(key, ticket) {
            return None;
        }
        let slot = self.data.get_mut(key)?;
        let Slot::Memory(datum) = slot else {
            return None;
        };
        let datum = datum.clone();
        *slot = Slot::Disk(OnDisk::new(file, &datum));
        let size = nbytes_of(&datum);
        let left = (Arc::downgrade(&datum), size, Instant::now());
        spilling.ending.push_back(left);
        Some(datum)
    }

    /// Adds a write to the totals.
    pub(super) fn count_write(&mut self, figures: Figures) {
        if let Some(spilling) = &mut self.spilling {
            let totals = &mut spilling.totals;
            totals.disk_write_count += 1;
            totals.disk_write_bytes += figures.nbytes;
            totals.disk_write_seconds += figures.disk.as_secs_f64();
            totals.serialize_seconds += figures.serialize.as_secs_f64();
            totals.compress_seconds += figures.compress.as_secs_f64();
        }
    }

    /// Bytes of values that have left, and whose memory should be free in a moment.
    pub(super) fn ending_nbytes(&mut self) -> u64 {
        let Some(spilling) = &mut self.spilling else {
            return 0;
        };
        spilling
            .ending
            .retain(|(datum, _, since)| datum.strong_count() > 0 && since.elapsed() < ENDING_MAX);
        spilling.ending.iter().map(|(_, nbytes, _)| nbytes).sum()
    }

    /// Whether a value is here; actors do not count, as in Dask's `Worker.data`.
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.data.contains_key(key)
    }

    /// Whether a value or an actor is here.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.contains(key) || self.actors.contains_key(key)
    }

    /// Keys of values, without those of actors.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.data.keys()
    }

    /// Bytes of values on disk.
    pub(super) fn spilled(&self) -> Spilled {
        let buffer = self.buffer_ref();
        buffer.map_or_else(Spilled::default, Buffer::spilled)
    }

    /// Number of values on disk.
    pub(super) fn spilled_count(&self) -> usize {
        self.buffer_ref().map_or(0, Buffer::spilled_count)
    }

    /// Sums since the start, if values are spilled.
    pub(super) fn totals(&self) -> Option<SpillTotals> {
        Some(self.spilling.as_ref()?.totals)
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        self.data.clear();
        self.actors.clear();
        if let Some(spilling) = &mut self.spilling {
            spilling.reads.clear();
            spilling.ending.clear();
        }
    }
}

fn in_memory(slot: Option<Slot>) -> Option<Arc<Datum>> {
    match slot? {
        Slot::Memory(datum) => Some(datum),
        Slot::Disk(_) => None,
    }
}

/// A value as others get it.
pub(super) fn outgoing(key: Key, input: Input) -> Outgoing {
    let (datum, is_actor) = match input {
        Input::Value(datum) => (datum, false),
        Input::Actor(datum) => (datum, true),
    };
    Outgoing {
        key,
        datum,
        is_actor,
    }
}

/// A value as it came in, without the receive buffers that its small frames
/// share with everything else that arrived at the time.
pub(super) fn compact(value: Value) -> Value {
    match value {
        Value::Serialized(value) if value.as_reference().is_some() => Value::Serialized(value),
        Value::Serialized(value) => Value::from(Serialized {
            header: compact_frame(&value.header),
            frames: value.frames.iter().map(compact_frame).collect(),
        }),
        Value::Pickled(value) => Value::from(Pickled {
            header: compact_frame(&value.header),
            frames: value.frames.iter().map(compact_frame).collect(),
        }),
        Value::Map(map) => Value::Map(
            map.into_iter()
                .map(|(key, value)| (key.detached(), compact(value)))
                .collect::<Map>(),
        ),
        Value::Array(values) => Value::Array(values.into_iter().map(compact).collect()),
        Value::Set(values) => Value::Set(values.into_iter().map(compact).collect()),
        plain @ (Value::Nil
        | Value::Bool(_)
        | Value::Int(_)
        | Value::UInt(_)
        | Value::Float(_)
        | Value::Str(_)
        | Value::Bin(_)
        | Value::Enum(_)
        | Value::Key(_)
        | Value::Raw(_)) => plain.detached(),
    }
}

fn compact_frame(frame: &bytes::Bytes) -> bytes::Bytes {
    if frame.len() >= OWN_BUFFER_MIN {
        frame.clone()
    } else {
        bytes::Bytes::copy_from_slice(frame)
    }
}
