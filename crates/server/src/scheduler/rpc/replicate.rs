//! `replicate` and `rebalance`: results on more, or on other, workers.
//!
//! Neither runs while the other one does, or while workers retire.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::{join_all, try_join_all};
use indexmap::IndexMap;
use oxidask_scheduler::rebalance::{self, Rebalance};
use oxidask_scheduler::{Event, Failure, State, StimulusId, WorkerId};
use oxidask_wire::{Key, Map, Value, map};
use tracing::warn;

use super::super::args::{Args, value_error};
use super::super::shell::{Shell, ShellHandle, now};
use super::cluster::key_error;

/// Keys that a worker shall fetch, each with the addresses of its holders.
type WhoHas = Vec<(Key, Vec<Arc<str>>)>;

/// By the address of the worker.
type Fetches = IndexMap<Arc<str>, WhoHas>;

/// Keys by the address of a worker that shall drop them.
type Deletions = IndexMap<Arc<str>, Vec<Key>>;

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
    /// Keys that a worker could not fetch; it is not asked again.
    failed: HashSet<(Key, Arc<str>)>,
}

pub(super) async fn replicate(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let _alone = shell.replicas.write().await;
    let count = |value: Value| value.as_i64().and_then(|count| usize::try_from(count).ok());
    let branching_factor = args.optional("branching_factor").as_i64().unwrap_or(2);
    let mut plan = Plan {
        keys: args.keys("keys")?,
        replicas: count(args.optional("n")),
        workers: args.optional("workers"),
        branching_factor: usize::try_from(branching_factor).unwrap_or(0),
        stimulus_id: args.stimulus_id("replicate"),
        turn: 0,
        failed: HashSet::new(),
    };
    if plan.branching_factor == 0 {
        return Err(Failure::builtin("AssertionError", ""));
    }
    let delete = args.flag("delete", true);
    let key_count = plan.keys.len();

    let first = plan.clone();
    let surplus = match shell.call(move |shell| first.begin(shell)).await?? {
        Ok(surplus) => surplus,
        Err(missing) => return Ok(partial_fail(missing)),
    };
    if delete {
        delete_worker_data(shell, surplus, &plan.stimulus_id).await?;
    }
    // Every round at least one worker gets a key, or is not asked for it again.
    loop {
        plan.turn = plan.turn.wrapping_add(1);
        let round = plan.clone();
        let fetches = shell.call(move |shell| round.fetches(shell)).await?;
        if fetches.is_empty() {
            break;
        }
        for (worker, keys) in gather_on_workers(shell, &fetches, &plan.stimulus_id).await? {
            let failed = keys.into_iter().map(|key| (key, worker.clone()));
            plan.failed.extend(failed);
        }
        shell
            .call(move |shell| {
                for (worker, who_has) in &fetches {
                    let message =
                        map! { "action" => "replicate-add", "who_has" => map_of(who_has) };
                    shell.log_event(&[worker], Value::Map(message));
                }
            })
            .await?;
    }
    shell
        .call(move |shell| {
            let candidates = plan.candidates(shell);
            let workers: Value = candidates
                .into_iter()
                .filter_map(|worker| shell.worker_address(worker))
                .map(Value::from)
                .collect();
            let message = map! {
                "action" => "replicate",
                "workers" => workers,
                "key-count" => key_count,
                "branching-factor" => plan.branching_factor,
            };
            shell.log_event(&["all"], Value::Map(message));
        })
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

    /// Checks the request; gives the surplus replicas, or the keys without data.
    fn begin(&self, shell: &Shell) -> Result<Result<Deletions, Vec<Key>>, Failure> {
        let candidates = self.candidates(shell);
        let replicas = self.replicas(&candidates);
        if replicas == 0 {
            return Err(value_error("Can not use replicate to delete data"));
        }
        let mut missing = Vec::new();
        let mut surplus = Deletions::new();
        for key in &self.keys {
            let task = shell.core.find_task(key).ok_or_else(|| key_error(key))?;
            if task.who_has.is_empty() {
                missing.push(key.clone());
            }
            let holders = candidates
                .iter()
                .filter(|worker| task.who_has.contains(**worker));
            for worker in holders.skip(replicas) {
                if let Some(address) = shell.worker_address(*worker) {
                    surplus.entry(address).or_default().push(key.clone());
                }
            }
        }
        if missing.is_empty() {
            Ok(Ok(surplus))
        } else {
            Ok(Err(missing))
        }
    }

    /// One round: each key goes to at most `branching_factor` workers per holder.
    fn fetches(&self, shell: &Shell) -> Fetches {
        let candidates: Vec<(WorkerId, Arc<str>)> = self
            .candidates(shell)
            .into_iter()
            .filter_map(|worker| Some((worker, shell.worker_address(worker)?)))
            .collect();
        let replicas = self.replicas.unwrap_or(usize::MAX).min(candidates.len());
        let mut fetches = Fetches::new();
        for (position, key) in self.keys.iter().enumerate() {
            let Some(task) = shell.core.find_task(key) else {
                continue;
            };
            let holds = |worker: WorkerId| task.who_has.contains(worker);
            let with = candidates.iter().filter(|(worker, _)| holds(*worker));
            let count = replicas
                .saturating_sub(with.count())
                .min(self.branching_factor.saturating_mul(task.who_has.len()));
            if count == 0 {
                continue;
            }
            let without: Vec<&Arc<str>> = candidates
                .iter()
                .filter(|(worker, _)| !holds(*worker))
                .map(|(_, address)| address)
                .filter(|address| {
                    self.failed.is_empty()
                        || !self.failed.contains(&(key.clone(), Arc::clone(address)))
                })
                .collect();
            let holders = addresses(shell, task.who_has.iter());
            for offset in 0..count.min(without.len()) {
                let worker = without[(self.turn + position + offset) % without.len()];
                let who_has = fetches.entry(Arc::clone(worker)).or_default();
                who_has.push((key.clone(), holders.clone()));
            }
        }
        fetches
    }
}

fn addresses(shell: &Shell, workers: impl Iterator<Item = WorkerId>) -> Vec<Arc<str>> {
    workers
        .filter_map(|worker| shell.worker_address(worker))
        .collect()
}

/// `{key: [address, …]}`.
fn map_of(who_has: &WhoHas) -> Map {
    let holders = |holders: &[Arc<str>]| holders.iter().map(Value::from).collect::<Value>();
    let keys = who_has.iter();
    keys.map(|(key, addresses)| (Value::from(key), holders(addresses)))
        .collect()
}

fn list_of(keys: &[Key]) -> Value {
    keys.iter().map(Value::from).collect()
}

/// Has workers fetch keys from others; returns those that each could not get
/// (`gather_on_worker`).
///
/// # Errors
///
/// `ValueError` for an answer that no worker gives.
async fn gather_on_workers(
    shell: &ShellHandle,
    fetches: &Fetches,
    stimulus_id: &StimulusId,
) -> Result<Vec<(Arc<str>, Vec<Key>)>, Failure> {
    let requests = fetches.iter().map(|(worker, who_has)| async move {
        let failed = gather_on_worker(shell, worker, who_has, stimulus_id).await?;
        Ok((worker.clone(), failed))
    });
    try_join_all(requests).await
}

async fn gather_on_worker(
    shell: &ShellHandle,
    worker: &Arc<str>,
    who_has: &WhoHas,
    stimulus_id: &StimulusId,
) -> Result<Vec<Key>, Failure> {
    let keys: Vec<Key> = who_has.iter().map(|(key, _)| key.clone()).collect();
    let fields = map! { "who_has" => map_of(who_has) };
    let reply = match shell.peers.call(worker, "gather", fields).await {
        Ok(reply) => reply,
        Err(error) => {
            warn!(target: "distributed.scheduler", "Communication with worker {worker} failed during replication: {error}");
            return Ok(keys);
        }
    };
    let field = |name: &str| reply.as_map().and_then(|reply| reply.get(name));
    let failed: Vec<Key> = match field("status").and_then(Value::as_str) {
        Some("OK") => Vec::new(),
        Some("partial-fail") => {
            let failed = field("keys").and_then(Value::as_array).unwrap_or_default();
            let failed = failed.iter().filter_map(|key| Key::from_value(key).ok());
            failed.collect()
        }
        Some(_) | None => {
            return Err(value_error(&format!(
                "Unexpected message from {worker}: {reply:?}"
            )));
        }
    };
    let address = worker.clone();
    let stimulus_id = stimulus_id.clone();
    let failed = shell.call(move |shell| {
        let Some(id) = shell.core.worker_id(&address) else {
            warn!(target: "distributed.scheduler", "Worker {address} lost during replication");
            return keys;
        };
        if !failed.is_empty() {
            let list: Vec<String> = failed.iter().map(Key::python_repr).collect();
            let list = list.join(", ");
            warn!(target: "distributed.scheduler", "Worker {address} failed to acquire keys: ({list})");
        }
        let mut fetched = keys;
        fetched.retain(|key| !failed.contains(key));
        for key in &fetched {
            let task = shell.core.find_task(key);
            if task.is_none_or(|task| task.state != State::Memory) {
                warn!(target: "distributed.scheduler", "Key lost during replication: {key}");
            }
        }
        // What is no longer wanted is dropped by the worker again.
        shell.event(Event::AddKeys {
            worker: id,
            keys: fetched,
            stimulus_id,
        });
        failed
    });
    Ok(failed.await?)
}

/// Has workers forget keys, and forgets their replicas (`delete_worker_data`).
async fn delete_worker_data(
    shell: &ShellHandle,
    deletions: Deletions,
    stimulus_id: &StimulusId,
) -> Result<(), Failure> {
    let requests = deletions.into_iter().map(|(worker, keys)| async move {
        let fields = map! {
            "keys" => list_of(&keys),
            "stimulus_id" => format!("delete-data-{}", now()),
        };
        match shell.peers.call(&worker, "free_keys", fields).await {
            Ok(_) => Some((worker, keys)),
            Err(error) => {
                warn!(target: "distributed.scheduler", "Communication with worker {worker} failed during replication: {error}");
                None
            }
        }
    });
    let deleted = join_all(requests).await;
    let stimulus_id = stimulus_id.clone();
    shell
        .call(move |shell| {
            for (address, keys) in deleted.into_iter().flatten() {
                let Some(worker) = shell.core.worker_id(&address) else {
                    continue;
                };
                let message = map! { "action" => "remove-worker-data", "keys" => list_of(&keys) };
                for key in keys {
                    let stimulus_id = stimulus_id.clone();
                    shell.event(Event::ReleaseWorkerData {
                        worker,
                        key,
                        stimulus_id,
                    });
                }
                shell.log_event(&[&address], Value::Map(message));
            }
        })
        .await?;
    Ok(())
}

/// Moves results from full workers to empty ones.
pub(super) async fn rebalance(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let keys = args.optional_keys("keys")?;
    let workers = args.optional("workers");
    let stimulus_id = args.stimulus_id("rebalance");
    let is_explicit = keys.is_some();
    let planned = shell
        .call(move |shell| plan_moves(shell, keys, &workers))
        .await??;
    let moves = match planned {
        Ok(moves) if moves.is_empty() => return Ok(ok()),
        Ok(moves) => moves,
        Err(missing) => return Ok(partial_fail(missing)),
    };
    let _alone = shell.replicas.write().await;
    let mut fetches = Fetches::new();
    for step in &moves {
        let holder = vec![step.sender.clone()];
        let who_has = fetches.entry(step.recipient.clone()).or_default();
        who_has.push((step.key.clone(), holder));
    }
    let failed = gather_on_workers(shell, &fetches, &stimulus_id).await?;
    let failed: HashSet<(Arc<str>, Key)> = failed
        .into_iter()
        .flat_map(|(worker, keys)| keys.into_iter().map(move |key| (worker.clone(), key)))
        .collect();
    let moved_keys = moves.len();
    let mut deletions = Deletions::new();
    for step in moves {
        if !failed.contains(&(step.recipient, step.key.clone())) {
            deletions.entry(step.sender).or_default().push(step.key);
        }
    }
    let senders: Map = deletions
        .iter()
        .map(|(worker, keys)| (worker, keys.len()))
        .collect();
    delete_worker_data(shell, deletions, &stimulus_id).await?;
    shell
        .call(move |shell| {
            for (worker, who_has) in &fetches {
                let message = map! { "action" => "rebalance", "who_has" => map_of(who_has) };
                shell.log_event(&[worker], Value::Map(message));
            }
            let recipients: Map = fetches
                .iter()
                .map(|(worker, who_has)| (worker, who_has.len()))
                .collect();
            log_rebalance(shell, senders, recipients, moved_keys);
        })
        .await?;
    // Without being asked for certain keys, those that are gone by now do not matter.
    if !is_explicit || failed.is_empty() {
        return Ok(ok());
    }
    let mut missing: Vec<Key> = failed.into_iter().map(|(_, key)| key).collect();
    missing.sort_by_key(Key::python_repr);
    missing.dedup();
    Ok(partial_fail(missing))
}

fn log_rebalance(
    shell: &mut Shell,
    senders: impl Into<Value>,
    recipients: impl Into<Value>,
    moved_keys: usize,
) {
    let (senders, recipients): (Value, Value) = (senders.into(), recipients.into());
    let message = map! {
        "action" => "rebalance",
        "senders" => senders,
        "recipients" => recipients,
        "moved_keys" => moved_keys,
    };
    shell.log_event(&["all"], Value::Map(message));
}

fn ok() -> Value {
    Value::Map(map! { "status" => "OK" })
}

fn partial_fail(keys: Vec<Key>) -> Value {
    Value::Map(map! { "status" => "partial-fail", "keys" => list_of(&keys) })
}

/// A key that changes its worker; addresses.
struct Step {
    sender: Arc<str>,
    recipient: Arc<str>,
    key: Key,
}

/// The moves, or the keys without data.
fn plan_moves(
    shell: &mut Shell,
    keys: Option<Vec<Key>>,
    workers: &Value,
) -> Result<Result<Vec<Step>, Vec<Key>>, Failure> {
    let workers = match workers.as_array() {
        None => shell.workers_named(&Value::Nil),
        Some(addresses) => {
            let mut workers = Vec::with_capacity(addresses.len());
            for address in addresses {
                let worker = address.as_str().and_then(|text| shell.core.worker_id(text));
                let unknown = || Failure::builtin("KeyError", &Shell::name_text(address));
                workers.push(worker.ok_or_else(unknown)?);
            }
            workers
        }
    };
    let is_vain = workers.is_empty() || keys.as_ref().is_some_and(Vec::is_empty);
    if is_vain {
        return Ok(Ok(Vec::new()));
    }
    let mut tasks = None;
    if let Some(keys) = keys {
        let mut with_data = HashSet::with_capacity(keys.len());
        let mut missing = Vec::new();
        for key in keys {
            let task = shell.core.task_id(&key);
            let state = task.and_then(|task| shell.core.task(task));
            match task.filter(|_| state.is_some_and(|state| !state.who_has.is_empty())) {
                Some(task) => {
                    with_data.insert(task);
                }
                None => missing.push(key),
            }
        }
        if !missing.is_empty() {
            return Ok(Err(missing));
        }
        tasks = Some(with_data);
    }
    let config = &shell.handle.settings.rebalance;
    let Rebalance {
        moves,
        senders,
        recipients,
    } = rebalance::rebalance(&shell.core, tasks.as_ref(), &workers, config);
    if senders == 0 || recipients == 0 {
        log_rebalance(shell, senders, recipients, 0);
    }
    let steps = moves.into_iter().filter_map(|step| {
        Some(Step {
            sender: shell.worker_address(step.sender)?,
            recipient: shell.worker_address(step.recipient)?,
            key: shell.core.task(step.task)?.key.clone(),
        })
    });
    Ok(Ok(steps.collect()))
}
