//! What the scheduler knows: workers, tasks, itself; and what workers tell it.

use std::sync::Arc;

use oxidask_scheduler::{Event, Failure, TaskState, WorkerState};
use oxidask_wire::{Key, Map, Value, map};

use super::super::args::{Args, type_error};
use super::super::shell::{Shell, ShellHandle, now};

/// What a worker is; observers are not told what changes with every heartbeat.
fn worker_identity(worker: &WorkerState, brief: bool) -> Value {
    let mut identity = worker.identity();
    if brief {
        identity
            .0
            .retain(|(name, _)| !matches!(name.as_str(), Some("last_seen" | "metrics")));
    }
    Value::Map(identity)
}

/// `Scheduler.identity`; `brief` leaves out what changes with every heartbeat.
pub(crate) fn identity(shell: &Shell, workers_count: usize, brief: bool) -> Map {
    let workers: Map = shell
        .core
        .workers()
        .take(workers_count)
        .map(|(_, worker)| (Value::from(&worker.address), worker_identity(worker, brief)))
        .collect();
    let settings = &shell.handle.settings;
    map! {
        "type" => "Scheduler",
        "id" => &settings.id,
        "address" => settings.address(),
        "services" => settings.services(),
        "started" => shell.started,
        "n_workers" => shell.core.n_workers(),
        "total_threads" => shell.core.total_nthreads(),
        "total_memory" => shell.core.total_memory(),
        "workers" => workers,
    }
}

/// One worker of [`identity`], for observers.
pub(crate) fn brief_worker(worker: &WorkerState) -> Value {
    worker_identity(worker, true)
}

pub(super) async fn identity_reply(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let count = match args.optional("n_workers").as_i64() {
        Some(count) if count >= 0 => usize::try_from(count).unwrap_or(usize::MAX),
        Some(_) | None => usize::MAX,
    };
    Ok(Value::Map(
        shell
            .call(move |shell| identity(shell, count, false))
            .await?,
    ))
}

fn holders(shell: &Shell, task: &TaskState) -> Value {
    task.who_has
        .iter()
        .filter_map(|worker| shell.core.worker(worker))
        .map(|worker| Value::from(&worker.address))
        .collect()
}

pub(super) async fn who_has(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let keys = args.optional_keys("keys")?;
    let who_has = shell.call(move |shell| match keys {
        Some(keys) => keys
            .into_iter()
            .map(|key| {
                let holders = shell
                    .core
                    .find_task(&key)
                    .map_or(Value::Array(Vec::new()), |task| holders(shell, task));
                (Value::from(key), holders)
            })
            .collect::<Map>(),
        None => shell
            .core
            .tasks()
            .map(|(_, task)| (Value::from(&task.key), holders(shell, task)))
            .collect(),
    });
    Ok(Value::Map(who_has.await?))
}

/// `{address: f(worker)}` of the named workers, or of all.
fn per_worker(
    shell: &Shell,
    workers: &Value,
    unknown: Option<&Value>,
    value: impl Fn(&WorkerState) -> Value,
) -> Map {
    match workers.as_array() {
        None => shell
            .core
            .workers()
            .map(|(_, worker)| (Value::from(&worker.address), value(worker)))
            .collect(),
        Some(named) => named
            .iter()
            .filter_map(|name| shell.coerce_address(name))
            .filter_map(|address| {
                let worker = shell
                    .core
                    .worker_id(&address)
                    .and_then(|worker| shell.core.worker(worker));
                let value = worker.map(&value).or_else(|| unknown.cloned())?;
                Some((Value::from(address), value))
            })
            .collect(),
    }
}

fn keys_of(shell: &Shell, tasks: impl Iterator<Item = oxidask_scheduler::TaskId>) -> Value {
    tasks
        .filter_map(|task| shell.core.task(task))
        .map(|task| Value::from(&task.key))
        .collect()
}

pub(super) async fn has_what(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let workers = args.optional("workers");
    let nothing = Value::Array(Vec::new());
    let has_what = shell.call(move |shell| {
        per_worker(shell, &workers, Some(&nothing), |worker| {
            keys_of(shell, worker.has_what.iter())
        })
    });
    Ok(Value::Map(has_what.await?))
}

pub(super) async fn processing(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let workers = args.optional("workers");
    let processing = shell.call(move |shell| {
        per_worker(shell, &workers, None, |worker| {
            keys_of(shell, worker.processing.iter())
        })
    });
    Ok(Value::Map(processing.await?))
}

pub(super) async fn ncores(
    shell: &ShellHandle,
    mut args: Args,
    running: bool,
) -> Result<Value, Failure> {
    let workers = args.optional("workers");
    let ncores = shell.call(move |shell| {
        let mut ncores = per_worker(shell, &workers, None, |worker| worker.nthreads.into());
        if running {
            ncores.0.retain(|(address, _)| {
                let worker = address
                    .as_str()
                    .and_then(|address| shell.core.worker_id(address));
                worker.is_some_and(|worker| shell.core.is_running(worker))
            });
        }
        ncores
    });
    Ok(Value::Map(ncores.await?))
}

pub(super) async fn nbytes(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let keys = args.optional_keys("keys")?;
    let summary = args.flag("summary", true);
    let sizes = shell.call(move |shell| {
        let sizes: Vec<(Key, i64)> = match keys {
            Some(keys) => {
                let mut sizes = Vec::with_capacity(keys.len());
                for key in keys {
                    let Some(task) = shell.core.find_task(&key) else {
                        return Err(key_error(&key));
                    };
                    sizes.push((key, task.nbytes));
                }
                sizes
            }
            None => shell
                .core
                .tasks()
                .filter(|(_, task)| task.nbytes >= 0)
                .map(|(_, task)| (task.key.clone(), task.nbytes))
                .collect(),
        };
        Ok(sizes)
    });
    let sizes = sizes.await??;
    if !summary {
        return Ok(Value::Map(
            sizes
                .into_iter()
                .map(|(key, nbytes)| (Value::from(key), Value::from(nbytes)))
                .collect(),
        ));
    }
    let mut by_prefix: indexmap::IndexMap<String, i64> = indexmap::IndexMap::new();
    for (key, nbytes) in sizes {
        *by_prefix.entry(key.key_split().into_owned()).or_default() += nbytes;
    }
    Ok(Value::Map(
        by_prefix
            .into_iter()
            .map(|(prefix, nbytes)| (Value::from(prefix), Value::from(nbytes)))
            .collect(),
    ))
}

/// `KeyError(key)`.
pub(super) fn key_error(key: &Key) -> Failure {
    use oxidask_wire::pickle::{PickleArg, exception_pickle};
    Failure {
        exception: exception_pickle("builtins", "KeyError", &[PickleArg::Key(key)]).into(),
        text: key.python_repr(),
    }
}

pub(super) async fn check_idle(shell: &ShellHandle) -> Result<Value, Failure> {
    Ok(shell.call(|shell| shell.check_idle(now())).await?.into())
}

pub(super) async fn versions(shell: &ShellHandle, args: Args) -> Result<Value, Failure> {
    Ok(shell.settings.versions(&shell.helpers, args).await)
}

pub(super) async fn set_resources(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let worker = args.required("worker")?;
    let resources = resources(&args.optional("resources"));
    shell
        .call(move |shell| {
            let worker = shell
                .coerce_address(&worker)
                .and_then(|address| shell.core.worker_id(&address));
            let Some(worker) = worker else {
                return Err(type_error("set_resources: no such worker"));
            };
            shell.event(Event::SetResources { worker, resources });
            Ok("OK".into())
        })
        .await?
}

/// `{name: amount}` of a message.
pub(crate) fn resources(value: &Value) -> Vec<(Arc<str>, f64)> {
    let pairs = value
        .as_map()
        .map(|map| map.0.as_slice())
        .unwrap_or_default();
    pairs
        .iter()
        .filter_map(|(name, amount)| Some((Arc::from(name.as_str()?), amount.as_f64()?)))
        .collect()
}

pub(super) async fn set_restrictions(
    shell: &ShellHandle,
    mut args: Args,
) -> Result<Value, Failure> {
    let Some(worker) = args.required("worker")?.into_map() else {
        return Err(type_error(
            "set_restrictions: `worker` must map keys to addresses",
        ));
    };
    let worker = worker
        .into_iter()
        .map(|(key, restrictions)| Key::from_value(&key).map(|key| (key, restrictions)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| type_error(&error.to_string()))?;
    shell
        .call(move |shell| shell.event(Event::SetRestrictions { worker }))
        .await?;
    Ok(Value::Nil)
}

pub(super) async fn unregister(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let address = args.required("address")?;
    let stimulus_id = args.stimulus_id("unregister");
    let expected = args.flag("expected", false);
    let close = args.flag("close", true);
    let removed = shell.call(move |shell| {
        let worker = shell
            .coerce_address(&address)
            .and_then(|address| shell.core.worker_id(&address));
        match worker {
            None => "already-removed",
            Some(worker) => {
                shell.event(Event::RemoveWorker {
                    worker,
                    stimulus_id,
                    expected,
                    close,
                });
                "OK"
            }
        }
    });
    Ok(removed.await?.into())
}

pub(super) async fn heartbeat_worker(
    shell: &ShellHandle,
    mut args: Args,
) -> Result<Value, Failure> {
    let address = args.str("address")?;
    let worker_now = args.seconds("now");
    let metrics = args.required("metrics")?.detached();
    let executing = args.optional("executing").into_map().unwrap_or_default();
    let executing = executing
        .iter()
        .filter_map(|(key, seconds)| Some((Key::from_value(key).ok()?, seconds.as_f64()?)))
        .collect();
    let extensions = args.optional("extensions").detached();
    let reply = shell.call(move |shell| {
        let Some(worker) = shell.core.worker_id(&address) else {
            return map! { "status" => "missing" };
        };
        shell.event(Event::Heartbeat { worker, worker_now, metrics, executing, extensions });
        map! { "status" => "OK", "time" => now(), "heartbeat-interval" => shell.heartbeat_interval() }
    });
    Ok(Value::Map(reply.await?))
}

pub(super) async fn add_keys(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let worker = args.required("worker")?;
    let keys = args.keys("keys")?;
    let stimulus_id = args.stimulus_id("add-keys");
    let known = shell.call(move |shell| {
        let worker = shell
            .coerce_address(&worker)
            .and_then(|address| shell.core.worker_id(&address));
        let Some(worker) = worker else {
            return "not found";
        };
        shell.event(Event::AddKeys {
            worker,
            keys,
            stimulus_id,
        });
        "OK"
    });
    Ok(known.await?.into())
}

/// A `key` is a pickled function of a worker: the graph helper evaluates it, the
/// extension decides with the groups that result, `{address: group}`.
pub(super) async fn with_groups(
    shell: &ShellHandle,
    op: &'static str,
    mut args: Args,
) -> Result<Value, Failure> {
    if let Some(key) = args.0.take("key").and_then(Value::into_bin) {
        let workers = shell.call(|shell| {
            shell
                .core
                .workers()
                .map(|(_, worker)| {
                    Value::Map(map! {
                        "address" => &worker.address,
                        "name" => worker.name.clone(),
                        "host" => &worker.host,
                        "nthreads" => worker.nthreads,
                        "memory_limit" => worker.memory_limit,
                        "resources" => worker.identity().take("resources"),
                        "nbytes" => worker.nbytes,
                        "nanny" => worker.nanny.clone(),
                        "pid" => worker.pid,
                        "status" => worker.status.name(),
                        "server_id" => worker.server_id.clone(),
                        "local_directory" => worker.local_directory.clone(),
                        "services" => worker.services.clone(),
                        "versions" => worker.versions.clone(),
                        "metrics" => worker.metrics.clone(),
                        "last_seen" => worker.last_seen,
                        "extra" => worker.extra.clone(),
                    })
                })
                .collect::<Vec<Value>>()
        });
        let workers = workers.await?;
        let addresses: Vec<Value> = workers
            .iter()
            .filter_map(|worker| worker.as_map()?.get("address").cloned())
            .collect();
        let fields = map! { "key" => key, "workers" => workers };
        let mut answer = crate::graph_helper::request(&shell.helpers, "worker_key", fields).await?;
        let groups = answer
            .take("groups")
            .and_then(Value::into_array)
            .unwrap_or_default();
        let groups: Map = addresses.into_iter().zip(groups).collect();
        args.0.insert("key", groups);
    }
    super::extension_reply(shell, op, args).await
}
