"""Evaluates a fusion head on every subset of surviving devices: accuracy, calibration and class-level bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nonn.documents import OPTIONAL, Share, Whole
from nonn.fusion.calibration import Fusion, expected_calibration_error
from nonn.fusion.head import FloatArray
from nonn.reliability.bias import class_bias
from nonn.reliability.diversity import diversity
from nonn.reliability.subsets import all_masks, mask_of, members, membership
from nonn.reliability.table import SubsetTable
from nonn.report.study_document import LevelRow

__all__ = ["P_FAIL", "Evaluated", "Evaluation", "HeadResult", "evaluate_head"]

P_FAIL = (0.1, 0.3, 0.5)  # failure probabilities of the expected accuracy: every device fails independently


class Evaluated(Fusion, Protocol):
    """A head, or another fusion, as it is evaluated."""

    @property
    def num_classes(self) -> int:
        """K."""
        ...

    def probabilities(self, logits: NDArray[Any], mask: int) -> FloatArray:
        """Calibrated probabilities [n, K] of logits of one subset."""
        ...


@dataclass(frozen=True, kw_only=True)
class HeadResult:
    """Result of a head on every subset of surviving devices.

    Attributes:
        samples: number of samples of the test split.
        correct: correct answers of each subset of devices, by mask [2^N].
        by_failures: results for 0 to N − 1 failed devices.
        expected: expected accuracy by the probability with which every device fails, independently.
        disagreement: share of samples that two devices answer differently by themselves, mean over all pairs.
        error_correlation: correlation of the errors of two devices by themselves, mean over all pairs.
        right: subsets that answer each sample correctly, of those with 0 to N − 1 failed devices [N, n].
    """

    samples: Whole
    correct: tuple[Whole, ...]
    by_failures: tuple[LevelRow, ...]
    expected: Mapping[str, float]
    disagreement: Share | None = field(default=None, metadata=OPTIONAL)
    error_correlation: float | None = field(default=None, metadata=OPTIONAL)
    right: tuple[tuple[Whole, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """result.json: one method, seed and fold of a study.

    Attributes:
        row: name of the method.
        seed: of its run.
        teacher_accuracy: on the test split.
        input_bytes: one input, bytes.
        part_sizes: filters of each part [M].
        params: parameters of the student of each device [N].
        macs: multiply-accumulates of the student of each device [N].
        feature_bytes: features of each device for one answer, bytes [N].
        heads: the result of each kind of head.
        test: digest of each sample of the test split [n]: runs of other seeds may have other samples.
    """

    row: str
    seed: Whole
    teacher_accuracy: Share
    input_bytes: Whole
    part_sizes: tuple[Whole, ...]
    params: tuple[Whole, ...]
    macs: tuple[Whole, ...]
    feature_bytes: tuple[Whole, ...]
    heads: Mapping[str, HeadResult]
    test: tuple[Whole, ...] = ()


def evaluate_head(
    head: Evaluated, features: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], student_of: Sequence[int]
) -> HeadResult:
    """Accuracy, calibration and class-level bias of a head over every subset of surviving devices, and its diversity.

    Args:
        head: head of M students.
        features: features of each student over the test split, M arrays [n, d_i].
        labels: labels [n].
        student_of: the student that each device runs [N].
    """
    num_devices, full = len(student_of), (1 << head.num_devices) - 1
    intact = head.logits(dict(enumerate(features))).argmax(axis=1)
    measured: dict[int, tuple[int, float, float, float]] = {0: (0, 0.0, 0.0, 0.0)}
    alone: dict[int, NDArray[np.int64]] = {}  # the answer of each student by itself
    # Subsets of devices that make up each subset of students, by number of failed devices.
    masks = [mask_of({student_of[i] for i in members(mask)}) for mask in all_masks(num_devices).tolist()]
    failures = [num_devices - mask.bit_count() for mask in all_masks(num_devices).tolist()]
    weights = np.zeros((num_devices + 1, full + 1), dtype=np.int64)
    np.add.at(weights, (failures, masks), 1)
    right = np.zeros((num_devices, len(labels)), dtype=np.int64)
    for mask in range(1, full + 1):
        logits = head.logits({i: features[i] for i in members(mask)}).astype(np.float32)
        predicted = logits.argmax(axis=1)
        if mask.bit_count() == 1:
            alone[mask.bit_length() - 1] = predicted
        confidence = head.probabilities(logits, mask).max(axis=1)
        bias = class_bias(intact, predicted, labels, head.num_classes)
        ece = expected_calibration_error(confidence, predicted == labels)
        right += np.outer(weights[:num_devices, mask], predicted == labels)
        measured[mask] = (int((predicted == labels).sum()), ece, bias.cev, bias.sde)
    sets = [measured[mask] for mask in masks]
    values = np.array(sets, dtype=float)
    table = SubsetTable(values[:, 0].astype(np.int64), len(labels))
    survivors = membership(num_devices).sum(axis=1)
    rows = []
    for row in table.by_failures():
        of_size = values[survivors == num_devices - row.failed]
        ece, cev, sde = of_size[:, 1:].mean(axis=0).tolist()
        rows.append(
            LevelRow(failed=row.failed, mean=row.mean, worst=row.worst, best=row.best, ece=ece, cev=cev, sde=sde)
        )
    pairs = diversity(np.stack([alone[i] for i in student_of]), labels)
    return HeadResult(
        samples=len(labels),
        correct=tuple(table.correct.tolist()),
        by_failures=tuple(rows),
        expected={str(p): table.expected(np.full(num_devices, p)) for p in P_FAIL},
        disagreement=pairs.disagreement,
        error_correlation=pairs.error_correlation,
        right=tuple(map(tuple, right.tolist())),
    )
