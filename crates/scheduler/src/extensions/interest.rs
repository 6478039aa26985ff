//! Interest in keys that extensions hold through the core.

use std::sync::Arc;

use oxidask_wire::{Key, Map};

use super::waits::Context;
use crate::id::StimulusId;
use crate::{Event, Scheduler};

/// `Scheduler.client_desires_keys` for an internal holder, which is created if need be.
pub(super) fn desire(
    scheduler: &mut Scheduler,
    cx: &mut Context<'_>,
    holder: &Arc<str>,
    keys: Vec<Key>,
) {
    let client = holder.clone();
    scheduler.apply(cx.now, Event::ClientDesiresKeys { client, keys }, cx.out);
}

/// A client takes over interest in a key; nothing if it is gone by now.
pub(super) fn hand_over(
    scheduler: &mut Scheduler,
    cx: &mut Context<'_>,
    client: &Arc<str>,
    key: &Key,
) {
    if scheduler.client_id(client).is_some() {
        desire(scheduler, cx, client, vec![key.clone()]);
    }
}

/// `Scheduler.client_releases_keys`; nothing if there is no such client (any more).
pub(super) fn release(
    scheduler: &mut Scheduler,
    cx: &mut Context<'_>,
    client: &Arc<str>,
    keys: Vec<Key>,
) {
    if scheduler.client_id(client).is_none() {
        return;
    }
    let event = Event::ClientReleasesKeys {
        client: client.clone(),
        keys,
        stimulus_id: StimulusId::from(format!("client-releases-keys-{}", cx.now)),
    };
    scheduler.apply(cx.now, event, cx.out);
}

/// Adds `state` and, for a failed task, `exception` and `traceback` of the task to blame.
pub(super) fn push_state(scheduler: &Scheduler, key: &Key, reply: &mut Map) {
    let Some(task) = scheduler.find_task(key) else {
        reply.push("state", "lost");
        return;
    };
    reply.push("state", task.state.name());
    if task.state == crate::State::Erred
        && let Some(failure) = &task.failure
    {
        reply.push("exception", failure.exception.clone());
        reply.push("traceback", failure.traceback.clone());
    }
}
