//! A cursor over msgpack and a writer of minimal msgpack.

use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::key::KeyRef;
use crate::{Error, Key, Result, Str};

/// Deepest accepted nesting of arrays and maps: the limit of Python's msgpack.
pub const DEPTH_MAX: usize = 512;

/// One msgpack object, or the head of an array or map.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// nil
    Nil,
    /// bool
    Bool(bool),
    /// An integer that fits 64 bits signed.
    Int(i64),
    /// An integer above `i64::MAX`.
    UInt(u64),
    /// A float; 32-bit floats are widened.
    Float(f64),
    /// Position of UTF-8 text, validated.
    Str(Range<usize>),
    /// Position of bytes.
    Bin(Range<usize>),
    /// An array of this many elements follows.
    Array(usize),
    /// A map of this many pairs follows.
    Map(usize),
    /// Extension type and position of its payload.
    Ext(i8, Range<usize>),
}

impl Token {
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
            Self::Ext(..) => "ext",
        }
    }
}

/// Reads msgpack from the front.
///
/// Text and bytes are slices of the underlying buffer where that is a
/// [`Bytes`], copies otherwise. Counts are checked against the bytes left
/// before they are returned, so reserving room for `count` elements is safe.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    data: &'a [u8],
    owner: Option<&'a Bytes>,
    position: usize,
    field: &'static str,
}

impl<'a> Reader<'a> {
    /// Over a shared buffer; slices of it are returned without copying.
    pub fn new(buffer: &'a Bytes, field: &'static str) -> Self {
        Self {
            data: buffer,
            owner: Some(buffer),
            position: 0,
            field,
        }
    }

    /// Over borrowed bytes; what is kept is copied.
    pub fn of_slice(data: &'a [u8], field: &'static str) -> Self {
        Self {
            data,
            owner: None,
            position: 0,
            field,
        }
    }

    /// Bytes consumed so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Back (or forth) to a position that [`Self::position`] gave.
    pub fn seek(&mut self, position: usize) {
        debug_assert!(position <= self.data.len());
        self.position = position;
    }

    /// Bytes not consumed yet.
    pub fn remaining(&self) -> usize {
        self.data.len() - self.position
    }

    /// The name used in errors.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// Names what is read from here on, for errors.
    pub fn set_field(&mut self, field: &'static str) {
        self.field = field;
    }

    /// An error unless everything was consumed.
    pub fn finish(&self) -> Result<()> {
        if self.remaining() == 0 {
            return Ok(());
        }
        Err(Error::TrailingBytes {
            field: self.field,
            count: self.remaining() as u64,
        })
    }

    /// The bytes of a range, which a token gave.
    pub fn slice(&self, range: Range<usize>) -> &'a [u8] {
        &self.data[range]
    }

    /// The bytes of a range as a shared buffer.
    pub fn bytes(&self, range: Range<usize>) -> Bytes {
        match self.owner {
            Some(owner) => owner.slice(range),
            None => Bytes::copy_from_slice(&self.data[range]),
        }
    }

    fn take(&mut self, count: u64) -> Result<Range<usize>> {
        let remaining = self.remaining() as u64;
        if count > remaining {
            return Err(Error::Truncated {
                field: self.field,
                needed: count - remaining,
            });
        }
        let start = self.position;
        self.position += count as usize;
        Ok(start..self.position)
    }

    #[inline]
    fn array_of<const N: usize>(&mut self) -> Result<[u8; N]> {
        let range = self.take(N as u64)?;
        Ok(self.data[range].try_into().expect("take gave N bytes"))
    }

    /// Checks a count: each of its elements takes at least `nbytes_each`.
    fn count(&self, count: u64, nbytes_each: u64) -> Result<usize> {
        let needed = count * nbytes_each;
        let remaining = self.remaining() as u64;
        if needed > remaining {
            return Err(Error::Truncated {
                field: self.field,
                needed: needed - remaining,
            });
        }
        Ok(count as usize)
    }

    /// The next object, or the head of an array or map.
    ///
    /// # Errors
    /// Truncated input, text that is not UTF-8, the unused marker 0xc1.
    #[inline]
    pub fn token(&mut self) -> Result<Token> {
        let token = self.unchecked_token()?;
        if let Token::Str(range) = &token {
            self.text(range.clone())?;
        }
        Ok(token)
    }

    fn text(&self, range: Range<usize>) -> Result<&'a str> {
        let field = self.field;
        std::str::from_utf8(&self.data[range]).map_err(|_| Error::InvalidUtf8 { field })
    }

    /// As [`Self::token`], but text may not be UTF-8.
    pub(crate) fn unchecked_token(&mut self) -> Result<Token> {
        let [marker] = self.array_of::<1>()?;
        Ok(match marker {
            0x00..=0x7f => Token::Int(i64::from(marker)),
            0x80..=0x8f => Token::Map(self.count(u64::from(marker & 0x0f), 2)?),
            0x90..=0x9f => Token::Array(self.count(u64::from(marker & 0x0f), 1)?),
            0xa0..=0xbf => Token::Str(self.take(u64::from(marker & 0x1f))?),
            0xc0 => Token::Nil,
            0xc1 => {
                return Err(Error::InvalidMarker {
                    field: self.field,
                    marker,
                });
            }
            0xc2 => Token::Bool(false),
            0xc3 => Token::Bool(true),
            0xc4 => {
                let count = self.u8()?;
                Token::Bin(self.take(count)?)
            }
            0xc5 => {
                let count = self.u16()?;
                Token::Bin(self.take(count)?)
            }
            0xc6 => {
                let count = self.u32()?;
                Token::Bin(self.take(count)?)
            }
            0xc7 => {
                let count = self.u8()?;
                self.ext(count)?
            }
            0xc8 => {
                let count = self.u16()?;
                self.ext(count)?
            }
            0xc9 => {
                let count = self.u32()?;
                self.ext(count)?
            }
            0xca => Token::Float(f64::from(f32::from_be_bytes(self.array_of()?))),
            0xcb => Token::Float(f64::from_be_bytes(self.array_of()?)),
            0xcc => Token::Int(self.u8()? as i64),
            0xcd => Token::Int(self.u16()? as i64),
            0xce => Token::Int(self.u32()? as i64),
            0xcf => {
                let value = u64::from_be_bytes(self.array_of()?);
                match i64::try_from(value) {
                    Ok(value) => Token::Int(value),
                    Err(_) => Token::UInt(value),
                }
            }
            0xd0 => Token::Int(i64::from(i8::from_be_bytes(self.array_of()?))),
            0xd1 => Token::Int(i64::from(i16::from_be_bytes(self.array_of()?))),
            0xd2 => Token::Int(i64::from(i32::from_be_bytes(self.array_of()?))),
            0xd3 => Token::Int(i64::from_be_bytes(self.array_of()?)),
            0xd4..=0xd8 => self.ext(1 << (marker - 0xd4))?,
            0xd9 => {
                let count = self.u8()?;
                Token::Str(self.take(count)?)
            }
            0xda => {
                let count = self.u16()?;
                Token::Str(self.take(count)?)
            }
            0xdb => {
                let count = self.u32()?;
                Token::Str(self.take(count)?)
            }
            0xdc => {
                let count = self.u16()?;
                Token::Array(self.count(count, 1)?)
            }
            0xdd => {
                let count = self.u32()?;
                Token::Array(self.count(count, 1)?)
            }
            0xde => {
                let count = self.u16()?;
                Token::Map(self.count(count, 2)?)
            }
            0xdf => {
                let count = self.u32()?;
                Token::Map(self.count(count, 2)?)
            }
            0xe0..=0xff => Token::Int(i64::from(marker as i8)),
        })
    }

    fn ext(&mut self, count: u64) -> Result<Token> {
        let [kind] = self.array_of::<1>()?;
        Ok(Token::Ext(kind as i8, self.take(count)?))
    }

    fn u8(&mut self) -> Result<u64> {
        Ok(u64::from(u8::from_be_bytes(self.array_of()?)))
    }

    fn u16(&mut self) -> Result<u64> {
        Ok(u64::from(u16::from_be_bytes(self.array_of()?)))
    }

    fn u32(&mut self) -> Result<u64> {
        Ok(u64::from(u32::from_be_bytes(self.array_of()?)))
    }

    /// The error for a token that does not belong here.
    pub fn unexpected(&self, expected: &'static str, found: &Token) -> Error {
        Error::UnexpectedType {
            field: self.field,
            expected,
            found: found.type_name(),
        }
    }

    /// Skips one object with everything in it and returns its place. What is
    /// skipped is not checked for UTF-8.
    ///
    /// # Errors
    /// As [`Self::token`], and nesting beyond [`DEPTH_MAX`].
    pub fn skip(&mut self) -> Result<Range<usize>> {
        let start = self.position;
        let mut open: SmallVec<[usize; 16]> = SmallVec::new();
        loop {
            let children = match self.unchecked_token()? {
                Token::Array(count) => count,
                Token::Map(count) => 2 * count,
                Token::Nil
                | Token::Bool(_)
                | Token::Int(_)
                | Token::UInt(_)
                | Token::Float(_)
                | Token::Str(_)
                | Token::Bin(_)
                | Token::Ext(..) => 0,
            };
            if children > 0 {
                if open.len() >= DEPTH_MAX {
                    return Err(self.too_deep());
                }
                open.push(children);
                continue;
            }
            loop {
                let Some(left) = open.last_mut() else {
                    return Ok(start..self.position);
                };
                *left -= 1;
                if *left > 0 {
                    break;
                }
                open.pop();
            }
        }
    }

    /// The error for nesting beyond [`DEPTH_MAX`].
    pub(crate) fn too_deep(&self) -> Error {
        Error::LimitExceeded {
            field: "nesting depth",
            value: DEPTH_MAX as u64 + 1,
            limit: DEPTH_MAX as u64,
        }
    }

    /// Number of pairs of the map that comes next.
    pub fn map_len(&mut self) -> Result<usize> {
        match self.token()? {
            Token::Map(count) => Ok(count),
            other => Err(self.unexpected("map", &other)),
        }
    }

    /// Number of elements of the array that comes next.
    pub fn array_len(&mut self) -> Result<usize> {
        match self.token()? {
            Token::Array(count) => Ok(count),
            other => Err(self.unexpected("array", &other)),
        }
    }

    /// Text, borrowed.
    pub fn str(&mut self) -> Result<&'a str> {
        match self.unchecked_token()? {
            Token::Str(range) => self.text(range),
            other => Err(self.unexpected("str", &other)),
        }
    }

    /// The bytes of text that is only compared.
    pub(crate) fn name(&mut self) -> Result<&'a [u8]> {
        match self.unchecked_token()? {
            Token::Str(range) => Ok(&self.data[range]),
            other => Err(self.unexpected("str", &other)),
        }
    }

    /// Text that shares the buffer.
    pub fn string(&mut self) -> Result<Str> {
        match self.token()? {
            Token::Str(range) => Ok(Str::of_utf8(self.bytes(range))),
            other => Err(self.unexpected("str", &other)),
        }
    }

    /// Bytes that share the buffer.
    pub fn bin(&mut self) -> Result<Bytes> {
        match self.token()? {
            Token::Bin(range) => Ok(self.bytes(range)),
            other => Err(self.unexpected("bin", &other)),
        }
    }

    /// An integer within 64 bits signed.
    pub fn int(&mut self) -> Result<i64> {
        match self.token()? {
            Token::Int(value) => Ok(value),
            other => Err(self.unexpected("int of 64 bits", &other)),
        }
    }

    /// A float; an integer is converted.
    pub fn float(&mut self) -> Result<f64> {
        match self.token()? {
            Token::Int(value) => Ok(value as f64),
            Token::UInt(value) => Ok(value as f64),
            Token::Float(value) => Ok(value),
            other => Err(self.unexpected("number", &other)),
        }
    }

    /// A bool.
    pub fn bool(&mut self) -> Result<bool> {
        match self.token()? {
            Token::Bool(value) => Ok(value),
            other => Err(self.unexpected("bool", &other)),
        }
    }

    /// Consumes a nil if one comes next.
    pub fn nil(&mut self) -> bool {
        if self.data.get(self.position) == Some(&0xc0) {
            self.position += 1;
            return true;
        }
        false
    }

    /// A task key, borrowed where its encoding is minimal.
    ///
    /// # Errors
    /// Anything that cannot be a key, nil and maps among them.
    pub fn key_ref(&mut self) -> Result<KeyRef<'a>> {
        KeyRef::read(self)
    }

    /// A task key of its own.
    pub fn key(&mut self) -> Result<Key> {
        Ok(Key::from(&KeyRef::read(self)?))
    }

    pub(crate) fn data_from(&self, start: usize) -> &'a [u8] {
        &self.data[start..self.position]
    }
}

/// Writes msgpack in the shortest encodings, as Python's packer does.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    buffer: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty writer with room for so many bytes.
    pub fn with_capacity(nbytes: usize) -> Self {
        Self {
            buffer: Vec::with_capacity(nbytes),
        }
    }

    /// What was written.
    pub fn as_slice(&self) -> &[u8] {
        &self.buffer
    }

    /// Bytes written.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// True if nothing was written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// What was written, without copying.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from(self.buffer)
    }

    /// What was written.
    pub fn into_vec(self) -> Vec<u8> {
        self.buffer
    }

    /// nil
    pub fn nil(&mut self) {
        self.buffer.push(0xc0);
    }

    /// A bool.
    pub fn bool(&mut self, value: bool) {
        self.buffer.push(if value { 0xc3 } else { 0xc2 });
    }

    /// A signed integer.
    pub fn int(&mut self, value: i64) {
        if value >= 0 {
            return self.uint(value as u64);
        }
        if value >= -32 {
            self.buffer.push(value as i8 as u8);
        } else if let Ok(value) = i8::try_from(value) {
            self.head(0xd0, value.to_be_bytes());
        } else if let Ok(value) = i16::try_from(value) {
            self.head(0xd1, value.to_be_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.head(0xd2, value.to_be_bytes());
        } else {
            self.head(0xd3, value.to_be_bytes());
        }
    }

    /// An unsigned integer.
    pub fn uint(&mut self, value: u64) {
        if value < 0x80 {
            self.buffer.push(value as u8);
        } else if let Ok(value) = u8::try_from(value) {
            self.head(0xcc, value.to_be_bytes());
        } else if let Ok(value) = u16::try_from(value) {
            self.head(0xcd, value.to_be_bytes());
        } else if let Ok(value) = u32::try_from(value) {
            self.head(0xce, value.to_be_bytes());
        } else {
            self.head(0xcf, value.to_be_bytes());
        }
    }

    /// A 64-bit float.
    pub fn float(&mut self, value: f64) {
        self.head(0xcb, value.to_be_bytes());
    }

    /// Text.
    ///
    /// # Panics
    /// If it is longer than 4 GiB, which msgpack cannot express.
    pub fn str(&mut self, value: &str) {
        let nbytes = value.len();
        if nbytes < 32 {
            self.buffer.push(0xa0 | nbytes as u8);
        } else if let Ok(nbytes) = u8::try_from(nbytes) {
            self.head(0xd9, nbytes.to_be_bytes());
        } else if let Ok(nbytes) = u16::try_from(nbytes) {
            self.head(0xda, nbytes.to_be_bytes());
        } else {
            let nbytes = u32::try_from(nbytes).expect("a str fits 4 GiB");
            self.head(0xdb, nbytes.to_be_bytes());
        }
        self.buffer.extend_from_slice(value.as_bytes());
    }

    /// Bytes.
    ///
    /// # Panics
    /// If they are longer than 4 GiB, which msgpack cannot express.
    pub fn bin(&mut self, value: &[u8]) {
        let nbytes = value.len();
        if let Ok(nbytes) = u8::try_from(nbytes) {
            self.head(0xc4, nbytes.to_be_bytes());
        } else if let Ok(nbytes) = u16::try_from(nbytes) {
            self.head(0xc5, nbytes.to_be_bytes());
        } else {
            let nbytes = u32::try_from(nbytes).expect("bytes inside msgpack fit 4 GiB");
            self.head(0xc6, nbytes.to_be_bytes());
        }
        self.buffer.extend_from_slice(value);
    }

    /// The head of an array; its elements follow.
    pub fn array(&mut self, count: usize) {
        if count < 16 {
            self.buffer.push(0x90 | count as u8);
        } else if let Ok(count) = u16::try_from(count) {
            self.head(0xdc, count.to_be_bytes());
        } else {
            let count = u32::try_from(count).expect("an array has fewer than 2^32 elements");
            self.head(0xdd, count.to_be_bytes());
        }
    }

    /// The head of a map; its pairs follow.
    pub fn map(&mut self, count: usize) {
        if count < 16 {
            self.buffer.push(0x80 | count as u8);
        } else if let Ok(count) = u16::try_from(count) {
            self.head(0xde, count.to_be_bytes());
        } else {
            let count = u32::try_from(count).expect("a map has fewer than 2^32 pairs");
            self.head(0xdf, count.to_be_bytes());
        }
    }

    /// An extension object.
    pub fn ext(&mut self, kind: i8, payload: &[u8]) {
        let nbytes = payload.len();
        match nbytes {
            1 | 2 | 4 | 8 | 16 => self.buffer.push(0xd4 + nbytes.trailing_zeros() as u8),
            0..=0xff => self.head(0xc7, (nbytes as u8).to_be_bytes()),
            0x100..=0xffff => self.head(0xc8, (nbytes as u16).to_be_bytes()),
            _ => {
                let nbytes = u32::try_from(nbytes).expect("an extension fits 4 GiB");
                self.head(0xc9, nbytes.to_be_bytes());
            }
        }
        self.buffer.push(kind as u8);
        self.buffer.extend_from_slice(payload);
    }

    /// Already encoded msgpack.
    pub fn raw(&mut self, encoded: &[u8]) {
        self.buffer.extend_from_slice(encoded);
    }

    /// A task key.
    pub fn key(&mut self, key: &Key) {
        self.buffer.extend_from_slice(key.as_msgpack());
    }

    /// The head of an array whose length is not known yet; see [`Self::patch_array`].
    pub(crate) fn open_array(&mut self) -> usize {
        let position = self.buffer.len();
        self.head(0xdd, [0; 4]);
        position
    }

    /// Sets the length of an array begun with [`Self::open_array`].
    pub(crate) fn patch_array(&mut self, position: usize, count: usize) {
        let count = u32::try_from(count).expect("an array has fewer than 2^32 elements");
        self.buffer[position + 1..position + 5].copy_from_slice(&count.to_be_bytes());
    }

    #[inline]
    fn head<const N: usize>(&mut self, marker: u8, bytes: [u8; N]) {
        self.buffer.push(marker);
        self.buffer.extend_from_slice(&bytes);
    }
}
