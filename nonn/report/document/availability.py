"""Sections of report.json about failure laws: expected accuracy and availability of levels."""

from __future__ import annotations

from dataclasses import dataclass, field

from nonn.documents import OPTIONAL, Share

__all__ = [
    "Availability",
    "AvailabilityCurve",
    "ExpectedAccuracy",
    "LevelShare",
]


@dataclass(frozen=True, kw_only=True)
class ExpectedAccuracy:
    """Accuracy over all subsets of devices, weighted with their probability.

    Attributes:
        law: the failure law as text.
        value: the expected accuracy, in [0, 1] up to rounding; where no device answers, it counts as wrong.
        p_fail: probability that a device does not answer: one number for all devices, or one for each [N].
        interval: of `value`.
    """

    law: str
    value: float
    p_fail: Share | tuple[Share, ...]
    interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)


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
