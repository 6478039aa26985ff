//! Policies of the active memory manager that are Python classes.
//!
//! They run in the plug-in host, on its mirror of the state, as often as the memory
//! manager runs; what they suggest is judged there and asked of the scheduler.

use std::time::Duration;

use oxidask_scheduler::Failure;
use oxidask_wire::{Map, Value, map};
use tokio::time::MissedTickBehavior;
use tracing::warn;

use super::args::Args;
use super::rpc;
use super::shell::ShellHandle;

/// Which, and how often.
#[derive(Clone, Debug)]
pub(crate) struct MemoryPolicies {
    /// A map for each: `class`, and the arguments of its constructor.
    pub(crate) policies: Value,
    /// `distributed.scheduler.active-memory-manager.measure`.
    pub(crate) measure: &'static str,
    /// `distributed.scheduler.active-memory-manager.interval`.
    pub(crate) interval: Duration,
}

impl MemoryPolicies {
    fn fields(&self, run: bool) -> Map {
        map! {
            "policies" => self.policies.clone(),
            "measure" => self.measure,
            "interval" => self.interval.as_secs_f64(),
            "run" => run,
        }
    }

    /// Imports and makes the policies.
    ///
    /// # Errors
    ///
    /// What was wrong with one of them.
    pub(super) async fn import(&self, shell: &ShellHandle) -> Result<(), String> {
        let made = shell.host.attempt("memory-policies", self.fields(false));
        made.await.map_err(|error| {
            format!("cannot make the policies of the active memory manager: {error}")
        })
    }

    async fn run(&self, shell: &ShellHandle) {
        let run = shell.host.attempt("memory-policies", self.fields(true));
        if let Err(error) = run.await {
            warn!(target: "distributed.active_memory_manager", "A policy failed: {error}");
        }
    }
}

/// Runs the policies as long as the memory manager runs.
pub(super) async fn watch(shell: ShellHandle, policies: MemoryPolicies) {
    let mut ticks = tokio::time::interval(policies.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one comes at once.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let running = shell.call(|shell| shell.extensions.memory_manager_is_running());
        match running.await {
            Ok(true) => policies.run(&shell).await,
            Ok(false) => {}
            Err(_shut_down) => return,
        }
    }
}

/// The operation `amm_handler`: `run_once` is for these policies, too.
pub(super) async fn amm_handler(shell: &ShellHandle, args: Args) -> Result<Value, Failure> {
    let is_run = args.0.get("method").and_then(Value::as_str) == Some("run_once");
    let reply = rpc::extension_reply(shell, "amm_handler", args).await?;
    if let Some(policies) = shell.settings.memory_policies.as_ref().filter(|_| is_run) {
        policies.run(shell).await;
    }
    Ok(reply)
}
