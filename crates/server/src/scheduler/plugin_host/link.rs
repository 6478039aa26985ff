//! The sending end of the host's socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use oxidask_wire::Map;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tracing::debug;

use super::super::shell::ShellHandle;
use super::mirror;
use crate::graph_helper::write_message;

/// Messages on their way to the host, in order. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::scheduler) struct Outgoing {
    sender: mpsc::UnboundedSender<(Map, usize)>,
    /// Bytes of changes that wait; requests are not counted, their callers wait.
    waiting_nbytes: Arc<AtomicUsize>,
}

impl Outgoing {
    /// Starts to write to a host; ends with the host or the last sender.
    pub(super) fn start(write: OwnedWriteHalf, shell: ShellHandle) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let waiting_nbytes = Arc::new(AtomicUsize::new(0));
        tokio::spawn(write_all(write, receiver, waiting_nbytes.clone(), shell));
        Self {
            sender,
            waiting_nbytes,
        }
    }

    pub(super) fn send(&self, message: Map) {
        // A host that has ended is noticed by its reader.
        let _ = self.sender.send((message, 0));
    }

    /// Sends changes, which count against the bound on what may wait.
    pub(super) fn send_changes(&self, op: &str, log: Vec<u8>) {
        let nbytes = log.len();
        self.waiting_nbytes.fetch_add(nbytes, Ordering::Relaxed);
        let message = oxidask_wire::map! {
            "id" => 0, "op" => op, "log" => bytes::Bytes::from(log),
        };
        let _ = self.sender.send((message, nbytes));
    }

    pub(super) fn waiting_nbytes(&self) -> usize {
        self.waiting_nbytes.load(Ordering::Relaxed)
    }
}

async fn write_all(
    mut write: OwnedWriteHalf,
    mut receiver: mpsc::UnboundedReceiver<(Map, usize)>,
    waiting_nbytes: Arc<AtomicUsize>,
    shell: ShellHandle,
) {
    while let Some((message, nbytes)) = receiver.recv().await {
        if let Err(error) = write_message(&mut write, message).await {
            debug!(target: "distributed.scheduler", %error, "the plug-in host does not read any more");
            return;
        }
        let before = waiting_nbytes.fetch_sub(nbytes, Ordering::Relaxed);
        let resumes = mirror::WAITING_NBYTES_RESUME;
        if before >= resumes && before - nbytes < resumes {
            // The scheduler may have nothing else to do just now.
            let resumed = shell.call(super::super::shell::Shell::mirror_settle).await;
            if resumed.is_err() {
                return;
            }
        }
    }
}
