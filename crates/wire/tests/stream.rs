//! What one end of a worker's stream writes, the other reads.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use bytes::Bytes;
use oxidask_wire::stream::{
    AskedRunSpec, ComputeTask, Dependency, ErredTask, FinishedTask, Number, RunSpec,
    SchedulerMessage, StartStop, ToScheduler, ToWorker, WorkerMessage, decode_scheduler_batch,
    decode_worker_batch,
};
use oxidask_wire::{BatchWriter, Key, Map, Str, Value, encode, map};

fn told_worker(message: &ToWorker<'_>) -> SchedulerMessage {
    let mut batch = BatchWriter::new();
    message.write(&mut batch).unwrap();
    let mut messages = decode_scheduler_batch(&batch.finish()).unwrap();
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

fn told_scheduler(message: &ToScheduler<'_>) -> WorkerMessage {
    let mut batch = BatchWriter::new();
    message.write(batch.message());
    let mut messages = decode_worker_batch(&batch.finish()).unwrap();
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

fn stimulus_id() -> Str {
    "s-1".into()
}

#[test]
fn a_worker_reads_compute_task() {
    let (key, needed) = (Key::from("x"), Key::from("y"));
    let annotations = map! { "executor" => "gpu" };
    let message = told_worker(&ToWorker::ComputeTask(ComputeTask {
        key: &key,
        run_id: 3,
        priority: [Number::Int(0), Number::Float(-0.5), Number::Int(7)],
        stimulus_id: "s-1",
        dependencies: &[Dependency {
            key: &needed,
            nbytes: -1,
            who_has: vec!["tcp://a:1", "tcp://b:2"],
        }],
        run_spec: RunSpec::Pickle(b"spec", &[]),
        resource_restrictions: Some(&[("GPU".into(), Number::Int(1))]),
        actor: true,
        annotations: Some(&annotations),
        span_id: Some("span"),
    }));
    let SchedulerMessage::ComputeTask(task) = message else {
        panic!("{message:?}");
    };
    assert_eq!((task.key, task.run_id), (key, 3));
    assert_eq!(task.priority, [0.0, -0.5, 7.0]);
    let holders = vec!["tcp://a:1".into(), "tcp://b:2".into()];
    assert_eq!(task.who_has, [(needed.clone(), holders)]);
    assert_eq!(task.nbytes, [(needed, -1)]);
    let AskedRunSpec::Node(node) = &task.run_spec else {
        panic!("{:?}", task.run_spec);
    };
    assert_eq!(node.as_pickled().unwrap().pickle().unwrap(), "spec");
    assert_eq!(task.resource_restrictions, [("GPU".into(), 1.0)]);
    assert!(task.actor);
    assert_eq!(task.annotations, annotations);
    assert_eq!(task.span_id, Some("span".into()));
}

#[test]
fn a_worker_reads_calls_of_numbered_functions() {
    let key = Key::from("x");
    for function in [None, Some(b"function".as_slice())] {
        let message = told_worker(&ToWorker::ComputeTask(ComputeTask {
            key: &key,
            run_id: 0,
            priority: [Number::Int(0); 3],
            stimulus_id: "s-1",
            dependencies: &[],
            run_spec: RunSpec::Known {
                number: 7,
                function,
                arguments: b"arguments",
            },
            resource_restrictions: None,
            actor: false,
            annotations: None,
            span_id: None,
        }));
        let SchedulerMessage::ComputeTask(task) = message else {
            panic!("{message:?}");
        };
        let expected = AskedRunSpec::Known {
            number: 7,
            function: function.map(Bytes::from_static),
            arguments: Bytes::from_static(b"arguments"),
        };
        assert_eq!(task.run_spec, expected);
    }
}

#[test]
fn a_call_that_is_none_is_refused() {
    for run_spec in [
        Value::Array(vec![]),
        Value::Array(vec![7.into(), Value::Nil, "text".into()]),
        Value::Array(vec![7.into(), 8.into(), Bytes::new().into()]),
        Value::Array(vec![(-1).into(), Value::Nil, Bytes::new().into()]),
        Value::Array(vec![(1_u64 << 32).into(), Value::Nil, Bytes::new().into()]),
    ] {
        let message = map! {
            "op" => "compute-task",
            "key" => "x",
            "run_id" => 0,
            "priority" => Value::Array(vec![0.into(), 0.into(), 0.into()]),
            "stimulus_id" => "s-1",
            "who_has" => Map::new(),
            "nbytes" => Map::new(),
            "run_spec" => run_spec,
        };
        let batch = encode(&Value::Array(vec![message.into()]));
        let error = decode_scheduler_batch(&batch).unwrap_err().to_string();
        assert!(error.contains("[number, function, arguments]"), "{error}");
    }
}

#[test]
fn a_worker_reads_what_a_scheduler_writes() {
    let keys = [Key::from("x"), Key::from("y")];
    let who_has = [(Key::from("x"), vec![Arc::from("tcp://a:1")])];
    let read_who_has = vec![(Key::from("x"), vec!["tcp://a:1".into()])];
    let nbytes = [(Key::from("x"), 5)];
    let read_keys = keys.to_vec();
    let stimulus = "s-1";
    let written = [
        ToWorker::FreeKeys {
            keys: &keys,
            stimulus_id: stimulus,
        },
        ToWorker::RemoveReplicas {
            keys: &keys,
            stimulus_id: stimulus,
        },
        ToWorker::AcquireReplicas {
            who_has: &who_has,
            nbytes: &nbytes,
            stimulus_id: stimulus,
        },
        ToWorker::StealRequest {
            key: &keys[0],
            stimulus_id: stimulus,
        },
        ToWorker::RefreshWhoHas {
            who_has: &who_has,
            stimulus_id: stimulus,
        },
        ToWorker::WorkerStatusChange {
            status: "paused",
            stimulus_id: stimulus,
        },
        ToWorker::RemoveWorker {
            address: "tcp://a:1",
            stimulus_id: stimulus,
        },
        ToWorker::Close { reason: "enough" },
        ToWorker::CloseStream,
    ];
    let read = [
        SchedulerMessage::FreeKeys {
            keys: read_keys.clone(),
            stimulus_id: stimulus_id(),
        },
        SchedulerMessage::RemoveReplicas {
            keys: read_keys,
            stimulus_id: stimulus_id(),
        },
        SchedulerMessage::AcquireReplicas {
            who_has: read_who_has.clone(),
            nbytes: nbytes.to_vec(),
            stimulus_id: stimulus_id(),
        },
        SchedulerMessage::StealRequest {
            key: keys[0].clone(),
            stimulus_id: stimulus_id(),
        },
        SchedulerMessage::RefreshWhoHas {
            who_has: read_who_has,
            stimulus_id: stimulus_id(),
        },
        SchedulerMessage::WorkerStatusChange {
            status: "paused".into(),
            stimulus_id: stimulus_id(),
        },
        SchedulerMessage::RemoveWorker {
            worker: "tcp://a:1".into(),
            stimulus_id: stimulus_id(),
        },
        SchedulerMessage::Close {
            reason: Some("enough".into()),
        },
        SchedulerMessage::CloseStream,
    ];
    for (written, read) in written.iter().zip(read) {
        assert_eq!(told_worker(written), read);
    }
    let other = map! { "op" => "shuffle-fail", "run_id" => 1 };
    let read = SchedulerMessage::Other {
        op: "shuffle-fail".into(),
        fields: map! { "run_id" => 1 },
    };
    assert_eq!(told_worker(&ToWorker::Other(&other)), read);
}

#[test]
fn what_lacks_a_field_is_refused_by_its_name() {
    for (op, field) in [
        ("compute-task", "key"),
        ("free-keys", "keys"),
        ("acquire-replicas", "who_has"),
        ("refresh-who-has", "who_has"),
        ("steal-request", "key"),
        ("remove-worker", "worker"),
        ("worker-status-change", "status"),
    ] {
        let error = decode_scheduler_batch(&encode(&map! { "op" => op }.into())).unwrap_err();
        assert!(error.to_string().contains(&format!("`{field}`")), "{error}");
    }
}

#[test]
fn a_scheduler_reads_the_ends_of_tasks() {
    let key = Key::from("x");
    let startstops = [StartStop {
        action: "transfer",
        start: 1.0,
        stop: 2.0,
        source: Some("tcp://a:1".into()),
    }];
    let read_startstops = Value::Array(vec![
        map! { "action" => "transfer", "start" => 1.0, "stop" => 2.0, "source" => "tcp://a:1" }
            .into(),
    ]);
    let message = told_scheduler(&ToScheduler::TaskFinished(FinishedTask {
        key: &key,
        run_id: 4,
        nbytes: 28,
        r#type: b"pickle",
        typename: "int",
        metadata: &Value::Map(Map::new()),
        thread: Some(9),
        startstops: &startstops,
        stimulus_id: "s-1",
    }));
    let WorkerMessage::TaskFinished(task) = message else {
        panic!("{message:?}");
    };
    assert_eq!((&task.key, task.run_id, task.nbytes), (&key, 4, 28));
    assert_eq!(
        (task.r#type.as_ref(), &*task.typename),
        (&b"pickle"[..], "int")
    );
    assert_eq!(
        (task.thread, &task.startstops),
        (Value::Int(9), &read_startstops)
    );
    assert_eq!(task.stimulus_id, stimulus_id());

    let message = told_scheduler(&ToScheduler::TaskErred(ErredTask {
        key: &key,
        run_id: 4,
        exception: &Value::Bin("exception".into()),
        traceback: &Value::Nil,
        exception_text: "ValueError()",
        traceback_text: "line 1",
        thread: None,
        startstops: &startstops,
        stimulus_id: "s-1",
    }));
    let WorkerMessage::TaskErred(task) = message else {
        panic!("{message:?}");
    };
    assert_eq!((&task.key, task.run_id), (&key, 4));
    assert_eq!(task.exception, Value::Bin("exception".into()));
    assert_eq!(
        (&*task.exception_text, &*task.traceback_text),
        ("ValueError()", "line 1")
    );
    assert!(task.thread.is_nil() && task.traceback.is_nil());
}

#[test]
fn a_scheduler_reads_what_a_worker_writes() {
    let keys = [Key::from("x")];
    let key = &keys[0];
    let stimulus = "s-1";
    let (topic, msg) = (Value::from("topic"), Value::from("event"));
    let written = [
        ToScheduler::ReleaseWorkerData {
            key,
            stimulus_id: stimulus,
        },
        ToScheduler::Reschedule {
            key,
            stimulus_id: stimulus,
        },
        ToScheduler::LongRunning {
            key,
            run_id: 2,
            compute_duration: Some(0.5),
            stimulus_id: stimulus,
        },
        ToScheduler::LongRunning {
            key,
            run_id: 2,
            compute_duration: None,
            stimulus_id: stimulus,
        },
        ToScheduler::AddKeys {
            keys: &keys,
            stimulus_id: stimulus,
        },
        ToScheduler::RequestRefreshWhoHas {
            keys: &keys,
            stimulus_id: stimulus,
        },
        ToScheduler::StealResponse {
            key,
            state: Some("ready"),
            stimulus_id: stimulus,
        },
        ToScheduler::StealResponse {
            key,
            state: None,
            stimulus_id: stimulus,
        },
        ToScheduler::WorkerStatusChange {
            status: "running",
            stimulus_id: stimulus,
        },
        ToScheduler::LogEvent {
            topic: &topic,
            msg: &msg,
        },
        ToScheduler::KeepAlive,
        ToScheduler::CloseStream,
    ];
    let key = key.clone();
    let long_running = |compute_duration| WorkerMessage::LongRunning {
        key: key.clone(),
        run_id: 2,
        compute_duration,
        stimulus_id: stimulus_id(),
    };
    let steal_response = |state: Option<&str>| WorkerMessage::StealResponse {
        key: key.clone(),
        state: state.map(Into::into),
        stimulus_id: stimulus_id(),
    };
    let read = [
        WorkerMessage::ReleaseWorkerData {
            key: key.clone(),
            stimulus_id: stimulus_id(),
        },
        WorkerMessage::Reschedule {
            key: key.clone(),
            stimulus_id: stimulus_id(),
        },
        long_running(Some(0.5)),
        long_running(None),
        WorkerMessage::AddKeys {
            keys: keys.to_vec(),
            stimulus_id: stimulus_id(),
        },
        WorkerMessage::RequestRefreshWhoHas {
            keys: keys.to_vec(),
            stimulus_id: stimulus_id(),
        },
        steal_response(Some("ready")),
        steal_response(None),
        WorkerMessage::WorkerStatusChange {
            status: "running".into(),
            stimulus_id: stimulus_id(),
        },
        WorkerMessage::LogEvent {
            topic: topic.clone(),
            msg: msg.clone(),
        },
        WorkerMessage::KeepAlive,
        WorkerMessage::CloseStream,
    ];
    for (written, read) in written.iter().zip(read) {
        assert_eq!(told_scheduler(written), read);
    }
}
