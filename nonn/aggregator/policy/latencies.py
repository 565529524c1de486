"""What a node's recent answers say about how long the next one takes.

A window of the last 64 latencies and its order statistics. Not a moving average, which knows no tail, and not a sketch
of quantiles (P², t-digest), which forgets slowly and cannot say what a silence of so many milliseconds means: a window
answers that by counting. 64, because three of them lie above the 95th percentile, so that one hiccup does not decide
when to hedge, and because a device whose clock, load or link has changed is known again after as many answers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from math import ceil

__all__ = ["WINDOW", "Latencies"]

WINDOW = 64
ROUNDING_S = 1e-9  # who looks when a latency is over must find it over, whatever sums of times round to
STALE = 4  # sorted anew when a quarter of the window has changed: half a microsecond for each answer


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
        """One more answer; the oldest of more than 64 is forgotten."""
        self._recent.append(latency_s)
        self._changed += 1

    def quantile(self, q: float) -> float:
        """The smallest latency that at least a share q of the window does not exceed; 0 while nothing is known."""
        ordered = self._ordered()
        return ordered[max(ceil(q * len(ordered)), 1) - 1] if ordered else 0.0

    def rest(self, elapsed_s: float, limit_s: float) -> tuple[float, float]:
        """What to expect of a node that has been silent for some time.

        Args:
            elapsed_s: since it was asked.
            limit_s: what comes later than this after asking is of no use.

        Returns:
            The probability that it answers between the two, and the median of how much longer that takes. By the rule
            of succession one answer more than those in the window is beyond all of them, so a node that has been
            silent for longer than ever has no chance, and one of which nothing is known has an even one.
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
