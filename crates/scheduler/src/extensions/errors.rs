//! Exceptions that extensions raise at their callers.
//!
//! The text of each is that of distributed, since programs match on it.

use bytes::Bytes;
use oxidask_wire::pickle::{PickleArg, exception_pickle};
use oxidask_wire::{Key, Value, map, python};

use crate::instruction::Failure;

/// An exception with one text as its argument, or none if the text is empty.
fn with_text(module: &str, class: &str, text: &str) -> Failure {
    let mut argument = String::new();
    let mut args = Vec::new();
    if !text.is_empty() {
        python::str_repr(text, &mut argument);
        args.push(PickleArg::Str(text));
    }
    Failure {
        exception: Bytes::from(exception_pickle(module, class, &args)),
        text: format!("{class}({argument})"),
    }
}

pub(super) fn assertion_error(text: &str) -> Failure {
    with_text("builtins", "AssertionError", text)
}

pub(super) fn attribute_error(text: &str) -> Failure {
    with_text("builtins", "AttributeError", text)
}

pub(super) fn not_implemented_error(text: &str) -> Failure {
    with_text("builtins", "NotImplementedError", text)
}

pub(super) fn runtime_error(text: &str) -> Failure {
    with_text("builtins", "RuntimeError", text)
}

pub(super) fn timeout_error(text: &str) -> Failure {
    with_text("builtins", "TimeoutError", text)
}

pub(super) fn type_error(text: &str) -> Failure {
    with_text("builtins", "TypeError", text)
}

pub(super) fn value_error(text: &str) -> Failure {
    with_text("builtins", "ValueError", text)
}

/// `KeyError(text)`.
pub(super) fn key_error_text(text: &str) -> Failure {
    with_text("builtins", "KeyError", text)
}

/// `KeyError(key)`: what a missing dict entry raises.
pub(super) fn key_error(key: &Key) -> Failure {
    Failure {
        exception: Bytes::from(exception_pickle(
            "builtins",
            "KeyError",
            &[PickleArg::Key(key)],
        )),
        text: format!("KeyError({})", key.python_repr()),
    }
}

/// `distributed.shuffle._exceptions.P2PConsistencyError`.
pub(super) fn p2p_consistency_error(text: &str) -> Failure {
    with_text(
        "distributed.shuffle._exceptions",
        "P2PConsistencyError",
        text,
    )
}

/// `distributed.shuffle._exceptions.P2PIllegalStateError`.
pub(super) fn p2p_illegal_state_error(text: &str) -> Failure {
    with_text(
        "distributed.shuffle._exceptions",
        "P2PIllegalStateError",
        text,
    )
}

/// What `distributed.core.error_message` makes of an exception that a handler
/// returns instead of raising it.
pub(super) fn error_message(failure: &Failure) -> Value {
    map! {
        "status" => "error",
        "exception" => oxidask_wire::Serialized::of_bytes(failure.exception.clone()),
        "traceback" => Value::Nil,
        "exception_text" => failure.text.as_str(),
        "traceback_text" => "",
    }
    .into()
}
