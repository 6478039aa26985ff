//! Python beside the scheduler that lasts: functions, plug-ins, feeds, preloads.
//!
//! ```text
//!  rpc, serve ──► PluginHost ──► keeper ──┬─ requests ──► writer ──► plug-in host
//!                                         │                 ▲
//!  Shell ── mirror_settle ── changes ─────┼─────────────────┘
//!  Shell ◄── operations ◄── what it asks ─┴─ reader ◄──────── plug-in host
//! ```
//!
//! The host is a graph helper that became another program. It is started when it
//! is first needed, told of changes while plug-ins want to hear of them, and
//! replaced when it ends. The protocol is described in `docs/plugin-host.md`.

mod keeper;
mod link;
mod mirror;
mod operations;

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use oxidask_scheduler::Failure;
use oxidask_wire::{Frames, Map, Value, map, message};
use tokio::sync::{mpsc, oneshot, watch};

use super::args::runtime_error;
use super::shell::ShellHandle;

pub(super) use mirror::MirrorLink;

/// How the host is run.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// How long it may be silent, because a function or plug-in blocks it, before
    /// it is replaced (`oxidask.plugin-host.timeout`).
    pub(crate) timeout: Duration,
    /// What it is told of the scheduler when it starts: security, files.
    pub(crate) about: Map,
    /// Modules to preload, with their arguments.
    pub(crate) preload: Option<Preload>,
}

/// `--preload` and `--preload-argv`, or their configuration.
#[derive(Clone, Debug)]
pub(crate) struct Preload {
    /// Modules, files, texts of scripts, web addresses.
    pub(crate) modules: Vec<String>,
    /// One list of arguments for all of them, or one for each.
    pub(crate) argv: Value,
    /// Arguments are checked as the command line's are.
    pub(crate) from_command_line: bool,
}

/// Asks the host; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct PluginHost {
    commands: mpsc::UnboundedSender<Command>,
    capabilities: watch::Receiver<Arc<Capabilities>>,
    keeper: Arc<OnceLock<keeper::Inbox>>,
}

/// What the host answers that nobody else does.
#[derive(Debug, Default)]
struct Capabilities {
    handlers: HashSet<String>,
    stream_handlers: HashSet<String>,
}

/// What the keeper is asked.
#[derive(Debug)]
enum Command {
    /// Have something done in the host, which is started if need be.
    Request {
        op: &'static str,
        fields: Map,
        reply: oneshot::Sender<Result<Done, Failure>>,
        feed: Option<Feeding>,
    },
    /// A message for a feed, if the host is there.
    Tell(Map),
    /// Whether there is a host now.
    IsRunning(oneshot::Sender<bool>),
    /// Start again with these, should it end.
    Remember(Remembered),
    /// Do not start again.
    End,
}

/// What a new host is told after the old one ended.
#[derive(Debug)]
enum Remembered {
    Plugin {
        name: String,
        fields: Map,
    },
    /// A plug-in was unregistered.
    NoPlugin {
        name: String,
    },
    Preload,
}

/// Where the messages of a feed go.
#[derive(Debug)]
struct Feeding {
    started: oneshot::Sender<u64>,
    messages: mpsc::UnboundedSender<Frames>,
}

/// The host's answer: a message for the caller.
#[derive(Debug)]
struct Done {
    frames: Frames,
    /// `repr` of the exception that the message tells of.
    failed: Option<String>,
}

/// A feed that the host runs.
#[derive(Debug)]
pub(super) struct Feed {
    host: PluginHost,
    id: u64,
    messages: mpsc::UnboundedReceiver<Frames>,
    done: oneshot::Receiver<Result<Done, Failure>>,
}

/// What a feed does next.
pub(super) enum Fed {
    /// It has a message for its client.
    Message(Frames),
    /// It has ended, with this for the client.
    Ended(Result<Value, Failure>),
}

impl PluginHost {
    /// A host that is started when it is first asked for something.
    pub(super) fn new() -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (told, capabilities) = watch::channel(Arc::default());
        let keeper = Arc::new(OnceLock::new());
        // Nobody else sets it.
        let _ = keeper.set(keeper::Inbox::new(receiver, told));
        Self {
            commands,
            capabilities,
            keeper,
        }
    }

    /// Lets the host be started from now on.
    pub(super) fn serve(&self, shell: ShellHandle, config: Config) {
        if let Some(inbox) = self.keeper.get()
            && let Some((receiver, told)) = inbox.take()
        {
            tokio::spawn(keeper::Keeper::new(shell, config, receiver, told).run());
        }
    }

    /// Has `op` done; the answer is the message for the caller of the scheduler.
    pub(super) async fn request(&self, op: &'static str, fields: Map) -> Result<Value, Failure> {
        done_value(self.ask(op, fields).await?)
    }

    async fn ask(&self, op: &'static str, fields: Map) -> Result<Done, Failure> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Request {
            op,
            fields,
            reply,
            feed: None,
        });
        answer.await.unwrap_or_else(|_| Err(shut_down()))
    }

    /// As [`PluginHost::request`], but an exception of the host's is an error here.
    pub(super) async fn attempt(&self, op: &'static str, fields: Map) -> Result<(), String> {
        match self.ask(op, fields).await {
            Ok(done) => done.failed.map_or(Ok(()), Err),
            Err(failure) => Err(failure.text),
        }
    }

    /// Registers a plug-in, again with every new host.
    pub(super) async fn add_plugin(
        &self,
        name: Option<&str>,
        fields: Map,
    ) -> Result<Value, Failure> {
        let done = self.ask("plugin-add", fields.clone()).await?;
        if done.failed.is_none()
            && let Some(name) = name
        {
            let name = name.to_owned();
            self.remember(Remembered::Plugin { name, fields });
        }
        done_value(done)
    }

    /// Unregisters a plug-in.
    pub(super) async fn remove_plugin(&self, name: &str) -> Result<Value, Failure> {
        let done = self.ask("plugin-remove", map! { "name" => name }).await?;
        let name = name.to_owned();
        self.remember(Remembered::NoPlugin { name });
        done_value(done)
    }

    /// Imports the preload modules; their set-up comes later.
    ///
    /// # Errors
    ///
    /// A module cannot be imported, or its arguments are wrong.
    pub(super) async fn import_preloads(&self, preload: &Preload) -> Result<(), String> {
        self.attempt("preload", preload_fields(preload)).await?;
        self.remember(Remembered::Preload);
        Ok(())
    }

    fn remember(&self, remembered: Remembered) {
        let _ = self.commands.send(Command::Remember(remembered));
    }

    /// Starts a feed.
    pub(super) async fn feed(&self, request: &Map) -> Result<Feed, Failure> {
        let (reply, done) = oneshot::channel();
        let (started, id) = oneshot::channel();
        let (sender, messages) = mpsc::unbounded_channel();
        let _ = self.commands.send(Command::Request {
            op: "feed",
            fields: map! { "frames" => frames_of(&Value::Map(request.clone())) },
            reply,
            feed: Some(Feeding {
                started,
                messages: sender,
            }),
        });
        match id.await {
            Ok(id) => Ok(Feed {
                host: self.clone(),
                id,
                messages,
                done,
            }),
            // The host could not be started.
            Err(_) => Err(match done.await {
                Ok(Err(failure)) => failure,
                Ok(Ok(_)) | Err(_) => shut_down(),
            }),
        }
    }

    /// Whether somebody in the host answers this operation.
    pub(super) fn handles(&self, op: &str) -> bool {
        self.capabilities.borrow().handlers.contains(op)
    }

    /// Whether somebody in the host listens to this operation on streams.
    pub(super) fn handles_stream(&self, op: &str) -> bool {
        self.capabilities.borrow().stream_handlers.contains(op)
    }

    /// Has an operation answered by the handler that somebody registered.
    pub(super) async fn handle(
        &self,
        name: &str,
        fields: Map,
        stream: bool,
    ) -> Result<Value, Failure> {
        let fields = map! {
            "name" => name,
            "stream" => stream,
            "frames" => frames_of(&Value::Map(fields)),
        };
        self.request("handler", fields).await
    }

    /// Gives a message of a stream to the handler that somebody registered.
    pub(super) fn handle_message(&self, name: &str, fields: Map) {
        let host = self.clone();
        let name = name.to_owned();
        tokio::spawn(async move {
            // What the handler raises is logged in the host.
            let _ = host.handle(&name, fields, true).await;
        });
    }

    /// Whether there is a host.
    pub(super) async fn is_running(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::IsRunning(reply));
        answer.await.unwrap_or(false)
    }

    /// Lets plug-ins and preloads close, if there is a host, then ends it.
    pub(super) async fn close(&self, within: Duration) {
        if self.is_running().await {
            let closed = self.attempt("close", Map::new());
            match tokio::time::timeout(within, closed).await {
                Ok(Ok(())) => {}
                Ok(Err(text)) => {
                    tracing::warn!(target: "distributed.scheduler", "Plugins were not closed: {text}");
                }
                Err(_elapsed) => {
                    tracing::warn!(
                        target: "distributed.scheduler",
                        "Plugins did not close within {within:?}; the scheduler goes on without them"
                    );
                }
            }
        }
        let _ = self.commands.send(Command::End);
    }
}

impl Feed {
    /// The next message. Cancel-safe.
    pub(super) async fn next(&mut self) -> Fed {
        tokio::select! {
            biased;
            Some(message) = self.messages.recv() => Fed::Message(message),
            done = &mut self.done => Fed::Ended(match done {
                Ok(done) => done.and_then(done_value),
                Err(_) => Err(shut_down()),
            }),
        }
    }

    /// The last message was written; the feed may go on.
    pub(super) fn sent(&self) {
        let _ = self.host.commands.send(Command::Tell(map! {
            "op" => "feed-sent", "feed" => self.id,
        }));
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // Nothing happens if it has ended by itself.
        let _ = self.host.commands.send(Command::Tell(map! {
            "op" => "feed-stop", "feed" => self.id,
        }));
    }
}

fn preload_fields(preload: &Preload) -> Map {
    map! {
        "preload" => preload.modules.iter().map(|name| Value::from(name.as_str())).collect::<Value>(),
        "argv" => preload.argv.clone(),
        "from_command_line" => preload.from_command_line,
    }
}

/// The frames of a message, to be put into another one.
fn frames_of(value: &Value) -> Value {
    message::encode(value)
        .into_iter()
        .map(Value::from)
        .collect()
}

/// The message in the field `frames`.
fn frames_in(fields: &mut Map) -> Option<Frames> {
    let frames = fields.take("frames")?.into_array()?;
    frames.into_iter().map(Value::into_bin).collect()
}

fn done_value(done: Done) -> Result<Value, Failure> {
    message::decode(&done.frames)
        .map_err(|error| runtime_error(&format!("the plug-in host answered nonsense: {error}")))
}

fn shut_down() -> Failure {
    runtime_error("the scheduler is shutting down")
}
