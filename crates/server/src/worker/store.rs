//! The values that a worker keeps.

use std::sync::Arc;

use indexmap::IndexMap;
use oxidask_wire::{Key, Map, Pickled, Serialized, Value};

use super::executor::{Datum, Input, Outgoing};

/// Frames of this size or more have a receive buffer of their own; see
/// `oxidask_wire::frame`.
const OWN_BUFFER_MIN: usize = 1 << 16;

/// Values and actors by key. The core says what goes in and out; what is large
/// is shared with whoever sends or reads it.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// In the order in which they came.
    data: IndexMap<Key, Arc<Datum>>,
    actors: IndexMap<Key, Arc<Datum>>,
}

impl Store {
    /// Keeps a value; returns the one that it replaces.
    pub(super) fn insert(
        &mut self,
        key: Key,
        datum: Arc<Datum>,
        is_actor: bool,
    ) -> Option<Arc<Datum>> {
        if is_actor {
            self.actors.insert(key, datum)
        } else {
            self.data.insert(key, datum)
        }
    }

    /// Drops a value.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Datum>> {
        let removed = self.data.swap_remove(key);
        removed.or_else(|| self.actors.swap_remove(key))
    }

    /// A value as a task takes it.
    pub(super) fn input(&self, key: &Key) -> Option<Input> {
        if let Some(actor) = self.actors.get(key) {
            return Some(Input::Actor(actor.clone()));
        }
        self.data.get(key).cloned().map(Input::Value)
    }

    /// A value as others get it.
    pub(super) fn outgoing(&self, key: &Key) -> Option<Outgoing> {
        let (datum, is_actor) = match self.input(key)? {
            Input::Value(datum) => (datum, false),
            Input::Actor(datum) => (datum, true),
        };
        Some(Outgoing {
            key: key.clone(),
            datum,
            is_actor,
        })
    }

    /// A value or actor.
    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Datum>> {
        self.data.get(key).or_else(|| self.actors.get(key))
    }

    /// Whether a value is here; actors do not count, as in Dask's `Worker.data`.
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.data.contains_key(key)
    }

    /// Keys of values, without those of actors.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.data.keys()
    }
}

/// A value as it came in, without the receive buffers that its small frames
/// share with everything else that arrived at the time.
pub(super) fn compact(value: Value) -> Value {
    match value {
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
