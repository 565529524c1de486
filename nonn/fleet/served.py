"""One bundle as served by an aggregator process, and the model that forwards to the currently served bundle."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nonn.aggregator.batching import BatchConfig
from nonn.aggregator.events import Observer
from nonn.aggregator.membership.options import Joining, JoiningOptions
from nonn.aggregator.monitoring.options import Observing, ObservingOptions
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.sensing.hub import Hub, SensingOptions
from nonn.aggregator.sensing.servicer import SensingServicer
from nonn.aggregator.server import FusedModel
from nonn.aggregator.service import Aggregator
from nonn.answer import MODEL
from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.reliability.subsets import mask_of
from nonn.rpc.codec import Request
from nonn.rpc.endpoint import Endpoint, InferenceResult

__all__ = ["ServeOptions", "ServedBundle", "ServedModel"]


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of ``nonn serve`` that concern one bundle.

    Attributes:
        inventory: file of the initial nodes; None if all nodes join.
        joining: security and membership.
        observing: monitoring.
        policy: deadline, quorum and hedging.
        batching: limits of dynamic batching and of the queue.
        sensing: times and speed of nodes that sense.
    """

    inventory: Path | None
    joining: JoiningOptions
    observing: ObservingOptions
    policy: PolicyConfig
    batching: BatchConfig
    sensing: SensingOptions = field(default_factory=SensingOptions)


class ServedBundle:
    """An aggregator of one bundle with its security, membership and monitoring.

    Args:
        bundle: the bundle that its nodes run.
        options: options of the operator.
        observers: further observers of the aggregator.

    Raises:
        ConfigError: options contradict the bundle or the inventory.
        CredentialsError: a file of certificates or tokens cannot be used.
    """

    def __init__(self, bundle: Bundle, options: ServeOptions, observers: Sequence[Observer] = ()) -> None:
        self.bundle = bundle
        self.joining = Joining(options.joining)
        nodes = self.joining.inventory(options.inventory, bundle.num_devices)
        num_served = len({node.student for node in nodes})
        if not options.joining.joins and options.policy.quorum > num_served:
            raise ConfigError(
                f"quorum = {options.policy.quorum}: the inventory has nodes for only {num_served} students"
            )
        self.observing = Observing(bundle, options.observing)
        self.aggregator = Aggregator(
            bundle,
            nodes,
            options.policy,
            observers=[*self.observing.observers, *observers],
            connect=self.observing.connect(self.joining.connect(bundle)),
        )
        # At once: a bundle is served from the switch on, and asked for its state before it is watched.
        self.observing.monitor.attach(self.aggregator)
        self.model = FusedModel(
            self.aggregator, self.observing.monitor.state, options.batching, self.observing.answered
        )
        self.servicer = self.joining.servicer(self.aggregator)
        # Only nodes that join sense, and only of a bundle that says what.
        senses = options.joining.joins and bundle.manifest.sensing is not None
        self.hub = Hub(self.aggregator, options.sensing) if senses else None
        self.sensing = SensingServicer(self.hub, self.servicer.holder) if self.hub else None

    def watching(self, endpoint: Endpoint) -> contextlib.AbstractAsyncContextManager[str | None]:
        """Runs monitor, dashboard, metrics and inference over HTTP during the block.

        Args:
            endpoint: the model as it is served over gRPC.

        Yields:
            The address of HTTP; None without it.
        """
        return self.observing.watching(self.aggregator, self.joining.guard, self.hub, endpoint)

    def options(self) -> dict[str, Any]:
        """Arguments of ``nonn.rpc.server.serve``."""
        keys = self.joining.options(self.aggregator, self.servicer) | {"interceptors": self.observing.interceptors}
        if (hub := self.hub) is None or (sensing := self.sensing) is None:
            return keys
        attend = keys["attend"]

        @contextlib.asynccontextmanager
        async def both(address: str, end: Callable[[], None]) -> AsyncIterator[None]:
            async with attend(address, end), hub.attend(end):
                yield

        return keys | {"attend": both, "services": [*keys["services"], sensing.add_to]}

    def accuracy(self, without: str = "") -> float:
        """Accuracy of the nodes that would answer now, without one of them."""
        students = {student for node, student in self.up().items() if node != without}
        return self.aggregator.policy.accuracy[mask_of(students)]

    def up(self) -> dict[str, int]:
        """Student of each node that runs this bundle and whose last answer was good."""
        policy, leases = self.aggregator.policy, self.servicer.membership.leases
        return {
            node.id: node.student
            for node in self.aggregator.nodes
            if policy.state(node.id) == "up"
            and node.id in leases
            and leases[node.id].request.bundle == self.bundle.hash
        }


class ServedModel:
    """The model of the currently served bundle; requests under way keep the bundle that they started with.

    Args:
        first: the bundle that is served first.
    """

    def __init__(self, first: ServedBundle) -> None:
        self.name, self.max_request_bytes = MODEL, first.model.max_request_bytes
        self._current = first
        self._switched = asyncio.Event()
        self._under_way: dict[ServedBundle, int] = {}
        self._ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def switch(self, served: ServedBundle) -> None:
        """Serves another bundle from the next request on."""
        self._current = served
        self._switched.set()
        self._switched = asyncio.Event()

    @property
    def version(self) -> str:
        """That of the served bundle."""
        return self._current.model.version

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now."""
        return self._current.model.ready

    async def readiness(self) -> AsyncIterator[bool]:
        """``ready`` now and again at every change."""
        while True:
            switched = self._switched
            flip = asyncio.ensure_future(switched.wait())
            try:
                async with contextlib.aclosing(self._current.model.readiness()) as states:  # type: ignore[type-var]
                    while not switched.is_set():
                        change = asyncio.ensure_future(anext(states))
                        try:
                            await asyncio.wait({change, flip}, return_when=asyncio.FIRST_COMPLETED)
                            if change.done():
                                yield change.result()
                        finally:
                            change.cancel()
                            await asyncio.gather(change, return_exceptions=True)
            finally:
                flip.cancel()

    def metadata(self) -> Any:
        """That of the served bundle."""
        return self._current.model.metadata()

    async def infer(self, request: Request, remaining_s: float | None) -> InferenceResult:
        """Answers from one bundle; raises as ``FusedModel.infer`` does."""
        served = self._current
        self._under_way[served] = self._under_way.get(served, 0) + 1
        try:
            return await served.model.infer(request, remaining_s)
        finally:
            self._under_way[served] -= 1
            if not self._under_way[served]:
                del self._under_way[served]
                self._ended.set()

    async def finished(self, served: ServedBundle) -> None:
        """Waits for the requests of a bundle that is no longer served; each ends by its deadline."""
        while served in self._under_way:
            self._ended.clear()
            await self._ended.wait()
