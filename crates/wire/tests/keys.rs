//! Keys against what Python makes of them (`data/make_keys.py`).

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use base64::Engine;
use oxidask_wire::{Error, Key, KeyRef, Value};
use proptest::prelude::*;

struct Row {
    encoded: Vec<u8>,
    key: Key,
    json: serde_json::Value,
}

fn table() -> Vec<Row> {
    let rows: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("data/keys.json")).unwrap();
    rows.into_iter()
        .map(|json| {
            let encoded = base64::engine::general_purpose::STANDARD
                .decode(json["msgpack"].as_str().unwrap())
                .unwrap();
            Row {
                key: Key::from_msgpack(&encoded).unwrap(),
                encoded,
                json,
            }
        })
        .collect()
}

#[test]
fn texts_equal_pythons() {
    for row in table() {
        assert_eq!(row.key.as_msgpack(), row.encoded);
        assert_eq!(row.key.python_repr(), row.json["repr"].as_str().unwrap());
        assert_eq!(row.key.to_string(), row.json["str"].as_str().unwrap());
        let repr = row.key.python_repr();
        assert_eq!(
            row.key.key_split(),
            row.json["key_split"].as_str().unwrap(),
            "{repr}"
        );
        let group = row.json["key_split_group"].as_str().unwrap();
        assert_eq!(row.key.key_split_group(), group, "{repr}");
    }
}

#[test]
fn equality_and_hash_equal_pythons() {
    let table = table();
    let hasher = RandomState::new();
    for (i, a) in table.iter().enumerate() {
        let equals: Vec<u64> = serde_json::from_value(a.json["equals"].clone()).unwrap();
        for (j, b) in table.iter().enumerate() {
            let equal = equals.contains(&(j as u64));
            assert_eq!(a.key == b.key, equal, "{:?} == {:?}", a.key, b.key);
            assert_eq!(
                a.key.cmp(&b.key).is_eq(),
                equal,
                "{:?} cmp {:?}",
                a.key,
                b.key
            );
            let borrowed = KeyRef::from_msgpack(&b.encoded).unwrap();
            assert_eq!(a.key == borrowed, equal);
            if equal {
                assert_eq!(
                    hasher.hash_one(&a.key),
                    borrowed.python_hash(&hasher),
                    "{i} {j}"
                );
            }
        }
    }
}

#[test]
fn longer_encodings_are_shortened() {
    let cases: [(&[u8], &str); 7] = [
        (b"\xd9\x01a", "'a'"),
        (b"\xdb\0\0\0\x01a", "'a'"),
        (b"\xcd\0\x01", "1"),
        (b"\xd3\xff\xff\xff\xff\xff\xff\xff\xff", "-1"),
        (b"\xdc\0\x02\xa1x\xcc\x01", "('x', 1)"),
        (b"\xca\x3f\x80\0\0", "1.0"),
        (b"\xc6\0\0\0\x01a", "b'a'"),
    ];
    for (encoded, repr) in cases {
        let key = Key::from_msgpack(encoded).unwrap();
        assert_eq!(key.python_repr(), repr);
        assert!(key.as_msgpack().len() < encoded.len() || repr == "1.0");
        assert_eq!(key, KeyRef::from_msgpack(encoded).unwrap());
        assert_eq!(Key::from_value(&key.to_value()).unwrap(), key);
    }
}

#[test]
fn dumps_name_tuples_as_lists() {
    let cases: [(&[u8], Value); 5] = [
        (b"\xa1a", "a".into()),
        (b"\x05", 5.into()),
        (b"\x91\xa1a", "['a']".into()),
        (b"\x92\xa1(\x01", "['(', 1]".into()),
        (b"\x92\xa1x\x92\x01\x90", "['x', [1, []]]".into()),
    ];
    for (encoded, name) in cases {
        assert_eq!(Key::from_msgpack(encoded).unwrap().dump_name(), name);
    }
}

#[test]
fn what_cannot_be_a_key_is_refused() {
    let refused: [&[u8]; 9] = [
        b"\xc0",
        b"\x80",
        b"\x91\xc0",
        b"\x91\x81\x01\x02",
        b"\xc1",
        b"\xd4\x01\x01",
        b"",
        b"\xa2a",
        b"\xa1\xff",
    ];
    for encoded in refused {
        assert!(Key::from_msgpack(encoded).is_err(), "{encoded:x?}");
    }
    let trailing = Key::from_msgpack(b"\xa1a\x01");
    assert_eq!(
        trailing,
        Err(Error::TrailingBytes {
            field: "key",
            count: 1
        })
    );
    let mut deep = vec![0x91; 513];
    deep.push(1);
    assert!(matches!(
        Key::from_msgpack(&deep),
        Err(Error::LimitExceeded { .. })
    ));
    deep.remove(0);
    assert!(Key::from_msgpack(&deep).is_ok());
}

#[test]
fn an_interner_finds_borrowed_keys() {
    let mut ids: HashMap<Key, usize> = HashMap::new();
    for (id, row) in table().into_iter().enumerate() {
        ids.entry(row.key).or_insert(id);
    }
    for row in table() {
        assert!(ids.contains_key(&row.key));
    }
}

fn part() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<String>().prop_map(Value::from),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|b| Value::Bin(b.into())),
        any::<i64>().prop_map(Value::Int),
        (-3_i64..3).prop_map(Value::Int),
        any::<u64>().prop_map(Value::from),
        (-3_i8..3).prop_map(|f| Value::Float(f64::from(f))),
        any::<f64>()
            .prop_filter("nan", |f| !f.is_nan())
            .prop_map(Value::Float),
        any::<bool>().prop_map(Value::Bool),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        proptest::collection::vec(inner, 0..6).prop_map(Value::Array)
    })
}

/// Python's equality, written the slow way.
fn python_eq(a: &Value, b: &Value) -> bool {
    let number = |v: &Value| match v {
        Value::Bool(b) => Some((i128::from(*b), 0.0)),
        Value::Int(i) => Some((i128::from(*i), 0.0)),
        Value::UInt(u) => Some((i128::from(*u), 0.0)),
        Value::Float(f) if f.trunc() == *f && f.abs() < 1e38 => Some((*f as i128, 0.0)),
        Value::Float(f) => Some((0, *f)),
        _ => None,
    };
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| python_eq(a, b))
        }
        _ => match (number(a), number(b)) {
            (Some(a), Some(b)) => a == b,
            (None, None) => a == b,
            _ => false,
        },
    }
}

/// The same key with other number types where they are equal.
fn disguised(value: &Value) -> Value {
    match value {
        Value::Int(i @ 0..=1) => Value::Bool(*i == 1),
        Value::Int(i) if (*i as f64) as i128 == i128::from(*i) => Value::Float(*i as f64),
        Value::Float(f) if f.trunc() == *f && f.abs() < 1e15 => Value::Int(*f as i64),
        Value::Array(parts) => Value::Array(parts.iter().map(disguised).collect()),
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn keys_survive_their_encoding(value in part()) {
        let key = Key::from_value(&value).unwrap();
        prop_assert_eq!(&Key::from_msgpack(key.as_msgpack()).unwrap(), &key);
        prop_assert_eq!(key.to_value(), value);
    }

    #[test]
    fn equality_is_pythons(a in part(), b in part()) {
        let (x, y) = (Key::from_value(&a).unwrap(), Key::from_value(&b).unwrap());
        prop_assert_eq!(x == y, python_eq(&a, &b));
        prop_assert_eq!(x.cmp(&y).is_eq(), x == y);
    }

    #[test]
    fn equal_keys_have_equal_hashes(value in part()) {
        let hasher = RandomState::new();
        let key = Key::from_value(&value).unwrap();
        let other = Key::from_value(&disguised(&value)).unwrap();
        prop_assert_eq!(&key, &other);
        prop_assert_eq!(hasher.hash_one(&key), hasher.hash_one(&other));
        prop_assert_eq!(key.as_ref().python_hash(&hasher), hasher.hash_one(&other));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(key) = Key::from_msgpack(&bytes) {
            let _ = (key.python_repr(), key.key_split(), key.key_split_group(), key.to_value());
        }
    }
}
