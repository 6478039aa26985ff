//! The worker's process: started, listened to, signalled and reaped by one task.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::LOGGER;
use super::control::{self, Report};
use super::death::Exit;
use crate::system;

/// Last lines of a worker's log that are told when it dies.
const LINE_COUNT_MAX: usize = 20;

/// Longer lines are cut when they are told; they are passed on whole.
const LINE_LENGTH_MAX: usize = 1000;

/// How long the last words of a dead worker may take, if a process of its own still
/// holds the line.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(100);

/// Bytes read of a log at a time.
const READ_NBYTES: usize = 16 << 10;

/// How a worker is started.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    /// Program and arguments.
    pub(super) command: Vec<OsString>,
    /// Variables beside the nanny's own.
    pub(super) environment: Vec<(String, String)>,
}

/// A worker's process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    orders: mpsc::UnboundedSender<Order>,
}

/// News of a process.
#[derive(Debug)]
pub(super) enum News {
    Said(Report),
    /// The last one.
    Exited(Obituary),
}

/// A process that is gone.
#[derive(Debug)]
pub(super) struct Obituary {
    pub(super) pid: u32,
    pub(super) exit: Exit,
    /// The last lines that it logged, oldest first.
    pub(super) log: Vec<String>,
    /// Processes of this cgroup that the kernel killed for their memory meanwhile.
    pub(super) oom_kill_count: Option<u64>,
}

#[derive(Debug)]
enum Order {
    Say(String),
    Terminate,
    Kill,
}

impl Process {
    /// Starts a process whose news go to `tell`; it dies with this runtime.
    ///
    /// # Errors
    /// There is no such program, or the system refuses.
    pub(super) fn spawn(launch: &Launch, tell: impl Fn(News) + Send + 'static) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let line = UnixStream::from_std(ours)?;
        let (program, arguments) = launch
            .command
            .split_first()
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut child = Command::new(program)
            .args(arguments)
            .envs(launch.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().ok_or(io::ErrorKind::NotFound)?;
        let stderr = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (orders, receiver) = mpsc::unbounded_channel();
        let watch = Watch {
            pid,
            child,
            log: Log {
                stderr,
                last: Tail::default(),
            },
        };
        tokio::spawn(watch.run(line, receiver, tell));
        Ok(Self { pid, orders })
    }

    /// Asks the worker to close.
    pub(super) fn stop(&self, reason: &str, timeout: Duration) {
        let line = control::stop(reason, true, timeout.as_secs_f64());
        self.order(Order::Say(line));
    }

    /// SIGTERM, which ends a worker at once.
    pub(super) fn terminate(&self) {
        self.order(Order::Terminate);
    }

    /// SIGKILL.
    pub(super) fn kill(&self) {
        self.order(Order::Kill);
    }

    fn order(&self, order: Order) {
        // A process that is gone needs no orders.
        let _ = self.orders.send(order);
    }
}

struct Watch {
    pid: u32,
    child: Child,
    log: Log,
}

impl Watch {
    async fn run(
        mut self,
        line: UnixStream,
        mut orders: mpsc::UnboundedReceiver<Order>,
        tell: impl Fn(News),
    ) {
        let oom_kill_count = system::oom_kill_count(std::process::id());
        let (reader, mut writer) = line.into_split();
        let mut reports = BufReader::new(reader).lines();
        let (mut is_line_open, mut is_log_open) = (true, true);
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                report = reports.next_line(), if is_line_open => match report {
                    Ok(Some(line)) => said(&line, &tell),
                    Ok(None) | Err(_) => is_line_open = false,
                },
                read = self.log.forward(), if is_log_open => is_log_open = read,
                Some(order) = orders.recv() => match order {
                    Order::Say(line) => {
                        if let Err(error) = writer.write_all(line.as_bytes()).await {
                            debug!(target: LOGGER, %error, "the worker does not listen");
                        }
                    }
                    // Both fail only for a process that has gone a moment ago.
                    Order::Terminate => {
                        if let Some(pid) = self.child.id() {
                            let _ = signal(pid, Signal::TERM);
                        }
                    }
                    Order::Kill => {
                        let _ = self.child.start_kill();
                    }
                },
            }
        };
        while let Ok(Ok(Some(line))) =
            tokio::time::timeout(LAST_WORDS_TIMEOUT, reports.next_line()).await
        {
            said(&line, &tell);
        }
        self.log.finish();
        let exit = match status {
            Ok(status) => Exit::of(status),
            Err(error) => {
                warn!(target: LOGGER, %error, "cannot learn how the worker's process ended");
                Exit::Signal(0)
            }
        };
        let now = system::oom_kill_count(std::process::id());
        tell(News::Exited(Obituary {
            pid: self.pid,
            exit,
            log: self.log.last.lines(),
            oom_kill_count: now
                .zip(oom_kill_count)
                .map(|(now, before)| now.saturating_sub(before)),
        }));
        // What processes of the worker's own still write.
        while is_log_open && self.log.forward().await {}
    }
}

fn said(line: &str, tell: &impl Fn(News)) {
    match control::report(line) {
        Some(report) => tell(News::Said(report)),
        None => warn!(target: LOGGER, "the worker says what makes no sense: {line}"),
    }
}

/// `None`: there is no such process.
fn signal(pid: u32, signal: Signal) -> Option<()> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    kill_process(pid, signal).ok()
}

/// What a worker writes to stderr: passed on, and its end kept.
struct Log {
    stderr: ChildStderr,
    last: Tail,
}

impl Log {
    /// Passes on what is there, or waits for something. False at the end. Cancel safe.
    async fn forward(&mut self) -> bool {
        let mut buffer = vec![0; READ_NBYTES];
        match self.stderr.read(&mut buffer).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.pass_on(&buffer[..count]);
                true
            }
        }
    }

    /// Passes on what a dead process has left in the pipe, without waiting for others
    /// that hold it.
    fn finish(&mut self) {
        let mut buffer = vec![0; READ_NBYTES];
        // The descriptor does not block. The runtime may not know yet that there is
        // something, so it is not asked.
        while let Ok(count @ 1..) = rustix::io::read(&self.stderr, &mut buffer[..]) {
            self.pass_on(&buffer[..count]);
        }
    }

    fn pass_on(&mut self, bytes: &[u8]) {
        // There may be nobody who reads it.
        let _ = io::stderr().write_all(bytes);
        self.last.push(bytes);
    }
}

/// The last lines of a text that comes in pieces.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    unfinished: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let mut pieces = bytes.split(|&byte| byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            let room = LINE_LENGTH_MAX.saturating_sub(self.unfinished.len());
            let kept = &piece[..piece.len().min(room)];
            self.unfinished.extend_from_slice(kept);
            if pieces.peek().is_some() {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.unfinished);
        if self.lines.len() == LINE_COUNT_MAX {
            self.lines.pop_front();
        }
        let line = String::from_utf8_lossy(&line);
        self.lines.push_back(line.trim_end().to_owned());
    }

    fn lines(&mut self) -> Vec<String> {
        if !self.unfinished.is_empty() {
            self.end_line();
        }
        self.lines.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(script: &str, orders: impl FnOnce(&Process)) -> (Vec<Report>, Obituary) {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let launch = Launch {
            command: ["sh", "-c", script].map(OsString::from).to_vec(),
            environment: vec![("NAME".to_owned(), "value".to_owned())],
        };
        let process = Process::spawn(&launch, move |news| {
            let _ = sender.send(news);
        });
        let process = process.unwrap();
        orders(&process);
        let mut reports = Vec::new();
        loop {
            match receiver.recv().await.unwrap() {
                News::Said(report) => reports.push(report),
                News::Exited(obituary) => {
                    assert_eq!(obituary.pid, process.pid);
                    return (reports, obituary);
                }
            }
        }
    }

    #[tokio::test]
    async fn words_and_log_of_a_process() {
        let script = r#"echo '{"op": "failed", "text": "'$NAME'"}' >&0
                        for i in $(seq 30); do echo line $i >&2; done
                        printf unfinished >&2; exit 3"#;
        let (reports, obituary) = run(script, |_| {}).await;
        let failed = Report::Failed {
            text: "value".to_owned(),
            timed_out: false,
        };
        assert_eq!(reports, [failed]);
        assert_eq!(obituary.exit, Exit::Code(3));
        assert_eq!(obituary.log.len(), LINE_COUNT_MAX);
        assert_eq!(obituary.log[18..], ["line 30", "unfinished"]);
    }

    #[tokio::test]
    async fn orders() {
        let (_, obituary) = run("read line; exit 7", |process| {
            process.stop("why", Duration::from_secs(1));
        })
        .await;
        assert_eq!(obituary.exit, Exit::Code(7));
        let (_, obituary) = run("exec sleep 600", Process::terminate).await;
        assert_eq!(obituary.exit, Exit::Signal(15));
        let (_, obituary) = run("exec sleep 600", Process::kill).await;
        assert_eq!(obituary.exit, Exit::Signal(9));
    }

    #[tokio::test]
    async fn a_grandchild_that_holds_the_log_does_not_delay_the_news() {
        let (_, obituary) = run("sleep 600 & echo $! >&2; exit 0", |_| {}).await;
        assert_eq!(obituary.exit, Exit::Code(0));
        let pid = obituary.log[0].parse().unwrap();
        signal(pid, Signal::TERM).unwrap();
    }

    #[tokio::test]
    async fn a_program_that_is_not_there() {
        let launch = Launch {
            command: vec!["/nonexistent/program".into()],
            environment: Vec::new(),
        };
        assert!(Process::spawn(&launch, |_| {}).is_err());
    }

    #[test]
    fn long_lines_are_cut() {
        let mut tail = Tail::default();
        tail.push(&[b'x'; 800]);
        tail.push(&[b'y'; 800]);
        tail.push(b"z\nnext");
        let lines = tail.lines();
        assert_eq!(lines[0].len(), LINE_LENGTH_MAX);
        assert_eq!(lines[1], "next");
    }
}
