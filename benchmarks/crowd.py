"""Clients of an aggregator while others attack its port below gRPC (``benchmarks.http2``)."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from benchmarks import http2, slow, storm
from benchmarks.section import Figures, Ground, Section
from nonn.client import Client
from nonn.rpc.wire import new_request

__all__ = ["SECTIONS", "cancelled_streams", "idle_connections"]

SECONDS = 5.0
RESETTING = 4  # connections that cancel streams
IDLE = 2000


def cancelled_streams(site: storm.Site, inputs: NDArray[Any], *, concurrency: int) -> dict[str, Any]:
    """Some connections open and cancel streams as fast as they can (rapid reset).

    Returns:
        Number of these streams, and failed requests of other clients.
    """
    message = new_request("nonn", {"input": inputs[:1]}, {}).SerializeToString().hex()
    with (
        Client(site.address, slow.CLIENT_DEADLINE_S) as client,
        http2.attack("reset", site.address, RESETTING, SECONDS, "--message", message) as attacker,
    ):
        records = slow.period(client, inputs, concurrency, SECONDS)
        assert attacker.stdout is not None
        streams = int(attacker.stdout.read())
    failed = sum(record.answer is None for record in records)
    return {"cancelled_streams": streams, "cancelled_requests": len(records), "cancelled_failed": failed}


def idle_connections(site: storm.Site, inputs: NDArray[Any], *, concurrency: int) -> dict[str, Any]:
    """Connections that never speak, and connections that never call; each time a new client asks.

    Returns:
        Failed requests of the new clients.
    """
    failed = 0
    for options in ((), ("--speak",)):
        with http2.attack("idle", site.address, IDLE, 60.0, *options) as attacker:
            assert attacker.stdout is not None
            attacker.stdout.readline()
            with Client(site.address, slow.CLIENT_DEADLINE_S) as client:
                records = slow.period(client, inputs, concurrency, SECONDS / 2)
        failed += sum(record.answer is None for record in records)
    return {"idle_failed": failed}


def _crowd(ground: Ground) -> Figures:
    site, inputs, concurrency = ground.site, ground.inputs, ground.args.concurrency
    figures = cancelled_streams(site, inputs, concurrency=concurrency)
    return figures | idle_connections(site, inputs, concurrency=concurrency)


SECTIONS = (
    Section(
        "crowd",
        _crowd,
        {
            "cancelled streams fail no request of other clients": lambda f: f["cancelled_failed"] == 0,
            "idle connections keep no new client out": lambda f: f["idle_failed"] == 0,
        },
    ),
)
