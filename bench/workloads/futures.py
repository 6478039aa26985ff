"""Many small tasks through the futures interface and ``dask.delayed``."""

from __future__ import annotations

import bench_tasks
from dask import delayed
from dask._task_spec import Task, TaskRef
from distributed import as_completed, wait

from workloads.base import Context, workload


@workload("map-noop", 10_000, 2_000, warm=200)
def map_noop(context: Context, size: int) -> int:
    """client.map of an imported x + 1, then gather."""
    client = context.client
    with context.timed():
        results = client.gather(client.map(bench_tasks.inc, range(size), pure=False))
    assert results[-1] == size
    return size


@workload("map-noop-main", 5_000, 1_000, warm=100)
def map_noop_main(context: Context, size: int) -> int:
    """As map-noop with a lambda, so the function travels by value."""
    client = context.client
    with context.timed():
        results = client.gather(client.map(lambda x: x + 1, range(size), pure=False))
    assert results[-1] == size
    return size


@workload("map-wait", 10_000, 2_000, warm=200)
def map_wait(context: Context, size: int) -> int:
    """client.map and wait; results stay on the workers."""
    client = context.client
    with context.timed():
        wait(client.map(bench_tasks.inc, range(size), pure=False))
    return size


@workload("tree", 8_192, 1_024, warm=32)
def tree(context: Context, size: int) -> int:
    """Pairwise sum of that many leaves with dask.delayed."""
    increment, add = delayed(bench_tasks.inc), delayed(bench_tasks.add)
    level, tasks = [increment(i) for i in range(size)], size
    while len(level) > 1:
        level = [add(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
        tasks += len(level)
    with context.timed():
        result = level[0].compute()
    assert result == size * (size + 1) // 2
    return tasks


@workload("chain", 8_000, 2_000, warm=200)
def chain(context: Context, size: int) -> int:
    """20 chains of dependent tasks, as a raw graph that nothing fuses."""
    width, length = 20, size // 20
    graph: dict[str, Task] = {}
    for column in range(width):
        argument: int | TaskRef = 0
        for row in range(length):
            key = f"chain-{column}-{row}"
            graph[key] = Task(key, bench_tasks.inc, argument)
            argument = TaskRef(key)
    ends = [f"chain-{column}-{length - 1}" for column in range(width)]
    with context.timed():
        results = context.client.get(graph, ends)
    assert list(results) == [length] * width
    return width * length


@workload("fan", 5_000, 1_000, warm=50)
def fan(context: Context, size: int) -> int:
    """One task, that many that depend on it, one that depends on them all."""
    client = context.client
    with context.timed():
        root = client.submit(bench_tasks.inc, 0, pure=False)
        middle = client.map(bench_tasks.add, [root] * size, range(size), pure=False)
        result = client.submit(bench_tasks.total, middle, pure=False).result()
    assert result == size + size * (size - 1) // 2
    return size + 2


@workload("as-completed", 2_000, 400)
def completed(context: Context, size: int) -> int:
    """as_completed with a new task for each completed one, 20 in flight."""
    client = context.client
    with context.timed():
        running = as_completed(client.map(bench_tasks.inc, range(20), pure=False))
        submitted = 20
        for _ in running:
            if submitted < size:
                running.add(client.submit(bench_tasks.inc, submitted, pure=False))
                submitted += 1
    return size


def _sleeps(context: Context, size: int, seconds: float) -> int:
    client = context.client
    with context.timed():
        client.gather(
            client.map(bench_tasks.sleep, range(size), seconds=seconds, pure=False)
        )
    threads = sum(client.nthreads().values())
    context.figures["efficiency"] = size * seconds / threads / context.figures["wall_s"]
    return size


@workload("sleep-1ms", 4_000, 1_000)
def sleep_1ms(context: Context, size: int) -> int:
    """Independent sleeps of 1 ms; efficiency is the ideal time over the real one."""
    return _sleeps(context, size, 0.001)


@workload("sleep-10ms", 600, 200)
def sleep_10ms(context: Context, size: int) -> int:
    """Independent sleeps of 10 ms."""
    return _sleeps(context, size, 0.01)


@workload("sleep-100ms", 60, 20)
def sleep_100ms(context: Context, size: int) -> int:
    """Independent sleeps of 100 ms."""
    return _sleeps(context, size, 0.1)
