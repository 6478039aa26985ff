"""Graph helpers as threads of the program whose graphs they expand.

A scheduler within the program needs no process to unpickle what the same program has
pickled. The protocol is the helpers' own, see docs/graph-helper.md.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from typing import Any

from oxidask import _graph_helper as helper

__all__ = ["start"]

_importing = threading.Lock()


class _Helper(helper.Helper):
    """A helper whose memory is not its own."""

    def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if request.get("op") == "versions":
            return {"versions": helper.stock.versions}
        return super().handle(request)

    def memory(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._forget_graph()
        return {"rss": 0, "baseline": 0}

    def wants_rest(self) -> bool:
        # The collector of this process is as its owner has set it.
        return False


def start(descriptor: int, directory: str) -> None:
    """Serve the stream with this descriptor until it ends. Native code calls this."""
    stream = socket.socket(fileno=descriptor)
    threading.Thread(
        target=_serve, args=(stream, directory), name="oxidask-graphs", daemon=True
    ).start()


def _serve(stream: socket.socket, directory: str) -> None:
    with stream:
        with _importing:
            if not hasattr(helper, "stock"):
                helper.import_stock()
        helper.serve(helper.Connection(stream), _Helper(directory))
