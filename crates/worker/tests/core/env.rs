//! A worker under test, events in few words, and instructions as lines of text.

use std::sync::Arc;

use oxidask_wire::{Key, Map, Str, Value};
use oxidask_worker::event::Insertion;
use oxidask_worker::instruction::SendMessageToScheduler as Message;
use oxidask_worker::task::{Action, StartStop, TaskFailure, ValueType};
use oxidask_worker::{
    ComputeTaskEvent, Config, Error, Event, Instruction, Instructions, Priority, State, StimulusId,
    StoredValue, WorkerState,
};

pub(crate) const ADDRESS: &str = "tcp://me:1";

/// A worker whose state is validated after every event.
pub(crate) struct Env {
    pub(crate) worker: WorkerState,
    pub(crate) now: f64,
    stimulus_count: u32,
    run_id: i64,
}

impl Env {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            worker: WorkerState::new(config),
            now: 1000.0,
            stimulus_count: 0,
            run_id: 0,
        }
    }

    /// With so many threads and Dask's defaults.
    pub(crate) fn with_threads(nthreads: usize) -> Self {
        Self::new(Config {
            nthreads,
            ..Config::new(ADDRESS)
        })
    }

    /// Handles an event, and gives what it led to.
    pub(crate) fn handle(&mut self, event: Event) -> Vec<Instruction> {
        let out = self.try_handle(event).expect("the event is handled");
        self.worker.validate();
        out
    }

    /// Handles an event that may fail. Nothing is validated.
    pub(crate) fn try_handle(&mut self, event: Event) -> Result<Vec<Instruction>, Error> {
        self.now += 1.0;
        self.stimulus_count += 1;
        let stimulus_id = StimulusId::from(format!("s{}", self.stimulus_count));
        let mut out = Instructions::default();
        self.worker
            .handle_stimulus(self.now, &stimulus_id, event, &mut out)?;
        Ok(out.0)
    }

    /// Handles an event, and gives what it led to as lines of text.
    pub(crate) fn send(&mut self, event: Event) -> Vec<String> {
        self.handle(event).iter().map(line).collect()
    }

    pub(crate) fn compute(&mut self, task: Task) -> Vec<String> {
        self.run_id += 1;
        let event = task.event(self.run_id);
        self.send(event)
    }

    /// A run of a task ends with a value of so many bytes.
    pub(crate) fn finish(&mut self, key: &str, nbytes: i64) -> Vec<String> {
        let run_id = self.run_of(key);
        self.send(finished(key, run_id, nbytes))
    }

    pub(crate) fn fail(&mut self, key: &str) -> Vec<String> {
        let run_id = self.run_of(key);
        self.send(Event::ExecuteFailure {
            key: Key::from(key),
            run_id,
            failure: failure("boom"),
            startstops: Vec::new(),
            thread: None,
        })
    }

    /// A thread goes on with this task by itself.
    pub(crate) fn begin(&mut self, key: &str) -> Vec<String> {
        let key = Key::from(key);
        self.send(Event::Begun { key })
    }

    pub(crate) fn secede(&mut self, key: &str) -> Vec<String> {
        self.send(Event::Secede {
            key: Key::from(key),
            compute_duration: 0.5,
        })
    }

    pub(crate) fn free(&mut self, keys: &[&str]) -> Vec<String> {
        let keys = keys.iter().map(|&key| Key::from(key)).collect();
        self.send(Event::FreeKeys { keys })
    }

    /// A transfer brought these keys.
    pub(crate) fn receive(
        &mut self,
        worker: &str,
        total_nbytes: i64,
        keys: &[&str],
    ) -> Vec<String> {
        let data = keys.iter().map(|&key| (Key::from(key), value(10)));
        self.send(Event::GatherDepSuccess {
            worker: worker.into(),
            total_nbytes,
            data: data.collect(),
            transfer: None,
        })
    }

    fn run_of(&self, key: &str) -> i64 {
        let ts = self.worker.find_task(&Key::from(key));
        ts.expect("the task is known").run_id
    }

    pub(crate) fn state(&self, key: &str) -> Option<State> {
        self.worker.find_task(&Key::from(key)).map(|ts| ts.state)
    }
}

/// What `compute-task` says, as far as a test cares.
#[derive(Clone, Default)]
pub(crate) struct Task {
    key: &'static str,
    dependencies: Vec<(&'static str, Vec<&'static str>, i64)>,
    priority: f64,
    resources: Vec<(&'static str, f64)>,
    actor: bool,
}

impl Task {
    pub(crate) fn new(key: &'static str) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }

    /// Needs a task of 10 bytes, which these peers have.
    pub(crate) fn needs(self, key: &'static str, holders: &[&'static str]) -> Self {
        self.needs_sized(key, holders, 10)
    }

    pub(crate) fn needs_sized(
        mut self,
        key: &'static str,
        holders: &[&'static str],
        nbytes: i64,
    ) -> Self {
        self.dependencies.push((key, holders.to_vec(), nbytes));
        self
    }

    pub(crate) fn priority(mut self, priority: f64) -> Self {
        self.priority = priority;
        self
    }

    pub(crate) fn takes(mut self, resource: &'static str, amount: f64) -> Self {
        self.resources.push((resource, amount));
        self
    }

    pub(crate) fn actor(mut self) -> Self {
        self.actor = true;
        self
    }

    fn event(self, run_id: i64) -> Event {
        let dependencies = &self.dependencies;
        Event::ComputeTask(Box::new(ComputeTaskEvent {
            key: Key::from(self.key),
            run_id,
            who_has: dependencies
                .iter()
                .map(|(key, holders, _)| {
                    let holders = holders.iter().map(|&holder| Str::from(holder));
                    (Key::from(*key), holders.collect())
                })
                .collect(),
            nbytes: dependencies
                .iter()
                .map(|(key, _, nbytes)| (Key::from(*key), *nbytes))
                .collect(),
            priority: Priority::from_scheduler(&[0.0, 1.0, self.priority])
                .expect("three numbers are a priority"),
            run_spec: Some(Value::from("spec")),
            resource_restrictions: self
                .resources
                .iter()
                .map(|&(name, amount)| (name.into(), amount))
                .collect(),
            actor: self.actor,
            annotations: Map::new(),
            span_id: None,
        }))
    }
}

/// As its first run.
impl From<Task> for Event {
    fn from(task: Task) -> Self {
        task.event(1)
    }
}

pub(crate) fn value(nbytes: i64) -> Insertion {
    Ok(StoredValue {
        nbytes,
        r#type: Arc::new(ValueType::default()),
        disk_write: None,
    })
}

pub(crate) fn failure(text: &str) -> Arc<TaskFailure> {
    Arc::new(TaskFailure {
        exception: Value::Nil,
        traceback: Value::Nil,
        exception_text: Str::from(text),
        traceback_text: Str::default(),
    })
}

pub(crate) fn finished(key: &str, run_id: i64, nbytes: i64) -> Event {
    Event::ExecuteSuccess {
        key: Key::from(key),
        run_id,
        nbytes,
        value: value(nbytes),
        startstops: vec![StartStop {
            action: Action::Compute,
            start: 1.0,
            stop: 2.0,
            source: None,
        }],
        thread: Some(7),
    }
}

/// An instruction in few words.
pub(crate) fn line(instruction: &Instruction) -> String {
    match instruction {
        Instruction::GatherDep(gather) => {
            let keys = names(&gather.to_gather);
            format!(
                "gather {keys} from {} ({})",
                gather.worker, gather.total_nbytes
            )
        }
        Instruction::Execute(execute) => format!("execute {}", execute.key),
        Instruction::RetryBusyWorkerLater(retry) => format!("retry {} later", retry.worker),
        Instruction::StoreData { key } => format!("store {key}"),
        Instruction::ReleaseData { key } => format!("drop {key}"),
        Instruction::Transition { key, start, finish } => {
            format!("transition {key} {start} -> {finish}")
        }
        Instruction::SendMessageToScheduler(message) => {
            let op = message.op();
            match message {
                Message::TaskFinished(msg) => {
                    format!("{op} {} run {} ({})", msg.key, msg.run_id, msg.nbytes)
                }
                Message::TaskErred(msg) => {
                    let text = &msg.failure.exception_text;
                    format!("{op} {} run {}: {text}", msg.key, msg.run_id)
                }
                Message::ReleaseWorkerData(msg) => format!("{op} {}", msg.key),
                Message::Reschedule(msg) => format!("{op} {}", msg.key),
                Message::LongRunning(msg) => match msg.compute_duration {
                    Some(duration) => format!("{op} {} after {duration}", msg.key),
                    None => format!("{op} {}", msg.key),
                },
                Message::AddKeys(msg) => format!("{op} {}", names(&msg.keys)),
                Message::RequestRefreshWhoHas(msg) => format!("{op} {}", names(&msg.keys)),
                Message::StealResponse(msg) => match msg.state {
                    Some(state) => format!("{op} {} {state}", msg.key),
                    None => format!("{op} {}", msg.key),
                },
            }
        }
    }
}

fn names(keys: &[Key]) -> String {
    let names: Vec<String> = keys.iter().map(Key::to_string).collect();
    names.join(", ")
}
