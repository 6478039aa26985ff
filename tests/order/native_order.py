"""``dask.order.order`` on top of the native one: same signature, same kind of result."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

from dask._task_spec import DependenciesMapping
from dask.core import istask
from dask.order import Order
from dask.typing import Key
from oxidask._oxidask import order_indices


def order(
    dsk: Mapping[Key, Any],
    dependencies: Mapping[Key, set[Key]] | None = None,
    *,
    return_stats: bool = False,
) -> dict[Key, Order] | dict[Key, int]:
    """Order the keys of a graph by the native algorithm.

    As in dask, ``dependencies`` is accepted and not used: they come from ``dsk``.
    """
    dsk = dict(dsk)
    keys = list(dsk)
    index = {key: i for i, key in enumerate(keys)}
    dependency_sets = DependenciesMapping(dsk)

    offsets, targets = array("I", [0]), array("I")
    for key in keys:
        targets.extend(index[dep] for dep in dependency_sets[key] if dep in index)
        offsets.append(len(targets))

    names = [str(key) for key in keys]
    name_rank = array("I", bytes(4 * len(keys)))
    for rank, i in enumerate(sorted(range(len(keys)), key=names.__getitem__)):
        name_rank[i] = rank

    try:
        priority, critical_path = order_indices(
            offsets.tobytes(),
            targets.tobytes(),
            bytes(bool(istask(task)) for task in dsk.values()),
            name_rank.tobytes(),
        )
    except RuntimeError as error:
        _, chain = error.args
        raise RuntimeError(
            "Cycle detected between the following keys:\n  -> "
            + "\n  -> ".join(str(keys[i]) for i in chain)
        ) from None

    priorities = dict(zip(keys, array("I", priority), strict=True))
    if not return_stats:
        return priorities
    paths = array("d", critical_path)
    return {
        key: Order(place, path)
        for (key, place), path in zip(priorities.items(), paths, strict=True)
    }
