"""docs/compatibility.md lists what the installed distributed has, and tests that exist."""

from __future__ import annotations

import ast
import asyncio
import re
from functools import cache
from pathlib import Path

import dask
import pytest
from distributed import Scheduler
from distributed.cli.dask_scheduler import main as command
from distributed.http.scheduler import api
from distributed.http.utils import get_handlers
from distributed.scheduler import DEFAULT_EXTENSIONS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"

#: States that need no test: there is nothing to be tested.
ABSENT = ("not yet", "stock's own plumbing", "refused")

#: Rows whose behaviour no test shows yet; a new one needs a reason.
UNTESTED_MAX = 25


def stock():
    """Build stock's scheduler, for its handlers and pages."""

    # The scheduler adds a page that stands for the missing dashboard.
    routes = list(dask.config.get("distributed.scheduler.http.routes"))

    async def read():
        scheduler = Scheduler(dashboard_address=":0")
        pages = [route[0] for route in get_handlers(scheduler, modules=routes)]
        await scheduler.close()
        return set(scheduler.handlers), set(scheduler.stream_handlers), set(pages)

    return asyncio.run(read())


def option_names():
    names = set()
    for option in command.params:
        if option.param_type_name == "argument":
            names.add(option.human_readable_name)
        else:
            names.add(" / ".join([option.opts[0], *option.secondary_opts]))
    return names


@cache
def tables():
    """Rows of the page by the heading of their table: name, state and test."""
    found = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            rows = found[line.removeprefix("## ")] = []
        elif match := re.fullmatch(r"\| `(.+?)` \| (.+?) \| (.+) \|", line):
            rows.append(match.groups())
    return found


@pytest.fixture(scope="module")
def expected():
    operations, messages, pages = stock()
    return {
        "Operations": operations,
        "Messages on streams": messages,
        "Extensions": set(DEFAULT_EXTENSIONS),
        "Options of the command line": option_names(),
        "Pages": pages | {route[0] for route in api.routes},
    }


def test_everything_is_listed(expected):
    listed = {heading: [row[0] for row in rows] for heading, rows in tables().items()}
    assert listed.keys() == expected.keys()
    for heading, names in expected.items():
        assert len(listed[heading]) == len(set(listed[heading])), heading
        assert set(listed[heading]) == names, heading


@cache
def rust_functions(path: Path) -> set[str]:
    return set(re.findall(r"fn (\w+)\(", path.read_text()))


@cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_tests_exist():
    for rows in tables().values():
        for name, state, tests in rows:
            if tests == "untested":
                continue
            for test in tests.split(", "):
                file, _, function = test.strip("`").partition("::")
                path = ROOT / file if "/" in file else ROOT / "tests/conformance" / file
                assert path.is_file(), (name, test)
                known = rust_functions if path.suffix == ".rs" else functions
                assert function in known(path), (name, test)
                assert not state.startswith(ABSENT[:1]), (name, state)


def test_what_is_untested_does_not_grow():
    untested = [
        name
        for rows in tables().values()
        for name, state, tests in rows
        if tests == "untested" and not state.startswith(ABSENT)
    ]
    assert len(untested) <= UNTESTED_MAX, untested


def test_text():
    assert f"distributed {version()}" in PAGE.read_text()


def version():
    import distributed

    return distributed.__version__
