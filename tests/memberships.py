"""The service with which nodes join, in this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from nonn.aggregator.fanout import connect_insecure
from nonn.aggregator.membership.dial_out import WorkChannels
from nonn.aggregator.membership.leases import Membership
from nonn.aggregator.membership.servicer import MembershipServicer
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.service import Aggregator
from nonn.bundle import Bundle
from nonn.rpc.guard import Guard
from nonn.rpc.v1 import fleet_pb2 as pb


class Call:
    """As much of a call as the service looks at."""

    def peer(self) -> Any:
        return "ipv4:127.0.0.1:1"

    async def abort(self, code: Any, details: Any, trailing: Any = ()) -> None:
        raise AssertionError(details)


@contextlib.asynccontextmanager
async def service(bundle: Bundle) -> AsyncIterator[Any]:
    """The service and a function that registers nodes with it."""
    policy = PolicyConfig(deadline_s=1000.0)  # no test takes as long
    async with Aggregator(bundle, [], policy, connect=(work := WorkChannels()).or_else(connect_insecure)) as aggregator:
        fleet = MembershipServicer(aggregator, Membership(bundle), Guard(), work)

        async def register(name: Any, **more: Any) -> Any:
            fields = {"instance": "i", "fingerprint": "f"} | more
            return await fleet.Register(pb.RegisterRequest(node=name, **fields), Call())

        yield aggregator, fleet, register
