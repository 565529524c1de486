"""Nodes that join, share, leave, die and come back: real processes."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest

import nonn.cli
from nonn.aggregator.inventory import Node, write_inventory
from nonn.bundle import Bundle, load_bundle, write_bundle
from nonn.errors import NonnError, QuorumError
from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.rpc.v1 import fleet_pb2_grpc, inference_pb2, inference_pb2_grpc
from nonn.security.authority import Authority
from tests.fleets import SAMPLE, TOKEN, Fleet, check_offline, members
from tests.serving import TIMEOUT_S, asking, run, run_here, until
from tests.toys import toy_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("membership") / "bundle", num_devices=4, num_parts=2)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        yield Fleet(tmp_path, stack)


def test_nodes_join_serve_and_leave_while_requests_go_on(bundle: Bundle, fleet: Any) -> None:
    aggregator, address = fleet.aggregator(bundle)
    client = fleet.client(address)
    with pytest.raises(QuorumError):
        client.infer(SAMPLE)
    nodes = {name: fleet.node(name, address) for name in ("a", "b", "c", "d")}
    until(lambda: len(members(client)) == 4)
    assert sorted(members(client).values()) == [0, 1, 2, 3]
    assert check_offline(bundle, client).mask == 0b1111
    with asking(client, SAMPLE) as answers:
        gone = members(client)["b"]
        assert nodes["b"].end() == 0
        assert "b" not in members(client)  # at once: it said so before it went
        until(lambda: answers[-1].mask == 0b1111 & ~(1 << gone))
        fleet.node("e", address)
        until(lambda: members(client).get("e") == gone)
        until(lambda: answers[-1].mask == 0b1111)
    assert all(answer.mask | 1 << gone == 0b1111 for answer in answers)
    assert "b left" in aggregator.log.read_text()


def test_an_aggregator_that_is_killed_and_restarted_gets_its_nodes_back_as_they_were(
    bundle: Bundle, fleet: Any
) -> None:
    aggregator, address = fleet.aggregator(bundle)
    client = fleet.client(address)
    nodes = [fleet.node(name, address) for name in ("a", "b", "c")]
    until(lambda: all("in the cluster" in node.log.read_text() for node in nodes))
    before, files = members(client), {name: stamps(fleet.folder / name) for name in "abc"}
    aggregator.end(signal.SIGKILL)
    fleet.aggregator(bundle, port=int(address.rpartition(":")[2]))
    until(lambda: members(client) == before)
    assert check_offline(bundle, client).answered.sum() == 3
    assert {name: stamps(fleet.folder / name) for name in "abc"} == files
    assert all("the lease is no longer valid; joining again" in node.log.read_text() for node in nodes)


def stamps(folder: Any) -> Any:
    """When each file of a student was written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.onnx")}


def test_two_aggregators_share_their_nodes_and_agree_about_them(bundle: Bundle, fleet: Any) -> None:
    _, first = fleet.aggregator(bundle)
    other, second = fleet.aggregator(bundle)
    clients = fleet.client(first), fleet.client(second)
    nodes = [fleet.node(name, first, second) for name in ("a", "b", "c")]
    until(lambda: all(len(members(client)) == 3 for client in clients))
    assert members(clients[0]) == members(clients[1])
    assert all(check_offline(bundle, client).answered.sum() == 3 for client in clients)
    other.end(signal.SIGKILL)
    assert clients[0].infer(SAMPLE).answered.sum() == 3
    assert nodes[0].end() == 0  # the aggregator that is gone does not keep it
    until(lambda: len(members(clients[0])) == 2)


def test_a_node_that_falls_silent_loses_its_lease_and_comes_back_by_itself(bundle: Bundle, fleet: Any) -> None:
    aggregator, address = fleet.aggregator(bundle, "--lease", "1")
    client = fleet.client(address)
    node = fleet.node("a", address)
    until(lambda: len(members(client)) == 1)
    node.child.send_signal(signal.SIGSTOP)
    until(lambda: not client.metadata().nodes)
    assert "was silent until its lease ended" in aggregator.log.read_text()
    node.child.send_signal(signal.SIGCONT)
    until(lambda: len(members(client)) == 1)
    check_offline(bundle, client)


def test_no_lease_ends_while_the_aggregator_stands_still(bundle: Bundle, fleet: Any) -> None:
    aggregator, address = fleet.aggregator(bundle, "--lease", "1")
    client = fleet.client(address)
    for name in ("a", "b"):
        fleet.node(name, address)
    until(lambda: len(members(client)) == 2)
    aggregator.child.send_signal(signal.SIGSTOP)
    time.sleep(3.0)  # three leases
    aggregator.child.send_signal(signal.SIGCONT)
    with asking(client, SAMPLE) as answers:
        until(lambda: len(answers) >= 50)
    assert all(answer.answered.sum() == 2 for answer in answers)
    assert "was silent until its lease ended" not in aggregator.log.read_text()


def test_a_second_device_of_the_same_id_is_refused_loudly(bundle: Bundle, fleet: Any) -> None:
    aggregator, address = fleet.aggregator(bundle)
    client = fleet.client(address)
    first = fleet.node("a", address)
    until(lambda: len(members(client)) == 1)
    second = fleet.node("a", address, data=fleet.folder / "elsewhere")
    assert second.child.wait(TIMEOUT_S) == 3
    assert "node 'a': the id belongs to a device with another key" in second.log.read_text()
    assert "node 'a': the id belongs to a device with another key" in aggregator.log.read_text()
    assert members(client).keys() == {"a"}
    # The copy of a memory card has the same key: the last one to start has the id, and the other one is told.
    copied = shutil.copytree(fleet.folder / "a", fleet.folder / "copy")
    third = fleet.node("a", address, data=copied)
    assert first.child.wait(TIMEOUT_S) == 3
    assert "two devices share this identity" in first.log.read_text()
    assert third.child.poll() is None
    until(lambda: members(client).keys() == {"a"})
    check_offline(bundle, client)


def test_only_authorised_nodes_join(bundle: Bundle, fleet: Any, tmp_path: Path) -> None:
    aggregator, address = fleet.aggregator(bundle)
    wrong = tmp_path / "wrong"
    wrong.write_text(TOKEN + "x")
    for options, code, text in (
        (("--join-token-file", wrong, "--id", "a"), 3, "a token that this server does not accept"),
        (("--id", "a"), 3, "the call has no token"),
        ((), 2, "--id is missing"),
        (("--id", "A\n"), 2, r"id 'A\n': use 1 to 63 lower-case"),
        (("--id", "a", "--join-token-file", tmp_path / "nowhere"), 2, "nowhere: no such file"),
    ):
        ended = run("nonn_device", "join", address, "--data", tmp_path / "d", *options)
        assert (ended.returncode, text in ended.stderr) == (code, True), ended.stderr
    assert "has no token" in aggregator.log.read_text()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet for tests that leave its aggregators as they were."""
    with contextlib.ExitStack() as stack:
        yield Fleet(tmp_path_factory.mktemp("shared"), stack)


@pytest.fixture(scope="module")
def open_address(bundle: Bundle, shared: Fleet) -> Any:
    return shared.aggregator(bundle)[1]


@pytest.fixture
def registered(open_address: str) -> Iterator[Any]:
    """The stub of a device that has the token and a lease of student 2, what it sends along, and the lease."""
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    with grpc.insecure_channel(open_address) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)  # type: ignore[no-untyped-call]
        request = pb.RegisterRequest(node="a", instance="i", fingerprint="f", student=2)
        yield stub, metadata, stub.Register(request, metadata=metadata, timeout=TIMEOUT_S)


def test_a_member_gets_the_files_of_its_student_from_any_offset(bundle: Bundle, registered: Any) -> None:
    stub, metadata, lease = registered
    assert [artifact.path for artifact in lease.artifacts] == ["manifest.json", "students/student-2.onnx"]
    request = pb.GetArtifactRequest(lease=lease.lease, path="manifest.json", offset=9)
    chunks = stub.GetArtifact(request, metadata=metadata, timeout=TIMEOUT_S)
    assert b"".join(chunk.data for chunk in chunks) == (bundle.path / "manifest.json").read_bytes()[9:]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lease": "none"}, "unknown lease"),
        ({"path": "students/student-1.onnx"}, "is not a file of student 2"),
        ({"path": "../secret"}, "is not a file of student 2"),
        ({"offset": 1 << 40}, "the offset is"),
    ],
)
def test_requests_for_other_files_are_refused(registered: Any, change: Any, text: Any) -> None:
    stub, metadata, lease = registered
    request = pb.GetArtifactRequest(**{"lease": lease.lease, "path": "manifest.json"} | change)
    with pytest.raises(grpc.RpcError, match=text):
        list(stub.GetArtifact(request, metadata=metadata, timeout=TIMEOUT_S))


def test_a_heartbeat_is_known_by_its_lease(registered: Any) -> None:
    stub, metadata, lease = registered
    assert stub.Heartbeat(pb.HeartbeatRequest(lease=lease.lease), metadata=metadata, timeout=TIMEOUT_S).known
    assert not stub.Heartbeat(pb.HeartbeatRequest(lease="none"), metadata=metadata, timeout=TIMEOUT_S).known


def test_an_address_that_is_none_is_refused(registered: Any) -> None:
    stub, metadata, _ = registered
    request = pb.RegisterRequest(node="b", instance="i", fingerprint="f", address="x")
    with pytest.raises(grpc.RpcError, match="is not host:port"):
        stub.Register(request, metadata=metadata, timeout=TIMEOUT_S)


def test_options_that_contradict_each_other_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    write_inventory(tmp_path / "nodes.toml", [Node(id="a", address="h:1", student=0)])
    token = tmp_path / "token"
    token.write_text(TOKEN)
    for options, code, text in (
        ((), 2, "there would be no nodes: add --inventory, or let nodes join with --joins"),
        (("--joins",), 2, "--joins needs a way to authenticate nodes"),
        (("--inventory", tmp_path / "nodes.toml", "--lease", "3"), 2, "--join-token-file and --lease require --joins"),
        (("--joins", "--join-token-file", token, "--lease", "0.01"), 2, "--lease: 0.01: must be between 0.1 and 3,600"),
        (("--joins", "--join-token-file", token, "--lease", "0"), 2, "--lease: 0: must be between 0.1 and 3,600"),
    ):
        ended = run_here(nonn.cli.main, "serve", bundle.path, *options)
        assert (ended.returncode, text in ended.stderr) == (code, True), ended.stderr


def test_an_aggregator_without_joins_is_reported(bundle: Bundle, fleet: Any, tmp_path: Path) -> None:
    write_inventory(tmp_path / "nodes.toml", [Node(id="a", address="127.0.0.1:1", student=0)])
    running = fleet._start("nonn", "serve", bundle.path, "--inventory", tmp_path / "nodes.toml", "--deadline", "0.2")
    address = running.ready["address"]
    ended = run("nonn_device", "join", address, "--id", "a", "--data", tmp_path / "d")
    assert (ended.returncode, "accepts no joins; start it with: nonn serve --joins" in ended.stderr) == (3, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_that_waits_for_its_aggregator_ends_at_once_on_a_signal(fleet: Any, number: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
    node = fleet.node("a", address)
    until(lambda: "does not answer" in node.log.read_text())
    assert node.end(number) == 0


def padded(bundle: Bundle, path: Any, num_bytes: Any) -> Any:
    """The same bundle with students as large as real ones."""
    students = {}
    for student in bundle.manifest.students:
        model = onnx.load(bundle.path / student.file)
        model.doc_string = random.Random(student.device).randbytes(num_bytes // 2).hex()
        students[student.device] = model.SerializeToString()
    arrays = {name: bundle.arrays(name) for name in bundle.manifest.files}
    return write_bundle(path, bundle.manifest, students, arrays)


class CuttingProxy:
    """Forwards connections, and cuts the first one after so many bytes of answers, once `arrived` says so."""

    def __init__(self, upstream: Any, cut_after: Any, arrived: Any) -> None:
        self.cuts, self.answered, self._cut_after, self._arrived = 0, 0, cut_after, arrived
        self._upstream = upstream
        self._ends: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                host, _, port = self._upstream.rpartition(":")
                far = socket.create_connection((host, int(port)))
                self._ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pipe, args=(source, target, source is far)))
                    self._threads[-1].start()

    def _pipe(self, source: Any, target: Any, answers: Any) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers:
                    self.answered += len(data)
                target.sendall(data)
                if answers and not self.cuts and self.answered > self._cut_after:
                    until(self._arrived)
                    self.cuts = 1
                    break
        self._hang_up(source, target)

    @staticmethod
    def _hang_up(*ends: Any) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._hang_up(self._server, *self._ends)
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        for end in (self._server, *self._ends):
            end.close()


def test_a_download_that_is_cut_goes_on_and_the_whole_is_right(bundle: Bundle, fleet: Any, tmp_path: Path) -> None:
    large = padded(bundle, tmp_path / "large", 4_000_000)
    _, address = fleet.aggregator(large)

    def most_is_on_disk() -> Any:
        return any(part.stat().st_size > 2_000_000 for part in (fleet.folder / "a").rglob("*.part"))

    with contextlib.closing(CuttingProxy(address, 3_000_000, most_is_on_disk)) as proxy:
        node = fleet.node("a", proxy.address)
        ready = node.ready
        assert proxy.cuts == 1
        # What had been written before the cut did not come again; what was on its way may have.
        size = (large.path / large.manifest.students[ready["node"]].file).stat().st_size
        assert proxy.answered < 3_000_000 + 1.1 * (size - 2_000_000)
    held = load_bundle(fleet.folder / "a/bundles" / large.hash, device=ready["node"])
    assert held.hash == large.hash
    assert not list((fleet.folder / "a").rglob("*.part"))
    assert "trying again" in node.log.read_text()


@pytest.fixture(scope="module")
def secure(bundle: Bundle, shared: Fleet) -> Any:
    """An authority, and an aggregator with TLS: its process and address."""
    return shared.with_tls(bundle)


def test_with_tls_the_certificate_is_the_id(bundle: Bundle, fleet: Any, secure: Any) -> None:
    authority, _, address = secure
    client = fleet.client(address, tls=authority.folder("client", "alice"))
    for name in ("a", "b"):
        fleet.node(name, address, options=("--tls", authority.folder("node", name)))
    until(lambda: members(client).keys() == {"a", "b"})
    check_offline(bundle, client)


def test_a_certificate_that_cannot_join_is_refused_with_the_reason(secure: Any, tmp_path: Path) -> None:
    authority, _, address = secure
    authority.issue("node", "gone")
    stolen = shutil.copytree(authority.folder("node", "gone"), tmp_path / "stolen")
    authority.revoke("node", "gone")
    until(lambda: _code_of_a_call(authority, address, stolen) is grpc.StatusCode.UNAUTHENTICATED)  # the list is read
    for options, text in (
        (("--tls", authority.folder("node", "a"), "--id", "b"), "is of node 'a'; omit --id"),
        (("--tls", authority.folder("client", "alice")), "of client 'alice'; this needs one of role node"),
        (("--tls", stolen), "the certificate of node 'gone' has been revoked; issue another"),
        (("--id", "a"), "it uses TLS, this side plain text: give --tls"),
    ):
        ended = run("nonn_device", "join", address, "--data", tmp_path / "d", *options)
        code = 2 if "omit --id" in text else 3  # the option is wrong; the certificate is
        assert (ended.returncode, text in ended.stderr) == (code, True), ended.stderr


def _code_of_a_call(authority: Authority, address: str, folder: Path) -> grpc.StatusCode:
    """Status of a call that no node may make: PERMISSION_DENIED as long as its certificate is accepted."""
    pem = (folder / "identity.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials((authority.path / "ca.pem").read_bytes(), pem, pem)
    override = [("grpc.ssl_target_name_override", "aggregator.nonn.internal")]
    with grpc.secure_channel(address, credentials, override) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as caught:
            stub.ServerMetadata(inference_pb2.ServerMetadataRequest(), timeout=TIMEOUT_S)
        return caught.value.code()


def test_the_certificate_of_a_node_does_not_join_as_another_one(secure: Any) -> None:
    authority, aggregator, address = secure
    pem = (authority.folder("node", "a") / "identity.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials((authority.path / "ca.pem").read_bytes(), pem, pem)
    override = [("grpc.ssl_target_name_override", "aggregator.nonn.internal")]
    with grpc.secure_channel(address, credentials, override) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError, match="certificate of node 'a' does not let it join as 'b'") as caught:
            stub.Register(pb.RegisterRequest(node="b", instance="i", address="127.0.0.1:1"), timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "does not let it join as 'b'" in aggregator.log.read_text()


def test_a_node_that_is_revoked_while_it_serves_is_out_and_the_other_serves_on(bundle: Bundle, fleet: Any) -> None:
    authority, _, address = fleet.with_tls(bundle)
    client = fleet.client(address, tls=authority.folder("client", "alice"))
    nodes = [fleet.node(n, address, options=("--tls", authority.folder("node", n))) for n in ("a", "b")]
    until(lambda: members(client).keys() == {"a", "b"})
    authority.revoke("node", "b")
    until(lambda: members(client).keys() == {"a"})
    assert client.infer(SAMPLE).answered.sum() == 1
    assert nodes[0].end() == 0


def test_a_node_takes_another_bundle_from_the_aggregator_that_it_has(
    bundle: Bundle, fleet: Any, tmp_path: Path
) -> None:
    aggregator, address = fleet.aggregator(bundle)
    node = fleet.node("a", address)
    assert node.ready["bundle"] == bundle.hash
    client = fleet.client(address)
    until(lambda: len(members(client)) == 1)
    aggregator.end(signal.SIGKILL)
    newer = padded(bundle, tmp_path / "newer", 1000)
    fleet.aggregator(newer, port=int(address.rpartition(":")[2]))
    assert node.ready["bundle"] == newer.hash
    until(lambda: len(members(client)) == 1)
    assert check_offline(newer, client).answered.sum() == 1
    assert [folder.name for folder in (fleet.folder / "a/bundles").iterdir()] == [newer.hash]
    with pytest.raises(NonnError):
        client.infer(np.zeros((1, 1, 9, 9), np.uint8))
