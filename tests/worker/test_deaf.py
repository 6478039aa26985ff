"""A worker while one of its tasks holds the interpreter.

The bounds tell a worker that answers from one that is deaf, on any machine; the
workload `deaf` of `bench/` measures how well it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import re
import statistics
import time
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import SchedulerPlugin, wait
from distributed.core import connect
from python_cluster import cluster, run, until

HOLD_SECONDS = 3
ARRAY_NBYTES = 16 * 2**20
ARRAYS_COUNT = 16

#: How late a heartbeat may be: far less than the hold.
LATENESS_SECONDS_MAX = 1.0

#: How long an answer to a ping may take in the middle. Single ones also wait for the
#: test's own event loop, on which a scheduler and a client run.
PING_SECONDS_MEDIAN = 0.1


def hold_idly(started, seconds):
    """Holds the interpreter without using a processor."""
    usleep = ctypes.PyDLL(None).usleep
    Path(started).touch()
    usleep(int(seconds * 1e6))
    return time.time()


def hold_busily(started, seconds):
    """Holds the interpreter for at least that long, with a search that backtracks."""
    # Each letter more takes twice as long.
    length, took = 18, 0.0
    while took < 0.05:
        length += 1
        begun = time.perf_counter()
        re.match("(a+)+$", "a" * length + "b")
        took = time.perf_counter() - begun
    while took < seconds:
        length, took = length + 1, took * 2
    Path(started).touch()
    re.match("(a+)+$", "a" * length + "b")
    return time.time()


def burn(started, seconds):
    """Uses a processor for that long, without the interpreter."""
    Path(started).touch()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)
    return time.time()


def grow_and_hold(started, nbytes, seconds):
    """Makes the process that much larger, then holds the interpreter."""
    grown = np.ones(nbytes, "u1")
    return hold_idly(started, seconds), grown[0]


def make(number):
    return np.full(ARRAY_NBYTES, number, "u1")


def make_view(number):
    return np.arange(ARRAY_NBYTES // 8).reshape(2, -1, 64)[:, :, number::2]


def count(*arrays):
    return len(arrays)


def checksum(array):
    return int(array.sum()), array.shape


class Transfers(SchedulerPlugin):
    """When workers fetched what their tasks needed."""

    def __init__(self):
        self.startstops = []

    def transition(self, key, start, finish, *args, startstops=(), **kwargs):
        self.startstops += [
            (startstop["start"], startstop["stop"])
            for startstop in startstops or ()
            if startstop["action"] == "transfer"
        ]

    def seconds(self):
        """From the begin of the first to the end of the last since it was asked last."""
        starts, stops = zip(*self.startstops, strict=True)
        self.startstops.clear()
        return max(stops) - min(starts)


class Pulse:
    """When a worker's heartbeats came, and how fast it answered."""

    def __init__(self, scheduler, address):
        self.address = address
        self.beats = []
        self.pings = []
        self._scheduler = scheduler

    @contextlib.asynccontextmanager
    async def taken(self):
        handlers = self._scheduler.handlers
        original = handlers["heartbeat_worker"]

        def heartbeat(*args, address, **kwargs):
            if address == self.address:
                self.beats.append(time.monotonic())
            return original(*args, address=address, **kwargs)

        handlers["heartbeat_worker"] = heartbeat
        comm = await connect(self.address)
        pinging = asyncio.ensure_future(self._ping(comm))
        try:
            yield
        finally:
            handlers["heartbeat_worker"] = original
            pinging.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pinging
            comm.abort()

    async def _ping(self, comm):
        while True:
            begun = time.monotonic()
            await comm.write({"op": "ping", "reply": True})
            assert await comm.read() in (b"pong", "pong")
            self.pings.append(time.monotonic() - begun)
            await asyncio.sleep(0.02)

    def check(self, interval):
        """What has to hold of heartbeats that are to come every `interval` seconds."""
        assert len(self.beats) > 2
        late = np.diff(self.beats).max() - interval
        assert late < LATENESS_SECONDS_MAX, self.beats
        assert statistics.median(self.pings) < PING_SECONDS_MEDIAN, self.pings
        assert max(self.pings) < LATENESS_SECONDS_MAX, self.pings


def run_strictly(test):
    """Under a scheduler that gives silent workers up soon, and leaves replicas alone."""
    settings = {
        "distributed.scheduler.worker-ttl": "2s",
        "distributed.scheduler.active-memory-manager.start": False,
    }
    with dask.config.set(settings):
        run(test)


@pytest.mark.parametrize(
    ("hold", "rate_min"), [(hold_idly, 0.5), (hold_busily, 0.3)], ids=["idle", "busy"]
)
def test_a_task_that_holds_the_interpreter_holds_nothing_else(tmp_path, hold, rate_min):
    async def test():
        async with cluster(tmp_path, 2) as (scheduler, client, _):
            by_name = {worker.name: worker for worker in scheduler.workers.values()}
            holder, peer = by_name["w0"].address, by_name["w1"].address
            transfers = Transfers()
            scheduler.add_plugin(transfers)
            arrays = client.map(make, range(ARRAYS_COUNT), workers=["w0"])
            await wait(arrays)

            async def fetch():
                """Seconds until the peer has all arrays; it has none of them afterwards."""
                counted = client.submit(count, *arrays, workers=["w1"], pure=False)
                assert await counted == ARRAYS_COUNT
                keys = [array.key for array in arrays]
                scheduler.request_remove_replicas(peer, keys, stimulus_id="fetched")
                return transfers.seconds()

            async def fetch_during(function, pulse, enough):
                """The best that began and ended while the holder ran `function`."""
                started = tmp_path / function.__name__
                seconds = max(HOLD_SECONDS, enough)
                future = client.submit(
                    function, str(started), seconds, workers=["w0"], pure=False
                )
                await until(started.exists)
                started.unlink()
                end = time.monotonic() + seconds - 0.5
                fetches = []
                async with pulse.taken():
                    while time.monotonic() < end:
                        took = await fetch()
                        fetches.append((took, time.time()))
                stopped = await future
                # The last one may have waited for the task.
                return min(took for took, fetched in fetches if fetched < stopped)

            # A peer's first fetch makes connections and memory.
            await fetch()
            free = min([await fetch() for _ in range(4)])
            enough = 10 * free
            free_bests, held_bests = [free], []
            # In turns, for what else the machine does changes.
            for _ in range(2):
                if hold is hold_busily:
                    # Using one of few processors costs something by itself.
                    pulse = Pulse(scheduler, holder)
                    free_bests.append(await fetch_during(burn, pulse, enough))
                pulse = Pulse(scheduler, holder)
                held_bests.append(await fetch_during(hold, pulse, enough))
                pulse.check(interval=0.5)
            free = max(free_bests) if hold is hold_busily else free
            assert free / min(held_bests) >= rate_min, (free_bests, held_bests)
            assert holder in scheduler.workers

    run_strictly(test)


@pytest.mark.parametrize("origin", ["client", "peer"])
def test_values_that_came_from_elsewhere_are_served_as_well(tmp_path, origin):
    async def test():
        async with cluster(tmp_path, 3) as (scheduler, client, _):
            if origin == "client":
                array = await client.scatter(make(7), workers=["w0"])
            else:
                # Others get it from `w0` alone once its maker has lost it.
                array = client.submit(make, 7, workers=["w2"])
                assert await client.submit(count, array, workers=["w0"]) == 1
                keys = [array.key]
                made = next(w for w in scheduler.workers.values() if w.name == "w2")
                scheduler.request_remove_replicas(
                    made.address, keys, stimulus_id="moved"
                )
            started = tmp_path / "started"
            held = client.submit(
                hold_idly, str(started), HOLD_SECONDS, workers=["w0"], pure=False
            )
            await until(started.exists)
            assert await client.submit(count, array, workers=["w1"], pure=False) == 1
            fetched = time.time()
            assert fetched < await held

    run_strictly(test)


def test_views_are_served_as_well(tmp_path):
    async def test():
        async with cluster(tmp_path, 2) as (_, client, _):
            view = client.submit(make_view, 1, workers=["w0"])
            await wait(view)
            started = tmp_path / "started"
            held = client.submit(
                hold_idly, str(started), HOLD_SECONDS, workers=["w0"], pure=False
            )
            await until(started.exists)
            got = await client.submit(checksum, view, workers=["w1"], pure=False)
            fetched = time.time()
            assert got == checksum(make_view(1))
            assert fetched < await held

    run_strictly(test)


def test_arrays_like_one_that_came_before_are_taken_in_as_well(tmp_path):
    async def test():
        async with cluster(tmp_path, 1) as (_, client, _):
            await client.scatter(make(1), workers=["w0"])
            started = tmp_path / "started"
            held = client.submit(
                hold_idly, str(started), HOLD_SECONDS, workers=["w0"], pure=False
            )
            await until(started.exists)
            array = await client.scatter(make(2), workers=["w0"])
            taken = time.time()
            assert taken < await held
            assert await client.submit(checksum, array) == checksum(make(2))

    run_strictly(test)


def test_a_task_that_holds_the_interpreter_does_not_hold_up_spilling(tmp_path):
    async def test():
        # Rest of the process and arrays stay below 0.7 of it, until the task comes.
        async with cluster(tmp_path, memory_limit="1GiB") as (scheduler, client, _):
            (worker,) = scheduler.workers.values()
            arrays = client.map(make, range(ARRAYS_COUNT))
            await wait(arrays)
            assert worker.metrics["spilled_bytes"]["disk"] == 0
            started = tmp_path / "started"
            held = client.submit(grow_and_hold, str(started), 450 * 2**20, HOLD_SECONDS)
            await until(started.exists)
            pulse = Pulse(scheduler, worker.address)
            async with pulse.taken():
                await until(lambda: worker.metrics["spilled_bytes"]["disk"] > 0)
                spilled = time.time()
            end, _ = await held
            assert spilled < end
            values = await client.gather(arrays)
            assert [value[0] for value in values] == list(range(ARRAYS_COUNT))

    run_strictly(test)
