"""Accuracy of the subsets of a bundle's devices: all of them up to N = 16, a stratified sample beyond.

Beyond 16 devices every subset with few failures is fused, and a sample of the others for each number of failures. Under
a failure law the fused subsets have their exact probability: they are a lower bound of the expected accuracy, and the
probability of the others, if all of those were right, gives the upper bound. Draws of the law among the others narrow
it down. A plain sample of the law would see hardly any failure, and its interval would miss the truth.

Sampled figures have a 95 % confidence interval for the sampling of subsets. The test samples are taken as given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.enumeration import count_correct, count_one_by_one
from nonn.enumeration.worst import NEIGHBOURS, search_worst
from nonn.errors import ConfigError, ShapeError
from nonn.fusion import Head
from nonn.reliability.confidence import CONFIDENCE
from nonn.reliability.counted import COUNTED_FAILURES, counted_failures, draw_others, few_failures
from nonn.reliability.intervals import share_interval
from nonn.reliability.laws import Law
from nonn.reliability.laws.outcome import meets
from nonn.reliability.subsets import MAX_DEVICES, ROUNDING, mask_of, masks_of, members, membership_of
from nonn.reliability.table import SubsetTable

__all__ = [
    "Counted",
    "Estimate",
    "SampledLaw",
    "Stratum",
    "count_few_failures",
    "enumerate_bundle",
    "mean_estimate",
    "sample_failures",
    "sample_law",
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
        worst: lowest accuracy found, also by a search from the sampled subsets (``nonn.enumeration.worst``); unless all
            subsets were fused, another one may be lower.
        best: highest observed accuracy.
        worst_subset: devices of that subset.
    """

    failed: int
    subsets: int
    sampled: int
    mean: Estimate
    worst: float
    best: float
    worst_subset: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Counted:
    """Every subset with few failed devices.

    Attributes:
        failed: the largest number of failures.
        up: the devices of each subset [m, N].
        accuracy: accuracy of each subset [m].
    """

    failed: int
    up: NDArray[np.bool_]
    accuracy: NDArray[np.float64]


@dataclass(frozen=True)
class SampledLaw:
    """Accuracy under a failure law, from the counted subsets and draws of the others.

    Attributes:
        draws: number of draws among the subsets that were not counted.
        unseen: probability of the subsets that were not counted.
        bound: lowest and highest expected accuracy, whatever the accuracy of these subsets.
        expected: expected accuracy.
        availability: probability that each level is reached: level → estimate.
    """

    draws: int
    unseen: float
    bound: tuple[float, float]
    expected: Estimate
    availability: dict[float, Estimate]


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


def count_few_failures(
    head: Head,
    features: Sequence[NDArray[Any]],
    labels: NDArray[np.int64],
    failed: int = COUNTED_FAILURES,
    progress: Progress | None = None,
) -> Counted:
    """Fuses every subset with at most this many failures, any N; fewer failures where these are over 50,000 subsets.

    Args:
        head: the fusion.
        features: N arrays [n, d_i].
        labels: [n].
        failed: largest number of failures.
        progress: called with the completed share, 0 to 1.
    """
    n = head.num_devices
    failed = counted_failures(n, failed)
    gone = list(few_failures(n, failed))
    up = np.ones((len(gone), n), dtype=bool)
    for row, chosen in zip(up, gone, strict=True):
        row[list(chosen)] = False
    correct = count_one_by_one(head, features, labels, masks=masks_of(up).tolist(), progress=progress)
    return Counted(failed, up, correct / len(labels))


def sample_failures(
    head: Head,
    features: Sequence[NDArray[Any]],
    labels: NDArray[np.int64],
    samples: int,
    *,
    counted: Counted | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Stratum]:
    """Accuracy against failures from some subsets of each size, any N.

    Args:
        head: the fusion.
        features: N arrays [n, d_i].
        labels: [n].
        samples: number of subsets to fuse for each number of failures; all of them if there are no more.
        counted: the subsets with few failures, which are not sampled.
        seed: seed of the draw.
        progress: called with the completed share, 0 to 1.

    Raises:
        ConfigError: fewer than two samples.
    """
    if samples < 2:
        raise ConfigError(f"{samples} samples: an interval needs at least two subsets")
    rng, n = np.random.default_rng(seed), head.num_devices
    strata = []
    drawn: list[tuple[list[int], NDArray[np.int64]]] = []
    for failed in range(n):
        if counted is not None and failed <= counted.failed:
            chosen = (~counted.up).sum(axis=1) == failed
            masks = masks_of(counted.up[chosen]).tolist()
            correct = np.rint(counted.accuracy[chosen] * len(labels)).astype(np.int64)
        else:
            masks = _draw(rng, n, n - failed, samples)
            correct = count_one_by_one(head, features, labels, masks=masks)
        drawn.append((masks, correct))
        subsets, accuracy = math.comb(n, failed), correct / len(labels)
        worst = int(correct.argmin())
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
    found = search_worst(
        membership_of([mask for masks, _ in drawn for mask in masks], n),
        np.concatenate([correct for _, correct in drawn]),
        lambda masks: count_one_by_one(head, features, labels, masks=masks),
        [stratum.failed for stratum in strata if stratum.sampled < stratum.subsets],
        most=min(samples, max(2, NEIGHBOURS // n)),
    )
    for failed, (mask, right) in found.items():
        strata[failed] = replace(strata[failed], worst=right / len(labels), worst_subset=members(mask))
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
    counted: Counted,
    *,
    levels: Sequence[float] = (),
    seed: int = 0,
) -> SampledLaw:
    """Accuracy under a failure law, any N: the counted subsets exactly, the others from draws of the law.

    Args:
        head: the fusion.
        features: N arrays [n, d_i].
        labels: [n].
        law: failure law of the same devices.
        draws: draws among the other subsets; a repeated subset is fused once.
        counted: the subsets with few failures.
        levels: accuracies whose availability is computed.
        seed: seed of the draws.

    Raises:
        ConfigError: fewer than two draws.
        ShapeError: the law is for another number of devices.
    """
    if draws < 2:
        raise ConfigError(f"{draws} draws: an interval needs at least two")
    if law.num_devices != head.num_devices:
        raise ShapeError(f"a failure law of {law.num_devices} devices for a head of {head.num_devices}")
    probability = law.probability_of(counted.up)
    unseen = min(1.0, max(0.0, 1 - float(probability.sum())))
    rng = np.random.default_rng(seed)
    masks = masks_of(draw_others(law, counted.failed, draws if unseen > ROUNDING else 0, rng))
    distinct, place = np.unique(masks, return_inverse=True)
    accuracy = (count_one_by_one(head, features, labels, masks=distinct.tolist()) / len(labels))[place]
    known = float(probability @ counted.accuracy)
    reached = {}
    for level in levels:
        at_least = float(probability[meets(counted.accuracy, level)].sum())
        reached[level] = _with_unseen(at_least, unseen, _share(meets(accuracy, level)))
    mean = mean_estimate(accuracy) if len(masks) else _UNKNOWN
    bound = known, min(1.0, known + unseen)
    return SampledLaw(len(masks), unseen, bound, _with_unseen(known, unseen, mean), reached)


_UNKNOWN = Estimate(0.5, 0.0, 1.0)


def _share(values: NDArray[np.bool_]) -> Estimate:
    """The share of true values and its 95 % interval."""
    if not len(values):
        return _UNKNOWN
    share = float(values.mean())
    return Estimate(share, *share_interval(share, len(values)))


def _with_unseen(known: float, unseen: float, among: Estimate) -> Estimate:
    """An estimate over all subsets, from the part of those counted and an estimate among the others."""
    return Estimate(*(min(1.0, known + unseen * value) for value in (among.estimate, among.low, among.high)))
