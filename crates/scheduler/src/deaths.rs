//! How workers ended, for `KilledWorker`: what their nannies say, or what is known
//! without them.
//!
//! A nanny's report is a moment behind the end of the worker's stream. It still reaches
//! the tasks that have attempts left. A task that has none fails with the removal of its
//! worker, so that this removal waits for the report, but not for long.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, OnceLock};

use oxidask_wire::{Str, Value};

use crate::event::{Event, NewWorker};
use crate::failure::format_bytes;
use crate::id::{Status, StimulusId, TaskId, WorkerId};
use crate::instruction::Instructions;
use crate::scheduler::{Cx, Scheduler};
use crate::worker::WorkerState;

/// The topic on which nannies say why a worker died.
pub(crate) const TOPIC: &str = "worker-died";

/// Seconds that a nanny has to say why its worker died. Chosen: it takes milliseconds,
/// and on a machine that is out of memory a little longer.
const PATIENCE: f64 = 2.0;

/// Deaths whose reason may still be told.
const RECENT_MAX: usize = 1000;

/// Deaths that a task remembers. Chosen: four are usual
/// (`distributed.scheduler.allowed-failures`), and the text of an exception has to stay
/// below `distributed.admin.max-error-length`.
const ATTEMPTS_MAX: usize = 16;

/// Characters of a reason, and of a key, that are shown.
const REASON_LENGTH_MAX: usize = 200;
const KEY_LENGTH_MAX: usize = 60;

/// Keys of tasks that are shown.
const KEYS_MAX: usize = 3;

/// How a worker leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// On purpose.
    Expected,
    /// Its stream ended.
    Lost,
    /// Somebody says that it is gone, or has lost patience with it.
    Removed,
}

/// How a worker ended under tasks.
#[derive(Debug, PartialEq)]
pub(crate) struct Death {
    worker: Arc<str>,
    nanny: Option<Str>,
    pid: i64,
    /// What its nanny says.
    reported: OnceLock<Box<str>>,
    /// What is known otherwise.
    presumed: Box<str>,
    /// What it was doing.
    circumstances: Box<str>,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reported.get().unwrap_or(&self.presumed);
        let (worker, pid, circumstances) = (&self.worker, self.pid, &self.circumstances);
        write!(f, "{worker} (pid {pid}): {reason}; {circumstances}")
    }
}

/// Workers that died, and those of which that is not certain yet.
#[derive(Debug, Default)]
pub(crate) struct Deaths {
    /// Oldest first.
    recent: VecDeque<Arc<Death>>,
    /// Lost workers whose nannies may say why, by when that ends.
    waits: VecDeque<Wait>,
}

#[derive(Debug)]
struct Wait {
    worker: WorkerId,
    until: f64,
    stimulus_id: StimulusId,
}

impl Deaths {
    pub(crate) fn next_deadline(&self) -> Option<f64> {
        self.waits.front().map(|wait| wait.until)
    }

    /// Whether a worker was lost before.
    pub(crate) fn end_wait(&mut self, worker: WorkerId) -> bool {
        let count = self.waits.len();
        self.waits.retain(|wait| wait.worker != worker);
        self.waits.len() < count
    }

    fn find(&self, nanny: &str, pid: i64) -> Option<&Arc<Death>> {
        let is_it = |death: &Death| death.pid == pid && death.nanny.as_deref() == Some(nanny);
        self.recent.iter().rev().find(|death| is_it(death))
    }

    /// Lost workers of which nothing is known yet.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = WorkerId> {
        self.waits.iter().map(|wait| wait.worker)
    }

    pub(crate) fn is_waiting(&self, worker: WorkerId) -> bool {
        self.waiting().any(|waiting| waiting == worker)
    }
}

/// Adds a death to those of a task.
pub(crate) fn remember(deaths: &mut Vec<Arc<Death>>, death: &Arc<Death>) {
    if deaths.len() == ATTEMPTS_MAX {
        deaths.remove(0);
    }
    deaths.push(death.clone());
}

/// What a message on [`TOPIC`] means; nothing if it is not a nanny's.
pub(crate) fn report(message: &Value, now: f64) -> Option<Event> {
    let message = message.as_map()?;
    Some(Event::WorkerDied {
        nanny: Str::from(message.get("nanny")?.as_str()?),
        pid: message.get("pid")?.as_i64()?,
        reason: Str::from(message.get("reason")?.as_str()?),
        stimulus_id: format!("worker-died-{now}").into(),
    })
}

impl Scheduler {
    pub(crate) fn worker_lost(&mut self, worker: WorkerId, cx: &mut Cx<'_>) {
        let Some(ws) = self.workers.get(worker) else {
            return;
        };
        let allowed = self.config.allowed_failures;
        let mut processing = ws.processing.iter();
        let is_last_attempt = processing.any(|task| self.tasks[task].suspicious >= allowed);
        if ws.nanny.is_none() || ws.death.is_some() || !is_last_attempt {
            return self.remove_worker(worker, Leave::Lost, false, cx);
        }
        if !self.deaths.is_waiting(worker) {
            self.deaths.waits.push_back(Wait {
                worker,
                until: cx.now + PATIENCE,
                stimulus_id: cx.stimulus_id.clone(),
            });
            // It gets no more tasks.
            self.worker_status_change(worker, Status::Closing, cx);
        }
    }

    pub(crate) fn worker_died(&mut self, nanny: &str, pid: i64, reason: &str, cx: &mut Cx<'_>) {
        let reason = shortened(reason, REASON_LENGTH_MAX).into_boxed_str();
        if let Some(worker) = self.worker_of(nanny, pid) {
            self.workers[worker].death = Some(reason);
            if self.deaths.is_waiting(worker) {
                self.remove_worker(worker, Leave::Lost, false, cx);
            }
            return;
        }
        if let Some(death) = self.deaths.find(nanny, pid) {
            // The first report counts.
            let _ = death.reported.set(reason);
        }
    }

    /// Adds to a report what the worker was doing, which its nanny does not know.
    pub(crate) fn complete_report(&self, message: &mut Value) {
        let Value::Map(message) = message else {
            return;
        };
        let nanny = message.get("nanny").and_then(Value::as_str);
        let pid = message.get("pid").and_then(Value::as_i64);
        let (Some(nanny), Some(pid)) = (nanny, pid) else {
            return;
        };
        let circumstances = match self.deaths.find(nanny, pid) {
            Some(death) => Some(death.circumstances.to_string()),
            None => self
                .worker_of(nanny, pid)
                .map(|worker| self.circumstances(worker)),
        };
        if let Some(circumstances) = circumstances {
            message.push("circumstances", circumstances);
        }
    }

    fn worker_of(&self, nanny: &str, pid: i64) -> Option<WorkerId> {
        let is_it = |ws: &WorkerState| ws.pid == pid && ws.nanny.as_deref() == Some(nanny);
        let worker = self.workers.iter().find(|(_, ws)| is_it(ws));
        worker.map(|(worker, _)| worker)
    }

    /// Removes lost workers that have the name or the address of a new one.
    pub(crate) fn make_room_for(&mut self, new: &NewWorker, cx: &mut Cx<'_>) {
        let same = [
            self.workers.find(&new.address),
            self.workers.find_alias(&new.name),
        ];
        for worker in same.into_iter().flatten() {
            self.remove_worker(worker, Leave::Lost, false, cx);
        }
    }

    /// Nannies had their time: their workers are removed without a reason.
    pub(crate) fn give_up_reports(&mut self, now: f64, out: &mut Instructions) {
        while self.deaths.next_deadline().is_some_and(|at| at <= now) {
            let Some(wait) = self.deaths.waits.front() else {
                return;
            };
            let (worker, stimulus_id) = (wait.worker, wait.stimulus_id.clone());
            let cx = &mut Cx {
                now,
                stimulus_id: &stimulus_id,
                out,
            };
            self.remove_worker(worker, Leave::Lost, false, cx);
        }
    }

    /// What is known of the end of a worker that had tasks.
    pub(crate) fn record_death(
        &mut self,
        worker: WorkerId,
        leave: Leave,
        stimulus_id: &StimulusId,
    ) -> Arc<Death> {
        let circumstances = self.circumstances(worker).into();
        let ws = &mut self.workers[worker];
        let presumed = match leave {
            Leave::Lost => "lost connection".into(),
            Leave::Removed | Leave::Expected => format!("was removed ({stimulus_id})").into(),
        };
        let death = Arc::new(Death {
            worker: ws.address.clone(),
            nanny: ws.nanny.clone(),
            pid: ws.pid,
            reported: ws.death.take().map_or_else(OnceLock::new, OnceLock::from),
            presumed,
            circumstances,
        });
        if self.deaths.recent.len() == RECENT_MAX {
            self.deaths.recent.pop_front();
        }
        self.deaths.recent.push_back(death.clone());
        death
    }

    /// The tasks of a worker and its memory, by its last heartbeat.
    fn circumstances(&self, worker: WorkerId) -> String {
        let ws = &self.workers[worker];
        let keys = ws.processing.iter().take(KEYS_MAX);
        let keys = keys.map(|task| shortened(&self.tasks[task].key.python_repr(), KEY_LENGTH_MAX));
        let keys = keys.collect::<Vec<_>>().join(", ");
        let mut text = match keys.is_empty() {
            true => "no tasks".to_owned(),
            false => format!("tasks: {keys}"),
        };
        let others = ws.processing.len().saturating_sub(KEYS_MAX);
        if others > 0 {
            text.push_str(&format!(" and {others} more"));
        }
        let metrics = ws.metrics.as_map();
        if let Some(memory) = metrics.and_then(|metrics| metrics.get("memory")?.as_i64()) {
            text.push_str(&format!("; memory: {}", format_bytes(memory)));
            if let Ok(limit @ 1..) = i64::try_from(ws.memory_limit) {
                text.push_str(&format!(" of {}", format_bytes(limit)));
            }
        }
        text
    }

    /// A line for each worker that died under a task; the last ones if they are many.
    pub(crate) fn attempts(&self, task: TaskId) -> Vec<String> {
        let ts = &self.tasks[task];
        let deaths = ts.extras.as_ref().map_or(&[][..], |extras| &extras.deaths);
        let first = ts.suspicious as usize - deaths.len() + 1;
        let numbered = deaths.iter().zip(first..);
        let lines = numbered.map(|(death, number)| format!("attempt {number}: {death}"));
        lines.collect()
    }
}

fn shortened(text: &str, length_max: usize) -> String {
    match text.char_indices().nth(length_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
