//! Records of finished runs: the task stream and collectors of task metadata.

use std::collections::VecDeque;
use std::hash::RandomState;

use hashbrown::HashSet;
use indexmap::IndexMap;
use oxidask_wire::{Key, Map, Value, map};

use super::arguments::{Arguments, seconds};
use super::errors::value_error;
use super::waits::{Answer, NONE, check_names};
use crate::instruction::Failure;
use crate::task::TaskRecord;
use crate::{Scheduler, State};

/// `TaskStreamPlugin`: recording begins with the first question, as in stock.
#[derive(Debug)]
pub(super) struct TaskStream {
    active: bool,
    records: VecDeque<Box<TaskRecord>>,
    /// `scheduler.dashboard.*.task-stream-length`.
    length: usize,
    /// Records so far, dropped ones included.
    index: usize,
}

impl TaskStream {
    pub(super) fn new(length: usize) -> Self {
        Self {
            active: false,
            records: VecDeque::new(),
            length,
            index: 0,
        }
    }

    pub(super) fn push(&mut self, record: Box<TaskRecord>) {
        if !self.active || record.startstops.as_array().is_none_or(<[Value]>::is_empty) {
            return;
        }
        self.index += 1;
        self.records.push_back(record);
        if self.records.len() > self.length {
            self.records.pop_front();
        }
    }

    /// `get_task_stream_index`.
    pub(super) fn index(&mut self) -> Answer {
        self.active = true;
        Ok(Some(Value::from(self.index)))
    }

    /// `get_task_stream`.
    pub(super) fn collect(&mut self, now: f64, arguments: &mut Arguments<'_>) -> Answer {
        self.active = true;
        let len = self.records.len() as i64;
        if let Some(start_index) = arguments.optional_integer("start_index")? {
            let start = (start_index - (self.index as i64 - len)).clamp(0, len);
            return Ok(Some(self.slice(start, len)));
        }
        let start = arguments
            .optional("start")
            .map(|value| self.position(now, &value))
            .transpose()?;
        let stop = arguments
            .optional("stop")
            .map(|value| self.position(now, &value))
            .transpose()?;
        let (start, stop) = match (start, stop, arguments.optional_integer("count")?) {
            (None, None, Some(count)) => (len - count, len),
            (None, Some(stop), Some(count)) => (stop - count, stop),
            (Some(start), None, Some(count)) => (start, start + count),
            (start, stop, _) => (start.unwrap_or(0), stop.unwrap_or(len)),
        };
        Ok(Some(self.slice(start.max(0), stop.min(len))))
    }

    /// Position of the first record that stopped at a time (a number) or since (a duration) or later.
    fn position(&self, now: f64, value: &Value) -> Result<i64, Failure> {
        let time = match value.as_f64() {
            Some(time) => time,
            None => now - seconds(value)?,
        };
        Ok(self.records.partition_point(|record| stop(record) < time) as i64)
    }

    fn slice(&self, start: i64, stop: i64) -> Value {
        let start = usize::try_from(start).unwrap_or(0);
        let stop = usize::try_from(stop).unwrap_or(0).max(start);
        self.records
            .iter()
            .skip(start)
            .take(stop - start)
            .map(|record| to_value(record))
            .collect()
    }
}

/// When the last action of a run stopped.
fn stop(record: &TaskRecord) -> f64 {
    let actions = record.startstops.as_array().unwrap_or_default();
    let stops = actions
        .iter()
        .filter_map(|action| action.as_map()?.get("stop")?.as_f64());
    stops.fold(f64::NEG_INFINITY, f64::max)
}

fn to_value(record: &TaskRecord) -> Value {
    let mut fields = map! {
        "stimulus_id" => record.stimulus_id.as_str(),
        "worker" => &record.worker,
    };
    if record.finish == State::Erred {
        fields.push("cause", &record.key);
        fields.push("status", "error");
    } else {
        fields.push("metadata", record.metadata.clone());
        fields.push("nbytes", record.nbytes);
        fields.push("type", &record.r#type);
        fields.push("typename", &record.typename);
        fields.push("status", "OK");
    }
    fields.push("thread", record.thread.clone());
    fields.push("startstops", record.startstops.clone());
    fields.push("key", &record.key);
    fields.into()
}

/// `get_task_metadata`: what becomes of the keys submitted while it is open.
#[derive(Debug, Default)]
pub(super) struct Collectors {
    collectors: IndexMap<Key, Collector, RandomState>,
}

#[derive(Debug, Default)]
struct Collector {
    /// Requested and not finished.
    keys: HashSet<Key, RandomState>,
    metadata: Map,
    state: Map,
}

impl Collectors {
    /// `start_task_metadata`.
    pub(super) fn start(&mut self, name: Key) -> Answer {
        if self.collectors.contains_key(&name) {
            return Err(value_error(&format!(
                "Could not add plugin of type CollectTaskMetaDataPlugin with name {} to scheduler.",
                name.python_repr()
            )));
        }
        check_names(self.collectors.len(), "collectors")?;
        self.collectors.insert(name, Collector::default());
        NONE
    }

    /// `stop_task_metadata`.
    pub(super) fn stop(&mut self, name: &Key) -> Answer {
        match self.collectors.shift_remove(name) {
            Some(collector) => Ok(Some(
                map! { "metadata" => collector.metadata, "state" => collector.state }.into(),
            )),
            None => Err(value_error(&format!(
                "Expected to find exactly one CollectTaskMetaDataPlugin with name {} but found 0.",
                name.python_str()
            ))),
        }
    }

    /// Somebody submitted a graph and wants these keys.
    pub(super) fn requested(&mut self, keys: &[Key]) {
        for collector in self.collectors.values_mut() {
            collector.keys.extend(keys.iter().cloned());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.collectors.is_empty()
    }

    /// A key came into memory or failed.
    pub(super) fn finished(&mut self, scheduler: &Scheduler, key: &Key, state: State) {
        let metadata = scheduler
            .find_task(key)
            .and_then(|task| task.extras.as_ref())
            .map(|extras| &extras.metadata)
            .filter(|metadata| !metadata.is_empty());
        for collector in self.collectors.values_mut() {
            if collector.keys.remove(key) {
                collector.metadata.push(key, metadata.cloned());
                collector.state.push(key, state.name());
            }
        }
    }
}

/// `get_task_status`: the state of each key, nil if unknown.
pub(super) fn task_status(scheduler: &Scheduler, keys: &[Key]) -> Value {
    let states = keys
        .iter()
        .map(|key| (key, scheduler.find_task(key).map(|task| task.state.name())));
    states.collect::<Map>().into()
}

/// `get_task_prefix_states`: tasks by prefix and state, of prefixes that have any.
pub(super) fn prefix_states(scheduler: &Scheduler) -> Value {
    use State::{Erred, Memory, Processing, Released, Waiting};
    const STATES: [State; 5] = [Memory, Erred, Released, Processing, Waiting];
    let mut prefixes = Map::new();
    for prefix in scheduler.prefixes() {
        if STATES.iter().any(|&state| prefix.count(state) > 0) {
            let counts: Map = STATES
                .iter()
                .map(|&state| (state.name(), prefix.count(state)))
                .collect();
            prefixes.push(&prefix.name, counts);
        }
    }
    prefixes.into()
}
