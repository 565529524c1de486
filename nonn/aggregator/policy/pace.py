"""Estimates the time that a node takes for each further sample of a batch, from its recent answers.

The latency of an answer has a part that does not depend on the batch, such as the delay of a link, and one that grows
with it. The slope of a regression of latency on batch size separates the two; older answers count less, so it follows a
device that gets hot. Where batches have the same size for a while, the slope stays what it was. No sample can cost more
than the quickest recent answer took per sample, which bounds the slope while a node changes.
"""

from __future__ import annotations

from math import inf

__all__ = ["Pace"]

KEPT = 1 - 1 / 32  # weight of an answer after each later one
FORGOTTEN = 1.05  # the bound grows by this factor with each answer
MIN_VARIANCE = 1e-6  # of batch sizes; below it they are all the same


class Pace:
    """Seconds that a node takes for each further sample.

    Attributes:
        sample_s: estimate; 0 while all batches had the same size.
    """

    __slots__ = ("_bound", "_mean_n", "_mean_t", "_nn", "_nt", "_weight", "sample_s")

    def __init__(self) -> None:
        self._weight = self._mean_n = self._mean_t = self._nn = self._nt = 0.0
        self._bound, self.sample_s = inf, 0.0

    def add(self, num_samples: int, latency_s: float) -> None:
        """Adds one answer: its number of samples and its latency."""
        self._weight = weight = KEPT * self._weight + 1
        step_n, step_t = num_samples - self._mean_n, latency_s - self._mean_t
        self._mean_n += step_n / weight
        self._mean_t += step_t / weight
        # West 1979: weighted sums of squares around the mean, without cancellation.
        self._nn = KEPT * self._nn + step_n * (num_samples - self._mean_n)
        self._nt = KEPT * self._nt + step_n * (latency_s - self._mean_t)
        self._bound = min(FORGOTTEN * self._bound, latency_s / num_samples)
        if self._nn > MIN_VARIANCE * weight:
            self.sample_s = min(max(self._nt / self._nn, 0.0), self._bound)
