"""Exceptions: types, texts, tracebacks, and whom they reach."""

from __future__ import annotations

import traceback

import dask
import pytest
from cluster import eventually
from conformance_tasks import (
    ClaimsSize,
    CustomError,
    FailsToPickle,
    FailsToUnpickle,
    add,
    die,
    div,
    fail_until,
    identity,
    inc,
    signal_and_wait,
    throws,
    wait_for_event,
    worker_address,
)
from dask import delayed
from distributed import Event, KilledWorker, wait
from distributed.client import FutureCancelledError


def test_exception_has_its_type_and_text(client):
    future = client.submit(div, 1, 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        future.result()
    assert isinstance(future.exception(), ZeroDivisionError)


def test_exception_with_arguments_of_its_own(client):
    def fail():
        raise CustomError(404, "nothing here")

    with pytest.raises(CustomError) as info:
        client.submit(fail).result()
    assert (info.value.code, info.value.detail) == (404, "nothing here")


def test_exception_class_defined_in_the_calling_function(client):
    class LocalError(Exception):
        pass

    def fail():
        raise LocalError("by value")

    assert repr(client.submit(fail).exception()) == "LocalError('by value')"


def test_traceback_leads_to_the_failing_line(client):
    def outer():
        return inner_function_with_a_name()

    def inner_function_with_a_name():
        raise ValueError("deep inside")

    future = client.submit(outer)
    lines = traceback.format_tb(future.traceback())
    assert any("inner_function_with_a_name" in line for line in lines)
    with pytest.raises(ValueError, match="deep inside") as info:
        future.result()
    names = [entry.name for entry in traceback.extract_tb(info.value.__traceback__)]
    assert "inner_function_with_a_name" in names


def test_exception_with_cause_keeps_the_cause(client):
    def fail():
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("outer") from error

    error = client.submit(fail).exception()
    assert str(error) == "outer"
    assert isinstance(error.__cause__, KeyError)


def test_all_dependents_carry_the_exception_of_the_failed_task(client):
    """Pitfall 22: not an exception of their own."""
    first = client.submit(throws, "the first one failed")
    second = client.submit(inc, first)
    third = client.submit(add, second, 1)
    for future in (first, second, third):
        with pytest.raises(RuntimeError, match="the first one failed"):
            future.result()
        assert future.status == "error"


def test_task_submitted_after_its_dependency_failed_fails_too(client):
    bad = client.submit(throws, "failed earlier")
    wait(bad)
    late = client.submit(inc, bad)
    later = client.submit(inc, late)
    with pytest.raises(RuntimeError, match="failed earlier"):
        later.result()
    assert late.traceback() is not None


def test_second_client_sees_the_error_of_a_known_task(client, cluster, connect, name):
    key = name("bad")
    first = client.submit(throws, "seen by both", key=key)
    wait(first)
    other = connect(cluster, set_as_default=False)
    with pytest.raises(RuntimeError, match="seen by both"):
        other.submit(throws, "seen by both", key=key).result()


def test_failure_does_not_disturb_independent_tasks_of_the_same_graph(client):
    good, bad = delayed(inc)(1), delayed(throws)("only this")
    futures = client.compute([good, bad])
    assert futures[0].result() == 2
    assert isinstance(futures[1].exception(), RuntimeError)


def test_compute_raises_the_tasks_exception(client):
    with pytest.raises(RuntimeError, match="in a collection"):
        delayed(inc)(delayed(throws)("in a collection")).compute()


def test_exception_that_cannot_be_pickled_still_tells_its_text(client):
    def fail():
        error = ValueError("cannot travel")
        error.attachment = FailsToPickle()
        raise error

    with pytest.raises(Exception, match="cannot travel"):
        client.submit(fail).result()


def test_result_that_cannot_be_pickled_raises_at_gather(client):
    future = client.submit(FailsToPickle)
    wait(future)
    assert future.status == "finished"
    with pytest.raises(TypeError, match=r"pickle|serialize"):
        future.result()


def test_result_that_cannot_be_unpickled_raises_its_error(client):
    future = client.submit(FailsToUnpickle)
    wait(future)
    with pytest.raises(ZeroDivisionError, match="unpickling refused"):
        future.result()


def test_argument_that_cannot_be_pickled_raises_at_submit(client):
    with pytest.raises(Exception, match=r"pickle|serialize"):
        client.submit(identity, FailsToPickle()).result()
    assert client.submit(inc, 1).result() == 2


def test_graph_that_cannot_be_unpickled_is_an_error_of_that_client(
    client, cluster, connect
):
    other = connect(cluster, set_as_default=False)
    future = client.submit(identity, FailsToUnpickle())
    with pytest.raises(RuntimeError, match="deserialization of the task graph") as info:
        future.result()
    assert isinstance(info.value.__cause__, ZeroDivisionError)
    assert other.submit(inc, 1).result() == 2
    assert client.submit(inc, 2).result() == 3


def test_graph_that_needs_a_module_the_cluster_lacks(client, tmp_path, monkeypatch):
    (tmp_path / "only_at_the_client.py").write_text("def f(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_at_the_client

    future = client.submit(only_at_the_client.f, 1)
    with pytest.raises(RuntimeError, match="deserialization of the task graph") as info:
        future.result()
    assert isinstance(info.value.__cause__, ModuleNotFoundError)
    assert "only_at_the_client" in str(info.value.__cause__)


def test_expression_whose_graph_raises_on_the_scheduler(client, cluster, connect):
    """The expression travels; building its graph is the scheduler's part, and fails there."""
    from dask._expr import Expr

    class Breaks(Expr):
        _parameters = ("number",)

        def __dask_keys__(self):
            return [("breaks", 0)]

        def __dask_graph__(self):
            raise LookupError("no graph today")

        def __dask_annotations__(self):
            return {}

    other = connect(cluster, set_as_default=False)
    bystander = other.submit(inc, 5)
    futures = client._graph_to_futures(
        Breaks(1), [("breaks", 0)], span_metadata={}, fifo_timeout="60s"
    )
    with pytest.raises(LookupError, match="no graph today"):
        futures[("breaks", 0)].result()
    assert bystander.result() == 6
    assert other.submit(inc, 1).result() == 2
    assert client.submit(inc, 1).result() == 2


def test_graph_with_a_cycle_fails(client):
    graph = {"cycle-a": (inc, "cycle-b"), "cycle-b": (inc, "cycle-a")}
    with pytest.raises(RuntimeError, match=r"[Cc]ycle"):
        client.get(graph, "cycle-a")
    assert client.submit(inc, 1).result() == 2


def test_annotation_of_the_wrong_type_fails_the_graph_only(client):
    with dask.annotate(retries=lambda key: "many"):
        future = client.submit(inc, 1)
    assert future.exception() is not None
    assert future.status == "error"
    assert client.submit(inc, 2).result() == 3


def test_retries_annotation_repeats_a_failing_task(client, tmp_path):
    """Pitfall 3: retries=2 with three failures and with two."""
    path = tmp_path / "log"
    future = client.submit(fail_until, str(path), 2, retries=2)
    assert future.result() == 3
    path = tmp_path / "other-log"
    future = client.submit(fail_until, str(path), 3, retries=2)
    with pytest.raises(ValueError, match="attempt 3 failed"):
        future.result()


def test_retries_by_annotate_and_compute(client, tmp_path):
    with dask.annotate(retries=3):
        value = delayed(fail_until)(str(tmp_path / "a"), 2)
    assert value.compute(optimize_graph=False) == 3
    value = delayed(fail_until)(str(tmp_path / "b"), 2)
    assert value.compute(retries=2) == 3


def test_retry_runs_a_failed_task_again(client, tmp_path):
    future = client.submit(fail_until, str(tmp_path / "log"), 1)
    with pytest.raises(ValueError, match="attempt 1 failed"):
        future.result()
    future.retry()
    assert future.result() == 2


def test_retry_of_the_last_task_starts_at_the_failed_root(client, tmp_path):
    """Pitfall 22: the rest follows from erred through released."""
    root = client.submit(fail_until, str(tmp_path / "log"), 1)
    middle = client.submit(inc, root)
    last = client.submit(inc, middle)
    wait([root, middle, last])
    assert {f.status for f in (root, middle, last)} == {"error"}
    client.retry([last])
    assert last.result() == 4
    assert middle.result() == 3
    assert root.result() == 2


def test_retry_of_a_task_that_fails_again(client, tmp_path):
    future = client.submit(fail_until, str(tmp_path / "log"), 2)
    for attempt in (1, 2):
        with pytest.raises(ValueError, match=f"attempt {attempt} failed"):
            future.result()
        future.retry()
    assert future.result() == 3


def test_failed_task_is_forgotten_with_its_future(client, cluster, name):
    key = name("bad")
    future = client.submit(throws, key=key)
    wait(future)
    assert cluster.knows(key)
    del future
    eventually(lambda: cluster.has_forgotten(key))


def test_killed_worker_error_after_four_deaths(fresh_cluster, connect):
    """Pitfall 23: the fourth death under one task fails it; the text names the last worker."""
    cluster = fresh_cluster(workers=5)
    client = connect(cluster)
    addresses = {w.address for w in cluster.workers}
    bad = client.submit(die, key="killer")
    dependent = client.submit(inc, bad)
    with pytest.raises(KilledWorker) as info:
        bad.result(timeout=40)
    text = str(info.value)
    assert text.startswith(
        "Attempted to run task 'killer' on 4 different workers, but all those workers died"
        " while running it. The last worker that attempt to run the task was "
    )
    assert any(address in text for address in addresses)
    assert info.value.task == "killer"
    assert info.value.allowed_failures == 3
    assert info.value.last_worker.address in addresses
    assert isinstance(dependent.exception(), KilledWorker)
    assert client.submit(inc, 1).result() == 2


def test_allowed_failures_zero_fails_at_the_first_death(fresh_cluster, connect):
    cluster = fresh_cluster(
        workers=2, config={"distributed.scheduler.allowed-failures": 0}
    )
    client = connect(cluster)
    with pytest.raises(KilledWorker, match="on 1 different workers"):
        client.submit(die).result(timeout=30)
    assert client.submit(inc, 1).result() == 2


def test_tasks_that_only_wait_on_a_dying_worker_are_not_blamed(
    fresh_cluster, connect, name
):
    """Pitfall 23: only tasks in processing count, and each death once."""
    cluster = fresh_cluster(
        workers=2, config={"distributed.scheduler.allowed-failures": 0}
    )
    client = connect(cluster)
    victim = client.submit(
        worker_address, workers=["w0"], allow_other_workers=True, key="data"
    )
    victim.result()
    cluster.kill_worker(cluster.worker("w0"))
    # The result was lost and is computed again, which is no failure of the task.
    assert victim.result(timeout=30) in {w.address for w in cluster.workers}


def test_memory_error_for_dependencies_larger_than_the_worker(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, worker_args="--memory-limit 700MB")
    client = connect(cluster)
    blocks = [
        client.submit(
            lambda i=i: ClaimsSize(400_000_000), workers=[f"w{i}"], pure=False
        )
        for i in range(2)
    ]
    wait(blocks)
    future = client.submit(lambda *args: 1, *blocks, key="too-big")
    with pytest.raises(MemoryError) as info:
        future.result(timeout=30)
    text = str(info.value)
    assert text.startswith(
        "Task 'too-big' has 762.94 MiB worth of input dependencies, but worker tcp://"
    )
    assert "has memory_limit set to 667.57 MiB" in text


def test_no_valid_worker_error_after_the_timeout(fresh_cluster, connect):
    from distributed.scheduler import NoValidWorkerError

    cluster = fresh_cluster(
        workers=1, config={"distributed.scheduler.no-workers-timeout": "300ms"}
    )
    client = connect(cluster)
    future = client.submit(inc, 1, resources={"UNICORN": 1}, key="picky")
    with pytest.raises(NoValidWorkerError) as info:
        future.result(timeout=20)
    text = str(info.value)
    assert text.startswith("Attempted to run task 'picky' but timed out after ")
    assert "waiting for a valid worker matching all restrictions" in text
    assert "Restrictions:" in text
    assert "UNICORN" in text


def test_no_worker_error_after_the_timeout(fresh_cluster, connect):
    from distributed.scheduler import NoWorkerError

    cluster = fresh_cluster(
        workers=0, config={"distributed.scheduler.no-workers-timeout": "300ms"}
    )
    client = connect(cluster)
    future = client.submit(inc, 1, key="lonely")
    with pytest.raises(NoWorkerError) as info:
        future.result(timeout=20)
    text = str(info.value)
    assert text.startswith("Attempted to run task 'lonely' but timed out after ")
    assert "waiting without any running workers" in text


def test_gather_of_a_scattered_value_whose_worker_died(fresh_cluster, connect):
    """Pitfall 24: scattered data cannot be recomputed."""
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    (data,) = client.scatter([123], workers=[cluster.worker("w0").address])
    dependent = client.submit(inc, data, workers=["w0"], allow_other_workers=True)
    assert dependent.result() == 124
    cluster.kill_worker(cluster.worker("w0"))
    with pytest.raises(FutureCancelledError):
        data.result(timeout=20)
    eventually(data.cancelled)
    # The dependent lost its result as well and has nothing to be recomputed from.
    with pytest.raises(FutureCancelledError):
        dependent.result(timeout=20)
    assert client.submit(inc, 1).result() == 2


def test_exception_text_of_a_task_that_is_still_wanted_elsewhere(client, name):
    started, release = name("started"), name("release")
    running = client.submit(signal_and_wait, started, release)
    assert Event(started).wait(20)
    bad = client.submit(throws, "while others run")
    assert isinstance(bad.exception(), RuntimeError)
    Event(release).set()
    assert running.result() is None
    assert client.submit(wait_for_event, release, 3).result() == 3
