"""Work stealing: tasks go from workers with much to do to workers with little."""

from __future__ import annotations

import asyncio
import time

import pytest
from cluster import eventually
from conformance_tasks import append_line, inc, wait_for_event, worker_name
from distributed import Client, Event, secede, wait
from scripted_worker import ScriptedWorker
from test_http import fetch

SOON = {"distributed.scheduler.work-stealing-interval": "20ms"}


def nap(i, *_, seconds=0.05):
    time.sleep(seconds)
    return worker_name()


def secede_and_wait(i):
    secede()
    return wait_for_event("release", worker_name())


def seceded_count(dask_worker):
    return len(dask_worker.state.long_running)


def pile_up(client, function, count, **kwargs):
    """Tasks that all go to `w0` at first."""
    return client.map(
        function,
        range(count),
        workers=["w0"],
        allow_other_workers=True,
        pure=False,
        **kwargs,
    )


def events(client, kind):
    return [e for _, e in client.get_events("stealing") if e[0] == kind]


def test_worker_that_joins_takes_over_work(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1, config=SOON)
    client = connect(cluster)
    futures = pile_up(client, nap, 60)
    cluster.add_worker(name="late")
    assert set(client.gather(futures)) == {"w0", "late"}


def test_stolen_tasks_run_once(fresh_cluster, connect, tmp_path):
    cluster = fresh_cluster(workers=3, config=SOON)
    client = connect(cluster)
    path = tmp_path / "runs"

    def note(i, path):
        time.sleep(0.02)
        return append_line(path, i)

    futures = pile_up(client, note, 100, path=str(path))
    assert client.gather(futures) == list(range(100))
    assert sorted(map(int, path.read_text().split())) == list(range(100))
    assert events(client, "confirm")


def test_steps_are_told_as_events(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, config=SOON)
    client = connect(cluster)
    futures = pile_up(client, nap, 40)
    client.gather(futures)
    addresses = {w.address for w in cluster.workers}
    keys = {f.key for f in futures}
    requests = [entry for _, entries in events(client, "request") for entry in entries]
    assert requests
    for when, level, key, cost, victim, occ_victim, thief, occ_thief in requests:
        assert abs(time.time() - when) < 60
        assert level == 0
        assert key in keys
        assert cost > 0
        assert occ_victim > occ_thief
        assert {victim, thief} == addresses
    confirmed = events(client, "confirm")
    assert confirmed
    for _, key, state, victim, thief, stimulus_id in confirmed:
        assert key in keys
        assert state in ("ready", "constrained", "waiting")
        assert {victim, thief} == addresses
        assert stimulus_id.startswith("steal-")
    stimuli = [e[-1] for e in confirmed + events(client, "already-computing")]
    assert len(set(stimuli)) == len(stimuli)


def test_no_stealing_when_it_is_off(fresh_cluster, connect):
    cluster = fresh_cluster(
        workers=2, config=SOON | {"distributed.scheduler.work-stealing": False}
    )
    client = connect(cluster)
    assert set(client.gather(pile_up(client, nap, 20))) == {"w0"}
    assert not client.get_events("stealing")


def test_restricted_tasks_stay(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, config=SOON)
    client = connect(cluster)
    futures = client.map(nap, range(20), workers=["w0"], pure=False)
    assert set(client.gather(futures)) == {"w0"}
    assert not events(client, "confirm")


def test_resources_are_respected(fresh_cluster, connect):
    cluster = fresh_cluster(
        workers=3,
        resources=["gpu=1", "gpu=1", None],
        config=SOON,
        names=["w0", "w1", "w2"],
    )
    client = connect(cluster)
    # The second worker comes to work only by stealing.
    release = Event("release", client=client)
    blocked = client.submit(
        wait_for_event, "release", workers=["w1"], resources={"gpu": 1}
    )
    futures = client.map(nap, range(30), resources={"gpu": 1}, pure=False)
    release.set()
    assert set(client.gather(futures)) <= {"w0", "w1"}
    wait(blocked)


def test_seceded_tasks_stay(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1, config=SOON)
    client = connect(cluster)
    release = Event("release", client=client)
    futures = pile_up(client, secede_and_wait, 10)
    eventually(lambda: client.run(seceded_count)[cluster.worker("w0").address] == 10)
    cluster.add_worker(name="late")
    # Work for the late one, so that rounds of stealing have come and gone.
    client.gather(client.map(nap, range(10), workers=["late"], pure=False))
    release.set()
    assert set(client.gather(futures)) == {"w0"}


def test_inputs_come_along(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, config=SOON)
    client = connect(cluster)
    root = client.submit(inc, 1, workers=["w0"])
    wait(root)

    def use(i, root):
        time.sleep(0.05)
        return worker_name(), root

    futures = client.map(use, range(60), root=root, pure=False)
    results = client.gather(futures)
    assert {name for name, _ in results} == {"w0", "w1"}
    assert {value for _, value in results} == {2}


def test_priorities_and_cancellation_survive(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, config=SOON)
    client = connect(cluster)
    futures = pile_up(client, nap, 60)
    kept = futures[::2]
    client.cancel(futures[1::2])
    assert len(client.gather(kept)) == 30
    eventually(lambda: cluster.has_forgotten(*(f.key for f in futures[1::2])))


def test_death_of_a_victim_or_thief_loses_nothing(fresh_cluster, connect):
    cluster = fresh_cluster(workers=3, config=SOON)
    client = connect(cluster)
    futures = pile_up(client, nap, 120)
    eventually(lambda: events(client, "confirm"))
    cluster.kill_worker(cluster.worker("w0"))
    cluster.kill_worker(cluster.worker("w1"))
    assert set(client.gather(futures)) <= {"w0", "w1", "w2"}


def test_requests_are_counted(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, config=SOON)
    client = connect(cluster)
    client.gather(pile_up(client, nap, 40))
    status, _, text = fetch(cluster, "/metrics")
    assert status == 200
    names = ("request_count_total", "request_cost_total")
    if "dask_stealing_" not in text:
        pytest.skip("this scheduler has no Prometheus metrics")
    for name in names:
        lines = [
            t for t in text.splitlines() if t.startswith(f"dask_stealing_{name}{{")
        ]
        values = {t.split('"')[1]: float(t.split()[-1]) for t in lines}
        assert list(values)[:3] == ["1.0", "1.03125", "1.0625"]
        assert len(values) == 15
        assert values["1.0"] > 0


@pytest.fixture
def script(fresh_cluster):
    """Runs a coroutine function with a client and a scripted victim beside an idle worker."""

    def run(body):
        cluster = fresh_cluster(workers=1, config=SOON, names=["thief"])

        async def main():
            async with (
                Client(cluster.address, asynchronous=True, timeout=10) as client,
                ScriptedWorker(cluster.address, name="victim") as worker,
            ):
                futures = client.map(
                    inc,
                    range(4),
                    workers=[worker.address],
                    allow_other_workers=True,
                    pure=False,
                )
                await asyncio.wait_for(body(client, worker, futures), 40)

        asyncio.run(main())

    return run


async def answer(worker, request, state):
    await worker.send(
        "steal-response",
        key=request["key"],
        state=state,
        stimulus_id=request["stimulus_id"],
    )


def future_of(futures, key):
    return next(f for f in futures if f.key == key)


@pytest.mark.parametrize("state", ["ready", "constrained", "waiting"])
def test_task_given_up_goes_to_the_thief(script, state):
    async def body(client, worker, futures):
        request = await worker.expect("steal-request")
        await answer(worker, request, state)
        assert isinstance(await future_of(futures, request["key"]).result(), int)
        who_has = await client.who_has()
        assert worker.address not in who_has[request["key"]]

    script(body)


@pytest.mark.parametrize("state", ["executing", "long-running", "memory", "resumed"])
def test_task_that_has_begun_stays(script, state):
    async def body(client, worker, futures):
        request = await worker.expect("steal-request")
        task = await worker.expect("compute-task", key=request["key"])
        await answer(worker, request, state)
        await worker.finish(task)
        await wait(future_of(futures, request["key"]))
        who_has = await client.who_has()
        assert list(who_has[request["key"]]) == [worker.address]

    script(body)


@pytest.mark.parametrize("state", [None, "released"])
def test_task_that_the_victim_does_not_know_is_assigned_again(script, state):
    async def body(client, worker, futures):
        request = await worker.expect("steal-request")
        task = await worker.expect("compute-task", key=request["key"])
        await answer(worker, request, state)
        freed = await worker.expect("free-keys")
        assert list(freed["keys"]) == [request["key"]]
        again = await worker.expect("compute-task", key=request["key"])
        assert again["run_id"] > task["run_id"]
        await worker.finish(again)
        await wait(future_of(futures, request["key"]))

    script(body)


def test_answer_after_the_result_changes_nothing(script):
    """Pitfall 27."""

    async def body(client, worker, futures):
        request = await worker.expect("steal-request")
        task = await worker.expect("compute-task", key=request["key"])
        await worker.finish(task)
        await wait(future_of(futures, request["key"]))
        await answer(worker, request, "ready")
        await answer(worker, request | {"key": "unknown"}, "ready")
        entries = []
        while not entries:
            log = await client.get_events("stealing")
            entries = [e for _, e in log if e[0] == "already-aborted"]
        assert entries[0][1:4] == (request["key"], "ready", worker.address)
        who_has = await client.who_has()
        assert list(who_has[request["key"]]) == [worker.address]

    script(body)


def test_run_of_a_stolen_task_is_not_taken_from_the_victim(script):
    """Pitfall 4: the victim reports a run that it has given up."""

    async def body(client, worker, futures):
        request = await worker.expect("steal-request")
        task = await worker.expect("compute-task", key=request["key"])
        await answer(worker, request, "ready")
        await worker.finish(task)
        result = await future_of(futures, request["key"]).result()
        assert isinstance(result, int)
        who_has = await client.who_has()
        assert worker.address not in who_has[request["key"]]

    script(body)
