//! Connections, streams and the pool over the loopback interface.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use oxidask_comm::{
    Address, BatchedSender, Connection, ConnectionPool, Error, Listener, Options, Reader, Scheme,
    connect,
};
use oxidask_wire::frame::{Limits, to_stream};
use oxidask_wire::handshake::Handshake;
use oxidask_wire::{Serialized, Value, decode, encode, map};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(20);

async fn listener(scheme: Scheme, options: Options) -> Listener {
    let address = Address {
        scheme,
        host: "127.0.0.1".to_owned(),
        port: 0,
    };
    Listener::bind(&address, options).await.unwrap()
}

/// Both ends of a new connection.
async fn pair(scheme: Scheme) -> (Connection, Connection) {
    let listener = listener(scheme, Options::default()).await;
    let options = Options::default();
    let (client, server) =
        tokio::join!(connect(listener.listen_address(), &options, LONG), async {
            listener.accept().await.unwrap().establish().await
        });
    (client.unwrap(), server.unwrap())
}

/// Answers every request with itself; `op: close` closes, `op: hang` never answers.
fn echo_server(listener: Listener) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let Ok(incoming) = listener.accept().await else {
                return;
            };
            tokio::spawn(async move {
                let Ok(mut connection) = incoming.establish().await else {
                    return;
                };
                while let Ok(request) = connection.read_value().await {
                    let op = request.as_map().and_then(|map| map.get("op")?.as_str());
                    match op {
                        Some("close") => return,
                        Some("hang") => {
                            connection.reader.closed().await;
                            return;
                        }
                        _ => {}
                    }
                    if connection.write_value(&request).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

async fn raw(listener: &Listener) -> (TcpStream, oxidask_comm::Incoming) {
    let port = listener.listen_address().port;
    let (stream, incoming) =
        tokio::join!(TcpStream::connect(("127.0.0.1", port)), listener.accept());
    (stream.unwrap(), incoming.unwrap())
}

async fn messages_pass_both_ways(scheme: Scheme) {
    let (mut client, mut server) = pair(scheme).await;
    assert_eq!(client.info.negotiated.pickle_protocol, 5);
    assert_eq!(client.info.peer, server.info.local);
    let payload = Bytes::from(vec![7; 3_000_000]);
    let message = Value::from(map! {
        "op" => "x",
        "large" => Serialized::of_bytes(payload),
        "empty" => Serialized::of_bytes(Bytes::new()),
        "small" => Serialized::of_bytes(Bytes::from_static(b"abc")),
    });
    let many = encode(&Value::Array(vec![message.clone(); 3]));
    let (sent, received) = tokio::join!(client.write(&many), server.read());
    sent.unwrap();
    assert_eq!(received.unwrap(), many);
    let (sent, received) = tokio::join!(server.write_value(&message), client.read_value());
    sent.unwrap();
    assert_eq!(received.unwrap(), message);

    client.writer.close().await.unwrap();
    assert!(matches!(
        server.read().await,
        Err(Error::Closed { in_message: false })
    ));
}

#[tokio::test]
async fn tcp() {
    messages_pass_both_ways(Scheme::Tcp).await;
}

#[tokio::test]
async fn websocket() {
    messages_pass_both_ways(Scheme::Ws).await;
}

#[tokio::test]
async fn a_message_that_came_with_the_handshake_is_kept() {
    let listener = listener(Scheme::Tcp, Options::default()).await;
    let (mut stream, incoming) = raw(&listener).await;
    let request = encode(&map! { "op" => "identity", "filler" => "x".repeat(100_000) }.into());
    let mut bytes = to_stream(&Handshake::new([3, 12, 1]).encode()).to_vec();
    bytes.extend_from_slice(&to_stream(&request));
    stream.write_all(&bytes).await.unwrap();
    let mut server = incoming.establish().await.unwrap();
    assert_eq!(server.read().await.unwrap(), request);
    drop(stream);
    assert!(matches!(
        server.read().await,
        Err(Error::Closed { in_message: false } | Error::Io { .. })
    ));
}

#[tokio::test]
async fn garbage_ends_one_connection_only() {
    let listener = listener(Scheme::Tcp, Options::default()).await;
    let cases: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &[0xff; 64],
        &[0; 64],
        b"\x11\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\xc0",
    ];
    for garbage in cases {
        let (mut stream, incoming) = raw(&listener).await;
        stream.write_all(garbage).await.unwrap();
        let refused = incoming.establish().await.unwrap_err();
        assert!(matches!(refused, Error::Malformed(_)), "{refused:?}");
        // Whatever is read first is our handshake; then the end.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    let options = Options::default();
    let (client, server) =
        tokio::join!(connect(listener.listen_address(), &options, LONG), async {
            listener.accept().await.unwrap().establish().await
        });
    assert!(client.is_ok() && server.is_ok());
}

#[tokio::test]
async fn a_peer_may_vanish_at_any_time() {
    let listener = listener(Scheme::Tcp, Options::default()).await;
    let (stream, incoming) = raw(&listener).await;
    drop(stream);
    assert!(incoming.establish().await.unwrap_err().is_closed());

    let (mut stream, incoming) = raw(&listener).await;
    let handshake = to_stream(&Handshake::new([3, 12, 1]).encode());
    stream.write_all(&handshake).await.unwrap();
    stream
        .write_all(&to_stream(&[Bytes::from_static(b"abc")])[..20])
        .await
        .unwrap();
    let mut server = incoming.establish().await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(matches!(
        server.read().await,
        Err(Error::Closed { in_message: true })
    ));
    // Half closed: the other direction still works.
    server.write_value(&"still here".into()).await.unwrap();
    drop(server);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(b"still here"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_dropped() {
    let listener = listener(Scheme::Tcp, Options::default()).await;
    let (_stream, incoming) = raw(&listener).await;
    let error = incoming.establish().await.unwrap_err();
    assert!(matches!(error, Error::HandshakeTimeout { .. }), "{error:?}");
}

#[tokio::test]
async fn limits_hold_after_the_handshake() {
    let options = Options {
        limits: Limits {
            frame_count_max: 4,
            frame_nbytes_max: 1000,
            message_nbytes_max: 2000,
        },
        ..Options::default()
    };
    for scheme in [Scheme::Tcp, Scheme::Ws] {
        let too_large = [
            vec![Bytes::from(vec![0; 1001])],
            vec![Bytes::from(vec![0; 900]); 3],
            vec![Bytes::new(); 5],
        ];
        for frames in too_large {
            let listener = listener(scheme, options.clone()).await;
            let client_options = Options::default();
            let (client, server) = tokio::join!(
                connect(listener.listen_address(), &client_options, LONG),
                async { listener.accept().await.unwrap().establish().await }
            );
            let (mut client, mut server) = (client.unwrap(), server.unwrap());
            let (_, received) = tokio::join!(client.write(&frames), server.read());
            assert!(matches!(received, Err(Error::Malformed(_))));
        }
    }
}

#[tokio::test]
async fn a_dropped_read_loses_nothing() {
    for scheme in [Scheme::Tcp, Scheme::Ws] {
        let (mut client, mut server) = pair(scheme).await;
        let message = encode(&Serialized::of_bytes(Bytes::from(vec![1; 5_000_000])).into());
        let sent = message.clone();
        let sender = tokio::spawn(async move {
            client.write(&sent).await.unwrap();
            client
        });
        let received = loop {
            tokio::select! {
                biased;
                received = server.read() => break received.unwrap(),
                () = tokio::task::yield_now() => {}
            }
        };
        assert_eq!(received, message);
        sender.await.unwrap();
    }
}

#[tokio::test]
async fn an_interrupted_write_closes_the_stream() {
    let (mut client, mut server) = pair(Scheme::Tcp).await;
    let large = vec![Bytes::from(vec![0; 64 << 20])];
    tokio::select! {
        biased;
        _ = client.write(&large) => panic!("64 MiB fit no socket buffer"),
        () = tokio::task::yield_now() => {}
    }
    let again = client.write_value(&Value::Nil).await;
    assert!(matches!(again, Err(Error::Closed { .. })));
    drop(client);
    assert!(server.read().await.is_err());
}

#[tokio::test]
async fn connect_reports_the_last_failure() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let address = Address::of_socket(Scheme::Tcp, free);
    let timeout = Duration::from_millis(200);
    let error = connect(&address, &Options::default(), timeout)
        .await
        .unwrap_err();
    let text = format!("timed out trying to connect to `tcp://{free}` after 0.2 s");
    assert_eq!(error.to_string(), text);
    assert!(matches!(
        error,
        Error::ConnectTimeout {
            source: Some(_),
            ..
        }
    ));
}

#[tokio::test]
async fn connect_waits_for_a_listener_that_comes_late() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let address = Address::of_socket(Scheme::Tcp, free);
    let options = Options::default();
    let connecting = connect(&address, &options, LONG);
    let listening = async {
        let refused = TcpStream::connect(free).await;
        assert!(refused.is_err());
        let listener = Listener::bind(&address, Options::default()).await.unwrap();
        listener.accept().await.unwrap().establish().await
    };
    let (client, server) = tokio::join!(connecting, listening);
    assert!(client.is_ok() && server.is_ok());
}

#[tokio::test]
async fn encryption_must_fit_the_options() {
    let tls = Address::parse("tls://127.0.0.1:1", Scheme::Tcp).unwrap();
    let error = connect(&tls, &Options::default(), LONG).await.unwrap_err();
    assert!(matches!(error, Error::Encryption { .. }));
    let strict = Options {
        require_encryption: true,
        ..Options::default()
    };
    let tcp = Address::parse("127.0.0.1:0", Scheme::Tcp).unwrap();
    let error = Listener::bind(&tcp, strict).await.unwrap_err();
    assert!(matches!(error, Error::Encryption { .. }));
}

#[tokio::test]
async fn every_interface_is_reachable() {
    let any = Address::parse(":0", Scheme::Tcp).unwrap();
    let listener = Listener::bind(&any, Options::default()).await.unwrap();
    assert_eq!(listener.listen_address().host, "0.0.0.0");
    assert!(!listener.contact_address().is_wildcard());
    let loopback = Address {
        host: "localhost".to_owned(),
        ..listener.listen_address().clone()
    };
    let options = Options::default();
    let (client, server) = tokio::join!(connect(&loopback, &options, LONG), async {
        listener.accept().await.unwrap().establish().await
    });
    assert_eq!(client.unwrap().info.peer.host, "127.0.0.1");
    assert_eq!(server.unwrap().info.peer.host, "127.0.0.1");
    let taken = Listener::bind(listener.listen_address(), Options::default()).await;
    assert!(matches!(taken, Err(Error::Listen { .. })));
}

async fn batch(reader: &mut Reader) -> Vec<Value> {
    decode(&reader.read().await.unwrap())
        .unwrap()
        .into_array()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn batches_go_at_once_and_then_per_interval() {
    let (client, server) = pair(Scheme::Tcp).await;
    let (mut reader, _writer, _) = client.split();
    let interval = Duration::from_secs(1);
    let (sender, task) = BatchedSender::new(server.writer, interval, 1 << 20);
    let task = tokio::spawn(task.run());
    let start = tokio::time::Instant::now();
    sender.send(&Value::Int(1)).unwrap();
    assert_eq!(batch(&mut reader).await, [Value::Int(1)]);
    assert!(start.elapsed() < interval);
    sender.send(&Value::Int(2)).unwrap();
    sender.send(&Value::Int(3)).unwrap();
    assert_eq!(batch(&mut reader).await, [Value::Int(2), Value::Int(3)]);
    assert!(start.elapsed() >= interval);
    sender.send(&Value::Int(4)).unwrap();
    sender.close();
    assert!(matches!(
        sender.send(&Value::Nil),
        Err(Error::Closed { .. })
    ));
    assert_eq!(batch(&mut reader).await, [Value::Int(4)]);
    assert!(matches!(
        reader.read().await,
        Err(Error::Closed { in_message: false })
    ));
    assert!(task.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_held_batch_gathers_until_its_time() {
    let (client, server) = pair(Scheme::Tcp).await;
    let (mut reader, _writer, _) = client.split();
    let (sender, task) = BatchedSender::new(server.writer, Duration::ZERO, 1 << 20);
    let _task = tokio::spawn(task.run());
    let start = tokio::time::Instant::now();
    let hold = Duration::from_secs(1);
    sender.hold(hold);
    sender.send(&Value::Int(1)).unwrap();
    tokio::time::sleep(hold / 2).await;
    sender.send(&Value::Int(2)).unwrap();
    assert_eq!(batch(&mut reader).await, [Value::Int(1), Value::Int(2)]);
    assert!(start.elapsed() >= hold);
    sender.send(&Value::Int(3)).unwrap();
    assert_eq!(batch(&mut reader).await, [Value::Int(3)]);
    assert!(start.elapsed() < 2 * hold);
}

#[tokio::test]
async fn a_slow_reader_is_cut_off_at_the_limit() {
    let (client, server) = pair(Scheme::Tcp).await;
    let limit = 32 << 20;
    let (sender, task) = BatchedSender::new(server.writer, Duration::from_millis(1), limit);
    let task = tokio::spawn(task.run());
    let message = Value::from(Serialized::of_bytes(Bytes::from(vec![0; 1 << 20])));
    let mut refused = None;
    for _ in 0..1000 {
        match sender.send(&message) {
            Ok(()) => assert!(sender.nbytes() <= limit),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
        tokio::task::yield_now().await;
    }
    assert!(
        matches!(refused, Some(Error::SlowPeer { .. })),
        "{refused:?}"
    );
    assert!(matches!(task.await.unwrap(), Err(Error::SlowPeer { .. })));
    assert!(matches!(sender.send(&message), Err(Error::SlowPeer { .. })));
    drop(client);
}

#[tokio::test]
async fn a_stream_aborts_in_the_middle_of_a_write() {
    let (client, server) = pair(Scheme::Tcp).await;
    let (sender, task) = BatchedSender::new(server.writer, Duration::ZERO, usize::MAX);
    let task = tokio::spawn(task.run());
    sender
        .send(&Serialized::of_bytes(Bytes::from(vec![0; 64 << 20])).into())
        .unwrap();
    tokio::task::yield_now().await;
    sender.abort();
    assert!(task.await.unwrap().is_ok());
    assert!(sender.is_closed());
    drop(client);
}

#[tokio::test]
async fn a_broken_stream_refuses_messages() {
    let (client, server) = pair(Scheme::Tcp).await;
    let (sender, task) = BatchedSender::new(server.writer, Duration::ZERO, 1 << 30);
    let task = tokio::spawn(task.run());
    drop(client);
    while sender.send(&Value::from("x".repeat(100_000))).is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(task.await.unwrap().unwrap_err().is_closed());
}

#[tokio::test]
async fn the_pool_reuses_connections() {
    let listener = listener(Scheme::Tcp, Options::default()).await;
    let address = listener.listen_address().clone();
    let server = echo_server(listener);
    let pool = ConnectionPool::new(Options::default(), LONG, 10);
    for number in 0..5 {
        let request = Value::from(map! { "n" => number });
        assert_eq!(pool.call(&address, &request).await.unwrap(), request);
        assert_eq!(pool.open_count(), 1);
    }
    let both = Value::Nil;
    let (a, b) = tokio::join!(pool.call(&address, &both), pool.call(&address, &both));
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(pool.open_count(), 2);
    let remote =
        Value::from(map! { "status" => "uncaught-error", "exception_text" => "ValueError('x')" });
    let error = pool.call(&address, &remote).await.unwrap_err();
    assert_eq!(error.to_string(), "ValueError('x')");
    assert_eq!(pool.open_count(), 2);
    pool.close_idle();
    assert_eq!(pool.open_count(), 0);
    server.abort();
}

#[tokio::test]
async fn the_pool_drops_what_failed() {
    let listener = listener(Scheme::Tcp, Options::default()).await;
    let address = listener.listen_address().clone();
    let server = echo_server(listener);
    let pool = ConnectionPool::new(Options::default(), LONG, 10);
    let close = Value::from(map! { "op" => "close" });
    assert!(pool.call(&address, &close).await.unwrap_err().is_closed());
    assert_eq!(pool.open_count(), 0);
    let hang = Value::from(map! { "op" => "hang" });
    tokio::select! {
        biased;
        _ = pool.call(&address, &hang) => panic!("the server does not answer"),
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(pool.open_count(), 0);
    let removing = async {
        while pool.open_count() == 0 {
            tokio::task::yield_now().await;
        }
        pool.remove(&address);
    };
    let (hanging, ()) = tokio::join!(pool.call(&address, &hang), removing);
    assert!(matches!(hanging, Err(Error::Closed { .. })));
    assert_eq!(pool.open_count(), 0);
    assert!(pool.call(&address, &Value::Nil).await.is_ok());
    pool.close();
    assert!(matches!(
        pool.call(&address, &Value::Nil).await,
        Err(Error::Closed { .. })
    ));
    server.abort();
}

#[tokio::test]
async fn the_pool_makes_room_at_its_limit() {
    let (one, two) = (
        listener(Scheme::Tcp, Options::default()).await,
        listener(Scheme::Tcp, Options::default()).await,
    );
    let addresses = [one.listen_address().clone(), two.listen_address().clone()];
    let servers = [echo_server(one), echo_server(two)];
    let pool = ConnectionPool::new(Options::default(), LONG, 1);
    for _ in 0..3 {
        for address in &addresses {
            assert!(pool.call(address, &Value::Nil).await.is_ok());
            assert_eq!(pool.open_count(), 1);
        }
    }
    let mut calls = Vec::new();
    for index in 0..20 {
        let (pool, address) = (pool.clone(), addresses[index % 2].clone());
        calls.push(tokio::spawn(async move {
            pool.call(&address, &Value::Nil).await.is_ok()
        }));
    }
    for call in calls {
        assert!(call.await.unwrap());
    }
    for server in servers {
        server.abort();
    }
}

#[tokio::test]
async fn the_pool_notices_connections_closed_while_idle() {
    let listener = listener(Scheme::Tcp, Options::default()).await;
    let address = listener.listen_address().clone();
    let pool = ConnectionPool::new(Options::default(), LONG, 10);
    let serve_one = async {
        let mut connection = listener.accept().await.unwrap().establish().await.unwrap();
        let request = connection.read_value().await.unwrap();
        connection.write_value(&request).await.unwrap();
        connection
    };
    let (answer, connection) = tokio::join!(pool.call(&address, &Value::Nil), serve_one);
    assert!(answer.is_ok());
    drop(connection);
    let server = echo_server(listener);
    assert!(pool.call(&address, &Value::Nil).await.is_ok());
    server.abort();
}

#[test]
fn addresses_are_read_and_shown_as_dask_does() {
    let good = [
        ("tcp://127.0.0.1:8786", "tcp://127.0.0.1:8786"),
        ("127.0.0.1:8786", "tcp://127.0.0.1:8786"),
        ("tls://host:1", "tls://host:1"),
        ("tcp://[::1]:123", "tcp://[::1]:123"),
        ("[::1]:123", "tcp://[::1]:123"),
        (":0", "tcp://:0"),
        ("ws://host:80/", "ws://host:80"),
        ("wss://host:443", "wss://host:443"),
        ("inproc://10.0.0.1/4711/1", "inproc://10.0.0.1/4711/1"),
    ];
    for (text, shown) in good {
        assert_eq!(
            Address::parse(text, Scheme::Tcp).unwrap().to_string(),
            shown
        );
    }
    let bad = [
        "",
        "host",
        "tcp://host:99999",
        "::1:123",
        "[::1",
        "[::1]x:1",
        "inproc://",
        "ucx://a:1",
        "http://a:1",
    ];
    for text in bad {
        assert!(
            matches!(
                Address::parse(text, Scheme::Tcp),
                Err(Error::Address { .. })
            ),
            "{text}"
        );
    }
    let with_port = Address::parse_with_port("tls://host", Scheme::Tcp, Some(8786)).unwrap();
    assert_eq!(with_port.to_string(), "tls://host:8786");
    let bracketed = Address::parse_with_port("[::]", Scheme::Tcp, Some(1)).unwrap();
    assert!(bracketed.is_wildcard());
}

#[tokio::test]
async fn unknown_hosts_are_named() {
    let address = Address::parse("tcp://no-such-host.invalid:1", Scheme::Tcp).unwrap();
    let error = address.resolve().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot resolve host `no-such-host.invalid`"
    );
    let ip = Address::parse("tcp://127.0.0.1:1", Scheme::Tcp).unwrap();
    assert_eq!(ip.resolve().await.unwrap(), ip);
}
