//! What connections have in common.

use std::sync::Arc;
use std::time::Duration;

use oxidask_wire::frame::Limits;
use oxidask_wire::handshake::Handshake;

use crate::tls::Tls;

/// Settings of connections and listeners; cheap to clone.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is accepted from a peer after its handshake.
    pub limits: Limits,
    /// What is said of this side. Compression is left out between processes of
    /// one host, as stock does.
    pub handshake: Handshake,
    /// Certificates; without them `tls` and `wss` are errors.
    pub tls: Option<Arc<Tls>>,
    /// Refuse `tcp` and `ws` (`distributed.comm.require-encryption`).
    pub require_encryption: bool,
    /// After how long a silent TCP peer counts as dead (`distributed.comm.timeouts.tcp`).
    pub tcp_timeout: Duration,
    /// Pending connections of a listener (`distributed.comm.socket-backlog`).
    pub backlog: u32,
    /// Time that a peer has for TLS, WebSocket and Dask's handshake together
    /// after it connected to us. Chosen: the default connect timeout, after
    /// which a stock peer gives up as well.
    pub handshake_timeout: Duration,
    /// Longest WebSocket frame. The library reserves a frame's whole length
    /// when it learns of it, hence a limit of its own.
    pub websocket_frame_nbytes_max: usize,
}

impl Default for Options {
    /// Dask's defaults.
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            handshake: Handshake::new([3, 12, 0]),
            tls: None,
            require_encryption: false,
            tcp_timeout: Duration::from_secs(30),
            backlog: 2048,
            handshake_timeout: Duration::from_secs(30),
            websocket_frame_nbytes_max: 1 << 30,
        }
    }
}
