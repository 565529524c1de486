"""Nodes that join, share, leave, die and come back: the rules with a clock of our own, then real processes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading

import grpc
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nonn_device.artifacts import Artifact, Store
from nonn_device.join import Backoff, Link

from nonn.aggregator.fanout import connect_insecure
from nonn.aggregator.fleet import Fleet as FleetService
from nonn.aggregator.inventory import Node, write_inventory
from nonn.aggregator.membership import Applicant, Membership
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.service import Aggregator
from nonn.aggregator.work import WorkChannels
from nonn.bundle import load_bundle, write_bundle
from nonn.certs import Authority
from nonn.client import Client
from nonn.errors import BundleError, DataError, MembershipError, NonnError, QuorumError, UnreachableError
from nonn.rpc.security import Guard
from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.rpc.v1 import fleet_pb2_grpc
from tests.serving import TIMEOUT_S, fake_node, run, until
from tests.toys import toy_bundle, toy_data

SAMPLE = np.zeros((1, 1, 8, 8), np.uint8)
TOKEN = "a-token-for-those-who-join"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return toy_bundle(tmp_path_factory.mktemp("membership") / "bundle", num_devices=4, num_parts=2)


def applicant(node, instance="i", fingerprint="f", **more):
    return Applicant(node=node, instance=instance, fingerprint=fingerprint, **more)


# The rules.


def test_a_new_node_gets_the_student_that_is_needed_most(bundle):
    membership = Membership(bundle)
    students = [membership.register(applicant(f"n{i}"), 0.0).student for i in range(8)]
    assert sorted(students[:4]) == sorted(students[4:]) == [0, 1, 2, 3]  # nobody twice before everybody once
    parts = [bundle.manifest.students[i].part for i in students]
    assert sorted(parts[:2]) == sorted(parts[2:4]) == [0, 1]  # of both parts alike, at every moment
    value = bundle.table.importance(np.array(bundle.p_fail))
    assert value[students[0]] == max(value)


def test_an_inventory_counts_when_students_are_given_out(bundle):
    inventory = [Node(id=f"fixed-{i}", address=f"h:{i + 1}", student=i) for i in (0, 1, 2)]
    membership = Membership(bundle, inventory)
    assert membership.register(applicant("a"), 0.0).student == 3
    for wrong, text in (
        (applicant("fixed-0"), "the inventory has a node of that id; join under another one: --id"),
        (applicant("b", address="h:1"), "h:1 is the address of a node of the inventory"),
    ):
        with pytest.raises(MembershipError, match=text):
            membership.register(wrong, 0.0)


def test_a_node_keeps_the_student_that_it_brings_but_not_one_of_another_bundle(bundle):
    membership = Membership(bundle)
    for node in "abc":
        assert membership.register(applicant(node, student=3, bundle=bundle.hash), 0.0).student == 3
    assert membership.register(applicant("d", student=3, bundle="0" * 64), 0.0).student != 3
    with pytest.raises(MembershipError, match="wants student 7; the bundle has 0 to 3"):
        membership.register(applicant("e", student=7), 0.0)


def test_a_node_that_brings_no_student_gets_the_one_that_is_reserved_for_it(bundle):
    membership, usual = Membership(bundle), Membership(bundle).register(applicant("a"), 0.0).student
    membership.reserve("a", (usual + 1) % 4)
    assert membership.register(applicant("a"), 0.0).student == (usual + 1) % 4
    assert membership.register(applicant("a", student=usual, bundle=bundle.hash), 0.0).student == usual


def test_a_student_that_does_not_fit_is_not_given(bundle):
    sizes = [student.bytes for student in bundle.manifest.students]
    membership = Membership(bundle)
    assert membership.register(applicant("a", max_model_bytes=max(sizes)), 0.0).student in range(4)
    with pytest.raises(MembershipError, match=f"can hold 10 bytes; the smallest student has {min(sizes)}"):
        membership.register(applicant("b", max_model_bytes=10), 0.0)


def test_an_id_is_one_device(bundle):
    membership = Membership(bundle, lease_s=10.0)
    first = membership.register(applicant("a", address="h:1"), 0.0)
    with pytest.raises(MembershipError, match=r"held by a device with another key, at h:1; .* or wait 9 s"):
        membership.register(applicant("a", "j", "g"), 1.0)
    assert membership.renew(first.token, 5.0)
    # With the same key it is the device after a restart, which may come with another address.
    second = membership.register(applicant("a", "j", address="h:2"), 6.0)
    assert not membership.renew(first.token, 7.0)
    assert membership.renew(second.token, 7.0)
    with pytest.raises(MembershipError, match=r"two devices share this identity, and the other one, at h:2"):
        membership.register(applicant("a", "i", address="h:1"), 8.0)
    assert membership.expire(17.0) == [second]
    # Its lease is over: the id is free for whoever comes.
    assert membership.register(applicant("a", "i", "g"), 18.0).student == second.student


def test_a_lease_lives_by_its_heartbeats(bundle):
    membership = Membership(bundle, lease_s=3.0)
    lease = membership.register(applicant("a"), 0.0)
    assert membership.next_expiry_s(1.0) == 2.0
    assert membership.renew(lease.token, 2.9, rss_bytes=7)
    assert (lease.rss_bytes, membership.expire(5.0)) == (7, [])
    assert not membership.renew(lease.token, 5.9)
    assert membership.expire(5.9) == [lease]
    assert membership.next_expiry_s(6.0) is None
    assert membership.end(lease.token) is None


STEP = st.tuples(
    st.sampled_from(["register", "renew", "end", "expire"]),
    st.integers(0, 3),  # node
    st.integers(0, 2),  # instance
    st.integers(0, 1),  # key
    st.floats(0, 2),  # time that passes
)


@settings(max_examples=100, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_whatever_happens_an_id_has_one_live_lease_and_only_its_token_renews_it(bundle, steps):
    membership, now, given_out = Membership(bundle, lease_s=3.0), 0.0, []
    for what, node, instance, key, passed in steps:
        now += passed
        if what == "register":
            before = membership.leases.get(f"n{node}")
            live = before is not None and before.expires_at > now
            try:
                lease = membership.register(applicant(f"n{node}", f"i{instance}", f"f{key}"), now)
            except MembershipError:
                assert live
                assert membership.leases[f"n{node}"] is before
                continue
            if live and before.applicant.instance != f"i{instance}":
                assert before.applicant.fingerprint == f"f{key}"
            given_out.append(lease)
        elif what == "renew" and given_out:
            lease = given_out[node % len(given_out)]
            current = membership.leases.get(lease.applicant.node) is lease and lease.expires_at > now
            assert membership.renew(lease.token, now) is current
        elif what == "end" and given_out:
            lease = given_out[node % len(given_out)]
            assert (membership.end(lease.token) is lease) or membership.leases.get(lease.applicant.node) is not lease
        else:
            membership.expire(now)
            assert all(lease.expires_at > now for lease in membership.leases.values())
    assert all(membership.find(lease.token) is lease for lease in membership.leases.values())
    dead = [lease for lease in given_out if lease not in membership.leases.values()]
    assert all(membership.find(lease.token) is None for lease in dead)


def test_back_off_doubles_up_to_a_limit_with_jitter_and_starts_again_after_a_success():
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    backoff = Backoff(sleep, random.Random(0))

    async def scenario():
        for _ in range(8):
            await backoff.wait()
        backoff.reset()
        await backoff.wait()

    asyncio.run(scenario())
    for seconds, most in zip(waited, (0.1, 0.2, 0.4, 0.8, 1.5, 1.5, 1.5, 1.5, 0.1), strict=True):
        assert most / 2 <= seconds <= most
    assert len(set(waited)) == len(waited)


# The service, in this process.


class Call:
    """As much of a call as the service looks at."""

    def peer(self):
        return "somebody"

    async def abort(self, code, details, trailing=()):
        raise AssertionError(details)


@contextlib.asynccontextmanager
async def service(bundle):
    """The service and a function that registers nodes with it."""
    policy = PolicyConfig(deadline_s=1000.0)  # no test takes as long
    async with Aggregator(bundle, [], policy, connect=(work := WorkChannels()).or_else(connect_insecure)) as aggregator:
        fleet = FleetService(aggregator, Membership(bundle), Guard(), work)

        async def register(name, **more):
            return await fleet.Register(pb.RegisterRequest(node=name, instance="i", fingerprint="f", **more), Call())

        yield aggregator, fleet, register


def test_a_node_that_hangs_while_it_joins_holds_up_nobody_else(bundle):
    async def scenario():
        asked = asyncio.Event()

        async def hangs(raw, context):
            asked.set()
            await asyncio.Event().wait()

        async def refuses(raw, context):
            return b"no reply"

        async with (
            fake_node(hangs) as first,
            fake_node(refuses) as second,
            service(bundle) as (aggregator, fleet, register),
            asyncio.timeout(TIMEOUT_S),
        ):
            joining = asyncio.create_task(register("a", address=first))
            await asked.wait()
            await register("b", address=second)
            assert {node.id for node in aggregator.nodes} == fleet.membership.leases.keys() == {"a", "b"}
            await fleet.release("b", "is drained")
            assert [node.id for node in aggregator.nodes] == ["a"]
            assert not joining.done()
            joining.cancel()

    asyncio.run(scenario())


def test_a_node_that_dialled_in_and_cannot_be_added_is_logged_and_has_to_join_again(bundle, caplog, monkeypatch):
    async def scenario():
        async with service(bundle) as (aggregator, fleet, register), asyncio.timeout(TIMEOUT_S):

            async def fails(node):
                raise RuntimeError("out of luck")

            monkeypatch.setattr(aggregator, "add_node", fails)
            lease = (await register("a", dials_out=True)).lease

            async def replies():
                yield pb.WorkReply(lease=lease)
                await asyncio.Event().wait()

            assert [request async for request in fleet.Work(replies(), Call())] == []
            assert not (await fleet.Heartbeat(pb.HeartbeatRequest(lease=lease), Call())).known

    asyncio.run(scenario())
    assert "node a dialled in and could not be added" in caplog.text
    assert "out of luck" in caplog.text


# The files of a student.


class Source:
    """What an aggregator would send: files of a bundle, cut or altered on request."""

    def __init__(self, bundle, student):
        paths = ["manifest.json", bundle.manifest.students[student].file]
        self.bundle, self.student, self.asked, self.cut_at = bundle, student, [], None
        self.content = {path: (bundle.path / path).read_bytes() for path in paths}
        self.artifacts = [Artifact(p, hashlib.sha256(c).hexdigest(), len(c)) for p, c in self.content.items()]

    async def read(self, path, offset):
        self.asked.append((path, offset))
        content = self.content[path]
        for start in range(offset, len(content), 100):
            if self.cut_at is not None and start >= self.cut_at:
                raise UnreachableError("cut")
            yield content[start : start + 100]

    def fetch(self, store):
        return asyncio.run(store.fetch(self.bundle.hash, self.student, self.artifacts, self.read))


def test_a_fetch_goes_on_where_it_was_cut_and_nothing_is_fetched_twice(bundle, tmp_path):
    source, store = Source(bundle, 2), Store(tmp_path / "data")
    file = bundle.manifest.students[2].file
    source.cut_at = 300
    for _ in range(2):
        with pytest.raises(UnreachableError):
            source.fetch(store)
        assert store.held() is None
    source.cut_at = None
    fetched = source.fetch(store)
    assert (fetched.hash, store.held()) == (bundle.hash, (bundle.hash, 2))
    offsets = [offset for path, offset in source.asked if path == file]
    assert offsets[-1] == 300 or offsets == [0]
    assert [offset for path, offset in source.asked if path == "manifest.json"][:2] == [0, 300]
    before = len(source.asked)
    source.fetch(store)
    assert len(source.asked) == before


def test_what_is_not_what_was_announced_is_thrown_away_and_fetched_anew(bundle, tmp_path):
    source, store = Source(bundle, 0), Store(tmp_path / "data")
    file = bundle.manifest.students[0].file
    good = source.content[file]
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good + b"more", good[:-5]):
        source.content[file] = bad
        with pytest.raises(BundleError, match=r"student-0\.onnx: what came is not what was announced"):
            source.fetch(store)
    source.content[file] = good
    source.fetch(store)
    assert source.asked[-1] == (file, 0)


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "students/../../evil", "a\\b"])
def test_a_file_outside_the_bundle_is_refused(bundle, tmp_path, path):
    source, store = Source(bundle, 0), Store(tmp_path / "data")
    source.artifacts = [Artifact(path, "0" * 64, 1)]
    with pytest.raises(BundleError, match="lies outside the bundle"):
        source.fetch(store)


def test_a_full_disk_is_an_error_that_says_what_to_do(bundle, tmp_path):
    source, store = Source(bundle, 1), Store(tmp_path / "data")
    part = store.folder(bundle.hash) / f"{bundle.manifest.students[1].file}.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")  # the kernel's own full disk
    with pytest.raises(
        DataError, match=r"no space left for student 1 \(\d+ bytes\); free some, or name another folder"
    ):
        source.fetch(store)
    part.unlink()
    huge = dataclasses.replace(source.artifacts[1], size=1 << 60)
    source.artifacts[1] = huge
    with pytest.raises(DataError, match="no space left"):  # known before the first byte
        source.fetch(store)
    with pytest.raises(DataError, match="cannot be used for the node's data"):
        Store(tmp_path / "data" / "node.key" / "below")


def test_a_device_keeps_its_key_and_only_the_bundle_that_it_runs(bundle, tmp_path):
    store = Store(tmp_path / "data")
    assert (tmp_path / "data/node.key").stat().st_mode & 0o777 == 0o600
    assert Store(tmp_path / "data").fingerprint == store.fingerprint != Store(tmp_path / "other").fingerprint
    (tmp_path / "other/node.key").write_bytes(b"")  # power was cut
    assert Store(tmp_path / "other").fingerprint == Store(tmp_path / "other").fingerprint
    assert len((tmp_path / "other/node.key").read_text()) == 64
    Source(bundle, 0).fetch(store)
    other = toy_bundle(tmp_path / "bundle", num_devices=2)
    Source(other, 1).fetch(store)
    assert store.held() == (other.hash, 1)
    assert [folder.name for folder in (tmp_path / "data/bundles").iterdir()] == [other.hash]


@pytest.mark.parametrize(
    ("bound", "wish", "expected"),
    [
        ("127.0.0.1:7", "", "127.0.0.1:7"),
        ("0.0.0.0:7", "", "127.0.0.1:7"),  # the way to an aggregator on this machine
        ("0.0.0.0:7", "pi.local", "pi.local:7"),
        ("0.0.0.0:7", "10.0.0.9:99", "10.0.0.9:99"),
        ("[::]:7", "", "127.0.0.1:7"),
    ],
)
def test_the_address_that_is_told_leads_back(bound, wish, expected):
    assert Link("127.0.0.1:50051").advertised(bound, wish) == expected


# Real processes.


class Running:
    """A process, its ready line and its log."""

    def __init__(self, log, *arguments):
        self.log = log
        with log.open("wb") as stderr:
            command = [sys.executable, "-m", *map(str, arguments), "--watch-stdin"]
            self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)

    @property
    def ready(self):
        """Of the next start of its server."""
        line = self.child.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)

    def end(self, number=signal.SIGTERM):
        self.child.send_signal(number)
        return self.child.wait(TIMEOUT_S)

    def close(self):
        self.child.kill()
        self.child.wait()
        self.child.stdin.close()
        self.child.stdout.close()


class Fleet:
    """Aggregators and nodes of one test."""

    def __init__(self, folder, stack):
        self.folder, self._stack, self._count = folder, stack, 0
        self.token = folder / "join.token"
        self.token.write_text(TOKEN)

    def _start(self, *arguments):
        self._count += 1
        running = Running(self.folder / f"{self._count}.log", *arguments)
        self._stack.callback(running.close)
        return running

    def aggregator(self, bundle, *options, port=0):
        security = () if "--tls" in options else ("--join-token-file", self.token)
        running = self._start("nonn", "serve", bundle.path, "--joins", "--port", port, *security, *options)
        return running, running.ready["address"]

    def node(self, name, *aggregators, data=None, options=()):
        security = () if "--tls" in options else ("--join-token-file", self.token, "--id", name)
        data = data or self.folder / name
        return self._start("nonn_device", "join", *aggregators, "--data", data, *security, *options)

    def client(self, address, **options):
        return self._stack.enter_context(Client(address, TIMEOUT_S, **options))


@pytest.fixture
def fleet(tmp_path):
    with contextlib.ExitStack() as stack:
        yield Fleet(tmp_path, stack)


def members(client):
    """Student of each node that is up."""
    return {node["id"]: node["student"] for node in client.metadata().nodes if node["state"] == "up"}


def check_offline(bundle, client):
    """The answer is the offline fusion of the recorded features of the devices that it names."""
    inputs, _ = toy_data(200, seed=3)
    answer = client.infer(inputs[:1])
    recorded, _ = bundle.features
    expected = bundle.head.logits({i: recorded[i][:1] for i in answer.answered.nonzero()[0].tolist()})
    np.testing.assert_allclose(answer.logits, expected, rtol=1e-4, atol=1e-4)
    return answer


def test_nodes_join_serve_and_leave_while_requests_go_on(bundle, fleet):
    aggregator, address = fleet.aggregator(bundle)
    client = fleet.client(address)
    with pytest.raises(QuorumError):
        client.infer(SAMPLE)
    nodes = {name: fleet.node(name, address) for name in ("a", "b", "c", "d")}
    until(lambda: len(members(client)) == 4)
    assert sorted(members(client).values()) == [0, 1, 2, 3]
    assert check_offline(bundle, client).mask == 0b1111
    answers, stop = [], threading.Event()

    def keep_asking():
        while not stop.is_set():
            answers.append(client.infer(SAMPLE))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        gone = members(client)["b"]
        assert nodes["b"].end() == 0
        assert "b" not in members(client)  # at once: it said so before it went
        until(lambda: answers[-1].mask == 0b1111 & ~(1 << gone))
        fleet.node("e", address)
        until(lambda: members(client).get("e") == gone)
        until(lambda: answers[-1].mask == 0b1111)
    finally:
        stop.set()
        asking.join()
    assert all(answer.mask | 1 << gone == 0b1111 for answer in answers)
    assert "b left" in aggregator.log.read_text()


def test_an_aggregator_that_is_killed_and_restarted_gets_its_nodes_back_as_they_were(bundle, fleet):
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
    assert all("knows nothing of this node any more; joining again" in node.log.read_text() for node in nodes)


def stamps(folder):
    """When each file of a student was written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.onnx")}


def test_two_aggregators_share_their_nodes_and_agree_about_them(bundle, fleet):
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


def test_a_node_that_falls_silent_loses_its_lease_and_comes_back_by_itself(bundle, fleet):
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


def test_a_second_device_of_the_same_id_is_refused_loudly(bundle, fleet):
    aggregator, address = fleet.aggregator(bundle)
    client = fleet.client(address)
    first = fleet.node("a", address)
    until(lambda: len(members(client)) == 1)
    second = fleet.node("a", address, data=fleet.folder / "elsewhere")
    assert second.child.wait(TIMEOUT_S) == 3
    assert "node 'a': the id is held by a device with another key" in second.log.read_text()
    assert "node 'a': the id is held by a device with another key" in aggregator.log.read_text()
    assert members(client).keys() == {"a"}
    # The copy of a memory card has the same key: the last one to start has the id, and the other one is told.
    copied = shutil.copytree(fleet.folder / "a", fleet.folder / "copy")
    third = fleet.node("a", address, data=copied)
    assert first.child.wait(TIMEOUT_S) == 3
    assert "two devices share this identity" in first.log.read_text()
    assert third.child.poll() is None
    until(lambda: members(client).keys() == {"a"})
    check_offline(bundle, client)


def test_only_who_may_join_joins_and_only_members_get_files(bundle, fleet, tmp_path):
    aggregator, address = fleet.aggregator(bundle)
    wrong = tmp_path / "wrong"
    wrong.write_text(TOKEN + "x")
    for options, text in (
        (("--join-token-file", wrong, "--id", "a"), "a token that is not one of this server's"),
        (("--id", "a"), "the call has no token"),
        ((), "--id is missing"),
        (("--id", "A"), "lower-case"),
        (("--id", "a", "--join-token-file", tmp_path / "nowhere"), "nowhere: cannot be read"),
    ):
        ended = run("nonn_device", "join", address, "--data", tmp_path / "d", *options)
        assert (ended.returncode, text in ended.stderr) == (3, True), ended.stderr
    assert "has no token" in aggregator.log.read_text()
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    with grpc.insecure_channel(address) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        request = pb.RegisterRequest(node="a", instance="i", fingerprint="f", student=2)
        lease = stub.Register(request, metadata=metadata, timeout=TIMEOUT_S)
        assert [artifact.path for artifact in lease.artifacts] == ["manifest.json", "students/student-2.onnx"]
        for token, path, offset, text in (
            ("none", "manifest.json", 0, "no such lease"),
            (lease.lease, "students/student-1.onnx", 0, "is no file of student 2"),
            (lease.lease, "../secret", 0, "is no file of student 2"),
            (lease.lease, "manifest.json", 1 << 40, "the offset is"),
        ):
            with pytest.raises(grpc.RpcError, match=text):
                list(stub.GetArtifact(pb.GetArtifactRequest(lease=token, path=path, offset=offset), metadata=metadata))
        chunks = stub.GetArtifact(
            pb.GetArtifactRequest(lease=lease.lease, path="manifest.json", offset=9), metadata=metadata
        )
        manifest = (bundle.path / "manifest.json").read_bytes()
        assert b"".join(chunk.data for chunk in chunks) == manifest[9:]
        assert not stub.Heartbeat(pb.HeartbeatRequest(lease="none"), metadata=metadata).known
        assert stub.Heartbeat(pb.HeartbeatRequest(lease=lease.lease), metadata=metadata).known
        with pytest.raises(grpc.RpcError, match="is not host:port"):
            stub.Register(pb.RegisterRequest(node="b", instance="i", fingerprint="f", address="x"), metadata=metadata)


def test_options_that_contradict_each_other_are_refused(bundle, tmp_path):
    write_inventory(tmp_path / "nodes.toml", [Node(id="a", address="h:1", student=0)])
    token = tmp_path / "token"
    token.write_text(TOKEN)
    for options, text in (
        ((), "there would be no nodes: give --inventory, or let nodes join with --joins"),
        (("--joins",), "--joins needs to know who may join"),
        (("--inventory", tmp_path / "nodes.toml", "--lease", "3"), "--join-token-file and --lease go with --joins"),
        (("--joins", "--join-token-file", token, "--lease", "0"), "--lease 0: must be 0.1 to 3600 seconds"),
    ):
        ended = run("nonn", "serve", bundle.path, *options)
        assert (ended.returncode, text in ended.stderr) == (3, True), ended.stderr


def test_an_aggregator_that_takes_no_joins_says_so(bundle, fleet, tmp_path):
    write_inventory(tmp_path / "nodes.toml", [Node(id="a", address="127.0.0.1:1", student=0)])
    running = fleet._start("nonn", "serve", bundle.path, "--inventory", tmp_path / "nodes.toml", "--deadline", "0.2")
    address = running.ready["address"]
    ended = run("nonn_device", "join", address, "--id", "a", "--data", tmp_path / "d")
    assert (ended.returncode, "takes no joins; start it with: nonn serve --joins" in ended.stderr) == (3, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_that_waits_for_its_aggregator_ends_at_once_when_told(fleet, number):
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
    node = fleet.node("a", address)
    until(lambda: "nobody answers there" in node.log.read_text())
    assert node.end(number) == 0


def padded(bundle, path, num_bytes):
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

    def __init__(self, upstream, cut_after, arrived):
        self.cuts, self.answered, self._cut_after, self._arrived = 0, 0, cut_after, arrived
        self._upstream, self._ends = upstream, []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                host, _, port = self._upstream.rpartition(":")
                far = socket.create_connection((host, int(port)))
                self._ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pipe, args=(source, target, source is far)))
                    self._threads[-1].start()

    def _pipe(self, source, target, answers):
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
    def _hang_up(*ends):
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._hang_up(self._server, *self._ends)
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        for end in (self._server, *self._ends):
            end.close()


def test_a_download_that_is_cut_goes_on_and_the_whole_is_right(bundle, fleet, tmp_path):
    large = padded(bundle, tmp_path / "large", 4_000_000)
    _, address = fleet.aggregator(large)

    def most_is_on_disk():
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


def test_with_tls_the_certificate_is_the_id(bundle, fleet, tmp_path):
    authority = Authority.create(tmp_path / "certs")
    for role, name in (("aggregator", "main"), ("client", "alice"), ("node", "a"), ("node", "b"), ("node", "gone")):
        authority.issue(role, name)
    stolen = shutil.copytree(authority.folder("node", "gone"), tmp_path / "stolen")
    authority.revoke("node", "gone")
    aggregator, address = fleet.aggregator(bundle, "--tls", authority.folder("aggregator", "main"))
    client = fleet.client(address, tls=authority.folder("client", "alice"))
    nodes = [fleet.node(n, address, options=("--tls", authority.folder("node", n))) for n in ("a", "b")]
    until(lambda: members(client).keys() == {"a", "b"})
    check_offline(bundle, client)
    for options, text in (
        (("--tls", authority.folder("node", "a"), "--id", "b"), "is of node 'a'; leave --id out"),
        (("--tls", authority.folder("client", "alice")), "of client 'alice'; this takes one of role node"),
        (("--tls", stolen), "the certificate of node 'gone' has been revoked; issue another"),
        (("--id", "a"), "it speaks TLS, this side plain text: give --tls"),
    ):
        ended = run("nonn_device", "join", address, "--data", tmp_path / "d", *options)
        assert (ended.returncode, text in ended.stderr) == (3, True), ended.stderr
    # One node's certificate neither joins as another one nor holds another one's lease.
    pem = (authority.folder("node", "a") / "identity.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials((authority.path / "ca.pem").read_bytes(), pem, pem)
    override = [("grpc.ssl_target_name_override", "aggregator.nonn.internal")]
    with grpc.secure_channel(address, credentials, override) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        with pytest.raises(grpc.RpcError, match="certificate of node 'a' does not let it join as 'b'") as caught:
            stub.Register(pb.RegisterRequest(node="b", instance="i", address="127.0.0.1:1"), timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "does not let it join as 'b'" in aggregator.log.read_text()
    # A node that is revoked while it serves is out, and stays out.
    authority.revoke("node", "b")
    until(lambda: members(client).keys() == {"a"})
    assert client.infer(SAMPLE).answered.sum() == 1
    assert nodes[0].end() == 0


def test_a_node_takes_another_bundle_from_the_aggregator_that_it_has(bundle, fleet, tmp_path):
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
