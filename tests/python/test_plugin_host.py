"""The plug-in host when something in it goes wrong.

What it does when all goes well is seen by the conformance tests. The scheduler
under test is the command ``oxidask`` beside this Python, or ``OXIDASK_COMMAND``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, SchedulerPlugin

COMMAND = os.environ.get(
    "OXIDASK_COMMAND", str(Path(sys.executable).with_name("oxidask"))
)

#: How long the host may be silent in these tests.
TIMEOUT = 1.0


class Scheduler:
    """A scheduler process and its log."""

    def __init__(self, folder: Path) -> None:
        file = folder / "scheduler.json"
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(COMMAND, "scheduler", "--python", sys.executable),
                    *(
                        "--host",
                        "127.0.0.1",
                        "--port",
                        "0",
                        "--dashboard-address",
                        ":0",
                    ),
                    *("--scheduler-file", str(file)),
                ],
                stderr=log,
                env={
                    **os.environ,
                    "DASK_OXIDASK__PLUGIN_HOST__TIMEOUT": f"{TIMEOUT}s",
                },
            )
        eventually(lambda: file.exists() and file.read_text())
        self.address: str = json.loads(file.read_text())["address"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def eventually(condition: Callable[[], Any], timeout: float = 30) -> Any:
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, "condition not true in time"
        time.sleep(0.02)
    return found


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Scheduler]:
    scheduler = Scheduler(tmp_path)
    yield scheduler
    scheduler.close()


@pytest.fixture
def client(scheduler: Scheduler) -> Iterator[Client]:
    with Client(scheduler.address) as client:
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "dask", "worker", scheduler.address),
                *("--no-nanny", "--nthreads", "1", "--dashboard-address", ":0"),
            ],
            stderr=subprocess.DEVNULL,
        )
        client.wait_for_workers(1)
        yield client
        worker.kill()
        worker.wait()


def host_pid(client: Client) -> int:
    pid: int = client.run_on_scheduler(os.getpid)
    return pid


def test_a_host_that_is_killed_fails_its_requests(
    scheduler: Scheduler, client: Client
) -> None:
    pid = host_pid(client)
    assert pid != scheduler.process.pid

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(
        RuntimeError, match=rf"plug-in host \(pid {pid}\) ended.*signal 9"
    ):
        client.run_on_scheduler(die)
    assert client.submit(sum, [1, 2]).result() == 3
    assert host_pid(client) != pid
    assert f"The plug-in host (pid {pid}) ended" in scheduler.log.read_text()


def test_a_function_that_exits_does_not_end_the_scheduler(client: Client) -> None:
    with pytest.raises(RuntimeError, match="plug-in host"):
        client.run_on_scheduler(os._exit, 3)
    assert client.run_on_scheduler(lambda: 1) == 1


def test_plugins_are_registered_again(scheduler: Scheduler, client: Client) -> None:
    class Count(SchedulerPlugin):
        name = "count"

        def __init__(self) -> None:
            self.finished = 0

        def transition(
            self, key: Any, start: Any, finish: Any, *a: Any, **k: Any
        ) -> None:
            self.finished += finish == "memory"

    def finished(dask_scheduler: Any) -> int:
        count: int = dask_scheduler.plugins["count"].finished
        return count

    client.register_plugin(Count())
    client.submit(sum, [1]).result()
    pid = host_pid(client)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: "A new plug-in host runs" in scheduler.log.read_text())
    client.submit(sum, [2]).result()
    assert client.run_on_scheduler(finished) == 1
    assert host_pid(client) != pid


def test_a_blocked_host_is_replaced(scheduler: Scheduler, client: Client) -> None:
    pid = host_pid(client)
    with pytest.raises(RuntimeError, match=r"blocked it for .*plugin-host\.timeout"):
        client.run_on_scheduler(time.sleep, 60)
    assert host_pid(client) != pid


def test_work_goes_on_while_a_plugin_blocks(
    scheduler: Scheduler, client: Client
) -> None:
    class Blocks(SchedulerPlugin):
        name = "blocks"

        def transition(self, *args: Any, **kwargs: Any) -> None:
            time.sleep(60)

    client.register_plugin(Blocks())
    assert client.gather(client.map(abs, range(100))) == list(range(100))
    eventually(lambda: "blocked it for" in scheduler.log.read_text())
    assert client.submit(sum, [1, 2, 3]).result() == 6


def test_the_host_ends_with_the_scheduler(scheduler: Scheduler, client: Client) -> None:
    pid = host_pid(client)
    scheduler.close()

    def is_gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"

    eventually(is_gone)
