"""Accuracy of the subsets of a bundle's devices: all of them up to N = 16, a stratified sample beyond.

Sampled figures have a 95 % confidence interval for the sampling of subsets. The test samples are taken as given; their
own sampling error is the subject of ``wilson``, for a single accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.enumeration import count_correct, count_one_by_one
from nonn.errors import ConfigError, ShapeError
from nonn.fusion import Head
from nonn.reliability.confidence import CONFIDENCE
from nonn.reliability.laws import Law
from nonn.reliability.laws.outcome import meets
from nonn.reliability.subsets import MAX_DEVICES, SubsetTable, mask_of, members

__all__ = [
    "Estimate",
    "SampledLaw",
    "Stratum",
    "enumerate_bundle",
    "mean_estimate",
    "sample_failures",
    "sample_law",
    "wilson",
]

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Estimate:
    """An estimated number.

    Attributes:
        estimate: the number.
        low: lower end of its 95 % confidence interval; the number itself where it is exact.
        high: upper end.
    """

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Stratum:
    """Accuracy with a given number of failures.

    Attributes:
        failed: number of failed devices.
        subsets: number of subsets.
        sampled: how many of them were fused.
        mean: mean accuracy over the subsets.
        worst: lowest observed accuracy; unless all subsets were fused, another one may be lower.
        best: highest observed accuracy.
        worst_subset: devices of the worst observed subset.
    """

    failed: int
    subsets: int
    sampled: int
    mean: Estimate
    worst: float
    best: float
    worst_subset: tuple[int, ...]


@dataclass(frozen=True)
class SampledLaw:
    """Accuracy under a failure law, from draws of subsets.

    Attributes:
        draws: number of draws.
        expected: expected accuracy.
        availability: probability that each level is reached: level → estimate.
    """

    draws: int
    expected: Estimate
    availability: dict[float, Estimate]


def wilson(successes: int, trials: int) -> Estimate:
    """A share and its 95 % score interval, which never leaves [0, 1].

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    from scipy.stats import binomtest

    low, high = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / trials, float(low), float(high))


def mean_estimate(values: NDArray[np.float64], population: int | None = None) -> Estimate:
    """A mean of accuracies and its 95 % t interval, cut to [0, 1].

    Args:
        values: [m].
        population: size of the population, if drawn without repetition; the interval has width 0 once all are drawn.
    """
    from scipy.stats import t

    mean, count = float(values.mean()), len(values)
    if count == population:
        return Estimate(mean, mean, mean)
    if count < 2:
        return Estimate(mean, 0.0, 1.0)
    correction = 1.0 if population is None else 1 - count / population
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * math.sqrt(float(values.var(ddof=1)) / count * correction)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))


def enumerate_bundle(
    bundle: Bundle, *, recount: bool = False, per_class: bool = False, progress: Progress | None = None
) -> tuple[SubsetTable, NDArray[np.int64] | None]:
    """All subsets of a bundle.

    Args:
        bundle: a bundle with N ≤ 16.
        recount: count from the recorded features instead of reading the bundle's table.
        per_class: count by class too, which needs the features.
        progress: called with the completed share, 0 to 1.

    Returns:
        The table, and the correct answers by mask and class [2^N, K] if requested.

    Raises:
        ConfigError: more than 16 devices.
        BundleError: features are needed and the bundle has none.
    """
    if bundle.num_devices > MAX_DEVICES:
        raise ConfigError(
            f"{bundle.path}: {bundle.num_devices} devices; all subsets are enumerated up to {MAX_DEVICES}. "
            "Sample them with --samples 64"
        )
    if not recount and not per_class:
        return bundle.table, None
    features, labels = bundle.features
    counts = count_correct(bundle.head, features, labels, per_class=per_class, progress=progress)
    total = counts.sum(axis=1) if per_class else counts
    return SubsetTable(total, len(labels)), counts if per_class else None


def sample_failures(
    head: Head,
    features: Sequence[NDArray[Any]],
    labels: NDArray[np.int64],
    samples: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Stratum]:
    """Accuracy against failures from some subsets of each size, any N.

    Args:
        head: the fusion.
        features: N arrays [n, d_i].
        labels: [n].
        samples: number of subsets to fuse for each number of failures; all of them if there are no more.
        seed: seed of the draw.
        progress: called with the completed share, 0 to 1.

    Raises:
        ConfigError: fewer than two samples.
    """
    if samples < 2:
        raise ConfigError(f"{samples} samples: an interval needs at least two subsets")
    rng, n = np.random.default_rng(seed), head.num_devices
    strata = []
    for failed in range(n):
        masks = _draw(rng, n, n - failed, samples)
        accuracy = count_one_by_one(head, features, labels, masks=masks) / len(labels)
        subsets = math.comb(n, failed)
        worst = int(accuracy.argmin())
        strata.append(
            Stratum(
                failed,
                subsets,
                len(masks),
                mean_estimate(accuracy, subsets),
                float(accuracy[worst]),
                float(accuracy.max()),
                members(masks[worst]),
            )
        )
        if progress is not None:
            progress((failed + 1) / n)
    return strata


def _draw(rng: np.random.Generator, n: int, size: int, count: int) -> list[int]:
    """Distinct subsets of ``size`` of n devices, as masks; all of them if there are no more than ``count``."""
    if math.comb(n, size) <= 4 * count:
        every = [mask_of(chosen) for chosen in combinations(range(n), size)]
        return every if len(every) <= count else [every[i] for i in rng.choice(len(every), count, replace=False)]
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        drawn[mask_of(rng.choice(n, size, replace=False).tolist())] = None
    return list(drawn)


def sample_law(
    head: Head,
    features: Sequence[NDArray[Any]],
    labels: NDArray[np.int64],
    law: Law,
    draws: int,
    *,
    levels: Sequence[float] = (),
    seed: int = 0,
) -> SampledLaw:
    """Accuracy under a failure law from draws of subsets, any N; a repeated subset is fused once.

    Raises:
        ConfigError: fewer than two draws.
        ShapeError: the law is for another number of devices.
    """
    if draws < 2:
        raise ConfigError(f"{draws} draws: an interval needs at least two")
    if law.num_devices != head.num_devices:
        raise ShapeError(f"a failure law of {law.num_devices} devices for a head of {head.num_devices}")
    masks, place = np.unique(law.sample(np.random.default_rng(seed), draws), return_inverse=True)
    accuracy = (count_one_by_one(head, features, labels, masks=masks.tolist()) / len(labels))[place]
    reached = {level: wilson(int(meets(accuracy, level).sum()), draws) for level in levels}
    return SampledLaw(draws, mean_estimate(accuracy), reached)
