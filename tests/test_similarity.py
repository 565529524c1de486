"""Linear CKA of subsets of devices, and rank correlations."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from nonn.errors import ShapeError
from nonn.reliability.similarity import FeatureSimilarity, rank_correlation


def kernel_cka(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """By its definition: the alignment of the centred kernels of the samples."""
    centre = np.eye(len(first)) - 1 / len(first)
    k, m = (centre @ x @ x.T @ centre for x in (first, second))
    return float((k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m))


def test_the_similarity_of_every_subset_is_that_of_the_kernels() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(size=(30, 2))
    features = [common @ rng.normal(size=(2, width)) + rng.normal(size=(30, width)) for width in (3, 5, 2)]
    similarity = FeatureSimilarity(features)
    whole = np.concatenate(features, axis=1)
    for members in ([0], [1], [0, 2], [1, 2], [0, 1, 2]):
        some = np.concatenate([features[i] for i in members], axis=1)
        assert similarity.cka(members) == pytest.approx(kernel_cka(whole, some))
    assert similarity.cka([0, 1, 2]) == pytest.approx(1)
    assert FeatureSimilarity([np.ones((4, 2)), np.ones((4, 1))]).cka([0]) == 0


def test_rank_correlation_is_spearmans_with_shared_ranks() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, 40).astype(float), rng.normal(size=40)
    assert rank_correlation(x.tolist(), y.tolist()) == pytest.approx(spearmanr(x, y).statistic)
    assert rank_correlation([1, 2, 3], [1, 8, 9]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1, 2], [1, 2]) is None
    with pytest.raises(ShapeError, match="3 values and 2 values"):
        rank_correlation([1, 2, 3], [1, 2])
