//! The life of the host: started when needed, watched, replaced when it ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oxidask_scheduler::Failure;
use oxidask_wire::{Frames, Map, Value, map};
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, error, info, warn};

use super::super::args::runtime_error;
use super::super::shell::ShellHandle;
use super::link::Outgoing;
use super::{Capabilities, Command, Config, Done, Feeding, Remembered, frames_in, operations};
use crate::graph_helper::read_message;

/// The program: one file, so that the Python-free binary can carry it.
const SOURCE: &str = include_str!("../../../../../python/oxidask/_plugin_host.py");

/// Hosts that may end within [`SOON`] of their start, one after the other, before
/// the next one waits for a request.
const ENDED_SOON_MAX: u32 = 3;

/// A host that lived longer has not ended because of how it was started.
const SOON: Duration = Duration::from_secs(10);

/// What the keeper is given when it starts: once.
pub(super) struct Inbox(Mutex<Option<Held>>);

type Held = (
    mpsc::UnboundedReceiver<Command>,
    watch::Sender<Arc<Capabilities>>,
);

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inbox")
    }
}

impl Inbox {
    pub(super) fn new(
        receiver: mpsc::UnboundedReceiver<Command>,
        told: watch::Sender<Arc<Capabilities>>,
    ) -> Self {
        Self(Mutex::new(Some((receiver, told))))
    }

    pub(super) fn take(&self) -> Option<Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// One task that owns the host.
pub(super) struct Keeper {
    shell: ShellHandle,
    config: Config,
    commands: mpsc::UnboundedReceiver<Command>,
    capabilities: watch::Sender<Arc<Capabilities>>,
    process: Option<Process>,
    /// Plug-ins by name, with what registers them.
    plugins: Vec<(String, Map)>,
    /// The preload modules were imported.
    preloads: bool,
    ended_soon: u32,
    ended: bool,
}

/// A host that runs.
struct Process {
    pid: u32,
    outgoing: Outgoing,
    incoming: mpsc::UnboundedReceiver<Incoming>,
    started: Instant,
    request_id: u64,
    pending: HashMap<u64, Pending>,
    feeds: HashMap<u64, mpsc::UnboundedSender<Frames>>,
    /// When it was asked for a sign of life that has not come yet.
    pinged: Option<Instant>,
}

struct Pending {
    op: &'static str,
    reply: oneshot::Sender<Result<Done, Failure>>,
}

/// What the reader hands on to the keeper.
enum Incoming {
    Done { id: u64, done: Done },
    Feed { id: u64, frames: Frames },
    Capabilities(Capabilities),
    Pong,
    Ended(String),
}

impl Keeper {
    pub(super) fn new(
        shell: ShellHandle,
        config: Config,
        commands: mpsc::UnboundedReceiver<Command>,
        capabilities: watch::Sender<Arc<Capabilities>>,
    ) -> Self {
        Self {
            shell,
            config,
            commands,
            capabilities,
            process: None,
            plugins: Vec::new(),
            preloads: false,
            ended_soon: 0,
            ended: false,
        }
    }

    pub(super) async fn run(mut self) {
        let mut pings = tokio::time::interval(
            (self.config.timeout / 4).clamp(Duration::from_millis(50), Duration::from_secs(5)),
        );
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let runs = self.process.is_some();
            let incoming = async {
                match self.process.as_mut() {
                    Some(process) => process.incoming.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                incoming = incoming => match incoming {
                    Some(incoming) => self.incoming(incoming).await,
                    None => self.lost("its connection closed").await,
                },
                _ = pings.tick(), if runs => self.ping().await,
            }
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Request {
                op,
                fields,
                reply,
                feed,
            } => {
                if self.ended {
                    let _ = reply.send(Err(super::shut_down()));
                    return;
                }
                if self.process.is_none()
                    && let Err(failure) = self.start().await
                {
                    let _ = reply.send(Err(failure));
                    return;
                }
                if let Some(process) = &mut self.process {
                    process.request(op, fields, reply, feed);
                }
            }
            Command::Tell(message) => {
                if let Some(process) = &mut self.process {
                    if message.get("op").and_then(Value::as_str) == Some("feed-stop")
                        && let Some(id) = message.get("feed").and_then(Value::as_u64)
                    {
                        process.feeds.remove(&id);
                    }
                    process.outgoing.send(message);
                }
            }
            Command::IsRunning(reply) => {
                let _ = reply.send(self.process.is_some());
            }
            Command::Remember(remembered) => match remembered {
                Remembered::Plugin { name, fields } => {
                    self.plugins.retain(|(known, _)| *known != name);
                    self.plugins.push((name, fields));
                }
                Remembered::NoPlugin { name } => self.plugins.retain(|(known, _)| *known != name),
                Remembered::Preload => self.preloads = true,
            },
            Command::End => {
                self.ended = true;
                if let Some(process) = self.process.take() {
                    self.shell.helpers.kill(process.pid);
                }
            }
        }
    }

    async fn incoming(&mut self, incoming: Incoming) {
        let Some(process) = &mut self.process else {
            return;
        };
        process.pinged = None;
        match incoming {
            Incoming::Done { id, done } => {
                process.feeds.remove(&id);
                if let Some(pending) = process.pending.remove(&id) {
                    // The caller may have gone.
                    let _ = pending.reply.send(Ok(done));
                }
            }
            Incoming::Feed { id, frames } => {
                if let Some(feed) = process.feeds.get(&id) {
                    // As above.
                    let _ = feed.send(frames);
                }
            }
            Incoming::Capabilities(capabilities) => {
                self.capabilities.send_replace(Arc::new(capabilities));
            }
            Incoming::Pong => {}
            Incoming::Ended(reason) => self.lost(&reason).await,
        }
    }

    async fn ping(&mut self) {
        let Some(process) = &mut self.process else {
            return;
        };
        let timeout = self.config.timeout;
        match process.pinged {
            None => {
                process.pinged = Some(Instant::now());
                process.outgoing.send(map! { "id" => 0, "op" => "ping" });
            }
            Some(pinged) if pinged.elapsed() > timeout => {
                self.shell.helpers.kill(process.pid);
                let reason = format!(
                    "something in it blocked it for {timeout:?}, so it was stopped; raise \
                     `oxidask.plugin-host.timeout` if that is to be expected"
                );
                self.lost(&reason).await;
            }
            Some(_) => {}
        }
    }

    /// The host is gone: requests fail, and what has to last is started again.
    async fn lost(&mut self, reason: &str) {
        let Some(process) = self.process.take() else {
            return;
        };
        let pid = process.pid;
        self.capabilities.send_replace(Arc::default());
        // Unless the scheduler is gone too.
        let _ = self.shell.call(move |shell| shell.mirror_detach(pid)).await;
        let reason = if reason.is_empty() {
            self.shell.helpers.exit_status(pid).await
        } else {
            reason.to_owned()
        };
        if self.ended {
            return;
        }
        let lived = process.started.elapsed();
        for (_, pending) in process.pending {
            let text = format!(
                "the plug-in host (pid {pid}) ended while it worked on `{}`: {reason}",
                pending.op
            );
            let _ = pending.reply.send(Err(runtime_error(&text)));
        }
        warn!(target: "distributed.scheduler", "The plug-in host (pid {pid}) ended: {reason}");
        self.ended_soon = if lived < SOON { self.ended_soon + 1 } else { 0 };
        if self.plugins.is_empty() && !self.preloads {
            return;
        }
        if self.ended_soon >= ENDED_SOON_MAX {
            error!(
                target: "distributed.scheduler",
                "The plug-in host ended {} times soon after its start; scheduler plugins and preloads \
                 stay off until something else needs it",
                self.ended_soon
            );
            return;
        }
        match self.start().await {
            Ok(()) => {
                let names: Vec<&str> = self.plugins.iter().map(|(name, _)| &**name).collect();
                info!(
                    target: "distributed.scheduler",
                    "A new plug-in host runs, with the scheduler plugins [{}]{}",
                    names.join(", "),
                    if self.preloads { " and the preloads" } else { "" },
                );
            }
            Err(failure) => {
                error!(target: "distributed.scheduler", "Cannot start another plug-in host: {}", failure.text);
            }
        }
    }

    /// Starts a host and gives it what has to last.
    async fn start(&mut self) -> Result<(), Failure> {
        let helpers = &self.shell.helpers;
        let mut helper = helpers
            .lease_process()
            .await
            .map_err(crate::graph_helper::failure)?;
        let fields = map! { "source" => SOURCE, "name" => "oxidask_plugin_host" };
        helper
            .request("become", fields)
            .await
            .map_err(crate::graph_helper::failure)?;
        let Some((pid, stream)) = helper.detach() else {
            return Err(super::shut_down());
        };
        debug!(target: "distributed.scheduler", pid, "plug-in host starts");
        let (read, write) = stream.into_split();
        let outgoing = Outgoing::start(write, self.shell.clone());
        let (sender, incoming) = mpsc::unbounded_channel();
        tokio::spawn(
            Reader {
                shell: self.shell.clone(),
                outgoing: outgoing.clone(),
                keeper: sender,
            }
            .run(read),
        );
        let link = outgoing.clone();
        let started = self.shell.call(move |shell| {
            shell.mirror_attach(link, pid);
            shell.started
        });
        let mut about = self.config.about.clone();
        about.push("started", started.await?);
        let settings = &self.shell.settings;
        about.push("address", settings.address());
        about.push("server_id", settings.id.as_str());
        about.push("services", settings.services());
        self.process = Some(Process {
            pid,
            outgoing,
            incoming,
            started: Instant::now(),
            request_id: 0,
            pending: HashMap::new(),
            feeds: HashMap::new(),
            pinged: None,
        });
        self.prepare("start", about).await?;
        for (name, fields) in self.plugins.clone() {
            if let Err(failure) = self.prepare("plugin-add", fields).await {
                error!(target: "distributed.scheduler", "Cannot register the scheduler plugin {name} again: {}", failure.text);
            }
        }
        if self.preloads
            && let Some(preload) = self.config.preload.clone()
        {
            self.prepare("preload", super::preload_fields(&preload))
                .await?;
            self.prepare("preload-start", Map::new()).await?;
        }
        Ok(())
    }

    /// A request of ours before anybody else's.
    async fn prepare(&mut self, op: &'static str, fields: Map) -> Result<(), Failure> {
        let (reply, mut answer) = oneshot::channel();
        let Some(process) = &mut self.process else {
            return Err(runtime_error("the plug-in host ended as it started"));
        };
        process.request(op, fields, reply, None);
        let deadline = Instant::now() + self.config.timeout;
        loop {
            let Some(process) = &mut self.process else {
                return Err(runtime_error("the plug-in host ended as it started"));
            };
            tokio::select! {
                answer = &mut answer => {
                    let done = answer.unwrap_or_else(|_| Err(super::shut_down()))?;
                    return done.failed.map_or(Ok(()), |text| Err(runtime_error(&text)));
                }
                incoming = process.incoming.recv() => match incoming {
                    Some(Incoming::Ended(reason)) => return Err(self.failed_start(op, &reason).await),
                    Some(incoming) => Box::pin(self.incoming(incoming)).await,
                    None => return Err(self.failed_start(op, "").await),
                },
                () = tokio::time::sleep_until(deadline) => {
                    let reason = format!("it took longer than {:?}", self.config.timeout);
                    return Err(self.failed_start(op, &reason).await);
                }
            }
        }
    }

    async fn failed_start(&mut self, op: &str, reason: &str) -> Failure {
        let Some(process) = self.process.take() else {
            return super::shut_down();
        };
        let pid = process.pid;
        self.shell.helpers.kill(pid);
        let _ = self.shell.call(move |shell| shell.mirror_detach(pid)).await;
        self.capabilities.send_replace(Arc::default());
        let status = if reason.is_empty() {
            self.shell.helpers.exit_status(pid).await
        } else {
            reason.to_owned()
        };
        runtime_error(&format!(
            "the plug-in host (pid {pid}) ended while it worked on `{op}`: {status}"
        ))
    }
}

impl Process {
    fn request(
        &mut self,
        op: &'static str,
        mut fields: Map,
        reply: oneshot::Sender<Result<Done, Failure>>,
        feed: Option<Feeding>,
    ) {
        self.request_id += 1;
        let id = self.request_id;
        fields.insert("id", id);
        fields.insert("op", op);
        self.pending.insert(id, Pending { op, reply });
        if let Some(feed) = feed {
            self.feeds.insert(id, feed.messages);
            // A caller that has gone stops the feed by itself.
            let _ = feed.started.send(id);
        }
        self.outgoing.send(fields);
    }
}

/// Reads what the host says; what it asks of the scheduler is done in order.
struct Reader {
    shell: ShellHandle,
    outgoing: Outgoing,
    keeper: mpsc::UnboundedSender<Incoming>,
}

impl Reader {
    async fn run(self, mut read: OwnedReadHalf) {
        let reason = loop {
            let message = match read_message(&mut read).await {
                Ok(message) => message,
                Err(error) => {
                    let kind = error.kind();
                    let ended = matches!(
                        kind,
                        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
                    );
                    break if ended {
                        String::new()
                    } else {
                        error.to_string()
                    };
                }
            };
            match self.message(message).await {
                Ok(Some(incoming)) => {
                    if self.keeper.send(incoming).is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(reason) => break reason,
            }
        };
        // The keeper may have ended it itself.
        let _ = self.keeper.send(Incoming::Ended(reason));
    }

    async fn message(&self, mut message: Map) -> Result<Option<Incoming>, String> {
        let malformed = |field: &str| format!("it sent a message without a usable `{field}`");
        let number = |message: &Map, field: &str| message.get(field).and_then(Value::as_u64);
        let op = message.take("op").and_then(Value::into_str);
        let op = op.ok_or_else(|| malformed("op"))?;
        let shell = &self.shell;
        // The scheduler may be shutting down: then nobody needs an answer.
        Ok(match op.as_str() {
            "done" => Some(Incoming::Done {
                id: number(&message, "id").ok_or_else(|| malformed("id"))?,
                done: Done {
                    frames: frames_in(&mut message).ok_or_else(|| malformed("frames"))?,
                    failed: message
                        .get("failed")
                        .and_then(Value::as_str)
                        .map(str::to_owned),
                },
            }),
            "pong" => Some(Incoming::Pong),
            "feed" => Some(Incoming::Feed {
                id: number(&message, "feed").ok_or_else(|| malformed("feed"))?,
                frames: frames_in(&mut message).ok_or_else(|| malformed("frames"))?,
            }),
            "pull" => {
                let _ = shell.call(super::super::shell::Shell::mirror_pull).await;
                None
            }
            "follow" => {
                let on = message.get("on").and_then(Value::as_bool).unwrap_or(false);
                let _ = shell.call(move |shell| shell.mirror_follow(on)).await;
                None
            }
            "capabilities" => {
                let names = |field: &str| {
                    let names = message.get(field).and_then(Value::as_array);
                    let names = names.unwrap_or_default().iter();
                    names.filter_map(Value::as_str).map(str::to_owned).collect()
                };
                Some(Incoming::Capabilities(Capabilities {
                    handlers: names("handlers"),
                    stream_handlers: names("stream_handlers"),
                }))
            }
            "ask" => {
                let asked = operations::Asked::read(message).ok_or_else(|| malformed("rpc"))?;
                if asked.spawn {
                    tokio::spawn(asked.answer(self.shell.clone(), self.outgoing.clone()));
                } else {
                    asked
                        .answer(self.shell.clone(), self.outgoing.clone())
                        .await;
                }
                None
            }
            other => return Err(format!("it sent the unknown operation `{other}`")),
        })
    }
}
