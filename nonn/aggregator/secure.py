"""TLS channels to nodes, and a watch over what gRPC does not look at.

A channel asks for the name in the certificate of exactly its node, so gRPC refuses every other node there. What it
leaves open is seen to here, beside the requests: a node whose certificate was revoked is taken out, and let in again
when it shows another; channels are made anew when the aggregator's own certificate or ``ca.pem`` changes; and why a
node cannot be reached is said in the log, since gRPC tells neither side.

Limit: revocation of a *server's* certificate is seen by a second connection, soon after the list has changed; whoever
holds a revoked key and sits in the network between aggregator and node could pass that one on to the real node. A
revoked *caller* is refused at its next call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from grpc import aio

from nonn.aggregator.fanout import NODE_CHANNEL_OPTIONS, Connect
from nonn.aggregator.inventory import Node
from nonn.aggregator.service import Aggregator
from nonn.errors import NonnError
from nonn.rpc.handshake import REVOKED_TEXT, explain
from nonn.rpc.tls import Identity, TlsFolder

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
        look_s: time between two looks at a node that fails.
    """

    def __init__(self, aggregator: Aggregator, tls: TlsFolder, look_s: float = LOOK_S) -> None:
        self._aggregator, self._tls, self._look_s = aggregator, tls, look_s
        self._version, self._credentials = tls.version, tls.credentials_version
        self._inventory = frozenset(node.id for node in aggregator.nodes)  # one that joined comes back by itself
        self._out: dict[str, Node] = {}  # taken out since their certificate was revoked
        self._said: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def attend(self) -> AsyncIterator[None]:
        """Looks while the block runs."""
        task = asyncio.create_task(self._keep_looking())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _keep_looking(self) -> None:
        look_at, everybody = 0.0, True
        while True:
            now = asyncio.get_running_loop().time()
            if everybody or now >= look_at:
                look_at = now + self._look_s
                try:
                    await self._look(everybody)
                except NonnError as exc:  # its own certificate has expired, for example
                    _log.error("%s", exc)
            await asyncio.sleep(TICK_S)
            # A healthy node is looked at again only when the folder changed: a handshake costs it a signature.
            everybody = self._tls.version is not self._version
            self._version = self._tls.version
            if self._tls.credentials_version != self._credentials:
                self._credentials = self._tls.credentials_version
                await self._aggregator.reconnect()
                _log.info("%s: every channel is made anew with it", self._tls.path)

    async def _look(self, everybody: bool) -> None:
        """Looks at nodes that fail or were taken out, or at every one."""
        policy = self._aggregator.policy
        present = [node for node in self._aggregator.nodes if everybody or policy.state(node.id) != "up"]
        await asyncio.gather(*(self._look_at(node) for node in (*present, *self._out.values())))

    async def _look_at(self, node: Node) -> None:
        """Takes a node out whose certificate was revoked, or lets it in again."""
        text = await asyncio.to_thread(explain, node.address, self._name(node), self._tls)
        if text is not None and self._said.get(node.id) != text:
            _log.warning("node %s at %s: %s", node.id, node.address, text)
        self._said[node.id] = text or ""
        here = any(other.id == node.id for other in self._aggregator.nodes)
        if text is not None and text.startswith(REVOKED_TEXT):
            self._out[node.id] = node
            if here:
                await self._aggregator.remove_node(node.id, f"{REVOKED_TEXT} ({node.address})")
        elif node.id in self._out and text is None:
            del self._out[node.id]
            if not here and node.id in self._inventory:
                await self._aggregator.add_node(node)

    def _name(self, node: Node) -> str | None:
        """What the second look compares; a foreign server's host is left to gRPC."""
        return None if node.foreign else server_name(node)
