"""Scheduler and workers on threads of the program that uses them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import dask.config
import distributed
from distributed.core import Status
from distributed.deploy.spec import ProcessInterface
from distributed.versions import get_versions

# Two of them only so that native code finds them imported when it starts.
from oxidask import (
    _graph_threads,  # noqa: F401
    _inproc,
    _scheduler_process,
    _worker,  # noqa: F401
    _worker_process,
)
from oxidask._oxidask import Guest, read_logs, take_logs
from oxidask._process import environment

__all__ = ["LocalScheduler", "LocalWorker"]

# Every client and worker asks for them, the first one for longer than all else takes.
get_versions()

#: Seconds that a scheduler which was asked to close by a message may take.
CLOSE_TIMEOUT = 5.0


class _Server(ProcessInterface):
    """A native server with a thread of its own, as ``SpecCluster`` wants it."""

    #: What it is: the subcommand that would start it.
    _what: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._guest = Guest()
        self._ended = asyncio.Event()

    async def _run(self, arguments: Sequence[str], config: Mapping[str, Any]) -> None:
        """Start the server and wait until it has an address."""
        _inproc.install()
        loop = asyncio.get_running_loop()
        running: asyncio.Future[str] = loop.create_future()
        variables = environment(config)
        known = [(name, text) for name, text in variables.items() if "DASK" in name]
        thread = threading.Thread(
            target=_work,
            args=(
                self._guest,
                ["oxidask", self._what, *arguments],
                known,
                _Teller(loop, running, weakref.WeakMethod(self._on_end)),
            ),
            name=f"oxidask-{self._what}",
            daemon=True,
        )
        thread.start()
        try:
            self.address = await running
        except Exception:
            self.status = Status.failed
            raise

    def _on_end(self) -> None:
        self._ended.set()
        if self.status == Status.running:
            self.status = Status.closed
            self._event_finished.set()

    async def _close(self, reason: str) -> None:
        self.status = Status.closing
        self._guest.close(reason, True)
        if self.address is not None:
            await self._ended.wait()
        await super().close()


class _Teller:
    """Tells the event loop of a server what its thread sees."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        running: asyncio.Future[str],
        on_end: Callable[[], Callable[[], None] | None],
    ) -> None:
        self._loop = loop
        self._running = running
        self._on_end = on_end

    def running(self, address: str) -> None:
        self._tell(self._is_running, address)

    def failed(self, error: Exception) -> None:
        self._tell(self._has_failed, error)

    def ended(self) -> None:
        self._tell(self._has_ended)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        # A loop that is closed wants to know nothing.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _is_running(self, address: str) -> None:
        if not self._running.done():
            self._running.set_result(address)

    def _has_failed(self, error: Exception) -> None:
        if not self._running.done():
            self._running.set_exception(error)

    def _has_ended(self) -> None:
        self._has_failed(RuntimeError("it was closed while it started"))
        on_end = self._on_end()
        if on_end is not None:
            on_end()


def _work(
    guest: Guest,
    arguments: Sequence[str],
    variables: Sequence[tuple[str, str]],
    teller: _Teller,
) -> None:
    with _logging:
        try:
            guest.run(arguments, variables, teller.running)
        except Exception as error:
            teller.failed(error)
    teller.ended()


class _Logging:
    """Hands what native servers log to Python's logging, while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server_count = 0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._server_count += 1
            if self._server_count == 1:
                read_logs(True)
                self._thread = threading.Thread(
                    target=self._forward, name="oxidask-logs", daemon=True
                )
                self._thread.start()

    def __exit__(self, *_exception: Any) -> None:
        with self._lock:
            self._server_count -= 1
            if self._server_count == 0:
                read_logs(False)
                assert self._thread is not None
                self._thread.join()

    def _forward(self) -> None:
        while records := take_logs():
            for name, level, message in records:
                # The worker's own handlers know what they have written themselves.
                logging.getLogger(name).log(
                    level, "%s", message, extra={"is_native": True}
                )


_logging = _Logging()


class LocalScheduler(_Server):
    """A scheduler within this process.

    Parameters
    ----------
    options
        Keyword arguments as for ``distributed.Scheduler``.

    Raises
    ------
    TypeError
        If there is an option for which neither the command line nor the
        configuration has a place.
    ValueError
        If an ``inproc`` scheduler is to listen somewhere.
    """

    _what = "scheduler"

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        options = dict(options or {})
        if (options.get("protocol") or "").startswith("inproc"):
            if options.get("host") or options.get("port") or options.get("interface"):
                raise ValueError(
                    "Can not specify inproc protocol and host or port or interface"
                )
            options["host"] = _inproc.new_address()
        self._options, self._config = _scheduler_process.command_line(options)
        self.contact_address: str | None = self._config.get(
            "distributed.scheduler.contact-address",
            dask.config.get("distributed.scheduler.contact-address", None),
        )

    async def start(self) -> None:
        """Start it and wait until it accepts connections."""
        arguments = [
            option if value is None else f"{option}={value}"
            for option, value in self._options.items()
        ]
        await self._run(arguments, self._config)
        await super().start()

    async def close(self) -> None:
        """End it, if no message has done so."""
        if self.status == Status.running and not self._ended.is_set():
            # A cluster has sent one before.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), CLOSE_TIMEOUT)
        await self._close("scheduler-close")


class LocalWorker(_Server):
    """A worker within this process.

    Has the attributes of the worker that tasks get by ``get_worker()``, such as ``data``
    and ``plugins``.

    Parameters
    ----------
    scheduler
        Address of the scheduler.
    **options
        Keyword arguments as for ``distributed.Worker``.

    Raises
    ------
    TypeError
        If there is an option for which neither the command line nor the
        configuration has a place.
    """

    _what = "worker"

    def __init__(self, scheduler: str, **options: Any) -> None:
        super().__init__()
        self.name = options.get("name")
        # What native code logs goes to Python's logging, which is silent already.
        options.pop("silence_logs", None)
        self._config: dict[str, Any] = dict(options.pop("config", None) or {})
        options["worker_port"] = options.pop("port", None)
        if scheduler.startswith("inproc"):
            options["host"] = _inproc.new_address()
        arguments, config = _worker_process.command_line(options)
        self._arguments = [scheduler, "--no-nanny", *arguments]
        self._config.update(config)

    async def start(self) -> None:
        """Start it and wait until it has registered."""
        await self._run(self._arguments, self._config)
        await super().start()

    async def close(self) -> None:
        """End it, and wait for the tasks that it runs."""
        await self._close("worker-close")

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not here.
        address = self.__dict__.get("address")
        if address is not None and not name.startswith("_"):
            for worker in list(distributed.Worker._instances):
                if worker.contact_address == address:
                    return getattr(worker, name)
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}"
        )
