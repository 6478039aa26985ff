"""Dumps of the whole state, and what distributed makes of them."""

from __future__ import annotations

import pytest
import yaml
from cluster import call
from conformance_tasks import inc, signal_and_wait, throws
from distributed import Event, wait
from distributed.cluster_dump import DumpArtefact

FORMATS = {"msgpack": ".msgpack.gz", "yaml": ".yaml"}


def dump(client, folder, format="msgpack", **options):
    path = folder / "dump"
    client.dump_cluster_state(str(path), format=format, **options)
    return DumpArtefact.from_url(str(path) + FORMATS[format])


def addresses(cluster):
    return {worker.address for worker in cluster.workers}


@pytest.fixture
def work(client, name):
    """A task in memory, one that failed and one at work, by their states."""
    done = client.submit(inc, 1, key=name("done"))
    failed = client.submit(throws, "on purpose", key=name("failed"))
    started, release = name("started"), name("release")
    busy = client.submit(signal_and_wait, started, release, key=name("busy"))
    wait([done, failed])
    assert Event(started, client=client).wait(20)
    yield {"memory": done, "erred": failed, "processing": busy}
    Event(release, client=client).set()
    wait(busy)


@pytest.mark.parametrize("from_scheduler", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_tasks_in_a_dump(client, cluster, work, tmp_path, format, from_scheduler):
    artefact = dump(client, tmp_path, format, write_from_scheduler=from_scheduler)
    assert set(artefact) == {"scheduler", "workers", "versions"}
    for state, future in work.items():
        [task] = [
            task
            for task in artefact.scheduler_tasks_in_state(state)
            if task["key"] == future.key
        ]
        assert task["state"] == state
        assert any("Client-" in client for client in task["who_wants"])
    tasks = artefact["scheduler"]["tasks"]
    done, failed, busy = (tasks[future.key] for future in work.values())
    [holder] = done["who_has"]
    assert holder.split("'")[1] in addresses(cluster)
    assert done["type"] == "int"
    assert done["nbytes"] == 28
    assert failed["exception_text"] == "RuntimeError('on purpose')"
    assert "in throws" in failed["traceback_text"]
    assert "<WorkerState 'tcp://" in busy["processing_on"]
    assert {task["key"] for task in artefact.worker_tasks_in_state("memory")} == {
        work["memory"].key
    }
    assert {task["key"] for task in artefact.worker_tasks_in_state("executing")} == {
        work["processing"].key
    }


def test_stories_in_a_dump(fresh_cluster, connect, tmp_path):
    # No other test may have left keys that are tuples: distributed cannot search those.
    client = connect(fresh_cluster(workers=1))
    future = client.submit(inc, 1)
    wait(future)
    artefact = dump(client, tmp_path)
    key = future.key
    story = artefact.scheduler_story(key)
    assert [(start, finish) for _, start, finish, *_ in story[key]] == [
        ("released", "waiting"),
        ("waiting", "processing"),
        ("processing", "memory"),
    ]
    assert any(
        "compute-task" in str(entry) for entry in artefact.worker_story(key)[key]
    )
    assert artefact.scheduler_story("nothing-of-this-name") == {}


def test_workers_in_a_dump(client, cluster, work, tmp_path):
    artefact = dump(client, tmp_path)
    expected = addresses(cluster)
    assert artefact["workers"].keys() == expected
    assert artefact.missing_workers() == []
    workers = artefact["scheduler"]["workers"]
    assert workers.keys() == expected
    assert {worker["name"] for worker in workers.values()} == {"w0", "w1"}
    for worker in workers.values():
        assert worker["nthreads"] == 2
        assert worker["memory"]["process"] > 0
        assert "versions" not in worker
    versions = artefact["versions"]
    assert versions["workers"].keys() == expected
    assert set(versions["scheduler"]) == {"host", "packages"}


def test_the_scheduler_in_a_dump(client, cluster, work, tmp_path):
    client.log_event("topic-of-the-dump", {"a": 1})
    scheduler = dump(client, tmp_path)["scheduler"]
    assert scheduler["type"] == "Scheduler"
    assert scheduler["address"] == cluster.address
    assert scheduler["status"] == "running"
    assert scheduler["transition_counter"] >= 5
    assert scheduler["memory"]["process"] > 0
    assert "topic-of-the-dump" in scheduler["events"]
    assert client.id in scheduler["clients"]
    assert {"spans", "stealing", "shuffle"} <= set(scheduler["extensions"])
    group = scheduler["task_groups"][work["memory"].key.split("-")[0]]
    assert group["states"]["memory"] == 1
    assert group["nbytes_total"] == 28


def test_what_is_excluded(client, work, tmp_path):
    artefact = dump(client, tmp_path)
    for task in artefact.scheduler_tasks_in_state():
        assert "run_spec" not in task
        assert "state" in task
    artefact = dump(client, tmp_path, exclude=["state", "events", "logs"])
    assert "events" not in artefact["scheduler"]
    assert artefact["scheduler"]["tasks"]
    for task in artefact["scheduler"]["tasks"].values():
        assert "state" not in task
    for worker in artefact["workers"].values():
        assert "logs" not in worker
        assert all("state" not in task for task in worker["tasks"].values())


def test_keys_of_any_kind(client, name, tmp_path):
    keys = [(name("tuple"), 0), name("text")]
    futures = [client.submit(inc, i, key=key) for i, key in enumerate(keys)]
    wait(futures)
    tasks = dump(client, tmp_path, "yaml")["scheduler"]["tasks"]
    assert set(tasks) == {str(list(keys[0])), keys[1]}


def test_a_tree_of_files(client, cluster, work, tmp_path):
    artefact = dump(client, tmp_path)
    artefact.to_yamls(tmp_path / "tree")
    folders = {path.name for path in (tmp_path / "tree").iterdir()}
    workers = {worker["id"] for worker in artefact["workers"].values()}
    assert len(workers) == 2
    assert folders == {"scheduler", *workers}
    tasks = yaml.safe_load((tmp_path / "tree" / "scheduler" / "tasks.yaml").read_text())
    assert work["memory"].key in tasks
    log = (tmp_path / "tree" / "scheduler" / "transition_log.yaml").read_text()
    assert work["memory"].key in log


def test_a_worker_that_cannot_tell(fresh_cluster, connect, tmp_path):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    refusing = {"distributed.worker.blocked-handlers": ["dump_state"]}
    broken = cluster.add_worker(config=refusing).address
    artefact = dump(client, tmp_path)
    assert artefact.missing_workers() == [broken]
    assert "explicitly disallowed" in artefact["workers"][broken]


def test_a_url(client, cluster, tmp_path):
    client.dump_cluster_state(f"file://{tmp_path}/by-url", format="yaml")
    artefact = DumpArtefact.from_url(str(tmp_path / "by-url.yaml"))
    assert artefact["workers"].keys() == addresses(cluster)


def test_a_url_that_nobody_can_write(client):
    with pytest.raises((ValueError, OSError)):
        client.dump_cluster_state("no-such-protocol://somewhere/dump")


@pytest.mark.parametrize("from_scheduler", [False, True])
def test_an_unknown_format(client, tmp_path, from_scheduler):
    with pytest.raises(ValueError, match="Unsupported format 'json'"):
        client.dump_cluster_state(
            str(tmp_path / "dump"), format="json", write_from_scheduler=from_scheduler
        )


def test_the_state_itself(cluster, client, work):
    state = call(cluster.address, "get_cluster_state", exclude=["events"])
    assert set(state) == {"scheduler", "workers", "versions"}
    assert work["memory"].key in state["scheduler"]["tasks"]


def test_a_dump_by_a_function(client, work, tmp_path):
    async def write(url, dask_scheduler):
        await dask_scheduler.dump_cluster_state_to_url(url, exclude=(), format="yaml")

    client.run_on_scheduler(write, f"file://{tmp_path}/by-function")
    artefact = DumpArtefact.from_url(str(tmp_path / "by-function.yaml"))
    assert work["erred"].key in artefact["scheduler"]["tasks"]


def test_the_state_of_the_scheduler_alone(cluster, client, work):
    state = call(cluster.address, "dump_state", exclude=["events"])
    assert state["type"] == "Scheduler"
    assert work["memory"].key in state["tasks"]
    assert "events" not in state
