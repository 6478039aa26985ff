"""Keys of every kind, and functions and data that travel by value."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from cluster import eventually, process_environment
from conformance_tasks import add, identity, inc, total
from distributed import wait


@pytest.mark.parametrize(
    "key",
    [
        "plain",
        "mit-Ümläuten-und-ß",
        "日本語のキー",
        "emoji-🦀🐍",
        "with spaces, commas; and 'quotes\"",
        "line\nbreak\tand\x00null",
        "x" * 50_000,
        ("tuple", 1),
        ("tuple", 1, 2.5, ("nested", (0, -1))),
        ("naïve", "ключ", 3),
        7,
        -(2**60),
        2.5,
    ],
    ids=lambda key: repr(key)[:24].encode("ascii", "replace").decode(),
)
def test_key_of_any_kind_goes_round(client, cluster, key):
    """Pitfall 5."""
    future = client.submit(inc, 1, key=key)
    assert future.key == key
    assert future.result() == 2
    assert cluster.knows(key)
    dependent = client.submit(add, future, 10)
    assert dependent.result() == 12
    assert client.get({"out": (inc, key), key: (inc, 1)}, "out") == 3
    del future, dependent
    eventually(lambda: cluster.has_forgotten(key))


@pytest.mark.parametrize(
    ("a", "b"),
    [(1, 1.0), (2.0, 2), (("t", 1), ("t", 1.0)), (("t", ("n", 0.0)), ("t", ("n", 0)))],
    ids=repr,
)
def test_keys_that_are_equal_in_python_name_one_task(client, cluster, connect, a, b):
    """Pitfall 5: 1 == 1.0 == True."""
    first = client.submit(identity, "first", key=a)
    assert first.result() == "first"
    other = connect(cluster, set_as_default=False)
    second = other.submit(identity, "second", key=b)
    assert second.result() == "first"
    assert len([k for k in cluster.tasks() if k == a]) == 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("1", 1),
        (("t", 1), ("t", "1")),
        (("t", 0), ("t", 1)),
        (1, 1.5),
        ("('t', 1)", ("t", 1)),
    ],
    ids=repr,
)
def test_keys_that_differ_in_python_name_two_tasks(client, a, b):
    """Pitfall 5."""
    first = client.submit(identity, "first", key=a)
    second = client.submit(identity, "second", key=b)
    assert client.gather([first, second]) == ["first", "second"]


def test_keys_in_messages_are_found_by_pythons_equality(client, cluster):
    """Pitfall 5: 1 == 1.0 == True, but a bytes key is no str key."""
    futures = [client.submit(identity, "value", key=key) for key in (1, ("t", 0), "k")]
    wait(futures)
    for key in (1, 1.0, True, ("t", 0), ("t", 0.0), ("t", False), "k"):
        (holders,) = cluster.call("who_has", keys=[key]).values()
        assert len(holders) == 1, key
    for key in ("1", 1.5, ("t", "0"), ("t", 0, 0), b"k"):
        (holders,) = cluster.call("who_has", keys=[key]).values()
        assert len(holders) == 0, key


def test_keys_of_mixed_kinds_in_one_graph(client):
    graph = {
        "a": (inc, 0),
        ("a", 0): (inc, "a"),
        ("a", 1): (inc, ("a", 0)),
        1: (inc, ("a", 1)),
        2.5: (inc, 1),
        "b": (inc, 2.5),
        "sum": (total, ["a", ("a", 0), ("a", 1), 1, 2.5, "b"]),
    }
    assert client.get(graph, "sum") == 1 + 2 + 3 + 4 + 5 + 6


def test_many_keys_that_share_a_long_prefix(client):
    prefix = "p" * 500
    futures = [client.submit(inc, i, key=f"{prefix}-{i}") for i in range(100)]
    assert client.gather(futures) == list(range(1, 101))


def test_same_key_with_another_function_keeps_the_first(client, name):
    key = name("key")
    first = client.submit(identity, "first", key=key)
    assert first.result() == "first"
    again = client.submit(identity, "second", key=key)
    assert again.result() == "first"


def test_lambda_and_closure(client):
    factor = 3
    assert client.submit(lambda x: factor * x, 5).result() == 15

    def outer(n):
        def inner(x):
            return x + n

        return inner

    assert client.gather(client.map(outer(10), range(3))) == [10, 11, 12]


def test_recursive_local_function(client):
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    assert client.submit(factorial, 20).result() == 2432902008176640000


def test_instance_of_a_local_class(client):
    class Point:
        def __init__(self, x):
            self.x = x

        def __eq__(self, other):
            return self.x == other.x

        def moved(self, by):
            return Point(self.x + by)

    future = client.submit(Point(1).moved, 5)
    assert future.result().x == 6
    assert client.submit(lambda p: p.moved(1).x, future).result() == 7


def test_partial_method_and_builtin_functions(client):
    from functools import partial
    from operator import itemgetter

    assert client.submit(partial(add, 1), 2).result() == 3
    assert client.submit("a-b-c".split, "-").result() == ["a", "b", "c"]
    assert client.submit(itemgetter(1), [1, 2]).result() == 2
    assert client.submit(max, [3, 9, 4]).result() == 9


def test_coroutine_function_runs_on_the_worker(client):
    async def twice(x):
        import asyncio

        await asyncio.sleep(0)
        return 2 * x

    assert client.gather(client.map(twice, range(4))) == [0, 2, 4, 6]


def test_large_closure_travels(client):
    data = bytes(3_000_000)
    assert client.submit(lambda: len(data)).result() == 3_000_000


def run_script(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env=process_environment(),
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_functions_and_classes_of_main(client, cluster):
    """What a script defines is unknown to the cluster and travels by value."""
    script = """
        import sys
        from dask import delayed
        from distributed import Client, wait
        import dask.array as da

        class Thing:
            def __init__(self, x):
                self.x = x

        class MyError(Exception):
            pass

        OFFSET = 100

        def shift(thing):
            return Thing(thing.x + OFFSET)

        def fail():
            raise MyError("mine")

        if __name__ == "__main__":
            with Client(sys.argv[1]) as client:
                future = client.submit(shift, client.submit(Thing, 1))
                print(future.result().x)
                print([t.x for t in client.gather(client.map(shift, [Thing(2), Thing(3)]))])
                print(delayed(shift)(Thing(4)).compute().x)
                print(da.ones(6, chunks=2).map_blocks(lambda b: b + OFFSET).sum().compute())
                try:
                    client.submit(fail).result()
                except MyError as error:
                    print(type(error).__name__, error)
    """
    done = run_script(script, cluster.address)
    assert done.stdout.splitlines() == [
        "101",
        "[102, 103]",
        "104",
        "606.0",
        "MyError mine",
    ], done.stderr


def test_script_that_ends_without_closing_its_client(client, cluster):
    """A client that is gone leaves no task behind."""
    script = """
        import os, sys
        from distributed import Client
        client = Client(sys.argv[1])
        future = client.submit(sum, [1, 2], key="left-behind")
        print(future.result(), flush=True)
        os._exit(0)
    """
    done = run_script(script, cluster.address)
    assert done.stdout.strip() == "3", done.stderr
    eventually(lambda: cluster.has_forgotten("left-behind"))


def test_no_warning_at_connect(client, cluster):
    """Pitfall 30: versions agree, whatever the scheduler is made of."""
    script = """
        import sys, warnings
        warnings.simplefilter("error")
        from distributed import Client
        with Client(sys.argv[1]) as client:
            print(client.submit(sum, [1, 2]).result())
    """
    done = run_script(script, cluster.address)
    assert done.stdout.strip() == "3", done.stderr
    assert "Mismatched" not in done.stderr


def test_upper_and_lower_surrogates_of_results(client):
    texts = ["\u0000", "ä", "€", "🦀", "\uffff", "mixed 🐍 text \u200b"]
    futures = client.map(identity, texts)
    wait(futures)
    assert client.gather(futures) == texts
