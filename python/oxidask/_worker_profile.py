"""What running tasks do, looked at a hundred times a second.

A look only notes which code runs where. What people see of it, a tree with lines of
source, is made when somebody asks or once a second, as ``distributed.profile.process``
makes it at each look.
"""

from __future__ import annotations

import linecache
from collections import Counter
from collections.abc import MutableMapping
from types import CodeType, FrameType
from typing import Any

__all__ = ["STOP", "Samples"]

#: Frames from this file on are not the task's.
STOP = "oxidask/_worker_tasks.py"

#: Frames of a stack that count, from the innermost: as `process`.
_DEPTH_MAX = 101

#: Code and the instruction that runs in it, of each frame from the innermost on, one
#: after the other.
Stack = tuple[Any, ...]


class Samples:
    """Stacks of tasks that were seen, and how often."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, Stack]] = Counter()

    def take(self, prefix: str, frame: FrameType) -> None:
        """Note what a task of this prefix does."""
        stack: list[Any] = []
        walked: FrameType | None = frame
        while walked is not None and len(stack) < 2 * _DEPTH_MAX:
            code = walked.f_code
            if stack and code.co_filename.endswith(STOP):
                break
            stack += (code, walked.f_lasti)
            walked = walked.f_back
        self._counts[prefix, tuple(stack)] += 1

    def move_to(
        self, recent: dict[str, Any], by_prefix: MutableMapping[str, dict[str, Any]]
    ) -> None:
        """Add everything to the trees of all tasks and of those of each prefix."""
        counts, self._counts = self._counts, Counter()
        for (prefix, stack), count in counts.items():
            for tree in (recent, by_prefix[prefix]):
                _add(tree, stack, count)


def _add(tree: dict[str, Any], stack: Stack, count: int) -> None:
    node = tree
    for at in range(len(stack) - 2, -1, -2):
        code = stack[at]
        # As `profile.identifier`.
        name = f"{code.co_name};{code.co_filename};{code.co_firstlineno}"
        child = node["children"].get(name)
        if child is None:
            child = node["children"][name] = {
                "count": 0,
                "description": _describe(code, stack[at + 1]),
                "children": {},
                "identifier": name,
            }
        node["count"] += count
        node = child


def _describe(code: CodeType, instruction: int) -> dict[str, Any]:
    """As `profile.info_frame`."""
    line_number = _line_number(code, instruction)
    return {
        "filename": code.co_filename,
        "name": code.co_name,
        "line_number": line_number,
        "line": linecache.getline(code.co_filename, line_number).lstrip(),
    }


def _line_number(code: CodeType, instruction: int) -> int:
    for start, stop, line_number in code.co_lines():
        if start <= instruction < stop and line_number is not None:
            return line_number
    return code.co_firstlineno
