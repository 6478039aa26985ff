//! Spans: tasks that belong to one piece of a user's work.
//!
//! ```text
//!  graph ──► Observer ──► observe_task ──► group ∈ span ──► span_id of compute-task
//!  heartbeat ─────────────────────────────────► metrics of the span
//! ```
//!
//! Same as the scheduler's part of `distributed.spans`, as far as it has to be
//! kept; what follows from it (intervals, sums over a tree of spans) is worked
//! out where it is asked for. A group belongs to the span of its first task.
//! Unlike stock's, the history is bounded: see the constants.

use std::collections::VecDeque;
use std::sync::Arc;

use foldhash::quality::RandomState;
use hashbrown::HashSet;
use indexmap::IndexMap;
use oxidask_wire::{Key, Map, Value};

use crate::group::{ByName, TaskGroup};
use crate::groups::Groups;
use crate::id::{GroupId, TaskId};
use crate::scheduler::Scheduler;
use crate::sets::IdSet;
use crate::task::State;

/// Spans remembered; beyond it the oldest ones without tasks go. Chosen: some
/// 10 MB at most, where stock remembers every span for ever.
const SPANS_MAX: usize = 10_000;

/// Forgotten groups a span remembers one by one; beyond it they are added up.
const PAST_GROUPS_MAX: usize = 100;

/// Pieces of code and metadata of graphs a span remembers.
const NOTES_MAX: usize = 100;

/// Names of metrics a span remembers.
const METRICS_MAX: usize = 1000;

/// Changes of the number of threads that are remembered.
const NTHREADS_MAX: usize = 10_000;

/// Levels of spans within spans. Chosen: a client could send any number.
const DEPTH_MAX: usize = 100;

/// Name of the spans of tasks that the client put into none.
const DEFAULT: &str = "default";

/// The group that stands for the forgotten ones that were added up.
const OTHERS: &str = "(others)";

/// `distributed.spans.Span`, with what was kept of it.
#[derive(Clone, Debug)]
pub struct Span {
    /// Unique id, made by the client; here for default spans.
    pub id: Arc<str>,
    /// Its tag, after those of the spans around it.
    pub name: Vec<Arc<str>>,
    /// Id of the span around it.
    pub parent: Option<Arc<str>>,
    /// When it was first seen, in seconds since the epoch.
    pub enqueued: f64,
    /// Position of that time in the history of threads, from the beginning of it.
    pub nthreads_offset: u64,
    /// Groups that exist.
    pub groups: IdSet<GroupId>,
    /// Groups that are forgotten, oldest first.
    pub past: Vec<PastGroup>,
    /// `code` of its graphs, as it came, each once.
    pub code: Vec<Value>,
    /// `span_metadata` of its graphs, as it came.
    pub metadata: Vec<Value>,
    /// Worker metrics summed up, by name without the span's id.
    pub metrics: IndexMap<Key, f64, RandomState>,
    children: u32,
}

/// What is left of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct PastGroup {
    /// Its name.
    pub name: Arc<str>,
    /// Its tasks, all of them forgotten.
    pub size: u64,
    /// Bytes of all results.
    pub nbytes_total: i64,
    /// Microseconds per action.
    pub durations_us: ByName<i64>,
    /// Results per name of type.
    pub types: ByName<u64>,
    /// When the earliest task started computing; 0 if none finished.
    pub start: f64,
    /// When the last task stopped computing; 0 if none finished.
    pub stop: f64,
}

impl PastGroup {
    fn of(group: &TaskGroup) -> Self {
        Self {
            name: group.name.clone(),
            size: group.size,
            nbytes_total: group.nbytes_total,
            durations_us: group.durations_us.clone(),
            types: group.types.clone(),
            start: group.start,
            stop: group.stop,
        }
    }

    fn add(&mut self, other: &Self) {
        self.size += other.size;
        self.nbytes_total += other.nbytes_total;
        for (name, &microseconds) in &other.durations_us {
            crate::group::add_to(&mut self.durations_us, name, microseconds);
        }
        for (name, &count) in &other.types {
            crate::group::add_to(&mut self.types, name, count);
        }
        if self.start == 0.0 || (other.start != 0.0 && other.start < self.start) {
            self.start = other.start;
        }
        self.stop = self.stop.max(other.stop);
    }
}

impl Span {
    /// The annotation of its tasks; those of a default span have none.
    fn annotation(&self, spans: &Spans) -> Option<Value> {
        if self.is_default() {
            return None;
        }
        let mut ids = vec![Value::from(&self.id)];
        let mut at = self;
        while let Some(parent) = at.parent.as_ref().and_then(|id| spans.by_id.get(id)) {
            ids.push(Value::from(&parent.id));
            at = parent;
        }
        ids.reverse();
        let mut annotation = Map::new();
        annotation.push("name", self.name.iter().map(Value::from).collect::<Value>());
        annotation.push("ids", Value::Array(ids));
        Some(annotation.into())
    }

    fn is_default(&self) -> bool {
        matches!(&self.name[..], [name] if **name == *DEFAULT)
    }

    fn note(notes: &mut Vec<Value>, note: &Value) {
        if !note.is_nil() && notes.len() < NOTES_MAX {
            notes.push(note.clone());
        }
    }

    fn forget_group(&mut self, id: GroupId, group: &TaskGroup) {
        self.groups.remove(id);
        if self.past.len() < PAST_GROUPS_MAX {
            self.past.push(PastGroup::of(group));
            return;
        }
        if *self.past[0].name != *OTHERS {
            self.past[0].name = OTHERS.into();
        }
        let oldest = self.past.remove(1);
        self.past[0].add(&oldest);
        self.past.push(PastGroup::of(group));
    }
}

/// Every span, and how many threads there were when.
#[derive(Debug)]
pub(crate) struct Spans {
    /// In the order in which they were first seen.
    by_id: IndexMap<Arc<str>, Span, RandomState>,
    last_default: Option<Arc<str>>,
    /// Default spans ever made.
    defaults_made: u64,
    nthreads: VecDeque<(f64, u64)>,
    /// Entries of the history that were dropped.
    nthreads_dropped: u64,
}

impl Default for Spans {
    fn default() -> Self {
        Self {
            by_id: IndexMap::default(),
            last_default: None,
            defaults_made: 0,
            nthreads: [(0.0, 0)].into(),
            nthreads_dropped: 0,
        }
    }
}

impl Spans {
    /// A worker came or went: there are so many threads now.
    pub(crate) fn note_nthreads(&mut self, now: f64, total: u64) {
        self.nthreads.push_back((now, total));
        if self.nthreads.len() > NTHREADS_MAX {
            self.nthreads.pop_front();
            self.nthreads_dropped += 1;
        }
    }

    /// A group of the span with this id is forgotten.
    pub(crate) fn forget_group(&mut self, span_id: &str, id: GroupId, group: &TaskGroup) {
        if let Some(span) = self.by_id.get_mut(span_id) {
            span.forget_group(id, group);
        }
    }

    /// The value of the extension `spans` in a heartbeat:
    /// `{(context, span id, …): amount}`. Unknown spans are skipped.
    pub(crate) fn heartbeat(&mut self, metrics: &Map) {
        for (name, amount) in metrics.iter() {
            let Some([context, span_id, rest @ ..]) = name.as_array() else {
                continue;
            };
            let span = span_id.as_str().and_then(|id| self.by_id.get_mut(id));
            let (Some(span), Some(amount)) = (span, amount.as_f64()) else {
                continue;
            };
            let mut short = vec![context.clone()];
            short.extend_from_slice(rest);
            let Ok(name) = Key::from_value(&Value::Array(short)) else {
                continue;
            };
            if let Some(total) = span.metrics.get_mut(&name) {
                *total += amount;
            } else if span.metrics.len() < METRICS_MAX {
                span.metrics.insert(name, amount);
            }
        }
    }

    /// The span with the last of these ids, made with those around it if need be.
    fn ensure(&mut self, name: &[Arc<str>], ids: &[Arc<str>], now: f64) -> Arc<str> {
        let mut parent: Option<Arc<str>> = None;
        for (at, id) in ids.iter().enumerate() {
            let known = self.by_id.get_key_value(id).map(|(id, _)| id.clone());
            let id = known.unwrap_or_else(|| self.add(&name[..=at], id, parent.as_ref(), now));
            parent = Some(id);
        }
        parent.expect("a label has at least one level")
    }

    fn add(
        &mut self,
        name: &[Arc<str>],
        id: &Arc<str>,
        parent: Option<&Arc<str>>,
        now: f64,
    ) -> Arc<str> {
        self.make_room(parent);
        let span = Span {
            id: id.clone(),
            name: name.to_vec(),
            parent: parent.cloned(),
            enqueued: now,
            nthreads_offset: self.nthreads_dropped + self.nthreads.len() as u64 - 1,
            groups: IdSet::default(),
            past: Vec::new(),
            code: Vec::new(),
            metadata: Vec::new(),
            metrics: IndexMap::default(),
            children: 0,
        };
        if span.is_default() {
            self.last_default = Some(id.clone());
        }
        if let Some(parent) = parent.and_then(|id| self.by_id.get_mut(id)) {
            parent.children += 1;
        }
        self.by_id.insert(id.clone(), span);
        id.clone()
    }

    /// Drops the oldest span that has neither tasks nor spans within it, other
    /// than the one about to get one.
    fn make_room(&mut self, keep: Option<&Arc<str>>) {
        if self.by_id.len() < SPANS_MAX {
            return;
        }
        let oldest = self.by_id.values().position(|span| {
            span.groups.is_empty() && span.children == 0 && Some(&span.id) != keep
        });
        let Some((_, span)) = oldest.and_then(|at| self.by_id.shift_remove_index(at)) else {
            return;
        };
        if let Some(parent) = span.parent.and_then(|id| self.by_id.get_mut(&id)) {
            parent.children -= 1;
        }
        if self.last_default.as_ref() == Some(&span.id) {
            self.last_default = None;
        }
    }

    /// An id for a default span, in the shape of those that clients make.
    fn default_id(&mut self, now: f64) -> Arc<str> {
        self.defaults_made += 1;
        let high = mixed(now.to_bits() ^ self.defaults_made.rotate_left(32));
        let low = mixed(high ^ self.defaults_made);
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xfff,
            low >> 48 & 0x3fff | 0x8000,
            low & 0xffff_ffff_ffff,
        )
        .into()
    }
}

/// Spreads the bits of a number (splitmix64).
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The annotation `span` of a task: `{"name": [tag, …], "ids": [id, …]}`.
#[derive(Debug)]
pub(crate) struct Label {
    name: Vec<Arc<str>>,
    ids: Vec<Arc<str>>,
}

impl Label {
    /// # Errors
    /// What is wrong with the annotation.
    pub(crate) fn read(annotation: &Value) -> Result<Self, String> {
        let texts = |field: &str| -> Option<Vec<Arc<str>>> {
            let texts = annotation.as_map()?.get(field)?.as_array()?;
            texts
                .iter()
                .map(|text| Some(text.as_str()?.into()))
                .collect()
        };
        let (Some(name), Some(ids)) = (texts("name"), texts("ids")) else {
            return Err("the annotation `span` must have texts in `name` and `ids`".to_owned());
        };
        if ids.is_empty() || name.len() != ids.len() || ids.len() > DEPTH_MAX {
            return Err(format!(
                "the annotation `span` must have 1 to {DEPTH_MAX} names and as many ids, it has {} and {}",
                name.len(),
                ids.len()
            ));
        }
        Ok(Self { name, ids })
    }

    /// The id of the innermost span.
    fn id(annotation: &Value) -> Option<&str> {
        let ids = annotation.as_map()?.get("ids")?.as_array()?;
        ids.last()?.as_str()
    }
}

/// What is known of spans while a graph is taken in.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    code: Value,
    metadata: Value,
    /// The span of tasks that name none, once there was one.
    default: Option<Arc<str>>,
    /// The span of the last task, and how its tasks are annotated.
    last: Option<(Arc<str>, Option<Value>)>,
    /// Spans that know the code and the metadata of the graph.
    told: HashSet<Arc<str>, RandomState>,
    /// What many tasks share.
    shared: Option<Shared>,
}

/// Annotations before and after they got that of a span.
#[derive(Debug)]
struct Shared {
    before: Option<Arc<Map>>,
    after: Option<Arc<Map>>,
}

impl Observer {
    pub(crate) fn new(code: Value, metadata: Value) -> Self {
        Self {
            code,
            metadata,
            ..Self::default()
        }
    }

    /// Annotations with that of the last span in place of any other.
    fn annotations(&mut self, before: Option<&Arc<Map>>) -> Option<Arc<Map>> {
        if let Some(shared) = &self.shared
            && shared.before.as_ref().map(Arc::as_ptr) == before.map(Arc::as_ptr)
        {
            return shared.after.clone();
        }
        let mut after = before.map_or_else(Map::new, |before| (**before).clone());
        after.remove("span");
        if let Some((_, Some(annotation))) = &self.last {
            after.push("span", annotation.clone());
        }
        let after = (!after.is_empty()).then(|| Arc::new(after));
        self.shared = Some(Shared {
            before: before.cloned(),
            after: after.clone(),
        });
        after
    }
}

impl Groups {
    /// A group becomes part of a span.
    fn join_span(&mut self, group: GroupId, span_id: Arc<str>) {
        if let Some(span) = self.spans.by_id.get_mut(&span_id) {
            span.groups.insert(group);
        }
        self[group].span_id = Some(span_id);
    }

    /// Whether nothing of a span without spans within it is under way.
    fn is_span_done(&self, span: &Span) -> bool {
        let groups: Vec<GroupId> = span.groups.iter().collect();
        // The newest are the likeliest to be busy.
        groups.iter().rev().all(|&group| {
            let group = &self[group];
            State::ALL
                .iter()
                .all(|&state| !state.is_active() || group.count(state) == 0)
        })
    }

    /// The default span that is open, or a new one.
    fn default_span(&mut self, now: f64) -> Arc<str> {
        let last = self.spans.last_default.clone();
        if let Some(last) = last
            && let Some(span) = self.spans.by_id.get(&last)
            && !self.is_span_done(span)
        {
            return last;
        }
        let id = self.spans.default_id(now);
        self.spans.ensure(&[DEFAULT.into()], &[id], now)
    }

    /// Checks that groups and spans know each other.
    pub(crate) fn validate_spans(&self) {
        for (id, group) in self.iter() {
            if let Some(span_id) = &group.span_id {
                let span = self.spans.by_id.get(span_id);
                let span = span.unwrap_or_else(|| panic!("{} is in no span", group.name));
                assert!(span.groups.contains(id), "{} left its span", group.name);
            }
        }
        for span in self.spans.by_id.values() {
            for group in &span.groups {
                assert_eq!(self[group].span_id.as_ref(), Some(&span.id));
                assert!(!self[group].removed);
            }
        }
        let mut children = vec![0; self.spans.by_id.len()];
        for span in self.spans.by_id.values() {
            if let Some(parent) = &span.parent {
                let parent = self.spans.by_id.get_index_of(parent);
                children[parent.expect("a span outlives those within it")] += 1;
            }
        }
        for (span, children) in self.spans.by_id.values().zip(children) {
            assert_eq!(span.children, children, "spans within {}", span.id);
        }
    }
}

impl Scheduler {
    /// Puts a task of a graph into a span, if its group is in none yet, and has
    /// its annotation say so. Same as `SpansSchedulerExtension.observe_tasks`.
    pub(crate) fn observe_task(&mut self, observer: &mut Observer, task: TaskId, now: f64) {
        let group = self.tasks[task].group;
        if self.groups[group].span_id.is_none() {
            let label = self.tasks[task].annotation("span").map(Label::read);
            let span_id = match label {
                Some(Ok(label)) => self.groups.spans.ensure(&label.name, &label.ids, now),
                Some(Err(_)) | None => match &observer.default {
                    Some(default) if self.groups.spans.by_id.contains_key(default) => {
                        default.clone()
                    }
                    Some(_) | None => {
                        let default = self.groups.default_span(now);
                        observer.default.insert(default).clone()
                    }
                },
            };
            self.groups.join_span(group, span_id);
        }
        let Some(span_id) = &self.groups[group].span_id else {
            return;
        };
        let is_last = |(last, _): &(Arc<str>, _)| Arc::ptr_eq(last, span_id);
        if !observer.last.as_ref().is_some_and(is_last) {
            let span_id = span_id.clone();
            self.enter_span(observer, span_id);
        }
        let Some((span_id, wanted)) = &observer.last else {
            return;
        };
        let is_right = match (wanted, self.tasks[task].annotation("span")) {
            (None, None) => true,
            (Some(_), Some(given)) => Label::id(given) == Some(span_id),
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !is_right {
            let annotations = observer.annotations(self.tasks[task].annotations.as_ref());
            let ts = &mut self.tasks[task];
            if let Some(extras) = &mut ts.extras {
                extras.annotations.remove("span");
            }
            ts.annotations = annotations;
        }
    }

    /// The tasks that follow are of this span.
    fn enter_span(&mut self, observer: &mut Observer, span_id: Arc<str>) {
        observer.shared = None;
        let is_new = observer.told.insert(span_id.clone());
        let spans = &mut self.groups.spans;
        if is_new && let Some(span) = spans.by_id.get_mut(&span_id) {
            if !span.code.contains(&observer.code) {
                Span::note(&mut span.code, &observer.code);
            }
            Span::note(&mut span.metadata, &observer.metadata);
        }
        let annotation = spans.by_id.get(&span_id);
        let annotation = annotation.and_then(|span| span.annotation(spans));
        observer.last = Some((span_id, annotation));
    }

    /// Every span, in the order in which they were first seen.
    pub fn spans(&self) -> impl ExactSizeIterator<Item = &Span> {
        self.groups.spans.by_id.values()
    }

    /// How many threads there were from when on, and how many entries before
    /// these are gone.
    pub fn nthreads_history(&self) -> (u64, impl ExactSizeIterator<Item = (f64, u64)>) {
        let spans = &self.groups.spans;
        (spans.nthreads_dropped, spans.nthreads.iter().copied())
    }
}
