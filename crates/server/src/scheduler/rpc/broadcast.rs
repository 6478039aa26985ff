//! Requests passed on to workers and nannies.

use std::sync::Arc;

use futures_util::future::join_all;
use oxidask_scheduler::Failure;
use oxidask_wire::{Map, Value};
use tracing::error;

use super::super::args::{Args, os_error, value_error};
use super::super::shell::ShellHandle;

/// What becomes of a peer that cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnError {
    Raise,
    Return,
    ReturnPickle,
    Ignore,
}

impl OnError {
    fn parse(text: Option<&str>) -> Result<Self, Failure> {
        match text {
            None | Some("raise") => Ok(Self::Raise),
            Some("return") => Ok(Self::Return),
            Some("return_pickle") => Ok(Self::ReturnPickle),
            Some("ignore") => Ok(Self::Ignore),
            Some(other) => Err(value_error(&format!(
                "on_error must be 'raise', 'return', 'return_pickle', or 'ignore'; got '{other}'"
            ))),
        }
    }
}

/// One message for several workers or their nannies.
#[derive(Debug)]
pub(crate) struct Broadcast {
    pub(crate) message: Map,
    /// Addresses, aliases, or nil for all.
    pub(crate) workers: Value,
    pub(crate) hosts: Value,
    pub(crate) nanny: bool,
    pub(crate) serializers: Value,
    pub(crate) on_error: OnError,
}

impl Broadcast {
    /// To all workers, failing as a whole if one fails.
    pub(crate) fn to_all(message: Map) -> Self {
        Self {
            message,
            workers: Value::Nil,
            hosts: Value::Nil,
            nanny: false,
            serializers: Value::Nil,
            on_error: OnError::Raise,
        }
    }

    /// Asks everybody at once. The result is keyed by worker, also for nannies.
    pub(crate) async fn send(self, shell: &ShellHandle) -> Result<Map, Failure> {
        let Self {
            mut message,
            workers,
            hosts,
            nanny,
            serializers,
            on_error,
        } = self;
        let targets = shell.call(move |shell| {
            let mut targets: Vec<(Arc<str>, Option<String>)> = Vec::new();
            let all = workers.is_nil() && hosts.is_nil();
            let mut add = |address: Arc<str>| {
                let worker = shell
                    .core
                    .worker_id(&address)
                    .and_then(|worker| shell.core.worker(worker));
                let target = match (nanny, worker) {
                    (false, _) => Some(address.to_string()),
                    (true, Some(worker)) => worker.nanny.as_ref().map(ToString::to_string),
                    (true, None) => None,
                };
                targets.push((address, target));
            };
            if all {
                shell
                    .core
                    .workers()
                    .for_each(|(_, worker)| add(worker.address.clone()));
            }
            for worker in workers.as_array().unwrap_or_default() {
                // An address that is no worker (any more) is tried, and fails, as on stock.
                let named = worker.as_str().map(Arc::from);
                if let Some(address) = shell.coerce_address(worker).or(named) {
                    add(address);
                }
            }
            for host in hosts.as_array().unwrap_or_default() {
                let on_host = shell
                    .core
                    .workers()
                    .filter(|(_, worker)| host.as_str() == Some(&worker.host));
                on_host.for_each(|(_, worker)| add(worker.address.clone()));
            }
            targets
        });
        let targets = targets.await?;
        if !serializers.is_nil() {
            message.insert("serializers", serializers);
        }
        let Some(op) = message.take("op").and_then(Value::into_str) else {
            return Err(value_error("broadcast: the message has no `op`"));
        };
        message.insert("reply", true);
        let answers = targets
            .iter()
            .filter_map(|(_, target)| target.as_deref())
            .map(|target| {
                let message = message.clone();
                let op = &op;
                async move { (target, shell.peers.call(target, op, message).await) }
            });
        let answers = join_all(answers).await;
        let workers = targets.iter().filter(|(_, target)| target.is_some());
        let mut replies = Map::new();
        for ((worker, _), (target, answer)) in workers.zip(answers) {
            let failure = match answer {
                Ok(reply) => match raised(&reply) {
                    None => {
                        replies.push(worker, reply);
                        continue;
                    }
                    Some(text) => Failure::builtin("Exception", &text),
                },
                Err(error) => os_error(&format!("cannot reach `{target}`: {error}")),
            };
            error!(target: "distributed.scheduler", "broadcast to {target} failed: {}", failure.text);
            match on_error {
                OnError::Raise => return Err(failure),
                OnError::Return => {
                    replies.push(worker, oxidask_wire::Pickled::of_pickle(&failure.exception));
                }
                OnError::ReturnPickle => replies.push(worker, failure.exception),
                OnError::Ignore => {}
            }
        }
        Ok(replies)
    }
}

/// The text of a peer's `uncaught-error`. The scheduler does not unpickle, so the
/// class is lost here, as it is on stock.
pub(super) fn raised(reply: &Value) -> Option<String> {
    let reply = reply.as_map()?;
    if reply.get("status").and_then(Value::as_str) != Some("uncaught-error") {
        return None;
    }
    let text = reply
        .get("exception_text")
        .and_then(Value::as_str)
        .unwrap_or("unknown error");
    Some(text.to_owned())
}

pub(super) async fn broadcast(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let Some(message) = args.required("msg")?.into_map() else {
        return Err(value_error("broadcast: `msg` must be a map"));
    };
    let broadcast = Broadcast {
        message,
        workers: args.optional("workers"),
        hosts: args.optional("hosts"),
        nanny: args.flag("nanny", false),
        serializers: args.optional("serializers"),
        on_error: OnError::parse(args.optional_str("on_error").as_deref())?,
    };
    Ok(Value::Map(broadcast.send(shell).await?))
}

pub(super) async fn proxy(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let Some(message) = args.required("msg")?.into_map() else {
        return Err(value_error("proxy: `msg` must be a map"));
    };
    let worker = args.required("worker")?;
    let broadcast = Broadcast {
        workers: Value::Array(vec![worker]),
        serializers: args.optional("serializers"),
        ..Broadcast::to_all(message)
    };
    let replies = broadcast.send(shell).await?;
    Ok(replies
        .into_iter()
        .next()
        .map_or(Value::Nil, |(_, reply)| reply))
}
