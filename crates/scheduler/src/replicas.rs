//! Who holds which results.

use std::mem::take;
use std::sync::Arc;

use oxidask_wire::{Key, Str, Value};

use crate::graph::RunSpec;
use crate::id::{TaskId, WorkerId};
use crate::instruction::{ToClient, ToWorker};
use crate::scheduler::{Cx, Scheduler};
use crate::task::State;

impl Scheduler {
    /// A worker holds a replica of a task.
    pub(crate) fn add_replica(&mut self, task: TaskId, worker: WorkerId) {
        if !self.workers[worker].has_what.insert(task) {
            return;
        }
        self.remove_need(worker, task);
        let nbytes = self.nbytes(&self.tasks[task]);
        self.workers[worker].nbytes += nbytes;
        let who_has = &mut self.tasks[task].who_has;
        who_has.insert(worker);
        if who_has.len() == 2 {
            self.replicated.insert(task);
        }
    }

    /// A worker no longer holds a replica of a task; false if it did not.
    pub(crate) fn remove_replica(&mut self, task: TaskId, worker: WorkerId) -> bool {
        if !self.workers[worker].has_what.remove(task) {
            return false;
        }
        let nbytes = self.nbytes(&self.tasks[task]);
        self.workers[worker].nbytes -= nbytes;
        let who_has = &mut self.tasks[task].who_has;
        who_has.remove(worker);
        if who_has.len() == 1 {
            self.replicated.remove(task);
        }
        true
    }

    pub(crate) fn remove_all_replicas(&mut self, task: TaskId) {
        let who_has = take(&mut self.tasks[task].who_has);
        if who_has.len() > 1 {
            self.replicated.remove(task);
        }
        let nbytes = self.nbytes(&self.tasks[task]);
        for worker in &who_has {
            let ws = &mut self.workers[worker];
            ws.nbytes -= nbytes;
            ws.has_what.remove(task);
        }
    }

    /// The size of a result became known.
    pub(crate) fn set_nbytes(&mut self, task: TaskId, nbytes: i64) {
        let before = self.nbytes(&self.tasks[task]);
        let ts = &mut self.tasks[task];
        let old = std::mem::replace(&mut ts.nbytes, nbytes);
        self.groups.add_nbytes(ts.group, nbytes - old.max(0));
        let diff = self.nbytes(&self.tasks[task]) - before;
        let who_has = self.tasks[task].who_has.clone();
        for worker in &who_has {
            self.workers[worker].nbytes += diff;
        }
    }

    pub(crate) fn add_keys(&mut self, worker: WorkerId, keys: Vec<Key>, cx: &mut Cx<'_>) {
        if self.workers.get(worker).is_none() {
            return;
        }
        let mut redundant = Vec::new();
        for key in keys {
            match self.tasks.find(&key) {
                Some(task) if self.tasks[task].state == State::Memory => {
                    self.add_replica(task, worker)
                }
                Some(_) | None => redundant.push(key),
            }
        }
        if !redundant.is_empty() {
            cx.tell_worker(
                worker,
                ToWorker::RemoveReplicas {
                    keys: redundant,
                    stimulus_id: cx.stimulus_id.clone(),
                },
            );
        }
    }

    pub(crate) fn release_worker_data(&mut self, worker: WorkerId, key: &Key, cx: &mut Cx<'_>) {
        let Some(task) = self.tasks.find(key) else {
            return;
        };
        if self.workers.get(worker).is_none() || !self.remove_replica(task, worker) {
            return;
        }
        // What a copy of an actor is good for nobody knows: with its worker it is lost.
        let was_actor = self.workers[worker].actors.remove(task);
        if !was_actor && !self.tasks[task].who_has.is_empty() {
            return;
        }
        // Data without a recipe is lost, as with its worker. On stock what is to be
        // computed from it waits for it as for something that can be computed again.
        let is_lost = self.is_data(task) && !was_actor;
        let next = if is_lost {
            State::Forgotten
        } else {
            State::Released
        };
        self.recommend(task, next);
        self.transitions(cx);
        self.queue_slots_maybe_opened(cx);
    }

    /// Data that entered from outside.
    pub(crate) fn update_data(
        &mut self,
        client: Option<Arc<str>>,
        who_has: Vec<(Key, Vec<Str>)>,
        nbytes: &[(Key, i64)],
        cx: &mut Cx<'_>,
    ) {
        self.settle_keys(who_has.iter().map(|(key, _)| key), cx.now, cx.out);
        let mut keys = Vec::with_capacity(who_has.len());
        let mut lost = Vec::new();
        for (at, (key, addresses)) in who_has.into_iter().enumerate() {
            let holders: Vec<WorkerId> = addresses
                .iter()
                .filter_map(|address| self.workers.find(address))
                .collect();
            if holders.is_empty() {
                // The worker left while the data was on its way.
                if self.tasks.find(&key).is_none() {
                    lost.push(key.clone());
                }
                keys.push(key);
                continue;
            }
            let task = match self.tasks.find(&key) {
                None => self.new_task(key.clone(), RunSpec::None, State::Memory),
                Some(task) => {
                    self.become_memory(task, cx);
                    task
                }
            };
            // Both lists come in the same order from every known sender.
            let size = nbytes
                .get(at)
                .filter(|(other, _)| *other == key)
                .or_else(|| nbytes.iter().find(|(other, _)| *other == key))
                .map_or(-1, |&(_, nbytes)| nbytes);
            if size >= 0 {
                self.set_nbytes(task, size);
            }
            for worker in holders {
                self.add_replica(task, worker);
            }
            self.ready_dependents(task);
            let addresses: Vec<Arc<str>> = addresses
                .iter()
                .map(|address| address.as_str().into())
                .collect();
            self.tell_who_wants(task, cx.out, || ToClient::KeyInMemory {
                key: key.clone(),
                r#type: None,
                workers: Some(addresses.clone()),
            });
            keys.push(key);
        }
        self.transitions(cx);
        self.queue_slots_maybe_opened(cx);
        if let Some(client) = client {
            self.client_desires_keys(cx.now, &client, &keys, cx.out);
            // It takes its futures for finished.
            if let Some(client) = self.clients.find(&client) {
                for key in lost {
                    self.report_key(client, key, cx.out);
                }
            }
        }
        // What can be computed again is not kept for nobody; other data is, until
        // somebody comes to want it.
        for key in &keys {
            if let Some(task) = self.tasks.find(key)
                && !self.tasks[task].is_needed()
                && !self.is_data(task)
            {
                self.recommend(task, State::Released);
            }
        }
        self.transitions(cx);
    }

    /// Brings a known task to `memory` because its data arrived by itself. Stock
    /// sets the state alone and leaves a task that was being computed in a tangle.
    fn become_memory(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        if self.tasks[task].state == State::Memory {
            return;
        }
        self.transition(task, State::Released, crate::transitions::Detail::None, cx);
        self.leave_waiters_of_dependencies(task);
        let ts = &mut self.tasks[task];
        ts.waiting_on.clear();
        // Data from outside is no actor, whatever the graph called it.
        ts.actor = false;
        let waiters = self.tasks[task]
            .dependents
            .iter()
            .filter(|&dependent| self.tasks[dependent].state.is_active())
            .collect();
        self.tasks[task].waiters = waiters;
        self.set_state(task, State::Memory);
        // Whatever releasing it recommended for itself is overtaken.
        self.recommend(task, State::Memory);
    }

    /// Asks a worker to fetch replicas.
    pub(crate) fn acquire_replicas(&mut self, worker: WorkerId, keys: Vec<Key>, cx: &mut Cx<'_>) {
        if self.workers.get(worker).is_none() {
            return;
        }
        let mut who_has = Vec::with_capacity(keys.len());
        let mut nbytes = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(ts) = self.find_task(&key).filter(|ts| !ts.who_has.is_empty()) else {
                continue;
            };
            who_has.push((key.clone(), self.addresses(ts)));
            nbytes.push((key, ts.nbytes));
        }
        if !who_has.is_empty() {
            let stimulus_id = cx.stimulus_id.clone();
            cx.tell_worker(
                worker,
                ToWorker::AcquireReplicas {
                    who_has,
                    nbytes,
                    stimulus_id,
                },
            );
        }
    }

    /// Asks a worker to drop replicas, and forgets them at once.
    pub(crate) fn remove_replicas(&mut self, worker: WorkerId, keys: Vec<Key>, cx: &mut Cx<'_>) {
        if self.workers.get(worker).is_none() {
            return;
        }
        let mut removed = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(task) = self.tasks.find(&key)
                && self.tasks[task].who_has.len() > 1
                && !self.tasks[task].actor
                && self.remove_replica(task, worker)
            {
                removed.push(key);
            }
        }
        if !removed.is_empty() {
            let stimulus_id = cx.stimulus_id.clone();
            cx.tell_worker(
                worker,
                ToWorker::RemoveReplicas {
                    keys: removed,
                    stimulus_id,
                },
            );
        }
    }

    /// Addresses of the holders of a task.
    pub fn addresses(&self, task: &crate::TaskState) -> Vec<Arc<str>> {
        task.who_has
            .iter()
            .map(|worker| self.workers[worker].address.clone())
            .collect()
    }

    pub(crate) fn refresh_who_has(&mut self, worker: WorkerId, keys: Vec<Key>, cx: &mut Cx<'_>) {
        if self.workers.get(worker).is_none() {
            return;
        }
        let mut who_has = Vec::new();
        let mut unknown = Vec::new();
        for key in keys {
            match self.find_task(&key) {
                Some(ts) => {
                    let addresses = self.addresses(ts);
                    who_has.push((key, addresses));
                }
                None => unknown.push(key),
            }
        }
        let stimulus_id = cx.stimulus_id.clone();
        if !who_has.is_empty() {
            let stimulus_id = stimulus_id.clone();
            cx.tell_worker(
                worker,
                ToWorker::RefreshWhoHas {
                    who_has,
                    stimulus_id,
                },
            );
        }
        if !unknown.is_empty() {
            cx.tell_worker(
                worker,
                ToWorker::FreeKeys {
                    keys: unknown,
                    stimulus_id,
                },
            );
        }
    }

    /// `metadata` that a worker reported with a result.
    pub(crate) fn update_metadata(&mut self, task: TaskId, metadata: &Value) {
        let Some(metadata) = metadata.as_map().filter(|metadata| !metadata.is_empty()) else {
            return;
        };
        let own = &mut self.tasks[task].extras_mut().metadata;
        for (name, value) in metadata.iter() {
            own.insert(name.clone(), value.clone());
        }
    }
}
