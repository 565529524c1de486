"""The six calls of the Open Inference Protocol for one model, and the interface of a model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import grpc
from google.protobuf.message import DecodeError

from nonn import __version__
from nonn.errors import DataLossError, OverloadError, UnreachableError
from nonn.rpc.budget import MAX_HELD_BYTES, ByteBudget
from nonn.rpc.codec import Request, write_response
from nonn.rpc.registration import add_servicer, unreadable
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import Array, Parameter, Status, to_status

__all__ = ["InferenceServicer", "Model", "Result"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The answer of a model.

    Attributes:
        outputs: arrays by name.
        parameters: response parameters.
    """

    outputs: Mapping[str, Array]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


class Model(Protocol):
    """A model that can be served; a context manager, entered before the first request and exited after the last.

    Attributes:
        name: its name in requests.
        max_request_bytes: the largest message that it accepts; gRPC refuses a larger one unread.
    """

    name: str
    max_request_bytes: int

    @property
    def version(self) -> str:
        """Its version in requests, which is optional there; changes when another bundle is served."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def ready(self) -> bool:
        """Whether the model can answer a request now."""
        ...

    def readiness(self) -> AsyncIterator[bool]:
        """Yields ``ready`` now and after every change."""
        ...

    def metadata(self) -> Any:
        """The ModelMetadataResponse."""
        ...

    async def infer(self, request: Request, remaining_s: float | None) -> Result:
        """Answers a request.

        Args:
            request: model name and version are already checked.
            remaining_s: time until the client's deadline; None if it has none.

        Raises:
            NonnError: becomes the gRPC status of the call.
        """
        ...


class InferenceServicer(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The six calls of the protocol, for one model.

    Args:
        model: the model.
        max_held_bytes: bytes of all inference requests under way.
    """

    def __init__(self, model: Model, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self._model = model
        self._budget = ByteBudget(max_held_bytes, getattr(model, "max_request_bytes", 0))
        self._in_flight = 0
        self._draining, self._idle = False, asyncio.Event()

    def add_to(self, server: Any) -> None:
        """Adds the service to a server that has not been started."""
        service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        add_servicer(server, service, self, raw={"ModelInfer"})

    async def drain(self) -> None:
        """Refuses new requests from now on and waits until the requests in flight are answered."""
        self._draining = True
        if self._in_flight:
            await self._idle.wait()

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Always true: the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Whether the model can answer a request now."""
        return pb.ServerReadyResponse(ready=self._model.ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The same, for the server's only model."""
        await self._check_model(request.name, request.version, context)
        return pb.ModelReadyResponse(ready=self._model.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Name and version of the server."""
        return pb.ServerMetadataResponse(name="nonn", version=__version__, extensions=[])

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Tensors and properties of the model."""
        await self._check_model(request.name, request.version, context)
        return self._model.metadata()

    async def ModelInfer(self, raw: bytes, context: Any) -> Any:  # noqa: N802
        """One batch in, one answer out, both as bytes."""
        num_bytes, response, failure = len(raw), b"", None
        try:
            self._budget.take(num_bytes)  # before parsing, which copies
        except OverloadError as exc:
            failure = to_status(exc)
        if failure is None:
            try:
                response, failure = await self._answer(raw, context)
            finally:
                self._budget.give(num_bytes)
        # gRPC keeps the error of an aborted call, and with it this frame, until the next collection of cycles.
        del raw
        if failure is not None:
            await context.abort(*failure)
        return response

    async def _answer(self, raw: bytes, context: Any) -> tuple[bytes, Status | None]:
        """The response to a request, or the status of its failure."""
        try:
            request = Request.parse(raw, self._model.name)
        except DecodeError:
            return b"", unreadable(raw, "ModelInferRequest")
        except DataLossError as exc:
            return b"", to_status(exc)
        if not self._is_meant(request.model_name, request.model_version):
            return b"", self._other_model(request.model_name, request.model_version)
        self._in_flight += 1
        try:
            if self._draining:
                raise UnreachableError(f"{self._model.name} is shutting down and accepts no requests; try again later")
            request.caller = context.peer()
            version = self._model.version  # may change while the answer is computed
            result = await self._model.infer(request, context.time_remaining())
            return write_response(self._model.name, version, request, result.outputs, result.parameters), None
        except Exception as exc:
            status = to_status(exc)
            if status[0] is grpc.StatusCode.INTERNAL:
                _log.exception("%s: request failed", self._model.name)
            return b"", status
        finally:
            self._in_flight -= 1
            if not self._in_flight and self._draining:
                self._idle.set()

    def _is_meant(self, name: str, version: str) -> bool:
        """Whether a request is for this server's model."""
        return name == self._model.name and (not version or version == self._model.version)

    async def _check_model(self, name: str, version: str, context: Any) -> None:
        """Aborts the call if it is for another model."""
        if not self._is_meant(name, version):
            await context.abort(*self._other_model(name, version))

    def _other_model(self, name: str, version: str) -> Status:
        """Status of a call that is for another model."""
        asked = f"'{name}'" + (f" version '{version}'" if version else "")
        here = f"'{self._model.name}' version '{self._model.version}'"
        return grpc.StatusCode.NOT_FOUND, f"no model {asked} here; this server has {here}", ()
