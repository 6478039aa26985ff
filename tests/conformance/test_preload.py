"""Modules that are loaded beside the scheduler."""

from __future__ import annotations

import functools
import http.server
import threading

import pytest
from cluster import eventually
from conformance_tasks import inc
from distributed import wait

TEXT = """
def dask_setup(scheduler):
    scheduler.preloaded = "by text"
"""


def preloaded(client):
    return client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.preloaded)


def write(path, text):
    path.write_text(text)
    return path


def test_a_file(fresh_cluster, connect, tmp_path):
    path = write(tmp_path / "preload_of_a_file.py", TEXT)
    cluster = fresh_cluster(workers=0, scheduler_args=f"--preload {path}")
    assert preloaded(connect(cluster)) == "by text"


def test_a_module_with_arguments(fresh_cluster, connect):
    cluster = fresh_cluster(
        workers=0,
        scheduler_args="--preload preload_module --word hello --no-dashboard one two",
    )
    assert preloaded(connect(cluster)) == ("hello", ["one", "two"])


def test_a_module_without_arguments(fresh_cluster, connect):
    cluster = fresh_cluster(workers=0, scheduler_args="--preload preload_module")
    assert preloaded(connect(cluster)) == ("nothing", [])


def test_configuration(fresh_cluster, connect):
    cluster = fresh_cluster(
        workers=0,
        config={
            "distributed.scheduler.preload": ["preload_module"],
            "distributed.scheduler.preload-argv": ["--word", "configured"],
        },
    )
    assert preloaded(connect(cluster)) == ("configured", [])


def test_a_text_of_the_configuration(fresh_cluster, connect):
    cluster = fresh_cluster(workers=0, config={"distributed.scheduler.preload": [TEXT]})
    assert preloaded(connect(cluster)) == "by text"


def test_a_web_address(fresh_cluster, connect, tmp_path):
    write(tmp_path / "served.py", TEXT)
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path)
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/served.py"
        cluster = fresh_cluster(workers=0, scheduler_args=f"--preload {url}")
        assert preloaded(connect(cluster)) == "by text"
        server.shutdown()
        thread.join()


def test_several_modules(fresh_cluster, connect, tmp_path):
    first = write(tmp_path / "preload_first.py", TEXT)
    second = write(
        tmp_path / "preload_second.py",
        "def dask_setup(scheduler):\n    scheduler.preloaded += ', twice'\n",
    )
    cluster = fresh_cluster(
        workers=0, scheduler_args=f"--preload {first} --preload {second}"
    )
    assert preloaded(connect(cluster)) == "by text, twice"


def test_peers_wait_for_a_coroutine(fresh_cluster, connect, tmp_path):
    path = write(
        tmp_path / "preload_slow.py",
        "import asyncio\n"
        "async def dask_setup(scheduler):\n"
        "    await asyncio.sleep(0.5)\n"
        "    scheduler.preloaded = len(scheduler.workers)\n",
    )
    cluster = fresh_cluster(workers=1, scheduler_args=f"--preload {path}")
    assert preloaded(connect(cluster)) == 0


def test_a_setup_that_fails_is_logged(fresh_cluster, connect, tmp_path):
    path = write(
        tmp_path / "preload_broken.py",
        "def dask_setup(scheduler):\n    raise RuntimeError('no set-up')\n",
    )
    cluster = fresh_cluster(workers=1, scheduler_args=f"--preload {path}")
    assert connect(cluster).submit(inc, 1).result() == 2
    assert "no set-up" in cluster.scheduler.read_log()


def test_a_module_that_is_not_there_ends_the_start(fresh_cluster):
    with pytest.raises(RuntimeError, match=r"(?s)ended with [12].*nonesuch_preload"):
        fresh_cluster(workers=0, scheduler_args="--preload nonesuch_preload")


def test_arguments_that_the_module_does_not_know_end_the_start(fresh_cluster):
    with pytest.raises(RuntimeError, match=r"(?s)ended with [12].*--nonesuch"):
        fresh_cluster(workers=0, scheduler_args="--preload preload_module --nonesuch 1")


def test_teardown(fresh_cluster, connect, tmp_path):
    ended = tmp_path / "ended"
    path = write(
        tmp_path / "preload_teardown.py",
        "async def dask_teardown(scheduler):\n"
        f"    open({str(ended)!r}, 'w').write(scheduler.address)\n",
    )
    cluster = fresh_cluster(workers=0, scheduler_args=f"--preload {path}")
    connect(cluster).shutdown()
    assert cluster.scheduler.wait() == 0
    assert ended.read_text() == cluster.address


def test_a_plugin_of_a_preload(fresh_cluster, connect, tmp_path):
    path = write(
        tmp_path / "preload_plugin.py",
        "from distributed import SchedulerPlugin\n"
        "class Count(SchedulerPlugin):\n"
        "    name = 'count'\n"
        "    def __init__(self):\n"
        "        self.started, self.finished, self.workers = 0, 0, 0\n"
        "    async def start(self, scheduler):\n"
        "        self.started += 1\n"
        "    def add_worker(self, scheduler, worker):\n"
        "        self.workers += 1\n"
        "    def transition(self, key, start, finish, *args, **kwargs):\n"
        "        self.finished += finish == 'memory'\n"
        "def dask_setup(scheduler):\n"
        "    scheduler.add_plugin(Count())\n",
    )
    cluster = fresh_cluster(workers=2, scheduler_args=f"--preload {path}")
    client = connect(cluster)
    wait(client.map(inc, range(5)))

    def read(dask_scheduler):
        plugin = dask_scheduler.plugins["count"]
        return plugin.started, plugin.workers, plugin.finished

    eventually(lambda: client.run_on_scheduler(read) == (1, 2, 5))
