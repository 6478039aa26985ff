//! The file of a spilled value.
//!
//! Only the process that wrote a file ever reads it. All numbers are little endian.
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `OXSPILL` and the version, 1 |
//! | 8 | length of the head |
//! | 4 | CRC-32 of the head |
//! | head | length of the key (8), the key as msgpack; length of the sub-header (8), the sub-header of the serialised value; number of frames (8); for each frame its codec (1), its length here (8), its length in memory (8) and the CRC-32 of what is here (4) |
//! | rest | the frames, one after the other |
//!
//! A codec is 0 for none, else the place of the compression in
//! [`Compression::ALL`] plus one. Frames are compressed here as stock does it for
//! its files; what a family of serialisers wrote comes back byte for byte.

use std::io::{self, Read, Write};

use bytes::Bytes;
use oxidask_wire::compression::{Compression, maybe_compress};
use oxidask_wire::{Key, Serialized};

const MAGIC: [u8; 8] = *b"OXSPILL\x01";

/// Magic, length and checksum of the head.
const PREAMBLE: usize = 20;

/// Frames smaller than this are gathered into one write. Chosen: a page or two.
const GATHERED_MAX: usize = 8 << 10;

/// Why a file does not give its value back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    /// It cannot be read, or is gone.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It does not begin as a file of this version does.
    #[error("it is no spill file of this version")]
    Foreign,
    /// It is shorter or longer than it should be.
    #[error("it has the wrong length")]
    Length,
    /// Its bytes have changed.
    #[error("the checksum of its {0} is wrong")]
    Checksum(&'static str),
    /// It belongs to another key.
    #[error("it holds the value of another key")]
    OtherKey,
    /// A frame does not decompress.
    #[error(transparent)]
    Decompress(#[from] oxidask_wire::Error),
}

/// A value as it goes into its file.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Everything before the frames.
    head: Vec<u8>,
    frames: Vec<Bytes>,
}

impl Packed {
    /// Compresses and sums a value up.
    ///
    /// # Errors
    /// If the compression fails.
    pub(crate) fn new(
        key: &Key,
        value: &Serialized,
        compression: Option<Compression>,
    ) -> oxidask_wire::Result<Self> {
        let key = key.as_msgpack();
        let mut head = vec![0; PREAMBLE];
        put_bytes(&mut head, key);
        put_bytes(&mut head, &value.header);
        put_number(&mut head, value.frames.len());
        let mut frames = Vec::with_capacity(value.frames.len());
        for frame in &value.frames {
            let compressed = match compression {
                Some(compression) => maybe_compress(compression, frame)?,
                None => None,
            };
            head.push(match (&compressed, compression) {
                (Some(_), Some(compression)) => codec(compression),
                _ => 0,
            });
            let stored = compressed.unwrap_or_else(|| frame.clone());
            put_number(&mut head, stored.len());
            put_number(&mut head, frame.len());
            head.extend(crc32fast::hash(&stored).to_le_bytes());
            frames.push(stored);
        }
        let length = (head.len() - PREAMBLE) as u64;
        let checksum = crc32fast::hash(&head[PREAMBLE..]);
        head[..8].copy_from_slice(&MAGIC);
        head[8..16].copy_from_slice(&length.to_le_bytes());
        head[16..PREAMBLE].copy_from_slice(&checksum.to_le_bytes());
        Ok(Self { head, frames })
    }

    /// Bytes of the file.
    pub(crate) fn nbytes(&self) -> u64 {
        let frames: usize = self.frames.iter().map(Bytes::len).sum();
        (self.head.len() + frames) as u64
    }

    /// Writes the whole file.
    ///
    /// # Errors
    /// Those of `out`, a full disk for one.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut gathered = self.head.clone();
        for frame in &self.frames {
            if frame.len() <= GATHERED_MAX {
                gathered.extend_from_slice(frame);
                continue;
            }
            out.write_all(&gathered)?;
            gathered.clear();
            out.write_all(frame)?;
        }
        out.write_all(&gathered)?;
        out.flush()
    }
}

/// Reads the value of `key` back from a file of so many bytes.
///
/// Takes no more memory than the file has bytes, plus what its frames take
/// uncompressed.
///
/// # Errors
/// See [`Damage`].
pub(crate) fn read(input: &mut impl Read, nbytes: u64, key: &Key) -> Result<Serialized, Damage> {
    let preamble = take(input, PREAMBLE as u64, nbytes)?;
    let mut left = nbytes - PREAMBLE as u64;
    if preamble[..8] != MAGIC {
        return Err(Damage::Foreign);
    }
    let mut cursor = Cursor(&preamble[8..]);
    let (length, checksum) = (cursor.number()?, cursor.checksum()?);
    let head = take(input, length, left)?;
    left -= length;
    if crc32fast::hash(&head) != checksum {
        return Err(Damage::Checksum("head"));
    }
    let mut cursor = Cursor(&head);
    if cursor.bytes()? != key.as_msgpack() {
        return Err(Damage::OtherKey);
    }
    let header = Bytes::copy_from_slice(cursor.bytes()?);
    let count = cursor.number()?;
    let mut value = Serialized {
        header,
        frames: Default::default(),
    };
    for _ in 0..count {
        let codec = cursor.take(1)?[0];
        let (length, length_in_memory) = (cursor.number()?, cursor.number()?);
        let checksum = cursor.checksum()?;
        let frame = take(input, length, left)?;
        left -= length;
        if crc32fast::hash(&frame) != checksum {
            return Err(Damage::Checksum("data"));
        }
        let frame = match codec {
            0 => Bytes::from(frame),
            codec => {
                let place = usize::from(codec) - 1;
                let compression = Compression::ALL.get(place).ok_or(Damage::Foreign)?;
                let most = usize::try_from(length_in_memory).map_err(|_| Damage::Length)?;
                compression.decompress(&frame, most)?
            }
        };
        if frame.len() as u64 != length_in_memory {
            return Err(Damage::Length);
        }
        value.frames.push(frame);
    }
    if left != 0 || !cursor.0.is_empty() {
        return Err(Damage::Length);
    }
    Ok(value)
}

fn codec(compression: Compression) -> u8 {
    let place = Compression::ALL.iter().position(|&own| own == compression);
    place.map_or(0, |place| place as u8 + 1)
}

fn put_number(head: &mut Vec<u8>, number: usize) {
    head.extend((number as u64).to_le_bytes());
}

fn put_bytes(head: &mut Vec<u8>, bytes: &[u8]) {
    put_number(head, bytes.len());
    head.extend_from_slice(bytes);
}

/// So many bytes of what is left of the file.
fn take(input: &mut impl Read, count: u64, left: u64) -> Result<Vec<u8>, Damage> {
    if count > left {
        return Err(Damage::Length);
    }
    let capacity = usize::try_from(count).map_err(|_| Damage::Length)?;
    let mut bytes = Vec::with_capacity(capacity);
    input.take(count).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == count {
        Ok(bytes)
    } else {
        Err(Damage::Length)
    }
}

/// What is left of a head.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Damage> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Damage::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, Damage> {
        let bytes = self.take(8)?.try_into().map_err(|_| Damage::Length)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn checksum(&mut self) -> Result<u32, Damage> {
        let bytes = self.take(4)?.try_into().map_err(|_| Damage::Length)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Damage> {
        let length = usize::try_from(self.number()?).map_err(|_| Damage::Length)?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(frames: &[&[u8]]) -> Serialized {
        Serialized {
            header: Bytes::from_static(b"\x81\xaaserializer\xa6pickle"),
            frames: frames.iter().map(|f| Bytes::copy_from_slice(f)).collect(),
        }
    }

    fn file(key: &Key, value: &Serialized, compression: Option<Compression>) -> Vec<u8> {
        let packed = Packed::new(key, value, compression).unwrap();
        let mut file = Vec::new();
        packed.write(&mut file).unwrap();
        assert_eq!(file.len() as u64, packed.nbytes());
        file
    }

    fn read_all(file: &[u8], key: &Key) -> Result<Serialized, Damage> {
        read(&mut &*file, file.len() as u64, key)
    }

    #[test]
    fn values_come_back_as_they_were() {
        let key = Key::from("x");
        let long = b"abc".repeat(20_000);
        let noise: Vec<u8> = (0..30_000_u64)
            .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8)
            .collect();
        let values = [
            value(&[]),
            value(&[b""]),
            value(&[b"one", b"", b"two"]),
            value(&[&long, b"short", &noise, &long]),
        ];
        let compressions = Compression::ALL.map(Some);
        for compression in compressions.into_iter().chain([None]) {
            for value in &values {
                let file = file(&key, value, compression);
                assert_eq!(read_all(&file, &key).unwrap(), *value);
            }
        }
        let plain = file(&key, &values[3], None);
        let small = file(&key, &values[3], Some(Compression::Lz4));
        assert!(small.len() < plain.len() / 2);
    }

    #[test]
    fn every_changed_byte_and_every_length_is_noticed() {
        let key = Key::from("x");
        let long = b"abc".repeat(5000);
        let value = value(&[b"one", &long, b"two"]);
        let good = file(&key, &value, Some(Compression::Lz4));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(read_all(&bad, &key).is_err(), "byte {at} was changed");
            assert!(read_all(&good[..at], &key).is_err(), "cut at {at}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(matches!(read_all(&longer, &key), Err(Damage::Length)));
        // A file that shrinks while it is read.
        let cut = read(&mut &good[..good.len() - 1], good.len() as u64, &key);
        assert!(matches!(cut, Err(Damage::Length)), "{cut:?}");
    }

    #[test]
    fn another_file_is_not_taken_for_it() {
        let key = Key::from("x");
        let good = file(&key, &value(&[b"one"]), None);
        let other = read_all(&good, &Key::from("y"));
        assert!(matches!(other, Err(Damage::OtherKey)), "{other:?}");
        let mut later = good.clone();
        later[7] = 2;
        assert!(matches!(read_all(&later, &key), Err(Damage::Foreign)));
        let text = read_all(b"hello, this is some text", &key);
        assert!(matches!(text, Err(Damage::Foreign)), "{text:?}");
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let long = vec![7; 1 << 20];
        let packed = Packed::new(&Key::from("x"), &value(&[&long]), None).unwrap();
        let mut device = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let error = packed.write(&mut device).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
