//! Event topics, task stream, task metadata, memory samplers.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets anything else has failed"
)]

mod env;

use env::{Env, list};
use oxidask_scheduler::{Instruction, ToClient};
use oxidask_wire::{Key, Map, Value, map};

#[test]
fn events_are_kept_and_delivered() {
    let mut env = Env::new();
    let client = env.add_client("client");
    let worker = env.add_worker("tcp://a:1");
    env.take();
    env.client_stream(client, "subscribe-topic", map! { "topic" => "t" });
    env.call(
        "log_event",
        map! { "topic" => list(&["t", "u"]), "msg" => 1 },
    )
    .unwrap();
    let message = map! { "topic" => "t", "msg" => map! { "a" => 2 } };
    env.worker_stream(worker, "log-event", message);
    let from_worker: Value = map! { "a" => 2, "worker" => "tcp://a:1" }.into();
    assert_eq!(
        env.take_events(client),
        [
            ("t".into(), Value::from(1)),
            ("t".into(), from_worker.clone())
        ]
    );
    let event = |message: Value| Value::from(vec![Value::Float(1000.0), message]);
    let expected = Value::from(vec![event(Value::from(1)), event(from_worker)]);
    assert_eq!(env.call("events", map! { "topic" => "t" }), Ok(expected));
    env.client_stream(client, "unsubscribe-topic", map! { "topic" => "t" });
    env.call("log_event", map! { "topic" => "t", "msg" => 3 })
        .unwrap();
    assert!(env.take_events(client).is_empty());
    assert_eq!(
        env.call("events", map! { "topic" => "nothing" }),
        Ok(list(&[]))
    );
    let all = env.call("events", Map::new()).unwrap();
    let topics: Vec<_> = all
        .as_map()
        .unwrap()
        .iter()
        .map(|(name, _)| name.as_str().unwrap())
        .collect();
    assert_eq!(topics, ["all", "client", "tcp://a:1", "t", "u"]);
}

#[test]
fn a_topic_keeps_its_last_thousand_events() {
    let mut env = Env::new();
    for number in 0..1500 {
        env.call("log_event", map! { "topic" => "t", "msg" => number })
            .unwrap();
    }
    let events = env.call("events", map! { "topic" => "t" }).unwrap();
    let events = events.as_array().unwrap();
    assert_eq!(events.len(), 1000);
    assert_eq!(events[0].as_array().unwrap()[1], Value::from(500));
}

#[test]
fn topics_of_those_who_left_go_after_an_hour() {
    let mut env = Env::new();
    let client = env.add_client("client");
    let a = env.add_worker("tcp://a:1");
    let b = env.add_worker("tcp://b:1");
    env.client_stream(client, "subscribe-topic", map! { "topic" => "t" });
    env.remove_client(client);
    env.remove_worker(a, "left");
    env.remove_worker(b, "left");
    env.add_worker("tcp://b:1");
    let has = |env: &mut Env, topic: &str| {
        let events = env.call("events", map! { "topic" => topic }).unwrap();
        !events.as_array().unwrap().is_empty()
    };
    env.advance(3599.0);
    for topic in ["client", "tcp://a:1", "tcp://b:1"] {
        assert!(has(&mut env, topic));
    }
    env.advance(1.0);
    assert!(!has(&mut env, "client"));
    assert!(!has(&mut env, "tcp://a:1"));
    assert!(has(&mut env, "tcp://b:1"), "it is back");
}

fn keys_of(records: &Value) -> Vec<String> {
    let keys = records.as_array().unwrap().iter().map(|record| {
        let key = record.as_map().unwrap().get("key").unwrap();
        Key::from_value(key).unwrap().python_str()
    });
    keys.collect()
}

#[test]
fn the_task_stream_records_from_the_first_question_on() {
    let mut env = Env::new();
    let client = env.add_client("client");
    env.add_worker("tcp://a:1");
    let run = |env: &mut Env, key: &str, fails: bool| {
        env.submit(client, &[(key, &[])], &[key]);
        if fails {
            env.fail(key)
        } else {
            env.finish(key)
        }
        env.advance(1.0);
    };
    run(&mut env, "before", false);
    assert_eq!(
        env.call("get_task_stream_index", Map::new()),
        Ok(Value::from(0))
    );
    run(&mut env, "x", false);
    run(&mut env, "y", true);
    run(&mut env, "z", false);
    let stream = |env: &mut Env, arguments: Map| {
        let records = env.call("get_task_stream", arguments).unwrap();
        keys_of(&records)
    };
    assert_eq!(stream(&mut env, Map::new()), ["x", "y", "z"]);
    assert_eq!(stream(&mut env, map! { "count" => 2 }), ["y", "z"]);
    assert_eq!(stream(&mut env, map! { "start_index" => 1 }), ["y", "z"]);
    assert_eq!(
        stream(&mut env, map! { "start_index" => -5 }),
        ["x", "y", "z"]
    );
    assert_eq!(stream(&mut env, map! { "start" => 1002.0 }), ["y", "z"]);
    assert_eq!(
        stream(&mut env, map! { "start" => 1002.0, "count" => 1 }),
        ["y"]
    );
    assert_eq!(
        stream(&mut env, map! { "stop" => 1002.0, "count" => 1 }),
        ["x"]
    );
    assert_eq!(stream(&mut env, map! { "start" => "1.5 s" }), ["z"]);
    let records = env.call("get_task_stream", Map::new()).unwrap();
    let [x, y, _] = records.as_array().unwrap() else {
        panic!("{records:?}")
    };
    let field = |record: &Value, name: &str| record.as_map().unwrap().get(name).cloned().unwrap();
    assert_eq!(field(x, "status"), Value::from("OK"));
    assert_eq!(field(x, "worker"), Value::from("tcp://a:1"));
    assert_eq!(field(x, "nbytes"), Value::from(100));
    assert_eq!(field(x, "thread"), Value::from(7));
    assert_eq!(field(y, "status"), Value::from("error"));
}

#[test]
fn collectors_gather_what_becomes_of_submitted_keys() {
    let mut env = Env::new();
    let client = env.add_client("client");
    env.add_worker("tcp://a:1");
    env.submit(client, &[("before", &[])], &["before"]);
    env.call("start_task_metadata", map! { "name" => "m" })
        .unwrap();
    env.submit(
        client,
        &[("x", &[]), ("y", &[]), ("z", &["y"])],
        &["x", "y", "z"],
    );
    for key in ["before", "x"] {
        env.finish(key);
    }
    env.fail("y");
    let collected = env
        .call("stop_task_metadata", map! { "name" => "m" })
        .unwrap();
    let part = |name: &str| -> Vec<(String, Value)> {
        let map = collected
            .as_map()
            .unwrap()
            .get(name)
            .unwrap()
            .as_map()
            .unwrap();
        let mut pairs: Vec<_> = map
            .iter()
            .map(|(key, value)| (Key::from_value(key).unwrap().python_str(), value.clone()))
            .collect();
        pairs.sort_by(|left, right| left.0.cmp(&right.0));
        pairs
    };
    let text = |value: &str| Value::from(value);
    assert_eq!(
        part("state"),
        [
            ("x".into(), text("memory")),
            ("y".into(), text("erred")),
            ("z".into(), text("erred"))
        ]
    );
    assert_eq!(
        part("metadata"),
        [
            ("x".into(), map! { "seen" => "x" }.into()),
            ("y".into(), Value::Nil),
            ("z".into(), Value::Nil)
        ]
    );
    assert_eq!(
        env.call("stop_task_metadata", map! { "name" => "m" }),
        Err(
            "ValueError('Expected to find exactly one CollectTaskMetaDataPlugin with name m but found 0.')"
                .into()
        )
    );
}

#[test]
fn states_are_told_by_key_and_by_prefix() {
    let mut env = Env::new();
    let client = env.add_client("client");
    env.add_worker("tcp://a:1");
    env.submit(client, &[("inc-1", &[]), ("add-2", &["inc-1"])], &["add-2"]);
    let status = env
        .call(
            "get_task_status",
            map! { "keys" => list(&["inc-1", "add-2", "?"]) },
        )
        .unwrap();
    let states: Vec<_> = status
        .as_map()
        .unwrap()
        .iter()
        .map(|(_, state)| state.as_str())
        .collect();
    assert_eq!(states, [Some("processing"), Some("waiting"), None]);
    let prefixes = env.call("get_task_prefix_states", Map::new()).unwrap();
    let prefixes = prefixes.as_map().unwrap();
    let processing = |name: &str| {
        prefixes
            .get(name)
            .unwrap()
            .as_map()
            .unwrap()
            .get("processing")
            .cloned()
    };
    assert_eq!(
        (processing("inc"), processing("add")),
        (Some(Value::from(1)), Some(Value::from(0)))
    );
}

#[test]
fn metadata_is_set_and_read_over_requests() {
    let mut env = Env::new();
    let path = || list(&["cluster-manager-info"]);
    let default = map! { "keys" => path(), "default" => Map::new() };
    assert_eq!(env.call("get_metadata", default), Ok(Map::new().into()));
    env.call("set_metadata", map! { "keys" => path(), "value" => 1 })
        .unwrap();
    assert_eq!(
        env.call("get_metadata", map! { "keys" => path() }),
        Ok(Value::from(1))
    );
    assert_eq!(
        env.call("get_metadata", map! { "keys" => list(&["?"]) }),
        Err("KeyError('?')".into())
    );
}

#[test]
fn nothing_of_the_extensions_reaches_the_shell() {
    let mut env = Env::new();
    let client = env.add_client("client");
    env.add_worker("tcp://a:1");
    env.submit(client, &[("x", &[])], &["x"]);
    env.finish("x");
    let out = env.take();
    assert!(out.iter().any(|instruction| matches!(
        instruction,
        Instruction::ToClient {
            message: ToClient::KeyInMemory { .. },
            ..
        }
    )));
    assert!(
        !out.iter()
            .any(|instruction| matches!(instruction, Instruction::TaskRecord(_)))
    );
}

#[test]
fn a_memory_sampler_looks_at_every_interval_and_ends_with_its_client() {
    let mut env = Env::new();
    let client = env.add_client("c");
    let start = |env: &mut Env, client: &str| {
        let arguments = map! { "client" => client, "measure" => "process", "interval" => 1.0 };
        env.call("memory_sampler_start", arguments).unwrap()
    };
    let kept = start(&mut env, "c");
    for _ in 0..3 {
        env.advance(1.0);
    }
    let samples = env.call("memory_sampler_stop", map! { "key" => kept });
    assert_eq!(samples.unwrap().as_array().map(<[Value]>::len), Some(4));

    let orphan = start(&mut env, "c");
    env.remove_client(client);
    env.advance(1.0);
    let stopped = env.call("memory_sampler_stop", map! { "key" => orphan.clone() });
    let name = orphan.as_str().unwrap();
    assert_eq!(stopped, Err(format!("KeyError('{name}')")));
}

#[test]
fn metadata_goes_with_the_task_of_its_name() {
    let mut env = Env::new();
    let client = env.add_client("client");
    env.add_worker("tcp://a:1");
    env.submit(client, &[("x", &[])], &["x"]);
    for name in ["x", "y"] {
        let fields = map! { "keys" => list(&[name, "note"]), "value" => 1 };
        env.call("set_metadata", fields).unwrap();
    }
    let get = |env: &mut Env, name: &str| {
        let fields = map! { "keys" => list(&[name, "note"]), "default" => "gone" };
        env.call("get_metadata", fields).unwrap()
    };
    assert_eq!(get(&mut env, "x"), Value::from(1));
    env.remove_client(client);
    assert_eq!(get(&mut env, "x"), Value::from("gone"));
    assert_eq!(get(&mut env, "y"), Value::from(1));
}

#[test]
fn a_nanny_s_report_is_completed() {
    let mut env = Env::new();
    env.add_worker_of("tcp://a:1", Some("tcp://a:2"));
    let client = env.add_client("c");
    env.submit(client, &[("x", &[])], &["x"]);
    let report = |pid: i64| {
        let message = map! { "nanny" => "tcp://a:2", "pid" => pid, "reason" => "exited" };
        map! { "topic" => "worker-died", "msg" => message }
    };
    for pid in [1, 2] {
        env.call("log_event", report(pid)).unwrap();
    }
    env.call(
        "log_event",
        map! { "topic" => "worker-died", "msg" => "of another kind" },
    )
    .unwrap();
    let events = env
        .call("events", map! { "topic" => "worker-died" })
        .unwrap();
    let text = format!("{events:?}");
    let told = "tasks: 'x'; memory: 0 B of 1.00 GiB";
    assert_eq!(text.matches(told).count(), 1, "{text}");
    assert!(text.contains("of another kind"), "{text}");
}
