"""Fits the consistency test of a bundle; ``nonn.fusion.consistency`` has the method.

Training samples give the estimates of each device and the range of its features, held-out samples everything that
depends on how well devices agree, since students overfit the training samples. Quantiles and tails are fitted for every
number of answering devices, on a few sets of each size: the fewer devices, the less certain their median.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.fusion.consistency import BODY, MIN_DEVICES, Consistency
from nonn.fusion.head import FloatArray, Head

__all__ = ["fit_consistency"]

Float32 = NDArray[np.float32]

MIN_SAMPLES = 40  # held-out samples below which no threshold is set

_SHRINK = 1e-2  # λ of the estimates, in mean variances
_LEAST = 0.1  # least 90 % quantile, in σ: replicas may agree exactly
_FLOOR = 1e-2  # least σ, in standard deviations of the estimates, for the same reason
_SUBSETS = 6  # sets of devices in which each number of answering devices is calibrated
_CALIBRATED = 2000  # held-out samples that are used


def fit_consistency(
    head: Head, training: Sequence[NDArray[Any]], held_out: Sequence[NDArray[Any]], seed: int = 0
) -> Consistency | None:
    """Fits the test of a bundle.

    Args:
        head: fusion head.
        training: features of each device for training samples, N arrays [m, d_i]; they give R and the ranges.
        held_out: features of each device for held-out samples, N arrays [n, d_i]; they give a, b, σ and thresholds.
        seed: of the sets of devices that thresholds are calibrated on.

    Returns:
        None with fewer than three devices, two classes or 40 held-out samples: too few to test anything.
    """
    num, samples = head.num_devices, len(held_out[0])
    if num < MIN_DEVICES or head.num_classes < 2 or samples < MIN_SAMPLES:
        return None
    together = np.concatenate(training, axis=1, dtype=np.float64)
    mean = together.mean(axis=0)
    readout = _readout(head, training, together - mean)
    readout_scale = np.abs(readout).max() or 1.0
    low, high = together.min(axis=0), together.max(axis=0)
    # A feature that is constant in training may still vary.
    margin = np.maximum(high - low, float(np.median(high - low)))
    arrays = {
        "readout": (readout / readout_scale).astype(np.float16),
        "readout_scale": np.array(readout_scale),
        "mean": mean,
        "low": (low - margin).astype(np.float32),
        "high": (high + margin).astype(np.float32),
        "offset": np.zeros((num, head.num_classes)),
        "slope": np.ones((num, head.num_classes)),
        "scale": np.ones((num, head.num_classes)),
        "level": np.ones((num + 1, num)),
        "tail": np.ones(num + 1),
        "peak": np.ones(num + 1),
    }
    chosen = np.random.default_rng([seed, 11]).permutation(samples)[:_CALIBRATED]
    recorded = {i: np.asarray(f[chosen], np.float32) for i, f in enumerate(held_out)}
    _regress(arrays, Consistency(arrays, head.widths), recorded)
    _set_thresholds(arrays, Consistency(arrays, head.widths), recorded, np.random.default_rng([seed, 12]))
    return Consistency(arrays, head.widths)


def _readout(head: Head, training: Sequence[NDArray[Any]], centred: FloatArray) -> FloatArray:
    """R of all devices [D, K]: regressions of the fused logits on the features of each device alone."""
    fused = head.logits(dict(enumerate(training)), keep=False)
    fused -= fused.mean(axis=1, keepdims=True)  # a constant added to all logits changes no answer
    fused /= float(fused.std()) or 1.0
    rows = []
    for i in range(head.num_devices):
        own = centred[:, head.offsets[i] : head.offsets[i + 1]]
        covariance = own.T @ own / len(own)
        shrink = _SHRINK * max(float(np.trace(covariance)) / len(covariance), 1e-12)
        rows.append(np.linalg.solve(covariance + shrink * np.eye(len(covariance)), own.T @ fused / len(own)))
    return np.concatenate(rows)


def _regress(arrays: dict[str, NDArray[Any]], test: Consistency, recorded: Mapping[int, Float32]) -> None:
    """Fits a, b and σ of every device and class."""
    estimates = test.estimates(recorded).astype(np.float64)
    consensus = np.median(estimates, axis=0)
    spread = consensus - consensus.mean(axis=0)
    slope = (estimates * spread).sum(axis=1) / np.maximum((spread**2).sum(axis=0), 1e-12)
    offset = estimates.mean(axis=1) - slope * consensus.mean(axis=0)
    residual = estimates - offset[:, None] - slope[:, None] * consensus
    floor = _FLOOR * max(float(estimates.std()), 1e-12)
    arrays |= {"offset": offset, "slope": slope, "scale": np.maximum(residual.std(axis=1), floor)}


def _set_thresholds(
    arrays: dict[str, NDArray[Any]], test: Consistency, recorded: Mapping[int, Float32], rng: np.random.Generator
) -> None:
    """Fits the quantiles, tails and largest values for every number of answering devices."""
    num, samples = test.num_devices, len(recorded[0])
    for size in range(MIN_DEVICES, num + 1):
        sets = list(combinations(range(num), size)) if math.comb(num, size) <= 1000 else []
        if not sets:
            sets = [tuple(sorted(rng.choice(num, size, replace=False).tolist())) for _ in range(_SUBSETS)]
        sets = [sets[k] for k in rng.permutation(len(sets))[:_SUBSETS]]
        found = [(devices, test.deviations({i: recorded[i] for i in devices})) for devices in sets]
        everything = [values for _, values in found]  # for devices that are in none of the sets
        for i in range(num):
            own = [values[devices.index(i)] for devices, values in found if i in devices]
            level = np.quantile(np.concatenate(own or everything, axis=None), BODY)
            arrays["level"][size, i] = max(float(level), _LEAST)
        scaled = [values / arrays["level"][size, list(devices)][:, None] for devices, values in found]
        pooled = np.concatenate([values.ravel() for values in scaled])
        excess = [_mean_excess(pooled, level) for level in (BODY, 0.95)]
        # Devices share their inputs, so the samples count as independent, not the statistics.
        arrays["tail"][size] = max(*excess, 1e-3) * (1 + 2 / math.sqrt((1 - BODY) * samples))
        arrays["peak"][size] = pooled.max()


def _mean_excess(values: NDArray[Any], level: float) -> float:
    """Mean of what values above a quantile exceed it by."""
    quantile = np.quantile(values, level)
    above = values[values > quantile]
    return float((above - quantile).mean()) if len(above) else 0.0
