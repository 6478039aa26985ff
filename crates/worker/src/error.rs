//! Why an event cannot be handled.

use oxidask_wire::Key;

use crate::story::Record;
use crate::task::State;

/// What stock raises: a state machine that has lost its way, or a message that
/// cannot be right.
///
/// Nothing is known about the state afterwards, and instructions given so far
/// must not be carried out: a worker closes, as in Dask (`fail_hard`).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// There is no way between two states. `InvalidTransition` in Dask.
    #[error("cannot take {key:?} from {start} to {finish}")]
    InvalidTransition {
        /// The task.
        key: Key,
        /// Its state.
        start: State,
        /// Where it was to go.
        finish: State,
        /// What happened to it before.
        story: Vec<Record>,
    },
    /// More transitions than `transition_counter_max`.
    #[error("there were {count} transitions before {key:?} went from {start} to {finish}")]
    TransitionCounterMaxExceeded {
        /// Their number.
        count: u64,
        /// The task.
        key: Key,
        /// Its state.
        start: State,
        /// Where it was to go.
        finish: State,
    },
    /// A task is in a state in which this cannot happen. An `AssertionError` in Dask.
    #[error("{key:?} is {state}: {expected}")]
    UnexpectedState {
        /// The task.
        key: Key,
        /// Its state.
        state: State,
        /// What should hold.
        expected: &'static str,
    },
    /// A replica is to be dropped that a running task may be about to read.
    #[error("cannot remove the replica of {key:?} while {dependent:?} is {state}")]
    ReplicaInUse {
        /// Whose replica.
        key: Key,
        /// The task that runs.
        dependent: Key,
        /// Its state.
        state: State,
    },
    /// A key that has to be known is not. A `KeyError` in Dask.
    #[error("{key:?} is unknown: {expected}")]
    UnknownTask {
        /// The key.
        key: Key,
        /// What should hold.
        expected: &'static str,
    },
    /// A transfer ended that was never begun.
    #[error("no data is being gathered from {worker}")]
    NotInFlight {
        /// The peer.
        worker: Box<str>,
    },
    /// A task wants a resource that the worker does not have at all.
    #[error("{key:?} needs the unknown resource {resource}")]
    UnknownResource {
        /// The task.
        key: Key,
        /// The resource.
        resource: Box<str>,
    },
    /// Not what the scheduler sends.
    #[error("{elements:?} is no priority")]
    InvalidPriority {
        /// What came.
        elements: Vec<f64>,
    },
}
