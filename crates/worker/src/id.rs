//! Dense ids, and the reason that every instruction carries.

use std::fmt;
use std::sync::Arc;

use oxidask_wire::Str;

/// A dense id: an index into one of the worker's tables.
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
    /// A task known to the worker. Reused once the task is forgotten, so an id
    /// kept across events has to be checked against the task's key.
    TaskId
}
id! {
    /// Another worker. Reused once nothing is known about its holder any more.
    PeerId
}

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
