//! Python for a nanny, in a process of its own that is started when somebody asks for
//! it: nanny plugins, `--preload-nanny`, `client.run(nanny=True)`. The other end, and the
//! protocol between them, is `python/oxidask/_nanny_helper.py`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use oxidask_wire::Frames;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use super::LOGGER;

/// Longest JSON object of an answer. Chosen: an environment has no more.
const HEADER_NBYTES_MAX: u32 = 16 << 20;

/// Most frames of an answer. Chosen: far more than any result has.
const FRAME_COUNT_MAX: u32 = 1 << 20;

/// How long plugins may take to be torn down when the nanny closes. Chosen as half of
/// what a cluster gives a nanny.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How the helper is started.
#[derive(Clone, Debug)]
pub(super) struct HelperSettings {
    /// The interpreter.
    pub(super) python: PathBuf,
    /// What the nanny says of itself.
    pub(super) about: Value,
}

/// Asks the helper. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Helper {
    jobs: mpsc::UnboundedSender<Job>,
}

/// What the helper answers.
#[derive(Debug)]
pub(super) struct Reply {
    /// The answer to the request, as it goes on the wire.
    pub(super) frames: Frames,
    /// Variables of the next worker.
    pub(super) variables: Vec<(String, String)>,
    /// Start another worker, for this reason.
    pub(super) restart: Option<String>,
}

/// The channel has no bound of its own: every connection waits for its answer.
#[derive(Debug)]
struct Job {
    kind: Kind,
    reply: oneshot::Sender<Result<Reply, String>>,
}

#[derive(Debug)]
enum Kind {
    /// Only start it.
    Start,
    /// What is true of the nanny now, and a request.
    Request(Value, Frames),
    /// Tear down and end.
    End,
}

impl Helper {
    /// Starts nothing yet.
    pub(super) fn new(settings: HelperSettings) -> Self {
        let (jobs, receiver) = mpsc::unbounded_channel();
        tokio::spawn(run(settings, receiver));
        Self { jobs }
    }

    /// Starts the process, which loads preloads.
    pub(super) async fn start(&self) -> Result<Reply, String> {
        self.job(Kind::Start).await
    }

    /// Answers a request; `about` says what is true of the nanny.
    pub(super) async fn request(&self, about: Value, request: Frames) -> Result<Reply, String> {
        self.job(Kind::Request(about, request)).await
    }

    /// Tears plugins down, if there are any, and ends the process.
    pub(super) async fn end(&self) {
        match tokio::time::timeout(END_TIMEOUT, self.job(Kind::End)).await {
            Ok(Ok(_)) => {}
            Ok(Err(text)) => error!(target: LOGGER, "cannot tear nanny plugins down: {text}"),
            Err(_) => error!(target: LOGGER, "nanny plugins take too long to be torn down"),
        }
    }

    async fn job(&self, kind: Kind) -> Result<Reply, String> {
        let (reply, answer) = oneshot::channel();
        let gone = || "the nanny is closed".to_owned();
        self.jobs.send(Job { kind, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Owns the process.
async fn run(settings: HelperSettings, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut process: Option<Process> = None;
    while let Some(Job { kind, reply }) = jobs.recv().await {
        let (about, request) = match kind {
            Kind::End => {
                // There is nothing to end if nobody has asked for it.
                let ended = match process {
                    Some(process) => process.end().await,
                    None => Ok(Reply::nothing()),
                };
                let _ = reply.send(ended.map_err(|failure| failure.to_string()));
                return;
            }
            Kind::Start => (None, Vec::new()),
            Kind::Request(about, request) => (Some(about), request),
        };
        let answer = async {
            if process.is_none() {
                info!(target: LOGGER, "Starting Python for the nanny");
                let (started, reply) = Process::start(&settings).await?;
                process = Some(started);
                if about.is_none() {
                    return Ok(reply);
                }
            }
            match (&mut process, about) {
                (Some(process), Some(about)) => process.ask(&about, &request).await,
                (_, _) => Ok(Reply::nothing()),
            }
        };
        let answer: Result<Reply, Failure> = answer.await;
        if answer.is_err() {
            // What plugins it had is gone with it.
            process = None;
        }
        // The one who asked may have gone.
        let _ = reply.send(answer.map_err(|failure| failure.to_string()));
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot talk to the nanny's Python process: {0}")]
    Io(#[from] io::Error),
    #[error("the nanny's Python process says what makes no sense: {0}")]
    Malformed(&'static str),
    #[error("{0}")]
    Python(String),
}

#[derive(Debug)]
struct Process {
    line: UnixStream,
    /// Dies with this.
    child: Child,
}

impl Process {
    async fn start(settings: &HelperSettings) -> Result<(Self, Reply), Failure> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Command::new(&settings.python)
            .args(["-m", "oxidask._nanny_helper"])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .kill_on_drop(true)
            .spawn()?;
        let mut process = Self {
            line: UnixStream::from_std(ours)?,
            child,
        };
        let reply = process.ask(&settings.about, &[]).await?;
        Ok((process, reply))
    }

    /// Tears plugins down, and waits for the process to end.
    async fn end(mut self) -> Result<Reply, Failure> {
        let reply = self.ask(&json!({"op": "end"}), &[]).await?;
        drop(self.line);
        self.child.wait().await?;
        Ok(reply)
    }

    async fn ask(&mut self, about: &Value, request: &[Bytes]) -> Result<Reply, Failure> {
        let header = about.to_string();
        let length = u32::try_from(header.len()).map_err(|_| Failure::Malformed("length"))?;
        self.line.write_all(&length.to_le_bytes()).await?;
        self.line.write_all(header.as_bytes()).await?;
        let count = u32::try_from(request.len()).map_err(|_| Failure::Malformed("count"))?;
        self.line.write_all(&count.to_le_bytes()).await?;
        for frame in request {
            let length = frame.len() as u64;
            self.line.write_all(&length.to_le_bytes()).await?;
            self.line.write_all(frame).await?;
        }
        self.answer().await
    }

    async fn answer(&mut self) -> Result<Reply, Failure> {
        let length = self.line.read_u32_le().await?;
        if length > HEADER_NBYTES_MAX {
            return Err(Failure::Malformed("the answer's header is too long"));
        }
        let header = self.bytes(u64::from(length)).await?;
        let count = self.line.read_u32_le().await?;
        if count > FRAME_COUNT_MAX {
            return Err(Failure::Malformed("the answer has too many frames"));
        }
        let mut frames = Vec::new();
        for _ in 0..count {
            let length = self.line.read_u64_le().await?;
            frames.push(self.bytes(length).await?.into());
        }
        reply(&header, frames)
    }

    /// Memory grows with what comes, not with what is promised.
    async fn bytes(&mut self, length: u64) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        (&mut self.line)
            .take(length)
            .read_to_end(&mut bytes)
            .await?;
        if bytes.len() as u64 != length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(bytes)
    }
}

impl Reply {
    fn nothing() -> Self {
        Self {
            frames: Vec::new(),
            variables: Vec::new(),
            restart: None,
        }
    }
}

fn reply(header: &[u8], frames: Frames) -> Result<Reply, Failure> {
    let header: Value = serde_json::from_slice(header)
        .map_err(|_| Failure::Malformed("the answer's header is no JSON"))?;
    if let Some(text) = header["error"].as_str() {
        return Err(Failure::Python(text.to_owned()));
    }
    let variables = header["variables"].as_object();
    let variables = variables.ok_or(Failure::Malformed("the answer has no `variables`"))?;
    let variables = variables.iter().filter_map(|(name, value)| {
        let value = value.as_str()?.to_owned();
        Some((name.clone(), value))
    });
    Ok(Reply {
        frames,
        variables: variables.collect(),
        restart: header["restart"].as_str().map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let header = br#"{"variables": {"A": "b"}, "restart": "plugin"}"#;
        let read = reply(header, vec![Bytes::from_static(b"x")]).unwrap();
        assert_eq!(read.variables, [("A".to_owned(), "b".to_owned())]);
        assert_eq!(read.restart.as_deref(), Some("plugin"));
        assert_eq!(read.frames, [Bytes::from_static(b"x")]);
        let failed = reply(br#"{"error": "ImportError: x"}"#, Vec::new());
        assert_eq!(failed.unwrap_err().to_string(), "ImportError: x");
        for wrong in ["", "[]", "{}", r#"{"variables": 1}"#] {
            assert!(reply(wrong.as_bytes(), Vec::new()).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn an_interpreter_that_is_not_there_is_an_error_each_time() {
        let helper = Helper::new(HelperSettings {
            python: "/nonexistent/python".into(),
            about: json!({}),
        });
        assert!(helper.start().await.is_err());
        let error = helper.request(json!({}), Vec::new()).await.unwrap_err();
        assert!(error.contains("cannot talk"), "{error}");
        // There is nothing to tear down.
        helper.end().await;
        assert!(helper.start().await.unwrap_err().contains("closed"));
    }

    #[tokio::test]
    async fn a_program_that_says_nothing_is_an_error() {
        let helper = Helper::new(HelperSettings {
            python: "true".into(),
            about: json!({}),
        });
        assert!(helper.start().await.is_err());
    }
}
