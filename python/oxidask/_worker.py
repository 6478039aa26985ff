"""The worker as tasks, plug-ins and clients of ``oxidask worker`` know it.

Native code keeps the state, the data and the connections; this side runs an event
loop for whatever is Python: requests like ``run``, plug-ins, coroutines, a client
for tasks that submit tasks.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import sys
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from types import SimpleNamespace
from typing import Any

import dask
import distributed.worker
from dask.utils import key_split
from distributed import profile
from distributed.actor import Actor
from distributed.comm.addressing import get_address_host
from distributed.core import Status, _expects_comm
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.metrics import time
from distributed.proctitle import setproctitle
from distributed.protocol.serialize import _is_dumpable
from distributed.security import Security
from distributed.utils_comm import retry_operation
from distributed.versions import get_versions
from distributed.worker import _run_task_simple
from distributed.worker_state_machine import SecedeEvent, StateMachineEvent
from tornado.ioloop import IOLoop, PeriodicCallback

from oxidask import _worker_values as values
from oxidask._oxidask import Link, Request, Task
from oxidask._worker_functions import direct
from oxidask._worker_plans import hasten_unpickling
from oxidask._worker_profile import STOP, Samples
from oxidask._worker_tasks import Pool, Runner
from oxidask._worker_values import dump_message, encode_key, failure, load_message

logger = logging.getLogger("distributed.worker")

#: Of no type: what is replaced here is of other types than there.
StockWorker: Any = distributed.worker.Worker

#: Milliseconds between two looks at what plug-ins add to heartbeats: half of the
#: shortest time between two heartbeats.
_HEARTBEAT_INTERVAL = 250

#: Seconds after which a thread that runs Python gives way to others that want to.
#: Measured: a tenth of Python's default bounds how
#: long a task of a microsecond waits beside a busy one, and costs 4 % of throughput.
_SWITCH_INTERVAL = 0.0005

#: Threads that take values in and serialise them. Chosen: one that pickles for long
#: does not hold up the others.
_VALUES_NTHREADS = 2

#: Timers of stock's worker that are wanted here; the others' work is done natively.
_PERIODIC = ("profile", "profile-cycle")


class _Data(Mapping[Any, Any]):
    """The values that this worker keeps. ``Worker.data`` of distributed, to read."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __getitem__(self, key: Any) -> Any:
        return self._link.data(encode_key(key))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._link.keys())

    def __len__(self) -> int:
        return len(self._link.keys())


class _Actors(_Data):
    """The actors that live here."""

    def __iter__(self) -> Iterator[Any]:
        data = set(self._link.keys())
        return (
            key for key, ts in _tasks(self._link) if ts.has_data and key not in data
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _tasks(link: Link) -> Iterator[tuple[Any, SimpleNamespace]]:
    tasks = _Tasks(link)
    for key in tasks:
        ts = tasks.get(key)
        if ts is not None:
            yield key, ts


class _Tasks(Mapping[Any, SimpleNamespace]):
    """What is known of tasks, as of the moment of asking."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __getitem__(self, key: Any) -> SimpleNamespace:
        frames = self._link.task(encode_key(key))
        if frames is None:
            raise KeyError(key)
        return SimpleNamespace(**load_message(frames))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._link.task_keys())

    def __len__(self) -> int:
        return len(self._link.task_keys())


class _State:
    """``Worker.state`` of distributed, to read."""

    def __init__(
        self,
        *,
        nthreads: int,
        data: Mapping[Any, Any],
        plugins: dict[str, WorkerPlugin],
        resources: Mapping[str, float],
        link: Link,
        **_kwargs: Any,
    ) -> None:
        self.nthreads = nthreads
        self.data = data
        self.plugins = plugins
        self.total_resources = dict(resources)
        self.tasks = _Tasks(link)
        self.actors = _Actors(link)
        self.address = ""
        self._link = link

    def _count(self, *states: str) -> int:
        counts = self._link.task_counts()
        return sum(counts.get(state, 0) for state in states)

    def _in_state(self, *states: str) -> set[Any]:
        return {key for key, ts in _tasks(self._link) if ts.state in states}

    @property
    def executing_count(self) -> int:
        return self._count("executing")

    @property
    def in_flight_tasks_count(self) -> int:
        return self._count("flight")

    @property
    def executing(self) -> set[Any]:
        return self._in_state("executing")

    @property
    def long_running(self) -> set[Any]:
        return self._in_state("long-running")

    @property
    def ready(self) -> set[Any]:
        return self._in_state("ready", "constrained")

    @property
    def waiting(self) -> set[Any]:
        return self._in_state("waiting")

    @property
    def nbytes(self) -> int:
        return sum(ts.nbytes or 0 for _, ts in _tasks(self._link) if ts.has_data)


class _BatchedStream:
    """The stream to the scheduler, to send on."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self._worker.batched_send(message)


class _LogHandler(logging.Handler):
    """Adds records to what ``get_logs`` answers, which is native."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        log_format = dask.config.get("distributed.admin.log-format")
        self.setFormatter(logging.Formatter(log_format))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        if getattr(record, "is_native", False):
            # Native code has handed it to Python's logging, and has kept it.
            return
        # The link is gone when the worker has closed.
        with suppress(RuntimeError):
            line = self.format(record)
            self._link.keep_log(record.created, record.levelname, line)


class Worker(StockWorker):  # type: ignore[misc]
    """A worker whose machinery is native.

    Its class is derived from stock's, so that it has all attributes that programs
    know; what would listen, connect or keep state is replaced.

    Parameters
    ----------
    link
        The native side.
    """

    _client: Any

    local_directory = property(
        lambda self: self._settings["local_directory"], lambda self, value: None
    )

    def __init__(self, link: Link) -> None:
        settings = self._settings = link.settings()
        self._link = link
        # The process is somebody else's, who may have other workers in it.
        self._is_guest: bool = settings["is_guest"]
        self._passes_references: bool = settings["passes_references"]
        self._dump: Callable[[Any], list[Any]] = dump_message
        if self._passes_references:
            from oxidask import _inproc

            self._dump = _inproc.dump_message
        self._handlers_seen: dict[str, tuple[Any, bool]] = {}
        self._log_handlers: list[tuple[logging.Logger, logging.Handler]] = []
        self.is_closing = False
        self._is_ready = False
        self._samples = Samples()
        self._profile_duration = 0.0
        # Stock would watch the loop with a thread of its own.
        loop: Any = IOLoop.current()
        loop.profile = deque()
        name = settings["name"] if settings["has_name"] else None
        prefix = (
            "Dask-Default-Threads" if name is None else f"{name}-Dask-Default-Threads"
        )
        pool = Pool(link.default_queue(), settings["nthreads"], prefix)
        super().__init__(
            settings["scheduler"],
            nthreads=settings["nthreads"],
            name=name,
            local_directory=settings["local_directory"],
            needs_workdir=False,
            executor={"default": pool},
            resources=settings["resources"],
            preload=settings["preload"],
            preload_argv=settings["preload_argv"],
            security=_security(settings),
            contact_address=settings["address"],
            nanny=settings["nanny"],
            extensions={},
            memory_limit=0,
            WorkerStateClass=partial(_State, link=link),
        )
        self.id = settings["id"]
        self.name = settings["name"]
        self.ip = get_address_host(self.address)
        self.thread_id = threading.get_ident()
        self.state.address = self.address
        self.state.data = self.memory_manager.data = _Data(link)
        self.memory_manager.memory_limit = settings["memory_limit"]
        self.batched_stream = _BatchedStream(self)
        for name in set(self.periodic_callbacks).difference(_PERIODIC):
            del self.periodic_callbacks[name]
        self.periodic_callbacks["extensions"] = PeriodicCallback(
            self._collect_heartbeat, _HEARTBEAT_INTERVAL
        )
        # Nobody needs what others in this process do not get.
        cheap = _no_form if self._passes_references else values.cheap
        self.runner = Runner(self, cheap, self._is_guest)
        self._cheap = cheap
        self._pool = pool
        self._values_pool = Pool(
            link.values_queue(), _VALUES_NTHREADS, "Dask-Values-Threads"
        )
        self._inbox = link.inbox()
        self._ended = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    # Life

    async def begin(self) -> None:
        """Get ready to run tasks."""
        link = self._link
        loop = asyncio.get_running_loop()
        # What native code holds must not hold the worker, which holds the native side.
        worker, address = weakref.ref(self), self.address
        link.set_hooks(
            SimpleNamespace(
                loads=values.loads,
                direct=direct,
                load=values.load,
                is_array=values.is_array,
                load_message=values.load_message,
                describe=values.describe,
                cheap=self._cheap,
                dump=values.dump,
                failure=values.failure,
                actor=lambda cls, key: Actor(cls, address, key, worker()),
            )
        )
        if not self._is_guest:
            _adapt_process(self.address)
        self._values_pool.start(self.runner.run)
        self._pool.start(self.runner.run)
        loop.add_reader(self._inbox.fileno(), self._take)
        self._is_ready = True
        await self.rpc.start()
        await self.preloads.start()
        self.start_periodic_callbacks()
        introduction = {
            "versions": get_versions(),
            "startup_information": await self.get_startup_information(),
        }
        link.started(self._dump(introduction))

    async def run_until_closed(self) -> None:
        """Serve until native code says that it is enough."""
        await self._ended.wait()

    async def close(
        self,
        timeout: float = 30,
        executor_wait: bool = True,
        nanny: bool = True,
        reason: str = "worker-close",
    ) -> str | None:
        """Begin to close, and wait until it is done."""
        self._link.close(reason, nanny, executor_wait)
        return "OK"

    async def close_gracefully(
        self, restart: bool | None = None, reason: str = "worker-close-gracefully"
    ) -> None:
        """Let the scheduler move the data away, then close."""
        # The end of its lifetime is watched natively.
        if reason != "worker-lifetime-reached":
            if restart is None:
                restart = self.lifetime_restart
            link = self._link
            await asyncio.to_thread(link.close_gracefully, bool(restart), reason)

    async def _on_teardown(self) -> None:
        self.is_closing = True
        await asyncio.gather(*(self.plugin_remove(name) for name in list(self.plugins)))
        await self.preloads.teardown()

    async def _on_close(self, wait: bool) -> None:
        self.is_closing = True
        for timer in self.periodic_callbacks.values():
            timer.stop()
        self.runner.cancel_coroutines()
        client: Any = self._client
        if client in StockWorker._initialized_clients:
            client._asynchronous = True
            await client.close()
        await self.rpc.close()
        for name, executor in self.executors.items():
            # The offload pool is everybody's.
            if name == "offload":
                continue
            if threading.main_thread().is_alive():
                await asyncio.to_thread(executor.shutdown, wait=wait)
            else:
                # The program of which this is a guest ends, and starts no more threads.
                executor.shutdown(wait=False)
        for known, handler in self._log_handlers:
            known.removeHandler(handler)
        self.runner.close()

    def _setup_logging(self, logger: logging.Logger) -> None:
        handler = _LogHandler(self._link)
        logger.addHandler(handler)
        self._log_handlers.append((logger, handler))

    # What native code asks

    def _take(self) -> None:
        for kind, *arguments in self._inbox.take():
            try:
                if kind == "request":
                    self._spawn(self._answer(*arguments))
                elif kind == "stream_message":
                    self._stream_message(*arguments)
                elif kind == "transition":
                    self._transition(*arguments)
                elif kind == "task":
                    self._run_elsewhere(*arguments)
                elif kind == "teardown":
                    self._spawn(self._done(self._on_teardown(), *arguments))
                elif kind == "close":
                    wait, done = arguments
                    self._spawn(self._done(self._on_close(wait), done, self._ended.set))
            except Exception:
                logger.exception("cannot handle `%s`", kind)

    def _spawn(self, coroutine: Any) -> None:
        running = asyncio.get_running_loop().create_task(coroutine)
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _done(self, coroutine: Any, *told: Any) -> None:
        try:
            await coroutine
        except Exception:
            logger.exception("the worker does not close in an orderly way")
        finally:
            for tell in told:
                tell()

    async def _answer(self, request: Request) -> None:
        try:
            handler = self.handlers.get(request.op)
            if handler is None:
                request.unknown()
                return
            arguments = load_message(request.args())
            # Of the answer: a client may refuse pickles.
            serializers = arguments.pop("serializers", None)
            if self._wants_comm(request.op, handler):
                result = handler(None, **arguments)
            else:
                result = handler(**arguments)
            if isawaitable(result):
                result = await result
            if serializers is None:
                request.reply(self._dump(result))
            else:
                request.reply(dump_message(result, serializers=serializers))
        except BaseException as error:
            request.fail(failure(error))
            if not isinstance(error, Exception | asyncio.CancelledError):
                raise

    def _wants_comm(self, op: str, handler: Any) -> bool:
        known = self._handlers_seen.get(op)
        if known is None or known[0] != handler:
            # Stock's own cache would keep the worker for good.
            known = (handler, _expects_comm.__wrapped__(handler))
            self._handlers_seen[op] = known
        return known[1]

    def _stream_message(self, op: str, frames: Any) -> None:
        handler = self.stream_handlers.get(op)
        if handler is None:
            logger.error("unknown operation `%s` on the scheduler's stream", op)
            self._link.close("worker-handle-scheduler-connection-broken", True, True)
            return
        result = handler(**load_message(frames))
        if isawaitable(result):
            self._spawn(result)

    def _transition(self, key: Any, start: str, finish: str) -> None:
        for name, plugin in list(self.plugins.items()):
            if hasattr(plugin, "transition"):
                try:
                    plugin.transition(key, start, finish)
                except Exception:
                    logger.info(
                        "Plugin '%s' failed with exception", name, exc_info=True
                    )

    def _run_elsewhere(self, task: Task) -> None:
        """Run a task in a pool that its annotation names."""
        try:
            name = task.executor
            if name not in self.executors:
                raise ValueError(
                    f"Invalid executor {name!r}; expected one of: {sorted(self.executors)}"
                )
            executor = self.executors[name]
            if "ThreadPoolExecutor" in str(type(executor)):
                executor.submit(self.runner.run, task)
            else:
                spec, data = task.load()
                done = executor.submit(_run_task_simple, spec, data, 0)
                done.add_done_callback(partial(self.runner.run_in_process, task))
        except Exception as error:
            task.failed(failure(error))

    async def _collect_heartbeat(self) -> None:
        """Keep ready what plug-ins and the user's metrics add to heartbeats."""
        extensions = {
            name: extension.heartbeat()
            for name, extension in self.extensions.items()
            if hasattr(extension, "heartbeat")
        }
        metrics = {}
        for name, metric in self.metrics.items():
            try:
                value = metric(self)
                metrics[name] = await value if isawaitable(value) else value
            except Exception:
                logger.debug("metric `%s` failed", name, exc_info=True)
        if metrics or extensions:
            heartbeat = {"metrics": metrics, "extensions": extensions}
            self._link.set_heartbeat(self._dump(heartbeat))

    # What tasks, plug-ins and handlers ask

    @property
    def status(self) -> Status:
        """In which part of its life the worker is."""
        if not self._is_ready:
            return Status.init
        try:
            return Status[self._link.status()]
        except RuntimeError:
            return Status.closed

    @status.setter
    def status(self, value: Status) -> None:
        if self._is_ready:
            self._link.set_status(value.name)

    def log_event(self, topic: str | Collection[str], msg: Any) -> None:
        """Publish an event."""
        if not _is_dumpable(msg):
            raise TypeError(
                f"Message must be msgpack serializable. Got {type(msg)=} instead."
            )
        self.batched_send({"op": "log-event", "topic": topic, "msg": msg})

    def batched_send(self, msg: dict[str, Any]) -> None:
        """Send a message to the scheduler."""
        self._link.send(self._dump(msg))

    def digest_metric(self, name: Any, value: float) -> None:
        """Add to a figure of the next heartbeat."""
        self._link.digest_metric(dump_message(name), value)

    def _get_client(self, timeout: float | None = None) -> Any:
        # It may be that of another worker of this process, which has closed since.
        client: Any = self._client
        if client is not None and client.status == "closed":
            self._client = None
        return super()._get_client(timeout)

    def handle_stimulus(self, *stims: StateMachineEvent) -> None:
        """Take what a task does to itself; everything else is decided natively."""
        for event in stims:
            if not isinstance(event, SecedeEvent):
                raise TypeError(f"this worker does not take {type(event).__name__}")
            self._link.seceded(
                encode_key(event.key), event.compute_duration, event.stimulus_id
            )

    async def set_resources(self, **resources: float) -> None:
        """Change the totals of some resources."""
        self._link.set_resources(list(resources.items()))
        self.state.total_resources.update(resources)
        await retry_operation(
            self.scheduler.set_resources,
            resources=self.state.total_resources,
            worker=self.contact_address,
        )

    def update_data(
        self, data: Mapping[Any, Any], stimulus_id: str | None = None
    ) -> dict[str, Any]:
        """Keep values, as ``scatter`` within a task does."""
        pairs = [(encode_key(key), value) for key, value in data.items()]
        sizes = self._link.update_data(pairs)
        return {"nbytes": dict(zip(data, sizes, strict=True)), "status": "OK"}

    def keys(self) -> list[Any]:
        """Keys of the values that are here."""
        return list(self._link.keys())

    async def plugin_add(
        self,
        plugin: WorkerPlugin | bytes,
        name: str | None = None,
        catch_errors: bool = True,
    ) -> Any:
        """Set up a plug-in."""
        try:
            return await super().plugin_add(plugin, name, catch_errors)
        finally:
            self._watch_transitions()

    async def plugin_remove(self, name: str) -> Any:
        """Tear a plug-in down."""
        try:
            return await super().plugin_remove(name)
        finally:
            self._watch_transitions()

    def _watch_transitions(self) -> None:
        unwanted = (None, WorkerPlugin.transition)
        self._link.set_wants_transitions(
            any(
                getattr(type(plugin), "transition", None) not in unwanted
                for plugin in self.plugins.values()
            )
        )

    def trigger_profile(self) -> None:
        """Take a look at what running tasks do."""
        if not self.active_threads:
            return
        start = time()
        frames = sys_frames()
        for ident, key in self.active_threads.copy().items():
            frame = frames.get(ident)
            if frame is None:
                continue
            prefix = key_split(key)
            if self.low_level_profiler:
                low_level = profile.ll_get_stack(ident)
                state = profile.process(frame, True, self.profile_recent, stop=STOP)
                profile.llprocess(low_level, None, state)
                profile.process(frame, True, self.profile_keys[prefix], stop=STOP)
            else:
                self._samples.take(prefix, frame)
        self._profile_duration += time() - start

    @property
    def profile_recent(self) -> dict[str, Any]:
        """What tasks did in the last second."""
        self._samples.move_to(self._profile_recent, self._profile_keys)
        return self._profile_recent

    @profile_recent.setter
    def profile_recent(self, value: dict[str, Any]) -> None:
        self._profile_recent = value

    @property
    def profile_keys(self) -> defaultdict[str, dict[str, Any]]:
        """The same by prefix."""
        self._samples.move_to(self._profile_recent, self._profile_keys)
        return self._profile_keys

    @profile_keys.setter
    def profile_keys(self, value: defaultdict[str, dict[str, Any]]) -> None:
        self._profile_keys = value

    def cycle_profile(self) -> None:
        """Begin another second."""
        super().cycle_profile()
        duration, self._profile_duration = self._profile_duration, 0.0
        if duration:
            self.digest_metric("profile-duration", duration)

    def get_call_stack(self, keys: Collection[Any] | None = None) -> dict[Any, Any]:
        """Look at what running tasks do at the moment."""
        frames = sys_frames()
        running = {key: ident for ident, key in self.active_threads.copy().items()}
        if keys is not None:
            running = {key: running[key] for key in keys if key in running}
        return {
            key: profile.call_stack(frames[ident])
            for key, ident in running.items()
            if ident in frames
        }


def _no_form(value: Any) -> None:
    return None


def _adapt_process(address: str) -> None:
    """Make of this process one that is a worker and nothing else."""
    hasten_unpickling()
    sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL))
    setproctitle(f"dask worker [{address}]")


def sys_frames() -> dict[int, Any]:
    """Topmost frames of all threads."""
    return sys._current_frames()


def _security(settings: Mapping[str, Any]) -> Security:
    names = ("tls_ca_file", "tls_worker_cert", "tls_worker_key")
    files = {name: settings[name] for name in names if settings[name] is not None}
    return Security(require_encryption=settings["require_encryption"], **files)


_ENDING = (signal.SIGINT, signal.SIGTERM)
_masks = threading.local()


def _hold_signals() -> None:
    # Until the child has its own handlers, one would be lost in ours.
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def _pass_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _reset_signals() -> None:
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)
    _pass_signals()


@functools.cache
def _guard_forks() -> None:
    """Let a process that a task forks end as any other: ours tells its runtime."""
    os.register_at_fork(
        before=_hold_signals,
        after_in_parent=_pass_signals,
        after_in_child=_reset_signals,
    )


def start(link: Link) -> None:
    """Start the event loop on a thread of its own. Native code calls this."""
    if not link.settings()["is_guest"]:
        _guard_forks()
    threading.Thread(target=_main, args=(link,), name="IO loop", daemon=True).start()


def _main(link: Link) -> None:
    try:
        asyncio.run(_serve(link))
    except BaseException as error:
        logger.exception("the worker's event loop ended")
        link.not_started(failure(error))
    finally:
        link.ended()


async def _serve(link: Link) -> None:
    worker = Worker(link)
    await worker.begin()
    await worker.run_until_closed()
