"""The report as short tables: plain text for terminals, Markdown for documents, columns for the page.

Each table is defined once, as columns with a key in report.json and a format; text, Markdown and HTML only lay it out.
No dependency, so that ``nonn report`` works with the base install.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nonn.documents.shown import html_table, percent
from nonn.reliability.subsets import FailureRow
from nonn.report.document import HeadReport, Report

__all__ = [
    "Column",
    "Table",
    "TextColumn",
    "as_html",
    "as_markdown",
    "as_text",
    "device_table",
    "failure_table",
    "failures_table",
    "half_gone",
    "head_line",
    "headline",
    "live_table",
    "network_line",
    "percent",
    "points",
    "short_report",
]


def points(value: float) -> str:
    """A difference of accuracies as percentage points; never ``-0.00``."""
    return f"{round(100 * value, 2) + 0.0:.2f}"


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
    """

    title: str
    key: str
    show: Callable[..., str] = _count
    missing: str = "–"

    def of(self, row: object) -> object:
        """The value in a row."""
        return row[self.key] if isinstance(row, Mapping) else getattr(row, self.key)

    def text(self, row: object) -> str:
        """The printed text of the value in a row."""
        value = self.of(row)
        return self.missing if value is None else self.show(value)

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


@dataclass(frozen=True)
class Table:
    """Columns and their rows: parts of a document, or mappings."""

    columns: tuple[Column, ...]
    rows: Sequence[object]

    def values(self) -> list[list[object]]:
        """The values with all their digits, row by row."""
        return [[column.of(row) for column in self.columns] for row in self.rows]

    def cells(self) -> list[list[str]]:
        """The printed texts, row by row."""
        return [[column.text(row) for column in self.columns] for row in self.rows]


def failure_table(report: Report) -> Table:
    """Accuracy against failed devices, over all subsets."""
    return failures_table(report.accuracy_by_failures, [device.node for device in report.devices])


def failures_table(by_failures: Sequence[FailureRow], devices: Iterable[int]) -> Table:
    """Accuracy against failed devices, over all subsets.

    Args:
        by_failures: for 0 to N − 1 failed devices.
        devices: all devices, shown where none has failed.
    """
    columns = (
        Column("failed", "failed"),
        Column("subsets", "subsets"),
        Column("mean", "mean", percent),
        Column("worst", "worst", percent),
        Column("best", "best", percent),
        Column("answering in the worst case", "worst_subset", _devices),
    )
    # Without failures every device answers; report.json leaves that list empty.
    everyone = tuple(devices)
    rows = [row if row.failed else replace(row, worst_subset=everyone) for row in by_failures]
    return Table(columns, rows)


def live_table(report: Report) -> Table:
    """Measurements of a live cluster next to the bundle's predictions."""
    columns = (
        Column("failed", "failed"),
        Column("requests", "requests"),
        Column("lost", "lost"),
        Column("accuracy", "accuracy", percent),
        Column("predicted", "predicted", percent),
        Column("answered devices", "answered", _devices),
    )
    return Table(columns, report.measured_live)


def device_table(report: Report) -> Table:
    """What each device runs, sends and contributes."""
    columns = (
        Column("device", "node"),
        Column("part", "part"),
        Column("filters", "filters"),
        Column("params", "params"),
        Column("MACs", "macs"),
        Column("model, bytes", "model_bytes"),
        Column("sends, bytes", "feature_bytes"),
        Column("accuracy alone", "accuracy_alone", percent),
        Column("value, points", "value", points),
        Column("Shapley, points", "shapley", points),
    )
    return Table(columns, report.devices)


def half_gone(report: Report) -> FailureRow:
    """Accuracy with half of the devices failed, rounded down."""
    return report.accuracy_by_failures[len(report.devices) // 2]


def headline(report: Report) -> str:
    """The report in one sentence."""
    row, num_devices = half_gone(report), len(report.devices)
    teacher = percent(report.teacher.accuracy, 1)
    mean, worst = percent(row.mean, 1), percent(row.worst, 1)
    if num_devices == 1:
        return f"With its only device, answers are right {mean} of the time; the teacher: {teacher}"
    return (
        f"With {row.failed} of {num_devices} devices gone, answers are right {mean} of the time on average "
        f"(worst case {worst}); the teacher: {teacher}"
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
    expected = report.expected_accuracy
    blocks = [f"{headline(report)}.", lay_out(failure_table(report))]
    blocks.append(f"Expected accuracy, failures {expected.law}: {percent(expected.value)}")
    if report.measured_live:
        blocks += ["Measured on a live cluster:", lay_out(live_table(report))]
    blocks += [lay_out(device_table(report)), network_line(report)]
    if report.head is not None:
        blocks.append(head_line(report.head))
    return "\n\n".join(blocks) + "\n"
