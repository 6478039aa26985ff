//! Shows what this crate makes of a message, for tests written in Python.
//!
//! `probe OPERATION` reads one stream message from standard input and writes one
//! to standard output.

use std::io::{Read, Write};

use bytes::Bytes;
use oxidask_wire::compression::{Compression, maybe_compress};
use oxidask_wire::frame::{Decoder, Limits, to_stream};
use oxidask_wire::pickle::{self, PickleArg};
use oxidask_wire::stream::{ComputeTask, Dependency, Number, RunSpec, ToClient, ToWorker};
use oxidask_wire::{BatchWriter, Error, Frames, Key, Map, Serialized, Value, decode, encode, map};

const UNCOMPRESSED_NBYTES_MAX: usize = 1 << 26;

fn main() -> std::io::Result<()> {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let operation = std::env::args().nth(1).unwrap_or_default();
    let answer = probe(&operation, &input).map_err(std::io::Error::other)?;
    std::io::stdout().write_all(&to_stream(&answer))
}

fn probe(operation: &str, input: &[u8]) -> Result<Frames, Error> {
    let mut messages = Vec::new();
    Decoder::new(Limits::default()).feed(input, &mut messages)?;
    let frames = messages.pop().ok_or(Error::MissingField {
        message: "input",
        field: "message",
    })?;
    let request = decode(&frames)?;
    Ok(match operation {
        "reencode" => encode(&request),
        "tasks" => encode(&tasks(&request)?),
        "constants" => encode(&constants()),
        "plain" => encode(&plain(&request)),
        "compress" => encode(&compress(&request)?),
        "logical" => encode(&logical(&request)?),
        "to-client" => to_client(),
        "to-worker" => to_worker()?,
        "helpers" => encode(&Value::from(map! {
            "bytes" => Serialized::of_bytes(Bytes::from_static(b"payload")),
            "error" => Serialized::error("cannot say"),
            "pickle" => oxidask_wire::Pickled::with_buffers(b"\x80\x05\x97.", [Bytes::from_static(b"abc")]),
        })),
        _ => {
            return Err(Error::MissingField {
                message: "arguments",
                field: "operation",
            });
        }
    })
}

/// `[[key, function pickle, encoded arguments], …]` to pickles of tasks.
fn tasks(request: &Value) -> Result<Value, Error> {
    let mut pickles = Vec::new();
    for task in request.as_array().unwrap_or_default() {
        let [key, function, arguments] = task.as_array().unwrap_or_default() else {
            continue;
        };
        let [Some(function), Some(arguments)] = [function.as_bin(), arguments.as_bin()] else {
            continue;
        };
        let made = pickle::task_pickle(&Key::from_value(key)?, function, arguments);
        pickles.push(match made {
            Ok(pickle) => Value::from(Bytes::from(pickle)),
            Err(error) => Value::from(error.to_string()),
        });
    }
    Ok(Value::Array(pickles))
}

fn constants() -> Value {
    let tuple_key = Key::from_value(&Value::Array(vec!["x-1".into(), 0_i64.into()]));
    let tuple_key = tuple_key.unwrap_or_else(|_| Key::from_str_key("x"));
    let pickles = [
        (
            "KeyError",
            pickle::exception_pickle("builtins", "KeyError", &[PickleArg::Str("naïve 'key'")]),
        ),
        (
            "TimeoutError",
            pickle::exception_pickle("builtins", "TimeoutError", &[PickleArg::Str("late")]),
        ),
        (
            "P2PConsistencyError",
            pickle::exception_pickle(
                "distributed.shuffle._exceptions",
                "P2PConsistencyError",
                &[PickleArg::Str("no longer active")],
            ),
        ),
        (
            "KilledWorker",
            pickle::killed_worker(&tuple_key, "tcp://10.0.0.1:1", &Value::Int(7), 3, &[]),
        ),
        (
            "KilledWorker with reasons",
            pickle::killed_worker(
                &tuple_key,
                "tcp://10.0.0.1:1",
                &Value::Int(7),
                1,
                &["attempt 1: naïve".to_owned(), "attempt 2: lost".to_owned()],
            ),
        ),
        (
            "NoWorkerError",
            pickle::no_worker_error(&Key::from_str_key("x-1"), 2.5),
        ),
        (
            "NoValidWorkerError",
            pickle::no_valid_worker_error(
                &tuple_key,
                Some(&["host"]),
                None,
                Some(&[("GPU", 1.0), ("MEM", 0.5)]),
                60.0,
            ),
        ),
        (
            "plain",
            pickle::plain_pickle(&PickleArg::Dict(vec![
                (PickleArg::Str("ints"), ints()),
                (PickleArg::Int(1), PickleArg::Float(-0.5)),
                (
                    PickleArg::Bytes(b"\0\xff"),
                    PickleArg::Set(vec![PickleArg::Str("a")]),
                ),
                (
                    PickleArg::Tuple(vec![PickleArg::None, PickleArg::Bool(true)]),
                    PickleArg::Global("builtins", "int"),
                ),
            ])),
        ),
    ];
    let pickles = pickles.into_iter();
    Value::Map(
        pickles
            .map(|(name, pickle)| (name, Bytes::from(pickle)))
            .collect(),
    )
}

fn ints() -> PickleArg<'static> {
    let edges = [
        0,
        255,
        256,
        65_535,
        65_536,
        -1,
        i64::from(i32::MIN),
        i64::MAX,
        i64::MIN,
    ];
    PickleArg::List(edges.into_iter().map(PickleArg::Int).collect())
}

/// `[pickle, …]` to `[[value] | nil, …]`.
fn plain(request: &Value) -> Value {
    let pickles = request.as_array().unwrap_or_default().iter();
    pickles
        .map(|pickle| {
            let read = pickle.as_bin().map(|bytes| pickle::read_plain(bytes));
            match read {
                Some(Ok(value)) => Value::Array(vec![value]),
                Some(Err(_)) | None => Value::Nil,
            }
        })
        .collect()
}

/// bytes to `{name: compressed}`, by the rule for a frame.
fn compress(request: &Value) -> Result<Value, Error> {
    let data = request.as_bin().cloned().unwrap_or_default();
    let mut compressed = Map::new();
    for compression in Compression::ALL {
        compressed.push(compression.name(), maybe_compress(compression, &data)?);
    }
    Ok(Value::Map(compressed))
}

/// `[serialized, …]` to `[[logical frame, …], …]`.
fn logical(request: &Value) -> Result<Value, Error> {
    let mut all = Vec::new();
    for value in request.as_array().unwrap_or_default() {
        let Some(value) = value.as_serialized() else {
            continue;
        };
        let frames = value.logical_frames(UNCOMPRESSED_NBYTES_MAX)?.into_iter();
        all.push(frames.map(Value::from).collect());
    }
    Ok(Value::Array(all))
}

fn to_client() -> Frames {
    let key = Key::from_str_key("x-1");
    let exception = Value::from(Serialized::of_bytes(Bytes::from_static(b"exc")));
    let keys = [key.clone()];
    let workers = ["tcp://a:1".into()];
    let messages = [
        ToClient::StreamStart {
            warning: "",
            error: "",
        },
        ToClient::KeyInMemory {
            key: &key,
            r#type: Some(b"class"),
            workers: Some(&workers),
        },
        ToClient::TaskErred {
            key: &key,
            exception: &exception,
            traceback: &Value::Nil,
        },
        ToClient::TaskErred {
            key: &key,
            exception: &exception,
            traceback: &exception,
        },
        ToClient::CancelledKeys {
            keys: &keys,
            as_set: true,
            reason: &Value::Str("lost dependencies".into()),
            msg: &Value::Nil,
        },
        ToClient::AdjustHeartbeatInterval { interval: 5.0 },
        ToClient::Restart,
    ];
    let mut batch = BatchWriter::new();
    for message in messages {
        message.write(batch.message());
    }
    batch.finish()
}

fn to_worker() -> Result<Frames, Error> {
    let key = Key::from_str_key("y-1");
    let dependency = Key::from_value(&Value::Array(vec!["x-1".into(), 0_i64.into()]))?;
    let dependencies = [Dependency {
        key: &dependency,
        nbytes: 28,
        who_has: vec!["tcp://a:1", "tcp://b:2"],
    }];
    let resources = [("GPU".into(), Number::Int(1))];
    let annotations = map! { "span" => map! { "name" => vec![Value::from("default")] } };
    let spec = pickle::plain_pickle(&PickleArg::Str("the spec"));
    let compute = ComputeTask {
        key: &key,
        run_id: 5,
        priority: [Number::Int(0), Number::Float(-0.01), Number::Int(3)],
        stimulus_id: "compute-task-1",
        dependencies: &dependencies,
        run_spec: RunSpec::Pickle(&spec, &[]),
        resource_restrictions: Some(&resources),
        actor: false,
        annotations: Some(&annotations),
        span_id: Some("span"),
    };
    let keys = [key.clone()];
    let mut batch = BatchWriter::new();
    ToWorker::ComputeTask(compute.clone()).write(&mut batch)?;
    ToWorker::FreeKeys {
        keys: &keys,
        stimulus_id: "why",
    }
    .write(&mut batch)?;
    ToWorker::ComputeTask(ComputeTask {
        run_spec: RunSpec::None,
        resource_restrictions: None,
        annotations: None,
        span_id: None,
        ..compute
    })
    .write(&mut batch)?;
    Ok(batch.finish())
}
