"""Accuracy under a failure law: exact sums over the table of subsets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nonn.errors import ShapeError
from nonn.reliability.laws.base import FirstPassage, FloatArray, Law, TimedLaw
from nonn.reliability.subsets import ROUNDING
from nonn.reliability.table import SubsetTable

__all__ = ["Level", "Outcome", "assess", "availability", "distribution", "expected", "meets"]


def meets(accuracy: FloatArray, level: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each accuracy reaches a level; 7 of 10 and the literal 0.7 are the same double."""
    return np.asarray(accuracy >= level)


def expected(accuracy: FloatArray, probability: FloatArray) -> float:
    """Expected accuracy; both arguments by subset [2^N]."""
    return float(probability @ accuracy)


def availability(accuracy: FloatArray, probability: FloatArray, level: float) -> float:
    """Probability, or share of time, that accuracy reaches a level; arguments by subset [2^N]."""
    return float(min(1.0, probability[meets(accuracy, level)].sum()))


def distribution(accuracy: FloatArray, probability: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Distribution of accuracy.

    Returns:
        The accuracies that occur, ascending [V], and the probability of each [V].
    """
    values, place = np.unique(accuracy, return_inverse=True)
    weight = np.bincount(place, probability, len(values)).astype(np.float64)
    occurs = weight > 0
    return values[occurs], weight[occurs]


@dataclass(frozen=True)
class Level:
    """Availability of one level of accuracy.

    Attributes:
        level: the level of accuracy.
        availability: probability, or share of time, that it is reached.
        first_passage: time at which it is first missed; None where the law has no clock.
    """

    level: float
    availability: float
    first_passage: FirstPassage | None


@dataclass(frozen=True)
class Outcome:
    """Accuracy under a failure law.

    Attributes:
        law: the law as it was written.
        expected: expected accuracy.
        sd: standard deviation of accuracy over the subsets.
        quantiles: share → accuracy that is undercut with at most this probability.
        levels: availability of each requested level.
    """

    law: str
    expected: float
    sd: float
    quantiles: dict[float, float]
    levels: tuple[Level, ...]


def assess(table: SubsetTable, law: Law, levels: Sequence[float] = ()) -> Outcome:
    """Computes the accuracy of a table under a failure law.

    Args:
        table: accuracy of each subset.
        law: failure law of the same devices.
        levels: accuracies whose availability is computed.

    Raises:
        ShapeError: the law is for another number of devices.
    """
    if law.num_devices != table.num_devices:
        raise ShapeError(f"a failure law of {law.num_devices} devices for a table of {table.num_devices}")
    accuracy, probability = table.accuracy, law.probabilities()
    mean = expected(accuracy, probability)
    values, weight = distribution(accuracy, probability)
    below = np.cumsum(weight)
    quantiles = {
        share: float(values[min(int(np.searchsorted(below, share * (1 + ROUNDING), side="right")), len(values) - 1)])
        for share in (0.001, 0.01, 0.05, 0.5)
    }
    kept = []
    for level in levels:
        fall = law.first_passage(meets(accuracy, level)) if isinstance(law, TimedLaw) else None
        kept.append(Level(level, availability(accuracy, probability, level), fall))
    variance = max(0.0, float(probability @ (accuracy - mean) ** 2))
    return Outcome(law.text, mean, math.sqrt(variance), quantiles, tuple(kept))
