//! Messages on the streams between scheduler, clients and workers.
//!
//! Each direction has an enum of the operations that a scheduler acts on; what
//! comes in beside them is `Other`. Unknown fields of a known operation are
//! ignored; a missing one is an error that names it.

mod incoming;
mod outgoing;

pub use incoming::{
    ClientMessage, TaskErred, TaskFinished, UpdateGraph, WorkerMessage, decode_client_batch,
    decode_worker_batch,
};
pub use outgoing::{ComputeTask, Dependency, Number, RunSpec, ToClient, ToWorker};
