"""``python -m oxidask.scheduler``: the same as ``oxidask scheduler``."""

from __future__ import annotations

import sys

from oxidask import _scheduler_main

if __name__ == "__main__":
    sys.exit(_scheduler_main())
