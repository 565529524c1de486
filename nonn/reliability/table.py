"""Accuracy of each subset of devices.

A ``SubsetTable`` has the number of test samples that each of the 2^N subsets classifies correctly; accuracy against
failures, expected accuracy under a failure law and the importance of a device are exact sums over it, without running a
device again. ``nonn.reliability.sampled`` has a table of some of the subsets, for more devices than can be enumerated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nonn.documents import OPTIONAL, Share, Whole
from nonn.documents.shown import html_table, percent
from nonn.errors import ShapeError
from nonn.reliability.intervals import wilson
from nonn.reliability.subsets import members, membership, probabilities

__all__ = ["AccuracyOf", "AccuracyTable", "FailureRow", "Stated", "SubsetTable"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FailureRow:
    """Accuracy at one number of failures, over all subsets of devices that still answer.

    Attributes:
        failed: devices that have failed.
        subsets: number of these subsets.
        mean: mean accuracy of these subsets.
        worst: accuracy of the worst subset.
        best: accuracy of the best subset.
        worst_subset: devices of the worst subset, the lowest mask among equals; empty where no device has failed.
        interval: of the mean, for the finite test set.
        worst_interval: of the accuracy of the worst subset. Its lower end holds for the worst of all; the subset was
            chosen on the samples it was measured on, so it may be better than measured: see `worst_apart`.
        best_interval: of the accuracy of the best subset, likewise.
        worst_apart: accuracy of the worst subset, chosen on one half of the samples and measured on the other; mean
            over 16 splits. Absent where there is one subset, or the bundle lacks the outcomes of samples.
        best_apart: the same for the best subset.
        worst_apart_interval: of `worst_apart`, with half of the samples.
        best_apart_interval: of `best_apart`, likewise.
        sampled: subsets that were evaluated, if these are not all: `worst` and `best` are the worst and the best found,
            `mean` is an estimate, and `interval` also covers the choice of the subsets.
    """

    failed: Whole
    subsets: Whole
    mean: Share
    worst: Share
    best: Share
    worst_subset: tuple[Whole, ...]
    interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    worst_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    best_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    worst_apart: Share | None = field(default=None, metadata=OPTIONAL)
    best_apart: Share | None = field(default=None, metadata=OPTIONAL)
    worst_apart_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    best_apart_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    sampled: Whole | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Stated:
    """The accuracy that an answer states for its subset of devices.

    Attributes:
        accuracy: accuracy of the subset.
        interval: its 95 % interval.
        estimated: whether the subset was not evaluated. Then ``accuracy`` is the mean of the sampled subsets of as many
            devices, and ``interval`` covers the differences between these.
    """

    accuracy: float
    interval: tuple[float, float]
    estimated: bool = False


class AccuracyOf(Protocol):
    """The accuracy of each subset, by its mask."""

    def __getitem__(self, mask: int, /) -> float:
        """Accuracy of one subset."""
        ...


class AccuracyTable(ABC):
    """Number of samples that some subsets classify correctly: all subsets, or a sample of them.

    Attributes:
        correct: correct samples of each subset, in the order of the table [m].
        samples: number of samples evaluated.
    """

    correct: IntArray
    samples: int

    @property
    @abstractmethod
    def num_devices(self) -> int:
        """N."""

    @property
    @abstractmethod
    def empty(self) -> slice:
        """Place of the empty subset in the table, if it has one."""

    @property
    def accuracy(self) -> FloatArray:
        """Accuracy of each subset of the table, in [0, 1] [m]."""
        return self.correct / self.samples

    @property
    def full(self) -> int:
        """The mask of all devices."""
        return (1 << self.num_devices) - 1

    @abstractmethod
    def place(self, mask: int) -> int | None:
        """Place of a subset in the table; None if it was not evaluated."""

    @abstractmethod
    def mask(self, place: int) -> int:
        """The subset at a place of the table."""

    @property
    @abstractmethod
    def failures(self) -> IntArray:
        """Failed devices of each subset of the table [m]."""

    @abstractmethod
    def with_counts(self, correct: IntArray, samples: int) -> Self:
        """The same subsets with the counts of other samples."""

    @abstractmethod
    def stated(self, mask: int) -> Stated:
        """The accuracy that an answer of one subset states; 0 of the empty one, which never answers."""

    @abstractmethod
    def lookup(self) -> AccuracyOf:
        """The accuracy of any subset by its mask, as ``stated`` has it."""

    @abstractmethod
    def by_failures(self) -> tuple[FailureRow, ...]:
        """Accuracy against failed devices: over subsets with 0 … N − 1 devices failed."""

    @abstractmethod
    def importance(self, p_fail: FloatArray) -> FloatArray:
        """Accuracy lost if each device fails, the others independently with ``p_fail`` [N]."""

    def to_html(self, caption: str = "") -> str:
        """Accuracy against failed devices as an HTML table.

        Args:
            caption: text above it.
        """
        rows = [
            (str(row.failed), str(row.subsets), *map(percent, (row.mean, row.worst, row.best)))
            for row in self.by_failures()
        ]
        return html_table(("failed", "subsets", "mean", "worst", "best"), rows, caption)

    def _repr_html_(self) -> str:
        """``to_html``, for notebooks."""
        return self.to_html()

    def _check(self, p_fail: FloatArray) -> None:
        if np.shape(p_fail) != (self.num_devices,):
            raise ShapeError(f"{np.shape(p_fail)} failure probabilities for {self.num_devices} devices")
        if not ((np.asarray(p_fail) >= 0) & (np.asarray(p_fail) <= 1)).all():
            raise ShapeError("failure probabilities must lie between 0 and 1")


@dataclass(frozen=True)
class SubsetTable(AccuracyTable):
    """Number of samples that each subset classifies correctly.

    Attributes:
        correct: correct samples of each mask [2^N].
        samples: number of samples evaluated.
    """

    correct: IntArray
    samples: int

    def __post_init__(self) -> None:
        size = len(self.correct)
        if self.correct.ndim != 1 or size < 2 or size & (size - 1):
            raise ShapeError(f"a subset table has 2^N counts, not an array of shape {list(self.correct.shape)}")
        if self.samples < 1 or self.correct.min() < 0 or self.correct.max() > self.samples:
            raise ShapeError(f"a subset table of {self.samples} samples has counts outside 0 … {self.samples}")

    @property
    def num_devices(self) -> int:
        """N."""
        return len(self.correct).bit_length() - 1

    @property
    def empty(self) -> slice:
        """The first place."""
        return slice(0, 1)

    def place(self, mask: int) -> int:
        """The mask itself: the table has every subset in its order."""
        return mask

    def mask(self, place: int) -> int:
        """The place itself."""
        return place

    @property
    def failures(self) -> IntArray:
        """Failed devices of each subset [2^N]."""
        gone: IntArray = self.num_devices - membership(self.num_devices).sum(axis=1)
        return gone

    def with_counts(self, correct: IntArray, samples: int) -> SubsetTable:
        """The same subsets with the counts of other samples."""
        return SubsetTable(correct, samples)

    def stated(self, mask: int) -> Stated:
        """The accuracy of one subset with its interval."""
        return Stated(float(self.correct[mask] / self.samples), self.interval(mask))

    def lookup(self) -> AccuracyOf:
        """Accuracies by mask, as a list [2^N]."""
        return self._listed

    @cached_property
    def _listed(self) -> list[float]:
        accuracies: list[float] = self.accuracy.tolist()
        return accuracies

    def interval(self, mask: int) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy of one subset; [0, 0] of the empty one, which never answers."""
        low, high = self._intervals[mask].tolist()
        return low, high

    @cached_property
    def _intervals(self) -> FloatArray:
        """Lower and upper ends by mask [2^N, 2]: an aggregator states one with each answer."""
        ends = np.stack(wilson(self.correct, self.samples), axis=1)
        ends[0] = 0
        return ends

    def by_failures(self) -> tuple[FailureRow, ...]:
        """Accuracy against failed devices: over all subsets with 0 … N − 1 devices failed."""
        accuracy, count = self.accuracy, membership(self.num_devices).sum(axis=1)
        rows = []
        for failed in range(self.num_devices):
            masks = np.flatnonzero(count == self.num_devices - failed)
            values = accuracy[masks]
            worst = int(masks[values.argmin()])
            rows.append(
                FailureRow(
                    failed=failed,
                    subsets=len(masks),
                    mean=float(values.mean()),
                    worst=float(values.min()),
                    best=float(values.max()),
                    worst_subset=members(worst) if failed else (),
                )
            )
        return tuple(rows)

    def expected(self, p_fail: FloatArray) -> float:
        """Expected accuracy when device i fails independently with probability ``p_fail[i]`` [N]."""
        self._check(p_fail)
        return float(probabilities(p_fail) @ self.accuracy)

    def importance(self, p_fail: FloatArray) -> FloatArray:
        """Birnbaum importance of each device: expected accuracy with it up, less with it down.

        Args:
            p_fail: probability that device i does not answer [N].

        Returns:
            Accuracy lost if each device fails [N].

        Source: Birnbaum 1969, "On the importance of different components in a multicomponent system".
        """
        self._check(p_fail)
        gain = []
        for device in range(self.num_devices):
            ends = []
            for p in (0.0, 1.0):
                law = np.array(p_fail, dtype=float)
                law[device] = p
                ends.append(self.expected(law))
            gain.append(ends[0] - ends[1])
        return np.array(gain)
