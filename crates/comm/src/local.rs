//! Connections within this process.
//!
//! A message is handed over frame by frame: nothing is copied, so that a frame may stand
//! for an object of this process for as long as somebody has it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use oxidask_wire::Frames;
use tokio::sync::mpsc;

use crate::{Address, Error, Result, Scheme};

/// Messages that may wait for a reader. Chosen: many batches of a stream, and a bound.
const MESSAGES_COUNT_MAX: usize = 256;

/// Who listens, by the name in the address.
static LISTENERS: Mutex<BTreeMap<String, mpsc::Sender<End>>> = Mutex::new(BTreeMap::new());

fn listeners() -> MutexGuard<'static, BTreeMap<String, mpsc::Sender<End>>> {
    LISTENERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One end of a connection on which nothing was said yet.
#[derive(Debug)]
pub struct End {
    /// Receives.
    pub reader: LocalReader,
    /// Sends.
    pub writer: LocalWriter,
    /// This end.
    pub local: Address,
    /// The other end.
    pub peer: Address,
}

/// Connects to whoever listens on an `inproc` address.
///
/// # Errors
/// [`Error::Io`] if nobody does, or if too many wait to be accepted.
pub fn connect(address: &Address) -> Result<End> {
    let refused = |reason: &str| Error::Io {
        doing: "connecting",
        source: io::Error::new(io::ErrorKind::ConnectionRefused, reason),
    };
    let listener = listeners().get(&address.host).cloned();
    let listener = listener.ok_or_else(|| refused("nobody in this process listens there"))?;
    let (to_server, from_client) = mpsc::channel(MESSAGES_COUNT_MAX);
    let (to_client, from_server) = mpsc::channel(MESSAGES_COUNT_MAX);
    // Nobody listens there, so that the name need not differ from others'.
    let own = Address {
        scheme: Scheme::Inproc,
        host: format!("{}/client", address.host),
        port: 0,
    };
    let theirs = End {
        reader: LocalReader(from_client),
        writer: LocalWriter(Some(to_client)),
        local: address.clone(),
        peer: own.clone(),
    };
    listener.try_send(theirs).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => refused("too many connections wait there"),
        mpsc::error::TrySendError::Closed(_) => refused("nobody in this process listens there"),
    })?;
    Ok(End {
        reader: LocalReader(from_server),
        writer: LocalWriter(Some(to_server)),
        local: own,
        peer: address.clone(),
    })
}

/// A name that is listened on, until it is dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    name: String,
    incoming: tokio::sync::Mutex<mpsc::Receiver<End>>,
}

/// Listens on an `inproc` address; at most `backlog` connections wait to be accepted.
pub(crate) fn listen(address: &Address, backlog: u32) -> io::Result<Listening> {
    let (sender, incoming) = mpsc::channel(usize::try_from(backlog).unwrap_or(1).max(1));
    let mut listeners = listeners();
    if listeners.contains_key(&address.host) {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    listeners.insert(address.host.clone(), sender);
    Ok(Listening {
        name: address.host.clone(),
        incoming: tokio::sync::Mutex::new(incoming),
    })
}

impl Listening {
    /// The next connection. Cancel safe.
    pub(crate) async fn accept(&self) -> End {
        let end = self.incoming.lock().await.recv().await;
        end.expect("the table of listeners has a sender for as long as this lives")
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        listeners().remove(&self.name);
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct LocalReader(mpsc::Receiver<Frames>);

impl LocalReader {
    /// The next message. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Closed`] at the end.
    pub async fn read(&mut self) -> Result<Frames> {
        std::future::poll_fn(|context| self.poll_read(context)).await
    }

    /// The next message, for those who are on no runtime: if there is none, the waker of
    /// `context` is called when there is.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Frames>> {
        let received = self.0.poll_recv(context);
        received.map(|frames| frames.ok_or(Error::Closed { in_message: false }))
    }
}

/// The sending half. Its direction is closed when all clones are dropped.
///
/// A message for an end that has gone is lost, as with a socket: that it has gone is heard
/// by reading.
#[derive(Clone, Debug)]
pub struct LocalWriter(Option<mpsc::Sender<Frames>>);

impl LocalWriter {
    /// Sends a message; waits while too many are unread. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Self::close`].
    pub async fn write(&self, frames: Frames) -> Result<()> {
        let Some(sender) = &self.0 else {
            return Err(Error::Closed { in_message: false });
        };
        let _ = sender.send(frames).await;
        Ok(())
    }

    /// Sends a message, or gives it back if too many are unread.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn try_write(&self, frames: Frames) -> Result<Option<Frames>> {
        let Some(sender) = &self.0 else {
            return Err(Error::Closed { in_message: false });
        };
        match sender.try_send(frames) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(None),
            Err(mpsc::error::TrySendError::Full(frames)) => Ok(Some(frames)),
        }
    }

    /// As [`Self::write`], on a thread of its own that may wait.
    ///
    /// # Errors
    /// As [`Self::write`].
    ///
    /// # Panics
    /// On a thread of a runtime.
    pub fn blocking_write(&self, frames: Frames) -> Result<()> {
        let Some(sender) = &self.0 else {
            return Err(Error::Closed { in_message: false });
        };
        let _ = sender.blocking_send(frames);
        Ok(())
    }

    /// Whether the other end reads no more, or this one writes no more.
    pub fn is_closed(&self) -> bool {
        self.0.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// Ends this direction.
    pub fn close(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Listener, Options};

    fn address(name: &str) -> Address {
        Address::parse(&format!("inproc://{name}"), Scheme::Tcp).unwrap()
    }

    #[tokio::test]
    async fn frames_are_handed_over_as_they_are() {
        let address = address("10.0.0.1/1/frames");
        let listener = Listener::bind(&address, Options::default()).await.unwrap();
        let timeout = std::time::Duration::from_secs(10);
        let options = Options::default();
        let (client, server) = tokio::join!(crate::connect(&address, &options, timeout), async {
            listener.accept().await.unwrap().establish().await
        });
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        assert_eq!(server.info.local, address);
        assert_eq!(client.info.peer, address);
        assert!(client.info.local.is_same_host(&client.info.peer));
        let frame = Bytes::from(vec![7; 100]);
        client.write(std::slice::from_ref(&frame)).await.unwrap();
        let received = server.read().await.unwrap();
        assert_eq!(received[0].as_ptr(), frame.as_ptr());
        client.writer.close().await.unwrap();
        assert!(server.read().await.unwrap_err().is_closed());
    }

    #[tokio::test]
    async fn a_name_is_free_again_when_its_listener_has_gone() {
        let address = address("10.0.0.1/1/free");
        let listener = Listener::bind(&address, Options::default()).await.unwrap();
        let taken = Listener::bind(&address, Options::default()).await;
        assert!(taken.unwrap_err().to_string().contains("cannot listen"));
        drop(listener);
        assert!(connect(&address).is_err());
        Listener::bind(&address, Options::default()).await.unwrap();
    }

    #[tokio::test]
    async fn a_writer_waits_for_a_reader_that_does_not_read() {
        let address = address("10.0.0.1/1/full");
        let listening = listen(&address, 1).unwrap();
        let client = connect(&address).unwrap();
        let mut server = listening.accept().await;
        let message = || vec![Bytes::from_static(b"x")];
        for _ in 0..MESSAGES_COUNT_MAX {
            assert_eq!(client.writer.try_write(message()).unwrap(), None);
        }
        assert_eq!(client.writer.try_write(message()).unwrap(), Some(message()));
        server.reader.read().await.unwrap();
        assert_eq!(client.writer.try_write(message()).unwrap(), None);
        drop(server);
        assert!(client.writer.is_closed());
        assert_eq!(client.writer.try_write(message()).unwrap(), None);
        let mut reader = client.reader;
        assert!(reader.read().await.unwrap_err().is_closed());
    }
}
