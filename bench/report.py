"""Samples as a Markdown table of medians."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Sample = dict[str, Any]

PROCESSES = ("client", "scheduler", "helper", "workers")
_SHOWN = {"workload", "engine", "rep", "size", "tasks", "load1", "wall_s"} | {
    f"{process}_{figure}"
    for process in PROCESSES
    for figure in ("cpu_s", "rss_growth", "rss_peak")
}


def table(samples: Iterable[Sample]) -> str:
    """One row for each workload and engine, and ratios where two engines ran."""
    grouped: dict[str, dict[str, list[Sample]]] = {}
    for sample in samples:
        grouped.setdefault(sample["workload"], {}).setdefault(
            sample["engine"], []
        ).append(sample)
    header = ["workload", "engine", "tasks", "wall s (min-max)", "µs/task"]
    header += [f"{process} CPU µs/task" for process in PROCESSES]
    header += ["peak MB scheduler/helper/workers", "other"]
    lines = [_row(header), "|---|---|" + "---:|" * (len(header) - 3) + "---|"]
    for workload, engines in grouped.items():
        good: dict[str, Sequence[Sample]] = {}
        for engine, runs in engines.items():
            errors = [run["error"] for run in runs if "error" in run]
            good[engine] = [run for run in runs if "error" not in run]
            if good[engine]:
                lines.append(_row(_cells(workload, engine, good[engine])))
            if errors:
                text = (
                    f"{len(errors)} of {len(runs)} failed: {errors[0].splitlines()[0]}"
                )
                lines.append(_row([workload, engine, text, *[""] * (len(header) - 3)]))
        if len(good) == 2 and all(good.values()):
            lines.append(_row(_ratios(workload, good, len(header))))
    return "\n".join(lines)


def _cells(workload: str, engine: str, runs: Sequence[Sample]) -> list[str]:
    tasks = _median(runs, "tasks")
    walls = [run["wall_s"] for run in runs]
    cells = [workload, engine, f"{tasks:.0f}"]
    cells += [f"{statistics.median(walls):.3f} ({min(walls):.3f}-{max(walls):.3f})"]
    cells += [f"{1e6 * statistics.median(walls) / tasks:.0f}"]
    cells += [
        f"{1e6 * _median(runs, f'{process}_cpu_s') / tasks:.0f}"
        for process in PROCESSES
    ]
    peaks = (_median(runs, f"{process}_rss_peak") / 1e6 for process in PROCESSES[1:])
    cells += ["/".join(f"{peak:.0f}" for peak in peaks)]
    names = [name for name in runs[0] if name not in _SHOWN]
    return [*cells, ", ".join(f"{name} {_median(runs, name):.4g}" for name in names)]


def _ratios(
    workload: str, engines: dict[str, Sequence[Sample]], width: int
) -> list[str]:
    (left, left_runs), (right, right_runs) = engines.items()

    def ratio(figures: Sequence[str]) -> str:
        above, below = (
            sum(_median(runs, figure) for figure in figures)
            for runs in (left_runs, right_runs)
        )
        return f"x{above / below:.2f}" if above > 0 and below > 0 else "-"

    cells = [workload, f"**{left} / {right}**", "", f"**{ratio(['wall_s'])}**", ""]
    cells += [
        ratio(["client_cpu_s"]),
        f"{ratio(['scheduler_cpu_s', 'helper_cpu_s'])} with helper",
    ]
    cells += ["", ratio(["workers_cpu_s"])]
    return cells + [""] * (width - len(cells))


def _median(runs: Sequence[Sample], figure: str) -> float:
    return statistics.median(run[figure] for run in runs if figure in run)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
