"""Which aggregator a request goes to first, and when another one is asked too: logic without clock or network.

The aggregator that answered last is asked first. A client therefore stays with one aggregator, whose batches it shares
with other clients, until another one answers in its place.

Silence is hedged (Dean and Barroso 2013, The Tail at Scale): after one and a half times the 95th percentile of the last
latencies the next aggregator is asked too, and the first answer is used. So a stopped process, or a machine that lost
its network, costs one such wait rather than a timeout. A hedge is a second request for the same work, so hedges are
limited to a tenth of the answers, after an initial allowance; without allowance a request is hedged at half of its
timeout (gRPC limits retries in the same way, proposal A6).
"""

from __future__ import annotations

import math
import threading
from collections import deque

__all__ = ["Order"]

FIRST_S = 0.1  # silence until a hedge while no latency is known
LEAST_S = 0.02  # a scheduler's hiccup is no silence
WINDOW, QUANTILE, FACTOR = 64, 0.95, 1.5
ANSWERS = 10  # that earn one hedge


class Order:
    """Order of the aggregators of one client; thread-safe.

    Args:
        num_links: number of aggregators.
        allowance: most hedges in a row.

    Attributes:
        first: number of the aggregator that is asked first.
    """

    def __init__(self, num_links: int, allowance: int) -> None:
        self._num_links = num_links
        self._earned = self._most = allowance * ANSWERS
        self._latencies: deque[float] = deque(maxlen=WINDOW)
        self._hedge_s = FIRST_S
        self._lock = threading.Lock()
        self.first = 0

    def links(self) -> list[int]:
        """Numbers of the aggregators, in the order in which one request asks them."""
        return [(self.first + i) % self._num_links for i in range(self._num_links)]

    @property
    def hedge_s(self) -> float:
        """Silence in seconds after which the next aggregator is asked too."""
        return self._hedge_s

    def may_hedge(self) -> bool:
        """Whether the allowance permits a hedge now; if so, it is used."""
        with self._lock:
            if self._earned < ANSWERS:
                return False
            self._earned -= ANSWERS
            return True

    def answered(self, link: int, latency_s: float) -> None:
        """An aggregator answered a request, so many seconds after it was asked."""
        with self._lock:
            self.first = link
            self._earned = min(self._most, self._earned + 1)
            self._latencies.append(latency_s)
            ordered = sorted(self._latencies)
            self._hedge_s = max(LEAST_S, FACTOR * ordered[math.ceil(QUANTILE * len(ordered)) - 1])
