//! Values that leave memory for disk, and a worker that is short of memory.

use std::path::{Path, PathBuf};

use oxidask_server::config::Value as Setting;
use oxidask_server::worker::WorkerOptions;
use oxidask_wire::stream::{ToWorker, WorkerMessage};
use oxidask_wire::{Key, Map, Value, map};

use crate::executor::Toy;
use crate::stub::{Ask, Stub, Worker, ask, field, keys_field, options, soon, text};

/// Of a value that the function `sized` makes.
const SIZE: u64 = 1_000_000;

/// Options of a worker that keeps about three such values in memory, whatever its
/// process takes.
fn small(stub: &Stub, folder: &Path) -> WorkerOptions {
    with(
        limited(stub, folder, 5 * SIZE),
        &[
            ("spill", Setting::Bool(false)),
            ("pause", Setting::Bool(false)),
        ],
    )
}

fn limited(stub: &Stub, folder: &Path, limit: u64) -> WorkerOptions {
    let mut options = options(&stub.address);
    options.local_directory = folder.to_owned();
    options.memory_limit = Some(limit);
    let interval = Setting::Str("5ms".to_owned());
    with(options, &[("monitor-interval", interval)])
}

fn with(mut options: WorkerOptions, memory: &[(&str, Setting)]) -> WorkerOptions {
    for (name, value) in memory {
        let key = format!("distributed.worker.memory.{name}");
        options.config = options.config.with("test", &[(&key, value.clone())]);
    }
    options
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join("storage"));
    let entries = entries.into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let is_whole = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "spill")
    };
    paths.filter(is_whole).collect()
}

/// Waits until so many values are on disk.
async fn spilled(folder: &Path, count: usize) {
    soon(async {
        while files(folder).len() != count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn name(number: usize) -> String {
    format!("x-{number}")
}

/// Computes so many values.
async fn compute(worker: &mut Worker, count: usize) {
    for number in 0..count {
        worker.computed(&name(number), "sized").await;
    }
}

fn total(key: &'static str, count: usize) -> (Vec<String>, &'static str) {
    ((0..count).map(name).collect(), key)
}

/// Asks for the sum of the first values, which `holder` has.
async fn add(worker: &mut Worker, (names, key): &(Vec<String>, &'static str), holder: &str) {
    let holders = [holder];
    let needs: Vec<(&str, &[&str])> = names.iter().map(|name| (&**name, &holders[..])).collect();
    worker
        .compute(Ask {
            needs: &needs,
            ..Ask::new(key, "total")
        })
        .await;
}

/// The next message that is not about a replica that came.
async fn next(worker: &mut Worker) -> WorkerMessage {
    loop {
        match worker.stream.next().await {
            WorkerMessage::AddKeys { .. } => {}
            other => return other,
        }
    }
}

#[tokio::test]
async fn values_leave_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let options = small(&stub, folder.path());
    let mut worker = stub.worker_with(options, Toy::default()).await;
    compute(&mut worker, 10).await;
    spilled(folder.path(), 7).await;
    for number in [0, 9, 3] {
        let name = name(number);
        let expected = [(name.clone(), number as i64)];
        assert_eq!(worker.data(&[&name]).await, expected);
    }
    // The first two came back and two others left.
    spilled(folder.path(), 7).await;
    let address = worker.address.clone();
    add(&mut worker, &total("sum", 10), &address).await;
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::TaskFinished(task) if task.key == Key::from("sum")),
        "{message:?}"
    );
    assert_eq!(worker.data(&["sum"]).await, [("sum".to_owned(), 45)]);
    let names: Vec<String> = (0..10).map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    worker.free(&names).await;
    for _ in 0..10 {
        worker.stream.next().await;
    }
    spilled(folder.path(), 0).await;
    worker.computed("x-3", "huge").await;
    spilled(folder.path(), 1).await;
    (worker.handle.as_ref().unwrap().closer())("done");
    worker.closed().await;
    assert!(!folder.path().join("storage").exists());
}

#[tokio::test]
async fn peers_fetch_while_values_leave() {
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let options = small(&stub, folder.path());
    let mut alice = stub.worker_with(options, Toy::default()).await;
    let mut bob = stub.worker().await;
    compute(&mut alice, 20).await;
    let address = alice.address.clone();
    add(&mut bob, &total("sum", 20), &address).await;
    for number in 20..40 {
        let name = name(number);
        alice.computed(&name, "sized").await;
    }
    let message = next(&mut bob).await;
    assert!(
        matches!(&message, WorkerMessage::TaskFinished(_)),
        "{message:?}"
    );
    assert_eq!(bob.data(&["sum"]).await, [("sum".to_owned(), 190)]);
    spilled(folder.path(), 37).await;
}

#[tokio::test]
async fn a_value_that_is_too_large_for_memory_goes_straight_to_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let options = small(&stub, folder.path());
    let mut worker = stub.worker_with(options, Toy::default()).await;
    worker.computed("x-7", "huge").await;
    assert_eq!(files(folder.path()).len(), 1);
    assert_eq!(worker.data(&["x-7"]).await, [("x-7".to_owned(), 7)]);
    // It stays there.
    assert_eq!(files(folder.path()).len(), 1);
    worker.compute(Ask::new("y", "hugelock")).await;
    let message = worker.stream.next().await;
    let WorkerMessage::TaskErred(task) = message else {
        panic!("{message:?}");
    };
    assert_eq!(task.exception_text, "PickleError('y')");
    assert_eq!(worker.data(&["y"]).await, []);
}

#[tokio::test]
async fn a_value_that_cannot_be_serialised_stays_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let options = small(&stub, folder.path());
    let mut worker = stub.worker_with(options, Toy::default()).await;
    worker.computed("lock", "lock").await;
    compute(&mut worker, 6).await;
    spilled(folder.path(), 4).await;
    let state = worker.ask("dump_state", Map::new()).await;
    let lock = field(field(&state, "tasks"), "lock");
    assert_eq!(field(lock, "has_data"), &Value::Bool(true));
    for file in files(folder.path()) {
        let content = std::fs::read(file).unwrap();
        assert!(!content.windows(4).any(|window| window == b"lock"));
    }
}

#[tokio::test]
async fn without_a_disk_everything_stays_in_memory_until_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    // A folder cannot be made below a file.
    let blocked = folder.path().join("blocked");
    std::fs::write(&blocked, "").unwrap();
    let mut stub = Stub::start().await;
    let options = small(&stub, &blocked);
    let mut worker = stub.worker_with(options, Toy::default()).await;
    compute(&mut worker, 6).await;
    worker.computed("x-6", "huge").await;
    for number in 0..7 {
        let name = name(number);
        let expected = [(name.clone(), number as i64)];
        assert_eq!(worker.data(&[&name]).await, expected);
    }
    std::fs::remove_file(&blocked).unwrap();
    // At most three stay.
    soon(async {
        while files(&blocked).len() < 4 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(worker.data(&["x-6"]).await, [("x-6".to_owned(), 6)]);
}

#[tokio::test]
async fn no_more_than_max_spill_goes_to_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let options = small(&stub, folder.path());
    let mut worker = stub.worker_with(options, Toy::default()).await;
    compute(&mut worker, 4).await;
    spilled(folder.path(), 1).await;
    let nbytes = std::fs::metadata(&files(folder.path())[0]).unwrap().len();

    let folder = tempfile::tempdir().unwrap();
    let limit = Setting::Int(i64::try_from(nbytes * 2 + nbytes / 2).unwrap());
    let options = with(small(&stub, folder.path()), &[("max-spill", limit)]);
    let mut worker = stub.worker_with(options, Toy::default()).await;
    compute(&mut worker, 9).await;
    spilled(folder.path(), 2).await;
    let names: Vec<String> = (0..9).map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(worker.data(&names).await.len(), 9);
    assert!(files(folder.path()).len() <= 2);
}

/// Flips a bit in the middle of a file.
fn corrupt(file: &Path) {
    let mut content = std::fs::read(file).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(file, content).unwrap();
}

fn truncate(file: &Path) {
    let content = std::fs::read(file).unwrap();
    std::fs::write(file, &content[..content.len() - 1]).unwrap();
}

fn remove(file: &Path) {
    std::fs::remove_file(file).unwrap();
}

/// A worker with four values, the first of which is on disk.
async fn one_spilled(stub: &mut Stub, folder: &Path) -> Worker {
    let options = small(stub, folder);
    let mut worker = stub.worker_with(options, Toy::default()).await;
    compute(&mut worker, 4).await;
    spilled(folder, 1).await;
    worker
}

async fn is_released(worker: &mut Worker, name: &str) {
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::ReleaseWorkerData { key, .. } if *key == Key::from(name)),
        "{message:?}"
    );
}

#[tokio::test]
async fn a_damaged_file_is_a_lost_value_and_never_a_wrong_one() {
    let mut stub = Stub::start().await;
    for damage in [corrupt, truncate, remove] {
        let folder = tempfile::tempdir().unwrap();
        let mut worker = one_spilled(&mut stub, folder.path()).await;
        damage(&files(folder.path())[0]);
        // Peers and clients find that it is not here.
        let mut connection = worker.connect().await;
        let reply = ask(&mut connection, "get_data", keys_field(&["x-0", "x-1"])).await;
        let data = field(&reply, "data").as_map().unwrap();
        let names: Vec<&str> = data.iter().filter_map(|(key, _)| key.as_str()).collect();
        assert_eq!(names, ["x-1"]);
        is_released(&mut worker, "x-0").await;
        // The scheduler has it computed again.
        worker.computed("x-0", "sized").await;
        assert_eq!(worker.data(&["x-0"]).await, [("x-0".to_owned(), 0)]);
    }
}

#[tokio::test]
async fn a_task_whose_input_is_lost_is_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let mut worker = one_spilled(&mut stub, folder.path()).await;
    let address = worker.address.clone();
    remove(&files(folder.path())[0]);
    add(&mut worker, &total("sum", 4), &address).await;
    is_released(&mut worker, "x-0").await;
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::Reschedule { key, .. } if *key == Key::from("sum")),
        "{message:?}"
    );
    worker.computed("x-0", "sized").await;
    add(&mut worker, &total("sum", 4), &address).await;
    let message = worker.stream.next().await;
    assert!(
        matches!(&message, WorkerMessage::TaskFinished(task) if task.key == Key::from("sum")),
        "{message:?}"
    );
    assert_eq!(worker.data(&["sum"]).await, [("sum".to_owned(), 6)]);
}

#[tokio::test]
async fn a_value_that_is_lost_every_time_fails_what_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let mut worker = one_spilled(&mut stub, folder.path()).await;
    let address = worker.address.clone();
    for round in 0..10 {
        for file in files(folder.path()) {
            corrupt(&file);
        }
        add(&mut worker, &total("sum", 1), &address).await;
        is_released(&mut worker, "x-0").await;
        match worker.stream.next().await {
            WorkerMessage::Reschedule { .. } => assert!(round < 3),
            WorkerMessage::TaskErred(task) => {
                assert_eq!(round, 3);
                assert!(
                    task.exception_text
                        .starts_with("OSError(\"cannot read the spilled value of 'x-0': "),
                    "{}",
                    task.exception_text
                );
                return;
            }
            other => panic!("{other:?}"),
        }
        // It is larger than what may stay in memory now.
        worker.computed("x-0", "huge").await;
    }
    panic!("it is tried for ever");
}

/// Bytes of this process in memory.
fn process() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    number.parse::<u64>().unwrap() * 1024
}

/// So much memory is taken up, really.
fn hog() -> Vec<u8> {
    vec![1; 512 << 20]
}

async fn status(worker: &mut Worker) -> String {
    match worker.stream.next().await {
        WorkerMessage::WorkerStatusChange { status, .. } => status.to_string(),
        other => panic!("{other:?}"),
    }
}

/// A worker and the memory of this process: `fraction` of the limit is 256 MiB away.
async fn near(
    stub: &mut Stub,
    folder: &Path,
    fraction: f64,
    settings: &[(&str, Setting)],
) -> Worker {
    let limit = (process() + (256 << 20)) as f64 / fraction;
    let options = with(limited(stub, folder, limit as u64), settings);
    stub.worker_with(options, Toy::default()).await
}

/// Tests that take much memory go one after the other.
static HOGS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn a_worker_that_is_short_of_memory_pauses() {
    let _alone = HOGS.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let settings = [("spill", Setting::Bool(false))];
    let mut worker = near(&mut stub, folder.path(), 0.8, &settings).await;
    let hog = hog();
    assert_eq!(status(&mut worker).await, "paused");
    worker.compute(Ask::new("x", "one")).await;
    let logs = worker.ask("get_logs", Map::new()).await;
    let logs = format!("{logs:?}");
    assert!(
        logs.contains("% memory usage. Pausing worker.  Process memory: "),
        "{logs}"
    );
    let toy = worker.toy.clone();
    let collected = toy.changed.notified();
    if toy.collections_count() == 0 {
        soon(collected).await;
    }
    drop(hog);
    assert_eq!(status(&mut worker).await, "running");
    let message = worker.stream.next().await;
    assert!(
        matches!(message, WorkerMessage::TaskFinished(_)),
        "{message:?}"
    );
    let logs = worker.ask("get_logs", Map::new()).await;
    assert!(format!("{logs:?}").contains("% memory usage. Resuming worker. Process memory: "));
}

#[tokio::test]
async fn what_is_serialised_leaves_while_the_executor_is_busy() {
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let options = small(&stub, folder.path());
    let mut worker = stub.worker_with(options, Toy::default()).await;
    worker.toy.hold_serialization(true);
    // Thirty fit. The oldest four cannot go, the next ones can.
    for number in 0..40 {
        let function = if number < 4 { "small" } else { "packed" };
        worker.computed(&name(number), function).await;
    }
    spilled(folder.path(), 6).await;
    worker.toy.hold_serialization(false);
    spilled(folder.path(), 10).await;
    for number in 0..40 {
        let name = name(number);
        let expected = [(name.clone(), number as i64)];
        assert_eq!(worker.data(&[&name]).await, expected);
    }
}

#[tokio::test]
async fn values_leave_when_the_process_grows() {
    let _alone = HOGS.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let settings = [
        ("pause", Setting::Bool(false)),
        ("target", Setting::Bool(false)),
    ];
    let mut worker = near(&mut stub, folder.path(), 0.7, &settings).await;
    compute(&mut worker, 5).await;
    let hog = hog();
    // Nothing of it helps.
    spilled(folder.path(), 5).await;
    soon(async {
        loop {
            let logs = worker.ask("get_logs", Map::new()).await;
            if format!("{logs:?}").contains("Unmanaged memory use is high.") {
                break;
            }
        }
    })
    .await;
    drop(hog);
    let address = worker.address.clone();
    add(&mut worker, &total("sum", 5), &address).await;
    let message = worker.stream.next().await;
    assert!(
        matches!(message, WorkerMessage::TaskFinished(_)),
        "{message:?}"
    );
    assert_eq!(worker.data(&["sum"]).await, [("sum".to_owned(), 10)]);
}

#[tokio::test]
async fn a_scheduler_that_pauses_a_worker_is_overruled_by_its_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let options = limited(&stub, folder.path(), 1 << 50);
    let mut worker = stub.worker_with(options, Toy::default()).await;
    let message = ToWorker::WorkerStatusChange {
        status: "paused",
        stimulus_id: "pause-1",
    };
    worker.stream.send(&[message]).await;
    assert_eq!(status(&mut worker).await, "paused");
    assert_eq!(status(&mut worker).await, "running");
}

#[tokio::test]
async fn heartbeats_tell_what_was_spilled() {
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    stub.heartbeat_interval = 0.01;
    let options = small(&stub, folder.path());
    let mut worker = stub.worker_with(options, Toy::default()).await;
    compute(&mut worker, 6).await;
    let metrics = soon(async {
        loop {
            let (op, fields) = stub.requests.recv().await.unwrap();
            assert_eq!(op, "heartbeat_worker");
            let metrics = fields.get("metrics").unwrap().clone();
            let spilled = field(field(&metrics, "spilled_bytes"), "memory");
            if *spilled == Value::Int(3 * SIZE as i64) {
                break metrics;
            }
        }
    })
    .await;
    let on_disk: u64 = files(folder.path())
        .iter()
        .map(|file| std::fs::metadata(file).unwrap().len())
        .sum();
    let spilled = field(&metrics, "spilled_bytes");
    assert_eq!(field(spilled, "disk").as_u64(), Some(on_disk));
    assert_eq!(field(&metrics, "managed_bytes").as_u64(), Some(6 * SIZE));
}

#[tokio::test]
async fn scattered_and_gathered_values_are_spilled_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let tiny = [
        ("spill", Setting::Bool(false)),
        ("pause", Setting::Bool(false)),
    ];
    // Not one number fits.
    let options = with(limited(&stub, folder.path(), 20), &tiny);
    let worker = stub.worker_with(options, Toy::default()).await;
    let data: Map = (0..5_i64)
        .map(|number| (name(number as usize), crate::executor::serialized(number)))
        .collect();
    let reply = worker.ask("update_data", map! { "data" => data }).await;
    assert_eq!(text(&reply, "status"), "OK");
    assert_eq!(files(folder.path()).len(), 5);
    let names: Vec<String> = (0..5).map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut values = worker.data(&names).await;
    values.sort();
    let expected: Vec<(String, i64)> = (0..5).map(|n| (name(n as usize), n)).collect();
    assert_eq!(values, expected);
}

#[tokio::test]
async fn figures_for_pages() {
    let folder = tempfile::tempdir().unwrap();
    let mut stub = Stub::start().await;
    let options = small(&stub, folder.path());
    let mut worker = stub.worker_with(options, Toy::default()).await;
    compute(&mut worker, 5).await;
    spilled(folder.path(), 2).await;
    assert_eq!(worker.data(&["x-0"]).await, [("x-0".to_owned(), 0)]);
    let reader = worker.handle.as_ref().unwrap().figures();
    // One came back, another one leaves.
    let figures = soon(async {
        loop {
            let figures = reader.read().await.unwrap();
            if figures.tasks == [("memory", 3), ("disk", 2)] {
                break figures;
            }
        }
    })
    .await;
    assert_eq!(figures.managed_nbytes, 3 * SIZE);
    assert!(figures.spilled_nbytes > 0 && figures.process_nbytes > figures.managed_nbytes);
    assert_eq!(figures.transfer_outgoing_count_total, 1);
    assert_eq!(figures.transfer_outgoing_bytes_total, SIZE as i64);
    let total = |activity, unit| {
        let totals = figures.spill_totals.iter();
        let found = totals.filter(|total| (total.0, total.1) == (activity, unit));
        found.map(|total| total.2).sum::<f64>()
    };
    assert_eq!(total("disk-read", "count"), 1.0);
    assert_eq!(total("disk-write", "count"), 3.0);
    assert!(total("disk-write", "bytes") > figures.spilled_nbytes as f64);
    assert!(figures.turns_count_total > 0);
    (worker.handle.as_ref().unwrap().closer())("done");
    worker.closed().await;
    assert_eq!(reader.read().await, None);
}
