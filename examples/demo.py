"""Runs ``flights.py`` under Oxidask and under stock Dask, and compares the times.

Each round starts a fresh cluster, has it import what the program will need, and
then runs the program as a process of its own. Rounds alternate between the two
and change their order every time, so that a machine that gets slower or faster
in between favours neither.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client

HERE = Path(__file__).parent
ENGINES = {"oxidask": "oxidask.LocalCluster", "stock Dask": "distributed.LocalCluster"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each engine (2)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (2)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads in each worker (1)"
    )
    parser.add_argument(
        "--plot", type=Path, default=HERE.parent / "demo-output" / "flights.png"
    )
    parser.add_argument(
        "--engine",
        action="append",
        metavar="NAME=CLASS",
        help="cluster class to compare, in place of the two usual ones",
    )
    arguments = parser.parse_args()
    engines = dict(given.split("=", 1) for given in arguments.engine or []) or ENGINES
    arguments.plot.parent.mkdir(parents=True, exist_ok=True)
    # The stock scheduler runs in this process and would log between the bars.
    logging.getLogger("distributed.shuffle").setLevel(logging.ERROR)

    timings: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for number in range(arguments.rounds):
        order = list(engines) if number % 2 == 0 else list(reversed(engines))
        for name in order:
            first = not any(timings.values())
            heading = (
                f"flights.py under {name}, round {number + 1} of {arguments.rounds}"
            )
            print(f"\n{heading}", flush=True)
            options = ["--plot", str(arguments.plot)] if first else ["--quiet"]
            timings[name].append(
                run(engines[name], arguments.workers, arguments.threads, options)
            )
    compare(timings)
    print(f"\nThe plot is in {arguments.plot.resolve()}")


def run(path: str, workers: int, threads: int, options: list[str]) -> dict[str, Any]:
    """Times of one run on a fresh cluster of the class at ``path``."""
    module, _, name = path.rpartition(".")
    make = getattr(importlib.import_module(module), name)
    with (
        tempfile.TemporaryDirectory() as folder,
        make(
            n_workers=workers, threads_per_worker=threads, dashboard_address=None
        ) as cluster,
    ):
        warm_up(cluster, workers)
        times = Path(folder) / "times.json"
        program = [sys.executable, str(HERE / "flights.py"), cluster.scheduler_address]
        subprocess.run([*program, "--json", str(times), *options], check=True)
        loaded: dict[str, Any] = json.loads(times.read_text())
        return loaded


def warm_up(cluster: Any, workers: int) -> None:
    """Have scheduler and workers import pandas, numpy and Dask's collections.

    Both engines import them once in the life of a cluster, and neither is
    about imports.
    """
    with Client(cluster) as client:
        client.wait_for_workers(workers)
        frame = pd.DataFrame({"x": range(100), "y": range(100)})
        table = dd.from_pandas(frame, npartitions=2 * workers)
        table.set_index("y").groupby("x").sum().compute()
        da.from_array(np.ones((8, 2)), chunks=(2, 2)).sum().compute()


def compare(timings: dict[str, list[dict[str, Any]]]) -> None:
    """Print the median time of each step beside each other."""
    names = list(timings)
    steps = list(timings[names[0]][0]["steps"])

    def medians(step: str | None) -> list[float]:
        return [
            statistics.median(
                run["total"] if step is None else run["steps"][step]
                for run in timings[name]
            )
            for name in names
        ]

    def line(label: str, cells: list[str]) -> None:
        print(f"  {label:<28}" + "".join(f"{cell:>14}" for cell in cells))

    rounds = len(timings[names[0]])
    print(f"\nSeconds for each step (median of {rounds})")
    two = len(names) == 2
    line("", [*names, *(["ratio"] if two else [])])
    for step in [*steps, None]:
        seconds = medians(step)
        ratio = [f"{seconds[1] / seconds[0]:.2f}"] if two else []
        line(step or "all steps", [*(f"{value:.2f}" for value in seconds), *ratio])
    spread = [
        f"{min(totals):.1f} to {max(totals):.1f}"
        for name in names
        for totals in [[run["total"] for run in timings[name]]]
    ]
    line("all steps, fastest to slowest", spread)
    if two:
        print(f"A ratio above 1 means that {names[0]} took less time.")


if __name__ == "__main__":
    main()
