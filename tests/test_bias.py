from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nonn.errors import ShapeError
from nonn.reliability.bias import class_bias, error_counts

IntArray = NDArray[np.int64]

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])


def test_errors_are_counted_by_predicted_and_by_true_class() -> None:
    counts = error_counts(np.array([0, 0, 0, 1, 1, 1, 1, 1]), LABELS, 2)
    # Class 0: no false positive, one false negative. Class 1: the other way round.
    np.testing.assert_array_equal(counts, [[0, 1], [1, 0]])


def test_changes_are_those_of_the_rates_where_the_intact_network_errs() -> None:
    rng = np.random.default_rng(1)
    labels, intact, degraded = (rng.integers(0, 3, 90) for _ in range(3))

    def rates(predicted: IntArray) -> NDArray[np.float64]:
        return np.array(
            [
                [
                    ((predicted == c) & (labels != c)).sum() / (labels != c).sum(),
                    ((predicted != c) & (labels == c)).sum() / (labels == c).sum(),
                ]
                for c in range(3)
            ]
        )

    change = (rates(degraded) - rates(intact)) / rates(intact)
    bias = class_bias(intact, degraded, labels, 3)
    assert bias.cev == pytest.approx(((change - change.mean(0)) ** 2).sum(1).mean())
    assert bias.sde == pytest.approx(np.mean(np.abs(change[:, 0] - change[:, 1]) / np.sqrt(2)))


def test_a_class_without_intact_errors_gets_one_pseudo_error() -> None:
    intact, degraded = np.array([0, 0, 0, 1, 1, 1, 1, 1]), np.array([0, 0, 1, 1, 1, 1, 1, 0])
    # Class 0: false positives 0 → 1, false negatives 1 → 2. Class 1: 1 → 2 and 0 → 1. All four changes are 1.
    assert class_bias(intact, degraded, LABELS, 2).cev == 0
    assert class_bias(LABELS, degraded, LABELS, 2).cev == pytest.approx(0.5)  # changes (1, 2) and (2, 1)


def test_nothing_changed_is_no_bias() -> None:
    predicted = np.array([0, 1, 0, 0, 1, 0, 1, 1])
    bias = class_bias(predicted, predicted, LABELS, 2)
    assert (bias.cev, bias.sde) == (0, 0)


def test_bias_equals_its_formula_by_hand() -> None:
    intact, degraded = LABELS.copy(), np.array([0, 0, 1, 1, 1, 1, 1, 1])
    # δ of class 0 is (0, 2), of class 1 is (2, 0); their mean is (1, 1).
    bias = class_bias(intact, degraded, LABELS, 2)
    assert bias.cev == pytest.approx(2.0)
    assert bias.sde == pytest.approx(2 / np.sqrt(2))


def test_errors_spread_evenly_are_less_biased_than_one_class_that_pays() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 50)
    even, lopsided = labels.copy(), labels.copy()
    even[rng.permutation(500)[:50]] = rng.integers(0, 10, 50)
    lopsided[:50] = 1
    assert class_bias(labels, even, labels, 10).cev < class_bias(labels, lopsided, labels, 10).cev
    assert class_bias(labels, even, labels, 10).sde < class_bias(labels, lopsided, labels, 10).sde


def test_classes_out_of_range_and_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ShapeError, match="predictions for"):
        error_counts(LABELS[:3], LABELS, 2)
    with pytest.raises(ShapeError, match=r"0 … 0"):
        error_counts(LABELS, LABELS, 1)
