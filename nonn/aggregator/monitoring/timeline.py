"""What happened in each of the last seconds: requests, their latency and expected accuracy.

Each second stores a uniform sample of its latencies (Vitter 1985, "Random sampling with a reservoir", algorithm R), so
memory and the work for a request do not depend on the load.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Second", "Timeline", "quantile"]

SAMPLES_A_SECOND = 64


def quantile(values: Sequence[float], q: float) -> float | None:
    """The value that a share q of all values does not exceed (nearest rank); None without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


@dataclass
class Second:
    """One second.

    Attributes:
        number: time of the clock in whole seconds.
        requests: number of requests that ended in it.
        failed: number of requests without an answer.
        accuracy: sum of the expected accuracy of the answers.
        latencies_s: a sample of the answers' latencies.
    """

    number: int
    requests: int = 0
    failed: int = 0
    accuracy: float = 0.0
    latencies_s: list[float] = field(default_factory=list)


class Timeline:
    """The last seconds.

    Args:
        length_s: number of seconds stored.
    """

    def __init__(self, length_s: int = 60) -> None:
        self.length_s = length_s
        self._seconds: deque[Second] = deque(maxlen=length_s)
        self._random = random.Random(0)  # chooses the stored samples; no need for a secure generator

    def add(self, now: float, latency_s: float, expected_accuracy: float | None) -> None:
        """Counts one request.

        Args:
            now: time when it ended.
            latency_s: its latency.
            expected_accuracy: expected accuracy of its answer; None without one.
        """
        if not self._seconds or self._seconds[-1].number < int(now):
            self._seconds.append(Second(int(now)))
        second = self._seconds[-1]
        second.requests += 1
        if expected_accuracy is None:
            second.failed += 1
            return
        second.accuracy += expected_accuracy
        if len(second.latencies_s) < SAMPLES_A_SECOND:
            second.latencies_s.append(latency_s)
        elif (place := self._random.randrange(second.requests)) < SAMPLES_A_SECOND:
            second.latencies_s[place] = latency_s

    def seconds(self, now: float) -> list[Second]:
        """The last whole seconds, oldest first, including those without requests [length_s]."""
        known = {second.number: second for second in self._seconds}
        return [known.get(number) or Second(number) for number in range(int(now) - self.length_s, int(now))]
