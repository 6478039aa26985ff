//! Why workers died, in the exception of the task that had them.

use oxidask_scheduler::Config;

use crate::env::{check, check_with};

#[test]
fn reports_come_before_or_after_the_end_of_the_stream() {
    check(
        "
client c
submit c x: x
worker a1 nanny=n1
  > a1 compute x
died n1 exited with status 3
lose a1
worker a2 nanny=n2
  > a2 compute x
lose a2
died n2 was killed
worker a3
  > a3 compute x
lose a3
worker a4
  > a4 compute x
remove a4
  < c erred x KilledWorker
  ~ Task x marked as failed because 4 workers died while trying to run it
attempts x
  = attempt 1: tcp://a1:1 (pid 1): exited with status 3; tasks: 'x'; memory: 0.95 MiB
  = attempt 2: tcp://a2:1 (pid 1): was killed; tasks: 'x'; memory: 0.95 MiB
  = attempt 3: tcp://a3:1 (pid 1): lost connection; tasks: 'x'; memory: 0.95 MiB
  = attempt 4: tcp://a4:1 (pid 1): was removed (s15); tasks: 'x'; memory: 0.95 MiB
",
    );
}

fn one_attempt() -> Config {
    Config {
        allowed_failures: 0,
        ..Config::default()
    }
}

#[test]
fn the_last_worker_is_lost_when_its_nanny_has_spoken() {
    check_with(
        one_attempt(),
        "
client c
worker a1 nanny=n1
submit c x: x
  > a1 compute x
lose a1
submit c y: y
lose a1
died n1 exited with status 3
  < c erred x KilledWorker
  ~ Task x marked as failed because 1 workers died while trying to run it
attempts x
  = attempt 1: tcp://a1:1 (pid 1): exited with status 3; tasks: 'x'; memory: 0.95 MiB
worker a2
  > a2 compute y
",
    );
}

#[test]
fn a_nanny_that_says_nothing_is_waited_for_but_briefly() {
    check_with(
        one_attempt(),
        "
client c
worker a1 nanny=n1
submit c x: x
  > a1 compute x
lose a1
wait 1.9
wait 0.1
  < c erred x KilledWorker
  ~ Task x marked as failed because 1 workers died while trying to run it
died n1 too late
attempts x
  = attempt 1: tcp://a1:1 (pid 1): lost connection; tasks: 'x'; memory: 0.95 MiB
",
    );
}

#[test]
fn a_nanny_that_unregisters_its_worker_has_nothing_more_to_say() {
    check_with(
        one_attempt(),
        "
client c
worker a1 nanny=n1
submit c x: x
  > a1 compute x
lose a1
remove a1
  < c erred x KilledWorker
  ~ Task x marked as failed because 1 workers died while trying to run it
attempts x
  = attempt 1: tcp://a1:1 (pid 1): lost connection; tasks: 'x'; memory: 0.95 MiB
",
    );
}

#[test]
fn nobody_waits_for_a_worker_without_nanny() {
    check_with(
        one_attempt(),
        "
client c
worker a1
submit c x: x
  > a1 compute x
lose a1
  < c erred x KilledWorker
  ~ Task x marked as failed because 1 workers died while trying to run it
attempts x
  = attempt 1: tcp://a1:1 (pid 1): lost connection; tasks: 'x'; memory: 0.95 MiB
",
    );
}

#[test]
fn nobody_waits_for_the_nanny_while_there_are_attempts_left() {
    check(
        "
client c
worker a1 nanny=n1
worker a2
submit c x: x
  > a1 compute x
lose a1
  > a2 compute x
  > a2 gone a1
",
    );
}

#[test]
fn a_report_on_another_process_changes_nothing() {
    check_with(
        one_attempt(),
        "
client c
worker a1 nanny=n1
submit c x: x
  > a1 compute x
died n1 pid=7 somebody else
lose a1
died n2 somebody else
died n1 pid=7 somebody else
wait 2
  < c erred x KilledWorker
  ~ Task x marked as failed because 1 workers died while trying to run it
attempts x
  = attempt 1: tcp://a1:1 (pid 1): lost connection; tasks: 'x'; memory: 0.95 MiB
",
    );
}

#[test]
fn a_lost_worker_makes_room_for_its_successor() {
    check_with(
        one_attempt(),
        "
client c
worker a1 nanny=n1
submit c x: x
  > a1 compute x
lose a1
worker a1 nanny=n1
  < c erred x KilledWorker
  ~ Task x marked as failed because 1 workers died while trying to run it
attempts x
  = attempt 1: tcp://a1:1 (pid 1): lost connection; tasks: 'x'; memory: 0.95 MiB
submit c y: y
  > a1 compute y
",
    );
}
