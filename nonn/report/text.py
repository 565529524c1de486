"""The whole report as text: for terminals, as Markdown for documents, and as CSV for programs.

``whole_tables`` are the tables with everything they have, not just what fits on a page; ``csv_report`` writes them one
number a line, ``wide_csv`` one file a table, ``records`` gives the lines of the latter to programs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace

from nonn.report.classes import bias_table, calibration_table, class_table
from nonn.report.document import Report
from nonn.report.methods import methods_table
from nonn.report.overview import device_table, failure_table, live_table
from nonn.report.risk import availability_table, pair_table
from nonn.report.sensing import sensing_line, smoothing_table
from nonn.report.sentences import head_line, headline, network_line, sample_line, sampling_line, selection_line
from nonn.report.table import (
    Column,
    IntervalColumn,
    Table,
    as_markdown,
    as_text,
    points_of,
    share_of,
    show_interval,
)

__all__ = [
    "csv_report",
    "markdown_report",
    "records",
    "report_tables",
    "text_report",
    "whole_tables",
    "wide_csv",
]


def text_report(report: Report) -> str:
    """What ``nonn report`` prints: the short tables, nodes that sense, and the compared methods if there are any."""
    text = _short_report(report, as_text)
    if report.sensing:
        text += f"\n{sensing_line(report.sensing)}\n"
        if report.sensing.smoothing:
            text += f"\n{as_text(smoothing_table(report, report.sensing.smoothing))}\n"
    if report.methods:
        last = max(row.devices for row in report.methods) - 1
        few = sorted({0, len(report.devices) // 2, last})  # all of them do not fit in a line
        text += f"\n{as_text(methods_table(report, few))}\n"
    return text


def markdown_report(report: Report) -> str:
    """The report's headline and all of its tables as Markdown."""
    later = [
        f"## {title}\n\n{as_markdown(table)}"
        for title, table in report_tables(report).items()
        if title not in ("failures", "live", "devices")
    ]
    return "\n\n".join([_short_report(report, as_markdown).rstrip(), *later]) + "\n"


def _short_report(report: Report, lay_out: Callable[[Table], str]) -> str:
    """Headline, accuracy against failures and devices, and the live table if there are measurements."""
    expected, share = report.expected_accuracy, share_of(report.data.samples)
    blocks = [f"{headline(report)}.", lay_out(failure_table(report)), sample_line(report)]
    if sampling := sampling_line(report):
        blocks.append(sampling)
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
    line += f" (95 %: {show_interval(share)(expected.interval)})" if expected.interval else ""
    if expected.bound:
        line += f"; whatever the subsets that were not counted reach: {show_interval(share)(expected.bound)}"
    blocks.append(line)
    if report.measured_live:
        blocks += ["Measured on a live cluster:", lay_out(live_table(report))]
    blocks += [lay_out(device_table(report)), network_line(report)]
    if report.head is not None:
        blocks.append(head_line(report.head))
    return "\n\n".join(blocks) + "\n"


def report_tables(report: Report) -> dict[str, Table]:
    """Every table that the report has, by name."""
    tables = {"failures": failure_table(report), "availability": availability_table(report.availability)}
    tables["devices"] = device_table(report)
    if len(report.devices) > 1:
        tables["pairs"] = pair_table(report)
    if report.measured_live:
        tables["live"] = live_table(report)
    if report.methods:
        tables["methods"] = methods_table(report)
    if report.by_class:
        tables["classes"] = class_table(report.by_class)
        tables["bias"] = bias_table(report.by_class)
        tables["calibration"] = calibration_table(report.by_class)
    if report.sensing and report.sensing.smoothing:
        tables["smoothing"] = smoothing_table(report, report.sensing.smoothing)
    return tables


def whole_tables(report: Report) -> dict[str, Table]:
    """Every table with all pairs, classes, levels of availability, and what choosing worst and best does."""
    tables = report_tables(report)
    if any(row.best_interval for row in report.accuracy_by_failures):
        share = share_of(report.data.samples)
        more = (
            Column("worst, chosen apart", "worst_apart", share),
            IntervalColumn("95 %", "worst_apart_interval", show_interval(share)),
            Column("best, chosen apart", "best_apart", share),
            IntervalColumn("95 %", "best_apart_interval", show_interval(share)),
        )
        tables["failures"] = replace(tables["failures"], columns=(*tables["failures"].columns, *more))
    if "pairs" in tables:
        tables["pairs"] = pair_table(report, None)
    if report.by_class:
        tables["classes"] = class_table(report.by_class, None)
    tables["availability"] = availability_table(report.availability, whole=True)
    return tables


def records(table: Table) -> list[dict[str, object]]:
    """The rows of a table with all their digits, by their keys in report.json.

    An interval gives two values, ``KEY_low`` and ``KEY_high``; a list of devices is text, separated by spaces.
    """
    rows = []
    for values in table.values():
        row: dict[str, object] = {}
        for column, value in zip(table.columns, values, strict=True):
            if isinstance(column, IntervalColumn):
                low, high = value if isinstance(value, tuple) else (None, None)
                row |= {f"{column.key}_low": low, f"{column.key}_high": high}
            else:
                row[column.key] = " ".join(map(str, value)) if isinstance(value, tuple) else value
        rows.append(row)
    return rows


def wide_csv(table: Table) -> str:
    """A table as CSV, a line for each row and a column for each key of ``records``."""
    buffer = io.StringIO()
    rows = records(table)
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def csv_report(report: Report) -> str:
    """All contents of the tables with all their digits, one per line: ``table,row,quantity,value,text``.

    ``row`` counts from 0 in the order of the table; ``quantity`` is the key in report.json. Numbers are in ``value``,
    and nothing else is, so that it reads as a column of numbers; names and lists of devices, separated by spaces, are
    in ``text``. All pairs, classes and levels of availability are included, not just those shown in the tables.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "row", "quantity", "value", "text"])
    for name, table in whole_tables(report).items():
        for number, row in enumerate(records(table)):
            for key, value in row.items():
                both = ("", value) if isinstance(value, str) else (value, "")
                writer.writerow([name, number, key, *both])
    return buffer.getvalue()
