"""Raw connections: odd messages and bad ones, and the pages over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import urllib.error
import urllib.request

import msgpack
import pytest
from cluster import eventually
from conformance_tasks import inc
from distributed.core import CommClosedError, rpc
from distributed.core import connect as connect_comm


def frames(*parts: bytes) -> bytes:
    """A message of the tcp transport: a length, a count, lengths, frames."""
    head = struct.pack("<Q", len(parts)) + b"".join(
        struct.pack("<Q", len(p)) for p in parts
    )
    body = b"".join(parts)
    return struct.pack("<Q", len(head) + len(body)) + head + body


HANDSHAKE = frames(
    msgpack.packb({"compression": None, "python": [3, 11, 0], "pickle-protocol": 5})
)


@contextlib.contextmanager
def raw_connection(address, *, handshake=True):
    host, port = address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        if handshake:
            sock.sendall(HANDSHAKE)
        read_message(sock)
        yield sock


def read_exactly(sock, count):
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise EOFError("closed by the scheduler")
        data += chunk
    return data


def read_message(sock):
    (size,) = struct.unpack("<Q", read_exactly(sock, 8))
    body = read_exactly(sock, size)
    (count,) = struct.unpack_from("<Q", body)
    lengths = struct.unpack_from(f"<{count}Q", body, 8)
    start = 8 + 8 * count
    return [
        body[start + sum(lengths[:i]) : start + sum(lengths[: i + 1])]
        for i in range(count)
    ]


def closes(sock):
    """Whether the scheduler closes the connection, whatever it sends before."""
    with contextlib.suppress(ConnectionError):
        while sock.recv(65536):
            pass
    return True


def still_works(cluster, client):
    assert cluster.is_alive()
    assert client.submit(inc, 1, pure=False).result(timeout=20) == 2


# Odd but legal


def test_both_sides_greet_at_once(cluster, client):
    host, port = cluster.address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        hello = msgpack.unpackb(read_message(sock)[0])
        assert hello["pickle-protocol"] >= 4
        assert "compression" in hello
        assert len(hello["python"]) == 3
        sock.sendall(HANDSHAKE)
        sock.sendall(frames(msgpack.packb({"op": "ncores", "reply": True})))
        answer = msgpack.unpackb(read_message(sock)[0])
        assert set(answer) == {w.address for w in cluster.workers}


def test_message_that_comes_byte_by_byte(cluster, client):
    """Pitfall 7."""
    with raw_connection(cluster.address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in frames(msgpack.packb({"op": "ncores", "reply": True})):
            sock.sendall(bytes([byte]))
        assert len(msgpack.unpackb(read_message(sock)[0])) == 2


def test_read_hint_that_covers_only_the_first_frames(cluster, client):
    """Pitfall 7: the first number is a hint, the length is in the frame table."""
    parts = [msgpack.packb({"op": "ncores", "reply": True}), b"", b""]
    table = struct.pack("<4Q", 3, *(len(part) for part in parts))
    with raw_connection(cluster.address) as sock:
        for end in range(len(parts) + 1):
            hint = len(table) + sum(len(part) for part in parts[:end])
            sock.sendall(struct.pack("<Q", hint) + table + b"".join(parts))
            assert len(msgpack.unpackb(read_message(sock)[0])) == 2


def test_several_requests_on_one_connection(cluster, client):
    async def ask():
        comm = await connect_comm(cluster.address)
        answers = []
        for _ in range(5):
            await comm.write({"op": "identity", "n_workers": 0, "reply": True})
            answers.append((await comm.read())["id"])
        await comm.close()
        return answers

    assert len(set(asyncio.run(ask()))) == 1


def test_request_with_close(cluster, client):
    async def ask():
        comm = await connect_comm(cluster.address)
        await comm.write(
            {"op": "identity", "n_workers": 0, "reply": True, "close": True}
        )
        await comm.read()
        with pytest.raises(CommClosedError):
            await asyncio.wait_for(comm.read(), 20)

    asyncio.run(ask())


def test_request_without_reply(cluster, client):
    async def ask():
        comm = await connect_comm(cluster.address)
        await comm.write({"op": "identity", "reply": False})
        await comm.write({"op": "ncores", "reply": True})
        answer = await comm.read()
        comm.abort()
        return answer

    assert set(asyncio.run(ask())) == {w.address for w in cluster.workers}


def test_rpc_object(cluster, client):
    async def ask():
        async with rpc(cluster.address) as scheduler:
            return await scheduler.identity(n_workers=0)

    assert asyncio.run(ask())["address"] == cluster.address


def test_unknown_operation_is_an_error_of_its_caller(cluster, client):
    async def ask():
        comm = await connect_comm(cluster.address)
        await comm.write({"op": "no_such_operation", "reply": True})
        try:
            answer = await asyncio.wait_for(comm.read(), 20)
        finally:
            comm.abort()
        return answer

    answer = asyncio.run(ask())
    assert answer is None or "error" in str(answer.get("status"))
    still_works(cluster, client)


def test_missing_argument_is_an_error_of_its_caller(cluster, client):
    try:
        answer = cluster.call("event_set")
    except OSError:
        answer = None
    assert answer is None or "error" in answer["status"]
    still_works(cluster, client)


# Bad


@pytest.mark.parametrize(
    "message",
    [
        frames(msgpack.packb([1, 2, 3])),
        frames(msgpack.packb(7)),
        frames(msgpack.packb("text")),
        frames(b"\xc1 is no msgpack"),
        frames(msgpack.packb({"op": 5})),
        frames(msgpack.packb({"no": "op"})),
        frames(msgpack.packb({"op": "gather", "keys": {"__Serialized__": 99}})),
        frames(msgpack.packb({"op": "gather", "keys": {"__Serialized__": 0}})),
        frames(
            msgpack.packb({"op": "gather", "keys": {"__Pickled__": 1}}), b"\xff\xff"
        ),
        frames(b"\x81" * 10_000),
        frames(msgpack.packb({"op": "identity"})[:-3]),
        frames(b""),
    ],
    ids=[
        "array",
        "number",
        "text",
        "garbage",
        "op-number",
        "no-op",
        "offset-outside",
        "offset-zero",
        "bad-sub-header",
        "deep",
        "truncated-map",
        "empty-frame",
    ],
)
def test_bad_message_hurts_only_its_connection(cluster, client, message):
    future = client.submit(inc, 41)
    with raw_connection(cluster.address) as sock:
        sock.sendall(message)
        sock.shutdown(socket.SHUT_WR)
        assert closes(sock)
    assert future.result() == 42
    still_works(cluster, client)


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<2Q", 2**63, 1),
        struct.pack("<3Q", 16, 2**60, 5),
        struct.pack("<3Q", 16 + 5, 1, 2**62) + b"hello",
        struct.pack("<Q", 0),
        struct.pack("<3Q", 2**40, 1, 2**40),
    ],
    ids=["hint", "count", "length", "zero", "terabyte"],
)
def test_absurd_lengths_hurt_only_their_connection(cluster, client, head):
    with raw_connection(cluster.address) as sock:
        sock.sendall(head)
        sock.shutdown(socket.SHUT_WR)
        assert closes(sock)
    still_works(cluster, client)


def test_connection_that_is_no_handshake(cluster, client):
    host, port = cluster.address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert closes(sock)
    still_works(cluster, client)


def test_connections_that_are_cut_at_any_point(cluster, client):
    message = frames(msgpack.packb({"op": "identity", "reply": True}))
    for length in (0, 1, 8, 15, 24, len(message) - 1):
        with raw_connection(cluster.address) as sock:
            sock.sendall(message[:length])
    still_works(cluster, client)


def test_bad_message_on_a_client_stream(cluster, client):
    """One bad stream message must not take the process down."""

    async def ask():
        comm = await connect_comm(cluster.address)
        await comm.write(
            {
                "op": "register-client",
                "client": "bad-client",
                "reply": False,
                "versions": {},
            }
        )
        await comm.read()
        await comm.write([{"op": "client-releases-keys"}])
        await comm.write([{"op": "no-such-stream-operation"}])
        await comm.write(["not a map"])
        comm.abort()

    asyncio.run(ask())
    still_works(cluster, client)


def test_client_stream_by_hand(cluster, client):
    """The first batch to a client is exactly one stream-start."""

    async def ask():
        comm = await connect_comm(cluster.address)
        await comm.write(
            {
                "op": "register-client",
                "client": "hand-made",
                "reply": False,
                "versions": {"host": {}, "packages": {}},
            }
        )
        first = await comm.read()
        await comm.write([{"op": "heartbeat-client"}])
        second = await asyncio.wait_for(comm.read(), 20)
        await comm.write([{"op": "close-client"}])
        comm.abort()
        return first, second

    first, second = asyncio.run(ask())
    assert len(first) == 1
    assert first[0]["op"] == "stream-start"
    assert not first[0].get("error")
    assert second[0]["op"] == "adjust-heartbeat-interval"
    assert second[0]["interval"] >= 5


def test_report_of_an_unknown_key_is_a_cancellation(cluster, client):
    async def ask():
        comm = await connect_comm(cluster.address)
        await comm.write(
            {
                "op": "register-client",
                "client": "hand-made-2",
                "reply": False,
                "versions": {"host": {}, "packages": {}},
            }
        )
        await comm.read()
        await comm.write([{"op": "report-key", "key": "unknown-key"}])
        answer = await asyncio.wait_for(comm.read(), 20)
        await comm.write([{"op": "close-client"}])
        comm.abort()
        return answer

    (message,) = asyncio.run(ask())
    assert message["op"] == "cancelled-keys"
    assert list(message["keys"]) == ["unknown-key"]


# HTTP


def get(cluster, path):
    port = cluster.identity()["services"]["dashboard"]
    with urllib.request.urlopen(
        f"http://127.0.0.1:{port}{path}", timeout=20
    ) as response:
        return response.status, response.read().decode()


def test_health_page(cluster, client):
    assert get(cluster, "/health") == (200, "ok")


def test_sitemap(cluster, client):
    _, text = get(cluster, "/sitemap.json")
    paths = json.loads(text)["paths"]
    assert {"/health", "/json/counts.json", "/sitemap.json"} <= set(paths)


def test_counts_as_json(cluster, client):
    futures = client.map(inc, range(7), pure=False)
    assert client.gather(futures) == list(range(1, 8))
    _, text = get(cluster, "/json/counts.json")
    counts = json.loads(text)
    assert counts["tasks"] == 7
    assert counts["memory"] == 7
    assert counts["workers"] == 2
    assert counts["cores"] == 4
    assert counts["processing"] == 0
    assert counts["clients"] >= 1


def test_identity_as_json(fresh_cluster):
    cluster = fresh_cluster(workers=0)
    _, text = get(cluster, "/json/identity.json")
    identity = json.loads(text)
    assert identity["address"] == cluster.address
    assert identity["workers"] == {}


@pytest.mark.parametrize("page", ["workers", "logs"])
def test_page_of_the_scheduler(cluster, client, page):
    status, text = get(cluster, f"/info/main/{page}.html")
    assert status == 200
    assert "html" in text
    if page == "workers":
        assert all(w.address in text or w.name in text for w in cluster.workers)


def test_page_of_a_task(cluster, client):
    future = client.submit(inc, 1, key="page-of-a-task")
    assert future.result() == 2
    status, text = get(cluster, "/info/task/page-of-a-task.html")
    assert status == 200
    assert "page-of-a-task" in text


def test_page_that_does_not_exist(cluster, client):
    with pytest.raises(urllib.error.HTTPError) as info:
        get(cluster, "/no/such/page")
    assert info.value.code == 404


def test_dashboard_prefix(fresh_cluster):
    cluster = fresh_cluster(
        workers=0,
        scheduler_args="--dashboard-prefix my/prefix --dashboard-address 127.0.0.1:0",
    )
    assert get(cluster, "/my/prefix/health") == (200, "ok")


def test_no_dashboard(fresh_cluster, connect):
    cluster = fresh_cluster(
        workers=1, scheduler_args="--no-dashboard --dashboard-address 127.0.0.1:0"
    )
    client = connect(cluster)
    assert client.submit(inc, 1).result() == 2


def test_prometheus_metrics(cluster, client):
    status, text = get(cluster, "/metrics")
    assert status == 200
    assert "dask_scheduler_workers" in text
    eventually(
        lambda: 'dask_scheduler_workers{state="idle"}' in get(cluster, "/metrics")[1]
    )
