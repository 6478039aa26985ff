"""Random scripts of events, made up as stock answers them.

A script plays the parts of the scheduler, of the peers and of the shell for one
worker: what stock asks for (running a task, a transfer) is answered later, in one
of the ways in which it can end, and between that come messages of the scheduler.
An orderly script only has messages that a scheduler could send; a wild one
disregards what the worker is doing.
"""

from __future__ import annotations

import random
import traceback
from typing import Any

import stock
from distributed import worker_state_machine as wsm
from distributed.sizeof import safe_sizeof

ADDRESS = "tcp://10.0.0.1:4000"
PEERS = [
    "tcp://10.0.0.1:4001",
    "tcp://10.0.0.2:4000",
    "tcp://10.0.0.3:4000",
    "tcp://10.0.0.3:4001",
]
SIZES = [-1, 0, 1, 10, 10, 100, 1000, 5000]
PREFIXES = ["x", "y", "z"]


class Script:
    """One script with what stock made of it."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.seed = seed
        self.is_wild = seed % 4 == 3
        self.events: list[dict[str, Any]] = []
        self.steps: list[Any] = []
        #: The exception that ended the script, if stock raised one.
        self.error: str | None = None
        #: Why stock raised it, if Oxidask goes on instead.
        self.stock_bug: str | None = None
        #: What stock's own validation had against its state, if anything.
        self.invalid: str | None = None
        self.is_over = False

        roll = self.random
        self.peers = PEERS[: roll.randint(1, 4)]
        self.keys = [
            f"{roll.choice(PREFIXES)}-{number}" for number in range(roll.randint(2, 9))
        ]
        # Nothing depends on it; that is rare with actors.
        self.actor = self.keys[-1] if roll.random() < 0.2 else None
        density = roll.choice([0.1, 0.3, 0.6])
        self.dependencies = {
            key: [other for other in self.keys[:at] if roll.random() < density]
            for at, key in enumerate(self.keys)
        }
        self.config = {
            "address": ADDRESS,
            "nthreads": roll.choice([1, 1, 2, 3]),
            "resources": [["R", roll.choice([1, 2])], ["S", 1]],
            "transfer_incoming_count_limit": roll.choice([0, 1, 2, 10]),
            "transfer_incoming_bytes_throttle_threshold": roll.choice([1, 100, 10**7]),
            "transfer_incoming_bytes_limit": roll.choice([None, None, 50, 1000]),
            "transfer_message_bytes_limit": roll.choice([None, 20, 500]),
            "seed": roll.getrandbits(64),
        }
        config = dict(self.config)
        for name in ("transfer_incoming_bytes_limit", "transfer_message_bytes_limit"):
            if config[name] is None:
                config[name] = float("inf")
        config["resources"] = dict(config["resources"])
        config["throttle_threshold"] = config.pop(
            "transfer_incoming_bytes_throttle_threshold"
        )
        self.ws = stock.WorkerState(**config)
        self.run_id = 0
        self.generation = 0
        self.running: dict[str, int] = {}
        self.gathering: dict[str, tuple[list[str], int]] = {}
        self.busy: list[str] = []
        self.weights = {
            self.compute_task: 14,
            self.execute_done: 12,
            self.gather_done: 10,
            self.free_keys: 5,
            self.acquire_replicas: 4,
            self.remove_replicas: 3,
            self.refresh_who_has: 3,
            self.steal_request: 3,
            self.secede: 3,
            self.retry_busy_worker: 3,
            self.find_missing: 2,
            self.remove_worker: 2,
            self.update_data: 2,
            self.pause_or_unpause: 2,
            self.cancel_compute: 1,
        }
        # Some scripts have a lot of one kind.
        for what in roll.sample(list(self.weights), 3):
            self.weights[what] *= roll.choice([0, 1, 3])
        self.play(roll.choice([10, 20, 30, 50]))

    def play(self, length: int) -> None:
        actions = list(self.weights)
        weights = list(self.weights.values())
        for action in self.random.choices(actions, weights, k=length):
            if not self.is_over:
                action()
        if not self.is_wild:
            self.settle()

    def settle(self) -> None:
        """Lets everything come to its end, and frees it."""
        if not self.is_over and not self.ws.running:
            self.send({"event": "UnpauseEvent"})
        for _ in range(60):
            if self.is_over:
                return
            if self.running:
                self.execute_done()
            elif self.gathering:
                self.gather_done()
            elif self.busy:
                self.retry_busy_worker()
            elif self.ws.missing_dep_flight:
                self.refresh(sorted(ts.key for ts in self.ws.missing_dep_flight))
            else:
                break
        if not self.is_over:
            self.send({"event": "FreeKeysEvent", "keys": self.keys})
        for _ in range(60):
            if not self.is_over and (self.running or self.gathering):
                self.execute_done() if self.running else self.gather_done()

    # Dice

    def some(self, items: list[Any], most: int) -> list[Any]:
        if not items:
            return []
        return self.random.sample(items, self.random.randint(1, min(most, len(items))))

    def one_in(self, count: int) -> bool:
        return self.random.randrange(count) == 0

    def holders(self) -> list[str]:
        return self.some(self.peers, 3)

    def state_of(self, key: str) -> str | None:
        ts = self.ws.tasks.get(key)
        return ts.state if ts else None

    def value(self, key: str) -> Any:
        # Actors are never written to disk.
        if key not in self.ws.actors and self.one_in(25):
            return stock.Unstorable()
        return self.random.choice([1, "text", b"bytes", 1.5])

    def insertion(self, value: Any) -> Any:
        if isinstance(value, stock.Unstorable):
            return "TypeError('could not serialize object')"
        disk_write = None
        if isinstance(value, stock.Slow):
            start = stock.CLOCK.now
            disk_write = ["disk-write", start, start + stock.Slow.DURATION, None]
        return [safe_sizeof(value), type_name(value), disk_write]

    # Events

    def compute_task(self) -> None:
        key = self.random.choice(self.keys)
        if not self.is_wild and self.state_of(key) == "error":
            # The scheduler frees what failed before it retries it.
            self.free([key])
            if self.is_over:
                return
        dependencies = self.dependencies[key]
        if self.is_wild and self.one_in(8):
            dependencies = self.some(self.keys[: self.keys.index(key)], 2)
        self.run_id += 1
        if self.one_in(4):
            self.generation += 1
        restrictions = []
        if self.one_in(4):
            restrictions = [["R", self.random.choice([0.5, 1])]]
            if self.one_in(3):
                restrictions.append(["S", 1])
        self.send(
            {
                "event": "ComputeTaskEvent",
                "key": key,
                "run_id": self.run_id,
                "who_has": [[other, self.holders()] for other in dependencies],
                "nbytes": [
                    [other, self.random.choice(SIZES)] for other in dependencies
                ],
                "priority": [
                    self.random.choice([0, 0, 0, -1, 0.5, 2]),
                    self.generation,
                    self.random.choice([self.keys.index(key), 0]),
                ],
                "resource_restrictions": restrictions,
                "actor": key == self.actor,
            }
        )

    def free_keys(self) -> None:
        self.free(self.some(self.keys, 3))

    def free(self, keys: list[str]) -> None:
        if not self.is_wild:
            # What depends on a key that goes has gone before.
            for key in self.keys:
                if key not in keys and any(
                    d in keys for d in self.dependencies_of(key)
                ):
                    keys.append(key)
            self.random.shuffle(keys)
        self.send({"event": "FreeKeysEvent", "keys": keys})

    def dependencies_of(self, key: str) -> list[str]:
        ts = self.ws.tasks.get(key)
        return [dependency.key for dependency in ts.dependencies] if ts else []

    def acquire_replicas(self) -> None:
        keys = [key for key in self.some(self.keys, 3) if key != self.actor]
        self.send(
            {
                "event": "AcquireReplicasEvent",
                "who_has": [[key, self.holders()] for key in keys],
                "nbytes": [[key, self.random.choice(SIZES)] for key in keys],
            }
        )

    def remove_replicas(self) -> None:
        keys = self.some(self.keys, 3)
        if not (self.is_wild and self.one_in(4)):
            # A scheduler never asks for these.
            keys = [key for key in keys if not self.is_read(key)]
        if not self.is_wild:
            # It knows of every waiting dependent, too.
            keys = [key for key in keys if not self.is_awaited(key)]
        self.send({"event": "RemoveReplicasEvent", "keys": keys})

    def is_read(self, key: str) -> bool:
        ts = self.ws.tasks.get(key)
        return ts is not None and any(
            dependent.state in ("executing", "long-running")
            for dependent in ts.dependents
        )

    def is_awaited(self, key: str) -> bool:
        ts = self.ws.tasks.get(key)
        return ts is not None and any(
            dependent.state in ("waiting", "ready", "constrained", "resumed")
            for dependent in ts.dependents
        )

    def refresh_who_has(self) -> None:
        self.refresh(self.some(self.keys, 3))

    def refresh(self, keys: list[str]) -> None:
        who_has = []
        for key in keys:
            holders = [] if self.one_in(4) else self.holders()
            if self.one_in(10):
                holders.append(ADDRESS)
            who_has.append([key, holders])
        self.send({"event": "RefreshWhoHasEvent", "who_has": who_has})

    def remove_worker(self) -> None:
        self.send({"event": "RemoveWorkerEvent", "worker": self.random.choice(PEERS)})

    def steal_request(self) -> None:
        key = self.random.choice(self.keys)
        self.send({"event": "StealRequestEvent", "key": key})

    def cancel_compute(self) -> None:
        key = self.random.choice(self.keys)
        ts = self.ws.tasks.get(key)
        if self.is_wild or ts is None or not ts.dependents:
            self.send({"event": "CancelComputeEvent", "key": key})

    def update_data(self) -> None:
        keys = self.some(self.keys, 2)
        if not (self.is_wild and self.one_in(3)):
            # Stock does not cope with scattering what it is busy with.
            idle = (None, "released", "memory")
            keys = [key for key in keys if self.state_of(key) in idle]
        data = [[key, self.value(key)] for key in keys]
        self.send({"event": "UpdateDataEvent", "data": data})

    def pause_or_unpause(self) -> None:
        event = "PauseEvent" if self.ws.running else "UnpauseEvent"
        self.send({"event": event})

    def find_missing(self) -> None:
        self.send({"event": "FindMissingEvent"})

    def retry_busy_worker(self) -> None:
        if self.busy:
            worker = self.busy.pop(self.random.randrange(len(self.busy)))
            self.send({"event": "RetryBusyWorkerEvent", "worker": worker})

    def secede(self) -> None:
        if self.running:
            key = self.random.choice(list(self.running))
            self.send({"event": "SecedeEvent", "key": key, "compute_duration": 0.25})

    def execute_done(self) -> None:
        if not self.running:
            return
        key = self.random.choice(list(self.running))
        run_id = self.running.pop(key)
        if self.one_in(10):
            self.send({"event": "RescheduleEvent", "key": key})
            return
        start = stock.CLOCK.now
        event: dict[str, Any] = {
            "key": key,
            "run_id": run_id,
            "startstops": [["compute", start - 0.5, start, None]],
            "thread": self.random.choice([None, 1234]),
        }
        if self.one_in(6):
            if self.one_in(3):
                event["startstops"] = []
            self.send({"event": "ExecuteFailureEvent", "exception": "boom", **event})
            return
        is_slow = key not in self.ws.actors and self.one_in(10)
        value = stock.Slow(b"slow") if is_slow else self.value(key)
        event |= {"value": value, "nbytes": safe_sizeof(value)}
        self.send({"event": "ExecuteSuccessEvent", **event})

    def gather_done(self) -> None:
        if not self.gathering:
            return
        worker = self.random.choice(list(self.gathering))
        keys, total_nbytes = self.gathering.pop(worker)
        event: dict[str, Any] = {"worker": worker, "total_nbytes": total_nbytes}
        outcome = self.random.randrange(12)
        if outcome == 0:
            event |= {"event": "GatherDepNetworkFailureEvent"}
        elif outcome == 1:
            event |= {"event": "GatherDepFailureEvent", "exception": "broken"}
        elif outcome in (2, 3):
            self.busy.append(worker)
            event |= {"event": "GatherDepBusyEvent"}
        else:
            if outcome in (4, 5):
                keys = [key for key in keys if self.one_in(2)]
            now = stock.CLOCK.now
            event |= {
                "event": "GatherDepSuccessEvent",
                "data": [[key, self.value(key)] for key in keys],
                "transfer": ["transfer", now - 0.125, now, worker],
            }
        self.send(event)

    # Stock

    def send(self, event: dict[str, Any]) -> None:
        """Has stock handle an event, and records both."""
        number = len(self.events)
        stock.CLOCK.now = 1000.0 + number
        event["stimulus_id"] = f"s{number}"
        event["now"] = stock.CLOCK.now
        self.events.append(self.plain(event))
        self.ws.data_log.clear()
        denied = self.denied(event)
        try:
            instructions = self.ws.handle_stimulus(self.stimulus(event))
        except Exception as error:
            self.error = type(error).__name__
            self.stock_bug = stock_bug(error)
            self.is_over = True
            return
        step = [
            stock.instruction(value, self.ws.in_flight_workers)
            for value in instructions
        ]
        for value in instructions:
            assert value.stimulus_id == event["stimulus_id"]
        self.steps.append([denied + step, list(self.ws.data_log)])
        for name, *fields in step:
            if name == "Execute":
                [key] = fields
                self.running[key] = self.ws.tasks[key].run_id
            elif name == "GatherDep":
                worker, keys, total_nbytes = fields
                self.gathering[worker] = (keys, total_nbytes)
        if not self.is_wild:
            try:
                self.ws.validate_state()
            except Exception as error:
                self.invalid = failed_check(error)
                self.is_over = True

    def denied(self, event: dict[str, Any]) -> list[list[str]]:
        """What the core says and stock does not, so that nobody waits for ever: that
        something is missing which the scheduler believes to be here."""
        if event["event"] != "RefreshWhoHasEvent":
            return []
        return [
            ["release-worker-data", key]
            for key, holders in event["who_has"]
            if ADDRESS in holders and self.state_of(key) == "missing"
        ]

    def stimulus(self, event: dict[str, Any]) -> wsm.StateMachineEvent:
        """Stock's own form of an event."""
        fields = {k: v for k, v in event.items() if k not in ("event", "now")}
        for name, value in fields.items():
            if name in ("who_has", "nbytes", "resource_restrictions", "data"):
                fields[name] = dict(value) if isinstance(value, list) else value
        match event["event"]:
            case "ComputeTaskEvent":
                fields["priority"] = tuple(fields["priority"])
                fields["run_spec"] = wsm.ComputeTaskEvent.dummy_runspec(event["key"])
                fields |= {"annotations": {}, "span_id": None}
            case "ExecuteSuccessEvent" | "ExecuteFailureEvent":
                startstops = fields.pop("startstops")
                start, stop = startstops[0][1:3] if startstops else (None, None)
                fields |= {"start": start, "stop": stop}
                thread = fields.pop("thread")
                if thread is not None:
                    self.ws.threads[event["key"]] = thread
                if "value" in fields:
                    fields["type"] = type(fields["value"])
            case "GatherDepSuccessEvent":
                action, start, stop, source = fields.pop("transfer")
                transfer = {"action": action, "start": start, "stop": stop}
                keys = self.ws.in_flight_workers[event["worker"]]
                self.ws.push_transfer(keys, transfer | {"source": source})
        if "exception" in fields:
            fields |= {
                "exception": stock.failure(),
                "traceback": None,
                "exception_text": event["exception"],
                "traceback_text": "",
            }
        return getattr(wsm, event["event"])(**fields)

    def plain(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event without values, for the replay."""
        if "value" in event:
            event = event | {"value": self.insertion(event["value"])}
        if "data" in event:
            data = [[key, self.insertion(value)] for key, value in event["data"]]
            event = event | {"data": data}
        return event


def type_name(value: Any) -> str:
    return wsm.typename(type(value))


def failed_check(error: BaseException) -> str:
    """The function of stock that failed, and the line."""
    last = traceback.extract_tb((error.__cause__ or error).__traceback__)[-1]
    return f"{last.name}: {last.line}"


def stock_bug(error: Exception) -> str | None:
    """What is wrong with stock, where Oxidask behaves differently on purpose.

    * A task that is to be fetched, then to be computed from inputs that are not
      in memory: its way leads through ``released``, which recommends to release
      those inputs, and then ``waiting``, which recommends to fetch them.
    * A resumed task whose value cannot be stored: stock forgets what the task was
      resumed from before it tries to store, and asserts on that afterwards.
    """
    if isinstance(error.__cause__, wsm.RecommendationsConflict):
        return "recommendations conflict"
    if failed_check(error).startswith("_transition_resumed_error"):
        return "resumed task cannot be stored"
    return None
