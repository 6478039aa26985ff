//! What a scheduler receives.

use bytes::Bytes;

use crate::message::{self, Decoder};
use crate::msgpack::{Reader, Token};
use crate::{Error, Key, Map, Result, Serialized, Str, Value};

/// A message on a client's stream.
///
/// `client` is the explicit field of that name, which wins over the stream's
/// own client (`fire-and-forget`, for example).
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMessage {
    /// Submit a graph.
    UpdateGraph(Box<UpdateGraph>),
    /// The client wants keys.
    ClientDesiresKeys {
        /// Wanted keys.
        keys: Vec<Key>,
        /// On whose behalf.
        client: Option<Str>,
    },
    /// The client no longer wants keys.
    ClientReleasesKeys {
        /// Released keys.
        keys: Vec<Key>,
        /// On whose behalf.
        client: Option<Str>,
    },
    /// Cancel tasks and what depends on them.
    CancelKeys {
        /// Keys to cancel.
        keys: Vec<Key>,
        /// Also those that other clients want.
        force: bool,
        /// Shown in the exception.
        reason: Value,
        /// Shown in the exception.
        msg: Value,
        /// On whose behalf.
        client: Option<Str>,
    },
    /// The client is alive.
    HeartbeatClient,
    /// The client leaves.
    CloseClient,
    /// The stream ends.
    CloseStream,
    /// Send the state of a key again.
    ReportKey {
        /// The key.
        key: Key,
        /// On whose behalf.
        client: Option<Str>,
    },
    /// Data was scattered to workers directly.
    UpdateData {
        /// Holders by key.
        who_has: Vec<(Key, Vec<Str>)>,
        /// Size in memory by key.
        nbytes: Vec<(Key, i64)>,
        /// On whose behalf.
        client: Option<Str>,
    },
    /// Anything else, decoded in full; `op` is not among the fields.
    Other {
        /// The operation.
        op: Str,
        /// Its arguments.
        fields: Map,
    },
}

/// `update-graph`.
#[derive(Clone, Debug, PartialEq)]
pub struct UpdateGraph {
    /// The pickled expression; any serialisation family is legal.
    pub expr_ser: Serialized,
    /// Requested outputs.
    pub keys: Vec<Key>,
    /// Priorities by key; `None` if absent, nil or empty (they are then ordered here).
    pub internal_priority: Option<Vec<(Key, i64)>>,
    /// Key of the task that submits.
    pub submitting_task: Option<Key>,
    /// Duration as text or number.
    pub fifo_timeout: Value,
    /// bool, nil or keys.
    pub actors: Value,
    /// Source code, for diagnostics.
    pub code: Value,
    /// Global annotations: a pickle, plain map or nil.
    pub annotations: Value,
    /// For diagnostics.
    pub span_metadata: Value,
    /// Number, or nil if absent.
    pub user_priority: Value,
    /// Why this happens; stock clients do not say.
    pub stimulus_id: Option<Str>,
    /// On whose behalf.
    pub client: Option<Str>,
}

/// A message on a worker's stream.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerMessage {
    /// A task is done and its result in memory.
    TaskFinished(Box<TaskFinished>),
    /// A task raised.
    TaskErred(Box<TaskErred>),
    /// A replica is gone.
    ReleaseWorkerData {
        /// Whose replica.
        key: Key,
        /// Why.
        stimulus_id: Str,
    },
    /// Replicas were fetched.
    AddKeys {
        /// Whose replicas.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: Str,
    },
    /// A task seceded.
    LongRunning {
        /// The task.
        key: Key,
        /// Which run of it.
        run_id: i64,
        /// Seconds it has been running.
        compute_duration: Option<f64>,
        /// Why.
        stimulus_id: Str,
    },
    /// A task asks to be run elsewhere.
    Reschedule {
        /// The task.
        key: Key,
        /// Why.
        stimulus_id: Str,
    },
    /// The worker pauses, resumes or closes.
    WorkerStatusChange {
        /// Name of the new status.
        status: Str,
        /// Why.
        stimulus_id: Str,
    },
    /// The worker lost track of holders.
    RequestRefreshWhoHas {
        /// Keys in question.
        keys: Vec<Key>,
        /// Why.
        stimulus_id: Str,
    },
    /// Answer to `steal-request`.
    StealResponse {
        /// The task.
        key: Key,
        /// Its state at the worker; `None` if unknown there.
        state: Option<Str>,
        /// That of the request.
        stimulus_id: Str,
    },
    /// Nothing happened for a while.
    KeepAlive,
    /// Publish an event.
    LogEvent {
        /// One topic or several.
        topic: Value,
        /// The event.
        msg: Value,
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

/// `task-finished`.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskFinished {
    /// The task.
    pub key: Key,
    /// Which run of it.
    pub run_id: i64,
    /// Size of the result in memory, as `dask.sizeof` sees it.
    pub nbytes: i64,
    /// Pickled class of the result.
    pub r#type: Bytes,
    /// Name of that class.
    pub typename: Str,
    /// User metadata.
    pub metadata: Value,
    /// Thread identity, or nil.
    pub thread: Value,
    /// List of `{action, start, stop[, source]}`.
    pub startstops: Value,
    /// Why.
    pub stimulus_id: Str,
}

/// `task-erred`.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskErred {
    /// The task.
    pub key: Key,
    /// Which run of it.
    pub run_id: i64,
    /// The pickled exception, opaque.
    pub exception: Value,
    /// The pickled traceback, opaque, or nil.
    pub traceback: Value,
    /// `repr` of the exception.
    pub exception_text: Str,
    /// Formatted traceback.
    pub traceback_text: Str,
    /// Thread identity, or nil.
    pub thread: Value,
    /// List of `{action, start, stop[, source]}`.
    pub startstops: Value,
    /// Why.
    pub stimulus_id: Str,
}

/// Decodes a batch from a client.
///
/// # Errors
/// As [`message::decode`], a message without `op` or without a required field,
/// or a field of the wrong type.
pub fn decode_client_batch(frames: &[Bytes]) -> Result<Vec<ClientMessage>> {
    decode_batch(frames, client_message)
}

/// Decodes a batch from a worker.
///
/// # Errors
/// As [`decode_client_batch`].
pub fn decode_worker_batch(frames: &[Bytes]) -> Result<Vec<WorkerMessage>> {
    decode_batch(frames, worker_message)
}

/// One stream message whose head was read.
pub(super) struct Message<'r, 'a, 'f> {
    pub(super) reader: &'r mut Reader<'a>,
    pub(super) decoder: &'r mut Decoder<'f>,
    pub(super) fields_count: usize,
}

pub(super) fn decode_batch<M>(
    frames: &[Bytes],
    decode: impl Fn(&str, Message<'_, '_, '_>) -> Result<M>,
) -> Result<Vec<M>> {
    let first = message::first_frame(frames)?;
    let mut reader = Reader::new(first, "stream message");
    let mut decoder = Decoder::new(frames);
    let one = |reader: &mut Reader<'_>, decoder: &mut Decoder<'_>, fields_count| {
        let op = operation(reader, fields_count)?;
        decode(
            op,
            Message {
                reader,
                decoder,
                fields_count,
            },
        )
    };
    let count = match reader.token()? {
        Token::Map(fields_count) => {
            let message = one(&mut reader, &mut decoder, fields_count)?;
            reader.finish()?;
            return Ok(vec![message]);
        }
        Token::Array(count) => count,
        Token::Str(range) if reader.slice(range.clone()) == b"OK" => return Ok(Vec::new()),
        other => return Err(reader.unexpected("a batch of messages", &other)),
    };
    // A message is larger than its two or more bytes on the wire, so room for
    // many is made only as they turn out to be there.
    let mut messages = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        match reader.token()? {
            Token::Map(fields_count) => {
                messages.push(one(&mut reader, &mut decoder, fields_count)?);
                reader.set_field("stream message");
            }
            // Ends the batch in stock, whatever follows.
            Token::Str(range) if reader.slice(range.clone()) == b"OK" => return Ok(messages),
            other => return Err(reader.unexpected("map with `op`", &other)),
        }
    }
    reader.finish()?;
    Ok(messages)
}

/// The `op` of a message, wherever it is; the reader stays at the first field.
fn operation<'a>(reader: &mut Reader<'a>, fields_count: usize) -> Result<&'a str> {
    let start = reader.position();
    for _ in 0..fields_count {
        if reader.name()? == b"op" {
            reader.set_field("op");
            let op = reader.str()?;
            reader.set_field("stream message");
            reader.seek(start);
            return Ok(op);
        }
        reader.skip()?;
    }
    Err(missing("stream message", "op"))
}

pub(super) fn missing(message: &'static str, field: &'static str) -> Error {
    Error::MissingField { message, field }
}

/// Reads the named fields of a message into options; skips all others.
macro_rules! fields {
    ($m:ident; $($name:ident = $text:literal => $read:expr;)*) => {
        $(let mut $name = None;)*
        for _ in 0..$m.fields_count {
            let name = $m.reader.name()?;
            match name {
                $(_ if name == $text.as_bytes() => {
                    $m.reader.set_field($text);
                    $name = Some($read);
                })*
                _ => {
                    $m.reader.skip()?;
                }
            }
            $m.reader.set_field("stream message");
        }
    };
}

fn client_message(op: &str, mut m: Message<'_, '_, '_>) -> Result<ClientMessage> {
    Ok(match op {
        "client-desires-keys" => {
            fields! { m;
                keys = "keys" => m.keys()?;
                client = "client" => m.reader.string()?;
            }
            let keys = keys.ok_or(missing("client-desires-keys", "keys"))?;
            ClientMessage::ClientDesiresKeys { keys, client }
        }
        "client-releases-keys" => {
            fields! { m;
                keys = "keys" => m.keys()?;
                client = "client" => m.reader.string()?;
            }
            let keys = keys.ok_or(missing("client-releases-keys", "keys"))?;
            ClientMessage::ClientReleasesKeys { keys, client }
        }
        "update-graph" => ClientMessage::UpdateGraph(Box::new(update_graph(m)?)),
        "cancel-keys" => {
            fields! { m;
                keys = "keys" => m.keys()?;
                force = "force" => m.reader.bool()?;
                reason = "reason" => m.value()?;
                msg = "msg" => m.value()?;
                client = "client" => m.reader.string()?;
            }
            ClientMessage::CancelKeys {
                keys: keys.ok_or(missing("cancel-keys", "keys"))?,
                force: force.unwrap_or(false),
                reason: reason.unwrap_or_default(),
                msg: msg.unwrap_or_default(),
                client,
            }
        }
        "report-key" => {
            fields! { m;
                key = "key" => m.reader.key()?;
                client = "client" => m.reader.string()?;
            }
            let key = key.ok_or(missing("report-key", "key"))?;
            ClientMessage::ReportKey { key, client }
        }
        "update-data" => {
            fields! { m;
                who_has = "who_has" => m.who_has()?;
                nbytes = "nbytes" => m.ints_by_key()?;
                client = "client" => m.reader.string()?;
            }
            ClientMessage::UpdateData {
                who_has: who_has.ok_or(missing("update-data", "who_has"))?,
                nbytes: nbytes.ok_or(missing("update-data", "nbytes"))?,
                client,
            }
        }
        "heartbeat-client" => m.without_fields(ClientMessage::HeartbeatClient)?,
        "close-client" => m.without_fields(ClientMessage::CloseClient)?,
        "close-stream" => m.without_fields(ClientMessage::CloseStream)?,
        _ => {
            let (op, fields) = m.other()?;
            ClientMessage::Other { op, fields }
        }
    })
}

fn update_graph(mut m: Message<'_, '_, '_>) -> Result<UpdateGraph> {
    const OP: &str = "update-graph";
    fields! { m;
        expr_ser = "expr_ser" => m.serialized()?;
        keys = "keys" => m.keys()?;
        internal_priority = "internal_priority" => m.optional(Message::ints_by_key)?;
        submitting_task = "submitting_task" => m.optional(|m| m.reader.key())?;
        fifo_timeout = "fifo_timeout" => m.value()?;
        actors = "actors" => m.value()?;
        code = "code" => m.value()?;
        annotations = "annotations" => m.value()?;
        span_metadata = "span_metadata" => m.value()?;
        user_priority = "user_priority" => m.value()?;
        stimulus_id = "stimulus_id" => m.optional(|m| m.reader.string())?;
        client = "client" => m.reader.string()?;
    }
    Ok(UpdateGraph {
        expr_ser: expr_ser.ok_or(missing(OP, "expr_ser"))?,
        keys: keys.ok_or(missing(OP, "keys"))?,
        internal_priority: internal_priority.flatten().filter(|p| !p.is_empty()),
        submitting_task: submitting_task.flatten(),
        fifo_timeout: fifo_timeout.unwrap_or(Value::Int(0)),
        actors: actors.unwrap_or_default(),
        code: code.unwrap_or_default(),
        annotations: annotations.unwrap_or_default(),
        span_metadata: span_metadata.unwrap_or_default(),
        user_priority: user_priority.unwrap_or_default(),
        stimulus_id: stimulus_id.flatten(),
        client,
    })
}

fn worker_message(op: &str, mut m: Message<'_, '_, '_>) -> Result<WorkerMessage> {
    Ok(match op {
        "task-finished" => WorkerMessage::TaskFinished(Box::new(task_finished(m)?)),
        "task-erred" => WorkerMessage::TaskErred(Box::new(task_erred(m)?)),
        "add-keys" => {
            let (keys, stimulus_id) = m.keys_and_stimulus("add-keys")?;
            WorkerMessage::AddKeys { keys, stimulus_id }
        }
        "request-refresh-who-has" => {
            let (keys, stimulus_id) = m.keys_and_stimulus("request-refresh-who-has")?;
            WorkerMessage::RequestRefreshWhoHas { keys, stimulus_id }
        }
        "release-worker-data" => {
            let (key, stimulus_id) = m.key_and_stimulus("release-worker-data")?;
            WorkerMessage::ReleaseWorkerData { key, stimulus_id }
        }
        "reschedule" => {
            let (key, stimulus_id) = m.key_and_stimulus("reschedule")?;
            WorkerMessage::Reschedule { key, stimulus_id }
        }
        "long-running" => {
            fields! { m;
                key = "key" => m.reader.key()?;
                run_id = "run_id" => m.reader.int()?;
                compute_duration = "compute_duration" => m.optional(|m| m.reader.float())?;
                stimulus_id = "stimulus_id" => m.reader.string()?;
            }
            WorkerMessage::LongRunning {
                key: key.ok_or(missing("long-running", "key"))?,
                run_id: run_id.ok_or(missing("long-running", "run_id"))?,
                compute_duration: compute_duration.flatten(),
                stimulus_id: stimulus_id.ok_or(missing("long-running", "stimulus_id"))?,
            }
        }
        "worker-status-change" => {
            fields! { m;
                status = "status" => m.status()?;
                stimulus_id = "stimulus_id" => m.reader.string()?;
            }
            WorkerMessage::WorkerStatusChange {
                status: status.ok_or(missing("worker-status-change", "status"))?,
                stimulus_id: stimulus_id.ok_or(missing("worker-status-change", "stimulus_id"))?,
            }
        }
        "steal-response" => {
            fields! { m;
                key = "key" => m.reader.key()?;
                state = "state" => m.optional(|m| m.reader.string())?;
                stimulus_id = "stimulus_id" => m.reader.string()?;
            }
            WorkerMessage::StealResponse {
                key: key.ok_or(missing("steal-response", "key"))?,
                state: state.flatten(),
                stimulus_id: stimulus_id.ok_or(missing("steal-response", "stimulus_id"))?,
            }
        }
        "log-event" => {
            fields! { m;
                topic = "topic" => m.value()?;
                msg = "msg" => m.value()?;
            }
            WorkerMessage::LogEvent {
                topic: topic.ok_or(missing("log-event", "topic"))?,
                msg: msg.ok_or(missing("log-event", "msg"))?,
            }
        }
        "keep-alive" => m.without_fields(WorkerMessage::KeepAlive)?,
        "close-stream" => m.without_fields(WorkerMessage::CloseStream)?,
        _ => {
            let (op, fields) = m.other()?;
            WorkerMessage::Other { op, fields }
        }
    })
}

fn task_finished(mut m: Message<'_, '_, '_>) -> Result<TaskFinished> {
    const OP: &str = "task-finished";
    fields! { m;
        key = "key" => m.reader.key()?;
        run_id = "run_id" => m.reader.int()?;
        nbytes = "nbytes" => m.optional(|m| m.reader.int())?;
        r#type = "type" => m.optional(|m| m.reader.bin())?;
        typename = "typename" => m.optional(|m| m.reader.string())?;
        metadata = "metadata" => m.value()?;
        thread = "thread" => m.value()?;
        startstops = "startstops" => m.value()?;
        stimulus_id = "stimulus_id" => m.reader.string()?;
    }
    Ok(TaskFinished {
        key: key.ok_or(missing(OP, "key"))?,
        run_id: run_id.ok_or(missing(OP, "run_id"))?,
        nbytes: nbytes.flatten().unwrap_or(-1),
        r#type: r#type.flatten().unwrap_or_default(),
        typename: typename.flatten().unwrap_or_default(),
        metadata: metadata.unwrap_or_default(),
        thread: thread.unwrap_or_default(),
        startstops: startstops.unwrap_or_default(),
        stimulus_id: stimulus_id.ok_or(missing(OP, "stimulus_id"))?,
    })
}

fn task_erred(mut m: Message<'_, '_, '_>) -> Result<TaskErred> {
    const OP: &str = "task-erred";
    fields! { m;
        key = "key" => m.reader.key()?;
        run_id = "run_id" => m.reader.int()?;
        exception = "exception" => m.value()?;
        traceback = "traceback" => m.value()?;
        exception_text = "exception_text" => m.optional(|m| m.reader.string())?;
        traceback_text = "traceback_text" => m.optional(|m| m.reader.string())?;
        thread = "thread" => m.value()?;
        startstops = "startstops" => m.value()?;
        stimulus_id = "stimulus_id" => m.reader.string()?;
    }
    Ok(TaskErred {
        key: key.ok_or(missing(OP, "key"))?,
        run_id: run_id.ok_or(missing(OP, "run_id"))?,
        exception: exception.ok_or(missing(OP, "exception"))?,
        traceback: traceback.unwrap_or_default(),
        exception_text: exception_text.flatten().unwrap_or_default(),
        traceback_text: traceback_text.flatten().unwrap_or_default(),
        thread: thread.unwrap_or_default(),
        startstops: startstops.unwrap_or_default(),
        stimulus_id: stimulus_id.ok_or(missing(OP, "stimulus_id"))?,
    })
}

impl Message<'_, '_, '_> {
    pub(super) fn value(&mut self) -> Result<Value> {
        self.decoder.value(self.reader)
    }

    pub(super) fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<Option<T>> {
        if self.reader.nil() {
            return Ok(None);
        }
        read(self).map(Some)
    }

    fn serialized(&mut self) -> Result<Serialized> {
        match self.value()? {
            Value::Serialized(value) => Ok(*value),
            other => Err(self.wrong("a serialised value", &other)),
        }
    }

    pub(super) fn wrong(&self, expected: &'static str, found: &Value) -> Error {
        Error::UnexpectedType {
            field: self.reader.field(),
            expected,
            found: found.type_name(),
        }
    }

    /// Keys in a list, tuple or set.
    pub(super) fn keys(&mut self) -> Result<Vec<Key>> {
        let start = self.reader.position();
        if let Token::Array(count) = self.reader.token()? {
            // As with messages: a key takes more memory than one byte.
            let mut keys = Vec::with_capacity(count.min(1024));
            for _ in 0..count {
                keys.push(self.reader.key()?);
            }
            return Ok(keys);
        }
        self.reader.seek(start);
        let value = self.value()?;
        match &value {
            Value::Set(values) => values.iter().map(Key::from_value).collect(),
            other => Err(self.wrong("keys", other)),
        }
    }

    pub(super) fn who_has(&mut self) -> Result<Vec<(Key, Vec<Str>)>> {
        let count = self.reader.map_len()?;
        let mut who_has = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            let key = self.reader.key()?;
            let holders = self.reader.array_len()?;
            let mut addresses = Vec::with_capacity(holders.min(64));
            for _ in 0..holders {
                addresses.push(self.reader.string()?);
            }
            who_has.push((key, addresses));
        }
        Ok(who_has)
    }

    pub(super) fn ints_by_key(&mut self) -> Result<Vec<(Key, i64)>> {
        let count = self.reader.map_len()?;
        let mut ints = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            ints.push((self.reader.key()?, self.reader.int()?));
        }
        Ok(ints)
    }

    pub(super) fn key_and_stimulus(mut self, op: &'static str) -> Result<(Key, Str)> {
        let m = &mut self;
        fields! { m;
            key = "key" => m.reader.key()?;
            stimulus_id = "stimulus_id" => m.reader.string()?;
        }
        Ok((
            key.ok_or(missing(op, "key"))?,
            stimulus_id.ok_or(missing(op, "stimulus_id"))?,
        ))
    }

    pub(super) fn keys_and_stimulus(mut self, op: &'static str) -> Result<(Vec<Key>, Str)> {
        let m = &mut self;
        fields! { m;
            keys = "keys" => m.keys()?;
            stimulus_id = "stimulus_id" => m.reader.string()?;
        }
        Ok((
            keys.ok_or(missing(op, "keys"))?,
            stimulus_id.ok_or(missing(op, "stimulus_id"))?,
        ))
    }

    /// The name of a status, which may also come as an enum member.
    pub(super) fn status(&mut self) -> Result<Str> {
        match self.value()? {
            Value::Str(name) => Ok(name),
            Value::Enum(member) => Ok(member.name),
            other => Err(self.wrong("a status", &other)),
        }
    }

    pub(super) fn without_fields<M>(self, message: M) -> Result<M> {
        for _ in 0..2 * self.fields_count {
            self.reader.skip()?;
        }
        Ok(message)
    }

    pub(super) fn other(mut self) -> Result<(Str, Map)> {
        let mut op = None;
        let mut fields = Map::new();
        for _ in 0..self.fields_count {
            let name = self.reader.string()?;
            if name == "op" {
                op = Some(self.reader.string()?);
            } else {
                let value = self.value()?;
                fields.push(name, value);
            }
        }
        Ok((op.ok_or(missing("stream message", "op"))?, fields))
    }
}
