"""What the tasks of the workloads do.

An importable module, so that functions travel by reference as those of a
library do. ``clusters.py`` puts this folder on the path of every process.
"""

from __future__ import annotations

import ctypes
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def inc(x: int) -> int:
    return x + 1


def add(x: int, y: int) -> int:
    return x + y


def total(values: Sequence[int]) -> int:
    return sum(values)


def sleep(x: int, seconds: float) -> int:
    time.sleep(seconds)
    return x


def noise(seed: int, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An array that does not compress."""
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype="u1")


def hold(started: str, seconds: float) -> None:
    """Hold the interpreter without using a processor; the file tells when it begins."""
    usleep = ctypes.PyDLL(None).usleep
    Path(started).touch()
    usleep(int(1e6 * seconds))


def hold_and_burn(started: str, seconds: float) -> None:
    """Hold the interpreter with a search that backtracks, for up to twice as long."""
    # Each letter more takes twice as long.
    length, took = 18, 0.0
    while took < 0.1:
        length += 1
        begun = time.perf_counter()
        re.match("(a+)+$", "a" * length + "b")
        took = time.perf_counter() - begun
    length += max(0, math.ceil(math.log2(seconds / took)))
    Path(started).touch()
    re.match("(a+)+$", "a" * length + "b")


def first(array: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    return int(array[0])


def count(*arrays: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    return len(arrays)


def words(seed: int, count: int) -> list[str]:
    return [
        f"w{number}" for number in np.random.default_rng(seed).integers(0, 1000, count)
    ]
