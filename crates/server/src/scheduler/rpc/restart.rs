//! `restart` and `restart_workers`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use indexmap::IndexMap;
use oxidask_scheduler::{Event, Failure, StimulusId, WorkerId};
use oxidask_wire::{Map, Value, map};
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};

use super::super::args::{Args, timeout_error, value_error};
use super::super::shell::ShellHandle;
use super::super::stream::Stream;

/// How often the number of workers is looked at while they come back, as stock.
const POLL: Duration = Duration::from_millis(200);

/// How long clients may take to be told of a restart before it is answered. Chosen.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// `Scheduler.restart_workers`.
#[derive(Debug)]
pub(crate) struct RestartWorkers {
    /// Addresses; nil for all.
    pub(crate) workers: Value,
    pub(crate) client: Option<Arc<str>>,
    /// Seconds.
    pub(crate) timeout: f64,
    pub(crate) wait_for_workers: bool,
    /// Raise instead of returning who timed out.
    pub(crate) raise: bool,
    pub(crate) stimulus_id: StimulusId,
}

struct Target {
    worker: WorkerId,
    address: Arc<str>,
    nanny: Option<String>,
}

pub(super) async fn restart(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let stimulus_id = args.stimulus_id("restart");
    info!(target: "distributed.scheduler", "Restarting workers and releasing all keys (stimulus_id='{stimulus_id}')");
    let restart = RestartWorkers {
        workers: Value::Nil,
        client: args.optional_str("client").as_deref().map(Arc::from),
        timeout: args.seconds("timeout").unwrap_or(30.0),
        wait_for_workers: args.flag("wait_for_workers", true),
        raise: true,
        stimulus_id: stimulus_id.clone(),
    };
    let clients = shell
        .call(move |shell| {
            shell.event(Event::Restart { stimulus_id });
            let clients = shell.clients.values();
            clients.map(|link| link.sender.clone()).collect::<Vec<_>>()
        })
        .await?;
    restart_workers(shell, restart).await?;
    // A client's futures are cancelled by what its stream tells, and it looks at them
    // after the answer, which goes another way. One that does not read is not waited for.
    let told = join_all(clients.iter().map(Stream::flushed));
    let _ = timeout_at(Instant::now() + TOLD_WITHIN, told).await;
    Ok(Value::Nil)
}

pub(super) async fn restart_workers_reply(
    shell: &ShellHandle,
    mut args: Args,
) -> Result<Value, Failure> {
    let raise = match args.optional_str("on_error").as_deref() {
        None | Some("raise") => true,
        Some("return") => false,
        Some(other) => {
            return Err(value_error(&format!(
                "on_error must be 'raise' or 'return'; got '{other}'"
            )));
        }
    };
    let restart = RestartWorkers {
        workers: args.optional("workers"),
        client: args.optional_str("client").as_deref().map(Arc::from),
        timeout: args.seconds("timeout").unwrap_or(30.0),
        wait_for_workers: args.flag("wait_for_workers", true),
        raise,
        stimulus_id: args.stimulus_id("restart-workers"),
    };
    Ok(Value::Map(restart_workers(shell, restart).await?))
}

/// Has nannies restart their workers and removes workers without one.
pub(crate) async fn restart_workers(
    shell: &ShellHandle,
    restart: RestartWorkers,
) -> Result<Map, Failure> {
    let RestartWorkers {
        workers,
        client,
        timeout,
        wait_for_workers,
        raise,
        stimulus_id,
    } = restart;
    let deadline =
        Instant::now() + Duration::try_from_secs_f64(timeout.max(0.0)).unwrap_or(Duration::MAX / 4);
    let remove_id = stimulus_id.clone();
    let (workers_before, targets) = shell
        .call(move |shell| {
            let targets: Vec<Target> = shell
                .workers_named(&workers)
                .into_iter()
                .filter_map(|worker| {
                    let state = shell.core.worker(worker)?;
                    let nanny = state.nanny.as_ref().map(ToString::to_string);
                    Some(Target {
                        worker,
                        address: state.address.clone(),
                        nanny,
                    })
                })
                .collect();
            let count = shell.core.n_workers();
            for target in targets.iter().filter(|target| target.nanny.is_none()) {
                shell.event(Event::RemoveWorker {
                    worker: target.worker,
                    stimulus_id: remove_id.clone(),
                    expected: false,
                    close: true,
                });
            }
            (count, targets)
        })
        .await?;
    let without_nanny: Vec<_> = targets
        .iter()
        .filter(|target| target.nanny.is_none())
        .collect();
    if !without_nanny.is_empty() {
        let addresses: Vec<_> = without_nanny
            .iter()
            .map(|target| target.address.as_ref())
            .collect();
        warn!(
            target: "distributed.scheduler",
            "Workers {addresses:?} do not use a nanny and will be terminated without restarting them"
        );
    }
    let mut outcome: IndexMap<Arc<str>, &'static str> = IndexMap::new();
    for target in &without_nanny {
        outcome.insert(target.address.clone(), "removed");
    }
    let kills = targets.iter().filter_map(|target| {
        let nanny = target.nanny.as_deref()?;
        let request = map! { "reply" => true, "reason" => stimulus_id.as_str() };
        Some(async move {
            let killed =
                tokio::time::timeout_at(deadline, shell.peers.call(nanny, "kill", request)).await;
            (target, matches!(killed, Ok(Ok(Value::Nil))))
        })
    });
    let killed = join_all(kills).await;
    let nannies_count = killed.len();
    let mut stuck = Vec::new();
    for (target, killed) in killed {
        outcome.insert(
            target.address.clone(),
            if killed { "OK" } else { "timed out" },
        );
        if !killed {
            stuck.push((target.worker, target.address.clone()));
        }
    }
    if !stuck.is_empty() {
        let addresses: Vec<_> = stuck
            .iter()
            .map(|(_, address)| format!("'{address}'"))
            .collect();
        let addresses = addresses.join(", ");
        error!(
            target: "distributed.scheduler",
            "Workers [{addresses}] did not shut down within {timeout}s; force closing"
        );
        let count = stuck.len();
        let remove_id = stimulus_id.clone();
        shell
            .call(move |shell| {
                for (worker, _) in stuck {
                    shell.event(Event::RemoveWorker {
                        worker,
                        stimulus_id: remove_id.clone(),
                        expected: false,
                        close: true,
                    });
                }
            })
            .await?;
        if raise {
            return Err(timeout_error(&format!(
                "{count}/{nannies_count} nanny worker(s) did not shut down within {timeout}s: {{{addresses}}}"
            )));
        }
    }
    let names: Value = targets
        .iter()
        .map(|target| Value::from(&target.address))
        .collect();
    shell
        .call(move |shell| {
            if let Some(client) = client.as_deref() {
                let message = map! { "action" => "restart-workers", "workers" => names.clone() };
                shell.log_event(&[client], Value::Map(message));
            }
            let message = map! { "action" => "restart-workers", "workers" => names, "client" => client.as_ref() };
            shell.log_event(&["all"], Value::Map(message));
        })
        .await?;
    if wait_for_workers {
        let returned = wait_for_return(shell, workers_before, deadline).await?;
        if returned < workers_before {
            let text = not_returned(
                targets.len(),
                workers_before - returned,
                without_nanny.len(),
                timeout,
            );
            if raise {
                return Err(timeout_error(&text));
            }
            error!(target: "distributed.scheduler", "{text} (stimulus_id='{stimulus_id}')");
            mark_not_returned(shell, &targets, &mut outcome).await?;
        }
    }
    info!(target: "distributed.scheduler", "Workers restart finished (stimulus_id='{stimulus_id}')");
    Ok(outcome
        .into_iter()
        .map(|(address, outcome)| (Value::from(address), Value::from(outcome)))
        .collect())
}

/// Other workers may join meanwhile; they count as well, as on stock.
async fn wait_for_return(
    shell: &ShellHandle,
    count: usize,
    deadline: Instant,
) -> Result<usize, Failure> {
    loop {
        let workers = shell.call(|shell| shell.core.n_workers()).await?;
        if workers >= count || Instant::now() >= deadline {
            return Ok(workers);
        }
        tokio::time::sleep_until((Instant::now() + POLL).min(deadline)).await;
    }
}

async fn mark_not_returned(
    shell: &ShellHandle,
    targets: &[Target],
    outcome: &mut IndexMap<Arc<str>, &'static str>,
) -> Result<(), Failure> {
    let nannies: Vec<String> = shell
        .call(|shell| {
            shell
                .core
                .workers()
                .filter_map(|(_, worker)| worker.nanny.as_ref().map(ToString::to_string))
                .collect()
        })
        .await?;
    for target in targets {
        if target
            .nanny
            .as_ref()
            .is_some_and(|nanny| !nannies.contains(nanny))
        {
            outcome.insert(target.address.clone(), "timed out");
        }
    }
    Ok(())
}

fn not_returned(restarted: usize, missing: usize, without_nanny: usize, timeout: f64) -> String {
    let mut text = format!(
        "Waited for {restarted} worker(s) to reconnect after restarting but, after {timeout}s, {missing} have not \
         returned. Consider a longer timeout, or `wait_for_workers=False`."
    );
    if without_nanny > 0 {
        text.push_str(&format!(
            " The {without_nanny} worker(s) not using Nannies were just shut down instead of restarted (restart is \
             only possible with Nannies). If your deployment system does not automatically re-launch terminated \
             processes, then those workers will never come back, and `Client.restart` will always time out. Do not \
             use `Client.restart` in that case."
        ));
    }
    text
}
