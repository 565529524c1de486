"""Memory of an aggregator and its nodes under the largest legal requests of many clients at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from benchmarks import storm
from benchmarks.section import Figures, Ground, Section
from nonn.client import Client
from nonn.errors import NonnError, OverloadError
from tests.toys import toy_bundle

__all__ = ["SECTIONS", "SHAPE", "large_requests"]

SHAPE = (3, 32, 32)
NUM_SAMPLES = 1000  # 12 MB in float32
CLIENTS, DEADLINE_S = 64, 10.0
GIVEN_BACK_MB = 60  # what large requests may leave behind
SETTLE_S = 5.0  # until memory is given back


class Peak(storm.Sampler):
    """Highest resident memory of processes while the block runs, in MB."""

    def __init__(self, pids: Sequence[int]) -> None:
        super().__init__()
        self._processes = [psutil.Process(pid) for pid in pids]
        self.peak_mb = self.resident_mb()

    def resident_mb(self) -> list[float]:
        """Resident memory of each process now."""
        return [process.memory_info().rss / 1e6 for process in self._processes]

    def sample(self, passed_s: float) -> None:
        """Compares the resident memory with the peak so far."""
        self.peak_mb = [max(pair) for pair in zip(self.peak_mb, self.resident_mb(), strict=True)]


def large_requests(site: storm.Site, *, concurrency: int, settle_s: float = SETTLE_S) -> dict[str, Any]:
    """So many clients, each with a connection, send a request of 12 MB at once.

    Args:
        site: cluster of a bundle with inputs of ``SHAPE``.
        concurrency: number of clients.
        settle_s: time until memory is measured again.

    Returns:
        Resident memory in MB before, at the peak and afterwards, and how many requests were refused or failed.
    """
    batch = np.random.default_rng(0).uniform(0, 255, (NUM_SAMPLES, *SHAPE)).astype(np.float32)
    start, errors, lock = threading.Barrier(concurrency), list[NonnError](), threading.Lock()

    def ask() -> None:
        with Client(site.address, 60.0) as client:
            client.infer(batch[:1])
            start.wait()
            try:
                client.infer(batch)
            except NonnError as exc:
                with lock:
                    errors.append(exc)

    pids = [site.pid, *(state.pid for state in site.cluster.states() if state.pid)]
    threads = [threading.Thread(target=ask) for _ in range(concurrency)]
    with Peak(pids) as peak:
        before_mb = peak.resident_mb()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        peak_mb = peak.peak_mb
        time.sleep(settle_s)
        after_mb = peak.resident_mb()
    refused = sum(isinstance(error, OverloadError) for error in errors)
    return {
        "memory_aggregator_before_mb": before_mb[0],
        "memory_aggregator_peak_mb": peak_mb[0],
        "memory_aggregator_after_mb": after_mb[0],
        "memory_node_peak_mb": max(peak_mb[1:]),
        "memory_node_after_mb": max(after_mb[1:]),
        "memory_refused": refused,
        "memory_failures": sorted(set(map(str, errors)))[:5],
        "memory_failed": len(errors) - refused,
    }


def _large(ground: Ground) -> Figures:
    large = toy_bundle(ground.folder / "large", 2, shape=SHAPE)
    with storm.site(large, DEADLINE_S, ground.args.seed) as site:
        return large_requests(site, concurrency=CLIENTS)


SECTIONS = (
    Section(
        "bytes",
        _large,
        {
            "large requests are answered, or refused as an overload": lambda f: f["memory_failed"] == 0,
            "memory of large requests is given back": lambda f: (
                f["memory_aggregator_after_mb"] <= f["memory_aggregator_before_mb"] + GIVEN_BACK_MB
            ),
            "large requests leave a node below the limit of its unit": lambda f: f["memory_node_peak_mb"] <= 200,
        },
    ),
)
