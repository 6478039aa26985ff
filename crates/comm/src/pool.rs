//! Requests over pooled connections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use oxidask_wire::{Value, message};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::{Address, Connection, Error, Options, Result, connect};

/// Connections for requests to many peers.
///
/// A connection carries one request at a time. It is reused after a complete
/// answer and dropped after anything else. At the limit all idle connections
/// are closed; a request then waits until there is room. Clones share the pool.
#[derive(Clone, Debug)]
pub struct ConnectionPool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    connect_timeout: Duration,
    room: Arc<Semaphore>,
    /// Requests that wait for room: a connection given back is then closed.
    waiting_count: AtomicUsize,
    peers: Mutex<HashMap<Address, Peer>>,
}

#[derive(Debug)]
struct Peer {
    idle: Vec<Pooled>,
    busy_count: usize,
    /// Becomes true when the peer is removed; its requests then fail.
    removed: watch::Sender<bool>,
}

#[derive(Debug)]
struct Pooled {
    connection: Connection,
    _room: OwnedSemaphorePermit,
}

impl ConnectionPool {
    /// An empty pool of at most `limit` connections (512 in stock's workers and
    /// clients, half the descriptor limit in its scheduler).
    pub fn new(options: Options, connect_timeout: Duration, limit: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                options,
                connect_timeout,
                room: Arc::new(Semaphore::new(limit.max(1))),
                waiting_count: AtomicUsize::new(0),
                peers: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// Sends a request and returns the answer.
    ///
    /// Dropping the future drops the connection, which tells the peer.
    ///
    /// # Errors
    /// [`Error::Remote`] when the peer's handler raised (`uncaught-error`);
    /// otherwise a failure of the connection, or [`Error::Closed`] when the
    /// peer was removed meanwhile.
    pub async fn call(&self, address: &Address, request: &Value) -> Result<Value> {
        let reply = self.exchange(address, &message::encode(request)).await?;
        let failed = reply
            .as_map()
            .is_some_and(|map| map.get("status").and_then(Value::as_str) == Some("uncaught-error"));
        if !failed {
            return Ok(reply);
        }
        let text = reply.as_map().and_then(|map| map.get("exception_text"));
        Err(Error::Remote {
            text: text.and_then(Value::as_str).unwrap_or_default().to_owned(),
            reply: Box::new(reply),
        })
    }

    /// Sends an encoded request and returns whatever is answered.
    ///
    /// # Errors
    /// As [`Self::call`], without [`Error::Remote`].
    pub async fn exchange(&self, address: &Address, request: &[Bytes]) -> Result<Value> {
        self.exchange_acknowledged(address, request, |_| None).await
    }

    /// As [`Self::exchange`]; what `acknowledge` makes of the answer, if anything,
    /// is sent before the connection is given back (`get_data` expects `"OK"`).
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub async fn exchange_acknowledged(
        &self,
        address: &Address,
        request: &[Bytes],
        acknowledge: impl FnOnce(&Value) -> Option<Value>,
    ) -> Result<Value> {
        let mut busy = Busy::new(self, address);
        let work = async {
            let mut pooled = self.acquire(address).await?;
            pooled.connection.write(request).await?;
            let reply = message::decode(&pooled.connection.read().await?);
            if let Some(acknowledgement) = reply.as_ref().ok().and_then(acknowledge) {
                pooled.connection.write_value(&acknowledgement).await?;
            }
            Ok::<_, Error>((pooled, reply))
        };
        let (pooled, reply) = tokio::select! {
            done = work => done?,
            _ = busy.removed.wait_for(|removed| *removed) => {
                return Err(Error::Closed { in_message: true });
            }
        };
        busy.give_back(pooled);
        Ok(reply?)
    }

    async fn acquire(&self, address: &Address) -> Result<Pooled> {
        while let Some(mut pooled) = self.inner.take_idle(address) {
            // The peer may have closed it while it was idle. Yielding lets the
            // runtime poll its sockets, without which that would go unnoticed.
            tokio::task::yield_now().await;
            if pooled.connection.reader.is_quiet() {
                return Ok(pooled);
            }
        }
        let room = Arc::clone(&self.inner.room);
        let room = match Arc::clone(&room).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::new(&self.inner.waiting_count);
                self.close_idle();
                let permit = room.acquire_owned().await;
                permit.map_err(|_| Error::Closed { in_message: false })?
            }
        };
        let inner = &self.inner;
        Ok(Pooled {
            connection: connect(address, &inner.options, inner.connect_timeout).await?,
            _room: room,
        })
    }

    /// Closes all idle connections.
    pub fn close_idle(&self) {
        let mut closing = Vec::new();
        let mut peers = self.inner.lock();
        peers.retain(|_, peer| {
            closing.append(&mut peer.idle);
            peer.busy_count > 0
        });
        drop(peers);
    }

    /// Closes every connection to a peer; requests under way fail.
    pub fn remove(&self, address: &Address) {
        let removed = self.inner.lock().remove(address);
        if let Some(peer) = removed {
            peer.removed.send_replace(true);
        }
    }

    /// Closes everything; requests under way fail, later ones as well.
    pub fn close(&self) {
        self.inner.room.close();
        let peers = std::mem::take(&mut *self.inner.lock());
        for peer in peers.into_values() {
            peer.removed.send_replace(true);
        }
    }

    /// Connections open, idle ones included.
    pub fn open_count(&self) -> usize {
        let peers = self.inner.lock();
        peers
            .values()
            .map(|peer| peer.idle.len() + peer.busy_count)
            .sum()
    }
}

impl Inner {
    /// Nothing panics under this lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<Address, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self, address: &Address) -> Option<Pooled> {
        self.lock().get_mut(address)?.idle.pop()
    }
}

/// Counts a request that waits for room for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts a request to a peer for as long as it lives.
struct Busy<'a> {
    pool: &'a ConnectionPool,
    address: &'a Address,
    removed: watch::Receiver<bool>,
}

impl<'a> Busy<'a> {
    fn new(pool: &'a ConnectionPool, address: &'a Address) -> Self {
        let mut peers = pool.inner.lock();
        let peer = peers.entry(address.clone()).or_insert_with(|| Peer {
            idle: Vec::new(),
            busy_count: 0,
            removed: watch::Sender::new(false),
        });
        peer.busy_count += 1;
        Self {
            pool,
            address,
            removed: peer.removed.subscribe(),
        }
    }

    fn give_back(&self, pooled: Pooled) {
        let inner = &self.pool.inner;
        let wanted = inner.waiting_count.load(Ordering::SeqCst) > 0;
        if wanted || *self.removed.borrow() || inner.room.is_closed() {
            return;
        }
        if let Some(peer) = self.pool.inner.lock().get_mut(self.address) {
            peer.idle.push(pooled);
        }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        // A removed peer's entry, or a new one under the same address, is not ours.
        if *self.removed.borrow() {
            return;
        }
        let mut peers = self.pool.inner.lock();
        if let Some(peer) = peers.get_mut(self.address) {
            peer.busy_count = peer.busy_count.saturating_sub(1);
            if peer.busy_count == 0 && peer.idle.is_empty() {
                peers.remove(self.address);
            }
        }
    }
}
