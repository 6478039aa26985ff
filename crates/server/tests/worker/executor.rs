//! An executor without an interpreter: it finds the name of one of a few fixed
//! functions in a task's pickle and runs that.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use oxidask_server::worker::{
    Answer, Datum, Executed, Executor, Input, Introduction, Outcome, Outgoing, Ran, Received,
    Request, RunSpec, Task, WorkerHandle,
};
use oxidask_wire::pickle::{PickleArg, exception_pickle, plain_pickle, read_plain};
use oxidask_wire::{Key, Map, Serialized, Str, Value, map};
use oxidask_worker::task::{TaskFailure, ValueType};
use rustix::process::{Signal, getpid, kill_process};

/// The module that the functions seem to come from: a task is recognised by this
/// prefix and one of the names in [`Toy::run`].
const PREFIX: &[u8] = b"shell_";

/// By how much `shell_grow` makes the process larger.
const GROW_NBYTES: usize = 400 << 20;

/// A number that cannot be serialised.
const LOCK: i64 = i64::MIN;

/// Numbers are its only values.
#[derive(Default)]
pub(crate) struct Toy {
    worker: OnceLock<WorkerHandle>,
    state: Mutex<State>,
    /// Says that `state` changed.
    pub(crate) changed: tokio::sync::Notify,
    /// Is taken in as if it could not be deserialised.
    poison: Option<i64>,
}

#[derive(Default)]
struct State {
    /// Tasks that `shell_hold` holds.
    held: HashMap<Key, ()>,
    /// Tasks that run on elsewhere.
    seceded: HashSet<Key>,
    /// Tasks to go on with.
    lent: VecDeque<Task>,
    /// Requests and stream messages that came.
    heard: Vec<(String, Map)>,
    released_count: usize,
    collections_count: usize,
    holds_serialization: bool,
    is_closed: bool,
}

impl Toy {
    /// One for which this number cannot be deserialised.
    pub(crate) fn with_poison(number: i64) -> Self {
        Self {
            poison: Some(number),
            ..Self::default()
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worker(&self) -> &WorkerHandle {
        self.worker.get().expect("it was started")
    }

    /// Requests and stream messages so far.
    pub(crate) fn heard(&self) -> Vec<(String, Map)> {
        self.state().heard.clone()
    }

    /// Whether the worker has closed it.
    pub(crate) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// Lets serialisation wait, as for an interpreter that is busy.
    pub(crate) fn hold_serialization(&self, holds: bool) {
        self.state().holds_serialization = holds;
        self.changed.notify_waiters();
    }

    /// How often garbage was to be collected.
    pub(crate) fn collections_count(&self) -> usize {
        self.state().collections_count
    }

    /// Values given back so far.
    pub(crate) fn released_count(&self) -> usize {
        self.state().released_count
    }

    /// Waits until a task is held.
    pub(crate) async fn holds(&self, key: &str) {
        let key = Key::from(key);
        loop {
            let changed = self.changed.notified();
            if self.state().held.contains_key(&key) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until this task is lent.
    pub(crate) async fn is_lent(&self, key: &str) {
        let key = Key::from(key);
        loop {
            let changed = self.changed.notified();
            if self.state().lent.iter().any(|task| task.key == key) {
                return;
            }
            changed.await;
        }
    }

    /// Lets a held task end.
    pub(crate) fn finish(&self, key: &str, outcome: Outcome) {
        let key = Key::from(key);
        let held = self.state().held.remove(&key);
        assert!(held.is_some(), "{key:?} is not held");
        self.done(key, outcome);
    }

    /// A task is done; the thread goes on with what was lent.
    fn done(&self, key: Key, outcome: Outcome) {
        let mut state = self.state();
        let next = match state.seceded.remove(&key) {
            true => None,
            false => state.lent.pop_front(),
        };
        // Under the lock: what is taken back afterwards has not been begun.
        self.worker().executed(Executed {
            key,
            outcome,
            next: next.as_ref().map(|task| task.key.clone()),
        });
        drop(state);
        self.execute(Vec::from_iter(next));
    }

    /// Lets a held task secede.
    pub(crate) fn secede(&self, key: &str) {
        self.state().seceded.insert(Key::from(key));
        self.worker().seceded(Key::from(key), 0.5, None);
    }

    fn hear(&self, op: &str, fields: Map) {
        self.state().heard.push((op.to_owned(), fields));
        self.changed.notify_waiters();
    }

    /// `None` for a task that goes on.
    fn run(&self, task: &Task) -> Option<Outcome> {
        let sum = || task.inputs.iter().map(|(_, input)| number(input)).sum();
        Some(match &*function(&task.run_spec) {
            "one" => finished(1),
            "two" => finished(2),
            "total" => finished(sum()),
            "large" => large(0, 2_000_000),
            "sized" => large(number_in(&task.key), 1_000_000),
            "small" => large(number_in(&task.key), 100_000),
            "packed" => packed(number_in(&task.key), 100_000),
            "huge" => large(number_in(&task.key), 1_000_000_000),
            "text" => finished_text(),
            "lock" => large(LOCK, 1_000_000),
            "hugelock" => large(LOCK, 1_000_000_000),
            "raise" => erred("ValueError", "on purpose"),
            "reschedule" => Outcome::Reschedule,
            "exit" => std::process::exit(3),
            "fault" => die(Signal::SEGV),
            "killed" => die(Signal::KILL),
            "grow" => {
                // Written to, or it would only be promised.
                std::mem::forget(vec![1_u8; GROW_NBYTES]);
                return None;
            }
            "hold" => {
                self.state().held.insert(task.key.clone(), ());
                self.changed.notify_waiters();
                return None;
            }
            other => Outcome::Erred {
                failure: failure("RuntimeError", &format!("no such function: {other:?}")),
                ran: None,
            },
        })
    }
}

/// Ends this process as a signal from outside would.
fn die(signal: Signal) -> ! {
    loop {
        // The first one only ends Rust's own handler of the signal.
        let _ = kill_process(getpid(), signal);
        std::thread::yield_now();
    }
}

/// The name of the function in a pickled task.
fn function(run_spec: &RunSpec) -> String {
    let pickle = match run_spec {
        RunSpec::Node(node) => node.as_pickled().and_then(|node| node.pickle().ok()),
        RunSpec::Call { function, .. } => Some(function.clone()),
    };
    let pickle = pickle.unwrap_or_default();
    let Some(at) = pickle
        .windows(PREFIX.len())
        .position(|window| window == PREFIX)
    else {
        return String::new();
    };
    let name = pickle[at + PREFIX.len()..].iter();
    name.take_while(|byte| byte.is_ascii_lowercase())
        .map(|&byte| char::from(byte))
        .collect()
}

fn number(input: &Input) -> i64 {
    let (Input::Value(datum) | Input::Actor(datum)) = input;
    number_of(datum).unwrap_or_default()
}

/// The number that a value is.
pub(crate) fn number_of(datum: &Datum) -> Option<i64> {
    let live = datum.object().and_then(|object| object.downcast_ref());
    live.copied().or_else(|| {
        let serialized = datum.serialize()?;
        read_plain(serialized.frames.first()?).ok()?.as_i64()
    })
}

pub(crate) fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

fn ran() -> Ran {
    Ran {
        start: now(),
        stop: now(),
        thread: 7,
        metrics: vec![("thread-cpu", "seconds", 0.25)],
    }
}

/// A task returned a number.
pub(crate) fn finished(number: i64) -> Outcome {
    Outcome::Finished {
        value: datum(number),
        ran: ran(),
    }
}

/// As [`large`], serialised already.
fn packed(number: i64, nbytes: i64) -> Outcome {
    let value = Datum::serialized(serialized(number), nbytes, int());
    Outcome::Finished {
        value: Arc::new(value),
        ran: ran(),
    }
}

/// A task returned something that compresses well, serialised already.
fn finished_text() -> Outcome {
    let mut serialized = serialized(0);
    let text = b"abc".repeat(100_000);
    let frames = [serialized.frames[0].clone(), bytes::Bytes::from(text)];
    serialized.frames = frames.into_iter().collect();
    let header = map! {
        "serializer" => "pickle",
        "writeable" => vec![Value::Bool(true)],
        "compression" => vec![Value::Nil, Value::Nil],
        "num-sub-frames" => 2,
    };
    serialized.header = oxidask_wire::encode(&Value::Map(header)).swap_remove(0);
    let value = Datum::serialized(serialized, 300_000, int());
    Outcome::Finished {
        value: Arc::new(value),
        ran: ran(),
    }
}

/// The number that a key ends with.
fn number_in(key: &Key) -> i64 {
    let text = key.as_str().unwrap_or_default();
    let number = text
        .rsplit('-')
        .next()
        .and_then(|number| number.parse().ok());
    number.unwrap_or_default()
}

/// A task returned a number that takes much room.
fn large(number: i64, nbytes: i64) -> Outcome {
    let value = Datum::live(Arc::new(number), None, nbytes, int());
    Outcome::Finished {
        value: Arc::new(value),
        ran: ran(),
    }
}

/// A task raised.
pub(crate) fn erred(class: &str, text: &str) -> Outcome {
    Outcome::Erred {
        failure: failure(class, text),
        ran: Some(ran()),
    }
}

fn failure(class: &str, text: &str) -> Arc<TaskFailure> {
    let pickle = exception_pickle("builtins", class, &[PickleArg::Str(text)]);
    Arc::new(TaskFailure {
        exception: Serialized::of_bytes(pickle.into()).into(),
        traceback: Value::Nil,
        exception_text: format!("{class}('{text}')").into(),
        traceback_text: "".into(),
    })
}

fn int() -> Arc<ValueType> {
    Arc::new(ValueType {
        pickled: bytes::Bytes::from_static(
            b"\x80\x05\x95\x14\0\0\0\0\0\0\0\x8c\x08builtins\x94\x8c\x03int\x94\x93\x94.",
        ),
        name: "int".into(),
    })
}

fn datum(number: i64) -> Arc<Datum> {
    Arc::new(Datum::live(Arc::new(number), None, 28, int()))
}

/// A number as others get it.
pub(crate) fn serialized(number: i64) -> Serialized {
    let pickle = plain_pickle(&PickleArg::Int(number));
    let header = map! {
        "serializer" => "pickle",
        "writeable" => Vec::new(),
        "compression" => vec![Value::Nil],
        "num-sub-frames" => 1,
    };
    Serialized {
        header: oxidask_wire::encode(&Value::Map(header)).swap_remove(0),
        frames: [bytes::Bytes::from(pickle)].into_iter().collect(),
    }
}

/// The number in what others sent.
pub(crate) fn deserialized(value: &Value) -> Option<i64> {
    match value.as_serialized() {
        Some(serialized) => read_plain(serialized.frames.first()?).ok()?.as_i64(),
        None => value.as_i64(),
    }
}

impl Executor for Toy {
    fn start(&self, worker: WorkerHandle) -> BoxFuture<'_, Result<Introduction, Arc<TaskFailure>>> {
        let first = self.worker.set(worker).is_ok();
        assert!(first, "it is started once");
        async {
            Ok(Introduction {
                versions: map! { "host" => Map::new(), "packages" => Map::new() }.into(),
                startup_information: map! { "kind" => "toy" },
                wants_transitions: false,
            })
        }
        .boxed()
    }

    fn execute(&self, tasks: Vec<Task>) {
        for task in tasks {
            if let Some(outcome) = self.run(&task) {
                self.done(task.key, outcome);
            }
        }
    }

    fn ahead_max(&self) -> usize {
        2
    }

    fn lend(&self, tasks: VecDeque<Task>, _nbytes: i64) {
        self.state().lent = tasks;
        self.changed.notify_waiters();
    }

    fn take_back(&self) -> VecDeque<Task> {
        std::mem::take(&mut self.state().lent)
    }

    fn receive(&self, values: Vec<(Key, Value)>) -> BoxFuture<'_, Vec<Received>> {
        let received = values.iter().map(|(_, value)| match deserialized(value) {
            Some(number) if self.poison == Some(number) => {
                Err(failure("TypeError", "cannot be deserialised"))
            }
            Some(number) => Ok(datum(number)),
            None => Err(failure("TypeError", "not a number")),
        });
        std::future::ready(received.collect()).boxed()
    }

    fn serialize(
        &self,
        values: Vec<Outgoing>,
        _serializers: Option<Vec<Str>>,
    ) -> BoxFuture<'_, Vec<Serialized>> {
        let values: Vec<Serialized> = values
            .iter()
            .map(|value| match number_of(&value.datum) {
                Some(LOCK) => Serialized::error("cannot pickle '_thread.lock' object"),
                Some(number) => serialized(number),
                None => Serialized::error("not a number"),
            })
            .collect();
        async move {
            loop {
                let changed = self.changed.notified();
                if !self.state().holds_serialization {
                    return values;
                }
                changed.await;
            }
        }
        .boxed()
    }

    fn call(&self, request: Request) -> BoxFuture<'_, Option<Answer>> {
        let is_known = !request.op.starts_with("unknown");
        let fails = request.op == "run" && request.args.contains_key("fails");
        self.hear(&request.op, request.args);
        let answer = match (is_known, fails) {
            (false, _) => None,
            (true, true) => Some(Err(failure("ZeroDivisionError", "division by zero"))),
            (true, false) => Some(Ok(map! { "status" => "OK" }.into())),
        };
        std::future::ready(answer).boxed()
    }

    fn stream_message(&self, op: &str, fields: Map) -> bool {
        self.hear(op, fields);
        op == "shuffle-fail"
    }

    fn release(&self, values: Vec<Arc<Datum>>) {
        self.state().released_count += values.len();
        self.changed.notify_waiters();
    }

    fn collect_garbage(&self) {
        self.state().collections_count += 1;
        self.changed.notify_waiters();
    }

    fn teardown(&self) -> BoxFuture<'_, ()> {
        self.hear("teardown", Map::new());
        std::future::ready(()).boxed()
    }

    fn close(&self, _wait: bool) -> BoxFuture<'_, ()> {
        self.state().is_closed = true;
        std::future::ready(()).boxed()
    }
}
