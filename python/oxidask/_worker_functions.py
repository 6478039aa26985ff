"""Which functions tasks may share.

Stock unpickles a function anew for every task, so that nothing which one task does
to it reaches another. To unpickle it once changes nothing where there is nothing to
change: functions, classes and constants that come from modules are one object in
both cases, and a function that came by value can be shared if it neither holds
anything mutable nor writes to what it holds.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from distributed.utils import iscoroutinefunction

from oxidask._worker_values import loading, loads

__all__ = ["Imported", "direct"]

#: Module, name, and what was found there.
Imported = tuple[str, str, Any]

_CONSTANTS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range}
)

_FUNCTIONS = (FunctionType, BuiltinFunctionType, type)

#: Classes of numpy's functions.
_NUMPY_FUNCTIONS = frozenset({"ufunc", "_ArrayFunctionDispatcher"})

#: What writes to something that outlives the call.
_WRITES = frozenset(
    {"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR", "IMPORT_STAR"}
)

#: Builtins that reach what the code does not name.
_REACHES = frozenset(
    {"globals", "vars", "locals", "eval", "exec", "setattr", "delattr"}
)

#: Functions within functions within … that are looked into.
_DEPTH_MAX = 8


class _MutableError(Exception):
    """Tasks must not share this."""


def direct(pickle: bytes) -> tuple[Any, list[Imported]] | None:
    """Load a function if all its tasks may share it.

    Parameters
    ----------
    pickle
        Of the function.

    Returns
    -------
    The function and what it has from modules, which must still be there whenever it
    is called: modules are loaded again, by ``upload_file`` for one. ``None`` if every
    task needs its own, or has to run elsewhere than on the calling thread.
    """
    with loading:
        function = loads(pickle)
    if iscoroutinefunction(function):
        return None
    imported: list[Imported] = []
    try:
        _check(function, imported, set(), 0)
    except _MutableError:
        return None
    return function, imported


def _check(value: Any, imported: list[Imported], seen: set[int], depth: int) -> None:
    kind = type(value)
    if kind in _CONSTANTS or kind is ModuleType or id(value) in seen:
        return
    if depth > _DEPTH_MAX:
        raise _MutableError
    seen.add(id(value))
    if kind is tuple or kind is frozenset:
        for item in value:
            _check(item, imported, seen, depth + 1)
    elif kind is slice:
        for item in (value.start, value.stop, value.step):
            _check(item, imported, seen, depth + 1)
    elif _is_imported(value, imported) or _is_dtype(value):
        pass
    elif kind is FunctionType:
        for part in _parts(value):
            _check(part, imported, seen, depth + 1)
    elif kind is partial:
        if value.__dict__:
            raise _MutableError
        for part in (value.func, *value.args, *value.keywords.values()):
            _check(part, imported, seen, depth + 1)
    else:
        raise _MutableError


def _is_imported(value: Any, imported: list[Imported]) -> bool:
    """Whether this is a function or class that its module has under its name."""
    is_numpys = type(value).__module__ == "numpy" and (
        type(value).__name__ in _NUMPY_FUNCTIONS
    )
    if not is_numpys and not isinstance(value, _FUNCTIONS):
        return False
    module = getattr(value, "__module__", None)
    if module is None and is_numpys:
        module = "numpy"
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if type(module) is not str or type(name) is not str or module == "__main__":
        return False
    found = sys.modules.get(module)
    if found is None or getattr(found, name, None) is not value:
        # A method, or a function within a function: pickled by other means.
        return False
    imported.append((module, name, value))
    return True


def _is_dtype(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.dtype)


def _parts(function: FunctionType) -> Iterator[Any]:
    """Find what a function that came by value holds and names."""
    if any(name not in ("__wrapped__",) for name in function.__dict__):
        raise _MutableError
    yield from function.__dict__.values()
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue
    known = function.__globals__
    for code in _codes(function.__code__):
        own = frozenset(code.co_cellvars)
        for instruction in dis.get_instructions(code):
            operation = instruction.opname
            if operation in _WRITES:
                raise _MutableError
            # A variable of a function around it, unless its own.
            if operation in ("STORE_DEREF", "DELETE_DEREF") and (
                instruction.argval not in own
            ):
                raise _MutableError
        for name in code.co_names:
            if name in known:
                yield known[name]
            elif name in _REACHES:
                raise _MutableError


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from _codes(constant)
