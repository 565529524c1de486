"""The service ``Streaming``: requests of one caller over one stream, answered as those of ModelInfer are.

``proto/nonn/rpc/v1/streaming.proto`` says what a message may be and what ends a stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
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
from nonn.rpc.wire import MAX_STREAM_BYTES, MAX_STREAM_REQUESTS, STREAM_VERSION, Status, to_status
from nonn.telemetry.background import Background

__all__ = ["MAX_OPEN", "StreamingServicer"]

MAX_OPEN = 16  # streams of one caller: an aggregator has one; even an idle stream costs memory
_ENVELOPE_BYTES = 64  # of a message besides its request
_DETAILS = 4000  # characters of an error: it may quote the request

_log = logging.getLogger(__name__)


class StreamingServicer:
    """Answers the requests of streams.

    Args:
        endpoint: the model, with its limits.
        guard: of the server, which identifies callers with TLS.
    """

    def __init__(self, endpoint: Endpoint, guard: Guard | None = None) -> None:
        self._endpoint, self._guard = endpoint, guard
        self._inference, self._open = InferenceServicer(endpoint, guard), Counter[str]()

    def add_to(self, server: Any) -> FileDescriptor:
        """Adds the service to a server that has not been started; returns the descriptor of its .proto file."""
        add_servicer(server, pb.DESCRIPTOR.services_by_name["Streaming"], self, raw={"Infer"})
        return pb.DESCRIPTOR

    async def Infer(self, requests: Any, context: Any) -> None:  # noqa: N802
        """One stream; aborted with RESOURCE_EXHAUSTED if the caller has too many, or with the error that ends it."""
        try:
            caller = sender(context, self._guard)
            if self._open[caller] >= MAX_OPEN:
                raise OverloadError(f"{MAX_OPEN} streams are open; send requests as unary calls")
            self._open[caller] += 1
            try:
                await self._serve(context, caller)
            finally:
                self._open[caller] -= 1
                if not self._open[caller]:
                    del self._open[caller]
        except NonnError as exc:
            status = to_status(exc)
        else:
            return
        await context.abort(*status)

    async def _serve(self, context: Any, caller: str) -> None:
        """Answers the requests of a stream until it ends.

        Raises:
            NonnError: the caller may not go on.
        """
        async with Background() as tasks:
            stream = _Stream(self._inference, self._guard, context, caller, tasks)
            await stream.write(pb.StreamReply(version=STREAM_VERSION))
            reading = asyncio.create_task(stream.read())
            drained = tasks.start(self._endpoint.drained(), "shutdown")
            try:
                await asyncio.wait((reading, drained), return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    reading.result()
                await stream.finish()
            finally:
                stream.ended = True
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)


class _Stream:
    """The requests of one stream.

    Attributes:
        ended: nothing can be sent any more.
    """

    def __init__(
        self, inference: InferenceServicer, guard: Guard | None, context: Any, caller: str, tasks: Background
    ) -> None:
        self._inference, self._guard, self._context, self._tasks = inference, guard, context, tasks
        self._caller, self._connection = caller, context.peer()
        self._running: dict[int, asyncio.Task[None]] = {}  # these can be cancelled
        self._replying: set[asyncio.Task[None]] = set()  # and these as well as they are not sent yet
        # One more: it waits for the next message, which may cancel a request.
        self._free, self._writing = asyncio.Semaphore(MAX_STREAM_REQUESTS + 1), asyncio.Lock()
        self.ended = False

    async def write(self, reply: Any) -> None:
        """Sends a message; gRPC accepts one at a time."""
        async with self._writing:
            await self._context.write(reply.SerializeToString())

    async def read(self) -> None:
        """Starts requests until the caller ends the stream.

        Raises:
            NonnError: the caller may not go on.
        """
        while await self._read_one():
            pass

    async def finish(self) -> None:
        """Waits until what is under way is answered."""
        if self._replying:
            await asyncio.wait(self._replying)

    async def _read_one(self) -> bool:
        """Reads one message and starts its request; False at the end. Keeps no message while it waits for the next.

        Raises:
            InputError: the message breaks the protocol.
            CredentialsError: the caller's certificate is revoked.
        """
        await self._free.acquire()
        raw = await self._context.read()
        if raw is aio.EOF:
            return False
        sender(self._context, self._guard)  # a certificate may be revoked at any time
        message = _parsed(raw)
        number = message.id
        if message.cancel:
            self._free.release()
            if (task := self._running.get(number)) is not None:
                task.cancel()
            return True
        if not number or number in self._running:
            raise InputError(f"request {number} of a stream: ids begin with 1, and each is used once")
        remaining_s = message.timeout_ms / 1e3 if message.timeout_ms else None
        task = self._tasks.start(self._answer(number, message.request, remaining_s), "a request of a stream")
        self._running[number] = task
        self._replying.add(task)
        task.add_done_callback(self._replying.discard)
        return True

    async def _answer(self, number: int, raw: bytes, remaining_s: float | None) -> None:
        """Answers one request. Its place is free only when its reply is sent, so that unread replies do not pile up."""
        try:
            response, status = await self._respond(raw, remaining_s)
            del self._running[number]
            code, details = (status[0].value[0], status[1][:_DETAILS]) if status is not None else (0, "")
            await self.write(pb.StreamReply(id=number, response=response, status=code, details=details))
        except (aio.BaseError, asyncio.InvalidStateError):
            pass  # the caller is gone
        finally:
            self._running.pop(number, None)
            self._free.release()

    async def _respond(self, raw: bytes, remaining_s: float | None) -> tuple[bytes | None, Status | None]:
        """The response to a request, or the status of its failure; there is always one of them."""
        try:
            async with asyncio.timeout(remaining_s):
                return await self._inference.respond(raw, self._caller, self._connection, remaining_s)
        except TimeoutError:
            return None, (StatusCode.DEADLINE_EXCEEDED, "not answered in time", ())
        except asyncio.CancelledError:
            if self.ended:
                raise
            return None, (StatusCode.CANCELLED, "cancelled by the caller", ())
        except Exception as exc:  # the caller waits for a reply
            _log.exception("a request of a stream failed")
            return None, to_status(exc)


def _parsed(raw: bytes) -> Any:
    """A message of a stream.

    Raises:
        InputError: it is too large for a stream, or cannot be parsed.
    """
    if len(raw) > MAX_STREAM_BYTES + _ENVELOPE_BYTES:
        raise InputError(
            f"{len(raw)} bytes in a stream; send more than {MAX_STREAM_BYTES} as a unary call of ModelInfer"
        )
    try:
        return pb.StreamRequest.FromString(raw)
    except DecodeError as exc:
        raise InputError(f"{len(raw)} bytes that are not a valid StreamRequest") from exc
