"""Workers with a toy in place of an interpreter, under stock's scheduler and client."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import toy_functions
from distributed import Client, Scheduler, wait


@contextlib.asynccontextmanager
async def cluster(toy_worker, directory, count):
    async with (
        Scheduler(host="127.0.0.1", port=0, dashboard_address=":0") as scheduler,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        workers = [
            await asyncio.create_subprocess_exec(
                toy_worker, scheduler.address, str(directory), f"toy-{number}"
            )
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


def test_graph_with_transfers(toy_worker, tmp_path):
    async def test():
        async with cluster(toy_worker, tmp_path, 2) as (scheduler, client, _):
            one = client.submit(toy_functions.shell_one, key="a", workers=["toy-0"])
            two = client.submit(toy_functions.shell_two, key="b", workers=["toy-1"])
            total = client.submit(toy_functions.shell_total, one, two, key="c")
            assert await total == 3
            assert await client.gather([one, two, total]) == [1, 2, 3]
            assert scheduler.tasks["c"].nbytes == 28
            assert (
                len(scheduler.tasks["a"].who_has) + len(scheduler.tasks["b"].who_has)
                == 3
            )
            del one, two, total
            await until(lambda: not scheduler.tasks)

    run(test)


def test_error(toy_worker, tmp_path):
    async def test():
        async with cluster(toy_worker, tmp_path, 1) as (_, client, _):
            future = client.submit(toy_functions.shell_raise, key="a")
            with pytest.raises(ValueError, match="on purpose"):
                await future

    run(test)


def test_scatter_replicate_and_retire(toy_worker, tmp_path):
    async def test():
        async with cluster(toy_worker, tmp_path, 2) as (scheduler, client, workers):
            future = await client.scatter(5)
            await client.replicate([future], n=2)
            assert len(scheduler.tasks[future.key].who_has) == 2
            await client.retire_workers(names=["toy-0"])
            assert await workers[0].wait() == 0
            assert await future == 5

    run(test)


def test_cancel_and_worker_loss(toy_worker, tmp_path):
    async def test():
        async with cluster(toy_worker, tmp_path, 2) as (scheduler, client, workers):
            held = client.submit(toy_functions.shell_hold, key="a", workers=["toy-0"])
            await until(
                lambda: scheduler.tasks and scheduler.tasks["a"].state == "processing"
            )
            await held.cancel()
            one = client.submit(toy_functions.shell_one, key="b", workers=["toy-1"])
            await wait(one)
            workers[1].kill()
            await workers[1].wait()
            await until(lambda: len(scheduler.workers) == 1)
            assert scheduler.tasks["b"].state in ("no-worker", "released")

    run(test)


def test_requests(toy_worker, tmp_path):
    async def test():
        async with cluster(toy_worker, tmp_path, 1) as (scheduler, client, _):
            [address] = scheduler.workers
            replies = await scheduler.broadcast(msg={"op": "identity"})
            assert replies[address]["type"] == "Worker"
            one = client.submit(toy_functions.shell_one, key="a")
            await wait(one)
            assert await scheduler.rpc(address).keys() == ("a",)
            story = await scheduler.rpc(address).get_story(keys_or_stimuli=["a"])
            assert story[0][:2] == ("a", "compute-task")
            assert (await client.get_worker_logs())[address]
            await until(lambda: scheduler.workers[address].metrics["task_counts"])

    run(test)


def test_the_worker_goes_with_its_scheduler(toy_worker, tmp_path):
    async def test():
        async with cluster(toy_worker, tmp_path, 1) as (scheduler, _, workers):
            await scheduler.close()
            assert await workers[0].wait() == 0

    run(test)
