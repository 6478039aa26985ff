//! Captured messages of stock Dask against their recorded content.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a test reads its samples and fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use oxidask_wire::frame::{Decoder, Limits, to_stream};
use oxidask_wire::handshake::Handshake;
use oxidask_wire::stream::{
    AskedRunSpec, ClientMessage, SchedulerMessage, WorkerMessage, decode_client_batch,
    decode_scheduler_batch, decode_worker_batch,
};
use oxidask_wire::{Frames, Key, Map, Value, decode, encode};
use serde_json::json;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn index() -> Vec<serde_json::Value> {
    let text = fs::read_to_string(golden().join("golden-index.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn messages(stream: &[u8]) -> Vec<Frames> {
    let mut messages = Vec::new();
    let mut decoder = Decoder::new(Limits::default());
    decoder.feed(stream, &mut messages).unwrap();
    assert!(decoder.is_idle());
    messages
}

fn sample(name: &str) -> Frames {
    let mut messages = messages(&fs::read(golden().join(name)).unwrap());
    assert_eq!(messages.len(), 1);
    messages.pop().unwrap()
}

/// The index's notation of a value. Offsets and lengths of sub-frames are
/// checked through the frames themselves.
fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Nil => json!(null),
        Value::Bool(v) => json!(v),
        Value::Int(v) => json!(v),
        Value::UInt(v) => json!(v),
        Value::Float(v) => json!(v),
        Value::Str(v) => json!(v.as_str()),
        Value::Bin(v) if v.len() > 96 => json!({ "$bytes_len": v.len() }),
        Value::Bin(v) => json!({ "$bytes": STANDARD.encode(v) }),
        Value::Array(values) => values.iter().map(to_json).collect(),
        Value::Set(values) => {
            json!({ "__Set__": true, "as-list": values.iter().map(to_json).collect::<Vec<_>>() })
        }
        Value::Map(map) if map.iter().all(|(k, _)| k.as_str().is_some()) => map
            .iter()
            .map(|(k, v)| (k.as_str().unwrap().to_owned(), to_json(v)))
            .collect(),
        Value::Map(map) => {
            let pairs = map.iter().map(|(k, v)| json!([to_json(k), to_json(v)]));
            json!({ "$map": pairs.collect::<Vec<_>>() })
        }
        Value::Serialized(v) => json!({ "$serialized": {
            "header": to_json(&Value::Map(v.header_map().unwrap())),
            "sub_frame_lengths": v.frames.iter().map(Bytes::len).collect::<Vec<_>>(),
        }}),
        Value::Pickled(v) => json!({ "$pickled": {
            "header": to_json(&Value::Map(v.header_map().unwrap())),
            "sub_frame_lengths": v.frames.iter().map(Bytes::len).collect::<Vec<_>>(),
        }}),
        Value::Enum(_) | Value::Key(_) | Value::Raw(_) => panic!("not in the samples: {value:?}"),
    }
}

/// The recorded content without offsets, and with floats that stayed ints alike.
fn expected(json: &serde_json::Value) -> serde_json::Value {
    match json {
        serde_json::Value::Object(object) => object
            .iter()
            .filter(|(name, _)| *name != "offset")
            .map(|(name, value)| (name.clone(), expected(value)))
            .collect(),
        serde_json::Value::Array(values) => values.iter().map(expected).collect(),
        other => other.clone(),
    }
}

#[test]
fn every_sample_decodes_to_its_recorded_content() {
    let index = index();
    assert_eq!(index.len(), 26);
    for entry in index {
        let name = entry["file"].as_str().unwrap();
        let frames = sample(name);
        let lengths: Vec<usize> = frames.iter().map(Bytes::len).collect();
        assert_eq!(json!(lengths), entry["frame_lengths"], "{name}");
        let value = decode(&frames).unwrap();
        assert_eq!(to_json(&value), expected(&entry["message"]), "{name}");
    }
}

#[test]
fn every_sample_survives_encoding() {
    for entry in index() {
        let name = entry["file"].as_str().unwrap();
        let frames = sample(name);
        let value = decode(&frames).unwrap();
        let encoded = encode(&value);
        assert_eq!(decode(&encoded).unwrap(), value, "{name}");
        // Frames may be numbered in another order, but their bytes are the same.
        let sorted = |frames: &[Bytes]| {
            let mut frames = frames[1..].to_vec();
            frames.sort();
            frames
        };
        assert_eq!(sorted(&encoded), sorted(&frames), "{name}");
        assert_eq!(messages(&to_stream(&encoded)), [encoded], "{name}");
    }
}

#[test]
fn payloads_are_not_copied() {
    let stream = fs::read(golden().join("compressed-lz4-sharded.bin")).unwrap();
    let frames = messages(&stream).pop().unwrap();
    let value = decode(&frames).unwrap();
    let payload = value.as_map().unwrap().get("rand").unwrap();
    let payload = &payload.as_serialized().unwrap().frames[0];
    assert!(
        frames
            .iter()
            .any(|frame| frame.as_ptr() == payload.as_ptr())
    );
    let again = encode(&value);
    assert!(again.iter().any(|frame| frame.as_ptr() == payload.as_ptr()));
}

#[test]
fn lz4_shards_are_joined() {
    let frames = sample("compressed-lz4-sharded.bin");
    let value = decode(&frames).unwrap();
    let map = value.as_map().unwrap();
    let logical = |name: &str, limit| {
        let value = map.get(name).unwrap();
        value.as_serialized().unwrap().logical_frames(limit)
    };
    assert_eq!(logical("zeros", 32_000).unwrap(), [vec![0; 32_000]]);
    assert_eq!(logical("rand", 1 << 20).unwrap()[0].len(), 20_000);
    assert!(logical("zeros", 31_999).is_err());
    assert!(logical("rand", 19_999).is_err());
}

#[test]
fn handshakes_negotiate() {
    let ours = Handshake::new([3, 12, 1]);
    assert_eq!(ours.encode(), sample("handshake.bin"));
    let scheduler = Handshake::decode(&sample("handshake-scheduler-outgoing.bin")).unwrap();
    assert_eq!(scheduler.pickle_protocol, 4);
    assert_eq!(ours.negotiate(&scheduler).pickle_protocol, 4);

    let with = |name: &str| Handshake {
        compression: Some(name.into()),
        ..ours.clone()
    };
    let agreed = with("lz4").negotiate(&with("lz4"));
    assert_eq!(agreed.compression.as_deref(), Some("lz4"));
    assert_eq!(with("lz4").negotiate(&with("zstd")).compression, None);
    assert_eq!(with("lz4").negotiate(&ours).compression, None);

    let native = |version: u32| Handshake {
        native: Some(version),
        ..ours.clone()
    };
    assert_eq!(native(1).negotiate(&native(2)).native, Some(1));
    assert_eq!(native(1).negotiate(&scheduler).native, None);
    assert_eq!(ours.negotiate(&native(1)).native, None);
    assert_eq!(Handshake::decode(&native(1).encode()).unwrap(), native(1));
    assert_eq!(
        Handshake::decode(&with("lz4").encode()).unwrap(),
        with("lz4")
    );
}

#[test]
fn task_finished_is_typed() {
    let batch = decode_worker_batch(&sample("task-finished.bin")).unwrap();
    let [WorkerMessage::TaskFinished(message)] = batch.as_slice() else {
        panic!("{batch:?}");
    };
    assert_eq!(
        message.key,
        Key::from("add-aea773e43f71127752f47e22b74b36f9")
    );
    assert_eq!((message.run_id, message.nbytes), (0, 28));
    assert_eq!(message.typename, "int");
    assert_eq!(message.stimulus_id, "task-finished-1795174406.2028842");
    assert_eq!(message.thread, Value::Int(139_731_862_025_920));
    assert_eq!(message.metadata, Value::Map(Map::new()));
    let startstop = message.startstops.as_array().unwrap()[0].as_map().unwrap();
    assert_eq!(startstop.get("action").unwrap().as_str(), Some("compute"));
    assert_eq!(
        startstop.get("start").unwrap().as_f64(),
        Some(1_795_174_406.211_907_1)
    );
}

#[test]
fn update_graph_is_typed() {
    let batch = decode_client_batch(&sample("update-graph-two-in-one-batch.bin")).unwrap();
    let graphs: Vec<_> = batch
        .iter()
        .map(|message| match message {
            ClientMessage::UpdateGraph(graph) => graph,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(graphs.len(), 2);
    assert_ne!(graphs[0].expr_ser, graphs[1].expr_ser);
    assert_eq!(graphs[0].internal_priority.as_ref().unwrap().len(), 1);
    assert!(graphs[0].code.as_pickled().is_some());
    assert_eq!(graphs[0].fifo_timeout.as_str(), Some("100 ms"));

    let batch = decode_client_batch(&sample("update-graph-array.bin")).unwrap();
    let [ClientMessage::UpdateGraph(graph)] = batch.as_slice() else {
        panic!("{batch:?}");
    };
    assert_eq!(graph.internal_priority, None);
    assert_eq!(
        graph.expr_ser.serializer().unwrap().as_deref(),
        Some("pickle")
    );

    let batch = decode_client_batch(&sample("client-close.bin")).unwrap();
    assert_eq!(
        batch,
        [ClientMessage::CloseClient, ClientMessage::CloseStream]
    );
}

#[test]
fn free_keys_of_a_tuple_key_is_other_to_a_scheduler() {
    let batch = decode_worker_batch(&sample("free-keys-tuple-key.bin")).unwrap();
    let [WorkerMessage::Other { op, fields }] = batch.as_slice() else {
        panic!("{batch:?}");
    };
    assert_eq!(*op, "free-keys");
    let keys = fields.get("keys").unwrap().as_array().unwrap();
    let key = Key::from_value(&keys[0]).unwrap();
    assert_eq!(
        key.python_repr(),
        "('sum-158217041e68c0d59fce4899d18de602', 1, 0)"
    );
    assert_eq!(key.key_split(), "sum");
}

#[test]
fn compute_task_is_typed_for_a_worker() {
    let batch = decode_scheduler_batch(&sample("compute-task-with-deps.bin")).unwrap();
    let tasks: Vec<_> = batch
        .iter()
        .map(|message| match message {
            SchedulerMessage::ComputeTask(task) => task,
            other => panic!("{other:?}"),
        })
        .collect();
    for task in &tasks {
        assert_eq!(task.priority.len(), 3);
        assert!(task.stimulus_id.starts_with("compute-task-"));
        let AskedRunSpec::Node(node) = &task.run_spec else {
            panic!("{:?}", task.run_spec);
        };
        assert!(node.as_pickled().is_some());
        let dependencies: Vec<_> = task.who_has.iter().map(|(key, _)| key).collect();
        let sized: Vec<_> = task.nbytes.iter().map(|(key, _)| key).collect();
        assert_eq!(dependencies, sized);
        assert!(task.who_has.iter().all(|(_, holders)| !holders.is_empty()));
        assert_eq!((task.actor, task.annotations.len()), (false, 0));
        assert!(task.span_id.is_some());
    }
    assert!(tasks.iter().any(|task| !task.who_has.is_empty()));
}

#[test]
fn free_keys_is_typed_for_a_worker() {
    let batch = decode_scheduler_batch(&sample("free-keys-tuple-key.bin")).unwrap();
    let [SchedulerMessage::FreeKeys { keys, stimulus_id }] = batch.as_slice() else {
        panic!("{batch:?}");
    };
    assert_eq!(keys[0].key_split(), "sum");
    assert!(!stimulus_id.is_empty());
}
