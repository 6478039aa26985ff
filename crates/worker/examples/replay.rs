//! Plays scripts of events to the worker's core, for tests written in Python.
//!
//! Each line on standard input is a script, a JSON object with `config`, `events`
//! and `validate`; each line on standard output says what came of it: the
//! instructions of every event, the error that ended it, and the final state.

use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use oxidask_wire::{Key, Str, Value as WireValue};
use oxidask_worker::event::Insertion;
use oxidask_worker::instruction::{Instructions, SendMessageToScheduler as Message};
use oxidask_worker::story::{Happening, Record};
use oxidask_worker::task::{Action, StartStop, TaskFailure, ValueType};
use oxidask_worker::{
    ComputeTaskEvent, Config, Error, Event, Instruction, Priority, State, StimulusId, StoredValue,
    TaskState, WorkerState,
};
use serde_json::{Value, json};

fn main() -> std::io::Result<()> {
    // A failed validation is part of the answer.
    std::panic::set_hook(Box::new(|_| {}));
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let script: Value = serde_json::from_str(&line?)?;
        serde_json::to_writer(&mut out, &play(&script))?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

fn play(script: &Value) -> Value {
    let mut worker = WorkerState::new(config(&script["config"]));
    let mut steps = Vec::new();
    let mut error = Value::Null;
    let mut invalid = Value::Null;
    for stimulus in array(&script["events"]) {
        let stimulus_id = StimulusId::from(text(&stimulus["stimulus_id"]));
        let now = number(&stimulus["now"]);
        let mut out = Instructions::default();
        let outcome = worker.handle_stimulus(now, &stimulus_id, event(stimulus), &mut out);
        if let Err(failure) = outcome {
            error = kind(&failure).into();
            break;
        }
        steps.push(step(&out, &stimulus_id));
        if script["validate"] == true
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| worker.validate()))
        {
            invalid = match panic.downcast_ref::<String>() {
                Some(message) => message.as_str().into(),
                None => panic
                    .downcast_ref::<&str>()
                    .copied()
                    .unwrap_or_default()
                    .into(),
            };
            break;
        }
    }
    let log: Vec<Value> = if script["log"] == true {
        worker.log().map(record).collect()
    } else {
        Vec::new()
    };
    json!({
        "steps": steps,
        "error": error,
        "invalid": invalid,
        "state": if error.is_null() { state(&worker) } else { Value::Null },
        "log": log,
    })
}

/// The exception that stock raises.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::InvalidTransition { .. } => "InvalidTransition",
        Error::TransitionCounterMaxExceeded { .. } => "TransitionCounterMaxExceeded",
        Error::UnexpectedState { .. } => "AssertionError",
        Error::ReplicaInUse { .. } => "RuntimeError",
        Error::UnknownTask { expected, .. } if expected.contains("ran") => "AssertionError",
        Error::UnknownTask { .. } | Error::NotInFlight { .. } | Error::UnknownResource { .. } => {
            "KeyError"
        }
        Error::InvalidPriority { .. } => "ValueError",
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().expect("an array")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn integer(value: &Value) -> i64 {
    value.as_i64().expect("an integer")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// A number; nothing stands for infinity.
fn limit(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::INFINITY)
}

fn key(value: &Value) -> Key {
    Key::from(text(value))
}

fn keys(value: &Value) -> Vec<Key> {
    array(value).iter().map(key).collect()
}

fn pairs<T>(value: &Value, read: impl Fn(&Value) -> T) -> Vec<(Key, T)> {
    array(value)
        .iter()
        .map(|pair| (key(&pair[0]), read(&pair[1])))
        .collect()
}

fn addresses(value: &Value) -> Vec<Str> {
    array(value)
        .iter()
        .map(|address| Str::from(text(address)))
        .collect()
}

fn amounts(value: &Value) -> Vec<(Arc<str>, f64)> {
    array(value)
        .iter()
        .map(|pair| (text(&pair[0]).into(), number(&pair[1])))
        .collect()
}

fn config(value: &Value) -> Config {
    Config {
        nthreads: integer(&value["nthreads"]) as usize,
        resources: amounts(&value["resources"]),
        transfer_incoming_count_limit: integer(&value["transfer_incoming_count_limit"]) as usize,
        transfer_incoming_bytes_throttle_threshold: integer(
            &value["transfer_incoming_bytes_throttle_threshold"],
        ),
        transfer_incoming_bytes_limit: limit(&value["transfer_incoming_bytes_limit"]),
        transfer_message_bytes_limit: limit(&value["transfer_message_bytes_limit"]),
        seed: value["seed"].as_u64().expect("a seed"),
        ..Config::new(text(&value["address"]))
    }
}

fn failure(value: &Value) -> Arc<TaskFailure> {
    Arc::new(TaskFailure {
        exception: WireValue::Nil,
        traceback: WireValue::Nil,
        exception_text: Str::from(text(value)),
        traceback_text: Str::default(),
    })
}

/// `[nbytes, type name, disk-write]`, or the text of the exception on storing it.
fn insertion(value: &Value) -> Insertion {
    if value.is_string() {
        return Err(failure(value));
    }
    Ok(StoredValue {
        nbytes: integer(&value[0]),
        r#type: Arc::new(ValueType {
            pickled: Default::default(),
            name: Str::from(text(&value[1])),
        }),
        disk_write: (!value[2].is_null()).then(|| startstop(&value[2])),
    })
}

fn startstop(value: &Value) -> StartStop {
    let action = match text(&value[0]) {
        "compute" => Action::Compute,
        "transfer" => Action::Transfer,
        "disk-read" => Action::DiskRead,
        "disk-write" => Action::DiskWrite,
        _ => Action::Deserialize,
    };
    StartStop {
        action,
        start: number(&value[1]),
        stop: number(&value[2]),
        source: value[3].as_str().map(Arc::from),
    }
}

fn event(value: &Value) -> Event {
    let key_of = |name: &str| key(&value[name]);
    let worker = || Arc::from(text(&value["worker"]));
    let total_nbytes = || integer(&value["total_nbytes"]);
    let startstops = || array(&value["startstops"]).iter().map(startstop).collect();
    let thread = || value["thread"].as_u64();
    match text(&value["event"]) {
        "ComputeTaskEvent" => Event::ComputeTask(Box::new(ComputeTaskEvent {
            key: key_of("key"),
            run_id: integer(&value["run_id"]),
            who_has: pairs(&value["who_has"], addresses),
            nbytes: pairs(&value["nbytes"], integer),
            priority: Priority::from_scheduler(
                &array(&value["priority"])
                    .iter()
                    .map(number)
                    .collect::<Vec<_>>(),
            )
            .expect("a priority as the scheduler makes it"),
            run_spec: Some(WireValue::Bool(true)),
            resource_restrictions: amounts(&value["resource_restrictions"]),
            actor: value["actor"] == true,
            annotations: oxidask_wire::Map::new(),
            span_id: None,
        })),
        "FreeKeysEvent" => Event::FreeKeys {
            keys: keys(&value["keys"]),
        },
        "RemoveReplicasEvent" => Event::RemoveReplicas {
            keys: keys(&value["keys"]),
        },
        "AcquireReplicasEvent" => Event::AcquireReplicas {
            who_has: pairs(&value["who_has"], addresses),
            nbytes: pairs(&value["nbytes"], integer),
        },
        "RefreshWhoHasEvent" => Event::RefreshWhoHas {
            who_has: pairs(&value["who_has"], addresses),
        },
        "RemoveWorkerEvent" => Event::RemoveWorker {
            worker: Str::from(text(&value["worker"])),
        },
        "StealRequestEvent" => Event::StealRequest { key: key_of("key") },
        "CancelComputeEvent" => Event::CancelCompute { key: key_of("key") },
        "UpdateDataEvent" => Event::UpdateData {
            data: pairs(&value["data"], insertion),
        },
        "SecedeEvent" => Event::Secede {
            key: key_of("key"),
            compute_duration: number(&value["compute_duration"]),
        },
        "PauseEvent" => Event::Pause,
        "UnpauseEvent" => Event::Unpause,
        "FindMissingEvent" => Event::FindMissing,
        "RetryBusyWorkerEvent" => Event::RetryBusyWorker { worker: worker() },
        "GatherDepSuccessEvent" => Event::GatherDepSuccess {
            worker: worker(),
            total_nbytes: total_nbytes(),
            data: pairs(&value["data"], insertion),
            transfer: (!value["transfer"].is_null()).then(|| startstop(&value["transfer"])),
        },
        "GatherDepBusyEvent" => Event::GatherDepBusy {
            worker: worker(),
            total_nbytes: total_nbytes(),
        },
        "GatherDepNetworkFailureEvent" => Event::GatherDepNetworkFailure {
            worker: worker(),
            total_nbytes: total_nbytes(),
        },
        "GatherDepFailureEvent" => Event::GatherDepFailure {
            worker: worker(),
            total_nbytes: total_nbytes(),
            failure: failure(&value["exception"]),
        },
        "ExecuteSuccessEvent" => Event::ExecuteSuccess {
            key: key_of("key"),
            run_id: integer(&value["run_id"]),
            nbytes: integer(&value["nbytes"]),
            value: insertion(&value["value"]),
            startstops: startstops(),
            thread: thread(),
        },
        "ExecuteFailureEvent" => Event::ExecuteFailure {
            key: key_of("key"),
            run_id: integer(&value["run_id"]),
            failure: failure(&value["exception"]),
            startstops: startstops(),
            thread: thread(),
        },
        "RescheduleEvent" => Event::Reschedule { key: key_of("key") },
        other => panic!("unknown event {other}"),
    }
}

fn name(key: &Key) -> String {
    key.to_string()
}

fn names<'a>(keys: impl IntoIterator<Item = &'a Key>) -> Vec<String> {
    keys.into_iter().map(name).collect()
}

fn startstops(values: &[StartStop]) -> Vec<Value> {
    let one = |value: &StartStop| {
        let source = value.source.as_deref();
        json!([value.action.name(), value.start, value.stop, source])
    };
    values.iter().map(one).collect()
}

/// The instructions of an event; what happens to data is listed apart.
fn step(out: &Instructions, stimulus_id: &StimulusId) -> Value {
    let mut instructions = Vec::new();
    let mut data = Vec::new();
    for instruction in out.iter() {
        let (value, stimulus) = match instruction {
            Instruction::GatherDep(gather) => (
                json!([
                    "GatherDep",
                    &*gather.worker,
                    names(&gather.to_gather),
                    gather.total_nbytes
                ]),
                &gather.stimulus_id,
            ),
            Instruction::Execute(execute) => {
                (json!(["Execute", name(&execute.key)]), &execute.stimulus_id)
            }
            Instruction::RetryBusyWorkerLater(retry) => (
                json!(["RetryBusyWorkerLater", &*retry.worker]),
                &retry.stimulus_id,
            ),
            Instruction::SendMessageToScheduler(sent) => (message(sent), sent.stimulus_id()),
            Instruction::StoreData { key } => {
                data.push(json!(["store", name(key)]));
                continue;
            }
            Instruction::ReleaseData { key } => {
                data.push(json!(["release", name(key)]));
                continue;
            }
            Instruction::Transition { .. } => continue,
        };
        assert_eq!(stimulus, stimulus_id, "an instruction says why it is given");
        instructions.push(value);
    }
    json!([instructions, data])
}

fn message(message: &Message) -> Value {
    let op = message.op();
    match message {
        Message::TaskFinished(msg) => json!([
            op,
            name(&msg.key),
            msg.run_id,
            msg.nbytes,
            msg.r#type.name.as_str(),
            msg.thread,
            startstops(&msg.startstops),
        ]),
        Message::TaskErred(msg) => json!([
            op,
            name(&msg.key),
            msg.run_id,
            msg.failure.exception_text.as_str(),
            msg.thread,
            startstops(&msg.startstops),
        ]),
        Message::ReleaseWorkerData(msg) => json!([op, name(&msg.key)]),
        Message::Reschedule(msg) => json!([op, name(&msg.key)]),
        Message::LongRunning(msg) => {
            json!([op, name(&msg.key), msg.run_id, msg.compute_duration])
        }
        Message::AddKeys(msg) => json!([op, names(&msg.keys)]),
        Message::RequestRefreshWhoHas(msg) => json!([op, names(&msg.keys)]),
        Message::StealResponse(msg) => json!([op, name(&msg.key), msg.state.map(State::name)]),
    }
}

fn state(worker: &WorkerState) -> Value {
    let tasks: serde_json::Map<String, Value> = worker
        .tasks()
        .map(|(_, ts)| (name(&ts.key), task(worker, ts)))
        .collect();
    let counts: serde_json::Map<String, Value> = State::ALL
        .into_iter()
        .map(|state| (state.name().to_owned(), worker.count_in(state).into()))
        .filter(|(_, count)| *count != 0)
        .collect();
    let available: serde_json::Map<String, Value> = worker
        .resources()
        .map(|(name, _, available)| (name.to_string(), available.into()))
        .collect();
    json!({
        "tasks": tasks,
        "counts": counts,
        "available_resources": available,
        "running": worker.is_running(),
        "nbytes": worker.nbytes(),
        "executing_count": worker.executing_count(),
        "long_running_count": worker.long_running_count(),
        "executed_count": worker.executed_count(),
        "in_flight_tasks_count": worker.in_flight_tasks_count(),
        "waiting_count": worker.waiting_count(),
        "ready_count": worker.ready_count(),
        "transfer_incoming_count": worker.transfer_incoming_count(),
        "transfer_incoming_count_total": worker.transfer_incoming_count_total(),
        "transfer_incoming_bytes": worker.transfer_incoming_bytes(),
        "transition_counter": worker.transition_counter(),
    })
}

fn task(worker: &WorkerState, ts: &TaskState) -> Value {
    let related = |ids: &oxidask_worker::sets::IdSet<oxidask_worker::TaskId>| -> Vec<String> {
        ids.iter()
            .filter_map(|id| worker.task(id))
            .map(|ts| name(&ts.key))
            .collect()
    };
    let who_has: Vec<&str> = worker.who_has(ts).map(|address| &**address).collect();
    json!([
        ts.state.name(),
        ts.previous.map(|previous| previous.state().name()),
        ts.next().map(State::name),
        ts.run_id,
        ts.nbytes,
        ts.done,
        related(&ts.dependencies),
        related(&ts.dependents),
        related(&ts.waiting_for_data),
        related(&ts.waiters),
        who_has,
        startstops(&ts.startstops),
    ])
}

fn record(record: &Record) -> Value {
    let what = match &record.what {
        Happening::Transition {
            key,
            start,
            finish,
            reached,
            recommendations,
        } => {
            let recommended: Vec<Value> = recommendations
                .iter()
                .map(|(key, state)| json!([name(key), state.name()]))
                .collect();
            json!([
                name(key),
                start.name(),
                finish.name(),
                reached.name(),
                recommended
            ])
        }
        Happening::Task { key, action, state } => match state {
            Some(state) => json!([name(key), action, state.name()]),
            None => json!([name(key), action]),
        },
        Happening::Tasks { action, keys } => json!([action, names(keys)]),
        Happening::Transfer {
            action,
            worker,
            keys,
        } => json!([action, &**worker, names(keys)]),
    };
    json!([what, record.stimulus_id.as_str()])
}
