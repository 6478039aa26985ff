//! Errors the scheduler makes itself, as pickles of the classes Dask raises.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_wire::pickle::{self, PickleArg};
use oxidask_wire::{Key, Str, Value};

use crate::instruction::Failure;
use crate::task::{TaskFailure, TaskState};
use crate::worker::WorkerState;

/// `RuntimeError(text)` and its `repr`.
pub(crate) fn runtime_error(text: &str) -> (Value, Str) {
    let exception = builtin("RuntimeError", &[PickleArg::Str(text)]);
    (exception, Str::from(format!("RuntimeError({text:?})")))
}

/// An exception on its way to the tasks that fail with it.
pub(crate) struct Raised {
    /// As it was raised elsewhere, or a pickle made here.
    pub(crate) exception: Value,
    /// As it was raised elsewhere, or nil.
    pub(crate) traceback: Value,
    /// `repr` of the exception.
    pub(crate) exception_text: Str,
    /// Formatted traceback.
    pub(crate) traceback_text: Str,
}

/// `MemoryError(text)`.
pub(crate) fn memory_error(text: &str) -> Value {
    builtin("MemoryError", &[PickleArg::Str(text)])
}

/// `TypeError(text)`.
pub(crate) fn type_error(text: &str) -> Value {
    builtin("TypeError", &[PickleArg::Str(text)])
}

/// `AssertionError()`.
pub(crate) fn assertion_error() -> Value {
    builtin("AssertionError", &[])
}

/// `KeyError(key)`, for a task.
pub(crate) fn key_error(key: &Key) -> Value {
    builtin("KeyError", &[PickleArg::Key(key)])
}

/// `KeyError(key)`, as an answer to a request.
pub(crate) fn key_error_reply(key: &Key) -> Failure {
    Failure {
        exception: pickle::exception_pickle("builtins", "KeyError", &[PickleArg::Key(key)]).into(),
        text: format!("KeyError({})", key.python_repr()),
    }
}

/// The worker died under a task once too often. `attempts` are lines for its text.
pub(crate) fn killed_worker(
    key: &Key,
    worker: &WorkerState,
    allowed_failures: u32,
    attempts: &[String],
) -> Arc<TaskFailure> {
    let allowed = i64::from(allowed_failures);
    let (address, name) = (&worker.address, &worker.name);
    let pickle = pickle::killed_worker(key, address, name, allowed, attempts);
    task_failure(key, pickle)
}

/// A task waited too long for any running worker.
pub(crate) fn no_worker(key: &Key, timeout: f64) -> Arc<TaskFailure> {
    task_failure(key, pickle::no_worker_error(key, timeout))
}

/// A task waited too long for a worker that satisfies its restrictions.
pub(crate) fn no_valid_worker(ts: &TaskState, timeout: f64) -> Arc<TaskFailure> {
    fn names(restrictions: &[Arc<str>]) -> Vec<&str> {
        restrictions.iter().map(|name| &**name).collect()
    }
    let resources: Vec<(&str, f64)> = ts
        .resource_restrictions()
        .iter()
        .map(|(name, amount)| (&**name, *amount))
        .collect();
    let pickle = pickle::no_valid_worker_error(
        &ts.key,
        Some(&names(ts.host_restrictions())),
        Some(&names(ts.worker_restrictions())),
        Some(&resources),
        timeout,
    );
    task_failure(&ts.key, pickle)
}

fn task_failure(key: &Key, exception: Vec<u8>) -> Arc<TaskFailure> {
    Arc::new(TaskFailure {
        cause: key.clone(),
        exception: Value::Bin(exception.into()),
        traceback: Value::Nil,
        exception_text: Str::default(),
        traceback_text: Str::default(),
    })
}

fn builtin(class: &str, args: &[PickleArg<'_>]) -> Value {
    Value::Bin(Bytes::from(pickle::exception_pickle(
        "builtins", class, args,
    )))
}

/// `dask.utils.format_bytes`.
pub(crate) fn format_bytes(nbytes: i64) -> String {
    for (prefix, exponent) in [("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("ki", 10)] {
        let unit = (1i64 << exponent) as f64;
        if nbytes as f64 >= unit * 0.9 {
            return format!("{:.2} {prefix}B", nbytes as f64 / unit);
        }
    }
    format!("{nbytes} B")
}

#[cfg(test)]
mod tests {
    use super::format_bytes;

    #[test]
    fn sizes_read_as_in_dask() {
        assert_eq!(format_bytes(1), "1 B");
        assert_eq!(format_bytes(1234), "1.21 kiB");
        assert_eq!(format_bytes(12_345_678), "11.77 MiB");
        assert_eq!(format_bytes(1_234_567_890), "1.15 GiB");
        assert_eq!(format_bytes(1_234_567_890_000_000), "1.10 PiB");
    }
}
