"""Starts the outside processes of the tests and ends them again.

The tests talk to this program in JSON lines over its standard input and output. It ends
every process group it started when its standard input closes, so that a test run that is
killed leaves nothing behind.

With ``--preload`` it imports distributed once and forks itself for each
``python -m dask scheduler|worker ...``. The child runs the same entry point in its own
session, environment and working directory; only the import time is saved.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys

PRELOADED_MODULES = (
    "distributed",
    "distributed.cli.dask_scheduler",
    "distributed.cli.dask_worker",
    "distributed.dashboard.core",
    "distributed.http.scheduler.info",
    "distributed.http.scheduler.json",
    "distributed.http.scheduler.prometheus.core",
    "distributed.http.worker.prometheus.core",
    "distributed.nanny",
    "distributed.shuffle",
    "distributed.shuffle._rechunk",
    "distributed.shuffle._shuffle",
    "dask.array",
    "dask.bag",
    "dask.dataframe",
    "numpy",
    "pandas",
    "pyarrow",
    "conformance_tasks",
)


def preload() -> None:
    for name in PRELOADED_MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # Objects that live as long as the process need no visit by the children's collector,
    # which would copy their pages.
    gc.collect()
    gc.freeze()


def is_stock_command(argv: list[str]) -> bool:
    return (
        argv[:3] == [sys.executable, "-m", "dask"]
        and len(argv) > 3
        and argv[3] in ("scheduler", "worker")
    )


def run_stock_command(argv: list[str]) -> None:
    """Runs ``dask scheduler`` or ``dask worker`` inside this (forked) process."""
    import random

    import dask

    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    folder = os.environ["DASK_CONFIG"]
    dask.config.paths[:] = [folder]
    dask.config.refresh(paths=[folder])
    sys.argv = ["dask", *argv[3:]]
    if argv[3] == "scheduler":
        from distributed.cli.dask_scheduler import main
    else:
        from distributed.cli.dask_worker import main
    main.main(args=argv[4:], prog_name=f"dask {argv[3]}")


def spawn_by_fork(request: dict) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open(os.devnull, os.O_RDONLY)
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 256)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        run_stock_command(request["argv"])
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(bool(exit.code))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            import atexit

            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def spawn_by_exec(request: dict) -> int:
    with open(request["log"], "ab") as log:
        process = subprocess.Popen(
            request["argv"],
            cwd=request["cwd"],
            env=request["env"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    # The exit code is read with waitpid like that of forked children.
    process.returncode = 0
    return process.pid


def poll(pid: int, codes: dict[int, int | None]) -> int | None:
    if codes[pid] is None:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            codes[pid] = os.waitstatus_to_exitcode(status)
    return codes[pid]


def kill_group(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    # Whatever a library prints must not end up among the replies.
    os.dup2(2, 1)
    may_fork = "--preload" in sys.argv
    if may_fork:
        preload()
    print(json.dumps("ready"), file=replies, flush=True)

    codes: dict[int, int | None] = {}
    try:
        for line in sys.stdin:
            request = json.loads(line)
            reply = None
            if request["op"] == "spawn":
                try:
                    if may_fork and is_stock_command(request["argv"]):
                        reply = spawn_by_fork(request)
                    else:
                        reply = spawn_by_exec(request)
                    codes[reply] = None
                except OSError as error:
                    reply = {"error": str(error)}
            elif request["op"] == "poll":
                reply = poll(request["pid"], codes)
            print(json.dumps(reply), file=replies, flush=True)
    finally:
        # Also groups whose leader ended: a nanny's worker may have survived it.
        for pid in codes:
            kill_group(pid, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
