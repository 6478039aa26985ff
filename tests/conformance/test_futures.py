"""submit, map, gather and the life of a future."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cluster import eventually
from conformance_tasks import (
    add,
    identity,
    inc,
    signal_and_wait,
    take,
    throws,
    total,
    wait_for_event,
    worker_name,
)
from distributed import Event, Future, as_completed, fire_and_forget, futures_of, wait


def test_submit_returns_the_result(client):
    assert client.submit(inc, 1).result() == 2


def test_submit_takes_futures_as_arguments(client):
    x = client.submit(inc, 1)
    y = client.submit(add, x, 10)
    assert client.submit(add, x, y=y).result() == 14


def test_submit_takes_futures_inside_containers(client):
    futures = client.map(inc, range(5))
    assert client.submit(total, futures).result() == 15
    nested = client.submit(identity, {"a": [futures[0], {"b": futures[1]}]})
    assert nested.result() == {"a": [1, {"b": 2}]}


def test_submit_of_a_pure_function_gives_one_key_and_one_run(client, tmp_path, name):
    marker = tmp_path / "runs"

    def record(x, path):
        with open(path, "a") as file:
            file.write("run\n")
        return x

    a = client.submit(record, 1, str(marker), key=name("pure"))
    a.result()
    b = client.submit(record, 1, str(marker), key=a.key)
    assert b.result() == 1
    assert marker.read_text() == "run\n"


def test_submit_with_pure_false_gives_different_keys(client):
    a = client.submit(inc, 1, pure=False)
    b = client.submit(inc, 1, pure=False)
    assert a.key != b.key
    assert client.gather([a, b]) == [2, 2]


def test_map_over_several_iterables_and_keywords(client):
    futures = client.map(lambda x, y, z=0: x + y + z, [1, 2, 3], [10, 20, 30], z=100)
    assert client.gather(futures) == [111, 122, 133]


def test_map_over_futures(client):
    first = client.map(inc, range(10))
    second = client.map(inc, first)
    assert client.gather(second) == list(range(2, 12))


def test_map_with_batch_size(client):
    futures = client.map(inc, range(50), batch_size=7)
    assert client.gather(futures) == list(range(1, 51))


def test_map_with_a_scattered_keyword_argument(client):
    data = client.scatter(np.arange(100_000))
    futures = client.map(take, range(4), data=data)
    assert client.gather(futures) == [0, 1, 2, 3]


def test_map_with_explicit_keys(client, name):
    keys = [name("a"), name("b")]
    futures = client.map(inc, [1, 2], key=keys)
    assert [f.key for f in futures] == keys
    assert client.gather(futures) == [2, 3]


def test_gather_keeps_the_structure(client):
    x = client.submit(inc, 1)
    y = client.submit(inc, 2)
    assert client.gather({"x": x, "list": [y, (x, 5)]}) == {"x": 2, "list": [3, (2, 5)]}


def test_gather_of_a_repeated_future(client):
    x = client.submit(inc, 1)
    assert client.gather([x, x, x]) == [2, 2, 2]


def test_gather_raises_the_first_error(client):
    futures = [client.submit(inc, 1), client.submit(throws, "no luck")]
    with pytest.raises(RuntimeError, match="no luck"):
        client.gather(futures)


def test_gather_with_errors_skip_leaves_failed_ones_out(client):
    good = client.submit(inc, 1)
    bad = client.submit(throws)
    assert client.gather([good, bad, good], errors="skip") == [2, 2]


@pytest.mark.parametrize("direct", [True, False])
def test_gather_direct_and_through_the_scheduler(client, direct):
    futures = client.map(lambda i: np.full(1000, i), range(8))
    values = client.gather(futures, direct=direct)
    assert [int(v.sum()) for v in values] == [1000 * i for i in range(8)]


def test_gather_many_small_results(client):
    futures = client.map(inc, range(2000))
    assert client.gather(futures) == list(range(1, 2001))


def test_large_result_travels_whole(client):
    """Pitfall 8: a payload is not to be changed on its way through the scheduler."""
    future = client.submit(lambda: np.arange(6_000_000).reshape(2000, 3000))
    result = client.gather(future, direct=False)
    assert result.shape == (2000, 3000)
    np.testing.assert_array_equal(result.ravel()[::1_000_000], np.arange(6) * 1_000_000)


def test_status_goes_from_pending_to_finished(client, name):
    started, release = name("started"), name("release")
    future = client.submit(signal_and_wait, started, release, 5)
    assert Event(started).wait(20)
    assert future.status == "pending"
    assert not future.done()
    Event(release).set()
    assert future.result() == 5
    assert future.status == "finished"
    assert future.done()
    assert future.exception() is None


def test_status_of_a_failed_future_is_error(client):
    future = client.submit(throws)
    wait(future)
    assert future.status == "error"
    assert future.done()


def test_future_type_is_known_after_the_run(client):
    future = client.submit(inc, 1)
    wait(future)
    assert future.type is int


def test_result_with_timeout_raises_timeout_error(client, name):
    started, release = name("started"), name("release")
    future = client.submit(signal_and_wait, started, release)
    assert Event(started).wait(20)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.05)
    Event(release).set()
    assert future.result() is None


def test_wait_with_return_when_first_completed(client, name):
    started, release = name("started"), name("release")
    slow = client.submit(signal_and_wait, started, release)
    assert Event(started).wait(20)
    fast = client.submit(inc, 1)
    done, not_done = wait([slow, fast], return_when="FIRST_COMPLETED", timeout=20)
    assert done == {fast}
    assert not_done == {slow}
    Event(release).set()
    wait(slow)


def test_wait_with_timeout_raises_timeout_error(client, name):
    started, release = name("started"), name("release")
    future = client.submit(signal_and_wait, started, release)
    assert Event(started).wait(20)
    with pytest.raises(TimeoutError):
        wait(future, timeout=0.05)
    Event(release).set()
    wait(future)


def test_done_callback_is_called_for_result_and_error(client):
    called = {}
    both = threading.Event()

    def note(future):
        called[future.key] = future.status
        if len(called) == 2:
            both.set()

    good, bad = client.submit(inc, 1), client.submit(throws)
    good.add_done_callback(note)
    bad.add_done_callback(note)
    assert both.wait(20)
    assert called == {good.key: "finished", bad.key: "error"}


def test_as_completed_yields_each_future_once(client):
    futures = client.map(inc, range(20))
    seen = list(as_completed(futures))
    assert sorted(f.key for f in seen) == sorted(f.key for f in futures)
    assert {f.status for f in seen} == {"finished"}


def test_as_completed_with_results(client):
    futures = client.map(inc, range(10))
    got = {f.key: r for f, r in as_completed(futures, with_results=True)}
    assert got == {f.key: i + 1 for i, f in enumerate(futures)}


def test_as_completed_with_results_raises_errors(client):
    futures = [client.submit(throws, "completed with error")]
    with pytest.raises(RuntimeError, match="completed with error"):
        list(as_completed(futures, with_results=True))


def test_as_completed_takes_futures_added_while_iterating(client):
    first = client.map(inc, range(3))
    completed = as_completed(first)
    total = 0
    for future in completed:
        total += future.result()
        # What is added may complete before the rest of them.
        if future in first:
            completed.add(client.submit(add, future, 100))
    assert total == (1 + 2 + 3) + (101 + 102 + 103)


def test_as_completed_in_order_of_completion(client, name):
    first, second = name("first"), name("second")
    a = client.submit(wait_for_event, first, "a")
    b = client.submit(wait_for_event, second, "b")
    completed = as_completed([a, b])
    Event(second).set()
    assert next(completed) == b
    Event(first).set()
    assert next(completed) == a


def test_as_completed_batches(client):
    futures = client.map(inc, range(10))
    seen = [f for batch in as_completed(futures).batches() for f in batch]
    assert sorted(f.key for f in seen) == sorted(f.key for f in futures)
    assert {f.status for f in seen} == {"finished"}


def test_released_futures_leave_the_cluster(client, cluster):
    future = client.submit(inc, 1)
    future.result()
    assert future.key in cluster.call("who_has")
    key = future.key
    del future
    gc.collect()
    eventually(lambda: cluster.has_forgotten(key))


def test_intermediate_results_are_released_when_dependents_are_done(client, cluster):
    x = client.submit(inc, 1)
    y = client.submit(inc, x)
    key = x.key
    del x
    assert y.result() == 3
    gc.collect()
    eventually(lambda: not cluster.call("who_has").get(key))
    assert y.key in cluster.call("who_has")


def test_dependency_is_kept_while_a_dependent_needs_it(client, name):
    release = name("release")
    x = client.submit(inc, 1)
    x.result()
    gate = client.submit(wait_for_event, release, 10)
    y = client.submit(add, x, gate)
    del x
    gc.collect()
    Event(release).set()
    assert y.result() == 12


def test_release_and_immediate_resubmission_of_one_key(client, name):
    """Pitfall 21: a release must not overtake, nor fall behind, the graph after it."""
    key = name("again")
    for i in range(30):
        future = client.submit(inc, i, key=key)
        del future
        gc.collect()
    assert client.submit(inc, 41, key=key).result() in range(1, 43)


def test_release_of_a_running_task_then_resubmission_as_task(client, name):
    """Pitfall 19: the late result of a forgotten key."""
    started, release, key = name("started"), name("release"), name("key")
    future = client.submit(signal_and_wait, started, release, "first", key=key)
    assert Event(started).wait(20)
    del future
    gc.collect()
    future = client.submit(signal_and_wait, started, release, "first", key=key)
    Event(release).set()
    assert future.result(timeout=30) == "first"


def test_release_of_a_running_task_then_use_as_dependency(client, name):
    """Pitfall 19: the same key comes back as the dependency of another task."""
    started, release, key = name("started"), name("release"), name("key")
    future = client.submit(signal_and_wait, started, release, 1, key=key)
    assert Event(started).wait(20)
    del future
    gc.collect()
    dependency = client.submit(signal_and_wait, started, release, 1, key=key)
    dependent = client.submit(inc, dependency)
    del dependency
    gc.collect()
    Event(release).set()
    assert dependent.result(timeout=30) == 2


def test_futures_after_completion_in_another_round(client, cluster, name):
    """Pitfall 19: with completion between the release and the second submission."""
    key = name("key")
    for i in range(5):
        future = client.submit(lambda i=i: i, key=key)
        assert future.result() == i
        del future
        gc.collect()
        eventually(lambda: cluster.has_forgotten(key))


def test_fire_and_forget_runs_without_a_future(client, name):
    done = name("done")
    fire_and_forget(client.submit(lambda n: Event(n).set(), done))
    assert Event(done).wait(20)


def test_fire_and_forget_releases_when_done(client, cluster, name):
    release = name("release")
    future = client.submit(wait_for_event, release)
    key = future.key
    fire_and_forget(future)
    del future
    gc.collect()
    Event(release).set()
    eventually(lambda: cluster.has_forgotten(key))


def test_future_from_its_key(client, cluster):
    x = client.submit(inc, 1)
    x.result()
    again = Future(x.key, client)
    assert again.result() == 2


def test_future_is_pickled_within_a_task_argument(client):
    x = client.submit(inc, 1)

    def use(holder):
        return (
            holder["future"].result()
            if isinstance(holder["future"], Future)
            else holder
        )

    assert client.submit(use, {"future": x}).result() == {"future": 2}


def test_second_client_that_desires_a_key_gets_its_future(client, cluster, connect):
    x = client.submit(inc, 1)
    x.result()
    other = connect(cluster, set_as_default=False)
    shared = Future(x.key, other)
    other._send_to_scheduler(
        {"op": "client-desires-keys", "keys": [x.key], "client": other.id}
    )
    assert shared.result(timeout=20) == 2
    del x
    gc.collect()
    assert other.submit(inc, shared).result() == 3


def test_futures_of_persisted_collections(client):
    import dask.bag as db

    bag = db.from_sequence(range(10), npartitions=2).map(inc).persist()
    futures = futures_of(bag)
    assert len(futures) == 2
    wait(futures)
    assert all(f.status == "finished" for f in futures)


def test_executor_interface(client):
    with client.get_executor() as executor:
        assert executor.submit(inc, 1).result() == 2
        assert list(executor.map(inc, range(5))) == [1, 2, 3, 4, 5]


def test_submit_from_many_threads(client):
    with ThreadPoolExecutor(8) as pool:
        results = list(
            pool.map(lambda i: client.submit(inc, i, pure=False).result(), range(80))
        )
    assert results == list(range(1, 81))


def test_results_of_none_and_of_many_types(client):
    values = [
        None,
        True,
        b"bytes",
        "text",
        1.5,
        (1, [2]),
        {"k": {3}},
        2**70,
        frozenset({1}),
    ]
    assert (
        client.gather([client.submit(identity, v, pure=False) for v in values])
        == values
    )


def test_worker_runs_several_tasks_at_once(single_cluster, client, name):
    a, b = name("a"), name("b")

    def meet(mine, other):
        Event(mine).set()
        return Event(other).wait(20)

    futures = [
        client.submit(meet, a, b, workers=["w0"]),
        client.submit(meet, b, a, workers=["w0"]),
    ]
    assert client.gather(futures) == [True, True]


def test_independent_tasks_use_all_workers(client, name):
    barrier = name("barrier")

    def meet(i, count):
        from distributed import Queue

        Queue(barrier).put(i)
        deadline = time.monotonic() + 20
        while Queue(barrier).qsize() < count:
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.01)
        return worker_name()

    names = client.gather(client.map(meet, range(4), count=4))
    assert sorted(names) == ["w0", "w0", "w1", "w1"]
