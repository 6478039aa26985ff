//! A transfer from a peer ended, in one way or another.

use std::sync::Arc;

use oxidask_wire::Key;

use crate::error::Error;
use crate::event::Insertion;
use crate::id::{PeerId, TaskId};
use crate::instruction::{
    Instruction, RequestRefreshWhoHasMsg, RetryBusyWorkerLater, SendMessageToScheduler,
};
use crate::task::{StartStop, TaskFailure};
use crate::transitions::Recommendation;
use crate::worker::{Cx, WorkerState};

impl WorkerState {
    /// Data came. What is missing from it is looked for elsewhere.
    pub(crate) fn gather_dep_success(
        &mut self,
        worker: &str,
        total_nbytes: i64,
        data: Vec<(Key, Insertion)>,
        transfer: Option<StartStop>,
        cx: &mut Cx<'_>,
    ) -> Result<(), Error> {
        let peer = self.peer_in_flight(worker)?;
        if let Some(transfer) = transfer {
            self.push_transfer(peer, transfer);
        }
        let mut received: hashbrown::HashMap<TaskId, Insertion, foldhash::fast::FixedState> = data
            .into_iter()
            .filter_map(|(key, value)| Some((self.tasks.find(&key)?, value)))
            .collect();
        for task in self.gather_dep_done(peer, total_nbytes)? {
            if let Some(value) = received.remove(&task) {
                let run_id = self.tasks[task].run_id;
                self.recommend(task, Recommendation::memory(value, run_id));
            } else {
                self.log_task(task, "missing-dep", false, cx);
                self.tasks[task].who_has.remove(peer);
                self.peers[peer].has_what.remove(task);
                self.recommend(task, Recommendation::Fetch);
            }
        }
        self.peers.release_if_unused(peer);
        Ok(())
    }

    /// The peer is left alone for a while; others that have the data are asked
    /// at once, and the scheduler, if there are none.
    pub(crate) fn gather_dep_busy(
        &mut self,
        worker: Arc<str>,
        total_nbytes: i64,
        cx: &mut Cx<'_>,
    ) -> Result<(), Error> {
        let peer = self.peer_in_flight(&worker)?;
        self.peers[peer].is_busy = true;
        let mut keys = Vec::new();
        for task in self.gather_dep_done(peer, total_nbytes)? {
            self.recommend(task, Recommendation::Fetch);
            let ts = &self.tasks[task];
            if ts.who_has.iter().all(|holder| self.peers[holder].is_busy) {
                keys.push(ts.key.clone());
            }
        }
        cx.out
            .push(Instruction::RetryBusyWorkerLater(RetryBusyWorkerLater {
                worker,
                stimulus_id: cx.stimulus_id.clone(),
            }));
        if !keys.is_empty() {
            cx.send(SendMessageToScheduler::RequestRefreshWhoHas(
                RequestRefreshWhoHasMsg {
                    keys,
                    stimulus_id: cx.stimulus_id.clone(),
                },
            ));
        }
        Ok(())
    }

    /// The peer is taken to be dead, with everything that it had.
    pub(crate) fn gather_dep_network_failure(
        &mut self,
        worker: &str,
        total_nbytes: i64,
        cx: &mut Cx<'_>,
    ) -> Result<(), Error> {
        let peer = self.peer_in_flight(worker)?;
        for task in self.gather_dep_done(peer, total_nbytes)? {
            self.log_task(task, "missing-dep", false, cx);
            self.recommend(task, Recommendation::Fetch);
        }
        self.forget_holder(peer);
        Ok(())
    }

    pub(crate) fn gather_dep_failure(
        &mut self,
        worker: &str,
        total_nbytes: i64,
        failure: &Arc<TaskFailure>,
    ) -> Result<(), Error> {
        let peer = self.peer_in_flight(worker)?;
        for task in self.gather_dep_done(peer, total_nbytes)? {
            let recommendation = Recommendation::Error {
                failure: failure.clone(),
                run_id: self.tasks[task].run_id,
            };
            self.recommend(task, recommendation);
        }
        self.peers.release_if_unused(peer);
        Ok(())
    }

    /// A busy peer may be asked again.
    pub(crate) fn retry_busy_worker(&mut self, worker: &str) {
        if let Some(peer) = self.peers.find(worker) {
            self.peers[peer].is_busy = false;
            self.peers.release_if_unused(peer);
        }
    }

    fn peer_in_flight(&self, worker: &str) -> Result<PeerId, Error> {
        self.peers
            .find(worker)
            .filter(|&peer| self.peers[peer].in_flight.is_some())
            .ok_or_else(|| Error::NotInFlight {
                worker: worker.into(),
            })
    }

    /// Ends a transfer, and gives the tasks it was to bring. `_gather_dep_done_common` in distributed.
    ///
    /// They are in flight, cancelled or resumed, or, if they were scattered
    /// meanwhile, in any other state.
    fn gather_dep_done(&mut self, peer: PeerId, total_nbytes: i64) -> Result<Vec<TaskId>, Error> {
        self.transfer_incoming_bytes -= total_nbytes;
        let keys = self.peers[peer].in_flight.take().unwrap_or_default();
        self.peers.in_flight_count -= 1;
        let mut tasks = Vec::with_capacity(keys.len());
        for key in &keys {
            // Forgotten or fetched elsewhere meanwhile, which takes a client that
            // scatters what is being fetched.
            let was_in_flight = |&task: &TaskId| self.in_flight_tasks.remove(task);
            let Some(task) = self.tasks.find(key).filter(was_in_flight) else {
                return Err(Error::UnknownTask {
                    key: key.clone(),
                    expected: "a task on its way is in flight",
                });
            };
            let ts = &mut self.tasks[task];
            ts.done = true;
            ts.coming_from = None;
            tasks.push(task);
        }
        Ok(tasks)
    }

    /// Books a transfer to one of the tasks that it is for. `Worker._get_cause` in distributed.
    fn push_transfer(&mut self, peer: PeerId, transfer: StartStop) {
        let mut cause = None;
        for key in self.peers[peer].in_flight.iter().flatten() {
            let Some(task) = self.tasks.find(key) else {
                continue;
            };
            if let Some(dependent) = self.tasks[task].dependents.first() {
                cause = Some(dependent);
                break;
            }
            cause = Some(task);
        }
        if let Some(task) = cause {
            self.tasks[task].push_startstop(transfer);
        }
    }
}
