//! Data from peers.

use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use oxidask_comm::{Address, Scheme};
use oxidask_wire::{Key, Map, Str, Value, map, message};
use oxidask_worker::event::Event;
use oxidask_worker::instruction::GatherDep;
use oxidask_worker::task::{Action, StartStop, TaskFailure};
use tracing::error;

use super::executor::{Datum, Received};
use super::failure;
use super::settings::is_os_error;
use super::shell::{Shell, ShellHandle, Stimulus, insertion, now, request, stimulus_id};
use super::store::compact;

/// Pause before a busy peer is asked again, as stock.
pub(super) const BUSY_PAUSE: Duration = Duration::from_millis(150);

/// What a peer answers to `get_data`.
#[derive(Debug)]
pub(super) enum Answer {
    /// Values as they came; keys that it does not have are left out.
    Data(Vec<(Key, Value)>),
    /// It answers too many others.
    Busy,
    /// No connection, or it broke.
    Unreachable(oxidask_comm::Error),
    /// It raised, or what it says is no answer.
    Failed(Arc<TaskFailure>),
}

/// Asks a peer for data and acknowledges it.
pub(super) async fn get_data(handle: &ShellHandle, worker: &str, keys: &[Key]) -> Answer {
    let fields = map! {
        "keys" => keys.iter().map(Value::from).collect::<Value>(),
        "who" => &handle.settings.address,
    };
    let request = message::encode(&request("get_data", fields));
    let acknowledge = |reply: &Value| {
        let status = reply.as_map().and_then(|reply| reply.get("status"));
        (status.and_then(Value::as_str) == Some("OK")).then(|| Value::from("OK"))
    };
    let exchange = async {
        let address = Address::parse(worker, Scheme::Tcp)?;
        let attempt = || {
            handle
                .pool
                .exchange_acknowledged(&address, &request, acknowledge)
        };
        handle.settings.retry.run(attempt).await
    };
    match exchange.await {
        Ok(reply) => answer(reply),
        Err(error) if is_os_error(&error) => Answer::Unreachable(error),
        Err(error) => Answer::Failed(failure::builtin("ValueError", &error.to_string())),
    }
}

fn answer(reply: Value) -> Answer {
    let unexpected = || Answer::Failed(failure::builtin("ValueError", "Unexpected response"));
    let Some(mut reply) = reply.into_map() else {
        return unexpected();
    };
    let data = match reply.get("status").and_then(Value::as_str) {
        Some("OK") => reply.take("data").and_then(Value::into_map),
        Some("busy") => return Answer::Busy,
        Some(_) | None => return Answer::Failed(failure::of_reply(reply)),
    };
    let values = data.and_then(values);
    values.map_or_else(unexpected, Answer::Data)
}

/// Values by key, without the buffers that they came in; `None` if a key is none.
pub(super) fn values(data: Map) -> Option<Vec<(Key, Value)>> {
    data.into_iter()
        .map(|(key, value)| Some((Key::from_value(&key).ok()?, compact(value))))
        .collect()
}

/// Values that the executor has taken in, and those that it could not.
pub(super) async fn receive(
    handle: &ShellHandle,
    values: Vec<(Key, Value)>,
) -> Vec<(Key, Received)> {
    let keys: Vec<Key> = values.iter().map(|(key, _)| key.clone()).collect();
    let received = handle.executor.receive(values).await;
    keys.into_iter().zip(received).collect()
}

/// The event's part and the shell's part of values that came.
#[expect(clippy::type_complexity, reason = "both are used once, at once")]
pub(super) fn split(
    received: Vec<(Key, Received)>,
) -> (
    Vec<(Key, oxidask_worker::event::Insertion)>,
    IndexMap<Key, Arc<Datum>>,
) {
    let mut insertions = Vec::with_capacity(received.len());
    let mut values = IndexMap::with_capacity(received.len());
    for (key, received) in received {
        match received {
            Ok(datum) => {
                insertions.push((key.clone(), insertion(&datum)));
                values.insert(key, datum);
            }
            Err(failure) => insertions.push((key, Err(failure))),
        }
    }
    (insertions, values)
}

/// Carries out one transfer. `Worker.gather_dep` in distributed.
pub(super) async fn gather_dep(handle: ShellHandle, gather: GatherDep) {
    let start = now();
    let answer = get_data(&handle, &gather.worker, &gather.to_gather).await;
    let stop = now();
    let GatherDep {
        worker,
        to_gather,
        total_nbytes,
        stimulus_id: cause,
    } = gather;
    let (action, keys, stimulus) = match answer {
        Answer::Data(values) => {
            let received = receive(&handle, values).await;
            let keys: Vec<Key> = received.iter().map(|(key, _)| key.clone()).collect();
            let arrived = handle.call(move |shell| {
                shell
                    .core
                    .log_transfer(now(), "receive-dep", &worker, keys, &cause);
                shell.arrived(worker, total_nbytes, received, (start, stop));
            });
            // The worker may be closing, which is what ends this.
            let _ = arrived.await;
            return;
        }
        Answer::Busy => {
            let event = Event::GatherDepBusy {
                worker: worker.clone(),
                total_nbytes,
            };
            let stimulus = Stimulus::new(stimulus_id("gather-dep-busy"), event);
            ("gather-dep-busy", to_gather, stimulus)
        }
        Answer::Unreachable(error) => {
            error!(
                target: "distributed.worker",
                %error, "Worker stream died during communication: {worker}"
            );
            let event = Event::GatherDepNetworkFailure {
                worker: worker.clone(),
                total_nbytes,
            };
            let stimulus = Stimulus::new(stimulus_id("gather-dep-network-failure"), event);
            ("gather-dep-failed", to_gather, stimulus)
        }
        Answer::Failed(failure) => {
            error!(
                target: "distributed.worker",
                "cannot use the answer of {worker}: {}", failure.exception_text
            );
            let event = Event::GatherDepFailure {
                worker: worker.clone(),
                total_nbytes,
                failure,
            };
            let stimulus = Stimulus::new(stimulus_id("gather-dep-failed"), event);
            ("gather-dep-failed", to_gather, stimulus)
        }
    };
    let ended = handle.call(move |shell| {
        shell
            .core
            .log_transfer(now(), action, &worker, keys, &cause);
        shell.stimulus(stimulus);
    });
    let _ = ended.await;
}

impl Shell {
    fn arrived(
        &mut self,
        worker: Arc<str>,
        total_nbytes: i64,
        received: Vec<(Key, Received)>,
        (start, stop): (f64, f64),
    ) {
        let nbytes = received
            .iter()
            .filter_map(|(key, _)| self.core.find_task(key))
            .map(|ts| self.core.nbytes_of(ts))
            .sum();
        self.metrics
            .received(&worker, nbytes, stop - start, common_type(&received));
        let delay = self.metrics.scheduler_delay;
        let transfer = Some(StartStop {
            action: Action::Transfer,
            start: start + delay,
            stop: stop + delay,
            source: Some(worker.clone()),
        });
        let (data, values) = split(received);
        let stimulus = Stimulus {
            stimulus_id: stimulus_id("gather-dep-success"),
            event: Event::GatherDepSuccess {
                worker,
                total_nbytes,
                data,
                transfer,
            },
            values,
            spilled: Vec::new(),
        };
        self.arrive(stimulus, None);
    }
}

/// The name of the type of all values, if they have the same.
fn common_type(received: &[(Key, Received)]) -> Option<&Str> {
    let mut types = received.iter().filter_map(|(_, received)| {
        let datum = received.as_ref().ok()?;
        Some(&datum.r#type.name)
    });
    let first = types.next()?;
    types.all(|name| name == first).then_some(first)
}

/// Lets a busy peer be asked again.
pub(super) async fn retry_busy_worker_later(handle: ShellHandle, worker: Arc<str>) {
    tokio::time::sleep(BUSY_PAUSE).await;
    let event = Event::RetryBusyWorker { worker };
    let stimulus = Stimulus::new(stimulus_id("retry-busy-worker"), event);
    // The worker may be closing, which is what ends this.
    let _ = handle.stimuli(vec![stimulus]).await;
}
