"""Nodes that dial out: the channel that represents them, then real processes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from nonn.aggregator.fanout import Fanout, connect_insecure
from nonn.aggregator.inventory import Node
from nonn.aggregator.membership.dial_out import WorkChannel, WorkChannels, dialled
from nonn.bundle import Bundle
from nonn.rpc.v1 import fleet_pb2 as pb
from tests.fleets import SAMPLE, Fleet, check_offline, members
from tests.serving import TIMEOUT_S, run, until
from tests.toys import toy_bundle

METHOD = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("dial-out") / "bundle", num_devices=3)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        yield Fleet(tmp_path, stack)


class FarEnd:
    """The node's side of a stream, in this process."""

    def __init__(self, channel: Any) -> None:
        self._replies: asyncio.Queue[Any] = asyncio.Queue()
        self._requests = channel.stream(self._sent())

    async def _sent(self) -> AsyncIterator[Any]:
        while (reply := await self._replies.get()) is not None:
            yield reply

    async def take(self) -> Any:
        """The next request."""
        return await asyncio.wait_for(anext(self._requests, None), TIMEOUT_S)

    def answer(self, request: Any, payload: bytes = b"", **more: Any) -> None:
        self._replies.put_nowait(pb.WorkReply(call=request.call, payload=payload, **more))

    def hang_up(self) -> None:
        self._replies.put_nowait(None)


async def failure(call: Any) -> Any:
    with pytest.raises(aio.AioRpcError) as caught:
        await asyncio.wait_for(call, TIMEOUT_S)
    return caught.value


def test_calls_go_out_in_order_and_each_gets_its_own_reply() -> None:
    async def scenario() -> None:
        channel = WorkChannel()
        end, call = FarEnd(channel), channel.unary_unary(METHOD)
        calls = [call(b"a", timeout=9, metadata=[("k", "v")], wait_for_ready=True), call(b"b", wait_for_ready=True)]
        first, second = await end.take(), await end.take()
        assert (first.payload, first.method, dict(first.metadata)) == (b"a", METHOD, {"k": "v"})
        assert 0 < first.timeout_ms <= 9000
        end.answer(second, b"for b")
        end.answer(first, b"for a")
        end.answer(first, b"once more")
        assert await asyncio.gather(*calls) == [b"for a", b"for b"]

    asyncio.run(scenario())


def test_a_call_without_a_stream_fails_at_once_and_one_that_may_wait_waits() -> None:
    async def scenario() -> None:
        channel = WorkChannel()
        call = channel.unary_unary(METHOD)
        refused = await failure(call(b"a", timeout=TIMEOUT_S))
        assert (refused.code(), refused.details()) == (grpc.StatusCode.UNAVAILABLE, "the node has not dialled in")
        waiting = call(b"b", timeout=TIMEOUT_S, wait_for_ready=True)
        end = FarEnd(channel)
        end.answer(await end.take(), b"c")
        assert await waiting == b"c"

    asyncio.run(scenario())


def test_a_call_that_timed_out_or_was_cancelled_leaves_nothing_and_its_late_reply_goes_nowhere() -> None:
    async def scenario() -> None:
        channel = WorkChannel()
        call = channel.unary_unary(METHOD)
        lost = [call(bytes(1000), timeout=0.01, wait_for_ready=True) for _ in range(50)]
        assert {(await failure(one)).code() for one in lost} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert not channel._pending
        assert not channel._unsent
        end = FarEnd(channel)
        taken = call(b"a", timeout=TIMEOUT_S, wait_for_ready=True)
        request = await end.take()
        taken.cancel()
        other = call(b"b", timeout=TIMEOUT_S)
        end.answer(request, b"late")
        end.answer(await end.take(), b"in time")
        assert await other == b"in time"
        assert taken.cancelled()
        assert not channel._pending

    asyncio.run(scenario())


def test_errors_of_the_node_and_the_end_of_its_stream_become_status() -> None:
    async def scenario() -> None:
        channel = WorkChannel()
        end = FarEnd(channel)
        calls = [channel.unary_unary(METHOD)(b"a", wait_for_ready=True) for _ in range(2)]
        requests = [await end.take() for _ in calls]
        end.answer(requests[0], status=grpc.StatusCode.INVALID_ARGUMENT.value[0], details="too wide")
        refused = await failure(calls[0])
        assert (refused.code(), refused.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "too wide")
        end.hang_up()
        broken = await failure(calls[1])
        assert (broken.code(), broken.details()) == (grpc.StatusCode.UNAVAILABLE, "the node's stream has ended")
        assert await end.take() is None

    asyncio.run(scenario())


def test_a_newer_stream_takes_over_from_an_older_one() -> None:
    async def scenario() -> None:
        channel = WorkChannel()
        old, call = FarEnd(channel), channel.unary_unary(METHOD)
        waiting = asyncio.ensure_future(old.take())
        await asyncio.sleep(0)
        new = FarEnd(channel)
        answered = asyncio.ensure_future(new.take())
        assert await waiting is None
        reply = call(b"a")
        new.answer(await answered, b"b")
        assert await reply == b"b"

    asyncio.run(scenario())


def test_a_channel_that_is_closed_lets_what_is_under_way_come_back() -> None:
    async def scenario() -> None:
        channels = WorkChannels()
        connect = channels.or_else(lambda node: "called")
        assert connect(Node(id="a", address="h:1", student=0)) == "called"
        channel = connect(dialled("b", 0))
        assert channel is channels["b"]
        end, reply = FarEnd(channel), channel.unary_unary(METHOD)(b"a", wait_for_ready=True)
        request = await end.take()
        closing = asyncio.ensure_future(channel.close(TIMEOUT_S))
        await asyncio.sleep(0)
        again = channels["b"]  # the node came back while the last of it is still under way
        assert again is not channel
        end.answer(request, b"b")
        await closing
        assert await reply == b"b"
        assert channels["b"] is again

    asyncio.run(scenario())


def test_new_credentials_leave_the_stream_of_a_node_that_dials_out_alone(bundle: Bundle) -> None:
    async def scenario() -> None:
        channels, node = WorkChannels(), dialled("a", 0)
        async with Fanout([node], bundle, connect=channels.or_else(connect_insecure)) as fanout:
            end = FarEnd(channels["a"])
            taking = asyncio.ensure_future(end.take())
            await fanout.reconnect(TIMEOUT_S)
            probe = asyncio.ensure_future(fanout.probe("a", SAMPLE, TIMEOUT_S))
            assert (await taking).method == METHOD
            end.answer(await taking, b"no reply at all")
            reply = await probe
            assert reply is not None
            assert reply.error.startswith("bad reply")

    asyncio.run(scenario())


@pytest.mark.slow
def test_nodes_that_dial_out_serve_die_hang_and_leave_like_any_other(bundle: Bundle, fleet: Any) -> None:
    aggregator, address = fleet.aggregator(bundle)
    client = fleet.client(address)
    nodes = {name: fleet.node(name, address, options=("--dial-out",)) for name in ("a", "b")}
    nodes["c"] = fleet.node("c", address)
    until(lambda: len(members(client)) == 3)
    assert {n["address"] for n in client.metadata().nodes if n["id"] != "c"} == {"dial-out:a", "dial-out:b"}
    assert check_offline(bundle, client).mask == 0b111
    answers, stop = [], threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(client.infer(SAMPLE))

    askers = [threading.Thread(target=keep_asking) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        until(lambda: len(answers) > 50)
        assert {answer.mask for answer in answers} == {0b111}
        student = members(client)["a"]
        assert nodes["a"].end() == 0
        assert "a" not in members(client)
        nodes["b"].child.send_signal(signal.SIGSTOP)
        until(lambda: members(client).keys() == {"c"})
        nodes["b"].child.send_signal(signal.SIGCONT)
        until(lambda: members(client).keys() == {"b", "c"})
        fleet.node("a", address, options=("--dial-out",))
        until(lambda: members(client).get("a") == student)
        until(lambda: answers[-1].mask == 0b111)
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert check_offline(bundle, client).mask == 0b111
    aggregator.end(signal.SIGKILL)
    fleet.aggregator(bundle, port=int(address.rpartition(":")[2]))
    until(lambda: len(members(client)) == 3)
    assert check_offline(bundle, client).mask == 0b111


def test_a_node_dials_out_with_tls_and_its_lease_is_required(bundle: Bundle, fleet: Any) -> None:
    authority, _, address = fleet.with_tls(bundle)
    client = fleet.client(address, tls=authority.folder("client", "alice"))
    fleet.node("a", address, options=("--tls", authority.folder("node", "a"), "--dial-out"))
    until(lambda: members(client).keys() == {"a"})
    assert check_offline(bundle, client).answered.sum() == 1
    pem = (authority.folder("node", "b") / "identity.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials((authority.path / "ca.pem").read_bytes(), pem, pem)
    override = [("grpc.ssl_target_name_override", "aggregator.nonn.internal")]
    with grpc.secure_channel(address, credentials, override) as channel:
        work = channel.stream_stream(
            "/nonn.rpc.v1.Fleet/Work", pb.WorkReply.SerializeToString, pb.WorkRequest.FromString
        )
        with pytest.raises(grpc.RpcError, match="unknown lease") as caught:
            next(work(iter([pb.WorkReply(lease="guessed")]), timeout=TIMEOUT_S))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert client.infer(SAMPLE).answered.sum() == 1


def test_an_address_makes_no_sense_for_a_node_that_dials_out(tmp_path: Path) -> None:
    options = ("--id", "a", "--data", tmp_path / "d", "--dial-out", "--advertise", "h:1")
    ended = run("nonn_device", "join", "127.0.0.1:1", *options)
    assert (ended.returncode, "omit --host and --advertise" in ended.stderr) == (2, True)
