"""Operations and messages that few programs use, and options of the command."""

from __future__ import annotations

from cluster import eventually
from conformance_tasks import inc
from distributed import Future, Variable, wait


def test_replicas_by_an_operation(client, cluster):
    future = client.submit(inc, 1, pure=False)
    wait(future)
    addresses = {worker.address for worker in cluster.workers}
    [other] = addresses - set(client.who_has([future])[future.key])
    assert cluster.call("add_keys", worker=other, keys=[future.key]) == "OK"
    assert set(client.who_has([future])[future.key]) == addresses
    unknown = "tcp://127.0.0.1:1"
    answer = cluster.call("add_keys", worker=unknown, keys=[future.key])
    assert answer == "not found"


def test_resources_that_a_worker_gets_later(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1)
    client = connect(cluster)

    async def add(dask_worker):
        await dask_worker.set_resources(gpu=1)

    client.run(add)
    [worker] = cluster.identity()["workers"].values()
    assert worker["resources"] == {"gpu": 1}
    future = client.submit(inc, 1, resources={"gpu": 1})
    assert future.result(timeout=20) == 2


def test_signs_of_life_of_a_worker(client, cluster):
    def send(dask_worker):
        dask_worker.batched_stream.send({"op": "keep-alive"})

    client.run(send)
    assert client.submit(inc, 1, pure=False).result(timeout=20) == 2


def test_data_that_a_client_has_put_somewhere(client, cluster, name):
    key = name("put")
    address = cluster.workers[0].address
    client._send_to_scheduler(
        {"op": "update-data", "who_has": {key: [address]}, "nbytes": {key: 7}}
    )
    future = Future(key, client)
    eventually(lambda: client.who_has([future])[key] == (address,))
    assert client.nbytes([key], summary=False) == {key: 7}


def test_a_deleted_variable(client, name):
    variable = Variable(name("variable"), client=client)
    variable.set(1)
    assert variable.get(timeout=20) == 1
    variable.delete()

    def is_gone():
        try:
            variable.get(timeout="50ms")
        except TimeoutError:
            return True
        return False

    eventually(is_gone)


def test_a_file_with_the_process_id(fresh_cluster, tmp_path):
    path = tmp_path / "scheduler.pid"
    cluster = fresh_cluster(workers=0, scheduler_args=f"--pid-file {path}")
    assert int(path.read_text()) == cluster.scheduler.pid


def test_another_protocol(fresh_cluster, connect):
    cluster = fresh_cluster(workers=1, scheduler_args="--protocol ws")
    assert cluster.address.startswith("ws://")
    client = connect(cluster)
    assert client.submit(inc, 1).result(timeout=20) == 2
