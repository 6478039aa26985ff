"""Dask's distributed engine in Rust.

``oxidask scheduler`` and ``oxidask worker`` take the places of ``dask scheduler``
and ``dask worker``; programs need no change. In a program of one's own::

    import oxidask

    client = oxidask.Client()  # where `distributed.Client()` starts stock's

Importing this package imports nothing else: the command line answers within
milliseconds, and dask is imported only by those who use it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oxidask.client import Client
    from oxidask.cluster import LocalCluster

__all__ = ["Client", "LocalCluster", "main"]

_LAZY = {"Client": "oxidask.client", "LocalCluster": "oxidask.cluster"}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def main() -> int:
    """Run the ``oxidask`` command with the arguments of this process.

    Returns
    -------
    int
        Exit status of the command.
    """
    from oxidask._oxidask import main as run

    return run(["oxidask", *sys.argv[1:]])


def _scheduler_main() -> int:
    """Run ``oxidask scheduler`` under the name ``dask-scheduler``."""
    from oxidask._oxidask import main as run

    return run(["oxidask", "scheduler", *sys.argv[1:]])


def _worker_main() -> int:
    """Run ``oxidask worker`` under the name ``dask-worker``."""
    from oxidask._oxidask import main as run

    return run(["oxidask", "worker", *sys.argv[1:]])
