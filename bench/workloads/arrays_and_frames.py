"""Dask's collections: arrays, dataframes, bags."""

from __future__ import annotations

from typing import Any

import bench_tasks
import dask

from workloads.base import Context, graph_size, workload


def _compute(context: Context, collection: Any) -> tuple[int, Any]:
    tasks = graph_size(collection)
    with context.timed():
        result = collection.compute()
    return tasks, result


def _side(chunks: int) -> int:
    return max(2, round(chunks**0.5))


@workload("array-sum", 1_600, 256, warm=16)
def array_sum(context: Context, size: int) -> int:
    """(x + x.T).sum() over about that many chunks of 100x100; overhead bound."""
    import dask.array as da

    side = 100 * _side(size)
    x = da.ones((side, side), chunks=(100, 100))
    tasks, result = _compute(context, (x + x.T).sum())
    assert result == 2 * side**2
    return tasks


@workload("array-sum-big", 64, 16, warm=4)
def array_sum_big(context: Context, size: int) -> int:
    """(x + x.T).sum() over that many random chunks of 1500x1500; compute bound."""
    import dask.array as da

    side = 1500 * _side(size)
    x = da.random.default_rng(0).random((side, side), chunks=(1500, 1500))
    return _compute(context, (x + x.T).sum())[0]


def _rechunk(context: Context, size: int, method: str) -> int:
    import dask.array as da

    side = 200 * size
    x = da.random.default_rng(0).random((side, side), chunks=(side, 200))
    context.figures["megabytes"] = side**2 * 8 / 1e6
    with dask.config.set({"optimization.fuse.active": False}):
        return _compute(context, x.rechunk((200, side), method=method).sum())[0]


@workload("array-rechunk-tasks", 24, 8, warm=3)
def rechunk_tasks(context: Context, size: int) -> int:
    """That many column chunks to as many row chunks, by tasks."""
    return _rechunk(context, size, "tasks")


@workload("array-rechunk-p2p", 24, 8, warm=3)
def rechunk_p2p(context: Context, size: int) -> int:
    """That many column chunks to as many row chunks, by P2P."""
    return _rechunk(context, size, "p2p")


@workload("array-climatology", 8, 3, warm=1)
def climatology(context: Context, size: int) -> int:
    """Mean anomaly from a monthly mean, that many years of daily data, with xarray."""
    import dask.array as da
    import pandas as pd
    import xarray as xr

    days = 365 * size
    values = da.random.default_rng(0).random((days, 60, 60), chunks=(30, 60, 60))
    times = pd.date_range("2000-01-01", periods=days)
    table = xr.DataArray(values, dims=("time", "lat", "lon"), coords={"time": times})
    months = table.groupby("time.month")
    return _compute(context, (months - months.mean("time")).mean().data)[0]


@workload("array-matmul", 12, 5, warm=2)
def matmul(context: Context, size: int) -> int:
    """(x @ x.T).sum(), that many by as many chunks of 200x200."""
    import dask.array as da

    x = da.random.default_rng(0).random((200 * size, 200 * size), chunks=(200, 200))
    return _compute(context, (x @ x.T).sum())[0]


@workload("array-svd", 200, 40, warm=4)
def svd(context: Context, size: int) -> int:
    """Singular values of a tall array, that many row chunks of 2000x20."""
    import dask.array as da

    x = da.random.default_rng(0).random((2000 * size, 20), chunks=(2000, 20))
    return _compute(context, da.linalg.svd(x)[1])[0]


def _timeseries(days: int, frequency: str = "2s") -> Any:
    import dask.datasets
    import pandas as pd

    end = pd.Timestamp("2000-01-01") + pd.Timedelta(days=days)
    return dask.datasets.timeseries(
        start="2000-01-01",
        end=str(end.date()),
        freq=frequency,
        partition_freq="1d",
        seed=1,
    )


@workload("df-groupby", 60, 10, warm=2)
def frame_groupby(context: Context, size: int) -> int:
    """groupby(name).agg over that many partitions of 43,000 rows, made on the fly."""
    frame = _timeseries(size)
    context.figures["million_rows"] = size * 43_200 / 1e6
    return _compute(
        context, frame.groupby("name").agg({"x": ["mean", "sum"], "y": "max"})
    )[0]


@workload("df-join-shuffle", 24, 6, warm=2)
def frame_join(context: Context, size: int) -> int:
    """Merge of two frames of that many partitions on a column, by P2P."""
    left, right = _timeseries(size, "10s"), _timeseries(size, "10s")
    right = right[["id", "x"]].drop_duplicates("id").repartition(npartitions=size)
    context.figures["million_rows"] = size * 8_640 / 1e6
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        return _compute(context, left.merge(right, on="id", how="inner").x_x.sum())[0]


@workload("df-set-index", 30, 6, warm=2)
def frame_set_index(context: Context, size: int) -> int:
    """set_index on an unsorted column, that many partitions of 43,000 rows, by P2P."""
    frame = _timeseries(size)
    context.figures["million_rows"] = size * 43_200 / 1e6
    with dask.config.set({"dataframe.shuffle.method": "p2p"}), context.timed():
        frame.set_index("x").map_partitions(len).compute()
    return size


@workload("bag-wordcount", 100, 20, warm=2)
def bag_wordcount(context: Context, size: int) -> int:
    """bag.frequencies over that many partitions of 20,000 words."""
    import dask.bag as db

    numbers = db.from_sequence(range(size), npartitions=size)
    counts = numbers.map(bench_tasks.words, 20_000).flatten().frequencies()
    return _compute(context, counts.topk(10, key=1))[0]
