//! Opening connections.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::connection::{ByteStream, Reader, Writer};
use crate::listener::check_encryption;
use crate::{Address, Connection, Error, Options, Result, Scheme, local, tcp, tls, ws};

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// Connects, trying again until `timeout` (`distributed.comm.timeouts.connect`)
/// is over.
///
/// As stock: the first attempt takes a fifth of the time at most, pauses grow
/// exponentially with full jitter, and a refused certificate ends it at once, as
/// does a failure of Dask's handshake. Unlike stock, the time bounds that
/// handshake as well. Dropping the future gives up and leaves nothing behind.
///
/// # Errors
/// [`Error::ConnectTimeout`] with the last failure as its source,
/// [`Error::HandshakeTimeout`]; handshake and configuration errors directly.
pub async fn connect(
    address: &Address,
    options: &Options,
    timeout: Duration,
) -> Result<Connection> {
    const PAUSE_BASE: Duration = Duration::from_millis(10);
    check_encryption(address, options)?;
    let deadline = Instant::now() + timeout;
    let mut attempt_max = timeout / 5;
    let mut last_error = None;
    let mut pause_max = PAUSE_BASE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::ConnectTimeout {
                address: address.to_string(),
                timeout,
                source: last_error,
            });
        }
        match tokio::time::timeout(attempt_max.min(left), attempt(address, options)).await {
            Ok(Ok(opened)) => {
                let peer = opened.peer.to_string();
                let left = deadline.saturating_duration_since(Instant::now());
                let established = opened.establish(options);
                return match tokio::time::timeout(left, established).await {
                    Ok(connection) => connection,
                    Err(_) => Err(Error::HandshakeTimeout { peer, timeout }),
                };
            }
            Ok(Err(error)) if is_worth_retrying(&error) => last_error = Some(Box::new(error)),
            Ok(Err(fatal)) => return Err(fatal),
            Err(_) => {}
        }
        attempt_max = timeout;
        let left = deadline.saturating_duration_since(Instant::now());
        tokio::time::sleep(pause_max.min(left).mul_f64(jitter())).await;
        pause_max = pause_max.saturating_mul(2);
    }
}

/// A peer that is not there yet, but none that refuses us.
fn is_worth_retrying(error: &Error) -> bool {
    if let Error::Io { source, .. } = error {
        return !tls::is_refusal(source);
    }
    matches!(error, Error::Resolve { .. } | Error::Closed { .. })
}

/// Uniform in [0, 1); quality does not matter, only that processes differ.
fn jitter() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

async fn attempt(address: &Address, options: &Options) -> Result<Opened> {
    if address.scheme == Scheme::Inproc {
        return Ok(Opened::of_local(local::connect(address)?));
    }
    let mut failure = None;
    for socket in address.socket_addresses().await? {
        match TcpStream::connect(socket).await {
            Ok(stream) => {
                tcp::configure(&stream, options.tcp_timeout);
                let peer = Address::of_socket(address.scheme, socket);
                return open(stream, peer, Side::Client, options).await;
            }
            Err(error) => failure = Some(error),
        }
    }
    Err(Error::Io {
        doing: "connecting",
        source: failure.expect("a resolved host has addresses"),
    })
}

/// A transport that is ready for Dask's handshake.
pub(crate) struct Opened {
    reader: Reader,
    writer: Writer,
    local: Address,
    peer: Address,
}

impl Opened {
    pub(crate) fn of_local(end: local::End) -> Self {
        Self {
            reader: Reader::of_local(end.reader),
            writer: Writer::of_local(end.writer),
            local: end.local,
            peer: end.peer,
        }
    }

    pub(crate) async fn establish(self, options: &Options) -> Result<Connection> {
        Connection::establish(self.reader, self.writer, self.local, self.peer, options).await
    }
}

/// TLS and WebSocket on a connected socket.
pub(crate) async fn open(
    stream: TcpStream,
    peer: Address,
    side: Side,
    options: &Options,
) -> Result<Opened> {
    let local = stream.local_addr().map_err(|source| Error::Io {
        doing: "connecting",
        source,
    })?;
    let local = Address::of_socket(peer.scheme, local);
    let (reader, writer) = match peer.scheme {
        Scheme::Tcp => {
            let (reader, writer) = stream.into_split();
            (Reader::of_stream(reader), Writer::of_stream(writer))
        }
        Scheme::Tls => {
            let stream = encrypt(stream, &peer, side, options).await?;
            let (reader, writer) = tokio::io::split(stream);
            (Reader::of_stream(reader), Writer::of_stream(writer))
        }
        Scheme::Ws => ws::open(Box::new(stream), &peer, side, options).await?,
        Scheme::Wss => {
            let stream = encrypt(stream, &peer, side, options).await?;
            ws::open(stream, &peer, side, options).await?
        }
        Scheme::Inproc => unreachable!("there is no socket within a process"),
    };
    Ok(Opened {
        reader,
        writer,
        local,
        peer,
    })
}

async fn encrypt(
    stream: TcpStream,
    peer: &Address,
    side: Side,
    options: &Options,
) -> Result<Box<dyn ByteStream>> {
    let tls = options.tls.as_deref().ok_or_else(|| Error::Encryption {
        address: peer.to_string(),
        reason: "TLS needs certificates",
    })?;
    match side {
        Side::Client => Ok(Box::new(tls.connect(stream, peer).await?)),
        Side::Server => Ok(Box::new(tls.accept(stream, peer).await?)),
    }
}
