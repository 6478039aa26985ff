"""The programs that run the worker's core and shell."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--rounds", type=int, help="how long the races of test_races.py are"
    )
    parser.addoption(
        "--seed", type=int, help="seed of the races (random if there are --rounds)"
    )


@pytest.fixture(scope="session")
def replay(example: Callable[[str, str], str]) -> str:
    return example("oxidask-worker", "replay")


@pytest.fixture(scope="session")
def toy_worker(example: Callable[[str, str], str]) -> str:
    return example("oxidask-server", "toy_worker")
