"""A second client that has a large graph expanded, for ``helper-isolation``.

Prints the number of tasks, waits for a line on standard input, submits the
graph, and prints ``expanded`` when the scheduler has taken all of it.
"""

from __future__ import annotations

import sys

import bench_tasks
import dask.array as da
from distributed import Client
from workloads.base import graph_size

TASKS_PER_CHUNK = 7 / 3  # in the optimised graph of the sum below


def main() -> None:
    """Command line: address of the scheduler, number of tasks."""
    address, size = sys.argv[1], int(sys.argv[2])
    side = round((size / TASKS_PER_CHUNK) ** 0.5)
    # Counting makes a graph's layers remember their tasks, which would be sent.
    print(graph_size(_sum(side)), flush=True)
    with Client(address) as client:
        sys.stdin.readline()
        # No worker has this resource: the tasks stay where they are.
        future = client.compute(_sum(side), resources={"nowhere": 1})
        # One client's messages are handled in order, so this one comes after the graph.
        client.submit(bench_tasks.inc, 0, pure=False).result()
        print("expanded", flush=True)
        future.cancel()


def _sum(side: int) -> da.Array:
    array = da.ones((side, side), chunks=(1, 1))
    return (array + array.T).sum()


if __name__ == "__main__":
    main()
