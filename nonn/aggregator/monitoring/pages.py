"""What the aggregator offers over HTTP to read: the dashboard's files, state, metrics, health, and answers as a stream.

The page is four files next to this module and loads nothing from elsewhere; a content security policy enforces that.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nonn.aggregator.monitoring.metrics import Metrics
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.sensing.hub import Hub
from nonn.documents import to_json

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["HEADERS", "Pages"]

_FOLDER = Path(__file__).parent / "web"
_ASSETS = {"/": "index.html", "/app.js": "app.js", "/ask.js": "ask.js", "/style.css": "style.css"}
# Of every response.
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Pages:
    """The routes that are only read.

    Args:
        monitor: source of the state.
        metrics: source of /metrics.
        hub: answers of nodes that sense; None if none do.
    """

    def __init__(self, monitor: Monitor, metrics: Metrics, hub: Hub | None) -> None:
        self._monitor, self._metrics, self._hub = monitor, metrics, hub

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds the routes."""
        for path in _ASSETS:
            router.add_get(path, self.asset)
        router.add_get("/api/state", self.state)
        router.add_get("/api/sensing", self.sensing)
        router.add_get("/api/answers", self.answers)
        router.add_get("/metrics", self.exposition)
        router.add_get("/healthz", self.healthz)
        router.add_get("/readyz", self.readyz)

    def close(self) -> None:
        """Does nothing: nothing is open."""

    async def asset(self, request: web.Request) -> web.StreamResponse:
        """A file of the dashboard."""
        from aiohttp import web

        return web.FileResponse(_FOLDER / _ASSETS[request.path])

    async def state(self, request: web.Request) -> web.Response:
        """The whole state as JSON."""
        from aiohttp import web

        return web.json_response(to_json(self._monitor.state()))

    async def exposition(self, request: web.Request) -> web.Response:
        """Metrics for Prometheus."""
        from aiohttp import web

        body, content_type = self._metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def healthz(self, request: web.Request) -> web.Response:
        """Always ok: an answer proves that the event loop runs."""
        from aiohttp import web

        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        """Whether the model can answer a request now."""
        from aiohttp import web

        ready, text = self._monitor.readiness()
        return web.Response(text=f"{text}\n", status=200 if ready else 503)

    async def sensing(self, request: web.Request) -> web.Response:
        """The state of nodes that sense."""
        from aiohttp import web

        return web.json_response(to_json(self._hub.state()) if self._hub else {})

    async def answers(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: the last answers, and each further one."""
        from aiohttp import web

        if self._hub is None:
            raise web.HTTPNotFound(text="no node of this cluster senses\n")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **HEADERS})
        await response.prepare(request)
        with self._hub.watching(recent=True) as watcher, contextlib.suppress(ConnectionResetError):
            while (taken := await watcher.take())[0] is not None:
                assert taken[0] is not None
                event = json.dumps({**taken[0].to_json(), "skipped": taken[1]})
                await response.write(f"data: {event}\n\n".encode())
        return response
