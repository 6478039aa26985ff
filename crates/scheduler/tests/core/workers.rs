//! Workers that come, go and report.

use oxidask_scheduler::Config;

use crate::env::{check, check_with};

#[test]
fn running_tasks_move_to_another_worker() {
    check(
        "
worker alice
worker bob
client c
submit c x: x
  > alice compute x
remove alice
  > bob compute x
  > bob gone alice
finish bob x
  < c memory x
",
    );
}

#[test]
fn lost_results_are_computed_again() {
    check("
worker alice
worker bob
client c
submit c y: x; y <- x
  > alice compute x
finish alice x
  > alice compute y
finish alice y
  < c memory y
  > alice free x
remove alice
  ~ Removing worker 'tcp://alice:1' caused the cluster to lose already computed task(s), which will be r
  < c lost y
  > bob compute x
  > bob gone alice
states
  = x=processing@bob y=waiting
finish bob x
  > bob compute y
finish bob y
  < c memory y
  > bob free x
");
}

#[test]
fn a_lost_input_sends_its_dependent_back() {
    check("
worker alice 2
worker bob 2
client c
submit c z: x; y; z <- x y
  > alice compute y
  > bob compute x
finish bob x nbytes=1
finish alice y nbytes=100000
  > alice compute z
states
  = x=memory@bob y=memory@alice z=processing@alice
remove bob
  ~ Removing worker 'tcp://bob:1' caused the cluster to lose already computed task(s), which will be rec
  > alice free z
  > alice compute x
  > alice gone bob
states
  = x=processing@alice y=memory@alice z=waiting
story
  = z released->waiting x:waiting y:waiting
  = y released->waiting y:processing
  = y waiting->processing
  = x released->waiting x:processing
  = x waiting->processing
  = x processing->memory
  = y processing->memory z:processing
  = z waiting->processing
  = x memory->released x:waiting z:waiting
  = z processing->released z:waiting
  = z released->waiting z:waiting x:waiting
  = x released->waiting x:processing
  = x waiting->processing
");
}

#[test]
fn a_replica_is_as_good() {
    check(
        "
worker alice
worker bob
client c
submit c x: x
  > alice compute x
finish alice x
  < c memory x
add-keys bob x
remove alice
  > bob gone alice
states
  = x=memory@bob
drop bob x
  < c lost x
  > bob compute x
states
  = x=processing@bob
",
    );
}

#[test]
fn replicas_of_what_is_not_in_memory_are_dropped() {
    check(
        "
worker alice
worker bob
client c
submit c x: x
  > alice compute x
add-keys bob x nothing
  > bob remove-replicas x nothing
",
    );
}

#[test]
fn the_fourth_death_is_one_too_many() {
    check(
        "
client c
submit c x: x
worker a1
  > a1 compute x
remove a1
worker a2
  > a2 compute x
remove a2
worker a3
  > a3 compute x
remove a3
worker a4
  > a4 compute x
remove a4
  < c erred x KilledWorker
  ~ Task x marked as failed because 4 workers died while trying to run it
states
  = x=erred
",
    );
}

#[test]
fn retirement_is_no_death() {
    check(
        "
client c
submit c x: x
worker a1
  > a1 compute x
retire a1
worker a2
  > a2 compute x
retire a2
worker a3
  > a3 compute x
retire a3
worker a4
  > a4 compute x
retire a4
states
  = x=queued
",
    );
}

#[test]
fn lost_scattered_data_takes_dependents_along() {
    check("
worker alice
worker bob
client c
scatter c data alice
  < c memory data already
submit c z: y <- data; z <- y
  > alice compute y
  < c memory data already
remove alice
  ~ Removing worker 'tcp://alice:1' caused the cluster to lose scattered data, which can't be recovered:
  < c cancelled data (already forgotten)
  < c cancelled z (already forgotten)
  > bob gone alice
empty
");
}

#[test]
fn workers_ask_who_has_what() {
    check(
        "
worker alice
worker bob
client c
submit c x y: x; y
  > alice compute x
  > bob compute y
finish alice x
  < c memory x
refresh bob x y gone
  > bob who-has x@alice y@
  > bob free gone
",
    );
}

#[test]
fn long_running_tasks_give_their_slot_back() {
    check(
        "
worker alice
client c
submit c r-1 r-2 r-3 r-4: r-1; r-2; r-3; r-4
  > alice compute r-1
  > alice compute r-2
secede alice r-1
  > alice compute r-3
secede alice r-9 run=1
states
  = r-1=processing@alice r-2=processing@alice r-3=processing@alice r-4=queued
occupancy alice
  = 2.000
finish alice r-1
  < c memory r-1
states
  = r-1=memory@alice r-2=processing@alice r-3=processing@alice r-4=queued
",
    );
}

/// Differs from stock, which counts it twice.
#[test]
fn seceding_twice_is_seceding_once() {
    check(
        "
worker alice
client c
submit c x: x
  > alice compute x
secede alice x
secede alice x
occupancy alice
  = 0.000
finish alice x
  < c memory x
",
    );
}

#[test]
fn nobody_comes_in_time() {
    let config = Config {
        no_workers_timeout: Some(10.0),
        ..Config::default()
    };
    check_with(
        config,
        "
client c
worker alice
submit c x: x | workers=elsewhere
submit c y: y
  > alice compute y
wait 5
states
  = x=no-worker y=processing@alice
wait 6
  < c erred x NoValidWorkerError
  ~ Task x marked as failed because it timed out waiting for its restrictions to become satisfied.
remove alice
wait 5
wait 6
  < c erred y NoWorkerError
  ~ Task y marked as failed because it timed out waiting without any running workers.
states
  = x=erred y=erred
",
    );
}

#[test]
fn pickles_are_made_when_a_worker_is_chosen() {
    check("
worker alice
client c
submit c r-1 r-2 r-3 r-4: r-1; r-2; r-3; r-4 | bundle=1
  ! explode 1
explode 1 p1 p2 p3 p4
  > alice compute r-1
  > alice compute r-2
finish alice r-1
  < c memory r-1
  > alice compute r-3
remove alice
  ~ Removing worker 'tcp://alice:1' caused the cluster to lose already computed task(s), which will be r
  < c lost r-1
worker bob
  ! explode 1
explode 1 p1 p2 p3 p4
  > bob compute r-1
  > bob compute r-2
release c r-1 r-2 r-3 r-4
  > bob free r-2 r-1
empty
");
}

#[test]
fn a_task_released_before_its_pickle_was_sent_is_not_freed() {
    check(
        "
worker alice
client c
submit c x: x | bundle=1
  ! explode 1
release c x
explode 1 p1
empty
",
    );
}

#[test]
fn a_bundle_that_fails_fails_its_tasks() {
    check(
        "
worker alice
client c
submit c y: x; y <- x | bundle=1
  ! explode 1
fail-bundle 1
  < c erred y helper-failed
states
  = x=erred y=erred
retry c y
  ! explode 1
  < c retried y
  ! reply 2 keys
explode 1 p1 p2
  > alice compute x
finish alice x
  > alice compute y
finish alice y
  < c memory y
  > alice free x
",
    );
}
