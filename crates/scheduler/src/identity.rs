//! What the scheduler tells about a worker.

use oxidask_wire::{Map, Value, map};

use crate::worker::WorkerState;

impl WorkerState {
    /// `WorkerState.identity` of distributed.
    pub fn identity(&self) -> Map {
        let resources: Map = self
            .resources
            .iter()
            .map(|(name, &amount)| (name, number(amount)))
            .collect();
        let mut identity = map! {
            "type" => "Worker",
            "id" => self.name.clone(),
            "host" => &self.host,
            "resources" => resources,
            "local_directory" => &self.local_directory,
            "name" => self.name.clone(),
            "nthreads" => self.nthreads,
            "memory_limit" => self.memory_limit,
            "last_seen" => self.last_seen,
            "services" => self.services.clone(),
            "metrics" => self.metrics.clone(),
            "status" => self.status.name(),
            "nanny" => self.nanny.clone(),
        };
        for (name, value) in &self.extra {
            identity.insert(name.clone(), value.clone());
        }
        identity
    }
}

/// A Python int where the amount is whole, as people write resources.
fn number(amount: f64) -> Value {
    if amount.fract() == 0.0 && amount.abs() < 1e15 {
        Value::Int(amount as i64)
    } else {
        Value::Float(amount)
    }
}
