//! What a worker answers to requests.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use oxidask_comm::{Address, Reader, Writer};
use oxidask_wire::compression::Compression;
use oxidask_wire::{Key, Map, Serialized, Str, Value, map, message};
use oxidask_worker::event::Event;
use oxidask_worker::story::{Happening, Record};
use oxidask_worker::task::TaskFailure;
use oxidask_worker::{StimulusId, TaskState};
use tracing::{debug, error};

use super::args::{Args, WhoHas, who_has};
use super::executor::{Answer, Outgoing, Request};
use super::memory::Wanted;
use super::metrics::Reads;
use super::serve::Answered;
use super::shell::{Closing, Report, Shell, ShellHandle, Stimulus, stimulus_id};
use super::status::Status;
use super::store::{compact, outgoing};
use super::{failure, spill, transfer};
use crate::logging::Logs;
use crate::scheduler::gather::{self, GatherPlan, Step};

/// Answers a request. What is not known here is the executor's; what is not
/// known there either is answered with nil, as in Dask.
pub(super) async fn call(handle: &ShellHandle, op: Str, mut args: Args) -> Answer {
    match &*op {
        "identity" => Ok(identity(handle)),
        "ping" => Ok(Value::Bin(bytes::Bytes::from_static(b"pong"))),
        "echo" => Ok(args.optional("data")),
        "gather" => gather(handle, args).await,
        "update_data" => update_data(handle, args).await,
        "free_keys" => {
            let keys = args.keys("keys")?;
            let stimulus_id = args.stimulus_id("free-keys");
            let stimulus = Stimulus::new(stimulus_id, Event::FreeKeys { keys });
            handle.stimuli(vec![stimulus]).await?;
            Ok(Value::Nil)
        }
        "keys" => {
            let keys = handle.call(|shell| shell.store.keys().map(Value::from).collect::<Value>());
            Ok(keys.await?)
        }
        "get_logs" => Ok(logs(handle, args)),
        "get_story" => story(handle, args).await,
        "get_monitor_info" => {
            let recent = args.flag("recent", false);
            let start = args.optional("start").as_u64().unwrap_or(0);
            let info = handle.call(move |shell| shell.metrics.monitor.info(recent, start));
            Ok(info.await?)
        }
        "dump_state" => dump_state(handle, args).await,
        "terminate" => {
            let reason = args.optional_str("reason");
            let reason = reason.as_deref().unwrap_or("worker-close");
            let (nanny, wait) = (args.flag("nanny", true), args.flag("executor_wait", true));
            let mut closing = Closing::new(reason, nanny, wait);
            let timeout = args.optional("timeout").as_f64();
            if let Some(timeout) = timeout.and_then(|s| Duration::try_from_secs_f64(s).ok()) {
                closing.timeout = closing.timeout.min(timeout);
            }
            handle.close_as(closing);
            Ok("OK".into())
        }
        _ => {
            let args = args.0.into_iter();
            let request = Request {
                args: args
                    .map(|(name, value)| (name.detached(), compact(value)))
                    .collect(),
                op,
            };
            match handle.executor.call(request).await {
                Some(answer) => answer,
                None => Ok(Value::Nil),
            }
        }
    }
}

fn identity(handle: &ShellHandle) -> Value {
    let settings = &handle.settings;
    Value::Map(map! {
        "type" => "Worker",
        "id" => settings.id.as_str(),
        "scheduler" => settings.scheduler.to_string(),
        "nthreads" => settings.options.nthreads,
        "memory_limit" => settings.options.memory_limit,
    })
}

/// The connection that a request came by.
pub(super) struct Link<'a> {
    pub(super) peer: &'a Address,
    /// What both ends have agreed on.
    pub(super) compression: Option<Compression>,
    pub(super) reader: &'a mut Reader,
    pub(super) writer: &'a mut Writer,
}

/// `get_data`: writes the answer and waits for the acknowledgement. `None` ends the
/// connection; `Err` is an answer that wants none.
pub(super) async fn get_data(
    handle: &ShellHandle,
    mut args: Args,
    link: Link<'_>,
) -> Option<Answered> {
    let Link {
        peer,
        compression,
        reader,
        writer,
    } = link;
    let keys = match args.keys("keys") {
        Ok(keys) => keys,
        Err(failure) => return Some(Err(Err(failure))),
    };
    let serializers = args.optional("serializers").into_array().map(|families| {
        families
            .into_iter()
            .filter_map(|family| Some(family.into_str()?.detached()))
            .collect::<Vec<_>>()
    });
    let limit = outgoing_limit(handle, peer);
    let begun = handle.call(move |shell| shell.begin_get_data(&keys, limit));
    let Begun {
        mut values,
        coming,
        nbytes,
    } = match begun.await {
        Ok(Some(begun)) => begun,
        Ok(None) => {
            debug!(
                target: "distributed.worker",
                %peer, "too many open connections to respond to a data request"
            );
            return Some(Err(Ok(Value::Map(map! { "status" => "busy" }))));
        }
        Err(shut_down) => return Some(Err(Err(shut_down.into()))),
    };
    let mut slot = Slot {
        handle,
        nbytes,
        begun: Instant::now(),
    };
    for (key, wanted) in coming {
        // What cannot be read any more is left out, as what is not here.
        if let Some(input) = wanted.arrived().await {
            values.push(outgoing(key, input));
        }
    }
    let mut data = serialized(handle, values, serializers).await;
    if let Some(compression) = compression {
        data = compressed(data, compression).await;
    }
    slot.begun = Instant::now();
    let reply = Value::Map(map! { "status" => "OK", "data" => data });
    let exchange = async {
        writer.write(&message::encode(&reply)).await?;
        drop(reply);
        reader.read().await
    };
    let acknowledged = tokio::select! {
        acknowledged = exchange => acknowledged,
        _ = handle.closing() => return None,
    };
    match acknowledged.map(|frames| message::decode(&frames)) {
        Ok(Ok(acknowledgement)) if acknowledgement.as_str() == Some("OK") => Some(Ok(())),
        Ok(other) => {
            error!(target: "distributed.worker", %peer, ?other, "data was not acknowledged");
            None
        }
        Err(error) => {
            error!(
                target: "distributed.worker",
                %error, "failed during get data with {} -> {peer}", handle.settings.address
            );
            None
        }
    }
}

/// Peers of the same host may have more, as in Dask.
fn outgoing_limit(handle: &ShellHandle, peer: &Address) -> Option<usize> {
    let settings = &handle.settings;
    let limit = settings.transfer_outgoing_count_limit?;
    let factor = if settings.own.is_same_host(peer) {
        2
    } else {
        1
    };
    Some(limit * factor)
}

/// One of the answers that may be under way at a time.
struct Slot<'a> {
    handle: &'a ShellHandle,
    nbytes: i64,
    begun: Instant,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.handle.report(Report::Sent {
            nbytes: self.nbytes,
            seconds: self.begun.elapsed().as_secs_f64(),
        });
    }
}

/// An answer to `get_data` that has its slot.
struct Begun {
    values: Vec<Outgoing>,
    /// What has to be read first.
    coming: Vec<(Key, Wanted)>,
    /// Bytes in memory of both.
    nbytes: i64,
}

impl Shell {
    /// Takes a slot and gives what is there, with its size; `None`: there is no slot.
    fn begin_get_data(&mut self, keys: &[Key], limit: Option<usize>) -> Option<Begun> {
        let limit = if self.status == Status::Paused {
            Some(1)
        } else {
            limit
        };
        if limit.is_some_and(|limit| self.metrics.transfer_outgoing_count >= limit) {
            return None;
        }
        let (mut values, mut coming, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        let mut nbytes = 0;
        let mut reads = Reads::default();
        for key in keys {
            match self.get(key) {
                Wanted::Here(input) => {
                    self.count_read(&mut reads, &input);
                    values.push(outgoing(key.clone(), input));
                }
                Wanted::Missing => {
                    missing.push(key.clone());
                    continue;
                }
                wanted @ Wanted::Coming(_) => coming.push((key.clone(), wanted)),
            }
            let ts = self.core.find_task(key);
            nbytes += ts.and_then(|ts| ts.nbytes).unwrap_or(0);
        }
        if !missing.is_empty() {
            let event = Event::DataMissing { keys: missing };
            self.stimulus(Stimulus::new(stimulus_id("get-data"), event));
        }
        self.metrics.get_data_reads(reads);
        self.metrics.transfer_outgoing_count += 1;
        self.metrics.transfer_outgoing_count_total += 1;
        self.metrics.transfer_outgoing_bytes += nbytes;
        self.metrics.transfer_outgoing_bytes_total += nbytes;
        Some(Begun {
            values,
            coming,
            nbytes,
        })
    }
}

/// Values as they go on the wire; what is serialised already goes as it is.
async fn serialized(
    handle: &ShellHandle,
    values: Vec<Outgoing>,
    serializers: Option<Vec<Str>>,
) -> Map {
    let mut data = Map::new();
    let mut rest = Vec::new();
    let by_reference = handle.executor.passes_references();
    for value in values {
        if by_reference {
            match handle.executor.reference(&value) {
                Some(reference) => data.push(&value.key, reference),
                None => rest.push(value),
            }
            continue;
        }
        if serializers.is_none()
            && !value.is_actor
            && let Some(scalar) = value.datum.as_scalar()
        {
            data.push(&value.key, scalar.to_value());
            continue;
        }
        let serialized = match value.is_actor {
            true => None,
            false => spill::serialize(&value.datum).await,
        };
        match serialized {
            Some(serialized) if is_of_family(&serialized, serializers.as_deref()) => {
                data.push(&value.key, serialized);
            }
            Some(_) | None => rest.push(value),
        }
    }
    if !rest.is_empty() {
        let serializers = if by_reference {
            Some(vec!["reference".into()])
        } else {
            serializers
        };
        let keys: Vec<Key> = rest.iter().map(|value| value.key.clone()).collect();
        let serialized = handle.executor.serialize(rest, serializers).await;
        for (key, value) in keys.into_iter().zip(serialized) {
            data.push(key, value);
        }
    }
    data
}

/// Compresses what is worth it. What is not understood goes as it is.
async fn compressed(data: Map, compression: Compression) -> Map {
    let compress = move || {
        let values = data.into_iter().map(|(key, value)| {
            let compressed = value
                .as_serialized()
                .and_then(|value| value.compressed(compression).ok().flatten());
            (key, compressed.map_or(value, Value::from))
        });
        values.collect()
    };
    // Megabytes take milliseconds, which others shall not wait for.
    let compressed = tokio::task::spawn_blocking(compress).await;
    compressed.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Whether the receiver takes this serialisation. Containers may hold any family.
fn is_of_family(serialized: &Serialized, serializers: Option<&[Str]>) -> bool {
    let Some(serializers) = serializers else {
        return true;
    };
    let family = serialized.serializer().ok().flatten();
    family.is_some_and(|family| serializers.contains(&family))
}

async fn update_data(handle: &ShellHandle, mut args: Args) -> Answer {
    let data = args.map("data")?;
    let stimulus_id = args.stimulus_id("update-data");
    let values = transfer::values(data)
        .ok_or_else(|| failure::builtin("TypeError", "argument 'data' must be a dict of keys"))?;
    let received = transfer::receive(handle, values).await;
    // Dask cannot tell them from the request itself: what does not deserialise fails it.
    let mut nbytes = Map::new();
    for (key, received) in &received {
        match received {
            Ok(datum) => nbytes.push(key, datum.nbytes),
            Err(failure) => return Err(failure.clone()),
        }
    }
    let (data, values) = transfer::split(received);
    let stimulus = Stimulus {
        stimulus_id,
        event: Event::UpdateData { data },
        values,
        spilled: Vec::new(),
    };
    // The caller may send on as soon as it has the answer.
    handle.arrive(stimulus).await?;
    Ok(Value::Map(map! { "nbytes" => nbytes, "status" => "OK" }))
}

/// `gather`: fetches replicas because the scheduler asks, in the words of a request.
async fn gather(handle: &ShellHandle, mut args: Args) -> Answer {
    let mut located = Some(args.who_has("who_has")?);
    let stimulus_id = stimulus_id("gather");
    let keys: Vec<Key> = located
        .iter()
        .flatten()
        .map(|(key, _)| key.clone())
        .collect();
    let missing = handle.call(move |shell| {
        let is_missing = |key: &Key| !shell.store.contains(key);
        keys.into_iter().filter(is_missing).collect::<Vec<_>>()
    });
    let mut plan = GatherPlan::new(missing.await?);
    loop {
        match plan.step() {
            Step::Locate(keys) => {
                let known = match located.take() {
                    Some(known) => known,
                    None => locate(handle, &keys).await?,
                };
                let mut known: HashMap<Key, Vec<Arc<str>>> = known.into_iter().collect();
                let keys = keys.into_iter();
                plan.located(
                    keys.map(|key| {
                        let holders = known.remove(&key).unwrap_or_default();
                        (key, holders)
                    })
                    .collect(),
                );
            }
            Step::Fetch(requests) => {
                let answers = requests.into_iter().map(|(worker, keys)| async move {
                    let answer = transfer::get_data(handle, &worker, &keys).await;
                    (worker, keys, answer)
                });
                for (worker, keys, answer) in join_all(answers).await {
                    plan.answered(&worker, keys, fetched(answer));
                }
            }
            Step::Wait => tokio::time::sleep(transfer::BUSY_PAUSE).await,
            Step::Done { data, failed } => {
                return finish_gather(handle, &stimulus_id, data, failed).await;
            }
        }
    }
}

fn fetched(answer: transfer::Answer) -> gather::Answer {
    match answer {
        transfer::Answer::Data(values) => gather::Answer::Data(values.into_iter().collect()),
        transfer::Answer::Busy => gather::Answer::Busy,
        transfer::Answer::Unreachable(error) => {
            error!(target: "distributed.worker", %error, "cannot gather from a peer");
            gather::Answer::Unreachable
        }
        transfer::Answer::Failed(failure) => {
            error!(
                target: "distributed.worker",
                "cannot use the answer of a peer: {}", failure.exception_text
            );
            gather::Answer::Failed
        }
    }
}

/// Holders of keys, as the scheduler knows them.
async fn locate(handle: &ShellHandle, keys: &[Key]) -> Result<WhoHas, Arc<TaskFailure>> {
    let settings = &handle.settings;
    let attempt = || {
        let fields = map! { "keys" => keys.iter().map(Value::from).collect::<Value>() };
        handle.request(&settings.scheduler, "who_has", fields)
    };
    let reply = settings.retry.run(attempt).await;
    let reply = reply.map_err(|error| failure::builtin("OSError", &error.to_string()))?;
    let reply = reply.into_map().unwrap_or_default();
    if reply.contains_key("exception") {
        return Err(failure::of_reply(reply));
    }
    who_has(reply).ok_or_else(|| failure::builtin("ValueError", "Unexpected response"))
}

async fn finish_gather(
    handle: &ShellHandle,
    stimulus_id: &StimulusId,
    data: Vec<(Key, Value)>,
    mut failed: Vec<Key>,
) -> Answer {
    let mut received = transfer::receive(handle, data).await;
    received.retain(|(key, received)| {
        if received.is_err() {
            failed.push(key.clone());
        }
        received.is_ok()
    });
    let (data, values) = transfer::split(received);
    let stimulus = Stimulus {
        stimulus_id: stimulus_id.clone(),
        event: Event::UpdateData { data },
        values,
        spilled: Vec::new(),
    };
    handle.arrive(stimulus).await?;
    if failed.is_empty() {
        return Ok(Value::Map(map! { "status" => "OK" }));
    }
    error!(target: "distributed.worker", "Could not find data: {failed:?}");
    let failed: Value = failed.into_iter().map(Value::from).collect();
    Ok(Value::Map(
        map! { "status" => "partial-fail", "keys" => failed },
    ))
}

/// `get_logs`: the process's own log, newest first.
fn logs(handle: &ShellHandle, args: Args) -> Value {
    records(&handle.settings.logs, args)
}

/// Records of a log as `get_logs` gives them.
pub(crate) fn records(logs: &Logs, mut args: Args) -> Value {
    let count = args.optional("n").as_u64();
    let count = count.and_then(|count| usize::try_from(count).ok());
    let start = args.optional("start").as_f64().unwrap_or(0.0);
    let timestamps = args.flag("timestamps", false);
    let records = logs.records(start, count).into_iter();
    records
        .map(|record| {
            let mut entry = vec![Value::from(&*record.level), Value::from(record.line)];
            if timestamps {
                entry.insert(0, record.timestamp.into());
            }
            Value::Array(entry)
        })
        .collect()
}

async fn story(handle: &ShellHandle, mut args: Args) -> Answer {
    let wanted = args.required("keys_or_stimuli")?.into_array();
    let wanted = wanted.ok_or_else(|| {
        failure::builtin("TypeError", "argument 'keys_or_stimuli' must be a list")
    })?;
    let keys: Vec<Key> = wanted
        .iter()
        .filter_map(|key| Key::from_value(key).ok())
        .collect();
    let stimuli: Vec<StimulusId> = wanted
        .iter()
        .filter_map(Value::as_str)
        .map(Into::into)
        .collect();
    let records = handle.call(move |shell| shell.core.story(&keys, &stimuli));
    let records = records.await?;
    Ok(records
        .iter()
        .map(|happened| record(happened, false))
        .collect())
}

/// An entry of `WorkerState.log`, as stock's tuples.
fn record(record: &Record, is_dump: bool) -> Value {
    let mut entry: Vec<Value> = match &record.what {
        Happening::Transition {
            key,
            start,
            finish,
            reached,
            recommendations,
        } => vec![
            key.into(),
            start.name().into(),
            finish.name().into(),
            reached.name().into(),
            recommendations
                .iter()
                .map(|(key, state)| {
                    let name = if is_dump { key.dump_name() } else { key.into() };
                    (name, state.name())
                })
                .collect::<Map>()
                .into(),
        ],
        Happening::Task { key, action, state } => {
            let mut entry = vec![key.into(), (*action).into()];
            entry.extend(state.map(|state| state.name().into()));
            entry
        }
        Happening::Tasks { action, keys } => {
            vec![(*action).into(), keys.iter().map(Value::from).collect()]
        }
        Happening::Transfer {
            action,
            worker,
            keys,
        } => {
            let keys: Vec<Value> = keys.iter().map(Value::from).collect();
            let keys = if is_dump {
                Value::Array(keys)
            } else {
                Value::Set(keys)
            };
            vec![(*action).into(), worker.into(), keys]
        }
    };
    entry.push(record.stimulus_id.as_str().into());
    entry.push(record.timestamp.into());
    Value::Array(entry)
}

/// `dump_state`: what `Client.dump_cluster_state` collects.
async fn dump_state(handle: &ShellHandle, mut args: Args) -> Answer {
    let excluded = args.optional("exclude").into_array().unwrap_or_default();
    let excluded: Vec<Str> = excluded
        .into_iter()
        .filter_map(|name| Some(name.into_str()?.detached()))
        .collect();
    let without = |map: &mut Map, excluded: &[Str]| {
        for name in excluded {
            map.remove(name.as_str());
        }
    };
    let settings = handle.settings.clone();
    let logs = logs(handle, Args::default());
    let state = handle.call(move |shell| {
        let tasks = shell.core.tasks().map(|(_, ts)| {
            let mut task = task(shell, ts);
            without(&mut task, &excluded);
            (ts.key.dump_name(), task)
        });
        let tasks: Map = tasks.collect();
        let log: Value = shell
            .core
            .log()
            .map(|happened| record(happened, true))
            .collect();
        let mut state = map! {
            "type" => "Worker",
            "id" => settings.id.as_str(),
            "address" => &settings.address,
            "status" => shell.status.name(),
            "nthreads" => settings.options.nthreads,
            "memory_limit" => settings.options.memory_limit,
            "logs" => logs,
            "tasks" => tasks,
            "log" => log,
            "transition_counter" => shell.core.transition_counter(),
            "transfer_incoming_bytes" => shell.core.transfer_incoming_bytes(),
            "transfer_outgoing_count" => shell.metrics.transfer_outgoing_count,
        };
        without(&mut state, &excluded);
        state
    });
    Ok(Value::Map(state.await?))
}

/// What is known of a task, for people.
pub(super) fn task(shell: &Shell, ts: &TaskState) -> Map {
    let dependencies = shell.core.dependencies(ts);
    map! {
        "key" => &ts.key,
        "state" => ts.state.name(),
        "run_id" => ts.run_id,
        "nbytes" => ts.nbytes,
        "typename" => ts.r#type.as_ref().map(|class| &class.name).cloned(),
        "dependencies" => dependencies.map(|ts| Value::from(&ts.key)).collect::<Value>(),
        "who_has" => shell.core.who_has(ts).map(Value::from).collect::<Value>(),
        "has_data" => shell.store.has(&ts.key),
        "annotations" => ts.annotations.clone(),
        "span_id" => ts.span_id.clone(),
    }
}
