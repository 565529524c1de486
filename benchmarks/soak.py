"""``make soak``: checks the guarantees of a cluster under hours of faults, compressed into minutes.

::

    storm     requests under load while nodes are killed, stopped, slowed ten times, made to answer garbage, cut off and
              made silent, by a seeded schedule that leaves at least one node without a fault
    memory    the same aggregator continues without faults
    hung      cost of one hung node, one request after another
    pause     the aggregator is stopped for three deadlines
    crowd     connections that cancel streams as fast as they can, or do nothing at all
    slow      throughput with one node slow by 0.2, 0.3 and 0.9 s, compared with the same node dead
    bytes     64 clients with a request of 12 MB at once
    greedy    one client with requests of 1,000 samples at nodes that take 4 ms a sample, and four others
    flips     one bit flipped in one of twenty segments to and from all nodes but one
    liars     two nodes that send wrong features, in one way after another
    fuzz      mutated and random messages to a node and to the aggregator, and a node with forged replies

Writes ``benchmarks/results/soak.json`` with machine, seed and code version, and exits with 1 if a guarantee was broken.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil

from benchmarks import crowd, memory, slow, storm, wrong
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.files import write_json
from nonn.provenance import code_version, machine
from tests.fuzzing import LyingNode, Server, fuzz_connections, fuzz_replies, fuzz_requests
from tests.serving import TIMEOUT_S, running_aggregator
from tests.toys import toy_bundle, toy_data

RESULTS = Path(__file__).parent / "results" / "soak.json"
NUM_DEVICES = 8
DEADLINE_S = 1.0  # deadline of the aggregator for its nodes
CLIENT_DEADLINE_S = 2.0  # deadline of a client for its answer
HUNG_NODES = (1, 4, 6)
GREEDY_OTHERS, GREEDY_S = 4, 30.0
LARGE_CLIENTS, LARGE_DEADLINE_S = 64, 10.0
GIVEN_BACK_MB = 60  # what large requests may leave behind
SLOW_NODE = 1  # the most valuable one
LIARS = (2, 5)
WIDTH = 16  # features of a student, enough to contradict each other
MEMORY_GROWTH = 1.05

Figures = dict[str, Any]


def storm_and_memory(bundle: Bundle, inputs: Any, args: argparse.Namespace) -> Figures:
    """A phase with faults, one without, then hung nodes, all with one aggregator."""
    rss: dict[int, int] = {}
    with (
        storm.site(bundle, DEADLINE_S, args.seed) as site,
        Client(site.address, CLIENT_DEADLINE_S) as client,
    ):
        process = psutil.Process(site.pid)

        def sent(upto: int, offset: int) -> Callable[[int], bool]:
            def more(number: int) -> bool:
                if number + offset in (args.rss_from, args.total):
                    rss[number + offset] = process.memory_info().rss
                return number < upto

            return more

        storm.load(client, inputs, args.concurrency, lambda number: number < 200)
        site.learn_latencies(client)
        descriptors = process.num_fds()
        with storm.Stalls() as stalls, storm.Weather(site, args.seed) as weather:
            records = storm.load(client, inputs, args.concurrency, sent(args.requests, 0))
        figures = weigh(bundle, records, weather) | {"longest_stall_of_the_machine_ms": 1e3 * stalls.longest_s}
        report("storm", figures)
        calm = storm.load(client, inputs, args.concurrency, sent(args.total - args.requests, args.requests))
        figures |= {
            "calm_requests": len(calm),
            "calm_failed": sum(record.answer is None for record in calm),
            "calm_failures": reasons(calm),
            "calm_wrong": len(storm.wrong_answers(bundle, calm)),
            "aggregator_rss_mb_early": rss[args.rss_from] / 1e6,
            "aggregator_rss_mb_late": rss[args.total] / 1e6,
            "aggregator_rss_growth": rss[args.total] / rss[args.rss_from],
            "aggregator_descriptors_gained": process.num_fds() - descriptors,
        }
        report("memory", {key: value for key, value in figures.items() if key.startswith(("calm", "aggregator"))})
        costs = [storm.hung_cost(site, client, inputs, node, DEADLINE_S) for node in HUNG_NODES]
        figures["hung_node_costs_deadlines"] = max(costs)
        figures |= slow.pause(site, inputs, concurrency=args.concurrency)
        figures |= crowd.cancelled_streams(site, inputs, concurrency=args.concurrency)
        figures |= crowd.idle_connections(site, inputs, concurrency=args.concurrency)
        figures |= slow.straggler(site, client, inputs, SLOW_NODE, concurrency=args.concurrency)
        figures |= wrong.flips(site, client, inputs, range(1, NUM_DEVICES), args.flips)
    return figures


def reasons(records: list[storm.Record]) -> list[str]:
    """Errors of a few failed requests."""
    return sorted({record.error for record in records if record.error})[:5]


def weigh(bundle: Bundle, records: list[storm.Record], weather: storm.Weather) -> Figures:
    """Counts of the faults, and of their effects."""
    latency_s = np.array([record.done_s - record.asked_s for record in records])
    returns = storm.return_times(records, weather.outages)
    kinds = [outage.kind for outage in weather.outages]
    return {
        "requests": len(records),
        "failed": sum(record.answer is None for record in records),
        "failures": reasons(records),
        "in_time_percent": 100 * float((latency_s <= CLIENT_DEADLINE_S).mean()),
        "wrong_answers": len(storm.wrong_answers(bundle, records)),
        "false_members": len(storm.false_members(records, weather.outages)),
        "masks_seen": len({record.answer.mask for record in records if record.answer is not None}),
        "fewest_nodes_well": weather.fewest_well,
        "faults": {kind: kinds.count(kind) for kind in storm.KINDS},
        "latency_p50_ms": 1e3 * float(np.percentile(latency_s, 50)),
        "latency_p99_ms": 1e3 * float(np.percentile(latency_s, 99)),
        "latency_max_ms": 1e3 * float(latency_s.max()),
        "storm_s": records[-1].done_s - records[0].asked_s,
        "returns": len(returns),
        "slowest_return_s": max(seconds for seconds, _ in returns),
        "slowest_return_kind": max(returns, key=lambda pair: pair[0])[1].kind,
    }


def fuzz(bundle: Bundle, inputs: Any, args: argparse.Namespace) -> Figures:
    """Fuzzes both servers with malformed messages."""
    sessions = [onnxruntime.InferenceSession(str(bundle.student_path(i))) for i in range(bundle.num_devices)]

    def features(device: int, batch: Any) -> Any:
        return sessions[device].run(["features"], {"input": batch})[0]

    def fused(batch: Any) -> Any:
        return bundle.head.logits({i: features(i, batch) for i in range(bundle.num_devices)})

    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder, LocalCluster(bundle.path) as cluster:
        addresses = [state.address for state in cluster.states()]
        patient = ("--deadline", str(TIMEOUT_S))
        with (
            LyingNode(addresses[0]) as liar,
            running_aggregator(bundle.path, [liar.address, *addresses[1:]], Path(folder), *patient) as ready,
            Client(ready["address"], TIMEOUT_S) as client,
        ):
            outputs = ("logits", "confidence", "answered", "expected_accuracy")
            servers = {
                "node": (Server(addresses[1], "student-1", ("features",), bundle, lambda b: features(1, b)), 1),
                "aggregator": (Server(ready["address"], "nonn", outputs, bundle, fused), None),
            }
            for name, (server, node) in servers.items():
                process = psutil.Process(ready["pid"] if node is None else cluster.states()[node].pid)
                fuzz_requests(server, inputs[:1], args.messages // 10, args.seed)
                fuzz_connections(server.address, args.messages // 100, args.seed)
                before = process.memory_info().rss
                seen = fuzz_requests(server, inputs[:1], args.messages, args.seed + 1)
                fuzz_connections(server.address, args.messages // 10, args.seed + 1)
                figures[f"fuzz_{name}_status"] = dict(seen)
                figures[f"fuzz_{name}_rss_growth"] = process.memory_info().rss / before
                figures[f"fuzz_{name}_alive"] = process.is_running()
                report(f"fuzz {name}", dict(seen))
            seen = fuzz_replies(client, liar, bundle, inputs, args.messages, args.seed)
            figures["fuzz_replies"] = dict(seen)
    return figures


def broken(figures: Figures) -> list[str]:
    """The guarantees that were broken."""
    promises = {
        "no request fails": figures["failed"] == 0 and figures["calm_failed"] == 0,
        "every answer comes by its deadline": figures["in_time_percent"] == 100,
        "every answer is the offline fusion of its mask": figures["wrong_answers"] + figures["calm_wrong"] == 0,
        "every mask is true": figures["false_members"] == 0,
        "every kind of fault happened": min(figures["faults"].values()) > 0,
        "a node that is back is in use within 2 s": figures["slowest_return_s"] <= storm.IN_USE_S,
        "a node that hangs costs at most one deadline": figures["hung_node_costs_deadlines"] <= 1.1,
        "a slow node leaves half of the throughput without it": min(figures["straggler_ratio"].values()) >= 0.5,
        "with a slow node p99 is below the deadline": max(figures["straggler_p99_ms"].values()) < 1e3 * DEADLINE_S,
        "no request fails because of a slow node": figures["straggler_failed"] == 0,
        "a pause of the aggregator fails no request": figures["pause_failed"] == 0,
        "a pause of the aggregator is blamed on no node": not figures["pause_nodes_not_up"]
        and figures["pause_degraded"] == 0,
        "cancelled streams fail no request of other clients": figures["cancelled_failed"] == 0,
        "idle connections keep no new client out": figures["idle_failed"] == 0,
        "memory of large requests is given back": figures["memory_aggregator_after_mb"]
        <= figures["memory_aggregator_before_mb"] + GIVEN_BACK_MB,
        "large requests leave a node below the limit of its unit": figures["memory_node_peak_mb"] <= 200,
        "large requests of one client fail none": not figures["greedy_failed"] and figures["others_failed"] == 0,
        "large requests of one client cost the others no device": figures["others_degraded_percent"] <= 1,
        "with large requests of one client p99 of the others is below the deadline": figures["others_p99_ms"]
        < 1e3 * DEADLINE_S,
        "flipped bits fail no request and change no answer": figures["flips_failed"] == figures["flips_wrong"] == 0
        and figures["flips"] > 0,
        "two liars cost at most a point against the same nodes dead": max(figures["liars_loss_points"].values()) <= 1,
        "liars cost no honest node": figures["liars_without_honest_device"] == 0,
        "liars that are honest again are in use again": figures["liars_back_s"] < TIMEOUT_S,
        "memory is flat": figures["aggregator_rss_growth"] <= MEMORY_GROWTH,
        "descriptors are flat": figures["aggregator_descriptors_gained"] <= 2,
        "fuzz: both servers live": figures["fuzz_node_alive"] and figures["fuzz_aggregator_alive"],
        "fuzz: memory is flat": max(figures["fuzz_node_rss_growth"], figures["fuzz_aggregator_rss_growth"])
        <= MEMORY_GROWTH,
    }
    return [name for name, kept in promises.items() if not kept]


def report(title: str, figures: Figures) -> None:
    """Prints figures."""
    print(f"{title}:")
    for key, value in figures.items():
        print(f"  {key:32} {value:.4g}" if isinstance(value, float) else f"  {key:32} {value}", flush=True)


def main() -> int:
    """Runs all phases and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000, help="requests in the storm (default: %(default)s)")
    parser.add_argument(
        "--total", type=int, default=100_000, help="all requests, including those after it (default: %(default)s)"
    )
    parser.add_argument(
        "--rss-from", type=int, default=10_000, help="request from which memory is measured (default: %(default)s)"
    )
    parser.add_argument(
        "--messages", type=int, default=10_000, help="fuzzed messages to each server (default: %(default)s)"
    )
    parser.add_argument("--flips", type=int, default=4000, help="requests while bits flip (default: %(default)s)")
    parser.add_argument("--lies", type=int, default=500, help="requests for each way of lying (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="concurrent clients (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not args.rss_from <= args.requests <= args.total:
        parser.error("--rss-from must not be more than --requests, and that not more than --total")
    inputs, _ = toy_data(200, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        bundle = toy_bundle(Path(folder) / "bundle", NUM_DEVICES, tested=True, width=WIDTH)
        figures = storm_and_memory(bundle, inputs, args)
        with storm.site(bundle, DEADLINE_S, args.seed, bandwidth_bytes_per_s=slow.BYTES_PER_S) as site:
            figures |= slow.greedy(site.address, inputs, concurrency=GREEDY_OTHERS, seconds=GREEDY_S)
        large = toy_bundle(Path(folder) / "large", 2, shape=memory.SHAPE)
        with storm.site(large, LARGE_DEADLINE_S, args.seed) as site:
            figures |= memory.large_requests(site, concurrency=LARGE_CLIENTS)
        figures |= wrong.liars(bundle, inputs, LIARS, args.lies)
        figures |= fuzz(bundle, inputs, args)
    report("all", figures)
    failed = broken(figures)
    config = {key: value for key, value in vars(args).items() if key != "out"}
    config |= {"devices": NUM_DEVICES, "deadline_s": DEADLINE_S, "client_deadline_s": CLIENT_DEADLINE_S}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    figures = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    provenance = {"config": config, "machine": machine(), "code_version": code_version(), "date": date}
    write_json(args.out, {**figures, "broken": failed, **provenance})
    print(f"written to {args.out}")
    for name in failed:
        print(f"BROKEN: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("soak: interrupted; no results were written", file=sys.stderr)
        sys.exit(130)
