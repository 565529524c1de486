"""Access over HTTP: checks the host name, the page that sends a request, the certificate and the token.

Two attacks come through the browser of a user who may call. A page elsewhere whose name is changed to our address (DNS
rebinding) is stopped by the ``Host`` header: it must be an IP address or a name of this machine. A page elsewhere that
sends requests here (cross-site request forgery) is stopped by ``Origin`` and ``Sec-Fetch-Site``, which browsers send
with every POST.

Inference needs what it needs over gRPC, checked by the same ``Guard``: a certificate with the right role if the
aggregator has ``--tls``, a token if it has ``--token-file``.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nonn.errors import ForbiddenError
from nonn.rpc.address import peer_host
from nonn.rpc.guard import Guard
from nonn.rpc.wire import SERVICE
from nonn.security.tls import Identity

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["Access", "fingerprint_of", "is_ours", "own_names", "peer_of"]


def own_names(host: str, names: Sequence[str]) -> frozenset[str]:
    """Names under which this machine is asked."""
    own = socket.gethostname().lower()
    return frozenset({"localhost", own, own.partition(".")[0], f"{own}.local", host.lower(), *map(str.lower, names)})


def is_ours(header: str | None, names: frozenset[str]) -> bool:
    """Whether a Host header is an IP address or one of these names; a browser always sends one."""
    if header is None:
        return True
    host = header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header
    host = host.strip("[]").lower().rstrip(".")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return host in names


def fingerprint_of(request: web.Request) -> str:
    """SHA-256 of the caller's certificate."""
    connection = request.transport.get_extra_info("ssl_object") if request.transport else None
    return hashlib.sha256(connection.getpeercert(binary_form=True) if connection else b"").hexdigest()


def peer_of(request: web.Request) -> str:
    """Address and port of the connection, as gRPC writes them."""
    name = request.transport.get_extra_info("peername") if request.transport else None
    if not name:
        return "unknown"
    return f"ipv6:[{name[0]}]:{name[1]}" if ":" in name[0] else f"ipv4:{name[0]}:{name[1]}"


class Access:
    """Decides about requests that do something.

    Args:
        guard: of the aggregator's gRPC port; None if it needs neither certificate nor token.
        names: names of proxies, whose pages may send requests here too.
    """

    def __init__(self, guard: Guard | None, names: Sequence[str] = ()) -> None:
        self._guard = guard if guard is not None and guard.needed else None
        self._names = frozenset(map(str.lower, names))

    @property
    def needs_token(self) -> bool:
        """Whether inference needs a token."""
        return self._guard is not None and self._guard.needs_token(SERVICE)

    def needs_certificate(self, request: web.Request) -> bool:
        """Whether inference needs a certificate, and this connection cannot show one because it is plain HTTP."""
        return self._guard is not None and self._guard.tls is not None and not request.secure

    def check_site(self, request: web.Request) -> None:
        """Refuses a request that a page of another site sends.

        Raises:
            ForbiddenError: it comes from another site.
        """
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "same-origin")
        ours = site in ("same-origin", "none")
        if origin is not None:
            try:
                parts = urlsplit(origin)
                ours = ours and (parts.netloc == request.headers.get("Host") or parts.hostname in self._names)
            except ValueError:
                ours = False
        if not ours:
            raise ForbiddenError("this request comes from a page of another site; open the dashboard's own address")

    async def check_caller(self, request: web.Request) -> str:
        """Checks a request for inference; returns its sender, for fair sharing between clients.

        That is the certificate's identity, or else the network address, as over gRPC.

        Raises:
            CredentialsError: the certificate or the token is missing or not accepted.
            ForbiddenError: the request comes from another site, or the role is wrong.
            OverloadError: too many calls with wrong tokens wait.
        """
        self.check_site(request)
        callers: list[Identity] = []

        def caller() -> Identity:
            callers.append(self._identity(request))
            return callers[0]

        if self._guard is not None:
            await self._guard.admit(SERVICE, request.headers.get("Authorization", ""), peer_of(request), caller)
        return str(callers[0]) if callers else peer_host(peer_of(request))

    def _identity(self, request: web.Request) -> Identity:
        """The identity in the caller's certificate."""
        connection = request.transport.get_extra_info("ssl_object") if request.transport else None
        if connection is None:
            raise ForbiddenError(
                "this aggregator accepts clients with a certificate only, and plain HTTP shows none; start nonn serve "
                "with --http-tls, or call it over gRPC"
            )
        assert self._guard is not None
        names = (connection.getpeercert() or {}).get("subjectAltName", ())
        return self._guard.identity([value for kind, value in names if kind == "URI"], lambda: fingerprint_of(request))
