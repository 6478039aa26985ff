//! What has to hold: after every event, when nothing is under way, and in the end.

use oxidask_scheduler as scheduler;
use oxidask_wire::{Key, Value};
use oxidask_worker::State;
use oxidask_worker::instruction::SendMessageToScheduler;

use crate::client::{Client, Future};
use crate::cluster::Cluster;
use crate::plan::{Action, Expansion};

impl Cluster<'_> {
    /// The worker's shell and its core know the same.
    pub(crate) fn check_worker(&self, worker: usize) {
        let node = &self.workers[worker];
        let core = &node.core;
        let held = core.tasks().filter(|(_, ts)| ts.has_data);
        let mut count = 0;
        for (_, ts) in held {
            count += 1;
            assert!(
                node.store.contains_key(&ts.key),
                "the value of {} is gone",
                ts.key
            );
        }
        assert_eq!(
            count,
            node.store.len(),
            "the store of {} has more",
            node.address
        );
        let mut count = 0;
        for ts in core.all_running_tasks() {
            count += 1;
            assert!(
                node.running.contains_key(&ts.key),
                "{} does not run",
                ts.key
            );
        }
        assert_eq!(count, node.running.len(), "more runs on {}", node.address);
        assert_eq!(
            core.transfer_incoming_count(),
            node.incoming,
            "transfers of {}",
            node.address
        );
    }

    /// When nothing is under way between the scheduler and a worker, they agree.
    pub(crate) fn compare(&self, worker: usize) {
        let node = &self.workers[worker];
        let is_quiet = node.up.on_its_way == 0 && node.down.on_its_way == 0;
        let Some(id) = node
            .id
            .filter(|_| is_quiet && node.is_alive && !node.is_closing && !node.is_cut_off)
        else {
            return;
        };
        if !node.inbox.is_empty() {
            return;
        }
        let core = &self.scheduler.core;
        let ws = core.worker(id).expect("a registered worker is known");
        let address = &node.address;
        // A client may have scattered to the one that had this address before, and say so
        // now: nobody can tell until somebody asks for it.
        let is_of_predecessor = |key: &Key| {
            let mut earlier = self.workers[..worker].iter();
            self.plan.tasks[self.number(key)].is_data
                && earlier.any(|earlier| earlier.address == *address)
        };
        for task in &ws.has_what {
            let ts = core.task(task).expect("what a worker has is known");
            assert!(
                node.store.contains_key(&ts.key) || is_of_predecessor(&ts.key),
                "the scheduler believes that {address} has {}",
                ts.key
            );
        }
        for key in node.store.keys() {
            // The client that scattered it has still to say so.
            if self.plan.tasks[self.number(key)].is_data {
                continue;
            }
            let is_known = core
                .find_task(key)
                .is_some_and(|ts| ts.who_has.contains(id));
            assert!(
                is_known,
                "the scheduler does not know that {address} has {key}"
            );
        }
        for task in &ws.processing {
            let ts = core.task(task).expect("what a worker processes is known");
            if ts.awaits_bundle {
                continue;
            }
            let there = node.core.find_task(&ts.key);
            let state = there.map(|there| (there.state, there.run_id));
            let is_there = there.is_some_and(|there| {
                there.run_id == ts.run_id
                    && (there.state.is_processing() || there.state == State::Resumed)
            });
            assert!(
                is_there,
                "{} is processing on {address} (run {}), which has it as {state:?}",
                ts.key, ts.run_id
            );
        }
        for (_, there) in node.core.tasks() {
            if there.state.is_processing() {
                let ts = core.find_task(&there.key);
                assert!(
                    ts.is_some_and(|ts| ts.processing_on == Some(id)),
                    "{address} has {} as {}, but the scheduler as {:?}",
                    there.key,
                    there.state,
                    ts.map(|ts| ts.state)
                );
            }
        }
    }

    /// Counts reasons of a task to be sent again that are its own.
    pub(crate) fn explain(&mut self, message: &SendMessageToScheduler) {
        let key = match message {
            SendMessageToScheduler::TaskErred(msg) => &msg.key,
            SendMessageToScheduler::Reschedule(msg) => &msg.key,
            SendMessageToScheduler::StealResponse(msg) => &msg.key,
            SendMessageToScheduler::ReleaseWorkerData(msg) => &msg.key,
            SendMessageToScheduler::TaskFinished(_)
            | SendMessageToScheduler::LongRunning(_)
            | SendMessageToScheduler::AddKeys(_)
            | SendMessageToScheduler::RequestRefreshWhoHas(_) => return,
        };
        let number = self.number(key);
        self.tally.explained[number] += 1;
    }

    /// A failure that a client is told of has really happened.
    pub(crate) fn check_cause(&self, key: &Key, exception: &Value) {
        let number = self.number(key);
        let settings = &self.plan.settings;
        let is_true = match exception.as_str() {
            Some("the graph helper failed") => self.plan.steps.iter().any(|step| {
                matches!(
                    step.action,
                    Action::Submit {
                        expansion: Expansion::Fails | Expansion::BundleFails,
                        ..
                    }
                )
            }),
            Some(text) => {
                let (kind, cause) = text.split_once(' ').unwrap_or_default();
                let cause: usize = cause.parse().expect("a failure names its task");
                let task = &self.plan.tasks[cause];
                let has_happened = match kind {
                    "boom" => task.failures > 0,
                    "unstorable" => task.unstorable > 0,
                    "p2p" => task.p2p.is_some(),
                    "unreadable" => task.unreadable > 0,
                    "nested" => !task.submits.is_empty(),
                    _ => false,
                };
                has_happened && self.depends_on(number, cause)
            }
            None => {
                let text = exception
                    .as_bin()
                    .map(|bytes| bytes.to_vec())
                    .unwrap_or_default();
                let text = String::from_utf8_lossy(&text).into_owned();
                text.contains("KilledWorker") && self.tally.deaths > settings.allowed_failures
                    || text.contains("WorkerError") && settings.no_workers_timeout.is_some()
                    || text.contains("MemoryError")
                    || text.contains("Worker holding Actor was lost")
                        && self.depends_on_actor(number)
            }
        };
        assert!(is_true, "{key} is said to have failed by {exception:?}");
    }

    fn depends_on_actor(&self, number: usize) -> bool {
        let task = &self.plan.tasks[number];
        let mut dependencies = task.dependencies.iter();
        task.is_actor || dependencies.any(|&task| self.depends_on_actor(task))
    }

    fn depends_on(&self, number: usize, cause: usize) -> bool {
        let dependencies = &self.plan.tasks[number].dependencies;
        number == cause
            || dependencies
                .iter()
                .any(|&task| self.depends_on(task, cause))
    }

    /// Every future is over as the scheduler says, nothing is under way, and no worker is
    /// gone without the scheduler's knowing.
    pub(crate) fn is_settled(&self) -> bool {
        let mut workers = self.workers.iter();
        let is_known = workers.all(|node| {
            let has_left = !node.is_alive || node.is_closing;
            !has_left || node.id.is_none()
        });
        is_known && self.are_clients_settled()
    }

    fn are_clients_settled(&self) -> bool {
        self.clients.iter().all(|client| {
            client.is_gone
                || !client.has_left
                    && client.up.on_its_way == 0
                    && client.down.on_its_way == 0
                    && !client.is_blocked
                    && client.futures.iter().all(|(&task, &future)| {
                        self.is_true(client, task, future, self.state_for(client, task))
                    })
        })
    }

    /// Whether a future is over as the scheduler says.
    fn is_true(
        &self,
        client: &Client,
        task: usize,
        future: Future,
        state: Option<scheduler::State>,
    ) -> bool {
        match future {
            // A client hears of all tasks of a graph that are there, so also of one of
            // which it has a cancelled future.
            Future::Finished if state.is_none() => {
                client.cancelled.contains(&task) || self.helper_failed_on(task)
            }
            Future::Finished => state == Some(scheduler::State::Memory),
            Future::Erred => match state {
                // A graph that the helper failed on leaves no task behind, and others as they are.
                None | Some(scheduler::State::Erred) => true,
                Some(scheduler::State::Memory) => self.helper_failed_on(task),
                Some(
                    scheduler::State::Released
                    | scheduler::State::Waiting
                    | scheduler::State::NoWorker
                    | scheduler::State::Queued
                    | scheduler::State::Processing
                    | scheduler::State::Forgotten,
                ) => false,
            },
            // What others want as well is not cancelled, but the client believes so.
            Future::Cancelled => state.is_none() || client.unforced.contains(&task),
            Future::Pending | Future::Lost => false,
        }
    }

    fn helper_failed_on(&self, task: usize) -> bool {
        self.plan.steps.iter().any(|step| {
            if let Action::Submit {
                wanted, expansion, ..
            } = &step.action
            {
                *expansion == Expansion::Fails && wanted.contains(&task)
            } else {
                false
            }
        })
    }

    /// The state of a task if the scheduler knows that a client wants it.
    fn state_for(&self, client: &Client, task: usize) -> Option<scheduler::State> {
        let ts = self.scheduler.core.find_task(&self.keys[task])?;
        let wanted = client.id.is_some_and(|id| ts.who_wants.contains(id));
        wanted.then_some(ts.state)
    }

    pub(crate) fn futures(&self) -> Vec<(String, &'static str)> {
        let futures = self.clients.iter().filter(|client| !client.has_left);
        let futures = futures.flat_map(|client| &client.futures);
        futures
            .map(|(&task, future)| (self.plan.tasks[task].name.clone(), future.name()))
            .collect()
    }

    /// What clients know is true.
    pub(crate) fn check_settled(&self) {
        for client in self.clients.iter().filter(|client| !client.has_left) {
            for (&task, &future) in &client.futures {
                let state = self.state_for(client, task);
                assert!(
                    self.is_true(client, task, future, state),
                    "{} is {} for {}; the scheduler has it as {state:?}{}",
                    self.keys[task],
                    future.name(),
                    client.name,
                    self.where_it_is(&self.keys[task])
                );
                // Of scattered data the scheduler may be wrong: see `compare`.
                if state == Some(scheduler::State::Memory) && !self.plan.tasks[task].is_data {
                    assert!(
                        self.is_held(&self.keys[task]),
                        "{} cannot be gathered",
                        self.keys[task]
                    );
                }
            }
        }
        assert!(self.is_settled(), "messages are on their way for ever");
    }

    /// Whether a worker that the scheduler names really has a value.
    fn is_held(&self, key: &Key) -> bool {
        let core = &self.scheduler.core;
        let holders = core.find_task(key).map(|ts| &ts.who_has);
        holders.into_iter().flatten().any(|worker| {
            let worker = self.registered.get(&worker);
            worker.is_some_and(|&worker| {
                let node = &self.workers[worker];
                node.is_alive && !node.is_closing && node.store.contains_key(key)
            })
        })
    }

    /// What a task waits for on the scheduler, and which workers know it, and how.
    fn where_it_is(&self, key: &Key) -> String {
        let mut text = String::new();
        let core = &self.scheduler.core;
        let waiting_on = core.find_task(key).map(|ts| &ts.waiting_on);
        for task in waiting_on.into_iter().flatten() {
            let Some(ts) = core.task(task) else {
                continue;
            };
            let on = ts.processing_on.and_then(|worker| core.worker(worker));
            let on = on.map(|ws| (&ws.address, ws.status));
            text += &format!("; waits for {} ({}, on {on:?})", ts.key, ts.state);
            if ts.state != scheduler::State::Waiting {
                text += &self.where_it_is(&ts.key);
            }
        }
        for node in self.workers.iter().filter(|node| node.is_alive) {
            if let Some(ts) = node.core.find_task(key) {
                let holders: Vec<_> = node.core.who_has(ts).collect();
                text += &format!(
                    "; {} ({}) as {}, waiting for {} inputs, held by {holders:?}",
                    node.address,
                    node.status,
                    ts.state,
                    ts.waiting_for_data.len()
                );
            }
        }
        text
    }

    /// No task was sent to workers more often than faults explain.
    pub(crate) fn check_runs(&self) {
        let submissions = self.plan.steps.iter();
        let submissions = submissions
            .filter(|step| matches!(step.action, Action::Submit { .. }))
            .count() as u32;
        for (number, task) in self.plan.tasks.iter().enumerate() {
            let sent = self.tally.sent[number];
            // Whatever disturbs may take a result away, and every submission may ask for it again.
            // So may a run of a shuffle, which begins anew if something happens to it.
            let reasons = self.tally.disturbances + self.layouts.len() as u32;
            let reasons = reasons * (1 + submissions);
            let most = submissions.max(1) + self.tally.explained[number] + reasons;
            assert!(
                sent <= most,
                "{} was sent {sent} times, of at most {most}",
                task.name
            );
            assert!(
                self.tally.begun[number] <= sent,
                "{} ran {} times, but was sent {sent} times",
                task.name,
                self.tally.begun[number]
            );
        }
    }

    /// Nothing is left anywhere.
    pub(crate) fn is_empty(&self) -> bool {
        !self.scheduler.core.has_pending_work()
            && self.scheduler.core.n_tasks() == 0
            && self
                .workers
                .iter()
                .filter(|node| node.is_alive)
                .all(|node| {
                    node.core
                        .tasks()
                        .all(|(_, ts)| self.plan.tasks[self.number(&ts.key)].is_data)
                        && node.up.on_its_way == 0
                        && node.down.on_its_way == 0
                })
    }

    pub(crate) fn check_empty(&self) {
        self.scheduler.core.validate_empty();
        for node in self.workers.iter().filter(|node| node.is_alive) {
            // Of data that was scattered by a client that left before it could say so,
            // stock's scheduler does not hear either.
            let is_orphan = |key: &Key| self.plan.tasks[self.number(key)].is_data;
            let left: Vec<_> = node
                .core
                .tasks()
                .filter(|(_, ts)| !is_orphan(&ts.key))
                .map(|(_, ts)| format!("{} ({})", ts.key, ts.state))
                .collect();
            assert!(left.is_empty(), "{} still has {left:?}", node.address);
            if node.core.task_count() == 0 {
                node.core.validate_empty();
            }
        }
        assert!(self.scheduler.core.has_no_work(), "work is left");
    }

    pub(crate) fn take_coverage(&mut self) {
        for transition in self.scheduler.core.transition_log() {
            self.coverage
                .scheduler
                .insert((transition.start, transition.finish));
        }
        for node in &self.workers {
            self.coverage.add_worker(&node.core);
        }
    }
}
