//! Tasks that wait too long for a worker.

use oxidask_wire::{Map, Value};

use crate::failure::{no_valid_worker, no_worker};
use crate::id::{StimulusId, TaskId};
use crate::instruction::{Instructions, Level};
use crate::scheduler::{Cx, Scheduler};
use crate::task::State;
use crate::transitions::Detail;

impl Scheduler {
    /// When `Event::Tick` should come, in seconds since the epoch.
    pub fn next_deadline(&self) -> Option<f64> {
        let deadlines = [
            self.no_workers_deadline(),
            self.next_stealing_round(),
            self.deaths.next_deadline(),
        ];
        deadlines.into_iter().flatten().reduce(f64::min)
    }

    fn no_workers_deadline(&self) -> Option<f64> {
        let timeout = self.config.no_workers_timeout?;
        let unrunnable = self
            .unrunnable
            .first()
            .and_then(|task| self.unrunnable_since.get(&task).copied());
        let queued = self.no_workers_since.filter(|_| !self.queued.is_empty());
        let earliest = match (unrunnable, queued) {
            (Some(left), Some(right)) => left.min(right),
            (left, right) => left.or(right)?,
        };
        // A task may wait for exactly the timeout.
        Some((earliest + timeout).next_up())
    }

    pub(crate) fn tick(&mut self, now: f64, out: &mut Instructions) {
        self.give_up_reports(now, out);
        self.check_no_workers_timeout(now, out);
        self.tick_stealing(now, out);
    }

    fn check_no_workers_timeout(&mut self, now: f64, out: &mut Instructions) {
        let Some(timeout) = self.config.no_workers_timeout else {
            return;
        };
        self.refresh_no_workers_since(now);
        let mut unsatisfied = Vec::new();
        let mut no_workers = Vec::new();
        for task in &self.unrunnable {
            let since = self.unrunnable_since.get(&task).copied().unwrap_or(now);
            if now <= since + timeout {
                break;
            }
            match self.no_workers_since {
                Some(no_workers_since) if no_workers_since < since => no_workers.push(task),
                Some(_) | None => unsatisfied.push(task),
            }
        }
        if self
            .no_workers_since
            .is_some_and(|since| now > since + timeout)
        {
            no_workers.extend(self.queued.iter().map(|&(_, _, task)| task));
        }
        if unsatisfied.is_empty() && no_workers.is_empty() {
            return;
        }

        let stimulus_id = StimulusId::from(format!("check-no-workers-timeout-{now}"));
        let cx = &mut Cx {
            now,
            stimulus_id: &stimulus_id,
            out,
        };
        let affected: Vec<Value> = unsatisfied
            .iter()
            .chain(&no_workers)
            .map(|&task| Value::Key(self.tasks[task].key.clone()))
            .collect();
        for task in unsatisfied {
            let failure = no_valid_worker(&self.tasks[task], timeout);
            let why = "for its restrictions to become satisfied.";
            self.fail_after_timeout(task, failure, why, cx);
        }
        for task in no_workers {
            let failure = no_worker(&self.tasks[task].key, timeout);
            self.fail_after_timeout(task, failure, "without any running workers.", cx);
        }
        self.transitions(cx);
        self.queue_slots_maybe_opened(cx);
        let mut message = Map::new();
        message.push("action", "no-workers-timeout-exceeded");
        message.push("keys", Value::Set(affected));
        cx.event(["scheduler".into()], Value::Map(message));
    }

    fn fail_after_timeout(
        &mut self,
        task: TaskId,
        failure: std::sync::Arc<crate::task::TaskFailure>,
        why: &str,
        cx: &mut Cx<'_>,
    ) {
        if !matches!(self.tasks[task].state, State::NoWorker | State::Queued) {
            return;
        }
        let key = self.tasks[task].key.clone();
        self.transition(
            task,
            State::Erred,
            Detail::Failed {
                failure,
                worker: None,
            },
            cx,
        );
        cx.log(
            Level::Error,
            format!("Task {key} marked as failed because it timed out waiting {why}"),
        );
    }

    /// A task has become ready that no worker takes.
    pub(crate) fn note_pending_work(&mut self, now: f64) {
        if self.workers.running.is_empty() && self.no_workers_since.is_none() {
            self.no_workers_since = Some(now);
        }
    }

    /// Keeps the time since which work has been pending without any running worker.
    pub(crate) fn refresh_no_workers_since(&mut self, now: f64) {
        let has_work = !self.queued.is_empty() || !self.unrunnable.is_empty();
        if !self.workers.running.is_empty() || !has_work {
            self.no_workers_since = None;
        } else {
            self.note_pending_work(now);
        }
    }
}
