//! Values between wire and interpreter.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use oxidask_wire::pickle::{PickleArg, exception_pickle};
use oxidask_wire::value::is_reference_header;
use oxidask_wire::{Key, Map, Serialized, Str, Value, message};
use oxidask_worker::task::TaskFailure;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyMemoryView, PyString, PyTuple};

use super::held::{HeldBuffer, HeldStrides};
use super::reference::Reference;
use super::strided::StridedArray;

/// Smaller buffers are copied. Chosen: a page costs less to copy than an object to
/// hold and to release.
const COPIED_NBYTES_MAX: usize = 4096;

/// Bytes of the wire as Python takes them: without a copy, and writable if nobody
/// else has them, as what stock receives is.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct Frame(Memory);

#[derive(Debug)]
enum Memory {
    Shared { bytes: Bytes, is_readonly: bool },
    Own(BytesMut),
}

impl Frame {
    pub(crate) fn new(frame: Bytes) -> Self {
        Self(match frame.try_into_mut() {
            Ok(own) => Memory::Own(own),
            Err(bytes) => Memory::Shared {
                bytes,
                is_readonly: true,
            },
        })
    }

    /// Writable although it stays a part of a value's serialised form.
    fn sharing(bytes: Bytes) -> Self {
        Self(Memory::Shared {
            bytes,
            is_readonly: false,
        })
    }
}

#[pymethods]
impl Frame {
    #[expect(unsafe_code, reason = "the buffer protocol")]
    unsafe fn __getbuffer__(
        slf: PyRef<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let (memory, nbytes, is_readonly) = match &slf.0 {
            Memory::Shared { bytes, is_readonly } => (bytes.as_ptr(), bytes.len(), *is_readonly),
            Memory::Own(bytes) => (bytes.as_ptr(), bytes.len(), false),
        };
        let nbytes = isize::try_from(nbytes)
            .map_err(|_| PyBufferError::new_err("a frame is larger than memory"))?;
        // SAFETY: `view` is the interpreter's. The memory lives as long as `slf`,
        // which the view holds, and never moves. It came from the allocator, which is
        // so for whatever was received. Where it is writable, nothing but views of this
        // object refers to it, and no Rust reference is ever made; or it is the memory
        // of an array's serialised form: a task that writes to the array changes what
        // is sent of it, as it would on stock.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                memory.cast_mut().cast::<c_void>(),
                nbytes,
                c_int::from(is_readonly),
                flags,
            )
        };
        if filled == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }

    fn __len__(&self) -> usize {
        match &self.0 {
            Memory::Shared { bytes, .. } => bytes.len(),
            Memory::Own(bytes) => bytes.len(),
        }
    }
}

/// Frames as Python takes them.
pub(crate) fn frames_to_python<'py>(
    py: Python<'py>,
    frames: impl IntoIterator<Item = Bytes>,
) -> PyResult<Bound<'py, PyList>> {
    list_of_frames(py, frames, Frame::new)
}

/// As [`frames_to_python`], for frames that were received and remain a value's serialised
/// form: writable without a copy.
pub(crate) fn shared_frames_to_python<'py>(
    py: Python<'py>,
    frames: impl IntoIterator<Item = Bytes>,
) -> PyResult<Bound<'py, PyList>> {
    list_of_frames(py, frames, Frame::sharing)
}

fn list_of_frames<'py>(
    py: Python<'py>,
    frames: impl IntoIterator<Item = Bytes>,
    make: impl Fn(Bytes) -> Frame,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    let mut is_reference = false;
    for frame in frames {
        if std::mem::replace(&mut is_reference, is_reference_header(&frame)) {
            list.append(Reference(frame))?;
            continue;
        }
        // Memory views, as stock's connections give them.
        let memory = if frame.len() <= COPIED_NBYTES_MAX {
            PyByteArray::new(py, &frame).into_any()
        } else {
            make(frame).into_pyobject(py)?.into_any()
        };
        list.append(PyMemoryView::from(&memory)?)?;
    }
    Ok(list)
}

/// Bytes of a Python object, held where they are unless they are few.
pub(crate) fn frame_of_python(object: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    if let Ok(reference) = object.cast_exact::<Reference>() {
        return Ok(reference.get().0.clone());
    }
    if let Ok(bytes) = object.cast_exact::<PyBytes>()
        && bytes.as_bytes().len() <= COPIED_NBYTES_MAX
    {
        return Ok(Bytes::copy_from_slice(bytes.as_bytes()));
    }
    let buffer = HeldBuffer::new(PyUntypedBuffer::get(object)?)
        .ok_or_else(|| PyBufferError::new_err("a frame must be contiguous"))?;
    if buffer.as_ref().len() <= COPIED_NBYTES_MAX {
        return Ok(Bytes::copy_from_slice(buffer.as_ref()));
    }
    Ok(Bytes::from_owner(buffer))
}

/// A value that Python serialised: sub-header and frames.
pub(crate) fn serialized_of_python(
    header: &Bound<'_, PyAny>,
    frames: &Bound<'_, PyAny>,
) -> PyResult<Serialized> {
    let header = header.cast::<PyBytes>()?.as_bytes();
    let frames = frames.try_iter()?.map(|frame| frame_of_python(&frame?));
    Ok(Serialized {
        header: Bytes::copy_from_slice(header),
        frames: frames.collect::<PyResult<_>>()?,
    })
}

/// How a value that was cheap to serialise is kept beside the live one.
pub(crate) enum Form {
    /// As others get it.
    Serialized(Serialized),
    /// As others get it once it was copied.
    Strided(StridedArray),
}

/// What `_worker_values.cheap` gives: sub-header and frames, or the sub-header and one
/// buffer that is not in one piece.
pub(crate) fn form_of_python(
    header: &Bound<'_, PyAny>,
    frames: &Bound<'_, PyAny>,
) -> PyResult<Form> {
    if let Ok(view) = frames.cast_exact::<PyMemoryView>() {
        let header = Bytes::copy_from_slice(header.cast::<PyBytes>()?.as_bytes());
        let items = HeldStrides::new(PyUntypedBuffer::get(view)?)
            .ok_or_else(|| PyBufferError::new_err("an array must not point elsewhere"))?;
        return Ok(Form::Strided(StridedArray::new(header, items)));
    }
    serialized_of_python(header, frames).map(Form::Serialized)
}

/// The frames that stock's `dumps` makes of a message, as a value.
pub(crate) fn value_of_python(frames: &Bound<'_, PyAny>) -> PyResult<Value> {
    let frames = frames.try_iter()?.map(|frame| frame_of_python(&frame?));
    let frames = frames.collect::<PyResult<Vec<_>>>()?;
    message::decode(&frames).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// As [`value_of_python`], for a message that must be a map.
pub(crate) fn map_of_python(frames: &Bound<'_, PyAny>) -> PyResult<Map> {
    let value = value_of_python(frames)?.into_map();
    value.ok_or_else(|| PyValueError::new_err("expected a message that is a dict"))
}

/// A value as the frames that stock's `loads` takes. Nothing but them refers to the
/// payloads afterwards, so that these can be writable.
pub(crate) fn value_to_python(py: Python<'_>, value: Value) -> PyResult<Bound<'_, PyList>> {
    let frames = message::encode(&value);
    drop(value);
    frames_to_python(py, frames)
}

/// A key as tasks know it.
pub(crate) fn key_to_python<'py>(py: Python<'py>, key: &Key) -> PyResult<Bound<'py, PyAny>> {
    match key.as_str() {
        Some(text) => Ok(PyString::new(py, text).into_any()),
        None => plain_to_python(py, &key.to_value()),
    }
}

fn plain_to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Str(text) => PyString::new(py, text).into_any(),
        Value::Int(number) => number.into_pyobject(py)?.into_any(),
        Value::UInt(number) => number.into_pyobject(py)?.into_any(),
        Value::Float(number) => number.into_pyobject(py)?.into_any(),
        Value::Bool(value) => value.into_pyobject(py)?.to_owned().into_any(),
        Value::Bin(bytes) => PyBytes::new(py, bytes).into_any(),
        Value::Array(parts) => {
            let parts = parts.iter().map(|part| plain_to_python(py, part));
            PyTuple::new(py, parts.collect::<PyResult<Vec<_>>>()?)?.into_any()
        }
        Value::Key(key) => key_to_python(py, key)?,
        Value::Nil => py.None().into_bound(py),
        Value::Map(_)
        | Value::Set(_)
        | Value::Enum(_)
        | Value::Serialized(_)
        | Value::Pickled(_)
        | Value::Raw(_) => {
            let found = value.type_name();
            return Err(PyValueError::new_err(format!("a key cannot hold {found}")));
        }
    })
}

/// The key that a Python object is, given as msgpack.
pub(crate) fn key_of_python(key: &Bound<'_, PyAny>) -> PyResult<Key> {
    if let Ok(text) = key.cast::<PyString>() {
        return Ok(Key::from_str_key(text.to_str()?));
    }
    let key = key.cast::<PyBytes>()?.as_bytes();
    Key::from_msgpack(key).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// What `_worker.failure` makes of an exception: pickles of it and of its
/// traceback, and both as text.
pub(crate) type Failure<'py> = (
    Bound<'py, PyBytes>,
    Option<Bound<'py, PyBytes>>,
    String,
    String,
);

pub(crate) fn failure_of_python(failure: &Failure<'_>) -> Arc<TaskFailure> {
    let (exception, traceback, exception_text, traceback_text) = failure;
    let serialized = |bytes: &Bound<'_, PyBytes>| -> Value {
        Serialized::of_bytes(Bytes::copy_from_slice(bytes.as_bytes())).into()
    };
    Arc::new(TaskFailure {
        exception: serialized(exception),
        traceback: traceback.as_ref().map_or(Value::Nil, serialized),
        exception_text: exception_text.as_str().into(),
        traceback_text: traceback_text.as_str().into(),
    })
}

/// An error of ours, as an exception of this built-in class.
pub(crate) fn builtin(class: &str, text: &str) -> Arc<TaskFailure> {
    let pickle = exception_pickle("builtins", class, &[PickleArg::Str(text)]);
    let mut argument = String::new();
    oxidask_wire::python::str_repr(text, &mut argument);
    Arc::new(TaskFailure {
        exception: Serialized::of_bytes(pickle.into()).into(),
        traceback: Value::Nil,
        exception_text: format!("{class}({argument})").into(),
        traceback_text: Str::default(),
    })
}
