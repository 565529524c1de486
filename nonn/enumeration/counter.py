"""Exact counts from margins in float32: samples in doubt are fused again by the head itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.fusion import Head, LinearHead
from nonn.reliability.subsets import members

__all__ = ["UNIT_ROUNDOFF", "Counter", "Settle"]

UNIT_ROUNDOFF = 2.0**-24  # of float32
_NOISE = 2.0**-40  # relative to the summands: far above the rounding of a float64 product, far below that of float32
_TIE = 1e-5  # ten times what the condition number of a ridge head allows at most

IntArray = NDArray[np.int64]
Settle = Callable[[int, IntArray], NDArray[np.bool_]]


class Counter:
    """Correct answers by subset.

    Args:
        head: the fusion.
        features: N arrays [n, d_i].
        labels: [n].
        sets: number of subsets that are counted.
        per_class: count by the true class too.
        progress: called with the completed share.
        keep: samples whose outcome is kept for each subset.

    Attributes:
        correct: the counts [sets] or [sets, K].
        rows: all samples [n].
        outcomes: whether each subset is right, for each sample to keep [m, sets].
    """

    def __init__(
        self,
        head: Head,
        features: Sequence[NDArray[Any]],
        labels: IntArray,
        sets: int,
        per_class: bool,
        progress: Callable[[float], None] | None,
        keep: IntArray | None = None,
    ) -> None:
        self.head, self.features, self.labels = head, features, np.asarray(labels)
        self.progress, self.rows = progress, np.arange(len(self.labels))
        kept = np.zeros(0, dtype=np.int64) if keep is None else keep
        self.outcomes = np.zeros((len(kept), sets), dtype=bool)
        self._place = np.full(len(self.labels), -1)  # of each sample in the outcomes
        self._place[kept] = np.arange(len(kept))
        self._fused: dict[int, NDArray[np.uint8]] = {}
        self.correct = np.zeros((sets, head.num_classes) if per_class else sets, dtype=np.int64)
        # [n, K]; float32 so that counting by class is a matrix product, exact below 2^24 samples a block.
        self._one_hot = (self.labels[:, None] == np.arange(head.num_classes)).astype(np.float32) if per_class else None

    @property
    def answerable(self) -> IntArray:
        """Samples whose label is a class of the head [≤ n]."""
        return np.flatnonzero((self.labels >= 0) & (self.labels < self.head.num_classes))

    def count(self, masks: IntArray, rows: IntArray, right: NDArray[np.bool_]) -> None:
        """Adds samples ``rows`` [b]; ``right`` [m, b] is true where the subset of ``masks`` [m] is correct."""
        if self._one_hot is None:
            self.correct[masks] += np.count_nonzero(right, axis=1)
        else:
            self.correct[masks] += (right.astype(np.float32) @ self._one_hot[rows]).astype(np.int64)
        if len(self.outcomes):
            places = self._place[rows]
            known = places >= 0
            self.outcomes[places[known][:, None], masks] = right[:, known].T

    def judge(
        self,
        masks: IntArray,
        rows: IntArray,
        margins: NDArray[np.float32],
        doubt: NDArray[np.float32],
        settle: Settle | None = None,
    ) -> None:
        """Counts answers from the margins of the best wrong class over the true one.

        Args:
            masks: subsets [m]; the empty one is ignored.
            rows: samples [b].
            margins: best wrong logit less the true logit [m, b].
            doubt: error bound of the margins, [m, 1] or [1, b].
            settle: (mask, samples) → which of them are right, for margins within the bound; None is ``fuse``.
        """
        right = margins < -doubt
        # This form of the comparison treats a NaN as in doubt.
        unsure = ~(right | (margins > doubt))
        unsure[masks == 0] = right[masks == 0] = False
        for place in np.flatnonzero(unsure.any(axis=1)).tolist():
            places = np.flatnonzero(unsure[place])
            right[place, places] = (settle or self.fuse)(int(masks[place]), rows[places])
        self.count(masks, rows, right)

    def decide(self, mask: int, rows: IntArray, logits: NDArray[np.float64], tie: float = _TIE) -> NDArray[np.bool_]:
        """Which samples a subset gets right [b], from logits that equal the head's up to rounding.

        Near a tie the head itself decides. So it does where logits exceed float32, the type of its answers.

        Args:
            mask: the subset.
            rows: samples [b], all with a label of the head.
            logits: [b, K]; overwritten.
            tie: margins below this share of the largest logit are decided by the head itself.
        """
        scale = np.abs(logits).max(axis=1)
        own = np.arange(len(rows)), self.labels[rows]
        true_logit = logits[own]
        logits[own] = -np.inf
        margin = logits.max(axis=1) - true_logit
        right: NDArray[np.bool_] = np.asarray(margin < 0)
        # This form of the comparison treats a NaN as a tie.
        tied = ~((np.abs(margin) > tie * scale) & (scale > 1e-30) & (scale < 1e38))
        if tied.any():
            right[tied] = self.fuse(mask, rows[tied])
        return right

    def fuse(self, mask: int, rows: IntArray) -> NDArray[np.bool_]:
        """Which samples the head itself classifies correctly with the devices in ``mask`` [b].

        A product of few rows may differ in its last bits from that of the whole batch. If that could change an answer,
        which is rare apart from exact ties, the whole batch is fused once.
        """
        assert isinstance(self.head, LinearHead)  # other heads are counted without margins
        weight, bias = self.head.weights(mask, keep=False)
        arrived = np.concatenate([self.features[i][rows] for i in members(mask)], axis=1, dtype=np.float64)
        logits = arrived @ weight + bias
        summands = np.abs(arrived) @ np.abs(weight)
        noise = _NOISE * (summands + np.abs(bias))
        low, high = (logits - noise).astype(np.float32), (logits + noise).astype(np.float32)
        labels = self.labels[rows][:, None]
        others = np.arange(logits.shape[1]) != labels
        before = np.arange(logits.shape[1]) < labels  # these win ties
        own_low, own_high = np.take_along_axis(low, labels, axis=1), np.take_along_axis(high, labels, axis=1)
        right: NDArray[np.bool_] = (np.where(before, own_low > high, own_low >= high) | ~others).all(axis=1)
        wrong = (np.where(before, low >= own_high, low > own_high) & others).any(axis=1)
        open_rows = ~(right | wrong)
        if open_rows.any():
            right[open_rows] = self._whole(mask)[rows[open_rows]]
        return right

    def _whole(self, mask: int) -> NDArray[np.bool_]:
        """Which of all samples the head classifies correctly [n]."""
        if mask not in self._fused:
            logits = self.head.logits({i: self.features[i] for i in members(mask)}, keep=False)
            # Packed bits, because data full of ties needs every subset: 82 MB for N = 16 and 10,000 samples.
            self._fused[mask] = np.packbits(logits.astype(np.float32).argmax(axis=1) == self.labels)
        return np.unpackbits(self._fused[mask], count=len(self.labels)).astype(bool)

    def report(self, share: float) -> None:
        """Reports the completed share, 0 to 1."""
        if self.progress is not None:
            self.progress(share)
