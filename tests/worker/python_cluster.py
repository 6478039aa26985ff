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

PROGRAM = """
import json, sys
from oxidask._oxidask import run_worker
run_worker(**json.loads(sys.argv[1]))
"""


async def start_worker(address, directory, name, *, nthreads=1, env=None, **options):
    import json

    arguments = {
        "scheduler": address,
        "local_directory": str(directory),
        "name": name,
        "nthreads": nthreads,
        **options,
    }
    path = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        json.dumps(arguments),
        env={**os.environ, "PYTHONPATH": path, **(env or {})},
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


def run(test):
    asyncio.run(asyncio.wait_for(test(), 60))
