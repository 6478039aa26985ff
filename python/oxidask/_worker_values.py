"""Values of a worker: their sizes and classes, and their form on the wire."""

from __future__ import annotations

import pickle as stdlib_pickle
import threading
from collections.abc import Mapping, Sequence
from sys import getsizeof
from types import TracebackType
from typing import Any

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
        unpacked = msgpack.loads(
            header, object_hook=msgpack_decode_default, use_list=False, **msgpack_opts
        )
        if "compression" in unpacked:
            frames = decompress(unpacked, frames)
        return merge_and_deserialize(unpacked, frames)


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
        if kind.__name__ == "ndarray" and _is_flat(value):
            return dump(value)
    elif module.startswith("pandas.") and kind.__name__ in ("DataFrame", "Series"):
        manager = value._mgr
        if all(map(_is_flat, manager.arrays)) and _is_flat(value.index._values):
            return dump(value)
    return None


def _is_flat(array: Any) -> bool:
    if type(array).__name__ == "ndarray":
        flags = array.flags
        contiguous = flags.c_contiguous or flags.f_contiguous
        return contiguous and not array.dtype.hasobject
    return type(array).__name__ in _FLAT_ARRAYS


#: Classes that are remembered. Chosen: programs have tens.
_TYPES_MAX = 1000

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
    if len(_types) >= _TYPES_MAX:
        _types.clear()
    described = _types[kind] = ValueType(pickled, name)
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
