//! Tasks and their data, as the scheduler's stream tells them.

use futures_util::FutureExt;
use oxidask_wire::stream::{ToWorker, WorkerMessage};
use oxidask_wire::{Key, Value};

use crate::executor::{Toy, erred, finished};
use crate::stub::{Ask, Stub, impatient, options, soon};

#[tokio::test]
async fn a_task_is_computed_and_reported() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    worker.compute(Ask::new("x", "two")).await;
    let message = worker.stream.next().await;
    let WorkerMessage::TaskFinished(task) = message else {
        panic!("{message:?}");
    };
    assert_eq!((&task.key, task.run_id), (&Key::from("x"), 1));
    assert_eq!((task.nbytes, task.typename.as_str()), (28, "int"));
    assert_eq!(task.thread, Value::Int(7));
    assert!(task.stimulus_id.starts_with("task-finished-"));
    let startstops = task.startstops.as_array().unwrap();
    let compute = startstops[0].as_map().unwrap();
    assert_eq!(compute.get("action").unwrap().as_str(), Some("compute"));
    assert_eq!(worker.data(&["x", "y"]).await, [("x".to_owned(), 2)]);
}

#[tokio::test]
async fn a_dependency_is_fetched_from_a_peer() {
    let mut stub = Stub::start().await;
    let mut alice = stub.worker().await;
    let mut bob = stub.worker().await;
    alice.computed("x", "one").await;
    alice.computed("y", "two").await;
    bob.compute(Ask {
        needs: &[("x", &[&alice.address]), ("y", &[&alice.address])],
        ..Ask::new("z", "total")
    })
    .await;
    for key in ["x", "y"] {
        let message = bob.stream.next().await;
        assert!(
            matches!(&message, WorkerMessage::AddKeys { keys, .. } if *keys == [Key::from(key)]),
            "{message:?}"
        );
    }
    let message = bob.stream.next().await;
    let WorkerMessage::TaskFinished(task) = message else {
        panic!("{message:?}");
    };
    let startstops = task.startstops.as_array().unwrap();
    let transfer = startstops[0].as_map().unwrap();
    assert_eq!(transfer.get("action").unwrap().as_str(), Some("transfer"));
    assert_eq!(
        transfer.get("source").unwrap().as_str(),
        Some(&*alice.address)
    );
    assert_eq!(bob.data(&["z"]).await, [("z".to_owned(), 3)]);
}

#[tokio::test]
async fn an_error_is_reported_with_its_exception() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    worker.compute(Ask::new("x", "raise")).await;
    let message = worker.stream.next().await;
    let WorkerMessage::TaskErred(task) = message else {
        panic!("{message:?}");
    };
    assert_eq!(task.exception_text, "ValueError('on purpose')");
    assert!(task.exception.as_serialized().is_some());
    assert_eq!(task.startstops.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_value_that_does_not_deserialise_fails_what_needs_it() {
    let mut stub = Stub::start().await;
    let mut alice = stub.worker().await;
    let options = options(&stub.address);
    let mut bob = stub.worker_with(options, Toy::with_poison(2)).await;
    alice.computed("x", "two").await;
    bob.compute(Ask {
        needs: &[("x", &[&alice.address])],
        ..Ask::new("z", "total")
    })
    .await;
    let message = bob.stream.next().await;
    let WorkerMessage::TaskErred(task) = message else {
        panic!("{message:?}");
    };
    assert_eq!(task.key, Key::from("x"));
    assert_eq!(task.exception_text, "TypeError('cannot be deserialised')");
}

#[tokio::test]
async fn a_holder_that_is_gone_is_replaced() {
    let mut stub = Stub::start().await;
    let mut alice = stub.worker().await;
    let options = impatient(&stub.address);
    let mut bob = stub.worker_with(options, Toy::default()).await;
    alice.computed("x", "two").await;
    bob.compute(Ask {
        needs: &[("x", &["tcp://127.0.0.1:1"])],
        ..Ask::new("z", "total")
    })
    .await;
    loop {
        let state = bob
            .ask(
                "get_story",
                oxidask_wire::map! { "keys_or_stimuli" => vec![Value::from("x")] },
            )
            .await;
        let is_missing = state.as_array().unwrap().iter().any(|record| {
            let record = record.as_array().unwrap();
            record.get(3).and_then(Value::as_str) == Some("missing")
        });
        if is_missing {
            break;
        }
        tokio::task::yield_now().await;
    }
    let who_has = [(Key::from("x"), vec![alice.address.as_str().into()])];
    bob.stream
        .send(&[ToWorker::RefreshWhoHas {
            who_has: &who_has,
            stimulus_id: "refresh-1",
        }])
        .await;
    let message = bob.stream.next().await;
    assert!(
        matches!(message, WorkerMessage::AddKeys { .. }),
        "{message:?}"
    );
    let message = bob.stream.next().await;
    assert!(
        matches!(message, WorkerMessage::TaskFinished(_)),
        "{message:?}"
    );
}

#[tokio::test]
async fn what_a_cancelled_task_returns_is_dropped() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    worker.compute(Ask::new("x", "hold")).await;
    soon(worker.toy.holds("x")).await;
    worker.free(&["x"]).await;
    // The next task shows that the message was handled; it runs when the thread is free.
    worker.compute(Ask::new("y", "one")).await;
    worker.steal("nothing").await;
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::StealResponse { state: None, .. }),
        "{message:?}"
    );
    worker.toy.finish("x", finished(5));
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::TaskFinished(task) if task.key == Key::from("y")),
        "{message:?}"
    );
    assert_eq!(worker.data(&["x"]).await, []);
    assert_eq!(worker.toy.released_count(), 1);
}

#[tokio::test]
async fn a_freed_key_is_gone() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    worker.computed("x", "one").await;
    worker.free(&["x"]).await;
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::ReleaseWorkerData { key, stimulus_id }
            if *key == Key::from("x") && *stimulus_id == "free-1"),
        "{message:?}"
    );
    assert_eq!(worker.data(&["x"]).await, []);
    assert_eq!(worker.toy.released_count(), 1);
}

#[tokio::test]
async fn replicas_are_acquired_and_removed() {
    let mut stub = Stub::start().await;
    let mut alice = stub.worker().await;
    let mut bob = stub.worker().await;
    alice.computed("x", "two").await;
    let key = Key::from("x");
    bob.stream
        .send(&[ToWorker::AcquireReplicas {
            who_has: &[(key.clone(), vec![alice.address.as_str().into()])],
            nbytes: &[(key.clone(), 28)],
            stimulus_id: "acquire-1",
        }])
        .await;
    let message = bob.stream.next().await;
    assert!(
        matches!(message, WorkerMessage::AddKeys { .. }),
        "{message:?}"
    );
    alice
        .stream
        .send(&[ToWorker::RemoveReplicas {
            keys: &[key],
            stimulus_id: "remove-1",
        }])
        .await;
    let message = alice.stream.next().await;
    assert!(
        matches!(message, WorkerMessage::ReleaseWorkerData { .. }),
        "{message:?}"
    );
    assert_eq!(bob.data(&["x"]).await, [("x".to_owned(), 2)]);
    assert_eq!(alice.data(&["x"]).await, []);
}

#[tokio::test]
async fn a_task_that_has_not_begun_can_be_stolen() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    worker.compute(Ask::new("x", "hold")).await;
    worker.compute(Ask::new("y", "one")).await;
    soon(worker.toy.holds("x")).await;
    for (key, expected) in [("x", "executing"), ("y", "ready")] {
        worker.steal(key).await;
        let message = worker.stream.next().await;
        assert!(
            matches!(&message, WorkerMessage::StealResponse { state: Some(state), stimulus_id, .. }
                if *state == expected && *stimulus_id == "steal-1"),
            "{message:?}"
        );
    }
    worker.toy.finish("x", erred("ValueError", "late"));
    let message = worker.stream.next().await;
    assert!(
        matches!(message, WorkerMessage::TaskErred(_)),
        "{message:?}"
    );
}

#[tokio::test]
async fn a_thread_goes_on_before_the_worker_has_heard() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    worker.compute(Ask::new("x", "hold")).await;
    worker.compute(Ask::new("y", "hold")).await;
    soon(worker.toy.is_lent("y")).await;
    worker.toy.finish("x", finished(1));
    // The runtime has this thread only: nobody has told the worker yet.
    let begun = worker.toy.holds("y").now_or_never();
    assert!(begun.is_some(), "the thread waits");
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::TaskFinished(task) if task.key == Key::from("x")),
        "{message:?}"
    );
    worker.steal("y").await;
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::StealResponse { state: Some(state), .. } if *state == "executing"),
        "{message:?}"
    );
    worker.toy.finish("y", finished(2));
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::TaskFinished(task) if task.key == Key::from("y") && task.run_id == 1),
        "{message:?}"
    );
}

#[tokio::test]
async fn what_was_lent_and_is_freed_never_runs() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    worker.compute(Ask::new("x", "hold")).await;
    worker.compute(Ask::new("y", "raise")).await;
    soon(worker.toy.is_lent("y")).await;
    worker.free(&["y"]).await;
    worker.steal("y").await;
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::StealResponse { state: None, .. }),
        "{message:?}"
    );
    worker.toy.finish("x", finished(1));
    worker.compute(Ask::new("z", "one")).await;
    for expected in ["x", "z"] {
        let message = worker.stream.next().await;
        assert!(
            matches!(&message, WorkerMessage::TaskFinished(task) if task.key == Key::from(expected)),
            "{message:?}"
        );
    }
}

#[tokio::test]
async fn tasks_secede_and_ask_to_be_run_elsewhere() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    worker.compute(Ask::new("x", "hold")).await;
    soon(worker.toy.holds("x")).await;
    worker.toy.secede("x");
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::LongRunning { compute_duration: Some(seconds), run_id: 1, .. }
            if *seconds == 0.5),
        "{message:?}"
    );
    // Its place is free.
    worker.compute(Ask::new("y", "reschedule")).await;
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::Reschedule { key, .. } if *key == Key::from("y")),
        "{message:?}"
    );
}

#[tokio::test]
async fn tasks_wait_for_resources() {
    let mut stub = Stub::start().await;
    let mut options = options(&stub.address);
    options.resources = vec![("GPU".into(), 1.0)];
    options.nthreads = 2;
    let mut worker = stub.worker_with(options, Toy::default()).await;
    for key in ["x", "y"] {
        worker
            .compute(Ask {
                resources: &[("GPU", 1.0)],
                ..Ask::new(key, "hold")
            })
            .await;
    }
    soon(worker.toy.holds("x")).await;
    worker.steal("y").await;
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::StealResponse { state: Some(state), .. } if *state == "constrained"),
        "{message:?}"
    );
}

#[tokio::test]
async fn an_actor_is_kept_apart_from_data() {
    let mut stub = Stub::start().await;
    let mut worker = stub.worker().await;
    worker
        .compute(Ask {
            actor: true,
            ..Ask::new("actor", "two")
        })
        .await;
    let message = worker.stream.next().await;
    assert!(
        matches!(message, WorkerMessage::TaskFinished(_)),
        "{message:?}"
    );
    assert_eq!(
        worker.ask("keys", oxidask_wire::Map::new()).await,
        Value::Array(Vec::new())
    );
    // The toy's proxy of a number is the number.
    assert_eq!(worker.data(&["actor"]).await, [("actor".to_owned(), 2)]);
}
