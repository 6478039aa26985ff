"""A worker as a process that a cluster object owns."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from distributed.core import Status

from oxidask._process import OwnedProcess, security_config

__all__ = ["WorkerProcess"]

#: Seconds that a nanny which was terminated may take before it is killed. It gives
#: its worker eight of them.
CLOSE_TIMEOUT = 15.0

# Arguments of `Nanny` and `Worker` that are configuration keys.
_CONFIG_KEYS = {
    "validate": "distributed.worker.validate",
}

# Arguments of `Nanny` and `Worker` that are options of the command line.
_OPTIONS = {
    "death_timeout": "--death-timeout",
    "host": "--host",
    "interface": "--interface",
    "lifetime": "--lifetime",
    "lifetime_stagger": "--lifetime-stagger",
    "local_directory": "--local-directory",
    "name": "--name",
    "nthreads": "--nthreads",
    "port": "--nanny-port",
    "scheduler_sni": "--scheduler-sni",
    "worker_port": "--worker-port",
}


class WorkerProcess(OwnedProcess):
    """``oxidask worker``: a nanny, and the worker that it looks after.

    Parameters
    ----------
    scheduler
        Address of the scheduler.
    **options
        Keyword arguments as for ``distributed.Nanny``.

    Raises
    ------
    TypeError
        If there is an option for which neither the command line nor the
        configuration has a place.
    """

    _what = "Worker"

    #: Command to which the options of ``dask worker`` are appended. ``None`` is
    #: ``python -m oxidask worker`` with the interpreter of this process. For custom
    #: binaries, and for tests.
    command: ClassVar[Sequence[str] | None] = None

    def __init__(self, scheduler: str, **options: Any) -> None:
        super().__init__(self.command, options.pop("silence_logs", None))
        self.name = options.get("name")
        self._scheduler = scheduler
        self._variables = {
            name: str(value) for name, value in (options.pop("env", None) or {}).items()
        }
        self._config: dict[str, Any] = dict(options.pop("config", None) or {})
        self._arguments, config = command_line(options)
        self._config.update(config)

    async def start(self) -> None:
        """Start the process and wait until its worker has registered.

        Raises
        ------
        RuntimeError
            If it ends before.
        """
        with tempfile.TemporaryDirectory(prefix="oxidask-") as directory:
            file = os.path.join(directory, "worker.json")
            arguments = [self._scheduler, f"--announce={file}", *self._arguments]
            self._spawn(arguments, self._config, self._variables)
            content = await self._read_file(file)
        self.address = content["nannies"][0]
        await super().start()

    def _ended_by_itself(self, exit_code: int) -> None:
        # The scheduler has retired it, or its lifetime is over.
        if exit_code == 0:
            self.status = Status.closed
        else:
            super()._ended_by_itself(exit_code)

    async def close(self) -> None:
        """End nanny and worker."""
        self.status = Status.closing
        await self._terminate(CLOSE_TIMEOUT)
        await super().close()


def command_line(options: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Arguments of the command line and configuration for arguments of ``Nanny``.

    Parameters
    ----------
    options
        Keyword arguments as for ``distributed.Nanny``.

    Returns
    -------
    tuple
        Arguments, and configuration by dotted key.

    Raises
    ------
    TypeError
        If an argument has no counterpart.
    """
    line: list[str] = []
    last: list[str] = []
    config: dict[str, Any] = {}
    unknown = []
    for name, value in options.items():
        if name == "memory_limit":
            line.append(f"--memory-limit={value or 0}")
        elif name == "dashboard":
            if not value:
                line.append("--no-dashboard")
        elif name == "lifetime_restart":
            if value is not None:
                line.append(f"--{'' if value else 'no-'}lifetime-restart")
        elif value is None or (name == "services" and not value):
            continue
        elif name == "security":
            config.update(security_config(value, "worker"))
        elif name == "protocol":
            line.append(f"--protocol={value.rstrip(':/')}")
        elif name == "resources":
            amounts = (f"{resource}={amount}" for resource, amount in value.items())
            line.append(f"--resources={' '.join(amounts)}")
        elif name == "dashboard_address":
            line.append(f"--dashboard-address={value}")
        elif name in ("preload", "preload_nanny"):
            modules = [value] if isinstance(value, str) else value
            option = f"--{name.replace('_', '-')}"
            line += [f"{option}={module}" for module in modules]
        elif name == "preload_argv":
            last = ["--", *value]
        elif name in _CONFIG_KEYS:
            config[_CONFIG_KEYS[name]] = value
        elif name in _OPTIONS:
            line.append(f"{_OPTIONS[name]}={value}")
        else:
            unknown.append(name)
    if unknown:
        raise TypeError(
            f"worker arguments {sorted(unknown)} are not supported by oxidask; stock's "
            "workers take them"
        )
    return line + last, config
