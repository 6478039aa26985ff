"""The messages between scheduler and workers, seen by a worker that a test scripts."""

from __future__ import annotations

import asyncio
import time

import dask
import pytest
from cluster import call_async
from conformance_tasks import CustomError, inc
from distributed import Client
from distributed.worker import thread_state
from scripted_worker import METRICS, ScriptedWorker


@pytest.fixture
def script(fresh_cluster):
    """Runs a coroutine function with a client and a scripted worker."""

    def run(body, **options):
        cluster = fresh_cluster(workers=0, **options)

        async def main():
            async with (
                Client(cluster.address, asynchronous=True, timeout=10) as client,
                ScriptedWorker(cluster.address) as worker,
            ):
                await asyncio.wait_for(body(client, worker), 40)

        asyncio.run(main())

    return run


async def in_memory(future):
    """Waits until the scheduler has told the client that the task is done."""
    await asyncio.wait_for(future._state.wait(), 20)
    assert future.status == "finished"


def test_registration_brings_plugins_and_a_heartbeat_interval(script):
    """Pitfall 28: without the plug-in named `shuffle` no P2P task works."""

    async def body(client, worker):
        assert worker.registration["heartbeat-interval"] == 0.5
        assert "shuffle" in worker.registration["worker-plugins"]
        assert abs(worker.registration["time"] - time.time()) < 60

    script(body)


def test_compute_task_describes_the_task_and_its_data(script):
    """Pitfall 9: every dependency comes with a holder."""

    async def body(client, worker):
        x = client.submit(inc, 1, key="x")
        y = client.submit(inc, x, key="y")
        task = await worker.expect("compute-task", key="x")
        assert task["who_has"] == {}
        assert task["nbytes"] == {}
        assert len(task["priority"]) == 3
        assert isinstance(task["run_id"], int)
        assert not task["actor"]
        assert not task["resource_restrictions"]
        assert task["run_spec"]({}) == 2
        await worker.finish(task, nbytes=12_345)
        task = await worker.expect("compute-task", key="y")
        assert {k: list(v) for k, v in task["who_has"].items()} == {
            "x": [worker.address]
        }
        assert task["nbytes"] == {"x": 12_345}
        assert task["run_spec"]({"x": 10}) == 11
        await worker.finish(task)
        await in_memory(y)

    script(body)


def test_annotations_and_resources_travel_with_the_task(script):
    async def body(client, worker):
        with dask.annotate(project="aurora", executor="offload"):
            future = client.submit(inc, 1, resources={"GPU": 1}, priority=7)
        task = await worker.expect("compute-task")
        assert task["annotations"]["project"] == "aurora"
        assert task["annotations"]["executor"] == "offload"
        assert task["resource_restrictions"] == {"GPU": 1}
        assert task["priority"][0] == -7
        await worker.finish(task)
        await in_memory(future)

    script(body)


def test_all_tasks_that_need_a_resource_are_sent(script):
    """Pitfall 18: placement looks at what a worker has, not at what is free."""

    async def body(client, worker):
        futures = [client.submit(inc, i, resources={"GPU": 1}) for i in range(3)]
        tasks = [await worker.expect("compute-task") for _ in futures]
        assert {t["key"] for t in tasks} == {f.key for f in futures}
        for task in tasks:
            await worker.finish(task)
        for future in futures:
            await in_memory(future)

    script(body)


def test_priority_of_a_task_submitted_by_a_task(script):
    """Pitfall 14: element 0 of the parent's priority, minus 0.01, becomes element 1."""

    async def body(client, worker):
        parent = client.submit(inc, 1, key="parent")
        task = await worker.expect("compute-task", key="parent")
        assert task["priority"][0] == 0
        thread_state.key = "parent"
        try:
            child = client.submit(inc, 2, key="child")
        finally:
            del thread_state.key
        assert list((await worker.expect("compute-task", key="child"))["priority"]) == [
            0,
            -0.01,
            0,
        ]
        assert parent.status == child.status == "pending"

    script(body)


def test_each_sending_has_a_run_id_of_its_own(script):
    async def body(client, worker):
        future = client.submit(inc, 1, retries=1)
        first = await worker.expect("compute-task")
        await worker.fail(first, ValueError("first"))
        second = await worker.expect("compute-task")
        assert second["key"] == first["key"]
        assert second["run_id"] > first["run_id"]
        await worker.finish(second)
        await in_memory(future)

    script(body)


def test_result_of_an_earlier_run_is_not_stored(script):
    """Pitfall 4: from the worker that has the task now, it leads to another run."""

    async def body(client, worker):
        future = client.submit(inc, 1)
        first = await worker.expect("compute-task")
        await worker.send("reschedule", key=first["key"])
        second = await worker.expect("compute-task")
        await worker.finish(first)
        third = await worker.expect("compute-task")
        assert first["run_id"] < second["run_id"] < third["run_id"]
        assert future.status == "pending"
        await worker.finish(third)
        await in_memory(future)

    script(body)


def test_result_from_a_worker_that_lost_the_task_is_freed(fresh_cluster):
    """Pitfall 4: from another worker."""
    cluster = fresh_cluster(workers=0)

    async def main():
        async with (
            Client(cluster.address, asynchronous=True, timeout=10) as client,
            ScriptedWorker(cluster.address, "first") as first,
            ScriptedWorker(cluster.address, "second") as second,
        ):
            future = client.submit(inc, 1, workers=["second"])
            task = await second.expect("compute-task")
            await first.finish(task, run_id=task["run_id"] - 1)
            freed = await first.expect("free-keys")
            assert list(freed["keys"]) == [task["key"]]
            assert future.status == "pending"
            await second.finish(task)
            await in_memory(future)
            holders = await call_async(cluster.address, "who_has", keys=[task["key"]])
            assert [list(v) for v in holders.values()] == [[second.address]]

    asyncio.run(asyncio.wait_for(main(), 40))


def test_result_of_an_unknown_task_is_freed(script):
    async def body(client, worker):
        await worker.finish({"key": "never-submitted", "run_id": 0})
        freed = await worker.expect("free-keys")
        assert list(freed["keys"]) == ["never-submitted"]

    script(body)


def test_replica_of_an_unknown_task_is_removed(script):
    async def body(client, worker):
        await worker.send("add-keys", keys=["never-submitted"])
        removed = await worker.expect("remove-replicas")
        assert list(removed["keys"]) == ["never-submitted"]

    script(body)


def test_released_task_is_freed_on_its_worker(script):
    async def body(client, worker):
        future = client.submit(inc, 1)
        task = await worker.expect("compute-task")
        await worker.finish(task)
        await in_memory(future)
        future.release()
        freed = await worker.expect("free-keys")
        assert list(freed["keys"]) == [task["key"]]

    script(body)


def test_lost_replica_is_computed_again(script):
    async def body(client, worker):
        future = client.submit(inc, 1)
        first = await worker.expect("compute-task")
        await worker.finish(first)
        await in_memory(future)
        await worker.send("release-worker-data", key=first["key"])
        second = await worker.expect("compute-task", key=first["key"])
        assert second["run_id"] > first["run_id"]
        await worker.finish(second)
        await in_memory(future)

    script(body)


def test_rescheduled_task_is_sent_again(script):
    async def body(client, worker):
        future = client.submit(inc, 1)
        for _ in range(3):
            task = await worker.expect("compute-task")
            await worker.send("reschedule", key=task["key"])
        await worker.finish(await worker.expect("compute-task"))
        await in_memory(future)

    script(body)


def test_worker_that_asks_who_has_is_answered(script):
    async def body(client, worker):
        future = client.submit(inc, 1, key="known")
        await worker.finish(await worker.expect("compute-task"))
        await in_memory(future)
        await worker.send("request-refresh-who-has", keys=["known", "unknown"])
        answer = await worker.expect("refresh-who-has")
        assert {k: list(v) for k, v in answer["who_has"].items()} == {
            "known": [worker.address]
        }
        assert list((await worker.expect("free-keys"))["keys"]) == ["unknown"]

    script(body)


def test_steal_response_that_nobody_asked_for_is_ignored(script):
    """Pitfall 27."""

    async def body(client, worker):
        future = client.submit(inc, 1)
        task = await worker.expect("compute-task")
        await worker.send(
            "steal-response",
            key=task["key"],
            state="ready",
            stimulus_id="steal-nobody-asked",
        )
        await worker.send("steal-response", key="unknown", state=None)
        await worker.finish(task)
        await in_memory(future)

    script(body)


def test_paused_worker_gets_no_tasks_until_it_runs(script):
    """Pitfall 10: slots and waiting tasks are looked at again when a worker resumes."""

    async def body(client, worker):
        await worker.change_status("paused")
        # The answer to this message shows that the one before it was read.
        await worker.send("request-refresh-who-has", keys=["unknown"])
        await worker.expect("free-keys")
        futures = client.map(inc, range(10))
        single = client.submit(inc, 100, key="single")
        while len(await call_async(client.scheduler.address, "who_has")) < 11:
            await asyncio.sleep(0.01)
        await worker.send("request-refresh-who-has", keys=["unknown"])
        await worker.expect_nothing_before("free-keys", unwanted="compute-task")
        await worker.change_status("running")
        for _ in range(11):
            await worker.finish(await worker.expect("compute-task"))
        for future in (*futures, single):
            await in_memory(future)

    script(body)


def test_long_running_task_makes_room_for_another(script):
    """Pitfall 11: two of the root tasks for one thread, then a third."""

    async def body(client, worker):
        futures = client.map(inc, range(10))
        first = await worker.expect("compute-task")
        await worker.expect("compute-task")
        await worker.send(
            "long-running",
            key=first["key"],
            run_id=first["run_id"],
            compute_duration=0.1,
        )
        third = await worker.expect("compute-task")
        assert third["key"] == futures[2].key

    script(body)


def test_exception_of_a_worker_reaches_the_client_untouched(script):
    """Pitfall 8."""

    async def body(client, worker):
        future = client.submit(inc, 1)
        await worker.fail(await worker.expect("compute-task"), CustomError(7, "detail"))
        with pytest.raises(CustomError) as info:
            await future
        assert (info.value.code, info.value.detail) == (7, "detail")

    script(body)


def test_error_of_an_earlier_run_is_not_an_error(script):
    """Pitfall 4."""

    async def body(client, worker):
        future = client.submit(inc, 1)
        first = await worker.expect("compute-task")
        await worker.send("reschedule", key=first["key"])
        await worker.expect("compute-task")
        await worker.fail(first, ValueError("stale"))
        await worker.finish(await worker.expect("compute-task"))
        await in_memory(future)

    script(body)


def test_heartbeat_is_answered_with_the_interval(script):
    async def body(client, worker):
        answer = await call_async(
            client.scheduler.address,
            "heartbeat_worker",
            address=worker.address,
            now=time.time(),
            metrics=METRICS,
            executing={},
            extensions={},
        )
        assert answer["status"] == "OK"
        assert answer["heartbeat-interval"] == 0.5

    script(body)


def test_worker_learns_of_another_workers_departure(fresh_cluster):
    cluster = fresh_cluster(workers=0)

    async def main():
        async with ScriptedWorker(cluster.address, "stays") as stays:
            async with ScriptedWorker(cluster.address, "leaves") as leaves:
                address = leaves.address
            assert (await stays.expect("remove-worker"))["worker"] == address

    asyncio.run(asyncio.wait_for(main(), 40))


def test_worker_of_a_taken_name_is_told_so(fresh_cluster):
    cluster = fresh_cluster(workers=0)

    async def main():
        async with ScriptedWorker(cluster.address, "twin"):
            with pytest.raises(AssertionError, match="name taken, twin"):
                async with ScriptedWorker(cluster.address, "twin"):
                    pass

    asyncio.run(asyncio.wait_for(main(), 40))


def test_tasks_of_a_worker_that_leaves_go_to_another(fresh_cluster):
    cluster = fresh_cluster(workers=0)

    async def main():
        async with Client(cluster.address, asynchronous=True, timeout=10) as client:
            async with ScriptedWorker(cluster.address, "first") as first:
                future = client.submit(inc, 1)
                task = await first.expect("compute-task")
            async with ScriptedWorker(cluster.address, "second") as second:
                again = await second.expect("compute-task", key=task["key"])
                assert again["run_id"] > task["run_id"]
                await second.finish(again)
                await in_memory(future)

    asyncio.run(asyncio.wait_for(main(), 40))
