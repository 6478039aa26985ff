//! Requests: who answers which operation.

mod benchmark;
mod broadcast;
mod cluster;
mod data;
mod diagnostics;
mod plugins;
mod replicate;
mod restart;

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use oxidask_comm::Reader;
use oxidask_scheduler::Failure;
use oxidask_wire::Value;
use tracing::warn;

use super::args::{Args, runtime_error};
use super::shell::{ShellHandle, ShutDown};

pub(super) use cluster::{brief_worker, identity, resources};
pub(super) use diagnostics::{call_stack, transitions};
pub(super) use restart::{RestartWorkers, restart_workers};

impl From<ShutDown> for Failure {
    fn from(_: ShutDown) -> Self {
        runtime_error("the scheduler is shutting down")
    }
}

/// Answers one request; `None` when the caller has gone.
///
/// Arguments and replies are those of the handlers of `distributed.Scheduler`.
/// Without a caller it is the plug-in host that asks.
pub(super) async fn call(
    shell: &ShellHandle,
    op: &str,
    args: Args,
    caller: Option<&mut Reader>,
) -> Option<Result<Value, Failure>> {
    // What a plug-in asks for is answered by the scheduler itself.
    if caller.is_some() && shell.host.handles(op) {
        return Some(shell.host.handle(op, args.0, false).await);
    }
    let _retiring = match op {
        "retire_workers" => Some(shell.replicas.read().await),
        _ => None,
    };
    Some(match op {
        "identity" => cluster::identity_reply(shell, args).await,
        "echo" => Ok(args.0.get("data").cloned().unwrap_or(Value::Nil)),
        "who_has" => cluster::who_has(shell, args).await,
        "has_what" => cluster::has_what(shell, args).await,
        "processing" => cluster::processing(shell, args).await,
        "ncores" => cluster::ncores(shell, args, false).await,
        "ncores_running" => cluster::ncores(shell, args, true).await,
        "nbytes" => cluster::nbytes(shell, args).await,
        "check_idle" => cluster::check_idle(shell).await,
        "versions" => cluster::versions(shell, args).await,
        "set_resources" => cluster::set_resources(shell, args).await,
        "set_restrictions" => cluster::set_restrictions(shell, args).await,
        "unregister" => cluster::unregister(shell, args).await,
        "heartbeat_worker" => cluster::heartbeat_worker(shell, args).await,
        "add_keys" => cluster::add_keys(shell, args).await,

        "gather" => data::gather(shell, args).await,
        "scatter" => data::scatter(shell, args).await,
        "update_data" => data::update_data(shell, args).await,
        "retry" => data::retry(shell, args).await,
        "replicate" => replicate::replicate(shell, args).await,
        "rebalance" => replicate::rebalance(shell, args).await,

        "amm_handler" => super::memory_policies::amm_handler(shell, args).await,

        "broadcast" => broadcast::broadcast(shell, args).await,
        "proxy" => broadcast::proxy(shell, args).await,
        "benchmark_hardware" => benchmark::benchmark_hardware(shell).await,
        "restart" => restart::restart(shell, args).await,
        "restart_workers" => restart::restart_workers_reply(shell, args).await,
        "retire_workers" if plugins::choose_workers(shell, &args) => {
            plugins::retire_chosen(shell, args).await
        }
        "workers_to_close" => cluster::with_groups(shell, "workers_to_close", args).await,
        "retire_workers" if args.0.contains_key("key") => {
            cluster::with_groups(shell, "retire_workers", args).await
        }

        "register_worker_plugin" => plugins::register_worker_plugin(shell, args).await,
        "unregister_worker_plugin" => plugins::unregister_worker_plugin(shell, args).await,
        "register_nanny_plugin" => plugins::register_nanny_plugin(shell, args).await,
        "unregister_nanny_plugin" => plugins::unregister_nanny_plugin(shell, args).await,
        "register_scheduler_plugin" => plugins::register_scheduler_plugin(shell, args).await,
        "unregister_scheduler_plugin" => plugins::unregister_scheduler_plugin(shell, args).await,
        "run_function" => plugins::run_function(shell, args).await,

        "get_logs" | "logs" => diagnostics::logs(shell, args),
        "worker_logs" => diagnostics::worker_logs(shell, args).await,
        "call_stack" => diagnostics::call_stack(shell, args).await,
        "profile" => diagnostics::profile(shell, args).await,
        "get_story" => diagnostics::story(shell, args).await,
        "get_runspec" => diagnostics::run_spec(shell, args).await,
        "get_error_cause" => diagnostics::error_cause(shell, args).await,
        // Its parts, addresses of storage included, are Python's.
        "get_cluster_state" | "dump_cluster_state_to_url" | "dump_state" => {
            shell.host.handle(op, args.0, false).await
        }

        _ => return extension(shell, op, args, caller).await,
    })
}

/// Operations of the extensions may wait: for a lock, a queue, a time-out. The
/// caller is watched meanwhile; what it waited for goes to the next one.
async fn extension(
    shell: &ShellHandle,
    op: &str,
    mut args: Args,
    caller: Option<&mut Reader>,
) -> Option<Result<Value, Failure>> {
    let name = op.to_owned();
    let asked = shell.call(move |shell| {
        let (request, answer) = shell.request();
        let known = shell.extend(|extensions, core, now, out| {
            extensions.rpc(core, now, request, &name, &mut args.0, out)
        });
        if !known {
            shell.abandon(request);
        }
        known.then_some((request, answer))
    });
    let (request, answer) = match asked.await {
        Ok(Some(asked)) => asked,
        Ok(None) => {
            unknown_op(op);
            return Some(Ok(Value::Nil));
        }
        Err(shut_down) => return Some(Err(shut_down.into())),
    };
    let gone = async {
        match caller {
            Some(caller) => caller.closed().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        answer = answer => Some(answer.unwrap_or_else(|_| Err(ShutDown.into()))),
        () = gone => {
            // Nothing to tell if the scheduler is shutting down.
            let _ = shell.call(move |shell| shell.abandon(request)).await;
            None
        }
    }
}

/// An operation of the extensions that answers at once.
pub(in crate::scheduler) async fn extension_reply(
    shell: &ShellHandle,
    op: &'static str,
    mut args: Args,
) -> Result<Value, Failure> {
    let answer = shell.call(move |shell| {
        let (request, answer) = shell.request();
        shell.extend(|extensions, core, now, out| {
            extensions.rpc(core, now, request, op, &mut args.0, out)
        });
        answer
    });
    answer.await?.await.unwrap_or_else(|_| Err(ShutDown.into()))
}

/// As stock, an unknown operation is a warning here and `None` there; said once
/// an operation, because a client may poll with it.
fn unknown_op(op: &str) {
    /// Names remembered; a peer that makes up more is logged every time.
    const NAMES_MAX: usize = 100;
    static SEEN: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = seen.get_or_insert_default();
    if seen.contains(op) {
        return;
    }
    if seen.len() < NAMES_MAX {
        seen.insert(op.to_owned());
    }
    warn!(target: "distributed.core", "No handler {op} found in Scheduler");
}
