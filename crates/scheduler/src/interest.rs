//! What clients want.

use std::sync::Arc;

use hashbrown::HashSet;
use oxidask_wire::{Key, Map, Value};

use crate::client::ClientState;
use crate::failure::key_error_reply;
use crate::id::{ClientId, RequestId, TaskId, TaskRef};
use crate::instruction::{Instruction, Instructions, Level, ToClient};
use crate::scheduler::{Cx, Scheduler};
use crate::task::State;
use crate::transitions::released::erred_message;

impl Scheduler {
    pub(crate) fn add_client(
        &mut self,
        now: f64,
        name: Arc<str>,
        versions: Value,
        out: &mut Instructions,
    ) {
        out.push(Instruction::Log {
            level: Level::Info,
            text: format!("Receive client connection: {name}"),
        });
        out.push(client_event("add-client", &name));
        let adopted = self
            .clients
            .find(&name)
            .filter(|&client| !self.clients[client].connected && client != self.fire_and_forget);
        let client = match adopted {
            Some(client) => client,
            None => self.clients.insert(ClientState::new(name, now)),
        };
        let cs = &mut self.clients[client];
        cs.connected = true;
        cs.versions = versions;
        cs.last_seen = now;
        self.clients_added_total += 1;
    }

    pub(crate) fn remove_client(&mut self, client: ClientId, cx: &mut Cx<'_>) {
        let Some(cs) = self.clients.get_mut(client) else {
            return;
        };
        if client == self.fire_and_forget {
            return;
        }
        cs.connected = false;
        let name = cs.name.clone();
        let wanted: Vec<TaskId> = cs.wants_what.iter().collect();
        cx.log(Level::Info, format!("Remove client {name}"));
        cx.out.push(client_event("remove-client", &name));
        self.abandon_graphs(client);
        self.drop_interests(client, &wanted, cx);
        self.clients.remove(client);
        self.queue_slots_maybe_opened(cx);
        self.clients_removed_total += 1;
    }

    pub(crate) fn client_heartbeat(&mut self, now: f64, client: ClientId, out: &mut Instructions) {
        let count = self.clients.len();
        if let Some(cs) = self.clients.get_mut(client) {
            cs.last_seen = now;
            let interval = 10.0 * Self::heartbeat_interval(count);
            self.tell_client(client, ToClient::AdjustHeartbeatInterval { interval }, out);
        }
    }

    /// The client of this name, made if there is none (publish, queues, variables).
    fn internal_client(&mut self, now: f64, name: &Arc<str>) -> ClientId {
        match self.clients.find(name) {
            Some(client) => client,
            None => self.clients.insert(ClientState::new(name.clone(), now)),
        }
    }

    pub(crate) fn client_desires_keys(
        &mut self,
        now: f64,
        name: &Arc<str>,
        keys: &[Key],
        out: &mut Instructions,
    ) {
        let client = self.internal_client(now, name);
        for key in keys {
            match self.tasks.find(key) {
                Some(task) => self.add_interest(client, task, out),
                None => out.push(Instruction::Log {
                    level: Level::Warning,
                    text: format!("Client '{name}' desires key {key:?} but key is unknown."),
                }),
            }
        }
        self.drop_idle_client(client);
    }

    /// The client wants the task; it hears at once if that is done or failed.
    pub(crate) fn add_interest(&mut self, client: ClientId, task: TaskId, out: &mut Instructions) {
        self.tasks[task].who_wants.insert(client);
        self.clients[client].wants_what.insert(task);
        if matches!(self.tasks[task].state, State::Memory | State::Erred) {
            self.report_task(task, Some(client), out);
        }
    }

    /// The client no longer wants the task; what follows is left recommended.
    pub(crate) fn drop_interest(&mut self, client: ClientId, task: TaskId) {
        if self.clients[client].wants_what.remove(task) {
            self.tasks[task].who_wants.remove(client);
            self.let_go(task);
        }
    }

    /// Somebody who held on to the task does not any more; what follows is left recommended.
    pub(crate) fn let_go(&mut self, task: TaskId) {
        let ts = &self.tasks[task];
        if ts.is_wanted() {
            return;
        }
        if ts.dependents.is_empty() {
            self.recommend(task, State::Forgotten);
        } else if ts.state != State::Erred && ts.waiters.is_empty() {
            self.recommend(task, State::Released);
        }
    }

    /// Internal clients come and go with what they want.
    pub(crate) fn drop_idle_client(&mut self, client: ClientId) {
        let is_idle = self
            .clients
            .get(client)
            .is_some_and(|cs| !cs.connected && cs.wants_what.is_empty());
        if is_idle && client != self.fire_and_forget {
            self.clients.remove(client);
        }
    }

    pub(crate) fn client_releases_keys(&mut self, name: &str, keys: &[Key], cx: &mut Cx<'_>) {
        if let Some(client) = self.clients.find(name) {
            self.release_interest(client, keys, cx);
        }
    }

    pub(crate) fn client_releases_tasks(&mut self, name: &str, tasks: &[TaskRef], cx: &mut Cx<'_>) {
        let Some(client) = self.clients.find(name) else {
            return;
        };
        let tasks: Vec<TaskId> = tasks
            .iter()
            .filter_map(|&name| self.tasks.resolve(name))
            .collect();
        self.release_tasks(client, &tasks, cx);
    }

    /// Drops a client's interest in keys, with all that follows.
    pub(crate) fn release_interest(&mut self, client: ClientId, keys: &[Key], cx: &mut Cx<'_>) {
        if self.clients.get(client).is_none() {
            return;
        }
        let tasks: Vec<TaskId> = keys.iter().filter_map(|key| self.tasks.find(key)).collect();
        self.release_tasks(client, &tasks, cx);
    }

    fn release_tasks(&mut self, client: ClientId, tasks: &[TaskId], cx: &mut Cx<'_>) {
        self.drop_interests(client, tasks, cx);
        self.queue_slots_maybe_opened(cx);
        self.drop_idle_client(client);
    }

    /// Reports a task in memory or erred to everybody who wants it, and to `client` in any case.
    pub(crate) fn report_task(
        &self,
        task: TaskId,
        client: Option<ClientId>,
        out: &mut Instructions,
    ) {
        let ts = &self.tasks[task];
        let make = || match ts.state {
            State::Memory => Some(ToClient::KeyInMemory {
                key: ts.key.clone(),
                r#type: None,
                workers: None,
            }),
            State::Erred => Some(erred_message(ts)),
            State::Released
            | State::Waiting
            | State::NoWorker
            | State::Queued
            | State::Processing
            | State::Forgotten => None,
        };
        let others = ts.who_wants.iter().filter(|&other| Some(other) != client);
        for client in others.chain(client) {
            if let Some(message) = make() {
                self.tell_client(client, message, out);
            }
        }
    }

    pub(crate) fn report_key(&mut self, client: ClientId, key: Key, out: &mut Instructions) {
        match self.tasks.find(&key) {
            Some(task) => self.report_task(task, Some(client), out),
            None => {
                let message = ToClient::CancelledKeys {
                    keys: vec![key],
                    as_set: false,
                    reason: Value::Nil,
                    msg: Value::Nil,
                };
                self.tell_client(client, message, out);
            }
        }
    }

    /// Runs failed tasks again, beginning with those that failed first.
    ///
    /// Stock has tasks run again that have not failed, too. It takes their results away
    /// from workers that are about to use them.
    pub(crate) fn retry(
        &mut self,
        request: RequestId,
        client: Option<Arc<str>>,
        keys: Vec<Key>,
        cx: &mut Cx<'_>,
    ) {
        cx.log(
            Level::Info,
            format!(
                "Client {} requests to retry {} keys",
                client.as_deref().unwrap_or("None"),
                keys.len()
            ),
        );
        if let Some(client) = client {
            let mut message = Map::new();
            message.push("action", "retry");
            message.push("count", keys.len());
            cx.event([client], Value::Map(message));
        }
        let mut stack = Vec::with_capacity(keys.len());
        for key in &keys {
            let Some(task) = self.tasks.find(key) else {
                let result = Err(key_error_reply(key));
                cx.out.push(Instruction::Reply { request, result });
                return;
            };
            stack.push(task);
        }
        let mut seen = HashSet::<TaskId, foldhash::fast::FixedState>::default();
        let mut visited = Vec::new();
        let mut roots = Vec::new();
        while let Some(task) = stack.pop() {
            if !seen.insert(task) {
                continue;
            }
            visited.push(Value::Key(self.tasks[task].key.clone()));
            let before = stack.len();
            stack.extend(
                self.tasks[task]
                    .dependencies
                    .iter()
                    .filter(|&dependency| self.tasks[dependency].state == State::Erred),
            );
            if stack.len() == before && self.tasks[task].state == State::Erred {
                roots.push(task);
            }
        }
        for task in roots {
            self.recommend(task, State::Waiting);
        }
        self.transitions(cx);
        self.queue_slots_maybe_opened(cx);
        cx.out.push(Instruction::Reply {
            request,
            result: Ok(Value::Array(visited)),
        });
    }

    /// Cancels keys that nobody else wants (all, if forced), dependents first.
    ///
    /// Same as `stimulus_cancel`, one message per level of dependents included,
    /// except that a dependent nobody wants is passed over rather than an error,
    /// and that there is one event for all levels.
    pub(crate) fn cancel_keys(
        &mut self,
        client: ClientId,
        keys: Vec<Key>,
        force: bool,
        reason: &Value,
        msg: &Value,
        cx: &mut Cx<'_>,
    ) {
        let Some(cs) = self.clients.get(client) else {
            return;
        };
        let name = cs.name.clone();
        cx.log(
            Level::Info,
            format!("Client {name} requests to cancel {} keys", keys.len()),
        );
        let mut message = Map::new();
        message.push("action", "cancel");
        message.push("count", keys.len());
        message.push("force", force);
        cx.event([name], Value::Map(message));

        let mut visited: HashSet<Key> = HashSet::new();
        let mut levels = vec![CancelLevel::new(keys)];
        while let Some(level) = levels.last_mut() {
            if let Some(key) = level.awaiting.take() {
                cx.log(
                    Level::Info,
                    format!("Scheduler cancels key {key}.  Force={}", python_bool(force)),
                );
                if let Some(ts) = self.find_task(&key) {
                    if force {
                        level.clients.extend(ts.who_wants.iter());
                    } else {
                        level.clients.push(client);
                    }
                }
                level.cancelled.push(key);
                continue;
            }
            if let Some(key) = level.keys.next() {
                let Some(ts) = self.find_task(&key) else {
                    continue;
                };
                let is_own = ts.who_wants.len() == 1 && ts.who_wants.contains(client);
                // Forced, a key is cancelled whoever wants it, so each is visited once;
                // otherwise it is no longer wanted once it was cancelled.
                let is_due = if force {
                    visited.insert(key.clone())
                } else {
                    is_own
                };
                if !is_due {
                    continue;
                }
                let dependents: Vec<Key> = ts
                    .dependents
                    .iter()
                    .map(|dependent| self.tasks[dependent].key.clone())
                    .collect();
                level.awaiting = Some(key);
                if !dependents.is_empty() {
                    levels.push(CancelLevel::new(dependents));
                }
                continue;
            }
            let level = levels.pop().expect("the loop condition found one");
            let mut clients = level.clients;
            clients.sort_unstable();
            clients.dedup();
            for client in clients {
                self.release_interest(client, &level.cancelled, cx);
            }
            self.tell_all_clients(cx.out, || ToClient::CancelledKeys {
                keys: level.cancelled.clone(),
                as_set: false,
                reason: reason.clone(),
                msg: msg.clone(),
            });
        }
    }

    pub(crate) fn tell_all_clients(&self, out: &mut Instructions, make: impl Fn() -> ToClient) {
        for (client, cs) in self.clients.iter() {
            if cs.connected {
                out.push(Instruction::ToClient {
                    client,
                    message: make(),
                });
            }
        }
    }

    /// Releases every key of every client and forgets everything about tasks.
    pub(crate) fn restart(&mut self, cx: &mut Cx<'_>) {
        cx.log(
            Level::Info,
            format!(
                "Restarting workers and releasing all keys (stimulus_id='{}')",
                cx.stimulus_id
            ),
        );
        self.drop_pending_graphs();
        self.drop_lingering();
        let clients: Vec<ClientId> = self.clients.iter().map(|(client, _)| client).collect();
        for client in clients {
            let wanted: Vec<TaskId> = self.clients[client].wants_what.iter().collect();
            for task in wanted {
                self.drop_interest(client, task);
            }
            self.transitions(cx);
            self.queue_slots_maybe_opened(cx);
            self.drop_idle_client(client);
        }
        // Data nobody came to want, and tasks of graphs that were on their way.
        let left: Vec<TaskId> = self.tasks.iter().map(|(task, _)| task).collect();
        for task in left {
            self.recommend(task, State::Forgotten);
        }
        self.transitions(cx);

        self.erred_tasks.clear();
        self.computations.clear();
        self.groups.clear();
        self.busy_prefixes.clear();
        self.tell_all_clients(cx.out, || ToClient::Restart);
        cx.out.push(Instruction::Restarted);
    }
}

/// One level of a recursive cancellation.
struct CancelLevel {
    keys: std::vec::IntoIter<Key>,
    /// To be cancelled once its dependents are.
    awaiting: Option<Key>,
    cancelled: Vec<Key>,
    clients: Vec<ClientId>,
}

impl CancelLevel {
    fn new(keys: Vec<Key>) -> Self {
        Self {
            keys: keys.into_iter(),
            awaiting: None,
            cancelled: Vec::new(),
            clients: Vec::new(),
        }
    }
}

fn client_event(action: &str, name: &Arc<str>) -> Instruction {
    let mut message = Map::new();
    message.push("action", action);
    message.push("client", &**name);
    Instruction::LogEvent {
        topics: vec!["all".into(), name.clone()],
        message: Value::Map(message),
    }
}

fn python_bool(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}
