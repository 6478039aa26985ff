//! Messages on the streams between scheduler, clients and workers.
//!
//! Each direction has an enum of the operations that the receiver acts on; what
//! comes in beside them is `Other`. `incoming` and `outgoing` are the scheduler's
//! view, `worker` is that of a worker. Unknown fields of a known operation are
//! ignored; a missing one is an error that names it.

mod functions;
#[macro_use]
mod incoming;
mod outgoing;
mod worker;

pub use functions::{FunctionNumbers, Functions};
pub use incoming::{
    ClientMessage, TaskErred, TaskFinished, UpdateGraph, WorkerMessage, decode_client_batch,
    decode_worker_batch,
};
pub use outgoing::{ComputeTask, Dependency, Number, RunSpec, ToClient, ToWorker};
pub use worker::{
    AskedComputeTask, AskedRunSpec, ErredTask, FinishedTask, SchedulerMessage, StartStop,
    ToScheduler, decode_scheduler_batch,
};
