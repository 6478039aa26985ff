//! Checks every cross-reference; `validate_state` of stock and more.

use hashbrown::HashMap;

use crate::id::TaskId;
use crate::task::{Previous, State, TaskState};
use crate::worker::WorkerState;

impl WorkerState {
    /// Checks the whole state, in time linear in its size. For tests and simulations.
    ///
    /// # Panics
    /// When something does not fit together, with the state in the message.
    pub fn validate(&self) {
        assert!(self.recommendations.is_empty(), "recommendations are left");
        for (task, ts) in self.tasks.iter() {
            assert_eq!(
                self.tasks.find(&ts.key),
                Some(task),
                "{:?} is not found by its key",
                ts.key
            );
            self.validate_edges(task, ts);
            self.validate_task(task, ts);
            self.validate_sets_of(task, ts);
        }
        assert_eq!(
            self.tasks.iter().count(),
            self.tasks.len(),
            "the index holds forgotten tasks"
        );
        self.validate_set_sizes();
        self.validate_peers();
        self.validate_sums();
    }

    /// Checks that nothing is left when there are no tasks.
    ///
    /// # Panics
    /// As [`validate`](Self::validate).
    pub fn validate_empty(&self) {
        self.validate();
        assert_eq!(self.tasks.len(), 0, "tasks are left");
        assert_eq!(self.nbytes, 0);
        assert_eq!(self.transfer_incoming_bytes, 0);
        assert!(
            self.available_resources
                .iter()
                .all(|(name, available)| (available - self.total_resources[name]).abs() < 1e-9),
            "resources are not given back: {:?}",
            self.available_resources
        );
    }

    fn validate_edges(&self, task: TaskId, ts: &TaskState) {
        let key = &ts.key;
        for dependency in &ts.dependencies {
            let dts = &self.tasks[dependency];
            assert_ne!(
                dts.state,
                State::Forgotten,
                "{key:?} depends on forgotten {:?}",
                dts.key
            );
            assert!(
                dts.dependents.contains(task),
                "{key:?} is no dependent of {:?}",
                dts.key
            );
        }
        for dependent in &ts.dependents {
            let dts = &self.tasks[dependent];
            assert!(
                dts.dependencies.contains(task),
                "{key:?} is no dependency of {:?}",
                dts.key
            );
        }
        for dependency in &ts.waiting_for_data {
            let dts = &self.tasks[dependency];
            assert!(
                ts.dependencies.contains(dependency),
                "{key:?} waits for {:?}, which it does not need",
                dts.key
            );
            assert!(
                is_awaited(dts.state),
                "{key:?} waits for {:?}, which is {}",
                dts.key,
                dts.state
            );
        }
        for waiter in &ts.waiters {
            assert!(ts.dependents.contains(waiter), "{key:?} has a stray waiter");
        }
        for holder in &ts.who_has {
            assert!(
                self.peers[holder].has_what.contains(task),
                "{key:?} is not in has_what of a holder"
            );
        }
    }

    /// What a state means for the task itself: `validate_task` of stock.
    fn validate_task(&self, _task: TaskId, ts: &TaskState) {
        let key = &ts.key;
        let is_split = matches!(ts.state, State::Cancelled | State::Resumed);
        assert_eq!(
            ts.previous.is_some(),
            is_split,
            "{key:?} is {} with previous {:?}",
            ts.state,
            ts.previous
        );
        assert_eq!(
            ts.has_data,
            ts.state == State::Memory,
            "{key:?} is {} and its value is kept or not",
            ts.state
        );
        match ts.state {
            State::Memory => {
                assert!(ts.nbytes.is_some(), "{key:?} has no size");
                assert!(ts.r#type.is_some(), "{key:?} has no type");
                assert!(ts.waiting_for_data.is_empty(), "{key:?} waits in memory");
            }
            State::Waiting => {
                assert!(!ts.done, "{key:?} is waiting and done");
                assert!(!ts.waiting_for_data.is_empty(), "{key:?} waits for nothing");
                let missing = ts.dependencies.iter().filter(|&d| !self.has_value(d));
                assert_eq!(
                    ts.waiting_for_data,
                    missing.collect(),
                    "{key:?} waits for something else than what is not in memory"
                );
            }
            State::Ready | State::Constrained => {
                assert!(!ts.done, "{key:?} is {} and done", ts.state);
                assert!(ts.waiting_for_data.is_empty(), "{key:?} is ready and waits");
                assert_eq!(
                    ts.state == State::Constrained,
                    !ts.resource_restrictions.is_empty(),
                    "{key:?} is {}",
                    ts.state
                );
                for dependency in &ts.dependencies {
                    assert!(
                        self.has_value(dependency),
                        "{key:?} is {} without {:?}",
                        ts.state,
                        self.tasks[dependency].key
                    );
                }
            }
            State::Fetch => {
                assert!(!ts.done, "{key:?} is to be fetched and done");
                assert!(
                    !ts.who_has.is_empty(),
                    "{key:?} is to be fetched from nobody"
                );
                assert!(!ts.is_actor, "{key:?} is an actor to be fetched");
            }
            State::Missing => {
                // It may have holders by now: then the next refresh lets it be fetched.
                assert!(!ts.done, "{key:?} is missing and done");
            }
            State::Released => {
                assert!(!ts.done, "{key:?} is released and done");
                assert!(
                    ts.waiting_for_data.is_empty(),
                    "{key:?} is released and waits"
                );
                assert!(
                    ts.failure.is_none(),
                    "{key:?} is released with an exception"
                );
                assert!(!ts.is_actor, "{key:?} is released and an actor");
            }
            State::Executing | State::LongRunning => self.validate_running(ts),
            State::Flight => self.validate_flight(ts),
            State::Cancelled | State::Resumed => match ts.previous {
                Some(Previous::Flight) => self.validate_flight(ts),
                Some(Previous::Executing | Previous::LongRunning) | None => {
                    self.validate_running(ts);
                }
            },
            State::Error => {
                assert!(
                    ts.failure.is_some(),
                    "{key:?} is an error without exception"
                );
            }
            State::Rescheduled | State::Forgotten => panic!("{key:?} is {}", ts.state),
        }
        // What is not in memory keeps its dependents from running.
        if ts.state != State::Memory {
            for dependent in &ts.dependents {
                let dts = &self.tasks[dependent];
                assert!(
                    !dts.state.is_ready(),
                    "{:?} is {} although {key:?} is {}",
                    dts.key,
                    dts.state,
                    ts.state
                );
            }
        }
    }

    fn validate_running(&self, ts: &TaskState) {
        assert!(ts.run_spec.is_some(), "{:?} runs nothing", ts.key);
        assert!(
            ts.waiting_for_data.is_empty(),
            "{:?} runs and waits",
            ts.key
        );
    }

    fn validate_flight(&self, ts: &TaskState) {
        let key = &ts.key;
        let peer = ts.coming_from.expect("a task in flight comes from a peer");
        let keys = self.peers[peer].in_flight.as_ref();
        assert!(
            keys.is_some_and(|keys| keys.contains(key)),
            "{key:?} is not expected from {}",
            self.peers[peer].address
        );
    }

    /// Each task is in the sets that its state says, and in no other.
    fn validate_sets_of(&self, task: TaskId, ts: &TaskState) {
        let key = &ts.key;
        let doing = ts.previous.map_or(ts.state, Previous::state);
        for (name, is_member, belongs) in [
            (
                "waiting",
                self.waiting.contains(task),
                ts.state == State::Waiting,
            ),
            ("ready", self.ready.contains(task), ts.state == State::Ready),
            (
                "constrained",
                self.constrained.contains(task),
                ts.state == State::Constrained,
            ),
            (
                "missing_dep_flight",
                self.missing_dep_flight.contains(task),
                ts.state == State::Missing,
            ),
            (
                "executing",
                self.executing.contains(task),
                doing == State::Executing,
            ),
            (
                "long_running",
                self.long_running.contains(task),
                doing == State::LongRunning,
            ),
            (
                "in_flight_tasks",
                self.in_flight_tasks.contains(task),
                doing == State::Flight,
            ),
        ] {
            assert_eq!(
                is_member, belongs,
                "{key:?} is {} ({:?}) and in {name} or not",
                ts.state, ts.previous
            );
        }
        for holder in &ts.who_has {
            let is_needed = self
                .peers
                .data_needed
                .get(&holder)
                .is_some_and(|needed| needed.contains(task));
            assert_eq!(
                is_needed,
                ts.state == State::Fetch,
                "{key:?} is {} and needed from {} or not",
                ts.state,
                self.peers[holder].address
            );
        }
    }

    fn validate_set_sizes(&self) {
        let mut counts: HashMap<State, usize> = HashMap::new();
        let mut counted: HashMap<State, usize> = HashMap::new();
        for (_, ts) in self.tasks.iter() {
            *counts.entry(ts.state).or_default() += 1;
            *counted
                .entry(ts.previous.map_or(ts.state, Previous::state))
                .or_default() += 1;
        }
        let count = |state| counts.get(&state).copied().unwrap_or_default();
        let doing = |state| counted.get(&state).copied().unwrap_or_default();
        assert_eq!(self.waiting.len(), count(State::Waiting));
        assert_eq!(self.ready.len(), count(State::Ready));
        assert_eq!(self.constrained.len(), count(State::Constrained));
        assert_eq!(self.missing_dep_flight.len(), count(State::Missing));
        assert_eq!(self.fetch_count, count(State::Fetch));
        assert_eq!(self.executing.len(), doing(State::Executing));
        assert_eq!(self.long_running.len(), doing(State::LongRunning));
        assert_eq!(self.in_flight_tasks.len(), doing(State::Flight));
        assert!(
            self.executing.len() <= self.config.nthreads,
            "more tasks execute than there are threads"
        );
        if let Some(begun) = self.begun {
            assert!(
                self.ready.contains(begun),
                "what a thread goes on with is ready"
            );
        }
        for state in State::ALL {
            assert_eq!(
                self.counter.counts()[state as usize],
                count(state) as u64,
                "the counter of {state} is wrong"
            );
        }
    }

    fn validate_peers(&self) {
        let mut in_flight_count = 0;
        let mut transfer_keys_count = 0;
        for (id, peer) in self.peers.iter() {
            assert_ne!(
                &peer.address,
                self.peers.own_address(),
                "the worker is its own peer"
            );
            for task in &peer.has_what {
                assert!(
                    self.tasks[task].who_has.contains(id),
                    "{} has {:?}, which does not know it",
                    peer.address,
                    self.tasks[task].key
                );
            }
            in_flight_count += usize::from(peer.in_flight.is_some());
            transfer_keys_count += peer.in_flight.as_ref().map_or(0, Vec::len);
        }
        assert_eq!(in_flight_count, self.peers.in_flight_count);
        assert_eq!(transfer_keys_count, self.in_flight_tasks.len());
        for (&id, needed) in &self.peers.data_needed {
            for task in needed.iter() {
                let ts = &self.tasks[task];
                assert_eq!(ts.state, State::Fetch, "{:?} is needed", ts.key);
                assert!(
                    ts.who_has.contains(id),
                    "{:?} is needed from a peer that does not have it",
                    ts.key
                );
            }
        }
    }

    fn validate_sums(&self) {
        let nbytes: i64 = self
            .tasks
            .iter()
            .filter(|(_, ts)| ts.has_data)
            .filter_map(|(_, ts)| ts.nbytes)
            .sum();
        assert_eq!(self.nbytes, nbytes, "the sum of nbytes is wrong");
        for (name, total, available) in self.resources() {
            assert!(available > -1e-9, "{available} of {name} is available");
            let held: f64 = self
                .all_running_tasks()
                .flat_map(|ts| &ts.resource_restrictions)
                .filter(|(resource, _)| resource == name)
                .map(|(_, amount)| amount)
                .sum();
            assert!(
                (available + held - total).abs() < 1e-9,
                "of {total} {name}, {available} is available and {held} held"
            );
        }
    }

    fn has_value(&self, task: TaskId) -> bool {
        self.tasks[task].has_data
    }
}

/// States of a dependency that somebody can wait for: `WAITING_FOR_DATA` in
/// Dask, and those of one that failed or was given back while somebody waited.
fn is_awaited(state: State) -> bool {
    match state {
        State::Constrained
        | State::Executing
        | State::Fetch
        | State::Flight
        | State::LongRunning
        | State::Missing
        | State::Ready
        | State::Resumed
        | State::Waiting
        | State::Error
        | State::Released => true,
        State::Memory | State::Cancelled | State::Rescheduled | State::Forgotten => false,
    }
}
