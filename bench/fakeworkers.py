"""Many pretend workers in one process, to measure a scheduler by itself.

Each registers over TCP as a worker does, never runs anything, and answers every
``compute-task`` with ``task-finished`` at once. Only the first frame of a
message is decoded; tasks stay pickled.

Says ``prepared`` on standard output, waits for a line on standard input,
connects and registers all workers at the same time, and prints how long that
took. On SIGTERM it prints how many tasks it answered and its CPU time, so that
a reader sees whether the pretence itself was the bottleneck.
"""

from __future__ import annotations

import argparse
import json
import pickle
import selectors
import signal
import socket
import struct
import sys
import time
from typing import Any

import msgpack

HELLO = {
    "compression": None,
    "python": list(sys.version_info[:3]),
    "pickle-protocol": 5,
}


def framed(body: bytes) -> bytes:
    """``body`` as a message of one frame."""
    return struct.pack("<QQQ", 16 + len(body), 1, len(body)) + body


class Messages:
    """Cuts received bytes into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, data: bytes) -> None:
        self._bytes += data

    def next(self) -> Any:
        """The first frame of the next message, decoded, or None if there is none yet."""
        have = len(self._bytes)
        if have < 16:
            return None
        (count,) = struct.unpack_from("<Q", self._bytes, 8)
        start = 16 + 8 * count
        if have < start:
            return None
        lengths = struct.unpack_from(f"<{count}Q", self._bytes, 16)
        end = start + sum(lengths)
        if have < end:
            return None
        frame = bytes(self._bytes[start : start + lengths[0]])
        del self._bytes[:end]
        return msgpack.unpackb(frame, strict_map_key=False, use_list=False)


def registration(index: int, nthreads: int) -> bytes:
    """Handshake and registration of one worker, ready to send."""
    transfer = (
        f"{direction}_{figure}"
        for direction in ("incoming", "outgoing")
        for figure in ("bytes", "count", "count_total")
    )
    now = time.time()
    message = {
        "op": "register-worker",
        "reply": False,
        # Nobody listens there; these workloads never move data.
        "address": f"tcp://127.0.0.1:{1 + index}",
        "status": "running",
        "nthreads": nthreads,
        "name": f"fake-{index}",
        "now": now,
        "resources": {},
        "memory_limit": 1 << 34,
        "local_directory": "",
        "services": {},
        "nanny": "",
        "pid": 0,
        "versions": {},
        "metrics": {
            "task_counts": {},
            "bandwidth": {"total": 100_000_000, "workers": {}, "types": {}},
            "digests_total_since_heartbeat": {},
            "managed_bytes": 0,
            "spilled_bytes": {"memory": 0, "disk": 0},
            "transfer": dict.fromkeys(transfer, 0),
            "event_loop_interval": 0.02,
            "cpu": 0.0,
            "memory": 0,
            "time": now,
            "host_net_io": {"read_bps": 0.0, "write_bps": 0.0},
            "host_disk_io": {"read_bps": 0.0, "write_bps": 0.0},
            "num_fds": 0,
        },
        "extra": {},
        "stimulus_id": f"worker-connect-{now}",
        "server_id": f"Worker-fake-{index}",
    }
    return framed(msgpack.packb(HELLO)) + framed(msgpack.packb(message))


class Worker:
    """One registered connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.messages = Messages()
        self.unsent = bytearray()

    def wait_until_registered(self) -> None:
        """Read the scheduler's handshake and its answer to the registration."""
        answers: list[Any] = []
        while len(answers) < 2:
            data = self.connection.recv(1 << 16)
            if not data:
                raise SystemExit("the scheduler closed the connection of a fake worker")
            self.messages.add(data)
            while len(answers) < 2 and (answer := self.messages.next()) is not None:
                answers.append(answer)
        if answers[1].get("status") != "OK":
            raise SystemExit(f"the scheduler refused a fake worker: {answers[1]!r}")
        self.connection.setblocking(False)

    def send(self) -> None:
        """Send what the socket takes now."""
        try:
            sent = self.connection.send(self.unsent)
        except BlockingIOError:
            return
        del self.unsent[:sent]


class Answers:
    """Makes ``task-finished`` messages. All but three values are packed in advance."""

    def __init__(self, prefix: str) -> None:
        self.count = 0
        self._prefix = prefix
        self._packer = msgpack.Packer()
        constant = {
            "op": "task-finished",
            "status": "OK",
            "nbytes": 28,
            "type": pickle.dumps(int, protocol=4),
            "typename": "int",
            "metadata": {},
            "thread": 1,
        }
        pack = msgpack.packb
        items = b"".join(pack(name) + pack(value) for name, value in constant.items())
        fields = len(constant) + 4
        self._start = bytes([0x80 | fields]) + items + pack("startstops")
        self._key, self._run, self._stimulus = map(
            pack, ("key", "run_id", "stimulus_id")
        )

    def to(self, batch: Any) -> bytes:
        """The message that answers all tasks in ``batch``; empty if there are none."""
        now = time.time()
        times = msgpack.packb([{"action": "compute", "start": now, "stop": now + 1e-6}])
        pack = self._packer.pack
        parts = []
        for message in (batch,) if isinstance(batch, dict) else batch:
            if message.get("op") != "compute-task" or not self._wanted(message["key"]):
                continue
            parts += [self._start, times, self._key, pack(message["key"])]
            parts += [self._run, pack(message["run_id"])]
            parts += [self._stimulus, pack(message["stimulus_id"])]
            self.count += 1
        if not parts:
            return b""
        header = struct.pack(">BI", 0xDD, len(parts) // 8)
        return framed(header + b"".join(parts))

    def _wanted(self, key: Any) -> bool:
        if not self._prefix:
            return True
        return str(key[0] if isinstance(key, tuple) else key).startswith(self._prefix)


def serve(workers: list[Worker], answers: Answers) -> None:
    """Answer tasks until SIGTERM."""
    selector = selectors.DefaultSelector()
    for one in workers:
        selector.register(one.connection, selectors.EVENT_READ, one)
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    while not stop:
        for entry, events in selector.select(timeout=0.5):
            worker: Worker = entry.data
            if events & selectors.EVENT_READ:
                try:
                    data = worker.connection.recv(1 << 20)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                if not data:
                    selector.unregister(worker.connection)
                    worker.connection.close()
                    continue
                worker.messages.add(data)
                while (batch := worker.messages.next()) is not None:
                    worker.unsent += answers.to(batch)
            had_to_wait = bool(events & selectors.EVENT_WRITE)
            if worker.unsent:
                worker.send()
            if bool(worker.unsent) != had_to_wait:
                wanted = selectors.EVENT_READ | (
                    selectors.EVENT_WRITE if worker.unsent else 0
                )
                selector.modify(worker.connection, wanted, worker)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first worker"
    )
    parser.add_argument("--nthreads", type=int, default=1)
    parser.add_argument(
        "--prefix", default="", help="leave keys alone that start otherwise"
    )
    arguments = parser.parse_args()
    host, port = arguments.address.split("://")[-1].rsplit(":", 1)
    indices = range(arguments.first, arguments.first + arguments.count)
    messages = [registration(index, arguments.nthreads) for index in indices]
    print("prepared", flush=True)
    sys.stdin.readline()

    started = time.perf_counter()
    workers = []
    for message in messages:
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(message)
        workers.append(Worker(connection))
    for worker in workers:
        worker.wait_until_registered()
    print(json.dumps({"register_s": time.perf_counter() - started}), flush=True)

    answers = Answers(arguments.prefix)
    before = time.process_time()
    serve(workers, answers)
    used = time.process_time() - before
    print(json.dumps({"tasks": answers.count, "cpu_s": used}), flush=True)


if __name__ == "__main__":
    main()
