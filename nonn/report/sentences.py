"""The report as short tables: plain text for terminals, Markdown for documents, columns for the page.

Each table is defined once, as columns with a key in report.json and a format; text, Markdown and HTML only lay it out.
No dependency, so that ``nonn report`` works with the base install.

Figures are rounded to what the test set supports: as many digits as one sample is worth, and at most two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nonn.documents.shown import html_table, percent
from nonn.reliability.subsets import FailureRow
from nonn.report.document import HeadReport, Report

__all__ = [
    "Column",
    "IntervalColumn",
    "Table",
    "TextColumn",
    "as_html",
    "as_markdown",
    "as_text",
    "confidence_sentence",
    "device_table",
    "digits_of",
    "failure_table",
    "failures_table",
    "half_gone",
    "head_line",
    "headline",
    "live_table",
    "network_line",
    "percent",
    "points",
    "points_of",
    "sample_line",
    "selection_line",
    "share_of",
    "short_report",
    "show_interval",
]


def points(value: float, digits: int = 2) -> str:
    """A difference of accuracies as percentage points; never ``-0.00``."""
    return f"{round(100 * value, digits) + 0.0:.{digits}f}"


def digits_of(samples: int) -> int:
    """Decimals of a percentage that so many samples support: 0 up to 100 samples, 1 up to 1,000, 2 beyond."""
    return max(0, min(2, math.ceil(math.log10(max(1, samples))) - 2))


def share_of(samples: int, at_most: int = 2) -> Callable[[float], str]:
    """Prints accuracies that were counted on so many samples."""
    digits = min(at_most, digits_of(samples))
    return lambda value: percent(value, digits)


def points_of(samples: int) -> Callable[[float], str]:
    """Prints differences of accuracies that were counted on so many samples."""
    digits = digits_of(samples)
    return lambda value: points(value, digits)


def show_interval(show: Callable[[float], str]) -> Callable[[Sequence[float]], str]:
    """Prints intervals, with the unit once."""

    def shown(ends: Sequence[float]) -> str:
        low, high = map(show, ends)
        return f"{low.removesuffix(' %')} to {high}"

    return shown


def _count(value: int) -> str:
    return f"{value:,}"


def _devices(value: Sequence[int]) -> str:
    return " ".join(map(str, value)) or "–"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its heading, with the unit where there is one.
        key: the attribute of a row, or its key in a mapping.
        show: how a value is printed.
        missing: text for a value that is None.
        minor: left out on narrow screens.
        least: smaller values, either way, are shown pale: one sample of the test set.
    """

    title: str
    key: str
    show: Callable[..., str] = _count
    missing: str = "–"
    minor: bool = False
    least: float = 0.0

    def of(self, row: object) -> object:
        """The value in a row."""
        return row[self.key] if isinstance(row, Mapping) else getattr(row, self.key)

    def text(self, row: object) -> str:
        """The printed text of the value in a row."""
        value = self.of(row)
        return self.missing if value is None else self.show(value)

    def is_pale(self, row: object) -> bool:
        """Whether the value in a row is smaller than the column resolves."""
        value = self.of(row)
        return isinstance(value, int | float) and abs(value) < self.least * (1 - 1e-9)

    @property
    def is_number(self) -> bool:
        """Whether cells are numbers, which are right-aligned."""
        return self.show is not _devices


class TextColumn(Column):
    """A column of words, which are left-aligned."""

    @property
    def is_number(self) -> bool:
        """Never."""
        return False


class IntervalColumn(TextColumn):
    """A column of intervals [low, high], of the values in the column before it."""


@dataclass(frozen=True)
class Table:
    """Columns and their rows: parts of a document, or mappings."""

    columns: tuple[Column, ...]
    rows: Sequence[object]

    def in_cells(self) -> list[tuple[Column, Column | None]]:
        """The columns of a page, each with that of its intervals, which share its cells."""
        following = (*self.columns[1:], None)
        return [
            (column, after if isinstance(after, IntervalColumn) else None)
            for column, after in zip(self.columns, following, strict=True)
            if not isinstance(column, IntervalColumn)
        ]

    def values(self) -> list[list[object]]:
        """The values with all their digits, row by row."""
        return [[column.of(row) for column in self.columns] for row in self.rows]

    def cells(self) -> list[list[str]]:
        """The printed texts, row by row."""
        return [[column.text(row) for column in self.columns] for row in self.rows]


def failure_table(report: Report) -> Table:
    """Accuracy against failed devices, over all subsets."""
    nodes = [device.node for device in report.devices]
    return failures_table(report.accuracy_by_failures, nodes, report.data.samples)


def failures_table(by_failures: Sequence[FailureRow], devices: Iterable[int], samples: int) -> Table:
    """Accuracy against failed devices, over all subsets.

    Args:
        by_failures: for 0 to N − 1 failed devices.
        devices: all devices, shown where none has failed.
        samples: size of the test set.
    """
    share = share_of(samples)
    columns = (
        Column("failed", "failed"),
        Column("subsets", "subsets", minor=True),
        Column("mean", "mean", share),
        *_interval("95 %", "interval", share, by_failures),
        Column("worst", "worst", share),
        *_interval("95 %", "worst_interval", share, by_failures),
        Column("best", "best", share, minor=True),
        Column("answering in the worst case", "worst_subset", _devices),
    )
    # Without failures every device answers; report.json leaves that list empty.
    everyone = tuple(devices)
    rows = [row if row.failed else replace(row, worst_subset=everyone) for row in by_failures]
    return Table(columns, rows)


def _interval(title: str, key: str, show: Callable[[float], str], rows: Sequence[object]) -> tuple[Column, ...]:
    """A column of intervals, where the rows have them: older reports do not."""
    has = any(getattr(row, key) is not None for row in rows)
    return (IntervalColumn(title, key, show_interval(show)),) if has else ()


def live_table(report: Report) -> Table:
    """Measurements of a live cluster next to the bundle's predictions."""
    share, rows = share_of(report.data.samples), report.measured_live
    columns = (
        Column("failed", "failed"),
        Column("requests", "requests"),
        Column("lost", "lost"),
        Column("accuracy", "accuracy", share),
        *_interval("95 %", "interval", share, rows),
        Column("predicted", "predicted", share),
        Column("answered devices", "answered", _devices),
    )
    return Table(columns, rows)


def device_table(report: Report) -> Table:
    """What each device runs, sends and contributes."""
    share, point, rows = share_of(report.data.samples), points_of(report.data.samples), report.devices
    equal = sum(device.shapley for device in rows) / len(rows)

    def unequal(shapley: float) -> str:
        return point(shapley - equal)

    columns = (
        Column("device", "node"),
        Column("part", "part", minor=True),
        Column("filters", "filters", minor=True),
        Column("params", "params", minor=True),
        Column("MACs", "macs", minor=True),
        Column("model, bytes", "model_bytes", minor=True),
        Column("sends, bytes", "feature_bytes", minor=True),
        Column("accuracy alone", "accuracy_alone", share),
        *_interval("95 %", "accuracy_alone_interval", share, rows),
        Column("value, points", "value", point, least=1 / report.data.samples),
        *_interval("95 %", "value_interval", point, rows),
        Column(f"Shapley less {point(equal)}, points", "shapley", unequal),
        *_interval("95 %", "shapley_interval", unequal, rows),
    )
    return Table(columns, rows)


def half_gone(report: Report) -> FailureRow:
    """Accuracy with half of the devices failed, rounded down."""
    return report.accuracy_by_failures[len(report.devices) // 2]


def headline(report: Report) -> str:
    """The report in one sentence."""
    row, num_devices, share = half_gone(report), len(report.devices), share_of(report.data.samples, 1)
    teacher, mean, worst = map(share, (report.teacher.accuracy, row.mean, row.worst))
    if row.interval is not None:
        mean += f" ({show_interval(share)(row.interval)})"
    if num_devices == 1:
        return f"With its only device, answers are right {mean} of the time; the teacher: {teacher}"
    return (
        f"With {row.failed} of {num_devices} devices gone, answers are right {mean} of the time on average, "
        f"{worst} in the worst case; the teacher: {teacher}"
    )


def sample_line(report: Report) -> str:
    """What one sample of the test set is worth, and what intervals mean."""
    samples, one = report.data.samples, 100 / report.data.samples
    line = (
        f"Counted on {samples:,} test samples: one sample is {one:.2g} points of accuracy. Intervals are 95 % "
        "confidence intervals for new samples of the same kind"
    )
    if report.data.outcomes == 0:
        line += (
            "; this bundle does not record which samples each subset gets right, so they come from the counts and are "
            "too wide for means and differences"
        )
    elif report.data.outcomes is not None and report.data.outcomes < samples:
        line += f", from the outcomes of {report.data.outcomes:,} of them"
    return f"{line}."


def selection_line(report: Report) -> str:
    """What choosing the worst and the best subset by the samples that measure them does, with half of them failed."""
    row, share = half_gone(report), share_of(report.data.samples)
    if row.worst_apart is None or row.best_apart is None:
        return "" if row.subsets == 1 else "Worst and best are chosen on the samples that they are measured on."
    return (
        f"Worst and best are chosen on the samples that they are measured on. With {row.failed} failed, the subset "
        f"that is worst on one half of the samples reaches {share(row.worst_apart)} on the other (worst of all: "
        f"{share(row.worst)}), and the best one {share(row.best_apart)} (best of all: {share(row.best)})."
    )


def confidence_sentence(report: Report) -> str:
    """Whether the confidence of answers still holds with half of the devices failed."""
    if report.by_class is None:
        return ""
    row, point = report.by_class.by_failures[len(report.devices) // 2], points_of(report.by_class.samples)
    if row.ece_perfect is None or row.ece_perfect_high is None:
        return f"With {row.failed} failed, confidence is {point(row.ece)} points from accuracy on average (ECE)."
    verdict = (
        "cannot be told apart from perfect calibration"
        if row.ece <= row.ece_perfect_high
        else "is farther from accuracy than chance explains"
    )
    return (
        f"With {row.failed} failed, confidence {verdict}: ECE {point(row.ece)} points; perfectly calibrated answers "
        f"would show {point(row.ece_perfect)} on {report.by_class.samples:,} samples, and more than "
        f"{point(row.ece_perfect_high)} in 1 of 20 test sets."
    )


def network_line(report: Report) -> str:
    """Bytes of an answer on the network, and the cost of 8 bits where the bundle has them."""
    traffic, precision = report.traffic, report.precision
    line = (
        f"One answer puts {traffic.bytes_per_answer:,} bytes on the network; the same features as floats, as in "
        f"NoNN: {traffic.as_floats:,}"
    )
    if traffic.layer_maps is not None:
        line += f"; feature maps of a teacher split by layers, as in MoDNN: {traffic.layer_maps:,}"
    if precision is not None:
        none, half = precision.drop_by_failures[0], precision.drop_by_failures[len(report.devices) // 2]
        line += (
            f".\nAgainst the same students in float: {precision.size_ratio:.2f} of their size, accuracy "
            f"{-100 * none.drop + 0.0:+.2f} points with none failed, "
            f"{-100 * half.drop + 0.0:+.2f} with {half.failed} failed"
            + (
                f" (95 %: {-100 * half.interval[1]:+.2f} to {-100 * half.interval[0] + 0.0:+.2f})"
                if half.interval
                else ""
            )
        )
    return f"{line}."


def head_line(head: HeadReport) -> str:
    """Size of the fusion head, and the time to solve a new subset where it was measured."""
    line = f"Fusion head {head.kind}: {head.bytes:,} of the bundle's {head.bundle_bytes:,} bytes"
    if head.solve_ms is not None:
        line += f"; a new subset of devices takes at most {head.solve_ms:.2f} ms to solve on this machine"
    return f"{line}."


def as_text(table: Table) -> str:
    """A table for a terminal."""
    titles = [column.title for column in table.columns]
    lines = [titles, *table.cells()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]

    def align(line: list[str]) -> str:
        padded = (
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([align(titles), "  ".join("─" * width for width in widths), *map(align, lines[1:])])


def as_markdown(table: Table) -> str:
    """A table for a document."""
    rule = ["---:" if column.is_number else ":---" for column in table.columns]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in table.cells()]
    lines = [[column.title for column in table.columns], rule, *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_html(table: Table, caption: str = "") -> str:
    """A table for a notebook."""
    return html_table([column.title for column in table.columns], table.cells(), caption)


def short_report(report: Report, lay_out: Callable[[Table], str]) -> str:
    """Headline, accuracy against failures and devices, and the live table if there are measurements."""
    expected, share = report.expected_accuracy, share_of(report.data.samples)
    blocks = [f"{headline(report)}.", lay_out(failure_table(report)), sample_line(report)]
    if selection := selection_line(report):
        blocks.append(selection)
    if report.against_teacher:
        half, point = report.against_teacher[len(report.devices) // 2], points_of(report.data.samples)
        blocks.append(
            f"With {half.failed} failed, {point(half.difference)} points against the teacher "
            f"(95 %: {show_interval(point)(half.interval)})"
            + ("." if half.paired else "; the samples that the teacher gets right are not recorded.")
        )
    line = f"Expected accuracy, failures {expected.law}: {share(expected.value)}"
    blocks.append(line + (f" (95 %: {show_interval(share)(expected.interval)})" if expected.interval else ""))
    if report.measured_live:
        blocks += ["Measured on a live cluster:", lay_out(live_table(report))]
    blocks += [lay_out(device_table(report)), network_line(report)]
    if report.head is not None:
        blocks.append(head_line(report.head))
    return "\n\n".join(blocks) + "\n"
