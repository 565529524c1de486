"""Clients of a live cluster: they send requests at given times and record the answers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.client import Client
from nonn.errors import QuorumError, UnreachableError
from nonn_sim.scenario import Scenario

__all__ = ["LoadGenerator", "MeasuredRequest", "RequestSamples", "SampleOrder"]


@dataclass(frozen=True)
class RequestSamples:
    """Samples of the requests.

    Attributes:
        inputs: raw inputs [n, …].
        labels: true classes [n]; None if unknown.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class MeasuredRequest:
    """One request."""

    asked_at_s: float
    latency_s: float
    mask: int  # 0 if there was no answer
    correct: int
    samples: int


class SampleOrder:
    """The samples of each request: in a random order drawn from the seed, each sample equally often.

    Args:
        scenario: the scenario, with batch and seed.
        num_samples: number of samples.
    """

    def __init__(self, scenario: Scenario, num_samples: int) -> None:
        self._batch = min(scenario.load.batch, num_samples)
        self._order = np.random.default_rng(scenario.scenario.seed).permutation(num_samples)

    def of(self, request: int) -> NDArray[np.int64]:
        """Indices of the samples of a request, by its number in the order of arrival [batch]."""
        places = np.arange(request * self._batch, (request + 1) * self._batch) % len(self._order)
        chosen: NDArray[np.int64] = self._order[places]
        return chosen


class LoadGenerator:
    """Clients that send requests at given times.

    Args:
        scenario: the scenario, with batch, seed and load.
        client: client of the aggregator.
        samples: samples of the requests.
    """

    def __init__(self, scenario: Scenario, client: Client, samples: RequestSamples) -> None:
        self._client, self._samples = client, samples
        self._order = SampleOrder(scenario, len(samples.inputs))
        # Enough threads that no request waits for one while others wait for a silent node.
        waiting = scenario.load.rate_per_s * (scenario.policy.deadline_s + 1)
        self._threads = min(256, 8 + 2 * math.ceil(waiting))
        self._closed = scenario.load.concurrency if scenario.load.arrivals == "closed" else 0

    def send(self, times_s: Sequence[float]) -> list[MeasuredRequest]:
        """Sends one request at each time, relative to now; a closed load uses only their number."""
        start = time.monotonic()
        with ThreadPoolExecutor(self._closed or self._threads, thread_name_prefix="client") as pool:
            waiting = []
            for number, at_s in enumerate(times_s):
                if not self._closed:
                    time.sleep(max(0.0, start + at_s - time.monotonic()))
                waiting.append(pool.submit(self._ask, number, start, None if self._closed else at_s))
            return [future.result() for future in waiting]

    def send_for(self, duration_s: float) -> list[MeasuredRequest]:
        """A closed load: every client sends its next request when it has its answer."""
        start = time.monotonic()

        def client(number: int) -> list[MeasuredRequest]:
            rows: list[MeasuredRequest] = []
            while time.monotonic() - start < duration_s:
                rows.append(self._ask(number + len(rows) * self._closed, start, None))
            return rows

        with ThreadPoolExecutor(self._closed, thread_name_prefix="client") as pool:
            return [row for rows in pool.map(client, range(self._closed)) for row in rows]

    def _ask(self, number: int, start: float, at_s: float | None) -> MeasuredRequest:
        """Sends one request; latency is measured from its due time, so that a late client hides nothing."""
        chosen = self._order.of(number)
        asked_at_s = time.monotonic() - start if at_s is None else at_s
        mask = correct = 0
        try:
            answer = self._client.infer(self._samples.inputs[chosen])
            mask = answer.mask
            if self._samples.labels is not None:
                correct = int((answer.labels == self._samples.labels[chosen]).sum())
        except (QuorumError, UnreachableError):
            pass
        return MeasuredRequest(asked_at_s, time.monotonic() - start - asked_at_s, mask, correct, len(chosen))
