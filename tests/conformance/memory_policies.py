"""Policies for the active memory manager, as a user may write them."""

from distributed.active_memory_manager import ActiveMemoryManagerPolicy, Suggestion


class TwoOfEach(ActiveMemoryManagerPolicy):
    """Every result of a prefix is on two workers."""

    def __init__(self, prefix):
        self.prefix = prefix

    def run(self):
        for ts in list(self.manager.scheduler.tasks.values()):
            if ts.state == "memory" and ts.prefix.name == self.prefix:
                for _ in range(2 - len(ts.who_has)):
                    recipient = yield Suggestion("replicate", ts)
                    assert recipient is None or recipient not in ts.who_has


class Elsewhere(ActiveMemoryManagerPolicy):
    """Nothing stays on the worker `w0`."""

    def run(self):
        workers = set(self.manager.scheduler.workers.values())
        ws = next(ws for ws in workers if ws.name == "w0")
        for ts in list(ws.has_what):
            if len(ts.who_has) == 1:
                yield Suggestion("replicate", ts, workers - {ws})
            else:
                yield "drop", ts, {ws}
