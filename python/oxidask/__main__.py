"""``python -m oxidask``: the same as the ``oxidask`` command."""

from __future__ import annotations

import os
import sys

from oxidask import main
from oxidask._bound import PARENT_VARIABLE, bind_to_parent

if __name__ == "__main__":
    # Taken out again: it is not for the processes that this one starts.
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is not None:
        bind_to_parent(int(parent))
    sys.exit(main())
