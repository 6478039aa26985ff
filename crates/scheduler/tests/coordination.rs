//! Variables, queues, events, semaphores, multi-locks, published datasets.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets anything else has failed"
)]

mod env;

use env::{Env, list};
use oxidask_scheduler::Event;
use oxidask_wire::{Key, Map, Value, map};

const TRUE: Result<Value, String> = Ok(Value::Bool(true));
const FALSE: Result<Value, String> = Ok(Value::Bool(false));
const NONE: Result<Value, String> = Ok(Value::Nil);

fn timeout() -> Option<Result<Value, String>> {
    Some(Err("TimeoutError()".into()))
}

fn field(value: &Value, name: &str) -> Value {
    value
        .as_map()
        .unwrap()
        .get(name)
        .cloned()
        .unwrap_or_else(|| panic!("no {name} in {value:?}"))
}

#[test]
fn an_event_wakes_every_waiter_and_leaves_nothing_behind() {
    let mut env = Env::new();
    let name = || map! { "name" => "e" };
    assert_eq!(env.call("event_is_set", name()), FALSE);
    let first = env.request(
        "event_wait",
        map! { "name" => "e", "timeout" => Value::Nil },
    );
    let second = env.request("event_wait", map! { "name" => "e", "timeout" => 5 });
    let gone = env.request("event_wait", name());
    env.cancel(gone);
    assert_eq!(
        env.call("event_wait", map! { "name" => "e", "timeout" => 0 }),
        FALSE
    );
    assert_eq!(env.call("event_set", name()), NONE);
    assert_eq!(env.outcome(first), Some(TRUE));
    assert_eq!(env.outcome(second), Some(TRUE));
    assert_eq!(env.outcome(gone), None);
    assert_eq!(
        env.call("event_wait", map! { "name" => "e", "timeout" => 0 }),
        TRUE
    );
    assert_eq!(env.call("event_is_set", name()), TRUE);
    assert_eq!(env.call("event_clear", name()), NONE);
    let late = env.request("event_wait", map! { "name" => "e", "timeout" => "500 ms" });
    env.advance(0.4);
    assert_eq!(env.outcome(late), None);
    env.advance(0.2);
    assert_eq!(env.outcome(late), Some(FALSE));
    assert_eq!(env.extensions.waiting_count(), 0);
}

#[test]
fn names_are_equal_as_in_python() {
    let mut env = Env::new();
    env.call("event_set", map! { "name" => 1 }).unwrap();
    assert_eq!(env.call("event_is_set", map! { "name" => true }), TRUE);
    assert_eq!(env.call("event_is_set", map! { "name" => 1.0 }), TRUE);
    assert_eq!(env.call("event_is_set", map! { "name" => "1" }), FALSE);
    assert_eq!(
        env.call("event_set", map! { "name" => Map::new() }),
        Err("TypeError(\"unhashable type: 'dict'\")".into())
    );
}

fn acquire(env: &mut Env, lease: &str, timeout: Value) -> oxidask_scheduler::RequestId {
    env.request(
        "semaphore_acquire",
        map! { "name" => "s", "timeout" => timeout, "lease_id" => lease },
    )
}

#[test]
fn a_semaphore_gives_leases_in_order_of_request() {
    let mut env = Env::new();
    let unknown = acquire(&mut env, "a", Value::from(0));
    assert_eq!(
        env.outcome(unknown),
        Some(Err(
            "RuntimeError('Semaphore or Lock `s` not known.')".into()
        ))
    );
    let register = |max: i64| map! { "name" => "s", "max_leases" => max, "lease_timeout" => 30 };
    env.call("semaphore_register", register(1)).unwrap();
    env.call("semaphore_register", register(1)).unwrap();
    assert_eq!(
        env.call("semaphore_register", register(2)),
        Err("ValueError('Inconsistent max leases: 2, expected: 1')".into())
    );
    let a = acquire(&mut env, "a", Value::Nil);
    assert_eq!(env.outcome(a), Some(TRUE));
    let again = acquire(&mut env, "a", Value::from(0));
    assert_eq!(
        env.outcome(again),
        Some(TRUE),
        "a lease that is held is given again"
    );
    let b = acquire(&mut env, "b", Value::Nil);
    let c = acquire(&mut env, "c", Value::from(1));
    let d = acquire(&mut env, "d", Value::Nil);
    let never = acquire(&mut env, "e", Value::from(0));
    assert_eq!(env.outcome(never), Some(FALSE));
    env.advance(1.0);
    assert_eq!(env.outcome(c), Some(FALSE));
    env.call(
        "semaphore_release",
        map! { "name" => "s", "lease_id" => "a" },
    )
    .unwrap();
    assert_eq!(env.outcome(b), Some(TRUE));
    assert_eq!(env.outcome(d), None);
    env.cancel(d);
    env.call(
        "semaphore_release",
        map! { "name" => "s", "lease_id" => "b" },
    )
    .unwrap();
    assert_eq!(
        env.call("semaphore_value", map! { "name" => "s" }),
        Ok(Value::from(0))
    );
    // Only worth a warning.
    assert_eq!(
        env.call(
            "semaphore_release",
            map! { "name" => "s", "lease_id" => "b" }
        ),
        NONE
    );
    assert_eq!(
        env.call(
            "semaphore_release",
            map! { "name" => "x", "lease_id" => "b" }
        ),
        NONE
    );
    let metrics = env.extensions.semaphores().next().unwrap();
    assert_eq!(
        (
            metrics.acquire_total,
            metrics.release_total,
            metrics.pending_leases
        ),
        (3, 2, 0)
    );
}

#[test]
fn a_lease_expires_at_a_validation_after_its_timeout() {
    let mut env = Env::new();
    env.call(
        "semaphore_register",
        map! { "name" => "s", "max_leases" => 1, "lease_timeout" => 30 },
    )
    .unwrap();
    acquire(&mut env, "a", Value::Nil);
    let b = acquire(&mut env, "b", Value::Nil);
    env.advance(29.0);
    assert_eq!(env.outcome(b), None);
    env.advance(11.5);
    assert_eq!(
        env.outcome(b),
        Some(TRUE),
        "leases are looked at every 10 s"
    );
    // The first holder is alive after all: overbooking is intended.
    let refresh = map! { "name" => "s", "lease_ids" => list(&["a"]) };
    env.call("semaphore_refresh_leases", refresh).unwrap();
    assert_eq!(
        env.call("semaphore_value", map! { "name" => "s" }),
        Ok(Value::from(2))
    );
    for _ in 0..10 {
        env.advance(20.0);
        let refresh = map! { "name" => "s", "lease_ids" => list(&["b"]) };
        env.call("semaphore_refresh_leases", refresh).unwrap();
    }
    assert_eq!(
        env.call("semaphore_value", map! { "name" => "s" }),
        Ok(Value::from(1))
    );
}

#[test]
fn leases_without_timeout_never_expire_and_outlive_no_close() {
    let mut env = Env::new();
    env.call(
        "semaphore_register",
        map! { "name" => "s", "max_leases" => 1, "lease_timeout" => Value::Nil },
    )
    .unwrap();
    acquire(&mut env, "a", Value::Nil);
    assert_eq!(env.extensions.next_deadline(), None);
    let b = acquire(&mut env, "b", Value::from(100));
    let c = acquire(&mut env, "c", Value::Nil);
    env.call("semaphore_close", map! { "name" => "s" }).unwrap();
    env.call(
        "semaphore_register",
        map! { "name" => "s", "max_leases" => 5 },
    )
    .unwrap();
    assert_eq!(
        (env.outcome(b), env.outcome(c)),
        (None, None),
        "as in stock, they wait for the old one"
    );
    env.advance(100.0);
    assert_eq!(env.outcome(b), Some(FALSE));
    env.cancel(c);
    assert_eq!(env.extensions.waiting_count(), 0);
}

#[test]
fn multi_locks_are_held_together() {
    let mut env = Env::new();
    let acquire = |locks: &[&str], id: &str, count: i64, timeout: Value| {
        map! { "locks" => list(locks), "id" => id, "num_locks" => count, "timeout" => timeout }
    };
    let release = |id: &str| map! { "id" => id };
    assert_eq!(
        env.call(
            "multi_lock_acquire",
            acquire(&["x", "y"], "1", 2, Value::Nil)
        ),
        TRUE
    );
    assert_eq!(
        env.call(
            "multi_lock_acquire",
            acquire(&["y"], "2", 1, Value::from(0))
        ),
        FALSE
    );
    let third = env.request(
        "multi_lock_acquire",
        acquire(&["y", "z"], "3", 2, Value::Nil),
    );
    let fourth = env.request(
        "multi_lock_acquire",
        acquire(&["z"], "4", 1, Value::from(1)),
    );
    let fifth = env.request(
        "multi_lock_acquire",
        acquire(&["x", "y", "z"], "5", 1, Value::Nil),
    );
    env.advance(1.0);
    assert_eq!(env.outcome(fourth), Some(FALSE));
    assert_eq!(env.call("multi_lock_release", release("1")), NONE);
    assert_eq!(env.outcome(third), Some(TRUE));
    assert_eq!(env.outcome(fifth), Some(TRUE), "one of three was enough");
    assert_eq!(env.call("multi_lock_release", release("3")), NONE);
    assert_eq!(
        env.call(
            "multi_lock_acquire",
            acquire(&["y"], "6", 1, Value::from(0))
        ),
        FALSE
    );
    assert_eq!(env.call("multi_lock_release", release("5")), NONE);
    assert_eq!(
        env.call(
            "multi_lock_acquire",
            acquire(&["y"], "6", 1, Value::from(0))
        ),
        TRUE
    );
    assert_eq!(
        env.call("multi_lock_release", release("5")),
        Err("KeyError('5')".into())
    );
    assert_eq!(
        env.call("multi_lock_acquire", acquire(&["y"], "6", 1, Value::Nil)),
        Err("AssertionError()".into())
    );
    assert_eq!(
        env.call("multi_lock_acquire", acquire(&["y"], "7", 2, Value::Nil)),
        Err("AssertionError()".into())
    );
}

#[test]
fn a_client_that_disappears_leaves_the_queues_of_its_locks() {
    let mut env = Env::new();
    let acquire = |id: &str| map! { "locks" => list(&["x"]), "id" => id, "num_locks" => 1 };
    assert_eq!(env.call("multi_lock_acquire", acquire("1")), TRUE);
    let second = env.request("multi_lock_acquire", acquire("2"));
    let third = env.request("multi_lock_acquire", acquire("3"));
    env.cancel(second);
    assert_eq!(env.call("multi_lock_release", map! { "id" => "1" }), NONE);
    assert_eq!(env.outcome(third), Some(TRUE));
}

#[test]
fn a_variable_holds_data() {
    let mut env = Env::new();
    let client = env.add_client("client");
    let waiting = env.request(
        "variable_get",
        map! { "name" => "v", "client" => "client", "timeout" => Value::Nil },
    );
    let impatient = env.request(
        "variable_get",
        map! { "name" => "v", "client" => "client", "timeout" => 0.5 },
    );
    env.advance(0.5);
    assert_eq!(env.outcome(impatient), timeout());
    let set = |value: i64| map! { "name" => "v", "data" => value, "timeout" => "30 s" };
    assert_eq!(env.call("variable_set", set(1)), NONE);
    let record = |value: i64| -> Value { map! { "type" => "msgpack", "value" => value }.into() };
    assert_eq!(env.outcome(waiting), Some(Ok(record(1))));
    assert_eq!(env.call("variable_set", set(2)), NONE);
    assert_eq!(
        env.call("variable_get", map! { "name" => "v", "client" => "client" }),
        Ok(record(2))
    );
    env.client_stream(client, "variable_delete", map! { "name" => "v" });
    let gone = env.request("variable_get", map! { "name" => "v", "timeout" => 0 });
    assert_eq!(env.outcome(gone), timeout());
}

#[test]
fn a_variable_keeps_a_future_until_every_getter_holds_it() {
    let mut env = Env::new();
    let client = env.add_client("client");
    let other = env.add_client("other");
    env.add_worker("tcp://a:1");
    let set = |key: &str| map! { "name" => "v", "key" => key, "timeout" => "30 s" };
    // The graph is still on its way on the client's stream.
    let early = env.request("variable_set", set("x"));
    assert_eq!(env.outcome(early), None);
    env.submit(client, &[("x", &[]), ("y", &[])], &["x", "y"]);
    assert_eq!(env.outcome(early), Some(NONE));
    assert_eq!(env.who_wants("x"), ["client", "variable-v"]);
    env.finish("x");

    let get = map! { "name" => "v", "client" => "other" };
    let record = env.call("variable_get", get.clone()).unwrap();
    assert_eq!(field(&record, "type"), Value::from("Future"));
    assert_eq!(
        Key::from_value(&field(&record, "value")).unwrap(),
        Key::from("x")
    );
    assert_eq!(field(&record, "state"), Value::from("memory"));
    let lost = env.call("variable_get", get).unwrap();
    assert_ne!(field(&record, "token"), field(&lost, "token"));

    // Overwritten and released by its owner: the hand-over is still under way.
    assert_eq!(env.call("variable_set", set("y")), NONE);
    env.event(Event::ClientReleasesKeys {
        client: "client".into(),
        keys: vec!["x".into()],
        stimulus_id: "release".into(),
    });
    assert_eq!(env.who_wants("x"), ["variable-v"]);
    env.client_stream(
        other,
        "variable-future-received-confirm",
        map! { "name" => "v", "key" => "x", "token" => field(&record, "token") },
    );
    assert_eq!(env.who_wants("x"), ["other", "variable-v"]);
    // The second hand-over never finishes: its client is gone.
    env.remove_client(other);
    assert_eq!(env.state("x"), None);
    assert_eq!(env.who_wants("y"), ["client", "variable-v"]);

    env.client_stream(client, "variable_delete", map! { "name" => "v" });
    assert_eq!(env.who_wants("y"), ["client"]);
}

#[test]
fn a_variable_tells_why_its_future_failed_and_when_it_is_lost() {
    let mut env = Env::new();
    let client = env.add_client("client");
    env.add_worker("tcp://a:1");
    env.submit(client, &[("x", &[])], &["x"]);
    env.call("variable_set", map! { "name" => "v", "key" => "x" })
        .unwrap();
    env.fail("x");
    let get = map! { "name" => "v", "client" => "client" };
    let record = env.call("variable_get", get.clone()).unwrap();
    assert_eq!(field(&record, "state"), Value::from("erred"));
    assert_eq!(field(&record, "exception"), Value::from("exception"));
    assert_eq!(field(&record, "traceback"), Value::from("traceback"));
    env.event(Event::Restart {
        stimulus_id: "restart".into(),
    });
    let record = env.call("variable_get", get).unwrap();
    assert_eq!(field(&record, "state"), Value::from("lost"));
}

#[test]
fn setting_an_unknown_key_times_out() {
    let mut env = Env::new();
    env.call("queue_create", map! { "name" => "q" }).unwrap();
    let set = env.request(
        "variable_set",
        map! { "name" => "v", "key" => "nope", "timeout" => "1 s" },
    );
    let put = env.request(
        "queue_put",
        map! { "name" => "q", "key" => "nope", "timeout" => 1 },
    );
    env.advance(1.0);
    let expected = Some(Err("TimeoutError('Task nope unknown to scheduler.')".into()));
    assert_eq!(env.outcome(set), expected);
    assert_eq!(env.outcome(put), expected);
}

fn data(value: i64) -> Value {
    map! { "type" => "msgpack", "value" => value }.into()
}

fn put(env: &mut Env, value: i64, timeout: Value) -> oxidask_scheduler::RequestId {
    env.request(
        "queue_put",
        map! { "name" => "q", "data" => value, "timeout" => timeout },
    )
}

fn get(env: &mut Env, batch: Value, timeout: Value) -> oxidask_scheduler::RequestId {
    env.request(
        "queue_get",
        map! { "name" => "q", "batch" => batch, "timeout" => timeout },
    )
}

#[test]
fn a_queue_blocks_when_full_and_when_empty() {
    let mut env = Env::new();
    assert_eq!(
        env.call("queue_qsize", map! { "name" => "q" }),
        Err("KeyError('q')".into())
    );
    env.call("queue_create", map! { "name" => "q", "maxsize" => 2 })
        .unwrap();
    let first = get(&mut env, false.into(), Value::Nil);
    for value in 1..=3 {
        put(&mut env, value, Value::Nil);
    }
    assert_eq!(env.outcome(first), Some(Ok(data(1))));
    let fourth = put(&mut env, 4, Value::Nil);
    let fifth = put(&mut env, 5, Value::from(1));
    let now = put(&mut env, 6, Value::from(0));
    assert_eq!(env.outcome(fourth), None);
    assert_eq!(env.outcome(now), timeout());
    env.advance(1.0);
    assert_eq!(env.outcome(fifth), timeout());
    assert_eq!(
        env.call("queue_qsize", map! { "name" => "q" }),
        Ok(Value::from(2))
    );
    let all = get(&mut env, true.into(), Value::Nil);
    assert_eq!(env.outcome(all), Some(Ok(vec![data(2), data(3)].into())));
    assert_eq!(env.outcome(fourth), Some(NONE));
    let three = get(&mut env, 3.into(), Value::Nil);
    let one = get(&mut env, Value::Nil, Value::Nil);
    put(&mut env, 7, Value::Nil);
    assert_eq!((env.outcome(three), env.outcome(one)), (None, None));
    put(&mut env, 8, Value::Nil);
    assert_eq!(
        env.outcome(one),
        Some(Ok(data(8))),
        "who wants several queues up again"
    );
    put(&mut env, 9, Value::Nil);
    assert_eq!(
        env.outcome(three),
        Some(Ok(vec![data(4), data(7), data(9)].into()))
    );
    let empty = get(&mut env, true.into(), Value::Nil);
    assert_eq!(env.outcome(empty), Some(Ok(Vec::new().into())));
    let late = get(&mut env, false.into(), Value::from(2));
    env.advance(2.0);
    assert_eq!(env.outcome(late), timeout());
    let both = get(&mut env, 2.into(), Value::from(2));
    let text = env.outcome(both).unwrap().unwrap_err();
    assert!(
        text.starts_with("NotImplementedError(\"Dask queues don't support"),
        "{text}"
    );
}

#[test]
fn what_a_vanished_getter_had_got_goes_back_to_the_front() {
    let mut env = Env::new();
    env.call("queue_create", map! { "name" => "q" }).unwrap();
    let gone = get(&mut env, 3.into(), Value::Nil);
    put(&mut env, 1, Value::Nil);
    put(&mut env, 2, Value::Nil);
    env.cancel(gone);
    put(&mut env, 3, Value::Nil);
    let all = get(&mut env, true.into(), Value::Nil);
    assert_eq!(
        env.outcome(all),
        Some(Ok(vec![data(1), data(2), data(3)].into()))
    );
}

#[test]
fn a_queue_holds_futures_until_they_are_taken_over() {
    let mut env = Env::new();
    let client = env.add_client("client");
    let other = env.add_client("other");
    env.add_worker("tcp://a:1");
    env.call("queue_create", map! { "name" => "q" }).unwrap();
    env.call("queue_create", map! { "name" => "q" }).unwrap();
    env.submit(client, &[("x", &[])], &["x"]);
    for _ in 0..2 {
        env.call("queue_put", map! { "name" => "q", "key" => "x" })
            .unwrap();
    }
    assert_eq!(env.who_wants("x"), ["client", "queue-q"]);
    let got = env.call("queue_get", map! { "name" => "q" }).unwrap();
    assert_eq!(field(&got, "state"), Value::from("processing"));
    let release = map! { "name" => "q", "key" => "x" };
    env.client_stream(other, "queue-future-release", release.clone());
    assert_eq!(
        env.who_wants("x"),
        ["client", "other", "queue-q"],
        "the queue has it once more"
    );
    env.client_stream(client, "queue_release", map! { "name" => "q" });
    assert_eq!(env.who_wants("x"), ["client", "other", "queue-q"]);
    env.client_stream(client, "queue_release", map! { "name" => "q" });
    assert_eq!(env.who_wants("x"), ["client", "other"]);
    assert_eq!(
        env.call("queue_get", map! { "name" => "q" }),
        Err("KeyError('q')".into())
    );
}

#[test]
fn who_waits_at_a_dropped_queue_runs_into_its_timeout() {
    let mut env = Env::new();
    let client = env.add_client("client");
    env.call("queue_create", map! { "name" => "q" }).unwrap();
    let getter = get(&mut env, false.into(), Value::from(3));
    env.client_stream(client, "queue_release", map! { "name" => "q" });
    env.call("queue_create", map! { "name" => "q" }).unwrap();
    put(&mut env, 1, Value::Nil);
    assert_eq!(env.outcome(getter), None);
    env.advance(3.0);
    assert_eq!(env.outcome(getter), timeout());
}

fn publish(names: &[&str], keys: &[&str], uid: &str, replace: bool) -> Map {
    map! {
        "names" => list(names),
        "keys" => names.iter().map(|_| list(keys)).collect::<Value>(),
        "data" => list(names),
        "override" => replace,
        "client" => "client",
        "uid" => uid,
    }
}

#[test]
fn publishing_waits_for_the_clients_stream() {
    let mut env = Env::new();
    let client = env.add_client("client");
    env.add_worker("tcp://a:1");
    let put = env.request("publish_put", publish(&["b"], &["x"], "1", false));
    assert_eq!(env.outcome(put), None);
    env.submit(client, &[("x", &[])], &["x"]);
    env.advance(100.0);
    assert_eq!(env.outcome(put), None, "the client is still there");
    env.client_stream(client, "publish_flush_batched_send", map! { "uid" => "1" });
    assert_eq!(env.outcome(put), Some(NONE));
    assert_eq!(env.who_wants("x"), ["client", "published-b"]);

    // The stream may be faster than the request.
    env.client_stream(client, "publish_flush_batched_send", map! { "uid" => "2" });
    assert_eq!(
        env.call("publish_put", publish(&["a", "b"], &["x"], "2", false)),
        Err("KeyError('Dataset b already exists')".into())
    );
    let names = env.call("publish_list", Map::new()).unwrap();
    let names: Vec<_> = names
        .as_array()
        .unwrap()
        .iter()
        .map(Value::as_str)
        .collect();
    assert_eq!(names, [Some("a"), Some("b")]);
    let got = env
        .call("publish_get", map! { "names" => list(&["b", "?"]) })
        .unwrap();
    let [b, missing] = got.as_array().unwrap() else {
        panic!("{got:?}")
    };
    assert_eq!(field(b, "data"), Value::from("b"));
    assert_eq!(*missing, Value::Nil);

    env.client_stream(client, "publish_flush_batched_send", map! { "uid" => "3" });
    assert_eq!(
        env.call("publish_put", publish(&["b"], &[], "3", true)),
        NONE
    );
    assert_eq!(env.who_wants("x"), ["client", "published-a"]);
    env.client_stream(client, "publish_flush_batched_send", map! { "uid" => "4" });
    let delete = map! { "names" => list(&["a", "?"]), "client" => "client", "uid" => "4" };
    assert_eq!(env.call("publish_delete", delete), NONE);
    assert_eq!(env.who_wants("x"), ["client"]);
}

#[test]
fn publishing_gives_up_when_the_client_is_gone() {
    let mut env = Env::new();
    let client = env.add_client("client");
    let put = env.request("publish_put", publish(&["b"], &[], "1", false));
    env.advance(45.0);
    env.remove_client(client);
    assert_eq!(env.outcome(put), None);
    env.advance(15.0);
    assert_eq!(env.outcome(put), timeout());
    assert_eq!(env.call("publish_list", Map::new()), Ok(list(&[])));
}

#[test]
fn what_follows_a_large_graph_on_the_stream_waits_for_it() {
    let mut env = Env::new();
    let client = env.add_client("client");
    env.add_worker("tcp://a:1");
    env.call("queue_create", map! { "name" => "q" }).unwrap();
    env.submit(client, &[("x", &[])], &["x"]);
    env.call("queue_put", map! { "name" => "q", "key" => "x" })
        .unwrap();
    env.call("queue_get", map! { "name" => "q" }).unwrap();

    let names: Vec<String> = (0..5000).map(|n| format!("task-{n}")).collect();
    let tasks: Vec<(&str, &[&str])> = names.iter().map(|name| (name.as_str(), &[] as _)).collect();
    env.submit(client, &tasks, &["task-4999"]);
    assert!(env.scheduler.has_pending_work());
    // The client drops its future, gets it anew from the queue, and publishes the graph.
    env.event(Event::ClientReleasesKeys {
        client: "client".into(),
        keys: vec!["x".into()],
        stimulus_id: "release".into(),
    });
    env.client_stream(
        client,
        "queue-future-release",
        map! { "name" => "q", "key" => "x" },
    );
    let put = env.request("publish_put", publish(&["b"], &["task-4999"], "1", false));
    env.client_stream(client, "publish_flush_batched_send", map! { "uid" => "1" });
    assert_eq!(env.outcome(put), None);
    assert_eq!(env.who_wants("x"), ["client", "queue-q"]);
    while env.scheduler.has_pending_work() {
        env.event(Event::Continue);
    }
    assert_eq!(env.outcome(put), Some(NONE));
    assert_eq!(env.who_wants("x"), ["client"]);
    assert_eq!(env.who_wants("task-4999"), ["client", "published-b"]);
}
