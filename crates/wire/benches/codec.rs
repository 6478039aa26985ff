//! Nanoseconds of the hot codecs. Run with `cargo bench -p oxidask-wire`.

use bytes::Bytes;
use divan::{Bencher, black_box};
use oxidask_wire::frame::{Decoder, Limits, to_stream};
use oxidask_wire::stream::{
    ComputeTask, Dependency, Number, RunSpec, ToClient, ToWorker, decode_worker_batch,
};
use oxidask_wire::{BatchWriter, Frames, Key, KeyRef, decode, pickle};

fn main() {
    divan::main();
}

fn golden(stream: &'static [u8]) -> Frames {
    let mut messages = Vec::new();
    let fed = Decoder::new(Limits::default()).feed(stream, &mut messages);
    fed.expect("a golden sample is well-formed");
    messages.pop().expect("a golden sample is a message")
}

#[divan::bench]
fn decode_task_finished(bencher: Bencher) {
    let frames = golden(include_bytes!("../tests/golden/task-finished.bin"));
    bencher.bench(|| decode_worker_batch(black_box(&frames)));
}

#[divan::bench]
fn decode_task_finished_as_value(bencher: Bencher) {
    let frames = golden(include_bytes!("../tests/golden/task-finished.bin"));
    bencher.bench(|| decode(black_box(&frames)));
}

#[divan::bench]
fn decode_heartbeat_worker(bencher: Bencher) {
    let frames = golden(include_bytes!("../tests/golden/heartbeat-worker.bin"));
    bencher.bench(|| decode(black_box(&frames)));
}

/// One of the 64 messages of a batch.
#[divan::bench]
fn encode_compute_task_of_64(bencher: Bencher) {
    let key = Key::from_str_key("inc-aea773e43f71127752f47e22b74b36f9");
    let dependency = Key::from_str_key("add-158217041e68c0d59fce4899d18de602");
    let dependencies = [Dependency {
        key: &dependency,
        nbytes: 28,
        who_has: vec!["tcp://127.0.0.1:45513"],
    }];
    let spec = vec![7; 200];
    let message = ToWorker::ComputeTask(ComputeTask {
        key: &key,
        run_id: 1234,
        priority: [Number::Int(0), Number::Int(1), Number::Int(77)],
        stimulus_id: "task-finished-1795174406.2028842",
        dependencies: &dependencies,
        run_spec: RunSpec::Pickle(&spec, &[]),
        resource_restrictions: None,
        actor: false,
        annotations: None,
        span_id: Some("31b21d80-4b3a-451f-97d4-c90eb2f879cc"),
    });
    bencher
        .counter(divan::counter::ItemsCount::new(64_u32))
        .bench(|| {
            let mut batch = BatchWriter::new();
            for _ in 0..64 {
                message
                    .write(&mut batch)
                    .expect("a pickle needs no stitching");
            }
            batch.finish()
        });
}

#[divan::bench]
fn encode_key_in_memory_of_64(bencher: Bencher) {
    let key = Key::from_str_key("inc-aea773e43f71127752f47e22b74b36f9");
    let message = ToClient::KeyInMemory {
        key: &key,
        r#type: Some(b"\x80\x05\x95\x14\0\0\0\0\0\0\0\x8c\x08builtins\x94\x8c\x03int\x94\x93\x94."),
        workers: None,
    };
    bencher
        .counter(divan::counter::ItemsCount::new(64_u32))
        .bench(|| {
            let mut batch = BatchWriter::new();
            for _ in 0..64 {
                message.write(batch.message());
            }
            batch.finish()
        });
}

#[divan::bench]
fn stitch_task_pickle(bencher: Bencher) {
    let key = Key::from_str_key("inc-aea773e43f71127752f47e22b74b36f9");
    let arguments = b"\x91\x92\xd4\x01\x05\x07";
    bencher.bench(|| pickle::task_pickle(black_box(&key), &[7; 60], arguments));
}

#[divan::bench]
fn hash_tuple_key(bencher: Bencher) {
    let encoded = b"\x93\xd9\x24sum-158217041e68c0d59fce4899d18de602\0\0";
    let hasher = foldhash::fast::RandomState::default();
    bencher.bench(|| {
        let key = KeyRef::from_msgpack(black_box(encoded)).expect("a key");
        key.python_hash(&hasher)
    });
}

#[divan::bench]
fn frames_of_a_stream(bencher: Bencher) {
    let frames: Frames = vec![Bytes::from_static(&[0; 300]); 4];
    let stream = to_stream(&frames);
    bencher.bench(|| {
        let mut messages = Vec::new();
        let mut decoder = Decoder::new(Limits::default());
        decoder
            .feed(black_box(&stream), &mut messages)
            .map(|()| messages)
    });
}
