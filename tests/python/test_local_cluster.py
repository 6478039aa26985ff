"""``LocalCluster(processes=False)``: the same on stock and on ours.

Ours runs scheduler and workers natively, in this process. What programs see of it is
what they see of stock's.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import oxidask
import psutil
import pytest
from dask.system import CPU_COUNT
from distributed.core import Status
from distributed.system import MEMORY_LIMIT
from distributed.worker import get_worker
from oxidask._oxidask import reference_count

PACKAGE = Path(oxidask.__file__).parents[1]

#: Far more than anything here takes, for machines that are busy.
TIMEOUT = 60


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "not true in time"
        pause.wait(0.01)


@pytest.fixture(params=["stock", "oxidask"])
def package(request: pytest.FixtureRequest) -> Any:
    """Package whose ``LocalCluster`` and ``Client`` are tested."""
    return {"stock": distributed, "oxidask": oxidask}[request.param]


@pytest.fixture
def cluster(package: Any) -> Iterator[Any]:
    with package.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster) as client:
        client.wait_for_workers(2)
        yield client


@pytest.fixture
def addresses(client: Any) -> list[str]:
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


class Thing:
    """Can be referred to weakly, and not be pickled."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    def __reduce__(self) -> Any:
        raise TypeError("a thing stays where it is")


def identity(x: Any) -> Any:
    return x


def _closure() -> Callable[[], str]:
    file = open(os.devnull)  # noqa: SIM115
    return lambda: file.read()


# References


def test_result_is_the_object_itself(client: Any) -> None:
    future = client.submit(Thing)
    thing = future.result()
    assert future.result() is thing
    assert client.gather([future, {"x": future}])[1]["x"] is thing
    assert client.submit(identity, future).result() is thing
    (inner,) = client.submit(lambda thing: [thing], future).result()
    assert inner is thing


@pytest.mark.parametrize(
    "value",
    ["text" * 10, 10**30, 1.5, (1, 2), [1, [2]], {"x": [1]}, b"bytes"],
    ids=repr,
)
def test_plain_results_are_the_objects_themselves(client: Any, value: Any) -> None:
    (future,) = client.scatter([value], hash=False)
    assert future.result() is value
    assert client.submit(identity, future).result() is value


def test_peers_get_the_object_itself(client: Any, addresses: list[str]) -> None:
    first, second = addresses
    thing = client.submit(Thing, workers=[first])
    same = client.submit(identity, thing, workers=[second])
    assert same.result() is thing.result()
    client.replicate(thing)
    assert {len(workers) for workers in client.who_has(thing).values()} == {2}


def test_scattered_object_is_the_object_itself(client: Any) -> None:
    thing = Thing()
    for broadcast in (False, True):
        (future,) = client.scatter([thing], hash=False, broadcast=broadcast)
        assert future.result() is thing
        assert client.submit(identity, future).result() is thing
    (future,) = client.scatter([thing], hash=False, direct=True)
    assert client.gather(future, direct=True) is thing


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        lambda: (i for i in range(3)),
        lambda: open(os.devnull),  # noqa: SIM115
        _closure,
    ],
    ids=["lock", "generator", "file", "closure"],
)
def test_objects_that_cannot_be_pickled(
    client: Any, addresses: list[str], make: Callable[[], Any]
) -> None:
    first, second = addresses
    value = client.submit(make, workers=[first], pure=False)
    name = client.submit(lambda x: type(x).__name__, value, workers=[second])
    assert name.result() == type(value.result()).__name__
    (scattered,) = client.scatter([value.result()], hash=False)
    assert scattered.result() is value.result()
    with contextlib.suppress(AttributeError):
        value.result().close()


def test_published_object_is_the_object_itself(client: Any) -> None:
    thing = Thing()
    (future,) = client.scatter([thing], hash=False)
    client.publish_dataset(thing=future)
    assert client.get_dataset("thing").result() is thing
    del future
    assert client.get_dataset("thing").result() is thing
    client.unpublish_dataset("thing")


def test_results_die_with_their_futures(client: Any, addresses: list[str]) -> None:
    def refs() -> list[weakref.ref[Thing]]:
        futures = [client.submit(Thing, i, workers=[addresses[0]]) for i in range(20)]
        copies = [client.submit(identity, f, workers=[addresses[1]]) for f in futures]
        scattered = client.scatter([Thing()], hash=False)
        things = client.gather([*futures, *copies, *scattered])
        return [weakref.ref(thing) for thing in things]

    alive = refs()
    eventually(lambda: gc.collect() >= 0 and not any(ref() for ref in alive))
    # Those of stock's clusters are not counted.
    eventually(lambda: reference_count() == 0)


# Programs


def test_addresses_and_representation(cluster: Any, client: Any) -> None:
    assert cluster.scheduler_address == cluster.scheduler.address
    assert client.scheduler.address == cluster.scheduler_address
    scheme, rest = cluster.scheduler_address.split("://")
    host, pid, _ = rest.split("/")
    assert (scheme, pid) == ("inproc", str(os.getpid()))
    assert cluster.dashboard_link.startswith(f"http://{host}:")
    assert "workers=2, threads=4" in repr(cluster)
    assert "processes=2 threads=4" in repr(client)
    assert "LocalCluster" in cluster._repr_html_()
    info = client.scheduler_info(n_workers=-1)["workers"]
    assert {worker["host"] for worker in info.values()} == {host}
    assert {worker["name"] for worker in info.values()} == {0, 1}
    assert all(address.startswith("inproc://") for address in info)
    assert {worker.name for worker in cluster.workers.values()} == {0, 1}
    assert {worker.address for worker in cluster.workers.values()} == set(info)


def test_logs(cluster: Any, client: Any, addresses: list[str]) -> None:
    def log(dask_worker: Any) -> None:
        logging.getLogger("distributed.worker").warning("own %s", dask_worker.name)

    client.run(log)
    assert set(cluster.get_logs()) == {"Cluster", "Scheduler", *addresses}
    logs = client.get_worker_logs()
    assert set(logs) == set(addresses)
    # One log for the process, and each record once for every worker at most.
    (lines, _) = ([text for _, text in logs[own]] for own in addresses)
    assert 1 <= sum("own 0" in line for line in lines) <= len(addresses)


def test_defaults(package: Any) -> None:
    with (
        package.LocalCluster(processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(1)
        (worker,) = client.scheduler_info(n_workers=-1)["workers"].values()
        assert worker["nthreads"] == CPU_COUNT
        assert worker["memory_limit"] == MEMORY_LIMIT
        assert worker["nanny"] is None


def test_worker_of_a_task(client: Any, addresses: list[str]) -> None:
    def address(number: int) -> tuple[str, int]:
        worker = get_worker()
        assert distributed.get_client().submit(identity, number).key
        return worker.address, os.getpid()

    futures = {
        (own, number): client.submit(address, number, workers=[own], pure=False)
        for number in range(20)
        for own in addresses
    }
    for (own, _), found in zip(
        futures, client.gather(list(futures.values())), strict=True
    ):
        assert found == (own, os.getpid())


def test_run(client: Any, addresses: list[str]) -> None:
    thing = Thing()

    def keep(dask_worker: Any) -> Any:
        dask_worker.thing = Thing(dask_worker.address)
        return dask_worker.thing

    kept = client.run(keep)
    assert {address: thing.inner for address, thing in kept.items()} == {
        address: address for address in addresses
    }
    again = client.run(lambda dask_worker: dask_worker.thing)
    assert all(again[address] is kept[address] for address in addresses)

    async def wait(dask_worker: Any) -> str:
        await asyncio.sleep(0)
        return str(dask_worker.address)

    assert client.run(wait, workers=addresses[:1]) == {addresses[0]: addresses[0]}
    assert (
        client.submit(lambda: get_worker().thing, pure=False).result() in kept.values()
    )
    del thing


def test_data_of_a_worker(cluster: Any, client: Any) -> None:
    (future,) = client.scatter([Thing()], hash=False)
    (holder,) = client.who_has(future)[future.key]
    (worker,) = (w for w in cluster.workers.values() if w.address == holder)
    assert worker.data[future.key] is future.result()
    assert worker.status == Status.running


class ExpectedError(Exception):
    pass


def test_exceptions(client: Any, addresses: list[str]) -> None:
    def fail(thing: Any) -> None:
        raise ExpectedError("boom", thing)

    future = client.submit(fail, 1)
    with pytest.raises(ExpectedError, match="boom") as info:
        future.result()
    assert info.traceback[-1].name == "fail"
    after = client.submit(identity, future, workers=[addresses[0]])
    with pytest.raises(ExpectedError, match="boom"):
        after.result()
    # An exception is pickled, as on stock.
    with pytest.raises(Exception, match="boom"):
        client.submit(lambda: fail(Thing()), pure=False).result()


def test_graph_that_cannot_be_pickled(client: Any) -> None:
    with pytest.raises(Exception, match=r"[Pp]ickle|serialize"):
        client.submit(identity, threading.Lock()).result()
    assert client.submit(identity, 1).result() == 1


def test_cancel(client: Any) -> None:
    gate = threading.Event()
    (gate_future,) = client.scatter([gate], hash=False)
    running = [client.submit(lambda g, i: g.wait(), gate_future, i) for i in range(4)]
    waiting = client.submit(identity, running)
    eventually(lambda: sum(map(len, client.processing().values())) >= 4)
    waiting.cancel()
    with pytest.raises(distributed.client.FutureCancelledError):
        waiting.result()
    gate.set()
    assert client.gather(running) == [True] * 4


def test_as_completed(client: Any) -> None:
    futures = client.map(lambda i: Thing(i), range(20), pure=False)
    found = {
        result.inner: result
        for _, result in distributed.as_completed(futures, with_results=True)
    }
    assert sorted(found) == list(range(20))
    assert all(future.result() is found[i] for i, future in enumerate(futures))


class Counter:
    count = 0

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def add(self, thing: Any) -> Any:
        with self.lock:
            self.count += 1
        return thing


def test_actors(client: Any) -> None:
    counting = client.submit(Counter, actor=True)
    counter = counting.result()
    thing = Thing()
    assert counter.add(thing).result() is thing
    assert [counter.add(i).result() for i in range(3)] == [0, 1, 2]
    assert counter.count == 4

    def use(counter: Any) -> int:
        counter.add(None).result()
        return int(counter.count)

    future = client.submit(Counter, actor=True)
    assert client.submit(use, future).result() == 1


def test_worker_client(client: Any) -> None:
    def parent(n: int) -> list[Any]:
        with distributed.worker_client() as own:
            return own.gather(own.map(lambda i: Thing(i), range(n), pure=False))

    things = client.submit(parent, 5).result()
    assert [thing.inner for thing in things] == list(range(5))


def test_collections(client: Any) -> None:
    numpy = pytest.importorskip("numpy")
    da = pytest.importorskip("dask.array")
    bag = pytest.importorskip("dask.bag")
    x = da.ones((200, 200), chunks=(50, 50))
    assert float((x + x.T).sum().compute()) == 2 * 200 * 200
    y = x.persist()
    assert numpy.array_equal(y.rechunk((200, 10)).compute(), numpy.ones((200, 200)))
    assert bag.from_sequence(range(50), npartitions=5).sum().compute() == 1225
    values = [dask.delayed(lambda i: i + 1)(i) for i in range(10)]
    assert dask.delayed(sum)(values).compute() == 55


def test_dataframes(client: Any) -> None:
    pandas = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = pandas.DataFrame({"key": [i % 7 for i in range(200)], "x": range(200)})
    df = dd.from_pandas(frame, npartitions=6)
    expected = frame.groupby("key").x.sum()
    assert df.groupby("key").x.sum().compute().sort_index().equals(expected)
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        shuffled = df.shuffle("key").compute()
        merged = df.merge(df, on="key").x_x.sum().compute()
    assert sorted(shuffled.x) == list(range(200))
    assert merged == frame.merge(frame, on="key").x_x.sum()


def test_primitives(client: Any) -> None:
    lock = distributed.Lock("lock")
    with lock:
        assert not distributed.Lock("lock").acquire(timeout="10 ms")
    variable = distributed.Variable("variable")
    future = client.submit(Thing)
    variable.set(future)
    assert variable.get().result() is future.result()
    queue = distributed.Queue("queue")
    queue.put({"x": [1, 2]})
    assert queue.get()["x"][1] == 2
    client.log_event("topic", {"x": 1})
    assert client.get_events("topic")[0][1] == {"x": 1}


def test_scaling(cluster: Any, client: Any) -> None:
    future = client.submit(Thing)
    thing = future.result()
    cluster.scale(4)
    client.wait_for_workers(4, timeout=TIMEOUT)
    cluster.scale(1)
    eventually(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 1)
    assert future.result() is thing
    cluster.adapt(minimum=2, maximum=2, interval="10ms")
    client.wait_for_workers(2, timeout=TIMEOUT)


def test_asynchronous(package: Any) -> None:
    async def main() -> None:
        async with (
            package.LocalCluster(
                n_workers=1,
                processes=False,
                asynchronous=True,
                dashboard_address=":0",
            ) as cluster,
            package.Client(cluster, asynchronous=True) as client,
        ):
            future = client.submit(Thing)
            assert await future is await future
            cluster.scale(2)
            await cluster
            assert len(cluster.workers) == 2

            async def task() -> Any:
                await asyncio.sleep(0)
                return get_worker().address

            address = await client.submit(task, pure=False)
            assert address in {worker.address for worker in cluster.workers.values()}

    asyncio.run(main())


def test_client_starts_a_cluster(package: Any) -> None:
    with package.Client(n_workers=1, processes=False, dashboard_address=":0") as client:
        assert isinstance(client.cluster, package.LocalCluster)
        assert client.scheduler.address.startswith("inproc://")
        future = client.submit(Thing)
        assert future.result() is future.result()


def test_several_clusters(package: Any) -> None:
    def own_cluster(i: int) -> str:
        with (
            package.LocalCluster(
                n_workers=1, processes=False, dashboard_address=":0"
            ) as cluster,
            distributed.Client(cluster, set_as_default=False) as client,
        ):
            future = client.submit(lambda i: Thing(i), i)
            assert future.result().inner == i
            return str(cluster.scheduler_address)

    first = own_cluster(1)
    with (
        package.LocalCluster(
            n_workers=1, processes=False, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert own_cluster(2) not in (first, cluster.scheduler_address)
        assert client.submit(own_cluster, 3).result() != cluster.scheduler_address


def test_by_tcp(package: Any) -> None:
    with (
        package.LocalCluster(
            n_workers=2, processes=False, protocol="tcp://", dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
        distributed.Client(cluster.scheduler_address, set_as_default=False) as other,
    ):
        assert cluster.scheduler_address.startswith("tcp://127.0.0.1:")
        future = client.submit(os.getpid)
        assert future.result() == os.getpid()
        value = client.submit(list, "abc")
        assert value.result() == ["a", "b", "c"]
        assert value.result() is not value.result()
        client.publish_dataset(value=value)
        assert other.get_dataset("value").result() == ["a", "b", "c"]
        code = f"""if True:
            import distributed
            with distributed.Client({cluster.scheduler_address!r}) as client:
                print(client.get_dataset("value").result())
        """
        out = subprocess.check_output([sys.executable, "-c", code], timeout=TIMEOUT)
        assert out.split() == [b"['a',", b"'b',", b"'c']"]


def test_encryption_needs_sockets(package: Any) -> None:
    pytest.importorskip("cryptography")
    with package.Client(
        security=True, n_workers=1, processes=False, dashboard_address=":0"
    ) as client:
        assert client.scheduler.address.startswith("tls://")
        assert client.submit(sum, [1, 2]).result() == 3


def test_no_place_to_listen(package: Any) -> None:
    with pytest.raises(RuntimeError, match="Cluster failed to start"):
        package.LocalCluster(n_workers=0, processes=False, host="127.0.0.1")


# The process


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _native_thread_count() -> int:
    return psutil.Process().num_threads()


def _config() -> dict[str, Any]:
    """The configuration, without what computations change."""
    config = copy.deepcopy(dask.config.config)
    config.pop("shuffle", None)
    # Stock's scheduler adds a page to it each time that it does not find bokeh.
    config["distributed"]["scheduler"]["http"].pop("routes")
    return config


def test_nothing_is_left(package: Any, tmp_path: Path) -> None:
    def use() -> None:
        with (
            package.LocalCluster(
                n_workers=2,
                processes=False,
                dashboard_address=":0",
                local_directory=str(tmp_path),
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            assert client.submit(lambda: Thing(1), pure=False).result().inner == 1
            assert client.submit(sum, [1, 2]).result() == 3
            assert package is distributed or _children() <= children

    children = _children()
    # What outlives the first one stays for good: the offload pool, profilers.
    use()
    threads = _threads()
    count = _native_thread_count()
    descriptors = psutil.Process().num_fds()
    handlers = {signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interval = sys.getswitchinterval()
    config = _config()
    for _ in range(3):
        use()
    eventually(lambda: _threads() <= threads)
    eventually(lambda: _native_thread_count() <= count)
    eventually(lambda: gc.collect() >= 0 and psutil.Process().num_fds() <= descriptors)
    assert _children() <= children
    assert not list(tmp_path.rglob("worker-*"))
    assert interval == sys.getswitchinterval()
    assert handlers == {
        signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }
    assert config == _config()


def _program(
    text: str, tmp_path: Path
) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run a program; seconds from the time it prints to its end, and the rest."""
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(text))
    process = subprocess.run(
        [sys.executable, str(file)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    return time.time() - float(process.stdout.split()[-1]), process


def test_program_that_does_not_close(package: Any, tmp_path: Path) -> None:
    seconds, process = _program(
        f"""
        import time
        import {package.__name__} as package
        client = package.Client(processes=False, dashboard_address=":0", n_workers=2)
        assert client.submit(sum, [1, 2]).result() == 3
        print(time.time())
        """,
        tmp_path,
    )
    assert process.returncode == 0, process.stderr
    # Stock may say that results are lost.
    assert "Traceback" not in process.stderr
    print(f"{package.__name__}: {seconds:.2f} s to exit")
    # Not what is wanted, which is less than 1 s, but what a busy machine keeps.
    assert seconds < 10


def test_program_that_forks(package: Any, tmp_path: Path) -> None:
    _, process = _program(
        f"""
        import os, subprocess, sys, time
        import {package.__name__} as package
        with package.Client(processes=False, dashboard_address=":0") as client:
            assert client.submit(sum, [1, 2]).result() == 3
            child = os.fork()
            if not child:
                os._exit(7)
            assert os.waitpid(child, 0)[1] >> 8 == 7
            subprocess.run(["true"], check=True)
            assert client.submit(sum, [1, 3]).result() == 4
        print(time.time())
        """,
        tmp_path,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""


def test_interrupt_is_the_programs(package: Any, tmp_path: Path) -> None:
    _, process = _program(
        f"""
        import os, signal, threading, time
        import {package.__name__} as package
        with package.Client(processes=False, dashboard_address=":0") as client:
            assert client.submit(sum, [1, 2]).result() == 3
            try:
                os.kill(os.getpid(), signal.SIGINT)
                threading.Event().wait({TIMEOUT})
            except KeyboardInterrupt:
                pass
            assert client.submit(sum, [1, 3]).result() == 4
        print(time.time())
        """,
        tmp_path,
    )
    assert process.returncode == 0, process.stderr


def test_start_time(package: Any) -> None:
    """Prints how long it takes; the bound is for a busy machine."""
    best = TIMEOUT * 1.0
    for _ in range(5):
        start = time.perf_counter()
        with package.LocalCluster(processes=False, dashboard_address=":0") as cluster:
            cluster.wait_for_workers(1)
            up = time.perf_counter() - start
            with distributed.Client(cluster) as client:
                assert client.submit(sum, [1, 2]).result() == 3
            used = time.perf_counter() - start
        best = min(best, up)
        print(f"{package.__name__}: up {up * 1e3:.0f} ms, used {used * 1e3:.0f} ms")
    assert best < 5


def test_log_goes_to_logging(
    package: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("distributed.scheduler")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("distributed"), "propagate", True)
    with (
        caplog.at_level(logging.INFO, logger="distributed"),
        package.LocalCluster(
            n_workers=0, processes=False, dashboard_address=":0", silence_logs=False
        ),
    ):
        pass
    assert any("Scheduler at:" in record.getMessage() for record in caplog.records)


# Ours only


def test_task_that_wants_to_end_the_process() -> None:
    """On stock the event loop ends, and with it the cluster."""
    with oxidask.Client(processes=False, n_workers=1, dashboard_address=":0") as client:
        with pytest.raises(RuntimeError, match=r"the task raised SystemExit\(3\)"):
            client.submit(sys.exit, 3).result()
        assert client.submit(sum, [1, 2]).result() == 3


def test_plugin_host_has_its_own_process() -> None:
    with oxidask.Client(processes=False, n_workers=1, dashboard_address=":0") as client:
        children = _children()
        pid = client.run_on_scheduler(os.getpid)
        assert pid != os.getpid()
        assert pid in _children() - children
    eventually(lambda: not psutil.pid_exists(pid))


def test_wrong_arguments_of_a_worker() -> None:
    with pytest.raises(TypeError, match=r"\['plugins'\] are not supported"):
        oxidask.LocalCluster(processes=False, plugins=[1], dashboard_address=":0")
    with pytest.raises(RuntimeError, match="memory limit 'lots'"):
        oxidask.LocalCluster(
            processes=False, memory_limit="lots", dashboard_address=":0"
        )


def test_wrong_arguments_of_the_scheduler() -> None:
    with pytest.raises(RuntimeError, match=r"\['plugins'\] are not supported"):
        oxidask.LocalCluster(
            processes=False, scheduler_kwargs={"plugins": [1]}, dashboard_address=":0"
        )


def test_spilled_values_come_back(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    with (
        dask.config.set(
            {
                "distributed.worker.memory.target": 0.5,
                "distributed.worker.memory.spill": False,
                "distributed.worker.memory.pause": False,
            }
        ),
        oxidask.Client(
            processes=False,
            n_workers=1,
            memory_limit="40 MiB",
            dashboard_address=":0",
            local_directory=str(tmp_path),
        ) as client,
    ):
        arrays = client.map(lambda i: numpy.full(1 << 20, i), range(8), pure=False)
        distributed.wait(arrays)
        eventually(lambda: list(tmp_path.rglob("storage/*")))
        assert [int(array[-1]) for array in client.gather(arrays)] == list(range(8))
