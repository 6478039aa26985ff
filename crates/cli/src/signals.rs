//! SIGINT and SIGTERM.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that close a process.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// One of them.
pub(crate) struct Received {
    pub(crate) name: &'static str,
    pub(crate) number: i32,
}

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.interrupt.recv() => Received {
                name: "SIGINT",
                number: SignalKind::interrupt().as_raw_value(),
            },
            _ = self.terminate.recv() => Received {
                name: "SIGTERM",
                number: SignalKind::terminate().as_raw_value(),
            },
        }
    }
}
