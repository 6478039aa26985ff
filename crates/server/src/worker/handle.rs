//! The way back to a worker for its executor.

use std::sync::Arc;

use oxidask_comm::Address;
use oxidask_wire::{Key, Map, Str, Value};
use oxidask_worker::Event;

use super::executor::{Datum, Executed, Input};
use super::rpc;
use super::settings::Settings;
use super::shell::{Closing, Report, ShellHandle, Stimulus, insertion, stimulus_id};
use super::status::Status;
use crate::logging::LogRecord;

/// A running worker, as its executor sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    pub(super) shell: ShellHandle,
}

impl WorkerHandle {
    /// A task is done. Never waits: there are at most as many reports as tasks
    /// that run and that were lent.
    pub fn executed(&self, executed: Executed) {
        self.shell.report(Report::Executed(executed));
    }

    /// What was reported is not to wait any longer.
    pub fn wake(&self) {
        self.shell.wake();
    }

    /// A task called `secede()` after so many seconds.
    pub fn seceded(&self, key: Key, compute_duration: f64, stimulus_id: Option<Str>) {
        self.shell.report(Report::Seceded {
            key,
            compute_duration,
            stimulus_id,
        });
    }

    /// What a task leaves for the scheduler, a map: `TaskState.metadata` in distributed.
    pub fn set_metadata(&self, key: Key, metadata: Map) {
        self.shell.report(Report::Metadata { key, metadata });
    }

    /// Adds to a figure of the next heartbeat. `Server.digest_metric` in distributed.
    pub fn digest_metric(&self, name: Value, amount: f64) {
        self.shell.report(Report::Digest { name, amount });
    }

    /// Publishes an event on one topic or several. `Worker.log_event` in distributed.
    pub fn log_event(&self, topic: Value, message: Value) {
        self.shell.report(Report::LogEvent { topic, message });
    }

    /// Keeps a record that the executor has logged for `get_logs`.
    pub fn keep_log(&self, record: LogRecord) {
        self.settings().logs.keep(record);
    }

    /// Changes the totals of some resources; the caller tells the scheduler.
    /// `Worker.set_resources` in distributed.
    pub async fn set_resources(&self, resources: Vec<(Arc<str>, f64)>) {
        let set = self
            .shell
            .call(move |shell| shell.core.set_resources(&resources));
        // Without a shell no task needs any.
        let _ = set.await;
    }

    /// Sends a message of an executor's own on the stream to the scheduler.
    /// `Worker.batched_send` in distributed.
    pub fn send(&self, message: Map) {
        self.shell.report(Report::Message(message));
    }

    /// Begins the shutdown.
    pub fn close(&self, reason: &str) {
        self.shell.close(reason, true);
    }

    /// Begins the shutdown. `nanny`: it shall not start another worker;
    /// `executor_wait`: running tasks may end.
    pub fn close_as(&self, reason: &str, nanny: bool, executor_wait: bool) {
        self.shell
            .close_as(Closing::new(reason, nanny, executor_wait));
    }

    /// Lets the scheduler move the data away, then begins the shutdown; the nanny
    /// starts another worker if `restart`. `Worker.close_gracefully` in distributed.
    pub async fn close_gracefully(&self, restart: bool, reason: &str) {
        self.shell.close_gracefully(restart, reason).await;
    }

    /// In which part of its life the worker is.
    pub async fn status(&self) -> Status {
        let status = self.shell.call(|shell| shell.status).await;
        status.unwrap_or(Status::Closed)
    }

    /// Takes a status and tells the scheduler.
    pub async fn set_status(&self, status: Status) {
        // Without a shell there is nobody to tell.
        let _ = self.shell.call(move |shell| shell.set_status(status)).await;
    }

    /// Calls [`Executor::transition`](super::Executor::transition) from now on, or not
    /// any more.
    pub async fn set_wants_transitions(&self, wants: bool) {
        let set = self
            .shell
            .call(move |shell| shell.core.set_notifies_transitions(wants));
        // Without a shell there are no transitions.
        let _ = set.await;
    }

    /// Keeps values that a task gives. `Worker.update_data` in distributed.
    pub async fn update_data(&self, data: Vec<(Key, Arc<Datum>)>) {
        let event = Event::UpdateData {
            data: data
                .iter()
                .map(|(key, datum)| (key.clone(), insertion(datum)))
                .collect(),
        };
        let mut stimulus = Stimulus::new(stimulus_id("update-data"), event);
        stimulus.values.extend(data);
        // The caller may use them as soon as this returns, unless the worker closes.
        let _ = self.shell.arrive(stimulus).await;
    }

    /// What is known of a task, for people.
    pub async fn task(&self, key: Key) -> Option<Map> {
        let task = self.shell.call(move |shell| {
            let ts = shell.core.find_task(&key)?;
            Some(rpc::task(shell, ts))
        });
        task.await.ok()?
    }

    /// Keys of all tasks.
    pub async fn task_keys(&self) -> Vec<Key> {
        let keys = self.shell.call(|shell| {
            let keys = shell.core.tasks().map(|(_, ts)| ts.key.clone());
            keys.collect()
        });
        keys.await.unwrap_or_default()
    }

    /// Numbers of tasks by state. `WorkerState.task_counter` in distributed.
    pub async fn task_counts(&self) -> Vec<(&'static str, usize)> {
        let counts = self.shell.call(|shell| {
            let mut counts: Vec<(&'static str, usize)> = Vec::new();
            for (_, ts) in shell.core.tasks() {
                let state = ts.state.name();
                match counts.iter_mut().find(|(name, _)| *name == state) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((state, 1)),
                }
            }
            counts
        });
        counts.await.unwrap_or_default()
    }

    /// A value or actor that is here; what was spilled is read.
    pub async fn data(&self, key: Key) -> Option<Arc<Datum>> {
        let wanted = self.shell.call(move |shell| shell.get(&key)).await;
        match wanted.ok()?.arrived().await? {
            Input::Value(datum) | Input::Actor(datum) => Some(datum),
        }
    }

    /// Keys of all values that are here.
    pub async fn keys(&self) -> Vec<Key> {
        let keys = self
            .shell
            .call(|shell| shell.store.keys().cloned().collect());
        keys.await.unwrap_or_default()
    }

    /// Asks `op` of a server over pooled connections. An answer that reports an
    /// error is a value like any other.
    ///
    /// # Errors
    /// A server that cannot be reached.
    pub async fn request(
        &self,
        address: &Address,
        op: &str,
        fields: Map,
    ) -> oxidask_comm::Result<Value> {
        self.shell.request(address, op, fields).await
    }

    /// The address that others know it by.
    pub fn address(&self) -> &str {
        &self.settings().address
    }

    /// Its name.
    pub fn name(&self) -> &Value {
        &self.settings().name
    }

    /// Its id, such as `Worker-5f…`.
    pub fn id(&self) -> &str {
        &self.settings().id
    }

    /// The scheduler's address.
    pub fn scheduler(&self) -> &Address {
        &self.settings().scheduler
    }

    /// What it was started with.
    pub fn options(&self) -> &super::WorkerOptions {
        &self.settings().options
    }

    fn settings(&self) -> &Settings {
        &self.shell.settings
    }
}
