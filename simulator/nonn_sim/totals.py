"""The requests of a long run in bounded memory.

A run keeps every request up to ``KEPT``. Beyond, it adds them up here, ``KEPT`` at a time:

- numbers of requests and answers, right answers and accuracy over time are exact;
- times of answers are counted in bins that are 0.2 % wide, so a quantile is off by at most 0.1 %; minimum and maximum
  are exact;
- both are kept for 20 to 40 batches of consecutive requests, which intervals need (``nonn_sim.batches``). Where there
  are 40, neighbours are merged.

Limits: windows of accuracy over time are kept as the scenario asks for them. Their width has to be known before the run
ends; if the run has a number of requests instead of a duration, it is a twentieth of the length that the first ``KEPT``
requests predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, log1p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.laws.outcome import meets
from nonn_sim.batches import BATCHES, enclosing_ranks, ratio_interval

__all__ = ["KEPT", "WINDOWS", "Totals"]

KEPT = 1 << 20  # requests: 22 MB
WINDOWS = 20  # of accuracy over time, if the scenario has no width of them
STEP = 0.002  # width of a bin, as a share of its time
SHORTEST_S, BINS = 1e-9, 17_500  # times from a nanosecond to 18 days; others are in the first and the last bin

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass
class _Batch:
    """Consecutive requests."""

    requests: int = 0
    answers: int = 0
    right: float = 0.0
    reached: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # of each level
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, latency_s: FloatArray, right: FloatArray, answered: BoolArray, levels: Sequence[float]) -> None:
        self.requests += len(answered)
        self.reached = self.reached + np.array([meets(right, level).sum() for level in levels], np.int64)
        self.answers += int(answered.sum())
        self.right += float(right.sum())
        self.bins += np.bincount(_bin_of(latency_s[answered]), minlength=BINS)

    def merged(self, other: _Batch) -> _Batch:
        return _Batch(
            self.requests + other.requests,
            self.answers + other.answers,
            self.right + other.right,
            self.reached + other.reached,
            self.bins + other.bins,
        )


class Totals:
    """Sums over the requests of a run.

    Args:
        window_s: width of a window of accuracy over time.
        windows: number of windows, if the end of the run is not known: later requests are in the last one.
        levels: accuracies of which the share of requests that reach them is counted.
    """

    def __init__(self, window_s: float, windows: int | None = None, levels: Sequence[float] = ()) -> None:
        self._levels, self._missed_at_s = levels, [inf] * len(levels)
        self._window_s, self._last = window_s, inf if windows is None else windows - 1
        self._batches: list[_Batch] = []
        self._size = KEPT // (2 * BATCHES)
        self._windows: dict[float, FloatArray] = {}  # number → requests, answers, right
        self._waited = self._degraded = 0
        self._shortest_s, self._longest_s = inf, 0.0

    def add(
        self,
        asked_at_s: FloatArray,
        latency_s: FloatArray,
        right: FloatArray,
        answered: BoolArray,
        *,
        waited: int,
        degraded: int,
    ) -> None:
        """Adds consecutive requests.

        Args:
            asked_at_s: time of arrival [R].
            latency_s: time until the answer, or until it was certain that there is none [R].
            right: probability that the answer is right, 0 without one [R].
            answered: whether there is an answer [R].
            waited: requests that waited to the deadline.
            degraded: answers with a device missing.
        """
        self._waited += waited
        self._degraded += degraded
        if answered.any():
            self._shortest_s = min(self._shortest_s, float(latency_s[answered].min()))
            self._longest_s = max(self._longest_s, float(latency_s[answered].max()))
        for k, level in enumerate(self._levels):
            missed_at_s = float(asked_at_s[~meets(right, level)].min(initial=inf))
            self._missed_at_s[k] = min(self._missed_at_s[k], missed_at_s)
        number = asked_at_s // self._window_s if self._window_s else np.zeros(len(asked_at_s))
        window = np.minimum(number, self._last)
        numbers, place, requests = np.unique(window, return_inverse=True, return_counts=True)
        sums = np.stack([requests, np.bincount(place, answered), np.bincount(place, right)], axis=1)
        for of, row in zip(numbers.tolist(), sums, strict=True):
            self._windows[of] = self._windows.get(of, 0.0) + row
        start = 0
        while start < len(answered):
            rows = slice(start, start + self._room())
            self._batches[-1].add(latency_s[rows], right[rows], answered[rows], self._levels)
            start = rows.stop

    def _room(self) -> int:
        """Requests that the last batch lacks; opens another if it is full, and merges pairs if there are too many."""
        if self._batches and self._batches[-1].requests < self._size:
            return self._size - self._batches[-1].requests
        if len(self._batches) == 2 * BATCHES:
            pairs = zip(self._batches[::2], self._batches[1::2], strict=True)
            self._batches, self._size = [first.merged(second) for first, second in pairs], 2 * self._size
        self._batches.append(_Batch(reached=np.zeros(len(self._levels), np.int64)))
        return self._size

    def figures(self, percentiles: tuple[int, ...]) -> dict[str, Any]:
        """The figures of ``nonn_sim.metrics.summary`` that are about requests."""
        batches = self._batches
        requests, answers = (np.array([getattr(b, key) for b in batches]) for key in ("requests", "answers"))
        right = np.array([batch.right for batch in batches])
        total, num_answers = int(requests.sum()), int(answers.sum())
        times = {f"p{p}": self._quantile_s(p / 100) for p in percentiles}
        return {
            "requests": total,
            "answers": num_answers,
            "lost": total - num_answers,
            "availability": num_answers / total,
            "accuracy": float(right.sum()) / num_answers if num_answers else None,
            "accuracy_per_request": float(right.sum()) / total,
            "degraded": self._degraded / num_answers if num_answers else None,
            "deadline_hits": self._waited,
            "latency_s": {**times, "max": self._longest_s if num_answers else None},
            "intervals": {
                "accuracy": ratio_interval(right, answers),
                "availability": ratio_interval(answers, requests),
                "latency_p99_s": self._quantile_interval_s(0.99),
            },
            "levels": [
                {
                    "level": level,
                    "reached": int(reached.sum()) / total,
                    "interval": ratio_interval(reached, requests),
                    "first_missed_s": None if missed_at_s == inf else missed_at_s,
                }
                for level, reached, missed_at_s in zip(
                    self._levels, np.array([b.reached for b in batches]).T, self._missed_at_s, strict=True
                )
            ],
            "windows": [
                {
                    "from_s": number * self._window_s,
                    "requests": int(asked),
                    "availability": float(answered / asked),
                    "accuracy": float(correct / answered) if answered else None,
                }
                for number, (asked, answered, correct) in sorted(self._windows.items())
            ],
        }

    def _quantile_s(self, share: float) -> float | None:
        """A quantile of the times of answers."""
        bins = self._bins()
        return self._time_s(bins, round(share * (int(bins.sum()) - 1))) if bins.any() else None

    def _quantile_interval_s(self, share: float) -> tuple[float, float] | None:
        """Its 95 % interval by batch means."""
        bins = self._bins()
        if not bins.any():
            return None
        last = int(np.searchsorted(bins.cumsum(), round(share * (int(bins.sum()) - 1)), side="right"))
        whole = [batch for batch in self._batches if batch.requests == self._size and batch.answers]
        below = np.array([batch.bins[: last + 1].sum() / batch.answers for batch in whole])
        ranks = enclosing_ranks(int(bins.sum()), below, share)
        return None if ranks is None else (self._time_s(bins, ranks[0]), self._time_s(bins, ranks[1]))

    def _bins(self) -> NDArray[np.int64]:
        result: NDArray[np.int64] = np.sum([batch.bins for batch in self._batches], axis=0)
        return result

    def _time_s(self, bins: NDArray[np.int64], rank: int) -> float:
        """The time at a rank in ascending order, counted from 0: the middle of its bin."""
        middle_s = SHORTEST_S * (1 + STEP) ** (int(np.searchsorted(bins.cumsum(), rank, side="right")) + 0.5)
        return min(max(float(middle_s), self._shortest_s), self._longest_s)


def _bin_of(times_s: FloatArray) -> NDArray[np.int64]:
    """The bin of each time."""
    bins: NDArray[np.int64] = (np.log(times_s.clip(SHORTEST_S) / SHORTEST_S) / log1p(STEP)).astype(np.int64)
    return bins.clip(0, BINS - 1)
