//! The stream from the scheduler.

use bytes::Bytes;
use oxidask_comm::{Address, Reader};
use oxidask_wire::stream::{
    AskedComputeTask, AskedRunSpec, Functions, SchedulerMessage, decode_scheduler_batch,
};
use oxidask_wire::{Map, Str};
use oxidask_worker::{ComputeTaskEvent, Event, Priority, StimulusId};
use tracing::{debug, info, warn};

use super::executor::RunSpec;
use super::shell::{ShellHandle, Stimulus};
use super::status::Status;
use super::store::compact;

/// Reads until the stream ends; closes the worker then, for there is no way back
/// into a cluster. `Worker.handle_scheduler` in distributed.
pub(super) async fn serve(handle: ShellHandle, mut reader: Reader) {
    if let Err(reason) = read(&handle, &mut reader).await {
        warn!(
            target: "distributed.worker",
            "closing the stream of scheduler {}: {reason}", handle.settings.scheduler
        );
    }
    handle.forgotten("worker-handle-scheduler-connection-broken");
}

/// Reads messages that a peer sends without waiting for answers, as on the
/// scheduler's stream; it ends by itself. `Server.handle_stream` in distributed.
pub(super) async fn serve_peer(handle: &ShellHandle, reader: &mut Reader, peer: &Address) {
    info!(target: "distributed.core", "Starting established connection to {peer}");
    match read(handle, reader).await {
        Ok(()) => info!(target: "distributed.core", "Connection to {peer} has been closed."),
        Err(reason) => warn!(target: "distributed.core", "closing the stream of {peer}: {reason}"),
    }
}

async fn read(handle: &ShellHandle, reader: &mut Reader) -> Result<(), String> {
    let mut functions = Functions::default();
    loop {
        let frames = match reader.read().await {
            Ok(frames) => frames,
            Err(oxidask_comm::Error::Malformed(error)) => return Err(error.to_string()),
            Err(error) => {
                debug!(target: "distributed.worker", %error, "the scheduler's stream broke");
                return Ok(());
            }
        };
        let messages = decode_scheduler_batch(&frames).map_err(|error| error.to_string())?;
        drop(frames);
        let mut stimuli = Vec::with_capacity(messages.len());
        for message in messages {
            match message {
                SchedulerMessage::CloseStream => {
                    let _ = handle.stimuli(stimuli).await;
                    return Ok(());
                }
                SchedulerMessage::Close { reason } => {
                    let _ = handle.stimuli(std::mem::take(&mut stimuli)).await;
                    handle.close(reason.as_deref().unwrap_or("worker-close"), true);
                }
                SchedulerMessage::WorkerStatusChange {
                    status,
                    stimulus_id,
                } => {
                    let _ = handle.stimuli(std::mem::take(&mut stimuli)).await;
                    change_status(handle, &status, &stimulus_id).await?;
                }
                SchedulerMessage::Other { op, fields } => {
                    let _ = handle.stimuli(std::mem::take(&mut stimuli)).await;
                    other(handle, op, fields).await?;
                }
                SchedulerMessage::RemoveWorker {
                    worker,
                    stimulus_id,
                } => {
                    if let Ok(address) = Address::parse(&worker, oxidask_comm::Scheme::Tcp) {
                        handle.pool.remove(&address);
                    }
                    stimuli.push(Stimulus::new(&stimulus_id, Event::RemoveWorker { worker }));
                }
                SchedulerMessage::ComputeTask(task) => {
                    let stimulus_id = StimulusId::from(&task.stimulus_id);
                    let event = compute_task(*task, &mut functions)?;
                    let event = Event::ComputeTask(Box::new(event));
                    stimuli.push(Stimulus::new(stimulus_id, event));
                }
                message @ (SchedulerMessage::FreeKeys { .. }
                | SchedulerMessage::RemoveReplicas { .. }
                | SchedulerMessage::AcquireReplicas { .. }
                | SchedulerMessage::StealRequest { .. }
                | SchedulerMessage::RefreshWhoHas { .. }
                | SchedulerMessage::CancelCompute { .. }) => stimuli.extend(stimulus(message)),
            }
        }
        let sent = handle.stimuli(stimuli).await;
        sent.map_err(|_| "the worker is closed".to_owned())?;
    }
}

async fn change_status(
    handle: &ShellHandle,
    status: &str,
    stimulus_id: &Str,
) -> Result<(), String> {
    let status =
        Status::from_name(status).ok_or_else(|| format!("unknown worker status `{status}`"))?;
    let stimulus_id = StimulusId::from(stimulus_id);
    let asked = handle.call(move |shell| shell.asked_status(status, &stimulus_id));
    asked.await.map_err(|_| "the worker is closed".to_owned())
}

async fn other(handle: &ShellHandle, op: Str, fields: Map) -> Result<(), String> {
    let name = op.clone();
    // On the shell, so that it comes after what was said before.
    let known = handle.call(move |shell| {
        let fields = fields.detached();
        shell.handle.executor.stream_message(&name, fields)
    });
    match known.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!(
            "unknown operation `{op}` on the scheduler's stream"
        )),
        Err(_) => Err("the worker is closed".to_owned()),
    }
}

/// The core's event, if it has one.
fn stimulus(message: SchedulerMessage) -> Option<Stimulus> {
    let (stimulus_id, event) = match message {
        SchedulerMessage::FreeKeys { keys, stimulus_id } => (stimulus_id, Event::FreeKeys { keys }),
        SchedulerMessage::RemoveReplicas { keys, stimulus_id } => {
            (stimulus_id, Event::RemoveReplicas { keys })
        }
        SchedulerMessage::AcquireReplicas {
            who_has,
            nbytes,
            stimulus_id,
        } => (stimulus_id, Event::AcquireReplicas { who_has, nbytes }),
        SchedulerMessage::StealRequest { key, stimulus_id } => {
            (stimulus_id, Event::StealRequest { key })
        }
        SchedulerMessage::RefreshWhoHas {
            who_has,
            stimulus_id,
        } => (stimulus_id, Event::RefreshWhoHas { who_has }),
        SchedulerMessage::CancelCompute { key, stimulus_id } => {
            (stimulus_id, Event::CancelCompute { key })
        }
        SchedulerMessage::ComputeTask(_)
        | SchedulerMessage::RemoveWorker { .. }
        | SchedulerMessage::WorkerStatusChange { .. }
        | SchedulerMessage::Close { .. }
        | SchedulerMessage::CloseStream
        | SchedulerMessage::Other { .. } => return None,
    };
    Some(Stimulus::new(&stimulus_id, event))
}

/// What is kept for as long as the task does not hold on to its batch.
fn compute_task(
    task: AskedComputeTask,
    functions: &mut Functions,
) -> Result<ComputeTaskEvent, String> {
    let resources = task.resource_restrictions.into_iter();
    let run_spec = match task.run_spec {
        AskedRunSpec::Node(node) => (!node.is_nil()).then(|| compact(node)),
        AskedRunSpec::Known {
            number,
            function,
            arguments,
        } => {
            let function = function.map(|pickle| Bytes::copy_from_slice(&pickle));
            let function = functions.resolve(number, function);
            let function = function.map_err(|error| error.to_string())?;
            let call = RunSpec::Call {
                function,
                arguments: Bytes::copy_from_slice(&arguments),
            };
            Some(call.into_value())
        }
    };
    Ok(ComputeTaskEvent {
        key: task.key,
        run_id: task.run_id,
        who_has: task.who_has,
        nbytes: task.nbytes,
        priority: Priority::from_scheduler(&task.priority).map_err(|error| error.to_string())?,
        run_spec,
        resource_restrictions: resources
            .map(|(name, amount)| (name.as_str().into(), amount))
            .collect(),
        actor: task.actor,
        annotations: task.annotations.detached(),
        span_id: task.span_id.map(|span_id| span_id.detached()),
    })
}
