"""What the tasks of the workloads do.

An importable module, so that functions travel by reference as those of a
library do. ``clusters.py`` puts this folder on the path of every process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
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


def first(array: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    return int(array[0])


def words(seed: int, count: int) -> list[str]:
    return [
        f"w{number}" for number in np.random.default_rng(seed).integers(0, 1000, count)
    ]
