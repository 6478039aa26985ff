"""Processes of ours that a cluster object owns."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import os
import re
import ssl
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import dask.config
from distributed.core import Status
from distributed.deploy.spec import ProcessInterface

from oxidask._bound import PARENT_VARIABLE

__all__ = ["OwnedProcess", "environment", "security_config"]

logger = logging.getLogger(__name__)

#: Lines of a process's log that are kept: as many as a scheduler itself keeps by
#: default (``distributed.admin.log-length``).
LOG_LINE_COUNT_MAX = 10_000

#: Seconds between two looks for the file by which a process says that it runs; a
#: line in the log looks too.
POLL_INTERVAL = 0.05

_LOG_LEVEL = re.compile(r" - (DEBUG|INFO|WARNING|ERROR|CRITICAL) - ")


class OwnedProcess(ProcessInterface):
    """A process that ends with this one, as ``SpecCluster`` wants it.

    Parameters
    ----------
    command
        Command to which the options are appended.
    log_level
        Lines below this level are kept but not printed; a false value prints all.
    """

    #: What it is, for people; in small letters, the subcommand that starts it.
    _what: ClassVar[str]

    def __init__(self, command: Sequence[str] | None, log_level: int | None) -> None:
        super().__init__()
        self._command = command
        self._log_level = log_level
        self._log: collections.deque[str] = collections.deque(maxlen=LOG_LINE_COUNT_MAX)
        self._process: subprocess.Popen[str] | None = None
        self._exited = asyncio.Event()
        self._progress = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process id; ``None`` before it was started."""
        return None if self._process is None else self._process.pid

    @property
    def has_exited(self) -> bool:
        """Whether the process was started and has ended."""
        return self._exited.is_set()

    def log_lines(self) -> list[str]:
        """Return the last lines that the process wrote, oldest first."""
        return list(self._log)

    def _spawn(
        self,
        arguments: Sequence[str],
        config: Mapping[str, Any],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        own = {**environment(config), **(variables or {})}
        parent = str(os.getpid())
        if self._command is None:
            command = [sys.executable, "-m", "oxidask", self._what.lower()]
            own[PARENT_VARIABLE] = parent
        else:
            command = [sys.executable, "-m", "oxidask._bound", parent, *self._command]
        self._process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=own,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        threading.Thread(
            target=self._follow,
            args=(self._process, loop),
            name=f"oxidask-{self._what.lower()}-log",
            daemon=True,
        ).start()

    def _follow(
        self, process: subprocess.Popen[str], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Read the log of the process to its end, on a thread of its own."""
        visible = True
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._log.append(line.rstrip("\n"))
                visible = self._is_visible(line, visible)
                if visible:
                    with contextlib.suppress(ValueError, OSError):
                        sys.stderr.write(line)
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._progress.set)
        process.wait()
        # The loop may be closed: nobody waits any more then.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._on_exit)

    def _is_visible(self, line: str, previous: bool) -> bool:
        if not self._log_level:
            return True
        match = _LOG_LEVEL.search(line)
        if match:
            level: int = getattr(logging, match[1])
            return level >= self._log_level
        # The rest of a message of several lines goes with its beginning.
        if line[:1].isspace() or line.startswith("Traceback"):
            return previous
        return True

    def _on_exit(self) -> None:
        self._exited.set()
        self._progress.set()
        if self.status == Status.running:
            assert self._process is not None
            self._ended_by_itself(self._process.returncode)

    def _ended_by_itself(self, exit_code: int) -> None:
        logger.error(
            "%s at %r ended unexpectedly with exit code %s",
            self._what,
            self.address,
            exit_code,
        )
        self.status = Status.failed

    async def _read_file(self, file: str) -> dict[str, Any]:
        """Wait for the JSON file by which the process says that it runs."""
        while True:
            # Not there yet, or not written to its end.
            with contextlib.suppress(OSError, json.JSONDecodeError):
                with open(file, encoding="utf-8") as stream:
                    content: dict[str, Any] = json.load(stream)
                return content
            if self._exited.is_set():
                assert self._process is not None
                self._fail(f"ended with exit code {self._process.returncode}")
            self._progress.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._progress.wait(), POLL_INTERVAL)

    def _fail(self, what: str) -> None:
        self.status = Status.failed
        last = "\n".join(self.log_lines()[-20:])
        raise RuntimeError(
            f"{self._what.lower()} process {what}; its last output:\n{last}"
        )

    async def _terminate(self, timeout: float) -> None:
        """End the process: terminate it, and kill it after so many seconds."""
        if self._process is not None and not self._exited.is_set():
            self._process.terminate()
            if not await self._wait_for_exit(timeout):
                self._process.kill()
                await self._exited.wait()

    async def _wait_for_exit(self, timeout: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._exited.wait(), timeout)
        return self._exited.is_set()


def security_config(security: Any, role: str) -> dict[str, Any]:
    """TLS as configuration: files by name, and temporary credentials as text."""
    tls = security.get_tls_config_for_role(role)
    versions = {ssl.TLSVersion.TLSv1_2: 1.2, ssl.TLSVersion.TLSv1_3: 1.3}
    return {
        "distributed.comm.require-encryption": bool(security.require_encryption),
        "distributed.comm.tls.ca-file": tls["ca_file"],
        "distributed.comm.tls.ciphers": tls["ciphers"],
        f"distributed.comm.tls.{role}.cert": tls["cert"],
        f"distributed.comm.tls.{role}.key": tls["key"],
        "distributed.comm.tls.min-version": versions.get(security.tls_min_version),
        "distributed.comm.tls.max-version": versions.get(security.tls_max_version),
    }


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """Environment in which a server sees what this process would see."""
    variables = {
        name: value
        for name, value in os.environ.items()
        # Variables win over inherited configuration; ours has them merged with
        # what this program set since.
        if not name.startswith("DASK_") or name in ("DASK_CONFIG", "DASK_ROOT_CONFIG")
    }
    merged = _plain(dask.config.config)
    with dask.config.set(config, config=merged):
        variables["DASK_INTERNAL_INHERIT_CONFIG"] = dask.config.serialize(merged)
    variables["PYTHONPATH"] = os.pathsep.join(_module_path())
    return variables


def _plain(value: Any) -> Any:
    """Copy of a configuration without values that JSON cannot hold."""
    if isinstance(value, Mapping):
        items = ((str(key), _plain(item)) for key, item in value.items())
        return {key: item for key, item in items if item is not _UNSUPPORTED}
    if isinstance(value, (list, tuple)):
        return [item for item in map(_plain, value) if item is not _UNSUPPORTED]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _UNSUPPORTED


_UNSUPPORTED = object()


def _module_path() -> list[str]:
    """Where this process finds modules, without its standard library.

    Helpers and workers have to import what the program imports, and a script's own
    folder is known to nobody else.
    """
    paths = sysconfig.get_paths()
    own = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return [
        os.path.abspath(path)
        for path in sys.path
        if path not in own
        and not path.endswith(".zip")
        and not path.endswith("lib-dynload")
    ]
