//! Keyword arguments of a request.

use std::sync::Arc;

use oxidask_wire::{Key, Map, Str, Value};
use oxidask_worker::StimulusId;
use oxidask_worker::task::TaskFailure;

use super::failure;

/// Addresses of holders by key.
pub(crate) type WhoHas = Vec<(Key, Vec<Arc<str>>)>;

/// The fields of a request beside `op`, `reply` and `close`.
#[derive(Debug, Default)]
pub(crate) struct Args(pub(crate) Map);

impl Args {
    /// A field that must be there, of any type.
    pub(crate) fn required(&mut self, name: &str) -> Result<Value, Arc<TaskFailure>> {
        self.0
            .take(name)
            .ok_or_else(|| type_error(&format!("missing a required argument: '{name}'")))
    }

    /// A field, or nil.
    pub(crate) fn optional(&mut self, name: &str) -> Value {
        self.0.take(name).unwrap_or(Value::Nil)
    }

    /// A str, or nothing.
    pub(crate) fn optional_str(&mut self, name: &str) -> Option<Str> {
        self.optional(name).into_str()
    }

    /// A bool, or its default.
    pub(crate) fn flag(&mut self, name: &str, default: bool) -> bool {
        self.optional(name).as_bool().unwrap_or(default)
    }

    /// A map that must be there.
    pub(crate) fn map(&mut self, name: &str) -> Result<Map, Arc<TaskFailure>> {
        let value = self.required(name)?;
        value.into_map().ok_or_else(|| wrong_type(name, "a dict"))
    }

    /// Keys that must be there.
    pub(crate) fn keys(&mut self, name: &str) -> Result<Vec<Key>, Arc<TaskFailure>> {
        let values = self.required(name)?.into_array();
        values
            .and_then(|values| {
                let keys = values.iter().map(Key::from_value);
                keys.collect::<Result<Vec<_>, _>>().ok()
            })
            .ok_or_else(|| wrong_type(name, "a list of keys"))
    }

    /// Addresses by key, which must be there.
    pub(crate) fn who_has(&mut self, name: &str) -> Result<WhoHas, Arc<TaskFailure>> {
        who_has(self.map(name)?).ok_or_else(|| wrong_type(name, "a dict of lists of addresses"))
    }

    /// The stimulus that the caller gave, or one of ours.
    pub(crate) fn stimulus_id(&mut self, prefix: &str) -> StimulusId {
        match self.optional_str("stimulus_id") {
            Some(stimulus_id) => (&stimulus_id).into(),
            None => super::shell::stimulus_id(prefix),
        }
    }
}

/// Addresses by key; `None` for anything else.
pub(crate) fn who_has(map: Map) -> Option<WhoHas> {
    let entry = |(key, holders): (Value, Value)| {
        let holders = holders.into_array()?;
        let holders = holders.iter().map(|holder| holder.as_str().map(Arc::from));
        Some((Key::from_value(&key).ok()?, holders.collect::<Option<_>>()?))
    };
    map.into_iter().map(entry).collect()
}

fn wrong_type(name: &str, expected: &str) -> Arc<TaskFailure> {
    type_error(&format!("argument '{name}' must be {expected}"))
}

fn type_error(text: &str) -> Arc<TaskFailure> {
    failure::builtin("TypeError", text)
}
