//! Requests to a nanny.

use std::sync::Arc;
use std::time::Duration;

use oxidask_comm::{Connection, Incoming};
use oxidask_wire::value::Enum;
use oxidask_wire::{Frames, Value, map, message};
use oxidask_worker::task::TaskFailure;
use tracing::{debug, error, warn};

use super::core::{CLOSE_TIMEOUT, Event};
use super::{NannyHandle, NotStarted};
use crate::requests::{self, Request};
use crate::worker::args::Args;
use crate::worker::executor::Answer;
use crate::worker::failure;

/// `Nanny.restart(timeout=30)`.
const RESTART_TIMEOUT: Duration = Duration::from_secs(30);

/// How long open connections may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Accepts connections until the nanny is closed.
pub(super) async fn accept(listener: oxidask_comm::Listener, nanny: NannyHandle) {
    let serve = |incoming| establish(incoming, nanny.clone());
    let failed = |error| {
        error!(target: "distributed.core", "{error}; the nanny closes");
        nanny.close("listener-failed", CLOSE_TIMEOUT);
    };
    requests::accept(listener, serve, nanny.closed(), failed, END_TIMEOUT).await;
}

async fn establish(incoming: Incoming, nanny: NannyHandle) {
    let peer = incoming.peer().clone();
    match incoming.establish().await {
        Ok(connection) => serve(connection, &nanny).await,
        Err(error) => {
            debug!(target: "distributed.core", %peer, %error, "connection was not established");
        }
    }
}

async fn serve(connection: Connection, nanny: &NannyHandle) {
    let (mut reader, mut writer, _) = connection.split();
    loop {
        let frames = tokio::select! {
            frames = reader.read() => frames,
            () = nanny.closed() => break,
        };
        let frames = match frames {
            Ok(frames) => frames,
            Err(oxidask_comm::Error::Closed { in_message: false }) => break,
            Err(error) => {
                warn!(target: "distributed.core", "closing a connection: {error}");
                break;
            }
        };
        let Ok(Some(request)) = Request::read(&frames) else {
            warn!(
                target: "distributed.core",
                "closing a connection: a request must be a map with an `op`"
            );
            break;
        };
        let Request {
            op,
            fields,
            reply,
            close,
        } = request;
        if op == "close" {
            break;
        }
        let answer = match &*op {
            "run" | "plugin_add" | "plugin_remove" => in_python(nanny, frames).await,
            _ => call(nanny, &op, Args(fields))
                .await
                .map(|answer| message::encode(&answer)),
        };
        let answer = answer.unwrap_or_else(|failure| {
            warn!(
                target: "distributed.core",
                "Exception while handling op {op}: {}", failure.exception_text
            );
            message::encode(&failure::message("uncaught-error", &failure))
        });
        if reply && writer.write(&answer).await.is_err() {
            break;
        }
        if close {
            break;
        }
    }
    // The peer may have gone first.
    let _ = writer.close().await;
}

/// Answers a request. What nobody knows is answered with nil, as in Dask.
async fn call(nanny: &NannyHandle, op: &str, mut args: Args) -> Answer {
    let timeout = |args: &mut Args, default| {
        let seconds = args.optional("timeout").as_f64();
        let timeout = seconds.map(Duration::try_from_secs_f64);
        timeout.and_then(Result::ok).unwrap_or(default)
    };
    let reason = |args: &mut Args, default: &str| {
        let reason = args.optional_str("reason");
        reason.map_or_else(|| default.to_owned(), |reason| reason.to_string())
    };
    match op {
        "identity" => Ok(Value::Map(map! { "type" => "Nanny", "id" => nanny.id() })),
        "echo" => Ok(args.optional("data")),
        "get_logs" => Ok(crate::worker::rpc::records(nanny.logs(), args)),
        "kill" => {
            let timeout = timeout(&mut args, CLOSE_TIMEOUT);
            nanny.kill(timeout, reason(&mut args, "nanny-kill")).await;
            Ok(Value::Nil)
        }
        "instantiate" => match nanny.instantiate().await {
            Ok(()) => Ok(Value::Enum(Box::new(Enum {
                name: "running".into(),
                module: "distributed.core".into(),
                class: "Status".into(),
            }))),
            Err(not_started) => Err(not_running(&not_started)),
        },
        "restart" => {
            let timeout = timeout(&mut args, RESTART_TIMEOUT);
            let reason = reason(&mut args, "nanny-restart");
            restart(nanny, timeout, reason).await
        }
        "terminate" => {
            let timeout = timeout(&mut args, CLOSE_TIMEOUT);
            nanny.close(&reason(&mut args, "nanny-close"), timeout);
            nanny.worker_stopped().await;
            Ok("OK".into())
        }
        "close_gracefully" => {
            let reason = reason(&mut args, "nanny-close-gracefully");
            nanny.event(Event::CloseGracefully { reason });
            Ok(Value::Nil)
        }
        _ => {
            warn!(target: "distributed.core", "No handler {op} found in Nanny");
            Ok(Value::Nil)
        }
    }
}

/// Has Python answer a request, and starts another worker if a plugin wants one.
async fn in_python(nanny: &NannyHandle, request: Frames) -> Result<Frames, Arc<TaskFailure>> {
    let (frames, restart) = nanny
        .ask_python(request)
        .await
        .map_err(|text| failure::builtin("RuntimeError", &text))?;
    if let Some(reason) = restart {
        // As on stock, what comes of it is not told.
        let _ = self::restart(nanny, RESTART_TIMEOUT, reason).await;
    }
    Ok(frames)
}

async fn restart(nanny: &NannyHandle, timeout: Duration, reason: String) -> Answer {
    let restarted = async {
        nanny.kill(CLOSE_TIMEOUT, reason).await;
        nanny.instantiate().await
    };
    match tokio::time::timeout(timeout, restarted).await {
        Ok(Ok(())) => Ok("OK".into()),
        Ok(Err(not_started)) => Ok(failure::message("error", &not_running(&not_started))),
        Err(_) => {
            error!(
                target: super::LOGGER,
                "Restart timed out after {}s; returning before finished", timeout.as_secs_f64()
            );
            Ok("timed out".into())
        }
    }
}

fn not_running(not_started: &NotStarted) -> Arc<TaskFailure> {
    let class = if not_started.timed_out {
        "TimeoutError"
    } else {
        "RuntimeError"
    };
    failure::builtin(class, &not_started.text)
}
