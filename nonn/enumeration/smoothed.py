"""Accuracy of every subset of devices when answers are smoothed over time (``nonn.sensing.smoothing``).

The test windows of each recording pass through the filter in their order, with the same devices throughout. In service
the devices change while a belief is kept, so the figure is that of a set of devices that stays.

Smoothed answers to neighbouring windows are right or wrong together, so windows are not independent samples. Intervals
therefore count *effective* samples: ``p (1 − p)`` over the variance of p when whole runs of one label are drawn (the
ratio estimator of cluster sampling; Cochran 1977, "Sampling techniques", chapter 3). With no run wrong in part, they
are the runs.

Limits: every subset is filtered window by window; beyond ``nonn.sensing.smoothing.DEVICES`` devices it takes minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.fusion import Head
from nonn.reliability.subsets import members
from nonn.sensing.smoothing import Smoothing

__all__ = ["Smoothed", "measure_smoothed"]

_BYTES = 2**26  # of the probabilities of one batch of subsets

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Smoothed:
    """What smoothing does, by subset.

    Attributes:
        correct: correct test windows with smoothing [2^N].
        effective: samples that intervals count [2^N].
        runs: runs of one label in the test recordings.
        lag: mean windows from a change of the label to the first correct answer, with all devices: without smoothing
            and with it [2]; a run without one counts whole.
    """

    correct: IntArray
    effective: NDArray[np.float64]
    runs: int
    lag: NDArray[np.float64]


def measure_smoothed(
    head: Head, features: Sequence[NDArray[Any]], labels: IntArray, places: IntArray, smoothing: Smoothing
) -> Smoothed:
    """Filters the test recordings with every subset.

    Args:
        head: the fusion.
        features: of each device, N arrays [n, d_i].
        labels: [n].
        places: recording of each window and its place in it [n, 2].
        smoothing: the filter.
    """
    order = np.lexsort((places[:, 1], places[:, 0]))
    labels, places, arrived = labels[order], places[order], [f[order] for f in features]
    num, everyone = len(labels), (1 << head.num_devices) - 1
    correct, effective = np.zeros(everyone + 1, np.int64), np.ones(everyone + 1)
    run = _runs(labels, places)
    size = max(1, _BYTES // (8 * num * head.num_classes))
    right = np.zeros((1, num), bool)
    for first in range(1, everyone + 1, size):
        masks = range(first, min(first + size, everyone + 1))
        plain = np.stack([_probabilities(head, arrived, mask) for mask in masks], axis=1)
        right = labels == _filtered(smoothing, plain, places).argmax(axis=2).T
        correct[masks] = right.sum(axis=1)
        effective[masks] = _effective(right, run)
    before = _probabilities(head, arrived, everyone).argmax(axis=1) == labels
    lag = np.array([_lag(outcome, run, places) for outcome in (before, right[-1])])
    return Smoothed(correct, effective, int(run[-1]) + 1, lag)


def _probabilities(head: Head, features: Sequence[NDArray[Any]], mask: int) -> NDArray[np.float64]:
    """Probabilities of one subset [n, K]."""
    return head.probabilities(head.logits({i: features[i] for i in members(mask)}, keep=False), mask)


def _filtered(smoothing: Smoothing, plain: NDArray[np.float64], places: IntArray) -> NDArray[np.float64]:
    """Beliefs [n, M, K] from probabilities of the same shape."""
    result, belief = np.empty_like(plain), None
    for k, window in enumerate(plain):
        new = k == 0 or places[k, 0] != places[k - 1, 0]
        hops = 1 if new else int(places[k, 1] - places[k - 1, 1])
        belief = result[k] = smoothing.step(None if new else belief, window, hops)
    return result


def _runs(labels: IntArray, places: IntArray) -> IntArray:
    """Number of the run of one label in one recording that each window belongs to [n], from 0."""
    begins = (np.diff(labels) != 0) | (np.diff(places[:, 0]) != 0)
    return np.concatenate([[0], np.cumsum(begins)])


def _effective(right: NDArray[np.bool_], run: IntArray) -> NDArray[np.float64]:
    """Independent samples that outcomes [M, n] are worth [M], between 1 and n."""
    num, sizes = right.shape[1], np.bincount(run)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    share = right.mean(axis=1)
    off = np.add.reduceat(right, starts, axis=1, dtype=np.int64) - share[:, None] * sizes
    variance = (off**2).sum(axis=1) / num**2 * len(sizes) / max(1, len(sizes) - 1)
    spread = share * (1 - share)
    worth = np.divide(spread, variance, out=np.full(len(right), float(len(sizes))), where=variance > 1e-15)
    result: NDArray[np.float64] = np.clip(worth, 1, num)
    return result


def _lag(right: NDArray[np.bool_], run: IntArray, places: IntArray) -> float:
    """Mean windows from the start of a run to its first correct answer, over runs that follow another; NaN if none."""
    starts = np.flatnonzero(np.diff(run, prepend=-1))
    ends = np.append(starts[1:], len(run))
    after = [k for k in range(1, len(starts)) if places[starts[k], 0] == places[starts[k] - 1, 0]]
    lags = [
        int(right[starts[k] : ends[k]].argmax()) if right[starts[k] : ends[k]].any() else ends[k] - starts[k]
        for k in after
    ]
    return float(np.mean(lags)) if lags else float("nan")
