"""Plays the transcripts of these tests on the stock scheduler and compares.

    python crates/scheduler/tests/core/stock.py [NAME...]
    python crates/scheduler/tests/core/stock.py --random COUNT > stock.txt
    python crates/scheduler/tests/core/stock.py --stealing COUNT > stealing.txt

The other forms write transcripts of random events as stock plays them, the last one with
rounds of work stealing; the test ``recorded`` plays those on ours. Needs ``distributed`` installed. Every ``check("...")`` in the ``*.rs`` files beside
this one is played unless the test says ``differs from stock`` in its doc comment.
Messages are compared per peer: how messages to different peers interleave is nobody's
business. Python's sets are made to iterate in order of insertion, which is one of the
orders that stock may take.
"""

from __future__ import annotations

import asyncio
import inspect
import pathlib
import pickle
import random
import re
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, MutableSet
from typing import Any

import dask
from dask._task_spec import Task, TaskRef
from distributed import scheduler as module
from distributed.core import Status
from distributed.scheduler import ClientState, Scheduler
from distributed import stealing as stealing_module
from distributed.stealing import WorkStealing


class OrderedSet(MutableSet):
    """A set that iterates in order of insertion."""

    def __init__(self, items: Iterable = ()) -> None:
        self.items = dict.fromkeys(items)

    def __contains__(self, item: object) -> bool:
        return item in self.items

    def __iter__(self) -> Iterator:
        return iter(list(self.items))

    def __len__(self) -> int:
        return len(self.items)

    def add(self, item: Any) -> None:
        self.items[item] = None

    def discard(self, item: Any) -> None:
        self.items.pop(item, None)

    def update(self, *others: Iterable) -> None:
        for other in others:
            self.items.update(dict.fromkeys(other))

    def pop(self) -> Any:
        return self.items.popitem()[0]

    def copy(self) -> OrderedSet:
        return OrderedSet(self.items)

    def difference(self, other: Iterable) -> OrderedSet:
        return OrderedSet(item for item in self.items if item not in other)

    def issubset(self, other: Any) -> bool:
        return all(item in other for item in self.items)

    def issuperset(self, other: Any) -> bool:
        return all(item in self.items for item in other)

    @staticmethod
    def union(*sets: Iterable) -> OrderedSet:
        result = OrderedSet()
        result.update(*sets)
        return result

    @staticmethod
    def intersection(first: Iterable, *others: Any) -> OrderedSet:
        return OrderedSet(item for item in first if all(item in other for other in others))

    def __eq__(self, other: object) -> bool:
        return set(self.items) == set(other)  # type: ignore[call-overload]

    __hash__ = None  # type: ignore[assignment]


class LastFirst(OrderedSet):
    """A set that iterates against the order of insertion, as ours looks at stealable tasks."""

    def __iter__(self) -> Iterator:
        return iter(list(self.items)[::-1])


class Stealing(WorkStealing):
    def add_worker(self, scheduler: Any = None, worker: Any = None) -> None:
        self.stealable[worker] = tuple(LastFirst() for _ in range(15))

    def recalculate_cost(self, ts: Any) -> None:
        # Without dependencies nothing changes but the order.
        if ts.dependencies:
            super().recalculate_cost(ts)


class Comm:
    """Keeps what is sent to one peer."""

    def __init__(self) -> None:
        self.sent: list[dict] = []

    def send(self, *messages: dict) -> None:
        self.sent.extend(messages)

    async def write(self, message: Any) -> None:
        pass

    def abort(self) -> None:
        pass


def inc(*args: Any) -> int:
    return len(args)


class Player:
    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.runs: dict[tuple[str, str], int] = {}
        self.steals: dict[tuple[str, str], str] = {}
        self.stealing = scheduler.extensions["stealing"] = Stealing(scheduler)
        self.stimulus = 0
        self.workers_added = 0
        self.now = 1000.0

    def address(self, name: str) -> str:
        return f"tcp://{name}:1"

    def take(self) -> dict[str, list[str]]:
        """What every peer was told, as the transcripts show it."""
        lines: dict[str, list[str]] = {}
        s = self.scheduler
        for address, comm in s.stream_comms.items():
            name = address.removeprefix("tcp://").removesuffix(":1")
            for message in comm.sent:
                for line in self.to_worker(name, message):
                    lines.setdefault(name, []).append(f"> {name} {line}")
            comm.sent = []
        for name, comm in s.client_comms.items():
            for message in comm.sent:
                line = self.to_client(message)
                lines.setdefault(name, []).append(f"< {name} {line}")
            comm.sent = []
        return lines

    def to_worker(self, name: str, message: dict) -> list[str]:
        match message["op"]:
            case "compute-task":
                self.runs[name, message["key"]] = message["run_id"]
                return [f"compute {message['key']}"]
            case "steal-request":
                self.steals[name, message["key"]] = message["stimulus_id"]
                return [f"steal {message['key']}"]
            case "free-keys":
                return [f"free {key}" for key in message["keys"]]
            case "remove-replicas":
                return ["remove-replicas " + " ".join(message["keys"])]
            case "refresh-who-has":
                pairs = message["who_has"].items()
                names = [f"{k}@{','.join(a[6:-2] for a in v)}" for k, v in pairs]
                return ["who-has " + " ".join(names)]
            case "remove-worker":
                return [f"gone {message['worker'][6:-2]}"]
        return [str(message)]

    def to_client(self, message: dict) -> str:
        match message["op"]:
            case "key-in-memory":
                return f"memory {message['key']}" + ("" if "type" in message else " already")
            case "lost-data":
                return f"lost {message['key']}"
            case "task-erred":
                exception = message["exception"]
                if isinstance(exception, bytes):
                    exception = type(pickle.loads(exception)).__name__
                elif not isinstance(exception, str):
                    exception = "RuntimeError"
                return f"erred {message['key']} {exception}"
            case "task-retried":
                return f"retried {message['key']}"
            case "cancelled-keys":
                keys = " ".join(message["keys"])
                return f"cancelled {keys} ({message.get('reason', 'no reason')})"
        return message["op"]

    async def command(self, text: str) -> dict[str, list[str]] | None:
        """Plays one line; None if there is nothing to compare."""
        s = self.scheduler
        verb, *words = text.split()
        plain = [word for word in words if "=" not in word]
        options = dict(word.split("=", 1) for word in words if "=" in word)
        self.stimulus += 1
        stimulus_id = f"s{self.stimulus}"
        if plain and verb in (
            "finish err remove retire status drop add-keys secede reschedule refresh executing"
            " occupancy answer"
        ).split():
            worker = self.address(plain[0])
            run_id = int(options.get("run", self.runs.get((plain[0], plain[-1]), -1)))
        match verb:
            case "worker":
                await self.add_worker(plain, options, stimulus_id)
            case "client":
                s.clients[plain[0]] = ClientState(plain[0])
                s.client_comms[plain[0]] = Comm()
            case "submit":
                self.submit(text, stimulus_id)
            case "finish":
                took = float(options.get("took", 0.1))
                s.handle_task_finished(
                    key=plain[1],
                    worker=worker,
                    stimulus_id=stimulus_id,
                    run_id=run_id,
                    metadata={},
                    nbytes=int(options.get("nbytes", 10)),
                    type=b"type",
                    typename="int",
                    startstops=[{"action": "compute", "start": self.now, "stop": self.now + took}],
                    thread=None,
                )
            case "err":
                s.handle_task_erred(
                    key=plain[1],
                    worker=worker,
                    stimulus_id=stimulus_id,
                    run_id=run_id,
                    exception=f"{plain[1]}-failed",
                    traceback=None,
                    exception_text="oh",
                    traceback_text="",
                )
            case "release":
                s.client_releases_keys(plain[1:], plain[0], stimulus_id)
            case "desire":
                s.client_desires_keys(plain[1:], plain[0])
            case "cancel":
                s.stimulus_cancel(plain[1:], plain[0], "force" in options, "because", None)
            case "retry":
                try:
                    s.stimulus_retry(plain[1:], plain[0])
                except KeyError:
                    pass
            case "report":
                s.report_on_key(plain[1], client=plain[0])
            case "disconnect":
                s.remove_client(plain[0], stimulus_id)
                del s.client_comms[plain[0]]
            case "remove" | "retire":
                expected = verb == "retire"
                await s.remove_worker(worker, stimulus_id=stimulus_id, expected=expected, close=False)
            case "status":
                s.handle_worker_status_change(plain[1], worker, stimulus_id)
            case "drop":
                s.release_worker_data(plain[1], worker, stimulus_id)
            case "add-keys":
                s.add_keys(worker, plain[1:], stimulus_id)
            case "secede":
                s.handle_long_running(plain[1], worker, run_id, 1.0, stimulus_id)
            case "reschedule":
                s._reschedule(plain[1], worker, stimulus_id=stimulus_id)
            case "refresh":
                s.handle_request_refresh_who_has(plain[1:], worker, stimulus_id)
            case "scatter":
                holders = [self.address(name) for name in plain[2:]]
                nbytes = {plain[1]: int(options.get("nbytes", 100))}
                s.update_data(who_has={plain[1]: holders}, nbytes=nbytes, client=plain[0])
            case "executing":
                self.heartbeat(worker, {plain[1]: float(plain[2])})
            case "balance":
                self.stealing.balance()
            case "answer":
                self.stealing.move_task_confirm(
                    key=plain[1],
                    state=plain[2] if len(plain) > 2 else None,
                    stimulus_id=options.get("stimulus") or self.steals[plain[0], plain[1]],
                    worker=worker,
                )
                # Stock leaves slots that open by this to the next event.
                s.stimulus_queue_slots_maybe_opened(stimulus_id=stimulus_id)
            case "levels":
                levels = [f"{ts.key}:{level}" for ts, (_, level) in self.stealing.key_stealable.items()]
                return {"=": [f"= {' '.join(sorted(levels))}".rstrip()]}
            case "restart":
                for cs in s.clients.values():
                    s.client_releases_keys([ts.key for ts in cs.wants_what], cs.client_key, stimulus_id)
                s._clear_task_state()
                s.report({"op": "restart"})
            case "empty":
                assert not s.tasks, s.tasks
                s.validate_state()
                return None
            case "states":
                return {"=": [self.states()]}
            case "story":
                return {"=": self.story(plain)}
            case "occupancy":
                return {"=": [f"= {s.workers[worker].occupancy:.3f}"]}
            case _:
                raise ValueError(text)
        s.validate_state()
        return self.take()

    async def add_worker(self, plain: list[str], options: dict, stimulus_id: str) -> None:
        s = self.scheduler
        address = self.address(plain[0])
        await s.add_worker(
            Comm(),
            address=address,
            status="init",
            server_id=f"{plain[0]}-{stimulus_id}",
            nthreads=int(plain[1]) if len(plain) > 1 else 1,
            name=plain[0],
            resolve_address=False,
            now=self.now,
            resources={"gpu": float(options["gpu"])} if "gpu" in options else {},
            memory_limit=int(options["memory"]) if "memory" in options else None,
            metrics=METRICS,
            services={},
            local_directory="",
            versions={},
            nanny="",
            extra={},
            stimulus_id=stimulus_id,
        )
        s.stream_comms[address] = Comm()
        # Small hashes make plain sets of workers iterate in order of registration.
        self.workers_added += 1
        s.workers[address]._hash = self.workers_added
        s.handle_worker_status_change("running", address, stimulus_id)

    def heartbeat(self, worker: str, executing: dict) -> None:
        self.scheduler.heartbeat_worker(
            address=worker, resolve_address=False, metrics=METRICS, executing=executing
        )

    def submit(self, text: str, stimulus_id: str) -> None:
        s = self.scheduler
        head, _, tail = text.partition(":")
        tasks, _, options_text = tail.partition("|")
        _, client, *keys = head.split()
        options = dict(option.split("=", 1) for option in options_text.split())
        dsk = {}
        for task in tasks.split(";"):
            key, _, dependencies = task.partition("<-")
            refs = [TaskRef(name) for name in dependencies.split()]
            node = Task(key.strip(), inc, *refs, _data_producer="producers" in options)
            node._dependencies = OrderedSet(dependencies.split())
            dsk[key.strip()] = node
        annotations: dict = {}
        if "workers" in options:
            annotations["workers"] = options["workers"].split(",")
        if "gpu" in options:
            annotations["resources"] = {"gpu": float(options["gpu"])}
        if "resources" in options:
            annotations["resources"] = options["resources"]
        if "loose" in options:
            annotations["allow_other_workers"] = True
        for name in ("retries", "priority"):
            if name in options:
                annotations[name] = int(options[name])
        wanted = OrderedSet(keys)
        if s._find_lost_dependencies(dsk, wanted):
            reason = {"op": "cancelled-keys", "keys": keys, "reason": "lost dependencies"}
            s.report(reason, client=client)
            s.client_releases_keys(keys=keys, client=client, stimulus_id=stimulus_id)
            return
        try:
            s._create_taskstate_from_graph(
                start=self.now,
                dsk=dsk,
                keys=wanted,
                ordered={key: order for order, key in enumerate(dsk)},
                client=client,
                annotations_by_type={},
                global_annotations=annotations,
                stimulus_id=stimulus_id,
                submitting_task=options.get("parent"),
                span_metadata={"collections": []},
                actors="actors" in options,
                fifo_timeout=float(options.get("fifo", 60)),
            )
        except AssertionError as error:
            if "resources" not in options:
                raise
            for key in keys:
                message = {"op": "task-erred", "key": key, "exception": pickle.dumps(error), "traceback": None}
                s.report(message, client=client)

    def states(self) -> str:
        states = []
        for ts in self.scheduler.tasks.values():
            place = ""
            if ts.processing_on:
                place = "@" + ts.processing_on.address[6:-2]
            if ts.who_has:
                place = "@" + ",".join(ws.address[6:-2] for ws in ts.who_has)
            states.append(f"{ts.key}={ts.state}{place}")
        return f"= {' '.join(sorted(states))}".rstrip()

    def story(self, keys: list[str]) -> list[str]:
        log = self.scheduler.story(*keys) if keys else self.scheduler.transition_log
        lines = []
        for key, start, finish, recs, *_ in log:
            recs = " ".join(f"{other}:{state}" for other, state in recs.items())
            lines.append(f"= {key} {start}->{finish} {recs}".rstrip())
        return lines


def resolve_address(address: str) -> str:
    """As the real one, but every host name is known."""
    location = address.rpartition("://")[2]
    if ":" not in location:
        raise ValueError(f"missing port number in address {address!r}")
    return address if "://" in address else f"tcp://{address}"


METRICS = {
    "memory": 1_000_000,
    "spilled_bytes": {"memory": 0, "disk": 0},
    "bandwidth": {"total": 100_000_000, "workers": {}, "types": {}},
    "digests_total_since_heartbeat": {},
}

CHECK = re.compile(
    r"(?P<doc>(?:///[^\n]*\n)*)#\[test\]\nfn (?P<name>\w+)\(\) \{\n(?P<head>(?:(?!\n\}\n).)*?)"
    r"check(?:_with)?\(\s*(?:config,\s*)?\"\n?(?P<body>[^\"]*?)\",?\s*\);",
    re.S,
)


def transcripts() -> Iterator[tuple[str, str, str]]:
    for path in sorted(pathlib.Path(__file__).parent.glob("*.rs")):
        for found in CHECK.finditer(path.read_text()):
            if "differs from stock" not in found["doc"].lower():
                yield found["name"], found["head"], found["body"]


def expected_by_peer(lines: list[str]) -> dict[str, list[str]]:
    by_peer: dict[str, list[str]] = {}
    for line in lines:
        sign, _, rest = line.partition(" ")
        if sign in "~!":
            continue
        if sign == "=":
            by_peer.setdefault("=", []).append(line)
            continue
        peer, _, rest = rest.partition(" ")
        if rest.startswith("free "):
            for key in rest.removeprefix("free ").split():
                by_peer.setdefault(peer, []).append(f"{sign} {peer} free {key}")
        else:
            by_peer.setdefault(peer, []).append(line.strip())
    return by_peer


def new_player(saturation: object) -> Player:
    with dask.config.set({"distributed.scheduler.worker-saturation": saturation}):
        scheduler = Scheduler(dashboard=False, validate=True, host="127.0.0.1", port=0)
    scheduler.plugins.clear()
    scheduler.extensions.clear()
    scheduler.status = Status.running
    scheduler.idle_task_count = set()

    async def handle_worker(comm: Any, worker: str) -> None:
        pass

    scheduler.handle_worker = handle_worker  # type: ignore[method-assign]
    return Player(scheduler)


async def play(name: str, head: str, body: str) -> list[str]:
    player = new_player("inf" if "INFINITY" in head else 1.1)
    commands: list[tuple[str, list[str]]] = []
    for line in body.splitlines():
        if line.startswith(" "):
            commands[-1][1].append(line.strip())
        elif line.strip():
            commands.append((line.strip(), []))
    differences = []
    for text, expected in commands:
        if text.split()[0] in ("wait", "explode", "fail-bundle", "idle") or "bundle=" in text:
            return [f"  not played: {text}"] if differences else []
        try:
            played = await player.command(text)
        except Exception as error:
            differences.append(f"  {text}\n    stock raises {type(error).__name__}: {error}"[:300])
            break
        ours = expected_by_peer(expected)
        if played is not None and played != ours:
            differences.append(f"  {text}\n    stock {played}\n    ours  {ours}")
    return differences


class RandomTranscript:
    """Events chosen among what is possible in the state that stock is in."""

    def __init__(self, seed: int, kinds: dict[str, int]) -> None:
        self.kinds = kinds
        self.dice = random.Random(seed)
        self.player = new_player(self.dice.choice([1.1, 1.1, "inf"]))
        self.scheduler = self.player.scheduler
        self.lines: list[str] = []
        self.workers = 0

    async def play(self, text: str) -> None:
        told = await self.player.command(text)
        self.lines.append(text)
        for lines in (told or {}).values():
            self.lines += [f"  {line}" for line in lines]
        # Where stock forgets about a task that somebody waits for, ours goes on.
        for ts in self.scheduler.tasks.values():
            assert ts.state != "released" or not ts.who_wants, "stuck"
            failed = any(dts.state == "erred" for dts in ts.dependencies)
            assert ts.state != "waiting" or not failed, "stuck"
            # Resubmitted, stock takes such a task for a lost actor.
            assert ts.state != "memory" or not failed, "surprising"

    def pick(self, *states: str) -> Any:
        tasks = [ts for ts in self.scheduler.tasks.values() if ts.state in states]
        return self.dice.choice(tasks) if tasks else None

    def name_of(self, ws: Any) -> str:
        return ws.address[6:-2]

    def graph(self) -> str:
        """A graph without loose ends: what is wanted and all it needs, down to known keys."""
        dice = self.dice
        pool = dice.choice([6, 12, 24])
        wanted = dice.sample(range(pool), dice.randint(1, min(6, pool)))
        needed: set[int] = set()
        stack = list(wanted)
        while stack:
            number = stack.pop()
            if number in needed:
                continue
            if number not in wanted and name(number) in self.scheduler.tasks and dice.random() < 0.2:
                continue
            needed.add(number)
            stack += dependencies(number)
        tasks = [
            f"{name(n)} <- {' '.join(map(name, dependencies(n)))}" if dependencies(n) else name(n)
            for n in sorted(needed, key=lambda _: dice.random())
        ]
        client = dice.choice(sorted(self.scheduler.client_comms))
        options = dice.choice([""] * 6 + ["retries=1", "priority=2", "workers=w1,w2", "gpu=1", "producers=1"])
        tail = f" | {options}" if options else ""
        return f"submit {client} {' '.join(map(name, wanted))}: {'; '.join(tasks)}{tail}"

    def next(self) -> str | None:
        dice, s = self.dice, self.scheduler
        clients = sorted(s.client_comms)
        workers = [self.name_of(ws) for ws in s.workers.values()]
        wanted = [(c, ts.key) for c in clients for ts in s.clients[c].wants_what]
        kind = dice.choices(list(self.kinds), list(self.kinds.values()))[0]
        match kind:
            case "worker" if len(workers) < 4:
                self.workers += 1
                gpu = dice.choice(["", " gpu=1"])
                return f"worker w{self.workers} {dice.randint(1, 3)}{gpu}"
            case "client" if len(clients) < 2:
                return f"client c{len(clients)}"
            case "submit" if clients:
                return self.graph()
            case "finish" | "err" | "secede" | "reschedule":
                ts = self.pick("processing")
                if ts and not (kind == "secede" and ts in ts.processing_on.long_running):
                    where = self.name_of(ts.processing_on)
                    nbytes = dice.choice([10, 10_000_000, 200_000_000])
                    tail = f" nbytes={nbytes} took={dice.choice([0.1, 1, 5])}" if kind == "finish" else ""
                    return f"{kind} {where} {ts.key}{tail}"
            case "stale" if workers and s.tasks:
                return f"finish {dice.choice(workers)} {dice.choice(list(s.tasks))} run=0"
            case "release" | "cancel" if wanted:
                client, key = dice.choice(wanted)
                return f"{kind} {client} {key}"
            case "retry" if clients and (ts := self.pick("erred")):
                return f"retry {clients[0]} {ts.key}"
            case "report" if clients and s.tasks:
                return f"report {clients[0]} {dice.choice(list(s.tasks))}"
            case "remove" | "retire" if workers:
                return f"{kind} {dice.choice(workers)}"
            case "status" if workers:
                return f"status {dice.choice(workers)} {dice.choice(['paused', 'running', 'running'])}"
            case "drop":
                if ts := self.pick("memory"):
                    return f"drop {self.name_of(dice.choice(list(ts.who_has)))} {ts.key}"
            case "add-keys" if workers and s.tasks:
                return f"add-keys {dice.choice(workers)} {dice.choice(list(s.tasks))}"
            case "balance":
                return "balance"
            case "answer":
                known = [ts for ts in self.player.stealing.in_flight if ts.state == "processing"]
                if known:
                    ts = dice.choice(known)
                    state = dice.choice([" ready", " waiting", " constrained", " executing", ""])
                    stimulus = dice.choice(["", "", "", "", " stimulus=steal-other"])
                    return f"answer {self.name_of(ts.processing_on)} {ts.key}{state}{stimulus}"
            case "refresh" if workers and s.tasks:
                return f"refresh {dice.choice(workers)} {dice.choice(list(s.tasks))} gone"
        return None

    async def run(self, count: int) -> str:
        while len([line for line in self.lines if not line.startswith(" ")]) < count:
            text = self.next()
            if text is not None:
                await self.play(text)
        await self.play("states")
        await self.play("story")
        await self.play("levels")
        for address in list(self.scheduler.workers):
            await self.play(f"occupancy {address[6:-2]}")
        return "\n".join(self.lines)


KINDS = {
    "worker": 4,
    "client": 3,
    "submit": 8,
    "finish": 20,
    "err": 2,
    "secede": 1,
    "reschedule": 1,
    "stale": 1,
    "release": 4,
    "cancel": 1,
    "retry": 2,
    "report": 1,
    "remove": 1,
    "retire": 1,
    "status": 2,
    "drop": 1,
    "add-keys": 2,
    "refresh": 1,
}


#: Many tasks on few workers, so that there is something to steal.
STEALING_KINDS = KINDS | {"balance": 8, "answer": 12, "submit": 12, "retire": 0, "remove": 1, "status": 1}


def name(number: int) -> str:
    return f"{'xyz'[number % 3]}-{number}"


def dependencies(number: int) -> list[int]:
    """Always the same for a key, so that graphs agree."""
    return [n for n in range(number) if (number * 7 + n * 3) % 5 == 0][-3:]


def order_waiters() -> None:
    """Stock builds ``waiters`` by a set comprehension, out of reach of a module's ``set``."""
    method = Scheduler._transition_released_waiting
    source = textwrap.dedent(inspect.getsource(method))
    patched = source.replace(
        '{dts for dts in ts.dependents if dts.state == "waiting"}',
        'set(dts for dts in ts.dependents if dts.state == "waiting")',
    )
    assert patched != source
    exec(patched, vars(module))
    replaced = vars(module)["_transition_released_waiting"]
    table = dict(module.SchedulerState._TRANSITIONS_TABLE)
    table["released", "waiting"] = replaced
    module.SchedulerState._TRANSITIONS_TABLE = table


async def write_random(count: int, kinds: dict[str, int]) -> None:
    """Transcripts that stock plays without raising, one per paragraph."""
    seed = written = 0
    while written < count:
        seed += 1
        transcript = RandomTranscript(seed, kinds)
        try:
            text = await transcript.run(transcript.dice.randint(20, 60))
        except Exception:
            continue
        if kinds is STEALING_KINDS and "\n  > " not in text.partition(" steal ")[2]:
            continue
        saturation = transcript.scheduler.WORKER_SATURATION
        print(f"# {seed} worker-saturation {saturation}\n{text}\n")
        written += 1


async def main() -> int:
    warnings.simplefilter("ignore")
    module.set = OrderedSet  # type: ignore[attr-defined]
    stealing_module.set = OrderedSet  # type: ignore[attr-defined]
    module.resolve_address = resolve_address  # type: ignore[attr-defined]
    order_waiters()
    if sys.argv[1:2] == ["--random"]:
        await write_random(int(sys.argv[2]), KINDS)
        return 0
    if sys.argv[1:2] == ["--stealing"]:
        await write_random(int(sys.argv[2]), STEALING_KINDS)
        return 0
    wanted = sys.argv[1:]
    failures = played = 0
    for name, head, body in transcripts():
        if wanted and name not in wanted:
            continue
        differences = await play(name, head, body)
        played += 1
        if differences:
            failures += 1
            print(f"{name}\n" + "\n".join(differences))
    print(f"{played} transcripts played on stock, {failures} differ")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
