//! How a worker begins and ends.

use std::sync::Arc;
use std::time::Duration;

use oxidask_comm::{Address, Scheme};
use oxidask_server::worker::StartError;
use oxidask_wire::stream::{ToWorker, WorkerMessage};
use oxidask_wire::{Key, Map, Value, map};

use crate::executor::Toy;
use crate::stub::{Ask, Stream, Stub, Worker, field, impatient, options, soon, start, text};

#[tokio::test]
async fn a_registration_says_everything() {
    let mut stub = Stub::start().await;
    let mut options = options(&stub.address);
    options.name = Some(7.into());
    options.nthreads = 3;
    options.memory_limit = Some(1 << 30);
    options.resources = vec![("GPU".into(), 2.0)];
    options.services = map! { "dashboard" => 1234 };
    let worker = stub.worker_with(options, Toy::default()).await;
    let fields = Value::Map(worker.registration.clone());
    assert_eq!(field(&fields, "reply"), &Value::Bool(false));
    assert_eq!(text(&fields, "status"), "init");
    assert_eq!(field(&fields, "name"), &Value::Int(7));
    assert_eq!(field(&fields, "nthreads"), &Value::Int(3));
    assert_eq!(field(&fields, "memory_limit"), &Value::Int(1 << 30));
    assert_eq!(
        field(field(&fields, "resources"), "GPU"),
        &Value::Float(2.0)
    );
    assert_eq!(text(&fields, "local_directory"), "local");
    assert_eq!(
        field(field(&fields, "services"), "dashboard"),
        &Value::Int(1234)
    );
    assert!(field(&fields, "nanny").is_nil());
    assert_eq!(
        field(&fields, "pid").as_u64(),
        Some(u64::from(std::process::id()))
    );
    assert!(
        field(field(&fields, "versions"), "packages")
            .as_map()
            .is_some()
    );
    assert_eq!(text(field(&fields, "extra"), "kind"), "toy");
    assert!(text(&fields, "stimulus_id").starts_with("worker-connect-"));
    assert!(text(&fields, "server_id").starts_with("Worker-"));
    assert!(field(&fields, "now").as_f64().is_some());
    assert!(text(&fields, "address").starts_with("tcp://127.0.0.1:"));
    let metrics = field(&fields, "metrics");
    assert_eq!(
        field(field(metrics, "bandwidth"), "total"),
        &Value::Float(1e8)
    );
    assert!(field(metrics, "memory").as_u64().unwrap() > 0);
}

#[tokio::test]
async fn plugins_of_the_registration_reach_the_executor() {
    let mut stub = Stub::start().await;
    let toy = Arc::new(Toy::default());
    let starting = tokio::spawn(start(options(&stub.address), toy.clone()));
    let (_, connection) = stub.registration().await;
    let plugin = bytes::Bytes::from_static(b"pickle");
    let mut stream = Stream::new(connection);
    stream
        .accept(60.0, map! { "shuffle" => plugin.clone() })
        .await;
    soon(starting).await.unwrap().unwrap();
    let (op, args) = toy.heard().swap_remove(0);
    assert_eq!(op, "plugin-add");
    assert_eq!(args, map! { "plugin" => plugin, "name" => "shuffle" });
}

#[tokio::test]
async fn a_worker_waits_for_its_scheduler() {
    // A port that was free a moment ago.
    let stub = Stub::start().await;
    let address = stub.address.clone();
    stub.stop_listening().await;
    let toy = Arc::new(Toy::default());
    let starting = tokio::spawn(start(options(&address), toy));
    let mut stub = Stub::listen(&Address::parse(&address, Scheme::Tcp).unwrap()).await;
    let (_, connection) = stub.registration().await;
    Stream::new(connection).accept(60.0, Map::new()).await;
    soon(starting).await.unwrap().unwrap();
}

#[tokio::test]
async fn death_comes_without_a_scheduler() {
    let mut options = options("tcp://127.0.0.1:1");
    options.death_timeout = Some(Duration::from_millis(50));
    let toy = Arc::new(Toy::default());
    let error = soon(start(options, toy.clone())).await.unwrap_err();
    assert!(matches!(error, StartError::DeathTimeout { .. }), "{error}");
    assert!(toy.is_closed());
}

#[tokio::test]
async fn a_refused_worker_says_why() {
    let mut stub = Stub::start().await;
    let toy = Arc::new(Toy::default());
    let starting = tokio::spawn(start(options(&stub.address), toy));
    let (_, connection) = stub.registration().await;
    let refusal = map! { "status" => "error", "message" => "name taken", "time" => 0.0 };
    Stream::new(connection).write(&Value::Map(refusal)).await;
    let error = soon(starting).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("name taken"), "{error}");
}

/// What a worker says when it leaves.
async fn goodbye(worker: &mut Worker, reason: &str) {
    let WorkerMessage::LogEvent { topic, msg } = worker.stream.next().await else {
        panic!("no event");
    };
    assert_eq!(topic.as_str(), Some(&*worker.address));
    assert_eq!(
        msg,
        map! { "action" => "closing-worker", "reason" => reason }.into()
    );
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::WorkerStatusChange { status, .. } if *status == "closing"),
        "{message:?}"
    );
    let message = worker.stream.next().await;
    assert!(matches!(message, WorkerMessage::CloseStream), "{message:?}");
    assert!(worker.stream.try_next().await.is_none());
}

#[tokio::test]
async fn the_scheduler_closes_a_worker() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    let close = ToWorker::Close { reason: "retired" };
    worker.stream.send(&[close]).await;
    let waiting = tokio::spawn(worker.handle.take().unwrap().wait());
    goodbye(&mut worker, "retired").await;
    assert_eq!(&*soon(waiting).await.unwrap(), "retired");
    assert!(worker.toy.is_closed());
    assert_eq!(worker.toy.heard()[0].0, "teardown");
}

#[tokio::test]
async fn a_request_closes_a_worker() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    let reply = worker.ask("terminate", map! { "reason" => "enough" }).await;
    assert_eq!(reply.as_str(), Some("OK"));
    let waiting = tokio::spawn(worker.handle.take().unwrap().wait());
    goodbye(&mut worker, "enough").await;
    soon(waiting).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_closes_tells_its_nanny() {
    let mut stub = Stub::start().await;
    let mut nanny = Stub::start().await;
    let mut options = options(&stub.address);
    options.nanny = Some(nanny.address.clone());
    let mut worker = stub.worker_with(options, Toy::default()).await;
    worker.handle.as_ref().unwrap().closer()("signal-15");
    assert_eq!(&*worker.closed().await, "signal-15");
    let (op, fields) = nanny.requests.recv().await.unwrap();
    assert_eq!(op, "close_gracefully");
    assert_eq!(fields.get("reason").unwrap().as_str(), Some("signal-15"));
}

#[tokio::test]
async fn a_worker_leaves_gracefully() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    let handle = worker.handle.as_ref().unwrap();
    soon(handle.close_gracefully("lifetime")).await;
    let (op, fields) = stub.requests.recv().await.unwrap();
    assert_eq!(op, "retire_workers");
    let workers = fields.get("workers").unwrap().as_array().unwrap();
    assert_eq!(workers[0].as_str(), Some(&*worker.address));
    assert_eq!(&*worker.closed().await, "lifetime");
}

#[tokio::test]
async fn a_worker_does_not_outlive_its_stream() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    let Worker { stream, handle, .. } = &mut worker;
    stream
        .write(&Value::Array(vec![map! { "op" => "close-stream" }.into()]))
        .await;
    let reason = soon(handle.take().unwrap().wait()).await;
    assert_eq!(&*reason, "worker-handle-scheduler-connection-broken");
}

#[tokio::test]
async fn a_worker_closes_when_its_scheduler_is_gone() {
    let mut stub = Stub::start().await;
    let Worker { stream, handle, .. } = stub.worker().await;
    drop(stream);
    let reason = soon(handle.unwrap().wait()).await;
    assert_eq!(&*reason, "worker-handle-scheduler-connection-broken");
}

#[tokio::test]
async fn a_malformed_message_of_the_scheduler_closes_the_worker() {
    for message in [
        map! { "op" => "free-keys" },
        map! { "op" => "no-such-operation" },
        map! { "op" => "worker-status-change", "status" => "odd", "stimulus_id" => "s" },
    ] {
        let mut stub = Stub::start().await;
        let mut worker = stub.worker().await;
        worker
            .stream
            .write(&Value::Array(vec![message.into()]))
            .await;
        assert_eq!(
            &*worker.closed().await,
            "worker-handle-scheduler-connection-broken"
        );
    }
}

#[tokio::test]
async fn a_broken_state_closes_the_worker() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    worker
        .compute(Ask {
            resources: &[("nonsense", 1.0)],
            ..Ask::new("x", "one")
        })
        .await;
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::LogEvent { topic, .. } if topic.as_str() == Some("worker-fail-hard")),
        "{message:?}"
    );
    assert_eq!(&*worker.closed().await, "worker-handle_stimulus-fail-hard");
}

/// A worker that beats as fast as it can.
async fn beating(stub: &mut Stub) -> (tokio::task::JoinHandle<Arc<str>>, Worker) {
    let toy = Arc::new(Toy::default());
    let starting = tokio::spawn(start(impatient(&stub.address), toy.clone()));
    let (registration, connection) = stub.registration().await;
    let mut stream = Stream::new(connection);
    stream.accept(0.01, Map::new()).await;
    let handle = soon(starting).await.unwrap().unwrap();
    let worker = Worker {
        address: handle.address().to_owned(),
        handle: None,
        toy,
        registration,
        stream,
    };
    (tokio::spawn(handle.wait()), worker)
}

async fn heartbeat(stub: &mut Stub) -> Value {
    loop {
        let (op, fields) = soon(stub.requests.recv()).await.unwrap();
        if op == "heartbeat_worker" {
            return Value::Map(fields);
        }
    }
}

#[tokio::test]
async fn heartbeats_tell_what_runs_and_what_is_there() {
    let mut stub = Stub::start().await;
    let (_waiting, mut worker) = beating(&mut stub).await;
    worker.stream.next().await;
    worker.computed("add-1", "one").await;
    worker.compute(Ask::new("held", "hold")).await;
    soon(worker.toy.holds("held")).await;
    // Tasks that hold their threads do not hold heartbeats.
    let mut digests = Vec::new();
    let beat = loop {
        let beat = heartbeat(&mut stub).await;
        let metrics = field(&beat, "metrics");
        let figures = field(metrics, "digests_total_since_heartbeat");
        digests.extend(figures.as_map().unwrap().0.clone());
        if field(&beat, "executing")
            .as_map()
            .unwrap()
            .contains_key("held")
        {
            break beat;
        }
    };
    assert_eq!(text(&beat, "address"), worker.address);
    let metrics = field(&beat, "metrics");
    let counts = field(metrics, "task_counts");
    assert_eq!(field(counts, "memory"), &Value::Int(1));
    assert_eq!(field(counts, "executing"), &Value::Int(1));
    assert_eq!(field(metrics, "managed_bytes"), &Value::Int(28));
    let names = [
        "bandwidth",
        "spilled_bytes",
        "transfer",
        "event_loop_interval",
        "cpu",
        "memory",
        "time",
        "num_fds",
        "host_net_io",
        "host_disk_io",
    ];
    for name in names {
        field(metrics, name);
    }
    assert!(
        field(field(&beat, "extensions"), "spans")
            .as_map()
            .is_some()
    );
    let cpu: Value = ["execute", "add", "thread-cpu", "seconds"]
        .map(Value::from)
        .into_iter()
        .collect();
    assert!(digests.contains(&(cpu, Value::Float(0.25))), "{digests:?}");
    assert!(
        digests
            .iter()
            .any(|(name, _)| name.as_str() == Some("latency"))
    );
}

#[tokio::test]
async fn a_worker_that_is_not_known_any_more_closes() {
    let mut stub = Stub::start().await;
    stub.respond(|op, _| {
        let missing = map! { "status" => "missing" };
        (op == "heartbeat_worker").then(|| missing.into())
    });
    let (waiting, _worker) = beating(&mut stub).await;
    assert_eq!(&*soon(waiting).await.unwrap(), "worker-heartbeat-missing");
}

#[tokio::test]
async fn what_is_missing_is_asked_for_with_every_heartbeat() {
    let mut stub = Stub::start().await;
    let (_waiting, mut worker) = beating(&mut stub).await;
    worker.stream.next().await;
    worker
        .compute(Ask {
            needs: &[("x", &["tcp://127.0.0.1:1"])],
            ..Ask::new("z", "total")
        })
        .await;
    for _ in 0..2 {
        let message = worker.stream.next().await;
        assert!(
            matches!(&message, WorkerMessage::RequestRefreshWhoHas { keys, .. } if *keys == [Key::from("x")]),
            "{message:?}"
        );
    }
}

#[tokio::test]
async fn a_worker_is_paused_and_goes_on() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    for (status, key) in [("paused", "x"), ("closing_gracefully", "y")] {
        let held = ToWorker::WorkerStatusChange {
            status,
            stimulus_id: "s-1",
        };
        worker.stream.send(&[held]).await;
        worker.stream.next().await;
        worker.compute(Ask::new(key, "one")).await;
        let running = ToWorker::WorkerStatusChange {
            status: "running",
            stimulus_id: "s-2",
        };
        worker.stream.send(&[running]).await;
        let message = worker.stream.next().await;
        assert!(
            matches!(&message, WorkerMessage::WorkerStatusChange { status, .. } if *status == "running"),
            "{message:?}"
        );
        let message = worker.stream.next().await;
        assert!(
            matches!(message, WorkerMessage::TaskFinished(_)),
            "{message:?}"
        );
    }
}
