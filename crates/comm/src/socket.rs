//! Socket options, as distributed sets them.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Probes before a silent peer is given up (distributed's `set_tcp_timeout`).
const KEEPALIVE_PROBES: u32 = 10;

/// Sets no-delay, keep-alive and the user time-out: a peer that answers nothing
/// for `timeout` (`distributed.comm.timeouts.tcp`) is dead.
///
/// # Errors
///
/// When the socket refuses an option.
pub(crate) fn configure(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let seconds = timeout.as_secs().max(1);
    let idle = (seconds / 4).max(2);
    let interval = (seconds.saturating_sub(idle) / u64::from(KEEPALIVE_PROBES)).max(1);
    let idle = seconds.saturating_sub(interval * u64::from(KEEPALIVE_PROBES)).max(1);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(idle))
        .with_interval(Duration::from_secs(interval))
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(timeout))?;
    Ok(())
}
