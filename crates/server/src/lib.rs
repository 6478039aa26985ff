//! Process shells: the scheduler, its graph helper, the worker, configuration.
//!
//! The only place where a core meets sockets, clocks and processes.

pub mod config;
pub mod graph_helper;
pub mod limits;
pub mod local_directory;
pub mod logging;
pub mod memory;
pub mod nanny;
pub mod options;
mod requests;
pub mod scheduler;
pub mod security;
pub mod system;
pub mod versions;
pub mod worker;
