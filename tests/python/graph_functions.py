"""What the graphs of these tests name, importable by the helper as well."""

from __future__ import annotations

import importlib
import operator
import os
import signal
import sys
from typing import Any


def increment(x: int) -> int:
    return x + 1


async def coroutine(x: int) -> int:
    return x


def keyword(x: Any, *, y: Any = 0, z: Any = 0) -> Any:
    return (x, y, z)


def _raise(text: str) -> None:
    raise ValueError(text)


class Rebuilt:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function = function
        self.args = args

    def __reduce__(self) -> Any:
        return self.function, self.args


UNPICKLING_FAILS = Rebuilt(_raise, "cannot rebuild")
UNPICKLING_EXITS = Rebuilt(os._exit, 3)
UNPICKLING_HANGS = Rebuilt(signal.pause)
UNPICKLING_RAISES_SYSTEM_EXIT = Rebuilt(sys.exit, 1)


def file_of_module(name: str) -> Rebuilt:
    """Unpickles as the path of a module as the helper sees it."""
    return Rebuilt(
        operator.attrgetter("__file__"), Rebuilt(importlib.import_module, name)
    )
