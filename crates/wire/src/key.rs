//! Task keys.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::msgpack::{DEPTH_MAX, Reader, Token, Writer};
use crate::python::{self, bytes_repr, float_repr, str_repr};
use crate::{Error, Result, Str, Value};

type Scratch = SmallVec<[u8; 128]>;

/// A task key: str, bytes, int, float, bool or arbitrarily nested tuples of these.
///
/// Held as its msgpack encoding in minimal form, so that a key goes out as it
/// came in. Equality, hash and order follow Python: `1`, `1.0` and `True` are
/// one key, also inside tuples (a nan equals itself here, so that equality is
/// reflexive). Order is by the encoding: meaningless but the same in every run.
/// Cloning costs a reference count.
#[derive(Clone)]
pub struct Key(Arc<[u8]>);

/// A task key borrowed from a message, to look one up without allocating.
///
/// Equal keys have equal hashes whether they are [`Key`] or [`KeyRef`].
#[derive(Clone)]
pub struct KeyRef<'a>(Cow<'a, [u8]>);

impl Key {
    /// From exactly one msgpack object; longer encodings than necessary are shortened.
    ///
    /// # Errors
    /// Bytes left over, or anything that cannot be a key (nil and maps among them).
    pub fn from_msgpack(bytes: &[u8]) -> Result<Self> {
        Ok(Self::from(&KeyRef::from_msgpack(bytes)?))
    }

    /// A str key.
    pub fn from_str_key(key: &str) -> Self {
        let mut writer = Writer::with_capacity(key.len() + 5);
        writer.str(key);
        Self(Arc::from(writer.as_slice()))
    }

    /// From a decoded value.
    ///
    /// # Errors
    /// If the value cannot be a key.
    pub fn from_value(value: &Value) -> Result<Self> {
        if let Value::Key(key) = value {
            return Ok(key.clone());
        }
        let mut writer = Writer::new();
        write_value(&mut writer, value, 0)?;
        Ok(Self(Arc::from(writer.as_slice())))
    }

    /// The msgpack encoding.
    pub fn as_msgpack(&self) -> &[u8] {
        &self.0
    }

    /// This key as a borrowed one.
    pub fn as_ref(&self) -> KeyRef<'_> {
        KeyRef(Cow::Borrowed(&self.0))
    }

    /// The text of a str key.
    pub fn as_str(&self) -> Option<&str> {
        text_of(&self.0)
    }

    /// As a value tree.
    pub fn to_value(&self) -> Value {
        let mut reader = Reader::of_slice(&self.0, "key");
        value_of(&mut reader)
    }

    /// Python's `repr(key)`.
    pub fn python_repr(&self) -> String {
        let mut text = String::new();
        write_repr(&mut Reader::of_slice(&self.0, "key"), "()", &mut text);
        text
    }

    /// The name under which dumps of the state have it: a tuple becomes the text of a
    /// list, since maps of dumps have no tuples for keys. `recursive_to_dict` of
    /// distributed.
    pub fn dump_name(&self) -> Value {
        let mut reader = Reader::of_slice(&self.0, "key");
        if matches!(token(&mut reader), Token::Array(_)) {
            let mut text = String::new();
            write_repr(&mut Reader::of_slice(&self.0, "key"), "[]", &mut text);
            Value::from(text)
        } else {
            self.to_value()
        }
    }

    /// Python's `str(key)`.
    pub fn python_str(&self) -> String {
        match self.as_str() {
            Some(text) => text.to_owned(),
            None => self.python_repr(),
        }
    }

    /// The name of the key's prefix: `dask.utils.key_split`.
    ///
    /// Where Python raises (an empty tuple, bytes that are not UTF-8), the
    /// result is `Other`.
    pub fn key_split(&self) -> Cow<'_, str> {
        let mut reader = Reader::of_slice(&self.0, "key");
        loop {
            return match token(&mut reader) {
                Token::Str(range) | Token::Bin(range) => {
                    match std::str::from_utf8(reader.slice(range)) {
                        Ok(text) => python::key_split(text),
                        Err(_) => Cow::Borrowed("Other"),
                    }
                }
                Token::Array(count) if count > 0 => continue,
                Token::Array(_)
                | Token::Nil
                | Token::Bool(_)
                | Token::Int(_)
                | Token::UInt(_)
                | Token::Float(_)
                | Token::Map(_)
                | Token::Ext(..) => Cow::Borrowed("Other"),
            };
        }
    }

    /// The name of the key's group: `distributed.utils.key_split_group`.
    ///
    /// For a tuple key this is its first element; if that is not a str, its
    /// Python text (stock uses the element itself as the name). Where Python
    /// raises, the result is `Other`.
    pub fn key_split_group(&self) -> Cow<'_, str> {
        let mut reader = Reader::of_slice(&self.0, "key");
        match token(&mut reader) {
            Token::Str(range) | Token::Bin(range) => {
                match std::str::from_utf8(reader.slice(range)) {
                    Ok(text) => python::key_split_group(text),
                    Err(_) => Cow::Borrowed("Other"),
                }
            }
            Token::Array(count) if count > 0 => {
                let start = reader.position();
                match token(&mut reader) {
                    Token::Str(range) => Cow::Borrowed(
                        std::str::from_utf8(reader.slice(range)).expect("a key's text is valid"),
                    ),
                    _ => {
                        reader.seek(start);
                        let mut text = String::new();
                        write_repr(&mut reader, "()", &mut text);
                        Cow::Owned(text)
                    }
                }
            }
            Token::Array(_)
            | Token::Nil
            | Token::Bool(_)
            | Token::Int(_)
            | Token::UInt(_)
            | Token::Float(_)
            | Token::Map(_)
            | Token::Ext(..) => Cow::Borrowed("Other"),
        }
    }
}

impl<'a> KeyRef<'a> {
    /// From exactly one msgpack object.
    ///
    /// # Errors
    /// As [`Key::from_msgpack`].
    pub fn from_msgpack(bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::of_slice(bytes, "key");
        let key = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(key)
    }

    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self> {
        let start = reader.position();
        if check_part(reader, 0)? {
            return Ok(Self(Cow::Borrowed(reader.data_from(start))));
        }
        let mut writer = Writer::with_capacity(64);
        let mut part = Reader::of_slice(reader.data_from(start), "key");
        write_part(&mut writer, &mut part);
        Ok(Self(Cow::Owned(writer.into_vec())))
    }

    /// The msgpack encoding in minimal form.
    pub fn as_msgpack(&self) -> &[u8] {
        &self.0
    }

    /// The hash that the equal [`Key`] has with this hasher.
    pub fn python_hash(&self, hasher: &impl BuildHasher) -> u64 {
        hasher.hash_one(self)
    }
}

impl From<&KeyRef<'_>> for Key {
    fn from(key: &KeyRef<'_>) -> Self {
        Self(Arc::from(&*key.0))
    }
}

impl From<&str> for Key {
    fn from(key: &str) -> Self {
        Self::from_str_key(key)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || equal(&self.0, &other.0)
    }
}

impl Eq for Key {}

impl PartialEq<KeyRef<'_>> for Key {
    fn eq(&self, other: &KeyRef<'_>) -> bool {
        equal(&self.0, &other.0)
    }
}

impl PartialEq for KeyRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Eq for KeyRef<'_> {}

impl PartialEq<Key> for KeyRef<'_> {
    fn eq(&self, other: &Key) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(&self.0, state);
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(&self.0, state);
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        let (mut a, mut b) = (Scratch::new(), Scratch::new());
        canonical(&self.0, &mut a).cmp(canonical(&other.0, &mut b))
    }
}

/// Python's `str(key)`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_str() {
            Some(text) => f.write_str(text),
            None => f.write_str(&self.python_repr()),
        }
    }
}

/// Python's `repr(key)`.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.python_repr())
    }
}

impl fmt::Debug for KeyRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&Key::from(self), f)
    }
}

/// Keys are validated once, when they are made.
fn token(reader: &mut Reader<'_>) -> Token {
    reader.unchecked_token().expect("a key is valid msgpack")
}

fn text_of(encoded: &[u8]) -> Option<&str> {
    let head = match encoded.first()? {
        0xa0..=0xbf => 1,
        0xd9 => 2,
        0xda => 3,
        0xdb => 5,
        _ => return None,
    };
    Some(std::str::from_utf8(&encoded[head..]).expect("a key's text is valid"))
}

fn is_str(encoded: &[u8]) -> bool {
    matches!(encoded[0], 0xa0..=0xbf | 0xd9..=0xdb)
}

fn equal(a: &[u8], b: &[u8]) -> bool {
    if a == b {
        return true;
    }
    if is_str(a) || is_str(b) {
        return false;
    }
    let (mut scratch_a, mut scratch_b) = (Scratch::new(), Scratch::new());
    canonical(a, &mut scratch_a) == canonical(b, &mut scratch_b)
}

fn hash<H: Hasher>(encoded: &[u8], state: &mut H) {
    if is_str(encoded) {
        return state.write(encoded);
    }
    let mut scratch = Scratch::new();
    state.write(canonical(encoded, &mut scratch));
}

/// The encoding in which Python-equal keys have equal bytes: bools and integral
/// floats become ints. Most keys hold neither and are returned as they are.
fn canonical<'a>(encoded: &'a [u8], scratch: &'a mut Scratch) -> &'a [u8] {
    if is_str(encoded) {
        return encoded;
    }
    let mut reader = Reader::of_slice(encoded, "key");
    let mut copied = 0;
    while reader.remaining() > 0 {
        let start = reader.position();
        let replacement = match token(&mut reader) {
            Token::Bool(value) => Token::Int(i64::from(value)),
            Token::Float(value) => match integral(value) {
                Some(token) => token,
                None if value.is_nan() => Token::Float(f64::NAN),
                None => continue,
            },
            Token::Nil
            | Token::Int(_)
            | Token::UInt(_)
            | Token::Str(_)
            | Token::Bin(_)
            | Token::Array(_)
            | Token::Map(_)
            | Token::Ext(..) => continue,
        };
        scratch.extend_from_slice(&encoded[copied..start]);
        copied = reader.position();
        let mut writer = Writer::with_capacity(9);
        match replacement {
            Token::Int(value) => writer.int(value),
            Token::UInt(value) => writer.uint(value),
            _ => writer.float(f64::NAN),
        }
        scratch.extend_from_slice(writer.as_slice());
    }
    if copied == 0 {
        return encoded;
    }
    scratch.extend_from_slice(&encoded[copied..]);
    scratch
}

/// The integer that equals a float, if msgpack can express it.
fn integral(value: f64) -> Option<Token> {
    // Both powers of two are exact floats; anything beyond equals no 64-bit integer.
    const TWO_63: f64 = 9_223_372_036_854_775_808.0;
    const TWO_64: f64 = 18_446_744_073_709_551_616.0;
    if value.trunc() != value {
        return None;
    }
    if (-TWO_63..TWO_63).contains(&value) {
        Some(Token::Int(value as i64))
    } else if (TWO_63..TWO_64).contains(&value) {
        Some(Token::UInt(value as u64))
    } else {
        None
    }
}

/// Reads one key or part of one; true if its encoding is minimal throughout.
fn check_part(reader: &mut Reader<'_>, depth: usize) -> Result<bool> {
    let start = reader.position();
    let token = reader.token()?;
    let nbytes = reader.position() - start;
    let minimal = match &token {
        Token::Bool(_) => true,
        Token::Int(value) => nbytes == int_nbytes(*value),
        Token::UInt(_) | Token::Float(_) => nbytes == 9,
        Token::Str(range) => {
            let head = match range.len() {
                0..32 => 1,
                32..0x100 => 2,
                0x100..0x1_0000 => 3,
                _ => 5,
            };
            nbytes == head + range.len()
        }
        Token::Bin(range) => {
            let head = match range.len() {
                0..0x100 => 2,
                0x100..0x1_0000 => 3,
                _ => 5,
            };
            nbytes == head + range.len()
        }
        Token::Array(count) => {
            if depth >= DEPTH_MAX {
                return Err(reader.too_deep());
            }
            let head = match count {
                0..16 => 1,
                16..0x1_0000 => 3,
                _ => 5,
            };
            let mut minimal = nbytes == head;
            for _ in 0..*count {
                minimal &= check_part(reader, depth + 1)?;
            }
            minimal
        }
        Token::Nil | Token::Map(_) | Token::Ext(..) => return Err(unexpected(token.type_name())),
    };
    Ok(minimal)
}

fn int_nbytes(value: i64) -> usize {
    match value {
        -32..0x80 => 1,
        -0x80..0x100 => 2,
        -0x8000..0x1_0000 => 3,
        -0x8000_0000..0x1_0000_0000 => 5,
        _ => 9,
    }
}

/// Writes a part that was checked, in minimal form.
fn write_part(writer: &mut Writer, reader: &mut Reader<'_>) {
    match token(reader) {
        Token::Bool(value) => writer.bool(value),
        Token::Int(value) => writer.int(value),
        Token::UInt(value) => writer.uint(value),
        Token::Float(value) => writer.float(value),
        Token::Str(range) => {
            writer.str(std::str::from_utf8(reader.slice(range)).expect("a key's text is valid"));
        }
        Token::Bin(range) => writer.bin(reader.slice(range)),
        Token::Array(count) => {
            writer.array(count);
            for _ in 0..count {
                write_part(writer, reader);
            }
        }
        Token::Nil | Token::Map(_) | Token::Ext(..) => unreachable!("a key holds no such value"),
    }
}

fn write_value(writer: &mut Writer, value: &Value, depth: usize) -> Result<()> {
    match value {
        Value::Bool(value) => writer.bool(*value),
        Value::Int(value) => writer.int(*value),
        Value::UInt(value) => writer.uint(*value),
        Value::Float(value) => writer.float(*value),
        Value::Str(value) => writer.str(value),
        Value::Bin(value) => writer.bin(value),
        Value::Key(key) => writer.key(key),
        Value::Raw(encoded) => writer.key(&Key::from_msgpack(encoded)?),
        Value::Array(values) => {
            if depth >= DEPTH_MAX {
                return Err(Reader::of_slice(&[], "key").too_deep());
            }
            writer.array(values.len());
            for value in values {
                write_value(writer, value, depth + 1)?;
            }
        }
        Value::Nil
        | Value::Map(_)
        | Value::Set(_)
        | Value::Enum(_)
        | Value::Serialized(_)
        | Value::Pickled(_) => return Err(unexpected(value.type_name())),
    }
    Ok(())
}

fn unexpected(found: &'static str) -> Error {
    Error::UnexpectedType {
        field: "key",
        expected: "str, bytes, number or tuple of these",
        found,
    }
}

fn value_of(reader: &mut Reader<'_>) -> Value {
    match token(reader) {
        Token::Bool(value) => Value::Bool(value),
        Token::Int(value) => Value::Int(value),
        Token::UInt(value) => Value::UInt(value),
        Token::Float(value) => Value::Float(value),
        Token::Str(range) => Value::Str(Str::of_utf8(reader.bytes(range))),
        Token::Bin(range) => Value::Bin(reader.bytes(range)),
        Token::Array(count) => Value::Array((0..count).map(|_| value_of(reader)).collect()),
        Token::Nil | Token::Map(_) | Token::Ext(..) => unreachable!("a key holds no such value"),
    }
}

/// `brackets` are those of tuples: `()`, or `[]` to write them as lists.
fn write_repr(reader: &mut Reader<'_>, brackets: &str, text: &mut String) {
    match token(reader) {
        Token::Bool(true) => text.push_str("True"),
        Token::Bool(false) => text.push_str("False"),
        Token::Int(value) => text.push_str(&value.to_string()),
        Token::UInt(value) => text.push_str(&value.to_string()),
        Token::Float(value) => float_repr(value, text),
        Token::Str(range) => str_repr(
            std::str::from_utf8(reader.slice(range)).expect("a key's text is valid"),
            text,
        ),
        Token::Bin(range) => bytes_repr(reader.slice(range), text),
        Token::Array(count) => {
            let (open, close) = brackets.split_at(1);
            text.push_str(open);
            for index in 0..count {
                if index > 0 {
                    text.push_str(", ");
                }
                write_repr(reader, brackets, text);
            }
            if count == 1 && open == "(" {
                text.push(',');
            }
            text.push_str(close);
        }
        Token::Nil | Token::Map(_) | Token::Ext(..) => unreachable!("a key holds no such value"),
    }
}
