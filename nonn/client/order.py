"""Which aggregator a request goes to first, and how long one may leave a check unanswered: no clock, no network.

The aggregator that answered last is asked first. A client therefore stays with one aggregator, whose batches it shares
with other clients, until another one answers in its place.

An aggregator that does not answer a check within one and a half times the 95th percentile of the last checks is taken
to be stopped or cut off, and the next one is asked too. That is a second request for the same work, so such hedges are
limited to a tenth of the answers, after an initial allowance (gRPC limits retries in the same way, proposal A6).
"""

from __future__ import annotations

import math
import threading
from collections import deque

__all__ = ["Order"]

FIRST_S = 0.1  # patience with a check before the first answer to one
LEAST_S = 0.03  # a scheduler's hiccup is no silence
WINDOW, QUANTILE, FACTOR = 64, 0.95, 1.5
ANSWERS = 10  # that earn one hedge


class Order:
    """Order of the aggregators of one client; thread-safe.

    Args:
        num_links: number of aggregators.
        allowance: most hedges in a row.

    Attributes:
        first: number of the aggregator that is asked first.
        patience_s: how long a check may be unanswered.
    """

    def __init__(self, num_links: int, allowance: int) -> None:
        self._num_links = num_links
        self._earned = self._most = allowance * ANSWERS
        self._checks: deque[float] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()
        self.first, self.patience_s = 0, FIRST_S

    def links(self) -> list[int]:
        """Numbers of the aggregators, in the order in which one request asks them."""
        return [(self.first + i) % self._num_links for i in range(self._num_links)]

    def may_hedge(self) -> bool:
        """Whether the allowance permits a hedge now; if so, it is used."""
        with self._lock:
            if self._earned < ANSWERS:
                return False
            self._earned -= ANSWERS
            return True

    def answered(self, link: int) -> None:
        """An aggregator answered a request."""
        with self._lock:
            self.first = link
            self._earned = min(self._most, self._earned + 1)

    def checked(self, latency_s: float) -> None:
        """An aggregator answered a check, after so many seconds."""
        with self._lock:
            self._checks.append(latency_s)
            ordered = sorted(self._checks)
            self.patience_s = max(LEAST_S, FACTOR * ordered[math.ceil(QUANTILE * len(ordered)) - 1])
