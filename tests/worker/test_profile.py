"""What running tasks do, as the worker notes it."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict

from distributed import profile
from oxidask._worker_profile import STOP, Samples


def test_trees_are_those_of_stock():
    entered, leave = threading.Semaphore(0), threading.Semaphore(0)

    def wait(depth):
        if depth:
            wait(depth - 1)
        else:
            entered.release()
            leave.acquire()

    def work():
        wait(3)
        wait(150)

    thread = threading.Thread(target=work)
    thread.start()
    samples = Samples()
    expected, tree = profile.create(), profile.create()
    by_prefix = defaultdict(profile.create)
    for _ in range(2):
        entered.acquire()
        frame = sys._current_frames()[thread.ident]
        for _ in range(3):
            profile.process(frame, True, expected, stop=STOP)
            samples.take("x", frame)
        samples.move_to(tree, by_prefix)
        assert tree == expected
        assert by_prefix == {"x": expected}
        leave.release()
    thread.join()
