"""Several clients, lost connections, asynchronous clients, clients inside tasks."""

from __future__ import annotations

import asyncio
import gc

import dask
import dask.array as da
import pytest
from cluster import eventually
from conformance_tasks import (
    add,
    append_line,
    fib,
    inc,
    signal_and_wait,
    slow_inc,
    throws,
    wait_for_event,
    worker_name,
)
from dask import delayed
from distributed import (
    CancelledError,
    Client,
    Event,
    Queue,
    Reschedule,
    Variable,
    as_completed,
    get_client,
    get_worker,
    rejoin,
    secede,
    span,
    wait,
    worker_client,
)

# Several clients


def test_two_clients_share_a_task_by_its_key(client, cluster, connect, tmp_path, name):
    path, key = tmp_path / "runs", name("shared")
    other = connect(cluster, set_as_default=False)
    mine = client.submit(append_line, str(path), "run", key=key)
    theirs = other.submit(append_line, str(path), "run", key=key)
    assert mine.result() == theirs.result() == "run"
    assert path.read_text() == "run\n"


def test_task_lives_while_one_client_wants_it(client, cluster, connect, name):
    key = name("shared")
    other = connect(cluster, set_as_default=False)
    mine = client.submit(inc, 1, key=key)
    theirs = other.submit(inc, 1, key=key)
    wait([mine])
    assert theirs.result() == 2
    del mine
    gc.collect()
    assert client.submit(inc, 10).result() == 11
    assert theirs.result() == 2
    assert cluster.knows(key)
    del theirs
    gc.collect()
    eventually(lambda: cluster.has_forgotten(key))


def test_closed_client_releases_its_tasks(client, cluster, connect, name):
    other = connect(cluster, set_as_default=False)
    keys = [name("key") for _ in range(5)]
    futures = [other.submit(inc, i, key=key) for i, key in enumerate(keys)]
    assert other.gather(futures) == [1, 2, 3, 4, 5]
    assert cluster.knows(*keys)
    other.close()
    eventually(lambda: cluster.has_forgotten(*keys))


def test_closed_client_stops_its_waiting_tasks(client, cluster, connect, name):
    other = connect(cluster, set_as_default=False)
    release, ran = name("release"), name("ran")
    gate = other.submit(wait_for_event, release)
    last = other.submit(lambda _: Event(ran).set(), gate)
    eventually(lambda: cluster.knows(last.key))
    other.close()
    eventually(lambda: cluster.has_forgotten(last.key, gate.key))
    Event(release).set()
    assert client.submit(inc, 1).result() == 2
    assert not Event(ran).is_set()


def test_errors_stay_with_their_client(client, cluster, connect):
    other = connect(cluster, set_as_default=False)
    bad = other.submit(throws, "not mine", pure=False)
    good = client.submit(inc, 1)
    assert good.result() == 2
    with pytest.raises(RuntimeError, match="not mine"):
        bad.result()


def test_many_clients_at_once(cluster, connect):
    clients = [connect(cluster, set_as_default=False) for _ in range(8)]
    futures = [c.map(inc, range(i, i + 5), pure=False) for i, c in enumerate(clients)]
    for i, (c, fs) in enumerate(zip(clients, futures, strict=True)):
        assert c.gather(fs) == list(range(i + 1, i + 6))


def test_large_graph_of_one_client_does_not_stop_another(client, cluster, connect):
    """Pitfall 21: a graph that is long in the making."""
    other = connect(cluster, set_as_default=False)
    futures = client.map(inc, range(8000), pure=False)
    assert other.submit(add, 1, 2, priority=1).result(timeout=20) == 3
    client.cancel(futures)


# Lost connections


def test_client_reconnects_after_its_connection_broke(cluster, connect, relay):
    link = relay(cluster.address)
    client = connect(link.address, set_as_default=False)
    future = client.submit(inc, 1)
    assert future.result() == 2
    link.cut()
    eventually(future.cancelled)
    eventually(lambda: client.status == "running")
    assert client.submit(inc, 10).result(timeout=20) == 11


def test_futures_are_cancelled_when_the_connection_broke(cluster, connect, relay, name):
    link = relay(cluster.address)
    client = connect(link.address, set_as_default=False)
    assert client.submit(inc, 1).result() == 2
    release = name("release")
    future = client.submit(wait_for_event, release)
    eventually(lambda: cluster.knows(future.key))
    link.cut()
    with pytest.raises(CancelledError, match="scheduler-connection-lost"):
        future.result(timeout=20)
    eventually(lambda: cluster.has_forgotten(future.key))
    eventually(lambda: client.status == "running")
    Event(release, client=client).set()


def test_broken_connection_of_one_client_leaves_the_others_alone(
    cluster, client, connect, relay, name
):
    link = relay(cluster.address)
    other = connect(link.address, set_as_default=False)
    key = name("shared")
    theirs = other.submit(inc, 1, key=key)
    assert theirs.result() == 2
    mine = client.submit(inc, 1, key=key)
    assert mine.result() == 2
    link.cut()
    eventually(theirs.cancelled)
    assert cluster.knows(key)
    assert client.submit(inc, mine).result() == 3


# Ways to reach workers


@pytest.mark.parametrize("direct", [True, False, None])
def test_direct_to_workers_setting(cluster, connect, direct):
    client = connect(cluster, direct_to_workers=direct, set_as_default=False)
    data = client.scatter([1, 2, 3])
    assert client.gather(client.map(inc, data)) == [2, 3, 4]


def test_serializers_of_a_client(cluster, connect):
    client = connect(
        cluster, serializers=["pickle"], deserializers=["pickle"], set_as_default=False
    )
    assert client.submit(inc, 1).result() == 2
    assert client.gather(client.scatter([1, "a"])) == [1, "a"]


def test_heartbeats_keep_an_idle_client(fresh_cluster, connect):
    with dask.config.set({"distributed.client.heartbeat": "50ms"}):
        cluster = fresh_cluster(workers=1)
        client = connect(cluster)
        future = client.submit(inc, 1)
        assert future.result() == 2
        # Longer than several heartbeats.
        assert client.submit(slow_inc, 1, delay=0.5).result() == 2
        assert future.result() == 2


# Asynchronous clients


def run_async(cluster, body):
    async def main():
        async with Client(cluster.address, asynchronous=True) as client:
            return await asyncio.wait_for(body(client), 40)

    return asyncio.run(main())


def test_async_submit_and_gather(cluster):
    async def body(client):
        future = client.submit(inc, 1)
        assert await future == 2
        assert await client.gather(client.map(inc, range(5))) == [1, 2, 3, 4, 5]
        return "done"

    assert run_async(cluster, body) == "done"


def test_async_as_completed_and_wait(cluster):
    async def body(client):
        futures = client.map(inc, range(10))
        seen = [await f async for f in as_completed(futures)]
        await wait(futures)
        return sorted(seen)

    assert run_async(cluster, body) == list(range(1, 11))


def test_async_errors_and_cancel(cluster):
    async def body(client):
        bad = client.submit(throws, "async failure")
        with pytest.raises(RuntimeError, match="async failure"):
            await bad
        assert isinstance(await bad.exception(), RuntimeError)
        future = client.submit(inc, 1)
        await future
        await client.cancel(future)
        assert future.cancelled()
        return "done"

    assert run_async(cluster, body) == "done"


def test_async_scatter_and_compute(cluster):
    async def body(client):
        data = await client.scatter([1, 2])
        assert await client.submit(add, *data) == 3
        x = da.ones(10, chunks=5)
        assert await client.compute(x.sum()) == 10
        return await client.run(lambda: 1)

    assert set(run_async(cluster, body).values()) == {1}


def test_async_primitives(cluster, name):
    shared = name("shared")

    async def body(client):
        await Variable(shared).set(5)
        queue = await Queue(shared)
        await queue.put("a")
        event = Event(shared)
        waiter = asyncio.ensure_future(event.wait(timeout=20))
        await event.set()
        assert await waiter
        return await Variable(shared).get(), await queue.get()

    assert run_async(cluster, body) == (5, "a")


def test_async_client_in_many_coroutines(cluster):
    async def body(client):
        async def one(i):
            return await client.submit(inc, i, pure=False)

        return await asyncio.gather(*(one(i) for i in range(50)))

    assert run_async(cluster, body) == list(range(1, 51))


# Clients inside tasks


def test_tasks_submit_tasks(client):
    assert client.submit(fib, 7).result(timeout=50) == 13


def test_worker_client_in_a_task(client):
    def parent(n):
        with worker_client() as inner:
            return sum(inner.gather(inner.map(inc, range(n))))

    assert client.submit(parent, 5).result() == 15


def test_worker_client_in_every_thread(client):
    """More parents than threads: seceding keeps room for the children."""

    def parent(n):
        with worker_client() as inner:
            return inner.submit(inc, n, pure=False).result()

    futures = client.map(parent, range(12), pure=False)
    assert client.gather(futures) == list(range(1, 13))


def test_compute_inside_a_task(client):
    def parent():
        with worker_client():
            return int(da.ones((20, 20), chunks=5).sum().compute())

    assert client.submit(parent).result() == 400


def test_delayed_inside_a_task_uses_the_cluster(client):
    def parent():
        with worker_client():
            return delayed(inc)(1).compute()

    assert client.submit(parent).result() == 2


def test_error_in_a_subtask_reaches_the_outer_client(client):
    def parent():
        with worker_client() as inner:
            return inner.submit(throws, "from a subtask").result()

    with pytest.raises(RuntimeError, match="from a subtask"):
        client.submit(parent).result()


def test_secede_and_rejoin(single_client, name):
    first, second = name("first"), name("second")

    def outer(first, second):
        secede()
        Event(first).wait(20)
        rejoin()
        Event(second).set()
        return "rejoined"

    future = single_client.submit(outer, first, second)
    # The only thread is free for another task while the first one is away.
    single_client.submit(lambda n: Event(n).set(), first).result(timeout=20)
    assert future.result(timeout=20) == "rejoined"
    assert Event(second).is_set()


def test_task_that_asks_to_be_rescheduled(client, tmp_path):
    path = tmp_path / "runs"

    def sometimes():
        append_line(str(path), worker_name())
        if len(path.read_text().split()) < 3:
            raise Reschedule()
        return "finally"

    assert client.submit(sometimes).result(timeout=20) == "finally"
    assert len(path.read_text().split()) == 3


def test_get_worker_in_a_task(client, cluster):
    def where():
        worker = get_worker()
        return worker.name, worker.address

    assert client.submit(where, workers=["w1"]).result() == (
        "w1",
        cluster.worker("w1").address,
    )


def test_get_client_in_a_task_is_connected_to_the_same_cluster(client, cluster):
    assert (
        client.submit(lambda: get_client().scheduler.address).result()
        == cluster.address
    )


def test_long_chain_of_tasks_that_submit_their_successor(client, name):
    results = name("results")

    def step(i, results):
        if i:
            from distributed import fire_and_forget

            fire_and_forget(get_client().submit(step, i - 1, results))
        else:
            Queue(results).put("end")

    client.submit(step, 15, results).result()
    assert Queue(results).get(timeout=20) == "end"


def test_span_annotation_reaches_the_tasks(client):
    def read():
        worker = get_worker()
        return dict(worker.state.tasks[worker.get_current_task()].annotations)["span"][
            "name"
        ]

    with span("outer"), span("inner"):
        future = client.submit(read, pure=False)
    assert tuple(future.result()) == ("outer", "inner")


def test_span_is_the_current_one_inside_a_task(client):
    def read():
        return dask.get_annotations()["span"]["name"]

    with span("outer"):
        future = client.submit(read, pure=False)
    assert tuple(future.result()) == ("outer",)


def test_task_that_outlives_its_client_by_fire_and_forget(
    client, cluster, connect, name
):
    from distributed import fire_and_forget

    started, release, done = name("started"), name("release"), name("done")
    other = connect(cluster, set_as_default=False)
    gate = other.submit(signal_and_wait, started, release)
    fire_and_forget(other.submit(lambda _: Event(done).set(), gate))
    assert Event(started).wait(20)
    other.close()
    Event(release).set()
    assert Event(done).wait(20)
