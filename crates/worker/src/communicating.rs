//! What is fetched next, and from whom.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::id::{PeerId, TaskId};
use crate::instruction::{GatherDep, Instruction};
use crate::priority::Priority;
use crate::story::Happening;
use crate::task::TaskState;
use crate::transitions::Recommendation;
use crate::worker::{Cx, WorkerState};

/// A peer that could be asked; smaller goes first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Of the best task it has.
    priority: Priority,
    is_remote: bool,
    /// Number of tasks it has.
    task_count: Reverse<usize>,
    random: u64,
    peer: PeerId,
}

impl WorkerState {
    /// Asks peers for tasks in `fetch`, until there are none or a limit is
    /// reached. `_ensure_communicating` in distributed.
    pub(crate) fn ensure_communicating(&mut self, cx: &mut Cx<'_>) {
        if !self.running
            || self.peers.data_needed.is_empty()
            || self.should_throttle_incoming_transfers()
        {
            return;
        }
        let mut candidates = self.candidates();
        while let Some(Reverse(candidate)) = candidates.pop() {
            let peer = candidate.peer;
            // Tasks may have gone to a better peer since.
            let task_count = self.peers.data_needed[&peer].len();
            if task_count == 0 {
                self.peers.data_needed.shift_remove(&peer);
                continue;
            }
            if task_count != candidate.task_count.0 {
                candidates.push(Reverse(Candidate {
                    priority: self.best_needed_from(peer),
                    task_count: Reverse(task_count),
                    ..candidate
                }));
                continue;
            }
            let (to_gather, total_nbytes) = self.select_keys_for_gather(peer);
            if to_gather.is_empty() {
                break;
            }
            self.gather_dep(peer, to_gather, total_nbytes, cx);
            if self.should_throttle_incoming_transfers() {
                break;
            }
            if self.peers.data_needed[&peer].is_empty() {
                self.peers.data_needed.shift_remove(&peer);
            }
        }
    }

    fn gather_dep(
        &mut self,
        peer: PeerId,
        to_gather: Vec<TaskId>,
        total_nbytes: i64,
        cx: &mut Cx<'_>,
    ) {
        let worker = self.peers[peer].address.clone();
        let keys: Vec<_> = to_gather
            .iter()
            .map(|&task| self.tasks[task].key.clone())
            .collect();
        let what = Happening::Transfer {
            action: "gather-dependencies",
            worker: worker.clone(),
            keys: keys.clone(),
        };
        self.story.push(what, cx.stimulus_id, cx.now);
        for &task in &to_gather {
            self.recommend(task, Recommendation::Flight(peer));
        }
        cx.out.push(Instruction::GatherDep(GatherDep {
            worker,
            to_gather: keys.clone(),
            total_nbytes,
            stimulus_id: cx.stimulus_id.clone(),
        }));
        self.peers[peer].in_flight = Some(keys);
        self.peers.in_flight_count += 1;
        self.transfer_incoming_count_total += 1;
        self.transfer_incoming_bytes += total_nbytes;
    }

    fn should_throttle_incoming_transfers(&self) -> bool {
        let config = &self.config;
        let bytes = self.transfer_incoming_bytes;
        let is_count_reached = self.peers.in_flight_count >= config.transfer_incoming_count_limit;
        let is_threshold_reached = bytes >= config.transfer_incoming_bytes_throttle_threshold;
        let is_bytes_reached = bytes as f64 >= config.transfer_incoming_bytes_limit;
        is_count_reached && is_threshold_reached || is_bytes_reached
    }

    /// Peers that have something we need and that are free to be asked.
    /// `_select_workers_for_gather` in distributed.
    fn candidates(&mut self) -> BinaryHeap<Reverse<Candidate>> {
        self.peers.drop_unneeded();
        let mut candidates = BinaryHeap::new();
        for at in 0..self.peers.data_needed.len() {
            let (&peer, tasks) = self
                .peers
                .data_needed
                .get_index(at)
                .expect("nothing is removed meanwhile");
            let task_count = Reverse(tasks.len());
            if self.peers[peer].in_flight.is_some() || self.peers[peer].is_busy {
                continue;
            }
            candidates.push(Reverse(Candidate {
                priority: self.best_needed_from(peer),
                is_remote: self.peers[peer].is_remote,
                task_count,
                random: self.random.next(),
                peer,
            }));
        }
        candidates
    }

    /// The priority of the best task that a peer has.
    fn best_needed_from(&mut self, peer: PeerId) -> Priority {
        self.peers.data_needed[&peer]
            .peek(&self.tasks)
            .and_then(|task| self.tasks[task].priority)
            .expect("a peer that is needed has a task with a priority")
    }

    /// As much of what a peer has as fits in a message and in the limits, best
    /// first; nothing if that does not fit while other data is incoming.
    fn select_keys_for_gather(&mut self, peer: PeerId) -> (Vec<TaskId>, i64) {
        let mut to_gather = Vec::new();
        let mut message_nbytes = 0;
        while let Some(task) = self.peers.data_needed[&peer].peek(&self.tasks) {
            let nbytes = self.nbytes_expected(&self.tasks[task]);
            if self.exceeds_transfer_limits(nbytes, message_nbytes) {
                break;
            }
            for holder in &self.tasks[task].who_has {
                self.peers.needed_from(holder).discard(task);
            }
            to_gather.push(task);
            message_nbytes += nbytes;
        }
        (to_gather, message_nbytes)
    }

    /// `TaskState.get_nbytes` in distributed.
    fn nbytes_expected(&self, ts: &TaskState) -> i64 {
        ts.nbytes.unwrap_or(self.config.default_data_size)
    }

    /// The best task goes whatever its size, if nothing else is on its way; the
    /// first of a message whatever the limit of a message.
    fn exceeds_transfer_limits(&self, nbytes: i64, message_nbytes: i64) -> bool {
        if self.transfer_incoming_bytes == 0 && message_nbytes == 0 {
            return false;
        }
        let limit = self.config.transfer_incoming_bytes_limit;
        let mut allowance = limit - self.transfer_incoming_bytes as f64;
        if message_nbytes != 0 {
            allowance = allowance.min(self.config.transfer_message_bytes_limit);
            allowance -= message_nbytes as f64;
        }
        (nbytes as f64).partial_cmp(&allowance) == Some(Ordering::Greater)
    }
}
