"""Stock's ``WorkerState``, made to do the same in every run.

Stock iterates over sets of tasks, whose order is that of memory addresses, and of
texts, whose order changes with every interpreter. Much of what it does follows
that order. Here all its sets iterate in the order of insertion, which is one of
the orders that it may have anyway, and the one that Oxidask has. The clock
stands still during an event, and the generator that chooses among equally good
peers is Oxidask's. Its validation lets two more states pass. Nothing else is changed.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import distributed.collections
import pytest
from distributed import worker_state_machine as wsm
from distributed.protocol.serialize import Serialize
from distributed.worker import Worker

MASK = (1 << 64) - 1


class OrderedSet(dict):
    """A set in the order of insertion."""

    def __init__(self, items=()):
        super().__init__(dict.fromkeys(items))

    def add(self, item):
        self[item] = None

    def discard(self, item):
        self.pop(item, None)

    def remove(self, item):
        del self[item]

    def __sub__(self, other):
        return OrderedSet(item for item in self if item not in other)

    def __or__(self, other):
        return OrderedSet([*self, *other])

    def __eq__(self, other):
        return self.keys() == set(other)

    __hash__ = None


class SplitMix:
    """The generator of the Rust core."""

    def __init__(self, seed: int):
        self.state = seed

    def random(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


class Unstorable:
    """A value that can neither stay in memory nor be written to disk."""

    def __repr__(self) -> str:
        return "Unstorable()"


class Slow(bytes):
    """A value that takes a while to be written to disk."""

    NBYTES = 77
    DURATION = 0.5


class Data(dict):
    """The data store; says what happens to it."""

    def __init__(self, log: list[Any]):
        super().__init__()
        self.log = log

    def __setitem__(self, key, value):
        if isinstance(value, Unstorable):
            raise TypeError("could not serialize object")
        if isinstance(value, Slow):
            CLOCK.now += Slow.DURATION
        self.log.append(["store", key])
        super().__setitem__(key, value)

    def __delitem__(self, key):
        self.log.append(["release", key])
        super().__delitem__(key)


class Actors(dict):
    """Actors, `None` before they have run; says what happens to them."""

    def __init__(self, log: list[Any]):
        super().__init__()
        self.log = log

    def __setitem__(self, key, value):
        if value is not None:
            self.log.append(["store", key])
        super().__setitem__(key, value)

    def pop(self, key, default=None):
        if self.get(key) is not None:
            self.log.append(["release", key])
        return super().pop(key, default)


class InFlight(dict):
    """Keys by worker, in the order in which they were selected."""

    selected: tuple[Any, ...] = ()

    def __setitem__(self, worker, keys):
        assert set(self.selected) == keys
        super().__setitem__(worker, OrderedSet(self.selected))


class WorkerState(wsm.WorkerState):
    def __init__(self, *, seed: int, throttle_threshold: int, **kwargs: Any):
        self.data_log: list[Any] = []
        super().__init__(data=Data(self.data_log), validate=False, **kwargs)
        self.transfer_incoming_bytes_throttle_threshold = throttle_threshold
        self.actors = Actors(self.data_log)
        self.in_flight_workers = InFlight()
        self.rng = SplitMix(seed)

    def _select_keys_for_gather(self, available):
        tasks, nbytes = super()._select_keys_for_gather(available)
        self.in_flight_workers.selected = [ts.key for ts in tasks]
        return tasks, nbytes

    def push_transfer(self, keys: list[str], transfer: dict[str, Any]) -> None:
        """As ``Worker.gather_dep`` does before it reports success."""
        cause = Worker._get_cause(SimpleNamespace(state=self), keys)
        cause.startstops.append(transfer)


@pytest.fixture(scope="module")
def stock():
    """Everything that is changed about stock."""
    sets = ("dependencies", "dependents", "waiting_for_data", "waiters", "who_has")
    post_init = wsm.TaskState.__post_init__

    def with_ordered_sets(self):
        post_init(self)
        for name in sets:
            setattr(self, name, OrderedSet())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wsm, "set", OrderedSet, raising=False)
        patch.setattr(distributed.collections, "set", OrderedSet, raising=False)
        patch.setattr(wsm.TaskState, "__post_init__", with_ordered_sets)
        patch.setattr(wsm, "time", CLOCK)
        # Its validation does not foresee a dependency that fails, or that asks to
        # be run elsewhere or is stolen, while somebody waits for it.
        awaited = wsm.WAITING_FOR_DATA | {"error", "released"}
        patch.setattr(wsm, "WAITING_FOR_DATA", awaited)
        # What fails is shown by the test.
        patch.setattr(wsm.logger, "disabled", True)
        yield


def startstop(value: dict[str, Any]) -> list[Any]:
    return [value["action"], value["start"], value["stop"], value.get("source")]


def instruction(value: wsm.Instruction, gathered: dict[str, Any]) -> list[Any]:
    """An instruction as the replay writes it."""
    startstops = [startstop(item) for item in getattr(value, "startstops", ())]
    match value:
        case wsm.GatherDep():
            keys = list(gathered[value.worker])
            assert set(keys) == value.to_gather
            return ["GatherDep", value.worker, keys, value.total_nbytes]
        case wsm.Execute():
            return ["Execute", value.key]
        case wsm.RetryBusyWorkerLater():
            return ["RetryBusyWorkerLater", value.worker]
        case wsm.TaskFinishedMsg():
            fields = [value.run_id, value.nbytes, value.typename, value.thread]
            return [value.op, value.key, *fields, startstops]
        case wsm.TaskErredMsg():
            fields = [value.run_id, value.exception_text, value.thread]
            return [value.op, value.key, *fields, startstops]
        case wsm.LongRunningMsg():
            return [value.op, value.key, value.run_id, value.compute_duration]
        case wsm.StealResponseMsg():
            return [value.op, value.key, value.state]
        case wsm.AddKeysMsg() | wsm.RequestRefreshWhoHasMsg():
            return [value.op, list(value.keys)]
        case wsm.ReleaseWorkerDataMsg() | wsm.RescheduleMsg():
            return [value.op, value.key]
    raise TypeError(value)


def state(ws: WorkerState) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for ts in ws.tasks.values():
        counts[ts.state] = counts.get(ts.state, 0) + 1
    return {
        "tasks": {key: task(ts) for key, ts in ws.tasks.items()},
        "counts": counts,
        "available_resources": ws.available_resources,
        "running": ws.running,
        "nbytes": ws.nbytes,
        "executing_count": ws.executing_count,
        "long_running_count": len(ws.long_running),
        "executed_count": ws.executed_count,
        "in_flight_tasks_count": ws.in_flight_tasks_count,
        "waiting_count": len(ws.waiting),
        "ready_count": len(ws.ready) + len(ws.constrained),
        "transfer_incoming_count": ws.transfer_incoming_count,
        "transfer_incoming_count_total": ws.transfer_incoming_count_total,
        "transfer_incoming_bytes": ws.transfer_incoming_bytes,
        "transition_counter": ws.transition_counter,
    }


def task(ts: wsm.TaskState) -> list[Any]:
    def keys(tasks):
        return [other.key for other in tasks]

    return [
        ts.state,
        ts.previous,
        ts.next,
        ts.run_id,
        ts.nbytes,
        ts.done,
        keys(ts.dependencies),
        keys(ts.dependents),
        keys(ts.waiting_for_data),
        keys(ts.waiters),
        list(ts.who_has),
        [startstop(item) for item in ts.startstops],
    ]


def log(ws: WorkerState) -> list[Any]:
    """The transition log as the replay writes it."""
    return [record(entry) for entry in ws.log]


def record(entry: tuple[Any, ...]) -> list[Any]:
    *what, stimulus_id, _timestamp = entry
    if what[0] == "gather-dependencies":
        # A set in stock.
        what = [what[0], what[1], sorted(what[2])]
    elif isinstance(what[-1], dict):
        what[-1] = [list(item) for item in what[-1].items()]
    else:
        what = [list(item) if isinstance(item, list) else item for item in what]
    return [what, stimulus_id]


def failure() -> Serialize:
    return Serialize(Exception())
