//! Dask's messages over WebSocket.
//!
//! One binary message with the number of frames (`u64`, little endian), then
//! one binary message per frame.

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use oxidask_wire::Frames;
use oxidask_wire::frame::Limits;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, accept_async_with_config, client_async_with_config};

use crate::connect::Side;
use crate::connection::{ByteStream, Reader, Writer};
use crate::{Address, Error, Options, Result};

type Socket = WebSocketStream<Box<dyn ByteStream>>;

/// The WebSocket handshake at path `/`.
pub(crate) async fn open(
    stream: Box<dyn ByteStream>,
    peer: &Address,
    side: Side,
    options: &Options,
) -> Result<(Reader, Writer)> {
    let frame_nbytes_max = options.websocket_frame_nbytes_max;
    let config = WebSocketConfig::default()
        .max_frame_size(Some(frame_nbytes_max))
        .max_message_size(Some(frame_nbytes_max));
    let opened = match side {
        Side::Server => accept_async_with_config(stream, Some(config)).await,
        Side::Client => {
            let request = format!("{peer}/");
            let opened = client_async_with_config(request, stream, Some(config)).await;
            opened.map(|(socket, _)| socket)
        }
    };
    let (sink, source) = opened
        .map_err(|error| failure("connecting", error))?
        .split();
    Ok((
        Reader::of_websocket(WsReader {
            source,
            limits: Limits::HANDSHAKE,
            partial: None,
        }),
        Writer::of_websocket(WsWriter { sink }),
    ))
}

pub(crate) struct WsReader {
    source: SplitStream<Socket>,
    limits: Limits,
    partial: Option<Partial>,
}

/// A message of which some frames have arrived.
struct Partial {
    count: usize,
    nbytes: u64,
    frames: Frames,
}

impl WsReader {
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Cancel safe: frames that have arrived stay in `partial`.
    pub(crate) async fn read(&mut self) -> Result<Frames> {
        loop {
            if let Some(done) = self.partial.take_if(|p| p.frames.len() == p.count) {
                return Ok(done.frames);
            }
            let in_message = self.partial.is_some();
            let bytes = match self.source.next().await {
                None => return Err(Error::Closed { in_message }),
                Some(Err(error)) => return Err(failure("receiving", error)),
                Some(Ok(Message::Binary(bytes))) => bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Close(_))) => return Err(Error::Closed { in_message }),
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    return Err(Error::Malformed(oxidask_wire::Error::UnexpectedType {
                        field: "websocket message",
                        expected: "binary",
                        found: "text",
                    }));
                }
            };
            match &mut self.partial {
                None => self.partial = Some(self.begin(&bytes)?),
                Some(partial) => {
                    partial.nbytes += bytes.len() as u64;
                    let limits = &self.limits;
                    let length = bytes.len() as u64;
                    check("frame length", length, limits.frame_nbytes_max)?;
                    check("message length", partial.nbytes, limits.message_nbytes_max)?;
                    partial.frames.push(bytes);
                }
            }
        }
    }

    fn begin(&self, bytes: &Bytes) -> Result<Partial> {
        let count = <[u8; 8]>::try_from(&bytes[..]).map_err(|_| {
            Error::Malformed(oxidask_wire::Error::Inconsistent {
                field: "length of the frame count",
                value: bytes.len() as u64,
            })
        })?;
        let count = u64::from_le_bytes(count);
        check("number of frames", count, self.limits.frame_count_max)?;
        if count == 0 {
            return Err(Error::Malformed(oxidask_wire::Error::Inconsistent {
                field: "number of frames",
                value: 0,
            }));
        }
        Ok(Partial {
            count: count as usize,
            nbytes: 0,
            frames: Vec::new(),
        })
    }
}

pub(crate) struct WsWriter {
    sink: SplitSink<Socket, Message>,
}

impl WsWriter {
    pub(crate) async fn write(&mut self, frames: &[Bytes]) -> Result<()> {
        let count = Bytes::copy_from_slice(&(frames.len() as u64).to_le_bytes());
        for part in std::iter::once(&count).chain(frames) {
            let fed = self.sink.feed(Message::Binary(part.clone())).await;
            fed.map_err(|error| failure("sending", error))?;
        }
        let flushed = self.sink.flush().await;
        flushed.map_err(|error| failure("sending", error))
    }

    pub(crate) async fn close(&mut self) -> Result<()> {
        let closed = self.sink.close().await;
        closed.map_err(|error| failure("closing", error))
    }
}

fn check(field: &'static str, value: u64, limit: u64) -> Result<()> {
    if value > limit {
        return Err(Error::Malformed(oxidask_wire::Error::LimitExceeded {
            field,
            value,
            limit,
        }));
    }
    Ok(())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "all other failures of the library are handled alike"
)]
fn failure(doing: &'static str, error: tungstenite::Error) -> Error {
    match error {
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            Error::Closed { in_message: false }
        }
        tungstenite::Error::Io(source) => Error::Io { doing, source },
        other => Error::WebSocket {
            doing,
            source: Box::new(other),
        },
    }
}
