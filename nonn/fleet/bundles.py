"""Rolling updates inside the aggregator: carries out the steps of ``nonn.fleet.plan``.

A node is moved by ending its lease: its next heartbeat fails, it registers again, and gets the student of the same
number in the other bundle. Until it is back with that student it serves no client. Each bundle has a separate
aggregator, so answers of different bundles are never fused.

Of several aggregators with the same nodes, one leads an update and the others follow: they accept nodes of both
bundles, move none, and serve whichever bundle is more accurate, so they are never below the leader's floor. A node that
is moved registers with its leader last (``nonn_device.join``), so the leader's next step waits for the followers too.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from nonn.aggregator.monitoring.events import LateEvent, RequestEvent, StateEvent
from nonn.bundle import Bundle
from nonn.errors import ConfigError, DrainedError, MembershipError
from nonn.fleet.plan import Blocked, Done, Situation, Switch, next_step
from nonn.fleet.served import ServedBundle, ServedModel, ServeOptions
from nonn.fleet.state import State
from nonn.fleet.status import bundle_status, node_status
from nonn.rpc.background import Background
from nonn.rpc.budget import MAX_HELD_BYTES
from nonn.rpc.endpoint import Endpoint
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
        max_held_bytes: bytes of all inference requests under way.
    """

    def __init__(
        self, state: State, first: Bundle, options: ServeOptions, max_held_bytes: int = MAX_HELD_BYTES
    ) -> None:
        self._state, self._options = state, options
        record = state.read()
        self._quarantined = dict(record.quarantined)  # as it is on the disk
        self.served, self.other = self._make(first), None
        self.served.aggregator.expel(self._quarantined)
        self.model = ServedModel(self.served)
        self.endpoint = Endpoint(self.model, max_held_bytes, opened=False)
        self.http: str | None = None
        self._on_other: set[str] = set()  # nodes that should run the other bundle
        self._moving: set[str] = set()  # nodes that have been given another bundle and are not back yet
        self._following = ""  # bundle to which another aggregator moves the nodes
        self._tasks = Background()
        self._drained = set(record.drained)
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
            await self._tasks.close()
            for served in tuple(self._open):
                await self._close(served)
            await self._watching.aclose()

    # Methods that nodes call: each call goes to the aggregator of the node.

    async def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Gives a lease for the bundle that the node should run."""
        if request.node in self._drained:
            error = DrainedError(f"node '{request.node}' is drained; put it back with: nonn fleet drain --undo")
            await context.abort(*to_status(error))
        served = self.served
        if self.other and (request.node in self._on_other or request.bundle == self.other.bundle.hash):
            served = self.other
        response = await served.servicer.Register(request, context)
        if request.address or request.dials_out:
            self._prefer()
        if request.bundle == response.bundle:
            self._moving.discard(request.node)
        response.moves = request.node in self._moving
        return response

    async def Heartbeat(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Renews a lease."""
        return await self._holding(request.lease).servicer.Heartbeat(request, context)

    async def Drain(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Takes out a node that leaves."""
        holding = self._holding(request.lease)
        if (lease := holding.servicer.membership.find(request.lease)) is not None:
            self._prefer(leaving=lease.request.node)
        if holding is self.other:
            await self.model.finished(holding)  # requests that began before a switch need the node
        return await holding.servicer.Drain(request, context)

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
        nodes = [node for each in served for node in node_status(each)]
        listed = {node["node"] for node in nodes}
        nodes += [{"node": node, "state": "drained"} for node in self._drained - listed]
        return {
            "bundles": [bundle_status(each, served=each is self.served) for each in served],
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

    async def follow(self, bundle: str) -> dict[str, Any]:
        """Accepts nodes of another bundle too, to which another aggregator moves them.

        Args:
            bundle: its hash, in the state folder; that of the served bundle if an update is undone.

        Raises:
            ConfigError: the bundle does not fit, or an update is running.
        """
        if self._busy.locked():
            raise ConfigError("another push or rollback is running; wait for it, or stop it with Ctrl-C")
        async with self._busy:
            target = self._state.load(bundle)
            if target.hash != self.served.bundle.hash:
                await self._open_other(target)
            self._following = target.hash
            self._prefer()
        return _said("done", f"nodes of bundle {target.hash[:12]} are accepted")

    def _prefer(self, leaving: str = "") -> None:
        """A follower serves the bundle to which the fleet moves as soon as that is the more accurate one.

        Args:
            leaving: node that is about to leave.
        """
        other = self.other
        if other is None or other.bundle.hash != self._following or not other.up():
            return
        if other.accuracy(leaving) >= self.served.accuracy(leaving):
            self.model.switch(other)
            self.served, self.other = other, self.served
            self._tasks.start(self._switched(self.served, self.other), "switch of bundles")

    async def _switched(self, new: ServedBundle, old: ServedBundle) -> None:
        """Records that another bundle is served, and shows it in dashboard and metrics."""
        async with self._recording:
            self._quarantined = {}
            await asyncio.to_thread(self._state.served, new.bundle.hash, old.bundle.hash)
        self._note_quarantines()
        await self._watching.aclose()
        await self._watch()
        _log.info("bundle %.12s is served: %.2f%%", new.bundle.hash, 100 * new.accuracy())

    async def _roll(self, target: Bundle, floor: float, wait_s: float) -> AsyncIterator[dict[str, Any]]:
        # The nodes of a follower have been moved already, and come within a second or two. From now on it leads.
        patience_s, self._following = wait_s if self._following == target.hash else 0.0, ""
        if target.hash == self.served.bundle.hash:
            steps = self._go_back(wait_s)
        else:
            steps = self._go_on(target, floor, wait_s, patience_s)
        async for said in steps:
            yield said
        yield _said("done", f"bundle {target.hash[:12]} is served by {len(self.served.up())} nodes")

    async def _go_back(self, wait_s: float) -> AsyncIterator[dict[str, Any]]:
        """Moves the nodes of the other bundle, which serve no client, to the served one."""
        if self.other is not None:
            moved = await self._retire(self.other)
            if moved:
                text = f"{_names(moved)} to the served bundle {self.served.bundle.hash[:12]}"
                yield _said("move", text, nodes=moved)
            await self._until_back(self.served, moved, wait_s)

    async def _go_on(
        self, target: Bundle, floor: float, wait_s: float, patience_s: float
    ) -> AsyncIterator[dict[str, Any]]:
        """Moves nodes to another bundle step by step, and serves it as soon as it reaches the floor."""
        await self._open_other(target)
        clock = asyncio.get_running_loop().time
        patient_until = clock() + patience_s
        while not isinstance(step := next_step(self._situation(floor)), Done):
            assert self.other is not None
            if isinstance(step, Blocked):
                if clock() < patient_until:
                    await asyncio.sleep(LOOK_S)
                    continue
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
        await self._switched(new, old)
        moved = await self._retire(old)
        accuracy = self.served.accuracy()
        yield _said("switch", f"bundle {new.bundle.hash[:12]} is served: {accuracy:.2%}", served=accuracy)
        if moved:
            yield _said("move", f"{_names(moved)}, which no longer served clients", nodes=moved)
        await self._until_back(self.served, moved, wait_s)

    async def drain(self, node: str, floor: float, *, undo: bool, absent: bool = False) -> dict[str, Any]:
        """Takes a node out and keeps it out, or puts it back; what is so already stays as it is.

        Args:
            node: its id.
            floor: lowest accuracy allowed.
            undo: put it back.
            absent: the node need not be in the cluster now, or need not be drained if it is put back.

        Raises:
            ConfigError: the node does not exist, or without it the accuracy would fall below the floor.
        """
        if undo:
            if node not in self._drained and not absent:
                raise ConfigError(f"node '{node}' is not drained; nonn fleet status lists drained nodes")
            await self._record_drained(node, out=False)
            return _said("done", f"node {node} may join again; it tries at least every 1.5 s")
        both = (self.served, self.other)
        holding = next((each for each in both if each and node in each.servicer.membership.leases), None)
        if holding is None:
            if node not in self._drained and not absent:
                raise ConfigError(f"no node '{node}' in the cluster; nonn fleet status lists them")
            await self._record_drained(node, out=True)
            return _said("done", f"node {node} is drained; it is not in the cluster now")
        accuracy = self.served.accuracy(without=node)
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
        if self.other is not None and self.other.bundle.hash == target.hash:
            return
        if self.other is not None and not self.other.servicer.membership.leases:  # of an update that was followed
            await self._retire(self.other)
        if self.other is not None:
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
        other = self._make(target)
        await self._start(other)
        self.other = other

    async def _move(self, nodes: tuple[str, ...], wait_s: float) -> None:
        """Gives nodes the other bundle and waits until they are back with it."""
        assert self.other is not None
        students = self.served.up()
        self._on_other |= set(nodes)
        self._moving |= set(nodes)
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
        await self.model.finished(old)  # its nodes must stay until then
        leases = old.servicer.membership.leases
        nodes = tuple(sorted(leases))
        for node in nodes:
            self.served.servicer.membership.reserve(node, leases[node].student % self.served.bundle.num_devices)
        self._on_other.clear()
        self._moving |= set(nodes)
        for node in nodes:
            await old.servicer.release(node, f"gets bundle {self.served.bundle.hash[:12]}")
        self.other = None
        await self._close(old)
        return nodes

    def _make(self, bundle: Bundle) -> ServedBundle:
        return ServedBundle(bundle, self._options, [_OnState(self._note_quarantines)])

    def _note_quarantines(self) -> None:
        """Records which nodes of the served bundle are in quarantine, if that has changed."""
        found = self.served.aggregator.policy.quarantined()
        if found.keys() != self._quarantined.keys():
            self._quarantined = found
            self._tasks.start(self._record_quarantines(found), "record of quarantines")

    async def _record_quarantines(self, found: dict[str, int]) -> None:
        async with self._recording:
            await asyncio.to_thread(self._state.quarantined, found)

    async def _start(self, served: ServedBundle) -> None:
        stack = contextlib.AsyncExitStack()
        await stack.enter_async_context(served.model)
        await stack.enter_async_context(served.options()["attend"]("", self._end))
        self._open[served] = stack

    async def _close(self, served: ServedBundle) -> None:
        await self._open.pop(served).aclose()

    async def _watch(self) -> None:
        """Starts dashboard and metrics of the served bundle."""
        self.http = await self._watching.enter_async_context(self.served.watching(self.endpoint))
        if self.http:  # the next one uses the same port
            port = int(self.http.rpartition(":")[2])
            observing = dataclasses.replace(self._options.observing, http_port=port)
            self._options = dataclasses.replace(self._options, observing=observing)


class _OnState:
    """An observer that calls a function whenever the state of a node has changed."""

    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed

    def on_request(self, event: RequestEvent) -> None:
        """Ignores it."""

    def on_late(self, event: LateEvent) -> None:
        """Ignores it."""

    def on_state(self, event: StateEvent) -> None:
        """Calls the function."""
        self._changed()


def _names(nodes: tuple[str, ...]) -> str:
    return ("node " if len(nodes) == 1 else "nodes ") + ", ".join(nodes)


def _said(event: str, text: str, **more: Any) -> dict[str, Any]:
    return {"event": event, "text": text, **more}
