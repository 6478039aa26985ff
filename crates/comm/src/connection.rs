//! One connection: frames in, frames out.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use oxidask_wire::frame::{self, Limits};
use oxidask_wire::handshake::{Handshake, Negotiated};
use oxidask_wire::{Frames, Value, message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::local::{LocalReader, LocalWriter};
use crate::ws::{WsReader, WsWriter};
use crate::{Address, Error, Options, Result};

/// Either direction of a byte stream.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> ByteStream for T {}

/// A connection whose handshake is done.
///
/// Dropping it closes the socket at once; [`Writer::close`] is the polite way.
#[derive(Debug)]
pub struct Connection {
    /// Receives.
    pub reader: Reader,
    /// Sends.
    pub writer: Writer,
    /// Who is connected.
    pub info: Info,
}

/// The ends of a connection and what they agreed on.
#[derive(Clone, Debug)]
pub struct Info {
    /// This end.
    pub local: Address,
    /// The other end.
    pub peer: Address,
    /// What the peer said of itself.
    pub remote: Handshake,
    /// What both keep to.
    pub negotiated: Negotiated,
}

impl Connection {
    /// Exchanges handshakes: both sides write first.
    pub(crate) async fn establish(
        mut reader: Reader,
        mut writer: Writer,
        local: Address,
        peer: Address,
        options: &Options,
    ) -> Result<Self> {
        let mut handshake = options.handshake.clone();
        if local.is_same_host(&peer) {
            handshake.compression = None;
        }
        writer.write(&handshake.encode()).await?;
        let remote = Handshake::decode(&reader.read().await?)?;
        reader.set_limits(options.limits);
        let negotiated = handshake.negotiate(&remote);
        Ok(Self {
            reader,
            writer,
            info: Info {
                local,
                peer,
                remote,
                negotiated,
            },
        })
    }

    /// The next message. Cancel safe.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub async fn read(&mut self) -> Result<Frames> {
        self.reader.read().await
    }

    /// The next message, decoded. Cancel safe.
    ///
    /// # Errors
    /// As [`Reader::read`], and frames that are no message: those leave the
    /// connection usable.
    pub async fn read_value(&mut self) -> Result<Value> {
        Ok(message::decode(&self.reader.read().await?)?)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn write(&mut self, frames: &[Bytes]) -> Result<()> {
        self.writer.write(frames).await
    }

    /// Sends a value.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn write_value(&mut self, value: &Value) -> Result<()> {
        self.writer.write(&message::encode(value)).await
    }

    /// Both halves, for two tasks.
    pub fn split(self) -> (Reader, Writer, Info) {
        (self.reader, self.writer, self.info)
    }
}

/// The receiving half.
pub struct Reader {
    inner: ReaderKind,
    /// A message that came while [`Reader::closed`] waited.
    ahead: Option<Frames>,
}

enum ReaderKind {
    Stream {
        stream: Box<dyn AsyncRead + Send + Sync + Unpin>,
        decoder: frame::Decoder,
    },
    WebSocket(WsReader),
    Local(LocalReader),
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    /// Before the handshake: only its few bytes are accepted.
    pub(crate) fn of_stream(stream: impl AsyncRead + Send + Sync + Unpin + 'static) -> Self {
        Self {
            inner: ReaderKind::Stream {
                stream: Box::new(stream),
                decoder: frame::Decoder::new(Limits::HANDSHAKE),
            },
            ahead: None,
        }
    }

    pub(crate) fn of_websocket(reader: WsReader) -> Self {
        Self {
            inner: ReaderKind::WebSocket(reader),
            ahead: None,
        }
    }

    pub(crate) fn of_local(reader: LocalReader) -> Self {
        Self {
            inner: ReaderKind::Local(reader),
            ahead: None,
        }
    }

    fn set_limits(&mut self, limits: Limits) {
        match &mut self.inner {
            ReaderKind::Stream { decoder, .. } => decoder.set_limits(limits),
            ReaderKind::WebSocket(reader) => reader.set_limits(limits),
            // What is sent within the process is there already.
            ReaderKind::Local(_) => {}
        }
    }

    /// The next message. Cancel safe: what has arrived is kept.
    ///
    /// # Errors
    /// [`Error::Closed`] at the end of the stream, [`Error::Malformed`] for what
    /// is not Dask's framing; then the connection must be dropped.
    pub async fn read(&mut self) -> Result<Frames> {
        match self.ahead.take() {
            Some(frames) => Ok(frames),
            None => self.receive().await,
        }
    }

    /// Waits until the peer closes the connection, while a request of its is
    /// being worked on. Cancel safe. A peer that sends another request meanwhile
    /// is taken to be there: the message is kept, and no more is read.
    pub async fn closed(&mut self) {
        if self.ahead.is_none() {
            match self.receive().await {
                Ok(frames) => self.ahead = Some(frames),
                Err(_) => return,
            }
        }
        std::future::pending().await
    }

    async fn receive(&mut self) -> Result<Frames> {
        let (stream, decoder) = match &mut self.inner {
            ReaderKind::Stream { stream, decoder } => (stream, decoder),
            ReaderKind::WebSocket(reader) => return reader.read().await,
            ReaderKind::Local(reader) => return reader.read().await,
        };
        loop {
            if let Some(frames) = decoder.poll()? {
                return Ok(frames);
            }
            let received = stream.read_buf(&mut decoder.buffer()).await;
            match received {
                Ok(0) => {
                    return Err(Error::Closed {
                        in_message: !decoder.is_idle(),
                    });
                }
                Ok(_) => {}
                // What a TLS peer that vanishes without `close_notify` looks like.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(Error::Closed {
                        in_message: !decoder.is_idle(),
                    });
                }
                Err(source) => {
                    return Err(Error::Io {
                        doing: "receiving",
                        source,
                    });
                }
            }
        }
    }

    /// True if the connection can carry another request: open, and nothing
    /// unasked has arrived. Does not wait.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        matches!(pin!(self.read()).poll(&mut context), Poll::Pending)
    }
}

/// The sending half.
pub struct Writer {
    inner: WriterKind,
    /// A write began and did not finish: the stream is at an unknown place.
    interrupted: bool,
}

enum WriterKind {
    Stream(Box<dyn AsyncWrite + Send + Sync + Unpin>),
    WebSocket(WsWriter),
    Local(LocalWriter),
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("interrupted", &self.interrupted)
            .finish_non_exhaustive()
    }
}

impl Writer {
    pub(crate) fn of_stream(stream: impl AsyncWrite + Send + Sync + Unpin + 'static) -> Self {
        Self {
            inner: WriterKind::Stream(Box::new(stream)),
            interrupted: false,
        }
    }

    pub(crate) fn of_websocket(writer: WsWriter) -> Self {
        Self {
            inner: WriterKind::WebSocket(writer),
            interrupted: false,
        }
    }

    pub(crate) fn of_local(writer: LocalWriter) -> Self {
        Self {
            inner: WriterKind::Local(writer),
            interrupted: false,
        }
    }

    /// Sends a message; returns when all of it is with the system. Large frames
    /// are not copied, small ones are joined.
    ///
    /// Not cancel safe: a dropped call may have sent a part, and every later
    /// call then fails with [`Error::Closed`] instead of sending garbage.
    ///
    /// # Errors
    /// If the connection is closed or fails.
    pub async fn write(&mut self, frames: &[Bytes]) -> Result<()> {
        if self.interrupted {
            return Err(Error::Closed { in_message: true });
        }
        self.interrupted = true;
        match &mut self.inner {
            WriterKind::Stream(stream) => {
                let written = write_all(stream, join_small(frames)).await;
                written.map_err(|source| Error::Io {
                    doing: "sending",
                    source,
                })?;
            }
            WriterKind::WebSocket(writer) => writer.write(frames).await?,
            WriterKind::Local(writer) => writer.write(frames.to_vec()).await?,
        }
        self.interrupted = false;
        Ok(())
    }

    /// Ends the stream in this direction; the peer sees a regular end.
    ///
    /// # Errors
    /// If the connection fails before that.
    pub async fn close(&mut self) -> Result<()> {
        self.interrupted = true;
        match &mut self.inner {
            WriterKind::Stream(stream) => stream.shutdown().await.map_err(|source| Error::Io {
                doing: "closing",
                source,
            }),
            WriterKind::WebSocket(writer) => writer.close().await,
            WriterKind::Local(writer) => {
                writer.close();
                Ok(())
            }
        }
    }
}

/// Frames below this size are copied into one buffer with their neighbours.
/// Chosen: copying 16 KiB is cheaper than one more element of a vectored write.
const JOINED_FRAME_NBYTES_MAX: usize = 1 << 14;

/// The pieces of a message on the stream, prelude first.
fn join_small(frames: &[Bytes]) -> VecDeque<Bytes> {
    let mut pieces = VecDeque::new();
    let mut joined = BytesMut::new();
    for frame in std::iter::once(&frame::prelude(frames)).chain(frames) {
        if frame.len() < JOINED_FRAME_NBYTES_MAX {
            joined.extend_from_slice(frame);
            continue;
        }
        if !joined.is_empty() {
            pieces.push_back(joined.split().freeze());
        }
        pieces.push_back(frame.clone());
    }
    if !joined.is_empty() {
        pieces.push_back(joined.freeze());
    }
    pieces
}

async fn write_all(
    stream: &mut (dyn AsyncWrite + Send + Sync + Unpin),
    mut pieces: VecDeque<Bytes>,
) -> io::Result<()> {
    const SLICES_MAX: usize = 64;
    while !pieces.is_empty() {
        let mut written = {
            let slices: Vec<IoSlice<'_>> = pieces
                .iter()
                .take(SLICES_MAX)
                .map(|piece| IoSlice::new(piece))
                .collect();
            stream.write_vectored(&slices).await?
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(piece) = pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                break;
            }
            written -= piece.len();
            pieces.pop_front();
        }
    }
    stream.flush().await
}
