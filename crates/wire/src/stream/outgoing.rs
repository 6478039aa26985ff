//! What a scheduler sends.

use std::sync::Arc;

use bytes::Bytes;

use crate::message::MessageWriter;
use crate::msgpack::Writer;
use crate::pickle::task_pickle;
use crate::{Key, Map, Pickled, Result, Value};

/// A Python number: an int stays an int on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Python int.
    Int(i64),
    /// Python float.
    Float(f64),
}

impl Number {
    fn write(self, writer: &mut Writer) {
        match self {
            Self::Int(value) => writer.int(value),
            Self::Float(value) => writer.float(value),
        }
    }
}

/// A message for a client's stream.
#[derive(Clone, Debug)]
pub enum ToClient<'a> {
    /// The first message of the stream.
    StreamStart {
        /// Shown as a Python warning, if not empty.
        warning: &'a str,
        /// Raised as `ImportError`, if not empty.
        error: &'a str,
    },
    /// A key has a result.
    KeyInMemory {
        /// The key.
        key: &'a Key,
        /// Pickled class, when freshly computed.
        r#type: Option<&'a [u8]>,
        /// Holders, after scatter.
        workers: Option<&'a [Arc<str>]>,
    },
    /// A result is gone and being computed again.
    LostData {
        /// The key.
        key: &'a Key,
    },
    /// A task failed.
    TaskErred {
        /// The key.
        key: &'a Key,
        /// Of the task to blame: as it came from the worker, or pickle bytes.
        exception: &'a Value,
        /// As `exception`, or nil.
        traceback: &'a Value,
    },
    /// A failed task runs again.
    TaskRetried {
        /// The key.
        key: &'a Key,
    },
    /// Futures are cancelled.
    CancelledKeys {
        /// Their keys.
        keys: &'a [Key],
        /// As a set (lost dependencies) instead of a list.
        as_set: bool,
        /// Left out if nil.
        reason: &'a Value,
        /// Left out if nil.
        msg: &'a Value,
    },
    /// The scheduler restarts.
    Restart,
    /// An event of a subscribed topic.
    Event {
        /// The topic.
        topic: &'a str,
        /// `[timestamp, message]`.
        event: &'a Value,
    },
    /// How often to send `heartbeat-client`, in seconds.
    AdjustHeartbeatInterval {
        /// Seconds.
        interval: f64,
    },
    /// Answer to `close-client`.
    StreamClosed,
    /// The scheduler closes.
    Close,
    /// Anything else; holds its `op`.
    Other(&'a Map),
}

impl ToClient<'_> {
    /// Writes one stream message.
    pub fn write(&self, w: &mut MessageWriter) {
        match self {
            Self::StreamStart { warning, error } => {
                head(w, 3, "stream-start");
                w.str("warning");
                w.str(warning);
                w.str("error");
                w.str(error);
            }
            Self::KeyInMemory {
                key,
                r#type,
                workers,
            } => {
                let count = 2 + usize::from(r#type.is_some()) + usize::from(workers.is_some());
                head(w, count, "key-in-memory");
                w.str("key");
                w.key(key);
                if let Some(class) = r#type {
                    w.str("type");
                    w.bin(class);
                }
                if let Some(workers) = workers {
                    w.str("workers");
                    addresses(w, workers);
                }
            }
            Self::LostData { key } => of_key(w, "lost-data", key),
            Self::TaskErred {
                key,
                exception,
                traceback,
            } => {
                head(w, 4, "task-erred");
                w.str("key");
                w.key(key);
                w.str("exception");
                w.value(exception);
                w.str("traceback");
                w.value(traceback);
            }
            Self::TaskRetried { key } => of_key(w, "task-retried", key),
            Self::CancelledKeys {
                keys,
                as_set,
                reason,
                msg,
            } => {
                let count = 2 + usize::from(!reason.is_nil()) + usize::from(!msg.is_nil());
                head(w, count, "cancelled-keys");
                w.str("keys");
                if *as_set {
                    w.map(2);
                    w.str("__Set__");
                    w.bool(true);
                    w.str("as-list");
                }
                key_list(w, keys);
                for (name, value) in [("reason", reason), ("msg", msg)] {
                    if !value.is_nil() {
                        w.str(name);
                        w.value(value);
                    }
                }
            }
            Self::Restart => head(w, 1, "restart"),
            Self::Event { topic, event } => {
                head(w, 3, "event");
                w.str("topic");
                w.str(topic);
                w.str("event");
                w.value(event);
            }
            Self::AdjustHeartbeatInterval { interval } => {
                head(w, 2, "adjust-heartbeat-interval");
                w.str("interval");
                w.float(*interval);
            }
            Self::StreamClosed => head(w, 1, "stream-closed"),
            Self::Close => head(w, 1, "close"),
            Self::Other(map) => w.map_of(map),
        }
    }
}

/// A message for a worker's stream.
#[derive(Clone, Debug)]
pub enum ToWorker<'a> {
    /// Run a task.
    ComputeTask(ComputeTask<'a>),
    /// Forget tasks whatever their state.
    FreeKeys {
        /// Which.
        keys: &'a [Key],
        /// Why.
        stimulus_id: &'a str,
    },
    /// Drop replicas.
    RemoveReplicas {
        /// Whose.
        keys: &'a [Key],
        /// Why.
        stimulus_id: &'a str,
    },
    /// Fetch replicas.
    AcquireReplicas {
        /// Holders by key.
        who_has: &'a [(Key, Vec<Arc<str>>)],
        /// Size in memory by key.
        nbytes: &'a [(Key, i64)],
        /// Why.
        stimulus_id: &'a str,
    },
    /// Give a task back if it has not started.
    StealRequest {
        /// The task.
        key: &'a Key,
        /// Why; repeated in the answer.
        stimulus_id: &'a str,
    },
    /// Current holders.
    RefreshWhoHas {
        /// Holders by key.
        who_has: &'a [(Key, Vec<Arc<str>>)],
        /// Why.
        stimulus_id: &'a str,
    },
    /// Take a status.
    WorkerStatusChange {
        /// Its name.
        status: &'a str,
        /// Why.
        stimulus_id: &'a str,
    },
    /// A peer is gone.
    RemoveWorker {
        /// Its address.
        address: &'a str,
        /// Why.
        stimulus_id: &'a str,
    },
    /// Fail a run of a shuffle.
    ShuffleFail {
        /// The shuffle.
        shuffle_id: &'a str,
        /// The run.
        run_id: i64,
        /// Text of the exception.
        message: &'a str,
    },
    /// Shut down, nanny included.
    Close {
        /// For the log.
        reason: &'a str,
    },
    /// The stream ends.
    CloseStream,
    /// Anything else; holds its `op`.
    Other(&'a Map),
}

impl ToWorker<'_> {
    /// Writes one stream message.
    ///
    /// # Errors
    /// Malformed arguments of a [`RunSpec::Call`]. Nothing is written then.
    pub fn write(&self, batch: &mut crate::BatchWriter) -> Result<()> {
        match self {
            Self::ComputeTask(task) => task.write(batch)?,
            Self::FreeKeys { keys, stimulus_id } => {
                of_keys(batch.message(), "free-keys", keys, stimulus_id);
            }
            Self::RemoveReplicas { keys, stimulus_id } => {
                of_keys(batch.message(), "remove-replicas", keys, stimulus_id);
            }
            Self::AcquireReplicas {
                who_has,
                nbytes,
                stimulus_id,
            } => {
                let w = batch.message();
                head(w, 4, "acquire-replicas");
                w.str("who_has");
                holders(w, who_has);
                w.str("nbytes");
                w.map(nbytes.len());
                for (key, nbytes) in *nbytes {
                    w.key(key);
                    w.int(*nbytes);
                }
                stimulus(w, stimulus_id);
            }
            Self::StealRequest { key, stimulus_id } => {
                let w = batch.message();
                head(w, 3, "steal-request");
                w.str("key");
                w.key(key);
                stimulus(w, stimulus_id);
            }
            Self::RefreshWhoHas {
                who_has,
                stimulus_id,
            } => {
                let w = batch.message();
                head(w, 3, "refresh-who-has");
                w.str("who_has");
                holders(w, who_has);
                stimulus(w, stimulus_id);
            }
            Self::WorkerStatusChange {
                status,
                stimulus_id,
            } => {
                let w = batch.message();
                head(w, 3, "worker-status-change");
                w.str("status");
                w.str(status);
                stimulus(w, stimulus_id);
            }
            Self::RemoveWorker {
                address,
                stimulus_id,
            } => {
                let w = batch.message();
                head(w, 3, "remove-worker");
                w.str("worker");
                w.str(address);
                stimulus(w, stimulus_id);
            }
            Self::ShuffleFail {
                shuffle_id,
                run_id,
                message,
            } => {
                let w = batch.message();
                // The plug-in's handler takes these three and nothing else.
                head(w, 4, "shuffle-fail");
                w.str("shuffle_id");
                w.str(shuffle_id);
                w.str("run_id");
                w.int(*run_id);
                w.str("message");
                w.str(message);
            }
            Self::Close { reason } => {
                let w = batch.message();
                head(w, 2, "close");
                w.str("reason");
                w.str(reason);
            }
            Self::CloseStream => head(batch.message(), 1, "close-stream"),
            Self::Other(map) => batch.message().map_of(map),
        }
        Ok(())
    }
}

/// `compute-task`, made of borrowed parts.
#[derive(Clone, Debug)]
pub struct ComputeTask<'a> {
    /// The task.
    pub key: &'a Key,
    /// Which run of it; repeated in the worker's answers.
    pub run_id: i64,
    /// Smaller runs first.
    pub priority: [Number; 3],
    /// Why.
    pub stimulus_id: &'a str,
    /// Everything that the task needs, in any order.
    pub dependencies: &'a [Dependency<'a>],
    /// How to compute it.
    pub run_spec: RunSpec<'a>,
    /// Amounts by resource.
    pub resource_restrictions: Option<&'a [(Arc<str>, Number)]>,
    /// Keep the object alive at the worker.
    pub actor: bool,
    /// Of the task; `None` is an empty map.
    pub annotations: Option<&'a Map>,
    /// Group of metrics.
    pub span_id: Option<&'a str>,
}

/// What a task depends on.
#[derive(Clone, Debug)]
pub struct Dependency<'a> {
    /// Its key.
    pub key: &'a Key,
    /// Size in memory; -1 if unknown.
    pub nbytes: i64,
    /// Addresses of holders, at least one.
    pub who_has: Vec<&'a str>,
}

/// A task's `run_spec` as the scheduler keeps it.
#[derive(Clone, Copy, Debug)]
pub enum RunSpec<'a> {
    /// nil
    None,
    /// A pickle and its out-of-band buffers.
    Pickle(&'a [u8], &'a [Bytes]),
    /// A node with its sub-header.
    Pickled(&'a Pickled),
    /// A call, turned into the pickle of a `Task` here; see [`task_pickle`].
    Call {
        /// Pickle of the function.
        function: &'a [u8],
        /// msgpack of the arguments.
        arguments: &'a [u8],
    },
    /// A call of a function that the receiver has, or now gets, under a number; for
    /// peers that agreed on it ([`Negotiated::native`](crate::handshake::Negotiated)).
    Known {
        /// Of the function; see [`FunctionNumbers`](super::FunctionNumbers).
        number: u32,
        /// Pickle of the function, the first time.
        function: Option<&'a [u8]>,
        /// msgpack of the arguments.
        arguments: &'a [u8],
    },
}

impl ComputeTask<'_> {
    fn write(&self, batch: &mut crate::BatchWriter) -> Result<()> {
        let stitched = match self.run_spec {
            RunSpec::Call {
                function,
                arguments,
            } => Some(task_pickle(self.key, function, arguments)?),
            RunSpec::None | RunSpec::Pickle(..) | RunSpec::Pickled(_) | RunSpec::Known { .. } => {
                None
            }
        };
        let w = batch.message();
        head(w, 12, "compute-task");
        w.str("key");
        w.key(self.key);
        w.str("run_id");
        w.int(self.run_id);
        w.str("priority");
        w.array(3);
        for part in self.priority {
            part.write(w);
        }
        stimulus(w, self.stimulus_id);
        w.str("who_has");
        w.map(self.dependencies.len());
        for dependency in self.dependencies {
            w.key(dependency.key);
            addresses(w, &dependency.who_has);
        }
        w.str("nbytes");
        w.map(self.dependencies.len());
        for dependency in self.dependencies {
            w.key(dependency.key);
            w.int(dependency.nbytes);
        }
        w.str("run_spec");
        match (self.run_spec, &stitched) {
            (_, Some(pickle)) => w.pickle(pickle, &[]),
            (RunSpec::Pickle(pickle, buffers), None) => w.pickle(pickle, buffers),
            (RunSpec::Pickled(node), None) => w.pickled(node),
            (
                RunSpec::Known {
                    number,
                    function,
                    arguments,
                },
                None,
            ) => {
                w.array(3);
                w.uint(number.into());
                match function {
                    Some(function) => w.bin(function),
                    None => w.nil(),
                }
                w.bin(arguments);
            }
            (RunSpec::None | RunSpec::Call { .. }, None) => w.nil(),
        }
        w.str("resource_restrictions");
        match self.resource_restrictions {
            None => w.nil(),
            Some(resources) => {
                w.map(resources.len());
                for (name, amount) in resources {
                    w.str(name);
                    amount.write(w);
                }
            }
        }
        w.str("actor");
        w.bool(self.actor);
        w.str("annotations");
        match self.annotations {
            None => w.map(0),
            Some(annotations) => w.map_of(annotations),
        }
        w.str("span_id");
        match self.span_id {
            None => w.nil(),
            Some(span_id) => w.str(span_id),
        }
        Ok(())
    }
}

fn head(w: &mut Writer, fields_count: usize, op: &str) {
    w.map(fields_count);
    w.str("op");
    w.str(op);
}

fn stimulus(w: &mut Writer, stimulus_id: &str) {
    w.str("stimulus_id");
    w.str(stimulus_id);
}

fn of_key(w: &mut Writer, op: &str, key: &Key) {
    head(w, 2, op);
    w.str("key");
    w.key(key);
}

fn of_keys(w: &mut Writer, op: &str, keys: &[Key], stimulus_id: &str) {
    head(w, 3, op);
    w.str("keys");
    key_list(w, keys);
    stimulus(w, stimulus_id);
}

fn key_list(w: &mut Writer, keys: &[Key]) {
    w.array(keys.len());
    for key in keys {
        w.key(key);
    }
}

fn addresses(w: &mut Writer, addresses: &[impl AsRef<str>]) {
    w.array(addresses.len());
    for address in addresses {
        w.str(address.as_ref());
    }
}

fn holders(w: &mut Writer, who_has: &[(Key, Vec<Arc<str>>)]) {
    w.map(who_has.len());
    for (key, holders) in who_has {
        w.key(key);
        addresses(w, holders);
    }
}
