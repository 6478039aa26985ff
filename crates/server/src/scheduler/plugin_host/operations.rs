//! What functions and plug-ins in the host have the scheduler do.

use std::sync::Arc;

use oxidask_scheduler::group::ByName;
use oxidask_scheduler::{Event, Failure, StimulusId, ToWorker};
use oxidask_wire::{Key, Map, Value, map, message};

use super::super::args::{Args, runtime_error, value_error};
use super::super::rpc;
use super::super::shell::{Shell, ShellHandle};
use super::frames_in;
use super::link::Outgoing;

/// A request of the host's.
#[derive(Debug)]
pub(super) struct Asked {
    number: u64,
    op: String,
    args: Args,
    /// It may take long: what is asked next does not wait for it.
    pub(super) spawn: bool,
    /// Nobody waits for the answer.
    silent: bool,
}

impl Asked {
    pub(super) fn read(mut fields: Map) -> Option<Self> {
        let flag = |fields: &Map, name| fields.get(name).and_then(Value::as_bool).unwrap_or(false);
        let frames = frames_in(&mut fields)?;
        Some(Self {
            number: fields.get("n").and_then(Value::as_u64)?,
            op: fields.get("rpc").and_then(Value::as_str)?.to_owned(),
            args: Args(message::decode(&frames).ok()?.into_map()?),
            spawn: flag(&fields, "spawn"),
            silent: flag(&fields, "silent"),
        })
    }

    pub(super) async fn answer(self, shell: ShellHandle, outgoing: Outgoing) {
        let Self {
            number,
            op,
            args,
            silent,
            ..
        } = self;
        let result = Box::pin(carry_out(&shell, &op, args)).await;
        if silent {
            if let Err(failure) = result {
                tracing::warn!(target: "distributed.scheduler", "`{op}` of a scheduler plugin failed: {}", failure.text);
            }
            return;
        }
        let mut answer = map! { "id" => 0, "op" => "answer", "n" => number };
        match result {
            Ok(value) => answer.push("frames", super::frames_of(&value)),
            Err(failure) => answer.push("exception", failure.exception),
        }
        outgoing.send(answer);
    }
}

async fn carry_out(shell: &ShellHandle, op: &str, mut args: Args) -> Result<Value, Failure> {
    let stimulus_id = args.stimulus_id(op);
    let event = match op {
        "client-desires-keys" => Event::ClientDesiresKeys {
            client: client_name(&mut args)?,
            keys: args.keys("keys")?,
        },
        "client-releases-keys" => Event::ClientReleasesKeys {
            client: client_name(&mut args)?,
            keys: args.keys("keys")?,
            stimulus_id,
        },
        "release-keys" => Event::ReleaseKeys {
            keys: args.keys("keys")?,
            stimulus_id,
        },
        "cancel-keys" => return cancel(shell, args, stimulus_id).await,
        "report-key" => return report(shell, args).await,
        "acquire-replicas" | "remove-replicas" | "remove-worker" | "close-worker" => {
            return to_worker(shell, op, args, stimulus_id).await;
        }
        "worker-send" => {
            let worker = args.str("worker")?;
            let message = args.required("msg")?.detached();
            let sent = shell.call(move |shell| {
                let id = shell.core.worker_id(&worker)?;
                let link = shell.workers.get(&id)?;
                Some(link.sender.push(|batch| batch.push(&message)))
            });
            return known(sent.await?, "worker");
        }
        "client-send" => {
            let client = args.str("client")?;
            let message = args.required("msg")?.detached();
            let sent = shell.call(move |shell| {
                let id = shell.core.client_id(&client)?;
                let link = shell.clients.get(&id)?;
                Some(link.sender.push(|batch| batch.push(&message)))
            });
            // As stock: a client that has gone misses the message.
            sent.await?;
            return Ok(Value::Nil);
        }
        "close" => {
            let reason = args.optional_str("reason");
            shell.close(reason.as_ref().map_or("unknown", |reason| reason.as_str()));
            return Ok(Value::Nil);
        }
        "transition-log" => {
            return Ok(shell
                .call(|shell| rpc::transitions(shell.core.transition_log()))
                .await?);
        }
        "computations" => return Ok(shell.call(|shell| computations(shell)).await?),
        "erred-tasks" => return Ok(shell.call(|shell| erred_tasks(shell)).await?),
        "spans" => {
            let spans = shell.call(|shell| {
                // They name groups, so the host looks at the groups of the same moment.
                shell.mirror_sync();
                spans(shell)
            });
            return Ok(spans.await?);
        }
        "nthreads-history" => return Ok(shell.call(|shell| nthreads_history(shell)).await?),
        "worker-metrics" => {
            return Ok(shell
                .call(|shell| metrics(shell.core.worker_metrics()))
                .await?);
        }
        _ => {
            let answer = rpc::call(shell, op, restored(args, stimulus_id, op), None).await;
            return answer.unwrap_or_else(|| Err(runtime_error("nobody answered")));
        }
    };
    shell.call(move |shell| shell.event(event)).await?;
    Ok(Value::Nil)
}

/// The arguments of an operation that reads its stimulus itself, where stock requires one.
fn restored(mut args: Args, stimulus_id: StimulusId, op: &str) -> Args {
    if matches!(
        op,
        "restart" | "restart_workers" | "retire_workers" | "add_keys"
    ) {
        args.0.insert("stimulus_id", stimulus_id.as_str());
    }
    args
}

fn client_name(args: &mut Args) -> Result<Arc<str>, Failure> {
    Ok(args.str("client")?.as_str().into())
}

fn known(found: Option<bool>, what: &str) -> Result<Value, Failure> {
    match found {
        Some(_) => Ok(Value::Nil),
        None => Err(value_error(&format!("there is no such {what}"))),
    }
}

async fn cancel(
    shell: &ShellHandle,
    mut args: Args,
    stimulus_id: StimulusId,
) -> Result<Value, Failure> {
    let client = args.str("client")?;
    let keys = args.keys("keys")?;
    let force = args.flag("force", false);
    let (reason, msg) = (args.optional("reason"), args.optional("msg"));
    let cancelled = shell.call(move |shell| {
        let client = shell.core.client_id(&client)?;
        shell.event(Event::CancelKeys {
            client,
            keys,
            force,
            reason: reason.detached(),
            msg: msg.detached(),
            stimulus_id,
        });
        Some(true)
    });
    known(cancelled.await?, "client")
}

async fn report(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let client = args.optional_str("client");
    let key = args.required("key")?;
    let key = Key::from_value(&key).map_err(|_| value_error("`key` is no key"))?;
    shell
        .call(move |shell: &mut Shell| {
            let clients: Vec<_> = match client {
                Some(name) => shell.core.client_id(&name).into_iter().collect(),
                None => shell
                    .core
                    .find_task(&key)
                    .map(|task| task.who_wants.iter().collect())
                    .unwrap_or_default(),
            };
            for client in clients {
                let key = key.clone();
                shell.event(Event::ReportKey { client, key });
            }
        })
        .await?;
    Ok(Value::Nil)
}

async fn to_worker(
    shell: &ShellHandle,
    op: &str,
    mut args: Args,
    stimulus_id: StimulusId,
) -> Result<Value, Failure> {
    let field = match op {
        "acquire-replicas" | "remove-replicas" => "addr",
        "remove-worker" => "address",
        _ => "worker",
    };
    let worker = args.required(field)?;
    let keys = args.optional_keys("keys")?.unwrap_or_default();
    let expected = args.flag("expected", false);
    let close = args.flag("close", true);
    let op = op.to_owned();
    let done = shell.call(move |shell| {
        let address = shell.coerce_address(&worker)?;
        let worker = shell.core.worker_id(&address)?;
        let event = match op.as_str() {
            "acquire-replicas" => Event::AcquireReplicas {
                worker,
                keys,
                stimulus_id,
            },
            "remove-replicas" => Event::RemoveReplicas {
                worker,
                keys,
                stimulus_id,
            },
            "close-worker" => {
                shell.log_event(&[&address], Value::Map(map! { "action" => "close-worker" }));
                let reason = "scheduler-close-worker".into();
                shell.carry_out(oxidask_scheduler::Instruction::ToWorker {
                    worker,
                    message: ToWorker::Close { reason },
                });
                return Some("OK");
            }
            _ => Event::RemoveWorker {
                worker,
                stimulus_id,
                expected,
                close,
            },
        };
        shell.event(event);
        Some("OK")
    });
    Ok(done.await?.unwrap_or("already-removed").into())
}

/// `[start, [code]]` of each.
fn computations(shell: &Shell) -> Value {
    shell
        .core
        .computations()
        .map(|computation| {
            let code = Value::Array(computation.code.clone());
            Value::Array(vec![computation.start.into(), code])
        })
        .collect()
}

/// `{dropped, history, spans: [{id, name, parent, …}]}`.
fn spans(shell: &Shell) -> Value {
    let (dropped, _) = shell.core.nthreads_history();
    let spans = shell.core.spans().map(|span| {
        let groups = span.groups.iter();
        let groups = groups.filter_map(|group| Some(Value::from(&shell.core.group(group)?.name)));
        let past = span.past.iter().map(|group| {
            let counters = |counters: &ByName<i64>| -> Map {
                let pairs = counters.iter();
                pairs.map(|(name, &count)| (name, count)).collect()
            };
            let types = group.types.iter();
            Value::Array(vec![
                Value::from(&group.name),
                group.size.into(),
                group.nbytes_total.into(),
                counters(&group.durations_us).into(),
                types
                    .map(|(name, &count)| (name, count))
                    .collect::<Map>()
                    .into(),
                group.start.into(),
                group.stop.into(),
            ])
        });
        Value::Map(map! {
            "id" => &span.id,
            "name" => span.name.iter().map(Value::from).collect::<Value>(),
            "parent" => span.parent.as_ref().map(Value::from),
            "enqueued" => span.enqueued,
            "nthreads_offset" => span.nthreads_offset,
            "groups" => groups.collect::<Value>(),
            "past" => past.collect::<Value>(),
            "code" => Value::Array(span.code.clone()),
            "metadata" => Value::Array(span.metadata.clone()),
            "metrics" => metrics(span.metrics.iter().map(|(name, &amount)| (name, amount))),
        })
    });
    Value::Map(map! {
        "dropped" => dropped,
        "history" => nthreads_history(shell),
        "spans" => spans.collect::<Value>(),
    })
}

/// `[time, threads]` of each change.
fn nthreads_history(shell: &Shell) -> Value {
    let (_, history) = shell.core.nthreads_history();
    let entries = history.map(|(time, total)| Value::Array(vec![time.into(), total.into()]));
    entries.collect()
}

/// `[name, amount]` of each.
fn metrics<'a>(metrics: impl Iterator<Item = (&'a Key, f64)>) -> Value {
    let pairs = metrics.map(|(name, amount)| Value::Array(vec![name.into(), amount.into()]));
    pairs.collect()
}

/// `[key, timestamp, [address], exception text, traceback text]` of each.
fn erred_tasks(shell: &Shell) -> Value {
    shell
        .core
        .erred_tasks()
        .map(|erred| {
            Value::Array(vec![
                Value::from(&erred.key),
                erred.timestamp.into(),
                erred.erred_on.iter().map(Value::from).collect(),
                erred.exception_text.as_str().into(),
                erred.traceback_text.as_str().into(),
            ])
        })
        .collect()
}
