"""How serving grows with nodes: ``python -m benchmarks.scaling``, part of ``make bench``.

Real processes on loopback, as in ``nonn bench serve``: 8, 16, 32 and 64 nodes, an aggregator, and the floor, a bare
gRPC server that fans out to as many bare servers as a request asks nodes. A bundle has at most 16 devices, so 32 and 64
nodes are two and four replicas of each; a request asks one of them. Students do nothing.

One client calls the aggregator and the floor in alternating blocks of requests; processor time is the difference over
a block, of the front alone and of all servers together. Then many clients ask at once, again in turn. Writes
``benchmarks/results/scaling.json``, from which ``scripts/tables.py`` and ``scripts/figures.py`` make table and plot.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from nonn.bench.bundle import SHAPE, idle_bundle
from nonn.bench.processes import Server, aggregator, asking, check_complete, clients, node_request, process, rate
from nonn.files import write_json
from nonn.provenance import code_version, machine
from nonn.reliability.subsets import MAX_DEVICES
from nonn.rpc.loop import run as run_loop
from nonn.rpc.wire import new_request

RESULTS = Path(__file__).parent / "results" / "scaling.json"
WARM_UP = 100
STARTING = 4  # processes that start at the same time
BLOCK = 50  # requests to one system before those to the other


@dataclass(frozen=True)
class System:
    """The aggregator and its nodes, or the floor.

    Attributes:
        front: the process that clients ask.
        behind: the processes that it asks.
    """

    front: Server
    behind: Sequence[Server]

    def spent_s(self) -> tuple[float, float]:
        """Processor time so far of the front, and of all processes."""
        front, *others = (_spent_s(server.pid) for server in (self.front, *self.behind))
        return front, front + sum(others)

    def resident_mb(self) -> tuple[float, float]:
        """Resident memory of the front, and the median of those behind it."""
        front, *others = (psutil.Process(s.pid).memory_info().rss / 1e6 for s in (self.front, *self.behind))
        return front, statistics.median(others)


def _spent_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def measure(folder: Path, nodes: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row: both systems with so many nodes."""
    bundle = idle_bundle(folder / "bundle", min(nodes, MAX_DEVICES))
    sample = np.random.default_rng(0).integers(0, 256, (1, *SHAPE), np.uint8)
    request, to_node = new_request("nonn", {"input": sample}, {}).SerializeToString(), node_request(bundle, sample)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(STARTING) as pool:

        def node(i: int) -> Server:
            command = ("nonn_device", "serve", bundle.path, "--student", i % bundle.num_devices, "--watch-stdin")
            return stack.enter_context(process(folder, f"node-{i}", *command))

        def echo(i: int) -> Server:
            return stack.enter_context(process(folder, f"echo-{i}", "nonn.bench.floor", len(node_reply)))

        behind = list(pool.map(node, range(nodes)))
        front = stack.enter_context(aggregator(folder, bundle, [server.address for server in behind], "aggregator"))
        ask = stack.enter_context(asking(front.address, request))
        node_reply, reply = stack.enter_context(asking(behind[0].address, to_node))(), ask()
        echoes = list(pool.map(echo, range(bundle.num_devices)))
        command = ("nonn.bench.floor", len(reply), len(to_node), *(server.address for server in echoes))
        floor = stack.enter_context(process(folder, "floor", *command))
        systems = {"nonn": System(front, behind), "floor": System(floor, echoes)}
        asks = {"nonn": ask, "floor": stack.enter_context(asking(floor.address, request))}
        row: dict[str, Any] = {"nodes": nodes, "asked": bundle.num_devices}
        row |= _in_blocks(systems, asks, args.requests)
        check_complete(ask(), bundle.num_devices)
        row |= run_loop(_throughput(systems, request, args))
        for name, system in systems.items():
            row[f"{name}_front_mb"], row[f"{name}_behind_mb"] = system.resident_mb()
    return row


def _in_blocks(systems: dict[str, System], asks: dict[str, Callable[[], bytes]], requests: int) -> dict[str, float]:
    """Latencies and processor time of lone requests."""
    times: dict[str, list[float]] = {name: [] for name in systems}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    for ask in asks.values():
        for _ in range(WARM_UP):
            ask()
    for _ in range(max(1, requests // BLOCK)):
        for name, ask in asks.items():
            before = systems[name].spent_s()
            for _ in range(BLOCK):
                start = time.perf_counter()
                ask()
                times[name].append(time.perf_counter() - start)
            after = systems[name].spent_s()
            spent[name].append((after[0] - before[0], after[1] - before[1]))
    row = dict[str, float]()
    for name, seconds in times.items():
        row |= {f"{name}_p{q}_ms": 1e3 * float(np.percentile(seconds, q)) for q in (50, 99)}
        front, everyone = (1e3 * sum(part) / len(seconds) for part in zip(*spent[name], strict=True))
        row |= {f"{name}_front_cpu_ms": front, f"{name}_all_cpu_ms": everyone}
    return row | {f"p{q}_ratio": row[f"nonn_p{q}_ms"] / row[f"floor_p{q}_ms"] for q in (50, 99)}


async def _throughput(systems: dict[str, System], request: bytes, args: argparse.Namespace) -> dict[str, float]:
    """Answers a second with many clients."""
    rates: dict[str, list[float]] = {name: [] for name in systems}
    async with contextlib.AsyncExitStack() as stack:
        calls = {
            name: await stack.enter_async_context(clients(system.front.address, args.clients))
            for name, system in systems.items()
        }
        for index in range(-1, args.rounds):  # the first is a warm-up
            for name in systems:
                per_s = await rate(calls[name], request, args.seconds)
                if index >= 0:
                    rates[name].append(per_s)
    return {f"{name}_per_s": statistics.median(per_s) for name, per_s in rates.items()}


def main() -> None:
    """Measures every number of nodes and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[8, 16, 32, 64], help="default: 8 16 32 64")
    parser.add_argument("--requests", type=int, default=1000, help="lone requests to each (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="clients at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of throughput (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each in a round (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # processes end while others are connected to them
    rows = []
    for nodes in args.nodes:
        with tempfile.TemporaryDirectory(prefix="nonn-scaling-") as folder:
            row = {key: round(value, 3) for key, value in measure(Path(folder), nodes, args).items()}
        print(", ".join(f"{key} {value:g}" for key, value in row.items()), file=sys.stderr, flush=True)
        rows.append(row)
    config = {key: value for key, value in vars(args).items() if key != "out"}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    where = {"config": config, "machine": machine(), "code_version": code_version(), "date": date}
    write_json(args.out, {"rows": rows, **where})
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
