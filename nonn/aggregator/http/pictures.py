"""Pictures that a page sends: prepared as in training, answered like any other request, as JSON for people.

The bundle's record of the preprocessing (``nonn.bundle.preprocess``) is applied by the code that ``nonn predict`` uses.
One picture is decoded at a time, in a separate thread: decoding takes up to a second, and the event loop must not wait.
The answer goes through the same ``Endpoint`` as every other.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from nonn.aggregator.http.access import Access
from nonn.aggregator.http.bodies import RefusedError, answering, failed, reading
from nonn.answer import Answer
from nonn.bundle import Bundle
from nonn.bundle.inputs import MAX_PIXELS, UPLOADED, InputReader
from nonn.rpc.codec import Request
from nonn.rpc.endpoint import Endpoint, InferenceResult
from nonn.rpc.wire import new_request

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["Pictures"]

MAX_BYTES = 16 * 1024 * 1024


class Pictures:
    """The routes ``/api/predict``, for one bundle.

    Args:
        endpoint: the served model.
        access: decides who may send pictures.
        bundle: the served bundle; if another one is served meanwhile, a picture is refused.
        switches: whether the page can switch devices.
    """

    def __init__(self, endpoint: Endpoint, access: Access, bundle: Bundle, *, switches: bool = False) -> None:
        self._endpoint, self._access, self._bundle = endpoint, access, bundle.hash
        self._switches = switches
        self._spec, self._classes = bundle.manifest.input, bundle.manifest.classes
        self._decoding = ThreadPoolExecutor(max_workers=1, thread_name_prefix="picture")

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds the routes."""
        router.add_get("/api/predict", answering(self.accepted))
        router.add_post("/api/predict", answering(self.predict))

    def close(self) -> None:
        """Ends the thread; pictures that wait are not decoded."""
        self._decoding.shutdown(wait=False, cancel_futures=True)

    async def accepted(self, request: web.Request) -> web.Response:
        """What the page offers: the pictures that the bundle accepts, what sending one needs, and switches."""
        from aiohttp import web

        shape = self._spec.shape
        images = self._spec.dtype == "uint8" and len(shape) == 3 and shape[0] in (1, 3)
        return web.json_response(
            {
                "images": images,
                "shape": list(shape),
                "sized": self._spec.preprocess.sized,
                "formats": list(UPLOADED),
                "max_bytes": MAX_BYTES,
                "max_pixels": MAX_PIXELS,
                "token": self._access.needs_token,
                "certificate": self._access.needs_certificate(request),
                "switches": self._switches,
            }
        )

    async def predict(self, request: web.Request) -> web.Response:
        """Answers one picture: the body is the file. ``?resize`` accepts other sizes than the training did."""
        from aiohttp import web

        caller, started = await self._access.check_caller(request), time.monotonic()
        if not request.content_type.startswith("image/"):
            # Also what no page of another site may send without being asked first.
            raise RefusedError(415, f"Content-Type: {request.content_type!r}; send a picture, such as image/png")
        steps = self._spec.preprocess
        reader = InputReader(
            self._spec.shape, self._spec.dtype, steps.resizing() if "resize" in request.query else steps
        )
        async with reading(request, MAX_BYTES, self._endpoint, "send a smaller picture") as body:
            loop = asyncio.get_running_loop()
            picture = await loop.run_in_executor(self._decoding, reader.upload, body, "the picture")
            del body
            asked = Request(
                new_request(self._endpoint.model.name, {"input": picture[None]}, {"nonn_bundle": self._bundle})
            )
            asked.caller = caller

            def write(version: str, result: InferenceResult) -> dict[str, Any]:
                answer = Answer.read(result.outputs, result.parameters, time.monotonic() - started)
                row = next(answer.rows(self._classes))
                return {**row, "devices": len(answer.answered), "latency_s": answer.latency_s}

            response, status = await self._endpoint.infer(asked, None, write)
        if response is None:
            assert status is not None
            return failed(status)
        return web.json_response(response)
