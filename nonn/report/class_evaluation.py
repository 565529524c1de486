"""Accuracy by class and calibration of confidence under failures, from the recorded test features.

Each evaluated subset is fused once, and its answers are compared with those of all devices: combined error variance
(CEV) and symmetric distance error (SDE) of ``nonn.reliability.bias``, accuracy of every class, expected calibration
error (ECE) of ``nonn.fusion.calibration``.

Limits: at most 70 subsets for each number of failures, fewer with many samples and classes (both bounds are in the
result), drawn with a fixed seed. A bundle without features has no such section.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.bundle.manifest import FEATURES
from nonn.errors import BundleError, ShapeError
from nonn.fusion.calibration import expected_calibration_error
from nonn.reliability.bias import class_bias
from nonn.reliability.intervals import difference_interval, mean_interval
from nonn.reliability.similarity import FeatureSimilarity, rank_correlation
from nonn.reliability.subsets import MAX_DEVICES, mask_of, members, membership
from nonn.reliability.table import FailureRow
from nonn.report.document import ClassReport, ClassRow, SampledSets

__all__ = ["class_report"]

_SETS = 70  # for each number of failures: all of them up to eight devices
_FEW_SETS = 8  # beyond 16 devices, where each has to be solved
_LEAST_SETS = 4
_LOGITS = 120_000_000  # fused in total: about five seconds on one core
_SEED = 0
_PERFECT = 200  # test sets with perfect calibration that are drawn for each number of failures
_CEV, _SDE, _CKA = 3, 4, 5  # columns of the figures of a subset


def class_report(bundle: Bundle) -> ClassReport | None:
    """Classes and calibration by number of failures; None where the bundle has no features.

    Classes without a test sample are left out.

    Raises:
        BundleError: the features do not fit the bundle.
    """
    if FEATURES not in bundle.manifest.files:
        return None
    evaluation, n = _Evaluation(bundle), bundle.num_devices
    levels = [evaluation.level(failed) for failed in range(n)]
    exact = bundle.any_evidence.by_failures() if bundle.accuracies.samples == len(evaluation.labels) else ()
    return ClassReport(
        samples=len(evaluation.labels),
        sets_at_most=evaluation.at_most,
        seed=_SEED,
        by_failures=tuple(
            _row(n, failed, level, exact[failed] if exact else None) for failed, level in enumerate(levels)
        ),
        failed=n // 2,
        classes=tuple(sorted(evaluation.classes(levels[n // 2].scores), key=lambda row: row.degraded)),
        cka_cev=_mean_correlation(levels, _CEV),
        cka_sde=_mean_correlation(levels, _SDE),
    )


@dataclass(frozen=True)
class _Level:
    """The evaluated subsets with one number of failures.

    Attributes:
        figures: accuracy, confidence, ECE, CEV, SDE and CKA of each subset [sets, 6].
        scores: share of the subsets that are right on each sample [n].
        perfect: ECE of answers that are right as often as their confidence states, for some drawn test sets.
    """

    figures: NDArray[np.float64]
    scores: NDArray[np.float64]
    perfect: list[float]


class _Evaluation:
    """Fuses subsets of a bundle's recorded features, the intact one first; levels are asked for in ascending order.

    Raises:
        BundleError: the features do not fit the bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._features, self.labels = _recorded(bundle)
        self._num_classes = len(bundle.manifest.classes)
        most = _SETS if bundle.num_devices <= MAX_DEVICES else _FEW_SETS
        logits = bundle.num_devices * len(self.labels) * self._num_classes  # of one subset for each number of failures
        self.at_most = min(most, max(_LEAST_SETS, _LOGITS // logits))
        self._similarity = FeatureSimilarity(self._features)
        self._choice, self._chance = np.random.default_rng(_SEED), np.random.default_rng(_SEED)
        self._intact = np.zeros(0, dtype=np.int64)

    def level(self, failed: int) -> _Level:
        """Evaluates subsets with so many failures."""
        n, labels = self._bundle.num_devices, self.labels
        chosen = _chosen(n, n - failed, self.at_most, self._choice)
        figures: list[tuple[float, ...]] = []
        perfect: list[float] = []
        scores = np.zeros(len(labels))
        for mask in chosen:
            answer, confidence = _answers(self._bundle, self._features, mask)
            self._intact = self._intact if failed else answer
            right, bias = answer == labels, class_bias(self._intact, answer, labels, self._num_classes)
            ece = expected_calibration_error(confidence, right)
            cka = self._similarity.cka(list(members(mask)))
            figures.append((right.mean(), confidence.mean(), ece, bias.cev, bias.sde, cka))
            scores += right / len(chosen)
            perfect += [
                expected_calibration_error(confidence, self._chance.random(len(labels)) < confidence)
                for _ in range(-(-_PERFECT // len(chosen)))
            ]
        return _Level(np.array(figures), scores, perfect)

    def classes(self, after: NDArray[np.float64]) -> list[ClassRow]:
        """Every class that has a sample.

        Args:
            after: score of each sample with half of the devices [n].
        """
        names, trained = self._bundle.manifest.classes, self._bundle.manifest.data.get("train_samples")
        before = (self._intact == self.labels).astype(np.float64)
        return [
            dataclasses.replace(
                _class_row(c, names[c], before[self.labels == c], after[self.labels == c]),
                train_samples=trained[c] if trained else None,
            )
            for c in np.unique(self.labels).tolist()
        ]


def _row(num_devices: int, failed: int, level: _Level, exact: FailureRow | None) -> SampledSets:
    """One number of failures, with the accuracy over all subsets where it is known."""
    accuracy, confidence, ece, cev, sde, cka = level.figures.mean(axis=0).tolist()
    interval: tuple[float, ...] = _ends(mean_interval(level.scores))
    if exact is not None:
        # One mean for each number of failures: the table's, over all subsets. The subsets evaluated here give the
        # difference of confidence from it, which varies less between subsets than either.
        confidence = min(1.0, max(0.0, confidence + exact.mean - accuracy))
        accuracy, interval = exact.mean, exact.interval or interval
    return SampledSets(
        failed=failed,
        subsets=math.comb(num_devices, failed),
        sets=len(level.figures),
        accuracy=accuracy,
        confidence=confidence,
        ece=ece,
        cev=cev,
        sde=sde,
        cka=min(cka, 1.0),
        ece_worst=float(level.figures[:, 2].max()),
        accuracy_interval=interval,
        ece_perfect=float(np.mean(level.perfect)),
        ece_perfect_high=float(np.quantile(level.perfect, 0.95)),
    )


def _mean_correlation(levels: list[_Level], column: int) -> float | None:
    """Mean rank correlation of the similarity of features with another figure, over the numbers of failures."""
    pairs = [(level.figures[:, _CKA].tolist(), level.figures[:, column].tolist()) for level in levels]
    found = [correlation for pair in pairs if (correlation := rank_correlation(*pair)) is not None]
    return float(np.mean(found)) if found else None


def _chosen(num_devices: int, answering: int, at_most: int, rng: np.random.Generator) -> list[int]:
    """Subsets of a size, ascending: all of them, or as many as allowed, drawn at random."""
    if num_devices <= MAX_DEVICES:
        masks = np.flatnonzero(membership(num_devices).sum(axis=1) == answering)
        chosen = masks if len(masks) <= at_most else np.sort(rng.choice(masks, at_most, replace=False))
        return [int(mask) for mask in chosen]
    return sorted({mask_of(rng.choice(num_devices, answering, replace=False).tolist()) for _ in range(at_most)})


def _class_row(number: int, name: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> ClassRow:
    """One class, from the score of each of its samples with all devices and with half of them."""
    return ClassRow(
        class_=number,
        name=name,
        samples=len(before),
        intact=float(before.mean()),
        degraded=float(after.mean()),
        loss=float((before - after).mean()),
        intact_interval=_ends(mean_interval(before)),
        degraded_interval=_ends(mean_interval(after)),
        loss_interval=_ends(difference_interval(before - after)),
    )


def _ends(interval: tuple[NDArray[np.float64], NDArray[np.float64]]) -> tuple[float, float]:
    return float(interval[0]), float(interval[1])


def _recorded(bundle: Bundle) -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
    """Test features of each device [n, d_i] and labels [n], checked against the bundle."""
    arrays, widths = bundle.arrays(FEATURES), bundle.head.widths
    labels = arrays.get("labels", np.zeros(0, dtype=np.int64))
    expected = {f"device_{i}": (len(labels), width) for i, width in enumerate(widths)}
    found = {name: array.shape for name, array in arrays.items() if name != "labels"}
    if found != expected or labels.ndim != 1 or not len(labels) or len(widths) != bundle.num_devices:
        raise BundleError(f"{bundle.path}/features.npz: arrays {found} for {len(labels)} labels; expected {expected}")
    if labels.min() < 0 or labels.max() >= len(bundle.manifest.classes):
        raise BundleError(f"{bundle.path}/features.npz: a label is outside the {len(bundle.manifest.classes)} classes")
    return [arrays[name] for name in expected], labels


def _answers(
    bundle: Bundle, features: list[NDArray[np.float32]], mask: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Class and confidence of each answer of one subset [n]."""
    try:
        logits = bundle.head.logits({i: features[i] for i in members(mask)}, keep=False)
    except ShapeError as exc:
        raise BundleError(f"{bundle.path}: features.npz does not fit the fusion: {exc}") from exc
    answer: NDArray[np.int64] = logits.argmax(axis=1)
    # Only the largest probability is needed, so the rest of the softmax is not computed.
    scaled = (logits - logits.max(axis=1, keepdims=True)) / bundle.head.temperature(mask)
    confidence: NDArray[np.float64] = 1 / np.exp(scaled).sum(axis=1)
    return answer, confidence
