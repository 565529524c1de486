"""What a finite test set and a sample of subsets say about accuracies, for more devices than can be enumerated.

``SampledEvidence`` is the counterpart of ``nonn.reliability.evidence.Evidence`` for a ``SampledTable``. An interval
covers both errors: that of the test set, which all subsets share, and that of the choice of the subsets. The two are
independent, so half-widths are added as squares (``nonn.reliability.intervals.widened``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ConfigError
from nonn.reliability.evidence import Evidence, Interval, TableEvidence
from nonn.reliability.intervals import half_width, widened, wilson
from nonn.reliability.sampled import SampledTable
from nonn.reliability.subsets import ROUNDING
from nonn.reliability.table import FailureRow

if TYPE_CHECKING:
    from nonn.reliability.laws.base import Law

__all__ = ["AnyEvidence", "Expected", "SampledEvidence"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Expected:
    """Expected accuracy under a failure law.

    Attributes:
        value: the expected accuracy, from the counted subsets and draws of the others.
        interval: its 95 % interval, for the test set and for the draws.
        bound: lowest and highest value for these test samples, whatever the accuracy of the subsets that were not
            counted.
    """

    value: float
    interval: Interval
    bound: Interval


class SampledEvidence(TableEvidence[SampledTable]):
    """Accuracies of a sample of subsets, and what the test set says about them."""

    def level_weights(self) -> FloatArray:
        """Weights of the mean over subsets with 0 … N − 1 failed devices: all, or those of the chains [N, m]."""
        return self.table.level_weights()

    def by_failures(self) -> tuple[FailureRow, ...]:
        """Accuracy against failed devices, with intervals, and worst and best found measured apart."""
        table, rows = self.table, []
        ends = zip(table.by_failures(), self.mean(table.level_weights()), table.sampling().tolist(), strict=True)
        for row, interval, more in ends:
            places = np.flatnonzero(table.failures == row.failed)
            rows.append(replace(self.extremes(row, places), interval=widened(row.mean, interval, more)))
        return tuple(rows)

    def is_drawn(self, law: Law) -> bool:
        """Whether figures under a law can be estimated: the table has draws of it, or needs none."""
        _, unseen, draws = self.table.law_weights(law)
        return unseen <= ROUNDING or len(draws) > 1

    def weights(self, law: Law) -> FloatArray:
        """Weights of the mean under a failure law: probabilities of the counted subsets, and its draws [m].

        Raises:
            ConfigError: the table has no draws of this law, and needs them.
        """
        known, unseen, draws = self.table.law_weights(law)
        if not self.is_drawn(law):
            found = "; ".join(f"'{text}'" for text in self.table.draws)
            raise ConfigError(
                f"failure law '{law.text}': the bundle has no draws of it, only of {found or 'no law'}; the "
                f"probability of subsets that were not counted is {unseen:.3g}. "
                "Evaluate draws with nonn-sim enumerate --samples 64"
            )
        if len(draws):
            np.add.at(known, draws, unseen / len(draws))
        return known

    def sampling(self, law: Law, values: FloatArray) -> float:
        """Half-width of the 95 % interval of a mean under a law, for the choice of its draws.

        Args:
            law: the failure law.
            values: of each subset [m].
        """
        _, unseen, draws = self.table.law_weights(law)
        return unseen * half_width(values[draws]) if len(draws) > 1 else 0.0

    def margin(self, law: Law, values: FloatArray) -> float:
        """How far a mean under a law may be too high because of the choice of its draws, at 95 %.

        Args:
            law: the failure law.
            values: of each subset, in [0, 1] [m].
        """
        _, unseen, draws = self.table.law_weights(law)
        if not len(draws):
            return 0.0
        share = float(values[draws].mean())
        return unseen * max(half_width(values[draws]), share - float(wilson(share * len(draws), len(draws))[0]))

    def widen_shares(self, law: Law, levels: FloatArray, shares: FloatArray, ends: FloatArray) -> None:
        """Widens intervals of the probability that accuracy reaches levels by the error of the draws.

        Args:
            law: the failure law.
            levels: levels of accuracy [L].
            shares: probability of each level [L].
            ends: intervals for the test set [L, 2]; changed in place.
        """
        _, unseen, draws = self.table.law_weights(law)
        if not len(draws):
            return
        reached = (self.table.accuracy[draws][:, None] >= levels).sum(axis=0)
        low, high = wilson(reached, len(draws))
        down, up = unseen * (reached / len(draws) - low), unseen * (high - reached / len(draws))
        ends[:, 0] = (shares - np.hypot(shares - ends[:, 0], down)).clip(0, 1)
        ends[:, 1] = (shares + np.hypot(ends[:, 1] - shares, up)).clip(0, 1)

    def bound(self, law: Law, values: FloatArray, of_none: float = 0.0) -> Interval:
        """Lowest and highest mean under a law, whatever the values of the subsets that were not counted.

        Args:
            law: the failure law.
            values: of each subset, in [0, 1] [m].
            of_none: value of the empty subset, which is known without counting.
        """
        known, unseen, _ = self.table.law_weights(law)
        none = min(unseen, float(law.probability_of(np.zeros((1, self.table.num_devices), dtype=bool))[0]))
        least = min(1.0, float(known @ values) + none * of_none)
        return least, min(1.0, least + unseen - none)

    def expected(self, law: Law) -> Expected:
        """Expected accuracy under a failure law.

        Raises:
            ConfigError: the table has no draws of this law.
        """
        accuracy, weights = self.table.accuracy, self.weights(law)
        low, high = self.bound(law, accuracy)
        value = min(high, max(low, float(weights @ accuracy)))  # few draws can miss the bound
        interval = widened(value, self.mean(weights[None])[0], self.sampling(law, accuracy))
        return Expected(value, interval, (low, high))

    def importance(self, p_fail: FloatArray) -> tuple[FloatArray, list[Interval]]:
        """Accuracy lost if each device fails, given that few others have [N], and its intervals."""
        return self.table.importance(p_fail), self.difference(*self.table.value_weights(p_fail))

    def shapley(self) -> tuple[FloatArray, list[Interval]]:
        """Estimated Shapley value of each device [N], and its intervals."""
        table = self.table
        n, chains = table.num_devices, table.chains
        device, lost = table.shapley_steps()
        plus, minus = np.zeros((2, n, len(table.correct)))
        for chain, order in zip(chains, device, strict=True):
            np.add.at(plus, (order, chain), 1 / len(chains))
            np.add.at(minus, (order[:-1], chain[1:]), 1 / len(chains))
        by_device = np.take_along_axis(lost, device.argsort(axis=1), axis=1)  # [C, N]
        values, ends = by_device.mean(axis=0), self.difference(plus, minus)
        intervals = [
            widened(float(value), interval, half_width(by_device[:, i]), -1.0)
            for i, (value, interval) in enumerate(zip(values, ends, strict=True))
        ]
        return values, intervals


AnyEvidence: TypeAlias = Evidence | SampledEvidence
