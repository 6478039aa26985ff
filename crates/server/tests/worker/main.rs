//! The worker's shell: against a scheduler that a test drives message by message,
//! and against our own.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod executor;
mod life;
mod scheduler;
mod serving;
mod spilling;
mod stub;
mod tasks;
