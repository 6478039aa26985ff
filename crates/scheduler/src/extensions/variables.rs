//! `distributed.Variable`: one value or future by name.

use std::collections::BTreeSet;
use std::hash::RandomState;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use oxidask_wire::{Key, Map, Value, map};

use super::errors::timeout_error;
use super::waits::{Answer, Context, NONE, PENDING, Wait, check_names};
use super::{Record, interest};
use crate::id::{RequestId, StimulusId};
use crate::{Event, Scheduler};

/// Futures handed out and not yet confirmed, per variable and key. Beyond this
/// the oldest counts as confirmed.
const TOKENS_MAX: usize = 100_000;

/// All variables.
///
/// Interest in a future is held by the internal client `variable-<name>`. Who
/// gets a future confirms it with a token once it holds interest of its own;
/// until then the variable keeps its interest even if it is overwritten.
#[derive(Debug, Default)]
pub(super) struct Variables {
    variables: HashMap<Key, Variable, RandomState>,
    /// Who waits for a variable to be set. Requests are numbered as they arrive.
    getters: HashMap<Key, BTreeSet<Getter>, RandomState>,
    /// By variable and key.
    handed_out: HashMap<(Key, Key), HandedOut, RandomState>,
    last_token: u64,
}

#[derive(Debug)]
struct Variable {
    record: Record,
    /// To be deleted once all tokens of its future are confirmed.
    deleting: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Getter {
    request: RequestId,
    client: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct HandedOut {
    /// Token and the name of the client that got it.
    tokens: HashSet<(u64, Option<Arc<str>>)>,
    /// Interest goes with the last token.
    release: bool,
}

impl Variables {
    /// `variable_set`; a future's task is known to the scheduler by now.
    pub(super) fn set(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        name: Key,
        record: Record,
    ) -> Answer {
        if !self.variables.contains_key(&name) {
            check_names(self.variables.len(), "variables")?;
        }
        if let Record::Future(key) = &record {
            interest::desire(scheduler, cx, &client_name(&name), vec![key.clone()]);
        }
        let variable = Variable {
            record: record.clone(),
            deleting: false,
        };
        let old = self.variables.insert(name.clone(), variable);
        if let Some(Record::Future(old)) = old.map(|old| old.record)
            && record != Record::Future(old.clone())
        {
            self.release_when_confirmed(scheduler, cx, &name, &old);
        }
        for getter in self.getters.remove(&name).unwrap_or_default() {
            let reply = self.hand_out(scheduler, &name, &record, getter.client);
            cx.reply(getter.request, reply);
        }
        NONE
    }

    /// `variable_get`: waits until it is set; `TimeoutError` after `timeout`.
    pub(super) fn get(
        &mut self,
        scheduler: &Scheduler,
        cx: &mut Context<'_>,
        request: RequestId,
        name: Key,
        client: Option<Arc<str>>,
        timeout: Option<f64>,
    ) -> Answer {
        if let Some(variable) = self.variables.get(&name) {
            let record = variable.record.clone();
            return Ok(Some(
                self.hand_out(scheduler, &name, &record, client).into(),
            ));
        }
        if timeout.is_some_and(|timeout| timeout <= 0.0) {
            return Err(timeout_error(""));
        }
        check_names(self.getters.len(), "variables")?;
        self.getters
            .entry(name.clone())
            .or_default()
            .insert(Getter { request, client });
        cx.wait(request, Wait::Variable { name }, timeout);
        PENDING
    }

    fn hand_out(
        &mut self,
        scheduler: &Scheduler,
        name: &Key,
        record: &Record,
        client: Option<Arc<str>>,
    ) -> Map {
        let mut reply = record.to_map();
        if let Record::Future(key) = record {
            self.last_token += 1;
            reply.push("token", token_text(self.last_token));
            interest::push_state(scheduler, key, &mut reply);
            let handed_out = self
                .handed_out
                .entry((name.clone(), key.clone()))
                .or_default();
            handed_out.tokens.insert((self.last_token, client));
            if handed_out.tokens.len() > TOKENS_MAX
                && let Some(oldest) = handed_out.tokens.iter().min().cloned()
            {
                handed_out.tokens.remove(&oldest);
            }
        }
        reply
    }

    /// `variable-future-received-confirm`: `client` takes over interest in the key.
    pub(super) fn confirm(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        client: &Arc<str>,
        name: &Key,
        key: &Key,
        token: &str,
    ) {
        interest::hand_over(scheduler, cx, client, key);
        let place = (name.clone(), key.clone());
        let Some(handed_out) = self.handed_out.get_mut(&place) else {
            return;
        };
        handed_out
            .tokens
            .retain(|(number, _)| token_text(*number) != token);
        self.settle(scheduler, cx, place);
    }

    /// A client is gone: it will confirm nothing any more.
    pub(super) fn client_left(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        client: &str,
    ) {
        let mut places: Vec<_> = self
            .handed_out
            .iter_mut()
            .filter_map(|(place, handed_out)| {
                let before = handed_out.tokens.len();
                handed_out
                    .tokens
                    .retain(|(_, name)| name.as_deref() != Some(client));
                (handed_out.tokens.len() < before).then(|| place.clone())
            })
            .collect();
        places.sort_unstable();
        for place in places {
            self.settle(scheduler, cx, place);
        }
    }

    /// `variable_delete`.
    pub(super) fn delete(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>, name: &Key) {
        let Some(variable) = self.variables.get_mut(name) else {
            return;
        };
        let Record::Future(key) = &variable.record else {
            self.finish_delete(scheduler, cx, name);
            return;
        };
        if self.handed_out.contains_key(&(name.clone(), key.clone())) {
            variable.deleting = true;
        } else {
            self.finish_delete(scheduler, cx, name);
        }
    }

    fn finish_delete(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>, name: &Key) {
        self.variables.remove(name);
        if let Some(client) = scheduler.client_id(&client_name(name)) {
            let stimulus_id = StimulusId::from(format!("remove-client-{}", cx.now));
            let event = Event::RemoveClient {
                client,
                stimulus_id,
            };
            scheduler.apply(cx.now, event, cx.out);
        }
    }

    fn release_when_confirmed(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        name: &Key,
        key: &Key,
    ) {
        let place = (name.clone(), key.clone());
        if let Some(handed_out) = self.handed_out.get_mut(&place) {
            handed_out.release = true;
        } else {
            interest::release(scheduler, cx, &client_name(name), vec![key.clone()]);
        }
    }

    /// Releases what is due after the last token of a key was confirmed.
    fn settle(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>, place: (Key, Key)) {
        let Some(handed_out) = self.handed_out.get(&place) else {
            return;
        };
        if !handed_out.tokens.is_empty() {
            return;
        }
        let release = handed_out.release;
        self.handed_out.remove(&place);
        let (name, key) = place;
        let current = self.variables.get(&name);
        let holds = current.is_some_and(|variable| variable.record == Record::Future(key.clone()));
        if holds {
            // Stock releases here even if the variable was set to this key again.
            if current.is_some_and(|variable| variable.deleting) {
                self.finish_delete(scheduler, cx, &name);
            }
        } else if release {
            interest::release(scheduler, cx, &client_name(&name), vec![key]);
        }
    }

    /// A waiter is gone or timed out.
    pub(super) fn forget(&mut self, name: &Key, request: RequestId) {
        if let Some(getters) = self.getters.get_mut(name) {
            getters.retain(|getter| getter.request != request);
            if getters.is_empty() {
                self.getters.remove(name);
            }
        }
    }

    /// Tasks are gone after a restart: so is the interest in them.
    pub(super) fn validate(&self) {
        for (name, getters) in &self.getters {
            assert!(!getters.is_empty());
            assert!(
                !self.variables.contains_key(name),
                "{name:?} is set and waited for"
            );
        }
        assert!(
            self.handed_out
                .values()
                .all(|handed_out| !handed_out.tokens.is_empty())
        );
    }
}

fn client_name(name: &Key) -> Arc<str> {
    format!("variable-{}", name.python_str()).into()
}

/// Stock's tokens are random hexadecimal numbers; these need only be distinct.
fn token_text(number: u64) -> String {
    format!("{number:032x}")
}

impl Record {
    /// `{"type", "value"}`.
    pub(super) fn to_map(&self) -> Map {
        match self {
            Self::Future(key) => map! { "type" => "Future", "value" => key },
            Self::Data(value) => map! { "type" => "msgpack", "value" => value.clone() },
        }
    }
}

/// Keeps a value beyond its message: small ones do not hold on to the receive buffer.
pub(super) fn kept(value: Value) -> Value {
    /// Larger frames have a buffer of their own.
    const COPIED_NBYTES_MAX: usize = 1 << 20;
    if value.nbytes() <= COPIED_NBYTES_MAX {
        value.detached()
    } else {
        value
    }
}
