"""What a cluster tells of itself: stacks, profiles, streams, stories, versions, logs."""

from __future__ import annotations

import time
import warnings

import dask
import pytest
from cluster import eventually
from conformance_tasks import inc, signal_and_wait, slow_inc, throws
from distributed import Client, Event, get_task_metadata, wait
from distributed.versions import VersionMismatchWarning


@pytest.fixture
def held(client, name):
    """A task that waits until the test is over, and one that waits for it."""
    started, release = name("started"), name("release")
    running = client.submit(signal_and_wait, started, release, key=name("running"))
    waiting = client.submit(inc, running, key=name("waiting"))
    assert Event(started, client=client).wait(20)
    yield running, waiting
    Event(release, client=client).set()
    wait(waiting)


# Call stacks


def stack_of(client, *futures):
    """Call stacks once the task is in its wait; by worker and key."""
    return eventually(
        lambda: (lambda s: s if "wait_for_event" in str(s) else None)(
            client.call_stack(futures) if futures else client.call_stack()
        )
    )


def test_call_stack_of_everything(client, cluster, held):
    running, _ = held
    stacks = stack_of(client)
    [(worker, by_key)] = stacks.items()
    assert worker in {w.address for w in cluster.workers}
    assert list(by_key) == [running.key]
    assert any("signal_and_wait" in frame for frame in by_key[running.key])


def test_call_stack_of_what_a_waiting_task_waits_for(client, held):
    running, waiting = held
    [by_key] = stack_of(client, waiting).values()
    assert list(by_key) == [running.key]


def test_call_stack_of_a_task_that_is_done(client):
    future = client.submit(inc, 1, pure=False)
    wait(future)
    assert client.call_stack([future]) == {}


def test_call_stack_of_an_unknown_task(client, cluster):
    with pytest.raises(KeyError, match="never-heard-of"):
        client.sync(client.scheduler.call_stack, keys=["never-heard-of"])


def test_call_stack_by_key(client, held):
    running, _ = held
    stacks = client.sync(client.scheduler.call_stack, keys=[running.key])
    assert [list(by_key) for by_key in stacks.values()] == [[running.key]]


# Profiles


def profiled(client, **options):
    """A profile with something in it."""
    found = eventually(
        lambda: (lambda p: p if p["count"] else None)(client.profile(**options))
    )
    return found


def test_profile_by_key(client):
    futures = client.map(slow_inc, range(10), delay=0.05, pure=False)
    wait(futures)
    tree = profiled(client, key="slow_inc")
    names = str(tree)
    assert "slow_inc" in names
    assert client.profile(key="never-heard-of")["count"] == 0


def test_profile_of_some_workers(client, cluster):
    first, second = (worker.address for worker in cluster.workers)
    futures = client.map(slow_inc, range(10), delay=0.05, pure=False, workers=[first])
    wait(futures)
    since = time.time() - 3600
    assert profiled(client, workers=[first], start=since)["count"] > 0
    assert client.profile(workers=["tcp://127.0.0.1:1"])["count"] == 0
    by_worker = client.sync(client.scheduler.profile, merge_workers=False)
    assert by_worker.keys() == {first, second}
    assert set(by_worker[first]) == {"count", "children", "identifier", "description"}


def test_profile_of_another_time(client):
    futures = client.map(slow_inc, range(4), delay=0.05, pure=False)
    wait(futures)
    assert client.profile(start=time.time() + 3600)["count"] == 0


def test_profile_of_the_workers_loops(client):
    assert client.profile(server=True)["identifier"] == "root"


def test_profile_of_the_scheduler(client):
    tree = client.profile(scheduler=True)
    assert tree["identifier"] == "root"
    assert {"count", "children", "description"} <= set(tree)


def test_profile_as_a_page(client, tmp_path):
    pytest.importorskip("bokeh")
    futures = client.map(slow_inc, range(4), delay=0.05, pure=False)
    wait(futures)
    tree, figure = client.profile(plot=True)
    assert tree["identifier"] == "root"
    assert figure is not None


def test_figures_of_profiles(client):
    futures = client.map(slow_inc, range(10), delay=0.05, pure=False)
    wait(futures)

    async def metadata(dask_scheduler):
        return await dask_scheduler.get_profile_metadata()

    def filled():
        found = client.run_on_scheduler(metadata)
        return found if "slow_inc" in found["keys"] else None

    found = eventually(filled)
    assert set(found) == {"counts", "keys"}
    assert sum(count for _, count in found["counts"]) > 0


# The task stream


def test_task_stream_between_two_times(client):
    client.get_task_stream()
    wait(client.submit(inc, 1, pure=False))
    before = time.time()
    future = client.submit(slow_inc, 1, pure=False)
    wait(future)
    after = time.time()
    wait(client.submit(inc, 2, pure=False))
    records = client.get_task_stream(start=before, stop=after + 1e-3)
    assert future.key in [record["key"] for record in records]
    assert all(
        max(s["stop"] for s in record["startstops"]) >= before for record in records
    )
    recent = client.get_task_stream(start="10 minutes")
    assert future.key in [record["key"] for record in recent]


def test_records_of_the_task_stream(client, cluster):
    client.get_task_stream()
    future = client.submit(inc, 1, pure=False)
    wait(future)
    [record] = client.get_task_stream(count=1)
    assert set(record) == {
        "stimulus_id",
        "worker",
        "metadata",
        "nbytes",
        "type",
        "typename",
        "thread",
        "startstops",
        "status",
        "key",
    }
    assert record["key"] == future.key
    assert record["worker"] in {w.address for w in cluster.workers}
    assert record["nbytes"] == 28
    assert record["typename"] == "int"
    assert isinstance(record["thread"], int)
    assert {s["action"] for s in record["startstops"]} == {"compute"}


def test_task_stream_as_a_figure(client):
    pytest.importorskip("bokeh")
    client.get_task_stream()
    wait(client.map(inc, range(3), pure=False))
    records, figure = client.get_task_stream(plot=True)
    assert len(records) >= 3
    assert figure is not None


# Stories


def test_rows_of_a_story(client, cluster):
    before = time.time()
    future = client.submit(inc, 1, pure=False)
    wait(future)
    rows = cluster.call("get_story", keys_or_stimuli=[future.key])
    assert [row[4].rsplit("-", 1)[0] for row in rows] == [
        "update-graph",
        "update-graph",
        "task-finished",
    ]
    times = [row[5] for row in rows]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= time.time()


def test_story_has_recommendations(client, cluster, name):
    started, release = name("started"), name("release")
    first = client.submit(signal_and_wait, started, release, key=name("first"))
    second = client.submit(id, first, pure=False)
    eventually(lambda: cluster.knows(second.key))
    Event(release, client=client).set()
    wait(second)
    rows = cluster.call("get_story", keys_or_stimuli=[second.key])
    finished = [row for row in rows if row[0] == first.key and row[2] == "memory"]
    assert [row[3] for row in finished] == [{second.key: "processing"}]


def test_story_of_something_unknown(client, cluster):
    assert cluster.call("get_story", keys_or_stimuli=["never-heard-of"]) == ()


# Versions


def pretend(package, version):
    """To be run on a worker: it says that it has another version of a package."""
    import distributed.versions

    original = distributed.versions._version_cached

    def version_cached(name):
        return version if name == package else original(name)

    distributed.versions._version_cached = version_cached


def test_versions_that_differ(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.get_versions(check=True)
    client.run(pretend, "toolz", "0.0.1", workers=[cluster.workers[0].address])
    with pytest.warns(UserWarning, match="toolz") as caught:
        client.get_versions(check=True)
    text = str(caught[0].message)
    assert text.startswith("Mismatched versions found")
    assert "0.0.1" in text
    assert "MISSING" not in text


def test_a_client_of_other_versions_is_warned(cluster, monkeypatch):
    import distributed.versions

    original = distributed.versions._version_cached

    def version_cached(name):
        return "0.0.2" if name == "cloudpickle" else original(name)

    monkeypatch.setattr(distributed.versions, "_version_cached", version_cached)
    with (
        pytest.warns(VersionMismatchWarning, match="cloudpickle") as caught,
        Client(cluster.address, timeout=10),
    ):
        pass
    text = str(caught[0].message)
    assert "| Package     |" in text
    assert "0.0.2" in text


# Logs


def test_logs_of_the_scheduler_since(client):
    log = client.get_scheduler_logs()
    assert all(len(entry) == 2 for entry in log)

    def logs(**options):
        return client.sync(client.scheduler.get_logs, **options)

    stamped = logs(timestamps=True)
    assert all(len(entry) == 3 for entry in stamped)
    times = [entry[0] for entry in stamped]
    assert times == sorted(times, reverse=True)
    middle = times[len(times) // 2]
    assert all(entry[0] >= middle for entry in logs(timestamps=True, start=middle))
    assert logs(start=time.time() + 3600) == ()
    assert len(logs(n=0)) >= len(log)


def test_logs_by_its_other_name(cluster):
    assert cluster.call("logs", n=2) == cluster.call("get_logs", n=2)


def test_logs_of_one_worker(client, cluster):
    address = cluster.workers[1].address
    logs = client.get_worker_logs(n=1, workers=[address])
    assert list(logs) == [address]
    assert len(logs[address]) == 1


def test_logs_of_nannies(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1, nanny=True)
    client = connect(cluster)
    logs = client.get_worker_logs(nanny=True)
    assert list(logs) == [cluster.workers[0].address]
    [lines] = logs.values()
    assert any("Start Nanny at" in line for _, line in lines)


# Threads


def test_threads_of_running_workers(fresh_cluster):
    cluster = fresh_cluster(workers=2, nthreads=[1, 2])
    first, second = (worker.address for worker in cluster.workers)
    assert cluster.call("ncores_running") == {first: 1, second: 2}
    # It has more than that in memory from the beginning.
    pausing = {"distributed.worker.memory.pause": 1e-6}
    cluster.add_worker(nthreads=3, config=pausing, wait=False)
    eventually(lambda: len(cluster.call("ncores")) == 3)
    threads = cluster.call("ncores")
    [third] = threads.keys() - {first, second}
    assert threads == {first: 1, second: 2, third: 3}
    eventually(lambda: cluster.call("ncores_running") == {first: 1, second: 2})
    assert cluster.call("ncores_running", workers=[first]) == {first: 1}


# Metadata of tasks


def test_metadata_of_tasks(client, name):
    with get_task_metadata() as collected:
        good = client.submit(inc, 1, key=name("good"))
        bad = client.submit(throws, key=name("bad"))
        wait([good, bad])
        eventually(lambda: good.status == "finished" and bad.status == "error")
    assert collected.state == {good.key: "memory", bad.key: "erred"}
    assert collected.metadata.keys() == {good.key, bad.key}


def test_computations(fresh_cluster, connect):
    client = connect(fresh_cluster(workers=1))
    with dask.config.set({"distributed.diagnostics.computations.nframes": 1}):
        wait(client.submit(inc, 1))
        wait(client.submit(inc, 2))

    def computations(dask_scheduler):
        return [
            (found.start, [source.code for code in found.code for source in code])
            for found in dask_scheduler.computations
        ]

    (first, code), (second, other) = client.run_on_scheduler(computations)
    assert first <= second <= time.time()
    assert "client.submit(inc, 1)" in code[0]
    assert "client.submit(inc, 2)" in other[0]
