//! The state machine: one door for events, and what it remembers.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::bundles::Bundles;
use crate::client::{ClientState, FIRE_AND_FORGET};
use crate::clients::Clients;
use crate::config::Config;
use crate::deaths::{Deaths, Leave};
use crate::event::Event;
use crate::failure::Raised;
use crate::graph::RunSpec;
use crate::groups::Groups;
use crate::id::{ClientId, StimulusId, TaskId, WorkerId};
use crate::instruction::{Instruction, Instructions, Level, ToClient, ToWorker};
use crate::lingering::Lingering;
use crate::merge::{Computation, PendingGraph};
use crate::sets::IdSet;
use crate::task::{ErredTask, Rank, State};
use crate::tasks::{KeyHash, Tasks};
use crate::transitions::Recommendations;
use crate::transitions::story::Story;
use crate::worker::ById;
use crate::workers::Workers;

/// Dask's scheduler without sockets, clocks or Python.
///
/// Same as `SchedulerState` and the stimulus handlers of `Scheduler` in
/// distributed, except that ties between workers break by id.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    pub(crate) tasks: Tasks,
    pub(crate) groups: Groups,
    pub(crate) workers: Workers,
    pub(crate) clients: Clients,
    pub(crate) bundles: Bundles,
    /// The client `fire-and-forget`.
    pub(crate) fire_and_forget: ClientId,
    /// Root-ish tasks that wait for a slot, best first.
    pub(crate) queued: BTreeSet<(Rank, u32, TaskId)>,
    pub(crate) queue_sequence: u32,
    /// Tasks in `no-worker`, oldest first.
    pub(crate) unrunnable: IdSet<TaskId>,
    pub(crate) unrunnable_since: ById<TaskId, f64>,
    /// When the last running worker vanished while work was pending.
    pub(crate) no_workers_since: Option<f64>,
    /// Tasks with at least two replicas.
    pub(crate) replicated: IdSet<TaskId>,
    /// Prefixes with tasks in processing, oldest first.
    pub(crate) busy_prefixes: indexmap::IndexSet<crate::PrefixId, foldhash::fast::FixedState>,
    /// Sum of `network_occ` of all workers.
    pub(crate) network_occ: i64,
    /// Bytes per second, by the workers' measurements.
    pub(crate) bandwidth: f64,
    /// Bytes per second between two workers, by address: (receiver, sender).
    pub(crate) bandwidth_workers:
        HashMap<(Arc<str>, Arc<str>), f64, foldhash::quality::RandomState>,
    /// Bytes per second by type of result.
    pub(crate) bandwidth_types: indexmap::IndexMap<Arc<str>, f64, foldhash::quality::RandomState>,
    /// Worker metrics summed up since the start.
    pub(crate) worker_metrics:
        indexmap::IndexMap<oxidask_wire::Key, f64, foldhash::quality::RandomState>,
    /// Tasks ever sent to processing; turns the round robin.
    pub(crate) n_tasks: u64,
    pub(crate) last_run_id: i64,
    pub(crate) generation: i64,
    /// When the generation last changed.
    pub(crate) last_generation_time: f64,
    pub(crate) transition_counter: u64,
    /// Transitions nobody foresaw; each was logged.
    pub(crate) impossible_transitions: u64,
    pub(crate) recommendations: Recommendations,
    pub(crate) stealing: crate::stealing::Stealing,
    pub(crate) story: Story,
    /// What a process that mirrors the state was told, while there is one.
    pub(crate) mirror: Option<Box<crate::mirror::Mirror>>,
    pub(crate) erred_tasks: VecDeque<ErredTask>,
    pub(crate) deaths: Deaths,
    pub(crate) computations: VecDeque<Computation>,
    /// The worker that is being given queued tasks beyond its slots.
    pub(crate) ahead: Option<WorkerId>,
    pub(crate) pending_graphs: VecDeque<PendingGraph>,
    /// Keys of which an extension wants to hear when their task is forgotten.
    pub(crate) announced: HashSet<oxidask_wire::Key, foldhash::quality::RandomState>,
    /// Tasks that are let go by and by.
    pub(crate) lingering: Lingering,
    /// The last `compute-task-<time>`, with that time.
    pub(crate) compute_stimulus: Option<(f64, StimulusId)>,
    pub(crate) workers_added_total: u64,
    pub(crate) workers_removed_total: u64,
    pub(crate) clients_added_total: u64,
    pub(crate) clients_removed_total: u64,
}

/// What every handler needs: the time, the reason, and where effects go.
pub(crate) struct Cx<'a> {
    pub(crate) now: f64,
    pub(crate) stimulus_id: &'a StimulusId,
    pub(crate) out: &'a mut Instructions,
}

impl Cx<'_> {
    pub(crate) fn log(&mut self, level: Level, text: impl Into<String>) {
        self.out.push(Instruction::Log {
            level,
            text: text.into(),
        });
    }

    pub(crate) fn event(
        &mut self,
        topics: impl IntoIterator<Item = Arc<str>>,
        message: oxidask_wire::Value,
    ) {
        self.out.push(Instruction::LogEvent {
            topics: topics.into_iter().collect(),
            message,
        });
    }

    pub(crate) fn tell_worker(&mut self, worker: WorkerId, message: ToWorker) {
        self.out.push(Instruction::ToWorker { worker, message });
    }

    /// `free-keys` for one more key, in the message before if that went the same way.
    pub(crate) fn free_key(&mut self, worker: WorkerId, key: &oxidask_wire::Key) {
        if let Some(Instruction::ToWorker {
            worker: last,
            message: ToWorker::FreeKeys { keys, stimulus_id },
        }) = self.out.last_mut()
            && *last == worker
            && stimulus_id == self.stimulus_id
        {
            keys.push(key.clone());
            return;
        }
        self.tell_worker(
            worker,
            ToWorker::FreeKeys {
                keys: vec![key.clone()],
                stimulus_id: self.stimulus_id.clone(),
            },
        );
    }
}

impl Scheduler {
    /// A scheduler without workers, clients and tasks.
    pub fn new(config: Config) -> Self {
        let mut clients = Clients::default();
        let fire_and_forget = clients.insert(ClientState::new(FIRE_AND_FORGET.into(), 0.0));
        Self {
            tasks: Tasks::new(),
            groups: Groups::new(config.default_task_durations.clone()),
            workers: Workers::default(),
            clients,
            bundles: Bundles::default(),
            fire_and_forget,
            queued: BTreeSet::new(),
            queue_sequence: 0,
            unrunnable: IdSet::default(),
            unrunnable_since: ById::default(),
            no_workers_since: None,
            replicated: IdSet::default(),
            busy_prefixes: indexmap::IndexSet::default(),
            network_occ: 0,
            bandwidth: config.bandwidth,
            bandwidth_workers: HashMap::default(),
            bandwidth_types: indexmap::IndexMap::default(),
            worker_metrics: indexmap::IndexMap::default(),
            n_tasks: 0,
            last_run_id: 0,
            generation: 0,
            last_generation_time: 0.0,
            transition_counter: 0,
            impossible_transitions: 0,
            recommendations: Recommendations::default(),
            stealing: crate::stealing::Stealing::default(),
            story: Story::new(config.low_level_log_length),
            mirror: None,
            erred_tasks: VecDeque::new(),
            deaths: Deaths::default(),
            computations: VecDeque::new(),
            ahead: None,
            pending_graphs: VecDeque::new(),
            announced: HashSet::default(),
            lingering: Lingering::default(),
            compute_stimulus: None,
            workers_added_total: 0,
            workers_removed_total: 0,
            clients_added_total: 0,
            clients_removed_total: 0,
            config,
        }
    }

    /// Takes one event in. `now` is in seconds since the epoch.
    pub fn handle(&mut self, now: f64, event: Event, out: &mut Instructions) {
        self.begin();
        self.apply(now, event, out);
    }

    /// Takes in what follows from the event being handled, whose instructions
    /// are not carried out yet.
    pub(crate) fn apply(&mut self, now: f64, event: Event, out: &mut Instructions) {
        if !self.pending_graphs.is_empty() && self.has_to_wait(&event) {
            return self.defer(event);
        }
        match event {
            Event::AddWorker(worker) => self.add_worker(now, *worker, out),
            Event::RemoveWorker {
                worker,
                stimulus_id,
                expected,
                close,
            } => {
                let leave = match expected {
                    true => Leave::Expected,
                    false => Leave::Removed,
                };
                self.remove_worker(
                    worker,
                    leave,
                    close,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::WorkerLost {
                worker,
                stimulus_id,
            } => {
                self.worker_lost(
                    worker,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::WorkerDied {
                nanny,
                pid,
                reason,
                stimulus_id,
            } => {
                self.worker_died(
                    &nanny,
                    pid,
                    &reason,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::Heartbeat {
                worker,
                worker_now,
                metrics,
                executing,
                extensions,
            } => {
                self.heartbeat(now, worker, worker_now, metrics, Some(executing));
                let spans = extensions.as_map().and_then(|map| map.get("spans"));
                if let Some(metrics) = spans.and_then(oxidask_wire::Value::as_map) {
                    self.groups.spans.heartbeat(metrics);
                }
            }
            Event::WorkerStatusChange {
                worker,
                status,
                stimulus_id,
            } => {
                self.worker_status_change(
                    worker,
                    status,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::TaskFinished {
                worker,
                key,
                run_id,
                nbytes,
                r#type,
                typename,
                metadata,
                thread,
                startstops,
                stimulus_id,
            } => {
                let finished = crate::reports::Finished {
                    worker,
                    nbytes,
                    r#type,
                    typename,
                    metadata,
                    thread,
                    startstops,
                };
                self.task_finished(
                    &key,
                    run_id,
                    finished,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::TaskErred {
                worker,
                key,
                run_id,
                exception,
                traceback,
                exception_text,
                traceback_text,
                thread,
                startstops,
                stimulus_id,
            } => {
                let failure = crate::task::TaskFailure {
                    cause: key,
                    exception,
                    traceback,
                    exception_text,
                    traceback_text,
                };
                self.task_erred(
                    worker,
                    run_id,
                    failure,
                    thread,
                    startstops,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::ReleaseWorkerData {
                worker,
                key,
                stimulus_id,
            } => {
                self.release_worker_data(
                    worker,
                    &key,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::AddKeys {
                worker,
                keys,
                stimulus_id,
            } => {
                self.add_keys(
                    worker,
                    keys,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::LongRunning {
                worker,
                key,
                run_id,
                compute_duration,
                stimulus_id,
            } => {
                self.long_running(
                    worker,
                    &key,
                    run_id,
                    compute_duration,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::Reschedule {
                worker,
                key,
                stimulus_id,
            } => {
                self.reschedule(
                    worker,
                    &key,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::RequestRefreshWhoHas {
                worker,
                keys,
                stimulus_id,
            } => {
                self.refresh_who_has(
                    worker,
                    keys,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::AddClient { name, versions } => self.add_client(now, name, versions, out),
            Event::RemoveClient {
                client,
                stimulus_id,
            } => {
                self.remove_client(
                    client,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::ClientHeartbeat { client } => self.client_heartbeat(now, client, out),
            Event::UpdateGraph(graph) => self.update_graph(now, *graph, out),
            Event::Continue => {
                self.continue_release(now, out);
                self.continue_graph(now, out);
            }
            Event::GraphFailed {
                client,
                keys,
                exception,
                traceback,
                text,
                stimulus_id,
            } => {
                self.graph_failed(
                    client,
                    &keys,
                    &exception,
                    &traceback,
                    text,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::BundleExploded { bundle, specs } => {
                self.bundle_exploded(now, bundle, specs, out)
            }
            Event::BundleFailed {
                bundle,
                exception,
                traceback,
                exception_text,
                traceback_text,
            } => {
                let raised = Raised {
                    exception,
                    traceback,
                    exception_text,
                    traceback_text,
                };
                self.bundle_failed(now, bundle, &raised, out);
            }
            Event::ClientDesiresKeys { client, keys } => {
                self.client_desires_keys(now, &client, &keys, out)
            }
            Event::ClientReleasesKeys {
                client,
                keys,
                stimulus_id,
            } => {
                self.client_releases_keys(
                    &client,
                    &keys,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::ClientReleasesTasks {
                client,
                tasks,
                stimulus_id,
            } => {
                self.client_releases_tasks(
                    &client,
                    &tasks,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::CancelKeys {
                client,
                keys,
                force,
                reason,
                msg,
                stimulus_id: _,
            } => {
                let stimulus_id = StimulusId::from(format!("cancel-key-{now}"));
                let cx = &mut Cx {
                    now,
                    stimulus_id: &stimulus_id,
                    out,
                };
                self.cancel_keys(client, keys, force, &reason, &msg, cx);
            }
            Event::ReportKey { client, key } => self.report_key(client, key, out),
            Event::UpdateData {
                client,
                who_has,
                nbytes,
                stimulus_id,
            } => {
                self.update_data(
                    client,
                    who_has,
                    &nbytes,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::Retry {
                request,
                client,
                keys,
                stimulus_id,
            } => {
                self.retry(
                    request,
                    client,
                    keys,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::Restart { stimulus_id } => self.restart(&mut Cx {
                now,
                stimulus_id: &stimulus_id,
                out,
            }),
            Event::SetRestrictions { worker } => self.set_restrictions(worker),
            Event::SetResources { worker, resources } => self.set_resources(worker, resources),
            Event::ReleaseKeys { keys, stimulus_id } => {
                self.release_keys(
                    &keys,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::StealResponse {
                worker,
                key,
                state,
                stimulus_id,
            } => {
                self.steal_response(
                    worker,
                    &key,
                    state.as_ref(),
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::AcquireReplicas {
                worker,
                keys,
                stimulus_id,
            } => {
                self.acquire_replicas(
                    worker,
                    keys,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::RemoveReplicas {
                worker,
                keys,
                stimulus_id,
            } => {
                self.remove_replicas(
                    worker,
                    keys,
                    &mut Cx {
                        now,
                        stimulus_id: &stimulus_id,
                        out,
                    },
                );
            }
            Event::Tick => self.tick(now, out),
        }
        if self.no_workers_since.is_some() && self.queued.is_empty() && self.unrunnable.is_empty() {
            self.no_workers_since = None;
        }
        self.wind_stealing(now);
    }

    /// What the last event left to be tidied up once its instructions were carried out.
    fn begin(&mut self) {
        debug_assert!(
            self.recommendations.is_empty(),
            "an event left recommendations behind"
        );
        self.tasks.reclaim();
        self.bundles.drop_sent();
    }

    /// Whether `Event::Continue` has something to do.
    pub fn has_pending_work(&self) -> bool {
        self.has_pending_graphs() || !self.lingering.is_empty() || self.tasks.has_garbage()
    }

    /// Whether graphs are on their way in.
    pub fn has_pending_graphs(&self) -> bool {
        !self.pending_graphs.is_empty()
    }

    /// Whether `Instruction::TaskForgotten` tells that the task of a key is forgotten.
    pub(crate) fn announce_forgotten(&mut self, key: &oxidask_wire::Key, announce: bool) {
        if announce {
            self.announced.insert(key.clone());
        } else {
            self.announced.remove(key);
        }
    }

    /// Moves a task to another state, with the counters of its group and prefix.
    pub(crate) fn set_state(&mut self, task: TaskId, state: State) {
        let ts = &mut self.tasks[task];
        let from = std::mem::replace(&mut ts.state, state);
        self.groups.change_state(ts.group, from, state);
    }

    /// Adds a task that is not known.
    pub(crate) fn new_task(
        &mut self,
        key: oxidask_wire::Key,
        run_spec: RunSpec,
        state: State,
    ) -> TaskId {
        self.new_task_hashed(self.tasks.hash(&key), key, run_spec, state)
    }

    /// Adds a task that is not known, whose key's hash is.
    pub(crate) fn new_task_hashed(
        &mut self,
        hash: KeyHash,
        key: oxidask_wire::Key,
        run_spec: RunSpec,
        state: State,
    ) -> TaskId {
        let group = self.groups.get_or_create(&key);
        self.groups.add_task(group, state);
        self.tasks.insert(
            hash,
            crate::task::TaskState::new(key, run_spec, state, group),
        )
    }

    /// Sends to a client if it has a stream.
    pub(crate) fn tell_client(&self, client: ClientId, message: ToClient, out: &mut Instructions) {
        if self
            .clients
            .get(client)
            .is_some_and(|client| client.connected)
        {
            out.push(Instruction::ToClient { client, message });
        }
    }

    /// Tells everybody who wants a task; `make` is called once per connected client.
    pub(crate) fn tell_who_wants(
        &self,
        task: TaskId,
        out: &mut Instructions,
        make: impl Fn() -> ToClient,
    ) {
        for client in &self.tasks[task].who_wants {
            if self.clients[client].connected {
                out.push(Instruction::ToClient {
                    client,
                    message: make(),
                });
            }
        }
    }
}
