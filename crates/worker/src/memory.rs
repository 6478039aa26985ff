//! Which values leave memory for disk, and when the worker pauses.
//!
//! ```text
//!  insert, touch ──► Buffer: least recently used ──► next_write ──► threads of the shell
//!                      ▲ demand
//!  process memory ──► Pressure ──► pause, resume
//! ```
//!
//! Same as `SpillBuffer` and `WorkerMemoryManager` in distributed, without
//! values, files and clocks. What differs: values are written while the worker
//! goes on, several at a time, so that what is on its way to disk is still in
//! memory and counts as such; a value that cannot be serialised is passed over
//! from then on, where stock tries it again and again before any other.

mod buffer;
mod pressure;

pub use buffer::{Buffer, Failure, Fetch, Limits, Restored, Spilled, Ticket, Verdict, Write};
pub use pressure::{Change, Fractions, Observation, Pressure, Trimming};
