"""Everything that can be measured, by name."""

from workloads import arrays_and_frames, data, deaf, futures, latency, scheduler
from workloads.base import REGISTRY, Context, Workload

__all__ = [
    "QUICK",
    "REGISTRY",
    "Context",
    "Workload",
    "arrays_and_frames",
    "data",
    "deaf",
    "futures",
    "latency",
    "scheduler",
]

QUICK = ("map-noop", "tree", "array-sum", "round-trip", "df-groupby", "transfer")
