//! Event topics: a log per topic and the clients that follow it.

use std::collections::VecDeque;
use std::hash::RandomState;
use std::sync::Arc;

use indexmap::{IndexMap, IndexSet};
use oxidask_wire::{Map, Value};

use super::errors::type_error;
use crate::Scheduler;
use crate::instruction::{Failure, Instruction, Instructions, ToClient};

/// Topics that keep events. Events of further ones are delivered, not kept.
const TOPICS_MAX: usize = 100_000;

/// Bytes of texts and buffers that one topic keeps; the oldest events go first.
const TOPIC_NBYTES_MAX: usize = 64 << 20;

/// Stock's `Broker`.
#[derive(Debug)]
pub(super) struct Topics {
    topics: IndexMap<Arc<str>, Topic, RandomState>,
    /// `admin.low-level-log-length`: events kept per topic.
    length: usize,
    /// `scheduler.events-cleanup-delay`, in seconds.
    cleanup_delay: f64,
    /// Topics of workers and clients that left, and when to truncate them.
    cleanups: VecDeque<(f64, Arc<str>)>,
    /// What was published since it was last asked for, while somebody listens to everything.
    pub(super) heard: Option<Vec<(Arc<str>, Value)>>,
}

#[derive(Debug, Default)]
struct Topic {
    events: VecDeque<(Value, usize)>,
    nbytes: usize,
    /// Names of clients.
    subscribers: IndexSet<Arc<str>>,
}

impl Topic {
    fn push(&mut self, event: Value, length: usize) {
        let nbytes = event.nbytes();
        self.nbytes += nbytes;
        self.events.push_back((event, nbytes));
        while self.events.len() > length || self.nbytes > TOPIC_NBYTES_MAX {
            let Some((_, nbytes)) = self.events.pop_front() else {
                return;
            };
            self.nbytes -= nbytes;
        }
    }

    fn events(&self) -> Value {
        self.events.iter().map(|(event, _)| event.clone()).collect()
    }
}

impl Topics {
    pub(super) fn new(length: usize, cleanup_delay: f64) -> Self {
        Self {
            topics: IndexMap::default(),
            length,
            cleanup_delay,
            cleanups: VecDeque::new(),
            heard: None,
        }
    }

    /// Keeps `[now, message]` under each topic and sends it to those who follow it.
    pub(super) fn publish(
        &mut self,
        scheduler: &Scheduler,
        now: f64,
        topics: &[Arc<str>],
        message: &Value,
        out: &mut Instructions,
    ) {
        let event = Value::Array(vec![Value::Float(now), message.detached()]);
        for name in topics {
            if let Some(heard) = &mut self.heard {
                heard.push((name.clone(), message.detached()));
            }
            let Some(topic) = self.topic(name) else {
                continue;
            };
            for subscriber in &topic.subscribers {
                if let Some(client) = scheduler.client_id(subscriber)
                    && scheduler
                        .client(client)
                        .is_some_and(|client| client.connected)
                {
                    let message = ToClient::Event {
                        topic: name.clone(),
                        event: event.clone(),
                    };
                    out.push(Instruction::ToClient { client, message });
                }
            }
            let length = self.length;
            if let Some(topic) = self.topic(name) {
                topic.push(event.clone(), length);
            }
        }
    }

    fn topic(&mut self, name: &Arc<str>) -> Option<&mut Topic> {
        if !self.topics.contains_key(name) && self.topics.len() >= TOPICS_MAX {
            return None;
        }
        Some(self.topics.entry(name.clone()).or_default())
    }

    /// `subscribe-topic`.
    pub(super) fn subscribe(&mut self, name: &Arc<str>, client: &Arc<str>) {
        if let Some(topic) = self.topic(name) {
            topic.subscribers.insert(client.clone());
        }
    }

    /// `unsubscribe-topic`.
    pub(super) fn unsubscribe(&mut self, name: &str, client: &str) {
        if let Some(topic) = self.topics.get_mut(name) {
            topic.subscribers.shift_remove(client);
        }
    }

    /// `events`: those of one topic, or of each topic that has any.
    pub(super) fn events(&self, name: Option<&str>) -> Value {
        match name {
            Some(name) => self
                .topics
                .get(name)
                .map_or(Value::Array(Vec::new()), Topic::events),
            None => {
                let topics = self
                    .topics
                    .iter()
                    .filter(|(_, topic)| !topic.events.is_empty());
                let map: Map = topics.map(|(name, topic)| (name, topic.events())).collect();
                Value::Map(map)
            }
        }
    }

    /// A worker or client left: its topic goes after a while, unless it is back by then.
    pub(super) fn left(&mut self, now: f64, name: Arc<str>) {
        self.cleanups.push_back((now + self.cleanup_delay, name));
        if self.cleanups.len() > TOPICS_MAX {
            self.cleanups.pop_front();
        }
    }

    /// When the next topic is to be cleaned up.
    pub(super) fn next_deadline(&self) -> Option<f64> {
        self.cleanups.front().map(|(at, _)| *at)
    }

    /// Cleans up topics of those who left.
    pub(super) fn tick(&mut self, scheduler: &Scheduler, now: f64) {
        while self.cleanups.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, name)) = self.cleanups.pop_front() else {
                return;
            };
            if scheduler.client_id(&name).is_some() || scheduler.worker_id(&name).is_some() {
                continue;
            }
            if let Some(topic) = self.topics.get_mut(&name) {
                topic.events.clear();
                topic.nbytes = 0;
                if topic.subscribers.is_empty() {
                    self.topics.swap_remove(&name);
                }
            }
            // Stock keeps sending to a client that reconnects under its name; by
            // now it will not come back.
            self.topics.retain(|_, topic| {
                let left = topic.subscribers.shift_remove(&name);
                !(left && topic.subscribers.is_empty() && topic.events.is_empty())
            });
        }
    }
}

/// One topic or a list of topics.
///
/// # Errors
/// `TypeError` for anything that is no text.
pub(super) fn topic_names(value: &Value) -> Result<Vec<Arc<str>>, Failure> {
    let wrong = || type_error("a topic must be a str");
    match value.as_array() {
        Some(names) => names
            .iter()
            .map(|name| name.as_str().map(Arc::from).ok_or_else(wrong))
            .collect(),
        None => value
            .as_str()
            .map(|name| vec![name.into()])
            .ok_or_else(wrong),
    }
}
