//! The last transitions and what led to them, for `story`.

use std::collections::VecDeque;
use std::sync::Arc;

use oxidask_wire::Key;

use crate::id::StimulusId;
use crate::task::State;

/// Keys and recommendations kept per record: a fan of a million dependents must
/// not fill the log with a million entries.
const DETAILS_MAX: usize = 1000;

/// An entry of `WorkerState.log` in distributed.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What happened.
    pub what: Happening,
    /// Why.
    pub stimulus_id: StimulusId,
    /// When, in seconds since the epoch.
    pub timestamp: f64,
}

/// What a [`Record`] tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Happening {
    /// A transition.
    Transition {
        /// Of which task.
        key: Key,
        /// From where.
        start: State,
        /// Where it was to go.
        finish: State,
        /// Where it is now.
        reached: State,
        /// What it recommended, at most a thousand.
        recommendations: Vec<(Key, State)>,
    },
    /// Something else about one task.
    Task {
        /// Which.
        key: Key,
        /// What, in Dask's words: `compute-task`, `put-in-memory`, …
        action: &'static str,
        /// The state at that moment, where Dask records it.
        state: Option<State>,
    },
    /// Something about several tasks: `free-keys`.
    Tasks {
        /// What, in Dask's words.
        action: &'static str,
        /// Which, at most a thousand.
        keys: Vec<Key>,
    },
    /// A transfer: `gather-dependencies`, and what the shell records about it.
    Transfer {
        /// What, in Dask's words.
        action: &'static str,
        /// From whom.
        worker: Arc<str>,
        /// Which tasks, at most a thousand.
        keys: Vec<Key>,
    },
}

impl Happening {
    fn mentions(&self, wanted: &Key) -> bool {
        match self {
            Self::Transition {
                key,
                recommendations: _,
                ..
            }
            | Self::Task { key, .. } => key == wanted,
            Self::Tasks { keys, .. } | Self::Transfer { keys, .. } => keys.contains(wanted),
        }
    }
}

/// A ring of records.
#[derive(Debug)]
pub(crate) struct Story {
    ring: VecDeque<Record>,
    length_max: usize,
}

impl Story {
    pub(crate) fn new(length_max: usize) -> Self {
        Self {
            ring: VecDeque::new(),
            length_max,
        }
    }

    pub(crate) fn push(&mut self, mut what: Happening, stimulus_id: &StimulusId, timestamp: f64) {
        if self.length_max == 0 {
            return;
        }
        if self.ring.len() == self.length_max {
            self.ring.pop_front();
        }
        match &mut what {
            Happening::Tasks { keys, .. } | Happening::Transfer { keys, .. } => {
                keys.truncate(DETAILS_MAX);
            }
            Happening::Transition {
                recommendations, ..
            } => recommendations.truncate(DETAILS_MAX),
            Happening::Task { .. } => {}
        }
        self.ring.push_back(Record {
            what,
            stimulus_id: stimulus_id.clone(),
            timestamp,
        });
    }

    /// All records, oldest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Record> {
        self.ring.iter()
    }

    /// The records about any of these keys or stimuli, oldest first.
    pub(crate) fn of(&self, keys: &[Key], stimuli: &[StimulusId]) -> Vec<Record> {
        let is_wanted = |record: &&Record| {
            stimuli.contains(&record.stimulus_id)
                || keys.iter().any(|key| record.what.mentions(key))
        };
        self.ring.iter().filter(is_wanted).cloned().collect()
    }
}
