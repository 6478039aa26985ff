//! Batched streams: `BatchedSend` of distributed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oxidask_wire::{BatchWriter, Value};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::{Error, Result, Writer};

/// Puts messages on a stream; clones share the stream.
///
/// Messages are encoded by the caller into one growing batch. A
/// [`BatchedTask`] sends what has gathered: at once after a quiet period, then
/// at most once per interval, order preserved.
#[derive(Clone, Debug)]
pub struct BatchedSender {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the task: there is something to do.
    changed: Notify,
    /// Wakes the task out of a write: there is no use in finishing it.
    aborted: Notify,
    /// Wakes who waits until everything is sent.
    sent: Notify,
    nbytes_max: usize,
}

#[derive(Debug)]
struct State {
    batch: BatchWriter,
    phase: Phase,
    /// Nothing is sent before this time.
    held_until: Instant,
    /// Bytes of the batch that is being written.
    nbytes_in_flight: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Send what is there, then close.
    Closing,
    /// Send nothing more.
    Aborted,
    /// The queue went over its limit.
    Overflown(usize),
}

impl Shared {
    /// A panic while encoding cannot leave the state inconsistent in a way that
    /// matters: the batch is then incomplete and the peer closes the stream.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the batches of a [`BatchedSender`]; run it in a task.
#[derive(Debug)]
pub struct BatchedTask {
    shared: Arc<Shared>,
    writer: Writer,
    interval: Duration,
}

impl BatchedSender {
    /// A stream over `writer`.
    ///
    /// `nbytes_max` bounds the bytes queued and in flight together; beyond it
    /// the peer counts as too slow and the stream fails.
    pub fn new(writer: Writer, interval: Duration, nbytes_max: usize) -> (Self, BatchedTask) {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                batch: BatchWriter::new(),
                phase: Phase::Open,
                held_until: Instant::now(),
                nbytes_in_flight: 0,
            }),
            changed: Notify::new(),
            aborted: Notify::new(),
            sent: Notify::new(),
            nbytes_max,
        });
        let task = BatchedTask {
            shared: Arc::clone(&shared),
            writer,
            interval,
        };
        (Self { shared }, task)
    }

    /// Queues a message. Never waits.
    ///
    /// # Errors
    /// [`Error::Closed`] after the stream was closed or failed,
    /// [`Error::SlowPeer`] when this message goes beyond the limit.
    pub fn send(&self, message: &Value) -> Result<()> {
        self.send_with(|batch| batch.push(message))
    }

    /// Queues the messages that `write` puts into the batch. Never waits;
    /// `write` should be short, for it runs under a lock.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_with<R>(&self, write: impl FnOnce(&mut BatchWriter) -> R) -> Result<R> {
        let mut state = self.shared.lock();
        match state.phase {
            Phase::Open => {}
            Phase::Closing | Phase::Aborted => return Err(Error::Closed { in_message: false }),
            Phase::Overflown(nbytes) => return Err(self.slow_peer(nbytes)),
        }
        let result = write(&mut state.batch);
        let nbytes = state.batch.nbytes() + state.nbytes_in_flight;
        if nbytes > self.shared.nbytes_max {
            state.phase = Phase::Overflown(nbytes);
            state.batch = BatchWriter::new();
            drop(state);
            self.shared.changed.notify_one();
            self.shared.aborted.notify_one();
            return Err(self.slow_peer(nbytes));
        }
        drop(state);
        self.shared.changed.notify_one();
        Ok(result)
    }

    fn slow_peer(&self, nbytes: usize) -> Error {
        Error::SlowPeer {
            nbytes,
            limit: self.shared.nbytes_max,
        }
    }

    /// Lets messages gather for `time`, those that are queued already included, so
    /// that they do not overtake what goes to the same peer another way.
    pub fn hold(&self, time: Duration) {
        let mut state = self.shared.lock();
        state.held_until = state.held_until.max(Instant::now() + time);
    }

    /// Waits until what is queued now is written, or can no longer be.
    pub async fn flushed(&self) {
        loop {
            let sent = self.shared.sent.notified();
            if self.is_closed() || self.nbytes() == 0 {
                return;
            }
            sent.await;
        }
    }

    /// Bytes queued and in flight.
    pub fn nbytes(&self) -> usize {
        let state = self.shared.lock();
        state.batch.nbytes() + state.nbytes_in_flight
    }

    /// True once nothing more can be sent.
    pub fn is_closed(&self) -> bool {
        self.shared.lock().phase != Phase::Open
    }

    /// Lets the task send what is queued and close the stream.
    pub fn close(&self) {
        let mut state = self.shared.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Closing;
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Drops what is queued and closes at once.
    pub fn abort(&self) {
        let mut state = self.shared.lock();
        state.phase = Phase::Aborted;
        state.batch = BatchWriter::new();
        drop(state);
        self.shared.changed.notify_one();
        self.shared.aborted.notify_one();
    }
}

impl BatchedTask {
    /// Sends until the stream is closed, aborted or fails. Closes the writer.
    ///
    /// Dropping the future aborts the stream: senders fail from then on.
    ///
    /// # Errors
    /// A failing connection, or [`Error::SlowPeer`].
    pub async fn run(mut self) -> Result<()> {
        let _closed = AbortOnDrop(Arc::clone(&self.shared));
        let mut next_send = Instant::now();
        loop {
            let (ready, phase, due) = {
                let state = self.shared.lock();
                let due = next_send.max(state.held_until);
                (!state.batch.is_empty(), state.phase, due)
            };
            match phase {
                Phase::Aborted => return Ok(()),
                Phase::Overflown(nbytes) => {
                    return Err(Error::SlowPeer {
                        nbytes,
                        limit: self.shared.nbytes_max,
                    });
                }
                Phase::Closing if !ready => return self.writer.close().await,
                Phase::Closing => {}
                Phase::Open if !ready => {
                    self.shared.changed.notified().await;
                    continue;
                }
                Phase::Open if Instant::now() < due => {
                    // More messages only join the batch; an end is looked at after
                    // the interval, except an abort.
                    tokio::select! {
                        () = tokio::time::sleep_until(due) => {}
                        () = self.shared.aborted.notified() => {}
                    }
                    continue;
                }
                Phase::Open => {}
            }
            let batch = {
                let mut state = self.shared.lock();
                state.nbytes_in_flight = state.batch.nbytes();
                state.batch.take()
            };
            next_send = Instant::now() + self.interval;
            if let Some(batch) = batch {
                tokio::select! {
                    written = self.writer.write(&batch) => written?,
                    () = self.shared.aborted.notified() => {}
                }
            }
            self.shared.lock().nbytes_in_flight = 0;
            self.shared.sent.notify_waiters();
        }
    }
}

struct AbortOnDrop(Arc<Shared>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if !matches!(state.phase, Phase::Overflown(_)) {
            state.phase = Phase::Aborted;
        }
        state.batch = BatchWriter::new();
        state.nbytes_in_flight = 0;
        drop(state);
        self.0.sent.notify_waiters();
    }
}
