//! The Python extension `oxidask._oxidask`.
//!
//! ```text
//!  oxidask, python -m oxidask ──► main ──► oxidask_cli::main
//!  tests of the order         ──► order_indices
//!  oxidask worker             ──► worker::Factory ──► oxidask._worker
//! ```

use std::ffi::OsString;
use std::path::PathBuf;

use mimalloc::MiMalloc;
use oxidask_server::options::PythonCommand;
use pyo3::prelude::*;

mod order;
mod worker;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// What the package `oxidask` imports.
#[pymodule]
mod _oxidask {
    #[pymodule_export]
    use super::main;
    #[pymodule_export]
    use super::order::order_indices;
    #[pymodule_export]
    use super::worker::{Inbox, Link, Queue, Request, Task, ValueType, held_counts};
}

/// Runs the command line `argv`, which begins with the program's name, and
/// returns the exit status. The interpreter that calls runs the graph helper.
///
/// Must be called on the main thread, since it takes over SIGINT.
#[pyfunction]
#[pyo3(signature = (argv, /))]
fn main(py: Python<'_>, argv: Vec<OsString>) -> PyResult<i32> {
    let sys = py.import("sys")?;
    let path = |name: &str| -> PyResult<PathBuf> { sys.getattr(name)?.extract() };
    let python = PythonCommand {
        executable: path("executable")?,
        prefixes: vec![path("prefix")?, path("exec_prefix")?],
    };
    // Python's own handler would be called as well, and end an orderly
    // shutdown with a KeyboardInterrupt. `_signal` is built in; `signal` would
    // cost milliseconds to import.
    let signal = py.import("_signal")?;
    signal.call_method1(
        "signal",
        (signal.getattr("SIGINT")?, signal.getattr("SIG_DFL")?),
    )?;
    Ok(py.detach(|| oxidask_cli::main(argv, python, Some(&worker::Factory))))
}
