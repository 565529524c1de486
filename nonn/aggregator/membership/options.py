"""Security and membership of an aggregator: checked options, and the objects built from them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from nonn.aggregator.fanout import Connect, channel_options, connect_insecure
from nonn.aggregator.inventory import Node, load_inventory
from nonn.aggregator.membership.credentials import Watch, connect_tls
from nonn.aggregator.membership.dial_out import WorkChannels
from nonn.aggregator.membership.leases import DEFAULT_LEASE_S, Membership
from nonn.aggregator.membership.servicer import MEMBERSHIP_SERVICE, MembershipServicer
from nonn.aggregator.service import Aggregator
from nonn.bundle import Bundle
from nonn.errors import ConfigError, UsageError
from nonn.rpc.guard import Guard, Tokens
from nonn.rpc.wire import ANSWERS_SERVICE, SENSING_SERVICE, SERVICE
from nonn.security.tls import load_tls
from nonn.toml import Range, check

__all__ = ["Joining", "JoiningOptions"]


@dataclass(frozen=True, kw_only=True)
class JoiningOptions:
    """Options of ``nonn serve`` about security and membership.

    Raises:
        ConfigError: an option is invalid, or two contradict each other.
    """

    tls: Annotated[Path | None, "the aggregator's folder of nonn certs; None for plain text"] = None
    token_file: Annotated[Path | None, "accepted tokens of clients; None requires none"] = None
    join_token_file: Annotated[Path | None, "accepted tokens of nodes that join"] = None
    lease_s: Annotated[
        float | None,
        Range(ge=0.1, le=3600),
        f"seconds until a silent node that joined is removed (default: {DEFAULT_LEASE_S:g})",
    ] = None
    joins: Annotated[bool, "whether nodes may join"] = False

    def __post_init__(self) -> None:
        check(self)
        if not self.joins and (self.join_token_file or self.lease_s is not None):
            raise ConfigError("--join-token-file and --lease require --joins")
        if self.joins and self.tls is None and self.join_token_file is None:
            raise ConfigError(
                "--joins needs a way to authenticate nodes: add --tls with a folder of nonn certs, or --join-token-file"
            )


class Joining:
    """Access to the aggregator, channels to its nodes, and whether nodes may join.

    Args:
        options: options of the operator.

    Raises:
        CredentialsError: a file cannot be used.
    """

    def __init__(self, options: JoiningOptions) -> None:
        self._options = options
        self.tls = load_tls(options.tls, "aggregator")
        self._work = WorkChannels()
        clients, nodes = frozenset({"client", "aggregator"}), frozenset({"node"})
        tokens = {
            SERVICE: options.token_file,
            ANSWERS_SERVICE: options.token_file,
            MEMBERSHIP_SERVICE: options.join_token_file,
            SENSING_SERVICE: options.join_token_file,
        }
        self.guard = Guard(
            self.tls,
            {SERVICE: clients, ANSWERS_SERVICE: clients, MEMBERSHIP_SERVICE: nodes, SENSING_SERVICE: nodes},
            {service: Tokens(file) for service, file in tokens.items() if file},
        )

    def connect(self, bundle: Bundle) -> Connect:
        """Opens the channel to a node."""
        options = channel_options(bundle)
        if self.tls is None:
            return self._work.or_else(functools.partial(connect_insecure, options=options))
        return self._work.or_else(connect_tls(self.tls, options))

    def inventory(self, path: Path | None, num_students: int) -> tuple[Node, ...]:
        """The nodes of the inventory; none if all nodes join.

        Raises:
            ConfigError: the inventory is invalid.
            UsageError: there is neither an inventory nor ``joins``.
        """
        if path is not None:
            return load_inventory(path, num_students)
        if not self._options.joins:
            raise UsageError("there would be no nodes: add --inventory, or let nodes join with --joins")
        return ()

    def servicer(self, aggregator: Aggregator) -> MembershipServicer:
        """The service with which nodes join."""
        lease_s = DEFAULT_LEASE_S if self._options.lease_s is None else self._options.lease_s
        membership = Membership(aggregator.bundle, aggregator.nodes, lease_s)
        return MembershipServicer(aggregator, membership, self.guard, self._work, self.connect(aggregator.bundle))

    def options(self, aggregator: Aggregator, servicer: MembershipServicer | None = None) -> dict[str, Any]:
        """Arguments of ``nonn.rpc.server.serve``."""
        servicer = servicer or self.servicer(aggregator)

        @contextlib.asynccontextmanager
        async def attend(address: str, end: Callable[[], None]) -> AsyncIterator[None]:
            async with contextlib.AsyncExitStack() as stack:
                if self._options.joins:
                    await stack.enter_async_context(servicer.attend(end))
                if self.tls is not None:
                    await stack.enter_async_context(Watch(aggregator, self.tls, servicer.release).attend(end))
                yield

        services = [servicer.add_to] if self._options.joins else []
        return {"guard": self.guard if self.guard.needed else None, "services": services, "attend": attend}
