"""Results that are Python containers, against the memory limit."""

from __future__ import annotations

import asyncio

import numpy as np
from distributed import wait
from python_cluster import cluster, run

#: Twice as much as the worker may hold.
COUNT = 40


def texts(number):
    return [f"{number}-{index}-{'x' * 10}" for index in range(100_000)]


def test_texts_leave_memory_as_fast_as_they_come(tmp_path):
    """Item by item each list takes seconds, and the worker is paused meanwhile."""

    async def body():
        async with cluster(tmp_path, memory_limit="300 MB") as (_, client, _):
            futures = client.map(texts, range(COUNT))
            # Took longer than a minute.
            await asyncio.wait_for(wait(futures), 30)
            lengths = await client.gather(client.map(len, [futures[0], futures[-1]]))
            assert lengths == [100_000, 100_000]

    run(body)


def test_a_container_is_pickled_as_one():
    from oxidask._worker_values import dump, load

    shared = ["a"]
    for value in ([shared, shared], (shared, shared), {"x": shared, "y": shared}):
        header, frames = dump(value)
        assert len(frames) == 1
        loaded = load(header, frames)
        assert loaded == value
        first, second = loaded.values() if type(loaded) is dict else loaded
        assert first is second


def test_arrays_in_containers_are_not_copied():
    from oxidask._worker_values import dump

    array = np.arange(1000.0)
    for value in ([array], (1, array), {"x": 1, "y": array}):
        _, frames = dump(value)
        assert any(np.shares_memory(array, np.asarray(frame)) for frame in frames)


class Handle:
    """What only a family of its own can serialise."""

    def __reduce__(self):
        raise TypeError("a handle cannot be pickled")


def test_items_that_cannot_be_pickled_are_serialised_one_by_one():
    from distributed.protocol import dask_deserialize, dask_serialize
    from oxidask._worker_values import dump, load

    dask_serialize.register(Handle)(lambda handle: ({}, [b"handle"]))
    dask_deserialize.register(Handle)(lambda header, frames: Handle())
    number, handle = load(*dump([1, Handle()]))
    assert number == 1
    assert type(handle) is Handle


def test_families_that_were_asked_for_take_items():
    from oxidask._worker_values import dump, load

    value = {"x": np.arange(3), "y": 1}
    loaded = load(*dump(value, ["dask", "msgpack"]))
    assert loaded["x"].tolist() == [0, 1, 2]
    assert loaded["y"] == 1
