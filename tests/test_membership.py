"""The rules by which nodes join, keep and lose a student, with a clock of our own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import random
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import aio
from hypothesis import given, settings
from hypothesis import strategies as st
from nonn_device.artifacts import Artifact, Store
from nonn_device.join import Backoff, JoinOptions, Member
from nonn_device.link import AggregatorLink

from nonn.aggregator.inventory import Node
from nonn.aggregator.membership.leases import MAX_SUPERSEDED, JoinRequest, Membership
from nonn.bundle import Bundle
from nonn.errors import BundleError, DataError, MembershipError, UnreachableError
from nonn.rpc.v1 import fleet_pb2 as pb
from tests.fanout import student
from tests.memberships import Call, service
from tests.serving import TIMEOUT_S, fake_node, serving
from tests.toys import toy_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("membership") / "bundle", num_devices=4, num_parts=2)


def joining(node: Any, instance: str = "i", fingerprint: str = "f", **more: Any) -> Any:
    return JoinRequest(node=node, instance=instance, fingerprint=fingerprint, **more)


def test_a_new_node_gets_the_student_that_is_needed_most(bundle: Bundle) -> None:
    membership = Membership(bundle)
    students = [membership.register(joining(f"n{i}"), 0.0).student for i in range(8)]
    assert sorted(students[:4]) == sorted(students[4:]) == [0, 1, 2, 3]  # nobody twice before everybody once
    parts = [bundle.manifest.students[i].part for i in students]
    assert sorted(parts[:2]) == sorted(parts[2:4]) == [0, 1]  # of both parts alike, at every moment
    value = bundle.table.importance(np.array(bundle.p_fail))
    assert value[students[0]] == max(value)


def test_an_inventory_counts_when_students_are_given_out(bundle: Bundle) -> None:
    inventory = [Node(id=f"fixed-{i}", address=f"h:{i + 1}", student=i) for i in (0, 1, 2)]
    membership = Membership(bundle, inventory)
    assert membership.register(joining("a"), 0.0).student == 3
    for wrong, text in (
        (joining("fixed-0"), "the inventory has a node with that id; join with another --id"),
        (joining("b", address="h:1"), "h:1 is the address of a node in the inventory"),
    ):
        with pytest.raises(MembershipError, match=text):
            membership.register(wrong, 0.0)


def test_a_node_keeps_the_student_that_it_brings_but_not_one_of_another_bundle(bundle: Bundle) -> None:
    membership = Membership(bundle)
    for node in "abc":
        assert membership.register(joining(node, student=3, bundle=bundle.hash), 0.0).student == 3
    assert membership.register(joining("d", student=3, bundle="0" * 64), 0.0).student != 3
    with pytest.raises(MembershipError, match="wants student 7; the bundle has 0 to 3"):
        membership.register(joining("e", student=7), 0.0)


def test_a_node_that_brings_no_student_gets_the_one_that_is_reserved_for_it(bundle: Bundle) -> None:
    membership, usual = Membership(bundle), Membership(bundle).register(joining("a"), 0.0).student
    membership.reserve("a", (usual + 1) % 4)
    assert membership.register(joining("a"), 0.0).student == (usual + 1) % 4
    assert membership.register(joining("a", student=usual, bundle=bundle.hash), 0.0).student == usual


def test_a_student_that_does_not_fit_is_not_given(bundle: Bundle) -> None:
    sizes = [student.bytes for student in bundle.manifest.students]
    membership = Membership(bundle)
    assert membership.register(joining("a", max_model_bytes=max(sizes)), 0.0).student in range(4)
    with pytest.raises(MembershipError, match=f"can hold 10 bytes; the smallest student has {min(sizes)}"):
        membership.register(joining("b", max_model_bytes=10), 0.0)


def test_an_id_is_one_device(bundle: Bundle) -> None:
    membership = Membership(bundle, lease_s=10.0)
    first = membership.register(joining("a", address="h:1"), 0.0)
    with pytest.raises(MembershipError, match=r"belongs to a device with another key, at h:1; .* or wait 9 s"):
        membership.register(joining("a", "j", "g"), 1.0)
    assert membership.renew(first.token, 5.0)
    # With the same key it is the device after a restart, which may come with another address.
    second = membership.register(joining("a", "j", address="h:2"), 6.0)
    assert not membership.renew(first.token, 7.0)
    assert membership.renew(second.token, 7.0)
    with pytest.raises(MembershipError, match=r"two devices share this identity, and the other one, at h:2"):
        membership.register(joining("a", "i", address="h:1"), 8.0)
    assert membership.expire(17.0) == [second]
    # Its lease is over: the id is free for whoever comes.
    assert membership.register(joining("a", "i", "g"), 18.0).student == second.student


def test_a_node_that_starts_again_and_again_is_remembered_by_its_last_starts_only(bundle: Bundle) -> None:
    membership = Membership(bundle)
    for start in range(MAX_SUPERSEDED + 2):
        membership.register(joining("a", f"i{start}"), 0.0)
    with pytest.raises(MembershipError, match="two devices share this identity"):
        membership.register(joining("a", "i1"), 0.0)
    membership.register(joining("a", "i0"), 0.0)


def test_a_lease_lives_by_its_heartbeats(bundle: Bundle) -> None:
    membership = Membership(bundle, lease_s=3.0)
    lease = membership.register(joining("a"), 0.0)
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
def test_whatever_happens_an_id_has_one_live_lease_and_only_its_token_renews_it(bundle: Bundle, steps: Any) -> None:
    membership, now, given_out = Membership(bundle, lease_s=3.0), 0.0, []
    for what, node, instance, key, passed in steps:
        now += passed
        if what == "register":
            before = membership.leases.get(f"n{node}")
            live = before is not None and before.expires_at > now
            try:
                lease = membership.register(joining(f"n{node}", f"i{instance}", f"f{key}"), now)
            except MembershipError:
                assert live
                assert membership.leases[f"n{node}"] is before
                continue
            if live and before is not None and before.request.instance != f"i{instance}":
                assert before.request.fingerprint == f"f{key}"
            given_out.append(lease)
        elif what == "renew" and given_out:
            lease = given_out[node % len(given_out)]
            current = membership.leases.get(lease.request.node) is lease and lease.expires_at > now
            assert membership.renew(lease.token, now) is current
        elif what == "end" and given_out:
            lease = given_out[node % len(given_out)]
            assert (membership.end(lease.token) is lease) or membership.leases.get(lease.request.node) is not lease
        else:
            membership.expire(now)
            assert all(lease.expires_at > now for lease in membership.leases.values())
    assert all(membership.find(lease.token) is lease for lease in membership.leases.values())
    dead = [lease for lease in given_out if lease not in membership.leases.values()]
    assert all(membership.find(lease.token) is None for lease in dead)


def test_back_off_doubles_up_to_a_limit_with_jitter_and_starts_again_after_a_success() -> None:
    waited = []

    async def sleep(seconds: Any) -> None:
        waited.append(seconds)

    backoff = Backoff(sleep, random.Random(0))

    async def scenario() -> None:
        for _ in range(8):
            await backoff.wait()
        backoff.reset()
        await backoff.wait()

    asyncio.run(scenario())
    for seconds, most in zip(waited, (0.1, 0.2, 0.4, 0.8, 1.5, 1.5, 1.5, 1.5, 0.1), strict=True):
        assert most / 2 <= seconds <= most
    assert len(set(waited)) == len(waited)


# The service, in this process.


def test_a_node_that_hangs_while_it_joins_holds_up_nobody_else(bundle: Bundle) -> None:
    async def scenario() -> None:
        asked = asyncio.Event()

        async def hangs(raw: Any, context: Any) -> bytes:
            asked.set()
            await asyncio.Event().wait()
            return b""

        async with (
            fake_node(hangs) as first,
            serving(student(bundle, 0, node="b")) as second,
            service(bundle) as (aggregator, fleet, register),
            asyncio.timeout(TIMEOUT_S),
        ):
            joining = asyncio.create_task(register("a", address=first))
            await asked.wait()
            await register("b", address=second, student=0)
            assert [node.id for node in aggregator.nodes] == list(fleet.membership.leases) == ["b"]
            await fleet.release("b", "is drained")
            assert not aggregator.nodes
            assert not joining.done()
            joining.cancel()

    asyncio.run(scenario())


def test_a_node_that_dialled_in_and_cannot_be_added_is_logged_and_has_to_join_again(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with service(bundle) as (aggregator, fleet, register), asyncio.timeout(TIMEOUT_S):

            async def fails(node: Any) -> None:
                raise RuntimeError("out of luck")

            monkeypatch.setattr(aggregator, "add_node", fails)
            lease = (await register("a", dials_out=True)).lease

            async def replies() -> AsyncIterator[Any]:
                yield pb.WorkReply(lease=lease)
                await asyncio.Event().wait()

            assert [request async for request in fleet.Work(replies(), Call())] == []
            assert not (await fleet.Heartbeat(pb.HeartbeatRequest(lease=lease), Call())).known

    asyncio.run(scenario())
    assert "node a dialled in and could not be added" in caplog.text
    assert "out of luck" in caplog.text


def test_a_node_whose_lease_ends_during_the_download_registers_again(bundle: Bundle, tmp_path: Path) -> None:
    """As when an update is undone at that moment."""

    async def scenario() -> Any:
        async with service(bundle) as (_, fleet, _), serving_joins(fleet) as address:
            downloads = 0

            class Link(AggregatorLink):
                async def read(self, path: str, offset: int) -> AsyncGenerator[bytes, None]:
                    nonlocal downloads
                    downloads += 1
                    if downloads == 1:
                        await fleet.release("a", "gets another bundle")
                    async for data in super().read(path, offset):
                        yield data

            member = Member(JoinOptions(node="a"), [Link(address)], Store(tmp_path), lambda seconds: asyncio.sleep(0))
            try:
                return *await member.prepare(), downloads
            finally:
                await member.close()

    fetched, student, downloads = asyncio.run(scenario())
    assert (fetched.hash, downloads) == (bundle.hash, 3)
    assert Store(tmp_path).held() == (bundle.hash, student)


@contextlib.asynccontextmanager
async def serving_joins(fleet: Any) -> AsyncIterator[str]:
    """The service on a port of loopback."""
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    fleet.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


# The files of a student.


class Source:
    """What an aggregator would send: files of a bundle, cut or altered on request."""

    def __init__(self, bundle: Bundle, student: Any) -> None:
        paths = ["manifest.json", bundle.manifest.students[student].file]
        self.bundle, self.student = bundle, student
        self.asked: list[tuple[str, int]] = []
        self.cut_at: int | None = None
        self.content = {path: (bundle.path / path).read_bytes() for path in paths}
        self.artifacts = [Artifact(p, hashlib.sha256(c).hexdigest(), len(c)) for p, c in self.content.items()]

    async def read(self, path: str, offset: int) -> AsyncGenerator[bytes, None]:
        self.asked.append((path, offset))
        content = self.content[path]
        for start in range(offset, len(content), 100):
            if self.cut_at is not None and start >= self.cut_at:
                raise UnreachableError("cut")
            yield content[start : start + 100]

    def fetch(self, store: Any) -> Any:
        return asyncio.run(store.fetch(self.bundle.hash, self.student, self.artifacts, self.read))


def test_a_fetch_goes_on_where_it_was_cut_and_nothing_is_fetched_twice(bundle: Bundle, tmp_path: Path) -> None:
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


def test_a_file_that_does_not_match_its_hash_is_deleted_and_fetched_again(bundle: Bundle, tmp_path: Path) -> None:
    source, store = Source(bundle, 0), Store(tmp_path / "data")
    file = bundle.manifest.students[0].file
    good = source.content[file]
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good + b"more", good[:-5]):
        source.content[file] = bad
        with pytest.raises(BundleError, match=r"student-0\.onnx: the received file does not match its announced hash"):
            source.fetch(store)
    source.content[file] = good
    source.fetch(store)
    assert source.asked[-1] == (file, 0)


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "students/../../evil", "a\\b"])
def test_a_file_outside_the_bundle_is_refused(bundle: Bundle, tmp_path: Path, path: Any) -> None:
    source, store = Source(bundle, 0), Store(tmp_path / "data")
    source.artifacts = [Artifact(path, "0" * 64, 1)]
    with pytest.raises(BundleError, match="is outside the bundle"):
        source.fetch(store)


@pytest.mark.parametrize("name", ["", "..", "/etc/evil", "../../evil", "0" * 63, "A" * 64, "0" * 64 + "/..", "0" * 65])
def test_what_is_not_the_hash_of_a_bundle_is_no_folder(bundle: Bundle, tmp_path: Path, name: str) -> None:
    source, store = Source(bundle, 0), Store(tmp_path / "data")
    with pytest.raises(BundleError, match="is not the hash of a bundle"):
        asyncio.run(store.fetch(name, 0, source.artifacts, source.read))
    assert (source.asked, [file.name for file in (tmp_path / "data").iterdir()]) == ([], ["node.key"])


def test_the_hash_of_a_bundle_is_that_of_its_manifest(bundle: Bundle, tmp_path: Path) -> None:
    source, store = Source(bundle, 0), Store(tmp_path / "data")
    for artifacts in (source.artifacts, source.artifacts[1:]):
        with pytest.raises(BundleError, match=r"the hash of bundle 000000000000… is not that of one manifest\.json"):
            asyncio.run(store.fetch("0" * 64, 0, artifacts, source.read))
    assert source.asked == []


def test_only_the_manifest_and_the_student_are_fetched(bundle: Bundle, tmp_path: Path) -> None:
    source, store = Source(bundle, 0), Store(tmp_path / "data")
    source.artifacts.append(Source(bundle, 1).artifacts[1])
    with pytest.raises(BundleError, match=r"'students/student-1\.onnx' is not a file of student 0"):
        source.fetch(store)
    assert not (store.folder(bundle.hash) / "students/student-1.onnx").exists()


def test_a_full_disk_is_an_error_with_a_remedy(bundle: Bundle, tmp_path: Path) -> None:
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


def test_a_device_keeps_its_key_and_only_the_bundle_that_it_runs(bundle: Bundle, tmp_path: Path) -> None:
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
def test_the_advertised_address_leads_back(bound: Any, wish: Any, expected: Any) -> None:
    assert AggregatorLink("127.0.0.1:50051").advertised(bound, wish) == expected
