"""Fixtures: clusters of outside processes and clients connected to them."""

from __future__ import annotations

import contextlib
import itertools
import os
import uuid
import zlib
from pathlib import Path

import dask
import pytest
from cluster import ENGINES, Cluster, Engine, Relay, Supervisor, eventually
from distributed import Client

# A dead scheduler is noticed after this time; a live one answers far sooner.
DEAD_CONNECT_TIMEOUT = "1s"
DEAD_TEST_TIMEOUT = 8

# How long the tasks of a test may take to leave a shared cluster before it is replaced,
# which costs about a second.
CLEAN_TIMEOUT = 3

# A part of the tests, for mixes that are run whole elsewhere, is one of so many.
QUARTERS = 4


def pytest_addoption(parser):
    group = parser.getgroup("conformance")
    group.addoption(
        "--engine",
        choices=sorted(ENGINES),
        default=os.environ.get("OXIDASK_TEST_ENGINE", "stock"),
        help="whose scheduler and workers to test (default: $OXIDASK_TEST_ENGINE or stock)",
    )
    group.addoption(
        "--quarter",
        type=int,
        choices=range(QUARTERS),
        help="run only this quarter of the tests, which is the same on every machine",
    )
    group.addoption(
        "--scheduler-cmd", help="template that replaces the scheduler command"
    )
    group.addoption("--worker-cmd", help="template that replaces the worker command")
    group.addoption(
        "--no-fork-server",
        action="store_true",
        help="start stock processes as commands instead of forking a preloaded one",
    )
    group.addoption(
        "--dead-scheduler",
        action="store_true",
        help="kill the scheduler before each test; a test then passes if its body fails",
    )


def pytest_configure(config):
    # Only what the tests say, nothing from the user's own files.
    dask.config.refresh(paths=[], env={})
    dask.config.set({"distributed.admin.tick.limit": "1h"})
    if config.getoption("dead_scheduler"):
        dask.config.set({"distributed.comm.timeouts.connect": DEAD_CONNECT_TIMEOUT})


def pytest_report_header(config):
    scheduler, worker = commands(config)
    return [f"scheduler: {scheduler}", f"worker: {worker}"]


def quarter(item):
    """Which quarter of the tests this one belongs to, by file and name alone.

    The folder is left out: how it is written depends on where pytest was started.
    """
    name = f"{item.path.name}::{item.nodeid.partition('::')[2]}"
    return zlib.crc32(name.encode()) % QUARTERS


def pytest_collection_modifyitems(config, items):
    chosen = config.getoption("quarter")
    if chosen is not None:
        others = [item for item in items if quarter(item) != chosen]
        items[:] = [item for item in items if quarter(item) == chosen]
        config.hook.pytest_deselected(items=others)
    if config.getoption("dead_scheduler"):
        for item in items:
            item.add_marker(
                pytest.mark.timeout(DEAD_TEST_TIMEOUT, func_only=True), append=False
            )


def commands(config):
    scheduler, worker = ENGINES[config.getoption("engine")]
    return (
        config.getoption("scheduler_cmd") or scheduler,
        config.getoption("worker_cmd") or worker,
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if item.config.getoption("dead_scheduler"):
        for cluster in live_clusters(item):
            cluster.scheduler.kill()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if item.config.getoption("dead_scheduler"):
        if call.when == "call":
            if report.passed:
                report.outcome = "failed"
                report.longrepr = (
                    f"{item.nodeid} passed although the scheduler was dead"
                )
            else:
                report.outcome = "passed"
                report.longrepr = None
        elif call.when == "teardown" and report.failed:
            report.outcome = "passed"
            report.longrepr = None
    elif report.failed:
        for cluster in live_clusters(item):
            for role, text in cluster.logs(item.stash.get(LOG_SIZES, {})):
                report.sections.append((f"log of {role}", text[-20_000:]))
    return report


LOG_SIZES = pytest.StashKey[dict]()
CLUSTERS = pytest.StashKey[list]()


def live_clusters(item):
    return item.stash.get(CLUSTERS, [])


@pytest.fixture(scope="session")
def engine(request):
    scheduler, worker = commands(request.config)
    return Engine(
        request.config.getoption("engine"),
        scheduler,
        worker,
        dead_scheduler=request.config.getoption("dead_scheduler"),
    )


@pytest.fixture(scope="session")
def supervisor(request):
    supervisor = Supervisor(fork=not request.config.getoption("no_fork_server"))
    yield supervisor
    supervisor.close()


class SharedClusters:
    """Clusters that tests use one after another, by their options."""

    def __init__(self, engine: Engine, supervisor: Supervisor, folder: Path) -> None:
        self._make = lambda: Cluster(engine, supervisor, folder)
        self._clusters: dict[tuple, Cluster] = {}

    def get(self, **options) -> Cluster:
        key = tuple(sorted(options.items()))
        cluster = self._clusters.get(key)
        if cluster is None:
            cluster = self._make()
            try:
                cluster.start(**options)
            except BaseException:
                cluster.close()
                raise
            self._clusters[key] = cluster
        return cluster

    def drop(self, cluster: Cluster) -> None:
        for key, known in list(self._clusters.items()):
            if known is cluster:
                del self._clusters[key]
        cluster.close()

    def close(self) -> None:
        for cluster in list(self._clusters.values()):
            self.drop(cluster)


@pytest.fixture(scope="session")
def shared_clusters(engine, supervisor, tmp_path_factory):
    clusters = SharedClusters(engine, supervisor, tmp_path_factory.mktemp("shared"))
    yield clusters
    clusters.close()


def borrow(request, shared_clusters, **options):
    """Lends a shared cluster to one test; it is replaced if the test leaves traces."""
    cluster = shared_clusters.get(**options)
    request.node.stash.setdefault(CLUSTERS, []).append(cluster)
    request.node.stash[LOG_SIZES] = cluster.log_sizes()
    yield cluster
    alive = cluster.is_alive()
    clean = False
    if alive:
        with contextlib.suppress(AssertionError):
            clean = eventually(cluster.is_clean, timeout=CLEAN_TIMEOUT)
    if not clean:
        logs = dict(cluster.logs(request.node.stash[LOG_SIZES]))
        shared_clusters.drop(cluster)
        if not alive and not cluster.engine.dead_scheduler:
            pytest.fail(f"the scheduler died during the test:\n{logs['scheduler']}")


@pytest.fixture
def cluster(request, shared_clusters):
    """A shared cluster: workers `w0` and `w1` with two threads each, no nannies."""
    yield from borrow(request, shared_clusters, workers=2, nthreads=2)


@pytest.fixture
def single_cluster(request, shared_clusters):
    """A shared cluster with one worker `w0` that has one thread: execution has an order."""
    yield from borrow(request, shared_clusters, workers=1, nthreads=1)


@pytest.fixture
def fresh_cluster(request, engine, supervisor, tmp_path):
    """Factory of clusters that only this test uses; options as `Cluster.start`."""
    with contextlib.ExitStack() as stack:

        def start(**options):
            cluster = Cluster(engine, supervisor, tmp_path)
            stack.callback(cluster.close)
            cluster.start(**options)
            request.node.stash.setdefault(CLUSTERS, []).append(cluster)
            if engine.dead_scheduler:
                cluster.scheduler.kill()
            return cluster

        yield start


@pytest.fixture
def connect(request):
    """Factory of clients; `target` is a cluster or an address."""
    with contextlib.ExitStack() as stack:

        def connect(target, **options):
            address = target if isinstance(target, str) else target.address
            timeout = 2 if request.config.getoption("dead_scheduler") else 30
            options.setdefault("timeout", timeout)
            client = Client(address, **options)
            stack.callback(client.close, timeout=2)
            return client

        yield connect


@pytest.fixture
def client(cluster, connect):
    """The default client, connected to `cluster`."""
    return connect(cluster)


@pytest.fixture
def single_client(single_cluster, connect):
    """The default client, connected to `single_cluster`."""
    return connect(single_cluster)


@pytest.fixture
def relay():
    """Factory of TCP relays."""
    with contextlib.ExitStack() as stack:

        def start(target):
            relay = Relay(target)
            stack.callback(relay.close)
            return relay

        yield start


@pytest.fixture
def name():
    """Factory of names nobody else uses, for keys and cluster-wide objects."""
    unique = uuid.uuid4().hex[:12]
    numbers = itertools.count()
    return lambda prefix="name": f"{prefix}-{unique}-{next(numbers)}"
