//! The Python extension `oxidask._oxidask`.
//!
//! ```text
//!  oxidask, python -m oxidask ──► main ──► oxidask_cli::main
//!  tests of the order         ──► order_indices
//!  oxidask worker             ──► worker::Factory ──► oxidask._worker
//!  LocalCluster(processes=False) ──► Guest, and Channel to connect to it
//! ```

use std::ffi::{OsString, c_int};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use mimalloc::MiMalloc;
use pyo3::prelude::*;

mod channel;
mod guest;
mod order;
mod worker;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// What the package `oxidask` imports.
#[pymodule]
mod _oxidask {
    #[pymodule_export]
    use super::channel::Channel;
    #[pymodule_export]
    use super::guest::{Guest, read_logs, take_logs};
    #[pymodule_export]
    use super::main;
    #[pymodule_export]
    use super::order::order_indices;
    #[pymodule_export]
    use super::worker::{
        Inbox, Link, Queue, Reference, Request, Task, ValueType, held_counts, reference_count,
    };
}

/// Runs the command line `argv`, which begins with the program's name, and
/// returns the exit status. The interpreter that calls runs the graph helper.
///
/// Must be called on the main thread, since it takes over SIGINT.
#[pyfunction]
#[pyo3(signature = (argv, /))]
fn main(py: Python<'_>, argv: Vec<OsString>) -> PyResult<i32> {
    let python = guest::interpreter(py)?;
    // Python's own handler would be called as well, and end an orderly
    // shutdown with a KeyboardInterrupt. `_signal` is built in; `signal` would
    // cost milliseconds to import.
    let signal = py.import("_signal")?;
    signal.call_method1(
        "signal",
        (signal.getattr("SIGINT")?, signal.getattr("SIG_DFL")?),
    )?;
    let (status, _attached) = py.detach(|| {
        let status = oxidask_cli::main(argv, python, Some(&worker::Factory));
        (status, leave_anyway(status))
    });
    Ok(status)
}

/// How long this thread may wait for the interpreter at the end. Chosen: threads of the
/// interpreter take turns every five milliseconds, except those that never give it up.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(2);

/// Ends the process with this status if what is returned still exists after
/// [`ATTACH_TIMEOUT`]: then a task holds the interpreter, and nobody can end it in order.
fn leave_anyway(status: i32) -> mpsc::Sender<()> {
    let (attached, waiting) = mpsc::channel();
    let wait = move || {
        if waiting.recv_timeout(ATTACH_TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
            exit_now(status);
        }
    };
    let thread = thread::Builder::new().name("oxidask-leave".to_owned());
    // Without it the end comes when the task gives up the interpreter.
    let _ = thread.spawn(wait);
    attached
}

#[expect(
    unsafe_code,
    reason = "the standard library only leaves by way of `exit`"
)]
fn exit_now(status: i32) -> ! {
    unsafe extern "C" {
        fn _exit(status: c_int) -> !;
    }
    // SAFETY: `_exit` of POSIX may be called on any thread at any time. Unlike `exit` it
    // runs no functions of libraries that a thread may be in the middle of.
    unsafe { _exit(status) }
}
