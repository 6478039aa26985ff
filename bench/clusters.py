"""Clusters to measure, made of command lines."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
from distributed import Client
from processes import Group

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
START_TIMEOUT = 60.0


@dataclass(frozen=True)
class Engine:
    """How to start one scheduler and one worker.

    Both are templates; ``{python}``, ``{oxidask}``, ``{binary}``, ``{host}``,
    ``{port}``, ``{address}``, ``{nthreads}``, ``{memory_limit}`` and
    ``{local_directory}`` are filled in.
    """

    name: str
    scheduler: str
    worker: str


_STOCK_WORKER = (
    "{python} -m dask worker {address} --nthreads {nthreads} --no-nanny --no-dashboard "
    "--memory-limit {memory_limit} --local-directory {local_directory}"
)
_OXIDASK_WORKER = (
    "{oxidask} worker {address} --nthreads {nthreads} --no-nanny --no-dashboard "
    "--memory-limit {memory_limit} --local-directory {local_directory}"
)
_BINARY_SCHEDULER = (
    "{binary} scheduler --host {host} --port {port} --no-dashboard --python {python}"
)
ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "stock",
            "{python} -m dask scheduler --host {host} --port {port} --no-dashboard",
            _STOCK_WORKER,
        ),
        Engine(
            "oxidask",
            "{oxidask} scheduler --host {host} --port {port} --no-dashboard",
            _STOCK_WORKER,
        ),
        Engine(
            "oxidask-binary",
            _BINARY_SCHEDULER,
            _STOCK_WORKER,
        ),
        Engine("oxidask-both", _BINARY_SCHEDULER, _OXIDASK_WORKER),
    )
}


class ClusterError(Exception):
    """A process of the cluster did not start; the text ends with its log."""


@dataclass
class Cluster:
    """A scheduler and workers on this machine, stopped by `close`.

    Attributes
    ----------
    accept_s:
        From the start of the scheduler's command until it answered a handshake.
    workers_s:
        From there until all workers were known, or 0 without workers.
    """

    engine: Engine
    workers: int
    nthreads: int = 1
    memory_limit: str = "4GB"
    address: str = ""
    accept_s: float = 0.0
    workers_s: float = 0.0
    scheduler_group: Group = field(default=Group(()))
    helper_group: Group = field(default=Group(()))
    worker_group: Group = field(default=Group(()))
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _folder: Path = Path()
    _accepted: float = 0.0

    def start(self) -> Cluster:
        """Start all processes; returns when the scheduler answers."""
        self._folder = Path(tempfile.mkdtemp(prefix="bench-"))
        port = _free_port()
        self.address = f"tcp://{HOST}:{port}"
        started = time.perf_counter()
        scheduler = self._spawn("scheduler", self.engine.scheduler, port)
        while not _answers(HOST, port):
            if scheduler.poll() is not None:
                raise ClusterError(f"scheduler ended at once\n{self._logs()}")
            if time.perf_counter() - started > START_TIMEOUT:
                raise ClusterError(
                    f"scheduler did not answer in {START_TIMEOUT} s\n{self._logs()}"
                )
            time.sleep(0.001)
        self._accepted = time.perf_counter()
        self.accept_s = self._accepted - started
        workers = [
            self._spawn(f"worker-{i}", self.engine.worker, port)
            for i in range(self.workers)
        ]
        self.scheduler_group = Group((scheduler.pid,), children=False)
        self.helper_group = Group((scheduler.pid,), parents=False)
        self.worker_group = Group(tuple(worker.pid for worker in workers))
        return self

    def connect(self) -> Client:
        """A client that sees all workers.

        Raises
        ------
        ClusterError
            If they do not appear in time.
        """
        client = Client(self.address, timeout=START_TIMEOUT)
        if self.workers:
            try:
                client.wait_for_workers(self.workers, timeout=START_TIMEOUT)
            except TimeoutError as error:
                raise ClusterError(f"workers did not appear\n{self._logs()}") from error
            self.workers_s = time.perf_counter() - self._accepted
        return client

    def close(self) -> None:
        """Stop all processes and remove their files."""
        for process in reversed(self._processes):
            process.terminate()
        # Nobody waits for what they say: a stock worker whose peer is gone already
        # takes ten seconds to end.
        deadline = time.monotonic() + 1.0
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _spawn(self, name: str, template: str, port: int) -> subprocess.Popen[bytes]:
        folder = self._folder / name
        folder.mkdir()
        command = template.format(
            python=sys.executable,
            oxidask=Path(sys.executable).with_name("oxidask"),
            binary=HERE.parent / "target" / "release" / "oxidask",
            host=HOST,
            port=port,
            address=self.address,
            nthreads=self.nthreads,
            memory_limit=self.memory_limit,
            local_directory=folder,
        )
        path = os.pathsep.join(
            [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                shlex.split(command),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **one_thread, "PYTHONPATH": path},
            )
        self._processes.append(process)
        return process

    def _logs(self) -> str:
        texts = [
            f"{log.name}: {log.read_text(errors='replace')[-2000:]}"
            for log in sorted(self._folder.glob("*.log"))
        ]
        return "\n".join(texts)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def _answers(host: str, port: int) -> bool:
    """Whether something there takes connections and sends its handshake."""
    hello = msgpack.packb(
        {"compression": None, "python": [3, 11, 0], "pickle-protocol": 5}
    )
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(
                struct.pack("<QQQ", 16 + len(hello), 1, len(hello)) + hello
            )
            return len(connection.recv(8)) > 0
    except OSError:
        return False
