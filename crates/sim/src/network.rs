//! Virtual time, and connections that keep the order of what is sent on them.

use std::collections::BTreeMap;

use crate::plan::{Micros, Settings};
use crate::random::{Random, hash};

/// What will happen, in order of time; at the same time, in the order of sending.
#[derive(Debug)]
pub(crate) struct Agenda<T> {
    pub(crate) now: Micros,
    entries: BTreeMap<(Micros, u64), T>,
    sequence: u64,
}

impl<T> Agenda<T> {
    pub(crate) fn new() -> Self {
        Self {
            now: 0,
            entries: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// Has something happen at this time, or now if that is over.
    pub(crate) fn at(&mut self, at: Micros, what: T) {
        self.sequence += 1;
        self.entries.insert((at.max(self.now), self.sequence), what);
    }

    /// Has something happen after so much time.
    pub(crate) fn after(&mut self, time: Micros, what: T) {
        self.at(self.now + time, what);
    }

    /// What happens next; the time is then.
    pub(crate) fn next(&mut self) -> Option<T> {
        let ((at, _), what) = self.entries.pop_first()?;
        self.now = at;
        Some(what)
    }
}

/// One direction of a connection.
#[derive(Debug)]
pub(crate) struct Link {
    random: Random,
    last: Micros,
    /// Sent, not arrived.
    pub(crate) on_its_way: u32,
}

impl Link {
    /// The link with this number has delays of its own.
    pub(crate) fn new(seed: u64, number: &[u64]) -> Self {
        Self {
            random: Random::new(hash(&[seed, hash(number)])),
            last: 0,
            on_its_way: 0,
        }
    }

    /// When a message sent now arrives: after those sent before.
    pub(crate) fn arrival(&mut self, now: Micros, settings: &Settings) -> Micros {
        self.on_its_way += 1;
        self.last = self.last.max(now + self.delay(settings));
        self.last
    }

    /// How long a message takes that goes by a connection of its own.
    pub(crate) fn delay(&mut self, settings: &Settings) -> Micros {
        let delay = self.random.between(settings.delay_min, settings.delay_max);
        if self.random.chance(settings.late_percent) {
            delay + self.random.below(settings.late_max)
        } else {
            delay
        }
    }
}
