"""Rolling updates inside the aggregator: carries out the steps of ``nonn.fleet.plan``.

A node is moved by ending its lease: its next heartbeat fails, it registers again, and gets the student of the same
number in the other bundle. Until it is back with that student it serves no client.

Of several aggregators with the same nodes, one leads an update and the others follow: they accept nodes of both
bundles, move none, and serve whichever bundle is more accurate, so they are never below the leader's floor. A node that
is moved registers with its leader last (``nonn_device.join``), so the leader's next step waits for the followers too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from nonn.bundle import Bundle
from nonn.errors import ConfigError, MembershipError
from nonn.fleet.bundles import Bundles
from nonn.fleet.plan import Blocked, Done, Situation, Switch, next_step
from nonn.fleet.served import ServedBundle
from nonn.fleet.status import FleetMessage, FleetStatus, NodeStatus, bundle_status, node_status
from nonn.reliability.subsets import MAX_DEVICES

__all__ = ["Rollout"]

LOOK_S = 0.05  # time between checks whether nodes are back

_log = logging.getLogger(__name__)


class Rollout:
    """Which node runs which bundle, and the updates that the operator asks for.

    Args:
        bundles: the bundles of this process; all nodes join.
    """

    def __init__(self, bundles: Bundles) -> None:
        self.bundles = bundles
        self._on_other: set[str] = set()  # nodes that should run the other bundle
        self._moving: set[str] = set()  # nodes that have been given another bundle and are not back yet
        self._following = ""  # bundle to which another aggregator moves the nodes
        self._busy = asyncio.Lock()

    @property
    def served(self) -> ServedBundle:
        """The served bundle."""
        return self.bundles.served

    @property
    def other(self) -> ServedBundle | None:
        """The bundle to which, or from which, nodes are moved; None if no update is running."""
        return self.bundles.other

    def bundle_of(self, request: Any) -> ServedBundle:
        """The bundle that a node should run; ``request`` is a request to register."""
        if self.other and (request.node in self._on_other or request.bundle == self.other.bundle.hash):
            return self.other
        return self.served

    def moves(self, node: str, *, arrived: bool) -> bool:
        """Whether a node is being moved; ``arrived``: it has registered with the bundle that it should run."""
        if arrived:
            self._moving.discard(node)
        return node in self._moving

    def status(self) -> FleetStatus:
        """Bundles and nodes as they are now."""
        served = [each for each in (self.served, self.other) if each is not None]
        nodes = [node for each in served for node in node_status(each)]
        listed = {node.node for node in nodes}
        nodes += [NodeStatus(node=node, state="drained") for node in self.bundles.drained - listed]
        return FleetStatus(
            bundles=tuple(bundle_status(each, served=each is self.served) for each in served),
            nodes=tuple(sorted(nodes, key=lambda node: node.node)),
            previous=self.bundles.state.read().previous,
        )

    async def roll(self, bundle: str, floor: float, wait_s: float) -> AsyncIterator[FleetMessage]:
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
                bundle = self.served.bundle.hash if self.other else self.bundles.state.read().previous
            async for message in self._roll(self.bundles.state.load(bundle), floor, wait_s):
                _log.info("%s", message.text)
                yield message

    async def follow(self, bundle: str) -> FleetMessage:
        """Accepts nodes of another bundle too, to which another aggregator moves them.

        Args:
            bundle: its hash, in the state folder; that of the served bundle if an update is undone.

        Raises:
            ConfigError: the bundle does not fit, or an update is running.
        """
        if self._busy.locked():
            raise ConfigError("another push or rollback is running; wait for it, or stop it with Ctrl-C")
        async with self._busy:
            target = self.bundles.state.load(bundle)
            if target.hash != self.served.bundle.hash:
                await self._open_other(target)
            self._following = target.hash
            self.prefer()
        return FleetMessage("done", f"nodes of bundle {target.hash[:12]} are accepted")

    def prefer(self, leaving: str = "") -> None:
        """A follower serves the bundle to which the fleet moves as soon as that is the more accurate one.

        Args:
            leaving: node that is about to leave.
        """
        other = self.other
        if other is None or other.bundle.hash != self._following or not other.up():
            return
        if other.accuracy(leaving) >= self.served.accuracy(leaving):
            self.bundles.tasks.start(self.bundles.switch(), "switch of bundles")

    async def _roll(self, target: Bundle, floor: float, wait_s: float) -> AsyncIterator[FleetMessage]:
        # The nodes of a follower have been moved already, and come within a second or two. From now on it leads.
        patience_s, self._following = wait_s if self._following == target.hash else 0.0, ""
        if target.hash == self.served.bundle.hash:
            steps = self._go_back(wait_s)
        else:
            steps = self._go_on(target, floor, wait_s, patience_s)
        async for message in steps:
            yield message
        yield FleetMessage("done", f"bundle {target.hash[:12]} is served by {len(self.served.up())} nodes")

    async def _go_back(self, wait_s: float) -> AsyncIterator[FleetMessage]:
        """Moves the nodes of the other bundle, which serve no client, to the served one."""
        if self.other is not None:
            moved = await self._retire(self.other)
            if moved:
                text = f"{_names(moved)} to the served bundle {self.served.bundle.hash[:12]}"
                yield FleetMessage("move", text, nodes=moved)
            await self._until_back(self.served, moved, wait_s)

    async def _go_on(
        self, target: Bundle, floor: float, wait_s: float, patience_s: float
    ) -> AsyncIterator[FleetMessage]:
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
                async for message in self._switch(wait_s):
                    yield message
                return
            yield FleetMessage("move", f"{_names(step.nodes)} to bundle {target.hash[:12]}", nodes=step.nodes)
            await self._move(step.nodes, wait_s)
            yield FleetMessage(
                "back",
                f"{_names(step.nodes)} back; served {self.served.accuracy():.2%}, next {self.other.accuracy():.2%}",
                served=self.served.accuracy(),
            )

    async def _switch(self, wait_s: float) -> AsyncIterator[FleetMessage]:
        """Serves the other bundle from the next request on, and moves the remaining nodes to it."""
        old = self.served
        await self.bundles.switch()
        moved = await self._retire(old)
        accuracy = self.served.accuracy()
        yield FleetMessage(
            "switch", f"bundle {self.served.bundle.hash[:12]} is served: {accuracy:.2%}", served=accuracy
        )
        if moved:
            yield FleetMessage("move", f"{_names(moved)}, which no longer served clients", nodes=moved)
        await self._until_back(self.served, moved, wait_s)

    async def drain(self, node: str, floor: float, *, undo: bool, absent: bool = False) -> FleetMessage:
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
            if node not in self.bundles.drained and not absent:
                raise ConfigError(f"node '{node}' is not drained; nonn fleet status lists drained nodes")
            await self.bundles.record_drained(node, out=False)
            return FleetMessage("done", f"node {node} may join again; it tries at least every 1.5 s")
        both = (self.served, self.other)
        holding = next((each for each in both if each and node in each.servicer.membership.leases), None)
        if holding is None:
            if node not in self.bundles.drained and not absent:
                raise ConfigError(f"no node '{node}' in the cluster; nonn fleet status lists them")
            await self.bundles.record_drained(node, out=True)
            return FleetMessage("done", f"node {node} is drained; it is not in the cluster now")
        accuracy = self.served.accuracy(without=node)
        if holding is self.served and accuracy < floor:
            raise ConfigError(
                f"without node '{node}' the accuracy would be {accuracy:.2%}, below the floor of {floor:.2%}; bring "
                "another node in first, or choose a lower --floor"
            )
        await self.bundles.record_drained(node, out=True)
        await holding.servicer.release(node, "is drained")
        return FleetMessage("done", f"node {node} is drained; served {self.served.accuracy():.2%}")

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
        other = self.other
        if other is not None and other.bundle.hash != target.hash and not other.servicer.membership.leases:
            await self._retire(other)  # of an update that was followed
        for bundle in (self.served.bundle, target):
            if bundle.num_devices > MAX_DEVICES:
                raise ConfigError(
                    f"bundle {bundle.hash[:12]} has {bundle.num_devices} devices; an update keeps its floor over all "
                    f"subsets of at most {MAX_DEVICES}: serve the new bundle as a separate cluster"
                )
        await self.bundles.open_other(target)

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
                while not set(nodes) <= set(served.up()) | self.bundles.drained:  # noqa: ASYNC110
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
        await self.bundles.model.finished(old)  # its nodes must stay until then
        leases = old.servicer.membership.leases
        nodes = tuple(sorted(leases))
        for node in nodes:
            self.served.servicer.membership.reserve(node, leases[node].student % self.served.bundle.num_devices)
        self._on_other.clear()
        self._moving |= set(nodes)
        for node in nodes:
            await old.servicer.release(node, f"gets bundle {self.served.bundle.hash[:12]}")
        await self.bundles.close_other()
        return nodes


def _names(nodes: tuple[str, ...]) -> str:
    return ("node " if len(nodes) == 1 else "nodes ") + ", ".join(nodes)
