//! Sockets of the HTTP server, plain or with TLS.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Handshakes in progress, and finished connections not yet taken.
const PENDING_COUNT_MAX: usize = 128;

/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Certificate and key of an HTTPS server.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<rustls::ServerConfig>,
}

/// Why there is no HTTP server.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Neither the port asked for nor any other could be bound.
    #[error("cannot listen for HTTP on `{address}`")]
    Listen {
        /// Host and port.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A PEM file cannot be read.
    #[error("cannot read the {what} of the HTTPS server from `{}`", path.display())]
    Pem {
        /// `certificate` or `key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not go together.
    #[error("cannot use certificate and key of the HTTPS server")]
    Tls(#[source] rustls::Error),
}

/// Listening sockets that nobody serves yet.
#[derive(Debug)]
pub struct Bound {
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    /// Warnings for the log: ports that were taken and what is used instead.
    pub warnings: Vec<String>,
}

/// Binds every address; a port that is taken is replaced by a free one, with a
/// warning. No host means every interface.
///
/// # Errors
///
/// When an address cannot be bound with any port.
pub async fn bind(addresses: &[(Option<String>, u16)]) -> Result<Bound, BindError> {
    let mut bound = Bound {
        listeners: Vec::new(),
        addresses: Vec::new(),
        warnings: Vec::new(),
    };
    for (host, port) in addresses {
        let host = host.as_deref().unwrap_or("0.0.0.0");
        let listener = match TcpListener::bind((host, *port)).await {
            Ok(listener) => Ok(listener),
            Err(_) if *port != 0 => TcpListener::bind((host, 0)).await,
            Err(error) => Err(error),
        };
        let failed = |source| BindError::Listen {
            address: format!("{host}:{port}"),
            source,
        };
        let listener = listener.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if *port != 0 && address.port() != *port {
            bound.warnings.push(format!(
                "Port {port} is already in use.\nPerhaps you already have a cluster running?\n\
                 Hosting the HTTP server on port {} instead",
                address.port()
            ));
        }
        bound.listeners.push(listener);
        bound.addresses.push(address);
    }
    Ok(bound)
}

impl Bound {
    /// Addresses, in the order in which they were asked for.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Port of the first address, the one that is announced.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.addresses.first().map(SocketAddr::port)
    }

    /// Serves `router` on every socket until `shutdown` resolves; connections
    /// that are open then are cut when the future is dropped.
    pub async fn serve(
        self,
        router: Router,
        tls: Option<Tls>,
        shutdown: impl Future<Output = ()> + Send,
    ) {
        let mut servers = JoinSet::new();
        for listener in self.listeners {
            let router = router.clone();
            match &tls {
                Some(tls) => {
                    let listener = TlsListener::new(listener, tls.clone());
                    servers.spawn(async move { axum::serve(listener, router).await });
                }
                None => {
                    servers.spawn(async move { axum::serve(listener, router).await });
                }
            }
        }
        shutdown.await;
        servers.shutdown().await;
    }
}

impl Tls {
    /// Reads `distributed.scheduler.dashboard.tls`. Without a key file the key is
    /// looked for behind the certificate.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or the two do not go together.
    pub fn from_files(cert: &Path, key: Option<&Path>) -> Result<Self, BindError> {
        let unreadable = |what, path: &Path| {
            let path = path.to_owned();
            move |source| BindError::Pem { what, path, source }
        };
        let chain = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(unreadable("certificate", cert))?;
        let key_path = key.unwrap_or(cert);
        let key = PrivateKeyDer::from_pem_file(key_path).map_err(unreadable("key", key_path))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(BindError::Tls)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(BindError::Tls)?;
        Ok(Self {
            config: Arc::new(config),
        })
    }
}

/// Accepts connections whose handshake is done. Handshakes run side by side, so
/// that a silent peer holds up nobody.
struct TlsListener {
    address: io::Result<SocketAddr>,
    accepted: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    acceptor: JoinHandle<()>,
}

impl TlsListener {
    fn new(listener: TcpListener, tls: Tls) -> Self {
        let address = listener.local_addr();
        let (sender, accepted) = mpsc::channel(PENDING_COUNT_MAX);
        let acceptor = tokio::spawn(accept_tls(listener, TlsAcceptor::from(tls.config), sender));
        Self {
            address,
            accepted,
            acceptor,
        }
    }
}

async fn accept_tls(
    mut listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.len() >= PENDING_COUNT_MAX {
            handshakes.join_next().await;
        }
        while handshakes.try_join_next().is_some() {}
        let (stream, peer) = Listener::accept(&mut listener).await;
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        handshakes.spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
            match handshake.await {
                // The receiver is gone only when the server is being stopped.
                Ok(Ok(stream)) => drop(sender.send((stream, peer)).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            // The accepting task never ends before this listener is dropped.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.address {
            Ok(address) => Ok(*address),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        }
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}
