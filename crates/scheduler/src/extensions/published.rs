//! Published datasets: collections by name, for other clients.

use std::hash::RandomState;
use std::sync::Arc;

use indexmap::IndexMap;
use oxidask_wire::{Key, Value, map};

use super::errors::{key_error_text, timeout_error};
use super::interest;
use super::waits::{Answer, Context, NONE, PENDING, Wait, check_names};
use crate::Scheduler;
use crate::id::RequestId;

/// Seconds after which a request that waits for its client's stream looks
/// whether the client still exists (fixed in distributed, too).
pub(super) const FLUSH_CHECK_INTERVAL: f64 = 30.0;

/// Flushes remembered for requests still to come; the oldest is dropped.
const FLUSHES_MAX: usize = 10_000;

/// All published datasets.
#[derive(Debug, Default)]
pub(super) struct Published {
    datasets: IndexMap<Key, Dataset, RandomState>,
    /// Streams that caught up before their request came, by uid.
    flushed: IndexMap<Key, Arc<str>, RandomState>,
    /// Requests that wait for their stream, by uid.
    waiting: IndexMap<Key, (RequestId, Change), RandomState>,
}

#[derive(Debug)]
struct Dataset {
    data: Value,
    keys: Vec<Key>,
}

/// A request to change what is published.
#[derive(Debug)]
pub(super) struct Change {
    /// The client that asks.
    pub(super) client: Arc<str>,
    pub(super) action: Action,
}

/// What to change.
#[derive(Debug)]
pub(super) enum Action {
    /// `publish_put`.
    Put {
        /// Name, keys and data of each dataset.
        datasets: Vec<(Key, Vec<Key>, Value)>,
        /// Replace what has the same name.
        replace: bool,
    },
    /// `publish_delete`.
    Delete {
        /// Unknown ones are ignored.
        names: Vec<Key>,
    },
}

impl Published {
    /// `publish_put` and `publish_delete`: carried out once the client's stream
    /// has caught up, so that the keys are known.
    pub(super) fn change(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        request: RequestId,
        uid: Key,
        change: Change,
    ) -> Answer {
        if self.flushed.swap_remove(&uid).is_some() {
            return self.apply(scheduler, cx, change.action);
        }
        if self.waiting.contains_key(&uid) {
            return Err(key_error_text("two requests wait for the same flush"));
        }
        check_names(self.waiting.len(), "requests")?;
        self.waiting.insert(uid.clone(), (request, change));
        cx.wait(request, Wait::Flush { uid }, Some(FLUSH_CHECK_INTERVAL));
        PENDING
    }

    /// `publish_flush_batched_send` on the stream of `client`.
    pub(super) fn flush(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        client: &Arc<str>,
        uid: Key,
    ) {
        if let Some((request, change)) = self.waiting.swap_remove(&uid) {
            let result = self.apply(scheduler, cx, change.action);
            cx.answer(request, result.map(Option::unwrap_or_default));
            return;
        }
        self.flushed.insert(uid, client.clone());
        if self.flushed.len() > FLUSHES_MAX {
            self.flushed.shift_remove_index(0);
        }
    }

    /// A request has waited for [`FLUSH_CHECK_INTERVAL`]: it goes on waiting if its client is there.
    pub(super) fn expired(
        &mut self,
        scheduler: &Scheduler,
        cx: &mut Context<'_>,
        uid: Key,
        request: RequestId,
    ) {
        let Some((_, change)) = self.waiting.get(&uid) else {
            return;
        };
        if scheduler.client_id(&change.client).is_some() {
            cx.wait(request, Wait::Flush { uid }, Some(FLUSH_CHECK_INTERVAL));
        } else {
            self.waiting.swap_remove(&uid);
            cx.answer(request, Err(timeout_error("")));
        }
    }

    fn apply(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>, action: Action) -> Answer {
        match action {
            Action::Put { datasets, replace } => {
                for (name, keys, data) in datasets {
                    let holder = client_name(&name);
                    match self.datasets.get(&name) {
                        Some(_) if !replace => {
                            let text = format!("Dataset {} already exists", name.python_str());
                            return Err(key_error_text(&text));
                        }
                        Some(_) => self.delete(scheduler, cx, &name),
                        None => check_names(self.datasets.len(), "datasets")?,
                    }
                    interest::desire(scheduler, cx, &holder, keys.clone());
                    self.datasets.insert(name, Dataset { data, keys });
                }
            }
            Action::Delete { names } => {
                for name in names {
                    self.delete(scheduler, cx, &name);
                }
            }
        }
        NONE
    }

    fn delete(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>, name: &Key) {
        if let Some(dataset) = self.datasets.shift_remove(name) {
            interest::release(scheduler, cx, &client_name(name), dataset.keys);
        }
    }

    /// `publish_list`: names sorted by their text.
    pub(super) fn list(&self) -> Answer {
        let mut names: Vec<_> = self
            .datasets
            .keys()
            .map(|name| (name.python_str(), name))
            .collect();
        names.sort_by(|left, right| left.0.cmp(&right.0));
        Ok(Some(
            names
                .into_iter()
                .map(|(_, name)| Value::from(name))
                .collect(),
        ))
    }

    /// `publish_get`: `{"data", "keys"}` or nil for each name.
    pub(super) fn get(&self, names: &[Key]) -> Answer {
        let datasets = names.iter().map(|name| match self.datasets.get(name) {
            None => Value::Nil,
            Some(dataset) => map! {
                "data" => dataset.data.clone(),
                "keys" => dataset.keys.iter().map(Value::from).collect::<Value>(),
            }
            .into(),
        });
        Ok(Some(datasets.collect()))
    }

    /// A waiter is gone.
    pub(super) fn forget(&mut self, uid: &Key) {
        self.waiting.swap_remove(uid);
    }

    /// A client is gone: requests that belong to its flushes will not come.
    pub(super) fn client_left(&mut self, client: &str) {
        self.flushed.retain(|_, name| &**name != client);
    }
}

fn client_name(name: &Key) -> Arc<str> {
    format!("published-{}", name.python_str()).into()
}
