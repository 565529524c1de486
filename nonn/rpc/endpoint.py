"""One model as a server offers it: whatever transport brings a request, the same checks, limits and shutdown apply.

gRPC (``nonn.rpc.inference``) and HTTP (``nonn.aggregator.http``) share one ``Endpoint``, so they share the budget of
bytes and the count of requests in flight, and give the same answers and errors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc

from nonn.errors import UnreachableError
from nonn.rpc.budget import MAX_HELD_BYTES, ByteBudget
from nonn.rpc.codec import Request
from nonn.rpc.wire import Array, Parameter, Status, to_status

__all__ = ["Endpoint", "InferenceResult", "Model"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True)
class InferenceResult:
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

    async def infer(self, request: Request, remaining_s: float | None) -> InferenceResult:
        """Answers a request.

        Args:
            request: model name and version are already checked.
            remaining_s: time until the client's deadline; None if it has none.

        Raises:
            NonnError: becomes the gRPC status of the call.
        """
        ...


class Endpoint:
    """A model with its budget of bytes and its requests in flight.

    Args:
        model: the model.
        max_held_bytes: bytes of all inference requests under way.
        opened: whether requests are accepted from the start.

    Attributes:
        model: the model.
        budget: counts the bytes of requests; the code that reads a request takes and gives them.
        arriving: counts the bytes of bodies that are not complete, so that slow senders hold nothing of ``budget``.
        opened: requests are refused while it is false: the server starts.
    """

    def __init__(self, model: Model, max_held_bytes: int = MAX_HELD_BYTES, *, opened: bool = True) -> None:
        self.model, self.opened = model, opened
        largest = model.max_request_bytes
        self.budget, self.arriving = ByteBudget(max_held_bytes, largest), ByteBudget(max_held_bytes, largest)
        self._in_flight = 0
        self._draining, self._idle, self._drained = False, asyncio.Event(), asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now."""
        return self.opened and not self._draining and self.model.ready

    async def drain(self) -> None:
        """Refuses new requests from now on and waits until the requests in flight are answered."""
        self._draining = True
        if self._in_flight:
            await self._idle.wait()
        self._drained.set()

    async def drained(self) -> None:
        """Returns at shutdown, when the last request is answered."""
        await self._drained.wait()

    def other_model(self, name: str, version: str) -> Status | None:
        """Status of a call that is for another model; None if it is for this one. An empty version means any."""
        model = self.model
        if name == model.name and (not version or version == model.version):
            return None
        asked = f"'{name}'" + (f" version '{version}'" if version else "")
        here = f"'{model.name}' version '{model.version}'"
        return grpc.StatusCode.NOT_FOUND, f"no model {asked} here; this server has {here}", ()

    async def infer(
        self, request: Request, remaining_s: float | None, write: Callable[[str, InferenceResult], _T]
    ) -> tuple[_T | None, Status | None]:
        """The response to a request, or the status of its failure; the other one is None.

        Args:
            request: the request, with its caller.
            remaining_s: time until the client's deadline; None if it has none.
            write: makes the response from the model's version and its answer; its errors become the status too.
        """
        if (other := self.other_model(request.model_name, request.model_version)) is not None:
            return None, other
        self._in_flight += 1
        try:
            if self._draining or not self.opened:
                doing = "shutting down" if self._draining else "starting"
                raise UnreachableError(f"{self.model.name} is {doing} and accepts no requests; try again later")
            version = self.model.version  # may change while the answer is computed
            return write(version, await self.model.infer(request, remaining_s)), None
        except Exception as exc:
            status = to_status(exc)
            if status[0] is grpc.StatusCode.INTERNAL:
                _log.exception("%s: request failed", self.model.name)
            return None, status
        finally:
            self._in_flight -= 1
            if not self._in_flight and self._draining:
                self._idle.set()
