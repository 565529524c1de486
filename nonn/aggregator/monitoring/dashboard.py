"""The aggregator over HTTP: dashboard, state, metrics and health, and inference (``nonn.aggregator.http``).

It runs in the aggregator's event loop with aiohttp: its ``AppRunner`` starts and stops inside a running loop and leaves
signals alone. Starlette with uvicorn is half the size (6 MB installed, 7 MB resident, against 15 and 15), but uvicorn
takes over the process's signals, which end an aggregator here, and only private methods prevent that.

The page is four files next to this module and loads nothing from elsewhere; a content security policy enforces that.
What is only read needs no login: on loopback it is plain HTTP; beyond loopback it is HTTPS for clients with a valid
certificate of the cluster's authority, or plain HTTP with ``--insecure``. Inference needs what it needs over gRPC.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nonn.aggregator.http.access import Access, fingerprint_of, is_ours, own_names
from nonn.aggregator.http.bodies import Handler, Routes
from nonn.aggregator.http.pictures import Pictures
from nonn.aggregator.http.rest import Protocol
from nonn.aggregator.http.switches import Switches
from nonn.aggregator.monitoring.metrics import Metrics
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.sensing.hub import Hub
from nonn.bundle import Bundle
from nonn.documents import to_json
from nonn.errors import AddressError, MissingExtraError, UsageError
from nonn.rpc.address import is_loopback
from nonn.rpc.background import Background
from nonn.rpc.connections import PEER_SHARE, PeerLimit, raise_descriptor_limit
from nonn.rpc.endpoint import Endpoint
from nonn.rpc.guard import Guard
from nonn.security.tls import TlsFolder
from nonn.telemetry.printable import printable

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["Inference", "serve_dashboard"]

_log = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent / "web"
_ASSETS = {"/": "index.html", "/app.js": "app.js", "/ask.js": "ask.js", "/style.css": "style.css"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
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
        from aiohttp import http_exceptions, web
    except ModuleNotFoundError as exc:
        raise MissingExtraError("aiohttp", extra="serve") from exc

    def ours(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], http_exceptions.HttpProcessingError))

    if not (insecure or tls or is_loopback(host)):
        raise UsageError(
            f"{host}: refusing to serve HTTP beyond loopback without TLS; leave --http-host at 127.0.0.1, give the "
            "aggregator a certificate, or use --insecure on a network that you trust"
        )
    if not 0 <= port < 65536:  # getaddrinfo would use it modulo 65536
        raise AddressError(f"--http-port {port}: must be 1 to 65535, or 0 for any free port")
    if inference is not None and inference.switches is not None and not is_loopback(host):
        raise AddressError(f"{host}: devices are switched through loopback only")
    if is_loopback(host) and not tls_on_loopback:
        tls = None
    known = None if tls else own_names(host, names)
    async with contextlib.AsyncExitStack() as stack:
        application = _application(monitor, metrics, tls, known, hub)
        if inference is not None:
            for route in inference.routes(names):
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
        # aiohttp logs a traceback for every request that is not HTTP, so strangers would fill the log.
        _log.addFilter(ours)
        stack.callback(_log.removeFilter, ours)
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


def _application(
    monitor: Monitor, metrics: Metrics, tls: TlsFolder | None, names: frozenset[str] | None, hub: Hub | None = None
) -> web.Application:
    """The routes that are only read; without ``names`` every Host header is accepted."""
    from aiohttp import web

    async def asset(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(_FOLDER / _ASSETS[request.path])

    async def state(request: web.Request) -> web.Response:
        return web.json_response(to_json(monitor.state()))

    async def exposition(request: web.Request) -> web.Response:
        body, content_type = metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # an answer proves that the event loop runs

    async def readyz(request: web.Request) -> web.Response:
        ready, text = monitor.readiness()
        return web.Response(text=f"{text}\n", status=200 if ready else 503)

    async def sensing(request: web.Request) -> web.Response:
        return web.json_response(hub.state() if hub else {})

    async def answers(request: web.Request) -> web.StreamResponse:
        """Server-sent events: the last answers, and each further one."""
        if hub is None:
            raise web.HTTPNotFound(text="no node of this cluster senses\n")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **_HEADERS})
        await response.prepare(request)
        with hub.watching(recent=True) as watcher, contextlib.suppress(ConnectionResetError):
            while (taken := await watcher.take())[0] is not None:
                assert taken[0] is not None
                said = json.dumps({**taken[0].to_json(), "skipped": taken[1]})
                await response.write(f"data: {said}\n\n".encode())
        return response

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
                exc.headers.update(_HEADERS)
                raise
            text = (exc.text or exc.reason).strip()
            response = web.json_response(
                {"error": f"{request.method} {printable(request.path)}: {text}"}, status=exc.status
            )
            if "Allow" in exc.headers:
                response.headers["Allow"] = exc.headers["Allow"]
        response.headers.update(_HEADERS)
        return response

    application = web.Application(middlewares=[guarded])
    for path in _ASSETS:
        application.router.add_get(path, asset)
    for path, handler in (
        ("/api/state", state),
        ("/api/sensing", sensing),
        ("/api/answers", answers),
        ("/metrics", exposition),
        ("/healthz", healthz),
        ("/readyz", readyz),
    ):
        application.router.add_get(path, handler)
    return application
