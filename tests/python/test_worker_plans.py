"""Fused tasks give what dask gives, and let go of what they no longer need."""

from __future__ import annotations

import gc
import pickle
import weakref
from operator import add

import dask.array as da
import pytest
from dask._task_spec import (
    Alias,
    DataNode,
    Dict,
    GraphNode,
    List,
    Task,
    TaskRef,
    Tuple,
)
from oxidask._worker_plans import execute, hasten_unpickling, is_fused


def inc(x):
    return x + 1


def collect(*args, **kwargs):
    return args, kwargs


def fused(*tasks):
    task = GraphNode.fuse(*tasks)
    assert is_fused(task)
    return task


def both(task, values):
    expected = task(values)
    assert execute(task, values) == expected
    assert execute(pickle.loads(pickle.dumps(task)), values) == expected
    return expected


def test_a_chain():
    task = fused(
        Task("a", inc, TaskRef("x")),
        Task("b", inc, TaskRef("a")),
        Task("c", add, TaskRef("b"), TaskRef("y")),
    )
    assert both(task, {"x": 1, "y": 10}) == 13


def test_every_kind_of_node():
    task = fused(
        DataNode("data", 5),
        Alias("alias", "data"),
        Task("inner", collect, List(TaskRef("alias"), 7, [8]), name=TaskRef("x")),
        Task("dict", collect, Dict({"k": TaskRef("inner")})),
        Task("out", collect, Tuple(TaskRef("dict"), 1), Alias("x"), k=TaskRef("data")),
    )
    both(task, {"x": "input"})


def test_fused_within_fused():
    inner = fused(Task("a", inc, TaskRef("x")), Task("b", inc, TaskRef("a")))
    task = fused(inner, Task("c", add, TaskRef("b"), TaskRef("y")))
    assert both(task, {"x": 1, "y": 1}) == 4


def test_an_input_that_was_put_in_its_place():
    task = fused(
        Task("a", add, TaskRef("x"), TaskRef("y")), Task("b", inc, TaskRef("a"))
    )
    task = task.substitute({"x": DataNode("x", 5)})
    assert both(task, {"y": 1}) == 7


def test_a_diamond_runs_each_node_once():
    calls = []

    def note(x):
        calls.append(x)
        return x + 1

    task = fused(
        Task("a", note, TaskRef("x")),
        Task("b", inc, TaskRef("a")),
        Task("c", inc, TaskRef("a")),
        Task("d", add, TaskRef("b"), TaskRef("c")),
    )
    assert execute(task, {"x": 0}) == 4
    assert calls == [0]


def test_nodes_that_the_result_does_not_need_run_as_well():
    calls = []
    task = Task("x", inc, TaskRef("in")).fuse(
        Task("a", inc, TaskRef("in")), Task("b", inc, TaskRef("a"))
    )
    graph, *rest = task.args
    graph = {**graph, "aside": Task("aside", calls.append, 1)}
    task = Task("b", task.func, graph, *rest)
    assert execute(task, {"in": 1}) == 3
    assert calls == [1]


def test_intermediate_values_go_as_soon_as_they_can():
    class Value:
        pass

    made = []

    def make(_):
        value = Value()
        made.append(weakref.ref(value))
        return value

    def alive(_):
        gc.collect()
        return sum(ref() is not None for ref in made)

    task = fused(
        Task("a", make, TaskRef("x")),
        Task("b", make, TaskRef("a")),
        Task("c", make, TaskRef("b")),
        Task("d", alive, TaskRef("c")),
    )
    # The last one is its argument.
    assert execute(task, {"x": 0}) == 1


def test_errors_come_from_the_users_code():
    task = fused(Task("a", inc, TaskRef("x")), Task("b", inc, TaskRef("a")))
    with pytest.raises(TypeError, match="can only concatenate str") as info:
        execute(task, {"x": "text"})
    assert info.traceback[-1].name == "inc"


@pytest.mark.parametrize("chunks", [(5, 5), (10, 3)])
def test_arrays(chunks):
    x = da.random.default_rng(1).random((20, 20), chunks=chunks)
    y = (x + x.T).sum(axis=0)[::2]
    (optimized,) = (
        da.Array(
            y.__dask_optimize__(y.dask, y.__dask_keys__()), y.name, y.chunks, y.dtype
        ),
    )
    values = {}
    fused_count = 0
    from dask.order import order

    graph = dict(optimized.dask)
    ranks = order(graph)
    for key in sorted(graph, key=ranks.__getitem__):
        node = graph[key]
        if is_fused(node):
            fused_count += 1
            values[key] = execute(node, values)
        else:
            values[key] = node(values)
    assert fused_count
    parts = [values[key] for key in optimized.__dask_keys__()]
    assert [part.tolist() for part in parts] == [
        part.tolist()
        for part in (block.compute(scheduler="sync") for block in y.blocks)
    ]


def test_unpickling_gives_the_same_tasks():
    tasks = [
        Task("a", collect, TaskRef("x"), 1, k=[2], _data_producer=True),
        List(TaskRef("x"), 1),
        Dict({"a": TaskRef("x")}),
        fused(Task("a", inc, TaskRef("x")), Task("b", inc, TaskRef("a"))),
    ]
    pickled = [pickle.dumps(task) for task in tasks]
    hasten_unpickling()
    hasten_unpickling()
    for task, data in zip(tasks, pickled, strict=True):
        loaded = pickle.loads(data)
        assert type(loaded) is type(task)
        assert loaded == task
        assert loaded.dependencies == task.dependencies
        assert loaded.data_producer == task.data_producer
        assert loaded({"x": 1}) == task({"x": 1})
