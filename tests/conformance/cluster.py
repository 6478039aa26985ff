"""Clusters made of outside processes, started from command templates.

A scheduler template may use ``{python} {bin} {host} {file} {args}``, a worker template
``{python} {bin} {scheduler} {host} {name} {nthreads} {nanny} {args}``; ``{bin}`` is the
directory of the running Python's scripts. ``{args}`` are further options in the syntax of
Dask's command line, ``{nanny}`` is ``--nanny`` or ``--no-nanny``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed.core import connect

HERE = Path(__file__).parent
HOST = "127.0.0.1"

STOCK_SCHEDULER = (
    "{python} -m dask scheduler --host {host} --port 0 --scheduler-file {file} {args}"
)
STOCK_WORKER = (
    "{python} -m dask worker {scheduler} --host {host} --name {name} --nthreads {nthreads}"
    " {nanny} {args}"
)
OXIDASK_SCHEDULER = (
    "{bin}/oxidask scheduler --host {host} --port 0 --scheduler-file {file} {args}"
)

OXIDASK_WORKER = (
    "{bin}/oxidask worker {scheduler} --host {host} --name {name} --nthreads {nthreads}"
    " {nanny} {args}"
)

ENGINES = {
    "stock": (STOCK_SCHEDULER, STOCK_WORKER),
    "oxidask": (OXIDASK_SCHEDULER, STOCK_WORKER),
    "oxidask-worker": (STOCK_SCHEDULER, OXIDASK_WORKER),
    "oxidask-both": (OXIDASK_SCHEDULER, OXIDASK_WORKER),
}

# Chosen so that a machine with a dozen busy processes on two cores still passes.
START_TIMEOUT = 60


def eventually(
    condition: Callable[[], Any], timeout: float = 20, interval: float = 0.02
) -> Any:
    """Returns the first true value of `condition`.

    An AssertionError raised by `condition` counts as not yet true. When `timeout` (seconds)
    has passed, the last AssertionError is raised, or one with the last value.
    """
    deadline = time.monotonic() + timeout
    while True:
        error = None
        value = None
        try:
            value = condition()
        except AssertionError as e:
            error = e
        if value:
            return value
        if time.monotonic() > deadline:
            raise error or AssertionError(
                f"condition not true after {timeout} s, last value: {value!r}"
            )
        time.sleep(interval)


async def call_async(scheduler: str, op: str, /, **kwargs: Any) -> Any:
    """One RPC over a connection of its own; answers of errors are returned as they are."""
    comm = await connect(scheduler)
    try:
        await comm.write({"op": op, **kwargs})
        return await comm.read()
    finally:
        comm.abort()


def call(scheduler: str, op: str, /, *, within: float = 30, **kwargs: Any) -> Any:
    """Same as `call_async` for synchronous tests, which must end `within` so many seconds."""
    return asyncio.run(
        asyncio.wait_for(call_async(scheduler, op, **kwargs), timeout=within)
    )


class Supervisor:
    """The process that starts all others, see supervisor.py."""

    def __init__(self, *, fork: bool) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(HERE / "supervisor.py"),
                *(["--preload"] if fork else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=process_environment(),
        )
        assert json.loads(self._process.stdout.readline()) == "ready"

    def _ask(self, **request: Any) -> Any:
        with self._lock:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the supervisor of the test processes has died")
        return json.loads(line)

    def spawn(
        self, argv: list[str], *, cwd: Path, env: dict[str, str], log: Path
    ) -> Process:
        log.touch()
        pid = self._ask(op="spawn", argv=argv, cwd=str(cwd), env=env, log=str(log))
        if isinstance(pid, dict):
            raise RuntimeError(f"cannot start {argv}: {pid['error']}")
        return Process(self, pid, log)

    def poll(self, pid: int) -> int | None:
        return self._ask(op="poll", pid=pid)

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@dataclass
class Process:
    """A process in a session of its own; `pid` is also the process group."""

    supervisor: Supervisor
    pid: int
    log: Path

    def returncode(self) -> int | None:
        """The exit code, negative for a signal, or None while the process lives."""
        return self.supervisor.poll(self.pid)

    def signal(self, signum: int) -> None:
        """Signals the process alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Kills the process and everything it started, and waits until it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self, timeout: float = 20) -> int:
        return eventually(
            lambda: (self.returncode(),) if self.returncode() is not None else None,
            timeout,
            interval=0.005,
        )[0]

    def read_log(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class WorkerProcess:
    name: str
    process: Process
    nanny: bool
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return self.info["address"]

    def kill(self) -> None:
        self.process.kill()


def process_environment(
    config: dict[str, Any] | None = None, **extra: str
) -> dict[str, str]:
    """The environment of an outside process: no configuration but `config`.

    `config` maps dotted names of Dask's configuration to values.
    """
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("DASK_", "PYTEST_"))
    }
    env["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    env["PYTHONUNBUFFERED"] = "1"
    # One thread each: the machine's cores are shared by all processes of the tests.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        env[name] = "1"
    for key, value in (config or {}).items():
        variable = "DASK_" + key.upper().replace(".", "__").replace("-", "_")
        env[variable] = value if isinstance(value, str) else repr(value)
    env.update(extra)
    return env


@dataclass(frozen=True)
class Engine:
    name: str
    scheduler_command: str
    worker_command: str
    dead_scheduler: bool = False


class Cluster:
    """One scheduler and its workers."""

    def __init__(self, engine: Engine, supervisor: Supervisor, folder: Path) -> None:
        self.engine = engine
        self.supervisor = supervisor
        self.folder = Path(tempfile.mkdtemp(prefix="cluster-", dir=folder))
        (self.folder / "config").mkdir()
        self.scheduler_file = self.folder / "scheduler.json"
        self.scheduler: Process | None = None
        self.workers: list[WorkerProcess] = []
        self.processes: list[tuple[str, Process]] = []
        self.address = ""
        self._names = itertools.count()
        self._config: dict[str, Any] = {}
        self._env: dict[str, str] = {}

    # Starting and stopping

    def start(
        self,
        *,
        workers: int = 2,
        nthreads: int | list[int] = 1,
        names: list[str] | None = None,
        nanny: bool = False,
        resources: str | list[str | None] | None = None,
        config: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        scheduler_args: str = "",
        worker_args: str = "",
        host: str = HOST,
    ) -> None:
        """Starts the scheduler, then `workers` workers, and waits until all are running."""
        self._config = config or {}
        self._env = env or {}
        dashboard = (
            "" if "dashboard" in scheduler_args else f"--dashboard-address {HOST}:0"
        )
        argv = self._argv(
            self.engine.scheduler_command,
            host=host,
            file=str(self.scheduler_file),
            args=f"{dashboard} {scheduler_args}",
        )
        self.scheduler = self._spawn("scheduler", argv)
        self.address = eventually(self._read_scheduler_file, START_TIMEOUT, 0.005)[
            "address"
        ]
        for i in range(workers):
            self.add_worker(
                wait=False,
                name=names[i] if names else None,
                nthreads=nthreads[i] if isinstance(nthreads, list) else nthreads,
                resources=resources[i] if isinstance(resources, list) else resources,
                nanny=nanny,
                args=worker_args,
            )
        self.wait_for_workers()

    def add_worker(
        self,
        *,
        name: str | None = None,
        nthreads: int = 1,
        nanny: bool = False,
        resources: str | None = None,
        args: str = "",
        config: dict[str, Any] | None = None,
        wait: bool = True,
    ) -> WorkerProcess:
        if name is None:
            name = f"w{next(self._names)}"
        folder = self.folder / f"local-{len(self.processes)}"
        folder.mkdir()
        arguments = [f"--local-directory {folder}", "--no-dashboard", args]
        if "--memory-limit" not in args:
            arguments.append("--memory-limit 2GiB")
        if resources:
            arguments.append(f'--resources "{resources}"')
        argv = self._argv(
            self.engine.worker_command,
            scheduler=self.address,
            host=HOST,
            name=shlex.quote(name),
            nthreads=nthreads,
            nanny="--nanny" if nanny else "--no-nanny",
            args=" ".join(arguments),
        )
        process = self._spawn(f"worker {name}", argv, config=config)
        worker = WorkerProcess(name, process, nanny)
        self.workers.append(worker)
        if wait:
            self.wait_for_workers()
        return worker

    def wait_for_workers(self) -> None:
        """Waits until every worker process that lives is running, and notes addresses."""

        async def wait() -> None:
            comm = await connect(self.address)
            try:
                while True:
                    await comm.write({"op": "identity", "n_workers": -1, "reply": True})
                    known = {
                        str(info["name"]): {"address": address, **info}
                        for address, info in (await comm.read())["workers"].items()
                    }
                    for worker in self.workers:
                        worker.info = known.get(worker.name, {})
                    if all(w.info.get("status") == "running" for w in self.workers):
                        return
                    for worker in self.workers:
                        code = worker.process.returncode()
                        if code is not None:
                            raise RuntimeError(
                                f"worker {worker.name} ended with {code} while starting\n"
                                + worker.process.read_log()
                            )
                    await asyncio.sleep(0.01)
            finally:
                comm.abort()

        asyncio.run(asyncio.wait_for(wait(), START_TIMEOUT))

    def kill_worker(self, worker: WorkerProcess) -> None:
        worker.kill()
        self.workers.remove(worker)

    def close(self) -> None:
        for _, process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        for _, process in self.processes:
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _argv(self, template: str, **values: Any) -> list[str]:
        text = template.format(
            python=shlex.quote(sys.executable),
            bin=shlex.quote(str(Path(sys.executable).parent)),
            **values,
        )
        return shlex.split(text)

    def _spawn(
        self, role: str, argv: list[str], config: dict[str, Any] | None = None
    ) -> Process:
        env = process_environment(
            self._config | (config or {}),
            DASK_CONFIG=str(self.folder / "config"),
            **self._env,
        )
        log = self.folder / f"{len(self.processes)}.log"
        process = self.supervisor.spawn(argv, cwd=self.folder, env=env, log=log)
        self.processes.append((role, process))
        return process

    def _read_scheduler_file(self) -> dict[str, Any] | None:
        code = self.scheduler.returncode()
        if code is not None:
            raise RuntimeError(
                f"the scheduler ended with {code} while starting\n"
                + self.scheduler.read_log()
            )
        try:
            return json.loads(self.scheduler_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    # Asking

    def call(self, op: str, /, *, within: float = 30, **kwargs: Any) -> Any:
        """One RPC to the scheduler, without a Client."""
        return call(self.address, op, within=within, **kwargs)

    def identity(self) -> dict[str, Any]:
        return self.call("identity", n_workers=-1)

    def tasks(self) -> dict[Any, list[str]]:
        """Every key the scheduler knows, with the addresses of the workers that hold it."""
        return {key: list(workers) for key, workers in self.call("who_has").items()}

    def knows(self, *keys: Any) -> bool:
        return self.tasks().keys() >= set(keys)

    def has_forgotten(self, *keys: Any) -> bool:
        return self.tasks().keys().isdisjoint(keys)

    def processing(self) -> set[Any]:
        """The keys that were sent to a worker and have not come back."""
        return {key for keys in self.call("processing").values() for key in keys}

    def worker(self, name: str) -> WorkerProcess:
        return next(w for w in self.workers if w.name == name)

    def is_alive(self) -> bool:
        return self.scheduler.returncode() is None

    def is_clean(self) -> bool:
        """Whether the cluster answers, has its workers running and holds no task.

        A cancelled task runs on in its thread, where the next test's cannot start.
        """
        try:
            identity = self.identity()
            known = {
                (address, info["status"])
                for address, info in identity["workers"].items()
            }
            expected = {(w.address, "running") for w in self.workers}
            if known != expected or self.call("who_has"):
                return False
            busy = self.call("broadcast", msg={"op": "call_stack", "keys": None})
            return not any(busy.values())
        except (TimeoutError, OSError):
            return False

    def log_sizes(self) -> dict[Path, int]:
        return {p.log: p.log.stat().st_size for _, p in self.processes}

    def logs(self, since: dict[Path, int] | None = None) -> list[tuple[str, str]]:
        """What each process has logged, from the sizes in `since` on."""
        found = []
        for role, process in self.processes:
            with contextlib.suppress(OSError):
                text = process.log.read_bytes()[(since or {}).get(process.log, 0) :]
                found.append((role, text.decode(errors="replace")))
        return found


class Relay:
    """A TCP relay to `target`, whose connections a test can cut."""

    def __init__(self, target: str) -> None:
        import socket

        host, port = target.removeprefix("tcp://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server((HOST, 0))
        self.address = "tcp://{}:{}".format(*self._listener.getsockname())
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        import socket

        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            with self._lock:
                self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(
                    target=self._pump, args=(source, sink), daemon=True
                ).start()

    @staticmethod
    def _pump(source: Any, sink: Any) -> None:
        import socket

        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Breaks every connection; new ones are accepted."""
        import socket

        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
            self._sockets.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()
