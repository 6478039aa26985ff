//! TLS as Dask uses it.
//!
//! Both sides show a certificate and check the other's chain against the
//! configured authorities. Nobody checks names: a cluster's certificates are
//! shared by many hosts. OpenSSL accepts some certificates that rustls does
//! not, and clusters have them: a leaf that is itself the authority, and leafs
//! of X.509 version 1. Both are accepted here as well.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, InconsistentKeys,
    PeerMisbehaved, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use webpki::{EndEntityCert, KeyUsage, RawPublicKeyEntity};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate, X509Version};

use crate::{Address, Error, Result};

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// TLS 1.2
    V1_2,
    /// TLS 1.3
    V1_3,
}

/// What `distributed.comm.tls` holds for one role, files already read.
#[derive(Clone)]
pub struct TlsOptions {
    /// Certificates of the authorities, PEM.
    pub ca: Vec<u8>,
    /// Own certificate chain, PEM.
    pub cert: Vec<u8>,
    /// Own key, PEM; without it `cert` holds the key as well.
    pub key: Option<Vec<u8>>,
    /// OpenSSL's names of cipher suites up to TLS 1.2, joined by colons.
    pub ciphers: Option<String>,
    /// Lowest accepted version.
    pub min_version: Version,
    /// Highest accepted version.
    pub max_version: Version,
}

impl fmt::Debug for TlsOptions {
    /// Says nothing about the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("ciphers", &self.ciphers)
            .field("min_version", &self.min_version)
            .field("max_version", &self.max_version)
            .finish_non_exhaustive()
    }
}

/// The PEM text of a configuration value: itself if it has a line break (as in
/// stock), else the content of the file that it names.
///
/// # Errors
/// A file that cannot be read.
pub fn load_pem(value: &str) -> Result<Vec<u8>> {
    if value.contains('\n') {
        return Ok(value.as_bytes().to_vec());
    }
    std::fs::read(value).map_err(|error| invalid(format!("cannot read `{value}`: {error}")))
}

/// Certificates and keys of this process, ready for use on either side.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    /// What a server is told to be looked for.
    server_name: Option<ServerName<'static>>,
    client_config: Arc<ClientConfig>,
    acceptor: TlsAcceptor,
    server_config: Arc<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Checks and prepares the options.
    ///
    /// # Errors
    /// Malformed PEM, a key that does not belong to the certificate, cipher
    /// names that rustls does not know.
    pub fn new(options: &TlsOptions) -> Result<Self> {
        let provider = Arc::new(provider(options.ciphers.as_deref())?);
        let versions: Vec<&'static SupportedProtocolVersion> = [
            (Version::V1_2, &rustls::version::TLS12),
            (Version::V1_3, &rustls::version::TLS13),
        ]
        .into_iter()
        .filter(|(version, _)| (options.min_version..=options.max_version).contains(version))
        .map(|(_, supported)| supported)
        .collect();
        let verifier = Arc::new(ChainVerifier::new(
            &options.ca,
            provider.signature_verification_algorithms,
        )?);
        let own = Arc::new(own_key(options, &provider)?);

        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .map_err(|error| invalid(error.to_string()))?
            .with_client_cert_verifier(Arc::clone(&verifier) as Arc<dyn ClientCertVerifier>)
            .with_cert_resolver(Arc::clone(&own) as Arc<dyn rustls::server::ResolvesServerCert>);
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|error| invalid(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(own);
        // Stock sends no name unless told to, and a resumed session would skip
        // the check of a certificate that has expired meanwhile.
        client.enable_sni = false;
        client.resumption = Resumption::disabled();
        let server = Arc::new(server);
        let client = Arc::new(client);
        Ok(Self {
            connector: TlsConnector::from(Arc::clone(&client)),
            server_name: None,
            client_config: client,
            acceptor: TlsAcceptor::from(Arc::clone(&server)),
            server_config: server,
        })
    }

    /// The same, telling servers the name by which they are looked for (SNI), for a
    /// proxy that finds its way by it. The name is not checked against certificates,
    /// as ever.
    ///
    /// # Errors
    /// A text that is no host name.
    pub fn with_server_name(mut self, name: &str) -> Result<Self> {
        let server_name = ServerName::try_from(name.to_owned())
            .map_err(|_| invalid(format!("`{name}` is no host name")))?;
        let mut client = ClientConfig::clone(&self.client_config);
        client.enable_sni = true;
        self.client_config = Arc::new(client);
        self.connector = TlsConnector::from(Arc::clone(&self.client_config));
        self.server_name = Some(server_name);
        Ok(self)
    }

    /// The server side alone, for an HTTPS server beside.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server_config)
    }

    pub(crate) async fn connect(
        &self,
        stream: TcpStream,
        peer: &Address,
    ) -> Result<TlsStream<TcpStream>> {
        let ip = stream.peer_addr().map(|address| address.ip());
        let ip = ip.map_err(|source| Error::Io {
            doing: "connecting",
            source,
        })?;
        let name = self.server_name.clone();
        let name = name.unwrap_or_else(|| ServerName::from(ip));
        let connected = self.connector.connect(name, stream).await;
        connected
            .map(TlsStream::from)
            .map_err(|source| failure(source, peer))
    }

    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
        peer: &Address,
    ) -> Result<TlsStream<TcpStream>> {
        let accepted = self.acceptor.accept(stream).await;
        accepted
            .map(TlsStream::from)
            .map_err(|source| failure(source, peer))
    }
}

/// True if TLS itself, not the network below it, caused the error.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<rustls::Error>())
}

fn failure(source: io::Error, peer: &Address) -> Error {
    if is_refusal(&source) {
        return Error::Tls {
            peer: peer.to_string(),
            source,
        };
    }
    Error::Io {
        doing: "negotiating TLS",
        source,
    }
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::TlsConfig {
        reason: reason.into(),
    }
}

/// OpenSSL's names of the suites of TLS 1.2 that rustls has.
const SUITES: [(&str, rustls::CipherSuite); 6] = {
    use rustls::CipherSuite as Suite;
    [
        (
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        ),
        (
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        ),
        (
            "ECDHE-ECDSA-CHACHA20-POLY1305",
            Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ),
        (
            "ECDHE-RSA-AES128-GCM-SHA256",
            Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ),
        (
            "ECDHE-RSA-AES256-GCM-SHA384",
            Suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ),
        (
            "ECDHE-RSA-CHACHA20-POLY1305",
            Suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ),
    ]
};

/// Keeps the named suites of TLS 1.2; OpenSSL's string does not touch those of 1.3.
fn provider(ciphers: Option<&str>) -> Result<CryptoProvider> {
    let mut provider = ring::default_provider();
    let Some(ciphers) = ciphers else {
        return Ok(provider);
    };
    let mut named = Vec::new();
    for name in ciphers
        .split([':', ',', ' '])
        .filter(|name| !name.is_empty())
    {
        let known = SUITES.iter().find(|(openssl, _)| *openssl == name);
        let (_, suite) = known.ok_or_else(|| {
            let names: Vec<&str> = SUITES.iter().map(|(name, _)| *name).collect();
            invalid(format!(
                "cipher `{name}` is not available, choose from {}",
                names.join(", ")
            ))
        })?;
        named.push(*suite);
    }
    provider
        .cipher_suites
        .retain(|suite| suite.tls13().is_some() || named.contains(&suite.suite()));
    Ok(provider)
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| invalid(format!("malformed {what} certificate: {error}")))?;
    if found.is_empty() {
        return Err(invalid(format!("no {what} certificate in the PEM text")));
    }
    Ok(found)
}

fn own_key(options: &TlsOptions, provider: &CryptoProvider) -> Result<SingleCertAndKey> {
    let chain = certificates(&options.cert, "own")?;
    let key = options.key.as_deref().unwrap_or(&options.cert);
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| invalid(format!("malformed private key: {error}")))?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| invalid(format!("unusable private key: {error}")))?;
    let own = CertifiedKey::new(chain, key);
    // Certificates of version 1 cannot be compared; every other result is either
    // a match or not known to be a mismatch.
    if let Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = own.keys_match() {
        return Err(invalid(
            "the private key does not belong to the certificate",
        ));
    }
    Ok(SingleCertAndKey::from(own))
}

/// Verifies the chain of a peer's certificate and not its name.
#[derive(Debug)]
struct ChainVerifier {
    anchors: Vec<CertificateDer<'static>>,
    trust: Vec<TrustAnchor<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ChainVerifier {
    fn new(ca: &[u8], algorithms: WebPkiSupportedAlgorithms) -> Result<Self> {
        let anchors = certificates(ca, "authority")?;
        let mut trust = Vec::new();
        for anchor in &anchors {
            let anchor = webpki::anchor_from_trusted_cert(anchor)
                .map_err(|error| invalid(format!("unusable authority certificate: {error}")))?;
            trust.push(anchor.to_owned());
        }
        Ok(Self {
            anchors,
            trust,
            algorithms,
        })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> std::result::Result<(), rustls::Error> {
        // `Security.temporary()` and `openssl req -x509` make such leafs; webpki
        // refuses an authority in the place of a leaf.
        if self.anchors.iter().any(|anchor| anchor == leaf) {
            let certificate = parse(leaf)?;
            return check_dates(&certificate, now);
        }
        match EndEntityCert::try_from(leaf) {
            Ok(certificate) => certificate
                .verify_for_usage(
                    self.algorithms.all,
                    &self.trust,
                    intermediates,
                    now,
                    usage,
                    None,
                    None,
                )
                .map(|_| ())
                .map_err(refusal),
            Err(webpki::Error::UnsupportedCertVersion) => self.verify_version_1(leaf, now),
            Err(error) => Err(refusal(error)),
        }
    }

    /// A version 1 certificate has no extensions: no usage to check, and nothing
    /// that would let it be issued by anybody but an authority itself.
    fn verify_version_1(
        &self,
        leaf: &CertificateDer<'_>,
        now: UnixTime,
    ) -> std::result::Result<(), rustls::Error> {
        let certificate = parse(leaf)?;
        if certificate.version() != X509Version::V1 {
            return Err(CertificateError::BadEncoding.into());
        }
        check_dates(&certificate, now)?;
        for anchor in &self.anchors {
            let anchor = parse(anchor)?;
            if anchor.subject().as_raw() != certificate.issuer().as_raw() {
                continue;
            }
            if certificate
                .verify_signature(Some(anchor.public_key()))
                .is_ok()
            {
                return check_dates(&anchor, now);
            }
        }
        Err(CertificateError::UnknownIssuer.into())
    }

    fn verify_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
        version: Version,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let version_1 = matches!(
            EndEntityCert::try_from(leaf),
            Err(webpki::Error::UnsupportedCertVersion)
        );
        match (version, version_1) {
            (Version::V1_2, false) => {
                rustls::crypto::verify_tls12_signature(message, leaf, signed, &self.algorithms)
            }
            (Version::V1_3, false) => {
                rustls::crypto::verify_tls13_signature(message, leaf, signed, &self.algorithms)
            }
            (Version::V1_2, true) => self.verify_with_key(message, &public_key(leaf)?, signed),
            (Version::V1_3, true) => rustls::crypto::verify_tls13_signature_with_raw_key(
                message,
                &public_key(leaf)?,
                signed,
                &self.algorithms,
            ),
        }
    }

    /// What `verify_tls12_signature` does, for a key without a certificate that
    /// webpki can read.
    fn verify_with_key(
        &self,
        message: &[u8],
        key: &SubjectPublicKeyInfoDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let entity = RawPublicKeyEntity::try_from(key).map_err(refusal)?;
        let candidates = self
            .algorithms
            .mapping
            .iter()
            .find(|(scheme, _)| *scheme == signed.scheme)
            .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        for algorithm in candidates.1 {
            match entity.verify_signature(*algorithm, message, signed.signature()) {
                Ok(()) => return Ok(HandshakeSignatureValid::assertion()),
                // The scheme leaves the curve open in TLS 1.2; the next candidate may fit.
                Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
                Err(error) => return Err(refusal(error)),
            }
        }
        Err(CertificateError::BadSignature.into())
    }
}

fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
) -> std::result::Result<X509Certificate<'a>, rustls::Error> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) | Err(_) => Err(CertificateError::BadEncoding.into()),
    }
}

fn public_key(
    certificate: &CertificateDer<'_>,
) -> std::result::Result<SubjectPublicKeyInfoDer<'static>, rustls::Error> {
    let key = parse(certificate)?.public_key().raw.to_vec();
    Ok(SubjectPublicKeyInfoDer::from(key))
}

fn check_dates(
    certificate: &X509Certificate<'_>,
    now: UnixTime,
) -> std::result::Result<(), rustls::Error> {
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let now = ASN1Time::from_timestamp(seconds).map_err(|_| CertificateError::Expired)?;
    let validity = certificate.validity();
    if now < validity.not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "webpki's enum grows, and rustls has names for few of its errors"
)]
fn refusal(error: webpki::Error) -> rustls::Error {
    use webpki::Error as E;
    match error {
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        E::CertExpired { .. } => CertificateError::Expired,
        E::CertNotValidYet { .. } => CertificateError::NotValidYet,
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        E::BadDer | E::BadDerTime => CertificateError::BadEncoding,
        other => CertificateError::Other(rustls::OtherError(Arc::new(other))),
    }
    .into()
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, cert, dss, Version::V1_2)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, cert, dss, Version::V1_3)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for ChainVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, cert, dss, Version::V1_2)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, cert, dss, Version::V1_3)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
