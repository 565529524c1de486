"""Class-level bias under failures, compared with the intact network.

A mean accuracy can hide a class that loses everything. For every class c the false positive rate and the false
negative rate change relative to the intact network, ``δ_c = ((FPR'_c − FPR_c) / FPR_c, (FNR'_c − FNR_c) / FNR_c)``.

- combined error variance ``CEV = mean_c ‖δ_c − mean δ‖²``: classes change by different amounts;
- symmetric distance error ``SDE = mean_c |δFPR_c − δFNR_c| / √2``: a class is favoured or avoided, since for it one
  kind of error grows more than the other.

Both are 0 when nothing changes, and grow without bound. Source: Blakeney, Huish, Yan, Zong 2021, arXiv 2106.07849.
Deviation: an intact rate can be 0 on a small test split, where δ is infinite. Only there do both rates get one
pseudo-error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError

__all__ = ["ClassBias", "class_bias", "error_counts"]

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class ClassBias:
    """Class-level change of errors compared with the intact network.

    Attributes:
        cev: combined error variance.
        sde: symmetric distance error.
    """

    cev: float
    sde: float


def error_counts(predicted: IntArray, labels: IntArray, num_classes: int) -> IntArray:
    """False positives and false negatives of each class.

    Args:
        predicted: classes [n].
        labels: [n].
        num_classes: K.

    Returns:
        [K, 2].

    Raises:
        ShapeError: the two differ in length, or a class is out of range.
    """
    if predicted.shape != labels.shape or labels.ndim != 1:
        raise ShapeError(f"{list(predicted.shape)} predictions for {list(labels.shape)} labels")
    both = np.concatenate([predicted, labels])
    if len(both) == 0 or both.min() < 0 or both.max() >= num_classes:
        raise ShapeError(f"classes must lie in 0 … {num_classes - 1}")
    wrong = predicted != labels
    return np.stack([np.bincount(classes[wrong], minlength=num_classes) for classes in (predicted, labels)], axis=1)


def class_bias(intact: IntArray, degraded: IntArray, labels: IntArray, num_classes: int) -> ClassBias:
    """CEV and SDE of a degraded network.

    Args:
        intact: classes predicted by the intact network [n].
        degraded: classes predicted by the degraded one [n].
        labels: true classes [n].
        num_classes: K.

    Raises:
        ShapeError: lengths differ, or a class is out of range.
    """
    before, after = (error_counts(p, labels, num_classes) for p in (intact, degraded))
    # Both networks answer the same samples, so that relative changes of rates are those of counts. With a pseudo-error
    # where the intact count is 0, the change is ((after + 1) − 1) / 1.
    change = (after - before) / np.maximum(before, 1)
    cev = float(np.square(change - change.mean(axis=0)).sum(axis=1).mean())
    sde = float((np.abs(change[:, 0] - change[:, 1]) / np.sqrt(2)).mean())
    return ClassBias(cev, sde)
