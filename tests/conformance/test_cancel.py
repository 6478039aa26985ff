"""Cancelling futures."""

from __future__ import annotations

import pytest
from cluster import eventually
from conformance_tasks import add, inc, signal_and_wait, throws, wait_for_event
from distributed import CancelledError, Event, fire_and_forget, wait
from distributed.client import FutureCancelledError


def settle(client, cluster, key):
    """Returns when the cancellation of `key` is over and its report has come back.

    A report that arrives after a second submission of the key would cancel that one.
    """
    eventually(lambda: cluster.has_forgotten(key))
    assert client.submit(inc, 1, pure=False).result() == 2


def test_cancelled_task_is_forgotten(client, cluster, name):
    started, release = name("started"), name("release")
    future = client.submit(signal_and_wait, started, release)
    assert Event(started).wait(20)
    future.cancel()
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result()
    Event(release).set()
    eventually(lambda: cluster.has_forgotten(future.key))


def test_cancelled_waiting_task_never_runs(client, cluster, name):
    release, ran = name("release"), name("ran")
    gate = client.submit(wait_for_event, release)
    future = client.submit(lambda _: Event(ran).set(), gate)
    eventually(lambda: cluster.knows(future.key))
    future.cancel()
    eventually(lambda: cluster.has_forgotten(future.key))
    Event(release).set()
    assert client.submit(inc, 1, pure=False).result() == 2
    wait(gate)
    assert not Event(ran).is_set()


def test_cancelled_finished_task_is_forgotten(client, cluster):
    future = client.submit(inc, 1)
    assert future.result() == 2
    client.cancel([future])
    with pytest.raises(CancelledError):
        future.result()
    eventually(lambda: cluster.has_forgotten(future.key))


def test_cancelling_takes_the_dependents_along(client, cluster, name):
    release = name("release")
    root = client.submit(wait_for_event, release, 1)
    middle = client.submit(inc, root)
    last = client.submit(inc, middle)
    eventually(lambda: cluster.knows(last.key))
    client.cancel([root])
    for future in (middle, last):
        with pytest.raises(CancelledError):
            future.result(timeout=20)
    Event(release).set()
    eventually(lambda: cluster.has_forgotten(root.key, middle.key, last.key))


def test_reason_and_message_are_told_by_the_exception(client, cluster, name):
    release = name("release")
    root = client.submit(wait_for_event, release)
    dependent = client.submit(inc, root)
    eventually(lambda: cluster.knows(dependent.key))
    client.cancel([root], reason="good reason", msg="a longer message")
    with pytest.raises(FutureCancelledError) as info:
        dependent.result(timeout=20)
    assert str(info.value) == (
        f"{dependent.key} cancelled for reason: good reason.\na longer message"
    )
    Event(release).set()


def test_key_that_another_client_wants_stays(client, cluster, connect, name):
    other = connect(cluster, set_as_default=False)
    key = name("shared")
    mine = client.submit(inc, 1, key=key)
    theirs = other.submit(inc, 1, key=key)
    wait([mine])
    assert theirs.result() == 2
    mine.cancel()
    # Round trips on both ways a message can take.
    assert other.submit(inc, theirs).result() == 3
    assert cluster.knows(key)
    assert theirs.status == "finished"
    assert theirs.result() == 2


def test_force_cancels_for_every_client(client, cluster, connect, name):
    other = connect(cluster, set_as_default=False)
    key = name("shared")
    mine = client.submit(inc, 1, key=key)
    theirs = other.submit(inc, 1, key=key)
    assert client.gather(mine) == other.gather(theirs) == 2
    client.cancel([mine], force=True)
    eventually(theirs.cancelled)
    settle(client, cluster, key)
    assert client.submit(inc, 1, key=key).result() == 2


def test_cancelled_key_can_be_submitted_again(client, cluster, name):
    started, release, key = name("started"), name("release"), name("key")
    future = client.submit(signal_and_wait, started, release, 1, key=key)
    assert Event(started).wait(20)
    future.cancel()
    settle(client, cluster, key)
    again = client.submit(signal_and_wait, started, release, 1, key=key)
    Event(release).set()
    assert again.result(timeout=20) == 1


def test_cancel_of_one_of_many(client):
    futures = client.map(inc, range(20), pure=False)
    client.cancel(futures[:5])
    assert client.gather(futures[5:]) == list(range(6, 21))
    assert all(f.cancelled() for f in futures[:5])


def test_cancel_of_a_failed_task(client, cluster):
    future = client.submit(throws)
    wait(future)
    future.cancel()
    with pytest.raises(CancelledError):
        future.result()
    eventually(lambda: cluster.has_forgotten(future.key))


def test_cancel_of_an_unknown_key_is_harmless(client, cluster):
    client._send_to_scheduler(
        {
            "op": "cancel-keys",
            "keys": ["never-heard-of"],
            "force": False,
            "reason": None,
            "msg": None,
        }
    )
    assert client.submit(inc, 1).result() == 2


def test_cancel_of_a_fire_and_forget_task(client, cluster, name):
    release = name("release")
    future = client.submit(wait_for_event, release)
    fire_and_forget(future)
    eventually(lambda: cluster.knows(future.key))
    client.cancel([future], force=True)
    eventually(lambda: cluster.has_forgotten(future.key))
    Event(release).set()


def test_cancelled_persisted_collection(client, cluster, name):
    import dask.array as da
    from distributed import futures_of

    x = da.ones(100, chunks=10).persist()
    wait(x)
    keys = [f.key for f in futures_of(x)]
    assert cluster.knows(*keys)
    client.cancel(x)
    eventually(lambda: cluster.has_forgotten(*keys))


def test_gather_of_a_cancelled_future_raises(client, cluster):
    good, bad = client.submit(inc, 1), client.submit(inc, 2)
    wait([good, bad])
    bad.cancel()
    with pytest.raises(CancelledError):
        client.gather([good, bad])
    assert client.submit(add, good, 1).result() == 3
