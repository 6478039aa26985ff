//! The state machine: one door for events, and what it remembers.

use std::sync::Arc;

use indexmap::IndexMap;
use oxidask_wire::Key;

use crate::config::Config;
use crate::counter::TaskCounter;
use crate::error::Error;
use crate::event::Event;
use crate::heap::HeapSet;
use crate::id::{StimulusId, TaskId};
use crate::instruction::{Instruction, Instructions, SendMessageToScheduler};
use crate::peers::Peers;
use crate::priority::Priority;
use crate::sets::IdSet;
use crate::story::{Happening, Story};
use crate::task::{State, TaskState};
use crate::tasks::Tasks;
use crate::transitions::{Recommendation, Recommendations};

/// The run of a task that nobody asked to compute.
pub(crate) const RUN_ID_SENTINEL: i64 = -1;

/// Dask's worker without sockets, clocks, values or Python.
///
/// Same as `WorkerState` in distributed, except that sets of tasks iterate in
/// the order of insertion, and that ties between peers break by another
/// generator of random numbers.
#[derive(Debug)]
pub struct WorkerState {
    pub(crate) config: Config,
    pub(crate) tasks: Tasks,
    pub(crate) peers: Peers,
    /// The worker's status is `running`.
    pub(crate) running: bool,
    /// Tasks in `waiting`.
    pub(crate) waiting: IdSet<TaskId>,
    /// Tasks in `ready`.
    pub(crate) ready: HeapSet,
    /// Tasks in `constrained`.
    pub(crate) constrained: HeapSet,
    /// Tasks that run, cancelled ones included, without long-running ones.
    pub(crate) executing: IdSet<TaskId>,
    /// Runs already, in the place of the task whose end is the next event.
    pub(crate) begun: Option<TaskId>,
    /// Tasks that run and have seceded, cancelled ones included.
    pub(crate) long_running: IdSet<TaskId>,
    /// Tasks that are on their way, cancelled ones included.
    pub(crate) in_flight_tasks: IdSet<TaskId>,
    /// Tasks in `missing`.
    pub(crate) missing_dep_flight: IdSet<TaskId>,
    /// Number of tasks in `fetch`.
    pub(crate) fetch_count: usize,
    pub(crate) transfer_incoming_bytes: i64,
    pub(crate) transfer_incoming_count_total: u64,
    pub(crate) total_resources: IndexMap<Arc<str>, f64, foldhash::quality::RandomState>,
    pub(crate) available_resources: IndexMap<Arc<str>, f64, foldhash::quality::RandomState>,
    /// Ends the priorities of tasks to compute: the later, the smaller.
    pub(crate) generation: i64,
    /// Tasks run so far, failed and cancelled ones included.
    pub(crate) executed_count: u64,
    /// Bytes of all values in memory.
    pub(crate) nbytes: i64,
    pub(crate) counter: TaskCounter,
    pub(crate) transition_counter: u64,
    pub(crate) recommendations: Recommendations,
    pub(crate) story: Story,
    pub(crate) random: Random,
}

/// What every handler needs: the time, the reason, and where effects go.
pub(crate) struct Cx<'a> {
    pub(crate) now: f64,
    pub(crate) stimulus_id: &'a StimulusId,
    pub(crate) out: &'a mut Instructions,
}

impl Cx<'_> {
    pub(crate) fn send(&mut self, message: SendMessageToScheduler) {
        self.out.push(Instruction::SendMessageToScheduler(message));
    }
}

impl WorkerState {
    /// A worker without tasks, whose status is `running`.
    pub fn new(config: Config) -> Self {
        let resources: IndexMap<_, _, _> = config.resources.iter().cloned().collect();
        Self {
            tasks: Tasks::default(),
            peers: Peers::new(config.address.clone()),
            running: true,
            waiting: IdSet::default(),
            ready: HeapSet::default(),
            constrained: HeapSet::default(),
            executing: IdSet::default(),
            begun: None,
            long_running: IdSet::default(),
            in_flight_tasks: IdSet::default(),
            missing_dep_flight: IdSet::default(),
            fetch_count: 0,
            transfer_incoming_bytes: 0,
            transfer_incoming_count_total: 0,
            available_resources: resources.clone(),
            total_resources: resources,
            generation: 0,
            executed_count: 0,
            nbytes: 0,
            counter: TaskCounter::new(),
            transition_counter: 0,
            recommendations: Recommendations::default(),
            story: Story::new(config.low_level_log_length),
            random: Random(config.seed),
            config,
        }
    }

    /// Takes one event in. `now` is in seconds since the epoch.
    ///
    /// # Errors
    /// Where stock raises: see [`Error`].
    pub fn handle_stimulus(
        &mut self,
        now: f64,
        stimulus_id: &StimulusId,
        event: Event,
        out: &mut Instructions,
    ) -> Result<(), Error> {
        self.tasks.reclaim();
        self.recommendations.clear();
        let cx = &mut Cx {
            now,
            stimulus_id,
            out,
        };
        self.handle_event(event, cx)?;
        self.transitions(cx)?;
        self.ensure_communicating(cx);
        self.transitions(cx)
    }

    fn handle_event(&mut self, event: Event, cx: &mut Cx<'_>) -> Result<(), Error> {
        match event {
            Event::ComputeTask(event) => self.compute_task(*event, cx),
            Event::FreeKeys { keys } => {
                self.free_keys(keys, cx);
                Ok(())
            }
            Event::RemoveReplicas { keys } => self.remove_replicas(&keys, cx),
            Event::AcquireReplicas { who_has, nbytes } => {
                self.acquire_replicas(&who_has, nbytes, cx);
                Ok(())
            }
            Event::RefreshWhoHas { who_has } => {
                self.refresh_who_has(&who_has, cx);
                Ok(())
            }
            Event::RemoveWorker { worker } => {
                self.remove_worker(&worker);
                Ok(())
            }
            Event::StealRequest { key } => {
                self.steal_request(key, cx);
                Ok(())
            }
            Event::CancelCompute { key } => self.cancel_compute(&key, cx),
            Event::UpdateData { data } => {
                self.update_data(data, cx);
                Ok(())
            }
            Event::DataLost { keys } => {
                self.data_lost(&keys, cx);
                Ok(())
            }
            Event::DataMissing { keys } => {
                self.data_missing(keys, cx);
                Ok(())
            }
            Event::Secede {
                key,
                compute_duration,
            } => {
                self.secede(&key, compute_duration);
                Ok(())
            }
            Event::Pause => {
                self.running = false;
                Ok(())
            }
            Event::Unpause => {
                self.running = true;
                self.recommend_computing()
            }
            Event::FindMissing => {
                self.find_missing(cx);
                Ok(())
            }
            Event::RetryBusyWorker { worker } => {
                self.retry_busy_worker(&worker);
                Ok(())
            }
            Event::GatherDepSuccess {
                worker,
                total_nbytes,
                data,
                transfer,
            } => self.gather_dep_success(&worker, total_nbytes, data, transfer, cx),
            Event::GatherDepBusy {
                worker,
                total_nbytes,
            } => self.gather_dep_busy(worker, total_nbytes, cx),
            Event::GatherDepNetworkFailure {
                worker,
                total_nbytes,
            } => self.gather_dep_network_failure(&worker, total_nbytes, cx),
            Event::GatherDepFailure {
                worker,
                total_nbytes,
                failure,
            } => self.gather_dep_failure(&worker, total_nbytes, &failure),
            Event::Begun { key } => self.begun(&key),
            Event::ExecuteSuccess {
                key,
                run_id,
                nbytes,
                value,
                startstops,
                thread,
            } => {
                let task = self.execute_done(&key, startstops, thread)?;
                let ts = &mut self.tasks[task];
                ts.nbytes = Some(nbytes);
                if let Ok(value) = &value {
                    ts.r#type = Some(value.r#type.clone());
                }
                self.recommend(task, Recommendation::memory(value, run_id));
                Ok(())
            }
            Event::ExecuteFailure {
                key,
                run_id,
                failure,
                startstops,
                thread,
            } => {
                let task = self.execute_done(&key, startstops, thread)?;
                self.recommend(task, Recommendation::Error { failure, run_id });
                Ok(())
            }
            Event::Reschedule { key } => {
                let task = self.execute_done(&key, Vec::new(), None)?;
                self.recommend(task, Recommendation::Rescheduled);
                Ok(())
            }
        }
    }

    /// The task with this key; made if it is not known.
    pub(crate) fn task_or_new(&mut self, key: &Key, now: f64) -> TaskId {
        if let Some(task) = self.tasks.find(key) {
            return task;
        }
        let prefix = self.counter.prefix(&key.key_split());
        self.counter.enter(prefix, State::Released, now);
        self.tasks.insert(TaskState::new(key.clone(), prefix))
    }

    /// The task with this key, which has a priority after this. `_ensure_task_exists` in distributed.
    pub(crate) fn ensure_task_exists(
        &mut self,
        key: &Key,
        priority: Priority,
        cx: &mut Cx<'_>,
    ) -> TaskId {
        let task = self.task_or_new(key, cx.now);
        self.tasks[task].priority.get_or_insert(priority);
        self.log_task(task, "ensure-task-exists", true, cx);
        task
    }

    /// Moves a task to another state, with the counters.
    pub(crate) fn set_state(&mut self, task: TaskId, state: State, cx: &Cx<'_>) {
        let ts = &mut self.tasks[task];
        let from = std::mem::replace(&mut ts.state, state);
        self.counter.leave(ts.prefix, from, cx.now);
        if state != State::Forgotten {
            self.counter.enter(ts.prefix, state, cx.now);
        }
    }

    /// Records that something happened to one task.
    pub(crate) fn log_task(
        &mut self,
        task: TaskId,
        action: &'static str,
        with_state: bool,
        cx: &Cx<'_>,
    ) {
        let ts = &self.tasks[task];
        let what = Happening::Task {
            key: ts.key.clone(),
            action,
            state: with_state.then_some(ts.state),
        };
        self.story.push(what, cx.stimulus_id, cx.now);
    }

    /// The error that a task is not as it should be.
    pub(crate) fn unexpected(&self, task: TaskId, expected: &'static str) -> Error {
        let ts = &self.tasks[task];
        Error::UnexpectedState {
            key: ts.key.clone(),
            state: ts.state,
            expected,
        }
    }

    /// Fails unless a task is as it should be.
    pub(crate) fn ensure(
        &self,
        holds: bool,
        task: TaskId,
        expected: &'static str,
    ) -> Result<(), Error> {
        if holds {
            Ok(())
        } else {
            Err(self.unexpected(task, expected))
        }
    }
}

/// Numbers that look random: the generator `splitmix64`.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
