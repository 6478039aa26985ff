"""The packed arrays that ``order_indices`` takes and gives."""

from __future__ import annotations

from array import array

import pytest
from oxidask._oxidask import order_indices


def u32(*values: int) -> bytes:
    return array("I", values).tobytes()


def test_chain():
    priority, critical_path = order_indices(
        u32(0, 1, 2, 2), u32(1, 2), b"\1\1\1", u32(0, 1, 2)
    )
    assert list(array("I", priority)) == [2, 1, 0]
    assert list(array("d", critical_path)) == [1.0, 1.0, 1.0]


def test_empty():
    assert order_indices(u32(0), b"", b"", b"") == (b"", b"")


def test_cycle_gives_its_indices():
    with pytest.raises(RuntimeError, match="cycle") as info:
        order_indices(u32(0, 1, 2), u32(1, 0), b"\1\1", u32(0, 1))
    assert info.value.args[1] == [0, 1, 0]


@pytest.mark.parametrize(
    "arrays",
    [
        (b"", b"", b"", b""),
        (u32(0, 0)[:-1], b"", b"\1", u32(0)),
        (u32(0, 1), u32(7), b"\1", u32(0)),
        (u32(0, 2), u32(0), b"\1", u32(0)),
        (u32(1, 0), b"", b"\1", u32(0)),
        (u32(0, 2, 1), u32(0), b"\1\1", u32(0, 1)),
        (u32(0, 0), b"", b"\1", b""),
    ],
    ids=["no offsets", "torn", "index", "short", "start", "descending", "names"],
)
def test_arrays_that_do_not_fit(arrays):
    with pytest.raises(ValueError, match=r"not a multiple of 4|do not fit together"):
        order_indices(*arrays)
