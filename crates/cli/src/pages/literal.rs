//! Python's text of values, written and read back.

use std::fmt::Write as _;

use oxidask_wire::msgpack::DEPTH_MAX;
use oxidask_wire::python::{bytes_repr, float_repr, str_repr};
use oxidask_wire::{Key, Map, Value};

/// Python's `repr` of a value. Arrays are tuples, as messages read them; what only
/// Python can decode is `...`.
pub(super) fn repr(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Nil => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(number) => write!(out, "{number}").expect("writing to a string cannot fail"),
        Value::UInt(number) => write!(out, "{number}").expect("writing to a string cannot fail"),
        Value::Float(number) => float_repr(*number, out),
        Value::Str(text) => str_repr(text, out),
        Value::Bin(data) => bytes_repr(data, out),
        Value::Array(items) => {
            let end = if items.len() == 1 { ",)" } else { ")" };
            write_items(items, ("(", end), out);
        }
        Value::Set(items) if items.is_empty() => out.push_str("set()"),
        Value::Set(items) => write_items(items, ("{", "}"), out),
        Value::Map(map) => write_map(map, out),
        Value::Enum(member) => {
            write!(out, "{}.{}", member.class, member.name)
                .expect("writing to a string cannot fail");
        }
        Value::Key(key) => out.push_str(&key.python_repr()),
        Value::Serialized(_) | Value::Pickled(_) | Value::Raw(_) => out.push_str("..."),
    }
}

fn write_items(items: &[Value], (begin, end): (&str, &str), out: &mut String) {
    out.push_str(begin);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write(item, out);
    }
    out.push_str(end);
}

fn write_map(map: &Map, out: &mut String) {
    out.push('{');
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write(key, out);
        out.push_str(": ");
        write(value, out);
    }
    out.push('}');
}

/// The key that Python prints so, if it is not a str: a number, a bool, bytes, or
/// a tuple of keys. A quoted str is one too, as in stock's reading of page names.
pub(super) fn key(text: &str) -> Option<Key> {
    let mut reader = Reader { rest: text };
    let value = reader.value(0)?;
    reader.skip_spaces();
    if !reader.rest.is_empty() {
        return None;
    }
    Key::from_value(&value).ok()
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Skips `token` if it comes next.
    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.skip_spaces();
        if self.eat("(") {
            return self.tuple(depth);
        }
        for (prefix, quote) in [("b'", '\''), ("b\"", '"')] {
            if self.eat(prefix) {
                return self.bytes(quote);
            }
        }
        for (prefix, quote) in [("'", '\''), ("\"", '"')] {
            if self.eat(prefix) {
                return self.text(quote);
            }
        }
        let end = self.rest.find([',', ')']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        number(word.trim_end())
    }

    fn tuple(&mut self, depth: usize) -> Option<Value> {
        if depth >= DEPTH_MAX {
            return None;
        }
        let mut items = Vec::new();
        loop {
            self.skip_spaces();
            if self.eat(")") {
                return Some(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            self.skip_spaces();
            if !self.eat(",") {
                return self.eat(")").then_some(Value::Array(items));
            }
        }
    }

    fn text(&mut self, quote: char) -> Option<Value> {
        let mut text = String::new();
        loop {
            match self.character()? {
                Character::Plain(end) if end == quote => return Some(Value::from(text)),
                Character::Plain(character) | Character::Escaped(character) => text.push(character),
            }
        }
    }

    fn bytes(&mut self, quote: char) -> Option<Value> {
        let mut data = Vec::new();
        loop {
            match self.character()? {
                Character::Plain(end) if end == quote => return Some(Value::Bin(data.into())),
                Character::Plain(character) | Character::Escaped(character) => {
                    data.push(u8::try_from(u32::from(character)).ok()?);
                }
            }
        }
    }

    fn character(&mut self) -> Option<Character> {
        let first = self.next()?;
        if first != '\\' {
            return Some(Character::Plain(first));
        }
        let escaped = match self.next()? {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'x' => self.code_point(2)?,
            'u' => self.code_point(4)?,
            'U' => self.code_point(8)?,
            same @ ('\\' | '\'' | '"') => same,
            _ => return None,
        };
        Some(Character::Escaped(escaped))
    }

    fn next(&mut self) -> Option<char> {
        let mut characters = self.rest.chars();
        let first = characters.next();
        self.rest = characters.as_str();
        first
    }

    fn code_point(&mut self, digit_count: usize) -> Option<char> {
        let (digits, rest) = self.rest.split_at_checked(digit_count)?;
        self.rest = rest;
        char::from_u32(u32::from_str_radix(digits, 16).ok()?)
    }
}

enum Character {
    Plain(char),
    Escaped(char),
}

fn number(word: &str) -> Option<Value> {
    match word {
        "True" => return Some(Value::Bool(true)),
        "False" => return Some(Value::Bool(false)),
        _ => {}
    }
    if let Ok(number) = word.parse() {
        return Some(Value::Int(number));
    }
    if let Ok(number) = word.parse() {
        return Some(Value::UInt(number));
    }
    word.parse().ok().map(Value::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_what_python_prints() {
        let tuple = |items: Vec<Value>| Value::Array(items);
        let keys = [
            tuple(vec!["x".into(), 0.into()]),
            tuple(vec!["x".into()]),
            tuple(vec![]),
            tuple(vec![
                "it's \"q\" \\ \n\u{7f}\u{2028}é".into(),
                tuple(vec!["a, (b)".into(), (-1).into()]),
            ]),
            tuple(vec![
                Value::Bin(b"\x00\xff'\\".as_slice().into()),
                2.5.into(),
                1e300.into(),
            ]),
            Value::Bin(b"raw".as_slice().into()),
            7.into(),
            Value::UInt(u64::MAX),
            (-0.25).into(),
            1e-7.into(),
            tuple(vec![f64::NEG_INFINITY.into(), f64::NAN.into()]),
        ];
        for value in keys {
            let expected = Key::from_value(&value).unwrap();
            assert_eq!(
                key(&expected.python_str()),
                Some(expected.clone()),
                "{expected}"
            );
        }
        assert_eq!(key("True"), Key::from_value(&true.into()).ok());
    }

    #[test]
    fn other_texts_are_no_keys() {
        for text in [
            "inc-1",
            "(",
            "('x'",
            "('x', 0",
            "('x' 0)",
            "(1,,2)",
            "1 2",
            "('x', 0)y",
            "'\\q'",
            "b'é€'",
            "",
        ] {
            assert_eq!(key(text), None, "{text}");
        }
        assert_eq!(key(&"(".repeat(100_000)), None);
    }

    #[test]
    fn values_read_as_python_prints_them() {
        let mut map = Map::new();
        map.push("a", Value::Array(vec![1.into(), Value::Nil, true.into()]));
        map.push(2, Value::Set(vec!["x".into()]));
        map.push("c", Value::Bin(b"\x01".as_slice().into()));
        assert_eq!(
            repr(&map.into()),
            "{'a': (1, None, True), 2: {'x'}, 'c': b'\\x01'}"
        );
        assert_eq!(repr(&Value::Array(vec![0.5.into()])), "(0.5,)");
        assert_eq!(repr(&Value::Set(vec![])), "set()");
    }
}
