"""The worker's core against stock's ``WorkerState``, by random scripts.

Ten thousand scripts of up to fifty random events each, plus what it takes to come
to rest. After each event the instructions of both must be the same, with the same
stimulus id and in the same order; so must what happens to data, and in the end the
state of every task and, for some scripts, the whole transition log. ``to_gather``
of ``GatherDep`` is a set in stock, so the order of its keys is compared with the
order in which stock selected them.

What the core says beyond stock is in ``Script.denied``.

Where stock raises, the core must fail as well, for a like reason; the script ends
there, since nothing holds after that. The two exceptions are in
``scripts.stock_bug``, which ends one orderly script in thirteen: there the core has
to go on. In orderly scripts both validate their state after each event; stock's own
validation ends one in two hundred, in which a task is missing although a later
message named its holders.

``OXIDASK_WORKER_SCRIPTS`` and ``OXIDASK_WORKER_SEED`` are the number of scripts and
the first seed, to look for new ones or to play a single one again.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from typing import Any

import pytest
import scripts
import stock as stock_state
from stock import stock  # noqa: F401

SCRIPTS = int(os.environ.get("OXIDASK_WORKER_SCRIPTS", "10000"))
FIRST_SEED = int(os.environ.get("OXIDASK_WORKER_SEED", "0"))
BATCH = 500


def run(replay: str, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines = "".join(json.dumps(script) + "\n" for script in batch)
    done = subprocess.run([replay], input=lines.encode(), stdout=subprocess.PIPE)
    assert done.returncode == 0
    return [json.loads(line) for line in done.stdout.splitlines()]


def expected(script: scripts.Script) -> dict[str, Any]:
    has_log = script.seed % 5 == 0 and script.error is None
    return {
        "steps": script.steps,
        "error": script.error,
        "state": None if script.error else stock_state.state(script.ws),
        "log": stock_state.log(script.ws) if has_log else [],
    }


def comparable(outcome: dict[str, Any]) -> dict[str, Any]:
    outcome = {name: outcome[name] for name in ("steps", "error", "state", "log")}
    outcome["log"] = [
        [[what[0], what[1], sorted(what[2])], stimulus_id]
        if what[0] == "gather-dependencies"
        else [what, stimulus_id]
        for what, stimulus_id in outcome["log"]
    ]
    return json.loads(json.dumps(outcome))


def is_same(script: scripts.Script, ours: dict[str, Any]) -> bool:
    if script.stock_bug and not ours["error"]:
        # The core goes on where stock does not, so only what came before compares.
        return ours["steps"][:-1] == comparable(expected(script))["steps"]
    return comparable(expected(script)) == comparable(ours)


def difference(script: scripts.Script, ours: dict[str, Any]) -> str:
    """What went wrong first, and what led to it."""
    stocks = comparable(expected(script))
    invalid = ours["invalid"]
    ours = comparable(ours)
    pairs = zip(stocks["steps"], ours["steps"], strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
    lines = [f"script {script.seed} (wild: {script.is_wild}, {script.config})"]
    events = script.events if at is None else script.events[: at + 1]
    lines += [f"  {event}" for event in events]
    if at is not None:
        lines += [f"stock: {stocks['steps'][at]}", f"ours:  {ours['steps'][at]}"]
    else:
        lines += [f"{len(stocks['steps'])} and {len(ours['steps'])} steps"]
        lines += [f"stock is invalid: {script.invalid}", f"ours is invalid: {invalid}"]
        for name in ("error", "state", "log"):
            if stocks[name] != ours[name]:
                lines += [f"stock: {stocks[name]}", f"ours:  {ours[name]}"]
    return "\n".join(lines)


@pytest.mark.usefixtures("stock")
def test_ten_thousand_scripts(replay: str) -> None:
    errors: Counter[str] = Counter()
    invalid: Counter[str] = Counter()
    events = 0
    for first in range(FIRST_SEED, FIRST_SEED + SCRIPTS, BATCH):
        batch = [
            scripts.Script(seed)
            for seed in range(first, min(first + BATCH, FIRST_SEED + SCRIPTS))
        ]
        outcomes = run(
            replay,
            [
                {
                    "config": script.config,
                    "events": script.events,
                    "validate": not script.is_wild,
                    "log": script.seed % 5 == 0 and script.error is None,
                }
                for script in batch
            ],
        )
        for script, ours in zip(batch, outcomes, strict=True):
            events += len(script.events)
            if script.error:
                what = script.stock_bug or script.error
                errors[f"{'wild' if script.is_wild else 'orderly'} {what}"] += 1
            if script.invalid:
                invalid[script.invalid] += 1
            assert is_same(script, ours), difference(script, ours)
            if ours["invalid"] and not script.invalid:
                pytest.fail(f"{ours['invalid']}\n{difference(script, ours)}")
    print(f"{SCRIPTS} scripts, {events} events")
    for title, counter in (("errors", errors), ("invalid", invalid)):
        for what, count in counter.most_common():
            print(f"{count} {title}: {what}")
