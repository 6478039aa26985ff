"""Python for a nanny of ``oxidask worker``, which has none of its own.

``python -m oxidask._nanny_helper`` runs nanny plugins, ``--preload-nanny`` and
``client.run(nanny=True)``. The nanny starts it when it is asked for one of these, and
talks to it over a socket at standard input. A message, in both directions, is a JSON
object and frames of Dask's protocol::

    u32 length, JSON, u32 count, then per frame: u64 length, bytes      little-endian

The first message says what the nanny is; it has no frames. Every other one is a
request as somebody sent it to the nanny, and what is true of the nanny at that time.
The answer has the frames of the reply, the variables of the next worker, and whether
the plugin wants one.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

import distributed
from distributed.core import Status, error_message
from distributed.protocol.core import dumps, loads

__all__ = ["HelperNanny", "main"]


class HelperNanny(distributed.Nanny):
    """A nanny as plugins see it; the worker is another process's business.

    Parameters
    ----------
    about
        What the nanny said of itself.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__(
            about["scheduler"],
            nthreads=about["nthreads"],
            name=about["name"],
            local_directory=about["local_directory"],
            memory_limit=about["memory_limit"] or 0,
            preload_nanny=about["preload"],
            preload_nanny_argv=about["preload_argv"],
            security=distributed.Security(**about["security"]),
        )
        self._own_address: str = about["address"]
        self._about: dict[str, Any] = {}
        #: Reason of the restart that a plugin asked for.
        self.wanted_restart: str | None = None
        # Everything that a plugin adds is for the workers as well.
        self._first_path = set(sys.path) - {self.local_directory}
        self.status = Status.running

    def is_now(self, about: dict[str, Any]) -> None:
        """Take in what is true of the nanny."""
        self._about = about

    @property
    def address(self) -> str:
        """Address of the nanny itself."""
        return self._own_address

    @property
    def worker_address(self) -> str | None:
        """Address of the worker; ``None`` if there is none."""
        address: str | None = self._about.get("worker_address")
        return address

    @property
    def worker_dir(self) -> str | None:
        """Folder of the worker."""
        directory: str | None = self._about.get("worker_dir")
        return directory

    @property
    def pid(self) -> int | None:
        """Process id of the worker."""
        pid: int | None = self._about.get("pid")
        return pid

    async def restart(self, timeout: float = 30, reason: str = "nanny-restart") -> Any:
        """Have the worker restarted once the request is answered."""
        self.wanted_restart = reason
        return "OK"

    async def kill(self, timeout: float = 5, reason: str = "nanny-kill") -> None:
        """Refuse; see `restart`."""
        raise NotImplementedError("plugins of this nanny can only restart its worker")

    async def instantiate(self) -> Status:
        """Do nothing: the nanny always has a worker."""
        return Status.running

    def variables(self) -> dict[str, str]:
        """Return environment variables of the next worker."""
        variables = {**self.pre_spawn_env, **self.env}
        path = [entry for entry in sys.path if entry not in self._first_path]
        own = variables.get("PYTHONPATH", os.environ.get("PYTHONPATH"))
        if own:
            path.append(own)
        if path:
            variables["PYTHONPATH"] = os.pathsep.join(path)
        return variables

    async def handle_request(self, frames: Sequence[bytes]) -> list[Any]:
        """Answer a request as stock's nanny would."""
        try:
            request = loads(frames)
            for name in ("reply", "close", "serializers"):
                request.pop(name, None)
            handlers: dict[str, Callable[..., Any]] = {
                "run": self._run,
                "plugin_add": self.plugin_add,
                "plugin_remove": self.plugin_remove,
            }
            answer = handlers[request.pop("op")](**request)
            if inspect.isawaitable(answer):
                answer = await answer
        except Exception as error:
            answer = error_message(error, status="uncaught-error")
        frames = dumps(answer)
        return list(frames)

    def _run(self, **request: Any) -> Any:
        return self.run(None, **request)

    async def end(self) -> None:
        """Tear preloads and plugins down."""
        await self.preloads.teardown()
        for name in list(self.plugins):
            await self.plugin_remove(name)


class Line:
    """The socket to the nanny."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> tuple[dict[str, Any], list[bytes]]:
        """Read a message."""
        (length,) = struct.unpack("<I", await self._reader.readexactly(4))
        header: dict[str, Any] = json.loads(await self._reader.readexactly(length))
        (count,) = struct.unpack("<I", await self._reader.readexactly(4))
        frames = []
        for _ in range(count):
            (length,) = struct.unpack("<Q", await self._reader.readexactly(8))
            frames.append(await self._reader.readexactly(length))
        return header, frames

    async def write(self, header: dict[str, Any], frames: Sequence[Any] = ()) -> None:
        """Write a message."""
        text = json.dumps(header).encode()
        self._writer.write(struct.pack("<I", len(text)) + text)
        self._writer.write(struct.pack("<I", len(frames)))
        for frame in frames:
            frame = memoryview(frame).cast("B")
            self._writer.write(struct.pack("<Q", len(frame)))
            self._writer.write(frame)
        await self._writer.drain()


async def serve(line: Line) -> None:
    """Answer requests until the nanny is gone."""
    about, _ = await line.read()
    try:
        nanny = HelperNanny(about)
        await nanny.preloads.start()
    except BaseException as error:
        await line.write({"error": f"{type(error).__name__}: {error}"})
        raise
    await line.write({"variables": nanny.variables(), "restart": None})
    while True:
        try:
            about, frames = await line.read()
        except asyncio.IncompleteReadError:
            return
        nanny.is_now(about)
        nanny.wanted_restart = None
        answer = []
        if about["op"] == "end":
            await nanny.end()
        else:
            answer = await nanny.handle_request(frames)
        header = {"variables": nanny.variables(), "restart": nanny.wanted_restart}
        await line.write(header, answer)


async def main() -> None:
    """Serve the nanny at standard input."""
    connection = socket.socket(fileno=os.dup(0))
    # What a plugin starts must not find the line.
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    await serve(Line(*await asyncio.open_connection(sock=connection)))


if __name__ == "__main__":
    asyncio.run(main())
