"""Sections of report.json about failure laws: expected accuracy and availability of levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nonn.documents import OPTIONAL, Share, Whole

__all__ = [
    "Availability",
    "AvailabilityCurve",
    "ExpectedAccuracy",
    "LevelShare",
    "Sampling",
]


@dataclass(frozen=True, kw_only=True)
class ExpectedAccuracy:
    """Accuracy over all subsets of devices, weighted with their probability.

    Attributes:
        law: the failure law as text.
        value: the expected accuracy, in [0, 1] up to rounding; where no device answers, it counts as wrong.
        p_fail: probability that a device does not answer: one number for all devices, or one for each [N].
        interval: of `value`.
        bound: lowest and highest value for these test samples, whatever the accuracy of the subsets that were not
            counted; absent where all were.
    """

    law: str
    value: float
    p_fail: Share | tuple[Share, ...]
    interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    bound: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The subsets that were evaluated, of more devices than can be enumerated (`nonn.reliability.sampled`).

    Attributes:
        counted_failed: every subset with at most this many failed devices was evaluated.
        subsets: number of all evaluated subsets.
        chains: orders in which all devices fail, drawn at random: subsets of each larger number of failures.
        draws: draws of each failure law among the subsets that were not counted, by its text.
    """

    counted_failed: Whole
    subsets: Whole
    chains: Whole
    draws: Mapping[str, Whole]


@dataclass(frozen=True, kw_only=True)
class LevelShare:
    """Availability of one level, with its interval.

    Attributes:
        level: level of accuracy.
        share: probability that accuracy is at least the level.
        interval: of `share`: from resampled test sets, the same samples for all subsets.
    """

    level: Share
    share: Share
    interval: tuple[Share, ...]


@dataclass(frozen=True, kw_only=True)
class AvailabilityCurve:
    """Availability under one failure law.

    Attributes:
        p_fail: probability that a device does not answer: one number for all devices, or one for each [N].
        share: probability that accuracy is at least the level, for each of the levels.
        stated: the levels of the table, at which the laws differ, with intervals.
        law: the failure law as text; absent in reports of older versions.
        common: share of each device's failures whose cause takes its group of devices down; absent where devices fail
            independently.
    """

    p_fail: Share | tuple[Share, ...]
    share: tuple[Share, ...]
    stated: tuple[LevelShare, ...] = ()
    law: str | None = field(default=None, metadata=OPTIONAL)
    common: Share | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Share of the time in which accuracy reaches a level.

    Attributes:
        levels: levels of accuracy: 0, 0.001 … 1 [1001].
        curves: one for each failure law, the bundle's own first.
    """

    levels: tuple[Share, ...]
    curves: tuple[AvailabilityCurve, ...]
