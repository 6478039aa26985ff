//! Workers go.

use std::sync::Arc;

use oxidask_wire::{Key, Map, Value};

use crate::deaths::{self, Death, Leave};
use crate::failure::killed_worker;
use crate::id::{TaskId, WorkerId};
use crate::instruction::{Instruction, Level, ToWorker};
use crate::scheduler::{Cx, Scheduler};
use crate::task::State;
use crate::transitions::Detail;

impl Scheduler {
    pub(crate) fn remove_worker(
        &mut self,
        worker: WorkerId,
        leave: Leave,
        close: bool,
        cx: &mut Cx<'_>,
    ) {
        let Some(ws) = self.workers.get(worker) else {
            return;
        };
        let leave = match self.deaths.end_wait(worker) {
            true if leave != Leave::Expected => Leave::Lost,
            true | false => leave,
        };
        let expected = leave == Leave::Expected;
        let (address, name) = (ws.address.clone(), ws.name.clone());
        let shown =
            Key::from_value(&name).map_or_else(|_| format!("{name:?}"), |name| name.python_str());
        cx.log(
            Level::Info,
            format!(
                "Remove worker addr: {address} name: {shown} (stimulus_id='{}')",
                cx.stimulus_id
            ),
        );
        if close {
            cx.tell_worker(
                worker,
                ToWorker::Close {
                    reason: "scheduler-remove-worker".into(),
                },
            );
        }
        self.workers.remove(worker);
        self.workers_removed_total += 1;
        let total_nthreads = self.workers.total_nthreads;
        self.groups.spans.note_nthreads(cx.now, total_nthreads);

        let processing: Vec<TaskId> = self.workers[worker].processing.iter().collect();
        let processing_keys = self.keys_of(&processing);
        if expected {
            for &task in &processing {
                self.recommend(task, State::Released);
            }
        } else if !processing.is_empty() {
            let death = self.record_death(worker, leave, cx.stimulus_id);
            for &task in &processing {
                self.lose_run(task, worker, &death, cx);
            }
        }
        let (recompute, lost) = self.lose_replicas(worker);
        let (recompute_keys, lost_keys) = (self.keys_of(&recompute), self.keys_of(&lost));
        if !recompute.is_empty() {
            let keys = python_set(&recompute_keys);
            cx.log(
                Level::Warning,
                format!(
                    "Removing worker '{address}' caused the cluster to lose already computed task(s), \
                     which will be recomputed elsewhere: {keys} (stimulus_id='{}')",
                    cx.stimulus_id
                ),
            );
        }
        if !lost.is_empty() {
            let keys = python_set(&lost_keys);
            cx.log(
                Level::Error,
                format!(
                    "Removing worker '{address}' caused the cluster to lose scattered data, \
                     which can't be recovered: {keys} (stimulus_id='{}')",
                    cx.stimulus_id
                ),
            );
        }

        let set = |keys: Vec<Key>| Value::Set(keys.into_iter().map(Value::Key).collect());
        let mut message = Map::new();
        message.push("action", "remove-worker");
        message.push("processing-tasks", set(processing_keys));
        message.push("lost-computed-tasks", set(recompute_keys));
        message.push("lost-scattered-tasks", set(lost_keys));
        message.push("stimulus_id", cx.stimulus_id.as_str());
        message.push("expected", expected);
        cx.event([address.clone()], Value::Map(message.clone()));
        message.push("worker", &*address);
        cx.event(["all".into()], Value::Map(message));

        let had_no_workers_since = self.no_workers_since;
        self.transitions(cx);
        self.queue_slots_maybe_opened(cx);
        if had_no_workers_since.is_none() && self.no_workers_since.is_some() {
            // Tasks that became unrunnable by this count as having had a worker.
            self.no_workers_since = Some(cx.now.next_down());
        }

        self.workers.forget(worker);
        self.bandwidth_workers
            .retain(|(receiver, sender), _| *receiver != address && *sender != address);
        cx.out.push(Instruction::WorkerRemoved {
            worker,
            address: address.clone(),
            name,
            stimulus_id: cx.stimulus_id.clone(),
        });
        if self.workers.len() == 0 {
            cx.log(Level::Info, "Lost all workers");
        }
        for &other in self.workers.ids() {
            cx.tell_worker(
                other,
                ToWorker::RemoveWorker {
                    address: address.clone(),
                    stimulus_id: cx.stimulus_id.clone(),
                },
            );
        }
    }

    /// A task was assigned to the worker that is gone.
    fn lose_run(&mut self, task: TaskId, worker: WorkerId, death: &Arc<Death>, cx: &mut Cx<'_>) {
        let ts = &mut self.tasks[task];
        ts.suspicious += 1;
        deaths::remember(&mut ts.extras_mut().deaths, death);
        let suspicious = ts.suspicious;
        let prefix = self.groups[ts.group].prefix;
        self.groups[prefix].suspicious += 1;
        let allowed = self.config.allowed_failures;
        if suspicious <= allowed {
            self.recommend(task, State::Released);
            return;
        }
        let key = self.tasks[task].key.clone();
        let attempts = self.attempts(task);
        let failure = killed_worker(&key, &self.workers[worker], allowed, &attempts);
        let worker = Some(worker);
        self.transition(task, State::Erred, Detail::Failed { failure, worker }, cx);
        cx.log(
            Level::Error,
            format!(
                "Task {key} marked as failed because {suspicious} workers died while trying to run it{}",
                attempts.iter().map(|line| format!("\n    {line}")).collect::<String>()
            ),
        );
    }

    /// Drops the replicas of a removed worker. Returns the tasks of which it held
    /// the last one: those that can be computed again, and those that cannot.
    fn lose_replicas(&mut self, worker: WorkerId) -> (Vec<TaskId>, Vec<TaskId>) {
        let mut recompute = Vec::new();
        let mut lost = Vec::new();
        let held: Vec<TaskId> = self.workers[worker].has_what.iter().collect();
        for task in held {
            self.remove_replica(task, worker);
            if self.workers[worker].actors.contains(task) {
                self.recommend(task, State::Erred);
            } else if self.tasks[task].who_has.is_empty() {
                if self.is_data(task) {
                    lost.push(task);
                    self.recommend(task, State::Forgotten);
                } else {
                    recompute.push(task);
                    self.recommend(task, State::Released);
                }
            }
        }
        (recompute, lost)
    }

    fn keys_of(&self, tasks: &[TaskId]) -> Vec<Key> {
        tasks
            .iter()
            .map(|&task| self.tasks[task].key.clone())
            .collect()
    }
}

/// Python's `repr` of a set of keys.
fn python_set(keys: &[Key]) -> String {
    let keys: Vec<String> = keys.iter().map(Key::python_repr).collect();
    format!("{{{}}}", keys.join(", "))
}
