"""Throughput with slow nodes and with greedy clients, as ratios within one run.

The machine is shared, so no number of requests a second is a guarantee. Periods with the fault and periods of
comparison alternate, each of some seconds, and the sums of both are compared.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import storm
from benchmarks.endurance import DEADLINE_S
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.client import Client
from tests.serving import until

__all__ = ["BYTES_PER_S", "CLIENT_DEADLINE_S", "DELAYS_S", "SECTIONS", "greedy", "pause", "period", "straggler"]

DELAYS_S = (0.2, 0.3, 0.9)  # of a node's replies, at a deadline of one second
PERIOD_S = 3.0
CLIENT_DEADLINE_S = 2.0
BYTES_PER_S = 16_000.0  # of the links in ``greedy``: a toy sample has 64 bytes, so it takes a node 4 ms
LARGE = 1000  # samples of a legal request
PAUSE_S = 3.0  # of the aggregator, three deadlines
SLOW_NODE = 1  # the most valuable one
GREEDY_OTHERS, GREEDY_S = 4, 30.0
SETTLE_S = 1.0  # of load, in which the cluster learns the usual latencies


def period(client: Client, inputs: NDArray[Any], concurrency: int, seconds: float) -> list[storm.Record]:
    """Requests of so many clients for some seconds."""
    until = time.monotonic() + seconds
    return storm.load(client, inputs, concurrency, lambda number: time.monotonic() < until)


def rate(records: list[storm.Record]) -> float:
    """Answers a second."""
    answered = sum(record.answer is not None for record in records)
    return answered / (records[-1].done_s - min(record.asked_s for record in records))


def straggler(
    site: storm.Site,
    client: Client,
    inputs: NDArray[Any],
    node: int,
    *,
    concurrency: int,
    rounds: int = 2,
    seconds: float = PERIOD_S,
) -> dict[str, Any]:
    """Answers a second with one node slow, compared with the same node dead.

    The requests at the start of the fault count towards latencies and failures, as in a real cluster.

    Args:
        site: cluster with a proxy before each node.
        client: client of its aggregator.
        inputs: samples.
        node: node that is slow, or dead.
        concurrency: number of clients.
        rounds: periods with each of ``DELAYS_S``, and with the node dead.
        seconds: length of a period.

    Returns:
        Ratio and 99th percentile for each delay, and the number of failed requests.
    """
    everyone = (1 << site.bundle.num_devices) - 1

    def measured(inject: Callable[[bool], object]) -> list[storm.Record]:
        inject(True)
        records = period(client, inputs, concurrency, seconds)
        inject(False)
        until(lambda: client.infer(inputs[:1]).mask == everyone)
        period(client, inputs, concurrency, SETTLE_S)
        return records

    def slow(delay_s: float, on: bool) -> None:
        site.proxies.change(node, lambda proxy: setattr(proxy, "delay_s", delay_s if on else 0.0))

    rates: dict[float | None, list[float]] = {delay_s: [] for delay_s in (*DELAYS_S, None)}  # None: the node is dead
    latency_s: dict[float, list[float]] = {delay_s: [] for delay_s in DELAYS_S}
    failed = 0
    for _ in range(rounds):
        for delay_s in DELAYS_S:
            records = measured(partial(slow, delay_s))
            rates[delay_s].append(rate(records))
            latency_s[delay_s] += [record.done_s - record.asked_s for record in records]
            failed += sum(record.answer is None for record in records)
        rates[None].append(rate(measured(partial(site.inject, node, "kill"))))
    return {
        "straggler_ratio": {str(delay_s): sum(rates[delay_s]) / sum(rates[None]) for delay_s in DELAYS_S},
        "straggler_p99_ms": {str(s): 1e3 * float(np.percentile(latency_s[s], 99)) for s in DELAYS_S},
        "straggler_failed": failed,
    }


def greedy(
    address: str, inputs: NDArray[Any], *, concurrency: int, seconds: float, samples: int = LARGE
) -> dict[str, Any]:
    """What one client with large requests does to the others, at nodes that take milliseconds a sample.

    Args:
        address: of an aggregator whose nodes are limited by their links.
        inputs: samples.
        concurrency: number of other clients, with one sample per request.
        seconds: duration.
        samples: size of the requests of the greedy client.

    Returns:
        Failed, degraded and late requests of the others, and failed requests of the greedy client.
    """
    large, over = list[storm.Record](), threading.Event()

    def ask() -> None:
        with Client(address, 60.0) as client:
            while not over.is_set():
                large.append(storm.ask(client, inputs, 0, samples))

    with Client(address, CLIENT_DEADLINE_S) as client:
        period(client, inputs, concurrency, SETTLE_S)
        thread = threading.Thread(target=ask, name="greedy")
        thread.start()
        records = period(client, inputs, concurrency, seconds)
        over.set()
        thread.join()
    storm.keep(large)
    latency_s = [record.done_s - record.asked_s for record in records]
    degraded = [record.answer.degraded for record in records if record.answer is not None]
    return {
        "greedy_requests": len(large),
        "greedy_failed": reasons(large),
        "others_requests": len(records),
        "others_failed": sum(record.answer is None for record in records),
        "others_degraded_percent": 100 * float(np.mean(degraded)),
        "others_p99_ms": 1e3 * float(np.percentile(latency_s, 99)),
    }


def pause(site: storm.Site, inputs: NDArray[Any], *, concurrency: int) -> dict[str, Any]:
    """The aggregator is stopped for three deadlines under load, which no node is to blame for.

    Args:
        site: cluster; its nodes have no fault.
        inputs: samples.
        concurrency: number of clients.

    Returns:
        Failed and degraded requests, and nodes that are not up at the end.
    """

    def stop() -> None:
        time.sleep(SETTLE_S)
        os.kill(site.pid, signal.SIGSTOP)
        time.sleep(PAUSE_S)
        os.kill(site.pid, signal.SIGCONT)

    with Client(site.address, 60.0) as client:
        thread = threading.Thread(target=stop, name="stop")
        thread.start()
        records = period(client, inputs, concurrency, PAUSE_S + 2 * SETTLE_S)
        thread.join()
        nodes = client.metadata().nodes
    return {
        "pause_longest_s": max(record.done_s - record.asked_s for record in records),
        "pause_failed": sum(record.answer is None for record in records),
        "pause_degraded": sum(record.answer is not None and record.answer.degraded for record in records),
        "pause_nodes_not_up": [node["id"] for node in nodes if node["state"] != "up"],
    }


def _straggler(ground: Ground) -> Figures:
    args = ground.args
    return straggler(ground.site, ground.client, ground.inputs, SLOW_NODE, concurrency=args.concurrency)


def _greedy(ground: Ground) -> Figures:
    with storm.site(ground.bundle, DEADLINE_S, ground.args.seed, bandwidth_bytes_per_s=BYTES_PER_S) as site:
        return greedy(site.address, ground.inputs, concurrency=GREEDY_OTHERS, seconds=GREEDY_S)


SECTIONS = (
    Section(
        "pause",
        lambda ground: pause(ground.site, ground.inputs, concurrency=ground.args.concurrency),
        {
            "a pause of the aggregator fails no request": lambda f: f["pause_failed"] == 0,
            "a pause of the aggregator is blamed on no node": lambda f: (
                not f["pause_nodes_not_up"] and f["pause_degraded"] == 0
            ),
        },
    ),
    Section(
        "slow",
        _straggler,
        {
            "a slow node leaves half of the throughput without it": lambda f: min(f["straggler_ratio"].values()) >= 0.5,
            "with a slow node p99 is below the deadline": lambda f: (
                max(f["straggler_p99_ms"].values()) < 1e3 * DEADLINE_S
            ),
            "no request fails because of a slow node": lambda f: f["straggler_failed"] == 0,
        },
    ),
    Section(
        "greedy",
        _greedy,
        {
            "large requests of one client fail none": lambda f: not f["greedy_failed"] and f["others_failed"] == 0,
            "large requests of one client cost the others no device": lambda f: f["others_degraded_percent"] <= 1,
            "with large requests of one client p99 of the others is below the deadline": lambda f: (
                f["others_p99_ms"] < 1e3 * DEADLINE_S
            ),
        },
    ),
)
