//! Logs, stories, call stacks, profiles.

use std::sync::Arc;

use futures_util::future::join_all;
use indexmap::IndexMap;
use oxidask_scheduler::transitions::story::Transition;
use oxidask_scheduler::{Failure, RunSpec, State, TaskId};
use oxidask_wire::{Key, Map, Pickled, Value, map, pickle};

use super::super::args::{Args, os_error, runtime_error};
use super::super::shell::{Shell, ShellHandle};
use super::broadcast::Broadcast;
use super::cluster::key_error;

/// `get_logs`: the scheduler's own log, newest first.
pub(super) fn logs(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let n = args
        .optional("n")
        .as_i64()
        .and_then(|count| usize::try_from(count).ok());
    let start = args.seconds("start").unwrap_or(0.0);
    let timestamps = args.flag("timestamps", false);
    let records = shell.settings.logs.records(start, n);
    Ok(records
        .into_iter()
        .map(|record| {
            let mut entry = vec![Value::from(&*record.level), Value::from(record.line)];
            if timestamps {
                entry.insert(0, record.timestamp.into());
            }
            Value::Array(entry)
        })
        .collect())
}

pub(super) async fn worker_logs(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let message = map! { "op" => "get_logs", "n" => args.optional("n") };
    let broadcast = Broadcast {
        workers: args.optional("workers"),
        nanny: args.flag("nanny", false),
        ..Broadcast::to_all(message)
    };
    Ok(Value::Map(broadcast.send(shell).await?))
}

pub(in super::super) async fn call_stack(
    shell: &ShellHandle,
    mut args: Args,
) -> Result<Value, Failure> {
    let keys = args.optional_keys("keys")?;
    let requests = shell.call(move |shell| match keys {
        None => Ok(shell
            .core
            .workers()
            .map(|(_, worker)| (worker.address.clone(), Value::Nil))
            .collect()),
        Some(keys) => executing(shell, keys),
    });
    let requests: Vec<(Arc<str>, Value)> = requests.await??;
    let answers = join_all(requests.into_iter().map(|(worker, keys)| async move {
        let reply = shell
            .peers
            .call(
                &worker,
                "call_stack",
                map! { "reply" => true, "keys" => keys },
            )
            .await;
        (worker, reply)
    }));
    let mut stacks = Map::new();
    for (worker, reply) in answers.await {
        let reply = reply.map_err(|error| {
            os_error(&format!("cannot ask `{worker}` for call stacks: {error}"))
        })?;
        if reply.as_map().is_some_and(|stack| !stack.is_empty()) {
            stacks.push(worker, reply);
        }
    }
    Ok(Value::Map(stacks))
}

/// The tasks in processing that these keys are or wait for, by worker.
fn executing(shell: &Shell, keys: Vec<Key>) -> Result<Vec<(Arc<str>, Value)>, Failure> {
    let mut stack: Vec<TaskId> = Vec::with_capacity(keys.len());
    for key in keys {
        stack.push(shell.core.task_id(&key).ok_or_else(|| key_error(&key))?);
    }
    let mut seen = std::collections::HashSet::new();
    let mut by_worker: IndexMap<Arc<str>, Vec<Value>> = IndexMap::new();
    while let Some(id) = stack.pop() {
        let Some(task) = shell.core.task(id).filter(|_| seen.insert(id)) else {
            continue;
        };
        if task.state == State::Waiting {
            stack.extend(task.dependencies.iter());
        }
        if let Some(address) = task
            .processing_on
            .and_then(|worker| shell.worker_address(worker))
        {
            by_worker
                .entry(address)
                .or_default()
                .push(Value::from(&task.key));
        }
    }
    Ok(by_worker
        .into_iter()
        .map(|(worker, keys)| (worker, Value::Array(keys)))
        .collect())
}

/// `profile`: the workers' profiles, merged or by worker. The scheduler has no
/// Python to profile: its own is the empty tree.
pub(super) async fn profile(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let workers = args.optional("workers");
    if args.flag("scheduler", false) {
        return Ok(empty_profile());
    }
    let merge = args.flag("merge_workers", true);
    let request = map! {
        "reply" => true,
        "start" => args.optional("start"),
        "stop" => args.optional("stop"),
        "key" => args.optional("key"),
        "server" => args.flag("server", false),
    };
    let workers = shell.call(move |shell| {
        let named = shell.workers_named(&workers);
        named
            .into_iter()
            .filter_map(|worker| shell.worker_address(worker))
            .collect::<Vec<_>>()
    });
    let answers = join_all(workers.await?.into_iter().map(|worker| {
        let request = request.clone();
        async move {
            let reply = shell.peers.call(&worker, "profile", request).await;
            (worker, reply)
        }
    }));
    // A worker that cannot be asked is left out, as on stock.
    let profiles = answers
        .await
        .into_iter()
        .filter_map(|(worker, reply)| Some((worker, reply.ok()?.into_map()?)));
    if merge {
        let merged = profiles.map(|(_, profile)| profile).reduce(merge_profiles);
        return Ok(merged.map_or_else(empty_profile, Value::Map));
    }
    Ok(Value::Map(
        profiles
            .map(|(worker, profile)| (Value::from(worker), Value::Map(profile)))
            .collect(),
    ))
}

fn empty_profile() -> Value {
    Value::Map(map! {
        "count" => 0,
        "children" => Map::new(),
        "identifier" => "root",
        "description" => map! { "filename" => "", "name" => "", "line_number" => 0, "line" => "" },
    })
}

/// `distributed.profile.merge` of two trees: counts add up, children with the
/// same identifier merge. A profile is as deep as a Python stack.
fn merge_profiles(mut into: Map, other: Map) -> Map {
    let count = |profile: &Map| profile.get("count").and_then(Value::as_i64).unwrap_or(0);
    let total = count(&into) + count(&other);
    into.insert("count", total);
    let mut other = other;
    let children = other
        .take("children")
        .and_then(Value::into_map)
        .unwrap_or_default();
    let mut merged = into
        .take("children")
        .and_then(Value::into_map)
        .unwrap_or_default();
    for (identifier, child) in children {
        let Some(child) = child.into_map() else {
            continue;
        };
        match merged.0.iter_mut().find(|(known, _)| *known == identifier) {
            Some((_, known)) => {
                if let Value::Map(known) = known {
                    *known = merge_profiles(std::mem::take(known), child);
                }
            }
            None => merged.push(identifier, child),
        }
    }
    into.insert("children", merged);
    into
}

/// `get_story`: `[key, start, finish, {key: finish}, stimulus_id, timestamp]`.
pub(super) async fn story(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let wanted = args.required("keys_or_stimuli")?;
    let story = shell.call(move |shell| {
        let values = wanted.as_array().unwrap_or_default();
        let keys: Vec<Key> = values
            .iter()
            .filter_map(|value| Key::from_value(value).ok())
            .collect();
        let stimuli: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
        transitions(shell.core.story(&keys, &stimuli))
    });
    Ok(story.await?)
}

/// Transitions as stock's tuples of the same name.
pub(in crate::scheduler) fn transitions(transitions: Vec<Transition>) -> Value {
    transitions
        .into_iter()
        .map(|transition| {
            let recommendations: Map = transition
                .recommendations
                .iter()
                .map(|(key, finish)| (Value::from(key), Value::from(finish.name())))
                .collect();
            Value::Array(vec![
                Value::from(&transition.key),
                transition.start.name().into(),
                transition.finish.name().into(),
                recommendations.into(),
                Value::from(&transition.stimulus_id),
                transition.timestamp.into(),
            ])
        })
        .collect()
}

/// `get_runspec`: the pickled task, for `recreate_task_locally`.
pub(super) async fn run_spec(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let key = args.required("key")?;
    let key = Key::from_value(&key).map_err(|_| runtime_error("get_runspec: `key` is no key"))?;
    let spec = shell.call(move |shell| {
        let task = shell.core.task_id(&key).ok_or_else(|| key_error(&key))?;
        Ok::<_, Failure>((
            shell.core.run_spec(task).cloned(),
            shell.core.bundle(task),
            key,
        ))
    });
    let (mut spec, bundle, key) = spec.await??;
    if let (None, Some((blob, index))) = (&spec, bundle) {
        let specs = crate::graph_helper::explode(&shell.helpers, blob)
            .await
            .map_err(crate::graph_helper::failure)?;
        spec = specs.into_iter().nth(index as usize);
    }
    let pickled = match spec {
        None | Some(RunSpec::None | RunSpec::Bundle { .. }) => return Ok(Value::Nil),
        Some(RunSpec::Pickle(pickle)) => Pickled::of_pickle(&pickle),
        Some(RunSpec::Buffers(parts)) => Pickled::with_buffers(&parts.0, parts.1.iter().cloned()),
        Some(RunSpec::Call {
            function,
            arguments,
        }) => {
            let pickle = pickle::task_pickle(&key, &function, &arguments)
                .map_err(|error| runtime_error(&error.to_string()))?;
            Pickled::of_pickle(&pickle)
        }
    };
    Ok(Value::from(pickled))
}

/// `get_error_cause`: the task to blame for the first of these keys that erred.
pub(super) async fn error_cause(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let keys = args.keys("keys")?;
    let cause = shell.call(move |shell| {
        keys.iter()
            .filter_map(|key| shell.core.find_task(key))
            .find_map(|task| task.failure.as_ref().map(|failure| failure.cause.clone()))
    });
    Ok(cause.await?.into())
}
