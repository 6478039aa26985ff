//! Messages on a byte stream.
//!
//! ```text
//! u64 N | u64 n | n × u64 len | frame 0 … frame n-1        (little endian)
//! ```
//!
//! `N` counts the bytes after it that a receiver may fetch in one read. It ends
//! on a frame boundary and says nothing about the length of the message.

use bytes::buf::Limit;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Error, Frames, Result};

/// What a decoder accepts from a peer.
///
/// Beside the bytes that have arrived, a decoder holds 8 bytes per announced
/// frame that has been read, 32 per finished frame, and at most
/// [`ALLOCATION_AHEAD_MAX`] bytes of memory that nothing has been written to yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most frames of one message.
    pub frame_count_max: u64,
    /// Most bytes of one frame.
    pub frame_nbytes_max: u64,
    /// Most bytes of all frames of one message.
    pub message_nbytes_max: u64,
}

impl Default for Limits {
    /// Generous: Dask itself knows no limits, and scatter may carry whole data sets.
    fn default() -> Self {
        Self {
            frame_count_max: 1 << 24,
            frame_nbytes_max: 1 << 36,
            message_nbytes_max: 1 << 36,
        }
    }
}

impl Limits {
    /// For a peer that has not finished its handshake, which takes some 50 bytes.
    pub const HANDSHAKE: Self = Self {
        frame_count_max: 16,
        frame_nbytes_max: 1 << 16,
        message_nbytes_max: 1 << 16,
    };
}

/// Memory reserved for a frame ahead of its bytes: one shard
/// (`distributed.comm.shard`), so that an ordinary frame is allocated once and
/// never moved. A longer frame grows by doubling.
pub const ALLOCATION_AHEAD_MAX: usize = 64 << 20;

/// Frames of this size or more get a buffer of their own, so that they are
/// received in place and freed independently. Chosen: the size of a read.
const OWN_BUFFER_MIN: usize = 1 << 16;

/// Room offered to a read outside large frames: little for the many connections
/// that say little, doubled whenever a read fills it.
const READ_NBYTES_MIN: usize = 1 << 13;
const READ_NBYTES_MAX: usize = 1 << 16;

/// The bytes that go before the frames of a message.
///
/// As stock, `N` covers the leading small frames and the first large one if
/// those are negligible beside it (at most 2 KiB or 5 %): a stock receiver puts
/// what `N` covers in one buffer, and later large frames in buffers of their own.
pub fn prelude(frames: &[Bytes]) -> Bytes {
    const SHARD_NBYTES: usize = 64 << 20;
    let table_nbytes = 8 + 8 * frames.len();
    let mut together_nbytes = 0;
    let mut first_large: Option<usize> = None;
    for frame in frames {
        let nbytes = frame.len();
        match first_large {
            None if nbytes >= OWN_BUFFER_MIN => {
                if together_nbytes > (nbytes / 20).max(2048) {
                    break;
                }
                first_large = Some(nbytes);
            }
            // More shards of the same array follow a full one.
            Some(previous) if previous == SHARD_NBYTES => first_large = Some(nbytes),
            Some(_) if nbytes >= OWN_BUFFER_MIN => break,
            None | Some(_) => {}
        }
        together_nbytes += nbytes;
    }
    let mut prelude = BytesMut::with_capacity(8 + table_nbytes);
    prelude.put_u64_le((table_nbytes + together_nbytes) as u64);
    prelude.put_u64_le(frames.len() as u64);
    for frame in frames {
        prelude.put_u64_le(frame.len() as u64);
    }
    prelude.freeze()
}

/// The whole message as it goes on a byte stream, in one buffer.
pub fn to_stream(frames: &[Bytes]) -> Bytes {
    let prelude = prelude(frames);
    let nbytes: usize = frames.iter().map(Bytes::len).sum();
    let mut stream = BytesMut::with_capacity(prelude.len() + nbytes);
    stream.put(prelude);
    for frame in frames {
        stream.put_slice(frame);
    }
    stream.freeze()
}

/// Cuts a byte stream into messages, as the bytes arrive.
///
/// ```text
/// loop { read into decoder.buffer(); while let Some(frames) = decoder.poll()? { … } }
/// ```
///
/// Frames are slices of the buffers that were read into. After an error the
/// stream is at an unknown place and must be closed.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    /// Bytes not yet part of a frame.
    buffer: BytesMut,
    read_nbytes: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Waiting for `N` and `n`.
    Head,
    /// Waiting for the lengths of frames.
    Lengths {
        hint: u64,
        count: u64,
        nbytes: u64,
        lengths: Vec<u64>,
    },
    /// Waiting for frames.
    Frames {
        lengths: Vec<u64>,
        frames: Frames,
        /// The part of the next frame that is received in place.
        large: Option<BytesMut>,
    },
}

impl Decoder {
    /// At the beginning of a stream.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            buffer: BytesMut::new(),
            read_nbytes: READ_NBYTES_MIN,
            state: State::Head,
        }
    }

    /// Replaces the limits, for messages that begin after this call.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// True between messages: the end of the stream is regular here.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Head) && self.buffer.is_empty()
    }

    /// Where the next bytes of the stream go. Never full.
    pub fn buffer(&mut self) -> Limit<&mut BytesMut> {
        if let State::Frames {
            lengths,
            frames,
            large: Some(large),
        } = &mut self.state
        {
            let missing = lengths[frames.len()] as usize - large.len();
            if large.capacity() == large.len() {
                large.reserve(missing.min(large.len().max(ALLOCATION_AHEAD_MAX)));
            }
            let room = large.capacity() - large.len();
            return large.limit(missing.min(room));
        }
        let room = self.buffer.capacity() - self.buffer.len();
        if room == 0 && !self.buffer.is_empty() {
            self.read_nbytes = (2 * self.read_nbytes).min(READ_NBYTES_MAX);
        }
        if room < self.read_nbytes / 4 {
            self.buffer.reserve(self.read_nbytes);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        (&mut self.buffer).limit(room)
    }

    /// Appends bytes of the stream, for callers that have them in a buffer already.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<Frames>) -> Result<()> {
        while !bytes.is_empty() {
            let mut buffer = self.buffer();
            let count = bytes.len().min(buffer.remaining_mut());
            buffer.put_slice(&bytes[..count]);
            bytes = &bytes[count..];
            while let Some(frames) = self.poll()? {
                out.push(frames);
            }
        }
        Ok(())
    }

    /// The next message, if its bytes are all here.
    ///
    /// # Errors
    /// A count or length beyond the limits, no frames at all, or an `N` that
    /// does not end on a frame boundary.
    pub fn poll(&mut self) -> Result<Option<Frames>> {
        loop {
            match &mut self.state {
                State::Head => {
                    if self.buffer.len() < 16 {
                        return Ok(None);
                    }
                    let hint = self.buffer.get_u64_le();
                    let count = self.buffer.get_u64_le();
                    if count == 0 {
                        return Err(Error::Inconsistent {
                            field: "number of frames",
                            value: 0,
                        });
                    }
                    check("number of frames", count, self.limits.frame_count_max)?;
                    self.state = State::Lengths {
                        hint,
                        count,
                        nbytes: 0,
                        lengths: Vec::new(),
                    };
                }
                State::Lengths {
                    hint,
                    count,
                    nbytes,
                    lengths,
                } => {
                    while (lengths.len() as u64) < *count {
                        if self.buffer.len() < 8 {
                            return Ok(None);
                        }
                        let length = self.buffer.get_u64_le();
                        check("frame length", length, self.limits.frame_nbytes_max)?;
                        *nbytes = nbytes.saturating_add(length);
                        check("message length", *nbytes, self.limits.message_nbytes_max)?;
                        lengths.push(length);
                    }
                    check_hint(*hint, lengths)?;
                    let lengths = std::mem::take(lengths);
                    self.state = State::Frames {
                        frames: Vec::with_capacity(lengths.len()),
                        lengths,
                        large: None,
                    };
                }
                State::Frames {
                    lengths,
                    frames,
                    large,
                } => {
                    if let Some(part) = large.as_ref() {
                        if part.len() < lengths[frames.len()] as usize {
                            return Ok(None);
                        }
                        frames.extend(large.take().map(BytesMut::freeze));
                    }
                    while let Some(&length) = lengths.get(frames.len()) {
                        let length = length as usize;
                        if self.buffer.len() >= length {
                            frames.push(self.buffer.split_to(length).freeze());
                            continue;
                        }
                        if length >= OWN_BUFFER_MIN {
                            let mut part =
                                BytesMut::with_capacity(length.min(ALLOCATION_AHEAD_MAX));
                            part.put(&mut self.buffer);
                            *large = Some(part);
                        }
                        return Ok(None);
                    }
                    let frames = std::mem::take(frames);
                    self.state = State::Head;
                    return Ok(Some(frames));
                }
            }
        }
    }
}

fn check(field: &'static str, value: u64, limit: u64) -> Result<()> {
    if value > limit {
        return Err(Error::LimitExceeded {
            field,
            value,
            limit,
        });
    }
    Ok(())
}

fn check_hint(hint: u64, lengths: &[u64]) -> Result<()> {
    let mut boundary = 8 + 8 * lengths.len() as u64;
    let mut lengths = lengths.iter();
    while boundary < hint {
        let Some(length) = lengths.next() else { break };
        boundary += length;
    }
    if boundary == hint {
        return Ok(());
    }
    Err(Error::Inconsistent {
        field: "read hint",
        value: hint,
    })
}
