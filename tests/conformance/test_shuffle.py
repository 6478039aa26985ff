"""P2P shuffles of dataframes and arrays (pitfall 28)."""

from __future__ import annotations

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from cluster import eventually
from conformance_tasks import inc
from distributed import Event, wait


@pytest.fixture(autouse=True)
def p2p():
    with dask.config.set(
        {
            "dataframe.shuffle.method": "p2p",
            "array.rechunk.method": "p2p",
            "dataframe.query-planning-warning": False,
        }
    ):
        yield


def frame(rows=400, seed=0):
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {"key": random.integers(0, 40, rows), "value": np.arange(rows, dtype=float)}
    )


def test_dataframe_shuffle_brings_equal_keys_together(client):
    pdf = frame()
    out = dd.from_pandas(pdf, npartitions=8).shuffle("key", npartitions=6)
    parts = client.gather(client.compute(list(out.partitions)))
    assert sum(map(len, parts)) == len(pdf)
    homes = pd.concat([p.assign(part=i) for i, p in enumerate(parts)])
    assert homes.groupby("key").part.nunique().max() == 1


def test_dataframe_merge(client):
    left, right = frame(300, 1), frame(50, 2).drop_duplicates("key")
    merged = dd.from_pandas(left, npartitions=5).merge(
        dd.from_pandas(right, npartitions=3), on="key", how="inner"
    )
    expected = left.merge(right, on="key")
    result = merged.compute()
    assert len(result) == len(expected)
    assert result.value_x.sum() == expected.value_x.sum()


def test_dataframe_set_index_sorts(client):
    pdf = frame(500, 3)
    result = dd.from_pandas(pdf, npartitions=6).set_index("key").compute()
    assert result.index.is_monotonic_increasing
    assert result.value.sum() == pdf.value.sum()


def test_dataframe_groupby_apply(client):
    pdf = frame()
    ddf = dd.from_pandas(pdf, npartitions=4)
    result = (
        ddf.groupby("key")
        .value.apply(lambda g: g.max(), meta=("value", float))
        .compute()
    )
    expected = pdf.groupby("key").value.max()
    pd.testing.assert_series_equal(result.sort_index(), expected, check_names=False)


def test_two_shuffles_in_one_graph(client):
    pdf = frame()
    ddf = dd.from_pandas(pdf, npartitions=5)
    a, b = (
        ddf.shuffle("key"),
        ddf.assign(value=ddf.value * 2).shuffle("key", npartitions=3),
    )
    total_a, total_b = dask.compute(a.value.sum(), b.value.sum())
    assert total_b == 2 * total_a


def test_shuffle_of_a_persisted_frame_twice(client):
    ddf = dd.from_pandas(frame(), npartitions=4).persist()
    wait(ddf)
    for count in (2, 3):
        assert len(ddf.shuffle("key", npartitions=count).compute()) == 400


def test_shuffle_with_empty_partitions(client):
    ddf = dd.from_pandas(frame(), npartitions=4)
    assert len(ddf[ddf.key < 0].shuffle("key").compute()) == 0


def test_array_rechunk(client):
    a = np.arange(3600.0).reshape(60, 60)
    y = da.from_array(a, chunks=(60, 6)).rechunk((6, 60))
    np.testing.assert_array_equal(y.compute(), a)


def test_array_rechunk_of_three_dimensions(client):
    a = np.arange(1000).reshape(10, 10, 10)
    y = da.from_array(a, chunks=(2, 10, 5)).rechunk((10, 3, 10))
    np.testing.assert_array_equal((y + 1).compute(), a + 1)


def test_array_rechunk_in_a_reduction(client):
    x = da.random.default_rng(0).random((80, 80), chunks=(80, 8))
    direct = x.sum(axis=0).compute()
    np.testing.assert_allclose(x.rechunk((8, 80)).sum(axis=0).compute(), direct)


def test_failing_input_of_a_shuffle_tells_its_error(client):
    def fail(part, partition_info=None):
        if len(part) and part.value.min() < 1:
            raise ZeroDivisionError("bad partition")
        return part

    ddf = dd.from_pandas(frame(), npartitions=4)
    broken = ddf.map_partitions(fail, meta=ddf._meta)
    with pytest.raises(ZeroDivisionError, match="bad partition"):
        broken.shuffle("key").compute()
    assert len(ddf.shuffle("key").compute()) == 400


def test_failing_transfer_of_a_shuffle_tells_its_shuffle(client):
    """A column of objects that cannot be converted fails within the shuffle itself."""
    ddf = dd.from_pandas(frame(40), npartitions=2)
    broken = ddf.map_partitions(
        lambda part: part.assign(value=[object()] * len(part)), meta=ddf._meta
    )
    with pytest.raises(RuntimeError, match=r"P2P .* failed during transfer phase"):
        broken.shuffle("key").compute()
    assert client.submit(inc, 1).result() == 2


def test_cancelled_shuffle_leaves_the_cluster_usable(client, cluster, name):
    release = name("release")

    def slow(part, release):
        Event(release).wait(20)
        return part

    ddf = dd.from_pandas(frame(), npartitions=4)
    out = client.compute(
        ddf.map_partitions(slow, release, meta=ddf._meta).shuffle("key")
    )
    eventually(cluster.processing)
    out.cancel()
    Event(release).set()
    eventually(lambda: not cluster.tasks())
    assert len(ddf.shuffle("key").compute()) == 400


def test_worker_killed_during_the_transfer(fresh_cluster, connect, name):
    cluster = fresh_cluster(workers=3)
    client = connect(cluster)
    started, release = name("started"), name("release")

    def slow(part, started, release):
        Event(started).set()
        if part.value.max() > 350:
            Event(release).wait(30)
        return part

    ddf = dd.from_pandas(frame(), npartitions=12)
    out = client.compute(
        ddf.map_partitions(slow, started, release, meta=ddf._meta).shuffle(
            "key", npartitions=9
        )
    )
    assert Event(started).wait(20)
    eventually(lambda: any("shuffle-transfer" in str(k) for k in cluster.tasks()))
    cluster.kill_worker(cluster.worker("w2"))
    Event(release).set()
    result = out.result(timeout=50)
    assert result.value.sum() == frame().value.sum()


def test_worker_killed_during_the_output(fresh_cluster, connect, name):
    cluster = fresh_cluster(workers=3)
    client = connect(cluster)
    started, release = name("started"), name("release")

    def slow(part, started, release):
        Event(started).set()
        Event(release).wait(30)
        return part

    ddf = dd.from_pandas(frame(), npartitions=6)
    shuffled = ddf.shuffle("key", npartitions=12)
    out = client.compute(
        shuffled.map_partitions(slow, started, release, meta=ddf._meta)
    )
    assert Event(started).wait(30)
    cluster.kill_worker(cluster.worker("w1"))
    Event(release).set()
    result = out.result(timeout=50)
    assert result.value.sum() == frame().value.sum()


def test_worker_that_joins_during_a_shuffle(fresh_cluster, connect, name):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    started, release = name("started"), name("release")

    def slow(part, started, release):
        Event(started).set()
        Event(release).wait(30)
        return part

    ddf = dd.from_pandas(frame(), npartitions=6)
    out = client.compute(
        ddf.map_partitions(slow, started, release, meta=ddf._meta).shuffle("key")
    )
    assert Event(started).wait(20)
    cluster.add_worker(name="late")
    Event(release).set()
    assert len(out.result(timeout=50)) == 400


def test_merge_of_persisted_results_after_a_shuffle(client):
    left = dd.from_pandas(frame(200, 1), npartitions=4).shuffle("key").persist()
    wait(left)
    right = dd.from_pandas(frame(20, 2).drop_duplicates("key"), npartitions=2)
    expected = frame(200, 1).merge(frame(20, 2).drop_duplicates("key"), on="key")
    assert len(left.merge(right, on="key").compute()) == len(expected)
