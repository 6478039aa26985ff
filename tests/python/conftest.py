from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from helper_process import Channel, HelperProcess, pickled


@pytest.fixture(scope="session")
def zygote() -> Iterator[HelperProcess]:
    process = HelperProcess()
    yield process
    process.close()
    assert process.process.returncode == 0


@pytest.fixture
def channel(zygote: HelperProcess) -> Iterator[Channel]:
    _, channel = zygote.fork()
    yield channel
    channel.close()


class Submission:
    """An ``update-graph`` message of a stock client, and what it was made from."""

    def __init__(self, message: dict[str, Any]) -> None:
        expr = message["expr_ser"]
        self.request = {
            "expr": {
                "header": msgpack.packb(expr.header),
                "frames": [bytes(memoryview(f)) for f in expr.frames],
            },
            "keys": list(message["keys"]),
            "annotations": pickled(message["annotations"].data),
            "code": pickled(message["code"].data),
            "span_metadata": pickled(message["span_metadata"].data),
        }
        self.header, self.frames = expr.header, expr.frames
        self.keys = message["keys"]

    def expr(self) -> Any:
        from distributed.protocol import deserialize

        return deserialize(self.header, self.frames)

    def stock_graph(self) -> tuple[dict[Any, Any], Any]:
        """Nodes and annotations as the stock scheduler would make them."""
        from dask._expr import LLGExpr
        from distributed.scheduler import _cull, _materialize_graph

        expr = self.expr()
        dsk, annotations = _materialize_graph(expr, validate=True)
        if isinstance(expr, LLGExpr):
            dsk = _cull(dsk, self.keys)
        return dsk, annotations


class Capture:
    """A stock client whose graphs stay here instead of going to its scheduler."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._messages: list[dict[str, Any]] = []
        client._send_to_scheduler = self._send

    def _send(self, message: dict[str, Any]) -> None:
        if message["op"] == "update-graph":
            self._messages.append(message)

    def take(self) -> Submission:
        (message,) = self._messages
        self._messages.clear()
        return Submission(message)


@pytest.fixture(scope="session")
def stock_client() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address=":0", protocol="tcp://"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def capture(stock_client: Any) -> Iterator[Capture]:
    original = stock_client._send_to_scheduler
    capture = Capture(stock_client)
    yield capture
    capture._messages.clear()
    stock_client._send_to_scheduler = original
