"""Accuracy of some subsets of more devices than can be enumerated.

A ``SampledTable`` has four kinds of subsets:

- **counted**: every subset with few failed devices (``nonn.reliability.counted``), and every device alone;
- **chains**: all devices fail one by one in a random order, so that each chain has one subset of every size. The
  subsets of one size are a uniform sample of it, and the steps of a chain give Shapley values;
- **draws** of failure laws among the subsets that were not counted;
- the worst subset of each size that a search from these found (``nonn.enumeration.worst``).

Under a failure law the counted subsets have their exact probability. They are a lower bound of the expected accuracy,
and with the probability of all others an upper one, whatever the accuracy of these. Draws estimate it in between.

Limits: the worst subset of a size that was sampled is the worst found; nothing shows that there is no worse one. Each
law needs separate draws; without them only the bounds are known. NumPy only.

Reference: Castro, Gómez, Tejada 2009, "Polynomial calculation of the Shapley value based on sampling".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError
from nonn.reliability.intervals import half_width, wilson
from nonn.reliability.subsets import members
from nonn.reliability.table import AccuracyTable, FailureRow, Stated

if TYPE_CHECKING:
    from nonn.reliability.laws.base import Law

__all__ = ["SampledTable"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SampledTable(AccuracyTable):
    """Number of samples that some subsets classify correctly.

    Attributes:
        up: the devices of each subset; no subset occurs twice [m, N].
        correct: correct samples of each subset [m].
        samples: number of samples evaluated.
        counted: every subset with at most this many failures is in the table.
        chains: places of the subsets of each chain, with 0 … N − 1 failed devices [C, N].
        draws: places of the draws of each failure law, by its text.

    Raises:
        ShapeError: the arrays do not fit each other.
    """

    up: BoolArray
    correct: IntArray
    samples: int
    counted: int
    chains: IntArray
    draws: Mapping[str, IntArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        m, n = self.up.shape
        if self.correct.shape != (m,) or self.chains.ndim != 2 or self.chains.shape[1] != n or len(self.chains) < 2:
            raise ShapeError(
                f"a sampled table of {m} subsets of {n} devices: counts {list(self.correct.shape)}, chains "
                f"{list(self.chains.shape)}; expected [{m}] and [C, {n}] with C ≥ 2"
            )
        places = np.concatenate([self.chains.ravel(), *self.draws.values()])
        if self.samples < 1 or self.correct.min() < 0 or self.correct.max() > self.samples:
            raise ShapeError(f"a sampled table of {self.samples} samples has counts outside 0 … {self.samples}")
        if places.min() < 0 or places.max() >= m or (self.failures[self.chains] != np.arange(n)).any():
            raise ShapeError(f"a sampled table of {m} subsets: chains or draws refer to other subsets")
        if len(self._place) < m or self.full not in self._place:
            raise ShapeError("a sampled table has a subset twice, or not that of all devices")

    @property
    def num_devices(self) -> int:
        """N."""
        return int(self.up.shape[1])

    @cached_property
    def empty(self) -> slice:
        """Place of the empty subset, which a law may have drawn."""
        place = self._place.get(0)
        return slice(0, 0) if place is None else slice(place, place + 1)

    @cached_property
    def failures(self) -> IntArray:
        """Failed devices of each subset [m]."""
        gone: IntArray = (~self.up).sum(axis=1)
        return gone

    @cached_property
    def _place(self) -> dict[int, int]:
        packed = np.packbits(self.up, axis=1, bitorder="little")
        return {int.from_bytes(row.tobytes(), "little"): place for place, row in enumerate(packed)}

    def place(self, mask: int) -> int | None:
        """Place of a subset in the table; None if it was not evaluated."""
        return self._place.get(mask)

    def mask(self, place: int) -> int:
        """The subset at a place of the table."""
        return self._masks[place]

    def with_counts(self, correct: IntArray, samples: int) -> SampledTable:
        """The same subsets with the counts of other samples."""
        return SampledTable(self.up, correct, samples, self.counted, self.chains, self.draws)

    def is_complete(self, failed: int) -> bool:
        """Whether every subset with this many failed devices is in the table."""
        return self._sizes[failed] == math.comb(self.num_devices, failed)

    @cached_property
    def _sizes(self) -> list[int]:
        sizes: list[int] = np.bincount(self.failures, minlength=self.num_devices + 1).tolist()
        return sizes

    def level_weights(self) -> FloatArray:
        """Weights of the mean over subsets with 0 … N − 1 failed devices: all, or those of the chains [N, m]."""
        n = self.num_devices
        weights = np.zeros((n, len(self.correct)))
        for failed in range(n):
            if self.is_complete(failed):
                weights[failed, self.failures == failed] = 1 / self._sizes[failed]
            else:
                np.add.at(weights[failed], self.chains[:, failed], 1 / len(self.chains))
        return weights

    def sampling(self) -> FloatArray:
        """Half-widths of the 95 % intervals of these means for the choice of the subsets; 0 where all are in [N]."""
        accuracy = self.accuracy
        return np.array(
            [
                0.0 if self.is_complete(failed) else half_width(accuracy[self.chains[:, failed]])
                for failed in range(self.num_devices)
            ]
        )

    def by_failures(self) -> tuple[FailureRow, ...]:
        """Accuracy against failed devices: exact where all subsets are in the table, else of a sample."""
        accuracy, means = self.accuracy, self.level_weights() @ self.accuracy
        rows = []
        for failed, mean in enumerate(means.tolist()):
            places = np.flatnonzero(self.failures == failed)
            values = accuracy[places]
            worst = places[values == values.min()]
            mask = min(self._masks[place] for place in worst)
            rows.append(
                FailureRow(
                    failed=failed,
                    subsets=math.comb(self.num_devices, failed),
                    mean=min(1.0, mean),
                    worst=float(values.min()),
                    best=float(values.max()),
                    worst_subset=members(mask) if failed else (),
                    sampled=None if self.is_complete(failed) else len(places),
                )
            )
        return tuple(rows)

    @cached_property
    def _masks(self) -> list[int]:
        return list(self._place)

    def stated(self, mask: int) -> Stated:
        """The accuracy of a subset of the table; for any other, an estimate from the sampled ones of its size."""
        place = self._place.get(mask)
        if place is None or not mask:
            return self._strata[self.num_devices - mask.bit_count()]
        accuracy = int(self.correct[place]) / self.samples
        low, high = wilson(self.correct[place], self.samples)
        return Stated(accuracy, (float(low), float(high)))

    @cached_property
    def _strata(self) -> list[Stated]:
        """What is stated of a subset that was not evaluated, by number of failures [N + 1]; 0 without a device."""
        accuracy, found = self.accuracy, []
        for failed in range(self.num_devices):
            values = accuracy[self.chains[:, failed]]
            mean = float(values.mean())
            # A prediction interval: for another subset of this size, instead of the mean over all of them.
            spread = half_width(values) * math.sqrt(len(values) + 1)
            low, high = wilson(mean * self.samples, self.samples)
            ends = mean - math.hypot(mean - float(low), spread), mean + math.hypot(float(high) - mean, spread)
            found.append(Stated(mean, (max(0.0, ends[0]), min(1.0, ends[1])), estimated=True))
        return [*found, Stated(0.0, (0.0, 0.0))]

    def lookup(self) -> SampledTable:
        """This table, which has an accuracy for any mask."""
        return self

    def __getitem__(self, mask: int) -> float:
        """The accuracy that is stated for a subset."""
        return self.stated(int(mask)).accuracy

    def law_weights(self, law: Law) -> tuple[FloatArray, float, IntArray]:
        """What a failure law makes of the table.

        Args:
            law: of the same devices.

        Returns:
            The probability of each counted subset, 0 for the others [m]; the probability of all subsets that were not
            counted; places of the law's draws among these, none if there are no draws of this law.

        Raises:
            ShapeError: the law is for another number of devices.
        """
        if law.num_devices != self.num_devices:
            raise ShapeError(f"a failure law of {law.num_devices} devices for a table of {self.num_devices}")
        if law.text not in self._laws:
            weights, counted = np.zeros(len(self.correct)), self.failures <= self.counted
            weights[counted] = law.probability_of(self.up[counted])
            self._laws[law.text] = weights
        weights = self._laws[law.text]
        unseen = min(1.0, max(0.0, 1 - float(weights.sum())))
        return weights.copy(), unseen, self.draws.get(law.text, np.zeros(0, np.int64))

    @cached_property
    def _laws(self) -> dict[str, FloatArray]:
        """Probabilities of the counted subsets, by the text of the law."""
        return {}

    def value_weights(self, p_fail: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Weights of expected accuracy with each device up, and down, given that few others have failed [N, m].

        Few: one less than were counted, so that every subset is in the table.
        """
        self._check(p_fail)
        n = self.num_devices
        plus, minus = np.zeros((2, n, len(self.correct)))
        for i in range(n):
            places = np.flatnonzero((self.failures < self.counted) & self.up[:, i])
            others = np.array(p_fail, dtype=float)
            others[i] = 0.0  # it is up in these subsets, and down in their partners
            chance = np.where(self.up[places], 1 - others, others).prod(axis=1)
            chance = chance / chance.sum() if chance.sum() > 0 else np.full(len(places), 1 / len(places))
            plus[i, places] = chance
            minus[i, [self._place[self._masks[place] & ~(1 << i)] for place in places]] = chance
        return plus, minus

    def importance(self, p_fail: FloatArray) -> FloatArray:
        """Accuracy lost if each device fails, given that at most ``counted`` − 1 others have [N].

        The others fail independently. Without that condition it would need subsets that are not in the table.
        """
        plus, minus = self.value_weights(p_fail)
        result: FloatArray = (plus - minus) @ self.accuracy
        return result

    def shapley_steps(self) -> tuple[IntArray, FloatArray]:
        """For each chain, the device that fails at each step, and the accuracy lost by it [C, N]."""
        accuracy = np.append(self.accuracy[self.chains], np.zeros((len(self.chains), 1)), axis=1)
        following = np.append(self.up[self.chains[:, 1:]], np.zeros((len(self.chains), 1, self.num_devices), bool), 1)
        device: IntArray = (self.up[self.chains] & ~following).argmax(axis=2)
        return device, accuracy[:, :-1] - accuracy[:, 1:]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of accuracy.npz; the inverse of ``from_arrays``."""
        texts = list(self.draws)
        return {
            "correct": self.correct,
            "samples": np.array(self.samples),
            "up": np.packbits(self.up, axis=1, bitorder="little"),
            "counted": np.array(self.counted),
            "chains": self.chains.astype(np.int32),
            "laws": np.array(texts, dtype=np.str_),
            **{f"draws_{number}": self.draws[text].astype(np.int32) for number, text in enumerate(texts)},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], num_devices: int) -> SampledTable:
        """Restores a table.

        Raises:
            ShapeError, KeyError: the arrays are not of a table of so many devices.
        """
        packed, texts = arrays["up"], arrays["laws"].tolist()
        if packed.ndim != 2 or packed.shape[1] != -(-num_devices // 8):
            raise ShapeError(f"subsets {list(packed.shape)} for {num_devices} devices")
        return cls(
            up=np.unpackbits(packed, axis=1, count=num_devices, bitorder="little").astype(bool),
            correct=arrays["correct"],
            samples=int(arrays["samples"]),
            counted=int(arrays["counted"]),
            chains=arrays["chains"].astype(np.int64),
            draws={text: arrays[f"draws_{number}"].astype(np.int64) for number, text in enumerate(texts)},
        )
