"""Reference reading of ``call`` specs: what the scheduler stitches natively."""

from __future__ import annotations

import pickle
from typing import Any

import msgpack
from dask._task_spec import List, Task, TaskRef, Tuple


def _extension(code: int, payload: bytes) -> Any:
    if code == 1:
        return TaskRef(msgpack.unpackb(payload, use_list=False))
    if code == 7:
        return pickle.loads(payload)
    if code not in (2, 3, 4, 5, 6):
        raise ValueError(f"unknown extension {code}")
    items = msgpack.unpackb(payload, ext_hook=_extension)
    if code == 2:
        return items
    if code == 3:
        return tuple(items)
    if code == 4:
        return dict(items)
    if code == 5:
        return List(items)
    return Tuple(tuple(items))


def task_from_call(key: Any, call: bytes, functions: list[bytes]) -> Task:
    """The task that a packed call describes."""
    number, args, *rest = msgpack.unpackb(
        call, ext_hook=_extension, strict_map_key=False
    )
    kwargs = rest[0] if rest else {}
    data_producer = rest[1] if len(rest) > 1 else False
    function = pickle.loads(functions[number])
    return Task(key, function, *args, _data_producer=data_producer, **kwargs)
