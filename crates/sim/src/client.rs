//! Clients: what they hold futures of, and what they are told.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use indexmap::IndexMap;
use oxidask_scheduler::{ClientId, Event, ToClient};
use oxidask_wire::{Key, Str, Value};

use crate::cluster::{ClientMessage, Cluster, Happening, Submission};
use crate::network::Link;
use crate::plan::Expansion;

/// Distinguishes the links of clients from those of workers.
const CLIENT_LINKS: u64 = 1 << 32;

/// A client, and what the scheduler's shell knows of it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) name: Arc<str>,
    /// While the scheduler knows it.
    pub(crate) id: Option<ClientId>,
    /// The stream to the scheduler.
    pub(crate) up: Link,
    /// The stream from the scheduler.
    pub(crate) down: Link,
    /// It has closed its stream.
    pub(crate) has_left: bool,
    /// The scheduler has noticed.
    pub(crate) is_gone: bool,
    /// The scheduler is taking a graph of it in.
    pub(crate) is_blocked: bool,
    /// The graph that it waits for is expanded.
    pub(crate) is_expanded: bool,
    /// What came meanwhile.
    pub(crate) backlog: VecDeque<ClientMessage>,
    pub(crate) futures: IndexMap<usize, Future>,
    /// Tasks whose futures have been cancelled at some time.
    pub(crate) cancelled: BTreeSet<usize>,
    /// Of those, the ones that it cancelled itself, unless others want them.
    pub(crate) unforced: BTreeSet<usize>,
    /// The run that this is the client of: worker, key, number of the run, what it waits for.
    run: Option<(usize, Key, u64, usize)>,
}

/// How a future is, as its client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Future {
    Pending,
    Finished,
    Lost,
    Erred,
    Cancelled,
}

impl Future {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Finished => "finished",
            Self::Lost => "lost",
            Self::Erred => "error",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn is_over(self) -> bool {
        match self {
            Self::Finished | Self::Erred | Self::Cancelled => true,
            Self::Pending | Self::Lost => false,
        }
    }
}

impl Cluster<'_> {
    /// A client comes.
    pub(crate) fn connect(&mut self, seat: usize, run: Option<(usize, Key, u64, usize)>) -> usize {
        let number = self.clients.len();
        let name: Arc<str> = format!("client-{number}").into();
        let link = |kind| Link::new(self.plan.seed, &[CLIENT_LINKS + number as u64, kind]);
        self.clients.push(Client {
            name: name.clone(),
            id: None,
            up: link(0),
            down: link(1),
            has_left: false,
            is_gone: false,
            is_blocked: false,
            is_expanded: false,
            backlog: VecDeque::new(),
            futures: IndexMap::new(),
            cancelled: BTreeSet::new(),
            unforced: BTreeSet::new(),
            run,
        });
        if self.clients[number].run.is_none() {
            self.seats[seat] = Some(number);
        }
        self.scheduler_event(Event::AddClient {
            name: name.clone(),
            versions: Value::Nil,
        });
        let id = self.scheduler.core.client_id(&name);
        let id = id.expect("a client is known at once");
        self.clients[number].id = Some(id);
        self.clients_by_id.insert(id, number);
        number
    }

    /// A client closes its stream.
    pub(crate) fn disconnect(&mut self, client: usize) {
        let node = &mut self.clients[client];
        if node.has_left {
            return;
        }
        node.has_left = true;
        let at = node.up.arrival(self.agenda.now, &self.plan.settings);
        self.agenda.at(at, Happening::ClientGone { client });
        if let Some(seat) = self.seats.iter().position(|&seat| seat == Some(client)) {
            self.seats[seat] = None;
        }
    }

    pub(crate) fn client_gone(&mut self, client: usize) {
        let node = &mut self.clients[client];
        node.up.on_its_way -= 1;
        node.is_gone = true;
        let Some(id) = node.id.take() else {
            return;
        };
        node.backlog.clear();
        self.clients_by_id.shift_remove(&id);
        let stimulus_id = self.stimulus("remove-client").into();
        self.scheduler_event(Event::RemoveClient {
            client: id,
            stimulus_id,
        });
    }

    /// On the stream from a client to the scheduler.
    pub(crate) fn say(&mut self, client: usize, message: ClientMessage) {
        let link = &mut self.clients[client].up;
        let at = link.arrival(self.agenda.now, &self.plan.settings);
        self.agenda
            .at(at, Happening::FromClient { client, message });
    }

    pub(crate) fn submit(&mut self, client: usize, submission: Submission) {
        let futures = &mut self.clients[client].futures;
        for &task in &submission.wanted {
            let future = futures.entry(task).or_insert(Future::Pending);
            if *future != Future::Finished {
                *future = Future::Pending;
            }
        }
        self.say(client, ClientMessage::UpdateGraph(submission));
    }

    pub(crate) fn release(&mut self, client: usize, tasks: &[usize]) {
        let futures = &mut self.clients[client].futures;
        let released: Vec<usize> = tasks
            .iter()
            .copied()
            .filter(|task| futures.shift_remove(task).is_some())
            .collect();
        if released.is_empty() {
            return;
        }
        let event = Event::ClientReleasesKeys {
            client: self.clients[client].name.clone(),
            keys: self.keys_of(&released),
            stimulus_id: self.stimulus("client-releases-keys").into(),
        };
        self.say(client, ClientMessage::Event(event));
    }

    pub(crate) fn cancel(&mut self, client: usize, tasks: &[usize], force: bool) {
        let node = &mut self.clients[client];
        for task in tasks {
            if let Some(future) = node.futures.get_mut(task) {
                *future = Future::Cancelled;
            }
        }
        node.cancelled.extend(tasks);
        if !force {
            node.unforced.extend(tasks);
        }
        let Some(id) = node.id else {
            return;
        };
        let event = Event::CancelKeys {
            client: id,
            keys: self.keys_of(tasks),
            force,
            reason: Value::from("because"),
            msg: Value::Nil,
            stimulus_id: self.stimulus("cancel-keys").into(),
        };
        self.say(client, ClientMessage::Event(event));
    }

    pub(crate) fn fire_and_forget(&mut self, client: usize, tasks: &[usize]) {
        let event = Event::ClientDesiresKeys {
            client: "fire-and-forget".into(),
            keys: self.keys_of(tasks),
        };
        self.say(client, ClientMessage::Event(event));
        self.release(client, tasks);
    }

    /// Lets go of what `fire-and-forget` holds although it is over: what had been done or
    /// had failed when it was fired, which stock keeps as well.
    pub(crate) fn forget_forgotten(&mut self) {
        let keys = self.keys.clone();
        let stimulus_id = self.stimulus("client-releases-keys").into();
        self.scheduler_event(Event::ClientReleasesKeys {
            client: "fire-and-forget".into(),
            keys,
            stimulus_id,
        });
    }

    /// A value that a client put on a worker is there.
    pub(crate) fn scattered(&mut self, client: usize, task: usize, holder: &str) {
        if self.clients[client].has_left {
            return;
        }
        let key = self.keys[task].clone();
        let event = Event::UpdateData {
            client: Some(self.clients[client].name.clone()),
            who_has: vec![(key.clone(), vec![Str::from(holder)])],
            nbytes: vec![(key, self.plan.tasks[task].nbytes)],
            stimulus_id: self.stimulus("update-data").into(),
        };
        self.clients[client].futures.insert(task, Future::Finished);
        self.say(client, ClientMessage::Event(event));
    }

    pub(crate) fn client_hears(&mut self, client: usize, message: ToClient) {
        let node = &mut self.clients[client];
        node.down.on_its_way -= 1;
        if node.has_left {
            return;
        }
        let mut changed = Vec::new();
        let mut failure = None;
        match message {
            ToClient::KeyInMemory { key, .. } => changed.push((key, Future::Finished)),
            ToClient::LostData { key } => changed.push((key, Future::Lost)),
            ToClient::TaskErred { key, exception, .. } => {
                failure = Some((key.clone(), exception));
                changed.push((key, Future::Erred));
            }
            ToClient::TaskRetried { key } => changed.push((key, Future::Pending)),
            ToClient::CancelledKeys { keys, .. } => {
                changed.extend(keys.into_iter().map(|key| (key, Future::Cancelled)));
            }
            ToClient::Restart => {
                for (&task, future) in &mut node.futures {
                    node.cancelled.insert(task);
                    *future = Future::Cancelled;
                }
            }
            ToClient::Event { .. } | ToClient::AdjustHeartbeatInterval { .. } => {}
        }
        if let Some((key, exception)) = failure {
            self.check_cause(&key, &exception);
        }
        for (key, state) in changed {
            let number = self.number(&key);
            let node = &mut self.clients[client];
            if state == Future::Cancelled {
                node.cancelled.insert(number);
            }
            if let Some(future) = node.futures.get_mut(&number) {
                *future = state;
            }
        }
        self.tell_run(client);
    }

    // Tasks that submit.

    pub(crate) fn submit_from_task(&mut self, worker: usize, key: &Key, token: u64) {
        let tasks = self.plan.tasks[self.number(key)].submits.clone();
        let Some(&wanted) = tasks.last() else {
            return;
        };
        let client = self.connect(0, Some((worker, key.clone(), token, wanted)));
        let submission = Submission {
            tasks,
            wanted: vec![wanted],
            expansion: Expansion::Pickles,
            submitting_task: Some(key.clone()),
        };
        self.submit(client, submission);
    }

    /// The client of a run tells it how what it submitted ended.
    fn tell_run(&mut self, client: usize) {
        let node = &self.clients[client];
        let Some((worker, key, token, wanted)) = node.run.clone() else {
            return;
        };
        let future = node.futures.get(&wanted).copied();
        if let Some(future) = future.filter(|future| future.is_over()) {
            self.disconnect(client);
            self.submitted_done(worker, &key, token, future == Future::Finished);
        }
    }

    /// The worker of a run is dead, and so is the run's client.
    pub(crate) fn abandon_submitted(&mut self, worker: usize, key: &Key, token: u64) {
        let client = self.clients.iter().position(|client| {
            client
                .run
                .as_ref()
                .is_some_and(|(on, of, run, _)| *on == worker && of == key && *run == token)
        });
        if let Some(client) = client {
            self.disconnect(client);
        }
    }
}
