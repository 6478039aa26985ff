"""What the scheduler's HTTP server answers to browsers, probes and programs."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import xml.etree.ElementTree
from urllib.parse import quote

import pytest
from cluster import HOST, eventually
from conformance_tasks import inc, signal_and_wait, throws
from distributed import Event, Semaphore, wait


def port_of(cluster):
    return cluster.call("identity")["services"]["dashboard"]


def fetch(cluster, path):
    """Status, content type and body of a page; redirects are followed."""
    url = f"http://{HOST}:{port_of(cluster)}{path}"
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return (
                response.status,
                response.headers["Content-Type"],
                response.read().decode(),
            )
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def page(cluster, path):
    """Text of a page that must be there, well-formed and free of absolute links."""
    status, content_type, body = fetch(cluster, path)
    assert status == 200, body
    assert content_type.startswith("text/html")
    xml.etree.ElementTree.fromstring(
        body.replace("<!DOCTYPE html>", "").replace("&nbsp;", " ")
    )
    assert 'href="/' not in body
    return body


def test_health(cluster):
    assert fetch(cluster, "/health") == (200, "text/plain; charset=utf-8", "ok")


def test_counts(cluster, client, name):
    started, release = name("started"), name("release")
    done = client.map(inc, range(3), key=name("inc"))
    wait(done)
    running = client.submit(signal_and_wait, started, release)
    failed = client.submit(throws, 1)
    wait(failed)
    assert Event(started).wait(20)
    status, content_type, body = fetch(cluster, "/json/counts.json")
    assert status == 200
    assert content_type.startswith("application/json")
    counts = json.loads(body)
    expected = {
        "cores": 4,
        "erred": 1,
        "hosts": 1,
        "memory": 3,
        "processing": 1,
        "saturated": 0,
        "tasks": 5,
        "unrunnable": 0,
        "waiting": 0,
        "workers": 2,
    }
    assert counts | expected == counts
    assert counts.keys() - expected.keys() == {
        "bytes",
        "clients",
        "desired_workers",
        "idle",
        "released",
        "waiting_data",
    }
    Event(release).set()
    wait(running)


def test_identity(fresh_cluster):
    # Once a worker has reported metrics of its tasks, stock cannot write this page: those
    # have tuples as names.
    cluster = fresh_cluster(workers=2)
    status, _, body = fetch(cluster, "/json/identity.json")
    assert status == 200
    identity = json.loads(body)
    assert identity["address"] == cluster.address
    assert identity["type"] == "Scheduler"
    assert {w["name"] for w in identity["workers"].values()} == {"w0", "w1"}


def test_index_of_json(cluster):
    body = page(cluster, "/json/index.html")
    assert "counts.json" in body
    assert "identity.json" in body


def test_workers_page(cluster):
    body = page(cluster, "/info")
    assert cluster.address in body
    for worker in ("w0", "w1"):
        assert cluster.worker(worker).address in body


def test_worker_page(cluster, client, name):
    future = client.submit(inc, 1, key=name("inc"), workers=["w0"])
    wait(future)
    address = cluster.worker("w0").address
    body = page(cluster, f"/info/worker/{quote(address, safe='')}.html")
    assert address in body
    assert future.key in body
    other = cluster.worker("w1").address
    assert future.key not in page(cluster, f"/info/worker/{quote(other, safe='')}.html")


@pytest.mark.parametrize("part", ["x", "a+b", "a b", "[", "(", "'", '"', "é", "a/b"])
@pytest.mark.parametrize("kind", ["str", "tuple"])
def test_task_page(cluster, client, name, kind, part):
    key = f"{name('k')}{part}"
    if kind == "tuple":
        key = (key, 1)
    path = f"/info/task/{quote(str(key), safe='')}.html"
    assert fetch(cluster, path)[0] == 404
    future = client.submit(inc, 1, key=key, workers=["w0"])
    wait(future)
    body = page(cluster, path)
    assert cluster.worker("w0").address in body
    assert "memory" in body
    assert "int" in body
    assert "28 B" in body


def test_page_of_a_failed_task(cluster, client, name):
    future = client.submit(throws, 1, key=name("throws"))
    wait(future)
    for path in (f"/info/task/{future.key}.html", "/info/main/exceptions.html"):
        body = page(cluster, path)
        assert future.key in body
        assert "RuntimeError" in body


def test_call_stacks(cluster, client, name):
    started, release = name("started"), name("release")
    future = client.submit(
        signal_and_wait, started, release, key=name("waits"), workers=["w0"]
    )
    assert Event(started).wait(20)
    address = quote(cluster.worker("w0").address, safe="")
    for path in (
        f"/info/call-stack/{future.key}.html",
        f"/info/call-stacks/{address}.html",
    ):
        body = page(cluster, path)
        assert future.key in body
        assert "conformance_tasks.py" in body
    Event(release).set()
    wait(future)
    status, _, body = fetch(cluster, f"/info/call-stack/{future.key}.html")
    assert status == 200
    assert "Task not actively running" in body


def test_logs(cluster):
    body = page(cluster, "/info/main/logs.html")
    assert "distributed.scheduler" in body
    assert "Register worker" in body
    address = quote(cluster.worker("w0").address, safe="")
    assert "distributed.worker" in page(cluster, f"/info/logs/{address}.html")


@pytest.mark.parametrize(
    "path",
    [
        "/info/worker/unknown.html",
        "/info/task/unknown.html",
        "/info/call-stack/unknown.html",
        "/info/call-stacks/unknown.html",
        "/nonesuch",
    ],
)
def test_what_is_not_there(cluster, path):
    assert fetch(cluster, path)[0] == 404
    assert fetch(cluster, "/health")[0] == 200


def test_prefix(fresh_cluster):
    cluster = fresh_cluster(
        workers=0,
        scheduler_args=f"--dashboard-address {HOST}:0 --dashboard-prefix user/me",
    )
    assert cluster.address in page(cluster, "/user/me/info/main/workers.html")
    assert fetch(cluster, "/user/me/health")[0] == 200
    assert fetch(cluster, "/info/main/workers.html")[0] == 404


def test_pages_follow_workers(fresh_cluster):
    cluster = fresh_cluster(workers=1)
    address = cluster.worker("w0").address
    path = f"/info/worker/{quote(address, safe='')}.html"
    assert address in page(cluster, path)
    cluster.worker("w0").kill()
    eventually(lambda: fetch(cluster, path)[0] == 404)
    assert address not in page(cluster, "/info/main/workers.html")


API = {
    "distributed.scheduler.http.routes": [
        "distributed.http.health",
        "distributed.http.scheduler.api",
    ]
}


def call_api(cluster, path, **body):
    """Status and JSON reply; with a body it is a POST."""
    url = f"http://{HOST}:{port_of(cluster)}/api/v1/{path}"
    data = json.dumps(body).encode() if body else None
    try:
        with urllib.request.urlopen(url, data, timeout=20) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_api_says_what_there_is(fresh_cluster, connect):
    cluster = fresh_cluster(workers=2, config=API)
    assert fetch(cluster, "/api/v1")[2] == "API V1"
    status, workers = call_api(cluster, "get_workers")
    assert (status, workers["num_workers"]) == (200, 2)
    found = {worker["name"]: worker["address"] for worker in workers["workers"]}
    assert found == {name: cluster.worker(name).address for name in ("w0", "w1")}
    assert call_api(cluster, "adaptive_target") == (200, {"workers": 0})
    status, idle = call_api(cluster, "check_idle")
    assert (status, set(idle)) == (200, {"idle_since"})


def test_api_retires_workers(fresh_cluster):
    cluster = fresh_cluster(workers=3, config=API)
    first = cluster.worker("w0").address
    status, retired = call_api(cluster, "retire_workers", workers=[first])
    assert status == 200
    assert retired[first]["name"] == "w0"
    assert call_api(cluster, "get_workers")[1]["num_workers"] == 2
    status, retired = call_api(cluster, "retire_workers", n=1)
    assert (status, len(retired)) == (200, 1)
    assert call_api(cluster, "get_workers")[1]["num_workers"] == 1


def test_api_refuses_what_it_cannot_do(fresh_cluster):
    cluster = fresh_cluster(workers=1, config=API)
    status, reply = call_api(cluster, "retire_workers", n="two")
    assert (status, reply["Error"]) == (500, "Internal Server Error")
    assert call_api(cluster, "get_workers")[1]["num_workers"] == 1


def test_semaphore_metrics(cluster, client, name):
    label = name("semaphore")
    semaphore = Semaphore(max_leases=2, name=label)
    assert semaphore.acquire()

    def figures():
        text = fetch(cluster, "/metrics")[2]
        lines = (line for line in text.splitlines() if f'name="{label}"' in line)
        return {line.split("{")[0]: float(line.split()[-1]) for line in lines}

    before = figures()
    assert before.pop("dask_semaphore_average_pending_lease_time_s") >= 0
    assert before == {
        "dask_semaphore_max_leases": 2,
        "dask_semaphore_active_leases": 1,
        "dask_semaphore_pending_leases": 0,
        "dask_semaphore_acquire_total": 1,
        "dask_semaphore_release_total": 0,
    }
    semaphore.release()
    after = figures()
    assert after["dask_semaphore_active_leases"] == 0
    assert after["dask_semaphore_release_total"] == 1
    semaphore.close()
    assert figures() == {}
