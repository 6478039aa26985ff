"""Plug-ins of workers and nannies, uploaded files."""

from __future__ import annotations

import pytest
from cluster import eventually
from conformance_tasks import inc, worker_name
from distributed import Event, NannyPlugin, WorkerPlugin, get_worker


def marks(client):
    return dict(
        client.run(
            lambda dask_worker: (dask_worker.name, getattr(dask_worker, "mark", None))
        ).values()
    )


class Mark(WorkerPlugin):
    """Sets an attribute of the worker."""

    def __init__(self, value, name="mark", idempotent=False):
        self.value = value
        self.name = name
        self.idempotent = idempotent

    def setup(self, worker):
        worker.mark = self.value

    def teardown(self, worker):
        worker.mark = f"{self.value} torn down"


def test_worker_plugin_runs_everywhere(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    answer = client.register_plugin(Mark("here"))
    assert {a: dict(v) for a, v in answer.items()} == {
        w.address: {"status": "OK"} for w in cluster.workers
    }
    assert marks(client) == {"w0": "here", "w1": "here"}


def test_worker_plugin_reaches_workers_that_join_later(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.register_plugin(Mark("here"))
    cluster.add_worker(name="late")
    assert marks(client) == {"w0": "here", "late": "here"}


def test_unregistered_worker_plugin_is_torn_down(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.register_plugin(Mark("here"))
    client.unregister_worker_plugin("mark")
    assert marks(client) == {"w0": "here torn down"}
    cluster.add_worker(name="late")
    assert marks(client)["late"] is None


def test_unregistering_an_unknown_plugin_is_an_error(client, name):
    with pytest.raises(ValueError, match="does not exist"):
        client.unregister_worker_plugin(name("plugin"))


def test_plugin_of_a_known_name_replaces_the_first(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.register_plugin(Mark("first"))
    client.register_plugin(Mark("second"))
    assert marks(client) == {"w0": "second"}


def test_idempotent_plugin_is_registered_once(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.register_plugin(Mark("first", idempotent=True))
    assert client.register_plugin(Mark("second", idempotent=True)) == {}
    assert marks(client) == {"w0": "first"}


def test_plugin_whose_setup_fails_is_an_error(fresh_cluster, connect):
    class Broken(WorkerPlugin):
        def setup(self, worker):
            raise RuntimeError("setup refused")

    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    with pytest.raises(RuntimeError, match="setup refused"):
        client.register_plugin(Broken())
    assert client.submit(inc, 1).result() == 2


def test_worker_plugin_sees_transitions(fresh_cluster, connect):
    class Count(WorkerPlugin):
        name = "count"

        def setup(self, worker):
            self.finished = set()

        def transition(self, key, start, finish, **kwargs):
            if finish == "memory":
                self.finished.add(key)

    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    client.register_plugin(Count())
    futures = client.map(inc, range(5))
    client.gather(futures)
    (finished,) = client.run(
        lambda dask_worker: dask_worker.plugins["count"].finished
    ).values()
    assert finished >= {f.key for f in futures}


def test_worker_callbacks(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)

    def setup(dask_worker):
        dask_worker.mark = "by callback"

    client.register_worker_callbacks(setup)
    cluster.add_worker(name="late")
    assert marks(client) == {"w0": "by callback", "late": "by callback"}


def test_nanny_plugin(fresh_cluster, connect):
    class Marker(NannyPlugin):
        name = "marker"

        def setup(self, nanny):
            nanny.mark = "nanny marked"

        def teardown(self, nanny):
            nanny.mark = "nanny unmarked"

    cluster = fresh_cluster(workers=1, nanny=True)
    client = connect(cluster)
    client.register_plugin(Marker())

    def mark(dask_worker):
        return getattr(dask_worker, "mark", None)

    assert set(client.run(mark, nanny=True).values()) == {"nanny marked"}
    cluster.add_worker(name="late", nanny=True)
    assert list(client.run(mark, nanny=True).values()) == ["nanny marked"] * 2
    client.unregister_worker_plugin("marker", nanny=True)
    assert list(client.run(mark, nanny=True).values()) == ["nanny unmarked"] * 2


def test_uploaded_module_is_usable_in_tasks(fresh_cluster, connect, tmp_path):
    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    path = tmp_path / "uploaded_for_tasks.py"
    path.write_text("def f(x):\n    return x * 11\n")
    client.upload_file(str(path))

    def use(x):
        import uploaded_for_tasks

        return uploaded_for_tasks.f(x)

    assert client.gather(client.map(use, range(4))) == [0, 11, 22, 33]
    cluster.add_worker(name="late")
    assert client.submit(use, 5, workers=["late"]).result() == 55


def test_uploaded_module_is_usable_where_graphs_are_unpickled(
    fresh_cluster, connect, tmp_path, monkeypatch
):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    path = tmp_path / "uploaded_for_graphs.py"
    path.write_text("class Thing:\n    x = 5\n\ndef f(thing):\n    return thing.x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    client.upload_file(str(path))
    import uploaded_for_graphs

    # Both are pickled by reference to the module.
    future = client.submit(uploaded_for_graphs.f, uploaded_for_graphs.Thing())
    assert future.result() == 5


def test_uploaded_module_is_replaced_by_a_newer_one(fresh_cluster, connect, tmp_path):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)

    def version():
        import uploaded_twice

        return uploaded_twice.version

    for number in (1, 22):
        path = tmp_path / str(number) / "uploaded_twice.py"
        path.parent.mkdir()
        path.write_text(f"version = {number}\n")
        client.upload_file(str(path))
        assert client.submit(version, pure=False).result() == number


def test_uploaded_zip_of_a_package(fresh_cluster, connect, tmp_path):
    import zipfile

    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    path = tmp_path / "packed.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("packed_package/__init__.py", "value = 'packed'\n")
    client.upload_file(str(path))

    def use():
        import packed_package

        return packed_package.value

    assert client.submit(use).result() == "packed"


def test_uploaded_data_file(fresh_cluster, connect, tmp_path):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)
    path = tmp_path / "data.txt"
    path.write_text("just text")
    client.upload_file(str(path))

    def read():
        import os

        with open(os.path.join(get_worker().local_directory, "data.txt")) as file:
            return file.read()

    assert client.submit(read).result() == "just text"


def test_plugin_that_talks_to_the_cluster(fresh_cluster, connect):
    class Announce(WorkerPlugin):
        name = "announce"

        def setup(self, worker):
            worker.log_event("announcements", worker.name)

    cluster = fresh_cluster(workers=2)
    client = connect(cluster)
    client.register_plugin(Announce())
    eventually(
        lambda: {m for _, m in client.get_events("announcements")} == {"w0", "w1"}
    )
    assert client.submit(worker_name, workers=["w0"]).result() == "w0"
    Event("announced").set()
