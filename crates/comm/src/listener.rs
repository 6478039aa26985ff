//! Accepting connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::connect::{Opened, Side, open};
use crate::local::{self, Listening};
use crate::{Address, Connection, Error, Options, Result, Scheme, tcp};

/// Accepts connections on one address.
///
/// Dropping it stops listening; connections live on.
#[derive(Debug)]
pub struct Listener {
    place: Place,
    address: Address,
    options: Options,
}

#[derive(Debug)]
enum Place {
    Sockets(Vec<TcpListener>),
    Local(Listening),
}

impl Listener {
    /// Begins to listen. An empty host means every interface, IPv4 and IPv6.
    ///
    /// # Errors
    /// An address in use or unknown, or one whose encryption does not fit the options.
    pub async fn bind(address: &Address, options: Options) -> Result<Self> {
        check_encryption(address, &options)?;
        let listen = |source| Error::Listen {
            address: address.to_string(),
            source,
        };
        if address.scheme == Scheme::Inproc {
            return Ok(Self {
                place: Place::Local(local::listen(address, options.backlog).map_err(listen)?),
                address: address.clone(),
                options,
            });
        }
        let mut sockets = Vec::new();
        let local = if address.host.is_empty() {
            let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port);
            let v4 = tcp::listen(any, options.backlog).map_err(listen)?;
            let local = v4.local_addr().map_err(listen)?;
            sockets.push(v4);
            let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), local.port());
            // Hosts without IPv6 are common; the port may also be taken there.
            sockets.extend(tcp::listen(any, options.backlog).ok());
            local
        } else {
            let socket = address.socket_addresses().await?[0];
            let socket = tcp::listen(socket, options.backlog).map_err(listen)?;
            let local = socket.local_addr().map_err(listen)?;
            sockets.push(socket);
            local
        };
        Ok(Self {
            place: Place::Sockets(sockets),
            address: Address::of_socket(address.scheme, local),
            options,
        })
    }

    /// Where this listens, with the real port.
    pub fn listen_address(&self) -> &Address {
        &self.address
    }

    /// What others connect to: a wildcard becomes the host's own IP.
    pub fn contact_address(&self) -> Address {
        self.address.contact()
    }

    /// The next connection, before any handshake. Cancel safe.
    ///
    /// When the process is out of descriptors this waits and tries again.
    ///
    /// # Errors
    /// If the listening socket itself fails.
    pub async fn accept(&self) -> Result<Incoming> {
        /// Chosen: long enough not to spin, short beside a connect timeout.
        const PAUSE: Duration = Duration::from_millis(50);
        let sockets = match &self.place {
            Place::Sockets(sockets) => sockets.as_slice(),
            Place::Local(listening) => {
                let end = listening.accept().await;
                return Ok(Incoming {
                    peer: end.peer.clone(),
                    transport: Transport::Local(end),
                    options: self.options.clone(),
                });
            }
        };
        loop {
            let accepted = match sockets {
                [v4, v6] => tokio::select! {
                    accepted = v4.accept() => accepted,
                    accepted = v6.accept() => accepted,
                },
                sockets => sockets[0].accept().await,
            };
            match accepted {
                Ok((stream, peer)) => {
                    tcp::configure(&stream, self.options.tcp_timeout);
                    return Ok(Incoming {
                        transport: Transport::Socket(stream),
                        peer: Address::of_socket(self.address.scheme, peer),
                        options: self.options.clone(),
                    });
                }
                Err(error) if is_fatal(&error) => {
                    return Err(Error::Listen {
                        address: self.address.to_string(),
                        source: error,
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Everything but a broken socket passes: out of descriptors or memory, or a
/// peer that left before it was accepted.
fn is_fatal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::NotConnected | io::ErrorKind::Unsupported
    )
}

pub(crate) fn check_encryption(address: &Address, options: &Options) -> Result<()> {
    let reason = match (address.scheme.is_encrypted(), &options.tls) {
        (true, None) => "TLS needs certificates",
        // Nobody else can listen in.
        (false, _) if address.scheme == Scheme::Inproc => return Ok(()),
        (false, _) if options.require_encryption => "encryption is required by the configuration",
        _ => return Ok(()),
    };
    Err(Error::Encryption {
        address: address.to_string(),
        reason,
    })
}

#[derive(Debug)]
enum Transport {
    Socket(TcpStream),
    Local(local::End),
}

/// An accepted connection. Establish it in a task of its own: a slow peer must not
/// hold up the others.
#[derive(Debug)]
pub struct Incoming {
    transport: Transport,
    peer: Address,
    options: Options,
}

impl Incoming {
    /// Who is connecting.
    pub fn peer(&self) -> &Address {
        &self.peer
    }

    /// TLS, WebSocket and Dask's handshake, within `handshake_timeout`.
    ///
    /// # Errors
    /// A peer that is too slow, refused, malformed or gone.
    pub async fn establish(self) -> Result<Connection> {
        let timeout = self.options.handshake_timeout;
        let peer = self.peer.to_string();
        let options = &self.options;
        let established = async {
            let opened = match self.transport {
                Transport::Socket(stream) => open(stream, self.peer, Side::Server, options).await?,
                Transport::Local(end) => Opened::of_local(end),
            };
            opened.establish(options).await
        };
        match tokio::time::timeout(timeout, established).await {
            Ok(connection) => connection,
            Err(_) => Err(Error::HandshakeTimeout { peer, timeout }),
        }
    }
}
