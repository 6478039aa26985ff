"""Running tasks: the threads of a pool, and what one of them does with a task."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from inspect import CO_COROUTINE
from threading import get_ident
from time import thread_time, time
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NoReturn

from dask.base import annotate
from dask.context import thread_state
from dask.utils import key_split
from distributed._concurrent_futures_thread import _WorkItem
from distributed.exceptions import Reschedule
from distributed.metrics import context_meter
from distributed.threadpoolexecutor import ThreadPoolExecutor
from distributed.threadpoolexecutor import thread_state as pool_state
from distributed.worker import _worker_cvar

from oxidask._oxidask import Queue, Task
from oxidask._worker_plans import execute, is_fused
from oxidask._worker_values import (
    Serialized,
    describe,
    failure,
    loading,
    unpacked,
)

if TYPE_CHECKING:
    from oxidask._worker import Worker

logger = logging.getLogger("distributed.worker")

#: Of no type: the types of its methods are those of no base class.
_ThreadPoolExecutor: Any = ThreadPoolExecutor


class Runner:
    """Runs tasks on whatever thread calls it.

    Parameters
    ----------
    worker
        What tasks get from ``get_worker()``.
    cheap
        Serialises a result if that costs next to nothing.
    is_guest
        Whether the process is somebody else's: no task ends it.
    """

    def __init__(
        self,
        worker: Worker,
        cheap: Callable[[Any], Serialized | None],
        is_guest: bool,
    ) -> None:
        self.worker = worker
        self._cheap = cheap
        self._ending = () if is_guest else (SystemExit, KeyboardInterrupt)
        # What a task starts with: nothing that it sets reaches the next one.
        context = contextvars.copy_context()
        context.run(_worker_cvar.set, worker)
        self._metering = context_meter.add_callback(self._metered)
        context.run(self._metering.__enter__)
        self.context = context
        self._coroutines: set[asyncio.Task[None]] = set()

    def run(self, task: Task) -> None:
        """Run a task and report it; never raises."""
        worker = self.worker
        try:
            key = task.key
            with loading:
                call = task.call()
                if call is None:
                    function, data = task.load()
            if call is not None:
                function, args, kwargs = call
            elif _is_coroutine(function):
                worker.loop.asyncio_loop.call_soon_threadsafe(
                    self._start_coroutine, task, function, data
                )
                return
            elif is_fused(function):
                function, args, kwargs = execute, (function, data), None
            else:
                args, kwargs = (data,), None
        except BaseException as error:
            task.failed(failure(error))
            return
        ident = get_ident()
        worker.active_threads[ident] = key
        state = thread_state
        state.key = key
        state.execution_state = worker.execution_state
        state.metered = 0.0
        context = self.context.copy()
        span = task.span
        state.start_time = start = time()
        cpu = thread_time()
        try:
            if span is not None:
                value = context.run(_call_in_span, span, function, args, kwargs)
            elif kwargs is None:
                value = context.run(function, *args)
            else:
                value = context.run(function, *args, **kwargs)
        except self._ending as error:
            end_process(error)
        except BaseException as error:
            self._erred(task, error, start, time(), ident, thread_time() - cpu)
        else:
            cpu = thread_time() - cpu
            self._finished(task, value, start, time(), ident, cpu)
        finally:
            worker.active_threads.pop(ident, None)

    def run_in_process(self, task: Task, done: Future[Any]) -> None:
        """Report a task that a pool of processes ran."""
        try:
            message = done.result()
        except BaseException as error:
            task.failed(failure(error))
            return
        start, stop, ident = message["start"], message["stop"], message["thread"]
        if message["op"] == "task-finished":
            self._finished(task, message["result"], start, stop, ident, None)
        elif isinstance(message["actual_exception"], Reschedule):
            task.reschedule()
        else:
            described = unpacked(message)
            task.erred(described, start, stop, ident, None, stop - start)

    def _start_coroutine(self, task: Task, spec: Any, data: dict[Any, Any]) -> None:
        context = self.context.copy()
        loop = asyncio.get_running_loop()
        running = loop.create_task(
            self._run_coroutine(task, spec, data), context=context
        )
        self._coroutines.add(running)
        running.add_done_callback(self._coroutines.discard)

    async def _run_coroutine(self, task: Task, spec: Any, data: dict[Any, Any]) -> None:
        span = task.span
        spanned = nullcontext() if span is None else annotate(span=span)
        ident = get_ident()
        start = time()
        try:
            with spanned:
                value = await spec(data)
        except self._ending as error:
            end_process(error)
        except BaseException as error:
            if self.worker.is_closing and isinstance(error, asyncio.CancelledError):
                # Nobody but the worker that closes cancelled it.
                task.reschedule()
            else:
                self._erred(task, error, start, time(), ident, None)
        else:
            self._finished(task, value, start, time(), ident, None)

    def cancel_coroutines(self) -> None:
        """Cancel the tasks on the event loop."""
        for running in self._coroutines:
            running.cancel()

    def close(self) -> None:
        """Let go of what the context of tasks holds, once none runs."""
        self.context.run(self._metering.__exit__, None, None, None)

    def _finished(
        self,
        task: Task,
        value: Any,
        start: float,
        stop: float,
        ident: int,
        cpu: float | None,
    ) -> None:
        cpu, noncpu = _split(start, stop, cpu)
        try:
            if task.returned(value, start, stop, ident, cpu, noncpu):
                return
            nbytes, kind = describe(value)
            serialized = self._cheap(value)
            task.finished(
                value, nbytes, kind, serialized, start, stop, ident, cpu, noncpu
            )
        except BaseException as error:
            task.erred(failure(error), start, stop, ident, cpu, noncpu)

    def _erred(
        self,
        task: Task,
        error: BaseException,
        start: float,
        stop: float,
        ident: int,
        cpu: float | None,
    ) -> None:
        if isinstance(error, Reschedule):
            task.reschedule()
            return
        cpu, noncpu = _split(start, stop, cpu)
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            # It would end the event loop of whoever gets it.
            cause, error = error, RuntimeError(f"the task raised {error!r}")
            error.__cause__ = cause
        try:
            described = failure(error)
        except BaseException as other:
            # An exception whose own methods raise.
            described = failure(RuntimeError(f"{type(error)}: {type(other)}"))
        task.erred(described, start, stop, ident, cpu, noncpu)

    def _metered(self, label: Any, value: float, unit: str) -> None:
        """Take a figure that the running task measured itself."""
        if unit == "seconds":
            thread_state.metered = getattr(thread_state, "metered", 0.0) + value
        key = getattr(thread_state, "key", None)
        if key is not None:
            prefix = key_split(key)
            self.worker.digest_metric(("execute", prefix, label, unit), value)


#: Code, and what tornado and `inspect.markcoroutinefunction` mark callables with.
_COROUTINE_MARKS = ("__code__", "__tornado_coroutine__", "_is_coroutine_mark")


def _is_coroutine(spec: Any) -> bool:
    """Say what ``spec.is_coro`` says, for plain functions at a tenth of its cost."""
    func: Any = getattr(spec, "func", None)
    kind: Any = type(func)
    if kind is BuiltinFunctionType:
        return False
    if kind is FunctionType and not func.__dict__:
        return bool(func.__code__.co_flags & CO_COROUTINE)
    # Whatever makes a callable object one. Without them, `inspect` would go as far as
    # making the annotations of a composed function.
    if not isinstance(func, (MethodType, partial)) and not any(
        hasattr(func, name) for name in _COROUTINE_MARKS
    ):
        return False
    return bool(spec.is_coro)


def _call_in_span(
    span: Any,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
) -> Any:
    """Run with the annotation that tasks made by this one shall have."""
    with annotate(span=span):
        return function(*args, **kwargs or {})


def _split(start: float, stop: float, cpu: float | None) -> tuple[float | None, float]:
    """Seconds of the processor and other ones, as ``context_meter`` splits them."""
    noncpu = stop - start
    if cpu is not None:
        metered = thread_state.metered
        if metered:
            noncpu -= metered
            cpu = max(0.0, cpu - metered)
        noncpu -= cpu
    # Clocks differ in how finely they count.
    return cpu, noncpu if noncpu > 0.0 else 0.0


def end_process(error: BaseException) -> NoReturn:
    """End this process because a task said so, as its event loop would on stock."""
    logger.critical("a task ended the worker: %r", error)
    code = error.code if isinstance(error, SystemExit) else 1
    if code is None:
        code = 0
    elif not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code & 0xFF)


class Pool(_ThreadPoolExecutor):  # type: ignore[misc]
    """Threads that take tasks from a native queue.

    Knows what stock's pool knows: ``submit``, and to be left and joined again.

    Parameters
    ----------
    queue
        Where native code puts tasks.
    nthreads
        Tasks that run at a time.
    prefix
        What the threads' names begin with.
    """

    def __init__(self, queue: Queue, nthreads: int, prefix: str) -> None:
        super().__init__(nthreads, thread_name_prefix=prefix)
        self._queue = queue
        self._run: Callable[[Task], None] | None = None

    def start(self, run: Callable[[Task], None]) -> None:
        """Start all threads, which native code could not do."""
        self._run = run
        for _ in range(self._max_workers):
            self._adjust_thread_count()

    def _adjust_thread_count(self) -> None:
        if self._run is not None and len(self._threads) < self._max_workers:
            name = f"{self._thread_name_prefix}-{os.getpid()}-{next(self._counter)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.add(thread)
            thread.start()

    def _work(self) -> None:
        pool_state.proceed = True
        pool_state.executor = self
        run, next_job = self._run, self._queue.next
        assert run is not None
        while pool_state.proceed:
            if self._rejoin_list and self._make_room():
                return
            job = next_job()
            if type(job) is Task:
                run(job)
            elif job is None:
                return
            else:
                for name in ("key", "start_time", "execution_state"):
                    thread_state.__dict__.pop(name, None)
                job.run()
            del job

    def _make_room(self) -> bool:
        """Let a thread that seceded take the place of this one, if one waits."""
        with self._rejoin_lock:
            if not self._rejoin_list:
                return False
            thread, rejoined = self._rejoin_list.pop()
            self._threads.add(thread)
            self._threads.discard(threading.current_thread())
        rejoined.set()
        return True

    def submit(self, fn: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function on one of the threads."""
        future: Future[Any] = Future()
        self._queue.submit(_WorkItem(future, fn, args, kwargs))
        return future

    def shutdown(
        self, wait: bool = True, timeout: float | None = None, **_kwargs: Any
    ) -> None:
        """Stop the threads; wait for running tasks, at most so many seconds."""
        self._queue.close()
        if not wait:
            return
        deadline = None if timeout is None else time() + timeout
        for thread in list(self._threads):
            left = None if deadline is None else max(0.0, deadline - time())
            thread.join(left)
