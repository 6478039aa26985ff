//! Which worker is asked for which key: the decisions of `gather_from_workers`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use indexmap::IndexMap;
use oxidask_wire::{Key, Value};

/// Gathers keys from workers, of which some are busy, gone or do not have a key
/// any more. Holds no connection: it says what to do next and is told what came
/// of it.
#[derive(Debug, Default)]
pub(crate) struct GatherPlan {
    /// Keys whose holders are to be looked up.
    unlocated: Vec<Key>,
    /// Keys to fetch and where they may be had.
    wanted: IndexMap<Key, Vec<Arc<str>>>,
    missing_workers: HashSet<Arc<str>>,
    busy_workers: HashSet<Arc<str>>,
    data: Vec<(Key, Value)>,
    failed: Vec<Key>,
    /// Turns through the holders of keys, in place of stock's random choice.
    turn: usize,
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// Look up the holders of these keys.
    Locate(Vec<Key>),
    /// Ask each worker for its keys, all at once.
    Fetch(Vec<(Arc<str>, Vec<Key>)>),
    /// Every worker left is busy.
    Wait,
    /// No more to do.
    Done {
        /// What was found.
        data: Vec<(Key, Value)>,
        /// What was not.
        failed: Vec<Key>,
    },
}

/// What came of asking a worker.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Values; keys that it does not have are left out.
    Data(HashMap<Key, Value>),
    /// It answers too many others.
    Busy,
    /// No connection, or it broke.
    Unreachable,
    /// It raised, a value that cannot be serialised for one.
    Failed,
}

impl GatherPlan {
    pub(crate) fn new(keys: Vec<Key>) -> Self {
        Self {
            unlocated: keys,
            ..Self::default()
        }
    }

    pub(crate) fn step(&mut self) -> Step {
        if !self.unlocated.is_empty() {
            return Step::Locate(std::mem::take(&mut self.unlocated));
        }
        if self.wanted.is_empty() {
            return Step::Done {
                data: std::mem::take(&mut self.data),
                failed: std::mem::take(&mut self.failed),
            };
        }
        let mut requests: IndexMap<Arc<str>, Vec<Key>> = IndexMap::new();
        for (key, holders) in &mut self.wanted {
            holders.retain(|holder| !self.missing_workers.contains(holder));
            let ready: Vec<_> = holders
                .iter()
                .filter(|holder| !self.busy_workers.contains(*holder))
                .collect();
            if !ready.is_empty() {
                let holder = ready[self.turn % ready.len()].clone();
                self.turn = self.turn.wrapping_add(1);
                requests.entry(holder).or_default().push(key.clone());
            }
        }
        if !requests.is_empty() {
            return Step::Fetch(requests.into_iter().collect());
        }
        if !self.busy_workers.is_empty() {
            self.busy_workers.clear();
            return Step::Wait;
        }
        // Their holders are gone, so the scheduler may know new ones by now.
        Step::Locate(self.wanted.drain(..).map(|(key, _)| key).collect())
    }

    /// The holders of keys, as the scheduler knows them. A key without any fails.
    pub(crate) fn located(&mut self, located: Vec<(Key, Vec<Arc<str>>)>) {
        for (key, mut holders) in located {
            holders.retain(|holder| !self.missing_workers.contains(holder));
            if holders.is_empty() {
                self.failed.push(key);
            } else {
                self.wanted.insert(key, holders);
            }
        }
    }

    pub(crate) fn answered(&mut self, worker: &Arc<str>, keys: Vec<Key>, answer: Answer) {
        match answer {
            Answer::Data(mut data) => {
                for key in keys {
                    match data.remove(&key) {
                        Some(value) => {
                            self.wanted.swap_remove(&key);
                            self.data.push((key, value));
                        }
                        None => {
                            if let Some(holders) = self.wanted.get_mut(&key) {
                                holders.retain(|holder| holder != worker);
                                // Asked once and without the key: whatever the scheduler says,
                                // it is not asked for this key again.
                                if holders.is_empty() {
                                    self.wanted.swap_remove(&key);
                                    self.failed.push(key);
                                }
                            }
                        }
                    }
                }
            }
            Answer::Busy => {
                self.busy_workers.insert(worker.clone());
            }
            Answer::Unreachable => {
                self.missing_workers.insert(worker.clone());
            }
            Answer::Failed => {
                for key in keys {
                    self.wanted.swap_remove(&key);
                    self.failed.push(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::from_str_key(name)
    }

    fn data(keys: &[&str]) -> Answer {
        Answer::Data(
            keys.iter()
                .map(|name| (key(name), Value::from(*name)))
                .collect(),
        )
    }

    fn located(plan: &mut GatherPlan, holders: &[(&str, &[&str])]) {
        assert!(matches!(plan.step(), Step::Locate(_)));
        let located = holders
            .iter()
            .map(|(name, holders)| {
                (
                    key(name),
                    holders.iter().map(|holder| Arc::from(*holder)).collect(),
                )
            })
            .collect();
        plan.located(located);
    }

    fn fetch(plan: &mut GatherPlan) -> Vec<(Arc<str>, Vec<Key>)> {
        let step = plan.step();
        let Step::Fetch(requests) = step else {
            panic!("expected requests, got {step:?}");
        };
        requests
    }

    fn done(plan: &mut GatherPlan) -> (usize, Vec<Key>) {
        let step = plan.step();
        let Step::Done { data, failed } = step else {
            panic!("expected the end, got {step:?}");
        };
        (data.len(), failed)
    }

    #[test]
    fn keys_come_from_their_holders_at_once() {
        let mut plan = GatherPlan::new(vec![key("x"), key("y")]);
        located(&mut plan, &[("x", &["a"]), ("y", &["b"])]);
        let requests = fetch(&mut plan);
        assert_eq!(requests.len(), 2);
        for (worker, keys) in requests {
            let names: Vec<_> = keys
                .iter()
                .filter_map(Key::as_str)
                .map(str::to_owned)
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            plan.answered(&worker, keys, data(&names));
        }
        assert_eq!(done(&mut plan), (2, vec![]));
    }

    #[test]
    fn another_holder_stands_in_for_a_lost_worker() {
        let mut plan = GatherPlan::new(vec![key("x")]);
        located(&mut plan, &[("x", &["a", "b"])]);
        let (worker, keys) = fetch(&mut plan).remove(0);
        plan.answered(&worker, keys, Answer::Unreachable);
        let (second, keys) = fetch(&mut plan).remove(0);
        assert_ne!(worker, second);
        plan.answered(&second, keys, data(&["x"]));
        assert_eq!(done(&mut plan), (1, vec![]));
    }

    #[test]
    fn a_key_that_nobody_has_fails() {
        let mut plan = GatherPlan::new(vec![key("x"), key("y")]);
        located(&mut plan, &[("x", &[]), ("y", &["a"])]);
        let (worker, keys) = fetch(&mut plan).remove(0);
        plan.answered(&worker, keys, data(&[]));
        assert_eq!(done(&mut plan), (0, vec![key("x"), key("y")]));
    }

    #[test]
    fn lost_holders_are_looked_up_again() {
        let mut plan = GatherPlan::new(vec![key("x")]);
        located(&mut plan, &[("x", &["a"])]);
        let (worker, keys) = fetch(&mut plan).remove(0);
        plan.answered(&worker, keys, Answer::Unreachable);
        located(&mut plan, &[("x", &["a", "b"])]);
        assert_eq!(&*fetch(&mut plan)[0].0, "b");
    }

    #[test]
    fn busy_workers_are_asked_again_after_a_pause() {
        let mut plan = GatherPlan::new(vec![key("x")]);
        located(&mut plan, &[("x", &["a"])]);
        let (worker, keys) = fetch(&mut plan).remove(0);
        plan.answered(&worker, keys, Answer::Busy);
        assert_eq!(plan.step(), Step::Wait);
        assert_eq!(fetch(&mut plan).len(), 1);
    }

    #[test]
    fn values_that_cannot_be_sent_fail() {
        let mut plan = GatherPlan::new(vec![key("x")]);
        located(&mut plan, &[("x", &["a", "b"])]);
        let (worker, keys) = fetch(&mut plan).remove(0);
        plan.answered(&worker, keys, Answer::Failed);
        assert_eq!(done(&mut plan), (0, vec![key("x")]));
    }
}
