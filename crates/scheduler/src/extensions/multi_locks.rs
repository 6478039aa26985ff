//! `distributed.MultiLock`: several locks at once, or some of several.

use std::collections::VecDeque;
use std::hash::RandomState;

use hashbrown::HashMap;
use oxidask_wire::{Key, Value};

use super::errors::{assertion_error, key_error};
use super::waits::{Answer, Context, NONE, PENDING, Wait, check_names};
use crate::id::RequestId;

/// All locks and their users.
#[derive(Debug, Default)]
pub(super) struct MultiLocks {
    /// Users of each lock in the order of their requests; the first one holds it.
    locks: HashMap<Key, VecDeque<Key>, RandomState>,
    users: HashMap<Key, User, RandomState>,
}

#[derive(Debug)]
struct User {
    /// Locks in whose queues it is.
    locks: Vec<Key>,
    /// How many of them it still needs to hold.
    left: usize,
    /// The request to answer once `left` is 0.
    waiting: Option<RequestId>,
}

impl MultiLocks {
    /// `multi_lock_acquire`: true with `num_locks` of `locks`, false after `timeout`.
    ///
    /// Shortest queues are tried first. Locks that `id` turns out not to need
    /// stay requested until it releases, as in stock.
    pub(super) fn acquire(
        &mut self,
        cx: &mut Context<'_>,
        request: RequestId,
        mut locks: Vec<Key>,
        id: Key,
        num_locks: i64,
        timeout: Option<f64>,
    ) -> Answer {
        if self.users.contains_key(&id) {
            return Err(assertion_error(""));
        }
        // Stock waits for itself forever when a name is given twice.
        let mut seen = hashbrown::HashSet::with_capacity(locks.len());
        locks.retain(|lock| seen.insert(lock.clone()));
        let num_locks = match usize::try_from(num_locks) {
            Ok(count) if (1..=locks.len()).contains(&count) => count,
            _ => return Err(assertion_error("")),
        };
        check_names(self.users.len().max(self.locks.len()), "locks")?;

        locks.sort_by_key(|lock| self.locks.get(lock).map_or(0, VecDeque::len));
        let mut left = num_locks;
        for at in 0..locks.len() {
            let queue = self.locks.entry(locks[at].clone()).or_default();
            queue.push_back(id.clone());
            left -= usize::from(queue.len() == 1);
            if left == 0 {
                locks.truncate(at + 1);
                break;
            }
        }
        let waiting = (left > 0).then_some(request);
        let user = User {
            locks,
            left,
            waiting,
        };
        self.users.insert(id.clone(), user);
        if left == 0 {
            return Ok(Some(Value::Bool(true)));
        }
        if timeout.is_some_and(|timeout| timeout <= 0.0) {
            self.remove(cx, &id);
            return Ok(Some(Value::Bool(false)));
        }
        cx.wait(request, Wait::MultiLock { id }, timeout);
        PENDING
    }

    /// `multi_lock_release`.
    pub(super) fn release(&mut self, cx: &mut Context<'_>, id: &Key) -> Answer {
        if !self.users.contains_key(id) {
            return Err(key_error(id));
        }
        if let Some(request) = self.remove(cx, id) {
            // Released by a user that still waits: it will not be served any more.
            cx.waits.replace(
                request,
                Wait::Orphan {
                    answers_false: true,
                },
            );
        }
        NONE
    }

    /// A waiter is gone or timed out.
    pub(super) fn forget(&mut self, cx: &mut Context<'_>, id: &Key) {
        self.remove(cx, id);
    }

    /// Takes a user out of every queue and serves those who get ahead.
    fn remove(&mut self, cx: &mut Context<'_>, id: &Key) -> Option<RequestId> {
        let user = self.users.remove(id)?;
        for lock in &user.locks {
            let Some(queue) = self.locks.get_mut(lock) else {
                continue;
            };
            let held = queue.front() == Some(id);
            queue.retain(|other| other != id);
            let Some(first) = queue.front() else {
                self.locks.remove(lock);
                continue;
            };
            if !held {
                continue;
            }
            if let Some(user) = self.users.get_mut(first) {
                user.left = user.left.saturating_sub(1);
                if user.left == 0
                    && let Some(request) = user.waiting.take()
                {
                    cx.reply(request, true);
                }
            }
        }
        user.waiting
    }

    /// Every queue consists of users that request the lock; who waits lacks locks.
    pub(super) fn validate(&self) {
        let mut entries = 0;
        for user in self.users.values() {
            entries += user.locks.len();
            assert_eq!(user.left > 0, user.waiting.is_some(), "{user:?}");
        }
        let queued: usize = self.locks.values().map(VecDeque::len).sum();
        assert_eq!(
            entries, queued,
            "locks {:?}, users {:?}",
            self.locks, self.users
        );
        assert!(self.locks.values().all(|queue| !queue.is_empty()));
    }
}
