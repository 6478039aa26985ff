//! The zygote, the helpers it forks, and who may use which.
//!
//! One task, the *keeper*, owns the zygote and every idle helper. A request
//! leases a helper, uses it alone and gives it back; a helper that is dropped
//! instead (its request was abandoned, timed out or failed on the socket) is
//! killed, because nobody knows what it is doing.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use oxidask_wire::{Map, Value, map, message};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info, warn};

use super::Error;
use super::threads::{self, Threads};

/// The program a helper runs: one file without imports from the `oxidask`
/// package, so that the Python-free binary can carry it.
const SOURCE: &str = include_str!("../../../../python/oxidask/_graph_helper.py");

/// How long a dead helper's exit status may take to arrive before the error is
/// written without it.
const REAP_WAIT: Duration = Duration::from_secs(2);

/// How helpers are started and limited.
#[derive(Clone, Debug)]
pub struct Config {
    /// The interpreter, with dask and distributed installed.
    pub python: PathBuf,
    /// How long one request may take (`oxidask.graph-helper.timeout`).
    pub timeout: Duration,
    /// Most helpers at work at once; further requests wait.
    pub helpers_max: usize,
    /// Helpers kept ready, so that a submit never waits for a fork.
    pub helpers_idle: usize,
    /// Resident memory above the zygote's at which a helper is replaced after use, in bytes.
    pub growth_nbytes_max: u64,
    /// Makes helpers that are threads of this process, instead of processes.
    pub threads: Option<Arc<dyn Threads>>,
}

/// Starts helpers and hands them out. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pool {
    commands: mpsc::UnboundedSender<KeeperCommand>,
    config: Arc<Config>,
}

#[derive(Debug)]
pub(super) enum KeeperCommand {
    Lease {
        reply: oneshot::Sender<Result<Helper, Error>>,
        /// A thread does not do.
        is_process: bool,
    },
    GiveBack(Connection),
    Kill {
        pid: u32,
    },
    ExitStatus {
        pid: u32,
        reply: oneshot::Sender<String>,
    },
    Setup {
        uploads: Vec<(String, Bytes)>,
    },
    Preimport {
        modules: Value,
    },
    PythonVersions {
        reply: oneshot::Sender<Value>,
    },
}

impl Pool {
    /// Starts the zygote, or a first thread, in the background; requests wait until it
    /// is ready.
    pub fn start(config: Config) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let config = Arc::new(config);
        let pool = Self {
            commands: commands.clone(),
            config: config.clone(),
        };
        match config.threads.clone() {
            Some(threads) => {
                let keeper = threads::Keeper::new(threads, config, receiver, commands.downgrade());
                tokio::spawn(keeper.run());
            }
            None => {
                tokio::spawn(Keeper::new(config, receiver, commands).run());
            }
        }
        pool
    }

    /// The pool of a keeper, while anybody else has it.
    pub(super) fn of_keeper(
        commands: &mpsc::WeakUnboundedSender<KeeperCommand>,
        config: &Arc<Config>,
    ) -> Option<Self> {
        Some(Self {
            commands: commands.upgrade()?,
            config: config.clone(),
        })
    }

    /// Waits for a free helper.
    ///
    /// # Errors
    ///
    /// When the interpreter cannot be started.
    pub async fn lease(&self) -> Result<Helper, Error> {
        self.lease_as(false).await
    }

    /// As [`Self::lease`], of a helper that has a process of its own: what runs there
    /// takes it over ([`Helper::detach`]).
    ///
    /// # Errors
    ///
    /// When the interpreter cannot be started.
    pub async fn lease_process(&self) -> Result<Helper, Error> {
        self.lease_as(true).await
    }

    async fn lease_as(&self, is_process: bool) -> Result<Helper, Error> {
        let (reply, answer) = oneshot::channel();
        let _ = self.send(KeeperCommand::Lease { reply, is_process });
        answer.await.map_err(|_| Error::ShutDown)?
    }

    pub(super) fn send(&self, command: KeeperCommand) -> Result<(), Error> {
        self.commands.send(command).map_err(|_| Error::ShutDown)
    }

    /// Modules every helper from now on can import, helpers at work included
    /// once they are given back. Replaces the list before.
    pub fn set_uploads(&self, uploads: Vec<(String, Bytes)>) {
        let _ = self.commands.send(KeeperCommand::Setup { uploads });
    }

    /// Modules worth having in every helper from now on: the zygote imports them,
    /// so that the next fork starts with them.
    pub fn preimport(&self, modules: Value) {
        if modules
            .as_array()
            .is_some_and(|modules| !modules.is_empty())
        {
            let _ = self.commands.send(KeeperCommand::Preimport { modules });
        }
    }

    /// What the zygote said of itself when it was ready: interpreter and package versions.
    pub async fn versions(&self) -> Option<Value> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(KeeperCommand::PythonVersions { reply });
        answer.await.ok()
    }

    /// Ends a helper that is leased or detached.
    pub fn kill(&self, pid: u32) {
        let _ = self.commands.send(KeeperCommand::Kill { pid });
    }

    /// How a helper ended, in words; waits a moment for the news.
    pub async fn exit_status(&self, pid: u32) -> String {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(KeeperCommand::ExitStatus { pid, reply });
        match tokio::time::timeout(REAP_WAIT, answer).await {
            Ok(Ok(status)) => status,
            Ok(Err(_)) | Err(_) => "exit status unknown".to_owned(),
        }
    }
}

/// The scheduler's end of a helper's socket.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) pid: u32,
    stream: UnixStream,
    request_id: u64,
    /// How many of the keeper's upload lists this helper has seen.
    setup_version: u64,
    /// The zygote's request that made it; `None` once it has expanded a graph, and
    /// so imported what graphs need by itself.
    forked_by: Option<u64>,
}

impl Connection {
    /// To a helper that nobody has used yet.
    pub(super) fn new(pid: u32, stream: UnixStream, forked_by: Option<u64>) -> Self {
        Self {
            pid,
            stream,
            request_id: 0,
            setup_version: 0,
            forked_by,
        }
    }

    /// Gives it what clients have uploaded, unless it has that.
    pub(super) async fn set_up(
        &mut self,
        uploads: &[(String, Bytes)],
        setup_version: u64,
        timeout: Duration,
    ) -> io::Result<()> {
        if self.setup_version == setup_version {
            return Ok(());
        }
        let uploads = uploads
            .iter()
            .map(|(name, data)| Value::Array(vec![name.as_str().into(), data.clone().into()]))
            .collect::<Vec<_>>();
        let fields = map! { "uploads" => Value::Array(uploads) };
        // A helper that cannot import what a client uploaded says so in its log and serves on.
        let set_up = self.request("setup", fields);
        let answer = tokio::time::timeout(timeout.min(Duration::from_secs(30)), set_up).await??;
        if let Some(error) = answer.get("error").and_then(Value::as_map) {
            let text = error
                .get("text")
                .and_then(Value::as_str)
                .unwrap_or_default();
            info!(target: "distributed.scheduler", "graph helper: an uploaded file was not loaded: {text}");
        }
        self.setup_version = setup_version;
        Ok(())
    }

    /// Whether it was forked before this request of the zygote.
    fn lacks(&self, imported_by: u64) -> bool {
        self.forked_by
            .is_some_and(|forked_by| forked_by < imported_by)
    }

    async fn request(&mut self, op: &str, mut fields: Map) -> io::Result<Map> {
        self.request_id += 1;
        fields.insert("id", self.request_id);
        fields.insert("op", op);
        write_message(&mut self.stream, fields).await?;
        let answer = read_message(&mut self.stream).await?;
        if answer.get("id").and_then(Value::as_i64) != i64::try_from(self.request_id).ok() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the graph helper answered another request",
            ));
        }
        Ok(answer)
    }
}

/// A helper leased for one request or one sequence of requests.
#[derive(Debug)]
pub struct Helper {
    /// Taken when the helper is given back; dropped with it, the helper is killed.
    connection: Option<Connection>,
    pool: Pool,
}

impl Helper {
    pub(super) fn new(connection: Connection, pool: Pool) -> Self {
        Self {
            connection: Some(connection),
            pool,
        }
    }

    /// Runs one operation of `docs/graph-helper.md`.
    ///
    /// # Errors
    ///
    /// [`Error::Raised`] when Python raised (the helper stays usable);
    /// otherwise the helper crashed or took too long and is replaced.
    pub async fn request(&mut self, op: &str, fields: Map) -> Result<Map, Error> {
        let Some(connection) = self.connection.as_mut() else {
            return Err(Error::ShutDown);
        };
        let timeout = self.pool.config.timeout;
        let answer = match tokio::time::timeout(timeout, connection.request(op, fields)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                let pid = connection.pid;
                self.connection = None;
                let _ = self.pool.commands.send(KeeperCommand::Kill { pid });
                let exited = matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::BrokenPipe
                        | io::ErrorKind::ConnectionReset
                );
                let status = if exited {
                    self.pool.exit_status(pid).await
                } else {
                    error.to_string()
                };
                return Err(Error::Crashed {
                    op: op.to_owned(),
                    pid,
                    status,
                });
            }
            Err(_elapsed) => {
                return Err(Error::TimedOut {
                    op: op.to_owned(),
                    timeout,
                });
            }
        };
        match answer.get("error").and_then(Value::as_map) {
            None => Ok(answer),
            Some(raised) => Err(Error::Raised(Box::new(super::Raised::from_answer(raised)))),
        }
    }

    /// Takes the process and its socket out of the helpers' cycle. It counts as at
    /// work until it ends, and ends when [`Pool::kill`] or the end of its socket says so.
    pub fn detach(mut self) -> Option<(u32, UnixStream)> {
        let connection = self.connection.take()?;
        Some((connection.pid, connection.stream))
    }

    /// Process id, to find the helper again in logs.
    pub fn pid(&self) -> u32 {
        self.connection
            .as_ref()
            .map_or(0, |connection| connection.pid)
    }

    /// Returns the helper to the pool. `heavy` says that it has just held a large
    /// graph: its memory is looked at and the process is replaced if it kept it.
    pub async fn give_back(mut self, heavy: bool) {
        if heavy {
            match self.request("memory", Map::default()).await {
                Ok(answer) => {
                    let get = |name| answer.get(name).and_then(Value::as_i64).unwrap_or(0);
                    let growth = get("rss").saturating_sub(get("baseline"));
                    if u64::try_from(growth).unwrap_or(0) > self.pool.config.growth_nbytes_max {
                        return; // Dropped: killed and replaced by a fork.
                    }
                }
                Err(_) => return,
            }
        }
        if let Some(connection) = self.connection.take() {
            let _ = self.pool.commands.send(KeeperCommand::GiveBack(connection));
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = self.pool.commands.send(KeeperCommand::Kill {
                pid: connection.pid,
            });
        }
    }
}

/// Length word and body; the helper's messages have no frames beside the first.
fn encode_message(fields: Map) -> io::Result<([u8; 4], Bytes)> {
    let body = message::encode(&Value::Map(fields)).swap_remove(0);
    let length = u32::try_from(body.len()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "a message to the graph helper exceeds 4 GiB",
        )
    })?;
    Ok((length.to_le_bytes(), body))
}

pub(crate) async fn write_message<W: AsyncWriteExt + Unpin>(
    stream: &mut W,
    fields: Map,
) -> io::Result<()> {
    let (length, body) = encode_message(fields)?;
    stream.write_all(&length).await?;
    stream.write_all(&body).await
}

pub(crate) async fn read_message<R: AsyncReadExt + Unpin>(stream: &mut R) -> io::Result<Map> {
    let length = stream.read_u32_le().await?;
    let mut body = BytesMut::with_capacity((length as usize).min(1 << 20));
    while body.len() < length as usize {
        let missing = length as usize - body.len();
        if body.capacity() == body.len() {
            body.reserve(missing.min(body.len().max(1 << 20)));
        }
        let mut limited = (&mut *stream).take(missing as u64);
        if limited.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let value = message::decode_plain(&body.freeze(), "graph helper's message")
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    if let Value::Map(map) = value {
        Ok(map)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the graph helper sent {value:?} instead of a map"),
        ))
    }
}

struct Keeper {
    config: Arc<Config>,
    receiver: mpsc::UnboundedReceiver<KeeperCommand>,
    commands: mpsc::UnboundedSender<KeeperCommand>,
    zygote: Option<Zygote>,
    idle: Vec<Connection>,
    /// Pids of helpers that are leased.
    leased: Vec<u32>,
    forks_under_way: usize,
    waiting: VecDeque<oneshot::Sender<Result<Helper, Error>>>,
    uploads: Vec<(String, Bytes)>,
    setup_version: u64,
    versions: Option<Value>,
    versions_waiting: Vec<oneshot::Sender<Value>>,
    statuses: VecDeque<(u32, String)>,
    status_waiting: Vec<(u32, oneshot::Sender<String>)>,
    starts_failed: u32,
}

struct Zygote {
    child: Child,
    /// What clients upload. Ours to remove, since the zygote may be killed.
    _directory: TempDir,
    control: OwnedWriteHalf,
    messages: mpsc::UnboundedReceiver<io::Result<Map>>,
    request_id: u64,
    forks: HashMap<u64, UnixStream>,
    /// The latest request to import something: forks of before lack it.
    imported_by: u64,
    ready: bool,
}

/// Consecutive failed starts of the zygote after which requests fail at once.
const STARTS_FAILED_MAX: u32 = 3;

impl Keeper {
    fn new(
        config: Arc<Config>,
        receiver: mpsc::UnboundedReceiver<KeeperCommand>,
        commands: mpsc::UnboundedSender<KeeperCommand>,
    ) -> Self {
        Self {
            config,
            receiver,
            commands,
            zygote: None,
            idle: Vec::new(),
            leased: Vec::new(),
            forks_under_way: 0,
            waiting: VecDeque::new(),
            uploads: Vec::new(),
            setup_version: 0,
            versions: None,
            versions_waiting: Vec::new(),
            statuses: VecDeque::new(),
            status_waiting: Vec::new(),
            starts_failed: 0,
        }
    }

    async fn run(mut self) {
        loop {
            if self.zygote.is_none()
                && (self.starts_failed < STARTS_FAILED_MAX || !self.waiting.is_empty())
            {
                self.start_zygote();
            }
            let zygote_message = async {
                match self.zygote.as_mut() {
                    Some(zygote) => zygote.messages.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = self.receiver.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => break,
                },
                message = zygote_message => match message {
                    Some(Ok(message)) => self.message(&message).await,
                    Some(Err(error)) => self.zygote_lost(&error.to_string()).await,
                    None => self.zygote_lost("its control channel closed").await,
                },
            }
            self.hand_out().await;
        }
    }

    fn start_zygote(&mut self) {
        match Zygote::spawn(&self.config.python) {
            Ok(zygote) => self.zygote = Some(zygote),
            Err(error) => {
                self.starts_failed += 1;
                let message = format!(
                    "cannot start the graph helper `{}`: {error}; name an interpreter that has dask and distributed with --python",
                    self.config.python.display()
                );
                error!(target: "distributed.scheduler", "{message}");
                self.fail_waiting(&message);
            }
        }
    }

    fn fail_waiting(&mut self, message: &str) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(Err(Error::NotStarted(message.to_owned())));
        }
        for waiting in self.versions_waiting.drain(..) {
            let _ = waiting.send(Value::Nil);
        }
    }

    async fn zygote_lost(&mut self, reason: &str) {
        let Some(mut zygote) = self.zygote.take() else {
            return;
        };
        let _ = zygote.child.start_kill();
        let status = match zygote.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        self.idle.clear();
        self.forks_under_way = 0;
        if !zygote.ready {
            self.starts_failed += 1;
        }
        let message = format!(
            "the graph helper `{}` stopped ({status}, {reason}); its own message is in the scheduler's log",
            self.config.python.display()
        );
        warn!(target: "distributed.scheduler", "{message}");
        if self.starts_failed >= STARTS_FAILED_MAX {
            self.fail_waiting(&message);
        }
    }

    async fn message(&mut self, message: &Map) {
        match message.get("op").and_then(Value::as_str) {
            Some("hello") => {
                debug!(target: "distributed.scheduler", "graph helper is ready");
                self.starts_failed = 0;
                let versions = message.get("versions").cloned().unwrap_or(Value::Nil);
                for waiting in self.versions_waiting.drain(..) {
                    let _ = waiting.send(versions.clone());
                }
                self.versions = Some(versions);
                if let Some(zygote) = self.zygote.as_mut() {
                    zygote.ready = true;
                }
            }
            Some("reap") => self.reaped(message),
            Some(_) | None => self.forked(message).await,
        }
    }

    fn reaped(&mut self, message: &Map) {
        let get = |name| message.get(name).and_then(Value::as_i64).unwrap_or(0);
        let pid = u32::try_from(get("pid")).unwrap_or(0);
        let status = describe_wait_status(get("status"));
        self.idle.retain(|connection| connection.pid != pid);
        self.leased.retain(|leased| *leased != pid);
        for index in (0..self.status_waiting.len()).rev() {
            if self.status_waiting[index].0 == pid {
                let (_, waiting) = self.status_waiting.swap_remove(index);
                let _ = waiting.send(status.clone());
            }
        }
        self.statuses.push_back((pid, status));
        if self.statuses.len() > 64 {
            self.statuses.pop_front();
        }
    }

    async fn forked(&mut self, message: &Map) {
        let Some(zygote) = self.zygote.as_mut() else {
            return;
        };
        let id = message
            .get("id")
            .and_then(Value::as_i64)
            .and_then(|id| u64::try_from(id).ok());
        let Some(stream) = id.and_then(|id| zygote.forks.remove(&id)) else {
            return;
        };
        self.forks_under_way = self.forks_under_way.saturating_sub(1);
        let Some(pid) = message
            .get("pid")
            .and_then(Value::as_i64)
            .and_then(|pid| u32::try_from(pid).ok())
        else {
            let text = message
                .get("error")
                .and_then(Value::as_map)
                .and_then(|error| error.get("text"))
                .and_then(Value::as_str)
                .unwrap_or("no reason given");
            error!(target: "distributed.scheduler", "the graph helper cannot fork: {text}");
            return;
        };
        self.idle.push(Connection::new(pid, stream, id));
        // It takes the place of one that lacks what was imported since.
        let imported_by = zygote.imported_by;
        if let Some(stale) = self.idle.iter().position(|idle| idle.lacks(imported_by)) {
            self.idle.remove(stale);
        }
    }

    async fn command(&mut self, command: KeeperCommand) {
        match command {
            // All of them are processes.
            KeeperCommand::Lease { reply, .. } => {
                if self.zygote.is_none() && self.starts_failed >= STARTS_FAILED_MAX {
                    // Another try: the environment may have been mended meanwhile.
                    self.starts_failed = STARTS_FAILED_MAX - 1;
                }
                self.waiting.push_back(reply);
            }
            KeeperCommand::GiveBack(mut connection) => {
                self.leased.retain(|pid| *pid != connection.pid);
                connection.forked_by = None;
                self.idle.push(connection);
            }
            KeeperCommand::Kill { pid } => {
                if self.leased.contains(&pid) {
                    self.leased.retain(|leased| *leased != pid);
                    kill(pid);
                }
            }
            KeeperCommand::ExitStatus { pid, reply } => {
                match self
                    .statuses
                    .iter()
                    .rev()
                    .find(|(reaped, _)| *reaped == pid)
                {
                    Some((_, status)) => {
                        let _ = reply.send(status.clone());
                    }
                    None => self.status_waiting.push((pid, reply)),
                }
                self.status_waiting
                    .retain(|(_, waiting)| !waiting.is_closed());
            }
            KeeperCommand::Setup { uploads } => {
                self.uploads = uploads;
                self.setup_version += 1;
            }
            KeeperCommand::Preimport { modules } => {
                if let Some(zygote) = self.zygote.as_mut().filter(|zygote| zygote.ready) {
                    // Nothing is lost if it does not hear of it.
                    let _ = zygote.preimport(modules).await;
                }
            }
            KeeperCommand::PythonVersions { reply } => match &self.versions {
                Some(versions) => {
                    let _ = reply.send(versions.clone());
                }
                None => self.versions_waiting.push(reply),
            },
        }
    }

    /// Serves waiting requests and keeps enough helpers ready.
    async fn hand_out(&mut self) {
        while let Some(reply) = self.waiting.front() {
            if reply.is_closed() {
                self.waiting.pop_front();
                continue;
            }
            if self.leased.len() >= self.config.helpers_max {
                break;
            }
            let Some(mut connection) = self.idle.pop() else {
                break;
            };
            let set_up = connection.set_up(&self.uploads, self.setup_version, self.config.timeout);
            if set_up.await.is_err() {
                kill(connection.pid);
                continue;
            }
            let Some(reply) = self.waiting.pop_front() else {
                break;
            };
            self.leased.push(connection.pid);
            let pool = Pool {
                commands: self.commands.clone(),
                config: self.config.clone(),
            };
            // A request that went away meanwhile drops the helper, which kills it.
            let _ = reply.send(Ok(Helper::new(connection, pool)));
        }
        let wanted = self.config.helpers_idle.max(
            self.waiting
                .len()
                .min(self.config.helpers_max.saturating_sub(self.leased.len())),
        );
        let imported_by = self.zygote.as_ref().map_or(0, |zygote| zygote.imported_by);
        let fresh = self.idle.iter().filter(|idle| !idle.lacks(imported_by));
        let fresh_count = fresh.count();
        while fresh_count + self.forks_under_way < wanted {
            let Some(zygote) = self.zygote.as_mut().filter(|zygote| zygote.ready) else {
                break;
            };
            match zygote.fork().await {
                Ok(()) => self.forks_under_way += 1,
                Err(error) => {
                    warn!(target: "distributed.scheduler", %error, "cannot ask for a graph helper");
                    break;
                }
            }
        }
    }
}

impl Zygote {
    fn spawn(python: &std::path::Path) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let directory = TempDir::with_prefix("oxidask-graph-helper-")?;
        let child = Command::new(python)
            .arg("-c")
            .arg(SOURCE)
            .arg("0")
            .arg(directory.path())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            // Clients' modules may print while they are imported; a CLI's own output stays clean.
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let (read, control) = UnixStream::from_std(ours)?.into_split();
        let (sender, messages) = mpsc::unbounded_channel();
        tokio::spawn(read_control(read, sender));
        Ok(Self {
            child,
            _directory: directory,
            control,
            messages,
            request_id: 0,
            forks: HashMap::new(),
            imported_by: 0,
            ready: false,
        })
    }

    async fn preimport(&mut self, modules: Value) -> io::Result<()> {
        self.request_id += 1;
        self.imported_by = self.request_id;
        let fields = map! { "id" => self.request_id, "op" => "preimport", "modules" => modules };
        write_message(&mut self.control, fields).await
    }

    /// Asks for a helper; `forked` completes it when the zygote answers.
    async fn fork(&mut self) -> io::Result<()> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        self.request_id += 1;
        let (length, body) = encode_message(map! { "id" => self.request_id, "op" => "fork" })?;
        let message = [&length[..], &body[..]].concat();
        let stream = self.control.as_ref();
        let sent = loop {
            stream.writable().await?;
            let sent = stream.try_io(Interest::WRITABLE, || {
                let descriptors = [theirs.as_fd()];
                let mut space =
                    [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
                let parts = [io::IoSlice::new(&message)];
                Ok(rustix::net::sendmsg(
                    stream,
                    &parts,
                    &mut ancillary,
                    SendFlags::empty(),
                )?)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => break sent?,
            }
        };
        // The descriptor went with the first byte; the rest is ordinary data.
        self.control.write_all(&message[sent..]).await?;
        self.forks
            .insert(self.request_id, UnixStream::from_std(ours)?);
        Ok(())
    }
}

async fn read_control(mut read: OwnedReadHalf, sender: mpsc::UnboundedSender<io::Result<Map>>) {
    loop {
        let message = read_message(&mut read).await;
        let failed = message.is_err();
        if sender.send(message).is_err() || failed {
            return;
        }
    }
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // An error means that it is gone already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// The meaning of a `waitpid` status in words.
fn describe_wait_status(status: i64) -> String {
    let signal = status & 0x7f;
    if signal == 0 {
        format!("exit status {}", (status >> 8) & 0xff)
    } else {
        format!("killed by signal {signal}")
    }
}
