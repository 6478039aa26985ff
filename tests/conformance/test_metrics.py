"""Every family of numbers for Prometheus: its name, its type and its labels."""

from __future__ import annotations

import urllib.request

import pytest
from cluster import eventually
from conformance_tasks import inc, throws
from distributed import Semaphore, wait

parser = pytest.importorskip("prometheus_client.parser")

STATES = {"released", "waiting", "no-worker", "queued", "processing", "memory", "erred"}
WORKER_STATES = {"idle", "partially_saturated", "saturated", "paused", "retiring"}

#: Families by name, with the type and the labels. Those of the Python interpreter
#: (``python_…``) are left out: not every scheduler has one.
FAMILIES = {
    "dask_scheduler_clients": ("gauge", set()),
    "dask_scheduler_client_connections_added": ("counter", set()),
    "dask_scheduler_client_connections_removed": ("counter", set()),
    "dask_scheduler_desired_workers": ("gauge", set()),
    "dask_scheduler_workers": ("gauge", {"state"}),
    "dask_scheduler_workers_added": ("counter", set()),
    "dask_scheduler_workers_removed": ("counter", set()),
    "dask_scheduler_gc_collection_seconds": ("counter", set()),
    "dask_scheduler_last_time": ("counter", set()),
    "dask_scheduler_tasks_suspicious": ("counter", {"task_prefix_name"}),
    "dask_scheduler_tasks_forgotten": ("counter", set()),
    "dask_scheduler_tasks": ("gauge", {"state"}),
    "dask_scheduler_task_groups": ("gauge", set()),
    "dask_scheduler_tasks_compute_seconds": ("counter", {"task_prefix_name"}),
    "dask_scheduler_tasks_transfer_seconds": ("counter", {"task_prefix_name"}),
    "dask_scheduler_tasks_output_bytes": ("gauge", {"task_prefix_name"}),
    "dask_scheduler_prefix_state_totals": ("counter", {"task_prefix_name", "state"}),
    "dask_scheduler_tick_duration_maximum_seconds": ("gauge", set()),
    "dask_scheduler_tick_count": ("counter", set()),
    "dask_semaphore_max_leases": ("gauge", {"name"}),
    "dask_semaphore_active_leases": ("gauge", {"name"}),
    "dask_semaphore_pending_leases": ("gauge", {"name"}),
    "dask_semaphore_acquire": ("counter", {"name"}),
    "dask_semaphore_release": ("counter", {"name"}),
    "dask_semaphore_average_pending_lease_time_s": ("gauge", {"name"}),
    "dask_stealing_request_count": ("counter", {"cost_multiplier"}),
    "dask_stealing_request_cost": ("counter", {"cost_multiplier"}),
    "process_virtual_memory_bytes": ("gauge", set()),
    "process_resident_memory_bytes": ("gauge", set()),
    "process_start_time_seconds": ("gauge", set()),
    "process_cpu_seconds": ("counter", set()),
    "process_open_fds": ("gauge", set()),
    "process_max_fds": ("gauge", set()),
}


def fetch(cluster):
    port = cluster.identity()["services"]["dashboard"]
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=20) as response:
        return response.read().decode(), response.headers["Content-Type"]


def families(cluster):
    """Families of the scheduler by name; only stock has those of an interpreter."""
    text, _ = fetch(cluster)
    found = parser.text_string_to_metric_families(text)
    return {
        family.name: family
        for family in found
        if not family.name.startswith(("python_", "dask_scheduler_gil_"))
    }


def values(cluster, name, *labels):
    """Values of a family, by its labels in this order."""
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for sample in families(cluster)[name].samples
    }


@pytest.fixture
def busy(cluster, client, name):
    """Something to count."""
    semaphore = Semaphore(max_leases=2, name=name("semaphore"))
    assert semaphore.acquire()
    good = client.map(inc, range(3), pure=False)
    bad = client.submit(throws, pure=False)
    wait([*good, bad])
    yield good, bad
    semaphore.release()
    semaphore.close()


def test_every_family(cluster, busy):
    found = families(cluster)
    assert found.keys() == FAMILIES.keys()
    for name, (kind, labels) in FAMILIES.items():
        family = found[name]
        assert family.type == kind, name
        assert family.samples, name
        assert family.documentation, name
        for sample in family.samples:
            assert set(sample.labels) == labels, name
            suffix = "_total" if kind == "counter" else ""
            assert sample.name == name + suffix


def test_the_type_of_the_page(cluster):
    assert fetch(cluster)[1].startswith("text/plain; version=0.0.4")


def test_states_of_tasks_and_workers(cluster, busy):
    tasks = values(cluster, "dask_scheduler_tasks", "state")
    assert {state for (state,) in tasks} == STATES
    assert tasks["memory",] == 3
    assert tasks["erred",] == 1
    workers = values(cluster, "dask_scheduler_workers", "state")
    assert {state for (state,) in workers} == WORKER_STATES
    assert sum(workers.values()) == 2


def test_numbers_of_prefixes(cluster, busy):
    totals = values(
        cluster, "dask_scheduler_prefix_state_totals", "task_prefix_name", "state"
    )
    assert totals["inc", "memory"] >= 3
    assert totals["throws", "erred"] >= 1
    nbytes = values(cluster, "dask_scheduler_tasks_output_bytes", "task_prefix_name")
    assert nbytes["inc",] == 3 * 28
    seconds = values(
        cluster, "dask_scheduler_tasks_compute_seconds", "task_prefix_name"
    )
    assert seconds["inc",] > 0


def test_counters_of_comings_and_goings(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)

    def count(name):
        return values(cluster, f"dask_scheduler_{name}")[()]

    client = connect(cluster)
    assert count("clients") == 1
    assert count("client_connections_added") == 1
    assert count("client_connections_removed") == 0
    client.close()
    eventually(lambda: count("client_connections_removed") == 1)
    assert count("clients") == 0
    cluster.kill_worker(cluster.workers[0])
    eventually(lambda: count("workers_removed") == 1)
    assert count("workers_added") == 1


def test_the_process(cluster):
    found = {
        name: family.samples[0].value
        for name, family in families(cluster).items()
        if name.startswith("process_")
    }
    memory = found["process_resident_memory_bytes"]
    assert 1 << 20 < memory <= found["process_virtual_memory_bytes"]
    assert 3 <= found["process_open_fds"] <= found["process_max_fds"]
    assert found["process_cpu_seconds"] > 0
    started = cluster.identity()["started"]
    assert abs(found["process_start_time_seconds"] - started) < 60


def test_another_namespace(fresh_cluster):
    config = {"distributed.dashboard.prometheus.namespace": "mine"}
    cluster = fresh_cluster(workers=0, config=config)
    names = set(families(cluster))
    assert "mine_scheduler_clients" in names
    assert "mine_semaphore_max_leases" in names
    assert not any(name.startswith("dask_") for name in names)
