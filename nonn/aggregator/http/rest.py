"""The REST form of the Open Inference Protocol: the calls of ``nonn.rpc.inference`` as routes of HTTP.

Every request goes to the same ``Endpoint`` as those over gRPC: one budget, one batcher, one queue, the same checks.

The process stands still while JSON is parsed, and an answer needs some twenty turns of the event loop. Large bodies are
therefore parsed one at a time, with pauses: together they take at most a quarter of the time, whatever clients send.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from nonn import __version__
from nonn.aggregator.http.access import Access
from nonn.aggregator.http.bodies import RefusedError, answering, failed, reading
from nonn.rpc.endpoint import Endpoint, InferenceResult
from nonn.rpc.rest import MAX_JSON_BYTES, RestRequest, read_request, write_metadata

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["JSON_LENGTH", "Protocol"]

JSON_LENGTH = "Inference-Header-Content-Length"
LARGE_BYTES = 16 * 1024  # of JSON; less is parsed in a fraction of a millisecond
PAUSE = 3.0  # after a large body, times what it took
_RAW = "send values raw (binary_data_size), or fewer samples per request"


class Protocol:
    """The routes below ``/v2``, for one model.

    Args:
        endpoint: the served model.
        access: decides who may call.
    """

    def __init__(self, endpoint: Endpoint, access: Access) -> None:
        self._endpoint, self._model, self._access = endpoint, endpoint.model, access
        self._parsing = asyncio.Lock()

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds the routes."""
        model = "/v2/models/{model}"
        for path, handler in (
            ("/v2", self.server),
            ("/v2/", self.server),
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
            (model, self.metadata),
            (f"{model}/ready", self.model_ready),
            (f"{model}/versions/{{version}}", self.metadata),
            (f"{model}/versions/{{version}}/ready", self.model_ready),
        ):
            router.add_get(path, answering(handler))
        for path in (f"{model}/infer", f"{model}/versions/{{version}}/infer"):
            router.add_post(path, answering(self.infer))

    def close(self) -> None:
        """Does nothing: nothing is open."""

    async def live(self, request: web.Request) -> web.Response:
        """Always true: the process answers."""
        return _json({"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        """Whether the model can answer a request now; needs no token, as health over gRPC does not."""
        ready = self._endpoint.ready
        return _json({"ready": ready}, 200 if ready else 503)

    async def server(self, request: web.Request) -> web.Response:
        """Name, version and extensions of the server."""
        await self._access.check_caller(request)
        return _json({"name": "nonn", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def model_ready(self, request: web.Request) -> web.Response:
        """The same as ``ready``, for the server's only model."""
        if (refused := await self._refused(request)) is not None:
            return refused
        ready = self._endpoint.ready
        return _json({"name": self._model.name, "ready": ready}, 200 if ready else 503)

    async def metadata(self, request: web.Request) -> web.Response:
        """Tensors and properties of the model."""
        if (refused := await self._refused(request)) is not None:
            return refused
        return _json(write_metadata(self._model.metadata()))

    async def infer(self, request: web.Request) -> web.Response:
        """One batch in, one answer out."""
        caller = await self._access.check_caller(request)
        json_bytes = _json_length(request)
        limit = MAX_JSON_BYTES if json_bytes is None else MAX_JSON_BYTES + self._model.max_request_bytes
        async with reading(request, limit, self._endpoint, _RAW) as body:
            asked = await self._read(body, json_bytes, *_asked(request))
            del body
            asked.request.caller = caller

            def write(version: str, result: InferenceResult) -> tuple[bytes, int | None]:
                return asked.write(self._model.name, version, result)

            response, status = await self._endpoint.infer(asked.request, None, write)
        if response is None:
            assert status is not None
            return failed(status)
        return _body(*response)

    async def _read(self, body: bytes, json_bytes: int | None, model: str, version: str) -> RestRequest:
        """Parses a body, after others if it is large."""
        if (len(body) if json_bytes is None else json_bytes) <= LARGE_BYTES:
            return read_request(body, json_bytes, model, version)
        await self._parsing.acquire()
        started = time.perf_counter()
        try:
            return read_request(body, json_bytes, model, version)
        finally:
            pause_s = PAUSE * (time.perf_counter() - started)
            asyncio.get_running_loop().call_later(pause_s, self._parsing.release)

    async def _refused(self, request: web.Request) -> web.Response | None:
        """The response to a caller that may not ask, or asks for another model."""
        await self._access.check_caller(request)
        other = self._endpoint.other_model(*_asked(request))
        return None if other is None else failed(other)


def _asked(request: web.Request) -> tuple[str, str]:
    """Model and version in the path."""
    return request.match_info["model"], request.match_info.get("version", "")


def _json_length(request: web.Request) -> int | None:
    """Length of the JSON at the start of the body; None if it is all JSON.

    Raises:
        RefusedError: the headers are not those of a request for inference.
    """
    stated = request.headers.get(JSON_LENGTH)
    # tritonclient sends no type.
    if "Content-Type" in request.headers and request.content_type not in (
        "application/json",
        "application/octet-stream",
    ):
        raise RefusedError(415, f"Content-Type: {request.content_type!r}; send application/json")
    if stated is None:
        if request.content_type == "application/octet-stream" and "Content-Type" in request.headers:
            raise RefusedError(400, f"application/octet-stream needs the header {JSON_LENGTH}, the length of the JSON")
        return None
    if not (stated.isascii() and stated.isdecimal() and len(stated) < 10):
        raise RefusedError(400, f"{JSON_LENGTH}: must be a number of bytes")
    return int(stated)


def _json(body: object, status: int = 200) -> web.Response:
    from aiohttp import web

    return web.json_response(body, status=status)


def _body(body: bytes, json_bytes: int | None) -> web.Response:
    """A response of JSON, or of JSON and raw values."""
    from aiohttp import web

    if json_bytes is None:
        return web.Response(body=body, content_type="application/json")
    return web.Response(body=body, content_type="application/octet-stream", headers={JSON_LENGTH: str(json_bytes)})
