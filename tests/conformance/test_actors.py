"""Actors: objects that live on one worker."""

from __future__ import annotations

import pytest
from cluster import eventually
from conformance_tasks import Counter, inc
from distributed import Actor, as_completed, get_client, wait


def test_actor_keeps_its_state(client):
    counter = client.submit(Counter, actor=True).result()
    assert counter.increment().result() == 1
    assert counter.increment().result() == 2
    assert counter.n == 2


def test_actor_with_arguments_and_method_arguments(client):
    counter = client.submit(Counter, 10, actor=True).result()
    assert counter.add(5).result() == 15
    assert counter.add(x=-1).result() == 14


def test_actor_method_error_reaches_the_caller(client):
    counter = client.submit(Counter, actor=True).result()
    with pytest.raises(ValueError, match="counter is broken"):
        counter.fail().result()
    assert counter.increment().result() == 1


def test_actor_attribute_that_does_not_exist(client):
    counter = client.submit(Counter, actor=True).result()
    with pytest.raises(AttributeError):
        _ = counter.nothing_of_that_name
    assert counter.n == 0


def test_actor_on_a_chosen_worker(client):
    counter = client.submit(Counter, actor=True, workers=["w1"]).result()
    assert counter.where().result() == "w1"


def test_actors_spread_over_workers(client):
    counters = client.gather([client.submit(Counter, i, actor=True) for i in range(4)])
    places = [c.where().result() for c in counters]
    assert set(places) == {"w0", "w1"}


def test_actor_used_in_a_task(client):
    future = client.submit(Counter, actor=True)

    def use(counter):
        return [counter.increment().result() for _ in range(3)]

    assert client.submit(use, future).result() == [1, 2, 3]
    assert future.result().n == 3


def test_actor_called_by_many_tasks(client):
    future = client.submit(Counter, actor=True)
    tasks = client.map(
        lambda i, c: c.increment().result(), range(20), c=future, pure=False
    )
    assert sorted(client.gather(tasks)) == list(range(1, 21))
    assert future.result().n == 20


def test_actor_calls_through_the_scheduler(cluster, connect):
    """direct_to_workers=False: the client never speaks to a worker."""
    client = connect(cluster, direct_to_workers=False)
    counter = client.submit(Counter, 5, actor=True).result()
    assert counter.increment().result() == 6
    assert counter.n == 6


def test_actor_of_a_failing_constructor(client):
    def broken():
        raise LookupError("no actor")

    future = client.submit(broken, actor=True)
    with pytest.raises(LookupError, match="no actor"):
        future.result()


def test_actor_futures_with_as_completed(client):
    counter = client.submit(Counter, actor=True).result()
    calls = [counter.increment() for _ in range(5)]
    assert sorted(call.result() for call in calls) == [1, 2, 3, 4, 5]
    futures = client.map(inc, range(3))
    assert len(list(as_completed(futures))) == 3


def test_actor_created_and_used_within_a_task(client):
    def create():
        counter = get_client().submit(Counter, 7, actor=True).result()
        return counter.increment().result()

    assert client.submit(create).result() == 8


def test_actor_is_kept_while_its_future_lives(client, cluster):
    future = client.submit(Counter, actor=True)
    actor = future.result()
    assert isinstance(actor, Actor)
    key = future.key
    assert len(cluster.tasks()[key]) == 1
    del actor, future
    eventually(lambda: cluster.has_forgotten(key))


def test_actor_of_a_dead_worker_is_an_error(fresh_cluster, connect):
    """Its state cannot be computed again."""
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    future = client.submit(Counter, actor=True, workers=["w0"])
    actor = future.result()
    assert actor.increment().result() == 1
    cluster.kill_worker(cluster.worker("w0"))
    eventually(lambda: future.status == "error")
    with pytest.raises(RuntimeError, match="Worker holding Actor was lost"):
        future.result()
    with pytest.raises((ValueError, RuntimeError, OSError), match=r"[Ll]ost"):
        actor.increment().result()
    assert client.submit(inc, 1).result() == 2


def test_actors_by_compute_of_a_delayed(client):
    from dask import delayed

    value = delayed(Counter)(3)
    future = client.compute(value, actors=True, optimize_graph=False)
    wait(future)
    actor = future.result()
    assert actor.increment().result() == 4
