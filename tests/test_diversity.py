from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from nonn.errors import ShapeError
from nonn.reliability.diversity import diversity

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 200)


def test_disagreement_and_error_correlation_are_means_over_pairs() -> None:
    predicted = np.where(RNG.random((4, 200)) < 0.7, LABELS, RNG.integers(0, 5, (4, 200)))
    pairs = list(combinations(range(4), 2))
    measured = diversity(predicted, LABELS)
    assert measured.disagreement == pytest.approx(np.mean([(predicted[i] != predicted[j]).mean() for i, j in pairs]))
    errors = np.corrcoef(predicted != LABELS)
    assert measured.error_correlation == pytest.approx(np.mean([errors[i, j] for i, j in pairs]))


def test_copies_never_disagree_and_make_the_same_errors() -> None:
    copies = np.tile(RNG.integers(0, 5, 200), (3, 1))
    measured = diversity(copies, LABELS)
    assert measured.disagreement == 0
    assert measured.error_correlation == pytest.approx(1)


def test_a_device_without_errors_has_no_correlation() -> None:
    wrong = (LABELS + 1) % 5
    some = np.where(np.arange(200) < 50, wrong, LABELS)
    assert diversity(np.stack([LABELS, some]), LABELS).error_correlation is None
    assert diversity(np.stack([LABELS, some, some]), LABELS).error_correlation == pytest.approx(1)
    assert diversity(np.stack([LABELS, some]), LABELS).disagreement == 0.25


def test_a_single_device_has_no_pair() -> None:
    measured = diversity(LABELS[None], LABELS)
    assert (measured.disagreement, measured.error_correlation) == (None, None)


@pytest.mark.parametrize("shape", [(200,), (2, 199), (2, 0)])
def test_predictions_of_other_samples_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="predictions"):
        diversity(np.zeros(shape, np.int64), LABELS[: shape[-1]] if shape == (2, 0) else LABELS)
