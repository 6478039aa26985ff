"""Spans: which tasks belong together, and what the scheduler knows of them."""

from __future__ import annotations

import dask
import pytest
from cluster import eventually
from conformance_tasks import add, double, inc, slow_inc
from distributed import get_client, span, wait

#: Heartbeats bring the metrics of workers; they come twice a second at first.
METRICS_TIMEOUT = 20


def look(client, function, *args):
    return client.run_on_scheduler(function, *args)


def about(span_id, dask_scheduler):
    """What a span says of itself, as plain data."""
    found = dask_scheduler.extensions["spans"].spans[span_id]
    return {
        "name": found.name,
        "id": found.id,
        "parent": found.parent.name if found.parent else None,
        "children": [child.name for child in found.children],
        "groups": sorted(group.name for group in found.groups),
        "states": {state: n for state, n in found.states.items() if n},
        "done": found.done,
        "times": (found.enqueued, found.start, found.stop),
        "duration": found.duration,
        "durations": dict(found.all_durations),
        "nbytes": found.nbytes_total,
        "annotation": found.annotation,
        "metadata": found.metadata,
        "code": found.code,
        "intervals": found.nthreads_intervals,
        "cpu": found.active_cpu_seconds,
        "metrics": dict(found.cumulative_worker_metrics),
        "is_root": found in dask_scheduler.extensions["spans"].root_spans,
    }


def span_id_of(key, dask_scheduler):
    return dask_scheduler.tasks[key].group.span_id


def test_tasks_in_a_span(client, name):
    tag = name("tag")
    with span(tag) as span_id:
        futures = client.map(slow_inc, range(4), pure=False)
    wait(futures)
    found = look(client, about, span_id)
    assert found["name"] == (tag,)
    assert found["id"] == span_id
    assert found["parent"] is None
    assert found["is_root"]
    assert found["groups"] == ["slow_inc"]
    assert found["states"] == {"memory": 4}
    assert found["done"] is True
    assert found["nbytes"] == 4 * 28
    assert found["durations"]["compute"] >= 0.05
    assert found["duration"] >= 0.05
    assert found["annotation"] == {"name": (tag,), "ids": (span_id,)}
    enqueued, start, stop = found["times"]
    assert enqueued <= start < stop
    assert found["metadata"] == {"collections": [{"type": "Future"}]}


def test_spans_within_spans(client, name):
    outer, inner = name("outer"), name("inner")
    with span(outer) as outer_id:
        first = client.submit(inc, 1, pure=False)
        with span(inner) as inner_id:
            second = client.submit(double, 1, pure=False)
    wait([first, second])
    found = look(client, about, inner_id)
    assert found["name"] == (outer, inner)
    assert found["parent"] == (outer,)
    assert found["annotation"]["ids"] == (outer_id, inner_id)
    assert found["states"] == {"memory": 1}
    assert not found["is_root"]
    found = look(client, about, outer_id)
    assert found["children"] == [(outer, inner)]
    assert found["groups"] == ["inc"]
    assert found["states"] == {"memory": 2}


def test_several_tags_at_once(client, name):
    tags = name("a"), name("b"), name("c")
    with span(*tags) as span_id:
        future = client.submit(inc, 1, pure=False)
    wait(future)

    def names(span_id, dask_scheduler):
        found = dask_scheduler.extensions["spans"].spans[span_id]
        names = []
        while found:
            names.append(found.name)
            found = found.parent
        return names

    assert look(client, names, span_id) == [tags, tags[:2], tags[:1]]


def test_workers_know_the_span(client, cluster, name):
    with span(name("tag")) as span_id:
        future = client.submit(inc, 1, pure=False)
    wait(future)

    def on_worker(key, dask_worker):
        ts = dask_worker.state.tasks.get(key)
        return ts and (ts.span_id, ts.annotations)

    found = [told for told in client.run(on_worker, future.key).values() if told]
    [(told, annotations)] = found
    assert told == span_id
    assert annotations["span"]["ids"] == (span_id,)


def test_tasks_of_tasks_are_in_their_span(client, name):
    def outer():
        # Not to be closed: it is the worker's.
        inner = get_client().submit(inc, 1, pure=False)
        return dask.get_annotations()["span"], inner.result()

    with span(name("tag")) as span_id:
        future = client.submit(outer, pure=False)
    annotation, result = future.result()
    assert annotation["ids"] == (span_id,)
    assert look(client, about, span_id)["groups"] == ["inc", "outer"]
    assert result == 2


def test_the_default_span_is_closed_when_its_tasks_are_done(client):
    first = client.submit(inc, 1, pure=False)
    wait(first)
    second = client.submit(double, 1, pure=False)
    wait(second)
    ids = [look(client, span_id_of, future.key) for future in (first, second)]
    assert ids[0] != ids[1]
    for span_id, group in zip(ids, ["inc", "double"], strict=True):
        found = look(client, about, span_id)
        assert found["name"] == ("default",)
        assert found["annotation"] is None
        assert found["groups"] == [group]


def test_a_group_belongs_to_one_span(client, name):
    with span(name("first")) as span_id:
        first = client.submit(add, 1, 2, pure=False)
    with span(name("second")) as other_id:
        second = client.submit(add, 1, 2, pure=False)
        third = client.submit(inc, 1, pure=False)
    wait([first, second, third])
    assert look(client, about, span_id)["states"] == {"memory": 2}
    assert look(client, about, other_id)["states"] == {"memory": 1}

    def annotation(key, dask_scheduler):
        return dask_scheduler.tasks[key].annotations["span"]["ids"]

    assert look(client, annotation, second.key) == (span_id,)


def test_a_span_outlives_its_tasks(client, name):
    with span(name("tag")) as span_id:
        futures = client.map(slow_inc, range(3), pure=False)
    wait(futures)
    before = look(client, about, span_id)
    del futures
    eventually(lambda: look(client, about, span_id)["states"] == {"forgotten": 3})
    after = look(client, about, span_id)
    for what in ("groups", "duration", "durations", "times", "name", "metadata"):
        assert after[what] == before[what]
    assert after["nbytes"] in (0, before["nbytes"])


def test_collections_in_a_span(client, name):
    import dask.array as da

    with span(name("tag")) as span_id:
        da.ones((4, 4), chunks=2).sum().compute()
    found = look(client, about, span_id)
    assert found["done"]
    assert found["metadata"]["collections"]
    assert found["duration"] > 0


def test_spans_by_their_tags(client, name):
    a, b, c = name("a"), name("b"), name("c")
    with span(a):
        first = client.submit(inc, 1, pure=False)
        with span(b):
            second = client.submit(double, 1, pure=False)
    with span(c, b):
        third = client.submit(add, 1, 2, pure=False)
    wait([first, second, third])

    def find(tags, dask_scheduler):
        extension = dask_scheduler.extensions["spans"]
        merged = extension.merge_by_tags(*tags)
        return (
            [found.name for found in extension.find_by_tags(*tags)],
            {state: n for state, n in merged.states.items() if n},
            [found.name for found in extension.spans_search_by_name[(a,)]],
        )

    names, states, by_name = look(client, find, [b])
    assert sorted(names) == sorted([(a, b), (c, b)])
    assert states == {"memory": 2}
    assert by_name == [(a,)]
    assert look(client, find, [a, b])[0] == [(a,), (c, b)]


def test_all_spans_together(fresh_cluster, connect, name):
    client = connect(fresh_cluster(workers=1))
    with span("one"):
        first = client.submit(inc, 1)
    second = client.submit(double, 1)
    wait([first, second])

    def merge(dask_scheduler):
        merged = dask_scheduler.extensions["spans"].merge_all()
        return merged.name, {state: n for state, n in merged.states.items() if n}

    assert look(client, merge) == (("(merged)",), {"memory": 2})


def test_metrics_of_a_span(client, name):
    with span(name("tag")) as span_id:
        futures = client.map(slow_inc, range(4), delay=0.05, pure=False)
    wait(futures)

    def metrics():
        found = look(client, about, span_id)["metrics"]
        mine = {key: value for key, value in found.items() if key[1] == "slow_inc"}
        return mine and found

    found = eventually(metrics, timeout=METRICS_TIMEOUT)
    assert found["execute", "slow_inc", "thread-noncpu", "seconds"] >= 0.1
    assert found["execute", "slow_inc", "thread-cpu", "seconds"] >= 0
    assert found["execute", "N/A", "idle or other spans", "seconds"] >= 0
    assert {key[0] for key in found} == {"execute"}


def test_metrics_of_the_cluster(client, name):
    futures = client.map(slow_inc, range(4), delay=0.05, pure=False)
    wait(futures)

    def metrics(dask_scheduler):
        return dict(dask_scheduler.cumulative_worker_metrics)

    key = ("execute", "slow_inc", "thread-noncpu", "seconds")
    eventually(lambda: look(client, metrics).get(key), timeout=METRICS_TIMEOUT)
    found = look(client, metrics)
    assert found["latency"] > 0


def test_threads_at_the_time_of_a_span(fresh_cluster, connect, name):
    cluster = fresh_cluster(workers=1, nthreads=2)
    client = connect(cluster)
    with span(name("tag")) as span_id:
        futures = client.map(slow_inc, range(2), pure=False)
        wait(futures)
        cluster.add_worker(nthreads=1)
        futures += client.map(slow_inc, range(2), pure=False)
        wait(futures)
    found = look(client, about, span_id)
    assert [threads for _, _, threads in found["intervals"]] == [2, 3]
    [(start, middle, _), (again, stop, _)] = found["intervals"]
    assert start < middle == again < stop
    assert found["cpu"] == pytest.approx(
        2 * (middle - start) + 3 * (stop - middle), rel=1e-6
    )


def test_the_code_of_a_span(client, name):
    with (
        dask.config.set({"distributed.diagnostics.computations.nframes": 1}),
        span(name("tag")) as span_id,
    ):
        future = client.submit(inc, 41, pure=False)
    wait(future)
    [[source]] = look(client, about, span_id)["code"]
    assert "client.submit(inc, 41, pure=False)" in source.code
    assert source.filename == __file__

    def computations(dask_scheduler):
        return [code for found in dask_scheduler.computations for code in found.code]

    assert (source,) in look(client, computations)


def test_a_graph_without_code_has_none(client, name):
    with span(name("tag")) as span_id:
        future = client.submit(inc, 1, pure=False)
    wait(future)
    assert look(client, about, span_id)["code"] == []
