"""Takes one sample in a process of its own: fresh client, fresh cluster.

Reads what to do as JSON from standard input and prints the figures as JSON. If
that fails, the last line on standard error says why.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import warnings
from typing import Any

import bench_tasks
from clusters import Cluster, Engine
from workloads import REGISTRY, Context


def main() -> None:
    """Take the sample described on standard input."""
    order = json.loads(sys.stdin.readline())
    warnings.simplefilter("ignore")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    # Ends the cluster's processes as well when the time is up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(json.dumps(measure(**order)), flush=True)


def measure(
    name: str,
    size: int,
    engine: dict[str, str],
    workers: int,
    nthreads: int,
    memory_limit: str,
) -> dict[str, Any]:
    """Figures of one run of the workload ``name``."""
    chosen = REGISTRY[name]
    count = chosen.workers if chosen.workers is not None else workers
    cluster = Cluster(Engine(**engine), count, nthreads, memory_limit)
    try:
        cluster.start()
        client = cluster.connect()
        for worker in client.nthreads():
            client.submit(bench_tasks.inc, 0, workers=[worker], pure=False).result()
        if chosen.warm:
            chosen.run(Context(cluster, client), chosen.warm)
        context = Context(cluster, client)
        tasks = chosen.run(context, size)
        with contextlib.suppress(Exception):
            client.close(timeout=5)
    finally:
        cluster.close()
    return {"tasks": tasks, **context.figures, "load1": os.getloadavg()[0]}


if __name__ == "__main__":
    main()
