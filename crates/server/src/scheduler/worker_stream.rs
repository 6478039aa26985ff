//! A worker's stream, its nanny's registration, and observers of workers.

use std::sync::Arc;
use std::time::Duration;

use oxidask_comm::{Address, Reader, Scheme, Writer};
use oxidask_scheduler::{Event, NewWorker, Status, StimulusId, WorkerId};
use oxidask_wire::stream::{self, FunctionNumbers, WorkerMessage, decode_worker_batch};
use oxidask_wire::{Map, Str, Value, map, message};
use tracing::{debug, info, warn};

use super::args::Args;
use super::rpc;
use super::shell::{Shell, ShellHandle, WorkerLink, now};
use super::stream::Stream;

/// Least time between two batches to a worker of stock's, as stock. Ours gets
/// messages at once: what comes while one is written goes with the next.
const INTERVAL: Duration = Duration::from_millis(5);

/// Least time between two batches to an observer, as stock.
const OBSERVER_INTERVAL: Duration = Duration::from_millis(5);

pub(super) async fn serve(
    shell: &ShellHandle,
    args: Args,
    is_native: bool,
    mut reader: Reader,
    mut writer: Writer,
) {
    let worker = match new_worker(args, is_native).await {
        Ok(worker) => worker,
        Err(text) => return refuse(&mut writer, &text).await,
    };
    let address = worker.address.clone();
    let name = worker.name.clone();
    let versions = worker.versions.clone();
    let source = worker.server_id.clone();
    let warning = shell
        .settings
        .version_warning(shell, &versions, Some(&source))
        .await;

    let registered = shell.call(move |shell| register(shell, worker)).await;
    let (id, mut reply) = match registered {
        Ok(Ok(registered)) => registered,
        Ok(Err(text)) => {
            warn!(target: "distributed.scheduler", "Worker tried to connect with a duplicate name: {}", Shell::name_text(&name));
            return refuse(&mut writer, &text).await;
        }
        Err(_shut_down) => return,
    };
    reply.insert("warning", warning);
    reply.insert("error", "");
    let written = writer.write(&message::encode(&Value::Map(reply))).await;
    info!(target: "distributed.scheduler", "Starting worker compute stream, {address}");
    let interval = if is_native { Duration::ZERO } else { INTERVAL };
    let (sender, mut sending) = Stream::start(writer, interval, shell.settings.stream_nbytes_max);
    let link = WorkerLink {
        sender: sender.clone(),
        functions: is_native.then(FunctionNumbers::default),
    };
    let started = shell.call(move |shell| start_stream(shell, id, link)).await;
    if written.is_ok() && started.is_ok() {
        let left = tokio::select! {
            left = read(shell, id, &mut reader) => left,
            () = sending.ended() => Err("the connection broke, or the worker did not read fast enough".to_owned()),
            _ = shell.closing() => {
                sending.ended().await;
                return;
            }
        };
        if let Err(reason) = left {
            warn!(target: "distributed.scheduler", "closing the stream of worker {address}: {reason}");
        }
    }
    let _ = shell.call(move |shell| remove(shell, id)).await;
    sender.abort();
}

/// A text that says why a worker may not join; stock leaves some of these without
/// an answer, and the worker waiting.
async fn refuse(writer: &mut Writer, text: &str) {
    let reply = map! { "status" => "error", "message" => text, "time" => now() };
    // The worker may have gone by itself.
    let _ = writer.write(&message::encode(&Value::Map(reply))).await;
    let _ = writer.close().await;
}

async fn new_worker(mut args: Args, is_native: bool) -> Result<NewWorker, String> {
    let text = |failure: oxidask_scheduler::Failure| {
        format!("cannot register the worker: {}", failure.text)
    };
    let address = args.str("address").map_err(text)?;
    let address = Address::parse(&address, Scheme::Tcp).map_err(|error| error.to_string())?;
    let address = if args.flag("resolve_address", true) {
        address.resolve().await.map_err(|error| error.to_string())?
    } else {
        address
    };
    let nthreads = args
        .required("nthreads")
        .map_err(text)?
        .as_i64()
        .and_then(|nthreads| u32::try_from(nthreads).ok())
        .ok_or("cannot register the worker: nthreads must be a positive number")?;
    let status = args.optional_str("status");
    let status = status
        .as_deref()
        .and_then(Status::from_name)
        .unwrap_or(Status::Init);
    let name = args.optional("name").detached();
    let address: Arc<str> = address.to_string().into();
    Ok(NewWorker {
        name: if name.is_nil() {
            Value::from(&address)
        } else {
            name
        },
        address,
        nthreads,
        memory_limit: args.optional("memory_limit").as_u64(),
        local_directory: args
            .optional_str("local_directory")
            .unwrap_or_default()
            .detached(),
        resources: rpc::resources(&args.optional("resources")),
        status,
        nanny: args.optional_str("nanny").map(|nanny| nanny.detached()),
        pid: args.optional("pid").as_i64().unwrap_or(0),
        server_id: args
            .optional_str("server_id")
            .unwrap_or_default()
            .detached(),
        services: args.optional("services").detached(),
        versions: args.optional("versions").detached(),
        metrics: args.optional("metrics").detached(),
        worker_now: args.seconds("now"),
        is_native,
        extra: args
            .optional("extra")
            .into_map()
            .unwrap_or_default()
            .detached(),
        stimulus_id: args.stimulus_id("worker-connect"),
    })
}

fn register(shell: &mut Shell, worker: NewWorker) -> Result<(WorkerId, Map), String> {
    shell.core.check_worker(&worker.address, &worker.name)?;
    let address = worker.address.clone();
    shell.event(Event::AddWorker(Box::new(worker)));
    let id = shell
        .core
        .worker_id(&address)
        .ok_or("the worker was removed at once")?;
    let reply = map! {
        "status" => "OK",
        "time" => now(),
        "heartbeat-interval" => shell.heartbeat_interval(),
        "worker-plugins" => shell.worker_plugins.clone(),
    };
    Ok((id, reply))
}

/// Messages that came up between registration and now were not lost: the worker
/// is not running yet, so there were none.
fn start_stream(shell: &mut Shell, id: WorkerId, link: WorkerLink) {
    if shell.core.worker(id).is_some() {
        shell.workers.insert(id, link);
    } else {
        link.sender.close();
    }
}

fn remove(shell: &mut Shell, worker: WorkerId) {
    if shell.core.worker(worker).is_some() {
        let stimulus_id = format!("handle-worker-cleanup-{}", now()).into();
        shell.event(Event::WorkerLost {
            worker,
            stimulus_id,
        });
    }
}

async fn read(shell: &ShellHandle, worker: WorkerId, reader: &mut Reader) -> Result<(), String> {
    loop {
        let frames = match reader.read().await {
            Ok(frames) => frames,
            Err(oxidask_comm::Error::Malformed(error)) => return Err(error.to_string()),
            Err(error) => {
                debug!(target: "distributed.scheduler", %error, "worker stream broke");
                return Ok(());
            }
        };
        let messages = decode_worker_batch(&frames).map_err(|error| error.to_string())?;
        drop(frames);
        let mut events = Vec::with_capacity(messages.len());
        for message in messages {
            match message {
                WorkerMessage::CloseStream => {
                    let _ = shell.events(events).await;
                    return Ok(());
                }
                WorkerMessage::LogEvent { topic, msg } => {
                    let events = std::mem::take(&mut events);
                    let fields = map! { "topic" => topic, "msg" => msg };
                    other(shell, worker, events, "log-event".into(), fields).await?;
                }
                WorkerMessage::Other { op, fields } => {
                    other(shell, worker, std::mem::take(&mut events), op, fields).await?;
                }
                message @ (WorkerMessage::TaskFinished(_)
                | WorkerMessage::TaskErred(_)
                | WorkerMessage::ReleaseWorkerData { .. }
                | WorkerMessage::AddKeys { .. }
                | WorkerMessage::LongRunning { .. }
                | WorkerMessage::Reschedule { .. }
                | WorkerMessage::WorkerStatusChange { .. }
                | WorkerMessage::RequestRefreshWhoHas { .. }
                | WorkerMessage::StealResponse { .. }
                | WorkerMessage::KeepAlive) => events.extend(event(worker, message)?),
            }
        }
        shell
            .events(events)
            .await
            .map_err(|_| "the scheduler is shutting down".to_owned())?;
    }
}

async fn other(
    shell: &ShellHandle,
    worker: WorkerId,
    events: Vec<Event>,
    op: Str,
    mut fields: Map,
) -> Result<(), String> {
    if shell.host.handles_stream(&op) {
        let address = shell.call(move |shell| {
            for event in events {
                shell.event(event);
            }
            shell.worker_address(worker)
        });
        let address = address
            .await
            .map_err(|_| "the scheduler is shutting down".to_owned())?;
        fields.insert("worker", address);
        shell.host.handle_message(&op, fields);
        return Ok(());
    }
    let name = op.clone();
    let known = shell.call(move |shell| {
        for event in events {
            shell.event(event);
        }
        shell.extend(|extensions, core, now, out| {
            extensions.worker_stream(core, now, worker, &name, fields, out)
        })
    });
    let known = known
        .await
        .map_err(|_| "the scheduler is shutting down".to_owned())??;
    if known {
        Ok(())
    } else {
        Err(format!("unknown operation `{op}` on a worker's stream"))
    }
}

fn event(worker: WorkerId, message: WorkerMessage) -> Result<Option<Event>, String> {
    let stimulus = |stimulus_id: &Str| StimulusId::from(stimulus_id);
    Ok(Some(match message {
        WorkerMessage::TaskFinished(finished) => Event::TaskFinished {
            worker,
            key: finished.key,
            run_id: finished.run_id,
            nbytes: finished.nbytes,
            // Kept with the task's record: not as a slice of the whole batch.
            r#type: bytes::Bytes::copy_from_slice(&finished.r#type),
            typename: finished.typename.detached(),
            metadata: finished.metadata.detached(),
            thread: finished.thread,
            startstops: finished.startstops.detached(),
            stimulus_id: stimulus(&finished.stimulus_id),
        },
        WorkerMessage::TaskErred(erred) => Event::TaskErred {
            worker,
            key: erred.key,
            run_id: erred.run_id,
            exception: erred.exception.detached(),
            traceback: erred.traceback.detached(),
            exception_text: erred.exception_text.detached(),
            traceback_text: erred.traceback_text.detached(),
            thread: erred.thread,
            startstops: erred.startstops.detached(),
            stimulus_id: stimulus(&erred.stimulus_id),
        },
        WorkerMessage::ReleaseWorkerData { key, stimulus_id } => Event::ReleaseWorkerData {
            worker,
            key,
            stimulus_id: stimulus(&stimulus_id),
        },
        WorkerMessage::AddKeys { keys, stimulus_id } => Event::AddKeys {
            worker,
            keys,
            stimulus_id: stimulus(&stimulus_id),
        },
        WorkerMessage::LongRunning {
            key,
            run_id,
            compute_duration,
            stimulus_id,
        } => Event::LongRunning {
            worker,
            key,
            run_id,
            compute_duration,
            stimulus_id: stimulus(&stimulus_id),
        },
        WorkerMessage::Reschedule { key, stimulus_id } => Event::Reschedule {
            worker,
            key,
            stimulus_id: stimulus(&stimulus_id),
        },
        WorkerMessage::WorkerStatusChange {
            status,
            stimulus_id,
        } => {
            let status = Status::from_name(&status)
                .ok_or_else(|| format!("unknown worker status `{status}`"))?;
            Event::WorkerStatusChange {
                worker,
                status,
                stimulus_id: stimulus(&stimulus_id),
            }
        }
        WorkerMessage::RequestRefreshWhoHas { keys, stimulus_id } => Event::RequestRefreshWhoHas {
            worker,
            keys,
            stimulus_id: stimulus(&stimulus_id),
        },
        WorkerMessage::StealResponse {
            key,
            state,
            stimulus_id,
        } => Event::StealResponse {
            worker,
            key,
            state,
            stimulus_id: stimulus(&stimulus_id),
        },
        WorkerMessage::KeepAlive
        | WorkerMessage::LogEvent { .. }
        | WorkerMessage::CloseStream
        | WorkerMessage::Other { .. } => {
            return Ok(None);
        }
    }))
}

/// `register_nanny`: the connection stays open until the nanny has started its worker.
pub(super) async fn serve_nanny(
    shell: &ShellHandle,
    mut args: Args,
    mut reader: Reader,
    mut writer: Writer,
) {
    let address = args.optional_str("address").unwrap_or_default();
    let registered = shell.call(|shell| {
        shell
            .starting_nannies
            .send_modify(|starting| *starting += 1);
        map! { "status" => "OK", "nanny-plugins" => shell.nanny_plugins.clone() }
    });
    let Ok(reply) = registered.await else { return };
    if writer
        .write(&message::encode(&Value::Map(reply)))
        .await
        .is_ok()
    {
        // Whatever it says, it is done starting.
        if let Err(error) = reader.read().await {
            debug!(target: "distributed.scheduler", nanny = %address, %error, "nanny left while it started");
        }
    }
    let _ = shell
        .call(|shell| {
            shell
                .starting_nannies
                .send_modify(|starting| *starting -= 1)
        })
        .await;
    let _ = writer.close().await;
}

/// `subscribe_worker_status`.
pub(super) async fn serve_observer(shell: &ShellHandle, mut reader: Reader, mut writer: Writer) {
    // The reply and the subscription are one step: a worker that comes in between
    // would otherwise be missed, and its removal unknown to the observer.
    let identity = shell.call(|shell| rpc::identity(shell, usize::MAX, true));
    let Ok(identity) = identity.await else { return };
    let known: Vec<Value> = identity
        .get("workers")
        .and_then(Value::as_map)
        .map(|workers| workers.iter().map(|(address, _)| address.clone()).collect())
        .unwrap_or_default();
    if writer
        .write(&message::encode(&Value::Map(identity)))
        .await
        .is_err()
    {
        return;
    }
    let (sender, _sending) =
        Stream::start(writer, OBSERVER_INTERVAL, shell.settings.stream_nbytes_max);
    let observer = sender.clone();
    let subscribed = shell.call(move |shell| {
        catch_up(shell, &observer, &known);
        shell.observers.push(observer);
    });
    if subscribed.await.is_ok() {
        tokio::select! {
            () = reader.closed() => {}
            _ = shell.closing() => {}
        }
    }
    sender.close();
}

/// What happened between the reply and the subscription.
fn catch_up(shell: &Shell, observer: &Stream, known: &[Value]) {
    let mut added = Map::new();
    let mut current = Vec::new();
    for (_, worker) in shell.core.workers() {
        let address = Value::from(&worker.address);
        if !known.contains(&address) {
            added.push(address.clone(), rpc::brief_worker(worker));
        }
        current.push(address);
    }
    if !added.is_empty() {
        let message = map! { "workers" => added };
        observer.push(|batch| batch.push(&Value::Array(vec!["add".into(), message.into()])));
    }
    for gone in known.iter().filter(|address| !current.contains(address)) {
        observer.push(|batch| batch.push(&Value::Array(vec!["remove".into(), gone.clone()])));
    }
}

/// What a worker is told when the scheduler goes.
pub(super) fn say_goodbye(link: &WorkerLink) {
    link.sender.push(|batch| {
        let close = stream::ToWorker::Close {
            reason: "scheduler-close",
        };
        let _ = close.write(batch);
        let _ = stream::ToWorker::CloseStream.write(batch);
    });
    link.sender.close();
}
