"""Devices that fail and are repaired: independent two-state Markov chains in continuous time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.laws.base import FirstPassage, FloatArray, TimedLaw
from nonn.reliability.laws.first_passage import mean_first_passage
from nonn.reliability.laws.requests import Independent
from nonn.reliability.subsets import probabilities

__all__ = ["Markov"]


class Markov(TimedLaw, Independent):
    """Up and down with exponential times.

    Args:
        mtbf_s: mean time that device i stays up before it fails, in seconds [N].
        mttr_s: mean time until it is repaired, in seconds [N].

    ``p`` is the share of time that a device is down in the long run, mttr / (mtbf + mttr).
    """

    kind = "markov"

    def __init__(self, mtbf_s: FloatArray, mttr_s: FloatArray, text: str = "") -> None:
        Independent.__init__(self, mttr_s / (mtbf_s + mttr_s), text)
        self.fail_rate, self.repair_rate = 1 / mtbf_s, 1 / mttr_s

    def probabilities_at(self, time_s: float) -> FloatArray:
        """Transient solution: p_down(t) = p (1 − exp(−(λ + μ) t))."""
        return probabilities(self.p * -np.expm1(-(self.fail_rate + self.repair_rate) * time_s))

    def first_passage(self, good: NDArray[np.bool_]) -> FirstPassage:
        """Mean first passage out of the good subsets, exact for any number of devices."""
        return FirstPassage.certain(mean_first_passage(self.fail_rate, self.repair_rate, good))
