"""Python given to the scheduler: functions, plug-ins, feeds."""

from __future__ import annotations

import asyncio
import sys

import dask
import pytest
from cluster import call, eventually
from conformance_tasks import inc
from distributed import Client, Event, SchedulerPlugin, wait
from distributed.core import connect as comm_connect
from distributed.diagnostics.progressbar import TextProgressBar
from distributed.protocol.pickle import dumps


class Recorder(SchedulerPlugin):
    """Keeps what it hears, in order."""

    def __init__(self, name="recorder", idempotent=False):
        self.name = name
        self.idempotent = idempotent
        self.heard = []

    async def start(self, scheduler):
        self.scheduler = scheduler
        self.heard.append(("start", scheduler.address))

    def transition(self, key, start, finish, *args, stimulus_id, **kwargs):
        ts = self.scheduler.tasks[key]
        self.heard.append(
            ("transition", key, start, finish, ts.state, kwargs.get("nbytes"))
        )

    def update_graph(
        self, scheduler, *, client, keys, tasks, annotations, priority, **kwargs
    ):
        known = {key: scheduler.tasks[key].state for key in tasks}
        self.heard.append(
            ("update_graph", client, set(keys), known, annotations, sorted(priority))
        )

    def add_worker(self, scheduler, worker):
        self.heard.append(("add_worker", worker in scheduler.workers))

    def remove_worker(self, scheduler, worker, *, stimulus_id, **kwargs):
        self.heard.append(("remove_worker", worker in scheduler.workers))

    def add_client(self, scheduler, client):
        self.heard.append(("add_client", client in scheduler.clients))

    def remove_client(self, scheduler, client):
        self.heard.append(("remove_client", client in scheduler.clients))

    def restart(self, scheduler):
        self.heard.append(("restart",))

    def log_event(self, topic, msg):
        if topic == "told":
            self.heard.append(("log_event", msg))


def heard(client, *kinds, name="recorder"):
    def read(dask_scheduler):
        return list(dask_scheduler.plugins[name].heard)

    found = client.run_on_scheduler(read)
    return [entry for entry in found if not kinds or entry[0] in kinds]


# Functions


def test_a_function_runs_and_its_result_comes_back(client):
    assert client.run_on_scheduler(lambda x, y=1: (x, y), 5, y=[6]) == (5, [6])


def test_the_scheduler_is_given_to_who_asks_for_it(client, cluster):
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.address) == (
        cluster.address
    )


def test_an_exception_comes_back_with_its_traceback(client):
    def fail():
        raise LookupError("not here")

    with pytest.raises(LookupError, match="not here") as caught:
        client.run_on_scheduler(fail)
    assert caught.traceback[-1].name == "fail"


def test_a_coroutine_function(client):
    async def later(dask_scheduler):
        await asyncio.sleep(0)
        return len(dask_scheduler.workers)

    assert client.run_on_scheduler(later) == 2


def test_a_coroutine_that_nobody_waits_for(client, name):
    topic = name("topic")

    async def later(topic, dask_scheduler):
        await asyncio.sleep(0)
        dask_scheduler.log_event(topic, "done")

    assert client.run_on_scheduler(later, topic, wait=False) is None
    eventually(lambda: [m for _, m in client.get_events(topic)] == ["done"])


def test_only_coroutines_can_be_left_alone(client):
    with pytest.raises(AssertionError, match="Combination not supported"):
        client.run_on_scheduler(lambda: 1, wait=False)


def test_what_cannot_be_unpickled_is_an_error(cluster):
    answer = call(cluster.address, "run_function", function=b"nonsense")
    assert answer["status"] == "uncaught-error"


def test_what_a_function_leaves_behind_stays(fresh_cluster, connect):
    cluster = fresh_cluster(workers=0)
    client = connect(cluster)

    def put(dask_scheduler):
        dask_scheduler.note = "left"

    client.run_on_scheduler(put)
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.note) == "left"


def test_running_a_function_is_an_event(fresh_cluster, connect):
    # Others leave events on this topic that stock cannot send.
    client = connect(fresh_cluster(workers=0))
    client.run_on_scheduler(lambda: 1)
    message = client.get_events("all")[-1][1]
    assert message["action"] == "run-function"


# State


def test_tasks(client, cluster):
    a = client.submit(inc, 1, key=("state", 0))
    with dask.annotate(priority=3, note="here"):
        b = client.submit(inc, a, key=("state", 1), retries=2)
    wait(b)

    def read(dask_scheduler):
        ts = dask_scheduler.tasks[("state", 1)]
        (dep,) = ts.dependencies
        return {
            "state": ts.state,
            "dependencies": dep.key,
            "dependents": [d.key for d in dep.dependents],
            "who_has": sorted(ws.address for ws in ts.who_has),
            "who_wants": [cs.client_key for cs in ts.who_wants],
            "nbytes": ts.nbytes,
            "type": ts.type,
            "priority": ts.priority[0],
            "annotations": {
                k: v for k, v in ts.annotations.items() if k in ("priority", "note")
            },
            "retries": ts.retries,
            "suspicious": ts.suspicious,
            "group": ts.group.name,
            "prefix": ts.prefix.name,
            "in_group": dict(ts.group.states)["memory"],
            "waiting_on": len(ts.waiting_on or ()),
            "waiters": len(dep.waiters or ()),
            "processing_on": ts.processing_on,
            "has_what": all(ts in ws.has_what for ws in ts.who_has),
            "wants_what": all(ts in cs.wants_what for cs in ts.who_wants),
            "actor": ts.actor,
            "exception": ts.exception,
        }

    holders = list(client.who_has(b)[("state", 1)])
    assert client.run_on_scheduler(read) == {
        "state": "memory",
        "dependencies": ("state", 0),
        "dependents": [("state", 1)],
        "who_has": sorted(holders),
        "who_wants": [client.id],
        "nbytes": 28,
        "type": "int",
        "priority": -3,
        "annotations": {"priority": 3, "note": "here"},
        "retries": 2,
        "suspicious": 0,
        "group": "state",
        "prefix": "state",
        "in_group": 2,
        "waiting_on": 0,
        "waiters": 0,
        "processing_on": None,
        "has_what": True,
        "wants_what": True,
        "actor": False,
        "exception": None,
    }


def test_tasks_at_work(single_client, name):
    gate = Event(name("gate"), client=single_client)
    first = single_client.submit(lambda e: e.wait(30), gate, key="at-work-first")
    second = single_client.submit(inc, first, key="at-work-second")

    def read(dask_scheduler):
        tasks = dask_scheduler.tasks
        if "at-work-second" not in tasks:
            return None
        first, second = tasks["at-work-first"], tasks["at-work-second"]
        return (
            first.state,
            first.processing_on.name if first.processing_on else None,
            [ts.key for ts in second.waiting_on or ()],
            [ts.key for ts in first.waiters or ()],
            [len(ws.processing) for ws in dask_scheduler.workers.values()],
        )

    eventually(
        lambda: (
            single_client.run_on_scheduler(read)
            == ("processing", "w0", ["at-work-first"], ["at-work-second"], [1])
        )
    )
    gate.set()
    wait(second)


def test_a_task_that_failed(client):
    def fail():
        raise ValueError("as told")

    bad = client.submit(fail, key="failed-cause")
    after = client.submit(inc, bad, key="failed-after")
    wait(after)

    def read(dask_scheduler):
        ts = dask_scheduler.tasks["failed-after"]
        cause = dask_scheduler.tasks["failed-cause"]
        return (
            ts.state,
            ts.exception_blame.key,
            cause.exception_text,
            "as told" in cause.traceback_text,
            len(cause.erred_on),
            dask_scheduler.erred_tasks[0].key,
        )

    assert client.run_on_scheduler(read) == (
        "erred",
        "failed-cause",
        "ValueError('as told')",
        True,
        1,
        "failed-cause",
    )


def test_restrictions(client, cluster):
    where = cluster.worker("w1").address
    future = client.submit(
        inc, 1, key="restricted", workers=["w1"], allow_other_workers=True
    )
    wait(future)

    def read(dask_scheduler):
        ts = dask_scheduler.tasks["restricted"]
        return ts.worker_restrictions, ts.loose_restrictions, ts.host_restrictions

    worker, loose, host = client.run_on_scheduler(read)
    assert (worker, loose, host or None) == ({where}, True, None)


def test_tasks_without_a_worker(fresh_cluster, connect):
    cluster = fresh_cluster(workers=0)
    client = connect(cluster)
    future = client.submit(inc, 1, key="nowhere")

    def read(dask_scheduler):
        return (
            [ts.key for ts in dask_scheduler.unrunnable],
            [ts.key for ts in dask_scheduler.queued],
            dask_scheduler.is_idle,
        )

    def waits():
        unrunnable, queued, idle = client.run_on_scheduler(read)
        return [*unrunnable, *queued] == ["nowhere"] and not idle

    eventually(waits)
    del future
    eventually(
        lambda: client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.is_idle)
    )


def test_workers(client, cluster):
    def read(dask_scheduler):
        s = dask_scheduler
        return {
            "workers": {
                ws.name: (address == ws.address, ws.nthreads, ws.status.name, ws.host)
                for address, ws in s.workers.items()
            },
            "aliases": sorted(s.aliases),
            "total_nthreads": s.total_nthreads,
            "running": len(s.running),
            "idle": len(s.idle),
            "saturated": len(s.saturated),
            "list": sorted(s.workers_list(None)) == sorted(s.workers),
            "coerced": s.coerce_address("w0") == s.aliases["w0"],
            "memory": all(ws.memory_limit == 2 * 2**30 for ws in s.workers.values()),
            "service": s.get_worker_service_addr(next(iter(s.workers)), "nonesuch"),
            "host_info": {
                host: (info["nthreads"], len(info["addresses"]))
                for host, info in s.host_info.items()
            },
        }

    assert client.run_on_scheduler(read) == {
        "workers": {
            "w0": (True, 2, "running", "127.0.0.1"),
            "w1": (True, 2, "running", "127.0.0.1"),
        },
        "aliases": ["w0", "w1"],
        "total_nthreads": 4,
        "running": 2,
        "idle": 2,
        "saturated": 0,
        "list": True,
        "coerced": True,
        "memory": True,
        "service": None,
        "host_info": {"127.0.0.1": (4, 2)},
    }


def test_the_metrics_of_workers(client):
    def read(dask_scheduler):
        return all(
            ws.metrics["memory"] > 0 and ws.memory.process > 0
            for ws in dask_scheduler.workers.values()
        )

    eventually(lambda: client.run_on_scheduler(read))


def test_the_scheduler_itself(client, cluster):
    def read(dask_scheduler):
        s = dask_scheduler
        return (
            type(s).__name__,
            s.ip,
            s.port == int(s.address.rsplit(":", 1)[1]),
            s.status.name,
            s.identity()["workers"].keys() == s.workers.keys(),
            s.identity()["id"] == s.id,
            list(s.services),
            client_names(s),
        )

    def client_names(s):
        return [name for name in s.clients if name != "fire-and-forget"]

    identity = cluster.identity()
    name, ip, port, status, workers, own_id, services, clients = (
        client.run_on_scheduler(read)
    )
    assert (name, ip, port, status) == ("Scheduler", "127.0.0.1", True, "running")
    assert workers
    assert own_id
    assert client.id in clients
    assert services == list(identity["services"])


def test_groups_and_prefixes(client):
    futures = client.map(inc, range(4), key="grouped")
    wait(futures)

    def read(dask_scheduler):
        tg = dask_scheduler.task_groups["grouped"]
        tp = dask_scheduler.task_prefixes["grouped"]
        return (
            len(tg),
            dict(tg.states)["memory"],
            set(tg.types),
            tg.nbytes_total,
            tg.duration > 0,
            tp.state_counts["memory"],
            tp.duration_average > 0,
            tg in tp.groups,
            dask_scheduler.get_task_prefix_states()["grouped"]["memory"],
        )

    assert client.run_on_scheduler(read) == (4, 4, {"int"}, 112, True, 4, True, True, 4)


def test_a_function_sees_the_state_of_its_moment(client):
    for number in range(5):
        key = f"moment-{number}"
        future = client.submit(inc, number, key=key)
        wait(future)
        assert client.run_on_scheduler(
            lambda dask_scheduler, key: dask_scheduler.tasks[key].state, key=key
        ) == ("memory")
        del future
        eventually(
            lambda key=key: (
                not client.run_on_scheduler(
                    lambda dask_scheduler, key: key in dask_scheduler.tasks, key=key
                )
            )
        )


def test_a_coroutine_sees_the_state_change(client, name):
    done = name("done")

    async def watch(key, dask_scheduler):
        while key not in dask_scheduler.tasks:
            await asyncio.sleep(0.01)
        while dask_scheduler.tasks[key].state != "memory":
            await asyncio.sleep(0.01)
        dask_scheduler.log_event(key, "seen")

    client.run_on_scheduler(watch, done, wait=False)
    future = client.submit(inc, 1, key=done)
    wait(future)
    eventually(lambda: client.get_events(done))


def test_the_story_of_a_task(client):
    future = client.submit(inc, 1, key="story")
    wait(future)

    def read(dask_scheduler):
        return [
            (entry.key, entry.start, entry.finish)
            for entry in dask_scheduler.story("story")
            if entry.key == "story"
        ], any(entry.key == "story" for entry in dask_scheduler.transition_log)

    assert client.run_on_scheduler(read) == (
        [
            ("story", "released", "waiting"),
            ("story", "waiting", "processing"),
            ("story", "processing", "memory"),
        ],
        True,
    )


# What functions do to the scheduler


def test_broadcast(client, cluster):
    async def ask(dask_scheduler):
        return await dask_scheduler.broadcast(msg={"op": "ping"})

    assert client.run_on_scheduler(ask) == {w.address: b"pong" for w in cluster.workers}


def test_retire_workers(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)

    async def retire(dask_scheduler):
        retired = await dask_scheduler.retire_workers(names=["w0"])
        return list(retired), list(dask_scheduler.workers)

    gone, stays = cluster.worker("w0").address, cluster.worker("w1").address
    assert client.run_on_scheduler(retire) == ([gone], [stays])


def test_remove_a_worker(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)

    async def remove(address, dask_scheduler):
        first = await dask_scheduler.remove_worker(address, stimulus_id="test")
        again = await dask_scheduler.remove_worker(address, stimulus_id="test")
        return first, again, address in dask_scheduler.workers

    address = cluster.worker("w0").address
    assert client.run_on_scheduler(remove, address) == ("OK", "already-removed", False)


def test_release_keys_of_a_client(client):
    future = client.submit(inc, 1, key="released-by-function")
    wait(future)

    def release(client, dask_scheduler):
        dask_scheduler.client_releases_keys(
            keys=["released-by-function"], client=client, stimulus_id="test"
        )
        return "released-by-function" in dask_scheduler.tasks

    assert client.run_on_scheduler(release, client.id) is False


def test_events_and_metadata(client, name):
    topic = name("topic")

    def use(topic, dask_scheduler):
        dask_scheduler.log_event(topic, {"number": 1})
        dask_scheduler.log_event([topic], 2)
        dask_scheduler.set_metadata(keys=[topic, "x"], value=[1, 2])
        return (
            [message for _, message in dask_scheduler.get_events(topic)],
            dask_scheduler.get_metadata(keys=[topic, "x"]),
            dask_scheduler.task_metadata[topic]["x"],
        )

    events, metadata, again = client.run_on_scheduler(use, topic)
    assert events == [{"number": 1}, 2]
    assert list(metadata) == list(again) == [1, 2]
    assert [m for _, m in client.get_events(topic)] == [{"number": 1}, 2]


def test_choice_of_workers_to_close(client, cluster):
    def choose(dask_scheduler):
        return (
            len(dask_scheduler.workers_to_close(n=1)),
            dask_scheduler.workers_to_close(n=2, attribute="name"),
            dask_scheduler.adaptive_target(),
        )

    count, names, target = client.run_on_scheduler(choose)
    assert count == 1
    assert sorted(names) == ["w0", "w1"]
    assert target <= 2


def test_close(fresh_cluster, connect):
    cluster = fresh_cluster(workers=0)
    client = connect(cluster)

    async def close(dask_scheduler):
        dask_scheduler._ongoing_background_tasks.call_soon(dask_scheduler.close)

    client.run_on_scheduler(close)
    assert cluster.scheduler.wait() == 0


@pytest.mark.parametrize("how", ["exit", "loop"])
def test_older_ways_to_end_the_scheduler(fresh_cluster, connect, how):
    cluster = fresh_cluster(workers=0)
    client = connect(cluster)

    async def end(how, dask_scheduler):
        if how == "exit":
            sys.exit(0)
        dask_scheduler.loop.stop()

    client.sync(
        client.scheduler.run_function,
        function=dumps(end),
        args=dumps((how,)),
        reply=False,
    )
    cluster.scheduler.wait()


def test_a_handler_of_ones_own(fresh_cluster, connect):
    cluster = fresh_cluster(workers=0)
    client = connect(cluster)

    def register(dask_scheduler):
        async def double(x):
            return 2 * x

        def stop(client, word):
            dask_scheduler.log_event("streamed", word)

        dask_scheduler.handlers["double-it"] = double
        dask_scheduler.stream_handlers["say-it"] = stop

    client.run_on_scheduler(register)
    assert eventually(lambda: cluster.call("double-it", x=21)) == 42
    client._send_to_scheduler({"op": "say-it", "word": "hello"})
    eventually(lambda: [m for _, m in client.get_events("streamed")] == ["hello"])


def test_a_message_for_a_client(client, name):
    heard = []
    client._stream_handlers["greeting"] = lambda word: heard.append(word)

    def greet(client, dask_scheduler):
        dask_scheduler.client_send(client, {"op": "greeting", "word": "hello"})

    client.run_on_scheduler(greet, client.id)
    eventually(lambda: heard == ["hello"])


def test_an_uploaded_module(fresh_cluster, connect, tmp_path):
    cluster = fresh_cluster(workers=0)
    client = connect(cluster)

    def use():
        import uploaded_for_the_scheduler

        return uploaded_for_the_scheduler.value

    with pytest.raises(ImportError):
        client.run_on_scheduler(use)
    path = tmp_path / "uploaded_for_the_scheduler.py"
    path.write_text("value = 'uploaded'\n")
    client.upload_file(str(path))
    assert client.run_on_scheduler(use) == "uploaded"


def test_serializers_of_the_client_count(cluster, connect):
    client = connect(cluster, serializers=["dask", "msgpack"])
    assert client.run_on_scheduler(lambda: 1) == 1
    with pytest.raises(TypeError):
        client.run_on_scheduler(lambda: inc)


# Plug-ins


def test_a_plugin_hears_of_transitions(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.register_plugin(Recorder())
    future = client.submit(inc, 1, key="x")
    wait(future)
    del future
    eventually(lambda: heard(client, "transition")[-1][3] == "forgotten")
    found = [entry[1:] for entry in heard(client, "transition")]
    assert found[:3] == [
        ("x", "released", "waiting", "waiting", None),
        ("x", "waiting", "processing", "processing", None),
        ("x", "processing", "memory", "memory", 28),
    ]
    assert found[-1] == ("x", found[-1][1], "forgotten", "forgotten", None)
    assert heard(client, "start") == [("start", cluster.address)]


def test_a_plugin_hears_of_graphs(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.register_plugin(Recorder())
    with dask.annotate(note="here"):
        a = dask.delayed(inc)(1, dask_key_name="a")
    b = dask.delayed(inc)(a, dask_key_name="b")
    future = client.compute(b, optimize_graph=False)
    wait(future)
    (entry,) = heard(client, "update_graph")
    _, who, keys, known, annotations, priority = entry
    assert who == client.id
    assert keys == {"b"}
    assert known.keys() == {"a", "b"}
    assert priority == ["a", "b"]
    assert annotations["note"] == {"a": "here"}


def test_a_plugin_hears_of_a_large_graph_once(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.register_plugin(Recorder())
    futures = client.map(inc, range(3000))
    wait(futures)
    (entry,) = heard(client, "update_graph")
    assert len(entry[3]) == len(entry[2]) == 3000
    finished = [e[1] for e in heard(client, "transition") if e[3] == "memory"]
    assert len(finished) == len(set(finished)) == 3000


def test_a_plugin_hears_of_workers_and_clients(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.register_plugin(Recorder())
    late = cluster.add_worker()
    with Client(cluster.address):
        pass
    cluster.kill_worker(late)
    kinds = ("add_worker", "remove_worker", "add_client", "remove_client")
    eventually(lambda: len(heard(client, *kinds)) == 4)
    assert sorted(heard(client, *kinds)) == [
        ("add_client", True),
        ("add_worker", True),
        ("remove_client", False),
        ("remove_worker", False),
    ]


def test_a_plugin_with_coroutines(fresh_cluster, connect):
    class Slow(SchedulerPlugin):
        name = "slow"

        async def add_worker(self, scheduler, worker):
            await asyncio.sleep(0)
            scheduler.log_event("slow", "added")

        async def remove_worker(self, scheduler, worker, **kwargs):
            await asyncio.sleep(0)
            scheduler.log_event("slow", "removed")

    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.register_plugin(Slow())
    cluster.kill_worker(cluster.add_worker())
    eventually(
        lambda: [m for _, m in client.get_events("slow")] == ["added", "removed"]
    )


def test_a_plugin_hears_of_restarts_and_events(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1, nanny=True)
    client = connect(cluster)
    client.register_plugin(Recorder())
    client.log_event("told", [1, 2])
    client.restart()
    assert [tuple(m) for _, m in heard(client, "log_event")] == [(1, 2)]
    assert heard(client, "restart") == [("restart",)]


def test_a_plugin_that_fails_does_not_harm(fresh_cluster, connect):
    class Broken(SchedulerPlugin):
        def transition(self, *args, **kwargs):
            raise RuntimeError("broken on purpose")

        update_graph = add_worker = add_client = log_event = transition

    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.register_plugin(Broken())
    assert client.gather(client.map(inc, range(5))) == [1, 2, 3, 4, 5]
    cluster.add_worker()
    assert client.submit(inc, 1, pure=False).result() == 2
    eventually(lambda: "broken on purpose" in cluster.scheduler.read_log())


def test_a_plugin_that_does_not_start_is_not_registered(fresh_cluster, connect):
    class Refuses(SchedulerPlugin):
        name = "refuses"

        def start(self, scheduler):
            raise RuntimeError("will not start")

    cluster = fresh_cluster(workers=0)
    client = connect(cluster)
    with pytest.raises(RuntimeError, match="will not start"):
        client.register_plugin(Refuses())
    names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins))
    assert "refuses" not in names


def test_a_plugin_of_a_known_name(fresh_cluster, connect):
    class Numbered(SchedulerPlugin):
        def __init__(self, number, idempotent=False):
            self.name = "numbered"
            self.number = number
            self.idempotent = idempotent

    cluster = fresh_cluster(workers=0)
    client = connect(cluster)

    def number():
        return client.run_on_scheduler(
            lambda dask_scheduler: dask_scheduler.plugins["numbered"].number
        )

    client.register_plugin(Numbered(1))
    client.register_plugin(Numbered(2))
    assert number() == 2
    client.register_plugin(Numbered(3, idempotent=True))
    assert number() == 2


def test_a_plugin_is_unregistered(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.register_plugin(Recorder())
    client.unregister_scheduler_plugin("recorder")
    names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins))
    assert "recorder" not in names
    with pytest.raises(ValueError, match="Could not find plugin 'recorder'"):
        client.unregister_scheduler_plugin("recorder")


def test_a_function_adds_and_removes_a_plugin(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)

    def add(dask_scheduler):
        plugin = Recorder("by-function")
        plugin.scheduler = dask_scheduler
        dask_scheduler.add_plugin(plugin)

    client.run_on_scheduler(add)
    wait(client.submit(inc, 1, key="y"))
    assert [e[1] for e in heard(client, "transition", name="by-function")][:1] == ["y"]
    client.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.remove_plugin(name="by-function")
    )
    with pytest.raises(KeyError):
        heard(client, name="by-function")


def test_a_plugin_says_which_workers_may_go(fresh_cluster, connect):
    class KeepFirst(SchedulerPlugin):
        name = "keep-first"

        def valid_workers_downscaling(self, scheduler, workers):
            return [ws for ws in workers if ws.name != "w0"]

    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    client.register_plugin(KeepFirst())
    eventually(
        lambda: list(cluster.call("workers_to_close", n=1, attribute="name")) == ["w1"]
    )
    client.retire_workers(n=1, minimum=1)
    assert [w["name"] for w in cluster.identity()["workers"].values()] == ["w0"]


def test_a_plugin_is_closed_with_the_scheduler(fresh_cluster, connect, tmp_path):
    class Closing(SchedulerPlugin):
        name = "closing"

        def __init__(self, path):
            self.path = str(path)

        def note(self, word):
            with open(self.path, "a") as file:
                file.write(word + " ")

        async def before_close(self):
            self.note("before_close")

        async def close(self):
            self.note("close")

    cluster = fresh_cluster(workers=0)
    client = connect(cluster)
    path = tmp_path / "closed"
    client.register_plugin(Closing(path))
    client.shutdown()
    cluster.scheduler.wait()
    assert path.read_text() == "before_close close "


# Feeds


async def read_feed(address, count, **kwargs):
    comm = await comm_connect(address)
    try:
        await comm.write({"op": "feed", **kwargs})
        return [await comm.read() for _ in range(count)]
    finally:
        await comm.close()


def feed(address, count, **kwargs):
    return asyncio.run(asyncio.wait_for(read_feed(address, count, **kwargs), 30))


def test_a_feed(cluster):
    def function(scheduler):
        return len(scheduler.workers)

    assert feed(cluster.address, 3, function=dumps(function), interval="1 ms") == [
        2,
        2,
        2,
    ]


def test_a_feed_with_state(client, cluster, name):
    topic = name("topic")

    def setup(scheduler):
        return {"number": 0}

    def function(scheduler, state):
        state["number"] += 1
        return state["number"]

    def teardown(scheduler, state):
        scheduler.log_event(topic, state["number"])

    assert feed(
        cluster.address,
        3,
        setup=dumps(setup),
        function=dumps(function),
        teardown=dumps(teardown),
        interval=0.001,
    ) == [1, 2, 3]
    eventually(lambda: client.get_events(topic))


def test_a_feed_whose_function_fails(cluster):
    def function(scheduler):
        raise ValueError("no feed")

    (answer,) = feed(cluster.address, 1, function=dumps(function))
    assert answer["status"] == "uncaught-error"


def test_a_progress_bar(client, capsys):
    futures = client.map(inc, range(20), key="progress")
    bar = TextProgressBar(
        futures, scheduler=client.scheduler.address, interval="10ms", start=False
    )
    client.sync(bar.listen)
    assert bar.status == "finished"
    assert "100% Completed" in capsys.readouterr().out
