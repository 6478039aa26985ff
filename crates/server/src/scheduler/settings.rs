//! What a running scheduler needs to know of its options.

use std::collections::HashSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use oxidask_scheduler as core;
use oxidask_wire::{Map, Str, Value};

use super::args::Args;
use super::memory_policies::MemoryPolicies;
use super::shell::ShellHandle;
use crate::graph_helper;
use crate::logging::Logs;
use crate::versions::{PeerVersions, VersionsInfo, WorkerVersions};

/// Fixed once the scheduler listens.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Values of the core.
    pub(crate) core: core::Config,
    /// `distributed.adaptive.target-duration`, in seconds.
    pub(crate) adaptive_target_duration: f64,
    /// `distributed.worker.memory.rebalance`.
    pub(crate) rebalance: core::rebalance::RebalanceConfig,
    /// Policies of the active memory manager that are Python's.
    pub(crate) memory_policies: Option<MemoryPolicies>,
    /// `distributed.scheduler.blocked-handlers`.
    pub(crate) blocked_handlers: HashSet<String>,
    /// Most bytes that may wait for a slow worker or client.
    pub(crate) stream_nbytes_max: usize,
    /// Unique id of this server.
    pub(crate) id: String,
    /// The process' log, for `get_logs`.
    pub(crate) logs: Logs,
    /// Address that peers are told, and ports of services.
    pub(crate) contact: OnceLock<Contact>,
    /// What is known of this side's packages; asked of the helper once.
    pub(crate) versions: Mutex<VersionsInfo>,
}

/// Where the scheduler can be reached.
#[derive(Debug)]
pub(crate) struct Contact {
    pub(crate) address: String,
    pub(crate) dashboard_port: Option<u16>,
}

impl Settings {
    /// The address that peers are told.
    pub(crate) fn address(&self) -> &str {
        self.contact.get().map_or("", |contact| &contact.address)
    }

    /// `{"dashboard": port}`.
    pub(crate) fn services(&self) -> Map {
        let mut services = Map::new();
        if let Some(port) = self
            .contact
            .get()
            .and_then(|contact| contact.dashboard_port)
        {
            services.push("dashboard", port);
        }
        services
    }

    fn known_versions(&self) -> VersionsInfo {
        self.versions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes over what the helper's interpreter reports once it is up.
    pub(super) async fn learn_versions(&self, helpers: &graph_helper::Pool) {
        let reported = helpers
            .versions()
            .await
            .as_ref()
            .and_then(VersionsInfo::from_helper);
        if let Some(reported) = reported {
            *self.versions.lock().unwrap_or_else(PoisonError::into_inner) = reported;
        }
    }

    /// The reply to `versions`: waits for the helper, which is there within a second.
    pub(crate) async fn versions(&self, helpers: &graph_helper::Pool, mut args: Args) -> Value {
        if !self.known_versions().is_complete() {
            self.learn_versions(helpers).await;
        }
        let packages = args.optional("packages");
        let extra: Vec<&str> = packages
            .as_array()
            .unwrap_or_default()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        self.known_versions().to_value(&extra)
    }

    /// The warning about a peer's versions, empty if there is none.
    pub(super) async fn version_warning(
        &self,
        shell: &ShellHandle,
        peer: &Value,
        source: Option<&Str>,
    ) -> String {
        let workers = shell.call(|shell| {
            let mut versions = WorkerVersions::default();
            for (_, worker) in shell.core.workers() {
                versions.add(&PeerVersions::from_value(Some(&worker.versions)));
            }
            versions
        });
        let Ok(workers) = workers.await else {
            return String::new();
        };
        let source = source.map_or("Client", Str::as_str);
        self.known_versions().mismatch_warning(
            &workers,
            &PeerVersions::from_value(Some(peer)),
            source,
        )
    }
}
