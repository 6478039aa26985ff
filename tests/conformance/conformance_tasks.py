"""Functions that tests run in tasks, importable by every process of the cluster."""

from __future__ import annotations

import operator
import os
import time

from distributed import Event, get_client, get_worker, rejoin, secede


def inc(x):
    return x + 1


def dec(x):
    return x - 1


def double(x):
    return 2 * x


def add(x, y):
    return x + y


def div(x, y):
    return operator.truediv(x, y)


def total(values):
    return sum(values)


def identity(x):
    return x


def ignore_all(*args, **kwargs):
    return None


def take(index, data):
    return int(data[index])


def slow_inc(x, delay=0.02):
    time.sleep(delay)
    return x + 1


def throws(message="hello!"):
    raise RuntimeError(message)


def wait_for_event(name, value=None, timeout=60):
    """Returns `value` once the distributed Event `name` is set."""
    if not Event(name).wait(timeout=timeout):
        raise TimeoutError(f"event {name} was never set")
    return value


def signal_and_wait(started, release, value=None):
    """Sets the Event `started`, then behaves as `wait_for_event`."""
    Event(started).set()
    return wait_for_event(release, value)


def worker_name(*_, **__):
    return get_worker().name


def worker_address(*_, **__):
    return get_worker().address


def worker_pid(*_, **__):
    return os.getpid()


def die(*_, **__):
    """Ends the worker's process as a crash would."""
    os._exit(17)


def append_line(path, line, *_):
    """Records that this task ran; one write, so lines of several processes stay whole."""
    with open(path, "ab", buffering=0) as file:
        file.write(f"{line}\n".encode())
    return line


def fail_until(path, successes_after):
    """Fails until it has been called more than `successes_after` times."""
    append_line(path, "attempt")
    with open(path) as file:
        attempts = len(file.readlines())
    if attempts <= successes_after:
        raise ValueError(f"attempt {attempts} failed")
    return attempts


def fib(n):
    """Fibonacci numbers through tasks that submit tasks."""
    if n < 2:
        return n
    client = get_client()
    a = client.submit(fib, n - 1)
    b = client.submit(fib, n - 2)
    secede()
    values = client.gather([a, b])
    rejoin()
    return sum(values)


class Counter:
    """An actor."""

    n = 0

    def __init__(self, start=0):
        self.n = start

    def increment(self):
        self.n += 1
        return self.n

    def add(self, x):
        self.n += x
        return self.n

    def fail(self):
        raise ValueError("counter is broken")

    def where(self):
        return get_worker().name


class FailsToPickle:
    def __getstate__(self):
        raise TypeError("this object refuses to be pickled")


class FailsToUnpickle:
    """Pickles everywhere; raises wherever it is unpickled."""

    def __reduce__(self):
        return _raise_on_unpickle, ()


def _raise_on_unpickle():
    raise ZeroDivisionError("unpickling refused")


class CustomError(Exception):
    def __init__(self, code, detail):
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


class ClaimsSize:
    """Claims a size it does not have."""

    def __init__(self, nbytes):
        self.nbytes = nbytes

    def __sizeof__(self):
        return self.nbytes
