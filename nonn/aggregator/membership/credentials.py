"""TLS channels to nodes, and a watch over what gRPC does not check.

A channel asks for the name in the certificate of exactly its node, so gRPC refuses every other node there. The watch
adds the rest, apart from the requests: a node whose certificate was revoked is taken out, and let in again when it has
shown another; channels are made anew when the aggregator's own certificate or ``ca.pem`` changes; and the log says why
a node cannot be reached, which gRPC does not.

Limit: revocation of a *server's* certificate is seen by a second connection, within seconds after the list has changed
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
from nonn.errors import NonnError
from nonn.rpc.background import Background
from nonn.security.handshake import REVOKED_TEXT, explain
from nonn.security.tls import Identity, TlsFolder

__all__ = ["Watch", "connect_tls"]

LOOK_S = 2.0  # between two looks at a node that fails
TICK_S = 0.5  # between two looks at the folder

_log = logging.getLogger(__name__)


def server_name(node: Node) -> str:
    """The name that a node's certificate must have: its own, or for a foreign server that of its host."""
    return node.address.rpartition(":")[0].strip("[]") if node.foreign else Identity("node", node.id).dns_name


def connect_tls(tls: TlsFolder, options: Sequence[tuple[str, Any]] = NODE_CHANNEL_OPTIONS) -> Connect:
    """Makes channels that show the aggregator's certificate and take only the right node's.

    Args:
        tls: of the aggregator.
        options: of every channel.
    """

    def connect(node: Node) -> aio.Channel:
        credentials, more = tls.channel_options(server_name(node))
        return aio.secure_channel(node.address, credentials, options=(*options, *more))

    return connect


class Watch:
    """Keeps the aggregator's channels in step with certificates and revocations.

    Args:
        aggregator: that uses ``connect_tls``.
        tls: its folder.
        release: takes a node out that joined, and lets it join again.
        look_s: time between two looks at a node that fails.
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
        self._inventory = frozenset(node.id for node in aggregator.nodes)  # one that joined comes back by itself
        self._out: dict[str, Node] = {}  # taken out since their certificate was revoked
        self._seen: dict[str, object] = {}  # of nodes whose certificate is valid: what would have to change first
        self._said: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def attend(self, end: Callable[[], object]) -> AsyncIterator[None]:
        """Looks while the block runs; calls ``end`` if that is no longer possible."""
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
                except NonnError as exc:  # its own certificate has expired, for example
                    _log.error("%s", exc)
            await asyncio.sleep(TICK_S)
            if self._tls.credentials_version != self._credentials:
                self._credentials = self._tls.credentials_version
                await self._aggregator.reconnect()
                _log.info("%s: every channel is made anew with it", self._tls.path)

    async def look(self) -> None:
        """Looks once, at nodes that fail, that came up since they were last seen, or that were taken out."""
        present = {node.id: node for node in self._aggregator.nodes}
        for known in (self._seen, self._said):
            for gone in known.keys() - present.keys() - self._out.keys():
                del known[gone]
        # A healthy node is looked at once: a handshake costs it a signature.
        due = [
            node
            for node in present.values()
            if self._aggregator.policy.state(node.id) != "up" or self._seen.get(node.id) != self._state(node)
        ]
        await asyncio.gather(*(self._look_at(node) for node in (*due, *self._out.values())))

    def _state(self, node: Node) -> object:
        """Equal as long as a look at a node's certificate holds: neither folder nor node has changed since."""
        return self._tls.version, node.address, self._aggregator.policy.nodes[node.id].breaker.up_since

    async def _look_at(self, node: Node) -> None:
        """Takes a node out whose certificate was revoked, or lets it in again."""
        before = self._state(node) if self._is_here(node) else None
        text = await asyncio.to_thread(explain, node.address, self._name(node), self._tls)
        if text and self._said.get(node.id) != text:
            _log.warning("node %s at %s: %s", node.id, node.address, text)
        self._said[node.id] = text or ""
        if text and text.startswith(REVOKED_TEXT):
            remove = self._release
            if node.id in self._inventory:
                self._out[node.id], remove = node, self._aggregator.remove_node
            if self._is_here(node):
                await remove(node.id, f"{REVOKED_TEXT} ({node.address})")
        elif text == "":
            # Seen, and not merely away: a revoked node that is switched off must not be let in for when it comes back.
            self._seen[node.id] = before
            if self._out.pop(node.id, None) and not self._is_here(node):
                await self._aggregator.add_node(node)

    def _is_here(self, node: Node) -> bool:
        return any(other.id == node.id for other in self._aggregator.nodes)

    def _name(self, node: Node) -> str | None:
        """What the second look compares; a foreign server's host is left to gRPC."""
        return None if node.foreign else server_name(node)
