//! The tables of groups and prefixes.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use foldhash::quality::RandomState;
use hashbrown::HashMap;
use oxidask_wire::Key;

use crate::group::{TaskGroup, TaskPrefix, add_to};
use crate::id::{GroupId, PrefixId};
use crate::spans::Spans;
use crate::task::State;

/// Every group and prefix.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    groups: Vec<Option<TaskGroup>>,
    free: Vec<GroupId>,
    by_name: HashMap<Arc<str>, GroupId, RandomState>,
    pub(crate) prefixes: Vec<TaskPrefix>,
    prefix_by_name: HashMap<Arc<str>, PrefixId, RandomState>,
    default_durations: Vec<(Arc<str>, f64)>,
    /// The group asked for last: neighbours usually share one.
    last: Option<GroupId>,
    /// What the groups are part of.
    pub(crate) spans: Spans,
}

impl Groups {
    pub(crate) fn new(default_durations: Vec<(Arc<str>, f64)>) -> Self {
        Self {
            default_durations,
            ..Self::default()
        }
    }

    /// Forgets everything, also what was learned about durations; spans remain.
    pub(crate) fn clear(&mut self) {
        let mut spans = std::mem::take(&mut self.spans);
        for (id, group) in self.iter() {
            if let Some(span_id) = &group.span_id {
                spans.forget_group(span_id, id, group);
            }
        }
        *self = Self::new(std::mem::take(&mut self.default_durations));
        self.spans = spans;
    }

    pub(crate) fn find(&self, name: &str) -> Option<GroupId> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn find_prefix(&self, name: &str) -> Option<PrefixId> {
        self.prefix_by_name.get(name).copied()
    }

    /// The group of this key, made if there is none.
    pub(crate) fn get_or_create(&mut self, key: &Key) -> GroupId {
        let name = key.key_split_group();
        let last = self.last.filter(|&last| {
            let group = self.get(last);
            group.is_some_and(|group| !group.removed && *group.name == *name)
        });
        if let Some(id) = last.or_else(|| self.find(&name)) {
            self.last = Some(id);
            return id;
        }
        let prefix = self.get_or_create_prefix(&key.key_split());
        let name: Arc<str> = name.into();
        let group = TaskGroup::new(name.clone(), prefix);
        let id = match self.free.pop() {
            Some(id) => {
                self.groups[id.0 as usize] = Some(group);
                id
            }
            None => {
                self.groups.push(Some(group));
                GroupId(self.groups.len() as u32 - 1)
            }
        };
        self.by_name.insert(name, id);
        self[prefix].groups.insert(id);
        id
    }

    fn get_or_create_prefix(&mut self, name: &str) -> PrefixId {
        if let Some(id) = self.find_prefix(name) {
            return id;
        }
        let name: Arc<str> = name.into();
        let default = self
            .default_durations
            .iter()
            .find(|(prefix, _)| *prefix == name)
            .map(|(_, duration)| *duration);
        self.prefixes.push(TaskPrefix::new(name.clone(), default));
        let id = PrefixId(self.prefixes.len() as u32 - 1);
        self.prefix_by_name.insert(name, id);
        id
    }

    /// Groups that exist, in the order of ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (GroupId, &TaskGroup)> {
        self.groups
            .iter()
            .enumerate()
            .filter_map(|(at, group)| group.as_ref().map(|group| (GroupId(at as u32), group)))
            .filter(|(_, group)| !group.removed)
    }

    pub(crate) fn get(&self, id: GroupId) -> Option<&TaskGroup> {
        self.groups.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn add_task(&mut self, id: GroupId, state: State) {
        let group = &mut self[id];
        group.size += 1;
        group.states[state as usize] += 1;
        let prefix = group.prefix;
        let prefix = &mut self[prefix];
        prefix.size += 1;
        prefix.states[state as usize] += 1;
    }

    pub(crate) fn change_state(&mut self, id: GroupId, from: State, to: State) {
        let group = &mut self[id];
        group.states[from as usize] -= 1;
        group.states[to as usize] += 1;
        let prefix = group.prefix;
        let prefix = &mut self[prefix];
        prefix.states[from as usize] -= 1;
        prefix.states[to as usize] += 1;
        prefix.state_counts[to as usize] += 1;
    }

    pub(crate) fn add_dependency(&mut self, id: GroupId, on: GroupId) {
        if self[id].dependencies.insert(on) && id != on {
            self[on].dependent_count += 1;
        }
    }

    pub(crate) fn add_nbytes(&mut self, id: GroupId, diff: i64) {
        let group = &mut self[id];
        group.nbytes_total += diff;
        let prefix = group.prefix;
        self[prefix].nbytes_total += diff;
    }

    pub(crate) fn add_type(&mut self, id: GroupId, typename: &str) -> Arc<str> {
        let group = &mut self[id];
        add_to(&mut group.types, typename, 1);
        let name = group
            .types
            .get_full(typename)
            .map(|(_, name, _)| name.clone());
        let prefix = group.prefix;
        add_to(&mut self[prefix].types, typename, 1);
        name.unwrap_or_else(|| typename.into())
    }

    pub(crate) fn add_duration(&mut self, id: GroupId, action: &str, start: f64, stop: f64) {
        let microseconds = (((stop - start) * 1e6).round_ties_even() as i64).max(0);
        let group = &mut self[id];
        group.duration_us += microseconds;
        add_to(&mut group.durations_us, action, microseconds);
        if action == "compute" {
            if group.stop < stop {
                group.stop = stop;
            }
            if group.start == 0.0 || group.start > start {
                group.start = start;
            }
        }
        let prefix = group.prefix;
        self[prefix].add_duration(action, microseconds);
    }

    /// Removes a group all of whose tasks are forgotten. Its size stays known
    /// to groups that depend on it, as stock keeps the object alive.
    pub(crate) fn remove_if_forgotten(&mut self, id: GroupId) {
        let Some(group) = &mut self.groups[id.0 as usize] else {
            return;
        };
        if group.removed || !group.is_forgotten() {
            return;
        }
        if let Some(span_id) = &group.span_id {
            self.spans.forget_group(span_id, id, group);
        }
        group.removed = true;
        let name = group.name.clone();
        let prefix = group.prefix;
        let (states, size) = (group.states, group.size);
        let (duration_us, nbytes_total) = (group.duration_us, group.nbytes_total);
        let types = std::mem::take(&mut group.types);
        let dependencies = std::mem::take(&mut group.dependencies);

        let prefix = &mut self[prefix];
        prefix.groups.remove(id);
        for (total, count) in prefix.states.iter_mut().zip(states) {
            *total -= count;
        }
        prefix.size -= size;
        prefix.duration_us -= duration_us;
        prefix.nbytes_total -= nbytes_total;
        for (typename, count) in types {
            if let Some(total) = prefix.types.get_mut(&*typename) {
                *total -= count;
                if *total == 0 {
                    prefix.types.shift_remove(&*typename);
                }
            }
        }
        self.by_name.remove(&name);

        for on in &dependencies {
            if on == id {
                continue;
            }
            let other = &mut self[on];
            other.dependent_count -= 1;
            if other.removed && other.dependent_count == 0 {
                self.groups[on.0 as usize] = None;
                self.free.push(on);
            }
        }
        if self[id].dependent_count == 0 {
            self.groups[id.0 as usize] = None;
            self.free.push(id);
        }
    }
}

impl Index<GroupId> for Groups {
    type Output = TaskGroup;

    fn index(&self, id: GroupId) -> &TaskGroup {
        self.groups[id.0 as usize]
            .as_ref()
            .expect("a group lives as long as its tasks and the groups that depend on it")
    }
}

impl IndexMut<GroupId> for Groups {
    fn index_mut(&mut self, id: GroupId) -> &mut TaskGroup {
        self.groups[id.0 as usize]
            .as_mut()
            .expect("a group lives as long as its tasks and the groups that depend on it")
    }
}

impl Index<PrefixId> for Groups {
    type Output = TaskPrefix;

    fn index(&self, id: PrefixId) -> &TaskPrefix {
        &self.prefixes[id.0 as usize]
    }
}

impl IndexMut<PrefixId> for Groups {
    fn index_mut(&mut self, id: PrefixId) -> &mut TaskPrefix {
        &mut self.prefixes[id.0 as usize]
    }
}
