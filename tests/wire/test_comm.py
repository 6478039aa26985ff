"""The comm crate against stock Dask's transports, through its ``echo`` example."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from pathlib import Path

import numpy as np
import pytest
from distributed.comm import CommClosedError, connect, listen
from distributed.comm.core import FatalCommClosedError
from distributed.protocol import to_serialize
from distributed.security import Security

DATA = Path(__file__).resolve().parents[2] / "crates" / "comm" / "tests" / "data"
TIMEOUT = 30


@pytest.fixture(scope="session")
def echo(example) -> str:
    return example("oxidask-comm", "echo")


def temporary() -> list[str]:
    security = Security.temporary()
    return [
        security.tls_ca_file,
        security.tls_scheduler_cert,
        security.tls_scheduler_key,
    ]


def version_1() -> list[str]:
    return [
        str(DATA / name)
        for name in ("ca.pem", "version-1-rsa.pem", "version-1-rsa-key.pem")
    ]


def security(pems: list[str], **versions) -> Security:
    ca, cert, key = pems
    roles = {
        f"tls_{role}_{part}": value
        for role in ("scheduler", "worker", "client")
        for part, value in (("cert", cert), ("key", key))
    }
    return Security(tls_ca_file=ca, require_encryption=True, **roles, **versions)


TLS_1_2 = {"tls_max_version": ssl.TLSVersion.TLSv1_2}
CASES = [
    pytest.param("tcp", None, {}, id="tcp"),
    pytest.param("ws", None, {}, id="ws"),
    pytest.param("tls", temporary, {}, id="tls"),
    pytest.param("tls", temporary, TLS_1_2, id="tls-1.2"),
    pytest.param("tls", version_1, {}, id="tls-version-1"),
    pytest.param("tls", version_1, TLS_1_2, id="tls-1.2-version-1"),
    pytest.param("wss", temporary, {}, id="wss"),
]


@contextlib.asynccontextmanager
async def process(*command: str):
    child = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield child
    finally:
        child.stdin.close()
        await asyncio.wait_for(child.wait(), TIMEOUT)


@pytest.mark.parametrize(("scheme", "make_pems", "versions"), CASES)
def test_stock_connects_to_us(echo, scheme, make_pems, versions):
    pems = make_pems() if make_pems else []
    arguments = security(pems, **versions).get_connection_args("client") if pems else {}

    async def run() -> None:
        async with process(echo, "listen", f"{scheme}://127.0.0.1:0", *pems) as child:
            address = (
                (await asyncio.wait_for(child.stdout.readline(), TIMEOUT))
                .decode()
                .strip()
            )
            comms = [
                await connect(address, timeout=TIMEOUT, **arguments) for _ in range(3)
            ]
            array = np.arange(1_000_000)
            for comm in comms:
                message = {
                    "op": "x",
                    "array": to_serialize(array),
                    "small": to_serialize(b"abc"),
                    "empty": to_serialize(np.zeros(0)),
                }
                await comm.write(message)
                await comm.write(["second", {1, 2}])
                answer = await asyncio.wait_for(comm.read(), TIMEOUT)
                np.testing.assert_array_equal(answer["array"], array)
                assert (answer["op"], answer["small"], answer["empty"].size) == (
                    "x",
                    b"abc",
                    0,
                )
                assert await asyncio.wait_for(comm.read(), TIMEOUT) == (
                    "second",
                    {1, 2},
                )
                assert comm.handshake_options == {
                    "pickle-protocol": 5,
                    "compression": None,
                }
            for comm in comms:
                await comm.close()

    asyncio.run(run())


@pytest.mark.parametrize(("scheme", "make_pems", "versions"), CASES)
def test_we_connect_to_stock(echo, scheme, make_pems, versions):
    pems = make_pems() if make_pems else []
    arguments = security(pems, **versions).get_listen_args("scheduler") if pems else {}

    async def serve(comm) -> None:
        with contextlib.suppress(OSError):
            while True:
                await comm.write(await comm.read())

    async def run() -> None:
        listener = await listen(
            f"{scheme}://127.0.0.1:0", serve, deserialize=False, **arguments
        )
        try:
            async with process(
                echo, "connect", listener.contact_address, *pems
            ) as child:
                output, _ = await asyncio.wait_for(child.communicate(), TIMEOUT)
                assert child.returncode == 0, output
                assert b"pickle_protocol: 5" in output
        finally:
            listener.stop()

    asyncio.run(run())


async def first_message(address: str, **arguments):
    comm = await connect(address, **arguments)
    return await comm.read()


def test_strangers_are_refused_by_both(echo):
    ours, theirs = temporary(), temporary()

    async def run() -> None:
        async with process(echo, "listen", "tls://127.0.0.1:0", *ours) as child:
            address = (
                (await asyncio.wait_for(child.stdout.readline(), TIMEOUT))
                .decode()
                .strip()
            )
            arguments = security(theirs).get_connection_args("client")
            with pytest.raises(
                FatalCommClosedError, match="certificate does not match"
            ):
                await connect(address, timeout=2, **arguments)
            mixed = security([ours[0], theirs[1], theirs[2]]).get_connection_args(
                "client"
            )
            with pytest.raises(CommClosedError):
                await first_message(address, timeout=2, **mixed)
            arguments = security(ours).get_connection_args("client")
            comm = await connect(address, timeout=TIMEOUT, **arguments)
            await comm.close()

        async def serve(comm) -> None:
            await comm.close()

        listener = await listen(
            "tls://127.0.0.1:0", serve, **security(theirs).get_listen_args("scheduler")
        )
        try:
            async with process(
                echo, "connect", listener.contact_address, *ours
            ) as child:
                output, _ = await asyncio.wait_for(child.communicate(), TIMEOUT)
                assert child.returncode == 1
                assert b"TLS handshake with" in output
                assert b"invalid peer certificate" in output
        finally:
            listener.stop()

    asyncio.run(run())
