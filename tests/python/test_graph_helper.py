"""The graph helper alone, over its sockets."""

from __future__ import annotations

import array
import io
import operator
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import types
import zipfile
import zlib
from pathlib import Path
from typing import Any

import dask
import pytest
from call_reference import task_from_call
from dask._expr import LLGExpr
from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef, Tuple
from graph_functions import (
    UNPICKLING_EXITS,
    UNPICKLING_FAILS,
    UNPICKLING_HANGS,
    UNPICKLING_RAISES_SYSTEM_EXIT,
    coroutine,
    file_of_module,
    increment,
    keyword,
)
from helper_process import (
    SOURCE,
    Channel,
    Expanded,
    HelperProcess,
    blob,
    expand,
    load_spec,
    pickled,
    serialized_blob,
)


def values_for(keys: Any) -> dict[Any, Any]:
    return {key: 10 + i for i, key in enumerate(sorted(keys, key=str))}


def assert_same_behaviour(ours: Any, stock: Any, *, run: bool = True) -> None:
    assert ours.dependencies == stock.dependencies
    assert ours.is_coro == stock.is_coro
    assert bool(ours.data_producer) == bool(stock.data_producer)
    assert ours.block_fusion == stock.block_fusion
    if not run or ours.is_coro:
        return
    values = values_for(stock.dependencies)
    assert repr(ours(values)) == repr(stock(values))


def assert_same_graph(
    expanded: Expanded,
    stock: dict[Any, Any],
    *,
    run: bool = True,
    reverse: bool = False,
) -> None:
    assert set(expanded.keys[: expanded.n]) == set(stock)
    for key, node in stock.items():
        assert expanded.dependencies[key] == node.dependencies
        flags = expanded.flags[key]
        assert bool(flags & 1) == bool(node.data_producer)
        assert bool(flags & 2) == isinstance(node, DataNode)
    order = list(range(expanded.n))
    nodes = expanded.nodes(order[::-1] if reverse else order)
    for key, node in stock.items():
        assert_same_behaviour(nodes[key], node, run=run)


# Nodes whose stitched or exploded form must behave as the original did.
CORPUS: dict[str, Any] = {
    "builtin": Task("k", operator.add, 1, 2),
    "by-reference": Task("k", increment, 1),
    "scalars": Task("k", keyword, None, y=[True, 1.5, "é", b"\x00"], z=-1),
    "large-int": Task("k", increment, 1 << 80),
    "u64": Task("k", increment, (1 << 64) - 1),
    "i64": Task("k", increment, -(1 << 63)),
    "nan": Task("k", repr, float("nan")),
    "reference": Task("k", increment, TaskRef("a")),
    "tuple-key-reference": Task("k", operator.add, TaskRef(("a", 0, 1.5)), 1),
    "bytes-key-reference": Task("k", increment, TaskRef(b"a")),
    "int-key-reference": Task("k", increment, TaskRef(7)),
    "alias-argument": Task("k", increment, Alias("a")),
    "renaming-alias-argument": Task("k", increment, Alias("b", "a")),
    "keyword": Task("k", keyword, TaskRef("a"), y=TaskRef("b"), z=(1, [2])),
    "producer": Task("k", increment, 1, _data_producer=True),
    "producer-with-keywords": Task("k", keyword, 1, y=2, _data_producer=True),
    "node-list": Task("k", sum, List(TaskRef("a"), TaskRef("b"), 3)),
    "node-list-of-one-list": Task("k", repr, List([[1, TaskRef("a")]])),
    "node-tuple-of-one-tuple": Task("k", repr, Tuple(((TaskRef("a"), 2),))),
    "node-tuple": Task("k", repr, Tuple(TaskRef("a"), List(TaskRef("b")), [3])),
    "node-dict": Task("k", dict, Dict({"x": TaskRef("a")})),
    "nested-task": Task("k", increment, Task(None, increment, TaskRef("a"))),
    "list": Task("k", repr, [1, [2.0, "3"], (4, None), {"five": 5, 6: b"7"}]),
    "empty-containers": Task("k", keyword, [], y=(), z={}),
    "same-list-twice": Task("k", operator.is_, *([[1]] * 2)),
    "reference-in-plain-list": Task("k", repr, [TaskRef("a")]),
    "function-argument": Task("k", map, increment, (1, 2)),
    "class-argument": Task("k", isinstance, 1, int),
    "slice": Task("k", operator.getitem, "abcdef", slice(1, 4)),
    "ellipsis": Task("k", repr, ...),
    "complex": Task("k", abs, 3 + 4j),
    "bool-subclass-of-int": Task("k", repr, True),
    "lambda": Task("k", lambda x: x * 2, 21),
    "method": Task("k", str.upper, "abc"),
    "bound-method": Task("k", "abc".replace, "a", "b"),
    "bytes": Task("k", len, b"\xff\x00"),
    "set": Task("k", sorted, {3, 1, 2}),
    "long-string": Task("k", len, "x" * 100_000),
    "data": DataNode("k", {"some": ["data"]}),
    "alias": Alias("k", "a"),
    "container-node": List(TaskRef("a"), 1),
}


@pytest.mark.parametrize("name", CORPUS)
def test_node_round_trip(channel: Channel, name: str) -> None:
    node = CORPUS[name]
    expanded = expand(channel, LLGExpr({"k": node}), ["k"])
    assert expanded.n == 1
    assert_same_behaviour(
        expanded.nodes()["k"], node, run=name not in ("function-argument",)
    )


def test_coroutine_is_recognised(channel: Channel) -> None:
    node = Task("k", coroutine, 1)
    assert expand(channel, LLGExpr({"k": node}), ["k"]).nodes()["k"].is_coro


def test_plain_tasks_become_calls(channel: Channel) -> None:
    plain = [
        name for name in CORPUS if name in ("builtin", "keyword", "list", "lambda")
    ]
    dsk = {
        name: Task(name, CORPUS[name].func, *CORPUS[name].args, **CORPUS[name].kwargs)
        for name in plain
    }
    assert set(expand(channel, LLGExpr(dsk), plain).specs) == {1}


def test_numpy_arguments(channel: Channel) -> None:
    np = pytest.importorskip("numpy")
    big = np.arange(100_000.0)
    dsk = {
        "scalar": Task("scalar", operator.add, np.int64(1), np.float32(2)),
        "array": Task("array", np.sum, big),
        "dtype": Task("dtype", np.dtype, np.dtype("f4")),
        "data": DataNode("data", big),
    }
    expanded = expand(channel, LLGExpr(dsk), list(dsk))
    assert_same_graph(expanded, dsk)
    assert expanded.specs[expanded.keys.index("scalar")] == 1
    # Large buffers stay out of band.
    with_buffers = [p for p in expanded.answer["pickles"] if not isinstance(p, bytes)]
    assert [len(b) for _, [b] in with_buffers] == [800_000, 800_000]


def test_numpy_integers_in_keys(channel: Channel) -> None:
    np = pytest.importorskip("numpy")
    key = ("x", np.int64(3))
    dsk = {key: Task(key, increment, 1), "y": Task("y", increment, TaskRef(key))}
    expanded = expand(channel, LLGExpr(dsk), ["y"])
    assert expanded.dependencies["y"] == {("x", 3)}


def test_keys_keep_python_equality(channel: Channel) -> None:
    dsk = {
        1: Task(1, increment, 0),
        "y": Task("y", operator.add, TaskRef(1.0), TaskRef(True)),
    }
    expanded = expand(channel, LLGExpr(dsk), ["y"])
    assert expanded.n == 2
    assert len(expanded.keys) == 2
    assert expanded.dependencies["y"] == {1}


def test_dependencies_outside_the_graph(channel: Channel) -> None:
    dsk = {"y": Task("y", operator.add, TaskRef("known"), TaskRef(("other", 1)))}
    expanded = expand(channel, LLGExpr(dsk), ["y"])
    assert expanded.n == 1
    assert set(expanded.keys[1:]) == {"known", ("other", 1)}
    assert expanded.dependencies["y"] == {"known", ("other", 1)}


def test_low_level_graph_is_culled_and_converted(channel: Channel) -> None:
    dsk = {
        "a": 1,
        "b": (increment, "a"),
        "c": (sum, ["a", "b", (increment, "b")]),
        "d": "c",
        "e": {"not": "converted"},
        "self": "self",
        ("t", 0): (keyword, ("t", 1)),
        ("t", 1): [1, 2, "a"],
        "unused": (increment, "a"),
    }
    wanted = ["d", "e", ("t", 0), "self"]
    expanded = expand(channel, LLGExpr(dsk), wanted)
    from dask._task_spec import convert_legacy_graph

    stock = convert_legacy_graph(dsk)
    assert "self" not in stock
    del stock["unused"]
    assert_same_graph(expanded, stock)


def test_plain_dictionary(channel: Channel) -> None:
    assert expand(channel, blob({}), ["x"]).n == 0
    graph = {"x": Task("x", increment, TaskRef("y"))}
    assert_same_graph(expand(channel, blob(graph), ["x"]), graph)


def test_aliases_to_themselves_are_dropped(channel: Channel) -> None:
    dsk = {"x": Alias("x"), "y": Task("y", increment, TaskRef("x"))}
    expanded = expand(channel, LLGExpr(dsk), ["x", "y"])
    assert expanded.keys[: expanded.n] == ("y",)
    assert expanded.dependencies["y"] == {"x"}


# Graphs of a stock client


def test_submit(capture: Any, channel: Channel) -> None:
    capture.client.submit(keyword, 1, y=[2, 3], pure=False)
    submission = capture.take()
    answer = channel.ask("expand", **submission.request)
    assert_same_graph(Expanded(channel, answer), submission.stock_graph()[0])
    ((code, *_),) = answer["code"] or [("",)]
    assert isinstance(code, str)
    assert answer["span_metadata"]["collections"] == ({"type": "Future"},)


@pytest.mark.parametrize(
    "iterables",
    [
        [range(100)],
        [["é"] * 5, [1.5] * 5],
        [[None, True, b"x", 1 << 70]],
        [[[1], (2, 3), {"a": 4}]],
        [[object]],
        [[]],
    ],
)
def test_map(capture: Any, channel: Channel, iterables: Any) -> None:
    capture.client.map(lambda *x: x, *iterables, pure=False)
    submission = capture.take()
    expanded = Expanded(channel, channel.ask("expand", **submission.request))
    assert list(expanded.keys) == list(submission.expr().keys)
    assert_same_graph(expanded, submission.stock_graph()[0])


@pytest.mark.parametrize("large", [False, True])
def test_map_with_keywords(capture: Any, channel: Channel, large: bool) -> None:
    capture.client.map(keyword, range(5), y="x" * (200_000 if large else 2), z=None)
    submission = capture.take()
    expanded = Expanded(channel, channel.ask("expand", **submission.request))
    assert expanded.n == (6 if large else 5)
    assert_same_graph(expanded, submission.stock_graph()[0])


def test_map_of_futures_and_arrays(capture: Any, channel: Channel) -> None:
    np = pytest.importorskip("numpy")
    futures = capture.client.map(increment, range(3))
    capture.take()
    capture.client.map(keyword, [futures[0], [futures[1], 5], {"k": futures[2]}, 4])
    submission = capture.take()
    expanded = Expanded(channel, channel.ask("expand", **submission.request))
    assert_same_graph(expanded, submission.stock_graph()[0])
    assert set(expanded.keys[4:]) == {f.key for f in futures}
    capture.client.map(np.sum, [np.ones(4), np.ones(5)])
    submission = capture.take()
    expanded = Expanded(channel, channel.ask("expand", **submission.request))
    assert_same_graph(expanded, submission.stock_graph()[0])


def test_map_with_given_and_repeated_keys(capture: Any, channel: Channel) -> None:
    capture.client.map(increment, [1, 2, 3], key=["a", "b", "a"])
    submission = capture.take()
    expanded = Expanded(channel, channel.ask("expand", **submission.request))
    assert_same_graph(expanded, submission.stock_graph()[0])
    assert expanded.nodes()["a"]() == 4


def test_delayed_tree(capture: Any, channel: Channel) -> None:
    add = dask.delayed(operator.add)
    level = [add(i, i) for i in range(64)]
    while len(level) > 1:
        level = [add(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
    capture.client.persist(level[0])
    submission = capture.take()
    expanded = Expanded(channel, channel.ask("expand", **submission.request))
    assert expanded.n == 127
    assert set(expanded.specs) == {1}
    assert len(expanded.answer["functions"]) == 1
    assert_same_graph(expanded, submission.stock_graph()[0])


def test_delayed_of_futures_and_containers(capture: Any, channel: Channel) -> None:
    future = capture.client.submit(increment, 1)
    capture.take()
    value = dask.delayed(keyword)([future, {"x": future}], y=dask.delayed(increment)(2))
    capture.client.compute(value)
    submission = capture.take()
    expanded = Expanded(channel, channel.ask("expand", **submission.request))
    assert future.key in expanded.keys[expanded.n :]
    assert_same_graph(expanded, submission.stock_graph()[0])


@pytest.mark.parametrize("reverse", [False, True])
def test_array(capture: Any, channel: Channel, reverse: bool) -> None:
    da = pytest.importorskip("dask.array")
    x = da.ones((300, 300), chunks=(20, 20))
    capture.client.compute((x + x.T).sum())
    submission = capture.take()
    expanded = Expanded(channel, channel.ask("expand", **submission.request))
    assert 2 in expanded.specs
    assert_same_graph(expanded, submission.stock_graph()[0], run=False, reverse=reverse)


def test_array_runs(capture: Any, channel: Channel) -> None:
    da = pytest.importorskip("dask.array")
    x = da.arange(100, chunks=10)
    capture.client.compute((x * 2).sum())
    submission = capture.take()
    expanded = Expanded(channel, channel.ask("expand", **submission.request))
    nodes = expanded.nodes()
    assert run_graph(nodes, submission.keys) == [9900]


def test_dataframe(capture: Any, channel: Channel) -> None:
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame({"a": range(40), "b": [i % 3 for i in range(40)]})
    ddf = dd.from_pandas(frame, npartitions=35)
    capture.client.compute(
        ddf.groupby("b").a.apply(lambda s: s.sum(), meta=("a", "i8"))
    )
    submission = capture.take()
    answer = channel.ask("expand", **submission.request)
    assert "pandas" in answer["imported"]
    expanded = Expanded(channel, answer)
    assert_same_graph(expanded, submission.stock_graph()[0], run=False)


def test_dataframe_runs(capture: Any, channel: Channel) -> None:
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame({"a": range(40), "b": [i % 3 for i in range(40)]})
    ddf = dd.from_pandas(frame, npartitions=4)
    capture.client.compute(ddf.a.map(lambda v: v * 2, meta=("a", "i8")).sum())
    submission = capture.take()
    expanded = Expanded(channel, channel.ask("expand", **submission.request))
    assert run_graph(expanded.nodes(), submission.keys) == [1560]


def test_bag_runs(capture: Any, channel: Channel) -> None:
    db = pytest.importorskip("dask.bag")
    bag = db.range(100, npartitions=40).map(lambda x: x + 1).filter(lambda x: x % 2)
    capture.client.compute(bag.sum())
    submission = capture.take()
    expanded = Expanded(channel, channel.ask("expand", **submission.request))
    assert run_graph(expanded.nodes(), submission.keys) == [2500]


def run_graph(nodes: dict[Any, Any], keys: Any) -> list[Any]:
    from dask._task_spec import execute_graph

    results = execute_graph(dict(nodes), keys=set(keys))
    return [results[key] for key in keys]


# Annotations


def test_annotations_of_layers(capture: Any, channel: Channel) -> None:
    da = pytest.importorskip("dask.array")
    with dask.annotate(
        retries=3, workers={"w"}, tags={"t"}, priority=lambda key: key[1]
    ):
        x = da.ones(4, chunks=1)
    capture.client.persist(x, optimize_graph=False)
    submission = capture.take()
    answer = channel.ask("expand", **submission.request)
    keys = answer["keys"]
    _, stock = submission.stock_graph()
    for name in ("retries", "priority"):
        assert {keys[i]: v for i, v in answer["annotations"][name]} == stock[name]
    assert {v for _, v in answer["annotations"]["workers"]} == {("w",)}
    assert {v["as-list"] for _, v in answer["annotations"]["tags"]} == {("t",)}


def test_global_annotations(channel: Channel) -> None:
    dsk = {f"k-{i}": Task(f"k-{i}", increment, i) for i in range(3)}
    answer = channel.ask(
        "expand",
        expr=blob(LLGExpr(dsk)),
        keys=list(dsk),
        annotations=pickled(
            {
                "priority": lambda key: int(key[2:]),
                "retries": 2,
                "resources": {"GPU": 1},
                "workers": ["a", "b"],
                "span": {"name": ("x",), "ids": ("1",)},
                "odd": ValueError("no message type"),
                "nothing": None,
            }
        ),
    )
    values = answer["global_annotations"]
    odd = pickle.loads(values.pop("odd")["__Pickled__"])
    assert isinstance(odd, ValueError)
    assert values == {
        "retries": 2,
        "resources": {"GPU": 1},
        "workers": ("a", "b"),
        "span": {"name": ("x",), "ids": ("1",)},
        "nothing": None,
    }
    evaluated = answer["evaluated_annotations"]
    assert evaluated == {"priority": ((0, 0), (1, 1), (2, 2))}


def test_failing_annotation_fails_the_graph(channel: Channel) -> None:
    with pytest.raises(ZeroDivisionError):
        channel.ask(
            "expand",
            expr=blob(LLGExpr({"k": Task("k", increment, 1)})),
            keys=["k"],
            annotations=pickled({"priority": lambda key: 1 / 0}),
        )


# Errors


def raw_blob(obj: Any) -> dict[str, Any]:
    header = {"serializer": "pickle", "writeable": ()}
    return serialized_blob(header, [pickle.dumps(obj)])


def test_unpickling_error(channel: Channel) -> None:
    with pytest.raises(
        RuntimeError, match="Error during deserialization of the task"
    ) as e:
        channel.ask("expand", expr=raw_blob(UNPICKLING_FAILS), keys=[])
    assert isinstance(e.value.__cause__, ValueError)
    assert "cannot rebuild" in str(e.value.__cause__)
    error = e.value.helper_error
    trace = pickle.loads(error["traceback"])
    assert trace is not None
    assert error["text"].startswith("RuntimeError(")
    # The helper serves on.
    assert expand(channel, LLGExpr({"k": Task("k", increment, 1)}), ["k"]).n == 1


def test_system_exit_is_an_error_of_the_graph(channel: Channel) -> None:
    with pytest.raises(RuntimeError, match="Error during deserialization"):
        channel.ask("expand", expr=raw_blob(UNPICKLING_RAISES_SYSTEM_EXIT), keys=[])


def test_missing_module_is_named(channel: Channel) -> None:
    data = b"cno_such_module_here\nfunction\n."
    request = serialized_blob({"serializer": "pickle", "writeable": ()}, [data])
    with pytest.raises(RuntimeError) as e:
        channel.ask("expand", expr=request, keys=[])
    assert isinstance(e.value.__cause__, ModuleNotFoundError)


def test_materialising_error_keeps_user_frames(channel: Channel) -> None:
    namespace: dict[str, Any] = {"__name__": "user_module"}
    source = (
        "from dask._expr import Expr\n"
        "class Broken(Expr):\n"
        "    _parameters = ['x']\n"
        "    def _layer(self):\n"
        "        return self.helper()\n"
        "    def helper(self):\n"
        "        raise IndexError('broken layer')\n"
    )
    exec(compile(source, "user_module.py", "exec"), namespace)
    import cloudpickle

    data = cloudpickle.dumps(namespace["Broken"](1))
    request = serialized_blob({"serializer": "pickle", "writeable": ()}, [data])
    with pytest.raises(IndexError, match="broken layer") as e:
        channel.ask("expand", expr=request, keys=[])
    error = e.value.helper_error
    assert "user_module.py" in error["traceback_text"]
    assert "in helper" in error["traceback_text"]
    assert "_graph_helper" not in error["traceback_text"]
    assert "in expand" not in error["traceback_text"]


def test_long_errors_are_cut(channel: Channel) -> None:
    channel.ask("setup", config={"distributed.admin.max-error-length": 100})

    def boom(key: Any) -> None:
        raise ValueError("x" * 100_000)

    with pytest.raises(ValueError, match="Long error message"):
        channel.ask(
            "expand",
            expr=blob(LLGExpr({"k": Task("k", increment, 1)})),
            keys=["k"],
            annotations=pickled({"priority": boom}),
        )


def test_unknown_operation(channel: Channel) -> None:
    with pytest.raises(Exception, match="unknown operation"):
        channel.ask("no-such-operation")


def next_reap(zygote: HelperProcess, pid: int) -> int:
    while True:
        message = zygote.control.receive()
        assert message["id"] == 0
        assert message["op"] == "reap"
        if message["pid"] == pid:
            return message["status"]


def test_crash_is_reported(zygote: HelperProcess) -> None:
    pid, channel = zygote.fork()
    with pytest.raises(ConnectionError):
        channel.ask("expand", expr=raw_blob(UNPICKLING_EXITS), keys=[])
    assert os.waitstatus_to_exitcode(next_reap(zygote, pid)) == 3


@pytest.mark.parametrize("by_zygote", [True, False])
def test_hanging_helper_can_be_killed(zygote: HelperProcess, by_zygote: bool) -> None:
    pid, channel = zygote.fork()
    channel.send("expand", expr=raw_blob(UNPICKLING_HANGS), keys=[])
    if by_zygote:
        number = zygote.control.send("kill", pid=pid)
        while (answer := zygote.control.receive())["id"] != number:
            assert answer["pid"] != pid
        assert answer["killed"]
    else:
        os.kill(pid, signal.SIGKILL)
    assert os.WTERMSIG(next_reap(zygote, pid)) == signal.SIGKILL
    with pytest.raises(ConnectionError):
        channel.receive()


def test_strangers_are_not_killed(zygote: HelperProcess) -> None:
    number = zygote.control.send("kill", pid=os.getpid())
    while (answer := zygote.control.receive())["id"] != number:
        pass
    assert not answer["killed"]


def test_closed_connection_ends_the_helper(zygote: HelperProcess) -> None:
    pid, channel = zygote.fork()
    channel.close()
    assert next_reap(zygote, pid) == 0


def test_closed_control_channel_ends_everything() -> None:
    zygote = HelperProcess(as_file=True)
    _, idle = zygote.fork()
    _, hanging = zygote.fork()
    hanging.send("expand", expr=raw_blob(UNPICKLING_HANGS), keys=[])
    zygote.control.close()
    assert zygote.process.wait(30) == 0
    for channel in (idle, hanging):
        channel.wait_closed()


def test_killed_zygote_takes_its_helpers_along() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("PR_SET_PDEATHSIG is Linux")
    zygote = HelperProcess()
    _, channel = zygote.fork()
    channel.send("expand", expr=raw_blob(UNPICKLING_HANGS), keys=[])
    zygote.process.kill()
    zygote.process.wait(30)
    channel.wait_closed()


def test_hello_and_standard_output(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with subprocess.Popen(
        [sys.executable, str(SOURCE), str(theirs.fileno()), str(tmp_path)],
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        theirs.close()
        control = Channel(ours)
        hello = control.receive()
        assert hello == {
            "id": 0,
            "op": "hello",
            "pid": process.pid,
            "python": sys.version,
            "versions": hello["versions"],
        }
        assert hello["versions"]["packages"]["dask"] == dask.__version__
        assert hello["versions"]["host"]["python-bits"] in (32, 64)
        ours_too, theirs_too = socket.socketpair()
        control.send("fork", (theirs_too.fileno(),))
        theirs_too.close()
        assert control.receive()["pid"] != process.pid
        channel = Channel(ours_too)
        channel.ask("setup", sys_path=[str(Path(__file__).parent)])
        channel.ask(
            "expand",
            expr=blob(LLGExpr({"k": Task("k", increment, 1)})),
            keys=["k"],
            annotations=pickled({"priority": lambda key: print("printed by", key)}),
        )
        channel.close()
        assert control.receive()["status"] == 0
        control.close()
        out, err = process.communicate(timeout=30)
    assert out == ""
    assert "printed by k" in err


# Other operations


def test_bundles_explode_anywhere(zygote: HelperProcess, channel: Channel) -> None:
    dsk = {i: Task(i, operator.add, {i}, {1}) for i in range(500)}
    expanded = expand(channel, LLGExpr(dsk), list(dsk))
    assert set(expanded.specs) == {2}
    order = array.array("I", reversed(range(500))).tobytes()
    packed = channel.ask("pack", order=order)
    cuts = list(array.array("I", packed["cuts"]))
    assert cuts == [0, 200, 400, 500]
    _, other = zygote.fork()
    for number, bundle in enumerate(packed["bundles"]):
        here = channel.ask("explode", bundle=bundle)["specs"]
        again = channel.ask("explode", bundle=bundle)["specs"]
        there = other.ask("explode", bundle=bundle)["specs"]
        for specs in (here, again, there):
            keys = [load_spec(spec).key for spec in specs]
            expected = [
                expanded.keys[499 - p] for p in range(cuts[number], cuts[number + 1])
            ]
            assert keys == expected


def test_pack_needs_a_whole_order(channel: Channel) -> None:
    dsk = {i: Task(i, operator.add, {i}, {1}) for i in range(50)}
    expand(channel, LLGExpr(dsk), list(dsk))
    with pytest.raises(Exception, match="order of 1 tasks for a graph of 50"):
        channel.ask("pack", order=array.array("I", [0]).tobytes())


def test_bundles_are_bounded(channel: Channel) -> None:
    np = pytest.importorskip("numpy")
    # 50 KB each: below the size at which data gets a pickle of its own.
    dsk = {i: Task(i, np.sum, np.full(6_400, i, dtype="f8")) for i in range(100)}
    expanded = expand(channel, LLGExpr(dsk), list(dsk))
    assert set(expanded.specs) == {2}
    packed = channel.ask("pack", order=array.array("I", range(100)).tobytes())
    assert max(map(len, packed["bundles"])) < 1_100_000
    assert len(packed["bundles"]) >= 5
    count = 0
    for bundle in packed["bundles"]:
        for spec in channel.ask("explode", bundle=bundle)["specs"]:
            assert load_spec(spec)() == 6_400 * count
            count += 1
    assert count == 100


def test_memory_is_given_back(channel: Channel) -> None:
    dsk = {i: Task(i, operator.add, {i}, {1}) for i in range(50_000)}
    answer = channel.ask("expand", expr=blob(LLGExpr(dsk)), keys=list(dsk))
    memory = channel.ask("memory")
    assert memory["baseline"] < answer["rss_max"]
    assert memory["rss"] <= answer["rss_max"]


MODULE = "def answer(x):\n    return {}\n"


def zipped(name: str, text: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(name, text)
    return data.getvalue()


def uses_module(name: str) -> dict[str, Any]:
    # This process cannot import the function either.
    module = types.ModuleType(name)
    exec("def answer(x):\n    return 0\n", module.__dict__)
    sys.modules[name] = module
    try:
        data = pickle.dumps(LLGExpr({"k": Task("k", module.answer, 1)}))
    finally:
        del sys.modules[name]
    return serialized_blob({"serializer": "pickle", "writeable": ()}, [data])


def test_uploaded_modules_are_importable(
    zygote: HelperProcess, channel: Channel
) -> None:
    request = uses_module("uploaded_module")
    with pytest.raises(RuntimeError):
        channel.ask("expand", expr=request, keys=["k"])
    channel.ask("upload", name="uploaded_module.py", data=MODULE.format(1).encode())
    channel.ask("expand", expr=request, keys=["k"])
    _, other = zygote.fork(
        uploads=[
            ["uploaded_module.py", MODULE.format(2).encode()],
            ["broken.py", b"raise ValueError", True],
            ["not_loaded.py", b"raise ValueError", False],
        ]
    )
    other.ask("expand", expr=request, keys=["k"])
    third = zygote.fork(uploads=[["lib.zip", zipped("in_archive.py", MODULE)]])[1]
    third.ask("expand", expr=uses_module("in_archive"), keys=["k"])


def test_broken_upload_is_an_error(channel: Channel) -> None:
    with pytest.raises(ValueError, match="at import"):
        channel.ask("upload", name="broken.py", data=b"raise ValueError('at import')")
    channel.ask("upload", name="later.py", data=b"raise ValueError", load=False)


def test_upload_cannot_leave_its_directory(channel: Channel, tmp_path: Any) -> None:
    target = tmp_path / "escaped.py"
    channel.ask("upload", name=str(target), data=b"x = 1")
    assert not target.exists()


def test_uploads_are_removed_with_the_helper(zygote: HelperProcess) -> None:
    pid, channel = zygote.fork(uploads=[["where_am_i.py", MODULE.format(3).encode()]])
    answer = channel.ask("plain", pickled=pickled(file_of_module("where_am_i")))
    path = answer["value"]
    assert os.path.exists(path)
    channel.close()
    next_reap(zygote, pid)
    assert not os.path.exists(path)


def test_scheduler_plugins(channel: Channel, tmp_path: Any) -> None:
    from distributed.diagnostics.plugin import SchedulerPlugin, SchedulerUploadFile

    path = tmp_path / "some_module.py"
    path.write_text("x = 1")
    answer = channel.ask(
        "scheduler_plugin", plugin=pickle.dumps(SchedulerUploadFile(str(path)))
    )
    assert answer == {
        "kind": "upload",
        "name": "some_module.py",
        "data": b"x = 1",
        "load": True,
    }
    answer = channel.ask("scheduler_plugin", plugin=pickle.dumps(SchedulerPlugin()))
    assert answer == {
        "kind": "other",
        "class": "distributed.diagnostics.plugin.SchedulerPlugin",
    }


def test_worker_key(channel: Channel) -> None:
    import cloudpickle

    workers = [
        {"name": i, "host": f"h{i % 2}", "status": ["running", "paused"][i // 2]}
        for i in range(4)
    ]
    key = cloudpickle.dumps(lambda ws: ws.host)
    groups = channel.ask("worker_key", key=key, workers=workers)["groups"]
    assert groups[0] == groups[2] != groups[1] == groups[3]
    key = cloudpickle.dumps(lambda ws: ws.status.name)
    groups = channel.ask("worker_key", key=key, workers=workers)["groups"]
    assert groups[0] == groups[1] != groups[2] == groups[3]


def test_plain(channel: Channel) -> None:
    value = {"a": (1, [2.5, None]), 3: {4}}
    answer = channel.ask("plain", pickled=pickled(value))["value"]
    assert answer == {"a": (1, (2.5, None)), 3: {"__Set__": True, "as-list": (4,)}}
    with pytest.raises(TypeError):
        channel.ask("plain", pickled=pickled(ValueError("not plain")))


def test_preimport(zygote: HelperProcess) -> None:
    number = zygote.control.send("preimport", modules=["json", "no_such_module"])
    while (answer := zygote.control.receive())["id"] != number:
        pass
    assert list(answer["failed"]) == ["no_such_module"]


def test_p2p(capture: Any, channel: Channel) -> None:
    da = pytest.importorskip("dask.array")
    with dask.config.set({"array.rechunk.method": "p2p"}):
        x = da.ones((10, 10), chunks=(10, 1)).rechunk((1, 10))
        capture.client.persist(x)
    submission = capture.take()
    expanded = Expanded(channel, channel.ask("expand", **submission.request))
    barriers = expanded.answer["barriers"]
    assert barriers
    for index, shuffle_id in barriers:
        key = expanded.keys[index]
        assert key == f"shuffle-barrier-{shuffle_id}"
        assert expanded.flags[key] & 4
        assert expanded.specs[index] == 0
    pickled_indices = [i for i, spec in enumerate(expanded.specs) if spec == 0]
    index, shuffle_id = barriers[0]
    spec = expanded.answer["pickles"][pickled_indices.index(index)]
    workers = ["tcp://a:1", "tcp://b:2"]
    run = channel.ask(
        "create_run",
        spec=spec,
        run_id=7,
        span_id="span",
        workers=workers,
        existing={(0, 0): "tcp://c:3"},
    )
    worker_for = dict(run["worker_for"])
    assert worker_for[0, 0] == "tcp://c:3"
    assert set(worker_for.values()) <= {*workers, "tcp://c:3"}
    run_spec = pickle.loads(run["run_spec"], buffers=run["buffers"])
    assert run_spec.run_id == 7
    assert run_spec.id == shuffle_id
    assert run_spec.span_id == "span"
    assert run_spec.worker_for == worker_for


def test_other_serializer_families(channel: Channel) -> None:
    from distributed.protocol import serialize

    expr = LLGExpr({"k": Task("k", increment, 1)})
    header, frames = serialize(expr, serializers=["pickle"], on_error="raise")
    compressed = dict(header, compression=["zlib"] + [None] * (len(frames) - 1))
    frames = [zlib.compress(bytes(frames[0])), *frames[1:]]
    assert expand(channel, serialized_blob(compressed, frames), ["k"]).n == 1


def test_submit_latency(channel: Channel) -> None:
    request = blob(LLGExpr({"k": Task("k", operator.add, 1, 2)}))
    times = []
    for _ in range(200):
        start = time.perf_counter()
        channel.ask("expand", expr=request, keys=["k"])
        times.append(time.perf_counter() - start)
    # 88 µs here; a hundred times as much would mean that something is imported
    # or collected on every request.
    assert sorted(times)[100] < 0.009


def test_call_reference_rejects_unknown_extensions() -> None:
    import msgpack

    call = msgpack.packb([0, [msgpack.ExtType(99, b"")]])
    with pytest.raises(ValueError, match="unknown extension"):
        task_from_call("k", call, [pickle.dumps(increment)])
