"""Values of a worker: their sizes and classes, and their form on the wire."""

from __future__ import annotations

import pickle as stdlib_pickle
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from sys import getsizeof
from types import TracebackType
from typing import Any, NamedTuple

import msgpack
from dask.utils import typename
from distributed.core import error_message
from distributed.protocol import pickle
from distributed.protocol.compression import decompress
from distributed.protocol.core import dumps as dump_message
from distributed.protocol.core import loads as load_message
from distributed.protocol.serialize import (
    Serialize,
    merge_and_deserialize,
    msgpack_decode_default,
    msgpack_encode_default,
    serialize_and_split,
)
from distributed.protocol.utils import msgpack_opts
from distributed.sizeof import safe_sizeof

from oxidask._oxidask import ValueType

__all__ = [
    "cheap",
    "describe",
    "dump",
    "dump_message",
    "encode_key",
    "failure",
    "is_array",
    "load",
    "load_message",
    "loading",
    "loads",
    "unpacked",
    "value_type",
]

#: Held by threads that unpickle: stock does so on one, and modules that import each
#: other cannot be imported by two at a time.
loading = threading.RLock()

#: Exception and traceback as pickles, and both as text.
Failure = tuple[bytes, bytes | None, str, str]

Serialized = tuple[bytes, Sequence[Any]]

loads = stdlib_pickle.loads


def encode_key(key: Any) -> str | bytes:
    """Make of a key what native code takes: a str, or msgpack."""
    return key if type(key) is str else msgpack.packb(key, use_bin_type=True)


def dump(value: Any, serializers: Sequence[str] | None = None) -> Serialized:
    """Serialise for peers, clients and the disk, without compression.

    By the default families a list, tuple, set or dict is pickled as one, as stock does
    on disk. ``to_serialize``, by which stock sends values, serialises item by item:
    a hundred times slower for 100,000 strings. That remains for items that cannot be
    pickled, and for families that somebody asked for.

    A value that no family takes becomes one of the family ``error``.
    """
    if serializers is None:
        header, frames = serialize_and_split(value)
    if serializers is not None or header.get("serializer") == "error":
        header, frames = serialize_and_split(Serialize(value), serializers=serializers)
    header["num-sub-frames"] = len(frames)
    packed = msgpack.dumps(header, default=msgpack_encode_default, use_bin_type=True)
    return packed, frames


#: What every plain pickle has for a sub-header.
_PICKLE_HEADER = dump(0)[0]


def load(header: bytes, frames: Sequence[Any]) -> Any:
    """Deserialise what :func:`dump` or stock's ``to_serialize`` made."""
    with loading:
        if header == _PICKLE_HEADER:
            return loads(frames[0])
        known = _arrays.get(header)
        if known is not None and len(frames) == 1:
            array = known.make(frames[0])
            if array is not None:
                return array
        unpacked = msgpack.loads(
            header, object_hook=msgpack_decode_default, use_list=False, **msgpack_opts
        )
        if "compression" in unpacked:
            frames = decompress(unpacked, frames)
        value = merge_and_deserialize(unpacked, frames)
        if type(value).__module__ == "numpy":
            _remember_array(header, unpacked, frames, value)
        return value


class _Arrays(NamedTuple):
    """Arrays of one sub-header: they differ in their bytes only."""

    ndarray: Callable[..., Any]
    shape: tuple[int, ...]
    dtype: Any
    strides: tuple[int, ...]
    is_writeable: bool
    frame_nbytes: int

    def make(self, frame: Any) -> Any:
        """Make an array of a frame; ``None`` if that takes more."""
        frame = memoryview(frame)
        if frame.nbytes != self.frame_nbytes or frame.readonly:
            return None
        array = self.ndarray(self.shape, self.dtype, frame, 0, self.strides)
        if not self.is_writeable:
            array.flags.writeable = False
        return array


_arrays: dict[bytes, _Arrays] = {}


def is_array(header: bytes) -> bool:
    """Say whether values with this sub-header are arrays that differ in bytes only."""
    return header in _arrays


def _remember_array(
    header: bytes, unpacked: Mapping[str, Any], frames: Sequence[Any], value: Any
) -> None:
    kind = type(value)
    if kind.__name__ != "ndarray" or unpacked.get("serializer") != "dask":
        return
    layout = unpacked.get("sub-header", {})
    is_plain = (
        not layout.get("pickle")
        and value.dtype.kind in _PLAIN_DTYPES
        and not any(unpacked.get("compression") or ())
        and len(frames) == 1
    )
    if is_plain:
        arrays = _Arrays(
            ndarray=kind,
            shape=value.shape,
            dtype=value.dtype,
            strides=value.strides,
            is_writeable=value.flags.writeable,
            frame_nbytes=memoryview(frames[0]).nbytes,
        )
        _remember(_arrays, header, arrays)


#: Classes and layouts of arrays that are remembered, each. Chosen: programs have tens.
_REMEMBERED_MAX = 1000


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep what was found out once, without growing for ever."""
    if len(known) >= _REMEMBERED_MAX:
        known.clear()
    known[key] = value


_NUMBERS = frozenset({type(None), bool, int, float, complex})

#: Chosen: as long as copying text costs less than looking for it later.
_TEXT_NBYTES_MAX = 1 << 16

#: Extension arrays whose memory is a few buffers.
_FLAT_ARRAYS = frozenset(
    {
        "ArrowExtensionArray",
        "ArrowStringArray",
        "BooleanArray",
        "Categorical",
        "DatetimeArray",
        "FloatingArray",
        "IntegerArray",
        "TimedeltaArray",
    }
)


def cheap(value: Any) -> Serialized | None:
    """Serialise if that costs next to nothing: buffers stay where they are.

    Plain numbers and short text, contiguous arrays, and frames of such columns.
    """
    kind = type(value)
    if kind in _NUMBERS:
        return _PICKLE_HEADER, (stdlib_pickle.dumps(value, 5),)
    if kind is str or kind is bytes:
        if len(value) > _TEXT_NBYTES_MAX:
            return None
        return _PICKLE_HEADER, (stdlib_pickle.dumps(value, 5),)
    module = kind.__module__
    if module == "numpy":
        if kind.__name__ == "ndarray":
            return _cheap_array(value)
    elif module.startswith("pandas.") and kind.__name__ in ("DataFrame", "Series"):
        manager = value._mgr
        if all(map(_is_flat, manager.arrays)) and _is_flat(value.index._values):
            return dump(value)
    return None


#: Sub-headers by what they depend on: dtype, shape, strides, and whether the array is
#: writeable. What an array is made of is known from one to the next.
_array_headers: dict[tuple[Any, ...], bytes] = {}

#: Arrays of other kinds are left to distributed. These are buffers as they are.
_PLAIN_DTYPES = frozenset("biuf")


def _cheap_array(array: Any) -> Serialized | None:
    """Serialise an array that is contiguous, apart from dimensions it only repeats."""
    flat, strides = array, array.strides
    if 0 in strides:
        flat = array[tuple([slice(None if stride else 1) for stride in strides])]
    dtype = array.dtype
    if not _is_flat(flat):
        return _cheap_view(array) if flat is array else None
    if dtype.kind not in _PLAIN_DTYPES or not flat.ndim:
        return dump(array)
    layout = (dtype.str, array.shape, strides, array.flags.writeable)
    header = _array_headers.get(layout)
    if header is not None:
        return header, (flat.ravel(order="K").data,)
    header, frames = dump(array)
    if len(frames) == 1:
        _remember(_array_headers, layout, header)
    return header, frames


def _cheap_view(array: Any) -> tuple[bytes, memoryview] | None:
    """Let native code copy a part of another array when somebody asks for it."""
    dtype = array.dtype
    if dtype.kind not in _PLAIN_DTYPES or not dtype.isnative:
        return None
    layout = (dtype.str, array.shape)
    header = _array_headers.get(layout)
    if header is None:
        # As a copy would be, of which nothing is used but what describes it.
        header, frames = dump(sys.modules["numpy"].empty(array.shape, dtype))
        if len(frames) != 1:
            return None
        _remember(_array_headers, layout, header)
    return header, array.data


def _is_flat(array: Any) -> bool:
    if type(array).__name__ == "ndarray":
        flags = array.flags
        contiguous = flags.c_contiguous or flags.f_contiguous
        return contiguous and not array.dtype.hasobject
    return type(array).__name__ in _FLAT_ARRAYS


_types: dict[type, ValueType] = {}


def value_type(kind: type) -> ValueType:
    """Pickle the class of a value, once."""
    try:
        return _types[kind]
    except KeyError:
        pass
    name = typename(kind)
    try:
        pickled = pickle.dumps(kind)
    except Exception:
        pickled = pickle.dumps(name)
    described = ValueType(pickled, name)
    _remember(_types, kind, described)
    return described


def describe(value: Any) -> tuple[int, ValueType]:
    """Bytes in memory, and the class."""
    kind = type(value)
    # What `sizeof` says of them as well, after it has looked for it.
    nbytes = getsizeof(value) if kind in _NUMBERS else safe_sizeof(value)
    return nbytes, value_type(kind)


def failure(error: BaseException) -> Failure:
    """Make of an exception what others get: ``error_message`` of distributed.

    The traceback begins in the user's code.
    """
    traceback = _without_own(error.__traceback__)
    try:
        raise error
    except BaseException:
        error.__traceback__ = traceback
        return unpacked(error_message(error))


def unpacked(message: Mapping[str, Any]) -> Failure:
    """Take from a message of distributed what it says of an exception."""
    pickled = message["traceback"]
    return (
        message["exception"].data,
        None if pickled is None else pickled.data,
        message["exception_text"],
        message["traceback_text"],
    )


def _without_own(traceback: TracebackType | None) -> TracebackType | None:
    while traceback and "_worker" in traceback.tb_frame.f_code.co_filename:
        if traceback.tb_frame.f_globals.get("__name__", "").startswith("oxidask."):
            traceback = traceback.tb_next
        else:
            break
    return traceback
