"""Temperature scaling against grid search, the calibration error against a slow literal reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nonn.enumeration import enumerate_subsets
from nonn.errors import ShapeError
from nonn.fusion import ZeroFill, softmax
from nonn.fusion.calibration import (
    expected_calibration_error,
    fit_temperature,
    fit_temperatures,
)
from nonn.reliability.subsets import members, membership
from tests.calibration import calibration

K = 4


def drawn(samples: int, temperature: float, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits [n, K], and labels drawn from their softmax at a temperature [n]."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (samples, K))
    chance = softmax(logits / temperature).cumsum(axis=1)
    return logits, (chance < rng.random((samples, 1))).sum(axis=1).astype(np.int64)


def nll(logits: NDArray[np.float64], labels: NDArray[np.int64], temperature: float) -> float:
    return float(-np.log(softmax(logits / temperature)[np.arange(len(labels)), labels]).mean())


def cluster(samples: int = 1500, num_devices: int = 3) -> tuple[ZeroFill, list[NDArray[np.float64]], NDArray[np.int64]]:
    """A fusion of devices that each see the class through noise, its features and labels."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, K, samples)
    features = [np.eye(K)[labels] + rng.normal(0, 0.8, (samples, K)) for _ in range(num_devices)]
    weight = np.tile(6 * np.eye(K), (num_devices, 1))
    return ZeroFill(weight, np.zeros(K), [K] * num_devices), features, labels


def test_the_error_is_that_of_bins_by_hand() -> None:
    # Bins (0, ½], (½, 1]: |½ − 0.4| · 2/5 + |⅔ − 0.8| · 3/5.
    confidence, correct = np.array([0.3, 0.5, 0.6, 0.8, 1.0]), np.array([True, False, True, True, False])
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.04 + 0.08)


@given(
    st.lists(st.tuples(st.integers(0, 60).map(lambda k: k / 60), st.booleans()), min_size=1, max_size=50),
    st.sampled_from([1, 4, 15]),
)
def test_the_error_equals_a_loop_over_bins(samples: list[tuple[float, bool]], bins: int) -> None:
    confidence, correct = np.array([c for c, _ in samples]), np.array([r for _, r in samples])
    total = 0.0
    for b in range(bins):
        inside = (confidence * bins > b) & (confidence * bins <= b + 1) | ((b == 0) & (confidence == 0))
        if inside.any():
            total += inside.sum() / len(samples) * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("truth", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_has_the_lowest_likelihood_and_finds_the_truth(truth: float) -> None:
    logits, labels = drawn(20_000, truth)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(truth, rel=0.06)
    grid = np.geomspace(0.05, 20, 400)
    assert nll(logits, labels, fitted) <= min(nll(logits, labels, t) for t in grid)


@given(st.integers(1, 6), st.integers(0, 10_000), st.sampled_from([1e-3, 1.0, 1e3]))
def test_no_nearby_temperature_is_better_on_a_handful_of_samples(samples: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = scale * rng.normal(size=(samples, K)), rng.integers(0, K, samples)
    fitted = fit_temperature(logits, labels)
    assert 0.05 <= fitted <= 20

    def loss(temperature: float) -> float:
        z = logits / temperature
        peak = z.max(axis=1)
        log_sum = np.log(np.exp(z - peak[:, None]).sum(axis=1)) + peak
        return float((log_sum - z[np.arange(samples), labels]).mean())

    for other in np.clip([0.05, fitted / 1.05, fitted * 1.05, 20], 0.05, 20):
        assert loss(fitted) <= loss(other) + 1e-9 * max(1, abs(loss(other)))


def test_where_every_sample_is_right_or_wrong_the_temperature_stays_bounded() -> None:
    logits = np.array([[2.0, 0, 0, 0], [0, 3.0, 0, 0]])
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(0.05)
    assert fit_temperature(logits, np.array([2, 2])) == pytest.approx(20)
    assert fit_temperature(np.zeros((3, K)), np.array([0, 1, 2])) == 1.0


def test_each_set_gets_the_temperature_of_its_own_logits() -> None:
    head, features, labels = cluster()
    fitted = fit_temperatures(head, features, labels)
    assert fitted[0] == 1.0
    for mask in range(1, 8):
        logits = head.logits({i: features[i] for i in members(mask)})
        assert fitted[mask] == fit_temperature(logits, labels)
    assert len(set(fitted[1:].tolist())) == 7


def test_thin_data_share_a_temperature_for_each_number_of_devices() -> None:
    head, features, labels = cluster(samples=300)
    fitted = fit_temperatures(head, features, labels)
    survivors = membership(3).sum(axis=1)
    for count in (1, 2, 3):
        masks = np.flatnonzero(survivors == count).tolist()
        stacked = np.concatenate([head.logits({i: features[i] for i in members(m)}) for m in masks])
        assert set(fitted[masks]) == {fit_temperature(stacked, np.tile(labels, len(masks)))}
    np.testing.assert_array_equal(fitted, fit_temperatures(head, features, labels, by="survivors"))
    assert not np.array_equal(fitted, fit_temperatures(head, features, labels, by="set"))


def test_temperatures_calibrate_samples_they_were_not_fitted_to_and_change_no_answer() -> None:
    head, features, labels = cluster(samples=6000)
    half = [f[:3000] for f in features]
    warm = head.with_temperatures(fit_temperatures(head, half, labels[:3000]))
    others, truth = [f[3000:] for f in features], labels[3000:]
    for masks in ([7], [3, 5, 6], [1, 2, 4]):
        cold, hot = ([calibration(h, others, truth, mask) for mask in masks] for h in (head, warm))
        assert np.mean([one.ece for one in hot]) < min(0.03, 0.5 * float(np.mean([one.ece for one in cold])))
        assert np.mean([one.nll for one in hot]) < np.mean([one.nll for one in cold])
        assert [one.accuracy for one in hot] == [one.accuracy for one in cold]
        assert abs(np.mean([one.confidence - one.accuracy for one in hot])) < 0.03
    np.testing.assert_array_equal(
        enumerate_subsets(warm, others, truth).correct, enumerate_subsets(head, others, truth).correct
    )


def test_what_does_not_fit_is_refused() -> None:
    head, features, labels = cluster(samples=10)
    with pytest.raises(ShapeError, match="both must be"):
        expected_calibration_error(np.zeros(3), np.zeros(4))
    with pytest.raises(ShapeError, match="both must be"):
        expected_calibration_error(np.zeros(0), np.zeros(0))
    with pytest.raises(ShapeError, match="between 0 and 1"):
        expected_calibration_error(np.array([1.5]), np.array([True]))
    with pytest.raises(ShapeError, match=r"expected \[n, K\] and \[n\]"):
        fit_temperature(np.zeros((3, K)), np.zeros(4, np.int64))
    with pytest.raises(ShapeError, match="choose one of: auto, set, survivors"):
        fit_temperatures(head, features, labels, by="device")
