"""A ridge for each subset whose devices are weighted by their own, predicted uncertainty about the sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError
from nonn.fusion.head import FloatArray, Head
from nonn.fusion.ridge import RidgePerSet
from nonn.reliability.subsets import members

__all__ = ["PrecisionHead"]

_MOST = 10.0  # bound of |log σ²| around its mean


class PrecisionHead(Head):
    """The ridge of each subset, with what each device adds to the mean answer weighted by the precision of the device.

    ``z_S = z̄ + Σ_{i∈S} g_i (f_i − f̄_i) W_S,i`` with the weights W_S of the ridge and
    ``g_i = |S| σ_i^−2α / Σ_{j∈S} σ_j^−2α``. The logarithm of the variance is linear in the features,
    ``log σ_i² = c_i + (f_i − f̄_i) v_i``, so a device sends nothing more. Equal variances, a single device or α = 0 give
    the ridge.

    Args:
        ridge: the ridge head.
        directions: v of each device, one after another [D].
        offsets: c_i of each device [N].
        strength: α.

    Raises:
        ShapeError: the arrays do not fit the ridge, or a value is not finite.

    Source: the predicted variance is that of UMTS (Jin et al. 2020, arXiv 2001.05197), the weights are those of
    independent measurements; their combination with the ridge is ours.
    """

    kind = "precision"

    def __init__(self, ridge: RidgePerSet, directions: NDArray[Any], offsets: NDArray[Any], strength: float) -> None:
        super().__init__(ridge.widths, ridge.num_classes)
        self.ridge, self.strength = ridge, float(strength)
        self.directions, self.biases = directions.astype(np.float64), offsets.astype(np.float64)
        for name, array, size in (
            ("directions", self.directions, len(ridge.mean)),
            ("offsets", self.biases, self.num_devices),
            ("strength", np.array([self.strength]), 1),
        ):
            if array.shape != (size,) or not np.isfinite(array).all():
                raise ShapeError(f"precision head: {name} {list(array.shape)}, expected finite [{size}]")

    def log_variance(self, device: int, features: NDArray[Any]) -> FloatArray:
        """Log σ² of a device's answer to each sample [B], from its features [B, d_i]."""
        rows = self.rows(1 << device)
        moved = (features.astype(np.float64) - self.ridge.mean[rows]) @ self.directions[rows]
        result: FloatArray = self.biases[device] + np.clip(moved, -_MOST, _MOST)
        return result

    def with_strength(self, strength: float) -> PrecisionHead:
        """The same head with another α."""
        return PrecisionHead(self.ridge, self.directions, self.biases, strength)

    def is_solved(self, mask: int) -> bool:
        """Whether the ridge of a subset is cached."""
        return self.ridge.is_solved(mask)

    def solve(self, mask: int) -> None:
        """Caches the ridge of a subset."""
        self.ridge.solve(mask)

    def solved(self) -> list[int]:
        """The subsets whose ridge is cached."""
        return self.ridge.solved()

    def solved_bytes(self, mask: int) -> int:
        """Size of the ridge of a subset, bytes."""
        return self.ridge.solved_bytes(mask)

    @property
    def cache_bytes(self) -> int:
        """Limit of the cached ridges, bytes."""
        return self.ridge.cache_bytes

    def _fuse(self, mask: int, arrived: Sequence[NDArray[Any]], keep: bool) -> FloatArray:
        weight, bias = self.ridge.weights(mask, keep=keep)
        devices, mean = members(mask), self.ridge.mean[self.rows(mask)]
        logs = np.stack([self.log_variance(i, f) for i, f in zip(devices, arrived, strict=True)], axis=1)
        gains = np.exp(-self.strength * (logs - logs.min(axis=1, keepdims=True)))
        gains *= len(devices) / gains.sum(axis=1, keepdims=True)
        moved = np.concatenate(arrived, axis=1, dtype=np.float64) - mean
        moved *= np.repeat(gains, [self.widths[i] for i in devices], axis=1)
        result: FloatArray = moved @ weight + (bias + mean @ weight)
        return result

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return self.ridge._arrays() | {
            "directions": self.directions,
            "offsets": self.biases,
            "strength": np.array(self.strength),
        }

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> PrecisionHead:
        ridge = RidgePerSet._from_arrays(arrays)
        return cls(ridge, arrays["directions"], arrays["offsets"], float(arrays["strength"]))
