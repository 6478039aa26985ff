"""How ``flights.py`` shows what it does and what it found."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pandas as pd
from distributed import Future, as_completed

if TYPE_CHECKING:
    from flights import Results

AIRLINE_NAMES = {
    "9E": "Endeavor",
    "AA": "American",
    "AS": "Alaska",
    "B6": "JetBlue",
    "DL": "Delta",
    "EV": "ExpressJet",
    "F9": "Frontier",
    "FL": "AirTran",
    "HA": "Hawaiian",
    "MQ": "Envoy",
    "OO": "SkyWest",
    "UA": "United",
    "US": "US Airways",
    "VX": "Virgin America",
    "WN": "Southwest",
    "YV": "Mesa",
}


class Progress:
    """A bar for each step of a program, and the time each one took.

    On a terminal the bar moves; elsewhere each step is one line when it is done.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._moves = out.isatty()
        utf8 = (out.encoding or "").lower().replace("-", "") == "utf8"
        self._full, self._empty = ("━", "─") if utf8 else ("#", "-")
        self._seconds: dict[str, float] = {}
        self._name, self._done, self._total = "", 0, 0
        self._started = self._drawn = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens inside under ``name``."""
        self._name, self._done, self._total = name, 0, 1
        self._started = time.perf_counter()
        self._draw()
        yield
        self._seconds[name] = time.perf_counter() - self._started
        self._done = self._total
        self._draw(last=True)

    def expect(self, count: int) -> None:
        """The present step has ``count`` parts."""
        self._done, self._total = 0, count
        self._draw()

    def advance(self) -> None:
        """One part of the present step is done."""
        self._done += 1
        if time.perf_counter() - self._drawn > 0.05:
            self._draw()

    def follow(self, futures: Sequence[Future]) -> None:
        """Wait until all of ``futures`` are done; each is a part of the step."""
        self.expect(len(futures))
        for _ in as_completed(futures):
            self.advance()

    def finish(self) -> None:
        """Say how long all steps took together."""
        print(
            f"{len(self._seconds)} steps in {sum(self._seconds.values()):.1f} s",
            file=self._out,
        )

    def timings(self) -> dict[str, Any]:
        """Seconds by step, and in all."""
        return {"steps": self._seconds, "total": sum(self._seconds.values())}

    def _draw(self, last: bool = False) -> None:
        if not (self._moves or last):
            return
        self._drawn = time.perf_counter()
        width = 28
        full = round(width * self._done / max(1, self._total))
        bar = self._full * full + self._empty * (width - full)
        if self._moves:
            bar = f"\x1b[36m{bar[:full]}\x1b[2m{bar[full:]}\x1b[0m"
        seconds = self._drawn - self._started
        start, end = ("\r", "\n" if last else "") if self._moves else ("", "\n")
        self._out.write(f"{start}  {self._name:<28}{bar} {seconds:6.2f} s{end}")
        self._out.flush()


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    widths[0] = max(widths[0], 30)

    def line(cells: Sequence[str]) -> str:
        rest = (
            f"{cell:>{width}}"
            for cell, width in zip(cells[1:], widths[1:], strict=True)
        )
        return "  " + "  ".join([f"{cells[0]:<{widths[0]}}", *rest])

    print(f"\n{title}")
    print(line(header))
    for row in rows:
        print(line(row))


def report(results: Results, conditions: dict[str, str]) -> None:
    """Print what was found, in a few tables."""
    print(
        f"\n{results.flights:,} flights, {results.cancelled:,} of them cancelled. "
        f"Of the others {percent(results.late_share)} left late\n(15 minutes or more); "
        f"the mean delay was {results.mean_delay:.1f} minutes."
    )

    airlines = results.by_airline[results.by_airline.flights >= 1000].sort_values(
        "late"
    )
    table(
        "By airline (with 1,000 flights or more)",
        ["", "late", "median delay", "flights"],
        [
            [
                AIRLINE_NAMES[str(code)],
                percent(row.late),
                f"{row.median_delay:.0f} min",
                f"{row.flights:,.0f}",
            ]
            for code, row in airlines.iterrows()
        ],
    )

    table(
        "Weather at the airport in the hour of departure",
        ["", "late", "else", "flights"],
        [
            [
                conditions[str(name)],
                percent(row["with"]),
                percent(row.without),
                f"{row.flights:,.0f}",
            ]
            for name, row in results.by_condition.iterrows()
        ],
    )

    table(
        "The same plane's earlier departure that day",
        ["delay of the earlier one, min", "late", "flights"],
        [
            [str(name), percent(row["mean"]), f"{row['count']:,.0f}"]
            for name, row in results.by_earlier.iterrows()
        ],
    )

    shown = {
        "earlier:very late": "earlier flight 60 min late or more",
        "earlier:late": "earlier flight 15 to 60 min late",
        "hour:20": "leaving at 20 h and not at 5 h",
        "hour:12": "leaving at 12 h and not at 5 h",
        "traffic:": "10 more departures in that hour",
        **{f"{name}:": text for name, text in conditions.items()},
    }
    table(
        "All else equal, what each adds to the chance of being late",
        ["", "points", "95 % interval"],
        [
            [
                text,
                f"{100 * row.effect:+.1f}",
                f"{100 * row.low:+5.1f} to {100 * row.high:+5.1f}",
            ]
            for name, text in shown.items()
            for row in [results.effects.loc[name]]
        ],
    )

    table(
        "Causes, most telling first (variation explained in unseen months)",
        ["", "adds", "together"],
        [
            [CAUSES[str(cause)], percent(row.adds), percent(row.explained)]
            for cause, row in results.ranking.iterrows()
        ],
    )
    print()


CAUSES = {
    "earlier": "the plane's earlier flight",
    "hour": "time of day",
    "airline": "airline",
    "airport": "airport",
    "month": "month",
    "weekday": "weekday",
    "rain": "rain",
    "heavy_rain": "heavy rain",
    "fog": "poor visibility",
    "wind": "strong wind",
    "low": "low air pressure",
    "muggy": "warm, humid air",
    "traffic": "traffic at the airport",
}


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


INK, FAINT, GRID = "#22303c", "#7b8794", "#e3e8ec"
CALM, LATE = "#3d7ea6", "#d1495b"


def draw(results: Results, conditions: dict[str, str], path: Path) -> None:
    """Save one figure with four panels."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    style: dict[Any, Any] = {
        "font.size": 10,
        "font.family": "DejaVu Sans",
        "text.color": INK,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.titlepad": 12,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
    }
    with mpl.rc_context(style):
        figure, axes = plt.subplots(
            2, 2, figsize=(13, 9.4), width_ratios=[1.12, 1], height_ratios=[1, 1.05]
        )
        draw_hours(axes[0, 0], results.by_hour)
        draw_earlier(axes[0, 1], results.by_earlier, results.late_share)
        draw_conditions(axes[1, 0], results.by_condition, conditions)
        draw_airlines(axes[1, 1], results.by_airline, results.late_share)
        figure.subplots_adjust(0.075, 0.055, 0.975, 0.845, wspace=0.26, hspace=0.36)
        figure.text(
            0.02,
            0.95,
            "What made New York\u2019s flights late in 2013",
            size=19,
            weight="bold",
        )
        figure.text(
            0.02,
            0.918,
            f"{results.flights - results.cancelled:,} departures from EWR, JFK and LGA. "
            f"Late means 15 minutes or more: {percent(results.late_share)} of them.",
            size=11,
            color=FAINT,
        )
        figure.savefig(path, dpi=150, facecolor="white")
        plt.close(figure)


def draw_hours(axes: Any, by_hour: pd.DataFrame) -> None:
    """Share of late departures by month and scheduled hour."""
    from matplotlib.colors import LinearSegmentedColormap

    shares = by_hour["mean"].where(by_hour["count"] >= 50).unstack("hour").loc[:, 5:23]
    colours = LinearSegmentedColormap.from_list(
        "late", ["#f3f6f8", "#f2c6a0", LATE, "#5b1a35"]
    )
    image = axes.pcolormesh(
        shares.columns,
        shares.index,
        100 * shares,
        cmap=colours,
        vmin=0,
        vmax=60,
        edgecolors="white",
        linewidth=1,
    )
    axes.invert_yaxis()
    axes.set_yticks(
        range(1, 13),
        [
            "Jan",
            "Feb",
            "Mar",
            "Apr",
            "May",
            "Jun",
            "Jul",
            "Aug",
            "Sep",
            "Oct",
            "Nov",
            "Dec",
        ],
    )
    axes.set_xticks(range(5, 24, 3), [f"{hour}:00" for hour in range(5, 24, 3)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Delays build up through the day, and most of all in summer")
    bar = axes.figure.colorbar(
        image, ax=axes, pad=0.02, aspect=26, ticks=range(0, 61, 20)
    )
    bar.ax.set_yticklabels([f"{tick} %" for tick in range(0, 61, 20)])
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def draw_earlier(axes: Any, by_earlier: pd.DataFrame, mean: float) -> None:
    """Share of late departures by the delay of the plane's earlier one."""
    shares = 100 * by_earlier["mean"]
    places = range(len(shares))
    bars = axes.bar(places, shares, width=0.74, color=LATE)
    bars[0].set_color(CALM)
    for place, share in zip(places, shares, strict=True):
        axes.text(
            place,
            share - 5,
            f"{share:.0f} %",
            ha="center",
            color="white",
            weight="bold",
        )
    axes.axhline(100 * mean, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.text(len(shares) - 0.45, 100 * mean + 1.5, "all flights", size=9)
    axes.set_xlim(-0.6, len(shares) + 0.25)
    axes.set_xticks(
        list(places), [str(name).replace("-", "\u2013") for name in shares.index]
    )
    axes.set_xlabel(
        "minutes by which the same plane left late earlier that day", labelpad=8
    )
    axes.set_ylim(0, 92)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("A plane that left late once leaves late again")


def draw_conditions(
    axes: Any, by_condition: pd.DataFrame, conditions: dict[str, str]
) -> None:
    """Share of late departures in each kind of weather and otherwise."""
    ordered = by_condition.sort_values("with")
    places = range(len(ordered))
    there, otherwise = 100 * ordered["with"], 100 * ordered["without"]
    axes.hlines(places, otherwise, there, color=GRID, linewidth=7, zorder=1)
    axes.scatter(otherwise, places, s=85, color=CALM, zorder=2)
    axes.scatter(there, places, s=85, color=LATE, zorder=2)
    for place, name in zip(places, ordered.index, strict=True):
        axes.text(
            there[name] + 0.8, place, f"{there[name]:.0f} %", va="center", weight="bold"
        )
        axes.text(
            otherwise[name] - 0.8,
            place,
            f"{otherwise[name]:.0f} %",
            va="center",
            ha="right",
        )
        axes.text(21.9, place + 0.24, conditions[str(name)], size=9.5)
    top = len(ordered) - 1
    axes.text(otherwise.iloc[top], top + 0.66, "otherwise", color=CALM, ha="center")
    axes.text(there.iloc[top], top + 0.66, "in this weather", color=LATE, ha="center")
    axes.set_xlim(17, 52)
    axes.set_ylim(-0.5, top + 0.8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title("Rain nearly doubles the share of late departures", x=0.0)


def draw_airlines(axes: Any, by_airline: pd.DataFrame, mean: float) -> None:
    """Share of late departures by airline."""
    ordered = by_airline[by_airline.flights >= 1000].sort_values(
        "late", ascending=False
    )
    shares = 100 * ordered.late
    places = range(len(ordered))
    colours = [LATE if share > 100 * mean else CALM for share in shares]
    axes.barh(places, shares, height=0.74, color=colours)
    for place, share in zip(places, shares, strict=True):
        axes.text(
            share - 0.5,
            place,
            f"{share:.0f} %",
            va="center",
            ha="right",
            color="white",
            weight="bold",
        )
    axes.axvline(100 * mean, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.text(100 * mean + 0.4, len(ordered) - 1, "all flights", va="center", size=9)
    names = [AIRLINE_NAMES[str(code)] for code in ordered.index]
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(f"{names[0]} leaves late most often, {names[-1]} least")
