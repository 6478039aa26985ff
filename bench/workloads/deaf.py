"""A worker of which one task holds the interpreter."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import bench_tasks
from distributed import wait
from distributed.core import connect

from workloads.base import Context, workload

ARRAY_NBYTES = 1 << 24
TRANSFER_NBYTES = 1 << 30

PING_PAUSE = 0.02  # seconds between an answer and the next question
LOOK_PAUSE = 0.02  # seconds between two looks at when the scheduler heard of the worker


class Pulse:
    """How a worker seems to others, watched by a thread of its own.

    Attributes
    ----------
    pings:
        Seconds until the worker answered each `ping`; one without an answer counts
        until the end.
    beats:
        When the scheduler heard of the worker, by the scheduler's clock.
    """

    def __init__(self, scheduler: str, worker: str) -> None:
        self.pings: list[float] = []
        self.beats: list[float] = []
        self._scheduler = scheduler
        self._worker = worker

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Watch for as long as the context lasts; returns when the worker has answered."""
        end = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._watch(end)))
        thread.start()
        try:
            while not self.pings:
                time.sleep(0.001)
            yield
        finally:
            end.set()
            thread.join()

    def begin(self) -> None:
        """Forget what was before; a question that waits for its answer counts."""
        self.pings.clear()
        del self.beats[:-1]

    def late_ms(self, interval: float) -> float:
        """By how much heartbeats that come every `interval` seconds were late at most."""
        gaps = [after - before for before, after in pairwise(self.beats)]
        return 1e3 * (max(gaps) - interval)

    async def _watch(self, end: threading.Event) -> None:
        watching = asyncio.gather(self._ping(), self._look())
        while not end.is_set() and not watching.done():
            await asyncio.sleep(LOOK_PAUSE)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching

    async def _ping(self) -> None:
        comm = await connect(self._worker)
        while True:
            begun = time.perf_counter()
            try:
                await comm.write({"op": "ping", "reply": True})
                await comm.read()
            finally:
                self.pings.append(time.perf_counter() - begun)
            await asyncio.sleep(PING_PAUSE)

    async def _look(self) -> None:
        comm = await connect(self._scheduler)
        seen: float | None = None
        try:
            while True:
                await comm.write({"op": "identity", "n_workers": -1, "reply": True})
                info: Any = await comm.read()
                now = info["workers"][self._worker]["last_seen"]
                if now != seen:
                    seen = now
                    self.beats.append(now)
                await asyncio.sleep(LOOK_PAUSE)
        finally:
            self.beats.append(time.time())


@workload("deaf", 30, 4, workers=2)
def deaf(context: Context, size: int) -> int:
    """A task that holds the interpreter for that many seconds, idly and then busily."""
    info = context.client.scheduler_info(n_workers=-1)["workers"]
    # Stock's scheduler asks a worker of a small cluster for two heartbeats a second,
    # and ours does the same.
    interval = 0.5
    holder, peer = info
    count = TRANSFER_NBYTES // ARRAY_NBYTES
    tasks = 0

    def fetch(hold: Callable[[str, float], None] | None, pulse: Pulse | None) -> float:
        """Bytes a second at which the peer gets new arrays of the holder."""
        nonlocal tasks
        client = context.client
        arrays = client.map(
            bench_tasks.noise,
            range(count),
            nbytes=ARRAY_NBYTES,
            workers=[holder],
            pure=False,
        )
        wait(arrays)
        tasks += count + 1
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            held = None
            if hold is not None and pulse is not None:
                stack.enter_context(pulse.taken())
                started = Path(folder) / "started"
                held = client.submit(hold, str(started), size, workers=[holder])
                while not started.exists():
                    time.sleep(0.001)
                pulse.begin()
                tasks += 1
            begun = time.perf_counter()
            got = client.submit(
                bench_tasks.count, *arrays, workers=[peer], pure=False
            ).result()
            seconds = time.perf_counter() - begun
            if got != count:
                raise RuntimeError(f"the peer got {got} arrays of {count}")
            if held is not None:
                held.result()
        return TRANSFER_NBYTES / seconds

    # The first one makes connections and memory.
    fetch(None, None)
    idle = max(fetch(None, None) for _ in range(2))
    figures = context.figures
    figures["idle_mb_s"] = idle / 1e6
    with context.timed():
        for name, hold in (
            ("held", bench_tasks.hold),
            ("burning", bench_tasks.hold_and_burn),
        ):
            pulse = Pulse(context.cluster.address, holder)
            rate = fetch(hold, pulse)
            figures[f"{name}_mb_s"] = rate / 1e6
            figures[f"{name}_ratio"] = rate / idle
            figures[f"{name}_beat_late_ms"] = pulse.late_ms(interval)
            figures[f"{name}_ping_p50_ms"] = 1e3 * statistics.median(pulse.pings)
            figures[f"{name}_ping_max_ms"] = 1e3 * max(pulse.pings)
    return tasks
