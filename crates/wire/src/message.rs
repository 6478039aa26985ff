//! Frames of a message to values and back.

use std::ops::{Deref, DerefMut};

use bytes::Bytes;

use crate::msgpack::{DEPTH_MAX, Reader, Token, Writer};
use crate::value::Enum;
use crate::{Error, Map, Pickled, Result, Serialized, Str, Value};

/// One message: msgpack first, then sub-headers and payloads.
pub type Frames = Vec<Bytes>;

/// Most values (elements, keys and values of maps) that a message may hold.
///
/// Chosen: a value takes 40 bytes in memory, so that even a message made to
/// hurt costs at most 2.5 GiB beside its own bytes.
pub const VALUES_COUNT_MAX: usize = 1 << 26;

/// Decodes a message; payloads are slices of its frames.
///
/// Takes at most 40 bytes of memory per byte of the first frame, and refers to
/// [`VALUES_COUNT_MAX`] values at most.
///
/// # Errors
/// Malformed or too deep msgpack, offsets that point outside the message, and
/// frames claimed twice. Frames that nobody claims are ignored, as stock does.
pub fn decode(frames: &[Bytes]) -> Result<Value> {
    let first = first_frame(frames)?;
    let mut reader = Reader::new(first, "frame 0");
    let value = Decoder::new(frames).value(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

/// Decodes msgpack that refers to no other frames.
///
/// # Errors
/// As [`decode`].
pub fn decode_plain(bytes: &Bytes, field: &'static str) -> Result<Value> {
    let mut reader = Reader::new(bytes, field);
    let value = Decoder::new(std::slice::from_ref(bytes)).value(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

/// Encodes a value as a message; payload frames are shared, not copied.
pub fn encode(value: &Value) -> Frames {
    let mut writer = MessageWriter::new();
    writer.value(value);
    writer.finish()
}

pub(crate) fn first_frame(frames: &[Bytes]) -> Result<&Bytes> {
    frames.first().ok_or(Error::MissingField {
        message: "message",
        field: "frame 0",
    })
}

/// Reads values and hands out the frames that they refer to, each frame once.
#[derive(Debug)]
pub struct Decoder<'a> {
    frames: &'a [Bytes],
    taken: Vec<bool>,
    values_count_left: usize,
}

impl<'a> Decoder<'a> {
    /// For the values of one message.
    pub fn new(frames: &'a [Bytes]) -> Self {
        let nbytes = frames.first().map_or(0, Bytes::len);
        Self {
            frames,
            taken: Vec::new(),
            // Every value takes at least one byte, so that counts which nest
            // cannot add up to more than the frame has bytes.
            values_count_left: nbytes.min(VALUES_COUNT_MAX),
        }
    }

    /// The next value, special nodes resolved.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn value(&mut self, reader: &mut Reader<'_>) -> Result<Value> {
        self.nested(reader, 0)
    }

    fn charge(&mut self, count: usize) -> Result<()> {
        match self.values_count_left.checked_sub(count) {
            Some(left) => {
                self.values_count_left = left;
                Ok(())
            }
            None => Err(Error::LimitExceeded {
                field: "number of values",
                value: count as u64,
                limit: self.values_count_left as u64,
            }),
        }
    }

    fn nested(&mut self, reader: &mut Reader<'_>, depth: usize) -> Result<Value> {
        Ok(match reader.token()? {
            Token::Nil => Value::Nil,
            Token::Bool(value) => Value::Bool(value),
            Token::Int(value) => Value::Int(value),
            Token::UInt(value) => Value::UInt(value),
            Token::Float(value) => Value::Float(value),
            Token::Str(range) => Value::Str(Str::of_utf8(reader.bytes(range))),
            Token::Bin(range) => Value::Bin(reader.bytes(range)),
            Token::Array(count) => {
                if depth >= DEPTH_MAX {
                    return Err(reader.too_deep());
                }
                self.charge(count)?;
                let mut values = Vec::with_capacity(count);
                for _ in 0..count {
                    values.push(self.nested(reader, depth + 1)?);
                }
                Value::Array(values)
            }
            Token::Map(count) => {
                if depth >= DEPTH_MAX {
                    return Err(reader.too_deep());
                }
                self.map(reader, count, depth)?
            }
            token @ Token::Ext(..) => return Err(reader.unexpected("a value", &token)),
        })
    }

    fn map(&mut self, reader: &mut Reader<'_>, count: usize, depth: usize) -> Result<Value> {
        self.charge(2 * count)?;
        let mut pairs = Vec::with_capacity(count);
        let mut special = false;
        for _ in 0..count {
            let key = self.nested(reader, depth + 1)?;
            match &key {
                Value::Str(text) => special |= text.as_bytes().starts_with(b"__"),
                Value::Map(_) | Value::Set(_) => {
                    return Err(Error::UnexpectedType {
                        field: "map key",
                        expected: "a hashable value",
                        found: key.type_name(),
                    });
                }
                _ => {}
            }
            pairs.push((key, self.nested(reader, depth + 1)?));
        }
        let map = Map(pairs);
        if special {
            return self.special(map);
        }
        Ok(Value::Map(map))
    }

    /// A map is special by the presence of a marker alone, whatever else it holds.
    fn special(&mut self, mut map: Map) -> Result<Value> {
        if let Some(offset) = map.get("__Serialized__") {
            let (header, frames) = self.claim("__Serialized__", offset)?;
            return Ok(Value::Serialized(Box::new(Serialized {
                header,
                frames: frames.iter().cloned().collect(),
            })));
        }
        if let Some(offset) = map.get("__Pickled__") {
            let (header, frames) = self.claim("__Pickled__", offset)?;
            return Ok(Value::Pickled(Box::new(Pickled {
                header,
                frames: frames.iter().cloned().collect(),
            })));
        }
        if map.contains_key("__Enum__") {
            let mut text = |field| {
                let value = map.take(field).and_then(Value::into_str);
                value.ok_or(Error::MissingField {
                    message: "__Enum__",
                    field,
                })
            };
            return Ok(Value::Enum(Box::new(Enum {
                name: text("name")?,
                module: text("__module__")?,
                class: text("__name__")?,
            })));
        }
        if map.contains_key("__Set__") {
            let values = map.take("as-list").ok_or(Error::MissingField {
                message: "__Set__",
                field: "as-list",
            })?;
            let found = values.type_name();
            return match values.into_array() {
                Some(values) => Ok(Value::Set(values)),
                None => Err(Error::UnexpectedType {
                    field: "as-list",
                    expected: "array",
                    found,
                }),
            };
        }
        Ok(Value::Map(map))
    }

    fn claim(&mut self, field: &'static str, offset: &Value) -> Result<(Bytes, &'a [Bytes])> {
        let count = self.frames.len() as u64;
        let out_of_range = |offset: u64, end: u64| Error::OffsetOutOfRange {
            field,
            offset,
            end,
            count,
        };
        let offset = match offset {
            Value::Int(offset) if *offset > 0 => *offset as u64,
            Value::Int(_) => return Err(out_of_range(0, 1)),
            Value::UInt(offset) => *offset,
            other => {
                return Err(Error::UnexpectedType {
                    field,
                    expected: "the index of a frame",
                    found: other.type_name(),
                });
            }
        };
        if offset >= count {
            return Err(out_of_range(offset, offset.saturating_add(1)));
        }
        let header = &self.frames[offset as usize];
        let sub_frames_count = sub_frames_count(header, field)?;
        let end = (offset + 1).saturating_add(sub_frames_count);
        if end > count {
            return Err(out_of_range(offset, end));
        }
        let (start, end) = (offset as usize, end as usize);
        if self.taken.is_empty() {
            self.taken.resize(self.frames.len(), false);
        }
        for (index, taken) in self.taken[start..end].iter_mut().enumerate() {
            if *taken {
                return Err(Error::SharedFrame {
                    field,
                    offset: (start + index) as u64,
                });
            }
            *taken = true;
        }
        Ok((header.clone(), &self.frames[start + 1..end]))
    }
}

/// `num-sub-frames` of a sub-header; checks that the whole of it is msgpack.
fn sub_frames_count(header: &Bytes, message: &'static str) -> Result<u64> {
    let mut reader = Reader::new(header, "sub-header");
    let mut count = None;
    for _ in 0..reader.map_len()? {
        let key = reader.unchecked_token()?;
        let is_count =
            matches!(&key, Token::Str(range) if reader.slice(range.clone()) == b"num-sub-frames");
        if !is_count {
            if !matches!(key, Token::Str(_)) {
                return Err(reader.unexpected("str", &key));
            }
            reader.skip()?;
            continue;
        }
        reader.set_field("num-sub-frames");
        count = match reader.token()? {
            Token::Int(value) if value >= 0 => Some(value as u64),
            Token::UInt(value) => Some(value),
            other => return Err(reader.unexpected("a count", &other)),
        };
        reader.set_field("sub-header");
    }
    reader.finish()?;
    count.ok_or(Error::MissingField {
        message,
        field: "num-sub-frames",
    })
}

/// Writes one message piece by piece: msgpack through the methods of
/// [`Writer`], payloads and whole values through its own.
///
/// Offsets of payloads are given in the order of writing.
#[derive(Clone, Debug)]
pub struct MessageWriter {
    msgpack: Writer,
    /// Frames from number 1 on.
    payloads: Frames,
    payloads_nbytes: usize,
}

impl Default for MessageWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for MessageWriter {
    type Target = Writer;

    fn deref(&self) -> &Writer {
        &self.msgpack
    }
}

impl DerefMut for MessageWriter {
    fn deref_mut(&mut self) -> &mut Writer {
        &mut self.msgpack
    }
}

impl MessageWriter {
    /// An empty message.
    pub fn new() -> Self {
        Self::with_capacity(256)
    }

    /// An empty message with room for so many bytes of msgpack.
    pub fn with_capacity(nbytes: usize) -> Self {
        Self {
            msgpack: Writer::with_capacity(nbytes),
            payloads: Vec::new(),
            payloads_nbytes: 0,
        }
    }

    /// Bytes of all frames so far.
    pub fn nbytes(&self) -> usize {
        self.msgpack.len() + self.payloads_nbytes
    }

    fn payload(&mut self, marker: &str, header: Bytes, frames: &[Bytes]) {
        self.msgpack.map(1);
        self.msgpack.str(marker);
        self.msgpack.uint(self.payloads.len() as u64 + 1);
        self.payloads_nbytes += header.len() + frames.iter().map(Bytes::len).sum::<usize>();
        self.payloads.push(header);
        self.payloads.extend_from_slice(frames);
    }

    /// A serialised value: its node here, its header and frames after the msgpack.
    pub fn serialized(&mut self, value: &Serialized) {
        self.payload("__Serialized__", value.header.clone(), &value.frames);
    }

    /// A pickled value: its node here, its header and buffers after the msgpack.
    pub fn pickled(&mut self, value: &Pickled) {
        self.payload("__Pickled__", value.header.clone(), &value.frames);
    }

    /// A pickle without a sub-header yet, and its out-of-band buffers.
    pub fn pickle(&mut self, pickle: &[u8], buffers: &[Bytes]) {
        let value = Pickled::with_buffers(pickle, buffers.iter().cloned());
        self.payload("__Pickled__", value.header, &value.frames);
    }

    /// Any value with the payloads inside it.
    pub fn value(&mut self, value: &Value) {
        match value {
            Value::Nil => self.msgpack.nil(),
            Value::Bool(value) => self.msgpack.bool(*value),
            Value::Int(value) => self.msgpack.int(*value),
            Value::UInt(value) => self.msgpack.uint(*value),
            Value::Float(value) => self.msgpack.float(*value),
            Value::Str(value) => self.msgpack.str(value),
            Value::Bin(value) => self.msgpack.bin(value),
            Value::Array(values) => self.array_of(values),
            Value::Map(map) => self.map_of(map),
            Value::Set(values) => {
                self.msgpack.map(2);
                self.msgpack.str("__Set__");
                self.msgpack.bool(true);
                self.msgpack.str("as-list");
                self.array_of(values);
            }
            Value::Enum(member) => {
                self.msgpack.map(4);
                self.msgpack.str("__Enum__");
                self.msgpack.bool(true);
                self.msgpack.str("name");
                self.msgpack.str(&member.name);
                self.msgpack.str("__module__");
                self.msgpack.str(&member.module);
                self.msgpack.str("__name__");
                self.msgpack.str(&member.class);
            }
            Value::Serialized(value) => self.serialized(value),
            Value::Pickled(value) => self.pickled(value),
            Value::Key(key) => self.msgpack.key(key),
            Value::Raw(encoded) => self.msgpack.raw(encoded),
        }
    }

    /// An array of values.
    pub fn array_of(&mut self, values: &[Value]) {
        self.msgpack.array(values.len());
        for value in values {
            self.value(value);
        }
    }

    /// A map of values.
    pub fn map_of(&mut self, map: &Map) {
        self.msgpack.map(map.len());
        for (key, value) in map {
            self.value(key);
            self.value(value);
        }
    }

    /// The finished message.
    pub fn finish(self) -> Frames {
        let mut frames = Vec::with_capacity(1 + self.payloads.len());
        frames.push(self.msgpack.into_bytes());
        frames.extend(self.payloads);
        frames
    }
}

/// Collects stream messages as one batch: one array with one table of frames.
#[derive(Clone, Debug)]
pub struct BatchWriter {
    writer: MessageWriter,
    count: usize,
}

impl Default for BatchWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchWriter {
    /// An empty batch.
    pub fn new() -> Self {
        let mut writer = MessageWriter::with_capacity(1024);
        let position = writer.open_array();
        debug_assert_eq!(position, 0);
        Self { writer, count: 0 }
    }

    /// Begins the next message. Exactly one value must be written to the result.
    pub fn message(&mut self) -> &mut MessageWriter {
        self.count += 1;
        &mut self.writer
    }

    /// Appends a message.
    pub fn push(&mut self, message: &Value) {
        self.message().value(message);
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.count
    }

    /// No messages?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of all frames so far.
    pub fn nbytes(&self) -> usize {
        self.writer.nbytes()
    }

    /// The batch as one message; an empty array if it has no messages.
    pub fn finish(mut self) -> Frames {
        self.writer.patch_array(0, self.count);
        self.writer.finish()
    }

    /// Takes what was collected, if anything, and starts anew.
    pub fn take(&mut self) -> Option<Frames> {
        if self.is_empty() {
            return None;
        }
        Some(std::mem::take(self).finish())
    }
}
