//! One task at the executor, as Python sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use oxidask_server::worker::{self, Outcome, Ran, RunSpec};
use oxidask_wire::{Key, Map, Value};
use oxidask_worker::task::{TaskFailure, ValueType as Type};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use super::call;
use super::convert::{
    Failure, builtin, failure_of_python, frames_to_python, key_to_python, value_to_python,
};
use super::executor::{Cheap, Shared, input_to_python, live_datum};

/// The class of a value, pickled once for all its instances.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct ValueType(pub(crate) Arc<Type>);

#[pymethods]
impl ValueType {
    /// A pickle of the class, and its name with the module.
    #[new]
    fn new(pickled: &[u8], name: &str) -> Self {
        Self(Arc::new(Type {
            pickled: Bytes::copy_from_slice(pickled),
            name: name.into(),
        }))
    }

    /// Its name with the module.
    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }
}

/// Function, arguments and keyword arguments.
type Call<'py> = (
    Bound<'py, PyAny>,
    Bound<'py, PyTuple>,
    Option<Bound<'py, PyDict>>,
);

/// A task that waits or runs. It is answered exactly once: by one of its methods,
/// else when it is dropped.
#[pyclass(frozen)]
pub(crate) struct Task {
    key: Key,
    annotations: Map,
    content: Mutex<Option<worker::Task>>,
    is_answered: AtomicBool,
    shared: Arc<Shared>,
}

impl Task {
    pub(crate) fn new(mut task: worker::Task, shared: Arc<Shared>) -> Self {
        Self {
            key: task.key.clone(),
            annotations: std::mem::take(&mut task.annotations),
            content: Mutex::new(Some(task)),
            is_answered: AtomicBool::new(false),
            shared,
        }
    }

    fn content(&self) -> MutexGuard<'_, Option<worker::Task>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, outcome: Outcome) {
        if !self.is_answered.swap(true, Ordering::AcqRel) {
            self.shared.executed(self.key.clone(), outcome);
        }
    }

    fn annotation<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(value) = self.annotations.get(name) else {
            return Ok(None);
        };
        let frames = value_to_python(py, value.clone())?;
        let value = self.shared.hooks(py)?.load_message.call1(py, (frames,))?;
        Ok(Some(value.into_bound(py)))
    }
}

#[pymethods]
impl Task {
    /// The key.
    #[getter]
    fn key<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        key_to_python(py, &self.key)
    }

    /// The annotation `executor`, if there is one.
    #[getter]
    fn executor<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.annotation(py, "executor")
    }

    /// The annotation `span`, if there is one.
    #[getter]
    fn span<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.annotation(py, "span")
    }

    /// Function, arguments and keyword arguments of a call that needs no graph node;
    /// `None` if the task has to be loaded.
    fn call<'py>(&self, py: Python<'py>) -> PyResult<Option<Call<'py>>> {
        let content = self.content();
        let Some((function, encoded)) = content.as_ref().and_then(|task| match &task.run_spec {
            RunSpec::Call {
                function,
                arguments,
            } if !task.is_actor => Some((function.clone(), arguments.clone())),
            RunSpec::Call { .. } | RunSpec::Node(_) => None,
        }) else {
            return Ok(None);
        };
        drop(content);
        let function = self.shared.functions.get(py, &self.shared, &function)?;
        let Some(function) = function else {
            return Ok(None);
        };
        let Some(task) = self.content().take() else {
            return Ok(None);
        };
        let (args, keywords) = call::arguments(py, &self.shared, &encoded, &task.inputs)?;
        Ok(Some((function, args, keywords)))
    }

    /// The graph node and its inputs by key. Can be taken once.
    fn load<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyDict>)> {
        let content = self.content().take();
        let content = content.ok_or_else(|| PyRuntimeError::new_err("the task was loaded"))?;
        let node = content.run_spec.into_node(&self.key);
        let node = node.map_err(|error| PyValueError::new_err(error.to_string()))?;
        let run_spec = self.node(py, node)?;
        let inputs = PyDict::new(py);
        for (key, input) in content.inputs {
            let value = input_to_python(py, &self.shared, &key, &input)?;
            inputs.set_item(key_to_python(py, &key)?, value)?;
        }
        Ok((run_spec, inputs))
    }

    /// It returned `value`; false if that is no scalar, and [`Self::finished`] has to
    /// be called. Figures as there.
    #[pyo3(signature = (value, start, stop, thread, cpu, noncpu))]
    fn returned(
        &self,
        value: &Bound<'_, PyAny>,
        start: f64,
        stop: f64,
        thread: u64,
        cpu: Option<f64>,
        noncpu: f64,
    ) -> bool {
        let Some(datum) = self.shared.scalar(value) else {
            return false;
        };
        self.answer(Outcome::Finished {
            value: Arc::new(datum),
            ran: ran(start, stop, thread, cpu, noncpu),
        });
        true
    }

    /// It returned `value`. `start` and `stop` are seconds since the epoch, `cpu`
    /// and `noncpu` seconds of its thread, without what the task measured itself.
    #[pyo3(signature = (value, nbytes, r#type, serialized, start, stop, thread, cpu, noncpu))]
    #[expect(clippy::too_many_arguments, reason = "called once, by position")]
    fn finished(
        &self,
        value: Py<PyAny>,
        nbytes: i64,
        r#type: &ValueType,
        serialized: Cheap<'_>,
        start: f64,
        stop: f64,
        thread: u64,
        cpu: Option<f64>,
        noncpu: f64,
    ) -> PyResult<()> {
        self.answer(Outcome::Finished {
            value: live_datum(value, serialized, nbytes, r#type.0.clone())?,
            ran: ran(start, stop, thread, cpu, noncpu),
        });
        Ok(())
    }

    /// It raised.
    #[pyo3(signature = (failure, start, stop, thread, cpu, noncpu))]
    fn erred(
        &self,
        failure: Failure<'_>,
        start: f64,
        stop: f64,
        thread: u64,
        cpu: Option<f64>,
        noncpu: f64,
    ) {
        self.answer(Outcome::Erred {
            failure: failure_of_python(&failure),
            ran: Some(ran(start, stop, thread, cpu, noncpu)),
        });
    }

    /// It could not be started.
    fn failed(&self, failure: Failure<'_>) {
        self.answer(unstarted(failure_of_python(&failure)));
    }

    /// It raised `Reschedule`.
    fn reschedule(&self) {
        self.answer(Outcome::Reschedule);
    }
}

impl Task {
    fn node<'py>(&self, py: Python<'py>, run_spec: Value) -> PyResult<Bound<'py, PyAny>> {
        let hooks = self.shared.hooks(py)?;
        if let Value::Pickled(pickled) = &run_spec {
            let wrong = |error: oxidask_wire::Error| PyValueError::new_err(error.to_string());
            if pickled.frames.is_empty() {
                let pickle = PyBytes::new(py, &pickled.pickle().map_err(wrong)?);
                return hooks.loads.bind(py).call1((pickle,));
            }
            let header = pickled.header_map().map_err(wrong)?;
            let compression = header.get("compression").and_then(Value::as_array);
            if compression.is_none_or(|frames| frames.iter().all(Value::is_nil)) {
                let pickle = PyBytes::new(py, &pickled.pickle().map_err(wrong)?);
                let buffers = frames_to_python(py, pickled.frames.iter().cloned())?;
                let keywords = PyDict::new(py);
                keywords.set_item("buffers", buffers)?;
                return hooks.loads.bind(py).call((pickle,), Some(&keywords));
            }
        }
        let frames = value_to_python(py, run_spec)?;
        hooks.load_message.bind(py).call1((frames,))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if !self.is_answered.load(Ordering::Acquire) {
            let failure = builtin("RuntimeError", "Worker is shutting down");
            self.answer(unstarted(failure));
        }
    }
}

fn unstarted(failure: Arc<TaskFailure>) -> Outcome {
    Outcome::Erred { failure, ran: None }
}

fn ran(start: f64, stop: f64, thread: u64, cpu: Option<f64>, noncpu: f64) -> Ran {
    let mut metrics = Vec::with_capacity(2);
    metrics.extend(cpu.map(|cpu| ("thread-cpu", "seconds", cpu)));
    metrics.push(("thread-noncpu", "seconds", noncpu));
    Ran {
        start,
        stop,
        thread,
        metrics,
    }
}
