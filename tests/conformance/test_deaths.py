"""Why workers died: what `KilledWorker` says of each of them.

Stock says how many they were. Oxidask's scheduler adds a line for each; the reason in it
is the nanny's if that is Oxidask's as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import threading
import uuid
from pathlib import Path

import pytest
from distributed import KilledWorker

TWO_ATTEMPTS = {"distributed.scheduler.allowed-failures": 1}
NO_SPILLING = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
}


def fault():
    ctypes.string_at(0)


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def leave():
    os._exit(3)


def grow():
    held = [b"x" * 10_000_000 for _ in range(40)]
    threading.Event().wait()
    return held


def grow_for_ever():
    held = []
    while True:
        held.append(b"x" * 10_000_000)


def failure(cluster, connect, function):
    future = connect(cluster).submit(function, key="killer")
    error = future.exception(timeout=60)
    assert isinstance(error, KilledWorker)
    assert error.task == "killer"
    assert error.allowed_failures == 1
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, KilledWorker)
    assert str(again) == str(error)
    assert again.last_worker.address == error.last_worker.address
    return error


def check(cluster, error, reason, without_nanny="lost connection"):
    stock = KilledWorker.__str__(error)
    text = str(error)
    assert text.startswith(stock)
    attempts = text[len(stock) :].splitlines()[1:]
    if "oxidask" not in cluster.engine.scheduler_command:
        assert attempts == []
        return
    if "oxidask" not in cluster.engine.worker_command:
        reason = without_nanny
    assert len(attempts) == 2
    for number, line in enumerate(attempts, 1):
        assert line.startswith(f"attempt {number}: tcp://127.0.0.1:")
        assert reason in line
        assert "tasks: 'killer'" in line
    assert f"{error.last_worker.address} (pid " in attempts[-1]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (fault, "was killed by SIGSEGV, a segmentation fault (signal 11)"),
        (be_killed, "was killed by SIGKILL: by somebody, or by the kernel because"),
        (leave, "exited with status 3"),
    ],
)
def test_a_nanny_says_how_its_worker_ended(fresh_cluster, connect, function, reason):
    cluster = fresh_cluster(workers=1, nanny=True, config=TWO_ATTEMPTS)
    check(cluster, failure(cluster, connect, function), reason)


def test_a_nanny_says_that_its_worker_had_too_much_memory(fresh_cluster, connect):
    cluster = fresh_cluster(
        workers=1,
        nanny=True,
        config=TWO_ATTEMPTS | NO_SPILLING,
        worker_args="--memory-limit 300MB",
    )
    error = failure(cluster, connect, grow)
    check(cluster, error, "MiB in memory; the limit is 271.8 MiB")


def test_without_a_nanny_the_connection_was_lost(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, config=TWO_ATTEMPTS)
    check(cluster, failure(cluster, connect, leave), "lost connection")


MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")

if os.access(MEMORY_GROUPS / "cgroup.procs", os.W_OK):

    @pytest.fixture
    def memory_group():
        """A cgroup of 400 MB, which processes of a group can be moved to."""
        folder = MEMORY_GROUPS / f"conformance-{uuid.uuid4().hex}"
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text("400000000")

        def move(group):
            for path in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(ProcessLookupError):
                    if os.getpgid(int(path.name)) == group:
                        (folder / "cgroup.procs").write_text(path.name)

        yield move
        for pid in (folder / "cgroup.procs").read_text().split():
            (MEMORY_GROUPS / "cgroup.procs").write_text(pid)
        folder.rmdir()

    def test_the_kernel_ends_a_worker_because_memory_ran_out(
        memory_group, fresh_cluster, connect
    ):
        cluster = fresh_cluster(
            workers=1, nanny=True, config=TWO_ATTEMPTS | NO_SPILLING
        )
        (worker,) = cluster.workers
        memory_group(worker.process.pid)
        error = failure(cluster, connect, grow_for_ever)
        check(cluster, error, "was killed by the kernel because memory ran out")
