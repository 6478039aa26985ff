"""Variables, queues, events, locks, semaphores and published data."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from cluster import call_async, eventually
from conformance_tasks import inc, signal_and_wait, throws, wait_for_event
from distributed import (
    Event,
    Lock,
    MultiLock,
    Queue,
    Semaphore,
    Variable,
    get_client,
    wait,
)


def in_thread(function):
    """Runs `function` in a thread; the returned call joins it and gives its result."""
    outcome = {}

    def run():
        try:
            outcome["result"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join():
        thread.join(30)
        assert not thread.is_alive()
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]

    return join


# Variables


def test_variable_holds_plain_data(client, name):
    variable = Variable(name("var"))
    for value in (1, "text", None, b"bytes", {"a": {"b": 1.5}}):
        variable.set(value)
        assert variable.get() == value
    # A list may come back as a tuple.
    variable.set([1, 2])
    assert list(variable.get()) == [1, 2]


def test_variable_holds_a_future(client, cluster, name):
    variable = Variable(name("var"))
    future = client.submit(inc, 1)
    variable.set(future)
    assert variable.get().result() == 2
    variable.delete()


def test_variable_keeps_its_future_alive(client, cluster, name):
    variable = Variable(name("var"))
    future = client.submit(inc, 41)
    variable.set(future)
    key = future.key
    del future
    gc.collect()
    # The release has been handled once another graph of this client is done.
    client.submit(inc, 1, pure=False).result()
    got = variable.get()
    assert got.key == key
    assert got.result() == 42
    del got
    variable.set(0)
    gc.collect()
    eventually(lambda: cluster.has_forgotten(key))


def test_variable_of_a_failed_future_raises_its_error(client, name):
    variable = Variable(name("var"))
    future = client.submit(throws, "in a variable")
    wait(future)
    variable.set(future)
    with pytest.raises(RuntimeError, match="in a variable"):
        variable.get().result()
    variable.delete()


def test_variable_get_waits_for_the_first_set(client, cluster, connect, name):
    shared = name("var")
    join = in_thread(lambda: Variable(shared, client=client).get(timeout=20))
    other = connect(cluster, set_as_default=False)
    Variable(shared, client=other).set("arrived")
    assert join() == "arrived"


def test_variable_get_times_out(client, name):
    with pytest.raises(TimeoutError):
        Variable(name("never-set")).get(timeout=0.05)


def test_variable_set_and_get_in_tasks(client, name):
    shared = name("var")

    def bump(shared):
        variable = Variable(shared)
        variable.set(variable.get() + 1)

    Variable(shared).set(0)
    previous = None
    for _ in range(5):
        previous = client.submit(
            lambda shared, _: bump(shared), shared, previous, pure=False
        )
    wait(previous)
    assert Variable(shared).get() == 5


def test_variable_future_between_clients(client, cluster, connect, name):
    shared = name("var")
    other = connect(cluster, set_as_default=False)
    future = client.submit(inc, 9)
    Variable(shared, client=client).set(future)
    taken = Variable(shared, client=other).get()
    assert other.gather(taken) == 10
    Variable(shared, client=client).delete()


# Queues


def test_queue_is_first_in_first_out(client, name):
    queue = Queue(name("queue"))
    for i in range(5):
        queue.put(i)
    assert queue.qsize() == 5
    assert [queue.get() for _ in range(5)] == list(range(5))
    assert queue.qsize() == 0


def test_queue_takes_futures_right_after_submit(client, name):
    """Pitfall 20: the RPC may arrive before the graph that holds the key."""
    queue = Queue(name("queue"))
    for i in range(20):
        queue.put(client.submit(inc, i, pure=False))
    assert [queue.get().result() for _ in range(20)] == list(range(1, 21))


def test_queue_keeps_its_futures_alive(client, cluster, name):
    queue = Queue(name("queue"))
    future = client.submit(inc, 1, pure=False)
    key = future.key
    queue.put(future)
    del future
    gc.collect()
    client.submit(inc, 1, pure=False).result()
    got = queue.get()
    assert got.result() == 2
    del got
    gc.collect()
    eventually(lambda: cluster.has_forgotten(key))


def test_queue_of_a_failed_future(client, name):
    queue = Queue(name("queue"))
    future = client.submit(throws, "in a queue")
    wait(future)
    queue.put(future)
    with pytest.raises(RuntimeError, match="in a queue"):
        queue.get().result()


def test_queue_get_times_out(client, name):
    with pytest.raises(TimeoutError):
        Queue(name("queue")).get(timeout=0.05)


def test_full_queue_blocks_until_there_is_room(client, name):
    shared = name("queue")
    queue = Queue(shared, maxsize=2)
    queue.put(1)
    queue.put(2)
    with pytest.raises(TimeoutError):
        queue.put(3, timeout=0.05)
    join = in_thread(lambda: queue.put(3, timeout=20))
    assert queue.get() == 1
    join()
    assert [queue.get(), queue.get()] == [2, 3]


def test_queue_get_in_batches(client, name):
    queue = Queue(name("queue"))
    for i in range(10):
        queue.put(i)
    assert list(queue.get(batch=4)) == [0, 1, 2, 3]
    assert list(queue.get(batch=True)) == [4, 5, 6, 7, 8, 9]
    assert list(queue.get(batch=True)) == []


def test_queue_get_waits_for_a_whole_batch(client, name):
    queue = Queue(name("queue"))
    join = in_thread(lambda: queue.get(batch=3))
    for i in range(3):
        queue.put(i)
    assert list(join()) == [0, 1, 2]


def test_queue_between_tasks_and_client(client, name):
    shared = name("queue")
    requests, answers = Queue(shared), Queue(shared + "-answers")

    def serve(shared, count):
        for _ in range(count):
            Queue(shared + "-answers").put(Queue(shared).get(timeout=20) * 2)
        return "served"

    server = client.submit(serve, shared, 5)
    for i in range(5):
        requests.put(i)
    assert [answers.get(timeout=20) for _ in range(5)] == [0, 2, 4, 6, 8]
    assert server.result() == "served"


def test_queue_get_of_an_unknown_queue_fails(cluster):
    answer = cluster.call("queue_get", name="no-such-queue", client="nobody")
    assert answer["status"] == "uncaught-error" or answer["status"] == "error"


# Events


def test_event_is_seen_by_waiters(client, name):
    event = Event(name("event"))
    assert not event.is_set()
    join = in_thread(lambda: event.wait(20))
    event.set()
    assert join() is True
    assert event.is_set()
    assert event.wait(0) is True


def test_event_wait_times_out_with_false(client, name):
    assert Event(name("event")).wait(0.05) is False


def test_event_can_be_cleared(client, name):
    event = Event(name("event"))
    event.set()
    event.clear()
    assert not event.is_set()
    assert event.wait(0.02) is False


def test_event_releases_many_tasks(client, name):
    event = name("event")
    futures = client.map(lambda i: Event(event).wait(30), range(4), pure=False)
    Event(event).set()
    assert client.gather(futures) == [True] * 4


# Locks


def test_lock_excludes_others(client, name):
    shared = name("lock")
    first, second = Lock(shared), Lock(shared)
    assert first.acquire()
    assert first.locked()
    assert second.acquire(timeout=0.05) is False
    first.release()
    assert second.acquire(timeout=20) is True
    second.release()
    assert not first.locked()


def test_lock_without_blocking(client, name):
    """Pitfall 29: timeout 0 is not the same as none."""
    shared = name("lock")
    first, second = Lock(shared), Lock(shared)
    assert first.acquire(blocking=False)
    assert not second.acquire(blocking=False)
    first.release()
    assert second.acquire(blocking=False)
    second.release()


def test_waiting_for_a_lock_ends_with_its_release(client, name):
    shared = name("lock")
    first, second = Lock(shared), Lock(shared)
    first.acquire()
    join = in_thread(lambda: second.acquire(timeout=20))
    first.release()
    assert join() is True
    second.release()


def test_lock_protects_a_counter_in_tasks(client, tmp_path, name):
    path = tmp_path / "counter"
    path.write_text("0")
    shared = name("lock")

    def increase(i):
        with Lock(shared):
            value = int(path.read_text())
            path.write_text(str(value + 1))

    wait(client.map(increase, range(20), pure=False))
    assert path.read_text() == "20"


def test_lock_of_a_dead_worker_expires(fresh_cluster, connect, name):
    """Pitfall 29: a lease that is not refreshed ends."""
    config = {
        "distributed.scheduler.locks.lease-timeout": "1s",
        "distributed.scheduler.locks.lease-validation-interval": "100ms",
    }
    cluster = fresh_cluster(workers=2, config=config)
    client = connect(cluster)
    shared, held = name("lock"), name("held")

    def hold():
        Lock(shared).acquire()
        Event(held).set()
        wait_for_event("never")

    future = client.submit(hold, workers=["w0"])
    assert Event(held).wait(20)
    assert not Lock(shared).acquire(blocking=False)
    cluster.kill_worker(cluster.worker("w0"))
    assert future.status == "pending"
    assert Lock(shared).acquire(timeout=20)


# Semaphores


def test_semaphore_counts_its_leases(client, name):
    semaphore = Semaphore(max_leases=2, name=name("semaphore"))
    assert semaphore.acquire()
    assert semaphore.acquire()
    assert semaphore.get_value() == 2
    assert semaphore.acquire(timeout=0.05) is False
    semaphore.release()
    assert semaphore.get_value() == 1
    semaphore.release()


def test_semaphore_with_timeout_zero_tries_once(client, name):
    """Pitfall 29."""
    semaphore = Semaphore(max_leases=1, name=name("semaphore"))
    assert semaphore.acquire(timeout=0) is True
    assert semaphore.acquire(timeout=0) is False
    semaphore.release()


def test_semaphore_with_another_maximum_is_refused(client, name):
    shared = name("semaphore")
    first = Semaphore(max_leases=1, name=shared)
    assert first.acquire()
    first.release()
    with pytest.raises(ValueError, match="Inconsistent max leases: 2, expected: 1"):
        Semaphore(max_leases=2, name=shared).acquire()


def test_semaphore_acquire_is_idempotent_per_lease(client, cluster, name):
    """Pitfall 29: a repeated request is not a second lease."""
    shared = name("semaphore")
    cluster.call("semaphore_register", name=shared, max_leases=2, lease_timeout=None)
    for _ in range(3):
        assert (
            cluster.call("semaphore_acquire", name=shared, timeout=0, lease_id="a")
            is True
        )
    assert cluster.call("semaphore_value", name=shared) == 1
    assert (
        cluster.call("semaphore_acquire", name=shared, timeout=0, lease_id="b") is True
    )
    assert (
        cluster.call("semaphore_acquire", name=shared, timeout=0, lease_id="c") is False
    )
    cluster.call("semaphore_release", name=shared, lease_id="a")
    assert (
        cluster.call("semaphore_acquire", name=shared, timeout=0, lease_id="c") is True
    )


def test_refresh_of_an_expired_lease_overbooks(client, cluster, name):
    """Pitfall 29: an unknown lease is created again, so that the value may exceed the limit."""
    shared = name("semaphore")
    cluster.call("semaphore_register", name=shared, max_leases=1, lease_timeout=None)
    assert (
        cluster.call("semaphore_acquire", name=shared, timeout=0, lease_id="a") is True
    )
    cluster.call("semaphore_refresh_leases", name=shared, lease_ids=["a", "lost"])
    assert cluster.call("semaphore_value", name=shared) == 2


def test_release_of_an_unknown_lease_is_harmless(client, cluster, name):
    shared = name("semaphore")
    cluster.call("semaphore_register", name=shared, max_leases=1, lease_timeout=None)
    cluster.call("semaphore_release", name=shared, lease_id="never")
    assert cluster.call("semaphore_value", name=shared) == 0


def test_closed_semaphore_is_not_known(client, name):
    semaphore = Semaphore(max_leases=1, name=name("semaphore"))
    assert semaphore.acquire()
    semaphore.release()
    semaphore.close()
    with pytest.raises(RuntimeError, match="not known"):
        semaphore.acquire(timeout=1)


def test_waiting_for_a_semaphore_ends_with_a_release(client, name):
    semaphore = Semaphore(max_leases=1, name=name("semaphore"))
    semaphore.acquire()
    join = in_thread(lambda: semaphore.acquire(timeout=20))
    semaphore.release()
    assert join() is True
    semaphore.release()


# Several locks at once


def test_multi_lock_takes_all_of_its_names(client, name):
    a, b, c = name("a"), name("b"), name("c")
    first, second, third = MultiLock([a, b]), MultiLock([b, c]), MultiLock([c])
    assert first.acquire()
    assert second.acquire(timeout=0.05) is False
    assert third.acquire(timeout=20) is True
    third.release()
    first.release()
    assert second.acquire(timeout=20) is True
    second.release()


def test_multi_lock_with_a_part_of_its_names(client, name):
    a, b = name("a"), name("b")
    holder = MultiLock([a])
    assert holder.acquire()
    either = MultiLock([a, b])
    assert either.acquire(timeout=20, num_locks=1) is True
    either.release()
    holder.release()


def test_multi_lock_waits_for_its_turn(client, name):
    names = [name("a"), name("b")]
    first, second = MultiLock(names), MultiLock(names)
    first.acquire()
    join = in_thread(lambda: second.acquire(timeout=20))
    first.release()
    assert join() is True
    second.release()


# Published data


def test_published_collection_is_found_by_another_client(
    client, cluster, connect, name
):
    import dask.array as da

    shared = name("dataset")
    x = client.persist(da.arange(10, chunks=5))
    client.publish_dataset(x, name=shared)
    other = connect(cluster)
    assert shared in other.list_datasets()
    got = other.get_dataset(shared)
    assert got.sum().compute() == 45
    other.unpublish_dataset(shared)
    assert shared not in client.list_datasets()


def test_publishing_a_name_twice_is_a_key_error(client, name):
    shared = name("dataset")
    client.publish_dataset(client.submit(inc, 1), name=shared)
    with pytest.raises(KeyError, match=f"Dataset {shared} already exists"):
        client.publish_dataset(client.submit(inc, 2), name=shared)
    client.publish_dataset(client.submit(inc, 3), name=shared, override=True)
    assert client.get_dataset(shared).result() == 4
    client.unpublish_dataset(shared)


def test_published_future_outlives_its_client(cluster, client, connect, name):
    """Pitfall 20: publishing waits for the graph that is still on its way."""
    shared = name("dataset")
    first = connect(cluster, set_as_default=False)
    future = first.submit(inc, 10, pure=False)
    first.publish_dataset(**{shared: future})
    key = future.key
    del future
    first.close()
    assert client.get_dataset(shared).result() == 11
    client.unpublish_dataset(shared)
    gc.collect()
    eventually(lambda: cluster.has_forgotten(key))


def test_missing_dataset(client, name):
    missing = name("dataset")
    with pytest.raises(KeyError, match=missing):
        client.get_dataset(missing)
    assert client.get_dataset(missing, default="nothing") == "nothing"
    client.unpublish_dataset(missing)
    assert missing not in client.list_datasets()


def test_datasets_by_mapping(client, name):
    shared = name("dataset")
    client.datasets[shared] = client.submit(inc, 1)
    assert shared in client.datasets
    assert client.datasets[shared].result() == 2
    del client.datasets[shared]
    assert shared not in list(client.datasets)


def test_dataset_names_need_not_be_strings(client, name):
    key = (name("dataset"), 1)
    client.publish_dataset(client.submit(inc, 1), name=key)
    assert key in {
        tuple(n) if isinstance(n, (list, tuple)) else n for n in client.list_datasets()
    }
    assert client.get_dataset(key).result() == 2
    client.unpublish_dataset(key)


def test_published_plain_data(client, name):
    shared = name("dataset")
    client.publish_dataset(**{shared: {"rows": np.arange(3)}})
    np.testing.assert_array_equal(client.get_dataset(shared)["rows"], [0, 1, 2])
    client.unpublish_dataset(shared)


# Metadata


def test_metadata_is_set_and_read(client, name):
    key = name("meta")
    client.set_metadata(key, 123)
    assert client.get_metadata(key) == 123


def test_metadata_may_be_nested(client, name):
    key = name("meta")
    client.set_metadata([key, "a", "b"], {"x": 1})
    assert client.get_metadata([key, "a", "b", "x"]) == 1
    assert client.get_metadata([key]) == {"a": {"b": {"x": 1}}}


def test_missing_metadata(client, name):
    key = name("meta")
    with pytest.raises(KeyError):
        client.get_metadata([key, "nothing"])
    assert client.get_metadata([key, "nothing"], default=None) is None
    assert client.get_metadata(key, default=5) == 5


def test_metadata_of_tasks_and_workers(client, name):
    key = name("meta")

    def note(key):
        get_client().set_metadata(key, "from a task")

    client.submit(note, key).result()
    assert client.get_metadata(key) == "from a task"


def test_metadata_goes_with_the_task_of_its_name(client, name):
    kept, key = name("meta"), name("inc")
    future = client.submit(inc, 1, key=key)
    client.set_metadata([key, "note"], 123)
    client.set_metadata(kept, 456)
    assert future.result() == 2
    assert client.get_metadata([key, "note"]) == 123
    future.release()
    eventually(lambda: client.get_metadata(key, default="gone") == "gone")
    assert client.get_metadata(kept) == 456


def test_task_blocked_in_a_primitive_leaves_others_alone(client, name):
    started, release = name("started"), name("release")
    blocked = client.submit(signal_and_wait, started, release, "done", workers=["w0"])
    assert Event(started).wait(20)
    assert client.gather(client.map(inc, range(20), pure=False)) == list(range(1, 21))
    Event(release).set()
    assert blocked.result() == "done"


def test_event_wait_ends_when_the_waiter_disconnects(cluster, client, name):
    """A waiter that is gone must not keep anything busy."""
    import asyncio

    shared = name("event")

    async def abandon():
        task = asyncio.ensure_future(
            call_async(cluster.address, "event_wait", name=shared, timeout=None)
        )
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(abandon())
    Event(shared).set()
    assert Event(shared).is_set()
