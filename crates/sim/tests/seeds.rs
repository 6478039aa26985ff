//! Plans of seeds, always the same ones; `make soak` plays those that nobody has seen.

use oxidask_sim::{Coverage, generate, run};

/// Seeds that are always played.
const FIXED: u64 = 400;

fn play(seed: u64, coverage: &mut Coverage) {
    match std::panic::catch_unwind(|| run(&generate(seed))) {
        Ok(outcome) => coverage.merge(&outcome.coverage),
        Err(_) => panic!(
            "seed {seed} fails; the least that still does:\n  cargo run --release --package oxidask-sim -- --shrink {seed}"
        ),
    }
}

#[test]
fn fixed_seeds_hold_and_visit_most_transitions() {
    let mut coverage = Coverage::default();
    for seed in 0..FIXED {
        play(seed, &mut coverage);
    }
    let missing = coverage.missing_on_scheduler();
    assert!(missing.len() <= 4, "on the scheduler: {missing:?}");
    let missing = coverage.missing_on_workers();
    assert!(missing.len() <= 17, "on workers: {missing:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let (first, second) = (run(&generate(seed)), run(&generate(seed)));
        assert_eq!(format!("{first:?}"), format!("{second:?}"), "seed {seed}");
    }
}

/// A result in memory is lost with its worker while what it depends on fails: it fails for
/// the same reason, and was no actor.
#[test]
fn seed_39727866073375_fails_for_a_true_reason() {
    let steps = [0, 5, 15, 34, 36];
    let without = [2, 3, 6, 8, 11, 14, 15, 7, 9, 13, 16, 17, 18];
    run(&generate(39_727_866_073_375).reduced(&steps, &without));
}
