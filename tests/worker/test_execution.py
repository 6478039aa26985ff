"""Tasks on a worker with an interpreter: results, errors, pools, what is held."""

from __future__ import annotations

import asyncio
import operator
import os
import threading
import time

import numpy as np
import pytest
from distributed import KilledWorker, Reschedule, get_worker, secede, wait
from python_cluster import cluster, run, until


def inc(x):
    return x + 1


def raise_with_cause():
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError("outer") from error


def make_broken():
    """The client and the scheduler can read it."""
    assert "IN_WORKER" not in os.environ, "not in a worker"
    return Broken()


class Broken:
    def __reduce__(self):
        return make_broken, ()


loading = []
met = threading.Event()


def load_alone():
    """Waits for another thread that unpickles at the same time, but not for long."""
    loading.append(threading.get_ident())
    if len(loading) > 1:
        met.set()
    met.wait(0.1)
    loading.remove(threading.get_ident())
    return LoadedAlone(not met.is_set())


class LoadedAlone:
    def __init__(self, alone):
        self.alone = alone

    def __reduce__(self):
        return load_alone, ()

    def ask(self, _):
        return self.alone


class Unpicklable:
    def __reduce__(self):
        raise TypeError("this stays here")

    def value(self):
        return 5


def test_a_graph_over_two_workers(tmp_path):
    async def test():
        async with cluster(tmp_path, 2, nthreads=2) as (scheduler, client, _):
            left = client.submit(inc, 1, workers=["w0"], key="left")
            right = client.submit(inc, 2, workers=["w1"], key=("right", 1))
            both = client.submit(operator.add, left, right, key="both")
            assert await both == 5
            assert await client.gather([left, right, both]) == [2, 3, 5]
            assert scheduler.tasks["left"].nbytes == 28
            assert scheduler.tasks["left"].type == "int"
            many = client.map(inc, range(200))
            assert await client.gather(many) == list(range(1, 201))

    run(test)


@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: "x" * 100_000,
        lambda: {"a": [1, (2, 3)], b"c": {4}},
        lambda: np.arange(10_000).reshape(100, 100).T,
        lambda: np.arange(10_000)[::3],
        lambda: np.arange(10_000)[::-1],
        lambda: np.arange(10_000, dtype=">i4").reshape(20, 5, 100)[::2, :, 10:90],
        lambda: np.arange(24.0, dtype="f2").reshape(2, 3, 4).transpose(2, 0, 1),
        lambda: np.arange(24, dtype="longdouble").reshape(2, 3, 4)[:, ::2],
        lambda: (np.arange(100) % 3 == 0).reshape(10, 10)[:, 3:5],
        lambda: np.arange(100, dtype="c8")[::2],
        lambda: np.arange(100).reshape(10, 10)[2:2, ::2],
        lambda: np.arange(1),
        lambda: np.array(3),
        lambda: np.broadcast_to(np.float32(3), (50, 50)),
        lambda: np.broadcast_to(np.arange(100)[::2, None], (50, 3)),
        lambda: np.array(["a", None, 1.5], dtype=object),
        lambda: np.empty((0, 3)),
        lambda: np.datetime64("2026-01-02") + np.arange(3),
    ],
)
def test_values_arrive_as_they_are(tmp_path, make):
    async def test():
        async with cluster(tmp_path, 2) as (_, client, _):
            # What is known of the first one's form serves the others.
            for number in range(3):
                made = client.submit(make, workers=["w0"], key=("made", number))
                moved = client.submit(
                    lambda x: x, made, workers=["w1"], key=("moved", number)
                )
                for value in await client.gather([made, moved]):
                    check(value, make())

    def check(value, expected):
        assert type(value) is type(expected)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(value, expected)
            assert value.dtype == expected.dtype
            assert value.flags.writeable or not expected.flags.writeable
            assert value.strides == expected.strides or not expected.flags.forc
        else:
            assert value == expected

    run(test)


def test_arrays_from_elsewhere_can_be_written_to(tmp_path):
    def make(number):
        return np.full((100, 100), number)

    def add_in_place(array):
        assert array.flags.writeable
        array += 1
        return int(array[0, 0]), int(array.sum())

    async def test():
        async with cluster(tmp_path, 2) as (_, client, _):
            for number in range(3):
                made = client.submit(make, number, workers=["w0"], key=f"m{number}")
                changed = client.submit(add_in_place, made, workers=["w1"], pure=False)
                assert await changed == (number + 1, (number + 1) * 10_000)

    run(test)


def test_frames(tmp_path):
    pandas = pytest.importorskip("pandas")

    def make():
        return pandas.DataFrame(
            {
                "numbers": range(1000),
                "floats": np.linspace(0, 1, 1000),
                "text": [f"row {i}" for i in range(1000)],
                "kinds": pandas.Categorical(["a", "b"] * 500),
            }
        )

    async def test():
        async with cluster(tmp_path, 2) as (_, client, _):
            made = client.submit(make, workers=["w0"])
            moved = client.submit(lambda x: x, made, workers=["w1"])
            pandas.testing.assert_frame_equal(await moved, make())

    run(test)


def test_what_cannot_be_serialised_stays_usable(tmp_path):
    async def test():
        async with cluster(tmp_path) as (_, client, _):
            held = client.submit(Unpicklable)
            used = client.submit(Unpicklable.value, held)
            assert await used == 5
            with pytest.raises(TypeError, match="Could not serialize"):
                await held

    run(test)


def test_errors_keep_class_cause_and_frames(tmp_path):
    async def test():
        async with cluster(tmp_path) as (scheduler, client, _):
            future = client.submit(raise_with_cause, key="a")
            with pytest.raises(ValueError, match="outer") as caught:
                await future
            assert isinstance(caught.value.__cause__, KeyError)
            names = [entry.name for entry in caught.traceback]
            assert names[-1] == "raise_with_cause"
            assert "oxidask" not in scheduler.tasks["a"].traceback_text
            # The worker goes on.
            assert await client.submit(inc, 1) == 2
            dependent = client.submit(inc, future)
            with pytest.raises(ValueError, match="outer"):
                await dependent

    run(test)


def test_long_errors_are_cut(tmp_path):
    def fail():
        raise ValueError("x" * 100_000)

    async def test():
        async with cluster(tmp_path) as (_, client, _):
            with pytest.raises(ValueError, match="Long error message") as caught:
                await client.submit(fail)
            assert len(str(caught.value)) < 20_000

    run(test)


def test_a_task_that_cannot_be_unpickled_fails_alone(tmp_path):
    async def test():
        async with cluster(tmp_path, env={"IN_WORKER": "1"}) as (_, client, _):
            broken = Broken()
            with pytest.raises(AssertionError, match="not in a worker"):
                await client.submit(inc, broken, key="a")
            assert await client.submit(inc, 1) == 2

    run(test)


def test_two_threads_do_not_unpickle_at_a_time(tmp_path):
    """Modules that import each other would be imported from two ends."""

    async def test():
        async with cluster(tmp_path, nthreads=2) as (_, client, _):
            argument = LoadedAlone(True)
            futures = [
                client.submit(LoadedAlone.ask, argument, i, pure=False)
                for i in range(4)
            ]
            assert await client.gather(futures) == [True] * 4

    run(test)


def test_reschedule(tmp_path):
    def once(marker):
        if not os.path.exists(marker):
            open(marker, "w").close()
            raise Reschedule
        return "again"

    async def test():
        async with cluster(tmp_path) as (_, client, _):
            assert await client.submit(once, str(tmp_path / "seen")) == "again"

    run(test)


@pytest.mark.parametrize(
    "statement", ["sys.exit(3)", "os._exit(3)", "raise KeyboardInterrupt"]
)
def test_what_ends_a_process_ends_the_worker(tmp_path, statement):
    async def test():
        async with cluster(tmp_path) as (scheduler, client, workers):
            scheduler.allowed_failures = 0
            future = client.submit(exec, f"import os, sys; {statement}")
            with pytest.raises(KilledWorker):
                await future
            assert await workers[0].wait() != 0

    run(test)


def test_threads_are_named_and_separate(tmp_path):
    def look(_):
        state = threading.current_thread()
        return state.name, threading.get_ident(), get_worker().get_current_task()

    async def test():
        async with cluster(tmp_path, nthreads=2) as (_, client, _):
            futures = client.map(look, range(20), pure=False)
            seen = await client.gather(futures)
            assert {name.rsplit("-", 2)[0] for name, _, _ in seen} == {
                "w0-Dask-Default-Threads"
            }
            assert [key for _, _, key in seen] == [future.key for future in futures]

    run(test)


def test_context_variables_do_not_leak(tmp_path):
    def look(_):
        import contextvars
        import sys

        variable = sys.__dict__.setdefault(
            "_seen_by_tasks", contextvars.ContextVar("seen", default=0)
        )
        before = variable.get()
        variable.set(1)
        return before

    async def test():
        async with cluster(tmp_path) as (_, client, _):
            assert await client.gather(client.map(look, range(5))) == [0] * 5

    run(test)


def test_pools_by_annotation(tmp_path):
    import dask

    def name():
        return threading.current_thread().name

    def add_pools(dask_worker):
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

        dask_worker.executors["mine"] = ThreadPoolExecutor(1, thread_name_prefix="Mine")
        dask_worker.executors["processes"] = ProcessPoolExecutor(1)

    async def test():
        async with cluster(tmp_path) as (_, client, _):
            await client.run(add_pools)

            async def run_in(pool, function=name):
                with dask.annotate(executor=pool):
                    return await client.submit(function, pure=False)

            assert "Dask-Offload" in await run_in("offload")
            assert "Dask-Actor-Threads" in await run_in("actor")
            assert (await run_in("mine")).startswith("Mine")
            [pid] = (await client.run(os.getpid)).values()
            assert await run_in("processes", os.getpid) != pid
            with pytest.raises(ValueError, match="Invalid executor 'other'; expected"):
                await run_in("other")
            # Else its process outlives the worker, which this test kills.
            await client.run(
                lambda dask_worker: dask_worker.executors["processes"].shutdown()
            )

    run(test)


def test_processes_of_tasks_can_be_terminated(tmp_path):
    def fork():
        import multiprocessing

        context = multiprocessing.get_context("fork")
        process = context.Process(target=threading.Event().wait)
        process.start()
        process.terminate()
        process.join()
        return process.exitcode

    async def test():
        async with cluster(tmp_path) as (_, client, _):
            assert await client.submit(fork) == -15

    run(test)


def test_coroutines_run_on_the_loop(tmp_path):
    async def look(x):
        await asyncio.sleep(0)
        return x, threading.current_thread().name, get_worker().name

    async def fail():
        raise ValueError("in a coroutine")

    async def test():
        async with cluster(tmp_path) as (_, client, _):
            assert await client.submit(look, 1) == (1, "IO loop", "w0")
            with pytest.raises(ValueError, match="in a coroutine"):
                await client.submit(fail)

    run(test)


def test_secede_frees_the_thread(tmp_path):
    def leave(marker):
        secede()
        while not os.path.exists(marker):
            time.sleep(0.01)
        return "left"

    async def test():
        async with cluster(tmp_path) as (scheduler, client, _):
            marker = str(tmp_path / "go")
            left = client.submit(leave, marker, key="leave")
            await until(
                lambda: (
                    scheduler.tasks
                    and next(iter(scheduler.workers.values())).long_running
                )
            )
            assert await client.submit(inc, 1) == 2
            assert await client.submit(lambda: open(marker, "w").close()) is None
            assert await left == "left"

    run(test)


def held():
    from oxidask._oxidask import held_counts

    return held_counts()


def test_values_and_buffers_are_let_go(tmp_path):
    async def test():
        async with cluster(tmp_path, nthreads=2) as (_, client, _):
            futures = [
                client.submit(np.ones, (100, 100), pure=False) for _ in range(50)
            ]
            await wait(futures)
            [(objects, buffers)] = (await client.run(held)).values()
            assert objects >= 50
            assert buffers >= 50
            total = client.submit(sum, futures)
            assert (await total)[0, 0] == 50
            del futures, total

            async def counts():
                [counts] = (await client.run(held)).values()
                return counts

            # No task runs, so that nobody is attached who could do it.
            while await counts() != (0, 0):
                await asyncio.sleep(0.01)

    run(test)


def test_exact_sizes_of_scattered_values(tmp_path):
    async def test():
        async with cluster(tmp_path) as (scheduler, client, _):
            future = await client.scatter(np.ones(1000))
            assert scheduler.tasks[future.key].nbytes == 8000
            assert (await future).sum() == 1000

            def write(x):
                x[0] = 5
                return x[0]

            assert await client.submit(write, future) == 5

    run(test)
