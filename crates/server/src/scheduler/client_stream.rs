//! A client's stream: graphs, wishes, releases.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oxidask_comm::{Reader, Writer};
use oxidask_scheduler::{Actors, ClientId, Event, Number, StimulusId, TaskRef};
use oxidask_wire::stream::{ClientMessage, ToClient, UpdateGraph, decode_client_batch};
use oxidask_wire::{Key, Map, Str, Value};
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use super::args::Args;
use super::shell::{ClientLink, Shell, ShellHandle, ShutDown, now};
use super::stream::Stream;
use crate::config::{self, parse_timedelta};
use crate::graph_helper;

/// Least time between two batches to a client, as stock.
const INTERVAL: Duration = Duration::from_millis(2);

/// Keys that are looked up between two turns of others. Chosen: a slice of a graph
/// has as many, and it takes well below a millisecond.
const KEYS_PER_TURN: usize = 2000;

/// Messages of one batch that are handled between two turns of others. A client that
/// drops many futures sends one message for each. Chosen: they take about a millisecond.
const EVENTS_PER_TURN: usize = 500;

/// Messages of so many bytes are decoded on another thread. Chosen: decoding them
/// takes about a millisecond.
const NBYTES_DECODED_HERE_MAX: usize = 1 << 18;

struct Client {
    shell: ShellHandle,
    id: ClientId,
    name: Arc<str>,
}

/// What the reader does after a message.
enum Next {
    Continue,
    End,
}

pub(super) async fn serve(
    shell: &ShellHandle,
    mut args: Args,
    mut reader: Reader,
    mut writer: Writer,
) {
    let Some(name) = args.optional_str("client") else {
        warn!(target: "distributed.scheduler", "closing the connection of a client that gave no name");
        // It may have gone by itself.
        let _ = writer.close().await;
        return;
    };
    let name: Arc<str> = name.as_str().into();
    let versions = args.optional("versions").detached();
    let (sender, mut sending) = Stream::start(writer, INTERVAL, shell.settings.stream_nbytes_max);
    let Ok((id, warning)) = register(shell, name.clone(), versions, sender.clone()).await else {
        return;
    };
    // The client insists on a first batch of exactly this message.
    sender.push(|batch| {
        ToClient::StreamStart {
            warning: &warning,
            error: "",
        }
        .write(batch.message());
    });
    let client = Client {
        shell: shell.clone(),
        id,
        name,
    };
    let left = tokio::select! {
        left = client.read(&mut reader) => left,
        () = sending.ended() => Err("the connection broke, or the client did not read fast enough".to_owned()),
        _ = shell.closing() => {
            sender.close();
            sending.ended().await;
            return;
        }
    };
    if let Err(reason) = left {
        warn!(target: "distributed.scheduler", "closing the stream of client {}: {reason}", client.name);
    }
    client.leave(sender).await;
}

/// Decodes a batch, a large one where nobody waits for it.
async fn decode(frames: Vec<Bytes>) -> Result<Vec<ClientMessage>, String> {
    let nbytes: usize = frames.iter().map(Bytes::len).sum();
    let decoded = if nbytes <= NBYTES_DECODED_HERE_MAX {
        decode_client_batch(&frames)
    } else {
        tokio::task::spawn_blocking(move || decode_client_batch(&frames))
            .await
            .map_err(|error| format!("cannot decode a message of {nbytes} bytes: {error}"))?
    };
    decoded.map_err(|error| error.to_string())
}

async fn register(
    shell: &ShellHandle,
    name: Arc<str>,
    versions: Value,
    sender: Stream,
) -> Result<(ClientId, String), ShutDown> {
    let warning = shell.settings.version_warning(shell, &versions, None).await;
    let id = shell
        .call(move |shell| {
            shell.event(Event::AddClient {
                name: name.clone(),
                versions,
            });
            let id = shell.core.client_id(&name)?;
            shell.clients.insert(id, ClientLink { sender });
            Some(id)
        })
        .await?
        .ok_or(ShutDown)?;
    Ok((id, warning))
}

impl Client {
    async fn read(&self, reader: &mut Reader) -> Result<(), String> {
        loop {
            let frames = match reader.read().await {
                Ok(frames) => frames,
                Err(oxidask_comm::Error::Malformed(error)) => return Err(error.to_string()),
                Err(error) => {
                    debug!(target: "distributed.scheduler", client = %self.name, %error, "client stream broke");
                    return Ok(());
                }
            };
            let messages = decode(frames).await?;
            let mut events = Vec::with_capacity(messages.len().min(EVENTS_PER_TURN));
            for message in messages {
                if events.len() == EVENTS_PER_TURN {
                    self.flush(&mut events).await?;
                    tokio::task::yield_now().await;
                }
                match self.message(message, &mut events).await {
                    Ok(Next::Continue) => {}
                    Ok(Next::End) => {
                        self.flush(&mut events).await?;
                        return Ok(());
                    }
                    Err(reason) => {
                        self.flush(&mut events).await?;
                        return Err(reason);
                    }
                }
            }
            self.flush(&mut events).await?;
        }
    }

    async fn flush(&self, events: &mut Vec<Event>) -> Result<(), String> {
        let events = std::mem::take(events);
        self.shell
            .events(events)
            .await
            .map_err(|_| "the scheduler is shutting down".to_owned())
    }

    fn acting_for(&self, client: Option<Str>) -> Arc<str> {
        client.map_or_else(|| self.name.clone(), |client| client.as_str().into())
    }

    /// Turns a message into an event, or carries it out at its place in the stream.
    async fn message(
        &self,
        message: ClientMessage,
        events: &mut Vec<Event>,
    ) -> Result<Next, String> {
        match message {
            ClientMessage::UpdateGraph(update) => {
                self.flush(events).await?;
                self.update_graph(*update).await;
            }
            ClientMessage::ClientDesiresKeys { keys, client } => {
                events.push(Event::ClientDesiresKeys {
                    client: self.acting_for(client),
                    keys,
                });
            }
            ClientMessage::ClientReleasesKeys { keys, client } if keys.len() > KEYS_PER_TURN => {
                self.flush(events).await?;
                let client = self.acting_for(client);
                let tasks = self.find_tasks(keys).await?;
                events.push(Event::ClientReleasesTasks {
                    client,
                    tasks,
                    stimulus_id: stimulus("client-releases-keys"),
                });
            }
            ClientMessage::ClientReleasesKeys { keys, client } => {
                let stimulus_id = stimulus("client-releases-keys");
                events.push(Event::ClientReleasesKeys {
                    client: self.acting_for(client),
                    keys,
                    stimulus_id,
                });
            }
            ClientMessage::CancelKeys {
                keys,
                force,
                reason,
                msg,
                ..
            } => {
                let stimulus_id = stimulus("cancel-key");
                events.push(Event::CancelKeys {
                    client: self.id,
                    keys,
                    force,
                    reason,
                    msg,
                    stimulus_id,
                });
            }
            ClientMessage::HeartbeatClient => {
                events.push(Event::ClientHeartbeat { client: self.id })
            }
            ClientMessage::ReportKey { key, .. } => events.push(Event::ReportKey {
                client: self.id,
                key,
            }),
            ClientMessage::UpdateData {
                who_has,
                nbytes,
                client,
            } => {
                let stimulus_id = stimulus("update-data");
                let client = Some(self.acting_for(client));
                events.push(Event::UpdateData {
                    client,
                    who_has,
                    nbytes,
                    stimulus_id,
                });
            }
            ClientMessage::CloseClient => {}
            ClientMessage::CloseStream => return Ok(Next::End),
            ClientMessage::Other { op, fields } => {
                self.flush(events).await?;
                self.other(op, fields).await?;
            }
        }
        Ok(Next::Continue)
    }

    /// Looks the tasks of very many keys up, so many at a time that others get a turn.
    async fn find_tasks(&self, keys: Vec<Key>) -> Result<Vec<TaskRef>, String> {
        let mut tasks = Vec::with_capacity(keys.len());
        let mut keys = keys.into_iter();
        while keys.len() > 0 {
            let some: Vec<Key> = keys.by_ref().take(KEYS_PER_TURN).collect();
            let found = self.shell.call(move |shell| shell.core.refs(&some)).await;
            tasks.extend(found.map_err(|_| "the scheduler is shutting down".to_owned())?);
        }
        Ok(tasks)
    }

    async fn other(&self, op: Str, mut fields: Map) -> Result<(), String> {
        if self.shell.host.handles_stream(&op) {
            fields.insert("client", &self.name);
            self.shell.host.handle_message(&op, fields);
            return Ok(());
        }
        let id = self.id;
        let name = op.clone();
        let known = self
            .shell
            .call(move |shell| {
                shell.extend(|extensions, core, now, out| {
                    extensions.client_stream(core, now, id, &name, fields, out)
                })
            })
            .await
            .map_err(|_| "the scheduler is shutting down".to_owned())??;
        if known {
            Ok(())
        } else {
            Err(format!("unknown operation `{op}` on a client's stream"))
        }
    }

    /// Waits until the graph is taken in: what the client says next may be about it.
    async fn update_graph(&self, update: UpdateGraph) {
        let start = now();
        let keys = update.keys.clone();
        let stimulus_id: StimulusId = match &update.stimulus_id {
            Some(stimulus_id) => stimulus_id.into(),
            None => stimulus("update-graph"),
        };
        let _ = self
            .shell
            .call(|shell| shell.graph_updates_active += 1)
            .await;
        let expanded = match graph_update(self.id, update, stimulus_id.clone(), start) {
            Ok(update) => graph_helper::expand(&self.shell.helpers, update).await,
            Err(text) => Err(graph_helper::Error::Invalid(text)),
        };
        let client = self.id;
        let taken_in = self.shell.call(move |shell| {
            shell.graph_updates_active -= 1;
            let (sender, taken_in) = oneshot::channel();
            let event = match expanded {
                Ok(graph) => {
                    shell.graph_waiters.push(sender);
                    shell.mirror_graph(&graph);
                    Event::UpdateGraph(Box::new(graph))
                }
                Err(error) => {
                    let raised = error.into_raised();
                    error!(target: "distributed.scheduler", "cannot take in a graph: {}", raised.text);
                    Event::GraphFailed {
                        client,
                        keys,
                        exception: raised.exception.into(),
                        traceback: raised.traceback.into(),
                        text: raised.text,
                        stimulus_id,
                    }
                }
            };
            shell.event(event);
            taken_in
        });
        if let Ok(taken_in) = taken_in.await {
            // An error means that there was nothing to wait for.
            let _ = taken_in.await;
        }
    }

    async fn leave(self, sender: Stream) {
        let Self { shell, id, name } = self;
        let removed = shell.call(move |shell: &mut Shell| {
            shell.clients.remove(&id);
            shell.event(Event::RemoveClient {
                client: id,
                stimulus_id: stimulus("remove-client"),
            });
        });
        if removed.await.is_ok() {
            sender.push(|batch| ToClient::StreamClosed.write(batch.message()));
            sender.close();
            info!(target: "distributed.scheduler", "Close client connection: {name}");
        }
    }
}

fn stimulus(prefix: &str) -> StimulusId {
    format!("{prefix}-{}", now()).into()
}

/// `code`, unless it is empty, as it is by default.
fn code(code: &Value) -> Value {
    /// The pickle of `()`.
    const EMPTY: &[u8] = b"\x80\x05).";
    let pickle = code.as_pickled().and_then(|code| code.pickle().ok());
    if pickle.is_some_and(|pickle| pickle == EMPTY) {
        return Value::Nil;
    }
    code.detached()
}

/// Checks the parts of `update-graph` that are not left to the helper.
fn graph_update(
    client: ClientId,
    update: UpdateGraph,
    stimulus_id: StimulusId,
    start: f64,
) -> Result<graph_helper::Update, String> {
    let fifo_timeout = if update.fifo_timeout.is_nil() {
        0.0
    } else if let Some(text) = update.fifo_timeout.as_str() {
        parse_timedelta(&config::Value::Str(text.into()), "s")
            .map_err(|error| format!("fifo_timeout: {error}"))?
    } else {
        update
            .fifo_timeout
            .as_f64()
            .ok_or_else(|| "fifo_timeout must be a number or a text such as \"60s\"".to_owned())?
    };
    let actors = if update.actors.is_nil() {
        Actors::None
    } else if let Some(all) = update.actors.as_bool() {
        if all { Actors::All } else { Actors::None }
    } else {
        let keys = update
            .actors
            .as_array()
            .ok_or_else(|| "actors must be a bool or a list of keys".to_owned())?;
        let keys = keys
            .iter()
            .map(Key::from_value)
            .collect::<Result<Vec<_>, _>>();
        Actors::Keys(keys.map_err(|error| format!("actors: {error}"))?)
    };
    let user_priority = if let Value::Float(priority) = update.user_priority {
        Number::Float(priority)
    } else {
        Number::Int(update.user_priority.as_i64().unwrap_or(0))
    };
    Ok(graph_helper::Update {
        client,
        expr: update.expr_ser,
        keys: update.keys,
        priorities: update.internal_priority,
        submitting_task: update.submitting_task,
        fifo_timeout,
        actors,
        code: code(&update.code),
        span_metadata: update.span_metadata.detached(),
        annotations: update.annotations,
        user_priority,
        stimulus_id,
        start,
    })
}
