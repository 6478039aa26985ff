"""The tests that dask ships for its order, run against the native one.

The star import is what collects them.
"""

from __future__ import annotations

import dask.local
import dask.order
import dask.tests.test_order
import native_order
import pytest
from dask.tests.test_order import *  # noqa: F403


@pytest.fixture(autouse=True)
def native_in_dask(monkeypatch):
    """Make ``order`` the native one wherever these tests reach it."""
    for module in (dask.order, dask.local, dask.tests.test_order):
        monkeypatch.setattr(module, "order", native_order.order)


def test_all_of_dasks_tests_are_here():
    shipped = {name for name in vars(dask.tests.test_order) if name.startswith("test_")}
    assert len(shipped) >= 54
    assert shipped <= set(globals())
