"""Closing a worker, one of whose tasks holds the interpreter."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from distributed import KilledWorker
from distributed.core import rpc
from python_cluster import cluster, run

#: Seconds for which a task holds the interpreter.
HOLD = 30


def hold(path):
    import ctypes

    with open(path, "w") as file:
        file.write("begun")
    ctypes.PyDLL(None).usleep(HOLD * 1_000_000)


async def by_signal(address, worker):
    worker.send_signal(signal.SIGTERM)


async def by_request(address, worker):
    async with rpc(address) as peer:
        assert await peer.terminate(timeout=2, reason="test") == "OK"


@pytest.mark.parametrize("close", [by_signal, by_request])
def test_a_worker_whose_interpreter_is_held_closes_in_time(tmp_path, close):
    async def body():
        async with cluster(tmp_path) as (scheduler, client, (worker,)):
            (address,) = scheduler.workers
            scheduler.allowed_failures = 0
            begun = tmp_path / "begun"
            future = client.submit(hold, str(begun))
            while not begun.exists():
                await asyncio.sleep(0.01)
            since = time.monotonic()
            await close(address, worker)
            assert await asyncio.wait_for(worker.wait(), HOLD / 2) == 0
            assert time.monotonic() - since < 10
            with pytest.raises(KilledWorker):
                await future
            assert not list(tmp_path.glob("dask-scratch-space/worker-*"))

    run(body)
