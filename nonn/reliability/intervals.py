"""Confidence intervals of accuracies that were counted on a finite test set. NumPy only.

- ``wilson``: one accuracy, from the number of correct samples.
- ``mean_interval``: a weighted mean of the accuracies of several subsets of devices. It is the mean of one score in
  [0, 1] for each sample, so samples stay paired. Wilson's interval with the effective number of samples
  ``n p (1 − p) / v``, where v is the variance of the scores: for scores of 0 and 1 it is ``wilson``.
- ``difference_interval``: the difference of two such means on the same samples, one score in [−1, 1] for each. Gains
  and losses are means of scores in [0, 1]; their intervals are combined by Newcombe's square-and-add method. Unlike the
  percentiles of a bootstrap, the interval does not shrink to nothing where no sample differs.
- ``unpaired_difference``: the same from two intervals, where nothing is known about common samples. It is too wide for
  differences on the same samples.
- ``half_width``: of the t interval of a mean, and ``widened``: an interval that covers a second, independent error too.

Limits: samples are taken as independent draws. Intervals hold for a figure that was chosen before the samples were
seen, not for the best or the worst of many.

References: Wilson 1927, "Probable inference, the law of succession, and statistical inference"; Newcombe 1998,
"Improved confidence intervals for the difference between binomial proportions based on paired data"; Korn, Graubard
1998, "Confidence intervals for proportions with small expected number of positive counts" (effective size).
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nonn.errors import ShapeError
from nonn.reliability.confidence import CONFIDENCE

__all__ = [
    "difference_interval",
    "half_width",
    "mean_interval",
    "share_interval",
    "unpaired_difference",
    "widened",
    "wilson",
]

FloatArray = NDArray[np.float64]
Ends = tuple[FloatArray, FloatArray]


def share_interval(share: float, samples: float) -> tuple[float, float]:
    """Wilson's 95 % interval of one share, 0 to 1, of a number of samples, which may be an effective one."""
    low, high = wilson(share * samples, samples)
    return float(low), float(high)


def wilson(correct: ArrayLike, samples: ArrayLike, confidence: float = CONFIDENCE) -> Ends:
    """Score intervals of shares, which never leave [0, 1] and include the share itself.

    Args:
        correct: correct samples, any shape; fractions are allowed.
        samples: number of samples, at least 1; broadcast.
        confidence: of the two-sided interval.

    Returns:
        Lower and upper ends.

    Raises:
        ShapeError: no sample, or counts outside 0 … samples.
    """
    successes, n = np.asarray(correct, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    if (n < 1).any() or (successes < 0).any() or (successes > n).any():
        raise ShapeError("an interval needs at least one sample, and counts from 0 to the number of samples")
    return _score(successes / n, n, _quantile(confidence))


def mean_interval(
    scores: NDArray[Any], samples: int | None = None, confidence: float = CONFIDENCE, mean: ArrayLike | None = None
) -> Ends:
    """Intervals of means of scores in [0, 1].

    Args:
        scores: one row for each figure, one column for each sample [..., m].
        samples: number n of samples of the figure, if the m scores are of a random choice of them.
        confidence: of the two-sided interval.
        mean: the means over all n samples [...], where they are known; by default of the scores.

    Returns:
        Lower and upper ends [...].

    Raises:
        ShapeError: there is no score.
    """
    values, n = _scores(scores, samples)
    z = _quantile(confidence)
    found = values.mean(axis=-1)
    low, high = _score(found, _effective(values, found, n, z), z)
    exact = found if mean is None else np.asarray(mean, dtype=np.float64)
    return (exact - (found - low)).clip(0, 1), (exact + (high - found)).clip(0, 1)


def difference_interval(
    scores: NDArray[Any], samples: int | None = None, confidence: float = CONFIDENCE, mean: ArrayLike | None = None
) -> Ends:
    """Intervals of differences of two means of the same samples: means of scores in [−1, 1].

    Arguments, result and errors are those of ``mean_interval``; ``mean`` is the differences over all n samples.
    """
    values, n = _scores(scores, samples)
    z = _quantile(confidence)
    ends = []
    for part in (values.clip(0, None), (-values).clip(0, None)):
        middle = part.mean(axis=-1)
        low, high = _score(middle, _effective(part, middle, n, z), z)
        ends.append((middle, part.var(axis=-1), middle - low, high - middle))
    (gain, gain_var, gain_down, gain_up), (loss, loss_var, loss_down, loss_up) = ends
    # Gains and losses exclude each other in a sample: their covariance is minus the product of the means.
    scale = np.sqrt(gain_var * loss_var)
    correlation = np.where(scale > 0, -gain * loss / np.where(scale > 0, scale, 1.0), 0.0).clip(-1, 0)
    down = np.sqrt(gain_down**2 + loss_up**2 - 2 * correlation * gain_down * loss_up)
    up = np.sqrt(gain_up**2 + loss_down**2 - 2 * correlation * gain_up * loss_down)
    exact = gain - loss if mean is None else np.asarray(mean, dtype=np.float64)
    return (exact - down).clip(-1, 1), (exact + up).clip(-1, 1)


def unpaired_difference(first: ArrayLike, first_ends: Ends, second: ArrayLike, second_ends: Ends) -> Ends:
    """Intervals of ``first − second`` from the intervals of both, as if of separate samples.

    Args:
        first: shares.
        first_ends: lower and upper ends of their intervals.
        second: shares.
        second_ends: lower and upper ends of their intervals.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    down = np.hypot(a - first_ends[0], second_ends[1] - b)
    up = np.hypot(first_ends[1] - a, b - second_ends[0])
    return (a - b - down).clip(-1, 1), (a - b + up).clip(-1, 1)


def half_width(values: NDArray[Any], confidence: float = CONFIDENCE) -> float:
    """Half-width of the t interval of the mean of independent values.

    Args:
        values: at least two [m].
        confidence: of the two-sided interval.

    Source: Abramowitz, Stegun 1964, 26.7.5 (quantiles of Student's t; off by 0.1 % from 10 values on).
    """
    z, freedom = _quantile(confidence), len(values) - 1
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return t * float(np.std(values, ddof=1)) / float(np.sqrt(len(values)))


def widened(value: float, interval: tuple[float, float], more: float, low: float = 0.0) -> tuple[float, float]:
    """An interval that covers another, independent error: half-widths are added as squares, and cut to [low, 1]."""
    down, up = np.hypot(value - interval[0], more), np.hypot(interval[1] - value, more)
    return max(low, float(value - down)), min(1.0, float(value + up))


def _scores(scores: NDArray[Any], samples: int | None) -> tuple[FloatArray, int]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim < 1 or not values.shape[-1]:
        raise ShapeError("an interval needs at least one sample")
    return values, values.shape[-1] if samples is None else samples


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _effective(values: FloatArray, mean: FloatArray, n: int, z: float) -> FloatArray:
    """Number of samples with values 0 and 1 whose mean varies as much as that of these scores [...].

    The variance ``v`` is a share of ``p (1 − p)``, its largest value. Scores say little about this share if few of them
    differ from the rest, as with an accuracy near 1: a sample that was not drawn could have any score. The share is
    therefore computed as if z² more such samples had scores of 0 and 1.
    """
    binary = mean * (1 - mean)
    share = np.where(binary > 0, values.var(axis=-1) / np.where(binary > 0, binary, 1.0), 1.0).clip(0, 1)
    known = n * binary
    result: FloatArray = n * (known + z**2) / (known * share + z**2)
    return result


def _score(share: FloatArray, n: FloatArray, z: float) -> Ends:
    """Wilson's interval; rounding must not put the share outside it."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt((share * (1 - share)).clip(0, None) / n + z**2 / (4 * n**2))
    return np.minimum(share, (centre - half).clip(0, 1)), np.maximum(share, (centre + half).clip(0, 1))
