//! The worker's core through its one door: events in, instructions out.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "test code: what goes wrong has to be seen, and instructions are looked at by a few"
)]

mod computing;
mod env;
mod fetching;
mod giving_up;
mod large;
mod random;
mod replicas;
mod spilling;
