//! A peer for tests written in Python.
//!
//! `echo listen ADDRESS [CA CERT KEY]` prints where it listens and sends every
//! message back until standard input ends. `echo connect ADDRESS [CA CERT KEY]`
//! sends one message, checks that it comes back, and prints what was negotiated.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oxidask_comm::tls::{Tls, TlsOptions, Version, load_pem};
use oxidask_comm::{Address, Error, Listener, Options, Result, Scheme, connect};
use oxidask_wire::{Serialized, Value, map};
use tokio::io::AsyncReadExt;

const TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    match run().await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text.push_str(": ");
                text.push_str(&cause.to_string());
                source = cause.source();
            }
            say(&text);
            std::process::ExitCode::FAILURE
        }
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    // Without a reader there is nobody to tell.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

async fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mode, address, pems) = match arguments.as_slice() {
        [mode, address] => (mode, address, None),
        [mode, address, ca, cert, key] => (mode, address, Some((ca, cert, key))),
        _ => {
            return Err(Error::Address {
                address: arguments.join(" "),
                reason: "expected `listen|connect ADDRESS [CA CERT KEY]`",
            });
        }
    };
    let mut options = Options::default();
    if let Some((ca, cert, key)) = pems {
        options.tls = Some(Arc::new(Tls::new(&TlsOptions {
            ca: load_pem(ca)?,
            cert: load_pem(cert)?,
            key: Some(load_pem(key)?),
            ciphers: None,
            min_version: Version::V1_2,
            max_version: Version::V1_3,
        })?));
    }
    let address = Address::parse(address, Scheme::Tcp)?;
    if mode == "listen" {
        return listen(&address, options).await;
    }
    let mut connection = connect(&address, &options, TIMEOUT).await?;
    let message = Value::from(map! {
        "op" => "echo",
        "payload" => Serialized::of_bytes(Bytes::from(vec![7; 3_000_000])),
        "empty" => Serialized::of_bytes(Bytes::new()),
    });
    connection.write_value(&message).await?;
    let answer = connection.read_value().await?;
    connection.writer.close().await?;
    if answer != message {
        return Err(Error::Closed { in_message: true });
    }
    say(&format!("{:?}", connection.info.negotiated));
    Ok(())
}

async fn listen(address: &Address, options: Options) -> Result<()> {
    let listener = Listener::bind(address, options).await?;
    say(&listener.listen_address().to_string());
    let mut input = Vec::new();
    let mut stdin = tokio::io::stdin();
    tokio::select! {
        served = serve(&listener) => served,
        _ = stdin.read_to_end(&mut input) => Ok(()),
    }
}

async fn serve(listener: &Listener) -> Result<()> {
    let mut peers = tokio::task::JoinSet::new();
    loop {
        let incoming = listener.accept().await?;
        peers.spawn(async move {
            let mut connection = incoming.establish().await?;
            loop {
                let frames = connection.read().await?;
                connection.write(&frames).await?;
            }
            #[expect(unreachable_code, reason = "gives the block its type")]
            Ok::<(), Error>(())
        });
        while let Some(Ok(Err(error))) = peers.try_join_next() {
            tracing::debug!(%error, "a peer left");
        }
    }
}
