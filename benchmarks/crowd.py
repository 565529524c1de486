"""Clients of an aggregator while others attack its port below gRPC (``benchmarks.http2``)."""

from __future__ import annotations

import time
from typing import Any

import psutil
from numpy.typing import NDArray

from benchmarks import http2, slow, storm
from benchmarks.endurance import DEADLINE_S
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.rpc.wire import new_request
from tests.serving import until

__all__ = ["SECTIONS", "cancelled_streams", "frames", "idle_connections"]

SECONDS = 5.0
RESETTING = 4  # connections that cancel streams
FLOOD_S = 3.0
SETTLE_S = 3.0  # until connections are closed and memory is given back
KEPT_MB = 30  # memory that an attack may leave behind
LINES = 100  # of the log, from an attack
# gRPC works on these for seconds before nonn sees anything of them, and keeps hundreds of megabytes. Requests of others
# may fail until they are over. Only a proxy or a firewall in front of the aggregator helps.
COSTLY = ("continuation", "pings", "bomb")
COSTLY_KEPT_MB = 1000
AGAIN_S = 30.0  # until others are answered again; gRPC closes connections without settings after ten seconds
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


def frames(bundle: Bundle, inputs: NDArray[Any], *, concurrency: int) -> dict[str, Any]:
    """Four connections attack an aggregator with frames of one kind after another.

    Returns:
        For each kind, failed requests of other clients and their slowest answer, and the seconds after the attack
        until a second in which none failed had passed. Memory, descriptors and lines of the log that the attacks leave
        behind, without those of ``COSTLY``.
    """
    again_s = dict[str, float]()
    message = new_request("nonn", {"input": inputs[:1]}, {}).SerializeToString().hex()
    failed, slowest_ms, errors = dict[str, int](), dict[str, float](), dict[str, list[str]]()
    with (
        storm.site(bundle, DEADLINE_S, 0) as site,
        Client(site.address, slow.CLIENT_DEADLINE_S) as client,
    ):
        slow.period(client, inputs, concurrency, SETTLE_S)
        process, left = psutil.Process(site.pid), dict[str, float]()
        before_mb, descriptors, lines = process.memory_info().rss / 1e6, process.num_fds(), _lines(site)
        for kind in sorted(http2.FLOODS, key=COSTLY.__contains__):
            if kind in COSTLY and not left:
                left = {
                    "frames_kept_mb": process.memory_info().rss / 1e6 - before_mb,
                    "frames_descriptors_gained": process.num_fds() - descriptors,
                    "frames_log_lines": _lines(site) - lines,
                }
            with http2.attack(kind, site.address, RESETTING, FLOOD_S, "--message", message):
                records = slow.period(client, inputs, concurrency, FLOOD_S)
            failed[kind] = sum(record.answer is None for record in records)
            errors |= {kind: texts} if (texts := reasons(records)) else {}
            slowest_ms[kind] = round(1e3 * max(record.done_s - record.asked_s for record in records), 1)
            again_s[kind] = round(
                until(lambda: not reasons(slow.period(client, inputs, concurrency, slow.SETTLE_S))), 1
            )
            time.sleep(SETTLE_S)
        costly_mb = process.memory_info().rss / 1e6 - before_mb
    found = {"frames_failed": failed, "frames_failures": errors, "frames_slowest_ms": slowest_ms}
    found |= {"frames_again_s": again_s}
    return left | found | {"frames_costly_kept_mb": costly_mb}


def _lines(site: storm.Site) -> int:
    return site.log.read_bytes().count(b"\n")


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
    Section(
        "frames",
        lambda ground: frames(ground.bundle, ground.inputs, concurrency=ground.args.concurrency),
        {
            "attacks with HTTP/2 frames fail no request of other clients": lambda f: (
                not any(number for kind, number in f["frames_failed"].items() if kind not in COSTLY)
            ),
            # Absent from older results.
            **{
                f"after {name} other clients are answered again": lambda f, kind=kind: (
                    f.get("frames_again_s", {}).get(kind, 0) <= AGAIN_S
                )
                for kind, name in zip(COSTLY, ("endless headers", "floods of pings", "large headers"), strict=True)
            },
            "costly HTTP/2 frames leave less than a gigabyte behind": lambda f: (
                f["frames_costly_kept_mb"] < COSTLY_KEPT_MB
            ),
            "attacks with HTTP/2 frames leave no memory and no descriptors behind": lambda f: (
                f["frames_kept_mb"] <= KEPT_MB and f["frames_descriptors_gained"] <= 2
            ),
            "attacks with HTTP/2 frames do not fill the log": lambda f: f["frames_log_lines"] <= LINES,
        },
    ),
)
