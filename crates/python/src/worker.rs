//! What runs the tasks of `oxidask worker`: the interpreter of this process.
//!
//! ```text
//!   shell (tokio)                          threads of the interpreter
//!   execute ──► Queue `default` ──Task───► Dask-Default-Threads: task.load(), run, task.finished()
//!   receive, serialize ──► Queue `values` ─► Dask-Values-Threads
//!   call, stream_message, other pools ──► Inbox ──► IO loop: facade `oxidask._worker.Worker`
//!   release ──► held ──► whoever is attached, else the thread that releases
//!        ▲ WorkerHandle ◄── Link ◄── facade
//! ```
//!
//! No thread of the shell ever attaches to the interpreter. What Python decides is
//! in `oxidask/_worker.py`: the facade that tasks know as the worker, and the
//! function that runs one task.

mod arrays;
mod call;
mod convert;
mod executor;
mod held;
mod inbox;
mod link;
mod queue;
mod reference;
mod scalar;
mod strided;
mod task;

use std::sync::Arc;

use oxidask_server::worker::{Executor, ExecutorFactory, ExecutorSettings};

pub(crate) use convert::{frame_of_python, frames_to_python};
pub(crate) use held::held_counts;
pub(crate) use inbox::{Inbox, Request};
pub(crate) use link::Link;
pub(crate) use queue::Queue;
pub(crate) use reference::{Reference, reference_count};
pub(crate) use task::{Task, ValueType};

/// Makes executors with the interpreter of this process.
#[derive(Debug)]
pub(crate) struct Factory;

impl ExecutorFactory for Factory {
    fn create(&self, settings: ExecutorSettings) -> Result<Arc<dyn Executor>, String> {
        let executor = executor::PythonExecutor::new(settings);
        let executor = executor.map_err(|error| format!("cannot prepare the executor: {error}"))?;
        Ok(Arc::new(executor))
    }
}
