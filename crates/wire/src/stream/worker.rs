//! What a worker receives from the scheduler, and what it sends there.

use std::sync::Arc;

use bytes::Bytes;

use super::incoming::{Message, decode_batch, missing};
use crate::message::MessageWriter;
use crate::{Key, Map, Result, Str, Value};

/// A message on the stream from the scheduler to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum SchedulerMessage {
    /// Run a task.
    ComputeTask(Box<AskedComputeTask>),
    /// Forget tasks, whatever their state.
    FreeKeys {
        /// Which.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: Str,
    },
    /// Drop replicas.
    RemoveReplicas {
        /// Whose.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: Str,
    },
    /// Fetch replicas.
    AcquireReplicas {
        /// Holders by key.
        who_has: Vec<(Key, Vec<Str>)>,
        /// Bytes in memory by key, −1 if unknown.
        nbytes: Vec<(Key, i64)>,
        /// Why.
        stimulus_id: Str,
    },
    /// Give a task back if it has not begun.
    StealRequest {
        /// The task.
        key: Key,
        /// Why; repeated in the answer.
        stimulus_id: Str,
    },
    /// Current holders.
    RefreshWhoHas {
        /// Holders by key.
        who_has: Vec<(Key, Vec<Str>)>,
        /// Why.
        stimulus_id: Str,
    },
    /// Drop a task that has not begun.
    CancelCompute {
        /// The task.
        key: Key,
        /// Why.
        stimulus_id: Str,
    },
    /// A peer is gone.
    RemoveWorker {
        /// Its address.
        worker: Str,
        /// Why.
        stimulus_id: Str,
    },
    /// Take a status.
    WorkerStatusChange {
        /// Its name.
        status: Str,
        /// Why.
        stimulus_id: Str,
    },
    /// Shut down, nanny included.
    Close {
        /// For the log.
        reason: Option<Str>,
    },
    /// The stream ends.
    CloseStream,
    /// Anything else, decoded in full; `op` is not among the fields.
    Other {
        /// The operation.
        op: Str,
        /// Its arguments.
        fields: Map,
    },
}

/// `compute-task` as a worker receives it.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedComputeTask {
    /// The task.
    pub key: Key,
    /// Which run of it; repeated in the answers.
    pub run_id: i64,
    /// Smaller runs first.
    pub priority: Vec<f64>,
    /// Why.
    pub stimulus_id: Str,
    /// Holders by dependency.
    pub who_has: Vec<(Key, Vec<Str>)>,
    /// Bytes in memory by dependency, −1 if unknown.
    pub nbytes: Vec<(Key, i64)>,
    /// How to compute it.
    pub run_spec: AskedRunSpec,
    /// Amounts by resource.
    pub resource_restrictions: Vec<(Str, f64)>,
    /// Keep the object alive at the worker.
    pub actor: bool,
    /// Of the task.
    pub annotations: Map,
    /// Group of metrics.
    pub span_id: Option<Str>,
}

/// How a worker is to compute a task.
#[derive(Clone, Debug, PartialEq)]
pub enum AskedRunSpec {
    /// As stock sends it, opaque: the pickle of a graph node, or nil.
    Node(Value),
    /// [`RunSpec::Known`](super::RunSpec::Known)
    Known {
        /// Of the function; see [`Functions`](super::Functions).
        number: u32,
        /// Pickle of the function, the first time.
        function: Option<Bytes>,
        /// msgpack of the arguments.
        arguments: Bytes,
    },
}

/// Decodes a batch from the scheduler.
///
/// # Errors
/// As [`decode_client_batch`](super::decode_client_batch).
pub fn decode_scheduler_batch(frames: &[Bytes]) -> Result<Vec<SchedulerMessage>> {
    decode_batch(frames, scheduler_message)
}

fn scheduler_message(op: &str, mut m: Message<'_, '_, '_>) -> Result<SchedulerMessage> {
    Ok(match op {
        "compute-task" => SchedulerMessage::ComputeTask(Box::new(compute_task(m)?)),
        "free-keys" => {
            let (keys, stimulus_id) = m.keys_and_stimulus("free-keys")?;
            SchedulerMessage::FreeKeys { keys, stimulus_id }
        }
        "remove-replicas" => {
            let (keys, stimulus_id) = m.keys_and_stimulus("remove-replicas")?;
            SchedulerMessage::RemoveReplicas { keys, stimulus_id }
        }
        "acquire-replicas" => {
            const OP: &str = "acquire-replicas";
            fields! { m;
                who_has = "who_has" => m.who_has()?;
                nbytes = "nbytes" => m.ints_by_key()?;
                stimulus_id = "stimulus_id" => m.reader.string()?;
            }
            SchedulerMessage::AcquireReplicas {
                who_has: who_has.ok_or(missing(OP, "who_has"))?,
                nbytes: nbytes.ok_or(missing(OP, "nbytes"))?,
                stimulus_id: stimulus_id.ok_or(missing(OP, "stimulus_id"))?,
            }
        }
        "steal-request" => {
            let (key, stimulus_id) = m.key_and_stimulus("steal-request")?;
            SchedulerMessage::StealRequest { key, stimulus_id }
        }
        "refresh-who-has" => {
            const OP: &str = "refresh-who-has";
            fields! { m;
                who_has = "who_has" => m.who_has()?;
                stimulus_id = "stimulus_id" => m.reader.string()?;
            }
            SchedulerMessage::RefreshWhoHas {
                who_has: who_has.ok_or(missing(OP, "who_has"))?,
                stimulus_id: stimulus_id.ok_or(missing(OP, "stimulus_id"))?,
            }
        }
        "cancel-compute" => {
            let (key, stimulus_id) = m.key_and_stimulus("cancel-compute")?;
            SchedulerMessage::CancelCompute { key, stimulus_id }
        }
        "remove-worker" => {
            const OP: &str = "remove-worker";
            fields! { m;
                worker = "worker" => m.reader.string()?;
                stimulus_id = "stimulus_id" => m.reader.string()?;
            }
            SchedulerMessage::RemoveWorker {
                worker: worker.ok_or(missing(OP, "worker"))?,
                stimulus_id: stimulus_id.ok_or(missing(OP, "stimulus_id"))?,
            }
        }
        "worker-status-change" => {
            const OP: &str = "worker-status-change";
            fields! { m;
                status = "status" => m.status()?;
                stimulus_id = "stimulus_id" => m.reader.string()?;
            }
            SchedulerMessage::WorkerStatusChange {
                status: status.ok_or(missing(OP, "status"))?,
                stimulus_id: stimulus_id.ok_or(missing(OP, "stimulus_id"))?,
            }
        }
        "close" => {
            fields! { m;
                reason = "reason" => m.optional(|m| m.reader.string())?;
            }
            SchedulerMessage::Close {
                reason: reason.flatten(),
            }
        }
        "close-stream" => m.without_fields(SchedulerMessage::CloseStream)?,
        _ => {
            let (op, fields) = m.other()?;
            SchedulerMessage::Other { op, fields }
        }
    })
}

fn compute_task(mut m: Message<'_, '_, '_>) -> Result<AskedComputeTask> {
    const OP: &str = "compute-task";
    fields! { m;
        key = "key" => m.reader.key()?;
        run_id = "run_id" => m.reader.int()?;
        priority = "priority" => m.floats()?;
        stimulus_id = "stimulus_id" => m.reader.string()?;
        who_has = "who_has" => m.who_has()?;
        nbytes = "nbytes" => m.ints_by_key()?;
        run_spec = "run_spec" => m.run_spec()?;
        resource_restrictions = "resource_restrictions" => m.optional(Message::amounts)?;
        actor = "actor" => m.reader.bool()?;
        annotations = "annotations" => m.optional(Message::map)?;
        span_id = "span_id" => m.optional(|m| m.reader.string())?;
    }
    Ok(AskedComputeTask {
        key: key.ok_or(missing(OP, "key"))?,
        run_id: run_id.ok_or(missing(OP, "run_id"))?,
        priority: priority.ok_or(missing(OP, "priority"))?,
        stimulus_id: stimulus_id.ok_or(missing(OP, "stimulus_id"))?,
        who_has: who_has.ok_or(missing(OP, "who_has"))?,
        nbytes: nbytes.ok_or(missing(OP, "nbytes"))?,
        run_spec: run_spec.ok_or(missing(OP, "run_spec"))?,
        resource_restrictions: resource_restrictions.flatten().unwrap_or_default(),
        actor: actor.unwrap_or(false),
        annotations: annotations.flatten().unwrap_or_default(),
        span_id: span_id.flatten(),
    })
}

impl Message<'_, '_, '_> {
    fn floats(&mut self) -> Result<Vec<f64>> {
        let count = self.reader.array_len()?;
        let mut floats = Vec::with_capacity(count.min(8));
        for _ in 0..count {
            floats.push(self.reader.float()?);
        }
        Ok(floats)
    }

    fn amounts(&mut self) -> Result<Vec<(Str, f64)>> {
        let count = self.reader.map_len()?;
        let mut amounts = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            amounts.push((self.reader.string()?, self.reader.float()?));
        }
        Ok(amounts)
    }

    fn run_spec(&mut self) -> Result<AskedRunSpec> {
        let wrong = |m: &Self, found: &Value| m.wrong("[number, function, arguments]", found);
        let parts = match self.value()? {
            Value::Array(parts) => parts,
            node => return Ok(AskedRunSpec::Node(node)),
        };
        let parts = <[Value; 3]>::try_from(parts);
        let [number, function, arguments] =
            parts.map_err(|parts| wrong(self, &Value::Array(parts)))?;
        let number = number
            .as_u64()
            .and_then(|number| u32::try_from(number).ok());
        match (number, function, arguments) {
            (Some(number), function @ (Value::Nil | Value::Bin(_)), Value::Bin(arguments)) => {
                Ok(AskedRunSpec::Known {
                    number,
                    function: function.into_bin(),
                    arguments,
                })
            }
            (_, function, _) => Err(wrong(self, &function)),
        }
    }

    fn map(&mut self) -> Result<Map> {
        match self.value()? {
            Value::Map(map) => Ok(map),
            other => Err(self.wrong("map", &other)),
        }
    }
}

/// A message for the scheduler's end of a worker's stream.
#[derive(Clone, Copy, Debug)]
pub enum ToScheduler<'a> {
    /// A task is done and its value in memory.
    TaskFinished(FinishedTask<'a>),
    /// A task failed.
    TaskErred(ErredTask<'a>),
    /// A value is no longer here.
    ReleaseWorkerData {
        /// Whose.
        key: &'a Key,
        /// Why.
        stimulus_id: &'a str,
    },
    /// A task asks to be run elsewhere.
    Reschedule {
        /// Which.
        key: &'a Key,
        /// Why.
        stimulus_id: &'a str,
    },
    /// A task seceded.
    LongRunning {
        /// Which.
        key: &'a Key,
        /// Which run of it.
        run_id: i64,
        /// Seconds it had been running.
        compute_duration: Option<f64>,
        /// Why.
        stimulus_id: &'a str,
    },
    /// Replicas are here.
    AddKeys {
        /// Of which tasks.
        keys: &'a [Key],
        /// Why.
        stimulus_id: &'a str,
    },
    /// Holders are lost or busy.
    RequestRefreshWhoHas {
        /// Of which tasks.
        keys: &'a [Key],
        /// Why.
        stimulus_id: &'a str,
    },
    /// The answer to `steal-request`.
    StealResponse {
        /// The task.
        key: &'a Key,
        /// Its state, if it is known.
        state: Option<&'a str>,
        /// That of the request.
        stimulus_id: &'a str,
    },
    /// The worker pauses, resumes or closes.
    WorkerStatusChange {
        /// Name of the new status.
        status: &'a str,
        /// Why.
        stimulus_id: &'a str,
    },
    /// Publish an event.
    LogEvent {
        /// One topic or several.
        topic: &'a Value,
        /// The event.
        msg: &'a Value,
    },
    /// Nothing happened for a while.
    KeepAlive,
    /// The stream ends.
    CloseStream,
}

/// `task-finished`, made of borrowed parts.
#[derive(Clone, Copy, Debug)]
pub struct FinishedTask<'a> {
    /// The task.
    pub key: &'a Key,
    /// Which run of it.
    pub run_id: i64,
    /// Bytes of the value in memory.
    pub nbytes: i64,
    /// Pickled class of the value.
    pub r#type: &'a [u8],
    /// Name of that class.
    pub typename: &'a str,
    /// A map for the scheduler.
    pub metadata: &'a Value,
    /// Thread identity.
    pub thread: Option<u64>,
    /// How long things took.
    pub startstops: &'a [StartStop],
    /// Why.
    pub stimulus_id: &'a str,
}

/// `task-erred`, made of borrowed parts.
#[derive(Clone, Copy, Debug)]
pub struct ErredTask<'a> {
    /// The task.
    pub key: &'a Key,
    /// Which run of it.
    pub run_id: i64,
    /// The pickled exception.
    pub exception: &'a Value,
    /// The pickled traceback, or nil.
    pub traceback: &'a Value,
    /// `repr` of the exception.
    pub exception_text: &'a str,
    /// Formatted traceback.
    pub traceback_text: &'a str,
    /// Thread identity.
    pub thread: Option<u64>,
    /// How long things took.
    pub startstops: &'a [StartStop],
    /// Why.
    pub stimulus_id: &'a str,
}

/// What was done from when to when, in seconds since the epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct StartStop {
    /// `compute`, `transfer`, `disk-read`, `disk-write` or `deserialize`.
    pub action: &'static str,
    /// When it began.
    pub start: f64,
    /// When it ended.
    pub stop: f64,
    /// The peer that data came from.
    pub source: Option<Arc<str>>,
}

impl ToScheduler<'_> {
    /// Writes one stream message.
    pub fn write(&self, w: &mut MessageWriter) {
        match self {
            Self::TaskFinished(task) => task.write(w),
            Self::TaskErred(task) => task.write(w),
            Self::ReleaseWorkerData { key, stimulus_id } => {
                of_key(w, "release-worker-data", key, stimulus_id);
            }
            Self::Reschedule { key, stimulus_id } => of_key(w, "reschedule", key, stimulus_id),
            Self::LongRunning {
                key,
                run_id,
                compute_duration,
                stimulus_id,
            } => {
                head(w, 5, "long-running");
                w.str("key");
                w.key(key);
                w.str("run_id");
                w.int(*run_id);
                w.str("compute_duration");
                match compute_duration {
                    Some(seconds) => w.float(*seconds),
                    None => w.nil(),
                }
                text(w, "stimulus_id", stimulus_id);
            }
            Self::AddKeys { keys, stimulus_id } => of_keys(w, "add-keys", keys, stimulus_id),
            Self::RequestRefreshWhoHas { keys, stimulus_id } => {
                of_keys(w, "request-refresh-who-has", keys, stimulus_id);
            }
            Self::StealResponse {
                key,
                state,
                stimulus_id,
            } => {
                head(w, 4, "steal-response");
                w.str("key");
                w.key(key);
                w.str("state");
                match state {
                    Some(state) => w.str(state),
                    None => w.nil(),
                }
                text(w, "stimulus_id", stimulus_id);
            }
            Self::WorkerStatusChange {
                status,
                stimulus_id,
            } => {
                head(w, 3, "worker-status-change");
                text(w, "status", status);
                text(w, "stimulus_id", stimulus_id);
            }
            Self::LogEvent { topic, msg } => {
                head(w, 3, "log-event");
                w.str("topic");
                w.value(topic);
                w.str("msg");
                w.value(msg);
            }
            Self::KeepAlive => head(w, 1, "keep-alive"),
            Self::CloseStream => head(w, 1, "close-stream"),
        }
    }
}

impl FinishedTask<'_> {
    fn write(&self, w: &mut MessageWriter) {
        head(w, 11, "task-finished");
        text(w, "status", "OK");
        w.str("key");
        w.key(self.key);
        w.str("run_id");
        w.int(self.run_id);
        w.str("nbytes");
        w.int(self.nbytes);
        w.str("type");
        w.bin(self.r#type);
        text(w, "typename", self.typename);
        w.str("metadata");
        w.value(self.metadata);
        thread(w, self.thread);
        startstops(w, self.startstops);
        text(w, "stimulus_id", self.stimulus_id);
    }
}

impl ErredTask<'_> {
    fn write(&self, w: &mut MessageWriter) {
        head(w, 11, "task-erred");
        text(w, "status", "error");
        w.str("key");
        w.key(self.key);
        w.str("run_id");
        w.int(self.run_id);
        w.str("exception");
        w.value(self.exception);
        w.str("traceback");
        w.value(self.traceback);
        text(w, "exception_text", self.exception_text);
        text(w, "traceback_text", self.traceback_text);
        thread(w, self.thread);
        startstops(w, self.startstops);
        text(w, "stimulus_id", self.stimulus_id);
    }
}

fn head(w: &mut MessageWriter, fields_count: usize, op: &str) {
    w.map(fields_count);
    text(w, "op", op);
}

fn text(w: &mut MessageWriter, name: &str, value: &str) {
    w.str(name);
    w.str(value);
}

fn of_key(w: &mut MessageWriter, op: &str, key: &Key, stimulus_id: &str) {
    head(w, 3, op);
    w.str("key");
    w.key(key);
    text(w, "stimulus_id", stimulus_id);
}

fn of_keys(w: &mut MessageWriter, op: &str, keys: &[Key], stimulus_id: &str) {
    head(w, 3, op);
    w.str("keys");
    w.array(keys.len());
    for key in keys {
        w.key(key);
    }
    text(w, "stimulus_id", stimulus_id);
}

fn thread(w: &mut MessageWriter, thread: Option<u64>) {
    w.str("thread");
    match thread {
        Some(thread) => w.uint(thread),
        None => w.nil(),
    }
}

fn startstops(w: &mut MessageWriter, startstops: &[StartStop]) {
    w.str("startstops");
    w.array(startstops.len());
    for startstop in startstops {
        w.map(3 + usize::from(startstop.source.is_some()));
        text(w, "action", startstop.action);
        w.str("start");
        w.float(startstop.start);
        w.str("stop");
        w.float(startstop.stop);
        if let Some(source) = &startstop.source {
            text(w, "source", source);
        }
    }
}
