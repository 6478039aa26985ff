"""A module to preload, importable by every process of the cluster."""

from __future__ import annotations

import click


@click.command()
@click.option("--word", default="nothing")
@click.argument("rest", nargs=-1)
def dask_setup(scheduler, word, rest):
    scheduler.preloaded = (word, list(rest))
