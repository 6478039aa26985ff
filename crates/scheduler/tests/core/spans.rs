//! Which span a task belongs to, and what is kept of spans.

use oxidask_scheduler::{Config, Event, Instruction, Instructions, Scheduler, ToClient};
use oxidask_wire::{Key, Map, Value, map};

use crate::env::{Env, metrics, span};

fn env(commands: &[&str]) -> Env {
    let mut env = Env::new(Config::default());
    play(&mut env, commands);
    env
}

fn play(env: &mut Env, commands: &[&str]) {
    for command in commands {
        env.command(command);
    }
}

/// Names of all spans, in order, with the names of their groups.
fn spans(env: &Env) -> Vec<String> {
    let spans = env.scheduler.spans();
    let show = |span: &oxidask_scheduler::spans::Span| {
        let groups = span.groups.iter().map(|group| {
            let group = env.scheduler.group(group).unwrap();
            assert_eq!(group.span_id.as_ref(), Some(&span.id));
            group.name.to_string()
        });
        let past = span.past.iter().map(|group| format!("({})", group.name));
        let groups: Vec<String> = groups.chain(past).collect();
        format!("{}: {}", span.name.join("/"), groups.join(" "))
    };
    spans.map(show).collect()
}

/// The annotation `span` of a task.
fn annotation(env: &Env, key: &str) -> Option<Value> {
    let task = env.scheduler.find_task(&Key::from(key)).unwrap();
    task.annotation("span").cloned()
}

/// The span that the worker of a task in processing was told.
fn told(env: &Env, key: &str) -> Option<String> {
    let id = env.scheduler.task_id(&Key::from(key)).unwrap();
    let task = env.scheduler.task(id).unwrap();
    let message = env
        .scheduler
        .compute_task(task.processing_on.unwrap(), id, task.run_id)
        .unwrap();
    message.span_id().map(ToString::to_string)
}

#[test]
fn tasks_without_a_span_share_a_default_one_until_all_are_done() {
    let mut env = env(&["worker alice", "client c", "submit c x: x", "submit c y: y"]);
    assert_eq!(spans(&env), ["default: x y"]);
    let id = env.scheduler.spans().next().unwrap().id.clone();
    assert_eq!(told(&env, "x").as_deref(), Some(&*id));
    assert_eq!(annotation(&env, "x"), None);
    play(&mut env, &["finish alice x", "submit c z: z"]);
    assert_eq!(spans(&env), ["default: x y z"]);
    play(
        &mut env,
        &["finish alice y", "finish alice z", "submit c u: u"],
    );
    assert_eq!(spans(&env), ["default: x y z", "default: u"]);
}

#[test]
fn ids_of_default_spans_differ_and_look_like_those_of_clients() {
    let env = env(&[
        "worker alice",
        "client c",
        "submit c x: x",
        "finish alice x",
        "submit c y: y",
    ]);
    let ids: Vec<_> = env.scheduler.spans().map(|span| span.id.clone()).collect();
    assert_ne!(ids[0], ids[1]);
    for id in ids {
        let parts: Vec<_> = id.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&id[14..15], "4");
        assert!(
            id.chars()
                .all(|digit| digit == '-' || digit.is_ascii_hexdigit())
        );
    }
}

#[test]
fn spans_nest_and_workers_are_told_the_innermost() {
    let mut env = env(&["worker alice", "client c"]);
    env.command("submit c x: x | span=flights/load");
    env.command("submit c y: y | span=flights");
    assert_eq!(spans(&env), ["flights: y", "flights/load: x"]);
    let parents: Vec<_> = env
        .scheduler
        .spans()
        .map(|span| span.parent.as_deref())
        .collect();
    assert_eq!(parents, [None, Some("flights")]);
    assert_eq!(told(&env, "x").as_deref(), Some("flights/load"));
    assert_eq!(annotation(&env, "x"), Some(span("flights/load")));
    assert_eq!(annotation(&env, "y"), Some(span("flights")));
}

#[test]
fn a_group_stays_in_the_span_of_its_first_task() {
    let mut env = env(&["worker alice", "client c"]);
    env.command("submit c x-1: x-1 | span=first");
    env.command("submit c x-2: x-2 | span=second");
    env.command("submit c x-3: x-3 | priority=2");
    env.command("submit c y-1: y-1");
    env.command("submit c y-2: y-2 | span=second");
    assert_eq!(spans(&env), ["first: x", "default: y"]);
    for key in ["x-1", "x-2", "x-3"] {
        assert_eq!(annotation(&env, key), Some(span("first")), "{key}");
    }
    assert_eq!(annotation(&env, "y-1"), None);
    assert_eq!(annotation(&env, "y-2"), None);
    let task = env.scheduler.find_task(&Key::from("x-3")).unwrap();
    assert_eq!(task.annotation("priority"), Some(&Value::Int(2)));
}

#[test]
fn annotations_of_single_tasks_say_their_span() {
    let mut env = env(&["worker alice", "client c"]);
    let mut graph = env.graph("submit c x y z: x ; y ; z | span=all");
    graph.annotations = vec![(1, map! { "span" => span("all/own"), "other" => 1 })];
    env.handle(Event::UpdateGraph(Box::new(graph)));
    assert_eq!(spans(&env), ["all: z x", "all/own: y"]);
    assert_eq!(annotation(&env, "y"), Some(span("all/own")));
    let task = env.scheduler.find_task(&Key::from("y")).unwrap();
    assert_eq!(task.annotation("other"), Some(&Value::Int(1)));
}

#[test]
fn a_graph_by_slices_is_in_its_span() {
    let mut env = Env::new(Config {
        graph_slice: 2,
        ..Config::default()
    });
    play(&mut env, &["worker alice", "client c"]);
    env.command("submit c e: a ; b <- a ; c <- b ; d <- c ; e <- d | span=long");
    env.command("submit c k: f ; g <- f ; h <- g ; i <- h ; k <- i");
    assert_eq!(spans(&env), ["long: a b c d e", "default: f g h i k"]);
    assert_eq!(annotation(&env, "c"), Some(span("long")));
}

#[test]
fn what_a_forgotten_group_did_is_kept() {
    let mut env = env(&[
        "worker alice",
        "client c",
        "submit c x-1 x-2: x-1 ; x-2 | span=work",
        "finish alice x-1 nbytes=10 took=2",
        "finish alice x-2 nbytes=20 took=3",
        "release c x-1 x-2",
    ]);
    assert_eq!(spans(&env), ["work: (x)"]);
    let past = env.scheduler.spans().next().unwrap().past[0].clone();
    assert_eq!(past.size, 2);
    assert_eq!(past.nbytes_total, 30);
    assert_eq!(past.durations_us["compute"], 5_000_000);
    assert_eq!(past.types["int"], 2);
    assert_eq!((past.start, past.stop), (1000.0, 1003.0));
    // The same name again is another group.
    env.command("submit c x-3: x-3 | span=work");
    assert_eq!(spans(&env), ["work: x (x)"]);
    play(&mut env, &["release c x-3", "restart"]);
    assert_eq!(spans(&env), ["work: (x) (x)"]);
}

#[test]
fn forgotten_groups_are_added_up_in_the_end() {
    let mut env = env(&["worker alice", "client c"]);
    for number in 0..250 {
        env.command(&format!("submit c g{number}: g{number} | span=work"));
        env.command(&format!("finish alice g{number} nbytes=10 took=1"));
        env.command(&format!("release c g{number}"));
    }
    let span = env.scheduler.spans().next().unwrap();
    assert_eq!(span.past.len(), 100);
    assert_eq!(&*span.past[0].name, "(others)");
    assert_eq!(&*span.past[99].name, "g249");
    let total = |figure: fn(&oxidask_scheduler::spans::PastGroup) -> i64| {
        span.past.iter().map(figure).sum::<i64>()
    };
    assert_eq!(total(|group| group.size as i64), 250);
    assert_eq!(total(|group| group.nbytes_total), 2500);
    assert_eq!(total(|group| group.durations_us["compute"]), 250_000_000);
}

#[test]
fn code_and_metadata_of_graphs_are_kept() {
    let mut env = env(&["worker alice", "client c"]);
    for (keys, code, note) in [
        ("x", "one", "array"),
        ("y", "one", "bag"),
        ("z", "two", "bag"),
    ] {
        let mut graph = env.graph(&format!("submit c {keys}: {keys} | span=work"));
        graph.code = Value::from(code);
        graph.span_metadata = Value::from(note);
        env.handle(Event::UpdateGraph(Box::new(graph)));
    }
    let span = env.scheduler.spans().next().unwrap();
    let texts = |values: &[Value]| -> Vec<String> {
        let texts = values
            .iter()
            .map(|value| value.as_str().unwrap().to_owned());
        texts.collect()
    };
    assert_eq!(texts(&span.code), ["one", "two"]);
    assert_eq!(texts(&span.metadata), ["array", "bag", "bag"]);
    let computation = env.scheduler.computations().next().unwrap();
    assert_eq!(computation.code.len(), 3);
}

#[test]
fn heartbeats_bring_the_metrics_of_spans() {
    let mut env = env(&["worker alice", "client c"]);
    env.command("submit c x: x | span=work");
    let name = |span: &str, unit: &str| {
        let parts = ["execute", span, "x", "thread-cpu", unit];
        parts
            .iter()
            .map(|&part| Value::from(part))
            .collect::<Value>()
    };
    let mut amounts = Map::new();
    amounts.push(name("work", "seconds"), 1.5);
    amounts.push(name("work", "bytes"), 7);
    amounts.push(name("never-heard-of", "seconds"), 1.0);
    amounts.push("no-tuple", 1.0);
    for _ in 0..2 {
        let worker = env.worker("alice");
        env.handle(Event::Heartbeat {
            worker,
            worker_now: None,
            metrics: metrics(),
            executing: Vec::new(),
            extensions: Value::Map(map! { "spans" => amounts.clone() }),
        });
    }
    let span = env.scheduler.spans().next().unwrap();
    let found: Vec<_> = span
        .metrics
        .iter()
        .map(|(name, &amount)| (name.python_repr(), amount))
        .collect();
    assert_eq!(
        found,
        [
            ("('execute', 'x', 'thread-cpu', 'seconds')".to_owned(), 3.0),
            ("('execute', 'x', 'thread-cpu', 'bytes')".to_owned(), 14.0),
        ]
    );
}

#[test]
fn a_span_knows_how_many_threads_there_were() {
    let mut env = env(&["worker alice 2", "client c"]);
    env.command("submit c x: x");
    env.now = 1010.0;
    play(&mut env, &["worker bob 3"]);
    env.now = 1020.0;
    play(&mut env, &["remove alice", "submit c y: y | span=late"]);
    let (dropped, history) = env.scheduler.nthreads_history();
    assert_eq!(dropped, 0);
    let history: Vec<_> = history.collect();
    assert_eq!(history, [(0.0, 0), (1000.0, 2), (1010.0, 5), (1020.0, 3)]);
    let found: Vec<_> = env
        .scheduler
        .spans()
        .map(|span| (span.enqueued, span.nthreads_offset))
        .collect();
    assert_eq!(found, [(1000.0, 1), (1020.0, 3)]);
}

#[test]
fn a_span_of_the_wrong_shape_fails_its_graph() {
    for wrong in [
        Value::from("work"),
        Value::Map(map! { "name" => Value::Array(Vec::new()), "ids" => Value::Array(Vec::new()) }),
        Value::Map(map! {
            "name" => Value::Array(vec!["a".into(), "b".into()]),
            "ids" => Value::Array(vec!["a".into()]),
        }),
        Value::Map(map! {
            "name" => Value::Array(vec![1.into()]),
            "ids" => Value::Array(vec!["a".into()]),
        }),
    ] {
        let mut env = env(&["worker alice", "client c"]);
        let mut graph = env.graph("submit c x: x");
        graph.annotations = vec![(0, map! { "span" => wrong })];
        let out = env.handle(Event::UpdateGraph(Box::new(graph)));
        assert!(out.iter().any(|instruction| matches!(
            instruction,
            Instruction::ToClient {
                message: ToClient::TaskErred { .. },
                ..
            }
        )));
        assert!(env.scheduler.task_id(&Key::from("x")).is_none());
    }
}

#[test]
fn old_spans_are_forgotten_beyond_a_bound() {
    let mut env = env(&["worker alice", "client c"]);
    env.command("submit c kept: kept | span=kept/within");
    let mut out = Instructions::default();
    for number in 0..10_010 {
        let key = format!("x-{number}");
        let graph = env.graph(&format!("submit c {key}: {key} | span=s{number}"));
        handle(
            &mut env.scheduler,
            Event::UpdateGraph(Box::new(graph)),
            &mut out,
        );
        let release = Event::ClientReleasesKeys {
            client: "c".into(),
            keys: vec![Key::from(key.as_str())],
            stimulus_id: "release".into(),
        };
        handle(&mut env.scheduler, release, &mut out);
    }
    env.scheduler.validate();
    let names: Vec<_> = env
        .scheduler
        .spans()
        .map(|span| span.name.join("/"))
        .collect();
    assert_eq!(names.len(), 10_000);
    assert_eq!(names[..2], ["kept", "kept/within"]);
    assert_eq!(names[9_999], "s10009");
}

/// Handles an event without looking at the whole state, which has grown large.
fn handle(scheduler: &mut Scheduler, event: Event, out: &mut Instructions) {
    scheduler.handle(1000.0, event, out);
    out.0.clear();
}
