//! Connections within this process, as an event loop sees them.

use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll, Wake, Waker};

use oxidask_comm::local::{self, LocalReader, LocalWriter};
use oxidask_comm::{Address, Scheme};
use oxidask_wire::Frames;
use pyo3::exceptions::{PyConnectionRefusedError, PyConnectionResetError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::worker::{frame_of_python, frames_to_python};

/// Wakes an event loop, which watches a socket, without the interpreter.
struct Bell {
    reader: UnixStream,
    writer: UnixStream,
}

impl Bell {
    fn new() -> std::io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        Ok(Self { reader, writer })
    }

    fn ring(&self) {
        // A full socket wakes the loop as well.
        let _ = (&self.writer).write(&[0]);
    }

    fn quiet(&self) {
        let mut rings = [0; 64];
        // Nothing to read is as good as something.
        let _ = (&self.reader).read(&mut rings);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

/// One end of a connection, for one event loop.
#[pyclass(frozen)]
pub(crate) struct Channel {
    reader: Mutex<Option<LocalReader>>,
    writer: RwLock<LocalWriter>,
    bell: Arc<Bell>,
    local_address: String,
}

impl Channel {
    fn reader(&self) -> MutexGuard<'_, Option<LocalReader>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Channel {
    /// Connects to an `inproc` address. Raises `ConnectionRefusedError` if no native
    /// server of this process listens there.
    #[new]
    fn new(address: &str) -> PyResult<Self> {
        let address = Address::parse(address, Scheme::Inproc);
        let address = address.map_err(|error| PyValueError::new_err(error.to_string()))?;
        let end = local::connect(&address).map_err(|error| {
            PyConnectionRefusedError::new_err(format!("cannot connect to `{address}`: {error}"))
        })?;
        let bell = Bell::new().map_err(|error| PyOSError::new_err(error.to_string()))?;
        Ok(Self {
            reader: Mutex::new(Some(end.reader)),
            writer: RwLock::new(end.writer),
            bell: Arc::new(bell),
            local_address: end.local.to_string(),
        })
    }

    /// The address of this end.
    #[getter]
    fn local_address(&self) -> &str {
        &self.local_address
    }

    /// What to watch for reading when [`Self::read`] has given nothing.
    fn fileno(&self) -> i32 {
        self.bell.reader.as_raw_fd()
    }

    /// The frames of the next message; `None`: there is none yet. Raises
    /// `ConnectionResetError` at the end.
    fn read<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        self.bell.quiet();
        let waker = Waker::from(self.bell.clone());
        let polled = match &mut *self.reader() {
            Some(reader) => reader.poll_read(&mut Context::from_waker(&waker)),
            None => return Err(closed()),
        };
        match polled {
            Poll::Pending => Ok(None),
            Poll::Ready(Ok(frames)) => Ok(Some(frames_to_python(py, frames)?)),
            Poll::Ready(Err(_)) => Err(closed()),
        }
    }

    /// Sends the frames of a message. False: too many messages are unread, and
    /// [`Self::write_waiting`] has to be called. Raises `ConnectionResetError`.
    fn write(&self, frames: &Bound<'_, PyAny>) -> PyResult<bool> {
        let frames = frames_of_python(frames)?;
        let writer = self.writer.read().unwrap_or_else(PoisonError::into_inner);
        let left = writer.try_write(frames).map_err(|_| closed())?;
        Ok(left.is_none())
    }

    /// Sends the frames of a message on a thread that may wait.
    fn write_waiting(&self, py: Python<'_>, frames: &Bound<'_, PyAny>) -> PyResult<()> {
        let frames = frames_of_python(frames)?;
        // Not under the lock: whoever closes must not wait for the peer.
        let writer = self
            .writer
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        py.detach(|| writer.blocking_write(frames))
            .map_err(|_| closed())
    }

    /// Whether the other end has gone, or this one was closed.
    fn is_closed(&self) -> bool {
        let writer = self.writer.read().unwrap_or_else(PoisonError::into_inner);
        writer.is_closed()
    }

    /// Ends the connection in both directions.
    fn close(&self) {
        drop(self.reader().take());
        let mut writer = self.writer.write().unwrap_or_else(PoisonError::into_inner);
        writer.close();
        self.bell.ring();
    }
}

fn frames_of_python(frames: &Bound<'_, PyAny>) -> PyResult<Frames> {
    let frames = frames.try_iter()?.map(|frame| frame_of_python(&frame?));
    frames.collect()
}

fn closed() -> PyErr {
    PyConnectionResetError::new_err("the connection is closed")
}
