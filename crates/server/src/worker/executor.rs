//! What runs tasks and knows values: an interpreter, behind a trait.

use std::any::Any;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use oxidask_wire::pickle::{PickleArg, plain_pickle, task_pickle};
use oxidask_wire::{Key, Map, Pickled, Serialized, Str, Value};
use oxidask_worker::State;
use oxidask_worker::task::{TaskFailure, ValueType};

use super::handle::WorkerHandle;
use crate::config::Config;
use crate::options::{PythonCommand, Security};

/// A live value. Only the executor knows what it is.
pub type Object = Arc<dyn Any + Send + Sync>;

/// Runs tasks, and does with values what takes the language they are written in.
///
/// The shell calls this from its own threads and must never wait there: a method
/// that is not `async` returns at once, whatever tasks are doing. What a future
/// waits for delays the one request that it belongs to.
pub trait Executor: Send + Sync + 'static {
    /// Gets ready, before the worker registers. `worker` is the way back to it.
    ///
    /// # Errors
    /// Why no task can be run: the worker does not start.
    fn start(&self, worker: WorkerHandle) -> BoxFuture<'_, Result<Introduction, Arc<TaskFailure>>>;

    /// Runs tasks, best first, each in the pool that its annotation `executor`
    /// names. They are as many as may run at a time: nothing waits for a thread
    /// that the worker does not know of.
    ///
    /// Each, as each that was lent and begun, is answered by one call of
    /// [`WorkerHandle::executed`], whatever happens; also a task that was cancelled
    /// meanwhile.
    fn execute(&self, tasks: Vec<Task>);

    /// How many tasks [`lend`](Self::lend) may get at a time.
    fn ahead_max(&self) -> usize {
        0
    }

    /// Lends tasks of the pool `default`, best first: whoever is done with a task may go
    /// on with the first of these at once, and says so in [`Executed::next`]. Only until
    /// the results have so many bytes together. What was lent before has been taken back.
    ///
    /// Reports wait for a while, but no longer than until [`WorkerHandle::wake`], which
    /// is called when half of the tasks have begun.
    fn lend(&self, tasks: VecDeque<Task>, nbytes: i64) {
        let _ = (tasks, nbytes);
    }

    /// Takes back what was lent and not begun, in the same order. What was begun has
    /// been told.
    fn take_back(&self) -> VecDeque<Task> {
        VecDeque::new()
    }

    /// Takes values in that came from a peer or a client, as they were on the
    /// wire: serialised ones, or plain msgpack. Gives them back in the same order,
    /// deserialised or not.
    fn receive(&self, values: Vec<(Key, Value)>) -> BoxFuture<'_, Vec<Received>>;

    /// Serialises values for others, by these families only (`dask`, `pickle`, …;
    /// `None`: the default ones), in the same order. A value that cannot be
    /// serialised becomes [`Serialized::error`].
    fn serialize(
        &self,
        values: Vec<Outgoing>,
        serializers: Option<Vec<Str>>,
    ) -> BoxFuture<'_, Vec<Serialized>>;

    /// Whether others are in this process, so that values go to them as references
    /// ([`Serialized::reference`]), whatever families they ask for. What is not live is
    /// [serialised](Self::serialize) for them by the family `reference`.
    fn passes_references(&self) -> bool {
        false
    }

    /// A reference to a live value; `None` if there is none.
    fn reference(&self, value: &Outgoing) -> Option<Serialized> {
        let _ = value;
        None
    }

    /// Answers a request that is not the shell's: `run`, `run_coroutine`,
    /// `actor_execute`, `actor_attribute`, `plugin-add`, `plugin-remove`,
    /// `upload_file`, `call_stack`, `profile`, `profile_metadata`, `benchmark_…`,
    /// and what plug-ins add (`shuffle_receive`). `None`: there is no such operation.
    fn call(&self, request: Request) -> BoxFuture<'_, Option<Answer>>;

    /// Takes a message of the scheduler's stream that is not the core's
    /// (`shuffle-fail`), in the order of the stream. False: there is no such operation.
    fn stream_message(&self, op: &str, fields: Map) -> bool;

    /// What goes with a heartbeat. Must not wait for anything.
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::default()
    }

    /// Drops values that are no longer kept. Peers and tasks may still hold some.
    fn release(&self, values: Vec<Arc<Datum>>) {
        drop(values);
    }

    /// Collects garbage at the next occasion, for memory is short: `gc.collect`.
    fn collect_garbage(&self) {}

    /// A task went from one state to another; only if [`Introduction::wants_transitions`],
    /// or since [`WorkerHandle::set_wants_transitions`].
    fn transition(&self, key: &Key, start: State, finish: State) {
        let _ = (key, start, finish);
    }

    /// The worker closes: tears plug-ins down, while the scheduler still listens.
    fn teardown(&self) -> BoxFuture<'_, ()>;

    /// Stops the threads, waits for running tasks if `wait`, and lets go of the
    /// [`WorkerHandle`]. Comes last, also without `teardown` if the worker could
    /// not be started.
    fn close(&self, wait: bool) -> BoxFuture<'_, ()>;
}

/// Makes the executor of a worker that the command line starts.
///
/// The command line knows no interpreter; the program that brings one hands it in
/// as this.
pub trait ExecutorFactory: Send + Sync {
    /// Makes an executor for one worker of this process. Called once, before the
    /// worker listens; [`Executor::start`] comes when its address is known.
    ///
    /// # Errors
    /// Why there can be none, as text for the user. The process ends.
    fn create(&self, settings: ExecutorSettings) -> Result<Arc<dyn Executor>, String>;

    /// What starts this program again as `oxidask worker`, in processes that a nanny
    /// watches; the options are appended.
    fn command(&self, python: &PythonCommand) -> Vec<OsString> {
        let module = ["-m", "oxidask", "worker"].map(OsString::from);
        let mut command = vec![python.executable.clone().into_os_string()];
        command.extend(module);
        command
    }
}

/// What an executor is made with: the worker's command line and configuration.
#[derive(Clone, Debug)]
pub struct ExecutorSettings {
    /// Tasks that run at a time in the pool `default`.
    pub nthreads: usize,
    /// `--name`: text or number; null if the worker is to be named by its address.
    pub name: Value,
    /// The worker's own folder, which exists and is locked.
    pub local_directory: PathBuf,
    /// Where the scheduler is, as it was given.
    pub scheduler_address: String,
    /// `--preload`, else `distributed.worker.preload`: modules to load, in order.
    pub preload: Vec<String>,
    /// Arguments for them.
    pub preload_argv: Vec<String>,
    /// Amounts by name.
    pub resources: Vec<(Arc<str>, f64)>,
    /// Bytes; `None` is no limit.
    pub memory_limit: Option<u64>,
    /// Address of the nanny that watches this process.
    pub nanny: Option<String>,
    /// TLS files and rules of a worker.
    pub security: Security,
    /// The process is somebody else's, who may have other workers in it.
    pub is_guest: bool,
    /// Everybody that the worker speaks to is in this process.
    pub passes_references: bool,
    /// Dask's configuration, with what the command line says on top.
    pub config: Config,
}

/// What an executor says of itself.
#[derive(Clone, Debug, Default)]
pub struct Introduction {
    /// The map of `distributed.versions.get_versions`.
    pub versions: Value,
    /// `extra` of the registration: `startup_information`.
    pub startup_information: Map,
    /// Calls [`Executor::transition`].
    pub wants_transitions: bool,
}

/// A task to run.
#[derive(Clone, Debug)]
pub struct Task {
    /// Which.
    pub key: Key,
    /// Which run of it.
    pub run_id: i64,
    /// How.
    pub run_spec: RunSpec,
    /// What it needs.
    pub inputs: Vec<(Key, Input)>,
    /// `executor` names the pool; the rest is for the task itself.
    pub annotations: Map,
    /// Group of metrics.
    pub span_id: Option<Str>,
    /// The result is an actor, which stays here.
    pub is_actor: bool,
}

impl Task {
    /// Whether the pool `default` runs it, which its annotation `executor` decides.
    pub fn is_for_default_pool(&self) -> bool {
        let executor = self.annotations.get("executor");
        executor.is_none_or(|name| name.is_nil() || name.as_str() == Some("default"))
    }
}

/// How a task is computed.
#[derive(Clone, Debug, PartialEq)]
pub enum RunSpec {
    /// As stock's scheduler sends it: a pickle of a graph node.
    Node(Value),
    /// A call, as ours does.
    Call {
        /// Pickle of the function; tasks of one function share it.
        function: Bytes,
        /// msgpack of the arguments, see `docs/graph-helper.md`.
        arguments: Bytes,
    },
}

impl RunSpec {
    /// As the core keeps it, which does not read it.
    pub(super) fn into_value(self) -> Value {
        match self {
            Self::Node(node) => node,
            Self::Call {
                function,
                arguments,
            } => Value::Array(vec![Value::Bin(function), Value::Bin(arguments)]),
        }
    }

    /// What [`Self::into_value`] made; a node is never a list.
    pub(super) fn from_value(value: Value) -> Self {
        let Value::Array(mut parts) = value else {
            return Self::Node(value);
        };
        let mut part = || parts.pop().and_then(Value::into_bin).unwrap_or_default();
        let arguments = part();
        Self::Call {
            function: part(),
            arguments,
        }
    }

    /// A message with the graph node, for whoever knows nothing else: the pickle of
    /// a call is made here.
    ///
    /// # Errors
    /// Malformed arguments.
    pub fn into_node(self, key: &Key) -> Result<Value, oxidask_wire::Error> {
        match self {
            Self::Node(node) => Ok(node),
            Self::Call {
                function,
                arguments,
            } => {
                let pickle = task_pickle(key, &function, &arguments)?;
                Ok(Pickled::with_buffers(&pickle, []).into())
            }
        }
    }
}

/// What a task needs.
#[derive(Clone, Debug)]
pub enum Input {
    /// A value.
    Value(Arc<Datum>),
    /// An actor that lives here: the task gets a proxy of it.
    Actor(Arc<Datum>),
}

/// A value to send, or an actor of which a proxy is sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Its key.
    pub key: Key,
    /// The value.
    pub datum: Arc<Datum>,
    /// Send a proxy.
    pub is_actor: bool,
}

/// A value taken in, or why it cannot be used.
pub type Received = Result<Arc<Datum>, Arc<TaskFailure>>;

/// A task is done.
#[derive(Clone, Debug)]
pub struct Executed {
    /// Which.
    pub key: Key,
    /// What came of it.
    pub outcome: Outcome,
    /// The task, of those that were [lent](Executor::lend), which runs in its place now.
    /// A task that has seceded leaves no place.
    pub next: Option<Key>,
}

/// What came of a task.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It returned.
    Finished {
        /// What.
        value: Arc<Datum>,
        /// When and where it ran.
        ran: Ran,
    },
    /// It raised.
    Erred {
        /// What.
        failure: Arc<TaskFailure>,
        /// When and where it ran; `None` if it could not be started.
        ran: Option<Ran>,
    },
    /// It raised `Reschedule`.
    Reschedule,
}

/// When and where a task ran.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// In seconds since the epoch, by this machine's clock.
    pub start: f64,
    /// As `start`.
    pub stop: f64,
    /// Identity of the thread.
    pub thread: u64,
    /// Figures of the run, such as `("thread-cpu", "seconds", 0.1)`.
    pub metrics: Vec<(&'static str, &'static str, f64)>,
}

/// A request for the executor.
#[derive(Debug)]
pub struct Request {
    /// What.
    pub op: Str,
    /// Keyword arguments.
    pub args: Map,
}

/// The answer to a request, or what it raised.
pub type Answer = Result<Value, Arc<TaskFailure>>;

/// What an executor adds to a heartbeat.
#[derive(Clone, Debug, Default)]
pub struct Heartbeat {
    /// Metrics by name, the user's for one; those of the shell go first.
    pub metrics: Map,
    /// By extension: `shuffle`. The shell adds `spans`.
    pub extensions: Map,
}

/// A value that messages hold as it is, of exactly these types.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// `None`
    None,
    /// bool
    Bool(bool),
    /// int within 64 bits
    Int(i64),
    /// float
    Float(f64),
    /// str
    Str(Str),
}

impl Scalar {
    /// The scalar in a message.
    pub fn from_value(value: &Value) -> Option<Self> {
        if let Some(number) = value.as_i64() {
            return Some(Self::Int(number));
        }
        Some(match value {
            Value::Nil => Self::None,
            Value::Bool(value) => Self::Bool(*value),
            Value::Float(value) => Self::Float(*value),
            // Without the message that it came in.
            Value::Str(text) => Self::Str(Str::from(text.as_str())),
            Value::Int(_)
            | Value::UInt(_)
            | Value::Bin(_)
            | Value::Array(_)
            | Value::Map(_)
            | Value::Set(_)
            | Value::Enum(_)
            | Value::Serialized(_)
            | Value::Pickled(_)
            | Value::Key(_)
            | Value::Raw(_) => return None,
        })
    }

    /// As messages hold it.
    pub fn to_value(&self) -> Value {
        match self {
            Self::None => Value::Nil,
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Float(value) => Value::Float(*value),
            Self::Str(value) => Value::Str(value.clone()),
        }
    }

    fn pickle(&self) -> Bytes {
        let constant = match self {
            Self::None => PickleArg::None,
            Self::Bool(value) => PickleArg::Bool(*value),
            Self::Int(value) => PickleArg::Int(*value),
            Self::Float(value) => PickleArg::Float(*value),
            Self::Str(value) => PickleArg::Str(value),
        };
        plain_pickle(&constant).into()
    }
}

/// What makes the serialised form of a live value from any thread.
pub trait Encode: Send + Sync {
    /// Bytes that it copies for that.
    fn nbytes(&self) -> usize;

    /// Makes it.
    fn encode(&self) -> Serialized;
}

/// A value that the worker keeps: live, serialised, or both.
pub struct Datum {
    /// Bytes in memory, by `sizeof`.
    pub nbytes: i64,
    /// Its class.
    pub r#type: Arc<ValueType>,
    object: OnceLock<Object>,
    serialized: OnceLock<Serialized>,
    /// The value itself, if messages can hold it.
    scalar: Option<Scalar>,
    encoder: Option<Box<dyn Encode>>,
}

impl Datum {
    /// A live value, with its serialised form where that came cheap.
    pub fn live(
        object: Object,
        serialized: Option<Serialized>,
        nbytes: i64,
        r#type: Arc<ValueType>,
    ) -> Self {
        Self {
            nbytes,
            r#type,
            object: OnceLock::from(object),
            serialized: serialized.map_or_else(OnceLock::new, OnceLock::from),
            scalar: None,
            encoder: None,
        }
    }

    /// A live value that is serialised when somebody asks for it.
    pub fn encodable(
        object: Object,
        encoder: Box<dyn Encode>,
        nbytes: i64,
        r#type: Arc<ValueType>,
    ) -> Self {
        Self {
            encoder: Some(encoder),
            ..Self::live(object, None, nbytes, r#type)
        }
    }

    /// A value that nobody has deserialised yet.
    pub fn serialized(serialized: Serialized, nbytes: i64, r#type: Arc<ValueType>) -> Self {
        Self {
            nbytes,
            r#type,
            object: OnceLock::new(),
            serialized: OnceLock::from(serialized),
            scalar: None,
            encoder: None,
        }
    }

    /// A value that messages hold as it is.
    pub fn scalar(scalar: Scalar, nbytes: i64, r#type: Arc<ValueType>) -> Self {
        Self {
            nbytes,
            r#type,
            object: OnceLock::new(),
            serialized: OnceLock::new(),
            scalar: Some(scalar),
            encoder: None,
        }
    }

    /// The value, if messages can hold it as it is.
    pub fn as_scalar(&self) -> Option<&Scalar> {
        self.scalar.as_ref()
    }

    /// The live value, if there is one.
    pub fn object(&self) -> Option<&Object> {
        self.object.get()
    }

    /// Keeps what came of deserialising it; the first one counts.
    pub fn set_object(&self, object: Object) -> &Object {
        self.object.get_or_init(|| object)
    }

    /// Bytes that [`serialize`](Self::serialize) copies.
    pub fn copied_nbytes(&self) -> usize {
        self.encoder.as_ref().map_or(0, |encoder| encoder.nbytes())
    }

    /// The serialised form, if that takes no executor. A copy that is made for it is
    /// not kept: what is held twice would have to be counted.
    pub fn serialize(&self) -> Option<Serialized> {
        if let Some(encoder) = &self.encoder {
            return Some(encoder.encode());
        }
        let Some(scalar) = &self.scalar else {
            return self.serialized.get().cloned();
        };
        let serialized = self
            .serialized
            .get_or_init(|| Serialized::of_pickle(scalar.pickle()));
        Some(serialized.clone())
    }
}

impl fmt::Debug for Datum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datum")
            .field("nbytes", &self.nbytes)
            .field("type", &self.r#type.name)
            .field("is_live", &self.object.get().is_some())
            .field("is_serialized", &self.serialized.get().is_some())
            .field("is_encodable", &self.encoder.is_some())
            .finish()
    }
}
