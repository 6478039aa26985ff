"""Data sent to the cluster by a client, and the copies of it."""

from __future__ import annotations

import gc

import numpy as np
import pandas as pd
import pytest
from cluster import eventually
from conformance_tasks import add, identity, inc, worker_name
from distributed import wait


def test_scatter_of_one_value(client):
    future = client.scatter(42)
    assert future.status == "finished"
    assert future.result() == 42


def test_scatter_of_a_list_gives_a_list(client):
    futures = client.scatter([1, 2, 3])
    assert client.gather(futures) == [1, 2, 3]


@pytest.mark.parametrize("kind", [tuple, set, frozenset])
def test_scatter_keeps_the_kind_of_container(client, kind):
    futures = client.scatter(kind([1, 2, 3]))
    assert isinstance(futures, kind)
    assert sorted(client.gather(list(futures))) == [1, 2, 3]


def test_scatter_of_a_dict_keeps_its_keys(client, name):
    a, b = name("a"), name("b")
    futures = client.scatter({a: 1, b: 2})
    assert set(futures) == {a, b}
    assert futures[a].key == a
    assert client.gather(futures) == {a: 1, b: 2}


def test_scattered_values_are_arguments_of_tasks(client):
    x, y = client.scatter([1, 2])
    assert client.submit(add, x, y).result() == 3


def test_scatter_with_hash_gives_equal_keys_for_equal_values(client):
    a, b = client.scatter("same value"), client.scatter("same value")
    assert a.key == b.key
    c = client.scatter("same value", hash=False)
    assert c.key != a.key
    assert c.result() == a.result()


def test_scatter_to_a_named_worker(client, cluster):
    address = cluster.worker("w1").address
    future = client.scatter([7], workers=[address])[0]
    assert cluster.tasks()[future.key] == [address]
    other = client.scatter([8], workers=["w1"])[0]
    assert cluster.tasks()[other.key] == [address]


def test_scatter_spreads_over_the_workers(client, cluster):
    futures = client.scatter(list(range(8)), hash=False)
    held = [cluster.tasks()[f.key] for f in futures]
    assert {address for (address,) in held} == {w.address for w in cluster.workers}


def test_broadcast_puts_a_copy_on_every_worker(client, cluster):
    future = client.scatter(np.ones(10), broadcast=True)
    addresses = {w.address for w in cluster.workers}
    eventually(lambda: set(cluster.tasks()[future.key]) == addresses)
    assert client.submit(np.sum, future).result() == 10


def test_broadcast_to_a_list_of_workers(fresh_cluster, connect):
    cluster = fresh_cluster(workers=3)
    client = connect(cluster)
    chosen = {cluster.worker(n).address for n in ("w0", "w2")}
    (future,) = client.scatter([1], broadcast=True, workers=list(chosen))
    assert set(cluster.tasks()[future.key]) == chosen


@pytest.mark.parametrize("direct", [True, False])
def test_huge_scatter_and_gather(client, direct):
    """Pitfall 8, and more bytes than a shard holds (64 MiB)."""
    data = np.arange(9_000_000, dtype=np.int64)
    future = client.scatter(data, direct=direct, hash=False)
    assert client.submit(lambda x: int(x.sum()), future).result() == int(data.sum())
    back = client.gather(future, direct=direct)
    assert back.dtype == data.dtype
    assert np.array_equal(back, data)


def test_scatter_of_a_dataframe(client):
    pdf = pd.DataFrame({"x": np.arange(1000), "s": ["text"] * 1000})
    future = client.scatter(pdf)
    pd.testing.assert_frame_equal(future.result(), pdf)
    assert client.submit(len, future).result() == 1000


def test_scatter_of_awkward_values(client):
    values = [
        None,
        b"",
        "",
        [],
        {},
        np.empty((0, 3)),
        memoryview(b"abc").tobytes(),
        1 << 80,
    ]
    futures = [client.scatter([value], hash=False)[0] for value in values]
    back = client.gather(futures)
    assert [type(a) for a in back] == [type(b) for b in values]
    assert back[:5] == values[:5]
    assert back[5].shape == (0, 3)
    assert back[-1] == 1 << 80


def test_scatter_before_any_worker_times_out(fresh_cluster, connect):
    cluster = fresh_cluster(workers=0)
    client = connect(cluster)
    with pytest.raises(TimeoutError):
        client.scatter([1], timeout=0.2)
    cluster.add_worker()
    assert client.gather(client.scatter([1], direct=False)) == [1]


def test_released_scattered_data_leaves_the_workers(client, cluster):
    future = client.scatter(np.ones(100), hash=False)
    key = future.key
    assert cluster.knows(key)
    del future
    gc.collect()
    eventually(lambda: cluster.has_forgotten(key))


def test_scattered_data_stays_while_a_dependent_lives(client, cluster):
    data = client.scatter(10, hash=False)
    dependent = client.submit(inc, data)
    wait(dependent)
    key = data.key
    del data
    gc.collect()
    assert client.submit(add, dependent, 5).result() == 16
    del dependent
    gc.collect()
    eventually(lambda: cluster.has_forgotten(key))


def test_replicate_makes_copies(client, cluster):
    futures = client.scatter([1, 2], workers=["w0"])
    client.replicate(futures)
    addresses = {w.address for w in cluster.workers}
    for future in futures:
        assert set(cluster.tasks()[future.key]) == addresses


def test_replicate_to_one_copy_removes_the_others(client, cluster):
    future = client.scatter(5, broadcast=True, hash=False)
    eventually(lambda: len(cluster.tasks()[future.key]) == 2)
    client.replicate([future], n=1)
    eventually(lambda: len(cluster.tasks()[future.key]) == 1)
    assert future.result() == 5


def test_rebalance_moves_data_from_a_full_worker(fresh_cluster, connect):
    cluster = fresh_cluster(
        workers=2,
        config={
            "distributed.worker.memory.rebalance.measure": "managed",
            "distributed.worker.memory.rebalance.sender-min": 0.0,
            "distributed.worker.memory.rebalance.sender-recipient-gap": 0.0,
        },
    )
    client = connect(cluster)
    futures = client.scatter(
        [np.ones(1_000_000) * i for i in range(6)], workers=["w0"], hash=False
    )
    assert client.who_has(futures).values()
    client.rebalance()
    holders = [address for f in futures for address in cluster.tasks()[f.key]]
    assert {holders.count(w.address) for w in cluster.workers} == {3}


def test_data_moves_to_the_worker_that_needs_it(client, cluster):
    data = client.scatter(np.ones(1000), workers=["w0"], hash=False)
    assert client.submit(lambda x: worker_name(), data, workers=["w1"]).result() == "w1"
    assert client.submit(np.sum, data, workers=["w1"]).result() == 1000


def test_type_of_scattered_data_is_told_to_its_future(client):
    assert client.scatter("text", hash=False).type is str


def test_scatter_from_within_a_task(client):
    def scatter_inside(x):
        from distributed import get_client

        future = get_client().scatter(x + 1)
        return get_client().submit(inc, future, pure=False).result()

    assert client.submit(scatter_inside, 1).result() == 3


def test_scattered_value_equal_to_a_task_result(client):
    future = client.submit(identity, client.scatter((1, "a")))
    assert future.result() == (1, "a")
