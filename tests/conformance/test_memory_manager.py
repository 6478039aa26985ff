"""The active memory manager, and retirement, replication and rebalancing of data."""

from __future__ import annotations

import os

import pytest
from cluster import eventually
from conformance_tasks import Counter, add, inc, slow_inc, worker_name
from distributed import Event, wait

SOON = {"distributed.scheduler.active-memory-manager.interval": "100ms"}
OFF = {"distributed.scheduler.active-memory-manager.start": False}


def replica_count(cluster, *futures):
    tasks = cluster.tasks()
    return [len(tasks.get(f.key, ())) for f in futures]


def lost_keys(client):
    """Keys whose only copy went with a worker."""
    return {
        key
        for _, event in client.get_events("all")
        if event.get("action") == "remove-worker"
        for name in ("lost-computed-tasks", "lost-scattered-tasks")
        for key in event[name]
    }


def test_manager_runs_from_the_start(client):
    assert client.amm.running() is True


def test_manager_is_stopped_and_started(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, config=OFF)
    client = connect(cluster)
    assert client.amm.running() is False
    assert client.amm.start() is None
    assert client.amm.running() is True
    assert client.amm.start() is None
    assert client.amm.stop() is None
    assert client.amm.running() is False
    assert client.amm.stop() is None
    with pytest.raises(AssertionError):
        client.sync(client.scheduler.amm_handler, method="explode")


def test_surplus_replicas_are_dropped(fresh_cluster, connect):
    cluster = fresh_cluster(workers=3, config=SOON)
    client = connect(cluster)
    futures = client.scatter(list(range(10)), broadcast=True, hash=False)
    eventually(lambda: replica_count(cluster, *futures) == [1] * 10)
    assert client.gather(futures) == list(range(10))


def test_one_run_drops_replicas_on_demand(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, config=OFF)
    client = connect(cluster)
    future = client.submit(inc, 1)
    client.replicate([future])
    assert replica_count(cluster, future) == [2]
    assert client.amm.run_once() is None
    eventually(lambda: replica_count(cluster, future) == [1])
    assert client.amm.running() is False
    assert future.result() == 2


def test_without_policies_replicas_stay(fresh_cluster, connect):
    policies = {"distributed.scheduler.active-memory-manager.policies": []}
    cluster = fresh_cluster(workers=2, config=SOON | policies)
    client = connect(cluster)
    future = client.submit(inc, 1)
    client.replicate([future])
    client.amm.run_once()
    assert replica_count(cluster, future) == [2]


def test_inputs_of_running_tasks_are_kept(fresh_cluster, connect, name):
    """Pitfall 25: a worker that loses the input of a task it runs would die."""
    cluster = fresh_cluster(workers=2, config=SOON)
    client = connect(cluster)
    release = name("release")

    def use(x, release):
        Event(release).wait()
        return x

    x = client.submit(inc, 1)
    futures = [
        client.submit(use, x, release, workers=[w], pure=False) for w in ("w0", "w1")
    ]
    eventually(lambda: replica_count(cluster, x) == [2])
    for _ in range(3):
        client.amm.run_once()
    assert replica_count(cluster, x) == [2]
    Event(release).set()
    assert client.gather(futures) == [2, 2]
    eventually(lambda: replica_count(cluster, x) == [1])
    assert len(cluster.identity()["workers"]) == 2


def test_computation_with_a_busy_manager(fresh_cluster, connect):
    """Inputs move about and are dropped all the time."""
    interval = {"distributed.scheduler.active-memory-manager.interval": "10ms"}
    cluster = fresh_cluster(workers=4, config=interval)
    client = connect(cluster)
    layer = client.map(slow_inc, range(64), delay=0.005)
    while len(layer) > 1:
        layer = [
            client.submit(add, a, b)
            for a, b in zip(layer[::2], layer[1::2], strict=True)
        ]
    assert layer[0].result() == sum(range(1, 65))
    assert len(cluster.identity()["workers"]) == 4


@pytest.mark.parametrize("config", [{}, OFF], ids=["manager", "no-manager"])
def test_several_workers_retire_at_once(fresh_cluster, connect, config):
    cluster = fresh_cluster(workers=4, config=config)
    client = connect(cluster)
    futures = client.scatter(list(range(40)), hash=False)
    computed = client.map(inc, range(40))
    wait(computed)
    gone = {cluster.worker(name).address for name in ("w0", "w2")}
    retired = client.retire_workers(sorted(gone))
    assert set(retired) == gone
    assert {info["name"] for info in retired.values()} == {"w0", "w2"}
    assert set(cluster.identity()["workers"]) == {
        cluster.worker(name).address for name in ("w1", "w3")
    }
    assert client.gather(futures) == list(range(40))
    assert client.gather(computed) == list(range(1, 41))
    assert not lost_keys(client)


def test_half_of_the_workers_retire_in_the_middle_of_a_reduction(
    fresh_cluster, connect
):
    cluster = fresh_cluster(workers=6, config=OFF)
    client = connect(cluster)
    leaves = client.map(slow_inc, range(120), delay=0.01)
    layers = [leaves]
    while len(layers[-1]) > 1:
        last = layers[-1]
        pairs = zip(last[::2], last[1::2], strict=False)
        layers.append(
            [client.submit(add, a, b) for a, b in pairs] + last[len(last) & ~1 :]
        )
    total = layers[-1][0]
    eventually(lambda: sum(f.done() for f in leaves) > 20)
    del layers
    names = ["w0", "w2", "w4"]
    retired = client.retire_workers(names=names)
    assert sorted(info["name"] for info in retired.values()) == names
    assert total.result(timeout=60) == sum(range(1, 121))
    assert not lost_keys(client)
    assert len(cluster.identity()["workers"]) == 3


def test_last_workers_with_data_stay(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    futures = client.scatter(list(range(4)), hash=False)
    everybody = [w.address for w in cluster.workers]
    retired = client.retire_workers(everybody)
    assert len(retired) < 2
    assert client.gather(futures) == list(range(4))
    stayed = set(everybody) - set(retired)
    for address in stayed:
        eventually(
            lambda a=address: cluster.identity()["workers"][a]["status"] == "running"
        )
        actions = [e["action"] for _, e in client.get_events(address)]
        assert "could-not-retire" in actions
    assert client.submit(inc, 1).result() == 2


def test_empty_workers_all_retire(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    retired = client.retire_workers([w.address for w in cluster.workers])
    assert len(retired) == 2
    assert not cluster.identity()["workers"]


def test_worker_with_an_actor_stays(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    counter = client.submit(Counter, actor=True, workers=["w0"]).result()
    assert client.retire_workers(names=["w0"]) == {}
    assert counter.increment().result() == 1


def test_retirement_without_removal(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    future = client.submit(inc, 1, workers=["w0"], allow_other_workers=True)
    wait(future)
    address = cluster.worker("w0").address
    retired = client.retire_workers([address], close_workers=False, remove=False)
    assert retired[address]["status"] == "closing_gracefully"
    assert cluster.identity()["workers"][address]["status"] == "closing_gracefully"
    assert cluster.worker("w1").address in cluster.tasks()[future.key]
    assert set(client.gather(client.map(worker_name, range(10), pure=False))) == {"w1"}


def test_retirement_is_told_as_events(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    address = cluster.worker("w0").address
    cluster.call("retire_workers", workers=[address], stimulus_id="my-stimulus")
    expected = {
        "action": "retire-workers",
        "retired": (address,),
        "could-not-retire": (),
        "stimulus_id": "my-stimulus",
    }
    log = [event for _, event in client.get_events("all")]
    told = [e for e in log if e["action"] == "retire-workers"]
    assert [
        {k: tuple(v) if isinstance(v, list) else v for k, v in e.items()} for e in told
    ] == [expected]
    own = [event for _, event in client.get_events(address)]
    assert {"action": "retired", "stimulus_id": "my-stimulus"} in own


def test_workers_chosen_by_the_scheduler_retire(fresh_cluster, connect):
    cluster = fresh_cluster(workers=3)
    client = connect(cluster)
    assert len(client.retire_workers(n=2)) == 2
    assert len(cluster.identity()["workers"]) == 1


def test_arguments_that_exclude_each_other(client):
    with pytest.raises(TypeError, match="mutually exclusive"):
        client.retire_workers(workers=["a"], names=["b"])
    with pytest.raises(TypeError, match="mutually exclusive"):
        client.retire_workers(workers=["a"], n=2)


def test_workers_close_in_groups(fresh_cluster, connect):
    import cloudpickle

    cluster = fresh_cluster(workers=4)
    key = cloudpickle.dumps(lambda ws: int(ws.name[1:]) // 2)
    names = cluster.call("workers_to_close", n=2, key=key, attribute="name")
    assert sorted(names) in (["w0", "w1"], ["w2", "w3"])
    assert cluster.call("workers_to_close", n=1, key=key) == ()
    by_state = cloudpickle.dumps(lambda ws: (ws.status.name, ws.memory_limit > 0))
    assert len(cluster.call("workers_to_close", n=4, key=by_state)) == 4


def test_replicas_are_limited_to_the_workers_named(fresh_cluster, connect):
    cluster = fresh_cluster(workers=3, config=OFF)
    client = connect(cluster)
    future = client.submit(inc, 1, workers=["w0"], allow_other_workers=True)
    wait(future)
    workers = [cluster.worker(name).address for name in ("w0", "w1")]
    client.replicate([future], workers=workers)
    assert set(cluster.tasks()[future.key]) == set(workers)
    client.replicate([future], n=1, workers=workers)
    assert len(cluster.tasks()[future.key]) == 1


def test_replication_can_leave_surplus_replicas(fresh_cluster, connect):
    cluster = fresh_cluster(workers=3, config=OFF)
    client = connect(cluster)
    future = client.submit(inc, 1)
    client.replicate([future])
    key = future.key
    assert cluster.call("replicate", keys=[key], n=1, delete=False) is None
    assert replica_count(cluster, future) == [3]
    assert cluster.call("replicate", keys=[key], n=2, branching_factor=1) is None
    assert replica_count(cluster, future) == [2]


def test_replication_is_told_as_events(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, config=OFF)
    client = connect(cluster)
    future = client.submit(inc, 1, workers=["w0"], allow_other_workers=True)
    wait(future)
    client.replicate([future])
    w0, w1 = (cluster.worker(name).address for name in ("w0", "w1"))
    added = [e for _, e in client.get_events(w1) if e["action"] == "replicate-add"]
    assert [set(e["who_has"]) for e in added] == [{future.key}]
    assert list(added[0]["who_has"][future.key]) == [w0]
    client.replicate([future], n=1)
    removed = [
        (address, list(e["keys"]))
        for address in (w0, w1)
        for _, e in client.get_events(address)
        if e["action"] == "remove-worker-data"
    ]
    assert len(removed) == 1
    assert removed[0][1] == [future.key]


def test_errors_of_replication(fresh_cluster, connect, name):
    cluster = fresh_cluster(workers=1, config=OFF)
    client = connect(cluster)
    future = client.submit(inc, 1)
    wait(future)
    unfinished = client.submit(inc, 1, resources={"gpu": 1}, key=name("unfinished"))
    eventually(lambda: cluster.knows(unfinished.key))
    failed = cluster.call("replicate", keys=[future.key, unfinished.key])
    assert failed == {"status": "partial-fail", "keys": (unfinished.key,)}
    with pytest.raises(KeyError):
        client.sync(client.scheduler.replicate, keys=["unknown"])
    with pytest.raises(ValueError, match="Can not use replicate to delete data"):
        client.sync(client.scheduler.replicate, keys=[future.key], n=0)
    with pytest.raises(AssertionError):
        client.sync(client.scheduler.replicate, keys=[future.key], branching_factor=0)


REBALANCE = {
    "distributed.worker.memory.rebalance.measure": "managed",
    "distributed.worker.memory.rebalance.sender-min": 0.0,
    "distributed.worker.memory.rebalance.sender-recipient-gap": 0.0,
}


def test_rebalancing_of_certain_keys_and_workers(fresh_cluster, connect):
    cluster = fresh_cluster(workers=3, config=OFF | REBALANCE)
    client = connect(cluster)
    data = [os.urandom(1000) for _ in range(9)]
    futures = client.scatter(data, workers=["w0"], hash=False)
    w0, w1, w2 = (cluster.worker(name).address for name in ("w0", "w1", "w2"))
    client.rebalance(futures[:2])
    moved = [f for f in futures if list(cluster.tasks()[f.key]) != [w0]]
    assert set(moved) == set(futures[:2])
    client.rebalance(workers=[w0, w1])
    holders = [address for f in futures for address in cluster.tasks()[f.key]]
    assert w2 not in holders or holders.count(w2) == 1
    client.rebalance()
    holders = [address for f in futures for address in cluster.tasks()[f.key]]
    assert [holders.count(w) for w in (w0, w1, w2)] == [3, 3, 3]
    assert client.gather(futures) == data


def test_rebalancing_is_told_as_events(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, config=OFF | REBALANCE)
    client = connect(cluster)
    client.rebalance()
    futures = client.scatter(
        [os.urandom(1000) for _ in range(4)], workers=["w0"], hash=False
    )
    client.rebalance()
    w0, w1 = (cluster.worker(name).address for name in ("w0", "w1"))
    told = [e for _, e in client.get_events("all") if e["action"] == "rebalance"]
    assert told == [
        {"action": "rebalance", "senders": 0, "recipients": 0, "moved_keys": 0},
        {
            "action": "rebalance",
            "senders": {w0: 2},
            "recipients": {w1: 2},
            "moved_keys": 2,
        },
    ]
    own = [e for _, e in client.get_events(w1) if e["action"] == "rebalance"]
    assert [len(e["who_has"]) for e in own] == [2]
    assert len(futures) == 4


def test_errors_of_rebalancing(fresh_cluster, connect, name):
    cluster = fresh_cluster(workers=2, config=OFF)
    client = connect(cluster)
    assert cluster.call("rebalance") == {"status": "OK"}
    assert cluster.call("rebalance", keys=[]) == {"status": "OK"}
    assert cluster.call("rebalance", workers=[]) == {"status": "OK"}
    failed = cluster.call("rebalance", keys=["unknown"])
    assert failed == {"status": "partial-fail", "keys": ("unknown",)}
    with pytest.raises(KeyError):
        client.sync(client.scheduler.rebalance, workers=["tcp://127.0.0.1:1"])


def policies(*policies):
    """A configuration with policies of one's own, see memory_policies.py."""
    key = "distributed.scheduler.active-memory-manager.policies"
    return SOON | {key: list(policies)}


def test_policy_of_ones_own(fresh_cluster, connect):
    policy = {"class": "memory_policies.TwoOfEach", "prefix": "inc"}
    cluster = fresh_cluster(workers=3, config=policies(policy))
    client = connect(cluster)
    copied = client.map(inc, range(5))
    single = client.submit(add, 1, 2)
    wait([single])
    eventually(lambda: replica_count(cluster, *copied) == [2] * 5)
    assert replica_count(cluster, single) == [1]


def test_policies_of_ones_own_with_candidates_run_on_demand(fresh_cluster, connect):
    config = policies({"class": "memory_policies.Elsewhere"}) | OFF
    cluster = fresh_cluster(workers=2, config=config)
    client = connect(cluster)
    futures = client.scatter(list(range(4)), workers=["w0"], hash=False)
    w1 = cluster.worker("w1").address
    client.amm.run_once()
    eventually(lambda: replica_count(cluster, *futures) == [2] * 4)
    client.amm.run_once()
    eventually(lambda: [list(cluster.tasks()[f.key]) for f in futures] == [[w1]] * 4)
    assert client.gather(futures) == list(range(4))


def test_policy_that_cannot_be_imported_stops_the_scheduler(fresh_cluster):
    config = policies({"class": "no_such_module.Policy"})
    with pytest.raises(RuntimeError, match="the scheduler ended with"):
        fresh_cluster(workers=0, config=config)
