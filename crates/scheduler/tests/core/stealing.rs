//! Tasks go from busy workers to idle ones.

use bytes::Bytes;
use oxidask_scheduler::{Config, Event, Instruction, ToWorker};
use oxidask_wire::{Key, Str, Value};

use crate::env::{Env, check, check_with, startstops};

#[test]
fn an_idle_worker_takes_over_what_has_not_begun() {
    check(
        "
worker alice
worker bob
client c
submit c y-1 y-2 y-3 y-4 y-5 y-6: y-1; y-2; y-3; y-4; y-5; y-6 | workers=alice loose=1
  > alice compute y-1
  > alice compute y-2
  > alice compute y-3
  > alice compute y-4
  > alice compute y-5
  > alice compute y-6
levels
  = y-1:0 y-2:0 y-3:0 y-4:0 y-5:0 y-6:0
balance
  > alice steal y-6
  > alice steal y-5
levels
  = y-1:0 y-2:0 y-3:0 y-4:0
answer alice y-6 ready
  > bob compute y-6
answer alice y-5 executing
levels
  = y-1:0 y-2:0 y-3:0 y-4:0 y-6:0
states
  = y-1=processing@alice y-2=processing@alice y-3=processing@alice y-4=processing@alice y-5=processing@alice y-6=processing@bob
finish bob y-6
  < c memory y-6
finish alice y-5
  < c memory y-5
",
    );
}

#[test]
fn answers_to_other_requests_are_ignored() {
    check(
        "
worker alice
worker bob
client c
submit c y-1 y-2 y-3: y-1; y-2; y-3 | workers=alice loose=1
  > alice compute y-1
  > alice compute y-2
  > alice compute y-3
balance
  > alice steal y-3
answer alice y-3 ready stimulus=steal-77
states
  = y-1=processing@alice y-2=processing@alice y-3=processing@alice
finish alice y-3
  < c memory y-3
answer alice y-3 ready
answer alice unknown ready stimulus=steal-0
states
  = y-1=processing@alice y-2=processing@alice y-3=memory@alice
",
    );
}

#[test]
fn what_the_victim_does_not_know_is_assigned_again() {
    check(
        "
worker alice
worker bob
client c
submit c y-1 y-2 y-3: y-1; y-2; y-3 | workers=alice loose=1
  > alice compute y-1
  > alice compute y-2
  > alice compute y-3
balance
  > alice steal y-3
answer alice y-3
  > alice free y-3
  > alice compute y-3
",
    );
}

#[test]
fn a_thief_that_is_gone_gets_nothing() {
    check(
        "
worker alice
worker bob
client c
submit c y-1 y-2 y-3: y-1; y-2; y-3 | workers=alice loose=1
  > alice compute y-1
  > alice compute y-2
  > alice compute y-3
balance
  > alice steal y-3
remove bob
  > alice gone bob
answer alice y-3 ready
  > alice free y-3
  > alice compute y-3
",
    );
}

#[test]
fn a_victim_that_is_gone_has_nothing_to_give_up() {
    check(
        "
worker alice
worker bob
client c
submit c y-1 y-2 y-3: y-1; y-2; y-3 | workers=alice loose=1
  > alice compute y-1
  > alice compute y-2
  > alice compute y-3
balance
  > alice steal y-3
remove alice
  > bob compute y-3
  > bob compute y-2
  > bob compute y-1
  > bob gone alice
levels
  = y-1:0 y-2:0 y-3:0
",
    );
}

#[test]
fn restrictions_hold_for_thieves() {
    check(
        "
worker alice
worker bob
worker carol gpu=1
client c
submit c x-1 x-2 x-3: x-1; x-2; x-3 | workers=alice
  > alice compute x-1
  > alice compute x-2
  > alice compute x-3
balance
submit c g-1 g-2 g-3 g-4: g-1; g-2; g-3; g-4 | gpu=1
  > carol compute g-1
  > carol compute g-2
  > carol compute g-3
  > carol compute g-4
balance
worker dave gpu=1
balance
  > carol steal g-4
answer carol g-4 ready
  > dave compute g-4
",
    );
}

#[test]
fn seceded_tasks_stay() {
    check(
        "
worker alice
worker bob
client c
submit c y-1 y-2 y-3: y-1; y-2; y-3 | workers=alice loose=1
  > alice compute y-1
  > alice compute y-2
  > alice compute y-3
secede alice y-3
levels
  = y-1:0 y-2:0
balance
  > alice steal y-2
secede alice y-2
answer alice y-2 long-running
states
  = y-1=processing@alice y-2=processing@alice y-3=processing@alice
",
    );
}

#[test]
fn data_that_costs_more_than_it_saves_stays() {
    check(
        "
worker alice
worker bob
client c
submit c x: x | workers=alice
  > alice compute x
finish alice x nbytes=5000000000
  < c memory x
submit c y-1 y-2 y-3 y-4: y-1 <- x; y-2 <- x; y-3 <- x; y-4 <- x | workers=alice loose=1
  > alice compute y-1
  > alice compute y-2
  > alice compute y-3
  > alice compute y-4
  < c memory x already
levels
  = y-1:13 y-2:13 y-3:13 y-4:13
balance
finish alice y-1 took=0.001
  < c memory y-1
levels
  =
",
    );
}

#[test]
fn levels_follow_the_first_measured_duration() {
    check(
        "
worker alice
worker bob
client c
submit c x: x | workers=alice
  > alice compute x
finish alice x nbytes=10000000
  < c memory x
submit c y-1 y-2 y-3: y-1 <- x; y-2 <- x; y-3 <- x | workers=alice loose=1
  > alice compute y-1
  > alice compute y-2
  > alice compute y-3
  < c memory x already
levels
  = y-1:5 y-2:5 y-3:5
finish alice y-1 took=10
  < c memory y-1
levels
  = y-2:1 y-3:1
balance
  > alice steal y-3
",
    );
}

#[test]
fn fast_tasks_are_never_stolen() {
    check(
        "
worker alice
worker bob
client c
submit c split-shuffle-1 split-shuffle-2: split-shuffle-1; split-shuffle-2 | workers=alice loose=1
  > alice compute split-shuffle-1
  > alice compute split-shuffle-2
levels
  =
",
    );
}

/// Differs from stock, which has no stealing then and does not know the answer.
#[test]
fn nothing_is_stolen_when_that_is_off() {
    let config = Config {
        work_stealing: false,
        ..Config::default()
    };
    check_with(
        config,
        "
worker alice
worker bob
client c
submit c y-1 y-2 y-3: y-1; y-2; y-3 | workers=alice loose=1
  > alice compute y-1
  > alice compute y-2
  > alice compute y-3
levels
  =
balance
answer alice y-3 ready stimulus=steal-0
",
    );
}

/// Differs from stock, where a stolen actor counts for nobody.
#[test]
fn an_actor_and_resources_go_with_the_task() {
    let mut env = Env::new(Config::default());
    for line in [
        "worker alice gpu=2",
        "worker bob gpu=2",
        "worker carol",
        "client c",
        "submit c a-1 a-2 a-3: a-1; a-2; a-3 | gpu=1 actors=1",
    ] {
        env.command(line);
    }
    // The second one of a worker is what its idle neighbour may take.
    let [alice, bob] = ["alice", "bob"].map(|name| env.worker(name));
    let crowded = |env: &Env| {
        let busy = |worker| env.scheduler.worker(worker).unwrap().processing.len() > 1;
        [alice, bob].into_iter().find(|worker| busy(*worker))
    };
    let victim = crowded(&env).expect("three tasks are on two workers");
    let thief = if victim == alice { bob } else { alice };
    let other = env.scheduler.worker(thief).unwrap();
    let own = other.processing.first().unwrap();
    let own = env.scheduler.task(own).unwrap().key.clone();
    let name = |worker| if worker == alice { "alice" } else { "bob" };
    env.command(&format!("finish {} {own} took=5", name(thief)));
    let asked = env.command("balance");
    let key = asked
        .iter()
        .find_map(|line| line.strip_prefix(&format!("> {} steal ", name(victim))))
        .unwrap_or_else(|| panic!("{asked:?}"))
        .to_owned();
    let told = env.command(&format!("answer {} {key} ready", name(victim)));
    assert_eq!(told, [format!("> {} compute {key}", name(thief))]);
    let used = |env: &Env, worker| env.scheduler.worker(worker).unwrap().used_resources["gpu"];
    assert_eq!((used(&env, victim), used(&env, thief)), (1.0, 1.0));
    let actors = |worker| env.scheduler.worker(worker).unwrap().actors.len();
    assert_eq!((actors(victim), actors(thief)), (1, 2));
    env.command(&format!("finish {} {key}", name(thief)));
    assert_eq!(used(&env, thief), 0.0);
}

/// The client `c` wants so many tasks, `r-0`, `r-1` and so on, that need nothing.
fn submit_roots(env: &mut Env, prefix: &str, count: usize, options: &str) {
    let names = (0..count).map(|number| format!("{prefix}-{number}"));
    let names: Vec<String> = names.collect();
    env.command(&format!(
        "submit c {}: {}{options}",
        names.join(" "),
        names.join("; ")
    ));
}

fn requests(out: &[String]) -> usize {
    out.iter().filter(|line| line.contains(" steal ")).count()
}

/// Differs from stock, which hands out one or two at a time.
#[test]
fn tasks_handed_out_ahead_of_need_are_left_alone() {
    let mut env = Env::new(Config::default());
    env.command("worker alice 32");
    env.command("client c");
    submit_roots(&mut env, "r", 2000, "");
    // Short ones: more and more of them are sent ahead.
    for number in 0..300 {
        env.command(&format!("finish alice r-{number} took=0.0007"));
    }
    let alice = env.worker("alice");
    let ahead = env.scheduler.worker(alice).unwrap().processing.len();
    assert!(ahead > 300, "{ahead} tasks are ahead");
    assert!(env.scheduler.occupancy(alice) > 0.2);
    env.command("worker bob status=init");
    env.command("status bob running");
    let bob = env.worker("bob");
    assert!(!env.scheduler.worker(bob).unwrap().processing.is_empty());
    env.command("release c r-1999");
    assert_eq!(requests(&env.command("balance")), 0);
}

/// Differs from stock, which hands out one or two at a time.
#[test]
fn a_worker_of_ours_has_more_ahead_but_not_more_bytes() {
    let ahead = |nbytes: usize| {
        let mut env = Env::new(Config::default());
        env.command("worker alice kind=native");
        env.command("client c");
        submit_roots(&mut env, "r", 2000, "");
        for number in 0..300 {
            env.command(&format!(
                "finish alice r-{number} took=0.00001 nbytes={nbytes}"
            ));
        }
        let alice = env.worker("alice");
        env.scheduler.worker(alice).unwrap().processing.len()
    };
    assert_eq!(ahead(28), 256);
    assert_eq!(ahead(8 << 10), 32);
    // As many as a worker of stock's.
    assert_eq!(ahead(64 << 10), 16);
    assert_eq!(ahead(1 << 20), 2);
}

/// Differs from stock, which hands out one or two at a time.
#[test]
fn parts_go_ahead_in_numbers_only_if_their_sizes_are_known() {
    let ahead = |kind: &str| {
        let mut env = Env::new(Config::default());
        env.command("worker alice kind=native");
        env.command("client c");
        let names: Vec<String> = (0..1000).map(|number| format!("r-{number}")).collect();
        env.command(&format!(
            "submit c top: {}; top <- {}",
            names.join("; "),
            names.join(" ")
        ));
        let alice = env.worker("alice");
        for _ in 0..100 {
            let mut processing = env.scheduler.worker(alice).unwrap().processing.iter();
            let task = processing.next().unwrap();
            let key = env.scheduler.task(task).unwrap().key.python_str();
            env.command(&format!(
                "finish alice {key} took=0.00001 nbytes=28 type={kind}"
            ));
        }
        env.scheduler.worker(alice).unwrap().processing.len()
    };
    assert_eq!(ahead("int"), 256);
    assert_eq!(ahead("numpy.ndarray"), 256);
    assert_eq!(ahead("Handle"), 4);
}

/// Differs from stock, which hands out one or two at a time.
#[test]
fn tasks_stuck_behind_a_long_one_are_taken_over() {
    let mut env = Env::new(Config::default());
    env.command("worker alice");
    env.command("client c");
    submit_roots(&mut env, "r", 40, "");
    for number in 0..20 {
        env.command(&format!("finish alice r-{number} took=0.0005"));
    }
    let alice = env.worker("alice");
    let stuck = env.scheduler.worker(alice).unwrap().processing.len();
    assert!(stuck > 10, "{stuck} tasks are ahead");
    env.command("worker bob");
    for number in 36..40 {
        let key = Key::from(format!("r-{number}").as_str());
        let task = env.scheduler.find_task(&key).unwrap();
        if task.processing_on == Some(env.worker("bob")) {
            env.command(&format!("finish bob r-{number} took=0.0005"));
        }
    }
    assert_eq!(requests(&env.command("balance")), 0, "nothing is amiss yet");
    env.command("executing alice r-20 5");
    assert!(requests(&env.command("balance")) > 0);
}

/// Differs from stock, which logs the same from another thread of events.
#[test]
fn every_step_is_logged() {
    let mut env = Env::new(Config::default());
    env.logs_everything = true;
    env.command("worker alice");
    env.command("worker bob");
    env.command("client c");
    env.command("submit c y-1 y-2 y-3: y-1; y-2; y-3 | workers=alice loose=1");
    let events = |env: &mut Env, event: Event| -> Vec<Value> {
        let out = env.handle(event);
        let events = out.into_iter().filter_map(|instruction| match instruction {
            Instruction::LogEvent { topics, message } if &*topics[0] == "stealing" => Some(message),
            _ => None,
        });
        events.collect()
    };
    env.now += 1.1;
    let now = env.now;
    let asked = events(&mut env, Event::Tick);
    let entry: Value = vec![
        Value::Float(now),
        Value::Int(0),
        Value::Key("y-3".into()),
        Value::Float(0.5),
        Value::from("tcp://alice:1"),
        Value::Float(1.5),
        Value::from("tcp://bob:1"),
        Value::Float(0.0),
    ]
    .into();
    let list: Value = vec![entry].into();
    assert_eq!(asked, [Value::Array(vec!["request".into(), list])]);
    let metrics = env.scheduler.stealing_metrics();
    assert_eq!(metrics.request_count_total[0], 1);
    assert_eq!(metrics.request_cost_total[0], 0.5);

    let alice = env.worker("alice");
    let answer = |stimulus_id: &str| Event::StealResponse {
        worker: alice,
        key: "y-3".into(),
        state: Some(Str::from("waiting")),
        stimulus_id: stimulus_id.into(),
    };
    let named = |what: &str, end: &[&str]| -> Value {
        let mut entry = vec![Value::from(what), Value::Key("y-3".into())];
        entry.extend(end.iter().map(|text| Value::from(*text)));
        entry.into()
    };
    assert_eq!(
        events(&mut env, answer("steal-5")),
        [named(
            "stale-response",
            &["waiting", "tcp://alice:1", "steal-5"]
        )]
    );
    assert_eq!(
        events(&mut env, answer("steal-0")),
        [named(
            "confirm",
            &["waiting", "tcp://alice:1", "tcp://bob:1", "steal-0"]
        )]
    );
    assert_eq!(
        events(&mut env, answer("steal-0")),
        [named(
            "already-aborted",
            &["waiting", "tcp://alice:1", "steal-0"]
        )]
    );
}

/// A victim with far more tasks than a round looks at in vain.
fn with_many_impossible_tasks() -> (Env, usize) {
    let mut env = Env::new(Config::default());
    env.command("worker alice");
    env.command("worker bob");
    env.command("client c");
    let count = 500;
    submit_roots(&mut env, "y", count, " | workers=alice");
    (env, count)
}

/// Differs from stock, which looks at every task in every round.
#[test]
fn tasks_behind_many_that_cannot_move_are_found() {
    let (mut env, _) = with_many_impossible_tasks();
    env.command("submit c z-1 : z-1 | workers=alice loose=1 priority=9");
    submit_roots(&mut env, "w", 200, " | workers=alice");
    let mut rounds = 0;
    loop {
        let asked = env.command("balance");
        rounds += 1;
        assert!(rounds < 60, "the one task that can move is never found");
        if requests(&asked) > 0 {
            assert_eq!(asked, ["> alice steal z-1"]);
            return;
        }
    }
}

/// Differs from stock, whose rounds have no end.
#[test]
fn a_round_with_very_many_requests_goes_on_at_once() {
    let mut env = Env::new(Config::default());
    for number in 0..3 {
        env.command(&format!("worker w{number} 500"));
    }
    env.command("client c");
    submit_roots(&mut env, "y", 4500, " | workers=w0 loose=1");
    assert_eq!(requests(&env.command("balance")), 500);
    let next = env.scheduler.next_deadline().unwrap();
    assert!(next - env.now < 0.1, "{}", next - env.now);
    env.now = next;
    let out = env.handle(Event::Tick);
    let is_request = |instruction: &&Instruction| {
        matches!(
            instruction,
            Instruction::ToWorker {
                message: ToWorker::StealRequest { .. },
                ..
            }
        )
    };
    assert_eq!(out.iter().filter(is_request).count(), 500);
}

/// Differs from stock, which has no such event: the clock stands while nothing can be stolen.
#[test]
fn an_idle_scheduler_is_not_woken() {
    let mut env = Env::new(Config::default());
    env.command("worker alice");
    env.command("worker bob");
    env.command("client c");
    assert_eq!(env.scheduler.next_deadline(), None);
    env.command("submit c x: x");
    assert!(env.scheduler.next_deadline().is_some());
    let worker = env.scheduler.find_task(&"x".into()).unwrap().processing_on;
    let run_id = env.scheduler.find_task(&"x".into()).unwrap().run_id;
    env.handle(Event::TaskFinished {
        worker: worker.unwrap(),
        key: "x".into(),
        run_id,
        nbytes: 1,
        r#type: Bytes::new(),
        typename: Str::from("int"),
        metadata: Value::Nil,
        thread: Value::Nil,
        startstops: startstops(env.now, 0.1),
        stimulus_id: "finished".into(),
    });
    assert_eq!(env.scheduler.next_deadline(), None);
}
