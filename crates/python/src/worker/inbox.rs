//! What the shell asks of the event loop, handed over without the interpreter: the
//! loop watches a socket.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oxidask_server::worker::{self, Answer};
use oxidask_wire::{Key, Map, Str, Value};
use oxidask_worker::State;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use tokio::sync::oneshot;

use super::convert::{Failure, failure_of_python, key_to_python, value_of_python, value_to_python};
use super::task::Task;

/// Something for the event loop.
pub(crate) enum Item {
    /// Answer a request.
    Request(worker::Request, oneshot::Sender<Option<Answer>>),
    /// A message of the scheduler's stream.
    StreamMessage { op: Str, fields: Map },
    /// Tell plug-ins.
    Transition {
        key: Key,
        start: State,
        finish: State,
    },
    /// Run a task elsewhere than in the pool `default`.
    Task(Task),
    /// Tear plug-ins down.
    Teardown(oneshot::Sender<()>),
    /// Stop, and wait for running tasks or not.
    Close(bool, oneshot::Sender<()>),
}

/// Items in the order in which they came.
pub(crate) struct Items {
    state: Mutex<VecDeque<Item>>,
    reader: UnixStream,
    writer: UnixStream,
}

impl Items {
    pub(crate) fn new() -> std::io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        Ok(Self {
            state: Mutex::default(),
            reader,
            writer,
        })
    }

    fn state(&self) -> MutexGuard<'_, VecDeque<Item>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, item: Item) {
        let mut state = self.state();
        state.push_back(item);
        if state.len() == 1 {
            // A full socket wakes the loop as well.
            let _ = (&self.writer).write(&[0]);
        }
    }

    /// Drops what is left: those who wait for an answer are told.
    pub(crate) fn clear(&self) {
        let items = std::mem::take(&mut *self.state());
        drop(items);
    }
}

/// The items as the event loop sees them.
#[pyclass(frozen)]
pub(crate) struct Inbox(pub(crate) Arc<Items>);

#[pymethods]
impl Inbox {
    /// What to watch for reading.
    fn fileno(&self) -> i32 {
        self.0.reader.as_raw_fd()
    }

    /// All items, as tuples that begin with the name of what they are.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let mut wakes = [0; 64];
        // Nothing to read is as good as something.
        let _ = (&self.0.reader).read(&mut wakes);
        let items = std::mem::take(&mut *self.0.state());
        let list = PyList::empty(py);
        for item in items {
            list.append(item.into_python(py)?)?;
        }
        Ok(list)
    }
}

impl Item {
    fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        match self {
            Self::Request(request, sender) => {
                let request = Request {
                    op: request.op,
                    args: Mutex::new(Some(request.args)),
                    sender: Mutex::new(Some(sender)),
                };
                ("request", Py::new(py, request)?).into_pyobject(py)
            }
            Self::StreamMessage { op, fields } => {
                let fields = value_to_python(py, Value::Map(fields))?;
                ("stream_message", op.as_str(), fields).into_pyobject(py)
            }
            Self::Transition { key, start, finish } => {
                let key = key_to_python(py, &key)?;
                ("transition", key, start.name(), finish.name()).into_pyobject(py)
            }
            Self::Task(task) => ("task", Py::new(py, task)?).into_pyobject(py),
            Self::Teardown(sender) => {
                ("teardown", Py::new(py, Done::new(sender))?).into_pyobject(py)
            }
            Self::Close(wait, sender) => {
                ("close", wait, Py::new(py, Done::new(sender))?).into_pyobject(py)
            }
        }
    }
}

/// Says that something was done, at the latest when it is dropped.
#[pyclass(frozen)]
pub(crate) struct Done(Mutex<Option<oneshot::Sender<()>>>);

impl Done {
    fn new(sender: oneshot::Sender<()>) -> Self {
        Self(Mutex::new(Some(sender)))
    }
}

#[pymethods]
impl Done {
    fn __call__(&self) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // The shell may have lost patience.
            let _ = sender.send(());
        }
    }
}

/// A request of a client, peer or the scheduler.
#[pyclass(frozen)]
pub(crate) struct Request {
    op: Str,
    args: Mutex<Option<Map>>,
    sender: Mutex<Option<oneshot::Sender<Option<Answer>>>>,
}

impl Request {
    fn answer(&self, answer: Option<Answer>) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = { sender }.take() {
            // Whoever asked may be gone.
            let _ = sender.send(answer);
        }
    }
}

#[pymethods]
impl Request {
    /// What is asked.
    #[getter]
    fn op(&self) -> &str {
        &self.op
    }

    /// The arguments, as frames. Can be taken once.
    fn args<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let args = self
            .args
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        value_to_python(py, Value::Map(args.unwrap_or_default()))
    }

    /// The answer, as frames.
    fn reply(&self, frames: &Bound<'_, PyAny>) -> PyResult<()> {
        let answer = value_of_python(frames)?;
        self.answer(Some(Ok(answer)));
        Ok(())
    }

    /// It raised.
    fn fail(&self, failure: Failure<'_>) {
        self.answer(Some(Err(failure_of_python(&failure))));
    }

    /// There is no such operation.
    fn unknown(&self) {
        self.answer(None);
    }
}
