//! Semaphores, queues, multi-locks and events against naive models.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets anything else has failed"
)]

mod env;

use std::collections::{BTreeMap, VecDeque};

use env::Env;
use oxidask_scheduler::RequestId;
use oxidask_wire::{Value, map};
use proptest::prelude::*;

/// A step of any of the scripts; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    /// Ask, with a time-out in eighths of a second (exact as floats) or forever.
    Ask { what: u8, timeout: Option<u8> },
    /// Give back, set or put.
    Give { what: u8 },
    /// A caller vanishes.
    Cancel { which: u8 },
    /// Eighths of a second.
    Advance { eighths: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let timeout = prop_oneof![Just(None), (0..20u8).prop_map(Some)];
    let step = prop_oneof![
        4 => (any::<u8>(), timeout).prop_map(|(what, timeout)| Step::Ask { what, timeout }),
        3 => any::<u8>().prop_map(|what| Step::Give { what }),
        1 => any::<u8>().prop_map(|which| Step::Cancel { which }),
        1 => (1..15u8).prop_map(|eighths| Step::Advance { eighths }),
    ];
    prop::collection::vec(step, 0..60)
}

/// Waiting requests of a model, in order: (number, deadline in eighths, what).
#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<(usize, Option<u64>, u8)>,
}

impl Line {
    fn expire(&mut self, now: u64) -> Vec<usize> {
        let mut late: Vec<_> = self
            .waiting
            .iter()
            .filter_map(|&(number, deadline, _)| Some((deadline.filter(|at| *at <= now)?, number)))
            .collect();
        late.sort_unstable();
        self.waiting
            .retain(|(_, deadline, _)| deadline.is_none_or(|at| at > now));
        late.into_iter().map(|(_, number)| number).collect()
    }
}

/// Runs a script: the requests of both sides are numbered alike.
struct Pair {
    env: Env,
    eighths: u64,
    requests: Vec<RequestId>,
    expected: Vec<Option<Result<Value, String>>>,
    cancelled: Vec<bool>,
}

impl Pair {
    fn new() -> Self {
        Self {
            env: Env::new(),
            eighths: 0,
            requests: Vec::new(),
            expected: Vec::new(),
            cancelled: Vec::new(),
        }
    }

    fn push(&mut self, request: RequestId) -> usize {
        self.requests.push(request);
        self.expected.push(None);
        self.cancelled.push(false);
        self.requests.len() - 1
    }

    fn answer(&mut self, number: usize, answer: Result<Value, String>) {
        assert!(self.expected[number].is_none());
        self.expected[number] = Some(answer);
    }

    fn timeout(&self, timeout: Option<u8>) -> Value {
        timeout.map(|eighths| f64::from(eighths) / 8.0).into()
    }

    fn deadline(&self, timeout: Option<u8>) -> Option<u64> {
        timeout.map(|eighths| self.eighths + u64::from(eighths))
    }

    fn advance(&mut self, eighths: u8) {
        self.eighths += u64::from(eighths);
        let until = 1000.0 + self.eighths as f64 / 8.0;
        self.env.advance(until - self.env.now);
    }

    fn check(&self) {
        for (number, request) in self.requests.iter().enumerate() {
            if !self.cancelled[number] {
                assert_eq!(
                    self.env.outcome(*request),
                    self.expected[number],
                    "request {number}"
                );
            }
        }
    }

    /// Picks a request that still waits.
    fn pick_waiting(&self, which: u8, line: &Line) -> Option<usize> {
        let count = line.waiting.len();
        (count > 0).then(|| line.waiting[which as usize % count].0)
    }

    fn cancel(&mut self, number: usize) {
        self.cancelled[number] = true;
        self.env.cancel(self.requests[number]);
    }
}

const TRUE: Result<Value, String> = Ok(Value::Bool(true));
const FALSE: Result<Value, String> = Ok(Value::Bool(false));

fn timeout_error() -> Result<Value, String> {
    Err("TimeoutError()".into())
}

/// 200 cases for the 256 that other tests try, in proportion if `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.saturating_mul(25) / 32,
        ..default
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_semaphore_is_a_counter_with_a_line(steps in steps(), max in 1..4usize) {
        let mut pair = Pair::new();
        let register = map! { "name" => "s", "max_leases" => max };
        pair.env.call("semaphore_register", register).unwrap();
        let mut held: Vec<usize> = Vec::new();
        let mut line = Line::default();
        for step in steps {
            match step {
                Step::Ask { timeout, .. } => {
                    let number = pair.requests.len();
                    let request = pair.env.request("semaphore_acquire", map! {
                        "name" => "s", "lease_id" => number, "timeout" => pair.timeout(timeout),
                    });
                    pair.push(request);
                    if line.waiting.is_empty() && held.len() < max {
                        held.push(number);
                        pair.answer(number, TRUE);
                    } else if timeout == Some(0) {
                        pair.answer(number, FALSE);
                    } else {
                        line.waiting.push_back((number, pair.deadline(timeout), 0));
                    }
                }
                Step::Give { what } => {
                    if held.is_empty() {
                        continue;
                    }
                    let lease = held.remove(what as usize % held.len());
                    pair.env.call("semaphore_release", map! { "name" => "s", "lease_id" => lease }).unwrap();
                }
                Step::Cancel { which } => {
                    if let Some(number) = pair.pick_waiting(which, &line) {
                        line.waiting.retain(|(other, ..)| *other != number);
                        pair.cancel(number);
                    }
                }
                Step::Advance { eighths } => {
                    pair.advance(eighths);
                    for number in line.expire(pair.eighths) {
                        pair.answer(number, FALSE);
                    }
                }
            }
            while held.len() < max && let Some((number, ..)) = line.waiting.pop_front() {
                held.push(number);
                pair.answer(number, TRUE);
            }
            pair.check();
            let value = pair.env.call("semaphore_value", map! { "name" => "s" });
            prop_assert_eq!(value, Ok(Value::from(held.len())));
        }
    }

    #[test]
    fn a_queue_is_a_list_with_two_lines(steps in steps(), maxsize in 0..4i64) {
        let mut pair = Pair::new();
        pair.env.call("queue_create", map! { "name" => "q", "maxsize" => maxsize }).unwrap();
        let room = |items: &VecDeque<usize>| maxsize == 0 || (items.len() as i64) < maxsize;
        let record = |number: usize| -> Value { map! { "type" => "msgpack", "value" => number }.into() };
        let mut items: VecDeque<usize> = VecDeque::new();
        let (mut getters, mut putters) = (Line::default(), Line::default());
        for step in steps {
            match step {
                Step::Ask { what, timeout } if what % 3 > 0 => {
                    let request = pair.env.request("queue_get", map! {
                        "name" => "q", "timeout" => pair.timeout(timeout),
                    });
                    let number = pair.push(request);
                    if items.is_empty() && timeout == Some(0) {
                        pair.answer(number, timeout_error());
                    } else {
                        getters.waiting.push_back((number, pair.deadline(timeout), 0));
                    }
                }
                Step::Ask { timeout, .. } => {
                    let request = pair.env.request("queue_put", map! {
                        "name" => "q", "data" => pair.requests.len(), "timeout" => pair.timeout(timeout),
                    });
                    let number = pair.push(request);
                    if !room(&items) && timeout == Some(0) {
                        pair.answer(number, timeout_error());
                    } else {
                        putters.waiting.push_back((number, pair.deadline(timeout), 0));
                    }
                }
                Step::Give { .. } => {
                    let request = pair.env.request("queue_get", map! { "name" => "q", "batch" => true });
                    let number = pair.push(request);
                    let all = items.drain(..).map(record).collect();
                    pair.answer(number, Ok(all));
                }
                Step::Cancel { which } => {
                    let line = if which % 2 == 0 { &mut getters } else { &mut putters };
                    if let Some(number) = pair.pick_waiting(which / 2, line) {
                        line.waiting.retain(|(other, ..)| *other != number);
                        pair.cancel(number);
                    }
                }
                Step::Advance { eighths } => {
                    pair.advance(eighths);
                    for number in getters.expire(pair.eighths).into_iter().chain(putters.expire(pair.eighths)) {
                        pair.answer(number, timeout_error());
                    }
                }
            }
            loop {
                if room(&items) && let Some((number, ..)) = putters.waiting.pop_front() {
                    items.push_back(number);
                    pair.answer(number, Ok(Value::Nil));
                } else if !items.is_empty() && let Some((number, ..)) = getters.waiting.pop_front() {
                    let item = items.pop_front().unwrap();
                    pair.answer(number, Ok(record(item)));
                } else {
                    break;
                }
            }
            pair.check();
            let size = pair.env.call("queue_qsize", map! { "name" => "q" });
            prop_assert_eq!(size, Ok(Value::from(items.len())));
        }
    }

    /// Each user wants two of three locks; a user that holds what it wants has
    /// them for itself, and at the end everybody was served.
    #[test]
    fn multi_locks_exclude_each_other_and_serve_everybody(steps in steps()) {
        const LOCKS: [&str; 3] = ["x", "y", "z"];
        let mut pair = Pair::new();
        let mut line = Line::default();
        let mut holding: BTreeMap<usize, [&str; 2]> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Ask { what, timeout } => {
                    let first = what as usize % 3;
                    let wanted = [LOCKS[first], LOCKS[(first + 1) % 3]];
                    let request = pair.env.request("multi_lock_acquire", map! {
                        "locks" => env::list(&wanted), "id" => pair.requests.len(), "num_locks" => 2,
                        "timeout" => pair.timeout(timeout),
                    });
                    let number = pair.push(request);
                    line.waiting.push_back((number, pair.deadline(timeout), first as u8));
                }
                Step::Give { what } => {
                    let Some((&number, _)) = holding.iter().nth(what as usize % holding.len().max(1)) else {
                        continue;
                    };
                    holding.remove(&number);
                    pair.env.call("multi_lock_release", map! { "id" => number }).unwrap();
                }
                Step::Cancel { which } => {
                    if let Some(number) = pair.pick_waiting(which, &line) {
                        line.waiting.retain(|(other, ..)| *other != number);
                        pair.cancel(number);
                    }
                }
                Step::Advance { eighths } => {
                    pair.advance(eighths);
                }
            }
            line.waiting.retain(|&(number, _, first)| {
                match pair.env.outcome(pair.requests[number]) {
                    None => return true,
                    Some(answer) if answer == TRUE => {
                        let first = first as usize;
                        holding.insert(number, [LOCKS[first], LOCKS[(first + 1) % 3]]);
                    }
                    Some(answer) => assert_eq!(answer, FALSE),
                }
                false
            });
            for lock in LOCKS {
                let holders = holding.values().filter(|held| held.contains(&lock)).count();
                prop_assert!(holders <= 1, "{} users hold {}", holders, lock);
            }
            for (number, deadline, _) in &line.waiting {
                prop_assert!(deadline.is_none_or(|at| at > pair.eighths), "request {} is late", number);
            }
        }
        // Two of three locks can never be shared, so nobody may hold one alone for ever.
        while let Some((&number, _)) = holding.iter().next() {
            holding.remove(&number);
            pair.env.call("multi_lock_release", map! { "id" => number }).unwrap();
            line.waiting.retain(|&(number, _, first)| {
                let first = first as usize;
                let served = pair.env.outcome(pair.requests[number]).is_some();
                if served {
                    holding.insert(number, [LOCKS[first], LOCKS[(first + 1) % 3]]);
                }
                !served
            });
        }
    }

    #[test]
    fn an_event_is_a_flag(steps in steps()) {
        let mut pair = Pair::new();
        let mut line = Line::default();
        let mut set = false;
        for step in steps {
            match step {
                Step::Ask { timeout, .. } => {
                    let request = pair.env.request("event_wait", map! {
                        "name" => "e", "timeout" => pair.timeout(timeout),
                    });
                    let number = pair.push(request);
                    if set {
                        pair.answer(number, TRUE);
                    } else if timeout == Some(0) {
                        pair.answer(number, FALSE);
                    } else {
                        line.waiting.push_back((number, pair.deadline(timeout), 0));
                    }
                }
                Step::Give { what } => {
                    set = what % 2 == 0;
                    let op = if set { "event_set" } else { "event_clear" };
                    pair.env.call(op, map! { "name" => "e" }).unwrap();
                    if set {
                        for (number, ..) in std::mem::take(&mut line.waiting) {
                            pair.answer(number, TRUE);
                        }
                    }
                }
                Step::Cancel { which } => {
                    if let Some(number) = pair.pick_waiting(which, &line) {
                        line.waiting.retain(|(other, ..)| *other != number);
                        pair.cancel(number);
                    }
                }
                Step::Advance { eighths } => {
                    pair.advance(eighths);
                    for number in line.expire(pair.eighths) {
                        pair.answer(number, FALSE);
                    }
                }
            }
            pair.check();
            prop_assert_eq!(pair.env.call("event_is_set", map! { "name" => "e" }), Ok(Value::Bool(set)));
            prop_assert_eq!(pair.env.extensions.waiting_count(), line.waiting.len());
        }
    }
}
