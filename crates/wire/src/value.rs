//! A decoded message: msgpack with Dask's special nodes.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::msgpack::{Reader, Writer};
use crate::{Error, Key, Result, message};

/// UTF-8 text that shares the buffer of the message it came in.
///
/// What outlives the message should be [`detached`](Self::detached): a slice
/// keeps the whole receive buffer alive.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Str(Bytes);

impl Str {
    /// Static text, without allocating.
    pub const fn from_static(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }

    /// Of bytes already known to be UTF-8.
    pub(crate) fn of_utf8(bytes: Bytes) -> Self {
        debug_assert!(std::str::from_utf8(&bytes).is_ok());
        Self(bytes)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a Str holds UTF-8")
    }

    /// The text's bytes, sharing the buffer.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// A copy with a buffer of its own.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }
}

impl Deref for Str {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Str {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl From<&str> for Str {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for Str {
    fn from(text: String) -> Self {
        Self(Bytes::from(text))
    }
}

impl PartialEq<str> for Str {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Str {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl fmt::Display for Str {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Str {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// One msgpack object with Dask's special nodes resolved; arrays are read as tuples.
///
/// Equality is structural, not Python's: `Int(1)` differs from `Float(1.0)`.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Value {
    /// `None`.
    #[default]
    Nil,
    /// `True` or `False`.
    Bool(bool),
    /// An integer that fits 64 bits signed.
    Int(i64),
    /// An integer above `i64::MAX`.
    UInt(u64),
    /// A 64-bit float.
    Float(f64),
    /// Text.
    Str(Str),
    /// Bytes.
    Bin(Bytes),
    /// A list or tuple; the wire does not tell them apart.
    Array(Vec<Value>),
    /// A dict, in order.
    Map(Map),
    /// `{"__Set__": true, "as-list": [...]}`.
    Set(Vec<Value>),
    /// A member of a Python enumeration.
    Enum(Box<Enum>),
    /// A value serialised by one of Dask's families; never decoded here.
    Serialized(Box<Serialized>),
    /// A pickle inside a message; never decoded here.
    Pickled(Box<Pickled>),
    /// A task key. Only written: decoding gives the key's parts.
    Key(Key),
    /// One encoded msgpack object without special nodes. Only written.
    Raw(Bytes),
}

const _: () = assert!(size_of::<Value>() <= 40);

/// `{"__Enum__": true, "name", "__module__", "__name__"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enum {
    /// Name of the member.
    pub name: Str,
    /// Module of the class.
    pub module: Str,
    /// Name of the class.
    pub class: Str,
}

/// Pairs in order; keys may be any value. `get("name")` finds a str key.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Map(pub Vec<(Value, Value)>);

/// `__Serialized__`: a sub-header and its frames, passed on unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serialized {
    /// The sub-header, one msgpack map.
    pub header: Bytes,
    /// Data frames as on the wire.
    pub frames: SmallVec<[Bytes; 2]>,
}

/// `__Pickled__`: a sub-header with `pickled-obj`, and the pickle's buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pickled {
    /// The sub-header, one msgpack map.
    pub header: Bytes,
    /// Out-of-band buffers as on the wire.
    pub frames: SmallVec<[Bytes; 1]>,
}

/// Sub-header of `to_serialize(bytes)`, byte for byte as distributed writes it.
const BYTES_HEADER: &[u8] = b"\x88\xaasub-header\x80\xa4type\xa5bytes\xaftype-serialized\xc4!\
    \x80\x05\x95\x16\0\0\0\0\0\0\0\x8c\x08builtins\x94\x8c\x05bytes\x94\x93\x94.\
    \xaaserializer\xa4dask\xb4split-num-sub-frames\x91\x01\xadsplit-offsets\x91\0\
    \xabcompression\x91\xc0\xaenum-sub-frames\x01";

/// Sub-header of a value that was pickled without buffers.
const PICKLE_HEADER: &[u8] = b"\x86\xaaserializer\xa6pickle\xa9writeable\x90\
    \xb4split-num-sub-frames\x91\x01\xadsplit-offsets\x91\0\
    \xabcompression\x91\xc0\xaenum-sub-frames\x01";

/// Sub-header of a value that no family could serialise.
const ERROR_HEADER: &[u8] = b"\x85\xaaserializer\xa5error\xb4split-num-sub-frames\x91\x01\
    \xadsplit-offsets\x91\0\xabcompression\x91\xc0\xaenum-sub-frames\x01";

/// Sub-header of a value that never leaves this process.
const REFERENCE_HEADER: &[u8] = b"\x82\xaaserializer\xa9reference\xaenum-sub-frames\x01";

impl Value {
    /// Text of a str, also of a str key.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            Self::Key(key) => key.as_str(),
            _ => None,
        }
    }

    /// An integer within 64 bits signed. A bool is not one.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// A non-negative integer.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Int(value) => u64::try_from(*value).ok(),
            Self::UInt(value) => Some(*value),
            _ => None,
        }
    }

    /// A float, or an integer as a float.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::UInt(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// A bool.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Bytes.
    pub fn as_bin(&self) -> Option<&Bytes> {
        match self {
            Self::Bin(value) => Some(value),
            _ => None,
        }
    }

    /// Elements of an array or set.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(values) | Self::Set(values) => Some(values),
            _ => None,
        }
    }

    /// A map.
    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    /// A map, to change.
    pub fn as_map_mut(&mut self) -> Option<&mut Map> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    /// A serialised value.
    pub fn as_serialized(&self) -> Option<&Serialized> {
        match self {
            Self::Serialized(value) => Some(value),
            _ => None,
        }
    }

    /// A pickled value.
    pub fn as_pickled(&self) -> Option<&Pickled> {
        match self {
            Self::Pickled(value) => Some(value),
            _ => None,
        }
    }

    /// `None`?
    pub fn is_nil(&self) -> bool {
        matches!(self, Self::Nil)
    }

    /// The text of a str.
    pub fn into_str(self) -> Option<Str> {
        match self {
            Self::Str(text) => Some(text),
            Self::Key(key) => key.as_str().map(Str::from),
            _ => None,
        }
    }

    /// The bytes of a bin.
    pub fn into_bin(self) -> Option<Bytes> {
        match self {
            Self::Bin(value) => Some(value),
            _ => None,
        }
    }

    /// Elements of an array or set.
    pub fn into_array(self) -> Option<Vec<Value>> {
        match self {
            Self::Array(values) | Self::Set(values) => Some(values),
            _ => None,
        }
    }

    /// The pairs of a map.
    pub fn into_map(self) -> Option<Map> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    /// Name of the type, for error messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::UInt(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Bin(_) => "bin",
            Self::Array(_) => "array",
            Self::Map(_) => "map",
            Self::Set(_) => "set",
            Self::Enum(_) => "enum",
            Self::Serialized(_) => "serialized value",
            Self::Pickled(_) => "pickled value",
            Self::Key(_) => "key",
            Self::Raw(_) => "msgpack",
        }
    }

    /// A copy that shares no buffer with the message it came in.
    ///
    /// Every text, byte string and frame of a decoded value keeps the receive
    /// buffer alive; what is stored for long is detached first.
    #[must_use]
    pub fn detached(&self) -> Self {
        match self {
            Self::Nil => Self::Nil,
            Self::Bool(value) => Self::Bool(*value),
            Self::Int(value) => Self::Int(*value),
            Self::UInt(value) => Self::UInt(*value),
            Self::Float(value) => Self::Float(*value),
            Self::Str(text) => Self::Str(text.detached()),
            Self::Bin(bytes) => Self::Bin(Bytes::copy_from_slice(bytes)),
            Self::Array(values) => Self::Array(values.iter().map(Self::detached).collect()),
            Self::Map(map) => Self::Map(map.detached()),
            Self::Set(values) => Self::Set(values.iter().map(Self::detached).collect()),
            Self::Enum(member) => Self::Enum(Box::new(Enum {
                name: member.name.detached(),
                module: member.module.detached(),
                class: member.class.detached(),
            })),
            Self::Serialized(value) => Self::Serialized(Box::new(value.detached())),
            Self::Pickled(value) => Self::Pickled(Box::new(value.detached())),
            Self::Key(key) => Self::Key(key.clone()),
            Self::Raw(bytes) => Self::Raw(Bytes::copy_from_slice(bytes)),
        }
    }

    /// Bytes of texts, byte strings and frames in this value, for limits on what is stored.
    pub fn nbytes(&self) -> usize {
        match self {
            Self::Nil | Self::Bool(_) | Self::Int(_) | Self::UInt(_) | Self::Float(_) => 0,
            Self::Str(text) => text.as_bytes().len(),
            Self::Bin(bytes) | Self::Raw(bytes) => bytes.len(),
            Self::Array(values) | Self::Set(values) => values.iter().map(Self::nbytes).sum(),
            Self::Map(map) => map.iter().map(|(k, v)| k.nbytes() + v.nbytes()).sum(),
            Self::Enum(_) => 0,
            Self::Serialized(value) => {
                value.header.len() + value.frames.iter().map(Bytes::len).sum::<usize>()
            }
            Self::Pickled(value) => {
                value.header.len() + value.frames.iter().map(Bytes::len).sum::<usize>()
            }
            Self::Key(key) => key.as_msgpack().len(),
        }
    }
}

impl Map {
    /// An empty map.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// No pairs?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a str key. Linear in the number of pairs. Of equal keys the
    /// last counts, as in Python.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let found = self.0.iter().rev().find(|(k, _)| k.as_str() == Some(key));
        found.map(|(_, value)| value)
    }

    /// The value of a str key, to change.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        let found = self
            .0
            .iter_mut()
            .rev()
            .find(|(k, _)| k.as_str() == Some(key));
        found.map(|(_, value)| value)
    }

    /// True if the str key is present.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Removes the pair of a str key and returns its value; order is kept.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        let index = self.0.iter().rposition(|(k, _)| k.as_str() == Some(key))?;
        Some(self.0.remove(index).1)
    }

    /// As [`Self::take`].
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.take(key)
    }

    /// Sets the value of a key, at its old place if the map has it; returns the old value.
    pub fn insert(&mut self, key: impl Into<Value>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        let present = self
            .0
            .iter_mut()
            .find(|(k, _)| match (k.as_str(), key.as_str()) {
                (Some(a), Some(b)) => a == b,
                _ => *k == key,
            });
        match present {
            Some((_, old)) => Some(std::mem::replace(old, value)),
            None => {
                self.0.push((key, value));
                None
            }
        }
    }

    /// Appends a pair without looking for an equal key.
    pub fn push(&mut self, key: impl Into<Value>, value: impl Into<Value>) {
        self.0.push((key.into(), value.into()));
    }

    /// Pairs in order.
    pub fn iter(&self) -> std::slice::Iter<'_, (Value, Value)> {
        self.0.iter()
    }

    /// A copy that shares no buffer with the message it came in.
    #[must_use]
    pub fn detached(&self) -> Self {
        let pairs = self.0.iter();
        Self(pairs.map(|(k, v)| (k.detached(), v.detached())).collect())
    }
}

impl IntoIterator for Map {
    type Item = (Value, Value);
    type IntoIter = std::vec::IntoIter<(Value, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Map {
    type Item = &'a (Value, Value);
    type IntoIter = std::slice::Iter<'a, (Value, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<K: Into<Value>, V: Into<Value>> FromIterator<(K, V)> for Map {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
        )
    }
}

/// A [`Map`] of literal pairs: `map! { "op" => "identity", "n_workers" => 0 }`.
#[macro_export]
macro_rules! map {
    ($($key:expr => $value:expr),* $(,)?) => {
        $crate::Map(vec![$(($crate::Value::from($key), $crate::Value::from($value))),*])
    };
}

impl Serialized {
    /// What `to_serialize(bytes)` sends: family `dask`, type `bytes`.
    pub fn of_bytes(bytes: Bytes) -> Self {
        Self {
            header: Bytes::from_static(BYTES_HEADER),
            frames: SmallVec::from_iter([bytes]),
        }
    }

    /// What `to_serialize` sends of a value that is pickled without buffers.
    pub fn of_pickle(pickle: Bytes) -> Self {
        Self {
            header: Bytes::from_static(PICKLE_HEADER),
            frames: SmallVec::from_iter([pickle]),
        }
    }

    /// A value that could not be serialised: the receiver raises `TypeError(text)`.
    pub fn error(text: &str) -> Self {
        Self {
            header: Bytes::from_static(ERROR_HEADER),
            frames: SmallVec::from_iter([Bytes::copy_from_slice(text.as_bytes())]),
        }
    }

    /// A value that stays where it is: the frame keeps it alive and says which it is.
    /// Means something to peers in this process only.
    pub fn reference(frame: Bytes) -> Self {
        Self {
            header: Bytes::from_static(REFERENCE_HEADER),
            frames: SmallVec::from_iter([frame]),
        }
    }

    /// The frame of a [`reference`](Self::reference).
    pub fn as_reference(&self) -> Option<&Bytes> {
        match &self.frames[..] {
            [frame] if is_reference_header(&self.header) => Some(frame),
            _ => None,
        }
    }

    /// The sub-header as a map.
    ///
    /// # Errors
    /// If it is not one msgpack map.
    pub fn header_map(&self) -> Result<Map> {
        header_map(&self.header)
    }

    /// The family that wrote this (`dask`, `pickle`, `msgpack`, `error`); a
    /// container (`is-collection`) has none.
    pub fn serializer(&self) -> Result<Option<Str>> {
        let mut header = self.header_map()?;
        Ok(header.take("serializer").and_then(Value::into_str))
    }

    /// A copy that shares no buffer with the message it came in. A reference is still
    /// the same one: only its own frame keeps the value.
    #[must_use]
    pub fn detached(&self) -> Self {
        if self.as_reference().is_some() {
            return self.clone();
        }
        Self {
            header: Bytes::copy_from_slice(&self.header),
            frames: self
                .frames
                .iter()
                .map(|f| Bytes::copy_from_slice(f))
                .collect(),
        }
    }
}

/// Whether the frame after this one is that of a [`Serialized::reference`].
pub fn is_reference_header(frame: &[u8]) -> bool {
    frame == REFERENCE_HEADER
}

impl Pickled {
    /// A pickle without out-of-band buffers.
    ///
    /// # Panics
    /// If the pickle is longer than 4 GiB, which its header cannot express.
    pub fn of_pickle(pickle: &[u8]) -> Self {
        Self::with_buffers(pickle, [])
    }

    /// A pickle and its out-of-band buffers, uncompressed.
    ///
    /// # Panics
    /// If the pickle is longer than 4 GiB, which its header cannot express.
    pub fn with_buffers(pickle: &[u8], buffers: impl IntoIterator<Item = Bytes>) -> Self {
        let frames: SmallVec<[Bytes; 1]> = buffers.into_iter().collect();
        let mut header = Writer::with_capacity(pickle.len() + 64);
        header.map(3);
        header.str("pickled-obj");
        header.bin(pickle);
        header.str("compression");
        header.array(frames.len());
        for _ in &frames {
            header.nil();
        }
        header.str("num-sub-frames");
        header.uint(frames.len() as u64);
        Self {
            header: header.into_bytes(),
            frames,
        }
    }

    /// The sub-header as a map.
    ///
    /// # Errors
    /// If it is not one msgpack map.
    pub fn header_map(&self) -> Result<Map> {
        header_map(&self.header)
    }

    /// The pickle itself.
    ///
    /// # Errors
    /// If the sub-header is malformed or has no `pickled-obj`.
    pub fn pickle(&self) -> Result<Bytes> {
        let mut reader = Reader::new(&self.header, "pickled sub-header");
        for _ in 0..reader.map_len()? {
            if reader.str()? == "pickled-obj" {
                return reader.bin();
            }
            reader.skip()?;
        }
        Err(Error::MissingField {
            message: "__Pickled__",
            field: "pickled-obj",
        })
    }

    /// A copy that shares no buffer with the message it came in.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self {
            header: Bytes::copy_from_slice(&self.header),
            frames: self
                .frames
                .iter()
                .map(|f| Bytes::copy_from_slice(f))
                .collect(),
        }
    }
}

fn header_map(header: &Bytes) -> Result<Map> {
    match message::decode_plain(header, "sub-header")? {
        Value::Map(map) => Ok(map),
        other => Err(Error::UnexpectedType {
            field: "sub-header",
            expected: "map",
            found: other.type_name(),
        }),
    }
}

macro_rules! from {
    ($($source:ty => |$value:ident| $target:expr;)*) => {
        $(impl From<$source> for Value {
            fn from($value: $source) -> Self {
                $target
            }
        })*
    };
}

from! {
    &str => |v| Self::Str(Str::from(v));
    String => |v| Self::Str(Str::from(v));
    &String => |v| Self::Str(Str::from(v.as_str()));
    Str => |v| Self::Str(v);
    &Str => |v| Self::Str(v.clone());
    std::sync::Arc<str> => |v| Self::Str(Str::from(&*v));
    &std::sync::Arc<str> => |v| Self::Str(Str::from(&**v));
    i64 => |v| Self::Int(v);
    i32 => |v| Self::Int(i64::from(v));
    u32 => |v| Self::Int(i64::from(v));
    u16 => |v| Self::Int(i64::from(v));
    u64 => |v| i64::try_from(v).map_or(Self::UInt(v), Self::Int);
    usize => |v| Self::from(v as u64);
    f64 => |v| Self::Float(v);
    bool => |v| Self::Bool(v);
    Vec<Value> => |v| Self::Array(v);
    Map => |v| Self::Map(v);
    Key => |v| Self::Key(v);
    &Key => |v| Self::Key(v.clone());
    Bytes => |v| Self::Bin(v);
    &Bytes => |v| Self::Bin(v.clone());
    Serialized => |v| Self::Serialized(Box::new(v));
    Pickled => |v| Self::Pickled(Box::new(v));
    Enum => |v| Self::Enum(Box::new(v));
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Nil, Into::into)
    }
}

impl FromIterator<Value> for Value {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> Self {
        Self::Array(values.into_iter().collect())
    }
}
