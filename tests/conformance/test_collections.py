"""Dask's collections and delayed on the cluster."""

from __future__ import annotations

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
from conformance_tasks import add, double, inc, total, worker_name
from dask import delayed
from distributed import futures_of, wait


def frame(rows=1000):
    return pd.DataFrame(
        {
            "key": np.arange(rows) % 17,
            "value": np.arange(rows, dtype=float),
            "text": [f"t{i % 5}" for i in range(rows)],
        }
    )


def test_delayed_chain(client):
    assert delayed(add)(delayed(inc)(1), delayed(double)(4)).compute() == 10


def test_delayed_reduction_over_a_list(client):
    assert delayed(total)([delayed(inc)(i) for i in range(100)]).compute() == 5050


def test_delayed_tree(client):
    level = [delayed(inc)(i) for i in range(64)]
    while len(level) > 1:
        level = [
            delayed(add)(a, b) for a, b in zip(level[::2], level[1::2], strict=True)
        ]
    assert level[0].compute() == sum(range(1, 65))


def test_delayed_with_several_outputs(client):
    pair = delayed(lambda x: (x, x + 1), nout=2)(5)
    assert dask.compute(*pair) == (5, 6)


def test_delayed_attribute_and_method_access(client):
    assert delayed(lambda: "some text")().upper().compute() == "SOME TEXT"
    assert delayed(lambda: 3 + 4j)().real.compute() == 3


def test_compute_of_several_collections_at_once(client):
    x = da.ones(10, chunks=5)
    y = db.from_sequence(range(10), npartitions=2)
    assert dask.compute(x.sum(), y.sum(), delayed(inc)(1)) == (10, 45, 2)


def test_client_compute_gives_futures(client):
    future = client.compute(delayed(inc)(1))
    assert future.result() == 2
    futures = client.compute([delayed(inc)(2), delayed(inc)(3)])
    assert client.gather(futures) == [3, 4]
    assert client.compute(delayed(inc)(4), sync=True) == 5


def test_persist_keeps_results_on_the_workers(client, cluster):
    x = da.arange(100, chunks=10).persist()
    wait(x)
    assert set(cluster.call("who_has")) >= {f.key for f in futures_of(x)}
    assert x.sum().compute() == 4950


def test_persist_followed_by_release_of_the_original(client):
    """Pitfall 21: deleting futures right after persist must not lose keys."""
    x = client.persist(da.ones((100, 100), chunks=10))
    y = client.persist(x + 1)
    del x
    assert y.sum().compute() == 20_000


def test_client_get_of_a_plain_graph(client):
    graph = {"x": (inc, 1), "y": (add, "x", 10), "z": (total, ["x", "y"])}
    assert client.get(graph, "z") == 14
    assert client.get(graph, ["x", ["y", "z"]]) in ([2, [12, 14]], (2, (12, 14)))


def test_array_sum(client):
    x = da.arange(100_000, chunks=1000)
    assert x.sum().compute() == sum(range(100_000))


def test_array_dot_and_transpose(client):
    a = np.arange(400.0).reshape(20, 20)
    x = da.from_array(a, chunks=(7, 6))
    np.testing.assert_allclose((x @ x.T).compute(), a @ a.T)


def test_array_mean_and_std_along_axes(client):
    a = np.random.default_rng(0).random((60, 40))
    x = da.from_array(a, chunks=(20, 10))
    mean, std = dask.compute(x.mean(axis=0), x.std(axis=1))
    np.testing.assert_allclose(mean, a.mean(axis=0))
    np.testing.assert_allclose(std, a.std(axis=1))


def test_array_slicing_with_neighbours(client):
    a = np.arange(1000.0)
    x = da.from_array(a, chunks=100)
    smooth = x.map_overlap(lambda b: (np.roll(b, 1) + b + np.roll(b, -1)) / 3, depth=1)
    result = smooth.compute()
    np.testing.assert_allclose(result[1:-1], (a[:-2] + a[1:-1] + a[2:]) / 3)


def test_array_rechunk_by_tasks(client):
    a = np.arange(900.0).reshape(30, 30)
    with dask.config.set({"array.rechunk.method": "tasks"}):
        y = da.from_array(a, chunks=(30, 3)).rechunk((3, 30))
        np.testing.assert_array_equal(y.compute(), a)


def test_array_random_is_reproducible_by_seed(client):
    x = da.random.default_rng(42).random(1000, chunks=100)
    assert x.sum().compute() == x.sum().compute()


def test_array_svd(client):
    a = np.random.default_rng(1).random((200, 10))
    _, s, _ = da.linalg.svd(da.from_array(a, chunks=(50, 10)))
    np.testing.assert_allclose(s.compute(), np.linalg.svd(a, compute_uv=False))


def test_array_store_into_files(client, tmp_path):
    path = str(tmp_path / "out.npy")
    target = np.lib.format.open_memmap(path, mode="w+", dtype=float, shape=(10,))
    target.flush()

    class Sink:
        """Opens the file anew in each process."""

        def __setitem__(self, index, block):
            out = np.lib.format.open_memmap(path, mode="r+")
            out[index] = block
            out.flush()

    da.arange(10, chunks=5, dtype=float).store(Sink(), lock=False)
    np.testing.assert_array_equal(np.load(path), np.arange(10.0))


def test_bag_fold_and_frequencies(client):
    bag = db.from_sequence(list("abracadabra"), npartitions=3)
    assert dict(bag.frequencies().compute()) == {"a": 5, "b": 2, "r": 2, "c": 1, "d": 1}
    assert db.from_sequence(range(20), npartitions=4).fold(add).compute() == 190


def test_bag_groupby_by_tasks(client):
    bag = db.from_sequence(range(20), npartitions=4)
    groups = dict(bag.groupby(lambda x: x % 3, shuffle="tasks").compute())
    assert {k: sorted(v) for k, v in groups.items()} == {
        k: [x for x in range(20) if x % 3 == k] for k in range(3)
    }


def test_dataframe_groupby(client):
    pdf = frame()
    result = dd.from_pandas(pdf, npartitions=5).groupby("key").value.mean().compute()
    pd.testing.assert_series_equal(result.sort_index(), pdf.groupby("key").value.mean())


def test_dataframe_filter_and_describe(client):
    pdf = frame()
    ddf = dd.from_pandas(pdf, npartitions=4)
    assert len(ddf[ddf.value > 500]) == 499
    assert ddf.value.max().compute() == 999


def test_dataframe_merge_by_tasks(client):
    left, right = frame(200), frame(50)[["key", "text"]].drop_duplicates("key")
    with dask.config.set({"dataframe.shuffle.method": "tasks"}):
        merged = dd.from_pandas(left, npartitions=4).merge(
            dd.from_pandas(right, npartitions=2), on="key"
        )
        assert len(merged.compute()) == len(left.merge(right, on="key"))


def test_dataframe_read_csv_and_write_parquet(client, tmp_path):
    for i in range(3):
        frame(100).to_csv(tmp_path / f"{i}.csv", index=False)
    ddf = dd.read_csv(str(tmp_path / "*.csv"))
    assert ddf.value.sum().compute() == 3 * sum(range(100))
    ddf.to_parquet(tmp_path / "out")
    assert len(dd.read_parquet(tmp_path / "out").compute()) == 300


def test_dataframe_repartition_and_map_partitions(client):
    ddf = dd.from_pandas(frame(100), npartitions=10).repartition(npartitions=3)
    sizes = ddf.map_partitions(len).compute()
    assert sum(sizes) == 100
    assert len(sizes) == 3


def test_dataframe_from_futures(client):
    futures = client.map(lambda i: pd.DataFrame({"x": [i, i + 1]}), range(4))
    ddf = dd.from_delayed(futures, meta=pd.DataFrame({"x": [0]}))
    assert ddf.x.sum().compute() == sum(2 * i + 1 for i in range(4))


def test_collection_of_delayed_futures(client):
    future = client.submit(np.ones, 5)
    x = da.from_delayed(delayed(future), shape=(5,), dtype=float)
    assert x.sum().compute() == 5


def test_long_linear_chain(client):
    graph = {"c-0": 0}
    for i in range(1, 501):
        graph[f"c-{i}"] = (inc, f"c-{i - 1}")
    assert client.get(graph, "c-500") == 500


def test_wide_fan_in(client):
    graph = {f"leaf-{i}": (inc, i) for i in range(1500)}
    graph["top"] = (total, list(graph))
    assert client.get(graph, "top") == sum(range(1, 1501))


def test_graph_with_aliases_and_plain_data(client):
    graph = {"a": 1, "b": "a", "c": (inc, "b"), "d": [1, "c"], "e": "d"}
    assert list(client.get(graph, "e")) == [1, 2]


def test_delayed_with_key_names_and_worker_annotation(client):
    with dask.annotate(workers=["w1"]):
        value = delayed(worker_name)(1)
    assert value.compute(optimize_graph=False) == "w1"


def test_xarray_like_duck_object_with_dask_graph(client):
    """Anything with Dask's collection protocol computes."""

    class Box(dask.base.DaskMethodsMixin):
        def __init__(self, graph, key):
            self.graph, self.key = graph, key

        def __dask_graph__(self):
            return self.graph

        def __dask_keys__(self):
            return [self.key]

        def __dask_layers__(self):
            return (self.key,)

        def __dask_postcompute__(self):
            return (lambda results: results[0]), ()

    assert Box({"box-1": (inc, 1), "box-2": (inc, "box-1")}, "box-2").compute() == 3
