//! How a worker joins a scheduler.

use std::time::Duration;

use oxidask_comm::{BatchedSender, Options, Reader, connect};
use oxidask_wire::{Map, Value, map};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use super::StartError;
use super::executor::Introduction;
use super::settings::is_os_error;
use super::shell::{ShellHandle, now, stimulus_id};
use super::status::Status;

/// Pause before the scheduler is looked for again, as stock.
const PAUSE: Duration = Duration::from_millis(100);

/// Least time between two batches to a scheduler of stock's, as stock. Ours gets
/// messages at once: what comes while one is written goes with the next.
const INTERVAL: Duration = Duration::from_millis(2);

/// Most bytes that may wait for a scheduler that does not read. Chosen: far more
/// than the messages about all tasks that a worker can hold.
const STREAM_NBYTES_MAX: usize = 4 << 30;

/// What a scheduler answers to `register-worker`.
#[derive(Debug)]
pub(super) struct Registration {
    /// The stream from the scheduler.
    pub(super) reader: Reader,
    /// Ends when the stream to the scheduler does.
    pub(super) sending: JoinHandle<()>,
    /// `worker-plugins`: pickles by name.
    pub(super) plugins: Map,
    /// Time between heartbeats.
    pub(super) heartbeat_interval: Option<Duration>,
}

/// Looks for the scheduler until it is there, and registers.
/// `Worker._register_with_scheduler` in distributed.
pub(super) async fn register(
    handle: &ShellHandle,
    comm: &Options,
    introduction: &Introduction,
) -> Result<Registration, StartError> {
    let settings = &handle.settings;
    let scheduler = &settings.scheduler;
    let (mut reply, start, stop, connection) = loop {
        let start = now();
        let exchange = async {
            let mut connection = connect(scheduler, comm, settings.connect_timeout).await?;
            let request = request(handle, introduction).await;
            connection.write_value(&request).await?;
            let reply = connection.read_value().await?;
            Ok((reply, connection))
        };
        match exchange.await {
            Ok((reply, connection)) => break (reply, start, now(), connection),
            Err(error) if is_os_error(&error) => {
                debug!(target: "distributed.worker", %error, "the scheduler cannot be reached");
                info!(target: "distributed.worker", "Waiting to connect to: {:>26}", scheduler.to_string());
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(StartError::Comm(error)),
        }
    };
    let fields = reply.as_map_mut().map(std::mem::take).unwrap_or_default();
    let (plugins, heartbeat_interval, time) = accepted(fields)?;
    let (reader, writer, info) = connection.split();
    let interval = match info.negotiated.native {
        Some(_) => Duration::ZERO,
        None => INTERVAL,
    };
    let (stream, task) = BatchedSender::new(writer, interval, STREAM_NBYTES_MAX);
    let sending = tokio::spawn(async move {
        if let Err(error) = task.run().await {
            debug!(target: "distributed.core", %error, "stream ended");
        }
    });
    let started = handle.call(move |shell| {
        shell.stream = Some(stream);
        shell.metrics.latency(stop - start);
        shell.metrics.scheduler_delay = time - (start + stop) / 2.0;
        shell.set_status(Status::Running);
    });
    started.await.map_err(|_| StartError::Closed)?;
    Ok(Registration {
        reader,
        sending,
        plugins,
        heartbeat_interval,
    })
}

/// `worker-plugins`, `heartbeat-interval` and `time` of a reply.
fn accepted(mut reply: Map) -> Result<(Map, Option<Duration>, f64), StartError> {
    if let Some(warning) = reply.get("warning").and_then(Value::as_str)
        && !warning.is_empty()
    {
        warn!(target: "distributed.worker", "{warning}");
    }
    if reply.get("status").and_then(Value::as_str) != Some("OK") {
        let message = reply.take("message").and_then(Value::into_str);
        let message = message.map_or_else(|| format!("{reply:?}"), |text| text.to_string());
        error!(target: "distributed.worker", "Unable to connect to scheduler: {message}");
        return Err(StartError::Refused { message });
    }
    let time = reply.get("time").and_then(Value::as_f64);
    let time = time.ok_or_else(|| StartError::Refused {
        message: "the reply to `register-worker` has no `time`".to_owned(),
    })?;
    let plugins = reply.take("worker-plugins").and_then(Value::into_map);
    let heartbeat_interval = reply.get("heartbeat-interval").and_then(interval);
    Ok((plugins.unwrap_or_default(), heartbeat_interval, time))
}

/// Seconds between heartbeats, if they can be waited for.
pub(super) fn interval(value: &Value) -> Option<Duration> {
    let interval = Duration::try_from_secs_f64(value.as_f64()?).ok()?;
    (!interval.is_zero()).then_some(interval)
}

async fn request(handle: &ShellHandle, introduction: &Introduction) -> Value {
    let settings = handle.settings.clone();
    let options = &settings.options;
    let state = handle.call(|shell| {
        // The executor has grown the process since it was looked at last.
        shell.metrics.monitor.update(Duration::ZERO);
        let (metrics, _) = shell.metrics.take(&shell.core, shell.store.spilled());
        let resources: Map = shell
            .core
            .resources()
            .map(|(name, total, _)| (name, total))
            .collect();
        (shell.status.name(), resources, metrics)
    });
    let (status, resources, metrics) = state.await.unwrap_or_default();
    Value::Map(map! {
        "op" => "register-worker",
        "reply" => false,
        "address" => &settings.address,
        "status" => status,
        "nthreads" => options.nthreads,
        "name" => settings.name.clone(),
        "now" => now(),
        "resources" => resources,
        "memory_limit" => options.memory_limit,
        "local_directory" => options.local_directory.to_string_lossy().into_owned(),
        "services" => options.services.clone(),
        "nanny" => options.nanny.clone(),
        "pid" => std::process::id(),
        "versions" => introduction.versions.clone(),
        "metrics" => metrics,
        "extra" => introduction.startup_information.clone(),
        "stimulus_id" => stimulus_id("worker-connect").as_str(),
        "server_id" => settings.id.as_str(),
    })
}
