"""The service ``Streaming``: requests of one caller over one stream, answered as those of ModelInfer are.

A stream ends when the caller ends it, or at shutdown when all requests are answered. It ends with an error if a message
breaks the protocol, or if the caller's certificate is revoked.
"""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError
from grpc import StatusCode, aio

from nonn.errors import InputError, NonnError, OverloadError
from nonn.rpc.endpoint import Endpoint
from nonn.rpc.guard import Guard, sender
from nonn.rpc.inference import InferenceServicer
from nonn.rpc.registration import add_servicer
from nonn.rpc.v1 import streaming_pb2 as pb
from nonn.rpc.wire import MAX_STREAMS, STREAM_BYTES, STREAM_VERSION, to_status
from nonn.telemetry.background import Background

__all__ = ["StreamingServicer"]

_ENVELOPE_BYTES = 64  # of a message besides its request
_MOST_OPEN = 64  # streams at once: more than any node has aggregators; a stream costs memory even if it is idle


class StreamingServicer:
    """Answers the requests of streams.

    Args:
        endpoint: the model, with its limits.
        guard: of the server, which identifies callers with TLS.
    """

    def __init__(self, endpoint: Endpoint, guard: Guard | None = None) -> None:
        self._endpoint, self._guard = endpoint, guard
        self._inference, self._open = InferenceServicer(endpoint, guard), 0

    def add_to(self, server: Any) -> FileDescriptor:
        """Adds the service to a server that has not been started; returns the descriptor of its .proto file."""
        add_servicer(server, pb.DESCRIPTOR.services_by_name["Streaming"], self, raw={"Infer"})
        return pb.DESCRIPTOR

    async def Infer(self, requests: Any, context: Any) -> None:  # noqa: N802
        """One stream."""
        if self._open >= _MOST_OPEN:
            await context.abort(*to_status(OverloadError(f"{_MOST_OPEN} streams are open; send requests as calls")))
        self._open += 1
        try:
            failure = await self._serve(context)
        finally:
            self._open -= 1
        if failure is not None:
            await context.abort(*to_status(failure))

    async def _serve(self, context: Any) -> NonnError | None:
        """Answers the requests of a stream until it ends; returns the error that ends it."""
        async with Background() as tasks:
            stream = _Stream(self._inference, self._guard, context, tasks)
            await stream.write(pb.StreamReply(version=STREAM_VERSION))
            reading, drained = asyncio.ensure_future(stream.read()), tasks.start(self._endpoint.drained(), "shutdown")
            try:
                await asyncio.wait((reading, drained), return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    return reading.result()
                await stream.finish()
                return None
            finally:
                reading.cancel()
                stream.ended = True


class _Stream:
    """The requests of one stream, at most as many at once as calls of one connection.

    Attributes:
        ended: nothing can be sent any more.
    """

    def __init__(self, inference: InferenceServicer, guard: Guard | None, context: Any, tasks: Background) -> None:
        self._inference, self._guard, self._context, self._tasks = inference, guard, context, tasks
        self._running: dict[int, asyncio.Task[None]] = {}
        self._free, self._writing = asyncio.Semaphore(MAX_STREAMS), asyncio.Lock()
        self.ended = False

    async def write(self, reply: Any) -> None:
        """Sends a message; gRPC accepts one at a time."""
        async with self._writing:
            await self._context.write(reply.SerializeToString())

    async def read(self) -> NonnError | None:
        """Starts the requests until the caller ends the stream; returns the error of a caller that may not go on."""
        try:
            while await self._read_one():
                pass
        except NonnError as exc:
            return exc
        return None

    async def finish(self) -> None:
        """Waits until what is under way is answered."""
        if self._running:
            await asyncio.wait(self._running.values())
        async with self._writing:  # the last reply is sent
            pass

    async def _read_one(self) -> bool:
        """Reads one message and starts its request; False at the end. Keeps no message while it waits for the next."""
        await self._free.acquire()
        raw = await self._context.read()
        if raw is aio.EOF:
            return False
        sender(self._context, self._guard)  # a certificate may be revoked at any time
        request = _parsed(raw)
        if request.HasField("request"):
            if not request.call or request.call in self._running:
                raise InputError(
                    f"call {request.call} of a stream: numbers begin with 1, and no two calls have the same"
                )
            self._running[request.call] = self._tasks.start(self._answer(request), "a request of a stream")
            return True
        self._free.release()
        if (task := self._running.get(request.call)) is not None:
            task.cancel()
        return True

    async def _answer(self, request: Any) -> None:
        """Answers one request."""
        call, remaining_s = request.call, request.timeout_ms / 1e3 if request.timeout_ms else None
        response, status, details = None, 0, ""
        try:
            response, failure = await self._inference.respond(request.request, self._context, remaining_s)
            if failure is not None:
                status, details = failure[0].value[0], failure[1]
        except asyncio.CancelledError:
            if self.ended:
                raise
            status, details = StatusCode.CANCELLED.value[0], "given up"
        finally:
            # Before the reply: from now on it cannot be given up.
            del self._running[call]
            self._free.release()
        await self.write(pb.StreamReply(call=call, response=response, status=status, details=details))


def _parsed(raw: bytes) -> Any:
    """A message of a stream.

    Raises:
        InputError: it is too large for a stream, or cannot be parsed.
    """
    if len(raw) > STREAM_BYTES + _ENVELOPE_BYTES:
        raise InputError(f"{len(raw)} bytes in a stream; send more than {STREAM_BYTES} as a call of ModelInfer")
    try:
        return pb.StreamRequest.FromString(raw)
    except DecodeError as exc:
        raise InputError(f"{len(raw)} bytes that are not a valid StreamRequest") from exc
