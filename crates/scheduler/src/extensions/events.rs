//! `distributed.Event`: a flag that others wait for.

use std::collections::BTreeSet;
use std::hash::RandomState;

use hashbrown::HashMap;
use oxidask_wire::{Key, Value};

use super::waits::{Answer, Context, NONE, PENDING, Wait, check_names};
use crate::id::RequestId;

/// All events, by name. One that is unset and not waited for does not exist.
#[derive(Debug, Default)]
pub(super) struct Events {
    events: HashMap<Key, Event, RandomState>,
}

#[derive(Debug, Default)]
struct Event {
    set: bool,
    /// Requests are numbered as they arrive, so this is their order.
    waiters: BTreeSet<RequestId>,
}

impl Events {
    /// `event_wait`: true when set, false after `timeout`.
    pub(super) fn wait(
        &mut self,
        cx: &mut Context<'_>,
        request: RequestId,
        name: Key,
        timeout: Option<f64>,
    ) -> Answer {
        if self.events.get(&name).is_some_and(|event| event.set) {
            return Ok(Some(Value::Bool(true)));
        }
        if timeout.is_some_and(|timeout| timeout <= 0.0) {
            return Ok(Some(Value::Bool(false)));
        }
        check_names(self.events.len(), "events")?;
        self.events
            .entry(name.clone())
            .or_default()
            .waiters
            .insert(request);
        cx.wait(request, Wait::Event { name }, timeout);
        PENDING
    }

    /// `event_set`.
    pub(super) fn set(&mut self, cx: &mut Context<'_>, name: Key) -> Answer {
        check_names(self.events.len(), "events")?;
        let event = self.events.entry(name).or_default();
        event.set = true;
        for request in std::mem::take(&mut event.waiters) {
            cx.reply(request, true);
        }
        NONE
    }

    /// `event_clear`.
    pub(super) fn clear(&mut self, name: &Key) -> Answer {
        if let Some(event) = self.events.get_mut(name) {
            event.set = false;
            self.drop_if_default(name);
        }
        NONE
    }

    /// `event_is_set`.
    pub(super) fn is_set(&self, name: &Key) -> Answer {
        let set = self.events.get(name).is_some_and(|event| event.set);
        Ok(Some(Value::Bool(set)))
    }

    /// A waiter is gone or timed out.
    pub(super) fn forget(&mut self, name: &Key, request: RequestId) {
        if let Some(event) = self.events.get_mut(name) {
            event.waiters.remove(&request);
            self.drop_if_default(name);
        }
    }

    fn drop_if_default(&mut self, name: &Key) {
        let default = |event: &Event| !event.set && event.waiters.is_empty();
        if self.events.get(name).is_some_and(default) {
            self.events.remove(name);
        }
    }
}
