"""``python -m oxidask.worker``: the same as ``oxidask worker``."""

from __future__ import annotations

import sys

from oxidask import _worker_main

if __name__ == "__main__":
    sys.exit(_worker_main())
