"""What ``nonn serve`` is told about security and membership, checked and put together."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from nonn.aggregator.fanout import Connect, channel_options, connect_insecure
from nonn.aggregator.inventory import Node, load_inventory
from nonn.aggregator.membership.credentials import Watch, connect_tls
from nonn.aggregator.membership.dial_out import WorkChannels
from nonn.aggregator.membership.leases import DEFAULT_LEASE_S, Membership
from nonn.aggregator.membership.servicer import FLEET, Fleet
from nonn.aggregator.service import Aggregator
from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.rpc.guard import Guard, Tokens
from nonn.rpc.server import SERVICE
from nonn.security.tls import load_tls

__all__ = ["Joining"]


class Joining:
    """Who may ask the aggregator, how it reaches its nodes, and whether nodes may join.

    Args:
        tls: the aggregator's folder of ``nonn certs``; None for plain text.
        token_file: tokens of clients; None asks for none.
        join_token_file: tokens of nodes that join.
        lease_s: how long a node that joined may be silent; None for the usual.
        joins: whether nodes may join.

    Raises:
        ConfigError: the options contradict each other.
        CredentialsError: a file cannot be used.
    """

    def __init__(
        self,
        tls: Path | None,
        token_file: Path | None,
        join_token_file: Path | None,
        lease_s: float | None,
        *,
        joins: bool,
    ) -> None:
        if not joins and (join_token_file or lease_s is not None):
            raise ConfigError("--join-token-file and --lease go with --joins")
        if joins and tls is None and join_token_file is None:
            raise ConfigError(
                "--joins needs to know who may join: give --tls with a folder of nonn certs, or --join-token-file"
            )
        self._lease_s = DEFAULT_LEASE_S if lease_s is None else lease_s
        if not 0.1 <= self._lease_s <= 3600:
            raise ConfigError(f"--lease {self._lease_s:g}: must be 0.1 to 3600 seconds")
        self.tls, self._joins = load_tls(tls, "aggregator"), joins
        self._work = WorkChannels()
        tokens = {SERVICE: token_file, FLEET: join_token_file}
        self.guard = Guard(
            self.tls,
            {SERVICE: frozenset({"client", "aggregator"}), FLEET: frozenset({"node"})},
            {service: Tokens(file) for service, file in tokens.items() if file},
        )

    def connect(self, bundle: Bundle) -> Connect:
        """What makes the channel to a node."""
        options = channel_options(bundle)
        if self.tls is None:
            return self._work.or_else(functools.partial(connect_insecure, options=options))
        return self._work.or_else(connect_tls(self.tls, options))

    def inventory(self, path: Path | None, num_students: int) -> tuple[Node, ...]:
        """The nodes that are there from the start; none where all of them join.

        Raises:
            ConfigError: there is neither inventory nor join, or the inventory is wrong.
        """
        if path is not None:
            return load_inventory(path, num_students)
        if not self._joins:
            raise ConfigError("there would be no nodes: give --inventory, or let nodes join with --joins")
        return ()

    def fleet(self, aggregator: Aggregator) -> Fleet:
        """The service by which nodes join."""
        membership = Membership(aggregator.bundle, aggregator.nodes, self._lease_s)
        return Fleet(aggregator, membership, self.guard, self._work)

    def options(self, aggregator: Aggregator, fleet: Fleet | None = None) -> dict[str, Any]:
        """Arguments of ``nonn.rpc.server.serve``."""
        fleet = fleet or self.fleet(aggregator)

        @contextlib.asynccontextmanager
        async def attend(address: str, end: Callable[[], None]) -> AsyncIterator[None]:
            async with contextlib.AsyncExitStack() as stack:
                if self._joins:
                    await stack.enter_async_context(fleet.attend(end))
                if self.tls is not None:
                    await stack.enter_async_context(Watch(aggregator, self.tls, fleet.release).attend(end))
                yield

        services = [fleet.add_to] if self._joins else []
        return {"guard": self.guard if self.guard.needed else None, "services": services, "attend": attend}
