//! What a worker does from time to time.

use std::time::Duration;

use oxidask_wire::stream::ToScheduler;
use oxidask_wire::{Map, Value, map, message};
use oxidask_worker::Event;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tracing::{error, warn};

use super::registration;
use super::settings::is_os_error;
use super::shell::{ShellHandle, Stimulus, now, request, stimulus_id};

/// Time between two signs of life on the stream, as stock.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);

/// Tells the scheduler how this worker is, for as long as it runs. Waits for
/// nothing but the scheduler's answer. `Worker.heartbeat` in distributed.
pub(super) async fn beat(handle: ShellHandle, mut interval: Duration) {
    let mut next = Instant::now() + interval;
    loop {
        sleep_until(next).await;
        let Some(told) = beat_once(&handle).await else {
            return;
        };
        interval = told.unwrap_or(interval);
        next = Instant::now().max(next + interval);
    }
}

/// The interval that the scheduler asks for, if it answers; `None`: the worker closes.
async fn beat_once(handle: &ShellHandle) -> Option<Option<Duration>> {
    let settings = &handle.settings;
    let start = now();
    let (fields, find_missing) = (fields(handle, start).await?, find_missing(handle));
    find_missing.await?;
    let request = message::encode(&request("heartbeat_worker", fields));
    let attempt = || handle.pool.exchange(&settings.scheduler, &request);
    let reply = match settings.retry.run(attempt).await {
        Ok(reply) => reply,
        Err(error) if is_os_error(&error) => {
            error!(
                target: "distributed.worker",
                %error, "Failed to communicate with scheduler during heartbeat."
            );
            return Some(None);
        }
        Err(error) => return fail(handle, &error.to_string()),
    };
    let stop = now();
    let reply = reply.into_map().unwrap_or_default();
    match reply.get("status").and_then(Value::as_str) {
        Some("OK") => {}
        Some("missing") => {
            // The message to close comes on the stream as well, or the stream ends.
            warn!(
                target: "distributed.worker",
                "Scheduler was unaware of this worker; shutting down."
            );
            handle.forgotten("worker-heartbeat-missing");
            return None;
        }
        Some(_) | None => {
            let text = reply.get("exception_text").and_then(Value::as_str);
            return fail(handle, text.unwrap_or("the answer has no status"));
        }
    }
    let Some(time) = reply.get("time").and_then(Value::as_f64) else {
        return fail(handle, "the answer has no time");
    };
    let taken = handle.call(move |shell| {
        shell.metrics.latency(stop - start);
        shell.metrics.scheduler_delay = time - (start + stop) / 2.0;
        shell.metrics.delivered();
    });
    taken.await.ok()?;
    Some(
        reply
            .get("heartbeat-interval")
            .and_then(registration::interval),
    )
}

fn fail(handle: &ShellHandle, reason: &str) -> Option<Option<Duration>> {
    error!(
        target: "distributed.worker",
        "Unexpected exception during heartbeat. Closing worker. {reason}"
    );
    handle.close("worker-heartbeat-error", true);
    None
}

async fn fields(handle: &ShellHandle, start: f64) -> Option<Map> {
    let figures = handle.call(move |shell| {
        let executing: Map = shell
            .core
            .all_running_tasks()
            .filter_map(|ts| Some((&ts.key, start - ts.start_time?)))
            .collect();
        let (metrics, spans) = shell.metrics.take(&shell.core, shell.store.spilled());
        (metrics, spans, executing)
    });
    let (mut metrics, spans, executing) = figures.await.ok()?;
    let extra = handle.executor.heartbeat();
    for (name, value) in extra.metrics {
        // Those of the shell go first, as in Dask.
        if !name.as_str().is_some_and(|name| metrics.contains_key(name)) {
            metrics.push(name, value);
        }
    }
    let mut extensions = map! { "spans" => spans };
    extensions.0.extend(extra.extensions);
    Some(map! {
        "address" => &handle.settings.address,
        "now" => start,
        "metrics" => metrics,
        "executing" => executing,
        "extensions" => extensions,
    })
}

/// Asks about tasks that nobody is known to have, as often as there are heartbeats.
async fn find_missing(handle: &ShellHandle) -> Option<()> {
    let stimulus = Stimulus::new(stimulus_id("find-missing"), Event::FindMissing);
    handle.stimuli(vec![stimulus]).await.ok()
}

/// Shows on the stream that this worker is alive.
pub(super) async fn keep_alive(handle: ShellHandle) {
    let mut ticks = interval_at(Instant::now() + KEEP_ALIVE_INTERVAL, KEEP_ALIVE_INTERVAL);
    loop {
        ticks.tick().await;
        let told = handle.call(|shell| shell.tell_scheduler(&ToScheduler::KeepAlive));
        if told.await.is_err() {
            return;
        }
    }
}

/// Looks at the process from time to time.
pub(super) async fn monitor(handle: ShellHandle) {
    let interval = handle.settings.monitor.interval;
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = ticks.tick().await;
        let lateness = due.elapsed();
        if handle
            .call(move |shell| {
                shell.metrics.monitor.update(lateness);
                shell.give_memory_back(false);
            })
            .await
            .is_err()
        {
            return;
        }
    }
}
