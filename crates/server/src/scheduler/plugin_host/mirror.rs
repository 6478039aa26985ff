//! What the shell tells the host, and when.

use oxidask_scheduler::{Graph, Instruction, Scheduler};
use oxidask_wire::{Map, Value, map};

use super::super::shell::Shell;
use super::link::Outgoing;

/// Bytes of changes that may wait for a host that is slow. Chosen: some hundred
/// thousand transitions, seconds of work for Python. Beyond it plug-ins miss
/// transitions; the state itself is told in full once they have caught up.
const WAITING_NBYTES_MAX: usize = 32 << 20;

/// Once fewer bytes wait, a host that was too slow hears of transitions again.
pub(super) const WAITING_NBYTES_RESUME: usize = WAITING_NBYTES_MAX / 4;

/// Tasks of a graph that is surely taken in by one event. Chosen below the core's
/// own limit: only the order of `update_graph` and the first transitions depends on it.
const TASKS_AT_ONCE: usize = 1000;

/// The host's place in the shell.
#[derive(Debug)]
pub(in crate::scheduler) struct MirrorLink {
    outgoing: Outgoing,
    /// Tells this host from one that has ended.
    pid: u32,
    mode: Mode,
    /// `update_graph` of graphs that are taken in in slices, for when all their tasks are there.
    graphs: Vec<Map>,
}

/// What the host is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Nothing until it asks.
    OnDemand,
    /// Everything that happens.
    Follows,
    /// It would be everything, but it has not read what there was.
    Lags {
        /// The number of the last transition it was told of.
        transition_counter: u64,
    },
}

impl Shell {
    /// A host begins to mirror the state.
    pub(super) fn mirror_attach(&mut self, outgoing: Outgoing, pid: u32) {
        self.core.mirror_start();
        self.mirror = Some(MirrorLink {
            outgoing,
            pid,
            mode: Mode::OnDemand,
            graphs: Vec::new(),
        });
    }

    /// The host with this process id has ended.
    pub(super) fn mirror_detach(&mut self, pid: u32) {
        if self.mirror.as_ref().is_some_and(|link| link.pid == pid) {
            self.mirror = None;
            self.core.mirror_stop();
            self.extensions.listen(false);
        }
    }

    /// Whether the host is told of transitions as they happen, or ceases to be.
    ///
    /// It first gets the state of this moment, as if it had pulled it: a plug-in that
    /// looks at the state and waits for what follows from it must miss nothing between.
    pub(super) fn mirror_follow(&mut self, follows: bool) {
        if follows {
            self.mirror_pull();
        }
        let Some(link) = &mut self.mirror else {
            return;
        };
        if follows == (link.mode != Mode::OnDemand) {
            return;
        }
        link.graphs.clear();
        link.mode = if follows {
            Mode::Follows
        } else {
            Mode::OnDemand
        };
        self.core.mirror_follow(follows);
        self.extensions.listen(follows);
    }

    /// The answer to a host that wants to know the state.
    pub(super) fn mirror_pull(&mut self) {
        if let Some(link) = &self.mirror {
            self.core.mirror_changes();
            link.outgoing
                .send_changes("pulled", self.core.mirror_take());
        }
    }

    /// Has the host know the state of this moment when it reads what is sent next.
    pub(super) fn mirror_sync(&mut self) {
        let link = self.mirror.as_ref();
        if link.is_some_and(|link| link.mode == Mode::OnDemand) {
            self.mirror_pull();
        }
    }

    /// Tells the host what the last event did.
    pub(in crate::scheduler) fn mirror_settle(&mut self) {
        let Some(link) = &mut self.mirror else {
            return;
        };
        match link.mode {
            Mode::OnDemand => return,
            Mode::Lags { transition_counter } => {
                if link.outgoing.waiting_nbytes() >= WAITING_NBYTES_RESUME {
                    return;
                }
                let lost = self.core.transition_counter() - transition_counter;
                link.mode = Mode::Follows;
                self.core.mirror_follow(true);
                self.extensions.listen(true);
                self.core.mirror_changes();
                self.core.mirror_lost(lost);
            }
            Mode::Follows => {
                self.core.mirror_changes();
                for instruction in self.out.iter() {
                    if let Some((name, arguments)) = hook(&self.core, instruction) {
                        self.core.mirror_hook(name, &Value::Map(arguments));
                    }
                }
                for (topic, message) in self.extensions.heard() {
                    let told = hook_of_event(&topic, &message, &mut link.graphs);
                    let arguments = map! { "topic" => &topic, "msg" => message };
                    self.core.mirror_hook("log_event", &Value::Map(arguments));
                    if let Some((name, arguments)) = told {
                        self.core.mirror_hook(name, &Value::Map(arguments));
                    }
                }
            }
        }
        send_log(&mut self.core, &link.outgoing);
        if link.outgoing.waiting_nbytes() > WAITING_NBYTES_MAX {
            link.mode = Mode::Lags {
                transition_counter: self.core.transition_counter(),
            };
            self.core.mirror_follow(false);
            self.extensions.listen(false);
            tracing::warn!(
                target: "distributed.scheduler",
                "Scheduler plugins are too slow: {} MiB of transitions wait for them, further ones are left out",
                WAITING_NBYTES_MAX >> 20
            );
        }
    }

    /// A graph is about to be taken in.
    pub(in crate::scheduler) fn mirror_graph(&mut self, graph: &Graph) {
        if !self.core.mirror_follows() {
            return;
        }
        let Some(client) = self.core.client(graph.client) else {
            return;
        };
        let arguments = map! {
            "client" => &client.name,
            "keys" => graph.requested.iter().map(Value::from).collect::<Value>(),
            "tasks" => graph.keys[..graph.specs.len()].iter().map(Value::from).collect::<Value>(),
            "stimulus_id" => graph.stimulus_id.as_str(),
        };
        if graph.keys.len() <= TASKS_AT_ONCE {
            self.core.mirror_graph(Value::Map(arguments));
        } else if let Some(link) = &mut self.mirror {
            link.graphs.push(arguments);
        }
    }
}

fn send_log(core: &mut Scheduler, outgoing: &Outgoing) {
    let log = core.mirror_take();
    // The end of an event in which nothing changed.
    const NOTHING: [u8; 2] = [0x91, 0x00];
    if log != NOTHING && !log.is_empty() {
        outgoing.send_changes("mirror", log);
    }
}

/// The hook of plug-ins that an instruction calls, with its arguments.
fn hook(core: &Scheduler, instruction: &Instruction) -> Option<(&'static str, Map)> {
    match instruction {
        Instruction::WorkerAdded { worker } => {
            let address = &core.worker(*worker)?.address;
            Some(("add_worker", map! { "worker" => address }))
        }
        Instruction::WorkerRemoved {
            address,
            stimulus_id,
            ..
        } => {
            let arguments = map! { "worker" => address, "stimulus_id" => stimulus_id.as_str() };
            Some(("remove_worker", arguments))
        }
        Instruction::Restarted => Some(("restart", Map::new())),
        Instruction::LogEvent { .. }
        | Instruction::ToWorker { .. }
        | Instruction::ToClient { .. }
        | Instruction::ExplodeBundle { .. }
        | Instruction::Reply { .. }
        | Instruction::TaskRecord(_)
        | Instruction::BarrierLeft { .. }
        | Instruction::TaskForgotten { .. }
        | Instruction::CreateShuffleRun(_)
        | Instruction::ShuffleInputsDone { .. }
        | Instruction::Log { .. } => None,
    }
}

/// The hook that belongs to an event: of clients that come and go, and of graphs
/// whose last slice was taken in.
fn hook_of_event(
    topic: &str,
    message: &Value,
    graphs: &mut Vec<Map>,
) -> Option<(&'static str, Map)> {
    let message = message.as_map()?;
    let field = |name: &str| message.get(name);
    match (topic, field("action")?.as_str()?) {
        ("all", "add-client") => {
            Some(("add_client", map! { "client" => field("client")?.clone() }))
        }
        ("all", "remove-client") => Some((
            "remove_client",
            map! { "client" => field("client")?.clone() },
        )),
        ("scheduler", "update-graph") => {
            let stimulus_id = field("stimulus_id");
            let is_it = |graph: &Map| graph.get("stimulus_id") == stimulus_id;
            let at = graphs.iter().position(is_it)?;
            Some(("update_graph", graphs.remove(at)))
        }
        _ => None,
    }
}
