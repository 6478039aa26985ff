"""Shuffles between workers with an interpreter, by stock's plug-in."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from python_cluster import cluster, run, until

pandas = pytest.importorskip("pandas")
dataframe = pytest.importorskip("dask.dataframe")
array = pytest.importorskip("dask.array")


@pytest.fixture(autouse=True)
def p2p():
    with dask.config.set(
        {"dataframe.shuffle.method": "p2p", "array.rechunk.method": "p2p"}
    ):
        yield


def table(rows=1000):
    return pandas.DataFrame({"x": np.arange(rows) % 37, "y": np.arange(rows)})


def test_shuffle(tmp_path):
    async def test():
        async with cluster(tmp_path, 2, nthreads=2) as (_, client, _):
            frame = dataframe.from_pandas(table(), npartitions=8)
            shuffled = frame.shuffle("x")
            result = await client.compute(shuffled)
            expected = table().sort_values("y", ignore_index=True)
            result = result.sort_values("y", ignore_index=True)
            pandas.testing.assert_frame_equal(result, expected)

    run(test)


def test_merge_and_set_index(tmp_path):
    async def test():
        async with cluster(tmp_path, 2, nthreads=2) as (_, client, _):
            left = dataframe.from_pandas(table(), npartitions=8)
            right = dataframe.from_pandas(table(500), npartitions=7)
            merged = await client.compute(left.merge(right, on="x").shape[0])
            assert merged == len(table().merge(table(500), on="x"))
            # Divisions are given, so that nothing is computed here.
            indexed = left.set_index("x", divisions=[0, 10, 20, 36])
            result = await client.compute(indexed)
            assert result.index.is_monotonic_increasing
            assert len(result) == 1000

    run(test)


def test_rechunk(tmp_path):
    async def test():
        async with cluster(tmp_path, 2, nthreads=2) as (scheduler, client, _):
            numbers = array.arange(10_000, chunks=500).reshape(100, 100)
            rechunked = numbers.rechunk((100, 7))
            result = await client.compute(rechunked)
            np.testing.assert_array_equal(result, np.arange(10_000).reshape(100, 100))

            # Runs end on the workers as well.
            def runs(dask_worker):
                return len(dask_worker.plugins["shuffle"].shuffle_runs._active_runs)

            async def left():
                return sum((await client.run(runs)).values())

            while await left():
                pass
            await until(lambda: not scheduler.tasks)

    run(test)


def test_a_worker_dies_during_a_shuffle(tmp_path):
    def slow(part, marker):
        import os
        import time

        while not os.path.exists(marker):
            time.sleep(0.01)
        return part

    async def test():
        async with cluster(tmp_path, 3) as (scheduler, client, workers):
            marker = str(tmp_path / "go")
            frame = dataframe.from_pandas(table(), npartitions=6)
            frame = frame.map_partitions(slow, marker, meta=frame._meta)
            future = client.compute(frame.shuffle("x").y.sum())
            await until(
                lambda: (
                    sum(len(ws.processing) for ws in scheduler.workers.values()) >= 3
                )
            )
            open(marker, "w").close()
            workers[2].kill()
            assert await future == table().y.sum()

    run(test)
