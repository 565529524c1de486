"""Bodies of HTTP requests, bounded before they are parsed.

The stated length is compared with the limit before the first byte is read. Bytes count as they arrive: a client that
announces much and sends nothing holds nothing. A complete body counts in the same budget as requests over gRPC, an
incomplete one in another, so that slow senders never use up that of others. A body that stops, or is sent slower than
any link in use, is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import grpc

from nonn.errors import NonnError
from nonn.rpc.endpoint import Endpoint
from nonn.rpc.rest import to_error
from nonn.rpc.wire import Status, to_status

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["Handler", "RefusedError", "Routes", "answering", "failed", "reading"]

IDLE_S = 5.0  # without a byte
TOTAL_S = 60.0  # a request of 12 MB over a slow wireless link takes some seconds

Handler = Callable[["web.Request"], Awaitable["web.StreamResponse"]]


class Routes(Protocol):
    """A part of what is served over HTTP."""

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds its routes."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class RefusedError(Exception):
    """A request that HTTP itself refuses.

    Args:
        status: of the response.
        text: the error.
        headers: further headers of the response.
    """

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers


def answering(handler: Handler) -> Handler:
    """A handler whose errors are responses of JSON: ``{"error": text}``."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except RefusedError as exc:
            return _response(exc.status, {"error": str(exc)}, exc.headers)
        except NonnError as exc:
            return failed(to_status(exc))

    return answer


def failed(status: Status) -> web.Response:
    """The response for the status of a failed request."""
    number, body = to_error(status)
    headers = {"Nonn-Error": status[2][0][1]} if status[2] else {}
    if status[0] is grpc.StatusCode.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    if status[0] in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
        headers["Retry-After"] = "1"
    return _response(number, body, headers)


def _response(status: int, body: dict[str, str], headers: dict[str, str]) -> web.Response:
    from aiohttp import web

    return web.json_response(body, status=status, headers=headers)


@contextlib.asynccontextmanager
async def reading(request: web.Request, limit: int, endpoint: Endpoint, remedy: str) -> AsyncIterator[bytes]:
    """The body of a request; it counts in the budget until the block ends.

    Args:
        request: the request.
        limit: most bytes.
        endpoint: counts them.
        remedy: how to send less, for the error.

    Raises:
        RefusedError: it is too long, compressed, or does not arrive.
        OverloadError: a budget is used up.
    """
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise RefusedError(415, f"Content-Encoding: {request.headers['Content-Encoding']!r}; send the body as it is")
    too_long = RefusedError(413, f"the body has more than {limit} bytes; {remedy}")
    if (request.content_length or 0) > limit:
        raise too_long
    held, chunks = 0, list[bytes]()
    try:
        async with asyncio.timeout(TOTAL_S):
            while True:
                async with asyncio.timeout(IDLE_S):
                    chunk = await request.content.readany()
                if not chunk:
                    break
                if held + len(chunk) > limit:
                    raise too_long
                endpoint.arriving.take(len(chunk))
                held += len(chunk)
                chunks.append(chunk)
        endpoint.budget.take(held)
    except TimeoutError:
        raise RefusedError(408, f"the body stopped after {held} bytes", Connection="close") from None
    except ConnectionError:  # the client is gone; without this aiohttp would log a traceback
        raise RefusedError(400, f"the connection was lost after {held} bytes", Connection="close") from None
    finally:
        endpoint.arriving.give(held)
    try:
        yield b"".join(chunks)
    finally:
        endpoint.budget.give(held)
