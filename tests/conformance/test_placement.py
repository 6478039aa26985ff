"""Where tasks run and in which order: restrictions, resources, priorities, queuing."""

from __future__ import annotations

import gc
from itertools import pairwise

import dask
import pytest
from cluster import eventually
from conformance_tasks import (
    add,
    append_line,
    inc,
    total,
    wait_for_event,
    worker_address,
    worker_name,
)
from dask import delayed
from distributed import Event, Future, Lock, Semaphore, get_client, secede, wait


def lines(path):
    return path.read_text().split()


class Gate:
    """A task that others depend on, so that all become ready in one instant.

    `open` first waits until the scheduler knows every one of them.
    """

    def __init__(self, client, cluster, name):
        self._cluster = cluster
        self._release = name("release")
        self.task = client.submit(wait_for_event, self._release, key=name("gate"))

    def open(self, *futures):
        eventually(lambda: self._cluster.knows(*(f.key for f in futures)))
        Event(self._release).set()
        wait(futures)


@pytest.fixture
def gate(single_client, single_cluster, name):
    return Gate(single_client, single_cluster, name)


# Restrictions


def test_worker_restriction_by_alias(client):
    """Pitfall 17: a name of a worker, not of a host."""
    for worker in ("w0", "w1"):
        futures = client.map(worker_name, range(5), workers=[worker], pure=False)
        assert set(client.gather(futures)) == {worker}


def test_worker_restriction_by_address(client, cluster):
    address = cluster.worker("w1").address
    futures = client.map(worker_address, range(5), workers=address, pure=False)
    assert set(client.gather(futures)) == {address}


def test_worker_restriction_by_host(client):
    """Pitfall 17: the host matches every worker on it."""
    futures = client.map(worker_name, range(20), workers=["127.0.0.1"], pure=False)
    assert set(client.gather(futures)) == {"w0", "w1"}


def test_worker_restriction_to_several_workers(client):
    futures = client.map(worker_name, range(20), workers=["w0", "w1"], pure=False)
    assert set(client.gather(futures)) == {"w0", "w1"}


def test_task_restricted_to_an_unknown_host_waits(client, cluster, name):
    """Pitfall 17: an unknown text is a host that has no worker yet."""
    key = name("nowhere")
    future = client.submit(inc, 1, workers=["no-such-host"], key=key)
    eventually(lambda: cluster.knows(key))
    assert key not in cluster.processing()
    assert not future.done()


def test_unknown_host_with_other_workers_allowed_runs_anywhere(client):
    """Pitfall 17: a loose restriction."""
    future = client.submit(inc, 1, workers=["no-such-host"], allow_other_workers=True)
    assert future.result(timeout=20) == 2


def test_allowed_other_workers_are_not_used_while_the_named_one_lives(client):
    futures = client.map(
        worker_name, range(6), workers=["w1"], allow_other_workers=True, pure=False
    )
    assert set(client.gather(futures)) == {"w1"}


def test_task_waits_for_a_worker_with_the_right_name(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    future = client.submit(worker_name, workers=["late"], key="waits")
    eventually(lambda: cluster.knows("waits"))
    assert not cluster.processing()
    # What was unknown at submission counts as a host, and a name stands for its host.
    cluster.add_worker(name="late")
    assert future.result(timeout=20) in ("w0", "late")


def test_tasks_submitted_before_any_worker_run_when_one_comes(fresh_cluster, connect):
    cluster = fresh_cluster(workers=0)
    client = connect(cluster)
    futures = client.map(inc, range(10))
    total_of_all = client.submit(total, futures)
    cluster.add_worker()
    assert total_of_all.result(timeout=20) == 55


def test_workers_keyword_of_compute_and_persist(client):
    values = [delayed(worker_name)(i, dask_key_name=f"where-{i}") for i in range(3)]
    assert set(client.gather(client.compute(values, workers=["w0"]))) == {"w0"}
    values = [delayed(worker_name)(i) for i in range(3)]
    assert set(
        client.gather(client.compute(client.persist(values, workers=["w1"])))
    ) == {"w1"}


def test_annotation_with_a_function_of_the_key(client):
    """A callable annotation is evaluated for each key."""
    with dask.annotate(workers=lambda key: ["w1"] if key.endswith("odd") else ["w0"]):
        odd = delayed(worker_name)(dask_key_name="callable-odd")
        even = delayed(worker_name)(dask_key_name="callable-even")
    assert dask.compute(odd, even, optimize_graph=False) == ("w1", "w0")


def test_global_annotation_around_submit_and_map(client):
    with dask.annotate(workers=["w1"]):
        future = client.submit(worker_name, pure=False)
        futures = client.map(worker_name, range(4), pure=False)
    assert set(client.gather([future, *futures])) == {"w1"}


def test_layer_annotation_wins_over_the_one_around_compute(client):
    """Pitfall 16."""
    with dask.annotate(workers=["w0"]):
        inner = delayed(worker_name)(1)
    with dask.annotate(workers=["w1"]):
        outer = delayed(worker_name)(2)
        assert dask.compute(inner, outer, optimize_graph=False) == ("w0", "w1")


def test_annotations_of_a_known_key_do_not_change(client, name):
    """Pitfall 16: resubmission with other restrictions leaves the task as it was."""
    release, key = name("release"), name("key")
    blocker = client.submit(wait_for_event, release)
    first = client.submit(worker_name, blocker, workers=["w0"], key=key)
    second = client.submit(worker_name, blocker, workers=["w1"], key=key)
    Event(release).set()
    assert first.result() == second.result() == "w0"


def test_user_annotations_reach_the_worker(client):
    from distributed import get_worker

    def annotations(key):
        return dict(get_worker().state.tasks[key].annotations)

    with dask.annotate(project="aurora", level={"deep": [1, 2]}):
        future = client.submit(annotations, "annotated", key="annotated")
    got = future.result()
    assert got["project"] == "aurora"
    assert got["level"] in ({"deep": [1, 2]}, {"deep": (1, 2)})


def test_task_goes_to_the_worker_that_has_its_data(client):
    """Moving a large argument costs more than waiting a little."""
    import numpy as np

    data = client.submit(np.ones, 2_000_000, workers=["w1"])
    wait(data)
    futures = client.map(lambda i, data: worker_name(), range(3), data=data, pure=False)
    assert client.gather(futures[:1]) == ["w1"]


# Resources


def test_resource_restriction_picks_the_worker_that_has_it(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, resources=[None, "GPU=1"])
    client = connect(cluster)
    futures = client.map(worker_name, range(4), resources={"GPU": 1}, pure=False)
    assert set(client.gather(futures)) == {"w1"}


def test_resource_larger_than_any_worker_has_waits(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1, resources="GPU=1")
    client = connect(cluster)
    future = client.submit(inc, 1, resources={"GPU": 2}, key="greedy")
    eventually(lambda: cluster.knows("greedy"))
    assert not cluster.processing()
    cluster.add_worker(resources="GPU=2")
    assert future.result(timeout=20) == 2


def test_resource_limits_how_many_tasks_run_at_once(fresh_cluster, connect, name):
    """Pitfall 18: all are sent to the worker, which runs them one by one."""
    cluster = fresh_cluster(workers=1, nthreads=4, resources="GPU=1")
    client = connect(cluster)
    lock, release = name("lock"), name("release")

    def exclusive(i, lock, release):
        mine = Lock(lock)
        if not mine.acquire(blocking=False):
            return "overlap"
        Event(release).wait(20)
        mine.release()
        return "alone"

    futures = client.map(
        exclusive, range(3), lock=lock, release=release, resources={"GPU": 1}
    )
    address = cluster.worker("w0").address
    eventually(lambda: len(cluster.call("processing")[address]) == 3)
    Event(release).set()
    assert client.gather(futures) == ["alone"] * 3


def test_resources_by_annotation_in_a_collection(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, resources=["MEMORY=10", None])
    connect(cluster)
    with dask.annotate(resources={"MEMORY": 10}):
        values = [delayed(worker_name)(i) for i in range(4)]
    assert set(dask.compute(*values, optimize_graph=False)) == {"w0"}


def test_resources_are_told_by_the_scheduler(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1, resources="GPU=2 DISK=5e3")
    client = connect(cluster)
    (info,) = client.scheduler_info()["workers"].values()
    assert info["resources"] == {"GPU": 2, "DISK": 5000}


# Priorities


def test_first_submitted_runs_first_at_equal_priority(single_client, gate, tmp_path):
    """Pitfall 2: one worker, one thread: execution order is priority order."""
    path = tmp_path / "order"
    futures = [
        single_client.submit(
            append_line, str(path), i, gate.task, fifo_timeout="0 ms", pure=False
        )
        for i in range(8)
    ]
    gate.open(*futures)
    assert lines(path) == [str(i) for i in range(8)]


def test_map_runs_in_the_order_of_its_items(single_client, gate, tmp_path):
    """Pitfall 2: 50 dependents of one task become ready together."""
    path = tmp_path / "order"
    futures = single_client.map(
        lambda i, after: append_line(str(path), i), range(50), after=gate.task
    )
    gate.open(*futures)
    assert lines(path) == [str(i) for i in range(50)]


def test_root_tasks_run_in_the_order_of_their_items(single_client, tmp_path):
    path = tmp_path / "order"
    futures = single_client.map(
        lambda i: append_line(str(path), i), range(50), pure=False
    )
    wait(futures)
    assert lines(path) == [str(i) for i in range(50)]


def test_user_priority_comes_first(single_client, gate, tmp_path, name):
    path = tmp_path / "order"
    gate.open(
        *(
            single_client.submit(
                append_line,
                str(path),
                label,
                gate.task,
                priority=priority,
                key=name(label),
            )
            for label, priority in [("low", -5), ("normal", 0), ("high", 5)]
        )
    )
    assert lines(path) == ["high", "normal", "low"]


def test_priority_by_annotation_and_by_compute_keyword(
    single_client, gate, tmp_path, name
):
    path = tmp_path / "order"

    def value(label):
        return delayed(append_line)(
            str(path), label, gate.task, dask_key_name=name(label)
        )

    with dask.annotate(priority=-1):
        annotated = value("annotated")
    gate.open(
        single_client.compute(annotated, optimize_graph=False),
        single_client.compute(value("plain")),
        single_client.compute(value("keyword"), priority=7),
    )
    assert lines(path) == ["keyword", "plain", "annotated"]


def test_priority_by_a_function_of_the_key(single_client, gate, tmp_path, name):
    path = tmp_path / "order"
    prefix = name("by-key")
    with dask.annotate(priority=lambda key: int(key.rsplit("-", 1)[1])):
        values = [
            delayed(append_line)(str(path), i, gate.task, dask_key_name=f"{prefix}-{i}")
            for i in range(5)
        ]
    gate.open(*single_client.compute(values, optimize_graph=False))
    assert lines(path) == ["4", "3", "2", "1", "0"]


def batches(client, gate, path, **kwargs):
    """Two graphs of five tasks each, submitted one after another."""
    return [
        future
        for label in "AB"
        for future in client.map(
            lambda i, after, label=label: append_line(str(path), f"{label}{i}"),
            range(5),
            after=gate.task,
            **kwargs,
        )
    ]


def test_work_within_the_fifo_timeout_shares_a_generation(
    single_client, gate, tmp_path
):
    """Pitfall 15: graphs of one generation are ordered by their tasks, not by arrival."""
    path = tmp_path / "order"
    gate.open(*batches(single_client, gate, path, fifo_timeout="1 hour"))
    assert [line[1] for line in lines(path)] == list("0011223344")


def test_work_after_the_fifo_timeout_comes_later(single_client, gate, tmp_path):
    """Pitfall 15: a new generation runs after everything of the one before."""
    path = tmp_path / "order"
    gate.open(*batches(single_client, gate, path, fifo_timeout="0 ms"))
    assert lines(path) == [f"{label}{i}" for label in "AB" for i in range(5)]


def test_generations_are_common_to_all_clients(
    single_client, single_cluster, connect, gate, tmp_path
):
    """Pitfall 15: a client's long timeout is measured from any client's last generation."""
    path = tmp_path / "order"
    other = connect(single_cluster, set_as_default=False)
    first = single_client.map(
        lambda i, after: append_line(str(path), f"A{i}"),
        range(5),
        after=gate.task,
        fifo_timeout="0 ms",
    )
    eventually(lambda: single_cluster.knows(*(f.key for f in first)))
    dependency = Future(gate.task.key, other)
    second = other.map(
        lambda i, after: append_line(str(path), f"B{i}"),
        range(5),
        after=dependency,
        fifo_timeout="1 hour",
    )
    gate.open(*first, *second)
    assert [line[1] for line in lines(path)] == list("0011223344")


def test_tasks_submitted_by_a_task_come_before_later_work(
    single_client, single_cluster, tmp_path, name
):
    """Pitfall 14: their priority is derived from the submitting task's."""
    path = tmp_path / "order"
    started, release = name("started"), name("release")
    child = name("child")

    def parent():
        future = get_client().submit(append_line, str(path), "child", key=child)
        wait_for_event(release)
        return future

    first = single_client.submit(
        lambda: (Event(started).set(), parent())[1], key=name("parent")
    )
    assert Event(started).wait(20)
    later = single_client.map(
        lambda i: append_line(str(path), f"later{i}"),
        range(20),
        fifo_timeout="0 ms",
        pure=False,
    )
    eventually(lambda: single_cluster.knows(child, later[-1].key))
    Event(release).set()
    wait([first, *later])
    eventually(lambda: "child" in lines(path))
    assert lines(path).index("child") <= 5


def test_depth_first_order_of_a_fan_in(single_client, gate, tmp_path):
    """Pitfall 1: sums run when their parts are there, before all other parts."""
    path = tmp_path / "order"

    def record(label, *args):
        # Not plain text: many of those take no memory that is worth a wait.
        return [append_line(str(path), label)]

    graph = {}
    for group in range(6):
        for leaf in range(3):
            graph[f"leaf-{group}-{leaf}"] = (record, f"L{group}", gate.task.key)
        graph[f"sum-{group}"] = (
            record,
            f"S{group}",
            *(f"leaf-{group}-{i}" for i in range(3)),
        )
    graph["top"] = (record, "TOP", *(f"sum-{g}" for g in range(6)))
    gate.open(single_client.get(graph, "top", sync=False))
    order = lines(path)
    assert order[-1] == "TOP"
    assert len(order) == 25
    held = peak = 0
    for line in order[:-1]:
        held += 1 if line.startswith("L") else -3
        peak = max(peak, held)
    # Breadth first would hold all 18 parts; three and what is on its way are needed.
    assert peak <= 8, order


# Queuing


def test_many_root_tasks_all_run(client):
    """Pitfall 10: queued tasks never leave the heap if slots are not looked at again."""
    futures = client.map(inc, range(3000), pure=False)
    assert sum(client.gather(futures)) == sum(range(1, 3001))


def test_release_of_half_of_the_queued_tasks(client, name):
    """Pitfall 10: the other half still runs."""
    release = name("release")
    futures = client.map(lambda i: wait_for_event(release, i), range(200), pure=False)
    kept = futures[::2]
    del futures
    gc.collect()
    Event(release).set()
    assert client.gather(kept) == list(range(0, 200, 2))


def test_root_tasks_beyond_the_slots_wait_at_the_scheduler(
    fresh_cluster, connect, name
):
    """Pitfall 11: max(ceil(1.1 * 4), 1) = 5 for a worker with four threads."""
    cluster = fresh_cluster(workers=1, nthreads=4)
    client = connect(cluster)
    release = name("release")
    futures = client.map(lambda i: wait_for_event(release, i), range(40), pure=False)
    address = cluster.worker("w0").address
    eventually(lambda: len(cluster.call("processing")[address]) == 5)
    assert cluster.knows(*(f.key for f in futures))
    Event(release).set()
    assert client.gather(futures) == list(range(40))


def test_task_that_seceded_frees_a_slot(fresh_cluster, connect, name):
    """Pitfall 11: a long-running task uses no slot, so a sixth one is sent."""
    cluster = fresh_cluster(workers=1, nthreads=4)
    client = connect(cluster)
    release = name("release")

    def run(i, release):
        if i == 0:
            secede()
        return wait_for_event(release, i)

    futures = client.map(run, range(40), release=release, pure=False)
    address = cluster.worker("w0").address
    eventually(lambda: len(cluster.call("processing")[address]) == 6)
    Event(release).set()
    assert client.gather(futures) == list(range(40))


@pytest.mark.parametrize(("saturation", "sent"), [("inf", 40), (2.0, 4), (0.5, 1)])
def test_worker_saturation_setting(fresh_cluster, connect, name, saturation, sent):
    """Pitfall 11: infinity means no queue; at least one task is sent."""
    cluster = fresh_cluster(
        workers=1,
        nthreads=2,
        config={"distributed.scheduler.worker-saturation": saturation},
    )
    client = connect(cluster)
    release = name("release")
    futures = client.map(lambda i: wait_for_event(release, i), range(40), pure=False)
    address = cluster.worker("w0").address
    eventually(lambda: len(cluster.call("processing")[address]) == sent)
    Event(release).set()
    assert client.gather(futures) == list(range(40))


def test_queued_tasks_go_to_a_worker_that_joins(fresh_cluster, connect, name):
    """Pitfall 10: slots open when a worker is added."""
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    release = name("release")

    def run(i):
        wait_for_event(release)
        return worker_name()

    futures = client.map(run, range(20), pure=False)
    eventually(
        lambda: len(cluster.call("processing")[cluster.worker("w0").address]) == 2
    )
    late = cluster.add_worker(name="late")
    eventually(lambda: len(cluster.call("processing")[late.address]) == 2)
    Event(release).set()
    assert set(client.gather(futures)) == {"w0", "late"}


def test_failing_queued_tasks_free_their_slots(client):
    def fail_odd(i):
        if i % 2:
            raise ValueError(i)
        return i

    futures = client.map(fail_odd, range(100), pure=False)
    wait(futures)
    assert [f.status for f in futures] == ["finished", "error"] * 50


def test_cancelled_queued_tasks_leave_the_queue(client, cluster, name):
    release = name("release")
    futures = client.map(lambda i: wait_for_event(release, i), range(60), pure=False)
    other = client.submit(inc, 1, priority=-10)
    client.cancel(futures[10:])
    Event(release).set()
    assert other.result(timeout=20) == 2
    assert client.gather(futures[:10]) == list(range(10))
    keys = [f.key for f in futures[10:]]
    eventually(lambda: cluster.has_forgotten(*keys))


def test_neighbours_stay_together_without_queuing(fresh_cluster, connect, name):
    """Pitfall 13: co-assignment of root tasks by priority."""
    cluster = fresh_cluster(
        workers=4,
        config={
            "distributed.scheduler.worker-saturation": "inf",
            "distributed.scheduler.work-stealing": False,
        },
    )
    client = connect(cluster)
    futures = client.map(worker_name, range(40), pure=False)
    names = client.gather(futures)
    switches = sum(a != b for a, b in pairwise(names))
    assert switches == 3, names
    assert {names.count(n) for n in set(names)} == {10}


def test_idle_workers_take_over_work(fresh_cluster, connect, name):
    """Tasks that pile up at one worker are stolen by an idle one."""
    cluster = fresh_cluster(
        workers=2, config={"distributed.scheduler.work-stealing-interval": "50ms"}
    )
    client = connect(cluster)
    root = client.submit(inc, 1, workers=["w0"], allow_other_workers=False)
    wait(root)

    def slow(i, root):
        import time

        time.sleep(0.05)
        return worker_name()

    futures = client.map(slow, range(40), root=root, pure=False)
    names = client.gather(futures)
    assert set(names) == {"w0", "w1"}


def test_semaphore_limits_tasks_across_workers(client, name):
    semaphore = Semaphore(max_leases=2, name=name("semaphore"))

    def run(i, semaphore):
        with semaphore:
            return semaphore.get_value()

    futures = client.map(run, range(10), semaphore=semaphore, pure=False)
    assert max(client.gather(futures)) <= 2
    assert client.submit(add, 1, 2).result() == 3
