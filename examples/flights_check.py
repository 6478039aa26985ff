"""Computes the results of ``flights.py`` with plain pandas and compares them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from flights import Results


def check(results: Results, data: Path) -> None:
    """Compare ``results`` with what pandas and numpy find on one thread.

    Raises
    ------
    AssertionError
        If any number differs by more than rounding.
    """
    import __main__ as program

    flights = program.prepare(
        pd.read_csv(
            data / "flights.csv",
            usecols=[*program.FLIGHT_DTYPES, "time_hour"],
            dtype=program.FLIGHT_DTYPES,
            parse_dates=["time_hour"],
        )
    )
    weather = pd.read_csv(
        data / "weather.csv",
        usecols=[*program.WEATHER_DTYPES, "time_hour"],
        dtype=program.WEATHER_DTYPES,
        parse_dates=["time_hour"],
    )
    flown = flights[flights.dep_delay.notna()]
    compared = 0

    def same(got: object, expected: object) -> None:
        nonlocal compared
        left, right = np.asarray(got, "float64"), np.asarray(expected, "float64")
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9)
        compared += left.size

    same(results.flights, len(flights))
    same(results.cancelled, len(flights) - len(flown))
    same(results.late_share, (flown.dep_delay >= 15).mean())
    same(results.mean_delay, flown.dep_delay.mean())
    same(results.by_hour, flown.groupby(["month", "hour"]).late.agg(["mean", "count"]))
    airlines = flown.groupby("carrier")
    same(
        results.by_airline,
        pd.concat(
            [airlines.late.mean(), airlines.late.count(), airlines.dep_delay.median()],
            axis=1,
        ),
    )

    traffic = (
        flights.groupby(["origin", "time_hour"]).size().rename("traffic").reset_index()
    )
    joined = flights.merge(
        weather, on=["origin", "time_hour"], how="left", validate="m:1"
    )
    joined = program.describe_weather(joined).merge(traffic, on=["origin", "time_hour"])
    flown = joined[joined.flown]
    for name, row in results.by_condition.iterrows():
        there = flown[str(name)]
        same(
            [row["with"], row.without, row.flights],
            [flown.late[there].mean(), flown.late[~there].mean(), there.sum()],
        )

    # One flight after the other, to be independent of the grouping under test.
    followed = joined.sort_values(["date", "sched_dep_time", "flight"])
    last: dict[tuple[str, pd.Timestamp], float] = {}
    earlier = []
    for plane, date, delay in zip(
        followed.tailnum, followed.date, followed.dep_delay, strict=True
    ):
        earlier.append(last.get((plane, date), np.nan))
        if plane != "unknown":
            last[plane, date] = delay
    followed = followed.assign(earlier=earlier)
    bins = pd.cut(
        followed.earlier,
        program.EARLIER_EDGES,
        labels=program.EARLIER_NAMES,
        right=False,
    )
    by_earlier = followed[followed.flown].groupby(bins, observed=True).late
    same(results.by_earlier, by_earlier.agg(["mean", "count"]))

    columns = program.model_columns(followed.set_index("date").sort_index())
    features = columns.drop(columns=["late", "day"])
    coefficients = np.linalg.lstsq(features.to_numpy(), columns.late.to_numpy())[0]
    same(results.effects.effect, coefficients)
    assert (results.effects.low <= results.effects.effect).all()
    assert (results.effects.effect <= results.effects.high).all()

    chosen = ["one"]
    late, months = columns.late.to_numpy(), features.index.month
    by_month = columns.late.groupby(months)
    variation = float(((columns.late - by_month.transform("mean")) ** 2).sum())
    for cause, row in results.ranking.iterrows():
        chosen += [name for name in features if name.split(":")[0] == cause]
        design = features[chosen].to_numpy()
        unexplained = 0.0
        for month in range(1, 13):
            seen, unseen = design[months != month], design[months == month]
            weights = np.linalg.solve(seen.T @ seen, seen.T @ late[months != month])
            unexplained += float(
                ((late[months == month] - unseen @ weights) ** 2).sum()
            )
        same(row.explained, 1 - unexplained / variation)

    print(f"check: {compared:,} numbers agree with plain pandas")
