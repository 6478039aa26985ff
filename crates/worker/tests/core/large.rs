//! Long chains and wide fans: neither the stack nor the time grows out of hand.

use oxidask_wire::{Key, Map, Str, Value};
use oxidask_worker::{
    ComputeTaskEvent, Config, Event, Instruction, Instructions, Priority, State, StimulusId,
    WorkerState,
};

use crate::env::{ADDRESS, value};

const COUNT: usize = 50_000;
const PEER: &str = "tcp://a:1";

fn key(number: usize) -> Key {
    Key::from(format!("x-{number}").as_str())
}

fn compute(key: Key, dependencies: Vec<Key>, priority: usize) -> Event {
    let holders = || vec![Str::from(PEER)];
    Event::ComputeTask(Box::new(ComputeTaskEvent {
        key,
        run_id: 1,
        who_has: dependencies
            .iter()
            .map(|key| (key.clone(), holders()))
            .collect(),
        nbytes: dependencies.into_iter().map(|key| (key, 1)).collect(),
        priority: Priority::from_scheduler(&[0.0, 0.0, priority as f64])
            .expect("three numbers are a priority"),
        run_spec: Some(Value::Bool(true)),
        resource_restrictions: Vec::new(),
        actor: false,
        annotations: Map::new(),
        span_id: None,
    }))
}

fn worker() -> WorkerState {
    WorkerState::new(Config::new(ADDRESS))
}

/// As `Env::handle`, but without validating, which takes as long as there are tasks.
fn handle(worker: &mut WorkerState, event: Event) -> Vec<Instruction> {
    let mut out = Instructions::default();
    worker
        .handle_stimulus(0.0, &StimulusId::from("s"), event, &mut out)
        .expect("the event is handled");
    out.0
}

#[test]
fn a_long_chain_is_forgotten_at_once() {
    let mut worker = worker();
    handle(&mut worker, Event::Pause);
    for number in 1..COUNT {
        let dependencies = vec![key(number - 1)];
        handle(&mut worker, compute(key(number), dependencies, number));
    }
    worker.validate();
    assert_eq!(worker.count_in(State::Released), COUNT as u64 - 2);
    let keys = vec![key(COUNT - 1)];
    handle(&mut worker, Event::FreeKeys { keys });
    worker.validate_empty();
}

#[test]
fn a_wide_fan_runs_in_order() {
    let mut worker = worker();
    let input = Key::from("input");
    for number in 0..COUNT {
        // The best comes last.
        let event = compute(key(number), vec![input.clone()], COUNT - number);
        handle(&mut worker, event);
    }
    let out = handle(
        &mut worker,
        Event::GatherDepSuccess {
            worker: PEER.into(),
            total_nbytes: 1,
            data: vec![(input.clone(), value(1))],
            transfer: None,
        },
    );
    assert!(matches!(out.last(), Some(Instruction::Execute(_))));
    assert_eq!(worker.ready_count(), COUNT - 1);
    worker.validate();
    let keys = (0..COUNT).map(key).chain([input]).collect();
    handle(&mut worker, Event::FreeKeys { keys });
    // One runs on.
    assert_eq!(worker.task_count(), 2);
    worker.validate();
}

#[test]
fn a_task_of_many_inputs_fetches_them_at_once() {
    let mut worker = worker();
    let inputs: Vec<Key> = (0..COUNT).map(key).collect();
    let sum = Key::from("sum");
    let out = handle(&mut worker, compute(sum, inputs.clone(), 0));
    let [Instruction::GatherDep(gather)] = &out[..] else {
        panic!("{} instructions", out.len());
    };
    assert_eq!(gather.to_gather.len(), COUNT);
    let out = handle(
        &mut worker,
        Event::GatherDepSuccess {
            worker: PEER.into(),
            total_nbytes: gather.total_nbytes,
            data: inputs.into_iter().map(|key| (key, value(1))).collect(),
            transfer: None,
        },
    );
    assert!(matches!(out.last(), Some(Instruction::Execute(_))));
    assert_eq!(worker.nbytes(), COUNT as i64);
    worker.validate();
}
