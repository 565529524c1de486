"""Base classes: failure laws, and failure laws with a clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.subsets import masks_of, membership

__all__ = ["BoolArray", "FirstPassage", "FloatArray", "IntArray", "Law", "TimedLaw"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Law(ABC):
    """A distribution over subsets.

    Attributes:
        kind: name in experiment and scenario files and on the command line.
        text: the law as it was written.
        num_devices: N.
    """

    kind: ClassVar[str]

    def __init__(self, num_devices: int, text: str = "") -> None:
        self.num_devices, self.text = num_devices, text or self.kind

    @abstractmethod
    def probability_of(self, up: BoolArray) -> FloatArray:
        """Probability of each of some subsets, for any N.

        Args:
            up: the devices that answer [m, N].

        Returns:
            [m].
        """

    @abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> BoolArray:
        """Draws subsets, for any N: the devices that answer [count, N]."""

    def probabilities(self) -> FloatArray:
        """Probability of each subset [2^N], sums to 1.

        Raises:
            ShapeError: N > 16.
        """
        return self.probability_of(membership(self.num_devices))

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[Any]:
        """Draws subsets, as masks [count]; see ``masks_of`` for their type."""
        return masks_of(self.draw(rng, count))


@dataclass(frozen=True)
class FirstPassage:
    """First passage: the time at which accuracy first falls below a level.

    Attributes:
        mean_s: mean time from the start with every device up, in seconds; infinite if it never does.
        method: how it was computed: ``exact``, ``record`` or ``simulated``.
        low_s: lower end of its 95 % interval; the mean itself unless simulated.
        high_s: upper end of the interval.
    """

    mean_s: float
    method: str
    low_s: float
    high_s: float

    @classmethod
    def certain(cls, mean_s: float, method: str = "exact") -> FirstPassage:
        """A time without an interval."""
        return cls(mean_s, method, mean_s, mean_s)


class TimedLaw(Law):
    """A law in which devices fail and may recover over time; ``probabilities`` are shares of the time."""

    @abstractmethod
    def first_passage(self, good: NDArray[np.bool_]) -> FirstPassage:
        """The time at which the subset of devices that are up is first not a good one.

        Args:
            good: whether each subset is good enough [2^N].
        """
