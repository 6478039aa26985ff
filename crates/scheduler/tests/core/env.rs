//! A scheduler driven by a transcript.
//!
//! Lines that are not indented are commands; the indented lines below one are
//! what it makes the scheduler do. [`check`] plays the commands and compares.
//!
//! ```text
//! worker NAME [NTHREADS] [key=value…]     registers and runs; address tcp://NAME:1
//! client NAME
//! submit CLIENT WANTED… : TASK [<- DEPS…] [; …]     options after `|`
//! finish WORKER KEY [nbytes=N] [run=N] [took=SECONDS] [type=NAME]
//! err WORKER KEY [run=N]
//! ```
//!
//! The rest are words for one event each; see [`Env::command`]. `slices [N]`
//! goes on with large graphs, for tests that do so step by step.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use oxidask_scheduler::graph::{Actors, Graph, Number, RunSpec, TaskFlags};
use oxidask_scheduler::{
    ClientId, Config, Event, Instruction, Instructions, Level, NewWorker, RequestId, Scheduler,
    State, Status, StimulusId, ToClient, ToWorker, WorkerId,
};
use oxidask_wire::{Key, Map, Str, Value};

/// Plays a transcript on a scheduler with Dask's configuration and compares what comes out.
pub(crate) fn check(transcript: &str) {
    check_with(Config::default(), transcript);
}

/// [`check`] with another configuration.
pub(crate) fn check_with(config: Config, transcript: &str) {
    let mut env = Env::new(config);
    let mut expected = String::new();
    let mut played = String::new();
    for line in transcript.lines().filter(|line| !line.trim().is_empty()) {
        let text = line.trim();
        let is_command = !text.starts_with(['>', '<', '=', '!', '~']);
        if is_command {
            writeln!(played, "{text}").unwrap();
            for line in env.command(text) {
                writeln!(played, "  {line}").unwrap();
            }
            writeln!(expected, "{text}").unwrap();
        } else {
            writeln!(expected, "  {text}").unwrap();
        }
    }
    assert!(
        played == expected,
        "expected\n{expected}\nbut this was played\n{played}"
    );
}

pub(crate) struct Env {
    pub(crate) scheduler: Scheduler,
    pub(crate) now: f64,
    pub(crate) logs_everything: bool,
    /// Slices are taken by command rather than all at once.
    pub(crate) by_slices: bool,
    /// The last run of a task per worker, as the worker has heard of it.
    pub(crate) runs: BTreeMap<(WorkerId, Key), i64>,
    /// The last request to give a task up per worker.
    pub(crate) steals: BTreeMap<(WorkerId, Key), StimulusId>,
    stimulus: u64,
}

impl Env {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            scheduler: Scheduler::new(config),
            now: 1000.0,
            logs_everything: false,
            by_slices: false,
            runs: BTreeMap::new(),
            steals: BTreeMap::new(),
            stimulus: 0,
        }
    }

    pub(crate) fn stimulus(&mut self) -> StimulusId {
        self.stimulus += 1;
        format!("s{}", self.stimulus).into()
    }

    /// Handles one event, follows large graphs to their end and validates.
    pub(crate) fn handle(&mut self, event: Event) -> Vec<Instruction> {
        let mut all = self.handle_once(event);
        if !self.by_slices {
            all.extend(self.slices(usize::MAX));
        }
        all
    }

    /// Goes on with large graphs for so many slices, or to their end.
    pub(crate) fn slices(&mut self, count: usize) -> Vec<Instruction> {
        let mut all = Vec::new();
        for _ in 0..count {
            if !self.scheduler.has_pending_work() {
                break;
            }
            all.extend(self.handle_once(Event::Continue));
        }
        all
    }

    /// Handles one event and validates.
    pub(crate) fn handle_once(&mut self, event: Event) -> Vec<Instruction> {
        let mut out = Instructions::default();
        self.scheduler.handle(self.now, event, &mut out);
        self.scheduler.validate();
        self.listen(&out);
        out.0
    }

    /// Remembers what workers heard.
    fn listen(&mut self, out: &Instructions) {
        for instruction in &out.0 {
            if let Instruction::ToWorker {
                worker,
                message: ToWorker::StealRequest { key, stimulus_id },
            } = instruction
            {
                let request = (*worker, key.clone());
                self.steals.insert(request, stimulus_id.clone());
            }
            if let Instruction::ToWorker {
                worker,
                message: ToWorker::ComputeTask { task, run_id, .. },
            } = instruction
                && let Some(message) = self.scheduler.compute_task(*worker, *task, *run_id)
            {
                assert!(!matches!(
                    message.run_spec,
                    RunSpec::None | RunSpec::Bundle { .. }
                ));
                for dependency in message.dependencies() {
                    assert!(
                        dependency.holder_count() > 0,
                        "{:?} is nowhere",
                        dependency.key()
                    );
                }
                self.runs.insert((*worker, message.key().clone()), *run_id);
            }
        }
    }

    pub(crate) fn worker(&self, name: &str) -> WorkerId {
        self.scheduler
            .worker_id(&address(name))
            .unwrap_or_else(|| panic!("no worker {name}"))
    }

    pub(crate) fn client(&self, name: &str) -> ClientId {
        self.scheduler
            .client_id(name)
            .unwrap_or_else(|| panic!("no client {name}"))
    }

    /// Plays one command and shows what it led to.
    pub(crate) fn command(&mut self, text: &str) -> Vec<String> {
        let mut words = text.split_whitespace();
        let verb = words.next().unwrap_or_default();
        let words: Vec<&str> = words.collect();
        let plain: Vec<&str> = words
            .iter()
            .copied()
            .filter(|word| !word.contains('='))
            .collect();
        let option = |name: &str| {
            words
                .iter()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let keys = |from: usize| {
            plain[from..]
                .iter()
                .map(|&key| Key::from(key))
                .collect::<Vec<_>>()
        };
        let event = match verb {
            "worker" => return self.add_worker(&plain, &option),
            "client" => Event::AddClient {
                name: plain[0].into(),
                versions: Value::Nil,
            },
            "submit" => Event::UpdateGraph(Box::new(self.graph(text))),
            "finish" => self.finished(plain[0], plain[1], &option),
            "err" => Event::TaskErred {
                worker: self.worker(plain[0]),
                key: plain[1].into(),
                run_id: self.run_id(plain[0], plain[1], &option),
                exception: Value::from(format!("{}-failed", plain[1])),
                traceback: Value::Nil,
                exception_text: Str::from("oh"),
                traceback_text: Str::from(""),
                thread: Value::Nil,
                startstops: Value::Nil,
                stimulus_id: self.stimulus(),
            },
            "release" => Event::ClientReleasesKeys {
                client: plain[0].into(),
                keys: keys(1),
                stimulus_id: self.stimulus(),
            },
            "release-found" => Event::ClientReleasesTasks {
                client: plain[0].into(),
                tasks: self.scheduler.refs(&keys(1)),
                stimulus_id: self.stimulus(),
            },
            "desire" => Event::ClientDesiresKeys {
                client: plain[0].into(),
                keys: keys(1),
            },
            "cancel" => Event::CancelKeys {
                client: self.client(plain[0]),
                keys: keys(1),
                force: option("force").is_some(),
                reason: Value::from("because"),
                msg: Value::Nil,
                stimulus_id: self.stimulus(),
            },
            "retry" => Event::Retry {
                request: RequestId(1),
                client: Some(plain[0].into()),
                keys: keys(1),
                stimulus_id: self.stimulus(),
            },
            "report" => Event::ReportKey {
                client: self.client(plain[0]),
                key: plain[1].into(),
            },
            "disconnect" => Event::RemoveClient {
                client: self.client(plain[0]),
                stimulus_id: self.stimulus(),
            },
            "remove" | "retire" => Event::RemoveWorker {
                worker: self.worker(plain[0]),
                stimulus_id: self.stimulus(),
                expected: verb == "retire",
                close: false,
            },
            "lose" => Event::WorkerLost {
                worker: self.worker(plain[0]),
                stimulus_id: self.stimulus(),
            },
            "died" => Event::WorkerDied {
                nanny: Str::from(plain[0]),
                pid: number(option("pid")).unwrap_or(1),
                reason: Str::from(plain[1..].join(" ")),
                stimulus_id: self.stimulus(),
            },
            "status" => Event::WorkerStatusChange {
                worker: self.worker(plain[0]),
                status: Status::from_name(plain[1]).expect("a status"),
                stimulus_id: self.stimulus(),
            },
            "drop" => Event::ReleaseWorkerData {
                worker: self.worker(plain[0]),
                key: plain[1].into(),
                stimulus_id: self.stimulus(),
            },
            "add-keys" => Event::AddKeys {
                worker: self.worker(plain[0]),
                keys: keys(1),
                stimulus_id: self.stimulus(),
            },
            "secede" => Event::LongRunning {
                worker: self.worker(plain[0]),
                key: plain[1].into(),
                run_id: self.run_id(plain[0], plain[1], &option),
                compute_duration: Some(1.0),
                stimulus_id: self.stimulus(),
            },
            "reschedule" => Event::Reschedule {
                worker: self.worker(plain[0]),
                key: plain[1].into(),
                stimulus_id: self.stimulus(),
            },
            "refresh" => Event::RequestRefreshWhoHas {
                worker: self.worker(plain[0]),
                keys: keys(1),
                stimulus_id: self.stimulus(),
            },
            "scatter" => Event::UpdateData {
                client: Some(plain[0].into()),
                who_has: vec![(
                    plain[1].into(),
                    plain[2..]
                        .iter()
                        .map(|name| Str::from(address(name)))
                        .collect(),
                )],
                nbytes: vec![(plain[1].into(), number(option("nbytes")).unwrap_or(100))],
                stimulus_id: self.stimulus(),
            },
            "restart" => Event::Restart {
                stimulus_id: self.stimulus(),
            },
            "explode" => Event::BundleExploded {
                bundle: plain[0].parse().expect("a bundle"),
                specs: plain[1..].iter().map(|&text| pickle(text)).collect(),
            },
            "fail-bundle" => Event::BundleFailed {
                bundle: plain[0].parse().expect("a bundle"),
                exception: Value::from("helper-failed"),
                traceback: Value::Nil,
                exception_text: Str::default(),
                traceback_text: Str::default(),
            },
            "wait" => {
                self.now += plain[0].parse::<f64>().expect("seconds");
                Event::Tick
            }
            "executing" => Event::Heartbeat {
                worker: self.worker(plain[0]),
                worker_now: None,
                metrics: metrics(),
                executing: vec![(plain[1].into(), plain[2].parse().expect("seconds"))],
                extensions: Value::Nil,
            },
            "balance" => {
                self.now += 1.1;
                Event::Tick
            }
            "answer" => Event::StealResponse {
                worker: self.worker(plain[0]),
                key: plain[1].into(),
                state: plain.get(2).map(|&state| Str::from(state)),
                stimulus_id: match option("stimulus") {
                    Some(stimulus_id) => stimulus_id.into(),
                    None => self.steals[&(self.worker(plain[0]), plain[1].into())].clone(),
                },
            },
            "levels" => return vec![self.levels()],
            "slices" => {
                let count = plain.first().map(|text| text.parse().expect("a count"));
                let out = self.slices(count.unwrap_or(usize::MAX));
                return self.show(&out);
            }
            "states" => return vec![self.states()],
            "attempts" => return self.attempts(plain[0]),
            "story" => return self.story(&keys(0)),
            "idle" => return vec![format!("= {}", self.names(self.scheduler.idle()))],
            "occupancy" => {
                let occupancy = self.scheduler.occupancy(self.worker(plain[0]));
                return vec![format!("= {occupancy:.3}")];
            }
            "empty" => {
                self.scheduler.validate_empty();
                return Vec::new();
            }
            _ => panic!("unknown command `{text}`"),
        };
        let out = self.handle(event);
        self.show(&out)
    }

    fn add_worker<'a>(
        &mut self,
        plain: &[&str],
        option: &impl Fn(&str) -> Option<&'a str>,
    ) -> Vec<String> {
        let worker = NewWorker {
            address: address(plain[0]).into(),
            name: Value::from(plain[0]),
            nthreads: plain
                .get(1)
                .map_or(1, |text| text.parse().expect("threads")),
            memory_limit: number(option("memory")).map(|limit| limit as u64),
            local_directory: Str::default(),
            resources: option("gpu")
                .map(|amount| ("gpu".into(), amount.parse().expect("an amount")))
                .into_iter()
                .collect(),
            status: Status::Init,
            nanny: option("nanny").map(Str::from),
            pid: 1,
            server_id: Str::from(plain[0]),
            services: Value::Nil,
            versions: Value::Nil,
            metrics: metrics(),
            worker_now: None,
            is_native: option("kind") == Some("native"),
            extra: Map::new(),
            stimulus_id: self.stimulus(),
        };
        let mut out = self.handle(Event::AddWorker(Box::new(worker)));
        if option("status").is_none() {
            let running = Event::WorkerStatusChange {
                worker: self.worker(plain[0]),
                status: Status::Running,
                stimulus_id: self.stimulus(),
            };
            out.extend(self.handle(running));
        }
        self.show(&out)
    }

    fn run_id<'a>(
        &self,
        worker: &str,
        key: &str,
        option: &impl Fn(&str) -> Option<&'a str>,
    ) -> i64 {
        number(option("run")).unwrap_or_else(|| {
            let run = self.runs.get(&(self.worker(worker), key.into()));
            *run.unwrap_or_else(|| panic!("{worker} was never sent {key}"))
        })
    }

    fn finished<'a>(
        &mut self,
        worker: &str,
        key: &str,
        option: &impl Fn(&str) -> Option<&'a str>,
    ) -> Event {
        let took: f64 = option("took").map_or(0.1, |text| text.parse().expect("seconds"));
        Event::TaskFinished {
            worker: self.worker(worker),
            key: key.into(),
            run_id: self.run_id(worker, key, option),
            nbytes: number(option("nbytes")).unwrap_or(10),
            r#type: Bytes::from_static(b"type"),
            typename: Str::from(option("type").unwrap_or("int")),
            metadata: Value::Nil,
            thread: Value::Nil,
            startstops: startstops(self.now, took),
            stimulus_id: self.stimulus(),
        }
    }

    /// `submit CLIENT WANTED… : a ; b <- a ; … | option=value …`
    pub(crate) fn graph(&mut self, text: &str) -> Graph {
        let (head, tail) = text.split_once(':').expect("a colon after what is wanted");
        let (tasks, options) = tail.split_once('|').unwrap_or((tail, ""));
        let mut head = head.split_whitespace().skip(1);
        let client = self.client(head.next().expect("a client"));
        let requested = head.map(Key::from).collect();
        let tasks: Vec<(Key, Vec<Key>)> = tasks
            .split(';')
            .filter(|task| !task.trim().is_empty())
            .map(|task| {
                let (key, dependencies) = task.split_once("<-").unwrap_or((task, ""));
                (
                    Key::from(key.trim()),
                    dependencies.split_whitespace().map(Key::from).collect(),
                )
            })
            .collect();
        let mut graph = graph(client, requested, &tasks, self.now, self.stimulus());
        let mut global = Map::new();
        for option in options.split_whitespace() {
            let (name, value) = option.split_once('=').expect("an option has a value");
            match name {
                "producers" => graph.flags.fill(TaskFlags(TaskFlags::DATA_PRODUCER)),
                "actors" => graph.actors = Actors::All,
                "parent" => graph.submitting_task = Some(value.into()),
                "fifo" => graph.fifo_timeout = value.parse().expect("seconds"),
                "bundle" => {
                    graph.bundles = vec![Bytes::from_static(b"blob")];
                    graph.specs = (0..tasks.len() as u32)
                        .map(|index| RunSpec::Bundle { bundle: 0, index })
                        .collect();
                }
                "workers" => {
                    let names = value.split(',').map(Value::from).collect();
                    global.push("workers", Value::Array(names));
                }
                "gpu" => {
                    let mut resources = Map::new();
                    resources.push("gpu", value.parse::<f64>().expect("an amount"));
                    global.push("resources", Value::Map(resources));
                }
                "span" => global.push("span", span(value)),
                "loose" => global.push("allow_other_workers", true),
                "resources" => global.push("resources", value),
                "retries" | "priority" => {
                    global.push(name, value.parse::<i64>().expect("a number"))
                }
                _ => panic!("unknown option `{name}`"),
            }
        }
        graph.global_annotations = Some(Arc::new(global));
        graph
    }

    fn show(&self, out: &[Instruction]) -> Vec<String> {
        out.iter()
            .filter_map(|instruction| self.show_one(instruction))
            .collect()
    }

    fn show_one(&self, instruction: &Instruction) -> Option<String> {
        let text = match instruction {
            Instruction::ToWorker { worker, message } => {
                let name = self
                    .scheduler
                    .worker(*worker)
                    .map_or("gone", |ws| host(&ws.address));
                match message {
                    ToWorker::ComputeTask { task, run_id, .. } => {
                        match self.scheduler.compute_task(*worker, *task, *run_id) {
                            Some(message) => format!("> {name} compute {}", message.key()),
                            None => format!("> {name} compute nothing"),
                        }
                    }
                    ToWorker::FreeKeys { keys, .. } => format!("> {name} free {}", join(keys)),
                    ToWorker::StealRequest { key, .. } => format!("> {name} steal {key}"),
                    ToWorker::RemoveReplicas { keys, .. } => {
                        format!("> {name} remove-replicas {}", join(keys))
                    }
                    ToWorker::RefreshWhoHas { who_has, .. } => {
                        let all: Vec<String> = who_has
                            .iter()
                            .map(|(key, holders)| {
                                let holders: Vec<&str> =
                                    holders.iter().map(|address| host(address)).collect();
                                format!("{key}@{}", holders.join(","))
                            })
                            .collect();
                        format!("> {name} who-has {}", all.join(" "))
                    }
                    ToWorker::RemoveWorker { address, .. } => {
                        format!("> {name} gone {}", host(address))
                    }
                    other => format!("> {name} {other:?}"),
                }
            }
            Instruction::ToClient { client, message } => {
                let name = &self.scheduler.client(*client)?.name;
                match message {
                    ToClient::KeyInMemory { key, r#type, .. } => {
                        let fresh = if r#type.is_some() { "" } else { " already" };
                        format!("< {name} memory {key}{fresh}")
                    }
                    ToClient::LostData { key } => format!("< {name} lost {key}"),
                    ToClient::TaskErred { key, exception, .. } => match exception.as_str() {
                        Some(text) => format!("< {name} erred {key} {text}"),
                        None => format!("< {name} erred {key} {}", pickled_class(exception)),
                    },
                    ToClient::TaskRetried { key } => format!("< {name} retried {key}"),
                    ToClient::CancelledKeys { keys, reason, .. } => {
                        let reason = reason.as_str().unwrap_or("no reason");
                        format!("< {name} cancelled {} ({reason})", join(keys))
                    }
                    ToClient::Restart => format!("< {name} restart"),
                    other => format!("< {name} {other:?}"),
                }
            }
            Instruction::ExplodeBundle { bundle, .. } => format!("! explode {bundle}"),
            Instruction::Reply { result, .. } => match result {
                Ok(value) => format!(
                    "! reply {} keys",
                    value.as_array().unwrap_or_default().len()
                ),
                Err(failure) => format!("! reply error {}", failure.text),
            },
            Instruction::Log {
                level: Level::Warning | Level::Error,
                text,
            } => {
                let text = text.lines().next().unwrap_or_default();
                let text: String = text.chars().take(100).collect();
                format!("~ {text}")
            }
            Instruction::LogEvent { message, .. } if self.logs_everything => {
                format!("~ {message:?}")
            }
            _ => return None,
        };
        Some(text.trim_end().to_owned())
    }

    fn names(&self, workers: impl Iterator<Item = WorkerId>) -> String {
        let names: Vec<&str> = workers
            .map(|worker| host(&self.scheduler.worker(worker).expect("known").address))
            .collect();
        names.join(" ")
    }

    pub(crate) fn states(&self) -> String {
        let mut states: Vec<String> = self
            .scheduler
            .tasks()
            .map(|(_, ts)| {
                let place = match ts.state {
                    State::Processing => format!("@{}", self.names(ts.processing_on.into_iter())),
                    State::Memory => {
                        format!("@{}", self.names(ts.who_has.iter()).replace(' ', ","))
                    }
                    _ => String::new(),
                };
                format!("{}={}{place}", ts.key, ts.state)
            })
            .collect();
        states.sort();
        format!("= {}", states.join(" ")).trim_end().to_owned()
    }

    /// What the exception of a task says of each worker that died under it.
    fn attempts(&self, key: &str) -> Vec<String> {
        let task = self.scheduler.task_id(&key.into()).expect("a known task");
        let ts = self.scheduler.task(task).expect("a known task");
        let failure = ts.failure.as_ref().expect("a task that failed");
        let pickle = failure.exception.as_bin().expect("a pickle").to_vec();
        let text = String::from_utf8_lossy(&pickle).into_owned();
        let (_, text) = text.split_once("killed.html.\n").unwrap_or_default();
        // What follows is the next string of the pickle.
        let (text, _) = text.split_once('\u{fffd}').unwrap_or_default();
        text.lines().map(|line| format!("= {line}")).collect()
    }

    fn levels(&self) -> String {
        let levels = self.scheduler.tasks().filter_map(|(task, ts)| {
            let level = self.scheduler.steal_level(task)?;
            Some(format!("{}:{level}", ts.key))
        });
        let mut levels: Vec<String> = levels.collect();
        levels.sort();
        format!("= {}", levels.join(" ")).trim_end().to_owned()
    }

    fn story(&self, keys: &[Key]) -> Vec<String> {
        let transitions: Vec<_> = if keys.is_empty() {
            self.scheduler.transition_log()
        } else {
            self.scheduler.story(keys, &[])
        };
        transitions
            .iter()
            .map(|transition| {
                let recs: Vec<String> = transition
                    .recommendations
                    .iter()
                    .map(|(key, state)| format!("{key}:{state}"))
                    .collect();
                format!(
                    "= {} {}->{} {}",
                    transition.key,
                    transition.start,
                    transition.finish,
                    recs.join(" ")
                )
                .trim_end()
                .to_owned()
            })
            .collect()
    }
}

/// A graph whose tasks run in the order in which they are given.
pub(crate) fn graph(
    client: ClientId,
    requested: Vec<Key>,
    tasks: &[(Key, Vec<Key>)],
    now: f64,
    stimulus_id: StimulusId,
) -> Graph {
    let mut keys: Vec<Key> = tasks.iter().map(|(key, _)| key.clone()).collect();
    let mut index: std::collections::HashMap<Key, u32> = (0..)
        .zip(&keys)
        .map(|(at, key)| (key.clone(), at))
        .collect();
    let mut dependency_offsets = vec![0];
    let mut dependencies = Vec::new();
    for (_, given) in tasks {
        for dependency in given {
            let at = *index.entry(dependency.clone()).or_insert_with(|| {
                keys.push(dependency.clone());
                keys.len() as u32 - 1
            });
            dependencies.push(at);
        }
        dependency_offsets.push(dependencies.len() as u32);
    }
    Graph {
        client,
        requested,
        keys,
        dependency_offsets,
        dependencies,
        flags: vec![TaskFlags::default(); tasks.len()],
        specs: tasks.iter().map(|_| pickle("spec")).collect(),
        bundles: Vec::new(),
        order: (0..tasks.len() as i64).collect(),
        annotations: Vec::new(),
        global_annotations: None,
        actors: Actors::None,
        user_priority: Number::Int(0),
        fifo_timeout: 60.0,
        submitting_task: None,
        barriers: Vec::new(),
        code: Value::Nil,
        span_metadata: Value::Nil,
        stimulus_id,
        start: now,
    }
}

/// The annotation of `outer/inner`: each level's id is the path to it.
pub(crate) fn span(path: &str) -> Value {
    let ends = path.match_indices('/').map(|(end, _)| end);
    let ids = ends
        .chain([path.len()])
        .map(|end| Value::from(&path[..end]));
    let mut annotation = Map::new();
    annotation.push("name", path.split('/').map(Value::from).collect::<Value>());
    annotation.push("ids", ids.collect::<Value>());
    Value::Map(annotation)
}

pub(crate) fn pickle(text: &str) -> RunSpec {
    RunSpec::Pickle(Bytes::copy_from_slice(text.as_bytes()))
}

pub(crate) fn startstops(now: f64, took: f64) -> Value {
    let mut map = Map::new();
    map.push("action", "compute");
    map.push("start", now);
    map.push("stop", now + took);
    Value::Array(vec![Value::Map(map)])
}

pub(crate) fn metrics() -> Value {
    let mut spilled = Map::new();
    spilled.push("memory", 0i64);
    spilled.push("disk", 0i64);
    let mut metrics = Map::new();
    metrics.push("memory", 1_000_000i64);
    metrics.push("spilled_bytes", Value::Map(spilled));
    Value::Map(metrics)
}

pub(crate) fn address(name: &str) -> String {
    format!("tcp://{name}:1")
}

fn host(address: &str) -> &str {
    address.trim_start_matches("tcp://").trim_end_matches(":1")
}

fn join(keys: &[Key]) -> String {
    let keys: Vec<String> = keys.iter().map(Key::python_str).collect();
    keys.join(" ")
}

fn number(text: Option<&str>) -> Option<i64> {
    text.map(|text| text.parse().expect("a number"))
}

/// The class named in a pickle that the scheduler made.
fn pickled_class(exception: &Value) -> String {
    let bytes = exception
        .as_bin()
        .map(|bytes| bytes.to_vec())
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    [
        "KilledWorker",
        "NoValidWorkerError",
        "NoWorkerError",
        "MemoryError",
        "RuntimeError",
        "TypeError",
        "AssertionError",
        "KeyError",
    ]
    .into_iter()
    .find(|class| text.contains(class))
    .unwrap_or("something")
    .to_owned()
}
