"""``smoothing.npz``: how streamed answers are smoothed over time, and the accuracy of every subset with that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.manifest import SMOOTHING
from nonn.errors import BundleError, ShapeError
from nonn.reliability.intervals import share_interval
from nonn.reliability.subsets import membership
from nonn.reliability.table import SubsetTable
from nonn.sensing.smoothing import Smoothing

__all__ = ["SmoothedTable"]


@dataclass(frozen=True, eq=False)
class SmoothedTable:
    """Smoothing and its measurement on the test recordings.

    Attributes:
        smoothing: the filter.
        table: correct windows of each subset with smoothing.
        effective: samples that intervals count [2^N]: neighbouring smoothed answers are not independent.
        runs: runs of one label in the test recordings.
        lag: mean windows from a change of the label to the first correct answer, without smoothing and with it [2].
    """

    smoothing: Smoothing
    table: SubsetTable
    effective: NDArray[np.float64]
    runs: int
    lag: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.effective.shape != self.table.correct.shape or not (self.effective >= 1).all():
            raise ShapeError(f"effective samples {list(self.effective.shape)} do not fit the table")

    def interval(self, mask: int) -> tuple[float, float]:
        """95 % interval of the accuracy of one subset with smoothing; [0, 0] of the empty one."""
        return share_interval(float(self.table.accuracy[mask]), float(self.effective[mask])) if mask else (0.0, 0.0)

    def mean_interval(self, answering: int) -> tuple[float, float]:
        """95 % interval of the mean accuracy of all subsets of a size: as of one subset, so too wide."""
        chosen = membership(self.table.num_devices).sum(axis=1) == answering
        return share_interval(float(self.table.accuracy[chosen].mean()), float(self.effective[chosen].mean()))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Its values, for the bundle."""
        return self.smoothing.to_arrays() | {
            "correct": self.table.correct,
            "samples": np.array(self.table.samples),
            "effective": self.effective,
            "runs": np.array(self.runs),
            "lag": self.lag,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], num_devices: int, num_classes: int) -> Self:
        """The inverse of ``to_arrays``.

        Raises:
            BundleError: an array is missing, or does not fit the bundle.
        """
        try:
            table = SubsetTable(arrays["correct"], int(arrays["samples"]))
            smoothing = Smoothing.from_arrays(arrays)
            found = cls(smoothing, table, arrays["effective"], int(arrays["runs"]), arrays["lag"])
        except (KeyError, ValueError, ShapeError) as exc:
            raise BundleError(f"{SMOOTHING}: {exc}; build the bundle again") from exc
        if (table.num_devices, len(smoothing.prior)) != (num_devices, num_classes):
            raise BundleError(f"{SMOOTHING}: is of other devices or classes; build the bundle again")
        return found
