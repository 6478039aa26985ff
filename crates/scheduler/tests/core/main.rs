//! The scheduler core from outside: events in, instructions out.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "test code: what goes wrong has to be seen, and instructions are looked at by a few"
)]

mod deaths;
mod env;
mod failures;
mod large;
mod life;
mod mirror;
mod placement;
mod random;
mod recorded;
mod slices;
mod spans;
mod stealing;
mod workers;
