"""The bundles of one aggregator process: the served one, and during an update another one next to it.

Each bundle has a separate aggregator, so answers of different bundles are never fused. The state folder records
which bundle is served, drained nodes and quarantines for the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from nonn.aggregator.events import LateEvent, RequestEvent, StateEvent
from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.fleet.served import ServedBundle, ServedModel, ServeOptions
from nonn.fleet.state import StateFolder
from nonn.rpc.budget import MAX_HELD_BYTES
from nonn.rpc.endpoint import Endpoint
from nonn.telemetry.background import Background

__all__ = ["Bundles"]

_log = logging.getLogger(__name__)


class Bundles:
    """The served bundle and the other one, if there is one.

    Args:
        state: folder with the bundles.
        first: the bundle that is served at the start.
        options: options of every bundle; all nodes join.
        max_held_bytes: bytes of all inference requests under way.

    Attributes:
        state: the folder.
        served: the served bundle.
        other: the bundle to which, or from which, nodes are moved; None if no update is running.
        model: the model of whichever bundle is served.
        endpoint: that model as it is served.
        http: address of HTTP; None without it.
        drained: ids of drained nodes.
        tasks: ended with the bundles.
    """

    other: ServedBundle | None

    def __init__(
        self, state: StateFolder, first: Bundle, options: ServeOptions, max_held_bytes: int = MAX_HELD_BYTES
    ) -> None:
        self.state, self._options = state, options
        record = state.read()
        self._quarantined = dict(record.quarantined)  # as it is on the disk
        self.served, self.other = self._make(first), None
        self.served.aggregator.expel(self._quarantined)
        self.model = ServedModel(self.served)
        self.endpoint = Endpoint(self.model, max_held_bytes, opened=False)
        self.http: str | None = None
        self.drained = set(record.drained)
        self.tasks = Background()
        self._open: dict[ServedBundle, contextlib.AsyncExitStack] = {}
        self._end: Callable[[], object] = lambda: None
        self._watching = contextlib.AsyncExitStack()
        self._recording = asyncio.Lock()  # one change of the state folder at a time

    @contextlib.asynccontextmanager
    async def running(self, end: Callable[[], object]) -> AsyncIterator[None]:
        """Runs the aggregators while the block runs; calls ``end`` when one of them cannot go on."""
        self._end = end
        try:
            await self._start(self.served)
            await self._watch()
            yield
        finally:
            await self.tasks.close()
            for served in tuple(self._open):
                await self._close(served)
            await self._watching.aclose()

    def holding(self, lease: str) -> ServedBundle:
        """The aggregator that gave a lease."""
        if self.other is not None and self.other.servicer.membership.find(lease) is not None:
            return self.other
        return self.served

    def switch(self) -> Coroutine[Any, Any, None]:
        """Serves the other bundle from the next request on; what it returns records that, and must be awaited."""
        assert self.other is not None
        self.model.switch(self.other)
        self.served, self.other = self.other, self.served
        return self._switched(self.served, self.other)

    async def _switched(self, new: ServedBundle, old: ServedBundle) -> None:
        """Records that another bundle is served, and shows it in dashboard and metrics."""
        async with self._recording:
            self._quarantined = {}
            await asyncio.to_thread(self.state.served, new.bundle.hash, old.bundle.hash)
        self._note_quarantines()
        await self._watching.aclose()
        await self._watch()
        _log.info("bundle %.12s is served: %.2f%%", new.bundle.hash, 100 * new.accuracy())

    async def open_other(self, target: Bundle) -> None:
        """Starts the aggregator of the target bundle, unless an earlier push has."""
        if self.other is not None and self.other.bundle.hash == target.hash:
            return
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

    async def close_other(self) -> None:
        """Ends the aggregator of the other bundle, which has no nodes any more."""
        other, self.other = self.other, None
        if other is not None:
            await self._close(other)

    async def record_drained(self, node: str, *, out: bool) -> None:
        """Records that a node is drained or no longer, here and for the next start."""
        async with self._recording:
            nodes = self.drained | {node} if out else self.drained - {node}
            await asyncio.to_thread(self.state.drained, sorted(nodes))
            self.drained = nodes

    def _make(self, bundle: Bundle) -> ServedBundle:
        return ServedBundle(bundle, self._options, [_OnState(self._note_quarantines)])

    def _note_quarantines(self) -> None:
        """Records which nodes of the served bundle are in quarantine, if that has changed."""
        found = self.served.aggregator.policy.quarantined()
        if found.keys() != self._quarantined.keys():
            self._quarantined = found
            self.tasks.start(self._record_quarantines(found), "record of quarantines")

    async def _record_quarantines(self, found: dict[str, int]) -> None:
        async with self._recording:
            await asyncio.to_thread(self.state.quarantined, found)

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
