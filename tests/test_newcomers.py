"""What a node must be before it joins: its fields, its address, and who answers there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nonn.aggregator.membership.leases import MAX_OF_CALLER, JoinRequest, Membership
from nonn.aggregator.membership.newcomers import join_request
from nonn.aggregator.metadata import METADATA_BYTES
from nonn.bundle import Bundle
from nonn.errors import ConfigError, ForbiddenError, MembershipError, UnreachableError
from nonn.rpc.address import canonical
from nonn.rpc.guard import LOG_MOST
from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.rpc.v1.inference_pb2 import ModelMetadataResponse
from nonn.security.tls import Identity
from tests.fanout import student
from tests.fleets import Fleet, check_offline, members
from tests.memberships import Call, service
from tests.serving import TIMEOUT_S, fake_node, serving, until, until_async

NUM_DEVICES = 4


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        yield Fleet(tmp_path, stack)


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("127.1:1", "127.0.0.1:1"),
        ("0x7f000001:1", "127.0.0.1:1"),
        ("2130706433:1", "127.0.0.1:1"),
        ("0177.0.0.1:1", "127.0.0.1:1"),
        ("[::ffff:127.0.0.1]:1", "127.0.0.1:1"),
        ("[0:0::1]:1", "[::1]:1"),
        ("Kitchen.local.:1", "kitchen.local:1"),
    ],
)
def test_each_address_has_one_spelling(text: str, usual: str) -> None:
    assert canonical(text) == canonical(usual) == usual


def spelled(address: str) -> Iterator[str]:
    """Other texts for an address on 127.0.0.1."""
    port = address.rpartition(":")[2]
    yield from (address, f"127.1:{port}", f"0x7f000001:{port}", f"[::ffff:127.0.0.1]:{port}", f"localhost:{port}")


def test_nobody_is_evicted_by_requests_with_the_addresses_of_others(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with (
            serving(student(bundle, 0, node="a")) as first,
            serving(student(bundle, 1, node="b")) as second,
            service(bundle) as (aggregator, fleet, register),
            asyncio.timeout(TIMEOUT_S),
        ):
            leases = [await register("a", address=first, student=0), await register("b", address=second, student=1)]
            for i, address in enumerate([*spelled(first), *spelled(second)]):
                with pytest.raises(AssertionError, match=r"address of node '[ab]'|nonn_node '[ab]', not 'evil-\d'"):
                    await register(f"evil-{i}", address=address, student=i % 2)
            assert [node.id for node in aggregator.nodes] == ["a", "b"]
            for lease in leases:
                assert (await fleet.Heartbeat(pb.HeartbeatRequest(lease=lease.lease), Call())).known
            assert list(fleet.membership.leases) == ["a", "b"]

    asyncio.run(scenario())


def test_a_refused_node_that_tries_again_and_again_fills_no_log(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving(student(bundle, 0, node="a")) as address, service(bundle) as (_, _, register):
            await register("a", address=address, student=0)
            for _ in range(20):
                with pytest.raises(AssertionError, match="is the address of node 'a'"):
                    await register("b", address=address, student=0)

    asyncio.run(scenario())
    assert caplog.text.count("is the address of node 'a'") == 1


def test_requests_that_are_refused_for_different_reasons_fill_no_log(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with service(bundle) as (_, _, register):
            for i in range(10 * LOG_MOST):
                with pytest.raises(AssertionError, match="version must be at most 64"):
                    await register(f"evil-{i}", capabilities=pb.Capabilities(version=LONG))

    asyncio.run(scenario())
    assert caplog.text.count("refused ipv4:127.0.0.1:1") == LOG_MOST + 1
    assert caplog.text.count("further ones are not logged") == 1


def test_an_address_is_free_when_the_lease_of_its_node_has_ended(bundle: Bundle) -> None:
    membership = Membership(bundle, lease_s=3.0)
    request = JoinRequest(node="a", instance="i", fingerprint="f", address="h:1")
    membership.register(request, 0.0)
    other = JoinRequest(node="b", instance="i", fingerprint="g", address="h:1")
    for ask in (membership.choose, membership.register):
        with pytest.raises(UnreachableError, match=r"h:1 is the address of node 'a', .* free when its lease ends"):
            ask(other, 1.0)
    assert list(membership.leases) == ["a"]
    membership.expire(3.0)
    assert membership.register(other, 3.0).request.node == "b"


def claims(bundle: Bundle, **wrong: str) -> Any:
    """A server that states to be student 0 of node a."""
    said = {"nonn_node": "a", "nonn_device": "0", "nonn_bundle": bundle.hash} | wrong

    async def behaviour(raw: Any, context: Any) -> Any:
        return ModelMetadataResponse(properties=said).SerializeToString()

    return behaviour


def test_a_node_that_does_not_answer_as_itself_does_not_join(bundle: Bundle) -> None:
    async def refuses(raw: Any, context: Any) -> Any:
        return b"no reply"

    async def floods(raw: Any, context: Any) -> Any:
        return b"\x22\x00" * METADATA_BYTES  # empty tensors

    async def scenario() -> None:
        async with (
            serving(student(bundle, 0)) as serves_only,
            serving(student(bundle, 0, node="b")) as other,
            serving(student(bundle, 0, node="a")) as right,
            fake_node(refuses) as noise,
            fake_node(floods) as huge,
            fake_node(None) as nothing,
            fake_node(claims(bundle, nonn_bundle="f" * 64)) as other_bundle,
            fake_node(claims(bundle, nonn_device="1")) as other_student,
            service(bundle) as (aggregator, fleet, register),
            asyncio.timeout(TIMEOUT_S),
        ):
            for address, which, text in (
                ("127.0.0.1:1", 0, "does not answer as student 0"),
                (noise, 0, "is not the metadata of a student"),
                (huge, 0, f"is not the metadata of a student .metadata of more than {METADATA_BYTES} bytes"),
                (nothing, 0, "is not the metadata of a student .status OK without metadata"),
                (serves_only, 0, "reports nonn_node '', not 'a'"),
                (other, 0, "reports nonn_node 'b', not 'a'"),
                (right, 1, "does not answer as student 1"),
                (other_bundle, 0, "reports nonn_bundle 'ffff"),
                (other_student, 0, "reports nonn_device '1', not '0'"),
            ):
                with pytest.raises(AssertionError, match=text):
                    await register("a", address=address, student=which)
                assert not aggregator.nodes
                assert not fleet.membership.leases
            await register("a", address=right, student=0)
            # A node that moves keeps its place until it answers at the new address.
            with pytest.raises(AssertionError, match="does not answer"):
                await register("a", address="127.0.0.1:1", student=0)
            assert [node.address for node in aggregator.nodes] == [right]
            async with serving(student(bundle, 0, node="a")) as moved:
                await register("a", address=moved, student=0)
                assert [node.address for node in aggregator.nodes] == [moved]

    asyncio.run(scenario())


def test_a_node_of_another_bundle_is_told_ours_and_not_asked_with_it(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with service(bundle) as (aggregator, fleet, register):
            answer = await register("a", address="127.0.0.1:1", student=0, bundle="0" * 64)
            assert (answer.bundle, list(fleet.membership.leases), aggregator.nodes) == (bundle.hash, ["a"], ())

    asyncio.run(scenario())


def test_a_node_that_dials_out_has_no_address(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with service(bundle) as (aggregator, fleet, register):
            await register("a", address="127.0.0.1:1", dials_out=True)
            assert (fleet.membership.leases["a"].request.address, aggregator.nodes) == ("", ())

    asyncio.run(scenario())


LONG = "x" * 10_000


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"instance": LONG}, "instance must be at most 64 printable"),
        ({"fingerprint": LONG}, "fingerprint must be at most 64 printable"),
        ({"address": f"{LONG}:1"}, "address must be at most 262 printable"),
        ({"bundle": LONG}, "bundle is not the hash of a bundle"),
        ({"bundle": "../" * 21 + "x"}, "bundle is not the hash of a bundle"),
        ({"capabilities": pb.Capabilities(version=LONG)}, "version must be at most 64 printable"),
        ({"capabilities": pb.Capabilities(runtime=LONG)}, "runtime must be at most 128 printable"),
        ({"capabilities": pb.Capabilities(machine="\x1b[2J")}, "machine must be at most 64 printable"),
        ({"address": "unix:/run/x:1"}, "is not host:port"),
        ({"address": "unix:5005"}, "is not host:port"),
        ({"address": "dns:///h:1"}, "is not host:port"),
        ({"address": "①27.0.0.1:1"}, "printable ASCII"),
        ({"address": "0.0.0.0:1"}, "is every address of a machine"),
        ({"address": "[::]:1"}, "is every address of a machine"),
        ({"address": "0:1"}, "is every address of a machine"),
    ],
)
def test_fields_are_short_and_printable(bundle: Bundle, change: Any, text: str) -> None:
    async def scenario() -> None:
        async with service(bundle) as (aggregator, fleet, register):
            with pytest.raises(AssertionError, match=text):
                await register("a", **change)
            assert (aggregator.nodes, dict(fleet.membership.leases)) == ((), {})

    asyncio.run(scenario())


def test_one_caller_does_not_take_every_lease(bundle: Bundle) -> None:
    membership = Membership(bundle)

    def request(i: Any, caller: str) -> JoinRequest:
        return JoinRequest(node=f"n{i}", instance="i", fingerprint="f", caller=caller)

    for i in range(MAX_OF_CALLER):
        membership.register(request(i, "10.0.0.1"), 0.0)
    with pytest.raises(MembershipError, match=f"10.0.0.1 has {MAX_OF_CALLER} nodes in the cluster, the limit"):
        membership.register(request("-more", "10.0.0.1"), 0.0)
    membership.register(request(0, "10.0.0.1"), 1.0)  # it has a lease already
    membership.register(request("-other", "10.0.0.2"), 1.0)


def test_a_cluster_has_a_limit_of_nodes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nonn.aggregator.membership.leases.MAX_NODES", 2)
    membership = Membership(bundle, lease_s=3.0)
    a, b, c = (JoinRequest(node=name, instance="i", fingerprint="f") for name in "abc")
    for request in (a, b, a):
        membership.register(request, 0.0)
    with pytest.raises(MembershipError, match="the cluster is full, 2 nodes have joined"):
        membership.register(c, 1.0)
    membership.expire(3.0)
    membership.register(c, 3.0)


def test_one_caller_has_few_nodes_called_at_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nonn.aggregator.membership.servicer.MAX_OF_CALLER", 2)
    monkeypatch.setattr("nonn.aggregator.membership.newcomers.ANSWER_S", TIMEOUT_S)

    async def scenario() -> None:
        gate = asyncio.Event()

        async def waits(raw: Any, context: Any) -> Any:
            await gate.wait()
            return b"no reply"

        async with fake_node(waits) as address, service(bundle) as (_, fleet, register), asyncio.timeout(TIMEOUT_S):
            called = [asyncio.ensure_future(register(f"n{i}", address=address)) for i in range(2)]
            await until_async(lambda: fleet._calling.total() == 2)
            with pytest.raises(AssertionError, match=r"2 other nodes of 127\.0\.0\.1 are joining"):
                await register("n2", address=address)
            gate.set()
            await asyncio.gather(*called, return_exceptions=True)
            assert not fleet._calling

    asyncio.run(scenario())


def test_the_addresses_of_one_ipv6_network_are_one_caller(bundle: Bundle) -> None:
    class From(Call):
        def __init__(self, peer: str) -> None:
            self._peer = peer

        def peer(self) -> str:
            return self._peer

    async def scenario() -> None:
        async with service(bundle) as (_, fleet, _):
            for i, peer in enumerate(("ipv6:%5B2001:db8::1%5D:7", "ipv6:%5B2001:db8::2%5D:8", "ipv4:10.0.0.1:9")):
                await fleet.Register(pb.RegisterRequest(node=f"n{i}", instance="i", fingerprint="f"), From(peer))
            callers = [lease.request.caller for lease in fleet.membership.leases.values()]
            assert callers == ["2001:db8::/64", "2001:db8::/64", "10.0.0.1"]

    asyncio.run(scenario())


def test_with_tls_the_owner_of_the_certificate_is_the_caller() -> None:
    guard: Any = SimpleNamespace(
        tls=True, caller=lambda context: Identity("node", "a"), fingerprint=lambda context: "f"
    )
    found = join_request(pb.RegisterRequest(node="a", instance="i"), Call(), guard)
    assert (found.caller, found.fingerprint) == (str(Identity("node", "a")), "f")
    with pytest.raises(ForbiddenError, match="does not let it join as 'b'"):
        join_request(pb.RegisterRequest(node="b", instance="i"), Call(), guard)


def test_an_address_that_is_advertised_by_accident_takes_nobodys_place(bundle: Bundle, fleet: Any) -> None:
    _, address = fleet.aggregator(bundle, "--lease", "1")
    client = fleet.client(address)
    first = fleet.node("a", address)
    taken = first.ready["address"]
    until(lambda: members(client).keys() == {"a"})
    second = fleet.node("b", address, options=("--advertise", taken))
    until(lambda: f"{taken} is the address of node 'a', which has a lease" in second.log.read_text())
    assert members(client).keys() == {"a"}
    check_offline(bundle, client)
    assert second.child.poll() is None  # it goes on trying: the address may become free
    assert first.end() == 0


def test_with_tls_the_certificate_at_the_address_decides(bundle: Bundle, fleet: Any) -> None:
    authority, _, address = fleet.with_tls(bundle)
    client = fleet.client(address, tls=authority.folder("client", "alice"))
    first = fleet.node("a", address, options=("--tls", authority.folder("node", "a")))
    port = first.ready["address"].rpartition(":")[2]
    until(lambda: members(client).keys() == {"a"})
    tls = ("--tls", authority.folder("node", "b"))
    second = fleet.node("b", address, options=(*tls, "--advertise", f"localhost:{port}", "--student", "0"))
    text = "it shows the certificate of nonn://node/a, not of b.node.nonn.internal"
    until(lambda: text in second.log.read_text() or "reports" in second.log.read_text())
    assert text in second.log.read_text()
    assert members(client).keys() == {"a"}


def test_two_spellings_of_an_address_are_one_in_an_inventory(bundle: Bundle, tmp_path: Path) -> None:
    from nonn.aggregator.inventory import load_inventory

    path = tmp_path / "nodes.toml"
    path.write_text('[[node]]\nid = "a"\naddress = "127.0.0.1:7"\nstudent = 0\n'
                    '[[node]]\nid = "b"\naddress = "127.1:7"\nstudent = 1\n')  # fmt: skip
    with pytest.raises(ConfigError, match=r"address '127\.1:7' is used by node\[0\]"):
        load_inventory(path, 2)
