"""The aggregator over HTTP: what is read (``pages``), and inference (``nonn.aggregator.http``).

It runs in the aggregator's event loop with aiohttp: its ``AppRunner`` starts and stops inside a running loop and leaves
signals alone. Starlette with uvicorn is half the size (6 MB installed, 7 MB resident, against 15 and 15), but uvicorn
takes over the process's signals, which end an aggregator here, and only private methods prevent that.

What is only read needs no login: on loopback it is plain HTTP; beyond loopback it is HTTPS for clients with a valid
certificate of the cluster's authority, or plain HTTP with ``--insecure``. Inference needs what it needs over gRPC.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nonn.aggregator.http.access import Access, fingerprint_of, is_ours, own_names
from nonn.aggregator.http.bodies import Handler, Routes
from nonn.aggregator.http.pictures import Pictures
from nonn.aggregator.http.rest import Protocol
from nonn.aggregator.http.switches import Switches
from nonn.aggregator.monitoring.metrics import Metrics
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.monitoring.pages import HEADERS, Pages
from nonn.aggregator.sensing.hub import Hub
from nonn.bundle import Bundle
from nonn.errors import AddressError, MissingExtraError, UsageError
from nonn.rpc.address import is_loopback
from nonn.rpc.connections import PEER_SHARE, PeerLimit, raise_descriptor_limit
from nonn.rpc.endpoint import Endpoint
from nonn.rpc.guard import Guard
from nonn.security.tls import TlsFolder
from nonn.telemetry.background import Background
from nonn.telemetry.printable import printable

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.typedefs import Middleware

__all__ = ["Inference", "serve_dashboard"]

_log = logging.getLogger(__name__)

SHUTDOWN_S = 0.5  # for requests in flight; enough for a page that polls every second
KEEPALIVE_S = 30.0  # of a connection without a complete request; also the longest time for the first one's headers
LINGERING_S = 2.0  # a refused body is read and dropped, so that its sender sees the response


@dataclass(frozen=True)
class Inference:
    """What inference over HTTP needs.

    Attributes:
        endpoint: the served model; the same as over gRPC.
        guard: of the gRPC port.
        bundle: the served bundle.
        switches: descriptor of the socket with which ``nonn up`` switches devices; None elsewhere.
    """

    endpoint: Endpoint
    guard: Guard
    bundle: Bundle
    switches: int | None = None

    def routes(self, names: Sequence[str]) -> list[Routes]:
        """What is served; ``names`` are names of proxies."""
        access = Access(self.guard, names)
        switches = [] if self.switches is None else [Switches(self.switches, self.endpoint, access)]
        pictures = Pictures(self.endpoint, access, self.bundle, switches=bool(switches))
        return [Protocol(self.endpoint, access), pictures, *switches]


@contextlib.asynccontextmanager
async def serve_dashboard(
    monitor: Monitor,
    metrics: Metrics,
    *,
    host: str,
    port: int,
    insecure: bool,
    tls: TlsFolder | None = None,
    tls_on_loopback: bool = False,
    names: Sequence[str] = (),
    hub: Hub | None = None,
    inference: Inference | None = None,
) -> AsyncIterator[str]:
    """Serves HTTP while the block runs.

    Args:
        monitor: source of the state.
        metrics: source of /metrics.
        host: address to bind; beyond loopback only with ``tls`` or ``insecure``.
        port: 0 lets the system choose.
        insecure: allow plain HTTP beyond loopback.
        tls: certificates of the aggregator; used beyond loopback.
        tls_on_loopback: used on loopback too.
        names: further names in the Host header, for example of a proxy.
        hub: answers of nodes that sense, for /api/answers and /api/sensing; None if none do.
        inference: for /v2 and /api/predict; None offers none.

    Yields:
        Its address, ``http://host:port``.

    Raises:
        AddressError: the address is in use, or not of this machine.
        UsageError: the address is beyond loopback, without TLS and without ``insecure``.
        MissingExtraError: aiohttp is not installed.
    """
    try:
        from aiohttp import web
    except ModuleNotFoundError as exc:
        raise MissingExtraError("aiohttp", extra="serve") from exc
    switches = inference is not None and inference.switches is not None
    _check_place(host, port, beyond_loopback=insecure or tls is not None, switches=switches)
    if is_loopback(host) and not tls_on_loopback:
        tls = None
    routes: list[Routes] = [Pages(monitor, metrics, hub), *(inference.routes(names) if inference else ())]
    application = web.Application(middlewares=[_guarded(tls, None if tls else own_names(host, names))])
    async with contextlib.AsyncExitStack() as stack:
        for route in routes:
            route.add_to(application.router)
            stack.callback(route.close)
        runner = web.AppRunner(
            application,
            access_log=None,
            shutdown_timeout=SHUTDOWN_S,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGERING_S,
            auto_decompress=False,
            logger=_log,
        )
        _log.addFilter(_is_ours)
        stack.callback(_log.removeFilter, _is_ours)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, host, port, ssl_context=tls.server_context() if tls else None)
        try:
            await site.start()
        except (OSError, OverflowError) as exc:
            raise AddressError(
                f"{host}:{port} cannot be bound for HTTP ({exc}); choose another --http-port, or 0 for any free one"
            ) from exc
        bound = runner.addresses[0][1]
        tasks = await stack.enter_async_context(Background())
        tasks.start(PeerLimit(bound, raise_descriptor_limit() // PEER_SHARE).keep(), "limit of HTTP connections")
        yield f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{bound}"


def _check_place(host: str, port: int, *, beyond_loopback: bool, switches: bool) -> None:
    """Checks an address before anything starts.

    Args:
        host: address to bind.
        port: 0 lets the system choose.
        beyond_loopback: whether it may be beyond loopback.
        switches: whether devices are switched through it.

    Raises:
        AddressError: the port does not exist, or devices would be switched from elsewhere.
        UsageError: the address is beyond loopback and must not be.
    """
    if not (beyond_loopback or is_loopback(host)):
        raise UsageError(
            f"{host}: refusing to serve HTTP beyond loopback without TLS; leave --http-host at 127.0.0.1, give the "
            "aggregator a certificate, or use --insecure on a network that you trust"
        )
    if not 0 <= port < 65536:  # getaddrinfo would use it modulo 65536
        raise AddressError(f"--http-port {port}: must be 1 to 65535, or 0 for any free port")
    if switches and not is_loopback(host):
        raise AddressError(f"{host}: devices are switched through loopback only")


def _is_ours(record: logging.LogRecord) -> bool:
    """False for the traceback that aiohttp logs for a request that is not HTTP: strangers would fill the log."""
    from aiohttp import http_exceptions

    return not (record.exc_info and isinstance(record.exc_info[1], http_exceptions.HttpProcessingError))


def _guarded(tls: TlsFolder | None, names: frozenset[str] | None) -> Middleware:
    """Refuses revoked certificates and foreign hosts, and adds headers; without ``names`` any host is accepted."""
    from aiohttp import web

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if tls and fingerprint_of(request) in tls.revoked:
                raise web.HTTPForbidden(text="your certificate has been revoked; issue another: nonn certs issue\n")
            if names is not None and not is_ours(request.headers.get("Host"), names):
                raise web.HTTPMisdirectedRequest(
                    text="unknown host name; use the IP address, or start nonn serve with --http-name NAME\n"
                )
            response = await handler(request)
            if response.prepared:  # a stream has sent its headers
                return response
        except web.HTTPException as exc:  # 404 and 405 get the same headers
            if not request.path.startswith("/v2"):
                exc.headers.update(HEADERS)
                raise
            text = (exc.text or exc.reason).strip()
            response = web.json_response(
                {"error": f"{request.method} {printable(request.path)}: {text}"}, status=exc.status
            )
            if "Allow" in exc.headers:
                response.headers["Allow"] = exc.headers["Allow"]
        response.headers.update(HEADERS)
        return response

    return guarded
