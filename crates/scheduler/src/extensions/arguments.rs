//! Reading the arguments of requests as the Python handlers take them.

use std::sync::Arc;

use oxidask_wire::{Key, Map, Value};

use super::errors::{key_error_text, type_error};
use crate::instruction::Failure;

/// The arguments of one request; taking one removes it.
#[derive(Debug)]
pub(super) struct Arguments<'a> {
    pub(super) op: &'a str,
    pub(super) fields: &'a mut Map,
}

impl Arguments<'_> {
    /// The value, unless it is absent or nil.
    pub(super) fn optional(&mut self, name: &str) -> Option<Value> {
        self.fields.take(name).filter(|value| !value.is_nil())
    }

    /// The value, which may be nil.
    pub(super) fn required(&mut self, name: &str) -> Result<Value, Failure> {
        self.fields.take(name).ok_or_else(|| self.missing(name))
    }

    /// A hashable value: a name, a lease, a task key. Nil counts as absent.
    pub(super) fn key(&mut self, name: &str) -> Result<Key, Failure> {
        let value = self.required(name)?;
        hashable(&value)
    }

    /// As [`Self::key`], if the argument is there.
    pub(super) fn optional_key(&mut self, name: &str) -> Result<Option<Key>, Failure> {
        self.optional(name)
            .map(|value| hashable(&value))
            .transpose()
    }

    /// A list of hashable values.
    pub(super) fn keys(&mut self, name: &str) -> Result<Vec<Key>, Failure> {
        let value = self.required(name)?;
        hashables(&value)
    }

    /// Text.
    pub(super) fn text(&mut self, name: &str) -> Result<Arc<str>, Failure> {
        let value = self.required(name)?;
        match value.as_str() {
            Some(text) => Ok(text.into()),
            None => Err(self.wrong(name, "str", &value)),
        }
    }

    /// An integer.
    pub(super) fn integer(&mut self, name: &str) -> Result<i64, Failure> {
        let value = self.required(name)?;
        value
            .as_i64()
            .ok_or_else(|| self.wrong(name, "int", &value))
    }

    /// An integer, if the argument is there.
    pub(super) fn optional_integer(&mut self, name: &str) -> Result<Option<i64>, Failure> {
        match self.optional(name) {
            None => Ok(None),
            Some(value) => match value.as_i64() {
                Some(value) => Ok(Some(value)),
                None => Err(self.wrong(name, "int", &value)),
            },
        }
    }

    /// A number, if the argument is there.
    pub(super) fn optional_number(&mut self, name: &str) -> Result<Option<f64>, Failure> {
        match self.optional(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(value) => Ok(Some(value)),
                None => Err(self.wrong(name, "number", &value)),
            },
        }
    }

    /// What Python takes for true; `default` if absent.
    pub(super) fn truth(&mut self, name: &str, default: bool) -> bool {
        self.fields
            .take(name)
            .map_or(default, |value| is_true(&value))
    }

    /// Seconds, as a number or a text such as `30 s`; none waits forever.
    pub(super) fn timeout(&mut self) -> Result<Option<f64>, Failure> {
        self.optional("timeout")
            .map(|value| seconds(&value))
            .transpose()
    }

    fn missing(&self, name: &str) -> Failure {
        type_error(&format!(
            "{}() missing 1 required argument: '{name}'",
            self.op
        ))
    }

    fn wrong(&self, name: &str, expected: &str, found: &Value) -> Failure {
        type_error(&format!(
            "{}(): argument '{name}' must be {expected}, not {}",
            self.op,
            python_type(found)
        ))
    }
}

/// A value as Python's dicts would take it.
pub(super) fn hashable(value: &Value) -> Result<Key, Failure> {
    Key::from_value(value)
        .map_err(|_| type_error(&format!("unhashable type: '{}'", python_type(value))))
}

/// The elements of a list, tuple or set.
pub(super) fn hashables(value: &Value) -> Result<Vec<Key>, Failure> {
    match value.as_array() {
        Some(values) => values.iter().map(hashable).collect(),
        None => Err(type_error(&format!(
            "'{}' object is not iterable",
            python_type(value)
        ))),
    }
}

/// Name of the Python type that a value becomes.
pub(super) fn python_type(value: &Value) -> &'static str {
    match value {
        Value::Nil => "NoneType",
        Value::Bool(_) => "bool",
        Value::Int(_) | Value::UInt(_) => "int",
        Value::Float(_) => "float",
        Value::Str(_) => "str",
        Value::Bin(_) => "bytes",
        Value::Array(_) => "tuple",
        Value::Map(_) => "dict",
        Value::Set(_) => "set",
        Value::Enum(_) => "Enum",
        Value::Serialized(_) => "Serialize",
        Value::Pickled(_) | Value::Key(_) | Value::Raw(_) => "object",
    }
}

/// Python's `bool(value)`.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Nil => false,
        Value::Bool(value) => *value,
        Value::Int(value) => *value != 0,
        Value::UInt(value) => *value != 0,
        Value::Float(value) => *value != 0.0,
        Value::Str(text) => !text.is_empty(),
        Value::Bin(bytes) => !bytes.is_empty(),
        Value::Array(values) | Value::Set(values) => !values.is_empty(),
        Value::Map(map) => !map.is_empty(),
        Value::Enum(_)
        | Value::Serialized(_)
        | Value::Pickled(_)
        | Value::Key(_)
        | Value::Raw(_) => true,
    }
}

/// Seconds of a number or text: `dask.utils.parse_timedelta`.
pub(super) fn seconds(value: &Value) -> Result<f64, Failure> {
    if let Some(number) = value.as_f64() {
        return Ok(number);
    }
    let Some(text) = value.as_str() else {
        return Err(type_error(&format!(
            "cannot make a duration of '{}'",
            python_type(value)
        )));
    };
    let mut text: String = text.chars().filter(|c| *c != ' ').collect();
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        text.insert(0, '1');
    }
    let number = text.trim_end_matches(char::is_alphabetic);
    let unit = text[number.len()..].to_lowercase();
    let multiplier = match unit.as_str() {
        "" | "s" | "second" | "seconds" => 1.0,
        "ms" | "millisecond" | "milliseconds" => 1e-3,
        "us" | "microsecond" | "microseconds" => 1e-6,
        "ns" | "nanosecond" | "nanoseconds" => 1e-9,
        "m" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86_400.0,
        "w" | "week" | "weeks" => 604_800.0,
        _ => return Err(key_error_text(&format!("Invalid time unit: {unit}"))),
    };
    match number.parse::<f64>() {
        Ok(number) => Ok(number * multiplier),
        Err(_) => Err(super::errors::value_error(&format!(
            "could not convert string to float: '{number}'"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_reads_what_dask_reads() {
        let table = [
            ("30 s", 30.0),
            ("3.5 seconds", 3.5),
            ("300ms", 0.3),
            ("10", 10.0),
            ("minute", 60.0),
            ("1H", 3600.0),
            ("1e3us", 1e-3),
        ];
        for (text, expected) in table {
            let found = seconds(&Value::from(text)).unwrap();
            assert!((found - expected).abs() < 1e-12, "{text}: {found}");
        }
        assert_eq!(seconds(&Value::from(2)).unwrap(), 2.0);
        assert!(
            seconds(&Value::from("3 parsecs"))
                .unwrap_err()
                .text
                .starts_with("KeyError")
        );
        assert!(seconds(&Value::from("")).is_ok_and(|seconds| seconds == 1.0));
        assert!(
            seconds(&Value::from("1..2s"))
                .unwrap_err()
                .text
                .starts_with("ValueError")
        );
    }
}
