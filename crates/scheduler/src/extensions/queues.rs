//! `distributed.Queue`: a FIFO of values and futures.

use std::collections::VecDeque;
use std::hash::RandomState;
use std::sync::Arc;

use hashbrown::HashMap;
use oxidask_wire::{Key, Map, Value};

use super::errors::{key_error, not_implemented_error, timeout_error};
use super::waits::{Answer, Context, NONE, PENDING, Wait, check_names};
use super::{Record, interest};
use crate::Scheduler;
use crate::id::RequestId;

/// Elements of a queue without `maxsize`; who puts more waits, as if it were full.
const ITEMS_MAX: usize = 10_000_000;

/// All queues.
///
/// Interest in a future is held by the internal client `queue-<name>` from the
/// put until whoever got it says so (`queue-future-release`).
#[derive(Debug, Default)]
pub(super) struct Queues {
    queues: HashMap<Key, Queue, RandomState>,
    /// Puts of a key not yet released, by queue and key.
    holds: HashMap<(Key, Key), usize, RandomState>,
}

#[derive(Debug)]
struct Queue {
    /// 0 for none.
    maxsize: i64,
    /// Clients that have it open.
    refcount: u64,
    items: VecDeque<Record>,
    /// Only while there are no items.
    getters: VecDeque<Getter>,
    /// Only while it is full.
    putters: VecDeque<(RequestId, Record)>,
}

#[derive(Debug)]
struct Getter {
    request: RequestId,
    /// How many elements it wants as a list; none wants a single one by itself.
    batch: Option<usize>,
    got: Vec<Record>,
}

/// The argument `batch` of `queue_get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Batch {
    /// One element.
    No,
    /// Whatever is there, without waiting.
    All,
    /// So many.
    Count(usize),
}

impl Queue {
    fn is_full(&self) -> bool {
        let limit = usize::try_from(self.maxsize)
            .ok()
            .filter(|&maxsize| maxsize > 0);
        self.items.len() >= limit.unwrap_or(ITEMS_MAX).min(ITEMS_MAX)
    }
}

impl Queues {
    /// `queue_create`: makes the queue or counts one more user of it.
    pub(super) fn create(&mut self, name: Key, maxsize: i64) -> Answer {
        if let Some(queue) = self.queues.get_mut(&name) {
            queue.refcount += 1;
            return NONE;
        }
        check_names(self.queues.len(), "queues")?;
        let queue = Queue {
            maxsize,
            refcount: 1,
            items: VecDeque::new(),
            getters: VecDeque::new(),
            putters: VecDeque::new(),
        };
        self.queues.insert(name, queue);
        NONE
    }

    /// `queue_release`: one user less; without users it is dropped. Who waits at
    /// it goes on waiting until its timeout, as in stock.
    pub(super) fn release(&mut self, scheduler: &mut Scheduler, cx: &mut Context<'_>, name: &Key) {
        let Some(queue) = self.queues.get_mut(name) else {
            return;
        };
        queue.refcount -= 1;
        if queue.refcount > 0 {
            return;
        }
        let Some(queue) = self.queues.remove(name) else {
            return;
        };
        let mut records: Vec<Record> = queue.items.into();
        let orphan = Wait::Orphan {
            answers_false: false,
        };
        for getter in queue.getters {
            cx.waits.replace(getter.request, orphan.clone());
            records.extend(getter.got);
        }
        for (request, record) in queue.putters {
            cx.waits.replace(request, orphan.clone());
            records.push(record);
        }
        self.drop_holds(scheduler, cx, name, &records);
    }

    /// `queue_put`; a future's task is known to the scheduler by now.
    pub(super) fn put(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        request: RequestId,
        name: Key,
        record: Record,
        timeout: Option<f64>,
    ) -> Answer {
        let Some(queue) = self.queues.get_mut(&name) else {
            return Err(key_error(&name));
        };
        let full = queue.is_full();
        if full && timeout.is_some_and(|timeout| timeout <= 0.0) {
            return Err(timeout_error(""));
        }
        if let Record::Future(key) = &record {
            *self.holds.entry((name.clone(), key.clone())).or_default() += 1;
            interest::desire(scheduler, cx, &client_name(&name), vec![key.clone()]);
        }
        if full {
            queue.putters.push_back((request, record));
            cx.wait(request, Wait::QueuePut { name }, timeout);
            return PENDING;
        }
        queue.items.push_back(record);
        self.serve(scheduler, cx, &name);
        NONE
    }

    /// `queue_get`.
    pub(super) fn get(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        request: RequestId,
        name: Key,
        batch: Batch,
        timeout: Option<f64>,
    ) -> Answer {
        let Some(queue) = self.queues.get_mut(&name) else {
            return Err(key_error(&name));
        };
        let count = match batch {
            Batch::No => 1,
            Batch::All => queue.items.len(),
            Batch::Count(_) if timeout.is_some() => {
                return Err(not_implemented_error(
                    "Dask queues don't support simultaneous use of integer batch sizes and timeouts",
                ));
            }
            Batch::Count(count) => count,
        };
        let available = count.min(queue.items.len());
        let got: Vec<Record> = queue.items.drain(..available).collect();
        if got.len() == count {
            let reply = reply(scheduler, &got, batch != Batch::No);
            self.serve(scheduler, cx, &name);
            return Ok(Some(reply));
        }
        if timeout.is_some_and(|timeout| timeout <= 0.0) {
            return Err(timeout_error(""));
        }
        let batch = (batch != Batch::No).then_some(count);
        queue.getters.push_back(Getter {
            request,
            batch,
            got,
        });
        cx.wait(request, Wait::QueueGet { name: name.clone() }, timeout);
        self.serve(scheduler, cx, &name);
        PENDING
    }

    /// `queue_qsize`.
    pub(super) fn qsize(&self, name: &Key) -> Answer {
        match self.queues.get(name) {
            Some(queue) => Ok(Some(Value::from(queue.items.len()))),
            None => Err(key_error(name)),
        }
    }

    /// `queue-future-release`: `client` takes over interest in a key it got.
    pub(super) fn future_release(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        client: &Arc<str>,
        name: &Key,
        key: &Key,
    ) {
        interest::hand_over(scheduler, cx, client, key);
        self.drop_holds(scheduler, cx, name, &[Record::Future(key.clone())]);
    }

    /// A waiter is gone or timed out: what it was about to put is dropped, what
    /// it got already goes back to the front.
    pub(super) fn forget(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        name: &Key,
        request: RequestId,
    ) {
        let Some(queue) = self.queues.get_mut(name) else {
            return;
        };
        if let Some(at) = queue
            .getters
            .iter()
            .position(|getter| getter.request == request)
        {
            let getter = queue.getters.remove(at);
            for record in getter.into_iter().flat_map(|getter| getter.got).rev() {
                queue.items.push_front(record);
            }
            self.serve(scheduler, cx, name);
        } else if let Some(at) = queue
            .putters
            .iter()
            .position(|(putter, _)| *putter == request)
        {
            let dropped: Vec<_> = queue
                .putters
                .remove(at)
                .into_iter()
                .map(|(_, record)| record)
                .collect();
            self.drop_holds(scheduler, cx, name, &dropped);
        }
    }

    /// Moves elements from those who put to those who get, first come first served.
    fn serve(&mut self, scheduler: &Scheduler, cx: &mut Context<'_>, name: &Key) {
        let Some(queue) = self.queues.get_mut(name) else {
            return;
        };
        loop {
            while !queue.is_full()
                && let Some((request, record)) = queue.putters.pop_front()
            {
                queue.items.push_back(record);
                cx.reply(request, Value::Nil);
            }
            if queue.items.is_empty() {
                return;
            }
            let Some(mut getter) = queue.getters.pop_front() else {
                return;
            };
            getter.got.extend(queue.items.pop_front());
            if getter.got.len() == getter.batch.unwrap_or(1) {
                cx.reply(
                    getter.request,
                    reply(scheduler, &getter.got, getter.batch.is_some()),
                );
            } else {
                // One who wants several queues up again after each element.
                queue.getters.push_back(getter);
            }
        }
    }

    fn drop_holds(
        &mut self,
        scheduler: &mut Scheduler,
        cx: &mut Context<'_>,
        name: &Key,
        records: &[Record],
    ) {
        let mut released = Vec::new();
        for record in records {
            let Record::Future(key) = record else {
                continue;
            };
            let place = (name.clone(), key.clone());
            let Some(count) = self.holds.get_mut(&place) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.holds.remove(&place);
                released.push(key.clone());
            }
        }
        if !released.is_empty() {
            interest::release(scheduler, cx, &client_name(name), released);
        }
    }

    /// Nobody waits for what is there.
    pub(super) fn validate(&self) {
        for (name, queue) in &self.queues {
            assert!(queue.refcount > 0, "{name:?}: {queue:?}");
            assert!(
                queue.getters.is_empty() || queue.items.is_empty(),
                "{name:?}: {queue:?}"
            );
            assert!(
                queue.putters.is_empty() || queue.is_full(),
                "{name:?}: {queue:?}"
            );
        }
        assert!(self.holds.values().all(|&count| count > 0));
    }
}

fn client_name(name: &Key) -> Arc<str> {
    format!("queue-{}", name.python_str()).into()
}

/// One element, or a list of them, with the present state of futures.
fn reply(scheduler: &Scheduler, records: &[Record], as_list: bool) -> Value {
    let element = |record: &Record| -> Map {
        let mut element = record.to_map();
        if let Record::Future(key) = record {
            interest::push_state(scheduler, key, &mut element);
        }
        element
    };
    match records {
        [record] if !as_list => element(record).into(),
        _ => records
            .iter()
            .map(|record| Value::Map(element(record)))
            .collect(),
    }
}
