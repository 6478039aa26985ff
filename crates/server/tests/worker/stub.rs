//! The scheduler's end of the protocol, driven by a test message by message.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oxidask_comm::{Address, Connection, Listener, Options, Reader, Scheme, Writer};
use oxidask_server::config::Config;
use oxidask_server::logging::{self, Logs};
use oxidask_server::worker::{self, Executor, Handle, StartError, WorkerOptions};
use oxidask_wire::stream::{
    ComputeTask, Dependency, Number, RunSpec, ToWorker, WorkerMessage, decode_worker_batch,
};
use oxidask_wire::{BatchWriter, Key, Map, Value, map};
use tokio::sync::mpsc;

use crate::executor::{Toy, now};

/// Nothing here takes this long unless it is broken.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future)
        .await
        .expect("it does not happen")
}

pub(crate) fn logs() -> Logs {
    logging::init(&Config::defaults()).unwrap()
}

pub(crate) fn local() -> Address {
    Address {
        scheme: Scheme::Tcp,
        host: "127.0.0.1".to_owned(),
        port: 0,
    }
}

/// Options of a worker that a test starts.
pub(crate) fn options(scheduler: &str) -> WorkerOptions {
    let mut options = WorkerOptions::new(scheduler, "local", Config::defaults()).unwrap();
    options.listen.host = Some("127.0.0.1".to_owned());
    options.validate = true;
    options
}

/// Options of a worker that soon gives up peers that nobody listens for.
pub(crate) fn impatient(scheduler: &str) -> WorkerOptions {
    let mut options = options(scheduler);
    let timeout = oxidask_server::config::Value::Float(1.0);
    options.config = options
        .config
        .with("test", &[("distributed.comm.timeouts.connect", timeout)]);
    options
}

type Respond = Box<dyn FnMut(&str, &Map) -> Option<Value> + Send>;

/// A scheduler that does what the test says.
pub(crate) struct Stub {
    pub(crate) address: String,
    registered: mpsc::UnboundedReceiver<(Map, Connection)>,
    /// Requests other than registrations, in order.
    pub(crate) requests: mpsc::UnboundedReceiver<(String, Map)>,
    /// What workers are told, in seconds.
    pub(crate) heartbeat_interval: f64,
    respond: Arc<Mutex<Option<Respond>>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Stub {
    pub(crate) async fn start() -> Self {
        Self::listen(&local()).await
    }

    pub(crate) async fn listen(address: &Address) -> Self {
        let listener = Listener::bind(address, Options::default()).await.unwrap();
        let address = listener.listen_address().to_string();
        let (registering, registered) = mpsc::unbounded_channel();
        let (requesting, requests) = mpsc::unbounded_channel();
        let respond: Arc<Mutex<Option<Respond>>> = Arc::default();
        let responding = respond.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok(incoming) = listener.accept().await {
                let (registering, requesting) = (registering.clone(), requesting.clone());
                let respond = responding.clone();
                connections.spawn(async move {
                    let Ok(mut connection) = incoming.establish().await else {
                        return;
                    };
                    while let Ok(Value::Map(mut request)) = connection.read_value().await {
                        let op = request.take("op").unwrap().into_str().unwrap().to_string();
                        if op == "register-worker" {
                            let _ = registering.send((request, connection));
                            return;
                        }
                        let answer = {
                            let mut respond =
                                respond.lock().unwrap_or_else(PoisonError::into_inner);
                            respond.as_mut().and_then(|respond| respond(&op, &request))
                        };
                        let default = map! {
                            "status" => "OK",
                            "time" => now(),
                            "heartbeat-interval" => 0.01,
                        };
                        let _ = requesting.send((op, request));
                        let answer = answer.unwrap_or(Value::Map(default));
                        if connection.write_value(&answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self {
            address,
            registered,
            requests,
            heartbeat_interval: 60.0,
            respond,
            accepting,
        }
    }

    /// Answers requests by `respond`; what that does not, by `OK`.
    pub(crate) fn respond(
        &self,
        respond: impl FnMut(&str, &Map) -> Option<Value> + Send + 'static,
    ) {
        *self.respond.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(respond));
    }

    /// Nobody listens any more; streams go on.
    pub(crate) async fn stop_listening(self) {
        self.accepting.abort();
        let _ = self.accepting.await;
    }

    /// The next registration, unanswered.
    pub(crate) async fn registration(&mut self) -> (Map, Connection) {
        soon(self.registered.recv()).await.unwrap()
    }

    /// Starts a worker and takes its registration.
    pub(crate) async fn worker(&mut self) -> Worker {
        let options = options(&self.address);
        self.worker_with(options, Toy::default()).await
    }

    pub(crate) async fn worker_with(&mut self, options: WorkerOptions, toy: Toy) -> Worker {
        let toy = Arc::new(toy);
        let mut starting = tokio::spawn(start(options, toy.clone()));
        let (registration, connection) = tokio::select! {
            registered = self.registration() => registered,
            ended = &mut starting => panic!("it does not start: {ended:?}"),
        };
        let mut worker = Worker {
            handle: None,
            toy,
            address: registration
                .get("address")
                .unwrap()
                .as_str()
                .unwrap()
                .to_owned(),
            registration,
            stream: Stream::new(connection),
        };
        let interval = self.heartbeat_interval;
        worker.stream.accept(interval, Map::new()).await;
        worker.handle = Some(soon(starting).await.unwrap().unwrap());
        let first = worker.stream.next().await;
        assert!(
            matches!(&first, WorkerMessage::WorkerStatusChange { status, .. } if *status == "running"),
            "{first:?}"
        );
        worker
    }
}

pub(crate) async fn start(options: WorkerOptions, toy: Arc<Toy>) -> Result<Handle, StartError> {
    worker::start(options, toy as Arc<dyn Executor>, logs()).await
}

/// A worker and the scheduler's end of its stream.
pub(crate) struct Worker {
    pub(crate) handle: Option<Handle>,
    pub(crate) toy: Arc<Toy>,
    pub(crate) address: String,
    pub(crate) registration: Map,
    pub(crate) stream: Stream,
}

/// The scheduler's end of a worker's stream.
pub(crate) struct Stream {
    reader: Reader,
    writer: Writer,
    waiting: VecDeque<WorkerMessage>,
}

impl Stream {
    pub(crate) fn new(connection: Connection) -> Self {
        let (reader, writer, _) = connection.split();
        Self {
            reader,
            writer,
            waiting: VecDeque::new(),
        }
    }

    /// Answers the registration.
    pub(crate) async fn accept(&mut self, heartbeat_interval: f64, plugins: Map) {
        let reply = map! {
            "status" => "OK",
            "time" => now(),
            "heartbeat-interval" => heartbeat_interval,
            "worker-plugins" => plugins,
            "warning" => "",
            "error" => "",
        };
        self.write(&Value::Map(reply)).await;
    }

    pub(crate) async fn write(&mut self, value: &Value) {
        self.writer
            .write(&oxidask_wire::encode(value))
            .await
            .unwrap();
    }

    /// Sends messages as one batch.
    pub(crate) async fn send(&mut self, messages: &[ToWorker<'_>]) {
        let mut batch = BatchWriter::new();
        for message in messages {
            message.write(&mut batch).unwrap();
        }
        self.writer.write(&batch.finish()).await.unwrap();
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> WorkerMessage {
        self.try_next().await.expect("the stream has ended")
    }

    /// The next message, or `None` at the end.
    pub(crate) async fn try_next(&mut self) -> Option<WorkerMessage> {
        while self.waiting.is_empty() {
            let frames = soon(self.reader.read()).await.ok()?;
            self.waiting.extend(decode_worker_batch(&frames).unwrap());
        }
        self.waiting.pop_front()
    }
}

/// A task for [`Worker::compute`].
pub(crate) struct Ask<'a> {
    pub(crate) key: &'a str,
    pub(crate) run_id: i64,
    pub(crate) function: &'a str,
    pub(crate) needs: &'a [(&'a str, &'a [&'a str])],
    pub(crate) actor: bool,
    pub(crate) resources: &'a [(&'a str, f64)],
}

impl<'a> Ask<'a> {
    pub(crate) fn new(key: &'a str, function: &'a str) -> Self {
        Self {
            key,
            run_id: 1,
            function,
            needs: &[],
            actor: false,
            resources: &[],
        }
    }
}

impl Worker {
    pub(crate) async fn compute(&mut self, ask: Ask<'_>) {
        let keys: Vec<Key> = ask.needs.iter().map(|(key, _)| Key::from(*key)).collect();
        let dependencies: Vec<Dependency<'_>> = keys
            .iter()
            .zip(ask.needs)
            .map(|(key, (_, holders))| Dependency {
                key,
                nbytes: 28,
                who_has: holders.to_vec(),
            })
            .collect();
        let resources: Vec<_> = ask
            .resources
            .iter()
            .map(|(name, amount)| (Arc::from(*name), Number::Float(*amount)))
            .collect();
        let run_spec = format!("shell_{}", ask.function);
        let message = ToWorker::ComputeTask(ComputeTask {
            key: &Key::from(ask.key),
            run_id: ask.run_id,
            priority: [Number::Int(0), Number::Int(1), Number::Int(0)],
            stimulus_id: "compute-task-1",
            dependencies: &dependencies,
            run_spec: RunSpec::Pickle(run_spec.as_bytes(), &[]),
            resource_restrictions: (!resources.is_empty()).then_some(&resources[..]),
            actor: ask.actor,
            annotations: None,
            span_id: Some("span"),
        });
        self.stream.send(&[message]).await;
    }

    /// Computes and waits until it is in memory.
    pub(crate) async fn computed(&mut self, key: &str, function: &str) {
        self.compute(Ask::new(key, function)).await;
        let message = self.stream.next().await;
        assert!(
            matches!(&message, WorkerMessage::TaskFinished(task) if task.key == Key::from(key)),
            "{message:?}"
        );
    }

    pub(crate) async fn free(&mut self, keys: &[&str]) {
        let keys: Vec<Key> = keys.iter().map(|key| Key::from(*key)).collect();
        let message = ToWorker::FreeKeys {
            keys: &keys,
            stimulus_id: "free-1",
        };
        self.stream.send(&[message]).await;
    }

    /// Asks for a task back; the answer shows that what was sent before was handled.
    pub(crate) async fn steal(&mut self, key: &str) {
        let message = ToWorker::StealRequest {
            key: &Key::from(key),
            stimulus_id: "steal-1",
        };
        self.stream.send(&[message]).await;
    }

    /// A connection for requests.
    pub(crate) async fn connect(&self) -> Connection {
        let address = Address::parse(&self.address, Scheme::Tcp).unwrap();
        oxidask_comm::connect(&address, &Options::default(), LONG)
            .await
            .unwrap()
    }

    /// Asks `op` on a connection of its own.
    pub(crate) async fn ask(&self, op: &str, fields: Map) -> Value {
        ask(&mut self.connect().await, op, fields).await
    }

    /// Numbers by key.
    pub(crate) async fn data(&self, keys: &[&str]) -> Vec<(String, i64)> {
        let mut connection = self.connect().await;
        let reply = ask(&mut connection, "get_data", keys_field(keys)).await;
        connection.write_value(&"OK".into()).await.unwrap();
        let mut reply = reply.into_map().unwrap();
        assert_eq!(reply.get("status").unwrap().as_str(), Some("OK"));
        let data = reply.take("data").unwrap().into_map().unwrap();
        data.iter()
            .map(|(key, value)| {
                let key = key.as_str().unwrap().to_owned();
                (key, crate::executor::deserialized(value).unwrap())
            })
            .collect()
    }

    /// Waits until the worker has closed; returns the reason.
    pub(crate) async fn closed(&mut self) -> Arc<str> {
        soon(self.handle.take().unwrap().wait()).await
    }
}

pub(crate) fn keys_field(keys: &[&str]) -> Map {
    map! { "keys" => keys.iter().map(|key| Value::from(*key)).collect::<Value>() }
}

pub(crate) async fn ask(connection: &mut Connection, op: &str, mut fields: Map) -> Value {
    fields.push("op", op);
    connection.write_value(&Value::Map(fields)).await.unwrap();
    soon(connection.read_value()).await.unwrap()
}

/// A member of an answer.
pub(crate) fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    let map = value
        .as_map()
        .unwrap_or_else(|| panic!("no map: {value:?}"));
    map.get(name)
        .unwrap_or_else(|| panic!("no {name} in {value:?}"))
}

pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    field(value, name).as_str().unwrap()
}
