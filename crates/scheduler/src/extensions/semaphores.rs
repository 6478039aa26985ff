//! `distributed.Semaphore` and `distributed.Lock`: leases that expire.

use std::collections::BTreeMap;
use std::hash::RandomState;

use indexmap::IndexMap;
use oxidask_wire::{Key, Value};

use super::errors::{assertion_error, runtime_error, value_error};
use super::waits::{Answer, Context, NONE, PENDING, Wait, check_names};
use crate::id::RequestId;
use crate::instruction::Level;

/// Leases that one semaphore holds at most; a refresh creates unknown ones, so
/// that a faulty client could add any number. Further ones are not recorded.
const LEASES_MAX: usize = 1_000_000;

/// All semaphores, by name.
#[derive(Debug)]
pub(super) struct Semaphores {
    semaphores: IndexMap<Key, Semaphore, RandomState>,
    /// `scheduler.locks.lease-validation-interval`, in seconds.
    validation_interval: f64,
    /// When leases are looked at next; none while no lease can expire.
    validation: Option<f64>,
}

#[derive(Debug, Default)]
struct Semaphore {
    /// None until it is registered: a refresh may come first, after the scheduler restarted.
    max_leases: Option<i64>,
    /// Seconds without a refresh after which a lease expires; none never does.
    lease_timeout: Option<f64>,
    /// When each lease was last refreshed.
    leases: IndexMap<Key, f64, RandomState>,
    /// Requests are numbered as they arrive, so this is their order.
    waiters: BTreeMap<RequestId, Acquire>,
    acquire_total: u64,
    release_total: u64,
    /// Seconds.
    average_pending_lease_time: f64,
}

#[derive(Debug)]
struct Acquire {
    lease_id: Key,
    since: f64,
}

/// One semaphore's figures, as Prometheus reads them.
#[derive(Clone, Debug, PartialEq)]
pub struct SemaphoreMetrics {
    /// Its name.
    pub name: Key,
    /// Leases that may be out at once.
    pub max_leases: i64,
    /// Leases that are out.
    pub active_leases: usize,
    /// Requests that wait for one.
    pub pending_leases: usize,
    /// Leases given since it was registered.
    pub acquire_total: u64,
    /// Leases returned or expired since it was registered.
    pub release_total: u64,
    /// Seconds; each new wait counts as much as all before it.
    pub average_pending_lease_time: f64,
}

impl Semaphore {
    fn try_acquire(&mut self, now: f64, lease_id: &Key) -> bool {
        let max_leases = self.max_leases.unwrap_or(0);
        // A lease that is held is given again: clients repeat requests whose answer they missed.
        if !self.leases.contains_key(lease_id) && self.leases.len() as i64 >= max_leases {
            return false;
        }
        self.leases.insert(lease_id.clone(), now);
        self.acquire_total += 1;
        true
    }

    fn waited(&mut self, seconds: f64) {
        self.average_pending_lease_time = (self.average_pending_lease_time + seconds) / 2.0;
    }

    fn release(&mut self, lease_id: &Key) -> bool {
        let held = self.leases.swap_remove(lease_id).is_some();
        self.release_total += u64::from(held);
        held
    }

    /// Gives free leases to those who wait, first come first served.
    fn serve(&mut self, cx: &mut Context<'_>) {
        while let Some((&request, acquire)) = self.waiters.first_key_value() {
            let (lease_id, since) = (acquire.lease_id.clone(), acquire.since);
            if !self.try_acquire(cx.now, &lease_id) {
                return;
            }
            self.waiters.remove(&request);
            self.waited(cx.now - since);
            cx.reply(request, true);
        }
    }

    fn can_expire(&self) -> bool {
        self.lease_timeout.is_some_and(|timeout| timeout > 0.0) && !self.leases.is_empty()
    }
}

impl Semaphores {
    /// `validation_interval` is in seconds.
    pub(super) fn new(validation_interval: f64) -> Self {
        Self {
            semaphores: IndexMap::default(),
            validation_interval: validation_interval.max(0.001),
            validation: None,
        }
    }

    /// `semaphore_register`: the first registration decides about the timeout.
    pub(super) fn register(
        &mut self,
        cx: &mut Context<'_>,
        name: Key,
        max_leases: &Value,
        lease_timeout: Option<f64>,
    ) -> Answer {
        let known = self
            .semaphores
            .get(&name)
            .and_then(|semaphore| semaphore.max_leases);
        if let Some(expected) = known {
            if max_leases.as_f64() == Some(expected as f64) {
                return NONE;
            }
            let found = super::python_repr(max_leases);
            return Err(value_error(&format!(
                "Inconsistent max leases: {found}, expected: {expected}"
            )));
        }
        let Some(max_leases) = max_leases.as_i64() else {
            return Err(assertion_error(&super::python_repr(max_leases)));
        };
        check_names(self.semaphores.len(), "semaphores")?;
        let semaphore = self.semaphores.entry(name).or_default();
        semaphore.max_leases = Some(max_leases);
        semaphore.lease_timeout = lease_timeout;
        if semaphore.can_expire() {
            self.schedule_validation(cx.now);
        }
        NONE
    }

    /// `semaphore_acquire`: true with a lease, false after `timeout`.
    pub(super) fn acquire(
        &mut self,
        cx: &mut Context<'_>,
        request: RequestId,
        name: Key,
        lease_id: Key,
        timeout: Option<f64>,
    ) -> Answer {
        let semaphore = self
            .semaphores
            .get_mut(&name)
            .filter(|s| s.max_leases.is_some());
        let Some(semaphore) = semaphore else {
            return Err(runtime_error(&format!(
                "Semaphore or Lock `{}` not known.",
                name.python_str()
            )));
        };
        let held = semaphore.leases.contains_key(&lease_id);
        // Nobody overtakes those who wait already; a repeated request takes nothing from them.
        if (held || semaphore.waiters.is_empty()) && semaphore.try_acquire(cx.now, &lease_id) {
            semaphore.waited(0.0);
            if semaphore.can_expire() {
                self.schedule_validation(cx.now);
            }
            return Ok(Some(Value::Bool(true)));
        }
        if timeout.is_some_and(|timeout| timeout <= 0.0) {
            semaphore.waited(0.0);
            return Ok(Some(Value::Bool(false)));
        }
        semaphore.waiters.insert(
            request,
            Acquire {
                lease_id,
                since: cx.now,
            },
        );
        cx.wait(request, Wait::Semaphore { name }, timeout);
        PENDING
    }

    /// `semaphore_release`: an unknown lease is only worth a warning, since it may have expired.
    pub(super) fn release(&mut self, cx: &mut Context<'_>, name: &Key, lease_id: &Key) -> Answer {
        let semaphore = self
            .semaphores
            .get_mut(name)
            .filter(|s| s.max_leases.is_some());
        let Some(semaphore) = semaphore else {
            cx.log(
                Level::Warning,
                format!(
                    "Tried to release Lock or Semaphore `{}` but it is not known.",
                    name.python_str()
                ),
            );
            return NONE;
        };
        if semaphore.release(lease_id) {
            semaphore.serve(cx);
        } else {
            cx.log(
                Level::Warning,
                format!(
                    "Tried to release Lock or Semaphore but it was already released: name={}, lease_id={}. \
                     This can happen if the Lock or Semaphore timed out before.",
                    name.python_repr(),
                    lease_id.python_repr()
                ),
            );
        }
        NONE
    }

    /// `semaphore_refresh_leases`: unknown leases are created again, even beyond the maximum.
    pub(super) fn refresh(
        &mut self,
        cx: &mut Context<'_>,
        name: Key,
        lease_ids: Vec<Key>,
    ) -> Answer {
        if !self.semaphores.contains_key(&name) {
            check_names(self.semaphores.len(), "semaphores")?;
        }
        let semaphore = self.semaphores.entry(name.clone()).or_default();
        for lease_id in lease_ids {
            if !semaphore.leases.contains_key(&lease_id) {
                cx.log(
                    Level::Error,
                    format!(
                        "Refreshing an unknown lease ID {} for {}. This might be due to leases \
                         timing out and may cause overbooking of the semaphore!\
                         This is often caused by long-running GIL-holding in the task which acquired the lease.",
                        lease_id.python_str(),
                        name.python_str()
                    ),
                );
                if semaphore.leases.len() >= LEASES_MAX {
                    continue;
                }
            }
            semaphore.leases.insert(lease_id, cx.now);
        }
        if semaphore.can_expire() {
            self.schedule_validation(cx.now);
        }
        NONE
    }

    /// `semaphore_value`: leases that are out.
    pub(super) fn value(&self, name: &Key) -> Answer {
        let count = self
            .semaphores
            .get(name)
            .map_or(0, |semaphore| semaphore.leases.len());
        Ok(Some(Value::from(count)))
    }

    /// `semaphore_close`: forgets it. Who waits goes on waiting until its timeout, as in stock.
    pub(super) fn close(&mut self, cx: &mut Context<'_>, name: &Key) -> Answer {
        if self
            .semaphores
            .get(name)
            .is_none_or(|s| s.max_leases.is_none())
        {
            return NONE;
        }
        let Some(semaphore) = self.semaphores.swap_remove(name) else {
            return NONE;
        };
        let name = name.python_str();
        if !semaphore.leases.is_empty() {
            let mut leases: Vec<_> = semaphore.leases.keys().map(Key::python_repr).collect();
            leases.sort_unstable();
            let leases = leases.join(", ");
            cx.log(
                Level::Warning,
                format!("Closing semaphore {name} but there remain unreleased leases [{leases}]"),
            );
        }
        if !semaphore.waiters.is_empty() {
            cx.log(
                Level::Warning,
                format!("Closing semaphore {name} but there remain pending leases"),
            );
        }
        for &request in semaphore.waiters.keys() {
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
    pub(super) fn forget(&mut self, now: f64, name: &Key, request: RequestId) {
        let Some(semaphore) = self.semaphores.get_mut(name) else {
            return;
        };
        if let Some(acquire) = semaphore.waiters.remove(&request) {
            semaphore.waited(now - acquire.since);
        }
    }

    /// When leases are to be looked at.
    pub(super) fn next_deadline(&self) -> Option<f64> {
        self.validation
    }

    /// Expires leases that were not refreshed in time, once per validation interval.
    pub(super) fn tick(&mut self, cx: &mut Context<'_>) {
        if self.validation.is_none_or(|at| at > cx.now) {
            return;
        }
        self.validation = None;
        for semaphore in self.semaphores.values_mut() {
            let Some(timeout) = semaphore.lease_timeout.filter(|timeout| *timeout > 0.0) else {
                continue;
            };
            let before = semaphore.leases.len();
            semaphore
                .leases
                .retain(|_, refreshed| cx.now - *refreshed <= timeout);
            let expired = before - semaphore.leases.len();
            if expired > 0 {
                semaphore.release_total += expired as u64;
                semaphore.serve(cx);
            }
        }
        if self.semaphores.values().any(Semaphore::can_expire) {
            self.schedule_validation(cx.now);
        }
    }

    fn schedule_validation(&mut self, now: f64) {
        self.validation
            .get_or_insert(now + self.validation_interval);
    }

    /// Figures of every registered semaphore.
    pub(super) fn metrics(&self) -> impl Iterator<Item = SemaphoreMetrics> + '_ {
        self.semaphores.iter().filter_map(|(name, semaphore)| {
            Some(SemaphoreMetrics {
                name: name.clone(),
                max_leases: semaphore.max_leases?,
                active_leases: semaphore.leases.len(),
                pending_leases: semaphore.waiters.len(),
                acquire_total: semaphore.acquire_total,
                release_total: semaphore.release_total,
                average_pending_lease_time: semaphore.average_pending_lease_time,
            })
        })
    }

    /// Nobody waits for a lease that is free.
    pub(super) fn validate(&self) {
        for (name, semaphore) in &self.semaphores {
            let free = semaphore.max_leases.unwrap_or(0) - semaphore.leases.len() as i64;
            assert!(
                free <= 0 || semaphore.waiters.is_empty(),
                "semaphore {name:?} has {free} free leases and waiters: {semaphore:?}"
            );
        }
    }
}
