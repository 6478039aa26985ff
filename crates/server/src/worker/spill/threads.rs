//! Threads that wait for the disk, so that nothing else does.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::error;

/// After so long without a job a thread gives the memory back that others have
/// freed for it. Chosen: not between two jobs of one burst.
const PATIENCE: Duration = Duration::from_millis(200);

type Job = Box<dyn FnOnce() + Send>;

/// A few threads with one queue. They begin with the first job and end with the
/// last handle. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Threads {
    running: Arc<OnceLock<Running>>,
    count: usize,
}

/// The threads' end of the queue is closed when this is dropped.
struct Running(Arc<Queue>);

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state().is_closed = true;
        self.0.changed.notify_all();
    }
}

impl Threads {
    pub(super) fn new(count: usize) -> Self {
        Self {
            running: Arc::default(),
            count,
        }
    }

    /// Runs `job` and gives what it returns; `None` if it panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, done) = oneshot::channel();
        self.spawn(move || {
            // Whoever asked may have gone.
            let _ = sender.send(job());
        });
        done.await.ok()
    }

    /// Runs `job` some time after those that were handed in before.
    pub(super) fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let Running(queue) = self.running.get_or_init(|| start(self.count));
        let mut state = queue.state();
        // Without a single thread the job is dropped, which whoever waits notices.
        if !state.is_closed {
            state.jobs.push_back(Box::new(job));
            queue.changed.notify_one();
        }
    }
}

fn start(count: usize) -> Running {
    let queue = Arc::new(Queue::default());
    let mut is_running = false;
    for number in 0..count {
        let own = queue.clone();
        let started = thread::Builder::new()
            .name(format!("spill-{number}"))
            .spawn(move || own.work());
        is_running |= started.is_ok();
        if let Err(error) = started {
            error!(target: "distributed.spill", %error, "cannot start a thread for the disk");
        }
    }
    queue.state().is_closed = !is_running;
    Running(queue)
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs jobs until the queue is closed and empty.
    fn work(&self) {
        let mut has_freed = true;
        loop {
            let mut state = self.state();
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                has_freed = false;
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    error!(target: "distributed.spill", "a job for the disk panicked");
                }
                continue;
            }
            if state.is_closed {
                return;
            }
            if has_freed {
                drop(self.changed.wait(state));
                continue;
            }
            let waited = self.changed.wait_timeout(state, PATIENCE);
            let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            drop(state);
            if waited.timed_out() {
                // An allocator keeps what one thread took and another freed until
                // the first one asks.
                crate::memory::release();
                has_freed = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_end_with_the_last_handle_and_after_the_last_job() {
        let threads = Threads::new(2);
        let (sender, done) = std::sync::mpsc::channel();
        for number in 0..20 {
            let sender = sender.clone();
            threads.spawn(move || sender.send(number).unwrap());
        }
        drop((threads, sender));
        let mut numbers: Vec<i32> = done.iter().collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..20).collect::<Vec<i32>>());
    }

    #[tokio::test]
    async fn jobs_run_side_by_side_and_survive_one_that_panics() {
        let threads = Threads::new(2);
        assert_eq!(threads.run(|| 1).await, Some(1));
        let panicked = threads.run(|| panic!("on purpose")).await;
        assert_eq!(panicked, None::<()>);
        // Each waits for the other.
        let barrier = Arc::new(std::sync::Barrier::new(2));
        let meet = |barrier: Arc<std::sync::Barrier>| {
            threads.run(move || {
                barrier.wait();
            })
        };
        let met = tokio::join!(meet(barrier.clone()), meet(barrier));
        assert_eq!(met, (Some(()), Some(())));
    }
}
