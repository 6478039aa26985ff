"""The wire crate against stock Dask, through the crate's ``probe`` example."""

from __future__ import annotations

import asyncio
import base64
import copy
import functools
import importlib.util
import json
import operator
import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import msgpack
import numpy as np
import pandas as pd
import pytest
from dask._task_spec import List, Task, TaskRef, Tuple
from dask.utils import apply
from distributed import KilledWorker
from distributed.protocol import deserialize, dumps, loads, to_serialize
from distributed.protocol.compression import compressions
from distributed.protocol.compression import decompress as stock_decompress
from distributed.protocol.serialize import Serialized
from distributed.protocol.utils import unpack_frames

ROOT = Path(__file__).resolve().parents[2]
WIRE = ROOT / "crates" / "wire"
SAMPLES = sorted((WIRE / "tests" / "golden").glob("*.bin"))


@pytest.fixture(scope="session")
def probe(example) -> Callable[..., list[bytes]]:
    executable = example("oxidask-wire", "probe")

    def run(
        operation: str, message: Any = None, stream: bytes | None = None
    ) -> list[bytes]:
        if stream is None:
            stream = to_stream(dumps(message))
        done = subprocess.run(
            [executable, operation], input=stream, check=True, stdout=subprocess.PIPE
        )
        return from_stream(done.stdout)

    return run


def to_stream(frames: list[Any]) -> bytes:
    parts = [bytes(memoryview(frame).cast("B")) for frame in frames]
    table = struct.pack(f"<Q{len(parts)}Q", len(parts), *map(len, parts))
    body = b"".join(parts)
    return struct.pack("<Q", len(table) + len(body)) + table + body


def from_stream(stream: bytes) -> list[bytes]:
    """As stock reads it: what the hint covers first, the rest frame by frame."""
    (hint,) = struct.unpack_from("<Q", stream)
    frames, lengths = unpack_frames(memoryview(stream)[8 : 8 + hint], partial=True)
    position = 8 + hint
    for length in lengths:
        frames.append(memoryview(stream)[position : position + length])
        position += length
    assert position == len(stream)
    return [bytes(frame) for frame in frames]


def comparable(value: Any) -> Any:
    if isinstance(value, Serialized):
        return (
            "serialized",
            comparable(value.header),
            [bytes(frame) for frame in value.frames],
        )
    if isinstance(value, dict):
        return [(comparable(k), comparable(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return [comparable(v) for v in value]
    if isinstance(value, (np.ndarray, pd.DataFrame)):
        return pickle.dumps(value)
    if isinstance(value, (str, bytes, int, float, bool, set, type(None))):
        return (type(value).__name__, value)
    return repr(value)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_stock_reads_reencoded_samples_alike(probe, path):
    stream = path.read_bytes()
    before = loads(from_stream(stream), deserialize=False)
    after = loads(probe("reencode", stream=stream), deserialize=False)
    assert comparable(after) == comparable(before)


@pytest.mark.parametrize("protocol", [4, 5])
def test_objects_survive_the_passage(probe, protocol):
    frame = pd.DataFrame({"a": np.arange(1000), "b": list("xyz!") * 250})
    message = {
        "op": "x",
        ("a", 1, 2.5, b"b"): [
            1,
            -1,
            2**63,
            2**64 - 1,
            -(2**63),
            0.5,
            None,
            True,
            "naïve",
            b"\0",
        ],
        "set": {1, "a", ("b", 2)},
        "array": to_serialize(np.arange(20_000, dtype="f8").reshape(100, 200)),
        "frame": to_serialize(frame),
        "empty": to_serialize(np.zeros((0, 3))),
        "bytes": to_serialize(b"payload"),
        "function": operator.add,
        "deep": functools.reduce(lambda inner, _: [inner], range(500), 1),
        1: {"nested": {"pickled": slice(1, 2), "list": [to_serialize([1, "a"])]}},
    }
    with dask.config.set(
        {"distributed.comm.shard": "16 KiB", "distributed.comm.compression": "zlib"}
    ):
        stream = to_stream(
            dumps(
                message,
                context={"pickle-protocol": protocol, "compression": "zlib"},
                frame_split_size=16384,
            )
        )
    after = loads(probe("reencode", stream=stream))
    assert list(after) == list(message)
    np.testing.assert_array_equal(
        after["array"], np.arange(20_000, dtype="f8").reshape(100, 200)
    )
    pd.testing.assert_frame_equal(after["frame"], frame)
    assert after["empty"].shape == (0, 3)
    assert after["bytes"] == b"payload"
    assert after["function"] is operator.add
    assert after["set"] == message["set"]
    assert after[1]["nested"]["pickled"] == slice(1, 2)
    assert after[1]["nested"]["list"] == ([1, "a"],)
    assert after[("a", 1, 2.5, b"b")] == tuple(message[("a", 1, 2.5, b"b")])


def test_helpers_are_what_stock_writes(probe):
    frames = probe("helpers")
    answer = loads(frames, deserialize=False)
    stock = loads(
        [bytes(f) for f in dumps({"bytes": to_serialize(b"payload")})],
        deserialize=False,
    )
    assert comparable(answer["bytes"]) == comparable(stock["bytes"])
    assert bytes(answer["pickle"]) == b"abc"
    assert deserialize(answer["bytes"].header, answer["bytes"].frames) == b"payload"
    with pytest.raises(TypeError, match="cannot say"):
        deserialize(answer["error"].header, answer["error"].frames)


def packed(value: Any) -> Any:
    """A call argument in the encoding of docs/graph-helper.md."""
    if isinstance(value, TaskRef):
        return msgpack.ExtType(1, msgpack.packb(value.key))
    if type(value) is list:
        return msgpack.ExtType(2, msgpack.packb([packed(v) for v in value]))
    if type(value) is tuple:
        return msgpack.ExtType(3, msgpack.packb([packed(v) for v in value]))
    if type(value) is dict:
        return msgpack.ExtType(
            4, msgpack.packb([[packed(k), packed(v)] for k, v in value.items()])
        )
    if type(value) is List:
        return msgpack.ExtType(5, msgpack.packb([packed(v) for v in value.args]))
    if type(value) is Tuple:
        return msgpack.ExtType(6, msgpack.packb([packed(v) for v in value.args]))
    if isinstance(value, (slice, type)):
        return msgpack.ExtType(7, pickle.dumps(value, protocol=5))
    return value


def call(*args: Any, **kwargs: Any) -> tuple[tuple, dict]:
    return args, kwargs


ARGUMENTS: list[tuple[tuple, dict, bool]] = [
    ((), {}, False),
    (
        (1, -1, 300, 2**31, 2**40, -(2**63), 2**64 - 1, 0.5, None, True, False),
        {},
        False,
    ),
    (("text", "naïve", "", "x" * 300, b"", b"\0\xff", b"y" * 70_000), {}, False),
    (
        (TaskRef("a-1"), TaskRef(("b-1", 0, 1.5, b"c", ("d", True))), TaskRef(3)),
        {},
        False,
    ),
    (
        (
            [],
            [1, [2, (3, {})]],
            (),
            (1,),
            {"a": [1], 2: (TaskRef("not-a-dependency"),)},
        ),
        {},
        False,
    ),
    (
        (
            List(TaskRef("a-1"), 2),
            Tuple(TaskRef("a-1"), List(TaskRef("c"))),
            List(),
            Tuple(),
        ),
        {},
        False,
    ),
    ((List(List(TaskRef("a-1"))), Tuple(Tuple(TaskRef("b")))), {}, False),
    ((slice(1, None, 2), int, np.float64), {}, False),
    ((1,), {"axis": 0, "other": TaskRef("a-1")}, False),
    ((1,), {}, True),
    ((TaskRef("z"),), {"axis": [1, 2]}, True),
]


@pytest.mark.parametrize("key", ["x-1", ("x-1", 0, 1), 5, b"bytes", (("x", True), 2.5)])
@pytest.mark.parametrize(("args", "kwargs", "data_producer"), ARGUMENTS)
def test_stitched_tasks_equal_stocks(probe, key, args, kwargs, data_producer):
    encoded = [[packed(v) for v in args]]
    if kwargs or data_producer:
        encoded.append({k: packed(v) for k, v in kwargs.items()})
    if data_producer:
        encoded.append(True)
    request = [[key, pickle.dumps(call, protocol=5), msgpack.packb(encoded)]]
    (made,) = loads(probe("tasks", request))
    task = pickle.loads(made)
    expected = Task(key, call, *args, _data_producer=data_producer, **kwargs)
    assert type(task) is Task
    assert (task.key, task.func, task.data_producer) == (key, call, data_producer)
    assert task.dependencies == expected.dependencies
    assert repr(task.args) == repr(expected.args)
    assert [type(arg) for arg in task.args] == [type(arg) for arg in args]
    assert repr(task.kwargs) == repr(expected.kwargs)
    values = {
        dependency: f"value of {dependency!r}" for dependency in task.dependencies
    }
    assert repr(task(values)) == repr(expected(values))
    assert repr(pickle.loads(pickle.dumps(task))(values)) == repr(expected(values))


def test_malformed_arguments_are_refused(probe):
    function = pickle.dumps(call, protocol=5)
    refused = [
        b"",
        msgpack.packb(1),
        msgpack.packb([]),
        msgpack.packb([[[1]]]),
        msgpack.packb([[{"a": 1}]]),
        msgpack.packb([[msgpack.ExtType(99, b"")]]),
        msgpack.packb([[msgpack.ExtType(1, b"\xc0")]]),
        msgpack.packb([[msgpack.ExtType(4, msgpack.packb([[1]]))]]),
        msgpack.packb([[1]]) + b"\0",
        msgpack.packb([[1], {1: 2}]),
    ]
    made = loads(probe("tasks", [["x", function, arguments] for arguments in refused]))
    assert [type(answer) for answer in made] == [str] * len(refused)


def test_exceptions_load(probe):
    made = {
        name: pickle.loads(data) for name, data in loads(probe("constants")).items()
    }
    assert made["KeyError"].args == ("naïve 'key'",)
    assert type(made["KeyError"]) is KeyError
    assert type(made["TimeoutError"]) is asyncio.TimeoutError
    assert type(made["P2PConsistencyError"]).__name__ == "P2PConsistencyError"
    killed = made["KilledWorker"]
    assert str(killed).startswith(
        "Attempted to run task ('x-1', 0) on 4 different workers, but all those workers died"
    )
    assert "attempt to run the task was tcp://10.0.0.1:1." in str(killed)
    assert killed.last_worker.name == 7
    killed = made["KilledWorker with reasons"]
    for copied in (
        lambda error: error,
        lambda error: pickle.loads(pickle.dumps(error)),
        lambda error: cloudpickle.loads(cloudpickle.dumps(error)),
        copy.deepcopy,
        lambda error: pickle.loads(pickle.dumps(error, 2)),
    ):
        killed = copied(killed)
        assert isinstance(killed, KilledWorker)
        stock = KilledWorker.__str__(killed)
        assert str(killed) == f"{stock}\nattempt 1: naïve\nattempt 2: lost"
        assert killed.task == ("x-1", 0)
        assert killed.last_worker.address == "tcp://10.0.0.1:1"
        assert killed.allowed_failures == 1
        assert f"{type(killed).__module__}.{type(killed).__name__}" == (
            "distributed.scheduler.KilledWorker"
        )
    assert str(made["NoWorkerError"]).startswith(
        "Attempted to run task 'x-1' but timed out after 2.50 s waiting"
    )
    assert str(made["NoValidWorkerError"]).endswith(
        "Restrictions:\nhost_restrictions={'host'}\nworker_restrictions=None\n"
        "resource_restrictions={'GPU': 1, 'MEM': 0.5}\n"
    )
    ints = [0, 255, 256, 65_535, 65_536, -1, -(2**31), 2**63 - 1, -(2**63)]
    assert made["plain"] == {"ints": ints, 1: -0.5, b"\0\xff": {"a"}, (None, True): int}


PLAIN = [
    {},
    {
        "retries": 3,
        "workers": ["a", "b"],
        "priority": -1.5,
        "allow_other_workers": True,
        "x": None,
    },
    [1, -1, 255, 256, 65536, 2**31, -(2**31) - 1, 2**62, -(2**63), 2**63, 2**64 - 1],
    (1, 2, 3, 4),
    ((), (1,), (1, 2), (1, 2, 3), [], [[]]),
    {"set": {1}, "frozen": frozenset({"a"})},
    ["same", "same", b"bytes", b"y" * 300, "x" * 300, "é"],
    {("a", 1): {"nested": [{"deep": (1.5,)}]}},
    "text",
    None,
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickles_are_read(probe, protocol):
    values = [v for v in PLAIN if protocol > 2 or not has_bytes_or_sets(v)]
    values = [
        v for v in values if protocol > 3 or not has_bytes_or_sets(v, sets_only=True)
    ]
    read = loads(probe("plain", [pickle.dumps(v, protocol=protocol) for v in values]))
    for value, answer in zip(values, read, strict=True):
        assert answer is not None, value
        assert tuples(answer[0]) == tuples(value)


def has_bytes_or_sets(value: Any, sets_only: bool = False) -> bool:
    kinds = (set, frozenset) if sets_only else (set, frozenset, bytes)
    if isinstance(value, dict):
        return any(
            has_bytes_or_sets(v, sets_only) for pair in value.items() for v in pair
        )
    if isinstance(value, (list, tuple)):
        return any(has_bytes_or_sets(v, sets_only) for v in value)
    return isinstance(value, kinds)


def tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {tuples(k): tuples(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(map(tuples, value))
    return set(value) if isinstance(value, frozenset) else value


def test_other_pickles_are_not_read(probe):
    shared = [1]
    recursive: list[Any] = []
    recursive.append(recursive)
    others = [
        call,
        operator.add,
        slice(1),
        np.float64(1),
        1j,
        2**64,
        recursive,
        [shared, shared],
        bytearray(b"x"),
        os.sep.join,
    ]
    assert loads(probe("plain", [pickle.dumps(v, protocol=5) for v in others])) == (
        None,
    ) * len(others)


def test_both_sides_restore_each_others_compression(probe):
    data = np.arange(50_000).tobytes() + bytes(100_000)
    ours = loads(probe("compress", data))
    assert set(ours) == {"lz4", "zstd", "snappy", "zlib"}
    assert all(ours.values())
    available = {name for name in ours if name in compressions}
    assert "zlib" in available
    for name in available:
        assert bytes(stock_decompress({"compression": [name]}, [ours[name]])[0]) == data
    for name in available:
        values = [to_serialize(np.frombuffer(data, dtype="u1")), to_serialize(b"small")]
        frames = dumps(values, context={"compression": name}, frame_split_size=65536)
        (logical, small) = loads(probe("logical", stream=to_stream(frames)))
        assert (b"".join(logical), b"".join(small)) == (data, b"small")
    assert set(loads(probe("compress", os.urandom(60_000))).values()) == {None}
    assert set(loads(probe("compress", bytes(9_999))).values()) == {None}


def test_stream_messages_to_clients(probe):
    start, memory, erred, both, cancelled, interval, restart = loads(probe("to-client"))
    assert start == {"op": "stream-start", "warning": "", "error": ""}
    assert memory == {
        "op": "key-in-memory",
        "key": "x-1",
        "type": b"class",
        "workers": ("tcp://a:1",),
    }
    assert erred == {
        "op": "task-erred",
        "key": "x-1",
        "exception": b"exc",
        "traceback": None,
    }
    assert both == {
        "op": "task-erred",
        "key": "x-1",
        "exception": b"exc",
        "traceback": b"exc",
    }
    assert cancelled == {
        "op": "cancelled-keys",
        "keys": {"x-1"},
        "reason": "lost dependencies",
    }
    assert interval == {"op": "adjust-heartbeat-interval", "interval": 5.0}
    assert restart == {"op": "restart"}


def test_stream_messages_to_workers(probe):
    compute, free, bare = loads(probe("to-worker"))
    assert compute == {
        "op": "compute-task",
        "key": "y-1",
        "run_id": 5,
        "priority": (0, -0.01, 3),
        "stimulus_id": "compute-task-1",
        "who_has": {("x-1", 0): ("tcp://a:1", "tcp://b:2")},
        "nbytes": {("x-1", 0): 28},
        "run_spec": "the spec",
        "resource_restrictions": {"GPU": 1},
        "actor": False,
        "annotations": {"span": {"name": ("default",)}},
        "span_id": "span",
    }
    assert [type(part) for part in compute["priority"]] == [int, float, int]
    assert free == {"op": "free-keys", "keys": ("y-1",), "stimulus_id": "why"}
    assert (
        bare["run_spec"],
        bare["resource_restrictions"],
        bare["annotations"],
        bare["span_id"],
    ) == (None, None, {}, None)


def test_the_table_of_keys_is_up_to_date():
    path = WIRE / "tests" / "data" / "make_keys.py"
    spec = importlib.util.spec_from_file_location("make_keys", path)
    make_keys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_keys)
    assert json.loads(path.with_name("keys.json").read_text()) == make_keys.table()
    assert base64.b64decode(make_keys.table()[0]["msgpack"]) == b"\xa1x"


def test_apply_is_where_the_stitched_pickles_look_for_it():
    assert apply.__module__ == "dask.utils"
