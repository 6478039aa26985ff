//! P2P shuffles: what tasks ask of the scheduler, and what the graph helper lays out.
//!
//! Of the plug-in that stock's workers and ours run there is what concerns the scheduler:
//! who asks what in which order, and what a task does with the answer. No shards are sent;
//! a run of which a part is lost is noticed by the numbers of the runs.

use std::sync::Arc;

use oxidask_scheduler::extensions::InputsDone;
use oxidask_scheduler::instruction::CreateShuffleRun;
use oxidask_scheduler::{Failure, RequestId};
use oxidask_wire::{Key, Pickled, Value, map};

use crate::cluster::{AtWorker, Cluster, Happening};
use crate::plan::Role;

/// A run that waits for an answer of the scheduler.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    worker: usize,
    key: Key,
    token: u64,
    /// The run of the shuffle that it is about, if it knows one.
    shuffle_run: i64,
}

/// What a task makes of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answered {
    /// Its part in this run of the shuffle is done.
    Done { shuffle_run: i64 },
    /// It has to run again, perhaps elsewhere.
    Again,
    /// There is no such shuffle, or another run of it, which is an error of the task's.
    Fails,
}

impl Cluster<'_> {
    /// A run has done its part, and asks the scheduler.
    pub(crate) fn ask(&mut self, worker: usize, key: Key, token: u64) {
        let node = &mut self.workers[worker];
        let runs = node.running.get(&key);
        if runs.is_none_or(|run| run.token != token) {
            return;
        }
        let delay = node.aside.delay(&self.plan.settings);
        let ask = Ask {
            worker,
            key,
            token,
            shuffle_run: 0,
        };
        self.agenda.after(delay, Happening::Asked(ask));
    }

    /// It arrives.
    pub(crate) fn asked(&mut self, mut ask: Ask) {
        if !self.workers[ask.worker].is_alive {
            return;
        }
        let address = self.workers[ask.worker].address.clone();
        let number = self.number(&ask.key);
        let Some(p2p) = self.plan.tasks[number].p2p else {
            return;
        };
        let id = p2p.shuffle.to_string();
        let (op, arguments) = match p2p.role {
            Role::Transfer => (
                "shuffle_get_or_create",
                map! { "shuffle_id" => &*id, "key" => &ask.key, "worker" => &address },
            ),
            Role::Barrier => {
                let transfers = self.plan.tasks[number].dependencies.iter();
                let runs: Vec<i64> = transfers.map(|&task| self.shuffle_runs[task]).collect();
                ask.shuffle_run = runs.iter().copied().max().unwrap_or_default();
                let consistent = runs.iter().all(|&run| run == ask.shuffle_run);
                (
                    "shuffle_barrier",
                    map! { "id" => &*id, "run_id" => ask.shuffle_run, "consistent" => consistent },
                )
            }
            Role::Unpack { partition } => {
                ask.shuffle_run = self.shuffle_runs[p2p.shuffle];
                let layout = self.layouts.get(&(p2p.shuffle, ask.shuffle_run));
                let home = layout.and_then(|layout| layout.get(partition)).cloned();
                match home {
                    Some(home) if home != address => (
                        "shuffle_restrict_task",
                        map! {
                            "id" => &*id,
                            "run_id" => ask.shuffle_run,
                            "key" => &ask.key,
                            "worker" => &home,
                        },
                    ),
                    Some(_) | None => ("shuffle_get", map! { "id" => &*id, "worker" => &address }),
                }
            }
        };
        let request = self.request(op, arguments);
        let at = self.replies.iter().position(|(to, _)| *to == request);
        match at.map(|at| self.replies.swap_remove(at)) {
            Some((_, reply)) => self.answer(&ask, reply),
            None => {
                self.asks.insert(request, ask);
            }
        }
    }

    /// The scheduler answers.
    pub(crate) fn answer(&mut self, ask: &Ask, reply: Result<Value, Failure>) {
        let number = self.number(&ask.key);
        let Some(p2p) = self.plan.tasks[number].p2p else {
            return;
        };
        // A message of an error is what stock's plug-in raises.
        let is_error = |reply: &Value| {
            let status = reply.as_map().and_then(|reply| reply.get("status"));
            status.and_then(Value::as_str) == Some("error")
        };
        let answered = match reply.as_ref().ok().filter(|reply| !is_error(reply)) {
            None => Answered::Fails,
            Some(reply) => match (p2p.role, run_of(reply)) {
                (Role::Transfer, Some(shuffle_run)) => Answered::Done { shuffle_run },
                (Role::Barrier, _) => Answered::Done {
                    shuffle_run: ask.shuffle_run,
                },
                (Role::Unpack { .. }, Some(shuffle_run)) if shuffle_run == ask.shuffle_run => {
                    Answered::Done { shuffle_run }
                }
                (Role::Unpack { .. }, Some(_)) => Answered::Fails,
                // It is pinned to the worker that has its partition.
                (Role::Transfer | Role::Unpack { .. }, None) => Answered::Again,
            },
        };
        let what = AtWorker::Answered {
            key: ask.key.clone(),
            token: ask.token,
            answered,
        };
        self.send_aside(ask.worker, what);
    }

    /// The scheduler notices that whoever asked is gone.
    pub(crate) fn ask_lost(&mut self, request: RequestId) {
        let now = self.time();
        let node = &mut self.scheduler;
        let mut out = std::mem::take(&mut node.out);
        node.extensions
            .cancel(&mut node.core, now, request, &mut out);
        self.scheduler.out = out;
        self.settle();
    }

    /// Whoever waits for answers is gone.
    pub(crate) fn forget_asks(&mut self, worker: usize) {
        let lost = self.asks.iter().filter(|(_, ask)| ask.worker == worker);
        let lost: Vec<RequestId> = lost.map(|(&request, _)| request).collect();
        for request in lost {
            self.asks.shift_remove(&request);
            let delay = self.workers[worker].aside.delay(&self.plan.settings);
            self.agenda.after(delay, Happening::AskLost { request });
        }
    }

    /// The graph helper has laid a run out.
    pub(crate) fn laid_out(&mut self, create: &CreateShuffleRun) {
        let shuffle: usize = create.shuffle_id.parse().expect("a number of a task");
        let unpacks = self.plan.tasks.iter().filter(|task| {
            task.p2p
                .is_some_and(|p2p| p2p.shuffle == shuffle && p2p.role.is_unpack())
        });
        let partitions = 0..unpacks.count();
        let layout: Vec<Arc<str>> = partitions
            .map(|partition| create.workers[partition % create.workers.len()].clone())
            .collect();
        let worker_for = layout.iter().enumerate();
        let worker_for = worker_for
            .map(|(partition, worker)| (Value::from(partition as i64), worker.clone()))
            .collect();
        self.layouts.insert((shuffle, create.run_id), layout);
        let now = self.time();
        let node = &mut self.scheduler;
        let mut out = std::mem::take(&mut node.out);
        node.extensions.shuffle_run_created(
            &mut node.core,
            now,
            &create.shuffle_id,
            create.run_id,
            worker_for,
            Pickled::of_pickle(create.run_id.to_string().as_bytes()),
            &mut out,
        );
        self.scheduler.out = out;
        self.settle();
    }

    /// The participants have answered that they have got all inputs, or have not.
    pub(crate) fn inputs_done(&mut self, request: RequestId, workers: Vec<Arc<str>>) {
        let answers = workers.into_iter().map(|address| {
            let worker = self.addresses.get(&address);
            let is_there = worker.is_some_and(|&worker| {
                let node = &self.workers[worker];
                node.is_alive && !node.is_closing
            });
            let answer = match is_there {
                true => InputsDone::Done,
                false => InputsDone::Unreachable,
            };
            (address, answer)
        });
        let answers = answers.collect();
        let now = self.time();
        let node = &mut self.scheduler;
        let mut out = std::mem::take(&mut node.out);
        let core = &node.core;
        node.extensions
            .shuffle_inputs_done_result(core, now, request, answers, &mut out);
        self.scheduler.out = out;
        self.settle();
    }
}

/// The number of the run that an answer is about.
fn run_of(reply: &Value) -> Option<i64> {
    let Value::Pickled(run_spec) = reply.as_map()?.get("run_spec")? else {
        return None;
    };
    let pickle = run_spec.pickle().ok()?;
    std::str::from_utf8(&pickle).ok()?.parse().ok()
}
