from __future__ import annotations

import numpy as np
import pytest

from nonn.errors import ShapeError
from nonn.reliability.bias import class_bias, error_rates

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])


def test_rates_are_counted_with_one_pseudo_error() -> None:
    rates = error_rates(np.array([0, 0, 0, 1, 1, 1, 1, 1]), LABELS, 2)
    # Class 0: no false positive of 4, one false negative of 4. Class 1: the other way round.
    np.testing.assert_allclose(rates, [[1 / 5, 2 / 5], [2 / 5, 1 / 5]])


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
        error_rates(LABELS[:3], LABELS, 2)
    with pytest.raises(ShapeError, match=r"0 … 0"):
        error_rates(LABELS, LABELS, 1)
