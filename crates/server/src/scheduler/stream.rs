//! The sending end of a stream with the task that feeds its socket.

use std::time::Duration;

use oxidask_comm::{BatchedSender, Writer};
use oxidask_wire::BatchWriter;
use tokio::task::JoinHandle;
use tracing::debug;

/// A stream to a worker, client or observer. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Stream(BatchedSender);

/// The task that writes a stream; ends when the stream does.
#[derive(Debug)]
pub(crate) struct Sending(JoinHandle<()>);

impl Stream {
    /// Starts to send what is pushed, at most once per `interval`; a peer for
    /// which more than `nbytes_max` bytes wait is cut off.
    pub(super) fn start(writer: Writer, interval: Duration, nbytes_max: usize) -> (Self, Sending) {
        let (sender, task) = BatchedSender::new(writer, interval, nbytes_max);
        let sending = tokio::spawn(async move {
            if let Err(error) = task.run().await {
                debug!(target: "distributed.core", %error, "stream ended");
            }
        });
        (Self(sender), Sending(sending))
    }

    /// Appends messages. False when the stream has ended: the reader of the
    /// connection notices and cleans up.
    pub(super) fn push<R>(&self, write: impl FnOnce(&mut BatchWriter) -> R) -> bool {
        self.0.send_with(write).is_ok()
    }

    /// Sends nothing for `time`.
    pub(super) fn hold(&self, time: Duration) {
        self.0.hold(time);
    }

    /// Waits until what is queued now is written, or can no longer be.
    pub(super) async fn flushed(&self) {
        self.0.flushed().await;
    }

    /// Sends what is queued, then closes.
    pub(super) fn close(&self) {
        self.0.close();
    }

    /// Closes at once.
    pub(super) fn abort(&self) {
        self.0.abort();
    }
}

impl Sending {
    /// Waits until the socket is closed. Cancel-safe.
    pub(super) async fn ended(&mut self) {
        if let Err(error) = (&mut self.0).await
            && error.is_panic()
        {
            tracing::error!(target: "distributed.core", %error, "a stream's task panicked");
        }
    }
}
