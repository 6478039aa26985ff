//! TCP sockets with Dask's options.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

/// Opens a listening socket.
pub(crate) fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
}

/// Sets no-delay, keep-alive and the user timeout so that a peer which fell
/// silent is noticed after `timeout`. As stock, a system that refuses is no error.
pub(crate) fn configure(stream: &TcpStream, timeout: Duration) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    if let Err(error) = set_timeout(stream, timeout) {
        tracing::warn!(%error, "cannot set timeout on TCP stream");
    }
}

/// `distributed.comm.tcp.set_tcp_timeout`: ten probes fill the time after `idle`.
fn set_timeout(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    const PROBES: u64 = 10;
    let seconds = timeout.as_secs();
    let idle_min = (seconds / 4).max(2);
    let interval = (seconds.saturating_sub(idle_min) / PROBES).max(1);
    let idle = seconds.saturating_sub(interval * PROBES).max(1);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(idle))
        .with_interval(Duration::from_secs(interval));
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    let keepalive = keepalive.with_retries(PROBES as u32);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(timeout))?;
    Ok(())
}
