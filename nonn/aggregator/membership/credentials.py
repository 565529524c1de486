"""TLS channels to nodes, and a watch for what gRPC does not check.

A channel requires the certificate name of exactly its node, so gRPC refuses any other node at that address. The watch
adds the rest, independently of requests: a node whose certificate was revoked is taken out, and put back when it has
shown another; channels are opened again when the aggregator's certificate or ``ca.pem`` changes; and the log says why
a node cannot be reached, which gRPC does not report.

Limit: revocation of a *server's* certificate is found by a second connection, within seconds after the list has changed
or the node has come up; an attacker with a revoked key between aggregator and node could pass that connection on to the
real node. A revoked *caller* is refused at its next call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from grpc import aio

from nonn.aggregator.fanout import NODE_CHANNEL_OPTIONS, Connect
from nonn.aggregator.inventory import Node
from nonn.aggregator.service import Aggregator
from nonn.aggregator.streaming import with_stream
from nonn.errors import NonnError
from nonn.security.handshake import Diagnosis, DiagnosisKind, explain
from nonn.security.tls import Identity, TlsFolder
from nonn.telemetry.background import Background

__all__ = ["Watch", "connect_tls"]

LOOK_S = 2.0  # between two checks of a node that fails
TICK_S = 0.5  # between two checks of the folder

_log = logging.getLogger(__name__)


def server_name(node: Node) -> str:
    """The name that a node's certificate must have: that of the node, or of the host for a foreign server."""
    return node.address.rpartition(":")[0].strip("[]") if node.foreign else Identity("node", node.id).dns_name


def connect_tls(tls: TlsFolder, options: Sequence[tuple[str, Any]] = NODE_CHANNEL_OPTIONS) -> Connect:
    """Opens channels that show the aggregator's certificate and accept only that of the right node.

    Args:
        tls: certificates of the aggregator.
        options: options of every channel.
    """

    def connect(node: Node) -> Any:
        credentials, more = tls.channel_options(server_name(node))
        channel = aio.secure_channel(node.address, credentials, options=(*options, *more))
        return with_stream(node, channel)

    return connect


class Watch:
    """Keeps the aggregator's channels consistent with certificates and revocations.

    Args:
        aggregator: the aggregator that uses ``connect_tls``.
        tls: its certificates.
        release: takes out a node that joined, and lets it join again.
        look_s: time between two checks of a node that fails.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        tls: TlsFolder,
        release: Callable[[str, str], Awaitable[None]] | None = None,
        look_s: float = LOOK_S,
    ) -> None:
        self._aggregator, self._tls, self._look_s = aggregator, tls, look_s
        self._release = release or aggregator.remove_node
        self._credentials = tls.credentials_version
        self._inventory = frozenset(node.id for node in aggregator.nodes)  # a node that joined comes back by itself
        self._out: dict[str, Node] = {}  # taken out because their certificate was revoked
        self._seen: dict[str, object] = {}  # nodes with a valid certificate → what must change before the next check
        self._logged: dict[str, Diagnosis] = {}

    @contextlib.asynccontextmanager
    async def attend(self, end: Callable[[], object]) -> AsyncIterator[None]:
        """Checks while the block runs; calls ``end`` if that is no longer possible."""
        async with Background(end) as tasks:
            tasks.start(self._keep_looking(), "watch over certificates")
            yield

    async def _keep_looking(self) -> None:
        look_at, version = 0.0, self._tls.version
        while True:
            now = asyncio.get_running_loop().time()
            if now >= look_at or version is not self._tls.version:
                look_at, version = now + self._look_s, self._tls.version
                try:
                    await self.look()
                except NonnError as exc:  # for example, its own certificate has expired
                    _log.error("%s", exc)
            await asyncio.sleep(TICK_S)
            if self._tls.credentials_version != self._credentials:
                self._credentials = self._tls.credentials_version
                await self._aggregator.reconnect()
                _log.info("%s: opening every channel again with it", self._tls.path)

    async def look(self) -> None:
        """Checks once the nodes that fail, that came up since their last check, or that were taken out."""
        present = {node.id: node for node in self._aggregator.nodes}
        for known in (self._seen, self._logged):
            for gone in known.keys() - present.keys() - self._out.keys():
                del known[gone]
        # A healthy node is checked once: a handshake costs it a signature.
        due = [
            node
            for node in present.values()
            if self._aggregator.policy.state(node.id) != "up" or self._seen.get(node.id) != self._state(node)
        ]
        await asyncio.gather(*(self._look_at(node) for node in (*due, *self._out.values())))

    def _state(self, node: Node) -> object:
        """Equal while a check of a node's certificate stays valid: neither folder nor node has changed since."""
        return self._tls.version, node.address, self._aggregator.policy.nodes[node.id].breaker.up_since

    async def _look_at(self, node: Node) -> None:
        """Takes out a node whose certificate was revoked, or puts it back."""
        before = self._state(node) if self._is_here(node) else None
        found = await asyncio.to_thread(explain, node.address, self._name(node), self._tls)
        if found.is_problem and self._logged.get(node.id) != found:
            _log.warning("node %s at %s: %s", node.id, node.address, found.text)
        self._logged[node.id] = found
        if found.kind is DiagnosisKind.REVOKED:
            remove = self._release
            if node.id in self._inventory:
                self._out[node.id], remove = node, self._aggregator.remove_node
            if self._is_here(node):
                await remove(node.id, f"its certificate has been revoked ({node.address})")
        elif found.kind is DiagnosisKind.ACCEPTED:
            # It has shown its certificate and is not just down: a revoked node that is off must not be put back.
            self._seen[node.id] = before
            if self._out.pop(node.id, None) and not self._is_here(node):
                await self._aggregator.add_node(node)

    def _is_here(self, node: Node) -> bool:
        return any(other.id == node.id for other in self._aggregator.nodes)

    def _name(self, node: Node) -> str | None:
        """The name that a check compares; gRPC itself checks the host of a foreign server."""
        return None if node.foreign else server_name(node)
