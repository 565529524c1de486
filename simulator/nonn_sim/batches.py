"""Intervals for a single run, whose requests are correlated: those at about the same time share queues and faults.

A run is cut into 20 batches of consecutive requests. Their differences show how much a figure would vary between runs,
as long as a batch is longer than what its requests share: a run has to be much longer than an outage. Faults that are
too rare to occur in the run are in no interval.

References: Law 2015, "Simulation modeling and analysis", section 9.5 (batch means); Cochran 1977, "Sampling
techniques", chapter 6 (ratios).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.confidence import CONFIDENCE

__all__ = ["BATCHES", "enclosing_ranks", "quantile_interval", "ratio_interval"]

BATCHES = 20

Interval = tuple[float, float]


def ratio_interval(values: NDArray[Any], weights: NDArray[Any]) -> Interval | None:
    """95 % confidence interval of ``Σ values / Σ weights``, a share or a mean in [0, 1].

    Args:
        values: in the order of time, such as the accuracy of each answer and 0 without one, or sums of them [n].
        weights: such as 1 for each answer, or their sums [n].

    Returns:
        Both ends; None if there are fewer requests than batches, or no weight.
    """
    from scipy.stats import t

    total = float(weights.sum())
    if len(values) < BATCHES or not total:
        return None
    ratio = float(values.sum()) / total
    parts = zip(np.array_split(values, BATCHES), np.array_split(weights, BATCHES), strict=True)
    rest = np.array([float(value.sum()) - ratio * float(weight.sum()) for value, weight in parts])
    error = math.sqrt(BATCHES / (BATCHES - 1) * float(np.square(rest).sum())) / total
    half = float(t.ppf((1 + CONFIDENCE) / 2, BATCHES - 1)) * error
    return max(0.0, ratio - half), min(1.0, ratio + half)


def quantile_interval(values: NDArray[np.float64], share: float) -> tuple[float, float] | None:
    """95 % confidence interval of a quantile of consecutive values, distribution-free.

    The number of n independent values below the true quantile is binomial, so two of the ordered values enclose it.
    Requests at about the same time share queues and faults: the share below the quantile varies more between batches
    than a binomial share, and n is divided by the ratio of both variances.

    Args:
        values: in the order of time [n].
        share: the quantile, such as 0.99.

    Returns:
        The two values; None if even the smallest and the largest do not enclose it with this confidence.

    Sources: Conover 1999, "Practical nonparametric statistics", section 3.2; Woodruff 1952, "Confidence intervals for
    medians and other position measures" (effective number).
    """
    if not len(values):
        return None
    ordered = np.sort(values)
    below = np.array(
        [part.mean() for part in np.array_split(values <= np.quantile(values, share), BATCHES) if len(part)]
    )
    ranks = enclosing_ranks(len(values), below, share)
    return None if ranks is None else (float(ordered[ranks[0]]), float(ordered[ranks[1]]))


def enclosing_ranks(size: int, below: NDArray[np.float64], share: float) -> tuple[int, int] | None:
    """Ranks of the ordered values, counted from 0, that enclose a quantile at 95 %; see ``quantile_interval``.

    Args:
        size: number n of values.
        below: share of the values up to the quantile in each batch of consecutive values [B].
        share: the quantile.
    """
    from scipy.stats import binom

    count = float(size)
    if len(below) > 1:
        count /= max(1.0, float(below.var(ddof=1)) * size / len(below) / (share * (1 - share)))
    effective = int(count)
    first, last = (int(binom.ppf(p, effective, share)) for p in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    # In a sample of the effective size these are the order statistics first and last + 1, counted from 1.
    if first < 1 or last + 1 > effective:
        return None
    low, high = (max(1, round(rank / effective * size)) - 1 for rank in (first, last + 1))
    return low, high
