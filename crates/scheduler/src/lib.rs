//! Dask's scheduler as a pure state machine.
//!
//! ```text
//!  (now, Event) ──► Scheduler::handle ──► state change ──► Instructions, in order
//! ```
//!
//! Nothing here opens a socket, reads a clock or draws randomness. Keys become
//! dense ids at the door; payloads pass through as opaque bytes.

// The interface.
pub mod config;
pub mod event;
pub mod graph;
pub mod id;
pub mod instruction;

// What the scheduler remembers.
pub mod client;
mod clients;
mod deaths;
pub mod group;
mod groups;
pub mod sets;
pub mod spans;
pub mod task;
mod tasks;
pub mod worker;
mod workers;

// What it does.
pub mod balance;
mod bundles;
pub mod extensions;
mod failure;
mod identity;
mod interest;
mod lingering;
pub mod measure;
pub mod memory_manager;
mod merge;
mod mirror;
mod occupancy;
mod placement;
mod query;
pub mod rebalance;
mod registration;
mod removal;
mod replicas;
mod reports;
mod restrictions;
mod scheduler;
pub mod stealing;
mod timeouts;
pub mod transitions;
mod validate;

pub mod order;

pub use client::ClientState;
pub use config::Config;
pub use event::{Event, NewWorker};
pub use graph::{Actors, Graph, Number, RunSpec, TaskFlags};
pub use id::{
    ClientId, GroupId, Id, PrefixId, RequestId, Status, StimulusId, TaskId, TaskRef, WorkerId,
};
pub use instruction::{Failure, Instruction, Instructions, Level, ToClient, ToWorker};
pub use merge::Computation;
pub use query::{ComputeTask, Dependency};
pub use scheduler::Scheduler;
pub use task::{State, TaskState};
pub use worker::WorkerState;
