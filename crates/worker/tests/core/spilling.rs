//! Which values leave memory: by hand, and against a naive model under random use.

use std::collections::BTreeMap;

use oxidask_wire::Key;
use oxidask_worker::memory::{
    Buffer, Failure, Fetch, Limits, Restored, Spilled, Ticket, Verdict, Write,
};
use proptest::prelude::*;

fn limits(target: u64) -> Limits {
    Limits {
        target: Some(target),
        max_spill: None,
        writes_count_max: 2,
    }
}

fn key(name: &str) -> Key {
    Key::from(name)
}

/// Begins whatever may begin; the keys.
fn begin(buffer: &mut Buffer) -> Vec<Write> {
    std::iter::from_fn(|| buffer.next_write()).collect()
}

/// Writes whatever may be written, until nothing more wants to leave.
fn write_all(buffer: &mut Buffer) -> Vec<Key> {
    let mut written = Vec::new();
    while let Some(Write { key, ticket }) = buffer.next_write() {
        assert_eq!(
            buffer.prepared(Some(&key), ticket, 1),
            Verdict::Write,
            "nothing limits the disk"
        );
        assert!(buffer.written(&key, ticket));
        written.push(key);
    }
    written
}

#[test]
fn the_least_recently_used_leave_until_the_rest_fits() {
    let mut buffer = Buffer::new(limits(100));
    for name in ["a", "b", "c"] {
        buffer.insert(key(name), 30);
        assert!(write_all(&mut buffer).is_empty());
    }
    assert_eq!(buffer.fetch(&key("a")), Some(Fetch::Memory));
    buffer.insert(key("d"), 60);
    assert_eq!(write_all(&mut buffer), [key("b"), key("c")]);
    let spilled = Spilled {
        memory: 60,
        disk: 2,
    };
    assert_eq!(buffer.spilled(), spilled);
    // One comes back, another one goes.
    let Some(Fetch::Read(ticket)) = buffer.fetch(&key("b")) else {
        panic!("it is on disk");
    };
    assert_eq!(buffer.fetch(&key("b")), Some(Fetch::Wait(ticket)));
    assert_eq!(buffer.restored(&key("b"), ticket), Restored::Memory);
    assert_eq!(write_all(&mut buffer), [key("a")]);
    assert_eq!(buffer.memory(), 90);
    buffer.validate();
}

#[test]
fn what_is_larger_than_the_target_stays_on_disk() {
    let mut buffer = Buffer::new(limits(100));
    assert!(!buffer.is_heavy(100));
    assert!(buffer.is_heavy(101));
    let ticket = buffer.begin_direct();
    assert_eq!(buffer.prepared(None, ticket, 90), Verdict::Write);
    buffer.written_direct();
    buffer.insert_spilled(key("a"), ticket, 101);
    let Some(Fetch::Read(ticket)) = buffer.fetch(&key("a")) else {
        panic!("it is on disk");
    };
    assert_eq!(buffer.restored(&key("a"), ticket), Restored::Disk);
    assert!(matches!(buffer.fetch(&key("a")), Some(Fetch::Read(_))));
    buffer.validate();
}

#[test]
fn several_leave_at_a_time_but_not_more_than_need_be() {
    let mut buffer = Buffer::new(limits(100));
    for name in ["a", "b", "c", "d"] {
        buffer.insert(key(name), 50);
    }
    let writes = begin(&mut buffer);
    assert_eq!(writes.len(), 2);
    assert_eq!(buffer.leaving(), 100);
    assert_eq!((buffer.memory(), buffer.is_backlogged()), (200, true));
    buffer.failed(Some(&writes[0].key), writes[0].ticket, Failure::Unspillable);
    // The next one goes instead; that one is never tried again.
    let more = begin(&mut buffer);
    assert_eq!(more[0].key, key("c"));
    for write in writes[1..].iter().chain(&more) {
        buffer.prepared(Some(&write.key), write.ticket, 1);
        assert!(buffer.written(&write.key, write.ticket));
    }
    assert!(!buffer.is_backlogged());
    buffer.observe(100);
    assert_eq!(write_all(&mut buffer), [key("d")]);
    assert!(buffer.is_exhausted());
    assert_eq!(buffer.memory(), 50);
    buffer.validate();
}

#[test]
fn a_broken_disk_is_tried_again_less_and_less_often() {
    let mut buffer = Buffer::new(limits(10));
    for name in ["a", "b", "c"] {
        buffer.insert(key(name), 10);
    }
    for round in 0..20 {
        let writes = begin(&mut buffer);
        assert_eq!(writes.len(), if round == 0 { 2 } else { 1 });
        for write in writes {
            assert_eq!(
                buffer.prepared(Some(&write.key), write.ticket, 1),
                Verdict::Write
            );
            buffer.failed(Some(&write.key), write.ticket, Failure::Disk);
        }
        // Two have failed in the first round.
        for _ in 0..1 << (round + 1).min(8) {
            assert!(begin(&mut buffer).is_empty(), "round {round}");
            assert!(!buffer.is_heavy(11));
            buffer.observe(0);
        }
    }
    let writes = begin(&mut buffer);
    assert_eq!(writes.len(), 1, "one finds out");
    buffer.prepared(Some(&writes[0].key), writes[0].ticket, 1);
    assert!(buffer.written(&writes[0].key, writes[0].ticket));
    assert_eq!(begin(&mut buffer).len(), 1);
    buffer.validate();
}

#[test]
fn no_more_goes_to_disk_than_may() {
    let mut buffer = Buffer::new(Limits {
        max_spill: Some(15),
        ..limits(10)
    });
    for name in ["a", "b", "c"] {
        buffer.insert(key(name), 10);
    }
    let writes = begin(&mut buffer);
    assert_eq!(
        buffer.prepared(Some(&writes[0].key), writes[0].ticket, 10),
        Verdict::Write
    );
    // What is under way counts already.
    assert_eq!(
        buffer.prepared(Some(&writes[1].key), writes[1].ticket, 10),
        Verdict::Full
    );
    assert!(buffer.written(&writes[0].key, writes[0].ticket));
    assert!(begin(&mut buffer).is_empty());
    buffer.remove(&writes[0].key);
    assert_eq!(begin(&mut buffer).len(), 1, "there is room again");
    buffer.validate();
}

#[test]
fn what_is_removed_meanwhile_is_of_no_use() {
    let mut buffer = Buffer::new(limits(10));
    buffer.insert(key("a"), 11);
    let write = buffer.next_write().expect("it does not fit");
    buffer.remove(&key("a"));
    buffer.insert(key("a"), 1);
    assert_eq!(
        buffer.prepared(Some(&write.key), write.ticket, 5),
        Verdict::Gone
    );
    buffer.insert(key("b"), 10);
    let write = buffer.next_write().expect("they do not fit");
    assert_eq!(write.key, key("a"));
    buffer.prepared(Some(&write.key), write.ticket, 5);
    buffer.remove(&key("a"));
    assert!(!buffer.written(&write.key, write.ticket));
    assert_eq!(buffer.spilled(), Spilled::default());
    assert_eq!(buffer.writes_count(), 0);
    buffer.validate();
}

#[test]
fn a_direct_value_that_nobody_wants_takes_no_room() {
    let mut buffer = Buffer::new(Limits {
        max_spill: Some(10),
        ..limits(10)
    });
    let ticket = buffer.begin_direct();
    assert_eq!(buffer.prepared(None, ticket, 10), Verdict::Write);
    buffer.written_direct();
    let other = buffer.begin_direct();
    assert_eq!(buffer.prepared(None, other, 1), Verdict::Full);
    buffer.abandon(ticket);
    let other = buffer.begin_direct();
    assert_eq!(buffer.prepared(None, other, 10), Verdict::Write);
    buffer.failed(None, other, Failure::Disk);
    assert_eq!(buffer.writes_count(), 0);
}

/// A value as the model has it.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    nbytes: u64,
    used: u64,
    place: ModelPlace,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum ModelPlace {
    Memory { is_unspillable: bool },
    Writing(Ticket),
    Disk,
    Reading(Ticket),
}

/// The buffer, the shell with its writes and reads under way, and a model.
struct World {
    buffer: Buffer,
    limits: Limits,
    model: BTreeMap<Key, Model>,
    /// Bytes on disk by write, once it was let through.
    writes: BTreeMap<Ticket, (Key, Option<u64>)>,
    reads: BTreeMap<Ticket, Key>,
    /// Bytes on disk of each file that is there.
    files: BTreeMap<Key, u64>,
    now: u64,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self {
            buffer: Buffer::new(limits),
            limits,
            model: BTreeMap::new(),
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            files: BTreeMap::new(),
            now: 0,
        }
    }

    fn begin(&mut self) {
        while let Some(Write { key, ticket }) = self.buffer.next_write() {
            // It is the least recently used of those that may leave.
            let candidates = self.model.values().filter(|value| {
                value.place
                    == ModelPlace::Memory {
                        is_unspillable: false,
                    }
            });
            let oldest = candidates.map(|value| value.used).min();
            let value = self.model.get_mut(&key).expect("it is here");
            assert_eq!(Some(value.used), oldest, "{key:?} is not the oldest");
            value.place = ModelPlace::Writing(ticket);
            assert!(self.writes.insert(ticket, (key, None)).is_none());
            assert!(self.writes.len() <= self.limits.writes_count_max);
        }
    }

    fn finish_write(&mut self, choice: usize, nbytes: u64, outcome: u8) {
        let Some((&ticket, (key, promised))) =
            self.writes.iter().nth(choice % self.writes.len().max(1))
        else {
            return;
        };
        let (key, promised) = (key.clone(), *promised);
        let is_wanted =
            self.model.get(&key).map(|value| value.place) == Some(ModelPlace::Writing(ticket));
        let settle = |world: &mut Self, is_unspillable| {
            world.writes.remove(&ticket);
            if is_wanted {
                world.now += 1;
                let used = world.now;
                let value = world.model.get_mut(&key).expect("it is wanted");
                value.place = ModelPlace::Memory { is_unspillable };
                value.used = used;
            }
        };
        match (promised, outcome) {
            (_, 0) => {
                self.buffer.failed(Some(&key), ticket, Failure::Unspillable);
                settle(self, true);
            }
            (_, 1) => {
                self.buffer.failed(Some(&key), ticket, Failure::Disk);
                settle(self, false);
            }
            (None, _) => match self.buffer.prepared(Some(&key), ticket, nbytes) {
                Verdict::Write => {
                    assert!(is_wanted);
                    self.writes.insert(ticket, (key, Some(nbytes)));
                }
                Verdict::Gone => {
                    assert!(!is_wanted);
                    self.writes.remove(&ticket);
                }
                Verdict::Full => settle(self, false),
            },
            (Some(nbytes), _) => {
                assert_eq!(self.buffer.written(&key, ticket), is_wanted);
                self.writes.remove(&ticket);
                if is_wanted {
                    self.model.get_mut(&key).expect("it is wanted").place = ModelPlace::Disk;
                    self.files.insert(key, nbytes);
                }
            }
        }
    }

    fn fetch(&mut self, key: &Key) {
        self.now += 1;
        let used = self.now;
        let fetched = self.buffer.fetch(key);
        let Some(value) = self.model.get_mut(key) else {
            assert_eq!(fetched, None);
            return;
        };
        match (value.place, fetched) {
            (ModelPlace::Memory { .. } | ModelPlace::Writing(_), Some(Fetch::Memory)) => {
                value.used = used;
            }
            (ModelPlace::Disk, Some(Fetch::Read(ticket))) => {
                value.place = ModelPlace::Reading(ticket);
                assert!(self.reads.insert(ticket, key.clone()).is_none());
            }
            (ModelPlace::Reading(own), Some(Fetch::Wait(ticket))) => assert_eq!(own, ticket),
            (place, fetched) => panic!("{key:?} is {place:?}, not {fetched:?}"),
        }
    }

    fn finish_read(&mut self, choice: usize) {
        let Some((&ticket, key)) = self.reads.iter().nth(choice % self.reads.len().max(1)) else {
            return;
        };
        let key = key.clone();
        self.reads.remove(&ticket);
        self.now += 1;
        let used = self.now;
        let restored = self.buffer.restored(&key, ticket);
        let value = self.model.get_mut(&key);
        let Some(value) = value.filter(|value| value.place == ModelPlace::Reading(ticket)) else {
            assert_eq!(restored, Restored::Gone);
            return;
        };
        if self
            .limits
            .target
            .is_some_and(|target| value.nbytes > target)
        {
            assert_eq!(restored, Restored::Disk);
            value.place = ModelPlace::Disk;
        } else {
            assert_eq!(restored, Restored::Memory);
            value.place = ModelPlace::Memory {
                is_unspillable: false,
            };
            value.used = used;
            self.files.remove(&key);
        }
    }

    fn insert(&mut self, key: Key, nbytes: u64) {
        self.now += 1;
        self.files.remove(&key);
        let value = Model {
            nbytes,
            used: self.now,
            place: ModelPlace::Memory {
                is_unspillable: false,
            },
        };
        self.model.insert(key.clone(), value);
        self.buffer.insert(key, nbytes);
    }

    fn remove(&mut self, key: &Key) {
        self.model.remove(key);
        self.files.remove(key);
        self.buffer.remove(key);
    }

    fn check(&self) {
        self.buffer.validate();
        let in_memory = self.model.values().filter(|value| {
            matches!(
                value.place,
                ModelPlace::Memory { .. } | ModelPlace::Writing(_)
            )
        });
        let memory: u64 = in_memory.map(|value| value.nbytes).sum();
        assert_eq!(self.buffer.memory(), memory);
        assert_eq!(self.buffer.writes_count(), self.writes.len());
        let spilled = self.buffer.spilled();
        assert_eq!(spilled.disk, self.files.values().sum::<u64>());
        assert_eq!(self.buffer.spilled_count(), self.files.len());
        if let Some(max) = self.limits.max_spill {
            let promised = self.writes.values().filter_map(|(_, promised)| *promised);
            assert!(spilled.disk + promised.sum::<u64>() <= max);
        }
        if self.buffer.is_backlogged() {
            assert!(!self.writes.is_empty(), "nothing will end the wait");
        }
    }

    /// Everything ends well from here on: what can leave has left.
    fn settle(&mut self) {
        for _ in 0..256 {
            self.buffer.observe(0);
        }
        for _ in 0..10_000 {
            self.begin();
            if self.writes.is_empty() && self.reads.is_empty() {
                break;
            }
            self.finish_write(0, 0, 9);
            self.finish_read(0);
        }
        self.check();
        assert!(self.writes.is_empty() && self.reads.is_empty());
        if let Some(target) = self.limits.target {
            let stays = |value: &&Model| {
                value.place
                    == ModelPlace::Memory {
                        is_unspillable: true,
                    }
            };
            let unspillable = self.model.values().filter(stays);
            let unspillable: u64 = unspillable.map(|value| value.nbytes).sum();
            assert!(
                self.buffer.memory() <= target.max(unspillable),
                "{} bytes stay in memory",
                self.buffer.memory()
            );
        }
    }
}

fn config() -> impl Strategy<Value = Limits> {
    let target = prop::option::of(prop::sample::select(vec![0, 50, 200]));
    let max_spill = prop::option::of(prop::sample::select(vec![0, 60, 1000]));
    (target, max_spill, 1..4usize).prop_map(|(target, max_spill, writes_count_max)| Limits {
        target,
        max_spill,
        writes_count_max,
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn values_are_where_the_model_has_them(
        limits in config(),
        actions in prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>()), 1..200),
    ) {
        let mut world = World::new(limits);
        for (kind, a, b) in actions {
            let key = Key::from(format!("x-{}", a % 8).as_str());
            match kind % 16 {
                0..=3 => world.insert(key, [0, 1, 10, 40, 60, 300][usize::from(b) % 6]),
                4 => world.remove(&key),
                5..=7 => world.fetch(&key),
                8..=11 => world.finish_write(a.into(), u64::from(b % 64), b % 10),
                12 | 13 => world.finish_read(a.into()),
                _ => world.buffer.observe(u64::from(b)),
            }
            world.begin();
            world.check();
        }
        if world.limits.max_spill.is_none() {
            world.settle();
        }
    }
}
