//! `distributed.diagnostics.MemorySampler`: the cluster's memory, looked at again and again.

use std::collections::VecDeque;
use std::sync::Arc;

use indexmap::IndexMap;
use oxidask_wire::Value;

use super::errors::{assertion_error, attribute_error, key_error_text, value_error};
use super::waits::Answer;
use crate::Scheduler;
use crate::measure::Measure;
use crate::worker::MemoryState;

/// Samples kept of one series, the newest; chosen: a day at ten a second.
const SAMPLES_MAX: usize = 864_000;

/// Least seconds between two samples of a series.
const INTERVAL_MIN: f64 = 0.001;

/// Samplers at once; each is looked at whenever any of them is due.
const SAMPLERS_MAX: usize = 10_000;

/// All samplers, by the key that their client was given.
#[derive(Debug, Default)]
pub(super) struct MemorySamplers {
    samplers: IndexMap<Arc<str>, Sampler>,
    started: u64,
}

#[derive(Debug)]
struct Sampler {
    /// The sampler ends with its client.
    client: Arc<str>,
    measure: Measure,
    /// Seconds.
    interval: f64,
    /// When the next sample is due, in seconds since the epoch.
    due: f64,
    /// Time in seconds since the epoch, and bytes.
    samples: VecDeque<(f64, i64)>,
}

impl Sampler {
    fn sample(&mut self, now: f64, cluster: &MemoryState) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, self.measure.of(cluster)));
        // A sampler that fell behind, in a scheduler that had no time, does not catch up.
        self.due = (self.due + self.interval).max(now);
    }
}

impl MemorySamplers {
    /// `memory_sampler_start`: the key of a new series, whose first sample is taken at once.
    pub(super) fn start(
        &mut self,
        scheduler: &Scheduler,
        now: f64,
        client: Arc<str>,
        name: &str,
        interval: f64,
    ) -> Answer {
        if name.starts_with('_') {
            return Err(assertion_error(""));
        }
        let Some(measure) = Measure::from_name(name) else {
            return Err(attribute_error(&format!(
                "'MemoryState' object has no attribute '{name}'"
            )));
        };
        if self.samplers.len() >= SAMPLERS_MAX {
            return Err(value_error(&format!(
                "cannot start another memory sampler: there are {SAMPLERS_MAX}; stop some of them"
            )));
        }
        self.started += 1;
        let key: Arc<str> = format!("memory-sampler-{}", self.started).into();
        let mut sampler = Sampler {
            client,
            measure,
            interval: interval.max(INTERVAL_MIN),
            due: now,
            samples: VecDeque::new(),
        };
        sampler.sample(now, &scheduler.memory());
        self.samplers.insert(key.clone(), sampler);
        Ok(Some(Value::from(&key)))
    }

    /// `memory_sampler_stop`: `[[time, bytes], …]`. A series whose client has gone is
    /// gone with it.
    pub(super) fn stop(&mut self, key: &str) -> Answer {
        let Some(sampler) = self.samplers.swap_remove(key) else {
            return Err(key_error_text(key));
        };
        let samples = sampler
            .samples
            .into_iter()
            .map(|(time, nbytes)| Value::Array(vec![time.into(), nbytes.into()]))
            .collect();
        Ok(Some(Value::Array(samples)))
    }

    /// When the next sample is due.
    pub(super) fn next_deadline(&self) -> Option<f64> {
        let due = self.samplers.values().map(|sampler| sampler.due);
        due.reduce(f64::min)
    }

    /// Takes the samples that are due.
    pub(super) fn tick(&mut self, scheduler: &Scheduler, now: f64) {
        if self.next_deadline().is_none_or(|due| due > now) {
            return;
        }
        self.samplers
            .retain(|_, sampler| scheduler.client_id(&sampler.client).is_some());
        let cluster = scheduler.memory();
        for sampler in self.samplers.values_mut() {
            if sampler.due <= now {
                sampler.sample(now, &cluster);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_sampler_does_not_catch_up() {
        let mut sampler = Sampler {
            client: "client".into(),
            measure: Measure::Process,
            interval: 1.0,
            due: 0.0,
            samples: VecDeque::new(),
        };
        sampler.sample(10.0, &MemoryState::default());
        assert_eq!((sampler.samples.len(), sampler.due), (1, 10.0));
        sampler.sample(10.0, &MemoryState::default());
        assert!((sampler.due - 11.0).abs() < f64::EPSILON);
    }
}
