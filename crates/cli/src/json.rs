//! Messages as JSON, for files and pages.

use oxidask_wire::{Key, Map, Value};
use serde_json::{Map as JsonMap, Value as Json};

/// The value as `json.dumps` would write it. Infinities and NaN, which JSON does
/// not have, are null, and so is what only Python can read.
pub(crate) fn from_value(value: &Value) -> Json {
    match value {
        Value::Bool(flag) => (*flag).into(),
        Value::Int(number) => (*number).into(),
        Value::UInt(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::Str(text) => text.as_str().into(),
        Value::Array(items) | Value::Set(items) => items.iter().map(from_value).collect(),
        Value::Map(map) => from_map(map),
        Value::Enum(member) => member.name.as_str().into(),
        Value::Key(key) => key.python_str().into(),
        Value::Nil | Value::Bin(_) | Value::Serialized(_) | Value::Pickled(_) | Value::Raw(_) => {
            Json::Null
        }
    }
}

/// A map; keys that are no text carry what Python prints for them.
pub(crate) fn from_map(map: &Map) -> Json {
    let pairs = map
        .iter()
        .map(|(key, value)| (text(key), from_value(value)));
    Json::Object(pairs.collect::<JsonMap<_, _>>())
}

/// What Python's `str` gives for a name, a key or a part of one.
pub(crate) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => Key::from_value(value)
            .map_or_else(|_| from_value(value).to_string(), |key| key.python_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_text_and_infinities_null() {
        let mut map = Map::new();
        map.push("a", 1);
        map.push(
            2,
            Value::Array(vec![Value::Float(f64::INFINITY), Value::Float(1.5)]),
        );
        map.push(Value::Array(vec!["x".into(), 0.into()]), Value::Nil);
        let json = from_map(&map).to_string();
        assert_eq!(json, "{\"('x', 0)\":null,\"2\":[null,1.5],\"a\":1}");
    }
}
