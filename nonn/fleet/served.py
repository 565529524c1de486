"""One bundle as an aggregator process serves it, and the model that stands for whichever bundle is served now."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from nonn.aggregator.batching import BatchConfig
from nonn.aggregator.membership.options import Joining
from nonn.aggregator.monitoring.options import Observing
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.server import FusedModel
from nonn.aggregator.service import Aggregator
from nonn.answer import MODEL
from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.rpc.codec import Request
from nonn.rpc.server import Result

__all__ = ["Deployment", "ServedModel"]


class Deployment:
    """An aggregator of one bundle with all that belongs to it.

    Args:
        bundle: that its nodes run.
        args: the options of ``nonn serve``.
        policy: how it waits for nodes.

    Raises:
        ConfigError: options contradict each other or the bundle.
        CredentialsError: a file of certificates or tokens cannot be used.
    """

    def __init__(self, bundle: Bundle, args: argparse.Namespace, policy: PolicyConfig) -> None:
        self.bundle = bundle
        self.joining = Joining(args.tls, args.token_file, args.join_token_file, args.lease, joins=args.joins)
        nodes = self.joining.inventory(args.inventory, bundle.num_devices)
        served = len({node.student for node in nodes})
        if not args.joins and policy.quorum > served:
            raise ConfigError(f"quorum = {policy.quorum}: the inventory has nodes for only {served} students")
        self.observing = Observing(bundle, args)
        self.aggregator = Aggregator(
            bundle,
            nodes,
            policy,
            observers=self.observing.observers,
            connect=self.observing.connect(self.joining.connect(bundle)),
        )
        batching = BatchConfig(
            max_batch=args.max_batch,
            max_delay_s=args.max_delay_ms / 1e3,
            max_queue=args.max_queue,
            max_samples=args.max_samples,
        )
        self.model = FusedModel(self.aggregator, self.observing.monitor.state, batching, self.observing.answered)
        self.fleet = self.joining.fleet(self.aggregator)

    def options(self) -> dict[str, Any]:
        """Arguments of ``nonn.rpc.server.serve``."""
        return self.joining.options(self.aggregator, self.fleet) | {"interceptors": self.observing.interceptors}

    def accuracy(self) -> float:
        """Of the nodes that would answer now."""
        return self.aggregator.policy.accuracy[sum({1 << student for student in self.up().values()})]

    def up(self) -> dict[str, int]:
        """Student of each node that runs this bundle and whose last answer was good."""
        policy, leases = self.aggregator.policy, self.fleet.membership.leases
        return {
            node.id: node.student
            for node in self.aggregator.nodes
            if policy.state(node.id) == "up"
            and node.id in leases
            and leases[node.id].applicant.bundle == self.bundle.hash
        }


class ServedModel:
    """The model of the deployment that is served now; requests that are under way keep the one they began with.

    Args:
        deployment: that is served first.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.name, self.max_request_bytes = MODEL, deployment.model.max_request_bytes
        self.deployment = deployment
        self._switched = asyncio.Event()
        self._under_way: dict[Deployment, int] = {}
        self._ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def switch(self, deployment: Deployment) -> None:
        """From the next request on another one is served."""
        self.deployment = deployment
        self._switched.set()
        self._switched = asyncio.Event()

    @property
    def version(self) -> str:
        """Of the bundle that is served."""
        return self.deployment.model.version

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now."""
        return self.deployment.model.ready

    async def readiness(self) -> AsyncIterator[bool]:
        """``ready`` now and again at every change."""
        while True:
            switched = self._switched
            flip = asyncio.ensure_future(switched.wait())
            async with contextlib.aclosing(self.deployment.model.readiness()) as states:  # type: ignore[type-var]
                while not switched.is_set():
                    change = asyncio.ensure_future(anext(states))
                    try:
                        await asyncio.wait({change, flip}, return_when=asyncio.FIRST_COMPLETED)
                        if change.done():
                            yield change.result()
                    finally:
                        change.cancel()
                        await asyncio.gather(change, return_exceptions=True)
            flip.cancel()

    def metadata(self) -> Any:
        """Of the bundle that is served."""
        return self.deployment.model.metadata()

    async def infer(self, request: Request, remaining_s: float | None) -> Result:
        """Answers from one bundle; raises as ``FusedModel.infer`` does."""
        deployment = self.deployment
        self._under_way[deployment] = self._under_way.get(deployment, 0) + 1
        try:
            return await deployment.model.infer(request, remaining_s)
        finally:
            self._under_way[deployment] -= 1
            if not self._under_way[deployment]:
                del self._under_way[deployment]
                self._ended.set()

    async def finished(self, deployment: Deployment) -> None:
        """Waits for the requests of a deployment that is served no more; each ends by its deadline."""
        while deployment in self._under_way:
            self._ended.clear()
            await self._ended.wait()
