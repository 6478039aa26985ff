//! The way back to a worker for its executor.

use std::sync::Arc;

use oxidask_comm::Address;
use oxidask_wire::{Key, Map, Str, Value};

use super::executor::{Datum, Input, Outcome};
use super::settings::Settings;
use super::shell::{Report, ShellHandle};

/// A running worker, as its executor sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    pub(super) shell: ShellHandle,
}

impl WorkerHandle {
    /// Tasks are done. Never waits: there are at most as many reports as tasks
    /// that run.
    pub fn executed(&self, outcomes: Vec<(Key, Outcome)>) {
        self.shell.report(Report::Executed(outcomes));
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

    /// Begins the shutdown.
    pub fn close(&self, reason: &str) {
        self.shell.close(reason, true);
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
