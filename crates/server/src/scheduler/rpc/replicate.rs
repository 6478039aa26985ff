//! `replicate` and `rebalance`: results on more, or on other, workers.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::join_all;
use indexmap::IndexMap;
use oxidask_scheduler::rebalance;
use oxidask_scheduler::{Event, Failure, StimulusId, WorkerId};
use oxidask_wire::{Key, Map, Value, map};
use tracing::warn;

use super::super::args::{Args, value_error};
use super::super::shell::{Shell, ShellHandle};
use super::cluster::key_error;

/// Holders of a key and workers that shall fetch it.
type Fetches = IndexMap<WorkerId, Vec<(Key, Vec<Arc<str>>)>>;

#[derive(Clone, Debug)]
struct Plan {
    keys: Vec<Key>,
    /// Among these workers; nil for all running ones.
    workers: Value,
    replicas: Option<usize>,
    branching_factor: usize,
    stimulus_id: StimulusId,
    /// Turns through the candidates, in place of stock's random choice.
    turn: usize,
}

pub(super) async fn replicate(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let count = |value: Value| value.as_i64().and_then(|count| usize::try_from(count).ok());
    let plan = Plan {
        keys: args.keys("keys")?,
        replicas: count(args.optional("n")),
        workers: args.optional("workers"),
        branching_factor: count(args.optional("branching_factor")).unwrap_or(2).max(1),
        stimulus_id: args.stimulus_id("replicate"),
        turn: 0,
    };
    let delete = args.flag("delete", true);
    let key_count = plan.keys.len();
    let mut plan = plan;

    let first = plan.clone();
    let missing = shell
        .call(move |shell| first.begin(shell, delete))
        .await??;
    if !missing.is_empty() {
        let keys: Value = missing.into_iter().map(Value::from).collect();
        return Ok(Value::Map(
            map! { "status" => "partial-fail", "keys" => keys },
        ));
    }
    // Every round at least one worker gets at least one key, or the key is given up.
    loop {
        plan.turn = plan.turn.wrapping_add(1);
        let round = plan.clone();
        let fetches = shell.call(move |shell| round.fetches(shell)).await?;
        if fetches.is_empty() {
            break;
        }
        let failed = fetch(shell, fetches, &plan.stimulus_id).await?;
        plan.keys.retain(|key| !failed.contains(key));
    }
    let message = map! { "action" => "replicate", "key-count" => key_count, "branching-factor" => plan.branching_factor };
    shell
        .call(move |shell| shell.log_event(&["all"], Value::Map(message)))
        .await?;
    Ok(Value::Nil)
}

impl Plan {
    fn candidates(&self, shell: &Shell) -> Vec<WorkerId> {
        // As `Scheduler.workers_list`: an entry without a colon is a part of addresses,
        // a host for one.
        let is_named = |address: &str| match self.workers.as_array() {
            None => true,
            Some(names) => names
                .iter()
                .filter_map(Value::as_str)
                .any(|name| name == address || (!name.contains(':') && address.contains(name))),
        };
        shell
            .core
            .workers()
            .filter(|(id, worker)| shell.core.is_running(*id) && is_named(&worker.address))
            .map(|(id, _)| id)
            .collect()
    }

    fn replicas(&self, candidates: &[WorkerId]) -> usize {
        self.replicas
            .unwrap_or(candidates.len())
            .min(candidates.len())
    }

    /// Checks the request and drops surplus replicas; returns keys without data.
    fn begin(&self, shell: &mut Shell, delete: bool) -> Result<Vec<Key>, Failure> {
        let candidates = self.candidates(shell);
        let replicas = self.replicas(&candidates);
        if replicas == 0 {
            return Err(value_error("Can not use replicate to delete data"));
        }
        let mut missing = Vec::new();
        let mut surplus: IndexMap<WorkerId, Vec<Key>> = IndexMap::new();
        for key in &self.keys {
            let task = shell.core.find_task(key).ok_or_else(|| key_error(key))?;
            if task.who_has.is_empty() {
                missing.push(key.clone());
            }
            let holders = candidates
                .iter()
                .filter(|worker| task.who_has.contains(**worker));
            for worker in holders.skip(replicas) {
                surplus.entry(*worker).or_default().push(key.clone());
            }
        }
        if missing.is_empty() && delete {
            for (worker, keys) in surplus {
                shell.event(Event::RemoveReplicas {
                    worker,
                    keys,
                    stimulus_id: self.stimulus_id.clone(),
                });
            }
        }
        Ok(missing)
    }

    /// One round: each key goes to at most `branching_factor` workers per holder.
    fn fetches(&self, shell: &Shell) -> Fetches {
        let candidates = self.candidates(shell);
        let replicas = self.replicas(&candidates);
        let mut fetches = Fetches::new();
        for (position, key) in self.keys.iter().enumerate() {
            let Some(task) = shell.core.find_task(key) else {
                continue;
            };
            let without: Vec<_> = candidates
                .iter()
                .filter(|worker| !task.who_has.contains(**worker))
                .collect();
            let with = candidates.len() - without.len();
            let count = replicas
                .saturating_sub(with)
                .min(self.branching_factor * task.who_has.len());
            let holders: Vec<_> = task
                .who_has
                .iter()
                .filter_map(|worker| shell.worker_address(worker))
                .collect();
            for offset in 0..count.min(without.len()) {
                let worker = *without[(self.turn + position + offset) % without.len()];
                fetches
                    .entry(worker)
                    .or_default()
                    .push((key.clone(), holders.clone()));
            }
        }
        fetches
    }
}

/// Has workers fetch; returns the keys that could not be had.
async fn fetch(
    shell: &ShellHandle,
    fetches: Fetches,
    stimulus_id: &StimulusId,
) -> Result<Vec<Key>, Failure> {
    let requests = fetches.into_iter().map(|(worker, keys)| async move {
        let address = shell.call(move |shell| shell.worker_address(worker)).await.ok().flatten();
        let who_has: Map = keys
            .iter()
            .map(|(key, holders)| (Value::from(key), holders.iter().map(Value::from).collect::<Value>()))
            .collect();
        let reply = match address {
            Some(address) => shell.peers.call(&address, "gather", map! { "reply" => true, "who_has" => who_has }).await,
            None => Err(oxidask_comm::Error::Closed { in_message: false }),
        };
        let keys: Vec<Key> = keys.into_iter().map(|(key, _)| key).collect();
        let failed = match reply {
            Ok(reply) => match reply.as_map().and_then(|reply| reply.get("status")).and_then(Value::as_str) {
                Some("OK") => Vec::new(),
                Some("partial-fail") => reply
                    .as_map()
                    .and_then(|reply| reply.get("keys"))
                    .and_then(Value::as_array)
                    .unwrap_or_default()
                    .iter()
                    .filter_map(|key| Key::from_value(key).ok())
                    .collect(),
                Some(_) | None => keys.clone(),
            },
            Err(error) => {
                warn!(target: "distributed.scheduler", %error, "Communication with worker failed during replication");
                keys.clone()
            }
        };
        (worker, keys, failed)
    });
    let answers = join_all(requests).await;
    let stimulus_id = stimulus_id.clone();
    let failed = shell.call(move |shell| {
        let mut all_failed = Vec::new();
        for (worker, mut keys, failed) in answers {
            keys.retain(|key| !failed.contains(key));
            all_failed.extend(failed);
            if let Some(address) = shell.worker_address(worker) {
                let message = map! {
                    "action" => "replicate-add",
                    "keys" => keys.iter().map(Value::from).collect::<Value>(),
                };
                shell.log_event(&[&address], Value::Map(message));
                shell.event(Event::AddKeys {
                    worker,
                    keys,
                    stimulus_id: stimulus_id.clone(),
                });
            }
        }
        all_failed
    });
    Ok(failed.await?)
}

/// Moves results from full workers to empty ones.
pub(super) async fn rebalance(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let keys = args.optional_keys("keys")?;
    let workers = args.optional("workers");
    let stimulus_id = args.stimulus_id("rebalance");
    let explicit = keys.is_some();
    let planned = shell
        .call(move |shell| plan_moves(shell, keys, &workers))
        .await?;
    let moves = match planned {
        Ok(moves) => moves,
        Err(missing) => return Ok(partial_fail(missing)),
    };
    if moves.is_empty() {
        return Ok(Value::Map(map! { "status" => "OK" }));
    }
    let mut fetches = Fetches::new();
    for step in &moves {
        fetches
            .entry(step.recipient)
            .or_default()
            .push((step.key.clone(), vec![step.holder.clone()]));
    }
    let failed = fetch(shell, fetches, &stimulus_id).await?;
    let lost = failed.clone();
    shell
        .call(move |shell| {
            let mut surplus: IndexMap<WorkerId, Vec<Key>> = IndexMap::new();
            for step in moves.into_iter().filter(|step| !lost.contains(&step.key)) {
                surplus.entry(step.sender).or_default().push(step.key);
            }
            for (worker, keys) in surplus {
                shell.event(Event::RemoveReplicas {
                    worker,
                    keys,
                    stimulus_id: stimulus_id.clone(),
                });
            }
            shell.log_event(&["all"], Value::Map(map! { "action" => "rebalance" }));
        })
        .await?;
    // Without being asked for certain keys, those that are gone by now do not matter.
    if explicit && !failed.is_empty() {
        return Ok(partial_fail(failed));
    }
    Ok(Value::Map(map! { "status" => "OK" }))
}

fn partial_fail(keys: Vec<Key>) -> Value {
    let keys: Value = keys.into_iter().map(Value::from).collect();
    Value::Map(map! { "status" => "partial-fail", "keys" => keys })
}

struct Step {
    sender: WorkerId,
    holder: Arc<str>,
    recipient: WorkerId,
    key: Key,
}

/// The moves, or the keys without data.
fn plan_moves(
    shell: &Shell,
    keys: Option<Vec<Key>>,
    workers: &Value,
) -> Result<Vec<Step>, Vec<Key>> {
    let tasks = match keys {
        None => None,
        Some(keys) => {
            let with_data = |key: &Key| {
                let task = shell.core.task_id(key)?;
                shell
                    .core
                    .task(task)
                    .filter(|state| !state.who_has.is_empty())
                    .map(|_| task)
            };
            let missing: Vec<Key> = keys
                .iter()
                .filter(|key| with_data(key).is_none())
                .cloned()
                .collect();
            if !missing.is_empty() {
                return Err(missing);
            }
            Some(keys.iter().filter_map(with_data).collect::<HashSet<_>>())
        }
    };
    let workers = shell.workers_named(workers);
    let config = &shell.handle.settings.rebalance;
    Ok(
        rebalance::rebalance(&shell.core, tasks.as_ref(), &workers, config)
            .into_iter()
            .filter_map(|step| {
                Some(Step {
                    sender: step.sender,
                    holder: shell.worker_address(step.sender)?,
                    recipient: step.recipient,
                    key: shell.core.task(step.task)?.key.clone(),
                })
            })
            .collect(),
    )
}
