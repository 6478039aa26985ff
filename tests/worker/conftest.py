"""Builds the examples through which Python talks to the worker's core and shell."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def example(package: str, name: str) -> str:
    done = subprocess.run(
        [
            "cargo",
            "build",
            "--quiet",
            "--package",
            package,
            "--example",
            name,
            "--message-format=json",
        ],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    executables = [
        json.loads(line).get("executable") for line in done.stdout.splitlines()
    ]
    return next(path for path in executables if path)


@pytest.fixture(scope="session")
def replay() -> str:
    return example("oxidask-worker", "replay")


@pytest.fixture(scope="session")
def toy_worker() -> str:
    return example("oxidask-server", "toy_worker")
