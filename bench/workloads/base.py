"""What a workload is, and what it may use."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from clusters import Cluster
from distributed import Client
from processes import Group, Watch

Function = Callable[["Context", int], int]


@dataclass(frozen=True)
class Workload:
    """Something to measure.

    Attributes
    ----------
    run:
        Called with a `Context` and a size; returns the number of tasks.
    size, small:
        The usual size, and the one of a quick run.
    warm:
        Size of an untimed run before, so that libraries are imported; 0 for none.
    workers:
        Stock or own workers needed, or None for as many as the user asks for.
    """

    name: str
    run: Function
    size: int
    small: int
    warm: int
    workers: int | None

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (self.run.__doc__ or "").strip().splitlines()[0]


REGISTRY: dict[str, Workload] = {}


def workload(
    name: str, size: int, small: int, *, warm: int = 0, workers: int | None = None
) -> Callable[[Function], Function]:
    """Add the decorated function to `REGISTRY`."""

    def add(run: Function) -> Function:
        REGISTRY[name] = Workload(name, run, size, small, warm, workers)
        return run

    return add


@dataclass
class Context:
    """What a workload works on, and where its figures go."""

    cluster: Cluster
    client: Client
    figures: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure time, CPU and memory of what happens inside."""
        cluster = self.cluster
        groups: dict[str, Group] = {
            "scheduler": cluster.scheduler_group,
            "helper": cluster.helper_group,
            "workers": cluster.worker_group,
        }
        gc.collect()
        # What came before, such as releasing the keys of a warm-up, shall not count.
        time.sleep(0.1)
        for group in groups.values():
            group.reset_peak_rss()
        own = Group((os.getpid(),), children=False)
        own.reset_peak_rss()
        resident = {name: group.rss() for name, group in groups.items()}
        cpu = {name: group.cpu() for name, group in groups.items()}
        client_cpu = time.process_time()
        with Watch(cluster.helper_group) as helper:
            started = time.perf_counter()
            yield
            wall = time.perf_counter() - started
        self.figures["wall_s"] = wall
        self.figures["client_cpu_s"] = time.process_time() - client_cpu
        for name, group in groups.items():
            self.figures[f"{name}_cpu_s"] = group.cpu() - cpu[name]
            self.figures[f"{name}_rss_growth"] = group.rss() - resident[name]
            self.figures[f"{name}_rss_peak"] = group.peak_rss()
        self.figures["helper_rss_peak"] = max(
            helper.peak, self.figures["helper_rss_peak"]
        )
        self.figures["client_rss_peak"] = own.peak_rss()

    def report_latencies(self, seconds: Sequence[float], prefix: str = "") -> None:
        """Add median, 99th percentile and maximum in milliseconds."""
        ordered = sorted(1e3 * value for value in seconds)
        self.figures[f"{prefix}p50_ms"] = statistics.median(ordered)
        self.figures[f"{prefix}p99_ms"] = ordered[
            min(len(ordered) - 1, int(0.99 * len(ordered)))
        ]
        self.figures[f"{prefix}max_ms"] = ordered[-1]


def graph_size(collection: Any) -> int:
    """Tasks in the optimised graph of a collection."""
    import dask
    from dask._task_spec import convert_legacy_graph

    if hasattr(collection, "expr"):
        optimised = collection.optimize()
    else:
        (optimised,) = dask.optimize(collection)
    return len(convert_legacy_graph(dict(optimised.__dask_graph__())))
