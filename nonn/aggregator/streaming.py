"""A channel to a node whose small requests share one stream.

A call of gRPC costs both sides more than twice the processor time of two messages of a stream. Everything unusual is a
call: large requests, probes, traced requests, and any request while there is no stream. So a node without the service
``Streaming`` is asked by calls, and failures of a connection are those of calls.
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

from nonn.errors import InputError
from nonn.rpc.v1 import streaming_pb2 as pb
from nonn.rpc.wire import (
    INFER_METHOD,
    INFER_STREAM_METHOD,
    MAX_STREAMS,
    STREAM_BYTES,
    STREAM_VERSION,
    STREAMING_SERVICE,
)
from nonn.telemetry.background import Background
from nonn.telemetry.printable import printable

__all__ = ["STREAM_LIMIT", "StreamingChannel"]

OPEN_S = 2.0  # a node that has not begun its stream by then does not answer
REOPEN_S = 2.0  # between two openings: a node that ends each stream at once is asked by calls meanwhile
_REPLY_BYTES = 4 * 1024 * 1024  # of one message: the replies to requests of STREAM_BYTES have less
STREAM_LIMIT = {
    "name": [{"service": STREAMING_SERVICE}],
    "maxResponseMessageBytes": _REPLY_BYTES,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# A stream that ends with one of these may be opened again: the node was restarted, or is away.
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)

_log = logging.getLogger(__name__)

Future = asyncio.Future[bytes]


class StreamingChannel:
    """A channel of grpc.aio that asks a node over a stream where it can; entered in the event loop.

    The stream is opened after the first call of ModelInfer. One that has ended is opened again after a later call, at
    least two seconds after the last opening.

    Args:
        channel: to a nonn node.
    """

    def __init__(self, channel: aio.Channel) -> None:
        self._channel, self._infer = channel, channel.unary_unary(INFER_METHOD)
        self._stream: _Stream | None = None
        self._opening, self._offered, self._opened_at = False, True, -inf
        self._tasks = Background()

    @property
    def streams(self) -> bool:
        """Whether small requests go over a stream now."""
        return self._stream is not None

    def unary_unary(self, method: str) -> Callable[..., Any]:
        """A callable like that of a gRPC channel, for bytes; its calls can be awaited and cancelled."""
        return self._ask if method == INFER_METHOD else self._channel.unary_unary(method)

    async def close(self, grace: float | None = None) -> None:
        """Ends every call; those under way get ``grace`` seconds to be answered."""
        self._offered = False
        if (stream := self._stream) is not None:
            if grace:
                await stream.idle(grace)
            stream.cancel()
        await self._tasks.close()
        await self._channel.close(grace)

    def _ask(self, request: bytes, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
        stream = self._stream
        if stream is not None and stream.takes(request) and metadata is None and not options.get("wait_for_ready"):
            return stream.ask(request, timeout)
        call = self._infer(request, timeout=timeout, metadata=metadata, **options)
        if stream is None and self._offered and not self._opening:
            call.add_done_callback(self._open)
        return call

    def _open(self, call: object) -> None:
        """Opens a stream, if none is open or being opened."""
        now = asyncio.get_running_loop().time()
        if self._offered and not self._opening and now >= self._opened_at + REOPEN_S:
            self._opening, self._opened_at = True, now
            self._tasks.start(self._keep(), "a stream to a node")

    async def _keep(self) -> None:
        """One stream, from its opening to its end."""
        call, end = self._channel.stream_stream(INFER_STREAM_METHOD)(), "the node's stream has ended"
        stream = _Stream(call)
        try:
            async with asyncio.timeout(OPEN_S):
                await stream.begin()
            self._stream = stream
            await stream.run()
        except TimeoutError:
            pass
        except aio.AioRpcError as exc:
            self._offered, end = self._offered and exc.code() in _PASSING, exc.details() or end
        except InputError as exc:
            self._offered = False
            _log.warning("a node's stream breaks the protocol, so it is asked by calls: %s", printable(str(exc)))
        finally:
            self._stream, self._opening = None, False
            call.cancel()
            stream.end(end)


class _Stream:
    """Requests over one stream, each with its reply.

    Args:
        call: of ``Streaming.Infer``, for bytes.
    """

    def __init__(self, call: Any) -> None:
        self._call, self._ids = call, count(1)
        self._pending: dict[int, Future] = {}
        self._unsent: dict[int, bytes] = {}  # oldest first
        self._given_up: set[int] = set()  # sent, and still without a reply
        self._wake = asyncio.Event()

    def takes(self, request: bytes) -> bool:
        """Whether it takes this request; a node that owes too many replies gets no more."""
        return len(request) <= STREAM_BYTES and len(self._pending) + len(self._given_up) < MAX_STREAMS - 1

    def ask(self, request: bytes, timeout_s: float | None) -> Future:
        """Sends a request; the result is its response, or an AioRpcError."""
        loop, number = asyncio.get_running_loop(), next(self._ids)
        milliseconds = 0 if timeout_s is None else max(1, round(timeout_s * 1e3))
        future = self._pending[number] = loop.create_future()
        self._send(number, pb.StreamRequest(call=number, request=request, timeout_ms=milliseconds))
        if timeout_s is not None:
            timer = loop.call_later(timeout_s, _fail, future, grpc.StatusCode.DEADLINE_EXCEEDED, "no reply in time")
            future.add_done_callback(lambda _: timer.cancel())
        future.add_done_callback(partial(self._ended, number))
        return future

    async def begin(self) -> None:
        """Waits for the first message.

        Raises:
            InputError: it is not that of this service.
            AioRpcError: the stream has ended.
        """
        first = await self._read()
        if first is None or first.version != STREAM_VERSION:
            raise InputError(f"its first message is not of version {STREAM_VERSION}")

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
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def idle(self, timeout_s: float) -> None:
        """Waits until each request has its reply, but not longer than that."""
        if self._pending:
            await asyncio.wait(self._pending.values(), timeout=timeout_s)

    def cancel(self) -> None:
        """Gives up what is under way."""
        for future in tuple(self._pending.values()):
            future.cancel()

    def end(self, reason: str) -> None:
        """Fails what is under way."""
        for future in tuple(self._pending.values()):
            _fail(future, grpc.StatusCode.UNAVAILABLE, reason)

    def _take(self, reply: Any) -> None:
        """Gives a reply to the request that waits for it."""
        number = reply.call
        if (future := self._pending.pop(number, None)) is None:
            if number not in self._given_up:
                raise InputError(f"a reply to no request ({number})")
            self._given_up.remove(number)
        elif reply.status:
            _fail(future, _CODES.get(reply.status, grpc.StatusCode.UNKNOWN), reply.details)
        elif not future.done():
            future.set_result(reply.response)

    def _ended(self, number: int, future: Future) -> None:
        """A request has its reply, or is given up; the node hears of the latter."""
        unsent = self._unsent.pop(number, None) is not None
        if self._pending.pop(number, None) is not None and not unsent:
            self._given_up.add(number)
            self._send(-number, pb.StreamRequest(call=number))

    def _send(self, key: int, message: Any) -> None:
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
        except (aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reader learns it too

    async def _read(self) -> Any:
        """The next reply; None if the node has ended the stream."""
        try:
            raw = await self._call.read()
        except asyncio.CancelledError:
            # gRPC raises it for a stream that the node has cancelled, too.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return None
        if raw is aio.EOF:
            return None
        try:
            return pb.StreamReply.FromString(raw)  # not by gRPC, which logs a traceback for what it cannot parse
        except DecodeError as exc:
            raise InputError(f"{len(raw)} bytes that are not a StreamReply") from exc


def _fail(future: Future, code: grpc.StatusCode, details: str) -> None:
    """Ends a call with an error, as gRPC does."""
    if not future.done():
        future.set_exception(aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details))
        future.exception()  # mark as retrieved: asyncio would log a call that is no longer awaited
