"""A cluster on this machine, in processes or within this one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import distributed
from distributed.utils import Log, Logs

from oxidask._guest import LocalScheduler, LocalWorker
from oxidask._scheduler_process import SchedulerProcess
from oxidask._worker_process import WorkerProcess

__all__ = ["LocalCluster"]

logger = logging.getLogger(__name__)


class LocalCluster(distributed.LocalCluster):
    """Start the Oxidask scheduler and workers on this machine.

    The workers are ours, ``oxidask worker``, unless `worker_class` names another class
    or there is an argument for workers that only stock's know.

    The scheduler is a process of its own, which ends with this one; with
    ``processes=False`` it and workers of ours are threads of this process, and values
    are passed as they are. Arguments, methods and representation are those of
    :class:`distributed.LocalCluster`, which this class extends, with these differences:

    * ``cluster.scheduler`` is the process or thread, not a ``Scheduler`` object. Ask
      the scheduler with a client instead.
    * ``processes=False`` with a class of stock's workers starts them in this process,
      but the scheduler outside, so that ``inproc://`` cannot be.
    * ``scheduler_kwargs`` takes those arguments of ``Scheduler`` that have an
      option or a configuration key; others raise `TypeError`.
    * Modules are found on ``sys.path`` as it is when the cluster starts.

    Parameters
    ----------
    name : str, optional
        Name of the cluster.
    n_workers : int, optional
        Number of workers to start.
    threads_per_worker : int, optional
        Number of threads of each worker.
    processes : bool, optional
        Whether each worker has a process of its own. Default: true, unless
        `worker_class` is no nanny.
    loop : tornado.ioloop.IOLoop, optional
        Event loop to use.
    start, ip
        Deprecated, as in Dask.
    host : str, optional
        Where the scheduler listens; this machine only by default.
    scheduler_port : int
        Port of the scheduler; 0 lets the system choose.
    silence_logs : int or None
        Lines of the scheduler's log below this level are not printed. A false
        value prints everything.
    dashboard_address : str, optional
        Where the dashboard listens, like ``":8787"``; ``None`` for no dashboard.
    worker_dashboard_address : str, optional
        The same for the workers.
    services, worker_services, service_kwargs
        As in Dask; of `service_kwargs`, the dashboard's ``prefix`` is used.
    asynchronous : bool
        Whether the cluster is used with ``await`` in a running event loop.
    security : Security, bool, optional
        TLS credentials; ``True`` makes temporary ones.
    protocol : str, optional
        ``tcp://``, ``tls://``, ``ws://`` or ``wss://``; with ``processes=False`` also
        ``inproc://``, the default there unless a port or encryption is asked for.
    blocked_handlers : list of str, optional
        Operations that the scheduler refuses.
    interface : str, optional
        Network interface to listen on.
    worker_class : type or str, optional
        Class of the workers, if they are to be stock's: ``Nanny``, ``Worker`` or a
        class derived from them. ``"oxidask"`` for workers of ours and no others.
    scheduler_kwargs : dict, optional
        More arguments for the scheduler.
    scheduler_sync_interval : float or str
        Seconds between two updates of the cluster's information.
    **worker_kwargs
        Arguments of `worker_class`, such as ``memory_limit`` or ``resources``.

    Examples
    --------
    >>> cluster = LocalCluster(n_workers=2)  # doctest: +SKIP
    >>> client = cluster.get_client()  # doctest: +SKIP
    >>> cluster.scale(4)  # doctest: +SKIP
    """

    #: Command that starts the scheduler; the options of ``dask scheduler`` are
    #: appended. ``None`` is ``python -m oxidask scheduler`` with the interpreter
    #: of this process. For custom binaries, and for tests.
    _command: ClassVar[Sequence[str] | None] = None

    def __init__(
        self,
        name: str | None = None,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        processes: bool | None = None,
        loop: Any = None,
        start: Any = None,
        host: str | None = None,
        ip: str | None = None,
        scheduler_port: int = 0,
        silence_logs: int | None = logging.WARN,
        dashboard_address: str | None = ":8787",
        worker_dashboard_address: str | None = None,
        services: Mapping[Any, Any] | None = None,
        worker_services: Mapping[Any, Any] | None = None,
        service_kwargs: Mapping[str, Any] | None = None,
        asynchronous: bool = False,
        security: Any = None,
        protocol: str | None = None,
        blocked_handlers: Sequence[str] | None = None,
        interface: str | None = None,
        worker_class: type | str | None = None,
        scheduler_kwargs: Mapping[str, Any] | None = None,
        scheduler_sync_interval: float | str = 1,
        **worker_kwargs: Any,
    ) -> None:
        if isinstance(worker_class, str):
            if worker_class != "oxidask":
                raise ValueError(
                    f"worker_class must be a class or 'oxidask', not {worker_class!r}"
                )
            is_ours = True
        else:
            is_ours = worker_class is None
            if is_ours and processes is not False:
                try:
                    WorkerProcess("", **worker_kwargs)
                except TypeError as error:
                    logger.warning("Stock's workers are started: %s", error)
                    is_ours = False
        self._is_within = is_ours and processes is False
        if is_ours:
            worker_class = LocalWorker if self._is_within else WorkerProcess
            processes = not self._is_within
        if not self._is_within:
            if protocol is None:
                protocol = _default_protocol(host if ip is None else ip, security)
            elif protocol.startswith("inproc"):
                raise ValueError(
                    "protocol `inproc://` cannot reach the scheduler, which is a process "
                    "of its own; leave it out or use `tcp://`"
                )
        self._silence_logs = silence_logs
        super().__init__(
            name=name,
            n_workers=n_workers,
            threads_per_worker=threads_per_worker,
            processes=processes,
            loop=loop,
            start=start,
            host=host,
            ip=ip,
            scheduler_port=scheduler_port,
            silence_logs=silence_logs,
            dashboard_address=dashboard_address,
            worker_dashboard_address=worker_dashboard_address,
            services=services,
            worker_services=worker_services,
            service_kwargs=service_kwargs,
            asynchronous=asynchronous,
            security=security,
            protocol=protocol,
            blocked_handlers=blocked_handlers,
            interface=interface,
            worker_class=worker_class,
            scheduler_kwargs=scheduler_kwargs,
            scheduler_sync_interval=scheduler_sync_interval,
            **worker_kwargs,
        )

    async def _start(self) -> None:
        # The base class would make a `Scheduler` of this specification.
        if self.scheduler_spec["cls"] is distributed.Scheduler:
            options = self.scheduler_spec["options"]
            if self._is_within:
                self.scheduler_spec = {
                    "cls": LocalScheduler,
                    "options": {"options": options},
                }
            else:
                self.scheduler_spec = {
                    "cls": SchedulerProcess,
                    "options": {
                        "options": options,
                        "command": self._command,
                        "log_level": self._silence_logs,
                    },
                }
        await super()._start()

    async def _get_logs(
        self,
        cluster: bool = True,
        scheduler: bool = True,
        workers: bool | Sequence[str] = True,
    ) -> Logs:
        dead = self._dead_scheduler()
        logs: Logs = await super()._get_logs(
            cluster=cluster,
            scheduler=scheduler and dead is None,
            workers=workers if dead is None else False,
        )
        if scheduler and dead is not None:
            # Its last words are what one wants to read now.
            logs["Scheduler"] = Log("\n".join(dead.log_lines()))
        return logs

    async def _close(self) -> None:
        dead = self._dead_scheduler()
        if dead is not None:
            # The base class would wait half a minute for its answer.
            self.shutdown_scheduler = False
            await dead.close()
        await super()._close()

    def _dead_scheduler(self) -> SchedulerProcess | None:
        scheduler = self.scheduler
        if isinstance(scheduler, SchedulerProcess) and scheduler.has_exited:
            return scheduler
        return None


def _default_protocol(host: str | None, security: Any) -> str:
    if host and "://" in host:
        return host.split("://")[0] + "://"
    if security is None:
        security = distributed.Security()
    if security is True or security.require_encryption:
        return "tls://"
    return "tcp://"
