"""Differences of accuracies on the same test samples: students less teacher, and one method less another."""

from __future__ import annotations

import numpy as np

from nonn.bundle import Bundle
from nonn.reliability.evidence import Interval
from nonn.reliability.intervals import difference_interval, share_interval, unpaired_difference
from nonn.reliability.sampled_evidence import AnyEvidence
from nonn.report.document import Comparison

__all__ = ["against_method", "against_teacher"]


def against_teacher(bundle: Bundle) -> tuple[Comparison, ...]:
    """Mean accuracy of all subsets less that of the teacher, for 0 to N − 1 failed devices.

    Empty where the bundle does not record the accuracy of the teacher.
    """
    if "accuracy" not in bundle.manifest.teacher:
        return ()
    evidence, right = bundle.any_evidence, bundle.teacher_right
    teacher, samples = float(bundle.manifest.teacher["accuracy"]), evidence.table.samples
    means = evidence.level_weights() @ evidence.table.accuracy
    if evidence.outcomes is not None and right is not None:
        scores = evidence.outcomes.scores(evidence.level_weights()) - right
        ends = difference_interval(scores, samples, mean=means - teacher)
        return _rows(means - teacher, list(zip(*(end.tolist() for end in ends), strict=True)), paired=True)
    return _unpaired(
        evidence, np.full(bundle.num_devices, teacher), [share_interval(teacher, samples)] * bundle.num_devices
    )


def against_method(bundle: Bundle, first: Bundle) -> tuple[Comparison, ...]:
    """Mean accuracy of one bundle less that of another, for each number of failures that both have.

    Sample by sample where both record the outcomes of the same samples; empty for different test sets.
    """
    keys = ("name", "split", "fingerprint")
    same = all(bundle.manifest.data.get(key) == first.manifest.data.get(key) for key in keys)
    if not same or bundle.accuracies.samples != first.accuracies.samples:
        return ()
    count = min(bundle.num_devices, first.num_devices)
    mine, other = bundle.any_evidence, first.any_evidence
    weights = [evidence.level_weights()[:count] for evidence in (mine, other)]
    means = [w @ evidence.table.accuracy for w, evidence in zip(weights, (mine, other), strict=True)]
    samples = mine.table.samples
    if (
        mine.outcomes is not None
        and other.outcomes is not None
        and mine.outcomes.kept == other.outcomes.kept == samples
    ):
        scores = mine.outcomes.scores(weights[0]) - other.outcomes.scores(weights[1])
        ends = difference_interval(scores, samples)
        return _rows(means[0] - means[1], list(zip(*(end.tolist() for end in ends), strict=True)), paired=True)
    return _unpaired(mine, means[1], other.mean(weights[1]))


def _unpaired(evidence: AnyEvidence, other: np.ndarray, intervals: list[Interval]) -> tuple[Comparison, ...]:
    """Differences to accuracies whose samples are not known."""
    weights = evidence.level_weights()[: len(other)]
    means = weights @ evidence.table.accuracy
    ends = unpaired_difference(means, _ends(evidence.mean(weights)), other, _ends(intervals))
    return _rows(means - other, list(zip(*(end.tolist() for end in ends), strict=True)), paired=False)


def _ends(intervals: list[Interval]) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array(intervals).T
    return low, high


def _rows(differences: np.ndarray, intervals: list[Interval], *, paired: bool) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(failed=failed, difference=float(difference), interval=interval, paired=paired)
        for failed, (difference, interval) in enumerate(zip(differences, intervals, strict=True))
    )
