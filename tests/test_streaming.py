"""Requests to nodes over streams."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio

from nonn.aggregator.fanout import NODE_CHANNEL_OPTIONS, connect_insecure
from nonn.aggregator.inventory import Node
from nonn.aggregator.membership.credentials import connect_tls
from nonn.aggregator.streaming import StreamingChannel
from nonn.rpc.endpoint import Endpoint, InferenceResult
from nonn.rpc.inference import InferenceServicer
from nonn.rpc.streaming import MAX_OPEN, StreamingServicer
from nonn.rpc.v1 import inference_pb2, streaming_pb2
from nonn.rpc.wire import (
    INFER_METHOD,
    INFER_STREAM_METHOD,
    MAX_STREAM_BYTES,
    MAX_STREAMS,
    METADATA_METHOD,
    STREAM_VERSION,
    new_request,
)
from nonn.security.authority import Authority
from nonn.security.tls import Identity, TlsFolder
from tests.observing import logged
from tests.serving import TIMEOUT_S, running_node, until_async
from tests.toys import toy_bundle

STATUS = grpc.StatusCode
HELLO = streaming_pb2.StreamReply(version=STREAM_VERSION).SerializeToString()


class Echo:
    """A model that answers its input; it waits while ``gate`` is closed."""

    name, version, max_request_bytes, ready = "student-0", "1", 1 << 20, True

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = self.cancelled = 0
        self.remaining_s: float | None = None

    def metadata(self) -> Any:
        return inference_pb2.ModelMetadataResponse(name=self.name)

    async def infer(self, request: Any, remaining_s: float | None) -> InferenceResult:
        self.begun += 1
        self.remaining_s = remaining_s
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return InferenceResult({"features": request.tensors()["input"]})


class Counting(aio.ServerInterceptor):  # type: ignore[misc]
    """Counts calls and streams by method."""

    def __init__(self) -> None:
        self.counts = Counter[str]()

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.counts[details.method] += 1
        return await continuation(details)


@contextlib.asynccontextmanager
async def node(model: Any, *, streams: bool = True, port: int = 0) -> AsyncIterator[tuple[str, Counter[str], Endpoint]]:
    """A node in this process: its address, the calls that it got, and its endpoint."""
    endpoint, counting = Endpoint(model), Counting()
    server = aio.server(interceptors=[counting], options=[("grpc.so_reuseport", 0)])
    InferenceServicer(endpoint).add_to(server)
    if streams:
        StreamingServicer(endpoint).add_to(server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}", counting.counts, endpoint
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def channel_to(address: str) -> AsyncIterator[tuple[StreamingChannel, Callable[..., Any]]]:
    """A channel that asks by calls until its stream is open, and its callable for inference."""
    channel = StreamingChannel(aio.insecure_channel(address, options=NODE_CHANNEL_OPTIONS))
    try:
        yield channel, channel.unary_unary(INFER_METHOD)
    finally:
        await channel.close()


async def open_stream(channel: StreamingChannel, infer: Callable[..., Any]) -> bytes:
    """Asks once, by a call, and waits until the stream is open; returns the reply, empty if it is an error."""
    reply = b""
    with contextlib.suppress(aio.AioRpcError):
        reply = await infer(message(1))
    await until_async(lambda: channel.is_streaming)
    return reply


def message(size: int, id: str = "7") -> bytes:
    """A request with an input of so many bytes."""
    request = new_request(Echo.name, {"input": np.zeros(size, np.uint8)}, {}, id)
    return bytes(request.SerializeToString())


async def failure_of(call: Any) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


def run(scenario: Callable[[], Any]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await scenario()

    asyncio.run(limited())


def test_small_requests_share_one_stream_and_all_others_are_calls() -> None:
    async def scenario() -> None:
        async with node(Echo()) as (address, counts, _), channel_to(address) as (channel, infer):
            by_call = await open_stream(channel, infer)
            assert await asyncio.gather(*(infer(message(1)) for _ in range(20))) == [by_call] * 20
            assert counts == {INFER_METHOD: 1, INFER_STREAM_METHOD: 1}
            await infer(message(MAX_STREAM_BYTES))
            await infer(message(1), wait_for_ready=True)
            await infer(message(1), metadata=(("traceparent", "00-1"),))
            assert counts[INFER_METHOD] == 4
            await channel.unary_unary(METADATA_METHOD)(
                inference_pb2.ModelMetadataRequest(name=Echo.name).SerializeToString()
            )
            assert counts[METADATA_METHOD] == 1

    run(scenario)


def test_a_node_without_the_service_is_asked_for_streams_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nonn.aggregator.streaming.REOPEN_S", 0.01)

    async def scenario() -> None:
        start = time.monotonic()
        async with node(Echo(), streams=False) as (address, counts, _), channel_to(address) as (channel, infer):
            while counts[INFER_STREAM_METHOD] < 4:
                await infer(message(1))
                assert not channel.is_streaming
        assert time.monotonic() - start > 0.01 + 0.02 + 0.04

    run(scenario)


def test_replies_come_in_any_order_and_an_error_is_that_of_a_call() -> None:
    async def scenario() -> None:
        model = Echo()
        async with node(model) as (address, counts, _), channel_to(address) as (channel, infer):
            await open_stream(channel, infer)
            model.gate.clear()
            slow = infer(message(1, "slow"))
            await until_async(lambda: model.begun == 2)
            error = await failure_of(infer(bytes(new_request("other", {}, {}).SerializeToString())))
            assert (error.code(), error.details()) == (
                STATUS.NOT_FOUND,
                "no model 'other' here; this server has 'student-0' version '1'",
            )
            assert not slow.done()
            long = new_request("m" * (MAX_STREAM_BYTES - 100), {}, {}).SerializeToString()
            error = await failure_of(infer(bytes(long)))
            assert error.code() is STATUS.NOT_FOUND
            assert len(str(error.details())) == 4000
            model.gate.set()
            assert inference_pb2.ModelInferResponse.FromString(await slow).id == "slow"
            assert counts[INFER_METHOD] == 1

    run(scenario)


def test_a_request_that_is_given_up_is_dropped_by_the_node_and_owes_no_reply() -> None:
    async def scenario() -> None:
        model = Echo()
        async with node(model) as (address, counts, _), channel_to(address) as (channel, infer):
            await open_stream(channel, infer)
            model.gate.clear()
            for number in range(1, 2 * MAX_STREAMS):  # more than may be without a reply
                call = infer(message(1))
                await until_async(lambda number=number: model.begun == number + 1)  # type: ignore[misc]
                call.cancel()
                await until_async(lambda number=number: model.cancelled == number)  # type: ignore[misc]
            model.gate.set()
            await infer(message(1))
            assert counts[INFER_METHOD] == 1

    run(scenario)


def test_a_deadline_goes_with_the_request_and_ends_it_on_both_sides() -> None:
    async def scenario() -> None:
        model = Echo()
        async with node(model) as (address, _, _), channel_to(address) as (channel, infer):
            await open_stream(channel, infer)
            await infer(message(1), timeout=TIMEOUT_S)
            assert model.remaining_s == pytest.approx(TIMEOUT_S)
            await infer(message(1), timeout=1e9)
            assert model.remaining_s == pytest.approx((2**32 - 1) / 1e3)
            model.gate.clear()
            assert (await failure_of(infer(message(1), timeout=0.05))).code() is STATUS.DEADLINE_EXCEEDED
        async with node(model) as (address, _, _), aio.insecure_channel(address) as plain:
            stream = plain.stream_stream(INFER_STREAM_METHOD)()
            await stream.read()
            late = streaming_pb2.StreamRequest(id=1, request=message(1), timeout_ms=50)
            await stream.write(late.SerializeToString())
            reply = streaming_pb2.StreamReply.FromString(await stream.read())
            assert reply.status == STATUS.DEADLINE_EXCEEDED.value[0]

    run(scenario)


def test_what_a_stream_does_not_take_is_a_call() -> None:
    async def scenario() -> None:
        model = Echo()
        async with node(model) as (address, counts, _), channel_to(address) as (channel, infer):
            await open_stream(channel, infer)
            model.gate.clear()
            asked = [infer(message(1)) for _ in range(MAX_STREAMS + 20)]
            await until_async(lambda: model.begun == 1 + len(asked))
            assert counts[INFER_METHOD] == 1 + 21  # one of the node's places is that of the message that it waits for
            model.gate.set()
            await asyncio.gather(*asked)

    run(scenario)


def test_requests_under_way_fail_with_the_node_and_a_stream_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nonn.aggregator.streaming.REOPEN_S", 0.01)

    async def scenario() -> None:
        model = Echo()
        async with contextlib.AsyncExitStack() as stack:
            async with node(model) as (address, _, _):
                channel, infer = await stack.enter_async_context(channel_to(address))
                await open_stream(channel, infer)
                model.gate.clear()
                call = infer(message(1))
                await until_async(lambda: model.begun == 2)
            assert (await failure_of(call)).code() is STATUS.UNAVAILABLE
            await until_async(lambda: not channel.is_streaming)
            assert (await failure_of(infer(message(1)))).code() is STATUS.UNAVAILABLE
            model.gate.set()
            async with node(model, port=int(address.rpartition(":")[2])):
                while not channel.is_streaming:
                    await infer(message(1), wait_for_ready=True)
                    await asyncio.sleep(0.01)
                await infer(message(1))

    run(scenario)


def test_a_closed_channel_gives_up_what_is_under_way_after_its_grace() -> None:
    async def scenario() -> None:
        model = Echo()
        async with node(model) as (address, _, _), channel_to(address) as (channel, infer):
            await open_stream(channel, infer)
            model.gate.clear()
            first = infer(message(1))
            await until_async(lambda: model.begun == 2)
            closing = asyncio.ensure_future(channel.close(TIMEOUT_S))
            await asyncio.sleep(0)
            model.gate.set()
            await closing
            assert first.result()
            model.gate.clear()
        async with node(model) as (address, _, _), channel_to(address) as (channel, infer):
            model.gate.set()
            await open_stream(channel, infer)
            model.gate.clear()
            second = infer(message(1))
            await channel.close()
            assert second.cancelled()

    run(scenario)


def test_at_shutdown_what_is_under_way_is_answered_and_the_stream_ends() -> None:
    async def scenario() -> None:
        model = Echo()
        async with node(model) as (address, _, endpoint), channel_to(address) as (channel, infer):
            await open_stream(channel, infer)
            model.gate.clear()
            asked = [infer(message(1)) for _ in range(5)]
            await until_async(lambda: model.begun == 6)
            draining = asyncio.ensure_future(endpoint.drain())
            await asyncio.sleep(0)
            assert (await failure_of(infer(message(1)))).code() is STATUS.UNAVAILABLE  # it accepts no more
            assert channel.is_streaming
            model.gate.set()
            await asyncio.gather(draining, *asked)
            await until_async(lambda: not channel.is_streaming)

    run(scenario)


# Nodes and callers that break the protocol

Replies = Callable[[bytes], Sequence[bytes]]


class Bad(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A node that answers calls, and streams as it likes."""

    def __init__(self, first: bytes, replies: Replies) -> None:
        self._first, self._replies, self.streams = first, replies, 0

    def service(self, details: Any) -> Any:
        if details.method == INFER_METHOD:
            return grpc.unary_unary_rpc_method_handler(self._call)
        return grpc.stream_stream_rpc_method_handler(self._stream)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((self,))
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield address
        finally:
            await server.stop(None)

    async def _call(self, raw: bytes, context: Any) -> bytes:
        return b"reply"

    async def _stream(self, requests: Any, context: Any) -> None:
        self.streams += 1
        await context.write(self._first)
        while (raw := await context.read()) is not aio.EOF:
            for reply in self._replies(raw):
                await context.write(reply)


def reply_to(raw: bytes, more: int = 0, size: int = 5) -> bytes:
    """A reply to a request of a stream, or to one that comes later."""
    call = streaming_pb2.StreamRequest.FromString(raw).id + more
    return streaming_pb2.StreamReply(id=call, response=bytes(size)).SerializeToString()


@pytest.mark.parametrize(
    ("first", "replies", "reason"),
    [
        pytest.param(b"", lambda raw: [], "its first message is not of version 1", id="no version"),
        pytest.param(b"\xff", lambda raw: [], "1 bytes that are not a StreamReply", id="first noise"),
        pytest.param(HELLO, lambda raw: [b"\xff" * 9], "9 bytes that are not a StreamReply", id="noise"),
        pytest.param(HELLO, lambda raw: [reply_to(raw, 1)], "a reply to no request (2)", id="another"),
        pytest.param(HELLO, lambda raw: [reply_to(raw)] * 2, "a reply to no request (1)", id="twice"),
        pytest.param(HELLO, lambda raw: itertools.repeat(HELLO, 10**5), "a reply to no request (0)", id="endless"),
        pytest.param(HELLO, lambda raw: [reply_to(raw, size=17 << 20)], None, id="huge"),
    ],
)
def test_a_node_that_breaks_the_protocol_of_streams_is_asked_by_calls(
    first: bytes,
    replies: Replies,
    reason: str | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nonn.aggregator.streaming.REOPEN_S", TIMEOUT_S)
    bad = Bad(first, replies)

    async def scenario() -> None:
        async with bad.serving() as address, channel_to(address) as (channel, infer):
            await infer(b"request")
            if first == HELLO:
                await until_async(lambda: channel.is_streaming)
                with contextlib.suppress(aio.AioRpcError):  # the first of two replies is good
                    await infer(b"request")
            await until_async(lambda: bad.streams == 1 and not channel.is_streaming)
            assert await infer(b"request") == b"reply"

    run(scenario)
    expected = [f"a node's stream breaks the protocol: {reason}; it is asked by unary calls"] if reason else []
    assert [record.getMessage() for record in logged(caplog)] == expected


def test_a_node_that_ends_its_streams_is_asked_for_another_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = 0

    async def end(requests: Any, context: Any) -> None:
        nonlocal opened
        opened += 1
        await context.abort(STATUS.UNAVAILABLE, "no more")

    async def scenario() -> None:
        bad = Bad(HELLO, lambda raw: [])
        bad._stream = end  # type: ignore[method-assign]
        async with bad.serving() as address, channel_to(address) as (_, infer):
            monkeypatch.setattr("nonn.aggregator.streaming.REOPEN_S", TIMEOUT_S)
            for _ in range(20):
                await infer(b"request")
                await asyncio.sleep(0.01)
            assert opened == 1
            monkeypatch.setattr("nonn.aggregator.streaming.REOPEN_S", 0.0)
            while opened == 1:
                await infer(b"request")
                await asyncio.sleep(0.01)

    run(scenario)


def request(call: int, content: bytes | None = message(1)) -> bytes:
    return bytes(
        streaming_pb2.StreamRequest(id=call, request=content or b"", cancel=content is None).SerializeToString()
    )


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        pytest.param([b"\xff"], "1 bytes that are not a valid StreamRequest", id="noise"),
        pytest.param([request(0)], "request 0 of a stream: ids begin with 1", id="zero"),
        pytest.param([request(1), request(1)], "request 1 of a stream: ids begin with 1", id="twice"),
        pytest.param(
            [request(1, bytes(MAX_STREAM_BYTES + 100))],
            f"send more than {MAX_STREAM_BYTES} as a unary call of ModelInfer",
            id="large",
        ),
    ],
)
def test_a_caller_that_breaks_the_protocol_of_streams_is_told(messages: Sequence[bytes], text: str) -> None:
    async def scenario() -> None:
        model = Echo()
        model.gate.clear()
        async with node(model) as (address, _, _), aio.insecure_channel(address) as channel:
            stream = channel.stream_stream(INFER_STREAM_METHOD)()
            assert await stream.read() == HELLO
            with contextlib.suppress(asyncio.InvalidStateError, aio.AioRpcError):
                for each in messages:
                    await stream.write(each)
            error = await failure_of(stream.read())
            assert error.code() is STATUS.INVALID_ARGUMENT
            assert text in str(error.details())
            await until_async(lambda: model.begun == model.cancelled)  # what was under way is dropped

    run(scenario)


def test_a_caller_that_half_closes_its_stream_gets_all_replies() -> None:
    async def scenario() -> None:
        model = Echo()
        model.gate.clear()
        async with node(model) as (address, _, _), aio.insecure_channel(address) as channel:
            stream = channel.stream_stream(INFER_STREAM_METHOD)()
            await stream.read()
            for number in (1, 2, 3):
                await stream.write(request(number))
            await stream.done_writing()
            await until_async(lambda: model.begun == 3)
            model.gate.set()
            assert {streaming_pb2.StreamReply.FromString(await stream.read()).id for _ in range(3)} == {1, 2, 3}
            assert await stream.read() is aio.EOF

    run(scenario)


def test_replies_that_the_caller_does_not_read_hold_back_its_requests() -> None:
    num_requests, size = 1000, MAX_STREAM_BYTES - 1000

    async def scenario() -> None:
        model = Echo()
        async with node(model) as (address, _, _), aio.insecure_channel(address) as channel:
            stream = channel.stream_stream(INFER_STREAM_METHOD)()
            await stream.read()

            async def write() -> None:
                for number in range(1, num_requests + 1):
                    await stream.write(request(number, message(size)))

            writing, begun = asyncio.ensure_future(write()), -1
            while begun < model.begun:
                begun = model.begun
                await asyncio.sleep(0.5)
            assert begun < num_requests // 2
            ids = {streaming_pb2.StreamReply.FromString(await stream.read()).id for _ in range(num_requests)}
            assert len(ids) == num_requests
            await writing

    run(scenario)


def test_a_caller_that_leaves_with_replies_under_way_is_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        model = Echo()
        async with node(model) as (address, _, _):
            for _ in range(10):
                async with aio.insecure_channel(address) as channel:
                    stream = channel.stream_stream(INFER_STREAM_METHOD)()
                    await stream.read()
                    model.gate.clear()
                    begun = model.begun
                    for number in range(1, 20):
                        await stream.write(request(number, message(MAX_STREAM_BYTES // 2)))
                    await until_async(lambda begun=begun: model.begun == begun + 19)  # type: ignore[misc]
                    model.gate.set()
                    await asyncio.sleep(0)
                    stream.cancel()

    run(scenario)
    assert not logged(caplog)  # gRPC may log a call that is cancelled while it ends


def test_giving_up_what_does_not_run_is_ignored() -> None:
    async def scenario() -> None:
        async with node(Echo()) as (address, _, _), aio.insecure_channel(address) as channel:
            stream = channel.stream_stream(INFER_STREAM_METHOD)()
            await stream.read()
            await stream.write(request(3, None))
            await stream.write(request(4))
            assert streaming_pb2.StreamReply.FromString(await stream.read()).id == 4

    run(scenario)


def test_a_node_has_a_limited_number_of_streams() -> None:
    async def scenario() -> None:
        async with node(Echo()) as (address, _, _), aio.insecure_channel(address) as channel:
            streams = [channel.stream_stream(INFER_STREAM_METHOD)() for _ in range(MAX_OPEN)]
            for stream in streams:
                await stream.read()
            refused = channel.stream_stream(INFER_STREAM_METHOD)()
            assert (await failure_of(refused.read())).code() is STATUS.RESOURCE_EXHAUSTED
            streams[0].cancel()

            for _ in range(1000):
                try:
                    assert await channel.stream_stream(INFER_STREAM_METHOD)().read() == HELLO
                    break
                except aio.AioRpcError:
                    await asyncio.sleep(0.01)
            else:
                pytest.fail("no place is free again")

    run(scenario)


def test_a_node_streams_with_an_aggregator_until_its_certificate_is_revoked(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=1)
    authority = Authority.create(tmp_path / "certs")
    roles = ("aggregator", "client", "node")
    for role in roles:
        authority.issue(role, "local")
    folders = {role: authority.folder(role, "local") for role in roles}

    def channel_of(role: str, address: str) -> aio.Channel:
        credentials, options = TlsFolder(folders[role]).channel_options(Identity("node", "local").dns_name)
        return aio.secure_channel(address, credentials, options=options)

    async def scenario(address: str) -> None:
        async with channel_of("client", address) as channel:
            error = await failure_of(channel.stream_stream(INFER_STREAM_METHOD)().read())
            assert error.code() is STATUS.PERMISSION_DENIED
        connected = connect_tls(TlsFolder(folders["aggregator"]))(Node(id="local", address=address, student=0))
        await open_stream(connected, connected.unary_unary(INFER_METHOD))
        await connected.close()
        async with channel_of("aggregator", address) as channel:
            stream = channel.stream_stream(INFER_STREAM_METHOD)()
            assert await stream.read() == HELLO
            await stream.write(request(1))
            assert streaming_pb2.StreamReply.FromString(await stream.read()).id == 1
            authority.revoke("aggregator", "local")
            error, number = None, itertools.count(2)
            while error is None:
                try:
                    await stream.write(request(next(number)))
                    await stream.read()
                except aio.AioRpcError as exc:
                    error = exc
                await asyncio.sleep(0.1)
            assert error.code() is STATUS.UNAUTHENTICATED
            assert "has been revoked" in str(error.details())

    with running_node(bundle.path, 0, "--tls", str(folders["node"])) as (_, ready):
        run(lambda: scenario(ready["address"]))

    async def plain(address: str) -> None:
        foreign = Node(id="other", address=address, student=0, foreign=True)
        assert isinstance(connect_insecure(foreign), aio.Channel)
        connected = connect_insecure(Node(id="local", address=address, student=0))
        await open_stream(connected, connected.unary_unary(INFER_METHOD))
        await connected.close()

    with running_node(bundle.path, 0) as (_, ready):
        run(lambda: plain(ready["address"]))
