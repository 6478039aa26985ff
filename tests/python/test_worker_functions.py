"""Which functions tasks may share, and which each needs for itself."""

from __future__ import annotations

import functools
import operator
import pickle
import sys
import types

import cloudpickle
import numpy as np
import pytest
from oxidask._worker_functions import direct


def by_value(source, name="f", **known):
    """Define a function as ``__main__`` would, so that it is pickled by value."""
    scope = {"__name__": "__main__", **known}
    exec(source, scope)
    return cloudpickle.dumps(scope[name])


def module_of(monkeypatch, name, source):
    module = types.ModuleType(name)
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.mark.parametrize(
    "function",
    [operator.add, len, dict, np.sum, np.add, functools.reduce, pickle.dumps],
    ids=lambda function: function.__name__,
)
def test_what_modules_have_is_shared(function):
    shared, imported = direct(pickle.dumps(function))
    assert shared is function
    [(module, name, found)] = imported
    assert getattr(sys.modules[module], name) is found is function


@pytest.mark.parametrize(
    "source",
    [
        "f = lambda x: x + 1",
        "def f(x, y=2, *, z=(1, 'a')): return x + y",
        "def g(x): return x * 2\ndef f(x): return g(x) + 1",
        "def make(n):\n    return lambda x: x + n\nf = make(3)",
        "import math\ndef f(x): return math.sqrt(x)",
        "def f(n): return 1 if n < 2 else n * f(n - 1)",
        "def f(x):\n    total = 0\n    for i in range(x): total += i\n    return total",
        "def f(x): return sorted([y * x for y in range(x)], key=lambda v: -v)",
    ],
)
def test_code_that_changes_nothing_is_shared(source):
    function, _ = direct(by_value(source))
    assert callable(function)


@pytest.mark.parametrize(
    "source",
    [
        "n = 0\ndef f(x):\n    global n\n    n += x\n    return n",
        "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)",
        "def f(x, seen=[]):\n    seen.append(x)\n    return len(seen)",
        "def f(x, *, seen={}):\n    seen[x] = x\n    return len(seen)",
        "def make():\n    n = 0\n    def f(x):\n        nonlocal n\n        n += x\n"
        "        return n\n    return f\nf = make()",
        "def make():\n    seen = []\n    return lambda x: seen.append(x)\nf = make()",
        "def f(x):\n    f.calls = getattr(f, 'calls', 0) + 1\n    return f.calls",
        "def f(x):\n    globals()['n'] = x\n    return x",
        "class C:\n    n = 0\ndef f(x):\n    return C",
        "seen = []\ndef g(x): return seen.append(x)\ndef f(x): return g(x)",
        "import functools\nf = functools.partial(lambda seen, x: x, [])",
        "class F:\n    def __call__(self, x): return x\nf = F()",
        "async def f(x): return x",
        "import functools\nasync def g(x, y): return x\nf = functools.partial(g, 1)",
    ],
)
def test_what_a_task_could_change_is_not(source):
    assert direct(by_value(source)) is None


def test_partials_of_constants_are_shared():
    function = functools.partial(operator.add, 1)
    shared, imported = direct(pickle.dumps(function))
    assert shared(2) == 3
    assert [name for _, name, _ in imported] == ["add"]
    typed = functools.partial(np.sum, dtype=np.dtype("f8"), axis=(0, 1))
    assert direct(pickle.dumps(typed)) is not None
    assert direct(pickle.dumps(functools.partial(np.take, np.arange(3)))) is None
    assert direct(pickle.dumps(operator.methodcaller("upper"))) is None
    assert direct(pickle.dumps("text".upper)) is None


def test_what_it_has_from_modules_is_told(monkeypatch):
    module = module_of(monkeypatch, "oxidask_test_module", "def g(x): return x")
    _, imported = direct(by_value("def f(x): return g(x)", g=module.g))
    assert imported == [("oxidask_test_module", "g", module.g)]


def test_what_cannot_be_loaded_raises():
    with pytest.raises(ModuleNotFoundError):
        direct(b"cno_such_module\nf\n.")
