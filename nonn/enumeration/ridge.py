"""Enumeration for the ridge head, by block elimination along a depth-first tree.

A subset costs one product of inner size d_i with the state of its prefix instead of Σ_{i∈S} d_i, and one small solve.
Coefficients are exact (float64, ``elimination``); states are float32 (``cell``). Samples in doubt are fused from the
exact weights in float64, and near a tie by the head's own solve.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from nonn.enumeration.cell import CellRun, margin_bounds
from nonn.enumeration.counter import Counter
from nonn.enumeration.elimination import CellPlan, plan_cell, prefixes
from nonn.fusion import RidgePerSet

__all__ = ["count_ridge"]

Float32 = NDArray[np.float32]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_STATE = 100_000  # floats of one state: larger exceeds the cache, smaller spends its time in calls (measured)
# Margins below this share of the largest logit may depend on the way of solving: eight roundings to float32, or ten
# times the condition number's share of float64, 1e-5 for the worst head that is enumerated here.
_TIE, _TIE_BY_CONDITION = 1e-6, 1e-15
_WEIGHTS = 1 << 22  # floats of the exact weights in memory at once: 34 MB


def count_ridge(head: RidgePerSet, counter: Counter) -> None:
    """Counts the correct answers of all 2^N sets.

    Args:
        head: the fusion, well conditioned.
        counter: receives the counts.
    """
    num_devices, num_classes = head.num_devices, head.num_classes
    # Devices are decided from the last to the first, so that the low bits of a mask change fastest; columns likewise.
    columns = np.concatenate([head.rows(1 << i) for i in reversed(range(num_devices))])
    covariance, target, mean, target_mean = head.normal_equations()
    system = np.concatenate([covariance[np.ix_(columns, columns)], target[columns]], axis=1)
    rows = counter.answerable
    samples = _Samples(counter, mean[columns], target_mean, max(_TIE, _TIE_BY_CONDITION * head.condition))
    centred = samples.centred(rows)
    peaks = np.abs(centred).max(axis=1, initial=0).astype(np.float64)
    low = min(num_devices, 7)
    while low > 1 and (len(columns) * num_classes << low) > _WEIGHTS:
        low -= 1
    size = max(64, min(2048, _STATE // (num_classes + max(head.widths))))
    blocks = []  # features [D, b], flat index of the true logits in [K, b], place of the block
    for start in range(0, len(rows), size):
        features = np.ascontiguousarray(centred[:, start : start + size])
        width = features.shape[1]
        labels = counter.labels[rows[start : start + size]]
        blocks.append((features, labels * width + np.arange(width), slice(start, start + width)))
    bottom = np.arange(len(columns) - sum(head.widths[:low]), len(columns))
    for prefix in prefixes(system, head.widths, low):
        kept = prefix.columns
        plan = plan_cell(head.widths[:low], prefix.system, prefix.solution)
        cell = CellRun(plan)
        margins = np.empty((1 << low, len(rows)), dtype=np.float32)
        for features, own, place in blocks:
            cell.run(features[kept], features[bottom], target_mean, own, margins[:, place])
        doubt = margin_bounds(plan, cell.peaks, peaks[kept], peaks[bottom], np.abs(target_mean))
        masks = np.arange(prefix.mask << low, (prefix.mask + 1) << low)
        counter.judge(masks, rows, margins, doubt[:, None], partial(samples.settle, plan, kept))
        counter.report((prefix.mask + 1) / (1 << (num_devices - low)))


class _Samples:
    """Features of all samples, and answers from exact weights.

    Args:
        counter: the counter with features and labels.
        mean: mean of the features, in the order of the columns [D].
        target_mean: mean logits [K].
        tie: margins below this share of the largest logit are decided by the head itself.
    """

    def __init__(self, counter: Counter, mean: FloatArray, target_mean: FloatArray, tie: float) -> None:
        self._counter, self._mean, self._target_mean, self._tie = counter, mean, target_mean, tie
        self._features = np.concatenate(list(reversed(counter.features)), axis=1)

    def centred(self, rows: IntArray) -> Float32:
        """Features less their mean [D, b]."""
        result: Float32 = (self._features[rows] - self._mean).astype(np.float32).T
        return result

    def settle(self, plan: CellPlan, kept: IntArray, mask: int, rows: IntArray) -> NDArray[np.bool_]:
        """Which samples a subset gets right [b]: by its weights in float64, near a tie by the head's own solve."""
        chosen, weight = plan.weights[mask & (len(plan.weights) - 1)]
        centred, low = self._features[rows] - self._mean, plan.num_features
        explained = centred[:, kept] @ plan.solution
        residuals = centred[:, centred.shape[1] - low :] - explained[:, :low]
        logits = residuals[:, chosen] @ weight + explained[:, low:] + self._target_mean
        return self._counter.decide(mask, rows, logits, self._tie)
