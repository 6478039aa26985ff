//! Which worker gets what.

use oxidask_scheduler::Config;

use crate::env::{check, check_with};

#[test]
fn small_groups_go_round_the_idle_workers() {
    check(
        "
worker alice
worker bob
worker carol
client c
submit c a: a
  > alice compute a
submit c b: b
  > carol compute b
submit c d: d
  > bob compute d
states
  = a=processing@alice b=processing@carol d=processing@bob
",
    );
}

#[test]
fn dependents_go_where_their_input_is() {
    check(
        "
worker alice 2
worker bob 2
client c
submit c y: x; y <- x
  > alice compute x
finish alice x nbytes=1000000
  > alice compute y
",
    );
}

#[test]
fn the_larger_input_decides() {
    check(
        "
worker alice 2
worker bob 2
client c
submit c z: x; y; z <- x y
  > alice compute y
  > bob compute x
finish bob x nbytes=100
finish alice y nbytes=100000000
  > alice compute z
states
  = x=memory@bob y=memory@alice z=processing@alice
",
    );
}

#[test]
fn a_busy_holder_loses_to_a_free_one() {
    check(
        "
worker alice
worker bob
client c
submit c p q: p; q
  > alice compute p
  > bob compute q
finish alice p
  < c memory p
finish bob q
  < c memory q
submit c y1: y1 <- p
  > alice compute y1
  < c memory p already
submit c y2: y2 <- p q
  > bob compute y2
  < c memory q already
  < c memory p already
submit c y3: y3 <- p
  > alice compute y3
  < c memory p already
states
  = p=memory@alice q=memory@bob y1=processing@alice y2=processing@bob y3=processing@alice
",
    );
}

#[test]
fn root_tasks_wait_for_a_slot() {
    check(
        "
worker alice 2
client c
submit c r-1 r-2 r-3 r-4 r-5 r-6: r-1; r-2; r-3; r-4; r-5; r-6
  > alice compute r-1
  > alice compute r-2
  > alice compute r-3
states
  = r-1=processing@alice r-2=processing@alice r-3=processing@alice r-4=queued r-5=queued r-6=queued
finish alice r-1
  < c memory r-1
  > alice compute r-4
finish alice r-2
  < c memory r-2
  > alice compute r-5
release c r-6
states
  = r-1=memory@alice r-2=memory@alice r-3=processing@alice r-4=processing@alice r-5=processing@alice
secede alice r-3
states
  = r-1=memory@alice r-2=memory@alice r-3=processing@alice r-4=processing@alice r-5=processing@alice
worker bob
states
  = r-1=memory@alice r-2=memory@alice r-3=processing@alice r-4=processing@alice r-5=processing@alice
",
    );
}

#[test]
fn queued_tasks_leave_when_nobody_wants_them() {
    check(
        "
worker alice
client c
submit c r-1 r-2 r-3 r-4: r-1; r-2; r-3; r-4
  > alice compute r-1
  > alice compute r-2
release c r-3 r-4
states
  = r-1=processing@alice r-2=processing@alice
disconnect c
  > alice free r-2 r-1
empty
",
    );
}

#[test]
fn the_next_in_line_comes_before_new_roots() {
    check("
worker alice
client c
submit c s-1 s-2 s-3: r-1; r-2; r-3; r-4; s-1 <- r-1; s-2 <- r-2; s-3 <- r-3 r-4
  > alice compute r-1
  > alice compute r-2
finish alice r-1
  > alice compute s-1
finish alice s-1
  < c memory s-1
  > alice free r-1
  > alice compute r-3
states
  = r-1=released r-2=processing@alice r-3=processing@alice r-4=queued s-1=memory@alice s-2=waiting s-3=waiting
");
}

#[test]
fn saturation_counts_in_threads() {
    check("
worker alice 4
client c
submit c r-1 r-2 r-3 r-4 r-5 r-6 r-7 r-8 r-9: r-1; r-2; r-3; r-4; r-5; r-6; r-7; r-8; r-9
  > alice compute r-1
  > alice compute r-2
  > alice compute r-3
  > alice compute r-4
  > alice compute r-5
states
  = r-1=processing@alice r-2=processing@alice r-3=processing@alice r-4=processing@alice r-5=processing@alice r-6=queued r-7=queued r-8=queued r-9=queued
");
}

#[test]
fn without_queuing_neighbours_stay_together() {
    let config = Config {
        worker_saturation: f64::INFINITY,
        ..Config::default()
    };
    check_with(config, "
worker alice
worker bob
client c
submit c r-1 r-2 r-3 r-4 r-5 r-6 r-7 r-8: r-1; r-2; r-3; r-4; r-5; r-6; r-7; r-8
  > alice compute r-1
  > alice compute r-2
  > alice compute r-3
  > alice compute r-4
  > bob compute r-5
  > bob compute r-6
  > bob compute r-7
  > bob compute r-8
states
  = r-1=processing@alice r-2=processing@alice r-3=processing@alice r-4=processing@alice r-5=processing@bob r-6=processing@bob r-7=processing@bob r-8=processing@bob
");
}

#[test]
fn paused_workers_get_nothing() {
    check(
        "
worker alice
worker bob
client c
status alice paused
submit c x: x
  > bob compute x
submit c y: y
  > bob compute y
states
  = x=processing@bob y=processing@bob
status bob paused
submit c z: z
states
  = x=processing@bob y=processing@bob z=no-worker
status alice running
  > alice compute z
states
  = x=processing@bob y=processing@bob z=processing@alice
",
    );
}

#[test]
fn without_workers_tasks_wait() {
    check(
        "
client c
submit c y: x; y <- x
states
  = x=queued y=waiting
worker alice
  > alice compute x
states
  = x=processing@alice y=waiting
",
    );
}

#[test]
fn restricted_to_a_worker_by_name_and_address() {
    check(
        "
worker alice
worker bob
client c
submit c x: x | workers=bob
  > bob compute x
submit c y: y | workers=tcp://bob:1
  > bob compute y
submit c z: z | workers=carol:1
states
  = x=processing@bob y=processing@bob z=no-worker
worker carol
  > carol compute z
states
  = x=processing@bob y=processing@bob z=processing@carol
",
    );
}

#[test]
fn restricted_to_a_host() {
    check(
        "
worker alice
worker 127.0.0.1
client c
submit c x: x | workers=127.0.0.1
  > 127.0.0.1 compute x
submit c y: y | workers=elsewhere
submit c z: z | workers=elsewhere loose=1
  > alice compute z
states
  = x=processing@127.0.0.1 y=no-worker z=processing@alice
",
    );
}

/// Seed 404 of the simulator: the worker failed on a resource that it does not know.
#[test]
fn loose_restrictions_do_not_waive_resources() {
    check(
        "
worker alice
client c
submit c x: x | workers=elsewhere loose=1 gpu=1
states
  = x=no-worker
worker bob gpu=1
  > bob compute x
",
    );
}

#[test]
fn restricted_to_resources() {
    check(
        "
worker alice
worker bob gpu=1
client c
submit c x y: x; y | gpu=1
  > bob compute x
  > bob compute y
submit c z: z | gpu=2
states
  = x=processing@bob y=processing@bob z=no-worker
worker carol gpu=2
  > carol compute z
states
  = x=processing@bob y=processing@bob z=processing@carol
",
    );
}

/// Differs from stock, which keeps `x` for ever.
#[test]
fn resources_of_the_wrong_type_fail_the_graph() {
    check(
        "
worker alice
client c
submit c x: x | resources=gpu
  < c erred x AssertionError
states
  =
",
    );
}

#[test]
fn restrictions_are_not_root_like() {
    check(
        "
worker alice
client c
submit c r-1 r-2 r-3 r-4: r-1; r-2; r-3; r-4 | workers=alice
  > alice compute r-1
  > alice compute r-2
  > alice compute r-3
  > alice compute r-4
states
  = r-1=processing@alice r-2=processing@alice r-3=processing@alice r-4=processing@alice
",
    );
}

#[test]
fn data_producers_always_are() {
    check(
        "
worker alice
client c
submit c x y: x; y | producers=1
  > alice compute x
  > alice compute y
states
  = x=processing@alice y=processing@alice
",
    );
}

#[test]
fn user_priority_comes_first() {
    check("
worker alice
client c
submit c r-1 r-2 r-3: r-1; r-2; r-3
  > alice compute r-1
  > alice compute r-2
submit c s-1 s-2 s-3: s-1; s-2; s-3 | priority=1
submit c t-1 t-2 t-3: t-1; t-2; t-3
states
  = r-1=processing@alice r-2=processing@alice r-3=queued s-1=queued s-2=queued s-3=queued t-1=queued t-2=queued t-3=queued
finish alice r-1
  < c memory r-1
  > alice compute s-1
finish alice r-2
  < c memory r-2
  > alice compute s-2
finish alice s-1
  < c memory s-1
  > alice compute s-3
");
}

#[test]
fn tasks_of_tasks_come_before_their_generation() {
    check(
        "
worker alice
client c
submit c r-1 r-2 r-3: r-1; r-2; r-3
  > alice compute r-1
  > alice compute r-2
submit c s-1 s-2 s-3: s-1; s-2; s-3 | parent=r-1
states
  = r-1=processing@alice r-2=processing@alice r-3=queued s-1=queued s-2=queued s-3=queued
finish alice r-1
  < c memory r-1
  > alice compute s-1
finish alice r-2
  < c memory r-2
  > alice compute s-2
",
    );
}

#[test]
fn durations_shape_occupancy() {
    check(
        "
worker alice 2
worker bob 2
client c
submit c x-1 x-2: x-1; x-2
  > alice compute x-1
  > bob compute x-2
occupancy alice
  = 0.500
finish alice x-1 took=3
  < c memory x-1
occupancy bob
  = 3.000
submit c x-3: x-3
  > alice compute x-3
occupancy alice
  = 3.000
executing bob x-2 7
occupancy bob
  = 14.000
finish bob x-2 took=1
  < c memory x-2
occupancy alice
  = 1.000
",
    );
}

#[test]
fn fetching_counts_as_work() {
    check(
        "
worker alice
worker bob
client c
submit c p q: p; q
  > alice compute p
  > bob compute q
finish alice p nbytes=200000000 took=0
  < c memory p
finish bob q nbytes=300000000 took=0
  < c memory q
submit c y: y <- p q
  > bob compute y
  < c memory q already
  < c memory p already
occupancy bob
  = 2.500
finish bob y
  < c memory y
occupancy bob
  = 0.000
",
    );
}
