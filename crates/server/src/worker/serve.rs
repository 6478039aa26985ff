//! One incoming connection: requests of the scheduler, of peers and of clients.

use std::sync::Arc;

use oxidask_comm::{Address, Connection, Incoming, Reader, Writer};
use oxidask_wire::compression::Compression;
use oxidask_wire::{Value, message};
use tracing::{debug, warn};

use super::args::Args;
use super::shell::ShellHandle;
use super::{failure, rpc, stream};
use crate::requests::{self, Request};

/// Serves a new connection until it ends.
pub(super) async fn serve(incoming: Incoming, handle: ShellHandle) {
    let peer = incoming.peer().clone();
    match incoming.establish().await {
        Ok(connection) => Server { handle, peer }.run(connection).await,
        Err(error) => {
            debug!(target: "distributed.worker", %peer, %error, "connection was not established");
        }
    }
}

struct Server {
    handle: ShellHandle,
    peer: Address,
}

impl Server {
    async fn run(self, connection: Connection) {
        let (mut reader, mut writer, info) = connection.split();
        // Unknown names are not ours, and both have to agree.
        let name = info.negotiated.compression;
        let compression = name.and_then(|name| Compression::from_name(&name).ok());
        loop {
            let frames = tokio::select! {
                frames = reader.read() => frames,
                _ = self.handle.closing() => break,
            };
            let frames = match frames {
                Ok(frames) => frames,
                Err(oxidask_comm::Error::Closed { in_message: false }) => break,
                Err(error) => {
                    warn!(target: "distributed.core", "closing the connection to {}: {error}", self.peer);
                    break;
                }
            };
            let request = match Request::read(&frames) {
                Ok(Some(request)) => request,
                Ok(None) => {
                    warn!(
                        target: "distributed.core",
                        "closing the connection to {}: a request must be a map with an `op`", self.peer
                    );
                    break;
                }
                Err(error) => {
                    // The next message begins at a known place, so the connection can go on.
                    let text = format!("cannot decode the message: {error}");
                    let failure = failure::builtin("ValueError", &text);
                    let reply = failure::message("uncaught-error", &failure);
                    if writer.write(&message::encode(&reply)).await.is_err() {
                        break;
                    }
                    continue;
                }
            };
            drop(frames);
            if self
                .handle(request, compression, &mut reader, &mut writer)
                .await
                .is_none()
            {
                break;
            }
        }
        // The peer may have gone first.
        let _ = writer.close().await;
    }

    /// `None` ends the connection.
    async fn handle(
        &self,
        request: Request,
        compression: Option<Compression>,
        reader: &mut Reader,
        writer: &mut Writer,
    ) -> Option<()> {
        let Request {
            op,
            fields,
            reply,
            close,
        } = request;
        let args = Args(fields);
        let answer = if self.handle.settings.blocked_handlers.contains(&*op) {
            let text = format!(
                "The '{op}' handler has been explicitly disallowed in Worker, possibly due to security concerns."
            );
            Err(failure::builtin("ValueError", &text))
        } else if op == "close" {
            if reply {
                // The peer may be gone already, as it wanted.
                let _ = writer.write(&message::encode(&"OK".into())).await;
            }
            return None;
        } else if op == "connection_stream" {
            tokio::select! {
                () = stream::serve_peer(&self.handle, reader, &self.peer) => {}
                _ = self.handle.closing() => {}
            }
            return None;
        } else if op == "get_data" {
            let link = rpc::Link {
                peer: &self.peer,
                compression,
                reader,
                writer,
            };
            match rpc::get_data(&self.handle, args, link).await? {
                // Answered and acknowledged.
                Ok(()) => return (!close).then_some(()),
                Err(answer) => answer,
            }
        } else {
            rpc::call(&self.handle, op.clone(), args).await
        };
        if reply {
            let value = answer.unwrap_or_else(|failure| {
                warn!(
                    target: "distributed.core",
                    "Exception while handling op {op}: {}", failure.exception_text
                );
                failure::message("uncaught-error", &failure)
            });
            if let Err(error) = writer.write(&message::encode(&value)).await {
                debug!(target: "distributed.core", peer = %self.peer, %error, "reply was not taken");
                return None;
            }
        }
        (!close).then_some(())
    }
}

/// Accepts connections until the worker closes.
pub(super) async fn accept(listener: oxidask_comm::Listener, handle: ShellHandle) {
    let serve = |incoming| serve(incoming, handle.clone());
    let closing = async {
        handle.closing().await;
    };
    let failed = |error| {
        tracing::error!(target: "distributed.core", "{error}; the worker closes");
        handle.close("listener-failed", false);
    };
    requests::accept(listener, serve, closing, failed, super::CLOSE_TIMEOUT).await;
}

/// An answer that was computed already, or written.
pub(super) type Answered = Result<(), Result<Value, Arc<oxidask_worker::task::TaskFailure>>>;
