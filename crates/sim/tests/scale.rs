//! Many workers at once; `oxidask-soak --seed 1 --machines 10000` plays ten thousand.

use oxidask_sim::{generate_wide, run};

#[test]
fn three_hundred_workers_of_which_some_fail_add_everything_up() {
    let plan = generate_wide(1, 300);
    let outcome = run(&plan);
    let futures: Vec<&str> = outcome.futures.iter().map(|(_, state)| *state).collect();
    assert_eq!(futures, ["finished"]);
    assert!(outcome.runs.iter().all(|&runs| runs > 0));
}
