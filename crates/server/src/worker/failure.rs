//! Errors of ours as the exceptions that others raise.

use std::sync::Arc;

use oxidask_wire::pickle::{PickleArg, exception_pickle};
use oxidask_wire::{Key, Map, Serialized, Value, map, python};
use oxidask_worker::task::TaskFailure;

/// `class(text)` with a built-in exception class.
pub(crate) fn builtin(class: &str, text: &str) -> Arc<TaskFailure> {
    let pickle = exception_pickle("builtins", class, &[PickleArg::Str(text)]);
    let mut argument = String::new();
    python::str_repr(text, &mut argument);
    of_pickle(pickle, &format!("{class}({argument})"))
}

/// A pickled exception, and how Python prints it.
pub(super) fn of_pickle(pickle: Vec<u8>, exception_text: &str) -> Arc<TaskFailure> {
    Arc::new(TaskFailure {
        exception: Serialized::of_bytes(pickle.into()).into(),
        traceback: Value::Nil,
        exception_text: exception_text.into(),
        traceback_text: "".into(),
    })
}

/// A task whose input is not here any more.
pub(super) fn missing_input(key: &Key) -> Arc<TaskFailure> {
    builtin("KeyError", &key.python_str())
}

/// What a peer answered in place of a value.
pub(super) fn of_reply(mut reply: Map) -> Arc<TaskFailure> {
    let mut text = |name| {
        let text = reply.take(name).and_then(Value::into_str);
        text.unwrap_or_default().detached()
    };
    let exception_text = text("exception_text");
    let traceback_text = text("traceback_text");
    let Some(exception) = reply.take("exception") else {
        return builtin("ValueError", "Unexpected response");
    };
    Arc::new(TaskFailure {
        exception: exception.detached(),
        traceback: reply.take("traceback").unwrap_or_default().detached(),
        exception_text,
        traceback_text,
    })
}

/// `error_message` of distributed: the caller raises the exception.
pub(crate) fn message(status: &str, failure: &TaskFailure) -> Value {
    Value::Map(map! {
        "status" => status,
        "exception" => failure.exception.clone(),
        "traceback" => failure.traceback.clone(),
        "exception_text" => &failure.exception_text,
        "traceback_text" => &failure.traceback_text,
    })
}
