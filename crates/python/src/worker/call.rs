//! Calls: tasks of a function that is known, with arguments that native code reads.
//!
//! Nothing of a graph node is made for them. What can be called this way is decided
//! by `oxidask._worker_functions.direct`; everything else goes through a pickle of the
//! node, as on stock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use oxidask_server::worker::Input;
use oxidask_wire::Key;
use oxidask_wire::msgpack::{DEPTH_MAX, Reader, Token};
use oxidask_wire::pickle::argument;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use super::executor::{Shared, input_to_python};

/// Functions that are remembered. Chosen: what the scheduler remembers of one worker.
const FUNCTIONS_MAX: usize = 1000;

/// Bytes of the pickles that are remembered, as the scheduler does.
const FUNCTIONS_NBYTES_MAX: usize = 32 << 20;

/// Functions by their pickles.
#[derive(Default)]
pub(crate) struct Functions(Mutex<Known>);

#[derive(Default)]
struct Known {
    by_pickle: HashMap<Bytes, Option<Arc<Function>>>,
    nbytes: usize,
}

/// A function that its tasks may share.
struct Function {
    callable: Py<PyAny>,
    /// What it got from modules, which a user may load again: module, name, object.
    imported: Vec<(Py<PyString>, Py<PyString>, Py<PyAny>)>,
}

/// What [`Function`] is made of: `oxidask._worker_functions.direct`.
type Direct = (Py<PyAny>, Vec<(Py<PyString>, Py<PyString>, Py<PyAny>)>);

impl Functions {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The function, if it can be called directly.
    ///
    /// # Errors
    /// What loading it raised.
    pub(crate) fn get<'py>(
        &self,
        py: Python<'py>,
        shared: &Shared,
        pickle: &Bytes,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let known = self.known().by_pickle.get(pickle).cloned();
        match known {
            Some(None) => return Ok(None),
            Some(Some(function)) if function.is_current(py)? => {
                return Ok(Some(function.callable.bind(py).clone()));
            }
            Some(Some(_)) | None => {}
        }
        let direct = shared.hooks(py)?.direct.bind(py);
        let direct = direct.call1((PyBytes::new(py, pickle),))?;
        let function = direct.extract::<Option<Direct>>()?;
        let function =
            function.map(|(callable, imported)| Arc::new(Function { callable, imported }));
        let callable = function
            .as_ref()
            .map(|function| function.callable.bind(py).clone());
        let mut known = self.known();
        let is_full = known.nbytes + pickle.len() > FUNCTIONS_NBYTES_MAX
            || known.by_pickle.len() >= FUNCTIONS_MAX;
        let forgotten = if is_full {
            std::mem::take(&mut *known)
        } else {
            Known::default()
        };
        if known.by_pickle.insert(pickle.clone(), function).is_none() {
            known.nbytes += pickle.len();
        }
        drop(known);
        // Not under the lock: to release objects may run any code.
        drop(forgotten);
        Ok(callable)
    }
}

impl Function {
    /// Whether modules still have what this was made of.
    fn is_current(&self, py: Python<'_>) -> PyResult<bool> {
        static MODULES: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
        let modules = MODULES.get_or_try_init(py, || {
            let modules = py.import("sys")?.getattr("modules")?;
            PyResult::Ok(modules.cast_into::<PyDict>()?.unbind())
        })?;
        for (module, name, object) in &self.imported {
            let Some(module) = modules.bind(py).get_item(module)? else {
                return Ok(false);
            };
            let found = module.getattr_opt(name)?;
            if found.is_none_or(|found| !found.is(object)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Arguments and keyword arguments of a call.
pub(crate) type Arguments<'py> = (Bound<'py, PyTuple>, Option<Bound<'py, PyDict>>);

/// Reads the arguments of a call; references become the inputs they name.
///
/// # Errors
/// Malformed arguments, a reference to what is not among the inputs, or what
/// deserialising an input raised.
pub(crate) fn arguments<'py>(
    py: Python<'py>,
    shared: &Shared,
    encoded: &[u8],
    inputs: &[(Key, Input)],
) -> PyResult<Arguments<'py>> {
    let decoder = Decoder { py, shared, inputs };
    let mut reader = Reader::of_slice(encoded, "call arguments");
    let parts = reader.array_len().map_err(wrong)?;
    let args = decoder.items(&mut reader, 0)?;
    let args = PyTuple::new(py, args)?;
    let mut keywords = None;
    if parts > 1 {
        let count = reader.map_len().map_err(wrong)?;
        if count > 0 {
            let named = PyDict::new(py);
            for _ in 0..count {
                let name = PyString::new(py, reader.str().map_err(wrong)?);
                named.set_item(name, decoder.value(&mut reader, 0)?)?;
            }
            keywords = Some(named);
        }
    }
    Ok((args, keywords))
}

struct Decoder<'a, 'py> {
    py: Python<'py>,
    shared: &'a Shared,
    inputs: &'a [(Key, Input)],
}

impl<'py> Decoder<'_, 'py> {
    fn value(&self, reader: &mut Reader<'_>, depth: usize) -> PyResult<Bound<'py, PyAny>> {
        if depth >= DEPTH_MAX {
            return Err(PyValueError::new_err("the arguments are nested too deep"));
        }
        let py = self.py;
        Ok(match reader.token().map_err(wrong)? {
            Token::Nil => py.None().into_bound(py),
            Token::Bool(value) => value.into_pyobject(py)?.to_owned().into_any(),
            Token::Int(value) => value.into_pyobject(py)?.into_any(),
            Token::UInt(value) => value.into_pyobject(py)?.into_any(),
            Token::Float(value) => value.into_pyobject(py)?.into_any(),
            Token::Str(range) => {
                let text = std::str::from_utf8(reader.slice(range));
                let text = text.map_err(|error| PyValueError::new_err(error.to_string()))?;
                PyString::new(py, text).into_any()
            }
            Token::Bin(range) => PyBytes::new(py, reader.slice(range)).into_any(),
            Token::Ext(kind, range) => self.extension(kind, reader.slice(range), depth)?,
            Token::Array(_) | Token::Map(_) => {
                let text = "containers in arguments are written as extensions";
                return Err(PyValueError::new_err(text));
            }
        })
    }

    fn extension(&self, kind: i8, payload: &[u8], depth: usize) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py;
        let mut reader = Reader::of_slice(payload, "call argument");
        Ok(match kind {
            argument::REFERENCE => {
                let key = Key::from_msgpack(payload).map_err(wrong)?;
                self.input(&key)?
            }
            argument::LIST | argument::NODE_LIST => {
                PyList::new(py, self.items(&mut reader, depth)?)?.into_any()
            }
            argument::TUPLE | argument::NODE_TUPLE => {
                PyTuple::new(py, self.items(&mut reader, depth)?)?.into_any()
            }
            argument::DICT => {
                let dict = PyDict::new(py);
                for _ in 0..reader.array_len().map_err(wrong)? {
                    let pair = self.items(&mut reader, depth)?;
                    let [name, value] = &*pair else {
                        return Err(PyValueError::new_err("a dict is made of pairs"));
                    };
                    dict.set_item(name, value)?;
                }
                dict.into_any()
            }
            argument::PICKLE => {
                let loads = self.shared.hooks(py)?.loads.bind(py);
                loads.call1((PyBytes::new(py, payload),))?
            }
            _ => return Err(PyValueError::new_err("unknown extension in arguments")),
        })
    }

    fn items(&self, reader: &mut Reader<'_>, depth: usize) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let count = reader.array_len().map_err(wrong)?;
        (0..count).map(|_| self.value(reader, depth + 1)).collect()
    }

    fn input(&self, key: &Key) -> PyResult<Bound<'py, PyAny>> {
        let found = self.inputs.iter().find(|(known, _)| known == key);
        let (_, input) = found.ok_or_else(|| {
            PyValueError::new_err(format!("there is no input {}", key.python_repr()))
        })?;
        input_to_python(self.py, self.shared, key, input)
    }
}

fn wrong(error: oxidask_wire::Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}
