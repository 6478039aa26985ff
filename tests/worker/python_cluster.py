"""Workers that run tasks with an interpreter, under stock's scheduler and client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from distributed import Client, Scheduler

#: Modules of these tests, which tasks refer to.
HERE = str(Path(__file__).parent)


async def start_worker(
    address,
    directory,
    name,
    *,
    nthreads=1,
    memory_limit="auto",
    env=None,
    preload=None,
    preload_argv=(),
    arguments=(),
):
    options = ["--no-nanny", "--no-dashboard"]
    if "--listen-address" not in arguments:
        options += ["--host", "127.0.0.1"]
    options += ["--name", name, "--nthreads", str(nthreads)]
    options += ["--memory-limit", memory_limit]
    options += ["--local-directory", str(directory)]
    if preload is not None:
        options += ["--preload", preload, *preload_argv]
    options += arguments
    path = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
    settings = {"PYTHONPATH": path, "DASK_DISTRIBUTED__WORKER__VALIDATE": "True"}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "oxidask", "worker", address, *options),
        env={**os.environ, **settings, **(env or {})},
    )


@contextlib.asynccontextmanager
async def cluster(directory, count=1, **options):
    async with (
        Scheduler(host="127.0.0.1", port=0, dashboard_address=":0") as scheduler,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        workers = [
            await start_worker(scheduler.address, directory, f"w{number}", **options)
            for number in range(count)
        ]
        try:
            await client.wait_for_workers(count, timeout=30)
            yield scheduler, client, workers
        finally:
            for worker in workers:
                with contextlib.suppress(ProcessLookupError):
                    worker.kill()
                await worker.wait()


async def until(condition):
    """Waits for the scheduler's state, of which nobody is told."""
    while not condition():
        await asyncio.sleep(0.01)


def run(test, seconds=120):
    asyncio.run(asyncio.wait_for(test(), seconds))
