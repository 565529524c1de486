"""Many requests to one aggregator: under faults, afterwards without, and of many sizes at once under faults again.

The log of the aggregator is measured too. Hours of faults are compressed into minutes, so its growth is counted in
lines for each fault and for each request, not by time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import psutil

from benchmarks import storm
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.client import Client

__all__ = ["CLIENT_DEADLINE_S", "DEADLINE_S", "SECTIONS"]

DEADLINE_S = 1.0  # deadline of the aggregator for its nodes
CLIENT_DEADLINE_S = 2.0  # deadline of a client for its answer
HUNG_NODES = (1, 4, 6)
SIZES = (1, 2, 1, 7, 33, 1, 64, 65, 200, 1, 1000)  # samples of requests around and beyond the limit of a batch
PATIENT_S = 60.0  # deadline of clients with large requests, which are sent in pieces
MEMORY_GROWTH = 1.05
LINES_OF_A_FAULT = 12  # a node's state changes a few times, there and back


def _storm(ground: Ground) -> Figures:
    """Requests while nodes fail, then without faults."""
    site, client, inputs, args = ground.site, ground.client, ground.inputs, ground.args
    process, rss = psutil.Process(site.pid), dict[int, int]()

    def sent(upto: int, offset: int) -> Callable[[int], bool]:
        def more(number: int) -> bool:
            if number + offset in (args.rss_from, args.total):
                rss[number + offset] = process.memory_info().rss
            return number < upto

        return more

    descriptors, lines = process.num_fds(), _lines(site)
    with storm.Stalls() as stalls, storm.Weather(site, args.seed) as weather:
        records = storm.load(client, inputs, args.concurrency, sent(args.requests, 0))
    figures = weigh(ground, records, weather) | {"longest_stall_of_the_machine_ms": 1e3 * stalls.longest_s}
    figures["storm_log_lines_of_a_fault"] = (_lines(site) - lines) / max(1, len(weather.outages))
    storm.load(client, inputs, args.concurrency, lambda number: number < 200)  # the last nodes come back
    lines = _lines(site)
    calm = storm.load(client, inputs, args.concurrency, sent(args.total - args.requests, args.requests))
    return figures | {
        "calm_requests": len(calm),
        "calm_failed": sum(record.answer is None for record in calm),
        "calm_failures": reasons(calm),
        "calm_log_lines": _lines(site) - lines,
        "aggregator_rss_mb_early": rss[args.rss_from] / 1e6,
        "aggregator_rss_mb_late": rss[args.total] / 1e6,
        "aggregator_rss_growth": rss[args.total] / rss[args.rss_from],
        "aggregator_descriptors_gained": process.num_fds() - descriptors,
    }


def _lines(site: storm.Site) -> int:
    """Lines in the log of the aggregator."""
    return site.log.read_bytes().count(b"\n")


def weigh(ground: Ground, records: list[storm.Record], weather: storm.Weather) -> Figures:
    """Counts of the faults, and of their effects."""
    latency_s = np.array([record.done_s - record.asked_s for record in records])
    returns = storm.return_times(records, weather.outages)
    kinds = [outage.kind for outage in weather.outages]
    return {
        "requests": len(records),
        "failed": sum(record.answer is None for record in records),
        "failures": reasons(records),
        "in_time_percent": 100 * float((latency_s <= CLIENT_DEADLINE_S).mean()),
        "wrong_answers": len(storm.wrong_answers(ground.bundle, records)),
        "false_members": len(storm.false_members(records, weather.outages)),
        "masks_seen": len({record.answer.mask for record in records if record.answer is not None}),
        "fewest_nodes_well": weather.fewest_well,
        "faults": {kind: kinds.count(kind) for kind in storm.KINDS},
        "latency_p50_ms": 1e3 * float(np.percentile(latency_s, 50)),
        "latency_p99_ms": 1e3 * float(np.percentile(latency_s, 99)),
        "latency_max_ms": 1e3 * float(latency_s.max()),
        "storm_s": records[-1].done_s - records[0].asked_s,
        "returns": len(returns),
        "slowest_return_s": max((seconds for seconds, _ in returns), default=0.0),
        "slowest_return_kind": max(returns, key=lambda pair: pair[0])[1].kind if returns else "",
    }


def _mixed(ground: Ground) -> Figures:
    """Requests of one sample to a thousand while nodes fail."""
    site, args = ground.site, ground.args
    with Client(site.address, PATIENT_S) as client, storm.Weather(site, args.seed + 1) as weather:
        records = storm.load(client, ground.inputs, args.concurrency, lambda number: number < args.mixed, SIZES)
    return {
        "mixed_requests": len(records),
        "mixed_samples": sum(record.size for record in records),
        "mixed_faults": len(weather.outages),
        "mixed_failed": sum(record.answer is None for record in records),
        "mixed_failures": reasons(records),
        "mixed_wrong": len(storm.wrong_answers(ground.bundle, records)),
        "mixed_false_members": len(storm.false_members(records, weather.outages)),
    }


def _hung(ground: Ground) -> Figures:
    """The largest cost of one hung node, one request after another."""
    costs = [storm.hung_cost(ground.site, ground.client, ground.inputs, node, DEADLINE_S) for node in HUNG_NODES]
    return {"hung_node_costs_deadlines": max(costs)}


SECTIONS = (
    Section(
        "storm",
        _storm,
        {
            "no request fails": lambda f: f["failed"] == f["calm_failed"] == 0,
            "every answer comes by its deadline": lambda f: f["in_time_percent"] == 100,
            "every mask is true": lambda f: f["false_members"] == 0,
            "every kind of fault happened": lambda f: min(f["faults"].values()) > 0,
            "a node that is back is in use within 2 s": lambda f: f["slowest_return_s"] <= storm.IN_USE_S,
            "memory is flat": lambda f: f["aggregator_rss_growth"] <= MEMORY_GROWTH,
            "descriptors are flat": lambda f: f["aggregator_descriptors_gained"] <= 2,
            "the log grows with faults": lambda f: f["storm_log_lines_of_a_fault"] <= LINES_OF_A_FAULT,
            "the log does not grow with requests": lambda f: f["calm_log_lines"] <= 10,
        },
    ),
    Section(
        "mixed",
        _mixed,
        {
            "no request of any size fails": lambda f: f["mixed_failed"] == 0,
            "every mask of every size is true": lambda f: f["mixed_false_members"] == 0 < f["mixed_faults"],
        },
    ),
    Section(
        "hung",
        _hung,
        {"a node that hangs costs at most one deadline": lambda f: f["hung_node_costs_deadlines"] <= 1.1},
    ),
)
