"""What a finite test set says about accuracies: a figure with its interval. NumPy only.

``Evidence`` is the table of all subsets together with the outcome of each sample, where the bundle has them:

- a weighted mean of accuracies (``mean``) or the difference of two (``difference``) uses one score for each sample,
  so that the subsets stay paired; see ``nonn.reliability.intervals``;
- any other function of all accuracies (``of``), such as the probability of reaching a level, is computed for resampled
  test sets;
- a choice (``apart``), such as the worst subset, is made on one half of the samples and measured on the other.

Without outcomes (bundles of older versions) a mean has Wilson's interval of as many samples, which is too wide for a
mean over several subsets, and differences have the interval of separate samples, which is wider still. Functions are
computed from the lower and the upper ends of all accuracies together; nothing is measured apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError
from nonn.reliability.confidence import CONFIDENCE
from nonn.reliability.importance import shapley_values
from nonn.reliability.intervals import difference_interval, mean_interval, share_interval, unpaired_difference, wilson
from nonn.reliability.outcomes import Outcomes
from nonn.reliability.subsets import membership, probabilities
from nonn.reliability.table import AccuracyTable, FailureRow, SubsetTable

if TYPE_CHECKING:
    from nonn.reliability.laws.base import Law

__all__ = ["Evidence", "Interval", "TableEvidence", "failure_weights", "shapley_weights", "value_weights"]

FloatArray = NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]
T = TypeVar("T")
TableT = TypeVar("TableT", bound=AccuracyTable)

_DRAWS = 1000
_FLOATS = 1 << 25  # resampled accuracies in memory: 134 MB
_SPLITS = 16  # ways to halve the samples


@dataclass(frozen=True)
class TableEvidence(Generic[TableT]):
    """Accuracies of the subsets of a table, and what the test set says about them.

    Attributes:
        table: correct samples of each subset.
        outcomes: which samples these are; None where they are not known.

    Raises:
        ShapeError: the outcomes are of other subsets or samples, or their counts differ from the table.
    """

    table: TableT
    outcomes: Outcomes | None = None

    def __post_init__(self) -> None:
        found, table = self.outcomes, self.table
        if found is None:
            return
        if (found.num_devices, found.samples, found.sets) != (table.num_devices, table.samples, len(table.correct)):
            raise ShapeError(
                f"outcomes of {found.num_devices} devices and {found.samples} samples for a table of "
                f"{table.num_devices} devices and {table.samples} samples"
            )
        if found.kept == found.samples and (found.correct() != table.correct).any():
            raise ShapeError("the outcomes of the samples do not add up to the counts of the table")

    def accuracy(self, place: int, confidence: float = CONFIDENCE) -> Interval:
        """Wilson's interval of the accuracy of the subset at a place of the table; the mask if it has all subsets."""
        low, high = wilson(self.table.correct[place], self.table.samples, confidence)
        return float(low), float(high)

    def mean(self, weights: FloatArray, confidence: float = CONFIDENCE) -> list[Interval]:
        """Intervals of weighted means of accuracies.

        Args:
            weights: not negative, each row sums to at most 1 [q, 2^N].
            confidence: of the two-sided intervals.
        """
        middle, n = weights @ self.table.accuracy, self.table.samples
        if self.outcomes is None:
            return _pairs(wilson((middle * n).clip(0, n), n, confidence))
        return _pairs(mean_interval(self.outcomes.scores(weights), n, confidence, middle))

    def difference(self, plus: FloatArray, minus: FloatArray, confidence: float = CONFIDENCE) -> list[Interval]:
        """Intervals of differences between two weighted means of accuracies on the same samples.

        Args:
            plus: weights of the first means, each row sums to at most 1 [q, 2^N].
            minus: weights of the means that are subtracted.
            confidence: of the two-sided intervals.
        """
        accuracy, n = self.table.accuracy, self.table.samples
        if self.outcomes is not None:
            weights = plus - minus
            return _pairs(difference_interval(self.outcomes.scores(weights), n, confidence, weights @ accuracy))
        ends = [
            (middle, wilson((middle * n).clip(0, n), n, confidence)) for middle in (plus @ accuracy, minus @ accuracy)
        ]
        return _pairs(unpaired_difference(*ends[0], *ends[1]))

    def less(self, other: TableEvidence[Any], weights: FloatArray) -> list[Interval]:
        """Intervals of weighted means of these accuracies less those of another evidence of the same samples.

        Args:
            other: of the same subsets.
            weights: as for ``mean`` [q, 2^N].
        """
        n, middle, less = self.table.samples, weights @ self.table.accuracy, weights @ other.table.accuracy
        if self.outcomes is not None and other.outcomes is not None:
            scores = self.outcomes.scores(weights) - other.outcomes.scores(weights)
            return _pairs(difference_interval(scores, n, mean=middle - less))
        ends = [(m, wilson((m * n).clip(0, n), n)) for m in (middle, less)]
        return _pairs(unpaired_difference(*ends[0], *ends[1]))

    def lost(self, masks: Sequence[int]) -> list[Interval]:
        """Intervals of the accuracy of all devices less that of some subsets of the table."""
        places = np.array([self.table.place(mask) for mask in (self.table.full, *masks)], dtype=np.int64)
        n, accuracy = self.table.samples, self.table.accuracy[places]
        if self.outcomes is not None:
            right = self.outcomes.columns(places).astype(np.float64)
            return _pairs(difference_interval(right[0] - right[1:], n, mean=accuracy[0] - accuracy[1:]))
        ends = [wilson((value * n).clip(0, n), n) for value in (accuracy[:1], accuracy[1:])]
        return _pairs(unpaired_difference(accuracy[:1], ends[0], accuracy[1:], ends[1]))

    def of(self, function: Callable[[FloatArray], FloatArray], confidence: float = CONFIDENCE) -> list[Interval]:
        """Intervals of functions that grow with each accuracy.

        Resampling adds errors to each subset of its own, so that some subset falls short more often than it should:
        figures that need all subsets come out too low. The upper end is therefore at least the figure with every
        accuracy at the upper end of its own interval.

        Args:
            function: from the accuracy of each subset [2^N] to q figures [q].
            confidence: of the two-sided intervals.
        """
        drawn = np.stack([function(row) for row in self.draws])
        low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        measured = function(self.table.accuracy)
        return _pairs((np.minimum(low, measured), np.maximum(high, function(self.upper(confidence)))))

    def upper(self, confidence: float = CONFIDENCE) -> FloatArray:
        """The upper ends of the intervals of all accuracies; 0 of the empty subset [2^N]."""
        ends = wilson(self.table.correct, self.table.samples, confidence)[1]
        ends[self.table.empty] = 0
        return ends

    def lower(self, function: Callable[[FloatArray], float], confidence: float) -> float:
        """A lower bound of a function of all accuracies that grows with each of them, at a one-sided confidence."""
        return float(np.quantile([function(row) for row in self.draws], 1 - confidence))

    @cached_property
    def draws(self) -> NDArray[np.floating]:
        """Accuracies of all subsets in resampled test sets [B, 2^N].

        Without outcomes, all subsets are taken to err on the same samples: draw b has the same quantile of each.
        """
        count = max(100, min(_DRAWS, _FLOATS // len(self.table.correct)))
        if self.outcomes is not None:
            drawn = self.outcomes.resampled(count)
            drawn[:, self.table.empty] = 0
            return drawn
        levels = (np.arange(count) + 0.5) / count
        rows = [wilson(self.table.correct, self.table.samples, abs(2 * u - 1))[int(u > 0.5)] for u in levels]
        result = np.array(rows)
        result[:, self.table.empty] = 0
        return result

    def apart(
        self, choose: Callable[[TableT], T], measure: Callable[[TableT, T], float], splits: int = _SPLITS
    ) -> float | None:
        """A choice that is made on one half of the samples and measured on the other; mean over splits, both ways.

        Args:
            choose: from a table to a choice.
            measure: from the other table and the choice to a figure.
            splits: number of random splits, at most 16.

        Returns:
            None where outcomes are not known, or of less than two samples.
        """
        if not self._splits:
            return None
        pairs = self._splits[:splits]
        return float(np.mean([measure(b, choose(a)) for halves in pairs for a, b in (halves, halves[::-1])]))

    def apart_interval(self, accuracy: float | None) -> Interval | None:
        """Interval of an accuracy that was measured apart, on half of the samples; None without one."""
        if accuracy is None or self.outcomes is None:
            return None
        return share_interval(min(1.0, accuracy), self.outcomes.kept // 2)

    @cached_property
    def _splits(self) -> list[tuple[TableT, TableT]]:
        """Tables of two random halves of the samples, for each split."""
        if self.outcomes is None or self.outcomes.kept < 2:
            return []
        sizes = self.outcomes.kept // 2, self.outcomes.kept - self.outcomes.kept // 2
        halves = map(self.outcomes.halves, range(_SPLITS))
        with_counts = self.table.with_counts
        return [(with_counts(a, sizes[0]), with_counts(b, sizes[1])) for a, b in halves]

    def extremes(self, row: FailureRow, places: NDArray[np.int64]) -> FailureRow:
        """A row with the intervals of its worst and best subset, and with both measured apart.

        Args:
            row: accuracy at one number of failures.
            places: its subsets in the table.
        """
        correct = self.table.correct[places]
        worst, best = (self._extreme(places, sign) if len(places) > 1 else None for sign in (-1, 1))
        return replace(
            row,
            worst_interval=self.accuracy(int(places[correct.argmin()])),
            best_interval=self.accuracy(int(places[correct.argmax()])),
            worst_apart=worst,
            best_apart=best,
            worst_apart_interval=self.apart_interval(worst),
            best_apart_interval=self.apart_interval(best),
        )

    def _extreme(self, places: NDArray[np.int64], sign: int) -> float | None:
        """Accuracy of the best of some subsets (sign 1) or the worst (−1), chosen and measured on separate samples."""
        return self.apart(
            lambda table: int(places[(sign * table.correct[places]).argmax()]),
            lambda table, place: float(table.correct[place] / table.samples),
        )


class Evidence(TableEvidence[SubsetTable]):
    """Accuracies of all subsets, and what the test set says about them."""

    def level_weights(self) -> FloatArray:
        """Weights of the mean over all subsets with 0 … N − 1 failed devices [N, 2^N]."""
        return failure_weights(self.table.num_devices)

    def weights(self, law: Law) -> FloatArray:
        """Probability of each subset under a failure law [2^N]."""
        return law.probabilities()

    def margin(self, law: Law, values: FloatArray) -> float:
        """0: the weights of a law are exact."""
        return 0.0

    def by_failures(self) -> tuple[FailureRow, ...]:
        """Accuracy against failed devices over all subsets, with intervals, and worst and best measured apart."""
        weights = self.level_weights()
        rows = zip(self.table.by_failures(), weights > 0, self.mean(weights), strict=True)
        return tuple(
            replace(self.extremes(row, np.flatnonzero(chosen)), interval=interval) for row, chosen, interval in rows
        )

    def importance(self, p_fail: FloatArray) -> tuple[FloatArray, list[Interval]]:
        """Birnbaum importance of each device when all fail independently [N], and its intervals."""
        return self.table.importance(p_fail), self.difference(*value_weights(probabilities(p_fail)))

    def shapley(self) -> tuple[FloatArray, list[Interval]]:
        """Shapley value of each device [N], and its intervals."""
        return shapley_values(self.table), self.difference(*shapley_weights(self.table.num_devices))


def failure_weights(num_devices: int) -> FloatArray:
    """Weights of the mean over all subsets with 0 … N − 1 failed devices [N, 2^N]."""
    survivors = membership(num_devices).sum(axis=1)
    chosen = survivors == num_devices - np.arange(num_devices)[:, None]
    result: FloatArray = chosen / chosen.sum(axis=1, keepdims=True)
    return result


def value_weights(probability: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weights of expected accuracy with each device forced up, and forced down [N, 2^N].

    Args:
        probability: of each subset under a failure law [2^N].
    """
    n = len(probability).bit_length() - 1
    masks, up, down = np.arange(1 << n), np.zeros((n, 1 << n)), np.zeros((n, 1 << n))
    for i in range(n):
        np.add.at(up[i], masks | 1 << i, probability)
        np.add.at(down[i], masks & ~(1 << i), probability)
    return up, down


def shapley_weights(num_devices: int) -> tuple[FloatArray, FloatArray]:
    """Weights of the Shapley values: subsets with the device, and the same subsets without it [N, 2^N]."""
    from math import comb

    size = membership(num_devices).sum(axis=1)
    masks = np.arange(1 << num_devices)
    weight = np.array([1 / (num_devices * comb(num_devices - 1, s)) for s in range(num_devices)])
    plus, minus = np.zeros((2, num_devices, 1 << num_devices))
    for i in range(num_devices):
        without = masks[masks >> i & 1 == 0]
        minus[i, without] = weight[size[without]]
        plus[i, without | 1 << i] = weight[size[without]]
    return plus, minus


def _pairs(ends: tuple[FloatArray, FloatArray] | FloatArray) -> list[Interval]:
    low, high = ends
    return list(zip(np.atleast_1d(low).tolist(), np.atleast_1d(high).tolist(), strict=True))
