//! Checks every cross-reference; `validate_state` of stock and more.

use hashbrown::HashMap;

use crate::graph::RunSpec;
use crate::id::{Status, TaskId, WorkerId};
use crate::scheduler::Scheduler;
use crate::sets::RankSet;
use crate::task::{NOT_RECOMMENDED, State, TaskState};
use crate::worker::WorkerState;

impl Scheduler {
    /// Checks the whole state, in time linear in its size. For tests and simulations.
    ///
    /// # Panics
    /// When something does not fit together, with the state in the message.
    pub fn validate(&self) {
        assert_eq!(
            self.impossible_transitions, 0,
            "a transition nobody foresaw"
        );
        assert!(self.recommendations.is_empty(), "recommendations are left");
        let mut task_count = 0;
        for (task, ts) in self.tasks.iter() {
            task_count += 1;
            assert_eq!(
                self.tasks.find(&ts.key),
                Some(task),
                "{:?} is not found by its key",
                ts.key
            );
            assert_eq!(
                ts.recommended, NOT_RECOMMENDED,
                "{:?} is recommended",
                ts.key
            );
            self.validate_edges(task, ts);
            self.validate_task(task, ts);
        }
        assert_eq!(
            task_count,
            self.tasks.len(),
            "the index holds forgotten tasks"
        );
        for (worker, ws) in self.workers.iter() {
            self.validate_worker(worker, ws);
        }
        self.validate_deaths();
        self.validate_worker_sets();
        self.validate_clients();
        self.validate_groups();
        self.groups.validate_spans();
        self.validate_prefixes();
        self.validate_bundles();
        for task in &self.replicated {
            assert!(
                self.tasks[task].who_has.len() > 1,
                "{:?} is not replicated",
                self.tasks[task].key
            );
        }
        for task in &self.unrunnable {
            assert_eq!(self.tasks[task].state, State::NoWorker);
            assert!(self.unrunnable_since.contains_key(&task));
        }
        assert_eq!(self.unrunnable.len(), self.unrunnable_since.len());
        let mut since = f64::NEG_INFINITY;
        for task in &self.unrunnable {
            assert!(
                since <= self.unrunnable_since[&task],
                "unrunnable tasks are out of order"
            );
            since = self.unrunnable_since[&task];
        }
        for &(rank, sequence, task) in &self.queued {
            let ts = &self.tasks[task];
            assert_eq!(ts.state, State::Queued, "{:?} is in the queue", ts.key);
            assert_eq!(ts.rank(), rank);
            assert_eq!(ts.queue_sequence, sequence);
        }
        // While a release goes on, what is queued may be on its way out; the next
        // slice gives the slots to what is not.
        assert!(
            self.queued.is_empty() || self.workers.open.is_empty() || !self.lingering.is_empty(),
            "tasks are queued while workers have free slots"
        );
        self.validate_lingering();
        self.validate_stealing();
    }

    fn validate_lingering(&self) {
        let mut listed = 0;
        for task in self
            .lingering
            .iter()
            .filter_map(|name| self.tasks.resolve(name))
        {
            let ts = &self.tasks[task];
            assert!(ts.lingers, "{:?} does not linger", ts.key);
            listed += 1;
        }
        let lingering = self.tasks.iter().filter(|(_, ts)| ts.lingers).count();
        assert_eq!(listed, lingering, "tasks linger without an end");
    }

    fn validate_deaths(&self) {
        for (_, ts) in self.tasks.iter() {
            let deaths = ts.extras.as_ref().map_or(0, |extras| extras.deaths.len());
            assert!(deaths <= ts.suspicious as usize, "{:?}", ts.key);
        }
        for worker in self.deaths.waiting() {
            let ws = self.workers.get(worker).expect("a lost worker is known");
            assert_ne!(ws.status, Status::Running, "{} is lost", ws.address);
        }
    }

    fn validate_edges(&self, task: TaskId, ts: &TaskState) {
        let key = &ts.key;
        for dependency in &ts.dependencies {
            let dts = &self.tasks[dependency];
            assert!(
                dts.dependents.contains(task),
                "{key:?} is no dependent of {:?}",
                dts.key
            );
            assert_ne!(
                dts.state,
                State::Forgotten,
                "{key:?} depends on forgotten {:?}",
                dts.key
            );
            if ts.state.is_active() {
                assert!(
                    ts.waiting_on.contains(dependency) == dts.who_has.is_empty(),
                    "{key:?} ({}) and its dependency {:?} ({})",
                    ts.state,
                    dts.key,
                    dts.state
                );
                let comes_later =
                    ts.state == State::Waiting && dts.state == State::Released && dts.pins > 0;
                assert!(
                    dts.waiters.contains(task) || comes_later,
                    "{key:?} ({}) is no waiter of {:?} ({})",
                    ts.state,
                    dts.key,
                    dts.state
                );
            }
        }
        for dependent in &ts.dependents {
            let dts = &self.tasks[dependent];
            assert!(
                dts.dependencies.contains(task),
                "{key:?} is no dependency of {:?}",
                dts.key
            );
            assert_ne!(dts.state, State::Forgotten);
        }
        for waiter in &ts.waiters {
            let dts = &self.tasks[waiter];
            assert!(
                ts.dependents.contains(waiter),
                "{:?} waits for {key:?} but is no dependent",
                dts.key
            );
            assert!(
                dts.state.is_active(),
                "{:?} ({}) waits for {key:?}",
                dts.key,
                dts.state
            );
        }
        for dependency in &ts.waiting_on {
            let dts = &self.tasks[dependency];
            assert!(ts.dependencies.contains(dependency));
            assert!(
                dts.who_has.is_empty(),
                "{key:?} waits for {:?}, which is in memory",
                dts.key
            );
            assert!(
                dts.state != State::Released || dts.pins > 0,
                "{key:?} waits for {:?}, which is released",
                dts.key
            );
        }
        for client in &ts.who_wants {
            assert!(self.clients[client].wants_what.contains(task));
        }
        for worker in &ts.who_has {
            assert!(self.workers[worker].has_what.contains(task));
        }
        assert_eq!(
            self.replicated.contains(task),
            ts.who_has.len() > 1,
            "{key:?}"
        );
    }

    fn validate_task(&self, task: TaskId, ts: &TaskState) {
        let key = &ts.key;
        let state = ts.state;
        assert_eq!(
            ts.processing_on.is_some(),
            state == State::Processing,
            "{key:?} ({state})"
        );
        assert_eq!(
            !ts.who_has.is_empty(),
            state == State::Memory,
            "{key:?} ({state})"
        );
        assert_eq!(
            self.unrunnable.contains(task),
            state == State::NoWorker,
            "{key:?} ({state})"
        );
        assert_eq!(
            self.queued.contains(&(ts.rank(), ts.queue_sequence, task)),
            state == State::Queued,
            "{key:?} ({state})"
        );
        assert!(
            !ts.awaits_bundle || state == State::Processing,
            "{key:?} ({state})"
        );
        if state.is_active() {
            assert!(ts.has_run_spec(), "{key:?} has no recipe but is {state}");
            assert!(
                ts.priority.is_some(),
                "{key:?} has no priority but is {state}"
            );
            assert!(
                !ts.has_lost_dependencies,
                "{key:?} is {state} with lost dependencies"
            );
            assert!(
                ts.failure.is_none(),
                "{key:?} is {state} but somebody is to blame"
            );
        }
        match state {
            State::Released => {
                assert!(ts.waiters.is_empty(), "released {key:?} has waiters");
                assert!(ts.waiting_on.is_empty());
                assert!(
                    ts.is_wanted() || !ts.dependents.is_empty(),
                    "{key:?} is released and nobody depends on it"
                );
            }
            State::Waiting => {
                assert!(
                    !ts.waiting_on.is_empty() || ts.pins > 0,
                    "{key:?} waits for nothing"
                );
            }
            State::NoWorker | State::Queued => assert!(ts.waiting_on.is_empty()),
            State::Processing => {
                assert!(ts.waiting_on.is_empty());
                let worker = ts.processing_on.expect("asserted above");
                assert!(self.workers[worker].processing.contains(task), "{key:?}");
                assert_eq!(
                    self.workers[worker].actors.contains(task),
                    ts.actor,
                    "{key:?}"
                );
            }
            State::Memory => {
                assert!(ts.waiting_on.is_empty());
                assert!(
                    ts.is_needed() || !ts.has_run_spec(),
                    "{key:?} is in memory but nobody needs it"
                );
                for dependent in &ts.dependents {
                    let dts = &self.tasks[dependent];
                    assert_eq!(
                        ts.waiters.contains(dependent),
                        dts.state.is_active(),
                        "{key:?} and its dependent {:?} ({})",
                        dts.key,
                        dts.state
                    );
                }
                if ts.actor {
                    let holders = ts.who_has.iter();
                    let acting =
                        holders.filter(|&worker| self.workers[worker].actors.contains(task));
                    assert_eq!(acting.count(), 1, "actor {key:?}");
                }
            }
            State::Erred => {
                assert!(
                    ts.failure.is_some(),
                    "{key:?} is erred but nobody is to blame"
                );
                assert!(ts.waiters.is_empty(), "erred {key:?} has waiters");
                assert!(
                    ts.pins > 0 || ts.is_needed() || !ts.dependents.is_empty(),
                    "{key:?} is erred and nobody cares"
                );
            }
            State::Forgotten => panic!("{key:?} is forgotten"),
        }
    }

    fn validate_worker(&self, worker: WorkerId, ws: &WorkerState) {
        let address = &ws.address;
        assert_eq!(self.workers.find(address), Some(worker));
        assert_eq!(self.workers.ranked(ws.rank), worker);
        let held: i64 = ws
            .has_what
            .iter()
            .map(|task| self.nbytes(&self.tasks[task]))
            .sum();
        assert_eq!(ws.nbytes, held, "bytes of {address}");
        for task in &ws.has_what {
            assert!(self.tasks[task].who_has.contains(worker));
        }
        let mut prefixes = HashMap::new();
        for task in &ws.processing {
            let ts = &self.tasks[task];
            assert_eq!(ts.processing_on, Some(worker), "{:?} on {address}", ts.key);
            if !ws.long_running.contains(task) {
                *prefixes.entry(self.groups[ts.group].prefix).or_insert(0u32) += 1;
            }
            for dependency in &ts.dependencies {
                // A replica that was dropped while a task here needs it is fetched
                // again by the worker; stock does not count that either.
                let is_known =
                    ws.needs_what.contains_key(&dependency) || ws.has_what.contains(dependency);
                assert!(is_known || !self.tasks[dependency].who_has.is_empty());
            }
        }
        assert_eq!(prefixes.len(), ws.task_prefix_count.len());
        for (prefix, count) in prefixes {
            assert_eq!(
                ws.task_prefix_count[&prefix], count,
                "prefix {}",
                self.groups[prefix].name
            );
        }
        for task in &ws.long_running {
            assert!(ws.processing.contains(task));
        }
        for (&dependency, &count) in &ws.needs_what {
            let needed = ws
                .processing
                .iter()
                .filter(|&task| self.tasks[task].dependencies.contains(dependency))
                .count();
            assert!(count > 0);
            assert!(
                count as usize <= needed,
                "{address} needs {:?}",
                self.tasks[dependency].key
            );
            assert!(!ws.has_what.contains(dependency));
        }
        assert!(ws.network_occ >= 0);
        if ws.needs_what.is_empty() {
            assert_eq!(ws.network_occ, 0, "{address} has nothing to fetch");
        }
        for task in &ws.actors {
            let ts = &self.tasks[task];
            assert!(
                matches!(ts.state, State::Memory | State::Processing),
                "actor {:?}",
                ts.key
            );
        }
        for (resource, used) in &ws.used_resources {
            let needed: f64 = ws
                .processing
                .iter()
                .flat_map(|task| self.tasks[task].resource_restrictions())
                .filter(|(name, _)| name == resource)
                .map(|(_, amount)| amount)
                .sum();
            assert!(
                (used - needed).abs() < 1e-6,
                "{address} uses {used} of {resource}, tasks need {needed}"
            );
        }
    }

    fn validate_worker_sets(&self) {
        let workers = &self.workers;
        let mut nthreads = 0;
        let mut open_slots = 0;
        let mut network_occ = 0;
        for (worker, ws) in workers.iter() {
            nthreads += u64::from(ws.nthreads);
            network_occ += ws.network_occ;
            let is_running = ws.status == Status::Running;
            let within = |set: &RankSet| set.contains(ws.rank);
            assert_eq!(within(&workers.running), is_running, "{}", ws.address);
            assert!(is_running || !within(&workers.idle), "{}", ws.address);
            assert!(is_running || !within(&workers.saturated), "{}", ws.address);
            assert!(
                !within(&workers.idle) || !within(&workers.saturated),
                "{}",
                ws.address
            );
            if is_running && ws.processing.is_empty() && ws.nthreads > 0 {
                assert!(within(&workers.idle), "{} has nothing to do", ws.address);
            }
            open_slots += u64::from(ws.open_slots);
            match ws.open_key {
                Some(key) => {
                    assert!(is_running && ws.open_slots > 0);
                    assert!(workers.open.contains(&(key, worker)));
                }
                None => assert_eq!(ws.open_slots, 0),
            }
            let saturation = self.config.worker_saturation;
            if is_running && saturation.is_finite() {
                let slots = ws.slots_available(saturation).max(0);
                assert_eq!(i64::from(ws.open_slots), slots, "slots of {}", ws.address);
            }
        }
        assert_eq!(workers.total_nthreads, nthreads);
        assert_eq!(workers.open_slots, open_slots);
        assert_eq!(
            workers.open.len(),
            workers
                .iter()
                .filter(|(_, ws)| ws.open_key.is_some())
                .count()
        );
        assert_eq!(self.network_occ, network_occ, "bytes to fetch");
    }

    fn validate_clients(&self) {
        for (client, cs) in self.clients.iter() {
            for task in &cs.wants_what {
                assert!(
                    self.tasks[task].who_wants.contains(client),
                    "{} wants it",
                    cs.name
                );
            }
        }
    }

    fn validate_groups(&self) {
        let mut states = HashMap::new();
        for (_, ts) in self.tasks.iter() {
            states.entry(ts.group).or_insert([0u64; State::COUNT])[ts.state as usize] += 1;
        }
        for (id, group) in self.groups.iter() {
            let counted = states.remove(&id).unwrap_or_default();
            let forgotten = State::Forgotten as usize;
            assert_eq!(
                group.states[..forgotten],
                counted[..forgotten],
                "group {}",
                group.name
            );
            assert_eq!(
                group.states.iter().sum::<u64>(),
                group.size,
                "group {}",
                group.name
            );
            assert_ne!(
                counted,
                [0; State::COUNT],
                "group {} is all forgotten",
                group.name
            );
        }
        assert!(states.is_empty(), "tasks of groups that do not exist");
    }

    fn validate_prefixes(&self) {
        let mut processing = HashMap::new();
        for (_, ws) in self.workers.iter() {
            for (&prefix, &count) in &ws.task_prefix_count {
                *processing.entry(prefix).or_insert(0u32) += count;
            }
        }
        for (at, prefix) in self.groups.prefixes.iter().enumerate() {
            let id = crate::PrefixId(at as u32);
            assert_eq!(
                processing.remove(&id).unwrap_or(0),
                prefix.processing,
                "{}",
                prefix.name
            );
            assert_eq!(self.busy_prefixes.contains(&id), prefix.processing > 0);
            let mut states = [0; State::COUNT];
            for group in &prefix.groups {
                for (total, count) in states.iter_mut().zip(self.groups[group].states) {
                    *total += count;
                }
            }
            assert_eq!(prefix.states, states, "{}", prefix.name);
        }
    }

    fn validate_bundles(&self) {
        let mut counts: HashMap<u32, u32> = HashMap::new();
        for (_, ts) in self.tasks.iter() {
            if let RunSpec::Bundle { bundle, .. } = ts.run_spec {
                *counts.entry(bundle).or_default() += 1;
            }
        }
        for (bundle, count) in self.bundles.task_counts() {
            let counted = counts.remove(&bundle).unwrap_or(0);
            let is_coming = !self.pending_graphs.is_empty();
            assert!(
                counted == count && (count > 0 || is_coming),
                "bundle {bundle}"
            );
        }
        assert!(counts.is_empty(), "tasks of bundles that do not exist");
    }

    /// Whether nothing is left of any task, for the end of a test.
    ///
    /// # Panics
    /// When something is.
    pub fn validate_empty(&self) {
        self.validate();
        assert_eq!(self.tasks.len(), 0, "tasks are left");
        assert_eq!(self.groups.iter().count(), 0, "groups are left");
        assert!(self.bundles.is_empty(), "bundles are left");
        assert_eq!(self.network_occ, 0);
        assert_eq!(self.total_occupancy(), 0.0);
        for (_, ws) in self.workers.iter() {
            assert_eq!(ws.nbytes, 0);
            assert!(ws.processing.is_empty());
            assert!(ws.used_resources.values().all(|used| used.abs() < 1e-6));
        }
    }
}
