//! Data through the scheduler: gather, scatter.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use oxidask_scheduler::{Event, Failure, Status};
use oxidask_wire::{Key, Map, Str, Value, map};
use tracing::error;

use super::super::args::{Args, os_error, timeout_error, type_error};
use super::super::gather::{Answer, GatherPlan, Step};
use super::super::shell::{Shell, ShellHandle, now};

/// Pause before a busy worker is asked again (distributed's `gather_from_workers`).
const BUSY_PAUSE: Duration = Duration::from_millis(150);

pub(super) async fn gather(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let keys = args.keys("keys")?;
    let serializers = args.optional("serializers");
    let count = keys.len();
    let mut plan = GatherPlan::new(keys);
    loop {
        match plan.step() {
            Step::Locate(keys) => {
                let located = shell.call(move |shell| {
                    keys.into_iter()
                        .map(|key| {
                            let holders = shell.core.find_task(&key).map(|task| {
                                task.who_has
                                    .iter()
                                    .filter_map(|worker| shell.worker_address(worker))
                                    .collect()
                            });
                            (key, holders.unwrap_or_default())
                        })
                        .collect::<Vec<_>>()
                });
                plan.located(located.await?);
            }
            Step::Fetch(requests) => {
                let answers = requests.into_iter().map(|(worker, keys)| {
                    let serializers = serializers.clone();
                    async move {
                        let answer = get_data(shell, &worker, &keys, serializers).await;
                        (worker, keys, answer)
                    }
                });
                for (worker, keys, answer) in join_all(answers).await {
                    plan.answered(&worker, keys, answer);
                }
            }
            Step::Wait => tokio::time::sleep(BUSY_PAUSE).await,
            Step::Done { data, failed } => {
                return finish_gather(shell, count, data, failed).await;
            }
        }
    }
}

async fn finish_gather(
    shell: &ShellHandle,
    count: usize,
    data: Vec<(Key, Value)>,
    failed: Vec<Key>,
) -> Result<Value, Failure> {
    let failed_keys = failed.clone();
    let states = shell.call(move |shell| {
        shell.log_event(
            &["all"],
            Value::Map(map! { "action" => "gather", "count" => count }),
        );
        failed_keys
            .iter()
            .map(|key| {
                let state = shell
                    .core
                    .find_task(key)
                    .map_or("forgotten", |task| task.state.name());
                format!("{}: '{state}'", key.python_repr())
            })
            .collect::<Vec<_>>()
    });
    let states = states.await?;
    if failed.is_empty() {
        let data: Map = data
            .into_iter()
            .map(|(key, value)| (Value::from(key), value))
            .collect();
        return Ok(Value::Map(map! { "status" => "OK", "data" => data }));
    }
    error!(target: "distributed.scheduler", "Couldn't gather keys: {{{}}}", states.join(", "));
    let failed: Value = failed.into_iter().map(Value::from).collect();
    Ok(Value::Map(map! { "status" => "error", "keys" => failed }))
}

/// `get_data`, acknowledged by `"OK"` so that the worker frees its slot.
async fn get_data(shell: &ShellHandle, worker: &str, keys: &[Key], serializers: Value) -> Answer {
    let fields = map! {
        "keys" => keys.iter().map(Value::from).collect::<Value>(),
        "who" => Value::Nil,
        "serializers" => serializers,
    };
    let exchange = shell.peers.call_acknowledged(worker, "get_data", fields);
    let reply = match exchange.await {
        Ok(reply) => reply,
        Err(error) => {
            error!(target: "distributed.scheduler", "cannot gather from `{worker}`: {error}");
            return Answer::Unreachable;
        }
    };
    let Some(mut reply) = reply.into_map() else {
        return Answer::Failed;
    };
    match reply.get("status").and_then(Value::as_str) {
        Some("OK") => Answer::Data(
            reply
                .take("data")
                .and_then(Value::into_map)
                .unwrap_or_default()
                .into_iter()
                .filter_map(|(key, value)| Some((Key::from_value(&key).ok()?, value)))
                .collect(),
        ),
        Some("busy") => Answer::Busy,
        Some(_) | None => {
            let text = reply
                .get("exception_text")
                .and_then(Value::as_str)
                .unwrap_or("no reason given");
            error!(target: "distributed.scheduler", "Unexpected error while collecting tasks from {worker}: {text}");
            Answer::Failed
        }
    }
}

/// Addresses of the workers that may take scattered data, sorted.
fn scatter_targets(shell: &Shell, workers: &Value) -> Result<Vec<Arc<str>>, Failure> {
    let running = |worker: &oxidask_scheduler::WorkerState| worker.status == Status::Running;
    let mut targets = Vec::new();
    match workers.as_array() {
        None => {
            targets.extend(
                shell
                    .core
                    .workers()
                    .filter(|(_, worker)| running(worker))
                    .map(|(_, worker)| worker.address.clone()),
            );
        }
        Some(named) => {
            for name in named {
                let worker = shell
                    .coerce_address(name)
                    .and_then(|address| shell.core.worker_id(&address))
                    .and_then(|worker| shell.core.worker(worker));
                match worker {
                    Some(worker) if running(worker) => targets.push(worker.address.clone()),
                    Some(_) => {}
                    None => {
                        let name = Shell::name_text(name);
                        return Err(Failure::builtin("KeyError", &name));
                    }
                }
            }
        }
    }
    targets.sort();
    targets.dedup();
    Ok(targets)
}

pub(super) async fn scatter(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let Some(data) = args.required("data")?.into_map() else {
        return Err(type_error("scatter: `data` must be a map"));
    };
    let workers = args.optional("workers");
    let client = args.optional_str("client");
    let broadcast = args.optional("broadcast");
    let timeout = args.seconds("timeout").unwrap_or(2.0);
    let targets = wait_for_targets(shell, workers, timeout).await?;

    let mut keys = Vec::with_capacity(data.len());
    let mut parts: Vec<Map> = targets.iter().map(|_| Map::new()).collect();
    let mut who_has = Vec::with_capacity(data.len());
    let count = data.len();
    let start = shell
        .call(move |shell| {
            let start = shell.scatter_position;
            shell.scatter_position = shell.scatter_position.wrapping_add(count);
            start
        })
        .await?;
    for (position, (key, value)) in data.into_iter().enumerate() {
        let key = Key::from_value(&key).map_err(|error| type_error(&error.to_string()))?;
        let target = start.wrapping_add(position) % targets.len();
        who_has.push((key.clone(), vec![Str::from(&*targets[target])]));
        parts[target].push(&key, value);
        keys.push(key);
    }
    let sent = targets
        .iter()
        .zip(parts)
        .filter(|(_, part)| !part.is_empty())
        .map(|(target, part)| async move {
            let request = map! { "reply" => true, "data" => part };
            let reply = shell.peers.call(target, "update_data", request).await;
            let reply = reply
                .map_err(|error| os_error(&format!("cannot scatter to `{target}`: {error}")))?;
            let mut reply = reply.into_map().unwrap_or_default();
            if reply.get("status").and_then(Value::as_str) == Some("uncaught-error") {
                let text = reply
                    .get("exception_text")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                return Err(Failure::builtin("Exception", text));
            }
            Ok(reply
                .take("nbytes")
                .and_then(Value::into_map)
                .unwrap_or_default())
        });
    let mut nbytes = Vec::with_capacity(keys.len());
    for part in join_all(sent).await {
        for (key, size) in part? {
            if let (Ok(key), Some(size)) = (Key::from_value(&key), size.as_i64()) {
                nbytes.push((key, size));
            }
        }
    }
    let replicas = if broadcast.as_bool() == Some(true) {
        targets.len()
    } else {
        usize::try_from(broadcast.as_i64().unwrap_or(0)).unwrap_or(0)
    };
    take_in(shell, client, keys.clone(), who_has, nbytes).await?;
    if replicas > 1 {
        replicate(shell, &keys, &targets, replicas).await?;
    }
    Ok(keys.into_iter().map(Value::from).collect())
}

async fn wait_for_targets(
    shell: &ShellHandle,
    workers: Value,
    timeout: f64,
) -> Result<Vec<Arc<str>>, Failure> {
    /// As often as stock looks for a running worker.
    const POLL: Duration = Duration::from_millis(100);
    let deadline = now() + timeout;
    loop {
        let named = workers.clone();
        let targets = shell
            .call(move |shell| scatter_targets(shell, &named))
            .await??;
        if !targets.is_empty() {
            return Ok(targets);
        }
        if now() > deadline {
            return Err(timeout_error("No valid workers found"));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn take_in(
    shell: &ShellHandle,
    client: Option<Str>,
    keys: Vec<Key>,
    who_has: Vec<(Key, Vec<Str>)>,
    nbytes: Vec<(Key, i64)>,
) -> Result<(), Failure> {
    shell
        .call(move |shell| {
            let client: Option<Arc<str>> = client.as_deref().map(Arc::from);
            let stimulus_id = format!("scatter-{}", now()).into();
            shell.event(Event::UpdateData {
                client: client.clone(),
                who_has,
                nbytes,
                stimulus_id,
            });
            let message =
                map! { "action" => "scatter", "client" => client.as_ref(), "count" => keys.len() };
            let mut topics = vec!["all"];
            topics.extend(client.as_deref());
            shell.log_event(&topics, Value::Map(message));
        })
        .await?;
    Ok(())
}

/// Copies of scattered data: every round each worker that has none yet fetches
/// from the holders of the round before.
async fn replicate(
    shell: &ShellHandle,
    keys: &[Key],
    targets: &[Arc<str>],
    replicas: usize,
) -> Result<(), Failure> {
    let keys = keys.to_vec();
    let targets = targets.to_vec();
    let mut fields = map! {
        "keys" => keys.into_iter().map(Value::from).collect::<Value>(),
        "workers" => targets.iter().map(Value::from).collect::<Value>(),
        "n" => replicas,
    };
    fields.insert("branching_factor", 2);
    super::replicate::replicate(shell, Args(fields))
        .await
        .map(|_| ())
}

pub(super) async fn update_data(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let event = update_data_event(&mut args)?;
    shell.call(move |shell| shell.event(event)).await?;
    Ok(Value::Nil)
}

fn update_data_event(args: &mut Args) -> Result<Event, Failure> {
    let malformed = || type_error("update_data: `who_has` must map keys to lists of addresses");
    let mut who_has = Vec::new();
    for (key, holders) in args.required("who_has")?.into_map().ok_or_else(malformed)? {
        let key = Key::from_value(&key).map_err(|_| malformed())?;
        let holders = holders.as_array().ok_or_else(malformed)?;
        who_has.push((
            key,
            holders
                .iter()
                .filter_map(|holder| holder.clone().into_str())
                .collect(),
        ));
    }
    let nbytes = args
        .optional("nbytes")
        .into_map()
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(key, nbytes)| Some((Key::from_value(&key).ok()?, nbytes.as_i64()?)))
        .collect();
    let client = args.optional_str("client").as_deref().map(Arc::from);
    Ok(Event::UpdateData {
        client,
        who_has,
        nbytes,
        stimulus_id: args.stimulus_id("update-data"),
    })
}

/// How long the client that asks for a retry hears nothing of its results. Chosen:
/// as long as a busy machine may keep a client from reading an answer it was sent.
const RETRY_HOLD: Duration = Duration::from_millis(20);

pub(super) async fn retry(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let keys = args.keys("keys")?;
    let client = args.optional_str("client").as_deref().map(Arc::from);
    let stimulus_id = args.stimulus_id("stimulus-retry");
    let answer = shell.call(move |shell| {
        let (request, answer) = shell.request();
        // The stock client takes a key for pending when it reads the answer, on another
        // socket. A result that came first would be forgotten, and waited for for ever.
        let asking = client
            .as_deref()
            .and_then(|name| shell.core.client_id(name));
        if let Some(link) = asking.and_then(|client| shell.clients.get(&client)) {
            link.sender.hold(RETRY_HOLD);
        }
        shell.event(Event::Retry {
            request,
            client,
            keys,
            stimulus_id,
        });
        answer
    });
    answer
        .await?
        .await
        .unwrap_or_else(|_| Err(super::super::shell::ShutDown.into()))
}
