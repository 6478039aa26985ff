//! Workers come and report how they are.

use std::sync::Arc;

use oxidask_wire::{Key, Map, Value};

use crate::event::NewWorker;
use crate::id::{Status, WorkerId};
use crate::instruction::{Instruction, Instructions, Level};
use crate::scheduler::{Cx, Scheduler};
use crate::worker::WorkerState;

/// Names of worker metrics and types of results whose figures are kept; peers choose them.
const NAMES_MAX: usize = 10_000;

impl Scheduler {
    pub(crate) fn add_worker(&mut self, now: f64, mut new: NewWorker, out: &mut Instructions) {
        if self.check_worker(&new.address, &new.name).is_err() {
            // The shell has refused it already.
            return;
        }
        let stimulus_id = new.stimulus_id.clone();
        let cx = &mut Cx {
            now,
            stimulus_id: &stimulus_id,
            out,
        };
        self.make_room_for(&new, cx);
        let address = new.address.clone();
        let mut message = Map::new();
        message.push("action", "add-worker");
        cx.event([address.clone()], Value::Map(message.clone()));
        message.push("worker", &*address);
        cx.event(["all".into()], Value::Map(message));

        let resources = std::mem::take(&mut new.resources);
        let metrics = std::mem::take(&mut new.metrics);
        let worker_now = new.worker_now;
        let name = Key::from_value(&new.name)
            .map_or_else(|_| format!("{:?}", new.name), |name| name.python_str());
        let is_running = new.status == Status::Running;
        let worker = self.workers.insert(WorkerState::new(new, now));
        let total_nthreads = self.workers.total_nthreads;
        self.groups.spans.note_nthreads(now, total_nthreads);
        self.workers_added_total += 1;
        if is_running {
            self.refresh_no_workers_since(now);
        }
        self.set_resources(worker, resources);
        self.heartbeat(now, worker, worker_now, metrics, None);
        self.check_idle_saturated(worker);
        cx.out.push(Instruction::WorkerAdded { worker });
        if is_running {
            self.start_work_on(worker, cx);
        }
        cx.log(
            Level::Info,
            format!("Register worker addr: {address} name: {name}"),
        );
    }

    pub(crate) fn heartbeat(
        &mut self,
        now: f64,
        worker: WorkerId,
        worker_now: Option<f64>,
        metrics: Value,
        executing: Option<Vec<(Key, f64)>>,
    ) {
        let Some(ws) = self.workers.get(worker) else {
            return;
        };
        let address = ws.address.clone();
        if let Some(metrics) = metrics.as_map() {
            self.read_bandwidth(&address, metrics);
            self.sum_up_metrics(metrics);
        }
        if let Some(executing) = &executing {
            for (key, duration) in executing {
                if let Some(task) = self.tasks.find(key) {
                    let prefix = self.groups[self.tasks[task].group].prefix;
                    self.groups[prefix].add_exec_time(*duration);
                }
            }
        }
        let recent = now - self.config.memory_recent_to_old_time;
        let ws = &mut self.workers[worker];
        ws.last_seen = now;
        if let Some(executing) = executing {
            ws.executing = executing;
        }
        if let Some(worker_now) = worker_now {
            ws.time_delay = now - worker_now;
        }
        ws.metrics = metrics;
        ws.note_unmanaged_memory(now, recent);
    }

    fn read_bandwidth(&mut self, address: &Arc<str>, metrics: &Map) {
        let Some(bandwidth) = metrics.get("bandwidth").and_then(Value::as_map) else {
            return;
        };
        let fraction = 1.0 / self.workers.len().max(1) as f64;
        if let Some(total) = bandwidth.get("total").and_then(Value::as_f64)
            && total > 0.0
        {
            self.bandwidth = self.bandwidth * (1.0 - fraction) + total * fraction;
        }
        let smoothed = |old: Option<f64>, bytes: f64, count: f64| match old {
            None => bytes / count,
            Some(old) => {
                let alpha = (1.0 - fraction).powf(count);
                old * alpha + bytes * (1.0 - alpha)
            }
        };
        for (other, value) in bandwidth
            .get("workers")
            .and_then(Value::as_map)
            .into_iter()
            .flat_map(Map::iter)
        {
            // Only pairs of workers, so that the table is bounded by them.
            if let (Some(other), Some((bytes, count))) = (other.as_str(), pair(value))
                && let Some(other) = self.workers.find(other)
            {
                let names = (address.clone(), self.workers[other].address.clone());
                let old = self.bandwidth_workers.get(&names).copied();
                self.bandwidth_workers
                    .insert(names, smoothed(old, bytes, count));
            }
        }
        for (name, value) in bandwidth
            .get("types")
            .and_then(Value::as_map)
            .into_iter()
            .flat_map(Map::iter)
        {
            if let (Some(name), Some((bytes, count))) = (name.as_str(), pair(value)) {
                let old = self.bandwidth_types.get(name).copied();
                if old.is_some() || self.bandwidth_types.len() < NAMES_MAX {
                    self.bandwidth_types
                        .insert(name.into(), smoothed(old, bytes, count));
                }
            }
        }
    }

    fn sum_up_metrics(&mut self, metrics: &Map) {
        let digests = metrics
            .get("digests_total_since_heartbeat")
            .and_then(Value::as_map);
        for (name, value) in digests.into_iter().flat_map(Map::iter) {
            if let (Ok(name), Some(value)) = (Key::from_value(name), value.as_f64()) {
                if let Some(total) = self.worker_metrics.get_mut(&name) {
                    *total += value;
                } else if self.worker_metrics.len() < NAMES_MAX {
                    self.worker_metrics.insert(name, value);
                }
            }
        }
    }
}

impl WorkerState {
    /// Keeps the smallest unmanaged memory since `recent`.
    fn note_unmanaged_memory(&mut self, now: f64, recent: f64) {
        let mut old = self.memory_unmanaged_old;
        while let Some(&(when, nbytes)) = self.memory_unmanaged_history.front() {
            if when >= recent {
                break;
            }
            self.memory_unmanaged_history.pop_front();
            if nbytes == old {
                old = 0;
            }
        }
        let process = self
            .metrics
            .as_map()
            .and_then(|metrics| metrics.get("memory"))
            .and_then(Value::as_f64)
            .unwrap_or(0.0) as i64;
        // `nbytes` changes at other times than the metrics: the difference may be negative.
        let nbytes = (process - self.nbytes + Self::spilled_nbytes(&self.metrics).0).max(0);
        self.memory_unmanaged_history.push_back((now, nbytes));
        if old == 0 {
            let smallest = self
                .memory_unmanaged_history
                .iter()
                .map(|&(_, nbytes)| nbytes)
                .min();
            self.memory_unmanaged_old = smallest.unwrap_or(0);
        } else if nbytes < old {
            self.memory_unmanaged_old = nbytes;
        }
    }
}

/// `(bytes per second, measurements)` of a bandwidth entry.
fn pair(value: &Value) -> Option<(f64, f64)> {
    let [bytes, count] = value.as_array()? else {
        return None;
    };
    let (bytes, count) = (bytes.as_f64()?, count.as_f64()?);
    (count > 0.0).then_some((bytes, count))
}
