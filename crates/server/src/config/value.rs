//! The values that a configuration holds, and how nested maps are merged.

use std::fmt;

use indexmap::IndexMap;

/// A nested map, in the order in which its keys were first written.
pub type Map = IndexMap<String, Value>;

/// A configuration value: what YAML, JSON and Python literals have in common.
///
/// Tuples and sets of Python literals are lists here, integers beyond 64 bits
/// are floats, bytes are text, and keys that are no strings carry the text
/// Python prints for them.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`, `None`.
    Null,
    /// `true`, `True`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float; infinities and NaN included.
    Float(f64),
    /// Text.
    Str(String),
    /// A sequence.
    List(Vec<Value>),
    /// A nested map.
    Map(Map),
}

impl Value {
    /// The nested map, if this is one.
    #[must_use]
    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Self::Map(map) => Some(map),
            Self::Null
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float(_)
            | Self::Str(_)
            | Self::List(_) => None,
        }
    }

    /// The sequence, if this is one.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Self::List(list) => Some(list),
            Self::Null
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float(_)
            | Self::Str(_)
            | Self::Map(_) => None,
        }
    }

    /// The text, if this is text.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            Self::Null
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float(_)
            | Self::List(_)
            | Self::Map(_) => None,
        }
    }

    /// The same value as JSON. What JSON cannot say, infinities and NaN, becomes
    /// text (`"inf"`), which the readers of such values accept as well.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Int(value) => (*value).into(),
            Self::Float(value) => serde_json::Number::from_f64(*value).map_or_else(
                || serde_json::Value::String(value.to_string()),
                serde_json::Value::Number,
            ),
            Self::Str(text) => text.clone().into(),
            Self::List(items) => items.iter().map(Self::to_json).collect(),
            Self::Map(map) => map
                .iter()
                .map(|(key, value)| (key.clone(), value.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }

    /// Text of a key that is not a string.
    pub(super) fn into_key(self) -> String {
        match self {
            Self::Str(text) => text,
            other @ (Self::Null
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float(_)
            | Self::List(_)
            | Self::Map(_)) => other.to_string(),
        }
    }
}

/// As Python prints it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("None"),
            Self::Bool(true) => f.write_str("True"),
            Self::Bool(false) => f.write_str("False"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Str(text) => write!(f, "'{text}'"),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{item}")?;
                }
                f.write_str("]")
            }
            Self::Map(map) => {
                f.write_str("{")?;
                for (index, (key, value)) in map.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}'{key}': {value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

/// The spelling of `key` that `map` already uses, hyphens and underscores being
/// the same; `key` itself when there is none. Same as `canonical_name` in `dask.config`.
pub(super) fn canonical_name(map: &Map, key: &str) -> String {
    if map.contains_key(key) {
        return key.to_owned();
    }
    let other = if key.contains('_') {
        key.replace('_', "-")
    } else {
        key.replace('-', "_")
    };
    if map.contains_key(&other) {
        other
    } else {
        key.to_owned()
    }
}

/// The value at a dotted key.
pub(super) fn get<'a>(map: &'a Map, key: &str) -> Option<&'a Value> {
    let mut map = map;
    let mut parts = key.split('.').peekable();
    loop {
        let part = parts.next()?;
        let value = map.get(&canonical_name(map, part))?;
        if parts.peek().is_none() {
            return Some(value);
        }
        map = value.as_map()?;
    }
}

/// Removes and returns the value at a dotted key.
pub(super) fn pop(map: &mut Map, key: &str) -> Option<Value> {
    let mut map = map;
    let mut key = key;
    while let Some((first, rest)) = key.split_once('.') {
        let name = canonical_name(map, first);
        match map.get_mut(&name)? {
            Value::Map(nested) => map = nested,
            Value::Null
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Str(_)
            | Value::List(_) => return None,
        }
        key = rest;
    }
    let name = canonical_name(map, key);
    map.shift_remove(&name)
}

/// Sets the value at a dotted key, making the maps on the way. A plain value in
/// the way is replaced by a map; Dask fails there with a `TypeError`.
pub(super) fn set(map: &mut Map, key: &str, value: Value) {
    let mut map = map;
    let mut key = key;
    while let Some((first, rest)) = key.split_once('.') {
        let name = canonical_name(map, first);
        let entry = map.entry(name).or_insert(Value::Null);
        if entry.as_map().is_none() {
            *entry = Value::Map(Map::new());
        }
        let Value::Map(nested) = entry else {
            unreachable!("the entry was made a map just before");
        };
        map = nested;
        key = rest;
    }
    let name = canonical_name(map, key);
    map.insert(name, value);
}

/// Adds what `lower` has and `higher` has not. Same as `dask.config.update` with
/// `priority="old"`: a map in `lower` replaces anything in `higher` that is no map.
pub(super) fn fill_in(higher: &mut Map, lower: &Map) {
    for (key, value) in lower {
        let name = canonical_name(higher, key);
        match value {
            Value::Map(lower) => {
                let entry = higher.entry(name).or_insert(Value::Null);
                if entry.as_map().is_none() {
                    *entry = Value::Map(Map::new());
                }
                if let Value::Map(higher) = entry {
                    fill_in(higher, lower);
                }
            }
            Value::Null
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Str(_)
            | Value::List(_) => {
                higher.entry(name).or_insert_with(|| value.clone());
            }
        }
    }
}
