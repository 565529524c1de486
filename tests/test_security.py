"""Who may ask whom: real processes that speak TLS, and everybody who should be refused by them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from nonn import cli
from nonn.aggregator.inventory import Node, write_inventory
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.errors import CredentialsError, OverloadError
from nonn.rpc.endpoint import Endpoint
from nonn.rpc.guard import Guard
from nonn.rpc.server import serve
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.security.authority import Authority
from nonn.security.handshake import Diagnosis, DiagnosisKind, explain, reason
from nonn.security.tls import AGGREGATOR_NAME, TlsFolder
from tests.serving import TIMEOUT_S, logged, process, run, run_here, until
from tests.toys import toy_bundle

SAMPLE = np.zeros((1, 1, 8, 8), np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("security") / "bundle", num_devices=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TLS folders of everybody, good and bad."""
    path, now = tmp_path_factory.mktemp("tls"), datetime.now(UTC)
    old = Authority.create(path / "certs", clock=lambda: now - timedelta(days=100))
    authority = Authority(path / "certs")
    for role, name in (("node", "kitchen"), ("node", "attic"), ("aggregator", "main"), ("client", "alice")):
        authority.issue(role, name)
    for role, name in (("aggregator", "revoked"), ("client", "revoked"), ("node", "revoked")):
        authority.issue(role, name)
    before = shutil.copytree(path / "certs", path / "before")
    for role in ("aggregator", "client", "node"):
        authority.revoke(role, "revoked")
    for role in ("aggregator", "client", "node"):
        # The thief has the folder as it was when it was issued.
        shutil.copytree(before / role / "revoked", path / "certs" / role / "revoked", dirs_exist_ok=True)
    Authority(old.path, clock=lambda: now - timedelta(days=50)).issue("aggregator", "expired", days=1)
    Authority(old.path, clock=lambda: now + timedelta(days=50)).issue("aggregator", "future")
    stranger = Authority.create(path / "stranger")
    for role, name in (("aggregator", "main"), ("node", "kitchen"), ("client", "alice")):
        stranger.issue(role, name)
    return path


@contextlib.contextmanager
def node(bundle: Bundle, tls: Any, log: Any, *options: Any, student: int = 0) -> Iterator[Any]:
    with logged("nonn_device", "serve", bundle.path, "--student", student, "--tls", tls, *options, log=log) as started:
        yield started


@contextlib.contextmanager
def aggregator(bundle: Bundle, tls: Any, nodes: Any, tmp_path: Path, *options: Any) -> Iterator[Any]:
    write_inventory(tmp_path / "nodes.toml", nodes)
    arguments = ["nonn", "serve", bundle.path, "--inventory", tmp_path / "nodes.toml", "--tls", tls, *options]
    with logged(*arguments, log=tmp_path / "aggregator.log") as started:
        yield started


@pytest.fixture(scope="module")
def kitchen(bundle: Bundle, folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A node with its address and log."""
    log = tmp_path_factory.mktemp("kitchen") / "log"
    with node(bundle, folder / "certs/node/kitchen", log) as (ready, log):
        yield ready["address"], log


def ask(address: Any, tls: Any, name: Any, *, method: str = "ModelInfer") -> Any:
    """One call with the files of a folder just as they are, whatever nonn would say of them; returns the error."""
    options = [("grpc.ssl_target_name_override", name)]
    if tls is None:
        channel = grpc.insecure_channel(address)
    else:
        pem = (tls / "identity.pem").read_bytes() if (tls / "identity.pem").exists() else None
        credentials = grpc.ssl_channel_credentials((tls / "ca.pem").read_bytes(), pem, pem)
        channel = grpc.secure_channel(address, credentials, options)
    with channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        request = getattr(pb, f"{method}Request")()
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, method)(request, timeout=TIMEOUT_S)
    return caught.value


@pytest.mark.parametrize(
    ("caller", "text"),
    [
        ("stranger/aggregator/main", "not of the authority in ca.pem"),
        ("certs/aggregator/expired", "has expired: nonn certs rotate"),
        ("certs/aggregator/future", "not yet valid: are both clocks right"),
        ("nobody", "shows no certificate: give it --tls"),
        (None, "uses plain text, this side TLS: give it --tls"),
    ],
)
def test_a_caller_that_tls_refuses_is_logged_with_the_reason(
    folder: Any, kitchen: Any, tmp_path: Path, caller: Any, text: Any
) -> None:
    address, log = kitchen
    tls = None
    if caller is not None:
        tls = tmp_path / "tls"
        shutil.copytree(folder / caller, tls) if caller != "nobody" else tls.mkdir()
        # Every caller takes the node for what it is, so that only the node refuses.
        shutil.copy(folder / "certs/ca.pem", tls / "ca.pem")
    error = ask(address, tls, "kitchen.node.nonn.internal")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    until(lambda: any("a connection was refused" in line and text in line for line in log.read_text().splitlines()))


@pytest.mark.parametrize(
    ("caller", "code", "text"),
    [
        ("aggregator/revoked", grpc.StatusCode.UNAUTHENTICATED, "aggregator 'revoked' has been revoked; issue another"),
        ("client/alice", grpc.StatusCode.PERMISSION_DENIED, "client 'alice' may not call inference.GRPCInference"),
        ("node/attic", grpc.StatusCode.PERMISSION_DENIED, "that needs a certificate of role aggregator"),
    ],
)
def test_an_unauthorised_caller_gets_an_error_and_the_node_logs_it(
    folder: Any, kitchen: Any, caller: Any, code: Any, text: Any
) -> None:
    address, log = kitchen
    error = ask(address, folder / "certs" / caller, "kitchen.node.nonn.internal")
    assert (error.code(), text in error.details()) == (code, True), error.details()
    until(lambda: "refused ipv4:127.0.0.1:" in log.read_text() and text in log.read_text())


def test_a_node_shows_its_own_certificate_and_no_other(folder: Any, kitchen: Any) -> None:
    address, _ = kitchen
    main = TlsFolder(folder / "certs/aggregator/main")
    assert explain(address, "kitchen.node.nonn.internal", main) == Diagnosis(DiagnosisKind.ACCEPTED)
    assert explain(address, "attic.node.nonn.internal", main) == Diagnosis(
        DiagnosisKind.REFUSED,
        "it shows the certificate of nonn://node/kitchen, not of attic.node.nonn.internal: is that the right address?",
    )
    error = ask(address, folder / "certs/aggregator/main", "attic.node.nonn.internal")
    assert reason(error.details()) == "the other side's certificate has another identity"
    stranger = TlsFolder(folder / "stranger/aggregator/main")
    found = explain(address, "kitchen.node.nonn.internal", stranger)
    assert found.kind is DiagnosisKind.REFUSED
    assert "its certificate is not accepted: the certificate is not of the authority" in found.text
    assert explain(address, None, None) == Diagnosis(
        DiagnosisKind.REFUSED, "it uses TLS, this side plain text: give --tls with a folder of nonn certs issue"
    )


def test_a_revoked_certificate_is_distinguished_from_other_refusals(
    bundle: Bundle, folder: Any, tmp_path: Path
) -> None:
    main = TlsFolder(folder / "certs/aggregator/main")
    with node(bundle, folder / "certs/node/revoked", tmp_path / "log") as (ready, _):
        found = explain(ready["address"], "revoked.node.nonn.internal", main)
    assert (found.kind, found.is_problem) == (DiagnosisKind.REVOKED, True)
    assert str(main.path / "revoked.json") in found.text


def test_what_tls_has_nothing_to_do_with_is_not_explained(folder: Any) -> None:
    main = TlsFolder(folder / "certs/aggregator/main")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    unknown = Diagnosis(DiagnosisKind.UNKNOWN)
    assert explain(address, "kitchen.node.nonn.internal", main) == unknown
    assert explain(address, None, None) == unknown
    assert explain("nowhere", None, None) == unknown
    assert not unknown.is_problem
    assert reason("Connection refused") is None


@pytest.mark.parametrize("tls", ["certs/aggregator/expired", "certs/aggregator/future", "certs/client/alice"])
def test_an_aggregator_does_not_start_with_a_certificate_that_does_not_count(
    bundle: Bundle, folder: Any, tmp_path: Path, tls: Any
) -> None:
    write_inventory(tmp_path / "nodes.toml", [Node(id="a", address="127.0.0.1:1", student=0)])
    ended = run("nonn", "serve", bundle.path, "--inventory", tmp_path / "nodes.toml", "--tls", folder / tls)
    assert ended.returncode == 3, ended.stderr
    assert str(folder / tls) in ended.stderr


def test_the_wrong_nodes_are_left_out_and_both_sides_say_why(bundle: Bundle, folder: Any, tmp_path: Path) -> None:
    certs = folder / "certs"
    with (
        node(bundle, certs / "node/attic", tmp_path / "attic.log") as (attic, _),
        node(bundle, folder / "stranger/node/kitchen", tmp_path / "stranger.log", student=1) as (
            stranger,
            stranger_log,
        ),
        node(bundle, certs / "node/kitchen", tmp_path / "kitchen.log", student=1) as (good, _),
        node(bundle, certs / "node/revoked", tmp_path / "revoked.log") as (revoked, _),
        logged("nonn_device", "serve", bundle.path, "--student", 0, log=tmp_path / "plain.log") as (plain, _),
    ):
        nodes = [
            Node(id="cellar", address=attic["address"], student=0),  # another node's certificate
            Node(id="stranger", address=stranger["address"], student=1),  # another authority
            Node(id="revoked", address=revoked["address"], student=0),
            Node(id="plain", address=plain["address"], student=0),
            Node(id="kitchen", address=good["address"], student=1),
        ]
        with (
            aggregator(bundle, certs / "aggregator/main", nodes, tmp_path, "--deadline", "2") as (ready, log),
            Client(ready["address"], TIMEOUT_S, tls=certs / "client/alice") as client,
        ):
            until(lambda: log.read_text().count("node revoked at") >= 1)
            until(lambda: "revoked" not in {known["id"] for known in client.metadata().nodes})
            answer = client.infer(SAMPLE)
            assert answer.answered.tolist() == [False, True]
            assert "cellar" in answer.failures  # why it fails is in the log: by now it may no longer be asked
            for text in (
                f"node cellar at {attic['address']}: it shows the certificate of nonn://node/attic, not of cellar.node",
                f"node stranger at {stranger['address']}: its certificate is not accepted: the certificate is not",
                f"node revoked at {revoked['address']}: its certificate has been revoked",
                f"node plain at {plain['address']}: it uses plain text, this side TLS: give it --tls",
            ):
                until(lambda text=text: text in log.read_text())  # type: ignore[misc]
            until(lambda: "it refused this side's certificate" in stranger_log.read_text())


@pytest.fixture(scope="module")
def main(bundle: Bundle, folder: Any, kitchen: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The address and the log of an aggregator over the kitchen's node."""
    nodes = [Node(id="kitchen", address=kitchen[0], student=0)]
    with aggregator(bundle, folder / "certs/aggregator/main", nodes, tmp_path_factory.mktemp("main")) as (ready, log):
        yield ready["address"], log


def test_a_client_with_a_certificate_is_answered(folder: Any, main: Any) -> None:
    with Client(main[0], tls=folder / "certs/client/alice") as client:
        assert client.infer(SAMPLE).mask == 0b01


def test_a_certificate_is_one_caller_that_shares_batches(folder: Any) -> None:
    callers = list[tuple[str, str]]()

    class Model(contextlib.AsyncExitStack):
        name, version, ready, max_request_bytes = "nonn", "1", True, 1000

        async def readiness(self) -> AsyncIterator[bool]:
            yield True

        def metadata(self) -> Any:
            return pb.ModelMetadataResponse(name="nonn")

        async def infer(self, request: Any, remaining_s: Any) -> Any:
            callers.append((request.caller, request.connection))
            raise OverloadError("full")

    def ask_with(address: str) -> None:
        for _ in range(2):
            with Client(address, tls=folder / "certs/client/alice") as client, pytest.raises(OverloadError):
                client.infer(SAMPLE)

    async def scenario() -> None:
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        tls = TlsFolder(folder / "certs/aggregator/main")
        options: Any = {"host": "127.0.0.1", "port": 0, "insecure": False, "watch_stdin": False, "stop": stop}
        model: Any = Model()
        endpoint = Endpoint(model, opened=False)
        server = asyncio.ensure_future(serve(endpoint, guard=Guard(tls), on_ready=ready.set_result, **options))
        await asyncio.to_thread(ask_with, await ready)
        stop.set()
        await server

    asyncio.run(scenario())
    assert [caller for caller, _ in callers] == ["client 'alice'"] * 2
    assert len({connection for _, connection in callers}) == 2


@pytest.mark.parametrize(
    ("caller", "text"),
    [
        (None, "it uses TLS, this side plain text: give --tls"),
        ("stranger/client/alice", "its certificate is not accepted: the certificate is not"),
        ("certs/client/revoked", "client 'revoked' has been revoked; issue another"),
    ],
)
def test_a_refused_client_gets_the_reason(folder: Any, main: Any, caller: Any, text: Any) -> None:
    with (
        Client(main[0], tls=caller and folder / caller) as client,
        pytest.raises(CredentialsError, match=text) as caught,
    ):
        client.infer(SAMPLE)
    assert main[0] in str(caught.value)


def test_an_aggregator_logs_a_revoked_client(folder: Any, main: Any) -> None:
    address, log = main
    ask(address, folder / "certs/client/revoked", AGGREGATOR_NAME)
    until(lambda: "client 'revoked' has been revoked" in log.read_text())


def test_the_certificate_of_a_node_is_none_of_a_client(folder: Any, main: Any) -> None:
    with pytest.raises(CredentialsError, match="certificate of node 'attic'; this needs one of role client"):
        Client(main[0], tls=folder / "certs/node/attic")
    refused = ask(main[0], folder / "certs/node/attic", AGGREGATOR_NAME)
    assert refused.code() is grpc.StatusCode.PERMISSION_DENIED


def test_the_certificate_of_a_node_is_none_of_an_aggregator_though_the_same_authority_issued_it(
    folder: Any, kitchen: Any
) -> None:
    with (
        Client(kitchen[0], tls=folder / "certs/client/alice") as client,
        pytest.raises(CredentialsError, match="shows the certificate of nonn://node/kitchen, not of aggregator"),
    ):
        client.infer(SAMPLE)


def test_predict_accepts_a_certificate_and_reports_a_missing_one(folder: Any, main: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "sample.npy", SAMPLE)
    asked = run_here(cli.main, "predict", main[0], tmp_path / "sample.npy", "--tls", folder / "certs/client/alice")
    assert asked.returncode == 0, asked.stderr
    asked = run_here(cli.main, "predict", main[0], tmp_path / "sample.npy")
    assert (asked.returncode, "give --tls" in asked.stderr) == (3, True)


def test_a_client_with_a_certificate_does_not_ask_in_plain_text(bundle: Bundle, folder: Any) -> None:
    with (
        LocalCluster(bundle.path) as plain,
        Client(plain.address, tls=folder / "certs/client/alice") as client,
        pytest.raises(CredentialsError, match="it uses plain text, this side TLS"),
    ):
        client.infer(SAMPLE)


def test_tls_is_how_a_process_serves_beyond_loopback(bundle: Bundle, folder: Any, tmp_path: Path) -> None:
    with node(bundle, folder / "certs/node/kitchen", tmp_path / "log", "--host", "0.0.0.0") as (ready, _):
        assert ready["address"].startswith("0.0.0.0:")
    ended = run("nonn_device", "serve", bundle.path, "--student", "0", "--host", "0.0.0.0")
    assert (ended.returncode, "without TLS; give a folder of nonn certs with --tls" in ended.stderr) == (2, True)


def test_what_a_library_prints_on_standard_error_still_arrives_and_so_do_tracebacks(tmp_path: Path) -> None:
    program = (
        "import os, logging, sys\n"
        "from nonn.security.handshake import log_failed_handshakes\n"
        "log_failed_handshakes(); logging.basicConfig(stream=sys.stderr)\n"
        "os.write(2, b'from C\\n')\n"
        "os.write(2, b'I1 ssl_transport_security.cc:1] Handshake failed: certificate has expired\\n' * 3)\n"
        "sys.stdin.readline()\n"
        "raise RuntimeError('from Python')\n"
    )
    refused = "a connection was refused: the other side's certificate has expired"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        lines: list[str] = []
        while not lines or refused not in lines[-1]:
            lines.append(child.stderr.readline())
            assert lines[-1], lines
        _, rest = child.communicate(timeout=TIMEOUT_S)
    text = "".join(lines) + rest
    assert "from C" in text
    assert "RuntimeError: from Python" in text
    assert text.count(refused) == 1


def test_a_signal_ends_a_tls_node_in_order(bundle: Bundle, folder: Any) -> None:
    with process("nonn_device", "serve", bundle.path, "--student", "0", "--tls", folder / "certs/node/attic") as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        assert child.wait(TIMEOUT_S) == 0
