"""Moving bytes."""

from __future__ import annotations

import time

import bench_tasks
from distributed import wait

from workloads.base import Context, workload


@workload("transfer", 40, 10, workers=2)
def transfer(context: Context, size: int) -> int:
    """That many arrays of 16 MB, made on one worker and read on the other."""
    client = context.client
    source, target = sorted(client.nthreads())[:2]
    nbytes = 16_000_000
    arrays = [
        client.submit(bench_tasks.noise, i, nbytes, workers=[source], pure=False)
        for i in range(size)
    ]
    wait(arrays)
    with context.timed():
        wait(
            [
                client.submit(bench_tasks.first, array, workers=[target], pure=False)
                for array in arrays
            ]
        )
    context.figures["megabytes_per_s"] = size * nbytes / 1e6 / context.figures["wall_s"]
    return size


@workload("scatter-gather", 100, 20)
def scatter_gather(context: Context, size: int) -> int:
    """Scatter and gather one array of that many megabytes."""
    data = bench_tasks.noise(0, size * 1_000_000)
    with context.timed():
        started = time.perf_counter()
        future = context.client.scatter(data)
        scattered = time.perf_counter()
        result = context.client.gather(future)
        gathered = time.perf_counter()
    assert len(result) == len(data)
    context.figures["scatter_megabytes_per_s"] = size / (scattered - started)
    context.figures["gather_megabytes_per_s"] = size / (gathered - scattered)
    return 1
