//! What all our servers do alike: accept connections and read requests.

use std::pin::pin;
use std::time::Duration;

use oxidask_comm::{Incoming, Listener};
use oxidask_wire::{Frames, Map, Str, Value, message};
use tokio::task::JoinSet;
use tracing::error;

/// A request, and what it asks of the dispatcher itself.
pub(crate) struct Request {
    pub(crate) op: Str,
    /// Keyword arguments of the operation.
    pub(crate) fields: Map,
    /// Write the return value?
    pub(crate) reply: bool,
    /// Close after the reply?
    pub(crate) close: bool,
}

impl Request {
    /// The request in a message; `None` if it is not a map with an `op`.
    ///
    /// # Errors
    /// The message cannot be decoded. The next one begins at a known place.
    pub(crate) fn read(frames: &Frames) -> Result<Option<Self>, oxidask_wire::Error> {
        let Value::Map(mut fields) = message::decode(frames)? else {
            return Ok(None);
        };
        let Some(op) = fields.take("op").and_then(Value::into_str) else {
            return Ok(None);
        };
        let flag = |fields: &mut Map, name, default| {
            let flag = fields.take(name).and_then(|value| value.as_bool());
            flag.unwrap_or(default)
        };
        Ok(Some(Self {
            reply: flag(&mut fields, "reply", true),
            close: flag(&mut fields, "close", false),
            op: op.detached(),
            fields,
        }))
    }
}

/// Serves connections until `closing`, or until the listener fails, which `failed`
/// hears. Open ones then have `grace` to end.
pub(crate) async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: Listener,
    serve: impl Fn(Incoming) -> F,
    closing: impl Future<Output = ()>,
    failed: impl FnOnce(oxidask_comm::Error),
    grace: Duration,
) {
    let mut connections = JoinSet::new();
    let mut closing = pin!(closing);
    loop {
        tokio::select! {
            incoming = listener.accept() => match incoming {
                Ok(incoming) => {
                    connections.spawn(serve(incoming));
                }
                Err(error) => {
                    failed(error);
                    break;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    error!(target: "distributed.core", %error, "a connection's task panicked");
                }
            }
            () = &mut closing => break,
        }
    }
    // The listener goes first, so that nobody new comes; streams end by themselves.
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(grace, all_ended).await;
}
