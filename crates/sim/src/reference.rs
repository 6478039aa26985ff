//! What tasks compute, found the naive way.

use crate::plan::{Plan, Task};
use crate::random::hash;

/// The value of every task.
pub(crate) fn values(plan: &Plan) -> Vec<u64> {
    let mut values = vec![0; plan.tasks.len()];
    // What a task submits has a greater number than the task.
    for number in (0..plan.tasks.len()).rev() {
        if values[number] == 0 {
            compute(plan, number, &mut values);
        }
    }
    values
}

fn compute(plan: &Plan, number: usize, values: &mut [u64]) -> u64 {
    if values[number] == 0 {
        let task = &plan.tasks[number];
        let inputs: Vec<u64> = task
            .dependencies
            .iter()
            .map(|&dependency| compute(plan, dependency, values))
            .collect();
        let submitted = task.submits.last();
        let submitted = submitted.map(|&submitted| compute(plan, submitted, values));
        values[number] = value(number, task, &inputs, submitted);
    }
    values[number]
}

/// What a run computes of its inputs; never 0.
pub(crate) fn value(number: usize, task: &Task, inputs: &[u64], submitted: Option<u64>) -> u64 {
    let mut parts = vec![number as u64, task.nbytes as u64, submitted.unwrap_or(0)];
    parts.extend(inputs);
    hash(&parts).max(1)
}
