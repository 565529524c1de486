"""Imputation: absent features are their conditional mean, given those that arrived; then the trained fusion answers.

``E[f_M | f_S] = μ_M + Σ_MS (Σ_SS + λ s I)⁻¹ (f_S − μ_S)``, linear, with the moments of the Gram matrix and the λ of the
ridge head. The trained fusion of all devices is linear, too: ``z = b + W f``, so that both together are one linear map.

References: Little, Rubin 2002, "Statistical analysis with missing data" (conditional mean imputation).
"""

from __future__ import annotations

import numpy as np

from nonn.experiment.rival import Rival
from nonn.experiment.training import Trained
from nonn.experiment.workspace import Workspace
from nonn.fusion import LinearHead, RidgePerSet
from nonn.fusion.head import Features, FloatArray
from nonn.reliability.subsets import mask_of

__all__ = ["build"]


def build(space: Workspace, trained: Trained) -> Rival:
    """Sums the moments of the features over augmented passes over the training split.

    Args:
        space: workspace of the row.
        trained: what the row has trained.

    Returns:
        The students as they are trained, and the trained fusion of completed features.
    """
    students = trained.students.network
    ridge = space.heads.fit_all(trained.teacher.network, students, ("ridge",))["ridge"]
    fusion = students.fusion.head()
    assert isinstance(ridge, RidgePerSet)
    assert isinstance(fusion, LinearHead)
    # λ s I is on the whole diagonal: features that arrived stay as they are.
    covariance, _, mean, _ = ridge.normal_equations()
    weight, bias = fusion.weights((1 << fusion.num_devices) - 1)

    def answer(arrived: Features) -> FloatArray:
        rows = ridge.rows(mask_of(arrived))
        given = np.concatenate([arrived[i] for i in sorted(arrived)], axis=1) - mean[rows]
        through = np.linalg.solve(covariance[np.ix_(rows, rows)], covariance[rows] @ weight)  # [D_S, K]
        logits: FloatArray = given @ through + mean @ weight + bias
        return logits

    return Rival(students, answer)
