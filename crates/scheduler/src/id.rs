//! Dense ids and the small enums that every message carries.

use std::fmt;
use std::sync::Arc;

use oxidask_wire::{Str, Value};

/// A dense id: an index into one of the scheduler's tables.
pub trait Id: Copy + Eq + Ord + fmt::Debug {
    /// The id at this index.
    fn from_index(index: u32) -> Self;
    /// The index of this id.
    fn index(self) -> u32;
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(pub u32);

        impl Id for $name {
            fn from_index(index: u32) -> Self {
                Self(index)
            }

            fn index(self) -> u32 {
                self.0
            }
        }
    };
}

id! {
    /// A task known to the scheduler. Reused once the task is forgotten, so an
    /// id kept across events has to be checked against the task's key.
    TaskId
}
id! {
    /// A worker. Never reused: a worker that comes back is a new one.
    WorkerId
}
id! {
    /// A client, internal ones such as `fire-and-forget` included. Never reused.
    ClientId
}
id! {
    /// A `TaskGroup`. Reused once the group is forgotten and no other group depends on it.
    GroupId
}
id! {
    /// A `TaskPrefix`.
    PrefixId
}

/// A task that may be forgotten when it is looked at again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskRef {
    pub(crate) task: TaskId,
    /// Tells it from the next task of the same id.
    pub(crate) birth: u32,
}

/// A request whose answer may come later, numbered by the shell.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RequestId(pub u64);

/// Why something happens: the text that follows a stimulus from peer to peer.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StimulusId(Arc<str>);

impl StimulusId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for StimulusId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl fmt::Display for StimulusId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for StimulusId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for StimulusId {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&Str> for StimulusId {
    fn from(text: &Str) -> Self {
        Self(text.as_str().into())
    }
}

impl From<&StimulusId> for Value {
    fn from(stimulus_id: &StimulusId) -> Self {
        Value::from(stimulus_id.as_str())
    }
}

/// The status of a server, `distributed.core.Status`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[allow(
    missing_docs,
    reason = "the variants are the names that Dask gives them"
)]
pub enum Status {
    Undefined,
    Created,
    Init,
    Starting,
    Running,
    Paused,
    Stopping,
    Stopped,
    Closing,
    ClosingGracefully,
    Closed,
    Failed,
    DontReply,
}

impl Status {
    const ALL: [Self; 13] = [
        Self::Undefined,
        Self::Created,
        Self::Init,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Closing,
        Self::ClosingGracefully,
        Self::Closed,
        Self::Failed,
        Self::DontReply,
    ];

    /// Python's name of the member.
    pub fn name(self) -> &'static str {
        match self {
            Self::Undefined => "undefined",
            Self::Created => "created",
            Self::Init => "init",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Closing => "closing",
            Self::ClosingGracefully => "closing_gracefully",
            Self::Closed => "closed",
            Self::Failed => "failed",
            Self::DontReply => "dont_reply",
        }
    }

    /// The status with this Python name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
