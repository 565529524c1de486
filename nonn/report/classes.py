"""Tables and figures of accuracy by class and of calibration (``nonn.report.class_evaluation`` computes both).

Only figures need more than NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nonn.report import drawing
from nonn.report.document import ClassReport
from nonn.report.table import Column, IntervalColumn, Table, TextColumn, points_of, share_of, show_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "bias_table",
    "calibration_plot",
    "calibration_table",
    "class_plot",
    "class_table",
]

_SKEWED = 2  # ratio of training samples from which the table shows them
_SHOWN = 10  # classes shown in table and figure


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
        Column("sets evaluated", "sets"),
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
        Column("sets evaluated", "sets", minor=True),
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


def _three(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
