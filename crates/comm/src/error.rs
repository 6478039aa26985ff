//! Why a connection failed.

use std::io;
use std::time::Duration;

/// A failure of a connection; the connection is unusable afterwards.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no address.
    #[error("`{address}` is no address: {reason}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The host name is unknown.
    #[error("cannot resolve host `{host}`")]
    Resolve {
        /// The host.
        host: String,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// No connection in the time allowed.
    #[error("timed out trying to connect to `{address}` after {} s", timeout.as_secs_f64())]
    ConnectTimeout {
        /// Where to.
        address: String,
        /// Time allowed.
        timeout: Duration,
        /// Why the last attempt failed, if it did before the time was over.
        #[source]
        source: Option<Box<Error>>,
    },
    /// The peer did not finish its handshake.
    #[error("the peer `{peer}` did not finish its handshake within {} s", timeout.as_secs_f64())]
    HandshakeTimeout {
        /// The peer.
        peer: String,
        /// Time allowed.
        timeout: Duration,
    },
    /// Cannot listen.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Sending or receiving failed.
    #[error("connection failed while {doing}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The connection is closed, by whichever side.
    #[error("connection closed{}", if *.in_message { " in the middle of a message" } else { "" })]
    Closed {
        /// A message was under way.
        in_message: bool,
    },
    /// The peer sent what is not Dask's protocol.
    #[error("malformed message")]
    Malformed(#[from] oxidask_wire::Error),
    /// The peer reads more slowly than messages for it arise.
    #[error("{nbytes} bytes wait for a slow peer, more than the limit {limit}")]
    SlowPeer {
        /// Bytes queued.
        nbytes: usize,
        /// Most bytes queued.
        limit: usize,
    },
    /// The WebSocket protocol was violated.
    #[error("websocket failure while {doing}")]
    WebSocket {
        /// What was attempted.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// Certificates, keys, ciphers or protocol versions that cannot be used.
    #[error("invalid TLS configuration: {reason}")]
    TlsConfig {
        /// What is wrong.
        reason: String,
    },
    /// TLS refused the peer or was refused by it. Trying again is no use.
    #[error("TLS handshake with `{peer}` failed")]
    Tls {
        /// The peer.
        peer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An encrypted transport without certificates, or the other way round.
    #[error("`{address}` cannot be used: {reason}")]
    Encryption {
        /// The address.
        address: String,
        /// What is missing.
        reason: &'static str,
    },
    /// The peer's handler raised; the text is `repr` of its exception.
    #[error("{text}")]
    Remote {
        /// `exception_text` of the answer.
        text: String,
        /// The whole answer.
        reply: Box<oxidask_wire::Value>,
    },
}

impl Error {
    /// The peer went away, as opposed to misbehaving or answering with an error.
    pub fn is_closed(&self) -> bool {
        matches!(
            self,
            Self::Closed { .. } | Self::Io { .. } | Self::WebSocket { .. }
        )
    }
}

/// The result of using a connection.
pub type Result<T> = std::result::Result<T, Error>;
