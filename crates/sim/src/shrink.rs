//! Takes away from a plan what its failure does not need.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Outcome;
use crate::plan::Plan;

/// Plays a plan.
///
/// # Errors
/// What does not hold.
pub fn attempt(plan: &Plan) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| crate::run(plan))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| Some((*panic.downcast_ref::<&str>()?).to_owned()));
        text.unwrap_or_else(|| "a panic without a text".to_owned())
    })
}

/// The numbers of the steps that a failing plan cannot do without, and those of the
/// tasks that it can do without. It may fail in another way than the plan itself.
pub fn shrink(plan: &Plan) -> (Vec<usize>, Vec<usize>) {
    let mut steps: Vec<usize> = (0..plan.steps.len()).collect();
    let mut without = Vec::new();
    loop {
        let before = (steps.len(), without.len());
        let mut size = steps.len().div_ceil(2).max(1);
        while size > 0 {
            let mut at = 0;
            while at < steps.len() {
                let mut fewer = steps.clone();
                fewer.drain(at..(at + size).min(steps.len()));
                if attempt(&plan.reduced(&fewer, &without)).is_err() {
                    steps = fewer;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        for task in plan.reduced(&steps, &without).tasks_used() {
            without.push(task);
            if attempt(&plan.reduced(&steps, &without)).is_ok() {
                without.pop();
            }
        }
        if (steps.len(), without.len()) == before {
            return (steps, without);
        }
    }
}
