from collections.abc import Callable, Mapping, Sequence
from typing import Any

_Failure = tuple[bytes, bytes | None, str, str]

def main(argv: Sequence[str], /) -> int:
    """Run the command line; `argv` begins with the program's name.

    Must be called on the main thread.
    """

def order_indices(
    dependency_offsets: bytes,
    dependencies: bytes,
    is_task: bytes,
    name_rank: bytes,
    /,
) -> tuple[bytes, bytes]:
    """Order the tasks of a graph given as packed arrays in native byte order.

    Returns priorities as ``u32`` and numbers of critical paths as ``f64``.

    Raises
    ------
    ValueError
        If the arrays do not fit together.
    RuntimeError
        With a message and the indices of a cycle.
    """

def held_counts() -> tuple[int, int]:
    """Count the objects and the buffers that native code holds."""

def reference_count() -> int:
    """Count the values that frames hold."""

def read_logs(is_read: bool) -> None:
    """Say whether somebody calls :func:`take_logs`."""

def take_logs() -> list[tuple[str, int, str]]:
    """Wait for what guests log: logger, level and message of each record.

    Empty once nobody reads any more.
    """

class Guest:
    """A scheduler or worker of this process."""

    def run(
        self,
        arguments: Sequence[str],
        variables: Sequence[tuple[str, str]],
        running: Callable[[str], None],
    ) -> None:
        """Run a command line until it closes.

        Raises
        ------
        RuntimeError
            If it could not be started.
        """

    def close(self, reason: str, executor_wait: bool) -> None: ...

class Channel:
    """One end of a connection to a native server of this process.

    Raises
    ------
    ConnectionRefusedError
        If none listens there.
    ConnectionResetError
        Once the connection has ended.
    """

    def __init__(self, address: str) -> None: ...
    @property
    def local_address(self) -> str: ...
    def fileno(self) -> int: ...
    def read(self) -> list[Any] | None: ...
    def write(self, frames: Sequence[Any]) -> bool: ...
    def write_waiting(self, frames: Sequence[Any]) -> None: ...
    def is_closed(self) -> bool: ...
    def close(self) -> None: ...

class Reference:
    """A frame that holds a value of this process."""

    def __init__(self, object: Any) -> None: ...
    def get(self) -> Any: ...

class ValueType:
    """The class of a value, pickled once for all its instances."""

    def __init__(self, pickled: bytes, name: str) -> None: ...
    @property
    def name(self) -> str: ...

class Task:
    """A task that waits or runs; answered once, at the latest when it goes."""

    @property
    def key(self) -> Any: ...
    @property
    def executor(self) -> Any: ...
    @property
    def span(self) -> Any: ...
    def call(self) -> tuple[Any, tuple[Any, ...], dict[str, Any] | None] | None: ...
    def load(self) -> tuple[Any, dict[Any, Any]]: ...
    def returned(
        self,
        value: Any,
        start: float,
        stop: float,
        thread: int,
        cpu: float | None,
        noncpu: float,
    ) -> bool: ...
    def finished(
        self,
        value: Any,
        nbytes: int,
        type: ValueType,
        serialized: tuple[bytes, Sequence[Any]] | None,
        start: float,
        stop: float,
        thread: int,
        cpu: float | None,
        noncpu: float,
    ) -> None: ...
    def erred(
        self,
        failure: _Failure,
        start: float,
        stop: float,
        thread: int,
        cpu: float | None,
        noncpu: float,
    ) -> None: ...
    def failed(self, failure: _Failure) -> None: ...
    def reschedule(self) -> None: ...

class Queue:
    """The queue of a pool of threads."""

    def next(self) -> Any: ...
    def submit(self, item: Any) -> None: ...
    def close(self) -> None: ...

class Request:
    """A request of a client, a peer or the scheduler."""

    @property
    def op(self) -> str: ...
    def args(self) -> list[Any]: ...
    def reply(self, frames: Sequence[Any]) -> None: ...
    def fail(self, failure: _Failure) -> None: ...
    def unknown(self) -> None: ...

class Inbox:
    """What native code asks of the event loop."""

    def fileno(self) -> int: ...
    def take(self) -> list[tuple[Any, ...]]: ...

class Link:
    """The native side of a worker. Keys are str, or msgpack."""

    def settings(self) -> dict[str, Any]: ...
    def default_queue(self) -> Queue: ...
    def values_queue(self) -> Queue: ...
    def inbox(self) -> Inbox: ...
    def set_hooks(self, hooks: Any) -> None: ...
    def started(self, frames: Sequence[Any]) -> None: ...
    def not_started(self, failure: _Failure) -> None: ...
    def ended(self) -> None: ...
    def seceded(
        self, key: str | bytes, compute_duration: float, stimulus_id: str
    ) -> None: ...
    def keep_log(self, timestamp: float, level: str, line: str) -> None: ...
    def set_resources(self, resources: Sequence[tuple[str, float]]) -> None: ...
    def send(self, frames: Sequence[Any]) -> None: ...
    def digest_metric(self, name: Sequence[Any], amount: float) -> None: ...
    def set_heartbeat(self, frames: Sequence[Any]) -> None: ...
    def set_wants_transitions(self, wants: bool) -> None: ...
    def close(self, reason: str, nanny: bool, executor_wait: bool) -> None: ...
    def close_gracefully(self, restart: bool, reason: str) -> None: ...
    def data(self, key: str | bytes) -> Any: ...
    def keys(self) -> list[Any]: ...
    def update_data(self, data: Sequence[tuple[str | bytes, Any]]) -> list[int]: ...
    def task(self, key: str | bytes) -> list[Any] | None: ...
    def task_keys(self) -> list[Any]: ...
    def task_counts(self) -> Mapping[str, int]: ...
    def status(self) -> str: ...
    def set_status(self, name: str) -> None: ...
