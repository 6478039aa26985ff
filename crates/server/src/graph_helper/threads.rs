//! Helpers that are threads of this process: it is the user's own, which made the graphs
//! and trusts them. What needs a process of its own, the plug-in host, still gets one, by
//! a zygote that is started when it is first asked for.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use oxidask_wire::{Map, Value};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Error;
use super::process::{Config, Connection, Helper, KeeperCommand, Pool};

/// Starts helpers in the interpreter of this process.
pub trait Threads: Debug + Send + Sync {
    /// Starts a thread that serves this stream until it ends, as a helper does, and
    /// the operation `versions` besides. What clients upload goes to `directory`.
    ///
    /// Called on a thread that may wait for the interpreter.
    ///
    /// # Errors
    /// The interpreter is gone or has no more threads.
    fn start(&self, stream: StdUnixStream, directory: &Path) -> io::Result<()>;
}

/// Owns all threads that nobody uses.
pub(super) struct Keeper {
    threads: Arc<dyn Threads>,
    config: Arc<Config>,
    receiver: mpsc::UnboundedReceiver<KeeperCommand>,
    commands: mpsc::WeakUnboundedSender<KeeperCommand>,
    directory: Option<Arc<TempDir>>,
    starting: JoinSet<io::Result<StdUnixStream>>,
    idle: Vec<Connection>,
    leased_count: usize,
    waiting: VecDeque<oneshot::Sender<Result<Helper, Error>>>,
    uploads: Vec<(String, Bytes)>,
    setup_version: u64,
    /// Threads have numbers from the upper end, where no process has its own.
    last_number: u32,
    processes: Option<Pool>,
    /// The last start failed: the next one is for a request.
    is_failing: bool,
}

/// The least number of a thread.
const THREADS_FROM: u32 = 1 << 31;

impl Keeper {
    pub(super) fn new(
        threads: Arc<dyn Threads>,
        config: Arc<Config>,
        receiver: mpsc::UnboundedReceiver<KeeperCommand>,
        commands: mpsc::WeakUnboundedSender<KeeperCommand>,
    ) -> Self {
        Self {
            threads,
            config,
            receiver,
            commands,
            directory: None,
            starting: JoinSet::new(),
            idle: Vec::new(),
            leased_count: 0,
            waiting: VecDeque::new(),
            uploads: Vec::new(),
            setup_version: 0,
            last_number: THREADS_FROM,
            processes: None,
            is_failing: false,
        }
    }

    /// Ends when nobody has the pool any more; so do the threads, whose streams go.
    pub(super) async fn run(mut self) {
        loop {
            self.hand_out().await;
            tokio::select! {
                command = self.receiver.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some(started) = self.starting.join_next() => {
                    let started = started.unwrap_or_else(|error| Err(io::Error::other(error)));
                    let connection = started.and_then(UnixStream::from_std);
                    self.is_failing = connection.is_err();
                    match connection {
                        Ok(stream) => {
                            self.last_number = self.last_number.wrapping_add(1).max(THREADS_FROM);
                            self.idle.push(Connection::new(self.last_number, stream, None));
                        }
                        Err(error) => {
                            let text = format!("cannot start a thread for graphs: {error}");
                            for waiting in self.waiting.drain(..) {
                                let _ = waiting.send(Err(Error::NotStarted(text.clone())));
                            }
                        }
                    }
                }
            }
        }
    }

    fn command(&mut self, command: KeeperCommand) {
        match command {
            KeeperCommand::Lease { reply, is_process } => {
                if is_process {
                    // An error: nobody waits any more.
                    let _ = self
                        .processes()
                        .send(KeeperCommand::Lease { reply, is_process });
                } else {
                    self.waiting.push_back(reply);
                }
            }
            KeeperCommand::GiveBack(connection) => {
                self.leased_count = self.leased_count.saturating_sub(1);
                self.idle.push(connection);
            }
            // Its stream has ended, which ends the thread once it is done.
            KeeperCommand::Kill { pid } if pid >= THREADS_FROM => {
                self.leased_count = self.leased_count.saturating_sub(1);
            }
            KeeperCommand::ExitStatus { pid, reply } if pid >= THREADS_FROM => {
                let _ = reply.send("the thread has ended".to_owned());
            }
            KeeperCommand::Setup { uploads } => {
                self.setup_version += 1;
                self.uploads.clone_from(&uploads);
                if let Some(processes) = &self.processes {
                    processes.set_uploads(uploads);
                }
            }
            // This process imports what it needs once.
            KeeperCommand::Preimport { .. } => {}
            KeeperCommand::PythonVersions { reply } => {
                if let Some(pool) = Pool::of_keeper(&self.commands, &self.config) {
                    tokio::spawn(async move {
                        // A reply that is dropped is one that says nothing.
                        let Ok(mut helper) = pool.lease().await else {
                            return;
                        };
                        let Ok(mut answer) = helper.request("versions", Map::default()).await
                        else {
                            return;
                        };
                        helper.give_back(false).await;
                        let _ = reply.send(answer.take("versions").unwrap_or(Value::Nil));
                    });
                }
            }
            command @ (KeeperCommand::Kill { .. } | KeeperCommand::ExitStatus { .. }) => {
                let _ = self.processes().send(command);
            }
        }
    }

    /// Helpers that are processes.
    fn processes(&mut self) -> &Pool {
        self.processes.get_or_insert_with(|| {
            let pool = Pool::start(Config {
                threads: None,
                ..(*self.config).clone()
            });
            pool.set_uploads(self.uploads.clone());
            pool
        })
    }

    /// Serves waiting requests, and starts threads for those that are left.
    async fn hand_out(&mut self) {
        while let Some(reply) = self.waiting.front() {
            if reply.is_closed() {
                self.waiting.pop_front();
                continue;
            }
            if self.leased_count >= self.config.helpers_max {
                break;
            }
            let Some(mut connection) = self.idle.pop() else {
                break;
            };
            let set_up = connection.set_up(&self.uploads, self.setup_version, self.config.timeout);
            if set_up.await.is_err() {
                continue;
            }
            let Some(pool) = Pool::of_keeper(&self.commands, &self.config) else {
                return;
            };
            let Some(reply) = self.waiting.pop_front() else {
                break;
            };
            self.leased_count += 1;
            // A request that went away meanwhile drops the helper.
            let _ = reply.send(Ok(Helper::new(connection, pool)));
        }
        let room = self.config.helpers_max.saturating_sub(self.leased_count);
        let kept = if self.is_failing {
            0
        } else {
            self.config.helpers_idle
        };
        let wanted = kept.max(self.waiting.len().min(room));
        while self.idle.len() + self.starting.len() < wanted {
            let directory = match &self.directory {
                Some(directory) => directory.clone(),
                None => match TempDir::with_prefix("oxidask-graph-helper-") {
                    Ok(directory) => self.directory.insert(Arc::new(directory)).clone(),
                    Err(error) => {
                        self.starting.spawn(async { Err(error) });
                        return;
                    }
                },
            };
            let threads = self.threads.clone();
            self.starting.spawn_blocking(move || {
                let (ours, theirs) = StdUnixStream::pair()?;
                ours.set_nonblocking(true)?;
                threads.start(theirs, directory.path())?;
                Ok(ours)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::path::PathBuf;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    /// Threads that wait for the end of their stream.
    #[derive(Debug)]
    struct Toy {
        fails: AtomicBool,
        directories: Mutex<Vec<PathBuf>>,
        ended: mpsc::UnboundedSender<()>,
    }

    impl Threads for Toy {
        fn start(&self, mut stream: StdUnixStream, directory: &Path) -> io::Result<()> {
            if self.fails.load(Ordering::SeqCst) {
                return Err(io::Error::other("no more threads"));
            }
            self.directories.lock().unwrap().push(directory.to_owned());
            let ended = self.ended.clone();
            std::thread::spawn(move || {
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
                ended.send(()).unwrap();
            });
            Ok(())
        }
    }

    #[tokio::test]
    async fn threads_are_started_used_again_and_ended() {
        let (ended, mut ends) = mpsc::unbounded_channel();
        let toy = Arc::new(Toy {
            fails: AtomicBool::new(true),
            directories: Mutex::default(),
            ended,
        });
        let pool = Pool::start(Config {
            python: "no-such-interpreter".into(),
            timeout: Duration::from_secs(60),
            helpers_max: 2,
            helpers_idle: 1,
            growth_nbytes_max: 0,
            threads: Some(toy.clone()),
        });
        let error = pool.lease().await.unwrap_err().to_string();
        assert_eq!(error, "cannot start a thread for graphs: no more threads");
        toy.fails.store(false, Ordering::SeqCst);
        let helper = pool.lease().await.unwrap();
        let number = helper.pid();
        assert!(number >= THREADS_FROM);
        // Nothing but threads ends so; what is dropped ends its thread.
        assert_eq!(pool.exit_status(number).await, "the thread has ended");
        drop(helper);
        ends.recv().await.unwrap();
        let (one, other) = (pool.lease().await.unwrap(), pool.lease().await.unwrap());
        one.give_back(false).await;
        let again = pool.lease().await.unwrap();
        let error = pool.lease_process().await.unwrap_err().to_string();
        assert!(error.contains("no-such-interpreter"), "{error}");
        let directory = toy.directories.lock().unwrap()[0].clone();
        assert!(directory.is_dir());
        let started_count = toy.directories.lock().unwrap().len();
        // The one that was dropped, two at work, and one that is kept ready.
        assert!(started_count <= 4, "{started_count}");
        drop((again, other, pool, toy));
        // Every thread has a sender.
        while ends.recv().await.is_some() {}
    }
}
