//! Addresses such as `tcp://10.0.0.3:8786`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::{Error, Result};

/// A transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain TCP.
    Tcp,
    /// TCP inside TLS.
    Tls,
    /// WebSocket.
    Ws,
    /// WebSocket inside TLS.
    Wss,
    /// Channels within this process.
    Inproc,
}

impl Scheme {
    /// The part before `://`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Inproc => "inproc",
        }
    }

    /// By its name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Tls, Self::Ws, Self::Wss, Self::Inproc]
            .into_iter()
            .find(|scheme| scheme.name() == name)
    }

    /// TLS inside?
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }
}

/// Where to connect or listen. Displayed in Dask's form, IPv6 in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Transport.
    pub scheme: Scheme,
    /// Host name or IP without brackets; empty is every interface. Of `inproc` all that
    /// follows the scheme, such as `10.0.0.3/4711/1`.
    pub host: String,
    /// Port; 0 lets the system choose when listening. `inproc` has none.
    pub port: u16,
}

impl Address {
    /// Parses `scheme://host:port`, `host:port` or `:port`; without a scheme
    /// `default_scheme` (`distributed.comm.default-scheme`) holds.
    ///
    /// # Errors
    /// An unknown scheme (`ucx` among them) or a malformed port.
    pub fn parse(text: &str, default_scheme: Scheme) -> Result<Self> {
        Self::parse_with_port(text, default_scheme, None)
    }

    /// As [`Self::parse`], but the port may be left out.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_with_port(
        text: &str,
        default_scheme: Scheme,
        default_port: Option<u16>,
    ) -> Result<Self> {
        let error = |reason| Error::Address {
            address: text.to_owned(),
            reason,
        };
        let (scheme, location) = match text.split_once("://") {
            None => (default_scheme, text),
            Some((name, location)) => {
                let scheme = Scheme::from_name(name).ok_or_else(|| {
                    error(match name {
                        "ucx" => "ucx is not supported",
                        _ => "unknown scheme, expected tcp, tls, ws, wss or inproc",
                    })
                })?;
                (scheme, location)
            }
        };
        let location = match scheme {
            Scheme::Ws | Scheme::Wss => location.trim_end_matches('/'),
            Scheme::Tcp | Scheme::Tls => location,
            Scheme::Inproc if location.is_empty() => return Err(error("missing name")),
            Scheme::Inproc => {
                return Ok(Self {
                    scheme,
                    host: location.to_owned(),
                    port: 0,
                });
            }
        };
        let (host, port) = if let Some(rest) = location.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(|| error("missing `]`"))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(error("text after `]`")),
            }
        } else {
            match location.rsplit_once(':') {
                Some((host, _)) if host.contains(':') => {
                    return Err(error("an IPv6 address needs brackets"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (location, None),
            }
        };
        let port = match port {
            Some(port) => port.parse().map_err(|_| error("malformed port"))?,
            None => default_port.ok_or_else(|| error("missing port"))?,
        };
        Ok(Self {
            scheme,
            host: host.to_owned(),
            port,
        })
    }

    /// Of a socket.
    pub fn of_socket(scheme: Scheme, socket: SocketAddr) -> Self {
        Self {
            scheme,
            host: socket.ip().to_canonical().to_string(),
            port: socket.port(),
        }
    }

    /// The host as an IP, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether both are on one host, as far as addresses tell.
    pub fn is_same_host(&self, other: &Self) -> bool {
        match (self.scheme, other.scheme) {
            (Scheme::Inproc, Scheme::Inproc) => true,
            _ => self.host == other.host,
        }
    }

    /// True for every interface (`0.0.0.0`, `::` or empty).
    pub fn is_wildcard(&self) -> bool {
        self.host.is_empty() || self.ip().is_some_and(|ip| ip.is_unspecified())
    }

    /// Looks the host up; every worker is known by its resolved address.
    ///
    /// # Errors
    /// An unknown host.
    pub async fn resolve(&self) -> Result<Self> {
        if self.ip().is_some() || self.scheme == Scheme::Inproc {
            return Ok(self.clone());
        }
        let socket = self.socket_addresses().await?[0];
        Ok(Self::of_socket(self.scheme, socket))
    }

    /// All socket addresses of the host, IPv4 first; never empty.
    pub(crate) async fn socket_addresses(&self) -> Result<Vec<SocketAddr>> {
        if let Some(ip) = self.ip() {
            return Ok(vec![SocketAddr::new(ip, self.port)]);
        }
        let resolve = |source| Error::Resolve {
            host: self.host.clone(),
            source,
        };
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let mut found: Vec<SocketAddr> = found.map_err(resolve)?.collect();
        if found.is_empty() {
            return Err(resolve(std::io::ErrorKind::NotFound.into()));
        }
        found.sort_by_key(SocketAddr::is_ipv6);
        Ok(found)
    }

    /// With the host's own IP in place of a wildcard: what others connect to.
    #[must_use]
    pub fn contact(&self) -> Self {
        if !self.is_wildcard() {
            return self.clone();
        }
        let ip = match self.ip() {
            Some(IpAddr::V6(_)) => own_ip(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            Some(IpAddr::V4(_)) | None => own_ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        };
        Self {
            scheme: self.scheme,
            host: ip.to_string(),
            port: self.port,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.scheme.name();
        if self.scheme == Scheme::Inproc {
            write!(f, "{name}://{}", self.host)
        } else if self.host.contains(':') {
            write!(f, "{name}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{name}://{}:{}", self.host, self.port)
        }
    }
}

/// The IP of the interface that leads outside, as `distributed.utils.get_ip`;
/// loopback without one. Sends nothing: connecting a UDP socket only chooses a route.
fn own_ip(wildcard: IpAddr) -> IpAddr {
    let (outside, loopback) = match wildcard {
        IpAddr::V4(_) => (
            SocketAddr::from(([8, 8, 8, 8], 80)),
            IpAddr::V4(Ipv4Addr::LOCALHOST),
        ),
        IpAddr::V6(_) => (
            SocketAddr::from(([0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888], 80)),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ),
    };
    let routed = UdpSocket::bind((wildcard, 0)).and_then(|socket| {
        socket.connect(outside)?;
        socket.local_addr()
    });
    routed.map_or(loopback, |address| address.ip())
}
