//! Keyword arguments of a request, and the errors that answer it.

use oxidask_scheduler::Failure;
use oxidask_wire::{Key, Map, Str, Value};

/// The fields of a request beside `op`, `reply` and the like.
#[derive(Debug, Default)]
pub(crate) struct Args(pub(crate) Map);

impl Args {
    /// A field that must be there, of any type.
    pub(crate) fn required(&mut self, name: &str) -> Result<Value, Failure> {
        self.0
            .take(name)
            .ok_or_else(|| type_error(&format!("missing a required argument: '{name}'")))
    }

    /// A field, or nil.
    pub(crate) fn optional(&mut self, name: &str) -> Value {
        self.0.take(name).unwrap_or(Value::Nil)
    }

    /// A str that must be there.
    pub(crate) fn str(&mut self, name: &str) -> Result<Str, Failure> {
        let value = self.required(name)?;
        value.into_str().ok_or_else(|| wrong_type(name, "a str"))
    }

    /// A str, or nothing.
    pub(crate) fn optional_str(&mut self, name: &str) -> Option<Str> {
        self.optional(name).into_str()
    }

    /// A bool, or its default.
    pub(crate) fn flag(&mut self, name: &str, default: bool) -> bool {
        let value = self.optional(name);
        value.as_bool().unwrap_or_else(|| {
            // Python's truth of a number.
            value.as_f64().map_or(default, |number| number != 0.0)
        })
    }

    /// Seconds, or nothing.
    pub(crate) fn seconds(&mut self, name: &str) -> Option<f64> {
        self.optional(name).as_f64()
    }

    /// Keys that must be there.
    pub(crate) fn keys(&mut self, name: &str) -> Result<Vec<Key>, Failure> {
        let value = self.required(name)?;
        keys_of(&value, name)
    }

    /// Keys, or nothing for null or an absent field.
    pub(crate) fn optional_keys(&mut self, name: &str) -> Result<Option<Vec<Key>>, Failure> {
        let value = self.optional(name);
        if value.is_nil() {
            Ok(None)
        } else {
            keys_of(&value, name).map(Some)
        }
    }

    /// The stimulus the caller gave, or one of ours.
    pub(crate) fn stimulus_id(&mut self, prefix: &str) -> oxidask_scheduler::StimulusId {
        match self.optional_str("stimulus_id") {
            Some(stimulus_id) => (&stimulus_id).into(),
            None => format!("{prefix}-{}", super::shell::now()).into(),
        }
    }
}

fn keys_of(value: &Value, name: &str) -> Result<Vec<Key>, Failure> {
    let values = value
        .as_array()
        .ok_or_else(|| wrong_type(name, "a list of keys"))?;
    values
        .iter()
        .map(|key| Key::from_value(key).map_err(|_| wrong_type(name, "a list of keys")))
        .collect()
}

/// `TypeError(text)`, as a handler called with wrong arguments raises on stock.
pub(crate) fn type_error(text: &str) -> Failure {
    Failure::builtin("TypeError", text)
}

fn wrong_type(name: &str, expected: &str) -> Failure {
    type_error(&format!("argument '{name}' must be {expected}"))
}

/// `RuntimeError(text)`.
pub(crate) fn runtime_error(text: &str) -> Failure {
    Failure::builtin("RuntimeError", text)
}

/// `OSError(text)`: a peer could not be reached.
pub(crate) fn os_error(text: &str) -> Failure {
    Failure::builtin("OSError", text)
}

/// `ValueError(text)`.
pub(crate) fn value_error(text: &str) -> Failure {
    Failure::builtin("ValueError", text)
}

/// `TimeoutError(text)`.
pub(crate) fn timeout_error(text: &str) -> Failure {
    Failure::builtin("TimeoutError", text)
}

/// The map that makes the caller raise the exception (`error_message` with
/// status `uncaught-error`).
pub(crate) fn uncaught_error(failure: &Failure) -> Value {
    Value::Map(oxidask_wire::map! {
        "status" => "uncaught-error",
        "exception" => oxidask_wire::Serialized::of_bytes(failure.exception.clone()),
        "traceback" => Value::Nil,
        "exception_text" => failure.text.as_str(),
        "traceback_text" => "",
    })
}
