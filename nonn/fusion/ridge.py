"""A ridge regression to the teacher's logits for each subset of devices, from one Gram matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError
from nonn.fusion.head import FloatArray
from nonn.fusion.linear import LinearHead

__all__ = ["RidgePerSet", "gram"]

_CONDITION = 1e10  # bound of the condition number; beyond it solutions depend on the way of solving


def gram(features: NDArray[Any], targets: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Sums from which a ridge head is solved; the sums of several batches add up.

    Args:
        features: concatenated features of all devices φ [B, D].
        targets: the teacher's logits y [B, K].

    Returns:
        G = Σ [φ 1]ᵀ[φ 1] of shape [D + 1, D + 1] and C = Σ [φ 1]ᵀ y of shape [D + 1, K].
    """
    phi = np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float64)
    return phi.T @ phi, phi.T @ np.asarray(targets, dtype=np.float64)


class RidgePerSet(LinearHead):
    """A ridge regression to the teacher's logits for each subset of devices, from one Gram matrix.

    ``W_S = (Σ_SS + λ s I)⁻¹ Σ_Sy`` with Σ the covariance in the Gram matrix and s its mean variance, so that λ has no
    unit; the intercept is not shrunk.

    A subset is solved from the side that is smaller, its own features or those of the absent devices A: with P the
    inverse of the system of all devices and W its solution, ``W_S = W[S] − P_SA P_AA⁻¹ W[A]``. So no subset takes
    longer than one of N/2 devices; P is computed once and has D² floats.

    Args:
        gram_matrix: G [D + 1, D + 1], the last row and column belong to the constant 1.
        cross: C [D + 1, K].
        ridge: λ.
        widths: d_i of each device [N].

    Attributes:
        mean: mean of each feature over the summed samples [D].

    Raises:
        ShapeError: the arrays do not fit each other.
    """

    kind = "ridge"

    def __init__(self, gram_matrix: NDArray[Any], cross: NDArray[Any], ridge: float, widths: Sequence[int]) -> None:
        super().__init__(widths, cross.shape[1])
        side = int(self.offsets[-1]) + 1
        if gram_matrix.shape != (side, side) or len(cross) != side:
            raise ShapeError(
                f"Gram matrix {list(gram_matrix.shape)} and cross {list(cross.shape)} for widths {self.widths}: "
                f"both need {side} rows"
            )
        self.gram_matrix, self.cross = gram_matrix.astype(np.float64), cross.astype(np.float64)
        self.ridge = float(ridge)
        count = self.gram_matrix[-1, -1]
        self.mean = self.gram_matrix[-1, :-1] / count
        self._target_mean = self.cross[-1] / count
        self._covariance = self.gram_matrix[:-1, :-1] / count - np.outer(self.mean, self.mean)
        self._target_covariance = self.cross[:-1] / count - np.outer(self.mean, self._target_mean)
        # A floor keeps a subset with constant features solvable: its logits are then the mean of the teacher's.
        self._shrink = self.ridge * max(float(np.trace(self._covariance)) / max(side - 1, 1), 1e-12)

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        rows, absent = self.rows(mask), self.rows((1 << self.num_devices) - 1 & ~mask)
        if len(absent) < len(rows) and self.is_well_conditioned:
            inverse, solution = self._all_devices
            removed = np.linalg.solve(inverse[np.ix_(absent, absent)], solution[absent])
            weight = solution[rows] - inverse[np.ix_(rows, absent)] @ removed
        else:
            covariance = self._covariance[np.ix_(rows, rows)] + self._shrink * np.eye(len(rows))
            weight = np.linalg.solve(covariance, self._target_covariance[rows])
        return weight, self._target_mean - self.mean[rows] @ weight

    @cached_property
    def condition(self) -> float:
        """Bound of the condition number of every subset's system; infinite where there is none."""
        if not self._shrink or not np.isfinite(self._covariance).all():
            return math.inf
        return 1 + float(np.trace(self._covariance)) / self._shrink

    @property
    def is_well_conditioned(self) -> bool:
        """Whether two ways of solving a subset agree to about six digits."""
        return self.condition <= _CONDITION

    @cached_property
    def _all_devices(self) -> tuple[FloatArray, FloatArray]:
        """Inverse [D, D] and solution [D, K] of the system of all devices."""
        system = self._covariance + self._shrink * np.eye(len(self._covariance))
        solved = np.linalg.solve(system, np.concatenate([np.eye(len(system)), self._target_covariance], axis=1))
        inverse, solution = np.split(solved, [len(system)], axis=1)
        return np.ascontiguousarray(inverse), np.ascontiguousarray(solution)

    def normal_equations(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """The system from which each subset's head is solved.

        Returns:
            Σ + λ s I [D, D], Σ_y [D, K], the mean of the features [D] and of the teacher's logits [K].
        """
        shrunk = self._covariance + self._shrink * np.eye(len(self._covariance))
        return shrunk, self._target_covariance, self.mean, self._target_mean

    def with_ridge(self, ridge: float) -> RidgePerSet:
        """The same sums with another λ."""
        return RidgePerSet(self.gram_matrix, self.cross, ridge, self.widths)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        # The matrix is symmetric: its lower triangle, row by row, is half the file.
        lower = self.gram_matrix[np.tril_indices(len(self.gram_matrix))]
        return {"gram": lower, "cross": self.cross, "ridge": np.array(self.ridge)}

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> RidgePerSet:
        matrix, cross = arrays["gram"], arrays["cross"]
        if matrix.ndim == 1:  # older bundles store the full matrix
            lower, side = np.tril_indices(len(cross)), len(cross)
            if len(matrix) != len(lower[0]):
                raise ShapeError(
                    f"Gram matrix of {len(matrix)} values, cross {list(cross.shape)}: {side} rows need {len(lower[0])}"
                )
            matrix = np.zeros((side, side))
            matrix[lower] = matrix.T[lower] = arrays["gram"]
        return cls(matrix, cross, float(arrays["ridge"]), arrays["widths"].tolist())
