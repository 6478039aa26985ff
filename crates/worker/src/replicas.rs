//! Who has what: replicas here and elsewhere.

use oxidask_wire::{Key, Str};

use crate::error::Error;
use crate::event::Insertion;
use crate::id::PeerId;
use crate::instruction::{ReleaseWorkerDataMsg, RequestRefreshWhoHasMsg, SendMessageToScheduler};
use crate::priority::Priority;
use crate::sets::IdSet;
use crate::task::State;
use crate::transitions::Recommendation;
use crate::worker::{Cx, RUN_ID_SENTINEL, WorkerState};

impl WorkerState {
    /// `update_data`: values that a client scattered.
    pub(crate) fn update_data(&mut self, data: Vec<(Key, Insertion)>, cx: &mut Cx<'_>) {
        for (key, value) in data {
            let task = self.task_or_new(&key, cx.now);
            self.recommend(task, Recommendation::memory(value, RUN_ID_SENTINEL));
            self.log_task(task, "receive-from-scatter", true, cx);
        }
    }

    /// `remove-replicas`: drops what is in memory.
    ///
    /// # Errors
    /// If a dependent runs: it may be about to read its inputs, so the scheduler must not ask.
    pub(crate) fn remove_replicas(&mut self, keys: &[Key], cx: &mut Cx<'_>) -> Result<(), Error> {
        for key in keys {
            let Some(task) = self.tasks.find(key) else {
                continue;
            };
            let ts = &self.tasks[task];
            if ts.state != State::Memory {
                continue;
            }
            let running = |&dependent: &_| self.tasks[dependent].state.is_running();
            if let Some(dependent) = ts.dependents.iter().find(running) {
                let dependent = &self.tasks[dependent];
                return Err(Error::ReplicaInUse {
                    key: ts.key.clone(),
                    dependent: dependent.key.clone(),
                    state: dependent.state,
                });
            }
            self.log_task(task, "remove-replica", false, cx);
            self.recommend(task, Recommendation::Released);
        }
        Ok(())
    }

    /// The shell cannot give values back that it was to keep. What has not begun
    /// waits for them again; what runs without them is the shell's to reschedule.
    ///
    /// Stock fails whatever reads such a value.
    pub(crate) fn data_lost(&mut self, keys: &[Key], cx: &mut Cx<'_>) {
        for key in keys {
            let Some(task) = self.tasks.find(key) else {
                continue;
            };
            if self.tasks[task].state != State::Memory {
                continue;
            }
            self.log_task(task, "data-lost", false, cx);
            let dependents = std::mem::take(&mut self.tasks[task].dependents);
            let mut is_needed = false;
            for dependent in &dependents {
                match self.tasks[dependent].state {
                    State::Waiting => {}
                    State::Ready | State::Constrained => {
                        self.ready.discard(dependent);
                        self.constrained.discard(dependent);
                        self.set_state(dependent, State::Waiting, cx);
                        self.waiting.insert(dependent);
                    }
                    State::Released
                    | State::Fetch
                    | State::Missing
                    | State::Flight
                    | State::Executing
                    | State::LongRunning
                    | State::Memory
                    | State::Error
                    | State::Cancelled
                    | State::Resumed
                    | State::Rescheduled
                    | State::Forgotten => continue,
                }
                is_needed = true;
                self.tasks[dependent].waiting_for_data.insert(task);
                self.tasks[task].waiters.insert(dependent);
            }
            self.tasks[task].dependents = dependents;
            let recommendation = if is_needed {
                Recommendation::Fetch
            } else {
                Recommendation::Released
            };
            self.recommend(task, recommendation);
        }
    }

    /// A peer asked for what is not here: it was told so by the scheduler, now or a
    /// while ago.
    pub(crate) fn data_missing(&mut self, keys: Vec<Key>, cx: &mut Cx<'_>) {
        for key in keys {
            let task = self.tasks.find(&key);
            if !task.is_some_and(|task| self.tasks[task].has_data) {
                self.deny(key, cx);
            }
        }
    }

    /// Tells the scheduler that a value is not here.
    ///
    /// It may believe so for ever: a client reports what it scattered to a worker that
    /// has gone since, and this one has its address. On stock whoever needs such data
    /// asks for it again and again.
    fn deny(&self, key: Key, cx: &mut Cx<'_>) {
        cx.send(SendMessageToScheduler::ReleaseWorkerData(
            ReleaseWorkerDataMsg {
                key,
                stimulus_id: cx.stimulus_id.clone(),
            },
        ));
    }

    /// `acquire-replicas`: fetches what is not here.
    pub(crate) fn acquire_replicas(
        &mut self,
        who_has: &[(Key, Vec<Str>)],
        nbytes: Vec<(Key, i64)>,
        cx: &mut Cx<'_>,
    ) {
        for (key, nbytes) in nbytes {
            let task = self.ensure_task_exists(&key, Priority::ACQUIRE_REPLICAS, cx);
            let ts = &mut self.tasks[task];
            if ts.state != State::Memory {
                ts.nbytes = Some(nbytes);
                self.recommend(task, Recommendation::Fetch);
            }
        }
        self.update_who_has(who_has);
    }

    /// `refresh-who-has`.
    pub(crate) fn refresh_who_has(&mut self, who_has: &[(Key, Vec<Str>)], cx: &mut Cx<'_>) {
        self.update_who_has(who_has);
        for (key, addresses) in who_has {
            let Some(task) = self.tasks.find(key) else {
                continue;
            };
            let ts = &self.tasks[task];
            let own_address = &**self.peers.own_address();
            if ts.state == State::Missing && addresses.iter().any(|to| *to == *own_address) {
                self.deny(key.clone(), cx);
            }
            if ts.state == State::Missing && !ts.who_has.is_empty() {
                self.recommend(task, Recommendation::Fetch);
            } else if ts.state == State::Fetch && ts.who_has.is_empty() {
                self.recommend(task, Recommendation::Missing);
            }
        }
    }

    /// Asks the scheduler about everything that is missing.
    pub(crate) fn find_missing(&mut self, cx: &mut Cx<'_>) {
        if self.missing_dep_flight.is_empty() {
            return;
        }
        let missing = self.missing_dep_flight.iter();
        let keys = missing.map(|task| self.tasks[task].key.clone()).collect();
        cx.send(SendMessageToScheduler::RequestRefreshWhoHas(
            RequestRefreshWhoHasMsg {
                keys,
                stimulus_id: cx.stimulus_id.clone(),
            },
        ));
    }

    /// `remove-worker`: a peer is gone. A transfer from it will fail by itself.
    pub(crate) fn remove_worker(&mut self, worker: &str) {
        if let Some(peer) = self.peers.find(worker) {
            self.forget_holder(peer);
        }
    }

    /// Nothing is at a peer any more; what only it had is missing.
    pub(crate) fn forget_holder(&mut self, peer: PeerId) {
        if let Some(needed) = self.peers.data_needed.shift_remove(&peer) {
            for task in needed.iter() {
                if self.tasks[task].who_has.len() == 1 {
                    self.recommend(task, Recommendation::Missing);
                }
            }
        }
        let has_what = std::mem::take(&mut self.peers[peer].has_what);
        for task in &has_what {
            self.tasks[task].who_has.remove(peer);
        }
        self.peers.release_if_unused(peer);
    }

    /// Replaces the holders of tasks; tasks that are unknown (forgotten since
    /// the worker asked) are passed over. `_update_who_has` in distributed.
    pub(crate) fn update_who_has(&mut self, who_has: &[(Key, Vec<Str>)]) {
        for (key, addresses) in who_has {
            let Some(task) = self.tasks.find(key) else {
                continue;
            };
            // The scheduler may believe that this worker itself has the data,
            // while the message that it was released is under way.
            let own_address = self.peers.own_address().clone();
            let others = addresses.iter().filter(|&address| *address != *own_address);
            let holders: IdSet<PeerId> = others.map(|address| self.peers.intern(address)).collect();
            let old = std::mem::take(&mut self.tasks[task].who_has);
            if old == holders {
                self.tasks[task].who_has = old;
                continue;
            }
            let is_needed = self.tasks[task].state == State::Fetch;
            for peer in old.iter().filter(|&peer| !holders.contains(peer)) {
                self.peers[peer].has_what.remove(task);
                if is_needed {
                    self.peers.needed_from(peer).discard(task);
                }
                self.peers.release_if_unused(peer);
            }
            for peer in holders.iter().filter(|&peer| !old.contains(peer)) {
                self.peers[peer].has_what.insert(task);
                if is_needed {
                    self.peers.needed_from(peer).add(task, &self.tasks);
                }
            }
            self.tasks[task].who_has = holders;
        }
    }
}
