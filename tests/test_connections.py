"""Connections that keep others out: streams that are cancelled at once, idle connections, too many of one peer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from numpy.typing import NDArray

from benchmarks import http2
from nonn.aggregator.inventory import Node, write_inventory
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.rpc.connections import LIMITS, PeerLimit, raise_descriptor_limit
from nonn.rpc.wire import new_request
from tests.serving import TIMEOUT_S, process, until

NUM_DEVICES = 2


@contextlib.contextmanager
def aggregator(bundle: Bundle, cluster: LocalCluster, folder: Path, max_files: int = 0) -> Iterator[str]:
    """A real aggregator that may have so many open files; its address."""
    inventory = folder / "nodes.toml"
    nodes = [Node(id=f"n{i}", address=state.address, student=i) for i, state in enumerate(cluster.states())]
    write_inventory(inventory, nodes)
    prefix = ["prlimit", f"--nofile={max_files}:{max_files}"] if max_files else []
    command = ("nonn", "serve", bundle.path, "--inventory", inventory, "--watch-stdin", "--deadline", str(TIMEOUT_S))
    with process(*command, prefix=prefix) as child:
        threading.Thread(target=lambda: child.stderr and child.stderr.read(), daemon=True).start()
        assert child.stdout is not None
        yield json.loads(child.stdout.readline())["address"]


@pytest.mark.alone
def test_streams_that_are_cancelled_at_once_cost_other_clients_no_request(
    bundle: Bundle, inputs: NDArray[Any], cluster: LocalCluster, tmp_path: Path
) -> None:
    message = new_request("nonn", {"input": inputs[:1]}, {}).SerializeToString().hex()
    with aggregator(bundle, cluster, tmp_path) as address, Client(address, TIMEOUT_S) as client:
        with http2.attack("reset", address, 4, 2.0, "--message", message) as attacker:
            answers = 0
            while attacker.poll() is None:
                assert client.infer(inputs[:1]).mask == 0b11  # most were cancelled, before streams were limited
                answers += 1
            assert attacker.stdout is not None
            assert int(attacker.stdout.read()) > 5000
        assert answers > 10


@pytest.mark.parametrize("speak", [False, True], ids=["no TLS, no HTTP/2", "no call"])
def test_idle_connections_of_one_peer_do_not_keep_new_clients_out(
    bundle: Bundle, inputs: NDArray[Any], cluster: LocalCluster, tmp_path: Path, speak: bool
) -> None:
    with aggregator(bundle, cluster, tmp_path, max_files=400) as address:
        options = ["--source", "127.0.0.2", *(["--speak"] if speak else [])]  # the client is another peer
        with http2.attack("idle", address, 600, 60.0, *options) as attacker:
            assert attacker.stdout is not None
            assert int(attacker.stdout.readline()) >= 400
            with Client(address, TIMEOUT_S) as client:
                assert client.infer(inputs[:1]).mask == 0b11


@pytest.mark.parametrize(
    ("sent", "limit"),
    [
        (b"", "grpc.server_handshake_timeout_ms"),
        (http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0), "grpc.http2.settings_timeout"),
    ],
    ids=["nothing", "settings"],
)
def test_a_connection_that_stops_during_its_handshake_is_closed(sent: bytes, limit: str) -> None:
    assert dict(LIMITS)[limit] <= 10_000
    quickly = [(name, 200 if name == limit else value) for name, value in LIMITS]

    async def scenario() -> None:
        server = aio.server(options=quickly)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(TIMEOUT_S):  # the other limits are longer
            await reader.read()  # to the end: the server's settings are never acknowledged
        writer.close()
        await server.stop(None)

    asyncio.run(scenario())


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        assert raise_descriptor_limit() == min(before[1], 65_536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_connections_above_the_limit_of_their_peer_are_closed_and_others_stay() -> None:
    with contextlib.ExitStack() as stack:
        listener, other = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        pairs = []
        for server, source in (
            [(listener, "127.0.0.2")] * 5 + [(listener, "127.0.0.3")] * 2 + [(other, "127.0.0.2")] * 5
        ):
            address = server.getsockname()
            pairs.append(stack.enter_context(socket.create_connection(address, source_address=(source, 0))))
            accepted, _ = server.accept()
            stack.enter_context(accepted)
        limit = PeerLimit(listener.getsockname()[1], 3)
        assert limit.enforce() == 2

        def closed() -> list[int]:
            found = []
            for i, pair in enumerate(pairs):
                pair.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    found += [i] if pair.recv(1) == b"" else []
            return found

        until(lambda: len(closed()) == 2)
        assert set(closed()) <= {3, 4}
