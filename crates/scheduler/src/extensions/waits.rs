//! Requests that wait, and when they give up.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use hashbrown::HashMap;
use oxidask_wire::{Key, Value};

use crate::id::RequestId;
use crate::instruction::{Failure, Instruction, Instructions, Level};

/// What a request waits for, with what its extension needs to find it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wait {
    /// A task to become known to the scheduler.
    Task,
    /// A variable to be set.
    Variable { name: Key },
    /// An element of a queue.
    QueueGet { name: Key },
    /// Room in a queue.
    QueuePut { name: Key },
    /// An event to be set.
    Event { name: Key },
    /// A lease.
    Semaphore { name: Key },
    /// Locks.
    MultiLock { id: Key },
    /// The client's stream to catch up with its requests.
    Flush { uid: Key },
    /// Workers of a shuffle, or its layout. Never times out.
    Shuffle,
    /// Retirement of workers. Never times out.
    Retirement,
    /// Nothing any more: what it waited for was deleted. Stock lets it run into its timeout.
    Orphan {
        /// A semaphore's acquire gives false instead of raising.
        answers_false: bool,
    },
}

/// Seconds since the epoch, ordered.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Moment(f64);

impl Eq for Moment {}

impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Moment {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Every waiting request.
#[derive(Debug, Default)]
pub(super) struct Waits {
    waiting: HashMap<RequestId, (Wait, Option<Moment>)>,
    deadlines: BTreeSet<(Moment, RequestId)>,
}

impl Waits {
    /// Adds a request. `deadline` is in seconds since the epoch; none waits forever.
    pub(super) fn add(&mut self, request: RequestId, wait: Wait, deadline: Option<f64>) {
        let deadline = deadline.map(Moment);
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, request));
        }
        let old = self.waiting.insert(request, (wait, deadline));
        assert!(old.is_none(), "{request:?} waits twice: {old:?}");
    }

    /// Takes a request out: it is answered, or its caller is gone.
    pub(super) fn remove(&mut self, request: RequestId) -> Option<Wait> {
        let (wait, deadline) = self.waiting.remove(&request)?;
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, request));
        }
        Some(wait)
    }

    /// Changes what a request waits for, keeping its deadline.
    pub(super) fn replace(&mut self, request: RequestId, wait: Wait) {
        if let Some(entry) = self.waiting.get_mut(&request) {
            entry.0 = wait;
        }
    }

    /// The deadline of a waiting request.
    pub(super) fn deadline(&self, request: RequestId) -> Option<f64> {
        self.waiting.get(&request)?.1.map(|moment| moment.0)
    }

    /// The earliest deadline.
    pub(super) fn next_deadline(&self) -> Option<f64> {
        self.deadlines.first().map(|(moment, _)| moment.0)
    }

    /// Takes out the request whose deadline passed first.
    pub(super) fn expire(&mut self, now: f64) -> Option<(RequestId, Wait)> {
        let &(moment, request) = self.deadlines.first()?;
        if moment.0 > now {
            return None;
        }
        Some((request, self.remove(request)?))
    }

    /// Number of waiting requests.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// What every extension gets with an operation.
#[derive(Debug)]
pub(super) struct Context<'a> {
    /// Seconds since the epoch.
    pub(super) now: f64,
    pub(super) waits: &'a mut Waits,
    pub(super) out: &'a mut Instructions,
}

impl<'a> Context<'a> {
    pub(super) fn new(now: f64, waits: &'a mut Waits, out: &'a mut Instructions) -> Self {
        Self { now, waits, out }
    }

    /// Answers a request that waits, or just came in.
    pub(super) fn answer(&mut self, request: RequestId, result: Result<Value, Failure>) {
        self.waits.remove(request);
        self.out.push(Instruction::Reply { request, result });
    }

    /// Answers a request with a value.
    pub(super) fn reply(&mut self, request: RequestId, value: impl Into<Value>) {
        self.answer(request, Ok(value.into()));
    }

    /// Lets a request wait for `timeout` seconds.
    pub(super) fn wait(&mut self, request: RequestId, wait: Wait, timeout: Option<f64>) {
        self.waits
            .add(request, wait, timeout.map(|timeout| self.now + timeout));
    }

    pub(super) fn log(&mut self, level: Level, text: String) {
        self.out.push(Instruction::Log { level, text });
    }
}

/// The outcome of a request: the reply, an exception, or nothing yet.
pub(super) type Answer = Result<Option<Value>, Failure>;

/// The answer `None`.
pub(super) const NONE: Answer = Ok(Some(Value::Nil));

/// The caller waits.
pub(super) const PENDING: Answer = Ok(None);

/// A limit on what one kind of primitive may keep by name. Stock has none;
/// a million names cost a few hundred megabytes, more is a leak of the caller.
pub(super) const NAMES_MAX: usize = 1_000_000;

/// Refuses a new name when there are too many.
///
/// # Errors
/// `RuntimeError`.
pub(super) fn check_names(count: usize, what: &str) -> Result<(), Failure> {
    if count < NAMES_MAX {
        return Ok(());
    }
    Err(super::errors::runtime_error(&format!(
        "too many {what}: the scheduler keeps at most {NAMES_MAX}"
    )))
}
