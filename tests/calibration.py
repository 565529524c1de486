"""How well the confidence of one set of devices is calibrated, from its probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.fusion import Head
from nonn.fusion.calibration import expected_calibration_error
from nonn.reliability.subsets import members


@dataclass(frozen=True)
class Calibration:
    """Calibration error, mean confidence, accuracy, and mean negative log-likelihood in nats."""

    ece: float
    confidence: float
    accuracy: float
    nll: float


def calibration(head: Head, features: Sequence[NDArray[Any]], labels: NDArray[np.int64], mask: int) -> Calibration:
    """With the temperatures of the head.

    Args:
        head: the fusion.
        features: of each device over the same samples, N arrays [n, d_i].
        labels: [n].
        mask: the devices that answer.
    """
    probability = head.probabilities(head.logits({i: features[i] for i in members(mask)}), mask)
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == labels
    return Calibration(
        expected_calibration_error(confidence, right),
        float(confidence.mean()),
        float(right.mean()),
        float(-np.log(probability[np.arange(len(labels)), labels]).mean()),
    )
