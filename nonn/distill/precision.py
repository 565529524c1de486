"""Fits the precision head: how sure each device is of its own answer, from the features that it sends.

For each device i the ridge of that device alone answers every augmented training sample; e² is the mean squared
distance of its logits from the targets. The logarithm of the variance is linear in the features and minimises the
negative log-likelihood of a Gaussian, ``Σ e²/(2σ²) + log σ² / 2``, which is convex: Newton's method with step halving.
A penalty keeps the direction small where few samples support it. The strength α is chosen on the held-out split; α = 0,
the ridge, is a candidate.

Limits: it helps where the features of a device show that its answer is poor. On digits it was no better than the ridge,
also with made cameras and their occlusions (docs/methods.md).

Source: the likelihood of UMTS (Jin et al. 2020, arXiv 2001.05197, recalled) and of Nix & Weigend 1994.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.fusion import PrecisionHead, RidgePerSet

__all__ = ["STRENGTHS", "fit_log_variance", "fit_precision"]

STRENGTHS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)  # candidates for α
_PENALTY = 1e-2  # on the squared direction, of standardised features, a sample
_ROUNDS = 50

FloatArray = NDArray[np.float64]


def fit_precision(
    ridge: RidgePerSet, features: Sequence[NDArray[np.float32]], targets: NDArray[np.float32]
) -> PrecisionHead:
    """The head with α = 1.

    Args:
        ridge: head of every subset.
        features: features of each device, N arrays [n, d_i].
        targets: the teacher's logits or one-hot labels [n, K].
    """
    found = []
    for device, of_device in enumerate(features):
        errors = np.square(ridge.logits({device: of_device}) - targets).mean(axis=1)
        found.append(fit_log_variance(of_device - ridge.mean[ridge.rows(1 << device)], errors))
    directions, offsets = (list(part) for part in zip(*found, strict=True))
    return PrecisionHead(ridge, np.concatenate(directions), np.array(offsets), 1.0)


def fit_log_variance(features: NDArray[Any], errors: NDArray[Any]) -> tuple[FloatArray, float]:
    """Direction v [d] and offset c of ``log σ² = c + f v``, by maximum likelihood.

    Args:
        features: features f of one device [n, d].
        errors: squared error of its answer [n].
    """
    std = features.std(axis=0, dtype=np.float64)
    std = np.maximum(std, 1e-3 * max(float(std.max(initial=0.0)), 1e-12))  # a dead feature stays small
    inputs = np.concatenate([features / std, np.ones((len(features), 1))], axis=1)
    level = max(float(errors.mean()), 1e-12)
    relative = errors / level
    penalty = np.append(np.full(len(std), _PENALTY * len(errors)), 0.0)
    solution = np.zeros(len(penalty))

    def loss(tried: FloatArray) -> float:
        logs = inputs @ tried
        with np.errstate(over="ignore"):
            return float(0.5 * (relative * np.exp(-logs) + logs).sum() + 0.5 * penalty @ tried**2)

    current = loss(solution)
    for _ in range(_ROUNDS):
        scaled = 0.5 * relative * np.exp(-inputs @ solution)
        gradient = inputs.T @ (0.5 - scaled) + penalty * solution
        hessian = (inputs * scaled[:, None]).T @ inputs + np.diag(penalty + 1e-9 * len(errors))
        step = np.linalg.solve(hessian, gradient)
        size = next((s for s in 0.5 ** np.arange(20) if loss(solution - s * step) < current), 0.0)
        solution, before = solution - size * step, current
        current = loss(solution)
        if before - current <= 1e-9 * len(errors):
            break
    return solution[:-1] / std, float(solution[-1] + np.log(level))
