"""How differently the devices of one design answer: the more their errors coincide, the less devices add to one.

- Disagreement: share of samples that two devices answer differently, mean over all pairs of devices.
- Error correlation: Pearson correlation of the errors of two devices (1 for a wrong answer, 0 for a right one), mean
  over all pairs. 0 is that of independent errors, 1 that of copies.

References: Kuncheva, Whitaker 2003, "Measures of diversity in classifier ensembles".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError

__all__ = ["Diversity", "diversity"]


@dataclass(frozen=True)
class Diversity:
    """Mean over all pairs of devices; None where no pair can be compared.

    Attributes:
        disagreement: share of samples that a pair answers differently.
        error_correlation: correlation of a pair's errors; a device that is always right, or always wrong, has none.
    """

    disagreement: float | None
    error_correlation: float | None


def diversity(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> Diversity:
    """Disagreement and error correlation of the answers of single devices.

    Args:
        predicted: class that each device answers by itself [N, n].
        labels: [n].

    Raises:
        ShapeError: the arrays do not fit each other, or there is no sample.
    """
    if predicted.ndim != 2 or labels.shape != predicted.shape[1:] or not labels.size:
        raise ShapeError(
            f"predictions {list(predicted.shape)} and labels {list(labels.shape)}: expected [N, n] and [n]"
        )
    wrong = (predicted != labels).astype(np.float64)
    centred = wrong - wrong.mean(axis=1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=1))
    disagreements, correlations = [], []
    for i in range(len(predicted)):
        for j in range(i):
            disagreements.append(float((predicted[i] != predicted[j]).mean()))
            if scale := deviation[i] * deviation[j]:
                correlations.append(float((centred[i] * centred[j]).mean() / scale))
    return Diversity(
        float(np.mean(disagreements)) if disagreements else None,
        float(np.mean(correlations)) if correlations else None,
    )
