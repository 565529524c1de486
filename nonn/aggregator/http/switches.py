"""Switching devices off and on from the page of ``nonn up``: for clusters on this machine only.

``nonn up`` owns the processes of the devices, and its aggregator serves the page. A pair of sockets connects them: the
aggregator inherits one end, so ``nonn serve`` on its own has no such route, and no other process can reach it.

A request must come to a loopback address, from the page itself (``Access.check_site``), with a type that no page of
another site may send, and with the token that ``nonn up`` prints as a part of the page's address, after ``#``, which
browsers never send. Other users of the machine may read the page, but do not know the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nonn.aggregator.http.access import Access
from nonn.aggregator.http.bodies import RefusedError, answering, reading
from nonn.errors import NonnError
from nonn.rpc.endpoint import Endpoint

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["SwitchBoard", "Switches"]

TOKEN = "Nonn-Switch-Token"
MAX_BYTES = 1024  # of a request
WAIT_S = 90.0  # a device that starts may take a minute
_DATAGRAM = 64 * 1024


class SwitchBoard:
    """The end of ``nonn up``: carries out requests, in the thread that calls ``handle``.

    Args:
        switch: switches a device, by its id, off or on.

    Attributes:
        token: what a request must have.
        child: the other end, for the aggregator to inherit.
    """

    def __init__(self, switch: Callable[[str, bool], None]) -> None:
        self._switch = switch
        self._socket, self.child = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self.token = secrets.token_urlsafe(16)

    def fileno(self) -> int:
        """For ``select``."""
        return self._socket.fileno()

    def handle(self) -> None:
        """Carries out one request, if one has come."""
        with contextlib.suppress(OSError):
            asked = json.loads(self._socket.recv(_DATAGRAM))
            self._socket.send(json.dumps({"number": asked["number"], **self._answer(asked)}).encode())

    def close(self) -> None:
        """Closes both ends."""
        self._socket.close()
        self.child.close()

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        given = str(asked["token"]).encode(errors="backslashreplace")  # the header may have bytes that are not UTF-8
        if not hmac.compare_digest(given, self.token.encode()):
            return {
                "status": 403,
                "error": "wrong token; open the address that nonn up prints, with all that follows #",
            }
        try:
            self._switch(asked["node"], asked["on"])
        except KeyError:
            return {"status": 404, "error": f"no device '{asked['node']}'"}
        except NonnError as exc:
            return {"status": 500, "error": str(exc)[:2000]}
        return {"status": 200, "node": asked["node"], "on": asked["on"]}


class Switches:
    """The aggregator's end: the route ``/api/devices``.

    Args:
        descriptor: of the inherited socket.
        endpoint: counts the bytes of requests.
        access: decides which pages may ask.
    """

    def __init__(self, descriptor: int, endpoint: Endpoint, access: Access) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._endpoint, self._access = endpoint, access
        self._busy, self._number = asyncio.Lock(), 0

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds the route."""
        router.add_post("/api/devices/{node}", answering(self.switch))

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    async def switch(self, request: web.Request) -> web.Response:
        """Switches one device; answers when its process has ended, or is ready."""
        from aiohttp import web

        self._access.check_site(request)
        if request.content_type != "application/json":
            raise RefusedError(415, f"Content-Type: {request.content_type!r}; send application/json")
        async with reading(request, MAX_BYTES, self._endpoint, 'send {"on": false}') as body:
            try:
                on = json.loads(body)["on"]
            except (ValueError, KeyError, TypeError, RecursionError):
                on = None
        if not isinstance(on, bool):
            raise RefusedError(400, 'on: must be true or false, as in {"on": false}')
        if self._busy.locked():
            raise RefusedError(429, "another device is being switched; try again in a moment")
        async with self._busy:
            answer = await self._ask(request.match_info["node"][:200], request.headers.get(TOKEN, "")[:200], on)
        return web.json_response(answer, status=answer.pop("status"))

    async def _ask(self, node: str, token: str, on: bool) -> dict[str, Any]:
        """Asks ``nonn up``; answers to earlier requests, which waited too long, are dropped."""
        loop = asyncio.get_running_loop()
        self._number += 1
        try:
            async with asyncio.timeout(WAIT_S):
                asked = {"number": self._number, "node": node, "token": token, "on": on}
                await loop.sock_sendall(self._socket, json.dumps(asked).encode())
                while True:
                    answer: dict[str, Any] = json.loads(await loop.sock_recv(self._socket, _DATAGRAM))
                    if answer.pop("number") == self._number:
                        return answer
        except (OSError, TimeoutError) as exc:
            raise RefusedError(503, "nonn up does not answer") from exc
