"""The scheduler as a process that a cluster object owns."""

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
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import dask.config
from dask.utils import parse_timedelta
from distributed.core import Status
from distributed.deploy.spec import ProcessInterface

from oxidask._bound import PARENT_VARIABLE

__all__ = ["SchedulerProcess"]

logger = logging.getLogger(__name__)

#: Lines of the scheduler's log that are kept: as many as a scheduler itself
#: keeps by default (``distributed.admin.log-length``).
LOG_LINE_COUNT_MAX = 10_000

#: Seconds between two looks for the scheduler file; a line in the log looks too.
POLL_INTERVAL = 0.05

#: Seconds a scheduler that was asked to close may take before it is terminated,
#: and after that before it is killed.
CLOSE_TIMEOUT = 5.0

_LOG_LEVEL = re.compile(r" - (DEBUG|INFO|WARNING|ERROR|CRITICAL) - ")

# Arguments of `Scheduler` that are configuration keys.
_CONFIG_KEYS = {
    "allowed_failures": "distributed.scheduler.allowed-failures",
    "blocked_handlers": "distributed.scheduler.blocked-handlers",
    "contact_address": "distributed.scheduler.contact-address",
    "validate": "distributed.scheduler.validate",
    "worker_ttl": "distributed.scheduler.worker-ttl",
}

# Arguments of `Scheduler` that are options of the command line.
_OPTIONS = {
    "host": "--host",
    "http_prefix": "--dashboard-prefix",
    "idle_timeout": "--idle-timeout",
    "interface": "--interface",
    "port": "--port",
    "scheduler_file": "--scheduler-file",
}


class SchedulerProcess(ProcessInterface):
    """A scheduler in a process of its own, as ``SpecCluster`` wants it.

    Parameters
    ----------
    options
        Keyword arguments as for ``distributed.Scheduler``.
    command
        Command to which the options of ``dask scheduler`` are appended.
    log_level
        Lines below this level are kept but not printed; a false value prints all.

    Raises
    ------
    TypeError
        If there is an option for which neither the command line nor the
        configuration has a place.
    """

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        command: Sequence[str] | None = None,
        log_level: int | None = None,
    ) -> None:
        super().__init__()
        self._options, self._config = command_line(options or {})
        self._command = command
        self._log_level = log_level
        self._log: collections.deque[str] = collections.deque(maxlen=LOG_LINE_COUNT_MAX)
        self._process: subprocess.Popen[str] | None = None
        self._exited = asyncio.Event()
        self._progress = asyncio.Event()
        self.contact_address: str | None = dask.config.get(
            "distributed.scheduler.contact-address", None
        )
        self.contact_address = self._config.get(
            _CONFIG_KEYS["contact_address"], self.contact_address
        )

    @property
    def pid(self) -> int | None:
        """Process id of the scheduler; ``None`` before it was started."""
        return None if self._process is None else self._process.pid

    @property
    def has_exited(self) -> bool:
        """Whether the process was started and has ended."""
        return self._exited.is_set()

    def log_lines(self) -> list[str]:
        """Return the last lines that the process wrote, oldest first."""
        return list(self._log)

    async def start(self) -> None:
        """Start the process and wait until it accepts connections.

        Raises
        ------
        RuntimeError
            If it ends or says nothing within ``distributed.comm.timeouts.connect``.
        """
        with tempfile.TemporaryDirectory(prefix="oxidask-") as directory:
            file = self._options.get("--scheduler-file")
            if file is None:
                file = os.path.join(directory, "scheduler.json")
            else:
                # One left over from an earlier scheduler would be believed.
                with contextlib.suppress(FileNotFoundError):
                    os.remove(file)
            self._spawn({**self._options, "--scheduler-file": file})
            try:
                identity = await asyncio.wait_for(
                    self._read_scheduler_file(file), _start_timeout()
                )
            except TimeoutError:
                self._fail("did not start in time")
        self.address = identity["address"]
        await super().start()

    def _spawn(self, options: Mapping[str, str | None]) -> None:
        arguments = []
        for option, value in options.items():
            arguments += [option] if value is None else [option, value]
        loop = asyncio.get_running_loop()
        environment = _environment(self._config)
        parent = str(os.getpid())
        if self._command is None:
            command = [sys.executable, "-m", "oxidask", "scheduler"]
            environment[PARENT_VARIABLE] = parent
        else:
            command = [sys.executable, "-m", "oxidask._bound", parent, *self._command]
        self._process = subprocess.Popen(
            command + arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        threading.Thread(
            target=self._follow,
            args=(self._process, loop),
            name="oxidask-scheduler-log",
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
            logger.error(
                "Scheduler at %r ended unexpectedly with exit code %s",
                self.address,
                self._process.returncode,
            )
            self.status = Status.failed

    async def _read_scheduler_file(self, file: str) -> dict[str, Any]:
        while True:
            # Not there yet, or not written to its end.
            with contextlib.suppress(OSError, json.JSONDecodeError):
                with open(file, encoding="utf-8") as stream:
                    identity: dict[str, Any] = json.load(stream)
                return identity
            if self._exited.is_set():
                assert self._process is not None
                self._fail(f"ended with exit code {self._process.returncode}")
            self._progress.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._progress.wait(), POLL_INTERVAL)

    def _fail(self, what: str) -> None:
        self.status = Status.failed
        last = "\n".join(self.log_lines()[-20:])
        raise RuntimeError(f"scheduler process {what}; its last output:\n{last}")

    async def close(self) -> None:
        """End the process: wait for it if it is closing, terminate it, kill it."""
        if self._process is not None and not self._exited.is_set():
            # A cluster has asked it to close by a message before.
            asked = self.status == Status.running
            self.status = Status.closing
            if not (asked and await self._wait_for_exit()):
                self._process.terminate()
                if not await self._wait_for_exit():
                    self._process.kill()
                    await self._exited.wait()
        await super().close()

    async def _wait_for_exit(self) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._exited.wait(), CLOSE_TIMEOUT)
        return self._exited.is_set()


def command_line(
    options: Mapping[str, Any],
) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Options of the command line and configuration for arguments of ``Scheduler``.

    Parameters
    ----------
    options
        Keyword arguments as for ``distributed.Scheduler``.

    Returns
    -------
    tuple
        Options with their values (``None`` for a flag), and configuration by
        dotted key.

    Raises
    ------
    TypeError
        If an argument has no counterpart.
    """
    line: dict[str, str | None] = {}
    config: dict[str, Any] = {}
    unknown = []
    for name, value in options.items():
        if name == "dashboard":
            if value is False:
                line["--no-dashboard"] = None
        elif name == "protocol":
            if value:
                line["--protocol"] = value.rstrip(":/")
        elif name == "security":
            if value is not None:
                config.update(_security_config(value))
        elif name == "service_kwargs":
            prefix = ((value or {}).get("dashboard") or {}).get("prefix")
            if prefix:
                line["--dashboard-prefix"] = prefix
        elif value is None or (name == "services" and not value):
            continue
        elif name == "dashboard_address":
            line["--dashboard-address"] = str(value)
        elif name == "preload":
            config["distributed.scheduler.preload"] = (
                [value] if isinstance(value, str) else list(value)
            )
        elif name in _CONFIG_KEYS:
            config[_CONFIG_KEYS[name]] = value
        elif name in _OPTIONS:
            line[_OPTIONS[name]] = str(value)
        else:
            unknown.append(name)
    if unknown:
        raise TypeError(
            f"scheduler arguments {sorted(unknown)} are not supported by oxidask"
        )
    return line, config


def _security_config(security: Any) -> dict[str, Any]:
    """TLS as configuration: files by name, and temporary credentials as text."""
    tls = security.get_tls_config_for_role("scheduler")
    versions = {ssl.TLSVersion.TLSv1_2: 1.2, ssl.TLSVersion.TLSv1_3: 1.3}
    return {
        "distributed.comm.require-encryption": bool(security.require_encryption),
        "distributed.comm.tls.ca-file": tls["ca_file"],
        "distributed.comm.tls.ciphers": tls["ciphers"],
        "distributed.comm.tls.scheduler.cert": tls["cert"],
        "distributed.comm.tls.scheduler.key": tls["key"],
        "distributed.comm.tls.min-version": versions.get(security.tls_min_version),
        "distributed.comm.tls.max-version": versions.get(security.tls_max_version),
    }


def _start_timeout() -> float:
    timeout = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"), "s")
    return 30.0 if timeout is None else float(timeout)


def _environment(config: Mapping[str, Any]) -> dict[str, str]:
    """Environment in which the scheduler sees what this process would see."""
    environment = {
        name: value
        for name, value in os.environ.items()
        # Variables win over inherited configuration; ours has them merged with
        # what this program set since.
        if not name.startswith("DASK_") or name in ("DASK_CONFIG", "DASK_ROOT_CONFIG")
    }
    merged = _plain(dask.config.config)
    with dask.config.set(config, config=merged):
        environment["DASK_INTERNAL_INHERIT_CONFIG"] = dask.config.serialize(merged)
    environment["PYTHONPATH"] = os.pathsep.join(_module_path())
    return environment


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

    The graph helper has to import what the program imports, and a script's own
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
