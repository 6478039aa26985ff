"""What a task gets to call and with what: its own function, its own arguments."""

from __future__ import annotations

import enum
import functools
import math
import operator
import pickle
import sys
import traceback

import dask
import numpy as np
import pytest
from dask.sizeof import sizeof
from distributed import Client, wait

COUNT = 6


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


def kinds(values):
    return [(type(value), value) for value in values]


SCALARS = [
    None,
    True,
    False,
    0,
    1,
    -5,
    2**30 - 1,
    2**30,
    2**31,
    -(2**62),
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    -(2**63) - 1,
    10**30,
    0.0,
    -0.0,
    1.5,
    math.inf,
    5e-324,
    "",
    "text",
    "ünïcode",
    "\0",
    "x" * 10_000,
    b"",
    b"\xff",
    1j,
    Ellipsis,
]


# Functions that come by value


def test_a_function_that_writes_a_global_starts_anew_for_every_task(single_cluster):
    scope = {"__name__": "__main__", "count": 0}
    exec("def f(x):\n    global count\n    count += 1\n    return count", scope)
    with Client(single_cluster.address) as client:
        assert client.gather(client.map(scope["f"], range(COUNT))) == [1] * COUNT


def test_a_default_that_is_changed_is_a_tasks_own(single_cluster):
    scope = {"__name__": "__main__"}
    exec("def f(x, seen=[]):\n    seen.append(x)\n    return len(seen)", scope)
    with Client(single_cluster.address) as client:
        assert client.gather(client.map(scope["f"], range(COUNT))) == [1] * COUNT


def test_what_a_closure_holds_is_a_tasks_own(single_cluster):
    def make():
        count, seen = 0, []

        def f(x):
            nonlocal count
            count += 1
            seen.append(x)
            return count, len(seen)

        return f

    with Client(single_cluster.address) as client:
        futures = client.map(make(), range(COUNT))
        assert client.gather(futures) == [(1, 1)] * COUNT


def test_an_attribute_of_a_function_is_a_tasks_own(single_cluster):
    scope = {"__name__": "__main__"}
    exec(
        "def f(x):\n    f.calls = getattr(f, 'calls', 0) + 1\n    return f.calls", scope
    )
    with Client(single_cluster.address) as client:
        assert client.gather(client.map(scope["f"], range(COUNT))) == [1] * COUNT


def test_a_callable_object_is_a_tasks_own(single_cluster):
    scope = {"__name__": "__main__"}
    exec(
        "class F:\n    n = 0\n    def __call__(self, x):\n        self.n += 1\n"
        "        return self.n",
        scope,
    )
    with Client(single_cluster.address) as client:
        assert client.gather(client.map(scope["F"](), range(COUNT))) == [1] * COUNT


def test_a_partial_of_something_mutable_is_a_tasks_own(single_cluster):
    scope = {"__name__": "__main__"}
    exec("def f(seen, x):\n    seen.append(x)\n    return len(seen)", scope)
    f = functools.partial(scope["f"], [])
    with Client(single_cluster.address) as client:
        assert client.gather(client.map(f, range(COUNT))) == [1] * COUNT


def test_closures_and_defaults_have_their_values(client):
    def make(n):
        return lambda x, y=(1, "a"): (x, n, y)

    futures = [client.submit(make(n), 0) for n in range(COUNT)]
    assert client.gather(futures) == [(0, n, (1, "a")) for n in range(COUNT)]


def test_more_functions_than_anybody_remembers(client):
    functions = [eval(f"lambda x: (x, {n})") for n in range(1100)]
    for argument in range(2):
        graphs = [dask.delayed(f, pure=False)(argument) for f in functions]
        assert dask.compute(*graphs) == tuple((argument, n) for n in range(1100))


def test_a_large_function_travels(client):
    data = bytes(3 << 20)
    assert client.gather(client.map(lambda x: x + len(data), range(4))) == [
        len(data) + x for x in range(4)
    ]


def test_a_module_that_is_uploaded_again_is_called_in_its_new_form(
    fresh_cluster, tmp_path, monkeypatch
):
    name = "conformance_uploaded_module"
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / f"{name}.py"
    with Client(fresh_cluster(workers=1).address) as client:
        for version in range(2):
            path.write_text(f"def f(x):\n    return x, {version}\n" + "#" * version)
            sys.modules.pop(name, None)
            module = __import__(name)
            client.upload_file(str(path))
            assert client.submit(module.f, 7, pure=False).result() == (7, version)
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (operator.add, (1, 2), 3),
        (len, ([1, 2],), 2),
        (dict, ([("a", 1)],), {"a": 1}),
        (np.add, (np.int64(1), 2), np.int64(3)),
        (np.sum, ([1, 2],), np.int64(3)),
        (str.upper, ("a",), "A"),
        (operator.itemgetter(1), ([1, 2],), 2),
        (operator.methodcaller("upper"), ("a",), "A"),
        (functools.partial(operator.add, 1), (2,), 3),
        ("x".join, (["a", "b"],), "axb"),
    ],
    ids=lambda value: getattr(value, "__qualname__", type(value).__name__),
)
def test_callables_of_all_kinds(client, function, args, expected):
    found = client.submit(function, *args, pure=False).result()
    assert (type(found), found) == (type(expected), expected)


# Arguments


def test_arguments_of_all_kinds(client):
    def echo(*args, **kwargs):
        return args, kwargs

    values = [
        *SCALARS,
        [1, [2]],
        (1, (2, [3])),
        {"a": {"b": (1,)}, 2: None},
        {1, 2},
        frozenset("ab"),
        Colour.RED,
        Text("t"),
        slice(1, None, 2),
        range(3),
        np.float32(1.5),
        np.dtype("i4"),
        int,
        len,
    ]
    args, kwargs = client.submit(echo, *values, a=values, b={"k": values}).result()
    assert kinds(args) == kinds(values)
    assert kinds(kwargs["a"]) == kinds(values)
    assert kinds(kwargs["b"]["k"]) == kinds(values)
    [(mapped, _)] = client.gather(client.map(echo, [values]))
    assert kinds(mapped[0]) == kinds(values)


def test_futures_anywhere_in_the_arguments(client):
    def echo(*args, **kwargs):
        return args, kwargs

    one, two = client.map(operator.neg, [1, 2])
    found = client.submit(echo, one, [two, (one, {"k": two})], k=one, l=[[two]])
    assert found.result() == ((-1, [-2, (-1, {"k": -2})]), {"k": -1, "l": [[-2]]})


def test_what_a_task_does_to_its_arguments_stays_with_it(single_cluster):
    shared = [[], {}]

    def change(values, n):
        values[0].append(n)
        values[1][n] = n
        return len(values[0]), len(values[1])

    with Client(single_cluster.address) as client:
        futures = client.map(change, [shared] * COUNT, range(COUNT), pure=False)
        assert client.gather(futures) == [(1, 1)] * COUNT
        graph = [dask.delayed(change, pure=False)(shared, n) for n in range(COUNT)]
        assert dask.compute(*graph) == ((1, 1),) * COUNT


def test_an_object_given_twice_is_one_object(client):
    value = []
    same = client.submit(lambda x, y: x is y, value, value)
    assert same.result() is True


# Results


@pytest.mark.parametrize("direct", [False, True])
def test_results_keep_their_exact_types(client, direct):
    values = [*SCALARS, Colour.RED, Text("t"), np.int64(3), np.True_, (1,), [1]]
    futures = client.map(lambda i, values=values: values[i], range(len(values)))
    found = client.gather(futures, direct=direct)
    assert kinds(found) == kinds(values)
    zeros = [value for value in found if type(value) is float and value == 0]
    assert [math.copysign(1, zero) for zero in zeros] == [1, -1]
    assert math.isnan(client.submit(float, "nan").result())


def test_scalars_pass_from_worker_to_worker(client):
    a, b = client.scheduler_info()["workers"]
    values = SCALARS
    held = [
        client.submit(lambda i, v=values: v[i], i, workers=[a], pure=False)
        for i in range(len(values))
    ]
    taken = client.submit(lambda values: values, held, workers=[b])
    assert kinds(taken.result()) == kinds(values)
    echoes = [client.submit(lambda x: x, future, workers=[b]) for future in held]
    assert kinds(client.gather(echoes)) == kinds(values)


def test_sizes_of_scalars_are_those_of_sizeof(client):
    a, _ = client.scheduler_info()["workers"]
    values = [value for value in SCALARS if type(value) is not bytes]
    futures = [
        client.submit(lambda i, v=values: v[i], i, workers=[a], pure=False)
        for i in range(len(values))
    ]
    wait(futures)
    expected = [sizeof(pickle.loads(pickle.dumps(value))) for value in values]
    sizes = client.nbytes(summary=False)
    assert [sizes[future.key] for future in futures] == expected
    client.replicate(futures)
    assert [client.nbytes(summary=False)[f.key] for f in futures] == expected


def test_text_that_is_no_unicode_stays_what_it_is(client):
    assert client.submit(chr, 0xD800).result() == "\ud800"


def test_results_for_a_client_with_serializers_of_its_own(cluster):
    serializers = ["dask", "pickle"]
    with Client(
        cluster.address, serializers=serializers, deserializers=[*serializers, "error"]
    ) as client:
        values = [1, None, "text", 2.5, (1, 2)]
        futures = client.map(lambda x: x, values, pure=False)
        assert kinds(client.gather(futures)) == kinds(values)


# Errors


def frames_of(future):
    return [frame.name for frame in traceback.extract_tb(future.traceback())]


def test_a_traceback_ends_in_the_users_code(client):
    def inner(x):
        return 1 / x

    def outer(x):
        return inner(x)

    future = client.submit(outer, 0)
    assert isinstance(future.exception(), ZeroDivisionError)
    assert frames_of(future)[-2:] == ["outer", "inner"]


def test_a_traceback_of_a_fused_task_ends_in_the_users_code(client):
    import dask.array as da

    def broken(block):
        if block.shape == (2,):
            raise ValueError("no such block")
        return block

    x = da.ones(10, chunks=(4,)).map_blocks(broken, dtype=float, meta=np.empty(0)) + 1
    with pytest.raises(ValueError, match="no such block") as info:
        client.compute(x.sum()).result()
    assert info.traceback[-1].name == "broken"


def test_wrong_arguments_are_the_tasks_error(client):
    future = client.submit(lambda x: x, 1, 2)
    assert "takes 1 positional argument but 2 were given" in str(future.exception())
