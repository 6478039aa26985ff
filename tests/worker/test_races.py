"""Tasks that come and go, and workers that die, stall or lose their connections meanwhile.

The short form runs with the other tests; `--rounds` makes it longer. A run that fails
says its seed, and `--seed` takes it; what processes do meanwhile differs all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import time

import dask
import numpy as np
import pytest
from distributed import Client, Scheduler, wait
from distributed.client import FutureCancelledError
from python_cluster import cluster, run, start_worker, until

#: Rounds of the short form.
ROUNDS = 200

#: So many rounds of tasks take the time of one of transfers.
ROUNDS_PER_TRANSFER = 25

#: Keys that are submitted, cancelled and submitted again. Few, so that they meet.
KEYS_COUNT = 31

ARRAY_NBYTES = 4 * 2**20
ARRAYS_COUNT = 8

HOST = "127.0.0.1"


@pytest.fixture
def rounds(request):
    return request.config.getoption("rounds", None) or ROUNDS


@pytest.fixture
def rng(request):
    seed = request.config.getoption("seed", None)
    if seed is None:
        # The short form judges a change by itself.
        is_long = request.config.getoption("rounds", None)
        seed = random.randrange(1 << 32) if is_long else 0
    print(f"--seed {seed}")
    return random.Random(seed)


def depth(seconds, parent=0):
    time.sleep(seconds)
    return parent + 1


def make(number):
    return np.full(ARRAY_NBYTES, number, "u1")


def total(*arrays):
    return sum(int(array[0]) for array in arrays)


def count_tasks(dask_worker):
    return len(dask_worker.state.tasks)


async def is_empty(scheduler, client):
    """Waits until nobody knows a task any more."""
    await until(lambda: not scheduler.tasks)
    while any((await client.run(count_tasks)).values()):
        await asyncio.sleep(0.01)


class Tree:
    """Tasks of which each needs the result of the one at half its number."""

    def __init__(self, client, rng):
        self.futures = {}
        self._client = client
        self._rng = rng

    def submit(self, number):
        future = self.futures.get(number)
        if future is None or future.cancelled():
            # A resubmitted key may still be cancelled by what was said of it before.
            parents = [self.submit(number // 2)] if number > 1 else []
            seconds = self._rng.choice([0, 0, 0.001, 0.02])
            future = self.futures[number] = self._client.submit(
                depth, seconds, *parents, key=f"depth-{number}"
            )
        return future

    async def cancel(self, number):
        force = self._rng.random() < 0.5
        await self._client.cancel(self.take(number), force=force)

    def take(self, number):
        """The futures of a task and of all that need it, which are forgotten here."""
        numbers = [
            other
            for other in self.futures
            if any(other >> shift == number for shift in range(other.bit_length()))
        ]
        return [self.futures.pop(other) for other in numbers]


def test_tasks_that_are_cancelled_and_resubmitted(tmp_path, rounds, rng):
    async def test():
        async with cluster(tmp_path, 2, nthreads=2) as (scheduler, client, _):
            # A client may lose count of a key that it cancels and submits again; its end
            # releases all of them.
            async with Client(scheduler.address, asynchronous=True) as racing:
                await race(Tree(racing, rng))
            await is_empty(scheduler, client)
            tree = Tree(client, rng)
            assert await tree.submit(KEYS_COUNT) == KEYS_COUNT.bit_length()

    async def race(tree):
        for _ in range(rounds):
            number = rng.randrange(1, KEYS_COUNT + 1)
            match rng.choice(["submit", "submit", "cancel", "release", "await"]):
                case "submit":
                    tree.submit(number)
                case "cancel":
                    await tree.cancel(number)
                case "release":
                    for future in tree.take(number):
                        future.release()
                case "await":
                    with contextlib.suppress(FutureCancelledError):
                        assert await tree.submit(number) == number.bit_length()

    run(test, 120 + rounds)


class Relay:
    """Passes connections on to a port, until they are cut."""

    def __init__(self, target):
        self._target = target
        self._writers = set()
        self._running = set()

    @contextlib.asynccontextmanager
    async def listening(self):
        server = await asyncio.start_server(self._serve, HOST, 0)
        async with server:
            yield server.sockets[0].getsockname()[1]
            self.cut()
            await asyncio.gather(*self._running, return_exceptions=True)

    def cut(self):
        """Breaks every connection, whatever is under way."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader, writer):
        self._running.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            onward = await asyncio.open_connection(HOST, self._target)
            ends = {writer, onward[1]}
            self._writers |= ends
            await asyncio.gather(
                self._pass(reader, onward[1]), self._pass(onward[0], writer)
            )
            self._writers -= ends
        writer.transport.abort()
        self._running.discard(asyncio.current_task())

    async def _pass(self, reader, writer):
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()


def free_port():
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


class Holder:
    """A worker behind a relay, which can be hurt."""

    def __init__(self, scheduler, folder, rng):
        self.process = None
        self._scheduler = scheduler
        self._folder = folder
        self._rng = rng
        self._port = free_port()
        self._relay = Relay(self._port)

    @contextlib.asynccontextmanager
    async def running(self):
        async with self._relay.listening() as port:
            self._contact = f"tcp://{HOST}:{port}"
            await self._start()
            try:
                yield self
            finally:
                self.process.kill()
                await self.process.wait()

    async def _start(self):
        self.process = await start_worker(
            self._scheduler.address,
            self._folder,
            "holder",
            nthreads=2,
            arguments=[
                *("--listen-address", f"tcp://{HOST}:{self._port}"),
                *("--contact-address", self._contact),
            ],
        )
        await until(lambda: self._contact in self._scheduler.workers)

    async def hurt(self):
        """Does one of the bad things after a while, and makes it good if need be."""
        await self._pause()
        match self._rng.choice(["kill", "stop", "stop", "cut", "cut", "cut"]):
            case "kill":
                self.process.kill()
                await self.process.wait()
                await until(lambda: self._contact not in self._scheduler.workers)
                await self._start()
            case "stop":
                self.process.send_signal(signal.SIGSTOP)
                await self._pause()
                self.process.send_signal(signal.SIGCONT)
            case "cut":
                self._relay.cut()

    async def _pause(self):
        await asyncio.sleep(self._rng.uniform(0, 0.1))


def test_transfers_from_a_worker_that_is_hurt(tmp_path, rounds, rng):
    async def test():
        async with (
            Scheduler(host=HOST, port=0, dashboard_address=":0") as scheduler,
            Client(scheduler.address, asynchronous=True) as client,
            Holder(scheduler, tmp_path, rng).running() as holder,
        ):
            fetcher = await start_worker(scheduler.address, tmp_path, "fetcher")
            try:
                await client.wait_for_workers(2, timeout=30)
                for _ in range(max(1, rounds // ROUNDS_PER_TRANSFER)):
                    arrays = client.map(
                        make,
                        range(ARRAYS_COUNT),
                        workers=["holder"],
                        allow_other_workers=True,
                        pure=False,
                    )
                    await wait(arrays)
                    summed = client.submit(total, *arrays, workers=["fetcher"])
                    hurt = asyncio.ensure_future(holder.hurt())
                    assert await summed == sum(range(ARRAYS_COUNT))
                    await hurt
                    del arrays, summed
                await is_empty(scheduler, client)
            finally:
                fetcher.kill()
                await fetcher.wait()

    # A task that was running when its worker died is not to blame.
    with dask.config.set({"distributed.scheduler.allowed-failures": rounds}):
        run(test, 120 + rounds)
