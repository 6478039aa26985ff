//! Failing tasks, retries, cancellation.

use oxidask_scheduler::Config;

use crate::env::{check, check_with};

#[test]
fn a_failure_is_blamed_on_its_cause() {
    check(
        "
worker alice
client c
submit c x y z: x; y <- x; z <- y
  > alice compute x
err alice x
  < c erred x x-failed
  < c erred y x-failed
  < c erred z x-failed
states
  = x=erred y=erred z=erred
release c x y z
  > alice free x
empty
",
    );
}

/// It cannot be computed again, and neither can what needs it.
#[test]
fn scattered_data_that_its_worker_has_lost_is_lost() {
    check(
        "
worker alice
client c
scatter c d alice
  < c memory d already
submit c y: y <- d
  > alice compute y
  < c memory d already
drop alice d
  < c cancelled d (already forgotten)
  > alice free y
  < c cancelled y (already forgotten)
empty
",
    );
}

/// Its report of a run that nobody wants any more comes after it was told to fetch the
/// result of another run. Found by the simulator, seed 201017937.
#[test]
fn a_late_report_does_not_take_an_input_away() {
    check(
        "
worker alice
worker bob
client c
submit c x: x | workers=alice
  > alice compute x
release c x
  > alice free x
submit c x: x | workers=bob
  > bob compute x
finish bob x
  < c memory x
finish alice x run=1
  > alice free x
submit c y: y <- x | workers=alice
  > alice compute y
  < c memory x already
finish alice x run=1
",
    );
}

/// It fails while what it was needed for is lost. Found by the simulator, seed 205015508.
#[test]
fn a_failure_that_nobody_cares_for_any_more_is_forgotten() {
    let config = Config {
        allowed_failures: 0,
        ..Config::default()
    };
    check_with(
        config,
        "
worker alice nthreads=2
client c
scatter c d alice
  < c memory d already
submit c y a z: x; y; a <- x; b <- y a; z <- b d
  > alice compute y
  > alice compute x
  < c memory d already
lose alice
  < c erred y KilledWorker
  ~ Task y marked as failed because 1 workers died while trying to run it
  ~ Task x marked as failed because 1 workers died while trying to run it
  ~ Removing worker 'tcp://alice:1' caused the cluster to lose scattered data, which can't be recovered:
  < c cancelled d (already forgotten)
  < c cancelled z (already forgotten)
  < c erred a KilledWorker
release c y a
empty
",
    );
}

/// Such as one whose module is not installed there. Nobody else is concerned.
#[test]
fn what_needs_a_result_that_a_worker_cannot_read_fails_there() {
    check(
        "
worker alice
worker bob
client c
submit c x: x | workers=alice
  > alice compute x
finish alice x
  < c memory x
submit c y: y <- x | workers=bob
  > bob compute y
  < c memory x already
submit c z: z <- x | workers=alice
  > alice compute z
  < c memory x already
err bob x run=-1
  > bob free y
  < c erred y x-failed
  > bob free x
states
  = x=memory@alice y=erred z=processing@alice
err bob unknown run=-1
  > bob free unknown
err alice x run=-1
states
  = x=memory@alice y=erred z=processing@alice
",
    );
}

#[test]
fn only_wanted_keys_are_reported() {
    check(
        "
worker alice
client c
submit c z: x; y <- x; z <- y
  > alice compute x
err alice x
  < c erred z x-failed
states
  = x=erred y=erred z=erred
release c z
  > alice free x
empty
",
    );
}

#[test]
fn a_task_fails_after_its_retries() {
    check(
        "
worker alice
client c
submit c x: x | retries=2
  > alice compute x
err alice x
  > alice free x
  > alice compute x
err alice x
  > alice free x
  > alice compute x
err alice x
  < c erred x x-failed
story x
  = x released->waiting x:processing
  = x waiting->processing
  = x processing->released x:waiting
  = x released->waiting x:processing
  = x waiting->processing
  = x processing->released x:waiting
  = x released->waiting x:processing
  = x waiting->processing
  = x processing->erred
",
    );
}

#[test]
fn retry_begins_at_the_root() {
    check(
        "
worker alice
client c
submit c z: x; y <- x; z <- y
  > alice compute x
err alice x
  < c erred z x-failed
retry c z
  > alice free x
  > alice compute x
  < c retried z
  ! reply 3 keys
finish alice x
  > alice compute y
finish alice y
  > alice free x
  > alice compute z
finish alice z
  < c memory z
  > alice free y
release c z
  > alice free z
empty
",
    );
}

/// Seed 5860 of the simulator: what `y` was about to use was taken from its worker.
#[test]
fn retry_leaves_alone_what_has_not_failed() {
    check(
        "
worker alice
client c
submit c x y: x; y <- x
  > alice compute x
finish alice x
  < c memory x
  > alice compute y
retry c x y
  ! reply 2 keys
states
  = x=memory@alice y=processing@alice
",
    );
}

#[test]
fn retry_of_an_unknown_key_is_an_error() {
    check(
        "
client c
retry c nothing
  ! reply error KeyError('nothing')
",
    );
}

#[test]
fn other_inputs_of_a_failed_task_are_released() {
    check(
        "
worker alice 2
client c
submit c z: x; y; z <- x y
  > alice compute y
  > alice compute x
finish alice x
err alice y
  < c erred z y-failed
  > alice free x
states
  = x=released y=erred z=erred
",
    );
}

#[test]
fn a_new_graph_on_a_failed_key_fails_at_once() {
    check(
        "
worker alice
client c
submit c x: x
  > alice compute x
err alice x
  < c erred x x-failed
submit c z: y <- x; z <- y
  < c erred z x-failed
  < c erred z x-failed
  < c erred y x-failed
  < c erred x x-failed
states
  = x=erred y=erred z=erred
release c x z
  > alice free x
empty
",
    );
}

#[test]
fn cancel_takes_dependents_along() {
    check(
        "
worker alice
client c
submit c x y z: x; y <- x; z <- y
  > alice compute x
cancel c x
  < c cancelled z (because)
  < c cancelled y (because)
  > alice free x
  < c cancelled x (because)
empty
",
    );
}

#[test]
fn cancel_spares_what_others_want() {
    check(
        "
worker alice
client c
client d
submit c x: x
  > alice compute x
submit d x: x
cancel c x
  < c cancelled  (because)
  < d cancelled  (because)
states
  = x=processing@alice
cancel c x force=1
  > alice free x
  < c cancelled x (because)
  < d cancelled x (because)
empty
",
    );
}

/// Differs from stock, which raises and closes the client's stream.
#[test]
fn dependents_nobody_wants_are_no_obstacle() {
    check(
        "
worker alice
client c
submit c x z: x; y <- x; z <- y
  > alice compute x
cancel c x
  < c cancelled  (because)
  < c cancelled x (because)
states
  = x=processing@alice y=waiting z=waiting
",
    );
}

#[test]
fn stale_reports_are_answered_with_free_keys() {
    check(
        "
worker alice
worker bob
client c
submit c x: x
  > alice compute x
finish bob x run=1
  > bob free x
  ~ Unexpected worker completed task 'x'
finish alice x run=0
  > alice free x
  > bob compute x
finish alice x run=1
  > alice free x
finish bob x run=1
  > bob free x
  > alice compute x
finish alice unknown run=5
  > alice free unknown
err alice x run=1
  > alice free x
  > bob compute x
states
  = x=processing@bob
",
    );
}

#[test]
fn a_stale_failure_of_the_assigned_worker_runs_again() {
    check(
        "
worker alice
client c
submit c x: x
  > alice compute x
err alice x run=0
  > alice free x
  > alice compute x
finish alice x
  < c memory x
",
    );
}

#[test]
fn released_while_running() {
    check(
        "
worker alice
client c
submit c x: x
  > alice compute x
release c x
  > alice free x
empty
finish alice x run=1
  > alice free x
err alice x run=1
submit c x: x
  > alice compute x
finish alice x run=1
  > alice free x
  > alice compute x
finish alice x
  < c memory x
",
    );
}

#[test]
fn rescheduled_tasks_run_again() {
    check("
worker alice
worker bob
client c
submit c x: x
  > alice compute x
reschedule bob x
reschedule alice x
  > alice free x
  > bob compute x
states
  = x=processing@bob
reschedule alice nothing
  ~ Attempting to reschedule task 'nothing', which was not found on the scheduler. Aborting reschedule.
");
}

#[test]
fn an_input_too_large_for_the_worker_is_an_error() {
    check("
worker alice memory=1000
client c
submit c y: x; y <- x
  > alice compute x
finish alice x nbytes=2000
  ~ Task 'y' has 1.95 kiB worth of input dependencies, but worker tcp://alice:1 has memory_limit set to
  < c erred y MemoryError
  > alice free x
states
  = x=released y=erred
");
}

#[test]
fn a_task_that_fails_when_it_would_wait_again_holds_no_input() {
    check(
        "
worker bob
client c
submit c x y z w: x; y <- x; z; w <- z y
  > bob compute x
  > bob compute z
finish bob z
  < c memory z
finish bob x
  < c memory x
  > bob compute y
finish bob y
  < c memory y
  > bob compute w
release c y z
drop bob x
  < c lost x
  > bob compute x
err bob x
  < c erred x x-failed
remove bob
  ~ Removing worker 'tcp://bob:1' caused the cluster to lose already computed task(s), which will be rec
  < c erred w x-failed
states
  = w=erred x=erred y=erred z=queued
worker alice
  > alice compute z
finish alice z
  > alice free z
states
  = w=erred x=erred y=erred z=released
release c w x
empty
",
    );
}
