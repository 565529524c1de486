"""A multinomial logistic regression for each subset of devices, solved at fitting time and stored compactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError
from nonn.fusion.head import FloatArray
from nonn.fusion.linear import LinearHead
from nonn.fusion.ridge import RidgePerSet

__all__ = ["LogisticPerSet"]


class LogisticPerSet(LinearHead):
    """A multinomial logistic regression for each solved subset; the ridge for all others.

    The aggregator has only NumPy and no training features, so nothing is solved on demand: ``pack`` stores solutions
    as float16 with a scale for each set, 2 bytes a weight. Eight devices of 32 features and 100 classes take 6.6 MB
    for all 255 sets. A head computes with the stored precision, so it gives the same logits before storage and after.

    Args:
        ridge: head of the subsets that are not stored.
        masks: the stored subsets, ascending [m].
        weights: weights of the stored subsets in order, each [D_S · K], divided by its scale; float16 [Σ D_S · K].
        scales: [m], float32.
        centres: logits at the mean of the features, float32 [m, K]. A bias would contain the features' offset times
            rounded weights, and that product is often larger than the logits.

    Raises:
        ShapeError: the arrays do not fit each other.
    """

    kind = "logistic"

    def __init__(
        self,
        ridge: RidgePerSet,
        masks: NDArray[Any],
        weights: NDArray[Any],
        scales: NDArray[Any],
        centres: NDArray[Any],
    ) -> None:
        super().__init__(ridge.widths, ridge.num_classes)
        self.ridge, self.masks = ridge, masks.astype(np.int64)
        self._weights, self._scales, self._centres = weights, scales, centres
        sizes = [len(self.rows(mask)) * self.num_classes for mask in self.masks.tolist()]
        ends = np.cumsum([0, *sizes]).tolist()
        if weights.shape != (ends[-1],) or len(scales) != len(masks) or centres.shape != (len(masks), self.num_classes):
            raise ShapeError(
                f"{weights.size:,} weights, {len(scales)} scales and centres {list(centres.shape)} do not fit the "
                f"{len(masks)} stored sets, which need {ends[-1]:,} weights"
            )
        self._places = {mask: (number, ends[number]) for number, mask in enumerate(self.masks.tolist())}

    @classmethod
    def pack(cls, ridge: RidgePerSet, solved: Mapping[int, tuple[NDArray[Any], NDArray[Any]]]) -> LogisticPerSet:
        """Stores solutions compactly.

        Args:
            ridge: head of all other subsets.
            solved: mask → W_S [D_S, K], rows in device order, and b_S [K].
        """
        masks = sorted(solved)
        heads = [(solved[m][0], solved[m][1] + ridge.mean[ridge.rows(m)] @ solved[m][0]) for m in masks]
        scales = np.array([np.abs(weight).max(initial=0.0) or 1.0 for weight, _ in heads], dtype=np.float32)
        # Divided by the largest weight, weights from 1 to 6e-5 keep 11 bits; smaller ones have an error of 6e-8.
        flat = [(w / scale).astype(np.float16).ravel() for (w, _), scale in zip(heads, scales, strict=True)]
        centres = np.array([c for _, c in heads], dtype=np.float32).reshape(len(masks), ridge.num_classes)
        weights = np.concatenate(flat) if flat else np.empty(0, np.float16)
        return cls(ridge, np.array(masks, dtype=np.int64), weights, scales, centres)

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        if mask not in self._places:
            return self.ridge.weights(mask, keep=False)  # this head caches it
        number, start = self._places[mask]
        rows = self.rows(mask)
        flat = self._weights[start : start + len(rows) * self.num_classes].astype(np.float64)
        weight = flat.reshape(len(rows), self.num_classes) * float(self._scales[number])
        return weight, self._centres[number] - self.ridge.mean[rows] @ weight

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return self.ridge._arrays() | {
            "masks": self.masks,
            "weights": self._weights,
            "scales": self._scales,
            "centres": self._centres,
        }

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> LogisticPerSet:
        ridge = RidgePerSet._from_arrays(arrays)
        return cls(ridge, arrays["masks"], arrays["weights"], arrays["scales"], arrays["centres"])
