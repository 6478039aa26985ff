//! The way of a task when all goes well: graphs, order, interest.

use crate::env::check;

#[test]
fn one_task_runs_and_is_released() {
    check(
        "
worker alice
client c
submit c x: x
  > alice compute x
finish alice x
  < c memory x
release c x
  > alice free x
empty
",
    );
}

#[test]
fn dependents_follow_and_inputs_are_released() {
    check(
        "
worker alice
client c
submit c z: x; y <- x; z <- y
  > alice compute x
states
  = x=processing@alice y=waiting z=waiting
finish alice x
  > alice compute y
finish alice y
  > alice free x
  > alice compute z
finish alice z
  < c memory z
  > alice free y
states
  = x=released y=released z=memory@alice
release c z
  > alice free z
empty
",
    );
}

/// The last recommendation is processed first, and an overwritten one keeps its place.
#[test]
fn recommendations_are_a_stack() {
    check(
        "
worker alice
client c
submit c d e: a; b <- a; c <- a; d <- b c; e <- c
  > alice compute a
finish alice a
  > alice compute b
  > alice compute c
finish alice b
finish alice c
  > alice free a
  > alice compute d
  > alice compute e
story
  = d released->waiting b:waiting c:waiting
  = c released->waiting a:waiting
  = a released->waiting a:processing
  = a waiting->processing
  = b released->waiting
  = e released->waiting
  = a processing->memory c:processing b:processing
  = b waiting->processing
  = c waiting->processing
  = b processing->memory
  = c processing->memory e:processing d:processing a:released
  = a memory->released
  = d waiting->processing
  = e waiting->processing
",
    );
}

#[test]
fn ready_dependents_go_best_first() {
    check(
        "
worker alice
client c
submit c b1 b2 b3 b4: a; b3 <- a; b1 <- a; b4 <- a; b2 <- a
  > alice compute a
finish alice a
  > alice compute b3
  > alice compute b1
  > alice compute b4
  > alice compute b2
",
    );
}

#[test]
fn requested_keys_go_best_first() {
    check(
        "
worker alice
client c
submit c k1 k2 k3: k3; k1; k2
  > alice compute k3
  > alice compute k1
  > alice compute k2
",
    );
}

#[test]
fn a_second_client_hears_what_is_done() {
    check(
        "
worker alice
client c
client d
submit c x: x
  > alice compute x
finish alice x
  < c memory x
submit d x: x
  < c memory x already
  < d memory x already
  < c memory x already
  < d memory x already
release c x
states
  = x=memory@alice
release d x
  > alice free x
empty
",
    );
}

#[test]
fn a_disconnected_client_releases_everything() {
    check(
        "
worker alice
client c
submit c z: x; y; z <- x y
  > alice compute y
  > alice compute x
finish alice x
disconnect c
  > alice free y x
empty
",
    );
}

#[test]
fn a_key_that_is_still_needed_outlives_its_client() {
    check(
        "
worker alice
client c
client d
submit c x: x
  > alice compute x
submit d y: x; y <- x
release c x
finish alice x
  > alice compute y
finish alice y
  < d memory y
  > alice free x
states
  = x=released y=memory@alice
release d y
  > alice free y
empty
",
    );
}

#[test]
fn fire_and_forget_ends_with_the_result() {
    check(
        "
worker alice
client c
submit c x: x
  > alice compute x
desire fire-and-forget x
release c x
states
  = x=processing@alice
finish alice x
  > alice free x
empty
",
    );
}

#[test]
fn fire_and_forget_ends_with_a_failure() {
    check(
        "
worker alice
client c
submit c x: x
  > alice compute x
desire fire-and-forget x
release c x
err alice x
  > alice free x
empty
",
    );
}

#[test]
fn unknown_keys_are_reported_as_cancelled() {
    check(
        "
client c
report c nothing
  < c cancelled nothing (no reason)
desire queue-q nothing
  ~ Client 'queue-q' desires key 'nothing' but key is unknown.
",
    );
}

/// Seed 4018 of the simulator: the client took its future for finished for ever.
#[test]
fn scattered_data_whose_worker_has_gone_is_reported_as_cancelled() {
    check(
        "
worker alice
client c
remove alice
scatter c data alice
  ~ Client 'c' desires key 'data' but key is unknown.
  < c cancelled data (no reason)
empty
",
    );
}

#[test]
fn known_keys_are_reported_again() {
    check(
        "
worker alice
client c
submit c x: x
  > alice compute x
report c x
finish alice x
  < c memory x
report c x
  < c memory x already
desire variable-v x
  < c memory x already
release c x
states
  = x=memory@alice
release variable-v x
  > alice free x
empty
",
    );
}

#[test]
fn lost_dependencies_cancel_the_graph() {
    check(
        "
worker alice
client c
submit c y: y <- gone
  < c cancelled y (lost dependencies)
submit c x: x
  > alice compute x
submit c y: y <- x gone
  < c cancelled y (lost dependencies)
states
  = x=processing@alice
",
    );
}

#[test]
fn graphs_extend_what_is_known() {
    check(
        "
worker alice
client c
submit c y: x; y <- x
  > alice compute x
submit c z: z <- y
finish alice x
  > alice compute y
finish alice y
  < c memory y
  > alice free x
  > alice compute z
finish alice z
  < c memory z
release c y
  > alice free y
states
  = x=released y=released z=memory@alice
release c z
  > alice free z
empty
",
    );
}

/// Differs from stock, which keeps `v` for ever.
#[test]
fn the_old_definition_of_a_key_stays() {
    check("
worker alice
client c
submit c y: x; y <- x
  > alice compute x
submit c y: v; y <- v
  ~ Detected different `run_spec` for key 'y' between two consecutive calls to `update_graph`. This can 
states
  = x=processing@alice y=waiting
finish alice x
  > alice compute y
finish alice y
  < c memory y
  > alice free x
release c y
  > alice free y
empty
");
}

#[test]
fn generations_order_graphs() {
    check(
        "
worker alice
client c
submit c b: a; b <- a
  > alice compute a
submit c d: c; d <- c
  > alice compute c
finish alice a
  > alice compute b
finish alice c
  > alice compute d
",
    );
}

#[test]
fn actors_stay_where_they_are() {
    check(
        "
worker alice
worker bob
client c
submit c act-1: act-1 | actors=1
  > alice compute act-1
finish alice act-1
  < c memory act-1
submit c act-2: act-2 | actors=1
  > bob compute act-2
remove alice
  < c erred act-1 RuntimeError
  > bob gone alice
states
  = act-1=erred act-2=processing@bob
",
    );
}

#[test]
fn scattered_data_is_used_and_kept() {
    check(
        "
worker alice
worker bob
client c
scatter c data alice
  < c memory data already
submit c x: x <- data
  > alice compute x
  < c memory data already
finish alice x
  < c memory x
release c data
  > alice free data
states
  = x=memory@alice
release c x
  > alice free x
empty
",
    );
}

#[test]
fn restart_forgets_everything() {
    check(
        "
worker alice
client c
client d
submit c y: x; y <- x
  > alice compute x
submit d z: x; z <- x | priority=1
finish alice x
  > alice compute z
  > alice compute y
restart
  > alice free y z x
  < c restart
  < d restart
empty
submit c x: x
  > alice compute x
",
    );
}
