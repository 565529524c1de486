"""Comparison of several bundles: accuracy of each against failed devices, as data, a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from nonn.bundle import Bundle
from nonn.errors import InputError
from nonn.reliability.intervals import share_interval
from nonn.report import drawing
from nonn.report.against import against_method
from nonn.report.document import MethodRow, Report
from nonn.report.heads import head_report
from nonn.report.table import Column, IntervalColumn, Table, TextColumn, points_of, share_of, show_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_same_task", "method_rows", "methods_plot", "methods_table"]

# Marker and stroke differ too.
_COLOURS = (drawing.BLUE, drawing.VERMILION, drawing.ORANGE, drawing.PURPLE, drawing.SKY, drawing.INK)
_WIDTH = 20  # of a name in the figure, characters
_MARKERS = ("o", "v", "s", "D", "^", "x", "P")
_STROKES: tuple[drawing.Stroke, ...] = ("-", (0, (5, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (2, 2)))


def check_same_task(bundles: Sequence[Bundle]) -> list[str]:
    """Whether the accuracies of bundles can be compared.

    Returns:
        Warnings about bundles that were measured on other data.

    Raises:
        InputError: two bundles have different classes.
    """
    first, warnings = bundles[0], []
    for other in bundles[1:]:
        mine, theirs = first.manifest, other.manifest
        if mine.classes != theirs.classes:
            raise InputError(
                f"{other.path} has other classes ({_named(theirs.classes)}) than {first.path} "
                f"({_named(mine.classes)}): their accuracies cannot be compared; report each by itself"
            )
        if mine.data.get("fingerprint") != theirs.data.get("fingerprint"):
            warnings.append(
                f"{other.path} was measured on other data or another split than {first.path}: their accuracies differ "
                "for that reason, too"
            )
    return warnings


def _named(classes: Sequence[str]) -> str:
    return f"{len(classes)}: {', '.join(classes[:3])}{' …' if len(classes) > 3 else ''}"


def method_rows(bundles: Sequence[Bundle], *, timed: bool = False) -> tuple[MethodRow, ...]:
    """A row for each bundle; the hash distinguishes bundles of the same name.

    Args:
        bundles: the bundles.
        timed: measure the time to solve a subset.
    """
    names = [f"{bundle.manifest.experiment}, {bundle.head.kind}" for bundle in bundles]
    return tuple(
        MethodRow(
            method=name if names.count(name) == 1 else f"{name}, {bundle.hash[:8]}",
            bundle=bundle.hash,
            devices=bundle.num_devices,
            teacher_accuracy=float(bundle.manifest.teacher.get("accuracy", 0.0)),
            teacher_interval=_of_teacher(bundle),
            accuracy_by_failures=bundle.any_evidence.by_failures(),
            bytes_per_answer=sum(student.feature_bytes for student in bundle.manifest.students),
            head=head_report(bundle, timed=timed),
            against_first=() if bundle is bundles[0] else against_method(bundle, bundles[0]),
        )
        for name, bundle in zip(names, bundles, strict=True)
    )


def _of_teacher(bundle: Bundle) -> tuple[float, float] | None:
    """Interval of the accuracy of a bundle's teacher, where it is recorded."""
    accuracy = bundle.manifest.teacher.get("accuracy")
    return None if accuracy is None else share_interval(float(accuracy), bundle.accuracies.samples)


def methods_table(report: Report, failures: Sequence[int] | None = None) -> Table:
    """Mean accuracy of every method, a column for each number of failures, and what it costs.

    A dash is where no device is left, or nothing was measured.

    Args:
        report: the report.
        failures: numbers of failed devices that are shown; None is all.
    """
    most = max(row.devices for row in report.methods)
    share, point, half = share_of(report.data.samples), points_of(report.data.samples), len(report.devices) // 2
    means = [
        column
        for failed in (range(most) if failures is None else failures)
        for column in (
            Column(f"{failed} failed", f"mean_{failed}", share),
            IntervalColumn("95 %", f"interval_{failed}", show_interval(share)),
        )
    ]
    columns = (
        TextColumn("method", "method", str),
        Column("devices", "devices"),
        *means,
        Column(f"{half} failed, less the first", "difference", point),
        IntervalColumn("95 %", "difference_interval", show_interval(point)),
        Column("bytes/answer", "bytes_per_answer"),
        Column("head, bytes", "head_bytes"),
        Column("bundle, bytes", "bundle_bytes"),
        Column("new subset, ms", "solve_ms", lambda ms: f"{ms:.2f}"),
    )
    rows = []
    for row in report.methods:
        levels: dict[str, object] = {f"{key}_{failed}": None for key in ("mean", "interval") for failed in range(most)}
        for line in row.accuracy_by_failures:
            levels |= {f"mean_{line.failed}": line.mean, f"interval_{line.failed}": line.interval}
        costs = {
            "bytes_per_answer": row.bytes_per_answer,
            "head_bytes": row.head and row.head.bytes,
            "bundle_bytes": row.head and row.head.bundle_bytes,
            "solve_ms": row.head and row.head.solve_ms,
        }
        against = next((c for c in row.against_first if c.failed == half), None)
        compared = {"difference": against and against.difference, "difference_interval": against and against.interval}
        rows.append({"method": row.method, "devices": row.devices, **levels, **compared, **costs})
    return Table(columns, rows)


def methods_plot(report: Report) -> str:
    """Accuracy against failed devices of every method as SVG: means, and the worst subsets dotted.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    most = max(row.devices for row in report.methods)

    def draw(axes: Axes) -> None:
        names = [drawing.Name("teacher", 100 * report.teacher.accuracy, drawing.GREEN)]
        for number, row in enumerate(report.methods):
            failed = [line.failed for line in row.accuracy_by_failures]
            mean = [100 * line.mean for line in row.accuracy_by_failures]
            look: drawing.Look = {
                "color": _COLOURS[number % len(_COLOURS)],
                "marker": _MARKERS[number % len(_MARKERS)],
                "linestyle": _STROKES[number % len(_STROKES)],
            }
            axes.plot(failed, mean, linewidth=2.2 if number == 0 else 1.7, markersize=6, **look)
            worst = [100 * line.worst for line in row.accuracy_by_failures]
            axes.plot(failed, worst, linewidth=1.0, color=look["color"], linestyle=(0, (1, 2)))
            names.append(drawing.Name(fill(row.method, _WIDTH), mean[-1], look["color"]))
        teacher = 100 * report.teacher.accuracy
        axes.axhline(teacher, color=drawing.GREEN, linewidth=1.8, linestyle=(0, (6, 3)))
        axes.set_xticks(range(most))
        axes.set_xlabel("devices failed")
        axes.set_ylabel("accuracy, %")
        axes.grid(axis="y", **drawing.GRID)
        lows = [min(100 * line.worst for line in row.accuracy_by_failures) for row in report.methods]
        high = max(teacher, *(100 * line.mean for row in report.methods for line in row.accuracy_by_failures))
        low = drawing.floor_without_outliers(lows, high)
        pad = max(0.06 * (high - low), 0.5)
        axes.set_ylim(max(low - pad, -1.0), min(high + pad, 101.0))
        drawing.break_axis(axes)
        drawing.name_lines(axes, names, most - 1)

    return drawing.svg("methods", "Accuracy against failed devices, by method", (6.9, 4.0), draw)
