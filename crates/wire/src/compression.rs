//! Compressed and split frames.
//!
//! The scheduler passes payloads through; these are for whoever makes or reads
//! them.

use std::io::Read;

use bytes::{Bytes, BytesMut};

use crate::{Error, Map, Result, Serialized, Value};

/// A compression that Dask's headers name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// LZ4 block after its uncompressed size (4 bytes, little endian).
    Lz4,
    /// One zstd frame.
    Zstd,
    /// Raw snappy.
    Snappy,
    /// zlib container.
    Zlib,
}

/// `distributed.comm.zstd.level`.
const ZSTD_LEVEL: i32 = 3;

/// Python's `zlib.compress` default.
const ZLIB_LEVEL: u32 = 6;

impl Compression {
    /// Every one we read.
    pub const ALL: [Self; 4] = [Self::Lz4, Self::Zstd, Self::Snappy, Self::Zlib];

    /// The name in headers and configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Snappy => "snappy",
            Self::Zlib => "zlib",
        }
    }

    /// By its name.
    ///
    /// # Errors
    /// An unknown name.
    pub fn from_name(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|c| c.name() == name);
        known.ok_or_else(|| Error::UnknownCompression {
            name: name.chars().take(32).collect(),
        })
    }

    /// Compresses one frame.
    ///
    /// # Errors
    /// If the library refuses, which the limits on sizes leave no reason for.
    pub fn compress(self, data: &[u8]) -> Result<Bytes> {
        let compressed = match self {
            Self::Lz4 => lz4_flex::block::compress_prepend_size(data),
            Self::Zstd => zstd::bulk::compress(data, ZSTD_LEVEL).map_err(|e| self.error(e))?,
            Self::Snappy => {
                let mut encoder = snap::raw::Encoder::new();
                encoder.compress_vec(data).map_err(|e| self.error(e))?
            }
            Self::Zlib => {
                let level = flate2::Compression::new(ZLIB_LEVEL);
                let mut out = Vec::new();
                flate2::bufread::ZlibEncoder::new(data, level)
                    .read_to_end(&mut out)
                    .map_err(|e| self.error(e))?;
                out
            }
        };
        Ok(Bytes::from(compressed))
    }

    /// Restores one frame of at most `nbytes_max` bytes.
    ///
    /// No more than that is ever allocated, whatever the frame claims; twice
    /// that while a zstd or zlib frame grows, and zstd's window beside it (no
    /// larger than the frame may be, or 8 MiB).
    ///
    /// # Errors
    /// Damaged data, or more than `nbytes_max` bytes.
    pub fn decompress(self, data: &[u8], nbytes_max: usize) -> Result<Bytes> {
        let out = match self {
            Self::Lz4 => {
                let (nbytes, block) =
                    lz4_flex::block::uncompressed_size(data).map_err(|e| self.error(e))?;
                self.check(nbytes, nbytes_max)?;
                // A block of LZ4 grows at most 255-fold; a larger claim is a lie
                // not worth allocating for.
                if nbytes > block.len().saturating_mul(255) {
                    return Err(self.error("impossible uncompressed size"));
                }
                let out = lz4_flex::block::decompress(block, nbytes).map_err(|e| self.error(e))?;
                if out.len() != nbytes {
                    return Err(self.error("uncompressed size differs from the one announced"));
                }
                out
            }
            Self::Snappy => {
                let nbytes = snap::raw::decompress_len(data).map_err(|e| self.error(e))?;
                self.check(nbytes, nbytes_max)?;
                // No snappy element yields more than 64 bytes for its two or more.
                if nbytes > data.len().saturating_mul(64) {
                    return Err(self.error("impossible uncompressed size"));
                }
                let mut decoder = snap::raw::Decoder::new();
                decoder.decompress_vec(data).map_err(|e| self.error(e))?
            }
            Self::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(data).map_err(|e| self.error(e))?;
                decoder
                    .window_log_max(zstd_window_log_max(nbytes_max))
                    .map_err(|e| self.error(e))?;
                self.read_bounded(decoder.single_frame(), nbytes_max)?
            }
            Self::Zlib => self.read_bounded(flate2::bufread::ZlibDecoder::new(data), nbytes_max)?,
        };
        Ok(Bytes::from(out))
    }

    fn read_bounded(self, reader: impl Read, nbytes_max: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        reader
            .take(nbytes_max as u64 + 1)
            .read_to_end(&mut out)
            .map_err(|e| self.error(e))?;
        self.check(out.len(), nbytes_max)?;
        Ok(out)
    }

    fn check(self, nbytes: usize, limit: usize) -> Result<()> {
        if nbytes > limit {
            return Err(Error::LimitExceeded {
                field: "uncompressed frame length",
                value: nbytes as u64,
                limit: limit as u64,
            });
        }
        Ok(())
    }

    fn error(self, reason: impl ToString) -> Error {
        Error::Decompress {
            name: self.name(),
            reason: reason.to_string(),
        }
    }
}

/// A window beyond the frame's own size is of no use, except that encoders which
/// do not know the size choose up to 8 MiB.
fn zstd_window_log_max(nbytes_max: usize) -> u32 {
    nbytes_max.max(1).ilog2().saturating_add(1).clamp(23, 27)
}

/// Compresses a frame if that is likely to pay, as `maybe_compress` of
/// distributed: 10,000 bytes to 2 GiB, and 30 % saved on a sample and on the whole.
///
/// The five samples lie at equal distances, not at random.
pub fn maybe_compress(compression: Compression, data: &Bytes) -> Result<Option<Bytes>> {
    const SIZE: usize = 10_000;
    const SAMPLES: usize = 5;
    const RATIO_MAX: f64 = 0.7;
    if data.len() < SIZE || data.len() as u64 > 1 << 31 {
        return Ok(None);
    }
    let pays = |from: usize, to: usize| to as f64 <= RATIO_MAX * from as f64;
    if data.len() > SIZE * SAMPLES {
        let step = (data.len() - SIZE) / (SAMPLES - 1);
        let mut sample = Vec::with_capacity(SIZE * SAMPLES);
        for index in 0..SAMPLES {
            sample.extend_from_slice(&data[index * step..index * step + SIZE]);
        }
        if !pays(sample.len(), compression.compress(&sample)?.len()) {
            return Ok(None);
        }
    }
    let compressed = compression.compress(data)?;
    Ok(pays(data.len(), compressed.len()).then_some(compressed))
}

impl Serialized {
    /// The same value with the frames compressed for which that is likely to pay,
    /// as distributed does for a peer that reads `compression`; `None` if there
    /// are none.
    ///
    /// # Errors
    /// A header that contradicts the frames, or a compression that fails.
    pub fn compressed(&self, compression: Compression) -> Result<Option<Self>> {
        let mut header = self.header_map()?;
        let mut names = match header.take("compression") {
            None | Some(Value::Nil) => vec![Value::Nil; self.frames.len()],
            Some(names) => {
                let found = names.type_name();
                names.into_array().ok_or(Error::UnexpectedType {
                    field: "compression",
                    expected: "array",
                    found,
                })?
            }
        };
        if names.len() != self.frames.len() {
            return Err(Error::Inconsistent {
                field: "compression",
                value: names.len() as u64,
            });
        }
        let mut frames = self.frames.clone();
        let mut any = false;
        for (name, frame) in names.iter_mut().zip(&mut frames) {
            if name.is_nil()
                && let Some(compressed) = maybe_compress(compression, frame)?
            {
                *name = compression.name().into();
                *frame = compressed;
                any = true;
            }
        }
        header.push("compression", names);
        let header = crate::encode(&Value::Map(header)).swap_remove(0);
        Ok(any.then_some(Self { header, frames }))
    }

    /// The frames as the family that wrote them sees them: decompressed, shards
    /// joined. `nbytes_max` bounds the bytes of all of them together.
    ///
    /// # Errors
    /// A header that contradicts the frames, unknown compression, damaged
    /// frames, or more than `nbytes_max` bytes.
    pub fn logical_frames(&self, nbytes_max: usize) -> Result<Vec<Bytes>> {
        let header = self.header_map()?;
        let frames = decompress_all(&header, &self.frames, nbytes_max)?;
        let (Some(counts), Some(offsets)) = (
            counts_of(&header, "split-num-sub-frames")?,
            counts_of(&header, "split-offsets")?,
        ) else {
            return Ok(frames);
        };
        if counts.len() != offsets.len() {
            return Err(Error::Inconsistent {
                field: "split-offsets",
                value: offsets.len() as u64,
            });
        }
        let mut logical = Vec::with_capacity(counts.len());
        let mut nbytes_left = nbytes_max;
        for (&count, &offset) in counts.iter().zip(&offsets) {
            let shards = usize::try_from(offset)
                .ok()
                .zip(usize::try_from(count).ok());
            let shards = shards
                .and_then(|(offset, count)| frames.get(offset..offset.checked_add(count)?))
                .ok_or(Error::OffsetOutOfRange {
                    field: "split-offsets",
                    offset,
                    end: offset.saturating_add(count),
                    count: frames.len() as u64,
                })?;
            let nbytes: usize = shards.iter().map(Bytes::len).sum();
            nbytes_left = nbytes_left
                .checked_sub(nbytes)
                .ok_or(Error::LimitExceeded {
                    field: "length of all frames",
                    value: nbytes as u64,
                    limit: nbytes_max as u64,
                })?;
            if let [shard] = shards {
                logical.push(shard.clone());
                continue;
            }
            let mut joined = BytesMut::with_capacity(nbytes);
            for shard in shards {
                joined.extend_from_slice(shard);
            }
            logical.push(joined.freeze());
        }
        Ok(logical)
    }
}

fn decompress_all(header: &Map, frames: &[Bytes], nbytes_max: usize) -> Result<Vec<Bytes>> {
    let Some(names) = header.get("compression").filter(|names| !names.is_nil()) else {
        return Ok(frames.to_vec());
    };
    let names = names.as_array().ok_or(Error::UnexpectedType {
        field: "compression",
        expected: "array",
        found: names.type_name(),
    })?;
    if names.len() != frames.len() {
        return Err(Error::Inconsistent {
            field: "compression",
            value: names.len() as u64,
        });
    }
    let mut out = Vec::with_capacity(frames.len());
    let mut nbytes_left = nbytes_max;
    for (name, frame) in names.iter().zip(frames) {
        let frame = match name {
            Value::Nil => frame.clone(),
            Value::Str(name) => Compression::from_name(name)?.decompress(frame, nbytes_left)?,
            other => {
                return Err(Error::UnexpectedType {
                    field: "compression",
                    expected: "str or nil",
                    found: other.type_name(),
                });
            }
        };
        nbytes_left = nbytes_left
            .checked_sub(frame.len())
            .ok_or(Error::LimitExceeded {
                field: "length of all frames",
                value: frame.len() as u64,
                limit: nbytes_max as u64,
            })?;
        out.push(frame);
    }
    Ok(out)
}

fn counts_of(header: &Map, field: &'static str) -> Result<Option<Vec<u64>>> {
    let Some(values) = header.get(field) else {
        return Ok(None);
    };
    let unexpected = |found: &Value| Error::UnexpectedType {
        field,
        expected: "array of counts",
        found: found.type_name(),
    };
    let values = values.as_array().ok_or_else(|| unexpected(values))?;
    let mut counts = Vec::with_capacity(values.len());
    for value in values {
        counts.push(value.as_u64().ok_or_else(|| unexpected(value))?);
    }
    Ok(Some(counts))
}
