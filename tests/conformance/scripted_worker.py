"""A worker whose messages are written by the test."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import time
from typing import Any

from distributed.core import connect
from distributed.protocol.serialize import to_serialize
from distributed.versions import get_versions


class ScriptedWorker:
    """Registers at a scheduler, then sends and expects what the test says."""

    def __init__(
        self, scheduler: str, name: str = "scripted", nthreads: int = 1
    ) -> None:
        # Bound, so that the address is nobody else's, but never answered.
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"
        self._scheduler = scheduler
        self._name = name
        self._nthreads = nthreads
        self._received: list[dict[str, Any]] = []

    async def __aenter__(self) -> ScriptedWorker:
        self._comm = await connect(self._scheduler)
        await self._comm.write(
            {
                "op": "register-worker",
                "reply": False,
                "address": self.address,
                "status": "init",
                "nthreads": self._nthreads,
                "name": self._name,
                "now": time.time(),
                "resources": {"GPU": 1},
                "memory_limit": 2**30,
                "local_directory": "/nowhere",
                "services": {},
                "nanny": None,
                "pid": os.getpid(),
                "versions": get_versions(),
                "metrics": METRICS,
                "extra": {},
                "stimulus_id": "scripted-connect",
                "server_id": f"Worker-{self._name}",
            },
            serializers=["msgpack"],
        )
        self.registration = await self._comm.read(deserializers=["msgpack"])
        assert self.registration["status"] == "OK", self.registration
        await self.change_status("running")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._comm.abort()
        self._socket.close()

    async def send(self, op: str, **fields: Any) -> None:
        await self._comm.write([{"op": op, "stimulus_id": "scripted", **fields}])

    async def change_status(self, status: str) -> None:
        await self.send("worker-status-change", status=status)

    async def expect(self, op: str, **fields: Any) -> dict[str, Any]:
        """The next message of that kind and with those fields; others before it are kept."""
        while True:
            for i, message in enumerate(self._received):
                if message["op"] == op and all(
                    message.get(k) == v for k, v in fields.items()
                ):
                    return self._received.pop(i)
            self._received += await asyncio.wait_for(self._comm.read(), 20)

    async def expect_nothing_before(self, op: str, unwanted: str) -> dict[str, Any]:
        """As `expect`, and no message `unwanted` came earlier."""
        message = await self.expect(op)
        assert not [m for m in self._received if m["op"] == unwanted]
        return message

    async def finish(
        self, task: dict[str, Any], nbytes: int = 100, **changes: Any
    ) -> None:
        now = time.time()
        fields = {
            "status": "OK",
            "key": task["key"],
            "run_id": task["run_id"],
            "nbytes": nbytes,
            "type": pickle.dumps(int),
            "typename": "int",
            "metadata": {},
            "thread": 1,
            "startstops": ({"action": "compute", "start": now - 0.001, "stop": now},),
        }
        await self.send("task-finished", **(fields | changes))

    async def fail(self, task: dict[str, Any], error: Exception) -> None:
        await self.send(
            "task-erred",
            status="error",
            key=task["key"],
            run_id=task["run_id"],
            exception=to_serialize(pickle.dumps(error)),
            traceback=None,
            exception_text=repr(error),
            traceback_text="",
            thread=1,
            startstops=(),
        )


METRICS = {
    "task_counts": {},
    "bandwidth": {"total": 100_000_000, "workers": {}, "types": {}},
    "digests_total_since_heartbeat": {},
    "managed_bytes": 0,
    "spilled_bytes": {"memory": 0, "disk": 0},
    "transfer": {
        "incoming_bytes": 0,
        "incoming_count": 0,
        "incoming_count_total": 0,
        "outgoing_bytes": 0,
        "outgoing_count": 0,
        "outgoing_count_total": 0,
    },
    "event_loop_interval": 0.02,
    "cpu": 0.0,
    "memory": 100_000_000,
    "time": 0.0,
    "host_net_io": {"read_bps": 0, "write_bps": 0},
    "host_disk_io": {"read_bps": 0, "write_bps": 0},
    "num_fds": 10,
}
