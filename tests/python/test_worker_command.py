"""``oxidask worker`` under stock's scheduler: the command, and its nanny.

Most workers have a toy in place of an interpreter, see ``toy_tasks``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import oxidask
import psutil
import pytest
import toy_tasks
from oxidask._worker_process import WorkerProcess, command_line

#: Longest wait for anything; it passes in a fraction of that.
TIMEOUT = 60


#: The interpreter of a nanny's helper, and where it finds this package.
PYTHON = {
    "TOY_PYTHON": sys.executable,
    "PYTHONPATH": os.pathsep.join(
        [str(Path(oxidask.__file__).parents[1]), str(Path(__file__).parent)]
    ),
}


class Command:
    """A running command, and what it logs."""

    def __init__(self, command: list[str], **variables: str) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            for line in self.process.stderr:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def line(self, text: str, count: int = 1) -> str:
        """The `count`-th line that the regular expression matches."""

        def found() -> list[str]:
            return [line for line in self.lines if re.search(text, line)]

        with self._news:
            self._news.wait_for(
                lambda: len(found()) >= count or not self._thread.is_alive(), TIMEOUT
            )
            assert len(found()) >= count, (text, self.lines)
            return found()[count - 1]

    def finish(self, number: int | None = signal.SIGTERM) -> int:
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(TIMEOUT)
        self._thread.join(TIMEOUT)
        return status


@pytest.fixture(scope="session")
def toy(example: Callable[[str, str], str]) -> str:
    return example("oxidask-cli", "toy_oxidask")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=0, processes=False, protocol="tcp://", dashboard_address=":0"
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster) as client:
        yield client
        client.cancel(list(client.futures.values()), force=True)


@pytest.fixture
def start(toy: str, cluster: Any, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    commands: list[Command] = []

    def start(*options: str, address: bool = True, **variables: str) -> Command:
        words = [toy, "worker", "--local-directory", str(tmp_path / "files"), *options]
        if address:
            words.insert(2, cluster.scheduler_address)
        command = Command(words, **variables)
        commands.append(command)
        return command

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.finish()


def workers(client: Any, count: int = 1) -> dict[str, Any]:
    client.wait_for_workers(count, timeout=TIMEOUT)
    info: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return info


def folders(tmp_path: Path) -> list[str]:
    names = [path.name for path in (tmp_path / "files/dask-scratch-space").iterdir()]
    return sorted(name for name in names if name.startswith("worker-"))


def gone(client: Any) -> bool:
    return not client.scheduler_info(n_workers=-1)["workers"]


def test_what_the_scheduler_hears(
    client: Any, start: Callable[..., Command], tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    command = start(
        "--name=alice",
        "--nthreads=3",
        "--memory-limit=2GB",
        "--resources=GPU=2 MEM=10e9",
        f"--pid-file={pid_file}",
    )
    command.line("Registered to:")
    ((address, worker),) = workers(client).items()
    assert worker["name"] == "alice"
    assert worker["nthreads"] == 3
    assert worker["memory_limit"] == 2_000_000_000
    assert worker["resources"] == {"GPU": 2, "MEM": 10e9}
    assert worker["local_directory"].startswith(str(tmp_path / "files"))
    assert pid_file.read_text() == str(command.process.pid)
    # What tools look for, in stock's words and columns.
    nanny = command.line(r" - distributed\.nanny - INFO -         Start Nanny at: '")
    assert worker["nanny"] in nanny
    assert command.line(
        r" - distributed\.worker - INFO -       Start worker at: +tcp://"
    ).endswith(address)
    assert command.line("         Listening to:").endswith(address)
    assert command.line("          Worker name:").endswith(" alice")
    assert command.line("         dashboard at:")
    assert command.line("              Threads:").endswith(" 3")
    assert command.line("               Memory:").endswith(" 1.86 GiB")
    assert command.line("      Local Directory:").endswith(worker["local_directory"])
    assert client.submit(toy_tasks.shell_one).result() == 1
    port = worker["services"]["dashboard"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as reply:
        assert reply.read() == b"ok"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        assert b"dask_worker_threads 3" in reply.read()

    assert command.finish(signal.SIGTERM) == 0
    assert command.line(
        r"distributed\._signals - INFO - Received signal SIGTERM \(15\)"
    )
    assert command.line("Closing Nanny at 'tcp://.*Reason: signal-15")
    assert command.line("Stopping worker at tcp://.*Reason: signal-15")
    assert command.line("Nanny at 'tcp://.* closed")
    assert "distributed.dask_worker - INFO - End worker" in command.lines[-1]
    assert not pid_file.exists()
    assert folders(tmp_path) == []
    assert gone(client)


def test_without_a_nanny(
    client: Any, start: Callable[..., Command], tmp_path: Path
) -> None:
    command = start("--no-nanny", "--name=7")
    command.line("Registered to:")
    (worker,) = workers(client).values()
    assert worker["nanny"] is None
    assert worker["name"] == 7
    assert len(folders(tmp_path)) == 2
    assert command.finish(signal.SIGINT) == 0
    assert command.line("Stopping worker at tcp://.*Reason: signal-2")
    assert "End worker" in command.lines[-1]
    assert folders(tmp_path) == []
    assert gone(client)


def test_a_running_task_does_not_delay_the_end(
    client: Any, start: Callable[..., Command]
) -> None:
    command = start("--no-nanny")
    future = client.submit(toy_tasks.shell_hold)
    workers(client)
    command.line("Registered to:")
    assert command.finish() == 0
    assert future.status == "pending"


def free_ports(count: int) -> int:
    """The first of some free ports in a row."""
    for first in range(20_000, 32_000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
            return first
    raise AssertionError("there are no free ports")


def test_several_workers_and_their_ports(
    client: Any, start: Callable[..., Command]
) -> None:
    first = free_ports(5)
    with socket.socket() as taken:
        taken.bind(("", first))
        taken.listen()
        command = start(
            "--nworkers=2",
            "--nthreads=1",
            "--name=n",
            f"--worker-port={first}:{first + 3}",
            "--host=127.0.0.1",
            f"--nanny-port={first + 4}:{first + 5}",
        )
        info = workers(client, 2)
    by_name = {worker["name"]: address for address, worker in info.items()}
    # The first has ports 0 and 2 to choose from, the second 1 and 3.
    assert by_name == {
        "n-0": f"tcp://127.0.0.1:{first + 2}",
        "n-1": f"tcp://127.0.0.1:{first + 1}",
    }
    assert {worker["nanny"] for worker in info.values()} == {
        f"tcp://127.0.0.1:{first + 4}",
        f"tcp://127.0.0.1:{first + 5}",
    }
    assert command.finish() == 0


def test_the_scheduler_file_is_waited_for(
    client: Any, cluster: Any, start: Callable[..., Command], tmp_path: Path
) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text("{")
    command = start(f"--scheduler-file={file}", address=False)
    command.process.send_signal(0)
    file.write_text(json.dumps({"address": cluster.scheduler_address}))
    command.line("Registered to:")
    assert command.finish() == 0


def test_the_address_can_be_configured(
    client: Any, cluster: Any, start: Callable[..., Command]
) -> None:
    command = start(
        address=False,
        DASK_SCHEDULER_ADDRESS=cluster.scheduler_address,
        DASK_DISTRIBUTED__WORKER__RESOURCES="{'A': 1}",
    )
    command.line("Registered to:")
    (worker,) = workers(client).values()
    assert worker["resources"] == {"A": 1}
    assert command.finish() == 0


@pytest.mark.parametrize("options", [[], ["--no-nanny"]])
def test_death_timeout(toy: str, options: list[str], tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{nobody.getsockname()[1]}"
        command = Command(
            [
                *(toy, "worker", address, "--death-timeout=0.5s", *options),
                f"--local-directory={tmp_path}",
            ]
        )
        assert command.finish(None) == 1
    assert command.line("INFO - Timed out starting worker")
    assert "End worker" in command.lines[-1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--nworkers=0"], "so that there's at least one process"),
        (["--nworkers=2", "--no-nanny"], "cannot use the --no-nanny argument when"),
        (["--contact-address=tcp://a:1"], "Must specify --listen-address when"),
        (["--listen-address=tcp://a"], "missing port number in address 'tcp://a'"),
        (["--listen-address=a:1", "--host=b"], "when --worker-port or --host is given"),
        (["--nworkers=2", "--worker-port=5000"], "Not enough ports in range"),
        (["--memory-limit=lots"], "Invalid memory limit 'lots'"),
        (["--resources=GPU"], "Invalid resource 'GPU'"),
    ],
)
def test_options_that_do_not_go_together(
    toy: str, options: list[str], text: str
) -> None:
    command = Command([toy, "worker", "tcp://127.0.0.1:1", *options])
    assert command.finish(None) == 1
    line = command.line("distributed.dask_worker - ERROR - Failed to launch worker. ")
    assert text in line


def test_no_scheduler(toy: str) -> None:
    command = Command([toy, "worker"])
    assert command.finish(None) == 1
    assert command.line("Need to provide scheduler address like")


@pytest.mark.parametrize(
    ("function", "stock", "reason"),
    [
        (toy_tasks.shell_exit, "exited with status 3", "exited with status 3"),
        (toy_tasks.shell_fault, "was killed by signal 11", "SIGSEGV"),
        (toy_tasks.shell_killed, "was killed by signal 9", "SIGKILL: by somebody, or"),
    ],
)
def test_a_worker_that_dies_is_replaced(
    client: Any,
    start: Callable[..., Command],
    tmp_path: Path,
    function: Callable[[], None],
    stock: str,
    reason: str,
) -> None:
    command = start("--name=mortal", "--nthreads=1")
    ((address, worker),) = workers(client).items()
    future = client.submit(function, pure=False, retries=0)
    with pytest.raises(distributed.KilledWorker):
        future.result(timeout=TIMEOUT)
    assert command.line(rf"distributed.nanny - INFO - Worker process \d+ {stock}")
    told = command.line(
        rf"WARNING - Worker {re.escape(address)} \(pid=\d+\) .*{reason}"
    )
    assert told.endswith("Last lines of its log:")
    assert re.search("    .*Registered to:", "\n".join(command.lines))
    assert command.line(r"Unregistering worker \(status=Status.running\)")
    assert command.line(r"WARNING - Restarting worker \(status=Status.running\)")
    # The last of them runs.
    command.line("Registered to:", count=5)
    ((_, successor),) = workers(client).items()
    assert successor["nanny"] == worker["nanny"]
    assert successor["name"] == "mortal"
    events = [event for _, event in client.get_events("worker-died")]
    assert any(event["worker"] == address for event in events)
    assert reason in events[-1]["reason"]
    assert command.finish() == 0
    assert folders(tmp_path) == []


def test_a_worker_with_too_much_memory_is_replaced(
    client: Any, start: Callable[..., Command]
) -> None:
    command = start("--memory-limit=300MB", "--nthreads=1")
    ((address, _),) = workers(client).items()
    future = client.submit(toy_tasks.shell_grow)
    assert command.line(
        rf"Worker {address} \(pid=\d+\) exceeded 95% memory budget. Restarting\.\.\."
    )
    assert command.line(
        r"was ended because it had .* MiB in memory; the limit is 271\.8"
    )
    command.line("Registered to:", count=2)
    ((_, event),) = client.get_events("worker-restart-memory")[-1:]
    assert event["worker"] == address
    assert event["rss"] > 285_000_000
    future.cancel()
    command.finish()


def test_restart(client: Any, start: Callable[..., Command]) -> None:
    command = start("--nworkers=2", "--nthreads=1")
    before = workers(client, 2)
    client.restart(timeout=TIMEOUT)
    after = workers(client, 2)
    assert not before.keys() & after.keys()
    nannies = {worker["nanny"] for worker in before.values()}
    assert {worker["nanny"] for worker in after.values()} == nannies
    one, other = after
    assert client.restart_workers([one], timeout=TIMEOUT) == {one: "OK"}
    again = workers(client, 2)
    assert other in again
    assert one not in again
    assert client.submit(toy_tasks.shell_one).result() == 1
    assert command.finish() == 0


def test_retirement_ends_the_nanny(client: Any, start: Callable[..., Command]) -> None:
    command = start()
    (address,) = workers(client)
    client.retire_workers([address])
    assert command.finish(None) == 0
    assert command.line("Closing Nanny gracefully at 'tcp://")
    assert command.line("Reason: nanny-close-gracefully")
    assert gone(client)


def test_lifetime(client: Any, start: Callable[..., Command]) -> None:
    command = start("--lifetime=1s")
    assert command.finish(None) == 0
    assert command.line("Reason: worker-lifetime-reached")


def test_lifetime_with_restart(client: Any, start: Callable[..., Command]) -> None:
    command = start("--lifetime=1s", "--lifetime-restart")
    command.line("Registered to:", count=2)
    assert command.line("Restarting worker")
    assert command.finish() == 0


def test_a_worker_does_not_outlive_its_nanny(
    client: Any, start: Callable[..., Command]
) -> None:
    command = start()
    command.line("Registered to:")
    (child,) = psutil.Process(command.process.pid).children()
    command.process.kill()
    command.process.wait(TIMEOUT)
    with contextlib.suppress(psutil.NoSuchProcess):
        child.wait(TIMEOUT)
    # Its log went with the nanny.
    assert gone(client)


def test_an_interrupt_from_the_keyboard_closes_in_order(
    client: Any, start: Callable[..., Command]
) -> None:
    command = start()
    command.line("Registered to:")
    (child,) = psutil.Process(command.process.pid).children()
    # A terminal sends it to all.
    child.send_signal(signal.SIGINT)
    assert command.finish(signal.SIGINT) == 0
    assert command.line("Stopping worker at tcp://.*Reason: signal-2")


def about(dask_worker: Any) -> tuple[Any, ...]:
    return (
        os.getpid(),
        dask_worker.address,
        dask_worker.worker_address,
        dask_worker.pid,
        dask_worker.name,
    )


def test_functions_in_a_nanny(client: Any, start: Callable[..., Command]) -> None:
    command = start("--name=n", **PYTHON)
    ((address, worker),) = workers(client).items()
    nanny = psutil.Process(command.process.pid)
    (child,) = nanny.children()
    ((_, told),) = client.run(about, nanny=True).items()
    pid, *rest = told
    assert rest == [worker["nanny"], address, child.pid, "n"]
    # The first request has started it, and the second finds it.
    assert set(nanny.children()) == {child, psutil.Process(pid)}
    assert list(client.run(os.getpid, nanny=True).values()) == [pid]
    with pytest.raises(ZeroDivisionError):
        client.run(lambda: 1 / 0, nanny=True)
    assert command.finish() == 0
    assert not psutil.pid_exists(pid)


def test_a_helper_that_dies_takes_one_request_with_it(
    client: Any, start: Callable[..., Command]
) -> None:
    start(**PYTHON)
    workers(client)
    with pytest.raises(Exception, match="the nanny's Python process"):
        client.run(os._exit, 1, nanny=True)
    ((_, pid),) = client.run(os.getpid, nanny=True).items()
    assert psutil.pid_exists(pid)


def worker_process(client: Any) -> psutil.Process:
    """The process of the only worker, as the scheduler knows it."""

    def pids(dask_scheduler: Any) -> list[int]:
        return [ws.pid for ws in dask_scheduler.workers.values()]

    (pid,) = client.run_on_scheduler(pids)
    return psutil.Process(pid)


def test_nanny_plugins(client: Any, start: Callable[..., Command]) -> None:
    command = start("--nthreads=1", **PYTHON)
    (before,) = workers(client)
    environ = distributed.diagnostics.plugin.Environ({"OXIDASK_TEST": "here"})
    client.register_plugin(environ, name="environ")
    command.line("Starting Nanny plugin environ")
    command.line("Reason: nanny-plugin-environ-restart")
    (after,) = workers(client)
    assert before != after
    variables = worker_process(client).environ()
    assert variables["OXIDASK_TEST"] == "here"
    assert variables["PYTHONHASHSEED"] == "6640"
    # A nanny that comes later starts its worker with it.
    assert command.finish() == 0
    command = start("--nthreads=1", **PYTHON)
    command.line("Starting Nanny plugin environ")
    workers(client)
    assert worker_process(client).environ()["OXIDASK_TEST"] == "here"
    client.unregister_worker_plugin("environ", nanny=True)
    command.line("Removing Nanny plugin environ")
    assert command.finish() == 0


def test_modules_for_workers(
    client: Any, start: Callable[..., Command], tmp_path: Path
) -> None:
    package = tmp_path / "uploaded"
    package.mkdir()
    (package / "__init__.py").write_text("")
    command = start("--nthreads=1", **PYTHON)
    workers(client)
    plugin = distributed.diagnostics.plugin.UploadDirectory(
        str(package), restart_workers=True
    )
    client.register_plugin(plugin)
    command.line("Reason: nanny-plugin-upload-directory-uploaded-restart")
    workers(client)
    workspace = tmp_path / "files/dask-scratch-space"
    assert (workspace / "uploaded/__init__.py").exists()
    path = worker_process(client).environ()["PYTHONPATH"].split(os.pathsep)
    assert str(workspace) in path
    client.unregister_worker_plugin("upload-directory-uploaded", nanny=True)
    assert command.finish() == 0


def test_preload_in_a_nanny(
    client: Any, start: Callable[..., Command], tmp_path: Path
) -> None:
    module = tmp_path / "preloaded.py"
    module.write_text(
        "import sys\n"
        "def dask_setup(nanny):\n"
        "    nanny.env['OXIDASK_TEST'] = nanny.address\n"
        "def dask_teardown(nanny):\n"
        "    print('torn down', flush=True, file=sys.stderr)\n"
    )
    command = start(f"--preload-nanny={module}", **PYTHON)
    (worker,) = workers(client).values()
    variables = worker_process(client).environ()
    assert variables["OXIDASK_TEST"] == worker["nanny"]
    assert command.finish() == 0
    assert command.line("torn down")


def test_a_preload_that_is_not_there(start: Callable[..., Command]) -> None:
    command = start("--preload-nanny=no_such_module", **PYTHON)
    assert command.finish(None) == 1
    assert command.line("cannot preload in the nanny: .*no_such_module")


def test_logs(client: Any, start: Callable[..., Command]) -> None:
    start()
    (address,) = workers(client)
    (nanny,) = client.get_worker_logs(nanny=True).values()
    assert any("Start Nanny at:" in line for _, line in nanny)
    (own,) = client.get_worker_logs(workers=[address]).values()
    assert any("Registered to:" in line for _, line in own)


def test_another_class_is_stocks(client: Any, start: Callable[..., Command]) -> None:
    command = start(
        "--worker-class=distributed.nanny.Worker",
        "--name=stock",
        "--no-nanny",
        TOY_PYTHON=sys.executable,
    )
    assert command.line("Worker class `distributed.nanny.Worker` is not of Oxidask")
    assert {worker["name"] for worker in workers(client).values()} == {"stock"}
    assert client.submit(sum, [1, 2]).result() == 3
    command.finish()


def fault() -> None:
    ctypes.string_at(0)


@pytest.mark.parametrize("module", ["oxidask.worker", "oxidask worker"])
def test_with_an_interpreter(
    client: Any,
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
) -> None:
    # One death is enough here.
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    command = Command(
        [
            *(sys.executable, "-m", *module.split(), cluster.scheduler_address),
            *("--nthreads=1", f"--local-directory={tmp_path}"),
        ],
        **PYTHON,
    )
    (before,) = workers(client)
    assert client.submit(sum, [1, 2]).result(timeout=TIMEOUT) == 3
    for function, arguments, reason in [
        (os._exit, (3,), "exited with status 3"),
        (fault, (), "SIGSEGV"),
    ]:
        future = client.submit(function, *arguments, retries=0, pure=False)
        with pytest.raises(distributed.KilledWorker):
            future.result(timeout=TIMEOUT)
        command.line(rf"WARNING - Worker tcp://.* {reason}")
    client.restart(timeout=TIMEOUT)
    assert before not in workers(client)
    assert client.submit(sum, [1, 2]).result(timeout=TIMEOUT) == 3
    assert command.finish() == 0


def test_tls(toy: str, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    security = distributed.Security.temporary()
    options = []
    for option, text in [
        ("ca-file", security.tls_ca_file),
        ("cert", security.tls_worker_cert),
        ("key", security.tls_worker_key),
    ]:
        path = tmp_path / option
        path.write_text(text)
        options.append(f"--tls-{option}={path}")
    with (
        distributed.LocalCluster(
            n_workers=0,
            processes=False,
            protocol="tls://",
            dashboard_address=":0",
            security=security,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        command = Command(
            [
                *(toy, "worker", cluster.scheduler_address, *options),
                *("--scheduler-sni=cluster.example", f"--local-directory={tmp_path}"),
            ]
        )
        ((address, worker),) = workers(client).items()
        assert address.startswith("tls://")
        assert worker["nanny"].startswith("tls://")
        assert client.submit(toy_tasks.shell_one).result() == 1
        assert command.finish() == 0


@pytest.fixture
def own_workers(monkeypatch: pytest.MonkeyPatch, toy: str) -> None:
    monkeypatch.setattr(WorkerProcess, "command", [toy, "worker"])
    stock = [sys.executable, "-m", "dask", "scheduler"]
    monkeypatch.setattr(oxidask.LocalCluster, "_command", stock)


def test_local_cluster(own_workers: None, tmp_path: Path) -> None:
    with (
        oxidask.LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            dashboard_address=":0",
            worker_class="oxidask",
            memory_limit="1GiB",
            resources={"GPU": 1},
            local_directory=str(tmp_path),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        ((_, worker),) = workers(client).items()
        assert worker["name"] == 0
        assert worker["nthreads"] == 2
        assert worker["memory_limit"] == 1 << 30
        assert worker["resources"] == {"GPU": 1}
        assert client.submit(toy_tasks.shell_one).result() == 1
        cluster.scale(2)
        assert len(workers(client, 2)) == 2
        client.restart(timeout=TIMEOUT)
        pids = [worker.pid for worker in cluster.workers.values()]
        cluster.scale(1)
        cluster.sync(cluster._correct_state)
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_local_cluster_whose_workers_cannot_start(own_workers: None) -> None:
    with pytest.raises(RuntimeError, match="worker process ended with exit code 1"):
        oxidask.LocalCluster(
            n_workers=1,
            dashboard_address=":0",
            worker_class="oxidask",
            memory_limit="lots",
        )


def test_local_cluster_refuses() -> None:
    with pytest.raises(ValueError, match="a class or 'oxidask', not 'stock'"):
        oxidask.LocalCluster(worker_class="stock")
    with pytest.raises(TypeError, match=r"\['plugins'\] are not supported"):
        command_line({"plugins": [1]})


def test_arguments_become_options() -> None:
    line, config = command_line(
        {
            "name": 3,
            "host": "127.0.0.1",
            "nthreads": 2,
            "services": {},
            "dashboard_address": None,
            "dashboard": False,
            "interface": None,
            "protocol": "tcp://",
            "security": distributed.Security(),
            "memory_limit": None,
            "resources": {"A": 1, "B": 2.5},
            "lifetime": "1h",
            "lifetime_restart": False,
            "preload": "module",
            "preload_argv": ["--own", "1"],
            "validate": True,
        }
    )
    assert line == [
        "--name=3",
        "--host=127.0.0.1",
        "--nthreads=2",
        "--no-dashboard",
        "--protocol=tcp",
        "--memory-limit=0",
        "--resources=A=1 B=2.5",
        "--lifetime=1h",
        "--no-lifetime-restart",
        "--preload=module",
        "--",
        "--own",
        "1",
    ]
    assert config["distributed.worker.validate"] is True
    assert config["distributed.comm.require-encryption"] is False
