"""A channel to a node whose small requests share one stream.

A unary call of gRPC costs both sides more processor time than two messages of a stream. Everything unusual is a unary
call: large requests, probes, traced requests, and any request while there is no stream. So a node without the service
``Streaming`` is asked by unary calls, and failures of a connection are those of unary calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from itertools import count
from math import inf
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from nonn.aggregator.inventory import Node
from nonn.errors import InputError
from nonn.rpc.v1 import streaming_pb2 as pb
from nonn.rpc.wire import (
    INFER_METHOD,
    INFER_STREAM_METHOD,
    MAX_STREAM_BYTES,
    MAX_STREAM_REQUESTS,
    STREAM_VERSION,
    STREAMING_SERVICE,
)
from nonn.telemetry.background import Background
from nonn.telemetry.printable import printable

__all__ = ["STREAM_LIMIT", "StreamingChannel", "fail", "status_code", "with_stream"]

OPEN_TIMEOUT_S = 2.0  # a node that has not begun its stream by then does not answer
# Between two openings. It doubles with each stream that a node begins or refuses and that gives no reply: the node has
# no such service, ends streams at once, or breaks the protocol.
REOPEN_S, MAX_REOPEN_S = 2.0, 300.0
STREAM_LIMIT = {
    "name": [{"service": STREAMING_SERVICE}],
    "maxResponseMessageBytes": 16 * 1024 * 1024,  # 1,024 samples (--max-samples) with 4,096 features in float32
}
_MOST_MS = 2**32 - 1  # of an uint32: 49 days
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

_log = logging.getLogger(__name__)

Future = asyncio.Future[bytes]


def with_stream(node: Node, channel: aio.Channel) -> Any:
    """The channel to a node, with a stream if it is a nonn node."""
    return channel if node.foreign else StreamingChannel(channel)


class StreamingChannel:
    """A channel of grpc.aio that asks a node over a stream where it can; made in the event loop.

    The stream is opened after the first unary call of ModelInfer. One that has ended is opened again after a later
    call, at least two seconds after the last opening.

    Args:
        channel: to a nonn node.
    """

    def __init__(self, channel: aio.Channel) -> None:
        self._channel, self._infer = channel, channel.unary_unary(INFER_METHOD)
        self._stream: _Stream | None = None
        self._busy, self._open_at, self._interval_s = False, -inf, REOPEN_S
        self._warned = False
        self._tasks = Background()

    @property
    def is_streaming(self) -> bool:
        """Whether small requests go over a stream now."""
        return self._stream is not None

    def unary_unary(self, method: str) -> Callable[..., Any]:
        """A callable like that of a gRPC channel, for bytes; its calls can be awaited and cancelled."""
        return self._send if method == INFER_METHOD else self._channel.unary_unary(method)

    async def close(self, grace: float | None = None) -> None:
        """Ends every call; those under way get ``grace`` seconds to be answered."""
        self._open_at = inf
        stream, self._stream = self._stream, None
        if stream is not None:
            if grace:
                start = asyncio.get_running_loop().time()
                await stream.wait(grace)
                grace = max(0.0, grace - (asyncio.get_running_loop().time() - start))
            stream.cancel()
        await self._tasks.close()
        await self._channel.close(grace)

    def _send(self, request: bytes, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
        stream = self._stream
        if stream is not None and stream.accepts(request) and metadata is None and not options.get("wait_for_ready"):
            return stream.send(request, timeout)
        call = self._infer(request, timeout=timeout, metadata=metadata, **options)
        if not self._busy and asyncio.get_running_loop().time() >= self._open_at:
            call.add_done_callback(self._open)
        return call

    def _open(self, call: object) -> None:
        """Opens a stream, unless one is open or was opened just now."""
        now = asyncio.get_running_loop().time()
        if not self._busy and now >= self._open_at:
            self._busy, self._open_at = True, now + self._interval_s
            self._tasks.start(self._keep(), "a stream to a node")

    async def _keep(self) -> None:
        """One stream, from its opening to its end."""
        call = self._channel.stream_stream(INFER_STREAM_METHOD)()
        stream, code, reason = _Stream(call), grpc.StatusCode.UNAVAILABLE, "its stream has ended"
        responded = False
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                responded = await stream.begin()
            if responded:
                self._stream = stream
                await stream.run()
        except TimeoutError:
            pass
        except aio.AioRpcError as exc:
            responded = responded or exc.code() not in _TRANSIENT
            if exc.code() in _REFUSALS:  # for example, the certificate of this aggregator is revoked
                code, reason = exc.code(), exc.details() or reason
        except InputError as exc:
            responded = True
            if not self._warned:
                _log.warning("a node's stream breaks the protocol: %s; it is asked by unary calls", printable(str(exc)))
            self._warned = True
        finally:
            if self._stream is stream:
                self._stream = None
            self._busy = False
            if stream.num_replies:
                self._interval_s = REOPEN_S
            elif responded:
                self._interval_s = min(2 * self._interval_s, MAX_REOPEN_S)
            call.cancel()
            stream.fail(code, reason)


class _Stream:
    """Requests over one stream, each with its reply.

    Args:
        call: of ``Streaming.Infer``, for bytes.

    Attributes:
        num_replies: number of replies so far.
    """

    def __init__(self, call: Any) -> None:
        self._call, self._ids = call, count(1)
        self._pending: dict[int, Future] = {}
        self._unsent: dict[int, bytes] = {}  # oldest first; cancellations have the negative id
        self._cancelled: set[int] = set()  # sent, and without a reply
        self._wake = asyncio.Event()
        self._ended = False
        self.num_replies = 0

    def accepts(self, request: bytes) -> bool:
        """Whether it takes this request now."""
        under_way = len(self._pending) + len(self._cancelled)
        return not self._ended and under_way < MAX_STREAM_REQUESTS and len(request) <= MAX_STREAM_BYTES

    def send(self, request: bytes, timeout_s: float | None) -> Future:
        """Sends a request; the result is its response, or an AioRpcError."""
        loop, number = asyncio.get_running_loop(), next(self._ids)
        milliseconds = 0 if timeout_s is None else min(max(1, round(timeout_s * 1e3)), _MOST_MS)
        future = self._pending[number] = loop.create_future()
        self._queue(number, pb.StreamRequest(id=number, request=request, timeout_ms=milliseconds))
        if timeout_s is not None:
            timer = loop.call_later(timeout_s, fail, future, grpc.StatusCode.DEADLINE_EXCEEDED, "no reply in time")
            future.add_done_callback(lambda _: timer.cancel())
        future.add_done_callback(partial(self._done, number))
        return future

    async def begin(self) -> bool:
        """Waits for the first message; False if the node has ended the stream instead.

        Raises:
            InputError: the message is not that of this service.
            AioRpcError: the stream has ended with an error.
        """
        first = await self._read()
        if first is not None and first.version != STREAM_VERSION:
            raise InputError(f"its first message is not of version {STREAM_VERSION}")
        return first is not None

    async def run(self) -> None:
        """Sends and receives until the stream ends.

        Raises:
            InputError: a message breaks the protocol.
            AioRpcError: the stream has ended with an error.
        """
        writing = asyncio.create_task(self._write())
        try:
            while (reply := await self._read()) is not None:
                self._take(reply)
        finally:
            self._ended = True
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def wait(self, timeout_s: float) -> None:
        """Waits until each request has its reply, but not longer than that."""
        if self._pending:
            await asyncio.wait(self._pending.values(), timeout=timeout_s)

    def cancel(self) -> None:
        """Cancels what is under way."""
        for future in tuple(self._pending.values()):
            future.cancel()

    def fail(self, code: grpc.StatusCode, reason: str) -> None:
        """Fails what is under way."""
        for future in tuple(self._pending.values()):
            fail(future, code, reason)

    def _take(self, reply: Any) -> None:
        """Gives a reply to the request that waits for it.

        Raises:
            InputError: there is no such request.
        """
        number = reply.id
        if (future := self._pending.pop(number, None)) is None:
            if number not in self._cancelled:
                raise InputError(f"a reply to no request ({number})")
            self._cancelled.remove(number)
        elif reply.status:
            fail(future, status_code(reply.status), reply.details)
        elif not future.done():
            future.set_result(reply.response)
        self.num_replies += 1

    def _done(self, number: int, future: Future) -> None:
        """A request has its reply, or is cancelled; the node hears of the latter."""
        unsent = self._unsent.pop(number, None) is not None
        if self._pending.pop(number, None) is None or unsent:
            return
        self._cancelled.add(number)
        self._queue(-number, pb.StreamRequest(id=number, cancel=True))
        if len(self._cancelled) >= MAX_STREAM_REQUESTS:
            self._call.cancel()  # the node owes all replies that it may: another stream may be better

    def _queue(self, key: int, message: Any) -> None:
        self._unsent[key] = message.SerializeToString()
        self._wake.set()

    async def _write(self) -> None:
        """Sends messages, until the stream takes none."""
        try:
            while True:
                while self._unsent:
                    await self._call.write(self._unsent.pop(next(iter(self._unsent))))
                self._wake.clear()
                await self._wake.wait()
        except (aio.AioRpcError, aio.BaseError, asyncio.InvalidStateError):
            pass  # the reader learns it too

    async def _read(self) -> Any:
        """The next reply; None if the stream has been ended, or cancelled by either side.

        Raises:
            InputError: it cannot be parsed.
            AioRpcError: the stream has ended with an error.
        """
        try:
            raw = await self._call.read()
        except asyncio.CancelledError:
            # gRPC raises it for a cancelled stream, too.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return None
        if raw is aio.EOF:
            return None
        try:
            return pb.StreamReply.FromString(raw)  # not by gRPC, which logs a traceback for what it cannot parse
        except DecodeError as exc:
            raise InputError(f"{len(raw)} bytes that are not a StreamReply") from exc


def status_code(number: int) -> grpc.StatusCode:
    """The status code of a number; UNKNOWN for a number that gRPC does not have."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def fail(future: Future, code: grpc.StatusCode, details: str) -> None:
    """Ends a call with an error, as gRPC does, unless it has ended."""
    if not future.done():
        future.set_exception(aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details))
        future.exception()  # mark as retrieved: asyncio would log a call that is no longer awaited
