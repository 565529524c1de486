"""How well a fusion head does on every set of surviving devices: accuracy, calibration and class-level bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.fusion import Head
from nonn.fusion.calibration import expected_calibration_error
from nonn.reliability.bias import class_bias
from nonn.reliability.subsets import SubsetTable, all_masks, mask_of, members, membership

__all__ = ["P_FAIL", "evaluate_head"]

P_FAIL = (0.1, 0.3, 0.5)  # laws of the expected accuracy: every device fails independently


def evaluate_head(
    head: Head, features: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], student_of: Sequence[int]
) -> dict[str, Any]:
    """Accuracy, calibration and class-level bias of a head over every set of surviving devices.

    Args:
        head: over M students.
        features: of each student over the test split, M arrays [n, d_i].
        labels: [n].
        student_of: the student that each device runs [N].

    Returns:
        ``samples``; ``correct`` of each of the 2^N device sets; ``by_failures``: rows with ``failed``, ``mean``,
        ``worst``, ``best``, and means over the sets of ``ece``, ``cev`` and ``sde``; ``expected``: accuracy when every
        device fails with the probability that is its key.
    """
    num_devices, full = len(student_of), (1 << head.num_devices) - 1
    intact = head.logits(dict(enumerate(features))).argmax(axis=1)
    measured: dict[int, tuple[int, float, float, float]] = {0: (0, 0.0, 0.0, 0.0)}
    for mask in range(1, full + 1):
        logits = head.logits({i: features[i] for i in members(mask)}).astype(np.float32)
        predicted = logits.argmax(axis=1)
        confidence = head.probabilities(logits, mask).max(axis=1)
        bias = class_bias(intact, predicted, labels, head.num_classes)
        ece = expected_calibration_error(confidence, predicted == labels)
        measured[mask] = (int((predicted == labels).sum()), ece, bias.cev, bias.sde)
    sets = [measured[mask_of(student_of[i] for i in members(mask))] for mask in all_masks(num_devices).tolist()]
    values = np.array(sets, dtype=float)
    table = SubsetTable(values[:, 0].astype(np.int64), len(labels))
    survivors = membership(num_devices).sum(axis=1)
    rows = []
    for row in table.by_failures():
        of_size = values[survivors == num_devices - row.failed]
        ece, cev, sde = of_size[:, 1:].mean(axis=0).tolist()
        accuracy = {"failed": row.failed, "mean": row.mean, "worst": row.worst, "best": row.best}
        rows.append(accuracy | {"ece": ece, "cev": cev, "sde": sde})
    return {
        "samples": len(labels),
        "correct": table.correct.tolist(),
        "by_failures": rows,
        "expected": {str(p): table.expected(np.full(num_devices, p)) for p in P_FAIL},
    }
