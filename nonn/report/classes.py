"""Accuracy by class and calibration of confidence under failures, from the recorded test features.

Each evaluated subset is fused once, and its answers are compared with those of all devices: combined error variance
(CEV) and symmetric distance error (SDE) of ``nonn.reliability.bias``, accuracy of every class, expected calibration
error (ECE) of ``nonn.fusion.calibration``.

Limits: at most 70 subsets for each number of failures, fewer with many samples and classes (both bounds are in the
result), drawn with a fixed seed. A bundle without features has no such section. Only figures need more than NumPy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.errors import BundleError, ShapeError
from nonn.fusion.calibration import expected_calibration_error
from nonn.reliability.bias import class_bias
from nonn.reliability.intervals import difference_interval, mean_interval
from nonn.reliability.similarity import FeatureSimilarity, rank_correlation
from nonn.reliability.subsets import MAX_DEVICES, mask_of, members, membership
from nonn.report import drawing
from nonn.report.document import ClassReport, ClassRow, SampledSets
from nonn.report.table import Column, IntervalColumn, Table, TextColumn, points_of, share_of, show_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "bias_table",
    "calibration_plot",
    "calibration_table",
    "class_plot",
    "class_report",
    "class_table",
]

_SETS = 70  # for each number of failures: all of them up to eight devices
_FEW_SETS = 8  # beyond 16 devices, where each has to be solved
_LEAST_SETS = 4
_LOGITS = 120_000_000  # fused in total: about five seconds on one core
_SEED = 0
_PERFECT = 200  # test sets with perfect calibration that are drawn for each number of failures
_SKEWED = 2  # ratio of training samples from which the table shows them
_SHOWN = 10  # classes shown in table and figure


def class_report(bundle: Bundle) -> ClassReport | None:
    """Classes and calibration by number of failures; None where the bundle has no features.

    Classes without a test sample are left out.

    Raises:
        BundleError: the features do not fit the bundle.
    """
    if "features.npz" not in bundle.manifest.files:
        return None
    features, labels = _recorded(bundle)
    n, num_classes = bundle.num_devices, len(bundle.manifest.classes)
    most = _SETS if n <= MAX_DEVICES else _FEW_SETS
    at_most = min(most, max(_LEAST_SETS, _LOGITS // (n * len(labels) * num_classes)))
    rng = np.random.default_rng(_SEED)
    of_class = np.bincount(labels, minlength=num_classes)
    intact = np.zeros(0, dtype=np.int64)
    exact = bundle.any_evidence.by_failures() if bundle.accuracies.samples == len(labels) else ()
    similarity, found = FeatureSimilarity(features), [list[float]() for _ in range(2)]
    rows, right_after = [], np.zeros(len(labels))
    chance = np.random.default_rng(_SEED)
    for failed in range(n):
        chosen = _chosen(n, n - failed, at_most, rng)
        measured: list[tuple[float, ...]] = []
        perfect: list[float] = []
        scores = np.zeros(len(labels))
        for mask in chosen:
            answer, confidence = _answers(bundle, features, mask)
            intact = intact if failed else answer
            right, bias = answer == labels, class_bias(intact, answer, labels, num_classes)
            ece = expected_calibration_error(confidence, right)
            cka = similarity.cka(list(members(mask)))
            measured.append((right.mean(), confidence.mean(), ece, bias.cev, bias.sde, cka))
            scores += right / len(chosen)
            perfect += [
                expected_calibration_error(confidence, chance.random(len(labels)) < confidence)
                for _ in range(-(-_PERFECT // len(chosen)))
            ]
        if failed == n // 2:
            right_after = scores
        accuracy, sure, ece, cev, sde, cka = np.mean(measured, axis=0).tolist()
        columns = list(zip(*measured, strict=True))
        for column, correlations in zip((3, 4), found, strict=True):
            if (correlation := rank_correlation(columns[5], columns[column])) is not None:
                correlations.append(correlation)
        interval: tuple[float, ...] = _ends(mean_interval(scores))
        if exact:
            # One mean for each number of failures: the table's, over all subsets. The subsets evaluated here give the
            # difference of confidence from it, which varies less between subsets than either.
            sure = min(1.0, max(0.0, sure + exact[failed].mean - accuracy))
            accuracy, interval = exact[failed].mean, exact[failed].interval or interval
        rows.append(
            SampledSets(
                failed=failed,
                subsets=math.comb(n, failed),
                sets=len(chosen),
                accuracy=accuracy,
                confidence=sure,
                ece=ece,
                cev=cev,
                sde=sde,
                cka=min(cka, 1.0),
                ece_worst=float(max(row[2] for row in measured)),
                accuracy_interval=interval,
                ece_perfect=float(np.mean(perfect)),
                ece_perfect_high=float(np.quantile(perfect, 0.95)),
            )
        )
    trained = bundle.manifest.data.get("train_samples")
    right_before = (intact == labels).astype(np.float64)
    classes = [
        dataclasses.replace(
            _class_row(c, bundle.manifest.classes[c], right_before[labels == c], right_after[labels == c]),
            train_samples=trained[c] if trained else None,
        )
        for c in np.flatnonzero(of_class).tolist()
    ]
    return ClassReport(
        samples=len(labels),
        sets_at_most=at_most,
        seed=_SEED,
        by_failures=tuple(rows),
        failed=n // 2,
        classes=tuple(sorted(classes, key=lambda row: row.degraded)),
        cka_cev=float(np.mean(found[0])) if found[0] else None,
        cka_sde=float(np.mean(found[1])) if found[1] else None,
    )


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


def class_table(report: ClassReport, limit: int | None = _SHOWN) -> Table:
    """The classes with the lowest accuracy with half of the devices failed; limit None for all classes."""
    size = max(row.samples for row in report.classes)
    share, point, has = share_of(size), points_of(size), report.classes[0].degraded_interval is not None

    def ends(key: str, show: Callable[[float], str]) -> tuple[Column, ...]:
        return (IntervalColumn("95 %", key, show_interval(show)),) if has else ()

    columns = (
        TextColumn("class", "name", str),
        *_trained(report),
        Column("samples", "samples"),
        Column("all answering", "intact", share),
        *ends("intact_interval", share),
        Column(f"{report.failed} gone", "degraded", share),
        *ends("degraded_interval", share),
        Column("lost, points", "loss", point),
        *ends("loss_interval", point),
    )
    return Table(columns, report.classes[:limit])


def bias_table(report: ClassReport) -> Table:
    """How unevenly failures affect the classes, against failed devices."""
    columns = (
        Column("failed", "failed"),
        Column("sets looked at", "sets"),
        Column("of", "subsets"),
        Column("CEV", "cev", _three),
        Column("SDE", "sde", _three),
        *([Column("CKA", "cka", _three)] if report.by_failures[0].cka is not None else []),
    )
    return Table(columns, report.by_failures)


def _trained(report: ClassReport) -> tuple[Column, ...]:
    """The samples that each class was trained with, if classes differ much."""
    known = [row.train_samples for row in report.classes if row.train_samples is not None]
    skewed = len(known) == len(report.classes) and max(known) > _SKEWED * min(known)
    return (Column("trained with", "train_samples"),) if skewed else ()


def calibration_table(report: ClassReport) -> Table:
    """Confidence and accuracy against failed devices, and the error that perfect calibration would show."""
    share, point = share_of(report.samples), points_of(report.samples)
    columns = [
        Column("failed", "failed"),
        Column("sets looked at", "sets", minor=True),
        Column("accuracy", "accuracy", share),
        Column("confidence", "confidence", share),
        Column("ECE, points", "ece", point),
        Column("ECE of the worst set", "ece_worst", point, minor=True),
    ]
    if report.by_failures[0].ece_perfect is not None:
        columns.insert(3, IntervalColumn("95 %", "accuracy_interval", show_interval(share)))
        columns.insert(6, Column("if calibrated", "ece_perfect", point))
        columns.insert(7, Column("in 1 of 20 more than", "ece_perfect_high", point))
    return Table(tuple(columns), report.by_failures)


def class_plot(report: ClassReport) -> str:
    """The worst classes as SVG: accuracy with all devices, and with half of them failed.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = report.classes[:_SHOWN]
    heights = range(len(rows))

    def draw(axes: Axes) -> None:
        intact, degraded = [100 * row.intact for row in rows], [100 * row.degraded for row in rows]
        axes.hlines(heights, degraded, intact, color=drawing.VERMILION, linewidth=1.8, alpha=0.5)
        axes.plot(intact, heights, "o", color=drawing.BLUE, markersize=7, clip_on=False, label="all answering")
        hollow: drawing.Look = {"markersize": 7, "markerfacecolor": "none", "markeredgewidth": 2.0, "clip_on": False}
        axes.plot(degraded, heights, "D", color=drawing.VERMILION, label=f"{report.failed} gone, on average", **hollow)
        # A dollar sign would start a formula; long names would squeeze the figure.
        names = [row.name if len(row.name) <= 18 else f"{row.name[:17]}…" for row in rows]
        axes.set_yticks(heights, names, parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(right=100)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("accuracy of the class, %")
        axes.grid(axis="x", **drawing.GRID)
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.5 / (0.3 * len(rows) + 0.2)), ncols=2)

    return drawing.svg("classes", "Classes that suffer most", (5.9, 1.4 + 0.3 * len(rows)), draw)


def calibration_plot(report: ClassReport) -> str:
    """Mean confidence and accuracy against failed devices as SVG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = report.by_failures
    failed = [row.failed for row in rows]

    def draw(axes: Axes) -> None:
        accuracy, confidence = [100 * row.accuracy for row in rows], [100 * row.confidence for row in rows]
        axes.plot(failed, accuracy, "o-", color=drawing.BLUE, linewidth=2.2)
        axes.plot(failed, confidence, "s--", color=drawing.VERMILION, linewidth=1.8)
        axes.set_xticks(failed)
        axes.set_xlabel("devices failed")
        axes.set_ylabel("mean of the sets, %")
        axes.grid(axis="y", **drawing.GRID)
        drawing.break_axis(axes)
        names = [
            drawing.Name("accuracy", accuracy[-1], drawing.BLUE),
            drawing.Name("confidence", confidence[-1], drawing.VERMILION),
        ]
        drawing.name_lines(axes, names, failed[-1])

    return drawing.svg("calibration", "Confidence and accuracy against failed devices", (6.6, 3.4), draw)


def _recorded(bundle: Bundle) -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
    """Test features of each device [n, d_i] and labels [n], checked against the bundle."""
    arrays, widths = bundle.arrays("features.npz"), bundle.head.widths
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


def _three(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
