"""The precision head: variances that features predict, and devices that count less where they are unsure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nonn.distill.precision import fit_log_variance, fit_precision
from nonn.fusion import RidgePerSet, gram


def test_the_predicted_variance_is_the_most_likely_one() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(4000, 3)), np.zeros((4000, 1))], axis=1)  # the last feature is dead
    logs = 0.5 + x @ np.array([1.0, 0.0, -0.5, 0.0])
    direction, offset = fit_log_variance(x, np.exp(logs) * rng.normal(size=4000) ** 2)
    np.testing.assert_allclose(np.append(direction, offset), [1, 0, -0.5, 0, 0.5], atol=0.1)


def test_a_device_that_is_unsure_of_a_sample_counts_less_and_answers_are_better() -> None:
    """Two devices see the same signal; in half of the samples, known from its last feature, one of them is noise."""
    rng = np.random.default_rng(0)

    def made(n: int) -> tuple[list[NDArray[np.float32]], NDArray[np.float32], NDArray[np.int64]]:
        labels, features = rng.integers(0, 4, n), []
        targets = np.eye(4, dtype=np.float32)[labels]
        for _ in range(2):
            noisy = rng.random(n) < 0.5
            seen = targets + rng.normal(size=(n, 4)) * np.where(noisy, 1.0, 0.1)[:, None]
            features.append(np.column_stack([seen, noisy]).astype(np.float32))
        return features, targets, labels

    features, targets, _ = made(2000)
    ridge = RidgePerSet(*gram(np.concatenate(features, axis=1), targets), 1e-3, [5, 5])
    head = fit_precision(ridge, features, targets)
    unseen, _, labels = made(1000)
    for device in range(2):
        noisy = unseen[device][:, -1] > 0
        variance = head.log_variance(device, unseen[device])
        assert variance[noisy].min() > variance[~noisy].max()
    score = [float((one.logits(dict(enumerate(unseen))).argmax(axis=1) == labels).mean()) for one in (ridge, head)]
    assert score[1] > score[0] + 0.05
