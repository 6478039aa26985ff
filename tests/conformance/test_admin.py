"""What a client can ask about the cluster, and functions it runs there."""

from __future__ import annotations

import os
import time

import pytest
from cluster import eventually
from conformance_tasks import (
    FailsToPickle,
    inc,
    signal_and_wait,
    slow_inc,
    throws,
    wait_for_event,
)
from distributed import Event, get_task_stream, get_worker, wait
from distributed.diagnostics import MemorySampler


def flush(client):
    """Returns when the scheduler has read what this client sent on its stream before."""
    assert client.submit(inc, 1, pure=False).result() == 2


# State of tasks and workers


def test_who_has_and_has_what(client, cluster):
    future = client.submit(inc, 1, workers=["w0"])
    wait(future)
    address = cluster.worker("w0").address
    other = cluster.worker("w1").address
    assert {k: list(v) for k, v in client.who_has([future]).items()} == {
        future.key: [address]
    }
    has_what = client.has_what()
    assert list(has_what[address]) == [future.key]
    assert list(has_what[other]) == []
    assert list(client.has_what([other])) == [other]


def test_who_has_of_an_unknown_key_is_empty(cluster, client):
    answer = cluster.call("who_has", keys=["never-heard-of"])
    assert {k: list(v) for k, v in answer.items()} == {"never-heard-of": []}


def test_processing_lists_running_tasks(client, cluster, name):
    started, release = name("started"), name("release")
    future = client.submit(signal_and_wait, started, release, workers=["w0"])
    assert Event(started).wait(20)
    processing = client.processing()
    assert list(processing[cluster.worker("w0").address]) == [future.key]
    assert list(processing[cluster.worker("w1").address]) == []
    Event(release).set()
    wait(future)
    eventually(lambda: not cluster.processing())


def test_nbytes_by_key_and_by_prefix(client):
    import numpy as np

    futures = client.map(np.ones, [1000, 2000], pure=False)
    wait(futures)
    by_key = client.nbytes(summary=False)
    assert by_key[futures[0].key] >= 8000
    assert by_key[futures[1].key] >= 16_000
    assert client.nbytes()["ones"] == sum(by_key[f.key] for f in futures)
    assert list(client.nbytes([futures[0].key], summary=False)) == [futures[0].key]


def test_number_of_threads(client, cluster):
    expected = {w.address: 2 for w in cluster.workers}
    assert client.nthreads() == expected
    assert client.ncores() == expected
    assert cluster.call("ncores_running") == expected
    first = cluster.worker("w0").address
    assert client.nthreads([first]) == {first: 2}


def test_scheduler_info_describes_workers(client, cluster):
    info = client.scheduler_info()
    assert info["type"] == "Scheduler"
    assert info["address"] == cluster.address
    assert info["id"].startswith("Scheduler-")
    assert set(info["workers"]) == {w.address for w in cluster.workers}
    for worker in cluster.workers:
        known = info["workers"][worker.address]
        assert known["type"] == "Worker"
        assert known["name"] == worker.name
        assert known["host"] == "127.0.0.1"
        assert known["nthreads"] == 2
        assert known["memory_limit"] == 2 * 2**30
        assert known["status"] == "running"
        assert known["resources"] == {}
        assert known["nanny"] is None
        assert known["local_directory"]
        assert known["last_seen"] > 0
        assert "metrics" in known
        assert "services" in known


def test_identity_counts_without_listing_workers(client, cluster):
    identity = cluster.call("identity", n_workers=0)
    assert identity["workers"] == {}
    assert identity["n_workers"] == 2
    assert identity["total_threads"] == 4
    assert identity["total_memory"] == 4 * 2**30
    assert identity["started"] > 0
    assert "dashboard" in identity["services"]
    assert len(cluster.call("identity", n_workers=1)["workers"]) == 1


def test_client_repr_tells_the_size_of_the_cluster(client, cluster):
    flush(client)
    assert cluster.address in repr(client)
    eventually(lambda: "processes=2 threads=4, memory=4.00 GiB" in repr(client))


def test_metrics_of_workers_come_with_heartbeats(client, cluster):
    def reported():
        return all(
            {"cpu", "memory", "executing", "ready", "managed_bytes"} & set(w["metrics"])
            for w in cluster.identity()["workers"].values()
        )

    eventually(reported)


def test_write_scheduler_file_of_a_client(fresh_cluster, connect, tmp_path):
    import json

    cluster = fresh_cluster(workers=0)
    client = connect(cluster)
    path = tmp_path / "scheduler.json"
    client.write_scheduler_file(str(path))
    assert json.loads(path.read_text())["address"] == cluster.address


def test_dashboard_link(client, cluster):
    port = cluster.identity()["services"]["dashboard"]
    assert client.dashboard_link == f"http://127.0.0.1:{port}/status"


def test_versions_of_every_process(client, cluster):
    import distributed

    versions = client.get_versions(check=True)
    assert set(versions) == {"scheduler", "workers", "client"}
    assert set(versions["workers"]) == {w.address for w in cluster.workers}
    for part in (versions["scheduler"], *versions["workers"].values()):
        assert part["packages"]["distributed"] == distributed.__version__
        assert part["packages"]["python"] == versions["client"]["packages"]["python"]
        assert {"python", "python-bits", "OS", "OS-release", "machine"} <= set(
            part["host"]
        )


def test_versions_of_further_packages(client):
    import numpy

    versions = client.get_versions(packages=["numpy", "surely_not_installed"])
    for part in versions["workers"].values():
        assert part["packages"]["numpy"] == numpy.__version__
        assert part["packages"]["surely_not_installed"] is None


def test_task_stream_records_finished_tasks(client):
    with get_task_stream(client=client) as stream:
        futures = client.map(slow_inc, range(5), pure=False)
        wait(futures)
    eventually(lambda: len(stream.data) >= 5 or client.get_task_stream())
    records = {r["key"]: r for r in stream.data}
    assert set(records) == {f.key for f in futures}
    for record in records.values():
        assert record["status"] == "OK"
        computes = [s for s in record["startstops"] if s["action"] == "compute"]
        assert computes[0]["stop"] - computes[0]["start"] >= 0.019


def test_task_stream_by_count(client):
    # Recorded since somebody asks for it.
    client.get_task_stream()
    wait(client.map(inc, range(10), pure=False))
    assert len(client.get_task_stream(count=3)) == 3


def test_task_stream_has_failed_tasks(client):
    with get_task_stream(client=client) as stream:
        future = client.submit(throws, pure=False)
        wait(future)
    (record,) = stream.data
    assert record["key"] == future.key
    assert record["status"] == "error"


def test_story_of_a_task(client, cluster):
    future = client.submit(inc, 1, pure=False)
    wait(future)
    stories = cluster.call("get_story", keys_or_stimuli=[future.key])
    steps = [(row[1], row[2]) for row in stories]
    assert steps[0] == ("released", "waiting")
    assert steps[-1] == ("processing", "memory")
    assert all(row[0] == future.key for row in stories)


def test_story_of_scheduler_and_workers_together(client):
    future = client.submit(inc, 1, pure=False)
    wait(future)
    story = client.story(future.key)
    assert any("memory" in row for row in story)


def test_call_stack_of_a_running_task(client, name):
    started, release = name("started"), name("release")
    future = client.submit(signal_and_wait, started, release)
    assert Event(started).wait(20)
    # It may still be on its way out of the call that gave the signal.
    eventually(lambda: "wait_for_event" in str(client.call_stack([future])))
    Event(release).set()
    wait(future)


def test_profile_of_the_workers(client):
    futures = client.map(slow_inc, range(20), delay=0.05, pure=False)
    wait(futures)
    tree = eventually(lambda: (lambda t: t if t["count"] else None)(client.profile()))
    assert {"count", "children", "identifier", "description"} <= set(tree)


def test_scheduler_logs(client):
    logs = client.get_scheduler_logs()
    assert any("Register worker" in line for _, line in logs)
    assert {level for level, _ in logs} <= {
        "DEBUG",
        "INFO",
        "WARNING",
        "ERROR",
        "CRITICAL",
    }
    assert len(client.get_scheduler_logs(n=2)) == 2


def test_worker_logs(client, cluster):
    def log(text):
        import logging

        logging.getLogger("distributed.worker").warning(text)

    client.run(log, "a line of the test")
    logs = client.get_worker_logs()
    assert set(logs) == {w.address for w in cluster.workers}
    for lines in logs.values():
        assert any("a line of the test" in line for _, line in lines)


def test_states_of_tasks_by_prefix(client, cluster, name):
    bad = client.submit(throws, pure=False)
    good = client.map(inc, range(3), pure=False)
    wait([bad, *good])
    states = cluster.call("get_task_prefix_states")
    assert states["inc"]["memory"] == 3
    assert states["throws"]["erred"] == 1


def test_status_of_tasks(client, cluster, name):
    started, release = name("started"), name("release")
    running = client.submit(signal_and_wait, started, release)
    waiting = client.submit(inc, running)
    assert Event(started).wait(20)
    eventually(lambda: cluster.knows(waiting.key))
    statuses = cluster.call(
        "get_task_status", keys=[running.key, waiting.key, "unknown"]
    )
    assert statuses == {
        running.key: "processing",
        waiting.key: "waiting",
        "unknown": None,
    }
    Event(release).set()
    wait(running)


# Functions run on workers


def test_run_on_every_worker(client, cluster):
    pids = client.run(os.getpid)
    assert set(pids) == {w.address for w in cluster.workers}
    assert set(pids.values()) == {w.process.pid for w in cluster.workers}


def test_run_with_arguments_on_one_worker(client, cluster):
    address = cluster.worker("w1").address
    result = client.run(lambda a, b=0: a + b, 1, b=2, workers=[address])
    assert result == {address: 3}


def test_run_passes_the_worker(client, cluster):
    names = client.run(lambda dask_worker: dask_worker.name)
    assert names == {w.address: w.name for w in cluster.workers}


def test_run_of_a_coroutine(client, cluster):
    async def answer():
        return "from a coroutine"

    assert set(client.run(answer).values()) == {"from a coroutine"}


def test_run_of_a_coroutine_without_waiting(client, tmp_path):
    path = tmp_path / "ran"

    async def run():
        path.touch()

    client.run(run, wait=False)
    eventually(path.exists)


def test_run_error_is_raised(client):
    with pytest.raises(ZeroDivisionError):
        client.run(lambda: 1 / 0)


def test_run_error_is_returned(client, cluster):
    address = cluster.worker("w0").address

    def fail_on_first(dask_worker):
        if dask_worker.name == "w0":
            raise ValueError("only here")
        return "fine"

    result = client.run(fail_on_first, on_error="return")
    assert isinstance(result[address], ValueError)
    assert result[cluster.worker("w1").address] == "fine"


def test_run_error_is_ignored(client, cluster):
    def fail_on_first(dask_worker):
        if dask_worker.name == "w0":
            raise ValueError("only here")
        return "fine"

    result = client.run(fail_on_first, on_error="ignore")
    assert result == {cluster.worker("w1").address: "fine"}


def test_run_on_an_unreachable_worker(fresh_cluster, connect):
    cluster = fresh_cluster(
        workers=1, config={"distributed.comm.timeouts.connect": "300ms"}
    )
    client = connect(cluster)
    nobody = "tcp://127.0.0.1:1"
    with pytest.raises(OSError, match=r"127\.0\.0\.1:1"):
        client.run(os.getpid, workers=[nobody])
    result = client.run(os.getpid, workers=[nobody], on_error="return")
    assert isinstance(result[nobody], OSError)
    assert client.run(os.getpid, workers=[nobody], on_error="ignore") == {}


def test_run_result_that_cannot_be_pickled(client):
    with pytest.raises(Exception, match=r"pickle|serialize"):
        client.run(FailsToPickle)
    assert client.submit(inc, 1).result() == 2


def test_run_on_nannies(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1, nanny=True)
    client = connect(cluster)
    worker = cluster.worker("w0")
    # Oxidask's nanny has a process for its Python.
    nanny = worker.process.pid
    [(address, (pid, parent))] = client.run(
        lambda: (os.getpid(), os.getppid()), nanny=True
    ).items()
    assert address == worker.address
    assert nanny in (pid, parent)
    assert client.run(os.getpid)[worker.address] not in (nanny, pid)


# Events and logging


def test_logged_events_are_kept(client, name):
    topic = name("topic")
    for i in range(3):
        client.log_event(topic, {"number": i})
    events = client.get_events(topic)
    assert [message["number"] for _, message in events] == [0, 1, 2]
    assert all(isinstance(stamp, float) for stamp, _ in events)


def test_event_under_several_topics(client, name):
    topics = [name("a"), name("b")]
    client.log_event(topics, "both")
    for topic in topics:
        assert [message for _, message in client.get_events(topic)] == ["both"]


def test_events_of_an_unknown_topic(client, name):
    assert list(client.get_events(name("topic"))) == []


def test_events_logged_by_tasks(client, cluster, name):
    topic = name("topic")

    def log(topic):
        get_worker().log_event(topic, {"hello": "world"})

    client.submit(log, topic, workers=["w0"]).result()
    events = eventually(lambda: client.get_events(topic))
    assert events[0][1] == {"hello": "world", "worker": cluster.worker("w0").address}


def test_subscriber_hears_events(client, name):
    import queue

    topic, heard = name("topic"), queue.Queue()
    client.subscribe_topic(topic, heard.put)
    flush(client)
    for i in range(3):
        client.log_event(topic, i)
    assert [heard.get(timeout=20)[1] for _ in range(3)] == [0, 1, 2]
    client.unsubscribe_topic(topic)


def test_unsubscribed_handler_hears_no_more(client, cluster, connect, name):
    import queue

    topic, heard, other_heard = name("topic"), queue.Queue(), queue.Queue()
    other = connect(cluster, set_as_default=False)
    client.subscribe_topic(topic, heard.put)
    other.subscribe_topic(topic, other_heard.put)
    flush(client)
    flush(other)
    client.log_event(topic, 1)
    assert heard.get(timeout=20)[1] == 1
    assert other_heard.get(timeout=20)[1] == 1
    client.unsubscribe_topic(topic)
    flush(client)
    client.log_event(topic, 2)
    assert other_heard.get(timeout=20)[1] == 2
    assert heard.empty()


def test_print_in_a_task_reaches_the_client(client, capsys):
    from distributed import print as distributed_print

    client.submit(distributed_print, "hello from a task", pure=False).result()
    eventually(lambda: "hello from a task" in capsys.readouterr().out)


def test_warning_in_a_task_reaches_the_client(client):
    import warnings

    from distributed import warn as distributed_warn

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client.submit(distributed_warn, "careful now", pure=False).result()
        eventually(lambda: any("careful now" in str(w.message) for w in caught))


def test_joining_workers_are_an_event(client, cluster):
    events = client.get_events("all")
    added = {m["worker"] for _, m in events if m.get("action") == "add-worker"}
    assert added >= {w.address for w in cluster.workers}


def test_event_log_is_bounded(fresh_cluster, connect):
    cluster = fresh_cluster(
        workers=0, config={"distributed.admin.low-level-log-length": 10}
    )
    client = connect(cluster)
    for i in range(25):
        client.log_event("numbers", i)
    assert [m for _, m in client.get_events("numbers")] == list(range(15, 25))


def test_forwarded_logging_of_workers(client):
    import logging

    records = []

    class Collect(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    logger = logging.getLogger("conformance.forwarded")
    handler = Collect()
    logger.addHandler(handler)

    def log():
        import logging

        logging.getLogger("conformance.forwarded").error("forwarded line")

    client.forward_logging("conformance.forwarded")
    try:
        client.submit(log, pure=False).result()
        eventually(lambda: "forwarded line" in records)
    finally:
        client.unforward_logging("conformance.forwarded")
        logger.removeHandler(handler)


# Scaling


def test_adaptive_target_follows_the_work(fresh_cluster, connect, name):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    assert cluster.call("adaptive_target") in (0, 1)
    release = name("release")
    futures = client.map(lambda i: wait_for_event(release, i), range(50), pure=False)
    eventually(lambda: len(cluster.tasks()) == 50)
    assert cluster.call("adaptive_target", target_duration="1s") > 1
    Event(release).set()
    wait(futures)


def test_adaptive_target_without_workers(fresh_cluster, connect):
    cluster = fresh_cluster(workers=0)
    client = connect(cluster)
    assert cluster.call("adaptive_target") == 0
    future = client.submit(inc, 1)
    eventually(lambda: cluster.call("adaptive_target") == 1)
    assert not future.done()


def test_workers_to_close_names_idle_workers(fresh_cluster, connect, name):
    cluster = fresh_cluster(workers=3)
    client = connect(cluster)
    started, release = name("started"), name("release")
    future = client.submit(signal_and_wait, started, release, workers=["w1"])
    assert Event(started).wait(20)
    closing = cluster.call("workers_to_close", n=2, attribute="name")
    assert set(closing) == {"w0", "w2"}
    assert set(cluster.call("workers_to_close", target=1, attribute="name")) == {
        "w0",
        "w2",
    }
    assert len(cluster.call("workers_to_close", n=1)) == 1
    Event(release).set()
    wait(future)


def test_workers_to_close_keeps_the_minimum(fresh_cluster, connect):
    cluster = fresh_cluster(workers=3)
    connect(cluster)
    assert len(cluster.call("workers_to_close", minimum=2)) <= 1
    assert len(cluster.call("workers_to_close", memory_ratio=2)) >= 2


def test_subscriber_of_worker_status(fresh_cluster):
    """What cluster objects listen to."""
    import asyncio

    from distributed.core import connect as connect_comm

    cluster = fresh_cluster(workers=1)

    async def listen():
        comm = await connect_comm(cluster.address)
        await comm.write({"op": "subscribe_worker_status"})
        first = await comm.read()
        messages = []
        await asyncio.to_thread(cluster.add_worker, name="late")
        while not any(m[0] == "add" for m in messages):
            messages += await asyncio.wait_for(comm.read(), 20)
        added = [m for m in messages if m[0] == "add"]
        address = cluster.worker("late").address
        await asyncio.to_thread(cluster.kill_worker, cluster.worker("late"))
        while not any(m[0] == "remove" for m in messages):
            messages += await asyncio.wait_for(comm.read(), 20)
        comm.abort()
        return first, added, address, [m for m in messages if m[0] == "remove"]

    first, added, address, removed = asyncio.run(listen())
    assert list(first["workers"]) == [cluster.worker("w0").address]
    assert added[0][1]["workers"][address]["name"] == "late"
    assert removed[0][1] == address


def test_cluster_manager_info_is_kept(client, cluster):
    assert (
        cluster.call("get_metadata", keys=["cluster-manager-info-test"], default={})
        == {}
    )
    cluster.call(
        "set_metadata", keys=["cluster-manager-info-test"], value={"type": "x"}
    )
    assert client.get_metadata("cluster-manager-info-test") == {"type": "x"}


# Memory sampler


def test_memory_sampler_takes_the_first_sample_at_once(client):
    sampler = MemorySampler()
    with sampler.sample("first", measure="managed", interval=3600):
        pass
    [(timestamp, nbytes)] = sampler.samples["first"]
    assert abs(timestamp - time.time()) < 3600
    assert nbytes >= 0


def test_memory_sampler_sees_memory_come(client):
    sampler = MemorySampler()
    with sampler.sample("growth", measure="process", interval=0.01):
        before = reported_memory(client, "w0")
        future = client.submit(bytearray, 50_000_000, workers=["w0"])
        wait(future)
        eventually(lambda: reported_memory(client, "w0") > before + 25_000_000)
        # A task that lasts some samples longer.
        wait(client.submit(time.sleep, 0.1, workers=["w0"]))
    series = [nbytes for _, nbytes in sampler.samples["growth"]]
    assert max(series) > series[0] + 25_000_000
    times = [timestamp for timestamp, _ in sampler.samples["growth"]]
    assert times == sorted(times)


def reported_memory(client, name):
    """What the scheduler knows of a worker's memory."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return next(w["metrics"]["memory"] for w in workers if w["name"] == name)


def test_memory_sampler_refuses_unknown_measures(client):
    sampler = MemorySampler()
    with (
        pytest.raises(AttributeError, match="has no attribute 'nonesuch'"),
        sampler.sample("unknown", measure="nonesuch"),
    ):
        pass
    assert sampler.samples == {}


def test_benchmark_hardware_without_workers(fresh_cluster, connect):
    client = connect(fresh_cluster(workers=0))
    assert client.benchmark_hardware() == {"memory": {}, "disk": {}, "network": {}}


def test_benchmark_hardware_measures_all_three(cluster, client):
    result = client.benchmark_hardware()
    assert set(result) == {"memory", "disk", "network"}
    for bandwidths in result.values():
        assert "1 MiB" in bandwidths
        assert all(isinstance(value, float) for value in bandwidths.values())
        assert all(value > 0 for value in bandwidths.values())
