"""Similarity of the features of surviving devices to those of all devices: linear CKA, and whether it predicts bias.

Blakeney et al. 2021 (arXiv 2106.07849) find that the more similar a pruned network is to the original, the less bias
pruning adds. Here devices fail instead: centred kernel alignment (CKA) of the features that arrive with those of all
devices stands next to CEV and SDE of ``nonn.reliability.bias``, and a rank correlation says whether similarity predicts
bias. Any two quantities that grow with the number of failures are correlated, so it is computed among subsets with as
many failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError

__all__ = ["FeatureSimilarity", "rank_correlation"]


class FeatureSimilarity:
    """Linear CKA between the features of all devices and those of a subset.

    ``CKA(φ, φ_S) = ‖Σ_φS‖_F² / (‖Σ_φφ‖_F ‖Σ_SS‖_F)`` with Σ the covariance of features, which has them for all subsets.

    Args:
        features: features of each device, N arrays [n, d_i].

    Source: Kornblith et al. 2019, arXiv 1905.00414.
    """

    def __init__(self, features: Sequence[NDArray[Any]]) -> None:
        phi = np.concatenate(list(features), axis=1, dtype=np.float64)
        phi -= phi.mean(axis=0)
        squares = np.square(phi.T @ phi)
        edges = np.cumsum([0, *(f.shape[1] for f in features)])
        # Squared norms of the blocks of the covariance [N, N], from which every subset's norms are sums.
        blocks = np.add.reduceat(np.add.reduceat(squares, edges[:-1], axis=0), edges[:-1], axis=1)
        self._blocks: NDArray[np.float64] = blocks

    def cka(self, members: Sequence[int]) -> float:
        """CKA of a subset of devices, in [0, 1]; 1 for all devices, 0 where no feature varies."""
        rows = list(members)
        cross = self._blocks[:, rows].sum()
        norms = np.sqrt(self._blocks.sum() * self._blocks[np.ix_(rows, rows)].sum())
        return float(cross / norms) if norms > 0 else 0.0


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, in [−1, 1]; equal values share their mean rank.

    Returns:
        None for less than three pairs, or where all values of one side are equal.

    Raises:
        ShapeError: lengths differ.
    """
    if len(first) != len(second):
        raise ShapeError(f"{len(first)} values and {len(second)} values have no rank correlation")
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    if len(first) < 3 or any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.clip(np.corrcoef(ranks[0], ranks[1])[0, 1], -1.0, 1.0))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: NDArray[np.float64] = (last - (counts - 1) / 2.0)[inverse]
    return mean
