//! Python objects and buffers that native code holds, and how they are let go.
//!
//! Whoever drops one is mostly not attached to the interpreter, so that it is put
//! aside; a thread that is attached anyway releases everything at once, and if
//! there is none, the thread of this module does.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::prelude::*;

use super::strided::Layout;

/// How long what is dropped waits for a thread that is attached anyway. Chosen:
/// far below what a user sees of memory, far above what one task takes.
const PATIENCE: Duration = Duration::from_millis(5);

static OBJECTS_COUNT: AtomicUsize = AtomicUsize::new(0);
static BUFFERS_COUNT: AtomicUsize = AtomicUsize::new(0);

static WAITING: Mutex<Waiting> = Mutex::new(Waiting {
    dropped: Vec::new(),
    is_idle: false,
});
static HAS_DROPPED: Condvar = Condvar::new();
static RELEASING: Once = Once::new();

/// What waits to be released.
struct Waiting {
    dropped: Vec<Dropped>,
    /// The releasing thread has to be told that there is something.
    is_idle: bool,
}

#[expect(dead_code, reason = "held to be dropped")]
enum Dropped {
    Object(Py<PyAny>),
    Buffer(PyUntypedBuffer),
}

/// A live value.
pub(crate) struct Live(ManuallyDrop<Py<PyAny>>);

impl Live {
    pub(crate) fn new(object: Py<PyAny>) -> Self {
        OBJECTS_COUNT.fetch_add(1, Ordering::Relaxed);
        Self(ManuallyDrop::new(object))
    }

    /// The value.
    pub(crate) fn get(&self, py: Python<'_>) -> Py<PyAny> {
        self.0.clone_ref(py)
    }
}

impl Drop for Live {
    #[expect(unsafe_code, reason = "the value is moved out of what is dropped")]
    fn drop(&mut self) {
        // SAFETY: `self` is gone after this, so that nobody uses the field again.
        let object = unsafe { ManuallyDrop::take(&mut self.0) };
        put_aside(Dropped::Object(object));
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

/// A buffer of a Python object.
struct Held(ManuallyDrop<PyUntypedBuffer>);

impl Held {
    fn new(buffer: PyUntypedBuffer) -> Self {
        BUFFERS_COUNT.fetch_add(1, Ordering::Relaxed);
        Self(ManuallyDrop::new(buffer))
    }
}

impl Drop for Held {
    #[expect(unsafe_code, reason = "the buffer is moved out of what is dropped")]
    fn drop(&mut self) {
        // SAFETY: `self` is gone after this, so that nobody uses the field again.
        let buffer = unsafe { ManuallyDrop::take(&mut self.0) };
        put_aside(Dropped::Buffer(buffer));
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("nbytes", &self.0.len_bytes())
            .finish()
    }
}

/// Memory of a Python object that stays where it is, in one piece.
#[derive(Debug)]
pub(crate) struct HeldBuffer(Held);

impl HeldBuffer {
    /// `None` if the memory is not in one piece.
    pub(crate) fn new(buffer: PyUntypedBuffer) -> Option<Self> {
        let is_contiguous = buffer.is_c_contiguous() || buffer.is_fortran_contiguous();
        is_contiguous.then(|| Self(Held::new(buffer)))
    }
}

impl AsRef<[u8]> for HeldBuffer {
    #[expect(unsafe_code, reason = "the buffer protocol gives pointer and length")]
    fn as_ref(&self) -> &[u8] {
        let buffer = &self.0.0;
        let nbytes = buffer.len_bytes();
        if nbytes == 0 {
            return &[];
        }
        // SAFETY: the exporter keeps the memory, all of it in one piece, until the
        // buffer is released. A task that writes to an array after it was returned
        // would change what is sent, as it would on stock.
        unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), nbytes) }
    }
}

/// As [`HeldBuffer`], in pieces.
#[derive(Debug)]
pub(crate) struct HeldStrides(Held);

impl HeldStrides {
    /// `None` if the pieces are reached by pointers of the buffer's own.
    pub(crate) fn new(buffer: PyUntypedBuffer) -> Option<Self> {
        let is_direct = buffer.suboffsets().is_none();
        is_direct.then(|| Self(Held::new(buffer)))
    }

    /// Bytes of all items.
    pub(crate) fn nbytes(&self) -> usize {
        self.0.0.len_bytes()
    }

    /// A copy of all items in C order.
    #[expect(
        unsafe_code,
        reason = "the buffer protocol gives pointer, shape and strides"
    )]
    pub(crate) fn to_bytes(&self) -> Bytes {
        let buffer = &self.0.0;
        let layout = Layout {
            shape: buffer.shape(),
            strides: buffer.strides(),
            item_nbytes: buffer.item_size(),
        };
        // SAFETY: the exporter keeps the items that shape and strides name until the
        // buffer is released. As to tasks that write to them: see `HeldBuffer`.
        unsafe { layout.copy_from(buffer.buf_ptr().cast::<u8>()) }.into()
    }
}

fn waiting() -> MutexGuard<'static, Waiting> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn put_aside(what: Dropped) {
    let mut waiting = waiting();
    waiting.dropped.push(what);
    if std::mem::take(&mut waiting.is_idle) {
        HAS_DROPPED.notify_one();
    }
}

/// Releases everything that was dropped. Objects may run code of their own when
/// they go, which may drop others.
pub(crate) fn release(_py: Python<'_>) {
    loop {
        let batch = std::mem::take(&mut waiting().dropped);
        if batch.is_empty() {
            return;
        }
        for what in batch {
            let count = match &what {
                Dropped::Object(_) => &OBJECTS_COUNT,
                Dropped::Buffer(_) => &BUFFERS_COUNT,
            };
            drop(what);
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Starts the thread that releases what nobody else does; once in a process.
pub(crate) fn start_releasing() {
    RELEASING.call_once(|| {
        let thread = std::thread::Builder::new().name("oxidask-release".to_owned());
        // Without it, releasing waits for the next task.
        let _ = thread.spawn(|| {
            loop {
                wait();
                // `None`: the interpreter is gone.
                if Python::try_attach(release).is_none() {
                    return;
                }
            }
        });
    });
}

/// Waits until something was dropped that nobody released in time.
fn wait() {
    let mut guard = waiting();
    loop {
        while guard.dropped.is_empty() {
            guard.is_idle = true;
            let woken = HAS_DROPPED.wait(guard);
            guard = woken.unwrap_or_else(PoisonError::into_inner);
        }
        guard.is_idle = false;
        let timed = HAS_DROPPED.wait_timeout(guard, PATIENCE);
        guard = timed.unwrap_or_else(PoisonError::into_inner).0;
        if !guard.dropped.is_empty() {
            return;
        }
    }
}

/// How many objects and buffers are held, those included that wait to be released.
#[pyfunction]
pub(crate) fn held_counts() -> (usize, usize) {
    (
        OBJECTS_COUNT.load(Ordering::Relaxed),
        BUFFERS_COUNT.load(Ordering::Relaxed),
    )
}
