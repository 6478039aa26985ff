//! The worker as the facade in Python sees it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use oxidask_server::logging::LogRecord;
use oxidask_server::options::TlsSource;
use oxidask_server::worker::{Heartbeat, Introduction, Status};
use oxidask_wire::Value;
use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::convert::{
    Failure, failure_of_python, key_of_python, key_to_python, map_of_python, value_of_python,
    value_to_python,
};
use super::executor::{Hooks, Shared, Worker, datum, deserialized};
use super::inbox::Inbox;
use super::queue::Queue;

/// The native side of one worker. What waits for the shell does so detached.
#[pyclass(frozen)]
pub(crate) struct Link(pub(crate) Arc<Shared>);

impl Link {
    fn worker(&self) -> PyResult<Worker> {
        let worker = self.0.worker();
        worker.ok_or_else(|| PyRuntimeError::new_err("the worker is closed"))
    }

    /// Asks the shell and waits for its answer.
    fn ask<T, F>(&self, py: Python<'_>, question: impl FnOnce(Worker) -> F + Send) -> PyResult<T>
    where
        T: Send,
        F: Future<Output = T> + Send,
    {
        let worker = self.worker()?;
        let runtime = worker.runtime.clone();
        Ok(py.detach(move || runtime.block_on(question(worker))))
    }
}

#[pymethods]
impl Link {
    /// What does not change, by name.
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let worker = self.worker()?.handle;
        let settings = &self.0.settings;
        let security = &settings.security;
        let dict = PyDict::new(py);
        dict.set_item("id", worker.id())?;
        dict.set_item("address", worker.address())?;
        dict.set_item("scheduler", worker.scheduler().to_string())?;
        dict.set_item("name", plain(py, worker.name())?)?;
        dict.set_item("has_name", !settings.name.is_nil())?;
        dict.set_item("nthreads", settings.nthreads)?;
        dict.set_item("local_directory", settings.local_directory.as_os_str())?;
        dict.set_item("memory_limit", settings.memory_limit)?;
        dict.set_item("nanny", &settings.nanny)?;
        dict.set_item("preload", &settings.preload)?;
        dict.set_item("preload_argv", &settings.preload_argv)?;
        let resources = PyDict::new(py);
        for (name, amount) in &settings.resources {
            resources.set_item(&**name, amount)?;
        }
        dict.set_item("resources", resources)?;
        dict.set_item("tls_ca_file", tls(security.ca_file.as_ref()))?;
        dict.set_item("tls_worker_cert", tls(security.cert.as_ref()))?;
        dict.set_item("tls_worker_key", tls(security.key.as_ref()))?;
        dict.set_item("require_encryption", security.require_encryption)?;
        dict.set_item("is_guest", settings.is_guest)?;
        dict.set_item("passes_references", settings.passes_references)?;
        Ok(dict)
    }

    /// The queue of the pool `default`.
    fn default_queue(&self) -> Queue {
        Queue(self.0.default.clone())
    }

    /// The queue of those who take values in and serialise them.
    fn values_queue(&self) -> Queue {
        Queue(self.0.values.clone())
    }

    /// What the event loop is asked.
    fn inbox(&self) -> Inbox {
        Inbox(self.0.inbox.clone())
    }

    /// Takes the functions that native code calls from the attributes of `object`.
    fn set_hooks(&self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        self.0.set_hooks(object.py(), Hooks::of(object)?)?;
        self.0.is_serving.store(true, Ordering::Release);
        Ok(())
    }

    /// The Python side is ready: `versions` and `startup_information`, as frames.
    fn started(&self, frames: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut fields = map_of_python(frames)?;
        let startup_information = fields.take("startup_information").and_then(Value::into_map);
        self.0.started(Ok(Introduction {
            versions: fields.take("versions").unwrap_or_default(),
            startup_information: startup_information.unwrap_or_default(),
            wants_transitions: false,
        }));
        Ok(())
    }

    /// The Python side could not be started.
    fn not_started(&self, failure: Failure<'_>) {
        self.0.started(Err(failure_of_python(&failure)));
    }

    /// The event loop takes nothing any more.
    fn ended(&self) {
        self.0.is_serving.store(false, Ordering::Release);
        self.0.inbox.clear();
    }

    /// A task seceded after so many seconds. The key is a str, or msgpack.
    fn seceded(
        &self,
        key: &Bound<'_, PyAny>,
        compute_duration: f64,
        stimulus_id: &str,
    ) -> PyResult<()> {
        let key = key_of_python(key)?;
        let worker = self.worker()?.handle;
        self.0.default.secede(key.clone());
        worker.seceded(key, compute_duration, Some(stimulus_id.into()));
        Ok(())
    }

    /// Keeps a record of Python's logging for `get_logs`: seconds since the epoch,
    /// name of the level, formatted line.
    fn keep_log(&self, timestamp: f64, level: String, line: String) -> PyResult<()> {
        self.worker()?.handle.keep_log(LogRecord {
            timestamp,
            level: level.into(),
            line,
        });
        Ok(())
    }

    /// Changes the totals of some resources, given by name.
    fn set_resources(&self, py: Python<'_>, resources: Vec<(String, f64)>) -> PyResult<()> {
        let resources = resources.into_iter();
        let resources = resources
            .map(|(name, total)| (name.into(), total))
            .collect();
        self.ask(py, |worker| async move {
            worker.handle.set_resources(resources).await;
        })
    }

    /// Sends a message to the scheduler, given as frames.
    fn send(&self, frames: &Bound<'_, PyAny>) -> PyResult<()> {
        let message = map_of_python(frames)?;
        self.worker()?.handle.send(message);
        Ok(())
    }

    /// Adds to a figure of the next heartbeat. The name is given as frames.
    fn digest_metric(&self, name: &Bound<'_, PyAny>, amount: f64) -> PyResult<()> {
        let name = value_of_python(name)?;
        self.worker()?.handle.digest_metric(name, amount);
        Ok(())
    }

    /// What goes with heartbeats from now on: `metrics` and `extensions`, as frames.
    fn set_heartbeat(&self, frames: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut fields = map_of_python(frames)?;
        let mut map = |name| fields.take(name).and_then(Value::into_map);
        let heartbeat = Heartbeat {
            metrics: map("metrics").unwrap_or_default(),
            extensions: map("extensions").unwrap_or_default(),
        };
        *self
            .0
            .heartbeat
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = heartbeat;
        Ok(())
    }

    /// Whether transitions of tasks are told.
    fn set_wants_transitions(&self, py: Python<'_>, wants: bool) -> PyResult<()> {
        self.ask(py, |worker| async move {
            worker.handle.set_wants_transitions(wants).await;
        })
    }

    /// Begins the shutdown.
    fn close(&self, reason: &str, nanny: bool, executor_wait: bool) -> PyResult<()> {
        let worker = self.worker()?.handle;
        worker.close_as(reason, nanny, executor_wait);
        Ok(())
    }

    /// Lets the scheduler move the data away, then begins the shutdown.
    fn close_gracefully(&self, py: Python<'_>, restart: bool, reason: &str) -> PyResult<()> {
        self.ask(py, |worker| async move {
            worker.handle.close_gracefully(restart, reason).await;
        })
    }

    /// A value or actor that is here. The key is a str, or msgpack.
    fn data(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let name = key_of_python(key)?;
        let found = self.ask(py, |worker| async move { worker.handle.data(name).await })?;
        let found = found.ok_or_else(|| PyKeyError::new_err(key.clone().unbind()))?;
        deserialized(py, &self.0, &found)
    }

    /// Keys of all values that are here.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let keys = self.ask(py, |worker| async move { worker.handle.keys().await })?;
        let keys = keys.iter().map(|key| key_to_python(py, key));
        PyList::new(py, keys.collect::<PyResult<Vec<_>>>()?)
    }

    /// Keeps values, given as pairs of key and object; their sizes.
    fn update_data(
        &self,
        py: Python<'_>,
        data: Vec<(Bound<'_, PyAny>, Py<PyAny>)>,
    ) -> PyResult<Vec<i64>> {
        let data = data.into_iter().map(|(key, object)| {
            let datum = datum(py, &self.0, object)?;
            Ok((key_of_python(&key)?, datum))
        });
        let data = data.collect::<PyResult<Vec<_>>>()?;
        let sizes = data.iter().map(|(_, datum)| datum.nbytes).collect();
        self.ask(py, |worker| async move {
            worker.handle.update_data(data).await;
        })?;
        Ok(sizes)
    }

    /// What is known of a task, as frames; `None` if nothing is.
    fn task<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyList>>> {
        let key = key_of_python(key)?;
        let task = self.ask(py, |worker| async move { worker.handle.task(key).await })?;
        task.map(|task| value_to_python(py, Value::Map(task)))
            .transpose()
    }

    /// Keys of all tasks.
    fn task_keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let keys = self.ask(py, |worker| async move { worker.handle.task_keys().await })?;
        let keys = keys.iter().map(|key| key_to_python(py, key));
        PyList::new(py, keys.collect::<PyResult<Vec<_>>>()?)
    }

    /// Numbers of tasks by state.
    fn task_counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = self.ask(
            py,
            |worker| async move { worker.handle.task_counts().await },
        )?;
        let dict = PyDict::new(py);
        for (state, count) in counts {
            dict.set_item(state, count)?;
        }
        Ok(dict)
    }

    /// Name of the status.
    fn status(&self, py: Python<'_>) -> PyResult<&'static str> {
        let status = self.ask(py, |worker| async move { worker.handle.status().await })?;
        Ok(status.name())
    }

    /// Takes the status of this name.
    fn set_status(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        let status = Status::from_name(name)
            .ok_or_else(|| PyValueError::new_err(format!("unknown worker status `{name}`")))?;
        self.ask(py, |worker| async move {
            worker.handle.set_status(status).await;
        })
    }
}

/// A path, or PEM text: `Security` takes both.
fn tls(source: Option<&TlsSource>) -> Option<String> {
    source.map(|source| match source {
        TlsSource::File(path) => path.to_string_lossy().into_owned(),
        TlsSource::Pem(text) => text.clone(),
    })
}

/// A name: text or number.
fn plain<'py>(py: Python<'py>, name: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match (name.as_str(), name.as_i64()) {
        (Some(text), _) => text.into_pyobject(py)?.into_any(),
        (None, Some(number)) => number.into_pyobject(py)?.into_any(),
        (None, None) => py.None().into_bound(py),
    })
}
