//! Whole clusters in virtual time.
//!
//! ```text
//!  seed ──► Plan ──► Cluster: clients ◄─► scheduler core ◄─► worker cores ◄─► worker cores
//!                       │ virtual clock, links that keep the order within a connection
//!                       ▼
//!                  Outcome, or a panic that names what does not hold
//! ```
//!
//! A [`Plan`] says everything that happens: tasks and how they behave, workers,
//! what clients ask for and when, and every fault. [`run`] plays it; the same plan
//! gives the same run. All cores are validated after every event, and compared with
//! each other whenever nothing is on its way between them. [`shrink()`] takes away
//! from a plan what its failure does not need.
//!
//! What the cores do not see has no part in it: bytes, files, and plug-ins, whose
//! exceptions the shells log.

// What is played.
mod generate;
pub mod plan;
mod random;
mod reference;

// Who plays.
mod client;
mod cluster;
mod faults;
mod network;
mod p2p;
mod scheduler;
mod translate;
mod worker;

// What comes of it.
mod check;
pub mod coverage;
mod shrink;

pub use coverage::Coverage;
pub use generate::{generate, generate_wide};
pub use plan::{Action, Plan};
pub use shrink::{attempt, shrink};

/// What came of a plan that held.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Transitions that were made.
    pub coverage: Coverage,
    /// Events that the cores handled.
    pub events: u64,
    /// Runs of tasks that began, in the order of [`Plan::tasks`].
    pub runs: Vec<u32>,
    /// What the clients saw last of what they still wanted: key and how it ended.
    pub futures: Vec<(String, &'static str)>,
    /// Seconds of virtual time.
    pub seconds: f64,
}

/// Plays a plan to its end.
///
/// # Panics
/// If something does not hold that must.
pub fn run(plan: &Plan) -> Outcome {
    cluster::Cluster::new(plan).run()
}
