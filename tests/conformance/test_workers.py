"""Workers that join, die, retire, restart."""

from __future__ import annotations

import contextlib
import os
import signal
from itertools import pairwise

import numpy as np
import pytest
from cluster import eventually
from conformance_tasks import (
    add,
    append_line,
    inc,
    signal_and_wait,
    slow_inc,
    total,
    worker_name,
    worker_pid,
)
from distributed import CancelledError, Event, wait


def test_results_of_a_dead_worker_are_computed_again(fresh_cluster, connect, tmp_path):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    path = tmp_path / "runs"
    future = client.submit(
        append_line, str(path), "run", workers=["w0"], allow_other_workers=True
    )
    wait(future)
    cluster.kill_worker(cluster.worker("w0"))
    assert future.result(timeout=30) == "run"
    assert path.read_text() == "run\nrun\n"


def test_chain_is_computed_again_from_what_is_left(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    x = client.submit(inc, 1, workers=["w0"], allow_other_workers=True)
    y = client.submit(inc, x, workers=["w0"], allow_other_workers=True)
    z = client.submit(inc, y, workers=["w0"], allow_other_workers=True)
    wait([x, y, z])
    cluster.kill_worker(cluster.worker("w0"))
    assert client.gather([x, y, z]) == [2, 3, 4]


def test_released_intermediates_are_computed_again_when_needed(
    fresh_cluster, connect, tmp_path
):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    path = tmp_path / "runs"
    x = client.submit(
        append_line, str(path), "x", workers=["w0"], allow_other_workers=True
    )
    y = client.submit(len, x, workers=["w0"], allow_other_workers=True)
    del x
    assert y.result() == 1
    cluster.kill_worker(cluster.worker("w0"))
    assert client.submit(inc, y, pure=False).result(timeout=30) == 2
    assert path.read_text() == "x\nx\n"


def test_task_running_on_a_dying_worker_moves(fresh_cluster, connect, name):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    started, release = name("started"), name("release")
    future = client.submit(
        signal_and_wait,
        started,
        release,
        "done",
        workers=["w0"],
        allow_other_workers=True,
    )
    assert Event(started).wait(20)
    Event(started).clear()
    cluster.kill_worker(cluster.worker("w0"))
    assert Event(started).wait(20)
    Event(release).set()
    assert future.result(timeout=20) == "done"


def test_large_graph_survives_the_death_of_a_worker(fresh_cluster, connect):
    """Pitfall 9: no dependency may be asked from a worker that is gone."""
    cluster = fresh_cluster(workers=3)
    client = connect(cluster)
    level = client.map(slow_inc, range(60), delay=0.01, pure=False)
    level = [client.submit(add, a, b) for a, b in pairwise(level)]
    top = client.submit(total, level)
    eventually(lambda: sum(f.status == "finished" for f in level) > 5)
    cluster.kill_worker(cluster.worker("w1"))
    assert top.result(timeout=40) == sum(2 * i + 3 for i in range(59))


def test_death_of_the_only_worker_leaves_tasks_waiting(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    future = client.submit(inc, 1)
    assert future.result() == 2
    cluster.kill_worker(cluster.worker("w0"))
    eventually(lambda: cluster.identity()["workers"] == {})
    other = client.submit(inc, future)
    cluster.add_worker()
    assert other.result(timeout=20) == 3
    assert future.result(timeout=20) == 2


def test_replicated_data_survives_the_death_of_one_holder(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    future = client.scatter(np.arange(10), broadcast=True)
    eventually(lambda: len(cluster.tasks()[future.key]) == 2)
    cluster.kill_worker(cluster.worker("w0"))
    eventually(lambda: len(cluster.identity()["workers"]) == 1)
    assert client.submit(np.sum, future).result(timeout=20) == 45


def test_new_worker_is_used(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    assert client.submit(inc, 1).result() == 2
    cluster.add_worker(name="late")
    futures = client.map(worker_name, range(20), pure=False)
    assert set(client.gather(futures)) == {"w0", "late"}


def test_wait_for_workers(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.wait_for_workers(1, timeout=10)
    with pytest.raises(TimeoutError, match="1/2 workers"):
        client.wait_for_workers(2, timeout=0.3)
    cluster.add_worker(wait=False)
    client.wait_for_workers(2, timeout=30)
    assert len(client.scheduler_info()["workers"]) == 2


def test_second_worker_of_a_name_is_refused(fresh_cluster, connect):
    """Pitfall 30: names are unique."""
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    twin = cluster.add_worker(name="w0", wait=False)
    assert twin.process.wait(40) != 0
    assert "name taken, w0" in twin.process.read_log()
    cluster.workers.remove(twin)
    assert client.submit(worker_name).result() == "w0"


def test_numeric_worker_name_keeps_its_type(fresh_cluster, connect):
    """Pitfall 30: names that change from int to str break cluster objects."""
    cluster = fresh_cluster(workers=1, names=["7"])
    client = connect(cluster)
    (info,) = client.scheduler_info()["workers"].values()
    assert info["name"] in (7, "7")
    assert client.submit(inc, 1, workers=[info["name"]]).result() == 2


def test_retired_worker_hands_over_its_data(fresh_cluster, connect, tmp_path):
    """Pitfall 23: nothing is computed again and nobody is blamed."""
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    path = tmp_path / "runs"
    futures = [
        client.submit(
            append_line,
            str(path),
            i,
            workers=["w0"],
            allow_other_workers=True,
            pure=False,
        )
        for i in range(10)
    ]
    scattered = client.scatter(["data"], workers=["w0"])[0]
    wait(futures)
    address = cluster.worker("w0").address
    retired = client.retire_workers([address])
    assert set(retired) == {address}
    eventually(
        lambda: set(cluster.identity()["workers"]) == {cluster.worker("w1").address}
    )
    assert client.gather(futures) == list(range(10))
    assert scattered.result() == "data"
    assert len(path.read_text().split()) == 10


def test_retire_by_name_and_close(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    future = client.submit(inc, 1, workers=["w1"], allow_other_workers=True)
    wait(future)
    client.retire_workers(names=["w1"], close_workers=True)
    retired = cluster.worker("w1")
    eventually(lambda: retired.process.returncode() is not None)
    cluster.workers.remove(retired)
    assert future.result() == 2
    assert client.submit(worker_name, pure=False).result() == "w0"


def test_retire_of_unknown_workers_is_ignored(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    assert client.retire_workers(["tcp://127.0.0.1:1"]) == {}
    assert cluster.call("retire_workers", workers=["w0"]) == {}
    assert client.submit(inc, 1).result() == 2


def test_retire_while_tasks_run(fresh_cluster, connect, name):
    """Pitfall 23: tasks in processing move, and no failure is counted."""
    cluster = fresh_cluster(
        workers=2, config={"distributed.scheduler.allowed-failures": 0}
    )
    client = connect(cluster)
    futures = client.map(slow_inc, range(60), delay=0.02, pure=False)
    eventually(lambda: any(f.done() for f in futures))
    client.retire_workers(names=["w0"], close_workers=True)
    assert client.gather(futures) == list(range(1, 61))


def test_worker_that_is_asked_to_end_leaves_cleanly(fresh_cluster, connect):
    """SIGTERM: the worker tells the scheduler, its tasks are not suspected."""
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    future = client.submit(inc, 1, workers=["w0"], allow_other_workers=True)
    wait(future)
    worker = cluster.worker("w0")
    worker.process.signal(signal.SIGTERM)
    worker.process.wait()
    cluster.workers.remove(worker)
    eventually(lambda: len(cluster.identity()["workers"]) == 1)
    assert future.result(timeout=20) == 2


def test_unregister_removes_a_worker(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    worker = cluster.worker("w0")
    answer = cluster.call("unregister", address=worker.address, stimulus_id="test")
    assert answer == "OK"
    eventually(lambda: worker.process.returncode() is not None)
    cluster.workers.remove(worker)
    answer = cluster.call("unregister", address=worker.address, stimulus_id="test")
    assert answer == "already-removed"
    assert client.submit(worker_name).result() == "w1"


def test_heartbeat_of_an_unknown_worker_is_answered_missing(cluster, client):
    """Pitfall 26."""
    answer = cluster.call(
        "heartbeat_worker",
        address="tcp://127.0.0.1:1",
        now=0.0,
        metrics={},
        executing={},
        extensions={},
    )
    assert answer["status"] == "missing"


def test_silent_worker_is_removed_after_its_time_to_live(fresh_cluster, connect):
    """Pitfall 26: a frozen process."""
    cluster = fresh_cluster(
        workers=2, config={"distributed.scheduler.worker-ttl": "2s"}
    )
    client = connect(cluster)
    future = client.submit(inc, 1, workers=["w0"], allow_other_workers=True)
    wait(future)
    worker = cluster.worker("w0")
    worker.process.signal(signal.SIGSTOP)
    eventually(lambda: len(cluster.identity()["workers"]) == 1, timeout=40)
    cluster.kill_worker(worker)
    assert future.result(timeout=20) == 2


def test_short_freeze_of_a_worker_does_no_harm(fresh_cluster, connect):
    """Pitfall 26: shorter than the time to live."""
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    futures = client.map(slow_inc, range(40), delay=0.01, pure=False)
    worker = cluster.worker("w0")
    worker.process.signal(signal.SIGSTOP)
    try:
        eventually(lambda: sum(f.done() for f in futures) >= 10)
    finally:
        worker.process.signal(signal.SIGCONT)
    assert client.gather(futures) == list(range(1, 41))
    assert len(cluster.identity()["workers"]) == 2


def test_nanny_restarts_a_killed_worker(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1, nanny=True)
    client = connect(cluster)
    pid = client.submit(worker_pid).result()
    # A nanny restarts what has started; the worker can run tasks a little before that.
    eventually(
        lambda: (
            set(
                client.run(
                    lambda dask_worker: dask_worker.status.name, nanny=True
                ).values()
            )
            == {"running"}
        )
    )
    os.kill(pid, signal.SIGKILL)
    again = client.submit(worker_pid, pure=False)
    assert again.result(timeout=40) != pid
    assert client.submit(worker_name).result() == "w0"


def test_restart_gives_empty_new_workers(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, nanny=True)
    client = connect(cluster)
    future = client.submit(inc, 1)
    assert future.result() == 2
    before = set(client.run(os.getpid).values())
    client.restart(timeout=50)
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result()
    after = set(client.run(os.getpid).values())
    assert len(after) == 2
    assert not before & after
    assert cluster.tasks() == {}
    assert client.submit(inc, 2).result() == 3


def test_restart_cancels_the_futures_of_every_client(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1, nanny=True)
    client, other = connect(cluster), connect(cluster, set_as_default=False)
    theirs = other.submit(inc, 1)
    assert theirs.result() == 2
    client.restart(timeout=50)
    eventually(theirs.cancelled)
    assert other.submit(inc, 2).result() == 3


def test_restart_without_nannies_times_out(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    with pytest.raises(TimeoutError, match="have not returned"):
        client.restart(timeout=1)
    cluster.workers.clear()
    assert cluster.identity()["workers"] == {}


def test_restart_without_waiting_for_workers(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    future = client.submit(inc, 1)
    assert future.result() == 2
    client.restart(timeout=20, wait_for_workers=False)
    assert future.cancelled()
    cluster.workers.clear()
    cluster.add_worker()
    assert client.submit(inc, 5).result() == 6


def test_restart_of_one_worker(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, nanny=True)
    client = connect(cluster)
    kept = client.submit(worker_pid, workers=["w1"])
    pids = client.run(os.getpid)
    kept_pid = kept.result()
    first, second = (cluster.worker(n).address for n in ("w0", "w1"))
    assert client.restart_workers([first], timeout=50) == {first: "OK"}
    client.wait_for_workers(2, timeout=40)
    after = set(client.run(os.getpid).values())
    assert pids[second] in after
    assert pids[first] not in after
    assert kept.result() == kept_pid


def test_restart_of_a_worker_without_nanny_is_refused(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    with pytest.raises(ValueError, match=r"[Nn]anny"):
        client.restart_workers([cluster.worker("w0").address])
    assert client.submit(inc, 1).result() == 2


def test_shutdown_ends_scheduler_and_workers(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    assert client.submit(inc, 1).result() == 2
    client.shutdown()
    assert cluster.scheduler.wait(30) == 0
    for worker in cluster.workers:
        worker.process.wait(30)


def test_terminate_ends_the_scheduler(fresh_cluster):
    cluster = fresh_cluster(workers=1)
    # The connection may close before there is an answer.
    with contextlib.suppress(OSError):
        cluster.call("terminate", reason="test")
    assert cluster.scheduler.wait(30) == 0
    cluster.workers[0].process.wait(40)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_scheduler_ends_cleanly_on_a_signal(fresh_cluster, signum):
    cluster = fresh_cluster(workers=1)
    assert cluster.identity()["type"] == "Scheduler"
    cluster.scheduler.signal(signum)
    cluster.scheduler.wait(30)
    log = cluster.scheduler.read_log()
    assert f"Closing scheduler. Reason: signal-{signum.value}" in log
    assert "End scheduler" in log
    cluster.workers[0].process.wait(40)


def test_scheduler_file_names_address_and_disappears(fresh_cluster):
    import json

    cluster = fresh_cluster(workers=0)
    content = json.loads(cluster.scheduler_file.read_text())
    assert content["address"] == cluster.address
    assert content["type"] == "Scheduler"
    assert content["id"].startswith("Scheduler-")
    assert content["workers"] == {}
    assert isinstance(content["services"], dict)
    assert cluster.identity()["id"] == content["id"]
    cluster.scheduler.signal(signal.SIGTERM)
    cluster.scheduler.wait(30)
    assert not cluster.scheduler_file.exists()


def test_client_by_scheduler_file(fresh_cluster, connect):
    from distributed import Client

    cluster = fresh_cluster(workers=1)
    with Client(scheduler_file=str(cluster.scheduler_file)) as client:
        assert client.submit(inc, 1).result() == 2


def test_worker_by_scheduler_file(fresh_cluster, connect):
    cluster = fresh_cluster(workers=0)
    cluster.address, address = "", cluster.address
    worker = cluster.add_worker(
        wait=False, args=f"--scheduler-file {cluster.scheduler_file}"
    )
    cluster.address = address
    cluster.wait_for_workers()
    client = connect(cluster)
    assert client.submit(worker_name).result() == worker.name


def test_scheduler_logs_joins_and_departures(fresh_cluster):
    cluster = fresh_cluster(workers=1)
    worker = cluster.worker("w0")
    assert (
        f"Register worker addr: {worker.address} name: w0"
        in cluster.scheduler.read_log()
    )
    cluster.kill_worker(worker)
    eventually(
        lambda: (
            f"Remove worker addr: {worker.address} name: w0"
            in cluster.scheduler.read_log()
        )
    )
    eventually(lambda: "Lost all workers" in cluster.scheduler.read_log())


def test_scheduler_closes_itself_when_idle(fresh_cluster):
    cluster = fresh_cluster(workers=0, scheduler_args="--idle-timeout 1s")
    assert cluster.identity()["type"] == "Scheduler"
    assert cluster.scheduler.wait(40) == 0


def test_busy_scheduler_does_not_count_as_idle(fresh_cluster, connect):
    """Neither while a task waits for a worker nor while it runs."""
    cluster = fresh_cluster(workers=0, scheduler_args="--idle-timeout 2s")
    client = connect(cluster)
    # Longer than the timeout: the task is what keeps the scheduler up.
    future = client.submit(slow_inc, 1, delay=2.5)
    cluster.add_worker()
    assert future.result() == 2
    assert cluster.scheduler.wait(40) == 0


def test_scheduler_leaves_no_temporary_files(fresh_cluster, connect, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    module = tmp_path / "left_behind.py"
    module.write_text("def double(x):\n    return 2 * x\n")
    cluster = fresh_cluster(workers=1, env={"TMPDIR": str(folder)})
    client = connect(cluster)
    client.upload_file(str(module))
    assert client.submit(inc, 1).result() == 2
    client.close()
    cluster.scheduler.signal(signal.SIGTERM)
    cluster.scheduler.wait(30)
    # Workers share their folder with others and leave it.
    left = {path.name for path in folder.iterdir()} - {"dask-scratch-space"}
    assert left == set()
