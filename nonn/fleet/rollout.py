"""Rolling updates inside the aggregator: carries out the steps of ``nonn.fleet.plan``.

A node is moved by ending its lease: its next heartbeat fails, it registers again, and gets the student of the same
number in the other bundle. Until it is back with that student it serves no client. Each bundle has a separate
aggregator, so answers of different bundles are never fused.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from nonn.bundle import Bundle
from nonn.errors import ConfigError, MembershipError, UnreachableError
from nonn.fleet.plan import Blocked, Done, Situation, Switch, next_step
from nonn.fleet.served import ServedBundle, ServedModel, ServeOptions
from nonn.fleet.state import State
from nonn.rpc.registration import add_servicer
from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.rpc.wire import to_status

__all__ = ["Rollout"]

LOOK_S = 0.05  # time between checks whether nodes are back

_log = logging.getLogger(__name__)


class Rollout:
    """The bundles of one aggregator process, and which node runs which.

    Args:
        state: folder with the bundles.
        first: the bundle that is served at the start.
        options: options of every bundle; all nodes join.
    """

    def __init__(self, state: State, first: Bundle, options: ServeOptions) -> None:
        self._state, self._options = state, options
        self.served, self.other = ServedBundle(first, options), None
        self.model = ServedModel(self.served)
        self.http: str | None = None
        self._on_other: set[str] = set()  # nodes that should run the other bundle
        self._drained = set(state.read().drained)
        self._open: dict[ServedBundle, contextlib.AsyncExitStack] = {}
        self._end: Callable[[], object] = lambda: None
        self._watching = contextlib.AsyncExitStack()
        self._busy = asyncio.Lock()
        self._recording = asyncio.Lock()  # one change of the state folder at a time

    other: ServedBundle | None

    def add_to(self, server: Any) -> Any:
        """Adds the service with which nodes join to a server; returns the descriptor of its .proto file."""
        add_servicer(server, pb.DESCRIPTOR.services_by_name["Fleet"], self)
        return pb.DESCRIPTOR

    @contextlib.asynccontextmanager
    async def running(self, end: Callable[[], object]) -> AsyncIterator[None]:
        """Runs the aggregators while the block runs; calls ``end`` when one of them cannot go on."""
        self._end = end
        try:
            await self._start(self.served)
            await self._watch()
            yield
        finally:
            for served in tuple(self._open):
                await self._close(served)
            await self._watching.aclose()

    # Methods that nodes call: each call goes to the aggregator of the node.

    async def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Gives a lease for the bundle that the node should run."""
        if request.node in self._drained:
            error = UnreachableError(f"node '{request.node}' is drained; put it back with: nonn fleet drain --undo")
            await context.abort(*to_status(error))
        served = self.other if self.other and request.node in self._on_other else self.served
        return await served.servicer.Register(request, context)

    async def Heartbeat(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Renews a lease."""
        return await self._holding(request.lease).servicer.Heartbeat(request, context)

    async def Drain(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Takes out a node that leaves."""
        return await self._holding(request.lease).servicer.Drain(request, context)

    async def GetArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Streams a file."""
        async for chunk in self._holding(request.lease).servicer.GetArtifact(request, context):
            yield chunk

    async def Work(self, replies: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Sends requests to a node that dialled in."""
        first = await anext(aiter(replies), None)
        served = self._holding(first.lease if first is not None else "")

        async def again() -> AsyncIterator[Any]:
            if first is not None:
                yield first
            async for reply in replies:
                yield reply

        async for request in served.servicer.Work(again(), context):
            yield request

    def _holding(self, lease: str) -> ServedBundle:
        """The aggregator that gave a lease."""
        if self.other is not None and self.other.servicer.membership.find(lease) is not None:
            return self.other
        return self.served

    # Methods that the operator calls.

    def status(self) -> dict[str, Any]:
        """Bundles and nodes as they are now."""
        served = [each for each in (self.served, self.other) if each is not None]
        nodes = [node for each in served for node in _nodes(each)]
        listed = {node["node"] for node in nodes}
        nodes += [{"node": node, "state": "drained"} for node in self._drained - listed]
        return {
            "bundles": [_bundle(each, served=each is self.served) for each in served],
            "nodes": sorted(nodes, key=lambda node: str(node["node"])),
            "previous": self._state.read().previous,
        }

    async def roll(self, bundle: str, floor: float, wait_s: float) -> AsyncIterator[dict[str, Any]]:
        """Moves the fleet to a bundle of the state folder, and yields each step.

        Args:
            bundle: its hash; empty for the previous one.
            floor: lowest accuracy of the served bundle, in [0, 1].
            wait_s: how long a node may take to come back.

        Raises:
            ConfigError: the bundle does not fit, or the floor cannot be kept.
            MembershipError: a node did not come back.
        """
        if self._busy.locked():
            raise ConfigError("another push or rollback is running; wait for it, or stop it with Ctrl-C")
        async with self._busy:
            if not bundle:  # during a push, back to the served bundle; otherwise to the previous one
                bundle = self.served.bundle.hash if self.other else self._state.read().previous
            async for said in self._roll(self._state.load(bundle), floor, wait_s):
                _log.info("%s", said["text"])
                yield said

    async def _roll(self, target: Bundle, floor: float, wait_s: float) -> AsyncIterator[dict[str, Any]]:
        steps = self._go_back(wait_s) if target.hash == self.served.bundle.hash else self._go_on(target, floor, wait_s)
        async for said in steps:
            yield said
        yield _said("done", f"bundle {target.hash[:12]} is served by {len(self.served.up())} nodes")

    async def _go_back(self, wait_s: float) -> AsyncIterator[dict[str, Any]]:
        """Moves the nodes of the other bundle, which serve no client, to the served one."""
        if self.other is not None:
            moved = await self._retire(self.other)
            yield _said("move", f"{_names(moved)} to the served bundle {self.served.bundle.hash[:12]}", nodes=moved)
            await self._until_back(self.served, moved, wait_s)

    async def _go_on(self, target: Bundle, floor: float, wait_s: float) -> AsyncIterator[dict[str, Any]]:
        """Moves nodes to another bundle step by step, and serves it as soon as it reaches the floor."""
        await self._open_other(target)
        while not isinstance(step := next_step(self._situation(floor)), Done):
            assert self.other is not None
            if isinstance(step, Blocked):
                if not self.other.servicer.membership.leases:  # nothing has moved, so nothing must be undone
                    await self._retire(self.other)
                raise ConfigError(f"{step.reason}; bundle {self.served.bundle.hash[:12]} is still served")
            if isinstance(step, Switch):
                async for said in self._switch(wait_s):
                    yield said
                return
            yield _said("move", f"{_names(step.nodes)} to bundle {target.hash[:12]}", nodes=step.nodes)
            await self._move(step.nodes, wait_s)
            yield _said(
                "back",
                f"{_names(step.nodes)} back; served {self.served.accuracy():.2%}, next {self.other.accuracy():.2%}",
                served=self.served.accuracy(),
            )

    async def _switch(self, wait_s: float) -> AsyncIterator[dict[str, Any]]:
        """Serves the other bundle from the next request on, and moves the remaining nodes to it."""
        assert self.other is not None
        old, new = self.served, self.other
        self.model.switch(new)
        self.served, self.other = new, old
        async with self._recording:
            await asyncio.to_thread(self._state.served, new.bundle.hash, old.bundle.hash)
        await self.model.finished(old)  # their nodes must stay until then
        moved = await self._retire(old)
        await self._watching.aclose()
        await self._watch()
        accuracy = self.served.accuracy()
        yield _said("switch", f"bundle {new.bundle.hash[:12]} is served: {accuracy:.2%}", served=accuracy)
        if moved:
            yield _said("move", f"{_names(moved)}, which no longer served clients", nodes=moved)
        await self._until_back(self.served, moved, wait_s)

    async def drain(self, node: str, floor: float, *, undo: bool) -> dict[str, Any]:
        """Takes a node out and keeps it out, or puts it back.

        Raises:
            ConfigError: the node does not exist, or without it the accuracy would fall below the floor.
        """
        if undo:
            if node not in self._drained:
                raise ConfigError(f"node '{node}' is not drained; nonn fleet status lists drained nodes")
            await self._record_drained(node, out=False)
            return _said("done", f"node {node} may join again; it tries at least every 1.5 s")
        both = (self.served, self.other)
        holding = next((each for each in both if each and node in each.servicer.membership.leases), None)
        if holding is None:
            raise ConfigError(f"no node '{node}' in the cluster; nonn fleet status lists them")
        left = {other: student for other, student in self.served.up().items() if other != node}
        accuracy = self.served.aggregator.policy.accuracy[sum({1 << student for student in left.values()})]
        if holding is self.served and accuracy < floor:
            raise ConfigError(
                f"without node '{node}' the accuracy would be {accuracy:.2%}, below the floor of {floor:.2%}; bring "
                "another node in first, or choose a lower --floor"
            )
        await self._record_drained(node, out=True)
        await holding.servicer.release(node, "is drained")
        return _said("done", f"node {node} is drained; served {self.served.accuracy():.2%}")

    async def _record_drained(self, node: str, *, out: bool) -> None:
        """Records that a node is drained or no longer, here and for the next start."""
        async with self._recording:
            nodes = self._drained | {node} if out else self._drained - {node}
            await asyncio.to_thread(self._state.drained, sorted(nodes))
            self._drained = nodes

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
        """Starts the aggregator of the target bundle, unless an earlier push has."""
        if self.other is not None:
            if self.other.bundle.hash == target.hash:
                return
            raise ConfigError(
                f"the fleet is moving to bundle {self.other.bundle.hash[:12]}; push that one again, or go back "
                "first: nonn fleet rollback"
            )
        ours = self.served.bundle.manifest
        if (target.manifest.input.shape, target.manifest.classes) != (ours.input.shape, ours.classes):
            raise ConfigError(
                f"bundle {target.hash[:12]} has input {list(target.manifest.input.shape)} and "
                f"{len(target.manifest.classes)} classes; the served one has input {list(ours.input.shape)} and "
                f"{len(ours.classes)} classes: it would break clients; serve it as a separate cluster"
            )
        other = ServedBundle(target, self._options)
        await self._start(other)
        self.other = other

    async def _move(self, nodes: tuple[str, ...], wait_s: float) -> None:
        """Gives nodes the other bundle and waits until they are back with it."""
        assert self.other is not None
        students = self.served.up()
        self._on_other |= set(nodes)
        for node in nodes:
            self.other.servicer.membership.reserve(node, students[node] % self.other.bundle.num_devices)
            await self.served.servicer.release(node, f"gets bundle {self.other.bundle.hash[:12]}")
        await self._until_back(self.other, nodes, wait_s)

    async def _until_back(self, served: ServedBundle, nodes: tuple[str, ...], wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                # The policy has no callbacks, so that the same object runs in virtual time; its state is polled.
                while not set(nodes) <= set(served.up()) | self._drained:  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            missing = tuple(sorted(set(nodes) - set(served.up())))
            raise MembershipError(
                f"{_names(missing)} did not come back with bundle {served.bundle.hash[:12]} within {wait_s:g} s; "
                f"bundle {self.served.bundle.hash[:12]} is served with {self.served.accuracy():.2%}. See its log "
                "(journalctl -u nonn-device), then push again, or: nonn fleet rollback"
            ) from None

    async def _retire(self, old: ServedBundle) -> tuple[str, ...]:
        """Moves the nodes of the other bundle to the served one and closes it; returns the nodes."""
        leases = old.servicer.membership.leases
        nodes = tuple(sorted(leases))
        for node in nodes:
            self.served.servicer.membership.reserve(node, leases[node].student % self.served.bundle.num_devices)
        self._on_other.clear()
        for node in nodes:
            await old.servicer.release(node, f"gets bundle {self.served.bundle.hash[:12]}")
        self.other = None
        await self._close(old)
        return nodes

    async def _start(self, served: ServedBundle) -> None:
        stack = contextlib.AsyncExitStack()
        await stack.enter_async_context(served.model)
        await stack.enter_async_context(served.options()["attend"]("", self._end))
        self._open[served] = stack

    async def _close(self, served: ServedBundle) -> None:
        await self._open.pop(served).aclose()

    async def _watch(self) -> None:
        """Starts dashboard and metrics of the served bundle."""
        self.http = await self._watching.enter_async_context(self.served.watching())
        if self.http:  # the next one uses the same port
            port = int(self.http.rpartition(":")[2])
            observing = dataclasses.replace(self._options.observing, http_port=port)
            self._options = dataclasses.replace(self._options, observing=observing)


def _bundle(of: ServedBundle, *, served: bool) -> dict[str, Any]:
    """One bundle of ``status``."""
    return {
        "bundle": of.bundle.hash,
        "experiment": of.bundle.manifest.experiment,
        "served": served,
        "students": len(set(of.up().values())),
        "devices": of.bundle.num_devices,
        "accuracy": of.accuracy(),
        "accuracy_of_all": of.aggregator.policy.accuracy[-1],
    }


def _nodes(of: ServedBundle) -> list[dict[str, Any]]:
    """The nodes of ``status`` that have a lease of one bundle."""
    policy, up, nodes = of.aggregator.policy, of.up(), []
    for lease in of.servicer.membership.leases.values():
        node = lease.request
        known = node.node in policy.nodes
        nodes.append(
            {
                "node": node.node,
                "bundle": of.bundle.hash,
                "student": lease.student,
                "state": "up" if node.node in up else policy.state(node.node) if known else "fetching",
                "address": "dials out" if node.dials_out else node.address,
                "version": node.version,
                "runtime": node.runtime,
                "machine": node.machine,
                "rss_bytes": lease.rss_bytes,
            }
        )
    return nodes


def _names(nodes: tuple[str, ...]) -> str:
    return ("node " if len(nodes) == 1 else "nodes ") + ", ".join(nodes)


def _said(event: str, text: str, **more: Any) -> dict[str, Any]:
    return {"event": event, "text": text, **more}
