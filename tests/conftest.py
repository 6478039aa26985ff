"""Builds the examples through which Python talks to the crates."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def example() -> Callable[[str, str], str]:
    def build(package: str, name: str) -> str:
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

    return build
