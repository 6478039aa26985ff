"""Processes that must not outlive the one that started them.

``python -m oxidask._bound PARENT_PID COMMAND...`` asks the kernel to send
SIGTERM when the parent is gone, however it ends, and then becomes the command.
Only Linux can do that; elsewhere the command is merely run.
"""

from __future__ import annotations

import os
import signal
import sys

#: Names the parent to ``python -m oxidask``, which saves starting Python twice.
PARENT_VARIABLE = "OXIDASK_PARENT_PID"

_PR_SET_PDEATHSIG = 1


def bind_to_parent(parent: int) -> None:
    """Have SIGTERM sent to this process when process `parent` ends.

    The request survives ``exec``. Exits at once when the parent has already
    gone.
    """
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    """Bind this process to its parent and become the command."""
    bind_to_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
