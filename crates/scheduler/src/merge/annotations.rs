//! Annotations of new tasks.

use std::sync::Arc;

use oxidask_wire::{Map, Value};

use crate::failure::{assertion_error, key_error, type_error};
use crate::graph::Actors;
use crate::id::TaskId;
use crate::restrictions::Restrictions;
use crate::scheduler::Scheduler;

use super::Intake;

/// What the annotations of a task mean to the scheduler.
#[derive(Debug, Default)]
pub(super) struct Annotations {
    /// As they go to workers.
    map: Option<Arc<Map>>,
    meaning: Meaning,
}

#[derive(Debug, Default)]
struct Meaning {
    restrictions: Restrictions,
    loose: bool,
    resources: Vec<(Arc<str>, f64)>,
    /// The value of `resources`; nil if absent.
    resources_value: Value,
    retries: i64,
}

impl Meaning {
    fn has_restrictions(&self) -> bool {
        !self.restrictions.workers.is_empty()
            || !self.restrictions.hosts.is_empty()
            || !self.resources_value.is_nil()
    }
}

impl Scheduler {
    /// Reads every annotation of the graph before anything is created.
    ///
    /// # Errors
    /// The exception with which stock fails the whole graph: a value of the wrong
    /// type, or actors that nobody knows.
    pub(super) fn read_annotations(&self, intake: &mut Intake) -> Result<(), Value> {
        if let Some(global) = intake
            .graph
            .global_annotations
            .clone()
            .filter(|map| !map.is_empty())
        {
            intake.global = Annotations {
                meaning: self.read_meaning(global.iter())?,
                map: Some(global),
            };
        }
        for (at, own) in &intake.graph.annotations {
            if intake.reached[*at as usize] && intake.tasks[*at as usize].is_none() {
                self.read_meaning(own.iter())?;
            }
        }
        if let Actors::Keys(keys) = &intake.graph.actors {
            for key in keys {
                let hash = self.tasks.hash(key);
                let keys = &intake.graph.keys;
                let in_graph = intake
                    .index
                    .find(hash.spread(), |&at| keys[at as usize] == *key)
                    .is_some_and(|&at| intake.reached[at as usize]);
                if !in_graph && self.tasks.find(key).is_none() {
                    return Err(key_error(key));
                }
            }
        }
        Ok(())
    }

    fn read_meaning<'a>(
        &self,
        annotations: impl Iterator<Item = &'a (Value, Value)>,
    ) -> Result<Meaning, Value> {
        let mut meaning = Meaning::default();
        for (name, value) in annotations {
            match name.as_str() {
                Some("restrictions" | "workers") => {
                    meaning.restrictions = self
                        .split_restrictions(value)
                        .map_err(|text| type_error(&text))?;
                }
                Some("loose_restrictions" | "allow_other_workers") => {
                    meaning.loose = is_truthy(value)
                }
                Some("resources") => {
                    let resources = value.as_map().ok_or_else(assertion_error)?;
                    meaning.resources = resources
                        .iter()
                        .filter_map(|(name, amount)| {
                            Some((name.as_str()?.into(), amount.as_f64()?))
                        })
                        .collect();
                    meaning.resources_value = value.clone();
                }
                Some("retries") => {
                    meaning.retries = value
                        .as_i64()
                        .or_else(|| value.as_bool().map(i64::from))
                        .ok_or_else(assertion_error)?;
                }
                Some("span") => {
                    crate::spans::Label::read(value).map_err(|text| type_error(&text))?;
                }
                // Priorities are read when they are set; the rest means nothing here.
                Some(_) | None => {}
            }
        }
        Ok(meaning)
    }

    /// Applies the graph's annotations to a task it has just created.
    pub(super) fn annotate(&mut self, intake: &Intake, at: u32, task: TaskId) {
        let own = &intake.graph.annotations;
        let own = own
            .binary_search_by_key(&at, |&(other, _)| other)
            .ok()
            .map(|found| &own[found].1);
        let global = &intake.global;
        self.tasks[task].annotations.clone_from(&global.map);
        let Some(own) = own else {
            if global.map.is_some() {
                self.apply_meaning(task, &global.meaning);
            }
            return;
        };
        let mut set = Map::new();
        for (name, value) in own.iter() {
            if !value.is_nil() {
                set.push(name.clone(), value.clone());
            }
        }
        let mut merged = global.map.as_deref().cloned().unwrap_or_default();
        for (name, value) in set.iter() {
            merged.insert(name.clone(), value.clone());
        }
        if !set.is_empty() {
            self.tasks[task].extras_mut().annotations = set;
        }
        // Each part was read without an error before.
        if let Ok(meaning) = self.read_meaning(merged.iter()) {
            self.apply_meaning(task, &meaning);
        }
    }

    fn apply_meaning(&mut self, task: TaskId, meaning: &Meaning) {
        let ts = &mut self.tasks[task];
        ts.loose_restrictions = meaning.loose;
        ts.retries = meaning.retries;
        if meaning.has_restrictions() {
            let extras = ts.extras_mut();
            extras
                .worker_restrictions
                .clone_from(&meaning.restrictions.workers);
            extras
                .host_restrictions
                .clone_from(&meaning.restrictions.hosts);
            extras.resource_restrictions.clone_from(&meaning.resources);
            extras.resources.clone_from(&meaning.resources_value);
        }
    }
}

/// Python's `bool(value)`.
fn is_truthy(value: &Value) -> bool {
    if value.is_nil() {
        return false;
    }
    if let Some(bool) = value.as_bool() {
        return bool;
    }
    if let Some(number) = value.as_f64() {
        return number != 0.0;
    }
    if let Some(text) = value.as_str() {
        return !text.is_empty();
    }
    if let Some(list) = value.as_array() {
        return !list.is_empty();
    }
    value.as_map().is_none_or(|map| !map.is_empty())
}
