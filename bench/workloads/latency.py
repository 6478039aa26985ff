"""How long one client waits for one task."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from pathlib import Path

import bench_tasks
from distributed import Client

from workloads.base import Context, workload

PAUSE = 0.03  # longer than the stock client's 10 ms between two sends
QUIET_ROUND_TRIPS = 100


def _round_trip(client: Client, number: int, pause: float = 0.0) -> float:
    if pause:
        time.sleep(pause)
    started = time.perf_counter()
    assert client.submit(bench_tasks.inc, number, pure=False).result() == number + 1
    return time.perf_counter() - started


@workload("round-trip", 400, 100)
def round_trip(context: Context, size: int) -> int:
    """submit(...).result(), one after the other."""
    _round_trip(context.client, 0)
    with context.timed():
        seconds = [_round_trip(context.client, i) for i in range(size)]
    context.report_latencies(seconds)
    return size


@workload("round-trip-idle", 150, 60)
def round_trip_idle(context: Context, size: int) -> int:
    """As round-trip with pauses, so without the client's own 10 ms between sends."""
    with context.timed():
        seconds = [_round_trip(context.client, i, PAUSE) for i in range(size)]
    context.report_latencies(seconds)
    return size


@workload("connect", 5, 3)
def connect(context: Context, size: int) -> int:
    """Connect and close that many clients; also how long the cluster took to start."""
    seconds = []
    with context.timed():
        for _ in range(size):
            started = time.perf_counter()
            client = Client(context.cluster.address, set_as_default=False)
            seconds.append(time.perf_counter() - started)
            client.close()
    context.report_latencies(seconds)
    context.figures["accept_ms"] = 1e3 * context.cluster.accept_s
    context.figures["workers_s"] = context.cluster.workers_s
    return size


@workload("helper-isolation", 200_000, 20_000)
def helper_isolation(context: Context, size: int) -> int:
    """Round trips with pauses, without and with another client's big graph being expanded."""
    client = context.client
    quiet = [_round_trip(client, i, PAUSE) for i in range(QUIET_ROUND_TRIPS)]
    program = Path(__file__).resolve().parent.parent / "other_client.py"
    with subprocess.Popen(
        [sys.executable, str(program), context.cluster.address, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        tasks = int(other.stdout.readline())
        busy: list[float] = []
        with context.timed():
            other.stdin.write("go\n")
            other.stdin.flush()
            while not select.select([other.stdout], [], [], 0)[0]:
                busy.append(_round_trip(client, len(busy), PAUSE))
        if other.stdout.readline() != "expanded\n":
            raise RuntimeError("the other client failed")
    context.report_latencies(quiet, "quiet_")
    context.report_latencies(busy, "busy_")
    for point in ("p50", "p99"):
        growth = (
            context.figures[f"busy_{point}_ms"] - context.figures[f"quiet_{point}_ms"]
        )
        context.figures[f"growth_{point}_ms"] = growth
    context.figures["busy_round_trips"] = len(busy)
    return tasks
