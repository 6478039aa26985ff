//! What a worker answers to requests.

use oxidask_comm::{Address, Options, Scheme};
use oxidask_wire::handshake::Handshake;
use oxidask_wire::stream::{ToWorker, WorkerMessage};
use oxidask_wire::{Key, Map, Value, map};

use crate::executor::{Toy, deserialized, serialized};
use crate::stub::{LONG, Stub, ask, field, impatient, keys_field, options, soon, text};

#[tokio::test]
async fn common_operations() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    let mut connection = worker.connect().await;
    let connection = &mut connection;
    let identity = ask(connection, "identity", Map::new()).await;
    assert_eq!(text(&identity, "type"), "Worker");
    assert!(text(&identity, "id").starts_with("Worker-"));
    assert_eq!(text(&identity, "scheduler"), stub.address);
    assert_eq!(field(&identity, "nthreads"), &Value::Int(1));
    assert_eq!(field(&identity, "memory_limit"), &Value::Nil);
    let pong = ask(connection, "ping", Map::new()).await;
    assert_eq!(pong.as_bin().unwrap().as_ref(), b"pong");
    let echo = ask(connection, "echo", map! { "data" => 5 }).await;
    assert_eq!(echo, Value::Int(5));
    assert!(
        ask(connection, "unknown_operation", Map::new())
            .await
            .is_nil()
    );

    worker.computed("x", "one").await;
    let keys = ask(connection, "keys", Map::new()).await;
    assert_eq!(keys, Value::Array(vec!["x".into()]));
    let story = map! { "keys_or_stimuli" => vec![Value::from("x")] };
    let story = ask(connection, "get_story", story).await;
    let first = story.as_array().unwrap()[0].as_array().unwrap();
    assert_eq!(first[1].as_str(), Some("compute-task"));
    let state = ask(
        connection,
        "dump_state",
        map! { "exclude" => vec!["logs".into()] },
    )
    .await;
    assert_eq!(text(field(field(&state, "tasks"), "x"), "state"), "memory");
    assert!(!state.as_map().unwrap().contains_key("logs"));
    let monitor = ask(connection, "get_monitor_info", map! { "start" => 0 }).await;
    let cpu = field(field(&monitor, "range_query"), "cpu");
    assert!(!cpu.as_array().unwrap().is_empty());
    let logs = ask(connection, "get_logs", map! { "n" => 2 }).await;
    assert!(logs.as_array().unwrap().len() <= 2);
}

#[tokio::test]
async fn data_is_scattered_and_freed_by_request() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    let data = map! { "x" => serialized(5), "y" => 6 };
    let reply = worker.ask("update_data", map! { "data" => data }).await;
    assert_eq!(text(&reply, "status"), "OK");
    assert_eq!(field(field(&reply, "nbytes"), "x"), &Value::Int(28));
    let values = worker.data(&["x", "y"]).await;
    assert_eq!(values, [("x".to_owned(), 5), ("y".to_owned(), 6)]);
    let mut fields = keys_field(&["x"]);
    fields.push("stimulus_id", "freeing");
    assert!(worker.ask("free_keys", fields).await.is_nil());
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::ReleaseWorkerData { stimulus_id, .. } if *stimulus_id == "freeing"),
        "{message:?}"
    );
}

#[tokio::test]
async fn scattered_data_that_is_none_is_refused() {
    let mut stub = Stub::start().await;
    let worker = stub.worker().await;
    let reply = worker
        .ask("update_data", map! { "data" => map! { "x" => "text" } })
        .await;
    assert_eq!(text(&reply, "status"), "uncaught-error");
    assert_eq!(text(&reply, "exception_text"), "TypeError('not a number')");
    let reply = worker.ask("update_data", Map::new()).await;
    assert_eq!(text(&reply, "status"), "uncaught-error");
    assert!(text(&reply, "exception_text").contains("'data'"));
}

#[tokio::test]
async fn replicas_are_gathered_by_request() {
    let mut stub = Stub::start().await;
    let mut alice = stub.worker().await;
    let options = impatient(&stub.address);
    let bob = stub.worker_with(options, Toy::default()).await;
    alice.computed("x", "two").await;
    let holder = alice.address.clone();
    // The scheduler knows a better holder than the request.
    stub.respond(move |op, _| {
        let holders: Value = vec![Value::from(holder.as_str())].into();
        (op == "who_has").then(|| map! { "x" => holders, "y" => Vec::new() }.into())
    });
    let nowhere: Value = vec![Value::from("tcp://127.0.0.1:1")].into();
    let who_has = map! { "x" => nowhere.clone(), "y" => nowhere };
    let reply = bob.ask("gather", map! { "who_has" => who_has }).await;
    assert_eq!(text(&reply, "status"), "partial-fail");
    assert_eq!(field(&reply, "keys"), &Value::Array(vec!["y".into()]));
    assert_eq!(bob.data(&["x"]).await, [("x".to_owned(), 2)]);
    let who_has = map! { "x" => vec![Value::from(alice.address.as_str())] };
    let reply = bob.ask("gather", map! { "who_has" => who_has }).await;
    assert_eq!(text(&reply, "status"), "OK");
}

#[tokio::test]
async fn a_busy_worker_says_so_until_data_is_acknowledged() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    worker.computed("x", "one").await;
    worker
        .stream
        .send(&[ToWorker::WorkerStatusChange {
            status: "paused",
            stimulus_id: "pause-1",
        }])
        .await;
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::WorkerStatusChange { status, .. } if *status == "paused"),
        "{message:?}"
    );
    let mut first = worker.connect().await;
    let reply = ask(&mut first, "get_data", keys_field(&["x"])).await;
    assert_eq!(text(&reply, "status"), "OK");
    let mut second = worker.connect().await;
    let reply = ask(&mut second, "get_data", keys_field(&["x"])).await;
    assert_eq!(text(&reply, "status"), "busy");
    first.write_value(&"OK".into()).await.unwrap();
    // The first connection can be used again, and so can the slot.
    assert!(!ask(&mut first, "ping", Map::new()).await.is_nil());
    let reply = ask(&mut second, "get_data", keys_field(&["x"])).await;
    assert_eq!(text(&reply, "status"), "OK");
    // A connection that breaks gives its slot back.
    drop(second);
    loop {
        let reply = ask(&mut first, "get_data", keys_field(&["x"])).await;
        if text(&reply, "status") == "OK" {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_busy_peer_is_asked_again() {
    let mut stub = Stub::start().await;
    let mut alice = stub.worker().await;
    let mut bob = stub.worker().await;
    alice.computed("x", "two").await;
    alice
        .stream
        .send(&[ToWorker::WorkerStatusChange {
            status: "paused",
            stimulus_id: "pause-1",
        }])
        .await;
    alice.stream.next().await;
    let mut holding = alice.connect().await;
    let reply = ask(&mut holding, "get_data", keys_field(&["x"])).await;
    assert_eq!(text(&reply, "status"), "OK");
    bob.compute(crate::stub::Ask {
        needs: &[("x", &[&alice.address])],
        ..crate::stub::Ask::new("z", "total")
    })
    .await;
    let message = bob.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::RequestRefreshWhoHas { keys, .. } if *keys == [Key::from("x")]),
        "{message:?}"
    );
    holding.write_value(&"OK".into()).await.unwrap();
    loop {
        match bob.stream.next().await {
            WorkerMessage::AddKeys { .. } => {}
            // It may have been asked again before the slot was free.
            WorkerMessage::RequestRefreshWhoHas { .. } => {}
            WorkerMessage::TaskFinished(task) => {
                assert_eq!(task.key, Key::from("z"));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn requests_for_the_executor_reach_it() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    let reply = worker.ask("run", map! { "function" => "f" }).await;
    assert_eq!(text(&reply, "status"), "OK");
    let reply = worker.ask("run", map! { "fails" => true }).await;
    assert_eq!(text(&reply, "status"), "uncaught-error");
    assert_eq!(
        text(&reply, "exception_text"),
        "ZeroDivisionError('division by zero')"
    );
    assert!(field(&reply, "exception").as_serialized().is_some());
    let message = map! { "op" => "shuffle-fail", "shuffle_id" => "s" };
    worker.stream.send(&[ToWorker::Other(&message)]).await;
    loop {
        let changed = worker.toy.changed.notified();
        let heard = worker.toy.heard();
        if let Some((_, fields)) = heard.iter().find(|(op, _)| op == "shuffle-fail") {
            assert_eq!(fields, &map! { "shuffle_id" => "s" });
            break;
        }
        soon(changed).await;
    }
}

#[tokio::test]
async fn refused_operations() {
    let mut stub = Stub::start().await;
    let mut options = options(&stub.address);
    let blocked = oxidask_server::config::Value::List(vec![oxidask_server::config::Value::Str(
        "run".to_owned(),
    )]);
    options.config = options
        .config
        .with("test", &[("distributed.worker.blocked-handlers", blocked)]);
    let worker = stub.worker_with(options, Toy::default()).await;
    let reply = worker.ask("run", Map::new()).await;
    assert_eq!(text(&reply, "status"), "uncaught-error");
    assert!(text(&reply, "exception_text").contains("explicitly disallowed in Worker"));
    assert!(worker.toy.heard().is_empty());
}

#[tokio::test]
async fn a_malformed_request_ends_its_connection_only() {
    let mut stub = Stub::start().await;
    let worker = stub.worker().await;
    let mut connection = worker.connect().await;
    connection.write_value(&Value::Int(5)).await.unwrap();
    assert!(soon(connection.read_value()).await.is_err());
    let mut connection = worker.connect().await;
    let undecodable = [bytes::Bytes::from_static(b"\xc1")];
    connection.write(&undecodable).await.unwrap();
    let reply = soon(connection.read_value()).await.unwrap();
    assert_eq!(text(&reply, "status"), "uncaught-error");
    // This one goes on, as in Dask.
    let echo = ask(&mut connection, "echo", map! { "data" => serialized(3) }).await;
    assert_eq!(deserialized(&echo), Some(3));
    let closed = ask(&mut connection, "close", Map::new()).await;
    assert_eq!(closed.as_str(), Some("OK"));
    assert!(soon(connection.read_value()).await.is_err());
}

#[tokio::test]
async fn answers_are_compressed_where_both_ends_say_so() {
    let mut stub = Stub::start().await;
    let mut options = options(&stub.address);
    // Between two ends with the same address nothing is compressed.
    options.listen.host = Some("127.0.0.2".to_owned());
    let lz4 = oxidask_server::config::Value::Str("lz4".to_owned());
    options.config = options
        .config
        .with("test", &[("distributed.comm.compression", lz4)]);
    let mut worker = stub.worker_with(options, Toy::default()).await;
    worker.computed("x", "text").await;
    let lz4 = || Options {
        handshake: Handshake {
            compression: Some("lz4".into()),
            ..Handshake::new([3, 11, 0])
        },
        ..Options::default()
    };
    let address = Address::parse(&worker.address, Scheme::Tcp).unwrap();
    for (connecting, is_compressed) in [(lz4(), true), (Options::default(), false)] {
        let connection = oxidask_comm::connect(&address, &connecting, LONG).await;
        let reply = ask(&mut connection.unwrap(), "get_data", keys_field(&["x"])).await;
        let value = field(field(&reply, "data"), "x").as_serialized().unwrap();
        assert_eq!(value.frames[1].len() < 10_000, is_compressed);
        let frames = value.logical_frames(1 << 20).unwrap();
        assert_eq!(frames[1], b"abc".repeat(100_000));
    }
}

#[tokio::test]
async fn a_peer_may_send_without_waiting_for_answers() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    worker.computed("x", "one").await;
    let mut connection = worker.connect().await;
    let opening = map! { "op" => "connection_stream" };
    connection.write_value(&opening.into()).await.unwrap();
    let mut batch = oxidask_wire::BatchWriter::new();
    let unknown = map! { "op" => "shuffle-fail", "shuffle_id" => "s" };
    ToWorker::Other(&unknown).write(&mut batch).unwrap();
    let free = ToWorker::FreeKeys {
        keys: &[Key::from("x")],
        stimulus_id: "free-1",
    };
    free.write(&mut batch).unwrap();
    connection.write(&batch.finish()).await.unwrap();
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::ReleaseWorkerData { key, .. } if *key == Key::from("x")),
        "{message:?}"
    );
    assert_eq!(worker.toy.heard()[0].0, "shuffle-fail");
    let close = map! { "op" => "close-stream" };
    let close = Value::Array(vec![close.into()]);
    connection.write_value(&close).await.unwrap();
    assert!(soon(connection.read_value()).await.is_err());
    // The worker itself goes on.
    worker.computed("y", "one").await;
}
