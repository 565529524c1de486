"""Tables of accuracy: reports, training on small budgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nonn.report.document import Report
from nonn.report.overview import failure_table, live_table
from nonn.report.sentences import headline
from nonn.report.table import as_markdown

__all__ = ["lease_markdown", "report_markdown", "results_markdown"]


def report_markdown(report: Report) -> str:
    """The tables that ``nonn demo`` prints: every number of failures, and what the live cluster measured."""
    return "\n\n".join(
        [
            f"{headline(report)}.",
            "Over all subsets of surviving devices:",
            as_markdown(failure_table(report)),
            "Measured on live processes:",
            as_markdown(live_table(report)),
        ]
    )


def results_markdown(*reports: Report) -> str:
    """One line per report: the teacher, and accuracy with none, half and all but one of the devices failed."""
    lines = [
        "| data | teacher | students | none failed | half failed, mean | worst | all but one failed |",
        "| :--- | ---: | :--- | ---: | ---: | ---: | ---: |",
    ]
    for report in reports:
        rows = report.accuracy_by_failures
        half = rows[len(rows) // 2]
        students = f"{len(report.devices)} × {max(device.params for device in report.devices):,} parameters"
        shown = [report.teacher.accuracy, students, rows[0].mean, half.mean, half.worst, rows[-1].mean]
        cells = [report.data.name, *(a if isinstance(a, str) else f"{a:.1%}" for a in shown)]
        lines.append("| " + " | ".join(cell.replace("%", " %") for cell in cells) + " |")
    return "\n".join(lines)


def lease_markdown(found: Mapping[str, Any]) -> str:
    """Accuracy of each pilot and each row on the held-out split, over all subsets, by the number of failures."""
    first = next(iter(found["stays"][0]["pilots"].values()))
    lines = [
        "| students | training images | epochs | " + " | ".join(f"{n} failed" for n in range(len(first))) + " |",
        "| :--- | ---: | ---: |" + " ---: |" * len(first),
    ]
    for stay in found["stays"]:
        pilots = {f"pilot `{name}`": (found["pilot_epochs"], levels) for name, levels in stay["pilots"].items()}
        rows = {f"`{name}`": (row["epochs"], row["held_out_by_failures"]) for name, row in stay["rows"].items()}
        for title, (epochs, levels) in (pilots | rows).items():
            shown = " | ".join(f"{100 * level:.1f} %" for level in levels)
            lines.append(f"| {title} | {stay['train']:,} | {epochs} | {shown} |")
    return "\n".join(lines)
