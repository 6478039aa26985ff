"""Python beside the scheduler: runs what programs give to *the scheduler* to run.

The scheduler process has no Python. Functions of ``run_on_scheduler``, scheduler
plug-ins, feeds and preloads run here instead, against an object that mirrors the
scheduler's state and sends back what would change it. The protocol is described
in docs/plugin-host.md.

A graph helper becomes the plug-in host when the scheduler first needs one: it
executes this file and calls :func:`main`. Like the helper's, this file imports
nothing from ``oxidask``.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import os
import select
import socket
import struct
import sys
import warnings
from collections import defaultdict
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from typing import Any

import dask
import distributed.scheduler as stock
import msgpack
from dask.typing import no_default
from dask.utils import key_split
from distributed import preloading
from distributed.active_memory_manager import ActiveMemoryManagerExtension
from distributed.client import SourceCode
from distributed.comm.addressing import get_address_host_port
from distributed.comm.core import CommClosedError
from distributed.core import Status, _expects_comm, error_message
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.metrics import time
from distributed.protocol import pickle
from distributed.protocol.core import dumps, loads
from distributed.protocol.serialize import msgpack_decode_default
from distributed.security import Security
from distributed.spans import Span, SpansSchedulerExtension
from distributed.utils import import_term, recursive_to_dict
from distributed.worker import run

__all__ = ["main"]

logger = logging.getLogger("distributed.scheduler")

_LENGTH = struct.Struct("<I")

#: States in which a task's dependencies count it as a waiter.
_ACTIVE = frozenset(("waiting", "no-worker", "queued", "processing"))

#: Hooks that need the scheduler to tell what happens as it happens.
_EVENT_HOOKS = (
    "update_graph",
    "restart",
    "transition",
    "add_worker",
    "remove_worker",
    "add_client",
    "remove_client",
    "log_event",
)

#: Entries applied between two signs of life: a look at millions of tasks takes
#: minutes, and is no reason to replace the host.
_ENTRY_COUNT_SIGN = 50_000

#: Tasks turned into plain data between two signs of life, for the same reason.
_TASK_COUNT_SIGN = 5_000

_ACTOR, _LOOSE, _LOST, _RUN_SPEC, _QUEUEABLE = 1, 2, 4, 8, 16

#: Attributes that are brought up to date before they are read.
_STATE = (
    "tasks",
    "workers",
    "clients",
    "task_groups",
    "task_prefixes",
    "host_info",
    "resources",
    "aliases",
    "idle",
    "idle_task_count",
    "saturated",
    "running",
    "unrunnable",
    "queued",
    "replicated_tasks",
    "total_nthreads",
    "total_memory",
    "transition_counter",
    "n_tasks",
    "bandwidth",
)

#: Methods that are carried out by the scheduler itself: the name of its
#: operation, and whether the method is a coroutine.
_REMOTE = {
    "scatter": ("scatter", True),
    "gather": ("gather", True),
    "broadcast": ("broadcast", True),
    "proxy": ("proxy", True),
    "restart": ("restart", True),
    "restart_workers": ("restart_workers", True),
    "rebalance": ("rebalance", True),
    "replicate": ("replicate", True),
    "retire_workers": ("retire_workers", True),
    "remove_worker": ("remove-worker", True),
    "get_call_stack": ("call_stack", True),
    "get_profile": ("profile", True),
    "get_worker_logs": ("worker_logs", True),
    "register_worker_plugin": ("register_worker_plugin", True),
    "unregister_worker_plugin": ("unregister_worker_plugin", True),
    "register_nanny_plugin": ("register_nanny_plugin", True),
    "unregister_nanny_plugin": ("unregister_nanny_plugin", True),
    "stimulus_retry": ("retry", False),
    "stimulus_cancel": ("cancel-keys", False),
    "client_desires_keys": ("client-desires-keys", False),
    "client_releases_keys": ("client-releases-keys", False),
    "update_data": ("update_data", False),
    "add_keys": ("add_keys", False),
    "set_restrictions": ("set_restrictions", False),
    "add_resources": ("set_resources", False),
    "set_metadata": ("set_metadata", False),
    "adaptive_target": ("adaptive_target", False),
    "get_task_stream": ("get_task_stream", False),
    "get_task_stream_index": ("get_task_stream_index", False),
    "start_task_metadata": ("start_task_metadata", False),
    "stop_task_metadata": ("stop_task_metadata", False),
    "request_acquire_replicas": ("acquire-replicas", False),
    "request_remove_replicas": ("remove-replicas", False),
    "close_worker": ("close-worker", False),
}

#: Methods with which stock's scheduler does its own work. Here it is done in
#: another process, out of reach; each with what to use instead, if anything.
_ABSENT = {
    "add_worker": "workers register themselves",
    "add_nanny": "nannies register themselves",
    "add_client": "clients connect themselves",
    "remove_client": "a client is removed when it disconnects",
    "heartbeat_worker": "",
    "update_graph": "submit work with a Client connected to `dask_scheduler.address`",
    "stimulus_task_finished": "",
    "stimulus_task_erred": "",
    "stimulus_queue_slots_maybe_opened": "",
    "handle_task_finished": "",
    "handle_task_erred": "",
    "handle_long_running": "",
    "handle_worker_status_change": "",
    "handle_request_refresh_who_has": "",
    "handle_worker": "",
    "release_worker_data": "",
    "report": "use `client_send`",
    "send_all": "use `client_send` and `worker_send`",
    "send_task_to_worker": "",
    "gather_on_worker": "use `replicate`",
    "delete_worker_data": "use `request_remove_replicas`",
    "subscribe_worker_status": "use a plug-in with `add_worker` and `remove_worker`",
    "subscribe_topic": "use a plug-in with `log_event`",
    "unsubscribe_topic": "use a plug-in with `log_event`",
    "performance_report": "",
    "benchmark_hardware": "",
    "get_worker_monitor_info": "",
}


class NotInPluginHostError(NotImplementedError):
    """Something that only a scheduler in the same process could do."""

    def __init__(self, what: str, instead: str = "") -> None:
        text = (
            f"{what} is out of reach: functions and plug-ins run beside Oxidask's "
            "scheduler, in a process of their own"
        )
        super().__init__(f"{text}; {instead}" if instead else text)


def _decode_hook(value: dict[Any, Any]) -> Any:
    frames = value.get("__frames__")
    if frames is not None:
        return loads(list(frames), deserialize=False)
    return msgpack_decode_default(value)


def _unpacker(data: Any = None) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker(
        raw=False,
        use_list=False,
        strict_map_key=False,
        object_hook=_decode_hook,
        max_buffer_size=0,
    )
    if data is not None:
        unpacker.feed(data)
    return unpacker


class RunSpec:
    """Stands for how a task is computed, which stays with the scheduler."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As a stock task can be called; dumps of the state leave such things out."""
        raise NotInPluginHostError("a task's `run_spec`")

    def __repr__(self) -> str:
        return "<run_spec held by the scheduler>"


_RUN_SPEC_HELD = RunSpec()


class Plugins(dict[str, Any]):
    """Plug-ins by name; the host hears of every change."""

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self._changed = changed

    def __setitem__(self, name: str, plugin: Any) -> None:
        super().__setitem__(name, plugin)
        self._changed()

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._changed()

    def pop(self, *args: Any) -> Any:
        plugin = super().pop(*args)
        self._changed()
        return plugin


class Handlers(dict[str, Any]):
    """Handlers by operation; the scheduler hears of those that are added."""

    def __init__(self, handlers: Mapping[str, Any], changed: Callable[[], None]):
        super().__init__(handlers)
        self.own: set[str] = set()
        self._changed = changed

    def __setitem__(self, op: str, handler: Any) -> None:
        super().__setitem__(op, handler)
        self.own.add(op)
        self._changed()

    def update(self, *args: Any, **kwargs: Any) -> None:
        for op, handler in dict(*args, **kwargs).items():
            self[op] = handler


class Streams(Mapping[str, Any]):
    """``stream_comms`` and ``client_comms``: something to ``send`` with, by name."""

    def __init__(self, names: Callable[[], Iterable[str]], send: Callable[..., None]):
        self._names = names
        self._send = send

    def __getitem__(self, name: str) -> Any:
        if name not in self._names():
            raise KeyError(name)
        return Stream(name, self._send)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(list(self._names()))


class Stream:
    """The sending end of one stream."""

    def __init__(self, name: str, send: Callable[..., None]) -> None:
        self._name = name
        self._send = send

    def send(self, *messages: Any) -> None:
        for message in messages:
            self._send(self._name, message)

    def closed(self) -> bool:
        return False


class Extension:
    """Stands for an extension of the scheduler, which works in another process."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        raise NotInPluginHostError(
            f"`scheduler.extensions[{self._name!r}].{attribute}`",
            "use a Client's methods",
        )

    def __repr__(self) -> str:
        return f"<extension {self._name} of the scheduler>"


class Spans(SpansSchedulerExtension):
    """Spans, brought up to date before they are read.

    The scheduler keeps what belongs to which span. What follows from it, such as
    intervals, states and sums over a tree of spans, is stock's to work out.
    """

    def __init__(self, host: Host, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._plugin_host = host
        self._is_fresh = False
        self._told_spans: dict[str, Span] = {}
        self._told_root_spans: list[Span] = []
        self._told_spans_search_by_name: Any = defaultdict(list)
        self._told_spans_search_by_tag: Any = defaultdict(list)

    def observe_tasks(self, *args: Any, **kwargs: Any) -> Any:
        raise NotInPluginHostError("`spans.observe_tasks`", "annotate tasks instead")

    def heartbeat(self, *args: Any, **kwargs: Any) -> Any:
        raise NotInPluginHostError("`spans.heartbeat`")

    def _refresh(self) -> None:
        if self._is_fresh:
            return
        told = self._plugin_host.ask_in_step("spans", {})
        groups = self.scheduler.task_groups
        history = self._plugin_host.nthreads_history(told["history"])
        before, self._told_spans = self._told_spans, {}
        self._told_root_spans.clear()
        self._told_spans_search_by_name.clear()
        self._told_spans_search_by_tag.clear()
        for about in told["spans"]:
            parent = self._told_spans.get(about["parent"])
            span = before.get(about["id"])
            if span is None:
                span = Span(about["name"], about["id"], parent, history)
            span.enqueued = about["enqueued"]
            span.children = []
            span._total_nthreads_history = history
            span._total_nthreads_offset = max(
                0, about["nthreads_offset"] - told["dropped"]
            )
            span.groups = {groups[name] for name in about["groups"] if name in groups}
            span.groups.update(_past_group(*past) for past in about["past"])
            span._code = {
                tuple(SourceCode(*frame) for frame in code): None
                for code in about["code"]
                if code
            }
            span._metadata = None
            for metadata in about["metadata"]:
                if metadata:
                    span.add_metadata(metadata)
            span._cumulative_worker_metrics = _amounts(about["metrics"])
            self._told_spans[span.id] = span
            self._told_spans_search_by_name[span.name].append(span)
            for tag in span.name:
                self._told_spans_search_by_tag[tag].append(span)
            if parent is None:
                self._told_root_spans.append(span)
            else:
                parent.children.append(span)
        self._is_fresh = True
        self._plugin_host.call_soon(self._stale)

    def _stale(self) -> None:
        self._is_fresh = False


def _span_property(name: str) -> property:
    def read(self: Any) -> Any:
        self._refresh()
        return getattr(self, "_told_" + name)

    return property(read)


for _name in (
    "spans",
    "root_spans",
    "spans_search_by_name",
    "spans_search_by_tag",
):
    setattr(Spans, _name, _span_property(_name))


def _past_group(
    name: str,
    size: int,
    nbytes_total: int,
    durations: dict[str, int],
    types: dict[str, int],
    start: float,
    stop: float,
) -> stock.TaskGroup:
    """Make a group whose tasks are all forgotten; of no prefix that counts it."""
    tg = stock.TaskGroup(name, stock.TaskPrefix(key_split(name)))
    tg.states["forgotten"] = tg._size = size
    tg.nbytes_total = nbytes_total
    tg._all_durations_us.update(durations)
    tg._duration_us = sum(durations.values())
    tg._types.update(types)
    tg.start = start
    tg.stop = stop
    return tg


def _amounts(pairs: Iterable[tuple[Any, float]]) -> defaultdict[Any, float]:
    """Sum of metrics by name; those that count something are integers, as on stock."""
    found: defaultdict[Any, float] = defaultdict(int)
    for name, amount in pairs:
        is_count = isinstance(name, tuple) and name[-1] in ("bytes", "count")
        found[name] = int(amount) if is_count else amount
    return found


def _state_property(name: str) -> property:
    own = "_mirrored_" + name

    def read(self: Any) -> Any:
        self._plugin_host.refresh()
        return self.__dict__[own]

    def write(self: Any, value: Any) -> None:
        self.__dict__[own] = value

    return property(read, write)


def _remote_method(name: str, op: str, is_coroutine: bool) -> Callable[..., Any]:
    signature = inspect.signature(getattr(stock.Scheduler, name))

    def arguments(self: Any, args: Any, kwargs: Any) -> dict[str, Any]:
        if "comm" in signature.parameters and "comm" not in kwargs and not args:
            kwargs = {"comm": None, **kwargs}
        bound = signature.bind(self, *args, **kwargs)
        found = dict(bound.arguments)
        found.update(found.pop("kwargs", {}))
        found.pop("self", None)
        found.pop("comm", None)
        if name == "restart" or name == "restart_workers":
            found.pop("on_error", None)
        return found

    async def method_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await self._plugin_host.ask_async(op, arguments(self, args, kwargs))

    def method_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._plugin_host.ask(op, arguments(self, args, kwargs))

    method: Callable[..., Any] = method_async if is_coroutine else method_sync
    method.__name__ = method.__qualname__ = name
    return method


def _absent_method(name: str, instead: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotInPluginHostError(f"`Scheduler.{name}`", instead)

    method.__name__ = method.__qualname__ = name
    return method


class Scheduler(stock.Scheduler):
    """The scheduler as functions and plug-ins see it.

    Its tasks, workers and clients are stock's own classes and mirror the state
    of the scheduler process. Reading them is as on stock. What changes something
    is sent to the scheduler and has happened when the method returns.
    """

    def __init__(self, host: Host, about: Mapping[str, Any]) -> None:
        self._plugin_host = host
        self._dashboard_port = about["services"].get("dashboard")
        unset = {
            "distributed.scheduler.http.routes": [],
            "distributed.scheduler.preload": [],
            "distributed.scheduler.preload-argv": [],
            "distributed.scheduler.validate": False,
        }
        with dask.config.set(unset):
            super().__init__(
                dashboard=False,
                extensions={},
                security=_security(about.get("security")),
                contact_address=about["address"],
            )
        self.periodic_callbacks.clear()
        self.plugins = Plugins(host.plugins_changed)
        self.handlers = Handlers(self.handlers, host.handlers_changed)
        self.stream_handlers = Handlers(self.stream_handlers, host.handlers_changed)
        self.id = about["server_id"]
        self._address = about["address"]
        self._listen_address = about["listen_address"]
        self.ip, self._port = _host_and_port(about["listen_address"])
        self.time_started = about["started"]
        self.services = {
            name: Service(port) for name, port in about["services"].items()
        }
        self.scheduler_file = about.get("scheduler_file")
        self.extensions = {name: Extension(name) for name in stock.DEFAULT_EXTENSIONS}
        self.extensions["spans"] = Spans(host, self)
        self.preloads = preloading.PreloadManager([])
        self.stream_comms = Streams(lambda: self.workers, self.worker_send)  # type: ignore[assignment]
        self.client_comms = Streams(lambda: self.clients, self.client_send)  # type: ignore[assignment]
        self.status = Status.running

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        self.http_application = Absent("`scheduler.http_application`")  # type: ignore[assignment]
        self.http_server = Absent("`scheduler.http_server`")  # type: ignore[assignment]
        self.http_server.port = self._dashboard_port  # type: ignore[attr-defined]

    def __await__(self) -> Any:
        async def started() -> Scheduler:
            return self

        return started().__await__()

    @property
    def port(self) -> Any:
        return self._port

    @property
    def task_metadata(self) -> Any:
        return self._plugin_host.ask("get_metadata", {"keys": [], "default": {}})

    @task_metadata.setter
    def task_metadata(self, value: Any) -> None:
        """Kept by the scheduler; see `set_metadata`."""

    def get_metadata(self, keys: Any, default: Any = no_default) -> Any:
        arguments = {"keys": list(keys)}
        if default is not no_default:
            arguments["default"] = default
        return self._plugin_host.ask("get_metadata", arguments)

    @property
    def transition_log(self) -> Any:
        return self._plugin_host.transition_log()

    @transition_log.setter
    def transition_log(self, value: Any) -> None:
        """Kept by the scheduler."""

    @property
    def erred_tasks(self) -> Any:
        return self._plugin_host.erred_tasks()

    @erred_tasks.setter
    def erred_tasks(self, value: Any) -> None:
        """Kept by the scheduler."""

    @property
    def computations(self) -> Any:
        return self._plugin_host.computations()

    @computations.setter
    def computations(self, value: Any) -> None:
        """Kept by the scheduler."""

    @property
    def total_nthreads_history(self) -> Any:
        return self._plugin_host.nthreads_history(
            self._plugin_host.ask("nthreads-history", {})
        )

    @total_nthreads_history.setter
    def total_nthreads_history(self, value: Any) -> None:
        """Kept by the scheduler."""

    @property
    def cumulative_worker_metrics(self) -> Any:
        return _amounts(self._plugin_host.ask("worker-metrics", {}))

    @cumulative_worker_metrics.setter
    def cumulative_worker_metrics(self, value: Any) -> None:
        """Kept by the scheduler."""

    @property
    def events(self) -> Any:
        return self.get_events()

    def log_event(self, topic: Any, msg: Any) -> None:
        self._plugin_host.tell("log_event", {"topic": topic, "msg": msg})

    def get_events(self, topic: str | None = None) -> Any:
        events = self._plugin_host.ask("events", {"topic": topic})
        if topic is not None:
            return tuple(tuple(event) for event in events)
        return {
            name: tuple(tuple(event) for event in kept) for name, kept in events.items()
        }

    def story(self, *keys_or_tasks_or_stimuli: Any) -> list[Any]:
        keys = [
            item.key if isinstance(item, stock.TaskState) else item
            for item in keys_or_tasks_or_stimuli
        ]
        return self._plugin_host.story(keys)

    async def get_story(self, keys_or_stimuli: Iterable[Any]) -> Any:
        return self.story(*keys_or_stimuli)

    def add_plugin(
        self,
        plugin: SchedulerPlugin,
        *,
        idempotent: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().add_plugin(plugin, idempotent=idempotent, name=name, **kwargs)

    def transitions(self, recommendations: Mapping[Any, str], stimulus_id: str) -> None:
        for state in recommendations.values():
            if state != "released":
                raise NotInPluginHostError(f"a transition to {state!r}")
        self._plugin_host.ask(
            "release-keys",
            {"keys": list(recommendations), "stimulus_id": stimulus_id},
        )

    def transition(
        self, key: Any, finish: str, stimulus_id: str, **kwargs: Any
    ) -> dict[Any, Any]:
        self.transitions({key: finish}, stimulus_id)
        return {}

    def _reschedule(self, key: Any, worker: Any = None, *, stimulus_id: str) -> None:
        self.transitions({key: "released"}, stimulus_id)

    reschedule = _reschedule

    def report_on_key(
        self, key: Any = None, *, ts: Any = None, client: str | None = None
    ) -> None:
        key = ts.key if ts is not None else key
        self._plugin_host.ask("report-key", {"key": key, "client": client})

    def worker_send(self, worker: str, msg: dict[str, Any]) -> None:
        self._plugin_host.tell("worker-send", {"worker": worker, "msg": msg})

    def client_send(self, client: str, msg: dict[str, Any]) -> None:
        self._plugin_host.tell("client-send", {"client": client, "msg": msg})

    async def restart(self, **kwargs: Any) -> None:
        kwargs.setdefault("stimulus_id", f"restart-{time()}")
        await self._plugin_host.ask_async("restart", kwargs)

    async def register_scheduler_plugin(
        self, plugin: Any, name: str | None = None, *, idempotent: bool = False
    ) -> None:
        await super().register_scheduler_plugin(plugin, name, idempotent=idempotent)

    async def close(self, timeout: Any = None, reason: str = "unknown") -> None:
        if self.status == Status.running:
            await self._plugin_host.ask_async("close", {"reason": reason})

    async def finished(self) -> None:
        await self._plugin_host.closed.wait()

    def start_periodic_callbacks(self) -> None:
        for callback in self.periodic_callbacks.values():
            if not callback.is_running():
                callback.start()

    def versions(self, packages: Any = None) -> Any:
        return self._plugin_host.ask("versions", {"packages": packages})

    def get_logs(self, start: Any = 0, n: Any = None, timestamps: Any = False) -> Any:
        arguments = {"start": start, "n": n, "timestamps": timestamps}
        return self._plugin_host.ask("get_logs", arguments)

    def check_idle(self) -> Any:
        return self._plugin_host.ask("check_idle", {})

    def _to_dict(  # type: ignore[override]
        self, *, exclude: Collection[str] = ()
    ) -> dict[str, Any]:
        """Give the state as plain data, as stock's method does."""
        identity = {
            **self.identity(),
            "address": self.address,
            "status": self.status.name,
            "thread_id": self.thread_id,
        }
        parts = {
            "transition_log": lambda: self.transition_log,
            "transition_counter": lambda: self.transition_counter,
            "tasks": lambda: self.tasks,
            "task_groups": lambda: self.task_groups,
            "workers": lambda: self.workers,
            "clients": lambda: self.clients,
            "memory": lambda: self.memory,
            "events": self.get_events,
            "extensions": lambda: self.extensions,
        }
        state: dict[str, Any] = {
            name: recursive_to_dict(value, exclude=exclude)
            for name, value in identity.items()
            if name not in exclude
        }
        for name, read in parts.items():
            if name in exclude:
                continue
            value = read()
            if name == "tasks":
                state[name] = self._plugin_host.tasks_to_dict(value, exclude)
            elif name == "workers":
                # Stock repeats the whole scheduler in each of them.
                less = {*exclude, "scheduler"}
                state[name] = recursive_to_dict(value, exclude=less)
            else:
                state[name] = recursive_to_dict(value, exclude=exclude)
        return state

    async def get_cluster_state(self, exclude: Collection[str]) -> dict[str, Any]:
        # Workers are asked first, to be at it while the state is put together here.
        asked = asyncio.gather(
            self.broadcast(
                msg={"op": "dump_state", "exclude": list(exclude)},
                on_error="return_pickle",
            ),
            self.broadcast(msg={"op": "versions"}, on_error="ignore"),
        )
        try:
            await asyncio.sleep(0)
            state = self._to_dict(exclude=exclude)
            dumps, versions = await asked
        finally:
            asked.cancel()
        workers = {
            address: repr(pickle.loads(dump)) if isinstance(dump, bytes) else dump
            for address, dump in dumps.items()
        }
        return {
            "scheduler": state,
            "workers": workers,
            "versions": {"scheduler": self.versions(), "workers": versions},
        }

    async def feed(self, comm: Any, *args: Any, **kwargs: Any) -> None:
        await super().feed(comm, *args, **kwargs)


for _name in _STATE:
    setattr(Scheduler, _name, _state_property(_name))
for _name, (_op, _is_coroutine) in _REMOTE.items():
    if _name != "restart":
        setattr(Scheduler, _name, _remote_method(_name, _op, _is_coroutine))
for _name, _instead in _ABSENT.items():
    setattr(Scheduler, _name, _absent_method(_name, _instead))


class Service:
    """A service of the scheduler, of which only the port is known here."""

    def __init__(self, port: int) -> None:
        self.port = port


class Absent:
    """An object of stock's scheduler that has no counterpart here."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise NotInPluginHostError(f"{self._what[:-1]}.{attribute}`")


def _security(files: Mapping[str, Any] | None) -> Security:
    if not files:
        return Security()
    return Security(**{name: value for name, value in files.items() if value})


class Mirror:
    """Applies what the scheduler tells to the objects of a :class:`Scheduler`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.tasks: dict[int, stock.TaskState] = {}
        self.leaving: dict[int, stock.TaskState] = {}
        self.workers: dict[int, stock.WorkerState] = {}
        self.gone_workers: list[int] = []
        self.clients: dict[int, stock.ClientState] = {}
        self.apply: dict[int, Callable[..., None]] = {
            0: self.end,
            1: self.worker,
            2: self.worker_state,
            3: self.worker_metrics,
            4: self.worker_gone,
            5: self.client,
            6: self.client_gone,
            7: self.task,
            8: self.dependencies,
            9: self.task_gone,
            10: self.task_state,
            11: self.transition,
            12: self.group,
            13: self.prefix,
            14: self.sums,
            20: self.hook,
            21: self.lost,
        }

    def end(self) -> None:
        self.leaving.clear()
        for id in self.gone_workers:
            self.workers.pop(id, None)
        self.gone_workers.clear()

    # Workers and clients

    def worker(
        self,
        id: int,
        address: str,
        name: Any,
        nthreads: int,
        memory_limit: int,
        local_directory: str,
        nanny: str | None,
        server_id: str,
        services: Any,
        versions: Any,
        extra: Any,
        pid: int,
    ) -> None:
        state = self.scheduler
        ws = stock.WorkerState(
            address=address,
            status=Status.undefined,
            pid=pid,
            name=name,
            nthreads=nthreads,
            memory_limit=memory_limit,
            local_directory=local_directory,
            nanny=nanny,
            server_id=server_id,
            services=services,
            versions=versions,
            extra=extra,
            scheduler=state,
        )
        self.workers[id] = ws
        state.workers[address] = ws
        state.aliases[name] = address
        state.total_nthreads += nthreads
        state.total_memory += memory_limit
        info = state.host_info.setdefault(
            ws.host, {"addresses": set(), "nthreads": 0, "last-seen": 0.0}
        )
        info["addresses"].add(address)
        info["nthreads"] += nthreads

    def worker_gone(self, id: int) -> None:
        state = self.scheduler
        ws = self.workers[id]
        self.gone_workers.append(id)
        ws.status = Status.closed
        state.running.discard(ws)
        state.idle.pop(ws.address, None)
        state.idle_task_count.discard(ws)
        state.saturated.discard(ws)
        if state.workers.get(ws.address) is ws:
            del state.workers[ws.address]
        if state.aliases.get(ws.name) == ws.address:
            del state.aliases[ws.name]
        state.total_nthreads -= ws.nthreads
        state.total_memory -= ws.memory_limit
        for resource in ws.resources:
            state.resources.get(resource, {}).pop(ws.address, None)
        info = state.host_info.get(ws.host)
        if info is not None:
            info["addresses"].discard(ws.address)
            info["nthreads"] -= ws.nthreads
            if not info["addresses"]:
                del state.host_info[ws.host]

    def worker_state(
        self,
        id: int,
        status: str,
        resources: dict[str, float],
        used_resources: dict[str, float],
        long_running: tuple[int, ...],
        actors: tuple[int, ...],
    ) -> None:
        state = self.scheduler
        ws = self.workers[id]
        ws.status = Status.lookup[status]  # type: ignore[attr-defined]
        if ws.status == Status.running:
            state.running.add(ws)
        else:
            state.running.discard(ws)
        ws.resources = resources
        ws.used_resources = used_resources
        for resource, amount in resources.items():
            state.resources.setdefault(resource, {})[ws.address] = amount
        seceded = {self.tasks[slot] for slot in long_running if slot in self.tasks}
        for ts in seceded - ws.long_running:
            if ts in ws.processing:
                ws.add_to_long_running(ts)
        ws.actors = {self.tasks[slot] for slot in actors if slot in self.tasks}

    def worker_metrics(
        self,
        id: int,
        last_seen: float,
        time_delay: float,
        unmanaged_old: int,
        metrics: Any,
        executing: dict[Any, float],
    ) -> None:
        ws = self.workers[id]
        ws.last_seen = last_seen
        ws.time_delay = time_delay
        ws._memory_unmanaged_old = unmanaged_old
        if metrics is not None:
            ws.metrics = metrics
        known = self.scheduler.tasks
        ws.executing = {
            known[key]: seconds for key, seconds in executing.items() if key in known
        }
        info = self.scheduler.host_info.get(ws.host)
        if info is not None:
            info["last-seen"] = last_seen
            if isinstance(metrics, dict):
                info.update(metrics.get("host_info") or {})

    def client(self, id: int, name: str, last_seen: float, versions: Any) -> None:
        cs = self.scheduler.clients.get(name)
        if cs is None or name != "fire-and-forget":
            cs = stock.ClientState(name, versions=versions)
            self.scheduler.clients[name] = cs
        cs.last_seen = last_seen
        self.clients[id] = cs

    def client_gone(self, id: int) -> None:
        cs = self.clients.pop(id)
        if self.scheduler.clients.get(cs.client_key) is cs:
            del self.scheduler.clients[cs.client_key]

    # Tasks

    def task(self, slot: int, key: Any) -> None:
        self.tasks[slot] = self.scheduler.new_task(key, None, "released")

    def dependencies(self, slot: int, slots: tuple[int, ...]) -> None:
        ts = self.tasks[slot]
        wanted = {self.tasks[other] for other in slots if other in self.tasks}
        for other in ts.dependencies - wanted:
            ts.dependencies.discard(other)
            other.dependents.discard(ts)
            if other.waiters:
                other.waiters.discard(ts)
        active = ts._state in _ACTIVE
        for other in wanted - ts.dependencies:
            ts.add_dependency(other)
            if active:
                self._wait(ts, other)

    def task_gone(self, slot: int) -> None:
        ts = self.tasks.pop(slot)
        self.leaving[slot] = ts
        self._set_state(ts, "forgotten")
        for other in ts.dependencies:
            other.dependents.discard(ts)
        for other in ts.dependents:
            other.dependencies.discard(ts)
        self._set_processing_on(ts, None)
        self._set_who_has(ts, ())
        self._set_who_wants(ts, ())
        if self.scheduler.tasks.get(ts.key) is ts:
            del self.scheduler.tasks[ts.key]
        tg = ts.group
        if self.scheduler.task_groups.get(tg.name) is tg and all(
            count == 0 or state == "forgotten" for state, count in tg.states.items()
        ):
            ts.prefix.remove_group(tg)
            del self.scheduler.task_groups[tg.name]

    def task_state(
        self,
        slot: int,
        state: str,
        priority: tuple[Any, ...] | None,
        nbytes: int,
        run_id: int,
        retries: int,
        suspicious: int,
        typename: str | None,
        flags: int,
        processing_on: int | None,
        who_has: tuple[int, ...],
        who_wants: tuple[int, ...],
        extras: dict[str, Any] | None,
    ) -> None:
        ts = self.tasks[slot]
        ts.priority = priority
        ts.run_id = run_id
        ts.retries = retries
        ts.suspicious = suspicious
        ts.type = typename
        ts.actor = bool(flags & _ACTOR)
        ts.loose_restrictions = bool(flags & _LOOSE)
        ts.has_lost_dependencies = bool(flags & _LOST)
        ts._queueable = bool(flags & _QUEUEABLE)
        ts.run_spec = _RUN_SPEC_HELD if flags & _RUN_SPEC else None  # type: ignore[assignment]
        if nbytes >= 0 and nbytes != ts.nbytes:
            ts.set_nbytes(nbytes)
        if state != ts._state:
            self._set_state(ts, state)
        self._set_who_has(ts, who_has)
        on = None if processing_on is None else self.workers[processing_on]
        self._set_processing_on(ts, on)
        self._set_who_wants(ts, who_wants)
        if extras is not None or ts.annotations or ts.exception_blame or ts.metadata:
            self._set_extras(ts, extras or {})

    def _set_state(self, ts: stock.TaskState, state: str) -> None:
        before = ts._state
        if before == state:
            return
        scheduler = self.scheduler
        if before == "queued":
            scheduler.queued.discard(ts)
        elif before == "no-worker":
            scheduler.unrunnable.pop(ts, None)
        ts.state = state  # type: ignore[assignment]
        if state == "queued":
            scheduler.queued.add(ts)
        elif state == "no-worker":
            scheduler.unrunnable[ts] = time()
        if state == "waiting":
            ts.waiting_on = {other for other in ts.dependencies if not other.who_has}
        elif before == "waiting" and ts.waiting_on:
            ts.waiting_on = set()
        if state in _ACTIVE:
            if before not in _ACTIVE:
                for other in ts.dependencies:
                    self._wait(ts, other)
        elif before in _ACTIVE:
            for other in ts.dependencies:
                if other.waiters:
                    other.waiters.discard(ts)

    @staticmethod
    def _wait(ts: stock.TaskState, other: stock.TaskState) -> None:
        if other.waiters is None:
            other.waiters = set()
        other.waiters.add(ts)
        if ts._state == "waiting" and not other.who_has:
            if ts.waiting_on is None:
                ts.waiting_on = set()
            ts.waiting_on.add(other)

    def _set_who_has(self, ts: stock.TaskState, ids: tuple[int, ...]) -> None:
        if not ids and not ts.who_has:
            return
        holders = {self.workers[id] for id in ids}
        before = ts.who_has or set()
        had = bool(before)
        for ws in before - holders:
            ws.remove_replica(ts)
        for ws in holders - before:
            ws.add_replica(ts)
        if len(holders) > 1:
            self.scheduler.replicated_tasks.add(ts)
        else:
            self.scheduler.replicated_tasks.discard(ts)
        if had == bool(holders):
            return
        for waiter in ts.waiters or ():
            if waiter._state == "waiting":
                if waiter.waiting_on is None:
                    waiter.waiting_on = set()
                if holders:
                    waiter.waiting_on.discard(ts)
                else:
                    waiter.waiting_on.add(ts)

    def _set_processing_on(
        self, ts: stock.TaskState, ws: stock.WorkerState | None
    ) -> None:
        before = ts.processing_on
        if before is ws:
            return
        if before is not None and ts in before.processing:
            before.remove_from_processing(ts)
        ts.processing_on = ws
        if ws is None:
            return
        prefix = ts.prefix.name
        ws.task_prefix_count[prefix] += 1
        self.scheduler._task_prefix_count_global[prefix] += 1
        ws.processing.add(ts)
        for other in ts.dependencies:
            if other.who_has and ws not in other.who_has:
                ws._inc_needs_replica(other)

    def _set_who_wants(self, ts: stock.TaskState, ids: tuple[int, ...]) -> None:
        if not ids and not ts.who_wants:
            return
        wanted = {self.clients[id] for id in ids if id in self.clients}
        before = ts.who_wants or set()
        for cs in before - wanted:
            cs.wants_what.discard(ts)
        for cs in wanted - before:
            cs.wants_what.add(ts)
        ts.who_wants = wanted or None

    def _set_extras(self, ts: stock.TaskState, extras: dict[str, Any]) -> None:
        def as_set(name: str) -> set[str] | None:
            return set(extras[name]) if name in extras else None

        ts.host_restrictions = as_set("host_restrictions")
        ts.worker_restrictions = as_set("worker_restrictions")
        ts.resource_restrictions = extras.get("resource_restrictions")
        ts.metadata = extras.get("metadata")
        ts.annotations = extras.get("annotations")
        if "erred_on" in extras:
            known = (self.workers.get(id) for id in extras["erred_on"])
            named = {ws.address for ws in known if ws is not None}
            ts.erred_on = named | (ts.erred_on or set())
        else:
            ts.erred_on = None
        blame = extras.get("blame")
        ts.exception_blame = self.scheduler.tasks.get(blame) if blame else None
        ts.exception = extras.get("exception")
        ts.traceback = extras.get("traceback")
        ts.exception_text = extras.get("exception_text")
        ts.traceback_text = extras.get("traceback_text")

    def group(
        self,
        name: str,
        durations: dict[str, int],
        types: dict[str, int],
        start: float,
        stop: float,
        span_id: str | None,
    ) -> None:
        tg = self.scheduler.task_groups.get(name)
        if tg is None:
            return
        tp = tg.prefix
        for typename, count in types.items():
            tp._types[typename] += count - tg._types[typename]
            tg._types[typename] = count
        tp._duration_us -= tg._duration_us
        tg._all_durations_us.clear()
        tg._all_durations_us.update(durations)
        tg._duration_us = sum(durations.values())
        tp._duration_us += tg._duration_us
        tg.start = start
        tg.stop = stop
        tg.span_id = span_id

    def prefix(
        self,
        name: str,
        duration_average: float,
        max_exec_time: float,
        suspicious: int,
        durations: dict[str, int],
    ) -> None:
        tp = self.scheduler.task_prefixes.get(name)
        if tp is not None:
            tp.duration_average = duration_average
            tp.max_exec_time = max_exec_time
            tp.suspicious = suspicious
            tp._all_durations_us.clear()
            tp._all_durations_us.update(durations)

    def sums(
        self,
        transition_counter: int,
        n_tasks: int,
        bandwidth: float,
        idle: tuple[int, ...],
        saturated: tuple[int, ...],
    ) -> None:
        state = self.scheduler
        state.transition_counter = transition_counter
        state.n_tasks = n_tasks
        state.bandwidth = bandwidth  # type: ignore[assignment]
        state.idle.clear()
        for ws in (self.workers[id] for id in idle if id in self.workers):
            state.idle[ws.address] = ws
        state.idle_task_count.clear()
        state.idle_task_count.update(state.idle.values())
        state.saturated.clear()
        state.saturated.update(
            self.workers[id] for id in saturated if id in self.workers
        )

    # What plug-ins hear of

    def transition(
        self,
        slot: int,
        key: Any,
        start: str,
        finish: str,
        stimulus_id: str,
        arguments: dict[str, Any] | None,
    ) -> None:
        scheduler = self.scheduler
        ts = self.leaving.pop(slot, None) if finish == "forgotten" else None
        put_back = ts is not None and key not in scheduler.tasks
        if put_back:
            # A plug-in may look at the task once more.
            scheduler.tasks[key] = ts  # type: ignore[assignment]
        for plugin in scheduler._plugin_host.hooked("transition"):
            try:
                plugin.transition(
                    key, start, finish, stimulus_id=stimulus_id, **(arguments or {})
                )
            except Exception:
                logger.info("Plugin failed with exception", exc_info=True)
        if put_back:
            del scheduler.tasks[key]

    def hook(self, name: str, arguments: dict[str, Any]) -> None:
        getattr(self, "hook_" + name)(**arguments)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> None:
        awaited = []
        for plugin in self.scheduler._plugin_host.hooked(name):
            try:
                result = getattr(plugin, name)(*args, **kwargs)
                if inspect.isawaitable(result):
                    awaited.append(result)
            except Exception as error:
                logger.exception(error)
        for result in awaited:
            self.scheduler._plugin_host.spawn(_logged(result))

    def hook_update_graph(
        self,
        client: str,
        keys: tuple[Any, ...],
        tasks: tuple[Any, ...],
        stimulus_id: str,
    ) -> None:
        if not self.scheduler._plugin_host.hooked("update_graph"):
            return
        known = [
            ts
            for ts in (self.scheduler.tasks.get(key) for key in tasks)
            if ts is not None
        ]
        annotations: dict[str, dict[Any, Any]] = {}
        for ts in known:
            for annotation, value in (ts.annotations or {}).items():
                annotations.setdefault(annotation, {})[ts.key] = value
        self._call(
            "update_graph",
            self.scheduler,
            client=client,
            tasks=[ts.key for ts in known],
            keys=set(keys),
            annotations=annotations,
            priority={ts.key: ts.priority for ts in known},
            stimulus_id=stimulus_id,
        )

    def hook_add_worker(self, worker: str) -> None:
        self._call("add_worker", scheduler=self.scheduler, worker=worker)

    def hook_remove_worker(self, worker: str, stimulus_id: str) -> None:
        self._call(
            "remove_worker",
            scheduler=self.scheduler,
            worker=worker,
            stimulus_id=stimulus_id,
        )

    def hook_add_client(self, client: str) -> None:
        self._call("add_client", scheduler=self.scheduler, client=client)

    def hook_remove_client(self, client: str) -> None:
        self._call("remove_client", scheduler=self.scheduler, client=client)

    def hook_restart(self) -> None:
        self._call("restart", self.scheduler)

    def hook_log_event(self, topic: str, msg: Any) -> None:
        self._call("log_event", topic, msg)

    def lost(self, count: int) -> None:
        logger.warning(
            "Scheduler plugins were too slow: %d transitions were not told to them",
            count,
        )


async def _logged(awaitable: Any) -> None:
    try:
        await awaitable
    except Exception as error:
        logger.exception(error)


class FeedComm:
    """The connection of a feed: what is written is sent by the scheduler."""

    def __init__(self, host: Host, id: int) -> None:
        self._plugin_host = host
        self._id = id
        self._closed = False
        self._sent = asyncio.Event()
        self.peer_address = "client"
        self.name = "feed"

    async def write(self, message: Any, **_: Any) -> None:
        if self._closed:
            raise CommClosedError("the feed's connection is closed")
        self._sent.clear()
        self._plugin_host.send(
            {"id": 0, "op": "feed", "feed": self._id, **_frames(message)}
        )
        await self._sent.wait()
        if self._closed:
            raise CommClosedError("the feed's connection is closed")

    def sent(self) -> None:
        self._sent.set()

    def stop(self) -> None:
        self._closed = True
        self._sent.set()

    def closed(self) -> bool:
        return self._closed

    async def close(self) -> None:
        self._closed = True

    def abort(self) -> None:
        self._closed = True


def _frames(message: Any, serializers: Any = None) -> dict[str, Any]:
    return {"frames": [bytes(frame) for frame in dumps(message, serializers)]}


class Host:
    """Serves the scheduler's requests, and asks it for what it alone can do."""

    def __init__(self, stream: socket.socket, received: bytes) -> None:
        self._stream = stream
        self._buffer = bytearray(received)
        self._packer = msgpack.Packer(use_bin_type=True)
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._answers: dict[int, Any] = {}
        self._futures: dict[int, asyncio.Future[Any]] = {}
        self._pulled: bytes | None = None
        self._is_fresh = False
        self._is_applying = False
        self._follows = False
        self._logs: list[bytes] = []
        self._feeds: dict[int, FeedComm] = {}
        self._memory_manager: ActiveMemoryManagerExtension | None = None
        self._hooks: dict[str, list[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._told_capabilities: Any = None
        self.closed = asyncio.Event()
        self.scheduler: Scheduler | None = None
        self.mirror: Mirror | None = None

    async def serve(self) -> None:
        """Serve until the scheduler closes the connection."""
        self._loop.add_reader(self._stream, self._readable)
        self._drain()
        await self.closed.wait()
        self._loop.remove_reader(self._stream)

    def spawn(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Messages

    def send(self, message: dict[str, Any]) -> None:
        body = self._packer.pack(message)
        self._stream.setblocking(True)
        try:
            self._stream.sendall(_LENGTH.pack(len(body)) + body)
        except ConnectionError:
            self.closed.set()

    def _readable(self) -> None:
        if not self._fill():
            self.closed.set()
            return
        self._drain()

    def _fill(self) -> bool:
        try:
            data = self._stream.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        self._buffer += data
        return bool(data)

    def _drain(self) -> None:
        while (message := self._next()) is not None:
            self._receive(message)

    def _next(self) -> dict[str, Any] | None:
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        (length,) = _LENGTH.unpack_from(buffer)
        if len(buffer) < 4 + length:
            return None
        with memoryview(buffer) as view, view[4 : 4 + length] as body:
            message: dict[str, Any] = msgpack.unpackb(
                body, raw=False, use_list=False, strict_map_key=False
            )
        del buffer[: 4 + length]
        return message

    def _receive(self, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "mirror":
            self.apply(message["log"])
        elif op == "pulled":
            self._pulled = message["log"]
        elif op == "answer":
            self._answered(message)
        elif op == "ping":
            self.send({"id": 0, "op": "pong"})
        elif op == "feed-sent":
            if (feed := self._feeds.get(message["feed"])) is not None:
                feed.sent()
        elif op == "feed-stop":
            if (feed := self._feeds.pop(message["feed"], None)) is not None:
                feed.stop()
        else:
            self.spawn(self._serve(op, message))

    async def _serve(self, op: str, message: dict[str, Any]) -> None:
        answer: dict[str, Any]
        try:
            result = await getattr(self, "on_" + op.replace("-", "_"))(message)
            answer = _frames(result, message.get("serializers"))
        except Exception as error:
            logger.warning("Exception while handling op %s", op, exc_info=True)
            answer = {
                **_frames(error_message(error, status="uncaught-error")),
                "failed": repr(error),
            }
        except SystemExit:
            # On stock it ends the scheduler.
            self.tell("close", {"reason": f"sys.exit-in-{op}"})
            raise
        self.send({"id": message["id"], "op": "done", **answer})

    # What the scheduler asks

    async def on_start(self, message: dict[str, Any]) -> None:
        for path in message.get("sys_path") or ():
            if path not in sys.path:
                sys.path.insert(0, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._is_applying = True
            self.scheduler = Scheduler(self, message)
            self.mirror = Mirror(self.scheduler)
            self._is_applying = False
        await self.scheduler.rpc.start()

    async def on_run(self, message: dict[str, Any]) -> Any:
        request = loads(list(message["frames"]), deserialize=False)
        return await run(
            self.scheduler,
            None,
            function=request["function"],
            args=request.get("args", ()),
            kwargs=request.get("kwargs"),
            wait=request.get("wait", True),
        )

    async def on_plugin_add(self, message: dict[str, Any]) -> None:
        assert self.scheduler is not None
        await self.scheduler.register_scheduler_plugin(
            message["plugin"], message.get("name"), idempotent=message["idempotent"]
        )

    async def on_plugin_remove(self, message: dict[str, Any]) -> None:
        assert self.scheduler is not None
        self.scheduler.remove_plugin(message["name"])

    async def on_upload(self, message: dict[str, Any]) -> None:
        assert self.scheduler is not None
        await self.scheduler.upload_file(message["name"], message["data"], load=True)

    async def on_preload(self, message: dict[str, Any]) -> None:
        """Import preload modules, as stock does before it listens."""
        assert self.scheduler is not None
        argv = [
            arguments if isinstance(arguments, str) else list(arguments)
            for arguments in message["argv"]
        ]
        names = list(message["preload"])
        logging.getLogger("distributed.preloading").setLevel(logging.INFO)
        import click

        commands = []
        try:
            self.scheduler.preloads = preloading.process_preloads(
                self.scheduler, names, argv
            )
            for preload in self.scheduler.preloads:
                setup = getattr(preload.module, "dask_setup", None)
                if isinstance(setup, click.Command):
                    commands.append(preload)
            if message["from_command_line"]:
                if len(commands) > 1:
                    raise click.UsageError(
                        f"Multiple --preload modules with click-configurable setup: {names}"
                    )
                if argv and not commands:
                    raise click.UsageError(f"Got unexpected extra arguments {argv}")
                for preload in commands:
                    preload.module.dask_setup.make_context(
                        "dask_setup", list(preload.argv), allow_extra_args=False
                    )
        except click.exceptions.Exit:
            raise RuntimeError(
                "a preload module's options were only asked for"
            ) from None
        except click.ClickException as error:
            raise RuntimeError(error.format_message()) from error

    async def on_preload_start(self, message: dict[str, Any]) -> None:
        scheduler = self.scheduler
        assert scheduler is not None
        before = set(scheduler.plugins)
        await scheduler.preloads.start()
        added = [p for name, p in scheduler.plugins.items() if name not in before]
        await asyncio.gather(*[plugin.start(scheduler) for plugin in added])
        scheduler.start_periodic_callbacks()

    async def on_memory_policies(self, message: dict[str, Any]) -> None:
        """Make the memory manager's policies if there are none; run them if told so."""
        assert self.scheduler is not None
        manager = self._memory_manager
        if manager is None:
            policies = set()
            for arguments in message["policies"]:
                arguments = dict(arguments)
                policies.add(import_term(arguments.pop("class"))(**arguments))
            manager = self._memory_manager = ActiveMemoryManagerExtension(
                self.scheduler,
                policies,
                measure=message["measure"],
                interval=message["interval"],
                register=False,
                start=False,
            )
        if message["run"]:
            manager.run_once()

    async def on_close(self, message: dict[str, Any]) -> None:
        scheduler = self.scheduler
        assert scheduler is not None

        async def logged(function: Callable[[], Any]) -> None:
            try:
                await function()
            except Exception:
                logger.exception("Plugin call failed during scheduler.close")

        def methods(name: str) -> list[Any]:
            found = (getattr(p, name, None) for p in list(scheduler.plugins.values()))
            return [logged(method) for method in found if method is not None]

        scheduler.status = Status.closing
        for feed in self._feeds.values():
            feed.stop()
        await asyncio.gather(*methods("before_close"))
        await scheduler.preloads.teardown()
        await asyncio.gather(*methods("close"))
        for callback in scheduler.periodic_callbacks.values():
            callback.stop()
        scheduler.status = Status.closed

    async def on_feed(self, message: dict[str, Any]) -> None:
        assert self.scheduler is not None
        request = loads(list(message["frames"]), deserialize=False)
        comm = self._feeds[message["id"]] = FeedComm(self, message["id"])
        try:
            await self.scheduler.feed(comm, **request)
        finally:
            self._feeds.pop(message["id"], None)

    async def on_handler(self, message: dict[str, Any]) -> Any:
        assert self.scheduler is not None
        request = loads(list(message["frames"]), deserialize=False)
        handlers = (
            self.scheduler.stream_handlers
            if message.get("stream")
            else self.scheduler.handlers
        )
        handler = handlers[message["name"]]
        if _expects_comm(handler):
            result = handler(None, **request)
        else:
            result = handler(**request)
        if inspect.isawaitable(result):
            result = await result
        return result

    # What is asked of the scheduler

    def _ask(self, op: str, arguments: dict[str, Any], **how: Any) -> int:
        number = next(self._numbers)
        self.send(
            {"id": 0, "op": "ask", "n": number, "rpc": op, **_frames(arguments), **how}
        )
        return number

    def tell(self, op: str, arguments: dict[str, Any]) -> None:
        """Have an operation carried out without waiting for it."""
        self._ask(op, arguments, silent=True)

    def ask(self, op: str, arguments: dict[str, Any]) -> Any:
        """Have an operation carried out; nothing else runs here meanwhile."""
        number = self._ask(op, arguments)
        self._wait(lambda: number in self._answers)
        self._is_fresh = False
        return _result(self._answers.pop(number))

    def ask_in_step(self, op: str, arguments: dict[str, Any]) -> Any:
        """As `ask`; the mirror is then that of the moment of the answer."""
        answer = self.ask(op, arguments)
        if self._pulled is not None:
            self._apply_pulled()
        return answer

    async def ask_async(self, op: str, arguments: dict[str, Any]) -> Any:
        """Have an operation carried out that may take long."""
        number = self._ask(op, arguments, spawn=True)
        future = self._futures[number] = self._loop.create_future()
        try:
            return _result(await future)
        finally:
            self._futures.pop(number, None)
            self._is_fresh = False

    def _answered(self, message: dict[str, Any]) -> None:
        future = self._futures.get(message["n"])
        if future is None:
            self._answers[message["n"]] = message
        elif not future.done():
            future.set_result(message)

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            message = self._next()
            if message is not None:
                self._receive(message)
                continue
            select.select([self._stream], [], [])
            if not self._fill():
                self.closed.set()
                raise CommClosedError("the scheduler is gone")

    # The mirror

    def refresh(self) -> None:
        """Bring the mirror to the present, unless it follows every change anyway."""
        if self._is_fresh or self._follows or self._is_applying:
            return
        self._pull("pull")

    def _pull(self, op: str, **fields: Any) -> None:
        self.send({"id": 0, "op": op, **fields})
        self._wait(lambda: self._pulled is not None)
        self._apply_pulled()

    def _apply_pulled(self) -> None:
        log, self._pulled = self._pulled, None
        self.apply(log or b"")
        # Until the event loop goes on, nobody can expect the state to change.
        self._is_fresh = True
        self._loop.call_soon(self._stale)

    def _stale(self) -> None:
        self._is_fresh = False

    def apply(self, log: bytes) -> None:
        assert self.mirror is not None
        self._logs.append(log)
        if self._is_applying:
            # A hook asked the scheduler for something: first the hooks before it.
            return
        self._is_applying = True
        try:
            while self._logs:
                entries = enumerate(_unpacker(self._logs.pop(0)), 1)
                for count, (code, *arguments) in entries:
                    self.mirror.apply[code](*arguments)
                    if count % _ENTRY_COUNT_SIGN == 0:
                        self.send({"id": 0, "op": "pong"})
        finally:
            self._is_applying = False

    def hooked(self, name: str) -> list[Any]:
        """Plug-ins that have a method of their own for this hook."""
        return self._hooks.get(name, [])

    def plugins_changed(self) -> None:
        assert self.scheduler is not None
        plugins = list(self.scheduler.plugins.values())

        def has_own(plugin: Any, name: str) -> bool:
            method = getattr(plugin, name, None)
            base = getattr(SchedulerPlugin, name)
            return (
                method is not None and getattr(method, "__func__", method) is not base
            )

        self._hooks = {
            name: [plugin for plugin in plugins if has_own(plugin, name)]
            for name in (*_EVENT_HOOKS, "valid_workers_downscaling")
        }
        follows = any(self._hooks[name] for name in _EVENT_HOOKS)
        if follows != self._follows:
            if follows:
                # What a new plug-in sees from now on is what its hooks go on from.
                self._pull("follow", on=True)
            else:
                self.send({"id": 0, "op": "follow", "on": False})
            self._follows = follows
            self._is_fresh = False
        self.handlers_changed()

    def handlers_changed(self) -> None:
        scheduler = self.scheduler
        if scheduler is None:
            return
        handlers = set(getattr(scheduler.handlers, "own", ()))
        if self._hooks.get("valid_workers_downscaling"):
            handlers.add("workers_to_close")
        capabilities = {
            "handlers": sorted(handlers),
            "stream_handlers": sorted(getattr(scheduler.stream_handlers, "own", ())),
        }
        if capabilities != self._told_capabilities:
            self._told_capabilities = capabilities
            self.send({"id": 0, "op": "capabilities", **capabilities})

    def tasks_to_dict(
        self, tasks: Mapping[Any, stock.TaskState], exclude: Collection[str]
    ) -> dict[Any, Any]:
        """Tasks as plain data; millions of them take minutes."""
        found: dict[Any, Any] = {}
        for count, (key, ts) in enumerate(list(tasks.items()), 1):
            name = recursive_to_dict(key)
            if isinstance(name, list):
                name = str(name)
            found[name] = recursive_to_dict(ts, exclude=exclude)
            if count % _TASK_COUNT_SIGN == 0:
                self.send({"id": 0, "op": "pong"})
        return found

    # Histories that the scheduler keeps

    def story(self, keys_or_stimuli: list[Any]) -> list[Any]:
        story = self.ask("get_story", {"keys_or_stimuli": keys_or_stimuli})
        return [stock.Transition(*entry) for entry in story]

    def transition_log(self) -> list[Any]:
        return [stock.Transition(*entry) for entry in self.ask("transition-log", {})]

    def erred_tasks(self) -> list[Any]:
        return [
            stock.ErredTask(key, timestamp, set(erred_on), exception, traceback)
            for key, timestamp, erred_on, exception, traceback in self.ask(
                "erred-tasks", {}
            )
        ]

    def nthreads_history(self, told: Iterable[Any]) -> list[Any]:
        """How many threads there were from when on."""
        assert self.scheduler is not None
        started = self.scheduler.time_started
        return [(max(started, since), total) for since, total in told]

    def call_soon(self, function: Callable[[], Any]) -> None:
        """Call a function when whatever runs now has ended or waits."""
        self._loop.call_soon(function)

    def computations(self) -> list[Any]:
        found = []
        for start, codes in self.ask("computations", {}):
            computation = stock.Computation()
            computation.start = start
            for code in filter(None, codes):
                computation.code.add(tuple(SourceCode(*frame) for frame in code))
            found.append(computation)
        return found


def _host_and_port(address: str) -> tuple[str, int]:
    """Host and port of an address; one within a program's process has no port."""
    scheme, _, location = address.partition("://")
    if scheme == "inproc":
        return location.split("/")[0], 0
    host, port = get_address_host_port(address)
    return host, port


def _result(message: dict[str, Any]) -> Any:
    error = message.get("exception")
    if error is not None:
        raise pickle.loads(error)
    return loads(list(message["frames"]), deserialize=False)


def _set_up_logging() -> None:
    """Log as the scheduler does, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s")
    )
    root = logging.getLogger("distributed")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.INFO)


def main(stream: socket.socket, received: bytes) -> None:
    """Run the host over a connection, of which `received` was read already."""
    with contextlib.suppress(Exception):
        from distributed.proctitle import setproctitle

        setproctitle("oxidask plug-in host")
    _set_up_logging()

    async def serve(hosts: list[Host]) -> None:
        hosts.append(Host(stream, received))
        await hosts[0].serve()

    hosts: list[Host] = []
    try:
        asyncio.run(serve(hosts))
    except RuntimeError as error:
        if "Event loop stopped" not in str(error):
            raise
        # Somebody stopped `scheduler.loop`, which on stock ends the scheduler.
        hosts[0].tell("close", {"reason": "loop-stopped"})
    sys.stderr.flush()
    os._exit(0)
