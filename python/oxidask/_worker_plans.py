"""Running fused tasks: what dask makes of several tasks that belong together.

Such a task holds a graph. Dask orders that graph with the whole of ``dask.order``
each time it runs; here it is walked from its result, which gives the same values in
a sixth of the time. Functions are called from here, so that a traceback goes from
this module straight into the user's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef, _execute_subgraph

__all__ = ["execute", "hasten_unpickling", "is_fused"]


def is_fused(spec: Any) -> bool:
    """Say whether :func:`execute` takes this task."""
    return type(spec) is Task and spec.func is _execute_subgraph and not spec.kwargs


def execute(spec: Any, values: Mapping[Any, Any]) -> Any:
    """Do what ``spec(values)`` does.

    Parameters
    ----------
    spec
        A task for which :func:`is_fused` holds.
    values
        What it depends on, by key.
    """
    graph, target, names, *references = spec.args
    cache = {
        name: _argument(reference, values)
        for name, reference in zip(names, references, strict=False)
    }
    steps = _steps(graph, target, cache)
    if steps is None:
        return spec(values)
    left: dict[Any, int] = {}
    for node in steps:
        for key in node.dependencies:
            left[key] = left.get(key, 0) + 1
    for node in steps:
        cache[node.key] = _run(node, cache)
        for key in node.dependencies:
            left[key] -= 1
            # What nobody needs any more must not wait for the rest.
            if not left[key] and key != target:
                del cache[key]
    return cache[target]


def _steps(
    graph: Mapping[Any, Any], target: Any, cache: Mapping[Any, Any]
) -> list[Any] | None:
    """Nodes in an order in which they can run; ``None`` if there are others."""
    steps: list[Any] = []
    seen: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(target, False)]
    while stack:
        key, is_ready = stack.pop()
        if is_ready:
            steps.append(graph[key])
            continue
        if key in seen or key in cache:
            continue
        seen.add(key)
        node = graph.get(key)
        if node is None or node.key != key:
            return None
        stack.append((key, True))
        for dependency in node.dependencies:
            stack.append((dependency, False))
    replaced = sum(1 for key in cache if key in graph)
    return steps if len(steps) + replaced == len(graph) else None


def _run(node: Any, cache: Mapping[Any, Any]) -> Any:
    kind = type(node)
    if kind is Task:
        if node.func is _execute_subgraph and not node.kwargs:
            return execute(node, cache)
        args = [_argument(argument, cache) for argument in node.args]
        if node.kwargs:
            kwargs = {
                name: _argument(argument, cache)
                for name, argument in node.kwargs.items()
            }
            return node.func(*args, **kwargs)
        return node.func(*args)
    if kind is Alias:
        return cache[node.target]
    if kind is DataNode:
        return node.value
    return node(cache)


def _argument(argument: Any, cache: Mapping[Any, Any]) -> Any:
    if type(argument) is TaskRef:
        return cache[argument.key]
    if isinstance(argument, GraphNode):
        return _run(argument, cache)
    if isinstance(argument, TaskRef):
        return cache[argument.key]
    return argument


def hasten_unpickling() -> None:
    """Let plain tasks take their state at once, and not slot by slot.

    Dask's own way, which stays for everything else, is most of what it costs to
    unpickle a task.
    """
    if getattr(Task.__setstate__, "is_hastened", False):
        return
    slots = ", ".join(f"self.{slot}" for slot in Task.get_all_slots())
    source = f"""
def __setstate__(self, state):
    if type(self) is Task:
        {slots}, = state
    else:
        by_slot(self, state)
"""
    scope: dict[str, Any] = {"Task": Task, "by_slot": Task.__setstate__}
    exec(source, scope)
    hastened: Callable[..., Any] = scope["__setstate__"]
    hastened.is_hastened = True  # type: ignore[attr-defined]
    Task.__setstate__ = hastened  # type: ignore[method-assign]
