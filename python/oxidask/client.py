"""A stock client that starts our cluster where it would start its own."""

from __future__ import annotations

from typing import Any

import distributed

from oxidask.cluster import LocalCluster

__all__ = ["Client"]


class Client(distributed.Client):
    """Connect to a cluster; without an address, start one under Oxidask.

    Everything else is :class:`distributed.Client`: the address may be that of
    any Dask scheduler or a cluster object, and every method is the same.

    Parameters
    ----------
    *args, **kwargs
        As for :class:`distributed.Client`. Keywords that it does not know go to
        :class:`oxidask.LocalCluster`.

    Examples
    --------
    >>> client = oxidask.Client(n_workers=2)  # doctest: +SKIP
    >>> client.submit(sum, [1, 2]).result()  # doctest: +SKIP
    3
    """

    async def _start(self, *args: Any, **kwargs: Any) -> Any:
        if (
            self._start_arg is None
            and self.cluster is None
            and self.scheduler_file is None
        ):
            self.cluster = await LocalCluster(
                loop=self.loop,
                asynchronous=self._asynchronous,
                **self._startup_kwargs,
            )
        return await super()._start(*args, **kwargs)
