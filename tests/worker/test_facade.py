"""What tasks, plug-ins and clients see of a worker with an interpreter."""

from __future__ import annotations

import asyncio
import logging
import operator
import os
import sys
import threading
import warnings

import psutil
import pytest
from distributed import (
    Client,
    Lock,
    Queue,
    Scheduler,
    SchedulerPlugin,
    Variable,
    WorkerPlugin,
    get_client,
    get_worker,
    worker_client,
)
from distributed import print as dask_print
from distributed import warn as dask_warn
from distributed.diagnostics.plugin import UploadFile
from python_cluster import cluster, run, start_worker, until


def inc(x):
    return x + 1


def submit_within(x):
    client = get_client()
    return client.submit(inc, x).result()


def submit_seceded(x):
    with worker_client() as client:
        return sum(client.gather(client.map(inc, range(x))))


async def submit_from_a_coroutine(x):
    client = get_client()
    return await client.submit(inc, x)


def test_what_get_worker_gives(tmp_path):
    def look():
        worker = get_worker()
        return {
            "address": worker.address,
            "name": worker.name,
            "nthreads": worker.state.nthreads,
            "directory": worker.local_directory,
            "scheduler": worker.scheduler.address,
            "status": worker.status.name,
            "keys": sorted(worker.data),
            "value": worker.data["one"],
            "state": worker.state.tasks["one"].state,
            "executing": worker.state.executing_count,
            "id": worker.id,
            "repr": repr(worker),
            "ip": worker.ip,
        }

    async def test():
        async with cluster(tmp_path, nthreads=2) as (scheduler, client, _):
            one = client.submit(inc, 0, key="one")
            await one
            [(address, ws)] = scheduler.workers.items()
            seen = await client.submit(look, key="look")
            assert seen.pop("id") == ws.server_id
            assert seen.pop("repr").startswith(f"<Worker {address!r}, name: w0")
            directory = seen.pop("directory")
            assert directory.startswith(str(tmp_path))
            assert os.path.isdir(directory)
            assert seen == {
                "address": address,
                "name": "w0",
                "nthreads": 2,
                "scheduler": scheduler.address,
                "status": "running",
                "keys": ["one"],
                "value": 1,
                "state": "memory",
                "executing": 1,
                "ip": "127.0.0.1",
            }

    run(test)


def test_requests_of_tasks_to_the_scheduler(tmp_path):
    def use(x):
        with Lock("lock"):
            Variable("variable").set(x)
            Queue("queue").put(x + 1)
        return Variable("variable").get(), Queue("queue").get()

    async def test():
        async with cluster(tmp_path) as (_, client, _):
            assert await client.submit(use, 1) == (1, 2)

    run(test)


def test_tasks_submit_tasks(tmp_path):
    async def test():
        async with cluster(tmp_path, nthreads=2) as (scheduler, client, _):
            assert await client.submit(submit_within, 1) == 2
            assert await client.submit(submit_from_a_coroutine, 2) == 3
            names = {name.split("-")[1] for name in scheduler.clients}
            assert "worker" in names

    run(test)


def test_worker_client_frees_the_thread(tmp_path):
    async def test():
        async with cluster(tmp_path) as (_, client, _):
            assert await client.submit(submit_seceded, 5) == 15
            # The thread has come back.
            assert await client.submit(inc, 1) == 2

    run(test)


def test_scatter_and_gather_within_a_task(tmp_path):
    def use():
        client = get_client()
        [future] = client.scatter([{"a": 1}])
        return future.key in get_worker().data, client.gather(future)

    async def test():
        async with cluster(tmp_path, nthreads=2) as (_, client, _):
            assert await client.submit(use) == (True, {"a": 1})

    run(test)


class Counter:
    n = 0

    def __init__(self, n=0):
        self.n = n

    def increment(self, by=1):
        self.n += by
        return self.n, threading.current_thread().name

    async def wait(self):
        await asyncio.sleep(0)
        return "waited"

    def fail(self):
        raise ValueError("in an actor")


def increment_in_task(counter):
    return counter.increment(10).result()[0]


def test_actors(tmp_path):
    async def test():
        async with cluster(tmp_path, 2, nthreads=2) as (scheduler, client, _):
            future = client.submit(
                Counter, 5, actor=True, key="counter", workers=["w0"]
            )
            counter = await future
            value, thread = await counter.increment()
            assert value == 6
            assert "Dask-Actor-Threads" in thread
            assert await counter.wait() == "waited"
            assert await counter.n == 6
            with pytest.raises(ValueError, match="in an actor"):
                await counter.fail()
            here = client.submit(increment_in_task, counter, key="here", workers=["w0"])
            there = client.submit(
                increment_in_task, counter, key="there", workers=["w1"]
            )
            assert sorted(await client.gather([here, there])) == [16, 26]
            assert scheduler.tasks["counter"].actor

    run(test)


def test_run(tmp_path):
    async def coroutine(x, dask_worker):
        await asyncio.sleep(0)
        return x, dask_worker.name

    def fail():
        raise KeyError("on purpose")

    async def test():
        async with cluster(tmp_path) as (_, client, workers):
            assert list((await client.run(os.getpid)).values()) == [workers[0].pid]
            assert list((await client.run(coroutine, 5)).values()) == [(5, "w0")]
            with pytest.raises(KeyError, match="on purpose"):
                await client.run(fail)
            results = await client.run(fail, on_error="return")
            assert isinstance(next(iter(results.values())), KeyError)

    run(test)


class Recorder(WorkerPlugin):
    name = "recorder"

    def __init__(self):
        self.seen = []

    def setup(self, worker):
        self.worker = worker
        worker.recorder = self
        worker.log_event("recorder", "setup")

    def transition(self, key, start, finish, **kwargs):
        self.seen.append((key, start, finish))

    async def teardown(self, worker):
        worker.log_event("recorder", "teardown")


class Failing(WorkerPlugin):
    def setup(self, worker):
        raise ValueError("no setup")


def test_plugins(tmp_path):
    async def test():
        async with cluster(tmp_path) as (_, client, _):
            await client.register_plugin(Recorder())
            assert await client.submit(inc, 1, key="a") == 2
            seen = await client.run(
                lambda dask_worker: dask_worker.plugins["recorder"].seen
            )
            [transitions] = seen.values()
            assert ("a", "waiting", "ready") in transitions
            assert ("a", "executing", "memory") in transitions
            with pytest.raises(ValueError, match="no setup"):
                await client.register_plugin(Failing())
            await client.unregister_worker_plugin("recorder")
            events = [event for _, event in await client.get_events("recorder")]
            assert events == ["setup", "teardown"]

    run(test)


def test_plugins_that_were_there_before(tmp_path):
    async def test():
        from python_cluster import start_worker

        async with cluster(tmp_path) as (scheduler, client, _):
            await client.register_plugin(Recorder())
            other = await start_worker(scheduler.address, tmp_path, "late")
            await client.wait_for_workers(2)
            await until(lambda: len(scheduler.get_events("recorder")) == 2)
            await client.retire_workers(names=["late"])
            assert await other.wait() == 0
            events = [event for _, event in await client.get_events("recorder")]
            assert events == ["setup", "setup", "teardown"]

    run(test)


def test_built_in_plugins_and_files(tmp_path):
    source = tmp_path / "uploaded_module.py"
    source.write_text("VALUE = 5\n")

    def use():
        import uploaded_module

        return uploaded_module.VALUE

    async def test():
        folder = tmp_path / "worker"
        folder.mkdir()
        async with cluster(folder) as (_, client, _):
            await client.register_plugin(UploadFile(str(source)))
            assert await client.submit(use) == 5
            other = tmp_path / "second_module.py"
            other.write_text("def double(x): return 2 * x\n")
            await client.upload_file(str(other))
            assert (
                await client.submit(lambda: __import__("second_module").double(4)) == 8
            )

    run(test)


def test_print_and_warn_reach_the_client(tmp_path, capsys):
    def speak():
        dask_print("said by a task", 5)
        dask_warn("warned by a task", UserWarning)

    async def test():
        async with cluster(tmp_path) as (_, client, _):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                await client.submit(speak)
                while not any("warned by a task" in str(w.message) for w in caught):
                    await asyncio.sleep(0.01)
            assert "said by a task 5" in capsys.readouterr().out

    run(test)


def test_forward_logging(tmp_path, caplog):
    def log():
        logging.getLogger("of.a.task").warning("logged by a task")

    async def test():
        async with cluster(tmp_path) as (_, client, _):
            await client.forward_logging("of.a.task")
            await client.submit(log)
            await until(lambda: "logged by a task" in caplog.text)

    run(test)


def test_answers_are_serialised_as_the_client_wants(tmp_path):
    async def test():
        async with (
            cluster(tmp_path) as (scheduler, _, _),
            Client(
                scheduler.address, asynchronous=True, serializers=["dask", "msgpack"]
            ) as client,
        ):
            assert list((await client.run(lambda: [1])).values()) == [[1]]
            with pytest.raises(TypeError, match="only able to deserialize"):
                await client.run(lambda: operator.add)

    run(test)


def test_call_stack_and_profile(tmp_path):
    def spin_until(marker):
        while not os.path.exists(marker):
            pass

    async def test():
        async with cluster(tmp_path) as (scheduler, client, _):
            marker = str(tmp_path / "stop")
            future = client.submit(spin_until, marker, key="spin")
            await until(lambda: "spin" in scheduler.tasks)
            stacks = {}
            while not any("spin_until" in str(stack) for stack in stacks.values()):
                stacks = await client.call_stack(keys=["spin"])
                await asyncio.sleep(0.01)
            profile = {"count": 0}
            while not profile["count"]:
                profile = await client.profile(scheduler=False)
                await asyncio.sleep(0.01)
            assert "spin_until" in str(profile)
            assert "_worker_tasks" not in str(profile)
            open(marker, "w").close()
            await future
            [address] = scheduler.workers
            metadata = await scheduler.rpc(address).profile_metadata()
            assert metadata["counts"]

    run(test)


def test_versions_and_benchmarks(tmp_path):
    async def test():
        async with cluster(tmp_path, 2) as (_, client, _):
            versions = await client.get_versions(check=True)
            for info in versions["workers"].values():
                python = ".".join(map(str, sys.version_info[:3]))
                assert info["host"]["python"].startswith(python)
                assert info["packages"]["distributed"] == "2026.8.0"
            hardware = await client.benchmark_hardware()
            assert set(hardware) == {"disk", "memory", "network"}

    run(test)


PRELOAD = """
import click

@click.command()
@click.option("--value", type=int)
def dask_setup(worker, value):
    worker.preloaded = value

async def dask_teardown(worker):
    worker.log_event("preload", "teardown")
"""


def test_preload(tmp_path):
    async def test():
        options = {"preload": PRELOAD, "preload_argv": ["--value", "5"]}
        async with cluster(tmp_path, **options) as (_, client, workers):
            values = await client.run(lambda dask_worker: dask_worker.preloaded)
            assert list(values.values()) == [5]
            await client.retire_workers()
            assert await workers[0].wait() == 0
            events = [event for _, event in await client.get_events("preload")]
            assert events == ["teardown"]

    run(test)


def test_metrics_of_tasks_and_users(tmp_path):
    def add_metric(dask_worker):
        dask_worker.metrics["mine"] = lambda worker: 5

    def measure():
        from distributed.metrics import context_meter

        context_meter.digest_metric("sold", 7, "pieces")

    async def test():
        async with cluster(tmp_path) as (scheduler, client, _):
            await client.run(add_metric)
            await client.submit(measure, key="measure-1")
            [ws] = scheduler.workers.values()
            await until(lambda: ws.metrics.get("mine") == 5)
            metrics = scheduler.cumulative_worker_metrics
            await until(
                lambda: metrics.get(("execute", "measure", "sold", "pieces")) == 7
            )
            assert ("execute", "measure", "thread-cpu", "seconds") in metrics

    run(test)


def test_a_worker_closes_itself(tmp_path):
    async def test():
        async with cluster(tmp_path) as (scheduler, client, workers):

            def send():
                message = {"op": "log-event", "topic": "sent", "msg": 1}
                get_worker().batched_stream.send(message)

            await client.submit(send)
            await until(lambda: scheduler.get_events("sent"))

            async def close(dask_worker):
                await dask_worker.close_gracefully(reason="by a test")

            await client.run(close, wait=False)
            assert await workers[0].wait() == 0

    run(test)


def test_logs_resources_and_dumps(tmp_path):
    def log(text):
        logging.getLogger("distributed.worker").warning(text)

    async def add(dask_worker):
        await dask_worker.set_resources(gpu=2)

    def span_of(key, dask_worker):
        return dask_worker.state.tasks[key].span_id

    async def test():
        async with cluster(tmp_path) as (scheduler, client, _):
            (address,) = scheduler.workers
            await client.run(log, "a line of the test")
            logs = (await client.get_worker_logs())[address]
            assert [
                level for level, line in logs if "- a line of the test" in line
            ] == ["WARNING"]
            await client.run(add)
            assert scheduler.workers[address].resources == {"gpu": 2}
            key = ("with", 1)
            assert await client.submit(inc, 1, key="one", resources={"gpu": 1}) == 2
            future = client.submit(inc, 1, key=key)
            assert await future == 2
            assert await client.run(span_of, key) == {
                address: scheduler.tasks[key].group.span_id
            }
            state = await scheduler.rpc(address).dump_state(exclude=["logs", "state"])
            assert "logs" not in state
            assert state["tasks"]["['with', 1]"]["nbytes"] == 28
            assert "state" not in state["tasks"]["['with', 1]"]

    run(test)


def test_a_new_worker_says_how_much_memory_it_has(tmp_path):
    told = []

    class Listener(SchedulerPlugin):
        def add_worker(self, scheduler, worker):
            told.append(scheduler.workers[worker].metrics["memory"])

    async def test():
        options = {"host": "127.0.0.1", "port": 0, "dashboard_address": ":0"}
        async with Scheduler(**options) as scheduler:
            scheduler.add_plugin(Listener())
            worker = await start_worker(scheduler.address, tmp_path, "w0")
            try:
                await until(lambda: told)
                resident = psutil.Process(worker.pid).memory_info().rss
                # Most of it came with the modules that its tasks will use.
                assert told[0] > 0.8 * resident
            finally:
                worker.kill()
                await worker.wait()

    run(test)
