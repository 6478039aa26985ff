"""Functions that the toy behind ``oxidask worker`` knows by their names."""

from __future__ import annotations


def shell_one() -> None:
    raise AssertionError("the toy worker returns 1")


def shell_hold() -> None:
    raise AssertionError("the toy worker never returns")


def shell_exit() -> None:
    raise AssertionError("the toy worker calls exit(3)")


def shell_fault() -> None:
    raise AssertionError("the toy worker dies of SIGSEGV")


def shell_killed() -> None:
    raise AssertionError("the toy worker dies of SIGKILL")


def shell_grow() -> None:
    raise AssertionError("the toy worker takes 400 MiB and never returns")
