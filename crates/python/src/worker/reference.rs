//! Values that go from one place of this process to another as they are.
//!
//! What travels is a frame with a number. The frame holds the value: it lives for as long
//! as the message, the store or whatever else has the frame.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use pyo3::exceptions::PyReferenceError;
use pyo3::prelude::*;

use super::held::Live;

/// The family of serialisers that asks for references.
pub(crate) const FAMILY: &str = "reference";

/// Values by the number in their frame.
static KNOWN: LazyLock<Mutex<HashMap<[u8; 8], Weak<Live>>>> = LazyLock::new(Mutex::default);

static LAST: AtomicU64 = AtomicU64::new(0);

fn known() -> MutexGuard<'static, HashMap<[u8; 8], Weak<Live>>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Owner of a frame.
struct Holder {
    number: [u8; 8],
    _live: Arc<Live>,
}

impl AsRef<[u8]> for Holder {
    fn as_ref(&self) -> &[u8] {
        &self.number
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        known().remove(&self.number);
    }
}

/// A frame that holds a value.
pub(crate) fn frame(live: Arc<Live>) -> Bytes {
    let number = LAST.fetch_add(1, Ordering::Relaxed).to_ne_bytes();
    known().insert(number, Arc::downgrade(&live));
    Bytes::from_owner(Holder {
        number,
        _live: live,
    })
}

/// The value that a frame holds; `None` for a frame that did not come from here.
pub(crate) fn resolve(frame: &[u8]) -> Option<Arc<Live>> {
    let number = <[u8; 8]>::try_from(frame).ok()?;
    known().get(&number)?.upgrade()
}

/// A frame that holds a value, as Python has it.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct Reference(pub(crate) Bytes);

#[pymethods]
impl Reference {
    /// Of any object.
    #[new]
    fn new(object: Py<PyAny>) -> Self {
        Self(frame(Arc::new(Live::new(object))))
    }

    /// The object.
    fn get(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let live = resolve(&self.0).ok_or_else(unknown)?;
        Ok(live.get(py))
    }
}

/// A frame that says it is a reference, and is none of ours.
pub(crate) fn unknown() -> PyErr {
    PyReferenceError::new_err("the value is not in this process")
}

/// How many values are referred to.
#[pyfunction]
pub(crate) fn reference_count() -> usize {
    known().len()
}
