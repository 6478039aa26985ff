"""On random graphs the native order holds no more results at once than dask's."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean, median

import dask.order
import graphs
import native_order

GRAPH_COUNT = 1000


def max_pressure(dsk, order) -> int:
    _, pressure = dask.order.diagnostics(dsk, o=order)
    return max(pressure)


def assert_topological(dsk, order):
    assert sorted(order.values()) == list(range(len(dsk)))
    for key, task in dsk.items():
        assert all(order[dep] < order[key] for dep in task.dependencies)


def test_max_pressure_against_dask():
    ratios = defaultdict(list)
    for seed in range(GRAPH_COUNT):
        family, dsk = graphs.make(seed)
        native = native_order.order(dsk)
        assert_topological(dsk, native)
        ours, theirs = (
            max_pressure(dsk, native),
            max_pressure(dsk, dask.order.order(dsk)),
        )
        # Both are 0 where nothing depends on anything.
        ratios[family].append((ours / theirs if theirs else 1.0 + ours, seed))

    print(f"\n{'family':26} median   mean  worst (seed)")
    for family, of_family in ratios.items():
        values = [ratio for ratio, _ in of_family]
        worst, seed = max(of_family)
        print(
            f"{family:26} {median(values):6.3f} {mean(values):6.3f} {worst:6.3f} ({seed})"
        )

    values = [ratio for of_family in ratios.values() for ratio, _ in of_family]
    worst, seed = max(pair for of_family in ratios.values() for pair in of_family)
    assert len(values) == GRAPH_COUNT
    assert median(values) <= 1.0
    assert worst <= 1.15, f"seed {seed}"


def test_order_is_the_same_for_any_insertion_order():
    for seed in range(0, GRAPH_COUNT, 10):
        _, dsk = graphs.make(seed)
        assert native_order.order(dsk) == native_order.order(dict(sorted(dsk.items())))


def test_max_pressure_is_counted_as_held_results():
    """Guards the measure itself: a chain holds one result, a fan-in all of them."""
    chain = {("x", i): [("x", i - 1)] if i else [] for i in range(5)}
    fan_in = {("x", i): [] for i in range(5)} | {("y",): [("x", i) for i in range(5)]}
    for structure, expected in ((chain, 1), (fan_in, 5)):
        dsk = {
            key: graphs.Task(key, sum, *map(graphs.TaskRef, deps))
            for key, deps in structure.items()
        }
        assert max_pressure(dsk, native_order.order(dsk)) == expected
