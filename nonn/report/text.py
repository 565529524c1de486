"""The whole report as text: for terminals, as Markdown for documents, and as CSV for programs."""

from __future__ import annotations

import csv
import io

from nonn.report.classes import bias_table, calibration_table, class_table
from nonn.report.document import Report
from nonn.report.methods import methods_table
from nonn.report.risk import availability_table, pair_table
from nonn.report.table import (
    IntervalColumn,
    Table,
    as_markdown,
    as_text,
    device_table,
    failure_table,
    live_table,
    short_report,
)

__all__ = ["csv_report", "markdown_report", "report_tables", "text_report"]


def text_report(report: Report) -> str:
    """What ``nonn report`` prints: the short tables, and the compared methods if there are any."""
    text = short_report(report, as_text)
    return f"{text}\n{as_text(methods_table(report))}\n" if report.methods else text


def markdown_report(report: Report) -> str:
    """The report's headline and all of its tables as Markdown."""
    later = [
        f"## {title}\n\n{as_markdown(table)}"
        for title, table in report_tables(report).items()
        if title not in ("failures", "live", "devices")
    ]
    return "\n\n".join([short_report(report, as_markdown).rstrip(), *later]) + "\n"


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
    return tables


def csv_report(report: Report) -> str:
    """All contents of the tables with all their digits, one per line: ``table,row,quantity,value,text``.

    ``row`` counts from 0 in the order of the table; ``quantity`` is the key in report.json. Numbers are in ``value``,
    and nothing else is, so that it reads as a column of numbers; names and lists of devices, separated by spaces, are
    in ``text``. All pairs, classes and levels of availability are included, not just those shown in the tables.
    """
    tables = report_tables(report)
    if "pairs" in tables:
        tables["pairs"] = pair_table(report, None)
    if report.by_class:
        tables["classes"] = class_table(report.by_class, None)
    tables["availability"] = availability_table(report.availability, whole=True)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "row", "quantity", "value", "text"])
    for name, table in tables.items():
        for number, row in enumerate(table.values()):
            for column, value in zip(table.columns, row, strict=True):
                if isinstance(column, IntervalColumn):
                    ends = value if isinstance(value, tuple) else (None, None)
                    for end, number_of in zip(("low", "high"), ends, strict=True):
                        writer.writerow([name, number, f"{column.key}_{end}", number_of, ""])
                    continue
                words = " ".join(map(str, value)) if isinstance(value, tuple) else value
                both = ("", words) if isinstance(words, str) else (value, "")
                writer.writerow([name, number, column.key, *both])
    return buffer.getvalue()
