"""Measures stock Dask and Oxidask beside each other.

    bench.py list
    bench.py run quick
    bench.py run all --reps 3 --json out.jsonl
    bench.py run map-noop tree --engines stock,oxidask-binary
    bench.py run transfer --worker mine="my-worker {address} --nthreads {nthreads}"
    bench.py table out.jsonl

How to read the results: README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clusters import ENGINES, Engine
from report import Sample, table
from workloads import QUICK, REGISTRY

SAMPLE = Path(__file__).with_name("sample.py")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show the workloads")
    run = commands.add_parser("run", help="measure")
    run.add_argument("names", nargs="+", help="workloads, or: all, quick (six, small)")
    run.add_argument(
        "--engines", default="stock,oxidask", help="names with commas in between"
    )
    for part in ("scheduler", "worker"):
        run.add_argument(
            f"--{part}",
            action="append",
            default=[],
            metavar="NAME=COMMAND",
            help=f"compare an engine NAME whose {part} is COMMAND, and else stock",
        )
    run.add_argument("--reps", type=int, default=3, help="samples for each engine (3)")
    run.add_argument(
        "--small", action="store_true", help="a few seconds for each sample"
    )
    run.add_argument(
        "--size", type=int, help="size of all workloads, in place of their own"
    )
    run.add_argument("--workers", type=int, default=2)
    run.add_argument("--nthreads", type=int, default=1, help="threads in each worker")
    run.add_argument("--memory-limit", default="4GB", help="of each worker")
    run.add_argument("--limit", type=float, default=300, help="seconds for one sample")
    run.add_argument("--json", type=Path, help="append one line for each sample")
    run.add_argument("--markdown", type=Path, help="write the table here as well")
    show = commands.add_parser("table", help="make the table again from --json files")
    show.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()

    if arguments.command == "list":
        for name, known in REGISTRY.items():
            print(
                f"{name:<21} {known.size:>7} (small {known.small:>6})  {known.summary}"
            )
    elif arguments.command == "table":
        lines = [
            line for file in arguments.files for line in file.read_text().splitlines()
        ]
        print(table(json.loads(line) for line in lines))
    else:
        try:
            engines = chosen_engines(
                arguments.engines, arguments.scheduler, arguments.worker
            )
            names = chosen_workloads(arguments.names)
        except KeyError as error:
            parser.error(f"there is no {error}; see `bench.py list`")
        small = arguments.small or arguments.names == ["quick"]
        failed = run_all(names, engines, small, arguments)
        sys.exit(1 if failed else 0)


def chosen_engines(
    names: str, schedulers: list[str], workers: list[str]
) -> list[Engine]:
    """Engines given by name and by command."""
    engines = {name: ENGINES[name] for name in names.split(",") if name}
    for part, given in (("scheduler", schedulers), ("worker", workers)):
        for definition in given:
            name, _, command = definition.partition("=")
            base = engines.get(name, replace(ENGINES["stock"], name=name))
            engines[name] = replace(base, **{part: command})
    return list(engines.values())


def chosen_workloads(names: list[str]) -> list[str]:
    """Names with ``all`` and ``quick`` resolved."""
    groups: dict[str, tuple[str, ...]] = {"all": tuple(REGISTRY), "quick": QUICK}
    found = [one for name in names for one in groups.get(name, (name,))]
    return [REGISTRY[name].name for name in found]


def run_all(
    names: list[str], engines: list[Engine], small: bool, arguments: argparse.Namespace
) -> bool:
    """Take all samples, print them and the table; returns whether any failed."""
    samples: list[Sample] = []
    for name in names:
        known = REGISTRY[name]
        size = arguments.size or (known.small if small else known.size)
        for rep in range(arguments.reps):
            # Neither engine is always the first one after the other.
            for engine in engines if rep % 2 == 0 else reversed(engines):
                order = {
                    "name": name,
                    "size": size,
                    "engine": asdict(engine),
                    "workers": arguments.workers,
                    "nthreads": arguments.nthreads,
                    "memory_limit": arguments.memory_limit,
                }
                figures = take(order, arguments.limit)
                sample = {
                    "workload": name,
                    "engine": engine.name,
                    "rep": rep,
                    "size": size,
                }
                sample |= figures
                samples.append(sample)
                print(json.dumps(sample), flush=True)
                if arguments.json:
                    with arguments.json.open("a") as out:
                        out.write(json.dumps(sample) + "\n")
    text = table(samples)
    print(f"\n{text}")
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")
    return any("error" in sample for sample in samples)


def take(order: dict[str, Any], limit: float) -> dict[str, Any]:
    """Figures of one sample, or ``error``."""
    with subprocess.Popen(
        [sys.executable, str(SAMPLE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(
                json.dumps(order) + "\n", timeout=limit
            )
        except subprocess.TimeoutExpired:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=20)
            return {"error": f"no result in {limit:.0f} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        sys.stderr.write(errors)
        return {
            "error": (errors.strip() or f"exit code {process.returncode}").splitlines()[
                -1
            ]
        }
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
