//! Dask's worker as a pure state machine.
//!
//! ```text
//!  (now, stimulus id, Event) ──► WorkerState::handle_stimulus ──► state change ──► Instructions, in order
//! ```
//!
//! Nothing here opens a socket, reads a clock, draws randomness or runs a task.
//! Values stay with the shell: the core knows their sizes and says which to
//! keep ([`Instruction::StoreData`]) and which to drop ([`Instruction::ReleaseData`]).
//! `run_spec`, exceptions and annotations pass through unread.
//!
//! Behaviour is that of `WorkerState` in distributed 2026.8.0, which
//! `tests/worker` compares it with. What differs:
//!
//! * Sets of tasks iterate in the order of insertion, where stock's order is that
//!   of memory addresses; ties between peers break by another generator.
//! * Both legs of a way through `released` may recommend something for the same
//!   task: the second counts. Stock raises `RecommendationsConflict`, which closes
//!   the worker, for example when a task that is to be fetched is to be computed
//!   from inputs that are not here.
//! * A resumed task whose value cannot be stored goes on to what it was resumed
//!   for. Stock raises.
//! * Start and stop times per task, keys and recommendations per record, prefixes
//!   that are told apart and stale entries of heaps are bounded.

// The interface.
pub mod config;
pub mod error;
pub mod event;
pub mod id;
pub mod instruction;
pub mod priority;

// What the worker remembers.
mod counter;
mod heap;
mod peers;
pub mod sets;
pub mod story;
pub mod task;
mod tasks;

// Where values are.
pub mod memory;

// What it does.
mod address;
mod communicating;
mod compute;
mod computing;
mod execute;
mod gather;
mod query;
mod replicas;
mod transitions;
mod validate;
mod worker;

pub use config::Config;
pub use error::Error;
pub use event::{ComputeTaskEvent, Event, StoredValue};
pub use id::{Id, PeerId, StimulusId, TaskId};
pub use instruction::{Instruction, Instructions, SendMessageToScheduler};
pub use priority::Priority;
pub use task::{Previous, State, TaskState};
pub use worker::WorkerState;
