//! Which task runs next, and what it takes.

use crate::error::Error;
use crate::id::TaskId;
use crate::task::TaskState;
use crate::transitions::{Recommendation, Recs};
use crate::worker::WorkerState;

impl WorkerState {
    /// Recommends that tasks run, until all threads are busy. `_ensure_computing` in distributed.
    ///
    /// They hold their threads and resources from here on.
    pub(crate) fn ensure_computing(&mut self) -> Result<Recs, Error> {
        let mut recs = Recs::new();
        if !self.running {
            return Ok(recs);
        }
        while self.executing.len() < self.config.nthreads {
            let Some(task) = self.next_ready_task()? else {
                break;
            };
            recs.push((task, Recommendation::Executing));
            self.acquire_resources(task)?;
            self.executing.insert(task);
        }
        Ok(recs)
    }

    /// As [`ensure_computing`](Self::ensure_computing), for handlers of events.
    pub(crate) fn recommend_computing(&mut self) -> Result<(), Error> {
        for (task, recommendation) in self.ensure_computing()? {
            self.recommend(task, recommendation);
        }
        Ok(())
    }

    /// The best task, unless it is short of resources: then the best that needs none.
    fn next_ready_task(&mut self) -> Result<Option<TaskId>, Error> {
        if let Some(constrained) = self.constrained.peek(&self.tasks) {
            let goes_first = match self.ready.peek(&self.tasks) {
                Some(ready) => self.tasks[constrained].priority < self.tasks[ready].priority,
                None => true,
            };
            if goes_first && self.are_resources_available(constrained)? {
                return Ok(self.constrained.pop(&self.tasks));
            }
        }
        Ok(self.ready.pop(&self.tasks))
    }

    /// What runs next if nothing else happens before, best first, at most so many:
    /// threads may go on with them by themselves, which [`Event::Begun`](crate::Event::Begun)
    /// tells. None while some task waits for resources, or nothing new is to be started.
    pub fn ahead(&self, count: usize) -> impl Iterator<Item = &TaskState> {
        let count = match self.running && self.constrained.is_empty() {
            true => count,
            false => 0,
        };
        let best = self.ready.best(count, &self.tasks);
        best.into_iter().map(|task| &self.tasks[task])
    }

    fn are_resources_available(&self, task: TaskId) -> Result<bool, Error> {
        for (resource, needed) in &self.tasks[task].resource_restrictions {
            match self.available_resources.get(resource) {
                Some(available) if available < needed => return Ok(false),
                Some(_) => {}
                None => return Err(self.unknown_resource(task, resource)),
            }
        }
        Ok(true)
    }

    fn acquire_resources(&mut self, task: TaskId) -> Result<(), Error> {
        self.change_resources(task, -1.0)
    }

    /// Gives back what a task that ran has held.
    pub(crate) fn release_resources(&mut self, task: TaskId) -> Result<(), Error> {
        self.change_resources(task, 1.0)
    }

    fn change_resources(&mut self, task: TaskId, sign: f64) -> Result<(), Error> {
        for (resource, amount) in &self.tasks[task].resource_restrictions {
            match self.available_resources.get_mut(resource) {
                Some(available) => *available += sign * amount,
                None => return Err(self.unknown_resource(task, resource)),
            }
        }
        Ok(())
    }

    fn unknown_resource(&self, task: TaskId, resource: &str) -> Error {
        Error::UnknownResource {
            key: self.tasks[task].key.clone(),
            resource: resource.into(),
        }
    }
}
