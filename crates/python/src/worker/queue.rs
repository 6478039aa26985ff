//! The queue of a pool of threads: filled without the interpreter, and waited for
//! without it.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use oxidask_server::worker;
use oxidask_wire::Key;
use pyo3::prelude::*;

use super::executor::Values;
use super::held;
use super::task::Task;

/// Something to do for a thread of a pool.
pub(crate) enum Job {
    /// Run a task.
    Task(Task),
    /// Take values in or serialise them.
    Values(Values),
    /// Call `run()` of something that Python submitted.
    Item(Py<PyAny>),
}

/// Jobs in the order in which they came, and tasks that were lent by the shell.
#[derive(Default)]
pub(crate) struct Jobs {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// What threads may go on with, best first.
    lent: VecDeque<worker::Task>,
    /// How many of them are left when half have begun.
    half: usize,
    /// Bytes that may still come of it.
    nbytes: i64,
    /// Tasks that run and have seceded.
    seceded: HashSet<Key>,
    /// Threads that wait.
    idle_count: usize,
    is_closed: bool,
}

impl Jobs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds jobs. Once the queue is closed they are dropped, which answers them.
    pub(crate) fn push(&self, jobs: impl ExactSizeIterator<Item = Job>) {
        let count = jobs.len();
        let mut state = self.state();
        if state.is_closed {
            drop(state);
            jobs.for_each(drop);
            return;
        }
        state.jobs.extend(jobs);
        drop(state);
        if count == 1 {
            self.changed.notify_one();
        } else {
            self.changed.notify_all();
        }
    }

    /// Lends tasks, for results of so many bytes.
    pub(crate) fn lend(&self, tasks: VecDeque<worker::Task>, nbytes: i64) {
        let mut state = self.state();
        if !state.is_closed {
            state.half = tasks.len() / 2;
            state.lent = tasks;
            state.nbytes = nbytes;
        }
    }

    /// Ends the loan.
    pub(crate) fn take_back(&self) -> VecDeque<worker::Task> {
        std::mem::take(&mut self.state().lent)
    }

    /// A task has seceded: nothing takes its place when it ends.
    pub(crate) fn secede(&self, key: Key) {
        self.state().seceded.insert(key);
    }

    /// A task is done, with a result of so many bytes. `report` is told what takes its
    /// place, and makes a job of it. Tasks begin in the order of these reports. True:
    /// half of those that were lent have begun by this one.
    pub(crate) fn done(
        &self,
        key: &Key,
        nbytes: i64,
        report: impl FnOnce(Option<worker::Task>) -> Option<Job>,
    ) -> bool {
        let mut state = self.state();
        state.nbytes -= nbytes;
        let leaves_place = !state.seceded.remove(key);
        let next = match leaves_place && state.nbytes >= 0 {
            true => state.lent.pop_front(),
            false => None,
        };
        let is_half = next.is_some() && state.lent.len() == state.half;
        state.jobs.extend(report(next));
        if !state.jobs.is_empty() && state.idle_count > 0 {
            drop(state);
            self.changed.notify_one();
        }
        is_half
    }

    fn try_next(&self) -> Option<Job> {
        self.state().jobs.pop_front()
    }

    /// Waits for a job; `None`: the queue is closed.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        state.idle_count += 1;
        let state = self
            .changed
            .wait_while(state, |state| state.jobs.is_empty() && !state.is_closed);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.idle_count -= 1;
        state.jobs.pop_front()
    }

    /// Lets the threads end; what was not begun is dropped.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let jobs = std::mem::take(&mut state.jobs);
        let lent = std::mem::take(&mut state.lent);
        drop(state);
        self.changed.notify_all();
        drop((jobs, lent));
    }
}

/// The queue as the threads of a pool see it.
#[pyclass(frozen)]
pub(crate) struct Queue(pub(crate) Arc<Jobs>);

#[pymethods]
impl Queue {
    /// The next task, or item that was submitted; waits detached. `None` at the end.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        loop {
            let job = match self.0.try_next() {
                Some(job) => Some(job),
                None => {
                    held::release(py);
                    py.detach(|| self.0.next())
                }
            };
            match job {
                None => return Ok(None),
                Some(Job::Task(task)) => return Ok(Some(Py::new(py, task)?.into_any())),
                Some(Job::Item(item)) => return Ok(Some(item)),
                Some(Job::Values(values)) => values.convert(py),
            }
        }
    }

    /// Adds something with a method `run()`.
    fn submit(&self, item: Py<PyAny>) {
        self.0.push([Job::Item(item)].into_iter());
    }

    /// Lets the threads end.
    fn close(&self) {
        self.0.close();
    }
}
