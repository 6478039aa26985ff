"""Python beside the scheduler: unpickles and materialises what clients submit.

The scheduler process has no Python. It starts this file once as a *zygote*,
which imports dask and distributed and then forks a *helper* for every
connection it is asked for. The protocol is described in docs/graph-helper.md.

The file imports nothing from ``oxidask``, so that the Python-free binary can
carry its text and run it with any interpreter that has ``distributed``::

    python -c "$(cat _graph_helper.py)" SOCKET_FD DIRECTORY

What clients upload goes to the directory, which is removed at the end.
"""

from __future__ import annotations

import array
import collections
import contextlib
import copyreg
import datetime
import decimal
import gc
import hashlib
import io
import itertools
import operator
import os
import pickle
import select
import selectors
import shutil
import signal
import socket
import struct
import sys
import tempfile
import textwrap
import time
import traceback
import types
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgpack

__all__ = ["main"]

#: A graph with fewer bundle tasks than this gets its pickles at once: asking
#: for bundles and exploding them again would cost two more round trips.
SMALL_GRAPH_TASK_COUNT = 32

#: Tasks per bundle. FLOORS measured 200; beyond that a pickle hardly shrinks.
BUNDLE_TASK_COUNT = 200

#: A bundle larger than this is cut again, so that exploding one task out of
#: it stays cheap and the scheduler never holds much more than it asked for.
BUNDLE_NBYTES_MAX = 1 << 20

#: Nodes kept alive after ``pack`` so that ``explode`` need not unpickle them.
LIVE_NODE_COUNT_MAX = 4096

#: Longest pickle that may stand for a single argument of a call.
SMALL_PICKLE_NBYTES = 200

#: Data inside a node beyond this size travels in its own pickle, out of band,
#: and never inside a bundle.
LARGE_DATA_NBYTES = 64 << 10

#: ``client.map`` makes keyword arguments above this a node of their own.
LARGE_KEYWORD_NBYTES = 1e5

#: Distinct callable objects other than functions and classes that one graph may
#: put into its table of functions; a graph of partials all different would
#: otherwise become a table as long as itself.
CALLABLE_OBJECT_COUNT_MAX = 100

#: Modules worth importing in the zygote once a helper had to import them.
PREIMPORTABLE = (
    "dask.array",
    "dask.bag",
    "dask.dataframe",
    "dask.delayed",
    "numpy",
    "pandas",
    "pyarrow",
    "xarray",
)

#: A helper without a request for so long may collect garbage: longer than the
#: scheduler needs to order a large graph and ask for its bundles.
IDLE_MS = 200

#: Tasks between two garbage collections.
COLLECT_TASK_COUNT = 10_000

DATA_PRODUCER = 1
DATA_NODE = 2
BARRIER = 4

SPEC_PICKLE = 0
SPEC_CALL = 1
SPEC_BUNDLE = 2

_LENGTH = struct.Struct("<I")
_PICKLE_PROTOCOL = 5
_PR_SET_PDEATHSIG = 1


class Stock:
    """Names of dask and distributed, imported once by :func:`import_stock`.

    An ``import`` statement inside a function costs a microsecond or two each
    time; a submit would have a few dozen.
    """

    def __init__(self) -> None:
        import cloudpickle
        from dask import _task_spec
        from dask._expr import Expr, LLGExpr
        from distributed.client import _MapExpr
        from distributed.core import error_message
        from distributed.protocol.compression import decompress
        from distributed.protocol.pickle import _DaskPickler
        from distributed.protocol.serialize import (
            merge_and_deserialize,
            msgpack_decode_default,
        )
        from distributed.shuffle._core import P2PBarrierTask, ShuffleRunSpec
        from distributed.utils import import_file
        from distributed.versions import get_versions

        self.cloudpickle = cloudpickle
        self.task_spec: Any = _task_spec
        self.Expr = Expr
        self.LLGExpr = LLGExpr
        self.MapExpr = _MapExpr
        self.error_message = error_message
        self.decompress = decompress
        self.DaskPickler: Any = _DaskPickler
        self.merge_and_deserialize = merge_and_deserialize
        self.msgpack_decode_default = msgpack_decode_default
        self.P2PBarrierTask = P2PBarrierTask
        self.ShuffleRunSpec = ShuffleRunSpec
        self.import_file = import_file
        self.versions = get_versions()
        self.node_reducers = _node_reducers(_task_spec)


stock: Stock


def import_stock() -> None:
    """Import dask and distributed; everything below needs it."""
    global stock
    stock = Stock()


class ProtocolError(Exception):
    """A message that the protocol does not allow."""


class BundleTooLargeError(Exception):
    """Raised inside a pickler to stop it."""


class NotPlainError(Exception):
    """A value that cannot be an argument of a call."""


def _encode_key_part(value: Any) -> Any:
    # Array code puts numpy integers into keys; they are equal to, and hash
    # like, the plain number that msgpack can carry.
    item = getattr(value, "item", None)
    if item is not None:
        return item()
    raise TypeError(f"key part {value!r} of type {type(value)} cannot be sent")


pack_key = msgpack.Packer(use_bin_type=True, default=_encode_key_part).pack


def unpack(data: Any) -> Any:
    """Decode msgpack as distributed does: arrays are tuples, keys are anything."""
    return msgpack.unpackb(
        data,
        raw=False,
        use_list=False,
        strict_map_key=False,
        max_ext_len=2**32 - 1,
        max_bin_len=2**32 - 1,
        max_str_len=2**32 - 1,
        max_array_len=2**32 - 1,
        max_map_len=2**32 - 1,
    )


def _message_packer() -> msgpack.Packer:
    return msgpack.Packer(use_bin_type=True, default=_encode_key_part)


class Connection:
    """Messages with a length in front over a stream socket."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self._buffer = bytearray()
        self._packer = _message_packer()

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message; ``None`` when the peer is gone."""
        while True:
            message = self.next_buffered()
            if message is not None:
                return message
            if not self._fill():
                return None

    def next_buffered(self) -> dict[str, Any] | None:
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        (length,) = _LENGTH.unpack_from(buffer)
        if len(buffer) < 4 + length:
            return None
        with memoryview(buffer) as view, view[4 : 4 + length] as body:
            message = unpack(body)
        del buffer[: 4 + length]
        if not isinstance(message, dict):
            raise ProtocolError(f"message is a {type(message).__name__}, not a map")
        return message

    def is_idle(self) -> bool:
        """Whether no request comes for a moment."""
        poll = select.poll()
        poll.register(self.stream, select.POLLIN)
        return not self._buffer and not poll.poll(IDLE_MS)

    def take_buffered(self) -> bytes:
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def _fill(self) -> bool:
        buffer = self._buffer
        missing = 0
        if len(buffer) >= 4:
            missing = 4 + _LENGTH.unpack_from(buffer)[0] - len(buffer)
        try:
            if missing <= 1 << 16:
                data = self.stream.recv(1 << 16)
                buffer += data
                return bool(data)
            # A large graph: read straight into place, no second copy.
            start = len(buffer)
            buffer.extend(bytes(missing))
            with memoryview(buffer) as view:
                while start < len(buffer):
                    count = self.stream.recv_into(view[start:])
                    if not count:
                        return False
                    start += count
        except ConnectionError:
            return False
        return True

    def send(self, message: dict[str, Any]) -> None:
        body = self._packer.pack(message)
        if len(body) >= 1 << 32:
            raise ProtocolError(
                f"answer of {len(body)} bytes is longer than a message may be"
            )
        if len(body) < 1 << 16:
            self.stream.sendall(_LENGTH.pack(len(body)) + body)
        else:
            # A packer keeps the largest buffer it ever needed.
            self._packer = _message_packer()
            self.stream.sendall(_LENGTH.pack(len(body)))
            self.stream.sendall(body)


def _own_frame(frame: types.FrameType) -> bool:
    return frame.f_code.co_filename == _own_frame.__code__.co_filename


def describe_error(error: BaseException) -> dict[str, Any]:
    """Pickles and texts of an exception, as distributed would send them.

    Frames of this file at the outer end are left out: what remains begins in
    dask or in the user's code.
    """
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None and _own_frame(tb.tb_frame):
        tb = tb.tb_next
    if not isinstance(error, Exception):
        # SystemExit and the like would end the client that re-raises them.
        cause = error.with_traceback(tb)
        error = RuntimeError(f"the graph raised {error!r}")
        error.__cause__ = cause
    try:
        raise error.with_traceback(tb)
    except Exception as again:
        # Raising put this very frame in front.
        inner = again.__traceback__
        if inner is not None and inner.tb_next is not None:
            again.__traceback__ = inner.tb_next
        message = stock.error_message(again)
        trace = message["traceback"]
        return {
            "exception": message["exception"].data,
            "traceback": None if trace is None else trace.data,
            "text": message["exception_text"],
            "traceback_text": message["traceback_text"],
        }


def _header(data: bytes) -> dict[str, Any]:
    header: dict[str, Any] = msgpack.unpackb(
        data,
        raw=False,
        use_list=False,
        strict_map_key=False,
        object_hook=stock.msgpack_decode_default,
    )
    return header


def _decompress(header: dict[str, Any], frames: Any) -> list[Any]:
    if header.get("compression"):
        return list(stock.decompress(header, frames))
    return list(frames)


def load_blob(blob: Mapping[str, Any]) -> Any:
    """Object of a ``__Serialized__`` node, whatever family wrote it."""
    header = _header(blob["header"])
    frames = _decompress(header, blob["frames"])
    if (
        header.get("serializer") == "pickle"
        and len(frames) == 1
        and "split-num-sub-frames" not in header
    ):
        return pickle.loads(frames[0])
    return stock.merge_and_deserialize(header, frames)


def load_pickled(node: Mapping[str, Any]) -> Any:
    """Object of a ``__Pickled__`` node."""
    header = _header(node["header"])
    frames = _decompress(header, node["frames"])
    return pickle.loads(header["pickled-obj"], buffers=frames)


def load_spec(spec: Any) -> Any:
    """Object of a pickle with or without out-of-band buffers."""
    if isinstance(spec, (bytes, bytearray)):
        return pickle.loads(spec)
    stream, buffers = spec
    return pickle.loads(stream, buffers=buffers)


def _plain_default(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return {"__Set__": True, "as-list": list(value)}
    raise TypeError(f"{type(value)} is not plain")


def plain(value: Any) -> Any:
    """Return the value if a message can carry it, otherwise its pickle."""
    if value is None or type(value) in _SCALARS:
        return value
    try:
        # What comes back is made of exactly the types that the packer knows.
        return unpack(msgpack.packb(value, use_bin_type=True, default=_plain_default))
    except Exception:
        return {"__Pickled__": NodePickler().dumps(value)}


class NodePickler:
    """Pickles with distributed's order of fallbacks, without its fixed costs.

    ``distributed.protocol.pickle.dumps`` tries plain pickle, then its own
    pickler that knows the ``dask`` serialisers, then cloudpickle, which it also
    prefers when the stream mentions ``__main__``. The same happens here, except
    that after one object of a graph needed cloudpickle the next one that
    plain pickle refuses goes there first.
    """

    def __init__(self) -> None:
        self._cloud_first = False
        # The instance's table hides the global one, to which a module that was
        # imported just now may have added its types.
        self._reducers = {**copyreg.dispatch_table, **stock.node_reducers}

    def dumps(self, obj: Any, buffers: list[Any] | None = None) -> bytes:
        """Pickle `obj`; large buffers are appended to `buffers` if given."""
        if buffers is None:
            return self._dumps(obj, None, _nothing)
        return self._dumps(obj, buffers.append, buffers.clear)

    def dumps_spec(self, obj: Any) -> Any:
        """Pickle as it stands in a message: bytes, or bytes with buffers."""
        buffers: list[Any] = []
        data = self._dumps(obj, buffers.append, buffers.clear)
        if not buffers:
            return data
        return [data, [_flat(buffer) for buffer in buffers]]

    def dumps_bounded(self, obj: Any, nbytes_max: int) -> bytes:
        """Pickle in band, giving up once the buffers alone are too large.

        Raises
        ------
        BundleTooLargeError
            Before anything of the excess was copied.
        """
        left = nbytes_max

        def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
            nonlocal left
            left -= memoryview(buffer).nbytes
            if left < 0:
                raise BundleTooLargeError
            return True

        def reset() -> None:
            nonlocal left
            left = nbytes_max

        return self._dumps(obj, keep_in_band, reset)

    def _dumps(
        self,
        obj: Any,
        callback: Callable[[Any], Any] | None,
        reset: Callable[[], None],
    ) -> bytes:
        try:
            stream = io.BytesIO()
            pickler = pickle.Pickler(stream, _PICKLE_PROTOCOL, buffer_callback=callback)
            pickler.dispatch_table = self._reducers
            pickler.dump(obj)
            data = stream.getvalue()
        except BundleTooLargeError:
            raise
        except Exception:
            reset()
            return self._fallback(obj, callback, reset)
        if b"__main__" in data:
            reset()
            return self._cloud(obj, callback)
        return data

    def _fallback(
        self,
        obj: Any,
        callback: Callable[[Any], Any] | None,
        reset: Callable[[], None],
    ) -> bytes:
        if self._cloud_first:
            try:
                return self._cloud(obj, callback)
            except BundleTooLargeError:
                raise
            except Exception:
                reset()
        try:
            stream = io.BytesIO()
            stock.DaskPickler(stream, _PICKLE_PROTOCOL, buffer_callback=callback).dump(
                obj
            )
            data = stream.getvalue()
        except BundleTooLargeError:
            raise
        except Exception:
            reset()
            data = self._cloud(obj, callback)
            self._cloud_first = True
            return data
        if b"__main__" in data:
            reset()
            return self._cloud(obj, callback)
        return data

    def _cloud(self, obj: Any, callback: Callable[[Any], Any] | None) -> bytes:
        data: bytes = stock.cloudpickle.dumps(
            obj, _PICKLE_PROTOCOL, buffer_callback=callback
        )
        return data


def _nothing() -> None:
    pass


def _node_reducers(task_spec: Any) -> dict[type, Callable[[Any], Any]]:
    """Reducers that give exactly what `Task.__getstate__` gives, but faster.

    Stock reads ten slots through a generator and a cached class method, more
    than half of the time it takes to pickle a task.
    """

    def reducer(kind: type, drops_constructor: bool) -> Callable[[Any], Any]:
        slots = kind.get_all_slots()  # type: ignore[attr-defined]
        state_of = operator.attrgetter(*slots)
        arguments = (kind,)
        kwargs_position = slots.index("kwargs")

        def reduce_task(node: Any) -> Any:
            return copyreg.__newobj__, arguments, state_of(node)  # type: ignore[attr-defined]

        def reduce_container(node: Any) -> Any:
            state = list(state_of(node))
            kwargs = state[kwargs_position].copy()
            kwargs.pop("constructor", None)
            state[kwargs_position] = kwargs
            return copyreg.__newobj__, arguments, state  # type: ignore[attr-defined]

        return reduce_container if drops_constructor else reduce_task

    containers = (task_spec.List, task_spec.Tuple, task_spec.Set, task_spec.Dict)
    reducers = {kind: reducer(kind, True) for kind in containers}
    reducers[task_spec.Task] = reducer(task_spec.Task, False)
    return reducers


def _flat(buffer: Any) -> bytes:
    view = memoryview(buffer)
    if view.c_contiguous or view.f_contiguous:
        with pickle.PickleBuffer(buffer).raw() as raw:
            return bytes(raw)
    return view.tobytes()


_SCALARS = frozenset((type(None), bool, int, float, str, bytes))

_FUNCTION_TYPES = frozenset(
    (types.FunctionType, types.BuiltinFunctionType, type, types.MethodDescriptorType)
)

# Immutable, small and picklable by reference or by value without surprises;
# pickling an unknown object only to see whether it is small could cost
# gigabytes.
_SMALL_TYPES = _FUNCTION_TYPES | {
    complex,
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    range,
    slice,
    uuid.UUID,
    type(...),
    type(NotImplemented),
}

_EXT_REF = 1
_EXT_LIST = 2
_EXT_TUPLE = 3
_EXT_DICT = 4
_EXT_NODE_LIST = 5
_EXT_NODE_TUPLE = 6
_EXT_PICKLE = 7


def _ext(code: int, payload: bytes) -> bytes:
    length = len(payload)
    if length < 256:
        return bytes((0xC7, length, code)) + payload
    return struct.pack(">BIB", 0xC9, length, code) + payload


_REFERENCE_HEADERS = [bytes((0xC7, length, _EXT_REF)) for length in range(256)]

_pack_scalar = msgpack.Packer(use_bin_type=True).pack


def _array_header(length: int) -> bytes:
    if length < 16:
        return bytes((0x90 | length,))
    if length < 1 << 16:
        return b"\xdc" + length.to_bytes(2, "big")
    return b"\xdd" + length.to_bytes(4, "big")


class CallEncoder:
    """Turns plain tasks into function numbers and packed arguments."""

    def __init__(self, pickler: NodePickler) -> None:
        self._pickler = pickler
        self._ref = stock.task_spec.TaskRef
        self._alias = stock.task_spec.Alias
        self._list = stock.task_spec.List
        self._tuple = stock.task_spec.Tuple
        self._small_pickles: dict[int, bytes] = {}
        # Keeps what was looked up by identity alive, so that no identity is reused.
        self._alive: list[Any] = []
        self._numbers: dict[int, bytes | None] = {}
        self._callable_object_count = 0
        self.functions: list[bytes] = []
        self.calls: list[bytes] = []

    def function(self, func: Any) -> bytes | None:
        """Packed number of the function; ``None`` if it cannot be in the table.

        Identity of function objects is meaningful within one graph only.
        """
        try:
            return self._numbers[id(func)]
        except KeyError:
            pass
        number = None
        if self._is_acceptable(func):
            with contextlib.suppress(Exception):
                self.functions.append(self._pickler.dumps(func))
                number = _pack_scalar(len(self.functions) - 1)
        self._numbers[id(func)] = number
        self._alive.append(func)
        return number

    def _is_acceptable(self, func: Any) -> bool:
        if type(func) in _FUNCTION_TYPES:
            return True
        self._callable_object_count += 1
        return self._callable_object_count <= CALLABLE_OBJECT_COUNT_MAX

    def add(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        data_producer: bool,
    ) -> bool:
        """Append a call; ``False`` (and nothing appended) if it is not plain."""
        try:
            if kwargs or data_producer:
                head = b"\x94" if data_producer else b"\x93"
                tail = self._with_keywords(args, kwargs or {}, data_producer)
            else:
                head = b"\x92"
                tail = self._arguments(args)
        except NotPlainError:
            return False
        number = self.function(func)
        if number is None:
            return False
        self.calls.append(head + number + tail)
        return True

    def _with_keywords(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], data_producer: bool
    ) -> bytes:
        seen: set[int] = set()
        parts = [_array_header(len(args))]
        parts.extend(self._node_argument(a, seen) for a in args)
        if len(kwargs) > 15:
            raise NotPlainError
        parts.append(bytes((0x80 | len(kwargs),)))
        for name, value in kwargs.items():
            if type(name) is not str:
                raise NotPlainError
            parts.append(self._scalar(name))
            parts.append(self._node_argument(value, seen))
        if data_producer:
            parts.append(b"\xc3")
        return b"".join(parts)

    def _arguments(self, args: tuple[Any, ...]) -> bytes:
        # References and scalars are spelled out: they are nearly everything, and
        # a call costs more than what it would do.
        reference = self._ref
        seen: set[int] | None = None
        parts = [_array_header(len(args))]
        for a in args:
            kind = type(a)
            if kind is reference:
                try:
                    payload = pack_key(a.key)
                except Exception:
                    raise NotPlainError from None
                if len(payload) < 256:
                    parts.append(_REFERENCE_HEADERS[len(payload)])
                    parts.append(payload)
                else:
                    parts.append(_ext(_EXT_REF, payload))
            elif kind in _SCALARS:
                parts.append(self._scalar(a))
            else:
                if seen is None:
                    seen = set()
                parts.append(self._node_argument(a, seen))
        return b"".join(parts)

    def _node_argument(self, value: Any, seen: set[int]) -> bytes:
        """Argument of a task or of a node container, where references count."""
        kind = type(value)
        if kind in _SCALARS:
            return self._scalar(value)
        if kind is self._ref or isinstance(value, self._ref):
            return self._reference(value.key)
        if kind is self._alias:
            return self._reference(value.target)
        if kind is self._list or kind is self._tuple:
            code = _EXT_NODE_LIST if kind is self._list else _EXT_NODE_TUPLE
            items = [self._node_argument(a, seen) for a in value.args]
            return _ext(code, _array_header(len(items)) + b"".join(items))
        return self._value(value, seen)

    def _reference(self, key: Any) -> bytes:
        try:
            payload = pack_key(key)
        except Exception:
            raise NotPlainError from None
        return _ext(_EXT_REF, payload)

    def _scalar(self, value: Any) -> bytes:
        try:
            data: bytes = _pack_scalar(value)
        except (OverflowError, ValueError):
            return self._small_pickle(value)
        return data

    def _value(self, value: Any, seen: set[int]) -> bytes:
        """Argument inside a plain container, where nothing is evaluated."""
        kind = type(value)
        if kind in _SCALARS:
            return self._scalar(value)
        if kind is list or kind is tuple or kind is dict:
            # The same list given twice must stay one list.
            if kind is not tuple or value:
                if id(value) in seen:
                    raise NotPlainError
                seen.add(id(value))
            if len(value) > 1000:
                raise NotPlainError
            if kind is dict:
                items = [
                    b"\x92" + self._value(k, seen) + self._value(v, seen)
                    for k, v in value.items()
                ]
                code = _EXT_DICT
            else:
                items = [self._value(v, seen) for v in value]
                code = _EXT_LIST if kind is list else _EXT_TUPLE
            return _ext(code, _array_header(len(items)) + b"".join(items))
        if kind in _SMALL_TYPES:
            return self._small_pickle(value)
        if (
            kind.__module__ == "numpy"
            and hasattr(value, "dtype")
            and not hasattr(value, "__setitem__")
        ):
            # A numpy scalar; an array could be large, or shared and changed.
            return self._small_pickle(value)
        raise NotPlainError

    def _small_pickle(self, value: Any) -> bytes:
        known = self._small_pickles.get(id(value))
        if known is not None:
            return known
        try:
            data = pickle.dumps(value, _PICKLE_PROTOCOL)
        except Exception:
            raise NotPlainError from None
        if len(data) > SMALL_PICKLE_NBYTES or b"__main__" in data:
            raise NotPlainError
        packed = _ext(_EXT_PICKLE, data)
        if type(value) in _FUNCTION_TYPES:
            self._small_pickles[id(value)] = packed
            self._alive.append(value)
        return packed


def _little_endian(values: array.array[int]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _cull(dsk: dict[Any, Any], keys: Iterable[Any]) -> dict[Any, Any]:
    """Keep what is reachable from `keys`, in the order of `dsk`."""
    seen: set[Any] = set()
    work = [key for key in keys if key in dsk]
    while work:
        key = work.pop()
        if key in seen:
            continue
        seen.add(key)
        work.extend(d for d in dsk[key].dependencies if d in dsk and d not in seen)
    if len(seen) == len(dsk):
        return dsk
    return {key: node for key, node in dsk.items() if key in seen}


def _holds_large_data(node: Any) -> bool:
    """Whether one argument of the node is a large array, frame or string."""
    values = getattr(node, "args", None)
    if values is None:
        values = (getattr(node, "value", None),)
    elif node.kwargs:
        values = (*values, *node.kwargs.values())
    for value in values:
        kind = type(value)
        if kind is str or kind is bytes:
            if len(value) > LARGE_DATA_NBYTES:
                return True
            continue
        if kind in _SCALARS or kind in _FUNCTION_TYPES:
            continue
        try:
            if hasattr(kind, "memory_usage"):
                nbytes = len(value) * 8
            else:
                nbytes = getattr(value, "nbytes", 0)
            if nbytes > LARGE_DATA_NBYTES:
                return True
        except Exception:
            # An exotic type with a failing property: not our business.
            continue
    return False


class Structure:
    """Answer of ``expand`` in the making, and the nodes that ``pack`` needs."""

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.offsets = array.array("I", (0,))
        self.dependencies = array.array("I")
        self.flags = bytearray()
        self.specs = bytearray()
        self.barriers: list[tuple[int, str]] = []
        self.functions: list[bytes] = []
        self.calls: list[bytes] = []
        self.pickles: list[Any] = []
        self.bundle_nodes: dict[int, Any] = {}

    def fields(self) -> dict[str, Any]:
        call_offsets = array.array("I", (0,))
        call_offsets.extend(itertools.accumulate(map(len, self.calls)))
        return {
            "n": len(self.specs),
            "keys": self.keys,
            "offsets": _little_endian(self.offsets),
            "dependencies": _little_endian(self.dependencies),
            "flags": bytes(self.flags),
            "barriers": self.barriers,
            "functions": self.functions,
            "specs": bytes(self.specs),
            "pickles": self.pickles,
            "calls": b"".join(self.calls),
            "call_offsets": _little_endian(call_offsets),
        }


def structure_of_map(expr: Any, pickler: NodePickler) -> Structure | None:
    """Structure of ``client.map`` without making a single task.

    ``None`` if anything about it is unusual; the general way gives the answer
    then.
    """
    if any(isinstance(operand, stock.Expr) for operand in expr.operands):
        return None
    keys = list(expr.keys)
    kwargs = expr.kwargs or None
    if kwargs is not None:
        for value in kwargs.values():
            if type(value) not in _SCALARS:
                return None
            if type(value) in (str, bytes) and len(value) > LARGE_KEYWORD_NBYTES / 4:
                return None
    rows = list(zip(*expr.iterables, strict=False))
    n = min(len(keys), len(rows))
    del keys[n:], rows[n:]
    index = dict(zip(keys, range(n), strict=True))
    if len(index) != n:
        return None
    encoder = CallEncoder(pickler)
    number = encoder.function(expr.func)
    if number is None:
        return None

    result = Structure()
    result.keys = keys
    # The first row decides cheaply in most cases that are not plain.
    kinds = set(map(type, rows[0])) if rows else set()
    if kwargs is None and kinds <= _SCALARS:
        kinds = set(map(type, itertools.chain.from_iterable(rows)))
    if kwargs is None and kinds <= _SCALARS:
        function = unpack(number)
        try:
            result.calls = [_pack_scalar((function, row)) for row in rows]
        except (OverflowError, ValueError):
            return None
        result.offsets = array.array("I", bytes(4 * (n + 1)))
    else:
        parse_input = stock.task_spec.parse_input
        GraphNode = stock.task_spec.GraphNode
        for row in rows:
            arguments = tuple(
                value if type(value) in _SCALARS else parse_input(value)
                for value in row
            )
            if not encoder.add(expr.func, arguments, kwargs, False):
                return None
            found: set[Any] = set()
            for argument in arguments:
                if isinstance(argument, GraphNode):
                    found.update(argument.dependencies)
            _add_dependencies(result, index, found)
        result.calls = encoder.calls
    result.functions = encoder.functions
    result.flags = bytearray(n)
    result.specs = bytearray(bytes((SPEC_CALL,)) * n)
    return result


def _add_dependencies(
    result: Structure, index: dict[Any, int], found: Iterable[Any]
) -> None:
    numbers = []
    for key in found:
        number = index.get(key)
        if number is None:
            number = index[key] = len(result.keys)
            result.keys.append(key)
        numbers.append(number)
    # The order of a set differs from process to process; the scheduler must not
    # see that.
    numbers.sort()
    result.dependencies.extend(numbers)
    result.offsets.append(len(result.dependencies))


def structure_of_graph(dsk: dict[Any, Any], pickler: NodePickler) -> Structure:
    """Structure of a graph of nodes."""
    Alias = stock.task_spec.Alias
    DataNode = stock.task_spec.DataNode
    Task = stock.task_spec.Task
    subgraph = stock.task_spec._execute_subgraph

    n = len(dsk)
    result = Structure()
    result.keys = keys = list(dsk)
    result.flags = flags = bytearray(n)
    result.specs = specs = bytearray(n)
    index = dict(zip(keys, range(n), strict=True))
    encoder = CallEncoder(pickler)
    offsets, dependencies = result.offsets, result.dependencies
    bundle_nodes = result.bundle_nodes
    at_once: dict[int, Any] = {}

    for i, node in enumerate(dsk.values()):
        kind = type(node)
        if kind is Task:
            found = node._dependencies
            producer = node._data_producer
            if producer:
                flags[i] = DATA_PRODUCER
            if node.func is subgraph:
                bundle_nodes[i] = node
            elif encoder.add(node.func, node.args, node.kwargs, bool(producer)):
                specs[i] = SPEC_CALL
            elif _holds_large_data(node):
                at_once[i] = node
            else:
                bundle_nodes[i] = node
        else:
            found = node.dependencies
            if kind is DataNode or isinstance(node, DataNode):
                flags[i] = DATA_NODE | DATA_PRODUCER
            elif kind is not Alias and node.data_producer:
                flags[i] = DATA_PRODUCER
            if isinstance(node, stock.P2PBarrierTask):
                flags[i] |= BARRIER
                result.barriers.append((i, node.spec.id))
                at_once[i] = node
            elif _holds_large_data(node):
                at_once[i] = node
            else:
                bundle_nodes[i] = node
        if not found:
            offsets.append(len(dependencies))
        elif len(found) == 1:
            (key,) = found
            number = index.get(key)
            if number is None:
                number = index[key] = len(keys)
                keys.append(key)
            dependencies.append(number)
            offsets.append(len(dependencies))
        else:
            _add_dependencies(result, index, found)

    if len(bundle_nodes) < SMALL_GRAPH_TASK_COUNT:
        at_once.update(bundle_nodes)
        result.bundle_nodes = {}
    else:
        for i in bundle_nodes:
            specs[i] = SPEC_BUNDLE
    result.functions = encoder.functions
    result.calls = encoder.calls
    result.pickles = [pickler.dumps_spec(at_once[i]) for i in sorted(at_once)]
    return result


def materialize(
    expr: Any, keys: Iterable[Any]
) -> tuple[dict[Any, Any], Mapping[str, Mapping[Any, Any]]]:
    """Graph of nodes and per-key annotations of an expression."""
    LLGExpr = stock.LLGExpr
    if type(expr) is LLGExpr and type(expr.operands[0]) is dict:
        # What `Expr.__dask_graph__` would return, without walking an
        # expression tree of one node.
        dsk = expr.operands[0]
        annotations: Mapping[str, Mapping[Any, Any]] = {}
    elif isinstance(expr, dict):
        # As `Client.recreate_task_locally` asks for results that are there.
        dsk, annotations = expr, {}
    else:
        dsk = expr.__dask_graph__()
        # Optimisation, which the first call does and caches, may change them.
        annotations = expr.__dask_annotations__()
    dsk = stock.task_spec.convert_legacy_graph(dsk)
    if isinstance(expr, LLGExpr):
        # Other expressions come culled from the client.
        dsk = _cull(dsk, keys)
    return dsk, annotations


class Helper:
    """Serves the requests of one connection, one at a time."""

    def __init__(self, uploads_directory: str | None) -> None:
        self._uploads_directory = uploads_directory
        self._baseline = resident_nbytes()
        self._is_set_up = False
        self._bundle_nodes: dict[int, Any] = {}
        self._task_count = 0
        self._uncollected_count = 0
        self._live_bundles: dict[bytes, list[Any]] = {}
        self._known_modules = _preimportable_modules()

    def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        operation = _OPERATIONS.get(request.get("op", ""))
        if operation is None:
            raise ProtocolError(f"unknown operation {request.get('op')!r}")
        return operation(self, request)

    def setup(self, request: Mapping[str, Any]) -> dict[str, Any]:
        for path in request.get("sys_path") or ():
            if path not in sys.path:
                sys.path.insert(0, path)
        config = request.get("config")
        if config:
            import dask.config

            dask.config.set(config)
        if request.get("nice"):
            os.nice(request["nice"])
        for name, data, *load in request.get("uploads") or ():
            # A module that fails to import was reported to the client that
            # uploaded it; graphs that do not need it still work.
            try:
                self._add_upload(name, data, bool(load[0]) if load else True)
            except Exception:
                traceback.print_exc()
        if not self._is_set_up:
            self._is_set_up = True
            self._baseline = resident_nbytes()
        return {}

    def upload(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._add_upload(request["name"], request["data"], request.get("load", True))
        return {}

    def _add_upload(self, name: str, data: bytes | str, load: bool) -> None:
        if self._uploads_directory is None:
            self._uploads_directory = tempfile.mkdtemp(prefix="oxidask-uploads-")
        directory = self._uploads_directory
        os.makedirs(directory, exist_ok=True)
        if directory not in sys.path:
            sys.path.insert(0, directory)
        path = os.path.join(directory, os.path.basename(name))
        with open(path, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        if load:
            stock.import_file(path)

    def expand(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._forget_graph()
        started = time.perf_counter()
        try:
            expr = load_blob(request["expr"])
        except BaseException as error:
            message = """\
                Error during deserialization of the task graph. This frequently
                occurs if the Scheduler and Client have different environments.
                For more information, see
                https://docs.dask.org/en/stable/deployment-considerations.html#consistent-software-environments
            """
            raise RuntimeError(textwrap.dedent(message)) from error
        unpickled = time.perf_counter()

        pickler = NodePickler()
        structure = None
        annotations: Mapping[str, Mapping[Any, Any]] = {}
        if type(expr) is stock.MapExpr:
            structure = structure_of_map(expr, pickler)
            materialized = time.perf_counter()
        if structure is None:
            dsk, annotations = materialize(expr, request["keys"])
            del expr
            materialized = time.perf_counter()
            structure = structure_of_graph(dsk, pickler)
            del dsk

        answer = structure.fields()
        n = self._task_count = answer["n"]
        # A graph of one task leaves expression objects too.
        self._uncollected_count += n + 10
        self._bundle_nodes = structure.bundle_nodes
        answer["annotations"] = _by_index(annotations, answer["keys"], n)
        answer.update(_global_annotations(request, answer["keys"], n))
        if request.get("code"):
            code = load_pickled(request["code"])
            answer["code"] = plain([tuple(source) for source in code])
        if request.get("span_metadata"):
            answer["span_metadata"] = plain(load_pickled(request["span_metadata"]))
        answer["imported"] = self._newly_imported()
        answer["rss_max"] = _resident_nbytes_max()
        answer["durations"] = {
            "unpickle": unpickled - started,
            "materialize": materialized - unpickled,
            "convert": time.perf_counter() - materialized,
        }
        return answer

    def _newly_imported(self) -> list[str]:
        modules = _preimportable_modules()
        if len(modules) == len(self._known_modules):
            return []
        new = sorted(modules - self._known_modules)
        self._known_modules = modules
        return new

    def pack(self, request: Mapping[str, Any]) -> dict[str, Any]:
        order = array.array("I", request["order"])
        if sys.byteorder == "big":
            order.byteswap()
        if len(order) != self._task_count:
            raise ProtocolError(
                f"order of {len(order)} tasks for a graph of {self._task_count}"
            )
        nodes = self._bundle_nodes
        self._bundle_nodes = {}
        pickler = NodePickler()
        bundles: list[bytes] = []
        cuts = array.array("I", (0,))
        positions = [p for p, i in enumerate(order) if i in nodes]
        live_count = 0
        for start in range(0, len(positions), BUNDLE_TASK_COUNT):
            some = positions[start : start + BUNDLE_TASK_COUNT]
            members = [nodes[order[p]] for p in some]
            for count, data in _bundles(members, pickler):
                bundles.append(data)
                cuts.append(some[count - 1] + 1)
                if live_count + count <= LIVE_NODE_COUNT_MAX:
                    live_count += count
                    self._live_bundles[_digest(data)] = members[:count]
                del some[:count], members[:count]
        if bundles:
            cuts[-1] = len(order)
        return {"bundles": bundles, "cuts": _little_endian(cuts)}

    def explode(self, request: Mapping[str, Any]) -> dict[str, Any]:
        bundle = request["bundle"]
        nodes = self._live_bundles.pop(_digest(bundle), None)
        if nodes is None:
            nodes = pickle.loads(bundle)
        self._uncollected_count += len(nodes)
        pickler = NodePickler()
        return {"specs": [pickler.dumps_spec(node) for node in nodes]}

    def create_run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        spec = load_spec(request["spec"]).spec
        workers = list(request["workers"])
        existing = request.get("existing") or {}
        worker_for = {}
        for partition in spec.output_partitions:
            worker = existing.get(partition)
            if worker is None:
                worker = spec.pick_worker(partition, workers)
            worker_for[partition] = worker
        run: Any = stock.ShuffleRunSpec(
            spec=spec, worker_for=worker_for, span_id=request.get("span_id")
        )
        # The scheduler counts runs, not this process; the class is frozen.
        object.__setattr__(run, "run_id", request["run_id"])
        buffers: list[Any] = []
        data = NodePickler().dumps(run, buffers)
        return {
            "worker_for": list(worker_for.items()),
            "run_spec": data,
            "buffers": [_flat(buffer) for buffer in buffers],
        }

    def scheduler_plugin(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from distributed.diagnostics.plugin import SchedulerUploadFile

        plugin = pickle.loads(request["plugin"])
        if isinstance(plugin, SchedulerUploadFile):
            return {
                "kind": "upload",
                "name": plugin.filename,
                "data": plugin.data,
                "load": bool(plugin.load),
            }
        kind = type(plugin)
        return {"kind": "other", "class": f"{kind.__module__}.{kind.__qualname__}"}

    def worker_key(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from distributed.core import Status

        function = pickle.loads(request["key"])
        numbers: dict[Any, str] = {}
        groups = []
        for fields in request["workers"]:
            status = Status[fields["status"]]
            value = function(types.SimpleNamespace(**{**fields, "status": status}))
            groups.append(numbers.setdefault(value, str(len(numbers))))
        return {"groups": groups}

    def plain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        value = load_pickled(request["pickled"])
        return {
            "value": unpack(
                msgpack.packb(value, use_bin_type=True, default=_plain_default)
            )
        }

    def memory(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._forget_graph()
        gc.collect()
        self._uncollected_count = 0
        return {"rss": resident_nbytes(), "baseline": self._baseline}

    def wants_rest(self) -> bool:
        """Whether there may be garbage, and nothing large alive beside it.

        The automatic collector is off: it would walk a growing graph again and
        again, 14 of 37 µs per task on a large array.
        """
        return not self._bundle_nodes and self._uncollected_count >= COLLECT_TASK_COUNT

    def rest(self) -> None:
        """Collect garbage; for when nobody waits."""
        gc.collect()
        # What is left is mostly modules, which need no second look.
        gc.freeze()
        self._uncollected_count = 0

    def _forget_graph(self) -> None:
        self._bundle_nodes = {}
        self._live_bundles.clear()
        self._task_count = 0


_OPERATIONS: dict[str, Callable[[Helper, Mapping[str, Any]], dict[str, Any]]] = {
    "setup": Helper.setup,
    "upload": Helper.upload,
    "expand": Helper.expand,
    "pack": Helper.pack,
    "explode": Helper.explode,
    "create_run": Helper.create_run,
    "scheduler_plugin": Helper.scheduler_plugin,
    "worker_key": Helper.worker_key,
    "plain": Helper.plain,
    "memory": Helper.memory,
}


def _bundles(members: list[Any], pickler: NodePickler) -> list[tuple[int, bytes]]:
    """Pickles of consecutive runs of `members` with the length of each run."""
    if len(members) == 1:
        return [(1, pickler.dumps(members))]
    try:
        data = pickler.dumps_bounded(members, BUNDLE_NBYTES_MAX)
        if len(data) <= BUNDLE_NBYTES_MAX:
            return [(len(members), data)]
    except BundleTooLargeError:
        pass
    half = len(members) // 2
    return _bundles(members[:half], pickler) + _bundles(members[half:], pickler)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _by_index(
    annotations: Mapping[str, Mapping[Any, Any]], keys: list[Any], n: int
) -> dict[str, list[tuple[int, Any]]]:
    if not annotations:
        return {}
    result = {}
    for name, values in annotations.items():
        known: dict[int, Any] = {}
        pairs = []
        for i in range(n):
            value = values.get(keys[i])
            # Stock takes None for "not annotated".
            if value is None:
                continue
            # Most keys of a layer share one object.
            encoded = known.get(id(value))
            if encoded is None:
                encoded = known[id(value)] = plain(value)
            pairs.append((i, encoded))
        if pairs:
            result[name] = pairs
    return result


def _global_annotations(
    request: Mapping[str, Any], keys: list[Any], n: int
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    evaluated: dict[str, list[tuple[int, Any]]] = {}
    pickled = request.get("annotations")
    for name, value in ((load_pickled(pickled) or {}) if pickled else {}).items():
        if callable(value):
            evaluated[name] = [(i, plain(value(keys[i]))) for i in range(n)]
        else:
            values[name] = plain(value)
    return {"global_annotations": values, "evaluated_annotations": evaluated}


def _preimportable_modules() -> set[str]:
    return {name for name in PREIMPORTABLE if name in sys.modules}


def resident_nbytes() -> int:
    """Resident memory of this process."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import psutil

        return int(psutil.Process().memory_info().rss)


def _resident_nbytes_max() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes, except on macOS, which counts bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def serve(connection: Connection, helper: Helper) -> None:
    """Answer requests until the scheduler closes the connection."""
    while True:
        request = connection.receive()
        if request is None:
            return
        identity = request.get("id", 0)
        if request.get("op") == "become":
            connection.send({"id": identity})
            become(connection, request["source"], request["name"])
            return
        try:
            answer = helper.handle(request)
            answer["id"] = identity
            connection.send(answer)
            del answer
        except ConnectionError:
            return
        except BaseException as error:
            failure = describe_error(error)
            with contextlib.suppress(ConnectionError):
                connection.send({"id": identity, "error": failure})
            del error
        del request
        if helper.wants_rest() and connection.is_idle():
            helper.rest()


def become(connection: Connection, source: str, name: str) -> None:
    """Run another program over this connection.

    Its ``main`` is given the socket and what was read from it already.
    """
    gc.enable()
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    module.main(connection.stream, connection.take_buffered())


class Zygote:
    """Forks helpers on request and tells how they ended."""

    def __init__(self, control: socket.socket, directory: str) -> None:
        self._control = control
        self._connection = Connection(control)
        self._descriptors: collections.deque[int] = collections.deque()
        self._children: set[int] = set()
        self._directory = directory
        self._wakeup_read, self._wakeup_write = socket.socketpair()
        self._wakeup_read.setblocking(False)
        self._wakeup_write.setblocking(False)
        # Not select(): a scheduler with many connections hands over high numbers.
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._wakeup_read, selectors.EVENT_READ)
        self._terminated = False

    def run(self) -> None:
        """Serve until the control channel closes, then end every helper."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.set_wakeup_fd(self._wakeup_write.fileno(), warn_on_full_buffer=False)
        self._freeze()
        try:
            self._connection.send(
                {
                    "id": 0,
                    "op": "hello",
                    "pid": os.getpid(),
                    "python": sys.version,
                    "versions": stock.versions,
                }
            )
            while self._step():
                pass
        except ConnectionError:
            pass
        finally:
            self._end()

    def _terminate(self, number: int, frame: types.FrameType | None) -> None:
        self._terminated = True

    def _step(self) -> bool:
        readable = [key.fileobj for key, _ in self._selector.select()]
        if self._terminated:
            return False
        if self._wakeup_read in readable:
            with contextlib.suppress(BlockingIOError):
                while self._wakeup_read.recv(4096):
                    pass
            self._reap()
        if self._control in readable:
            return self._read_control()
        return True

    def _read_control(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(
            self._control, 1 << 16, 16, getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        )
        self._descriptors.extend(descriptors)
        if not data:
            return False
        self._connection.feed(data)
        while (request := self._connection.next_buffered()) is not None:
            self._handle(request)
        return True

    def _handle(self, request: Mapping[str, Any]) -> None:
        answer: dict[str, Any]
        operation = request.get("op")
        try:
            if operation == "fork":
                answer = {"pid": self._fork(self._descriptors.popleft())}
            elif operation == "preimport":
                answer = {"failed": self._preimport(request["modules"])}
            elif operation == "kill":
                answer = {"killed": self._kill(request["pid"])}
            else:
                raise ProtocolError(f"unknown operation {operation!r}")
        except Exception as error:
            answer = {"error": describe_error(error)}
        answer["id"] = request.get("id", 0)
        self._connection.send(answer)

    def _fork(self, descriptor: int) -> int:
        parent = os.getpid()
        try:
            with warnings.catch_warnings():
                # From 3.12 on Python warns of threads; the only ones here are
                # allocators' own, which know about fork.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                self._become_helper(descriptor, parent)
        finally:
            os.close(descriptor)
        self._children.add(pid)
        return pid

    def _become_helper(self, descriptor: int, parent: int) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _die_with_parent(parent)
            self._selector.close()
            self._control.close()
            self._wakeup_read.close()
            self._wakeup_write.close()
            while self._descriptors:
                os.close(self._descriptors.popleft())
            directory = os.path.join(self._directory, str(os.getpid()))
            with socket.socket(fileno=descriptor) as stream:
                serve(Connection(stream), Helper(directory))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            # Exit handlers belong to the zygote.
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(status)

    def _preimport(self, modules: Iterable[str]) -> dict[str, str]:
        import importlib

        failed = {}
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:
                failed[module] = repr(error)
        self._freeze()
        return failed

    def _kill(self, pid: int) -> bool:
        # Only a child that was not reaped yet surely still owns its pid.
        if pid not in self._children:
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid not in self._children:
                continue
            self._children.discard(pid)
            shutil.rmtree(os.path.join(self._directory, str(pid)), ignore_errors=True)
            self._connection.send({"id": 0, "op": "reap", "pid": pid, "status": status})

    def _freeze(self) -> None:
        # Objects of the zygote are never garbage; without this the first
        # collection in a child would copy every page they live on.
        gc.collect()
        gc.freeze()

    def _end(self) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        shutil.rmtree(self._directory, ignore_errors=True)


def _die_with_parent(parent: int) -> None:
    if sys.platform.startswith("linux"):
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main(descriptor: int, directory: str) -> None:
    """Run the zygote over the socket with this file descriptor."""
    # A Ctrl-C in the terminal is for the scheduler, which then closes the
    # control channel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    # What user code prints belongs to the scheduler's log.
    os.dup2(2, 1)
    # A pool of BLAS threads would have to survive every fork, and nothing here
    # multiplies matrices.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    gc.disable()
    import_stock()
    # Every helper needs them: import them before the first fork.
    import ctypes  # noqa: F401
    import resource  # noqa: F401

    with socket.socket(fileno=descriptor) as control:
        Zygote(control, directory).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
