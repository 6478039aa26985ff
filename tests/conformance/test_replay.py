"""Tasks run again in the client's process, to look into what they did."""

from __future__ import annotations

import sys
import traceback

import dask
import pytest
from cluster import call
from conformance_tasks import add, div, double, inc, throws
from distributed import Client, wait


def replayed(client: Client, future, error: type[BaseException]) -> list[str]:
    """Names of the functions that an error went through when replayed here."""
    with pytest.raises(error):
        client.recreate_error_locally(future)
    try:
        client.recreate_error_locally(future)
    except error:
        return [frame.name for frame in traceback.extract_tb(sys.exc_info()[2])]
    raise AssertionError("it did not fail the second time")


def test_a_failed_task(client):
    future = client.submit(div, 1, 0)
    assert replayed(client, future, ZeroDivisionError)[-1] == "div"


def test_a_failed_task_with_keywords(client):
    future = client.submit(div, 1, y=0)
    assert replayed(client, future, ZeroDivisionError)[-1] == "div"


def test_the_task_to_blame_is_replayed(client):
    bad = client.submit(throws, "at the root", pure=False)
    after = client.submit(inc, bad)
    last = client.submit(double, after)
    with pytest.raises(RuntimeError, match="at the root"):
        client.recreate_error_locally(last)


def test_the_first_of_several_that_failed(client):
    good = client.submit(inc, 1, pure=False)
    bad = client.submit(throws, "the one", pure=False)
    with pytest.raises(RuntimeError, match="the one"):
        client.recreate_error_locally([good, bad])


def test_nothing_failed(client):
    future = client.submit(inc, 1, pure=False)
    with pytest.raises(ValueError, match="No errored futures passed"):
        client.recreate_error_locally(future)


def test_a_failed_task_of_a_collection(client):
    values = [dask.delayed(div)(1, value) for value in range(3)]
    bad = dask.delayed(sum)(values).persist()
    with pytest.raises(ZeroDivisionError):
        client.recreate_error_locally(bad)


def test_a_failed_task_of_an_array(client):
    import dask.array as da

    def fail_at_the_middle(block, block_id=None):
        if block_id == (1, 1):
            raise ValueError("the middle")
        return block

    array = da.ones((6, 6), chunks=2).map_blocks(fail_at_the_middle, dtype=float)
    with pytest.raises(ValueError, match="the middle"):
        client.recreate_error_locally(array.sum().persist())


def test_a_task_that_worked(client):
    x = client.submit(inc, 1, pure=False)
    y = client.submit(add, x, y=40)
    assert client.recreate_task_locally(y) == 42


def test_a_task_by_its_key(client, name):
    key = name("by-key")
    future = client.submit(inc, 1, key=key)
    wait(future)
    assert client.recreate_task_locally(key) == 2


@pytest.mark.parametrize("count", [1, 300])
def test_a_task_of_a_map(client, count):
    futures = client.map(add, range(count), y=5, pure=False)
    wait(futures)
    assert client.recreate_task_locally(futures[-1]) == count - 1 + 5


def test_a_task_of_a_large_graph(client):
    values = [dask.delayed(inc)(i) for i in range(200)]
    *_, last = client.compute(values)
    wait(last)
    assert client.recreate_task_locally(last) == 200


def test_a_function_of_the_calling_module(client):
    offset = 10

    def shifted(x):
        return x + offset

    future = client.submit(shifted, 1, pure=False)
    wait(future)
    assert client.recreate_task_locally(future) == 11


def test_a_task_that_nobody_knows(client):
    with pytest.raises(KeyError, match="never-heard-of"):
        client.recreate_task_locally("never-heard-of")


def test_the_recipe_of_scattered_data(client, cluster):
    [future] = client.scatter([1])
    assert call(cluster.address, "get_runspec", key=future.key) is None


def test_who_is_to_blame(client, cluster, name):
    good = client.submit(inc, 1, key=name("good"))
    bad = client.submit(throws, key=name("bad"))
    after = client.submit(inc, bad, key=name("after"))
    wait([good, after])

    def cause(*keys):
        return call(cluster.address, "get_error_cause", keys=list(keys))

    assert cause(after.key) == bad.key
    assert cause(bad.key) == bad.key
    assert cause(good.key, after.key) == bad.key
    assert cause(good.key) is None
    assert cause("never-heard-of") is None
    assert cause() is None
