//! One client as the scheduler sees it.

use std::sync::Arc;

use oxidask_wire::Value;

use crate::id::TaskId;
use crate::sets::IdSet;

/// Interest of tasks that nobody holds a future of (`fire_and_forget`).
pub const FIRE_AND_FORGET: &str = "fire-and-forget";

/// A client, or an internal holder of interest such as `fire-and-forget`.
#[derive(Clone, Debug)]
pub struct ClientState {
    /// The name it gave itself, `client_key` in Dask.
    pub name: Arc<str>,
    /// Has a stream; internal ones do not.
    pub connected: bool,
    /// Keys it wants.
    pub wants_what: IdSet<TaskId>,
    /// Its packages.
    pub versions: Value,
    /// When it was last heard of, in seconds since the epoch.
    pub last_seen: f64,
}

impl ClientState {
    pub(crate) fn new(name: Arc<str>, now: f64) -> Self {
        Self {
            name,
            connected: false,
            wants_what: IdSet::default(),
            versions: Value::Nil,
            last_seen: now,
        }
    }
}
