"""CPU time and memory of processes, read from ``/proc``.

CPU times have a resolution of 10 ms, memory is resident bytes. Pages that
processes share count once for each of them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Stat:
    """CPU seconds of a process, and of its children that ended and were waited for."""

    own: float
    reaped: float


def stat(pid: int) -> Stat | None:
    """Times of ``pid``, or None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is a name in brackets that may itself contain spaces.
    fields = text.rpartition(")")[2].split()
    user, system, child_user, child_system = (int(field) for field in fields[11:15])
    return Stat(
        (user + system) / _TICKS_PER_SECOND,
        (child_user + child_system) / _TICKS_PER_SECOND,
    )


def descendants(pid: int) -> list[int]:
    """All living children of ``pid`` and theirs."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{parent}/task").iterdir():
                with contextlib.suppress(OSError):
                    children = [
                        int(c) for c in (thread / "children").read_text().split()
                    ]
                    found += children
                    waiting += children
    return found


def _status_bytes(pid: int, field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0


def rss(pid: int) -> int:
    """Resident memory of ``pid`` now; 0 if it is gone."""
    return _status_bytes(pid, "VmRSS:")


def peak_rss(pid: int) -> int:
    """Most resident memory of ``pid`` since `reset_peak_rss`; 0 if it is gone."""
    return _status_bytes(pid, "VmHWM:")


def reset_peak_rss(pid: int) -> None:
    """Let `peak_rss` start again from the present value."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


@dataclass(frozen=True)
class Group:
    """Processes that are measured together.

    Parameters
    ----------
    pids:
        Processes that were started directly.
    parents, children:
        Whether these count, and whether everything they started counts.
    """

    pids: tuple[int, ...]
    parents: bool = True
    children: bool = True

    def members(self) -> list[int]:
        """The living processes of the group."""
        found = list(self.pids) if self.parents else []
        if self.children:
            found += [child for pid in self.pids for child in descendants(pid)]
        return found

    def cpu(self) -> float:
        """CPU seconds so far, those of ended children included."""
        total = 0.0
        for pid in self.members():
            if (times := stat(pid)) is not None:
                total += times.own + (times.reaped if self.children else 0.0)
        if self.children and not self.parents:
            total += sum(
                times.reaped for pid in self.pids if (times := stat(pid)) is not None
            )
        return total

    def rss(self) -> int:
        """Resident bytes now."""
        return sum(rss(pid) for pid in self.members())

    def peak_rss(self) -> int:
        """Sum of each living member's most resident bytes since `reset_peak_rss`."""
        return sum(peak_rss(pid) for pid in self.members())

    def reset_peak_rss(self) -> None:
        """Let `peak_rss` start again."""
        for pid in self.members():
            reset_peak_rss(pid)


class Watch:
    """Most resident bytes of a group while inside, ended members included.

    Looks ten times a second, at a cost of about a millisecond of CPU a second.
    """

    def __init__(self, group: Group) -> None:
        self.peak = 0
        self._group = group
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self._group.rss())

    def _look(self) -> None:
        while not self._stop.wait(0.1):
            self.peak = max(self.peak, self._group.rss())
