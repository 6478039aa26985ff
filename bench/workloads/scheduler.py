"""The scheduler by itself, with workers that only pretend."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bench_tasks
from distributed import wait

from workloads.base import Context, workload

PROGRAM = Path(__file__).resolve().parent.parent / "fakeworkers.py"
HELPER_REST_S = 5.0  # how long the helper may take to give memory back


@dataclass
class FakeWorkers:
    """Pretended workers in one process, prepared but not yet connected."""

    process: subprocess.Popen[str]

    def register(self) -> float:
        """Connect all; returns the seconds until each was registered."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(json.loads(self._line())["register_s"])

    def wait_until_prepared(self) -> None:
        """Returns when only connecting is left to do."""
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the fake workers ended")
        return line


@contextmanager
def fake_workers(
    context: Context, count: int, prefix: str = ""
) -> Iterator[FakeWorkers]:
    """Start and stop them; reports what one task cost them as ``fake_us_per_task``."""
    command = [
        sys.executable,
        str(PROGRAM),
        context.cluster.address,
        "--count",
        str(count),
    ]
    with subprocess.Popen(
        [*command, "--prefix", prefix],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            workers = FakeWorkers(process)
            workers.wait_until_prepared()
            yield workers
        finally:
            process.terminate()
            assert process.stdout is not None
            last = process.stdout.read().strip().splitlines()
            if last and (tasks := (done := json.loads(last[-1])).get("tasks")):
                context.figures["fake_us_per_task"] = 1e6 * done["cpu_s"] / tasks


def _map_and_wait(context: Context, size: int, workers: int) -> int:
    with fake_workers(context, workers) as fake:
        context.figures["register_s"] = fake.register()
        with context.timed():
            futures = context.client.map(bench_tasks.inc, range(size), pure=False)
            wait(futures)
        del futures
    return size


@workload("scheduler-only-10", 20_000, 5_000, workers=0)
def scheduler_only_10(context: Context, size: int) -> int:
    """map-wait with 10 fake workers."""
    return _map_and_wait(context, size, 10)


@workload("scheduler-only-100", 20_000, 5_000, workers=0)
def scheduler_only_100(context: Context, size: int) -> int:
    """map-wait with 100 fake workers."""
    return _map_and_wait(context, size, 100)


@workload("scheduler-only-1000", 20_000, 5_000, workers=0)
def scheduler_only_1000(context: Context, size: int) -> int:
    """map-wait with 1000 fake workers."""
    return _map_and_wait(context, size, 1000)


@workload("register-1000", 1_000, 1_000, workers=0)
def register_1000(context: Context, size: int) -> int:
    """Registration of that many workers that come at the same time."""
    with fake_workers(context, size) as fake:
        with context.timed():
            context.figures["register_s"] = fake.register()
        assert len(context.client.scheduler_info(n_workers=-1)["workers"]) == size
    return size


@workload("big-graph", 500_000, 100_000, workers=0)
def big_graph(context: Context, size: int) -> int:
    """Submit that many tasks that nobody runs; memory of scheduler and helper for each."""
    client, figures = context.client, context.figures
    with fake_workers(context, 2, prefix="marker") as fake:
        fake.register()
        # The first graph starts the helper, which is not what is measured.
        wait(
            client.submit(bench_tasks.inc, 1, key="marker-0", priority=100, pure=False)
        )
        helper = context.cluster.helper_group
        helper_before = helper.rss()
        with context.timed():
            started = time.perf_counter()
            futures = client.map(bench_tasks.inc, range(size), pure=False)
            figures["client_submit_s"] = time.perf_counter() - started
            # One client's messages are handled in order, so this one comes after the graph.
            wait(
                client.submit(
                    bench_tasks.inc, 2, key="marker-1", priority=100, pure=False
                )
            )
        figures["scheduler_bytes_per_task"] = figures["scheduler_rss_growth"] / size
        peak = max(0.0, figures["helper_rss_peak"] - helper_before)
        figures["helper_peak_bytes_per_task"] = peak / size
        kept, until = helper.rss() - helper_before, time.perf_counter() + HELPER_REST_S
        while kept > 0.1 * peak and time.perf_counter() < until:
            time.sleep(0.1)
            kept = helper.rss() - helper_before
        figures["helper_kept_bytes_per_task"] = max(0, kept) / size
        del futures
    return size
