//! Large graphs are taken in by slices, so that nobody waits for them.
//!
//! ```text
//!  index ─► find ─► walk ─► create ─► want ─► descend ─► sort ─► ascend ─► report ─► drop
//!  keys     wanted  deps    deps      client  released   by      waiting   and       what
//!                   first   first             to waiting prio    to worker unpin     is left
//!                           └──────── its client leaves ───┬────────────┘
//!                                               undo ──► sort, ascend, …
//!                                               what nobody else needs
//! ```
//!
//! Other events come between slices. Tasks are pinned from the moment they are
//! created or found until the end, so that none is forgotten, or computed and
//! released, because its dependents were not there yet. Nothing goes to a worker
//! before every dependent of it is waiting (`descend` before `ascend`). Later
//! events of the same client wait until its graph is in: a release must not
//! overtake the graph it follows. When the client leaves, what somebody else has
//! come to want meanwhile goes the rest of the way all the same.

use std::collections::VecDeque;

use crate::event::Event;
use crate::graph::Graph;
use crate::id::{ClientId, StimulusId, TaskId};
use crate::instruction::Instructions;
use crate::scheduler::{Cx, Scheduler};
use crate::task::State;

use super::Intake;

/// A graph that is being taken in.
#[derive(Debug)]
pub(crate) struct PendingGraph {
    intake: Intake,
    stimulus_id: StimulusId,
    stage: Stage,
    /// Items of the stage that are done.
    cursor: usize,
    /// The walk's path: a key and how many of its dependencies were visited.
    path: Vec<(u32, u32)>,
    /// Keys in the order in which they go to workers.
    by_priority: Vec<u32>,
    /// Keys of `touched` that were pinned.
    pinned: usize,
    /// The client is gone.
    is_abandoned: bool,
    /// Later events of the same client.
    deferred: VecDeque<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Index,
    Walk,
    Create,
    Want,
    Descend,
    Undo,
    Sort,
    Ascend,
    Report,
    Drop,
    Done,
}

impl Scheduler {
    pub(super) fn begin_sliced(&mut self, graph: Graph) {
        self.pending_graphs.push_back(PendingGraph {
            stimulus_id: graph.stimulus_id.clone(),
            intake: Intake::new(graph),
            stage: Stage::Index,
            cursor: 0,
            path: Vec::new(),
            by_priority: Vec::new(),
            pinned: 0,
            is_abandoned: false,
            deferred: VecDeque::new(),
        });
    }

    /// Whether a graph of this client is on its way in: what the client sends waits for it.
    pub(crate) fn is_taking_in(&self, client: ClientId) -> bool {
        let mut pending = self.pending_graphs.iter();
        pending.any(|pending| pending.intake.graph.client == client && !pending.is_abandoned)
    }

    /// Whether the client that sent an event has a graph on its way in.
    pub(crate) fn has_to_wait(&self, event: &Event) -> bool {
        self.sender(event)
            .is_some_and(|client| self.is_taking_in(client))
    }

    /// Keeps an event back until the last graph of its client is in.
    pub(crate) fn defer(&mut self, event: Event) {
        let client = self.sender(&event);
        let mut pending = self.pending_graphs.iter_mut().rev();
        let last = pending
            .find(|pending| Some(pending.intake.graph.client) == client && !pending.is_abandoned);
        if let Some(last) = last {
            last.deferred.push_back(event);
        }
    }

    /// The client whose stream an event came on, if its order on that stream matters.
    fn sender(&self, event: &Event) -> Option<ClientId> {
        match event {
            Event::UpdateGraph(graph) => Some(graph.client),
            Event::GraphFailed { client, .. }
            | Event::CancelKeys { client, .. }
            | Event::ReportKey { client, .. } => Some(*client),
            Event::ClientReleasesKeys { client, .. }
            | Event::ClientReleasesTasks { client, .. }
            | Event::ClientDesiresKeys { client, .. } => self.clients.find(client),
            Event::AddWorker(_)
            | Event::RemoveWorker { .. }
            | Event::WorkerLost { .. }
            | Event::WorkerDied { .. }
            | Event::Heartbeat { .. }
            | Event::WorkerStatusChange { .. }
            | Event::TaskFinished { .. }
            | Event::TaskErred { .. }
            | Event::ReleaseWorkerData { .. }
            | Event::AddKeys { .. }
            | Event::LongRunning { .. }
            | Event::Reschedule { .. }
            | Event::RequestRefreshWhoHas { .. }
            | Event::StealResponse { .. }
            | Event::AddClient { .. }
            | Event::RemoveClient { .. }
            | Event::ClientHeartbeat { .. }
            | Event::Continue
            | Event::BundleExploded { .. }
            | Event::BundleFailed { .. }
            | Event::UpdateData { .. }
            | Event::Retry { .. }
            | Event::Restart { .. }
            | Event::SetRestrictions { .. }
            | Event::SetResources { .. }
            | Event::ReleaseKeys { .. }
            | Event::AcquireReplicas { .. }
            | Event::RemoveReplicas { .. }
            | Event::Tick => None,
        }
    }

    /// The client is gone: its graphs are undone as far as nobody else needs them.
    pub(crate) fn abandon_graphs(&mut self, client: ClientId) {
        for pending in &mut self.pending_graphs {
            if pending.intake.graph.client == client {
                pending.abandon();
            }
        }
    }

    /// Forgets graphs on their way in, with the pins they set.
    pub(crate) fn drop_pending_graphs(&mut self) {
        for pending in std::mem::take(&mut self.pending_graphs) {
            for at in pending.pinned_range() {
                if let Some(task) = self.alive(&pending.intake, at) {
                    self.tasks[task].pins -= 1;
                }
            }
            self.drop_unused_bundles(&pending.intake);
        }
    }

    /// Does one bounded slice of the oldest graph on its way in.
    pub(crate) fn continue_graph(&mut self, now: f64, out: &mut Instructions) {
        let Some(mut pending) = self.pending_graphs.pop_front() else {
            return;
        };
        if !self.lingering.is_empty() && pending.is_new() {
            // It has to find gone what was released before.
            self.pending_graphs.push_front(pending);
            return;
        }
        let stimulus_id = pending.stimulus_id.clone();
        let cx = &mut Cx {
            now,
            stimulus_id: &stimulus_id,
            out,
        };
        self.slice(&mut pending, cx);
        if pending.stage != Stage::Done {
            self.pending_graphs.push_front(pending);
            return;
        }
        let mut deferred = std::mem::take(&mut pending.deferred);
        while let Some(event) = deferred.pop_front() {
            let is_graph = matches!(event, Event::UpdateGraph(_));
            self.apply(now, event, out);
            if is_graph
                && !deferred.is_empty()
                && self.hand_over(pending.intake.graph.client, &mut deferred)
            {
                return;
            }
        }
    }

    /// If a deferred graph has become pending in turn, the rest waits for it.
    fn hand_over(&mut self, client: ClientId, deferred: &mut VecDeque<Event>) -> bool {
        let next = self
            .pending_graphs
            .iter_mut()
            .rev()
            .find(|pending| pending.intake.graph.client == client && !pending.is_abandoned);
        match next {
            Some(next) => {
                next.deferred.append(deferred);
                true
            }
            None => false,
        }
    }

    fn slice(&mut self, pending: &mut PendingGraph, cx: &mut Cx<'_>) {
        let budget = self.config.graph_slice.max(1);
        match pending.stage {
            Stage::Index => self.slice_index(pending, budget, cx),
            Stage::Walk => self.slice_walk(pending, budget, cx),
            Stage::Create => self.slice_create(pending, budget, cx),
            Stage::Want => self.slice_want(pending, budget, cx),
            Stage::Descend => self.slice_descend(pending, budget, cx),
            Stage::Undo => self.slice_undo(pending, budget, cx),
            Stage::Sort => self.slice_sort(pending, budget),
            Stage::Ascend => self.slice_ascend(pending, budget, cx),
            Stage::Report => self.slice_report(pending, budget, cx),
            Stage::Drop => pending.slice_drop(budget),
            Stage::Done => {}
        }
        // What is undone or has failed was perhaps with a worker.
        self.queue_slots_maybe_opened(cx);
    }

    fn slice_index(&mut self, pending: &mut PendingGraph, budget: usize, cx: &mut Cx<'_>) {
        let count = pending.intake.graph.keys.len();
        let end = count.min(pending.cursor + budget);
        if !self.index_keys(&mut pending.intake, pending.cursor..end) {
            self.refuse(pending, super::duplicate_key(), cx);
            return;
        }
        pending.cursor = end;
        if end == count {
            self.find_requested(&mut pending.intake);
            pending.enter(Stage::Walk);
        }
    }

    /// Depth first from the requested keys; `touched` gets dependencies before dependents.
    fn slice_walk(&mut self, pending: &mut PendingGraph, budget: usize, cx: &mut Cx<'_>) {
        let intake = &mut pending.intake;
        for _ in 0..2 * budget {
            let Some(&(at, visited)) = pending.path.last() else {
                let Some(&root) = intake.requested.get(pending.cursor) else {
                    break;
                };
                pending.cursor += 1;
                if !std::mem::replace(&mut intake.reached[root as usize], true) {
                    pending.path.push((root, 0));
                }
                continue;
            };
            match intake.dependencies(at).get(visited as usize).copied() {
                Some(dependency) => {
                    pending.path.last_mut().expect("seen above").1 += 1;
                    if !std::mem::replace(&mut intake.reached[dependency as usize], true) {
                        pending.path.push((dependency, 0));
                    }
                }
                None => {
                    pending.path.pop();
                    intake.touched.push(at);
                    if !intake.is_task(at)
                        && self
                            .tasks
                            .find_hashed(
                                intake.hashes[at as usize],
                                &intake.graph.keys[at as usize],
                            )
                            .is_none()
                    {
                        let key = intake.graph.keys[at as usize].clone();
                        intake.lost.push(key);
                    }
                }
            }
        }
        if !pending.path.is_empty() || pending.cursor < pending.intake.requested.len() {
            return;
        }
        if !pending.intake.lost.is_empty() {
            self.cancel_lost(&pending.intake, cx);
            pending.enter(Stage::Drop);
            return;
        }
        if let Err(exception) = self.read_annotations(&mut pending.intake) {
            self.refuse(pending, exception, cx);
            return;
        }
        self.begin_merge(&mut pending.intake);
        pending.enter(Stage::Create);
    }

    fn refuse(
        &mut self,
        pending: &mut PendingGraph,
        exception: oxidask_wire::Value,
        cx: &mut Cx<'_>,
    ) {
        let client = pending.intake.graph.client;
        let keys = std::mem::take(&mut pending.intake.graph.requested);
        self.graph_failed(
            client,
            &keys,
            &exception,
            &oxidask_wire::Value::Nil,
            String::new(),
            cx,
        );
        pending.enter(Stage::Drop);
    }

    /// Each task is complete when its turn is over: its dependencies came before it.
    fn slice_create(&mut self, pending: &mut PendingGraph, budget: usize, cx: &mut Cx<'_>) {
        let end = pending.intake.touched.len().min(pending.cursor + budget);
        for place in pending.cursor..end {
            let at = pending.intake.touched[place];
            // What was known when the keys were indexed may have changed since.
            let hash = pending.intake.hashes[at as usize];
            let known = self
                .tasks
                .find_hashed(hash, &pending.intake.graph.keys[at as usize]);
            pending.intake.tasks[at as usize] = known.map(|task| (task, self.tasks[task].birth));
            self.merge_task(&mut pending.intake, place, cx);
            self.drop_dead_dependencies(pending, at);
            self.add_edges(&pending.intake, at);
            self.set_priority(&pending.intake, at);
            if let Some((task, _)) = pending.intake.tasks[at as usize] {
                self.tasks[task].pins += 1;
                self.observe_task(&mut pending.intake.observer, task, cx.now);
            }
            pending.pinned = place + 1;
        }
        pending.cursor = end;
        if end == pending.intake.touched.len() {
            self.drop_unused_bundles(&pending.intake);
            self.mark_actors(&pending.intake);
            pending.enter(Stage::Want);
        }
    }

    /// A dependency that was lost while the graph came in takes its dependents along,
    /// except those that keep another definition.
    fn drop_dead_dependencies(&mut self, pending: &mut PendingGraph, at: u32) {
        if pending.intake.collided[at as usize] {
            return;
        }
        let Some((task, _)) = pending.intake.tasks[at as usize] else {
            return;
        };
        for offset in 0..pending.intake.dependencies(at).len() {
            let dependency = pending.intake.dependencies(at)[offset];
            if self.alive(&pending.intake, dependency).is_none() {
                pending.intake.tasks[dependency as usize] = None;
                self.tasks[task].has_lost_dependencies = true;
            }
        }
    }

    fn slice_want(&mut self, pending: &mut PendingGraph, budget: usize, cx: &mut Cx<'_>) {
        let client = pending.intake.graph.client;
        let inside = pending.intake.requested.len();
        let count = inside + pending.intake.requested_outside.len();
        let end = count.min(pending.cursor + budget);
        for place in pending.cursor..end {
            let (task, key) = if place < inside {
                let at = pending.intake.requested[place];
                (
                    self.alive(&pending.intake, at),
                    &pending.intake.graph.keys[at as usize],
                )
            } else {
                let key = &pending.intake.requested_outside[place - inside];
                (self.tasks.find(key), key)
            };
            match task {
                Some(task) => self.add_interest(client, task, cx.out),
                // Lost while the graph came in.
                None => self.report_key(client, key.clone(), cx.out),
            }
        }
        pending.cursor = end;
        if end == count {
            pending.enter(Stage::Descend);
        }
    }

    /// Dependents first: what is wanted, or needed by what is, begins to wait.
    fn slice_descend(&mut self, pending: &mut PendingGraph, budget: usize, cx: &mut Cx<'_>) {
        let count = pending.intake.touched.len();
        let end = count.min(pending.cursor + budget);
        for place in pending.cursor..end {
            let at = pending.intake.touched[count - 1 - place];
            let Some(task) = self.alive(&pending.intake, at) else {
                continue;
            };
            self.wait_if_needed(&pending.intake, at, task, cx);
        }
        pending.cursor = end;
        if end == count {
            pending.enter(Stage::Sort);
        }
    }

    /// Sets a task waiting that is wanted, or needed by one that waits.
    fn wait_if_needed(&mut self, intake: &Intake, at: u32, task: TaskId, cx: &mut Cx<'_>) {
        if self.inherit_failure(task) {
            self.transitions(cx);
            return;
        }
        let ts = &self.tasks[task];
        if ts.state != State::Released
            || (ts.who_wants.is_empty() && !self.has_waiting_dependent(task))
        {
            return;
        }
        if intake.created[at as usize] && !ts.has_lost_dependencies {
            self.wait_without_cascade(task, cx);
        } else {
            self.recommend(task, State::Waiting);
            self.transitions(cx);
        }
    }

    fn has_waiting_dependent(&self, task: TaskId) -> bool {
        let mut dependents = self.tasks[task].dependents.iter();
        dependents.any(|dependent| self.tasks[dependent].state == State::Waiting)
    }

    /// Dependents first: lets go of what only the client that left had use for.
    /// The rest is taken in, as if the client had left afterwards.
    fn slice_undo(&mut self, pending: &mut PendingGraph, budget: usize, cx: &mut Cx<'_>) {
        let count = pending.pinned;
        let end = count.min(pending.cursor + budget);
        for place in pending.cursor..end {
            let at = pending.intake.touched[count - 1 - place];
            let Some(task) = self.alive(&pending.intake, at) else {
                continue;
            };
            self.tasks[task].pins -= 1;
            if self.tasks[task].is_needed() || self.has_waiting_dependent(task) {
                self.tasks[task].pins += 1;
                self.wait_if_needed(&pending.intake, at, task, cx);
            } else {
                pending.intake.tasks[at as usize] = None;
                self.let_go(task);
                self.transitions(cx);
            }
        }
        pending.cursor = end;
        if end == count {
            self.mark_actors(&pending.intake);
            pending.enter(Stage::Sort);
        }
    }

    /// Orders are usually a permutation of `0..n`: then sorting is placing.
    fn slice_sort(&mut self, pending: &mut PendingGraph, budget: usize) {
        let intake = &pending.intake;
        let count = intake.task_count;
        if pending.cursor == 0 {
            pending.by_priority = vec![u32::MAX; count];
        }
        let end = count.min(pending.cursor + 4 * budget);
        for at in pending.cursor..end {
            let place = usize::try_from(intake.graph.order[at]).ok();
            let slot = place.and_then(|place| pending.by_priority.get_mut(place));
            match slot {
                Some(slot) if *slot == u32::MAX => *slot = at as u32,
                Some(_) | None => {
                    pending.by_priority = (0..count as u32).collect();
                    let order = &intake.graph.order;
                    pending.by_priority.sort_by_key(|&at| order[at as usize]);
                    pending.enter(Stage::Ascend);
                    return;
                }
            }
        }
        pending.cursor = end;
        if end == count {
            pending.enter(Stage::Ascend);
        }
    }

    /// Best first: whatever waits for nothing goes to a worker or into the queue.
    fn slice_ascend(&mut self, pending: &mut PendingGraph, budget: usize, cx: &mut Cx<'_>) {
        let count = pending.by_priority.len();
        let end = count.min(pending.cursor + budget);
        for place in pending.cursor..end {
            let at = pending.by_priority[place];
            if let Some(task) = self.alive(&pending.intake, at)
                && self.tasks[task].state == State::Waiting
                && self.tasks[task].waiting_on.is_empty()
            {
                self.recommend(task, State::Processing);
                self.transitions(cx);
            }
        }
        pending.cursor = end;
        if end == count {
            pending.enter(Stage::Report);
        }
    }

    /// Dependents first: reports what is done, and lets go of the task.
    fn slice_report(&mut self, pending: &mut PendingGraph, budget: usize, cx: &mut Cx<'_>) {
        let client = pending.intake.graph.client;
        let count = pending.pinned;
        let end = count.min(pending.cursor + budget);
        for place in pending.cursor..end {
            let at = pending.intake.touched[count - 1 - place];
            let Some(task) = self.alive(&pending.intake, at) else {
                continue;
            };
            if !pending.is_abandoned {
                self.report_if_done(task, client, cx.out);
            }
            self.tasks[task].pins -= 1;
            self.let_go(task);
            self.transitions(cx);
        }
        pending.cursor = end;
        if end == count {
            if pending.is_abandoned {
                self.drop_unused_bundles(&pending.intake);
            } else {
                self.log_update(&pending.intake, cx);
            }
            pending.enter(Stage::Drop);
        }
    }
}

impl PendingGraph {
    fn is_new(&self) -> bool {
        self.stage == Stage::Index && self.cursor == 0
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.cursor = 0;
    }

    fn abandon(&mut self) {
        self.is_abandoned = true;
        // A client of the same name may have come by the time they would be handled.
        self.deferred.clear();
        match self.stage {
            Stage::Index | Stage::Walk => self.enter(Stage::Drop),
            Stage::Create | Stage::Want | Stage::Descend | Stage::Sort | Stage::Ascend => {
                self.enter(Stage::Undo);
            }
            Stage::Undo | Stage::Report | Stage::Drop | Stage::Done => {}
        }
    }

    /// Keys whose tasks hold a pin of this graph.
    fn pinned_range(&self) -> Vec<u32> {
        let released = match self.stage {
            Stage::Index
            | Stage::Walk
            | Stage::Create
            | Stage::Want
            | Stage::Descend
            | Stage::Undo
            | Stage::Sort
            | Stage::Ascend => 0,
            Stage::Report => self.cursor,
            Stage::Drop | Stage::Done => self.pinned,
        };
        self.intake.touched[..self.pinned - released].to_vec()
    }

    /// A million keys take long to free.
    fn slice_drop(&mut self, budget: usize) {
        let graph = &mut self.intake.graph;
        let left = graph.keys.len().saturating_sub(4 * budget);
        graph.keys.truncate(left);
        graph.specs.truncate(left);
        graph.requested.truncate(left);
        graph.annotations.truncate(left);
        if left == 0 {
            self.enter(Stage::Done);
        }
    }
}
