"""Calibration of the confidence: temperature scaling, and the expected calibration error that remains.

A separate temperature T for each subset of devices divides the fused logits before the softmax: the largest
probability is less reliable the fewer devices answer, so one temperature does not fit all subsets. Fitted by negative
log-likelihood on a split that neither students nor head were fitted to. Answers do not change.

NumPy only: the simulator measures with the same code.

References: Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern neural networks", arXiv 1706.04599
(temperature scaling); Naeini, Cooper, Hauskrecht 2015, "Obtaining well calibrated probabilities using Bayesian
binning" (expected calibration error).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError
from nonn.fusion import softmax
from nonn.fusion.head import Features
from nonn.reliability.subsets import MAX_DEVICES, all_masks, members, membership, sets_by_survivors

__all__ = [
    "MIN_SAMPLES",
    "SCOPES",
    "Fusion",
    "expected_calibration_error",
    "fit_temperature",
    "fit_temperatures",
]

SCOPES = ("auto", "set", "survivors")  # the subsets that share a temperature; see ``fit_temperatures``
MIN_SAMPLES = 1000  # with fewer, subsets of the same size share one temperature
_LOWEST, _HIGHEST = 0.05, 20.0  # if every sample is right (or none is), the likelihood has no minimum
_SETS = 128  # subsets of each size that are used; all of them up to N = 9
_FEW_SETS = 16  # beyond 16 devices, where each has to be solved and differs less from others of its size
_SAMPLES = 200_000  # samples, over several subsets, that one temperature is fitted to
_ROUNDS = 60

FloatArray = NDArray[np.float64]


class Fusion(Protocol):
    """The part of a head that is measured."""

    @property
    def num_devices(self) -> int:
        """N."""
        ...

    def logits(self, features: Features) -> FloatArray:
        """Logits [n, K] of the features that arrived, device number → [n, d_i]."""
        ...


def expected_calibration_error(confidence: NDArray[Any], correct: NDArray[Any], bins: int = 15) -> float:
    """Mean distance between confidence and accuracy, over bins of equal width.

    ``ECE = Σ_b |B_b|/n · |accuracy(B_b) − confidence(B_b)|`` with bin b = ((b − 1)/bins, b/bins]; 0 goes to the first.

    Args:
        confidence: probability of the answer, in [0, 1] [n].
        correct: whether it was right [n].
        bins: number of bins.

    Returns:
        In [0, 1].

    Raises:
        ShapeError: no sample, different lengths, or a confidence outside [0, 1].

    Source: Naeini et al. 2015; 15 bins after Guo et al. 2017, arXiv 1706.04599.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not confidence.size:
        raise ShapeError(f"confidence {list(confidence.shape)} and correct {list(correct.shape)}: both must be [n]")
    if not (confidence.min() >= 0 and confidence.max() <= 1):
        raise ShapeError("a confidence must be between 0 and 1")
    number = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(number, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The temperature with the lowest negative log-likelihood.

    In β = 1/T the likelihood is convex, so Newton's method inside a shrinking bracket finds its only minimum.

    Args:
        logits: [n, K].
        labels: [n].

    Returns:
        T in [0.05, 20].

    Raises:
        ShapeError: no sample, or different lengths.

    Source: Guo et al. 2017, arXiv 1706.04599.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or not len(logits) or labels.shape != (len(logits),):
        raise ShapeError(f"logits {list(logits.shape)} and labels {list(labels.shape)}: expected [n, K] and [n]")
    # The right class at 0: the likelihood is then −log Σ exp β z.
    z = logits - logits[np.arange(len(labels)), labels][:, None]
    low, high, beta = 1 / _HIGHEST, 1 / _LOWEST, 1.0
    for _ in range(_ROUNDS):
        p = softmax(beta * z)
        mean = (p * z).sum(axis=1)
        slope = float(mean.mean())
        if slope == 0:  # the minimum, or all temperatures are equally good
            break
        curvature = float(((p * z**2).sum(axis=1) - mean**2).mean())
        low, high = (low, beta) if slope > 0 else (beta, high)
        step = beta - slope / curvature if curvature > 0 else math.nan
        # A step that leaves the bracket (or none, with all probabilities 0 or 1) is replaced by bisection in log β.
        following = step if low < step < high else math.sqrt(low * high)
        if abs(following - beta) <= 1e-10 * beta:
            break
        beta = following
    return 1 / beta


def fit_temperatures(
    head: Fusion, features: Sequence[NDArray[Any]], labels: NDArray[np.int64], *, by: str = "auto", seed: int = 0
) -> FloatArray:
    """Fits temperatures for every subset.

    Args:
        head: the fusion; its own temperatures are ignored.
        features: of each device over the same samples, N arrays [n, d_i]; not those the head was fitted to.
        labels: [n].
        by: one of ``SCOPES``: ``set`` (one for each subset), ``survivors`` (one for each number of answering devices,
            fitted to at most 128 of their subsets together) or ``auto``: ``set`` from 1,000 samples and up to eight
            devices, else ``survivors``.
        seed: seed of the choice of subsets, where there are more than 128.

    Returns:
        Temperatures [2^N], beyond 16 devices by number of answering devices [N + 1]; 1 for the empty subset, which
        gives no answer.

    Raises:
        ShapeError: ``by`` is none of these, or ``set`` beyond 16 devices.
    """
    if by not in SCOPES:
        raise ShapeError(f"temperatures by '{by}': choose one of: {', '.join(SCOPES)}")
    if by == "auto":
        by = "set" if len(labels) >= MIN_SAMPLES and head.num_devices <= 8 else "survivors"
    if head.num_devices > MAX_DEVICES and by == "set":
        raise ShapeError(f"temperatures by 'set' for {head.num_devices} devices: choose 'survivors'")
    if head.num_devices > MAX_DEVICES:
        by_size = np.ones(head.num_devices + 1)
        for count, masks in sets_by_survivors(head.num_devices, _FEW_SETS, seed):
            by_size[count] = _common_temperature(head, features, labels, masks)
        return by_size
    result = np.ones(1 << head.num_devices)
    if by == "set":
        for mask in all_masks(head.num_devices)[1:].tolist():
            result[mask] = fit_temperature(_logits(head, features, mask), labels)
        return result
    survivors = membership(head.num_devices).sum(axis=1)
    for count, masks in sets_by_survivors(head.num_devices, _SETS, seed):
        result[survivors == count] = _common_temperature(head, features, labels, masks)
    return result


def _common_temperature(
    head: Fusion, features: Sequence[NDArray[Any]], labels: NDArray[np.int64], masks: Sequence[int]
) -> float:
    """One temperature for several subsets, or for as many of them as the limit of samples allows."""
    masks = masks[:: -(-len(masks) * len(labels) // _SAMPLES)]
    stacked = np.concatenate([_logits(head, features, mask) for mask in masks])
    return fit_temperature(stacked, np.tile(labels, len(masks)))


def _logits(head: Fusion, features: Sequence[NDArray[Any]], mask: int) -> FloatArray:
    """Fused logits [n, K] of one subset."""
    return head.logits({i: features[i] for i in members(mask)})
