//! P2P shuffles: layout, barrier, lost workers, restarts.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets anything else has failed"
)]

mod env;

use env::Env;
use oxidask_scheduler::extensions::InputsDone;
use oxidask_scheduler::{
    ClientId, Event, Instruction, Instructions, RequestId, RunSpec, State, ToWorker, WorkerId,
};
use oxidask_wire::{Key, Value, map};

const A: &str = "tcp://a:1";
const B: &str = "tcp://b:1";
const C: &str = "tcp://c:1";

/// Two transfer tasks, a barrier, three outputs.
const SHUFFLE: &[(&str, &[&str])] = &[
    ("t0", &[]),
    ("t1", &[]),
    ("shuffle-barrier-s", &["t0", "t1"]),
    ("o0", &["shuffle-barrier-s"]),
    ("o1", &["shuffle-barrier-s"]),
    ("o2", &["shuffle-barrier-s"]),
];

struct Cluster {
    env: Env,
    client: ClientId,
    a: WorkerId,
    b: WorkerId,
    c: WorkerId,
}

/// Three workers and the graph of [`SHUFFLE`], transfers running.
fn cluster() -> Cluster {
    let mut env = Env::new();
    let client = env.add_client("client");
    let [a, b, c] = [A, B, C].map(|address| env.add_worker(address));
    env.submit(client, SHUFFLE, &["o0", "o1", "o2"]);
    env.take();
    Cluster {
        env,
        client,
        a,
        b,
        c,
    }
}

fn get_or_create(env: &mut Env, shuffle: &str, key: &str, worker: &str) -> RequestId {
    env.request(
        "shuffle_get_or_create",
        map! { "shuffle_id" => shuffle, "key" => key, "worker" => worker },
    )
}

fn get(env: &mut Env, worker: &str) -> Value {
    env.call("shuffle_get", map! { "id" => "s", "worker" => worker })
        .unwrap()
}

fn barrier(env: &mut Env, run_id: i64, consistent: bool) -> RequestId {
    env.request(
        "shuffle_barrier",
        map! { "id" => "s", "run_id" => run_id, "consistent" => consistent },
    )
}

fn restrict(env: &mut Env, run_id: i64, key: &str, worker: &str) -> Result<Value, String> {
    env.call(
        "shuffle_restrict_task",
        map! { "id" => "s", "run_id" => run_id, "key" => key, "worker" => worker },
    )
}

/// The run in an answer of `shuffle_get` and `shuffle_get_or_create`.
fn run_of(answer: &Value) -> String {
    let answer = answer.as_map().unwrap();
    assert_eq!(answer.get("status"), Some(&Value::from("OK")), "{answer:?}");
    let Some(Value::Pickled(run_spec)) = answer.get("run_spec") else {
        panic!("{answer:?}")
    };
    String::from_utf8(run_spec.pickle().unwrap().to_vec()).unwrap()
}

fn error_of(answer: &Value) -> String {
    let answer = answer.as_map().unwrap();
    assert_eq!(
        answer.get("status"),
        Some(&Value::from("error")),
        "{answer:?}"
    );
    assert!(matches!(
        answer.get("exception"),
        Some(Value::Serialized(_))
    ));
    answer
        .get("exception_text")
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned()
}

/// Creates run 1 as the worker of `t0` would.
fn create(env: &mut Env) -> RequestId {
    let worker = address_of(env, "t0");
    let request = get_or_create(env, "s", "t0", &worker);
    let [create] = &env.take_creations()[..] else {
        panic!("no run is asked for")
    };
    env.lay_out(create, 3);
    request
}

fn address_of(env: &Env, key: &str) -> String {
    let worker = env.processing_on(key).unwrap();
    env.scheduler.worker(worker).unwrap().address.to_string()
}

/// Brings the shuffle past its barrier.
fn pass_barrier(env: &mut Env) {
    create(env);
    env.finish("t0");
    env.finish("t1");
    let request = barrier(env, 1, true);
    env.inputs_done(
        request,
        &[
            (A, InputsDone::Done),
            (B, InputsDone::Done),
            (C, InputsDone::Done),
        ],
    );
    assert_eq!(env.outcome(request), Some(Ok(Value::Nil)));
    env.finish("shuffle-barrier-s");
    env.take();
}

/// (address, run, message) of every `shuffle-fail` since the last time.
fn fails(instructions: &[Instruction], env: &Env) -> Vec<(String, i64, String)> {
    let fails = instructions.iter().filter_map(|instruction| {
        let Instruction::ToWorker { worker, message } = instruction else {
            return None;
        };
        let ToWorker::ShuffleFail {
            run_id, message, ..
        } = message
        else {
            return None;
        };
        let worker = env.scheduler.worker(*worker).unwrap();
        Some((worker.address.to_string(), *run_id, message.clone()))
    });
    fails.collect()
}

fn restrictions(env: &Env, key: &str) -> Vec<String> {
    let task = env.scheduler.find_task(&Key::from(key)).unwrap();
    task.worker_restrictions()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn the_first_transfer_creates_and_others_join() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    let first = get_or_create(env, "s", "t0", &address_of(env, "t0"));
    let [create] = &env.take_creations()[..] else {
        panic!("no run is asked for")
    };
    assert_eq!(create.run_id, 1);
    assert_eq!(create.spec, RunSpec::Pickle("shuffle-barrier-s".into()));
    assert_eq!(
        create
            .workers
            .iter()
            .map(|worker| &**worker)
            .collect::<Vec<_>>(),
        [A, B, C]
    );
    assert!(create.existing.is_empty());

    let second = get_or_create(env, "s", "t1", &address_of(env, "t1"));
    assert_eq!((env.outcome(first), env.outcome(second)), (None, None));
    assert!(env.take_creations().is_empty(), "one layout is enough");
    env.lay_out(create, 3);
    for request in [first, second] {
        assert_eq!(run_of(&env.outcome(request).unwrap().unwrap()), "run 1");
    }
    assert_eq!(run_of(&get(env, C)), "run 1");
    let active: Vec<_> = env.extensions.active_shuffles().collect();
    assert_eq!(active, [(&"s".into(), 1)]);
    for key in ["o0", "o1", "o2"] {
        assert!(!env.scheduler.find_task(&Key::from(key)).unwrap().queueable);
    }
    assert_eq!(env.extensions.waiting_count(), 0);
}

#[test]
fn candidates_turn_from_run_to_run() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    env.submit(
        cluster.client,
        &[
            ("u", &[]),
            ("shuffle-barrier-r", &["u"]),
            ("p", &["shuffle-barrier-r"]),
        ],
        &["p"],
    );
    create(env);
    // All threads are taken, so it runs on any; what counts is that it runs.
    let worker = address_of(env, "u");
    get_or_create(env, "r", "u", &worker);
    let [create] = &env.take_creations()[..] else {
        panic!("no run is asked for")
    };
    assert_eq!(create.run_id, 2);
    assert_eq!(
        create
            .workers
            .iter()
            .map(|worker| &**worker)
            .collect::<Vec<_>>(),
        [B, C, A]
    );
}

#[test]
fn siblings_are_laid_out_alike_even_when_created_at_once() {
    let mut env = Env::new();
    let client = env.add_client("client");
    env.add_worker(A);
    env.add_worker(B);
    let join: &[(&str, &[&str])] = &[
        ("l", &[]),
        ("r", &[]),
        ("shuffle-barrier-left", &["l"]),
        ("shuffle-barrier-right", &["r"]),
        ("m0", &["shuffle-barrier-left", "shuffle-barrier-right"]),
        ("m1", &["shuffle-barrier-left", "shuffle-barrier-right"]),
    ];
    env.submit(client, join, &["m0", "m1"]);
    env.take();
    let left = get_or_create(&mut env, "left", "l", A);
    let right = get_or_create(&mut env, "right", "r", B);
    let creations = env.take_creations();
    assert_eq!(creations.len(), 1, "the second waits for the first");
    env.lay_out(&creations[0], 4);
    assert_eq!(run_of(&env.outcome(left).unwrap().unwrap()), "run 1");
    assert_eq!(env.outcome(right), None);
    let creations = env.take_creations();
    assert_eq!(&*creations[0].shuffle_id, "right");
    let existing: Vec<_> = creations[0]
        .existing
        .iter()
        .map(|(_, worker)| &**worker)
        .collect();
    assert_eq!(existing, [A, B, A, B]);
    env.lay_out(&creations[0], 4);
    assert_eq!(run_of(&env.outcome(right).unwrap().unwrap()), "run 2");
}

#[test]
fn requests_that_cannot_be_served_say_why() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    let missing = get(env, A);
    assert_eq!(
        error_of(&missing),
        "P2PConsistencyError(\"No active shuffle with id='s' found\")"
    );
    let ask = |env: &mut Env, shuffle: &str, key: &str, worker: &str| {
        let request = get_or_create(env, shuffle, key, worker);
        env.outcome(request).unwrap()
    };
    let stranger = ask(env, "s", "t0", "tcp://x:1").unwrap();
    assert_eq!(
        error_of(&stranger),
        "P2PConsistencyError(\"Scheduler is unaware of this worker 'tcp://x:1'\")"
    );
    let unknown = error_of(&ask(env, "nope", "t0", A).unwrap());
    assert!(
        unknown.starts_with(
            "P2PConsistencyError(\"Barrier task with key 'shuffle-barrier-nope' does not exist. This may be"
        ),
        "{unknown}"
    );
    let idle = error_of(&ask(env, "s", "o0", A).unwrap());
    assert_eq!(
        idle,
        "P2PConsistencyError(\"Expected <TaskState 'o0' waiting> to be processing, is waiting.\")"
    );
    assert_eq!(ask(env, "s", "gone", A), Err("KeyError('gone')".into()));
    let request = barrier(env, 1, true);
    assert_eq!(env.outcome(request), Some(Err("KeyError('s')".into())));
    assert_eq!(restrict(env, 1, "o0", A), Err("KeyError('s')".into()));
    create(env);
    let request = barrier(env, 7, true);
    assert_eq!(
        env.outcome(request),
        Some(Err(
            "ValueError('run_id=7 does not match SchedulerShuffleState<s[1]>')".into()
        ))
    );
    assert_eq!(env.extensions.waiting_count(), 0);
}

#[test]
fn stale_and_invalid_runs_may_not_restrict() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    create(env);
    assert_eq!(
        error_of(&restrict(env, 0, "o0", A).unwrap()),
        "P2PConsistencyError('Request stale, expected run_id=0 for SchedulerShuffleState<s[1]>')"
    );
    assert_eq!(
        error_of(&restrict(env, 2, "o0", A).unwrap()),
        "P2PConsistencyError('Request invalid, expected run_id=2 for SchedulerShuffleState<s[1]>')"
    );
    assert_eq!(restrict(env, 1, "gone", A), Err("KeyError('gone')".into()));
    assert_eq!(
        restrict(env, 1, "o0", C),
        Ok(map! { "status" => "OK" }.into())
    );
    assert_eq!(
        restrict(env, 1, "o0", A),
        Ok(map! { "status" => "OK" }.into())
    );
    assert_eq!(restrictions(env, "o0"), [C], "the first one counts");
}

#[test]
fn the_barrier_tells_every_participant() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    create(env);
    env.finish("t0");
    env.finish("t1");
    env.take();
    let request = barrier(env, 1, true);
    let asked = |env: &mut Env| -> Vec<String> {
        let asked = env
            .take()
            .into_iter()
            .find_map(|instruction| match instruction {
                Instruction::ShuffleInputsDone {
                    workers, run_id: 1, ..
                } => Some(workers),
                _ => None,
            });
        asked
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(asked(env), [A, B, C]);
    env.inputs_done(
        request,
        &[
            (A, InputsDone::Done),
            (B, InputsDone::Unreachable),
            (C, InputsDone::Done),
        ],
    );
    assert_eq!(env.outcome(request), None);
    env.advance(0.05);
    assert!(asked(env).is_empty());
    env.advance(0.1);
    assert_eq!(asked(env), [B]);
    env.inputs_done(request, &[(B, InputsDone::Done)]);
    assert_eq!(env.outcome(request), Some(Ok(Value::Nil)));
}

#[test]
fn the_barrier_gives_up_without_progress() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    create(env);
    let request = barrier(env, 1, true);
    let all = [A, B, C].map(|worker| (worker, InputsDone::Unreachable));
    for _ in 0..3 {
        assert_eq!(env.outcome(request), None);
        env.inputs_done(request, &all);
        env.advance(0.2);
    }
    let text = env.outcome(request).unwrap().unwrap_err();
    assert!(
        text.starts_with(
            "RuntimeError('Broadcast not making progress for SchedulerShuffleState<s[1]>.\\n    "
        ),
        "{text}"
    );
    assert_eq!(env.extensions.next_deadline(), None);
}

#[test]
fn the_barrier_fails_on_any_other_answer() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    create(env);
    let request = barrier(env, 1, true);
    env.inputs_done(
        request,
        &[
            (A, InputsDone::Done),
            (B, InputsDone::Unexpected("ValueError('x')".into())),
        ],
    );
    assert_eq!(
        env.outcome(request),
        Some(Err(
            "RuntimeError(\"Unexpected error encountered during P2P barrier: ValueError('x')\")"
                .into()
        ))
    );
}

#[test]
fn a_barrier_whose_worker_left_fails_with_the_run() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    create(env);
    let request = barrier(env, 1, true);
    env.remove_worker(cluster.c, "lost");
    env.inputs_done(request, &[(C, InputsDone::Unreachable)]);
    assert_eq!(
        env.outcome(request),
        Some(Err(
            "RuntimeError(\"Worker ['tcp://c:1'] left during shuffle SchedulerShuffleState<s[1]>\")".into()
        ))
    );
}

#[test]
fn an_inconsistent_barrier_restarts() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    create(env);
    env.finish("t0");
    env.finish("t1");
    assert_eq!(env.state("shuffle-barrier-s"), Some(State::Processing));
    env.take();
    let request = barrier(env, 1, false);
    assert_eq!(env.outcome(request), Some(Ok(Value::Nil)));
    assert_eq!(env.state("t0"), Some(State::Processing));
    assert_eq!(env.state("t1"), Some(State::Processing));
    assert_eq!(env.state("shuffle-barrier-s"), Some(State::Waiting));
    assert_eq!(
        env.extensions.active_shuffles().count(),
        0,
        "the barrier left processing"
    );
    let request = create_again(env);
    assert_eq!(run_of(&env.outcome(request).unwrap().unwrap()), "run 2");
}

fn create_again(env: &mut Env) -> RequestId {
    let worker = address_of(env, "t0");
    let request = get_or_create(env, "s", "t0", &worker);
    let [create] = &env.take_creations()[..] else {
        panic!("no run is asked for")
    };
    env.lay_out(create, 3);
    request
}

#[test]
fn a_worker_lost_while_the_layout_is_made_starts_it_anew() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    let idle = [cluster.a, cluster.b, cluster.c]
        .into_iter()
        .find(|worker| {
            ["t0", "t1"]
                .iter()
                .all(|key| env.processing_on(key) != Some(*worker))
        })
        .unwrap();
    let request = get_or_create(env, "s", "t0", &address_of(env, "t0"));
    let first = env.take_creations().remove(0);
    env.remove_worker(idle, "lost");
    env.take();
    env.lay_out(&first, 3);
    assert_eq!(env.outcome(request), None);
    let second = env.take_creations().remove(0);
    assert_eq!((second.run_id, second.workers.len()), (2, 2));
    env.lay_out(&first, 3);
    assert_eq!(
        env.outcome(request),
        None,
        "a late answer to the first question"
    );
    env.lay_out(&second, 3);
    assert_eq!(run_of(&env.outcome(request).unwrap().unwrap()), "run 2");
}

#[test]
fn the_helpers_failure_reaches_every_transfer() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    let first = get_or_create(env, "s", "t0", &address_of(env, "t0"));
    let second = get_or_create(env, "s", "t1", &address_of(env, "t1"));
    let create = env.take_creations().remove(0);
    let failure = oxidask_scheduler::Failure {
        exception: "pickle".into(),
        text: "OSError('helper')".into(),
    };
    let mut out = Instructions::default();
    let now = env.now;
    env.extensions.shuffle_run_failed(
        &mut env.scheduler,
        now,
        &create.shuffle_id,
        create.run_id,
        &failure,
        &mut out,
    );
    let replies = out.iter().map(|instruction| match instruction {
        Instruction::Reply {
            request,
            result: Err(failure),
        } => (*request, failure.text.clone()),
        other => panic!("{other:?}"),
    });
    let replies: Vec<_> = replies.collect();
    assert_eq!(
        replies,
        [
            (first, "OSError('helper')".to_owned()),
            (second, "OSError('helper')".to_owned())
        ]
    );
    create_again(env);
}

#[test]
fn a_layout_for_tasks_that_are_gone_is_dropped() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    let request = get_or_create(env, "s", "t0", &address_of(env, "t0"));
    let create = env.take_creations().remove(0);
    env.remove_client(cluster.client);
    assert_eq!(env.state("shuffle-barrier-s"), None);
    env.lay_out(&create, 3);
    let text = error_of(&env.outcome(request).unwrap().unwrap());
    assert!(
        text.contains("'shuffle-barrier-s' does not exist"),
        "{text}"
    );
    assert_eq!(env.extensions.active_shuffles().count(), 0);

    // And one that nobody waits for any more.
    let client = env.add_client("again");
    env.submit(client, SHUFFLE, &["o0"]);
    let request = get_or_create(env, "s", "t0", &address_of(env, "t0"));
    let create = env.take_creations().remove(0);
    env.cancel(request);
    env.lay_out(&create, 3);
    assert_eq!(env.extensions.active_shuffles().count(), 0);
}

#[test]
fn a_participant_lost_in_transfer_restarts_the_shuffle() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    create(env);
    env.finish("t0");
    let lost = [cluster.a, cluster.b, cluster.c]
        .into_iter()
        .find(|worker| env.processing_on("t1") != Some(*worker) && !holds(env, *worker, "t0"))
        .unwrap();
    env.take();
    env.remove_worker(lost, "lost");
    let out = env.take();
    let fails = fails(&out, env);
    assert_eq!(fails.len(), 2);
    for (_, run_id, message) in &fails {
        assert_eq!(*run_id, 1);
        assert!(
            message.ends_with(" left during active SchedulerShuffleState<s[1]>"),
            "{message}"
        );
    }
    let position = |matches: fn(&ToWorker) -> bool| {
        out.iter().position(|instruction| {
            matches!(instruction, Instruction::ToWorker { message, .. } if matches(message))
        })
    };
    let fail = position(|message| matches!(message, ToWorker::ShuffleFail { .. }));
    let compute = position(|message| matches!(message, ToWorker::ComputeTask { .. }));
    assert!(
        fail < compute,
        "tasks of the next run must not meet the old one"
    );
    assert_eq!(env.state("t0"), Some(State::Processing));
    assert_eq!(env.state("t1"), Some(State::Processing));
    assert_eq!(env.extensions.active_shuffles().count(), 0);
    let request = create_again(env);
    assert_eq!(run_of(&env.outcome(request).unwrap().unwrap()), "run 2");
}

fn holds(env: &Env, worker: WorkerId, key: &str) -> bool {
    let task = env.scheduler.find_task(&Key::from(key)).unwrap();
    task.who_has.contains(worker)
}

#[test]
fn a_worker_that_takes_no_part_may_leave() {
    let mut env = Env::new();
    let client = env.add_client("client");
    env.add_worker(A);
    env.submit(client, SHUFFLE, &["o0"]);
    env.take();
    create(&mut env);
    let late = env.add_worker(B);
    env.take();
    env.remove_worker(late, "lost");
    assert!(fails(&env.take(), &env).is_empty());
    assert_eq!(env.extensions.active_shuffles().count(), 1);
    // Once it has asked for the run it takes part.
    let late = env.add_worker(B);
    get(&mut env, B);
    env.take();
    env.remove_worker(late, "lost again");
    assert_eq!(fails(&env.take(), &env).len(), 1);
    assert_eq!(env.extensions.active_shuffles().count(), 0);
}

#[test]
fn the_holder_of_the_barrier_lost_restarts_through_the_archive() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    pass_barrier(env);
    for (key, worker) in [("o0", A), ("o1", B), ("o2", C)] {
        restrict(env, 1, key, worker).unwrap();
    }
    let holder = [cluster.a, cluster.b, cluster.c]
        .into_iter()
        .find(|worker| holds(env, *worker, "shuffle-barrier-s"))
        .unwrap();
    env.take();
    env.remove_worker(holder, "lost");
    let fails = fails(&env.take(), env);
    assert_eq!(fails.len(), 2, "once per participant that is left");
    for (_, run_id, message) in fails {
        assert_eq!(
            (run_id, message.as_str()),
            (1, "SchedulerShuffleState<s[1]> forgotten")
        );
    }
    assert_eq!(env.state("t0"), Some(State::Processing));
    assert_eq!(env.state("t1"), Some(State::Processing));
    assert_eq!(env.state("shuffle-barrier-s"), Some(State::Waiting));
    for key in ["o0", "o1", "o2"] {
        assert_eq!(env.state(key), Some(State::Waiting));
        assert!(
            restrictions(env, key).is_empty(),
            "{key} may run anywhere again"
        );
    }
}

#[test]
fn a_participant_lost_after_the_barrier_restarts_from_the_transfers() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    pass_barrier(env);
    let lost = [cluster.a, cluster.b, cluster.c]
        .into_iter()
        .find(|worker| !holds(env, *worker, "shuffle-barrier-s"))
        .unwrap();
    let address = env.scheduler.worker(lost).unwrap().address.to_string();
    restrict(env, 1, "o0", &address).unwrap();
    env.take();
    env.remove_worker(lost, "lost");
    assert_eq!(fails(&env.take(), env).len(), 2);
    assert_eq!(env.state("t0"), Some(State::Processing));
    assert_eq!(env.state("shuffle-barrier-s"), Some(State::Waiting));
    assert_eq!(env.state("o0"), Some(State::Waiting));
    assert!(restrictions(env, "o0").is_empty());

    // The second run goes through.
    create_again(env);
    env.finish("t0");
    env.finish("t1");
    env.finish("shuffle-barrier-s");
    for key in ["o0", "o1", "o2"] {
        env.finish(key);
    }
    assert_eq!(env.state("o2"), Some(State::Memory));
}

#[test]
fn restrictions_that_the_user_set_come_back() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    create(env);
    env.event(Event::SetRestrictions {
        worker: vec![("o0".into(), env::list(&[A, B]))],
    });
    restrict(env, 1, "o0", B).unwrap();
    assert_eq!(restrictions(env, "o0"), [B]);
    env.remove_worker(cluster.c, "lost");
    assert_eq!(restrictions(env, "o0"), [A, B]);
}

#[test]
fn a_shuffle_whose_output_failed_is_not_restarted() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    env.client_stream(cluster.client, "subscribe-topic", map! { "topic" => "p2p" });
    pass_barrier(env);
    env.take();
    env.fail("o0");
    let events = env.take_events(cluster.client);
    let [(topic, event)] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(&**topic, "p2p");
    let event = event.as_map().unwrap();
    assert_eq!(event.get("action"), Some(&Value::from("p2p-failed")));
    assert_eq!(event.get("shuffle"), Some(&Value::from("s")));
    env.fail("o1");
    assert!(env.take_events(cluster.client).is_empty(), "once per run");
    let lost = [cluster.a, cluster.b, cluster.c]
        .into_iter()
        .find(|worker| !holds(env, *worker, "shuffle-barrier-s"))
        .unwrap();
    env.remove_worker(lost, "lost");
    assert_ne!(env.state("t0"), Some(State::Processing));
    assert_eq!(env.extensions.active_shuffles().count(), 0);
}

#[test]
fn forgetting_the_barrier_ends_the_run() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    pass_barrier(env);
    restrict(env, 1, "o0", A).unwrap();
    env.take();
    env.remove_client(cluster.client);
    let out = env.take();
    let fails = fails(&out, env);
    assert_eq!(fails.len(), 3);
    assert!(
        fails
            .iter()
            .all(|(_, _, message)| message.ends_with("forgotten"))
    );
    assert_eq!(env.state("shuffle-barrier-s"), None);

    // The same shuffle again: nothing of the old one shows.
    let client = env.add_client("again");
    env.submit(client, SHUFFLE, &["o0"]);
    env.take();
    let request = create_again(env);
    assert_eq!(run_of(&env.outcome(request).unwrap().unwrap()), "run 2");
    restrict(env, 2, "o0", B).unwrap();
    assert_eq!(restrictions(env, "o0"), [B]);
}

#[test]
fn a_finished_shuffle_releases_its_barrier_and_so_ends() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    pass_barrier(env);
    for key in ["o0", "o1", "o2"] {
        env.finish(key);
    }
    assert_eq!(env.state("o0"), Some(State::Memory));
    assert_eq!(env.state("shuffle-barrier-s"), Some(State::Released));
    assert_eq!(env.extensions.active_shuffles().count(), 0);
    // Its workers may leave without setting anything in motion.
    env.take();
    env.remove_worker(cluster.a, "lost");
    assert!(fails(&env.take(), env).is_empty());
}

#[test]
fn a_restart_of_the_cluster_forgets_all_shuffles() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    let waiting = get_or_create(env, "s", "t0", &address_of(env, "t0"));
    let create = env.take_creations().remove(0);
    env.event(Event::Restart {
        stimulus_id: "restart".into(),
    });
    assert_eq!(
        error_of(&env.outcome(waiting).unwrap().unwrap()),
        "P2PConsistencyError(\"No active shuffle with id='s' found\")"
    );
    env.lay_out(&create, 3);
    assert_eq!(env.extensions.active_shuffles().count(), 0);
    env.submit(cluster.client, SHUFFLE, &["o0"]);
    let request = create_again(env);
    assert_eq!(
        run_of(&env.outcome(request).unwrap().unwrap()),
        "run 2",
        "numbers go on"
    );
}

#[test]
fn participants_are_not_scaled_away() {
    let mut cluster = cluster();
    let env = &mut cluster.env;
    create(env);
    assert_eq!(
        env.call("workers_to_close", map! { "n" => 3 }),
        Ok(env::list(&[]))
    );
    env.add_worker("tcp://d:1");
    assert_eq!(
        env.call("workers_to_close", map! { "n" => 3 }),
        Ok(env::list(&["tcp://d:1"]))
    );
}
