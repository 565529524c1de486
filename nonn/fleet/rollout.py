"""Rolling updates inside the aggregator: the steps of ``nonn.fleet.plan``, done.

To move a node is to end its lease: its next heartbeat finds that, it registers again, and is given the student of the
same number in the other bundle. Until it is back with that it serves nobody. Each bundle has an aggregator of its own,
so answers of different bundles never meet.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from nonn.aggregator.policy import PolicyConfig
from nonn.bundle import Bundle
from nonn.errors import ConfigError, MembershipError, UnreachableError
from nonn.fleet.plan import Blocked, Done, Move, Situation, Switch, next_step
from nonn.fleet.served import Deployment, ServedModel
from nonn.fleet.state import State
from nonn.rpc.registration import add_servicer
from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.rpc.wire import to_status

__all__ = ["Rollout"]

LOOK_S = 0.05  # how often it is looked whether nodes are back

_log = logging.getLogger(__name__)


class Rollout:
    """The bundles of one aggregator process, and which node runs which.

    Args:
        state: folder with the bundles.
        first: that is served at the start.
        args: the options of ``nonn serve``.
        policy: of every deployment.
    """

    def __init__(self, state: State, first: Bundle, args: argparse.Namespace, policy: PolicyConfig) -> None:
        self._state, self._args, self._policy = state, args, policy
        self.served, self.other = Deployment(first, args, policy), None
        self.model = ServedModel(self.served)
        self.http: str | None = None
        self._on_other: set[str] = set()  # nodes that are to run the other bundle
        self._drained: set[str] = set()
        self._open: dict[Deployment, contextlib.AsyncExitStack] = {}
        self._watching = contextlib.AsyncExitStack()
        self._busy = asyncio.Lock()

    other: Deployment | None

    def add_to(self, server: Any) -> Any:
        """Puts the service by which nodes join on a server; returns the descriptor of its .proto file."""
        add_servicer(server, pb.DESCRIPTOR.services_by_name["Fleet"], self)
        return pb.DESCRIPTOR

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs the deployments while the block does."""
        try:
            await self._start(self.served)
            await self._watch()
            yield
        finally:
            for deployment in tuple(self._open):
                await self._close(deployment)
            await self._watching.aclose()

    # What nodes call: each is passed on to the deployment that the node belongs to.

    async def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Gives a place with the bundle that the node is to run."""
        if request.node in self._drained:
            error = UnreachableError(f"node '{request.node}' is drained; let it in again: nonn fleet drain --undo")
            await context.abort(*to_status(error))
        deployment = self.other if self.other and request.node in self._on_other else self.served
        return await deployment.fleet.Register(request, context)

    async def Heartbeat(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Renews a lease."""
        return await self._holding(request.lease).fleet.Heartbeat(request, context)

    async def Drain(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Takes a node out that leaves."""
        return await self._holding(request.lease).fleet.Drain(request, context)

    async def GetArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Streams a file."""
        async for chunk in self._holding(request.lease).fleet.GetArtifact(request, context):
            yield chunk

    async def Work(self, replies: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Sends requests to a node that dialled in."""
        first = await anext(aiter(replies), None)
        deployment = self._holding(first.lease if first is not None else "")

        async def again() -> AsyncIterator[Any]:
            if first is not None:
                yield first
            async for reply in replies:
                yield reply

        async for request in deployment.fleet.Work(again(), context):
            yield request

    def _holding(self, lease: str) -> Deployment:
        """The deployment that gave a lease."""
        if self.other is not None and self.other.fleet.membership.find(lease) is not None:
            return self.other
        return self.served

    # What the operator calls.

    def status(self) -> dict[str, Any]:
        """Bundles and nodes as they are now."""
        bundles, nodes = [], []
        for deployment in (self.served, self.other):
            if deployment is None:
                continue
            policy, up = deployment.aggregator.policy, deployment.up()
            bundles.append(
                {
                    "bundle": deployment.bundle.hash,
                    "experiment": deployment.bundle.manifest.experiment,
                    "served": deployment is self.served,
                    "students": len(set(up.values())),
                    "devices": deployment.bundle.num_devices,
                    "accuracy": deployment.accuracy(),
                    "accuracy_of_all": deployment.aggregator.policy.accuracy[-1],
                }
            )
            for lease in deployment.fleet.membership.leases.values():
                told = lease.applicant
                known = told.node in policy.nodes
                nodes.append(
                    {
                        "node": told.node,
                        "bundle": deployment.bundle.hash,
                        "student": lease.student,
                        "state": "up" if told.node in up else policy.state(told.node) if known else "fetching",
                        "address": "dials out" if told.dials_out else told.address,
                        "version": told.version,
                        "runtime": told.runtime,
                        "machine": told.machine,
                        "rss_bytes": lease.rss_bytes,
                    }
                )
        listed = {node["node"] for node in nodes}
        nodes += [{"node": node, "state": "drained"} for node in self._drained - listed]
        previous = self._state.read("previous")
        return {"bundles": bundles, "nodes": sorted(nodes, key=lambda n: str(n["node"])), "previous": previous}

    async def roll(self, bundle: str, floor: float, wait_s: float) -> AsyncIterator[dict[str, Any]]:
        """Moves the fleet to a bundle of the state folder, and says each step.

        Args:
            bundle: its hash; empty for the one before.
            floor: accuracy, in [0, 1], that what is served keeps.
            wait_s: how long a node may take until it is back.

        Raises:
            ConfigError: the bundle does not fit, or the floor cannot be kept.
            MembershipError: a node did not come back.
        """
        if self._busy.locked():
            raise ConfigError("another push or rollback is running; wait for it, or end it with Ctrl-C")
        async with self._busy:
            if not bundle:  # in the middle of a push back to what is served still, else to what was before
                bundle = self.served.bundle.hash if self.other else self._state.read("previous")
            async for said in self._roll(self._state.load(bundle), floor, wait_s):
                _log.info("%s", said["text"])
                yield said

    async def _roll(self, target: Bundle, floor: float, wait_s: float) -> AsyncIterator[dict[str, Any]]:
        if target.hash == self.served.bundle.hash:
            if self.other is not None:  # what has moved serves nobody, or is left over: it comes back at once
                moved = await self._retire(self.other)
                yield _said("move", f"{_names(moved)} to bundle {target.hash[:12]}, which is served", nodes=moved)
                await self._until_back(self.served, moved, wait_s)
            yield _said("done", f"bundle {target.hash[:12]} is served by {len(self.served.up())} nodes")
            return
        await self._open_other(target)
        while True:
            assert self.other is not None
            step = next_step(self._situation(floor))
            if isinstance(step, Blocked):
                if not self.other.fleet.membership.leases:  # nothing has moved: nothing is to be undone
                    await self._retire(self.other)
                raise ConfigError(f"{step.reason}; bundle {self.served.bundle.hash[:12]} is still served")
            if isinstance(step, Done):
                break
            if isinstance(step, Switch):
                old = self.served
                self._switch()
                await self.model.finished(old)  # their nodes must not leave under them
                moved = await self._retire(old)
                await self._watching.aclose()
                await self._watch()
                accuracy = self.served.accuracy()
                yield _said("switch", f"bundle {target.hash[:12]} is served: {accuracy:.2%}", served=accuracy)
                if moved:
                    yield _said("move", f"{_names(moved)}, which served nobody any more", nodes=moved)
                await self._until_back(self.served, moved, wait_s)
                break
            assert isinstance(step, Move)
            yield _said("move", f"{_names(step.nodes)} to bundle {target.hash[:12]}", nodes=step.nodes)
            await self._move(step.nodes, wait_s)
            yield _said(
                "back",
                f"{_names(step.nodes)} back; served {self.served.accuracy():.2%}, next {self.other.accuracy():.2%}",
                served=self.served.accuracy(),
            )
        yield _said("done", f"bundle {target.hash[:12]} is served by {len(self.served.up())} nodes")

    async def drain(self, node: str, floor: float, *, undo: bool) -> dict[str, Any]:
        """Takes a node out and keeps it out, or lets it in again.

        Raises:
            ConfigError: there is no such node, or without it the accuracy would fall below the floor.
        """
        if undo:
            if node not in self._drained:
                raise ConfigError(f"node '{node}' is not drained; nonn fleet status lists those that are")
            self._drained.discard(node)
            return _said("done", f"node {node} may join again; it asks at least every 1.5 s")
        deployment = next(
            (d for d in (self.served, self.other) if d and node in d.fleet.membership.leases),
            None,
        )
        if deployment is None:
            raise ConfigError(f"there is no node '{node}' in the cluster; nonn fleet status lists them")
        left = {other: student for other, student in self.served.up().items() if other != node}
        accuracy = self.served.aggregator.policy.accuracy[sum({1 << student for student in left.values()})]
        if deployment is self.served and accuracy < floor:
            raise ConfigError(
                f"without node '{node}' the accuracy would be {accuracy:.2%}, below the floor of {floor:.2%}; bring "
                "another node in first, or give a lower --floor"
            )
        self._drained.add(node)
        await deployment.fleet.release(node, "is drained")
        return _said("done", f"node {node} is drained; served {self.served.accuracy():.2%}")

    def _situation(self, floor: float) -> Situation:
        assert self.other is not None
        on_old, num_new = self.served.up(), self.other.bundle.num_devices
        return Situation(
            old=self.served.bundle.table.accuracy,
            new=self.other.bundle.table.accuracy,
            on_old=on_old,
            on_new=self.other.up(),
            becomes={node: student % num_new for node, student in on_old.items()},
            floor=floor,
        )

    async def _open_other(self, target: Bundle) -> None:
        """Starts the deployment to move to, unless an earlier push has."""
        if self.other is not None:
            if self.other.bundle.hash == target.hash:
                return
            raise ConfigError(
                f"the fleet is on its way to bundle {self.other.bundle.hash[:12]}; push that one again, or go back "
                "first: nonn fleet rollback"
            )
        ours = self.served.bundle.manifest
        if (target.manifest.input.shape, target.manifest.classes) != (ours.input.shape, ours.classes):
            raise ConfigError(
                f"bundle {target.hash[:12]} takes {list(target.manifest.input.shape)} and knows "
                f"{len(target.manifest.classes)} classes; what is served takes {list(ours.input.shape)} and knows "
                f"{len(ours.classes)}: clients would not understand it; serve it as a cluster of its own"
            )
        other = Deployment(target, self._args, self._policy)
        await self._start(other)
        self.other = other

    async def _move(self, nodes: tuple[str, ...], wait_s: float) -> None:
        """Gives nodes the other bundle and waits until they are back with it."""
        assert self.other is not None
        students = self.served.up()
        self._on_other |= set(nodes)
        for node in nodes:
            self.other.fleet.membership.reserve(node, students[node] % self.other.bundle.num_devices)
            await self.served.fleet.release(node, f"gets bundle {self.other.bundle.hash[:12]}")
        await self._until_back(self.other, nodes, wait_s)

    async def _until_back(self, deployment: Deployment, nodes: tuple[str, ...], wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                # The policy has no callbacks, so that the same object runs in virtual time; its state is polled.
                while not set(nodes) <= set(deployment.up()) | self._drained:  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            missing = tuple(sorted(set(nodes) - set(deployment.up())))
            raise MembershipError(
                f"{_names(missing)} did not come back with bundle {deployment.bundle.hash[:12]} within {wait_s:g} s; "
                f"bundle {self.served.bundle.hash[:12]} is served with {self.served.accuracy():.2%}. See what the node "
                "says (journalctl -u nonn-device), then push again, or: nonn fleet rollback"
            ) from None

    def _switch(self) -> None:
        """Serves the other bundle from the next request on."""
        assert self.other is not None
        old, new = self.served, self.other
        self.model.switch(new)
        self.served, self.other = new, old
        self._state.served(new.bundle.hash, old.bundle.hash)

    async def _retire(self, old: Deployment) -> tuple[str, ...]:
        """Gives what runs the deployment that is not served the one that is, and ends it; returns the nodes."""
        leases = old.fleet.membership.leases
        nodes = tuple(sorted(leases))
        for node in nodes:
            self.served.fleet.membership.reserve(node, leases[node].student % self.served.bundle.num_devices)
        self._on_other.clear()
        for node in nodes:
            await old.fleet.release(node, f"gets bundle {self.served.bundle.hash[:12]}")
        self.other = None
        await self._close(old)
        return nodes

    async def _start(self, deployment: Deployment) -> None:
        stack = contextlib.AsyncExitStack()
        await stack.enter_async_context(deployment.model)
        await stack.enter_async_context(deployment.options()["attend"]("", lambda: None))
        self._open[deployment] = stack

    async def _close(self, deployment: Deployment) -> None:
        await self._open.pop(deployment).aclose()

    async def _watch(self) -> None:
        """Dashboard and metrics are of what is served."""
        watching = self.served.observing.watching(
            self.served.aggregator, insecure=self._args.insecure, tls=self.served.joining.tls
        )
        self.http = await self._watching.enter_async_context(watching)
        if self.http:
            self._args.http_port = int(self.http.rpartition(":")[2])  # the next one takes the same port


def _names(nodes: tuple[str, ...]) -> str:
    return ("node " if len(nodes) == 1 else "nodes ") + ", ".join(nodes)


def _said(event: str, text: str, **more: Any) -> dict[str, Any]:
    return {"event": event, "text": text, **more}
