"""Certificates that are rotated and revoked while a cluster serves."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import aio

from nonn.aggregator.inventory import Node
from nonn.aggregator.membership.credentials import Watch, connect_tls
from nonn.aggregator.membership.options import Joining, JoiningOptions
from nonn.aggregator.monitoring.dashboard import serve_dashboard
from nonn.aggregator.monitoring.metrics import Metrics
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.service import Aggregator
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.errors import CredentialsError
from nonn.security.authority import Authority
from nonn.security.tls import TlsFolder
from tests.serving import TIMEOUT_S, asking, logged, until, until_async
from tests.toys import toy_bundle

SAMPLE = np.zeros((1, 1, 8, 8), np.uint8)
TOKEN = "a-token-of-enough-characters"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("security") / "bundle", num_devices=2)


def shown(address: Any, tls: Any) -> Any:
    """Fingerprint of the certificate that a server shows to a new connection."""
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), TIMEOUT_S) as connection,
        TlsFolder(tls).context().wrap_socket(connection) as secure,
    ):
        return secure.getpeercert(binary_form=True)


def test_every_certificate_is_rotated_under_load_and_no_answer_is_lost_or_degraded(
    bundle: Bundle, tmp_path: Path
) -> None:
    certs = tmp_path / "certs"
    with (
        LocalCluster(bundle.path, tls=certs, deadline_s=TIMEOUT_S) as cluster,
        Client(cluster.address, TIMEOUT_S, tls=cluster.client_tls) as client,
    ):
        servers = [cluster.address, *(state.address for state in cluster.states())]
        before = [shown(address, cluster.client_tls) for address in servers]
        with asking(client, SAMPLE) as answers:
            authority = Authority(certs)
            everybody = [("aggregator", "local"), ("node", "node-0"), ("node", "node-1")]
            for role, name in everybody:
                authority.rotate(role, name)
            until(lambda: all(shown(a, cluster.client_tls) != old for a, old in zip(servers, before, strict=True)))
            until(lambda: "opening every channel again" in log_of(cluster, "aggregator.log"))
            until_more(answers, 50)
            for role, name in everybody:
                authority.revoke(role, name, keep_newest=True)
            # Now the old connections count for nothing: each side is asked with the new certificates only.
            old = len(answers)
            until(lambda: log_of(cluster, "node-0.log").count("read again") >= 2)
            until_more(answers, 50)
    assert len(answers) > old
    assert {answer.mask for answer in answers} == {0b11}


@contextlib.asynccontextmanager
async def http_port(bundle: Bundle, tls: Any) -> AsyncIterator[Any]:
    """A dashboard with TLS."""
    monitor, metrics = Monitor(bundle), Metrics(bundle.num_devices)
    async with serve_dashboard(monitor, metrics, host="0.0.0.0", port=0, insecure=False, tls=tls) as address:
        yield f"127.0.0.1:{address.rpartition(':')[2]}"


@contextlib.asynccontextmanager
async def grpc_port(bundle: Bundle, tls: Any) -> AsyncIterator[Any]:
    """A server of gRPC with nothing behind it."""
    server = aio.server()
    bound = server.add_secure_port("127.0.0.1:0", tls.server_credentials())
    await server.start()
    yield f"127.0.0.1:{bound}"
    await server.stop(None)


@pytest.mark.parametrize("port", [http_port, grpc_port])
def test_on_either_port_a_changed_folder_counts_from_the_next_handshake(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: Any
) -> None:
    monkeypatch.setattr("nonn.security.tls.LOOK_AGAIN_S", 0.0)
    authority, other = Authority.create(tmp_path / "certs"), Authority.create(tmp_path / "other")
    for issuer in (authority, other):
        issuer.issue("aggregator", "main")
        issuer.issue("client", "alice")
    folder = authority.folder("aggregator", "main")
    old, new = (issuer.folder("client", "alice") for issuer in (authority, other))
    both = tmp_path / "both"
    both.write_bytes(b"".join((issuer.path / "ca.pem").read_bytes() for issuer in (authority, other)))

    def lets_in(address: Any, client: Any) -> Any:
        """Whether the handshake is made; the first byte shows it, since a client of TLS 1.3 is judged after it."""
        host, _, number = address.rpartition(":")
        context = ssl.create_default_context(cafile=both)
        context.check_hostname = False
        context.set_alpn_protocols(["h2" if port is grpc_port else "http/1.1"])
        context.load_cert_chain(client / "identity.pem")
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, int(number)), TIMEOUT_S) as plain,
            context.wrap_socket(plain) as secure,
        ):
            secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" if port is http_port else b"")
            shown = secure.getpeercert(binary_form=True)
            assert shown is not None
            return hashlib.sha256(shown).hexdigest() if secure.recv(1) else None
        return None

    async def scenario() -> Any:
        tls = TlsFolder(folder)
        async with port(bundle, tls) as address:
            asked = [await asyncio.to_thread(lets_in, address, client) for client in (old, new)]
            rotated = authority.rotate("aggregator", "main").sha256
            asked.append(await asyncio.to_thread(lets_in, address, old))
            shutil.copytree(other.folder("aggregator", "main"), folder, dirs_exist_ok=True)
            asked += [await asyncio.to_thread(lets_in, address, client) for client in (old, new)]
        return asked, rotated

    first, second = authority.issued[0].sha256, other.issued[0].sha256
    asked, rotated = asyncio.run(scenario())
    assert asked == [first, None, rotated, None, second]


def until_more(answers: Any, count: Any) -> None:
    """Waits for as many answers more."""
    goal = len(answers) + count
    until(lambda: len(answers) >= goal)


def log_of(cluster: LocalCluster, name: Any) -> Any:
    assert cluster._folder is not None
    return (Path(cluster._folder.name) / name).read_text()


@pytest.mark.slow
def test_a_revoked_node_is_out_and_in_again_with_another_certificate(bundle: Bundle, tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    with LocalCluster(bundle.path, tls=certs) as cluster, Client(cluster.address, tls=cluster.client_tls) as client:
        assert client.infer(SAMPLE).mask == 0b11
        authority = Authority(certs)
        authority.revoke("node", "node-1")
        until(lambda: client.infer(SAMPLE).mask == 0b01)
        assert "node-1" not in {known["id"] for known in client.metadata().nodes}
        authority.issue("node", "node-1")
        until(lambda: client.infer(SAMPLE).mask == 0b11)
        authority.revoke("client", "local")

        def refused() -> Any:
            try:
                client.infer(SAMPLE)
            except CredentialsError as exc:
                return "client 'local' has been revoked" in str(exc)
            return False

        until(refused)


def test_a_revoked_node_that_was_away_is_taken_out_when_it_comes_back_and_stays_out(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nonn.security.tls.LOOK_AGAIN_S", 0.0)
    authority, certs = Authority.create(tmp_path / "certs"), tmp_path / "certs"
    authority.issue("aggregator", "main")
    authority.issue("node", "kitchen")
    stolen = shutil.copytree(certs / "node/kitchen", tmp_path / "stolen")  # its list of revoked ones stays empty
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    kitchen, tls = Node(id="kitchen", address=f"127.0.0.1:{port}", student=0), TlsFolder(certs / "aggregator/main")

    def switched_on(folder: Any) -> Any:
        options = ["--student", 0, "--tls", folder, "--port", port]
        return logged("nonn_device", "serve", bundle.path, *options, log=tmp_path / "node.log")

    async def scenario() -> None:
        async with Aggregator(bundle, [kitchen], connect=connect_tls(tls)) as aggregator:

            async def up() -> None:
                await until_async(lambda: aggregator.policy.state("kitchen") == "up")

            watch = Watch(aggregator, tls)
            await watch.look()
            authority.revoke("node", "kitchen")
            assert list(aggregator.nodes) == [kitchen]  # nobody has shown anything yet
            with switched_on(stolen):
                await up()
                await watch.look()
                assert aggregator.nodes == ()
            await watch.look()
            assert aggregator.nodes == ()
            authority.issue("node", "kitchen")
            with switched_on(certs / "node/kitchen"):
                await watch.look()
                assert list(aggregator.nodes) == [kitchen]

    asyncio.run(scenario())


def test_a_node_that_joined_outlives_its_old_certificates_and_goes_with_the_newest(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nonn.security.tls.LOOK_AGAIN_S", 0.0)
    authority, main = Authority.create(tmp_path / "certs"), tmp_path / "certs/aggregator/main"
    authority.issue("aggregator", "main")
    authority.issue("node", "a")

    def deliver() -> Any:
        return shutil.copytree(tmp_path / "certs/node/a", tmp_path / "device", dirs_exist_ok=True)

    async def scenario(stack: Any) -> None:
        joining = Joining(JoiningOptions(tls=main, lease_s=3.0, joins=True))
        aggregator = Aggregator(bundle, [], connect=joining.connect(bundle))
        servicer = joining.servicer(aggregator)
        assert joining.tls is not None
        watch, leases = Watch(aggregator, joining.tls, servicer.release), servicer.membership.leases
        server = aio.server(interceptors=[joining.guard])
        servicer.add_to(server)
        port = server.add_secure_port("127.0.0.1:0", joining.tls.server_credentials())
        async with (
            aggregator,
            servicer.attend(lambda: None),
            contextlib.AsyncExitStack() as ends,
            asyncio.timeout(TIMEOUT_S),
        ):
            await server.start()
            ends.push_async_callback(server.stop, None)
            join = logged(
                "nonn_device", "join", f"127.0.0.1:{port}", "--tls", deliver(), "--data", tmp_path, log=tmp_path / "log"
            )
            _, log = await asyncio.to_thread(stack.enter_context, join)

            await until_async(lambda: aggregator.nodes)
            # The aggregator hears of the revocation before the node has its new certificate.
            authority.rotate("node", "a")
            authority.revoke("node", "a", keep_newest=True)
            await watch.look()
            assert not aggregator.nodes
            deliver()
            await until_async(lambda: aggregator.nodes)
            await watch.look()
            assert aggregator.nodes
            # In order: neither the node's server nor its heartbeats are of the old one any more.
            address, lease = aggregator.nodes[0].address, leases["a"]
            new = authority.rotate("node", "a").sha256
            deliver()
            while hashlib.sha256(await asyncio.to_thread(shown, address, main)).hexdigest() != new:
                pass
            authority.revoke("node", "a", keep_newest=True)
            await watch.look()
            for _ in range(2):
                await until_async(lambda renewed=lease.expires_at: lease.expires_at > renewed)  # type: ignore[misc]
            assert (len(aggregator.nodes), leases["a"]) == (1, lease)
            told = len(log.read_text())
            authority.revoke("node", "a")
            await watch.look()
            await until_async(lambda: "node 'a' has been revoked" in log.read_text()[told:])
            assert not aggregator.nodes

    with contextlib.ExitStack() as stack:
        asyncio.run(scenario(stack))
