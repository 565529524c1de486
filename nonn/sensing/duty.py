"""Duty cycle: which units sense, if some of them suffice for an accuracy goal.

The bundle states the accuracy of every set of units. A choice takes, among the sets of units that are present and reach
the goal, those with the fewest units; of these the one whose emptiest battery is fullest, then the one whose units have
worked least. It holds for ``period_s``, so that units rotate by charge.

A unit that works but is missing in ``MISSES`` answers in a row does not count as present for ``RETRY`` of the period,
and another choice is made at once: failures wake the redundant units. Until its first answer a unit has ``warm_up``
answers, because its first window needs samples. A choice is also made when a unit joins or leaves. If no set reaches
the goal, every unit works.

Limits: between a failure and the next choice, answers have fewer units and say so. Units that rest are not tested
against the others. Pure: time is an argument, and the simulator uses the same object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from nonn.errors import ConfigError
from nonn.reliability.subsets import mask_of, members, membership

__all__ = ["DutyCycle"]

RETRY = 0.1  # of the period, until a unit that failed is tried again
MISSES = 2  # answers in a row: a single window may be lost on the way
FULL = 100  # a unit without a battery, or of unknown charge


class DutyCycle:
    """The choice of the units that work.

    Args:
        accuracy: of every set of units, by mask [2^N].
        goal: accuracy that the working units must reach together, in [0, 1].
        period_s: time after which a choice is made again.
        least: fewest units that work, such as the quorum.
        warm_up: answers until a unit must have its first window; the windows that overlap, and some more.

    Raises:
        ConfigError: the goal is more than any set of units reaches, or not a share.
    """

    def __init__(
        self, accuracy: ArrayLike, goal: float, period_s: float = 600.0, least: int = 1, warm_up: int = 4
    ) -> None:
        self._accuracy = np.asarray(accuracy, dtype=np.float64)
        if not 0 < goal <= 1 or goal > self._accuracy.max():
            raise ConfigError(
                f"accuracy goal {goal:g}: must be above 0 and at most {self._accuracy.max():.4f}, which the best set "
                "of devices reaches"
            )
        size = membership(len(self._accuracy).bit_length() - 1).sum(axis=1)
        self._reach = np.flatnonzero((self._accuracy >= goal) & (size >= least))
        self._size = size[self._reach]
        self._goal = goal
        self._period_s, self._warm_up = period_s, warm_up
        self._working, self._until = frozenset[int](), -np.inf
        self._barred, self._missed = dict[int, float](), Counter[int]()  # until when; answers in a row
        self._present, self._proven = set[int](), set[int]()
        self._served, self._last = dict[int, float](), 0.0

    @property
    def working(self) -> frozenset[int]:
        """The units that are to sense."""
        return self._working

    def update(self, now: float, charge: Mapping[int, int | None], answered: Iterable[int]) -> frozenset[int]:
        """Takes note of an answer, and chooses again where that is due.

        Args:
            now: time in seconds.
            charge: battery of each unit that is present, in percent; None if it is unknown.
            answered: units of the answer.

        Returns:
            The units that are to sense from now on.
        """
        there, answered = self._working & charge.keys(), set(answered)
        self._proven |= there & answered
        for unit in there:
            self._served[unit] = self._served.get(unit, 0.0) + max(0.0, now - self._last)
            self._missed[unit] = 0 if unit in answered else self._missed[unit] + 1
        self._last = now
        failed = {unit for unit in there if self._missed[unit] >= (MISSES if unit in self._proven else self._warm_up)}
        freed = {unit for unit, until in self._barred.items() if now >= until}
        for unit in freed:
            del self._barred[unit]
        out_of_reach = self._accuracy[mask_of(self._working - self._barred.keys())] < self._goal
        if now >= self._until or failed or charge.keys() != self._present or (freed and out_of_reach):
            self._barred |= dict.fromkeys(failed, now + RETRY * self._period_s)
            self._present = set(charge)
            self._until = now + self._period_s
            self._working = self._chosen(charge)
            self._proven &= self._working
            self._missed = Counter({unit: n for unit, n in self._missed.items() if unit in self._working - failed})
        return self._working

    def _chosen(self, charge: Mapping[int, int | None]) -> frozenset[int]:
        """The best set of the units that are present."""
        usable = mask_of(unit for unit in charge if unit not in self._barred)
        possible = self._reach & ~usable == 0
        if not possible.any():
            return frozenset(charge)
        masks = self._reach[possible & (self._size == self._size[possible].min())].tolist()

        def worth(mask: int) -> tuple[float, ...]:
            units = members(mask)
            emptiest = min(FULL if (percent := charge[unit]) is None else percent for unit in units)
            return emptiest, -sum(self._served.get(unit, 0.0) for unit in units), self._accuracy[mask]

        return frozenset(members(max(masks, key=worth)))
