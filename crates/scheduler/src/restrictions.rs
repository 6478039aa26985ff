//! Which workers may run a task.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use oxidask_wire::{Key, Value};

use crate::id::{TaskId, WorkerId};
use crate::scheduler::Scheduler;
use crate::sets::RankSet;

impl Scheduler {
    /// Ranks of the workers that satisfy the restrictions of a task, `None` if it
    /// has none. Limited to running ones when some are not.
    pub(crate) fn valid_workers(&self, task: TaskId) -> Option<RankSet> {
        let extras = self.tasks[task].extras.as_ref()?;
        let mut valid: Option<RankSet> = None;

        if !extras.worker_restrictions.is_empty() {
            let mut named = RankSet::default();
            for address in &extras.worker_restrictions {
                if let Some(worker) = self.workers.find(address) {
                    named.insert(self.workers[worker].rank);
                }
            }
            valid = Some(named);
        }
        if !extras.host_restrictions.is_empty() {
            let on_hosts = valid.get_or_insert_default();
            for host in &extras.host_restrictions {
                // The worker may have come after the task, so aliases are resolved here.
                let host = match self.workers.find_alias(&Value::from(&**host)) {
                    Some(worker) => self.workers[worker].host.clone(),
                    None => host.clone(),
                };
                for worker in self.workers.on_host(&host).into_iter().flatten() {
                    on_hosts.insert(self.workers[worker].rank);
                }
            }
        }
        self.limit_to_suppliers(&extras.resource_restrictions, &mut valid);
        let mut valid = valid?;
        if !valid.is_empty() && self.workers.running.len() < self.workers.len() {
            valid.intersect(&self.workers.running);
        }
        Some(valid)
    }

    /// Ranks of the running workers that may run a task whose loose restrictions nobody
    /// satisfies: all that supply its resources, `None` if it needs none.
    ///
    /// Stock waives resources as well, and the worker that is sent the task then fails
    /// on the unknown resource and closes.
    pub(crate) fn loosely_valid_workers(&self, task: TaskId) -> Option<RankSet> {
        let extras = self.tasks[task].extras.as_ref()?;
        let mut valid = None;
        self.limit_to_suppliers(&extras.resource_restrictions, &mut valid);
        let mut valid = valid?;
        valid.intersect(&self.workers.running);
        Some(valid)
    }

    fn limit_to_suppliers(&self, resources: &[(Arc<str>, f64)], valid: &mut Option<RankSet>) {
        for (resource, required) in resources {
            let mut supplying = RankSet::default();
            for (&worker, supplied) in self.workers.resources.get(resource).into_iter().flatten() {
                // What the worker has in total counts; it queues for what is in use.
                if supplied >= required {
                    supplying.insert(self.workers[worker].rank);
                }
            }
            match valid {
                Some(valid) => valid.intersect(&supplying),
                None => *valid = Some(supplying),
            }
        }
    }

    /// Workers that satisfy the restrictions of a task, sorted by address, or `None` if it has none.
    pub fn valid_workers_of(&self, task: TaskId) -> Option<Vec<WorkerId>> {
        let valid = self.valid_workers(task)?;
        Some(valid.iter().map(|rank| self.workers.ranked(rank)).collect())
    }

    /// `no-worker` tasks that this worker may run, worst first, for the stack.
    ///
    /// Those with loose restrictions that nobody satisfies are among them; stock
    /// leaves them waiting.
    pub(crate) fn recommend_unrunnable(&mut self, worker: WorkerId) {
        let rank = self.workers[worker].rank;
        let may_run = |task: &TaskId| match self.valid_workers(*task) {
            None => true,
            Some(valid) => {
                let is_loose = valid.is_empty() && self.tasks[*task].loose_restrictions;
                let loosely = || self.loosely_valid_workers(*task);
                valid.contains(rank)
                    || is_loose && loosely().is_none_or(|valid| valid.contains(rank))
            }
        };
        let mut runnable: Vec<_> = self
            .unrunnable
            .iter()
            .filter(may_run)
            .map(|task| (self.tasks[task].rank(), task))
            .collect();
        runnable.sort_by_key(|&(rank, _)| Reverse(rank));
        for (_, task) in runnable {
            self.recommend(task, crate::State::Processing);
        }
    }

    /// Splits an annotation `workers` into addresses and hosts.
    ///
    /// # Errors
    /// Stock's text for an entry that is neither.
    pub(crate) fn split_restrictions(&self, value: &Value) -> Result<Restrictions, String> {
        let single = std::slice::from_ref(value);
        let entries = value.as_array().unwrap_or(single);
        let mut restrictions = Restrictions::default();
        for entry in entries {
            if let Some(address) = self.coerce_address(entry) {
                push_new(&mut restrictions.workers, address);
            } else if let Some(host) = entry.as_str() {
                push_new(&mut restrictions.hosts, host.into());
            } else {
                let repr = Key::from_value(entry)
                    .map_or_else(|_| format!("{entry:?}"), |key| key.python_repr());
                return Err(format!("addresses should be strings or tuples, got {repr}"));
            }
        }
        Ok(restrictions)
    }

    /// RPC `set_restrictions`.
    pub(crate) fn set_restrictions(&mut self, restrictions: Vec<(Key, Value)>) {
        for (key, value) in restrictions {
            let Some(task) = self.tasks.find(&key) else {
                continue;
            };
            let single = std::slice::from_ref(&value);
            let entries = value.as_array().unwrap_or(single);
            let addresses = entries
                .iter()
                .filter_map(Value::as_str)
                .map(Arc::from)
                .collect();
            self.tasks[task].extras_mut().worker_restrictions = addresses;
        }
    }

    /// RPC `set_resources`, and part of a registration.
    pub(crate) fn set_resources(&mut self, worker: WorkerId, resources: Vec<(Arc<str>, f64)>) {
        let Some(ws) = self.workers.get_mut(worker) else {
            return;
        };
        for (resource, quantity) in resources {
            ws.resources.insert(resource, quantity);
        }
        ws.used_resources.clear();
        let supplied: Vec<_> = ws
            .resources
            .iter()
            .map(|(resource, &quantity)| (resource.clone(), quantity))
            .collect();
        for (resource, quantity) in supplied {
            self.workers[worker]
                .used_resources
                .insert(resource.clone(), 0.0);
            self.workers
                .resources
                .entry(resource)
                .or_default()
                .insert(worker, quantity);
        }
        // Stock starts again from nothing; what is assigned still counts.
        let assigned: Vec<TaskId> = self.workers[worker].processing.iter().collect();
        for task in assigned {
            self.acquire_resources(task, worker);
        }
    }
}

/// What an annotation `workers` means.
#[derive(Debug, Default)]
pub(crate) struct Restrictions {
    pub(crate) workers: Vec<Arc<str>>,
    pub(crate) hosts: Vec<Arc<str>>,
}

fn push_new(list: &mut Vec<Arc<str>>, text: Arc<str>) {
    if !list.contains(&text) {
        list.push(text);
    }
}

/// `resolve_address` of distributed without a name server: the scheme is added,
/// `localhost` becomes its IP address. `None` without a port.
pub(crate) fn normalize_address(address: &str) -> Option<String> {
    let (scheme, location) = address.split_once("://").unwrap_or(("tcp", address));
    if scheme == "inproc" {
        return Some(address.to_owned());
    }
    let (host, port) = location.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return None;
    }
    let host = if host == "localhost" {
        "127.0.0.1"
    } else {
        host
    };
    match host.parse() {
        Ok(IpAddr::V6(host)) => Some(format!("{scheme}://[{host}]:{port}")),
        Ok(IpAddr::V4(_)) | Err(_) => Some(format!("{scheme}://{host}:{port}")),
    }
}
