"""Fault injection for a live cluster, and a record of every request to check the answers afterwards.

Real processes and sockets: nodes are killed, stopped and started again, and a TCP proxy between each node and the
aggregator slows the link, corrupts replies, cuts connections or goes silent. Every request is recorded, and afterwards
compared with the state of the nodes at the time and with offline fusion.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from nonn_sim.proxy import Proxies
from nonn_sim.scenario import LinkConfig
from numpy.typing import NDArray

from nonn.aggregator.inventory import Node, write_inventory
from nonn.answer import Answer
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.errors import NonnError
from nonn.reliability.subsets import members

# The injection of the same kind with ``on=False`` ends a fault.
KINDS = ("kill", "stop", "slow", "garbage", "cut", "silent")
ANSWERS_THROUGH = ("slow",)  # with any other fault a node must be in no answer
SLOWDOWN = 10
# A node is settled when it has been without a fault for this long.
SETTLED_S = 3.0
IN_USE_S = 2.0  # the guarantee
# A signal takes effect after it is sent, and bytes that were on their way arrive.
TAKES_EFFECT_S = 0.2
LOOK_S = 0.02


@dataclass(frozen=True)
class Outage:
    """One fault of one node, on ``time.monotonic``.

    Attributes:
        node: device.
        kind: of ``KINDS``.
        start_s: when it was certainly in effect.
        end_s: when it was about to end.
        back_s: when the node was without a fault again, and ready if it was killed.
        next_s: when its next fault began; infinite if there was none.
    """

    node: int
    kind: str
    start_s: float
    end_s: float
    back_s: float
    next_s: float = float("inf")


@dataclass(frozen=True)
class Record:
    """One request.

    Attributes:
        row: its first sample; the next ones follow, from the start again at the end.
        asked_s: when it was sent, on ``time.monotonic``.
        done_s: when its answer or error came.
        answer: the answer; None without one.
        error: the error; empty without one.
        size: number of samples.
    """

    row: int
    asked_s: float
    done_s: float
    answer: Answer | None
    error: str = ""
    size: int = 1

    def rows(self, num_samples: int) -> NDArray[np.int64]:
        """Its samples [size] of ``num_samples``."""
        return (self.row + np.arange(self.size)) % num_samples


@dataclass
class Site:
    """A running cluster with a proxy before each node, and a separate aggregator."""

    bundle: Bundle
    cluster: LocalCluster
    proxies: Proxies
    address: str
    pid: int
    log: Path
    http: str = ""
    slow_s: list[float] = field(default_factory=list)

    def inject(self, node: int, kind: str, on: bool) -> None:
        """Starts or ends a fault; returns when it has begun, and when a killed node is ready again."""
        if kind == "kill":
            (self.cluster.kill if on else self.cluster.restart)(node)
        elif kind == "stop":
            (self.cluster.stop if on else self.cluster.resume)(node)
        elif kind == "slow":
            delay_s = self.slow_s[node] * (SLOWDOWN - 1) if on else 0.0
            self.proxies.change(node, lambda proxy: setattr(proxy, "delay_s", delay_s))
        elif kind == "garbage":
            self.proxies.change(node, lambda proxy: setattr(proxy, "corrupt", on))
        elif kind == "cut":
            self.proxies.change(node, lambda proxy: proxy.partition(on))
        else:
            self.proxies.change(node, lambda proxy: proxy.silence(on))

    def learn_latencies(self, client: Client) -> None:
        """How long each node usually takes, which is what slow is a multiple of."""
        self.slow_s = [node["latency_s"] for node in client.metadata().nodes]


@contextlib.contextmanager
def site(
    bundle: Bundle, deadline_s: float, seed: int, options: Sequence[str] = (), bandwidth_bytes_per_s: float = 0.0
) -> Iterator[Site]:
    """Starts nodes, proxies and an aggregator; a bandwidth of 0 does not limit the links."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nonn-storm-")))
        cluster = stack.enter_context(LocalCluster(bundle.path))
        link = LinkConfig(latency_s=0.0, jitter_s=0.0, bandwidth_bytes_per_s=bandwidth_bytes_per_s)
        links = [link] * bundle.num_devices
        proxies = stack.enter_context(Proxies([state.address for state in cluster.states()], links, seed))
        inventory, log = folder / "nodes.toml", folder / "aggregator.log"
        nodes = [Node(id=f"node-{i}", address=address, student=i) for i, address in enumerate(proxies.addresses)]
        write_inventory(inventory, nodes)
        command = [sys.executable, "-m", "nonn", "serve", str(bundle.path), "--inventory", str(inventory)]
        errors = stack.enter_context(log.open("wb"))
        process = stack.enter_context(
            subprocess.Popen(
                [*command, "--watch-stdin", "--deadline", str(deadline_s), *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        )
        stack.callback(process.terminate)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the aggregator did not start: {log.read_text()}")
        ready = json.loads(line)
        yield Site(bundle, cluster, proxies, ready["address"], process.pid, log, ready.get("http") or "")
        if process.poll() is not None:
            raise RuntimeError(f"the aggregator ended with {process.returncode}: {log.read_text()}")


class Weather:
    """Injects faults by a seeded schedule, with a thread for each node, while the block runs.

    Each node runs without a fault for a while, then has a fault of the next kind of a shuffled deck, so that every kind
    occurs. A fault is delayed while it would leave no node that has been without a fault for ``SETTLED_S``.

    Args:
        site: cluster to inject faults into.
        seed: seed of the schedule.
        well_s: shortest and longest time between faults of a node.
        fault_s: shortest and longest time of a fault.
    """

    def __init__(
        self,
        site: Site,
        seed: int,
        well_s: tuple[float, float] = (2.5, 5.0),
        fault_s: tuple[float, float] = (1.0, 6.0),
    ) -> None:
        self._site, self._seed, self._well_s, self._fault_s = site, seed, well_s, fault_s
        self._lock, self._over = threading.Lock(), threading.Event()
        self._well_since = [float("-inf")] * site.bundle.num_devices
        self._outages: list[list[Outage]] = [[] for _ in self._well_since]
        self.fewest_well = site.bundle.num_devices

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(len(self._well_since), thread_name_prefix="weather")
        self._threads = [self._pool.submit(self._injure, node) for node in range(len(self._well_since))]
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._pool.shutdown()
        for thread in self._threads:
            thread.result()

    @property
    def outages(self) -> list[Outage]:
        """All faults, after the block has ended."""
        return [outage for rows in self._outages for outage in rows]

    def _injure(self, node: int) -> None:
        rng, rows = random.Random(f"{self._seed} {node}"), self._outages[node]
        kinds = itertools.chain.from_iterable(iter(lambda: rng.sample(KINDS, len(KINDS)), None))
        self._over.wait(rng.uniform(0.0, self._well_s[1]))
        for kind in kinds:
            while not self._over.is_set() and not self._may_fail(node):
                self._over.wait(0.1)
            if self._over.is_set():
                return
            if rows:
                rows[-1] = dataclasses.replace(rows[-1], next_s=time.monotonic())
            self._site.inject(node, kind, True)
            start_s = time.monotonic() + TAKES_EFFECT_S
            self._over.wait(rng.uniform(*self._fault_s))
            end_s = time.monotonic()
            self._site.inject(node, kind, False)
            back_s = time.monotonic()
            rows.append(Outage(node, kind, start_s, end_s, back_s))
            self._well_since[node] = back_s
            self._over.wait(rng.uniform(*self._well_s))

    def _may_fail(self, node: int) -> bool:
        """Whether a settled node would be left; if so, this node is marked as faulty from now on."""
        with self._lock:
            now = time.monotonic()
            settled = [i for i, since in enumerate(self._well_since) if now - since >= SETTLED_S and i != node]
            if settled:
                self._well_since[node] = float("inf")
                self.fewest_well = min(self.fewest_well, sum(since < float("inf") for since in self._well_since))
            return bool(settled)


class Sampler(ABC):
    """Takes a sample every ``LOOK_S`` seconds in a thread while the block runs."""

    def __init__(self) -> None:
        self._over = threading.Event()

    @abstractmethod
    def sample(self, passed_s: float) -> None:
        """Takes one sample, some seconds after the last one."""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name=type(self).__name__.lower())
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(LOOK_S):
            now = time.monotonic()
            self.sample(now - last)
            last = now


class Stalls(Sampler):
    """How long this process could not run during the block, because of the machine and not of the cluster.

    Attributes:
        longest_s: longest time that a thread slept beyond its timer.
    """

    longest_s = 0.0

    def sample(self, passed_s: float) -> None:
        """Compares the time that has passed with that of the timer."""
        self.longest_s = max(self.longest_s, passed_s - LOOK_S)


_histories: list[list[Record]] = []


@contextlib.contextmanager
def history() -> Iterator[list[Record]]:
    """Yields a list to which every ``load`` and ``keep`` in the block adds requests.

    Cyclic garbage stays until the block ends. To look for it Python would search all recorded answers, for up to a
    quarter of a second after 40,000 of them, in which no client of this process goes on: that would count as latency.
    """
    records = list[Record]()
    _histories.append(records)
    gc.disable()
    try:
        yield records
    finally:
        _histories.remove(records)
        if not _histories:
            gc.enable()


def keep(records: Sequence[Record]) -> None:
    """Adds requests to every ``history``."""
    for kept in _histories:
        kept += records


class Asker(Protocol):
    """A client of an aggregator, such as ``nonn.Client``."""

    def infer(self, batch: NDArray[Any], /) -> Answer:
        """The answer to one batch; raises ``NonnError`` if there is none."""
        ...


def ask(client: Asker, inputs: NDArray[Any], row: int, size: int = 1) -> Record:
    """One request for so many samples of ``inputs``, from a row on."""
    batch, asked_s = inputs.take(range(row, row + size), axis=0, mode="wrap"), time.monotonic()
    try:
        answer, error = client.infer(batch), ""
    except NonnError as exc:
        answer, error = None, f"{type(exc).__name__}: {exc}"
    return Record(row, asked_s, time.monotonic(), answer, error, size)


def load(
    client: Asker,
    inputs: NDArray[Any],
    concurrency: int,
    more: Callable[[int], bool],
    sizes: Sequence[int] = (1,),
    *,
    kept: bool = True,
) -> list[Record]:
    """Clients that ask again as soon as they have an answer.

    Args:
        client: client of the aggregator.
        inputs: samples [n, …].
        concurrency: number of concurrent clients.
        more: whether to send another request, given the number of sent ones.
        sizes: number of samples of the first, second, … request; repeated.
        kept: whether the requests are added to every ``history``; those to another bundle are not.
    """
    numbers, lock, interrupted = itertools.count(), threading.Lock(), threading.Event()

    def ask_again(_: int) -> list[Record]:
        rows: list[Record] = []
        while True:
            with lock:
                number = next(numbers)
            if interrupted.is_set() or not more(number):
                return rows
            rows.append(ask(client, inputs, number % len(inputs), sizes[number % len(sizes)]))

    with ThreadPoolExecutor(concurrency, thread_name_prefix="client") as pool:
        try:
            records = [record for rows in pool.map(ask_again, range(concurrency)) for record in rows]
        finally:
            interrupted.set()
    if kept:
        keep(records)
    return sorted(records, key=lambda record: record.done_s)


def wrong_answers(bundle: Bundle, records: Sequence[Record]) -> list[Record]:
    """Answers that are not what the bundle says about exactly the devices that they name.

    Compared are the logits and confidences with the offline fusion of the recorded features, the stated accuracy, the
    bundle, and whether the answer is called degraded.
    """
    features, labels = bundle.features
    by_mask: dict[int, list[Record]] = {}
    for record in records:
        if record.answer is not None:
            by_mask.setdefault(record.answer.mask, []).append(record)
    wrong = []
    for mask, group in by_mask.items():
        rows = [record.rows(len(labels)) for record in group]
        fused = bundle.head.logits({i: features[i][np.concatenate(rows)] for i in members(mask)})
        sure = bundle.head.confidence(fused, mask)
        stated = bundle.hash, bundle.table.accuracy[mask], mask.bit_count() < bundle.num_devices
        end = 0
        for record in group:
            begin, end, answer = end, end + record.size, record.answer
            assert answer is not None
            if (
                answer.logits.shape != (record.size, fused.shape[1])
                or not np.allclose(answer.logits, fused[begin:end], rtol=1e-4, atol=1e-4)
                or not np.allclose(answer.confidence, sure[begin:end], rtol=1e-3, atol=1e-3)
                or (answer.bundle, answer.expected_accuracy, answer.degraded) != stated
            ):
                wrong.append(record)
    return wrong


def false_members(records: Sequence[Record], outages: Sequence[Outage]) -> list[tuple[Record, Outage]]:
    """Answers that name a device that could not answer at any time between question and answer."""
    return [
        (record, outage)
        for outage in outages
        if outage.kind not in ANSWERS_THROUGH
        for record in records
        if record.answer is not None
        and outage.start_s <= record.asked_s
        and record.done_s <= outage.end_s
        and record.answer.answered[outage.node]
    ]


def return_times(records: Sequence[Record], outages: Sequence[Outage]) -> list[tuple[float, Outage]]:
    """Seconds from each node's return until it is in an answer, or until it failed again before that.

    Returns are left out if no client asked for as long as a return may take.
    """
    found = []
    for outage in outages:
        used = (r.done_s for r in records if r.answer is not None and r.answer.answered[outage.node])
        first = min((at for at in used if at >= outage.back_s), default=float("inf"))
        back_until = min(first, outage.next_s)
        if back_until < float("inf") or records[-1].done_s > outage.back_s + IN_USE_S:
            found.append((back_until - outage.back_s, outage))
    return found


def hung_cost(site: Site, client: Client, inputs: NDArray[Any], node: int, deadline_s: float) -> float:
    """Cost of a hung node over all requests together, in deadlines: one client, one request after another."""

    def ask(row: int) -> float:
        start = time.monotonic()
        client.infer(inputs[row : row + 1])
        return time.monotonic() - start

    before_s = [ask(row) for row in range(30)]
    usual_s = float(np.median(before_s))
    site.inject(node, "stop", True)
    try:
        waited_s = [ask(row) - usual_s for row in range(30)]
    finally:
        site.inject(node, "stop", False)
    # Delays below a tenth of a deadline, or as long as before the fault, come from the machine and not from the node.
    noise_s = max(deadline_s / 10, max(before_s) - usual_s)
    return sum(wait for wait in waited_s if wait > noise_s) / deadline_s
