"""Tables of accuracy: reports, methods, training on small budgets."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

from nonn.report.document import Report
from nonn.report.overview import failure_table, live_table
from nonn.report.sentences import headline
from nonn.report.table import as_markdown

__all__ = ["lease_markdown", "methods_markdown", "report_markdown", "results_markdown"]


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


def methods_markdown(found: Mapping[str, Any]) -> str:
    """A row for each method, mean and deviation over seeds, and its difference from the labels alone, same seeds."""
    rows = {name: row["runs"] for name, row in found["rows"].items()}
    shown, versions = (0, 4, 7), {run["code_version"] for runs in rows.values() for run in runs.values()}
    lines = [
        "| next to the labels | seeds | 0 failed | 4 failed | 7 failed | worth at 0 | at 4 | at 7 | CEV at 4 |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, by_seed in rows.items():
        next_to = found["rows"][name].get("next_to", "labels")
        runs, labels = list(by_seed.values()), [rows[next_to][seed] for seed in by_seed]
        levels, base = (
            [[100 * run["accuracy_by_failures"][failed] for run in some] for failed in shown] for some in (runs, labels)
        )
        spread = [f" ± {stdev(level):.1f}" if len(level) > 1 else "" for level in levels]
        cells = [f"{mean(level):.1f}{sd} %" for level, sd in zip(levels, spread, strict=True)]
        worth = [f"{mean(level) - mean(other):+.1f}" for level, other in zip(levels, base, strict=True)]
        title = f"together: {', '.join(found['together'])}" if name == "together" else name
        cev = f"{mean(run['cev'][4] for run in runs):.2f}"
        lines.append(f"| {title} | {len(runs)} | {' | '.join([*cells, *worth, cev])} |")
    teacher = mean(run["teacher"] for run in rows["labels"].values())
    machine = ", ".join(f"{key} {value}" for key, value in sorted(found["machine"].items()))
    return "\n".join([*lines, "", f"Teacher {teacher:.1%}; {machine}; {', '.join(sorted(versions))}."])


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
