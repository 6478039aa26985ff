"""Drives a graph helper over its sockets, as the scheduler does."""

from __future__ import annotations

import array
import contextlib
import itertools
import pickle
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgpack

SOURCE = Path(__file__).parents[2] / "python" / "oxidask" / "_graph_helper.py"


class Channel:
    """One side of a connection that carries length-prefixed msgpack maps."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.stream.settimeout(60)
        self._next_id = 0

    def close(self) -> None:
        self.stream.close()

    def send(self, op: str, descriptors: tuple[int, ...] = (), **fields: Any) -> int:
        self._next_id += 1
        body = msgpack.packb({"id": self._next_id, "op": op, **fields})
        data = struct.pack("<I", len(body)) + body
        if descriptors:
            socket.send_fds(self.stream, [data], descriptors)
        else:
            self.stream.sendall(data)
        return self._next_id

    def receive(self) -> dict[str, Any]:
        (length,) = struct.unpack("<I", self._exactly(4))
        return msgpack.unpackb(
            self._exactly(length), use_list=False, strict_map_key=False
        )

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = self.stream.recv(length - len(data))
            if not part:
                raise ConnectionResetError("the helper closed the connection")
            data += part
        return bytes(data)

    def wait_closed(self) -> None:
        """Return when the peer is gone; a peer killed in mid-request resets."""
        with contextlib.suppress(ConnectionResetError):
            assert self.stream.recv(1) == b""

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Answer of a request; raises the exception of a failed one."""
        number = self.send(op, **fields)
        answer = self.receive()
        assert answer.pop("id") == number
        if "error" in answer:
            exception = pickle.loads(answer["error"]["exception"])
            exception.helper_error = answer["error"]
            raise exception
        return answer


class HelperProcess:
    """A zygote with its control channel."""

    def __init__(self, as_file: bool = False) -> None:
        ours, theirs = socket.socketpair()
        program = [str(SOURCE)] if as_file else ["-c", SOURCE.read_text()]
        self._directory = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, *program, str(theirs.fileno()), self._directory.name],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.control = Channel(ours)
        self.hello = self.control.receive()
        self._channels: list[Channel] = []

    def fork(self, **setup: Any) -> tuple[int, Channel]:
        ours, theirs = socket.socketpair()
        number = self.control.send("fork", (theirs.fileno(),))
        theirs.close()
        while (answer := self.control.receive())["id"] != number:
            assert answer["op"] == "reap"
        channel = Channel(ours)
        self._channels.append(channel)
        channel.ask("setup", sys_path=[str(Path(__file__).parent)], **setup)
        return answer["pid"], channel

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self.control.close()
        self.process.wait(30)
        self._directory.cleanup()


def blob(expr: Any) -> dict[str, Any]:
    """What stands for ``expr_ser`` in a request."""
    from distributed.protocol import serialize, to_serialize

    header, frames = serialize(to_serialize(expr), on_error="raise")
    return serialized_blob(header, frames)


def serialized_blob(header: dict[str, Any], frames: Any) -> dict[str, Any]:
    return {"header": msgpack.packb(header), "frames": [bytes(f) for f in frames]}


def pickled(value: Any) -> dict[str, Any]:
    """What stands for a ``__Pickled__`` node in a request."""
    from distributed.protocol import pickle as stock_pickle

    buffers: list[Any] = []
    stream = stock_pickle.dumps(value, buffer_callback=buffers.append)
    return {
        "header": msgpack.packb({"pickled-obj": stream, "compression": ()}),
        "frames": [bytes(memoryview(b)) for b in buffers],
    }


def u32(data: bytes) -> list[int]:
    return list(array.array("I", data))


class Expanded:
    """A structure, read the way the scheduler reads it."""

    def __init__(self, channel: Channel, answer: dict[str, Any]) -> None:
        self.answer = answer
        self.n = n = answer["n"]
        self.keys = answer["keys"]
        offsets, dependencies = u32(answer["offsets"]), u32(answer["dependencies"])
        assert len(offsets) == n + 1
        assert offsets[-1] == len(dependencies)
        self.dependencies = {
            self.keys[i]: {
                self.keys[d] for d in dependencies[offsets[i] : offsets[i + 1]]
            }
            for i in range(n)
        }
        self.flags = dict(zip(self.keys, answer["flags"], strict=False))
        self.specs = list(answer["specs"])
        self._channel = channel

    def nodes(self, order: list[int] | None = None) -> dict[Any, Any]:
        """Every node again, through whichever way its spec takes."""
        from call_reference import task_from_call

        nodes: dict[Any, Any] = {}
        pickles = iter(self.answer["pickles"])
        call_offsets = u32(self.answer["call_offsets"])
        calls = iter(itertools.pairwise(call_offsets))
        order = order if order is not None else list(range(self.n))
        for i, spec in enumerate(self.specs):
            key = self.keys[i]
            if spec == 0:
                nodes[key] = load_spec(next(pickles))
            elif spec == 1:
                start, end = next(calls)
                call = self.answer["calls"][start:end]
                nodes[key] = task_from_call(key, call, self.answer["functions"])
        assert next(pickles, None) is None
        assert next(calls, None) is None
        if 2 in self.specs:
            packed = self._channel.ask("pack", order=array.array("I", order).tobytes())
            cuts = u32(packed["cuts"])
            assert len(cuts) == len(packed["bundles"]) + 1
            assert cuts[0] == 0
            assert cuts[-1] == self.n
            for number, bundle in enumerate(packed["bundles"]):
                members = [
                    i
                    for i in order[cuts[number] : cuts[number + 1]]
                    if self.specs[i] == 2
                ]
                specs = self._channel.ask("explode", bundle=bundle)["specs"]
                for i, spec in zip(members, specs, strict=True):
                    nodes[self.keys[i]] = load_spec(spec)
        assert len(nodes) == self.n
        return nodes


def load_spec(spec: Any) -> Any:
    if isinstance(spec, bytes):
        return pickle.loads(spec)
    stream, buffers = spec
    return pickle.loads(stream, buffers=buffers)


def expand(channel: Channel, expr: Any, keys: Any = (), **fields: Any) -> Expanded:
    """Expand an expression, or a blob made from one."""
    request = expr if isinstance(expr, dict) else blob(expr)
    return Expanded(
        channel, channel.ask("expand", expr=request, keys=list(keys), **fields)
    )
