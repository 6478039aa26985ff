//! Python beside the scheduler: helper processes that unpickle what clients send.
//!
//! ```text
//!  update-graph ──► expand ──► structure ──► order (native) ──► pack ──► Graph
//!                   (helper)                                   (helper)
//! ```
//!
//! A scheduler that lives in its user's own Python process has its helpers there as well,
//! as threads: see [`Threads`].
//!
//! The scheduler process never unpickles. A crash, an endless loop or a hostile
//! pickle ends one helper and is an error for one client. The protocol is
//! described in `docs/graph-helper.md`.

mod expand;
mod process;
mod threads;

use std::time::Duration;

use bytes::Bytes;
use oxidask_scheduler::RunSpec;
use oxidask_wire::{Map, Value, map};

pub use expand::{Update, expand};
pub use process::{Config, Helper, Pool};
pub(crate) use process::{read_message, write_message};
pub use threads::Threads;

/// Why a helper gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Python raised; the exception is data for the client.
    #[error("{}", .0.text)]
    Raised(Box<Raised>),
    /// The helper process ended while it worked on the request.
    #[error("the graph helper (pid {pid}) ended while it worked on `{op}`: {status}")]
    Crashed {
        /// Operation it worked on.
        op: String,
        /// Its process id.
        pid: u32,
        /// Exit status or signal.
        status: String,
    },
    /// The helper took longer than `oxidask.graph-helper.timeout` and was killed.
    #[error(
        "the graph helper took longer than {timeout:?} for `{op}` and was stopped; raise \
         `oxidask.graph-helper.timeout` if the graph needs that long"
    )]
    TimedOut {
        /// Operation it worked on.
        op: String,
        /// The limit.
        timeout: Duration,
    },
    /// No helper can be started.
    #[error("{0}")]
    NotStarted(String),
    /// The answer does not follow the protocol.
    #[error("the graph helper answered `{op}` without a usable `{field}`")]
    Answer {
        /// Operation asked for.
        op: &'static str,
        /// Field that is missing or malformed.
        field: &'static str,
    },
    /// A field of `update-graph` that the helper does not read is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The graph's dependencies form a cycle.
    #[error("{0}")]
    Cycle(String),
    /// The scheduler is shutting down.
    #[error("the scheduler is shutting down")]
    ShutDown,
}

/// A Python exception, as distributed itself would send it.
#[derive(Clone, Debug, Default)]
pub struct Raised {
    /// Pickled exception.
    pub exception: Bytes,
    /// Pickled traceback, if it could be pickled.
    pub traceback: Option<Bytes>,
    /// `repr` of the exception.
    pub text: String,
    /// The formatted traceback.
    pub traceback_text: String,
}

impl Raised {
    fn from_answer(raised: &Map) -> Self {
        let text = |name| {
            raised
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        Self {
            exception: raised
                .get("exception")
                .and_then(Value::as_bin)
                .cloned()
                .unwrap_or_default(),
            traceback: raised.get("traceback").and_then(Value::as_bin).cloned(),
            text: text("text"),
            traceback_text: text("traceback_text"),
        }
    }
}

impl Error {
    /// The exception that a client should see.
    pub fn into_raised(self) -> Raised {
        match self {
            Self::Raised(raised) => *raised,
            Self::Crashed { .. }
            | Self::TimedOut { .. }
            | Self::NotStarted(_)
            | Self::Answer { .. }
            | Self::Invalid(_)
            | Self::Cycle(_)
            | Self::ShutDown => {
                let text = self.to_string();
                let failure = oxidask_scheduler::Failure::builtin("RuntimeError", &text);
                Raised {
                    exception: failure.exception,
                    traceback: None,
                    text: failure.text,
                    traceback_text: String::new(),
                }
            }
        }
    }
}

/// Turns a packed bundle into one `run_spec` per task.
///
/// # Errors
///
/// See [`Error`].
pub async fn explode(pool: &Pool, bundle: Bytes) -> Result<Vec<RunSpec>, Error> {
    let mut answer = ask(pool, "explode", map! { "bundle" => bundle }).await?;
    let specs = answer
        .take("specs")
        .and_then(Value::into_array)
        .ok_or(Error::Answer {
            op: "explode",
            field: "specs",
        })?;
    specs
        .iter()
        .map(|spec| {
            expand::pickle_spec(spec).ok_or(Error::Answer {
                op: "explode",
                field: "specs",
            })
        })
        .collect()
}

/// One operation on any helper.
///
/// # Errors
///
/// The exception that the caller of the scheduler should see.
pub async fn request(
    pool: &Pool,
    op: &str,
    fields: Map,
) -> Result<Map, oxidask_scheduler::Failure> {
    ask(pool, op, fields).await.map_err(failure)
}

/// Leases a helper for one operation. One that raised has done its work and
/// serves on; any other failure has cost it its life already.
async fn ask(pool: &Pool, op: &str, fields: Map) -> Result<Map, Error> {
    let mut helper = pool.lease().await?;
    let answer = helper.request(op, fields).await;
    if matches!(answer, Ok(_) | Err(Error::Raised(_))) {
        helper.give_back(false).await;
    }
    answer
}

/// An error of the helper as the exception of an RPC reply.
pub fn failure(error: Error) -> oxidask_scheduler::Failure {
    let raised = error.into_raised();
    oxidask_scheduler::Failure {
        exception: raised.exception,
        text: raised.text,
    }
}
