//! The line between a nanny and its worker: a socket that the worker finds at its
//! standard input. One JSON object a line, in both directions.
//!
//! ```text
//!  worker ──► nanny   {"op": "running", "address": …, "local_directory": …}
//!                     {"op": "failed", "text": …, "timed_out": …}
//!                     {"op": "closed"}
//!  nanny ──► worker   {"op": "stop", "reason": …, "executor_wait": …, "timeout": …}
//! ```
//!
//! When either end is gone the other one knows it, however it went.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// What a nanny asks of its worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Close.
    Stop {
        /// Why.
        reason: String,
        /// Wait for running tasks.
        executor_wait: bool,
    },
    /// The nanny is gone: nobody asks any more.
    Abandoned,
}

/// What a worker tells its nanny.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Report {
    Running { address: String, directory: PathBuf },
    Failed { text: String, timed_out: bool },
    Closed,
}

/// The worker's end of the line.
#[derive(Debug)]
pub struct Control {
    orders: Lines<BufReader<OwnedReadHalf>>,
    reports: OwnedWriteHalf,
}

impl Control {
    /// Takes the line from standard input, which is empty from then on.
    ///
    /// # Errors
    /// Standard input is no socket: no nanny has started this process.
    pub fn take() -> io::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        let stream = std::os::unix::net::UnixStream::from(stdin);
        // Fails if it is no socket.
        stream.peer_addr()?;
        stream.set_nonblocking(true)?;
        let (reader, reports) = UnixStream::from_std(stream)?.into_split();
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Ok(Self {
            orders: BufReader::new(reader).lines(),
            reports,
        })
    }

    /// The worker has registered.
    ///
    /// # Errors
    /// The nanny is gone.
    pub async fn running(&mut self, address: &str, directory: &Path) -> io::Result<()> {
        let directory = directory.to_string_lossy();
        self.report(&json!({"op": "running", "address": address, "local_directory": directory}))
            .await
    }

    /// The worker could not be started.
    ///
    /// # Errors
    /// The nanny is gone.
    pub async fn failed(&mut self, text: &str, timed_out: bool) -> io::Result<()> {
        self.report(&json!({"op": "failed", "text": text, "timed_out": timed_out}))
            .await
    }

    /// The worker has closed, and this process ends.
    ///
    /// # Errors
    /// The nanny is gone.
    pub async fn closed(&mut self) -> io::Result<()> {
        self.report(&json!({"op": "closed"})).await
    }

    /// The next order. Cancel safe.
    pub async fn order(&mut self) -> Order {
        loop {
            let Ok(Some(line)) = self.orders.next_line().await else {
                return Order::Abandoned;
            };
            if let Some(order) = order(&line) {
                return order;
            }
        }
    }

    async fn report(&mut self, report: &Value) -> io::Result<()> {
        self.reports
            .write_all(format!("{report}\n").as_bytes())
            .await
    }
}

/// Ends this process at once and for good, whatever its threads are doing.
pub fn end_process() {
    // Nobody would be there to hear of a failure.
    let _ = kill_process(getpid(), Signal::KILL);
}

/// The line that asks a worker to close. `timeout` is for those who read it.
pub(super) fn stop(reason: &str, executor_wait: bool, timeout: f64) -> String {
    let order = json!({
        "op": "stop",
        "reason": reason,
        "executor_wait": executor_wait,
        "timeout": timeout,
    });
    format!("{order}\n")
}

fn order(line: &str) -> Option<Order> {
    let order: Value = serde_json::from_str(line).ok()?;
    (order["op"] == "stop").then(|| Order::Stop {
        reason: order["reason"].as_str().unwrap_or("nanny").to_owned(),
        executor_wait: order["executor_wait"].as_bool().unwrap_or(true),
    })
}

/// What a line of the worker says; `None` for one that makes no sense.
pub(super) fn report(line: &str) -> Option<Report> {
    let report: Value = serde_json::from_str(line).ok()?;
    let text = |name: &str| Some(report[name].as_str()?.to_owned());
    match report["op"].as_str()? {
        "running" => Some(Report::Running {
            address: text("address")?,
            directory: text("local_directory")?.into(),
        }),
        "failed" => Some(Report::Failed {
            text: text("text")?,
            timed_out: report["timed_out"].as_bool().unwrap_or(false),
        }),
        "closed" => Some(Report::Closed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let stopped = order(stop("signal-15", false, 4.0).trim_end());
        let expected = Order::Stop {
            reason: "signal-15".to_owned(),
            executor_wait: false,
        };
        assert_eq!(stopped, Some(expected));
        let running = r#"{"op": "running", "address": "tcp://a", "local_directory": "/b"}"#;
        let expected = Report::Running {
            address: "tcp://a".to_owned(),
            directory: "/b".into(),
        };
        assert_eq!(report(running), Some(expected));
        let failed = r#"{"op": "failed", "text": "no", "timed_out": true}"#;
        let expected = Report::Failed {
            text: "no".to_owned(),
            timed_out: true,
        };
        assert_eq!(report(failed), Some(expected));
        assert_eq!(report(r#"{"op": "closed"}"#), Some(Report::Closed));
        for wrong in ["", "[]", r#"{"op": "running"}"#, r#"{"op": "other"}"#] {
            assert_eq!(report(wrong), None, "{wrong}");
            assert_eq!(order(wrong), None, "{wrong}");
        }
    }
}
