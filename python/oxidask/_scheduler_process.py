"""The scheduler as a process that a cluster object owns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import dask.config
from dask.utils import parse_timedelta
from distributed.core import Status

from oxidask._process import OwnedProcess, security_config

__all__ = ["SchedulerProcess"]

#: Seconds a scheduler that was asked to close may take before it is terminated,
#: and after that before it is killed.
CLOSE_TIMEOUT = 5.0

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


class SchedulerProcess(OwnedProcess):
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

    _what = "Scheduler"

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        command: Sequence[str] | None = None,
        log_level: int | None = None,
    ) -> None:
        super().__init__(command, log_level)
        self._options, self._config = command_line(options or {})
        self.contact_address: str | None = dask.config.get(
            "distributed.scheduler.contact-address", None
        )
        self.contact_address = self._config.get(
            _CONFIG_KEYS["contact_address"], self.contact_address
        )

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
            arguments = []
            for option, value in {**self._options, "--scheduler-file": file}.items():
                arguments += [option] if value is None else [option, value]
            self._spawn(arguments, self._config)
            try:
                identity = await asyncio.wait_for(
                    self._read_file(file), _start_timeout()
                )
            except TimeoutError:
                self._fail("did not start in time")
        self.address = identity["address"]
        await super().start()

    async def close(self) -> None:
        """End the process: wait for it if it is closing, terminate it, kill it."""
        if not self.has_exited:
            # A cluster has asked it to close by a message before.
            asked = self.status == Status.running
            self.status = Status.closing
            if not (asked and await self._wait_for_exit(CLOSE_TIMEOUT)):
                await self._terminate(CLOSE_TIMEOUT)
        await super().close()


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
                config.update(security_config(value, "scheduler"))
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


def _start_timeout() -> float:
    timeout = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"), "s")
    return 30.0 if timeout is None else float(timeout)
