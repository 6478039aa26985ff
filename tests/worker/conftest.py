"""Builds the example through which Python talks to the worker's core."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def replay() -> str:
    done = subprocess.run(
        [
            "cargo",
            "build",
            "--quiet",
            "--package",
            "oxidask-worker",
            "--example",
            "replay",
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
