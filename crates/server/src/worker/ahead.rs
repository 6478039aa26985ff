//! Tasks that threads may go on with before the shell has heard of those they have done.
//!
//! A thread that waited after each task until the shell has named the next one would
//! wait for longer than a short task takes, and wake the shell as often as it runs.

use std::collections::VecDeque;
use std::time::Duration;

use oxidask_wire::Key;
use oxidask_worker::{Event, TaskState};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::executor::Task;
use super::metrics::Reads;
use super::outgoing;
use super::shell::{Running, Shell, Stimulus, stimulus_id};

/// How long reports wait while all threads have something to go on with. Chosen: half of
/// what stock's stream to the scheduler gathers messages for.
const REST: Duration = Duration::from_millis(1);

/// Bytes of results that nobody has counted yet. Chosen: little beside what a worker has,
/// much for tasks so short that they matter here.
const NBYTES_MAX: u64 = 64 << 20;

/// What threads may go on with.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The executor has some tasks.
    is_lent: bool,
    /// Taken back for this turn.
    tasks: VecDeque<Task>,
    /// A thread has gone on with this one, which the core is about to hear.
    begun: Option<Key>,
    /// Until when reports can wait.
    rest: Option<Instant>,
}

impl Ahead {
    /// Until when reports can wait, if they can.
    pub(super) fn rest(&self) -> Option<Instant> {
        self.rest
    }

    /// Whether the executor began this task by itself.
    pub(super) fn is_begun(&self, key: &Key) -> bool {
        self.begun.as_ref() == Some(key)
    }

    /// Removes the task that was lent for this run.
    fn take(&mut self, ts: &TaskState) -> Option<Task> {
        let is_same = |task: &Task| task.key == ts.key && task.run_id == ts.run_id;
        let at = self.tasks.iter().position(is_same)?;
        self.tasks.remove(at)
    }
}

/// Waits until reports cannot wait any longer; for ever without a time.
pub(super) async fn rested(until: Option<Instant>, urgent: &Notify) {
    let Some(until) = until else {
        return std::future::pending().await;
    };
    tokio::select! {
        () = sleep_until(until) => {}
        () = urgent.notified() => {}
    }
}

impl Shell {
    /// Begins a turn: what threads have not gone on with is this shell's again.
    pub(super) fn take_back(&mut self) {
        self.ahead.rest = None;
        if std::mem::take(&mut self.ahead.is_lent) {
            self.ahead.tasks = self.handle.executor.take_back();
        }
    }

    /// Ends a turn: lends what comes next.
    pub(super) fn lend(&mut self) {
        let room = self.store.room().min(NBYTES_MAX);
        let count = match room {
            0 => 0,
            _ => self.handle.executor.ahead_max(),
        };
        let mut tasks = VecDeque::new();
        for ts in self.core.ahead(count) {
            let Some(task) = self.ahead.take(ts).or_else(|| self.task_ahead(ts)) else {
                break;
            };
            tasks.push_back(task);
        }
        self.ahead.tasks.clear();
        if !tasks.is_empty() {
            self.ahead.is_lent = true;
            self.ahead.rest = Some(Instant::now() + REST);
            self.handle.executor.lend(tasks, room.cast_signed());
        }
    }

    /// A task with its inputs, if a thread that runs tasks could begin it at once.
    fn task_ahead(&self, ts: &TaskState) -> Option<Task> {
        let mut task = outgoing::task(ts).filter(Task::is_for_default_pool)?;
        for dependency in self.core.dependencies(ts) {
            let input = self.store.peek(&dependency.key)?;
            task.inputs.push((dependency.key.clone(), input));
        }
        Some(task)
    }

    /// A thread has gone on with a task.
    pub(super) fn went_on(&mut self, key: Key) {
        self.ahead.begun = Some(key.clone());
        let event = Event::Begun { key };
        self.stimulus(Stimulus::new(stimulus_id("task-begun"), event));
    }

    /// The core has taken note of it.
    pub(super) fn begun(&mut self, key: Key) {
        self.ahead.begun = None;
        let ts = self.core.find_task(&key);
        let ts = ts.expect("a task that is executed is known");
        let (run_id, span_id, prefix) = (ts.run_id, ts.span_id.clone(), key.key_split());
        let dependencies = self.core.dependencies(ts);
        let dependencies: Vec<Key> = dependencies.map(|ts| ts.key.clone()).collect();
        let mut reads = Reads::default();
        for dependency in &dependencies {
            // What left memory since is read by the thread all the same.
            if let Some(input) = self.store.touch(dependency) {
                self.count_read(&mut reads, &input);
            }
        }
        self.metrics
            .executed_reads(span_id.as_ref(), &prefix, reads);
        let disk_read = None;
        self.runs(key, Running { run_id, disk_read });
    }
}
