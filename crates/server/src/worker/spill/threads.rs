//! Threads that wait for the disk, so that nothing else does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;

use tokio::sync::oneshot;
use tracing::error;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads with one queue. They begin with the first job and end with the
/// last handle. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Threads {
    queue: Arc<OnceLock<mpsc::Sender<Job>>>,
    count: usize,
}

impl Threads {
    pub(super) fn new(count: usize) -> Self {
        Self {
            queue: Arc::default(),
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
        let queue = self.queue.get_or_init(|| start(self.count));
        // The threads end only when this queue is dropped.
        let _ = queue.send(Box::new(job));
    }
}

fn start(count: usize) -> mpsc::Sender<Job> {
    let (queue, jobs) = mpsc::channel::<Job>();
    let jobs = Arc::new(Mutex::new(jobs));
    for number in 0..count {
        let jobs = jobs.clone();
        let started = thread::Builder::new()
            .name(format!("spill-{number}"))
            .spawn(move || work(&jobs));
        if let Err(error) = started {
            error!(target: "distributed.spill", %error, "cannot start a thread for the disk");
        }
    }
    queue
}

fn work(jobs: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else {
            return;
        };
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            error!(target: "distributed.spill", "a job for the disk panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
