"""Two aggregators of the same nodes, of which one fails under load, compared with a single one.

Each outage hits the aggregator that the clients use: SIGKILL, SIGTERM, or SIGSTOP for three seconds. A client's time to
the next answer is the longest time between two of its answers around an outage; without one ("calm"), that is its
latency and its pause. All clients share each outage: with ten outages, one slow one decides the 99th percentile, so the
median is given too. A single aggregator is started again at once, as a supervisor does. One of two is started again a
second later, after the measurement, because its start takes the processor from those that answer.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import storm
from benchmarks.endurance import CLIENT_DEADLINE_S, DEADLINE_S
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.aggregator.inventory import Node, write_inventory
from nonn.client import Client
from tests.fleets import Running
from tests.serving import TIMEOUT_S

__all__ = ["SECTIONS", "Aggregators", "outages"]

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "pause": signal.SIGSTOP}
KINDS = tuple(SIGNALS)
CLIENTS = 8
PAUSE_S = 3.0
BETWEEN_S = 0.01  # a client's pause between two requests
SETTLE_S = 1.0  # before and after each outage
ROUNDS_SINGLE = 2  # without a second aggregator each outage costs seconds
NEXT_ANSWER_MS = 100  # the promise for those that die; what is stopped is found by its silence


class Aggregators:
    """Some aggregators of the same nodes.

    Args:
        ground: its bundle and nodes, without the proxies, whose threads would delay the clients.
        number: of aggregators.
        stack: ends them.
    """

    def __init__(self, ground: Ground, number: int, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack = ground.folder, stack
        inventory = ground.folder / "aggregators.toml"
        states = ground.site.cluster.states()
        write_inventory(inventory, [Node(id=f"node-{s.node}", address=s.address, student=s.node) for s in states])
        self._command: tuple[Any, ...] = ("nonn", "serve", ground.bundle.path, "--inventory", inventory)
        self._command += ("--deadline", DEADLINE_S)
        self._processes = [self._start(i, 0) for i in range(number)]
        self.addresses: list[str] = [process.ready["address"] for process in self._processes]

    def _start(self, number: int, port: int) -> Running:
        running = Running(Path(self._folder) / f"aggregator-{number}.log", *self._command, "--port", port)
        self._stack.callback(running.close)
        return running

    def take_down(self, address: str, kind: str) -> None:
        """Begins an outage of one aggregator."""
        self._processes[self.addresses.index(address)].child.send_signal(SIGNALS[kind])

    def bring_back(self, address: str, kind: str) -> None:
        """Ends an outage; returns when the aggregator is ready again."""
        number = self.addresses.index(address)
        process = self._processes[number]
        if kind == "pause":
            process.child.send_signal(signal.SIGCONT)
            return
        process.child.wait(TIMEOUT_S)
        process.close()
        self._processes[number] = self._start(number, int(address.rpartition(":")[2]))
        assert self._processes[number].ready["address"] == address


@contextlib.contextmanager
def _asking(addresses: list[str], inputs: NDArray[Any]) -> Iterator[tuple[Client, list[list[storm.Record]]]]:
    """Clients that ask during the block; yields one of them, and their requests, complete after the block."""
    over, found = threading.Event(), list[list[storm.Record]]()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(",".join(addresses), CLIENT_DEADLINE_S)) for _ in range(CLIENTS)]

        def ask(client: Client) -> None:
            found.append(storm.load(client, inputs, 1, lambda number: not over.wait(BETWEEN_S)))

        threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        try:
            yield clients[0], found
        finally:
            over.set()
            for thread in threads:
                thread.join()


def longest_gap(records: list[storm.Record], start_s: float, end_s: float) -> float:
    """Longest time between two answers of one client, of those that end in a window or are cut by its end."""
    done_s = [record.done_s for record in records if record.answer is not None]
    before = max((at for at in done_s if at < start_s), default=start_s)
    inside = [at for at in done_s if start_s <= at <= end_s]
    return float(np.diff([before, *inside, end_s]).max())


def outages(ground: Ground, number: int, rounds: int) -> Figures:
    """Time to the next answer at each kind of outage.

    Args:
        ground: the cluster.
        number: of aggregators.
        rounds: outages of each kind.

    Returns:
        For each kind, median, 99th percentile and maximum in milliseconds; the number of requests, and of failed ones.
    """
    windows: dict[str, list[tuple[float, float]]] = {kind: [] for kind in ("calm", *KINDS)}
    with contextlib.ExitStack() as stack:
        aggregators = Aggregators(ground, number, stack)
        with _asking(aggregators.addresses, ground.inputs) as (client, found):
            time.sleep(2 * SETTLE_S)
            for kind in KINDS * rounds:
                calm = time.monotonic()
                time.sleep(SETTLE_S)
                start = time.monotonic()
                windows["calm"].append((calm, start))
                failed = client.aggregator
                aggregators.take_down(failed, kind)
                time.sleep(PAUSE_S if kind == "pause" else 0.0 if number == 1 else SETTLE_S)
                if number == 1:
                    aggregators.bring_back(failed, kind)
                    time.sleep(SETTLE_S)
                windows[kind].append((start, time.monotonic()))
                if number > 1:
                    aggregators.bring_back(failed, kind)
                    time.sleep(2 * SETTLE_S)
    figures: Figures = {"p50_ms": {}, "p99_ms": {}, "max_ms": {}}
    for kind, spans in windows.items():
        gaps_ms = [1e3 * longest_gap(records, *span) for records in found for span in spans]
        figures["p50_ms"][kind] = round(float(np.median(gaps_ms)), 1)
        figures["p99_ms"][kind] = round(float(np.percentile(gaps_ms, 99)), 1)
        figures["max_ms"][kind] = round(max(gaps_ms), 1)
    everything = [record for records in found for record in records]
    figures["requests"] = len(everything)
    figures["failed"] = sum(record.answer is None for record in everything)
    figures["failures"] = reasons(everything)
    return figures


def _aggregators(ground: Ground) -> Figures:
    pair, single = outages(ground, 2, ground.args.outages), outages(ground, 1, ROUNDS_SINGLE)
    return {f"aggregators_{key}": value for key, value in pair.items()} | {
        f"aggregators_single_{key}": value for key, value in single.items()
    }


SECTIONS = (
    Section(
        "aggregators",
        _aggregators,
        {
            "an aggregator that fails costs no request of clients that have another": lambda f: (
                f["aggregators_failed"] == 0
            ),
            "if one of two aggregators dies, the next answer comes within 100 ms": lambda f: (
                max(f["aggregators_p99_ms"][kind] for kind in ("kill", "term")) <= NEXT_ANSWER_MS
            ),
        },
    ),
)
