//! Which certificates are accepted, and which are not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use oxidask_comm::tls::{Tls, TlsOptions, Version, load_pem};
use oxidask_comm::{Address, Connection, Error, Listener, Options, Result, Scheme, connect};
use oxidask_wire::Value;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

/// A certificate chain and its key, PEM.
#[derive(Clone)]
struct Identity {
    cert: String,
    key: String,
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority {
        pem,
        issuer: Issuer::new(params, key),
    }
}

fn leaf() -> CertificateParams {
    let mut params = CertificateParams::new(["dask-internal".to_owned()]).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, "dask-internal");
    params
}

fn issued(authority: &Authority, params: &CertificateParams) -> Identity {
    let key = KeyPair::generate().unwrap();
    Identity {
        cert: params.signed_by(&key, &authority.issuer).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

fn self_signed(params: &CertificateParams) -> Identity {
    let key = KeyPair::generate().unwrap();
    Identity {
        cert: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

fn data(name: &str) -> String {
    let path = format!("{}/tests/data/{name}.pem", env!("CARGO_MANIFEST_DIR"));
    String::from_utf8(load_pem(&path).unwrap()).unwrap()
}

fn stored(name: &str) -> Identity {
    Identity {
        cert: data(name),
        key: data(&format!("{name}-key")),
    }
}

fn tls_options(ca: &str, identity: &Identity) -> TlsOptions {
    TlsOptions {
        ca: ca.as_bytes().to_vec(),
        cert: identity.cert.as_bytes().to_vec(),
        key: Some(identity.key.as_bytes().to_vec()),
        ciphers: None,
        min_version: Version::V1_2,
        max_version: Version::V1_3,
    }
}

fn options(tls: &TlsOptions) -> Options {
    Options {
        tls: Some(Arc::new(Tls::new(tls).unwrap())),
        require_encryption: true,
        ..Options::default()
    }
}

async fn handshake(
    scheme: Scheme,
    server: &TlsOptions,
    client: &TlsOptions,
) -> (Result<Connection>, Result<Connection>) {
    let address = Address {
        scheme,
        host: "127.0.0.1".to_owned(),
        port: 0,
    };
    let listener = Listener::bind(&address, options(server)).await.unwrap();
    let client = options(client);
    // A refused client must not be tried again, so the server accepts once.
    tokio::join!(
        async { listener.accept().await.unwrap().establish().await },
        connect(listener.listen_address(), &client, Duration::from_secs(20)),
    )
}

async fn accepted(server: &TlsOptions, client: &TlsOptions) {
    for version in [Version::V1_2, Version::V1_3] {
        let only = |options: &TlsOptions| TlsOptions {
            min_version: version,
            max_version: version,
            ..options.clone()
        };
        let (server, client) = handshake(Scheme::Tls, &only(server), &only(client)).await;
        let (mut server, mut client) = (server.unwrap(), client.unwrap());
        client.write_value(&"hello".into()).await.unwrap();
        assert_eq!(server.read_value().await.unwrap(), Value::from("hello"));
        server.writer.close().await.unwrap();
        assert!(matches!(
            client.read().await,
            Err(Error::Closed { in_message: false })
        ));
    }
}

async fn refused(server: &TlsOptions, client: &TlsOptions) {
    let (server, client) = handshake(Scheme::Tls, server, client).await;
    assert!(server.is_err(), "the server accepted");
    let error = client.unwrap_err();
    let fatal = matches!(error, Error::Tls { .. } | Error::Io { .. });
    assert!(fatal, "{error:?}");
}

#[tokio::test]
async fn a_leaf_that_is_the_authority() {
    // As `Security.temporary()` makes them, and as `openssl req -x509` does.
    let mut with_constraints = leaf();
    with_constraints.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    for params in [leaf(), with_constraints] {
        let identity = self_signed(&params);
        let tls = tls_options(&identity.cert, &identity);
        accepted(&tls, &tls).await;
        let other = self_signed(&params);
        let foreign = tls_options(&other.cert, &other);
        refused(&tls, &foreign).await;
        refused(
            &tls,
            &TlsOptions {
                ca: tls.ca.clone(),
                ..foreign
            },
        )
        .await;
    }
}

#[tokio::test]
async fn leafs_of_an_authority() {
    let authority = authority("ca");
    let (server, client) = (issued(&authority, &leaf()), issued(&authority, &leaf()));
    let server = tls_options(&authority.pem, &server);
    accepted(&server, &tls_options(&authority.pem, &client)).await;

    let stranger = self_signed(&leaf());
    refused(&server, &tls_options(&authority.pem, &stranger)).await;
    refused(&tls_options(&authority.pem, &stranger), &server).await;
    let mut wrong_use = leaf();
    wrong_use.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let wrong_use = issued(&authority, &wrong_use);
    refused(&server, &tls_options(&authority.pem, &wrong_use)).await;
}

#[tokio::test]
async fn dates_are_checked() {
    let authority = authority("ca");
    let good = tls_options(&authority.pem, &issued(&authority, &leaf()));
    let mut expired = leaf();
    expired.not_before = date_time_ymd(2000, 1, 1);
    expired.not_after = date_time_ymd(2001, 1, 1);
    let mut early = leaf();
    early.not_before = date_time_ymd(3000, 1, 1);
    early.not_after = date_time_ymd(3001, 1, 1);
    for params in [expired, early] {
        let bad = tls_options(&authority.pem, &issued(&authority, &params));
        refused(&good, &bad).await;
        refused(&bad, &good).await;
        let anchor = self_signed(&params);
        let bad = tls_options(&anchor.cert, &anchor);
        refused(&bad, &bad).await;
    }
}

#[tokio::test]
async fn intermediate_authorities() {
    let root = authority("root");
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "intermediate");
    let pem = params.signed_by(&key, &root.issuer).unwrap().pem();
    let intermediate = Authority {
        pem,
        issuer: Issuer::new(params, key),
    };
    let mut identity = issued(&intermediate, &leaf());
    let alone = tls_options(&root.pem, &identity);
    identity.cert.push_str(&intermediate.pem);
    let chain = tls_options(&root.pem, &identity);
    accepted(&chain, &chain).await;
    refused(&chain, &alone).await;
}

#[tokio::test]
async fn leafs_of_version_1() {
    let ca = data("ca");
    let ec = tls_options(&ca, &stored("version-1"));
    let rsa = tls_options(&ca, &stored("version-1-rsa"));
    accepted(&ec, &ec).await;
    accepted(&rsa, &ec).await;
    accepted(&ec, &rsa).await;
    let foreign = tls_options(&ca, &stored("foreign-version-1"));
    refused(&ec, &foreign).await;
    refused(&foreign, &ec).await;
    // A version 1 leaf cannot issue another: it is no anchor.
    let authority = authority("ca");
    let version_3 = tls_options(&authority.pem, &issued(&authority, &leaf()));
    refused(&version_3, &ec).await;
}

#[tokio::test]
async fn websocket_inside_tls() {
    let identity = self_signed(&leaf());
    let tls = tls_options(&identity.cert, &identity);
    let (server, client) = handshake(Scheme::Wss, &tls, &tls).await;
    let (mut server, mut client) = (server.unwrap(), client.unwrap());
    client.write_value(&"hello".into()).await.unwrap();
    assert_eq!(server.read_value().await.unwrap(), Value::from("hello"));
}

#[tokio::test]
async fn a_plain_client_is_refused() {
    let identity = self_signed(&leaf());
    let tls = options(&tls_options(&identity.cert, &identity));
    let address = Address::parse("tls://127.0.0.1:0", Scheme::Tcp).unwrap();
    let listener = Listener::bind(&address, tls).await.unwrap();
    let plain = Address {
        scheme: Scheme::Tcp,
        ..listener.listen_address().clone()
    };
    let client_options = Options::default();
    let client = connect(&plain, &client_options, Duration::from_secs(20));
    let (server, client) = tokio::join!(
        async { listener.accept().await.unwrap().establish().await },
        client
    );
    assert!(matches!(server, Err(Error::Tls { .. })));
    assert!(client.is_err());
}

#[test]
fn configuration_errors_say_what_is_wrong() {
    let (one, two) = (self_signed(&leaf()), self_signed(&leaf()));
    let good = tls_options(&one.cert, &one);
    let reason = |options: &TlsOptions| Tls::new(options).unwrap_err().to_string();
    let mismatch = TlsOptions {
        key: Some(two.key.into_bytes()),
        ..good.clone()
    };
    assert!(reason(&mismatch).contains("does not belong to the certificate"));
    let no_ca = TlsOptions {
        ca: b"nothing".to_vec(),
        ..good.clone()
    };
    assert!(reason(&no_ca).contains("no authority certificate"));
    let no_key = TlsOptions {
        key: None,
        ..good.clone()
    };
    assert!(reason(&no_key).contains("malformed private key"));
    let ciphers = TlsOptions {
        ciphers: Some("ECDHE-RSA-AES128-GCM-SHA256:RC4-MD5".to_owned()),
        ..good.clone()
    };
    assert!(reason(&ciphers).contains("cipher `RC4-MD5` is not available"));
    assert!(
        load_pem("/no/such/file")
            .unwrap_err()
            .to_string()
            .contains("/no/such/file")
    );
    let together = TlsOptions {
        cert: format!("{}{}", one.cert, one.key).into_bytes(),
        key: None,
        ..good
    };
    assert!(Tls::new(&together).is_ok());
}

#[tokio::test]
async fn ciphers_narrow_tls_1_2() {
    let identity = self_signed(&leaf());
    let with = |ciphers: &str| TlsOptions {
        ciphers: Some(ciphers.to_owned()),
        max_version: Version::V1_2,
        ..tls_options(&identity.cert, &identity)
    };
    let aes = with("ECDHE-ECDSA-AES256-GCM-SHA384");
    let (server, client) = handshake(Scheme::Tls, &aes, &aes).await;
    assert!(server.is_ok() && client.is_ok());
    refused(&aes, &with("ECDHE-ECDSA-CHACHA20-POLY1305")).await;
}
