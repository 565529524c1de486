"""The calls of nodes to an aggregator with a state folder; each goes to the aggregator of the node's bundle."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from nonn.errors import ConfigError, DrainedError
from nonn.fleet.rollout import Rollout
from nonn.rpc.registration import add_servicer
from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.rpc.v1 import sensing_pb2
from nonn.rpc.wire import to_status

__all__ = ["FleetServicer"]


class FleetServicer:
    """The service with which nodes join.

    Args:
        rollout: decides which bundle each node runs.
    """

    def __init__(self, rollout: Rollout) -> None:
        self._rollout, self._bundles = rollout, rollout.bundles

    def add_to(self, server: Any) -> Any:
        """Adds the service with which nodes join to a server; returns the descriptor of its .proto file."""
        add_servicer(server, pb.DESCRIPTOR.services_by_name["Fleet"], self)
        return pb.DESCRIPTOR

    def add_sensing_to(self, server: Any) -> Any:
        """Adds the services of nodes that sense, and of watchers; returns the descriptor of their .proto file."""
        for name in ("Sensing", "Answers"):
            add_servicer(server, sensing_pb2.DESCRIPTOR.services_by_name[name], self)
        return sensing_pb2.DESCRIPTOR

    async def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Gives a lease for the bundle that the node should run."""
        if request.node in self._bundles.drained:
            error = DrainedError(f"node '{request.node}' is drained; put it back with: nonn fleet drain --undo")
            await context.abort(*to_status(error))
        response = await self._rollout.bundle_of(request).servicer.Register(request, context)
        if request.address or request.dials_out:
            self._rollout.prefer()
        response.moves = self._rollout.moves(request.node, arrived=request.bundle == response.bundle)
        return response

    async def Heartbeat(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Renews a lease."""
        return await self._bundles.holding(request.lease).servicer.Heartbeat(request, context)

    async def Drain(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Takes out a node that leaves."""
        holding = self._bundles.holding(request.lease)
        if (lease := holding.servicer.membership.find(request.lease)) is not None:
            self._rollout.prefer(leaving=lease.request.node)
        if holding is self._bundles.other:
            await self._bundles.model.finished(holding)  # requests that began before a switch need the node
        return await holding.servicer.Drain(request, context)

    async def GetArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Streams a file."""
        async for chunk in self._bundles.holding(request.lease).servicer.GetArtifact(request, context):
            yield chunk

    async def Work(self, replies: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Sends requests to a node that dialled in."""
        first = await anext(aiter(replies), None)
        served = self._bundles.holding(first.lease if first is not None else "")
        async for request in served.servicer.Work(_again(first, replies), context):
            yield request

    async def Publish(self, publications: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Takes the windows of a node, for the bundle that it runs."""
        first = await anext(aiter(publications), None)
        sensing = self._bundles.holding(first.opening.lease if first is not None else "").sensing
        if sensing is None:
            error = ConfigError("this node's bundle does not say what nodes measure; build it with a section [sensing]")
            await context.abort(*to_status(error))
            return
        async with contextlib.aclosing(sensing.Publish(_again(first, publications), context)) as directions:
            async for direction in directions:
                yield direction

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Streams answers of the bundle that is served; those of the next one after a switch."""
        while (hub := self._bundles.served.hub) is not None:
            with hub.watching() as watcher:
                while True:
                    answer, skipped = await watcher.take()
                    if answer is None:  # its bundle has ended
                        break
                    yield answer.to_message(skipped)
                    if self._bundles.served.hub is not hub:
                        break
            if self._bundles.served.hub is hub:
                return
        error = ConfigError("the served bundle does not say what nodes measure; build it with a section [sensing]")
        await context.abort(*to_status(error))


async def _again(first: Any, following: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """A stream whose first message has been read."""
    if first is not None:
        yield first
    async for message in following:
        yield message
