"""Minimal cut sets: the smallest sets of devices whose failure makes accuracy miss a level.

A set of failed devices is a cut if the accuracy of the others is below the level, and minimal if no part of it is one.
The event "every device of some minimal cut has failed" contains every miss. Accuracy may rise again when a further
device fails, so some subsets beyond a cut may reach the level: then the system is not coherent, and the probability of
that event is an upper bound of the exact one.

Limits: as many devices as ``nonn.reliability.subsets`` enumerates. NumPy only.

Reference: Barlow, Proschan 1975, "Statistical theory of reliability and life testing", chapter 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.subsets import all_masks, members
from nonn.reliability.table import SubsetTable

__all__ = ["CutSet", "CutSets", "cut_sets"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class CutSet:
    """One minimal cut set.

    Attributes:
        devices: the devices.
        probability: probability that all of them have failed, whatever the others.
    """

    devices: tuple[int, ...]
    probability: float


@dataclass(frozen=True)
class CutSets:
    """The minimal cut sets of one level of accuracy.

    Attributes:
        level: the level.
        cuts: the likeliest first; a single empty one where the level is missed without a failure.
        missed: exact probability that the level is missed.
        bound: probability that every device of some cut has failed; equal to ``missed`` in a coherent system.
        coherent: whether no failure restores the level.
    """

    level: float
    cuts: tuple[CutSet, ...]
    missed: float
    bound: float
    coherent: bool


def cut_sets(table: SubsetTable, probability: FloatArray, level: float) -> CutSets:
    """The minimal cut sets of a level.

    Args:
        table: accuracy of all subsets.
        probability: probability of each answering subset under a failure law [2^N].
        level: accuracy in [0, 1].
    """
    masks = all_masks(table.num_devices)
    # By failed devices: the complement of a mask of N bits is its mirror image.
    missed, chance = (table.accuracy < level)[::-1], probability[::-1]
    covered, minimal, all_failed = missed.copy(), missed.copy(), chance.copy()
    for device in range(table.num_devices):
        with_it = masks[masks >> device & 1 == 1]
        without = with_it ^ 1 << device
        # After the last device: a cut is among the parts of a set; all of a set have failed.
        covered[with_it] |= covered[without]
        all_failed[without] += all_failed[with_it]
    for device in range(table.num_devices):
        with_it = masks[masks >> device & 1 == 1]
        minimal[with_it] &= ~covered[with_it ^ 1 << device]
    cuts = [CutSet(members(mask), float(min(1.0, all_failed[mask]))) for mask in np.flatnonzero(minimal).tolist()]
    return CutSets(
        level=level,
        cuts=tuple(sorted(cuts, key=lambda cut: (-cut.probability, len(cut.devices), cut.devices))),
        missed=float(min(1.0, chance[missed].sum())),
        bound=float(min(1.0, chance[covered].sum())),
        coherent=bool((missed == covered).all()),
    )
