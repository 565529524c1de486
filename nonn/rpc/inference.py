"""The six calls of the Open Inference Protocol over gRPC, for one model."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from nonn import __version__
from nonn.errors import NonnError, OverloadError
from nonn.rpc.codec import Request, write_response
from nonn.rpc.endpoint import Endpoint, InferenceResult
from nonn.rpc.guard import Guard, sender
from nonn.rpc.registration import add_servicer, unreadable
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import Status, to_status

__all__ = ["InferenceServicer"]


class InferenceServicer(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The six calls of the protocol, for one model.

    Args:
        endpoint: the model, with its limits.
        guard: of the server, which identifies callers with TLS.
    """

    def __init__(self, endpoint: Endpoint, guard: Guard | None = None) -> None:
        self._endpoint, self._model, self._guard = endpoint, endpoint.model, guard

    def add_to(self, server: Any) -> None:
        """Adds the service to a server that has not been started."""
        service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        add_servicer(server, service, self, raw={"ModelInfer"})

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Always true: the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Whether the model can answer a request now."""
        return pb.ServerReadyResponse(ready=self._endpoint.ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The same, for the server's only model."""
        await self._check_model(request.name, request.version, context)
        return pb.ModelReadyResponse(ready=self._endpoint.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Name and version of the server."""
        return pb.ServerMetadataResponse(name="nonn", version=__version__, extensions=[])

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Tensors and properties of the model."""
        await self._check_model(request.name, request.version, context)
        return self._model.metadata()

    async def ModelInfer(self, raw: bytes, context: Any) -> Any:  # noqa: N802
        """One batch in, one answer out, both as bytes."""
        response, failure = None, None
        try:
            caller = sender(context, self._guard)
        except NonnError as exc:
            failure = to_status(exc)
        else:
            response, failure = await self.respond(raw, caller, context.peer(), context.time_remaining())
        # gRPC keeps the error of an aborted call, and with it this frame, until the next collection of cycles.
        del raw
        if failure is not None:
            await context.abort(*failure)
        return response

    async def respond(
        self, raw: bytes, caller: str, connection: str, remaining_s: float | None
    ) -> tuple[bytes | None, Status | None]:
        """The response to a request, or the status of its failure; the other one is None.

        Args:
            raw: a serialised ModelInferRequest.
            caller: certificate's identity or network address of its sender.
            connection: of the caller.
            remaining_s: time until the client's deadline; None if it has none.
        """
        num_bytes, budget = len(raw), self._endpoint.budget
        try:
            budget.take(num_bytes)  # before parsing, which copies
        except OverloadError as exc:
            return None, to_status(exc)
        try:
            return await self._answer(raw, caller, connection, remaining_s)
        finally:
            budget.give(num_bytes)

    async def _answer(
        self, raw: bytes, caller: str, connection: str, remaining_s: float | None
    ) -> tuple[bytes | None, Status | None]:
        """Parses a request and answers it."""
        try:
            request = Request.parse(raw, self._model.name)
        except DecodeError:
            return None, unreadable(raw, "ModelInferRequest")
        except NonnError as exc:
            return None, to_status(exc)

        request.caller, request.connection = caller, connection

        def write(version: str, result: InferenceResult) -> bytes:
            return write_response(self._model.name, version, request, result.outputs, result.parameters)

        return await self._endpoint.infer(request, remaining_s, write)

    async def _check_model(self, name: str, version: str, context: Any) -> None:
        """Aborts the call if it is for another model."""
        if (other := self._endpoint.other_model(name, version)) is not None:
            await context.abort(*other)
