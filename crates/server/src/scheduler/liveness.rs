//! `worker-ttl`: workers that have not been heard of for too long.

use std::time::Duration;

use oxidask_wire::{Value, map};
use tracing::warn;

use super::rpc::{RestartWorkers, restart_workers};
use super::shell::{Shell, ShellHandle, now};

/// Looks for silent workers every `distributed.scheduler.worker-ttl`.
pub(super) async fn watch(shell: ShellHandle, worker_ttl: Duration) {
    loop {
        tokio::time::sleep(worker_ttl).await;
        let Ok(silent) = shell
            .call(move |shell| silent_workers(shell, worker_ttl.as_secs_f64()))
            .await
        else {
            return;
        };
        if silent.is_empty() {
            continue;
        }
        let restart = RestartWorkers {
            workers: Value::Array(silent),
            client: None,
            timeout: 30.0,
            wait_for_workers: false,
            raise: true,
            stimulus_id: format!("check-worker-ttl-{}", now()).into(),
        };
        if let Err(failure) = restart_workers(&shell, restart).await {
            warn!(target: "distributed.scheduler", "cannot restart silent workers: {}", failure.text);
        }
    }
}

fn silent_workers(shell: &mut Shell, worker_ttl: f64) -> Vec<Value> {
    let now = now();
    let ttl = worker_ttl.max(10.0 * shell.heartbeat_interval());
    let mut silent = Vec::new();
    for (_, worker) in shell.core.workers() {
        let last_seen = now - worker.last_seen;
        if last_seen > ttl {
            let what = if worker.nanny.is_some() {
                "attempting restart"
            } else {
                "removing"
            };
            warn!(
                target: "distributed.scheduler",
                "Worker failed to heartbeat for {last_seen:.0}s; {what}: {}", worker.address
            );
            silent.push(Value::from(&worker.address));
        }
    }
    if !silent.is_empty() {
        let message =
            map! { "action" => "worker-ttl-timed-out", "workers" => silent.clone(), "ttl" => ttl };
        shell.log_event(&["scheduler"], Value::Map(message));
    }
    silent
}
