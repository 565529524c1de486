"""Latency statistics of one node, from its recent answers.

A window of the last 64 latencies and its order statistics. A moving average has no tail; a quantile sketch (P²,
t-digest) forgets slowly and cannot give the probability of an answer after a silence of so many milliseconds, which a
window gives by counting. With 64, three latencies are above the 95th percentile, so one hiccup does not decide when to
hedge, and the statistics of a device whose clock, load or link has changed are right again after as many answers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from math import ceil

__all__ = ["WINDOW", "Latencies"]

WINDOW = 64
ROUNDING_S = 1e-9  # a check at the end of a latency must find it over, despite rounding of sums
STALE = 4  # sorted again when a quarter of the window has changed: half a microsecond for each answer


class Latencies:
    """The last latencies of one node, in seconds."""

    __slots__ = ("_changed", "_recent", "_sorted")

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._sorted: list[float] = []
        self._changed = 0

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, latency_s: float) -> None:
        """Adds one answer; beyond 64, the oldest is dropped."""
        self._recent.append(latency_s)
        self._changed += 1

    def quantile(self, q: float) -> float:
        """The smallest latency that at least a share q of the window does not exceed; 0 while the window is empty."""
        ordered = self._ordered()
        return ordered[max(ceil(q * len(ordered)), 1) - 1] if ordered else 0.0

    def rest(self, elapsed_s: float, limit_s: float) -> tuple[float, float]:
        """What to expect of a node that has been silent for some time.

        Args:
            elapsed_s: time since it was asked.
            limit_s: latest useful time of a reply, since it was asked.

        Returns:
            The probability that it answers between the two, and the median remaining time. By the rule
            of succession one answer more than those in the window is beyond all of them, so a node that has been
            silent for longer than ever has probability 0, and one without latencies 1/2.
        """
        ordered = self._ordered()
        if not ordered:
            return 0.5, max(0.0, limit_s - elapsed_s) / 2
        first = bisect_right(ordered, elapsed_s + ROUNDING_S)
        last = bisect_right(ordered, limit_s)
        if last <= first:
            return 0.0, 0.0
        return (last - first) / (len(ordered) - first + 1), ordered[(first + last) // 2] - elapsed_s

    def _ordered(self) -> list[float]:
        if self._changed * STALE > len(self._recent):
            self._sorted = sorted(self._recent)
            self._changed = 0
        return self._sorted
