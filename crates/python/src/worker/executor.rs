//! The executor: everything that the shell asks, handed to threads of the interpreter.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use oxidask_server::worker::{
    self, Answer, Datum, Executed, Executor, ExecutorSettings, Heartbeat, Input, Introduction,
    Outcome, Outgoing, Received, Request, WorkerHandle,
};
use oxidask_wire::{Key, Map, Serialized, Str, Value};
use oxidask_worker::State;
use oxidask_worker::task::{TaskFailure, ValueType as Type};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::sync::oneshot;

use super::arrays::Arrays;
use super::call::Functions;
use super::convert::{
    Failure, Form, builtin, failure_of_python, form_of_python, frames_to_python, key_to_python,
    serialized_of_python, shared_frames_to_python, value_to_python,
};
use super::held::{self, Live};
use super::inbox::{Item, Items};
use super::link::Link;
use super::queue::{Job, Jobs};
use super::reference;
use super::scalar::{self, Scalars};
use super::task::{Task, ValueType};

/// Tasks that threads may go on with by themselves. Chosen: as many empty ones as a
/// thread runs while reports gather.
const AHEAD_MAX: usize = 64;

/// Runs tasks with the interpreter of this process.
pub(crate) struct PythonExecutor {
    shared: Arc<Shared>,
}

/// What the threads of the shell and those of the interpreter share.
pub(crate) struct Shared {
    pub(crate) settings: ExecutorSettings,
    worker: RwLock<Option<Worker>>,
    hooks: OnceLock<Hooks>,
    /// Known once there are hooks.
    scalars: OnceLock<Scalars>,
    arrays: Arrays,
    /// Of calls.
    pub(crate) functions: Functions,
    /// Tasks of the pool `default`.
    pub(crate) default: Arc<Jobs>,
    /// Values to take in and to serialise.
    pub(crate) values: Arc<Jobs>,
    /// Everything for the event loop.
    pub(crate) inbox: Arc<Items>,
    pub(crate) heartbeat: Mutex<Heartbeat>,
    /// The event loop takes items.
    pub(crate) is_serving: AtomicBool,
    pub(crate) starting: Mutex<Option<oneshot::Sender<Started>>>,
}

/// What comes of starting the Python side.
pub(crate) type Started = Result<Introduction, Arc<TaskFailure>>;

/// The way back to the shell.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) handle: WorkerHandle,
    pub(crate) runtime: tokio::runtime::Handle,
}

/// Functions of `oxidask._worker`.
pub(crate) struct Hooks {
    /// `(pickle, *, buffers=()) -> object`
    pub(crate) loads: Py<PyAny>,
    /// `(pickle) -> Direct | None`: a function that calls may share.
    pub(crate) direct: Py<PyAny>,
    /// `(header, frames) -> object`: a serialised value.
    pub(crate) load: Py<PyAny>,
    /// `(header) -> bool`: arrays with this sub-header differ in their bytes only.
    pub(crate) is_array: Py<PyAny>,
    /// `(frames) -> object`: a message.
    pub(crate) load_message: Py<PyAny>,
    /// `(object) -> (nbytes, ValueType)`
    pub(crate) describe: Py<PyAny>,
    /// `(object) -> (header, frames)`, or `None` if that would cost something
    pub(crate) cheap: Py<PyAny>,
    /// `(object, serializers) -> (header, frames)`
    pub(crate) dump: Py<PyAny>,
    /// `(exception) -> Failure`
    pub(crate) failure: Py<PyAny>,
    /// `(class, key) -> proxy` of an actor that lives here.
    pub(crate) actor: Py<PyAny>,
}

impl Hooks {
    /// Those of an object that has them as attributes.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let hook = |name: &str| object.getattr(name).map(Bound::unbind);
        Ok(Self {
            loads: hook("loads")?,
            direct: hook("direct")?,
            load: hook("load")?,
            is_array: hook("is_array")?,
            load_message: hook("load_message")?,
            describe: hook("describe")?,
            cheap: hook("cheap")?,
            dump: hook("dump")?,
            failure: hook("failure")?,
            actor: hook("actor")?,
        })
    }
}

impl Shared {
    /// The way back, while there is one.
    pub(crate) fn worker(&self) -> Option<Worker> {
        let worker = self.worker.read().unwrap_or_else(PoisonError::into_inner);
        worker.clone()
    }

    fn set_worker(&self, worker: Option<Worker>) {
        *self.worker.write().unwrap_or_else(PoisonError::into_inner) = worker;
    }

    pub(crate) fn hooks(&self, _py: Python<'_>) -> PyResult<&Hooks> {
        let hooks = self.hooks.get();
        hooks.ok_or_else(|| PyRuntimeError::new_err("the worker has not started"))
    }

    /// The first ones count.
    pub(crate) fn set_hooks(&self, py: Python<'_>, hooks: Hooks) -> PyResult<()> {
        let scalars = Scalars::new(py, &hooks)?;
        let _ = self.scalars.set(scalars);
        let _ = self.hooks.set(hooks);
        Ok(())
    }

    /// A result that needs nothing of Python but its value.
    pub(crate) fn scalar(&self, value: &Bound<'_, PyAny>) -> Option<Datum> {
        self.scalars.get()?.of_python(value)
    }

    /// A task is done; a thread goes on with the next one.
    pub(crate) fn executed(self: &Arc<Self>, key: Key, outcome: Outcome) {
        let worker = self.worker.read().unwrap_or_else(PoisonError::into_inner);
        let Some(worker) = &*worker else {
            return;
        };
        let nbytes = match &outcome {
            Outcome::Finished { value, .. } => value.nbytes,
            Outcome::Erred { .. } | Outcome::Reschedule => 0,
        };
        let is_half = self.default.done(&key.clone(), nbytes, |next| {
            worker.handle.executed(Executed {
                key,
                outcome,
                next: next.as_ref().map(|task| task.key.clone()),
            });
            Some(Job::Task(Task::new(next?, self.clone())))
        });
        if is_half {
            worker.handle.wake();
        }
    }

    /// Says how starting went; only once.
    pub(crate) fn started(&self, started: Started) {
        let starting = &self.starting;
        let sender = starting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(sender) = sender {
            // The worker may have closed meanwhile.
            let _ = sender.send(started);
        }
    }

    /// The exception as others get it.
    pub(crate) fn failure(&self, py: Python<'_>, error: PyErr) -> Arc<TaskFailure> {
        let described = self.hooks(py).and_then(|hooks| {
            let failure = hooks.failure.bind(py).call1((error.value(py),))?;
            Ok(failure_of_python(&failure.extract::<Failure<'_>>()?))
        });
        described.unwrap_or_else(|_| builtin("RuntimeError", &error.to_string()))
    }
}

/// The live value, deserialised if need be.
pub(crate) fn deserialized(py: Python<'_>, shared: &Shared, datum: &Datum) -> PyResult<Py<PyAny>> {
    if let Some(live) = live(datum) {
        return Ok(live.get(py));
    }
    if let Some(scalar) = datum.as_scalar() {
        let object = scalar::to_python(py, scalar)?;
        datum.set_object(Arc::new(Live::new(object.clone_ref(py))));
        return Ok(object);
    }
    let serialized = datum
        .serialize()
        .ok_or_else(|| PyRuntimeError::new_err("the value is not in memory"))?;
    let object = load(py, shared, serialized)?;
    datum.set_object(Arc::new(Live::new(object.clone_ref(py))));
    Ok(object)
}

/// What a task gets of an input: the value, or a proxy of an actor.
pub(crate) fn input_to_python<'py>(
    py: Python<'py>,
    shared: &Shared,
    key: &Key,
    input: &Input,
) -> PyResult<Bound<'py, PyAny>> {
    match input {
        Input::Value(datum) => Ok(deserialized(py, shared, datum)?.into_bound(py)),
        Input::Actor(datum) => proxy(py, shared, key, datum),
    }
}

/// A proxy of an actor that lives here.
fn proxy<'py>(
    py: Python<'py>,
    shared: &Shared,
    key: &Key,
    actor: &Datum,
) -> PyResult<Bound<'py, PyAny>> {
    let class = deserialized(py, shared, actor)?.bind(py).get_type();
    let arguments = (class, key_to_python(py, key)?);
    shared.hooks(py)?.actor.bind(py).call1(arguments)
}

fn live(datum: &Datum) -> Option<&Live> {
    datum.object()?.downcast_ref::<Live>()
}

fn load(py: Python<'_>, shared: &Shared, serialized: Serialized) -> PyResult<Py<PyAny>> {
    if let Some(frame) = serialized.as_reference() {
        let live = reference::resolve(frame).ok_or_else(reference::unknown)?;
        return Ok(live.get(py));
    }
    // An array shares its memory with its serialised form, as one does that a task made.
    let shares = shared.arrays.contain(&serialized);
    let Serialized { header, frames } = serialized;
    let frames = match shares {
        true => shared_frames_to_python(py, frames)?,
        false => frames_to_python(py, frames)?,
    };
    let arguments = (PyBytes::new(py, &header), frames);
    shared.hooks(py)?.load.call1(py, arguments)
}

/// Values to convert.
pub(crate) enum Values {
    /// Take values in.
    Receive {
        values: Vec<Value>,
        shared: Arc<Shared>,
        sender: oneshot::Sender<Vec<Received>>,
    },
    /// Serialise values.
    Serialize {
        values: Vec<Outgoing>,
        serializers: Option<Vec<Str>>,
        shared: Arc<Shared>,
        sender: oneshot::Sender<Vec<Serialized>>,
    },
    /// Let go of what only refers to itself.
    CollectGarbage,
}

impl Values {
    /// Does it, and tells whoever still waits.
    pub(crate) fn convert(self, py: Python<'_>) {
        match self {
            Self::Receive {
                values,
                shared,
                sender,
            } => {
                let values = values.into_iter().map(|value| {
                    receive(py, &shared, value).map_err(|error| shared.failure(py, error))
                });
                let _ = sender.send(values.collect());
            }
            Self::Serialize {
                values,
                serializers,
                shared,
                sender,
            } => {
                let values = values.into_iter().map(|value| {
                    serialize(py, &shared, &value, serializers.as_deref())
                        .unwrap_or_else(|error| Serialized::error(&error.to_string()))
                });
                let _ = sender.send(values.collect());
            }
            Self::CollectGarbage => {
                let collected = py.import("gc").and_then(|gc| gc.call_method0("collect"));
                if let Err(error) = collected {
                    error.print(py);
                }
                held::release(py);
            }
        }
    }
}

/// Deserialises at once, as stock: only so are size and type known, and an error
/// belongs to this key and not to the tasks that need it. What is large keeps the
/// memory in which it came.
fn receive(py: Python<'_>, shared: &Shared, value: Value) -> PyResult<Arc<Datum>> {
    let Value::Serialized(serialized) = value else {
        let frames = value_to_python(py, value)?;
        let object = shared.hooks(py)?.load_message.call1(py, (frames,))?;
        return datum(py, shared, object);
    };
    let header = serialized.header.clone();
    let nbytes = serialized.frames.first().map_or(0, Bytes::len);
    let object = load(py, shared, *serialized)?;
    let datum = datum(py, shared, object)?;
    let is_array = &shared.hooks(py)?.is_array;
    if is_array
        .bind(py)
        .call1((PyBytes::new(py, &header),))?
        .is_truthy()?
    {
        shared.arrays.remember(header, nbytes, &datum);
    }
    Ok(datum)
}

/// A live value, measured, and serialised if that is cheap: others get it then while
/// a task holds the interpreter.
pub(crate) fn datum(py: Python<'_>, shared: &Shared, object: Py<PyAny>) -> PyResult<Arc<Datum>> {
    let described = shared.hooks(py)?.describe.bind(py).call1((&object,))?;
    let (nbytes, r#type) = described.extract::<(i64, Bound<'_, ValueType>)>()?;
    let r#type = r#type.get().0.clone();
    let serialized = shared.hooks(py)?.cheap.bind(py).call1((&object,))?;
    let serialized = serialized.extract::<Cheap<'_>>()?;
    live_datum(object, serialized, nbytes, r#type)
}

/// What `_worker_values.cheap` gives.
pub(crate) type Cheap<'py> = Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>;

/// A live value that was measured and serialised.
pub(crate) fn live_datum(
    object: Py<PyAny>,
    cheap: Cheap<'_>,
    nbytes: i64,
    r#type: Arc<Type>,
) -> PyResult<Arc<Datum>> {
    let form = cheap.map(|(header, frames)| form_of_python(&header, &frames));
    let object = Arc::new(Live::new(object));
    Ok(Arc::new(match form.transpose()? {
        None => Datum::live(object, None, nbytes, r#type),
        Some(Form::Serialized(serialized)) => Datum::live(object, Some(serialized), nbytes, r#type),
        Some(Form::Strided(array)) => Datum::encodable(object, Box::new(array), nbytes, r#type),
    }))
}

fn serialize(
    py: Python<'_>,
    shared: &Shared,
    value: &Outgoing,
    serializers: Option<&[Str]>,
) -> PyResult<Serialized> {
    let hooks = shared.hooks(py)?;
    let object = if value.is_actor {
        proxy(py, shared, &value.key, &value.datum)?
    } else {
        deserialized(py, shared, &value.datum)?.into_bound(py)
    };
    let by_reference = serializers.is_some_and(|names| names == [reference::FAMILY]);
    if by_reference && !value.is_actor {
        let live = Arc::new(Live::new(object.unbind()));
        return Ok(Serialized::reference(reference::frame(live)));
    }
    // Of a proxy its own family.
    let serializers = serializers.filter(|_| !by_reference);
    let serializers = serializers.map(|names| names.iter().map(Str::as_str).collect::<Vec<_>>());
    let dumped = hooks.dump.bind(py).call1((object, serializers))?;
    let (header, frames) = dumped.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
    serialized_of_python(&header, &frames)
}

impl PythonExecutor {
    /// An executor that has not started.
    ///
    /// # Errors
    /// No socket pair could be had.
    pub(crate) fn new(settings: ExecutorSettings) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                settings,
                worker: RwLock::new(None),
                hooks: OnceLock::new(),
                scalars: OnceLock::new(),
                arrays: Arrays::default(),
                functions: Functions::default(),
                default: Arc::default(),
                values: Arc::default(),
                inbox: Arc::new(Items::new()?),
                heartbeat: Mutex::default(),
                is_serving: AtomicBool::new(false),
                starting: Mutex::new(None),
            }),
        })
    }

    /// Hands something to the event loop and waits for it, if there is one.
    async fn ask(&self, item: impl FnOnce(oneshot::Sender<()>) -> Item) {
        if self.shared.is_serving.load(Ordering::Acquire) {
            let (sender, done) = oneshot::channel();
            self.shared.inbox.push(item(sender));
            // An error: the loop ended and took it away.
            let _ = done.await;
        }
    }
}

/// Imports the Python side and starts its thread.
fn start(shared: Arc<Shared>) {
    Python::attach(|py| {
        let begun = py.import("oxidask._worker").and_then(|module| {
            let link = Py::new(py, Link(shared.clone()))?;
            module.call_method1("start", (link,))
        });
        if let Err(error) = begun {
            error.print(py);
            let text = format!("cannot start the Python side of the worker: {error}");
            shared.started(Err(builtin("RuntimeError", &text)));
        }
    });
}

impl Executor for PythonExecutor {
    fn start(&self, worker: WorkerHandle) -> BoxFuture<'_, Started> {
        let (sender, receiver) = oneshot::channel();
        let shared = self.shared.clone();
        *shared
            .starting
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(sender);
        async move {
            shared.set_worker(Some(Worker {
                handle: worker,
                runtime: tokio::runtime::Handle::current(),
            }));
            held::start_releasing();
            tokio::task::spawn_blocking(move || start(shared));
            receiver
                .await
                .unwrap_or_else(|_| Err(builtin("RuntimeError", "the event loop has ended")))
        }
        .boxed()
    }

    fn execute(&self, tasks: Vec<worker::Task>) {
        let mut default = Vec::with_capacity(tasks.len());
        for task in tasks {
            let is_default = task.is_for_default_pool();
            let task = Task::new(task, self.shared.clone());
            if is_default {
                default.push(Job::Task(task));
            } else {
                self.shared.inbox.push(Item::Task(task));
            }
        }
        if !default.is_empty() {
            self.shared.default.push(default.into_iter());
        }
    }

    fn ahead_max(&self) -> usize {
        AHEAD_MAX
    }

    fn lend(&self, tasks: VecDeque<worker::Task>, nbytes: i64) {
        self.shared.default.lend(tasks, nbytes);
    }

    fn take_back(&self) -> VecDeque<worker::Task> {
        self.shared.default.take_back()
    }

    fn receive(&self, values: Vec<(Key, Value)>) -> BoxFuture<'_, Vec<Received>> {
        let count = values.len();
        if let Some(scalars) = self.shared.scalars.get() {
            let arrays = &self.shared.arrays;
            let data = values.iter().map(|(_, value)| {
                let scalar = scalars.of_message(value);
                scalar.or_else(|| arrays.of_message(value))
            });
            let data = data.map(|datum| datum.map(|datum| Ok(Arc::new(datum))));
            if let Some(received) = data.collect::<Option<Vec<Received>>>() {
                return ready(received).boxed();
            }
        }
        let (sender, received) = oneshot::channel();
        let values = Values::Receive {
            values: values.into_iter().map(|(_, value)| value).collect(),
            shared: self.shared.clone(),
            sender,
        };
        self.shared.values.push([Job::Values(values)].into_iter());
        async move {
            received
                .await
                .unwrap_or_else(|_| vec![Err(shutting_down()); count])
        }
        .boxed()
    }

    fn serialize(
        &self,
        values: Vec<Outgoing>,
        serializers: Option<Vec<Str>>,
    ) -> BoxFuture<'_, Vec<Serialized>> {
        let count = values.len();
        let (sender, serialized) = oneshot::channel();
        let values = Values::Serialize {
            values,
            serializers,
            shared: self.shared.clone(),
            sender,
        };
        self.shared.values.push([Job::Values(values)].into_iter());
        async move {
            serialized
                .await
                .unwrap_or_else(|_| vec![Serialized::error("Worker is shutting down"); count])
        }
        .boxed()
    }

    fn passes_references(&self) -> bool {
        self.shared.settings.passes_references
    }

    fn reference(&self, value: &Outgoing) -> Option<Serialized> {
        // Of an actor others get a proxy.
        let object = value.datum.object().filter(|_| !value.is_actor)?;
        let live = object.clone().downcast::<Live>().ok()?;
        Some(Serialized::reference(reference::frame(live)))
    }

    fn call(&self, request: Request) -> BoxFuture<'_, Option<Answer>> {
        let (sender, answer) = oneshot::channel();
        self.shared.inbox.push(Item::Request(request, sender));
        async move { answer.await.unwrap_or_else(|_| Some(Err(shutting_down()))) }.boxed()
    }

    fn stream_message(&self, op: &str, fields: Map) -> bool {
        // Plug-ins may add any; the event loop closes the worker for an unknown one.
        self.shared.inbox.push(Item::StreamMessage {
            op: op.into(),
            fields,
        });
        true
    }

    fn heartbeat(&self) -> Heartbeat {
        let heartbeat = &self.shared.heartbeat;
        heartbeat
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn collect_garbage(&self) {
        let values = Values::CollectGarbage;
        self.shared.values.push([Job::Values(values)].into_iter());
    }

    fn transition(&self, key: &Key, start: State, finish: State) {
        self.shared.inbox.push(Item::Transition {
            key: key.clone(),
            start,
            finish,
        });
    }

    fn teardown(&self) -> BoxFuture<'_, ()> {
        self.ask(Item::Teardown).boxed()
    }

    fn close(&self, wait: bool) -> BoxFuture<'_, ()> {
        async move {
            self.shared.default.close();
            self.ask(|done| Item::Close(wait, done)).await;
            self.shared.values.close();
            self.shared.inbox.clear();
            self.shared.set_worker(None);
        }
        .boxed()
    }
}

fn shutting_down() -> Arc<TaskFailure> {
    builtin("RuntimeError", "Worker is shutting down")
}
