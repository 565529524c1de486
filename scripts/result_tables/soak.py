"""The tables of ``make soak``: each adversary, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["aggregators_markdown", "soak_markdown"]

# What is done to the cluster, and the keys of soak.json that say what it cost, each with a format.
_ADVERSARIES: tuple[tuple[str, str], ...] = (
    (
        "nodes killed, stopped, ten times slower, sending garbage, cut off, silent, at any time",
        "{requests:,} requests: {failed} failed, {wrong_answers} wrong, {false_members} false masks; a node is in use "
        "again after {slowest_return_s:.1f} s at most",
    ),
    (
        "the same, with requests of 1 to 1,000 samples",
        "{mixed_requests:,} requests: {mixed_failed} failed, {mixed_wrong} wrong",
    ),
    ("a node that hangs", "{hung_node_costs_deadlines:.1f} deadlines in total"),
    ("a node slow by 0.2, 0.3, 0.9 s", "throughput ÷ with the node dead: {straggler_ratio}"),
    (
        "one of two aggregators killed, ended, stopped",
        "{aggregators_failed} requests failed; time without an answer in ms, median: {aggregators_p50_ms}; p99: "
        "{aggregators_p99_ms}; p99 with a single one: {aggregators_single_p99_ms}",
    ),
    (
        "a microcontroller behind a gateway killed, cut off, reset",
        "{boards_requests:,} requests: {boards_failed} failed, {boards_wrong} wrong; it is up again after, "
        "in s: {boards_back_s}",
    ),
    ("the aggregator stopped for three deadlines", "{pause_failed} requests failed, {pause_degraded} degraded"),
    ("a node that breaks the protocol", "failed requests: {bad_failed}"),
    (
        "a node that refuses batches, states a limit of one sample, or sends huge metadata",
        "throughput ÷ with the node dead: {bad_ratio}; peak memory of the aggregator + {bad_growth_mb:.0f} MB",
    ),
    (
        "a node that breaks the protocol of streams, in one way after another, a new aggregator for each",
        "{bad_streams_requests:,} requests; failed: {bad_streams_failed}",
    ),
    (
        "a node that sends HTTP/2 frames of five kinds",
        "{node_frames_requests} requests: {node_frames_failed} failed",
    ),
    (
        "over HTTP: nodes killed, two clients with 1,000 samples at a time, 64 bodies that never end",
        "{http_requests} requests of others: {http_failed} failed; p99 {http_p99_ms:.0f} ms",
    ),
    (
        "requests to join with the addresses and ids of nodes, and in floods",
        "{joins_failed} requests of clients failed, nodes lost: {joins_nodes_lost}; answers to them: {joins_statuses}",
    ),
    (
        "two nodes that lie, in one way after another, a new aggregator for each",
        "points of accuracy against the same nodes dead: {liars_loss_points}",
    ),
    ("bits flipped on links in plain text", "{flips:,} flips: {flips_failed} requests failed, {flips_wrong} wrong"),
    (
        "a client with requests of 1,000 samples",
        "requests of others: {others_failed} failed, {others_degraded_percent:.1f} % degraded; p99 "
        "{others_p99_ms:.0f} ms",
    ),
    (
        "64 clients with the largest request at once, with the limits of the unit",
        "{memory_request_mb:.0f} MB each: {memory_failed} failed, {memory_refused} refused; aggregator "
        "{memory_aggregator_before_mb:.0f} MB before, {memory_aggregator_peak_mb:.0f} at the peak, "
        "{memory_aggregator_after_mb:.0f} afterwards",
    ),
    (
        "three clients with requests of 12 MB that are expensive to parse",
        "requests of others: {expensive_others_failed} failed; p99 {expensive_others_p99_ms:.0f} ms; aggregator "
        "{expensive_peak_mb:.0f} MB at the peak",
    ),
    ("streams cancelled at once (rapid reset)", "{cancelled_streams:,} streams: {cancelled_failed} requests failed"),
    ("2,000 idle connections", "{idle_failed} requests of new clients failed"),
    ("HTTP/2 frames of eight kinds, four connections", "failed requests of other clients: {frames_failed}"),
    (
        "wall clocks that jump by hours and ten years",
        "{clock_requests:,} requests: {clock_failed} failed, {clock_degraded} degraded",
    ),
    ("SIGKILL at any line of a write of state", "{kills} kills: {kills_wrong} states wrong"),
    ("mutated and random messages", "{fuzz_replies} of forged replies; memory × {fuzz_aggregator_memory_growth:.2f}"),
)


def soak_markdown(found: Mapping[str, Any]) -> str:
    """A row for each adversary; a dash if the results do not have it."""
    lines = ["| adversary | measured |", "|---|---|"]
    figures = {"aggregators_p50_ms": "–"} | {key: _listed(value) for key, value in found.items()}
    for adversary, text in _ADVERSARIES:
        try:
            lines.append(f"| {adversary} | {text.format_map(figures)} |")
        except KeyError:
            lines.append(f"| {adversary} | – |")
    broken, minutes = found["broken"], sum(found["section_s"].values()) / 60
    text = f"The run took {minutes:.0f} minutes. Guarantees broken in it: {'; '.join(broken) if broken else 'none'}."
    if again := found.get("again"):
        versions = ", ".join(f"`{name}` at {run['code_version']}" for name, run in again.items())
        text += f" Measured again: {versions}."
    return "\n".join([*lines, "", text])


# Failures of an aggregator, and the target for those that end it.
_OUTAGES = {"calm": "none", "kill": "SIGKILL", "term": "SIGTERM", "pause": "stopped for 3 s"}
_NEXT_ANSWER_MS = 100


def aggregators_markdown(found: Mapping[str, Any]) -> str:
    """A row for each kind of failure: time to the next answer with two aggregators, and with a single one."""
    lines = ["| failure of an aggregator | two aggregators, ms: median | 99 % | one, started again at once, ms: 99 % |"]
    lines.append("| :--- | ---: | ---: | ---: |")
    p50, p99 = found.get("aggregators_p50_ms", {}), found["aggregators_p99_ms"]
    for kind, title in _OUTAGES.items():
        median = f"{p50[kind]:.0f}" if kind in p50 else "–"
        lines.append(f"| {title} | {median} | {p99[kind]:.0f} | {found['aggregators_single_p99_ms'][kind]:,.0f} |")
    failed = [found[f"{key}_failed"] for key in ("aggregators", "aggregators_single")]
    asked = [found[f"{key}_requests"] for key in ("aggregators", "aggregators_single")]
    lines.append(f"| requests that failed | | {failed[0]:,} of {asked[0]:,} | {failed[1]:,} of {asked[1]:,} |")
    reached = max(p99["kill"], p99["term"]) <= _NEXT_ANSWER_MS
    text = (
        f"{found['config']['outages']} failures of each kind with two aggregators. The target for SIGKILL and SIGTERM, "
        f"{_NEXT_ANSWER_MS} ms at 99 %, was {'reached' if reached else 'missed'}."
    )
    return "\n".join([*lines, "", text])


def _listed(value: Any) -> Any:
    """A list by its length, and a dictionary as text, with its fractions to two places."""
    if isinstance(value, list):
        return len(value)
    if isinstance(value, dict):
        shown = {key: f"{round(number, 2):g}" if isinstance(number, float) else number for key, number in value.items()}
        return ", ".join(f"{key} {number}" for key, number in shown.items())
    return value
