"""Cluster and client objects of the package, around a stock scheduler.

What is tested here is how the scheduler's process is started, watched and
ended. Which scheduler it is does not matter for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import oxidask
import psutil
import pytest
from distributed.core import Status
from oxidask._scheduler_process import SchedulerProcess, command_line
from oxidask._worker_process import WorkerProcess

STOCK = [sys.executable, "-m", "dask", "scheduler"]
PACKAGE = Path(oxidask.__file__).parents[1]

#: Stock's workers, which start within milliseconds that way; the scheduler is a process.
IN_THREADS: dict[str, Any] = {"processes": False, "worker_class": distributed.Worker}


@pytest.fixture(autouse=True)
def stock_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oxidask.LocalCluster, "_command", STOCK)


@pytest.fixture
def cluster() -> Iterator[Any]:
    with oxidask.LocalCluster(
        n_workers=1, threads_per_worker=1, **IN_THREADS, dashboard_address=":0"
    ) as cluster:
        yield cluster


def test_import_is_light() -> None:
    code = "import sys, oxidask; print('dask' in sys.modules, 'asyncio' in sys.modules)"
    out = subprocess.check_output(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(PACKAGE)}
    )
    assert out.split() == [b"False", b"False"]
    assert {"Client", "LocalCluster", "main"} <= set(dir(oxidask))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        oxidask.nothing  # noqa: B018


def test_local_cluster(cluster: Any) -> None:
    assert isinstance(cluster, distributed.LocalCluster)
    assert cluster.scheduler_address == cluster.scheduler.address
    assert cluster.scheduler_address.startswith("tcp://127.0.0.1:")
    assert cluster.scheduler.status == Status.running
    assert psutil.pid_exists(cluster.scheduler.pid)
    assert cluster.dashboard_link.startswith("http://127.0.0.1:")
    # The cluster hears of its workers from the scheduler, after they have started.
    cluster.wait_for_workers(1)
    assert repr(cluster).startswith("LocalCluster(")
    assert "workers=1, threads=1" in repr(cluster)
    assert "LocalCluster" in cluster._repr_html_()
    with distributed.Client(cluster) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        cluster.scale(2)
        client.wait_for_workers(2)
        logs = cluster.get_logs()
        assert len(logs) == 4
        assert "Scheduler at:" in logs["Scheduler"]
        cluster.scale(1)
    assert any("Scheduler at:" in line for line in cluster.scheduler.log_lines())


def test_process_ends_with_the_cluster() -> None:
    with oxidask.LocalCluster(
        n_workers=0, **IN_THREADS, dashboard_address=None
    ) as cluster:
        scheduler = cluster.scheduler
        assert cluster.dashboard_link == "" or "status" in cluster.dashboard_link
    assert scheduler.status == Status.closed
    assert not psutil.pid_exists(scheduler.pid)


def test_processes() -> None:
    with (
        oxidask.LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            dashboard_address=":0",
            memory_limit="1GiB",
            resources={"GPU": 1},
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert isinstance(cluster.workers[0], WorkerProcess)
        assert client.submit(os.getpid).result() != os.getpid()
        (worker,) = client.scheduler_info()["workers"].values()
        assert worker["nanny"] == cluster.workers[0].address
        assert worker["nthreads"] == 2
        assert worker["memory_limit"] == 1 << 30
        assert worker["resources"] == {"GPU": 1}
        assert worker["name"] == 0


def test_stock_workers_take_what_ours_do_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        oxidask.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            dashboard_address=":0",
            heartbeat_interval="300ms",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert isinstance(cluster.workers[0], distributed.Nanny)
        assert client.submit(sum, [1, 2]).result() == 3
    assert "worker arguments ['heartbeat_interval'] are not" in caplog.text


def test_adapt(cluster: Any) -> None:
    cluster.adapt(minimum=2, maximum=2, interval="50ms")
    with distributed.Client(cluster) as client:
        client.wait_for_workers(2, timeout=30)


def test_asynchronous() -> None:
    async def main() -> None:
        async with (
            oxidask.LocalCluster(
                n_workers=1, **IN_THREADS, asynchronous=True, dashboard_address=":0"
            ) as cluster,
            oxidask.Client(cluster, asynchronous=True) as client,
        ):
            assert await client.submit(sum, [1, 2]) == 3
            cluster.scale(2)
            await cluster
            assert len(cluster.workers) == 2
            assert "Scheduler" in await cluster.get_logs(workers=False)

    asyncio.run(main())


def test_client_starts_a_cluster() -> None:
    with oxidask.Client(n_workers=1, **IN_THREADS, dashboard_address=":0") as client:
        assert isinstance(client, distributed.Client)
        assert isinstance(client.cluster, oxidask.LocalCluster)
        scheduler = client.cluster.scheduler
        assert client.submit(sum, [1, 2]).result() == 3
        assert dask.delayed(sum)([1, 2]).compute() == 3
    assert scheduler.status == Status.closed


def test_asynchronous_client_starts_a_cluster() -> None:
    async def main() -> None:
        async with oxidask.Client(
            n_workers=1, **IN_THREADS, dashboard_address=":0", asynchronous=True
        ) as client:
            assert isinstance(client.cluster, oxidask.LocalCluster)
            assert await client.submit(sum, [1, 2]) == 3

    asyncio.run(main())


def test_client_of_an_address(cluster: Any) -> None:
    with oxidask.Client(cluster.scheduler_address) as client:
        assert client.cluster is None
        assert client.submit(sum, [1, 2]).result() == 3


def test_temporary_credentials() -> None:
    pytest.importorskip("cryptography")
    with oxidask.Client(
        security=True, n_workers=1, **IN_THREADS, dashboard_address=":0"
    ) as client:
        assert client.cluster.scheduler_address.startswith("tls://")
        assert client.submit(sum, [1, 2]).result() == 3


def test_configuration_reaches_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "3")

    def read(dask_scheduler: Any = None) -> Any:
        return (
            dask.config.get("distributed.scheduler.allowed-failures"),
            dask.config.get("distributed.scheduler.worker-ttl"),
            dask.config.get("distributed.scheduler.blocked-handlers"),
            sys.path,
        )

    with (
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": 7,
                "something": {"that": print, "fits": 1},
            }
        ),
        oxidask.LocalCluster(
            n_workers=0,
            **IN_THREADS,
            dashboard_address=":0",
            blocked_handlers=["feed"],
            scheduler_kwargs={"worker_ttl": "12 s"},
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        failures, ttl, blocked, path = client.run_on_scheduler(read)
    assert failures == 7
    assert ttl == "12 s"
    assert list(blocked) == ["feed"]
    # The tests' own folder: a script's neighbours must be importable.
    assert str(Path(__file__).parent) in path


def test_command_line() -> None:
    line, config = command_line(
        {
            "host": "127.0.0.1",
            "port": 0,
            "protocol": "tcp://",
            "interface": None,
            "dashboard": False,
            "dashboard_address": None,
            "services": {},
            "service_kwargs": {"dashboard": {"prefix": "/foo"}},
            "security": distributed.Security(),
            "idle_timeout": "1h",
            "validate": True,
            "preload": "module",
        }
    )
    assert line == {
        "--host": "127.0.0.1",
        "--port": "0",
        "--protocol": "tcp",
        "--no-dashboard": None,
        "--dashboard-prefix": "/foo",
        "--idle-timeout": "1h",
    }
    assert config["distributed.scheduler.validate"] is True
    assert config["distributed.scheduler.preload"] == ["module"]
    assert config["distributed.comm.require-encryption"] is False
    with pytest.raises(TypeError, match=r"\['plugins'\] are not supported"):
        command_line({"plugins": [1]})


def test_in_process_protocol_is_refused() -> None:
    with pytest.raises(ValueError, match="inproc"):
        oxidask.LocalCluster(protocol="inproc://")


def test_scheduler_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "print('no such luck'); raise SystemExit(5)"]
    monkeypatch.setattr(oxidask.LocalCluster, "_command", command)
    with pytest.raises(RuntimeError, match="exit code 5") as error:
        oxidask.LocalCluster(n_workers=0, **IN_THREADS)
    assert "no such luck" in str(error.value)


def test_scheduler_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    monkeypatch.setattr(oxidask.LocalCluster, "_command", command)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "500 ms"}),
        pytest.raises(RuntimeError, match="did not start in time"),
    ):
        oxidask.LocalCluster(n_workers=0, **IN_THREADS)
    assert not [
        child
        for child in psutil.Process().children()
        if "signal.pause" in " ".join(child.cmdline())
    ]


def test_scheduler_that_dies(cluster: Any) -> None:
    exited = cluster.scheduler._exited
    os.kill(cluster.scheduler.pid, signal.SIGKILL)
    cluster.sync(exited.wait)
    assert cluster.scheduler.status == Status.failed
    assert "Scheduler at:" in cluster.get_logs()["Scheduler"]


def test_scheduler_that_will_not_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oxidask._scheduler_process.CLOSE_TIMEOUT", 0.2)

    async def main() -> None:
        scheduler = SchedulerProcess({"port": 0, "dashboard": False}, STOCK)
        async with scheduler:
            os.kill(scheduler.pid or 0, signal.SIGSTOP)
        assert scheduler.status == Status.closed

    asyncio.run(main())


@pytest.mark.parametrize("silent", [True, False])
def test_log_is_printed(capfd: pytest.CaptureFixture[str], silent: bool) -> None:
    with oxidask.LocalCluster(
        n_workers=0,
        **IN_THREADS,
        dashboard_address=":0",
        silence_logs=logging.WARN if silent else False,
    ):
        pass
    assert ("Scheduler at:" in capfd.readouterr().err) == (not silent)


def test_lines_of_the_log() -> None:
    async def make(level: int | None) -> SchedulerProcess:
        return SchedulerProcess({}, STOCK, level)

    quiet = asyncio.run(make(logging.WARN))
    seen = []
    visible = True
    for line in [
        "2026-01-01 - distributed.scheduler - INFO - something",
        "  and more of it",
        "2026-01-01 - distributed.scheduler - ERROR - boom",
        "Traceback (most recent call last):",
        "  File ...",
        "2026-01-01 - distributed.core - DEBUG - event",
        "thread 'main' panicked",
    ]:
        visible = quiet._is_visible(line, visible)
        seen.append(visible)
    assert seen == [False, False, True, True, True, False, True]
    assert asyncio.run(make(None))._is_visible(" - DEBUG - ", False)


def test_scheduler_does_not_outlive_its_program(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("PR_SET_PDEATHSIG is Linux")
    program = textwrap.dedent(
        f"""
        import distributed, os, signal, oxidask
        if __name__ == "__main__":
            oxidask.LocalCluster._command = {STOCK!r}
            cluster = oxidask.LocalCluster(
                n_workers=0,
                processes=False,
                worker_class=distributed.Worker,
                dashboard_address=":0",
            )
            print(cluster.scheduler.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    file = tmp_path / "program.py"
    file.write_text(program)
    out = subprocess.run(
        [sys.executable, str(file)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        stdout=subprocess.PIPE,
        timeout=60,
    )
    assert out.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(out.stdout)).wait(30)


def test_bound_command_whose_parent_is_gone() -> None:
    from oxidask import _bound

    process = subprocess.run(
        [sys.executable, _bound.__file__, "1", "echo", "never"],
        stdout=subprocess.PIPE,
        timeout=60,
    )
    assert process.returncode == 1
    assert process.stdout == b""
