"""Connections of this process to native servers in it: ``inproc://`` of distributed.

Stock hands messages from one event loop to another. The other end of these is native,
so that a message is encoded as for any connection, except that values for others
(``to_serialize``) go as they are: a frame holds the value, and whoever has the frame,
be it a native queue or a worker's store, keeps it alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgpack
from distributed.comm import inproc, registry
from distributed.comm.core import Comm, CommClosedError
from distributed.protocol import pickle
from distributed.protocol.core import loads
from distributed.protocol.serialize import (
    Pickled,
    Serialize,
    Serialized,
    ToPickle,
    _is_msgpack_serializable,
    msgpack_encode_default,
    register_serialization_family,
)
from distributed.utils import ensure_memoryview

from oxidask._oxidask import Channel, Reference

__all__ = ["dump_message", "install", "new_address"]

#: The family of values that do not leave this process.
_FAMILY = "reference"

#: Its sub-header, which native code knows as well.
_REFERENCE_HEADER = msgpack.dumps({"serializer": _FAMILY, "num-sub-frames": 1})


def _dump_reference(
    value: Any, context: Any = None
) -> tuple[dict[str, Any], list[Reference]]:
    return {"serializer": _FAMILY}, [Reference(value)]


def _load_reference(header: dict[str, Any], frames: Sequence[Reference]) -> Any:
    return frames[0].get()


class _Encoder:
    """Frames of one message."""

    def __init__(self) -> None:
        self.frames: list[Any] = [b""]

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Serialize):
            return self._add(
                "__Serialized__", _REFERENCE_HEADER, [Reference(value.data)]
            )
        if isinstance(value, Serialized):
            header = {**value.header, "num-sub-frames": len(value.frames)}
            packed = msgpack.dumps(
                header, default=msgpack_encode_default, use_bin_type=True
            )
            return self._add("__Serialized__", packed, value.frames)
        if isinstance(value, ToPickle):
            return self.pickled(value.data)
        if isinstance(value, Pickled):
            header = {**value.header, "num-sub-frames": len(value.frames)}
            return self._add("__Pickled__", msgpack.dumps(header), value.frames)
        return msgpack_encode_default(value)

    def or_pickled(self, value: Any) -> Any:
        """Encode what nobody knows as a pickle, as stock does."""
        encoded = self(value)
        if encoded is not value or _is_msgpack_serializable(value):
            return encoded
        return self.pickled(value)

    def pickled(self, value: Any) -> dict[str, int]:
        buffers: list[Any] = []
        header = {
            "pickled-obj": pickle.dumps(
                value, buffer_callback=lambda b: buffers.append(ensure_memoryview(b))
            ),
            "num-sub-frames": len(buffers),
        }
        return self._add("__Pickled__", msgpack.dumps(header), buffers)

    def _add(self, name: str, header: bytes, frames: Sequence[Any]) -> dict[str, int]:
        number = len(self.frames)
        self.frames.append(header)
        self.frames.extend(frames)
        return {name: number}


def dump_message(message: Any) -> list[Any]:
    """Encode a message for somebody in this process.

    ``distributed.protocol.dumps`` in which values for others stay what they are.
    """
    encoder = _Encoder()
    try:
        first = msgpack.dumps(message, default=encoder, use_bin_type=True)
    except TypeError:
        encoder = _Encoder()
        first = msgpack.dumps(message, default=encoder.or_pickled, use_bin_type=True)
    encoder.frames[0] = first
    return encoder.frames


class _NativeComm(Comm):
    """A connection to a native server, for the event loop that opened it."""

    def __init__(self, address: str, deserialize: bool = True) -> None:
        super().__init__(deserialize=deserialize)
        self._channel = Channel(address)
        self._peer_addr = address
        self._local_addr = self._channel.local_address
        self._reading: asyncio.Future[None] | None = None
        self._is_closed = False

    @property
    def local_address(self) -> str:
        return self._local_addr

    @property
    def peer_address(self) -> str:
        return self._peer_addr

    @property
    def same_host(self) -> bool:
        return True

    async def read(self, deserializers: Any = "ignored") -> Any:
        """Wait for the next message."""
        while True:
            try:
                frames = self._channel.read()
            except ConnectionResetError:
                self.abort()
                raise CommClosedError(f"in {self!r}: the peer has gone") from None
            if frames is not None:
                return loads(frames, deserialize=self.deserialize)
            await self._ring()

    async def _ring(self) -> None:
        """Wait until there may be something to read."""
        loop = asyncio.get_running_loop()
        self._reading = reading = loop.create_future()
        descriptor = self._channel.fileno()
        loop.add_reader(descriptor, _wake, reading)
        try:
            await reading
        finally:
            loop.remove_reader(descriptor)
            self._reading = None

    async def write(
        self, msg: Any, serializers: Any = None, on_error: Any = None
    ) -> int:
        """Send a message; waits while very many are unread."""
        frames = dump_message(msg)
        try:
            if not self._channel.write(frames):
                await asyncio.to_thread(self._channel.write_waiting, frames)
        except ConnectionResetError:
            raise CommClosedError(f"in {self!r}: the peer has gone") from None
        return 1

    async def close(self) -> None:
        """End the connection."""
        self.abort()

    def abort(self) -> None:
        """End the connection."""
        self._is_closed = True
        self._channel.close()
        if self._reading is not None:
            _wake(self._reading)

    def closed(self) -> bool:
        """Say whether either end has closed."""
        return self._is_closed or self._channel.is_closed()


def _wake(reading: asyncio.Future[None]) -> None:
    if not reading.done():
        reading.set_result(None)


class _Connector(inproc.InProcConnector):
    async def connect(
        self, address: str, deserialize: bool = True, **connection_args: Any
    ) -> Comm:
        try:
            return _NativeComm(f"inproc://{address}", deserialize)
        except ConnectionRefusedError:
            # One of stock's, or nobody.
            comm: Comm = await super().connect(address, deserialize, **connection_args)
            return comm


class _Backend(inproc.InProcBackend):
    def get_connector(self) -> _Connector:
        return _Connector(self.manager)


def install() -> None:
    """Let ``inproc://`` addresses lead to native servers as well as to stock's."""
    if not isinstance(registry.backends.get("inproc"), _Backend):
        register_serialization_family(_FAMILY, _dump_reference, _load_reference)
        registry.backends["inproc"] = _Backend()


def new_address() -> str:
    """Choose an address that nobody in this process has."""
    return str(inproc.new_address())
