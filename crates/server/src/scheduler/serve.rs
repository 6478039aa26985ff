//! One incoming connection: RPC, or one of the streams it turns into.

use std::sync::Arc;

use oxidask_comm::{Connection, Incoming, Reader, Writer};
use oxidask_scheduler::Failure;
use oxidask_wire::{Value, message};
use tracing::{debug, warn};

use super::args::{Args, uncaught_error, value_error};
use super::shell::ShellHandle;
use super::{client_stream, feed, rpc, worker_stream};
use crate::requests::Request;

/// Serves a new connection until it ends.
pub(super) async fn serve(incoming: Incoming, shell: ShellHandle) {
    let peer = incoming.peer().to_string();
    match incoming.establish().await {
        Ok(connection) => {
            let server = Server {
                shell,
                address: connection.info.peer.to_string().into(),
                is_native: connection.info.negotiated.native.is_some(),
            };
            server.run(connection).await;
        }
        Err(error) => {
            debug!(target: "distributed.scheduler", %peer, %error, "connection was not established");
        }
    }
}

struct Server {
    shell: ShellHandle,
    /// The peer's, for logs.
    address: Arc<str>,
    /// The peer is one of ours.
    is_native: bool,
}

impl Server {
    async fn run(self, connection: Connection) {
        self.shell.ready().await;
        let (mut reader, mut writer, _) = connection.split();
        loop {
            let frames = tokio::select! {
                frames = reader.read() => frames,
                _ = self.shell.closing() => break,
            };
            let frames = match frames {
                Ok(frames) => frames,
                Err(oxidask_comm::Error::Closed { in_message: false }) => break,
                Err(error) => {
                    warn!(target: "distributed.core", "closing the connection to {}: {error}", self.address);
                    break;
                }
            };
            let request = match Request::read(&frames) {
                Ok(Some(request)) => request,
                Ok(None) => {
                    warn!(
                        target: "distributed.core",
                        "closing the connection to {}: a request must be a map with an `op`", self.address
                    );
                    break;
                }
                Err(error) => {
                    // The next message begins at a known place, so the connection can go on.
                    let failure = value_error(&format!("cannot decode the message: {error}"));
                    if writer
                        .write(&message::encode(&uncaught_error(&failure)))
                        .await
                        .is_err()
                    {
                        break;
                    }
                    continue;
                }
            };
            drop(frames);
            match self.handle(request, reader, writer).await {
                Some(halves) => (reader, writer) = halves,
                None => return,
            }
        }
        // The peer may have gone first.
        let _ = writer.close().await;
    }

    /// Returns the halves of a connection that stays an RPC connection.
    async fn handle(
        &self,
        request: Request,
        reader: Reader,
        writer: Writer,
    ) -> Option<(Reader, Writer)> {
        let Request {
            op,
            fields,
            reply,
            close,
        } = request;
        let args = Args(fields);
        let (mut reader, mut writer) = (reader, writer);
        if self.shell.settings.blocked_handlers.contains(&*op) {
            let text = format!(
                "The '{op}' handler has been explicitly disallowed in Scheduler, possibly due to security concerns."
            );
            writer
                .write(&message::encode(&uncaught_error(&value_error(&text))))
                .await
                .ok()?;
            return Some((reader, writer));
        }
        match op.as_str() {
            "register-client" => {
                client_stream::serve(&self.shell, args, reader, writer).await;
                return None;
            }
            "register-worker" => {
                worker_stream::serve(&self.shell, args, self.is_native, reader, writer).await;
                return None;
            }
            "register_nanny" => {
                worker_stream::serve_nanny(&self.shell, args, reader, writer).await;
                return None;
            }
            "subscribe_worker_status" => {
                worker_stream::serve_observer(&self.shell, reader, writer).await;
                return None;
            }
            "close" => {
                if reply {
                    // The peer may be gone already, as it wanted.
                    let _ = writer.write(&message::encode(&"OK".into())).await;
                }
                let _ = writer.close().await;
                return None;
            }
            "terminate" => {
                let reason = args
                    .0
                    .get("reason")
                    .and_then(Value::as_str)
                    .unwrap_or("unknown")
                    .to_owned();
                self.shell.close(&reason);
                // As on stock the connection closes without a reply.
                return None;
            }
            _ => {}
        }
        if op == "feed" {
            let result = feed::serve(&self.shell, args, &mut reader, &mut writer).await?;
            return self.reply(result, &op, reply, close, reader, writer).await;
        }
        let result = rpc::call(&self.shell, &op, args, Some(&mut reader)).await?;
        self.reply(result, &op, reply, close, reader, writer).await
    }

    async fn reply(
        &self,
        result: Result<Value, Failure>,
        op: &str,
        reply: bool,
        close: bool,
        reader: Reader,
        mut writer: Writer,
    ) -> Option<(Reader, Writer)> {
        if reply {
            let value = result.unwrap_or_else(|failure| {
                warn!(target: "distributed.core", "Exception while handling op {op}: {}", failure.text);
                uncaught_error(&failure)
            });
            if let Err(error) = writer.write(&message::encode(&value)).await {
                debug!(target: "distributed.core", peer = %self.address, %error, "reply was not taken");
                return None;
            }
        }
        if close {
            let _ = writer.close().await;
            return None;
        }
        Some((reader, writer))
    }
}
